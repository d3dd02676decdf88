"""Notebook 06: a table of a record's rows, and a widget: where to clip an activation, and what the network says to it.

The widget. Left: the values behind a ReLU, the levels of the codes, and the part that saturates. Right: the mean squared error against
the threshold, split into rounding and clipping, with the thresholds that four rules choose. The network runs with only this activation
quantized.
"""

import copy
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
import torch
from torch import nn

from qlab.lab import plot, widgets
from qlab.lab.significance import mcnemar
from qlab.quant import ranges

BITS = (2, 3, 4, 6, 8)
PERCENT = np.arange(1, 101)                                                                 # thresholds, of the largest value
SAMPLE = 1 << 15
RULES = {"minmax": "v", "percentile": "D", "mse": "o", "entropy": "X"}                      # with the marker of each


def table(title: str, rows: Mapping[str, dict], against: str) -> str:
    """A line a row: bytes, accuracy with its interval, and how many points above the row named against, from the paired test.

    rows: name -> {"nbytes", "result"}, as runs.load gives them. "noise" stands where the test finds no difference (p >= 0.05).

    >>> from qlab.lab.significance import Accuracy
    >>> right = torch.arange(1000) % 10 > 0
    >>> rows = {"float": {"nbytes": 4000, "result": Accuracy(right)}, "int8": {"nbytes": 1000, "result": Accuracy(right.roll(1))}}
    >>> print(table("a net", rows, "float"))
    a net                    bytes  accuracy [95 %]      points above float [95 %]
    float                    4,000  90.0 % [88.0, 91.7]
    int8                     1,000  90.0 % [88.0, 91.7]  +0.00 [-2.78, +2.78] noise
    """
    lines = [f"{title:21}{'bytes':>9}  accuracy [95 %]      points above {against} [95 %]"]
    for name, row in rows.items():
        pair = mcnemar(rows[against]["result"], row["result"])
        low, mid, high = (100 * share for share in (pair.low, pair.difference, pair.high))
        above = "" if name == against else f"{mid:+.2f} [{low:+.2f}, {high:+.2f}]{'' if pair.significant else ' noise'}"
        lines.append(f"{name:21}{row['nbytes']:9,}  {row['result']!s:19}  {above}".rstrip())
    return "\n".join(lines)


class Activation:
    """What one ReLU gives on calibration images, and the rest of the network behind it for a few other images."""

    def __init__(self, seen: torch.Tensor, fed: torch.Tensor, rest: nn.Module):
        """seen: values on calibration images; fed: what rest, the layers after it, gets to read for the images to be judged."""
        self.fed, self.rest, self.codes, self.top, self.known = fed, rest, torch.empty_like(fed), seen.max().item(), {}
        picked = torch.randint(seen.numel(), (SAMPLE - 1,), generator=torch.Generator().manual_seed(0))
        self.values = torch.cat([seen.flatten()[picked], seen.max()[None]]).float()
        self.histogram = np.histogram(self.values[self.values > 0].numpy(), 120, (0, self.top))
        self.curves = {bits: np.array([self.errors(bits, p) for p in PERCENT]) for bits in BITS}        # (100, 2): rounding, clipping
        self.rules = {bits: self._rules(bits) for bits in BITS}                             # now, so that no slider waits

    def errors(self, bits: int, percent: int) -> tuple[float, float]:
        """Mean squared error of values below the threshold, which are rounded, and of those above, which are clipped."""
        threshold = self.top * percent / 100
        x_hat = decoded(self.values, bits, threshold)
        squared, outside = (x_hat - self.values).square_(), self.values > threshold
        clipping = squared[outside].double().sum().item()
        return (squared.double().sum().item() - clipping) / len(squared), clipping / len(squared)

    def _rules(self, bits: int) -> dict[str, float]:
        chosen = {"minmax": ranges.minmax(self.values), "percentile": ranges.percentile(self.values, 99.9),
                  "mse": ranges.mse(self.values, bits), "entropy": ranges.entropy(self.values, bits)}
        return {rule: range_.x_max.item() for rule, range_ in chosen.items()}

    @torch.inference_mode()
    def answers(self, bits: int, percent: int) -> torch.Tensor:
        """The class that the network gives each image (n,), with this activation on its levels."""
        if (bits, percent) not in self.known:
            self.known[bits, percent] = self.rest(decoded(self.fed, bits, self.top * percent / 100, out=self.codes)).argmax(1)
        return self.known[bits, percent]


def decoded(x: torch.Tensor, bits: int, threshold: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """x >= 0 on 2**bits levels from 0 to the threshold.

    >>> decoded(torch.tensor([0.0, 0.4, 0.8, 5.0]), 2, 1.5)
    tensor([0.0000, 0.5000, 1.0000, 1.5000])
    """
    step = threshold / (2**bits - 1)
    return torch.mul(x, 1 / step, out=out).round_().clamp_(max=2**bits - 1).mul_(step)


@widgets.one_thread()
@torch.inference_mode()
def clipping(model: nn.Sequential, calibration: torch.Tensor, images: torch.Tensor, labels: torch.Tensor,
             layers: Sequence[str] = ("relu1", "relu2", "relu3"), bits: int = 4) -> widgets.Live:
    """Clip the activation of any of the ReLUs named in layers, at any threshold, with 2 to 8 bits.

    model: an nn.Sequential; calibration, images: (n, ...) as it reads them, labels (n,) of images. Raises ValueError for a layer that is
    no ReLU of the model.
    """
    wrong = [name for name in layers if not isinstance(dict(model.named_children()).get(name), nn.ReLU)]
    if wrong or not layers:
        raise ValueError(f"layers is {', '.join(layers) or 'empty'}, and must name ReLUs of the model.")
    # With the channels of a pixel side by side, convolutions are twice as fast.
    images, order = images.contiguous(memory_format=torch.channels_last), [name for name, _ in model.named_children()]
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    activations = {}
    for name in layers:
        after = order.index(name) + 1
        # Pooling by the maximum picks one of the values, before or after their rounding: so it can be done first, once.
        pooled = after + (after < len(order) and isinstance(model[after], nn.MaxPool2d))
        activations[name] = Activation(model[:after](calibration), model[:pooled](images), model[pooled:])
    whole = model(images).argmax(1)

    controls = {
        "layer": ipywidgets.Dropdown(options=list(layers), layout={"width": "160px"}),
        "bits": ipywidgets.SelectionSlider(options=BITS, value=bits),
        "percent": ipywidgets.IntSlider(100, 1, 100, description="threshold, % of the largest value"),
    }
    fig, (ax, curve_ax) = widgets.figure(8.8, 3.7, ncols=2, width_ratios=(1.25, 1))
    bars = ax.stairs(*next(iter(activations.values())).histogram, fill=True, color="#CFCFCF", label="values above 0")
    lost, = ax.fill([0, 1, 1, 0], [0, 0, 1, 1], transform=ax.get_xaxis_transform(), color=plot.COLORS["error"], alpha=0.18, linewidth=0,
                    label="saturates")
    levels, = ax.plot([], [], color=plot.COLORS["affine"], linewidth=1.1, transform=ax.get_xaxis_transform(), label="levels")
    ax.set(xlabel="activation", ylabel="count (log scale)", yscale="log")
    ax.yaxis.set_minor_locator(plot.NullLocator())
    ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda count, _: f"{count:,g}"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=10, handlelength=1.4, columnspacing=1.2)
    rounding, = curve_ax.plot([], [], color=plot.COLORS["affine"], linestyle=plot.LINESTYLES["affine"], label="rounding")
    clipped, = curve_ax.plot([], [], color=plot.COLORS["error"], linestyle=plot.LINESTYLES["kmeans"], label="clipping")
    total, = curve_ax.plot([], [], color=plot.COLORS["float"], linewidth=1.2, label="sum")
    marks = {rule: curve_ax.plot([], [], color=plot.COLORS["float"], marker=marker, markerfacecolor="white", markersize=8, linestyle="",
                                 label=rule)[0] for rule, marker in RULES.items()}
    here, = curve_ax.plot([], [], color=plot.COLORS["accent"], marker="o", markersize=6, linestyle="")
    curve_ax.set(xlabel="threshold, % of the largest value", ylabel="mean squared error", yscale="log", xlim=(-2, 104))
    curve_ax.yaxis.set_minor_locator(plot.NullLocator())
    curve_ax.yaxis.set_major_formatter(plot.powers())
    curve_ax.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=4, fontsize=9, handlelength=1.6, handletextpad=0.3,
                    columnspacing=0.8)
    shown = []

    def update(layer: str, bits: int, percent: int) -> str:
        activation = activations[layer]
        curve, threshold, top = activation.curves[bits], activation.top * percent / 100, 2**bits - 1
        if shown[:1] != [layer]:  # axes that stay as they are need not be drawn again
            counts, edges = activation.histogram
            bars.set_data(counts, edges)
            ax.set(xlim=(-0.02 * edges[-1], 1.02 * edges[-1]), ylim=(0.7, 2 * counts.max()))
        if shown != [layer, bits]:
            shown[:] = layer, bits
            sums = curve.sum(1)
            for line, values in ((rounding, curve[:, 0]), (clipped, curve[:, 1]), (total, sums)):
                line.set_data(PERCENT, values)
            for rule, x_max in activation.rules[bits].items():
                at = 100 * x_max / activation.top
                marks[rule].set_data([at], [np.interp(at, PERCENT, sums)])
            curve_ax.set_ylim(0.03 * sums.min(), 3 * sums.max())
        lost.set_xy([(threshold, 0), (activation.top, 0), (activation.top, 1), (threshold, 1)])
        levels.set_data(*_upright(np.arange(top + 1) * threshold / top, 0.82 if bits < 6 else 0.07))
        here.set_data([percent], [curve[percent - 1].sum()])
        outside = (activation.values > threshold).float().mean().item()
        answers = activation.answers(bits, percent)
        right, before = int((answers == labels).sum()), int((whole == labels).sum())
        return (f"{layer} clipped at {threshold:.2f} of {activation.top:.2f}: {top + 1} levels {threshold / top:.3g} apart, "
                f"<b>{100 * outside:.2g} %</b> of the values saturate, error {curve[percent - 1].sum():.2g} "
                f"({100 * curve[percent - 1, 1] / curve[percent - 1].sum():.0f} % of it clipping). With only this activation quantized "
                f"<b>{right}</b> of {len(labels)} images are right (float {before}), {int((answers != whole).sum())} answers change.")

    return widgets.Live(fig, update, **controls)


def _upright(at: np.ndarray, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Upright lines as one polyline: (x, x, nan) and (0, height, nan) for each."""
    return np.column_stack([at, at, np.full(len(at), np.nan)]).ravel(), np.tile([0, height, np.nan], len(at))
