"""Where each number of a tensor lies in the bytes of a C program, and the loops that put bytes into another order.

Maps are stored by rows, columns, channels, so that a pixel's channels lie side by side and a convolution is a dot product of two runs
of bytes; torch's are channels, rows, columns. So it is with any tensor of two dimensions or more: the first of torch's goes last.

A reshape, a permutation or a slice computes nothing. It is done here, on the table of addresses of what it gets, by torch itself, and
becomes work on the device only where a kernel needs the bytes in an order in which they do not lie: nested loops copy them then.
"""

import functools
import math
from dataclasses import dataclass

import torch

LOOPS = 6                                                                                   # as many as walk.c has


@dataclass(frozen=True, eq=False)
class Place:
    """How a tensor is stored. root: the tensor whose bytes it shares; at: for each of its numbers, in torch's shape for one image, the
    address within these bytes, int32."""

    root: str
    at: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.at.shape)


def stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the dimensions in memory.

    >>> stored((3, 28, 20)), stored((7,))
    ((28, 20, 3), (7,))
    """
    return (*shape[1:], *shape[:1])


@functools.lru_cache(maxsize=64)
def last(shape: tuple[int, ...]) -> torch.Tensor:
    """The addresses of a tensor whose first dimension goes last: of a map by rows, columns, channels.

    >>> last((2, 1, 3))
    tensor([[[0, 2, 4]],
    <BLANKLINE>
            [[1, 3, 5]]], dtype=torch.int32)
    """
    return torch.arange(math.prod(shape), dtype=torch.int32).view(stored(shape)).movedim(-1, 0)


@functools.lru_cache(maxsize=64)
def plain(shape: tuple[int, ...]) -> torch.Tensor:
    """The addresses of a tensor in torch's own order."""
    return torch.arange(math.prod(shape), dtype=torch.int32).view(shape)


def in_order(at: torch.Tensor) -> torch.Tensor:
    """The addresses, or any values of a tensor, in the order in which `last` stores them, as a vector."""
    return at.movedim(0, -1).flatten() if at.dim() > 1 else at


def loops(*addresses: torch.Tensor) -> list[tuple[int, list[int]]] | None:
    """Nested loops that visit these addresses of several tensors together: (times, the step of each tensor), the innermost loop first.

    addresses: vectors of one length. None where it takes more than LOOPS, or is no matter of loops.

    >>> loops(last((2, 2, 3)).flatten(), torch.arange(12))                                  # from rows, columns, channels to torch's order
    [(6, [2, 1]), (2, [1, 6])]
    """
    found, left = [], torch.stack([a.to(torch.int64) for a in addresses])                   # (tensors, values)
    while left.shape[1] > 1:
        step = left[:, 1] - left[:, 0]
        other = ((left[:, 1:] - left[:, :-1]) != step[:, None]).any(0).nonzero()
        times = int(other[0]) + 1 if len(other) else left.shape[1]
        if left.shape[1] % times or len(found) == LOOPS:
            return None
        blocks = left.unflatten(1, (-1, times))
        if not ((blocks - blocks[:, :, :1]) == step[:, None, None] * torch.arange(times)).all():
            return None
        found.append((times, step.tolist()))
        left = blocks[:, :, 0]
    return found
