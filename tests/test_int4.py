"""Products with packed weights: the storage, each backend, the door and the layer, compared with NumPy in float64."""

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qlab import doctor
from qlab.matmul import Int4Linear, device, int4, int4_matmul, int4_onnxruntime, int4_torch, onnx_file, onnxruntime, pack_linears_, packed
from qlab.quant import formats, kmeans, linear, packing, ternary

BACKENDS = ("reference", "onnxruntime", "torch", "auto")
ZEROS = (None, "whole", "real")


def made(n, groups, group_size, bits, zeros=None, seed=0, powers=True, dtype=torch.float32):
    """Packed weights and what they decode to, float64 (N, K), by NumPy: codes of all sizes, scales that are powers of two, or any."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (n, groups * group_size))
    scale = torch.tensor(2.0 ** rng.integers(-1, 2, (n, groups)) if powers else rng.uniform(0.01, 1, (n, groups)), dtype=dtype)
    real = rng.integers(-2, 2 * 2**bits + 2, (n, groups)) / 2 if powers else rng.uniform(0, 2**bits, (n, groups)).astype(np.float32)
    zero = {None: np.full((n, groups), 2 ** (bits - 1)), "whole": rng.integers(0, 2**bits, (n, groups)), "real": real}[zeros]
    zero_point = None if zeros is None else torch.tensor(zero, dtype=dtype if zeros == "real" else torch.int64)
    weights = packed.pack_codes(codes, scale, zero_point, bits)
    spread = [np.repeat(each, group_size, 1) for each in (scale.double().numpy(), zero)]
    return weights, (codes - spread[1]) * spread[0]


def whole_numbers(m, groups, group_size, seed=1):
    """x from -7 to 7, and 127 in each 16: int8 in blocks holds such numbers exactly, and float32 all sums of them with `made` weights."""
    x = np.random.default_rng(seed).integers(-7, 8, (m, groups, group_size))
    x[:, :, ::16] = 127
    return torch.tensor(x.reshape(m, -1), dtype=torch.float32)


def possible(backend, weights):
    """Whether this backend multiplies such weights: the table in `int4`, said once more."""
    if backend == "onnxruntime":
        return weights.group_size % (32 if weights.bits == 2 else 16) == 0
    return backend != "torch" or weights.bits == 4 and weights.group_size % 32 == 0


# Storage


@given(bits=st.sampled_from(packed.BITS), n=st.integers(0, 5), k=st.integers(0, 19), seed=st.integers(0, 2**31))
def test_rows_are_packed_as_a_stream_of_bits_and_come_back(bits, n, k, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, (n, k)))
    rows = packed.pack_rows(codes, bits)
    assert rows.dtype == torch.uint8 and rows.shape == (n, -(-k * bits // 8))
    for row, its in zip(rows, codes):
        assert torch.equal(row, packing.pack(its, bits))
    assert torch.equal(packed.unpack_rows(rows, bits, k).long(), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", ["symmetric", "affine", "minmax"])
@pytest.mark.parametrize("axis, group_size", [(None, None), (None, 6), (0, None), (0, 6), (0, 1)])
def test_packed_weights_decode_to_what_was_quantized(bits, scheme, axis, group_size):
    w = torch.randn(5, 18, generator=torch.Generator().manual_seed(bits))
    for scale_dtype in (None, torch.float16):
        q = linear.quantize(w, bits, scheme, axis=axis, group_size=group_size, scale_dtype=scale_dtype)
        weights = packed.pack(q)
        assert weights.bits == (2 if bits == 2 else 4 if bits <= 4 else 8) and weights.shape == (5, 18)
        assert torch.equal(weights.dequantize(), q.dequantize()) and weights.scale.dtype == q.scale.dtype


def test_other_dtypes_and_ternary_weights():
    w = torch.randn(4, 10, dtype=torch.float64)
    q = linear.quantize(w, 4, "affine", axis=0)  # with float64 scales
    assert torch.allclose(packed.pack(q).dequantize(), q.dequantize().float(), rtol=1e-6)
    q = ternary.quantize(w.float())
    assert packed.pack(q).bits == 2 and torch.equal(packed.pack(q).dequantize(), q.dequantize())
    for half in (torch.float16, torch.bfloat16):
        q = linear.quantize(w.to(half), 4, "symmetric", axis=0)
        assert torch.equal(packed.pack(q).dequantize().to(half), q.dequantize())
    for kind in (np.uint8, np.int8, np.uint16, np.int32, np.uint64):
        assert packed.pack_codes(np.array([[3, 1]], kind), np.array([0.5], np.float32)).dequantize().tolist() == [[-2.5, -3.5]]


@pytest.mark.parametrize("bits, scheme, group_size, expected", [  # a code, and its share of a float16 scale and of a packed zero-point
    (4, "symmetric", 32, 4 + 16 / 32), (4, "affine", 32, 4 + 20 / 32), (2, "affine", 64, 2 + 18 / 64), (8, "symmetric", 128, 8 + 16 / 128)])
def test_bytes_are_true(bits, scheme, group_size, expected):
    q = linear.quantize(torch.randn(16, 256), bits, scheme, axis=0, group_size=group_size, scale_dtype=torch.float16)
    weights = packed.pack(q)
    assert 8 * weights.nbytes / (16 * 256) == expected == q.bits_per_weight
    file = io.BytesIO()
    torch.save(weights, file)
    assert weights.nbytes < len(file.getvalue()) < weights.nbytes + 4000


# The backends


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", packed.BITS)
def test_products_of_whole_numbers_are_exact(bits, zeros, backend):
    for n, groups, group_size in ((1, 1, 16), (3, 2, 32), (17, 3, 48), (33, 1, 96), (5, 2, 256), (2, 1, 7)):
        weights, w = made(n, groups, group_size, bits, zeros)
        if not possible(backend, weights) or backend == "torch" and zeros == "real":  # its zero would have too many bits for bfloat16
            continue
        for m in (1, 4, 19):
            x = whole_numbers(m, groups, group_size)
            exact = x.double().numpy() @ w.T
            assert 4 * (x.abs().double().numpy() @ np.abs(w).T).max() < 2**24  # quarters
            y = int4_matmul(x, weights, backend)
            if backend == "torch":  # the product is exact, its result is rounded
                assert torch.equal(y, torch.from_numpy(exact).to(torch.bfloat16).float()), (n, groups, group_size, m)
            else:
                assert np.array_equal(y.double().numpy(), exact), (n, groups, group_size, m)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits, group_size", [(2, 32), (2, 192), (4, 32), (4, 80), (8, 256)])
def test_products_of_random_numbers_stay_within_the_stated_bounds(bits, group_size, zeros):
    weights, w = made(37, 4, group_size, bits, zeros, powers=False)
    zero_point = np.repeat(weights.unpacked()[1].double().numpy(), group_size, 1)
    scale, codes = np.repeat(weights.scale.double().numpy(), group_size, 1), weights.unpacked()[0].double().numpy()
    x = torch.randn(21, 4 * group_size, generator=torch.Generator().manual_seed(0))
    exact, size = x.double().numpy() @ w.T, x.abs().double().numpy() @ (scale * (codes + np.abs(zero_point))).T
    float32 = 2e-7 * size + 1e-9  # K up to 1024, added in some order: a few units in the last place of all that is added
    block = int4_onnxruntime.block(bits, group_size)
    peaks = x.abs().double().reshape(21, -1, block).amax(2).numpy()
    levels = {4: peaks @ np.abs(w).reshape(37, -1, block).sum(2).T / 254 + float32, 0: float32}
    if zeros == "real":  # what is rounded is x, whatever it is multiplied with: w with the nearest whole zero-point
        shifted = w + scale * (zero_point - np.clip(np.round(zero_point), 0, 2**bits - 1))
        levels[4] = peaks @ np.abs(shifted).reshape(37, -1, block).sum(2).T / 254 + float32
    for level, bound in levels.items():
        assert (np.abs(int4_matmul(x, weights, "onnxruntime", level).double().numpy() - exact) <= bound).all()
    assert (np.abs(int4_matmul(x, weights, "reference").double().numpy() - exact) <= float32).all()
    if possible("torch", weights):
        bound = 2**-7 * (x.abs().double().numpy() @ (scale * (np.abs(codes - 8) + np.abs(8 - zero_point))).T)
        assert (np.abs(int4_matmul(x, weights, "torch").double().numpy() - exact) <= bound).all()


@pytest.mark.parametrize("bits", packed.BITS)
def test_level_4_rounds_x_to_int8_and_level_0_does_not(bits):
    x = torch.arange(32.0) + 0.49
    x[-1] = 127  # the block's step is 1, so 0.49 is lost 31 times
    weights = packed.pack_codes(np.full((3, 32), 2**bits - 1), np.ones((3, 1), np.float32), np.zeros((3, 1), np.int64), bits)
    exact = x.double().sum() * (2**bits - 1)
    lost, bound = 31 * 0.49 * (2**bits - 1), 127 / 254 * 32 * (2**bits - 1)
    for each in (x[None], x[None].repeat(9, 1)):
        assert torch.allclose(exact - int4_matmul(each, weights, "onnxruntime").double(), torch.tensor(lost).double(), rtol=1e-3)
        assert lost > 0.9 * bound and torch.allclose(int4_matmul(each, weights, "onnxruntime", 0).double(), exact, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", int4.FLOATS)
def test_dtypes_strides_and_leading_sizes(dtype, backend):
    weights, w = made(19, 3, 32, 4, "whole")
    x = whole_numbers(6, 3, 32)
    exact = (x.double() @ torch.from_numpy(w).T).to(torch.bfloat16 if backend == "torch" else torch.float32).to(dtype)
    x = x.to(dtype)
    for each in (x, x.T.contiguous().T, x.repeat_interleave(2, 0)[::2], x.repeat_interleave(3, 1)[:, ::3], x.flip(0).flip(0)):
        y = int4_matmul(each, weights, backend)
        assert y.dtype == dtype and torch.equal(y, exact) and torch.equal(each, x)
    assert torch.equal(int4_matmul(x[:1].expand(6, -1), weights, backend), exact[:1].expand(6, -1))
    assert torch.equal(int4_matmul(x.reshape(2, 3, 96), weights, backend), exact.reshape(2, 3, 19))
    assert torch.equal(int4_matmul(x[0], weights, backend), exact[0])
    for nothing in (x[:0], x[:0].reshape(0, 5, 96)):
        y = int4_matmul(nothing, weights, backend)
        assert y.shape == (*nothing.shape[:-1], 19) and y.dtype == dtype
    with torch.inference_mode():
        assert torch.equal(int4_matmul(x.clone(), weights, backend), exact)
    assert not int4_matmul(x.clone().requires_grad_(), weights, backend).requires_grad
    if dtype == torch.float32:
        assert torch.equal(int4_matmul(x.numpy()[::-1], weights, backend), exact.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", packed.BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_shows_and_others_do_not_notice(value, bits, backend):
    weights, w = made(5, 2, 32, bits)
    if not possible(backend, weights):
        return
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    sick = x.clone()
    sick[1, 40] = sick[3, 0] = value
    for level in (4, 0):
        y, healthy = int4_matmul(sick, weights, backend, level), int4_matmul(x, weights, backend, level)
        assert not y[[1, 3]].isfinite().any()
        assert healthy.isfinite().all() and torch.equal(y[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("level", int4_onnxruntime.LEVELS)
def test_the_smallest_and_largest_numbers(level):
    weights, w = made(7, 3, 32, 4, "whole", powers=False)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[1] *= 1e-41
    x[2, :32] *= 1e-40  # one block beside ordinary ones
    x[3, :32] *= 1e-37
    x[4] *= 1e35
    y, exact = int4_matmul(x, weights, "onnxruntime", level).double().numpy(), x.double().numpy() @ w.T
    assert (np.abs(y - exact) <= (0.02 if level else 1e-6) * (x.abs().double().numpy() @ np.abs(w).T) + 1e-36).all() and (y[0] == 0).all()


def test_matrices_of_nothing():
    for shape in ((0, 32), (3, 0), (0, 0)):
        weights = packed.pack(linear.quantize(torch.zeros(shape), 4, "symmetric", axis=0))
        for backend in BACKENDS:
            assert torch.equal(int4_matmul(torch.ones(2, shape[1]), weights, backend), torch.zeros(2, shape[0]))
        assert weights.dequantize().shape == shape


def test_the_file_for_onnx_runtime_is_onnx():
    weights, _ = made(3, 2, 32, 4, "whole")
    operands = {"x": onnx_file.FLOAT, "codes": weights.codes.reshape(3, 2, 16).numpy(), "scale": weights.scale.numpy()}
    file = onnx_file.model("MatMulNBits", list(operands), operands, ("c", onnx_file.FLOAT), {"K": 64, "bits": 4}, "com.microsoft")
    model = onnx.load_model_from_string(file)
    onnx.checker.check_model(model)
    (node,), constants = model.graph.node, {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    assert (node.op_type, node.domain) == ("MatMulNBits", "com.microsoft")
    assert list(node.input) == ["x", "codes", "scale"] and list(node.output) == ["c"]
    assert {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} == {"K": 64, "bits": 4}
    assert np.array_equal(constants["codes"], operands["codes"]) and np.array_equal(constants["scale"], operands["scale"])
    assert {each.domain: each.version for each in model.opset_import} == {"": 13, "com.microsoft": 1}


# What a backend keeps


@pytest.mark.parametrize("backend, page", [("onnxruntime", int4_onnxruntime), ("torch", int4_torch)])
def test_weights_are_prepared_once_and_anew_when_they_change(backend, page, monkeypatch):
    prepared, prepare = [], page._pack
    monkeypatch.setattr(page, "_pack", lambda *key: prepared.append(key[1:]) or prepare(*key))
    weights, w = made(16, 2, 32, 4)
    x = whole_numbers(3, 2, 32)
    for change in (lambda: None, lambda: weights.codes.zero_(), lambda: weights.scale.mul_(2)):
        change()
        before = len(prepared)
        for _ in range(2):
            expected = (x.double() @ weights.dequantize().double().T).to(torch.bfloat16 if backend == "torch" else torch.float32)
            assert torch.equal(int4_matmul(x, weights, backend), expected.float()) and len(prepared) == before + 1
    copied = pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights), copy.copy(weights)
    for each in copied:
        assert not each._made and torch.equal(int4_matmul(x, each, backend), expected.float())
    before, kept = len(prepared), torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(kept, 2))
        assert torch.equal(int4_matmul(x, weights, backend), expected.float())
        assert len(prepared) == before + (backend == "onnxruntime") and len(weights._made) == 1
    finally:
        torch.set_num_threads(kept)


def test_weights_on_another_device():
    weights, _ = made(3, 2, 32, 4, "real")
    there = weights.to("meta")
    assert all(tensor.is_meta for tensor in there.tensors().values()) and there.shape == (3, 64) and there.bits == 4
    assert not any(tensor.is_meta for tensor in weights.tensors().values())
    with pytest.raises(ValueError, match="device is 'nowhere', and must be one that this machine has"):
        weights.to("nowhere")


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        weights = packed.pack(linear.quantize(torch.ones(3, 32), 4, "symmetric", axis=0))
        layer = Int4Linear.from_float(nn.Linear(32, 3))
        x = torch.ones(2, 32)
        assert torch.allclose(int4_matmul(x, weights), int4_matmul(x, weights, "reference"))
        y = layer(x)
        layer.scale = layer.scale * 1  # as moving a model does
        assert torch.equal(layer(x), y)
    layer.codes.zero_()
    assert not torch.equal(layer(x), y)


# Which one


def test_which_backend_is_taken(monkeypatch):
    weights = {key: made(4, 2, key[1], key[0])[0] for key in ((4, 32), (4, 16), (4, 6), (2, 32), (4, 3))}
    assert {int4.choose("cpu", weights=each)[0] for each in (None, weights[4, 16], weights[2, 32])} == {"onnxruntime"}
    assert int4.choose("cpu", weights=weights[4, 6]) == (
        "reference", "ONNX Runtime takes 4-bit weights in groups of multiples of 16, not of 6, and torch takes groups of multiples of 32, "
                     "not of 6")
    assert int4.choose("cpu", accuracy_level=0)[0] == "onnxruntime" and int4.choose("cpu", "auto", 0, weights[2, 32]) == (
        "reference", "ONNX Runtime takes as long without rounding x as decoding 2-bit weights does, and torch multiplies in bfloat16")
    assert int4.choose("meta") == ("reference", "only it computes there")
    monkeypatch.setattr(onnxruntime, "MODEL_BYTES", 10)
    assert int4.choose(weights=weights[4, 32]) == ("torch", "an ONNX file holds 0.0 GB of weights, and these are 0.0")
    monkeypatch.setattr(int4_onnxruntime, "why_not_onnxruntime", lambda: "ONNX Runtime is not installed")
    assert int4.choose() == ("torch", "ONNX Runtime is not installed")
    assert int4.choose(rows=1025) == ("reference", "ONNX Runtime is not installed, and with 1025 rows torch takes longer than decoding the "
                                                  "weights once does")
    assert int4.choose(accuracy_level=0) == ("reference", "ONNX Runtime is not installed, and torch multiplies in bfloat16")
    assert int4.choose(weights=weights[2, 32])[1].endswith("and torch multiplies packed weights of 4 bits, not of 2")
    monkeypatch.setattr(int4, "why_not_triton", lambda device: "")
    assert int4.choose("cuda")[0] == "triton" and int4.choose("cuda", weights=weights[4, 3]) == (
        "reference", "groups of 3 codes of 4 bits do not end with a byte")
    monkeypatch.delattr(torch, "_weight_int4pack_mm_for_cpu")
    assert int4.choose()[1].endswith("this torch has no torch._weight_int4pack_mm_for_cpu")


@pytest.mark.parametrize("lost, told", [(1, "ONNX Runtime's sums of 8-bit weights overflow on this CPU at accuracy level 4"), (0, "")])
def test_a_cpu_whose_sums_overflow_is_noticed(lost, told, monkeypatch):
    said = np.full((2, 3), 64 * 127 * 255, np.float32)
    said[1, 2] -= lost
    monkeypatch.setattr(int4_onnxruntime, "_session", lambda *key: SimpleNamespace(run=lambda *operands: [said]))
    assert int4_onnxruntime.why_not_exact.__wrapped__(8, 4) == told


def test_an_onnx_runtime_that_lacks_the_bits_is_noticed(monkeypatch):
    def refuse(*key):
        raise RuntimeError("bits must be 4\nand more")

    monkeypatch.setattr(int4_onnxruntime, "_session", refuse)
    assert int4_onnxruntime.why_not_exact.__wrapped__(2, 4) == "this ONNX Runtime does not multiply 2-bit weights (bits must be 4)"


def test_the_doctor_says_which_one_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._backend("int4") == "onnxruntime: MatMulNBits multiplies packed weights as they are"


# The layer


def layer_and_input(**how):
    torch.manual_seed(0)
    return Int4Linear.from_float(nn.Linear(96, 20), **how), torch.randn(5, 96)


@pytest.mark.parametrize("bits, group_size, scheme", [(4, 32, "symmetric"), (4, None, "affine"), (2, 16, "affine"), (8, 32, "symmetric"),
                                                      (3, 32, "minmax"), (4, 12, "symmetric")])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_its_decoded_weights(bits, group_size, scheme, bias):
    torch.manual_seed(0)
    linear_layer, x = nn.Linear(96, 20, bias=bias), torch.randn(2, 5, 96)
    layer = Int4Linear.from_float(linear_layer, bits, group_size, scheme, backend="reference")
    q = linear.quantize(linear_layer.weight.detach(), bits, scheme, axis=0, group_size=group_size, scale_dtype=torch.float16)
    expected = torch.nn.functional.linear(x.double(), q.dequantize().double(), linear_layer.bias.double() if bias else None)
    assert torch.allclose(layer(x).double(), expected, atol=1e-6, rtol=1e-5)
    assert layer(x.half()).dtype == torch.float16 and torch.allclose(layer(x[0, 0].tolist()), layer(x)[0, 0], atol=1e-6)
    fast = Int4Linear.from_float(linear_layer, bits, group_size, scheme)
    assert (fast(x) - layer(x)).abs().max() < 0.02 * layer(x).abs().max()
    again = Int4Linear.from_quantized(q, linear_layer.bias, "reference")
    assert torch.equal(again(x), layer(x)) and torch.equal(again.codes, layer.codes)


def test_copies_files_and_states_of_a_layer():
    layer, x = layer_and_input(scheme="affine")
    fresh, y = len(pickle.dumps(layer)), layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False),
                   copy.deepcopy(layer).half(), copy.deepcopy(layer).to(torch.bfloat16)):
        assert copied._kept is None and set(copied.state_dict()) == {"codes", "scale", "zero_point", "bias", "_extra_state"}
        assert torch.equal(copied(x), y) or copied.bias.dtype != torch.float32
        assert copied.scale.dtype == torch.float16
    assert len(pickle.dumps(layer)) == fresh
    other = Int4Linear.from_float(nn.Linear(96, 20), scheme="affine")
    assert not torch.equal(other(x), y)
    for assign in (False, True):
        other.load_state_dict(layer.state_dict(), assign=assign)
        assert torch.equal(other(x), y)
        other = Int4Linear.from_float(nn.Linear(96, 20), scheme="affine")
        other(x)
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), y)


@pytest.mark.parametrize("how, told", [
    ({"bits": 8}, "bits=4, and this Int4Linear has bits=8"), ({"group_size": 16}, "group_size=32, and this Int4Linear has group_size=16"),
    ({"scheme": "affine"}, "zero_points=None, and this Int4Linear has zero_points='packed'"),
    ({"scheme": "minmax"}, "zero_points=None, and this Int4Linear has zero_points='real'"),
    ({"scale_dtype": torch.float32}, "holds scale as torch.float16, and it must be torch.float32")])
def test_a_state_of_another_kind_is_refused_and_nothing_is_changed(how, told):
    layer, x = layer_and_input()
    other = layer_and_input(**how)[0]
    y = other(x)
    with pytest.raises(ValueError, match=told):
        other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


def test_a_quantized_tensor_is_not_reached_through_the_layer():
    q = linear.quantize(torch.randn(4, 32), 4, "minmax", axis=0)
    kept = q.dequantize()
    layer = Int4Linear.from_quantized(q, torch.zeros(4))
    for tensor in layer.state_dict().values():
        tensor.zero_()
    assert torch.equal(q.dequantize(), kept)


def test_a_layer_is_traced_and_exported_with_torch_s_own_operators():
    layer, x = layer_and_input()
    expected = layer_and_input(backend="reference")[0](x)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)


def test_layers_of_a_model_are_put_in_by_name():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.last, self.hooked = nn.Linear(32, 32), nn.Conv2d(1, 1, 1), nn.Linear(32, 32), nn.Linear(32, 32)
            self.again = self.first
            self.hooked.register_forward_hook(lambda *_: None)

        def forward(self, x):
            return self.hooked(self.last(self.again(self.first(x).relu())))

    net, x = Net(), torch.randn(3, 32)
    decoded = copy.deepcopy(net)
    quantized = {name: linear.quantize(module.weight.detach(), 4, "symmetric", axis=0) for name, module in net.named_modules() if name}
    quantized["last"] = kmeans.quantize(net.last.weight.detach(), 2)
    assert pack_linears_(net, quantized, "reference") == {
        "conv": "it is a Conv2d", "hooked": "it has hooks, which would be lost",
        "last": "the scheme of q is 'kmeans', and must be one of symmetric, affine, minmax, ternary: a code times a scale"}
    assert isinstance(net.first, Int4Linear) and net.first is net.again and type(net.last) is nn.Linear
    decoded.first.weight.data = quantized["first"].dequantize()
    assert torch.allclose(net(x), decoded(x), atol=1e-6, rtol=1e-5)
    for names, told in ((["first", "nowhere"], "'nowhere' is no layer inside this model: choose among 'first', 'last', 'hooked', 'again'."),
                        ([""], "'' is the model itself, which cannot be replaced in place: use Int4Linear.from_quantized")):
        fresh = Net()
        with pytest.raises(ValueError, match=told):
            pack_linears_(fresh, {name: quantized["first"] for name in names})
        assert type(fresh.first) is nn.Linear
    for arguments, told in (((None, {}), "model is a NoneType, and must be a torch.nn.Module"), ((Net(), [1]), "tensors must be QTensors"),
                            ((Net(), {"first": torch.ones(32, 32)}), "tensors must be QTensors by the names of layers")):
        with pytest.raises(TypeError, match=told):
            pack_linears_(*arguments)
    with pytest.raises(ValueError, match="backend is 'fast', and must be one of"):
        pack_linears_(Net(), quantized, "fast")
    with pytest.raises(ValueError, match=r"the weight for 'first' has shape \(1, 32\), and must have \(32, 32\)"):
        pack_linears_(Net(), {"first": linear.quantize(torch.ones(1, 32), 4, "symmetric")})


def test_an_encoder_layer_computes_with_packed_weights():
    torch.manual_seed(0)
    encoder, x = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval(), torch.randn(2, 4, 32)
    decoded, quantized = copy.deepcopy(encoder), {}
    for name in ("linear1", "linear2"):
        quantized[name] = linear.quantize(getattr(encoder, name).weight.detach(), 4, "symmetric", axis=0, group_size=32)
        getattr(decoded, name).weight.data = quantized[name].dequantize()
    assert pack_linears_(encoder, quantized, "reference") == {}
    with torch.no_grad():
        assert torch.allclose(encoder(x), decoded(x), atol=1e-5, rtol=1e-5)


# Bad input


W = torch.ones(4, 32)
Q = linear.quantize(W, 4, "symmetric", axis=0, group_size=16)
CODES, SCALE = np.ones((2, 6), np.int64), np.ones((2, 3), np.float32)


@pytest.mark.parametrize("call, error, told", [
    (lambda: packed.pack(W), TypeError, "q is a Tensor, and must be a QTensor: quantize the weights first, for example linear.quantize"),
    (lambda: packed.pack(formats.quantize(W, "nf4")), ValueError, "the scheme of q is 'nf4', and must be one of symmetric, affine, minmax"),
    (lambda: packed.pack(linear.quantize(W, 9, "symmetric")), ValueError, "q has codes of 9 bits, and must have at most 8"),
    (lambda: packed.pack(linear.quantize(W[0], 4)), ValueError, r"q has shape \(32,\), and must be a matrix"),
    (lambda: packed.pack(linear.quantize(W, 4, axis=1)), ValueError, "q has axis=1, a scale for each column, and must have axis=0"),
    (lambda: packed.pack(linear.quantize(W, 4, group_size=64)), ValueError, "q has groups of 64 in rows of 32, and a group must not go"),
    (lambda: packed.pack_codes(CODES, SCALE, bits=3), ValueError, "bits is 3, and must be 2, 4 or 8"),
    (lambda: packed.pack_codes(CODES, SCALE, bits=4.0), ValueError, "bits is 4.0, and must be 2, 4 or 8"),
    (lambda: packed.pack_codes(CODES * 1.0, SCALE), TypeError, "codes holds torch.float64, and must hold integers"),
    (lambda: packed.pack_codes(CODES * 16, SCALE), ValueError, "codes goes from 16 to 16, and must be from 0 to 15 to fit in 4 bits"),
    (lambda: packed.pack_codes(CODES - 2, SCALE), ValueError, "codes goes from -1 to -1, and must be from 0 to 15"),
    (lambda: packed.pack_codes(CODES[0], SCALE), ValueError, r"codes has shape \(6,\), and must be a matrix"),
    (lambda: packed.pack_codes(CODES, SCALE.astype(int)), TypeError, "scale has dtype torch.int64, and must be one of torch.float32"),
    (lambda: packed.pack_codes(CODES, SCALE[:1]), ValueError, r"scale has shape \(1, 3\), and must be \(2,\) or \(2, groups\)"),
    (lambda: packed.pack_codes(CODES[:, :5], SCALE), ValueError, "scale has 3 groups, and they must divide the 5 codes of a row"),
    (lambda: packed.pack_codes(CODES, SCALE * np.inf), ValueError, "scale holds NaN or infinity, and must be finite everywhere"),
    (lambda: packed.pack_codes(CODES, torch.ones(2, 3, device="meta")), ValueError, "scale is on the meta device"),
    (lambda: packed.pack_codes(torch.zeros(2, 6, dtype=torch.uint8, device="meta"), SCALE), ValueError, "codes is on the meta device"),
    (lambda: packed.pack_codes(CODES, SCALE, CODES), ValueError, r"zero_point has shape \(2, 6\), and must have the scale's, \(2, 3\)"),
    (lambda: packed.pack_codes(CODES, SCALE, np.full((2, 3), 16)), ValueError, "zero_point goes from 16 to 16, and must be from 0 to 15"),
    (lambda: packed.pack_codes(CODES, SCALE, SCALE * np.nan), ValueError, "zero_point holds NaN or infinity"),
    (lambda: int4_matmul(W, Q), TypeError, "weights is a QTensor, and must be PackedWeights: packed.pack makes them"),
    (lambda: int4_matmul(W.double(), packed.pack(Q)), TypeError, "x has dtype torch.float64, and must be one of torch.float32"),
    (lambda: int4_matmul(W.to_sparse(), packed.pack(Q)), TypeError, "x is a tensor of layout torch.sparse_coo"),
    (lambda: int4_matmul(W[:, 1:], packed.pack(Q)), ValueError, r"x has shape \(4, 31\), and its last size must be 32"),
    (lambda: int4_matmul(torch.tensor(1.0), packed.pack(Q)), ValueError, r"x has shape \(\), and its last size must be 32"),
    (lambda: int4_matmul(W.to("meta"), packed.pack(Q)), ValueError, "x is on meta and the weights on cpu: they must be on one device"),
    (lambda: int4_matmul(W, packed.pack(Q), "fast"), ValueError, "backend is 'fast', and must be one of auto, reference, onnxruntime"),
    (lambda: int4_matmul(W, packed.pack(Q), accuracy_level=2), ValueError, r"accuracy_level is 2, and must be 4 \(x in int8 inside\) or 0"),
    (lambda: int4_matmul(W, packed.pack(Q), "torch"), RuntimeError, "torch takes groups of multiples of 32, not of 16: use backend='refer"),
    (lambda: Int4Linear.from_float(nn.Conv2d(1, 1, 1)), TypeError, "layer is Conv2d, and must be torch.nn.Linear"),
    (lambda: Int4Linear.from_float(nn.Linear(100, 10)), ValueError, "group_size is 32, and must divide the 100 elements"),
    (lambda: Int4Linear.from_float(nn.Linear(32, 10), 9), ValueError, "q has codes of 9 bits, and must have at most 8"),
    (lambda: Int4Linear.from_float(nn.Linear(32, 10, device="meta")), ValueError, "they are on the meta device, without values"),
    (lambda: Int4Linear.from_float(nn.utils.parametrizations.weight_norm(nn.Linear(32, 2))), ValueError, "made anew in each forward"),
    (lambda: Int4Linear.from_float(nn.Linear(32, 2), backend="fast"), ValueError, "backend is 'fast', and must be one of"),
    (lambda: Int4Linear.from_quantized(Q, [1, 1, 1, 1]), TypeError, "bias holds torch.int64, and must hold float16, bfloat16, float32"),
    (lambda: Int4Linear.from_quantized(Q, torch.ones(3)), ValueError, r"bias has shape \(3,\), and must be \(4,\)"),
])
def test_bad_input(call, error, told):
    with pytest.raises(error, match=told) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_finite_or_too_large_for_their_scales():
    layer = nn.Linear(32, 2)
    for value, told in ((np.nan, "holds NaN or infinity, and must be finite"), (1e6, "a scale of 142857 is needed, above the largest")):
        layer.weight.data[0, 0] = value
        with pytest.raises(ValueError, match=told):
            Int4Linear.from_float(layer)


def test_without_onnx_runtime(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(int4_onnxruntime, "why_not_onnxruntime", device.why_not_onnxruntime.__wrapped__)
    with pytest.raises(RuntimeError, match="^ONNX Runtime is not installed: use backend='reference', or pip install onnxruntime.$"):
        int4_matmul(W, packed.pack(Q), "onnxruntime")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_backend_of_the_cpu_takes_nothing_from_elsewhere(backend):
    weights = packed.PackedWeights(*(tensor.to("meta") for tensor in packed.pack(Q).tensors().values()), None, 4, 16)
    with pytest.raises(RuntimeError, match=f"x is on meta, and the backend '{backend}' computes on the CPU: move it, or use another one"):
        int4_matmul(W.to("meta"), weights, backend)
