"""K-means quantization: the levels go where the values are. A code is an index into a codebook of 2**b centroids.

    minimise  sum_i (x_i - c[q_i])**2   over the centroids c and the codes q                Lloyd 1957/1982; Han et al. 2016, eq. 2

Lloyd's iteration alternates two steps that cannot raise the sum: give each value the nearest centroid, move each centroid to the
mean of its values. Where it stops depends on where it starts: at random values, evenly over the values' ranks ("density"), or evenly
over their range ("linear"), the three starts of Deep Compression (Han et al. 2016, section 3.2).

In one dimension the optimum itself can be found. Clusters of sorted values are intervals, so it is enough to choose where each one
begins: qlab.quant.intervals does, by dynamic programming.
"""

from numbers import Integral

import numpy as np
import torch

from qlab.quant import intervals
from qlab.quant.layout import as_float, as_tensor, check_bits, check_finite, check_layout, extremes, from_rows, params_shape, to_rows
from qlab.quant.qtensor import QTensor

STARTS = ("random", "density", "linear")
EXACT = 4096  # up to this many values a row, a cluster may begin at any of them; above, at this many well-spread ones, then Lloyd


def quantize(x, bits: int = 4, axis: int | None = None, group_size: int | None = None, start: str = "optimal", seed: int = 0) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to a codebook of at most 2**bits centroids per tensor, axis or group.

    start: "optimal" is the optimum of one dimension: exactly for up to 4,096 values that share a codebook; for more, the optimum
    over about 4,096 places where a cluster may begin, then Lloyd's iteration over all values. "random", "density" and "linear" are
    Lloyd's iteration from that start alone. bits: 1 to 16. codes are uint8 (int32 above 8 bits), the codebook is ascending.

    Exactly: the clusters' squared error about their means is the least there is, up to one part in 10**8 that rounding may cost; at any
    magnitude and mixture of magnitudes, except that in float64 distances below 2**-990 of the largest |x| count as none. The codebook
    then holds the means rounded to its dtype, float32 (float64 for float64 x), and each value takes the nearest of these, the lower at
    a tie. As many centroids as there are different values, or more, lose nothing, whatever their number.

    Raises TypeError for x that is not floating point; ValueError for NaN or infinity, bits, a start, an axis or a group size that
    do not fit.

    >>> q = quantize(torch.tensor([0.0, 0.2, 5.0, 5.2]), bits=1)
    >>> q.codes.tolist(), q.codebook
    ([0, 0, 1, 1], tensor([0.1000, 5.1000]))
    """
    x = as_float(x)
    bits = check_bits(bits, 1)
    if start not in ("optimal", *STARTS):
        raise ValueError(f"start is {start!r}, and must be one of optimal, {', '.join(STARTS)}.")
    axis, group_size = check_layout(x.shape, axis, group_size)
    rows = to_rows(x, axis, group_size)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    check_finite(*extremes(rows))
    rows = rows.to("cpu", work)
    values = rows.numpy()
    k = max(1, min(2**bits, values.shape[1]))
    if values.size == 0:
        books = np.zeros((len(values), k))
    elif start == "optimal":
        books = _optimum(np.sort(values, axis=1), k)
    else:
        books = np.stack([lloyd(row, initial(row, k, start, seed))[-1].numpy() for row in values])
    codebook = torch.from_numpy(books).to(work)
    codes = _nearest(rows, codebook).to(torch.uint8 if bits <= 8 else torch.int32)
    shape = params_shape(x.shape, axis, group_size)
    return QTensor(codes=from_rows(codes.to(x.device), x.shape, axis), bits=bits, scheme="kmeans", dtype=x.dtype,
                   codebook=codebook.to(x.device).reshape(*shape, k), axis=axis, group_size=group_size)


def initial(x, k: int, start: str, seed: int = 0) -> torch.Tensor:
    """k centroids to start Lloyd's iteration from, ascending, float64 (k,): "random", "density" or "linear".

    >>> x = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0])
    >>> initial(x, 3, "density"), initial(x, 3, "linear")
    (tensor([1., 1., 1.], dtype=torch.float64), tensor([ 0.,  5., 10.], dtype=torch.float64))
    """
    x = _flat(x)
    if start not in STARTS:
        raise ValueError(f"start is {start!r}, and must be one of {', '.join(STARTS)}.")
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k is {k!r}, and must be a whole number of at least 1.")
    if start == "random":
        picked = np.random.default_rng(seed).choice(x, k, replace=k > len(x))
        return torch.from_numpy(np.sort(picked))
    if start == "linear":
        exponent = _exponent(x)                                                             # the largest range is no float64
        return torch.from_numpy(np.ldexp(np.linspace(*np.ldexp([x.min(), x.max()], -exponent), k), exponent))
    ranks = (np.arange(k) + 0.5) / k * len(x)
    return torch.from_numpy(np.sort(x)[ranks.astype(int)])


def lloyd(x, codebook, max_iter: int = 10_000) -> list[torch.Tensor]:
    """The centroids before the first and after each of Lloyd's iterations, float64 (k,) each, until no value changes its cluster.

    A centroid with no values stays where it is. x, codebook: not empty, finite.

    >>> lloyd(torch.tensor([0.0, 1.0, 9.0, 11.0]), torch.tensor([0.0, 1.0]))
    [tensor([0., 1.], dtype=torch.float64), tensor([0., 7.], dtype=torch.float64), tensor([ 0.5000, 10.0000], dtype=torch.float64)]
    """
    ordered, codebook = np.sort(_flat(x)), np.sort(_flat(as_tensor(codebook, "codebook").double(), "codebook"))
    exponent = _exponent(np.concatenate([ordered, codebook]))
    path = _lloyd(np.ldexp(ordered, -exponent), np.ldexp(codebook, -exponent), max_iter)
    return [torch.from_numpy(np.ldexp(c, exponent)) for c in path]


def mse(x, codebook) -> float:
    """The mean squared distance of the values to their nearest centroid; infinite where float64 holds no number so large.

    >>> mse(torch.tensor([0.0, 1.0, 9.0, 11.0]), torch.tensor([0.5, 10.0]))
    0.625
    """
    x, codebook = torch.from_numpy(_flat(x)), torch.from_numpy(np.sort(_flat(as_tensor(codebook, "codebook").double(), "codebook")))
    return (x - codebook[_nearest(x[None], codebook[None])[0]]).square().mean().item()


def _flat(x, name: str = "x") -> np.ndarray:
    x = as_float(x, name)
    if x.numel() == 0:
        raise ValueError(f"{name} is empty, and must hold at least one value.")
    check_finite(*extremes(x.reshape(1, -1)), name)
    return x.double().reshape(-1).cpu().numpy()


def _exponent(values: np.ndarray) -> np.ndarray:
    """The power of two to divide by so that squares and sums neither overflow nor vanish, (.., 1) from (.., n); mostly 0."""
    exponent = np.frexp(np.abs(values).max(axis=-1, keepdims=True))[1]
    return exponent - exponent.clip(-200, 200)


def _middle(codebook, dtype: torch.dtype) -> torch.Tensor:
    """The largest number of the dtype that is not beyond the midpoint of each two neighbours among ascending centroids (.., k - 1).

    A midpoint that is rounded up could equal a value that lies beyond it, which would then go to the farther centroid.
    """
    low, high = codebook[..., :-1].double(), codebook[..., 1:].double()
    huge = (torch.maximum(low.abs(), high.abs()) > 2.0**1000).double()
    low, high = low * (1 - huge / 2), high * (1 - huge / 2)                                 # a sum of two of the largest overflows
    total = low + high
    added = total - low
    lost = (low - (total - added)) + (high - added)                                         # low + high = total + lost (two-sum)
    middle = (total * (0.5 + huge / 2)).to(dtype)
    twice = middle.double() * (2 - huge)
    beyond = (twice > total) | ((twice == total) & (lost < 0))
    return torch.where(beyond, torch.nextafter(middle, torch.full_like(middle, -torch.inf)), middle)


def _nearest(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of the ascending centroids: how many midpoints between neighbours lie below the value."""
    middle = _middle(codebook, rows.dtype).contiguous()
    if len(rows) == 1:
        return torch.bucketize(rows.contiguous(), middle[0], out_int32=True)
    return torch.searchsorted(middle, rows.contiguous(), out_int32=True)


def _lloyd(ordered: np.ndarray, codebook: np.ndarray, max_iter: int = 10_000):
    """Lloyd's iteration on sorted values: a cluster is an interval, so one iteration costs k binary searches, not n distances."""
    prefix = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])                  # any interval's sum is then one subtraction
    lost = intervals.lost(ordered[None], prefix[None])[0]
    yield codebook
    before = None
    for _ in range(max_iter):
        middle = codebook[1:] / 2 + codebook[:-1] / 2
        rounded = middle.astype(ordered.dtype)
        rounded = np.where(rounded < middle, np.nextafter(rounded, np.inf, dtype=ordered.dtype), rounded)
        edges = np.concatenate([[0], ordered.searchsorted(rounded), [len(ordered)]])
        if before is not None and (edges == before).all():
            return
        before, count = edges, np.diff(edges)
        full = np.maximum(count, 1)
        mean = (prefix[edges[1:]] - prefix[edges[:-1]]) / full
        first, last = ordered[np.minimum(edges[:-1], len(ordered) - 1)], ordered[edges[1:] - 1]
        missing = (lost[edges[1:]] - lost[edges[:-1]]) / full
        mean = np.where(np.abs(missing) > 1e-9 * (last - first), mean + missing, mean)      # a cluster that is narrow beside the sums
        codebook = np.sort(np.where(count > 0, np.clip(mean, first, last), codebook))
        yield codebook


def _optimum(ordered: np.ndarray, k: int) -> np.ndarray:
    """The optimal centroids of each sorted row, (rows, k) from (rows, n)."""
    n, different = ordered.shape[1], 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
    if k == n == different.min():
        return ordered.astype(np.float64)                                                   # each value is a centroid
    together = max(1, intervals.AT_ONCE // (n * max(k, 32))) if n <= EXACT else 1
    books = np.concatenate([_optimum_of_few(ordered[i:i + together], k) for i in range(0, len(ordered), together)])
    for row in np.flatnonzero(different <= k):  # no value needs to share a centroid
        values = np.unique(ordered[row])
        if not np.isin(values, books[row]).all():
            books[row] = np.concatenate([values, np.full(k - len(values), values[-1])])
    return books


def _optimum_of_few(ordered: np.ndarray, k: int) -> np.ndarray:
    exponent = _exponent(ordered[:, [0, -1]])
    scaled = np.ldexp(ordered.astype(np.float64), -exponent) if exponent.any() else ordered
    sums = intervals.running_sums(scaled)
    if ordered.shape[1] > EXACT:
        return np.ldexp(list(_lloyd(scaled[0], _zoom(scaled, sums, k)))[-1][None], exponent)
    edges, book = intervals.cut(scaled, sums, np.arange(ordered.shape[1] + 1), k)
    book = np.ldexp(book, exponent)
    for row in np.flatnonzero((exponent != 0) & (np.diff(edges, axis=1) > 0).all(axis=1, keepdims=True)):
        book[row] = book[row].clip(ordered[row, edges[row, :-1]], ordered[row, edges[row, 1:] - 1])     # what scaling rounded away
    return book


def _zoom(ordered: np.ndarray, sums: intervals.Sums, k: int) -> np.ndarray:
    """Centroids of one row, (k,): the best for edges among well-spread candidates, then among ever closer ones around those found."""
    n, size = ordered.shape[1], max(EXACT, 16 * k)
    cuts, spacing = _candidates(ordered[0], size), n / size
    while True:
        edges, book = intervals.cut(ordered, sums, cuts, k)
        if spacing <= 1:
            return book[0]
        spacing = max(1.0, spacing / 4)
        around = edges[0, :, None] + np.arange(-size // (2 * k), size // (2 * k) + 1) * spacing
        cuts = np.unique(np.concatenate([[0, n], around.clip(0, n).astype(int).ravel()]))


def _candidates(ordered: np.ndarray, size: int) -> np.ndarray:
    """Ranks at which a cluster may begin: half of them even in rank, for the crowd, and half even in value, for the tails."""
    low, high = ordered[[0, -1]].astype(ordered.dtype if np.abs(ordered[[0, -1]]).max() < 1e38 else np.float64)     # high - low overflows
    by_value = np.unique(ordered.searchsorted(np.linspace(low, high, size // 2).astype(ordered.dtype)))
    by_rank = np.linspace(0, len(ordered), size // 2 if len(by_value) > size // 16 else size).astype(int)   # an outlier takes all values
    return np.unique(np.concatenate([[0, len(ordered)], by_rank, by_value]))

