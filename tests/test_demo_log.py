"""Notebook 03's live figure, driven without a browser: what it draws and says is what the library computes."""

import math
import re

import numpy as np
import pytest
import torch

from qlab.lab import plot
from qlab.lab.demos import log as demo_log
from qlab.lab.measure import sqnr_db
from qlab.quant import linear, log

VALUES = {"Gaussian": demo_log.samples(3000)["Gaussian"], "uniform": demo_log.samples(3000)["uniform"],
          "with zeros": torch.tensor([[1.0, 0.0], [0.3, -0.05]])}


@pytest.fixture
def demo():
    return demo_log.log_against_linear(VALUES)


def set_to(demo, values: str, bits: int, base: float):
    demo.controls["values"].value, demo.controls["bits"].value, demo.controls["base"].value = values, bits, base
    assert demo.error is None
    return {"log": log.quantize(VALUES[values], bits, base), "linear": linear.quantize(VALUES[values], bits, "symmetric")}


def marks(demo, method: str) -> list[float]:
    """The levels that the left panel marks for a method, found by their colour."""
    color = plot.plt.matplotlib.colors.to_rgba(plot.COLORS[method])
    found = [c for c in demo.fig.axes[0].collections if np.allclose(c.get_color()[0], color)]
    assert len(found) == 1
    return [segment[0][0] for segment in found[0].get_segments()]


def curve(demo, method: str):
    return next(line for line in demo.fig.axes[1].lines if line.get_label() == method).get_data()


@pytest.mark.parametrize("values", list(VALUES))
@pytest.mark.parametrize("bits, base", [(2, 2.0), (4, 2.0), (8, 2.0), (5, 2**0.5)])
def test_marks_and_numbers_are_the_library_s(demo, values, bits, base):
    coded, x = set_to(demo, values, bits, base), VALUES[values]
    for method, q in coded.items():
        np.testing.assert_allclose(marks(demo, method), q.levels().numpy(), rtol=1e-6, atol=1e-12)
    numbers = [float(n) for n in re.findall(r"-?[\d.]+(?= dB,| dB:| %)", demo.text)]
    lost = [100 * ((q.dequantize() == 0) & (x != 0)).sum().item() / (x != 0).sum().item() for q in coded.values()]
    expected = [sqnr_db(x, q.dequantize()) for q in coded.values()] + lost
    np.testing.assert_allclose(numbers, expected, atol=0.051)
    assert ("better" in demo.text) == (expected[0] >= expected[1])


def test_the_error_curve_has_the_bound_of_the_theory(demo):
    for base in demo_log.BASES.values():
        set_to(demo, "Gaussian", 8, base)
        x, error = curve(demo, "log")
        assert x[-1] == 1 and x[0] == pytest.approx(2.0**-demo_log.OCTAVES)
        bound = 100 * (math.sqrt(base) - 1)
        assert 0.95 * bound < error.max() <= bound * (1 + 1e-9)             # 8 bits: no underflow on the picture
    set_to(demo, "Gaussian", 4, 2.0)
    x, error = curve(demo, "log")
    largest = VALUES["Gaussian"].abs().max().item()
    threshold = 2.0 ** (round(math.log2(largest)) - 7 + 0.5) / largest
    np.testing.assert_allclose(error[x < threshold * 0.999], 100)
    assert (error[x > threshold * 1.001] < 41.5).all() and (x < threshold * 0.999).any()


def test_more_bits_move_the_linear_curve_and_not_the_logarithmic_one(demo):
    set_to(demo, "uniform", 6, 2.0)
    before = {method: curve(demo, method)[1].copy() for method in demo_log.METHODS}
    set_to(demo, "uniform", 8, 2.0)
    after = {method: curve(demo, method)[1] for method in demo_log.METHODS}
    assert np.array_equal(before["log"], after["log"])
    large = curve(demo, "linear")[0] > 1 / 16                               # steps a quarter as wide, errors a quarter as large
    assert after["linear"][large].mean() == pytest.approx(before["linear"][large].mean() / 4, rel=0.1)


def test_the_histogram_changes_with_the_values_alone(demo):
    panel = demo.fig.axes[0]
    def heights():
        return panel.patches[0].get_data().values.copy()
    gaussian = heights()
    set_to(demo, "Gaussian", 7, 2**0.5)
    assert np.array_equal(heights(), gaussian)
    set_to(demo, "uniform", 7, 2**0.5)
    assert not np.array_equal(heights(), gaussian) and heights().max() == 1
    low, high = panel.get_xlim()
    assert low < min(marks(demo, "log")) and max(marks(demo, "log")) < high


def test_samples_are_what_their_names_say():
    x = demo_log.samples(20_000)
    assert x["uniform"].abs().max() <= 1 and demo_log.peak_to_rms(x["uniform"]) == pytest.approx(math.sqrt(3), rel=0.02)
    assert x["Gaussian"].std().item() == pytest.approx(1, abs=0.03)
    assert demo_log.peak_to_rms(x["heavy-tailed"]) > 2 * demo_log.peak_to_rms(x["Gaussian"])


def test_nothing_to_quantize_is_refused():
    with pytest.raises(ValueError, match="values\\['none'\\] is all zeros or empty"):
        demo_log.log_against_linear({"none": torch.zeros(3)})


def test_exact_values_do_not_break_the_caption():
    demo = demo_log.log_against_linear({"powers": torch.tensor([1.0, 0.5, -0.25])})
    assert "log inf dB" in demo.text and "one of them is exact" in demo.text
    assert demo.still()[:4] == b"\x89PNG"
