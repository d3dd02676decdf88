"""The INT8 products of a CPU, kernel by kernel, and which one is taken: compared with int64 products in NumPy and with the reference."""

import copy
import io
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qlab import doctor
from qlab.matmul import Int8Linear, cpu, device, float32, int8_matmul, onnxruntime, product, reference

KERNELS = ("torch", "onnxruntime", "float32", "auto")
CODES = {"all": (-128, 128), "only -128": (-128, -127), "only 127": (127, 128), "negative": (-128, 0), "positive": (0, 128)}


def codes(*shape, low=-128, high=128, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, shape, dtype=np.int8))


def exact(a, b):
    return a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)


def no_vnni(monkeypatch):
    monkeypatch.setattr(device, "_has_vnni", lambda: False)


@pytest.fixture(params=[False, True], ids=["this CPU", "without VNNI"])
def either_cpu(request, monkeypatch):
    if request.param:
        no_vnni(monkeypatch)


@pytest.mark.parametrize("ours", CODES)
@pytest.mark.parametrize("theirs", CODES)
def test_one_sided_codes_are_multiplied_exactly_around_each_border_of_k(ours, theirs, either_cpu):
    for k in (1, 2, 3, 1023, 1024, 1025, 2**14 - 1, 2**14, 2**14 + 1, 40_000, reference.MAX_K - 1):
        a, b = codes(5, k, low=CODES[ours][0], high=CODES[ours][1]), codes(k, 6, low=CODES[theirs][0], high=CODES[theirs][1], seed=1)
        expected = exact(a, b)
        for backend in KERNELS:
            assert np.array_equal(int8_matmul(a, b, backend).numpy(), expected), (backend, k)
            assert np.array_equal(int8_matmul(a[:1], b, backend).numpy(), expected[:1]), (backend, k)


SHAPES = [(1, 700, 900), (300, 1, 200), (1, 1, 900), (900, 700, 1), (3, 2100, 300), (300, 2100, 3), (130, 260, 70), (70, 1100, 130),
          (257, 129, 511)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operands_may_lie_in_any_way(shape, either_cpu):
    m, k, n = shape
    for a in (codes(m, k), codes(k, m).T, codes(m, 2 * k)[:, ::2], codes(2 * m, k)[::2].flip(1), codes(1, k).expand(m, k)):
        for b in (codes(k, n, seed=1), codes(n, k, seed=1).T, codes(k, 3 * n, seed=1)[:, ::3], codes(k, 1, seed=1).expand(k, n)):
            kept, expected = (a.clone(), b.clone()), exact(a, b)
            for backend in KERNELS:
                c = int8_matmul(a, b, backend)
                assert np.array_equal(c.numpy(), expected), (backend, a.stride(), b.stride())
                assert c.is_contiguous() and c.dtype == torch.int32
            assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])


@pytest.mark.parametrize("slab", [1, 100, 3000])
def test_float32_is_exact_whatever_a_slab_holds(slab, monkeypatch):
    for name in ("SLAB", "LARGE_SLAB"):
        monkeypatch.setattr(float32, name, slab)
    monkeypatch.setattr(float32, "ROWS", 50)
    for m, k, n in ((1, 3000, 7), (80, 1100, 90), (120, 2050, 4), (3, 40, 300)):
        a, b = torch.full((m, k), -128, dtype=torch.int8), codes(k, n)
        for each in (b, codes(n, k).T):
            assert np.array_equal(float32.matmul(a, each).numpy(), exact(a, each))


def test_a_chunk_is_as_long_as_float32_allows():
    assert float32.CHUNK * 128 * 128 == 2**24 and torch.tensor(2**24 + 1).float() == 2**24  # the first integer that float32 does not hold
    a = torch.full((1, float32.CHUNK), -128, dtype=torch.int8)
    assert (a.float() @ a.float().T).item() == 2**24


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_is_exact_where_torch_may_use_fewer_bits(precision):
    a, b, before = codes(70, 1100), codes(1100, 60), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert np.array_equal(float32.matmul(a, b).numpy(), exact(a, b))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_in_inference(mode, either_cpu):
    with mode():
        a, b = codes(33, 1500), codes(1500, 40).clone()
        for backend in KERNELS:
            assert np.array_equal(int8_matmul(a, b, backend).numpy(), exact(a, b))


# ONNX Runtime


def test_the_correction_fits_into_int32_in_whatever_order():
    products, sums, constant = 255 * 255 * onnxruntime.PART, 128 * 255 * onnxruntime.PART, 128 * 128 * onnxruntime.PART
    assert products + constant < 2**31 and 2 * sums < 2**31


@pytest.mark.parametrize("b", [None, np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(3, 200)], ids=["operand", "constant"])
def test_the_model_written_by_hand_is_onnx(b):
    model = onnx.load_model_from_string(onnxruntime._model(b))
    onnx.checker.check_model(model, full_check=True)
    (node,), constants = model.graph.node, {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    assert node.op_type == "MatMulInteger" and list(node.input) == ["a", "b", "z", "z"] and list(node.output) == ["c"]
    assert constants["z"] == 128 and constants["z"].dtype == np.uint8 and constants["z"].shape == ()
    assert [each.name for each in model.graph.input] == (["a", "b"] if b is None else ["a"])
    assert b is None or np.array_equal(constants["b"], b)


@pytest.mark.parametrize("k, n", [(1, 1), (300, 200), (2**14 + 5, 3)])
def test_a_packed_operand_gives_the_same_product(k, n, monkeypatch):
    for b in (codes(k, n), codes(n, k).T):
        packed = onnxruntime.pack(b)
        assert len(packed) == (2 if k > 2**14 else 1)
        for m in (0, 1, 2, 70):
            a = codes(m, k, seed=1)
            assert np.array_equal(onnxruntime.matmul(a, b, packed).numpy(), exact(a, b))
    monkeypatch.setattr(onnxruntime, "MODEL_BYTES", 100)  # a model that would be too long for its format is several
    few = b[:40]
    assert len(onnxruntime.pack(few)) == -(-len(few) // max(1, 100 // n))
    assert np.array_equal(onnxruntime.matmul(codes(5, len(few)), few, onnxruntime.pack(few)).numpy(), exact(codes(5, len(few)), few))


def test_it_computes_with_torch_s_threads(monkeypatch):
    kept, used = torch.get_num_threads(), []
    run = onnxruntime._two_operands
    monkeypatch.setattr(onnxruntime, "_two_operands", lambda *key: used.append(run(*key)) or used[-1])
    a, b = codes(40, 50), codes(50, 30)
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            assert np.array_equal(onnxruntime.matmul(a, b).numpy(), exact(a, b))
    finally:
        torch.set_num_threads(kept)
    assert [session.get_session_options().intra_op_num_threads for session in used] == [1, 2, 1] and used[0] is used[2] is not used[1]


def _in_a_forked_process(a, b, expected):
    assert np.array_equal(int8_matmul(a, b, "onnxruntime").numpy(), expected)


FORKING = """
import multiprocessing
from tests.test_matmul_cpu import *
from tests.test_matmul_cpu import _in_a_forked_process
torch.set_num_threads(2)
a, b = codes(150, 150), codes(150, 150, seed=1)  # small: torch's own threads do not survive a fork, and are not used here
child = multiprocessing.get_context("fork").Process(target=_in_a_forked_process, daemon=True,
                                                    args=(a, b, int8_matmul(a, b, "onnxruntime").numpy()))
child.start()
child.join(30)
assert child.exitcode == 0, child.exitcode
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here")
def test_a_forked_process_computes_alone():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=100,
                          cwd=os.path.dirname(os.path.dirname(__file__)))
    assert done.returncode == 0, done.stderr


def test_without_onnx_runtime(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    why_not = device.why_not_onnxruntime.__wrapped__
    assert why_not() == "ONNX Runtime is not installed"
    monkeypatch.setattr(onnxruntime, "why_not_onnxruntime", why_not)
    with pytest.raises(RuntimeError, match="^ONNX Runtime is not installed: pip install onnxruntime, or use another backend.$"):
        int8_matmul(codes(2, 2), codes(2, 2), "onnxruntime")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert why_not().startswith("ONNX Runtime cannot be imported (")


# The layer


def int8_layer(k=60, n=40, activations="token", backend="onnxruntime"):
    torch.manual_seed(0)
    return Int8Linear.from_float(nn.Linear(k, n), activations, backend=backend)


@pytest.fixture
def packs(monkeypatch):
    """How often weights were packed: a list that grows."""
    made, pack = [], onnxruntime.pack
    monkeypatch.setattr(onnxruntime, "pack", lambda b: made.append(b.shape) or pack(b))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activations", ["token", (0.03, 0), (0.03, -20)])
@pytest.mark.parametrize("rows", [0, 1, 4, 50])
def test_packed_weights_change_no_bit_and_are_packed_once(rows, activations, dtype, packs):
    x = torch.randn(rows, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = int8_layer(activations=activations)
    for _ in range(3):
        assert torch.equal(layer(x), int8_layer(activations=activations, backend="reference")(x))
    assert packs == [(60, 40)]


def test_weights_that_change_are_packed_anew(packs):
    x, layer = torch.randn(3, 60), int8_layer()
    layer(x)
    other = Int8Linear.from_float(nn.Linear(60, 40), backend="onnxruntime")
    for change in (lambda: layer.load_state_dict(other.state_dict()), lambda: layer.load_state_dict(int8_layer().state_dict(), assign=True),
                   lambda: layer.codes.zero_(), lambda: setattr(layer, "codes", other.codes)):
        change()
        plain = copy.deepcopy(layer)
        plain.backend = "reference"
        before = len(packs)
        assert torch.equal(layer(x), plain(x)) and torch.equal(layer(x), plain(x)) and len(packs) == before + 1
    kept = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(kept, 2))
        assert torch.equal(layer(x), plain(x)) and len(packs) == before + 2
    finally:
        torch.set_num_threads(kept)


def test_copies_and_files_hold_the_codes_and_nothing_packed():
    x, layer = torch.randn(3, 60), int8_layer()
    fresh, y = len(pickle.dumps(layer)), layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False),
                   copy.deepcopy(layer).to("meta").to_empty(device="cpu")):
        assert copied._packed is None and set(copied.state_dict()) == {"codes", "scale", "column_sums", "bias", "_extra_state"}
        copied.load_state_dict(layer.state_dict())
        assert torch.equal(copied(x), y)
    assert len(pickle.dumps(layer)) == fresh


def test_a_layer_made_or_moved_in_inference_mode(packs):
    x = torch.randn(3, 60)
    with torch.inference_mode():
        layer = int8_layer()
        y = layer(x)
        layer(x)
    assert packs == [(60, 40)] and torch.equal(y, int8_layer(backend="reference")(x)) and torch.equal(layer(x), y)


def test_a_layer_of_nothing_packs_nothing(packs):
    empty = Int8Linear(torch.zeros(3, 0, dtype=torch.int8), torch.ones(3), torch.ones(3), backend="onnxruntime")
    assert torch.equal(empty(torch.zeros(2, 0)), torch.ones(2, 3)) and not packs


def test_a_long_layer_is_packed_in_parts():
    x, long = torch.randn(2, 40_000), [Int8Linear(codes(3, 40_000), torch.ones(3), backend=name) for name in ("onnxruntime", "reference")]
    assert torch.equal(long[0](x), long[1](x)) and len(long[0]._packed[2]) == 3


# Which one


def test_with_vnni_torch_is_taken(monkeypatch):
    monkeypatch.setattr(device, "why_torch_is_slow", lambda: "")
    monkeypatch.setattr(product, "why_torch_is_slow", lambda: "")
    assert {product.choose("cpu", "auto", shape)[0] for shape in (None, (1, 4096, 4096), (4096, 4096, 4096))} == {"torch"}
    assert product.choose("cpu")[1] == "torch._int_mm computes with this CPU's AVX-512 VNNI or AMX"


def test_without_vnni_onnx_runtime_is_taken_and_float32_for_small_and_thin_products(monkeypatch):
    no_vnni(monkeypatch)
    why = "torch._int_mm is fast with AVX-512 VNNI only, which this CPU lacks"
    assert product.choose("cpu") == product.choose("cpu", "auto", (1024, 1024, 1024)) == ("onnxruntime", why)
    for shape in ((1, 4096, 4096), (4, 4096, 4096), (4096, 4096, 4), (64, 64, 64), (0, 5, 5)):
        assert product.choose("cpu", "auto", shape)[0] == "float32" and product.choose("cpu", "auto", shape)[1].startswith(why)
    assert product.choose("cpu", "auto", (5, 4096, 4096))[0] == product.choose("cpu", "auto", (4096, 4096, 5))[0] == "onnxruntime"
    monkeypatch.setattr(product, "why_not_onnxruntime", lambda: "ONNX Runtime is not installed")
    assert product.choose("cpu") == ("float32", f"{why}, and ONNX Runtime is not installed")


def test_onednn_off_or_limited_is_not_taken(monkeypatch):
    monkeypatch.setattr(device, "_has_vnni", lambda: True)
    monkeypatch.setattr(device, "_onednn_adds_in_32_bits", lambda: False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert device.why_torch_is_slow() == "oneDNN, limited to AVX2, adds products in 16 bits, where they do not fit"
    assert not device.onednn_is_exact() and product.choose("cpu")[0] == "onnxruntime"
    monkeypatch.setattr(device, "_onednn_is_on", lambda: False)
    assert "oneDNN only, which is off" in device.why_torch_is_slow() and device.onednn_is_exact()  # the plain loops are


def test_torch_without_a_onednn_that_adds_wrongly(monkeypatch):
    seen, int_mm = [], torch._int_mm
    monkeypatch.setattr(cpu, "onednn_is_exact", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: seen.append(torch.backends.mkldnn.enabled) or int_mm(a, b))
    a, b = codes(20, 30), codes(30, 10)
    assert np.array_equal(int8_matmul(a, b, "torch").numpy(), exact(a, b)) and seen == [False] and torch.backends.mkldnn.enabled
    assert np.array_equal(int8_matmul(codes(40, 30)[::2], b, "torch").numpy(), exact(codes(40, 30)[::2], b)) and seen[1:] == [False]


@pytest.mark.skipif(bool(device.why_torch_is_slow()), reason="this CPU has no VNNI to be hidden from oneDNN")
def test_a_onednn_limited_to_older_instructions_makes_nothing_wrong():
    code = ("import torch\n"
            "from qlab.matmul import device, int8_matmul, product\n"
            "a = torch.full((40, 3000), 127, dtype=torch.int8)\n"
            "assert not (torch._int_mm(a, a.T) == 3000 * 127**2).all()  # what is to be avoided\n"
            "assert 'limited to AVX2' in device.why_torch_is_slow() and product.choose('cpu')[0] != 'torch'\n"
            "for backend in ('auto', 'torch', 'onnxruntime', 'float32'):\n"
            "    assert (int8_matmul(a, a.T, backend) == 3000 * 127**2).all(), backend\n")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["onnxruntime", "float32"])
def test_a_backend_of_the_cpu_takes_nothing_from_elsewhere(backend):
    a = torch.zeros(2, 2, dtype=torch.int8, device="meta")
    with pytest.raises(RuntimeError, match=f"the operands are on meta, and the backend '{backend}' computes on the CPU: move them, or use"):
        int8_matmul(a, a, backend)


def test_a_compiled_layer_traces_torch_s_own_product(monkeypatch):
    no_vnni(monkeypatch)
    layer, x = int8_layer(backend="auto"), torch.randn(3, 60)
    exported = torch.export.export(layer, (x,))
    assert "_int_mm" in str(exported) and torch.equal(exported.module()(x), int8_layer(backend="reference")(x))


def test_the_doctor_says_which_product_is_taken_and_why(monkeypatch):
    no_vnni(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._backend() == "onnxruntime: torch._int_mm is fast with AVX-512 VNNI only, which this CPU lacks"
    monkeypatch.setattr(product, "why_not_onnxruntime", lambda: "ONNX Runtime is not installed")
    assert doctor._backend().endswith("which this CPU lacks, and ONNX Runtime is not installed")
