"""Notebook 06's widget, driven without a browser: what it draws and counts is what the library's fake quantization gives. Its record."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from qlab.lab import runs, zoo
from qlab.lab.demos.ptq import BITS, Activation, clipping, decoded, table
from qlab.lab.experiments import ptq as experiment
from qlab.lab.measure import mcnemar
from qlab.nets.fake import FakeQuantize
from qlab.nets.ptq import RANGES
from qlab.quant import ranges

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(40, 1, 12, 12, generator=GENERATOR), torch.randint(0, 3, (40,), generator=GENERATOR)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 4, 3), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(4, 8, 3), relu2=nn.ReLU(), flatten=nn.Flatten(),
        fc=nn.Linear(72, 3))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def demo(net):
    return clipping(net, IMAGES, IMAGES, LABELS, layers=("relu1", "relu2"))


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


@pytest.mark.parametrize("layer, bits, percent", [("relu1", 2, 30), ("relu1", 8, 60), ("relu2", 3, 100), ("relu2", 4, 15)])
def test_the_network_answers_as_with_a_fake_quantizer_behind_the_relu(demo, net, layer, bits, percent):
    put(demo, layer=layer, bits=bits, percent=percent)
    at = [name for name, _ in net.named_children()].index(layer) + 1
    top = net[:at](IMAGES).max().item()
    whole = nn.Sequential(net[:at], FakeQuantize(bits, 0.0, top * percent / 100), net[at:])
    answers, before = whole(IMAGES).argmax(1), net(IMAGES).argmax(1)
    assert f"<b>{int((answers == LABELS).sum())}</b> of 40 images are right (float {int((before == LABELS).sum())})" in demo.text
    assert f"{int((answers != before).sum())} answers change" in demo.text


def test_levels_saturated_part_and_mark_follow_the_slider(demo, net):
    put(demo, layer="relu1", bits=3, percent=40)
    ax, curve_ax = demo.fig.axes
    threshold = 0.4 * net[:2](IMAGES).max().item()
    levels = next(line for line in ax.lines if line.get_label() == "levels").get_xdata()
    np.testing.assert_allclose(levels[::3], np.linspace(0, threshold, 8), rtol=1e-6)
    assert ax.patches[-1].get_xy()[:, 0].min() == pytest.approx(threshold)
    assert curve_ax.lines[-1].get_xdata() == [40]


def test_error_is_rounding_below_the_threshold_and_clipping_above():
    seen = torch.rand(5000, generator=GENERATOR) ** 4 * 3
    activation = Activation(seen, torch.zeros(1, 3), nn.Identity())
    x, threshold = activation.values.double().numpy(), 0.25 * seen.max().item()
    x_hat = np.minimum(np.round(x / threshold * 7), 7) * threshold / 7                       # 3 bits
    squared = (x - x_hat) ** 2
    below = x <= threshold
    assert activation.errors(3, 25) == pytest.approx((squared[below].sum() / len(x), squared[~below].sum() / len(x)), rel=1e-3)
    assert activation.curves[3].shape == (100, 2) and activation.curves[3][-1, 1] == 0       # nothing is above the largest value
    best = activation.curves[3].sum(1).argmin() + 1
    assert activation.rules[3]["mse"] == pytest.approx(best / 100 * seen.max().item(), rel=1e-5)
    assert activation.rules[8]["entropy"] == ranges.entropy(activation.values, 8).x_max.item()
    assert activation.rules[8]["minmax"] == seen.max().item()


def test_pooling_may_come_before_the_codes():
    x = torch.rand(2, 3, 8, 8, generator=GENERATOR)
    pool = nn.MaxPool2d(2)
    assert torch.equal(pool(decoded(x, 3, 0.7)), decoded(pool(x), 3, 0.7))


def test_every_step_changes_the_picture(demo):
    put(demo, layer="relu1", bits=4, percent=100)
    before = demo._image.value
    for percent in (80, 60, 40, 30, 20, 10):
        put(demo, percent=percent)
        assert demo._image.value != before
        before = demo._image.value


def test_bad_arguments(net):
    with pytest.raises(ValueError, match="layers is conv1, and must name ReLUs"):
        clipping(net, IMAGES, IMAGES, LABELS, layers=("conv1",))
    with pytest.raises(ValueError, match="layers is empty"):
        clipping(net, IMAGES, IMAGES, LABELS, layers=())
    with pytest.raises(Exception, match="[Ss]elect|[Ii]nvalid"):
        clipping(net, IMAGES, IMAGES, LABELS, layers=("relu1",), bits=5)
    assert 5 not in BITS


@pytest.fixture(scope="module")
def record():
    return runs.load("ptq")


def test_the_record_was_made_with_the_committed_checkpoints(record):
    assert record["checkpoints"] == {net: zoo.record(net)["sha256"] for net in experiment.NETS}
    for net in experiment.NETS:
        assert record["int8"][net]["float"]["correct"] == zoo.record(net)["test_correct"]


def test_the_table_has_the_record_s_numbers(record):
    rows = record["int8"]["cnn"]
    lines = table("cnn", rows, "float").splitlines()
    assert len(lines) == 4 and lines[1].split()[:4] == ["float", "373,288", "92.4", "%"] and lines[1].endswith("]")
    pair = mcnemar(rows["float"]["result"], rows["channel"]["result"])
    assert f"{100 * pair.difference:+.2f} [{100 * pair.low:+.2f}, {100 * pair.high:+.2f}]" in lines[2]
    assert lines[2].endswith("noise") == (not pair.significant)


def test_eight_bits_need_no_repair_and_one_scale_per_tensor_needs_it_at_few(record):
    whole, repairs = record["int8"]["depthwise"]["float"]["result"], record["repairs"]
    assert set(repairs) == {"8", "5", "4", "3"}
    assert all(set(rows) == set(experiment.REPAIRS) for rows in repairs.values())
    assert abs(repairs["8"]["tensor"]["result"].value - whole.value) < 0.003
    for bits in "543":
        rows = repairs[bits]
        assert mcnemar(rows["tensor"]["result"], rows["channel"]["result"]).low > 0
        assert mcnemar(rows["tensor"]["result"], rows["tensor, both"]["result"]).low > 0


def test_equalization_costs_activations_of_four_bits_in_one_range(record):
    rows = record["equalized"]["minmax"]
    assert mcnemar(rows["as they are"]["result"], rows["equalized"]["result"]).high < 0


def test_integer_networks_say_what_the_simulated_ones_say(record):
    assert set(record["integer"]) == set(experiment.NETS)
    for net, entry in record["integer"].items():
        assert entry["same"]["result"].value >= 0.995
        assert entry["images"] == experiment.INTEGER_IMAGES[net]
        assert entry["nbytes"] < 0.32 * record["int8"][net]["float"]["nbytes"]


def test_rules_for_the_range_differ_by_more_than_noise(record):
    assert set(record["calibration"]) == set(experiment.CALIBRATED)
    rows = record["calibration"]["depthwise, 4 bits"]
    assert set(RANGES) < set(rows)
    assert mcnemar(rows["minmax"]["result"], rows["mse"]["result"]).low > 0
    rows = record["calibration"]["cnn, 8 bits"]
    assert mcnemar(rows["minmax"]["result"], rows["entropy"]["result"]).high < 0
    assert mcnemar(rows["entropy"]["result"], rows["entropy, input minmax"]["result"]).low > 0
