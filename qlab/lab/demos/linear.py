"""Notebook 02's pictures: levels as marks on a ruler, and a live figure: bits, range and scheme move the levels of a million values.

The squared error has two parts: rounding, of the values inside the range, and saturation, of those outside, which all land on an outermost
level. Narrowing the range lowers one and raises the other.
"""

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from qlab.lab import plot, widgets
from qlab.quant import QTensor, linear

GRID = 4001                         # inputs at which the error curve is drawn: 16 a step at 8 bits


def rulers(coded: dict[str, QTensor], ax: Axes, values=None, zero: bool = True) -> Axes:
    """One line a quantizer, with a mark at each level and its code below; values: numbers drawn as dots, each with a line to its level.

    coded: a label, whose first word is the scheme, -> a QTensor of one scale that was made from values, if those are given.
    zero: whether a vertical line shows where 0.0 lies. Labels stand above the rulers.
    """
    ends = torch.cat([q.levels() for q in coded.values()])
    left = ends.min().item()
    for row, (label, q) in enumerate(coded.items()):
        y, color, ink = -2 * row, plot.COLORS[plot.method_of(label)], plot.INK[plot.method_of(label)]
        levels = q.levels().tolist()
        ax.hlines(y, levels[0], levels[-1], color=color, linewidth=1.4)
        ax.vlines(levels, y - 0.14, y + 0.14, color=color, linewidth=2)
        for code, level in zip(q.level_codes().tolist(), levels):
            ax.text(level, y - 0.24, f"{code}", ha="center", va="top", fontsize=11, color=ink,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        ax.text(left, y + (1.15 if values is not None else 0.3), label, va="bottom", fontsize=11, color=ink)
        if values is not None:
            x, x_hat = torch.as_tensor(values).tolist(), q.dequantize().tolist()
            ax.plot([x, x_hat], [[y + 0.8] * len(x), [y + 0.16] * len(x)], color=plot.COLORS["muted"], linewidth=1)
            ax.plot(x, [y + 0.8] * len(x), "o", color=plot.COLORS["float"], markersize=6)
    if zero:
        ax.axvline(0, color=plot.COLORS["error"], linewidth=1.2, linestyle=(0, (4, 2)), zorder=0)
    ax.set(xlabel="value", yticks=[], ylim=(-2 * len(coded) + 1.3, 1.7 if values is not None else 0.9))
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    return ax


def split_error(x, x_hat, x_min, x_max) -> tuple[float, float]:
    """The mean squared error as (rounding, saturation): the shares of the values inside and outside [x_min, x_max].

    >>> rounding, saturation = split_error(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 1.0]), -1, 1)
    >>> rounding, saturation
    (0.125, 2.0)
    """
    error = (x_hat - x).square_()
    inside = error.sum(dtype=torch.float64).item()
    outside = error[(x < x_min) | (x > x_max)].sum(dtype=torch.float64).item()
    return (inside - outside) / x.numel(), outside / x.numel()


def play(values: dict[str, torch.Tensor], bits: int = 4) -> widgets.Live:
    """Bits, range and scheme move the levels of real weights and activations (left), and the error of every input (right).

    values: name -> a float tensor. The range is a percentage of [min, max]; what lies outside saturates (shaded). Below: scale, zero-point,
    largest error, the two parts of the squared error, and the SQNR in decibels.

    >>> demo = play({"ramp": torch.linspace(-1, 1, 1000)}, bits=4)
    >>> demo.text.startswith("scale 0.143, zero-point 0")
    True
    """
    flat = {name: torch.as_tensor(x).detach().reshape(-1) for name, x in values.items()}
    for name, x in flat.items():
        if not x.count_nonzero():
            raise ValueError(f"values[{name!r}] is all zeros or empty, and must hold something to quantize.")
    known = {name: (*(end.item() for end in x.aminmax()), x.square().sum(dtype=torch.float64).item()) for name, x in flat.items()}
    histograms = {name: np.histogram(x.numpy(), 200) for name, x in flat.items()}  # now, so that no control waits for a million values
    fig, (left, right) = widgets.figure(9.6, 3.7, ncols=2)
    picture = _Picture(left, right)

    def update(values, bits, range, scheme):
        x, (low, high, energy) = flat[values], known[values]
        x_min, x_max = low * range / 100, high * range / 100
        q = linear.quantize(x, bits, scheme, x_min=x_min, x_max=x_max)
        x_hat = q.dequantize()
        if scheme == "symmetric":  # its range is as wide on either side
            x_max = max(-x_min, x_max)
            x_min = -x_max
        rounding, saturation = split_error(x, x_hat, x_min, x_max)
        total = rounding + saturation
        largest = max(abs(end.item()) for end in x_hat.sub_(x).aminmax())
        picture.show(values, histograms[values], q, max(low, x_min), min(high, x_max))
        sqnr = 10 * np.log10(energy / x.numel() / total) if total else np.inf
        return (f"scale {q.scale.item():.3g}, zero-point {q.zero_point.item() + 0.0:.4g}, largest error {largest:.3g} = "
                f"{largest / q.scale.item():.2f} scales; of the squared error {100 * rounding / max(total, 1e-300):.0f} % is rounding, "
                f"{100 * saturation / max(total, 1e-300):.0f} % saturation; <b>SQNR {sqnr:.1f} dB</b>")

    return widgets.Live(
        fig, update, values=ipywidgets.Dropdown(options=list(flat)), bits=ipywidgets.IntSlider(bits, 2, 8),
        range=ipywidgets.IntSlider(100, 5, 100, 1, description="range (% of min to max)"),
        scheme=ipywidgets.Dropdown(options=["symmetric", "affine", "minmax"], value="symmetric"))


class _Picture:
    """The artists of `play`; show moves them."""

    def __init__(self, left: Axes, right: Axes):
        self.left, self.right, self.name = left, right, None
        self.bars = left.stairs([1], [0, 1], fill=True, color="#CFCFCF")
        self.marks = left.vlines([0], 0, 0.86, transform=left.get_xaxis_transform(), linewidth=1.2)
        look = {"facecolor": plot.COLORS["error"], "edgecolor": "none", "alpha": 0.16}
        self.shades = [ax.add_patch(Rectangle((0, 0), 0, 1, transform=ax.get_xaxis_transform(), **look))
                       for ax in (left, left, right, right)]
        self.note = left.text(0.98, 0.93, "", transform=left.transAxes, ha="right", fontsize=11)
        self.error, = right.plot([], [], linewidth=1.2)
        self.bound = [right.axhline(0, color=plot.COLORS["muted"], linewidth=1, linestyle=(0, (4, 2))) for _ in "ab"]
        self.bound[0].set_label("plus and minus half a scale")
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
        left.set(xlabel="value", ylabel="count")
        left.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
        right.set(xlabel="value $x$", ylabel=r"error $\hat{x} - x$")

    def show(self, name: str, histogram: tuple, q: QTensor, x_min: float, x_max: float) -> None:
        if name != self.name:
            self._frame(name, *histogram)
        color, levels, half = plot.COLORS[q.scheme], q.levels().tolist(), q.scale.item() / 2
        few = len(levels) <= 32
        self.marks.set(segments=[[(v, 0), (v, 0.86 if few else 0.08)] for v in levels], color=color, linewidth=1.2 if few else 0.6)
        self.note.set_text(f"{len(levels)} levels")
        nearest = (self.grid / q.scale + q.zero_point).round().clamp(*q.code_range)
        self.error.set(data=(self.grid.numpy(), (q.scale * (nearest - q.zero_point) - self.grid).numpy()), color=color)
        for line, y in zip(self.bound, (half, -half)):
            line.set_ydata([y, y])
        low, high = self.grid[0].item(), self.grid[-1].item()
        for shade, (a, b) in zip(self.shades, 2 * [(low, x_min), (x_max, high)]):
            shade.set(x=a, width=max(0, b - a))

    def _frame(self, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Everything that depends on the values alone. A bar that dwarfs the others, as that of the zeros after ReLU, is cut off."""
        first, second = np.sort(counts)[[-1, -2]]
        cut = first > 3 * second
        self.bars.set_data(counts, edges)
        self.grid, margin = torch.linspace(float(edges[0]), float(edges[-1]), GRID), 0.04 * (edges[-1] - edges[0])
        for ax in (self.left, self.right):  # the levels of a symmetric code reach as far on either side
            ax.set_xlim((min(edges[0], -edges[-1]) if edges[0] < 0 else edges[0]) - margin, max(edges[-1], -edges[0]) + margin)
        self.left.set_ylim(0, 1.4 * (second if cut else first))
        self.left.set_xlabel(f"value (the tallest bar, {first:,} values, is cut off)" if cut else "value")
        reach = 0.55 * max(abs(edges[0]), abs(edges[-1]))
        self.right.set_ylim(-reach, reach)
        self.name = name
