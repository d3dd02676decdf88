"""Notebook 05's live figure, driven without a browser on a small made-up record whose counts are known; and its tables."""

from math import comb

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qlab.lab import plot
from qlab.lab.demos import compare
from qlab.lab.significance import Accuracy, mcnemar

N, BITS = 400, (2, 3, 4)


def outcome(right: int, shift: int = 0) -> Accuracy:
    """`right` images right out of N, beginning at number `shift`."""
    return Accuracy(torch.roll(torch.arange(N) < right, shift))


@pytest.fixture
def rows() -> list[dict]:
    made = []
    for n, net in enumerate(("small", "large")):
        made.append({"net": net, "method": "float", "per": "tensor", "bits": 32, "nbytes": 400_000 * (n + 1), "result": outcome(370)})
        for m, method in enumerate(compare.METHODS):
            for p, per in enumerate(("tensor", "channel")):
                for bits in BITS:
                    nbytes = (n + 1) * 12_500 * bits + 900 * p + 100 * m
                    made.append({"net": net, "method": method, "per": per, "bits": bits, "nbytes": nbytes,
                                 "result": outcome(200 + 30 * bits + 20 * p + 10 * m, shift=5 * m)})
    return made


def find(rows, net, method, per, bits) -> dict:
    return next(r for r in rows if (r["net"], r["method"], r["per"], r["bits"]) == (net, method, per, bits))


def line(demo, label: str):
    return next(artist for artist in demo.fig.axes[0].lines if artist.get_label() == label)


def rings(demo) -> list:
    """The data of the ring of each panel."""
    return [next(a for a in ax.lines if a.get_markeredgecolor() == plot.COLORS["accent"]).get_xydata().tolist() for ax in demo.fig.axes]


def test_the_lines_are_the_rows_of_the_chosen_network_and_granularity(rows):
    demo = compare.pareto(rows, net="small")
    for net in ("small", "large"):
        for per in ("tensor", "channel"):
            demo.controls["net"].value, demo.controls["per"].value = net, per
            for method in compare.METHODS:
                expected = [(r["nbytes"] / 1000, 100 * r["result"].value) for b in BITS for r in [find(rows, net, method, per, b)]]
                np.testing.assert_allclose(line(demo, method).get_xydata(), expected)
                low, high = demo.fig.axes[0].get_xlim()
                assert all(low < size < high for size, _ in expected)
    assert demo.error is None


def test_the_rings_follow_the_methods_and_the_bits(rows):
    demo = compare.pareto(rows, net="large", bits=3, a="linear", b="log")
    a, b = (find(rows, "large", method, "tensor", 3) for method in ("linear", "log"))
    left, right = rings(demo)
    np.testing.assert_allclose(left, [(r["nbytes"] / 1000, 100 * r["result"].value) for r in (a, b)])
    np.testing.assert_allclose(right, [(3, 100 * (b["result"].value - a["result"].value))])
    demo.controls["bits"].value, demo.controls["B"].value = 4, "kmeans"
    b = find(rows, "large", "kmeans", "tensor", 4)
    assert rings(demo)[0][1] == pytest.approx([b["nbytes"] / 1000, 100 * b["result"].value])
    assert rings(demo)[1][0][0] == 4
    assert [text.get_text() for text in demo.fig.axes[1].texts] == ["kmeans minus linear"]


def test_the_caption_has_both_accuracies_the_bytes_and_the_paired_test(rows):
    demo = compare.pareto(rows, net="small", bits=2, a="linear", b="kmeans")
    a, b = (find(rows, "small", method, "tensor", 2) for method in ("linear", "kmeans"))
    assert str(a["result"]) in demo.text and str(b["result"]) in demo.text
    assert f"{a['nbytes']:,} bytes" in demo.text and "25,200 bytes (0.8 % more bytes)" in demo.text
    assert str(mcnemar(a["result"], b["result"])) in demo.text
    demo.controls["B"].value = "linear"
    assert "Choose another method" in demo.text and demo.error is None


def test_filled_marks_are_the_significant_differences(rows):
    for r in rows:  # equal at 2 bits; B better on 12 images, and never worse, at 3; far better at 4
        if r["net"] == "small" and r["per"] == "tensor" and r["method"] in ("linear", "kmeans"):
            r["result"] = outcome(250 + (r["method"] == "kmeans") * {2: 0, 3: 12, 4: 100}[r["bits"]])
    demo = compare.pareto(rows, net="small", a="linear", b="kmeans")
    noise, real = (artist.get_xydata().tolist() for artist in demo.fig.axes[1].lines[1:3])
    assert noise == [[2, 0]]
    np.testing.assert_allclose(real, [[3, 3], [4, 25]])


def test_without_a_network_the_last_is_shown_and_a_still_is_there(rows):
    demo = compare.pareto(rows)
    assert demo.value("net") == "large"
    assert demo.still()[1:4] == b"PNG"


def test_error_scale_gives_each_halving_of_the_errors_the_same_height():
    ax = Figure().subplots()
    compare.error_scale(ax, 10, 95)
    heights = ax.transData.transform([(0, y) for y in (20, 60, 80, 90)])[:, 1]
    np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0])
    assert ax.get_ylim() == (10, 95) and min(ax.get_yticks()) == 10


def test_sizes_draws_the_rows_of_one_network_and_notes_the_bits(rows):
    ax = compare.sizes(rows[::-1], "small", "channel", Figure().subplots())  # in any order
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in ax.containers}
    assert set(drawn) == set(compare.METHODS)
    for method, points in drawn.items():
        expected = [(r["nbytes"] / 1000, 100 * r["result"].value) for b in BITS for r in [find(rows, "small", method, "channel", b)]]
        np.testing.assert_allclose(points, expected)
    notes = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert notes == {str(b): find(rows, "small", "linear", "channel", b)["nbytes"] / 1000 for b in BITS}
    assert any(line.get_label() == "float, 400 KB" for line in ax.lines)


def bonferroni(ps: list[float]) -> list[float]:
    """Another correction than the page's, so that the tables are seen to use what they are given."""
    return [min(1.0, len(ps) * p) for p in ps]


def by_hand(a, b) -> float:
    """McNemar's exact p from its definition."""
    a_only, b_only = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    n = a_only + b_only
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(a_only, b_only) + 1)) / 2**n)


def test_a_league_stars_the_best_and_all_that_are_not_shown_to_be_worse(rows):
    contests = {("small", "3 bits"): [(m, "tensor", 3) for m in compare.METHODS],
                ("large", "mixed"): [("linear", "tensor", 4), None, ("kmeans", "channel", 2)]}
    three = contests["small", "3 bits"]
    asked = [("small", three[i], three[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    asked += [("large", ("linear", "tensor", 4), ("kmeans", "channel", 2))]
    pairs = {(net, a, b): by_hand(find(rows, net, *a)["result"], find(rows, net, *b)["result"]) for net, a, b in asked}
    corrected = dict(zip(pairs, bonferroni(list(pairs.values()))))
    first, head, small, large = compare.league(rows, contests, bonferroni).splitlines()
    before, after = (sum(p < 0.05 for p in ps.values()) for ps in (pairs, corrected))
    assert first == f"4 tests: p < 0.05 in {before}, corrected in {after}"
    assert head.split() == ["linear/te", "log/te", "kmeans/te"]
    best = ("kmeans", "tensor", 3)                                       # 72.5, 75, 77.5 % by construction
    stars = ["*" if corrected["small", (m, "tensor", 3), best] >= 0.05 else "" for m in ("linear", "log")] + ["*"]
    assert small.split() == ["small", "3", "bits"] + [w for m, s in zip(("72.5", "75.0", "77.5"), stars) for w in ("(3)", m + s)]
    assert large.split()[:2] == ["large", "mixed"] and "-" in large.split() and "(4) 80.0*" in large and "(2) 75.0 " in large + " "


def test_a_league_s_star_goes_to_a_best_that_stands_first_or_last(rows):
    for order in (1, -1):
        candidates = [("kmeans", "tensor", 4), ("linear", "tensor", 2)][::order]
        line = compare.league(rows, {("small", "x"): candidates}, bonferroni).splitlines()[-1]
        assert line.count("*") == 1 and "(4) 85.0*" in line


def test_gains_are_differences_in_points_and_bytes(rows):
    for r in rows:
        if (r["net"], r["method"]) == ("large", "log"):
            r["result"] = outcome(300)                                    # both granularities alike
    text = compare.gains(rows, 4, bonferroni).splitlines()
    assert len(text) == 1 + 2 * 3
    small_linear, large_log = text[1].split(), text[5].split()
    assert small_linear == ["small", "linear", "80.0%", "85.0%", "+5.00", "+1.8%"]   # 20 of 400 images more, 50,900 bytes over 50,000
    assert large_log[:5] == ["large", "log", "75.0%", "75.0%", "+0.00?"]


def test_the_smallest_are_found_by_trying_all(rows):
    text, loss = compare.smallest(rows, 4.0).splitlines(), 4.0
    reference = outcome(370)
    at = 0
    for net in ("small", "large"):
        assert text[at] == f"{net}, float {400 if net == 'small' else 800} KB"
        for method in compare.METHODS:
            for name in ("seen", "shown"):
                at += 1
                fits = []
                for r in rows:
                    if (r["net"], r["method"]) == (net, method):
                        test = mcnemar(reference, r["result"])
                        if 100 * (test.difference if name == "seen" else test.low) >= -loss - 1e-9:
                            fits.append(r)
                found = min(fits, key=lambda r: r["nbytes"]) if fits else None
                assert text[at].split()[:2] == [method, name]
                assert ("none" in text[at]) if found is None else (f"{found['bits']} bits per {found['per']}" in text[at]
                                                                   and f"{found['nbytes'] / 1000:.1f} KB" in text[at])
        at += 1
    assert any("none" in line for line in text) and any(" KB," in line for line in text)
