"""qlab.quant.ranges against NumPy, scipy's entropy, a brute-force search, and hand-computed cases."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from qlab.quant import linear, ranges

NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
TAIL = torch.cat([NORMAL, torch.tensor([40.0, -25.0])])


def test_minmax_and_percentile():
    assert ranges.minmax(TAIL) == (-25.0, 40.0)
    low, high = ranges.percentile(TAIL, 99)
    assert (low.item(), high.item()) == pytest.approx(tuple(np.quantile(TAIL.numpy(), [0.005, 0.995])), rel=1e-6)
    x = torch.arange(12.0).reshape(3, 4)
    assert ranges.minmax(x, axis=1).x_max.tolist() == [8, 9, 10, 11]
    assert ranges.percentile(x, 100, axis=0).x_min.tolist() == [0, 4, 8]


@pytest.mark.parametrize("scheme", linear.SCHEMES)
def test_mse_is_the_best_of_its_candidates(scheme):
    def error(f):
        return (linear.quantize(TAIL, 4, scheme, x_min=-25 * f, x_max=40 * f).dequantize() - TAIL).square().sum().item()

    best = min((i / 100 for i in range(1, 101)), key=error)
    assert ranges.mse(TAIL, 4, scheme).x_max.item() == pytest.approx(40 * best)
    found = ranges.mse(torch.stack([NORMAL[:500], 3 * NORMAL[:500]]), 3, scheme, axis=0)
    assert found.x_max[1].item() == pytest.approx(3 * found.x_max[0].item(), rel=0.05)


def test_narrower_ranges_have_less_error_than_minmax_where_there_is_an_outlier():
    def error(r):
        return (linear.quantize(TAIL, 4, "affine", x_min=r.x_min, x_max=r.x_max).dequantize() - TAIL).square().mean()

    assert error(ranges.mse(TAIL, 4)) <= error(ranges.percentile(TAIL)) < error(ranges.minmax(TAIL))


@pytest.mark.parametrize("x", [TAIL, TAIL.abs(), TAIL.relu()])
def test_entropy_threshold_has_the_least_divergence(x):
    """The same search, written from the description with loops and scipy's Kullback-Leibler divergence."""
    bits, bins = 4, 256
    levels = 2**bits if x.min() >= 0 else 2 ** (bits - 1)
    magnitudes = x.abs()[x != 0].numpy()                                                    # an exact zero loses nothing anywhere
    counts, edges = np.histogram(magnitudes, bins, (0, x.abs().max().item()))
    best = (np.inf, None)
    for end in range(levels, bins + 1):
        p = counts[:end].astype(float)
        q = np.zeros(end)
        for level in range(levels):
            inside = [i for i in range(end) if i * levels // end == level]
            filled = [i for i in inside if counts[i] > 0]
            for i in filled:
                q[i] = counts[inside].sum() / len(filled)
        p[-1] += counts[end:].sum()
        if not (q[p > 0] == 0).any():
            best = min(best, (scipy_entropy(p, q), edges[end]))
    assert ranges.entropy(x, bits, bins).x_max.item() == pytest.approx(best[1], rel=1e-6)


def test_entropy_is_one_sided_where_nothing_is_negative():
    assert ranges.entropy(NORMAL.relu(), 8).x_min == 0
    low, high = ranges.entropy(NORMAL, 8)
    assert low == -high
    assert ranges.entropy(torch.zeros(10), 8) == (0, 0)
    assert ranges.entropy(torch.full((10,), 3.0), 8).x_max == 3


def test_running_ranges():
    batches = [NORMAL[i:i + 100] * (i + 1) for i in range(0, 500, 100)]
    running, moving = ranges.RunningMinMax(), ranges.MovingAverage(momentum=0.8)
    expected = None
    for batch in batches:
        running.update(batch)
        moving.update(batch)
        new = np.array([batch.min(), batch.max()])
        expected = new if expected is None else 0.8 * expected + 0.2 * new
    assert running.range() == (torch.cat(batches).min(), torch.cat(batches).max())
    np.testing.assert_allclose([t.item() for t in moving.range()], expected, rtol=1e-5)
    channels = ranges.RunningMinMax(axis=1)
    channels.update(torch.tensor([[1.0, 5.0], [3.0, -2.0]]))
    assert channels.range().x_min.tolist() == [1, -2]
    with pytest.raises(ValueError, match="NaN"):
        running.update([1.0, float("nan")])
    assert running.range() == (torch.cat(batches).min(), torch.cat(batches).max())


@pytest.mark.parametrize("call, said", [
    (lambda: ranges.minmax([]), "x is empty"), (lambda: ranges.percentile(NORMAL, 0), "p is 0"),
    (lambda: ranges.percentile(NORMAL, 101), "p is 101"),
    (lambda: ranges.mse([1.0, float("inf")]), "x holds NaN or infinity"), (lambda: ranges.mse(NORMAL, 0), "bits is 0"),
    (lambda: ranges.entropy(NORMAL, 1), "bits is 1"), (lambda: ranges.entropy(NORMAL, 8, bins=64), "bins is 64"),
    (lambda: ranges.minmax(NORMAL, axis=1), "axis is 1"), (lambda: ranges.RunningMinMax().range(), "no batch has been seen"),
    (lambda: ranges.MovingAverage(1.0), "momentum is 1.0"),
])
def test_one_clear_sentence(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)
