"""The circuit against the simulation in NumPy: the same numbers in every register at every tick."""

import gc
import sys
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("amaranth", reason='needs the extra "hardware"')

from qlab.matmul import hdl, systolic  # noqa: E402


def operands(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (k, n), np.int8)


@pytest.mark.parametrize("m, k, n, rows, cols", [
    (5, 4, 4, 4, 4), (1, 4, 4, 4, 4), (3, 7, 5, 4, 4), (2, 3, 4, 1, 1), (4, 2, 6, 3, 2), (3, 1, 1, 2, 5)])
def test_same_registers_at_every_tick(m, k, n, rows, cols):
    a, b = operands(m, k, n)
    states, circuit = list(systolic.steps(a, b, rows, cols)), hdl.simulate(a, b, rows, cols)
    assert len(states) == len(circuit) == systolic.count_cycles(m, k, n, rows, cols)
    product = np.zeros((m, n), int)
    for state, registers in zip(states, circuit):
        np.testing.assert_array_equal(registers.weight, state.weight)
        np.testing.assert_array_equal(registers.activation, state.activation)
        np.testing.assert_array_equal(registers.partial_sum, state.partial_sum)
        np.testing.assert_array_equal(registers.foot, state.partial_sum[-1])
        for row, column, _ in state.out:
            product[row, column] += registers.foot[column - state.tile[1]]
    np.testing.assert_array_equal(product, a.astype(int) @ b.astype(int))


def test_extremes():
    for low in (-128, 127):
        a, b = np.full((2, 4), low, np.int8), np.full((4, 2), -128, np.int8)
        foot = np.array([registers.foot for registers in hdl.simulate(a, b, 4, 2)])
        assert np.abs(foot).max() == abs(4 * low * 128) and np.sign(foot.sum()) == -np.sign(low)


def test_verilog_has_one_signed_multiplier_an_element():
    text = hdl.verilog(hdl.Array(2, 3), "array")
    assert "module array(" in text and text.count("endmodule") == 7
    assert text.count(" = $signed(w_out) * $signed(a_in);") == text.count(" * $signed(") == 6


def test_errors():
    a, b = operands(2, 2, 2)
    with pytest.raises(ValueError, match="rows is 0"):
        hdl.simulate(a, b, 0, 2)
    with pytest.raises(TypeError, match="must be int8"):
        hdl.simulate(a.astype(np.int16), b, 2, 2)


@pytest.mark.filterwarnings("ignore:.*never used")
def test_array_without_elements():
    with pytest.raises(ValueError, match="the array is 2 x 0"):
        hdl.Array(2, 0)
    gc.collect()  # amaranth warns when a component that was never built is freed: here, where the warning is expected


def test_without_yosys():
    from amaranth.back import verilog as back
    with mock.patch.object(back, "find_yosys", side_effect=back.YosysError("none found")):
        with pytest.raises(RuntimeError, match=r"needs Yosys.*none found"):
            hdl.verilog(hdl.Element(), "element")


def test_without_amaranth():
    name = "qlab.matmul.hdl"
    with mock.patch.dict(sys.modules, {"amaranth": None, "amaranth.hdl": None}):
        kept = sys.modules.pop(name)
        try:
            with pytest.raises(ImportError, match=r"^amaranth is not installed: .*'\.\[hardware\]' "):
                __import__(name)
        finally:
            sys.modules[name] = kept
