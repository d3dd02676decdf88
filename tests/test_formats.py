"""Number formats, block scaling and ternary weights against ml_dtypes, torchao, bitsandbytes, exact fractions and cases by hand."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import ndtri
from torch import nn

from qlab import quant
from qlab.lab import plot
from qlab.lab.demos import linear as demo
from qlab.nets import integer, ptq
from qlab.quant import block, formats, linear, normal_float, packing, small_floats, ternary
from qlab.quant.qtensor import FORMATS, unpacked

THEIRS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
          "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn}
X = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, signs of zeros among it."""
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


# Small floating-point numbers


@pytest.mark.parametrize("name", THEIRS)
def test_every_code_means_what_ml_dtypes_says(name):
    ours, theirs = small_floats.values(name).numpy(), np.arange(2 ** FORMATS[name], dtype=np.uint8).view(THEIRS[name]).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)
    number = ~np.isnan(theirs)
    assert (np.signbit(ours) == np.signbit(theirs))[number].all() and not FORMATS[name] < 8 > number.sum()
    back = number & np.isfinite(theirs)
    assert small_floats.encode(torch.from_numpy(theirs[back]), name).tolist() == np.flatnonzero(back).tolist()


def rounded_by_ml_dtypes(x: np.ndarray, name: str) -> list[int]:
    largest = small_floats.FORMATS[name].largest
    return np.clip(x, -largest, largest).astype(x.dtype).astype(THEIRS[name]).view(np.uint8).tolist()    # ml_dtypes does not saturate


@pytest.mark.parametrize("name", THEIRS)
def test_every_number_of_16_bits_is_rounded_as_ml_dtypes_rounds_it(name):
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        every = np.arange(2**16, dtype=np.uint16).view(dtype)
        every = every[np.isfinite(every.astype(np.float32))]
        x = torch.from_numpy(every.view(np.int16).copy()).view(torch.float16 if dtype == np.float16 else torch.bfloat16)
        assert small_floats.encode(x, name).tolist() == rounded_by_ml_dtypes(every, name)


@pytest.mark.parametrize("name", THEIRS)
def test_ties_and_their_neighbours_in_float32(name):
    levels = formats.levels(name).numpy().astype(np.float64)
    middle = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([middle, *beside, levels.astype(np.float32), np.float32([0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-30])])
    assert small_floats.encode(torch.from_numpy(x), name).tolist() == rounded_by_ml_dtypes(x, name)


@given(st.sampled_from(list(THEIRS)), st.floats(-1e5, 1e5), st.integers(-40, 0))
def test_float64_goes_to_the_nearest_in_exact_fractions(name, x, exponent):
    """ml_dtypes rounds float64 twice, by way of float32: this counts in fractions. Of two levels as near, the one of the even code."""
    x = math.ldexp(x, exponent)
    code = small_floats.encode(torch.tensor(x, dtype=torch.float64), name).item()
    values = [(i, Fraction(v)) for i, v in enumerate(small_floats.values(name).tolist()) if math.isfinite(v)]
    nearest = min(abs(v - Fraction(x)) for _, v in values)
    found = dict(values)[code]
    assert abs(found - Fraction(x)) == nearest and (code >> FORMATS[name] - 1) == (math.copysign(1, x) < 0)
    assert code % 2 == 0 or sum(abs(v - Fraction(x)) == nearest for _, v in values) == 1


def test_a_tie_that_float32_does_not_see():
    x = torch.tensor([-432.0, math.nextafter(-432.0, 0)], dtype=torch.float64)              # between -448 and -416
    assert small_floats.decode(small_floats.encode(x, "e4m3"), "e4m3").tolist() == [-448, -416]


def test_torch_s_own_casts_agree():
    x = torch.cat([X.flatten() * s for s in (1e-3, 1, 100)])
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        assert torch.equal(small_floats.encode(x, name), x.to(dtype).view(torch.uint8))


# NF4


def test_nf4_is_what_bitsandbytes_has():
    """The bytes of get_4bit_type("nf4") of bitsandbytes 0.50.2; the codes and scales that it gave with quantize_4bit(x, blocksize=64,
    quant_type="nf4", compress_statistics=False)."""
    table = bytes.fromhex("000080bfb13932bf306b06bfa032cabe4da291be3f353dbe7178babd00000000"
                          "fffaa23de3ca243edd047c3e3a03ad3eb8a4e13eab07103fb313393f0000803f")
    assert normal_float.NF4.numpy().astype("<f4").tobytes() == table
    x = (torch.arange(128) * 37 % 101 - 50) / 16
    x[64:] = x[64:] ** 3
    theirs = bytes.fromhex("04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c1"
                           "7a47d6707927b57e6817937c57f7817a47d6707827b57e6717937c57e7817a47")
    q = formats.quantize(x, "nf4")
    assert q.codes.tolist() == [half for byte in theirs for half in (byte >> 4, byte & 15)]  # it packs the high half first
    assert q.scale.tolist() == [3.125, 30.517578125]
    assert torch.equal(q.dequantize(), normal_float.NF4[q.codes.long()] * q.scale.repeat_interleave(64))


def test_nf4_s_table_follows_from_quantiles():
    for offset, digits in ((1 - (1 / 32 + 1 / 30) / 2, 4e-7), (0.9677083, 2e-7)):           # exact, and as published
        table = np.sort([*ndtri(np.linspace(offset, 0.5, 9)), *-ndtri(np.linspace(offset, 0.5, 8)[:-1])])
        assert np.abs(table / table.max() - normal_float.NF4.numpy()).max() < digits
    assert torch.equal(normal_float.normal_levels(3)[[0, 3, 7]], torch.tensor([-1.0, 0, 1], dtype=torch.float64))


@given(hnp.arrays(np.float32, (2, 8), elements=st.floats(-10, 10, width=32)))
def test_nf4_takes_the_nearest_level(x):
    q = formats.quantize(x, "nf4", axis=0)
    levels = normal_float.NF4.double() * q.scale.double()[:, None]
    error = (torch.from_numpy(x).double() - levels.gather(1, q.codes.long())).abs()
    least = (torch.from_numpy(x).double()[:, :, None] - levels[:, None]).abs().amin(2)
    assert (error <= least + 1e-6 * q.scale.double()[:, None]).all()


def test_a_tie_in_nf4_goes_to_the_lower_level():
    middle = (normal_float.NF4[8].double() + normal_float.NF4[9].double()) / 2
    assert normal_float.nearest(torch.stack([middle, torch.nextafter(middle, torch.tensor(1.0).double())])).tolist() == [8, 9]


# Scales


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*THEIRS, "nf4"])
def test_scale_and_code_by_the_formula(name, dtype):
    x = X.to(dtype)
    q = formats.quantize(x, name, axis=0, group_size=16)
    wide = x.double() if dtype == torch.float64 else x.float()
    largest = 1.0 if name == "nf4" else small_floats.FORMATS[name].largest
    scale = (wide.double().abs().reshape(16, 4, 16).amax(2) / largest).to(wide.dtype)
    assert q.scale.dtype == wide.dtype and torch.equal(q.scale, scale) and q.codes.dtype == torch.uint8 and q.bits == FORMATS[name]
    ratio = wide / scale.repeat_interleave(16, 1)
    assert torch.equal(q.codes, normal_float.nearest(ratio) if name == "nf4" else small_floats.encode(ratio, name))
    table = normal_float.NF4 if name == "nf4" else small_floats.values(name)
    assert same(q.dequantize(), (table[q.codes.long()] * scale.repeat_interleave(16, 1)).to(dtype))


@pytest.mark.parametrize("name", THEIRS)
def test_a_scale_of_one_is_the_plain_cast(name):
    x = 3 * X
    theirs = np.clip(x.numpy(), -small_floats.FORMATS[name].largest, small_floats.FORMATS[name].largest).astype(THEIRS[name])
    assert same(formats.quantize(x, name, scale=1).dequantize(), torch.from_numpy(theirs.astype(np.float32)))
    given = torch.rand(16) + 0.5
    q = formats.quantize(x, name, axis=0, scale=given)
    assert torch.equal(q.codes, small_floats.encode(x / given[:, None], name)) and torch.equal(q.scale, given)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_every_dtype(name, dtype):
    """Zeros, the largest and the smallest numbers: finite, no sign changed, never farther than the largest value of the group."""
    info = torch.finfo(dtype)
    for values in ([info.max, -info.max, 1.0, -0.0], [info.tiny, -info.tiny * info.eps, 0.0, 0.0], [0.0, -0.0, 0.0, 0.0],
                   [info.max, info.tiny, -1.0, 1e-3]):
        x = torch.tensor(values, dtype=dtype).repeat(16)
        q = formats.quantize(x, name)
        x_hat = q.dequantize()
        assert x_hat.dtype == dtype and x_hat.isfinite().all() and (x_hat.double() * x.double() >= 0).all()
        assert q.scale.double().isfinite().all() and (q.scale.double() > 0).all() and q.nbytes > 0
        if dtype != torch.float64:
            assert ((x_hat.double() - x.double()).abs() <= 0.34 * x.double().abs().max()).all()
    zeros = formats.quantize(torch.zeros(64, dtype=dtype), name)
    assert (zeros.dequantize() == 0).all() and (name in block.FORMATS or (zeros.scale == 1).all())


def test_small_and_empty_tensors():
    for name in FORMATS:
        for shape in ((), (3,), (0,), (0, 4), (4, 0)):
            q = formats.quantize(torch.ones(shape), name)
            assert q.dequantize().shape == shape and q.scale.shape == () and math.isnan(q.bits_per_weight) == (0 in shape)
        q = formats.quantize(torch.ones(2, 3, 3), name, axis=1)                              # fewer values than a block: one each
        assert q.scale.shape == (3,) and (q.dequantize() - 1).abs().max() < 1e-6
    assert ternary.quantize(torch.ones(0, 4), axis=0).codes.shape == (0, 4)


# Block scaling


def hostile(groups: int) -> torch.Tensor:
    """(64, 256): blocks of all magnitudes, zeros, negative zeros, numbers half way between two levels."""
    generator = torch.Generator().manual_seed(groups)
    x = torch.randn(64, 256, generator=generator)
    x *= torch.exp2(torch.randint(-15, 15, (64, 256 // groups), generator=generator).float()).repeat_interleave(groups, 1)
    x[3, :64], x[4, :32], x[6] = 0, -0.0, (torch.arange(256) % 17 - 8) / 4
    return x


@pytest.fixture(scope="module")
def mx_formats():
    from torchao.prototype import mx_formats
    from torchao.prototype.mx_formats import config, constants, mx_tensor, nvfp4_tensor  # noqa: F401 - the parts that tests use
    return mx_formats


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in block.FORMATS if name != "nvfp4"])
def test_mx_is_torchao_s_bit_for_bit(name, dtype, mx_formats):
    kind = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e3m2": mx_formats.constants.DTYPE_FP6_E3M2,
            "e2m3": mx_formats.constants.DTYPE_FP6_E2M3, "e2m1": torch.float4_e2m1fn_x2}[block.FORMATS[name].element]
    x = hostile(32).to(dtype)
    if dtype == torch.float32:
        x[7:9] *= torch.tensor([[2.0**100], [2.0**-90]])
    theirs = mx_formats.mx_tensor.MXTensor.to_mx(x, kind, 32, scaling_mode=mx_formats.config.ScaleCalculationMode.FLOOR)
    q = formats.quantize(x, name)
    assert same(q.dequantize(), theirs.dequantize(dtype))
    assert q.scale.view(torch.uint8).tolist() == theirs.scale.view(torch.uint8).flatten().tolist()
    if name == "mxfp4":
        assert torch.equal(packing.pack(q.codes, 4), theirs.qdata.view(torch.uint8).flatten())
    assert same(q.dequantize(), formats.quantize(x, name, axis=0).dequantize())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_nvfp4_is_torchao_s_bit_for_bit(dtype, size, mx_formats):
    x = (hostile(16) * size).to(dtype)
    of_tensor = mx_formats.nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
    theirs = mx_formats.nvfp4_tensor.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=of_tensor)
    q = formats.quantize(x, "nvfp4")
    assert same(q.dequantize(), theirs.dequantize(dtype)) and torch.equal(q.tensor_scale, of_tensor)
    assert torch.equal(q.scale.view(torch.uint8), theirs.scale.view(torch.uint8).flatten())
    assert torch.equal(packing.pack(q.codes, 4), theirs.qdata.view(torch.uint8).flatten())


def test_mx_by_hand():
    """Section 6.3: 2**floor(log2(max)) over the largest power of two of the element; what is then too large saturates."""
    q = formats.quantize([7.9, 1.0, -0.24, 0.0], "mxfp4", group_size=4)
    assert q.scale.float().item() == 1 and q.dequantize().tolist() == [6, 1, 0, 0]
    q = formats.quantize([8.0, 1.0, 0.5, 0.51], "mxfp4", group_size=4)
    assert q.scale.float().item() == 2 and q.dequantize().tolist() == [8, 1, 0, 1]           # 0.5 is half way between 0 and 1
    assert formats.quantize(torch.zeros(32), "mxfp8_e4m3").scale.view(torch.uint8).item() == 0


@pytest.mark.parametrize("name", [name for name in block.FORMATS if name != "nvfp4"])
@pytest.mark.parametrize("power", [-149, -140, -127, -126, -100, 0, 100, 126])
def test_mx_scales_at_the_ends_of_float32(name, power):
    """A block's scale is 2**(power - emax), or the least there is; the power of two is exact, unless even the least step is larger."""
    x = torch.tensor([2.0**power, -(2.0**power)] + [0.0] * 30)
    q = formats.quantize(x, name)
    f = small_floats.FORMATS[block.FORMATS[name].element]
    wanted = max(power - math.floor(math.log2(f.largest)), -127)
    assert q.scale.double().item() == 2.0**wanted
    least = 2.0 ** (wanted + 1 - f.bias - f.mantissa)
    assert torch.equal(q.dequantize(), x) if 2.0**power >= least else (q.dequantize() == 0).all()


def test_numbers_of_float64_that_no_scale_reaches():
    x = torch.tensor([1e300, -1e-300] * 16, dtype=torch.float64)
    assert formats.quantize(x, "mxfp4").dequantize().unique().tolist() == [-0.0, 6 * 2.0**127]
    top = torch.finfo(torch.float32).max
    assert formats.quantize(x, "nvfp4").dequantize().max().item() == 6 * 448 * top
    assert formats.quantize(x, "e2m1").dequantize().max().item() == pytest.approx(1e300)      # its scale is a float64


# Ternary


def test_ternary_by_the_paper_s_equations():
    gamma = X.abs().mean()
    q = ternary.quantize(X)
    assert torch.equal(q.codes, (X / gamma).round().clamp(-1, 1).to(torch.int8)) and q.codes.dtype == torch.int8
    torch.testing.assert_close(q.scale, gamma)
    assert torch.equal(q.dequantize(), q.codes * q.scale) and q.code_range == (-1, 1) and q.levels().sign().tolist() == [-1, 0, 1]
    rows = ternary.quantize(X, axis=0, group_size=16)
    torch.testing.assert_close(rows.scale, X.abs().reshape(16, 4, 16).mean(2))
    assert ternary.quantize([1.0, -0.5, 0.5, 2.0]).codes.tolist() == [1, 0, 0, 1]             # gamma = 1, and half of it is a tie: 0
    assert ternary.quantize(torch.zeros(3)).dequantize().tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_at_the_ends_of_the_dtypes(dtype):
    top, least = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    for value in (top, least, 1.0):
        x = torch.tensor([value, -value, 0.0, value], dtype=dtype)
        q = ternary.quantize(x)
        assert q.codes.tolist() == [1, -1, 0, 1] and q.dequantize().dtype == dtype
        torch.testing.assert_close(q.dequantize().double(), x.double() * 0.75, rtol=2 * torch.finfo(dtype).eps, atol=0)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_five_ternary_codes_are_the_digits_of_a_byte(codes):
    padded = codes + [0] * (-len(codes) % 5)
    wanted = [int("".join(map(str, reversed(padded[i:i + 5]))), 3) for i in range(0, len(padded), 5)]
    packed = packing.pack(torch.tensor(codes, dtype=torch.int64), 1.6)
    assert packed.tolist() == wanted and packing.packed_size(len(codes), 1.6) == len(wanted)
    assert packing.unpack(packed, 1.6, len(codes)).tolist() == codes


# True bytes, and linear quantization in groups


def test_bits_per_weight_by_hand():
    w = torch.randn(64, 128)
    bits = {name: formats.quantize(w, name).bits_per_weight for name in FORMATS}
    one = 32 / w.numel()                                                                     # a float32 scale for the tensor
    assert bits == {"e4m3": 8 + one, "e5m2": 8 + one, "e3m2": 6 + one, "e2m3": 6 + one, "e2m1": 4 + one, "nf4": 4.5, "mxfp8_e4m3": 8.25,
                    "mxfp8_e5m2": 8.25, "mxfp6_e3m2": 6.25, "mxfp6_e2m3": 6.25, "mxfp4": 4.25, "nvfp4": 4.5 + one}
    half = {"axis": 0, "group_size": 32, "scale_dtype": torch.float16}
    assert formats.quantize(w, "nf4", **half).bits_per_weight == formats.quantize(w, "e2m1", **half).bits_per_weight == 4.5
    assert linear.quantize(w, 4, "symmetric", **half).bits_per_weight == 4.5
    assert linear.quantize(w, 4, "affine", **half).bits_per_weight == 4 + 16 / 32 + 4 / 32
    assert linear.quantize(w, 2, "affine", **half).bits_per_weight == 2 + 16 / 32 + 2 / 32
    assert linear.quantize(w, 4, "minmax", **half).bits_per_weight == 4 + 16 / 32 + 32 / 32   # a real zero-point is a float32
    assert ternary.quantize(torch.ones(1000), scale_dtype=torch.float16).nbytes == 200 + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", linear.SCHEMES)
@settings(max_examples=40)
@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32)), st.sampled_from([2, 4, 8, 12]))
def test_a_scale_of_16_bits_keeps_the_promise(scheme, dtype, x, bits):
    """|x - x_hat| <= scale / 2 with the scale that is stored, and that is less than one step of its dtype above the exact one."""
    q = linear.quantize(x, bits, scheme, axis=0, group_size=4, scale_dtype=dtype)
    assert q.scale.dtype == dtype and q.scale.isfinite().all()
    error = (q.dequantize().double() - torch.from_numpy(x).double()).abs().reshape(3, 2, 4)
    assert (error <= 0.5 * q.scale.double()[:, :, None] + 4 * 2.0**-24 * np.abs(x).max()).all()
    exact = linear.quantize(x, bits, scheme, axis=0, group_size=4).scale.double()
    assert (q.scale.double() <= exact * (1 + torch.finfo(dtype).eps) + 2.0**-24 * (dtype == torch.float16)).all()
    assert (q.scale.double() >= exact * (1 - 2.0**-23)).all()


# In files, networks and pictures


CODED = {name: lambda w, name=name: formats.quantize(w, name) for name in FORMATS} | {
    "nf4, half": lambda w: formats.quantize(w, "nf4", 0, 16, scale_dtype=torch.float16), "ternary": ternary.quantize,
    "ternary groups": lambda w: ternary.quantize(w, 0, 16, torch.bfloat16),
    "int4": lambda w: linear.quantize(w, 4, "affine", 0, 16, scale_dtype=torch.float16),
    "int11": lambda w: linear.quantize(w, 11, "affine", 0, 16), "given": lambda w: formats.quantize(w, "e4m3", scale=0.01),
}


@pytest.mark.parametrize("name", CODED)
def test_saved_and_loaded(tmp_path, name):
    q = CODED[name](X)
    q.save(tmp_path / "q")
    again = quant.load(tmp_path / "q")
    assert again.equal(q) and same(again.dequantize(), q.dequantize()) and again.nbytes == q.nbytes and again.bits == q.bits
    content = (tmp_path / "q").read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == q.nbytes
    levels = q.levels()
    assert levels.shape[:-1] == q.scale.shape and (levels.diff() > 0).all() and q.to("cpu").equal(q)
    assert torch.isin(q.dequantize(), levels).all() and q.to("meta").nbytes == q.nbytes
    changed = type(q)(**(vars(q) | {"codes": q.codes.flip(0)}))
    assert not q.equal(changed) and not q.equal(CODED["int4" if name != "int4" else "nf4"](X))


def test_files_of_before_that_have_a_byte_for_each_zero_point():
    q = linear.quantize(X, 4, "affine", axis=0)
    fields, tensors = q.packed()
    assert tensors["zero_point"].shape == (8,)
    fields = {name: value for name, value in fields.items() if name != "packed"}
    assert unpacked(fields, tensors | {"zero_point": q.zero_point}).equal(q)


@pytest.mark.parametrize("name, change, said", [
    ("mxfp4", {"scale": torch.ones(32)}, "scale is torch.float32"), ("nvfp4", {"scale": torch.ones(64)}, "scale is torch.float32"),
    ("nvfp4", {"tensor_scale": torch.ones(2)}, r"tensor_scale has shape \(2,\)"),
    ("nvfp4", {"tensor_scale": None}, "it holds codes, scale, and"),
    ("nf4", {"tensor_scale": torch.ones(())}, "it holds codes, scale, tensor_scale, and"), ("mxfp4", {"bits": 5}, "bits is 5"),
    ("ternary", {"bits": 2}, "bits is 2"), ("int4", {"bits": 1.6}, "bits is 1.6"),
    ("e4m3", {"scale": torch.tensor(math.inf)}, "scale is not finite"),
    ("e4m3", {"codes": torch.full((16, 64), 127, dtype=torch.uint8)}, "a code of e4m3 is no number"),
    ("mxfp4", {"scale": torch.full((32,), 255, dtype=torch.uint8).view(torch.float8_e8m0fnu)}, "scale is not finite"),
])
def test_what_no_quantizer_returns_is_damage(name, change, said):
    q = CODED[name](X)
    changed = type(q)(**(vars(q) | change))
    if change.get("bits") == 1.6:                                                            # codes of 4 bits do not even fit
        changed = type(q)(**(vars(changed) | {"codes": q.codes % 3, "zero_point": q.zero_point % 3}))
    with pytest.raises(ValueError, match=said):
        unpacked(*changed.packed())


def test_a_byte_above_242_is_no_ternary_code():
    fields, tensors = ternary.quantize(X).packed()
    with pytest.raises(ValueError, match="packed holds the byte 243"):
        unpacked(fields, tensors | {"codes": tensors["codes"].index_fill(0, torch.tensor([2]), 243)})


@pytest.mark.parametrize("name", CODED)
def test_a_network_is_quantized_and_stored_in_every_format(tmp_path, name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    images = torch.rand(8, 4, 5, 5)
    q = ptq.quantize_weights(net, CODED[name])
    expected = sum(CODED[name](layer.weight).nbytes for layer in (net[0], net[3])) + 4 * 26
    assert q.nbytes == expected and torch.equal(q.model[3].weight, CODED[name](net[3].weight).dequantize())
    q.save(tmp_path / "weights")
    assert torch.equal(ptq.load(tmp_path / "weights", net).model(images), q.model(images))
    whole = ptq.quantize(net, images, CODED[name])
    whole.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net")
    assert torch.equal(again.model(images), whole.model(images)) and again.nbytes == whole.nbytes == q.nbytes + 3 * 5
    assert all(again.tensors[layer].equal(whole.tensors[layer]) for layer in ("0", "3"))
    with pytest.raises(ValueError, match="must be symmetric, of 2 to 8 bits"):
        integer.convert(whole, (4, 5, 5))


def test_pictures_show_the_levels_and_their_codes():
    q, labels = formats.quantize(X, "e2m1"), ["nf4, groups of 64", "MXFP4", "ternary"]
    marks = plot.histogram_with_levels(X, q, method="e2m1").collections[0].get_segments()
    assert [mark[0, 0] for mark in marks] == pytest.approx(q.levels().tolist())
    assert [style["color"] for style in plot.line_styles(labels)] == [plot.COLORS["formats"]] * 3
    ax = plot.plt.subplots()[1]
    demo.rulers({"e2m1": q, "ternary": ternary.quantize(X)}, ax)
    assert [text.get_text() for text in ax.texts[:15]] == ["15", "14", "13", "12", "11", "10", "9", "0", "1", "2", "3", "4", "5", "6", "7"]
    plot.pareto({label: [(1000, 0.9, 0.8, 0.95)] for label in labels}), plot.error_curve([4], {label: [20.0] for label in labels})
    plot.plt.close("all")


# What is refused


@pytest.mark.parametrize("call, said", [
    (lambda: formats.quantize(X, "fp4"), "format is 'fp4', and must be one of e4m3, e5m2, e3m2, e2m3, e2m1, nf4, mxfp8_e4m3,"),
    (lambda: formats.quantize(X, 4), "format is 4"), (lambda: formats.levels("int4"), "format is 'int4'"),
    (lambda: formats.quantize(X, "nf4", group_size=60), "group_size is 60, and must divide the 1024 elements"),
    (lambda: formats.quantize(X, "mxfp4", axis=2), "axis is 2"),
    (lambda: formats.quantize(torch.ones(144), "nf4"), "nf4 has groups of 64, which do not divide the 144 elements of the tensor: give "
                                                       "a group_size that does, 48 for example"),
    (lambda: formats.quantize(torch.ones(8, 50), "mxfp4", axis=0), "the 50 elements of each channel: give a group_size that does, 25"),
    (lambda: formats.quantize(torch.ones(37), "nvfp4"), "give a group_size that does, 37 for example"),
    (lambda: formats.quantize([1.0, math.nan], "e4m3"), "x holds NaN or infinity"),
    (lambda: formats.quantize([math.inf], "mxfp4"), "x holds NaN or infinity"),
    (lambda: formats.quantize(X, "mxfp4", scale=1), "mxfp4 has scales of its own"),
    (lambda: formats.quantize(X, "nvfp4", scale_dtype=torch.float16), "nvfp4 has scales of its own"),
    (lambda: formats.quantize(X, "e4m3", scale=0), "must be finite and above 0"),
    (lambda: formats.quantize(X, "e4m3", axis=0, scale=[1.0] * 15 + [math.nan]), "scale holds nan, and must be finite and above 0"),
    (lambda: formats.quantize(X, "e4m3", scale=[1.0, 2.0]), "scale has shape (2,), and must be one number or have the shape ()"),
    (lambda: formats.quantize(X, "e4m3", scale_dtype=torch.int8), "scale_dtype is torch.int8, and must be torch.float16,"),
    (lambda: linear.quantize(X, 4, scale_dtype="half"), "scale_dtype is 'half'"),
    (lambda: linear.quantize([0.0, 1e9], 4, scale_dtype=torch.float16), "above the largest torch.float16: use more bits"),
    (lambda: formats.quantize([1e9], "nf4", scale_dtype=torch.float16), "above the largest torch.float16"),
    (lambda: ternary.quantize([1e9], scale_dtype=torch.float16), "gamma is above 65504"),
    (lambda: ternary.quantize([math.nan]), "x holds NaN"), (lambda: ternary.quantize(X, group_size=7), "group_size is 7"),
    (lambda: small_floats.encode([1.0], "nf4"), "format is 'nf4', and must be one of e4m3, e5m2, e3m2, e2m3, e2m1."),
    (lambda: small_floats.encode([math.inf], "e5m2"), "x holds NaN or infinity"),
    (lambda: small_floats.decode([16], "e2m1"), "codes run from 16 to 16, and must run from 0 to 15"),
    (lambda: packing.pack(torch.tensor([3]), 1.6), "must run from 0 to 2"),
    (lambda: packing.unpack(torch.zeros(2, dtype=torch.uint8), 1.6, 11), "must be the 3 uint8 bytes"),
    (lambda: packing.pack(torch.tensor([1]), 1.5), "bits is 1.5"),
])
def test_one_clear_sentence(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_floating_point_number_is_refused():
    for call in (lambda x: formats.quantize(x, "nf4"), ternary.quantize, lambda x: small_floats.encode(x, "e2m1")):
        with pytest.raises(TypeError, match="must hold float16"):
            call(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="must hold integers"):
        small_floats.decode([1.0], "e2m1")


@pytest.mark.parametrize("name", ["e4m3", "nf4", "mxfp4", "nvfp4"])
def test_what_has_no_values_is_one_sentence(name):
    for call in (lambda x: formats.quantize(x, name), ternary.quantize, linear.quantize, lambda x: small_floats.encode(x, "e2m1")):
        with pytest.raises(ValueError, match="x is on the meta device, and must be on one that holds values"):
            call(torch.zeros(64, device="meta"))
    for call in (lambda codes: small_floats.decode(codes, "e2m1"), lambda codes: packing.pack(codes, 4)):
        with pytest.raises(ValueError, match="codes is on the meta device"):
            call(torch.zeros(4, dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_codes_of_wide_unsigned_integers(dtype):
    codes = torch.arange(16).to(dtype)
    assert torch.equal(small_floats.decode(codes, "e2m1"), small_floats.decode(torch.arange(16), "e2m1"))
    assert packing.pack(codes, 4).tolist() == packing.pack(torch.arange(16), 4).tolist()
    with pytest.raises(ValueError, match="codes run from 300 to 300"):
        packing.pack(torch.tensor([300]).to(dtype), 4)
