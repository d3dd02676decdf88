"""Do two lists order the same things alike? Spearman's rank correlation, with an interval, and two of them compared.

    rho  =  the correlation of the ranks, equal numbers share theirs                         Spearman 1904
    interval: percentiles over the things drawn again with replacement                       Efron 1979
"""

from collections.abc import Mapping, Sequence

import torch

from qlab.quant.layout import as_tensor

RESAMPLES = 2000


def ranks(x: torch.Tensor) -> torch.Tensor:
    """The rank of each of x, (..., n), from 1, float64; equal ones share theirs. Raises ValueError for NaN or infinity.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0]))
    tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    x = as_tensor(x, "x", torch.float64)
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinity, which have no rank, and must be finite everywhere.")
    ordered = x.sort(-1).values
    below, upto = (torch.searchsorted(ordered, x, right=right) for right in (False, True))
    return (below + upto + 1).double() / 2


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the ranks, along the last axis; NaN where all of a, or of b, are equal.

    >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 8.0, 9.0], [9.0, 8.0, 1.0]])).tolist()
    [1.0, -1.0]
    """
    a, b = (r - r.mean(-1, keepdim=True) for r in (ranks(a), ranks(b)))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def _checked(name: str, x, n: int | None = None) -> torch.Tensor:
    """x as (n,) numbers that can be ordered: finite, not all equal, at least three, as many as the others."""
    x = as_tensor(x, name, torch.float64)
    if x.ndim != 1 or len(x) < 3 or n not in (None, len(x)):
        raise ValueError(f"{name} has the shape {tuple(x.shape)}, and must hold {n or 'at least 3'} numbers, in one row.")
    if not x.isfinite().all() or x.min() == x.max():
        raise ValueError(f"{name} runs from {x.min():g} to {x.max():g}, and must be finite and not everywhere the same.")
    return x


def _drawn(n: int) -> torch.Tensor:
    return torch.randint(0, n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))


def spearman(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """The rank correlation of a and b, (n,), with its 95 % interval.

    Raises ValueError for fewer than three numbers, different lengths, NaN or infinity, or numbers that are all equal.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 4.0, 9.0, 16.0]))["value"]
    1.0
    """
    a = _checked("a", a)
    b, drawn = _checked("b", b, len(a)), _drawn(len(a))
    each = correlation(a[drawn], b[drawn])
    low, high = each[each.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": round(correlation(a, b).item(), 4), "low": round(low, 4), "high": round(high, 4)}


def compare(predicted: Mapping[str, Sequence[float]], truth: Sequence[float], pairs: Sequence[tuple[str, str]]) -> str:
    """A line for each pair of predictors: by how much the first orders the things more like the truth.

    Both correlations of a draw are of the same things: the comparison is paired. The interval is wide enough for all pairs together
    (Bonferroni): 95 % that all of them hold. Raises ValueError as spearman does, for no pairs, and for a name that nothing is predicted by.

    >>> print(compare({"same": [1, 2, 3, 4, 5, 6], "turned": [6, 5, 4, 3, 2, 1]}, [1, 2, 3, 4, 5, 6], [("same", "turned")]))
    same minus turned: +2.000 [+2.000, +2.000]
    """
    if not len(pairs) or not all(len(pair) == 2 and set(pair) <= set(predicted) for pair in pairs):
        raise ValueError(f"pairs is {pairs!r}, and must hold at least one pair of {', '.join(map(repr, predicted))}.")
    truth = _checked("truth", truth)
    drawn, values = _drawn(len(truth)), {name: _checked(name, predicted[name], len(truth)) for pair in pairs for name in pair}
    found, lines = {name: correlation(value[drawn], truth[drawn]) for name, value in values.items()}, []
    tail = 0.025 / len(pairs)
    for this, that in pairs:
        whole = (correlation(values[this], truth) - correlation(values[that], truth)).item()
        gaps = found[this] - found[that]
        low, high = gaps[gaps.isfinite()].quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        noise = ": inside the noise" if low <= 0 <= high else ""
        lines.append(f"{this} minus {that}: {whole:+.3f} [{low:+.3f}, {high:+.3f}]{noise}")
    return "\n".join(lines)
