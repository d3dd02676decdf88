"""Notebook 08's widget, driven without a browser: what it draws and says is what the half float does."""


import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.lab import data, zoo
from qlab.lab.demos.mixed_precision import HALVES, SCALES, Tensor, drag_loss_scale, fates, gradients
from qlab.nets.half import shares

SCALE = "log2 of the scale S"


@pytest.fixture(scope="module")
def found():
    return gradients(zoo.load("lenet300"), *data.calibration(64))


@pytest.fixture(scope="module")
def demo(found):
    return drag_loss_scale(found)


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def test_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(7, 5), torch.arange(7) % 3
    found = gradients(net.requires_grad_(False), x, y)
    assert list(found) == ["0, outputs", "2, outputs", "0, weights", "2, weights"]
    assert all(p.grad is None and not p.requires_grad for p in net.parameters()) and not net[0]._forward_hooks
    logits = net(x)
    p = torch.softmax(logits, 1) - nn.functional.one_hot(y, 3)
    torch.testing.assert_close(found["2, outputs"], p / 7)                                  # of the mean over 7 images
    torch.testing.assert_close(found["2, weights"], (p / 7).T @ net[1](net[0](x)))
    net.requires_grad_(True)
    torch.testing.assert_close(found["0, weights"], torch.autograd.grad(cross_entropy(net(x), y), net[0].weight)[0])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("log_scale", [-20, 0, 7, 24, 32])
def test_caption_picture_and_curve_tell_the_same(demo, found, half, log_scale):
    name = "fc3, outputs"
    put(demo, **{"gradient": name, "half": half, SCALE: log_scale})
    with np.errstate(over="ignore"):
        scaled = found[name].double() * 2.0**log_scale
    h = scaled[scaled != 0].to(HALVES[half]).float().abs()
    zero, infinite = 100 * float((h == 0).float().mean()), 100 * float(h.isinf().float().mean())
    assert f"{zero:.2f} % become 0" in demo.text and f"{infinite:.2f} % infinite" in demo.text
    ax, curve_ax = demo.fig.axes
    curve, here = curve_ax.lines
    assert here.get_ydata()[0] == pytest.approx(zero + infinite, abs=1e-4)
    assert curve.get_ydata()[log_scale - SCALES[0]] == pytest.approx(zero + infinite, abs=0.2)   # 65520 is not quite 2^16
    drawn = [patch.get_data() for patch in ax.patches]
    assert sum(values.sum() for values, *_ in drawn) == len(h)
    assert drawn[0][0].sum() == pytest.approx(len(h) * zero / 100, abs=1)
    assert all(edges[0] == -90 + log_scale for _, edges, _ in drawn)


def test_ranges_are_those_of_the_formats():
    for half in HALVES.values():
        borders = fates(half)
        for at, share in ((borders["becomes 0"][1], "underflow"), (borders["subnormal"][1] - 0.01, "subnormal"),
                          (borders["normal"][0], "normal"), (borders["infinite"][0], "overflow")):
            assert getattr(shares(torch.tensor([2.0], dtype=torch.float64), half, 2.0 ** (at - 1)), share) == 1


def test_bfloat16_loses_nothing_that_float16_does(demo, found):
    put(demo, **{"gradient": "fc1, outputs", "half": "float16", SCALE: 0})
    assert float(demo.text.split("<b>")[1].split(" %")[0]) > 10
    put(demo, **{"half": "bfloat16"})
    assert "0.00 % become 0" in demo.text and "0.00 % infinite" in demo.text


def test_the_curve_is_low_between_two_losses(found):
    for name, gradient in found.items():
        lost = Tensor(gradient).lost(torch.float16, np.arange(*SCALES))
        best = int(lost.argmin())
        assert (np.diff(lost[:best + 1]) <= 0).all() and (np.diff(lost[best:]) >= 0).all(), name
        assert lost[0] > lost[best] < lost[-1]


def test_bad_arguments(found):
    with pytest.raises(ValueError, match="tensors is empty"):
        drag_loss_scale({})
    for bad in (torch.zeros(3), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="g must be finite, and must hold a number other than 0"):
            drag_loss_scale({"g": bad})
