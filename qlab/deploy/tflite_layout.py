"""Where the values of a tensor lie in memory: PyTorch's order of an image's numbers, another order of a file's, and what lies between.

A tensor's numbers are counted in PyTorch's order. A layout cuts that count into axes, as digits cut a number, and says in which order
the axes lie in memory. TensorFlow Lite's map of 3 channels, 5 rows and 4 columns has the axes (3, 20) in the order (1, 0).

    view, reshape, flatten     change nothing: neither the count nor the memory
    permute, transpose         change the count and leave the memory
    another order in memory    is a TRANSPOSE, of as few axes as there are

So reshapes and permutations cost nothing until a layer wants its own order: a channel shuffle, which is reshape, permute, reshape, becomes
one TRANSPOSE, and what cancels becomes none.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

RANK = 5                                                                                    # of a TRANSPOSE in tflite-micro, with the batch


@dataclass(frozen=True)
class Layout:
    """axes: sizes of the digits, the most significant first; memory: their order in memory, the slowest first."""

    axes: tuple[int, ...]
    memory: tuple[int, ...]


def layout(axes, memory) -> Layout:
    """With no axis of 1, and none that follows another in the count as in memory: two that are equal lie alike.

    >>> layout((3, 1, 5, 4), (1, 2, 3, 0))
    Layout(axes=(3, 20), memory=(1, 0))
    """
    large = [i for i, size in enumerate(axes) if size > 1]
    blocks = []
    for i in (large.index(i) for i in memory if axes[i] > 1):
        if blocks and i == blocks[-1][-1] + 1:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    order = sorted(blocks)
    return Layout(tuple(math.prod(axes[large[i]] for i in block) for block in order), tuple(order.index(block) for block in blocks))


def in_order(count: int) -> Layout:
    """PyTorch's own."""
    return layout((count,), (0,))


def channels_last(shape: tuple[int, ...]) -> Layout:
    """What TensorFlow Lite's operators take: rows, columns, channels for a map, else PyTorch's order. shape: without the batch."""
    return layout(shape, (1, 2, 0)) if len(shape) == 3 else in_order(math.prod(shape))


def indices(held: Layout) -> np.ndarray:
    """For each place in memory, which of PyTorch's numbers lies there.

    >>> indices(layout((2, 3), (1, 0))).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return np.arange(math.prod(held.axes)).reshape(held.axes).transpose(held.memory).ravel()


def split(held: Layout, sizes: tuple[int, ...]) -> Layout | None:
    """The same layout, its axes cut where those of the sizes end; not in its shortest form. None where they do not divide each other.

    >>> split(layout((6, 5), (1, 0)), (2, 15))
    Layout(axes=(2, 3, 5), memory=(2, 0, 1))
    """
    ends = [_ends(held.axes), _ends(sizes)]
    cuts = sorted({*ends[0], *ends[1], math.prod(sizes)}, reverse=True)
    if any(a % b for a, b in itertools.pairwise(cuts)):
        return None
    axes = tuple(a // b for a, b in itertools.pairwise(cuts))
    at = list(itertools.accumulate([0, *(sum(low <= cut < low * size for cut in cuts[1:]) for low, size in zip(ends[0], held.axes))]))
    return Layout(axes, tuple(i for axis in held.memory for i in range(at[axis], at[axis + 1])))


def _ends(sizes) -> list[int]:
    """How many numbers one step of each axis passes."""
    return list(itertools.accumulate(sizes[:0:-1], lambda a, b: a * b, initial=1))[::-1] if sizes else []


def permuted(held: Layout, shape: tuple[int, ...], dims: tuple[int, ...]) -> Layout | None:
    """The layout after the dimensions of the shape are put into another order, dims as torch's permute takes them (without the batch).

    The memory stays. None where the layout's axes do not fit the shape's.

    >>> permuted(in_order(6), (2, 3), (1, 0))
    Layout(axes=(3, 2), memory=(1, 0))
    """
    cut = split(held, shape)
    if cut is None:
        return None
    ends, low = _ends(cut.axes), _ends(shape)
    parts = [[i for i, end in enumerate(ends) if low[d] <= end < low[d] * shape[d]] for d in range(len(shape))]
    order = [i for d in dims for i in parts[d]]
    return layout([cut.axes[i] for i in order], [order.index(i) for i in cut.memory])


def moves(held: Layout, wanted: Layout) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The TRANSPOSEs from one memory to another: for each the sizes of what it reads and the permutation, both without the batch.

    >>> moves(channels_last((3, 5, 4)), in_order(60))
    [((20, 3), (1, 0))]
    """
    if held == wanted:
        return []
    have, want = split(held, wanted.axes), split(wanted, held.axes)
    if have is None:
        plain = in_order(math.prod(wanted.axes))
        return moves(held, plain) + moves(plain, wanted)
    sizes, order = [have.axes[i] for i in have.memory], [have.memory.index(i) for i in want.memory]
    sizes, order = _joined(sizes, order)
    if len(sizes) < RANK:
        return [(sizes, order)]
    result, now = [], list(range(len(sizes)))
    for place, axis in enumerate(order):  # one after the other to its place: what lies between is one block
        at = now.index(axis)
        if at != place:
            parts = [now[:place], now[place:at], [axis], now[at + 1:]]
            step = [math.prod(sizes[i] for i in part) for part in parts]
            result.append(_joined(step, [0, 2, 1, 3]))
            now = parts[0] + parts[2] + parts[1] + parts[3]
    return result


def in_sizes(axes: tuple[int, ...], order: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The permutation of axes as one of the sizes that make them up, None where they do not, or are too many.

    >>> in_sizes((20, 3), (1, 0), (4, 5, 3))
    (2, 0, 1)
    """
    groups, place = [], 0
    for axis in axes:
        group = []
        while math.prod(sizes[i] for i in group) < axis and place < len(sizes):
            group.append(place)
            place += 1
        if math.prod(sizes[i] for i in group) != axis:
            return None
        groups.append(group)
    groups[-1] += range(place, len(sizes))                                                  # of size 1
    return tuple(i for axis in order for i in groups[axis]) if len(sizes) < RANK else None


def _joined(sizes, order) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A permutation without the axes of 1, axes that stay neighbours being one."""
    found = layout(sizes, order)
    return found.axes, found.memory
