"""Notebook 04's widget: Lloyd's iteration on a layer's weights, one iteration at a time.

Left: the histogram of the weights, the centroids, and the borders between their cells, halfway between neighbours. Right: the mean
squared error after each iteration, as a multiple of the least there is. A centroid that no weight is nearest to is drawn hollow.
"""

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch

from qlab.lab import plot, widgets
from qlab.quant import kmeans

BITS = (1, 2, 3, 4)
BINS = 60
MARKS = {4: (1, 1.2, 1.5, 2, 3, 5), 40: (1, 2, 5), np.inf: (1,)}  # the marks of an axis that goes so far, times powers of ten


class Layer:
    """One tensor's weights, sorted once, with the running sums that make the error of any codebook a few binary searches."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight.detach().reshape(-1)
        self.ordered = np.sort(self.weight.double().numpy())
        self.sums = np.concatenate([[0.0], np.cumsum(self.ordered)])
        self.energy = float(np.square(self.ordered).sum())
        self.histogram = np.histogram(self.ordered, BINS)
        self.best = {bits: kmeans.mse(weight, kmeans.quantize(weight, bits).codebook) for bits in BITS}
        self.paths = {(start, bits): self._path(start, bits) for start in kmeans.STARTS for bits in BITS}  # now, so that no slider waits

    def _path(self, start: str, bits: int) -> tuple[list[np.ndarray], list[float]]:
        """The centroids before the first and after each iteration, and the mean squared error of each."""
        path = [c.numpy() for c in kmeans.lloyd(self.ordered, kmeans.initial(self.weight, 2**bits, start))]
        return path, [self.mse(c) for c in path]

    def counts(self, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many weights are nearest to each of the ascending centroids, (k,), and their sums, (k,)."""
        edges = np.concatenate([[0], self.ordered.searchsorted(borders(codebook)), [len(self.ordered)]])
        return np.diff(edges), np.diff(self.sums[edges])

    def mse(self, codebook: np.ndarray) -> float:
        """sum (x - c)^2 = sum x^2 - 2 c sum x + n c^2 in each cluster."""
        count, total = self.counts(codebook)
        return (self.energy + float((count * codebook**2 - 2 * codebook * total).sum())) / len(self.ordered)


def borders(codebook: np.ndarray) -> np.ndarray:
    """Halfway between neighbouring centroids, (k - 1,)."""
    return (codebook[1:] + codebook[:-1]) / 2


def lloyd_steps(weights: Mapping[str, torch.Tensor], start: str = "linear", bits: int = 3) -> widgets.Live:
    """Lloyd's iteration on any of the named weights: layer, start and bits are chosen, and a slider goes through the iterations.

    Raises ValueError for no weights, a start that is not one of kmeans.STARTS, bits that are not from 1 to 4.
    """
    if not weights:
        raise ValueError("weights is empty, and must name at least one tensor.")
    layers = {name: Layer(weight) for name, weight in weights.items()}
    controls = {
        "layer": ipywidgets.Dropdown(options=list(layers), layout={"width": "230px"}),
        "start": ipywidgets.Dropdown(options=kmeans.STARTS, value=start, layout={"width": "150px"}),
        "bits": ipywidgets.IntSlider(bits, BITS[0], BITS[-1]),
        "iteration": ipywidgets.IntSlider(0, 0, 1),
    }
    fig, (ax, curve_ax) = widgets.figure(8.6, 3.6, ncols=2, width_ratios=(1.9, 1))
    first = next(iter(layers.values()))
    bars = ax.stairs(*first.histogram, fill=True, color="#CFCFCF")
    foot = ax.get_xaxis_transform()
    lines, = ax.plot([], [], color=plot.COLORS["kmeans"], linewidth=1.4, transform=foot)
    cells, = ax.plot([], [], color=plot.COLORS["muted"], linewidth=1.0, linestyle=(0, (3, 3)), transform=foot, label="cell border")
    full, = ax.plot([], [], color=plot.COLORS["kmeans"], marker="D", linestyle="", transform=foot, clip_on=False, label="centroid")
    empty, = ax.plot([], [], color=plot.COLORS["error"], marker="D", markerfacecolor="white", linestyle="", transform=foot,
                     clip_on=False, label="centroid without weights")
    ax.set(xlabel="weight", ylabel="count (log scale)", yscale="log")
    ax.xaxis.set_major_locator(plot.plt.MaxNLocator(6))
    ax.yaxis.set_minor_locator(plot.NullLocator())  # a dozen more ticks to draw at each change of the axes
    ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda count, _: f"{count:,g}"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9.5, handletextpad=0.3, columnspacing=1.0)
    curve, = curve_ax.plot([], [], color=plot.COLORS["kmeans"])
    here, = curve_ax.plot([], [], color=plot.COLORS["accent"], marker="o", markersize=9, linestyle="")
    curve_ax.axhline(1, color=plot.COLORS["float"], linewidth=1.2, linestyle=plot.LINESTYLES["float"])
    curve_ax.set(xlabel="iteration", ylabel="MSE / least possible MSE", yscale="log")
    curve_ax.xaxis.set_major_locator(plot.plt.MaxNLocator(5, integer=True))
    curve_ax.yaxis.set_major_locator(plot.LogLocator())
    curve_ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    curve_ax.yaxis.set_minor_locator(plot.NullLocator())
    shown = []

    def update(layer: str, start: str, bits: int, iteration: int) -> str:
        data = layers[layer]
        path, errors = data.paths[start, bits]
        last = len(path) - 1
        controls["iteration"].max = max(last, 1)
        iteration = min(iteration, last)
        codebook, ratios = path[iteration], np.array(errors) / data.best[bits]
        filled = data.counts(codebook)[0] > 0
        if shown[:1] != [layer]:  # axes that stay as they are need not be drawn again: a step takes half the time
            counts, edges = data.histogram
            bars.set_data(counts, edges)
            room = 0.03 * (edges[-1] - edges[0])
            ax.set(xlim=(edges[0] - room, edges[-1] + room), ylim=(0.7, 2 * counts.max()))
        if shown != [layer, start, bits]:
            shown[:] = layer, start, bits
            curve.set_data(range(last + 1), ratios)
            curve_ax.yaxis.get_major_locator().set_params(subs=next(subs for most, subs in MARKS.items() if ratios.max() <= most))
            curve_ax.set(xlim=(-0.03 * max(last, 1), 1.03 * max(last, 1)), ylim=(0.93, 1.15 * max(ratios.max(), 1.2)))
        lines.set_data(*_upright(codebook[filled], 0.94))
        cells.set_data(*_upright(borders(codebook), 1.0))
        full.set_data(codebook[filled], np.full(filled.sum(), 0.94))
        empty.set_data(codebook[~filled], np.full((~filled).sum(), 0.94))
        here.set_data([iteration], [ratios[iteration]])
        left_out = f"; {(~filled).sum()} of {len(codebook)} centroids have no weights" if not filled.all() else ""
        return (f"{layer}, iteration {iteration} of {last}: MSE {errors[iteration]:.3g}, <b>{ratios[iteration]:.3f} times</b> "
                f"the least possible {data.best[bits]:.3g}{left_out}.")

    return widgets.Live(fig, update, **controls)


def _upright(at: np.ndarray, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Upright lines as one polyline: (x, x, nan) and (0, height, nan) for each."""
    return np.column_stack([at, at, np.full(len(at), np.nan)]).ravel(), np.tile([0, height, np.nan], len(at))
