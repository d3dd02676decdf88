"""K-means quantization: the levels go where the values are. A code is an index into a codebook of 2**b centroids.

    minimise  sum_i (x_i - c[q_i])**2   over the centroids c and the codes q                Lloyd 1957/1982; Han et al. 2016, eq. 2

Lloyd's iteration alternates two steps that cannot raise the sum: give each value the nearest centroid, move each centroid to the
mean of its values. Where it stops depends on where it starts: at random values, evenly over the values' ranks ("density"), or evenly
over their range ("linear"), the three starts of Deep Compression (Han et al. 2016, section 3.2).

In one dimension the optimum itself can be found. Clusters of sorted values are intervals, so it is enough to choose where each one
begins, by dynamic programming (Bellman 1973; Wang and Song 2011):

    best_k[j] = min over i <= j of best_(k-1)[i] + cost(i, j),     cost(i, j) = sum of squares of values i .. j-1 about their mean

The best i never decreases as j grows: once it is known for one j, it bounds the search on either side (divide and conquer).
"""

import numpy as np
import torch

from qlab.quant.layout import as_float, check_bits, check_finite, check_layout, extremes, from_rows, params_shape, to_rows
from qlab.quant.qtensor import QTensor

STARTS = ("random", "density", "linear")
EXACT = 4096  # up to this many values a row, a cluster may begin at any of them; above, at this many well-spread ones, then Lloyd


def quantize(x, bits: int = 4, axis: int | None = None, group_size: int | None = None, start: str = "optimal", seed: int = 0) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to a codebook of at most 2**bits centroids per tensor, axis or group.

    start: "optimal" is the optimum of one dimension: exactly for up to 4,096 values that share a codebook; for more, the optimum
    over about 4,096 places where a cluster may begin, then Lloyd's iteration over all values. "random", "density" and "linear" are
    Lloyd's iteration from that start alone. bits: 1 to 16. codes are uint8 (int32 above 8 bits), the codebook is ascending.

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
    if k < 1:
        raise ValueError(f"k is {k}, and must be at least 1.")
    if start == "random":
        picked = np.random.default_rng(seed).choice(x, k, replace=k > len(x))
        return torch.from_numpy(np.sort(picked))
    if start == "linear":
        return torch.from_numpy(np.linspace(x.min(), x.max(), k))
    ranks = (np.arange(k) + 0.5) / k * len(x)
    return torch.from_numpy(np.sort(x)[ranks.astype(int)])


def lloyd(x, codebook, max_iter: int = 10_000) -> list[torch.Tensor]:
    """The centroids before the first and after each of Lloyd's iterations, float64 (k,) each, until no value changes its cluster.

    A centroid with no values stays where it is.

    >>> lloyd(torch.tensor([0.0, 1.0, 9.0, 11.0]), torch.tensor([0.0, 1.0]))
    [tensor([0., 1.], dtype=torch.float64), tensor([0., 7.], dtype=torch.float64), tensor([ 0.5000, 10.0000], dtype=torch.float64)]
    """
    ordered = np.sort(_flat(x))
    codebook = np.sort(torch.as_tensor(codebook).double().cpu().numpy())
    return [torch.from_numpy(c) for c in _lloyd(ordered, _prefix(ordered), codebook, max_iter)]


def mse(x, codebook) -> float:
    """The mean squared distance of the values to their nearest centroid.

    >>> mse(torch.tensor([0.0, 1.0, 9.0, 11.0]), torch.tensor([0.5, 10.0]))
    0.625
    """
    x, codebook = torch.from_numpy(_flat(x)), torch.as_tensor(codebook).double().cpu().sort().values
    return (x - codebook[_nearest(x[None], codebook[None])[0]]).square().mean().item()


def _flat(x) -> np.ndarray:
    x = as_float(x)
    if x.numel() == 0:
        raise ValueError("x is empty, and must hold at least one value.")
    check_finite(*extremes(x.reshape(1, -1)))
    return x.double().reshape(-1).cpu().numpy()


def _nearest(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of the ascending centroids: how many midpoints between neighbours lie below the value."""
    middle = ((codebook[:, 1:].double() + codebook[:, :-1].double()) / 2).to(rows.dtype)
    if len(rows) == 1:
        return torch.bucketize(rows, middle[0], out_int32=True)
    return torch.searchsorted(middle, rows.contiguous(), out_int32=True)


def _prefix(ordered: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, .. n values, in float64: any interval's sum is then one subtraction."""
    return np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])


def _lloyd(ordered: np.ndarray, prefix: np.ndarray, codebook: np.ndarray, max_iter: int):
    """Lloyd's iteration on sorted values: a cluster is an interval, so one iteration costs k binary searches, not n distances."""
    yield codebook
    before = None
    for _ in range(max_iter):
        middle = (codebook[1:] + codebook[:-1]) / 2
        edges = np.concatenate([[0], ordered.searchsorted(middle.astype(ordered.dtype)), [len(ordered)]])
        if before is not None and (edges == before).all():
            return
        before, count = edges, np.diff(edges)
        mean = (prefix[edges[1:]] - prefix[edges[:-1]]) / np.maximum(count, 1)
        codebook = np.sort(np.where(count > 0, mean, codebook))
        yield codebook


def _optimum(ordered: np.ndarray, k: int) -> np.ndarray:
    """The optimal centroids of each sorted row, (rows, k) from (rows, n)."""
    rows, n = ordered.shape
    middle = ordered[:, n // 2, None].astype(np.float64)                                    # sums about the median lose fewer digits
    centred = ordered - middle
    sums = np.concatenate([np.zeros((rows, 1)), np.cumsum(centred, axis=1)], axis=1)
    np.square(centred, out=centred)
    squares = np.concatenate([np.zeros((rows, 1)), np.cumsum(centred, axis=1)], axis=1)
    if n <= EXACT:
        edges = _best_edges(np.tile(np.arange(n + 1), (rows, 1)), sums, squares, k)
        return _means(sums, edges) + middle
    books = []
    for row in range(rows):
        edges = _zoom(ordered[row], sums[row], squares[row], k)
        book = _means(sums[row][None], edges[None])[0] + middle[row]
        books.append(list(_lloyd(ordered[row], _prefix(ordered[row]), book, 10_000))[-1])
    return np.stack(books)


def _zoom(ordered: np.ndarray, sums: np.ndarray, squares: np.ndarray, k: int) -> np.ndarray:
    """Edges as ranks, (k + 1,): the best among well-spread candidates, then among ever closer ones around those found."""
    n, size = len(ordered), max(EXACT, 16 * k)
    cuts, spacing = _candidates(ordered, size), n / size
    while True:
        edges = cuts[_best_edges(cuts[None], sums[cuts][None], squares[cuts][None], k)[0]]
        if spacing <= 1:
            return edges
        spacing = max(1.0, spacing / 4)
        around = edges[:, None] + np.arange(-size // (2 * k), size // (2 * k) + 1) * spacing
        cuts = np.unique(np.concatenate([[0, n], around.clip(0, n).astype(int).ravel()]))


def _candidates(ordered: np.ndarray, size: int) -> np.ndarray:
    """Ranks at which a cluster may begin: half of them even in rank, for the crowd, and half even in value, for the tails."""
    by_rank = np.linspace(0, len(ordered), size // 2).astype(int)
    by_value = ordered.searchsorted(np.linspace(ordered[0], ordered[-1], size // 2).astype(ordered.dtype))
    return np.unique(np.concatenate([[0, len(ordered)], by_rank, by_value]))


def _means(sums: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Each cluster's mean, (rows, k); an empty cluster, which costs nothing, repeats the mean before it."""
    count = np.diff(edges, axis=1)
    total = np.diff(np.take_along_axis(sums, edges, axis=1), axis=1)
    last_full = np.maximum.accumulate(np.where(count > 0, np.arange(count.shape[1]), 0), axis=1)
    mean = total / np.maximum(count, 1)
    return np.sort(np.take_along_axis(mean, last_full, axis=1), axis=1)


def _best_edges(ranks: np.ndarray, sums: np.ndarray, squares: np.ndarray, k: int) -> np.ndarray:
    """The dynamic programme: where each of k clusters begins and the last ends, (rows, k + 1), as indices into ranks.

    ranks, sums, squares: (rows, m), at each place that an edge may be.
    """
    rows, m = ranks.shape
    edges = np.full((rows, k + 1), m - 1)
    best = squares - sums**2 / np.maximum(ranks, 1)                                         # one cluster: cost(0, j)
    backs = []
    for _ in range(k - 1):
        best, back = _one_more(best, ranks, sums, squares)
        backs.append(back)
    for cluster in range(k - 1, 0, -1):
        edges[:, cluster] = backs[cluster - 1][np.arange(rows), edges[:, cluster + 1]]
    edges[:, 0] = 0
    return edges


def _one_more(before: np.ndarray, ranks: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """best[j] = min over i <= j of before[i] + cost(i, j), and the best i, for every j of every row: (rows, m) each.

    The middle j first, then the middles of the halves, and so on: each searches only between the answers of its solved neighbours,
    so a whole level looks at about m pairs.
    """
    rows, m = ranks.shape
    best, back = np.empty((rows, m)), np.zeros((rows, m), dtype=np.int64)
    fixed = (before - squares).ravel()
    ranks, sums, flat_best, flat_back = ranks.ravel(), sums.ravel(), best.ravel(), back.ravel()
    start_of_row = np.arange(rows)[:, None] * m
    stride = 1 << (m - 1).bit_length()
    while stride:
        js = np.arange(stride - 1, m, 2 * stride)
        left, right = js - stride, js + stride
        low = np.where(left >= 0, back[:, np.maximum(left, 0)], 0)                          # (rows, js)
        high = np.minimum(np.where(right < m, back[:, np.minimum(right, m - 1)], m - 1), js)
        target, first, length = (start_of_row + js).ravel(), (start_of_row + low).ravel(), (high - low + 1).ravel()
        begin = np.cumsum(length) - length                                                  # each j's candidates, end to end
        i = np.arange(length.sum()) + np.repeat(first - begin, length)
        size = np.repeat(ranks[target], length) - ranks[i]
        shift = np.repeat(sums[target], length) - sums[i]
        value = fixed[i] - shift * shift / np.maximum(size, 1)
        lowest = np.minimum.reduceat(value, begin)
        hits = np.flatnonzero(value == np.repeat(lowest, length))
        flat_best[target] = lowest
        flat_back[target] = i[hits[np.searchsorted(hits, begin)]] - target // m * m
        stride //= 2
    return best + squares, back
