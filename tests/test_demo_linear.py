"""The pictures of notebook 02, driven without a browser: what the controls change, and that the numbers below the figure are true."""

import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from qlab.lab import plot
from qlab.lab.demos import linear as demo
from qlab.quant import linear

GAUSSIAN = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
RELU = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).clamp(min=0)


@pytest.fixture
def live():
    return demo.play({"gaussian": GAUSSIAN, "relu": RELU}, bits=4)


def marks(live) -> np.ndarray:
    """Where the level marks stand in the left panel."""
    lines, = live.fig.axes[0].collections
    return np.sort([segment[0, 0] for segment in lines.get_segments()])


def error_line(live) -> np.ndarray:
    return live.fig.axes[1].lines[0].get_xydata()


def number(live, pattern: str) -> float:
    return float(re.search(pattern, live.text)[1])


def brute_force(x, bits: int, scheme: str, share: float = 1.0):
    """scale, zero-point, decoded values by the formulas of notebook 02, in float64 NumPy; and which values lie outside the range."""
    x = np.asarray(x, np.float64)
    low, high = share * x.min(), share * x.max()
    bottom, top = 0, 2**bits - 1
    if scheme == "symmetric":
        top = 2 ** (bits - 1) - 1
        bottom, high = -top, max(-low, high)
        low = -high
        scale, zero = high / top, 0.0
    else:
        if scheme == "affine":
            low, high = min(low, 0), max(high, 0)
        scale = (high - low) / top
        zero = np.round(-low / scale) if scheme == "affine" else -low / scale
    x_hat = scale * (np.clip(np.round(x / scale + zero), bottom, top) - zero)
    return scale, zero, x_hat, (x < low) | (x > high)


@pytest.mark.parametrize("scheme", linear.SCHEMES)
@pytest.mark.parametrize(("bits", "share"), [(2, 100), (4, 100), (4, 37), (8, 60)])
def test_caption_agrees_with_the_formulas(live, scheme, bits, share):
    live.controls["scheme"].value, live.controls["bits"].value, live.controls["range"].value = scheme, bits, share
    assert live.error is None
    scale, zero, x_hat, outside = brute_force(GAUSSIAN, bits, scheme, share / 100)
    error = np.square(x_hat - GAUSSIAN.numpy())
    assert number(live, r"scale ([\d.e-]+)") == pytest.approx(scale, rel=6e-3)
    assert number(live, r"zero-point ([\d.e-]+)") == pytest.approx(zero, rel=6e-4)
    assert number(live, r"largest error ([\d.e-]+)") == pytest.approx(np.sqrt(error.max()), rel=6e-3)
    assert number(live, r"SQNR ([\d.-]+) dB") == pytest.approx(10 * np.log10(np.square(GAUSSIAN.numpy()).sum() / error.sum()), abs=0.06)
    assert number(live, r"(\d+) % saturation") == pytest.approx(100 * error[outside].sum() / error.sum(), abs=0.6)
    assert number(live, r"(\d+) % is rounding") + number(live, r"(\d+) % saturation") == pytest.approx(100, abs=1)


def test_bits_move_the_marks_and_shrink_the_error_to_half_a_scale(live):
    for bits in range(2, 9):
        live.controls["bits"].value = bits
        scale = GAUSSIAN.abs().max().item() / (2 ** (bits - 1) - 1)
        assert len(marks(live)) == 2**bits - 1
        assert np.diff(marks(live)) == pytest.approx(scale, rel=1e-4)
        error = np.abs(error_line(live)[:, 1])
        assert error.max() <= scale / 2 * 1.0001
        assert error.max() > 0.45 * scale
        dashed = [line.get_ydata()[0] for line in live.fig.axes[1].lines[1:]]
        assert dashed == pytest.approx([scale / 2, -scale / 2], rel=1e-4)


def test_a_narrower_range_shades_what_saturates_and_its_error_is_a_slope(live):
    shades = live.fig.axes[0].patches[-2:]
    assert sum(shade.get_width() for shade in shades) == pytest.approx(0, abs=1e-5)
    live.controls["range"].value = 50
    threshold = GAUSSIAN.abs().max().item() / 2
    assert shades[1].get_x() == pytest.approx(threshold) or shades[0].get_x() + shades[0].get_width() == pytest.approx(-threshold)
    x, error = error_line(live).T
    beyond = x > threshold
    assert beyond.any() or (x < -threshold).any()
    assert error[beyond] == pytest.approx(threshold - x[beyond], abs=1e-5)


def test_schemes_have_their_own_colour_and_only_minmax_misses_zero(live):
    for scheme in linear.SCHEMES:
        live.controls["scheme"].value = scheme
        lines, = live.fig.axes[0].collections
        assert to_hex(lines.get_color()[0]).upper() == plot.COLORS[scheme]
        nearest = np.abs(marks(live)).min()
        assert nearest > 1e-3 if scheme == "minmax" else nearest == 0


def test_after_relu_symmetric_wastes_half_of_its_levels(live):
    live.controls["values"].value = "relu"
    symmetric, wasted = number(live, r"SQNR ([\d.-]+) dB"), (marks(live) < 0).sum()
    live.controls["scheme"].value = "affine"
    assert wasted == 7
    assert (marks(live) < 0).sum() == 0
    assert 5 < number(live, r"SQNR ([\d.-]+) dB") - symmetric < 8


def test_a_bar_that_dwarfs_the_others_is_cut_off_and_said_so(live):
    left = live.fig.axes[0]
    assert left.get_xlabel() == "value"
    assert left.get_ylim()[1] > np.histogram(GAUSSIAN, 200)[0].max()
    live.controls["values"].value = "relu"
    tallest = np.histogram(RELU, 200)[0].max()
    assert f"{tallest:,}" in left.get_xlabel()
    assert left.get_ylim()[1] < tallest


def test_every_setting_works_and_changes_the_picture(live):
    for name in ("gaussian", "relu"):
        for scheme in linear.SCHEMES:
            for bits, share in ((2, 5), (8, 100), (5, 33)):
                before = live._image.value
                live.controls["values"].value, live.controls["scheme"].value = name, scheme
                live.controls["bits"].value, live.controls["range"].value = bits, share
                assert live.error is None
                assert live._image.value != before
                assert "nan" not in live.text


def test_values_that_have_nothing_to_quantize_are_refused():
    for empty in (torch.zeros(5), torch.zeros(0)):
        with pytest.raises(ValueError, match="'w'"):
            demo.play({"w": empty})


def test_play_leaves_the_values_as_they_are():
    x = GAUSSIAN.clone()
    live = demo.play({"x": x})
    live.controls["bits"].value = 2
    assert torch.equal(x, GAUSSIAN)


def test_split_error_adds_up_to_the_mean_squared_error():
    x_hat = GAUSSIAN.clamp(-1, 1).round()
    rounding, saturation = demo.split_error(GAUSSIAN, x_hat, -1, 1)
    error = (x_hat.double() - GAUSSIAN.double()).square()
    inside = GAUSSIAN.abs() <= 1
    assert rounding == pytest.approx(error[inside].sum().item() / len(error), rel=1e-5)
    assert saturation == pytest.approx(error[~inside].sum().item() / len(error), rel=1e-5)


def test_rulers_mark_each_level_with_its_code():
    x = torch.tensor([-1.0, -0.6, 0.0, 0.4, 1.5])
    ax = demo.rulers({scheme: linear.quantize(x, 3, scheme) for scheme in linear.SCHEMES}, Figure().subplots())
    found = {}
    for text in ax.texts:
        if re.fullmatch(r"-?\d", text.get_text()):
            found.setdefault(round(text.get_position()[1]), []).append((int(text.get_text()), text.get_position()[0]))
    by_hand = {0: (0, -1, 2.5 / 7), -2: (0, -3 * 2.5 / 7, 2.5 / 7), -4: (-3, -1.5, 0.5)}  # first code, first level, scale
    assert sorted(found) == sorted(by_hand)
    for y, (code, level, scale) in by_hand.items():
        for i, (shown, at) in enumerate(found[y]):
            assert shown == code + i
            assert at == pytest.approx(level + scale * i, abs=1e-6)


def test_rulers_join_each_value_to_its_level():
    x = torch.tensor([-0.9, 0.3])
    ax = demo.rulers({"linear, 2 bits": linear.quantize(x, 2, x_min=-1, x_max=1)}, Figure().subplots(), values=x, zero=False)
    ends = sorted(tuple(np.round(line.get_xdata(), 4)) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None")
    assert ends == [(-0.9, -1.0), (0.3, 0.3333)]
