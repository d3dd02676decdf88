"""The record of the language model below eight bits: what the pages say of it holds, block by block."""

import pytest

from qlab.lab import language, runs
from qlab.lab.experiments.language import PARTS, scores_of
from qlab.llm import evaluate


@pytest.fixture(scope="module")
def record():
    return runs.raw("language_gpt")


@pytest.fixture(scope="module")
def against(record):
    def difference(model, part, a, b, other_part=None):
        rows = record[model][part][a], record[model][other_part or part][b]
        return evaluate.difference(*(scores_of(record, row) for row in rows))

    return difference


def test_it_is_whole(record):
    assert record["command"].endswith("experiments.language gpt")
    assert all(set(record[model]) == set(PARTS) for model in language.NAMES)
    float32 = record["gpt"]["weights"]["float32"]
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
