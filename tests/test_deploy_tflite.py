"""Every operator of an exported .tflite file in four runtimes against the integer-only network, reading files, and what is refused."""

import errno
import importlib.util
import itertools
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")

from qlab.deploy import files, tflite, tflite_child, tflite_limits, tflite_runtime  # noqa: E402
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
    "groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (6, 7, 7), ["CONV_2D"], ROUNDS_TWICE),
    "groups, stride 2, ReLU": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1, groups=2), nn.ReLU()), (8, 8, 8),
                               ["PAD", "CONV_2D"], (*ROUNDS_TWICE, "builtin")),
    "groups, dilation": (lambda: nn.Conv2d(4, 2, (3, 1), padding="same", dilation=2, groups=2), (4, 6, 5), ["CONV_2D"], ROUNDS_TWICE),
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
    "flattened map at the end": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 5, 5),
                                 ["CONV_2D", "RESHAPE", "RESHAPE", "TRANSPOSE", "RESHAPE"], ROUNDS_TWICE),
    "map flattened in part": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), (3, 5, 5),
                              ["CONV_2D", "TRANSPOSE", "RESHAPE"], ROUNDS_TWICE),
    "linear layer of the columns": (lambda: nn.Sequential(nn.MaxPool2d(1), nn.Linear(5, 2)), (3, 4, 5),
                                    ["MAX_POOL_2D", "TRANSPOSE", "RESHAPE", "FULLY_CONNECTED", "RESHAPE", "TRANSPOSE", "RESHAPE"],
                                    ("micro",)),
    "maximum, rounded up": (lambda: nn.MaxPool2d(2, ceil_mode=True), (4, 5, 5), ["MAX_POOL_2D"], tflite.KERNELS),
    "sum of a pixel and a map": (lambda: Sum(nn.AdaptiveAvgPool2d(1), nn.Identity()), (4, 5, 5), ["DEPTHWISE_CONV_2D", "ADD"],
                                 ROUNDS_TWICE),
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


@needs_micro
@pytest.mark.parametrize("channels, groups, each", [(4, 2, 1), (6, 2, 5), (6, 3, 2), (12, 4, 3), (16, 8, 1), (24, 12, 2), (10, 5, 4)])
@pytest.mark.parametrize("kernel, options", [(1, {}), (3, {"padding": 1}), ((2, 3), {"stride": (2, 1)}), (3, {"dilation": 2})])
def test_groups_of_many_shapes(channels, groups, each, kernel, options, tmp_path):
    """each: filters a group. tflite-micro and C: bit for bit."""
    network, codes = integers(nn.Conv2d(channels, groups * each, kernel, groups=groups, **options), (channels, 6, 7), n=20)
    tflite.export(network, tmp_path / "net.tflite", (channels, 6, 7))
    assert [operator.name for operator in tflite.describe(tmp_path / "net.tflite").operators] == ["CONV_2D"]
    for kernels in tflite.KERNELS:
        assert np.abs(apart(network, codes, tmp_path / "net.tflite", kernels)).max() <= (kernels not in ROUNDS_TWICE)


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
    from qlab.deploy.tflite_layers import weight_scale

    weights = q.tensors["block3.pointwise"]
    live = weights.codes.flatten(1).any(1).numpy()                                          # a channel of zeros has a step for its bias
    np.testing.assert_array_equal(weight_scale(step)[live], weights.scale.flatten().numpy()[live])
    assert live.any() and not live.all()


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
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2, dilation=2)), (4, 5, 5), "_1 pools with dilation=2, and may not", tmp_path)
    refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), (4, 5, 5), "has codes from -8 to 7, those of 4 bits, and "
            "TensorFlow Lite's go from -128 to 127: quantize activations to 8 bits.$", tmp_path, activation_bits=4)
    network, _ = integers(nn.Linear(4, 2), (4,))
    strange = replace(network, steps=(replace(network.steps[0], kind="gelu"),))
    with pytest.raises(ValueError, match="_0 is a gelu, and a .tflite file is written of conv, linear"):
        tflite.export(strange, tmp_path / "net.tflite", (4,))
    low = integer.Grid(scale=0.0625, zero_point=-100, low=-128, high=-4)                    # ends at the code of 6.0
    clamped = replace(network, steps=(replace(network.steps[0], grids=(network.grid_in, low)),), grid_out=low)
    with pytest.raises(ValueError, match="without a ReLU"):
        tflite.export(clamped, tmp_path / "net.tflite", (4,))
    assert not list(tmp_path.iterdir())


def by_hand(kind, into, out, m=None, n=None, **options):
    """A network of one step. into: grids of its inputs, all the same tensor; m, n: without them, those of the scales."""
    if m is None and kind == "add":
        twice = 2 * max(grid.scale for grid in into)
        m, n = integer.multiplier([into[0].scale / twice, into[1].scale / twice, twice / (2**20 * out.scale)])
    step = integer.Step(kind, "step", ("x",) * len(into), "y", (*into, out), m=m, n=n, **options)
    return integer.IntegerNetwork((step,), "x", "y", into[0], out)


def grid(scale, zero_point=0):
    return integer.Grid(float(np.float32(scale)), zero_point, -128, 127)


def linear_by_hand(into, out, scale, weight=127, bias=0, inputs=4):
    m, n = integer.multiplier([into.scale * float(np.float32(scale)) / out.scale])
    return by_hand("linear", (into,), out, m, n, weight=torch.full((1, inputs), weight, dtype=torch.int8), bias=torch.tensor([bias]).int())


@pytest.mark.parametrize("share", [2.0**-7, 1e-3, 1e-6, 1e-12])
def test_a_sum_far_smaller_than_its_terms_is_refused(share, tmp_path):
    """From 2**-19 on all runtimes abort; from 2**-8 on LiteRT's fast kernels give other codes."""
    with pytest.raises(ValueError, match="step may reach .* times the scale of its result, and LiteRT's kernels hold that in 16 bits"):
        tflite.export(by_hand("add", (grid(0.1), grid(0.1)), grid(0.1 * share)), tmp_path / "net.tflite", (4,))
    assert not list(tmp_path.iterdir())


REFUSED = {  # what each runtime would do: asserted on their own in tests below, or read in their sources
    "a sum's result of a huge scale": (lambda: by_hand("add", (grid(1e30), grid(1e30)), grid(1e33)), (4,), "terms below 1.7e.38"),
    "a sum's terms of a huge scale": (lambda: by_hand("add", (grid(2e38), grid(2e38)), grid(3e31)), (4,), "terms below 1.7e.38"),
    "a sum of other multipliers": (lambda: by_hand("add", (grid(1), grid(1)), grid(2), *integer.multiplier([0.5, 0.25, 2**-20])), (4,),
                                   "step has other multipliers than its scales give"),
    "M of 256": (lambda: linear_by_hand(grid(1), grid(1), 256, weight=1, inputs=1), (1,), "step multiplies its sums by 256, and XNNPACK"),
    "a sum that M > 1 shifts out of int32": (lambda: linear_by_hand(grid(1), grid(1), 100, bias=2**25), (4,), "may reach the sum 33,61"),
    "a sum beyond int32": (lambda: linear_by_hand(grid(1), grid(1e6), 1, bias=2**31 - 1), (4,), "step may reach the sum 2,147,548,671"),
    "a bias's scale below float32": (lambda: linear_by_hand(grid(1e-25), grid(1e-35), 1e-16), (4,), "step needs scales from 1e-41 to"),
    "weights' scales below float32": (lambda: linear_by_hand(grid(1e20), grid(1e-18), 1e-39), (4,), "step needs scales from"),
    "weights' scales above float32": (lambda: by_hand("linear", (grid(1e-30),), grid(1e12), *integer.multiplier([1e-3]), bias=torch.zeros(
        1).int(), weight=torch.ones(1, 4, dtype=torch.int8)), (4,), "step needs scales from .* must be float32"),
    "a tensor of 2 GiB": (lambda: by_hand("relu", (grid(1),), grid(1)), (1, 2**16, 2**15), "x has the shape .* which is 2 GiB or more"),
    "zero-point": (lambda: by_hand("maxpool", (grid(1, 200),), grid(1, 200), options={
        "kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "ceil_mode": False}), (1, 4, 4), "x has the zero-point 200"),
    "scale of 0": (lambda: by_hand("relu", (grid(0),), grid(0)), (4,), "x has the scale 0, and must have a float32"),
    "infinite scale": (lambda: by_hand("relu", (grid(np.inf),), grid(np.inf)), (4,), "x has the scale inf, and must have a float32"),
    "a clamp elsewhere": (lambda: by_hand("relu", (replace(grid(0.1, -128), high=-50),), replace(grid(0.1, -128), high=-50)), (4,),
                          "x has codes up to -50, and TensorFlow Lite clamps at 127 or, after a ReLU6, at the code of 6.0, here -68"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_runtime_cannot_is_refused_by_name(name, tmp_path):
    make, shape, match = REFUSED[name]
    with pytest.raises(ValueError, match=match) as refusal:
        tflite.export(make(), tmp_path / "net.tflite", shape)
    assert str(refusal.value).endswith(".") and not list(tmp_path.iterdir())


def test_a_tensor_that_means_two_things_is_refused(tmp_path):
    network, _ = integers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))
    first, second = network.steps
    other = replace(second.grids[0], scale=second.grids[0].scale * 2)
    for wrong, match in [
        (replace(network, steps=(first, replace(second, grids=(other, second.grids[1])))), "_2 reads _1 as Grid.*, and it is Grid"),
        (replace(network, grid_in=replace(network.grid_in, zero_point=0)), "_0 reads .* as Grid.*, and it is Grid"),
        (replace(network, grid_out=other), "the network gives _2 as Grid.*, and it is Grid"),
        (by_hand("relu", (grid(1),), grid(2)), "step, a relu, reads codes of Grid.* and must hand on what it reads"),
    ]:
        with pytest.raises(ValueError, match=match):
            tflite.export(wrong, tmp_path / "net.tflite", (4,))
    assert not list(tmp_path.iterdir())


def test_an_image_s_shape_may_be_numpy_s(tmp_path):
    network, _ = integers(nn.Linear(4, 2), (4,))
    assert tflite.export(network, tmp_path / "net.tflite", np.array([4])).input.shape == (4,)


def test_logits_too_fine_for_softmax_are_refused(tmp_path):
    network = by_hand("relu", (grid(2**-26),), grid(2**-26))
    with pytest.raises(ValueError, match="y has the scale 1.49012e-08, and SOFTMAX takes logits of a scale above 2"):
        tflite.export(network, tmp_path / "net.tflite", (4,), softmax=True)
    tflite.export(network, tmp_path / "net.tflite", (4,))
    above = by_hand("relu", (grid(2**-26 * 1.001),), grid(2**-26 * 1.001))
    tflite.export(above, tmp_path / "net.tflite", (4,), softmax=True)
    for kernels in [k for k in tflite.KERNELS if k != "micro" or not NO_MICRO]:
        assert (tflite.run(tmp_path / "net.tflite", torch.randn(3, 4), kernels) - 0.25).abs().max() <= 1 / 256


@needs_micro
def test_a_file_beyond_the_arena_is_written_for_litert(tmp_path):
    network, path = by_hand("relu", (grid(1),), grid(1)), tmp_path / "net.tflite"
    tflite.export(network, path, (1, 3000, 3000))
    codes = torch.randint(-128, 128, (2, 1, 3000, 3000), dtype=torch.int8)
    assert torch.equal(tflite.run(path, codes), network.run(codes))
    for run in (lambda: tflite.run(path, codes, "micro"), lambda: tflite.load(path, "micro"), lambda: tflite.arena(path)):
        with pytest.raises(ValueError, match="needs more memory than the 16 MiB that tflite-micro is given here: at y.*18,00.,... bytes"):
            run()
    files.beside(path).unlink()
    with pytest.raises(ValueError, match="tflite-micro refuses"):
        tflite.run(path, codes, "micro")


@needs_micro
def test_just_within_the_limits_all_runtimes_agree(tmp_path):
    """M of nearly 256, a sum of nearly 2**15 codes, an arena of nearly 16 MiB."""
    cases = [
        (linear_by_hand(grid(1), grid(1), 255.9, weight=1, inputs=1), (1,)),
        (linear_by_hand(grid(1), grid(1), 100, bias=2**24 - 2**17), (4,)),
        (by_hand("add", (grid(1), grid(1)), grid(1 / 127)), (4,)),
        (by_hand("relu", (grid(1),), grid(1)), (1, 2890, 2890)),
    ]
    for network, shape in cases:
        codes = torch.cat([torch.full((1, *shape), q, dtype=torch.int8) for q in (-128, -1, 0, 1, 127)][: 2 if len(shape) > 1 else 5])
        tflite.export(network, tmp_path / "net.tflite", shape)
        for kernels in tflite.KERNELS:
            assert np.abs(apart(network, codes, tmp_path / "net.tflite", kernels)).max() <= (kernels not in ROUNDS_TWICE)


def random_network(seed):
    """One step of a random kind, shape and grid, scales over eight decades or sixty; and its image's shape."""
    rng = np.random.default_rng(seed)
    decades = rng.choice([4, 30])

    def any_grid(near=None, within=4):
        scale = 10 ** rng.uniform(-decades, decades) if near is None else near * 10 ** rng.uniform(-within, 1)
        return grid(scale, int(rng.choice([-128, 0, 127, rng.integers(-128, 128)])))

    into, kind = any_grid(), rng.choice(["conv", "linear", "mean", "add"])
    shape = (int(rng.choice([1, 2, 4, 6])), *map(int, rng.integers(1, 8, 2)))
    if kind == "add":
        return by_hand("add", (into, into), any_grid(into.scale, 9)), shape
    if kind == "mean":
        kernel, out = tuple(int(rng.integers(1, size + 1)) for size in shape[1:]), any_grid(into.scale)
        m, n = integer.multiplier([into.scale * float(np.float32(1 / np.prod(kernel))) / out.scale])
        return by_hand("mean", (into,), out, m, n, options={"kernel_size": kernel, "stride": tuple(map(int, rng.integers(1, 4, 2)))}), shape
    shape = shape if kind == "conv" else (int(rng.integers(1, 40)),)
    groups = int(rng.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])) if kind == "conv" else 1
    channels = groups * int(rng.integers(1, 4))
    size = (channels, shape[0] // groups, *(int(rng.integers(1, 5)) for _ in shape[1:]))
    weight = torch.from_numpy(rng.integers(-127, 128, size).astype(np.int8))
    scales = np.float32(10 ** rng.uniform(-4, 0, channels))
    out = any_grid(into.scale * float(scales.mean()) * 70 * weight[0].numel() ** 0.5)
    m, n = integer.multiplier(into.scale * torch.from_numpy(scales).double() / out.scale)
    options = {"stride": tuple(map(int, rng.integers(1, 6, 2))), "padding": tuple(map(int, rng.integers(0, 4, 2))),
               "dilation": tuple(map(int, rng.integers(1, 3, 2))), "groups": groups} if kind == "conv" else {}
    bias = torch.from_numpy(rng.normal(0, 10 ** rng.uniform(0, 7), channels).astype(np.int32))
    return by_hand(kind, (into,), out, m, n, weight=weight, bias=bias, relu=bool(rng.random() < 0.3), options=options), shape


@needs_micro
def test_a_random_network_runs_in_all_or_is_refused(tmp_path):
    """Whatever is written gives qlab's codes in tflite-micro, and in LiteRT codes that are one apart at most."""
    written = refused = 0
    for seed in range(120):
        try:
            network, shape = random_network(seed)
            codes = torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, (10, *shape)).astype(np.int8))
            codes[0], codes[1] = -128, 127
            network.run(codes)
        except (RuntimeError, ValueError):  # a kernel larger than the map, scales too far apart for a multiplier
            continue
        try:
            tflite.export(network, tmp_path / "net.tflite", shape)
        except ValueError as error:
            assert str(error).startswith(("step ", "x ", "y "))
            refused += 1
            continue
        written += 1
        for kernels in tflite.KERNELS:
            assert np.abs(apart(network, codes, tmp_path / "net.tflite", kernels)).max() <= (kernels != "micro"), (seed, kernels)
    assert written > 40 and refused > 10


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


def test_a_batch_is_as_large_as_memory_allows(small, monkeypatch):
    network, codes, path = small
    monkeypatch.setattr(tflite, "BYTES", 20)                                                # of 9 bytes an image, two at once
    batches, split = [], torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda codes, count: batches.append(count) or split(codes, count))
    assert (tflite.run(path, codes).int() - network.run(codes).int()).abs().max() <= 1 and batches == [2]
    monkeypatch.setattr(tflite, "BYTES", 0)
    tflite.run(path, codes[:3])
    assert batches == [2, 1]


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
    with pytest.raises(ImportError, match=r"^tflite-micro \(.* alone\) is not installed: .*pip install -e '\.\[deploy\]' "):
        tflite.run(path, codes, "micro")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"^ai-edge-litert is not installed: \.venv/bin/pip install -e '\.\[deploy\]' "):
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


# Images at the door


def test_nan_and_infinity_are_refused(small):
    _, _, path = small
    for bad in (np.nan, np.inf, -np.inf):
        images = torch.randn(4, 6)
        images[2, 3] = bad
        for x in (images, images.double(), images.half(), images.bfloat16(), images.numpy(), images.tolist()):
            with pytest.raises(ValueError, match="the images hold NaN or infinity, and must be finite"):
                tflite.run(path, x)
        with pytest.raises(ValueError, match="the images hold NaN or infinity, and must be finite"):
            tflite.encode(images, tflite.describe(path).inputs[0])


def test_images_of_any_precision_get_the_codes_of_float32(small):
    network, _, path = small
    images, tensor = torch.randn(200, 6) * 3, tflite.describe(path).inputs[0]
    assert torch.equal(tflite.encode(images, tensor), network.encode(images))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(tflite.encode(images.to(dtype), tensor), tflite.encode(images.to(dtype).float(), tensor))
        assert torch.equal(tflite.run(path, images.to(dtype)), tflite.run(path, images.to(dtype).float()))


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_layout(small):
    _, codes, path = small
    images = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    fixed = images.copy()
    fixed.flags.writeable = False
    want = tflite.run(path, torch.from_numpy(images))
    for x in (fixed, np.asfortranarray(images), images.astype(">f4"), images.tolist()):
        assert torch.equal(tflite.run(path, x), want)
    assert torch.equal(tflite.run(path, images[::-1]), want.flip(0))
    assert torch.equal(tflite.run(path, codes.numpy()[::-1]), tflite.run(path, codes.flip(0)))
    with pytest.raises(TypeError, match="x is a str and no tensor"):
        tflite.run(path, "cat")


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_loaded_file_takes_codes_of_its_shape_only(small, kernels):
    network, codes, path = small
    infer = tflite.load(path, kernels)
    assert np.array_equal(infer(codes.numpy()[::-1]), tflite.run(path, codes.flip(0), kernels)) and infer(codes[:0].numpy()).shape == (0, 3)
    for wrong in (codes[:, :5], codes.int(), codes[0], codes[:, :, None]):
        with pytest.raises(ValueError, match=r"the codes are int.* of the shape .*, and must be int8 of the shape .n, 6."):
            infer(wrong.numpy())
    with pytest.raises(ValueError, match="threads is 0, and must be 1 or more"):
        tflite.load(path, kernels, threads=0)


# Files from elsewhere


def foreign(network, path, shape):
    """The network's file as if from elsewhere: without its description."""
    tflite.export(network, path, shape)
    files.beside(path).unlink()
    return path


def rewritten(path, change):
    """Change a file through the schema's own classes."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.fixture
def children(monkeypatch):
    """The processes that tflite starts, in order."""
    started, start = [], subprocess.Popen
    monkeypatch.setattr(tflite_child.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    yield started
    assert all(process.poll() is not None for process in started)                           # none stays behind


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_foreign_file_gives_the_same_numbers(kernels, tmp_path, children):
    network, codes = integers(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)), (2, 5, 5), n=130)
    tflite.export(network, tmp_path / "ours.tflite", (2, 5, 5))
    path = foreign(network, tmp_path / "foreign.tflite", (2, 5, 5))
    assert torch.equal(tflite.run(path, codes, kernels), tflite.run(tmp_path / "ours.tflite", codes, kernels))
    images = torch.randn(3, 2, 5, 5)
    assert torch.equal(tflite.run(path, images, kernels), tflite.run(tmp_path / "ours.tflite", images, kernels))
    assert len(children) == 2
    infer = tflite.load(path, kernels)
    infer(np.zeros((1, 5, 5, 2), np.int8))
    assert children[2].poll() is None                                                       # one for all calls, until nobody can call
    del infer


@needs_micro
def test_the_arena_of_a_foreign_file(tmp_path, children):
    network, _ = integers(nn.Conv2d(2, 4, 3), (2, 5, 5), n=8)
    tflite.export(network, tmp_path / "ours.tflite", (2, 5, 5))
    assert tflite.arena(foreign(network, tmp_path / "foreign.tflite", (2, 5, 5))) == tflite.arena(tmp_path / "ours.tflite")
    assert len(children) == 1


@needs_micro
def test_a_foreign_network_of_floats(children):
    """The sine that tflite-micro brings, computed by hand from its constants."""
    path = Path(importlib.util.find_spec("tflite_micro").submodule_search_locations[0]) / "python/tflite_micro/sine_float.tflite"
    x = torch.linspace(0, 6, 30)[:, None]
    w1, b1, w2, b2, w3, b3 = (torch.tensor(value) for value in tflite.constants(path).values())
    want = torch.relu(torch.relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    for kernels in tflite.KERNELS:
        assert (tflite.run(path, x, kernels) - want).abs().max() < 1e-5
    with pytest.raises(ValueError, match="the images hold NaN or infinity"):
        tflite.run(path, x / 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to name")
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_file_that_aborts_is_refused(kernels, tmp_path, monkeypatch, children):
    """A sum of a multiplier of 1.9, which export refuses: TFLITE_CHECK_LT(double_multiplier, 1.) ends the process."""
    monkeypatch.setattr(tflite_limits, "check_sum", lambda step: None)
    path = foreign(by_hand("add", (grid(1), grid(1)), grid(2.0**-19 / 1.9)), tmp_path / "net.tflite", (4,))
    with pytest.raises(ValueError, match=r"net.tflite cannot be run by .*, whose process was ended by SIGABRT\.$"):
        tflite.run(path, torch.zeros(1, 4), kernels)


def test_a_file_of_another_version_is_foreign(small, children):
    _, codes, path = small
    told = json.loads(files.beside(path).read_text())
    tflite.run(path, codes)
    assert not children
    for change in ({"qlab": "0.0.1"}, {"format": "onnx, static, batch of any size"}):
        files.beside(path).write_text(json.dumps(told | change))
        tflite.run(path, codes)
    assert len(children) == 2


def test_a_file_that_takes_too_long_is_refused(small, monkeypatch, children):
    _, codes, path = small
    files.beside(path).unlink()
    monkeypatch.setattr(tflite_child, "SECONDS", 0.001)
    with pytest.raises(ValueError, match="net.tflite cannot be run by LiteRT, whose process did not answer within 0.001 seconds"):
        tflite.load(path)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a process's memory")
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_file_that_eats_memory_is_refused(kernels, tmp_path, children):
    path = foreign(by_hand("relu", (grid(1),), grid(1)), tmp_path / "net.tflite", (1, 4, 4))

    def grow(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.shape = [1, 60000, 60000, 1]

    with pytest.raises(ValueError, match="refuses .*net.tflite: it gives no reason, as where memory runs out|failed to allocate"):
        tflite.load(rewritten(path, grow), kernels)


def test_a_process_that_was_ended_says_so_again(small, children):
    _, codes, path = small
    files.beside(path).unlink()
    infer = tflite.load(path)
    children[0].kill()
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be run by LiteRT, whose process"):
            infer(codes.numpy())


def test_a_foreign_file_in_a_program_without_a_main_guard(small):
    """The program's folder is not on its path, and the modules there are not for the child to import."""
    _, _, path = small
    files.beside(path).unlink()
    program = path.with_name("program.py")
    program.write_text(f"import sys\nsys.path.append({str(Path(tflite.__file__).parents[2])!r})\n"
                       "import torch\nfrom qlab.deploy import tflite\n"
                       f"print(tflite.run({path.name!r}, torch.zeros(2, 6)).shape)\n")
    for name in ("numpy", "json", "qlab"):
        path.with_name(f"{name}.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run([sys.executable, "-P", program], cwd=path.parent, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 3])\n", done.stderr


def test_damaged_files_are_read_or_refused(tmp_path):
    """Flips, cuts, splices and lengths that are too large, in dozens: an answer or one sentence, at once, with the memory of the file."""
    network, _ = integers(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)), (2, 5, 5), n=8)
    path = foreign(network, tmp_path / "net.tflite", (2, 5, 5))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for case in range(90):
        content, at = bytearray(whole), int(rng.integers(8, len(whole) - 8))
        if case % 3 == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif case % 3 == 1:
            content[at // 4 * 4:at // 4 * 4 + 4] = struct.pack("<I", int(rng.choice([2**31 - 1, 2**32 - 1, len(whole), len(whole) // 8])))
        else:
            start = int(rng.integers(0, len(whole) - 200))
            content[at:at + 200] = whole[start:start + int(rng.integers(0, 200))]
        path.write_bytes(content)
        for read in (tflite.describe, tflite.constants):
            try:
                read(path)
                outcomes["read"] += 1
            except ValueError as error:
                outcomes["refused"] += 1
                assert str(error).startswith((str(path), "_")) and str(error).endswith(".")
    assert min(outcomes.values()) > 30


def test_a_length_that_leads_to_the_same_bytes_again_and_again_is_refused(tmp_path):
    """5,000 operators that are one, with 5,000 inputs: 150 kB that stand for 25 million."""
    from ai_edge_litert import schema_py_generated as schema

    network, _ = integers(nn.Linear(4, 2), (4,))

    def grow(model):
        graph, small = model.subgraphs[0], schema.OperatorT()
        small.inputs, small.outputs = [0], [0]
        graph.operators[0].inputs = [0] * 5000
        graph.operators += [small] * 4999

    path = rewritten(foreign(network, tmp_path / "net.tflite", (4,)), grow)
    assert len(tflite.describe(path).operators) == 5000
    content = bytearray(path.read_bytes())
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    table, first = graph._tab.Vector(graph._tab.Offset(10)), graph.Operators(0)._tab.Pos
    for place in range(table, table + 4 * 5000, 4):
        struct.pack_into("<I", content, place, first - place)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        tflite.describe(path)


def test_what_lies_outside_the_file_is_not_read(tmp_path):
    network, _ = integers(nn.Linear(4, 2), (4,))
    for change in (lambda graph: setattr(graph.tensors[1], "buffer", 1000), lambda graph: setattr(graph.operators[0], "inputs", [0, 99])):
        path = rewritten(foreign(network, tmp_path / "net.tflite", (4,)), lambda model, change=change: change(model.subgraphs[0]))
        with pytest.raises(ValueError, match="is damaged: it begins as a .tflite file and cannot be read to its end"):
            tflite.describe(path)
    with open(path, "ab") as file:  # a hole, which takes no room on the disk
        file.truncate(2**31)
    with pytest.raises(ValueError, match="it has 2,147,483,648 bytes, and such a file less than 2 GiB"):
        tflite.describe(path)


def test_constants_that_cannot_be_told_apart_or_shown_are_refused(tmp_path):
    network, _ = integers(nn.Linear(4, 2), (4,))

    def change(**values):
        def inside(model):
            for name, value in values.items():
                setattr(model.subgraphs[0].tensors[1], name, value)

        return rewritten(foreign(network, tmp_path / "net.tflite", (4,)), inside)

    with pytest.raises(ValueError, match="has two constants called '_0 bias'"):
        tflite.constants(change(name="_0 bias"))
    with pytest.raises(ValueError, match="_0 weight in .* is of the dtype int4, and must be one that NumPy has"):
        tflite.constants(change(type=17))
    for shape in ([2, 5], [-2, -4]):
        with pytest.raises(ValueError, match="is damaged: _0 weight, int8 of the shape .*, has 8 bytes"):
            tflite.constants(change(shape=shape))
