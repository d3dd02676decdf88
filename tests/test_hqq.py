"""qlab.llm.hqq against torchao's copy of the authors' program, the equations in NumPy, a search over zero-points, rounding to nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qlab.llm import hqq, weights


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_steps(q, w, size):
    """The error of each weight, in steps of its group: (groups, size), float64."""
    return (w.double() - q.dequantize().double()).reshape(-1, size) / q.scale.double().reshape(-1, 1)


def test_torchao_finds_the_same_zero_points():
    from torchao.quantization.quant_primitives import optimize_weights_proximal_legacy
    w = random(12, 64) ** 3                                                                 # heavy tails: zero-points move far
    start = weights.round_to_nearest(w, 3, 16, "minmax")
    x = w.reshape(-1, 16) / start.scale.reshape(-1, 1)                                      # in steps, where its scale is 1
    zeros = [start.zero_point.reshape(-1, 1)]
    for count in range(1, 9):
        how = {"lp_norm": 0.7, "beta": 10.0, "kappa": 1.01, "iters": count, "early_stop": False}
        zeros.append(optimize_weights_proximal_legacy(x, torch.ones(()), zeros[0], [0, 7], 1, torch.float32, "cpu", opt_params=how)[2])
    losses = torch.stack([(((x + z).round().clamp(0, 7) - z) - x).abs().pow(0.7).sum(1) for z in zeros])
    best = torch.stack(zeros)[losses.argmin(0), torch.arange(len(x)), 0]
    q = hqq.quantize_matrix(w, 3, 16, iterations=8)
    assert torch.allclose(q.zero_point.flatten(), best, rtol=1e-4, atol=1e-4)
    assert torch.equal(q.codes.reshape(-1, 16), (x + best[:, None]).round().clamp(0, 7).to(torch.uint8))
    assert (losses.argmin(0) > 4).any() and q.scale.equal(start.scale)


def test_the_equations_in_numpy():
    w, p, beta = random(3, 40, seed=1).double().numpy() ** 3, 0.5, 4.0
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    s = (high - low) / 3
    z, tried = -low / s, []
    for _ in range(6):
        q = np.clip(np.round(w / s + z), 0, 3)
        e = w / s - (q - z)
        tried.append(((np.abs(e) ** p).sum(1), z[:, 0]))
        e = np.sign(e) * np.maximum(0, np.abs(e) - np.abs(e + 1e-300) ** (p - 1) / beta)     # 0 to a power below 0 is infinite
        z, beta = np.mean(q - (w / s - e), 1, keepdims=True), beta * 1.1
    losses, zeros = (np.stack(part) for part in zip(*tried))
    found = hqq.quantize_matrix(w, 2, p=p, beta=4.0, kappa=1.1, iterations=5)
    assert np.allclose(found.zero_point.numpy(), zeros[losses.argmin(0), np.arange(3)], rtol=1e-9)
    assert found.dtype == torch.float64


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 4, 8]), st.sampled_from([0.3, 0.7, 1.0]),
       st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.sampled_from([None, torch.float16]))
def test_no_group_is_worse_than_rounded(seed, bits, size, p, dtype, scale_dtype):
    w = (random(3, 16, seed=seed) ** 3).to(dtype)
    w[0] = seed % 3 - 1                                                                     # a row that is constant, perhaps 0
    rounded = weights.round_to_nearest(w, bits, size, "minmax", scale_dtype=scale_dtype)
    q = hqq.quantize_matrix(w, bits, size, scale_dtype, p)
    assert q.shape == w.shape and q.scale.equal(rounded.scale) and q.nbytes == rounded.nbytes and q.dtype == dtype

    def loss(codes, zero):
        x = w.double().reshape(-1, size or 16) / rounded.scale.double().reshape(-1, 1)
        return (x - codes.reshape(x.shape) + zero.reshape(-1, 1)).abs().pow(p).sum(1)

    assert (loss(q.codes.double(), q.zero_point.double()) <= loss(rounded.codes.double(), rounded.zero_point.double())).all()


def test_a_search_over_zero_points_finds_little_more():
    w = torch.cat([random(8, 31) * 0.1, torch.full((8, 1), 3.0)], 1)                        # one outlier in each row
    rounded = weights.round_to_nearest(w, 3, scheme="minmax")
    x = w / rounded.scale[:, None]
    tried = [(x - (x + rounded.zero_point[:, None] + d).round().clamp(0, 7) + rounded.zero_point[:, None] + d).abs().pow(0.7).sum(1)
             for d in torch.linspace(-0.5, 0.5, 401)]
    optimum = torch.stack(tried).amin(0).sum()
    loss = {q: in_steps(q, w, 32).abs().pow(0.7).sum() for q in (rounded, hqq.quantize_matrix(w, 3))}
    before, after = loss.values()
    assert optimum <= after * (1 + 1e-5) and before - after > 0.5 * (before - optimum) > 0.1 * before


def test_the_unit_of_the_weights_does_not_matter():
    w = random(4, 32) ** 3
    a, b = hqq.quantize_matrix(w, 3, 8), hqq.quantize_matrix(w / 1024, 3, 8)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.dequantize(), 1024 * b.dequantize())


def test_no_iteration_is_rounding_to_nearest():
    w = random(4, 3, 2, 2)
    assert hqq.quantize_matrix(w, 4, 6, iterations=0).equal(weights.round_to_nearest(w, 4, 6, "minmax"))
    assert hqq.quantize_matrix(torch.zeros(0, 8), 4).shape == (0, 8)


def test_shrinking_by_hand():
    assert hqq.shrink(torch.tensor([4.0, -4.0, 1.0, 0.0]), 1.0, 0.5).tolist() == [3.5, -3.5, 0.0, 0.0]
    assert hqq.shrink(torch.tensor([0.7, -0.2]), 2.0, 1.0).tolist() == pytest.approx([0.2, 0.0])  # p = 1: the soft threshold


def test_a_model():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    q = hqq.quantize(net, 3, skip=("0",), p=0.5)
    assert q.tensors["2"].equal(hqq.quantize_matrix(net[2].weight, 3, p=0.5)) and q.left["0"] == "named in skip"
    assert torch.equal(q.model[2].weight, q.tensors["2"].dequantize())


@pytest.mark.parametrize(("options", "said"), [
    ({"p": 0}, "p is 0, and must be a number above 0 and at most 1"),
    ({"p": 1.5}, "p is 1.5"),
    ({"p": "0.7"}, "p is '0.7'"),
    ({"beta": 0.0}, "beta is 0.0, and must be a number above 0"),
    ({"beta": float("nan")}, "beta is nan"),
    ({"kappa": 0.9}, "kappa is 0.9, and must be a number of at least 1"),
    ({"iterations": -1}, "iterations is -1, and must be a whole number of at least 0"),
    ({"iterations": 2.0}, "iterations is 2.0"),
    ({"bits": 0}, "bits is 0, and must be a whole number from 1 to 16"),
    ({"group_size": 5}, "group_size is 5, and must divide the 8 elements"),
])
def test_what_does_not_fit_is_one_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        hqq.quantize_matrix(random(2, 8), **options)


def test_weights_that_are_no_numbers():
    with pytest.raises(ValueError, match="x holds NaN or infinity"):
        hqq.quantize_matrix(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ValueError, match="the model, a Identity, has no"):
        hqq.quantize(nn.Identity())
