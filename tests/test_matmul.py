"""The INT8 product, its CPU path, its door, and the layer: compared with int64 products in NumPy and with torch's float layers."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn.utils import prune

from qlab.lab.measure import size_bytes
from qlab.matmul import Int8Linear, cpu, device, int8_matmul, layers, product, quantize_linears_, reference
from qlab.quant import linear, settled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "torch", "auto") + (("onnxruntime", "float32") if DEVICE == "cpu" else ())
SIZES = st.integers(0, 40)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)).to(DEVICE)


def exact(a, b):
    return a.cpu().numpy().astype(np.int64) @ b.cpu().numpy().astype(np.int64)


def views(rows, columns, seed=0):
    """One shape, laid out in every way a matrix can lie: row-major, transposed, every second row, reversed, one row repeated."""
    yield random(rows, columns, seed=seed)
    yield random(columns, rows, seed=seed).T
    yield random(2 * rows, columns, seed=seed)[::2]
    yield random(rows, 3 * columns, seed=seed)[:, ::3]
    yield random(rows, columns, seed=seed).flip(0)
    yield random(1, columns, seed=seed).expand(rows, columns)


@given(m=SIZES, k=SIZES, n=SIZES, seed=st.integers(0, 2**31))
def test_every_backend_is_exact_on_every_shape(m, k, n, seed):
    a, b = random(m, k, seed=seed), random(k, n, seed=seed + 1)
    for backend in BACKENDS:
        c = int8_matmul(a, b, backend)
        assert c.dtype == torch.int32 and np.array_equal(c.cpu().numpy(), exact(a, b)), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_exact_on_every_layout(backend):
    for a in views(7, 9):
        for b in views(9, 5, seed=1):
            assert np.array_equal(int8_matmul(a, b, backend).cpu().numpy(), exact(a, b)), (a.stride(), b.stride())


def test_three_loops_are_the_definition():
    a, b = random(3, 5).cpu(), random(5, 2, seed=1).cpu()
    assert np.array_equal(reference.three_loops(a, b).numpy(), exact(a, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_sum_that_int32_must_hold(backend):
    k = reference.MAX_K - 1
    a = torch.full((1, k), -128, dtype=torch.int8, device=DEVICE)
    assert int8_matmul(a, a.T, backend).item() == k * 2**14 <= 2**31 - 1 < (k + 1) * 2**14


def test_torch_wraps_in_int8_and_says_nothing():
    a, b = random(4, 64).cpu(), random(64, 4, seed=1).cpu()
    assert np.array_equal((a @ b).numpy(), exact(a, b).astype(np.int8)) and (a @ b).dtype == torch.int8
    assert not np.array_equal((a @ b).numpy(), exact(a, b))


def test_large_operands_are_converted_a_part_at_a_time(monkeypatch):
    a, b = random(50, 30), random(30, 40, seed=1)
    monkeypatch.setattr(reference, "ROWS", 7)
    assert np.array_equal(reference.matmul(a, b).cpu().numpy(), exact(a, b))
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 100)
    every_second = random(100, 30)[::2]
    copied = []
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: copied.append(x.shape[0]) or reference.matmul(x, y))
    assert np.array_equal(cpu.matmul(every_second, b).cpu().numpy(), exact(every_second, b))
    if DEVICE == "cpu":
        assert max(copied) * 30 <= 100 and sum(copied) == 50  # never more than the chunk is copied at once


def test_a_dense_operand_is_not_copied(monkeypatch):
    a, b, seen = random(32, 16), random(24, 16, seed=1).T, []
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: seen.extend((x.data_ptr(), y.data_ptr())) or reference.matmul(x, y))
    cpu.matmul(a, b)
    assert seen == [a.data_ptr(), b.data_ptr()]


@given(m=st.integers(1, 9), k=SIZES, n=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_zero_points_cost_two_sums(m, k, n, seed):
    rng = np.random.default_rng(seed)
    a, b = random(m, k, seed=seed), random(k, n, seed=seed + 1)
    for z_a, z_b in ((3, -128), (rng.integers(-128, 128, m), 5), (rng.integers(-128, 128, m), rng.integers(-128, 128, n))):
        shifted_a = a.cpu().numpy().astype(np.int64) - np.reshape(z_a, (-1, 1))
        shifted_b = b.cpu().numpy().astype(np.int64) - np.reshape(z_b, (1, -1))
        corrected = int8_matmul(a, b) + reference.zero_point_correction(a, b, z_a, z_b)
        assert corrected.dtype == torch.int32 and np.array_equal(corrected.cpu().numpy(), shifted_a @ shifted_b)


def test_the_epilogue_is_the_formula():
    rng = np.random.default_rng(0)
    c, z, sums = rng.integers(-9999, 9999, (5, 7)), rng.integers(-9, 9, 5), rng.integers(-99, 99, 7)
    s_x, s_w, b = rng.uniform(0.01, 1, 5), rng.uniform(0.01, 1, 7), rng.normal(size=7)
    formula = np.maximum((c - z[:, None] * sums) * s_x[:, None] * s_w + b, 0)
    ours = reference.epilogue(torch.tensor(c, dtype=torch.int32), *(torch.tensor(x, dtype=torch.float32) for x in (s_x, s_w, b)),
                              torch.tensor(z, dtype=torch.int32), torch.tensor(sums, dtype=torch.int32), relu=True)
    np.testing.assert_allclose(ours.numpy(), formula, rtol=3e-7, atol=1e-4)  # float32 of numbers up to 10,000
    half = reference.epilogue(torch.zeros(2, 2, dtype=torch.int32), torch.ones(1), torch.ones(2), out_dtype=torch.float16)
    assert half.dtype == torch.float16


def int8(*shape):
    return torch.zeros(shape, dtype=torch.int8)


@pytest.mark.parametrize("a, b, kind, sentence", [
    (torch.zeros(2, 2), int8(2, 2), TypeError, "a has dtype torch.float32, and must be torch.int8."),
    (int8(2, 2), torch.zeros(2, 2, dtype=torch.uint8), TypeError, "b has dtype torch.uint8, and must be torch.int8."),
    ([[1, 2]], int8(2, 2), TypeError, "a has dtype torch.int64, and must be torch.int8."),
    (int8(2), int8(2, 2), ValueError, "a has shape (2,), and must be a matrix, (rows, columns)."),
    (int8(2, 2), int8(1, 2, 2), ValueError, "b has shape (1, 2, 2), and must be a matrix"),
    (int8(2, 3), int8(2, 3), ValueError, "a has 3 columns and b has 2 rows: they must be the same number."),
    (int8(1, 2**17), int8(2**17, 1), ValueError, "K is 131,072, and must be below 131,072, for K * 128 * 128 must fit into int32"),
    (int8(2, 2), int8(2, 2).to("meta"), ValueError, "a is on cpu and b on meta: they must be on one device."),
    (int8(2, 2).to_sparse(), int8(2, 2), ValueError, "a has layout torch.sparse_coo, and must be a dense (strided) tensor."),
])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_operands(a, b, kind, sentence, backend):
    with pytest.raises(kind) as caught:
        int8_matmul(a, b, backend)
    assert sentence in str(caught.value)


def test_numpy_arrays_are_operands_too():
    a, b = random(3, 4).cpu(), random(4, 2, seed=1).cpu()
    assert np.array_equal(int8_matmul(a.numpy(), b.numpy()).numpy(), exact(a, b))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_that_torch_cannot_share_are_copied(backend):
    a, b = random(4, 6).cpu().numpy(), random(6, 3, seed=1).cpu().numpy()
    read_only = b.copy()
    read_only.setflags(write=False)
    file = np.frombuffer(a.tobytes(), np.int8).reshape(4, 6)  # read-only from the start
    for one, other in ((a[::-1], b), (a[:, ::-1], b[::-1, ::-1]), (file, read_only), (file[::-2], read_only[:, ::-1]),
                       (np.broadcast_to(a[:1], (4, 6)), b), (a[:0], b[::-1]), (a[::-1, :0], b[:0][::-1])):
        product = one.astype(np.int64) @ other.astype(np.int64)
        assert np.array_equal(int8_matmul(one, other, backend).numpy(), product)
        assert int8_matmul(one, other, backend).shape == product.shape
    z = np.arange(4)[::-1]
    z_read_only = z.astype(">i4")
    z_read_only.setflags(write=False)
    for z_a in (z, z_read_only):
        shifted = (a.astype(np.int64) - z_a[:, None]) @ b.astype(np.int64)
        a_, b_ = torch.tensor(a), torch.tensor(b)
        assert np.array_equal((int8_matmul(a, b, backend) + reference.zero_point_correction(a_, b_, z_a, 0)).numpy(), shifted)


@pytest.mark.parametrize("arguments, sentence", [
    (dict(a_zero_point=1.5), "a_zero_point has dtype torch.float32, and must be an integer."),
    (dict(a_zero_point=[1, 2, 3]), "a_zero_point has shape (3,), and must be one number or have shape (2,)."),
    (dict(b_zero_point=128), "b_zero_point goes from 128 to 128, and must be from -128 to 127."),
])
def test_bad_zero_points(arguments, sentence):
    with pytest.raises(ValueError) as caught:
        reference.zero_point_correction(int8(2, 5), int8(5, 4), **arguments)
    assert str(caught.value) == sentence
    with pytest.raises(ValueError, match="K is 33,025, and must be below 33,025 with zero-points"):
        reference.zero_point_correction(int8(1, 33_025), int8(33_025, 1))
    assert 33_024 * 255 * 255 < 2**31 < 33_026 * 255 * 255


# Which backend


def test_auto_takes_the_first_that_works(monkeypatch):
    monkeypatch.setattr(product, "why_not_triton", lambda device="cuda": "")
    assert product.choose("cuda")[0] == "triton"
    monkeypatch.setattr(product, "why_not_triton", lambda device="cuda": "no GPU")
    assert product.choose("cuda") == ("torch", "no GPU, and this torch has torch._int_mm")
    monkeypatch.delattr(torch, "_int_mm")
    assert product.choose("cuda") == ("reference", "no GPU, and this torch has no torch._int_mm")
    assert product.choose("cpu") == ("onnxruntime", "this torch has no torch._int_mm")
    a = random(3, 4)
    assert np.array_equal(int8_matmul(a, a.T).cpu().numpy(), exact(a, a.T))
    with pytest.raises(RuntimeError, match="has no torch._int_mm: use torch 2.2 or newer, or backend='reference'"):
        int8_matmul(a, a.T, "torch")


def test_why_not_triton_names_the_reason(monkeypatch):
    why_not = device.why_not_triton.__wrapped__  # asked anew each time
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    assert why_not("cuda") == "Triton is not installed"
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "compute capability is below 8.0" in why_not("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert "install gcc, or name yours in the variable CC" in why_not("cuda")
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert why_not("cuda") == ""


def test_an_unknown_backend():
    for call in (lambda: int8_matmul(int8(2, 2), int8(2, 2), "cublas"), lambda: Int8Linear.from_float(nn.Linear(2, 2), backend="cublas")):
        with pytest.raises(ValueError, match="'cublas', and must be one of auto, reference, torch, onnxruntime, float32, triton."):
            call()


# The layer


def float_layer(k=37, n=11, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(k, n, bias=bias, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activations", ["token", (0.03, 0), (0.03, -20)])
def test_the_layer_is_the_product_of_what_the_codes_stand_for(activations, bias):
    layer, x = float_layer(bias=bias), torch.randn(6, 37, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ours = Int8Linear.from_float(layer, activations, relu=True)(x)
    w = linear.quantize(layer.weight.detach(), 8, "symmetric", axis=0).dequantize().double()
    if activations == "token":
        x_hat = linear.quantize(x, 8, "symmetric", axis=0).dequantize().double()
    else:
        s, z = activations
        x_hat = torch.fake_quantize_per_tensor_affine(x, s, z, -128, 127).double()
    expected = (x_hat @ w.T + (layer.bias.double() if bias else 0)).relu()
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()  # float32's rounding: the sums are exact


@pytest.mark.parametrize("dtype", layers.FLOATS)
def test_weight_only_is_the_product_with_the_decoded_weights(dtype):
    layer, x = float_layer(dtype=dtype), torch.randn(2, 3, 37, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    y = Int8Linear.from_float(layer, None)(x)
    w = linear.quantize(layer.weight.detach().float(), 8, "symmetric", axis=0).dequantize()
    expected = x.double() @ w.double().T + layer.bias.double()
    assert y.dtype == dtype and y.shape == (2, 3, 11)
    assert (y - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_rows_of_zeros_and_no_rows():
    layer = Int8Linear.from_float(float_layer())
    x = torch.zeros(3, 37, device=DEVICE)
    assert torch.equal(layer(x), layer.bias.expand(3, 11)) and layer(x[:0]).shape == (0, 11) and layer(x[0]).shape == (11,)


def test_quantized_rows_are_those_of_the_linear_quantizer():
    x = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    codes, scale = layers.quantize_rows(x)
    q = linear.quantize(x, 8, "symmetric", axis=0)
    assert torch.equal(codes.int(), q.codes.int()) and torch.equal(scale, q.scale.reshape(-1).float())


NOT_FINITE = {"NaN": [math.nan], "infinity": [math.inf], "both infinities": [math.inf, -math.inf], "all": [math.nan] * 37}


@pytest.mark.parametrize("activations", ["token", (0.03, 0), (0.03, -20)])
@pytest.mark.parametrize("dtype", layers.FLOATS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("what", NOT_FINITE)
def test_a_row_that_is_not_finite_is_nan_and_the_others_do_not_notice(what, relu, dtype, activations):
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    sick = x.clone()
    sick[2, 30:30 + len(NOT_FINITE[what])] = torch.tensor(NOT_FINITE[what][:7], dtype=dtype, device=DEVICE)
    for backend in BACKENDS:
        layer = Int8Linear.from_float(float_layer(dtype=dtype), activations, relu, backend)
        y, healthy = layer(sick), layer(x)
        assert y.dtype == dtype and y[2].isnan().all() and healthy.isfinite().all()
        assert torch.equal(y[[0, 1, 3, 4]], healthy[[0, 1, 3, 4]])
        assert layer(sick[2]).isnan().all() and layer(sick[None])[0, 2].isnan().all()  # one row alone, and rows in a batch


def test_weights_alone_give_for_infinity_what_a_float_layer_gives():
    layer = float_layer(bias=False)
    x = torch.ones(3, 37, device=DEVICE)
    x[0, 3], x[1, 3], x[1, 5] = math.inf, math.inf, math.nan
    y = Int8Linear.from_float(layer, None)(x)
    codes = linear.quantize(layer.weight.detach(), 8, "symmetric", axis=0).codes
    assert torch.equal(y[0], torch.where(codes[:, 3] == 0, math.nan, codes[:, 3].sign() * math.inf)) and y[1].isnan().all()
    assert y[2].isfinite().all()


def test_weights_alone_do_not_overflow_in_half_precision():
    layer = nn.Linear(64, 2, bias=False, device=DEVICE)
    layer.weight.data = torch.full((2, 64), 0.01)  # codes of 127: 64 * 127 * 100 is above 65,504, and 64 * 0.01 * 100 = 64 is not
    layer.weight.data[1] *= 1e-6                   # a scale of 8e-11, which is 0 in float16
    y = Int8Linear.from_float(layer, None)(torch.full((1, 64), 100.0, dtype=torch.float16, device=DEVICE))
    assert torch.equal(y.cpu(), torch.tensor([[64.0, 64e-6]], dtype=torch.float16))


def test_rows_that_are_not_finite_have_no_codes():
    x = torch.ones(4, 3)
    x[0, 1], x[1, 2], x[2, 0] = math.nan, math.inf, -math.inf
    codes, scale = layers.quantize_rows(x)
    assert scale[:3].isnan().all() and scale[3] == np.float32(1) / np.float32(127) and codes.tolist() == [[0] * 3] * 3 + [[127] * 3]


def test_rows_of_the_smallest_and_largest_numbers_are_those_of_the_linear_quantizer():
    x = torch.tensor([[1e-45, 0.0], [1e-38, -1e-45], [3.4e38, -1.0], [1e-36, -2e-36]])
    codes, scale = layers.quantize_rows(x)
    q = linear.quantize(x, 8, "symmetric", axis=0)
    assert torch.equal(codes.int(), q.codes.int()) and torch.equal(scale, q.scale.reshape(-1))


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)),
              elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_rows_of_any_floats_have_numpys_codes_and_need_no_saturation(x):
    codes, scale = layers.quantize_rows(torch.from_numpy(x))
    peak = np.abs(x).max(1)
    expected = np.where(peak == 0, np.float32(1), np.maximum(peak / np.float32(127), np.finfo(np.float32).tiny))
    assert np.array_equal(scale.numpy(), expected) and np.array_equal(codes.numpy(), np.rint(x / expected[:, None]).clip(-127, 127))


@pytest.mark.parametrize("x, scale, zero_point, sentence", [
    (math.nan, 0.5, 0, "x holds NaN or infinity"), (-math.inf, 0.5, 0, "x holds NaN or infinity"),
    (1.0, 0.0, 0, "scale is 0.0 and zero_point 0"), (1.0, math.nan, 0, "scale is nan"), (1.0, 0.5, 200, "zero_point 200"),
    (1.0, 0.5, 0.5, "zero_point 0.5"),
])
def test_static_codes_are_refused_for_what_has_none(x, scale, zero_point, sentence):
    with pytest.raises(ValueError, match=sentence):
        layers.quantize_static(torch.tensor([0.0, x]), scale, zero_point)


def test_static_codes_saturate():
    x = torch.tensor([3.4e38, -3.4e38, 0.75, 0.25], dtype=torch.float64)
    assert layers.quantize_static(x, 0.5, -10).tolist() == [127, -128, -8, -10]  # 1.5 and 0.5 to even
    assert layers.quantize_static(torch.zeros(0, 3), 0.5, 0).shape == (0, 3)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.float16),
                                    lambda m: m.to("cpu", torch.bfloat16)])
def test_a_changed_dtype_leaves_the_layer_as_it_is(change):
    model, x = nn.Sequential(float_layer(), nn.LayerNorm(11, device=DEVICE)), torch.randn(3, 37).to(DEVICE)
    model[0].weight.data[0] *= 1e-8  # its scale is 0 in float16
    quantize_linears_(model)
    state, before = {name: t.clone() for name, t in model[0].state_dict().items()}, model[0](x.half())
    change(model)
    assert model[1].weight.dtype != torch.float32 and torch.equal(model[0].to(DEVICE)(x.half()), before)
    assert all(t.dtype == state[name].dtype and torch.equal(t.to(DEVICE), state[name].to(DEVICE))
               for name, t in model[0].state_dict().items())
    assert {t.device.type for t in model.to("meta").buffers()} == {"meta"} and model[0].scale.dtype == torch.float32


def test_a_default_dtype_changes_nothing():
    x = torch.randn(3, 37)
    made = [Int8Linear.from_float(float_layer().cpu(), how) for how in ("token", (0.03, 4), None)]
    before = [layer(x) for layer in made]
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(layer(x), y) and layer(x).dtype == torch.float32 for layer, y in zip(made, before))
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {"token": dict(activations="token"), "static": dict(activations=(0.03, -20)), "weight-only": dict(activations=None),
         "relu": dict(activations="token", relu=True)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("saved", MODES)
@pytest.mark.parametrize("into", MODES)
def test_a_state_loads_only_into_a_layer_that_computes_the_same(saved, into, strict):
    model, other = (nn.Sequential(Int8Linear.from_float(nn.Linear(5, 3), **MODES[how])) for how in (saved, into))
    state, before = model.state_dict(), copy.deepcopy(other)
    if saved == into:
        other.load_state_dict(state, strict)
        assert torch.equal(other(torch.ones(2, 5)), model(torch.ones(2, 5)))
    else:
        with pytest.raises(ValueError, match="^the state of 0 was saved with .*, and this Int8Linear has .*: load it into one that"):
            other.load_state_dict(state, strict)
        assert torch.equal(other(torch.ones(2, 5)), before(torch.ones(2, 5)))  # nothing was loaded


def test_a_static_layer_takes_over_scale_and_zero_point(tmp_path):
    one, other = (Int8Linear.from_float(nn.Linear(5, 3), how) for how in ((0.1 / 3, -20), (4.0, 7)))
    safetensors.torch.save_file(one.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(4, 5)
    assert other.activations == (0.1 / 3, -20) and torch.equal(one(x), other(x))
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied.activations == (0.1 / 3, -20) and torch.equal(copied(x), one(x))


def test_a_static_state_without_its_scale_is_refused():
    layer = Int8Linear.from_float(nn.Linear(5, 3), (0.1, 3))
    bare = settled.as_tensor({"activations": "static", "relu": False})
    with pytest.raises(ValueError, match="activations is"):
        layer.load_state_dict({**layer.state_dict(), "_extra_state": bare})
    assert layer.activations == (0.1, 3)


def test_settings_are_no_weights():
    layer = Int8Linear.from_float(nn.Linear(5, 3))
    assert size_bytes(layer) == 15 + 12 + 12 + 12  # codes, scale, column_sums, bias
    assert size_bytes(nn.Sequential(nn.ReLU(), layer)) == 51


@pytest.mark.parametrize("change, sentence", [
    (lambda state: state.update(scale=state["scale"].half()), "the state holds scale as torch.float16, and it must be torch.float32"),
    (lambda state: state.update(codes=state["codes"].float()), "the state holds codes as torch.float32, and it must be torch.int8"),
    (lambda state: state.update(_extra_state=torch.tensor([1, 2, 3])), "the state holds settings that cannot be read"),
    (lambda state: state.update(_extra_state=torch.tensor([1.5])), "the state holds settings that cannot be read"),
])
@pytest.mark.parametrize("assign", [False, True])
def test_a_changed_state_is_refused(change, sentence, assign):
    layer = Int8Linear.from_float(nn.Linear(5, 3))
    state = dict(layer.state_dict())
    change(state)
    with pytest.raises(ValueError, match=sentence):
        layer.load_state_dict(state, assign=assign)
    with pytest.raises(RuntimeError, match="Missing key.*_extra_state"):
        layer.load_state_dict({key: t for key, t in layer.state_dict().items() if key != "_extra_state"})


def test_a_layer_of_no_inputs_is_its_bias():
    layer = nn.Linear(4, 3)
    for how in ("token", (0.03, -20), None):
        empty = Int8Linear(torch.zeros(3, 0, dtype=torch.int8), torch.ones(3), layer.bias.detach(), how)
        assert torch.equal(empty(torch.zeros(2, 0)), layer.bias.detach().expand(2, 3)) and empty(torch.zeros(0, 0)).shape == (0, 3)


def test_a_layer_whose_sums_may_not_fit_is_not_made():
    codes = torch.full((1, 2**16), -128, dtype=torch.int8)
    with pytest.raises(ValueError, match="in_features is 65,536, and must be below 65,536: sums must fit into int32"):
        Int8Linear(codes, torch.ones(1), None, (1.0, 127))
    long = Int8Linear(codes[:, 1:], torch.ones(1), None, (1.0, 127))  # the largest: (-128 - 127) * -128 * 65,535
    assert long(torch.full((1, 65_535), -999.0)).item() == np.float32(255 * 128 * 65_535)
    assert Int8Linear(codes, torch.ones(1), None, None)(torch.ones(1, 2**16)).item() == -128 * 2**16


def test_the_layer_survives_saving(tmp_path):
    x = torch.randn(4, 37, device=DEVICE)
    one, other = Int8Linear.from_float(float_layer()), Int8Linear.from_float(nn.Linear(37, 11, device=DEVICE))
    torch.save(one.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("call, kind, sentence", [
    (lambda layer: layer(torch.zeros(2, 36)), ValueError, "x has shape (2, 36), and its last size must be in_features, 37."),
    (lambda layer: layer(torch.zeros(())), ValueError, "its last size must be in_features, 37"),
    (lambda layer: layer(torch.zeros(2, 37, dtype=torch.int8)), TypeError, "x has dtype torch.int8, and must be one of torch.float32"),
    (lambda layer: layer(torch.zeros(2, 37, device="meta")), ValueError, "x is on meta and the layer on"),
    (lambda _: Int8Linear.from_float(nn.Conv2d(1, 1, 1)), TypeError, "layer is Conv2d, and must be torch.nn.Linear."),
    (lambda _: Int8Linear.from_float(nn.Linear(2, 2), (0.0, 0)), ValueError, "activations is (0.0, 0), and must be 'token', None, or"),
    (lambda _: Int8Linear.from_float(nn.Linear(2, 2), (0.1, 0.5)), ValueError, "activations is (0.1, 0.5)"),
    (lambda _: Int8Linear.from_float(nn.Linear(2, 2), "row"), ValueError, "activations is 'row'"),
    (lambda _: Int8Linear.from_float(nn.Linear(2**16, 1)), ValueError, "in_features is 65,536, and must be below 65,536"),
    (lambda _: Int8Linear.from_float(nan_layer()), ValueError, "the layer's weight holds NaN or infinity, and must be finite everywhere."),
    (lambda _: Int8Linear.from_float(filled(1e300)), ValueError,
     "the layer's weight is torch.float64 and as large as 1e+300, and must be below 3.403e+38, float32's largest number."),
    (lambda _: Int8Linear.from_float(filled(math.inf)), ValueError, "the layer's weight holds NaN or infinity"),
    (lambda _: Int8Linear.from_float(nn.Linear(2, 2, device="meta")), ValueError, "its weight is on the meta device, without values."),
])
def test_bad_layers_and_inputs(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call(Int8Linear.from_float(float_layer()).cpu())
    assert sentence in str(caught.value)


def filled(value):
    layer = nn.Linear(2, 2).double()
    nn.init.constant_(layer.weight, value)
    return layer


def nan_layer():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = float("nan")
    return layer


# Whole models


class Odd(nn.Module):
    """Every reason to leave a layer, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(8, 8)
        self.again = self.plain
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embedding = nn.Embedding(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.embedding.weight
        self.wide = nn.Linear(8, 8).double()
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.sick = nan_layer()
        self.hooked = nn.Linear(8, 8)
        self.hooked.register_forward_hook(print)
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)
        self.no_bias = prune.l1_unstructured(nn.Linear(8, 8), "bias", 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises the new one
            self.normed = nn.utils.weight_norm(nn.Linear(8, 8))
        self.patched = nn.Linear(8, 8)
        self.patched.forward = lambda x: 2 * x
        self.watched = nn.Linear(8, 8)
        self.watched.register_full_backward_hook(print)
        self.called = nn.Linear(8, 8)
        self.called.register_forward_pre_hook(print)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.tied(self.attention(self.plain(x), self.again(x), x)[0]))


def test_what_is_swapped_what_is_left_and_why():
    model = Odd().eval()
    report = {swap.name: swap for swap in quantize_linears_(model, skip=("last",))}
    assert {name for name, swap in report.items() if swap.swapped} == {"plain", "again"} and model.plain is model.again
    for name, why in {"attention.out_proj": "a subclass of nn.Linear", "tied": "its weight is shared with embedding",
                      "wide": "torch.float64", "parametrized": "a subclass of nn.Linear", "sick": "its weight is not finite",
                      "hooked": "it has hooks", "last": "it was to be skipped"}.items():
        assert why in report[name].why and not isinstance(model.get_submodule(name), Int8Linear), name
    assert model(torch.randn(2, 5, 8)).shape == (2, 5, 2)
    for name in ("pruned", "patched", "watched", "normed", "called", "no_bias"):
        assert not report[name].swapped
    for name in ("pruned", "normed", "no_bias"):
        assert "is made anew in each forward" in report[name].why
    assert "a forward of its own" in report["patched"].why and "hooks" in report["watched"].why and "hooks" in report["called"].why
    assert str(report["plain"]) == "swapped  plain  Linear(8, 8): int8 weights, activations by token"


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_whose_weights_do_not_say_what_it_computes_has_no_int8_layer():
    odd = Odd().train()
    for layer in (odd.parametrized, odd.pruned, odd.no_bias, odd.normed, odd.patched, odd.watched, odd.called, odd.hooked, Doubled(2, 2)):
        with pytest.raises(ValueError, match="the layer cannot be made INT8: it"):
            Int8Linear.from_float(layer)
    prune.remove(odd.pruned, "weight")
    assert quantize_linears_(nn.Sequential(odd.pruned))[0].swapped and Int8Linear.from_float(odd.attention.out_proj).codes.shape == (8, 8)


@pytest.mark.parametrize("activations, sentence", [
    ({"0": (0.1, 0), "1": (0.2, 0)}, "'0' and '1' are one layer, and have the activations"), ({"1": (0.1, 3)}, "")])
def test_one_layer_under_two_names_has_one_way(activations, sentence):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    if sentence:
        with pytest.raises(ValueError, match=sentence):
            quantize_linears_(model, activations)
        assert model[0] is layer
    else:  # the name that is given counts, wherever it stands
        quantize_linears_(model, activations)
        assert model[0] is model[1] and model[0].activations == (0.1, 3)


@pytest.mark.parametrize("arguments, sentence", [
    ((None,), "model is a NoneType, and must be a torch.nn.Module."),
    ((nn.Linear(2, 2), "token", "fc"), "skip is 'fc', and must be a tuple"),
])
def test_what_is_no_model_and_what_are_no_names(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        quantize_linears_(*arguments)


def test_a_transformer_computes_with_the_swapped_layers_in_its_fast_path_too():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(x)
        assert sum(swap.swapped for swap in quantize_linears_(model)) == 4
        after = model(x)
    assert 0 < (after - before).abs().max() < 0.1


def test_static_activations_for_each_layer():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    quantize_linears_(model, {"0": (0.05, 0), "2": (0.02, -128)})
    assert model[0].activations == (0.05, 0) and model[2].activations == (0.02, -128)


@pytest.mark.parametrize("arguments", [
    dict(skip=("1",)), dict(activations={"7": (0.1, 0)}), dict(activations={"0": (-1, 0)}), dict(activations=3)])
def test_a_wrong_name_or_scale_changes_nothing(arguments):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="is no linear layer of this model: choose among '0', '2'|activations is"):
        quantize_linears_(model, **arguments)
    assert type(model[0]) is nn.Linear and type(model[2]) is nn.Linear


def test_a_model_that_is_one_layer_is_left():
    (swap,) = quantize_linears_(nn.Linear(2, 2))
    assert not swap.swapped and "use Int8Linear.from_float" in str(swap)
