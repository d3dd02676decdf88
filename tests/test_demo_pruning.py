"""Notebook 09's widget, driven without a browser: what it draws is what the library computes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qlab.lab import data, measure, zoo
from qlab.lab.demos.pruning import cut
from qlab.nets import prune, sparse


@pytest.fixture(scope="module")
def split():
    return data.calibration(60)


@pytest.fixture(scope="module")
def demo(split):
    return cut(zoo.load("cnn"), split, [0.1, 0.2, 0.3, 0.4, 0.5])


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def pruned(values):
    model = copy.deepcopy(zoo.load("cnn"))
    masks = prune.magnitude(model, {name: value / 100 for name, value in values.items()})
    prune.apply(model, masks)
    return model, masks


@pytest.mark.parametrize("values", [
    {"conv1": 30, "conv2": 90, "conv3": 80, "fc1": 95, "fc2": 40},
    {"conv1": 0, "conv2": 0, "conv3": 0, "fc1": 0, "fc2": 0},
    {"conv1": 99, "conv2": 99, "conv3": 99, "fc1": 99, "fc2": 99},
    {"conv1": 0, "conv2": 55, "conv3": 80, "fc1": 95, "fc2": 41},
])
def test_accuracy_bytes_and_share_are_the_librarys(demo, split, values):
    put(demo, **values)
    model, masks = pruned(values)
    _, gauge, bars = demo.fig.axes
    assert gauge.patches[0].get_height() == pytest.approx(100 * measure.accuracy(model, split).value)
    assert f"<b>{100 * prune.sparsity(masks):.1f} %</b> of all weights removed" in demo.text
    biases = sum(p.nbytes for n, p in model.named_parameters() if n.endswith("bias"))
    sizes = [biases + sum(sparse.nbytes(model.get_submodule(n).weight, f, 5) for n in masks) for f in sparse.FORMATS]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], np.array(sizes) / 1000)
    smallest = sparse.FORMATS[int(np.argmin(sizes))]
    assert smallest.capitalize() in demo.text


def test_histogram_shows_the_layer_that_moved_and_what_is_cut(demo):
    put(demo, conv1=0, conv2=10, conv3=10, fc1=10, fc2=10)
    for name, value in (("fc2", 50), ("conv3", 75), ("conv1", 20)):
        put(demo, **{name: value})
        ax = demo.fig.axes[0]
        weight = zoo.load("cnn").get_submodule(name).weight
        assert ax.get_title() == f"{name}, {weight.numel():,} weights" or ax.get_title(loc="left").startswith(f"{name}, ")
        whole, gone = (patch.get_data().values for patch in ax.patches)
        assert whole.sum() == weight.numel() and gone.sum() == round(value / 100 * weight.numel())
        assert (gone <= whole).all()


def test_every_step_changes_the_picture_and_the_way_back_is_the_same(demo):
    put(demo, conv1=10, conv2=20, conv3=30, fc1=40, fc2=49)
    put(demo, fc2=50)                                                                       # the last that moved is the one shown
    picture, text = demo._image.value, demo.text
    put(demo, fc2=60)
    assert demo._image.value != picture and demo.text != text
    put(demo, fc2=50)
    assert demo._image.value == picture and demo.text == text


def test_model_is_not_changed_and_other_chains_work(split):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20, bias=False), nn.ReLU(), nn.Linear(20, 10)).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    demo = cut(model, split)
    demo.controls["1"].value = 99
    assert demo.error is None and "of 60 images right" in demo.text
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_bad_arguments(split):
    with pytest.raises(ValueError, match="there are 2 shares for 5 layers"):
        cut(zoo.load("cnn"), split, [0.1, 0.2])
