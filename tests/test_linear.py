"""qlab.quant.linear against torch's own quantization, hand-computed cases and, by hypothesis, every guarantee of its docstring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlab.quant import linear

SCHEMES = st.sampled_from(linear.SCHEMES)
SIZES = st.one_of(hnp.array_shapes(max_dims=3, max_side=9), st.just((1,)), st.just(()))
VALUES = hnp.arrays(np.float32, SIZES, elements=st.floats(-(2.0**100), 2.0**100, width=32))


def ulp(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of the dtype's numbers at a magnitude, in float64."""
    info = torch.finfo(dtype)
    return magnitude.double().clamp(min=info.tiny).log2().floor().exp2() * info.eps


# By hand

def test_the_document_s_example():
    q = linear.quantize([0.5], bits=8, x_min=-1, x_max=1)
    assert q.codes.tolist() == [191]
    assert q.scale.item() == pytest.approx(2 / 255, rel=1e-7)
    assert q.zero_point.item() == pytest.approx(127.5)


def test_two_bits_by_hand():
    x = torch.tensor([0.0, 0.4, 1.4, 1.6, 3.0])
    assert linear.quantize(x, 2).codes.tolist() == [0, 0, 1, 2, 3]
    assert linear.quantize(x - 1, 2, "affine").zero_point.item() == 1
    symmetric = linear.quantize(torch.tensor([-4.0, -1.0, 1.0, 4.0]), 3, "symmetric")     # scale 4/3
    assert symmetric.codes.tolist() == [-3, -1, 1, 3] and symmetric.codes.dtype == torch.int8


def test_ties_go_to_even():
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.5, 15.0])
    assert linear.quantize(x, 4).codes.tolist() == [0, 0, 2, 2, 4, 15]


def test_symmetric_leaves_the_most_negative_code_out():
    for bits in range(2, 17):
        q = linear.quantize(torch.tensor([-1.0, 1.0]), bits, "symmetric")
        assert q.codes.tolist() == [-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1]


def test_minmax_can_miss_zero_and_affine_cannot():
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert linear.quantize(x, 3).dequantize()[1] != 0
    assert linear.quantize(x, 3, "affine").dequantize()[1] == 0


def test_values_outside_a_given_range_saturate():
    q = linear.quantize([-5.0, 0.1, 5.0], 4, x_min=-1, x_max=1)                             # 1.1 / (2/15) = 8.25
    assert q.codes.tolist() == [0, 8, 15]
    assert linear.quantize([-5.0, 0.25, 5.0], 4, x_min=0.25, x_max=0.25).dequantize().tolist() == [0.25] * 3
    assert linear.quantize([-5.0, 0.1, 5.0], 3, "symmetric", x_min=-1, x_max=1).codes.tolist() == [-3, 0, 3]


# Against torch

def agree(codes, theirs, x, scale):
    """The same code, or neighbours where x / scale lies on a tie within float32 rounding (torch multiplies by 1/scale)."""
    differs = codes.long() != theirs.long()
    position = (x.double() / scale)[differs]
    assert (((position - position.floor()) - 0.5).abs() < 1e-4).all()
    assert differs.float().mean() < 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fake_quantize_per_tensor(bits):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(bits)) * 3 + 1
    affine = linear.quantize(x, bits, "affine")
    theirs = torch.fake_quantize_per_tensor_affine(x, affine.scale.item(), int(affine.zero_point), 0, 2**bits - 1)
    agree(affine.codes, (theirs / affine.scale).round() + affine.zero_point, x, affine.scale)
    symmetric = linear.quantize(x, bits, "symmetric")
    top = 2 ** (bits - 1) - 1
    theirs = torch.fake_quantize_per_tensor_affine(x, symmetric.scale.item(), 0, -top, top)
    agree(symmetric.codes, (theirs / symmetric.scale).round(), x, symmetric.scale)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_fake_quantize_per_channel(axis):
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 6)[:, None]
    q = linear.quantize(x, 8, "affine", axis=axis)
    theirs = torch.fake_quantize_per_channel_affine(x, q.scale, q.zero_point.to(torch.int32), axis % 3, 0, 255)
    torch.testing.assert_close(q.dequantize(), theirs, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_torch_s_own_quantized_tensor():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    q = linear.quantize(x, 8, "affine")
    theirs = torch.quantize_per_tensor(x, q.scale.item(), int(q.zero_point), torch.quint8)
    agree(q.codes, theirs.int_repr(), x, q.scale)
    same = q.codes == theirs.int_repr()
    assert torch.equal(q.dequantize()[same], theirs.dequantize()[same])


def test_torchao():
    from torchao.quantization.quant_primitives import quantize_affine
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    q = linear.quantize(x, 4, "symmetric", axis=0, group_size=32)
    theirs = quantize_affine(x, (1, 32), q.scale, torch.zeros_like(q.scale, dtype=torch.int32), torch.int8, -7, 7)
    agree(q.codes, theirs, x, q.scale.repeat_interleave(32, 1))


@pytest.mark.parametrize("scheme", linear.SCHEMES)
def test_blocks_change_nothing(scheme):
    """More elements than a cache block: the same codes as the formula applied to the whole at once."""
    x = torch.randn(300_001, generator=torch.Generator().manual_seed(4))
    q = linear.quantize(x, 8, scheme)
    low, high = q.code_range
    if scheme == "minmax":
        codes = ((x - x.min()) / q.scale).round()
    else:
        codes = (x / q.scale).round() + q.zero_point
    assert torch.equal(q.codes.float(), codes.clamp(low, high))


# The guarantees

@settings(deadline=None, max_examples=300)
@given(VALUES, st.integers(1, 16), SCHEMES, st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
def test_error_is_at_most_half_a_step(x, bits, scheme, dtype):
    bits = max(bits, 2) if scheme == "symmetric" else bits
    limit = 6e4 if dtype == torch.float16 else 2.0**100
    x = torch.as_tensor(np.clip(x.astype(np.float64), -limit, limit)).to(dtype)
    q = linear.quantize(x, bits, scheme)
    x_hat = q.dequantize()
    assert x_hat.shape == x.shape and x_hat.dtype == x.dtype
    low, high = q.code_range
    assert q.codes.min() >= low and q.codes.max() <= high
    largest = x.double().abs().max() + q.scale.double() / 2
    slack = ulp(largest, dtype if dtype in (torch.float16, torch.bfloat16) else q.scale.dtype) * (2 if scheme == "minmax" else 1)
    assert (x.double() - x_hat.double()).abs().max() <= q.scale.double() / 2 + slack


@settings(deadline=None)
@given(VALUES, st.integers(2, 16), st.sampled_from(["affine", "symmetric"]))
def test_zero_is_exact(x, bits, scheme):
    x = torch.cat([torch.from_numpy(np.atleast_1d(x)).flatten(), torch.zeros(1)])
    assert linear.quantize(x, bits, scheme).dequantize()[-1] == 0


@settings(deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 16), SCHEMES)
def test_a_constant_tensor(value, bits, scheme):
    x = torch.full((3, 2), value)
    x_hat = linear.quantize(x, bits, scheme).dequantize()
    if scheme == "minmax":
        assert torch.equal(x_hat, x) or abs(value) < torch.finfo(torch.float32).tiny
    torch.testing.assert_close(x_hat, x, rtol=1e-6, atol=1e-37)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-100, 100, width=32)), SCHEMES, st.sampled_from([0, 1]),
       st.sampled_from([None, 2, 1]))
def test_axis_and_groups_are_separate_tensors(x, scheme, axis, group_size):
    """Quantizing with axis and group_size is quantizing each slice by itself."""
    x = torch.from_numpy(x)
    q = linear.quantize(x, 5, scheme, axis=axis, group_size=group_size)
    parts = [group for channel in x.unbind(axis) for group in channel.split(group_size or len(channel))]
    each = [linear.quantize(part, 5, scheme) for part in parts]
    assert torch.equal(q.scale.flatten(), torch.stack([e.scale for e in each]))
    rebuilt = torch.cat([e.codes for e in each]).reshape(x.shape[axis], -1)
    assert torch.equal(q.codes, rebuilt if axis == 0 else rebuilt.T)


@pytest.mark.parametrize("shape, axis", [((0,), None), ((0, 3), 0), ((3, 0), 0), ((2, 0, 4), 2)])
@pytest.mark.parametrize("scheme", linear.SCHEMES)
def test_empty_tensors(shape, axis, scheme):
    q = linear.quantize(torch.empty(shape), 8, scheme, axis=axis)
    assert q.codes.shape == q.dequantize().shape == torch.Size(shape)


def test_lists_arrays_numbers_and_gradients():
    assert linear.quantize(0.5, 4).codes.shape == ()
    assert linear.quantize(np.array([0.0, 1.0]), 8).dequantize().dtype == torch.float64
    assert not linear.quantize(torch.randn(3, requires_grad=True)).dequantize().requires_grad
    strided = torch.randn(6, 8)[::2, ::3]
    assert torch.equal(linear.quantize(strided).codes, linear.quantize(strided.contiguous()).codes)


def test_float16_stays_finite_at_its_edge():
    x = torch.tensor([-65504.0, 0.0, 65504.0], dtype=torch.float16)
    for bits in (1, 2, 8):
        assert linear.quantize(x, bits, "affine").dequantize().isfinite().all()


# Errors

@pytest.mark.parametrize("arguments, said", [
    ({"x": torch.tensor([1.0, float("nan")])}, "x holds NaN or infinity"),
    ({"x": torch.tensor([1.0, float("inf")])}, "x holds NaN or infinity"),
    ({"x": torch.tensor([1.0, float("nan")]), "x_min": 0, "x_max": 1}, "x holds NaN or infinity"),
    ({"bits": 0}, "bits is 0, and must be a whole number from 1 to 16"),
    ({"bits": 17}, "bits is 17"), ({"bits": 4.0}, "bits is 4.0"), ({"bits": True}, "bits is True"),
    ({"bits": 1, "scheme": "symmetric"}, "bits is 1, and must be a whole number from 2 to 16"),
    ({"scheme": "asymmetric"}, "scheme is 'asymmetric', and must be one of minmax, affine, symmetric"),
    ({"axis": 2}, "axis is 2, and must be from -2 to 1"), ({"axis": 0.0}, "axis is 0.0"),
    ({"axis": 0, "group_size": 4}, "group_size is 4, and must divide the 6 elements"), ({"group_size": 0}, "group_size is 0"),
    ({"x_min": 2, "x_max": 1}, "x_min is 2 where x_max is 1"), ({"x_min": float("nan")}, "x_min holds NaN"),
    ({"axis": 0, "x_max": torch.ones(3)}, "x_max has shape (3,), and must be one number or have the scale's shape (2,)"),
    ({"x": torch.tensor([-3e38, 3e38]), "bits": 1}, "use more bits"),
])
def test_one_clear_sentence(arguments, said):
    with pytest.raises(ValueError) as error:
        linear.quantize(**({"x": torch.ones(2, 6)} | arguments))
    assert said in str(error.value) and str(error.value).count("\n") == 0


@pytest.mark.parametrize("x", [
    torch.tensor([1, 2]), [1, 2], np.array([1], dtype=np.uint8), torch.tensor([True]), torch.tensor([1j]), "abc", None, [[1.0], [2.0, 3.0]],
])
def test_what_is_no_floating_point_is_refused(x):
    with pytest.raises(TypeError, match="x "):
        linear.quantize(x)
