"""Bits by evolution: for what does not add up over the layers, and can only be asked of a whole allocation.

    the best few so far  ->  two of them mixed, or one of them changed  ->  within the budget?  ->  evaluate  ->  the best few so far

A change moves one layer to the next width above or below, and often another the other way, which keeps about the cost: a network at its
budget has no room for more. Each allocation is evaluated once. The search of Guo et al. 2020 (Single Path One-Shot NAS), in small, one
child at a time; what matters is where it begins: an allocation that qlab.search.allocate found on a sum is near the best already, and
most of all possible ones are hopeless.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qlab.quant.layout import check_bits, check_whole, generator
from qlab.search.table import check_number

TRIES = 1000                                                                                # children drawn for one that is new and fits


@dataclass(frozen=True)
class Found:
    """The best allocation and its value; history: the best value after each evaluation, the first of the start."""

    allocation: dict[str, int]
    value: float
    history: tuple[float, ...]

    @property
    def evaluations(self) -> int:
        return len(self.history)


def evolve(evaluate: Callable[[dict[str, int]], float], cost: Callable[[dict[str, int]], float], budget: float,
           start: Mapping[str, int], widths: Sequence[int], evaluations: int = 100, parents: int = 8, seed: int = 0) -> Found:
    """The allocation of the least evaluate(allocation) that was found among those with cost(allocation) <= budget.

    evaluate: anything, the KL of the whole network on calibration images, say; NaN counts as infinitely bad. cost: a Table, or any
    function. start: an allocation within the budget. widths: that a layer may have. evaluations: how often evaluate is called, the start
    included; fewer where TRIES children in a row, 1,000, bring nothing new that fits. parents: how many of the best are kept. The same seed
    finds the same.
    Raises TypeError for a start that is no dictionary; ValueError for one that is empty, above the budget, has other widths or the value
    NaN, for fewer than 1 evaluation or parent, and for a seed that is none.

    >>> best = {"a": 4, "b": 2, "c": 8}
    >>> far = lambda bits: sum(abs(bits[name] - best[name]) for name in best)
    >>> found = evolve(far, lambda bits: sum(bits.values()), 14, {"a": 4, "b": 4, "c": 4}, widths=range(2, 9))
    >>> found.allocation, found.value, found.history[0]
    ({'a': 4, 'b': 2, 'c': 8}, 0.0, 6.0)
    """
    widths = sorted({check_bits(bits, 1, 32) for bits in widths})
    for name, number in (("evaluations", evaluations), ("parents", parents)):
        check_whole(name, number, 1)
    generator(seed)                                                                         # which checks it
    if not isinstance(start, Mapping):
        raise TypeError(f"start is a {type(start).__name__}, and must be a dictionary, from the name of a layer to its bits.")
    if not start or any(bits not in widths for bits in start.values()):
        raise ValueError(f"start is {dict(start)}, and must give each layer one of the widths {', '.join(map(str, widths))}.")
    budget, first = check_number("budget", budget), cost(dict(start))
    if not first <= budget:
        raise ValueError(f"start costs {first:,.10g}, and must cost at most the budget, {budget:,.10g}.")
    draw, names = random.Random(int(seed)), list(start)
    seen, value = {tuple(start.values())}, float(evaluate(dict(start)))
    if math.isnan(value):
        raise ValueError("evaluate(start) is NaN, and must be a number: nothing could be compared with it.")
    best, history = [(value, tuple(start.values()))], [value]
    while len(history) < evaluations:
        child = next((c for c in (_child(best, widths, draw) for _ in range(TRIES))
                      if c not in seen and cost(dict(zip(names, c))) <= budget), None)
        if child is None:
            break
        seen.add(child)
        value = float(evaluate(dict(zip(names, child))))
        best = sorted([*best, (math.inf if math.isnan(value) else value, child)])[:parents]
        history.append(best[0][0])
    return Found(dict(zip(names, best[0][1])), best[0][0], tuple(history))


def _child(best: list[tuple[float, tuple[int, ...]]], widths: Sequence[int], draw: random.Random) -> tuple[int, ...]:
    """One parent's bits, or each layer's from one of two; then one layer a width up or down, and half of the time another the other way."""
    one, other = draw.choice(best)[1], draw.choice(best)[1]
    bits = [draw.choice(pair) for pair in zip(one, other)]
    step = draw.choice((-1, 1))
    for layer in draw.sample(range(len(bits)), min(len(bits), draw.choice((1, 2)))):
        place = widths.index(bits[layer]) + step
        bits[layer] = widths[min(max(place, 0), len(widths) - 1)]
        step = -step
    return tuple(bits)
