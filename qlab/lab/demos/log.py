"""Notebook 03's live figure: where the levels of a logarithmic and of a linear code lie, and how far off each is at every magnitude.

Both quantizers see the same values and spend the same number of bits. The linear one is symmetric; both have one scale for all values.
"""

import math

import ipywidgets
import numpy as np
import torch

from qlab.lab import plot, widgets
from qlab.quant import linear, log

BASES = {"2": 2.0, "√2": 2**0.5}
OCTAVES = 10                        # how far below the largest value the error curve goes
METHODS = ("log", "linear")
ROWS = {"log": (0.90, 0.99), "linear": (0.79, 0.88)}  # where each method's levels are drawn, in shares of the panel's height


def samples(n: int = 20_000, seed: int = 0) -> dict[str, torch.Tensor]:
    """n values each of three textbook distributions, float32: Gaussian, uniform, heavy-tailed (Student's t, 3 degrees of freedom).

    >>> {name: len(x) for name, x in samples(4).items()}
    {'Gaussian': 4, 'uniform': 4, 'heavy-tailed': 4}
    """
    g = torch.Generator().manual_seed(seed)
    normal, chi = torch.randn(n, generator=g), torch.randn(3, n, generator=g).square().sum(0)
    return {"Gaussian": normal, "uniform": 2 * torch.rand(n, generator=g) - 1,
            "heavy-tailed": torch.randn(n, generator=g) / (chi / 3).sqrt()}


def peak_to_rms(x) -> float:
    """The largest magnitude over the root mean square: 1 where all values are as large, sqrt(3) if uniform, more the longer the tails.

    >>> peak_to_rms([3.0, -3.0])
    1.0
    """
    x = torch.as_tensor(x).detach().double()
    return (x.abs().max() / x.square().mean().sqrt()).item()


def relative_error(x, x_hat) -> np.ndarray:
    """|x_hat - x| / |x| in percent, for x without zeros.

    >>> relative_error(torch.tensor([2.0, -4.0]), torch.tensor([1.0, -4.0])).tolist()
    [50.0, 0.0]
    """
    return (100 * (x_hat - x).abs() / x.abs()).cpu().numpy()


def quantizers(bits: int, base: float) -> dict:
    """method -> a function from a tensor to its QTensor, both with one scale for the tensor."""
    return {"log": lambda x: log.quantize(x, bits, base), "linear": lambda x: linear.quantize(x, bits, "symmetric")}


def log_against_linear(values: dict[str, torch.Tensor], bits: int = 4, base: float = 2.0, start: str | None = None) -> widgets.Live:
    """Levels of a logarithmic and of a linear code on a histogram (left), and the relative error of both at each magnitude (right).

    values: name -> a float tensor that is not all zeros. Underflow: the share of the values other than 0 that decode to 0.

    >>> demo = log_against_linear(samples(1000), start="uniform")
    >>> demo.controls["bits"].value = 8
    >>> demo.text.startswith("log 14.")
    True
    """
    flat = {name: torch.as_tensor(x).detach().reshape(-1) for name, x in values.items()}
    for name, x in flat.items():
        if not x.count_nonzero():
            raise ValueError(f"values[{name!r}] is all zeros or empty, and must hold something to quantize.")
    facts = {name: (x.count_nonzero().item(), peak_to_rms(x)) for name, x in flat.items()}
    fig, (left, right) = widgets.figure(9.6, 3.9, ncols=2)
    levels, errors = _Levels(left), _Errors(right)

    def update(bits, base, values):
        x = flat[values]
        coded = {method: quantize(x) for method, quantize in quantizers(bits, base).items()}
        levels.show(values, x, coded)
        errors.show(values, x, bits, base)
        return _caption(x, coded, *facts[values])

    return widgets.Live(
        fig, update, values=ipywidgets.Dropdown(options=list(flat), value=start or next(iter(flat))), bits=ipywidgets.IntSlider(bits, 2, 8),
        base=ipywidgets.ToggleButtons(options=list(BASES.items()), value=base, style={"button_width": "4em"}))


def _caption(x: torch.Tensor, coded: dict, nonzero: int, peak: float) -> str:
    sqnr = {method: _sqnr_db(x, q.dequantize()) for method, q in coded.items()}
    lost = {method: 100 * (1 - torch.count_nonzero(q.codes).item() / nonzero) for method, q in coded.items()}
    gain = sqnr["log"] - sqnr["linear"]
    verdict = f"log is {abs(gain):.1f} dB {'better' if gain >= 0 else 'worse'}" if math.isfinite(gain) else "one of them is exact"
    return (f"log {sqnr['log']:.1f} dB, linear {sqnr['linear']:.1f} dB: <b>{verdict}</b>. "
            f"Underflow to 0: log {lost['log']:.1f} %, linear {lost['linear']:.1f} % of {x.numel():,} values. "
            f"Peak/rms {peak:.1f}.")


def _sqnr_db(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """qlab.lab.measure.sqnr_db without its checks: a tenth of its time, so that a slider follows the hand on a million values."""
    signal, noise = (torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in (x, x - x_hat))
    return 20 * math.log10(signal / noise) if noise else math.inf


class _Levels:
    """The panel on the left: the histogram, and above it a row of marks for each method's levels."""

    def __init__(self, ax):
        self.ax, self.name = ax, None
        self.bars = ax.stairs([0.0], [0.0, 1.0], fill=True, color="#CFCFCF")
        self.marks, self.labels = {}, {}
        for method, (low, high) in ROWS.items():
            color = plot.COLORS[method]
            self.marks[method] = ax.vlines([0], low, high, transform=ax.get_xaxis_transform(), color=color, linewidth=1.3)
            self.labels[method] = ax.text(-0.02, (low + high) / 2, method, transform=ax.transAxes, color=plot.INK[method], ha="right",
                                          va="center", fontweight="bold")
        ax.set(xlabel="value", ylabel="count / fullest bin", ylim=(0, 1.35), yticks=[0, 0.25, 0.5, 0.75, 1], title="levels")

    def show(self, name: str, x: torch.Tensor, coded: dict) -> None:
        if name != self.name:
            self.name, edge = name, 1.05 * x.abs().max().item()
            counts, edges = np.histogram(x.float().cpu().numpy(), 120, (-edge, edge))
            self.bars.set_data(counts / counts.max(), edges)
            self.ax.set_xlim(-1.42 * edge, 1.42 * edge)  # the largest level of a logarithmic code may lie 41 % above the largest value
        for method, (low, high) in ROWS.items():
            self.marks[method].set_segments([[(level, low), (level, high)] for level in coded[method].levels().tolist()])


class _Errors:
    """The panel on the right: the relative error along the magnitudes, above the share of the values that lie in each quarter octave."""

    def __init__(self, ax):
        self.ax, self.name = ax, None
        self.bars = ax.stairs([0.0], [0.5, 1.0], fill=True, color="#DDDDDD", label="where the values are")
        self.lines = {method: ax.plot([], [], color=plot.COLORS[method], linestyle=plot.LINESTYLES[method], linewidth=1.6, label=method)[0]
                      for method in METHODS}
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(plot.powers(2))
        ax.set(xlabel="|value| / largest |value|", ylabel="relative error (%)", ylim=(0, 130), xlim=(2.0**-OCTAVES, 1),
               yticks=[0, 20, 40, 60, 80, 100], title="error")
        ax.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.6)

    def show(self, name: str, x: torch.Tensor, bits: int, base: float) -> None:
        largest = x.abs().max().double()
        if name != self.name:
            self.name, edges = name, 2.0 ** np.linspace(-OCTAVES, 0, 4 * OCTAVES + 1)
            counts, _ = np.histogram((x.abs().double() / largest).cpu().numpy(), edges)
            self.bars.set_data(60 * counts / max(counts.max(), 1), edges)
        grid = largest * 2.0 ** torch.linspace(-OCTAVES, 0, 1201, dtype=torch.float64)  # ends at the largest value: same scale
        for method, quantize in quantizers(bits, base).items():
            self.lines[method].set_data((grid / largest).numpy(), relative_error(grid, quantize(grid).dequantize()))
