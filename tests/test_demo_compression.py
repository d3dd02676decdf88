"""Notebook 11's widget, driven without a browser: its bars are the library's bytes, its accuracy the network's."""

import copy

import pytest

from qlab.lab import data, measure, plot, zoo
from qlab.lab.demos import compression
from qlab.nets import compress, prune


@pytest.fixture(scope="module")
def networks():
    whole = zoo.load("lenet300")
    small = copy.deepcopy(whole)
    prune.apply(small, prune.magnitude(small, 0.95, "global"))
    return {"float": whole, "pruned": small}


@pytest.fixture(scope="module")
def split():
    return data.calibration(300)


@pytest.fixture(scope="module")
def demo(networks, split):
    return compression.dial(networks, *split)


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def widths(demo):
    bars, parts = demo.fig.axes[0].patches, list(compression.PARTS)
    assert len(bars) == 3 * len(parts)
    return {stage: {part: round(plot.KB * bars[3 * parts.index(part) + i].get_width()) for part in parts}
            for i, stage in enumerate(compression.STEPS)}


@pytest.mark.parametrize("network, density, bits", [("float", 0.08, 5), ("float", 0.01, 1), ("float", 0.12, 8), ("pruned", 0.03, 4)])
def test_bars_and_accuracy_are_those_of_the_library(demo, networks, split, network, density, bits):
    put(demo, network=network, density=density, bits=bits)
    model = copy.deepcopy(networks[network])
    shared = compress.share(model, prune.magnitude(model, 1 - density, "global"), bits)
    compress.apply(model, shared)
    stages, drawn = compress.stages(model, shared), widths(demo)
    for stage, parts in stages.items():
        assert drawn[stage] == {part: parts.get(part, 0) for part in compression.PARTS}
    file = len(compress.encode(model, shared))
    assert 0 < file - sum(drawn["huffman"].values()) < 250                                  # the headers, which the bars leave out
    accuracy = 100 * measure.accuracy(model, split).value
    assert demo.fig.axes[1].patches[0].get_height() == pytest.approx(accuracy, abs=0.34) and f"{accuracy:.1f} %" in demo.text


def test_what_is_removed_already_stays_removed(demo):
    put(demo, network="pruned", density=0.05, bits=5)
    at_five = widths(demo)
    put(demo, density=0.12)
    assert widths(demo) == at_five


def test_each_part_begins_where_the_one_before_it_ends(demo):
    put(demo, network="float", density=0.10, bits=3)
    bars = demo.fig.axes[0].patches
    for i in range(3):
        row = bars[i::3]
        assert row[0].get_x() == 0
        for before, after in zip(row, row[1:]):
            assert after.get_x() == pytest.approx(before.get_x() + before.get_width())


def test_a_step_changes_picture_and_caption(demo):
    put(demo, network="float", density=0.08, bits=5)
    picture, text = demo._image.value, demo.text
    put(demo, bits=4)
    assert demo._image.value != picture and demo.text != text


def test_bad_arguments(networks, split):
    with pytest.raises(ValueError, match="at least one each"):
        compression.dial({}, *split)
    with pytest.raises(ValueError, match="density is 0.5, and must be one of 0.01"):
        compression.dial(networks, *split, density=0.5)
