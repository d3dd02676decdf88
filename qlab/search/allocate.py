"""Bits for each layer under a budget: the knapsack problem, solved exactly, by a solver, or greedily.

    minimise  sum over layers of value[l, b_l]      so that      sum over layers of cost[l, b_l] <= budget

exact    layer by layer, all sums that can still be part of the optimum: of two that cost the same or more, the one that loses more is
         dropped, for whatever follows, the other is better. Bellman's dynamic program (1957), without a grid: costs may be any numbers.
milp     0 or 1 for each layer and width, one 1 a layer: an integer program (HAWQ-V3, Yao et al. 2021, section 3.4), solved by
         scipy.optimize.milp (HiGHS); it takes several budgets at once.
greedy   every layer as cheap as it can be, then again and again the exchange that gains most for what it costs more.

value, cost: tables of the same layers and widths (qlab.search.sensitivity, qlab.search.costs). What does not add up is for
qlab.search.evolution, which can begin with one of these.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from qlab.search.table import Table, check_number, same_places

ROUNDING = 1e-9                                                                             # of a budget: sums of floats differ by order
CUTS = 20                                                                                   # solutions that are a hair too dear, at most


def exact(value: Table, cost: Table, budget: float) -> dict[str, int]:
    """The allocation of the least value that costs at most the budget; of several, one that costs least.

    value: may be negative. cost: 0 or more. Raises ValueError for tables of different layers or widths, a negative cost, a budget that is
    no number, or below the least possible, which it says; TypeError for what is no Table.

    >>> value = Table.from_rows({"a": {2: 5.0, 4: 1.0}, "b": {2: 4.0, 4: 1.0}})
    >>> cost = Table.from_rows({"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}})
    >>> exact(value, cost, 49), exact(value, cost, 50)
    ({'a': 2, 'b': 4}, {'a': 4, 'b': 2})
    """
    limit = _limit(value, [cost], [budget])[0]
    values, costs = value.values.numpy(), cost.values.numpy()
    rest = np.append(np.cumsum(costs.min(1)[::-1])[::-1], 0.0)                              # the least that it and those behind it cost
    spent, lost, steps = np.zeros(1), np.zeros(1), []
    for layer in range(len(costs)):
        spent, lost = (np.add.outer(so_far, own[layer]).ravel() for so_far, own in ((spent, costs), (lost, values)))
        order = np.lexsort((lost, spent))                                                   # the cheaper first, of those the better
        order = order[spent[order] + rest[layer + 1] <= limit]
        best = np.minimum.accumulate(lost[order])
        kept = order[np.append(True, lost[order][1:] < best[:-1])]
        spent, lost = spent[kept], lost[kept]
        steps.append(np.divmod(kept, costs.shape[1]))                                       # which sum before, and which width
    chosen, place = [], len(spent) - 1                                                      # the last kept loses least
    for before, width in reversed(steps):
        chosen.append(value.widths[width[place]])
        place = before[place]
    return dict(zip(value.layers, reversed(chosen)))


def greedy(value: Table, cost: Table, budget: float) -> dict[str, int]:
    """The allocation that buys, step by step, the width with the largest gain for each unit of cost among those that still fit.

    Raises as exact does. Not the optimum where what was bought leaves no room for a larger step:

    >>> value = Table.from_rows({"a": {2: 5.0, 4: 1.0}, "b": {2: 4.0, 4: 1.0}})
    >>> cost = Table.from_rows({"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}})
    >>> found = greedy(value, cost, 50)                                      # b gains 3 for 10, a would gain 4 for 20
    >>> found, value(found), value(exact(value, cost, 50))
    ({'a': 2, 'b': 4}, 6.0, 5.0)
    """
    limit = _limit(value, [cost], [budget])[0]
    values, costs = value.values.numpy(), cost.values.numpy()
    rows = np.arange(len(costs))
    chosen = np.array([np.lexsort((v, c))[0] for v, c in zip(values, costs)])               # the cheapest; of those the best
    while True:
        gain = values[rows, chosen][:, None] - values
        more = costs - costs[rows, chosen][:, None]
        fits = (gain > 0) & (costs[rows, chosen].sum() + more <= limit)
        if not fits.any():
            return {name: value.widths[j] for name, j in zip(value.layers, chosen)}
        rate = np.where(fits, gain / np.maximum(more, 1e-300), -np.inf)                     # what costs no more comes first
        i, j = np.unravel_index(rate.argmax(), rate.shape)
        chosen[i] = j


def milp(value: Table, cost: Table | Sequence[Table], budget: float | list[float]) -> dict[str, int]:
    """The allocation of the least value that keeps every budget: of one cost, or of several at once, each with its own.

    Raises as exact does, ValueError where each budget can be kept, but not all together; ImportError without scipy.

    >>> value = Table.from_rows({"a": {2: 5.0, 4: 1.0}, "b": {2: 3.0, 4: 1.0}})
    >>> nbytes = Table.from_rows({"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}})
    >>> ms = Table.from_rows({"a": {2: 1.0, 4: 4.0}, "b": {2: 1.0, 4: 1.5}})
    >>> milp(value, nbytes, 50), milp(value, [nbytes, ms], [50, 3.0])
    ({'a': 4, 'b': 2}, {'a': 2, 'b': 4})
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint
        from scipy.optimize import milp as solve
    except ImportError:
        raise ImportError("scipy is not installed, which solves integer programs: pip install scipy, or use exact.") from None
    costs = list(cost) if isinstance(cost, (list, tuple)) else [cost]
    budgets = list(budget) if isinstance(budget, (list, tuple)) else [budget]
    if len(costs) != len(budgets) or not costs:
        raise ValueError(f"there are {len(costs)} costs and {len(budgets)} budgets: give each cost its budget.")
    limits = _limit(value, costs, budgets)
    (layers, widths), values = value.values.shape, value.values.numpy()
    values = values - values.min(1, keepdims=True)
    scaled = 1000 * values / (values.max() or 1.0)                                          # HiGHS ends within 1e-6 of the optimum
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1)
    more = [c.values.numpy() - c.values.numpy().min(1, keepdims=True) for c in costs]       # than the least, so that small steps show
    room = [b - _least(c) for c, b in zip(costs, limits)]
    parts, tight, cuts = np.stack([m.ravel() / (r or 1.0) for m, r in zip(more, room)]), np.sign(room), []
    while True:
        kept = LinearConstraint(parts, ub=tight)
        with _silent():
            found = solve(scaled.ravel(), integrality=np.ones(scaled.size), bounds=Bounds(0, 1), constraints=[one_each, kept, *cuts],
                          options={"mip_rel_gap": 0, "presolve": False})
        if found.x is None:
            least = " and ".join(f"{_least(c):,.6g}" for c in costs)
            raise ValueError(f"the budgets {', '.join(f'{b:,.6g}' for b in budgets)} cannot be kept together: the least possible, each by "
                             f"itself, are {least}.")
        columns = found.x.reshape(layers, widths).argmax(1)
        chosen = dict(zip(value.layers, (value.widths[j] for j in columns)))
        over = np.array([c(chosen) > b for c, b in zip(costs, limits)])
        if not over.any():
            return chosen
        cuts.append(LinearConstraint(np.eye(widths)[columns].ravel(), ub=layers - 1))       # HiGHS takes 1 + 1e-6 for 1: all but this one
        if len(cuts) > CUTS:                                                                # layers that are alike have many that are
            tight = np.where(over, tight - 1e-6, tight)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """HiGHS 1.12 tells the process's stdout now and then what it does, whatever it is asked for; C keeps it until it is flushed."""
    try:
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:                                                                         # a process without a stdout
        yield
        return
    _flush()
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _flush() -> None:
    sys.stdout.flush()
    with contextlib.suppress(OSError, TypeError):                                           # Windows has no library by the name None
        ctypes.CDLL(None).fflush(None)


def _least(cost: Table) -> float:
    return cost.values.min(1).values.sum().item()


def _limit(value: Table, costs: list[Table], budgets: list[float]) -> list[float]:
    """Each budget as a float, with room for the rounding of sums, which whole numbers need none of. ValueError for what cannot be asked
    for."""
    limits = []
    for cost, budget in zip(costs, budgets):
        same_places(value, cost, ("value", "cost"))
        if (cost.values < 0).any():
            i, j = (cost.values < 0).nonzero()[0].tolist()
            raise ValueError(f"cost is {cost.values[i, j].item():g} for {cost.layers[i] or 'the network'} at {cost.widths[j]} bits, and "
                             "must be 0 or more.")
        least = _least(cost)
        budget = check_number("budget", budget)
        limits.append(budget + ROUNDING * abs(budget) * bool((cost.values != cost.values.round()).any()))
        if limits[-1] < least:
            raise ValueError(f"budget is {budget:,.10g}, and must be at least {least:,.10g}, what the cheapest width of every layer "
                             "costs.")
    return limits
