"""Notebook 16: tables of a record's rows, two probes, and a widget: what a layer of a language model reads, smoothed or rotated.

The widget. Left: the magnitudes of what the layer reads, a ridge for each token, as a surface. Right: the largest magnitude of each
channel, of the activations and of the weights that multiply them. Below: what few levels then cost the layer's output.
"""

import re
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
import torch
from matplotlib.collections import PolyCollection

from qlab.lab import plot, widgets
from qlab.lab.experiments.language import scores_of
from qlab.lab.significance import Accuracy
from qlab.llm import activations, evaluate, rotate, scaling, smoothquant
from qlab.llm.evaluate import Estimate, Scores
from qlab.llm.model import GPT
from qlab.llm.tokenizer import Tokenizer

TOKENS = 16                                                                                 # ridges of the surface
SLANT, RISE = 3.0, 0.080                                                                    # of a ridge behind another: channels, heights
ANSWERS = ("as it is", "smoothed", "rotated")


def scores(record: Mapping, which: str, part: str, row: str) -> Scores:
    """What a model scored in a record of qlab.lab.experiments.language, block by block."""
    return scores_of(record, record[which][part][row])


def said(gap: Estimate) -> str:
    """A difference with its 95 % interval; "noise" where that holds 0.

    >>> said(Estimate(0.02, 0.005)), said(Estimate(0.001, 0.01))
    ('+0.0200 [+0.0102, +0.0298]', '+0.0010 [-0.0186, +0.0206] noise')
    """
    low, high = gap.interval
    return f"{gap.value:+.4f} [{low:+.4f}, {high:+.4f}]{' noise' if low <= 0 <= high else ''}"


def table(title: str, record: Mapping, which: str, part: str, rows: Mapping[str, str]) -> str:
    """A line a row, below the float model: bits a weight where they were counted, perplexity, bits a byte above float, paired by block.

    rows: what the line is called -> the row's name in the record.
    """
    base = scores(record, which, "weights", "float32")
    lines = [f"{title:24}{'bits':>5}  perplexity  bits a byte above float [95 %]", f"{'float':24}{'':5}{evaluate.perplexity(base):12,.2f}"]
    for name, row in rows.items():
        kept, bits = scores(record, which, part, row), record[which][part][row].get("bits_per_weight")
        above = said(evaluate.difference(kept, base))
        lines.append(f"{name:24}{'' if bits is None else format(bits, '.2f'):>5}{evaluate.perplexity(kept):12,.2f}  {above}")
    return "\n".join(lines) + "\n"


def outlier_table(title: str, record: Mapping, which: str, blocks: Sequence[int]) -> str:
    """What the layers of these blocks read: the loudest channel, its loudness, the tails, and where in the text the largest value was."""
    lines = [f"{title:29}channel  times the median  kurtosis  at token"]
    for name, row in record[which]["outliers"].items():
        if name.startswith("blocks") and int(name.split(".")[1]) in blocks:
            lines.append(f"{name:29}{row['channel']:7,}{row['ratio']:18,.1f}{row['kurtosis']:10,.0f}{row['position']:10}")
    return "\n".join(lines) + "\n"


NAMES = re.compile(r"(?:Mr\.|Mrs\.|Miss|Lady|Sir|Colonel)( [A-Z][a-z]+)\b")
BEFORE = 64  # tokens


def places(text: str, bpe: Tokenizer, count: int) -> list[tuple[list[int], list[int]]]:
    """`count` places, spread over the text, where a title stands before a name: the 64 tokens that end with the title, and the name's.

    Raises ValueError where there are fewer.
    """
    found = [place for place in NAMES.finditer(text) if place.start(1) >= 500]
    if len(found) < count:
        raise ValueError(f"the text has {len(found)} such places, and {count} are asked for.")
    picked = [found[i * len(found) // count].span(1) for i in range(count)]
    return [(bpe.encode(text[start - 500:start])[-BEFORE:], bpe.encode(text[start:end])) for start, end in picked]


@torch.inference_mode()
def known(model: GPT, asked: Sequence[tuple[list[int], list[int]]]) -> Accuracy:
    """At which places all of the name's tokens are the most likely ones."""
    longest = max(len(name) for _, name in asked)
    rows = torch.tensor([before + name + [0] * (longest - len(name)) for before, name in asked])
    best = torch.cat([model(part)[:, BEFORE - 1:].argmax(-1) for part in rows.split(50)])
    return Accuracy(torch.tensor([row[:len(name)].tolist() == name for row, (_, name) in zip(best, asked)]))


def repeated(tokens: Sequence[int], run: int = 6) -> float:
    """The share of runs of so many tokens that were there before.

    >>> repeated([1, 2, 1, 2, 1], run=2), repeated([1, 2, 3, 4, 5], run=2)
    (0.5, 0.0)
    """
    runs = [tuple(tokens[i:i + run]) for i in range(len(tokens) - run + 1)]
    return 1 - len(set(runs)) / len(runs)


class Layer:
    """What one norm hands on, and the weights that read it.

    Each is (x of calibration, x of another text, which is drawn and judged, weight): (tokens, channels) twice, (out, channels). plain: as
    the model has them; folded: after the norm's gain went into the weight, where rotation begins.
    """

    def __init__(self, plain: tuple[torch.Tensor, ...], folded: tuple[torch.Tensor, ...]):
        self.plain = plain
        self.turned = [t @ rotate.random_hadamard(t.shape[1]).to(t) for t in folded]
        self.exact = plain[1] @ plain[2].T
        self.known = {}

    def answered(self, answer: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """seen, shown and weight after one of ANSWERS: the same products."""
        seen, shown, weight = self.turned if answer == "rotated" else self.plain
        if answer == "smoothed":
            s = smoothquant.factors(seen.abs().amax(0), weight.abs().amax(0), alpha).float()
            return seen / s, shown / s, weight * s
        return seen, shown, weight

    def result(self, answer: str, alpha: float, bits: int) -> tuple:
        """|x| shown; max|x| of calibration and max|W|, by channel; the output's relative error with one scale for all tokens, and with one
        for each."""
        key = answer, alpha if answer == "smoothed" else None, bits
        if key not in self.known:
            seen, shown, weight = self.answered(answer, alpha)
            top = 2 ** (bits - 1) - 1
            few = _rounded(weight, weight.abs().amax(1, keepdim=True) / top, top)
            steps = seen.abs().max() / top, shown.abs().amax(1, keepdim=True) / top
            errors = [float((_rounded(shown, step, top) @ few.T - self.exact).norm() / self.exact.norm()) for step in steps]
            self.known[key] = shown[:TOKENS].abs().numpy(), seen.abs().amax(0).numpy(), weight.abs().amax(0).numpy(), errors
        return self.known[key]


def _rounded(x: torch.Tensor, step: torch.Tensor, top: int) -> torch.Tensor:
    return (x / step).round().clamp(-top, top) * step


@widgets.one_thread()
@torch.inference_mode()
def smoothing(model: GPT, tokens: torch.Tensor, alpha: float = 0.5) -> widgets.Live:
    """What any norm of the model hands on, as it is, smoothed with any alpha, or rotated; with 4 or 8 bits.

    tokens: int64 (texts, length), two texts at least: the last is drawn and judged, the others calibrate. Raises ValueError for fewer texts
    or another model.
    """
    if len(tokens) < 2:
        raise ValueError(f"tokens are {len(tokens)} text, and must be two at least: the last is judged, the others calibrate.")
    pairs = scaling.pairs(model, "norm")
    first, parts = {pair.readers[0] for pair in pairs}, {pair.source: [] for pair in pairs}
    for m in (model, rotate.fold_gains(model)):
        seen, shown = (activations.inputs(m, part, first) for part in (tokens[:-1], tokens[-1:]))
        for pair in pairs:
            weight = torch.cat([m.get_submodule(name).weight.detach() for name in pair.readers])
            parts[pair.source].append((seen[pair.readers[0]], shown[pair.readers[0]], weight))
    layers = {source: Layer(*both) for source, both in parts.items()}
    controls = {
        "layer": ipywidgets.Dropdown(options=list(layers), description="behind", layout={"width": "240px"}),
        "answer": ipywidgets.ToggleButtons(options=ANSWERS),
        "alpha": ipywidgets.FloatSlider(alpha, min=0, max=1, step=0.05),
        "bits": ipywidgets.ToggleButtons(options=(4, 8)),
    }
    # alpha is of one answer alone: who drags it asks for that
    controls["alpha"].observe(lambda _: setattr(controls["answer"], "value", "smoothed"), "value")
    channels = model.config.width
    fig, (ax, range_ax) = widgets.figure(9.2, 3.8, ncols=2, width_ratios=(1.15, 1))
    across, merged = np.arange(channels), np.arange(channels // 2) * 2                     # two neighbours of the surface are one
    # The ridge furthest back is drawn first, and each ridge's white foot hides what is behind it.
    ridges = PolyCollection([np.zeros((channels // 2 + 2, 2))] * TOKENS, facecolor="white", edgecolor=plot.COLORS["accent"], linewidth=0.7)
    ax.add_collection(ridges)
    ax.set(xlabel="channel (tokens go to the back)", ylabel="|x| / largest, front token", xlim=(-3, channels + SLANT * TOKENS + 3),
           ylim=(-0.02, 1.05 + RISE * TOKENS), yticks=[0, 0.5, 1], xticks=range(0, channels + 1, 64))
    ax.grid(False)
    lines = {}
    for name, color, style in (("activations", "accent", "-"), ("weights", "float", (0, (3, 1)))):
        lines[name], = range_ax.plot(across, np.ones(channels), linewidth=1.1, label=name, color=plot.COLORS[color], linestyle=style)
    highest = max(float(layer.plain[0].abs().max()) for layer in layers.values())
    lowest = min(float(layer.plain[2].abs().amax(0).min()) for layer in layers.values())
    range_ax.set(xlabel="channel", ylabel="largest magnitude", yscale="log", ylim=(0.5 * lowest, 2 * highest), xlim=(-3, channels + 2))
    range_ax.yaxis.set_minor_locator(plot.NullLocator())
    range_ax.yaxis.set_major_formatter(plot.powers())
    range_ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10)

    def update(layer: str, answer: str, alpha: float, bits: int) -> str:
        x, x_amax, w_amax, (one, each) = layers[layer].result(answer, alpha, bits)
        heights = x[:, :2 * len(merged)].reshape(len(x), -1, 2).max(2) / x.max()
        order = range(len(heights) - 1, -1, -1)
        ridges.set_verts([_ridge(merged + SLANT * t, heights[t], RISE * t) for t in order])
        lines["activations"].set_ydata(x_amax)
        lines["weights"].set_ydata(w_amax)
        loud = [amax.max() / np.median(amax) for amax in (x_amax, w_amax)]
        named = f"{answer} with alpha {alpha:g}" if answer == "smoothed" else answer
        return (f"Behind {layer}, {named}: |x| up to {x_amax.max():.2g}, in the loudest channel {loud[0]:.1f} times the median one; "
                f"weights up to {w_amax.max():.2g}, {loud[1]:.1f} times. With {bits} bits for both, the output's error is "
                f"<b>{_percent(one)}</b> with one scale for all tokens, <b>{_percent(each)}</b> with one for each.")

    return widgets.Live(fig, update, **controls)


def _ridge(x: np.ndarray, heights: np.ndarray, foot: float) -> np.ndarray:
    """The outline of one token's magnitudes, (channels + 2, 2), on its foot."""
    return np.column_stack([np.r_[x[0], x, x[-1]], np.r_[foot, heights + foot, foot]])


def _percent(share: float) -> str:
    """
    >>> _percent(0.873), _percent(0.0214)
    ('87 %', '2.1 %')
    """
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"
