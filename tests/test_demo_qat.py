"""Notebook 07's widget, driven without a browser: its curve, its tangent and its caption are LSQ's formula and the error itself."""

import re

import numpy as np
import pytest
import torch

from qlab.lab import zoo
from qlab.lab.demos.qat import BITS, UNITS, Weights, after_training, drag_step, gains, results, won_back
from qlab.lab.significance import Accuracy
from qlab.nets import ptq
from qlab.nets.fake import fake_quantize
from qlab.quant import linear, ranges


@pytest.fixture(scope="module")
def tensors():
    folded = ptq.fold_batch_norm(zoo.load("depthwise"))
    return {"pointwise": folded.block2.pointwise.weight, "depthwise": folded.block1.depthwise.weight}


@pytest.fixture(scope="module")
def demo(tensors):
    return drag_step(tensors)


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def numbers(text):
    """error, gradient, its two parts and the measured slope, as the caption has them."""
    number = r"([-+]?\d+\.\d+)"
    pattern = rf"error {number} %.*<b>{number}</b> \(rounded weights {number}, saturated ones {number}\); measured slope {number}"
    return [float(found) for found in re.search(pattern, text).groups()]


def lsq(w, s, top):
    """The derivative of sum (w_hat - w)^2 / sum w^2 by s, from equation 3 of Esser et al. 2020, in NumPy: rounded part, saturated part."""
    v = w / s
    r = np.clip(np.round(v), -top, top)
    inside = (-top < v) & (v < top)
    each = 2 * (s * r - w) * np.where(inside, r - v, np.where(v > 0, top, -top)) / (w**2).sum()
    return each[inside].sum(), each[~inside].sum()


@pytest.mark.parametrize("name", ["pointwise", "depthwise"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("units", [0.2, 1.0])
def test_caption_and_picture_are_the_formula(demo, tensors, name, bits, units):
    put(demo, weights=name, bits=bits, step=units)
    w, top = tensors[name].double().flatten().numpy(), 2 ** (bits - 1) - 1
    unit = np.abs(w).max() / top
    s = units * unit
    w_hat = linear.quantize(tensors[name].double(), bits, "symmetric", x_min=-top * s, x_max=top * s).dequantize().flatten().numpy()
    error = 100 * ((w_hat - w) ** 2).sum() / (w**2).sum()
    rounded, saturated = (100 * unit * part for part in lsq(w, s, top))
    said = numbers(demo.text)
    assert said[0] == pytest.approx(error, abs=0.011)
    assert said[1:4] == pytest.approx([rounded + saturated, rounded, saturated], abs=0.011)
    ax, error_ax = demo.fig.axes
    curve, tangent, here = error_ax.lines
    assert here.get_xdata()[0] == units and here.get_ydata()[0] == pytest.approx(error, rel=1e-6)
    assert np.interp(units, curve.get_xdata(), curve.get_ydata()) == pytest.approx(error, rel=1e-6)
    (x0, x1), (y0, y1) = tangent.get_data()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(rounded + saturated, rel=1e-6) and (y0 + y1) / 2 == pytest.approx(error, rel=1e-6)


def test_the_staircase_is_the_quantizer(demo, tensors):
    put(demo, weights="pointwise", bits=3, step=0.4)
    straight, stairs = demo.fig.axes[0].lines
    x, y = stairs.get_data()
    s = 0.4 * tensors["pointwise"].abs().max().item() / 3
    middles = (x[:-1] + x[1:]) / 2
    flat = x[:-1] < x[1:]                                                                   # not the risers
    codes = np.clip(np.round(middles[flat] / s), -3, 3)
    assert y[:-1][flat] == pytest.approx(s * codes) and len(set(np.round(y / s))) == 7
    assert straight.get_ydata() == pytest.approx([-3 * s, -3 * s, 3 * s, 3 * s])
    grid = torch.linspace(-5 * s, 5 * s, 997, requires_grad=True)                           # its slope is the library's derivative
    fake_quantize(grid, torch.tensor(s, requires_grad=True), 0, -3, 3).sum().backward()
    line = np.interp(grid.detach().numpy(), *straight.get_data())
    slopes, said = np.diff(line) / np.diff(grid.detach().numpy()), grid.grad[:-1].numpy()
    assert (np.abs(slopes - said) > 0.01).sum() <= 2                                        # only where it bends


def test_the_gradient_is_the_slope_for_many_values_and_not_for_few():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    many, few = Weights(values), Weights(values[:5])
    for units in (0.4, 0.6, 0.9):
        s = units * many.unit(4)
        assert sum(many.gradient(s, 4)) == pytest.approx(many.slope(s, 4), rel=0.15)
    steps = few.unit(4) * np.arange(0.9, 1.2, 0.05)                                           # no value or one saturates
    wrong = [abs(sum(few.gradient(s, 4)) / few.slope(s, 4) - 1) for s in steps]
    assert max(wrong) > 0.5


def test_following_the_gradient_leads_near_the_least_error(tensors):
    data = Weights(tensors["pointwise"])
    for bits in (3, 6):
        s = data.unit(bits)
        for _ in range(100):
            s *= 1 - 0.2 * np.clip(s * sum(data.gradient(s, bits)) / data.error(s, bits), -0.5, 0.5)
        best = ranges.mse(tensors["pointwise"], bits, "symmetric").x_max.item() / (2 ** (bits - 1) - 1)
        assert data.error(s, bits) < 1.1 * data.error(best, bits)
        assert data.curve(bits).min() <= 1.001 * data.error(best, bits)


def test_the_tables_have_the_arms_and_their_gains():
    """A record made by hand: 100 images, PTQ right on 50, the control's two seeds on 90, an arm's on 60 and 80."""
    def row(n):
        return {"result": Accuracy(torch.arange(100) < n), "nbytes": 1}
    best = row(50) | {"rounding": "adaround", "weights": "mse", "activations": "mse", "equalize": False, "correct_bias": True}
    record = {"control": {"0": row(90), "1": row(90)}, "arms": {"lsq-channel": {"3": {"0": row(60), "1": row(80)}}},
              "ptq": {"3": {per: {"plain": row(20), "nearest": row(40), "best": best} for per in ("channel", "tensor")}}}
    lines = after_training(record).splitlines()
    assert re.match(r"3 bits, channel +20.0 % +40.0 % +50.0 % \[", lines[1])
    assert lines[1].endswith("AdaRound, weights mse, activations mse, corrected")
    assert [len(results(record, arm, 3)) for arm in ("control", "ptq-tensor", "nearest-channel", "lsq-channel")] == [2, 2, 2, 2]
    control, nearest, ptq, lsq, *rest = gains(record, "channel").splitlines()[1:]
    assert control.endswith(" 90.00 90.00") and nearest.endswith(" 40.00") and ptq.endswith(" 50.00")
    assert " 60.00 80.00 " in lsq and "+20.00 [" in lsq
    assert "50 % [" in lsq and not rest
    share, low, high = won_back(results(record, "lsq-channel", 3), results(record, "ptq-channel", 3), results(record, "control", 3))
    assert share == pytest.approx(0.5) and low < 0.5 < high
    with pytest.raises(ValueError, match="nothing has been lost"):
        won_back(*[results(record, "control", 3)] * 3)


def test_no_weight_saturates_at_the_unit(demo):
    for bits in BITS:
        put(demo, weights="depthwise", bits=bits, step=1.0)
        assert numbers(demo.text)[3] == 0
    assert UNITS[0] > 0 and 1.0 in UNITS


def test_bad_arguments(tensors):
    with pytest.raises(ValueError, match="weights is empty"):
        drag_step({})
    for bad in (torch.zeros(3), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="w must be finite, and must hold a number other than 0"):
            drag_step({"w": bad})
    for bits in (1, 7):
        with pytest.raises(ValueError, match=f"bits is {bits}, and must be from 2 to 6"):
            drag_step(tensors, bits=bits)
