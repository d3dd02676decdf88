"""Notebook 08's widget: a real network's gradients on the range of a 16-bit float, moved by the loss scale.

Left: the histogram of log2 |S g|, coloured by what the half float makes of each number. Right: the share that is lost, for every S.
"""

import copy
from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.lab import plot, widgets
from qlab.nets.half import shares

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SCALES = (-20, 32)                  # log2 S; below 0 it stands for a small weight in front of the loss
VIEW = (-58, 34)                    # log2 |S g|
FATES = {"becomes 0": plot.COLORS["error"], "subnormal": plot.COLORS["accent"], "normal": plot.COLORS["muted"],
         "infinite": plot.COLORS["error"]}


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The float32 gradients of the mean cross-entropy in each Linear and Conv2d: "fc1, outputs" (n, ...) and "fc1, weights".

    The model given is not changed. Outputs come first, in the order of registration.
    """
    model = copy.deepcopy(model).requires_grad_(True)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    outputs = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, args, output, name=name: outputs.update({name: output}))
    value = cross_entropy(model(x), y)
    names = list(outputs)
    found = torch.autograd.grad(value, [*outputs.values(), *(layers[name].weight for name in names)])
    kinds = [f"{name}, outputs" for name in names] + [f"{name}, weights" for name in names]
    return dict(zip(kinds, found))


def fates(half: torch.dtype) -> dict[str, tuple[float, float]]:
    """What becomes of a magnitude, and between which log2 magnitudes: a half float rounds to 0 up to half of its smallest number.

    >>> fates(torch.float16)
    {'becomes 0': (-inf, -25.0), 'subnormal': (-25.0, -14.0), 'normal': (-14.0, 16.0), 'infinite': (16.0, inf)}
    """
    f = torch.finfo(half)
    normal, largest = float(np.log2(f.smallest_normal)), float(np.ceil(np.log2(f.max)))
    zero = normal + float(np.log2(f.eps)) - 1
    return {"becomes 0": (-np.inf, zero), "subnormal": (zero, normal), "normal": (normal, largest), "infinite": (largest, np.inf)}


class Tensor:
    """One tensor's log2 magnitudes: the histogram in steps of a half, which a power of two only shifts, and sorted for the curve."""

    def __init__(self, gradient: torch.Tensor):
        self.values = gradient[gradient != 0].detach().double()
        self.logs = np.sort(np.log2(np.abs(self.values.numpy())))
        self.zeros = 1 - len(self.logs) / gradient.numel()
        self.counts, self.edges = np.histogram(self.logs, np.arange(-90, 20.5, 0.5))

    def lost(self, half: torch.dtype, log_scales: np.ndarray) -> np.ndarray:
        """The share, in percent, that is 0 or infinite at each scale."""
        ranges = fates(half)
        low = self.logs.searchsorted(ranges["subnormal"][0] - log_scales, "right")
        high = len(self.logs) - self.logs.searchsorted(ranges["infinite"][0] - log_scales, "left")
        return 100 * (low + high) / len(self.logs)


def drag_loss_scale(tensors: Mapping[str, torch.Tensor], log_scale: int = 0) -> widgets.Live:
    """The named gradients on the range of float16 or bfloat16; a slider sets log2 of the loss scale.

    Raises ValueError for no tensors, one that is all zeros, or one that is not finite.
    """
    if not tensors:
        raise ValueError("tensors is empty, and must name at least one gradient.")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or not tensor.any():
            raise ValueError(f"{name} must be finite, and must hold a number other than 0.")
    data, grid = {name: Tensor(tensor) for name, tensor in tensors.items()}, np.arange(SCALES[0], SCALES[1] + 1)
    controls = {
        "log2 of the scale S": ipywidgets.IntSlider(log_scale, *SCALES),
        "half": ipywidgets.ToggleButtons(options=list(HALVES)),
        "gradient": ipywidgets.Dropdown(options=list(data), layout={"width": "230px"}),
    }
    fig, (ax, curve_ax) = widgets.figure(8.8, 3.7, ncols=2, width_ratios=(2.1, 1))
    bars = {fate: ax.stairs([0], [0, 1], fill=True, color=color) for fate, color in FATES.items()}
    lines = [ax.axvline(0, color=plot.COLORS["float"], linewidth=1.1, linestyle=(0, (4, 3))) for _ in range(3)]
    words = {fate: ax.text(0, 1.02, fate, transform=ax.get_xaxis_transform(), ha="center", size=9.5) for fate in FATES}
    ax.set(xlim=VIEW, xlabel="magnitude of S times the gradient", ylabel="count")
    ax.yaxis.set_label_coords(-0.14, 0.5)  # stays where it is when the counts have more digits
    ax.xaxis.set_major_locator(plot.plt.MultipleLocator(10))
    ax.xaxis.set_major_formatter(plot.FuncFormatter(lambda log, _: plot.power(2, round(log))))
    ax.yaxis.set_major_formatter(plot.FuncFormatter(lambda count, _: f"{count:,.0f}"))
    ax.yaxis.set_major_locator(plot.plt.MaxNLocator(5))
    curve, = curve_ax.plot([], [], color=plot.COLORS["error"])
    here, = curve_ax.plot([], [], color=plot.COLORS["float"], marker="o", markersize=9, linestyle="", clip_on=False)
    curve_ax.set(xlim=(SCALES[0] - 1, SCALES[1] + 1), ylim=(-4, 104), xlabel="loss scale S", ylabel="lost (%)")
    curve_ax.xaxis.set_major_locator(plot.plt.MultipleLocator(10))
    curve_ax.xaxis.set_major_formatter(plot.FuncFormatter(lambda log, _: plot.power(2, round(log))))
    shown = []

    def frame(tensor: Tensor, half: torch.dtype) -> None:
        """What only another tensor or format changes: axes that stay as they are need not be drawn again."""
        ax.set_ylim(0, 1.06 * tensor.counts.max())
        curve.set_data(grid, tensor.lost(half, grid))
        for line, (low, _) in zip(lines, list(fates(half).values())[1:]):
            line.set_xdata([low, low])
            line.set_visible(VIEW[0] < low < VIEW[1])
        for fate, (low, high) in fates(half).items():
            low, high = max(low, VIEW[0]), min(high, VIEW[1])
            words[fate].set(x=(low + high) / 2, visible=low < high)

    def update(**values) -> str:
        name, half = values["gradient"], HALVES[values["half"]]
        log_scale, tensor = values["log2 of the scale S"], data[values["gradient"]]
        if shown != [name, half]:
            shown[:] = name, half
            frame(tensor, half)
        edges = tensor.edges + log_scale
        for fate, (low, high) in fates(half).items():
            inside = (edges[:-1] >= low) & (edges[:-1] < high)
            bars[fate].set_data(np.where(inside, tensor.counts, 0), edges)
        s = shares(tensor.values, half, 2.0**log_scale)
        here.set_data([log_scale], [100 * (s.underflow + s.overflow)])
        zeros = f" ({100 * tensor.zeros:.0f} % of all are exactly 0 in float32 too, and are not counted.)" if tensor.zeros > 0.005 else ""
        return (f"{name}, S = 2^{log_scale}, {values['half']}: <b>{100 * s.underflow:.2f} % become 0</b>, {100 * s.subnormal:.1f} % "
                f"subnormal, {100 * s.normal:.1f} % normal, <b>{100 * s.overflow:.2f} % infinite</b>.{zeros}")

    return widgets.Live(fig, update, **controls)
