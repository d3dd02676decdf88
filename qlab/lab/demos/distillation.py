"""Notebook 10's widget: what a teacher says about an image, as the temperature rises.

Left: the image. Right: the soft labels of the teacher, and of a student below them where one is given; the label itself is a dashed bar.
"""

import math
from collections.abc import Sequence

import ipywidgets
import numpy as np
import torch

from qlab.lab import plot, widgets
from qlab.lab.data import CLASSES
from qlab.nets.soft_loss import soft_labels

TEMPERATURES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)


def entropy_bits(p: torch.Tensor) -> float:
    """-sum p log2 p of one image's soft labels (classes,): 0 for a hard label, log2 of their number for equal shares.

    >>> entropy_bits(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    1.5
    """
    return torch.special.entr(p.double()).sum().item() / math.log(2)


def temperature(images: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, student: torch.Tensor | None = None,
                names: Sequence[str] = CLASSES, start: float = 1) -> widgets.Live:
    """Soft labels of any of the images at any temperature from a quarter to 100.

    images: (n, 1, h, w); labels: int64 (n,); teacher, student: logits (n, classes); start: the first temperature, one of TEMPERATURES.
    Raises ValueError where these do not fit each other.
    """
    shape = (len(images), len(names))
    for who, logits in (("teacher", teacher), ("student", student)):
        if logits is not None and tuple(logits.shape) != shape:
            raise ValueError(f"{who} has the shape {tuple(logits.shape)}, and must be {shape}: a logit for each image and class.")
    if len(images) == 0 or len(labels) != len(images):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels: they must be as many, and at least one.")
    controls = {
        "image": ipywidgets.Dropdown(options=[(f"{i + 1}, {names[y]}", i) for i, y in enumerate(labels.tolist())],
                                     layout={"width": "220px"}),
        "temperature": ipywidgets.SelectionSlider(options=[(f"{t:g}", t) for t in TEMPERATURES], value=start),
    }
    fig, (picture_ax, ax) = widgets.figure(8.2, 3.7, ncols=2, width_ratios=(1, 1.9))
    low, high = images.min().item(), images.max().item()
    picture = picture_ax.imshow(images[0, 0].numpy(), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    picture_ax.set(xticks=[], yticks=[])
    picture_ax.grid(False)
    for spine in picture_ax.spines.values():
        spine.set(visible=True, color="#CCCCCC")
    at, people = np.arange(len(names)), {"teacher": (teacher, plot.COLORS["float"])}
    if student is not None:
        people["student"] = student, plot.COLORS["accent"]
    height = 0.76 / len(people)
    hollow, = ax.barh([0], [1], 0.9, facecolor="none", edgecolor=plot.COLORS["muted"], linestyle=(0, (3, 2)), label="label")
    bars = {who: ax.barh(at + (i - (len(people) - 1) / 2) * height, np.zeros(len(names)), height, color=color, label=who)
            for i, (who, (_, color)) in enumerate(people.items())}
    ax.set(xlim=(0, 1.02), xlabel="share of the class", yticks=at, yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=10)

    def update(image: int, temperature: float) -> str:
        picture.set_data(images[image, 0].numpy())
        hollow.set_y(labels[image].item() - 0.45)
        shares = {who: soft_labels(logits[image].double(), temperature) for who, (logits, _) in people.items()}
        for who, p in shares.items():
            for bar, share in zip(bars[who], p.tolist()):
                bar.set_width(share)
        p = shares["teacher"]
        first, second = p.argsort(descending=True)[:2].tolist()
        return (f"T = {temperature:g}. The teacher: {names[first]} {100 * p[first]:.1f} %, second {names[second]} "
                f"<b>{100 * p[second]:.2g} %</b>; entropy <b>{entropy_bits(p):.2f}</b> of at most {math.log2(len(names)):.2f} bits.")

    return widgets.Live(fig, update, **controls)
