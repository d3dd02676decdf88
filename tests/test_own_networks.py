"""One's own network: read, quantized, trained with rounding, and computed in integers."""

import copy
import itertools

import more_networks
import numpy as np
import pytest
import step_reference
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, Forward, Held, network
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


@pytest.mark.parametrize("name", more_networks.NETWORKS)
def test_more_networks_are_right_in_every_form(name):
    net, x = network(name, networks=more_networks.NETWORKS)
    shape = tuple(x.shape[1:])
    with torch.no_grad():
        floats = net(x.clone())
        torch.testing.assert_close(graph.trace(net)(x.clone()), floats)
        torch.testing.assert_close(ptq.fold_batch_norm(net)(x.clone()), floats, rtol=1e-4, atol=1e-5)
        quantized = ptq.quantize(net, x.clone())
        fake = quantized.model(x.clone())
    assert (fake - floats).abs().max() < 0.05 * floats.abs().max()
    integers = integer.convert(quantized, shape)
    codes = integers.encode(x.clone())
    got = integers.run(codes)
    assert (integers.decode(got) - fake).abs().max() <= 4.01 * integers.grid_out.scale
    assert np.array_equal(got[:5].numpy(), step_reference.network(integers, codes[:5].numpy()))
    prepared = qat.prepare(net, x.clone(), 8, 8, learned=False, ranges="minmax")
    assert torch.equal(integer.convert(qat.convert(prepared), shape).run(codes), got)


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


class Told(nn.Module):
    """A forward that may be told more than the image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x, mask=None, features=False, *more, factor=2.0, **options):
        y = self.fc(x if mask is None else x * mask) * factor
        return (y, x) if features or more or options else y


def test_what_forward_may_be_told_has_its_default():
    net, x = Told().eval(), torch.randn(32, 12)
    traced = graph.trace(net)
    assert torch.equal(traced(x), net(x)) and [node.op for node in traced.graph.nodes].count("placeholder") == 1
    integers = integer.convert(ptq.quantize(net, x), (12,))
    assert (integers.decode(integers(x)) - net(x)).abs().max() < 0.03 * net(x).abs().max()


# Refused by name


class Mixed(nn.Module):
    def forward(self, x):
        return x.view(-1, 3)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Masked(nn.Module):
    def forward(self, x, mask):
        return x * mask


def _over(parts):
    parts[0].relu_()
    return torch.cat([parts[0], parts[1]], 1)


def _copied(x):
    y = x.contiguous()
    y.relu_()
    return x + y


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
    "dimensions by size": (Forward(lambda n, x: x.view(-1, 3, 4).transpose(1, x.dim())), "transpose, a call of transpose, cannot"),
    "a mean by size": (Forward(lambda n, x: x.mean(x.dim() - 1)), "mean, a call of mean, cannot"),
    "other numbers in the same memory": (Forward(lambda n, x: n.a(x).view(torch.int32), a=nn.Linear(12, 3)),
                                         "view, a call of reshape, can"),
    "some images": (Forward(lambda n, x: n.a(x[:100]), a=nn.Linear(12, 3)), "getitem, a call of getitem, cannot"),
    "images as columns": (Forward(lambda n, x: n.a(x).T, a=nn.Linear(12, 3)), "getattr_1, a reading of .T, cannot"),
    "a mean of three": (Forward(lambda n, x: n.a(x).mean(0), a=nn.Linear(12, 3)), "mean makes .3,. of 2 images, and must keep"),
    "a part written over": (Forward(lambda n, x: _over(n.a(x).chunk(2, 1)), a=nn.Linear(12, 4)),
                            "relu_ changes getitem in place, and chunk, which shares"),
    "a view's copy written over": (Forward(lambda n, x: _copied(n.a(x).view(-1, 2, 2).transpose(1, 2)), a=nn.Linear(12, 4)),
                                   "relu_ changes contiguous in place, and transpose, which shares its memory, is read later"),
    "an output's size": (nn.Sequential(nn.Unflatten(1, (3, 2, 2)), Forward(lambda n, x: n.up(x, output_size=(4, 4)),
                                                                           up=nn.ConvTranspose2d(3, 2, 2, 2))),
                         "1.up is told an output_size"),
    "a sum with a factor": (Forward(lambda n, x: torch.add(n.a(x), n.a(x), alpha=2), a=nn.Linear(12, 3)), "add, a call of add, cannot"),
    "a difference with a factor": (Forward(lambda n, x: torch.sub(n.a(x), n.a(x), alpha=2), a=nn.Linear(12, 3)), "sub, a call of sub, ca"),
    "half precision": (Forward(lambda n, x: n.a(x.half().float()), a=nn.Linear(12, 3)), "half, a call of half, cannot"),
    "another type": (Forward(lambda n, x: n.a(x).to(torch.float16).float(), a=nn.Linear(12, 3)), "to, a call of to, cannot"),
    "a constant over a tensor": (Forward(lambda n, x: n.of.c / x.view(-1, 3, 2, 2), of=Held(c=[[[1.0]], [[2.0]], [[3.0]]])),
                                 "of.c, which forward reads itself"),
    "a row read": (Forward(lambda n, x: x + n.of.row, of=Held(row=[1.0] * 12)), "of.row, which forward reads itself"),
    "a subclass that computes": (nn.Sequential(Doubled(12, 3)), "0.weight, which forward reads itself, cannot"),
    "wider": (Forward(lambda n, x: x[:, :1].expand_as(x)), "expand_as, a call of expand_as, cannot"),
    "to a size": (Forward(lambda n, x: n.a(x).to(x.shape[0]), a=nn.Linear(12, 3)), "to, a call of to, cannot"),
    "a float that may be another's memory": (Forward(lambda n, x: x.float().add_(1) + x), "add_ changes float_1 in place, and x, which"),
    "several inputs": (Masked(), "takes several inputs, and may take one tensor"),
    "a mean in another type": (Forward(lambda n, x: x.mean(1, True, dtype=torch.float64), a=nn.Linear(12, 3)),
                               "mean, a call of mean, cannot"),
    "softmax in another type": (Forward(lambda n, x: F.softmax(x, 1, dtype=torch.float64)),
                                "softmax, a call of softmax, cannot be a Softmax"),
    "softmax, flattened": (nn.Sequential(nn.Linear(12, 3), nn.Softmax(1), nn.Flatten()), "1, a Softmax over dimension 1 of .3,., must be"),
    "rounded down": (Forward(lambda n, x: n.a(x).div(0.2, rounding_mode="floor"), a=nn.Linear(12, 3)), "div, a call of div, cannot"),
    "interpolated": (Forward(lambda n, x: F.interpolate(x.view(-1, 3, 2, 2), scale_factor=2)),
                     "interpolate, a call of interpolate, cannot"),
    "weights of its own": (Forward(lambda n, x: F.linear(x, n.a.weight), a=nn.Linear(12, 3)), "a.weight, which forward reads itself, can"),
    "part of a Sequential": (Forward(lambda n, x: n.a[:1](x), a=nn.Sequential(nn.Linear(12, 3), nn.ReLU())),
                             "cannot be read as a graph .module"),
    "a list of sizes": (Forward(lambda n, x: x.view(*x.shape[:1], 3, 4)), "cannot be read as a graph .Proxy object cannot be iterated."),
    "stacked": (Forward(lambda n, x: torch.stack([x, x], 1)), "stack, a call of stack, cannot"),
    "chosen": (Forward(lambda n, x: torch.where(x > 0, x, 0 * x)), "gt, a call of gt, cannot"),
    "the largest": (Forward(lambda n, x: n.a(x).argmax(1), a=nn.Linear(12, 3)), "argmax, a call of argmax, cannot"),
    "sums of products": (Forward(lambda n, x: torch.einsum("nc->nc", x)), "einsum, a call of einsum, cannot"),
    "a name of torch.fx": (Forward(lambda n, x: n.code(x), code=nn.Linear(12, 3)), "code is a name that no layer of a graph may have"),
    "a word of Python": (Forward(lambda n, x: getattr(n, "class")(x), **{"class": nn.Linear(12, 3)}), "class is a name that no layer"),
    "half a size": (Forward(lambda n, x: x.view(-1, x.size(1) / 2)), "cannot take the calibration images, torch.float32 .8, 12. .reshape"),
    "windows by size": (Forward(lambda n, x: F.avg_pool2d(x.view(-1, 3, 2, 2), x.size(1) // 6)), "told sizes that depend on the image"),
}


def test_a_norm_behind_a_linear_layer_of_lines_is_refused_where_the_graph_does_not_tell():
    """It norms the rows of (n, 3, 3); of the features that are as many, nothing says that they are not the channels."""
    net = nn.Sequential(nn.Linear(10, 3), nn.BatchNorm1d(3)).eval()
    for quantize in (ptq.quantize, qat.prepare):
        with pytest.raises(ValueError, match=r"1 norms dimension 1 of the \(8, 3, 3\) that 0 makes, whose features are the last"):
            quantize(net, torch.randn(8, 3, 10))
    assert len(ptq.quantize(net, torch.randn(8, 10)).tensors) == 1


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
