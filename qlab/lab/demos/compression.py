"""Notebook 11's widget: LeNet-300-100 pruned and shared at once, without any training, and where the bytes are after each step.

Left: the bytes of the file after pruning, after sharing and after Huffman coding, part by part; a dotted line is the promise, 35 times
smaller than the float network. Right: the accuracy of what the file holds, on a few hundred training images, beside the float network's.
"""

from collections.abc import Mapping

import ipywidgets
import torch
from torch import nn

from qlab.lab import plot, widgets
from qlab.lab.measure import size_bytes
from qlab.nets import compress

DENSITIES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12)
STEPS = {"pruned": "pruned", "shared": "and shared", "huffman": "and Huffman"}
PARTS = {  # part: colour; side by side they also differ in lightness
    "values": plot.COLORS["linear"], "codes": plot.COLORS["kmeans"], "gaps": plot.COLORS["log"],
    "codebook": plot.COLORS["error"], "tables": plot.COLORS["accent"], "biases": plot.COLORS["muted"],
}
TIMES, END = 35, 0.17  # the promise; where the axis ends, as a share of the float network's bytes: it stays, so that bars can be compared


class Source:
    """A network, its weights' magnitudes sorted once: any density's masks are then one comparison."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        self.ordered = torch.cat([m.weight.detach().abs().flatten() for m in self.layers.values()]).sort(descending=True).values

    def masks(self, density: float) -> dict[str, torch.Tensor]:
        """One threshold for the whole network; a weight that is zero already stays removed."""
        threshold = self.ordered[max(1, round(density * len(self.ordered))) - 1].clamp(min=1e-30)
        return {name: m.weight.detach().abs() >= threshold for name, m in self.layers.items()}

    def logits(self, shared: Mapping[str, compress.Shared], images: torch.Tensor) -> torch.Tensor:
        """What the network says with the shared weights in place of its own."""
        with torch.no_grad():
            return torch.func.functional_call(self.model, {f"{name}.weight": layer.weight() for name, layer in shared.items()}, (images,))


def dial(networks: Mapping[str, nn.Module], images: torch.Tensor, labels: torch.Tensor, density: float = 0.08,
         bits: int = 5) -> widgets.Live:
    """Density and bits of any of the named networks; the first is the float network with which the others are compared.

    Raises ValueError for no networks, no images, or a density that is none of DENSITIES.
    """
    if not networks or not len(images):
        raise ValueError("networks and images must hold at least one each.")
    if density not in DENSITIES:
        raise ValueError(f"density is {density}, and must be one of {', '.join(f'{d:g}' for d in DENSITIES)}.")
    sources = {name: Source(model) for name, model in networks.items()}
    first = next(iter(networks.values()))
    whole = size_bytes(first)
    with torch.no_grad():
        base = 100 * (first(images).argmax(1) == labels).double().mean().item()
    controls = {
        "network": ipywidgets.Dropdown(options=list(networks), layout={"width": "330px"}),
        "density": ipywidgets.SelectionSlider(options=[(f"{100 * d:g} %", d) for d in DENSITIES], value=density),
        "bits": ipywidgets.IntSlider(bits, 1, 8),
    }
    fig, (ax, right) = widgets.figure(8.8, 3.3, ncols=2, width_ratios=(3.4, 1))
    bars = {part: ax.barh(range(3), [0, 0, 0], height=0.62, color=color, label=part) for part, color in PARTS.items()}
    totals = [ax.text(0, i, "", va="center", fontsize=11, bbox={"color": "white", "pad": 1}) for i in range(3)]
    ax.axvline(whole / TIMES / plot.KB, color=plot.COLORS["float"], linewidth=1.4, linestyle=":", zorder=0)
    ax.text(whole / TIMES / plot.KB, -0.46, f" {TIMES} times smaller", fontsize=9.5, va="bottom")
    ax.set(yticks=range(3), yticklabels=STEPS.values(), xlabel="size (KB, 1 KB = 1000 bytes)", xlim=(0, END * whole / plot.KB),
           ylim=(2.45, -0.75))
    ax.grid(axis="y", visible=False)
    fig.legend(bars.values(), bars, ncols=6, fontsize=9.5, loc="outside upper left", handlelength=1.0, handletextpad=0.4, columnspacing=1.0)
    column, = right.bar([0], [0], width=0.6, color=plot.COLORS["kmeans"])
    right.axhline(base, color=plot.COLORS["float"], linewidth=1.4, linestyle=plot.LINESTYLES["float"])
    right.set(ylim=(0, 100), xlim=(-0.8, 0.8), xticks=[], ylabel=f"accuracy (%),\n{len(images)} training images")

    def update(network: str, density: float, bits: int) -> str:
        source = sources[network]
        masks = source.masks(density)
        shared = compress.share(source.model, masks, bits)
        stages = compress.stages(source.model, shared)
        left = [0.0] * 3
        for part, group in bars.items():
            for i, (bar, stage) in enumerate(zip(group, stages.values())):
                size = stage.get(part, 0) / plot.KB
                bar.set_x(left[i])
                bar.set_width(size)
                left[i] += size
        for text, total in zip(totals, left):
            text.set_text(f"{total:.1f}")
            text.set_x(total + 0.015 * END * whole / plot.KB)
        accuracy = 100 * (source.logits(shared, images).argmax(1) == labels).double().mean().item()
        column.set_height(accuracy)
        kept = ", ".join(f"{name} {100 * mask.double().mean():.1f} %" for name, mask in masks.items())
        return (f"File {left[2]:.1f} KB, <b>{whole / plot.KB / left[2]:.0f} times smaller</b>; accuracy <b>{accuracy:.1f} %</b>, "
                f"float network {base:.1f} %. Left of {kept}.")

    return widgets.Live(fig, update, **controls)
