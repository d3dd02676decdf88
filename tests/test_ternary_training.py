"""Ternary weights in training: the layer against the formula in NumPy, its gradients, what training brings back, and the packed model."""

import copy
import re

import numpy as np
import pytest
import torch
from small_gpt import gpt, tokens
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.llm import packed, ternary, training
from qlab.llm.ternary import BitLinear
from qlab.nets import ptq
from qlab.quant import ternary as quantizer


def by_hand(w, axis=None):
    """Equations 1 to 3."""
    gamma = np.abs(w).mean(axis=None if axis is None else 1, keepdims=True)
    return gamma * np.clip(np.rint(w / (gamma + 1e-12)), -1, 1)


def layers_of(model, kind=BitLinear):
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [None, 8, 3])
def test_the_layer_is_the_papers(axis, bits):
    layer, x = nn.Linear(12, 7).double(), torch.randn(3, 5, 12, dtype=torch.float64)
    x[1, 2] = 0
    made = ternary.prepare(layer, axis=axis, activation_bits=bits)
    seen = x.numpy()
    if bits is not None:
        top = 2 ** (bits - 1) - 1
        scale = np.abs(seen).max(-1, keepdims=True) / top
        seen = scale * np.rint(seen / np.where(scale > 0, scale, 1))
    wanted = seen @ by_hand(layer.weight.detach().numpy(), axis).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(made(x).detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_ternary_layer_straight_through():
    layer, x = BitLinear(torch.randn(7, 12).double(), torch.randn(7).double()), torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    beyond = layer.weight.detach().abs() > 1.5 * layer.weight.detach().abs().mean()
    assert beyond.any() and not beyond.all()                                                # where the clip is, the gradient passes, too
    with_codes = layer.encode().dequantize().requires_grad_(True)
    probe = torch.randn(5, 7, dtype=torch.float64)
    wanted = torch.autograd.grad((nn.functional.linear(x, with_codes) * probe).sum(), with_codes)[0]
    found = torch.autograd.grad((layer(x) * probe).sum(), layer.weight)[0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, probe.T @ x.detach())
    assert torch.autograd.gradcheck(layer, x[:2].detach().requires_grad_(True))             # x itself is rounded by nothing


def test_activations_pass_the_gradient_on():
    layer, x = ternary.prepare(nn.Linear(6, 3), activation_bits=8), torch.randn(4, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.encode().dequantize().sum(0).expand(4, 6))


def test_a_model_before_training_is_the_model_rounded():
    model, text = gpt(), tokens()
    trained = ternary.prepare(model)
    rounded = copy.deepcopy(model)
    for layer in layers_of(rounded, nn.Linear).values():
        layer.weight.data = torch.from_numpy(by_hand(layer.weight.detach().numpy()))
    torch.testing.assert_close(trained(text), rounded(text), rtol=1e-5, atol=1e-5)
    assert len(layers_of(trained)) == 14 and not layers_of(model) and all(p.requires_grad for p in trained.parameters())
    assert trained.state_dict().keys() == model.state_dict().keys()
    assert list(layers_of(ternary.prepare(model, targets=("up", "blocks.0.mlp.down")))) == ["blocks.0.mlp.up", "blocks.0.mlp.down",
                                                                                            "blocks.1.mlp.up"]


def test_training_brings_back_what_rounding_took():
    """A text with a rule; the float model is the control, trained for as many steps on the same runs."""
    rule = [1]
    for _ in range(600):
        rule.append((3 * rule[-1] + 5) % 31)
    text = torch.tensor(rule)
    rows = torch.stack([text[i:i + 17] for i in (0, 101, 202)])

    def loss(model):
        with torch.no_grad():
            return cross_entropy(model(rows[:, :-1])[:, 4:].flatten(0, 1), rows[:, 5:].flatten()).item()

    sizes = {"dtype": torch.float32, "blocks": 1, "context": 16, "width": 32, "hidden": 32, "vocabulary": 31}
    model = gpt(**sizes)
    for p in model.parameters():
        p.data.mul_(0.3 if p.ndim > 1 else 1)
    training.fit(model, text, 40, 1e-2, batch_size=8, warmup=5)
    float_loss = loss(model)
    trained, control = ternary.prepare(model), copy.deepcopy(model).requires_grad_(True)
    rounded = loss(trained)
    training.fit(trained, text, 40, 1e-2, batch_size=8, warmup=5, weight_decay=0.0)
    training.fit(control, text, 40, 1e-2, batch_size=8, warmup=5, weight_decay=0.0)
    assert rounded > 2 * float_loss + 0.2
    assert loss(trained) < 0.5 * rounded and loss(control) < loss(trained)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_packed_model_computes_the_same_to_the_bit(axis, bits, tmp_path):
    model, text = gpt(dtype=torch.float32), tokens()
    trained = ternary.prepare(model, axis=axis, activation_bits=bits).eval()
    q = ternary.pack(trained)
    with torch.no_grad():
        assert torch.equal(q.model(text), trained(text))
    latent = layers_of(trained)
    assert q.tensors.keys() == latent.keys()
    assert all(t.equal(quantizer.quantize(latent[name].weight, axis=axis)) and t.bits == 1.6 for name, t in q.tensors.items())
    rest = sum(p.numel() for name, p in model.named_parameters() if "norm" in name or "embedding" in name) * 4
    per_layer = sum(-(-m.weight.numel() // 5) + 4 * (1 if axis is None else len(m.weight)) for m in latent.values())
    assert q.nbytes == rest + per_layer
    if bits is None:
        q.save(tmp_path / "ternary.safetensors")
        again = ptq.load(tmp_path / "ternary.safetensors", model)
        assert torch.equal(again.model(text), q.model(text))
        assert (tmp_path / "ternary.safetensors").stat().st_size < q.nbytes + 20_000


def test_some_layers_alone_and_convolutions_beside_them():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 1, 4, 4)
    trained = ternary.prepare(net, targets=("2",), activation_bits=4)
    q = ternary.pack(trained)
    assert torch.equal(q.model(x), trained(x)) and list(q.tensors) == ["2"] and q.left["4"] and q.left["0"]
    both = ternary.prepare(trained, targets=("4",))
    assert torch.equal(ternary.pack(both).model(x), both(x))


def test_ternary_weights_multiply_as_they_are_packed():
    q = ternary.pack(ternary.prepare(gpt(dtype=torch.float32)))
    fast = packed.pack(q, backend="reference")
    torch.testing.assert_close(fast(tokens()), q.model(tokens()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ternary.prepare(gpt(), targets=("gates",)), "no linear layer is called 'gates'"),
    (lambda: ternary.prepare(nn.ReLU()), "the model, a ReLU, has no"),
    (lambda: ternary.prepare(gpt(), axis=1), "axis is 1, and must be None, one gamma for a matrix, or 0"),
    (lambda: ternary.prepare(gpt(), activation_bits=1), "bits is 1, and must be a whole number from 2 to 16"),
    (lambda: ternary.pack(gpt()), "the model, a GPT, has no BitLinear: prepare it first"),
    (lambda: ternary.pack(ternary.prepare(ternary.prepare(gpt(), ("up",), activation_bits=8), ("down",), activation_bits=4)),
     "activations have 4 and 8 bits, and must have the same"),
])
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_weights_that_are_not_finite_are_refused():
    model = gpt()
    model.blocks[1].mlp.up.weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match="the weight of blocks.1.mlp.up holds NaN or infinity"):
        ternary.prepare(model)
