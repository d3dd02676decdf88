"""The course's pictures: one palette, and the five drawings that its pages repeat.

The same colour means the same method in every notebook. Hues are those of Okabe and Ito (2008), which colour-blind readers tell apart.
The methods also differ in lightness, by at least 11 on the CIE scale from 0 to 100, and in marker and line style, so that they stay
apart in grey print:

    float    minmax   linear, affine   symmetric   kmeans   log
    0        17       35               46          58       71

Number formats and ternary weights (nf4, mxfp4, ...) share one entry, formats: a brown of 26, 8 from the blues beside it.

Lines and areas take COLORS, words INK, the same hues dark enough to read.

A label may say more than the method's name, as in "kmeans, per channel": its first word decides. Each function draws into ax, or into a
new figure of pyplot's, and returns the Axes; in a notebook's last line write `_ = plot.staircase(...)`, so that the Axes is not printed.
"""

import sys
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qlab.lab.alternative import alt_text, describe
from qlab.quant.qtensor import FORMATS

__all__ = ["COLORS", "INK", "KB", "LINESTYLES", "MARKERS", "alt_text", "describe", "error_curve", "histogram_with_levels", "images",
           "line_styles", "method_of", "pareto", "power", "powers", "staircase", "use_style"]
COLORS = {
    "float": "#000000", "linear": "#00558C", "log": "#E69F00", "kmeans": "#009E73",     # the reference and the three quantizers
    "minmax": "#002B52", "affine": "#00558C", "symmetric": "#0072B2",                   # linear quantization's schemes: blues
    "formats": "#662C0E",                                                               # nf4, mxfp4, ternary, ...
    "error": "#D55E00", "accent": "#CC79A7", "muted": "#8C8C8C",                        # what went wrong; one thing to look at; background
}
# The same hues for words: as dark as small letters need to be on white and pale grey, a contrast of at least 4.5 to 1 (WCAG 2).
INK = COLORS | {"log": "#986900", "kmeans": "#00825E", "error": "#A04700", "accent": "#9D5D81", "muted": "#6B6B6B"}
MARKERS = {"float": "o", "linear": "s", "log": "^", "kmeans": "D", "minmax": "v", "affine": "P", "symmetric": "X",
           "formats": "p"}
LINESTYLES = {
    "float": (0, (7, 2)), "linear": (0, ()), "log": (0, (4, 1.5, 1, 1.5)), "kmeans": (0, (1.5, 1)),
    "minmax": (0, (2, 2)), "affine": (0, (4, 1)), "symmetric": (0, (5, 1, 1, 1, 1, 1)), "formats": (0, (6, 1.5, 1, 1.5)),
}
KB = 1000  # bytes
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def use_style() -> None:
    """Set matplotlib's defaults for the course: white page, light grid, type that can be read from the back of a room.

    In a notebook, pictures of pyplot's figures also carry their `alt_text` from now on, in the output's metadata.
    """
    plt.rcParams.update({
        "figure.figsize": (7.0, 3.6), "figure.dpi": 110, "savefig.dpi": 110, "savefig.bbox": "tight", "savefig.pad_inches": 0.06,
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.constrained_layout.use": True,
        "font.size": 12, "axes.labelsize": 12, "axes.titlesize": 13, "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
        "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555",
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.8,
        "lines.linewidth": 2.0, "lines.markersize": 7.0, "legend.frameon": False, "image.cmap": "gray_r",
        "axes.prop_cycle": plt.cycler(color=[COLORS[m] for m in ("linear", "log", "kmeans", "error", "accent", "float")]),
    })
    _tell_notebook()


def _tell_notebook() -> None:
    """Put alt_text beside the PNG that IPython makes of a Figure; that PNG itself stays as it was."""
    ipython = sys.modules.get("IPython")  # there, if this is a notebook
    shell = ipython and ipython.get_ipython()
    if not hasattr(shell, "kernel"):
        return
    plt.switch_backend(plt.get_backend())  # loads the notebook's own, which sets IPython's way to draw a Figure, once
    formatter = shell.display_formatter.formatters["image/png"]
    draw = formatter.for_type(Figure)
    if draw and not isinstance(draw, _Described):
        formatter.for_type(Figure, _Described(draw))


class _Described:
    """IPython's way to draw a Figure, and what the picture shows as its alternative text."""

    def __init__(self, draw):
        self.draw = draw

    def __call__(self, fig: Figure):
        drawn = self.draw(fig)
        picture, metadata = drawn if isinstance(drawn, tuple) else (drawn, {})
        return picture, metadata | {"alt": alt_text(fig)}


def powers(base: int = 10) -> FuncFormatter:
    """Labels of a logarithmic axis with a tick at each power, in plain letters: TeX takes milliseconds for each.

    >>> powers()(0.001), powers(2)(1024)
    ('10⁻³', '2¹⁰')
    """
    return FuncFormatter(lambda x, _: power(base, round(float(np.log(x) / np.log(base)))))


def power(base: int, exponent: int) -> str:
    """A power in plain letters.

    >>> power(2, -24)
    '2⁻²⁴'
    """
    return str(base) + str(exponent).translate(SUPERSCRIPT)


def method_of(label: str) -> str:
    """The method that a label's first word names, "formats" for a number format or ternary; raises ValueError when it names none.

    >>> method_of("kmeans, per channel"), method_of("k-means"), method_of("NF4, groups of 64")
    ('kmeans', 'kmeans', 'formats')
    """
    words = label.lower().replace("k-means", "kmeans").replace(",", " ").split()
    if words and words[0] in ("ternary", *FORMATS):
        return "formats"
    if not words or words[0] not in MARKERS:
        raise ValueError(f"label is {label!r}, and its first word must be one of {', '.join([*MARKERS, 'ternary', *FORMATS])}.")
    return words[0]


def line_styles(labels: Sequence[str]) -> list[dict]:
    """Keyword arguments of Axes.plot for each label: its method's colour, marker and line style.

    Of several labels of one method the first has filled markers, the second hollow ones, the third pale ones, and so on again.

    >>> [s["markerfacecolor"] for s in line_styles(["log", "log, per channel"])]
    ['#E69F00', 'white']
    """
    styles, seen = [], []
    for label in labels:
        method = method_of(label)
        color, turn = COLORS[method], seen.count(method) % 3
        seen.append(method)
        pale = tuple(1 - 0.35 * (1 - c) for c in plt.matplotlib.colors.to_rgb(color))
        styles.append({"color": color, "marker": MARKERS[method], "linestyle": LINESTYLES[method], "label": label,
                       "markerfacecolor": (color, "white", pale)[turn], "markeredgecolor": color, "markeredgewidth": 1.6})
    return styles


def histogram_with_levels(x, levels, ax: Axes | None = None, bins: int = 200, method: str = "linear", xlabel: str = "value") -> Axes:
    """The distribution of x's values, and every value that a quantizer can decode to as a thin vertical mark.

    x: any shape; levels: a sequence of numbers, or a quantized tensor with a method levels(). Up to 32 levels are tall lines, more are
    short ticks at the foot. Raises ValueError for an empty x or for no levels.
    """
    values, marks = _flat(x, "x"), _flat(levels.levels() if hasattr(levels, "levels") else levels, "levels")
    ax = ax or plt.subplots()[1]
    counts, edges = np.histogram(values, bins)
    ax.stairs(counts, edges, fill=True, color="#CFCFCF", label=f"{len(values):,} value{'s' * (len(values) != 1)}")
    few = len(marks) <= 32
    ax.vlines(marks, 0, 0.82 if few else 0.08, transform=ax.get_xaxis_transform(), color=COLORS[method_of(method)],
              linewidth=1.2 if few else 0.6, label=f"{len(marks)} level{'s' * (len(marks) != 1)}")
    ax.set(xlabel=xlabel, ylabel="count", ylim=(0, max(counts.max(), 1) / 0.8))  # a fifth of the height is left for the legend
    ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    ax.legend(loc="upper right", ncols=2)
    return ax


def staircase(x, x_hat, ax: Axes | None = None, method: str = "linear") -> Axes:
    """A quantizer's transfer curve: the decoded value against the input, and the identity it should follow.

    x, x_hat: the same number of values, in any order; x_hat may be a quantized tensor with a method dequantize().
    """
    x, x_hat = _flat(x, "x"), _flat(x_hat.dequantize() if hasattr(x_hat, "dequantize") else x_hat, "x_hat")
    if len(x) != len(x_hat):
        raise ValueError(f"x has {len(x)} values and x_hat {len(x_hat)}: they must be as many.")
    order = np.argsort(x, kind="stable")
    ax = ax or plt.subplots(figsize=(5.2, 4.2))[1]
    ends = [x.min(), x.max()]
    ax.plot(ends, ends, color=COLORS["muted"], linewidth=1.2, linestyle=(0, (5, 3)), label="identity")
    ax.plot(x[order], x_hat[order], color=COLORS[method_of(method)], label=method)
    ax.set(xlabel="input $x$", ylabel=r"decoded value $\hat{x}$")
    ax.locator_params(nbins=6)
    ax.legend(loc="upper left")
    return ax


def error_curve(bits: Sequence[float], curves: Mapping[str, Sequence[float]], ax: Axes | None = None, ylabel: str = "SQNR (dB)") -> Axes:
    """One line a method: its error against the bits of a code.

    bits: (n,); curves: label -> (n,) values in the unit that ylabel names. Raises ValueError for a label of no known method.
    """
    bits = _flat(bits, "bits")
    ax = ax or plt.subplots()[1]
    for (label, values), style in zip(curves.items(), line_styles(list(curves))):
        values = _flat(values, label)
        if len(values) != len(bits):
            raise ValueError(f"{label!r} has {len(values)} values for {len(bits)} bits: they must be as many.")
        ax.plot(bits, values, **style)
    ax.set(xlabel="bits per code", ylabel=ylabel, xticks=bits)
    ax.legend()
    return ax


def pareto(points: Mapping[str, Sequence[Sequence[float]]], reference: Sequence[float] | None = None, ax: Axes | None = None,
           notes: Mapping[str, Sequence] | None = None) -> Axes:
    """Size against accuracy, one line a method, with 95 % intervals; up and to the left is better.

    points: label -> rows (size_bytes, accuracy, low, high), the three accuracies as fractions of 1; reference: such a row for the
    float network, drawn as a line with its band; notes: label -> what to write beside each point, for instance the bits.
    """
    ax = ax or plt.subplots(figsize=(7.0, 4.2))[1]
    for (label, rows), style in zip(points.items(), line_styles(list(points))):
        size, accuracy, low, high = _rows(rows, label)
        order = np.argsort(size, kind="stable")
        size, accuracy, low, high = size[order] / KB, 100 * accuracy[order], 100 * low[order], 100 * high[order]
        ax.errorbar(size, accuracy, [accuracy - low, high - accuracy], capsize=3, elinewidth=1.2, **style)
        for i, note in enumerate((notes or {}).get(label, ())):
            at = list(order).index(i)
            ax.annotate(str(note), (size[at], accuracy[at]), xytext=(6, -13), textcoords="offset points", fontsize=10,
                        color=INK[method_of(label)])
    if reference is not None:
        size, accuracy, low, high = (values[0] for values in _rows([reference], "reference"))
        ax.axhspan(100 * low, 100 * high, color=COLORS["float"], alpha=0.10, linewidth=0)
        ax.axhline(100 * accuracy, color=COLORS["float"], linewidth=1.4, linestyle=LINESTYLES["float"], label=f"float, {size / KB:,.0f} KB")
    ax.set_xscale("log")
    ax.set(xlabel="size (KB, 1 KB = 1000 bytes)", ylabel="test accuracy (%)")
    left, right = ax.get_xlim()
    decades = np.log10(right / left)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(left, right)
    ax.legend(loc="lower right")
    return ax


def images(pictures, titles: Sequence[str] | None = None, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """A row of grey pictures, dark on light, on one common scale of brightness, with titles above; returns the Axes, (n,).

    pictures: (n, h, w) or (n, 1, h, w), n at least 1; titles: n strings; axes: n Axes to draw into.
    """
    if isinstance(pictures, torch.Tensor):
        pictures = pictures.detach().float().cpu()
    pictures = np.asarray(pictures, np.float32)
    if pictures.ndim == 4 and pictures.shape[1] == 1:
        pictures = pictures[:, 0]
    if pictures.ndim != 3 or not len(pictures):
        raise ValueError(f"pictures has the shape {tuple(pictures.shape)}, and must be (n, h, w) or (n, 1, h, w) with n at least 1.")
    titles = [""] * len(pictures) if titles is None else list(titles)
    if axes is None:
        axes = plt.subplots(1, len(pictures), figsize=(1.35 * len(pictures), 1.75), squeeze=False)[1][0]
    if len(titles) != len(pictures) or len(axes) != len(pictures):
        raise ValueError(f"there are {len(pictures)} pictures, {len(titles)} titles and {len(axes)} axes: they must be as many.")
    for picture, title, ax in zip(pictures, titles, axes):
        ax.imshow(picture, cmap="gray_r", vmin=pictures.min(), vmax=pictures.max(), interpolation="nearest")
        ax.set_title(title, fontsize=11, loc="center")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set(visible=True, color="#CCCCCC")
    return np.asarray(axes)


def _flat(x, name: str) -> np.ndarray:
    x = x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"{name} has {x.size} values, and must have at least one, all of them finite.")
    return x.reshape(-1)


def _rows(rows, name: str) -> np.ndarray:
    """(4, n) from n rows (size_bytes, accuracy, low, high)."""
    rows = np.asarray([[float(value) for value in row] for row in rows])
    fits = rows.ndim == 2 and rows.shape[1] == 4
    if not fits or not (rows[:, 0] > 0).all() or (np.diff(rows[:, [2, 1, 3]], prepend=0, append=1) < 0).any():
        raise ValueError(f"{name} must be rows (size_bytes, accuracy, low, high), the size above 0 and 0 <= low <= accuracy <= high <= 1.")
    return rows.T
