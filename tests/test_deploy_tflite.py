"""Every operator of an exported .tflite file in four runtimes against the integer-only network, reading files, and what is refused."""

import errno
import importlib.util
import itertools
import json
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")

from qlab.deploy import files, tflite, tflite_runtime  # noqa: E402
from qlab.lab import data, runs, zoo  # noqa: E402
from qlab.nets import integer, ptq  # noqa: E402
from qlab.quant import linear  # noqa: E402

NO_MICRO = importlib.util.find_spec("tflite_micro") is None
needs_micro = pytest.mark.skipif(NO_MICRO, reason="tflite-micro is not installed: pip install qlab[deploy] (Linux on x86-64 alone)")
KERNELS = [pytest.param(name, marks=needs_micro) if name == "micro" else name for name in tflite.KERNELS]
ROUNDS_TWICE = ("micro", "reference")


class Sum(nn.Module):
    def __init__(self, a, b, after=None):
        super().__init__()
        self.a, self.b, self.after = a, b, after or nn.Identity()

    def forward(self, x):
        return self.after(self.a(x) + self.b(x))


class Columns(nn.Module):
    def forward(self, x):
        return torch.relu(torch.flatten(x, 1))


def integers(net: nn.Module, shape, n=200, **options):
    """An integer-only network of random weights, calibrated, and the codes of n random images."""
    torch.manual_seed(0)
    for module in net.modules():  # made before the seed was set
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    images = torch.randn(n, *shape)
    network = integer.convert(ptq.quantize(net, images, **options), shape)
    return network, network.encode(images)


def apart(network, codes, path, kernels) -> np.ndarray:
    got = tflite.run(path, codes, kernels)
    want = network.run(codes)
    assert got.dtype == torch.int8 and got.shape == want.shape
    return got.int().numpy() - want.int().numpy()


# Operators: bit for bit where a runtime rounds twice as we do, at most one code apart where it rounds once


OPERATORS = {  # name: (network, image shape, the operators it becomes, the kernels that agree bit for bit)
    "convolution": (lambda: nn.Conv2d(3, 8, 3), (3, 9, 9), ["CONV_2D"], ROUNDS_TWICE),
    "one input channel": (lambda: nn.Conv2d(1, 8, 3), (1, 9, 9), ["CONV_2D"], ROUNDS_TWICE),
    "convolution, ReLU": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 9, 9), ["CONV_2D"], (*ROUNDS_TWICE, "builtin")),
    "padding that is SAME": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8), ["CONV_2D"], ROUNDS_TWICE),
    "padding='same', even kernel": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (3, 8, 8), ["CONV_2D"], ROUNDS_TWICE),
    "padding='valid'": (lambda: nn.Conv2d(3, 4, 4, padding="valid"), (3, 8, 8), ["CONV_2D"], ROUNDS_TWICE),
    "stride 2, odd size: SAME": (lambda: nn.Conv2d(3, 4, 3, 2, padding=1), (3, 9, 9), ["CONV_2D"], ROUNDS_TWICE),
    "stride 2, even size: explicit": (lambda: nn.Conv2d(3, 4, 3, 2, padding=1), (3, 8, 8), ["PAD", "CONV_2D"], ROUNDS_TWICE),
    "wide padding, other rows": (lambda: nn.Conv2d(3, 4, (3, 2), (2, 1), padding=(2, 0)), (3, 8, 7), ["PAD", "CONV_2D"], ROUNDS_TWICE),
    "stride without padding": (lambda: nn.Conv2d(3, 4, 3, 3), (3, 8, 8), ["CONV_2D"], ROUNDS_TWICE),
    "dilation": (lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2), (3, 8, 8), ["CONV_2D"], ROUNDS_TWICE),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU()), (4, 7, 7), ["DEPTHWISE_CONV_2D"],
                  (*ROUNDS_TWICE, "builtin")),
    "depthwise, stride 2": (lambda: nn.Conv2d(4, 4, 3, 2, padding=1, groups=4), (4, 8, 8), ["PAD", "DEPTHWISE_CONV_2D"], ROUNDS_TWICE),
    "depthwise, two outputs a channel": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 7, 7), ["DEPTHWISE_CONV_2D"], ROUNDS_TWICE),
    "fully connected": (lambda: nn.Linear(20, 7), (20,), ["FULLY_CONNECTED"], ("micro",)),
    "fully connected, ReLU": (lambda: nn.Sequential(nn.Linear(20, 7), nn.ReLU()), (20,), ["FULLY_CONNECTED"], ("micro", "builtin")),
    "flattened map": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)), (3, 5, 5),
                      ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"], ("micro",)),
    "flattened map, ReLU alone": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Columns(), nn.Linear(36, 5)), (3, 5, 5),
                                  ["CONV_2D", "RESHAPE", "RELU", "FULLY_CONNECTED"], ("micro",)),
    "global mean": (lambda: nn.AdaptiveAvgPool2d(1), (4, 7, 7), ["DEPTHWISE_CONV_2D"], ROUNDS_TWICE),
    "average pooling": (lambda: nn.AvgPool2d(3, 2), (4, 7, 7), ["DEPTHWISE_CONV_2D"], ROUNDS_TWICE),
    "average pooling, ReLU": (lambda: nn.Sequential(nn.AvgPool2d((2, 3)), nn.ReLU()), (4, 6, 6), ["DEPTHWISE_CONV_2D"], ROUNDS_TWICE),
    "maximum": (lambda: nn.MaxPool2d(2), (4, 7, 7), ["MAX_POOL_2D"], tflite.KERNELS),
    "maximum, padding that is SAME": (lambda: nn.MaxPool2d(3, 1, 1), (4, 7, 7), ["MAX_POOL_2D"], tflite.KERNELS),
    "maximum, explicit padding": (lambda: nn.MaxPool2d(3, 2, 1), (4, 8, 8), ["PADV2", "MAX_POOL_2D"], tflite.KERNELS),
    "ReLU alone": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), (4, 6, 6), ["MAX_POOL_2D", "RELU"], tflite.KERNELS),
    "sum": (lambda: Sum(nn.MaxPool2d(2), nn.AvgPool2d(2)), (4, 6, 6), ["MAX_POOL_2D", "DEPTHWISE_CONV_2D", "ADD"], ROUNDS_TWICE),
    "sum, ReLU": (lambda: Sum(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Identity(), nn.ReLU()), (4, 6, 6), ["CONV_2D", "ADD"],
                  (*ROUNDS_TWICE, "builtin")),
    "sum of equals": (lambda: Sum(nn.Identity(), nn.MaxPool2d(3, 1, 1)), (4, 6, 6), ["MAX_POOL_2D", "ADD"], ROUNDS_TWICE),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(name, kernels, tmp_path):
    make, shape, operators, exact = OPERATORS[name]
    network, codes = integers(make(), shape, n=100)
    about = tflite.export(network, tmp_path / "net.tflite", shape)
    assert [layer["operator"] for layer in about.layers] == operators
    difference = np.abs(apart(network, codes, tmp_path / "net.tflite", kernels))
    assert difference.max() <= (0 if kernels in exact else 1 if len(operators) == 1 else 2)


@pytest.mark.parametrize("kernels", KERNELS)
def test_relu6(kernels, tmp_path):
    """A ReLU6 is a clamp at the code of 6.0, here -8: a grid that ends there."""
    network, codes = integers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), (3, 8, 8))
    conv, pool = network.steps
    grid = integer.Grid(scale=0.05, zero_point=-128, low=-128, high=-8)
    m, n = integer.multiplier(np.float64(np.float32(0.02)) * conv.grids[0].scale / np.full(4, grid.scale))  # weights of scale 0.02
    conv, pool = replace(conv, grids=(conv.grids[0], grid), m=m, n=n), replace(pool, grids=(grid, grid))
    network = replace(network, steps=(conv, pool), grid_out=grid)
    tflite.export(network, tmp_path / "net.tflite", (3, 8, 8))
    got = tflite.run(tmp_path / "net.tflite", codes, kernels)
    assert got.max() == -8 and 0.05 < (got == -8).float().mean() < 0.95                     # it clamps some, not all
    assert (got.int() - network.run(codes).int()).abs().max() <= (kernels == "xnnpack")


def test_a_multiplier_that_no_float32_gives_is_refused(tmp_path):
    network, _ = integers(nn.Linear(4, 2), (4,))
    step = network.steps[0]
    with pytest.raises(ValueError, match="_0 has a multiplier that no float32 scale of its weights gives"):
        tflite.export(replace(network, steps=(replace(step, m=step.m ^ 1),)), tmp_path / "net.tflite", (4,))


@pytest.mark.parametrize("kernels", KERNELS)
def test_softmax(kernels, tmp_path):
    network, codes = integers(nn.Linear(20, 7), (20,))
    about = tflite.export(network, tmp_path / "net.tflite", (20,), softmax=True)
    assert about.output == files.Port((7,), "int8", 1 / 256, -128)
    got = tflite.run(tmp_path / "net.tflite", codes, kernels)
    exact = torch.softmax(network.decode(network.run(codes)), 1) * 256 - 128
    assert (got - exact.clamp(max=127)).abs().max() < (1.01 if kernels == "micro" else 2.5)  # the others' logits may be a code apart


def test_every_sum_of_a_mean_is_rounded_alike(tmp_path):
    """1 / 49 is no binary fraction: all 12,496 sums of 49 codes from the zero-point up, as the file's operator rounds them and as we do."""
    network = integer.convert(ptq.quantize(nn.AdaptiveAvgPool2d(1), torch.rand(64, 1, 7, 7)), (1, 7, 7))
    totals = torch.arange(49 * 255 + 1)
    codes = torch.full((len(totals), 49), -128) + totals[:, None] // 49 + (torch.arange(49) < totals[:, None] % 49)
    codes = codes.to(torch.int8).view(-1, 1, 7, 7)
    tflite.export(network, tmp_path / "net.tflite", (1, 7, 7))
    assert (apart(network, codes, tmp_path / "net.tflite", "builtin") == 0).all()


@needs_micro
def test_channels_without_weights_and_constant_outputs(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 1e-20, 5.0                                       # its scale is what its bias needs
        net[2].weight.zero_()
    network = integer.convert(ptq.quantize(net, torch.rand(16, 3)), (3,))
    tflite.export(network, tmp_path / "net.tflite", (3,))
    assert (apart(network, network.encode(torch.rand(50, 3)), tmp_path / "net.tflite", "micro") == 0).all()


@needs_micro
def test_weights_with_one_scale_for_all(tmp_path):
    network, codes = integers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)), (3, 5, 5),
                              weights=lambda w: linear.quantize(w, 4, "symmetric"))
    tflite.export(network, tmp_path / "net.tflite", (3, 5, 5))
    assert (apart(network, codes, tmp_path / "net.tflite", "micro") == 0).all()


@needs_micro
def test_one_output(tmp_path):
    network, codes = integers(nn.Linear(20, 1), (20,), n=2000)
    tflite.export(network, tmp_path / "net.tflite", (20,))
    assert (apart(network, codes, tmp_path / "net.tflite", "micro") == 0).all()


# Whole networks


@pytest.fixture(scope="module", params=["cnn", "depthwise", "resnet", "lenet300", "lenet5"])
def exported(request, tmp_path_factory):
    network = integer.convert(ptq.quantize(zoo.load(request.param), data.calibration(64).images))
    path = tmp_path_factory.mktemp("tflite") / f"{request.param}.tflite"
    return network, path, tflite.export(network, path)


@needs_micro
def test_the_zoo_runs_bit_for_bit_in_tflite_micro(exported):
    network, path, _ = exported
    images = data.load("test").images[:10]
    assert (apart(network, network.encode(images), path, "micro") == 0).all()
    assert torch.equal(tflite.run(path, images, "micro"), network.decode(network(images)))  # floats in, floats out


@pytest.mark.parametrize("kernels", ["reference", "builtin", "xnnpack"])
def test_the_zoo_runs_in_litert(exported, kernels):
    network, path, _ = exported
    images = data.load("test").images[:20 if kernels == "reference" else 200]
    codes = network.encode(images)
    with torch.no_grad():
        want = torch.cat([network.run(batch) for batch in codes.split(50)])
    got = tflite.run(path, codes, kernels)
    assert (got.argmax(1) == want.argmax(1)).float().mean() >= 0.99
    assert (got.int() - want.int()).abs().max() <= (4 if kernels == "xnnpack" else 2)       # layer after layer, a code each


def test_the_kernels_are_those_named(exported):
    _, path, about = exported
    operators = [layer["operator"] for layer in about.layers]

    def ran(kernels):
        return [o["op_name"] for o in tflite_runtime.litert(path, path.read_bytes(), kernels, 1)._get_ops_details()]

    assert ran("reference") == ran("builtin") == operators and ran("xnnpack") == [*operators, "DELEGATE"]


@needs_micro
def test_the_arena_holds_the_two_largest_neighbours(exported):
    network, path, _ = exported
    arena = tflite.arena(path)
    assert arena["total"] == arena["activations"] + arena["persistent"]
    if path.stem == "cnn":  # conv1's output beside pool1's
        assert 0 <= arena["activations"] - 28 * 28 * 32 - 14 * 14 * 32 <= 64


# What a file says


def test_describe_reads_the_quantization_parameters(exported):
    network, path, about = exported
    model = tflite.describe(path)
    assert (model.inputs[0].scale, model.inputs[0].zero_point) == ((network.grid_in.scale,), (network.grid_in.zero_point,))
    assert (model.outputs[0].scale, model.outputs[0].zero_point) == ((network.grid_out.scale,), (network.grid_out.zero_point,))
    layers = [step for step in network.steps if step.kind in ("conv", "linear")]
    weights = {o.inputs[1].name: o.inputs for o in model.operators if "CONV" in o.name or o.name == "FULLY_CONNECTED"}
    codes = tflite.constants(path)
    for step in layers:
        x, w, b = weights[f"{step.name} weight"]
        assert len(w.scale) == len(step.weight) and set(w.zero_point) == {0} and b.dtype == "int32" and w.dtype == "int8"
        np.testing.assert_allclose(b.scale, np.array(w.scale) * x.scale[0], rtol=1e-6)
        assert np.array_equal(codes[b.name], step.bias)
        assert np.array_equal(np.sort(codes[w.name].ravel()), np.sort(step.weight.numpy().ravel()))     # in another order
        real = np.float64(w.scale) * x.scale[0] / step.grids[-1].scale
        np.testing.assert_allclose(step.m.numpy() * 2.0 ** (step.n.numpy() - 31.0), real, rtol=2**-30)
    assert about.nbytes == path.stat().st_size == model.nbytes


def test_the_weights_in_the_file_are_the_network_s():
    q = ptq.quantize(zoo.load("depthwise"), data.calibration(64).images)
    step = next(s for s in integer.convert(q).steps if s.name == "block3_pointwise")
    from qlab.deploy.tflite_graph import weight_scale

    np.testing.assert_array_equal(weight_scale(step), q.tensors["block3.pointwise"].scale.flatten().numpy())


def test_the_description_beside_the_file(exported):
    network, path, about = exported
    assert files.read_description(path) == about
    told = json.loads(files.beside(path).read_text())
    assert told["input"]["shape"] == [1, 28, 28] and told["output"]["shape"] == [10] and told["format"] == "tflite"
    assert told["network"] == path.stem and len(told["layers"]) == len(about.layers)


def test_the_keras_record_says_what_qlab_s_file_is(tmp_path):
    record = runs.load("tflite_keras")
    network = integer.convert(ptq.quantize(zoo.load("cnn"), data.calibration(record["calibration_images"]).images))
    about = tflite.export(network, tmp_path / "cnn.tflite")
    assert record["checkpoint"] == zoo.record("cnn")["sha256"] and record["rows"]["qlab, builtin"]["nbytes"] == about.nbytes
    assert "representative_dataset" in record["listing_says"] and "representative_dataset" not in record["listing"]
    assert [o["name"] for o in record["files"]["qlab"]["operators"]] == [layer["operator"] for layer in about.layers]
    images, labels = data.load("test")
    right = tflite.run(tmp_path / "cnn.tflite", images[:500], "builtin").argmax(1) == labels[:500]
    assert (right != record["rows"]["qlab, builtin"]["result"].correct[:500]).sum() <= 2    # another CPU's kernels round otherwise


def test_constants_begin_at_multiples_of_16_bytes(exported):
    from ai_edge_litert import schema_py_generated as schema

    content = exported[1].read_bytes()
    model = schema.Model.GetRootAs(content)
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if not buffer.DataIsNone():
            assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


# What is refused


def refused(net, shape, match, tmp_path, **options):
    network, _ = integers(net, shape, n=16, **options)
    with pytest.raises(ValueError, match=match):
        tflite.export(network, tmp_path / "net.tflite", shape)
    assert not list(tmp_path.iterdir())


def test_layers_that_are_not_covered_are_refused_by_name(tmp_path):
    refused(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), (4, 5, 5), "_0 pools with dilation=1 and ceil_mode=True", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2, dilation=2)), (4, 5, 5), "_1 pools with dilation=2", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(2)), (4, 5, 5), "_1 flattens dimensions 2 to -1", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten()), (4, 5, 5), "end with a linear layer", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(5, 2)), (4, 5, 5), "_1 is a linear layer that reads an unflattened", tmp_path)
    refused(Sum(nn.Conv2d(4, 4, 5), nn.Identity()), (4, 5, 5), r"add adds tensors of the shapes \(4, 1, 1\) and \(4, 5, 5\)", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), (4, 5, 5), "codes from -8 to 7", tmp_path, activation_bits=4)
    network, _ = integers(nn.Linear(4, 2), (4,))
    strange = replace(network, steps=(replace(network.steps[0], kind="gelu"),))
    with pytest.raises(ValueError, match="_0 is a gelu, and a .tflite file is written of conv, linear"):
        tflite.export(strange, tmp_path / "net.tflite", (4,))
    low = integer.Grid(scale=0.0625, zero_point=-100, low=-128, high=-4)                    # ends at the code of 6.0
    clamped = replace(network, steps=(replace(network.steps[0], grids=(network.grid_in, low)),), grid_out=low)
    with pytest.raises(ValueError, match="without a ReLU"):
        tflite.export(clamped, tmp_path / "net.tflite", (4,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, None, 28), (1, -1, 28), (1, 28.0, 28), (1, 0, 28)])
def test_a_shape_that_is_not_fixed_is_refused(shape, tmp_path):
    network = integer.convert(ptq.quantize(zoo.load("lenet300"), data.calibration(16).images))
    with pytest.raises(ValueError, match="must be fixed"):
        tflite.export(network, tmp_path / "net.tflite", shape)
    with pytest.raises(ValueError, match="which fc1 cannot take"):
        tflite.export(network, tmp_path / "net.tflite", (1, 20, 20))


def test_a_float_network_is_refused(tmp_path):
    for model in (zoo.load("cnn"), ptq.quantize_weights(zoo.load("cnn"), lambda w: linear.quantize(w, 8, "symmetric"))):
        with pytest.raises(TypeError, match="must be an IntegerNetwork: quantize it"):
            tflite.export(model, tmp_path / "net.tflite")


@pytest.fixture
def small(tmp_path):
    network, codes = integers(nn.Linear(6, 3), (6,))
    tflite.export(network, tmp_path / "net.tflite", (6,))
    return network, codes, tmp_path / "net.tflite"


def full_at(file):
    """An os.fsync that finds the disk full at a file: 1 for the first that is written."""
    files = itertools.count(1)

    def fsync(_):
        if next(files) == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


@pytest.mark.parametrize("make", [
    lambda folder: folder / "missing" / "net.tflite", lambda folder: folder / "file" / "net.tflite", lambda folder: folder,
    lambda folder: Path("/dev/full"), lambda folder: folder / "full.tflite",
])
def test_a_write_that_fails_leaves_nothing(make, tmp_path, monkeypatch):
    network, _ = integers(nn.Linear(6, 3), (6,))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", full_at(2))                                            # a disk that is full when the second file comes
    path = make(tmp_path)
    with pytest.raises(OSError, match="cannot write"):
        tflite.export(network, path, (6,))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_old_file_stays_when_writing_fails(small, monkeypatch):
    _, _, path = small
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_at(1))
    with pytest.raises(OSError, match="No space left"):
        tflite.export(integers(nn.Linear(6, 2), (6,))[0], path, (6,))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


def test_a_damaged_file_is_refused(small):
    _, codes, path = small
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged .its sha256 is not that of net.tflite.json"):
        tflite.run(path, codes)
    files.beside(path).unlink()                                                             # a file from elsewhere has no checksum
    content[len(content) // 2] ^= 1
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a .tflite file|is damaged"):
            tflite.load(path)
    for at in range(8, 200, 4):                                                             # tables and offsets lie first
        path.write_bytes(content[:at] + struct.pack("<I", 0x7FFFFFF0) + content[at + 4:])
        try:
            tflite.describe(path)
        except ValueError as error:
            assert "is damaged" in str(error)                                               # never another error
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a .tflite file"):
        tflite.describe(path)
    with pytest.raises(FileNotFoundError, match="tflite.export writes such a file"):
        tflite.run(path.with_name("none.tflite"), codes)
    files.beside(path).write_text("{}")
    with pytest.raises(ValueError, match="is not a description that qlab wrote"):
        path.write_bytes(content) and tflite.describe(path)


def test_wrong_images_are_refused(small):
    _, codes, path = small
    with pytest.raises(ValueError, match=r"the images have the shape \(200, 5\), and must have \(N, 6\)"):
        tflite.run(path, codes[:, :5])
    with pytest.raises(TypeError, match="are torch.int32, and must be floats or int8 codes"):
        tflite.run(path, codes.int())
    with pytest.raises(ValueError, match="kernels is 'gpu', and must be one of xnnpack, builtin, reference, micro"):
        tflite.run(path, codes, "gpu")
    assert tflite.run(path, codes[:0]).shape == (0, 3)


@needs_micro
def test_a_missing_library_says_how_to_get_it(small, monkeypatch):
    network, codes, path = small
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(ImportError, match=r"tflite-micro is not installed: pip install qlab\[deploy\]"):
        tflite.run(path, codes, "micro")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"ai-edge-litert is not installed: pip install qlab\[deploy\]"):
        tflite.export(network, path, (6,))


@needs_micro
def test_a_runtime_that_refuses_says_so_once(tmp_path, monkeypatch, capfd):
    network, codes = integers(nn.Conv2d(1, 8, 3), (1, 28, 28), n=2)
    path = tmp_path / "net.tflite"
    tflite.export(network, path)
    monkeypatch.setattr(tflite, "ARENA", 4000)                                              # the output alone has 5408 codes
    with pytest.raises(ValueError, match="tflite-micro refuses .*net.tflite: "):
        tflite.run(path, codes, "micro")
    tflite.run(path, codes)
    assert capfd.readouterr().err == ""                                                     # the runtimes' own remarks are not printed
