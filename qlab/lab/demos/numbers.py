"""Notebook 01's live figures: a layer under the roofline of a machine; and number formats, bit by bit: what sign, exponent and mantissa
mean, and where a format's numbers lie.

    x = (-1)^s * 2^(e - bias) * (1 + m / 2^M)          IEEE 754: e the exponent field, m the mantissa field of M bits
    x = (-1)^s * 2^(1 - bias) * (0 + m / 2^M)          for e = 0: zero and the subnormal numbers

If all exponent bits are 1, the number is infinite (m = 0) or NaN; but float8 e4m3fn has no infinity, and is NaN only if all mantissa
bits are 1 too (Micikevicius et al. 2022). int8 is two's complement: its first bit is worth -128.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import numpy as np
import torch
import traitlets
from matplotlib.patches import Rectangle

from qlab.lab import plot, widgets
from qlab.matmul.roofline import Roof, matmul_intensity

FIELDS = {"sign": plot.INK["float"], "exponent": plot.INK["accent"], "mantissa": plot.INK["muted"]}


@dataclass(frozen=True)
class Format:
    """dtype, its fields' numbers of bits, and an integer dtype of the same width. A code is an integer from 0 to 2^bits - 1."""

    dtype: torch.dtype
    exponent: int
    mantissa: int
    integer: torch.dtype = torch.int8

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    def decode(self, code: int) -> float:
        """The number, as torch reads the code's bits.

        >>> FORMATS["float16"].decode(0b1_10001_1010000000), FORMATS["int8"].decode(0b1000_0001)
        (-6.5, -127.0)
        """
        signed = code - (code >> (self.bits - 1) << self.bits)
        return float(torch.tensor(signed, dtype=self.integer).view(self.dtype))

    def encode(self, x: float) -> int:
        """The code of the number that torch rounds x to; int8 rounds to nearest and saturates, where torch's cast cuts off and wraps."""
        x = torch.tensor(x, dtype=torch.float32)
        x = x.nan_to_num().round().clamp(-128, 127) if self.dtype == torch.int8 else x
        return x.to(self.dtype).view(self.integer).item() % 2**self.bits

    def near(self, code: int, steps: int) -> float:
        """The number so many places above the code's, infinite or NaN where there is none. Both zeros are one place.

        >>> FORMATS["float16"].near(FORMATS["float16"].encode(2048.0), 1)
        2050.0
        """
        top = 2 ** (self.bits - 1)
        if self.dtype == torch.int8:
            place = code - (code >= top) * 2 * top + steps
            return float(place) if -top <= place < top else math.nan
        place = (top - code if code >= top else code) + steps
        return self.decode(abs(place) + (place < 0) * top) if abs(place) < top else math.nan

    def explain(self, code: int) -> dict[str, tuple[str, str]]:
        """Field -> its heading and what its bits say."""
        digits, x = f"{code:0{self.bits}b}", self.decode(code)
        s, e, m = (int(part or "0", 2) for part in (digits[0], digits[1:1 + self.exponent], digits[1 + self.exponent:]))
        if self.dtype == torch.int8:
            return {"sign": ("worth −128", text_of(-128 * s)), "exponent": ("", ""), "mantissa": ("worth 64, 32, 16, 8, 4, 2, 1", f"+ {m}")}
        power = f"{e} − {self.bias} = {text_of(e - self.bias)}" if e else f"subnormal: {text_of(1 - self.bias)}"
        factor = f"{int(e > 0)} + {m}/{2**self.mantissa} = {text_of((e > 0) + m / 2**self.mantissa)}"
        if not math.isfinite(x):
            power, factor = "all ones", "not a number" if math.isnan(x) else "infinity"
        return {"sign": ("sign", "−" if s else "+"), "exponent": (f"exponent, {self.exponent} bits", power),
                "mantissa": (f"mantissa, {self.mantissa} bits", factor)}


FORMATS = {f.name: f for f in (
    Format(torch.float32, 8, 23, torch.int32), Format(torch.float16, 5, 10, torch.int16), Format(torch.bfloat16, 8, 7, torch.int16),
    Format(torch.float8_e4m3fn, 4, 3), Format(torch.float8_e5m2, 5, 2), Format(torch.int8, 0, 7),
)}


def text_of(x: float) -> str:
    return f"{x:.9g}".replace("-", "−")


def field_of(position: int, f: Format) -> str:
    return "sign" if position == 0 else "exponent" if position <= f.exponent else "mantissa"


def spaced(f: Format, code: int) -> str:
    """The code's bits, field by field.

    >>> spaced(FORMATS["float8_e4m3fn"], 0b1_0011_101)
    '1 0011 101'
    """
    digits = f"{code:0{f.bits}b}"
    return " ".join(filter(None, (digits[0], digits[1:1 + f.exponent], digits[1 + f.exponent:])))


def paint(bit: str, field: str) -> tuple[str, str]:
    """Colours of a bit's face and of its digit."""
    return (FIELDS[field], "white") if bit == "1" else ("white", FIELDS[field])


class BitRow(ipywidgets.HBox):
    """A button a bit, which flips it. value: the bits as text, "0 10001 1010000000"."""

    value = traitlets.Unicode()

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Made once, with the few looks that they take in turn: a new button costs more than a picture.
        self._looks = {(field, bit): _look(field, bit) for field in FIELDS for bit in "01"}
        self._places = {(field, first): _place(field, first) for field in FIELDS for first in (False, True)}
        self._buttons = [self._button(i) for i in range(max(f.bits for f in FORMATS.values()))]

    def show(self, f: Format, code: int) -> "BitRow":
        self.format, self.code, digits = f, code, f"{code:0{f.bits}b}"
        for i, (digit, button) in enumerate(zip(digits, self._buttons)):
            field = field_of(i, f)
            with button.hold_sync():  # one message for all of it
                button.description, button.tooltip = digit, f"{field} bit"
                button.style, button.layout = self._looks[field, digit], self._places[field, i in (1, 1 + f.exponent)]
        if len(self.children) != f.bits:
            self.children = self._buttons[:f.bits]
        self.value = spaced(f, code)
        return self

    def _button(self, i: int) -> ipywidgets.Button:
        button = ipywidgets.Button()
        button.on_click(lambda _: self.show(self.format, self.code ^ (1 << (self.format.bits - 1 - i))))
        return button


def _look(field: str, bit: str) -> ipywidgets.ButtonStyle:
    face, ink = paint(bit, field)
    return ipywidgets.ButtonStyle(button_color=face, text_color=ink)


def _place(field: str, first: bool) -> ipywidgets.Layout:
    return ipywidgets.Layout(width="22px", padding="0", margin=f"1px 0 1px {9 if first else 1}px", border=f"1px solid {FIELDS[field]}")


def flip_bits(x: float = -6.5, name: str = "float16") -> widgets.Live:
    """Flip the bits of a number in six formats; see its value, its neighbours, and where the format's magnitudes lie."""
    fig, (top, line, zoom) = widgets.figure(7.2, 4.3, nrows=3, height_ratios=[1.5, 1, 1])
    top.set(xlim=(0, 32), ylim=(-1.0, 2.1))
    top.set_axis_off()
    cells = [top.add_patch(Rectangle((0, 0), 1, 1, linewidth=1)) for _ in range(32)]
    digits = [top.text(0, 0.46, "", ha="center", va="center", size=11) for _ in cells]
    words = {field: [top.text(0, y, "", ha="center", va="center", size=11) for y in (1.5, -0.6)] for field in FIELDS}
    marks, = line.plot([], [], "|", color=plot.COLORS["muted"], markersize=15, markeredgewidth=0.8)
    here, = line.plot([], [], "v", color=plot.COLORS["error"], markersize=10)
    near, = zoom.plot([], [], "|", color=plot.COLORS["muted"], markersize=17, markeredgewidth=2)
    there, = zoom.plot([], [], "v", color=plot.COLORS["error"], markersize=10)
    notes = [zoom.text(0, y, "", ha=ha, va="center", size=11) for y, ha in ((-0.75, "right"), (1.05, "center"), (-0.75, "left"))]
    for ax in (line, zoom):
        ax.set(ylim=(-1.2, 1.5), yticks=[])
        ax.spines["left"].set_visible(False)
        ax.grid(False)
    line.set_xscale("log")
    line.minorticks_off()
    line.xaxis.set_major_formatter(plot.powers())
    zoom.set(xlim=(-5, 5), xticks=[])
    zoom.set_title("the value among its neighbours, on a linear scale", fontsize=11)
    shown: list[Format] = []

    def draw_bits(f: Format, code: int) -> None:
        width, text = {8: 3.3, 16: 1.8, 32: 0.92}[f.bits], f"{code:0{f.bits}b}".ljust(32)
        left = [16 - f.bits * width / 2 - 0.8 + i * width + 0.8 * (i > 0) + 0.8 * (i > f.exponent) for i in range(32)]
        for i, (cell, digit) in enumerate(zip(cells, digits)):
            face, ink = paint(text[i], field_of(i, f))
            cell.set(x=left[i], width=0.92 * width, facecolor=face, edgecolor=FIELDS[field_of(i, f)], visible=i < f.bits)
            digit.set(x=left[i] + 0.46 * width, text=text[i], color=ink, visible=i < f.bits)
        for field, says in f.explain(code).items():
            at = [left[i] + 0.46 * width for i in range(f.bits) if field_of(i, f) == field] or [0]
            for word, said in zip(words[field], says):
                word.set(x=(at[0] + at[-1]) / 2, text=said)

    def draw_format(f: Format) -> None:
        values = [v for v in (f.near(0, i) for i in range(1, 128)) if math.isfinite(v)]
        if f.bits > 8:
            values = [2.0**k for k in range(1 - f.bias - f.mantissa, f.bias + 1)]
        marks.set_data(values, [0] * len(values))
        beyond = (values[-1] / values[0]) ** 0.045  # room for the labels of the first and the last power of ten
        first, last = math.ceil(math.log10(values[0])), math.floor(math.log10(values[-1]))
        line.set_xticks([10.0**power for power in range(first, last + 1, max(1, (last - first) // 6))])
        line.set_xlim(values[0] / beyond, values[-1] * beyond)
        line.set_title(f"every magnitude of {f.name}" if f.bits == 8 else
                       f"{f.name}'s powers of two; {2**f.mantissa - 1:,} more numbers between two normal ones", fontsize=11, y=1)
        shown[:] = [f]

    def update(format: str, number: float, bits: str) -> str:
        f, code = FORMATS[format], int(bits.replace(" ", ""), 2)
        value, below, above = f.decode(code), f.near(code, -1), f.near(code, 1)
        draw_bits(f, code)
        if shown != [f]:
            draw_format(f)
        finite = math.isfinite(value)
        here.set_data([abs(value)] if finite and value else [], [0.95] if finite and value else [])
        gap = max((abs(v - value) for v in (below, above) if math.isfinite(v)), default=1.0)
        places = [(v - value) / gap for v in (f.near(code, i) for i in range(-9, 10)) if math.isfinite(v)] if finite else []
        near.set_data(places, [0] * len(places))
        there.set_data([0] if finite else [], [0.25] if finite else [])
        for note, v in zip(notes, (below, value, above)):
            known = finite and math.isfinite(v)
            note.set(text=text_of(v) if known else "", x=(v - value) / gap * 0.94 if known else 0)
        if not finite:
            return f"{format}: {value}, which lies on no number line."
        says = [part for _, part in f.explain(code).values() if part]
        power, factor = says[-2].split()[-1], says[-1].split()[-1]
        formula = " ".join(says) if f.dtype == torch.int8 else f"{says[0].strip('+')}2^{f'({power})' if '−' in power else power} × {factor}"
        steps = [f"the next {word} is {text_of(v)}, {text_of(abs(v - value))} away" if math.isfinite(v) else f"there is no number {word}"
                 for word, v in (("below", below), ("above", above))]
        return f"<b>{text_of(value)}</b> = {formula}; {'; '.join(steps)}."

    row = BitRow(layout=ipywidgets.Layout(flex_flow="row wrap")).show(FORMATS[name], FORMATS[name].encode(x))
    choice = ipywidgets.Dropdown(options=list(FORMATS), value=name, layout=ipywidgets.Layout(width="15em"))
    number = ipywidgets.FloatText(x, description="round this number", layout=ipywidgets.Layout(width="16em"))
    meant = [x, row.value]  # the number as it was entered, and its bits in the format at hand; or the number of bits that were flipped

    def choose(change) -> None:
        """Into another format goes the number that was meant, not what an earlier format has made of it."""
        if row.value != meant[1]:
            meant[0] = FORMATS[change["old"]].decode(row.code)
        enter(meant[0])

    def enter(x: float) -> None:
        f = FORMATS[choice.value]
        code = f.encode(x)
        meant[:] = x, spaced(f, code)
        row.show(f, code)

    choice.observe(choose, "value")
    number.observe(lambda change: enter(change["new"]), "value")
    return widgets.Live(fig, update, format=choice, number=number, bits=row)


BATCHES = [2**e for e in range(13)]
BYTES = {"4 (float32)": 4, "2 (16 bits)": 2, "1 (8 bits)": 1, "1/2 (4 bits)": 0.5}


def under_the_roof(roof: Roof, m: int, k: int, measured: Mapping[int, float] | None = None) -> widgets.Live:
    """An (m, k) layer under a machine's roof: the batch, and the bytes of a weight or an input, move it. Outputs have 4 bytes and the
    arithmetic stays the roof's, so that fewer bytes are less traffic and nothing else.

    roof: of float32. measured: batch -> operations/s of the float32 layer, drawn as diamonds. Raises ValueError for m or k below 1.
    """
    def at(batch: int, width: float) -> float:
        return matmul_intensity(m, k, batch, width, 4)

    measured = dict(measured or {})
    fig, ax = widgets.figure(7.6, 3.8)
    low, high = at(1, 4) / 3, 3 * at(BATCHES[-1], 0.5)
    x = np.geomspace(low, high, 200)
    ax.plot(x, roof.attainable(x) / 1e9, color=plot.COLORS["float"], linewidth=1.6)
    ax.axvline(roof.ridge, color=plot.COLORS["muted"], linestyle=":", linewidth=1.4, label="ridge")
    ax.plot([at(batch, 4) for batch in measured], [rate / 1e9 for rate in measured.values()], "D", color=plot.COLORS["error"], markersize=8,
            label="measured, float32")
    trail, = ax.plot([], [], "o", color=plot.COLORS["muted"], markersize=4, label="other batches")
    here, = ax.plot([], [], "o", color=plot.COLORS["accent"], markersize=13, markerfacecolor="none", markeredgewidth=3, label="this layer")
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(roof.attainable(low) / 1e9, 4 * roof.peak / 1e9),
           xlabel="operational intensity (operations/byte)", ylabel="GFLOP/s")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.legend(loc="lower right")

    def update(batch: int, width: str) -> str:
        intensities = [at(n, BYTES[width]) for n in BATCHES]
        trail.set_data(intensities, roof.attainable(intensities) / 1e9)
        intensity = at(batch, BYTES[width])
        rate = roof.attainable(intensity)
        here.set_data([intensity], [rate / 1e9])
        bound = "memory-bound" if intensity < roof.ridge else "compute-bound"
        gain = rate / roof.attainable(at(batch, 4))
        faster = f"{gain:.2g} times as fast as" if gain >= 1.05 else "no faster than"
        return (f"batch {batch:,}, {BYTES[width]:g} bytes a number: {intensity:.3g} operations/byte, ridge at {roof.ridge:.3g}: "
                f"<b>{bound}</b>, at most {rate / 1e9:.3g} GFLOP/s, {2e3 * m * k * batch / rate:.3g} ms; <b>{faster}</b> with 4 bytes.")

    options = [(f"{n:,}", n) for n in BATCHES]
    return widgets.Live(fig, update, batch=ipywidgets.SelectionSlider(options=options, value=1),
                        width=ipywidgets.SelectionSlider(options=list(BYTES), value="1 (8 bits)", description="bytes a number"))
