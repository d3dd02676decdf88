"""Layouts of a file's tensors against NumPy: what lies where after reshapes and permutations, and the transpositions between two."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qlab.deploy import tflite_layout as tl

SIZES = st.lists(st.sampled_from([1, 1, 2, 3, 4, 5]), min_size=1, max_size=6)


@st.composite
def layouts(draw, sizes=None):
    """Axes and their order, and the numbers as they lie in memory."""
    axes = tuple(draw(SIZES) if sizes is None else sizes)
    memory = tuple(draw(st.permutations(range(len(axes)))))
    return tl.layout(axes, memory), np.arange(math.prod(axes)).reshape(axes).transpose(memory).ravel()


@given(layouts())
def test_the_shortest_form_lies_alike(case):
    held, numbers = case
    assert np.array_equal(tl.indices(held), numbers) and 1 not in held.axes
    following = [held.memory.index(i + 1) - held.memory.index(i) for i in range(len(held.axes) - 1)]
    assert 1 not in following                                                               # nothing is left to join


@given(st.data())
def test_equal_orders_have_equal_layouts(data):
    """However the axes were cut."""
    held, _ = data.draw(layouts())
    cut = tl.split(held, tuple(data.draw(st.permutations(held.axes))))
    if cut is not None:
        assert np.array_equal(tl.indices(cut), tl.indices(held)) and tl.layout(cut.axes, cut.memory) == held


@given(st.data())
def test_permuted_is_numpy_s_transpose(data):
    held, numbers = data.draw(layouts())
    shape = tuple(data.draw(st.permutations([*held.axes, 1])))
    dims = tuple(data.draw(st.permutations(range(len(shape)))))
    found = tl.permuted(held, shape, dims)
    if found is not None:
        values = np.random.default_rng(0).integers(0, 1000, len(numbers))                   # in PyTorch's order
        assert np.array_equal(values.reshape(shape).transpose(dims).ravel()[tl.indices(found)], values[numbers])
    elif shape == held.axes:
        raise AssertionError("its own axes fit")


@given(st.data())
def test_moves_lead_from_one_memory_to_the_other(data):
    held, numbers = data.draw(layouts())
    sizes = data.draw(st.permutations(held.axes))
    wanted, others = data.draw(layouts(sizes))
    found = tl.moves(held, wanted)
    for sizes, order in found:
        assert len(sizes) == len(order) < tl.RANK and 1 not in sizes
        numbers = numbers.reshape(sizes).transpose(order).ravel()
    assert np.array_equal(numbers, others) and (held != wanted or not found)


@given(st.data())
def test_a_permutation_in_other_sizes_moves_the_same(data):
    sizes = tuple(data.draw(SIZES))
    cuts = data.draw(st.lists(st.integers(0, len(sizes)), max_size=3))
    ends = sorted({0, *cuts, len(sizes)})
    axes = tuple(math.prod(sizes[a:b]) for a, b in zip(ends, ends[1:]))
    order = tuple(data.draw(st.permutations(range(len(axes)))))
    found, numbers = tl.in_sizes(axes, order, sizes), np.arange(math.prod(sizes))
    if found is not None:
        assert np.array_equal(numbers.reshape(sizes).transpose(found).ravel(), numbers.reshape(axes).transpose(order).ravel())
    else:
        assert len(sizes) >= tl.RANK
    assert tl.in_sizes((3, 4), (1, 0), (4, 3)) is None


def test_a_channel_shuffle_is_one_transposition_and_its_reverse_none():
    held = tl.channels_last((6, 4, 5))
    shuffled = tl.permuted(held, (2, 3, 4, 5), (1, 0, 2, 3))
    assert tl.moves(shuffled, held) == [((20, 2, 3), (0, 2, 1))]
    assert tl.permuted(shuffled, (3, 2, 4, 5), (1, 0, 2, 3)) == held
    assert tl.channels_last((6, 1, 5)) == tl.permuted(tl.in_order(30), (5, 6), (1, 0))     # (length, channels) read as channels last


def test_a_pixel_shuffle_of_six_axes_goes_in_steps():
    held = tl.channels_last((12, 3, 5))
    shuffled = tl.permuted(held, (3, 2, 2, 3, 5), (0, 3, 1, 4, 2))
    steps = tl.moves(shuffled, tl.channels_last((3, 6, 10)))
    assert 1 < len(steps) <= 4
