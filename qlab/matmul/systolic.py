"""A systolic array for INT8, cycle by cycle (Kung 1982; the matrix unit of Jouppi et al. 2017 works this way).

Multiply a, (M, K), by b, (K, N), on a grid of rows x cols elements. Each element keeps one weight of b (weight-stationary). At each
tick of the clock it takes an activation from its left neighbour and a partial sum from the one above, and holds, until the next tick,

    activation[i, j] <- activation[i, j - 1]
    sum[i, j]        <- sum[i - 1, j] + weight[i, j] * activation[i, j - 1]

Row m of a enters row i of the array at cycle m + i of the multiplication, one cycle later than the row above: so it meets in (i, j),
at cycle m + i + j, just the sum that was begun for it. c[m, j] leaves the foot of column j. Nothing is read from memory on the way.

A tile of b, at most rows x cols of it, takes rows cycles to shift in from above and M + rows + cols - 2 to multiply. Tiles follow one
another; what they have in common is added up below the array, in int32. With every cycle counted,

    cycles      = ceil(K / rows) ceil(N / cols) (M + 2 rows + cols - 2)
    utilization = M K N / (cycles rows cols)

Google's array hides the loading: its elements have a second register, into which the next tile's weights shift meanwhile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qlab.matmul.reference import MAX_K


@dataclass(frozen=True, eq=False)
class State:
    """What the registers of a rows x cols array hold after one tick. Arrays are (rows, cols) and read-only.

    cycle: from 0, over all tiles; tile: the (k, n) at which the tile begins in b; loading: whether this tick shifted weights down;
    weight, activation: int8; partial_sum: int32; row: the row of a that the activation is from, -1 where there is none;
    active: whether the element did one of the M K N products of a @ b (a padded element, or one that waits, did not);
    out: the tuples (m, n, sum) of this tile that have just left the foot; work: useful products up to and including this cycle.
    """

    cycle: int
    tile: tuple[int, int]
    loading: bool
    weight: np.ndarray
    activation: np.ndarray
    partial_sum: np.ndarray
    row: np.ndarray
    active: np.ndarray
    out: tuple[tuple[int, int, int], ...]
    work: int

    @property
    def utilization(self) -> float:
        """Useful products so far over those that the elements could have done in as many cycles."""
        return self.work / ((self.cycle + 1) * self.weight.size)


@dataclass(frozen=True, eq=False)
class Run:
    """product: int32 (M, N), exact; cycles that it took; utilization, from 0 to 1."""

    product: np.ndarray
    cycles: int
    utilization: float


def count_cycles(m: int, k: int, n: int, rows: int, cols: int) -> int:
    """Cycles of an (m, k) by (k, n) product on a rows x cols array: the formula above. Raises ValueError if a size is below 1.

    >>> count_cycles(4, 3, 3, 3, 3), count_cycles(1, 256, 256, 256, 256)
    (11, 767)
    """
    for name, size in {"m": m, "k": k, "n": n, "rows": rows, "cols": cols}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and must be 1 or more.")
    return math.ceil(k / rows) * math.ceil(n / cols) * (m + 2 * rows + cols - 2)


def utilization(m: int, k: int, n: int, rows: int, cols: int) -> float:
    """Useful products over possible ones: m k n / (cycles rows cols). Raises ValueError if a size is below 1.

    >>> utilization(4, 3, 3, 3, 3) == 36 / (11 * 9)
    True
    """
    return m * k * n / (count_cycles(m, k, n, rows, cols) * rows * cols)


@dataclass(frozen=True, eq=False)
class Tick:
    """What is put on the edges of the array for one tick: load, whether weights shift; weights, int8 (cols,), from above; activations,
    int8 (rows,), from the left; tile and t, the tick's number within the tile's multiplication (below 0 while it loads)."""

    tile: tuple[int, int]
    t: int
    load: bool
    weights: np.ndarray
    activations: np.ndarray


def feed(a: np.ndarray, b: np.ndarray, rows: int, cols: int) -> Iterator[Tick]:
    """The edges of the array at each tick of a @ b: rows ticks of weights, the bottom row first, then the rows of a, skewed.

    a: int8 (M, K), b: int8 (K, N). Tiles that do not fill the array are padded with zeros. Raises as `steps` does.

    >>> a, b = np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8)
    >>> [(tick.weights.tolist(), tick.activations.tolist()) for tick in feed(a, b, 2, 1)]
    [([4], [0, 0]), ([3], [0, 0]), ([0], [1, 0]), ([0], [0, 2])]
    """
    a, b = _checked(a, b, rows, cols)
    (m, k), n = a.shape, b.shape[1]
    idle_weights, idle_activations = np.zeros(cols, np.int8), np.zeros(rows, np.int8)
    for tile in [(first_k, first_n) for first_n in range(0, n, cols) for first_k in range(0, k, rows)]:
        weights = _padded(b[tile[0]:tile[0] + rows, tile[1]:tile[1] + cols], rows, cols)
        activations = _padded(a[:, tile[0]:tile[0] + rows], m, rows)
        for i in reversed(range(rows)):
            yield Tick(tile, i - rows, True, weights[i], idle_activations)
        for t in range(m + rows + cols - 2):
            entering = [activations[t - i, i] if 0 <= t - i < m else 0 for i in range(rows)]
            yield Tick(tile, t, False, idle_weights, np.array(entering, np.int8))


def steps(a: np.ndarray, b: np.ndarray, rows: int, cols: int) -> Iterator[State]:
    """The states of the array, one a cycle, while it multiplies a by b.

    a: int8 (M, K), b: int8 (K, N), NumPy arrays or CPU tensors. Raises TypeError for another dtype, ValueError for shapes that do not
    fit, sizes below 1, or a K that int32 may not hold (131,072 or more).

    >>> states = list(steps(np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8), rows=2, cols=1))
    >>> [state.partial_sum.ravel().tolist() for state in states], states[-1].out
    ([[0, 0], [0, 0], [3, 0], [0, 11]], ((0, 0, 11),))
    """
    a, b = _checked(a, b, rows, cols)
    (m, k), n = a.shape, b.shape[1]
    weight, activation = np.zeros((rows, cols), np.int8), np.zeros((rows, cols), np.int8)
    partial_sum = np.zeros((rows, cols), np.int32)
    i, j = np.indices((rows, cols))
    work = 0
    for cycle, tick in enumerate(feed(a, b, rows, cols)):
        activation = np.column_stack([tick.activations, activation[:, :-1]])
        from_above = np.vstack([np.zeros((1, cols), np.int32), partial_sum[:-1]])
        partial_sum = from_above + weight.astype(np.int32) * activation
        if tick.load:
            weight = np.vstack([tick.weights, weight[:-1]])
        row = tick.t - i - j
        row = np.where((row >= 0) & (row < m) & (not tick.load), row, -1)
        active = (row >= 0) & (tick.tile[0] + i < k) & (tick.tile[1] + j < n)
        work += int(active.sum())
        out = tuple((int(row[-1, j]), tick.tile[1] + j, int(partial_sum[-1, j]))
                    for j in range(min(cols, n - tick.tile[1])) if row[-1, j] >= 0)
        for register in (weight, activation, partial_sum, row, active):
            register.flags.writeable = False
        yield State(cycle, tick.tile, tick.load, weight, activation, partial_sum, row, active, out, work)


def multiply(a: np.ndarray, b: np.ndarray, rows: int, cols: int) -> Run:
    """a @ b from what leaves the foot of the array, with its cycles counted. Arguments and errors as `steps`.

    >>> run = multiply(np.full((3, 5), -128, np.int8), np.full((5, 2), 127, np.int8), rows=4, cols=4)
    >>> run.product.tolist(), run.cycles
    ([[-81280, -81280], [-81280, -81280], [-81280, -81280]], 26)
    """
    a, b = _checked(a, b, rows, cols)
    product = np.zeros((len(a), b.shape[1]), np.int32)
    for state in steps(a, b, rows, cols):
        for m, n, value in state.out:
            product[m, n] += value  # the accumulators below the array: one term for each tile along K
    return Run(product, state.cycle + 1, state.utilization)


def _padded(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return np.pad(x, [(0, rows - x.shape[0]), (0, cols - x.shape[1])])


def _checked(a, b, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    for name, x in {"a": a, "b": b}.items():
        if x.dtype != np.int8:
            raise TypeError(f"{name} is {x.dtype}, and must be int8.")
        if x.ndim != 2 or not x.size:
            raise ValueError(f"{name} has the shape {x.shape}, and must have two dimensions, each of 1 or more.")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a is {a.shape} and b is {b.shape}: a must have as many columns as b has rows.")
    if a.shape[1] >= MAX_K:
        raise ValueError(f"K is {a.shape[1]:,}, and must be below {MAX_K:,}: a sum of more products may not fit into int32.")
    for name, size in {"rows": rows, "cols": cols}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and must be 1 or more.")
    return a, b
