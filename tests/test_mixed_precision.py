"""Mixed precision against torch.autocast and GradScaler, NumPy's float16, and one step by hand."""

import copy
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.lab import runs
from qlab.lab.data import Split
from qlab.lab.experiments import mixed_precision as experiment
from qlab.lab.measure import mcnemar
from qlab.nets import fake, qat, training
from qlab.nets import mixed_precision as mp
from qlab.nets.half import half_copies, half_gradients, shares, update
from qlab.nets.mixed_precision import LossScale, train, train_autocast
from qlab.nets.models import lenet_5, lenet_300_100

HALVES = (torch.float16, torch.bfloat16)


def data(n=192, features=20, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator), torch.randint(classes, (n,), generator=generator)


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


def images(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 28, 28, generator=generator), torch.randint(10, (n,), generator=generator)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# Quantizers keep float32 in the middle of it

def quantizers():
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    return {"fixed": fake.FakeQuantize(4, -1.0, 2.0), "learned": qat.LearnedActivations(4, -1.0, 2.0),
            "averaged": qat.AveragedActivations(4, -1.0, 2.0), "weights": qat.WeightQuantizer(weight, 4, 0, learned=False),
            "weights, learned": qat.WeightQuantizer(weight, 4, 0, learned=True),
            "weights, learned, one": qat.WeightQuantizer(weight, 4, None, learned=True)}


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(HALVES), st.sampled_from([(2, 0, 3, 0), (8, 0, 255, 100), (4, -7, 7, 0)]),
       st.floats(1e-4, 10.0), st.booleans(), st.booleans())
def test_half_inputs_have_the_codes_and_gradients_of_their_float32_copies(seed, half, levels, scale, learned, channels):
    generator = torch.Generator().manual_seed(seed)
    (_, low, high, zero), x = levels, (torch.randn(32, 33, generator=generator) * scale * levels[2]).to(half)
    s = torch.rand(32, 1, generator=generator) * scale + scale if channels else torch.tensor(scale)
    given_, copied = (t.clone().requires_grad_() for t in (x, x.float()))
    by_half, by_float = (s.clone().requires_grad_(learned) for _ in range(2))
    y, expected = fake.fake_quantize(given_, by_half, zero, low, high), fake.fake_quantize(copied, by_float, zero, low, high)
    codes = np.clip(np.rint(x.float().numpy() / s.numpy()), low - zero, high - zero)                    # NumPy, in float32
    assert torch.equal(y, torch.from_numpy(codes * s.numpy()).to(half)) and y.dtype == half and torch.equal(y, expected.to(half))
    pull = torch.randn(32, 33, generator=generator).to(half)
    y.backward(pull)
    expected.backward(pull.float())
    assert given_.grad.dtype == half and torch.equal(given_.grad, copied.grad.to(half))
    if learned:
        assert by_half.grad.dtype == torch.float32 and torch.equal(by_half.grad, by_float.grad)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("which", quantizers())
def test_a_quantizer_in_half_a_network_finds_the_same_codes(which, half):
    module, x = quantizers()[which], torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(half)
    expected = module.train()(x.float()) if which != "averaged" else module.eval()(x.float())
    for changed in (copy.deepcopy(module).to(half), copy.deepcopy(module).to("cpu", half), copy.deepcopy(module).double()):
        assert {t.dtype for t in [*changed.parameters(), *changed.buffers()] if t.is_floating_point()} <= {torch.float32}
        assert torch.equal(changed(x), expected.to(half))
    y = copy.deepcopy(module)(x)
    y.float().sum().backward() if y.requires_grad else None
    assert {t.device.type for t in [*module.to("meta").parameters(), *module.buffers()]} <= {"meta"}


def test_a_gradient_of_a_scale_survives_a_change_of_dtype():
    module = qat.LearnedActivations(4, -1.0, 2.0)
    module(torch.tensor([[0.3, 5.0]])).sum().backward()
    before = module.scale.grad.clone()
    module.half()
    assert module.scale.grad.dtype == torch.float32 and torch.equal(module.scale.grad, before)
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def test_a_moving_range_follows_half_batches():
    module = qat.AveragedActivations(4, -1.0, 2.0, momentum=0.5).train()
    module(torch.tensor([-3.0, 4.0], dtype=torch.float16))
    assert torch.equal(module.range, torch.tensor([-2.0, 3.0])) and module.scale.item() == pytest.approx(1 / 3)


OTHERS = {"fixed": lambda: fake.FakeQuantize(8, -1.0, 2.0), "learned": lambda: qat.LearnedActivations(8, -1.0, 2.0),
          "averaged": lambda: qat.AveragedActivations(8, -1.0, 2.0),
          "weights": lambda: qat.WeightQuantizer(torch.ones(6, 5), 4, None, learned=False),
          "weights, learned": lambda: qat.WeightQuantizer(torch.ones(6, 5), 8, 0, learned=True),
          "weights, learned, one": lambda: qat.WeightQuantizer(torch.ones(6, 5), 4, None, learned=False)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("which", OTHERS)
def test_a_state_of_other_bits_is_refused(which, strict, tmp_path):
    model, other = nn.Sequential(quantizers()[which]), nn.Sequential(OTHERS[which]())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    state, before = load_file(tmp_path / "model.safetensors"), copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="^the state of 0 was saved with .*(bits=4|axis=0|learned=True).*, and this .* has "):
        other.load_state_dict(state, strict)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())                  # nothing was loaded
    same = nn.Sequential(quantizers()[which])
    for tensor in [*same.parameters(), *(b for b in same.buffers() if b.is_floating_point())]:
        tensor.data *= 3
    same.load_state_dict(state, strict)
    assert equal(same, model) and equal(pickle.loads(pickle.dumps(model)), model)
    tensors_alone = {name: t for name, t in state.items() if "_extra_state" not in name}
    same.load_state_dict(tensors_alone, strict)
    if "0.scale" in state:
        with pytest.raises(ValueError, match="^the state of 0 holds scale as torch.float16, and it must be torch.float32"):
            same.load_state_dict({**state, "0.scale": state["0.scale"].half()}, strict)


def test_bits_may_be_numpy_s():
    module = fake.FakeQuantize(np.int64(4), -1.0, 2.0)
    module.load_state_dict(fake.FakeQuantize(4, -1.0, 2.0).state_dict())
    fake.FakeQuantize(4, -1.0, 2.0).load_state_dict(module.state_dict())


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("how", [dict(learned=True), dict(learned=True, axis=None), dict(learned=False, moving=True)])
def test_a_network_with_quantizers_trains_in_half_precision(how, half):
    x = images(64)[0]
    y = (x[:, 0, :14].mean((1, 2)) > x[:, 0, 14:].mean((1, 2))).long()                                  # which half is brighter
    start = qat.prepare(small_cnn(), x, weight_bits=4, activation_bits=8, **how).train()
    copies = half_copies(start, half)
    kept = {name for name, t in copies.items() if t.dtype == torch.float32}
    assert kept == {name for name in copies if ".bn." in name and "num" not in name or name.endswith((".scale", ".range"))}
    value, gradients = half_gradients(copy.deepcopy(start), x, y, half=half, scale=256.0)
    exact = copy.deepcopy(start)
    cross_entropy(exact(x), y).backward()
    pairs = [(gradients[name].float() / 256, p.grad) for name, p in exact.named_parameters() if p.grad is not None]
    ours, theirs = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    assert (ours - theirs).norm() < 0.1 * theirs.norm() and {g.dtype for n, g in gradients.items() if n in kept} == {torch.float32}
    fixed = dict(epochs=6, max_lr=0.02, half=half, batch_size=16, weight_decay=0.0)
    for trained in (train_autocast, train):
        ours = trained(copy.deepcopy(start), x, y, **fixed)
        assert np.mean(ours.losses[-4:]) < 0.8 * np.mean(ours.losses[:4]) and {t.dtype for t in ours.model.parameters()} == {torch.float32}
    scales = {name: t for name, t in start.state_dict().items() if name.endswith(".scale")}
    assert not any(torch.equal(t, ours.model.state_dict()[name]) for name, t in scales.items())         # every one was trained, or follows
    whole = ours.model.eval()
    halved = copy.deepcopy(whole).to(half)
    with torch.no_grad():
        assert (halved(x.to(half)).argmax(1) == whole(x).argmax(1)).float().mean() > 0.9


# The loss scale

@settings(max_examples=25)
@given(st.lists(st.booleans(), max_size=25), st.sampled_from([1, 2, 3, 7]), st.sampled_from([2.0**-3, 1.0, 2.0**16, 2.0**126]),
       st.sampled_from([(2.0, 0.5), (4.0, 0.25), (2.0, 0.125)]))
def test_scale_follows_grad_scaler_step_by_step(overflows, interval, start, factors):
    growth, backoff = factors
    ours = LossScale(start, growth=growth, backoff=backoff, interval=interval)
    theirs = torch.amp.GradScaler("cpu", start, growth, backoff, interval)
    weight = nn.Parameter(torch.zeros(3))
    sgd = torch.optim.SGD([weight], lr=0.1)
    theirs.scale(torch.zeros(()))  # it makes its tensors at the first use
    for overflow in overflows:
        weight.grad = torch.tensor([0.0, float("inf") if overflow else 1.0, 0.0])
        theirs.step(sgd)
        theirs.update()
        ours = ours.after(overflow)
        assert ours.scale == theirs.get_scale() and ours.good_steps == theirs._growth_tracker.item()


def test_static_scale_stays():
    scale = LossScale(1024.0, dynamic=False, interval=1)
    assert scale.after(True) == scale.after(False) == scale


@pytest.mark.parametrize("arguments, message", [
    ({"scale": 0}, "scale is 0, and must be a finite number above 0"), ({"scale": -2.0}, "scale is -2.0"),
    ({"scale": float("nan")}, "scale is nan"), ({"scale": float("inf")}, "scale is inf"), ({"growth": 1.0}, "growth is 1.0"),
    ({"backoff": 1.0}, "backoff is 1.0"), ({"backoff": 0.0}, "backoff is 0.0"), ({"interval": 0}, "interval is 0")])
def test_a_scale_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossScale(**arguments)


# Gradients

def autocast_gradients(model, x, y, half, scale):
    with torch.autocast("cpu", half):
        logits = model(x)
    value = cross_entropy(logits.float(), y)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return value, dict(zip(names, torch.autograd.grad(value * scale, [model.get_parameter(n) for n in names])))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("build", [lenet_300_100, lenet_5])
def test_gradients_are_those_of_autocast_bit_for_bit(build, half):
    torch.manual_seed(0)
    model, (x, y) = build(), images()
    value, ours = half_gradients(model, x, y, half=half, scale=64.0)
    expected, theirs = autocast_gradients(model, x, y, half, 64.0)
    assert torch.equal(value, expected) and ours.keys() == theirs.keys()
    for name, g in ours.items():
        assert g.dtype == half and torch.equal(g.float(), theirs[name])


@pytest.mark.parametrize("half", HALVES)
def test_batch_norm_stays_float32_and_agrees_with_autocast(half):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    theirs, (x, y) = copy.deepcopy(ours), images()
    _, gradients = half_gradients(ours, x, y, half=half)
    expected = autocast_gradients(theirs, x, y, half, 1.0)[1]
    assert [str(g.dtype)[6:] for g in gradients.values()] == [str(half)[6:]] * 2 + ["float32"] * 2 + [str(half)[6:]] * 2
    for name, g in gradients.items():
        assert torch.equal(g.float(), expected[name])
    assert ours[1].running_mean.dtype == torch.float32 and ours[1].running_mean.abs().sum() > 0
    assert torch.equal(ours[1].running_mean, theirs[1].running_mean) and ours[1].num_batches_tracked == 1


def test_one_step_by_hand_in_numpy():
    """Linear layer, softmax, cross-entropy, plain SGD. float16 products are exact sums, rounded once; no sum here needs more."""
    x = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    w = np.array([[0.1, 0.2], [-0.3, 0.4]], np.float32)                         # (classes, features)
    y, scale, lr = np.array([0, 1]), 512.0, 0.5
    x16, w16 = x.astype(np.float16), w.astype(np.float16)
    y16 = (x16.astype(np.float64) @ w16.T.astype(np.float64)).astype(np.float16)
    logits = y16.astype(np.float32)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    value = -np.log(p[[0, 1], y]).mean()
    at_logits = (scale * (p - np.eye(2, dtype=np.float32)[y]) / 2).astype(np.float16)
    g16 = (at_logits.T.astype(np.float64) @ x16.astype(np.float64)).astype(np.float16)
    expected = w - np.float32(lr) * (g16.astype(np.float32) / np.float32(scale))

    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.from_numpy(w.copy())
    loss, gradients = half_gradients(model, torch.from_numpy(x), torch.from_numpy(y), scale=scale)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert gradients["weight"].numpy().dtype == np.float16
    np.testing.assert_array_max_ulp(gradients["weight"].numpy(), g16, 1)        # the logits' softmax may differ in float32's last bit
    update(model, torch.optim.SGD(model.parameters(), lr), gradients, scale=scale)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=0, atol=lr * 2**-11)


def test_products_are_summed_in_float32():
    """4,096 ones: a sum in float16 would stop at 2,048."""
    model = nn.Linear(4096, 1, bias=False)
    model.weight.data.fill_(1.0)
    seen = []
    half_gradients(model, torch.ones(1, 4096), torch.zeros(1), loss=lambda logits, y: seen.append(logits.item()) or logits.sum())
    assert seen == [4096.0]


@pytest.mark.parametrize("half", HALVES)
def test_half_products_are_exact_sums_rounded_once(half):
    """Forward and backward: no more than one place off, and that on few, as sums in float32 are."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.Linear(200, 50, bias=False))
    x, seen = torch.randn(64, 300, generator=generator), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda layer, args, output, name=name: seen.update({name: output}))
    up = torch.randn(64, 50, generator=generator).to(half)
    _, g = half_gradients(model, x, None, half=half, loss=lambda logits, y: (logits * up.float()).sum())
    x16, w0, w1 = x.to(half).double(), *(layer.weight.detach().to(half).double() for layer in model)
    hidden = seen["0"].detach().double()
    back = (up.double() @ w1).to(half).double()             # rounded once on its way back
    for got, exact in ((seen["0"], x16 @ w0.T), (seen["1"], hidden @ w1.T), (g["1.weight"], up.double().T @ hidden),
                       (g["0.weight"], back.T @ x16)):
        got, exact = got.detach(), exact.detach()
        assert got.dtype == half and (got != exact.to(half)).float().mean() < 0.02
        torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(half).eps, atol=1e-4 * float(exact.abs().max()))


def test_tiny_gradients_underflow_without_a_scale_and_survive_with_one():
    model, (x, y) = perceptron(), data()
    def tiny(logits, labels):
        return 2.0**-30 * cross_entropy(logits, labels)
    lost = half_gradients(model, x, y, loss=tiny)[1]
    assert all(g.count_nonzero() == 0 for g in lost.values())
    kept = half_gradients(model, x, y, loss=tiny, scale=2.0**30)[1]
    plain = half_gradients(model, x, y)[1]
    assert all(torch.equal(kept[name], plain[name]) for name in plain)          # powers of two cost nothing
    brain = half_gradients(model, x, y, loss=tiny, half=torch.bfloat16)[1]      # and bfloat16 needs none
    for name, g in half_gradients(model, x, y, half=torch.bfloat16)[1].items():
        assert torch.equal(brain[name].float() * 2**30, g.float())


@given(st.lists(st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-12), min_size=1), st.integers(-20, 30))
def test_shares_are_those_of_numpy_float16(values, log_scale):
    x = np.array(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)                         # NumPy tells of each overflow
        h = np.abs((x[x != 0] * 2.0**log_scale).astype(np.float16))
    found = shares(torch.tensor(values, dtype=torch.float64), scale=2.0**log_scale)
    if len(h):
        expected = (h == 0).mean(), ((h > 0) & (h < 2.0**-14)).mean(), ((h >= 2.0**-14) & (h <= 65504)).mean(), np.isinf(h).mean()
        assert (found.underflow, found.subnormal, found.normal, found.overflow) == pytest.approx(expected)
    else:
        assert found.normal == 1


def test_shares_at_the_borders_of_float16():
    edges = torch.tensor([2.0**-25, 2.0**-25 * 1.001, 2.0**-14, 2.0**-14 * 0.99, 65504.0, 65519.0, 65520.0, -1e9], dtype=torch.float64)
    assert [shares(e).underflow for e in edges[:2]] == [1, 0]
    assert [shares(e).normal for e in edges] == [0, 0, 1, 0, 1, 1, 0, 0]
    assert [shares(e).overflow for e in edges[-2:]] == [1, 1]
    assert shares(torch.tensor([1e-30, 1e30]), torch.bfloat16).normal == 1


# Updates

def test_updates_vanish_without_master_weights_as_numpy_says():
    model, w = nn.Linear(1, 1, bias=False), np.float16(1.0)
    model.weight.data.fill_(1.0)
    sgd, g = torch.optim.SGD(model.parameters(), 1.0), {"weight": torch.full((1, 1), 2.0**-12).half()}
    for _ in range(100):
        update(model, sgd, g, master=False)
        w = np.float16(w - np.float16(2.0**-12))
    assert model.weight.item() == float(w) == 1.0
    for _ in range(100):
        update(model, sgd, g, master=True)
    assert model.weight.item() == 1 - 100 * 2.0**-12


@given(st.floats(-100, 100), st.floats(-1, 1), st.sampled_from(HALVES))
def test_without_master_a_weight_is_a_half_and_the_nearest_one(w, g, half):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data = torch.full((1, 1), w).to(half).float()
    exact = model.weight.double() - torch.tensor(g).to(half).double()
    update(model, torch.optim.SGD(model.parameters(), 1.0), {"weight": torch.full((1, 1), g).to(half)}, half=half, master=False)
    assert model.weight.item() == exact.float().to(half).item()


def test_a_skipped_step_changes_nothing_not_even_the_momentum():
    model, (x, y) = perceptron(), data(8)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    gradients = half_gradients(model, x, y)[1]
    update(model, sgd, gradients)
    before = copy.deepcopy(model), copy.deepcopy(sgd.state_dict())
    update(model, sgd, {name: g * float("nan") for name, g in gradients.items()}, skip=True)
    assert equal(model, before[0])
    for key, state in before[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], sgd.state_dict()["state"][key]["momentum_buffer"])


# The training

@pytest.mark.parametrize("half", HALVES)
def test_training_is_that_of_autocast_and_grad_scaler_bit_for_bit(half):
    ours, theirs, (x, y) = perceptron(), perceptron(), data()
    scaler = LossScale(2.0**24, interval=5)
    by_hand = train(ours, x, y, 6, 0.1, half=half, scaler=scaler, batch_size=32)
    by_torch = train_autocast(theirs, x, y, 6, 0.1, half=half, scaler=scaler, batch_size=32)
    assert by_hand.scales == by_torch.scales and by_hand.losses == by_torch.losses and by_hand.skipped == by_torch.skipped
    assert equal(ours, theirs) and len(set(by_hand.scales)) > 2
    if half == torch.float16:
        assert by_hand.skipped[0] == 0 and len(by_hand.skipped) > 1


def test_lenet_trains_as_under_autocast():
    torch.manual_seed(0)
    ours, (x, y) = lenet_300_100(), images(64)
    theirs = copy.deepcopy(ours)
    assert train(ours, x, y, 1, 0.05, batch_size=16).losses == train_autocast(theirs, x, y, 1, 0.05, batch_size=16).losses
    assert equal(ours, theirs) and not equal(ours, lenet_300_100())


def test_autocast_without_a_scaler_is_training_without_one():
    ours, theirs, (x, y) = perceptron(), perceptron(), data()
    assert train(ours, x, y, 2, 0.1, scaler=None).losses == train_autocast(theirs, x, y, 2, 0.1, scaler=None).losses
    assert equal(ours, theirs)


def test_in_float32_the_loop_is_that_of_fit(monkeypatch):
    monkeypatch.setattr("qlab.nets.half.HALVES", (torch.float32,))
    ours, theirs, (x, y) = perceptron(), perceptron(), data()
    train(ours, x, y, 3, 0.1, half=torch.float32, seed=5, batch_size=50)
    training.fit(theirs, x, y, 3, 0.1, seed=5, batch_size=50)
    assert equal(ours, theirs)


def test_a_seed_repeats_itself_and_another_does_not():
    x, y = data()
    a, b, c = perceptron(), perceptron(), perceptron()
    runs = [train(a, x, y, 2, 0.1, batch_size=32), train(b, x, y, 2, 0.1, batch_size=32), train(c, x, y, 2, 0.1, batch_size=32, seed=1)]
    assert equal(a, b) and runs[0].losses == runs[1].losses and not equal(a, c)
    assert all(p.dtype == torch.float32 and p.grad is None for p in a.parameters()) and not a.training
    assert len(runs[0].losses) == len(runs[0].scales) == 12


def test_master_weights_hold_more_than_half_and_without_them_no_more():
    x, y = data()
    with_master, without = perceptron(), perceptron()
    train(with_master, x, y, 1, 0.1)
    train(without, x, y, 1, 0.1, master=False)
    assert all(torch.equal(p, p.half().float()) for p in without.parameters())
    assert not any(torch.equal(p, p.half().float()) for p in with_master.parameters())


def test_too_large_a_static_scale_learns_nothing_and_a_dynamic_one_finds_its_own():
    x, y = data()
    model, start = perceptron(), perceptron()
    run = train(model, x, y, 2, 0.1, batch_size=32, scaler=LossScale(2.0**40, dynamic=False))
    assert run.skipped == list(range(12)) and equal(model, start)
    run = train(model, x, y, 10, 0.1, batch_size=32, scaler=LossScale(2.0**40))
    assert run.skipped[0] == 0 and run.scales[len(run.skipped)] < 2.0**30 and run.losses[-1] < run.losses[0]
    assert all(after == before / 2 for before, after, s in zip(run.scales, run.scales[1:], range(99)) if s in run.skipped)


def test_without_a_scaler_an_overflow_reaches_the_weights():
    model, (x, y) = perceptron(), data()
    train(model, 1e5 * x, y, 1, 0.1, scaler=None)
    assert not all(p.isfinite().all() for p in model.parameters())


def test_data_that_no_scale_can_mend():
    model, (x, y) = perceptron(), data(8)
    x[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite even at a loss scale of"):
        train(model, x, y, 100, 0.1)


@pytest.mark.parametrize("half", HALVES)
def test_tied_unused_and_frozen_parameters(half):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.never, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(3, 3), nn.Linear(20, 4)
            self.b.weight = self.a.weight
            self.head.bias.requires_grad_(False)
            self.register_buffer("shift", torch.full((20,), 0.5))

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(x) + self.shift))))

    torch.manual_seed(0)
    ours, (x, y) = Net(), data()
    gradients = half_gradients(ours, x, y, half=half)[1]
    assert gradients["never.weight"] is None and "head.bias" not in gradients and "b.weight" not in gradients
    theirs = copy.deepcopy(ours)
    theirs.shift = theirs.shift.to(half)
    names = ["a.weight", "head.weight"]
    with torch.autocast("cpu", half):
        logits = theirs(x)
    expected = torch.autograd.grad(cross_entropy(logits.float(), y), [theirs.get_parameter(n) for n in names])
    for name, g in zip(names, expected):  # a tied weight has the sum of two gradients: here rounded to half, there added in float32
        eps = torch.finfo(half).eps
        torch.testing.assert_close(gradients[name].float(), g, rtol=8 * eps, atol=eps * float(g.abs().max()))
    before = copy.deepcopy(ours)
    train(ours, x, y, 1, 0.1, half=half)
    assert torch.equal(ours.never.weight, before.never.weight) and torch.equal(ours.head.bias, before.head.bias)
    assert not torch.equal(ours.a.weight, before.a.weight) and ours.b.weight is ours.a.weight


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", HALVES)
def test_on_cuda(half):
    model, (x, y) = perceptron().cuda(), data()
    run = train(model, x.cuda(), y.cuda(), 20, 0.1, half=half, batch_size=32)
    assert run.losses[-1] < run.losses[0] and run.model.get_parameter("0.weight").is_cuda


@pytest.mark.parametrize("run", [train, train_autocast])
def test_errors_at_the_door(run):
    x, y = data(8)
    for half in (torch.float32, torch.float64, torch.int8):
        with pytest.raises(ValueError, match=f"half is {half}, and must be torch.float16 or torch.bfloat16"):
            run(perceptron(), x, y, 1, 0.1, half=half)
    with pytest.raises(TypeError, match="model is a function, and must be a torch.nn.Module"):
        run(lambda x: x, x, y, 1, 0.1)
    with pytest.raises(ValueError, match="0.weight is torch.float16, and must be torch.float32"):
        run(perceptron().half(), x, y, 1, 0.1)
    integer = nn.Linear(20, 4)
    integer.weight = nn.Parameter(torch.ones(4, 20, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="weight is torch.int8, and must be torch.float32"):
        run(integer, x, y, 1, 0.1)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        run(perceptron().requires_grad_(False), x, y, 1, 0.1)
    with pytest.raises(TypeError, match="scaler is a float, and must be a LossScale or None"):
        run(perceptron(), x, y, 1, 0.1, scaler=1024.0)
    with pytest.raises(ValueError, match="8 images and 7 labels"):
        run(perceptron(), x, y[:7], 1, 0.1)
    with pytest.raises(ValueError, match="max_lr is -1"):
        run(perceptron(), x, y, 1, -1)
    model = perceptron()
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        run(model, x[:0], y[:0], 1, 0.1)
    assert equal(model, perceptron())
    for epochs, batch_size in ((0, 8), (1, 0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            run(perceptron(), x, y, epochs, 0.1, batch_size=batch_size)


def test_errors_of_the_parts():
    x, y = data(8)
    with pytest.raises(ValueError, match="scale is 0, and must be"):
        half_gradients(perceptron(), x, y, scale=0)
    with pytest.raises(ValueError, match="half is torch.float32"):
        half_gradients(perceptron(), x, y, half=torch.float32)
    with pytest.raises(ValueError, match="x holds NaN or infinity"):
        shares(torch.tensor([float("inf")]))
    with pytest.raises(ValueError, match="dynamic LossScale or None"):
        train_autocast(perceptron(), x, y, 1, 0.1, scaler=LossScale(8.0, dynamic=False))


# The committed record

@pytest.fixture(scope="module")
def record():
    return runs.load("mixed_precision")


def results(record, part, key):
    return {(row["arm"], row[key]): row["test"]["result"] for row in record[part]}


def test_record_float16_with_master_weights_and_scaling_is_equal_to_float32(record):
    found = results(record, "equal", "seed")
    float32 = [found["float32", seed] for seed in range(6)]
    spread = max(abs(mcnemar(a, b).difference) for a in float32 for b in float32)
    for arm in ("float16", "float16, no scaling", "bfloat16"):
        same_seed = [mcnemar(found["float32", seed], found[arm, seed]) for a, seed in found if a == arm]
        assert all(abs(pair.difference) <= spread < 0.005 for pair in same_seed) and len(same_seed) >= 3
        assert not any(pair.significant and (arm == "float16" or pair.difference < 0) for pair in same_seed)
        other, reference = ([found[a, seed].value for a, seed in found if a == name] for name in (arm, "float32"))
        assert stats.ttest_ind(other, reference, equal_var=False).pvalue > 0.05
    rows = {(row["arm"], row["seed"]): row for row in record["equal"]}
    for seed in (0, 1):
        ours, theirs = rows["float16", seed], rows["autocast", seed]
        assert all(ours[key] == theirs[key] for key in ("weights_sha256", "scales", "skipped", "losses", "steps"))
    native = mcnemar(found["float16", 0], found["float16, native", 0])
    assert abs(native.difference) <= spread and not native.significant
    assert all(r.n == 10_000 for r in found.values()) and {r["epochs"] for r in rows.values()} == {2}


def test_record_without_scaling_a_small_loss_weight_ruins_float16_and_nothing_else(record):
    found = results(record, "weight", "log_weight")
    for k in (14, 20):
        pair = mcnemar(found["float16", k], found["float16, no scaling", k])
        assert pair.significant and pair.difference < -0.005
    assert found["float16, no scaling", 20].high < 0.2
    assert not mcnemar(found["float16", 0], found["float16, no scaling", 0]).significant
    for arm in ("float16", "bfloat16"):
        assert abs(mcnemar(found["float32", 20], found[arm, 20]).difference) < 0.02
    checksums = {row["weights_sha256"] for row in record["weight"] if row["arm"] == "float32"}
    assert len(checksums) == 1                                      # the weight and the learning rate cancel exactly


def test_record_without_master_weights_small_steps_are_lost(record):
    found = results(record, "rate", "max_lr")
    for half in HALVES:
        half = str(half)[6:]
        gaps = [mcnemar(found[half, rate], found[f"{half}, no master", rate]) for rate in (0.002, 0.0005)]
        assert all(pair.significant and pair.difference < 0 for pair in gaps) and gaps[1].difference < gaps[0].difference
    for rate in (0.002, 0.0005):
        assert abs(mcnemar(found["float32", rate], found["float16", rate]).difference) < 0.005
        assert found["bfloat16, no master", rate].high < found["float16, no master", rate].low


@pytest.mark.parametrize("half", HALVES)
def test_the_experiments_fast_products_are_those_of_the_cpu(half):
    """A float32 sum in another order, then one rounding: the same half but for one place on few of them."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(*shape, generator=generator).to(half) for shape in ((64, 300), (300, 50), (50,)))
    for product in (lambda: a @ b, lambda: nn.functional.linear(a, b.T, c), lambda: torch.addmm(c, a, b)):
        native = product()
        with experiment.HalfProducts():
            fast = product()
        assert fast.dtype == half and (fast != native).float().mean() < 0.02
        torch.testing.assert_close(fast, native, rtol=torch.finfo(half).eps, atol=0.01)
    with experiment.HalfProducts():
        assert torch.equal(a.float() @ b.float(), a.float() @ b.float()) and (a.float() @ b.float()).dtype == torch.float32


def test_a_row_of_the_experiment_repeats_itself(monkeypatch):
    """One row of the experiment, on the first 256 images only: its parts fit together, and a checksum repeats itself."""
    full = experiment.data.load("train")
    monkeypatch.setattr(experiment.data, "load", lambda split: Split(*(part[:256] for part in full)))
    experiment.row.cache_clear()
    first = experiment.row("float16", 0, 1, 0.05, half="float16", scaler=LossScale(2.0**30))
    experiment.row.cache_clear()
    assert experiment.row("float16", 0, 1, 0.05, half="float16", scaler=LossScale(2.0**30)) == first
    assert first["skipped"] == [0, 1] and first["scales"] == [[0, 2.0**30], [1, 2.0**29]] and first["test"]["images"] == 256
    experiment.row.cache_clear()
    again = experiment.row("float16", 0, 1, 0.05, 20, half="float16", scaler=LossScale(2.0**30))
    plain = experiment.row("float16", 0, 1, 0.05, 0, half="float16", scaler=LossScale(2.0**10))
    assert again["weights_sha256"] == plain["weights_sha256"] != first["weights_sha256"]   # S times the weight is the same
    experiment.row.cache_clear()


# The times of a training step

LOAD = {"cores": 2, "at_start": 0.1}


@pytest.fixture
def at_once(monkeypatch):
    """No wait for a quiet machine; returns what speed was told."""
    told = []
    monkeypatch.setattr(experiment.quiet, "wait", lambda anyway: told.append(anyway) or SimpleNamespace(load=lambda: LOAD))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return told


def test_speed_writes_one_entry_a_processor_and_keeps_the_others(tmp_path, at_once):
    runs.write("mixed_precision_speed", "python", tmp_path, processors={"Another": {"rows": []}})
    experiment.speed("cpu", tmp_path, widths=(4, 8), batches=(2,), rounds=1, anyway=True)
    record = runs.raw("mixed_precision_speed", tmp_path)
    (name,) = set(record["processors"]) - {"Another"}
    entry = record["processors"][name]
    assert name == entry["environment"]["cpu"] and entry["device"] == "cpu" and record["processors"]["Another"] == {"rows": []}
    assert at_once == [True] and entry["load"] == LOAD
    assert [(row["width"], row["batch"], row["flop"]) for row in entry["rows"]] == [
        (4, 2, 2 * (4 * 784 * 4 + 6 * 4 * 14)), (8, 2, 2 * (4 * 784 * 8 + 6 * 8 * 18))]
    assert all(list(row["times"]) == ["float32", "bfloat16", "float16"] for row in entry["rows"])


def test_speed_leaves_out_what_would_take_too_long(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(experiment, "step_time", lambda w, b, dtype, device: {"ms": 1000.0 if dtype == "float16" else 1.0})
    experiment.speed("cpu", tmp_path, widths=(4,), batches=(1, 4, 5), rounds=1)
    (entry,) = runs.raw("mixed_precision_speed", tmp_path)["processors"].values()
    assert ["float16" in row["times"] for row in entry["rows"]] == [True, True, True]
    monkeypatch.setattr(experiment, "SLOW_S", 3)
    experiment.speed("cpu", tmp_path, widths=(4,), batches=(1, 4, 5), rounds=1)
    (entry,) = runs.raw("mixed_precision_speed", tmp_path)["processors"].values()
    assert ["float16" in row["times"] for row in entry["rows"]] == [True, False, False]


@pytest.mark.parametrize("dtype, products", [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_a_timed_step_trains_in_its_data_type(dtype, products):
    seen, linear = [], nn.Linear.forward

    def spy(layer, x):
        y = linear(layer, x)
        seen.append((y.dtype, layer.weight.dtype))
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", spy)
        step = experiment.perceptron_step(8, 4, dtype, "cpu")
        step()
    assert seen == [(products, torch.float32)] * 3


def test_the_speed_record_has_a_gpu_and_a_cpu_with_instructions_for_halves():
    entries = runs.raw("mixed_precision_speed")["processors"].values()
    gpu = next(entry for entry in entries if entry["device"] == "cuda")
    assert {entry["device"] for entry in entries} == {"cpu", "cuda"} and any(entry["environment"]["amx_bf16"] for entry in entries)
    small, large = gpu["rows"][0]["times"], gpu["rows"][-1]["times"]
    for half in ("float16", "bfloat16"):                                                    # a small step is launched, a large one computed
        assert small[half]["ms"] >= 0.9 * small["float32"]["ms"] and large[half]["ms"] < large["tf32"]["ms"] < large["float32"]["ms"] / 3
    assert large["float16"]["peak_mb"] < large["float32"]["peak_mb"]


@pytest.mark.parametrize("train", [mp.train, mp.train_autocast])
def test_a_network_may_call_view_and_keeps_its_order_in_memory(train):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.maps, self.last = nn.Conv2d(3, 4, 3), nn.Linear(64, 4)

        def forward(self, x):
            return self.last(self.maps(x).relu().view(x.size(0), -1))

    x, y = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    half, full = Viewed(), Viewed()
    run = train(half, x, y, 2, 0.05, half=torch.bfloat16, batch_size=20)
    training.fit(full, x, y, 2, 0.05, batch_size=20)
    assert len(run.losses) == 4 and run.skipped == [] and all(p.is_contiguous() for p in half.parameters())
    for a, b in zip(half.parameters(), full.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)
