"""What qlab.search is given: gradients that are switched off, labels, NaN, networks in half precision, things that are none; folders."""

import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from qlab.quant import linear
from qlab.search import adaround, allocate, attempts, auto, candidates, costs, curvature, paired, rounding, sensitivity
from qlab.search.evolution import evolve
from qlab.search.table import Table
from qlab.search.ways import WAYS

BY = (sensitivity.by_loss, sensitivity.by_kl, sensitivity.by_output, curvature.by_hessian, curvature.by_taylor)
LABELLED = (sensitivity.by_loss, curvature.by_hessian, curvature.by_taylor)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


@pytest.fixture(autouse=True)
def few_widths(monkeypatch):
    for page in (attempts, auto):
        monkeypatch.setattr(page, "WIDTHS", (2, 8))


def quick(weight: torch.Tensor, bits: int):
    return linear.quantize(weight, bits, "symmetric", axis=0)


def data(n: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=random), torch.randint(0, 3, (n,), generator=random)


NET, (X, Y) = network(), data()
MADE = candidates.make(NET, (2, 5), quick)


def measured(by, net=NET, made=MADE, x=X, y=Y) -> torch.Tensor:
    return by(net, made, x, *((y,) if by in LABELLED else ())).values


# Gradients


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_measured_is_the_same_where_gradients_are_off(by, mode):
    wanted = measured(by)
    with mode():
        own, x, y = network(), X.clone(), Y.clone()
        made = candidates.make(own, (2, 5), quick)
        assert wanted.abs().min() > 0 and torch.equal(measured(by, own, made, x, y), wanted)
    assert torch.equal(measured(by, own, made, x, y), wanted)                               # tensors of inference mode, outside of it


@pytest.mark.parametrize("method", rounding.METHODS)
def test_rounding_is_the_same_in_inference_mode(method):
    options = {"steps": 3} if method == "adaround" else {}
    wanted = rounding.quantize(NET, X, 3, method, **options)
    with torch.inference_mode():
        inside = rounding.quantize(network(), X.clone(), 3, method, **options)
    assert all(q.equal(inside.tensors[name]) for name, q in wanted.tensors.items())
    assert not any(t.is_inference() for t in inside.model.parameters())


def test_the_one_call_works_in_inference_mode(monkeypatch):
    monkeypatch.setattr(auto, "WAYS", (WAYS[3], WAYS[8]))
    with torch.inference_mode():
        assert auto.quantize(network(), (X.clone(), Y.clone()), budget="200 B", steps=2).met


# Labels and logits


@pytest.mark.parametrize("by", LABELLED)
def test_labels_may_be_any_whole_numbers_and_nothing_else(by):
    wanted = measured(by)
    for same in (Y.to(torch.uint8), Y.int(), Y.to(torch.uint16), Y.tolist(), Y.numpy().astype(np.int8)):
        assert torch.equal(measured(by, y=same), wanted)
    for wrong, said in ((Y.float(), "labels holds torch.float32, and must hold integers"), (Y > 0, "labels holds torch.bool"),
                        *([] if by is curvature.by_taylor else [(None, "labels is a NoneType")])):
        with pytest.raises(TypeError, match=said):
            measured(by, y=wrong)
    for wrong, said in ((Y[:3], r"labels have the shape \(3,\), and must be whole numbers, one for each of the 150 images"),
                        (Y[:, None], r"the shape \(150, 1\)"), (Y - 1, "labels go from -1 to 1, and must be classes from 0 to 2")):
        with pytest.raises(ValueError, match=said):
            measured(by, y=wrong)


@pytest.mark.parametrize("by", BY)
def test_what_is_no_image_no_candidate_or_not_finite_is_one_sentence(by):
    spoilt = X.clone()
    spoilt[140] = torch.nan                                                                 # in the second batch
    for x, said in ((spoilt, "the logits on the calibration images hold NaN or infinity, and must be finite"),
                    (X[:0], "there are no calibration images, and some are needed"),
                    (torch.tensor(1.0), r"of shape \(\), and must hold images"),
                    (X[:, :4], r"the network cannot take the calibration images, torch.float32 \(150, 4\)")):
        with pytest.raises(ValueError, match=said):
            measured(by, x=x)
    for given, said in (({"x": None}, "calibration is a NoneType"), ({"x": 3}, "calibration is a int"),
                        ({"made": None}, "candidates are a NoneType, and must be QTensors by layer and bits"),
                        ({"made": {"0": 3}}, "candidates are a dict, and must be QTensors"), ({"net": None}, "model is a NoneType")):
        with pytest.raises(TypeError, match=said):
            measured(by, **given)
    if by in LABELLED:
        with pytest.raises(ValueError, match="the logits on the calibration images hold NaN"):
            by(NET, MADE, spoilt, Y)


def test_drawn_labels_of_nan_and_the_kl_from_nan_are_one_sentence():
    for ask in (lambda: curvature.by_taylor(NET, MADE, X * torch.nan), lambda: sensitivity.kl(NET, NET, X * torch.nan)):
        with pytest.raises(ValueError, match="the logits on the calibration images hold NaN or infinity"):
            ask()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_a_half_precision_network_is_computed_in_float64(dtype):
    net, x = network(dtype), X.to(dtype)
    made = candidates.make(net, (5,), quick)
    table = sensitivity.by_loss(net, made, x, Y)
    with torch.no_grad():
        for name in made:
            after, before = (nn.functional.cross_entropy(m(x).double(), Y) for m in (candidates.apply(net, made, {name: 5}).model, net))
            assert table[name, 5] == pytest.approx((after - before).item(), rel=1e-9)


# Sums, bytes, budgets


def test_a_layer_that_runs_on_maps_of_two_sizes_counts_every_vector():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.conv(nn.functional.avg_pool2d(self.conv(x), 4)).flatten(1))

    torch.manual_seed(0)
    net, x = Twice(), torch.randn(9, 1, 8, 8)
    made = candidates.make(net, (2,), quick)
    q, maps = made["conv"][2].dequantize(), [x, nn.functional.avg_pool2d(net.conv(x), 4).detach()]
    error, power = (sum(nn.functional.conv2d(m, w, padding=1).square().sum().item() for m in maps)
                    for w in ((q - net.conv.weight).detach(), net.conv.weight.detach()))
    assert sensitivity.by_output(net, made, x)["conv", 2] == pytest.approx(error / power, rel=1e-5)


def test_tables_hold_float64():
    table = Table.from_rows({"a": {2: 2**24 + 1, 4: 0.1}, "b": {2: 1e300, 4: -1}})
    assert table["a", 2] == 2**24 + 1 and table["a", 4] == 0.1 and table["b", 2] == 1e300
    assert Table(("a",), (2,), [[2**24 + 1]])["a", 2] == 2**24 + 1
    with pytest.raises(TypeError, match="values is a list and no tensor"):
        Table.from_rows({"a": {2: 10**400}})
    made = {"": {8: quick(torch.ones(4097, 4099), 8)}}
    assert costs.nbytes(made)["", 8] == made[""][8].nbytes == 4097 * 4099 + 4 * 4097
    assert costs.bitops(nn.Linear(4099, 4097), made, torch.zeros(1, 4099))["", 8] == 4097 * 4099 * 64


@pytest.mark.parametrize("made_of", [lambda layer: nn.utils.prune.random_unstructured(layer, "weight", 0.5),
                                     nn.utils.parametrizations.weight_norm])
def test_the_rest_of_a_recomputed_weight_is_the_bias(made_of):
    net = nn.Sequential(made_of(nn.Linear(6, 3)))
    made = candidates.make(net, (2,), quick)
    assert costs.rest_nbytes(net, made) == 12 == candidates.apply(net, made, {"0": 2}).nbytes - costs.nbytes(made)["0", 2]


SOLVERS = (allocate.exact, allocate.greedy, allocate.milp)


@pytest.mark.parametrize("solve", SOLVERS)
def test_whole_costs_keep_a_budget_to_the_last_one(solve):
    value = Table.from_rows({"a": {2: 1.0, 4: 0.4}, "b": {2: 1.0, 4: 0.0}})
    cost = Table.from_rows({name: {2: 10**9, 4: 10**9 + 1} for name in "ab"})
    assert [cost(solve(value, cost, 2 * 10**9 + more)) - 2 * 10**9 for more in range(3)] == [0, 1, 2]
    cost = Table.from_rows({"a": {2: 0, 4: 10**9}, "b": {2: 0, 4: 10**9 + 1}})
    assert solve(value, cost, 10**9) == {"a": 4, "b": 2}                                    # a hair below what b costs


def test_the_solver_ends_where_very_many_are_a_hair_too_dear():
    names = [f"layer{i}" for i in range(30)]
    value, cost = (Table.from_rows({name: row for name in names}) for row in ({2: 1.0, 4: 0.0}, {2: 0.1, 4: 0.2}))
    found = allocate.milp(value, cost, 4.5 - 3e-8)
    assert cost(found) <= 4.5 - 3e-8 and value(found) == value(allocate.exact(value, cost, 4.5 - 3e-8)) == 16


@pytest.mark.parametrize("solve", SOLVERS)
def test_budgets_and_tables_that_are_none_are_one_sentence(solve):
    table = Table.from_rows({"a": {2: 1.0}})
    with pytest.raises(ValueError, match="budget is 10*, and must be a finite number"):
        solve(table, table, 10**400)
    for tables in ((table, 5), (None, table), (table, [None])):
        with pytest.raises(TypeError, match="must be a Table of qlab.search.table"):
            solve(*tables, *([[3]] if solve is allocate.milp and isinstance(tables[1], list) else [3]))


# Other doors


@pytest.mark.parametrize(("error", "call", "said"), [
    (TypeError, lambda: costs.nbytes(None), "candidates are a NoneType"),
    (TypeError, lambda: candidates.apply(NET, None, {}), "candidates are a NoneType"),
    (TypeError, lambda: candidates.apply(NET, MADE, ["0"]), "allocation is a list, and must be a dictionary"),
    (ValueError, lambda: costs.bitops(NET, MADE, torch.tensor(1.0)), "image has no images, and must be one"),
    (TypeError, lambda: rounding.quantize(NET, X, 4, foo=1), "foo is no option of adaround, which has steps, batch, lr, price, seed"),
    (ValueError, lambda: paired.limits(0, 0, 0), "n is 0, and must be a whole number of at least 1"),
    (ValueError, lambda: paired.limits(-1, 0, 10), "lost is -1"), (ValueError, lambda: paired.p_value(-1, 0), "lost is -1"),
    (ValueError, lambda: paired.limits(6, 5, 10), "lost and won are 6 and 5, and must together be at most n, 10"),
    (TypeError, lambda: auto.quantize(NET, (X, Y), budget=200, folder=5), "folder is a int, and must be a path, or None"),
    (ValueError, lambda: auto.quantize(NET, (X, Y), budget=10**400), "budget is 10*, and must be a number of bytes"),
])
def test_what_another_door_refuses_is_one_sentence(error, call, said):
    with pytest.raises(error, match=said):
        call()


def test_the_least_drop_that_is_named_is_taken(monkeypatch):
    monkeypatch.setattr(auto, "WAYS", WAYS[:1])
    for page in (attempts, auto):
        monkeypatch.setattr(page, "WIDTHS", (2, 3))
    with pytest.raises(ValueError, match="max_drop is 5, and must be at least ") as error:
        auto.quantize(NET, (X[:100], Y[:100]), max_drop=5)
    assert auto.quantize(NET, (X[:100], Y[:100]), max_drop=float(re.search("least (.*):", str(error.value))[1])).trials


def test_evolution_checks_its_start_and_seed():
    given = {"evaluate": lambda bits: 0.0, "cost": lambda bits: 1.0, "budget": 2, "start": {"a": 2}, "widths": (2, 4)}
    for changed, error, said in (*(({"seed": seed}, ValueError, "seed is ") for seed in (None, -1, 1.5, "a")),
                                 ({"start": [1]}, TypeError, "start is a list, and must be a dictionary")):
        with pytest.raises(error, match=said):
            evolve(**given | changed)
    assert evolve(**given, seed=np.int64(3)) == evolve(**given, seed=3)


def test_learning_checks_what_it_is_given():
    w, run = {"w": torch.ones(3, 6)}, lambda weights, x: x @ weights["w"].T
    q, y = {"w": quick(w["w"], 3)}, run(w, X)
    spoilt = torch.where(X > 2, torch.nan, X)
    for given, said in (((w, {"z": q["w"]}, X, y), "weights name w, and nearest z: both must name the same"),
                        ((w, {"w": quick(torch.ones(2, 6), 3)}, X, y), r"of w have the shape \(2, 6\), and its weight has \(3, 6\)"),
                        ((w, q, X, y[:9]), r"x has the shape \(150, 6\) and y \(9, 3\)"), ((w, q, X[:0], y[:0]), "at least one"),
                        ((w, q, X, X), r"run gives outputs of shape \(150, 3\), and y has \(150, 6\)"),
                        ((w, q, spoilt, y), "the inputs x hold NaN"), ((w, q, X, y * torch.nan), "the outputs y hold NaN")):
        with pytest.raises(ValueError, match=said):
            adaround.learn(run, *given, steps=2)


# Folders


class Strided(nn.Module):
    """The same weights whatever the pooling."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.fc = nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, **options), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


def test_a_folder_is_of_one_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "WAYS", WAYS[:1])

    def tried(net, x):
        return auto.quantize(net, (x, Y), budget=200, folder=tmp_path / "run")

    maps = X.repeat(1, 2)[:, :9].reshape(150, 1, 3, 3)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    tried(net, X)
    tried(nn.Sequential(net[0], nn.ReLU(), net[2]), X)                                      # the same, made anew
    with pytest.raises(ValueError, match="holds trials of another network"):
        tried(nn.Sequential(net[0], nn.Sigmoid(), net[2]), X)
    (tmp_path / "run").rename(tmp_path / "linear")
    tried(Strided(stride=1), maps)
    with pytest.raises(ValueError, match="holds trials of another network"):
        tried(Strided(stride=2, ceil_mode=True), maps)
    (tmp_path / "run").rename(tmp_path / "pooled")
    with pytest.raises(ValueError, match="no file can hold the graph of this network: leave folder out"):
        tried(nn.Sequential(OrderedDict({"a b": nn.Linear(6, 3)})), X)


def test_what_is_damaged_in_a_folder_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "WAYS", WAYS[:1])

    def tried():
        return auto.quantize(NET, (X, Y), budget=200, folder=tmp_path)

    tried()
    for name in (path.name for path in tmp_path.glob("largest*")):
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(ValueError, match=f"{name} is damaged: remove it, and the trial is made again"):
            tried()
        (tmp_path / name).unlink()
        assert tried().met
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match="run.json is damaged: name another folder"):
        tried()
    assert len(json.loads((tmp_path / "largest-8.json").read_text())) == 3
