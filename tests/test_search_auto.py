"""The one call (qlab.search.auto): demands, held-out images, what is chosen and why, a run that was cut off, the command."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from qlab import cli
from qlab.lab.significance import McNemar
from qlab.llm import weights
from qlab.nets import ptq
from qlab.search import attempts, auto, paired, ways
from qlab.search.ways import WAYS

N, WIDTHS, BUDGET = 1500, (2, 3, 4, 8), 150
NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 4))
"""


def clusters(n, seed=0):
    """Images (n, 1, 4, 4) of four classes, of which a good network has most right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    centers = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    return centers[labels] + 1.1 * torch.randn(n, 1, 4, 4, generator=generator), labels


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
    x, y = clusters(600, seed=1)
    adam = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        adam.zero_grad()
        cross_entropy(model(x), y).backward()
        adam.step()
    with torch.no_grad():
        spread = torch.tensor([0.1, 0.3, 1, 3, 10, 30])                                     # the same function, and no scale for all of it
        model[1].weight.mul_(spread)
        model[1].bias.mul_(spread)
        model[4].weight.div_(spread.repeat_interleave(4))
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return clusters(N)


@pytest.fixture(autouse=True)
def few_widths(monkeypatch):
    for page in (attempts, auto):
        monkeypatch.setattr(page, "WIDTHS", WIDTHS)


@pytest.fixture(scope="module")
def whole(net, images):
    """A search through all ways; with few images the limits of a gain by luck would stop it early."""
    with pytest.MonkeyPatch.context() as patch:
        for page in (attempts, auto):
            patch.setattr(page, "WIDTHS", WIDTHS)
        patch.setattr(auto, "ENOUGH", -100)
        return auto.quantize(net, images, budget=BUDGET, steps=5)


def nbytes(bits, per_channel):
    """By hand: 54 and 96 weights, 6 and 4 channels, 6 and 4 float32 biases."""
    return sum(math.ceil(b * n / 8) + 4 * (rows if per_channel else 1) for b, n, rows in zip(bits, (54, 96), (6, 4))) + 4 * 10


# Statistics


@given(st.integers(0, 300), st.integers(0, 300))
def test_p_is_that_of_a_fair_coin_in_whole_numbers(lost, won):
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    assert paired.p_value(lost, won) == pytest.approx(min(1.0, 2 * tail / 2 ** (lost + won)), rel=1e-9)


@pytest.mark.parametrize("lost, won, n", [(7, 2, 100), (30, 45, 1000), (0, 4, 50), (3, 0, 400)])
def test_limits_are_where_the_score_is_z(lost, won, n):
    """The share of won images under the hypothesis by brute force: the likeliest of a fine grid."""
    for side, d in zip((1, -1), paired.limits(lost, won, n, 0.99)):
        q = np.linspace(max(0, -d), (1 - d) / 2, 200_001)[1:-1]
        likelihood = won * np.log(q) + lost * np.log(q + d) + (n - won - lost) * np.log1p(-2 * q - d)
        q = q[likelihood.argmax()]
        assert (lost - won - n * d) / math.sqrt(n * (2 * q + d - d * d)) == pytest.approx(side * 2.5758, abs=2e-3)


def test_limits_hold_far_out_where_those_for_95_percent_do_not():
    """Every outcome of 300 images, of which 2 in 100 are lost and none is won, with its probability; 99.7 % are asked for."""
    n, p, z = 300, 0.02, 2.9677
    missed = {"score": 0.0, "Bonett and Price": 0.0}
    for lost in range(n + 1):
        weight = math.comb(n, lost) * p**lost * (1 - p) ** (n - lost)
        low, high = paired.limits(lost, 0, n, 0.997)
        missed["score"] += weight * (not low <= p <= high)
        a, b = 1 / (n + 2), (lost + 1) / (n + 2)
        missed["Bonett and Price"] += weight * (abs(b - a - p) > z * math.sqrt((a + b - (b - a) ** 2) / (n + 2)))
    assert missed["score"] < 0.006 and missed["Bonett and Price"] > missed["score"]


@given(st.integers(0, 60), st.integers(0, 60))
def test_limits_of_the_reverse_are_the_reverse(lost, won):
    low, high = paired.limits(lost, won, 150)
    assert (-high, -low) == pytest.approx(paired.limits(won, lost, 150), abs=1e-12) and low <= (lost - won) / 150 <= high


# A budget


def test_what_fits_into_a_budget_is_tried_and_the_first_that_none_beats_is_chosen(whole):
    found = whole
    assert found.met and found.quantized.nbytes == found.chosen.nbytes <= BUDGET
    assert found.judged_by.startswith("right: as labelled, on 988 held-out images")
    assert [t.way for t in found.trials][:9] == [way.name for way in WAYS[:9]]              # bits by layer may come out uniform
    for trial in found.trials:
        per_channel = "one scale a layer" not in trial.way
        assert trial.nbytes == nbytes(trial.bits.values(), per_channel) <= BUDGET
        if "by layer" not in trial.way:                                                # and the next width would not fit
            assert nbytes([next(w for w in (*WIDTHS, 16) if w > b) for b in trial.bits.values()], per_channel) > BUDGET

    def beats(a, b):
        a, b = a.right, b.right
        test = McNemar(len(a), int((b & ~a).sum()), int((a & ~b).sum()))
        return test.difference > 0 and 55 * test.p <= 0.05                                  # of eleven ways there are 55 pairs

    standing = [t for t in found.trials if not any(beats(other, t) for other in found.trials)]
    assert found.chosen.name == standing[0].name != found.trials[0].name
    assert f"nothing beats {found.chosen.name}" in found.reason and found.reason.count("\n") == 0
    assert found.chosen.p is None and all(t.p <= 0.05 for t in found.trials if beats(found.chosen, t))
    assert len(str(found).splitlines()) == len(found.trials) + 3


def test_what_it_finds_takes_quantized_activations_too(whole, images):
    q = whole.quantized
    both = ptq.quantize(q.model, images[0][:128], {name: lambda _, own=own: own for name, own in q.tensors.items()})
    assert all(both.tensors[name].equal(own) for name, own in q.tensors.items())
    coarse, fine = both.model(images[0]), q.model(images[0])
    assert 0 < (coarse - fine).abs().max() and (coarse.argmax(1) == fine.argmax(1)).double().mean() > 0.95


def test_held_out_images_are_no_others_and_the_trial_is_of_them(net, images, monkeypatch):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    monkeypatch.setattr(auto, "WAYS", WAYS[4:5])
    found = auto.quantize(net, images, budget=nbytes((2, 2), True), seed=5)
    held = torch.randperm(N, generator=torch.Generator().manual_seed(5))[512:]
    right = found.quantized.model(images[0][held]).argmax(1) == images[1][held]
    was = net(images[0][held]).argmax(1) == images[1][held]
    assert torch.equal(right, found.chosen.right)
    assert found.chosen.lost == pytest.approx(100 * (was.double().mean() - right.double().mean()).item())
    assert found.chosen.low <= found.chosen.lost <= found.chosen.high
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_without_labels_the_float_network_is_the_judge(net, images, monkeypatch):
    monkeypatch.setattr(auto, "WAYS", WAYS[4:5])
    found = auto.quantize(net, images[0], budget=nbytes((2, 2), True))
    held = images[0][torch.randperm(N, generator=torch.Generator().manual_seed(0))[512:]]
    changed = found.quantized.model(held).argmax(1) != net(held).argmax(1)
    assert "as the float network says, for there are no labels" in found.judged_by
    assert found.chosen.lost == pytest.approx(100 * changed.double().mean().item()) and found.chosen.lost > 0


def test_more_than_enough_stops_at_the_first_way():
    exact = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    exact[1].weight.data = torch.randint(-127, 128, (4, 16), generator=torch.Generator().manual_seed(0)).float()
    exact[1].weight.data[0, 0] = 127                                                        # so that 8 bits lose nothing
    found = auto.quantize(exact, clusters(4000), budget="1 MB")
    assert [t.name for t in found.trials] == ["uniform 8 bits (one scale a layer, to the largest weight)"]
    assert found.reason.startswith("Stopped at uniform 8 bits") and found.chosen.lost == 0 < found.chosen.high <= auto.ENOUGH


def test_at_the_least_budget_only_one_scale_a_layer_fits(net, images, monkeypatch):
    monkeypatch.setattr(auto, "WAYS", (WAYS[0], WAYS[4], WAYS[10]))
    least = nbytes((2, 2), per_channel=False)
    found = auto.quantize(net, images, budget=least)
    assert [(t.way, t.nbytes) for t in found.trials] == [(WAYS[0].name, least)]
    assert found.reason.startswith(f"Nothing else fits into {least} bytes than uniform 2 bits (")
    with pytest.raises(ValueError, match=f"the budget is {least - 1} bytes, and must be at least {least}: what the network takes with 2"):
        auto.quantize(net, images, budget=least - 1)


def test_biases_that_correction_adds_are_counted(images, monkeypatch):
    monkeypatch.setattr(auto, "WAYS", WAYS[5:7])
    monkeypatch.setattr(auto, "ENOUGH", -100)
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    budget = 2 * (128 + 32) // 8 + 4 * 12                                                   # 2 bits and a scale a channel, and no biases
    found = auto.quantize(bare, images, budget=budget, steps=0)
    assert found.quantized.nbytes == budget
    assert {t.way: t.nbytes for t in found.trials}["a scale a channel, biases corrected"] == budget + 4 * 12


class Twice(nn.Module):
    """One layer that runs twice; another that nothing reads."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.spare = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(torch.relu(self.inner(x.flatten(1))))))


NETWORKS = {
    "a transposed convolution": lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)),
    "groups along a line": lambda: nn.Sequential(nn.Flatten(2), nn.ConstantPad1d(1, 0.0), nn.Conv1d(1, 2, 3), nn.ReLU(),
                                                 nn.Conv1d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(56, 4)),
    "a layer that runs twice": Twice,
    "batch norm alone at the front": lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 4)),
    "bfloat16": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).bfloat16(),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_are_left_as_found_and_what_is_made_can_be_stored(name, images, monkeypatch, tmp_path):
    monkeypatch.setattr(auto, "WAYS", WAYS[3:4] + WAYS[6:])
    monkeypatch.setattr(auto, "ENOUGH", -100)
    torch.manual_seed(0)
    model = NETWORKS[name]()
    modules, parameters = list(model.modules()), list(model.parameters())
    modules[-1].eval()                                                                      # the others are in training mode
    parameters[0].requires_grad_(False)
    modes, learned = [module.training for module in modules], [p.requires_grad for p in parameters]
    before, drawn = {key: t.clone() for key, t in model.state_dict().items()}, torch.get_rng_state()
    x = images[0][:120].to(parameters[0].dtype)
    found = auto.quantize(model, (x, images[1][:120]), budget="1 KiB", steps=2)
    assert modes == [module.training for module in modules] and learned == [p.requires_grad for p in parameters]
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items()) and torch.equal(drawn, torch.get_rng_state())
    assert found.met and len(found.trials) >= 4 and all(t.nbytes <= 1024 for t in found.trials)
    found.quantized.save(tmp_path / "net.safetensors")
    assert torch.equal(ptq.load(tmp_path / "net.safetensors").model(x), found.quantized.model(x))


def test_each_layer_has_the_ranges_that_move_the_answers_less(net, images, monkeypatch):
    """Both ranges of each layer tried by hand."""
    folded = ptq.fold_batch_norm(net)
    fit = images[0][torch.randperm(N, generator=torch.Generator().manual_seed(0))[:512]]
    chosen = set()
    monkeypatch.setattr(auto, "WAYS", WAYS[7:8])
    for bits in WIDTHS[:2]:
        q = auto.quantize(net, images, budget=nbytes((bits, bits), True)).quantized
        for name in ("0", "4"):
            tried = {}
            for ranges in ("max", "mse"):
                one = {name: partial(weights.round_to_nearest, bits=bits, ranges=ranges)}
                own = weights.quantize_weights(folded, one, tuple({"0", "4"} - {name}))
                with torch.no_grad():
                    p, wrong = (model(fit).double().softmax(1) for model in (folded, own.model))
                tried[ranges] = (p * (p / wrong).log()).sum().item(), own.tensors[name].scale
            best = min(tried, key=lambda ranges: tried[ranges][0])
            assert torch.equal(q.tensors[name].scale, tried[best][1])
            chosen.add(best)
    assert chosen == {"max", "mse"}


# A loss


def test_the_smallest_that_is_shown_to_lose_no_more(net, images):
    found = auto.quantize(net, images, max_drop=4, steps=5)
    assert found.met and found.chosen.high <= 4 and found.reason.startswith("The smallest that is shown to lose at most 4 points is ")
    assert all(t.high > 4 for t in found.trials if t.nbytes < found.chosen.nbytes)
    tried = [(WAYS.index(next(way for way in WAYS if way.name == t.way)), -max(t.bits.values())) for t in found.trials]
    assert tried[:-1] == sorted(tried[:-1])                                                 # a way that failed is not tried again


def test_where_nothing_is_shown_to_hold_it_says_what_came_closest(net, images, monkeypatch):
    def spoilt(network, bits, images, seed, steps, ranges):
        return ways.one_scale(network, dict.fromkeys(bits, 2), images)

    monkeypatch.setattr(auto, "WAYS", (replace(WAYS[0], make=spoilt), replace(WAYS[4], make=spoilt)))
    found = auto.quantize(net, images, max_drop=2.0)
    assert not found.met and len(found.trials) == 2 and found.chosen.lost == min(t.lost for t in found.trials)
    assert found.reason.startswith("Nothing that was tried is shown to lose at most 2 points: ") and found.chosen.name in found.reason


# Again, and on


def test_a_search_that_was_cut_off_goes_on_with_what_is_there_and_the_same_seed_finds_the_same(whole, net, images, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "ENOUGH", -100)
    made, again = [], {"budget": BUDGET, "steps": 5, "folder": tmp_path / "run"}

    def counted(way, stop):
        def make(*arguments):
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(way.name)
            return way.make(*arguments)
        return replace(way, make=make)

    monkeypatch.setattr(auto, "WAYS", tuple(counted(way, 7) for way in WAYS))
    with pytest.raises(KeyboardInterrupt):
        auto.quantize(net, images, **again)
    (tmp_path / "run" / "corrected-3.json").unlink()                                        # killed between the two files of the last
    monkeypatch.setattr(auto, "WAYS", tuple(counted(way, 100) for way in WAYS))
    found = auto.quantize(net, images, **again)
    assert made[7:] == [t.way for t in whole.trials][6:] and made[6] == made[7]
    assert [(t.name, t.lost, t.p) for t in found.trials] == [(t.name, t.lost, t.p) for t in whole.trials] and found.reason == whole.reason
    assert torch.equal(found.quantized.model(images[0]), whole.quantized.model(images[0]))
    count = len(made)
    assert auto.quantize(net, images, **again).reason == whole.reason and len(made) == count
    (tmp_path / "run" / "gptq-3.safetensors").unlink()
    assert auto.quantize(net, images, **again).reason == whole.reason and made[count:] == ["a scale a channel, GPTQ"]
    kept = tmp_path / "run" / "gptq-3.json"
    words = json.loads(kept.read_text())
    kept.write_text(json.dumps(words | {"images": words["images"] - 1}))
    with pytest.raises(ValueError, match="gptq-3.json is damaged"):
        auto.quantize(net, images, **again)
    kept.write_text("{}")
    for seed, says in {0: "gptq-3.json is damaged: remove it, and the trial is made again", 1: "holds trials of another network, other "
                       "calibration images, or other settings: name another folder"}.items():
        with pytest.raises(ValueError, match=says):
            auto.quantize(net, images, **again, seed=seed)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match="and no run.json: name a folder that is empty, or none yet"):
        auto.quantize(net, images, **again)
    assert kept.read_text() == "{}"                                                         # what was there is there


# The door


@pytest.mark.parametrize("demand, says", [
    ({}, "give either a budget in bytes or a max_drop in percentage points: there is neither"),
    ({"budget": 100, "max_drop": 1}, "there are both"),
    ({"budget": "40 potatoes"}, r"budget is '40 potatoes', and must be a number of bytes, at least 1 and below 2\*\*63, or one with B, KB"),
    ({"budget": -3}, "budget is -3, and must be a number of bytes"),
    ({"budget": "0"}, "budget is '0', and must be a number of bytes, at least 1"),
    ({"budget": math.nan}, "budget is nan"),
    ({"budget": "40,5 KB"}, "budget is '40,5 KB'"),
    ({"max_drop": math.nan}, "max_drop is nan"),
    ({"budget": "inf"}, "budget is 'inf', and must be a number of bytes"),
    ({"budget": True}, "budget is True"),
    ({"max_drop": 0}, "max_drop is 0, and must be percentage points, above 0 and below 100"),
    ({"max_drop": "little"}, "max_drop is 'little'"),
    ({"max_drop": 0.01}, r"must be at least 0.[89]\d\d: less cannot be shown on 988 held-out images, even if none changes"),
    ({"budget": 200, "seed": -1}, "seed is -1"),
    ({"budget": 200, "seed": 2**63}, r"seed is 9223372036854775808, and must be a whole number from 0 to 2\*\*63 - 1"),
    ({"budget": 200, "skip": ("nowhere",)}, "skip names nowhere"),
    ({"budget": 200, "skip": ("0", "4")}, r"nothing is left to choose bits for: 0 is left out \(named in skip\), 4 is left out"),
])
def test_demands_that_do_not_fit(net, images, demand, says):
    with pytest.raises(ValueError, match=says):
        auto.quantize(net, images, **demand)


def test_calibration_that_does_not_fit(net, images):
    x, y = images
    spoilt = x.clone()
    spoilt[7, 0, 2, 1] = math.inf
    for calibration, says in {
        "few": ((x[:60], y[:60]), "calibration has 60 images, and must have at least 100: half of them are held out"),
        "outside": ((x, y + 1), "labels go from 1 to 4, and must be classes from 0 to 3"),
        "fewer": ((x, y[:-1]), "one for each of the 1500 images"),
        "shape": ((x[:, :, 1:], y), "the network cannot take the calibration images"),
        "NaN": ((x * math.nan, y), "calibration image 0 holds NaN or infinity, as do 1,499 others, and all must be finite"),
        "one": (spoilt, "calibration image 7 holds NaN or infinity"),
    }.values():
        with pytest.raises(ValueError, match=says):
            auto.quantize(net, calibration, budget=200)
    with pytest.raises(TypeError, match="calibration is a str, and must be images"):
        auto.quantize(net, "images.npy", budget=200)
    with pytest.raises(TypeError, match="skip is None, and must be a tuple of names"):
        auto.quantize(net, images, budget=200, skip=None)
    with pytest.raises(ValueError, match="weight has no values"):
        auto.quantize(nn.Linear(16, 4, device="meta"), x.flatten(1), budget=200)
    with pytest.raises(TypeError, match="model is a str, and must be a torch.nn.Module"):
        auto.quantize("cnn", images, budget=200)


def test_units():
    told = {"40 KB": 40_000, "40kb": 40_000, "1,000": 1000, "40,500 kib": 41_472_000, "2 KiB": 2048, ".5 MiB": 524_288,
            "1.001 KB": 1001, "32.001 KB": 32_001, 7: 7}
    assert {text: auto.bytes_of(text) for text in told} == told


# The command


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = clusters(200)
    (tmp_path / "flat.py").write_text(NET)
    np.save("images.npy", x.flatten(1).numpy())
    np.save("labels.npy", y.numpy())
    return ["auto", "flat.py:Net", "--calibration", "images.npy", "--labels", "labels.npy"]


def test_the_command_prints_what_was_tried_and_writes_the_network(own, capsys, monkeypatch):
    monkeypatch.setattr(auto, "ENOUGH", 100)
    assert cli.main([*own, "--budget", "1", "KB", "--out", "net.safetensors"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("uniform 8 bits (one scale a layer, ") and out[3].startswith("Stopped at ")
    assert out[-1] == "net.safetensors holds the network: 84 bytes of codes, scales and biases."    # 64 codes, a scale, 4 biases
    assert ptq.load("net.safetensors").nbytes == 84


@pytest.mark.parametrize("arguments, says", [
    (["auto", "nowhere", "--budget", "1KB"], "name is 'nowhere', and must be one of cnn"),
    (["auto", "flat.py:Net", "--budget", "1KB"], "calibration images are needed for a network of your own"),
    (["auto", "cnn", "--budget", "1KB", "--weights", "w.pt"], "cnn is a network of the zoo, which brings its weights and its images"),
    (["auto", "cnn", "--budget", "1KB", "--folder", "."], ". holds flat.py and no run.json: name a folder that is empty, or none yet"),
    (["auto", "cnn", "--budget", "1KB", "--folder", "flat.py"], "flat.py is a file: name a folder that is empty, or none yet"),
    (["auto", "cnn", "--budget", "1KB", "--out", "no/where.safetensors"], "cannot write no/where.safetensors: there is no folder no"),
])
def test_what_the_command_refuses_is_one_sentence(own, capsys, arguments, says):
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"qlab: {says}") and err.count("\n") == 1


def test_the_command_says_that_it_needs_a_demand(own, capsys):
    assert cli.main(own) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("qlab: give either a budget in bytes or a max_drop")
