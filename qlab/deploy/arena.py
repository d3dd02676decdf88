"""One block of memory for all activations: tensors that are never alive at the same time may lie at the same address.

    a tensor is alive from the step that writes it to the last step that reads it
    arena >= max over steps of the sum of the sizes alive at that step

Finding the smallest arena is NP-hard (it is the packing of rectangles, bytes by time, Garey and Johnson 1979). Greedy by size comes
close: the largest tensor first, each at the lowest address where it overlaps no tensor that lives with it (Pisarchyk and Lee 2020,
section 4.2; TensorFlow Lite Micro plans so too). A chain of layers becomes a ping-pong between the two ends.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """size: bytes; first, last: the steps that write it and that read it last."""

    name: str
    size: int
    first: int
    last: int


def lower_bound(tensors: list[Tensor]) -> int:
    """The bytes alive at the step at which most are: no plan needs fewer.

    >>> lower_bound([Tensor("a", 8, 0, 1), Tensor("b", 4, 1, 2), Tensor("c", 6, 2, 3)])
    12
    """
    return max((sum(t.size for t in tensors if t.first <= step <= t.last) for step in {t.first for t in tensors}), default=0)


def plan(tensors: list[Tensor], align: int = 4) -> tuple[dict[str, int], int]:
    """Addresses by name, each a multiple of align, and the bytes of the whole arena.

    >>> plan([Tensor("a", 8, 0, 1), Tensor("b", 4, 1, 2), Tensor("c", 6, 2, 3)])
    ({'a': 0, 'c': 0, 'b': 8}, 12)
    """
    placed, addresses = [], {}
    for tensor in sorted(tensors, key=lambda t: (-t.size, t.first)):
        address = 0
        for other in sorted(placed, key=lambda t: addresses[t.name]):
            together = tensor.first <= other.last and other.first <= tensor.last
            if together and address < addresses[other.name] + other.size and addresses[other.name] < address + tensor.size:
                address = -(-(addresses[other.name] + other.size) // align) * align
        addresses[tensor.name] = address
        placed.append(tensor)
    return addresses, max((addresses[t.name] + t.size for t in tensors), default=0)
