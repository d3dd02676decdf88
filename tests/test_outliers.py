"""Outliers, planted and measured: the function against the model's own, the numbers against SciPy's and loops."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from small_gpt import gpt, tokens
from torch import nn

from qlab.llm import activations, outliers

NORMS = [f"blocks.{i}.{name}_norm.weight" for i in (0, 1) for name in ("attention", "mlp")]


@torch.no_grad()
@pytest.mark.parametrize("factor, channels", [(32, 2), (2**-7, 1), (30, 2), (0.01, 48), (1e6, 5)])
def test_a_planted_model_computes_the_same(factor, channels):
    model, text = gpt(1, torch.float32), tokens()
    before = copy.deepcopy(model.state_dict())
    planted = outliers.plant(model, channels, factor, seed=3)
    power_of_two = np.frexp(factor)[0] == 0.5
    assert torch.equal(planted(text), model(text)) if power_of_two else torch.allclose(planted(text), model(text), rtol=1e-3, atol=1e-3)
    wide = outliers.plant(gpt(1), channels, factor, seed=3)
    assert torch.allclose(wide(text), gpt(1)(text), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ratios = [(planted.state_dict()[name] / before[name]) for name in NORMS]
    assert all(torch.equal(ratio, ratios[0]) or torch.allclose(ratio, ratios[0]) for ratio in ratios)       # the same channels everywhere
    assert int((ratios[0] - factor).abs().lt(1e-4 * factor).sum()) == channels
    assert int((ratios[0] - 1).abs().lt(1e-6).sum()) == 48 - channels
    for name in ("norm.weight", "embedding.weight", "blocks.0.attention.output.weight", "blocks.1.mlp.down.weight"):
        assert torch.equal(planted.state_dict()[name], before[name])


def test_seeds_choose_channels():
    gains = [outliers.plant(gpt(), seed=seed).blocks[0].mlp_norm.weight for seed in (0, 0, 1)]
    assert torch.equal(gains[0], gains[1]) and not torch.equal(gains[0], gains[2])


def test_planted_channels_are_found():
    model, text = gpt(2), tokens(6, 24)
    planted = outliers.plant(model, 1, 50)
    where = int((planted.blocks[0].attention_norm.weight / model.blocks[0].attention_norm.weight).argmax())
    found, before = ({entry.layers[0]: entry for entry in outliers.measure(m, text)} for m in (planted, model))
    assert [entry.layers for entry in outliers.measure(planted, text)][:4] == [
        ("blocks.0.attention.query", "blocks.0.attention.key", "blocks.0.attention.value"), ("blocks.0.attention.output",),
        ("blocks.0.mlp.gate", "blocks.0.mlp.up"), ("blocks.0.mlp.down",)]
    for name in ("blocks.0.attention.query", "blocks.1.mlp.gate"):
        assert found[name].channel == where and found[name].ratio > 10 and found[name].kurtosis > 3 * before[name].kurtosis
        assert found[name].amax[where] == pytest.approx(50 * before[name].amax[where].item())
    assert found["blocks.1.mlp.down"].ratio == pytest.approx(before["blocks.1.mlp.down"].ratio)


def test_measures_are_those_of_loops_and_of_scipy():
    x = [torch.distributions.StudentT(3.0).sample((n, length, 5)) for n, length in ((3, 7), (2, 9))]
    x[1][1, 8, 2] = -77
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    first, second = outliers.measure(net, x)
    everything = torch.cat([part.reshape(-1, 5) for part in x])
    assert first.kurtosis == pytest.approx(stats.kurtosis(everything.numpy(), axis=None, fisher=False), rel=1e-4)
    assert second.kurtosis == pytest.approx(stats.kurtosis(net[0](everything).detach().numpy(), axis=None, fisher=False), rel=1e-4)
    assert torch.equal(first.amax, everything.abs().amax(0))
    assert first.ratio == pytest.approx(77 / np.sort(first.amax.numpy())[2]) and (first.channel, first.position) == (2, 8)
    for place in range(9):
        assert first.positions[place] == max(part[:, place].abs().max() for part in x if part.shape[1] > place)
    flat = outliers.measure(net, everything)[0]
    assert flat.position is None and torch.equal(flat.amax, first.amax) and flat.kurtosis == pytest.approx(first.kurtosis)
    dead = outliers.measure(net, torch.zeros(3, 5))[0]
    assert np.isnan(dead.kurtosis) and np.isnan(dead.ratio)
    assert np.isinf(outliers.measure(net, torch.eye(5)[:1])[0].ratio)


def test_sinks_by_loops():
    model, text = gpt(3), tokens(2, 9)
    config, seen = model.config, {}
    activations.watch(model, text, lambda name, x: seen.__setitem__(name, x), [f"blocks.{i}.attention.query" for i in (0, 1)])
    for block in (0, 1):
        attention, x = model.blocks[block].attention, seen[f"blocks.{block}.attention.query"].numpy()
        q, k = (x @ layer.weight.detach().numpy().T for layer in (attention.query, attention.key))
        w = config.head_width
        slow = config.rope_base ** (-np.arange(0, w, 2) / w)
        for head in range(config.heads):
            shares = []
            for row in range(2):
                query, key = ((pairs[:, 0::2] + 1j * pairs[:, 1::2]) * np.exp(1j * np.outer(np.arange(9), slow))
                              for pairs in (q[row, :, head * w:(head + 1) * w], k[row, :, head // 2 * w:(head // 2 + 1) * w]))
                for place in range(1, 9):
                    logits = (query[place] @ key[:place + 1].conj().T).real / np.sqrt(w)
                    e = np.exp(logits - logits.max())
                    shares.append(e[0] / e.sum())
            assert outliers.sinks(model, text)[block, head] == pytest.approx(np.mean(shares), rel=1e-5)     # turns are float32
    assert torch.allclose(outliers.sinks(model, [text[:1], text[1:]]), outliers.sinks(model, text))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_that_looks_nowhere_has_no_sink():
    model = gpt(4)
    for block in model.blocks:
        block.attention.query.weight.data.zero_()
    assert torch.allclose(outliers.sinks(model, tokens(2, 9)), torch.tensor(np.mean([1 / (i + 1) for i in range(1, 9)])).expand(2, 4))


def test_bad_input_is_one_sentence():
    def refused(match, call, *arguments, error=ValueError):
        with pytest.raises(error, match=match) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")

    refused("the model is a Linear, and must be a GPT", outliers.plant, nn.Linear(4, 4))
    for channels in (0, 49, 1.5, True):
        refused("channels is .*, and must be a whole number from 1 to the model's width, 48", outliers.plant, gpt(), channels)
    for factor in (0, -2, float("nan"), float("inf"), "30"):
        refused("factor is .*, and must be above 0 and finite", outliers.plant, gpt(), 2, factor)
    refused("beyond the largest torch.float16", outliers.plant, gpt(0, torch.float16), 2, 1e6)
    refused("take that off first", outliers.plant, activations.quantize(gpt(), 8))
    refused("has no linear layers", outliers.measure, nn.Sequential(nn.ReLU()), torch.ones(2, 2))
    refused("batches holds no tokens", outliers.measure, gpt(), [])
    refused("the layer reads NaN or infinity", outliers.measure, nn.Linear(2, 2), torch.tensor([[1.0, float("nan")]]))
    refused("a text is 1 token long, and must have at least 2", outliers.sinks, gpt(), tokens(3, 1))
    refused("the model is a Linear, and must be a GPT", outliers.sinks, nn.Linear(4, 4), tokens())


@torch.no_grad()
def test_a_text_without_its_first_token_is_one_that_begins_at_the_second():
    """Positions count by their difference alone, so nothing else can tell: and what is hidden is hidden in every block."""
    model, text = gpt(1), tokens()
    assert torch.allclose(model(text, outliers.Without(0))[:, 1:], model(text[:, 1:]), atol=1e-4)
    seen = model(text, outliers.Without(5))
    assert torch.equal(seen[:, :6], model(text)[:, :6]) and not torch.allclose(seen[:, 6], model(text)[:, 6], atol=1e-3)


@torch.no_grad()
def test_a_window_is_a_text_cut_before_it_and_may_keep_some():
    """In a model of one block, where nothing comes to a token but from what it sees itself."""
    model, text = gpt(1, blocks=1), tokens(length=12)
    for end in (3, 7, 12):
        cut = model(text[:, max(0, end - 4):end])[:, -1]
        assert torch.allclose(model(text, outliers.Window(4))[:, end - 1], cut, atol=1e-4)
    for all_of_it in (outliers.Window(12), outliers.Window(1, range(12))):
        assert torch.equal(model(text, all_of_it), model(text))
    seen = [model(text, outliers.Window(11, kept)) for kept in ((), (0,), (3,))]
    assert torch.allclose(seen[1], model(text), atol=1e-4) and torch.equal(seen[0], seen[2])   # token 3 is in the window all the same
