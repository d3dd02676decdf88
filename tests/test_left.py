"""What quantize_weights, prune and compress left as it is: every parameter of a hostile network is either taken, its bias, or named."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from qlab.nets import compress, prune, prune_schedules, ptq, qat
from qlab.nets.left import ByLayer, behind
from qlab.quant import linear


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(3)), nn.Linear(3, 3, bias=False)


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.zeros(4))
        self.embedding, self.lstm, self.gru = nn.Embedding(9, 4), nn.LSTM(4, 4), nn.GRUCell(4, 4)
        self.conv, self.bn, self.line, self.cube = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 1)
        self.up, self.layer_norm, self.attention = nn.ConvTranspose2d(4, 4, 3), nn.LayerNorm(4), nn.MultiheadAttention(4, 2)
        self.normed, self.relu, self.block = parametrizations.weight_norm(nn.ConvTranspose1d(4, 4, 3)), nn.PReLU(), Own()
        self.head, self.last = nn.Linear(4, 4), nn.Linear(4, 2)


OTHERS = {"embedding": "Embedding", "lstm": "LSTM", "gru": "GRUCell", "bn": "BatchNorm2d", "cube": "Conv3d", "up": "ConvTranspose2d",
          "layer_norm": "LayerNorm", "attention": "MultiheadAttention", "normed": "ConvTranspose1d", "relu": "PReLU"}
LAYERS = ["conv", "line", "attention.out_proj", "block.inner", "head", "last"]


def int4(weight):
    return linear.quantize(weight, 4, "symmetric")


def taken(how):
    net = Everything()
    if how == "quantized":
        q = ptq.quantize_weights(net, int4, skip=("last",))
        return q.tensors, q.left, "named in skip"
    if how == "magnitude":
        masks = prune.magnitude(net, 0.5, skip=["last"])
        return masks, masks.left, "named in skip"
    if how == "n : m":
        masks = prune.n_m(net, 1, 2, skip=["last", "block.inner"])
        return {**masks, "block.inner": None}, {n: why for n, why in masks.left.items() if n != "block.inner"}, "named in skip"
    if how == "gradual":
        masks, _ = prune_schedules.gradual(net, 0.5, 10, skip=["last"])
        return masks, masks.left, "named in skip"
    if how == "iterative":
        masks = prune_schedules.iterative(net, [0.2, 0.5], lambda net, after_step, number: after_step(), skip=["last"])
        return masks, masks.left, "named in skip"
    shared = compress.share(net, {name: torch.ones_like(net.get_submodule(name).weight) > 0 for name in LAYERS[:-1]}, 2)
    return shared, shared.left, "it has no mask"


@pytest.mark.parametrize("how", ["quantized", "magnitude", "n : m", "gradual", "iterative", "shared"])
def test_every_parameter_is_taken_or_named(how):
    made, left, why = taken(how)
    assert sorted(made) == sorted(LAYERS[:-1])
    assert left.pop("last") == why
    assert left.pop("token").startswith("a parameter of Everything itself: only weights of Conv1d, Conv2d, Linear are ")
    assert left.pop("block.scale").startswith("a parameter of Own itself")
    assert {name: told.split(":")[0] for name, told in left.items()} == OTHERS


def test_nothing_is_left_of_a_plain_network():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU6(), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.randn(8, 1, 4, 4)
    assert ptq.quantize(net, x).left == {} and qat.convert(qat.prepare(net, x)).left == {}
    assert list(ptq.quantize_weights(net, int4).left) == ["1"] and prune.magnitude(nn.Linear(2, 2), 0.5).left == {}


def test_a_bare_layer_and_a_module_under_two_names():
    assert behind(nn.Embedding(2, 2), set(), "pruned", "") == {"": "Embedding: only weights of Conv1d, Conv2d, Linear are pruned"}
    norm = nn.LayerNorm(2)
    assert list(behind(nn.Sequential(norm, nn.Linear(2, 2), norm), {"1"}, "pruned", "")) == ["0"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_keeps_what_was_left_and_equalized(whole, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU6(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    net.eval()
    q = ptq.quantize(net, torch.randn(8, 1, 4, 4), equalize=True) if whole else ptq.quantize_weights(net, int4, skip=("6",))
    q.save(tmp_path / "net.safetensors")
    again = ptq.load(tmp_path / "net.safetensors", None if whole else net)
    assert again.left == q.left and again.equalized == q.equalized and str(again) == str(q)
    assert bool(q.left) is not whole and (q.equalized is None) is not whole
    said = str(q).splitlines()
    if whole:
        assert said[0].startswith("3 layers quantized, ") and said[1] == "1 of 3 layers equalized with the next"
        assert said[3] == "    0: 2, a ReLU6, clips at 6, whatever the factor is: relu6_to_relu takes a ReLU"
    else:
        assert said[0].startswith("2 layers quantized, ") and said[1] == "left as they are:" and said[-1] == "    6: named in skip"


def test_a_file_of_before_loads(tmp_path, monkeypatch):
    from qlab.quant import checked
    net, written = nn.Sequential(nn.Linear(3, 2)), checked.content

    def before(what, fields, tensors):
        return written(what, {name: value for name, value in fields.items() if name not in ("left", "equalized")}, tensors)

    monkeypatch.setattr(checked, "content", before)
    ptq.quantize_weights(net, int4).save(tmp_path / "old.safetensors")
    again = ptq.load(tmp_path / "old.safetensors", net)
    assert again.left == {} and again.equalized is None and list(again.tensors) == ["0"]


@pytest.mark.parametrize("fields", [{"left": {"0": 3}}, {"left": []}, {"equalized": {"pairs": [["0"]], "left": {}}}, {"equalized": 3}])
def test_a_damaged_report_is_refused(fields, tmp_path, monkeypatch):
    from qlab.quant import checked
    net, written = nn.Sequential(nn.Linear(3, 2)), checked.content
    monkeypatch.setattr(checked, "content", lambda what, told, tensors: written(what, told | fields, tensors))
    ptq.quantize_weights(net, int4).save(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="bad.safetensors is a damaged Quantized file"):
        ptq.load(tmp_path / "bad.safetensors", net)


def test_what_is_shared_says_so_after_training_and_from_a_file(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    shared = compress.share(net, {"0": torch.ones(4, 4) > 0}, 2)
    trained = compress.fine_tune(net, shared, torch.randn(8, 4), torch.arange(8) % 2, 1, 0.01)
    compress.save(tmp_path / "net.qlab", net, trained)
    assert shared.left == trained.left == compress.load_shared(tmp_path / "net.qlab", net).left
    assert list(shared.left) == ["1", "2"] and shared.left["2"] == "it has no mask"


def test_it_is_a_dictionary_that_travels():
    made = ByLayer({"fc": 1}, {"bn": "why"})
    again = pickle.loads(pickle.dumps(made))
    assert made == {"fc": 1} and again == made and again.left == {"bn": "why"}
