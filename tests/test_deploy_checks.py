"""The door that ONNX Runtime's and PyTorch's files share: which images come in, and as what."""

import importlib
import pkgutil

import numpy as np
import pytest
import torch
from torch import nn

import qlab.deploy
from qlab.deploy import c, checks, cortex_m, onnx, pytorch, tflite
from qlab.nets import integer, ptq


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    images = torch.zeros(3, 2, 4)
    images[1, 0, 2] = bad
    for x in (images, images.half(), images.bfloat16(), images.double(), images.numpy(), images.tolist()):
        with pytest.raises(ValueError, match="^images hold NaN or infinity, and must be finite.$"):
            checks.as_images(x, (2, 4))
    with pytest.raises(ValueError, match="the calibration images hold NaN or infinity, and must be finite"):
        checks.calibration_batches(images, (2, 4))


def test_what_float32_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        checks.as_images(torch.tensor([[1e300]], dtype=torch.float64), (1,))


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_layout():
    images = np.arange(24.0).reshape(4, 6)
    fixed = images.copy()
    fixed.flags.writeable = False
    for x in (fixed, np.asfortranarray(images), images.astype(">f4"), images.astype(np.float16), images[:, ::-1][:, ::-1], images.tolist()):
        assert torch.equal(checks.as_images(x, (6,)), torch.arange(24.0).view(4, 6))
    assert torch.equal(checks.as_images(images[::-1, ::-2], (3,)), torch.arange(24.0).view(4, 6).flip(0, 1)[:, ::2])
    for x in (["cat"], object(), np.array(["cat"])):
        with pytest.raises(TypeError, match="x is a .* and no tensor"):
            checks.as_images(x, (6,))


@pytest.mark.parametrize("module, library", [(onnx, "onnxruntime"), (pytorch, "torchao")])
def test_both_runtimes_look_at_their_images(module, library, tmp_path):
    for name in (library, "onnxscript") if module is onnx else (library,):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install qlab[deploy]")
    module.export(nn.Linear(3, 2), tmp_path / "net", kind="float", image_shape=(3,))
    images = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    want = module.run(tmp_path / "net", torch.from_numpy(images).flip(0), threads=1)
    assert torch.equal(module.run(tmp_path / "net", images[::-1], threads=1), want)
    images[2, 1] = np.inf
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        module.run(tmp_path / "net", images)


class Calls(nn.Module):
    """A network that is any function of the image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("make, shape, match", [
    (lambda: nn.Linear(3, 2).half(), (3,), "weight is torch.float16 on cpu, and must be float32 on the CPU: model.float...cpu.. is"),
    (lambda: nn.Linear(3, 2).double(), (3,), "weight is torch.float64 on cpu"),
    (lambda: nn.Linear(3, 2, device="meta"), (3,), "weight is torch.float32 on meta"),
    (lambda: nn.Linear(3, 2), (4,), "image_shape is .4,., which the network cannot take"),
    (lambda: nn.Linear(3, 2), (-3,), "image_shape is .-3,., and must be whole numbers"),
    (lambda: nn.Linear(3, 2), (3.0,), "image_shape is .3.0,., and must be whole numbers"),
    (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(5)), (1, 2, 2), "which the network cannot take .Dimension out of range"),
    (lambda: nn.Flatten(0), (1, 3, 3), "gives torch.float32 of shape .18,. for 2 images, and must give floats, .2, ...."),
    (lambda: nn.LazyLinear(2), (3,), "^weight has no values yet: run the network on an image first.$"),
    (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)), (3,), "1 cannot be folded: it has no running"),
    (lambda: Calls(lambda x: (x, x)), (3,), "^the network returns several values, and may return one tensor.$"),
    (lambda: Calls(lambda x: {"logits": x}), (3,), "^the network returns a dict, and may return one tensor.$"),
    (lambda: Calls(lambda x: {"logits": x, "features": x}), (3,), "^the network returns several values, and may return one tensor.$"),
    (lambda: Calls(lambda x: x[:, :1].squeeze()), (3,), "gives torch.float32 of shape .2,. for 2 images, .* of two dimensions or more"),
    (lambda: Calls(lambda x: x.squeeze()), (3,), "gives torch.float32 of shape .3,. for 1 image, and must give floats, .1, ...., of two d"),
    (lambda: Calls(lambda x: x.tolist()[0]), (3,), "^the network returns several values, and may return one tensor.$"),
    (lambda: Calls(lambda x: len(x)), (3,), "^the network returns a int, and may return one tensor.$"),
    (lambda: Calls(lambda x: x.argmax(1, keepdim=True)), (3,), "gives torch.int64 of shape .2, 1. for 2 images, and must give floats"),
    (lambda: Calls(torch.nn.functional.dropout), (3,), "^the network gives other values when it is asked again: it is random in eval"),
    (lambda: Calls(lambda x: x - x.mean(0)), (3,), "^what the network gives for an image depends on the images beside it, and must not.$"),
    (lambda: Calls(lambda x: 1 / 0), (3,), "^image_shape is .3,., which the network cannot take .division by zero..$"),
])
def test_a_network_that_does_not_fit_is_told_why(make, shape, match):
    with pytest.raises(ValueError, match=match):
        checks.float_network(make(), shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_of_nan_is_refused(bad):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    net[1].running_var[1] = bad
    with pytest.raises(ValueError, match="1.running_var holds NaN or infinity"):
        checks.float_network(net, (1, 2, 2))


# The doors of all runtimes

DOORS = {  # module of qlab.deploy -> where images come in: the arguments with which each is opened
    "tflite": [{"kernels": kernels} for kernels in tflite.KERNELS], "c": [{}], "cortex_m": [{"cpu": cpu} for cpu in cortex_m.MACHINES],
    "onnx": [{"kind": kind} for kind in onnx.KINDS], "pytorch": [{"kind": kind, "trust": True} for kind in pytorch.KINDS],
}
EXPORTS = {"tflite": "n.tflite", "c": "n.c", "cortex_m": "n.c", "onnx": "{kind}.onnx", "pytorch": "{kind}.pt"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder with a small network in every format, and the integer network."""
    torch.manual_seed(0)
    folder, shape = tmp_path_factory.mktemp("doors"), (1, 6, 6)
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16)).eval(), torch.rand(16, *shape)
    network = integer.convert(ptq.quantize(net, x), shape)
    tflite.export(network, folder / "n.tflite", shape)
    c.export(network, folder / "n.c", shape)
    for module, kinds, ending in ((onnx, onnx.KINDS, "onnx"), (pytorch, pytorch.KINDS, "pt")):
        for kind in kinds:
            module.export(net, folder / f"{kind}.{ending}", x, kind, image_shape=shape)
    return folder, network


def test_every_runtime_is_listed():
    modules = [name for _, name, _ in pkgutil.iter_modules(qlab.deploy.__path__) if name != "tflite_child"]  # a program
    assert {name for name in modules if hasattr(importlib.import_module(f"qlab.deploy.{name}"), "run")} == set(DOORS)


@pytest.mark.parametrize("module, options", [(module, options) for module in DOORS for options in DOORS[module]])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_images_of_nan_and_infinity_stop_at_every_door(exported, module, options, bad):
    if module == "cortex_m" and cortex_m.missing():
        pytest.skip("no compiler or emulator of ARM")
    runtime, (folder, _) = importlib.import_module(f"qlab.deploy.{module}"), exported
    options, path = dict(options), folder / EXPORTS[module].format(**options)
    options.pop("kind", None)
    images = torch.rand(3, 1, 6, 6)
    if not np.isnan(bad) or module == "cortex_m":  # without it they come in
        assert module == "cortex_m" or runtime.run(path, images, **options).shape == (3, 16)
    images[2, 0, 5, 5] = bad
    for x in (images, images.double(), images.half(), images.bfloat16()):
        with pytest.raises(ValueError, match="images hold NaN or infinity, and must be finite.$"):
            runtime.run(path, x, **options)
        if module in ("onnx", "pytorch"):
            with pytest.raises(ValueError, match="images hold NaN or infinity, and must be finite.$"):
                runtime.load(path, **options)(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_images_of_nan_and_infinity_stop_at_the_integer_network(exported, bad):
    _, network = exported
    images = torch.full((2, 1, 6, 6), bad)
    for call in (network, network.encode, lambda x: network.run(network.encode(x))):
        with pytest.raises(ValueError, match="the images hold NaN or infinity, and must be finite.$"):
            call(images)


@pytest.mark.parametrize("kernels", tflite.KERNELS)
def test_a_file_of_floats_takes_no_nan(kernels, tmp_path, monkeypatch):
    """Not one that qlab writes: what comes in through load is not encoded, so that it is looked at there."""
    source = tflite.Tensor("x", (1, 2), "float32", scale=(), zero_point=(), axis=None, nbytes=0)
    monkeypatch.setattr(tflite, "read", lambda path: (b"", True))
    monkeypatch.setattr(tflite, "parse", lambda path, content: [type("Model", (), {"inputs": [source], "outputs": [source]})])
    monkeypatch.setattr(tflite, "check_arena", lambda path, model: None)
    monkeypatch.setattr(tflite.tflite_runtime, "load", lambda *a: lambda codes: codes)
    infer = tflite.load(tmp_path / "float.tflite", kernels)
    assert infer(np.ones((3, 2), np.float32)).shape == (3, 2)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="the images hold NaN or infinity, and must be finite.$"):
            infer(np.full((3, 2), bad, np.float32))
