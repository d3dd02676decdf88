"""The systolic array: exact for every shape, and each register what the skewed schedule says it is."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.matmul import systolic

SIZES = st.integers(1, 7)


def operands(m, k, n, seed=0, low=-128):
    rng = np.random.default_rng(seed)
    return rng.integers(low, 128, (m, k), np.int8), rng.integers(low, 128, (k, n), np.int8)


@settings(max_examples=60, deadline=None)
@given(m=SIZES, k=SIZES, n=SIZES, rows=st.integers(1, 4), cols=st.integers(1, 4), seed=st.integers(0, 99))
def test_product_is_exact_and_cycles_follow_the_formula(m, k, n, rows, cols, seed):
    a, b = operands(m, k, n, seed)
    run = systolic.multiply(a, b, rows, cols)
    np.testing.assert_array_equal(run.product, a.astype(np.int64) @ b.astype(np.int64))
    tiles = -(-k // rows) * -(-n // cols)
    assert run.product.dtype == np.int32
    assert run.cycles == tiles * (m + 2 * rows + cols - 2) == systolic.count_cycles(m, k, n, rows, cols)
    assert run.utilization == pytest.approx(m * k * n / (run.cycles * rows * cols)) == systolic.utilization(m, k, n, rows, cols)


@pytest.mark.parametrize("m, k, n, rows, cols", [(1, 1, 1, 1, 1), (1, 9, 9, 4, 4), (9, 1, 1, 4, 4), (5, 8, 4, 4, 4), (2, 3, 5, 8, 8)])
def test_extremes_do_not_wrap(m, k, n, rows, cols):
    a, b = np.full((m, k), -128, np.int8), np.full((k, n), -128, np.int8)
    assert (systolic.multiply(a, b, rows, cols).product == 16384 * k).all()


def test_by_hand():
    # (1 2; 3 4) @ (5 6; 7 8) on 2 x 2: the bottom row of b enters first; after that a[m, i] is in column j at cycle m + i + j.
    a, b = np.array([[1, 2], [3, 4]], np.int8), np.array([[5, 6], [7, 8]], np.int8)
    states = list(systolic.steps(a, b, 2, 2))
    assert [s.loading for s in states] == [True, True, False, False, False, False]
    assert [s.weight.tolist() for s in states[:3]] == [[[7, 8], [0, 0]], [[5, 6], [7, 8]], [[5, 6], [7, 8]]]
    assert [s.activation.tolist() for s in states[2:]] == [[[1, 0], [0, 0]], [[3, 1], [2, 0]], [[0, 3], [4, 2]], [[0, 0], [0, 4]]]
    assert [s.partial_sum.tolist() for s in states[2:]] == [
        [[5, 0], [0, 0]], [[15, 6], [19, 0]], [[0, 18], [43, 22]], [[0, 0], [0, 50]]]
    assert [s.out for s in states[2:]] == [(), ((0, 0, 19),), ((1, 0, 43), (0, 1, 22)), ((1, 1, 50),)]
    assert [s.work for s in states] == [0, 0, 1, 4, 7, 8]
    assert states[-1].utilization == 8 / 24


@pytest.mark.parametrize("m, k, n, rows, cols", [(3, 4, 4, 4, 4), (4, 5, 3, 3, 2)])
def test_each_sum_is_the_head_of_a_dot_product(m, k, n, rows, cols):
    a, b = operands(m, k, n)
    entered = 0
    for state in systolic.steps(a, b, rows, cols):
        first_k, first_n = state.tile
        for i, j in np.argwhere(state.active):
            row = state.row[i, j]
            assert state.activation[i, j] == a[row, first_k + i] and state.weight[i, j] == b[first_k + i, first_n + j]
            head = a[row, first_k:first_k + i + 1].astype(int) @ b[first_k:first_k + i + 1, first_n + j].astype(int)
            assert state.partial_sum[i, j] == head
        entered += state.active.sum()
        assert state.work == entered
    assert entered == m * k * n


def test_states_cannot_be_changed():
    state = next(systolic.steps(*operands(2, 2, 2), 2, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.cycle = 3
    for name in ("weight", "activation", "partial_sum", "row", "active"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(state, name)[0, 0] = 1


def test_long_batches_fill_the_array():
    shares = [systolic.utilization(m, 256, 256, 256, 256) for m in (1, 256, 4096, 2**20)]
    assert shares == sorted(shares) and shares[0] < 0.0014 and shares[-1] > 0.999


def test_tensors_are_taken():
    a, b = operands(3, 4, 5)
    np.testing.assert_array_equal(systolic.multiply(torch.from_numpy(a), torch.from_numpy(b), 2, 3).product, a.astype(int) @ b.astype(int))


def test_views_that_are_not_contiguous():
    a, b = operands(8, 6, 5)
    np.testing.assert_array_equal(systolic.multiply(a.T[:, ::2], b[:4], 3, 3).product, a.T[:, ::2].astype(int) @ b[:4].astype(int))


@pytest.mark.parametrize("a, b, size, error, message", [
    (np.ones((2, 2)), np.ones((2, 2), np.int8), 2, TypeError, "a is float64, and must be int8"),
    (np.ones((2, 2), np.int8), np.ones((2, 2), np.int32), 2, TypeError, "b is int32, and must be int8"),
    (np.ones((2, 3), np.int8), np.ones((2, 3), np.int8), 2, ValueError, "as many columns as b has rows"),
    (np.ones(3, np.int8), np.ones((3, 1), np.int8), 2, ValueError, "two dimensions"),
    (np.ones((0, 3), np.int8), np.ones((3, 1), np.int8), 2, ValueError, "each of 1 or more"),
    (np.ones((1, 2), np.int8), np.ones((2, 1), np.int8), 0, ValueError, "rows is 0"),
    (np.ones((1, 131072), np.int8), np.ones((131072, 1), np.int8), 2, ValueError, "may not fit into int32"),
])
def test_bad_arguments(a, b, size, error, message):
    for call in (systolic.multiply, lambda *x: next(systolic.steps(*x)), lambda *x: next(systolic.feed(*x))):
        with pytest.raises(error, match=message):
            call(a, b, size, size)


def test_sizes_below_one():
    with pytest.raises(ValueError, match="n is 0"):
        systolic.count_cycles(1, 1, 0, 2, 2)
    with pytest.raises(ValueError, match="cols is -1"):
        systolic.utilization(1, 1, 1, 2, -1)


def test_a_sum_that_int32_may_not_hold_is_refused():
    a = np.zeros((1, 2**17), np.int8)
    with pytest.raises(ValueError, match="K is 131,072, and must be below 131,072"):
        systolic.multiply(a, a.T, 1, 1)
