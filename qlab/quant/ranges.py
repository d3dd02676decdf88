"""Calibration: which range of values the codes should cover. Narrower has finer steps, and more values outside that saturate.

    minmax       everything: no value saturates, one outlier sets the step
    percentile   all but the outermost (100 - p) / 2 percent on each side
    mse          the range with the least mean squared error after quantization (a search over 100 ranges)
    entropy      the threshold whose quantized histogram diverges least from the original (Migacz 2017, TensorRT)

RunningMinMax and MovingAverage see one batch at a time, as activations come.
"""

from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch

from qlab.quant import linear
from qlab.quant.layout import as_float, check_bits, check_finite, check_layout, extremes, to_rows


class Range(NamedTuple):
    """Float tensors, () or (channels,): what linear.quantize takes as x_min and x_max."""

    x_min: torch.Tensor
    x_max: torch.Tensor


def _checked(x, axis: int | None) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    x = as_float(x)
    if x.numel() == 0:
        raise ValueError(f"x is empty (shape {tuple(x.shape)}), and must hold at least one value to take a range of.")
    axis, _ = check_layout(x.shape, axis, None)
    rows = to_rows(x, axis, None)
    check_finite(*extremes(rows))
    return x, rows, axis


def _shaped(low: torch.Tensor, high: torch.Tensor, axis: int | None) -> Range:
    return Range(low[0], high[0]) if axis is None else Range(low, high)


def _exponent(rows: torch.Tensor) -> torch.Tensor:
    """The power of two just above each row's largest magnitude, (rows, 1)."""
    return torch.frexp(torch.stack(extremes(rows)).double().abs().amax(0)).exponent.long()[:, None]


def _unless_ordinary(exponent: torch.Tensor) -> torch.Tensor:
    """0 where float64 holds sums and squares of such values, whatever their differences: then scaling is left out."""
    return torch.where(exponent.abs() <= 200, 0, exponent)


def _times_power_of_two(values: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """values * 2**exponent in float64; in two steps, as the power alone may be no float64."""
    if not exponent.any():
        return values.double()
    half = exponent // 2
    first, second = (torch.from_numpy(np.asarray(np.ldexp(1.0, part.cpu().numpy()))).to(values.device) for part in (half, exponent - half))
    return values.double() * first * second


def minmax(x, axis: int | None = None) -> Range:
    """The smallest and the largest element; with axis, of each channel.

    >>> minmax(torch.tensor([-1.0, 0.5, 3.0]))
    Range(x_min=tensor(-1.), x_max=tensor(3.))
    """
    _, rows, axis = _checked(x, axis)
    return _shaped(*extremes(rows), axis)


def percentile(x, p: float = 99.9, axis: int | None = None) -> Range:
    """The range that holds p percent of the elements, and leaves out equally many on both sides. p: above 0, to 100.

    >>> percentile(torch.arange(1001.0), p=90)
    Range(x_min=tensor(50.), x_max=tensor(950.))
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 < p <= 100:
        raise ValueError(f"p is {p!r}, and must be above 0 and at most 100.")
    _, rows, axis = _checked(x, axis)
    outside = (100 - p) / 200
    exponent = _unless_ordinary(_exponent(rows))
    found = np.quantile(_times_power_of_two(rows, -exponent).cpu().numpy(), [outside, 1 - outside], axis=1)
    return _shaped(*_times_power_of_two(torch.from_numpy(found).to(rows.device), exponent[:, 0]).to(rows), axis)


def mse(x, bits: int = 8, scheme: str = "affine", axis: int | None = None, candidates: int = 100) -> Range:
    """The range f * [min, max], f = 1/candidates .. 1, whose quantization has the least squared error; with axis, for each channel.

    >>> outlier = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([10.0])])
    >>> mse(outlier, bits=4, scheme="symmetric").x_max < 5
    tensor(True)
    """
    if isinstance(candidates, bool) or not isinstance(candidates, Integral) or candidates < 1:
        raise ValueError(f"candidates is {candidates!r}, and must be a whole number of at least 1.")
    x, rows, axis = _checked(x, axis)
    low, high = extremes(rows)
    exponent = _unless_ordinary(_exponent(rows))
    least = torch.full_like(low, torch.inf, dtype=torch.float64)
    best = [low.clone(), high.clone()]
    for step in range(candidates, 0, -1):
        f = step / candidates
        tried = _shaped(f * low, f * high, axis)
        x_hat = linear.quantize(x, bits, scheme, axis, x_min=tried.x_min, x_max=tried.x_max).dequantize()
        error = (_times_power_of_two(to_rows(x_hat, axis, None), -exponent) - _times_power_of_two(rows, -exponent)).square_().sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best = [torch.where(better, f * own, kept) for own, kept in zip((low, high), best)]
    return _shaped(*best, axis)


def entropy(x, bits: int = 8, bins: int = 2048) -> Range:
    """The threshold t that loses the least information: [-t, t], or [0, t] where no element is negative.

    The histogram of |x| up to t, with all that lies beyond added to its last bin, is P; the same without what lies beyond, merged to the
    magnitudes that the codes have (2**(bits - 1), or 2**bits where nothing is negative) and spread back over its non-empty bins, is Q; t
    minimises the Kullback-Leibler divergence sum P log(P / Q), so what is cut off has a price. Exact zeros are left out: they lose nothing
    at any threshold, and the many that a ReLU makes would outweigh all else. bits: 2 to 8.

    >>> normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    >>> entropy(torch.cat([normal, torch.tensor([50.0])])).x_max < 10
    tensor(True)
    """
    bits = check_bits(bits, 2, 8)
    _, rows, _ = _checked(x, None)
    if isinstance(bins, bool) or not isinstance(bins, Integral):
        raise ValueError(f"bins is {bins!r}, and must be a whole number.")
    exponent = _exponent(rows)[0]
    values = _times_power_of_two(rows[0].abs(), -exponent).float().cpu().numpy()            # up to 1: float32 holds the edges of all bins
    one_sided = bool(rows.min() >= 0)
    levels = 2**bits if one_sided else 2 ** (bits - 1)
    if bins < levels:
        raise ValueError(f"bins is {bins}, and must be at least the {levels} levels of {bits} bits.")
    values = values[(rows[0] != 0).cpu().numpy()]
    top = float(values.max(initial=0.0))
    counts = np.histogram(values, bins, (0, top or 1.0))[0].astype(np.float64)
    ends = range(levels, bins + 1)
    divergence = [_divergence(counts, end, levels) for end in ends]
    threshold = torch.tensor(ends[int(np.argmin(divergence))] * top / bins)
    info = torch.finfo(rows.dtype)
    threshold = _times_power_of_two(threshold.to(rows.device), exponent[0]).to(rows)
    threshold = threshold.clamp(info.tiny * info.eps if top else 0, info.max)               # rounding may have left the dtype
    return Range(threshold * 0 if one_sided else -threshold, threshold)


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """KL(P, Q) for a threshold at bin `end`; infinite where Q is 0 and P is not."""
    kept = counts[:end]
    p = kept.copy()
    p[-1] += counts[end:].sum()
    level = np.arange(end) * levels // end                                                  # which level each bin merges into
    filled = kept > 0
    total = np.bincount(level, kept, levels)
    share = np.bincount(level, filled, levels)
    q = np.where(filled, (total / np.maximum(share, 1))[level], 0.0)
    if q.sum() == 0 or (q[p > 0] == 0).any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


class RunningMinMax:
    """The smallest and the largest element of all batches so far.

    >>> observer = RunningMinMax()
    >>> observer.update(torch.tensor([0.0, 2.0]))
    >>> observer.update(torch.tensor([-1.0, 1.0]))
    >>> observer.range()
    Range(x_min=tensor(-1.), x_max=tensor(2.))
    """

    def __init__(self, axis: int | None = None):
        self.axis, self._range = axis, None

    def update(self, x) -> None:
        """Take in a batch; a refused one (empty, NaN, infinite) changes nothing."""
        new = minmax(x, self.axis)
        self._range = new if self._range is None else self._merge(self._range, new)

    def _merge(self, old: Range, new: Range) -> Range:
        return Range(torch.minimum(old.x_min, new.x_min), torch.maximum(old.x_max, new.x_max))

    def range(self) -> Range:
        if self._range is None:
            raise ValueError("no batch has been seen: call update(batch) before range().")
        return self._range


class MovingAverage(RunningMinMax):
    """An exponential moving average of each batch's extremes: range = momentum * range + (1 - momentum) * new (Jacob et al. 2018, 3.1).

    One batch with an outlier moves it little. momentum: from 0 to below 1.

    >>> observer = MovingAverage(momentum=0.9)
    >>> for batch in (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 11.0])):
    ...     observer.update(batch)
    >>> observer.range()
    Range(x_min=tensor(0.), x_max=tensor(2.))
    """

    def __init__(self, momentum: float = 0.9, axis: int | None = None):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum!r}, and must be at least 0 and below 1.")
        super().__init__(axis)
        self.momentum = momentum

    def _merge(self, old: Range, new: Range) -> Range:
        return Range(*(self.momentum * a + (1 - self.momentum) * b for a, b in zip(old, new)))
