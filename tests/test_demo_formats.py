"""Notebook 15's widget, driven without a browser: what it draws is what the library computes."""

import numpy as np
import pytest
import torch

from qlab.lab.demos.formats import BITS, CHOICES, GROUPS, SHOWN, encode, levels_of_a_matrix, lost, settings
from qlab.quant import formats, linear

BELL = 0.05 * torch.randn(12, 128, generator=torch.Generator().manual_seed(0))
WEIGHTS = {"bell": BELL, "loud": BELL.clone().index_fill_(1, torch.tensor([3]), 1.0)}


@pytest.fixture(scope="module")
def demo():
    return levels_of_a_matrix(WEIGHTS)


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


@pytest.mark.parametrize("format", CHOICES)
def test_dots_and_levels_are_those_of_the_library(demo, format):
    put(demo, matrix="loud", format=format, bits=3, group=32, row=5)
    left, right = demo.fig.axes
    marks, walls, falls = left.collections
    w, q = WEIGHTS["loud"], encode(WEIGHTS["loud"], format, 3, 32)
    np.testing.assert_array_equal(left.lines[0].get_ydata(), w[5, :SHOWN].numpy())
    ends = np.array([segment[1, 1] for segment in falls.get_segments()])
    np.testing.assert_array_equal(ends, q.dequantize()[5, :SHOWN].numpy().astype(float))
    heights = {segment[0, 1] for segment in marks.get_segments()}
    assert set(ends.tolist()) <= heights                                                    # every weight falls on a level that is drawn
    assert right.lines[-1].get_xdata()[0] == q.bits_per_weight
    error = ((q.dequantize() - w).double() ** 2).sum() / (w.double() ** 2).sum()
    assert right.lines[-1].get_ydata()[0] == pytest.approx(100 * error.item(), rel=1e-5)


def test_bits_are_those_by_hand():
    w = BELL[:4]
    assert encode(w, "symmetric", 4, 32).bits_per_weight == 4 + 16 / 32
    assert encode(w, "affine", 3, 16).bits_per_weight == 3 + (16 + 3) / 16
    assert encode(w, "mxfp4", 4, 32).bits_per_weight == 4 + 8 / 32
    assert encode(w, "nf4", 4, 64).bits_per_weight == 4 + 16 / 64
    assert encode(w, "symmetric", 2, "row").bits_per_weight == 2 + 16 / 128


def test_groups_are_not_drawn_across_their_ends(demo):
    put(demo, matrix="loud", format="symmetric", bits=4, group=16, row=0)
    marks, walls, _ = demo.fig.axes[0].collections
    assert [segment[0, 0] for segment in walls.get_segments()] == [x - 0.5 for x in range(16, SHOWN, 16)]
    first = linear.quantize(WEIGHTS["loud"][:1, :16], 4, "symmetric", scale_dtype=torch.float16).levels()
    drawn = [segment[0, 1] for segment in marks.get_segments() if segment[0, 0] < 0]
    np.testing.assert_allclose(drawn, first.numpy(), rtol=1e-6)


def test_every_setting_has_a_pale_dot(demo):
    assert len(settings("symmetric")) == (BITS[1] - BITS[0] + 1) * len(GROUPS) and len(settings("nf4")) == len(GROUPS)
    put(demo, matrix="bell", format="nf4", group=64)
    dots = next(line for line in demo.fig.axes[1].lines if len(line.get_xdata()) == len(GROUPS))
    q = formats.quantize(BELL, "nf4", axis=0, group_size=16, scale_dtype=torch.float16)
    assert dots.get_xdata()[0] == q.bits_per_weight and dots.get_ydata()[0] == pytest.approx(100 * lost(BELL, q))


def test_what_is_no_such_matrix():
    with pytest.raises(ValueError, match="at least one matrix"):
        levels_of_a_matrix({})
    for shape in ((128,), (4, 64), (4, 100)):
        with pytest.raises(ValueError, match="multiple of 64"):
            levels_of_a_matrix({"a": torch.zeros(shape)})
