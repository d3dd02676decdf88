"""Integer-only inference against NumPy integers, the fake-quantized network, and exact arithmetic with fractions."""

from fractions import Fraction

import integer_reference
import numpy as np
import pytest
import step_reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qlab.lab import data, zoo
from qlab.nets import integer, ptq, steps
from qlab.nets.models import MODELS
from qlab.quant import kmeans, linear, log

IMAGES = data.load("test").images[:4]


def per_tensor(bits):
    return lambda w: linear.quantize(w, bits, "symmetric")


@pytest.fixture(scope="module")
def calibration():
    return data.calibration(64).images


def same_as_numpy(quantized, images, shape=(1, 28, 28)):
    network = integer.convert(quantized, shape)
    codes, fake = integer_reference.run(quantized, images)
    np.testing.assert_array_equal(network(images).numpy().astype(int) + 2 ** (fake.bits - 1), codes)
    return network


# The arithmetic


@given(st.lists(st.integers(-2**31, 2**31 - 1), min_size=1, max_size=20), st.floats(1e-12, 100))
def test_multiply_rounds_as_gemmlowp_does(values, real):
    ours = integer.multiply(torch.tensor(values, dtype=torch.int32), *integer.multiplier([real]))
    np.testing.assert_array_equal(ours.numpy(), integer_reference.scaled(np.array(values), real))


@given(st.integers(-2**24, 2**24), st.floats(1e-9, 1))
def test_multiply_is_nearest(a, real):
    m, n = integer.multiplier([real])
    exact = Fraction(a) * Fraction(int(m)) * Fraction(2) ** (int(n) - 31)
    product = int(integer.multiply(torch.tensor([a], dtype=torch.int32), m, n))
    assert abs(product - exact) <= Fraction(1, 2) + Fraction(1, 2) * Fraction(2) ** min(0, int(n))  # two roundings, the first of them finer


@given(st.floats(1e-9, 1e6))
def test_a_multiplier_has_31_bits(real):
    m, n = integer.multiplier([real])
    assert 2**30 <= int(m) < 2**31 and float(m.double() * 2.0 ** (n.double() - 31)) == pytest.approx(real, rel=2**-30)


def test_a_layer_by_hand():
    """x = 0.5 (q - 2), w = 0.25 q: 3 * 0.5 - 1 * 0.25 + 0.3 = 1.55, which is code 2 + 1.55 / 0.1 = 17.5: of the two, 18."""
    step = integer.Step("linear", "fc", ("x",), "y", (integer.Grid(0.5, 2, -8, 7), integer.Grid(0.1, 2, -128, 127)),
                        weight=torch.tensor([[2, -1]], dtype=torch.int8), bias=torch.tensor([2], dtype=torch.int32),
                        **dict(zip("mn", integer.multiplier([0.5 * 0.25 / 0.1]))))
    codes = integer.RUN["linear"](step, torch.tensor([[8, 3]], dtype=torch.int8))           # 12 - 1 + 2 = 13 units of 0.125
    assert codes.tolist() == [[18]]                                                         # 2 + 16.25


def test_int8_arithmetic_in_torch_wraps_and_ours_does_not():
    a = torch.full((1, 4), 100, dtype=torch.int8)
    assert (a @ a.T).item() != 40_000
    assert (steps._centred(a, integer.Grid(1.0, 0, -128, 127)) @ a.T.int()).item() == 40_000


# Whole networks


@pytest.mark.parametrize("name, options", [
    ("cnn", {}), ("cnn", {"weights": per_tensor(4), "activation_bits": 4}), ("depthwise", {"equalize": True, "weights": per_tensor(8)}),
    ("depthwise", {}), ("resnet", {"ranges": "percentile"}), ("lenet300", {}), ("lenet5", {"correct_bias": True}),
])
def test_the_zoo_is_bit_for_bit_the_numpy_reference(name, options, calibration):
    quantized = ptq.quantize(zoo.load(name), calibration, **options)
    same_as_numpy(quantized, IMAGES if name != "resnet" else IMAGES[:2])


@pytest.mark.parametrize("name", ["cnn", "depthwise"])
def test_predictions_are_the_fake_quantized_network_s(name, calibration):
    quantized, images = ptq.quantize(zoo.load(name), calibration), data.load("test").images[:200]
    network = integer.convert(quantized)
    with torch.no_grad():
        logits = quantized.model(images)
    codes = network(images)
    assert (codes.argmax(1) == logits.argmax(1)).float().mean() >= 0.99                     # 0.995 on 10,000: the record of notebook 06
    assert (network.decode(codes) - logits).abs().max() <= 4 * network.grid_out.scale


def test_the_codes_of_an_image_are_its_pixels(calibration):
    network = integer.convert(ptq.quantize(zoo.load("lenet300"), calibration))
    pixels = (IMAGES * data.STD + data.MEAN) * 255
    assert (network.encode(IMAGES).int() + 128 - pixels.round()).abs().max() == 0


class Odd(nn.Module):
    """A layer that runs twice, one without bias, a sum, a mean, a ReLU of a maximum, functions, a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2)
        self.never = nn.Conv2d(4, 100, 3)
        self.mean, self.last = nn.AvgPool2d(2), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.twice(x) + self.twice(torch.relu(x))
        y = F.relu(y + x)
        y = self.grouped(F.max_pool2d(y, 2).relu())
        return self.last(torch.flatten(self.mean(y), 1))


def tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2, bias=False))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize("net, shape", [
    (Odd, (1, 16, 16)), (tied, (6,)), (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)), (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,)),
])
def test_odd_networks_are_handled(net, shape):
    torch.manual_seed(0)
    net, images = net(), torch.randn(32, *shape)
    quantized = ptq.quantize(net, images)
    network = same_as_numpy(quantized, images[:5], shape)
    with torch.no_grad():
        error = (network.decode(network(images)) - net(images)).abs().max()
    assert error < 0.1 * net(images).abs().max()
    assert "never" not in {step.name for step in network.steps} and "never" not in quantized.tensors


def test_shared_weights_are_stored_once():
    images = torch.randn(32, 6)
    assert ptq.quantize(tied(), images).nbytes < ptq.quantize(nn.Sequential(*[nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6),
                                                                             nn.Linear(6, 2, bias=False)]), images).nbytes


def test_a_channel_without_weights_keeps_its_bias():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 1e-20, 5.0                                       # b / (s_x s_w) is far beyond int32
    images = torch.rand(16, 3)
    network = same_as_numpy(ptq.quantize(net, images), images, (3,))
    assert (network.decode(network(images)) - net(images)).abs().max() < 0.05


def test_a_constant_activation_is_exact():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.copy_(torch.tensor([0.7, 0.7]))
    images = torch.rand(16, 3)
    network = same_as_numpy(ptq.quantize(net, images), images, (3,))
    torch.testing.assert_close(network.decode(network(images)), net(images).detach(), rtol=0.02, atol=0.02)
    zero = ptq.quantize(net, torch.zeros(4, 3))
    assert torch.isfinite(zero.model(torch.zeros(1, 3))).all() and same_as_numpy(zero, torch.zeros(1, 3), (3,))


# What is refused


@pytest.mark.parametrize("weights, said", [
    (lambda w: kmeans.quantize(w, 4), "are kmeans codes"), (lambda w: log.quantize(w, 4), "are log codes"),
    (lambda w: linear.quantize(w, 8, "affine"), "are affine codes"),
    (lambda w: linear.quantize(w, 8, "symmetric", axis=0, group_size=2), "group_size=2"),
    (lambda w: linear.quantize(w, 12, "symmetric"), "of 12 bits"),
])
def test_weights_that_are_no_integers_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        integer.convert(ptq.quantize(nn.Sequential(nn.Linear(4, 2)), torch.rand(8, 4), weights), (4,))


def test_other_refusals():
    with pytest.raises(ValueError, match="activations have no codes"):
        integer.convert(ptq.quantize_weights(nn.Linear(4, 2), per_tensor(8)))
    network = integer.convert(ptq.quantize(nn.Sequential(nn.Linear(4, 2)), torch.rand(8, 4)), (4,))
    with pytest.raises(TypeError, match="must be int8"):
        network.run(torch.rand(1, 4))
    with pytest.raises(ValueError, match="which the network cannot take"):
        integer.convert(ptq.quantize(nn.Sequential(nn.Linear(4, 2)), torch.rand(8, 4)), (5,))
    circular = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="must pad with zeros"):
        integer.convert(ptq.quantize(circular, torch.rand(8, 1, 5, 5)), (1, 5, 5))
    tiny = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        tiny[1].weight.fill_(1e-20), tiny[1].bias.zero_()
    quantized = ptq.quantize(tiny, torch.rand(8, 4))
    quantized.model.get_submodule("_1_codes").scale.fill_(1e-38)
    with pytest.raises(ValueError, match="_1 cannot be computed in integers: a multiplier is .* and must be below 2..30"):
        integer.convert(quantized, (4,))
    with pytest.raises(ValueError, match="at most 32768"):
        integer.convert(ptq.quantize(nn.Sequential(nn.Linear(40_000, 1)), torch.rand(2, 40_000)), (40_000,))


def test_every_architecture_of_the_zoo_converts_untrained():
    for make in MODELS.values():
        network = integer.convert(ptq.quantize(make(), IMAGES))
        assert network(IMAGES).shape == (4, 10) and network.nbytes > 0


def test_relu6_ends_at_the_code_of_six():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU6(), nn.Flatten(), nn.Linear(24, 3))
    for layer in (net[0], net[2]):
        layer.weight.data *= 9  # so that many values lie beyond 6
    images = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    quantized = ptq.quantize(net, images)
    assert (net[:2](images) == 6).float().mean() > 0.1
    network = same_as_numpy(quantized, images, (1, 6, 6))
    # A range beyond 6, as training may leave it: the codes above that of 6.0 must not be reached.
    fake = next(m for name, m in quantized.model.named_modules() if type(m).__name__ == "FakeQuantize" and name.startswith("_1"))
    fake.scale.fill_(10 / 255)
    wide = same_as_numpy(quantized, images, (1, 6, 6))
    assert network.steps[0].grids[-1].high == 127 and wide.steps[0].grids[-1].high == -128 + 153


def test_a_relu6_alone_ends_at_the_code_of_six():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight.mul_(20)
    images = torch.rand(4, 1, 6, 6)
    network = integer.convert(ptq.quantize(net, images), (1, 6, 6))
    step = next(s for s in network.steps if s.kind == "relu6")
    assert step.options["high"] == step.grids[0].zero_point + round(6 / step.grids[0].scale) < 127
    codes = network.encode(images)
    np.testing.assert_array_equal(network.run(codes).numpy(), step_reference.network(network, codes.numpy()))


def test_a_linear_layer_may_read_a_map():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 7, 2))
    images = torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    same_as_numpy(ptq.quantize(net, images, weights=lambda w: linear.quantize(w, 8, "symmetric", axis=0)), images, (3, 4, 5))
