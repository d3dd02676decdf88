"""The records behind notebook 15: what the page says of placing few levels, and of training with three, holds block by block."""

import numpy as np
import pytest

from qlab.lab import runs
from qlab.lab.experiments.language import scores_of
from qlab.llm import evaluate


def differences(record, rows):
    """(a, b) -> a's bits per byte minus b's, paired by block."""
    return lambda a, b="float32": evaluate.difference(scores_of(record, rows[a]), scores_of(record, rows[b]))


@pytest.fixture(scope="module")
def gpt():
    record = runs.raw("language_gpt")
    return differences(record, record["gpt"]["weights"])


@pytest.fixture(scope="module")
def smollm2():
    record = runs.raw("language_smollm2")
    return differences(record, record["smollm2"]["weights"])


@pytest.fixture(scope="module")
def ternary():
    return runs.raw("language_ternary")


@pytest.fixture(scope="module")
def trained(ternary):
    return differences(ternary, ternary["rows"])


def is_noise(estimate) -> bool:
    low, high = estimate.interval
    return low <= 0 <= high


def test_eight_bits_are_not_told_from_floats_and_fewer_cost_more_and_more(gpt):
    assert is_noise(gpt("8 bits, row"))
    for grid in ("row", "row, mse", "groups of 64", "groups of 32", "groups of 32, affine"):
        four, three, two = (gpt(f"{bits} bits, {grid}").value for bits in (4, 3, 2))
        assert 0 < four < three / 3 < two / 6
    assert min(gpt(f"2 bits, {grid}").value for grid in ("row", "groups of 64", "groups of 32")) > 0.5


@pytest.mark.parametrize("a, b", [("4 bits, groups of 32, mse", "4 bits, row, mse"), ("mxfp4", "4 bits, groups of 64, mse"),
                                  ("nf4", "4 bits, groups of 32, mse")])
def test_what_is_not_told_apart_is_called_noise(gpt, a, b):
    assert is_noise(gpt(a, b))


@pytest.mark.parametrize("better, worse", [
    ("4 bits, row, mse", "4 bits, row"), ("nvfp4", "4 bits, groups of 32, mse"), ("nvfp4", "nf4"),
    ("3 bits, row, mse", "3 bits, groups of 64"), ("2 bits, groups of 32, affine", "2 bits, row, mse"), ("2 bits, row, mse", "ternary"),
])
def test_what_is_told_apart_is_beyond_three_standard_errors(gpt, better, worse):
    assert gpt(better, worse).t < -3


def test_four_levels_a_matrix_cost_about_what_four_a_group_do_and_two_more_than_three(gpt):
    book, groups, three = (gpt(name).value for name in ("k-means, 2 bits", "2 bits, groups of 32, affine", "2 bits, groups of 32"))
    assert groups < book < 1.15 * groups and max(book, groups) < three / 4 < gpt("k-means, 1 bits").value / 4


def test_on_the_larger_model_less_error_in_the_weights_is_more_in_what_it_reads(smollm2):
    assert is_noise(smollm2("8 bits, row")) and is_noise(smollm2("4 bits, groups of 64, mse", "4 bits, groups of 64"))
    assert smollm2("4 bits, row, mse", "4 bits, row").t > 5 and smollm2("4 bits, row", "4 bits, groups of 64").t > 5
    assert smollm2("4 bits, groups of 64").value == pytest.approx(smollm2("4 bits, row").value / 2, rel=0.1)


def test_on_the_larger_model_formats_change_places_and_two_bits_break_it(smollm2):
    assert is_noise(smollm2("nf4", "4 bits, groups of 64, affine"))                                       # which weighs 4.31 bits, NF4 4.5
    assert smollm2("nvfp4", "nf4").value > 0                                                              # the other way round on ours
    assert smollm2("mxfp4", "4 bits, groups of 64").t > 5                                                 # 4.25 bits both
    assert min(smollm2(name).value for name in ("2 bits, groups of 64, affine", "ternary")) > 2


def test_the_line_of_chosen_ranges_lies_below_the_others_as_far_as_it_reaches(gpt):
    rows = runs.raw("language_gpt")["gpt"]["weights"]

    def line(grid):
        names = [f"{bits} bits, {grid}" for bits in (2, 3, 4)]
        return [rows[name]["bits_per_weight"] for name in names], np.log([gpt(name).value for name in names])

    sizes, lowest = line("row, mse")
    for grid in ("row", "groups of 32", "groups of 32, affine"):
        other_sizes, other = line(grid)
        places = np.linspace(max(sizes[0], other_sizes[0]), sizes[-1], 50)
        assert np.all(np.interp(places, sizes, lowest) < np.interp(places, other_sizes, other))


def test_a_ternary_row_has_a_gamma_of_32_bits_and_five_weights_a_byte():
    rows = runs.raw("language_gpt")["gpt"]["weights"]
    # By hand: a block has 524,288 weights in rows of 256 and 131,072 in rows of 512; a matrix's last byte is not full.
    a_row = (524_288 * (1.6 + 32 / 256) + 131_072 * (1.6 + 32 / 512)) / 655_360
    assert rows["ternary"]["bits_per_weight"] == pytest.approx(a_row, abs=1e-3)
    assert rows["ternary, one gamma"]["bits_per_weight"] == pytest.approx(1.6, abs=1e-3)


def test_the_ternary_record_is_whole_and_its_rivals_are_fair(ternary):
    rows = ternary["rows"]
    assert ternary["command"] == "python -m qlab.lab.experiments.ternary"
    assert rows["ternary, trained"]["steps"] == rows["float, trained on"]["steps"] == 500
    assert rows["smaller float"]["steps"] == 2000 + rows["ternary, trained"]["steps"]                    # the model's own, and as many more
    assert evaluate.bits_per_byte(scores_of(ternary, rows["float"])).value == pytest.approx(rows["float"]["bits_per_byte"], abs=1e-6)
    # By hand: a block has 4 matrices of 65,536 weights and 3 of 131,072, five in a byte, and a gamma each; the rest is float16.
    block = 4 * (13_108 + 4) + 3 * (26_215 + 4)
    assert rows["ternary, trained"]["nbytes"] == rows["ternary, rounded"]["nbytes"] == 3 * block + 2 * (2_230_016 - 1_966_080)
    assert rows["smaller float"]["nbytes"] == pytest.approx(rows["ternary, trained"]["nbytes"], rel=0.01)


def test_training_takes_back_what_rounding_lost_and_more_training_in_floats_gains_nothing(trained):
    assert trained("ternary, rounded", "float").value > 0.5
    assert is_noise(trained("ternary, trained", "float"))
    assert trained("float, trained on", "float").t > 2                                                    # worse: it has read enough
    assert -0.01 < trained("ternary, trained", "float, trained on").value < 0
    assert trained("ternary, trained", "smaller float").t < -3
