"""Quantized and integer networks as files: everything comes back, damaged and hostile files are refused in one sentence."""

import copy
import dataclasses
import json
import math
import random

import numpy as np
import pytest
import step_networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import nn

from qlab import saving
from qlab.lab import data, zoo
from qlab.nets import graph, integer, operations, ptq, qat, stored_graph, stored_layers
from qlab.nets.fake import FakeQuantize
from qlab.nets.models import MODELS
from qlab.quant import checked, kmeans, linear, log

X = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Sums(nn.Module):
    """Every kind of layer, two sums, a layer that runs twice, names that begin with digits and hold a dash."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU6())
        self.add_module("the-block", nn.Sequential(nn.Conv2d(4, 4, 3, padding=(1, 1), groups=2, dilation=1), nn.ReLU(inplace=True)))
        self.twice, self.mean, self.pool = nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.MaxPool2d((2, 2), stride=1)
        self.all, self.flatten, self.fc = nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        x = torch.add(x, self.get_submodule("the-block")(x))
        x = self.twice(self.twice(x) + x)
        return self.fc(self.flatten(self.all(self.pool(self.mean(x)))))


class Views(nn.Module):
    """Sizes that are asked for and computed with, parts, other orders of the dimensions, products, functions of one number."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.gate, self.line, self.last = nn.Linear(8, 8), nn.Conv1d(6, 6, 3, padding=1), nn.Linear(36, 5)
        self.shuffle, self.norm = nn.ChannelShuffle(4), nn.BatchNorm1d(6)

    def forward(self, image):
        n, channels = image.size(0), 8
        x = nn.functional.hardswish(self.a(image))
        gate = torch.sigmoid(self.gate(x.mean((2, 3)))).view(n, channels, 1, 1)
        first, second = self.shuffle(x * gate).chunk(2, 1)
        x = torch.cat([first, nn.functional.pad(second, (1, 0, 0, 1))[:, :, 1:, :-1].clamp(-1, 2.5)], dim=1)
        x = (self.b(x) * 0.5 + 0.25) ** 2
        small = self.up(x[:, ::2]).permute(0, 2, 3, 1)
        small = nn.functional.max_pool2d(small.transpose(1, 3), (2, 2)).mean(dim=1, keepdim=True).squeeze(1)
        line = self.norm(self.line(small.reshape(small.shape[0], 6, -1)))
        return torch.softmax(self.last(line.view(line.shape[0], line.shape[1] * line.size(2))), -1)


@pytest.fixture(scope="module")
def q():
    torch.manual_seed(0)
    return ptq.quantize(Sums(), X)


def same(a, b):
    """Whether two values are equal, of one type, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return type(a) is type(b) and same(tuple(a.items()), tuple(b.items()))
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def like(a, b):
    """Whether two Quantized hold the same: codes in every field, all parameters and buffers, the graph."""
    assert a.nbytes == b.nbytes and list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        assert same(a.tensors[name], b.tensors[name]), name
    ours, theirs = dict(a.model.named_parameters()), dict(b.model.named_parameters())
    assert set(ours) == set(theirs) and all(ours[name].requires_grad == theirs[name].requires_grad for name in ours)
    states = a.model.state_dict(), b.model.state_dict()
    assert set(states[0]) == set(states[1]) and all(same(states[0][key].clone(), states[1][key].clone()) for key in states[0])
    if hasattr(a.model, "graph"):
        assert a.model.code == b.model.code and str(a.model.graph) == str(b.model.graph)
        assert sorted(str(a.model).splitlines()) == sorted(str(b.model).splitlines())
    assert not any(module.training for module in b.model.modules())
    return True


@pytest.mark.parametrize("name", MODELS)
def test_every_network_of_the_zoo_comes_back(tmp_path, name):
    images = data.calibration(32).images
    q, path = ptq.quantize(zoo.load(name), images), tmp_path / "net.safetensors"
    random_state = torch.get_rng_state()
    q.save(path)
    again = ptq.load(path)
    assert torch.equal(random_state, torch.get_rng_state()) and like(q, again)
    assert torch.equal(q.model(images), again.model(images))
    assert q.nbytes < path.stat().st_size < q.nbytes + 20_000                               # names and shapes are all that comes on top
    network = integer.convert(q)
    assert same(network, integer.convert(again))
    network.save(path)
    loaded = integer.load(path)
    assert same(network, loaded) and torch.equal(network(images), loaded(images))
    assert network.nbytes - 1000 < path.stat().st_size < network.nbytes + 20_000


@pytest.mark.parametrize("name", MODELS)
def test_weights_alone_fill_a_copy_of_a_model(tmp_path, name):
    q = ptq.quantize_weights(zoo.load(name), lambda w: kmeans.quantize(w, 3), skip=[n for n, _ in zoo.load(name).named_modules()
                                                                                     if isinstance(_, nn.Linear)][:1])
    q.model.eval()
    q.save(tmp_path / "net")
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    again = ptq.load(tmp_path / "net", model)
    assert like(q, again) and all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    images = data.calibration(4).images
    assert torch.equal(q.model(images), again.model(images))


@pytest.mark.parametrize("weights", [
    lambda w: linear.quantize(w, 5, "symmetric"), lambda w: linear.quantize(w, 3, "affine", axis=0),
    lambda w: linear.quantize(w, 4, axis=0), lambda w: log.quantize(w, 4, base=2**0.5), lambda w: kmeans.quantize(w, 2),
])
@pytest.mark.parametrize("bits", [8, 3])
def test_every_quantizer_and_layer_comes_back(tmp_path, weights, bits):
    torch.manual_seed(0)
    q = ptq.quantize(Sums(), X, weights=weights, activation_bits=bits)
    q.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net")
    assert like(q, again) and torch.equal(q.model(X), again.model(X))
    again.save(tmp_path / "again")
    assert (tmp_path / "net").read_bytes() == (tmp_path / "again").read_bytes()


def test_what_training_converts_comes_back(tmp_path):
    torch.manual_seed(0)
    q = qat.convert(qat.prepare(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), X))
    q.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net")
    assert like(q, again) and same(integer.convert(q, (1, 6, 6)), integer.convert(again, (1, 6, 6)))


def test_every_layer_and_operation_has_a_place():
    assert set(operations.LAYER_KINDS) | {FakeQuantize} == set(stored_layers.LAYERS)
    tables = [table for name, table in vars(operations).items() if isinstance(table, tuple) and name not in ("FUSES", "MAKES", "VIEWS")]
    called = {target for table in tables for target in table if callable(target) and not isinstance(target, type)}
    assert called - {*operations.DROPOUTS, *operations.NOTHING_CALLS} <= set(stored_graph.CALLS.values())
    assert all(hasattr(torch.Tensor, name) for name in stored_graph.CALLS if "." not in name)
    assert len(set(map(id, stored_graph.CALLS.values()))) == len(stored_graph.CALLS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_another_precision(tmp_path, dtype):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).to(dtype)
    q = ptq.quantize_weights(graph.trace(net), lambda w: linear.quantize(w, 4, "symmetric"))
    q.save(tmp_path / "net")
    assert like(q, ptq.load(tmp_path / "net"))


def test_tied_weights_are_there_once_and_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(100, 100), nn.Linear(100, 100), nn.Linear(100, 100)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    model = Tied()
    for q, load in ((ptq.quantize(model, torch.rand(8, 100)), lambda path: ptq.load(path)),
                    (ptq.quantize_weights(model.eval(), ptq.int8_per_channel), lambda path: ptq.load(path, Tied()))):
        assert q.tensors["a"] is q.tensors["b"]
        q.save(tmp_path / "net")
        again = load(tmp_path / "net")
        assert like(q, again) and again.tensors["a"] is again.tensors["b"] is not again.tensors["c"]
        assert again.model.a.weight is again.model.b.weight
        assert (tmp_path / "net").stat().st_size < q.nbytes + 4000 < 3 * 100 * 100
    x = torch.rand(3, 100)
    assert torch.equal(q.model(x), again.model(x))
    untied = ptq.quantize_weights(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(), ptq.int8_per_channel)
    untied.save(tmp_path / "untied")
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert like(untied, ptq.load(tmp_path / "untied", tied))                                # the file says what is tied
    twice = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="is of another network: 1.weight belongs to a layer that has two names"):
        ptq.load(tmp_path / "untied", nn.Sequential(twice, twice))


def test_steps_that_share_a_tensor_keep_it_once(tmp_path):
    network = integer.convert(ptq.quantize(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.rand(8, 64)), (64,))
    first, second = network.steps
    shared = dataclasses.replace(network, steps=(first, dataclasses.replace(second, weight=first.weight)))
    shared.save(tmp_path / "net")
    again = integer.load(tmp_path / "net")
    assert same(shared, again) and again.steps[0].weight is again.steps[1].weight
    assert (tmp_path / "net").stat().st_size < 2 * 64 * 64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_networks_of_every_kind_of_step_come_back(tmp_path_factory, seed, count):
    """Tuples within tuples, tables, empty options: equal in every field."""
    network, shape = step_networks.network(np.random.default_rng(seed), count)
    path, codes = tmp_path_factory.getbasetemp() / "steps", torch.randint(-128, 128, (2, *shape), dtype=torch.int8)
    network.save(path)
    again = integer.load(path)
    assert same(network, again) and torch.equal(network.run(codes), again.run(codes))
    content = saving.read(path)
    again.save(path)
    assert saving.read(path) == content


def test_numpy_reads_a_weight_without_qlab(q, tmp_path):
    q.save(tmp_path / "net")
    raw = load_file(tmp_path / "net")
    codes = raw["fc.weight.codes"].astype(int) - 127
    np.testing.assert_array_equal((codes.reshape(3, 8) * raw["fc.weight.scale"][:, None]).astype(np.float32), q.model.fc.weight.detach())


# What does not fit


def test_a_file_and_a_model_that_do_not_fit(q, tmp_path):
    path, net = tmp_path / "net", nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    q.save(path)
    with pytest.raises(ValueError, match="net holds the graph of its network: load it without a model"):
        ptq.load(path, net)
    ptq.quantize_weights(net, ptq.int8_per_channel).save(path)
    with pytest.raises(ValueError, match="net holds weights without their network: load it with a model of the architecture"):
        ptq.load(path)
    for other, said in (
        (nn.Sequential(nn.Linear(5, 3)), r"0.weight is torch.float32 of shape \(3, 4\) in the file, and torch.float32 of shape \(3, 5\)"),
        (nn.Sequential(nn.Linear(4, 3)).double(), "0.bias is torch.float32 .* torch.float64|0.weight is torch.float32 .* torch.float64"),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "it lacks 1.bias, 1.weight"),
        (nn.Sequential(), "the model lacks 0.bias, 0.weight"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=f"net is of another network: .*({said})") as error:
            ptq.load(path, other)
        assert "\n" not in str(error.value) and all(torch.equal(before[k], t) for k, t in other.state_dict().items())
    for load, foreign in ((integer.load, "IntegerNetwork"), (lambda path: ptq.load(path), "Quantized")):
        save_file({"w": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=f"is a safetensors file but holds no qlab {foreign}"):
            load(path)
        for content in (b"", b"PK\3\4", zoo.FOLDER.joinpath("cnn.json").read_bytes()):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
                load(path)
        with pytest.raises(FileNotFoundError, match="cannot read"):
            load(tmp_path / "none")


def test_what_cannot_be_saved_is_named(q, tmp_path):
    changed = copy.deepcopy(q)
    changed.model.fc.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="the weight of fc is not what its codes decode to"):
        changed.save(tmp_path / "net")
    hooked = copy.deepcopy(q)
    hooked.model.fc.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="fc has a forward hook"):
        hooked.save(tmp_path / "net")
    with pytest.raises(ValueError, match="stem.0.weight is on the meta device, and has no values to save"):
        dataclasses.replace(q, model=copy.deepcopy(q.model).to("meta")).save(tmp_path / "net")
    for scale in (math.nan, math.inf, 0.0):
        sick = copy.deepcopy(q)
        sick.model.x_codes.scale.fill_(scale)
        with pytest.raises(ValueError, match=rf"^x_codes cannot be saved: its scale is {scale}, and must be a finite number above 0"):
            sick.save(tmp_path / "net")
    network = integer.convert(q, (1, 6, 6))
    with pytest.raises(ValueError, match="nothing makes the output 'y'"):
        dataclasses.replace(network, output="y").save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


# Damage


def every_kind():
    """A network with a step of every kind that integers have."""
    rng = np.random.default_rng(0)
    found = (step_networks.network(rng, 90) for _ in range(200))
    return next(made for made in found if {step.kind for step in made[0].steps} == set(integer.RUN))


@pytest.fixture(scope="module")
def saved(q, tmp_path_factory):
    """(path, content, load, what was saved) of one file of each kind."""
    folder = tmp_path_factory.mktemp("saved")
    network, weights, small = integer.convert(q, (1, 6, 6)), nn.Sequential(nn.Linear(4, 3)), linear.quantize(torch.randn(4, 6), 3, axis=0)
    plain = ptq.quantize_weights(weights.eval(), lambda w: log.quantize(w, 4))
    from qlab import quant
    steps, _ = every_kind()
    loads = {"graph": (q, ptq.load), "views": (ptq.quantize(Views(), X), ptq.load), "steps": (steps, integer.load),
             "weights": (plain, lambda path: ptq.load(path, nn.Sequential(nn.Linear(4, 3)))), "network": (network, integer.load),
             "tensor": (small, quant.load)}
    for name, (thing, _) in loads.items():
        thing.save(folder / name)
    return {name: (folder / name, (folder / name).read_bytes(), load, thing) for name, (thing, load) in loads.items()}


def equal(a, b):
    return like(a, b) if isinstance(a, ptq.Quantized) else same(a, b)


@pytest.mark.parametrize("kind", ["graph", "views", "weights", "network", "steps", "tensor"])
def test_any_flipped_bits_are_refused_or_change_nothing(saved, tmp_path, kind):
    _, content, load, thing = saved[kind]
    rng, refused, path = random.Random(0), 0, tmp_path / "net"
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*rng.choices(range(8), k=40), *rng.choices(range(8, header), k=200), *rng.choices(range(header, len(content)), k=60)]
    for at in places:
        broken = bytearray(content)
        broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            again = load(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 800 and str(error).endswith(".")
        else:
            assert at < header and equal(thing, again)                                      # a space of the header, the checksum's own name
    assert refused > 0.9 * len(places)
    for length in [*range(0, header, 97), *range(header, len(content), 41), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        load(path)


def refused(load, kind, content, path, said):
    """load refuses the content as a damaged file of its kind, in one sentence that says what."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"net is a damaged {kind} file .*({said})") as error:
        load(path)
    assert "\n" not in str(error.value)


def changed(content, change):
    """The file with its fields and tensors changed by a function, and a checksum that is right."""
    header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors, told = load_bytes(content), json.loads(header["fields"])
    made = change(told, tensors)
    real, json.dumps = json.dumps, lambda *a, allow_nan=True, **k: real(*a, **k)
    try:
        return checked.content(header["format"].removeprefix("qlab."), made if isinstance(made, (dict, list)) else told, tensors)
    finally:
        json.dumps = real


def everywhere(told, path=()):
    """The place of every value within the fields."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ():
        yield (*path, key)
        yield from everywhere(value, (*path, key))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", ["graph", "views", "weights", "network", "steps", "tensor"])
def test_any_hostile_value_in_any_field_gives_one_sentence(saved, tmp_path, kind):
    """Behind a checksum that is right: another type, a huge number, NaN, a missing or a strange name."""
    _, content, load, _ = saved[kind]
    rng, path, refused = random.Random(1), tmp_path / "net", 0
    told = json.loads(json.loads(content[8:8 + int.from_bytes(content[:8], "little")])["__metadata__"]["fields"])
    places = list(everywhere(told))
    strange = [None, True, -1, 0, 2**31, 2**70, 1.5, math.nan, math.inf, "", "__class__", "a\"); import os; (\"", "fc", [], [[]], [1, 2, 3],
               {}, {"a": 1}, [2**40] * 4, "float64", "x" * 1000]
    for _ in range(150):
        *into, last = rng.choice(places)
        value, gone = rng.choice(strange), rng.random() < 0.1

        def change(told, _, into=into, last=last, value=value, gone=gone):
            for key in into:
                told = told[key]
            if gone:
                del told[last]
            else:
                told[last] = value

        path.write_bytes(changed(content, change))
        try:
            load(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900
    assert refused > 75


def set_in(*keys, value):
    def change(told, _):
        for key in keys[:-1]:
            told = told[key]
        told[keys[-1]] = value
    return change


def rename(old, new):
    def change(told, _):
        told["graph"]["modules"] = {new if key == old else key: value for key, value in told["graph"]["modules"].items()}
        for node in told["graph"]["nodes"]:
            node[2] = new if node[2] == old else node[2]
    return change


def flattened(start, end):
    def change(told, _):
        step = next(step for step in told["steps"] if step["kind"] == "flatten")
        step["options"] = {"start_dim": start, "end_dim": end}
    return change


CODE = 'fc"); __import__("os").abort(); ("'


@pytest.mark.parametrize("change, said", [
    (set_in("graph", "modules", "fc", 0, value="Bilinear"), "'Bilinear'.* is no layer that a graph may hold"),
    (set_in("graph", "modules", "fc", 0, value="os.system"), "is no layer"),
    (set_in("graph", "modules", "fc", 1, value={"in_features": 2**30, "out_features": 2**30, "bias": False}), "in the file, and"),
    (set_in("graph", "modules", "fc", 1, "device", value="cuda"), "is no layer"),
    (set_in("graph", "nodes", -1, 3, 0, value="nowhere"), "no entry 'nowhere'"),
    (set_in("graph", "nodes", 1, 3, 0, value=CODE), "no entry"), (set_in("graph", "nodes", 1, 1, value=CODE), "is no name"),
    (set_in("graph", "nodes", 0, 2, value="x=__import__('os').abort()"), "is no name"),
    (set_in("graph", "nodes", 1, 1, value="class"), "the name 'class' is taken"),
    *((set_in("graph", "modules", "flatten", value=["Flatten", {"start_dim": start, "end_dim": end}]), "which comes before it")
      for start, end in ((1, 0), (3, 2), (-1, -2))),
    (rename("fc", CODE), "is no name"), (rename("fc", "forward"), "already exists"), (rename("fc", "elsewhere"), "lacks"),
    (set_in("graph", "modules", "x_codes", 1, "scale", value=math.nan), "a scale is nan"),
    (set_in("graph", "modules", "x_codes", 1, "scale", value=-1.0), "a scale is -1.0"),
    (set_in("graph", "modules", "x_codes", 1, "zero_point", value=256), "256 is no whole number from 0 to 255"),
    (set_in("graph", "modules", "x_codes", 1, "bits", value=9), "bits is 9"),
    (lambda told, _: told["graph"]["nodes"].append(told["graph"]["nodes"][0]), "the name|one input"),
    (lambda told, _: told["graph"]["nodes"].pop() and None, "ends with its one output"),
    (lambda told, _: told["graph"]["nodes"].reverse(), "no entry"),
    (set_in("codes", 0, "shape", value=[2**40, 2**40]), "scale has shape"), (set_in("codes", 0, "shape", value=[4, 1, 3, 4]), "packed is"),
    (set_in("codes", 0, "bits", value=4), "packed is"), (set_in("layers", "fc", value=0), "is not what its codes decode to"),
    (set_in("nbytes", value=-1), "-1 is no whole number"),
    (lambda told, tensors: tensors["fc.weight.scale"].fill_(math.nan), "scale is not finite"),
    (lambda told, tensors: tensors.pop("fc.weight.codes"), "no entry 'fc.weight.codes'"),
    (lambda told, _: [told], "list indices"), (lambda told, _: {}, "no entry"),
])
def test_hostile_graphs(saved, tmp_path, change, said):
    refused(ptq.load, "Quantized", changed(saved["graph"][1], change), tmp_path / "net", said)


def with_node(target, field, value):
    def change(told, _):
        node = next(node for node in told["graph"]["nodes"] if node[2] == target)
        node[field] = value
    return change


@pytest.mark.parametrize("change, said", [
    *((with_node("builtins.getattr", 3, [{"node": "image"}, name]), "no operation") for name in ("__class__", "shape2", 3, None)),
    (with_node("builtins.getattr", 3, []), "no operation|range"),
    (with_node("builtins.getattr", 0, "call_method"), "no function of a graph"),
    *((with_node("reshape", 2, name), "no entry") for name in ("__reduce__", "os.system", "apply_", "builtins.eval", "backward", "to")),
    (with_node("reshape", 2, "operator.getitem"), "no function of a graph"), (with_node("reshape", 0, "get_attr"), "no entry"),
    (with_node("reshape", 4, {"a=1); print(": 1}), "is no name"), (with_node("reshape", 4, {"out": 3}), "no operation"),
    (with_node("torch.cat", 3, [{"tuple": 3}]), "'tuple' is no argument"), (with_node("torch.cat", 3, [{"node": "nowhere"}]), "no entry"),
    (with_node("torch.cat", 3, [{"eval": "1"}]), "'eval' is no argument"), (with_node("torch.cat", 3, [[3, 4]]), "no operation"),
    (with_node("torch.cat", 3, [{"a": 1, "b": 2}]), "too many values"),
    (with_node("operator.pow", 3, [{"node": "mul_1"}, "2"]), "no entry|no operation"),
    (set_in("graph", "modules", "shuffle", 1, "groups", value=0), "groups is 0"),
    (set_in("graph", "modules", "line", 1, "kernel_size", value=[3, 3]), "kernel_size is"),
    (set_in("graph", "modules", "pad_layer", 1, "padding", value=[1, 2]), "padding is"),
    (set_in("graph", "modules", "pad_layer", 1, "padding", value=[1, 2, 3, 2.5]), "padding is"),
    (set_in("graph", "modules", "pad_layer", 1, "value", value="1"), "value is"),
    (set_in("graph", "modules", "softmax_layer", 1, "dim", value=1.5), "dim is"),
])
def test_hostile_functions(saved, tmp_path, change, said):
    refused(ptq.load, "Quantized", changed(saved["views"][1], change), tmp_path / "net", said)


@pytest.mark.parametrize("change, said", [
    (set_in("steps", 0, "kind", value="system"), "of kind 'system' is none"), (set_in("steps", 0, "inputs", value=["y"]), "has the inputs"),
    (set_in("output", value="y"), "nothing makes the output 'y'"), (set_in("grid_in", "scale", value=math.nan), "has no codes"),
    (set_in("steps", 0, "grids", 0, "scale", value=0.0), "has no codes"), (set_in("grid_in", "zero_point", value=300), "300 is no whole"),
    (set_in("steps", 0, "options", value={}), "has the options"), (set_in("steps", 0, "options", "groups", value=3), "does not fit"),
    (set_in("steps", 0, "options", "stride", value=[0, 1]), "stride is"), (set_in("steps", 0, "options", "stride", value=1), "no pair"),
    (set_in("steps", 0, "tensors", "weight", value="0.m"), "no int8 weight"), (set_in("steps", 0, "tensors", value={}), "no int8 weight"),
    (lambda told, tensors: tensors["0.n"].fill_(99), "multiplier .* out of range"), (set_in("steps", 0, "extra", value=1), "extra"),
    (lambda told, tensors: tensors["0.m"].fill_(5), "multiplier .* out of range"),
    (lambda told, _: told["steps"].reverse(), "has the inputs"),
    *((set_in(grid, "scale", value=scale), "a grid without a float32 scale above 0") for grid in ("grid_in", "grid_out")
      for scale in (10**29, 10**400, 1, True, 1e39, 1e-60, "1")),
    *((flattened(start, end), f"'flatten', flatten, cannot take .* start_dim {start} and end_dim {end} of 4 dimensions")
      for start, end in ((0, -1), (0, 0), (0, 1), (1, 0), (2, 1), (-1, -2), (4, -1), (-5, -1), (1, 4))),
])
def test_hostile_steps(saved, tmp_path, change, said):
    refused(integer.load, "IntegerNetwork", changed(saved["network"][1], change), tmp_path / "net", said)


def with_option(kind, **options):
    def change(told, _):
        step = next(step for step in told["steps"] if step["kind"] == kind)
        step["options"] |= options
    return change


def with_field(kind, field, value):
    def change(told, _):
        next(step for step in told["steps"] if step["kind"] == kind)[field] = value
    return change


def with_tensor(kind, what, change):
    def changed(told, tensors):
        key = next(step for step in told["steps"] if step["kind"] == kind)["tensors"][what]
        tensors[key] = change(tensors[key])
    return changed


@pytest.mark.parametrize("change, said", [
    *((with_option("windows", rows=rows), "has rows") for rows in ([], [[1, 1]], [[2, 1]], [[-1, 2]], [[0, 1, 2]], [0, 1], [[0, 2.0]], 3)),
    (with_option("windows", columns=[[0, 1]] * 9), "m of step 'windows_.*' is not torch.int32 of shape"),
    *((with_option("cat", dim=dim), "dim") for dim in (0, 7, -9, 64, True, "1", [1])),
    *((with_option("relu6", high=high), "has high") for high in (128, -129, 5.5, None)),
    *((with_option("reshape", shape=shape), "has shape") for shape in ([0, 3], [-1], [2**31], [[2]], 6, [True])),
    *((with_option("permute", dims=dims), "has dims") for dims in ([1, 0, 2, 3], [0, 1, 1], [0, 2], [], [0, -1, 1], 0)),
    *((with_option("slice", **part), "has (start|stop|step|dim)") for part in ({"start": -1}, {"stop": 2**40}, {"step": 0}, {"dim": 1.0})),
    (with_option("slice", start=5, stop=5), "a part from 5 to 5 of .*, in which there is nothing"),
    (with_option("slice", dim=0), "dim 0 of"), (with_option("pad", padding=[1] * 20), "pad, cannot take what it is given: . dimensions"),
    *((with_option("pad", **far), "has (padding|code)") for far in ({"padding": [1]}, {"padding": [1, 2.5]}, {"code": 200}, {"code": ""})),
    *((with_option("stretch", **far), "has (stride|extra)") for far in ({"stride": [0, 1]}, {"extra": [-1, 0]}, {"extra": [1]})),
    (with_option("mul", dim=1), "has the options dim"), (with_option("table", code=1), "has the options code"),
    *((with_field(kind, "relu", True), f"{kind}, has a ReLU") for kind in ("cat", "table", "softmax", "pad", "relu6")),
    *((with_field(kind, "inputs", ["x"]), "has the inputs") for kind in ("mul", "add")),
    (with_field("cat", "inputs", []), "has the inputs"), (with_field("cat", "grids", []), "has the inputs"),
    (with_field("softmax", "inputs", ["x", "x"]), "has the inputs"),
    (with_tensor("table", "table", lambda t: t[:255].clone()), "table of step 'table_.*' is not torch.int8 of shape .256"),
    (with_tensor("table", "table", lambda t: t.int()), "table of step 'table_.*' is not torch.int8"),
    (with_tensor("softmax", "m", lambda t: t * 0), "multiplier .* out of range"),
    (with_tensor("softmax", "n", lambda t: t * 0 - 1), "multiplier .* out of range"),
    (with_tensor("mul", "m", lambda t: t.expand(2).clone()), "m of step 'mul_.*' is not torch.int32 of shape"),
    (with_tensor("cat", "n", lambda t: t * 0 + 31), "multiplier .* out of range|n of step"),
])
def test_hostile_steps_of_other_kinds(saved, tmp_path, change, said):
    refused(integer.load, "IntegerNetwork", changed(saved["steps"][1], change), tmp_path / "net", said)


def test_a_flipped_bit_of_a_weight_and_another_version_are_told(saved, tmp_path):
    for kind, what in (("graph", "Quantized"), ("network", "IntegerNetwork"), ("tensor", "QTensor")):
        _, content, load, _ = saved[kind]
        (tmp_path / "net").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"net is a damaged {what} file .wrong checksum."):
            load(tmp_path / "net")
        (tmp_path / "net").write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
        with pytest.raises(ValueError, match=f"net is a {what} file of version '2', and this program reads version '1'"):
            load(tmp_path / "net")


def test_a_file_without_a_checksum_is_read(saved, tmp_path):
    """As earlier versions wrote them."""
    q = saved["tensor"][3]
    fields, tensors = q.packed()
    save_file(tensors, tmp_path / "old", {"format": "qlab.QTensor", "version": "1", "fields": json.dumps(fields)})
    from qlab import quant
    assert same(quant.load(tmp_path / "old"), q)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    for _, content, _, thing in saved.values():
        thing.save(tmp_path / "again")
        assert saving.read(tmp_path / "again") == content


def test_weights_of_modules_that_list_their_own(tmp_path):
    """nn.LSTM computes with a list that it makes of its parameters."""
    def made():
        return nn.ModuleDict({"lstm": nn.LSTM(3, 4), "list": nn.ParameterList([torch.randn(2)]), "fc": nn.Linear(4, 2)}).eval()

    q, x = ptq.quantize_weights(made(), ptq.int8_per_channel), torch.rand(5, 1, 3)
    q.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net", made())
    assert like(q, again) and torch.equal(q.model["lstm"](x)[0], again.model["lstm"](x)[0])
    assert torch.equal(q.model["list"][0], again.model["list"][0])


class Functions(nn.Module):
    """A forward that calls functions, in place too, and names no layer of theirs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout()

    def forward(self, image):
        y = nn.functional.relu(self.a(image))
        y += self.b(y)
        y = nn.functional.adaptive_avg_pool2d(nn.functional.max_pool2d(nn.functional.relu6(y), 2), 1)
        return torch.flatten(self.drop(y), 1)


LINE = [nn.ZeroPad1d((1, 2)), nn.Conv1d(2, 4, 3, stride=2), nn.BatchNorm1d(4), nn.MaxPool1d(2, 1), nn.AvgPool1d(2, padding=1),
        nn.ConstantPad1d(1, 0.5), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Unflatten(1, (4, 3)), nn.Flatten(), nn.Linear(12, 3),
        nn.Softmax(1)]
TABLES = [nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU(), nn.GELU(approximate="tanh"), nn.Tanh(),
          nn.Hardtanh(-0.5, 0.75), nn.ELU(0.5), nn.SELU(), nn.CELU(2.0), nn.Softplus(2, 10), nn.Softsign(), nn.Mish(), nn.LogSigmoid(),
          nn.Tanhshrink(), nn.Hardshrink(0.1), nn.Softshrink(0.1), nn.Threshold(0.1, -1.0), nn.GELU(), nn.ConstantPad2d((1, 0, 2, 1), -2),
          nn.ZeroPad2d(1), nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), nn.Flatten(2, 2),
          nn.AdaptiveAvgPool2d((4, 5))]


NETWORKS = {  # of layers and operations that the zoo's have not, and the shapes of their images
    "views": (Views, (1, 6, 6)), "line": (lambda: nn.Sequential(*LINE), (2, 12)),
    "tables": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), *TABLES), (1, 6, 7)),
}


@pytest.mark.parametrize("net, shape", NETWORKS.values(), ids=NETWORKS)
def test_other_peoples_networks_come_back(net, shape, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(16, *shape)
    q = ptq.quantize(net(), images)
    q.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net")
    assert like(q, again) and torch.equal(q.model(images), again.model(images)) and q.model(images).unique().numel() > 4
    again.save(tmp_path / "again")
    assert (tmp_path / "net").read_bytes() == (tmp_path / "again").read_bytes()
    network = integer.convert(q, shape)
    assert same(network, integer.convert(again, shape))
    network.save(tmp_path / "integers")
    assert same(network, integer.load(tmp_path / "integers"))


def test_what_forward_calls_as_functions_comes_back(tmp_path):
    torch.manual_seed(0)
    weights = {"a": lambda w: linear.quantize(w, 2, "symmetric", axis=0), "b": lambda w: linear.quantize(w, 8, "symmetric")}
    q = ptq.quantize(Functions(), X, weights=weights, activation_bits=4, correct_bias=True)
    q.save(tmp_path / "net")
    again = ptq.load(tmp_path / "net")
    assert like(q, again) and torch.equal(q.model(X), again.model(X))
    assert same(integer.convert(q, (1, 6, 6)), integer.convert(again, (1, 6, 6)))
    copy.deepcopy(again).save(tmp_path / "again")
    assert (tmp_path / "net").read_bytes() == (tmp_path / "again").read_bytes()
