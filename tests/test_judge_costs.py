"""Medians against scipy, memory against sums worked out by hand, energy against a counter made of files, MACs against the formula."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from qlab.lab import zoo
from qlab.lab.judge import energy, memory, timing
from qlab.lab.measure import Latency

# ---- time


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [6, 7, 8, 20, 21, 100, 1001])
def test_the_interval_of_a_median_equals_scipy(n, confidence):
    samples = np.random.default_rng(n).exponential(size=n)
    if n < 1 - math.log2(1 - confidence):
        with pytest.raises(ValueError, match=f"needs at least {math.ceil(1 - math.log2(1 - confidence))}"):
            timing.median(samples.tolist(), confidence)
        return
    expected = stats.quantile_test(samples).confidence_interval(confidence)
    found = timing.median(samples.tolist(), confidence)
    assert (found.value, found.low, found.high) == (np.median(samples), expected.low, expected.high)


@pytest.mark.parametrize(("samples", "told"), [
    ([1.0] * 5, "there are 5 samples"), ([], "there are 0"), ([1.0, math.nan] * 5, "finite"), ([[1.0, 2.0]] * 6, r"the shape \(6, 2\)")])
def test_median_refuses(samples, told):
    with pytest.raises(ValueError, match=told):
        timing.median(samples)


@pytest.mark.parametrize("confidence", [0, 1, math.nan, "x", None])
def test_median_refuses_what_is_no_confidence(confidence):
    with pytest.raises(ValueError, match=f"confidence is {confidence!r}, and must lie between"):
        timing.median([1.0] * 6, confidence)


def test_median_takes_arrays_and_no_words():
    samples = np.arange(9, dtype=np.float32)[::-1]
    assert timing.median(samples) == timing.median(samples.tolist()) == timing.Median(4.0, 1.0, 7.0, 9)
    with pytest.raises(TypeError, match="samples is a list"):
        timing.median(["a"] * 6)


def test_calls_are_timed_in_turns():
    order = []
    taken = timing.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=4)
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert runs == ["a", "b"] * 4
    assert [len(one.samples_ms) for one in taken.values()] == [4, 4] and min(taken["a"].samples_ms) > 0


def test_a_ratio_is_taken_turn_by_turn():
    slow, fast = (Latency(tuple(factor * x for x in (1.0, 9.0, 2.0, 50.0, 3.0, 1.0)), "") for factor in (3, 1))
    assert timing.ratio(slow, fast) == timing.Median(3, 3, 3, 6)
    with pytest.raises(ValueError, match="of the same turns"):
        timing.ratio(slow, Latency((1.0,), ""))


def test_the_pipeline_is_its_stages_one_behind_the_other():
    pixels = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net = zoo.load("lenet300")
    calls = timing.stages(net, pixels, mean=0.25, std=0.5)
    assert torch.allclose(calls["preprocess"](), (pixels / 255 - 0.25) / 0.5, atol=1e-6)
    assert torch.equal(calls["network"](), net(calls["preprocess"]()))
    assert torch.equal(calls["whole"](), calls["network"]().argmax(1)) and torch.equal(calls["argmax"](), calls["whole"]())


@pytest.mark.parametrize(("calls", "options", "told"), [
    ({}, {}, "at least one"), ({"a": int}, {"turns": 0}, "turns is 0"), ({"a": int}, {"turns": 2.5}, "turns is 2.5"),
    ({"a": int}, {"warmup": 2.5}, "warmup is 2.5")])
def test_in_turns_refuses(calls, options, told):
    with pytest.raises(ValueError, match=told):
        timing.in_turns(calls, **options)


def test_stages_refuse_images_that_are_no_pixels():
    with pytest.raises(ValueError, match="must be uint8"):
        timing.stages(nn.Flatten(), torch.ones(1, 1, 2, 2))
    assert timing.stages(nn.Flatten(), np.array([[[[0, 255]]]], np.uint8))["whole"]().tolist() == [1]


# ---- memory

def test_the_peak_of_a_chain_by_hand():
    net = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5))
    x = torch.ones(2, 10)
    # Behind the ReLU its input and its output lie there, 2 x 100 floats each; the last layer holds one of them, and 2 x 5.
    found = memory.peak(lambda: net(x))
    assert found == memory.Peak(2 * 2 * 100 * 4, "aten.relu.default") and str(found) == "1,600 bytes (after relu)"
    net[1].inplace = True
    assert memory.peak(lambda: net(x)).nbytes == 2 * 100 * 4 + 2 * 5 * 4


def test_views_count_once_and_what_was_there_before_not_at_all():
    x = torch.ones(1000)
    assert memory.peak(lambda: x.view(10, 100).t()[2:]).nbytes == 0
    assert memory.peak(lambda: (x + 1).view(10, 100).t().relu_()).nbytes == 4000
    kept = []
    assert memory.peak(lambda: [kept.append(x + i) for i in range(5)]).nbytes == 5 * 4000
    assert memory.peak(lambda: [float((x + i)[0]) for i in range(5)]).nbytes == 4000


def test_a_skip_keeps_its_map_alive():
    class Skip(nn.Module):
        def forward(self, x):
            first = x + 1
            return first + ((first * 2) * 2)

    assert memory.peak(lambda: Skip()(torch.ones(10))).nbytes == 3 * 40 + 40  # torch.ones(10) is made in the call, too


def test_memory_refuses_a_result():
    with pytest.raises(TypeError, match="fn is a Tensor"):
        memory.peak(torch.ones(1))


# ---- energy

@pytest.fixture
def package(tmp_path):
    """A counter that runs over behind 999,999 microjoules; .use adds to it."""
    for name, value in {"package-0": 999_000, "core": 5}.items():
        place = tmp_path / f"rapl:{name}"
        place.mkdir()
        for file, text in {"name": name, "energy_uj": value, "max_energy_range_uj": 999_999}.items():
            (place / file).write_text(f"{text}\n")
    counter = tmp_path / "rapl:package-0" / "energy_uj"

    def use(microjoules):
        counter.write_text(f"{(int(counter.read_text()) + microjoules) % 1_000_000}\n")
    return SimpleNamespace(folder=tmp_path, counter=counter, use=use)


def test_a_counter_that_runs_over_is_read_on(package, monkeypatch):
    monkeypatch.setattr(energy.time, "sleep", lambda seconds: package.use(0))
    assert energy.measured(lambda: package.use(2500), 0.01, package.folder) == pytest.approx(0.0025)


def test_idling_is_taken_off(package, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def spend(seconds, microjoules):
        clock.now += seconds
        package.use(microjoules)

    def idle(seconds):
        spend(seconds, int(100 * seconds))
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: clock.now, sleep=idle))
    # 100 uJ a second idle; a call takes 3 seconds and 700 uJ: 400 above idling
    assert energy.measured(lambda: spend(3, 700), 10, package.folder) == pytest.approx(400e-6)


def test_only_packages_that_can_be_read_are_counters(package):
    assert list(energy.counters(package.folder)) == ["package-0"]
    package.counter.write_text("hidden")
    assert energy.counters(package.folder) == {} and energy.measured(int, 0.01, package.folder) is None


def test_macs_are_those_of_the_formula():
    net = zoo.load("cnn")
    sizes, hooks, total = {}, [], 0
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(lambda layer, args, out: sizes.update({layer: out[0].numel()})))
    net(torch.zeros(1, 1, 28, 28))
    for layer, outputs in sizes.items():
        total += outputs * layer.weight[0].numel()
    assert energy.macs(net, torch.zeros(1, 1, 28, 28)) == total > 1_000_000


class Asked(nn.Module):
    """A module whose answer is a tuple, or which has to be asked otherwise."""

    def __init__(self, part, ask=lambda part, x: part(x)[0]):
        super().__init__()
        self.part, self.ask = part, ask

    def forward(self, x):
        return self.ask(self.part, x)


def recurrent(kind, gates, **options):
    """Each of 5 steps has gates x 3 units, which see 8 inputs, or the 3 (6, of both ways) of the layer before, and 3 states."""
    ways = 1 + options.get("bidirectional", False)
    inputs = [8] + [3 * ways] * (options.get("num_layers", 1) - 1)
    return Asked(kind(8, 3, batch_first=True, **options)), sum(5 * ways * gates * 3 * (n + 3) for n in inputs)


SEEN = {
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16),
    "attention": (Asked(nn.MultiheadAttention(8, 2, batch_first=True), lambda part, x: part(x, x, x)[0]), 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8),
    "scaled": (Asked(nn.Identity(), lambda part, x: nn.functional.scaled_dot_product_attention(*[x[None]] * 3)), 2 * 5 * 5 * 8),
    "lstm": recurrent(nn.LSTM, 4), "lstm, two layers": recurrent(nn.LSTM, 4, num_layers=2, bidirectional=True),
    "lstm, no bias": recurrent(nn.LSTM, 4, bias=False), "gru": recurrent(nn.GRU, 3, bidirectional=True), "rnn": recurrent(nn.RNN, 1),
    "nothing": (nn.Sequential(nn.Softmax(-1), nn.LayerNorm(8), nn.Upsample(scale_factor=2, mode="linear")), 0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("model", "expected"), SEEN.values(), ids=SEEN)
def test_macs_of_attention_and_recurrence_by_hand_in_either_mode(model, expected, training):
    assert energy.macs(model.train(training), torch.zeros(1, 5, 8)) == expected
    assert model.training is training and torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_the_model_as_it_is():
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(8, 2))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert energy.macs(net, torch.rand(1, 5, 8)) == 5 * 8 * 2
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == [True, True, False]


@pytest.mark.parametrize(("name", "ask"), [
    ("aten._trilinear", lambda x: nn.functional.bilinear(x, x, torch.ones(2, 8, 8))), ("aten.mv", lambda x: x[0] @ torch.ones(8)),
    ("aten._cdist_forward", lambda x: torch.cdist(x, x)), ("mine.product", lambda x: torch.ops.mine.product(x))])
def test_what_multiplies_and_has_no_formula_is_refused_by_name(name, ask):
    with torch.library._scoped_library("mine", "FRAGMENT") as library:
        library.define("product(Tensor x) -> Tensor")
        library.impl("product", lambda x: x * x, "CPU")
        with pytest.raises(ValueError, match=f"the model calls {name}, whose"):
            energy.macs(Asked(nn.Identity(), lambda part, x: ask(x)), torch.ones(1, 5, 8))
    assert torch.backends.mha.get_fastpath_enabled()


def test_modelled_energy_by_hand():
    # 10 MACs: 46 pJ in float32, 3 pJ in int8; 8 bytes are one access
    full, small = energy.modelled(10, 8, "float32"), energy.modelled(10, 8, "int8")
    assert (full.arithmetic, full.low, full.high) == pytest.approx((46e-6, 1346e-6, 2646e-6))
    assert (small.arithmetic, small.low) == pytest.approx((3e-6, 1303e-6))


@pytest.mark.parametrize(("call", "told"), [
    (lambda: energy.modelled(1, 1, "int3"), "float32, float16, int8"), (lambda: energy.modelled(-1, 1, "int8"), "macs is -1"),
    (lambda: energy.modelled(math.nan, 1, "int8"), "macs is nan"), (lambda: energy.modelled(1, 1.5, "int8"), "nbytes is 1.5"),
    (lambda: energy.modelled(1, 1, []), "float32, float16, int8"), (lambda: energy.measured(int, 60), "from 0.001 to 30"),
    (lambda: energy.measured(int, "x"), "seconds is 'x'"), (lambda: energy.macs(nn.Flatten(), torch.ones(2, 3)), r"shape \(2, 3\)"),
    (lambda: energy.macs(nn.Flatten(), torch.tensor(1.0)), r"must be \(1, ...\)")])
def test_energy_refuses(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@pytest.mark.parametrize(("call", "told"), [
    (lambda: energy.measured(3), "fn is a int"), (lambda: energy.macs(torch.relu, torch.ones(1, 3)), "model is a builtin"),
    (lambda: energy.macs(nn.Flatten(), None), "image is a NoneType")])
def test_energy_refuses_other_kinds(call, told):
    with pytest.raises(TypeError, match=told):
        call()
