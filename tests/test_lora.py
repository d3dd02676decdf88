"""QLoRA against its formula in NumPy, double quantization against ml_dtypes, and the training loop they share."""

import math
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from small_gpt import gpt, tokens
from torch import nn

from qlab.llm import lora, training
from qlab.llm.double_quantization import double, nf4
from qlab.llm.lora import LoraLinear
from qlab.llm.weights import quantize_weights
from qlab.quant import formats, kmeans, linear
from qlab.quant.normal_float import NF4


def codes(weight):
    return linear.quantize(weight, 4, "symmetric", axis=0)


def stirred(model):
    """B is no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoraLinear):
                layer.b.copy_(torch.randn(layer.b.shape, generator=generator, dtype=layer.b.dtype) / 10)
    return model


# Double quantization


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (256, 320), (1, 64)])
def test_double_quantization_is_the_papers(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q, groups = nf4(w), w.numpy().reshape(-1, 64)
    c = np.abs(groups).max(1)
    ranks = np.abs(groups[:, :, None] / c[:, None, None] - NF4.numpy()).argmin(-1)
    assert np.array_equal(q.codes.codes.numpy().reshape(-1, 64), ranks)
    mean, decoded = c.mean(dtype=np.float32), []
    for block in np.split(c - mean, range(256, len(c), 256)):
        d = np.float32(np.abs(block).max() / 448) or np.float32(1)
        decoded.append(mean + d * (block / d).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    decoded = np.concatenate(decoded)
    np.testing.assert_allclose(q.codes.scale.numpy(), decoded, rtol=1e-5)
    np.testing.assert_allclose(q.dequantize().numpy().reshape(-1, 64), NF4.numpy()[ranks] * decoded[:, None], rtol=1e-5, atol=1e-7)
    assert q.nbytes == w.numel() // 2 + len(c) + 4 * math.ceil(len(c) / 256) + 4


def test_a_weight_takes_4_127_bits():
    assert nf4(torch.randn(1024, 1024)).bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


def test_a_group_of_zeros_costs_its_neighbours_nothing():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 50
    without = nf4(w[1:]).dequantize()
    w[0] = 0
    hat = nf4(w).dequantize()
    assert hat[0].eq(0).all() and torch.allclose(hat[1:], without, rtol=1e-5)
    assert nf4(torch.zeros(8, 64)).dequantize().eq(0).all()


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: double(torch.zeros(3)), TypeError, "q is a Tensor, and must be a QTensor"),
    (lambda: double(kmeans.quantize(torch.randn(64), 2)), ValueError, "the scheme of q is 'kmeans', and must be one of symmetric, "),
    (lambda: double(formats.quantize(torch.randn(64), "mxfp4")), ValueError, "the scheme of q is 'mxfp4'"),
    (lambda: double(linear.quantize(torch.randn(64), 4, "symmetric", scale_dtype=torch.float16)), ValueError,
     "the scales of q are torch.float16, and must be torch.float32"),
    (lambda: double(formats.quantize(torch.randn(0), "e2m1")), ValueError, "q holds no weights"),
    (lambda: nf4(torch.randn(10, 10)), ValueError, "nf4 has groups of 64, which do not divide the 100 elements of the tensor"),
    (lambda: nf4(torch.tensor([math.nan] * 64)), ValueError, "NaN or infinity"),
])
def test_what_cannot_be_quantized_twice_is_refused(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()


# Adapters


def test_the_layer_is_the_formula_and_begins_as_its_codes():
    layer, x = nn.Linear(64, 10).double(), torch.randn(2, 3, 64, dtype=torch.float64)
    made = lora.prepare(layer, rank=4, alpha=6, base=codes)
    w, b = codes(layer.weight.detach()).dequantize().numpy(), layer.bias.detach().numpy()
    np.testing.assert_allclose(made(x).detach().numpy(), x.numpy() @ w.T + b, rtol=1e-12)
    stirred(made)
    a, up = made.a.detach().numpy(), made.b.detach().numpy()
    assert np.abs(a).max() <= 1 / 8 and np.abs(a).std() > 0.03                              # kaiming, as nn.Linear itself begins
    wanted = x.numpy() @ w.T + 6 / 4 * (x.numpy() @ a.T) @ up.T + b
    np.testing.assert_allclose(made(x).detach().numpy(), wanted, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda a, b: torch.func.functional_call(made, {"a": a, "b": b}, (x[0, :1],)), (made.a, made.b))


def test_a_model_begins_as_its_codes_and_stays_itself():
    model, text = gpt(dtype=torch.float32), tokens()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    tuned = lora.prepare(model, rank=4)
    torch.testing.assert_close(tuned(text), quantize_weights(model, lambda w: nf4(w).codes).model(text), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert sum(isinstance(m, LoraLinear) for m in tuned.modules()) == 14 and not any(type(m) is nn.Linear for m in tuned.modules())
    assert {name.split(".")[-1] for name, p in tuned.named_parameters() if p.requires_grad} == {"a", "b"}
    again = lora.prepare(model, rank=4)
    assert all(torch.equal(p, q) for p, q in zip(tuned.parameters(), again.parameters()))
    assert not torch.equal(lora.prepare(model, rank=4, seed=1).blocks[0].mlp.up.a, tuned.blocks[0].mlp.up.a)


def test_merging_computes_the_same_and_is_taken_back_to_the_bit():
    tuned, text = stirred(lora.prepare(gpt(), rank=3, base=codes)), tokens()
    apart = tuned(text).detach()
    lora.merge(tuned)
    torch.testing.assert_close(tuned(text), apart, rtol=1e-10, atol=1e-10)
    lora.unmerge(tuned)
    assert torch.equal(tuned(text), apart)
    floats = lora.plain(tuned)
    torch.testing.assert_close(floats(text), apart, rtol=1e-10, atol=1e-10)
    assert floats.state_dict().keys() == gpt().state_dict().keys() and not any(p.requires_grad for p in floats.parameters())


def test_training_moves_a_and_b_and_nothing_else():
    model, text = gpt(dtype=torch.float32), torch.arange(400) % 7
    tuned = lora.prepare(model, rank=4, targets=("query", "value", "blocks.1.mlp.down"))
    before = {name: p.clone() for name, p in tuned.state_dict().items() if isinstance(p, torch.Tensor)}
    layers = {name: m for name, m in tuned.named_modules() if isinstance(m, LoraLinear)}
    assert list(layers) == ["blocks.0.attention.query", "blocks.0.attention.value", "blocks.1.attention.query", "blocks.1.attention.value",
                            "blocks.1.mlp.down"]
    held = {name: m.base.codes.codes.clone() for name, m in layers.items()}
    losses = training.fit(tuned, text, 12, 2e-2, batch_size=2, warmup=2)
    assert losses[-1] < 0.8 * losses[0] and not tuned.training
    for name, p in tuned.state_dict().items():
        moved = name.endswith((".a", ".b"))
        assert torch.equal(p, before[name]) != moved, name
    assert all(torch.equal(m.base.codes.codes, held[name]) for name, m in layers.items())


def test_bytes_are_those_that_training_holds():
    model = gpt(dtype=torch.float32)
    tuned = lora.prepare(model, rank=4)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad])
    tuned(tokens()).sum().backward()
    optimizer.step()
    found = lora.training_nbytes(tuned)
    assert found.optimizer == sum(t.nbytes for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg"))
    assert found.gradients == sum(p.grad.nbytes for p in tuned.parameters() if p.grad is not None) == found.trained
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert found.codes == sum(nf4(w).nbytes for w in weights)
    assert found.trained == sum(4 * 4 * sum(w.shape) for w in weights)
    assert found.floats == sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) - sum(w.nbytes for w in weights)
    assert found.total == sum(found) < 0.5 * lora.training_nbytes(model).total


def test_adapters_are_a_small_file_for_the_same_model():
    model, text = gpt(), tokens()
    tuned = stirred(lora.prepare(model, rank=2, targets=("down",)))
    file = {name: t for name, t in tuned.state_dict().items() if name.endswith((".a", ".b"))}
    other = lora.prepare(model, rank=2, targets=("down",), seed=9)
    other.load_state_dict(file, strict=False)
    assert torch.equal(other(text), tuned(text))
    with pytest.raises(ValueError, match="was saved with rank=2, and this LoraLinear has rank=3"):
        lora.prepare(model, rank=3, targets=("down",)).load_state_dict(tuned.state_dict())


def test_any_module_with_linear_layers():
    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0).eval().requires_grad_(False)
    x = torch.randn(2, 5, 64)
    tuned = stirred(lora.prepare(encoder, rank=4))
    assert isinstance(tuned.linear1, LoraLinear) and isinstance(tuned.linear2, LoraLinear)
    torch.testing.assert_close(tuned(x), lora.plain(tuned)(x))
    assert not torch.allclose(tuned(x), encoder(x), atol=1e-3)
    half = stirred(lora.prepare(nn.Sequential(nn.Linear(64, 32)).half(), rank=4))
    assert half[0].a.dtype == torch.float32 and half(x.half()).dtype == torch.float16
    assert lora.plain(half)[0].weight.dtype == torch.float16


def test_codes_go_where_the_layer_goes():
    tuned = lora.prepare(nn.Sequential(nn.Linear(64, 32)), rank=4)
    lora.merge(tuned)
    tuned.to("meta")
    layer = tuned[0]
    assert layer.base.codes.codes.is_meta and layer.base.scales.codes.is_meta and layer.merged.is_meta and layer.a.is_meta


def test_one_layer_under_two_names_stays_one():
    shared = nn.Linear(64, 64)
    tuned = lora.prepare(nn.Sequential(shared, nn.ReLU(), shared), rank=2)
    assert tuned[0] is tuned[2] and isinstance(tuned[2], LoraLinear)


def test_a_weight_that_is_made_anew_is_coded_as_what_it_comes_to():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 32)))
    tuned = lora.prepare(model, rank=2, base=codes)
    assert torch.equal(tuned[0].base.codes, codes(model[0].weight.detach()).codes)


def tied():
    net = nn.ModuleDict({"embedding": nn.Embedding(10, 64), "head": nn.Linear(64, 10, bias=False)})
    net["head"].weight = net["embedding"].weight
    return net


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: lora.prepare(gpt(), rank=25), ValueError, "rank is 25, and must be at most 24, the smaller side of blocks.0.attention.key"),
    (lambda: lora.prepare(gpt(), rank=0), ValueError, "rank is 0, and must be a whole number of at least 1"),
    (lambda: lora.prepare(gpt(), rank=2.0), ValueError, "rank is 2.0, and must be a whole number"),
    (lambda: lora.prepare(gpt(), alpha=0), ValueError, "alpha is 0, and must be a number above 0"),
    (lambda: lora.prepare(gpt(), targets=("q_proj",)), ValueError, "no linear layer is called 'q_proj': targets may name blocks.0."),
    (lambda: lora.prepare(gpt(), targets=()), ValueError, "targets is empty"),
    (lambda: lora.prepare(gpt(), targets="query"), TypeError, "targets is 'query', and must be a tuple of names: ('query',)"),
    (lambda: lora.prepare(nn.Sequential(nn.Conv2d(1, 1, 1))), ValueError, "has no linear layers, and must have one"),
    (lambda: lora.prepare(nn.ReLU()), ValueError, "the model, a ReLU, has no"),
    (lambda: lora.prepare(None), TypeError, "model is a NoneType, and must be a torch.nn.Module"),
    (lambda: lora.prepare(tied()), ValueError, "every linear layer of the model shares its weight with an embedding"),
    (lambda: lora.prepare(nn.Linear(10, 10), rank=2), ValueError, "the weight of the layer cannot be quantized: nf4 has groups of 64"),
    (lambda: lora.prepare(nn.Linear(64, 10), base=lambda w: w), TypeError, "base returns a Tensor for the layer, and must return"),
    (lambda: lora.merge(gpt()), ValueError, "the model, a GPT, has no LoraLinear: prepare it first"),
    (lambda: lora.unmerge(gpt()), ValueError, "has no LoraLinear"),
    (lambda: lora.plain(gpt()), ValueError, "has no LoraLinear"),
])
def test_what_does_not_fit_is_refused(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()


def test_a_layer_with_a_hook_is_refused():
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0 cannot be replaced: it has hooks, which would be lost"):
        lora.prepare(model, rank=2)


# The loop


def test_the_same_seed_reads_the_same_text():
    model, text = gpt(dtype=torch.float32), tokens(1, 200)[0]
    runs = [training.fit(gpt(dtype=torch.float32), text, 3, 1e-3, batch_size=2, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    start = torch.randint(len(text) - 32, (2,), generator=torch.Generator().manual_seed(0))
    rows = torch.stack([text[i:i + 33] for i in start])
    first = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    assert runs[0][0] == pytest.approx(first.item(), rel=1e-5)


def test_one_step_is_adamws():
    """In its first step AdamW moves each number by the rate against the sign of its gradient; matrices decay before, gains do not."""
    model, text = gpt(), tokens(1, 33)[0]
    cross = nn.functional.cross_entropy(model(text[None, :-1]).flatten(0, 1), text[1:])
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(cross, model.parameters())))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert training.fit(model, text, 1, 0.01, batch_size=3, weight_decay=0.5) == [pytest.approx(cross.item())]
    for name, p in model.named_parameters():
        steep = gradients[name].abs() > 1e-4
        wanted = before[name] * (1 - 0.01 * 0.5 * (p.ndim > 1)) - 0.01 * gradients[name].sign()
        assert steep.any() and torch.allclose(p[steep], wanted[steep], atol=1e-4), name


@pytest.mark.parametrize(("make", "message"), [
    (lambda: training.fit(gpt(), torch.arange(32), 1, 1e-3), "the text has shape (32,), and must have one dimension, and more tokens"),
    (lambda: training.fit(gpt(), tokens(2, 40), 1, 1e-3), "the text has shape (2, 40)"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 0, 1e-3), "steps is 0, and must be a whole number of at least 1"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 2.5, 1e-3), "steps is 2.5"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 1e-3, batch_size=0), "batch_size is 0, and must be a whole number of at least 1"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 1e-3, warmup=-1), "warmup is -1"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 1e-3, weight_decay=math.nan), "weight_decay is nan"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 1e-3, betas=(2, 2)), "betas is (2, 2)"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 1e-3, seed="a"), "seed is 'a'"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, math.inf), "max_lr is inf, and must be a number above 0"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0] + 9, 1, 1e-3), "and must be from 0 to 39"),
    (lambda: torch.inference_mode()(training.fit)(gpt(), tokens(1, 40)[0], 1, 1e-3), "inference mode keeps no gradients"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 9, 1e300), "and the model is lost: take a max_lr below 1e+300"),
    (lambda: training.fit(gpt(), tokens(1, 40)[0], 1, 0.0), "max_lr is 0.0, and must be a number above 0"),
    (lambda: training.fit(gpt().requires_grad_(False), tokens(1, 40)[0], 1, 1e-3), "nothing in the model requires a gradient"),
])
def test_training_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_merged_model_is_not_trained():
    tuned = lora.prepare(gpt(), rank=2, base=codes)
    lora.merge(tuned)
    with pytest.raises(ValueError, match="a model of merged adapters is unmerged first"):
        training.fit(tuned, tokens(1, 40)[0], 1, 1e-3)


def test_training_does_not_ask_whether_gradients_are_kept_around_it_and_refuses_before_the_first_step():
    with torch.no_grad():
        losses = training.fit(gpt(), tokens(1, 40)[0], 2, 1e-3, warmup=0, batch_size=2)
    assert losses == training.fit(gpt(), tokens(1, 40)[0], 2, 1e-3, warmup=0, batch_size=2)
    model = gpt()
    with pytest.raises(ValueError, match="tokens are torch.int32"):
        training.fit(model, tokens(1, 40)[0].int(), 1, 1e-3)
    assert not model.training


def test_what_is_no_module_and_no_function_is_named():
    for call in (lora.merge, lora.plain, lora.training_nbytes):
        with pytest.raises(TypeError, match="model is a NoneType, and must be a torch.nn.Module"):
            call(None)
    with pytest.raises(TypeError, match="base is a str, and must be a function"):
        lora.prepare(gpt(), base="nf4")
    with pytest.raises(TypeError, match="targets is 5, and must be a tuple of names"):
        lora.prepare(gpt(), targets=5)
    with pytest.raises(TypeError, match="model is a Linear, and must be a GPT"):
        training.fit(nn.Linear(2, 2), tokens(1, 40)[0], 1, 1e-3)
