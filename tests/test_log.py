"""qlab.quant.log against the paper's formula in NumPy, hand-computed cases and its guarantees."""

import decimal
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlab.quant import log

BASES = st.sampled_from([2.0, 2**0.5])


def miyashita(x, bits, base):
    """sign(x) * base**clip(round(log_base|x|)), in float64, written from the paper's formula: 0 below the smallest exponent."""
    x = np.asarray(x, dtype=np.float64)
    out = np.zeros_like(x)
    largest = np.round(np.log(np.abs(x).max()) / np.log(base))
    for i, value in np.ndenumerate(x):
        if value != 0:
            exponent = np.round(np.log(abs(value)) / np.log(base))
            if exponent > largest - (2 ** (bits - 1) - 1):
                out[i] = np.sign(value) * base ** min(exponent, largest)
    return out


def test_by_hand():
    q = log.quantize([8.0, -4.0, 3.0, 2.5, 1.0, 0.7, 0.0], bits=3)                       # levels 8, 4, 2; sqrt(2) is the least that is kept
    assert q.dequantize().tolist() == [8, -4, 4, 2, 0, 0, 0]
    assert q.codes.tolist() == [3, -2, 2, 1, 0, 0, 0]


def test_underflow_begins_half_a_ratio_below_the_smallest_level():
    edge = 2.0 ** (0 - 7 + 0.5)                                                             # 4 bits, largest level 1
    q = log.quantize([1.0, edge * 1.001, edge * 0.999], bits=4)
    assert q.dequantize().tolist() == [1.0, 2.0**-6, 0.0]


@pytest.mark.parametrize("base", [2.0, 2**0.5])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_paper_s_formula(bits, base):
    x = np.random.default_rng(bits).standard_normal(2000)
    ours = log.quantize(x, bits, base).dequantize().numpy()
    np.testing.assert_allclose(ours, miyashita(x, bits, base), rtol=1e-12)


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=9), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
       st.integers(2, 16), BASES)
def test_relative_error(x, bits, base):
    """Above the underflow threshold the ratio of value and level stays within sqrt(base) either way; below it there is 0."""
    q = log.quantize(x, bits, base)
    x, x_hat = np.abs(x.astype(np.float64)), np.abs(q.dequantize().numpy().astype(np.float64))
    assert (np.abs(q.codes.numpy().astype(int)) <= q.code_range[1]).all()
    kept = x_hat > 0
    normal = kept & (x_hat > 1e-36)
    ratio = x[normal] / x_hat[normal]
    assert (ratio <= math.sqrt(base) * (1 + 1e-5)).all() and (ratio >= 1 / math.sqrt(base) * (1 - 1e-5)).all()
    threshold = q.scale.item() * base ** (0.5 - q.code_range[1])
    assert (x[~kept] <= max(threshold * (1 + 1e-5), 1e-36)).all()


@settings(deadline=None)
@given(st.integers(-30, 30), st.integers(2, 8))
def test_powers_of_two_are_exact_and_zero_too(exponent, bits):
    x = torch.tensor([2.0**exponent, -(2.0**exponent), 0.0])
    assert torch.equal(log.quantize(x, bits).dequantize(), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_their_largest_number(dtype):
    largest = torch.finfo(dtype).max
    x_hat = log.quantize(torch.tensor([largest, 1.0, -largest], dtype=dtype), 8).dequantize()
    assert x_hat.dtype == dtype and x_hat.isfinite().all()


def test_axis_groups_and_odd_inputs():
    x = torch.tensor([[1.0, 0.5], [64.0, 32.0]])
    assert log.quantize(x, 3, axis=0).scale.tolist() == [1.0, 64.0]
    assert log.quantize(x, 3, group_size=1).dequantize().equal(x)
    assert log.quantize(torch.zeros(4), 3).dequantize().equal(torch.zeros(4))
    assert log.quantize(torch.empty(0, 3), 3, axis=0).codes.shape == (0, 3)
    assert log.quantize(torch.empty(0), 3).codes.numel() == 0


@pytest.mark.parametrize("base", [2.0, 2**0.5, 1.1, 3.0, 10.0, 2.0**450, 2.0**800, 1.7e308])
@pytest.mark.parametrize("x", [[1e300, 1e-300], [2.0**1000, 2.0**-1000], [1e-300, 1e-310, 5e-324], [1.0, 1e-280, 3e-322]])
def test_every_level_of_float64_is_the_formula_s(x, base):
    """In Python's decimals, whose exponents have no end: no ratio of two levels that float64 cannot hold makes a level 0, or another."""
    q = log.quantize(torch.tensor(x, dtype=torch.float64), 14, base)
    levels, (low, top) = q.levels(), q.code_range
    assert (levels.diff() >= 0).all() and levels[top] == 0
    codes = [*range(1, top + 1, 61), *range(top - 40, top + 1), *(abs(c) for c in q.codes.tolist() if c)]
    with decimal.localcontext(decimal.Context(prec=40, Emin=-10**7, Emax=10**7)):
        for code in codes:
            exact = float(decimal.Decimal(q.scale.item()) * decimal.Decimal(base) ** (code - top))
            for found in (levels[code - low].item(), -levels[-code - low].item()):
                assert abs(found - min(exact, torch.finfo(torch.float64).max)) <= 4 * math.ulp(exact)


def test_values_at_both_ends_of_float64_stay_within_the_root_of_the_base():
    x = torch.tensor([1e300, 1e-300, -(2.0**-1022), 2.0**-1060], dtype=torch.float64)
    q = log.quantize(x, 13)
    assert q.codes.tolist() == [4095, 4095 - 997 - 997, -(4095 - 997 - 1022), 4095 - 997 - 1060]
    assert q.dequantize().tolist() == [2.0**997, 2.0**-997, -(2.0**-1022), 2.0**-1060]
    assert log.quantize(x[:2], 12).dequantize().tolist() == [2.0**997, 2.0**-997]


def test_levels():
    assert log.quantize([1.0, 0.1], 3).levels().tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]


def test_the_document_s_4_2():
    assert log.sign_magnitude(0.5).codes.item() == 128                                      # 127.5, ties to even
    assert round(0.5 / (2**7 - 1) * (2**8 - 1)) == 1                                        # the expression as printed
    q = log.sign_magnitude([-1.0, -0.5, 0.25, 2.0], bits=8)
    assert q.codes.tolist() == [-255, -128, 64, 255] and q.bits == 9
    assert q.dequantize()[2].item() == pytest.approx(64 / 255)
    assert log.sign_magnitude([3.0], bits=2, x_max=3).codes.tolist() == [3]


@pytest.mark.parametrize("call, said", [
    (lambda: log.quantize([1.0], 1), "bits is 1, and must be a whole number from 2 to 16"),
    (lambda: log.quantize([1.0], 4, base=1), "base is 1, and must be a number above 1"),
    (lambda: log.quantize([1.0], 4, base=float("nan")), "base is nan"),
    (lambda: log.quantize([float("inf")], 4), "x holds NaN or infinity"),
    (lambda: log.quantize([1.0], 4, axis=1), "axis is 1"),
    (lambda: log.sign_magnitude([float("nan")]), "x holds NaN or infinity"),
    (lambda: log.sign_magnitude([1.0], bits=16), "bits is 16, and must be a whole number from 1 to 15"),
    (lambda: log.sign_magnitude([1.0], x_max=0), "x_max is 0, and must be a finite number above 0"),
])
def test_one_clear_sentence(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


def test_integers_are_refused():
    for call in (log.quantize, log.sign_magnitude):
        with pytest.raises(TypeError, match="floating|float"):
            call(torch.tensor([1, 2]))
