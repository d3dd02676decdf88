"""qlab.deploy.onnx: ONNX Runtime against the ONNX project's own reference evaluator, and against qlab's quantizer."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime", reason="pip install qlab[deploy]")
import onnx as onnx_format
from exporter import one_table_of_operators  # noqa: F401 - a fixture of every test here
from onnx.numpy_helper import to_array
from onnx.reference import ReferenceEvaluator

from qlab.deploy import files, onnx
from qlab.deploy.checks import quiet
from qlab.lab import data, machine, zoo
from qlab.nets import ptq
from qlab.nets.fake import FakeQuantize

CALIBRATION = data.calibration(256).images
IMAGES, LABELS = (part[:500] for part in data.load("test"))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 169, 10)).eval()


def reference(path, images):
    """The file as its format defines it, in NumPy."""
    return torch.from_numpy(ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})[0])


def step(path):
    """One code step of the logits."""
    return files.read_description(path).layers[-1]["scale"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def export(net, kind):
        if (net, kind) not in made:
            path = folder / f"{net}-{kind}.onnx"
            made[net, kind] = path, onnx.export(zoo.load(net), path, CALIBRATION, kind)
        return made[net, kind]

    return export


@pytest.mark.parametrize("net", ["cnn", "depthwise", "resnet", "lenet300", "lenet5"])
def test_static_says_what_our_quantizer_says(exported, net):
    path, described = exported(net, "static")
    ours = ptq.quantize(zoo.load(net), CALIBRATION).model
    with torch.no_grad():
        simulated = ours(IMAGES)
    logits = onnx.run(path, IMAGES, threads=1)
    right, ours_right = ((part.argmax(1) == LABELS).sum().item() for part in (logits, simulated))
    assert abs(right - ours_right) <= 4 and right > 430
    assert (logits.argmax(1) == simulated.argmax(1)).float().mean() >= 0.96                 # theirs has weights of 7 bits, ours of 8
    assert described.nbytes == path.stat().st_size < sum(p.numel() for p in zoo.load(net).parameters()) * 4 / 2


@pytest.mark.parametrize("net", ["cnn", "resnet"])
def test_static_computes_what_the_format_defines(exported, net):
    path, _ = exported(net, "static")
    logits, defined = onnx.run(path, IMAGES[:8]), reference(path, IMAGES[:8])
    assert (logits - defined).abs().max() <= 2.01 * step(path)                              # a rounding here and there, in a layer before
    assert logits.abs().max() > 20 * step(path)


def test_float_is_the_network(exported):
    path, _ = exported("depthwise", "float")
    with torch.no_grad():
        torch.testing.assert_close(onnx.run(path, IMAGES), zoo.load("depthwise")(IMAGES), rtol=1e-3, atol=1e-3)


def test_dynamic_is_near_the_network_without_calibration(tmp_path):
    onnx.export(zoo.load("cnn"), tmp_path / "x.onnx", kind="dynamic")
    with torch.no_grad():
        same = onnx.run(tmp_path / "x.onnx", IMAGES).argmax(1) == zoo.load("cnn")(IMAGES).argmax(1)
    assert same.float().mean() > 0.97
    executed = onnx.operators(tmp_path / "x.onnx")
    assert executed["ConvInteger"] == 3 and "Conv" not in executed


def test_codes_and_scales_are_those_of_our_quantizer(exported):
    path, described = exported("cnn", "static-8bit")
    tensors = [to_array(t) for t in onnx_format.load(path).graph.initializer]
    q = ptq.quantize(zoo.load("cnn"), CALIBRATION)
    for name, ours in q.tensors.items():
        theirs = next(t for t in tensors if t.dtype == np.int8 and t.shape == tuple(ours.codes.shape))
        apart = np.abs(theirs.astype(int) - ours.codes.numpy())
        assert apart.max() <= 1 and (apart > 0).mean() < 0.001, name
    scales = [m.scale.item() for m in q.model.modules() if isinstance(m, FakeQuantize)][1:]
    layers = [layer["scale"] for layer in described.layers if layer["operator"] in ("Conv", "Gemm")]
    assert layers == pytest.approx(scales, rel=1e-3)


def test_8_bit_weights_need_vnni(exported):
    abilities = machine.abilities()
    if abilities["architecture"].lower() not in ("x86_64", "amd64") or abilities["avx512_vnni"] or abilities["avx_vnni"]:
        pytest.skip("needs an x86 processor without VNNI")
    paths = [exported("cnn", kind)[0] for kind in ("static-8bit", "static-uint8")]
    saturated, exact = ((onnx.run(path, IMAGES[:8]) - reference(path, IMAGES[:8])).abs().max() / step(path) for path in paths)
    assert saturated > 5 and exact <= 2.01


def test_7_bit_weights_fit_16_bits(exported):
    """Two products of uint8 and these weights stay in int16, whatever the activations."""
    for t in map(to_array, onnx_format.load(exported("cnn", "static")[0]).graph.initializer):
        if t.dtype == np.int8 and t.ndim > 1:
            assert np.abs(t.astype(int)).max() * 255 * 2 < 2**15


def test_integer_kernels_run(exported):
    executed = onnx.operators(exported("cnn", "static")[0])
    assert executed["QLinearConv"] == 3 and executed["QGemm"] == 2
    assert not {"Conv", "Gemm", "MatMul", "FusedConv"} & set(executed)
    assert "QLinearConv" not in onnx.operators(exported("cnn", "float")[0])


def test_qoperator_names_its_kernels_and_qdq_does_not(exported):
    names = {kind: {n.op_type for n in onnx_format.load(exported("cnn", kind)[0]).graph.node} for kind in ("static", "qoperator-int8")}
    assert "Conv" in names["static"] and "QLinearConv" not in names["static"]
    assert "QLinearConv" in names["qoperator-int8"] and "Conv" not in names["qoperator-int8"]
    logits = onnx.run(exported("cnn", "qoperator-int8")[0], IMAGES)
    assert (logits.argmax(1) == onnx.run(exported("cnn", "qdq-int8")[0], IMAGES).argmax(1)).float().mean() > 0.97


def calibrated(path, method, **options):
    from onnxruntime.quantization import calibrate
    with quiet():
        calibrator = calibrate.create_calibrator(str(path), None, str(path) + ".augmented", getattr(calibrate.CalibrationMethod, method),
                                                 extra_options=options)
        calibrator.collect_data(onnx.reader([CALIBRATION[:64]]))
        found = calibrator.compute_data()
    return {name: tuple(float(np.ravel(v)[0]) for v in found[name].range_value) for name in found.keys()}


def test_entropy_as_it_is_called_is_minmax_and_percentile_is_not(tmp_path):
    path = tmp_path / "float.onnx"
    onnx.export(small(), path, kind="float")
    minmax = calibrated(path, "MinMax")
    entropy = calibrated(path, "Entropy")
    assert {name: pytest.approx(ends, rel=1e-6) for name, ends in minmax.items()} == entropy  # 128 bins, 128 kept: no other candidate
    real = calibrated(path, "Entropy", num_bins=512)
    assert any(abs(real[name][1] - minmax[name][1]) > 0.01 * minmax[name][1] for name in minmax)
    percentile = calibrated(path, "Percentile", percentile=99.0)
    assert all(minmax[n][0] <= percentile[n][0] and percentile[n][1] <= minmax[n][1] for n in minmax)
    assert any(percentile[n][1] < 0.95 * minmax[n][1] for n in minmax)


def test_percentile_is_offered(tmp_path):
    scales = [onnx.export(small(), tmp_path / "x.onnx", CALIBRATION, ranges=ranges).layers[0]["scale"] for ranges in onnx.RANGES]
    assert scales[1] <= scales[0]


def test_one_file_with_its_description_and_no_debris(tmp_path, monkeypatch):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    described = onnx.export(small(), out / "x.onnx", CALIBRATION, name="small")
    assert sorted(p.name for p in out.iterdir()) == ["x.onnx", "x.onnx.json"] and not list(scratch.iterdir())
    assert described == files.read_description(out / "x.onnx")
    assert described.network == "small" and described.input.shape == (1, 28, 28) and described.output.shape == (10,)
    assert [layer["operator"] for layer in described.layers] == ["Conv", "Reshape", "Gemm"]  # no batch norm; the ReLU is the range's end
    assert b"site-packages" not in (out / "x.onnx").read_bytes() and b"/qlab/" not in (out / "x.onnx").read_bytes()


def test_nothing_is_printed(tmp_path):
    code = ("import torch; from torch import nn; from qlab.deploy import onnx\n"
            "net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 676, 10))\n"
            "for kind in ('static', 'dynamic', 'qoperator-int8'):\n"
            f"    onnx.export(net, {str(tmp_path / 'x.onnx')!r}, torch.rand(8, 1, 28, 28), kind)\n"
            f"    onnx.run({str(tmp_path / 'x.onnx')!r}, torch.rand(2, 1, 28, 28))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_batch_any_or_fixed(tmp_path):
    onnx.export(small(), tmp_path / "any.onnx", CALIBRATION)
    described = onnx.export(small(), tmp_path / "two.onnx", CALIBRATION, batch=2)
    assert described.format == "onnx, static, batch 2"
    whole = onnx.run(tmp_path / "any.onnx", IMAGES[:7])
    torch.testing.assert_close(torch.cat([onnx.run(tmp_path / "any.onnx", x[None]) for x in IMAGES[:7]]), whole)
    torch.testing.assert_close(onnx.run(tmp_path / "two.onnx", IMAGES[:2]), whole[:2])
    with pytest.raises(ValueError, match=r"must have \(2, 1, 28, 28\)"):
        onnx.run(tmp_path / "two.onnx", IMAGES[:3])


def test_threads_and_repeated_exports_give_the_same_bits(tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    first, second = (onnx.export(small(), path, CALIBRATION) for path in paths)
    logits = onnx.run(paths[0], IMAGES, threads=1)
    assert torch.equal(logits, onnx.run(paths[0], IMAGES, threads=2))
    assert torch.equal(logits, onnx.run(paths[1], IMAGES))
    assert torch.equal(logits, onnx.run(paths[0], IMAGES.numpy().astype(np.float64)))
    assert first.layers == second.layers


@pytest.mark.parametrize("options, error, said", [
    ({"kind": "int4"}, ValueError, "kind is 'int4', and must be one of float, static"),
    ({"ranges": "entropy"}, ValueError, "must be one of minmax, percentile"),
    ({"batch": 0}, ValueError, "batch is 0"),
    ({"calibration": None}, ValueError, "no calibration images"),
    ({"calibration": torch.zeros(0, 1, 28, 28)}, ValueError, "no calibration images"),
    ({"calibration": torch.zeros(4, 28, 28)}, ValueError, r"images have shape \(4, 28, 28\), and must have \(n, 1, 28, 28\)"),
    ({"calibration": torch.full((4, 1, 28, 28), float("nan"))}, ValueError, "NaN"),
    ({"image_shape": (1, 30, 30)}, ValueError, "image_shape is .1, 30, 30., which the network cannot take"),
    ({"model": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(0))}, ValueError, "gives torch.float32 of shape .5408,. for 2 images"),
    ({"model": "small"}, TypeError, "must be a float torch.nn.Module"),
])
def test_refused_before_anything_is_written(tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        onnx.export(**{"model": small(), "path": tmp_path / "x.onnx", "calibration": CALIBRATION[:8]} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["float", "static"])
def test_a_translation_that_computes_something_else_is_refused(tmp_path, kind):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(2, 2)).eval()
    with pytest.raises(ValueError, match="computes something else, off by .* lacks divisor_override"):
        onnx.export(net, tmp_path / "net.onnx", torch.rand(8, 1, 4, 4), kind, image_shape=(1, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_shape_that_decides_is_refused(tmp_path):
    class Decides(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.shape[0] > 3 else x.flatten(1) * 2

    with pytest.raises(ValueError, match="cannot be exported for any number of images: its forward decides by their number"):
        onnx.export(Decides(), tmp_path / "x.onnx", CALIBRATION[:8])


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_and_missing_places_leave_nothing_behind(tmp_path, monkeypatch):
    old = tmp_path / "x.onnx"
    onnx.export(small(), old, kind="float")
    before = old.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="cannot write .*x.onnx .No space left"):
            onnx.export(small(1), old, kind="float")
    assert old.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.json"]
    with pytest.raises(OSError, match="cannot write .*No such file"):
        onnx.export(small(), tmp_path / "nowhere" / "x.onnx", kind="float")


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "x.onnx"
    onnx.export(small(), path, CALIBRATION)
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="sha256"):
        onnx.run(path, IMAGES[:2])
    files.beside(path).unlink()
    path.write_bytes(content[:999])
    with pytest.raises(ValueError, match="damaged, or no network that ONNX Runtime can read"):
        onnx.run(path, IMAGES[:2])
    with pytest.raises(FileNotFoundError, match="write it with export first"):
        onnx.run(tmp_path / "none.onnx", IMAGES[:2])
    path.write_bytes(content)                                                               # without its description it still runs
    assert onnx.run(path, IMAGES[:2]).shape == (2, 10)


@pytest.mark.parametrize("images, error, said", [
    (torch.zeros(2, 28, 28), ValueError, r"shape \(2, 28, 28\), and must have \(n, 1, 28, 28\)"),
    (torch.zeros(0, 1, 28, 28), ValueError, "shape .0, 1, 28, 28."),
    (torch.zeros(2, 1, 28, 28, dtype=torch.int8), TypeError, "images are torch.int8, and must be floating point"),
])
def test_wrong_images(exported, images, error, said):
    with pytest.raises(error, match=said):
        onnx.run(exported("cnn", "static")[0], images)


def test_wrong_threads(exported):
    with pytest.raises(ValueError, match="threads is 0"):
        onnx.run(exported("cnn", "static")[0], IMAGES[:2], threads=0)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_library(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"^{library} is not installed: \.venv/bin/pip install -e '\.\[deploy\]' "):
        onnx.export(small(), tmp_path / "x.onnx", CALIBRATION)
    assert not list(tmp_path.iterdir())


def test_compare_measures_every_kind():
    kinds = ("float", "static", "dynamic")
    rows = onnx.compare(small(), CALIBRATION[:64], (IMAGES[:50], LABELS[:50]), kinds, threads=(1,), batches=(1, 10), repeats=2)
    assert [row.name for row in rows] == list(kinds)
    assert all(len(row.right) == 50 and set(row.ms) == {(1, 1), (1, 10)} and min(row.ms.values()) > 0 for row in rows)
    assert rows[1].nbytes < rows[0].nbytes and "QLinearConv" in rows[1].operators
