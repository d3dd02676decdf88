"""Notebook 07: the record's tables, and a widget: a real weight, its step, and the gradient that LSQ has for the step.

won back    (QAT - PTQ) / (control - PTQ): of what quantization after training loses against more training in float, the share that
            training with the rounding in place returns

The widget. Left: the staircase w_hat(w) over the histogram of the weights, with what the straight-through estimator differentiates in its
place: the identity, up to where the weights saturate. Right: the squared error of the weights for every step, and LSQ's gradient as the
tangent.
"""

from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
import torch

from qlab.lab import plot, widgets
from qlab.lab.significance import Accuracy, over_seeds
from qlab.nets.fake import fake_quantize

BITS = (2, 6)
UNITS = np.round(np.arange(0.02, 1.2001, 0.01), 2)              # the step, in units of the one with which nothing saturates
BINS = 80
NAMES = {"nearest": "nearest", "gptq": "GPTQ", "adaround": "AdaRound"}


def after_training(record: dict) -> str:
    """The record's quantization after training by bits and axis: the plainest, and those that are best on training images: of all that
    round to nearest, and of all."""
    lines = [f"{'':17}plainest  best to nearest  best of all"]
    for bits, axes in record["ptq"].items():
        for per in ("channel", "tensor"):
            plain, nearest, best = (axes[per][name] for name in ("plain", "nearest", "best"))
            repairs = "".join(f", {said}" for key, said in (("equalize", "equalized"), ("correct_bias", "corrected")) if best[key])
            lines.append(f"{bits} bits, {per:8} {100 * plain['result'].value:6.1f} %{100 * nearest['result'].value:15.1f} %  "
                         f"{best['result']!s:19}  {NAMES[best['rounding']]}, weights {best['weights']}, activations {best['activations']}"
                         f"{repairs}")
    return "\n".join(lines)


def results(record: dict, arm: str, bits: int | str) -> list[Accuracy]:
    """The results of an arm's seeds, none if the record lacks it: "control", a trained arm such as "lsq-channel", "plain-tensor" or
    "nearest-tensor" or "ptq-tensor" (the plainest, the best to nearest, the best; without a seed, so the one result is given again for each
    seed of the control)."""
    kind, _, per = arm.partition("-")
    if arm == "control":
        return [entry["result"] for entry in record["control"].values()]
    if kind in ("plain", "nearest", "ptq"):
        return [record["ptq"][str(bits)][per]["best" if kind == "ptq" else kind]["result"]] * len(record["control"])
    return [entry["result"] for entry in record["arms"].get(arm, {}).get(str(bits), {}).values()]


def won_back(qat: Sequence[Accuracy], ptq: Sequence[Accuracy], control: Sequence[Accuracy]) -> tuple[float, float, float]:
    """The share won back by the means over seeds, and its 95 % interval: images are drawn again (bootstrap), the same for all three.

    Raises ValueError if the control is not ahead of PTQ: then there is nothing to win.

    >>> sure, half = torch.ones(100, dtype=torch.bool), torch.arange(100) < 50
    >>> won_back([Accuracy(torch.arange(100) < 75)], [Accuracy(half)], [Accuracy(sure)])[0]
    0.5
    """
    each = np.stack([np.mean([one.correct.numpy() for one in results], axis=0) for results in (qat, ptq, control)])     # (3, images)
    if each[2].mean() <= each[1].mean():
        raise ValueError("the control is not ahead of PTQ: nothing has been lost that could be won back.")
    kinds, counts = np.unique(each, axis=1, return_counts=True)                             # far fewer than images
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), 2000) @ kinds.T
    shares = [(a - b) / (c - b) for a, b, c in drawn if c != b]
    a, b, c = kinds @ counts
    return tuple(float(share) for share in ((a - b) / (c - b), *np.percentile(shares, [2.5, 97.5])))


def gains(record: dict, per: str, arms: Sequence[str] = ("ste", "lsq")) -> str:
    """By bits: PTQ, the best that rounds to nearest (where another is better) and the best, and the arms' seeds, their mean's points above
    the best, and what they win back of the control."""
    control = results(record, "control", 32)
    lines = [f"{'per ' + per:18}{'accuracy':20}above the best PTQ [95 %]   won back [95 %]", f"{'control, float':18}{_percent(control)}"]
    for bits in record["ptq"]:
        best = results(record, f"ptq-{per}", bits)
        if (nearest := results(record, f"nearest-{per}", bits))[0].value < best[0].value:
            lines.append(f"{bits + ' bits, nearest':18}{_percent(nearest[:1])}")
        lines.append(f"{bits + ' bits, best PTQ':18}{_percent(best[:1])}")
        for arm in arms:
            if mine := results(record, f"{arm}-{per}", bits):
                above = over_seeds(best[:len(mine)], mine)
                share, low, high = (100 * value for value in won_back(mine, best, control))
                lines.append(f"{'        ' + arm:18}{_percent(mine):20}{f'{above.mean:+.2f} [{above.low:+.2f}, {above.high:+.2f}]':28}"
                             f"{share:.0f} % [{low:.0f}, {high:.0f}]")
    return "\n".join(lines)


def _percent(results: Sequence[Accuracy]) -> str:
    return " ".join(f"{100 * result.value:.2f}" for result in results)


class Weights:
    """One weight tensor and its relative squared error, sum (w_hat - w)^2 / sum w^2, as a function of the step."""

    def __init__(self, weight: torch.Tensor):
        self.w = weight.detach().double().reshape(-1)
        self.largest = self.w.abs().max().item()
        self.energy = self.w.square().sum().item()
        self.histogram = np.histogram(self.w.numpy(), BINS, (-1.1 * self.largest, 1.1 * self.largest))
        self._curves: dict[int, np.ndarray] = {}

    def unit(self, bits: int) -> float:
        """The smallest step with which no weight saturates: max|w| / (2**(bits - 1) - 1)."""
        return self.largest / (2 ** (bits - 1) - 1)

    def error(self, step: float, bits: int) -> float:
        top = 2 ** (bits - 1) - 1
        return ((self.w / step).round_().clamp_(-top, top).mul_(step).sub_(self.w)).square_().sum().item() / self.energy

    def curve(self, bits: int) -> np.ndarray:
        """The error at each of UNITS, (len(UNITS),)."""
        if bits not in self._curves:
            self._curves[bits] = np.array([self.error(u * self.unit(bits), bits) for u in UNITS])
        return self._curves[bits]

    def gradient(self, step: float, bits: int) -> tuple[float, float]:
        """LSQ's derivative of the error by the step, from fake_quantize: of the weights that are rounded, of those that saturate."""
        top = 2 ** (bits - 1) - 1
        inside = (self.w / step).abs() < top
        parts = []
        for part in (self.w[inside], self.w[~inside]):
            s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
            (fake_quantize(part, s, 0, -top, top) - part).square().sum().backward()
            parts.append(s.grad.item() / self.energy)
        return parts[0], parts[1]

    def slope(self, step: float, bits: int, width: float = 0.1) -> float:
        """The measured slope: the error's difference over a window of 10 % of the step, half on each side."""
        half = width * step / 2
        return (self.error(step + half, bits) - self.error(step - half, bits)) / (2 * half)


def drag_step(weights: Mapping[str, torch.Tensor], bits: int = 3, step: float = 1.0) -> widgets.Live:
    """Any of the named weights on 2**bits - 1 levels; one slider sets the step, in units of max|w| / largest code.

    Raises ValueError for no weights, a weight that is all zeros or not finite, bits that are not from 2 to 6.
    """
    if not weights:
        raise ValueError("weights is empty, and must name at least one tensor.")
    for name, weight in weights.items():
        if not weight.isfinite().all() or not weight.any():
            raise ValueError(f"{name} must be finite, and must hold a number other than 0.")
    if not BITS[0] <= bits <= BITS[1]:
        raise ValueError(f"bits is {bits}, and must be from {BITS[0]} to {BITS[1]}.")
    data = {name: Weights(weight) for name, weight in weights.items()}
    controls = {
        "weights": ipywidgets.Dropdown(options=list(data), layout={"width": "330px"}),
        "bits": ipywidgets.IntSlider(bits, *BITS),
        "step": ipywidgets.FloatSlider(step, min=0.05, max=1.15, step=0.01, description="step / (max|w| / largest code)"),
    }
    fig, (ax, error_ax) = widgets.figure(8.8, 3.7, ncols=2, width_ratios=(1.25, 1))
    bars = ax.stairs([0], [0, 1], fill=True, color="#D9D9D9")
    straight, = ax.plot([], [], color=plot.COLORS["accent"], linewidth=1.6, linestyle=(0, (4, 2)), label="differentiated instead")
    stairs, = ax.plot([], [], color=plot.COLORS["symmetric"], linewidth=2, label=r"$\hat w$")
    ax.set(xlabel="weight $w$", ylabel=r"decoded weight $\hat w$")
    curve, = error_ax.plot([], [], color=plot.COLORS["float"], linewidth=1.6, label="error")
    tangent, = error_ax.plot([], [], color=plot.COLORS["accent"], linewidth=2.6, label="LSQ's gradient")
    here, = error_ax.plot([], [], color=plot.COLORS["accent"], marker="o", markersize=9, linestyle="")
    error_ax.set(xlim=(0, 1.2), xlabel="step / (max|w| / largest code)", ylabel=r"$\Sigma(\hat w - w)^2 \,/\, \Sigma w^2$  (%)")
    error_ax.yaxis.set_label_coords(-0.19, 0.5)  # stays where it is when the errors have more digits
    for axes in (ax, error_ax):
        axes.locator_params(nbins=5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10)
    shown = []

    def frame(tensor: Weights, bits: int) -> None:
        """What a step of the step slider does not change need not be drawn again."""
        reach, errors = 1.1 * tensor.largest, 100 * tensor.curve(bits)
        counts, edges = tensor.histogram
        if ax.get_xlim() != (-reach, reach):  # other weights; axes that stay as they are need not be drawn again
            bars.set_data(-reach + 0.7 * reach * counts / counts.max(), edges, -reach)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
        curve.set_data(UNITS, errors)
        error_ax.set_ylim(0, min(105.0, 1.25 * max(errors[UNITS >= 0.6].max(), 3 * errors.min())))

    def update(**values) -> str:
        name, bits, unit = values["weights"], values["bits"], data[values["weights"]].unit(values["bits"])
        tensor, step, top = data[name], values["step"] * data[name].unit(bits), 2 ** (bits - 1) - 1
        if shown != [name, bits]:
            shown[:] = name, bits
            frame(tensor, bits)
        borders = step * (np.arange(-top, top) + 0.5)
        reach = 1.1 * tensor.largest
        stairs.set_data(np.concatenate([[-reach], np.repeat(borders, 2), [reach]]), step * np.repeat(np.arange(-top, top + 1), 2))
        end = top * step                                        # from the last level on LSQ counts a weight as saturated
        straight.set_data([-reach, -end, end, reach], [-end, -end, end, end])
        error, (rounded, cut) = tensor.error(step, bits), tensor.gradient(step, bits)
        gradient = unit * (rounded + cut)                       # by the slider's value
        ends = values["step"] + np.array([-0.15, 0.15])
        tangent.set_data(ends, 100 * (error + gradient * (ends - values["step"])))
        here.set_data([values["step"]], [100 * error])
        return (f"{name}, {bits} bits, step {step:.4g}: error {100 * error:.2f} %. LSQ's gradient <b>{100 * gradient:+.2f}</b> "
                f"(rounded weights {100 * unit * rounded:+.2f}, saturated ones {100 * unit * cut:+.2f}); measured slope "
                f"{100 * unit * tensor.slope(step, bits):+.2f}. " + ("The step shrinks." if gradient > 0 else "The step grows."))

    return widgets.Live(fig, update, **controls)
