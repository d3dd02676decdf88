"""Is a network as often right as it is sure? The expected calibration error, its bias, and an interval that knows of it.

    confidence    the largest probability, c = max softmax(logits)
    ECE           sum over bins of n_b / n * |right_b - c_b|          Naeini et al. 2015, Guo et al. 2017

right_b is the share of right answers and c_b the mean confidence of the n_b images of a bin. Bins are equally wide, or hold equally many
images (Nguyen and O'Connor 2015).

The error is too large, and the more so the fewer images there are: a perfectly calibrated network has right_b off c_b by chance, and
the absolute value adds up what would cancel: for the course's networks below 0.01 on 10,000 images, and about 0.04 on 200. Resampling the
images (the plain bootstrap) does not help: each resample adds the same chance once more, and its intervals lie above the truth.

So the error that was found is compared with what networks of known error would show. They have this network's confidences and its
pattern of gaps, lambda times as large:

    right_b ~ Binomial(n_b, c_b + lambda (right_b - c_b)) / n_b ,   true error  sum n_b / n * lambda |right_b - c_b|

Drawn many times (a parametric bootstrap), each lambda gives a distribution of the ECE. The estimate is the true error of the lambda whose
median is the ECE found, 0 where a perfect network's is as large; the interval holds those whose central 95 % hold it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qlab.lab.judge.agreement import checked_labels, log_probabilities
from qlab.lab.significance import wilson
from qlab.quant.layout import as_tensor, check_whole, generator

LAMBDAS = np.concatenate([np.arange(0, 2, 0.05), np.arange(2, 6.1, 0.4)])


@dataclass(frozen=True)
class Bin:
    """Images with confidences of one bin: how many, how many of them right, and their mean confidence, from 0 to 1."""

    n: int
    right: int
    confidence: float

    @property
    def gap(self) -> float:
        """The share of right answers minus the mean confidence: below 0 the network is too sure."""
        return self.right / self.n - self.confidence


@dataclass(frozen=True)
class Calibration:
    """found: the ECE as it is usually given. chance: what a perfectly calibrated network would show on as many images, on average.

    value, low, high: the error that it is estimated to have, chance taken into account, and its 95 % interval. All from 0 to 1. bins: those
    that hold images.

    >>> print(Calibration(found=0.031, chance=0.012, value=0.027, low=0.019, high=0.036, bins=(Bin(500, 450, 0.93),), by="width"))
    2.7 points [1.9, 3.6] (found 3.1, where a perfectly calibrated network shows 1.2; 500 images, bins of equal width)
    """

    found: float
    chance: float
    value: float
    low: float
    high: float
    bins: tuple[Bin, ...]
    by: str

    @property
    def n(self) -> int:
        """The number of images."""
        return sum(b.n for b in self.bins)

    def __str__(self) -> str:
        found, chance, value, low, high = (100 * x for x in (self.found, self.chance, self.value, self.low, self.high))
        return (f"{value:.1f} points [{low:.1f}, {high:.1f}] (found {found:.1f}, where a perfectly calibrated network shows "
                f"{chance:.1f}; {self.n:,} images, bins of equal {self.by})")

    def table(self) -> str:
        """The reliability table: a line a bin.

        >>> print(Calibration(0.03, 0.01, 0.03, 0.0, 0.1, (Bin(500, 450, 0.93),), "width").table())
        confidence   images   right [95 %]            gap
            93.0 %      500    90.0 % [87.1, 92.3]   -3.0
        """
        lines = ["confidence   images   right [95 %]            gap"]
        for b in self.bins:
            low, high = wilson(b.right, b.n)
            lines.append(f"{100 * b.confidence:8.1f} % {b.n:8,}   {100 * b.right / b.n:5.1f} % {f'[{100 * low:.1f}, {100 * high:.1f}]':13}"
                         f"{100 * b.gap:+6.1f}")
        return "\n".join(lines)


def confidences(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability of each image, float64 (n,). logits: (n, classes); raises as agreement.log_probabilities does.

    >>> confidences(torch.tensor([[0.0, 0.0], [0.0, -1000.0]])).tolist()
    [0.5, 1.0]
    """
    return log_probabilities(logits).amax(1).exp()


def ece(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15, by: str = "width", draws: int = 500, seed: int = 0) -> Calibration:
    """The expected calibration error of logits (n, classes) against labels, integers (n,). by: bins of equal "width" or equal "mass".

    In simulations (200 to 4,000 images, true errors of 0 and 3 points) its intervals held the truth 88 to 99 times in 100. Errors that
    cancel within a bin are seen by no ECE. Raises ValueError for another by, for bins or draws that are no whole number of at least 1, for
    another seed, and as agreement.log_losses does.

    >>> sure = torch.tensor([[0.1, 0.9]]).log().repeat(1000, 1)                                     # 90 % sure, and right in 80 of 100
    >>> found = ece(sure, (torch.arange(1000) % 5 > 0).long())
    >>> round(found.found, 3), found.low < 0.1 < found.high
    (0.1, True)
    """
    if by not in ("width", "mass"):
        raise ValueError(f'by is {by!r}, and must be "width" or "mass".')
    check_whole("bins", bins, 1)
    check_whole("draws", draws, 1)
    generator(seed)                                                             # the same seeds as everywhere; NumPy draws the numbers
    logits = as_tensor(logits, "logits")
    sure, right = confidences(logits).numpy(), (logits.argmax(1) == checked_labels(labels, *logits.shape)).numpy()
    parts = np.arange(1, bins) / bins
    inside = np.searchsorted(parts if by == "width" else np.quantile(sure, parts), sure, side="left")   # equal confidences, one bin
    n = np.bincount(inside, minlength=bins)
    hits, total = np.bincount(inside, right, bins)[n > 0], np.bincount(inside, sure, bins)[n > 0]
    n = n[n > 0]
    return Calibration(*_judged(n, hits / n, total / n, draws, seed),
                       tuple(Bin(int(k), int(h), float(t / k)) for k, h, t in zip(n, hits, total)), by)


def _judged(n: np.ndarray, right: np.ndarray, sure: np.ndarray, draws: int, seed: int) -> tuple[float, ...]:
    """found, chance, value, low, high, of the images, the share of right answers and the mean confidence of each bin."""
    weight, random = n / n.sum(), np.random.default_rng(seed)
    truly = np.clip(sure + LAMBDAS[:, None] * (right - sure), 0, 1)                                 # (lambdas, bins)
    true_error = (weight * np.abs(truly - sure)).sum(1)
    shown = (weight * np.abs(random.binomial(n, truly, (draws, *truly.shape)) / n - sure)).sum(2)   # (draws, lambdas)
    few, half, many = np.quantile(shown, [0.025, 0.5, 0.975], axis=0)
    found = float((weight * np.abs(right - sure)).sum())
    value, low, high = _last(true_error, half <= found), _first(true_error, many >= found), _last(true_error, few <= found)
    return found, float(shown[:, 0].mean()), value, low, high


def _last(errors: np.ndarray, may_be: np.ndarray) -> float:
    return float(errors[may_be].max(initial=0.0))


def _first(errors: np.ndarray, may_be: np.ndarray) -> float:
    return float(errors[may_be].min(initial=errors.max()))
