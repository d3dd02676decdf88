"""Notebook 04's widget, driven without a browser: what it draws is what the library computes."""

import numpy as np
import pytest
import torch

from qlab.lab.demos.kmeans import Layer, lloyd_steps
from qlab.quant import kmeans

WEIGHTS = {"bell": torch.randn(500, generator=torch.Generator().manual_seed(0)),
           "outliers": torch.cat([torch.linspace(-1, 1, 200), torch.tensor([60.0])])}


@pytest.fixture(scope="module")
def demo():
    return lloyd_steps(WEIGHTS)


def artists(demo):
    left, right = demo.fig.axes
    found = {line.get_label(): line for line in left.lines}
    return found["centroid"], found["centroid without weights"], right.lines[0], right.lines[1]


def put(demo, **values):
    demo.controls["iteration"].value = 0
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


@pytest.mark.parametrize("layer, start, bits", [
    ("bell", "random", 4), ("bell", "linear", 2), ("outliers", "density", 3), ("outliers", "linear", 1)])
def test_picture_is_the_path_of_the_library(demo, layer, start, bits):
    put(demo, layer=layer, start=start, bits=bits)
    x = WEIGHTS[layer]
    path = kmeans.lloyd(x, kmeans.initial(x, 2**bits, start))
    full, empty, curve, here = artists(demo)
    for iteration in (len(path) // 2, len(path) - 1):
        demo.controls["iteration"].value = iteration
        drawn = np.sort(np.concatenate([full.get_xdata(), empty.get_xdata()]))
        np.testing.assert_allclose(drawn, path[iteration].numpy())
        assert here.get_xdata()[0] == iteration
    least = kmeans.mse(x, kmeans.quantize(x, bits).codebook)
    np.testing.assert_allclose(curve.get_ydata(), [kmeans.mse(x, c) / least for c in path], rtol=1e-9)
    assert (np.diff(curve.get_ydata()) <= 1e-12).all()
    assert curve.get_ydata().min() >= 1 - 1e-9


def test_every_step_changes_the_picture_and_the_caption(demo):
    put(demo, layer="bell", start="linear", bits=3)
    before, text = demo._image.value, demo.text
    demo.controls["iteration"].value = 1
    assert demo._image.value != before and demo.text != text and "iteration 1 of" in demo.text


def test_iteration_slider_follows_the_length_of_the_path(demo):
    put(demo, layer="bell", start="density", bits=4)
    slider = demo.controls["iteration"]
    slider.value = slider.max
    long = slider.max
    demo.controls["bits"].value = 1
    x = WEIGHTS["bell"]
    assert slider.max == len(kmeans.lloyd(x, kmeans.initial(x, 2, "density"))) - 1 < long
    assert slider.value == slider.max and f"iteration {slider.max} of {slider.max}" in demo.text


def test_centroids_without_weights_are_drawn_hollow_and_counted(demo):
    put(demo, layer="outliers", start="linear", bits=4)
    full, empty, _, _ = artists(demo)
    codes = np.abs(WEIGHTS["outliers"].numpy()[:, None] - np.linspace(-1, 60, 16)).argmin(1)
    assert len(full.get_xdata()) == len(np.unique(codes)) and len(empty.get_xdata()) == 16 - len(np.unique(codes)) > 0
    assert f"{len(empty.get_xdata())} of 16 centroids have no weights" in demo.text


def test_error_from_running_sums_is_the_error_from_distances():
    for x in WEIGHTS.values():
        for codebook in (np.array([-2.0, 0.1, 3.0]), np.array([0.5]), np.array([100.0, 200.0])):
            assert Layer(x).mse(codebook) == pytest.approx(kmeans.mse(x, torch.from_numpy(codebook)), rel=1e-9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one tensor"):
        lloyd_steps({})
    with pytest.raises(Exception, match="selection"):
        lloyd_steps(WEIGHTS, start="best")
