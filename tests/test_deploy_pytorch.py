"""qlab.deploy.pytorch: the document's 5.2, torchao and pt2e, against qlab's quantizer; and what a file may not hold."""

import errno
import io
import os
import pickle
import platform
import shutil
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from torch import nn

pytest.importorskip("torchao", reason="pip install qlab[deploy]")

from qlab.deploy import files, pt2, pytorch, side_by_side
from qlab.lab import data, zoo
from qlab.lab.measure import size_bytes
from qlab.nets import ptq
from qlab.nets.fake import FakeQuantize

CALIBRATION = data.calibration(256).images
IMAGES, LABELS = (part[:500] for part in data.load("test"))
LINEAR_ONLY = ("document", "weight-only", "dynamic")


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 169, 10)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("pytorch"), {}

    def export(net, kind):
        if (net, kind) not in made:
            path = folder / f"{net}-{kind}.pt2"
            made[net, kind] = path, pytorch.export(zoo.load(net), path, CALIBRATION, kind)
        return made[net, kind]

    return export


# What each kind does to a network


@pytest.mark.parametrize("net", ["cnn", "depthwise", "resnet", "lenet300", "lenet5"])
def test_static_says_what_our_quantizer_says(exported, net):
    path, described = exported(net, "static")
    with torch.no_grad():
        simulated = ptq.quantize(zoo.load(net), CALIBRATION).model(IMAGES)
    logits = pytorch.run(path, IMAGES)
    right, ours_right = ((part.argmax(1) == LABELS).sum().item() for part in (logits, simulated))
    assert abs(right - ours_right) <= 4 and right > 430
    assert (logits.argmax(1) == simulated.argmax(1)).float().mean() >= 0.98
    assert logits.dtype == torch.float32 and described.nbytes == path.stat().st_size


def test_static_has_the_codes_and_scales_of_the_formula(exported):
    """Weights: torchao takes 127.5 steps to the largest, we 127, and no step below 2**-12. Activations: at most the range seen."""
    path, _ = exported("cnn", "static-8bit")
    program, network = torch.export.load(path), zoo.load("cnn")
    codes = {tuple(t.shape): t for t in program.state_dict.values() if t.dtype == torch.int8}
    for name in ("conv1", "conv2", "conv3", "fc1", "fc2"):
        weight = network.get_submodule(name).weight.detach()
        scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / 127.5
        scale = scale.clamp(min=2**-12)
        assert (codes[tuple(weight.shape)] - weight / scale).abs().max() <= 0.5 + 1e-4, name  # the largest weight is at 127.5: a tie
    # A histogram chooses the ranges, so they may be narrower than minmax; all pixels are kept, and the logits stay floats.
    scales = list(dict.fromkeys(node.args[1] for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)))
    minmax = [m.scale.item() for m in ptq.quantize(network, CALIBRATION).model.modules() if isinstance(m, FakeQuantize)][:-1]
    assert scales[0] == pytest.approx(minmax[0], rel=1e-3) and len(scales) == len(minmax)
    assert all(0.5 * full <= scale <= 1.001 * full for scale, full in zip(scales, minmax))
    # All weights are codes: no float weight was left behind.
    assert not [name for name, t in program.state_dict.items() if t.dtype == torch.float32 and t.dim() > 1]


def test_float_is_the_network(exported):
    with torch.no_grad():
        torch.testing.assert_close(pytorch.run(exported("depthwise", "float")[0], IMAGES), zoo.load("depthwise")(IMAGES),
                                   rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", LINEAR_ONLY)
def test_linear_only_leaves_a_convolutional_network_large(exported, kind):
    """Against the true bytes: a network of Linear layers shrinks to less than a third, the depthwise one hardly at all."""
    shrunk = {net: exported(net, kind)[0].stat().st_size / exported(net, "float")[0].stat().st_size for net in ("lenet300", "depthwise")}
    assert shrunk["lenet300"] < 1 / 3 and shrunk["depthwise"] > 0.85
    net = zoo.load("depthwise")
    in_linear = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear)) * 4
    assert in_linear < 0.02 * size_bytes(net)                                               # this is why


@pytest.mark.parametrize("kind", LINEAR_ONLY)
def test_linear_only_keeps_what_the_network_says(exported, kind):
    with torch.no_grad():
        expected = zoo.load("lenet300")(IMAGES).argmax(1)
    assert (pytorch.run(exported("lenet300", kind)[0], IMAGES, trust=True).argmax(1) == expected).float().mean() > 0.97


def test_weight_only_by_hand(tmp_path):
    """Codes of the weights by the formula, decoded, in a float product."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    pytorch.export(net, tmp_path / "x.pt2", kind="weight-only")
    weight = net[1].weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    codes = torch.export.load(tmp_path / "x.pt2").state_dict["1.parametrizations.weight.original0"]
    assert (codes - weight / scale).abs().max() <= 0.5 + 1e-4
    expected = IMAGES[:20].flatten(1) @ (codes * scale).T + net[1].bias.detach()
    torch.testing.assert_close(pytorch.run(tmp_path / "x.pt2", IMAGES[:20]), expected, rtol=1e-4, atol=1e-4)


def test_dynamic_multiplies_integers(exported):
    assert pytorch.operators(exported("cnn", "dynamic")[0])["aten._int_mm.default"] == 2
    assert "aten._int_mm.default" not in pytorch.operators(exported("cnn", "weight-only")[0])
    static = pytorch.operators(exported("cnn", "static")[0])                                # convolution after decoding: a simulation
    assert static["aten.conv2d.default"] == 3 and static["quantized_decomposed.dequantize_per_tensor.default"] == 9


def test_7_bit_activations_fit_16_bits(exported):
    ends = {kind: {tuple(n.args[3:5]) for n in torch.export.load(exported("cnn", kind)[0]).graph.nodes
                   if "quantize_per_tensor" in str(n.target)} for kind in ("static", "static-8bit")}
    assert ends == {"static": {(0, 127)}, "static-8bit": {(0, 255)}}
    assert 2 * 127 * 128 < 2**15 < 2 * 255 * 127


# Layers that run twice, and networks that write on what they get


class Basic(nn.Module):
    """The block of a ResNet 18, as torchvision writes it: one ReLU that runs twice, over its input."""

    def __init__(self, into, out, stride=1, inplace=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace)
        self.down = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """The block of a ResNet 50: its ReLU runs three times."""

    def __init__(self, width, inner):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3, self.relu = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + x)


class Twice(nn.Module):
    """A convolution, a pooling and a linear layer that run twice; a name that a second call's copy might take."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv_1_again, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU6(), nn.AvgPool2d(2, 1)
        self.square, self.last = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.pool(self.pool(self.conv_1_again(self.conv(torch.relu(self.conv(x))))))
        x = x.flatten(1)
        return self.last(self.square(self.square(x)) + x)


class Over(nn.Module):
    """A sum that is written over the images, which another layer reads afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 5)

    def forward(self, x):
        y = self.b(x)
        x += self.a(x)
        return self.last((x + y).flatten(1))


class Odd(nn.Module):
    """Sums written in three ways, a padding that is a word, a layer that nobody reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=how, dilation=d) for how, d in (("same", 1), ("same", 2), (1, 1)))
        self.unread, self.last = nn.Conv2d(3, 4, 1, padding="valid"), nn.Linear(48, 5)

    def forward(self, x):
        y = torch.relu(torch.add(self.a(x), x))
        y = torch.relu(self.b(y) + x)
        torch.relu(self.unread(y))
        return self.last(self.c(y).add(y).relu().flatten(1))


def head(width):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)


HANDED_ON = {
    "basic": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Basic(4, 4), Basic(4, 6, stride=2), *head(6)),
    "basic, not in place": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Basic(4, 4, inplace=False), *head(4)),
    "bottleneck": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Bottleneck(8, 4), Bottleneck(8, 4), *head(8)),
    "twice": Twice, "odd": Odd,
    "images in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)),
    "images written over": Over,
}


@pytest.mark.parametrize("name, kind", [
    *((name, "static") for name in HANDED_ON),
    *((name, kind) for name in ("twice", "images in place", "images written over") for kind in pytorch.KINDS if kind != "static"),
])
def test_layers_that_run_twice_and_nothing_given_is_changed(name, kind, tmp_path):
    """Against the float network, within a few 255ths of its range of logits. Only the static kinds rewrite the graph they are given."""
    torch.manual_seed(0)
    net = HANDED_ON[name]()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2), nn.init.uniform_(norm.weight, 0.5, 1.5)
    net.eval()
    images = torch.randn(128, 3, 4, 4)
    given, state = images.clone(), {key: value.clone() for key, value in net.state_dict().items()}
    pytorch.export(net, tmp_path / "x.pt2", given, kind, image_shape=(3, 4, 4))
    assert torch.equal(given, images) and all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        exact = net(images.clone())
    run = pytorch.load(tmp_path / "x.pt2", trust=True)
    logits, of_array = run(given), run(given.numpy())
    assert torch.equal(given, images) and torch.equal(logits, of_array)
    assert (logits - exact).abs().max() <= (0 if kind == "float" else 8) / 255 * (exact.max() - exact.min()) + 1e-5


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_a_padding_with_more_on_one_side_is_refused_by_name(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, (3, 2), padding="same"), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match="^0 pads by 'same' with more on one side"):
        pytorch.export(net, tmp_path / "x.pt2", torch.rand(8, 1, 4, 4), image_shape=(1, 4, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["float", "document", "static"])
def test_logits_are_not_the_images(kind, tmp_path):
    pytorch.export(nn.Flatten(), tmp_path / "x.pt2", torch.rand(8, 1, 2, 2), kind, image_shape=(1, 2, 2))
    images = torch.rand(3, 1, 2, 2)
    kept = images.clone()
    pytorch.run(tmp_path / "x.pt2", images, trust=True).zero_()
    assert torch.equal(images, kept)


# The document's listing, and what has become of it


def test_the_documents_listing_as_it_is_written(tmp_path):
    model = ptq.fold_batch_norm(zoo.load("cnn"))
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(tmp_path / "model.pth")
    model = torch.load(tmp_path / "model.pth", weights_only=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        quantized = torch.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert any(issubclass(w.category, DeprecationWarning) and "torchao" in str(w.message) for w in warned)
    path = tmp_path / "model_quantized.pth"
    pytorch.export(model, path, kind="document")
    with torch.no_grad():
        assert torch.equal(pytorch.run(path, IMAGES[:20], trust=True), quantized(IMAGES[:20]))
    assert pytorch.operators(path)["DynamicQuantizedLinear"] == 2 and pytorch.operators(path)["Conv2d"] == 3


def test_a_pickle_needs_trust(exported):
    with pytest.raises(ValueError, match="is a pickled model: unpickling runs whatever code"):
        pytorch.run(exported("cnn", "document")[0], IMAGES[:2])


# What a file may not hold


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small network's file, which every change below is made to a copy of."""
    path = tmp_path_factory.mktemp("written") / "x.pt2"
    pytorch.export(small(), path, CALIBRATION[:8])
    return path


class Evil:
    """Unpickling it makes a folder: a harmless stand-in for anything else."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def changed(path, out, member, change):
    """A copy of an archive in which the content of one member is another."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        found = [name for name in old.namelist() if member in name]
        assert len(found) == 1
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name in found else old.read(name))
    return out


def test_a_pickle_inside_a_pt2_is_refused(written, tmp_path):
    content = io.BytesIO()
    torch.save(((Evil(tmp_path / "made"),), {}), content)
    evil = changed(written, tmp_path / "evil.pt2", "sample_inputs", lambda _: content.getvalue())
    with pytest.raises(ValueError, match="holds a pickled object, which would run on loading"):
        pytorch.run(evil, IMAGES[:2])
    assert not (tmp_path / "made").exists()
    try:
        torch.export.load(evil)
    except Exception:  # noqa: BLE001 - by then it is too late
        pass
    assert (tmp_path / "made").exists()                                                     # torch's own reader runs it


@pytest.mark.parametrize("member, old, new, said", [
    ("models/", b'"guards_code": []', b'"guards_code": ["print(1)"]', "a guard in Python"),
    ("models/", b'"torch.ops.aten.relu.default"', b'"torch.os.system"', "a call of torch.os.system"),
    ("models/", b'"torch.ops.aten.relu.default"', b'"torch.ops.load_library"', "a call of torch.ops.load_library"),
    ("models/", b"Symbol('", b"__import__('os').getcwd() or Symbol('", "a size expression"),
    ("model_weights_config", b'"use_pickle": false', b'"use_pickle": true', "a pickled tensor or object"),
])
def test_other_code_inside_a_pt2_is_refused(written, tmp_path, member, old, new, said):
    def change(content):
        assert old in content
        return content.replace(old, new)

    with pytest.raises(ValueError, match=f"holds {said}, which would run on loading"):
        pytorch.run(changed(written, tmp_path / "evil.pt2", member, change), IMAGES[:2])


def test_what_torch_writes_passes(exported):
    for kind in set(pytorch.KINDS) - {"document"}:
        path = exported("cnn", kind)[0]
        assert pt2.refuse_code(path.read_bytes(), path) is None


# Files, errors, threads


def test_one_file_with_its_description_and_no_notes(tmp_path):
    for kind in pytorch.KINDS:
        out = tmp_path / kind
        out.mkdir()
        described = pytorch.export(small(), out / "x.pt2", CALIBRATION[:8], kind, name="small")
        assert sorted(p.name for p in out.iterdir()) == ["x.pt2", "x.pt2.json"] and described == files.read_description(out / "x.pt2")
        assert described.network == "small" and described.input.shape == (1, 28, 28) and described.output.shape == (10,)
        content = (out / "x.pt2").read_bytes()
        assert b"site-packages" not in content and b"/qlab/" not in content, kind


def test_another_process_prints_nothing_and_gets_the_same_bits(exported, tmp_path):
    code = ("import torch; from torch import nn; from qlab.deploy import pytorch\n"
            "net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 169, 10)).eval()\n"
            "torch.set_num_threads(1); x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))\n")
    paths = {kind: exported("cnn", kind)[0] for kind in ("static", "dynamic")}
    for kind, path in paths.items():
        code += (f"torch.save(pytorch.run({str(path)!r}, x), {str(tmp_path / kind)!r})\n"
                 f"pytorch.export(net, {str(tmp_path / 'x.pt2')!r}, x, {kind!r})\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for kind, path in paths.items():
        assert torch.equal(torch.load(tmp_path / kind), pytorch.run(path, x, threads=1))


@pytest.mark.parametrize("options, error, said", [
    ({"kind": "int4"}, ValueError, "kind is 'int4', and must be one of float, document"),
    ({"calibration": None}, ValueError, "no calibration images"),
    ({"calibration": torch.zeros(4, 28, 28)}, ValueError, r"images have shape \(4, 28, 28\), and must have \(n, 1, 28, 28\)"),
    ({"image_shape": (1, 30, 30)}, ValueError, "image_shape is .1, 30, 30., which the network cannot take"),
    ({"model": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(0))}, ValueError, "gives torch.float32 of shape .5408,. for 2 images"),
    ({"model": "small"}, TypeError, "must be a float torch.nn.Module"),
])
def test_refused_before_anything_is_written(tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        pytorch.export(**{"model": small(), "path": tmp_path / "x.pt2", "calibration": CALIBRATION[:8]} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["float", "document"])
def test_a_full_place_leaves_nothing_behind(tmp_path, monkeypatch, kind):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*x.pt2 .No space left"):
        pytorch.export(small(), tmp_path / "x.pt2", kind=kind)
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files(written, tmp_path):
    path = shutil.copy(written, tmp_path / "x.pt2")
    shutil.copy(files.beside(written), files.beside(path))
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(ValueError, match="sha256"):
        pytorch.run(path, IMAGES[:2])
    files.beside(path).unlink()
    for cut in (b"", content[:999], b"no archive"):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="damaged, or no file of torch"):
            pytorch.run(path, IMAGES[:2])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has no description beside it"):
        pytorch.operators(path)
    assert pytorch.run(path, IMAGES[:2]).shape == (2, 10)                                   # without its description it still runs
    with pytest.raises(FileNotFoundError, match="write it with export first"):
        pytorch.run(tmp_path / "none.pt2", IMAGES[:2])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/y", "z")
    with pytest.raises(ValueError, match="damaged, or no network that torch can load|holds y"):
        pytorch.run(path, IMAGES[:2])


@pytest.mark.parametrize("images, error, said", [
    (torch.zeros(2, 28, 28), ValueError, r"shape \(2, 28, 28\), and must have \(n, 1, 28, 28\)"),
    (torch.zeros(2, 1, 28, 28, dtype=torch.int8), TypeError, "images are torch.int8, and must be floating point"),
])
def test_wrong_images(exported, images, error, said):
    with pytest.raises(error, match=said):
        pytorch.run(exported("cnn", "float")[0], images)


def test_threads_are_given_back(exported):
    before = torch.get_num_threads()
    assert pytorch.run(exported("cnn", "float")[0], IMAGES[:1], threads=before + 1).shape == (1, 10)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads is -1"):
        pytorch.run(exported("cnn", "float")[0], IMAGES[:1], threads=-1)


def test_torchao_missing(tmp_path, monkeypatch):
    for name in ("torchao", "torchao.quantization.pt2e"):
        monkeypatch.setitem(sys.modules, name, None)
    for kind in ("weight-only", "dynamic", "static"):
        with pytest.raises(ImportError, match=r"^torchao is not installed: .*pip install -e '\.\[deploy\]' "):
            pytorch.export(small(), tmp_path / "x.pt2", CALIBRATION[:8], kind)
    assert not list(tmp_path.iterdir())


def test_compile_without_a_compiler(exported, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="no C.. compiler"):
        pytorch.load(exported("cnn", "static")[0], compile=True)


@pytest.mark.skipif(not shutil.which("g++") or platform.machine() != "x86_64", reason="needs g++ (apt-get install g++) on an x86 processor")
def test_compiled_runs_integer_kernels_and_computes_what_is_simulated(tmp_path):
    pytorch.export(small(), tmp_path / "x.pt2", CALIBRATION)
    torch._dynamo.utils.counters.clear()
    logits = pytorch.run(tmp_path / "x.pt2", IMAGES[:100], compile=True)
    assert torch._dynamo.utils.counters["inductor"]["qconv_unary_lower_count"] == 1         # oneDNN's convolution of codes
    simulated = pytorch.run(tmp_path / "x.pt2", IMAGES[:100])
    # A background pixel that lies between two codes may go either way, with all its neighbours; most images have none.
    apart = (logits - simulated).abs().amax(1)
    assert (apart < 1e-5).float().mean() > 0.7 and apart.max() < 0.05 * simulated.abs().max()


def test_compare_measures_every_kind():
    rows = pytorch.compare(small(), CALIBRATION[:64], (IMAGES[:50], LABELS[:50]), threads=(1,), batches=(1, 10), repeats=2)
    assert [row.name for row in rows] == list(pytorch.KINDS)
    assert all(len(row.right) == 50 and set(row.ms) == {(1, 1), (1, 10)} and min(row.ms.values()) > 0 and row.operators for row in rows)
    lines = side_by_side.table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].startswith("float")


def test_a_runtime_may_write_on_its_images():
    images, seen = torch.ones(4, 2), []

    def writes(x):
        seen.append(x.sum().item())
        return x.zero_()

    side_by_side.right(writes, images, torch.zeros(4, dtype=torch.int64))
    side_by_side.times({"a": writes, "b": writes}, images, repeats=1)
    assert seen == [8] * 9 and torch.equal(images, torch.ones(4, 2))


def test_times_take_turns():
    calls = []
    runtimes = {name: (lambda x, name=name: calls.append(name)) for name in "ab"}
    taken = side_by_side.times(runtimes, torch.zeros(4, 1), repeats=2)
    assert calls == ["a", "b"] * 5 and set(taken) == {"a", "b"}
    assert side_by_side.right(lambda x: x, torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), torch.tensor([0, 1])).tolist() == [False, True]
