"""packing and QTensor: bytes counted against the file, everything read back, damaged and foreign files refused."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qlab import quant
from qlab.quant import kmeans, linear, log, packing
from qlab.quant.qtensor import unpacked

X = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
QUANTIZERS = {
    "minmax": lambda b, **k: linear.quantize(X, b, **k), "affine": lambda b, **k: linear.quantize(X, b, "affine", **k),
    "symmetric": lambda b, **k: linear.quantize(X, b, "symmetric", **k), "log": lambda b, **k: log.quantize(X, b, **k),
    "kmeans": lambda b, **k: kmeans.quantize(X, b, **k), "sign_magnitude": lambda b, **k: log.sign_magnitude(X, min(b, 15)),
}


@settings(deadline=None)
@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=70))
def test_packing_is_the_bit_stream_and_back(bits, values):
    codes = [v % 2**bits for v in values]
    stream = sum(code << (i * bits) for i, code in enumerate(codes))                        # one big little-endian integer
    expected = stream.to_bytes(packing.packed_size(len(codes), bits), "little")
    packed = packing.pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert bytes(packed.tolist()) == expected
    assert packing.unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("call, error, said", [
    (lambda: packing.pack(torch.tensor([4]), 2), ValueError, "must run from 0 to 3"),
    (lambda: packing.pack(torch.tensor([-1]), 2), ValueError, "codes run from -1"),
    (lambda: packing.pack(torch.tensor([0.5]), 2), TypeError, "must hold integers"),
    (lambda: packing.pack(torch.tensor([1]), 0), ValueError, "bits is 0"),
    (lambda: packing.unpack(torch.zeros(3, dtype=torch.uint8), 4, 3), ValueError, "must be the 2 uint8 bytes"),
    (lambda: packing.unpack(torch.zeros(2), 4, 3), ValueError, "must be the 2 uint8 bytes"),
])
def test_packing_errors(call, error, said):
    with pytest.raises(error) as failure:
        call()
    assert said in str(failure.value)


@pytest.mark.parametrize("scheme", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 11, 16])
@pytest.mark.parametrize("layout", [{}, {"axis": 0}, {"axis": 1, "group_size": 4}])
def test_saved_and_loaded(tmp_path, scheme, bits, layout):
    if scheme == "kmeans" and bits > 8:
        bits = 9
    q = QUANTIZERS[scheme](bits, **layout)
    path = tmp_path / "q.safetensors"
    q.save(path)
    again = quant.load(path)
    assert torch.equal(again.codes, q.codes) and again.codes.dtype == q.codes.dtype
    assert torch.equal(again.dequantize(), q.dequantize())
    assert (again.bits, again.scheme, again.axis, again.group_size, again.nbytes) == (q.bits, q.scheme, q.axis, q.group_size, q.nbytes)
    content = path.read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == q.nbytes             # nbytes is the file less its header
    assert list(tmp_path.iterdir()) == [path]


def test_nbytes_by_hand():
    x = torch.randn(64, 100)
    assert linear.quantize(x, 4, "symmetric").nbytes == 3200 + 4
    assert linear.quantize(x, 4, "affine", axis=0).nbytes == 3200 + 64 * 4 + 32             # zero-points are packed as codes are
    assert linear.quantize(x, 3, "symmetric", axis=0, group_size=25).nbytes == 2400 + 256 * 4
    assert log.quantize(x, 4).nbytes == 3200 + 4
    assert kmeans.quantize(x, 4).nbytes == 3200 + 16 * 4
    assert kmeans.quantize(torch.randn(8, 9), 4, axis=0).nbytes == 36 + 8 * 9 * 4           # more than half of the weights' own 288


@pytest.mark.parametrize("scheme", QUANTIZERS)
def test_levels_are_what_the_codes_decode_to(scheme):
    q = QUANTIZERS[scheme](4)
    levels = q.levels()
    assert (levels.diff() > 0).all() and torch.isin(q.dequantize(), levels).all()
    if scheme != "sign_magnitude":
        assert torch.equal(QUANTIZERS[scheme](4, axis=0).levels()[3], type(q)(**(vars(q_row(scheme)))).levels())


def q_row(scheme):
    row = X[3]
    return {"minmax": lambda: linear.quantize(row, 4), "affine": lambda: linear.quantize(row, 4, "affine"),
            "symmetric": lambda: linear.quantize(row, 4, "symmetric"), "log": lambda: log.quantize(row, 4),
            "kmeans": lambda: kmeans.quantize(row, 4)}[scheme]()


def damaged(path):
    content = path.read_bytes()
    yield b"", "not a safetensors file"
    yield content[:-1], "not a safetensors file"
    yield content[:20], "not a safetensors file"
    yield b"\xff" * 64, "not a safetensors file"
    yield content.replace(b'\\"bits\\": 4', b'\\"bits\\": 5'), "damaged QTensor"
    yield content.replace(b"symmetric", b"symmatric"), "damaged QTensor"
    yield content.replace(b"[12, 32]", b"[12, 33]"), "damaged QTensor"
    yield content.replace(b"float32", b"float99"), "damaged QTensor"


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "q.safetensors"
    linear.quantize(X, 4, "symmetric").save(path)
    whole = path.read_bytes()
    for content, said in damaged(path):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            quant.load(path)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_foreign_and_missing_files(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match="holds no qlab QTensor"):
        quant.load(tmp_path / "theirs.safetensors")
    with pytest.raises(FileNotFoundError, match="cannot read"):
        quant.load(tmp_path / "missing.safetensors")


def test_a_code_outside_the_codebook_is_damage(tmp_path):
    q = kmeans.quantize(torch.tensor([1.0, 2.0, 3.0]), 2)                                   # three centroids, codes of two bits
    broken = type(q)(**(vars(q) | {"codes": torch.tensor([0, 1, 3], dtype=torch.uint8)}))
    broken.save(tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="outside the codebook"):
        quant.load(tmp_path / "q.safetensors")


def test_a_place_that_cannot_be_written_keeps_what_was_there(tmp_path):
    q = linear.quantize(X, 4)
    with pytest.raises(FileNotFoundError, match="cannot write"):
        q.save(tmp_path / "nowhere" / "q.safetensors")
    path = tmp_path / "q.safetensors"
    q.save(path)
    before = path.read_bytes()
    os.chmod(tmp_path, 0o555)
    user = os.geteuid() if hasattr(os, "geteuid") else None
    try:
        if user == 0:
            os.seteuid(65534)                                                               # root may write anywhere: step down
        with pytest.raises(PermissionError, match="cannot write"):
            linear.quantize(X, 8).save(path)
    finally:
        if user == 0:
            os.seteuid(0)
        os.chmod(tmp_path, 0o755)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_numpy_reads_the_codes_without_qlab(tmp_path):
    """The packed codes are nothing but bits: NumPy decodes a 4-bit symmetric file by itself."""
    from safetensors.numpy import load_file
    q = linear.quantize(X, 4, "symmetric")
    q.save(tmp_path / "q.safetensors")
    raw = load_file(tmp_path / "q.safetensors")
    nibbles = np.stack([raw["codes"] & 15, raw["codes"] >> 4], axis=1).reshape(-1).astype(int) - 7
    np.testing.assert_array_equal((nibbles * raw["scale"]).astype(np.float32).reshape(12, 32), q.dequantize().numpy())


@pytest.mark.parametrize("scheme", QUANTIZERS)
@pytest.mark.parametrize("layout", [{}, {"axis": 1, "group_size": 4}])
def test_to_moves_every_tensor_and_nothing_else(tmp_path, scheme, layout):
    q = QUANTIZERS[scheme](4, **layout)
    for device in ("meta", torch.device("meta")):
        moved = q.to(device)
        for name, value in vars(q).items():
            found = getattr(moved, name)
            if isinstance(value, torch.Tensor):
                assert (found.device.type, found.dtype, found.shape) == ("meta", value.dtype, value.shape), name
                assert value.device.type == "cpu"
            else:
                assert found == value, name
    assert moved.nbytes == q.nbytes
    same = q.to("cpu")
    assert same.equal(q) and torch.equal(same.dequantize(), q.dequantize())
    with pytest.raises(ValueError, match="on the meta device, and have no values to save"):
        moved.save(tmp_path / "q")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", [torch.float16, "nonsense", None, 1.5, "cuda:99", "cpu:x"])
def test_to_refuses_what_is_no_device(device):
    with pytest.raises(ValueError, match="^device is .*, and must be one that this machine has, 'cpu' for example") as error:
        linear.quantize(X, 4).to(device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantizer, change, said", [
    (lambda: log.quantize(X, 4), {"base": None}, "base is None in scheme log"),
    (lambda: log.quantize(X, 4), {"base": 1.0}, "base is 1.0"),
    (lambda: linear.quantize(X, 4), {"base": 2.0}, "base is 2.0 in scheme minmax"),
    (lambda: linear.quantize(X, 4), {"scale": torch.tensor(float("nan"))}, "scale is not finite"),
    (lambda: linear.quantize(X, 4), {"scale": torch.tensor(1)}, "scale is torch.int64"),
    (lambda: linear.quantize(X, 4), {"zero_point": torch.zeros(2)}, r"zero_point has shape \(2,\)"),
    (lambda: linear.quantize(X, 4), {"codebook": torch.zeros(16)}, "it holds codebook, codes, scale, zero_point, and scheme minmax has"),
    (lambda: linear.quantize(X, 9), {"scheme": "kmeans"}, "it holds codes, scale, zero_point"),
    (lambda: linear.quantize(X, 4), {"group_size": 5}, "group_size is 5"), (lambda: linear.quantize(X, 4), {"axis": 7}, "axis is 7"),
])
def test_what_a_quantizer_never_returns_is_damage(tmp_path, quantizer, change, said):
    q = type(quantizer())(**(vars(quantizer()) | change))
    q.save(tmp_path / "q")
    with pytest.raises(ValueError, match=f"q is a damaged QTensor file .*{said}"):
        quant.load(tmp_path / "q")


def test_a_code_outside_a_symmetric_range_is_damage():
    fields, tensors = linear.quantize(X, 4, "symmetric").packed()
    tensors["codes"][0] = 255                                                               # two codes of 15 - 7 = 8, and 7 is the largest
    with pytest.raises(ValueError, match="a code is out of the range of 4 bits"):
        unpacked(fields, tensors)
    fields, tensors = linear.quantize(X, 8).packed()
    with pytest.raises(ValueError, match="or of torch.int8"):
        unpacked(fields | {"codes_dtype": "int8"}, tensors)
