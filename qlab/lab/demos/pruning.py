"""Notebook 09's widget: a slider for the sparsity of each layer; what is cut, what the network still knows, what a file would hold.

Left: the histogram of the layer whose slider moved last, with the weights that are removed. Middle: the accuracy on a small fixed set of
images. Right: the bytes of all weights in each sparse format, and of the biases, float32.
"""

from collections.abc import Sequence

import ipywidgets
import numpy as np
import torch
from torch import nn

from qlab.lab import data, plot, widgets
from qlab.lab.significance import Accuracy
from qlab.nets import prune, sparse

BINS = 60
GAP_BITS = 5


class Pruned:
    """A chain of modules, and what is needed to prune it anew in a few milliseconds: each layer's ranking, and each layer's input."""

    def __init__(self, model: nn.Sequential, split: data.Split):
        self.split, self.layers = split, {n: m for n, m in model.named_children() if isinstance(m, prune.LAYERS)}
        self.steps = list(model.named_children())
        self.weights = {name: layer.weight.detach().clone(memory_format=torch.contiguous_format) for name, layer in self.layers.items()}
        self.ranks = {name: _ranks(weight) for name, weight in self.weights.items()}
        self.biases = sum(layer.bias.nbytes for layer in self.layers.values() if layer.bias is not None)
        self._inputs = {self.steps[0][0]: split.images.contiguous(memory_format=torch.channels_last)}
        self._now = dict.fromkeys(self.layers, 0.0)
        self._bytes: dict[tuple, dict[str, int]] = {}
        self.correct = None

    def mask(self, name: str, share: float) -> torch.Tensor:
        """As prune.magnitude makes it for one layer."""
        return self.ranks[name] >= round(share * self.ranks[name].numel())

    @torch.inference_mode()
    def accuracy(self, shares: dict[str, float]) -> Accuracy:
        """Of the network with each layer pruned; what comes before the first layer that changed is not computed again."""
        changed = [name for name in self.layers if shares[name] != self._now[name]]
        if changed or self.correct is None:
            names = [name for name, _ in self.steps]
            first = names.index(changed[0]) if changed and self.correct is not None else 0
            x = self._inputs[names[first]]
            for name, module in self.steps[first:]:
                if name in self.layers:
                    self._inputs[name] = x
                    weight = torch.where(self.mask(name, shares[name]), self.weights[name], 0.0)
                    if weight.dim() == 4:  # with the channels of a pixel side by side, what follows is several times as fast
                        weight = weight.to(memory_format=torch.channels_last)
                    x = torch.func.functional_call(module, {"weight": weight}, x)
                elif isinstance(module, nn.ReLU) and not any(x is kept for kept in self._inputs.values()):
                    x = x.relu_()  # in place: nothing else reads it, and fresh memory takes longer than the sign
                else:
                    x = module(x)
            self._now, self.correct = dict(shares), x.argmax(1) == self.split.labels
        return Accuracy(self.correct)

    def nbytes(self, shares: dict[str, float]) -> dict[str, int]:
        """Bytes of the network by format."""
        for key in shares.items():
            if key not in self._bytes:
                weight = torch.where(self.mask(*key), self.weights[key[0]], 0.0)
                self._bytes[key] = {format: sparse.nbytes(weight, format, GAP_BITS) for format in sparse.FORMATS}
        return {format: self.biases + sum(self._bytes[key][format] for key in shares.items()) for format in sparse.FORMATS}


def _ranks(weight: torch.Tensor) -> torch.Tensor:
    order = torch.argsort(weight.abs().flatten(), stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view_as(weight)


@widgets.one_thread()
def cut(model: nn.Sequential, split: data.Split, shares: Sequence[float] | None = None) -> widgets.Live:
    """Prune each layer of a chain of modules by a slider of its own, and see what is left of its accuracy.

    split: the images to try it on, a few hundred; shares: where the sliders start, one a layer. Raises ValueError if there are not as
    many as layers.
    """
    net = Pruned(model, split)
    shares = [0.5] * len(net.layers) if shares is None else list(shares)
    if len(shares) != len(net.layers):
        raise ValueError(f"there are {len(shares)} shares for {len(net.layers)} layers: they must be as many.")
    controls = {name: ipywidgets.IntSlider(round(100 * share), 0, 99, description=f"{name}, % removed")
                for name, share in zip(net.layers, shares)}
    dense = net.accuracy(dict.fromkeys(net.layers, 0.0))
    fig, (ax, gauge, bars_ax) = widgets.figure(9.4, 3.5, ncols=3, width_ratios=(1.7, 0.35, 1.5))
    edges = np.linspace(-1, 1, BINS + 1)
    whole = ax.stairs(np.ones(BINS), edges, fill=True, color="#CFCFCF", label="kept")
    gone = ax.stairs(np.ones(BINS), edges, fill=True, color=plot.COLORS["error"], label="removed")
    ax.set(xlabel="weight", ylabel="count")
    ax.xaxis.set_major_locator(plot.plt.MaxNLocator(5))
    ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda count, _: f"{count:,.0f}"))
    ax.legend(loc="upper right")
    filled = gauge.bar([0], [0], width=0.7, color=plot.COLORS["accent"])[0]
    interval, = gauge.plot([0, 0], [0, 0], color="#333333", linewidth=1.6)
    gauge.axhline(100 * dense.value, color=plot.COLORS["float"], linestyle=plot.LINESTYLES["float"], linewidth=1.4)
    gauge.set(xticks=[], xlim=(-0.6, 0.6), ylim=(0, 100), ylabel="accuracy (%), dashed: dense")
    names = [*sparse.FORMATS[:-1], f"relative, {GAP_BITS} bits"]
    bars = bars_ax.barh(names, [1] * len(names), color=plot.COLORS["muted"], height=0.6)
    notes = [bars_ax.text(0, bar.get_y() + 0.3, "", va="center", fontsize=11) for bar in bars]
    most = net.nbytes(dict.fromkeys(net.layers, 0.0))["dense"] / plot.KB
    bars_ax.set(xlabel="network (KB)", xlim=(0, 2.1 * most))
    bars_ax.xaxis.set_major_locator(plot.plt.MaxNLocator(4))
    bars_ax.invert_yaxis()
    bars_ax.grid(axis="y", visible=False)
    last, drawn, largest = dict(zip(net.layers, shares)), [], max(net.layers, key=lambda name: net.weights[name].numel())

    def update(**percent: int) -> str:
        now = {name: value / 100 for name, value in percent.items()}
        moved = next((name for name in now if now[name] != last[name]), drawn[0] if drawn else largest)
        last.update(now)
        weight, mask = net.weights[moved].numpy().ravel(), net.mask(moved, now[moved]).numpy().ravel()
        reach = float(np.abs(weight).max())
        edges = np.linspace(-reach, reach, BINS + 1)
        counts = np.histogram(weight, edges)[0]
        whole.set_data(counts, edges)
        gone.set_data(np.histogram(weight[~mask], edges)[0], edges)
        if drawn != [moved]:  # axes that stay as they are need not be drawn again
            drawn[:] = [moved]
            ax.set(xlim=(-reach, reach), ylim=(0, 1.25 * counts.max()))
            ax.set_title(f"{moved}, {len(weight):,} weights", fontsize=12, y=1)
        result, sizes = net.accuracy(now), net.nbytes(now)
        filled.set_height(100 * result.value)
        interval.set_ydata([100 * result.low, 100 * result.high])
        for bar, note, size in zip(bars, notes, sizes.values()):
            bar.set_width(size / plot.KB)
            note.set_text(f" {size / plot.KB:,.0f} KB")
            note.set_x(size / plot.KB)
        removed = 1 - sum(int(net.mask(n, s).sum()) for n, s in now.items()) / sum(w.numel() for w in net.weights.values())
        best = min(sizes, key=sizes.get)
        return (f"<b>{100 * removed:.1f} %</b> of all weights removed: <b>{result}</b> of {result.n} images right "
                f"(dense: {100 * dense.value:.1f} %). {best.capitalize()} is the smallest format, "
                f"{sizes['dense'] / sizes[best]:.1f} times smaller than dense float32.")

    return widgets.Live(fig, update, **controls)
