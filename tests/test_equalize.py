"""Cross-layer equalization: which layers get factors, and why others do not; the function stays; ReLU6 replaced, and what that costs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qlab.lab import zoo
from qlab.nets import equalize, ptq
from qlab.nets.graph import calls, trace


def uneven(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with channels of very different ranges, which a function that mixed up a factor's place would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                m.weight.mul_(10 ** torch.empty(len(m.weight), *[1] * (m.weight.dim() - 1)).uniform_(-1, 1, generator=generator))
    return net.eval()


def equalized(net: nn.Module, shape: tuple[int, ...]) -> equalize.Equalized:
    """What was found; the function is the same, and every layer is a first of a pair or left with a reason."""
    torch.manual_seed(0)
    x, traced = torch.randn(8, *shape, dtype=torch.float64), trace(uneven(net).double())
    expected = traced(x)
    found = equalize.cross_layer_equalize(traced)
    torch.testing.assert_close(traced(x), expected, rtol=1e-9, atol=1e-9)
    firsts, layers = [a for a, _ in found.pairs], list(dict.fromkeys(node.target for node in calls(traced, "conv", "linear")))
    assert sorted([*firsts, *found.left]) == sorted(layers) and all(found.left.values())
    for a, b in found.pairs:  # ranges meet, channel by channel
        first, second = traced.get_submodule(a), traced.get_submodule(b)
        r1, r2 = first.weight.abs().flatten(1).amax(1), by_channel(second, len(first.weight))
        torch.testing.assert_close(r1[(r1 > 0) & (r2 > 0)], r2[(r1 > 0) & (r2 > 0)], rtol=0.01, atol=0)
    return found


def by_channel(layer: nn.Module, channels: int) -> torch.Tensor:
    """max|w| over all weights that channel i is multiplied by, one channel after the other."""
    w, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    per = channels // groups
    if isinstance(layer, nn.Linear):
        return torch.stack([part.abs().max() for part in w.chunk(channels, 1)])
    return torch.stack([w[len(w) // groups * (i // per):len(w) // groups * (i // per + 1), i % per].abs().max() for i in range(channels)])


# Which pairs


def test_a_depthwise_layer_between_two_others_settles_in_the_middle_of_three():
    """By hand: ranges 8, 1, 1 meet at (8 * 1 * 1)^(1/3) = 2, and 1, 27, 1 at 3."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([8.0, 1.0]).view(2, 1, 1, 1))
        net[2].weight.copy_(torch.tensor([1.0, 27.0]).view(2, 1, 1, 1))
        net[4].weight.fill_(1.0)
    traced = trace(net)
    assert equalize.cross_layer_equalize(traced).pairs == [("0", "2"), ("2", "4")]
    for name in ("0", "2", "4"):
        torch.testing.assert_close(traced.get_submodule(name).weight.flatten(), torch.tensor([2.0, 3.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("groups, out", [(1, 6), (2, 6), (3, 9), (6, 6), (6, 12)])
def test_groups_of_any_size_take_factors(groups, out):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, out, 3, groups=groups, padding=1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(out * 16, 3))
    assert equalized(net, (2, 6, 6)).pairs == [("0", "2"), ("2", "5")]


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def maps():
    return {"a": nn.Conv2d(2, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), "fc": nn.Linear(4, 3), "wide": nn.Linear(64, 3)}


WAYS = {
    "view": lambda n, x: n.wide(n.b(n.a(x).relu()).relu().view(x.size(0), -1)),
    "reshape": lambda n, x: n.wide(n.b(n.a(x).relu()).relu().reshape(x.shape[0], -1)),
    "mean": lambda n, x: n.fc(n.b(n.a(x).relu()).relu().mean((2, 3))),
    "mean kept": lambda n, x: n.fc(n.b(n.a(x).relu()).relu().mean(dim=(-1, -2), keepdim=True).flatten(1)),
    "torch.mean": lambda n, x: n.fc(torch.mean(n.b(n.a(x).relu()), [3, 2], True).flatten(1)),
    "leaky": lambda n, x: n.fc(F.leaky_relu(n.b(F.leaky_relu(n.a(x), 0.1)), 0.2).mean((2, 3))),
    "zeros around": lambda n, x: n.fc(n.b(F.pad(n.a(x).relu(), (1, 2, 0, 1))).mean((2, 3))),
    "pooled": lambda n, x: n.fc(F.adaptive_avg_pool2d(n.b(F.max_pool2d(n.a(x).relu(), 2)), 1).flatten(1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_passes_a_factor_on(way):
    found = equalized(Net(WAYS[way], **maps()), (2, 4, 4))
    last = "wide" if way in ("view", "reshape") else "fc"
    assert found.pairs == [("a", "b"), ("b", last)] and found.left == {last: "it makes the network's output"}


LEFT = {  # forward, and why a is left
    "sum": (lambda n, x: n.fc((n.a(x) + n.b(F.pad(x, (0, 0, 0, 0, 0, 2)))).mean((2, 3))), "added to another in add"),
    "relu6": (lambda n, x: n.fc(n.b(F.relu6(n.a(x))).mean((2, 3))), "relu6_layer, a ReLU6, clips at 6"),
    "sigmoid": (lambda n, x: n.fc(n.b(n.a(x).sigmoid()).mean((2, 3))), "sigmoid_layer reads it, through which no factors are led"),
    "hardtanh": (lambda n, x: n.fc(n.b(F.hardtanh(n.a(x), 0, 6)).mean((2, 3))), "no factors are led"),
    "a number added": (lambda n, x: n.fc(n.b(n.a(x) + 1).mean((2, 3))), "no factors are led"),
    "channels exchanged": (lambda n, x: n.fc(n.b(n.a(x).transpose(1, 2)).mean((2, 3))), "no factors are led"),
    "part of a map": (lambda n, x: n.fc(n.a(x).relu().mean((1, 2))), "its channels are at other places then"),
    "along the columns": (lambda n, x: n.fc(n.a(x)).mean((2, 1)), "an input of fc is not one of its channels"),
    "a fixed shape": (lambda n, x: n.wide(n.a(x).view(-1, 64)), "its channels are at other places then"),
    "padding with ones": (lambda n, x: n.fc(n.b(F.pad(n.a(x), (1, 1), value=1.0)).mean((2, 3))), "no factors are led"),
}


@pytest.mark.parametrize("way", LEFT)
def test_a_layer_that_is_left_says_why(way):
    run, why = LEFT[way]
    found = equalized(Net(run, **maps()), (2, 4, 4))
    assert why in found.left["a"], found.left["a"]


def test_shared_and_repeated_layers_say_why():
    twice, tied = nn.Linear(4, 4), nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    found = equalized(nn.Sequential(nn.Linear(4, 4), twice, nn.ReLU(), twice), (4,))
    assert found.pairs == [] and found.left == {"0": "1 reads it, and it runs 2 times", "1": "it runs 2 times"}
    tied[2].bias = tied[1].bias
    found = equalized(tied, (4,))
    assert found.pairs == [] and found.left == {"0": "1 reads it, and it shares its bias with 2", "1": "it shares its bias with 2",
                                                "2": "it shares its bias with 1", "3": "it makes the network's output"}
    fork = Net(lambda n, x: n.fc((n.b(n.a(x)) + n.c(n.a2(x))).mean((2, 3))), c=nn.Conv2d(4, 4, 1), a2=nn.Conv2d(2, 4, 1), **maps())
    assert equalized(fork, (2, 4, 4)).pairs == [("a", "b"), ("a2", "c")]
    unread = Net(lambda n, x: (n.a(x), n.fc(x.mean((2, 3))[:, :4]))[1], a=nn.Conv2d(4, 4, 1), fc=nn.Linear(4, 2))
    assert equalized(unread, (4, 3, 3)).left == {"a": "nothing reads it", "fc": "it makes the network's output"}
    read = Net(lambda n, x: (lambda y: n.fc((n.b(y) + n.c(y)).mean((2, 3))))(n.a(x)), c=nn.Conv2d(4, 4, 1), **maps())
    assert equalized(read, (2, 4, 4)).left["a"] == "it is read at 2 places (b, c), and all would need its factors"


def test_maps_of_one_dimension():
    net = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.ConstantPad1d(1, 0.0), nn.Conv1d(6, 4, 3, groups=2), nn.MaxPool1d(2),
                        nn.Flatten(), nn.Linear(16, 3))
    assert equalized(net, (2, 10)).pairs == [("0", "3"), ("3", "6")]
    assert equalized(nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConstantPad2d((0, 0, 1, 1), 0.0), nn.Conv1d(6, 2, 1)), (2, 8)).pairs == []


def test_the_report_prints_every_layer():
    found = equalize.cross_layer_equalize(trace(ptq.fold_batch_norm(zoo.load("depthwise"))))
    assert str(found).splitlines()[0] == "13 of 14 layers equalized with the next" and str(found).endswith("it makes the network's output")
    residual = equalize.cross_layer_equalize(trace(ptq.fold_batch_norm(zoo.load("resnet"))))
    assert len(residual.pairs) + len(residual.left) == len(calls(trace(zoo.load("resnet")), "conv", "linear"))
    assert any("added to another" in why for why in residual.left.values())


# ReLU6


class Inverted(nn.Module):
    """MobileNetV2's block: widen, depthwise, narrow; batch norm behind each, ReLU6 behind the first two."""

    def __init__(self, into=4, out=4, stride=1):
        super().__init__()
        self.widen, self.norm1 = nn.Conv2d(into, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.norm2 = nn.Conv2d(12, 12, 3, stride, 1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.narrow, self.norm3, self.clip = nn.Conv2d(12, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU6(inplace=True)
        self.adds = into == out and stride == 1

    def forward(self, x):
        y = self.clip(self.norm2(self.depthwise(F.relu6(self.norm1(self.widen(x))))))
        y = self.norm3(self.narrow(y))
        return x + y if self.adds else y


def mobile():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU6(), Inverted(), Inverted(4, 8, 2), Inverted(8, 8), nn.ReLU6(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def test_relu6_is_replaced_under_its_name_and_the_model_given_stays():
    net = mobile()
    before, x = copy.deepcopy(net.state_dict()), torch.randn(8, 1, 12, 12)
    unclipped = equalize.relu6_to_relu(net)
    assert len(calls(trace(net), "relu6")) == 8 and not calls(unclipped, "relu6") and not unclipped.training
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values())) and isinstance(net[1], nn.ReLU6)
    assert set(before) == set(unclipped.state_dict())

    class Open(nn.Module):  # the same network, written with ReLU
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            for layer in self.net:
                if isinstance(layer, Inverted):
                    y = layer.norm2(layer.depthwise(layer.norm1(layer.widen(x)).relu())).relu()
                    y = layer.norm3(layer.narrow(y))
                    x = x + y if layer.adds else y
                else:
                    x = x.relu() if isinstance(layer, nn.ReLU6) else layer(x)
            return x

    assert torch.equal(unclipped(100 * x), Open(net)(100 * x)) and not torch.equal(unclipped(100 * x), net(100 * x))


def test_with_relu_all_but_the_sums_are_equalized():
    net, x = mobile(), torch.randn(16, 1, 12, 12)
    clipped = ptq.quantize(net, x, equalize=True).equalized
    assert clipped.pairs == [] and sum("ReLU6" in why for why in clipped.left.values()) == 7
    q = ptq.quantize(equalize.relu6_to_relu(net), x, equalize=True)
    assert q.equalized.pairs == [(f"{i}.{a}", f"{i}.{b}") for i in (2, 3, 4) for a, b in (("widen", "depthwise"), ("depthwise", "narrow"))]
    assert ptq.quantize(net, x).equalized is None


def test_agreement_counts():
    images, labels = torch.tensor([[0.0, 1.0], [3.0, 2.0], [5.0, 9.0]]), torch.tensor([1, 0, 0])
    same = equalize.agreement(lambda x: x, lambda x: x, images)
    assert same == equalize.Agreement(3, 3, 0.0)
    other = equalize.agreement(lambda x: x, lambda x: x - torch.tensor([0.0, 8.0]), images, labels)
    assert other == equalize.Agreement(images=3, same=1, largest=8.0, right_before=2, right_after=2)
    many = torch.randn(300, 5)
    assert equalize.agreement(lambda x: x, lambda x: -x, many) == equalize.Agreement(300, 0, (2 * many).abs().max().item())


@pytest.mark.parametrize("images, labels, after, said", [
    (torch.zeros(0, 2), None, nn.Identity(), "there are 0 images:"),
    (torch.zeros(3, 2), torch.zeros(2), nn.Identity(), "3 images and 2 labels"),
    (torch.zeros(3, 2), None, lambda x: x[:, :1], r"\(3, 2\) and \(3, 1\)"),
    (torch.zeros(3, 2, 2), None, nn.Identity(), "same .n, classes."),
])
def test_agreement_refuses(images, labels, after, said):
    with pytest.raises(ValueError, match=said):
        equalize.agreement(nn.Identity(), after, images, labels)
