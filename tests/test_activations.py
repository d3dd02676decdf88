"""Quantized inputs of linear layers: against linear.quantize and formats.quantize, row by row, and put in and taken off again."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_gpt import gpt, tokens
from torch import nn
from torch.nn.functional import linear as product

from qlab.llm import activations, evaluate
from qlab.llm.activations import Levels
from qlab.llm.generate import generate
from qlab.llm.weights import quantize_weights
from qlab.quant import formats, linear
from qlab.quant import ranges as ranges_of


def mlp(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 10, bias=False)).to(dtype)


@given(st.integers(2, 10), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.floats(-5, 4),
       st.integers(0, 2**16))
@settings(max_examples=40)
def test_levels_are_those_of_the_linear_quantizer(bits, dtype, size, seed):
    x = (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) * 10**size).to(dtype)
    x[0, 1] = 0
    work = x if dtype != torch.float64 else x.float()                                       # scales are float32
    x = x if dtype != torch.float64 else work.double()
    token = linear.quantize(work.flatten(0, 1), bits, "symmetric", axis=0).dequantize().view(x.shape)
    assert torch.allclose(Levels(bits, "token")(x), token.to(dtype), rtol=1e-6, atol=0)
    whole = linear.quantize(work, bits, "symmetric")
    assert torch.allclose(Levels(bits, "tensor")(x), whole.dequantize().to(dtype), rtol=1e-6, atol=0)
    assert Levels(bits, "static", whole.scale)(x).dtype == dtype
    if dtype != torch.float64:
        assert torch.equal(Levels(bits, "token")(x), token) and torch.equal(Levels(bits, "static", whole.scale)(x), whole.dequantize())


def test_extremes_keep_their_place():
    x = torch.tensor([[3e38, -3e38, 1.0], [1e-45, 0.0, -1e-45], [0.0, 0.0, 0.0]])
    hat = Levels(4, "token")(x)
    assert torch.allclose(hat[0], torch.tensor([3e38, -3e38, 0.0])) and hat[2].eq(0).all() and hat.isfinite().all()
    assert Levels(4, "token")(torch.zeros(0, 5)).shape == (0, 5) and Levels(4, "tensor")(torch.zeros(2, 0)).shape == (2, 0)
    assert torch.equal(Levels(4, "static", torch.tensor(1.0))(torch.tensor([9.0, -9.0, 0.5, 1.5])), torch.tensor([7.0, -7.0, 0.0, 2.0]))


def by_hand(model, x, code):
    """The network of mlp() with each layer's input through code."""
    first, _, _, second = model
    return product(code(product(code(x), first.weight, first.bias).relu()), second.weight)


@pytest.mark.parametrize("how, code", [
    (8, lambda x: linear.quantize(x, 8, "symmetric", axis=0).dequantize()),
    (4, lambda x: linear.quantize(x, 4, "symmetric", axis=0).dequantize()),
    ("mxfp4", lambda x: torch.stack([formats.quantize(row, "mxfp4", group_size=32 if len(row) == 32 else 16).dequantize() for row in x])),
    ("e4m3", lambda x: torch.stack([formats.quantize(row, "e4m3").dequantize() for row in x])),
    (lambda x: linear.quantize(x, 3, "affine"), lambda x: linear.quantize(x, 3, "affine").dequantize()),
])
def test_the_network_computes_with_what_was_decoded(how, code):
    model, x = mlp().eval(), torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    if how == "mxfp4":                                                                      # 48 channels have no blocks of 32
        with pytest.raises(ValueError, match="what 3 reads: mxfp4 has groups of 32"):
            activations.quantize(model, how)

        def how(x):
            return formats.quantize(x, "mxfp4", axis=0, group_size=32 if x.shape[1] == 32 else 16)
    quantized = activations.quantize(model, how)
    assert torch.allclose(quantized(x), by_hand(model, x, code), rtol=1e-6, atol=1e-6)
    assert not torch.equal(quantized(x), model(x))
    assert torch.equal(activations.remove(quantized)(x), model(x))


@pytest.mark.parametrize("ranges", activations.RANGES)
def test_static_scales_come_from_calibration(ranges):
    model, x = mlp(), torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    quantized = activations.quantize(model, 4, "static", [x[:50], x[50:]], ranges)
    hidden = model[0](x).relu()
    for layer, seen in ((quantized[0], x), (quantized[3], hidden)):
        ends = {"minmax": seen.abs().max(), "percentile": seen.abs().flatten().quantile(0.999),
                "mse": ranges_of.mse(seen.abs(), 4, "symmetric").x_max}
        # A sample of 65,536 with replacement stands for the values: exact for the extremes alone.
        assert layer.inputs.scale.item() * 7 == pytest.approx(ends[ranges].item(), rel=1e-6 if ranges == "minmax" else 0.1)
    if ranges == "minmax":
        scales = [quantized[0].inputs.scale, quantized[3].inputs.scale]
        own = iter(scales)
        assert torch.allclose(quantized.eval()(2 * x), by_hand(model, 2 * x, lambda y: (y / (s := next(own))).round().clamp(-7, 7) * s))
    assert model.training and not hasattr(model[0], "inputs") and quantized[0].inputs.scale.dtype == torch.float32
    assert quantized.half()[0].inputs.scale.dtype == torch.float32


def test_a_language_model_with_eight_and_four_bits():
    model, text = gpt(0, torch.float32), tokens()
    before = copy.deepcopy(model.state_dict())
    w8, w4 = (quantize_weights(model, lambda w, bits=bits: linear.quantize(w, bits, "symmetric", axis=0)).model for bits in (8, 4))
    # Weights and activations in either order.
    assert torch.equal(quantize_weights(activations.quantize(model, 4), lambda w: linear.quantize(w, 8, "symmetric", axis=0)).model(text),
                       activations.quantize(w8, 4)(text))
    errors = []
    for weights, bits in ((w8, 8), (w8, 4), (w4, 4)):
        quantized = activations.quantize(weights, bits)
        assert {name for name, m in quantized.named_modules() if isinstance(m, Levels)} == {
            f"blocks.{i}.{name}.inputs" for i in (0, 1) for name in ("attention.query", "attention.key", "attention.value",
                                                                     "attention.output", "mlp.gate", "mlp.up", "mlp.down")}
        with torch.no_grad():
            errors.append(float((quantized(text) - model(text)).square().mean()))
    assert errors[0] < errors[1] < errors[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # Per token: a token's codes do not depend on what else is read, so the cache gives the same text.
    quantized, made = activations.quantize(w8, 8), [1, 2, 3]
    for _ in range(6):
        made.append(int(quantized(torch.tensor([made]))[0, -1].argmax()))
    assert generate(quantized, [1, 2, 3], 6) == made[3:]


def test_skipped_layers_read_what_they_did_and_quantizing_twice_is_once():
    model, x = mlp().eval(), torch.randn(20, 32)
    quantized = activations.quantize(activations.quantize(model, 8), 4, skip=("3",))
    assert quantized[0].inputs.bits == 4 and not hasattr(quantized[3], "inputs") and len(quantized[0]._forward_pre_hooks) == 1
    hat = linear.quantize(x, 4, "symmetric", axis=0).dequantize()
    assert torch.equal(quantized(x), model(hat))
    assert isinstance(activations.quantize(nn.Linear(4, 4), 4), nn.Linear)


def test_a_layer_that_runs_twice_and_one_that_torch_would_call_a_shorter_way():
    shared = nn.Linear(16, 16)
    model, x = nn.Sequential(shared, nn.Tanh(), shared), torch.randn(5, 16)
    code = Levels(4, "token")
    assert torch.equal(activations.quantize(model, 4)(x), shared(code(shared(code(x)).tanh())))
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True).eval()
    quantized = activations.quantize(encoder, 2)
    assert {name for name, m in quantized.named_modules() if isinstance(m, Levels)} == {"linear1.inputs", "linear2.inputs"}
    with torch.no_grad():
        assert not torch.allclose(quantized(x[None]), encoder(x[None]))


def test_gradients_go_straight_through():
    layer, x = nn.Linear(8, 3), torch.randn(5, 8, requires_grad=True)
    for per, expected in (("token", layer.weight.sum(0).expand(5, 8)), ("static", layer.weight.sum(0) * (x.abs() <= x.abs()[0].max()))):
        y = activations.quantize(layer, 8, per, x[:1].detach())(x)
        assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], expected)                 # static: 0 beyond the last level


def test_inputs_are_what_the_layers_read():
    model, x = mlp().eval(), torch.randn(7, 32)
    seen = activations.inputs(model, [x[:3], x[3:]])
    assert torch.equal(seen["0"], x) and torch.allclose(seen["3"], model[0](x).relu(), atol=1e-6)
    assert list(activations.inputs(model, x, ["3"])) == ["3"]


def test_watch_leaves_modes_and_hooks_and_sees_every_call():
    model, seen = mlp(), []
    activations.watch(model, (torch.randn(n, 32) for n in (3, 0, 4)), lambda name, x: seen.append((name, tuple(x.shape), x.requires_grad)))
    assert seen == [("0", (3, 32), False), ("3", (3, 48), False), ("0", (4, 32), False), ("3", (4, 48), False)]
    assert model.training and model[2].training and not any(m._forward_pre_hooks for m in model.modules())


def test_a_text_is_read_as_it_is_scored():
    text = evaluate.blocks(tokens(1, 200).flatten().tolist(), [1] * 40, 9)
    assert [batch.shape for batch in activations.batches_of(text)] == [(16, 9), (6, 9)]
    assert torch.equal(torch.cat(activations.batches_of(text)), text.tokens[:, :-1])


def test_bad_input_is_one_sentence():
    model, x = mlp(), torch.randn(4, 32)

    def refused(match, *arguments, error=ValueError, of=model, **named):
        with pytest.raises(error, match=match) as caught:
            activations.quantize(of, *arguments, **named)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")

    refused("the model, a Sequential, has no linear layers, and must have one at least", of=nn.Sequential(nn.Conv2d(1, 1, 1)))
    refused("'4' is no linear layer of the model: skip may hold 0, 3", 4, skip=("4",))
    refused("skip is '0', and must be a tuple", 4, skip="0", error=TypeError)
    refused("bits is 1, and must be a whole number from 2 to 16", 1)
    refused("bits is 4.0", 4.0)
    refused("per is 'row', and must be one of static, tensor, token", 4, "row")
    refused("per is 'static', which is for bits: mxfp4 has scales of its own", "mxfp4", "static", x)
    refused("format is 'fp4', and must be one of", "fp4")
    refused("ranges is 'max', and must be one of minmax, percentile, mse", 4, "static", x, "max")
    refused("batches is None, and must be a tensor", 4, "static", error=TypeError)
    refused("batches holds a int, and must hold tensors", 4, "static", [1, 2], error=TypeError)
    refused("batches holds no tokens", 4, "static", [])
    refused("batches holds no tokens", 4, "static", torch.zeros(0, 32))
    refused("0 reads NaN or infinity", 4, "static", x.log())
    refused("returns a Tensor, and must return a QTensor", lambda x: x, error=TypeError)
    refused("model is a str, and must be a torch.nn.Module", of="gpt", error=TypeError)
    refused("the text is 33 tokens long", 4, "static", tokens(1, 33), of=gpt())

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(32, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    refused(r"the model cannot take the calibration batches, torch.float32 \(8, 5\) \(mat1 and mat2", 4, "static", torch.ones(8, 5))
    refused("0.weight has no values", 4, "static", x, of=mlp().to("meta"))
    refused("the model does not call unused on these batches", 4, "static", x, of=Partly())
    assert activations.quantize(Partly(), 4, "static", x, skip=("unused",)).used.inputs.scale > 0


def test_a_layer_may_be_given_its_input_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 4)

        def forward(self, x):
            return self.fc(input=x)

    torch.manual_seed(0)
    model, x = Named(), torch.randn(6, 32)
    assert torch.equal(activations.inputs(model, x)["fc"], x)
    assert torch.equal(activations.quantize(model, 4)(x), model.fc(Levels(4, "token")(x)))
