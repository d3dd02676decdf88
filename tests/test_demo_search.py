"""Notebook 17's tables and its widget, driven without a browser, on a made-up record whose answers are known."""

import pytest
import torch

from qlab.lab.demos.search import COSTS, compare, kind_of, spend, table
from qlab.lab.significance import Accuracy, mcnemar

LAYERS = ["conv", "block1.depthwise", "block1.pointwise", "fc"]


def row(bits, share, predicted, n=1000):
    return {"bits": bits, "nbytes": 100 * sum(bits), "bitops": 10**6 * sum(bits), "predicted": predicted,
            "result": Accuracy(torch.arange(n) < share * n)}


@pytest.fixture(scope="module")
def rows():
    made = {"float": {"layers": LAYERS, "result": Accuracy(torch.arange(1000) < 950)}}
    for cost, first in zip(COSTS, (8, 2)):
        for bits, share in ((2, 0.3), (2.5, 0.6), (4, 0.9)):
            made[f"{cost}, {bits:g} bits"] = row([first, 2, 3, int(bits)], share, share - 0.4)
    return made


@pytest.fixture(scope="module")
def demo(rows):
    return spend(rows, bits=2.5)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("bits", [2, 2.5, 4])
def test_bars_and_curves_are_those_of_the_record(demo, rows, cost, bits):
    demo.controls["pay in"].value, demo.controls["budget, bits a weight"].value = cost, bits
    assert demo.error is None
    left, right = demo.fig.axes
    assert [bar.get_height() for bar in left.patches] == rows[f"{cost}, {bits:g} bits"]["bits"]
    _, predicted, measured, here = right.lines
    assert measured.get_ydata() == pytest.approx([30, 60, 90])
    assert predicted.get_ydata() == pytest.approx([0, 20, 50])                              # never below 0
    assert here.get_xdata() == [bits] and here.get_ydata() == [measured.get_ydata()[[2, 2.5, 4].index(bits)]]
    assert f"{rows[f'{cost}, {bits:g} bits']['nbytes']:,} bytes" in demo.text


def test_a_record_without_budgets_says_which_command_makes_them():
    with pytest.raises(ValueError, match="search budgets"):
        spend({})


def test_comparisons_are_mcnemars_and_raised_for_their_number():
    base = torch.zeros(400).bool()
    base[:200] = True
    better, same = base.clone(), base.clone()
    better[200:212] = True
    same[200:203], same[0:2] = True, False
    rows = {"base": Accuracy(base), "better": Accuracy(better), "same": Accuracy(same)}
    first, second = compare(rows, [("better", "base"), ("same", "base")]).splitlines()
    p = mcnemar(rows["base"], rows["better"]).p
    assert first.startswith("better minus base: +3.00 points [") and "p < 0.001" in first and 2 * p < 0.001
    assert second.startswith("same minus base: +0.25 points") and second.endswith("p = 1.000: inside the noise")


def test_p_between_the_limits_is_said():
    base = torch.zeros(400).bool()
    other = base.clone()
    other[:7] = True                                                                        # 7 against 0: p = 2 / 2**7
    line = compare({"a": Accuracy(base), "b": Accuracy(other)}, [("b", "a")])
    assert line.endswith("p = 0.016") and mcnemar(base, other).p == pytest.approx(2 / 2**7)


def test_a_table_has_accuracy_bytes_and_bits(rows):
    text = table(rows, ["bytes, 2 bits", "bytes, 2.5 bits"])
    assert text.splitlines()[0].split() == "bytes, 2 bits 30.0 % [27.2, 32.9] 1,500 bytes 8 2 3 2".split()


def test_kinds():
    assert kind_of(LAYERS) == ["first", "depthwise", "pointwise", "last"]
