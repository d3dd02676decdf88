"""Notebook 14's widget, driven without a browser: what it draws and says is what the record holds."""

import re

import numpy as np
import pytest

from qlab.lab import runs
from qlab.lab.demos import deployment as demo


@pytest.fixture(scope="module")
def record():
    return runs.load("deployment")


@pytest.fixture(scope="module")
def widget(record):
    return demo.pick(record)


def put(widget, **values):
    for name, value in values.items():
        widget.controls[name].value = value
    assert widget.error is None


@pytest.mark.parametrize("net", ["cnn", "depthwise"])
@pytest.mark.parametrize("runtime", demo.RUNTIMES)
def test_caption_and_dots_are_the_records(widget, record, net, runtime):
    threads, batch = demo.threads_of(record, net)[-1], demo.batches_of(record, net)[-1]
    put(widget, net=net, runtime=runtime, batch=batch, threads=threads, price=0.36)
    row = demo.rows(record, net)[runtime]
    assert str(row["result"]) in widget.text and f"layers in integers: {demo.computed(row)}." in widget.text
    if row["same_bits"] is not None:
        assert f"codes on {row['same_bits']:,} of {row['images']:,}" in widget.text
    at = demo.RUNTIMES.index(runtime)
    ax, right = widget.fig.axes
    assert right.collections[0].get_offsets()[at].tolist() == [row["nbytes"] / 1000, at]
    assert right.texts[at].get_text() == f"{row['nbytes'] / 1000:,.1f}"
    times = record["timing"][net]["us"].get(runtime)
    if times is None:
        assert np.isnan(ax.collections[0].get_offsets()[at, 0]) and ax.texts[at].get_text() == "in an emulator"
        assert f"{row['measured']['instructions']:,} instructions" in widget.text
        return
    us = times["1"]["1"] if runtime in demo.ONE_BY_ONE else times[str(threads)][str(batch)]
    assert ax.collections[0].get_offsets()[at].tolist() == [us, at]
    used = 1 if runtime in demo.ONE_BY_ONE else threads
    images, cost = re.search(r"([\d,]+) images a second, <b>([\d.e+-]+)</b>", widget.text).groups()
    assert int(images.replace(",", "")) == round(1e6 / us)
    assert float(cost) == pytest.approx(us * used * 1e-4, rel=0.01)                         # a core-second costs 0.0001


def test_only_the_chosen_dot_is_in_full_colour(widget):
    put(widget, runtime=demo.MICRO)
    for ax in widget.fig.axes:
        assert np.flatnonzero(ax.collections[0].get_alpha() == 1).tolist() == [demo.RUNTIMES.index(demo.MICRO)]


def test_dots_stay_inside(widget, record):
    put(widget, net="depthwise", batch=1, threads=1)
    for ax in widget.fig.axes:
        low, high = ax.get_xlim()
        at = ax.collections[0].get_offsets()[:, 0]
        at = at[~np.isnan(at)]
        assert len(at) and (low < at).all() and (at < high).all()


def test_no_price_no_cost(widget):
    put(widget, runtime=demo.MICRO, price=0.0)
    assert "images a second." in widget.text and "million" not in widget.text
    put(widget, price=0.05)


def test_one_image_after_the_other_takes_as_long_each(record):
    for name in demo.ONE_BY_ONE:
        assert len({demo.microseconds(record, "cnn", name, t, b) for t in (1, 2, 7) for b in (1, 16, 64)}) == 1
    assert demo.microseconds(record, "cnn", demo.CORTEX) is None
    assert demo.microseconds(record, "cnn", "ONNX Runtime, static", 1000, 1) is None


def test_cost():
    assert demo.cost_of_a_million(3600, 1, 1.0) == 1.0 and demo.cost_of_a_million(1800, 4, 0.5) == 1.0


def test_bad_arguments(record):
    with pytest.raises(ValueError, match="net is 'vgg', and must be one of cnn, depthwise"):
        demo.rows(record, "vgg")
    with pytest.raises(ValueError, match="'vgg' is not in the record, which has cnn, depthwise"):
        demo.pick(record, "vgg")
    with pytest.raises(ValueError, match="'TensorRT' is not in the record, which has qlab, integer-only, LiteRT"):
        demo.pick(record, "cnn", "TensorRT")
