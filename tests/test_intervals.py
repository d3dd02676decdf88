"""The optimum of k-means in one dimension, at every magnitude and mixture of magnitudes, against all partitions in exact fractions."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.quant import intervals, kmeans

WIDE = {np.float32: st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-3, 3).map(float),
                              st.builds(lambda m, e: m * 2.0**e, st.integers(-9, 9), st.integers(-149, 123))),
        np.float64: st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(1, 1 + 2.0**-48),
                              st.builds(lambda m, e: m * 2.0**e, st.integers(-9, 9), st.integers(-1074, 1019)))}


def cost(values) -> Fraction:
    """The sum of squares about the mean, exactly."""
    exact = [Fraction(float(v)) for v in values]
    mean = sum(exact) / len(exact)
    return sum((v - mean) ** 2 for v in exact)


def least(x, k) -> Fraction:
    """The least sum of squares over every way to cut the sorted values into k intervals."""
    ordered = np.sort(x)
    return min(sum(cost(part) for part in np.split(ordered, cuts))
               for cuts in itertools.combinations(range(1, len(x)), min(k, len(x)) - 1))


def error(x, x_hat) -> Fraction:
    return sum(((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(np.ravel(x), np.ravel(x_hat))), Fraction(0))


def clusters_cost(x, q) -> Fraction:
    """The error of the clusters that the codes make, each about its own exact mean."""
    codes = q.codes.numpy()
    return sum((cost(x[codes == code]) for code in np.unique(codes)), Fraction(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=200)
@given(data=st.data(), bits=st.integers(1, 2))
def test_the_clusters_are_the_best_of_all_partitions(dtype, data, bits):
    x = np.array(data.draw(st.lists(WIDE[dtype], min_size=1, max_size=9)), dtype)
    q = kmeans.quantize(x, bits)
    exponent = np.frexp(np.abs(x).max())[1]
    unseen = len(x) * Fraction(2) ** (2 * int(exponent) - 2 * 990) if dtype == np.float64 else 0
    book = np.abs(q.codebook.numpy())
    rounding = len(x) * max(Fraction(float(c - np.nextafter(c, c.dtype.type(0)))) for c in book) ** 2
    assert error(x, q.dequantize()) <= least(x, 2**bits) * (1 + Fraction(1, 10**7)) + rounding + unseen
    assert (q.codebook[1:] >= q.codebook[:-1]).all() and x.min() <= q.codebook.min() and q.codebook.max() <= x.max()
    if len(np.unique(x)) <= 2**bits:
        assert (q.dequantize().numpy() == x).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_every_value_takes_its_nearest_centroid(dtype, data):
    x = np.array(data.draw(st.lists(WIDE[dtype], min_size=1, max_size=20)), dtype)
    book = np.sort(np.array(data.draw(st.lists(WIDE[dtype], min_size=1, max_size=5)), dtype))
    codes = kmeans._nearest(torch.from_numpy(x)[None], torch.from_numpy(book)[None])[0]
    for value, code in zip(x, codes):
        distances = [abs(Fraction(float(value)) - Fraction(float(c))) for c in book]
        assert distances[code] == min(distances)


def test_a_midpoint_between_two_float32_numbers_is_rounded_to_neither_side():
    x = torch.tensor([1.0, 1 + 2**-23, 1 + 2**-22])                                         # centroids 1 and 1 + 2**-22: a tie, the lower
    assert kmeans._nearest(x[None], x[None, ::2])[0].tolist() == [0, 0, 1]
    book = torch.tensor([[1 + 2**-23, 1 + 2**-22]])                                         # the midpoint is rounded up, to a value
    assert kmeans._nearest(torch.tensor([[1 + 2**-23, 1 + 2**-22]]), book)[0].tolist() == [0, 1]
    book, halved = torch.tensor([[-(2.0**-149), 2.0**127]]), torch.tensor([[2.0**126]])     # beyond the midpoint by 2**-150
    assert kmeans._nearest(halved, book).item() == 1
    assert kmeans._nearest(torch.tensor([[0.0]]), torch.tensor([[-3e38, 3e38]])).item() == 0
    assert kmeans._nearest(torch.tensor([[1e307]]).double(), torch.tensor([[-1.7e308, 1.7e308]]).double()).item() == 1


@pytest.mark.parametrize("x, bits", [
    ([1 + 2**-23, 1 + 2**-22], 1), ([3.4028234663852886e38, -3.4028234663852886e38], 1), ([2.0**-149, 0.0], 1), ([2.0**-149] * 3, 1),
    ([-2.0**-149, 2.0**-149, 0.0, 3e38], 2), (list(np.arange(256) * 2.0**-149), 8), (list(1 + np.arange(200) * 2.0**-23), 8)])
def test_enough_centroids_lose_nothing(x, bits):
    for values in (np.array(x, np.float32), np.array(x * 50, np.float32), np.array(x * 9000, np.float32)[:5000]):
        assert (kmeans.quantize(values, bits).dequantize().numpy() == values).all()


def test_a_cluster_of_one_is_its_value_beside_any_other():
    assert kmeans.quantize([9007200328482816.0, 9013203619020800.0, 1.0], 1).codebook[0] == 1


@pytest.mark.parametrize("x, bits", [
    (np.array([1e200, 1.5e200, -1e200, 3e200, 3.5e200]), 1), (np.array([1e-200, 1.5e-200, -1e-200, 3e-200]), 1),
    (np.array([np.finfo(float).max, -np.finfo(float).max, 1.0, 0.9 * np.finfo(float).max]), 1),
    (np.array([5e-324, 1e-323, 3e-323, 4e-323, 1e-322]), 1)])
def test_squares_that_float64_does_not_hold(x, bits):
    assert clusters_cost(x, kmeans.quantize(x, bits)) == least(x, 2**bits)


@pytest.mark.parametrize("n, bits", [(300, 2), (300, 8), (1000, 4), (4095, 2), (6000, 4)])
def test_an_outlier_costs_one_centroid_and_nothing_else(n, bits):
    """A value so far away that it must be a cluster of its own leaves the others what one centroid fewer makes of them."""
    x = np.random.default_rng(n + bits).standard_normal(n).astype(np.float32)
    edges = intervals.cut(np.sort(x[None].astype(np.float64)), intervals.running_sums(np.sort(x[None].astype(np.float64))),
                          np.arange(n + 1), 2**bits - 1)[0][0]
    fewer = sum(np.square(p - p.mean()).sum() for p in np.split(np.sort(x.astype(np.float64)), edges[1:-1]))
    for outlier in (-1e10, 1e30):
        x_hat = kmeans.quantize(np.append(x, np.float32(outlier)), bits).dequantize().numpy().astype(np.float64)
        assert x_hat[-1] == np.float32(outlier)
        assert np.square(x - x_hat[:-1]).sum() <= fewer * (1 + (1e-6 if n < 4096 else 1e-3))      # above 4,096 values: not promised


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1, 30, 200]))
def test_both_ways_to_a_cost_are_the_definition(n, count, seed, spread):
    """All intervals between cuts, by sums and by blocks, against the sum of squares in fractions."""
    rng = np.random.default_rng(seed)
    ordered = np.sort(rng.standard_normal((2, n)) * 2.0 ** rng.integers(-spread, spread + 1, (2, n)), axis=1)
    cuts = np.unique(np.concatenate([[0, n], rng.integers(0, n + 1, count)]))
    m = len(cuts)
    least_of_one, after = intervals._by_blocks(ordered, cuts)
    value = after(np.zeros((2, m)))[0]
    for row, i, j in itertools.product((0, 1), range(m), range(m)):
        if i <= j:
            expected = cost(ordered[row, cuts[i]:cuts[j]]) if i < j else 0
            found = value(np.array([row * m + i]), np.array([row * m + j]), np.array([1]))[0]
            assert found == pytest.approx(float(expected), rel=1e-12)
            assert i > 0 or least_of_one[row, j] == found


def test_what_running_sums_lose_is_found_exactly():
    x = np.random.default_rng(0).standard_normal((1, 40_000)) * 2.0 ** np.random.default_rng(1).integers(-30, 30, (1, 40_000))
    sums = np.concatenate([[[0.0]], np.cumsum(x, axis=1)], axis=1)
    lost = intervals.lost(x, sums)[0]
    for place in (0, 1, 32_768, 32_769, 40_000):
        exact = sum((Fraction(float(v)) for v in x[0, :place]), Fraction(0)) - Fraction(float(sums[0, place]))
        assert lost[place] == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


def test_memory_is_that_of_a_block_of_rows_not_of_all(monkeypatch):
    """The programme's tables are rows x values x centroids: solved a few rows at a time, with the same result."""
    x = torch.randn(12, 200, generator=torch.Generator().manual_seed(0))
    whole = kmeans.quantize(x, 4, axis=0)
    largest, inner = [], intervals._best_edges
    monkeypatch.setattr(intervals, "_best_edges", lambda rows, m, k, costs: largest.append(rows * m * k) or inner(rows, m, k, costs))
    monkeypatch.setattr(intervals, "AT_ONCE", 3 * 200 * 32)
    blocks = kmeans.quantize(x, 4, axis=0)
    assert len(largest) == 4 and max(largest) == 3 * 201 * 16
    assert torch.equal(blocks.codes, whole.codes) and torch.equal(blocks.codebook, whole.codebook)
    monkeypatch.setattr(intervals, "TOLERANCE", 0)                                          # the careful way, for every row
    careful = kmeans.quantize(x, 4, axis=0)
    assert torch.equal(careful.codes, whole.codes) and torch.equal(careful.codebook, whole.codebook)
