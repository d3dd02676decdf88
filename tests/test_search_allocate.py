"""Allocations against exhaustive search and HiGHS, on sums and on what does not add up; what cannot be asked for."""

import ctypes
import functools
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.search import allocate
from qlab.search.evolution import evolve
from qlab.search.table import Table

LAYERS, WIDTHS = ("a", "b", "c", "d", "e"), (2, 4, 8)


def table(values, widths=WIDTHS) -> Table:
    return Table(LAYERS[:len(values)], widths, torch.tensor(values, dtype=torch.float64))


def every(cost: Table):
    return (dict(zip(cost.layers, bits)) for bits in itertools.product(cost.widths, repeat=len(cost.layers)))


def sums(of: Table) -> np.ndarray:
    """of(allocation) for all of them, in the order of every."""
    return functools.reduce(np.add.outer, of.values.numpy()).ravel()


def exhaustive(value: Table, costs: list[Table], budgets: list[float]) -> float:
    allowed = np.all([sums(c) <= b for c, b in zip(costs, budgets)], axis=0)
    return sums(value)[allowed].min()


def rows(numbers):
    return st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=5, max_size=5)


whole, real = st.integers(0, 30).map(float), st.floats(0, 10, allow_subnormal=False)


@settings(max_examples=30)
@given(rows(st.integers(-5, 20).map(float)), rows(whole), st.integers(0, 90))
def test_the_program_is_exhaustive_search_for_bytes(values, costs, more):
    value, cost = table(values), table(costs)
    budget = sums(cost).min() + more
    found = allocate.exact(value, cost, budget)
    best = exhaustive(value, [cost], [budget])
    assert value(found) == best and cost(found) == sums(cost)[sums(value) == best].min()


@settings(max_examples=30)
@given(rows(real), rows(real), st.floats(0, 1))
def test_the_program_is_exhaustive_search_for_milliseconds(values, costs, share):
    """Costs that are on no grid, and a budget that one of the allocations costs to the last digit."""
    value, cost = table(values), table(costs)
    budget = np.sort(sums(cost))[int(share * (3**5 - 1))]
    found = allocate.exact(value, cost, budget)
    assert cost(found) <= budget * (1 + 2e-9)
    assert value(found) <= exhaustive(value, [cost], [budget]) + 1e-12 * (1 + np.abs(values).sum())


@pytest.mark.parametrize("seed", range(4))
def test_highs_finds_the_same_and_keeps_two_budgets(seed):
    random = np.random.default_rng(seed)
    value, nbytes = table(random.exponential(size=(5, 3)) * 10.0 ** -seed), table(random.integers(1, 900, (5, 3)))
    ms = table(random.uniform(0.01, 0.2, (5, 3)))
    budgets = [float(np.median(sums(c))) for c in (nbytes, ms)]
    assert value(allocate.milp(value, nbytes, budgets[0])) == pytest.approx(value(allocate.exact(value, nbytes, budgets[0])), rel=1e-9)
    both = allocate.milp(value, [nbytes, ms], budgets)
    assert nbytes(both) <= budgets[0] and ms(both) <= budgets[1] * (1 + 2e-9)
    assert value(both) == pytest.approx(exhaustive(value, [nbytes, ms], budgets), rel=1e-9)


@settings(max_examples=30)
@given(rows(st.integers(-5, 20).map(float)), rows(whole), st.integers(0, 90))
def test_greedy_keeps_the_budget_and_leaves_no_exchange(values, costs, more):
    value, cost = table(values), table(costs)
    budget = sums(cost).min() + more
    found = allocate.greedy(value, cost, budget)
    assert cost(found) <= budget and value(found) >= value(allocate.exact(value, cost, budget)) - 1e-9
    for name, bits in itertools.product(LAYERS, WIDTHS):
        other = found | {name: bits}
        assert cost(other) > budget or value(other) >= value(found)


def test_sixty_layers_are_no_trouble():
    """Far beyond exhaustive search: HiGHS is the oracle."""
    random = np.random.default_rng(0)
    names, widths = tuple(f"layer{i}" for i in range(60)), tuple(range(2, 9))
    size, bits = random.uniform(1e3, 4e5, (60, 1)), np.array(widths)
    value = Table(names, widths, torch.from_numpy(random.lognormal(0, 2, (60, 1)) * 4.0**-bits * random.uniform(0.6, 1.4, (60, 7))))
    cost = Table(names, widths, torch.from_numpy(size * bits / 8))
    budget = cost(dict.fromkeys(names, 3))
    assert value(allocate.exact(value, cost, budget)) == pytest.approx(value(allocate.milp(value, cost, budget)), rel=1e-6)


def test_the_solver_says_nothing_on_the_screen(capfd):
    """With these costs a solution of HiGHS has to be repaired, which it is told to say nowhere."""
    lost = [[0, 0, 0, 0], [8, 7, 2, 2], [78140, 31852, 27170, 9756], [36897, 9201, 48221, 43437], [0, 0, 0, 0], [6101, 8994, 5851, 1311],
            [0, 0, 0, 0], [0, 0, 0, 0]]
    spent = [[560, 1731, 3170, 4750], [285, 1118, 1254, 4016], [492, 925, 1055, 2542], [611, 3419, 4219, 4813], [381, 1466, 1607, 4522],
             [943, 2940, 3134, 4198], [288, 2347, 2511, 2604], [1332, 2460, 3982, 4921]]
    value, cost = (Table(tuple("abcdefgh"), range(2, 6), torch.tensor(rows).double()) for rows in (lost, spent))
    found = allocate.milp(value, cost, 9382.7)
    assert value(found) == value(allocate.exact(value, cost, 9382.7))
    assert capfd.readouterr().out == ""


def test_the_solver_says_nothing_on_the_screen_where_a_solution_is_completed(capfd):
    """The 123rd of these programs makes HiGHS 1.12 print a line, with presolve or without; C holds it back until it is flushed."""
    rng = np.random.default_rng(0)
    for _ in range(123):
        layers, widths = int(rng.integers(2, 12)), int(rng.integers(2, 7))
        value, cost = (Table(tuple(f"l{k}" for k in range(layers)), tuple(range(2, 2 + widths)), torch.tensor(numbers)) for numbers in (
            rng.random((layers, widths)), np.cumsum(rng.integers(1, 50, (layers, widths)), 1).astype(float)))
        low, high = (float(ends.values.sum()) for ends in (cost.values.min(1), cost.values.max(1)))
        budget = low + (high - low) * rng.random()
    assert cost(allocate.milp(value, cost, budget)) <= budget
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("solve", [allocate.exact, allocate.greedy, allocate.milp])
def test_what_cannot_be_asked_for_is_one_sentence(solve):
    value, cost = table([[3.0, 2.0, 1.0]] * 2), table([[1000.0, 2000.0, 4000.0]] * 2)
    assert solve(value, cost, 2000) == {"a": 2, "b": 2}                                     # the least is possible
    with pytest.raises(ValueError, match="budget is 1,999, and must be at least 2,000, what the cheapest width of every layer costs"):
        solve(value, cost, 1999)
    for wrong in (math.nan, math.inf, "40 KB"):
        with pytest.raises(ValueError, match=f"budget is {wrong!r}, and must be a finite number"):
            solve(value, cost, wrong)
    with pytest.raises(ValueError, match="cost has no layer b, which the other has"):
        solve(value, table([[1.0, 2.0, 3.0]]), 10)
    with pytest.raises(ValueError, match="value has no layer c, which the other has"):
        solve(value, table([[1.0, 2.0, 3.0]] * 3), 10)
    with pytest.raises(ValueError, match="cost has no width 8, which the other has"):
        solve(value, table([[1.0, 2.0]] * 2, (2, 4)), 10)
    with pytest.raises(ValueError, match="layers in different orders"):
        solve(value, Table(("b", "a"), WIDTHS, cost.values), 4000)
    with pytest.raises(ValueError, match="cost is -1 for b at 4 bits, and must be 0 or more"):
        solve(value, table([[1.0, 2.0, 4.0], [1.0, -1.0, 4.0]]), 10)


def test_budgets_that_exclude_each_other_are_one_sentence():
    value, nbytes, ms = (table(rows) for rows in ([[2.0, 1.0, 0.0]], [[10.0, 20.0, 40.0]], [[3.0, 2.0, 1.0]]))
    assert allocate.milp(value, [nbytes, ms], [20, 2]) == {"a": 4}
    with pytest.raises(ValueError, match="10, 1 cannot be kept together: the least possible, each by itself, are 10 and 1"):
        allocate.milp(value, [nbytes, ms], [10, 1])
    with pytest.raises(ValueError, match="2 costs and 1 budgets"):
        allocate.milp(value, [nbytes, ms], [10])


def test_tables_refuse_what_is_none():
    good = torch.zeros(2, 3)
    for layers, widths, values, said in (
        (("a", "b"), (2, 4, 8), torch.tensor([[0, 0, 0], [0, math.nan, 0]]), "values hold nan for b at 4 bits, and must be finite"),
        (("a", "b"), (-2, 4, 8), good, "bits is -2, and must be a whole number from 1 to 32"),
        (("a", "b"), (2, 4.5, 8), good, "bits is 4.5, and must be a whole number"),
        (("a", "b"), (2, 8, 4), good, "widths are .*, and must be bits in ascending order"),
        (("a", "a"), (2, 4, 8), good, "layers are a, a, and must be names, each once"),
        ((), (2, 4, 8), good, "layers are none"),
        (("a", "b"), (2, 4), good, r"values have the shape \(2, 3\), and must have \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            Table(layers, widths, values)
    with pytest.raises(ValueError, match=r"rows have the widths \(2,\) and \(2, 4\), and must all have the same"):
        Table.from_rows({"a": {2: 1.0}, "b": {2: 1.0, 4: 2.0}})
    cost = table([[1.0, 2.0, 3.0]] * 2)
    with pytest.raises(ValueError, match="the allocation misses b"):
        cost({"a": 2})
    with pytest.raises(ValueError, match="the allocation names z"):
        cost({"a": 2, "b": 2, "z": 2})
    with pytest.raises(ValueError, match="the allocation has 3 bits for b, and may have 2, 4, 8"):
        cost({"a": 2, "b": 3})
    with pytest.raises(KeyError, match="no 'z' at 2 bits"):
        cost["z", 2]


def test_evolution_finds_what_no_sum_shows():
    """Errors of neighbours make each other worse: the program on what each layer costs alone is near the optimum, and not it."""
    random = np.random.default_rng(1)
    weight, pair, cost = random.exponential(size=5), 6 * random.exponential(size=4), table(random.integers(1, 9, (5, 1)) * np.array(WIDTHS))

    def value(bits):
        error = 1 / np.array([bits[name] for name in LAYERS])
        return float(weight @ error + pair @ (error[:-1] * error[1:]))

    float_ = dict.fromkeys(LAYERS, 1e9)
    alone = Table(LAYERS, WIDTHS, torch.tensor([[value(float_ | {name: bits}) for bits in WIDTHS] for name in LAYERS]))
    budget = cost(dict.fromkeys(LAYERS, 4))
    start, best = allocate.exact(alone, cost, budget), min(value(bits) for bits in every(cost) if cost(bits) <= budget)
    found = evolve(value, cost, budget, start, WIDTHS, evaluations=60, seed=0)
    assert value(start) == found.history[0] > best and found.value == best and cost(found.allocation) <= budget


def test_evolution_keeps_its_promises():
    asked, cost = [], table([[2.0, 4.0, 8.0]] * 5)
    random = {bits: number for bits, number in zip(itertools.product(WIDTHS, repeat=5), np.random.default_rng(0).normal(size=243))}

    def value(bits):
        asked.append(tuple(bits.values()))
        return math.nan if len(asked) == 7 else random[asked[-1]]                           # one network in between is broken

    start = dict.fromkeys(LAYERS, 4)
    found = evolve(value, cost, 22, start, WIDTHS, evaluations=50, seed=3)
    assert len(asked) == len(set(asked)) == found.evaluations == 50 and asked[0] == (4,) * 5
    assert all(cost(dict(zip(LAYERS, bits))) <= 22 for bits in asked)
    assert list(found.history) == sorted(found.history, reverse=True) and found.value == random[tuple(found.allocation.values())]
    before = list(asked)
    asked.clear()
    assert evolve(value, cost, 22, start, WIDTHS, evaluations=50, seed=3) == found and asked == before and start == dict.fromkeys(LAYERS, 4)
    asked.clear()
    assert evolve(lambda bits: random[tuple(bits.values())], cost, 10, dict.fromkeys(LAYERS, 2), WIDTHS).evaluations == 1  # all that fits


def test_evolution_refuses_what_it_cannot_begin_with():
    cost, start = table([[2.0, 4.0, 8.0]] * 2), {"a": 4, "b": 4}
    for changed, said in (
        ({"budget": 7}, "start costs 8, and must cost at most the budget, 7"), ({"budget": math.nan}, "budget is nan"),
        ({"start": {"a": 4, "b": 3}}, "start is .*, and must give each layer one of the widths 2, 4, 8"), ({"start": {}}, "start is {}"),
        ({"evaluations": 0}, "evaluations is 0, and must be a whole number of at least 1"), ({"parents": 0}, "parents is 0"),
        ({"evaluate": lambda bits: math.nan}, r"evaluate\(start\) is NaN"), ({"widths": (-2, 4)}, "bits is -2"),
    ):
        with pytest.raises(ValueError, match=said):
            evolve(**{"evaluate": lambda bits: 0.0, "cost": cost, "budget": 8, "start": start, "widths": WIDTHS} | changed)
