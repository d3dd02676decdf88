"""Notebook 13's widgets, driven without a browser: what they draw is what the array holds and what the roofline allows."""

import re

import ipywidgets
import numpy as np
import pytest

from qlab.lab.demos import hardware
from qlab.matmul import roofline, systolic


@pytest.fixture(scope="module")
def array():
    return hardware.array_steps()


@pytest.fixture(scope="module")
def roofs():
    return hardware.rooflines()


def put(demo, **values):
    for name, value in values.items():
        demo.controls[name].value = value
    assert demo.error is None


def operands(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-9, 10, (8, 6), np.int8)[:m, :k], rng.integers(-9, 10, (6, 6), np.int8)[:k, :n]


@pytest.mark.parametrize("size, m, k, n", [(3, 4, 3, 3), (4, 2, 6, 5), (2, 8, 3, 3), (1, 1, 1, 1)])
def test_what_leaves_is_the_product(array, size, m, k, n):
    put(array, cycle=0, size=size, m=m, k=k, n=n)
    slider, product = array.controls["cycle"], np.zeros((m, n), int)
    assert slider.max == systolic.count_cycles(m, k, n, size, size) - 1
    for cycle in range(slider.max + 1):
        text = array.update(size, m, k, n, cycle)
        for row, column, value in re.findall(r"c\[(\d+), (\d+)\] \+?= (-?\d+) leaves", text):
            product[int(row), int(column)] += int(value)
    a, b = operands(m, k, n)
    np.testing.assert_array_equal(product, a.astype(int) @ b)
    assert f"so far {100 * systolic.utilization(m, k, n, size, size):.0f} %" in text


def test_elements_show_the_registers(array):
    put(array, size=4, m=4, k=6, n=5, cycle=10)
    state = list(systolic.steps(*operands(4, 6, 5), 4, 4))[10]
    ax = array.fig.axes[0]
    shown = sorted(text.get_text() for text in ax.texts if text.get_text().lstrip("-").isdigit() and text.get_position()[0] > 0)
    busy = state.row >= 0
    registers = [*state.weight.ravel(), *state.activation[busy], *state.partial_sum[busy]]
    assert shown == sorted(str(value) for value in registers)
    pink = sum(np.allclose(box.get_facecolor()[:3], (0xF4 / 255, 0xD6 / 255, 0xE6 / 255)) for box in ax.patches if box.get_visible())
    assert pink == state.active.sum() > 0


def test_waiting_rows_are_those_that_enter_next(array):
    put(array, size=3, m=8, k=3, n=3, cycle=3)
    a, _ = operands(8, 3, 3)
    waiting = [(text.get_position(), text.get_text()) for text in array.fig.axes[0].texts
               if text.get_text().lstrip("-").isdigit() and text.get_position()[0] < 0]
    first_row = [text for (x, y), text in sorted(waiting, reverse=True) if y == 0.5]
    assert first_row == [str(v) for v in a[1:6, 0]]


def test_play_follows_the_slider(array):
    put(array, size=2, m=3, k=2, n=2)
    player = next(child for child in array.children[0].children if isinstance(child, ipywidgets.Play))
    assert player.max == array.controls["cycle"].max == systolic.count_cycles(3, 2, 2, 2, 2) - 1


@pytest.mark.parametrize("machine, number_format, m, k, n", [
    ("A100", "int8", 1, 4096, 4096), ("H100", "float16", 512, 4096, 16384), ("Haswell CPU", "float32", 64, 64, 64),
    ("TPU v1", "int8", 64, 1024, 1024)])
def test_point_is_on_the_roof(roofs, machine, number_format, m, k, n):
    put(roofs, machine=machine, number_format=number_format, m=m, k=k, n=n)
    chosen = hardware.MACHINES[machine]
    trail, here = roofs.fig.axes[0].lines[-2:]
    factor, result = hardware.WIDTHS[number_format]
    moved = k * n * factor if machine == "TPU v1" else factor * (m * k + k * n) + result * m * n
    intensity = 2 * m * k * n / moved
    assert here.get_xdata()[0] == pytest.approx(intensity)
    assert here.get_ydata()[0] == pytest.approx(min(chosen.peaks[number_format], intensity * chosen.bandwidth))
    assert len(trail.get_xdata()) == 13
    bound = "memory" if intensity * chosen.bandwidth < chosen.peaks[number_format] else "compute"
    assert f"{bound}-bound" in roofs.text and chosen.source in roofs.text
    traffic, arithmetic = (line.get_xdata() for line in roofs.fig.axes[1].lines)
    row = list(chosen.peaks).index(number_format)
    assert traffic[row] == pytest.approx(moved / chosen.bandwidth)
    assert arithmetic[row] == pytest.approx(2 * m * k * n / chosen.peaks[number_format])


def test_one_token_is_memory_bound_everywhere(roofs):
    for machine, chosen in hardware.MACHINES.items():
        for number_format in chosen.peaks:
            put(roofs, machine=machine, number_format=number_format, m=1, k=4096, n=4096)
            assert "memory-bound" in roofs.text


def test_format_that_a_machine_lacks(roofs):
    put(roofs, machine="TPU v1", number_format="float16")
    assert "no peak for float16" in roofs.text and not len(roofs.fig.axes[0].lines[-1].get_xdata())
    put(roofs, machine="A100", number_format="int8")


def test_tables_agree_with_their_own_arithmetic():
    assert hardware.MACHINES["TPU v1"].peaks["int8"] == pytest.approx(2 * 256 * 256 * 700e6, rel=0.01)  # 65,536 elements at 700 MHz
    for name in ("A100", "H100"):
        peaks = hardware.MACHINES[name].peaks
        assert peaks["int8"] == pytest.approx(2 * peaks["float16"], rel=1e-3)


def test_own_machine_can_be_added():
    mine = hardware.Machine(1e10, {"float32": 1e11, "int8": 2e9}, "measured")
    demo = hardware.rooflines(hardware.MACHINES | {"mine": mine}, "mine", "int8", 64, 256, 256)
    assert "compute-bound" in demo.text and "measured" in demo.text
    assert mine.roof("int8") == roofline.Roof(2e9, 1e10)


def test_bad_arguments():
    with pytest.raises(ValueError, match="size is 5"):
        hardware.array_steps(size=5)
    with pytest.raises(ValueError, match="k is 0"):
        hardware.array_steps(k=0)
    with pytest.raises(ValueError, match="must be one of Haswell"):
        hardware.rooflines(machine="abacus")
    with pytest.raises(ValueError, match="at least one"):
        hardware.rooflines({})
    with pytest.raises(ValueError, match="m is 3"):
        hardware.rooflines(m=3)
    with pytest.raises(KeyError):
        hardware.MACHINES["TPU v1"].roof("float32")
