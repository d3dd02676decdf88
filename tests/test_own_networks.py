"""One's own network: read, quantized, trained with rounding, and computed in integers."""

import copy
import itertools

import numpy as np
import pytest
import step_reference
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, Forward, network
from torch import nn

from qlab.nets import graph, integer, operations, ptq, qat
from qlab.nets.pooling import windows_of


@pytest.fixture(scope="module", params=NETWORKS)
def own(request):
    """Name, network, images, and the network quantized."""
    net, x = network(request.param)
    return request.param, net, x, ptq.quantize(net, x.clone())


def test_the_graph_computes_what_the_network_does(own):
    _, net, x, _ = own
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(graph.trace(net)(x.clone()), net(x.clone()))
        torch.testing.assert_close(ptq.fold_batch_norm(net)(x.clone()), net(x.clone()), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in ptq.fold_batch_norm(net).modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))


def test_eight_bits_are_near_the_floats_and_integers_near_eight_bits(own):
    _, net, x, quantized = own
    integers = integer.convert(quantized, tuple(x.shape[1:]))
    with torch.no_grad():
        floats, fake = net(x.clone()), quantized.model(x.clone())
    assert (fake - floats).abs().max() < 0.03 * floats.abs().max()
    assert (integers.decode(integers(x.clone())) - fake).abs().max() <= 3.01 * integers.grid_out.scale
    assert integers(x[:0].clone()).shape == (0, *floats.shape[1:])


def test_integers_are_those_of_numpy(own):
    _, _, x, quantized = own
    integers = integer.convert(quantized, tuple(x.shape[1:]))
    codes = integers.encode(x[:5].clone())
    assert np.array_equal(integers.run(codes).numpy(), step_reference.network(integers, codes.numpy()))


def test_training_with_rounding_starts_at_the_same_codes_and_trains(own):
    _, net, x, quantized = own
    prepared = qat.prepare(net, x.clone(), 8, 8, learned=False, ranges="minmax")
    shape = tuple(x.shape[1:])
    assert torch.equal(integer.convert(qat.convert(prepared), shape)(x.clone()), integer.convert(quantized, shape)(x.clone()))
    learned = qat.prepare(net, x.clone(), 4, 8)
    out = learned(x.clone())
    qat.train(learned, x.clone(), torch.zeros(len(x), *out.shape[2:], dtype=torch.long), 1, 1e-3)
    integers = integer.convert(qat.convert(learned), shape)
    assert (integers.decode(integers(x.clone())) - learned(x.clone())).abs().max() < 0.05 * learned(x.clone()).abs().max()


def test_every_kind_of_node_and_every_layer_is_in_some_network():
    kinds, layers = set(), set()
    for name in NETWORKS:
        traced = graph.trace(network(name)[0])
        kinds |= {graph.kind(traced, node) for node in traced.graph.nodes}
        layers |= {type(m) for m in traced.modules()}
    assert kinds >= {*operations.LAYER_KINDS.values(), *operations.MAKES, *operations.VIEWS, "size"}
    unary = {layer for layer, kind in operations.LAYER_KINDS.items() if kind == "table"}
    assert {*operations.LAYER_KINDS} - unary <= layers | {nn.ZeroPad1d, nn.ConstantPad1d, nn.ConstantPad3d}


@pytest.mark.parametrize("layer", [layer for layer, kind in operations.LAYER_KINDS.items() if kind == "table"])
def test_a_table_is_the_function_of_each_code(layer):
    made = layer(0.5, 20.0) if layer is nn.Threshold else layer()
    net = nn.Sequential(nn.Identity(), made)
    x = torch.linspace(-4, 3, 512).view(-1, 1)
    quantized = ptq.quantize(net, x)
    integers = integer.convert(quantized, (1,))
    codes = torch.arange(-128, 128).to(torch.int8).view(-1, 1)
    into, out = integers.grid_in, integers.grid_out
    values = made((codes.double() - into.zero_point) * into.scale)
    expected = np.clip(np.round(values.numpy() / out.scale) + out.zero_point, -128, 127).astype(np.int8)
    assert np.array_equal(integers.run(codes).numpy(), expected) and len(np.unique(expected)) > 1


# Refused by name


class Mixed(nn.Module):
    def forward(self, x):
        return x.view(-1, 3)


REFUSED = {
    "several outputs": (Forward(lambda n, x: (n.a(x), n.a(x)), a=nn.Linear(12, 2)), "returns several values"),
    "a dictionary": (Forward(lambda n, x: {"a": n.a(x)}, a=nn.Linear(12, 2)), "returns several values"),
    "softmax inside": (nn.Sequential(nn.Linear(12, 4), nn.Softmax(1), nn.Linear(4, 2)), "1, a Softmax over dimension 1 of .4,."),
    "images mixed": (Mixed(), "makes .12, 3. of 3 images, and must keep each image apart"),
    "images moved": (Forward(lambda n, x: n.a(x).t(), a=nn.Linear(12, 3)), "t, a call of t, cannot be quantized"),
    "a mean of images": (Forward(lambda n, x: n.a(x) + x.mean(0, keepdim=True), a=nn.Linear(12, 12)), "mean makes .1, 12. of 3 images"),
    "a parameter read": (Forward(lambda n, x: n.a(x) * n.a.bias, a=nn.Linear(12, 3)), "a.bias, which forward reads itself, cannot"),
    "a quotient of tensors": (Forward(lambda n, x: n.a(x) / n.b(x), a=nn.Linear(12, 3), b=nn.Linear(12, 3)), "truediv, a call of truediv"),
    "a matrix product": (Forward(lambda n, x: n.a(x) @ n.a(x), a=nn.Linear(12, 3)), "matmul, a call of matmul"),
    "a recurrent layer": (Forward(lambda n, x: n.r(x)[0], r=nn.GRU(12, 3)), "r, a GRU, cannot be quantized"),
    "layer norm": (nn.Sequential(nn.Linear(12, 3), nn.LayerNorm(3)), "1, a LayerNorm"),
    "three dimensions": (nn.Sequential(nn.Unflatten(1, (1, 2, 2, 3)), nn.Conv3d(1, 1, 1)), "1, a Conv3d"),
    "no number": (nn.Sequential(nn.Linear(12, 3), Forward(lambda n, x: x**0.5)), "the values at pow_1 hold NaN"),
    "reflected": (nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.ReflectionPad2d(1)), "1, a ReflectionPad2d"),
    "cut off by padding": (nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.ZeroPad2d((-1, 0, 0, 0))), "1 pads by .-1, 0, 0, 0."),
    "cut off by a transposed convolution": (nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.ConvTranspose2d(3, 1, 1, padding=1)),
                                            "1, a ConvTranspose2d with padding .1, 1., cuts off more"),
    "a size as a number": (Forward(lambda n, x: n.a(x) * x.shape[1], a=nn.Linear(12, 3)), "mul, a call of mul, cannot be quantized"),
    "windows by size": (Forward(lambda n, x: F.avg_pool2d(x.view(-1, 3, 2, 2), x.size(1) // 6)), "told sizes that depend on the image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_in_one_sentence(name):
    net, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as error:
        integer.convert(ptq.quantize(net, torch.randn(8, 12)), (12,))
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and "While executing" not in str(error.value)


# Windows


@pytest.mark.parametrize("pool", [
    *(nn.AvgPool2d(*settings) for settings in itertools.product((2, (3, 4)), (1, (2, 3)), (0, 1), (False, True), (False, True), (None, 5))),
    *(nn.AdaptiveAvgPool2d(size) for size in ((1, 1), (5, 7), (2, 3), (4, None), (9, 8))),
])
def test_the_windows_are_torchs(pool):
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    y = pool(x)
    kernel, stride, padding, rows, columns, divisors = windows_of(pool, (5, 7), tuple(y.shape[2:]))
    if rows is None:
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        rows, columns = (tuple((i * s, i * s + k) for i in range(size)) for size, k, s in zip(y.shape[2:], kernel, stride))
        divisors = [divisors] * (len(rows) * len(columns))
    sums = torch.stack([x[..., a:b, c:d].sum((-2, -1)) for a, b in rows for c, d in columns], -1)
    torch.testing.assert_close((sums / torch.tensor(divisors)).view(y.shape), y)
