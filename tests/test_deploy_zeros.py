"""Filters of zeros, as the zoo's networks have where training left dead ones: every export knows them, without a scale of 0 or a NaN."""

import pytest
import torch
from torch import nn

from qlab.deploy import c, onnx, pytorch, tflite
from qlab.lab import data
from qlab.nets import integer, ptq, qat

CALIBRATION, IMAGES = data.calibration(128).images, data.load("test").images[:100]


def small():
    """A convolution with a silent filter, then a depthwise one of zeros and a bias, a linear layer with a zero row."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(484, 10))
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 0
        net[2].weight[1], net[2].bias[1] = 0, 0.5
        net[5].weight[3] = 0
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return integer.convert(ptq.quantize(small(), CALIBRATION))


def close(logits, steps=4):
    """Within a few 255ths of the logits' range of the float network."""
    exact = small()(IMAGES)
    assert logits.isfinite().all()
    assert (logits - exact).abs().max() <= steps / 255 * (exact.max() - exact.min())


def test_in_integers(network):
    assert all(scale > 0 for step in network.steps for scale in [grid.scale for grid in step.grids])
    assert all((step.m > 0).all() for step in network.steps if step.m is not None)
    close(network.decode(network(IMAGES)))


@pytest.mark.parametrize("bias", [-0.4, 0.0, 1e-30, 0.1, 0.7])
def test_a_row_of_zeros_gives_its_bias_whatever_the_input_s_step(bias):
    """Pixels of 0 to 255 have a step of 1.0, and the bias of a channel without weights must not be rounded to it."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 255 * torch.rand(64, 1, 2, 2)
    with torch.no_grad():
        net[1].weight.div_(255)[1] = 0
        net[1].bias.copy_(torch.tensor([0.1, bias, 0.0]))
    network = integer.convert(ptq.quantize(net, x), (1, 2, 2))
    step = network.grid_out.scale
    assert (network.decode(network(x))[:, 1] - bias).abs().max() <= 0.51 * step < 0.02      # to nearest, of a bias in 20 bits


@pytest.mark.parametrize("learned", [True, False])
def test_training_with_rounding_gives_filters_of_zeros_the_same_codes(learned, network):
    trained = integer.convert(qat.convert(qat.prepare(small(), CALIBRATION, 8, 8, learned=learned, ranges="minmax")))
    for ours, theirs in zip(network.steps, trained.steps):
        if ours.weight is not None:
            none = ~ours.weight.flatten(1).any(1)
            assert none.any() and all(torch.equal(getattr(ours, t)[none], getattr(theirs, t)[none]) for t in ("weight", "bias", "m", "n"))


def test_in_c(network, tmp_path):
    c.export(network, tmp_path / "net.c")
    codes = network.encode(IMAGES)
    try:
        assert torch.equal(c.run(tmp_path / "net.c", codes), network.run(codes))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kernels", tflite.KERNELS)
def test_in_tflite(network, tmp_path, kernels):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")
    if kernels == "micro":
        pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: pip install qlab[deploy]")
    tflite.export(network, tmp_path / "net.tflite")
    tensors = [tensor for operator in tflite.describe(tmp_path / "net.tflite").operators for tensor in operator.inputs]
    assert all(scale > 0 for tensor in tensors for scale in tensor.scale)
    codes = network.encode(IMAGES)
    apart = (tflite.run(tmp_path / "net.tflite", codes, kernels).int() - network.run(codes).int()).abs().max()
    assert apart <= (0 if kernels == "micro" else 2)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_in_onnx(tmp_path, kind):
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install qlab[deploy]")
    onnx.export(small(), tmp_path / "net.onnx", CALIBRATION, kind)
    close(onnx.run(tmp_path / "net.onnx", IMAGES, threads=1), 12)                           # weights of 7 bits, one scale for a sum


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_in_pytorch(tmp_path, kind):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install qlab[deploy]")
    pytorch.export(small(), tmp_path / "net.pt", CALIBRATION, kind)
    close(pytorch.run(tmp_path / "net.pt", IMAGES, trust=True), 12)
