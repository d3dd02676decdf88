"""qlab.quant.kmeans against kmeans1d, scikit-learn, brute force over all partitions, and Lloyd's guarantees."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from qlab.quant import kmeans


def error(x, x_hat) -> float:
    return float(np.square(np.asarray(x, dtype=np.float64) - np.asarray(x_hat, dtype=np.float64)).sum())


def least_error(x, k) -> float:
    """The error of the optimum that kmeans1d finds."""
    kmeans1d = pytest.importorskip("kmeans1d")                                              # no wheel for every platform
    clusters, centroids = kmeans1d.cluster(x, k)
    return error(x, np.array(centroids)[clusters])


def brute_force(x, k) -> float:
    """The least sum of squares over every way to cut the sorted values into k intervals."""
    ordered, best = np.sort(x), np.inf
    for cuts in itertools.combinations(range(1, len(x)), min(k, len(x)) - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(np.square(p - p.mean()).sum() for p in parts))
    return best


@settings(deadline=None, max_examples=150)
@given(hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(-100, 100)), st.integers(1, 2))
def test_optimal_is_brute_force_s_optimum(x, bits):
    assert error(x, kmeans.quantize(x, bits).dequantize()) == pytest.approx(brute_force(x, 2**bits), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [100, 4096, 4097, 60_000])
@pytest.mark.parametrize("bits", [1, 3, 4, 6])
def test_optimal_is_kmeans1d_s_optimum(n, bits):
    x = np.random.default_rng(n + bits).standard_t(3, n)                                    # heavy tails
    assert error(x, kmeans.quantize(x, bits).dequantize()) <= least_error(x, 2**bits) * (1 + 1e-6)


def test_rows_are_solved_one_by_one():
    x = np.random.default_rng(0).standard_normal((5, 300))
    q = kmeans.quantize(x, 3, axis=0)
    for row, x_hat in zip(x, q.dequantize().numpy()):
        assert error(row, x_hat) == pytest.approx(least_error(row, 8), rel=1e-9)
    assert q.codebook.shape == (5, 8)
    grouped = kmeans.quantize(x, 2, axis=0, group_size=100)
    assert grouped.codebook.shape == (5, 3, 4)
    assert torch.equal(grouped.dequantize()[0, :100], kmeans.quantize(x[0, :100], 2).dequantize())


@pytest.mark.parametrize("start", ["random", "density", "linear"])
def test_lloyd_ends_where_scikit_learn_s_lloyd_ends(start):
    x = np.random.default_rng(1).standard_normal(3000)
    path = kmeans.lloyd(x, kmeans.initial(x, 8, start, seed=3))
    theirs = KMeans(8, init=path[0].numpy()[:, None], n_init=1, max_iter=10_000, tol=0).fit(x[:, None])
    np.testing.assert_allclose(path[-1].numpy(), np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-6)
    assert kmeans.mse(x, path[-1]) * len(x) == pytest.approx(theirs.inertia_, rel=1e-9)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 9),
       st.sampled_from(kmeans.STARTS))
def test_the_objective_never_rises_and_the_optimum_is_no_worse(x, k, start):
    errors = [kmeans.mse(x, c) for c in kmeans.lloyd(x, kmeans.initial(x, k, start))]
    slack = 1e-6 * (errors[0] + float(np.square(x, dtype=np.float64).mean()) * 1e-6)
    assert all(after <= before + slack for before, after in itertools.pairwise(errors))
    bits = k.bit_length() if k & (k - 1) else max(1, k.bit_length() - 1)
    optimum = error(x, kmeans.quantize(x, bits).dequantize()) / len(x)
    assert optimum <= errors[-1] + slack + 1e-9


def test_the_three_starts_by_hand():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0])
    assert kmeans.initial(x, 3, "linear").tolist() == [0, 35, 70]
    assert kmeans.initial(x, 4, "density").tolist() == [1, 3, 5, 70]
    random = kmeans.initial(x, 4, "random", seed=5)
    assert torch.isin(random, x.double()).all() and len(random.unique()) == 4
    assert torch.equal(random, kmeans.initial(x, 4, "random", seed=5))


def test_one_step_by_hand_and_an_empty_cluster():
    x = torch.tensor([1.0, 2.0, 9.0])
    path = kmeans.lloyd(x, [0.0, 3.0, 100.0], max_iter=1)
    assert path[1].tolist() == [1.0, 5.5, 100.0]                                            # 1 | 2, 9 | nothing: 100 stays
    assert kmeans.mse(x, path[1]) == pytest.approx((0 + 1 + 3.5**2) / 3)


def test_fewer_values_than_centroids_and_odd_inputs():
    q = kmeans.quantize(torch.tensor([3.0, 1.0, 2.0]), 4)
    assert q.codebook.tolist() == [1, 2, 3] and q.dequantize().tolist() == [3, 1, 2]
    assert kmeans.quantize(torch.ones(50), 3).dequantize().tolist() == [1] * 50
    assert kmeans.quantize(torch.empty(0), 2).dequantize().shape == (0,)
    assert kmeans.quantize(torch.empty(0, 4), 2, axis=0).codebook.shape[0] == 0
    assert kmeans.quantize(2.5, 1).dequantize().item() == 2.5
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert kmeans.quantize(torch.randn(40).to(dtype), 2).dequantize().dtype == dtype
    far = torch.randn(500, dtype=torch.float64) + 1e6                                       # sums about the median keep their digits
    assert error(far, kmeans.quantize(far, 3).dequantize()) == pytest.approx(least_error(far.numpy() - 1e6, 8), rel=1e-6)


@pytest.mark.parametrize("call, said", [
    (lambda: kmeans.quantize([1.0], 0), "bits is 0"), (lambda: kmeans.quantize([1.0], 17), "bits is 17"),
    (lambda: kmeans.quantize([1.0], 4, start="forgy"), "start is 'forgy', and must be one of optimal, random, density, linear"),
    (lambda: kmeans.quantize([float("nan")], 4), "x holds NaN or infinity"),
    (lambda: kmeans.quantize([1.0], 4, axis=3), "axis is 3"),
    (lambda: kmeans.initial([1.0], 0, "linear"), "k is 0"), (lambda: kmeans.initial([1.0], 2, "optimal"), "start is 'optimal'"),
    (lambda: kmeans.lloyd([], [0.0]), "x is empty"), (lambda: kmeans.lloyd([float("inf")], [0.0]), "x holds NaN or infinity"),
])
def test_one_clear_sentence(call, said):
    with pytest.raises(ValueError) as failure:
        call()
    assert said in str(failure.value)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x holds torch.int64"):
        kmeans.quantize(torch.arange(5))
