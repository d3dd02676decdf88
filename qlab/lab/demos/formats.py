"""Notebook 15's pictures: the levels of number formats as marks on rulers, and a live figure of one weight matrix in any of them.

Live: on the left weights of one row, the levels of each group behind them; on the right the whole matrix's error against its true bits a
weight, for the format chosen and, pale, for all others. What levels cost and what scales cost are on one axis, so formats can be compared.
"""

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes

from qlab.lab import plot, widgets
from qlab.quant import QTensor, formats, kmeans, linear, ternary

LINEAR = ("symmetric", "affine")
CHOICES = (*LINEAR, "nf4", "e2m1", "mxfp4", "nvfp4", "ternary", "kmeans")
GROUPS = (16, 32, 64, "row")
BITS = (2, 6)
SHOWN, ROWS = 96, 64  # weights of a row that are drawn; rows that the slider reaches


def rulers(rows: Mapping[str, torch.Tensor], ax: Axes, notes: Mapping[str, str] | None = None) -> Axes:
    """One line a format with a mark at each level; rows: a label whose first word names the method -> its levels, any number of them.

    notes: what stands to the right of a line, bits for instance. All formats are drawn so that their largest level is 1.
    """
    for y, (label, levels) in enumerate(rows.items()):
        levels = torch.as_tensor(levels).double()
        levels, method = (levels / levels.abs().max()).tolist(), plot.method_of(label)
        ax.hlines(-y, -1, 1, color=plot.COLORS["muted"], linewidth=0.8)
        ax.vlines(levels, -y - 0.3, -y + 0.3, color=plot.COLORS[method], linewidth=2)
        ax.text(-1.05, -y, label, ha="right", va="center", fontsize=10, color=plot.INK[method])
        ax.text(1.05, -y, (notes or {}).get(label, f"{len(levels)} levels"), ha="left", va="center", fontsize=10)
    ax.set(xlabel="level / largest level", yticks=[], ylim=(-len(rows) + 0.4, 0.6), xlim=(-1.02, 1.02))
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    return ax


def encode(weight: torch.Tensor, format: str, bits: int, group: int | str) -> QTensor:
    """weight (out, in) in one of CHOICES. bits: of linear schemes and k-means, the others have their own; group: of GROUPS, of a row;
    k-means has one codebook for the matrix. Scales are float16, where the format does not say what they are.

    >>> encode(torch.linspace(-1, 1, 64).reshape(2, 32), "symmetric", 4, 32).bits_per_weight
    4.5
    """
    size = None if group == "row" else group
    if format in LINEAR:
        return linear.quantize(weight, bits, format, axis=0, group_size=size, scale_dtype=torch.float16)
    if format == "kmeans":
        return kmeans.quantize(weight, bits)
    if format == "ternary":
        return ternary.quantize(weight, axis=0, group_size=size, scale_dtype=torch.float16)
    own = formats.block.FORMATS
    return formats.quantize(weight, format, axis=0, group_size=size or weight[0].numel(),
                            scale_dtype=None if format in own else torch.float16)


def lost(weight: torch.Tensor, q: QTensor) -> float:
    """Squared error over squared weights.

    >>> lost(torch.tensor([3.0, 4.0]), linear.quantize(torch.tensor([3.0, 4.0]), 8, x_min=3, x_max=4))
    0.0
    """
    return ((q.dequantize() - weight).square().sum() / weight.square().sum()).item()


def settings(format: str) -> list[tuple[int, int | str]]:
    """Every (bits, group) that the format has."""
    widths = range(BITS[0], BITS[1] + 1) if format in LINEAR else (2, 3, 4) if format == "kmeans" else (4,)
    return [(bits, group) for bits in widths for group in (GROUPS if format != "kmeans" else ("row",))]


def levels_of_a_matrix(weights: Mapping[str, torch.Tensor], format: str = "symmetric", bits: int = 4,
                       group: int | str = 32) -> widgets.Live:
    """A matrix's values on the levels of formats of four bits and fewer, and what each costs in error and bytes.

    weights: name -> (out, in), where `in` is a multiple of 64, and above 64. Raises ValueError for no matrix, or another shape.
    """
    if not weights:
        raise ValueError("weights is empty, and must name at least one matrix.")
    for name, weight in weights.items():
        if weight.dim() != 2 or weight.shape[1] % max(GROUPS[:-1]) or weight.shape[1] < SHOWN:
            raise ValueError(f"{name!r} has shape {tuple(weight.shape)}, and must be (out, in) with `in` a multiple of 64, above 64.")
    weights = {name: weight.detach() for name, weight in weights.items()}
    clouds = {name: {choice: np.array([(q.bits_per_weight, 100 * lost(w, q)) for q in (encode(w, choice, *s) for s in settings(choice))])
                     for choice in CHOICES} for name, w in weights.items()}     # now, so that no control waits for a hundred quantizations
    first = next(iter(weights.values()))
    controls = {
        "matrix": ipywidgets.Dropdown(options=list(weights), layout={"width": "230px"}),
        "format": ipywidgets.Dropdown(options=CHOICES, value=format, layout={"width": "170px"}),
        "bits": ipywidgets.IntSlider(bits, *BITS),
        "group": ipywidgets.SelectionSlider(options=GROUPS, value=group),
        "row": ipywidgets.IntSlider(0, 0, min(ROWS, len(first)) - 1),
    }
    fig, (ax, map_ax) = widgets.figure(9.6, 3.9, ncols=2, width_ratios=(1.5, 1))
    marks = ax.hlines([0.0], 0, 1, linewidth=1.3)
    walls = ax.vlines([0.0], -1, 1, color=plot.COLORS["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    falls = ax.vlines([0.0], 0, 0, color=plot.COLORS["error"], linewidth=1.4, zorder=3)     # before the dots, which at 4 bits hide them
    dots, = ax.plot([], [], "o", color=plot.COLORS["float"], markersize=2.6)
    ax.set(xlabel="place in the row", ylabel="weight", xlim=(-1, SHOWN))
    ax.grid(False)
    cloud = {choice: map_ax.plot([], [], linestyle="", marker=plot.MARKERS[plot.method_of(choice)], markersize=4, alpha=0.45,
                                 color=plot.COLORS[plot.method_of(choice)])[0] for choice in CHOICES}
    here, = map_ax.plot([], [], "o", color=plot.COLORS["accent"], markersize=10, markeredgecolor="black")
    names = {"symmetric": "symmetric", "affine": "affine", "nf4": "formats", "kmeans": "k-means"}
    map_ax.legend([cloud[choice] for choice in names], names.values(), loc="lower left", fontsize=9, handletextpad=0.1)
    map_ax.set(xlabel="true bits a weight", ylabel="squared error (% of the weights')", yscale="log", xlim=(1.3, 7.2), ylim=(0.02, 80))
    map_ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda share, _: f"{share:g}"))
    shown = []

    def update(matrix: str, format: str, bits: int, group, row: int) -> str:
        w = weights[matrix]
        controls["row"].max = min(ROWS, len(w)) - 1
        row = min(row, controls["row"].max)
        if shown != [matrix]:
            shown[:] = [matrix]
            for choice, line in cloud.items():
                line.set_data(*clouds[matrix][choice].T)
            reach = 1.08 * w.abs().max().item()
            ax.set_ylim(-reach, reach)
        q = encode(w, format, bits, group)
        x, x_hat = w[row, :SHOWN].numpy(), q.dequantize()[row, :SHOWN].numpy()
        size = SHOWN if q.group_size is None else min(q.group_size, SHOWN)
        levels = q.levels()[row].reshape(-1, q.levels().shape[-1]) if q.scale is not None else q.levels()[None]
        starts = np.arange(0, SHOWN, size)
        marks.set_segments([[(s - 0.5, y), (min(s + size, SHOWN) - 0.5, y)] for s, group_levels in zip(starts, levels.tolist())
                            for y in group_levels])
        marks.set_color(plot.COLORS[plot.method_of(format)])
        walls.set_segments([[(s - 0.5, -9), (s - 0.5, 9)] for s in starts[1:]])
        falls.set_segments([[(i, a), (i, b)] for i, (a, b) in enumerate(zip(x.tolist(), x_hat.tolist()))])
        dots.set_data(range(len(x)), x)
        share = 100 * lost(w, q)
        here.set_data([q.bits_per_weight], [share])
        own = format not in LINEAR and format != "kmeans"
        said = f"{format}, one codebook for the matrix" if format == "kmeans" else \
            f"{format}, {'a scale a row' if group == 'row' else f'groups of {group}'}"
        codes = f"{q.bits:g} bits a code{' (its own)' if own else ''}"
        return f"{said}: {codes}, {levels.shape[1]} levels, <b>{q.bits_per_weight:.2f} true bits a weight</b>; squared error {share:.2f} %."

    return widgets.Live(fig, update, **controls)
