"""Scaled channels, SmoothQuant and AWQ: torchao's observers, brute force, and functions that must stay what they are."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_gpt import gpt, tokens
from torch import nn

from qlab.llm import activations, awq, scaling, smoothquant
from qlab.llm.outliers import plant
from qlab.llm.weights import quantize, quantize_weights
from qlab.quant import linear


def loud(features: int = 64, seed: int = 0, count: int = 120) -> torch.Tensor:
    """Activations (count, features) some of whose channels are far louder than others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator) * torch.exp(1.5 * torch.randn(features, generator=generator))


def w4(w):
    return linear.quantize(w, 4, "symmetric", axis=0, group_size=16)


def w8(w):
    return linear.quantize(w, 8, "symmetric", axis=0)


# Pairs and folding

@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"heads": 2, "kv_heads": 1, "blocks": 1}])
@pytest.mark.parametrize("places", [("norm",), ("output",), ("down",), scaling.PLACES])
def test_any_factors_leave_the_function(sizes, places):
    model, text = gpt(1, **sizes), tokens()
    scaled, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    found = scaling.checked(scaled, scaling.pairs(scaled, *places))
    for pair in found:
        channels = len(scaled.get_submodule(pair.source).weight)
        scaling.fold(scaled, pair, torch.exp(2 * torch.randn(channels, generator=generator, dtype=torch.float64)))
    assert len(found) == model.config.blocks * {("norm",): 2, ("output",): 1, ("down",): 1}.get(places, 4)
    assert (scaled(text) - model(text)).abs().max() < 1e-10


def test_half_precision_is_rounded_once_and_a_wrong_pair_seen_all_the_same():
    model, text = gpt(1, torch.bfloat16, blocks=6), tokens()
    s = torch.linspace(0.5, 2, 48, dtype=torch.float64)
    pair = scaling.checked(model, scaling.pairs(model))[0]
    copied = scaling.folded(model, [pair] * 3, lambda wide, pair: s, [text])
    assert torch.equal(copied.blocks[0].attention_norm.weight, (model.blocks[0].attention_norm.weight.float() / s.float() ** 3).bfloat16())
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="computes something else"):
        scaling.folded(model, [pair._replace(readers=pair.readers[:2])], lambda wide, pair: s, [text])
    with pytest.raises(ValueError, match="beyond the largest torch.float16"):
        scaling.folded(gpt(1, torch.float16), [pair], lambda wide, pair: s * 1e-6, [text])


def test_columns_by_brute_force():
    model = gpt(2, heads=4, kv_heads=2)
    columns, width = scaling.pairs(model, "output")[0].columns, model.config.head_width
    for head in range(4):
        for j in range(width):
            assert columns[head * width + j] == (head // 2) * width + j
    x = torch.rand(48)
    for channel in range(24):
        reading = torch.tensor([x[j] for j in range(48) if columns[j] == channel])
        assert scaling.by_channel(columns, x, 24, "amax")[channel] == reading.max()
        assert scaling.by_channel(columns, x, 24, "mean")[channel] == pytest.approx(reading.mean().item())


# SmoothQuant

@given(st.floats(0, 1), st.integers(0, 2**16))
@settings(max_examples=20)
def test_factors_are_torchaos(alpha, seed):
    observers = pytest.importorskip("torchao.prototype.smoothquant.core")
    x, weight = loud(16, seed), torch.randn(8, 16, generator=torch.Generator().manual_seed(seed + 1))
    observer = observers.SmoothQuantObserver(weight, alpha)
    observer(x)
    expected = observer.calculate_qparams()[0]                                              # adds 1.2e-7 to each range
    assert torch.allclose(smoothquant.factors(x.abs().amax(0), weight.abs().amax(0), alpha).float(), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_model_is_smoothed_as_torchao_smooths_its_readers_as_one(norm):
    observers = pytest.importorskip("torchao.prototype.smoothquant.core")
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = norm(16), nn.Linear(16, 8), nn.Linear(16, 5)

        def forward(self, x):
            x = self.norm(x)
            return torch.cat([self.a(x), self.b(x).tanh()], -1)

    model, x = Two(), torch.randn(3, 20, 16)
    model.norm.weight.data = torch.randn(16).exp()
    smoothed = smoothquant.smooth(model, x, 0.3, [("norm", ("a", "b"))])
    observer = observers.SmoothQuantObserver(torch.cat([model.a.weight, model.b.weight]), 0.3)
    observer(model.norm(x).detach())
    s = observer.calculate_qparams()[0]
    assert torch.allclose(smoothed.norm.weight, model.norm.weight / s, rtol=1e-5)
    for ours, theirs in ((smoothed.a, model.a), (smoothed.b, model.b)):
        assert torch.allclose(ours.weight, theirs.weight * s, rtol=1e-5)
    assert torch.allclose(smoothed(x), model(x), atol=1e-5)


@pytest.mark.parametrize("places", [("norm",), ("output", "down")])                         # of which none changes another's columns
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_what_alpha_makes_equal(alpha, places):
    model, text = gpt(3), [tokens(3, 20), tokens(2, 32, seed=1)]
    before = copy.deepcopy(model.state_dict())
    pairs = scaling.pairs(model, *places)
    smoothed = smoothquant.smooth(model, iter(text), alpha, pairs)
    assert (smoothed(text[1]) - model(text[1])).abs().max() < 1e-10
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    high = smoothquant.input_amax(smoothed, text, {pair.readers[0] for pair in pairs})
    for pair in scaling.checked(smoothed, pairs):
        channels = len(smoothed.get_submodule(pair.source).weight)
        x = scaling.by_channel(pair.columns, high[pair.readers[0]], channels, "amax")
        w = torch.stack([smoothed.get_submodule(name).weight.abs().amax(0) for name in pair.readers]).amax(0)
        w = scaling.by_channel(pair.columns, w, channels, "amax").detach()
        assert torch.allclose({0: w, 0.5: x / w, 1: x}[alpha], torch.ones(()).double(), rtol=1e-9)


@torch.no_grad()
def test_smoothing_undoes_planted_outliers():
    model, text = gpt(4, torch.float32), tokens(8, 32)

    def error(m):
        q = quantize_weights(m, w8).model
        return float((activations.quantize(q, 8, "static", text)(text) - model(text)).square().mean())

    planted = plant(model, factor=100)
    assert error(planted) > 20 * error(model) and error(smoothquant.smooth(planted, text)) < 2 * error(model)


def test_dead_channels_keep_one():
    model, x = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(30, 8)
    model[0].weight.data[2], model[0].bias.data[2] = 0, 0
    model[1].weight.data[:, 5] = 0
    for scaled in (smoothquant.smooth(model, x, 0.5, [("0", ["1"])]), awq.scale(model, x, lambda w: linear.quantize(w, 2, "symmetric"),
                                                                              [("0", ["1"])]).model):
        assert torch.allclose(scaled(x), model(x), atol=1e-5) and torch.equal(scaled[1].weight[:, 2], model[1].weight[:, 2])
    assert smoothquant.smooth(model, x, 0.5, [("0", "1")])[0].weight[5] == model[0].weight[5]
    assert smoothquant.factors([0.0, 3.0, 0.0], [2.0, 0.0, 0.0], 1.0).tolist() == [1, 1, 1]


# AWQ

@pytest.mark.parametrize("seed", range(3))
def test_scales_are_torchaos(seed):
    core = pytest.importorskip("torchao.prototype.awq.core")
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

    # The default mapping puts the largest weight of a group halfway between two codes, where the last bit decides.
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR)

    def how(w):
        return core._QUANTIZE_CONFIG_HANDLER[type(config)](core.DummyModule(w), config).weight

    generator = torch.Generator().manual_seed(seed)
    weights, x = [torch.randn(n, 64, generator=generator) for n in (16, 8)], loud(64, seed)
    observer = core.AWQObserver(torch.cat(weights), None, config)
    observer(x, None)
    found = awq.search(weights, awq.Moments(x.abs().mean(0), x.T @ x / len(x)), how)
    assert torch.allclose(found.s.float(), observer.calculate_qparams(), rtol=1e-5) and 0 < found.exponent < 1


def test_the_errors_are_those_of_the_outputs():
    x, weight = loud(32, 1), torch.randn(8, 32)
    net = nn.Sequential(nn.Identity(), nn.Linear(32, 8, bias=False))
    net[1].weight.data = weight
    read = awq.moments(net, [x[:50].view(2, 25, 32), x[50:].view(7, 10, 32)], ["1"])["1"]
    assert torch.allclose(read.mean, x.double().abs().mean(0)) and torch.allclose(read.gram, x.T.double() @ x.double() / 120)
    found = awq.search([weight], read, w4, steps=5)
    for step in range(5):
        s = x.abs().mean(0) ** (step / 5)
        s = s / (s.max() * s.min()).sqrt()
        out = (x / s) @ w4(weight * s).dequantize().T
        assert found.errors[step] == pytest.approx(((out - x @ weight.T) ** 2).sum().item() / 120, rel=2e-3)
    assert found.errors[round(found.exponent * 5)] == min(found.errors)
    assert found.s.max() * found.s.min() == pytest.approx(1)


def test_a_shared_head_is_scaled_as_if_it_were_copied():
    """Values that two heads read, against a model in which each head has a copy of its own."""
    model = gpt(5, heads=4, kv_heads=2)
    own = gpt(5, heads=4, kv_heads=4)
    own.load_state_dict({name: w.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1)
                         if name.split(".")[-2] in ("key", "value") else w for name, w in model.state_dict().items()})
    assert (own(tokens()) - model(tokens())).abs().max() < 1e-12
    scaled = awq.scale(model, tokens(), w4, scaling.pairs(model, "output"))
    s = scaled.found["blocks.0.attention.value"].s
    x = awq.moments(own, tokens(), ["blocks.0.attention.output"])["blocks.0.attention.output"]
    both = x.mean.unflatten(0, (2, 2, -1)).mean(1).flatten() ** scaled.found["blocks.0.attention.value"].exponent
    assert torch.allclose(s, both / (both.max() * both.min()).sqrt())
    wide = s.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten()
    assert torch.allclose(scaled.model.blocks[0].attention.output.weight, own.blocks[0].attention.output.weight * wide)


@torch.no_grad()
def test_a_scaled_model_computes_the_same_and_loses_less_where_there_are_outliers():
    model, text = gpt(6, torch.float32), tokens(8, 32)
    before = copy.deepcopy(model.state_dict())
    planted = plant(model, factor=30)
    assert torch.allclose(awq.scale(gpt(6), text, w4).model(text), gpt(6)(text), atol=1e-10)

    def error(q):
        return float((q.model(text) - model(text)).square().mean())

    plain = error(quantize(planted, 4, 16))
    protected, clipped = (awq.quantize(planted, text, 4, 16, clipped=clipped) for clipped in (False, True))
    assert error(clipped) < error(protected) < 0.5 * plain
    assert protected.nbytes == quantize(planted, 4, 16).nbytes == clipped.nbytes
    assert torch.equal(protected.model.blocks[0].mlp.down.weight, protected.tensors["blocks.0.mlp.down"].dequantize())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_calibration_does_not_reach_is_rounded_to_nearest():
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.used, self.unused = nn.RMSNorm(16), nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x):
            return self.used(self.norm(x))

    model, x = Expert(), loud(16)
    q = awq.quantize(model, x, 3, 8, clipped=True, pairs=[("norm", ["used"])])
    assert q.tensors["unused"].equal(quantize(model, 3, 8).tensors["unused"])
    scaled = awq.scale(model, x, lambda w: linear.quantize(w, 3, "symmetric", axis=0, group_size=8), [("norm", ["used"])]).model
    assert q.tensors["used"].equal(awq.clip(scaled.used.weight, awq.moments(scaled, x, ["used"])["used"].gram, 3, 8))


@given(arrays(np.float64, (3, 8), elements=st.floats(-4, 4, width=32)), st.sampled_from([None, 4]), st.sampled_from(linear.SCHEMES),
       st.integers(2, 4))
@settings(max_examples=25)
def test_clipping_by_brute_force(weight, group_size, scheme, bits):
    x = loud(8, 2, 30).double()
    weight = torch.from_numpy(weight)
    q, size = awq.clip(weight, x.T @ x, bits, group_size, scheme, steps=5), group_size or 8
    x_hat = q.dequantize()
    for row in range(3):
        for start in range(0, 8, size):
            w, xs = weight[row, start:start + size], x[:, start:start + size]

            def error(w_hat, w=w, xs=xs):
                return float(((w_hat - w) @ xs.T).square().sum())

            tried = [error(linear.quantize(w, bits, scheme, x_min=f * w.min(), x_max=f * w.max()).dequantize())
                     for f in (1, 0.9, 0.8, 0.7, 0.6)]
            assert error(x_hat[row, start:start + size]) <= min(tried) * (1 + 1e-9) + 1e-18


# Bad input

def refused(match, call, *arguments, error=ValueError, **named):
    with pytest.raises(error, match=match) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


class Branch(nn.Module):
    """A norm read by a linear layer, and by a sum."""

    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(x)
        return self.b(torch.nn.functional.gelu(self.a(x))) + x


@pytest.mark.parametrize("method", [smoothquant.smooth, lambda model, x, pairs=None: awq.scale(model, x, w8, pairs)])
def test_bad_pairs_and_batches_are_one_sentence(method):
    torch.manual_seed(0)
    model, x = Branch(), torch.randn(20, 8) * torch.arange(1, 9)
    refused("the model is a Branch, and must be a GPT", method, model, x)
    refused("the scaled model computes something else", method, model, x, pairs=[("norm", ["a"])])
    refused("the scaled model computes something else", method, model, x, pairs=[("a", ["b"])])
    refused("c is no layer of the model", method, model, x, pairs=[("c", ["a"])])
    refused("norm is no linear layer of the model", method, model, x, pairs=[("a", ["norm"])])
    refused("norm has no readers", method, model, x, pairs=[("norm", [])])
    refused("there are no pairs", method, model, x, pairs=[])
    refused("1 reads 3 channels and 0 makes 4", method, nn.Sequential(nn.Linear(8, 4), nn.Linear(3, 2)), x, pairs=[("0", ["1"])])
    refused("0 is a LayerNorm without a gain", method, nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2)), x,
            pairs=[("0", ["1"])])
    refused("has no linear layers", method, nn.Sequential(nn.LayerNorm(8)), x, pairs=[("0", ["0"])])
    refused("batches holds no tokens", method, gpt(), [])
    refused("batches holds no tokens", method, gpt(), torch.zeros(0, 5, dtype=torch.int64))
    refused("batches is a str", method, gpt(), "text", error=TypeError)
    refused("a reads NaN or infinity", method, model, x.log(), pairs=[("norm", ["a"])])
    refused("tokens go from 0 to 99", method, gpt(), torch.tensor([[0, 99]]))
    refused("take that off first", method, activations.quantize(gpt(), 8), tokens())


def test_bad_numbers_are_one_sentence():
    for alpha in (-0.1, 1.01, float("nan"), True, "0.5"):
        refused("alpha is .*, and must be from 0 to 1", smoothquant.smooth, gpt(), tokens(), alpha)
    refused("x_amax has shape", smoothquant.factors, [1.0], [1.0, 2.0])
    refused("w_amax holds NaN", smoothquant.factors, [1.0], [float("nan")])
    refused("x_amax holds NaN, infinity or a negative", smoothquant.factors, [-1.0], [1.0])
    refused("'mlp' is no place of a block, which has norm, output, down", scaling.pairs, gpt(), "mlp")
    refused("steps is 0, and must be a whole number of at least 1", awq.scale, gpt(), tokens(), w4, steps=0)
    refused("group_size is 5, and must divide", awq.quantize, gpt(), tokens(), 4, 5)
    refused("bits is 99", awq.quantize, gpt(), tokens(), 99)
    refused("weight has shape", awq.clip, torch.ones(2, 4), torch.ones(3, 3))
    refused("gram is a NoneType", awq.clip, torch.ones(2, 4), None, error=TypeError)
    assert [awq.clip(torch.ones(size), torch.ones(size[1], size[1])).codes.shape for size in ((0, 4), (2, 0))] == [(0, 4), (2, 0)]
    refused("how is a str, and must be a function", awq.scale, gpt(), tokens(), "nf4", error=TypeError)
    for pairs in (5, [5], [("norm",)], [(1, 2)]):
        refused("pairs (is|holds) .*, and must (be a list of|hold) .source, .readers..", smoothquant.smooth, gpt(), tokens(), 0.5, pairs,
                error=TypeError)
    refused("columns holds torch.float32", smoothquant.smooth, gpt(), tokens(), 0.5,
            [("blocks.0.mlp.up", ["blocks.0.mlp.down"], torch.zeros(96))], error=TypeError)
    refused("embedding.weight has no values", smoothquant.smooth, gpt().to("meta"), tokens())
    refused("steps is 0", awq.clip, torch.ones(2, 4), torch.eye(4), steps=0)
    refused("group_size is 3, and must divide", awq.clip, torch.ones(2, 4), torch.eye(4), 4, 3)
    huge = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).half()
    pair = scaling.checked(huge, [("0", ["1"])])[0]
    refused("beyond the largest torch.float16", scaling.fold, huge, pair, torch.full((4,), 1e-7, dtype=torch.float64))
    refused("model is a str, and must be a torch.nn.Module", awq.quantize, "gpt", tokens(), error=TypeError)
