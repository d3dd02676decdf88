"""The record of the language model below eight bits: what the pages say of it holds, block by block."""

import pytest

from qlab.lab import language, runs
from qlab.lab.experiments.language import PARTS, scores_of
from qlab.llm import evaluate


@pytest.fixture(scope="module")
def record():
    return runs.raw("language_gpt")


@pytest.fixture(scope="module")
def larger():
    return runs.raw("language_smollm2")


@pytest.fixture(scope="module")
def against(record, larger):
    def difference(model, part, a, b, other_part=None):
        kept = larger if model == "smollm2" else record
        rows = kept[model][part][a], kept[model][other_part or part][b]
        return evaluate.difference(*(scores_of(kept, row) for row in rows))

    return difference


@pytest.mark.parametrize("name, models", [("gpt", language.NAMES), ("smollm2", ("smollm2",))])
def test_it_is_whole(name, models):
    record = runs.raw(f"language_{name}")
    assert record["command"].endswith(f"experiments.language {name}")
    assert all(set(record[model]) == set(PARTS) for model in models)
    float32 = record[name]["weights"]["float32"]
    assert evaluate.bits_per_byte(scores_of(record, float32)).value == pytest.approx(float32["bits_per_byte"], abs=1e-6)


@pytest.mark.parametrize("model", language.NAMES)
@pytest.mark.parametrize("grid", ["row", "row, mse", "groups of 32", "groups of 64, affine"])
@pytest.mark.parametrize("bits", [3, 2])
def test_gptq_beats_rounding_below_four_bits(against, model, grid, bits):
    found = against(model, "weights", f"{bits} bits, {grid}, gptq", f"{bits} bits, {grid}")
    assert found.value < 0 and found.t < -4


def test_gptq_takes_seconds(record):
    assert max(row["making_cpu_s"] for name, row in record["gpt"]["weights"].items() if "gptq" in name) < 60


def test_awq_has_nothing_to_do_without_outliers(against):
    for bits in (4, 3, 2):
        assert against("gpt", "weights", f"{bits} bits, groups of 32, awq", f"{bits} bits, groups of 32").value > -0.001


def test_planted_outliers_break_what_smoothing_and_rotation_mend(against):
    alone = against("gpt-planted", "activations", "as it is, W4A4 token", "float32", "weights")
    assert alone.value > 1 and alone.t > 50
    for mended in ("smoothed behind norms", "rotated"):
        planted = against("gpt-planted", "activations", f"{mended}, W4A4 token", "float32", "weights")
        plain = against("gpt", "activations", f"{mended}, W4A4 token", "float32", "weights")
        assert planted.value == pytest.approx(plain.value, abs=0.003)
    assert abs(against("gpt-planted", "weights", "float32", "float32").value) < 1e-6


def test_keys_by_channel_cost_less(against):
    for bits in (4, 3, 2):
        assert against("gpt", "cache", f"{bits} bits, keys by channel", f"{bits} bits, keys by token").t < -3


def test_awq_mends_what_outliers_do_to_a_grid_without_zero(against):
    row = "4 bits, groups of 64, minmax"
    assert against("gpt-planted", "weights", f"{row}, awq", row).t < -10
    assert against("gpt", "weights", f"{row}, awq", row).value > -0.002
    row = "4 bits, groups of 64, affine"
    assert against("gpt-planted", "weights", f"{row}, awq", row).t < -2 < against("gpt", "weights", f"{row}, awq", row).t


def test_outliers_cost_the_weights_where_the_grid_has_no_zero_whoever_chooses_it(record):
    def cost(grid):
        rows = (record[which]["weights"][f"4 bits, groups of 64, {grid}"] for which in ("gpt-planted", "gpt"))
        return evaluate.difference(*(scores_of(record, row) for row in rows)).value

    assert min(cost("minmax"), cost("hqq")) > 5 * cost("affine") > 0 and abs(cost("minmax, awq")) < cost("affine")


@pytest.mark.parametrize("kind", ["W8A8 static", "W8A4 token"])
def test_smollm2_s_outliers_are_mended_in_part_behind_norms_and_best_by_rotation(against, kind):
    for better, worse in (("smoothed behind norms", "as it is"), ("smoothed everywhere", "smoothed behind norms"),
                          ("rotated", "smoothed everywhere")):
        found = against("smollm2", "activations", f"{better}, {kind}", f"{worse}, {kind}")
        assert found.value < 0 and found.t < -2, better


def test_smollm2_has_outliers_of_its_own_and_a_sink(larger):
    rows = larger["smollm2"]["outliers"]
    read = [row["ratio"] for name, row in rows.items() if name.endswith("query")]
    down = {int(name.split(".")[1]): row for name, row in rows.items() if name.endswith("down")}
    assert min(read) > 5 and max(down.values(), key=lambda row: row["ratio"]) == down[11] and down[11]["ratio"] > 1000
    assert down[11]["position"] == 0
    assert [block for block, row in down.items() if row["ratio"] > 20] == [1, 2, 9, 10, 11, 28, 29]
    assert [down[block]["position"] == 0 for block in (1, 2, 9, 10, 11, 28, 29)].count(False) == 1
    sink = rows["attention on the first token"]["by_block"]
    assert max(sink[:3] + sink[10:12]) < 0.15 < 0.3 <= round(min(sink[3:10] + sink[12:]), 2)
    assert sorted(rows["attention on the first token"]["by_block"])[15] > 0.3


def test_a_first_token_is_missed_where_it_goes_late_and_there_is_a_sink(against):
    for model in ("gpt", "smollm2"):
        assert 0 < against(model, "outliers", "without token 0", "float32", "weights").value < 0.02
        for other in (1, 8):
            assert abs(against(model, "outliers", "without token 0", f"without token {other}").t) < 1.96
    seen = {name: against("smollm2", "outliers", f"seen: {name}", "float32", "weights")
            for name in ("the latest 32", "the latest 28, the first 4", "the latest 28, tokens 8 to 11")}
    without, first, others = seen.values()
    assert without.value > 10 * first.value > 0 and others.value > 10 * first.value and without.t > 5
    assert against("gpt", "outliers", "seen: the latest 32", "float32", "weights").value < 0.02


def test_calibration_on_python_costs_gptq_its_gain_and_more_than_another_draw_of_passages(against):
    def gap(a, b="gptq on Austen"):
        return against("gpt", "calibration", f"3 bits, {a}", f"3 bits, {b}")

    assert gap("no text").t > 5 and abs(gap("gptq on Python", "no text").t) < 2
    assert gap("gptq on Python").value > 2 * abs(gap("gptq on other passages").value)
    assert gap("gptq on Python", "gptq on other passages").t > 4


def test_a_wrong_text_is_worse_than_none_for_smollm2(against):
    def gap(a, b="gptq on Austen"):
        return against("smollm2", "calibration", f"3 bits, {a}", f"3 bits, {b}")

    assert gap("gptq on Python", "no text").t > 5 < gap("no text").t and abs(gap("gptq on other passages").t) < 1.96
    assert gap("gptq on Python").value > 2 * gap("no text").value


def test_static_ranges_of_six_bits_break_smollm2_whatever_the_text(against):
    for text in ("Austen", "other passages", "Python"):
        for ranges in ("minmax", "mse"):
            assert against("smollm2", "calibration", f"W8A6 static on {text}, {ranges}", "float32", "weights").value > 0.5
    gaps = {(text, ranges): against("smollm2", "calibration", *(f"W8A6 static on {t}, {ranges}" for t in (text, "Austen"))).t
            for text in ("other passages", "Python") for ranges in ("minmax", "mse")}
    assert max(abs(gaps[text, "minmax"]) for text in ("other passages", "Python")) < 1.96
    assert gaps["Python", "mse"] < -1.96 and gaps["other passages", "mse"] > 1.96


def test_ranges_of_python_help_where_the_largest_value_decides_and_cost_where_they_are_fitted(against):
    for ranges, sign in (("minmax", -1), ("mse", 1)):
        rows = (f"W8A6 static on {text}, {ranges}" for text in ("Python", "Austen"))
        assert sign * against("gpt", "calibration", *rows).t > 3
