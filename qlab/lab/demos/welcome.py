"""Notebook 00: a trained network whose weights lose their bits under a slider, and a table of what the machine at hand can do."""

from dataclasses import dataclass

import ipywidgets
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from qlab.lab import plot
from qlab.lab.data import CLASSES, Split
from qlab.lab.measure import Accuracy, size_bytes
from qlab.lab.widgets import Live, one_thread
from qlab.nets.ptq import quantize_weights
from qlab.quant import linear

BITS = range(2, 9)
AXES = {"channel": 0, "tensor": None}  # one scale per ...
FLOAT = ("float", 32)


@dataclass(frozen=True)
class Answer:
    """What one network says about a split: probabilities (n, 10), which of them are right, and the network's size in bytes."""

    probabilities: torch.Tensor
    accuracy: Accuracy
    nbytes: int

    @property
    def classes(self) -> torch.Tensor:
        """The class with the largest probability, int64 (n,)."""
        return self.probabilities.argmax(1)


def answers(model: nn.Module, split: Split) -> dict[tuple[str, int], Answer]:
    """(per, bits) -> Answer of the network with linearly (symmetric) quantized weights; ("float", 32) -> its answer as it is.

    model: without batch norm (fold it first). per: one scale per "channel" or "tensor"; bits: 2 to 8.
    """
    found = {FLOAT: _answer(model, size_bytes(model), split)}
    for per, axis in AXES.items():
        for bits in BITS:
            q = quantize_weights(model, lambda w, bits=bits, axis=axis: linear.quantize(w, bits, "symmetric", axis=axis))
            found[per, bits] = _answer(q.model, q.nbytes, split)
    return found


@torch.inference_mode()
def _answer(model: nn.Module, nbytes: int, split: Split) -> Answer:
    batches = split.images.contiguous(memory_format=torch.channels_last).split(100)  # few enough to stay in the processor's cache
    probabilities = torch.cat([model(x).softmax(1) for x in batches])
    return Answer(probabilities, Accuracy(probabilities.argmax(1) == split.labels), nbytes)


def changing(found: dict[tuple[str, int], Answer], labels: torch.Tensor, count: int = 4) -> list[int]:
    """Images to watch, no class twice: the first count of the sample that the network, with one scale per channel, gets right down to
    4 bits and wrong at 3, then the first count that it gets right down to 3 bits and wrong at 2.
    """
    chosen: list[int] = []
    for falls_at in (3, 2):
        right = torch.stack([found[key].classes == labels for key in [FLOAT, *(("channel", b) for b in BITS if b > falls_at)]]).all(0)
        taken = {int(labels[i]) for i in chosen}
        group: list[int] = []
        for i in (right & (found["channel", falls_at].classes != labels)).nonzero().flatten().tolist():
            if len(group) < count and int(labels[i]) not in taken:
                group.append(i)
                taken.add(int(labels[i]))
        chosen += group
    return chosen


@one_thread()
def fewer_bits(model: nn.Module, split: Split) -> Live:
    """Take bits from a network's weights, 8 to 2, and see its accuracy, its size, and its answers to eight images."""
    # Every setting's answers, once: 15 networks on the whole sample take a few seconds, a step of the slider then only draws.
    found = answers(model, split)
    picked = changing(found, split.labels)
    fig = Figure(figsize=(8.4, 4.4), layout="constrained")
    top, bottom = fig.add_gridspec(2, 1, height_ratios=(1, 1.5))
    places, (left, right) = top.subgridspec(1, len(picked)), bottom.subgridspec(1, 2, width_ratios=(5, 3), wspace=0.06)
    tiles = [_tile(fig.add_subplot(place), split.images[i], int(split.labels[i])) for place, i in zip(places, picked)]
    for y, word in ((-2.5, "it is"), (33.6, "it says")):
        fig.axes[0].text(-4, y, word, ha="right", fontsize=10, fontstyle="italic", color=plot.INK["muted"])
    show_accuracy, show_size = _accuracy_axes(fig.add_subplot(left), found), _size_axes(fig.add_subplot(right), found)

    def update(bits: int, per: str) -> str:
        now, before = found[per, bits], found[FLOAT]
        for tile, i in zip(tiles, picked):
            tile(int(now.classes[i]), float(now.probabilities[i].max()))
        show_accuracy(bits, per)
        show_size(now)
        a = now.accuracy
        return (f"{bits} bits a weight, one scale per {per}: <b>{100 * a.value:.1f} %</b> of {a.n} test images right (95 % interval "
                f"{100 * a.low:.1f} to {100 * a.high:.1f}; in float32 {100 * before.accuracy.value:.1f} %). <b>{now.nbytes:,} bytes</b>, "
                f"{before.nbytes / now.nbytes:.1f} times fewer.")

    return Live(fig, update,
                bits=ipywidgets.IntSlider(3, min(BITS), max(BITS), description="bits a weight"),
                per=ipywidgets.ToggleButtons(options=list(AXES), description="one scale per", style={"button_width": "6em"}))


def _still(ax, x: float, y: float, text: str, **style) -> None:
    """Text at a place of ax that belongs to the figure, and so is drawn once and kept, not drawn again at each step."""
    ax.figure.text(x, y, text, transform=ax.transData, **style)


def _tile(ax, picture: torch.Tensor, label: int):
    """One image, its class above it. Returns show(answer, probability), which writes below it; wrong: bold, framed, crossed."""
    plot.images(picture[None], [CLASSES[label]], [ax])
    ax.title.set_fontsize(10)
    ax.set_axis_off()
    wrong_color = plot.COLORS["error"]
    frame = ax.add_patch(Rectangle((-0.5, -0.5), 28, 28, fill=False, clip_on=False))
    cross, = ax.plot([24.2], [3.2], marker="X", markersize=12, color=wrong_color, markeredgecolor="white", linestyle="")
    text = ax.text(13.5, 39, "", ha="center", va="baseline", fontsize=10, linespacing=1.25)

    def show(answer: int, probability: float) -> None:
        wrong = answer != label
        frame.set(edgecolor=wrong_color if wrong else "#CCCCCC", linewidth=3.5 if wrong else 1)
        cross.set_visible(wrong)
        text.set(text=f"{CLASSES[answer]}\n{100 * probability:.0f} %", color=plot.INK["error"] if wrong else "black",
                 fontweight="bold" if wrong else "normal")
    return show


def _accuracy_axes(ax, found: dict[tuple[str, int], Answer]):
    curves, names = {}, {}
    for per, style, at in zip(AXES, plot.line_styles(["linear", "linear"]), ((3.0, 101), (3.75, 52))):
        accuracies = [100 * found[per, bits].accuracy.value for bits in BITS]
        curves[per], = ax.plot(BITS, accuracies, **style, markersize=6)
        names[per] = ax.text(*at, f"one scale per {per}", va="center", color=plot.INK["linear"], fontsize=10.5)
    accuracy = 100 * found[FLOAT].accuracy.value
    ax.axhline(accuracy, color=plot.COLORS["float"], linestyle=plot.LINESTYLES["float"], linewidth=1.4)
    _still(ax, 1.8, accuracy + 1.5, "float32", va="bottom", fontsize=11)
    ax.axhline(100 / len(CLASSES), color=plot.COLORS["muted"], linewidth=1.2, linestyle=(0, (1, 2)))
    _still(ax, 8.6, 100 / len(CLASSES) + 1.5, "guessing", va="bottom", ha="right", color=plot.INK["muted"], fontsize=11)
    ring, = ax.plot([], [], marker="o", markersize=17, markerfacecolor="none", markeredgecolor=plot.COLORS["accent"],
                    markeredgewidth=3, linestyle="")
    ax.set(xlabel="bits a weight", ylabel="test accuracy (%)", xticks=list(BITS), xlim=(1.7, 8.7), ylim=(0, 108))

    def show(bits: int, per: str) -> None:
        ring.set_data([bits], [100 * found[per, bits].accuracy.value])
        for name in AXES:
            curves[name].set_alpha(1 if name == per else 0.35)
            names[name].set_fontweight("bold" if name == per else "normal")
    return show


def _size_axes(ax, found: dict[tuple[str, int], Answer]):
    full = found[FLOAT].nbytes / plot.KB
    ax.barh([1], [full], color="white", edgecolor=plot.COLORS["float"], height=0.55, linewidth=1.4)
    _still(ax, 1.03 * full, 1, f"{full:,.0f} KB", va="center")
    bar, = ax.barh([0], [0], color=plot.COLORS["linear"], height=0.55)
    number = ax.text(0, 0, "", va="center")
    ax.set(xlabel="size of the network (KB)", yticks=[0, 1], yticklabels=["quantized", "float32"], xlim=(0, 1.4 * full), ylim=(-0.7, 1.7))
    ax.grid(False)

    def show(now: Answer) -> None:
        bar.set_width(now.nbytes / plot.KB)
        number.set(x=now.nbytes / plot.KB + 0.03 * full, text=f"{now.nbytes / plot.KB:,.0f} KB")
    return show


X86 = {
    "avx2": ("AVX2", "registers of 256 bits: 8 float32 at a time, or 32 int8, whose products take several instructions"),
    "avx512_vnni": ("AVX-512 VNNI", "one instruction multiplies 64 pairs of 8-bit integers and adds them up in 16 int32 sums"),
    "amx_int8": ("AMX INT8", "one instruction multiplies two int8 tiles of up to 16 x 64: 16,384 products, summed in int32"),
}
ARM = {
    "arm_dot": ("dot product (SDOT)", "one instruction multiplies 16 pairs of int8 and adds them up in 4 int32 sums"),
    "arm_i8mm": ("int8 matrix (I8MM)", "one instruction multiplies a 2 x 8 by an 8 x 2 int8 matrix: 32 products, summed in int32"),
}


def machine_table(can: dict) -> str:
    """Markdown: what qlab.lab.machine.abilities() found that matters to low precision, and one line of what each thing means.

    >>> print(machine_table({"usable_cores": 2, "architecture": "arm64", "arm_dot": True, "arm_i8mm": None, "cuda": None}).splitlines()[3])
    | dot product (SDOT) | yes | one instruction multiplies 16 pairs of int8 and adds them up in 4 int32 sums |
    """
    yes = {True: "yes", False: "no", None: "unknown"}
    instructions = ARM if can["architecture"].lower().startswith(("arm", "aarch64")) else X86
    gpu = f"{can['cuda']}, capability {can['cuda_capability']}" if can["cuda"] else "no"
    rows = [("cores for this notebook", can["usable_cores"], "a large product is divided among them, at every precision"),
            *((name, yes[can[key]], meaning) for key, (name, meaning) in instructions.items()),
            ("CUDA GPU", gpu, "its tensor cores multiply int8 from compute capability 7.2, 8-bit floats from 8.9")]
    return "\n".join(["| this machine | | what it means for low precision |", "| :-- | :-- | :-- |",
                      *(f"| {name} | {value} | {meaning} |" for name, value, meaning in rows)])
