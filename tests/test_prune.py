"""Masks against torch's own pruning and brute force; that they hold; that the schedules do what they say; what the record shows."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as reference

from qlab.lab import data, measure, runs, zoo
from qlab.lab.experiments import pruning as experiment
from qlab.nets import channels, prune, prune_schedules
from qlab.nets.models import plain_cnn
from qlab.nets.training import fit


def mlp(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16, bias=bias), nn.ReLU(), nn.Linear(16, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))


def blobs(n=256):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 12, generator=generator)
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.905, 0.999])
def test_each_layer_as_torch_prunes_it(share):
    torch.manual_seed(0)
    model = plain_cnn()
    masks = prune.magnitude(model, share)
    assert list(masks) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    theirs = copy.deepcopy(model)
    for name, mask in masks.items():
        layer = theirs.get_submodule(name)
        reference.l1_unstructured(layer, "weight", amount=share)
        assert torch.equal(mask, layer.weight_mask.bool())
        assert int((~mask).sum()) == round(share * mask.numel())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.905, 0.999])
def test_one_threshold_as_torch_prunes_globally(share):
    torch.manual_seed(0)
    model = plain_cnn()
    masks, theirs = prune.magnitude(model, share, "global"), copy.deepcopy(model)
    reference.global_unstructured([(theirs.get_submodule(name), "weight") for name in masks], reference.L1Unstructured, amount=share)
    for name, mask in masks.items():
        assert torch.equal(mask, theirs.get_submodule(name).weight_mask.bool())
    assert sum(int((~m).sum()) for m in masks.values()) == round(share * sum(m.numel() for m in masks.values()))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0, 0.999))
def test_count_is_exact_and_the_kept_are_the_largest_even_with_ties(values, share):
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.data = torch.tensor([values], dtype=torch.float32)
    mask = prune.magnitude(nn.Sequential(model), share)["0"][0]
    assert int((~mask).sum()) == round(share * len(values))
    size = np.abs(values)
    assert size[mask.numpy()].min(initial=99) >= size[~mask.numpy()].max(initial=0)
    expected = sorted(range(len(values)), key=lambda i: (size[i], i))[:round(share * len(values))]     # among equals the first goes
    assert sorted(expected) == (~mask).nonzero()[:, 0].tolist()


def test_share_for_each_layer_and_layers_skipped():
    model = mlp()
    masks = prune.magnitude(model, {"0": 0.5, "4": 0.25}, skip=["2"])
    assert list(masks) == ["0", "4"]
    assert [int((~m).sum()) for m in masks.values()] == [96, 6]
    assert prune.magnitude(model, {"0": 0.5})["2"].all()
    assert prune.sparsity({"0": masks["0"]}) == 0.5 and prune.sparsity({}) == 0.0


def test_shared_weight_is_counted_once_and_masked_alike():
    model = mlp()
    model.append(nn.Linear(16, 8)), model.append(nn.Linear(3, 3))
    model[5].weight = model[2].weight
    masks = prune.magnitude(model, 0.3, "global")
    assert torch.equal(masks["2"], masks["5"])
    assert sum(int((~masks[n]).sum()) for n in ("0", "2", "4", "6")) == round(0.3 * (192 + 128 + 24 + 9))
    assert torch.equal(prune.magnitude(model, {"5": 0.5})["2"], prune.magnitude(model, {"5": 0.5})["5"])
    with pytest.raises(ValueError, match="2 and 5 share one weight"):
        prune.magnitude(model, {"2": 0.5, "5": 0.25})
    with pytest.raises(ValueError, match="2 shares its weight with 5"):
        prune.magnitude(model, 0.5, skip=["5"])


def test_module_used_twice_without_bias_or_of_size_zero_or_never_called():
    layer = nn.Linear(4, 4, bias=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.never = layer, layer, nn.Linear(3, 2)

        def forward(self, x):
            return self.b(self.a(x))

    assert {n: int((~m).sum()) for n, m in prune.magnitude(Net(), 0.5).items()} == {"a": 8, "never": 3}
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(0, 3), nn.Linear(2, 2))
    assert prune.magnitude(empty, 0.5)["0"].shape == (3, 0)
    assert int((~prune.magnitude(empty, 0.5, "global")["1"]).sum()) == 2
    assert prune.magnitude(nn.Sequential(nn.ReLU()), 0.5) == {} == prune.magnitude(nn.Sequential(nn.ReLU()), 0.5, "global")


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (1, 2), (4, 4), (3, 8)])
@pytest.mark.parametrize("layer", [nn.Linear(16, 5), nn.Conv2d(8, 3, (3, 2)), nn.Conv2d(16, 8, 3, groups=2)])
def test_n_of_m_against_brute_force(layer, n, m):
    weight = layer.weight.detach()
    mask = prune.n_m(nn.Sequential(layer), n, m)["0"]
    assert mask.shape == weight.shape and mask.is_contiguous()
    rows, kept = [t.reshape(*t.shape[:2], -1) for t in (weight, mask)]                      # (out, in, kernel)
    for out, at, start in itertools.product(range(rows.shape[0]), range(rows.shape[2]), range(0, rows.shape[1], m)):
        group, chosen = rows[out, start:start + m, at].abs(), kept[out, start:start + m, at]
        best = max(itertools.combinations(range(m), n), key=lambda combination: group[list(combination)].sum())
        assert chosen.nonzero()[:, 0].tolist() == list(best)


def test_two_of_four_as_torch_ao_sparsifies():
    ao = pytest.importorskip("torch.ao.pruning")
    sparsifier = ao.WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    mask = prune.n_m(model, 2, 4)["0"]
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert torch.equal(mask, model[0].parametrizations.weight[0].mask.bool())


def test_masks_hold_under_momentum_and_weight_decay_where_a_zero_gradient_would_not():
    x, y = blobs()
    model = mlp()
    fit(model, x, y, 2, 0.1)
    masks = prune.magnitude(model, 0.8)
    seen = []
    back = prune.hold(model, masks)

    def after_step():
        back()
        seen.append(all((model.get_submodule(n).weight[~m] == 0).all() for n, m in masks.items()))

    before = {n: model.get_submodule(n).weight.clone() for n in masks}
    fit(model, x, y, 5, 0.1, weight_decay=5e-3, momentum=0.95, after_step=after_step)
    assert len(seen) == 10 and all(seen)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert (weight[mask] != before[name][mask]).any() and int((weight != 0).sum()) == int(mask.sum())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)                      # momentum from before the pruning
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    put_back = prune.hold(model, masks)
    for p in model.parameters():
        p.grad.zero_()
    optimizer.step()
    assert any((model.get_submodule(n).weight[~m] != 0).any() for n, m in masks.items())    # gradients of zero, and yet revived
    put_back()
    assert all((model.get_submodule(n).weight[~m] == 0).all() for n, m in masks.items())


def test_a_gradual_schedule_follows_the_paper_and_ends_exactly():
    x, y = blobs()
    model, sizes = mlp(), []
    masks, after_step = prune_schedules.gradual(model, 0.75, steps=8, every=2, scope="global")
    removed = {n: ~m for n, m in masks.items()}

    def watched():
        after_step()
        sizes.append(prune.sparsity(masks))
        for name, mask in masks.items():
            assert (model.get_submodule(name).weight[~mask] == 0).all()
            assert not (removed[name] & mask).any()                                         # what is gone stays gone
            removed[name] = ~mask

    fit(model, x, y, 6, 0.1, after_step=watched)
    total = sum(m.numel() for m in masks.values())
    t = np.minimum(np.arange(1, 13) // 2 * 2, 8)                                            # new masks at every second step, up to 8
    expected = 0.75 - 0.75 * (1 - t / 8) ** 3
    np.testing.assert_allclose(sizes, np.round(expected * total) / total)
    assert prune_schedules.cubic(100, 8, 0.75) == 0.75 and prune_schedules.cubic(0, 8, 0.75, initial=0.2) == pytest.approx(0.2)


def test_iterative_rounds_are_nested_and_repeat_themselves():
    x, y = blobs()

    def run():
        model, nested = mlp(), []
        fit(model, x, y, 2, 0.1)

        def train(model, after_step, number):
            nested.append({n: model.get_submodule(n).weight != 0 for n in ("0", "2", "4")})
            fit(model, x, y, 1, 0.1, seed=number, after_step=after_step)

        return model, prune_schedules.iterative(model, [0.3, 0.6, {"0": 0.9, "2": 0.8, "4": 0.6}], train), nested

    model, masks, nested = run()
    assert [int((~m).sum()) for m in masks.values()] == [round(0.9 * 192), round(0.8 * 128), round(0.6 * 24)]
    for earlier, later in itertools.pairwise(nested):
        assert not any((later[n] & ~earlier[n]).any() for n in later)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run()[0].parameters()))
    with pytest.raises(ValueError, match="must not fall"):
        prune_schedules.iterative(mlp(), [0.5, 0.4], lambda *_: None)
    with pytest.raises(ValueError, match="at least one round"):
        prune_schedules.iterative(mlp(), [], lambda *_: None)


def test_rewinding_gives_the_survivors_their_first_values():
    x, y = blobs()
    model = mlp()
    initial, starts = copy.deepcopy(model.state_dict()), []

    def train(model, after_step, _number):
        starts.append(copy.deepcopy(model.state_dict()))
        fit(model, x, y, 2, 0.1, after_step=after_step)

    train(model, None, None)
    trained = model[0].weight.detach().abs().clone()
    masks = prune_schedules.iterative(model, [0.5, 0.75], train, rewind_to=initial)
    for name in ("0", "2", "4"):
        assert torch.equal(starts[2][f"{name}.weight"], initial[f"{name}.weight"] * masks[name])
        assert torch.equal(starts[2][f"{name}.bias"], initial[f"{name}.bias"])
    first = starts[1]["0.weight"] != 0                                                      # chosen by the trained values, not the first
    assert trained[first].min() >= trained[~first].max()


def test_removed_weights_stay_removed_even_if_a_weight_that_is_left_is_zero():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    earlier = {"0": torch.tensor([[True, True, True, False]])}
    prune.apply(model, earlier)
    assert prune.magnitude(model, 0.25, within=earlier)["0"].tolist() == [[True, True, True, False]]
    assert prune.magnitude(model, 0.25)["0"].tolist() == [[False, True, True, True]]


def test_sensitivity_prunes_one_layer_at_a_time_and_leaves_the_model():
    model = mlp()
    before = copy.deepcopy(model.state_dict())

    def zeros(m):
        return [int((m[i].weight == 0).sum()) for i in (0, 2, 4)]

    found = prune.sensitivity(model, zeros, [0, 0.5], skip=["2"])
    assert found == {"0": [[0, 0, 0], [96, 0, 0]], "4": [[0, 0, 0], [0, 0, 12]]}
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


@pytest.mark.parametrize("call, message", [
    (lambda: prune.magnitude(mlp(), 1.0), "sparsity is 1.0, and must be 0 or more and below 1"),
    (lambda: prune.magnitude(mlp(), float("nan")), "sparsity is nan"),
    (lambda: prune.magnitude(mlp(), {"0": -0.1}), "sparsity is -0.1"),
    (lambda: prune.magnitude(mlp(), {"9": 0.1}), "sparsity names 9"),
    (lambda: prune.magnitude(mlp(), 0.5, "network"), 'must be "layer" or "global"'),
    (lambda: prune.magnitude(mlp(), {"0": 0.5}, "global"), "must be one number"),
    (lambda: prune.magnitude(mlp(), 0.5, skip="0"), "must be a list of layers"),
    (lambda: prune.magnitude(mlp(), 0.5, skip=["1"]), "must be a list of layers"),
    (lambda: prune.n_m(mlp(), 3, 2), "1 <= n <= m"),
    (lambda: prune.n_m(plain_cnn()), "conv1 has 1 inputs, which is no multiple of 4: name it in skip"),
    (lambda: prune.apply(mlp(), {"1": torch.ones(2).bool()}), "masks names '1'"),
    (lambda: prune.hold(mlp(), {"0": torch.ones(16, 12)}), "must be bool of shape"),
    (lambda: prune_schedules.gradual(mlp(), 0.5, steps=0), "steps is 0"),
    (lambda: prune_schedules.gradual(mlp(), 1.5, steps=10), "sparsity is 1.5"),
    (lambda: prune_schedules.gradual(mlp(), 0.5, steps=10, every=0), "every is 0"),
])
def test_refusals_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused():
    model = mlp()
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weights of 2 hold NaN"):
        prune.magnitude(model, 0.5)


# The committed records

@pytest.fixture(scope="module")
def arms():
    """(arm, seed, epochs) -> row of the record."""
    return {(row["arm"], row["seed"], row["epochs"]): row for row in runs.load("pruning")["rows"]}


def rows_of(arms, name):
    return {seed: row for (arm, seed, _), row in arms.items() if arm == name}


def test_record_every_arm_has_the_same_seeds_and_its_control_learned_as_long(arms):
    for kind in (experiment.LABELS, experiment.TAUGHT):
        seeds = {tuple(rows_of(arms, name)) for name in kind}
        assert len(seeds) == 1 and len(*seeds) >= 3
    epochs = {name: {key[2] for key in arms if key[0] == name} for name in (*experiment.LABELS, *experiment.TAUGHT)}
    assert {name: e for name, e in epochs.items() if not name.startswith("small")} == {
        **dict.fromkeys(("control", "2:4", "channels", "gradual", "one-shot"), {8}), **dict.fromkeys(experiment.TAUGHT, {4})}
    assert epochs["small"] == {16, 24} and epochs["small-one-cycle"] == {24}               # 16 made the dense network, 8 the pruned one
    assert all(row["test"]["result"].n == 10_000 for row in arms.values())


def test_record_shares_removed_and_what_training_brings_back(arms):
    dense = arms["dense", experiment.SEEDS[0], 0]
    for name, sparsity in (("gradual", 0.9), ("one-shot", 0.9), ("taught-gradual", 0.9), ("2:4", 0.49), ("taught-2:4", 0.49)):
        assert all(row["sparsity"] >= sparsity for row in rows_of(arms, name).values())
    for name in ("one-shot", "2:4", "channels"):
        for row in rows_of(arms, name).values():
            lost, at_first = (dense["test"]["result"].value - row[when]["result"].value for when in ("test", "before"))
            assert lost < at_first / 4
    for name in ("channels", "small", "small-one-cycle"):
        assert all(row["macs"] <= dense["macs"] / 2 for row in rows_of(arms, name).values())


def test_record_the_networks_are_what_it_says(arms):
    record, test = runs.load("pruning"), data.load("test")
    some = data.Split(test.images[:1000], test.labels[:1000])
    small = channels.remove(plain_cnn(), channels.weakest(plain_cnn(), record["settings"]["channels"]))
    assert record["checkpoints"].keys() == experiment.KEPT.keys() and record["dense_sha256"] == zoo.record("cnn")["sha256"]
    for name, kept in record["checkpoints"].items():
        model = runs.load_model(kept["name"], small if name == "channels" else plain_cnn(), kept["sha256"])
        row = rows_of(arms, name)[experiment.SEEDS[0]]
        zeros = {n: float((model.get_submodule(n).weight == 0).float().mean()) for n in row.get("layers", ())}
        assert all(zeros[n] >= share - 1e-6 for n, share in row.get("layers", {}).items())
        live = measure.accuracy(model, some)
        assert (live.correct != row["test"]["result"].correct[:1000]).sum() <= 4
        if name == "2:4":
            for layer in ("conv2", "conv3", "fc1", "fc2"):
                assert ((model.get_submodule(layer).weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1) <= 2).all()


def test_the_experiment_runs_arms_and_collects_them(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "SEEDS", (1,))
    monkeypatch.setattr(experiment, "LABELS", ("small", "channels", "gradual"))
    monkeypatch.setattr(experiment, "TAUGHT", ("taught-2:4",))
    monkeypatch.setattr(experiment, "test", lambda model: runs.outcome(measure.accuracy(model, data.calibration(100))))
    with pytest.raises(ValueError, match="lacks the run dense 1"):
        experiment.collect(tmp_path, tmp_path / "records")
    for arm, seed in experiment.names():
        experiment.run(arm, seed, tmp_path, epochs=2, images=130)
    (tmp_path / "records").mkdir()
    experiment.collect(tmp_path, tmp_path / "records")
    record = runs.load("pruning", tmp_path / "records")
    assert [row["arm"] for row in record["rows"]] == ["dense", "small", *experiment.LABELS, *experiment.TAUGHT]
    assert (tmp_path / "records" / "pruning_cnn_channels.safetensors").exists()
    one = tmp_path / f"{experiment.file_name('taught-2:4', 1)}.json"
    one.write_text(one.read_text().replace(torch.__version__, "0.1"))
    with pytest.raises(ValueError, match="come from 2 machines"):
        experiment.collect(tmp_path, tmp_path / "records")


def test_the_experiment_s_command_line_refuses_an_unknown_run(capsys):
    for arguments in (["run", "gradual", "99"], ["run"], ["list", "gradual", "1"]):
        with pytest.raises(SystemExit):
            experiment.main(arguments)
    experiment.main(["list"])
    assert "taught-gradual 2" in capsys.readouterr().out.splitlines()


def test_record_of_the_lottery_is_complete():
    rows = runs.load("pruning_lottery")["rows"]
    seeds = {row["seed"] for row in rows}
    assert len(seeds) >= 5
    for seed in seeds:
        mine = [row for row in rows if row["seed"] == seed]
        for number in range(1, 6):
            ticket, again = ([r for r in mine if r["round"] == number and r["arm"] == arm] for arm in ("ticket", "again"))
            assert len(ticket) == len(again) == 1 and ticket[0]["kept"] == again[0]["kept"]


def test_speed_waits_for_a_quiet_machine_first_and_says_how_busy_it_was(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(experiment.quiet, "wait", lambda anyway: order.append(anyway) or SimpleNamespace(load=lambda: {"at_start": 0.1}))
    monkeypatch.setattr(experiment, "in_turn", lambda made: order.append([f() for f in made.values()]) or dict.fromkeys(made))
    experiment.speed(True, tmp_path)
    assert order[0] is True and len(order) == 8 and runs.raw("pruning_speed", tmp_path)["load"] == {"at_start": 0.1}
    monkeypatch.setattr(experiment, "PARTS", {"speed": order.append})
    experiment.main(["speed"])
    experiment.main(["speed", "--busy"])
    assert order[-2:] == [False, True]


def test_record_of_speed_zeros_do_not_make_a_dense_kernel_faster():
    networks = runs.load("pruning_speed")["networks"]
    assert networks["pruned"]["median_ms"] > 0.8 * networks["dense"]["median_ms"]
    assert networks["fewer channels"]["median_ms"] < networks["dense"]["median_ms"]
