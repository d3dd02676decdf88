"""Measurements against scipy, against exact fractions, against NumPy, and against cases worked out by hand."""

import json
import math
import platform
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from qlab.lab import machine, measure
from qlab.lab.data import Split
from qlab.lab.measure import Accuracy, McNemar, accuracy, latency_ms, mcnemar, size_bytes, sqnr_db, wilson
from qlab.matmul import roofline

# ---- wilson

counts = st.integers(1, 10**12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (1, 7), (5000, 10000), (9213, 10000), (9999, 10000)])
def test_wilson_equals_scipy(correct, n, confidence):
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson(correct, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand():
    # correct = 0: low is 0 and high is z^2 / (n + z^2), with z = 1.959964 and z^2 = 3.841459: 3.841459 / 13.841459
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    # p = 1/2: 1/2 -+ 1/2 z / sqrt(n + z^2) = 0.5 -+ 0.5 * 1.959964 / sqrt(103.841459) = 0.5 -+ 0.096169
    assert wilson(50, 100) == pytest.approx((0.403831, 0.596169), abs=1e-6)


@given(counts)
def test_wilson_holds_p_and_stays_in_range(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.integers(1, 10**5).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(2, 100))
def test_wilson_is_narrower_with_more_images_and_wider_with_more_confidence(case, times):
    correct, n = case
    low, high = wilson(correct, n)
    low_more, high_more = wilson(times * correct, times * n)
    low_sure, high_sure = wilson(correct, n, 0.99)
    assert high_more - low_more < high - low < high_sure - low_sure


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 0), "n is 0"), ((1, -5), "n is -5"), ((5, 4), "correct is 5"), ((-1, 4), "correct is -1"),
    ((1, 2, 0), "confidence is 0"), ((1, 2, 1), "confidence is 1"), ((1, 2, math.nan), "confidence is nan"),
])
def test_wilson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


def test_wilson_refuses_a_share():
    with pytest.raises(TypeError):
        wilson(0.92, 10000)


# ---- McNemar

def test_mcnemar_counts_the_four_cases_by_hand():
    a = torch.tensor([True] * 5 + [True] * 1 + [False] * 6 + [False] * 3)
    b = torch.tensor([True] * 5 + [False] * 1 + [True] * 6 + [False] * 3)
    test = mcnemar(a, b)
    assert (test.n, test.a_only, test.b_only) == (15, 1, 6)
    assert test.difference == pytest.approx(5 / 15)
    assert test.p == pytest.approx(2 * (1 + 7) / 128)  # 2 (C(7,0) + C(7,1)) / 2^7
    assert not test.significant


def exact_p(a_only: int, b_only: int) -> float:
    m, less = a_only + b_only, min(a_only, b_only)
    return float(min(Fraction(1), Fraction(2 * sum(math.comb(m, i) for i in range(less + 1)), 2**m)))


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_equals_scipy_and_exact_fractions(a_only, b_only):
    p = McNemar(1000, a_only, b_only).p
    assert 0 < p <= 1
    assert p == pytest.approx(exact_p(a_only, b_only), rel=1e-9)
    if a_only + b_only:
        assert p == pytest.approx(stats.binomtest(a_only, a_only + b_only, 0.5).pvalue, rel=1e-6)


@pytest.mark.parametrize(("a_only", "b_only"), [(499_000, 501_000), (5_000_000, 5_004_000), (49_990_000, 50_010_001)])
def test_p_of_huge_counts_equals_scipy(a_only, b_only):
    expected = stats.binomtest(a_only, a_only + b_only, 0.5).pvalue
    assert McNemar(10**9, a_only, b_only).p == pytest.approx(expected, rel=1e-5)


def test_p_never_becomes_zero():
    assert 0 < McNemar(10**6, 0, 10**6).p < 1e-300
    assert McNemar(10**6, 0, 0).p == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_symmetric(pairs):
    a, b = torch.tensor([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    forth, back = mcnemar(a, b), mcnemar(b, a)
    assert forth.p == back.p
    assert forth.difference == -back.difference == pytest.approx((b.double().mean() - a.double().mean()).item())
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= forth.low < forth.high <= 1


def bonett_price(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    # The same adjustment said another way: two more images, one that only A has right and one that only B has right, then the
    # plain Wald interval of the mean of the differences b - a.
    difference = np.concatenate([b.astype(float) - a, [1, -1]])
    half = stats.norm.ppf(0.975) * difference.std() / math.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


@pytest.mark.parametrize("seed", range(5))
def test_interval_equals_the_wald_interval_of_the_differences_with_two_more_images(seed):
    random = np.random.default_rng(seed)
    a = random.random(2000) < 0.9
    b = a ^ (random.random(2000) < 0.05)
    test = mcnemar(torch.from_numpy(a), torch.from_numpy(b))
    assert (test.low, test.high) == pytest.approx(bonett_price(a, b), abs=1e-12)


def test_interval_by_hand():
    # n = 98: (0 + 1) / 100 and (3 + 1) / 100; 0.03 -+ 1.959964 sqrt((0.05 - 0.0009) / 100) = 0.03 -+ 0.043430
    test = McNemar(98, 0, 3)
    assert (test.low, test.high) == pytest.approx((-0.013430, 0.073430), abs=1e-6)


def test_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    n, a_only, b_only = 1000, 0.03, 0.05
    draws = random.multinomial(n, [a_only, b_only, 1 - a_only - b_only], size=4000)
    tests = [McNemar(n, int(x), int(y)) for x, y, _ in draws]
    covered = np.mean([t.low <= b_only - a_only <= t.high for t in tests])
    assert 0.935 < covered < 0.965  # four standard errors of 0.0034 around 0.95


def test_equal_models_look_different_at_most_5_times_in_100():
    random = np.random.default_rng(0)
    draws = random.multinomial(1000, [0.02, 0.02, 0.96], size=4000)
    assert 0.01 < np.mean([McNemar(1000, int(x), int(y)).significant for x, y, _ in draws]) < 0.05 + 4 * 0.0034


@pytest.mark.parametrize(("test", "sentence"), [
    (McNemar(10_000, 130, 88), "B is 0.42 points lower (95 % interval -0.71 to -0.13), p = 0.005"),
    (McNemar(10_000, 60, 51), "B is 0.09 points lower (95 % interval -0.30 to 0.12), p = 0.448: inside the noise"),
    (McNemar(10_000, 10, 500), "B is 4.90 points higher (95 % interval 4.47 to 5.33), p < 0.001"),
    (McNemar(10_000, 0, 0), "A and B are right equally often (95 % interval -0.03 to 0.03), p = 1.000: inside the noise"),
    (McNemar(60_000, 0, 1), "B is 0.002 points higher (95 % interval -0.004 to 0.007), p = 1.000: inside the noise"),
])
def test_mcnemar_says_what_it_found(test, sentence):
    assert str(test) == sentence


@pytest.mark.parametrize(("a", "b", "message"), [
    (torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool), "a has 3 images and b has 4"),
    (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool), "at least one"),
    (torch.ones(3), torch.ones(3, dtype=torch.bool), "a has dtype torch.float32"),
    (torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.int64), "b has dtype torch.int64"),
    (torch.ones(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool), "shape"),
])
def test_mcnemar_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(a, b)


@pytest.mark.parametrize("cells", [(0, 0, 0), (5, -1, 0), (5, 0, -1), (5, 3, 3)])
def test_mcnemar_refuses_impossible_counts(cells):
    with pytest.raises(ValueError, match="n must be 1 or more"):
        McNemar(*cells)


# ---- accuracy

class Lookup(nn.Module):
    """Answers with the class that the pixel names; remembers the mode it was called in."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.dropout, self.frozen, self.modes, self.classes = nn.Dropout(0.99), nn.BatchNorm2d(1), [], classes

    def forward(self, x):
        self.modes.append((self.training, self.dropout.training, torch.is_inference_mode_enabled()))
        return self.dropout(nn.functional.one_hot(x.flatten().long(), self.classes).float())


def pixels(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 500])
def test_accuracy_by_hand_in_the_order_of_the_images(batch_size):
    found = accuracy(Lookup(), Split(pixels(0, 1, 2, 3, 4, 0, 1), torch.tensor([0, 1, 0, 3, 0, 0, 0])), batch_size)
    assert found.correct.tolist() == [True, True, False, True, False, True, False]
    assert (found.n, found.value) == (7, 4 / 7)
    assert (found.low, found.high) == wilson(4, 7)


def test_accuracy_runs_in_evaluation_mode_and_puts_every_part_back():
    model = Lookup().train()
    model.frozen.eval()
    accuracy(model, Split(pixels(0, 1), torch.tensor([0, 1])))
    assert model.modes == [(False, False, True)]
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_accuracy_puts_the_mode_back_after_an_error():
    model = Lookup().train()
    with pytest.raises(RuntimeError):
        accuracy(model, Split(pixels(-1), torch.tensor([0])))  # one_hot refuses a negative class
    assert model.training


def test_accuracy_equals_a_plain_loop_on_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    expected = [int(model.eval()(image[None]).argmax()) == int(label) for image, label in zip(images, labels)]
    assert accuracy(model, (images, labels), batch_size=10).correct.tolist() == expected


def test_accuracy_of_a_model_that_needs_the_plain_memory_order():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 10)

        def forward(self, x):
            return self.fc(x.view(len(x), -1))

    torch.manual_seed(0)
    model, images = Views(), torch.randn(8, 3, 4, 4)
    with torch.no_grad(), pytest.raises(RuntimeError):
        model(images.contiguous(memory_format=torch.channels_last))
    labels = model(images).argmax(1)
    assert accuracy(model, Split(images, labels)).value == 1


def test_accuracy_counts_nan_as_wrong_and_ties_as_argmax_does():
    rows = torch.tensor([[math.nan, math.nan], [math.nan, 1.0], [1.0, math.nan], [2.0, 2.0], [-math.inf, 0.0], [math.inf, 0.0]])
    right = accuracy(lambda x: rows[: len(x)], Split(pixels(*range(6)), torch.tensor([0, 0, 0, 0, 1, 0]))).correct
    assert right.tolist() == [False, False, False, True, True, True]


def test_accuracy_prints_share_and_interval():
    found = Accuracy(torch.arange(10_000) < 9213)
    assert str(found) == "92.1 % [91.6, 92.6]"
    assert repr(found) == "Accuracy(92.1 % [91.6, 92.6], n=10000)"
    assert mcnemar(found, found).p == 1
    with pytest.raises(AttributeError):
        found.correct = None


@pytest.mark.parametrize(("split", "options", "message"), [
    ((pixels(), torch.tensor([], dtype=torch.int64)), {}, "0 images and 0 labels"),
    ((pixels(1, 2), torch.tensor([1])), {}, "2 images and 1 labels"),
    ((pixels(1, 2), torch.tensor([1.0, 2.0])), {}, "must be integers"),
    ((pixels(1, 2), torch.tensor([[1], [2]])), {}, "must be integers"),
    ((pixels(1, 2), torch.tensor([1, 5])), {}, "from 0 to 4"),
    ((pixels(1, 2), torch.tensor([-1, 1])), {}, "from 0 to 4"),
    ((pixels(1, 2), torch.tensor([1, 1])), {"batch_size": 0}, "batch_size is 0"),
])
def test_accuracy_refuses_bad_data(split, options, message):
    with pytest.raises(ValueError, match=message):
        accuracy(Lookup(), Split(*split), **options)


@pytest.mark.parametrize("model", [
    lambda x: x, lambda x: x.flatten(), lambda x: [1], lambda x: torch.ones(1, 5), lambda x: torch.ones(2, 0)])
def test_accuracy_refuses_what_is_no_classifier(model):
    with pytest.raises(ValueError, match="model returned"):
        accuracy(model, Split(pixels(1, 2), torch.tensor([0, 0])))


@pytest.mark.parametrize("correct", [torch.ones(3), torch.ones(0, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)])
def test_accuracy_result_refuses(correct):
    with pytest.raises(ValueError, match="correct has dtype"):
        Accuracy(correct)


# ---- sqnr_db

def test_sqnr_by_hand():
    assert sqnr_db([1.0], [0.9]) == pytest.approx(20)           # signal 1, error 0.1
    assert sqnr_db([3.0, 4.0], [3.0, 3.0]) == pytest.approx(10 * math.log10(25))
    assert sqnr_db([1, 2], [1, 2]) == math.inf
    assert sqnr_db([0, 0], [0, 0]) == math.inf
    assert sqnr_db([0, 0], [1, 0]) == -math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sqnr_equals_numpy_in_float64(dtype):
    torch.manual_seed(0)
    x = (300 * torch.randn(7, 11, 13)).to(dtype)
    x_hat = (x + torch.rand_like(x)).requires_grad_()
    p, q = x.double().numpy(), x_hat.detach().double().numpy()
    assert sqnr_db(x, x_hat) == pytest.approx(10 * np.log10(np.sum(p**2) / np.sum((p - q) ** 2)), rel=1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_sqnr_survives_extreme_numbers(size):
    assert sqnr_db(np.array([size, -size]), np.array([0.99 * size, -size])) == pytest.approx(10 * math.log10(2 / 1e-4))


@pytest.mark.parametrize(("x", "x_hat", "message"), [
    ([1.0, 2.0], [1.0], "shape"), ([], [], "empty"), ([math.nan], [1.0], "x holds NaN"), ([1.0], [math.inf], "x_hat holds NaN"),
])
def test_sqnr_refuses(x, x_hat, message):
    with pytest.raises(ValueError, match=message):
        sqnr_db(x, x_hat)


# ---- size_bytes

def test_size_of_a_mixed_model_by_hand():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5).half(), nn.Linear(5, 2, bias=False).bfloat16())
    model.register_buffer("codes", torch.zeros(7, dtype=torch.int8))
    model.register_buffer("scratch", torch.zeros(1000), persistent=False)  # not in a file
    #       linear            batch norm: four of 5 halves and an int64 counter    linear   codes
    assert size_bytes(model) == (15 + 5) * 4 + (4 * 5 * 2 + 8) + 10 * 2 + 7


def test_size_counts_shared_parameters_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    assert size_bytes(model) == 2 * 256
    model[1].weight = model[0].weight
    assert size_bytes(model) == 256
    model[1].weight = nn.Parameter(model[0].weight.data)  # another parameter on the same memory
    assert size_bytes(model) == 256
    assert size_bytes(nn.ReLU()) == 0
    assert size_bytes(nn.Linear(8, 8, bias=False, device="meta")) == 256


def test_size_equals_what_safetensors_writes(tmp_path):
    from safetensors.torch import save_file

    from qlab.nets.models import MODELS
    model = MODELS["depthwise"]()
    save_file(model.state_dict(), tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert size_bytes(model) == len(content) - header


def test_size_looks_inside_quantized_tensors():
    class Packed(nn.Module):
        def get_extra_state(self):
            return {"codes": [torch.zeros(6, dtype=torch.int8)], "bits": 4}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own quantized tensors are deprecated, and still met
        weight = torch.quantize_per_channel(torch.ones(4, 10), torch.ones(4), torch.zeros(4), 0, torch.qint8)
        plain = torch.quantize_per_tensor(torch.ones(4, 10), 1.0, 0, torch.qint8)
    model = nn.Module()
    model.register_buffer("weight", weight)
    assert size_bytes(model) == 40 + weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    model.register_buffer("weight", plain)
    assert 40 < size_bytes(model) <= 40 + 16
    assert size_bytes(Packed()) == 6


def test_size_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model is a Tensor"):
        size_bytes(torch.ones(3))


# ---- latency_ms

class Clock:
    """A clock that moves only when something is called: so a timing has an exact expected value."""

    def __init__(self, monkeypatch, costs_ms):
        self.now, self.calls, self.costs = 0, 0, costs_ms
        monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: self.now)

    def __call__(self):
        self.now += round(1e6 * self.costs[min(self.calls, len(self.costs) - 1)])
        self.calls += 1


def test_latency_by_hand_with_a_made_up_clock(monkeypatch):
    clock = Clock(monkeypatch, [50, 20, 9, 1, 2, 3, 4, 5])  # the first three are the warm-up
    latency = latency_ms(clock, warmup=3, repeats=5)
    assert latency.samples_ms == (1, 2, 3, 4, 5)
    assert (latency.median_ms, latency.quartiles_ms, clock.calls) == (3, (2, 4), 8)
    assert str(latency) == f"3 ms [2, 4] (median and quartiles of 5; {machine.describe()})"


def test_latency_of_a_fast_function_is_a_mean_over_many_calls(monkeypatch):
    clock = Clock(monkeypatch, [0.01])
    latency = latency_ms(clock, warmup=1, repeats=4, min_sample_ms=2)
    assert clock.calls == 1 + 4 * 200
    assert latency.median_ms == pytest.approx(0.01)


def test_latency_of_the_real_clock_is_positive():
    latency = latency_ms(lambda: None, repeats=3)
    assert 0 < latency.quartiles_ms[0] <= latency.median_ms <= latency.quartiles_ms[1]
    assert len(latency.samples_ms) == 3
    assert latency.machine == machine.describe()


@pytest.mark.parametrize(("options", "message"), [
    ({"warmup": 0}, "warmup is 0"), ({"repeats": 0}, "repeats is 0"), ({"min_sample_ms": -1}, "min_sample_ms is -1"),
    ({"min_sample_ms": math.nan}, "min_sample_ms is nan"),
])
def test_latency_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        latency_ms(lambda: None, **options)


def test_latency_refuses_a_result_in_place_of_a_function():
    with pytest.raises(TypeError, match="fn is a Tensor"):
        latency_ms(torch.ones(1))


# ---- the machine

KEYS = {"os", "architecture", "cpu", "physical_cores", "logical_cores", "usable_cores", "torch_threads", "avx2", "avx512", "avx512_vnni",
        "avx_vnni", "amx_tile", "amx_int8", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "arm_dot", "arm_i8mm",
        "torch_cpu_capability", "onednn_limit", "memory_gb", "cuda", "cuda_capability", "cuda_driver", "mps"}


def test_abilities_hold_the_documented_keys_and_fit_a_record():
    found = machine.abilities()
    assert set(found) == KEYS
    assert json.loads(json.dumps(machine.environment())) == machine.environment()
    assert set(machine.environment()) == KEYS | {"date", "python", "torch", "numpy"}
    assert found["torch_threads"] == torch.get_num_threads()
    assert 1 <= found["usable_cores"] <= found["logical_cores"]
    assert (found["cuda"] is not None) == torch.cuda.is_available()
    for key in KEYS:
        assert key in machine.abilities.__doc__


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="/proc/cpuinfo is Linux only")
def test_abilities_agree_with_proc():
    text = Path("/proc/cpuinfo").read_text()
    words, found = set(text.split()), machine.abilities()
    for key, flag in {"avx2": "avx2", "avx512": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "amx_tile": "amx_tile",
                      "amx_int8": "amx_int8", "avx512_bf16": "avx512_bf16", "avx512_fp16": "avx512_fp16", "amx_bf16": "amx_bf16",
                      "amx_fp16": "amx_fp16", "arm_dot": "asimddp", "arm_i8mm": "i8mm"}.items():
        assert found[key] is (flag in words), key
    assert found["logical_cores"] == sum(line.startswith("processor") for line in text.splitlines())
    total_kb = int(Path("/proc/meminfo").read_text().split()[1])
    assert found["memory_gb"] == pytest.approx(total_kb * 1024 / 1e9, abs=0.1)


def test_abilities_do_not_depend_on_one_source(monkeypatch):
    expected = {key: machine.abilities()[key] for key in machine.INSTRUCTIONS}
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch
    if platform.system() == "Linux":
        assert {key: machine.abilities()[key] for key in machine.INSTRUCTIONS} == expected


def broken(*_, **__):
    raise OSError("no such thing here")


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "Plan9", ""])
@pytest.mark.parametrize("architecture", ["x86_64", "AMD64", "arm64", "aarch64", "riscv64", ""])
def test_abilities_never_raise(monkeypatch, system, architecture):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(machine, "_cpuinfo", list)
    monkeypatch.setattr(machine.subprocess, "run", broken)
    monkeypatch.setattr(machine.os, "sysconf", broken, raising=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", broken, raising=False)
    for name in ("get_capabilities", *(sources[2] for sources in machine.INSTRUCTIONS.values() if sources[2])):
        monkeypatch.setattr(torch.cpu, name, broken, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", broken)
    monkeypatch.setattr(torch.backends.mps, "is_available", broken)
    found = machine.abilities()
    assert set(found) == KEYS
    assert found["cuda"] is None and found["memory_gb"] is None and found["mps"] is False
    assert found["amx_int8"] is (None if architecture in ("x86_64", "AMD64") else False)  # unknown on x86, impossible elsewhere
    assert found["cpu"]
    assert "\n" not in machine.describe()


def machine_with(monkeypatch, architecture="x86_64", **changes):
    blank = dict.fromkeys(KEYS) | dict.fromkeys(machine.INSTRUCTIONS, False) | {
        "cpu": "Some CPU", "physical_cores": 8, "usable_cores": 8, "torch_threads": 8}
    monkeypatch.setattr(machine, "abilities", lambda: blank | changes)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    return machine.describe()


@pytest.mark.parametrize(("changes", "line"), [
    ({"avx2": True}, "Some CPU, 8 cores, 8 threads, AVX2, no VNNI, no AMX, no CUDA"),
    ({"avx2": True, "avx_vnni": True, "torch_threads": 1}, "Some CPU, 8 cores, 1 thread, AVX2, VNNI, no AMX, no CUDA"),
    ({"avx2": True, "avx512": True, "avx512_vnni": True, "amx_int8": True, "usable_cores": 2, "onednn_limit": "AVX2"},
     "Some CPU, 2 of 8 cores, 8 threads, AVX-512, VNNI, AMX, oneDNN limited to AVX2, no CUDA"),
    ({"avx2": True, "amx_int8": None, "cuda": "NVIDIA H200", "cuda_capability": "9.0"},
     "Some CPU, 8 cores, 8 threads, AVX2, no VNNI, AMX unknown, NVIDIA H200 (compute capability 9.0)"),
    ({"architecture": "arm64", "arm_dot": True, "mps": True}, "Some CPU, 8 cores, 8 threads, dot product, no I8MM, MPS"),
])
def test_describe_names_what_the_machine_has_and_lacks(monkeypatch, changes, line):
    assert machine_with(monkeypatch, **changes) == line


# ---- the roofline

def test_attainable_below_at_and_above_the_ridge():
    roof = roofline.Roof(peak=100.0, bandwidth=20.0)
    assert roof.ridge == 5
    assert [roof.attainable(x) for x in (0, 1, 4.9, 5, 5.1, 1e9, math.inf)] == pytest.approx([0, 20, 98, 100, 100, 100, 100])
    assert roof.attainable(np.array([[1, 10]])).tolist() == [[20, 100]]
    assert roofline.attainable(torch.tensor([1.0, 10.0]), 100, 20).tolist() == [20, 100]


def test_matmul_intensity_by_hand():
    # (2, 3) by (3, 4): 48 operations; 6 + 12 factors and 8 results
    assert roofline.matmul_intensity(2, 3, 4, 4) == 48 / (4 * 26)
    assert roofline.matmul_intensity(2, 3, 4, 1, bytes_per_result=4) == 48 / (18 + 32)
    assert roofline.matmul_intensity(2, 3, 4, 0.5, 2) == 48 / (9 + 16)
    assert roofline.matmul_intensity(1, 4096, 4096, 2) == pytest.approx(1, rel=1e-3)  # a matrix by a vector: memory-bound everywhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_measured_peak_is_what_a_matmul_reaches(dtype):
    assert roofline.measure_peak(dtype, seconds=0.05) > 1e7


def test_measure_peak_counts_two_operations_a_product(monkeypatch):
    monkeypatch.setattr(roofline, "_seconds", lambda fn, device: 1e-3)  # every matmul takes a millisecond
    monkeypatch.setattr(roofline, "_square_matmul", lambda dtype, size, device: lambda: None)
    assert roofline.measure_peak(seconds=0.2) == pytest.approx(2 * 16384**3 / 1e-3, rel=1e-12)


def test_measure_bandwidth_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(roofline, "_seconds", lambda fn, device: 1e-3)
    assert roofline.measure_bandwidth(seconds=0.01, megabytes=4) == pytest.approx(2 * 4e6 / 1e-3)


def test_int8_peak_multiplies_int8_exactly():
    product = roofline._square_matmul(torch.int8, 32, "cpu")()
    assert product.dtype == torch.int32


def test_measured_roof_is_positive():
    roof = roofline.measure_roof(seconds=0.1)
    assert roof.peak > 0 and roof.bandwidth > 0 and roof.ridge == roof.peak / roof.bandwidth


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_roof_of_a_gpu():
    assert roofline.measure_roof(torch.bfloat16, seconds=0.5, device="cuda").peak > 1e11


@pytest.mark.parametrize(("call", "message"), [
    (lambda: roofline.attainable(-1, 1, 1), "intensity"), (lambda: roofline.attainable(math.nan, 1, 1), "intensity"),
    (lambda: roofline.attainable([1, -1], 1, 1), "intensity"), (lambda: roofline.attainable(1, 0, 1), "peak is 0"),
    (lambda: roofline.attainable(1, 1, math.inf), "bandwidth is inf"), (lambda: roofline.Roof(-1, 1), "peak is -1"),
    (lambda: roofline.matmul_intensity(0, 1, 1, 1), "m is 0"), (lambda: roofline.matmul_intensity(1, 1, 1, 0), "bytes_per_element is 0"),
    (lambda: roofline.matmul_intensity(1, 1, 1, 1, -1), "bytes_per_result is -1"),
    (lambda: roofline.measure_peak(torch.int32), "dtype is torch.int32"), (lambda: roofline.measure_peak(seconds=0), "seconds is 0"),
    (lambda: roofline.measure_bandwidth(seconds=-1), "seconds is -1"), (lambda: roofline.measure_bandwidth(megabytes=0), "megabytes is 0"),
    (lambda: roofline.measure_roof(seconds=math.nan), "seconds is nan"),
])
def test_roofline_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_over_seeds_is_numpy_s_mean_of_the_images_and_says_when_seeds_agree():
    generator = np.random.default_rng(0)
    a, b = generator.random((3, 500)) < 0.8, generator.random((3, 500)) < 0.9
    found = measure.over_seeds([torch.tensor(one) for one in a], [torch.tensor(one) for one in b])
    assert np.allclose(found.each, 100 * (b.mean(1) - a.mean(1)))
    an_image = 100 * (b.mean(0) - a.mean(0))
    half = 1.959964 * an_image.std(ddof=1) / 500**0.5
    assert np.allclose((found.mean, found.low, found.high), an_image.mean() + np.array([0, -half, half]), atol=1e-5)
    assert found.agree and not measure.over_seeds([torch.tensor(a[0])], [torch.tensor(a[1])]).agree


@pytest.mark.parametrize("a, b, told", [
    ([], [], "a has 0 seeds and b has 0"), ([[True, False]], [], "a has 1 seeds and b has 0"),
    ([[True, False]], [[True]], r"the results have \[1, 2\] images"), ([[True]], [[True]], r"the results have \[1\] images"),
    ([[1, 0]], [[True, False]], "must be bool")])
def test_over_seeds_refuses_what_cannot_be_compared(a, b, told):
    with pytest.raises(ValueError, match=told):
        measure.over_seeds([torch.tensor(one) for one in a], [torch.tensor(one) for one in b])
