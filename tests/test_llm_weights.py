"""qlab.llm.weights: rounding to nearest against NumPy and the quantizers themselves, ranges against a search, what is taken of a model."""

import numpy as np
import pytest
import torch
from torch import nn

from qlab.llm import weights
from qlab.llm.model import GPT, Config
from qlab.nets import ptq
from qlab.quant import formats, kmeans, linear, ternary

GROUPED = Config(vocabulary=11, width=16, blocks=2, heads=4, kv_heads=2, hidden=24, context=8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "size"), [(2, None), (3, 4), (4, 12), (8, 24)])
def test_each_group_reaches_to_its_largest_weight(bits, size):
    w = random(5, 24)
    q = weights.round_to_nearest(w, bits, size)
    groups = w.numpy().reshape(5, -1, size or 24)
    scale = np.abs(groups).max(2, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    assert np.array_equal(q.codes.numpy().reshape(groups.shape), np.round(groups / scale))
    assert np.allclose(q.dequantize().numpy().reshape(groups.shape), np.round(groups / scale) * scale, rtol=1e-6)
    assert q.nbytes == 5 * 24 * bits // 8 + 4 * scale.size


@pytest.mark.parametrize(("scheme", "direct"), [
    ("minmax", lambda w: linear.quantize(w, 4, "minmax", axis=0, group_size=8)),
    ("affine", lambda w: linear.quantize(w, 4, "affine", axis=0, group_size=8)),
    ("kmeans", lambda w: kmeans.quantize(w, 4, axis=0, group_size=8)),
    ("ternary", lambda w: ternary.quantize(w, axis=0, group_size=8)),
    ("nf4", lambda w: formats.quantize(w, "nf4", axis=0, group_size=8)),
    ("mxfp4", lambda w: formats.quantize(w, "mxfp4", axis=0, group_size=8)),
])
def test_other_schemes_are_those_of_quant(scheme, direct):
    w = random(3, 4, 2, 2)
    assert weights.round_to_nearest(w, group_size=8, scheme=scheme).equal(direct(w))


@pytest.mark.parametrize("scheme", linear.SCHEMES)
def test_ranges_by_mse_are_the_best_of_a_hundred_in_each_group(scheme):
    w = random(4, 30) ** 3
    q = weights.round_to_nearest(w, 3, 10, scheme, ranges="mse")
    found = (q.dequantize() - w).double().square().reshape(12, 10).sum(1)
    tried = []
    for f in np.arange(1, 101) / 100:
        rows = w.double().reshape(12, 10)
        low, high = f * rows.amin(1, keepdim=True), f * rows.amax(1, keepdim=True)
        if scheme == "symmetric":
            scale = torch.maximum(-low, high) / 3
            x_hat = (rows / scale).round().clamp(-3, 3) * scale
        elif scheme == "affine":
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / 7
            zero = (-low / scale).round()
            x_hat = (((rows / scale).round() + zero).clamp(0, 7) - zero) * scale
        else:
            scale = (high - low) / 7
            x_hat = ((rows - low) / scale).round().clamp(0, 7) * scale + low
        tried.append((x_hat - rows).square().sum(1))
    assert torch.allclose(found, torch.stack(tried).amin(0), rtol=1e-4)
    assert found.sum() < (weights.round_to_nearest(w, 3, 10, scheme).dequantize() - w).square().sum()


@pytest.mark.parametrize(("options", "said"), [
    ({"bits": 1}, "bits is 1, and must be a whole number from 2 to 16"),
    ({"bits": 17}, "bits is 17"),
    ({"bits": 5, "scheme": "nf4"}, "bits is 5, and must be 4, or left out, for nf4"),
    ({"bits": 2, "scheme": "ternary"}, "bits is 2, and must be 1.6, or left out, for ternary"),
    ({"group_size": 7}, "group_size is 7, and must divide the 24 elements"),
    ({"scheme": "int4"}, "scheme is 'int4', and must be one of minmax, affine, symmetric, kmeans, ternary, e4m3"),
    ({"ranges": "best"}, "ranges is 'best', and must be one of max, mse"),
    ({"ranges": "mse", "scheme": "nf4"}, "ranges is 'mse', and must be 'max' for nf4"),
    ({"scale_dtype": torch.float16, "scheme": "kmeans"}, "must be None for kmeans"),
    ({"scale_dtype": torch.int8}, "scale_dtype is torch.int8"),
])
def test_what_does_not_fit_is_one_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        weights.round_to_nearest(random(5, 24), **options)
    with pytest.raises(ValueError, match=f"the weight of 0 cannot be quantized: .*{said}"):
        weights.quantize(nn.Sequential(nn.Linear(24, 5)), **options)


def test_a_weight_that_is_none_is_one_sentence():
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), and must be \(out, in\)"):
        weights.round_to_nearest(torch.ones(4))
    with pytest.raises(TypeError, match="weight holds torch.int64"):
        weights.round_to_nearest(torch.ones(4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN or infinity"):
        weights.round_to_nearest(torch.full((2, 2), torch.nan), ranges="mse")


def test_a_model_in_groups_of_four_bits_weighs_what_its_file_would():
    model = GPT(GROUPED)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    q = weights.quantize(model, 4, 8, scale_dtype=torch.float16)
    matrices = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)                                 # query, output; key, value; gate, up, down
    assert q.nbytes == matrices // 2 + 2 * matrices // 8 + 4 * (11 * 16 + 5 * 16)           # codes, scales, embedding and norms
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert len(q.tensors) == 14
    assert set(q.left) == {"embedding", "norm", *(f"blocks.{b}.{n}_norm" for b in (0, 1) for n in ("attention", "mlp"))}
    for name, tensor in q.tensors.items():
        assert torch.equal(q.model.get_submodule(name).weight, tensor.dequantize())


def test_a_saved_model_is_read_again(tmp_path):
    q = weights.quantize(GPT(GROUPED), 3, 8, scheme="affine")
    q.save(tmp_path / "gpt.safetensors")
    again = ptq.load(tmp_path / "gpt.safetensors", GPT(GROUPED))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.model(tokens), q.model(tokens)) and again.nbytes == q.nbytes


def test_a_function_for_each_layer_and_layers_that_are_skipped():
    net = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    net["head"] = nn.Linear(4, 10, bias=False)
    net["head"].weight = net["embedding"].weight
    q = weights.quantize(net, 4, skip=("b",))
    assert list(q.tensors) == ["a"]
    assert q.left["b"] == "named in skip" and q.left["head"] == "shares its weight with embedding" and "embedding" in q.left
    both = weights.quantize_weights(net, {"a": weights.round_to_nearest, "head": weights.round_to_nearest}, skip=("b",))
    assert list(both.tensors) == ["a", "head"] and "head" not in both.left
    assert torch.equal(both.model["embedding"].weight, net["embedding"].weight)


def test_models_and_names_that_do_not_fit_are_one_sentence():
    with pytest.raises(ValueError, match="the model, a Sequential, has no Conv1d, Conv2d, Linear"):
        weights.quantize(nn.Sequential(nn.Embedding(4, 4), nn.ReLU()))
    with pytest.raises(TypeError, match="model is a dict, and must be a torch.nn.Module"):
        weights.quantize({})
    with pytest.raises(ValueError, match="skip names blocks.0, and may name blocks.0.attention.query, "):
        weights.quantize(GPT(GROUPED), skip=("blocks.0",))
    with pytest.raises(TypeError, match=r"skip is 'norm', and must be a tuple of names: \('norm',\)"):
        weights.quantize(GPT(GROUPED), skip="norm")
    with pytest.raises(ValueError, match="0.weight has no values .*: load the model first"):
        weights.quantize(nn.Sequential(nn.Linear(4, 4, device="meta")))
    with pytest.raises(ValueError, match="0.weight has no values"):
        weights.quantize(nn.Sequential(nn.LazyLinear(4)))
