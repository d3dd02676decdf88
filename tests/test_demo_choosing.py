"""Notebook 18's widget, driven without a browser: every dot is a row of the table, and its colour what the adviser says of it."""

import re

import pytest

from qlab.lab import plot
from qlab.lab.demos.choosing import ANY, LOST, adviser, dots, tables
from qlab.lab.methods import NETS, load
from qlab.search.advise import advise


@pytest.fixture(scope="module")
def demo():
    return adviser()


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def points(line):
    return sorted(zip(line.get_xdata(), line.get_ydata()))


@pytest.mark.parametrize("net", NETS)
def test_each_method_is_drawn_once_in_the_colour_of_its_answer(demo, net):
    put(demo, lost=ANY, bits=ANY, hardware=ANY, want="size", data="calibration", net=net)
    _, pale, fit, rungs, whole = demo.fig.axes[0].lines
    found = advise(load(net))
    where = [(row.nbytes / plot.KB, row.lost.value) for row in load(net)]
    assert sorted(points(pale) + points(fit) + points(rungs) + points(whole)) == sorted(where)
    assert points(rungs) + points(whole) == sorted((r.nbytes / plot.KB, r.lost.value) for r in found.rows if not r.integers) + \
        sorted((r.nbytes / plot.KB, r.lost.value) for r in found.rows if r.integers)
    assert len(points(pale)) == sum(not reason.startswith(("beaten", "no gain")) for _, reason in found.out)
    ends = [segment[:, 1].tolist() for segment in demo.fig.axes[0].collections[0].get_segments()]
    assert ends == [[row.lost.low, row.lost.high] for row in found.rows]


def test_controls_are_the_questions(demo):
    put(demo, net="cnn", hardware="microcontroller", data="calibration")
    assert "INT8, per channel" in demo.text and demo.text.startswith("1 method remains")
    put(demo, data="none")
    assert demo.text == str(advise(load("cnn"), "none", hardware="microcontroller")) and "No method" in demo.text
    put(demo, hardware=ANY, data="training")
    assert len(points(demo.fig.axes[0].lines[1])) == 0                                      # with training allowed nothing is out
    put(demo, bits=2)
    assert len(points(demo.fig.axes[0].lines[1])) == sum(row.bits > 2 for row in load("cnn"))


def test_another_unit_has_other_limits_of_loss(demo):
    put(demo, net="cnn", hardware=ANY, bits=ANY, data="calibration", lost=1)
    put(demo, net="gpt")
    assert demo.controls["lost"].options == LOST["bits a byte"] and demo.value("lost") == ANY
    put(demo, lost=0.01)
    assert advise(load("gpt"), lost=0.01).rows[0].name in demo.text
    put(demo, net="depthwise")
    assert demo.controls["lost"].options == LOST["points"] and "bits a byte" not in demo.text


def test_still_dots_are_all_rows():
    fig, ax = plot.plt.subplots()
    dots("resnet", ax)
    assert points(ax.lines[0]) == sorted((row.nbytes / plot.KB, row.lost.value) for row in load("resnet"))
    plot.plt.close(fig)


def test_the_tables_hold_every_row_once_and_name_the_smallest_that_loses_little():
    parts = tables().data.split("<details>")[1:]
    assert len(parts) == len(NETS) and tables().data.count("<table>") == tables().data.count("</table>") == len(NETS)
    for net, part in zip(NETS, parts):
        rows = load(net)
        assert part.count("<tr>") == len(rows) + 1 and all(f"<td>{row.name}</td>" in part for row in rows)
        head = part.partition("</summary>")[0]
        assert head.startswith(f"<summary>{net}: {len(rows)} method")
        for row in rows:
            if row.lost.high < {"points": 1, "bits a byte": 0.01}[row.lost.unit]:
                assert row.nbytes >= int(re.search(r"([\d,]+) bytes", head)[1].replace(",", ""))


def test_what_is_no_network():
    with pytest.raises(ValueError, match="net is 'vgg'"):
        dots("vgg", None)
