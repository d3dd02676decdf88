"""qlab.deploy.export: one door to every runtime, for networks and images as people have them."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

pytest.importorskip("ai_edge_litert", reason="pip install qlab[deploy]")
pytest.importorskip("onnxruntime", reason="pip install qlab[deploy]")
pytest.importorskip("onnxscript", reason="pip install qlab[deploy]")
pytest.importorskip("torchao", reason="pip install qlab[deploy]")

import own_networks

import qlab.deploy
from qlab.deploy import c, door, files, images, onnx, pytorch, tflite
from qlab.nets import integer, ptq

SHAPE = (3, 8, 8)
X = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 5
NAMES = {"tflite": "net.tflite", "c": "net.c", "onnx": "net.onnx", "pytorch": "net.pt2"}
RUN = {"tflite": lambda path, x: tflite.run(path, x), "c": c.run, "onnx": onnx.run, "pytorch": pytorch.run}


def small(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                        nn.Linear(16, 5, **options))
    with torch.no_grad():
        net[1].running_mean.normal_(0, 0.1), net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# What it writes and tells


@pytest.mark.parametrize("runtime", door.RUNTIMES)
def test_every_runtime_gives_what_the_network_gives(runtime, tmp_path):
    net = small().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    done = qlab.deploy.export(net, X, tmp_path / NAMES[runtime])
    assert net.training and all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        floats = net.eval()(X)
    logits = RUN[runtime](tmp_path / NAMES[runtime], X)
    assert (logits - floats).abs().max() <= 0.1 * floats.abs().max()
    # It tells what NumPy finds from the file alone.
    noise, power = np.square((logits - floats).double().numpy()).sum(), np.square(floats.double().numpy()).sum()
    assert done.decibels == pytest.approx(10 * math.log10(power / noise), abs=0.3) and done.decibels > 25
    assert (done.runtime, done.images, done.same) == (runtime, 40, int((logits.argmax(1) == floats.argmax(1)).sum()))
    # The description beside the file is the runtime's own.
    told = files.read_description(tmp_path / NAMES[runtime])
    assert told.nbytes == done.nbytes == (tmp_path / NAMES[runtime]).stat().st_size and told.sha256 == done.sha256
    assert told.input.shape == SHAPE and told.output.shape == (5,) and told.network == "net"
    assert listing(tmp_path) == sorted([NAMES[runtime], NAMES[runtime] + ".json"] + ["net.h"] * (runtime == "c"))
    said = str(done)
    for part in (f"{done.nbytes:,} bytes", f"operations: {len(done.layers)}", f"answer for {done.same}", f"noise {done.decibels:.1f} dB",
                 "the network was in training mode", "batch norms folded into the layers before them: 1"):
        assert part in said


@pytest.mark.parametrize("runtime", door.INTEGER)
def test_the_integers_are_those_of_ptq_and_convert(runtime, tmp_path):
    done = qlab.deploy.export(small(), X, tmp_path / NAMES[runtime], ranges="percentile", name="other")
    network = integer.convert(ptq.quantize(small(), X, ranges="percentile"), SHAPE)
    codes = network.encode(X)
    if runtime == "tflite":
        assert (done.codes, done.apart) == _shares(tflite.run(tmp_path / "net.tflite", codes), network.run(codes))
    else:
        assert torch.equal(c.run(tmp_path / "net.c", codes), network.run(codes)) and (done.codes, done.apart) == (1, 0)
    assert done.network == "other"


def _shares(found, wanted):
    return (found == wanted).double().mean().item(), int((found.int() - wanted.int()).abs().max())


@pytest.mark.parametrize("runtime", door.INTEGER)
def test_what_is_quantized_is_taken_as_it_is(runtime, tmp_path):
    quantized = ptq.quantize(small(), X)
    network = integer.convert(quantized, SHAPE)
    made = [qlab.deploy.export(model, X[:8], tmp_path / NAMES[runtime]).sha256 for model in (quantized, network)]
    assert made[0] == made[1] and qlab.deploy.export(network, X, tmp_path / NAMES[runtime]).same is None
    for other in ("onnx", "pytorch"):
        with pytest.raises(TypeError, match=f"model is a Quantized, and must be the float network: {other} brings its own quantizer.$"):
            qlab.deploy.export(quantized, X, tmp_path / NAMES[other])


def test_the_ending_or_to_names_the_runtime(tmp_path):
    assert qlab.deploy.export(small(), X, tmp_path / "net.bin", to="onnx", kind="float").format.startswith("onnx, float")
    assert qlab.deploy.export(small(), X, str(tmp_path / "NET.TFLITE")).runtime == "tflite"
    assert qlab.deploy.export(small(), X, tmp_path / "p.tflite", softmax=True).decibels > 30
    assert qlab.deploy.export(small(), X, tmp_path / "seven.onnx", batch=7).images == 42       # whole batches of 7


@pytest.mark.parametrize("name", ["mean of lines", "BatchNorm1d first", "map out", "squeeze and excitation", "softmax"])
def test_shapes_come_from_the_images(name, tmp_path):
    net, x = own_networks.network(name)
    for ending in NAMES.values():
        done = qlab.deploy.export(net, x, tmp_path / ending)
        assert done.input.shape == tuple(x.shape[1:]) and done.output.shape == tuple(net(x[:1]).shape[1:]) and done.decibels > 20


def test_a_file_that_computes_otherwise_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "run", lambda path, codes: integer.convert(ptq.quantize(small(), X), SHAPE).run(codes) ^ 1)
    with pytest.raises(ValueError, match="^net.c computes other codes than the integer network, 100.00% of them, and was not written.$"):
        qlab.deploy.export(small(), X, tmp_path / "net.c")
    assert not listing(tmp_path)


def test_without_a_compiler_the_c_is_written_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    done = qlab.deploy.export(small(), X, tmp_path / "net.c")
    assert (done.images, done.codes) == (0, None) and any("no C compiler" in note for note in done.notes) and "run by" not in str(done)


def test_a_file_that_is_mostly_noise_says_so_and_one_that_gives_nan_is_not_written(tmp_path, monkeypatch):
    noise = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(onnx, "load", lambda path: lambda x: noise[:len(x)])
    done = qlab.deploy.export(small(), X, tmp_path / "noise.onnx")
    assert done.decibels < 0 and done.notes[-1].startswith("the file is far from the network: signal to noise -")
    monkeypatch.setattr(onnx, "load", lambda path: lambda x: noise[:len(x)] * math.nan)
    with pytest.raises(ValueError, match="^the file gives NaN or infinity for calibration images, and nothing was written.$"):
        qlab.deploy.export(small(), X, tmp_path / "nan.onnx")
    assert listing(tmp_path) == ["noise.onnx", "noise.onnx.json"]


@pytest.mark.parametrize("factor", [1e-38, 1e35])
def test_images_of_any_size_that_float32_holds(factor, tmp_path):
    assert qlab.deploy.export(small(), X * factor, tmp_path / "net.tflite").decibels > 25


@pytest.mark.parametrize("setting", ["float64", "bfloat16", "autocast", "inference", "meta"])
@pytest.mark.parametrize("name", ["net.tflite", "net.onnx"])
def test_whatever_the_caller_has_set_the_file_is_the_same(setting, name, tmp_path, request):
    net, made = small(), tmp_path / "there"
    made.mkdir()
    wanted = qlab.deploy.export(net, X, tmp_path / name)
    contexts = {"autocast": torch.autocast("cpu", torch.bfloat16), "inference": torch.inference_mode(), "meta": torch.device("meta")}
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    if setting in contexts:
        with contexts[setting]:
            done = qlab.deploy.export(net, X, made / name)
    else:
        torch.set_default_dtype(getattr(torch, setting))
        done = qlab.deploy.export(net, X, made / name)
        assert torch.get_default_dtype() == getattr(torch, setting)
    assert done.sha256 == wanted.sha256 and done.decibels == pytest.approx(wanted.decibels)


@pytest.mark.parametrize("stem", ["my-net v2", "8bit", "réseau", "_"])
def test_c_names_are_made_of_any_file_s(stem, tmp_path):
    done = qlab.deploy.export(small(), X, tmp_path / f"{stem}.c")
    assert done.codes == 1 and f"its names in C begin with {done.network}" in done.notes
    assert listing(tmp_path) == sorted([f"{stem}.c", f"{stem}.h", f"{stem}.c.json"])


# Networks as people have them


def test_weights_made_in_inference_mode(tmp_path):
    with torch.inference_mode():
        net = small()
    assert qlab.deploy.export(net, X, tmp_path / "a.tflite", name="n").sha256 == qlab.deploy.export(small(), X, tmp_path / "b.tflite",
                                                                                                 name="n").sha256


def test_eight_bits_and_what_float32_cannot_hold(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, dtype=torch.float64))
    net[1].weight = nn.Parameter(net[1].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    assert "float64 and float8_e4m3fn made float32" in qlab.deploy.export(net, X, tmp_path / "net.tflite").notes
    net[1].bias.data[0] = 1e300
    with pytest.raises(ValueError, match="^1.bias holds NaN or infinity, in float32 at least"):
        qlab.deploy.export(net, X, tmp_path / "net.tflite")


class Locked(nn.Flatten):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Masked(nn.Module):
    def forward(self, x, mask):
        return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_in_the_copy(dtype, tmp_path):
    net = small().to(dtype)
    done = qlab.deploy.export(net, X.to(dtype), tmp_path / "net.tflite")
    assert f"{str(dtype).removeprefix('torch.')} made float32" in done.notes and net[0].weight.dtype == dtype
    assert done.sha256 == qlab.deploy.export(small().to(dtype).float(), X.to(dtype).float(), tmp_path / "b.tflite", name="net").sha256


def test_wrappers_are_taken_off(tmp_path):
    wanted = qlab.deploy.export(small(), X, tmp_path / "net.tflite").sha256
    for wrapped, name in ((nn.DataParallel(small()), "DataParallel"), (torch.compile(small()), "OptimizedModule")):
        done = qlab.deploy.export(wrapped, X, tmp_path / "net.tflite")
        assert done.sha256 == wanted and f"taken out of its {name}" in done.notes


class Twice(nn.Module):
    def forward(self, x):
        return x, x


def hooked():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    return net


@pytest.mark.parametrize("make, error, said", [
    (lambda: small().state_dict(), TypeError, "model is a dict, such as a state_dict, and must be the network itself"),
    (lambda: "net.pt", TypeError, "model is the path net.pt, and must be the network itself"),
    (lambda: len, TypeError, "model is a function, len, and must be a torch.nn.Module"),
    (lambda: nn.Flatten, TypeError, r"model is the class Flatten, and must be an instance of it: Flatten\(...\)"),
    (lambda: None, TypeError, "model is a NoneType, and must be a torch.nn.Module"),
    (lambda: torch.jit.script(small()), TypeError, r"model is a scripted module \(torch.jit\), and must be the torch.nn.Module"),
    (lambda: torch.jit.trace(small(), X), TypeError, r"model is a scripted module \(torch.jit\)"),
    (lambda: torch.export.export(small(), (X,)), TypeError, "model is an exported program, and must be the torch.nn.Module"),
    (lambda: torch.export.export(small(), (X,)).module(), TypeError, "model is an exported program, and must be the torch.nn.Module"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0)), ValueError,
     "^the network gives torch.float32 of shape .2,. for 2 images, and must give floats, .2, ...., of two dimensions or more.$"),
    (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()), ValueError, "0.weight has no values yet, for its layer is a lazy one"),
    (lambda: small(device="meta"), ValueError, "0.weight is on the meta device, and has no values"),
    (lambda: nn.Linear(8, 2, dtype=torch.complex64), ValueError, "weight holds torch.complex64, and must hold real numbers"),
    (Twice, ValueError, "the network returns several values, and may return one tensor"),
    (Locked, ValueError, r"^the network cannot be copied \(cannot pickle '_thread.lock' object\).$"),
    (Masked, ValueError, r"^the network cannot take the calibration images, of shape \(40, 3, 8, 8\) \(.*missing 1 required .*'mask'\).$"),
    (hooked, ValueError, "^0 has a forward hook"),
    (lambda: nn.Flatten(0), ValueError, "the network gives torch.float32 of shape .384,. for 2 images, and must give floats, .2, ...."),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Softmax(0)), ValueError, "depends on the images beside it"),
])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated", "ignore:Lazy modules")
@pytest.mark.parametrize("ending", ["tflite", "onnx"])
def test_what_is_no_network_is_refused_in_one_sentence(make, error, said, ending, tmp_path):
    model = make()
    with pytest.raises(error, match=said) as told:
        qlab.deploy.export(model, X, tmp_path / f"net.{ending}")
    assert "\n" not in str(told.value) and "While executing" not in str(told.value) and not listing(tmp_path)


def test_nan_among_the_weights(tmp_path):
    net = small()
    net[5].weight.data[0, 0] = math.nan
    for name in NAMES.values():
        with pytest.raises(ValueError, match="^5.weight holds NaN or infinity, in float32 at least, and must be finite everywhere.$"):
            qlab.deploy.export(net, X, tmp_path / name)


# Images as people have them


class Items(Dataset):
    """A data set of images and labels, without __iter__."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], int(LABELS[i])


@pytest.mark.parametrize("make, notes", [
    (lambda: X, ()), (lambda: X.numpy(), ()), (lambda: X.double(), ()), (lambda: X.clone().requires_grad_(), ()),
    (lambda: (X, LABELS), ("labels left out",)), (lambda: [X.numpy(), LABELS.numpy()], ("labels left out",)),
    (lambda: (X, torch.eye(5)[LABELS]), ("labels left out",)),
    (lambda: X.split(16), ()), (lambda: [batch.numpy() for batch in X.split(7)], ()), (lambda: (batch for batch in X.split(16)), ()),
    (lambda: list(X), ()), (lambda: (image for image in X), ()),
    (lambda: Items(), ("labels left out",)), (lambda: DataLoader(Items(), 16), ("labels left out",)),
    (lambda: DataLoader(TensorDataset(X), 16), ()), (lambda: DataLoader(X, 16), ()),
    (lambda: TensorDataset(X, LABELS), ("labels left out",)),
])
def test_images_of_every_form_are_the_same_images(make, notes):
    told = []
    assert torch.equal(images.images_for(small(), make(), told), X) and tuple(told) == notes


class Broken(Items):
    """One that cannot read its fourth image."""

    def __getitem__(self, i):
        if i == 3:
            raise OSError("no image here\nnor there.")
        return super().__getitem__(i)


class Growing(Items):
    """Images of several sizes."""

    def __getitem__(self, i):
        return torch.rand(3, 8, 8 + i), 0


class Endless(Dataset):
    """A data set that does not say how many images it has."""

    def __getitem__(self, i):
        return X[i]


def fails():
    yield X[:4]
    raise KeyError("second")


@pytest.mark.parametrize("make, said", [
    (lambda: Broken(), r"^calibration cannot be read to its end \(OSError: no image here\).$"),
    (lambda: DataLoader(Broken(), 2), r"^calibration cannot be read to its end \(OSError: no image here\).$"),
    (lambda: DataLoader(Broken(), 2, num_workers=1), r"^calibration cannot be read to its end \(OSError: nor there\).$"),
    (lambda: DataLoader(Growing(), 2), "RuntimeError: stack expects each tensor to be equal size"),
    (lambda: Endless(), "TypeError: object of type 'Endless' has no len"), (fails, r"KeyError: 'second'\).$"),
])
def test_what_breaks_while_it_is_read_is_told_in_one_sentence(make, said, tmp_path):
    with pytest.raises(ValueError, match=said) as told:
        qlab.deploy.export(small(), make(), tmp_path / "net.tflite")
    assert "\n" not in str(told.value) and not listing(tmp_path)


def test_a_door_takes_a_loader_of_images_and_labels(tmp_path):
    done = qlab.deploy.export(small(), DataLoader(Items(), 16), tmp_path / "net.tflite")
    assert "labels left out" in done.notes
    assert done.sha256 == qlab.deploy.export(small(), X, tmp_path / "net.tflite").sha256


def test_what_never_ends_is_read_for_a_while():
    told = []
    found = images.images_for(small(), (X for _ in itertools.count()), told)
    assert len(found) == 1040 and told == ["calibrated with the first 1,040 images"]            # the batch that reaches 1,024 is whole


@pytest.mark.parametrize("bad, error, said", [
    ((X * 255).byte(), TypeError, r"are torch.uint8 of shape \(40, 3, 8, 8\), and must be floats .*images.float\(\) / 255"),
    ((X * 255).byte().numpy(), TypeError, "are torch.uint8"), (LABELS, TypeError, "are torch.int64"),
    (X > 0.5, TypeError, "are torch.bool"),
    ([((X * 255).byte(), LABELS)], TypeError, "are torch.uint8"), (X.to(torch.complex64), TypeError, "are torch.complex64"),
    (X[0], ValueError, r"cannot take .* of shape \(3, 8, 8\) .*it is one image, and must be a batch \(images\[None\]\)."),
    (X.movedim(1, -1), ValueError, r"the channels come last, and must come before the rows \(images.movedim\(-1, 1\)\)."),
    (X[:, :2], ValueError, r"cannot take the calibration images, of shape \(40, 2, 8, 8\) .*3 channels, but got 2 channels instead\)."),
    (X[:, None], ValueError, r"cannot take the calibration images, of shape \(40, 1, 3, 8, 8\)"),
    (X[:0], ValueError, "there are no calibration images"), ([], ValueError, "there are no calibration images"),
    (None, ValueError, "there are no calibration images"), (iter(()), ValueError, "there are no calibration images"),
    (X * math.nan, ValueError, "hold NaN or infinity"), ([X, X * math.inf], ValueError, "hold NaN or infinity"),
    (X.double() * 1e300, ValueError, "hold NaN or infinity"), (X.to("meta"), ValueError, "are on the meta device"),
    ([X, X[:, :, :7]], ValueError, r"have the shapes \(3, 7, 8\) and \(3, 8, 8\), and must have one"),
    ({"images": X}, TypeError, "calibration is a dict"), ([{"label": LABELS, "images": X}], TypeError,
     r"calibration holds a dict, .* before their labels, such as \(batch\['images'\] for batch in ...\).$"),
    ([{"label": LABELS}], TypeError, "calibration holds a dict, and must hold images: .* before their labels.$"),
    ("images.npy", TypeError, "calibration is the path images.npy"), (5, TypeError, "calibration is a int"),
    ([[0.5, 1.0]], TypeError, "calibration holds a list"), (["cat"], TypeError, "calibration holds a str"),
    (X.to_sparse(), TypeError, "layout"),
    (torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged), TypeError, "a nested tensor, and must be one tensor"),
])
def test_wrong_images_are_refused_in_one_sentence(bad, error, said, tmp_path):
    for name in ("net.tflite", "net.onnx"):
        with pytest.raises(error, match=said) as told:
            qlab.deploy.export(small(), bad, tmp_path / name)
        assert "\n" not in str(told.value) and "While executing" not in str(told.value) and not listing(tmp_path)


def test_a_network_that_scales_pixels_itself_gets_them_as_floats(tmp_path):
    """Its file takes floats of 0 to 255, as every file here takes floats; uint8 is refused for it as well."""
    net, pixels = own_networks.Forward(lambda net, x: net.body(x / 255), body=small()).eval(), (X * 255).byte()
    for name in ("net.tflite", "net.onnx"):
        with pytest.raises(TypeError, match="are torch.uint8"):
            qlab.deploy.export(net, pixels, tmp_path / name)
        assert qlab.deploy.export(net, pixels.float(), tmp_path / name).decibels > 25


def test_images_without_channels():
    with pytest.raises(ValueError, match=r"they lack the dimension of the channels \(images\[:, None\]\).$"):
        images.images_for(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), X[:, 0], [])


# Places and options


def test_wrong_places_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "folder.c").mkdir()
    for path, to, error, said in (
            (tmp_path, None, ValueError, "a folder, and must be the name of a file"),
            (tmp_path / "folder.c", None, ValueError, "a folder, and must be the name of a file"),
            (tmp_path / "none" / "net.c", None, FileNotFoundError, "there is no folder .*none.$"),
            (tmp_path / "net.bin", None, ValueError, "must end in .tflite, .c, .onnx, .pt2, or to must name the runtime"),
            (tmp_path / "net", None, ValueError, "must end in .tflite"), ("", None, ValueError, "a folder"),
            (tmp_path / "net.tflite", "onnx", ValueError, "and a file for onnx ends in .onnx.$"),
            (tmp_path / "net.txt", "c", ValueError, "and a file for c ends in .c.$"),
            (tmp_path / "net.c", "coreml", ValueError, "to is 'coreml', and must be one of tflite, c, onnx, pytorch.$"),
            (tmp_path / ("n" * 252 + ".c"), None, OSError, r"^cannot write '.*nnn.c' \(File name too long\): name another place.$"),
            (f"{tmp_path}/a\0.c", None, OSError, r"^cannot write '.*a.x00.c' \(it holds a zero\): name another place.$"),
            (5, None, TypeError, "path is a int, and must be the name of a file")):
        with pytest.raises(error, match=said):
            qlab.deploy.export(small(), X, path, to)
    for name, options, said in (("net.tflite", {"bits": 4}, "there is no option bits here: tflite takes activation_bits, "),
                                ("net.onnx", {"equalize": True}, "there is no option equalize here: onnx takes batch, kind, name, ranges."),
                                ("net.pt2", {"kind": "int4"}, "kind is 'int4'"), ("net.c", {"name": "1"}, "name is '1'")):
        with pytest.raises(ValueError, match=said):
            qlab.deploy.export(small(), X, tmp_path / name, **options)
    assert listing(tmp_path) == ["folder.c"]
