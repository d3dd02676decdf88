"""The optimum of k-means in one dimension: sorted values cut into k intervals, each as near to its own mean as can be.

    best_k[j] = min over i <= j of best_(k-1)[i] + cost(i, j),     cost(i, j) = sum of squares of values i .. j-1 about their mean

                                                                                        Bellman 1973; Wang and Song 2011

The best i never decreases as j grows: once it is known for one j, it bounds the search on either side (divide and conquer).

A cost is found in one of two ways. Running sums give it by two subtractions, which lose digits where a cluster is small beside the
whole row. Blocks lose none: the cost of two neighbouring intervals A and B is

    cost(A) + cost(B) + n_A n_B / (n_A + n_B) * (mean_B - mean_A)**2                                  Chan, Golub and LeVeque 1979

a sum of terms that are not negative, and so are the distances of which mean_B - mean_A is made. The fast way is taken first, with a
bound on what rounding did to it; the careful way where that bound is too large beside the least error.
"""

from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-8  # the error found is at most this part above the least there is, whatever rounding did
AT_ONCE = 1 << 23  # rows are solved together as long as their places times clusters are no more: 16 MB to remember
CACHE = 1 << 15


class Sums(NamedTuple):
    """Of each row of sorted values, about its middle one: the sums of the first 0, 1, .. n values and of their squares, (rows, n + 1)."""

    middle: np.ndarray
    plain: np.ndarray
    squares: np.ndarray
    lost: tuple[np.ndarray, np.ndarray]  # the most that rounding put into any of either, (rows,)


def running_sums(ordered: np.ndarray) -> Sums:
    middle = ordered[:, ordered.shape[1] // 2, None].astype(np.float64)                     # sums about the median lose fewer digits
    centred = ordered - middle
    start = np.zeros((len(ordered), 1))
    plain = np.concatenate([start, np.cumsum(centred, axis=1)], axis=1)
    lost_plain = np.abs(lost(centred, plain)).max(axis=1)
    np.square(centred, out=centred)
    squares = np.concatenate([start, np.cumsum(centred, axis=1)], axis=1)
    return Sums(middle, plain, squares, (lost_plain, np.abs(lost(centred, squares)).max(axis=1)))


def lost(terms: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """What rounding took from running sums, (rows, n + 1): sums + lost are the sums of the terms, (rows, n) (Knuth's two-sum)."""
    result = np.zeros(sums.shape)
    for i in range(0, terms.shape[1], CACHE):
        a, b, total = sums[:, i:i + CACHE + 1][:, :-1], terms[:, i:i + CACHE], sums[:, i + 1:i + CACHE + 1]
        added = total - a
        error = (a - (total - added)) + (b - added)
        error[:, 0] += result[:, i]
        np.cumsum(error, axis=1, out=result[:, i + 1:i + CACHE + 1])
    return result


def cut(ordered: np.ndarray, sums: Sums, cuts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of k clusters begins and the last ends, as ranks, (rows, k + 1), and their means, ascending, (rows, k).

    ordered: (rows, n), finite, no larger than 2**500; cuts: the ranks at which a cluster may begin or end, ascending from 0 to n.
    """
    rows, n = ordered.shape
    if k > max(64, n // 4) and (np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1) >= k).all():   # sums would drown it
        edges, book, unsure = np.empty((rows, k + 1), dtype=np.int64), np.empty((rows, k)), list(range(rows))
    else:
        plain, squares = (sums.plain, sums.squares) if len(cuts) == n + 1 else (sums.plain[:, cuts], sums.squares[:, cuts])
        places, least = _best_edges(rows, len(cuts), k, _by_sums(np.tile(cuts, (rows, 1)), plain, squares))
        edges = cuts[places]
        book = _means(ordered, sums, edges)
        unsure = np.flatnonzero(~(_bound(sums, k) <= TOLERANCE * least))
        unsure = [row for row in unsure if not np.isin(ordered[row], book[row]).all()]      # values that all are centroids leave no error
    together = max(1, AT_ONCE // (1024 * len(cuts)))                                            # some 100 tables a row
    for some in (unsure[i:i + together] for i in range(0, len(unsure), together)):
        values = ordered[some].astype(np.float64)
        values = np.ldexp(values, 480 - np.frexp(np.abs(values).max(axis=1, keepdims=True))[1])     # squares neither overflow nor vanish
        edges[some] = cuts[_best_edges(len(some), len(cuts), k, _by_blocks(values, cuts))[0]]
        book[some] = [means(ordered[row], edges[row]) for row in some]
    return edges, book


def _bound(sums: Sums, k: int) -> np.ndarray:
    """How far rounding can have moved the least error that running sums give, (rows,): two roundings a cluster, and the sums' own."""
    whole, (plain, squares) = sums.squares[:, -1], sums.lost
    return (k + 8) * 2.0**-52 * whole + squares + 4 * plain * np.sqrt(k * whole)


def means(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Each cluster's mean, ascending, from edges (k + 1,) of sorted values (n,): summed from its first value on, so that no digit is
    lost to another cluster. An empty cluster repeats the first mean."""
    first, last = edges[:-1][np.diff(edges) > 0], edges[1:][np.diff(edges) > 0]
    base = ordered[first].astype(np.float64)
    mean = base + np.add.reduceat(ordered - np.repeat(base, last - first), first) / (last - first)
    mean = np.clip(mean, base, ordered[last - 1])
    return np.concatenate([np.full(len(edges) - 1 - len(mean), mean[0]), mean])


def _means(ordered: np.ndarray, sums: Sums, edges: np.ndarray) -> np.ndarray:
    """Each cluster's mean, (rows, k), from running sums; an empty cluster, which costs nothing, repeats the mean before it."""
    count = np.diff(edges, axis=1)
    total = np.diff(np.take_along_axis(sums.plain, edges, axis=1), axis=1)
    mean = total / np.maximum(count, 1) + sums.middle
    first = np.take_along_axis(ordered, np.minimum(edges[:, :-1], ordered.shape[1] - 1), axis=1)
    last = np.take_along_axis(ordered, np.maximum(edges[:, 1:] - 1, 0), axis=1)
    mean = np.where(count > 0, np.clip(mean, first, last), mean)                            # a value beside huge ones keeps its place
    last_full = np.maximum.accumulate(np.where(count > 0, np.arange(count.shape[1]), 0), axis=1)
    return np.sort(np.take_along_axis(mean, last_full, axis=1), axis=1)


def _best_edges(rows: int, m: int, k: int, costs) -> tuple[np.ndarray, np.ndarray]:
    """The dynamic programme: where each of k clusters begins and the last ends, (rows, k + 1), as places 0 .. m-1, and the least error."""
    edges = np.full((rows, k + 1), m - 1)
    best, after = costs
    backs = []
    for _ in range(k - 1):
        best, back = _one_more(best, after)
        backs.append(back.astype(np.uint16 if m <= 1 << 16 else np.uint32))                 # kept to the end: small
    for cluster in range(k - 1, 0, -1):
        edges[:, cluster] = backs[cluster - 1][np.arange(rows), edges[:, cluster + 1]]
    edges[:, 0] = 0
    return edges, best[:, -1]


def _by_sums(ranks: np.ndarray, sums: np.ndarray, squares: np.ndarray):
    """Costs by running sums: cost(0, j), (rows, m), and the function that _one_more asks. ranks, sums, squares: (rows, m)."""
    def after(before):
        fixed = (before - squares).ravel()

        def value(i, target, length):
            size = flat_ranks[target].repeat(length) - flat_ranks[i]
            shift = flat_sums[target].repeat(length) - flat_sums[i]
            return fixed[i] - shift * shift / np.maximum(size, 1)

        return value, squares

    flat_ranks, flat_sums = ranks.ravel(), sums.ravel()
    return squares - sums**2 / np.maximum(ranks, 1), after


class _Stretch(NamedTuple):
    """Of intervals: the number of values, their cost, and the distance of their mean from the first and from the last of them."""

    n: np.ndarray
    cost: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _joined(a: _Stretch, b: _Stretch, gap: np.ndarray) -> _Stretch:
    """a, then b, with `gap` between a's last value and b's first."""
    n, apart = a.n + b.n, a.high + gap + b.low
    return _Stretch(n, a.cost + b.cost + a.n * b.n / n * apart**2, a.low + b.n / n * apart, b.high + a.n / n * apart)


def _by_blocks(ordered: np.ndarray, cuts: np.ndarray):
    """Costs by blocks: as _by_sums, without a subtraction of what is nearly equal. ordered: (rows, n).

    Blocks of 1, 2, 4, .. stretches between cuts. For any two stretches, i before l, there is one size at which they lie in neighbouring
    blocks: it is the highest bit in which i and l differ. The interval is then the end of the one block and the beginning of the other,
    and both are kept for every stretch and size.
    """
    rows, m = len(ordered), len(cuts)
    levels = (m - 2).bit_length()
    width = 1 << levels
    stretches, gap = _stretches(ordered, cuts, width)
    begins = ends = stretches                                            # the block up to a stretch, and from a stretch on, both with it
    nothing = np.zeros(rows * width)
    left, right = [(ends.n, ends.cost, nothing)], [(nothing, nothing, nothing)]             # i = l: the stretch alone
    for level in range(levels):
        between = gap.reshape(-1, 1 << level)[:, -1:]
        left.append((ends.n, ends.cost, (ends.high.reshape(-1, 1 << level) + between).ravel()))
        right.append((begins.n, begins.cost, begins.low))
        b, e = (_Stretch(*(t.reshape(-1, 2, 1 << level) for t in part)) for part in (begins, ends))
        whole_left, whole_right = (_Stretch(*(t[:, side, where, None] for t in part)) for part, side, where in ((b, 0, -1), (e, 1, 0)))
        longer = _joined(_Stretch(*(t[:, 0] for t in e)), whole_right, between[::2])
        ends = _Stretch(*(np.stack([new, t[:, 1]], axis=1).ravel() for new, t in zip(longer, e)))
        longer = _joined(whole_left, _Stretch(*(t[:, 1] for t in b)), between[::2])
        begins = _Stretch(*(np.stack([t[:, 0], new], axis=1).ravel() for new, t in zip(longer, b)))
    left, right = (np.array(side).transpose(1, 0, 2).reshape(3, -1) for side in (left, right))
    size_of = np.zeros(width, dtype=np.int64)                                               # 0, and the highest bit's number, from 1
    for level in range(levels):
        size_of[1 << level:2 << level] = (level + 1) * rows * width

    def cost_of(i, j, row):
        end = np.maximum(j - 1, 0)
        begin = np.minimum(i, end)
        base = size_of[begin ^ end] + row * width
        begin, end = begin + base, end + base
        size, size_b = left[0].take(begin), right[0].take(end)
        apart = left[2].take(begin) + right[2].take(end)
        cost = left[1].take(begin) + right[1].take(end) + size * size_b / (size + size_b) * apart * apart
        cost[i == j] = 0
        return cost

    def after(before):
        def value(i, target, length):
            row = target // m
            return before.ravel()[i] + cost_of(i - np.repeat(row * m, length), np.repeat(target % m, length), np.repeat(row, length))

        return value, 0.0

    j = np.arange(rows * m)
    return cost_of(np.zeros_like(j), j % m, j // m).reshape(rows, m), after


def _stretches(ordered: np.ndarray, cuts: np.ndarray, width: int) -> tuple[_Stretch, np.ndarray]:
    """The values between neighbouring cuts, padded to `width` stretches a row, all rows end to end; and the gap after each."""
    first, last, n = cuts[:-1], cuts[1:] - 1, np.diff(cuts)
    from_first = ordered - np.repeat(ordered[:, first], n, axis=1)
    low = np.add.reduceat(from_first, first, axis=1) / n
    high = np.add.reduceat(np.repeat(ordered[:, last], n, axis=1) - ordered, first, axis=1) / n
    cost = np.add.reduceat((from_first - np.repeat(low, n, axis=1))**2, first, axis=1)

    def padded(values, fill=0.0):
        values = np.broadcast_to(values, (len(ordered), values.shape[-1])).astype(np.float64)
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill).ravel()

    return _Stretch(padded(n, 1.0), padded(cost), padded(low), padded(high)), padded(ordered[:, first[1:]] - ordered[:, last[:-1]])


def _one_more(before: np.ndarray, after) -> tuple[np.ndarray, np.ndarray]:
    """best[j] = min over i <= j of before[i] + cost(i, j), and the best i, for every j of every row: (rows, m) each.

    The middle j first, then the middles of the halves, and so on: each searches only between the answers of its solved neighbours,
    so a whole level looks at about m pairs.
    """
    rows, m = before.shape
    best, back = np.empty((rows, m)), np.zeros((rows, m), dtype=np.int64)
    value_of, rest = after(before)
    flat_best, flat_back = best.ravel(), back.ravel()
    start_of_row = np.arange(rows)[:, None] * m
    stride = 1 << (m - 1).bit_length()
    while stride:
        js = np.arange(stride - 1, m, 2 * stride)
        left, right = js - stride, js + stride
        low = np.where(left >= 0, back[:, np.maximum(left, 0)], 0)                          # (rows, js)
        high = np.minimum(np.where(right < m, back[:, np.minimum(right, m - 1)], m - 1), js)
        target, first, length = (start_of_row + js).ravel(), (start_of_row + low).ravel(), (high - low + 1).ravel()
        begin = np.cumsum(length) - length                                                  # each j's candidates, end to end
        i = np.arange(length.sum()) + (first - begin).repeat(length)
        value = value_of(i, target, length)
        lowest = np.minimum.reduceat(value, begin)
        hits = np.flatnonzero(value == lowest.repeat(length))
        flat_best[target] = lowest
        flat_back[target] = i[hits[hits.searchsorted(begin)]] - target // m * m
        stride //= 2
    return best + rest, back
