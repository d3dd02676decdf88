"""Every quantizer, range and packing door at the ends of the dtypes, with nothing in it, with arrays of any layout, and with NaN."""

import copy
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab import quant
from qlab.nets import huffman, sparse
from qlab.quant import kmeans, linear, log, packing, ranges

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SCHEMES = {
    **{scheme: lambda x, bits=3, scheme=scheme, **k: linear.quantize(x, bits, scheme, **k) for scheme in linear.SCHEMES},
    "log": lambda x, bits=3, **k: log.quantize(x, bits, **k), "log sqrt 2": lambda x, bits=3, **k: log.quantize(x, bits, 2**0.5, **k),
    **{f"kmeans {start}": lambda x, bits=3, start=start, **k: kmeans.quantize(x, bits, start=start, **k)
       for start in ("optimal", *kmeans.STARTS)},
}
WHOLE = {"sign_magnitude": lambda x: log.sign_magnitude(x), "percentile": lambda x: ranges.percentile(x, 90),
         "entropy": lambda x: ranges.entropy(x, 4, 64)}                                     # these know no axis
RANGES = {"minmax": ranges.minmax, "percentile": lambda x, axis=None: ranges.percentile(x, 90, axis),
          "mse": lambda x, axis=None: ranges.mse(x, 4, axis=axis, candidates=5)}


def numbers(dtype: torch.dtype):
    """Floats that the dtype holds, from its smallest to its largest, as often tiny and huge as ordinary."""
    info = torch.finfo(dtype)
    low, high = math.frexp(info.tiny * info.eps)[1], math.frexp(info.max)[1]
    scaled = st.builds(math.ldexp, st.floats(0.5, 1, exclude_max=True), st.integers(low, high))
    magnitude = st.one_of(scaled, st.just(info.max), st.just(info.tiny * info.eps))
    return st.tuples(magnitude, st.sampled_from([1, -1])).map(lambda pair: torch.tensor(pair[0] * pair[1], dtype=torch.float64)
                                                            .clamp(-info.max, info.max).to(dtype).item())


# Logarithmic levels

@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), bits=st.integers(2, 10), base=st.sampled_from([2.0, 2**0.5, 1.1, 1.003, 3.0, 10.0, 1e6]))
def test_the_ratio_is_at_most_the_root_of_the_base(dtype, data, bits, base):
    x = torch.tensor(data.draw(st.lists(numbers(dtype), min_size=1, max_size=12)), dtype=torch.float64).to(dtype)
    q = log.quantize(x, bits, base)
    x_hat, info = q.dequantize(), torch.finfo(dtype)
    assert x_hat.isfinite().all() and ((x_hat == 0) | (x_hat.sign() == x.sign())).all()
    largest, top = x.double().abs().max().item(), 2 ** (bits - 1) - 1
    e_max = round(math.log(largest) / math.log(base)) if largest else 0
    if dtype == torch.float64:
        e_max = min(max(e_max, math.ceil((1e-9 - 1022) / math.log2(base))), math.floor((1024 - 1e-9) / math.log2(base)))
    for value, found in zip(x.double().abs().tolist(), x_hat.double().abs().tolist()):
        edge = (e_max - top + 0.5) * math.log2(base)
        if value == 0 or math.log2(value) < edge - 2e-5:
            assert found == 0 or value > 0 and math.log2(value) > edge - 2e-5
            continue
        if math.log2(value) < edge + 2e-5:                                                  # on the border: 0, or the level
            continue
        allowed = (base if dtype == torch.float64 and value > base**e_max else math.sqrt(base)) * (1 + 2e-5)
        rounding = max(info.eps * value * allowed, info.tiny * info.eps) / 2 * (1 + 1e-9)
        assert value / allowed - rounding <= found <= value * allowed + rounding


def test_the_largest_numbers_by_hand():
    x = torch.tensor([49_000.0, 46_000.0, -65504.0, 1.0], dtype=torch.float16)
    assert log.quantize(x, 6).dequantize().tolist() == [65504, 32768, -65504, 1]            # 65536 is no float16: its largest is nearer
    assert log.quantize(x, 8, base=10).dequantize().tolist() == [65504, 65504, -65504, 1]
    for dtype in (torch.bfloat16, torch.float32):
        q = log.quantize(torch.tensor([1.9 * 2.0**127, 2.0**127, 2.0**120]).to(dtype), 6)
        assert q.dequantize().tolist() == [torch.finfo(dtype).max, 2.0**127, 2.0**120] and q.scale.item() == 2.0**128
        tiny = torch.tensor([2.0**-132]).to(dtype)
        assert log.quantize(tiny, 2).dequantize().equal(tiny)
    double = torch.tensor([1.9 * 2.0**1023, 2.0**1000], dtype=torch.float64)                # 2**1024 cannot be the scale
    assert log.quantize(double, 8).dequantize().tolist() == [2.0**1023, 2.0**1000]


def test_ordinary_scales_are_float32():
    assert log.quantize(torch.tensor([3.0, 1e-9]), 4).scale.dtype == torch.float32
    assert log.quantize(torch.tensor([3.0], dtype=torch.float16), 4).scale.dtype == torch.float32


def test_sign_magnitude_has_a_scale_or_says_so():
    assert log.sign_magnitude(torch.tensor([1e-36]), x_max=1e-35).dequantize().item() == pytest.approx(1e-36, rel=0.05)
    for x, x_max in ((torch.ones(1), 1e-38), (torch.ones(1), 1e300), (torch.ones(1).double(), 1e-320), (torch.zeros(1), 5e-324)):
        with pytest.raises(ValueError, match=r"^x_max is .*, and must be such that the scale x_max / 255 is a normal number"):
            log.sign_magnitude(x, x_max=x_max)


# Linear levels

@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=100)
@given(data=st.data(), bits=st.integers(2, 9), scheme=st.sampled_from(linear.SCHEMES))
def test_half_a_step_at_any_magnitude(dtype, data, bits, scheme):
    x = torch.tensor(data.draw(st.lists(numbers(dtype), min_size=1, max_size=9)), dtype=torch.float64).to(dtype)
    q = linear.quantize(x, bits, scheme)
    x_hat, info = q.dequantize(), torch.finfo(dtype)
    coarse = torch.finfo(dtype if dtype in (torch.float16, torch.bfloat16) else q.scale.dtype)
    for value, found in zip(x.tolist(), x_hat.tolist()):
        off, step = abs(Fraction(value) - Fraction(found)), Fraction(q.scale.item())
        largest = max(Fraction(v) for v in x.abs().tolist()) + step / 2
        assert off <= step / 2 + 2 * max(largest * Fraction(coarse.eps), Fraction(info.tiny * info.eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_range_wider_than_the_largest_number(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([-1.0, -0.5, 0.1, 0.5, 0.9, 1.0], dtype=dtype) * largest
    assert linear.quantize(x, 8).codes.tolist() == [0, 64, 140, 191, 242, 255]              # 63.75, 140.25, 191.25, 242.25
    assert torch.allclose(linear.quantize(x, 8).dequantize() / largest, x / largest, atol=1 / 255)
    assert linear.quantize(x, 8, x_min=-largest, x_max=largest).dequantize().isfinite().all()


def test_a_tiny_constant_and_a_range_beyond_the_dtype():
    assert linear.quantize(torch.full((3,), 2.0**-149), 8).dequantize().tolist() == [2.0**-149] * 3
    x = torch.tensor([1.0, 2.0], dtype=torch.float16)
    assert linear.quantize(x, 8, x_min=1e5, x_max=1.00001e5).dequantize().tolist() == [65504, 65504]
    with pytest.raises(ValueError, match=r"^x_min holds 1e\+39, and must be within the range of torch.float32"):
        linear.quantize(torch.ones(2), 8, x_min=1e39, x_max=1.1e39)
    q = linear.quantize(torch.ones(2), 8, x_min=0.1, x_max=1.1)                            # numbers are taken as float64
    assert q.scale.item() == torch.tensor((1.1 - 0.1) / 255).item()
    for given_range in ("low", 1j, np.array(1j), [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match="^x_min "):
            linear.quantize(torch.ones(2), 8, x_min=given_range)


# Ranges

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_ranges_do_not_depend_on_the_unit(dtype, name):
    """The range of x * 2**e is 2**e times the range of x, to the rounding of the dtype."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-3, 3)
    x = torch.cat([x / 4, torch.tensor([1.9, -1.0], dtype=torch.float64)])
    call = {**RANGES, **WHOLE}[name]
    expected, info = call(x), torch.finfo(dtype)
    for exponent in (math.frexp(info.max)[1] - 1, math.frexp(info.tiny)[1] + 20, 0):
        unit = 2.0**exponent
        for ours, theirs in zip(call((x * unit).to(dtype)), expected):
            assert (ours.double() / unit).item() == pytest.approx(theirs.item(), rel=0.02, abs=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_of_the_smallest_numbers_and_the_largest(dtype):
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    for value in (smallest, 7 * smallest, info.max):
        x = torch.full((9,), value, dtype=dtype)
        assert ranges.entropy(x) == (0, value) and ranges.entropy(-x) == (-value, value) and ranges.entropy(x[:1]) == (0, value)
        for call in (ranges.minmax, ranges.percentile):
            assert call(torch.stack([x, -x])) == (-value, value)
    mixed = torch.tensor([smallest, 3 * smallest, 5 * smallest, -2 * smallest], dtype=dtype)
    low, high = ranges.entropy(mixed)
    assert 0 < high <= 5 * smallest and low == -high


@pytest.mark.parametrize("unit", [1.0, 1e200, 1e-200])
def test_mse_of_rows_of_any_magnitude(unit):
    """The best of all candidates by the definition, in fractions of float64."""
    x = torch.cat([torch.linspace(-1, 1, 60, dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)])
    both = ranges.mse(torch.stack([x, x * unit]), 4, axis=0, candidates=20)
    assert both.x_max[0].item() == ranges.mse(x, 4, candidates=20).x_max.item() < 10
    assert both.x_max[1].item() == pytest.approx(unit * both.x_max[0].item(), rel=1e-12)


# Nothing in it

@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("group_size", [None, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_empty_tensors_come_back_empty(tmp_path, name, shape, group_size, dtype):
    for axis in (None, *range(len(shape))):
        others = math.prod(n for i, n in enumerate(shape) if i != axis)
        if group_size and others % group_size:
            continue
        q = SCHEMES[name](torch.zeros(shape, dtype=dtype), axis=axis, group_size=group_size)
        assert q.dequantize().shape == torch.Size(shape) and q.dequantize().dtype == dtype
        rows = (q.codebook if q.codebook is not None else q.scale[..., None]).shape[:-1]
        levels = q.levels()
        assert levels.shape[:-1] == rows and levels.shape[-1] >= 1
        q.save(tmp_path / "q")
        again = quant.load(tmp_path / "q")
        assert again.codes.shape == q.codes.shape and again.dequantize().equal(q.dequantize()) and again.levels().equal(levels)
        assert again.nbytes == q.nbytes


def test_an_empty_sign_magnitude_packing_code_and_weight():
    q = log.sign_magnitude(torch.zeros(0, 3))
    assert q.dequantize().shape == (0, 3) and len(q.levels()) == 511
    assert packing.unpack(packing.pack(torch.zeros(0, 3, dtype=torch.int8), 3), 3, 0).shape == (0,)
    assert huffman.entropy([]) == 0 == huffman.entropy([0, 0]) and huffman.code_lengths(np.zeros(0)).shape == (0,)
    assert sparse.from_relative(*sparse.to_relative(torch.zeros(0, 4), 3), n=0).shape == (0,)


# Arrays and tensors of any layout

@pytest.fixture
def always_warn():
    """torch says most of its warnings once a program: here every time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def laid_out():
    """The same numbers, (4, 6), in memory of every kind that NumPy and torch have."""
    base = np.random.default_rng(0).standard_normal((4, 6))
    frozen = base.copy()
    frozen.flags.writeable = False
    record = np.zeros((4, 6), [("a", np.int8), ("b", np.float64)])
    record["b"] = base
    tensor = torch.from_numpy(base.copy())
    return {
        "plain": base, "backwards": base[::-1, ::-1].copy()[::-1, ::-1], "read-only": frozen, "big-endian": base.astype(">f8"),
        "field": record["b"], "column-major": np.asfortranarray(base), "rows": list(base), "frozen rows": list(frozen),
        "broadcast": np.broadcast_to(base, (4, 6)), "nested": base.tolist(), "transposed": tensor.T.contiguous().T,
        "strided": torch.stack([tensor, tensor], -1)[..., 0], "expanded": tensor[None].expand(3, 4, 6)[1],
        "with gradient": tensor.clone().requires_grad_(),
    }


@pytest.mark.parametrize("layout", laid_out())
def test_memory_layout_changes_nothing_and_nothing_warns(layout, always_warn):
    x, plain = laid_out()[layout], torch.from_numpy(laid_out()["plain"])
    if layout == "nested":
        plain = plain.float()                                                               # a list is float32 to torch
    untouched = copy.deepcopy(x.detach() if isinstance(x, torch.Tensor) else x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in SCHEMES.values():
            for axis in (None, 0, 1):
                for group_size in (None, 2):
                    ours, theirs = call(x, axis=axis, group_size=group_size), call(plain, axis=axis, group_size=group_size)
                    assert ours.codes.equal(theirs.codes) and ours.dequantize().equal(theirs.dequantize())
        assert log.sign_magnitude(x).codes.equal(log.sign_magnitude(plain).codes)
        for call in RANGES.values():
            for axis in (None, 0, 1):
                assert all(a.equal(b) for a, b in zip(call(x, axis=axis), call(plain, axis=axis)))
        assert ranges.entropy(x) == ranges.entropy(plain)
        observer = ranges.MovingAverage(axis=1)
        observer.update(x)
        assert observer.range().x_max.equal(ranges.minmax(plain, 1).x_max)
        assert kmeans.mse(x, [0.0, 1.0]) == kmeans.mse(plain, [0.0, 1.0])
        assert all(a.equal(b) for a, b in zip(kmeans.lloyd(x, [0.0, 1.0]), kmeans.lloyd(plain, [0.0, 1.0])))
        for format in sparse.FORMATS:
            assert sparse.decode(sparse.encode(x, format)).equal(plain)
        assert linear.quantize(plain, 4, axis=0, x_min=np.full(4, -1.0)[::-1], x_max=np.full(4, 1.0)).codes.shape == (4, 6)
    assert np.array_equal(np.asarray(untouched), np.asarray(x.detach() if isinstance(x, torch.Tensor) else x))


@pytest.mark.parametrize("view", [lambda x: x[::2], lambda x: x[0].expand(7), lambda x: x.expand(5, 12).T, lambda x: x.reshape(3, 4).T,
                                  lambda x: x.reshape(2, 3, 2).permute(2, 0, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_tensors_do_not_warn(view, dtype, always_warn):
    x = view(torch.randn(12, generator=torch.Generator().manual_seed(1)).to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in SCHEMES.values():
            for axis in (None, *range(x.dim())):
                assert call(x, axis=axis).codes.equal(call(x.clone(memory_format=torch.contiguous_format), axis=axis).codes)


@pytest.mark.parametrize("codes", [np.arange(6)[::-1], np.arange(6, dtype=">i4")[::-1], np.broadcast_to(np.int16(3), 6), [5, 4, 3],
                                   np.arange(12, dtype=np.uint8).reshape(6, 2)[:, 0] % 8, torch.arange(6).repeat(2)[::2] % 7])
def test_integers_of_any_layout(codes, always_warn):
    plain = np.array(codes.tolist() if isinstance(codes, torch.Tensor) else codes).astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = packing.pack(codes, 4)
        assert packing.unpack(packed.numpy()[::-1].copy()[::-1], 4, len(plain)).tolist() == plain.tolist()
        counts = np.bincount(plain)[::-1]
        lengths = huffman.code_lengths(np.bincount(plain))
        assert huffman.code_lengths(counts).tolist() == huffman.code_lengths(counts.copy()).tolist()
        data = huffman.encode(codes, lengths.numpy()[::-1].copy()[::-1])
        assert huffman.decode(data, lengths, len(plain)).tolist() == plain.tolist()
        gaps, kept = sparse.to_relative(codes, 2)
        assert sparse.from_relative(gaps.numpy()[::-1].copy()[::-1], kept, len(plain)).tolist() == plain.tolist()


# Counts of any size

@pytest.mark.parametrize("counts", [[2**62] * 4, [2**63 - 1] * 3 + [1], np.full(300, 2**63 - 1), np.full(8, 2**64 - 1, np.uint64),
                                    [2**62, 2**61, 2**60, 2**60]])
def test_counts_that_int64_holds_and_sums_that_it_does_not(counts):
    exact = [int(c) for c in np.asarray(counts).tolist()]
    total = sum(exact)
    expected = -sum(c / total * math.log2(c / total) for c in exact)
    assert huffman.entropy(counts) == pytest.approx(expected, rel=1e-12)
    lengths = huffman.code_lengths(counts).tolist()
    mean = sum(Fraction(c, total) * length for c, length in zip(exact, lengths))
    assert sum(Fraction(1, 2**length) for length in lengths) == 1 and expected - 1e-9 <= mean < expected + 1


def test_a_tree_deeper_than_allowed_with_huge_counts():
    fibonacci = [1, 1]
    while fibonacci[-1] + fibonacci[-2] < 2**63:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(fibonacci)
    assert lengths.max() == 15 and sum(2.0**-int(length) for length in lengths) == 1


def test_gaps_whose_sum_overflows_are_refused():
    for gaps in ([2**62, 2**62, 2**62, 2**62], [2**63 - 1, 2**63 - 1, 3]):
        with pytest.raises(ValueError, match="reach at most n = 10"):
            sparse.from_relative(gaps, [1.0] * len(gaps), 10)
    with pytest.raises(TypeError, match="gaps holds torch.float32"):
        sparse.from_relative([0.5], [1.0], 10)
    with pytest.raises(TypeError, match="weight holds torch.bfloat16"):
        sparse.encode(torch.ones(3, dtype=torch.bfloat16), "csr")


# What is refused

def observed(kind, x):
    observer = kind()
    observer.update(x)
    return observer


DOORS = {**SCHEMES, **WHOLE, **RANGES, "lloyd": lambda x: kmeans.lloyd(x, [0.0]), "kmeans.mse": lambda x: kmeans.mse(x, [0.0]),
         "initial": lambda x: kmeans.initial(x, 2, "linear"), "running": lambda x: observed(ranges.RunningMinMax, x),
         "moving": lambda x: observed(ranges.MovingAverage, x)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_refused_and_all_dtypes_taken(door, dtype):
    good = torch.tensor([[0.5, -1.0, 0.25], [0.0, 2.0, -0.125]], dtype=dtype)
    DOORS[door](good)
    for bad in (math.nan, math.inf, -math.inf):
        for place in ((0, 0), (1, 2)):
            x = good.clone()
            x[place] = bad
            with pytest.raises(ValueError, match=r"^x holds NaN or infinity, and must be finite everywhere\.$"):
                DOORS[door](x)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("x", [torch.tensor([1, 2]), np.array([1, 2], ">i4")[::-1], [True], torch.ones(2, dtype=torch.complex64), "abc",
                               None, np.ma.masked_array([1.0, 2.0], [False, True]), torch.eye(3).to_sparse(),
                               np.array([1.0], np.longdouble if np.dtype(np.longdouble).itemsize > 8 else object)])
def test_what_is_no_floating_point_tensor_is_refused(door, x):
    with pytest.raises(TypeError, match=r"^x (is|holds) ") as failure:
        DOORS[door](x)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("call, said", [
    (lambda: kmeans.mse([1.0], [math.nan]), "codebook holds NaN or infinity"), (lambda: kmeans.mse([1.0], []), "codebook is empty"),
    (lambda: kmeans.lloyd([1.0], [math.inf]), "codebook holds NaN or infinity"), (lambda: kmeans.lloyd([1.0], []), "codebook is empty"),
    (lambda: kmeans.initial([1.0], 1.5, "linear"), "k is 1.5"), (lambda: ranges.percentile([1.0], math.nan), "p is nan"),
    (lambda: ranges.percentile([1.0], "99"), "p is '99'"), (lambda: ranges.mse([1.0], candidates=0), "candidates is 0"),
    (lambda: ranges.entropy([1.0], bins=2048.5), "bins is 2048.5"), (lambda: packing.unpack([], 4, -1), "n is -1"),
    (lambda: linear.quantize([1.0], x_max=np.array([math.nan])[::-1]), "x_max holds NaN or infinity"),
    (lambda: huffman.decode(b"", [1, 1], 0.5), "n is 0.5"),
])
def test_one_clear_sentence(call, said):
    with pytest.raises(ValueError) as failure:
        call()
    assert said in str(failure.value) and "\n" not in str(failure.value)


def test_lloyd_and_its_starts_at_the_largest_numbers():
    largest = np.finfo(np.float64).max
    x = np.array([-largest, -0.9 * largest, 0.7 * largest, largest])
    assert kmeans.initial(x, 3, "linear").tolist() == [-largest, 0, largest]
    assert kmeans.lloyd(x, [-1.0, 1.0])[-1].tolist() == pytest.approx([-0.95 * largest, 0.85 * largest], rel=1e-15)
    outlier = np.append(np.linspace(0, 1, 1001), -1e16)                                     # its sum swallows the others' digits
    assert kmeans.lloyd(outlier, [-1e16, 0.2, 0.8])[-1].tolist() == pytest.approx([-1e16, 0.25, 0.7505], abs=1e-3)
