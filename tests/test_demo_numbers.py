"""Notebook 01's live figures: every number against torch, NumPy or the definition, and every control driven."""

import math

import numpy as np
import pytest
import torch

from qlab.lab.demos.numbers import BATCHES, FORMATS, flip_bits, under_the_roof
from qlab.matmul.roofline import Roof

SMALL = [name for name, f in FORMATS.items() if f.bits <= 16]
FLOATS = [name for name in FORMATS if name != "int8"]


def by_definition(name: str, code: int) -> float:
    """IEEE 754's formula with the specials of each format, written without torch."""
    exponent, mantissa = {"float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7), "float8_e4m3fn": (4, 3), "float8_e5m2": (5, 2)}[name]
    s, e, m = code >> (exponent + mantissa), (code >> mantissa) % 2**exponent, code % 2**mantissa
    if name == "float8_e4m3fn" and code % 128 == 127:
        return math.nan
    if name != "float8_e4m3fn" and e == 2**exponent - 1:
        return math.nan if m else (-1) ** s * math.inf
    bias = 2 ** (exponent - 1) - 1
    return (-1) ** s * (2.0 ** (e - bias) * (1 + m / 2**mantissa) if e else 2.0 ** (1 - bias) * (m / 2**mantissa))


def codes_of(name: str) -> list[int]:
    if FORMATS[name].bits == 8:
        return list(range(256))
    edges = [0, 1, 2, 2 ** (FORMATS[name].bits - 1), 2 ** FORMATS[name].bits - 1]
    return edges + np.random.default_rng(0).integers(0, 2 ** FORMATS[name].bits, 2000).tolist()


@pytest.mark.parametrize("name", FLOATS)
def test_decode_is_the_definition(name):
    f, codes = FORMATS[name], codes_of(name)
    np.testing.assert_array_equal([f.decode(code) for code in codes], [by_definition(name, code) for code in codes])


@pytest.mark.parametrize("name, dtype", [("float16", np.float16), ("float32", np.float32)])
def test_decode_and_neighbours_are_numpys(name, dtype):
    f = FORMATS[name]
    unsigned = {16: np.uint16, 32: np.uint32}[f.bits]
    for code in codes_of(name):
        x = unsigned(code).view(dtype)
        if not np.isfinite(x):
            continue
        assert f.decode(code) == x
        with np.errstate(over="ignore"):
            below, above = np.nextafter(x, dtype(-np.inf)), np.nextafter(x, dtype(np.inf))
        assert f.near(code, -1) == below and f.near(code, 1) == above


@pytest.mark.parametrize("name", SMALL)
def test_neighbours_are_the_next_in_the_sorted_list_of_all_numbers(name):
    f = FORMATS[name]
    dtype = {8: np.int8, 16: np.int16}[f.bits]
    every = torch.from_numpy(np.arange(2**f.bits).astype({8: np.uint8, 16: np.uint16}[f.bits]).view(dtype)).view(f.dtype).double()
    numbers = every[every.isfinite()].unique().tolist()  # both zeros are one
    for at in {0, 1, len(numbers) // 2 - 1, len(numbers) // 2, len(numbers) // 2 + 1, len(numbers) - 2, len(numbers) - 1}:
        code = f.encode(numbers[at])
        assert f.decode(code) == numbers[at]
        assert f.near(code, -1) == numbers[at - 1] if at else not math.isfinite(f.near(code, -1))
        assert f.near(code, 1) == numbers[at + 1] if at + 1 < len(numbers) else not math.isfinite(f.near(code, 1))


def test_int8_is_twos_complement_and_saturates():
    f = FORMATS["int8"]
    np.testing.assert_array_equal([f.decode(code) for code in range(256)], np.arange(256, dtype=np.uint8).view(np.int8))
    assert [f.decode(f.encode(x)) for x in (1000.0, -1000.0, 2.5, -7.6, math.nan)] == [127, -128, 2, -8, 0]
    assert math.isnan(f.near(f.encode(127.0), 1)) and math.isnan(f.near(f.encode(-128.0), -1))


@pytest.fixture
def demo():
    demo = flip_bits()
    yield demo
    assert demo.error is None


def markers(demo):
    """Every x at which a downward marker stands: in the log line and in the zoom."""
    return [line.get_xdata() for ax in demo.fig.axes for line in ax.lines if line.get_marker() == "v"]


def test_a_click_flips_one_bit_and_the_picture_follows(demo):
    assert demo.value("bits") == "1 10001 1010000000" and "−6.5" in demo.text
    assert "−6.50390625, 0.00390625 away" in demo.text and "−6.49609375, 0.00390625 away" in demo.text
    before = demo._image.value
    demo.controls["bits"].children[0].click()
    assert demo.value("bits") == "0 10001 1010000000" and demo.text.startswith("<b>6.5</b> = 2^2 × 1.625")
    assert demo._image.value != before
    demo.controls["bits"].children[5].click()  # the exponent's last bit: 17 - 15 becomes 16 - 15
    assert demo.text.startswith("<b>3.25</b> = 2^1 × 1.625")
    assert markers(demo)[0] == [3.25]


def test_a_typed_number_is_rounded_and_a_new_format_rounds_again(demo):
    demo.controls["format"].value = "float32"
    demo.controls["number"].value = 0.1
    assert demo.value("bits") == "0 01111011 10011001100110011001101" and demo.text.startswith("<b>0.100000001</b>")
    demo.controls["format"].value = "float8_e4m3fn"
    assert demo.value("bits") == "0 0011 101" and demo.text.startswith("<b>0.1015625</b>")
    assert len(demo.controls["bits"].children) == 8
    assert len(demo.fig.axes[1].lines[0].get_xdata()) == 126  # 7 subnormal, 119 normal numbers


def test_where_a_binade_ends_the_two_neighbours_are_not_equally_far(demo):
    demo.controls["format"].value = "bfloat16"
    demo.controls["number"].value = 256.0
    assert "255, 1 away" in demo.text and "258, 2 away" in demo.text


@pytest.mark.parametrize("name, code, says", [
    ("float16", 0b0_11111_0000000000, "inf"), ("float16", 0b1_11111_0000000001, "nan"), ("float8_e4m3fn", 0b0_1111_111, "nan"),
])
def test_specials_are_on_no_number_line(demo, name, code, says):
    demo.controls["format"].value = name
    demo.controls["bits"].show(FORMATS[name], code)
    assert says in demo.text and "no number line" in demo.text
    assert markers(demo) == [[], []]


def test_the_largest_number_and_zero(demo):
    demo.controls["number"].value = 65504.0
    assert "the next below is 65472, 32 away; there is no number above" in demo.text
    demo.controls["number"].value = 0.0
    assert "5.96046448e−08" in demo.text and markers(demo) == [[], [0]]  # zero has no place on a log axis


@pytest.mark.parametrize("name", FORMATS)
def test_the_caption_multiplies_to_the_value(demo, name):
    demo.controls["format"].value = name
    for code in codes_of(name)[::37]:
        demo.controls["bits"].show(FORMATS[name], code)
        value = FORMATS[name].decode(code)
        if not math.isfinite(value):
            continue
        formula = demo.text.split("</b> = ")[1].split(";")[0].replace("−", "-").replace("×", "*").replace("^", "**")
        assert eval(formula) == pytest.approx(value, rel=1e-8, abs=0)


def test_without_a_kernel_there_is_a_still(demo):
    assert demo.still()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("visit", [name for name in FORMATS if name != "float32"])
def test_a_visit_to_another_format_gives_the_number_back(demo, visit):
    demo.controls["format"].value = "float32"
    demo.controls["number"].value = 0.1
    before = demo.text
    demo.controls["format"].value = visit
    demo.controls["format"].value = "float32"
    assert demo.text == before
    demo.controls["format"].value = visit
    demo.controls["bits"].children[-1].click()  # a bit flipped there is a number of its own, and it stays
    there = demo.controls["number"].value
    demo.controls["format"].value = "float32"
    assert demo.controls["number"].value == there


ROOF = Roof(peak=8e10, bandwidth=1.6e10)  # the ridge at 5 operations a byte


@pytest.mark.parametrize("batch, width, size, bound, says", [
    (1, "4 (float32)", 4, "memory-bound", "no faster than"), (1, "1 (8 bits)", 1, "memory-bound", "4 times as fast as"),
    (1, "1/2 (4 bits)", 0.5, "memory-bound", "8 times as fast as"), (8, "1 (8 bits)", 1, "compute-bound", "1.3 times as fast as"),
    (256, "2 (16 bits)", 2, "compute-bound", "no faster than"),
])
def test_a_layer_moves_under_the_roof(batch, width, size, bound, says):
    demo = under_the_roof(ROOF, 8192, 4096, {1: 8.8e9})
    demo.controls["batch"].value, demo.controls["width"].value = batch, width
    assert demo.error is None

    def rate(n, w):
        moved = w * (8192 * 4096 + 4096 * n) + 4 * 8192 * n
        return min(8e10, 1.6e10 * 2 * 8192 * 4096 * n / moved)

    here = demo.fig.axes[0].lines[-1].get_xydata()[0]
    np.testing.assert_allclose(here[1], rate(batch, size) / 1e9)
    assert f"batch {batch:,}, {size:g} bytes" in demo.text and bound in demo.text and says in demo.text
    milliseconds = 2e3 * 8192 * 4096 * batch / rate(batch, size)
    assert f"{milliseconds:.3g} ms" in demo.text
    trail = demo.fig.axes[0].lines[-2].get_ydata()
    np.testing.assert_allclose(trail, [rate(n, size) / 1e9 for n in BATCHES])


def test_what_was_measured_is_a_diamond_at_float32_s_intensity():
    diamonds = next(line for line in under_the_roof(ROOF, 64, 32, {1: 8e9, 16: 7e10}).fig.axes[0].lines if line.get_marker() == "D")
    moved = [4 * (64 * 32 + 32 * n + 64 * n) for n in (1, 16)]
    np.testing.assert_allclose(diamonds.get_xdata(), [2 * 64 * 32 * n / b for n, b in zip((1, 16), moved)])
    np.testing.assert_allclose(diamonds.get_ydata(), [8, 70])
    with pytest.raises(ValueError, match="m is 0"):
        under_the_roof(ROOF, 0, 32)
