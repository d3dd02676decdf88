"""Channels that sums tie together: random residual networks, whose builder keeps its own account of who belongs to whom.

Weights are whole numbers, small enough that every sum is exact in float64: the small network and the masked one must agree to the bit.
"""

import copy
import operator
import random

import pytest
import torch
from own_networks import network
from torch import nn
from torch.nn import functional as F

from qlab.nets import channels
from qlab.nets.channel_groups import groups

X = torch.randint(-3, 4, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).double()


def add_in_place(y, x):
    y += x                                                                                  # whoever holds y sees it
    return y


SUMS = {
    "+": operator.add, "+=": add_in_place, "torch.add": torch.add, "alpha": lambda a, b: torch.add(a, b, alpha=2),
    "named": lambda a, b: torch.add(input=a, other=b), "add": lambda a, b: a.add(b), "add_": lambda a, b: a.add_(b),
    "add_ unused": lambda a, b: (a.add_(b), a)[1], "sum": lambda a, b: sum([a, b]),
}
STEPS = {
    "relu": torch.relu, "F.relu": F.relu, "relu_ unused": lambda a: (a.relu_(), a)[1], "clone": lambda a: a.clone() + 1,
    "in place unused": lambda a: (F.relu(a, inplace=True), a)[1], "torch.relu_": torch.relu_, "dropout": lambda a: F.dropout(a, 0.5, False),
    "pool": lambda a: F.max_pool2d(a, 1), "relu6": lambda a: F.relu6(a, inplace=True), "twice": lambda a: a + a,
}


class Random(nn.Module):
    """A network of random residual structure for X. spaces: by tensor, the number of its group; readers and makers by group."""

    def __init__(self, seed):
        super().__init__()
        self.rng, self.layers, self.program = random.Random(seed), nn.ModuleDict(), []
        self.space, self.width, self.size, self.joined = {"x": 0}, {"x": 3}, {"x": 8}, {0: 0}
        self.makers, self.readers, self.blocked = [], [], {0}
        self.add_layers()
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            for tensor in (layer.weight, layer.bias):
                tensor.data = torch.randint(-1, 2, tensor.shape, generator=generator).double()
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0                                                             # and variance 1: exact
                layer.running_mean = torch.randint(-2, 3, layer.running_mean.shape, generator=generator).double()
        self.double().eval()

    def find(self, space):
        while self.joined[space] != space:
            space = self.joined[space]
        return space

    def put(self, what, inputs, width, size, space=None):
        name = f"t{len(self.program)}"
        if space is None:
            space = len(self.joined)
            self.joined[space] = space
        self.program.append((name, what, inputs))
        self.space[name], self.width[name], self.size[name] = space, width, size
        return name

    def layer(self, make):
        name = f"l{len(self.layers)}"
        self.layers[name] = make
        return name

    def conv(self, a, width, stride=1):
        kernel = self.rng.choice([1, 3]) if stride == 1 else 3
        name = self.layer(nn.Conv2d(self.width[a], width, kernel, stride, kernel // 2))
        out = self.put(name, (a,), width, self.size[a] // stride)
        self.readers.append((self.space[a], name, 1)), self.makers.append((self.space[out], name))
        return out

    def norm(self, a):
        width = self.width[a]
        kinds = [nn.BatchNorm2d(width)] + [nn.Conv2d(width, width, 3, 1, 1, groups=width)] * (width > 1)
        return self.put(self.layer(self.rng.choice(kinds)), (a,), width, self.size[a], self.space[a])

    def step(self, a):
        kinds = [kind for kind in STEPS if kind != "pool" or self.size[a] > 1]              # no pooling over a linear layer's outputs
        return self.put(self.rng.choice(kinds), (a,), self.width[a], self.size[a], self.space[a])

    def sum(self, a, b):
        self.joined[self.find(self.space[b])] = self.find(self.space[a])
        return self.put(self.rng.choice(list(SUMS)), (a, b), self.width[a], self.size[a], self.space[a])

    def linear(self, a, width):
        name = self.layer(nn.Linear(self.width[a] * self.size[a] ** 2, width))
        out = self.put(name, (a,), width, 1)
        self.readers.append((self.space[a], name, self.size[a] ** 2)), self.makers.append((self.space[out], name))
        return out

    def add_layers(self):
        maps = [self.conv("x", 4)] + ["x"] * (self.rng.random() < 0.2)
        for _ in range(self.rng.randint(3, 6)):
            a, kind = self.rng.choice(maps), self.rng.choice(["plain", "block", "project", "join", "norm", "step"])
            if kind == "plain":
                maps.append(self.conv(a, self.rng.choice([1, 2, 4])))
            elif kind == "block":
                maps.append(self.sum(a, self.conv(self.step(self.conv(a, 3)), self.width[a])))
            elif kind == "project" and self.size[a] > 2:
                maps.append(self.sum(self.conv(a, 4, 2), self.norm(self.conv(a, 4, 2))))
            elif kind == "join":
                fits = [b for b in maps if (self.width[b], self.size[b]) == (self.width[a], self.size[a])]
                maps.append(self.sum(a, self.rng.choice(fits)))
            elif kind in ("norm", "step"):
                maps.append(self.norm(a) if kind == "norm" else self.step(a))
        outputs = []
        for a in [maps[-1], self.rng.choice(maps)]:
            if self.rng.random() < 0.5:
                a = self.put("global", (a,), self.width[a], 1, self.space[a])
            flat = self.put("flatten", (a,), self.width[a], self.size[a], self.space[a])
            if self.size[a] == 1 and self.rng.random() < 0.7:                               # a sum of a flattened map and a linear layer
                flat = self.sum(self.linear(flat, self.width[a]), flat)
            hidden = self.linear(flat, 4)
            hidden = self.sum(hidden, self.linear(self.step(hidden), 4))
            outputs.append(self.linear(hidden, 2))
        self.blocked |= {self.space[out] for out in outputs}
        self.program.append(("out", "+", outputs))

    def forward(self, x):
        values = {"x": x}
        for name, what, inputs in self.program:
            given = [values[i] for i in inputs]
            if what == "flatten":
                values[name] = given[0].flatten(1)
            elif what == "global":
                values[name] = F.adaptive_max_pool2d(given[0], 1)
            elif what in self.layers:
                values[name] = self.layers[what](*given)
            else:
                values[name] = (SUMS | STEPS)[what](*given)
        return values["out"]

    def truth(self):
        """By group that can be cut: the names of its makers, and (reader, columns a channel)."""
        blocked, found = {self.find(space) for space in self.blocked}, {}
        for space, name in self.makers:
            if self.find(space) not in blocked:
                found.setdefault(self.find(space), (set(), []))[0].add(f"layers.{name}")
        for space, name, block in self.readers:
            if self.find(space) in found:
                found[self.find(space)][1].append((f"layers.{name}", block))
        return list(found.values())


@pytest.mark.parametrize("seed", [*range(30), 1465])                                        # the last flattens what was added to the input
def test_random_residual_networks_lose_what_their_readers_are_blind_to(seed):
    model = Random(seed)
    truth = model.truth()
    assert {frozenset(group.makers) for group in groups(model) if not group.obstacles} == {frozenset(makers) for makers, _ in truth}
    assert set(channels.removable(model)) == {name for makers, _ in truth for name in makers}
    masked, keep, generator = copy.deepcopy(model), {}, torch.Generator().manual_seed(seed)
    for makers, readers in truth:
        name = model.rng.choice(sorted(makers))
        mask = torch.rand(model.get_submodule(name).weight.shape[0], generator=generator) < 0.6
        mask[torch.randint(len(mask), (), generator=generator)] = True
        keep[name] = mask
        for reader, block in readers:
            layer = masked.get_submodule(reader)
            layer.weight.data[:, ~mask.repeat_interleave(block)] = 0
    expected = masked(X.clone())
    assert expected.abs().max() < 2**40                                                     # far from where whole numbers end
    small = channels.remove(model, keep)
    assert torch.equal(small(X.clone()), expected)
    for name, mask in keep.items():
        assert small.get_submodule(name).weight.shape[0] == mask.sum()


class Net(nn.Module):
    """Four convolutions of 3 channels and a linear layer, and a forward that each case gives."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.grouped, self.one, self.d, self.fc = nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 1, 1), nn.Conv2d(3, 2, 1), nn.Linear(8, 3)
        self.six, self.pairs = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1, groups=3)
        self.scale, self.bn = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.BatchNorm2d(3, affine=False)
        self.steps = [forward]                                                              # on the class, not the instance
        self.double()

    def forward(self, x):
        return self.steps[0](self, x)


@pytest.mark.parametrize("forward, layer, message", [
    (lambda m, x: m.d(m.a(x) + x), "a", "a sum ties them to the model's input x"),
    (lambda m, x: m.d(m.a(x) + m.bn(x)), "a", "a sum ties them to bn .BatchNorm2d."),
    (lambda m, x: m.a(x) + m.b(x), "a", "they reach the model's output"),
    (lambda m, x: (m.d(m.a(x) + m.b(x)), m.b.weight.sum()), "a", "b is used more than once, or its weight is"),
    (lambda m, x: (lambda y: [m.d(y + m.a(x)), {"b": y}])(m.b(x)), "a", "they reach the model's output"),
    (lambda m, x: m.d(m.pairs(x)[:, :3] + m.a(x)), "a", "a sum ties them to getitem .getitem."),
    (lambda m, x: F.conv2d(m.six(x) + m.pairs(x), torch.ones(1, 6, 1, 1).double()), "six", "pairs is a convolution in 3 groups"),
    (lambda m, x: m.d(m.pairs(m.a(x) + m.b(x))[:, :3]), "b", "they reach pairs .Conv2d., which ties them to others"),
    (lambda m, x: m.d(m.a(x) + m.one(x)), "a", "add adds 3 channels to 1"),
    (lambda m, x: m.d(m.a(x) + m.one(x)), "one", "add adds 3 channels to 1"),
    (lambda m, x: m.d(m.a(x).add_(m.one(x))), "a", "add_ adds 3 channels to 1"),
    (lambda m, x: m.d(torch.cat([m.a(x) + m.b(x), m.c(x)], 1)[:, :3]), "b", "they reach cat .cat., which ties them to others"),
    (lambda m, x: m.d(m.a(x) + torch.cat([m.b(x), m.c(x)], 1)[:, :3]), "a", "a sum ties them to getitem"),
    (lambda m, x: m.d(m.a(x) + m.scale), "a", "a sum ties them to scale, which the model's forward reads"),
    (lambda m, x: m.d(m.a(x) + m.bn.running_mean[:, None, None]), "a", "a sum ties them to"),
    (lambda m, x: m.d(m.a(x) + torch.ones(3, 1, 1)), "a", "a sum ties them to _tensor_constant0"),
    (lambda m, x: m.d(torch.add(m.a(x), m.b(x), out=torch.empty(2, 3, 8, 8).double())), "a", "they reach add .add., which ties"),
    (lambda m, x: (lambda y: (m.b(x).copy_(y), m.d(y)))(m.a(x))[1], "a", "they reach copy_ .copy_., which ties"),
    (lambda m, x: m.d(m.a(x) / m.b(x)), "a", "they reach truediv .truediv., which ties them to others"),
    (lambda m, x: m.d(m.a(x) * m.one(x)), "one", "mul adds 3 channels to 1"),
    (lambda m, x: m.d(m.a(x).view(-1, 3, 8, 8)), "a", "they reach view .view., which ties them to others"),
    (lambda m, x: m.d(m.a(x) + m.fc(m.b(x))[..., :1]), "a", "a sum ties them to getitem"),
    (lambda m, x: m.d(m.bn(m.a(x))) * m.bn.running_var.sum(), "a", "bn is used more than once, or its weight is"),
    (lambda m, x: m.d(m.a(m.b(x)) + m.a(m.c(x))), "b", "a is called 2 times, and must be called once"),
    (lambda m, x: m.d(m.bn(m.a(x)) + m.bn(m.b(x))), "b", "bn is called 2 times, and must be called once"),
    (lambda m, x: m.d(F.max_pool2d(m.a(x), 1, return_indices=True)[0] + m.b(x)), "b", "a sum ties them to getitem"),
    (lambda m, x: m.fc(m.a(x) + m.b(x)), "a", "they reach fc .Linear., which ties"),
    (lambda m, x: m.d(m.fc(x.flatten(1)[:, :8])[:, :, None, None] + m.a(x)), "a", "a sum ties them to getitem"),
    (lambda m, x: m.d(m.a(x)) + m.a.out_channels, "a", "goes by the widths of its layers"),
    (lambda m, x: m.d(m.a(x)) * torch.tensor(m.a.out_channels), "a", "goes by the widths of its layers"),
    (lambda m, x: m.d(m.a(x)) + m.b(x)[:, :2] if m.a.out_channels == m.b.out_channels else m.d(m.a(x)), "a", "goes by the widths"),
    (lambda m, x: m.d(m.a(x) + m.b(x) if m.training else m.a(x)), "a", "takes other steps in training than in evaluation"),
    (lambda m, x: m.d(m.a(x) + m.b(x) if x.shape[0] > 1 else m.a(x)), "a", "torch.fx cannot follow the model's forward"),
])
def test_a_group_that_meets_something_else_is_refused_by_name(forward, layer, message):
    model = Net(forward).eval().requires_grad_(False)
    model(X)                                                                                # it is a model that runs
    out = model.get_submodule(layer).weight.shape[0]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        channels.remove(model, {layer: torch.arange(out) < 1})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_channels_along_different_axes_are_not_taken_for_each_other():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x.mean(1)[:, None]))                           # 8 pixels wide, and 8 outputs along the width

    model = Mixed().double()
    assert model(X).shape == (2, 2, 8, 8) and channels.removable(model) == []
    with pytest.raises(ValueError, match="add adds tensors whose channels lie in different places"):
        channels.remove(model, {"b": torch.arange(8) < 4})


@pytest.mark.parametrize("in_place", [False, True])
def test_a_flattened_map_and_a_flattened_linear_layer_are_not_taken_for_each_other(in_place):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.rows, self.fc, self.conv = nn.Conv2d(3, 4, (8, 1)), nn.Linear(8, 4), nn.Linear(32, 2), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            maps = self.map(x)                                                              # (n, 4, 1, 8): channels slowest
            rows = self.rows(x.mean(1)).flatten(1)                                          # (n, 8 * 4): channels fastest
            if in_place:
                maps.flatten(1).add_(rows)
                return self.conv(maps)
            return self.fc(maps.flatten(1) + rows)

    model = Mixed().double()
    assert model(X).shape[1] == 2 and channels.removable(model) == []
    with pytest.raises(ValueError, match="adds tensors whose channels lie in different places"):
        channels.remove(model, {"map": torch.arange(4) < 2})


@pytest.mark.parametrize("change, message", [
    (lambda m: nn.utils.prune.random_unstructured(m.b, "weight", 0.5), "weight of b is computed anew in each forward"),
    (lambda m: nn.utils.parametrizations.weight_norm(m.b), "weight of b is computed anew in each forward"),
    (lambda m: nn.utils.parametrizations.spectral_norm(m.b), "weight of b is computed anew in each forward"),
    (lambda m: nn.utils.parametrizations.orthogonal(m.fc), "weight of fc is computed anew in each forward"),
    (lambda m: m.b.register_forward_hook(lambda layer, args, output: output * 2), "^b has a forward hook"),
    (lambda m: m.b.register_forward_pre_hook(lambda layer, args: args), "^b has a forward hook"),
    (lambda m: m.register_forward_hook(lambda layer, args, output: output * 2), "the network has a forward hook"),
    (lambda m: setattr(m.b, "forward", lambda x: x), "^b has a forward of its own"),
    (lambda m: setattr(m, "forward", m.forward), "the network has a forward of its own"),
])
def test_what_the_graph_does_not_show_is_refused_by_name(change, message):
    model = Net(lambda m, x: m.d(torch.relu(m.a(x) + m.b(x))))
    assert channels.removable(model) == ["a", "b"]
    change(model)
    for call in (lambda: channels.removable(model), lambda: channels.weakest(model, 0.5), lambda: channels.weakest(model, 0.5, ["a"]),
                 lambda: channels.remove(model, {"a": torch.arange(3) < 2})):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


# Products, and forwards as people write them


@pytest.mark.parametrize("name", ["product", "product, ReLU", "difference", "squeeze and excitation", "view size(0)", "reshape shape[0]",
                                  "mean((2, 3))", "Conv1d", "mean([-2, -1], keepdim)", "numbers", "swish by hand", "GELU", "in place",
                                  "dropout"])
def test_own_networks_lose_what_their_readers_are_blind_to(name):
    model, x = network(name)
    removed = 0
    for group in groups(model):
        if group.obstacles:
            continue
        keep = torch.ones(group.channels, dtype=torch.bool)
        keep[1] = False
        blind = copy.deepcopy(model)
        for reader in group.readers:
            layer = blind.get_submodule(reader)
            with torch.no_grad():
                layer.weight.view(len(layer.weight), group.channels, -1)[:, 1] = 0
        small = channels.remove(model, {group.makers[0]: keep})
        torch.testing.assert_close(small(x.clone()), blind(x.clone()), rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        removed += 1
    assert removed
