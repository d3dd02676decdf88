"""qlab.llm.gptq against naive optimal brain quantization, brute force, torch's own convolutions, and one layer after the other by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from qlab.llm import gptq, weights
from qlab.llm.evaluate import Text
from qlab.llm.hessian import hessian_of, output_error
from qlab.llm.model import GPT, Config
from qlab.nets import ptq

SMALL = Config(vocabulary=11, width=16, blocks=2, heads=4, kv_heads=2, hidden=24, context=8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(count, n, seed=0):
    """Inputs that depend on each other, some of them much larger than others."""
    return random(count, n, seed=seed) @ random(n, n, seed=seed + 1) * (2 * random(n, seed=seed + 2).abs() + 0.1)


def tokens(count, length=8, seed=0):
    return torch.randint(0, SMALL.vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


# A matrix

def obq(w, hessian, bits, size, order, affine, static):
    """Optimal brain quantization in one order for all rows, the inverse of what is left computed anew in each column: codes."""
    w, first, codes, grid = w.double().numpy().copy(), w.double().numpy(), np.zeros(w.shape), {}
    places = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(w.shape[1])
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))
    for step, i in enumerate(places):
        group = slice(i // size * size, i // size * size + size)
        if group.start not in grid:
            part = (first if static else w)[:, group].astype(np.float32).astype(float)
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = (high - low) / (2**bits - 1) if affine else np.abs(part).max(1) / (2 ** (bits - 1) - 1)
            scale = scale.astype(np.float32).astype(float)
            grid[group.start] = scale, np.round(-low / scale) if affine else 0
        scale, zero = grid[group.start]
        top = 2**bits - 1 if affine else 2 ** (bits - 1) - 1
        codes[:, i] = np.clip(np.round(w[:, i] / scale) + zero, 0 if affine else -top, top)
        left = places[step:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        w[:, left] -= np.outer((w[:, i] - scale * (codes[:, i] - zero)) / inverse[0, 0], inverse[0])
    return codes


@pytest.mark.parametrize(("bits", "size", "order", "scheme", "static", "block"), [
    (2, None, False, "symmetric", False, 128), (3, None, False, "affine", False, 5), (4, None, True, "symmetric", False, 7),
    (2, 8, False, "affine", False, 128), (3, 8, False, "symmetric", False, 1), (4, 6, False, "symmetric", False, 10),
    (3, 12, False, "affine", False, 5), (3, 8, False, "symmetric", True, 7), (2, 8, True, "symmetric", False, 128),
    (4, 6, True, "affine", False, 9), (8, 4, True, "symmetric", True, 3),
])
def test_naive_optimal_brain_quantization_finds_the_same_codes(bits, size, order, scheme, static, block):
    w, h = random(16, 24, seed=bits), hessian_of(correlated(60, 24, seed=bits))
    q = gptq.quantize_matrix(w, h, bits, size, scheme, order=order, static_groups=static, block=block)
    expected = obq(w, h.numpy(), bits, size or 24, order, scheme == "affine", static or order)
    assert np.array_equal(q.codes.numpy(), expected)
    assert q.group_size == size and q.scale.shape == ((16,) if size is None else (16, 24 // size)) and q.scale.dtype == torch.float32
    rounded = weights.round_to_nearest(w, bits, size, scheme)
    assert q.nbytes == rounded.nbytes and q.scheme == scheme
    assert output_error(w, q.dequantize(), h) < output_error(w, rounded.dequantize(), h)


@pytest.mark.parametrize(("size", "scheme", "static"), [(None, "symmetric", False), (8, "minmax", False), (48, "kmeans", False),
                                                        (32, "nf4", False), (16, "symmetric", True)])
def test_blocks_change_no_code(size, scheme, static):
    w, h = random(4, 96), hessian_of(correlated(200, 96))
    one = gptq.quantize_matrix(w, h, group_size=size, scheme=scheme, static_groups=static, block=1)
    for block in (7, 16, 40, 1000):
        assert gptq.quantize_matrix(w, h, group_size=size, scheme=scheme, static_groups=static, block=block).equal(one)


@pytest.mark.parametrize("scheme", weights.SCHEMES)
@pytest.mark.parametrize("size", [None, 16])
def test_where_inputs_are_independent_nothing_can_be_repaired(scheme, size):
    w = random(6, 32, seed=3)
    diagonal = torch.diag(torch.linspace(0.1, 2, 32))
    for options in ({}, {"order": True}, {"static_groups": True}):
        q, rounded = gptq.quantize_matrix(w, diagonal, None, size, scheme, **options), weights.round_to_nearest(w, None, size, scheme)
        assert torch.equal(q.dequantize(), rounded.dequantize())                            # but for the sign of 0
        assert replace(q, codes=rounded.codes).equal(rounded)


@pytest.mark.parametrize("scheme", weights.SCHEMES)
def test_every_kind_of_level_gains(scheme):
    w, h = random(24, 64), hessian_of(correlated(300, 64))
    rounded, q = weights.round_to_nearest(w, None, 32, scheme), gptq.quantize_matrix(w, h, None, 32, scheme)
    assert output_error(w, q.dequantize(), h) < 0.9 * output_error(w, rounded.dequantize(), h)
    assert q.nbytes == rounded.nbytes and q.bits == rounded.bits and q.codes.dtype == rounded.codes.dtype
    levels = q.levels().repeat_interleave(32, 1) if q.scale is None or q.scale.dim() else q.levels()
    assert (levels == q.dequantize()[..., None]).any(-1).all()                              # each decoded weight is a level of its group


def test_brute_force_says_how_near_the_optimum_is():
    total = np.zeros(3)
    every = np.array(list(itertools.product((-1, 0, 1), repeat=4)))                         # (81, 4): 2 bits, symmetric
    for seed in range(40):
        w, x = random(2, 4, seed=seed), random(30, 4, seed=1000 + seed) @ random(4, 4, seed=2000 + seed)
        rounded = weights.round_to_nearest(w, 2)
        q = gptq.quantize_matrix(w, hessian_of(x), 2)
        tried = every * rounded.scale.numpy()[:, None, None]                                # (2, 81, 4)
        least = (((tried - w.numpy()[:, None]) @ x.T.numpy()) ** 2).sum(2).min(1).sum() / ((w @ x.T) ** 2).sum().item()
        errors = [output_error(w, found.dequantize(), hessian_of(x)) for found in (q, rounded)]
        direct = ((q.dequantize() - w) @ x.T).square().sum() / (w @ x.T).square().sum()
        assert errors[0] == pytest.approx(direct.item(), rel=1e-4)
        assert least <= min(errors) * (1 + 1e-5)
        total += [least, *errors]
    least, repaired, nearest = total
    assert repaired - least < 0.7 * (nearest - least)                                       # of what could be gained


def test_the_last_weight_could_not_be_rounded_better():
    w, h = random(8, 12), hessian_of(correlated(50, 12))
    q = gptq.quantize_matrix(w, h, 3, damping=0)
    best = output_error(w, q.dequantize(), h)
    for row, step in itertools.product(range(8), (-1, 1)):
        other = q.dequantize()
        other[row, -1] += step * q.scale[row]
        assert output_error(w, other, h) >= best or abs(q.codes[row, -1] + step) > 3


def test_a_matrix_as_long_as_the_hessian_is_any_unit_and_any_order():
    w, x = random(10, 32), correlated(100, 32)
    q = gptq.quantize_matrix(w, hessian_of(x), 3, order=True)
    assert gptq.quantize_matrix(w, hessian_of(64 * x), 3, order=True).equal(q)
    mixed = torch.randperm(32)
    assert torch.equal(gptq.quantize_matrix(w[:, mixed], hessian_of(x[:, mixed]), 3, order=True).codes, q.codes[:, mixed])
    assert torch.equal(gptq.quantize_matrix(1024 * w, hessian_of(x), 3, order=True).codes, q.codes)


@pytest.mark.parametrize("order", [False, True])
def test_dead_inputs_get_zeros_and_are_as_if_they_were_not_there(order):
    w, x = random(8, 20), correlated(100, 20)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[0, 7, 19]] = True
    x[:, dead], w[:, 7] = 0, 1000.0                                                         # a grid that reached to it would be useless
    q = gptq.quantize_matrix(w, hessian_of(x), 4, order=order)
    assert not q.codes[:, dead].any()
    assert torch.equal(q.codes[:, ~dead], gptq.quantize_matrix(w[:, ~dead], hessian_of(x[:, ~dead]), 4, order=order).codes)
    assert not gptq.quantize_matrix(w, torch.zeros(20, 20), 4).codes.any()


def test_fewer_inputs_than_the_matrix_is_wide():
    w, x = random(8, 40), correlated(10, 40).double()
    h = hessian_of(x)
    assert torch.linalg.matrix_rank(h) == 10
    q = gptq.quantize_matrix(w, h, 3)
    assert output_error(w, q.dequantize(), h) < 0.5 * output_error(w, weights.round_to_nearest(w, 3).dequantize(), h)
    with pytest.raises(ValueError, match="the Hessian is singular with damping 0: damp it more .* calibrate on more inputs, at least 40"):
        gptq.quantize_matrix(w, h, 3, damping=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(dtype):
    w, h = random(8, 32).to(dtype), hessian_of(correlated(100, 32))
    for options in ({}, {"group_size": 8}, {"scheme": "nf4", "group_size": 16}, {"scheme": "mxfp4"}):
        q = gptq.quantize_matrix(w, h, **options)
        assert q.dtype == dtype and q.dequantize().dtype == dtype and q.scale.dtype == weights.round_to_nearest(w, **options).scale.dtype
    q = gptq.quantize_matrix(w, h, 4, 16, scale_dtype=torch.float16)
    assert q.bits_per_weight == 5.0 and q.scale.dtype == torch.float16


def test_the_smallest_matrices():
    assert gptq.quantize_matrix([[1.0]], [[2.0]], 4).codes.tolist() == [[7]]
    assert gptq.quantize_matrix(torch.zeros(0, 3), torch.eye(3)).shape == (0, 3)
    assert gptq.quantize_matrix(torch.zeros(3, 0), torch.zeros(0, 0)).shape == (3, 0)
    assert not gptq.quantize_matrix(torch.zeros(3, 4), torch.eye(4), scheme="minmax").dequantize().any()
    assert (gptq.quantize_matrix(torch.full((3, 4), 0.3), torch.eye(4), scheme="minmax").dequantize() == 0.3).all()


def test_several_hessians_are_for_equal_parts_of_the_rows():
    w, hs = random(6, 16), torch.stack([hessian_of(correlated(60, 16, seed=s)) for s in range(3)])
    for options in ({}, {"group_size": 4}, {"group_size": 4, "order": True}, {"scheme": "kmeans", "bits": 2}, {"scheme": "mxfp4"}):
        whole = gptq.quantize_matrix(w, hs, **options)
        parts = [gptq.quantize_matrix(part, h, **options) for part, h in zip(w.split(2), hs)]
        assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
        assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in parts]))


SKEWED = torch.eye(8)
SKEWED[0, 1] = 1


@pytest.mark.parametrize(("hessian", "options", "said"), [
    (torch.eye(7), {}, r"hessian has shape \(7, 7\), and must be \(8, 8\) for a weight of shape \(4, 8\)"),
    (torch.ones(8), {}, r"hessian has shape \(8,\)"),
    (torch.eye(8).expand(3, 8, 8), {}, "as many as divide 4"),
    (torch.eye(8) * torch.nan, {}, "hessian holds NaN or infinity"),
    (SKEWED, {}, "hessian is not symmetric"),
    (-torch.eye(8), {}, "negative diagonal"),
    (torch.eye(8) + 2 * (1 - torch.eye(8)), {}, "the Hessian is singular with damping 0.01"),
    (torch.eye(8), {"damping": -1}, "damping is -1, and must be a number of at least 0"),
    (torch.eye(8), {"damping": float("nan")}, "damping is nan"),
    (torch.eye(8), {"block": 0}, "block is 0, and must be a whole number of at least 1"),
    (torch.eye(8), {"bits": 1}, "bits is 1, and must be a whole number from 2 to 16"),
    (torch.eye(8), {"group_size": 3}, "group_size is 3, and must divide the 8 elements"),
    (torch.eye(8), {"scheme": "int"}, "scheme is 'int'"),
])
def test_what_does_not_fit_is_one_sentence(hessian, options, said):
    with pytest.raises(ValueError, match=said):
        gptq.quantize_matrix(random(4, 8), hessian, **options)


def test_weights_that_do_not_fit_are_one_sentence():
    with pytest.raises(ValueError, match=r"weight has shape \(4, 2, 2\), and must be \(out, in\)"):
        gptq.quantize_matrix(torch.ones(4, 2, 2), torch.eye(4))
    with pytest.raises(TypeError, match="weight holds torch.int64"):
        gptq.quantize_matrix(torch.ones(4, 4, dtype=torch.int64), torch.eye(4))
    for bad in (torch.nan, torch.inf):
        weight = torch.ones(4, 4)
        weight[3, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            gptq.quantize_matrix(weight, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))    # at an input that is dead, too


# The Hessian

LAYERS = [
    (nn.Conv2d(3, 4, 3), (3, 9, 8)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), groups=2), (4, 7, 6)),
    (nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=6), (6, 6, 6)),
    (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    (nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect", bias=False), (2, 5, 5)),
    (nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=4), (4, 11)),
    (nn.Conv1d(2, 3, 4, padding="same", padding_mode="replicate"), (2, 9)),
    (nn.Linear(6, 3), (2, 5, 6)),
    (nn.Linear(6, 3), (6,)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_hessian_tells_the_error_of_the_output(layer, shape):
    layer, x = layer.double(), random(5, *shape).double()
    h = hessian_of(x, layer)
    other, change = nn.Parameter(layer.weight + 0), 0.1 * torch.randn_like(layer.weight)
    with torch.no_grad():
        before = layer(x)
        layer.weight = nn.Parameter(other + change)
        lost = (layer(x) - before).square().sum().item()
        layer.weight, bias = other, layer.bias
        layer.bias = None
        power = layer(x).square().sum().item()
        layer.bias = bias
    w, changed = other.detach().flatten(1), (other + change).detach().flatten(1)
    assert output_error(w, changed, h) == pytest.approx(lost / power, rel=1e-9)
    groups = getattr(layer, "groups", 1)
    rows = change.flatten(1).reshape(groups, -1, w.shape[1])
    count = before.numel() // len(w)
    assert (rows @ h * rows).sum().item() * count / 2 == pytest.approx(lost, rel=1e-9)
    assert torch.allclose(hessian_of(x[:1], layer), hessian_of(x[0], layer))                 # one image alone


def test_long_inputs_are_multiplied_in_parts(monkeypatch):
    conv, images, x = nn.Conv2d(2, 3, 3), random(7, 2, 6, 6), random(50, 6)
    whole = hessian_of(images, conv), hessian_of(x)
    monkeypatch.setattr("qlab.llm.hessian.AT_ONCE", 60)
    assert torch.allclose(hessian_of(images, conv), whole[0]) and torch.allclose(hessian_of(x), whole[1])
    assert torch.allclose(whole[1], 2 * (x.T @ x).double() / 50, rtol=1e-5)


# A model

def layer_by_layer(model, batches, names, **options):
    """The slow way: for each layer the whole model runs again, the layers before it already quantized."""
    tensors = {}
    for name in names:
        layer, seen = model.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(batch)
        handle.remove()
        tensors[name] = gptq.quantize_matrix(layer.weight.flatten(1), hessian_of(torch.cat(seen), layer), **options)
        layer.weight = nn.Parameter(tensors[name].dequantize().reshape(layer.weight.shape))
    return tensors


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 2, "group_size": 8, "scheme": "affine"}, {"order": True, "group_size": 8}])
def test_one_pass_does_what_layer_after_layer_does(options):
    torch.manual_seed(0)
    model, batches = GPT(SMALL), tokens(24).split(8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    made = gptq.quantize(model, batches, **options)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()) and model.training
    names = [f"blocks.{b}.{n}" for b in (0, 1) for n in ("attention.query", "attention.key", "attention.value", "attention.output",
                                                         "mlp.gate", "mlp.up", "mlp.down")]
    assert list(made.errors) == names == list(made.tensors)
    expected = layer_by_layer(model, batches, names, **options)
    for name in names:
        assert (made.tensors[name].codes != expected[name].codes).float().mean() < 0.005, name   # sums in another order: a tie may tip
    assert torch.allclose(made.model(tokens(3)), model(tokens(3)), atol=0.02)


def test_the_report_of_a_model():
    torch.manual_seed(0)
    model = GPT(SMALL)
    made, rounded = gptq.quantize(model, tokens(64), 3, 8), weights.quantize(model, 3, 8)
    assert made.nbytes == rounded.nbytes and made.left == rounded.left and type(made).__mro__[1] is ptq.Quantized
    assert sum(e.repaired for e in made.errors.values()) < 0.9 * sum(e.rounded for e in made.errors.values())
    first = made.errors["blocks.0.attention.query"]
    with torch.no_grad():
        x = model.blocks[0].attention_norm(model.embedding(tokens(64)))
        w = model.blocks[0].attention.query.weight
        for error, q in ((first.rounded, rounded), (first.repaired, made)):
            other = q.model.blocks[0].attention.query.weight
            assert error == pytest.approx((x @ (w - other).T).square().sum().item() / (x @ w.T).square().sum().item(), rel=1e-3)
    lines = str(made).splitlines()
    assert lines[1].startswith("blocks.0.attention.query") and f"{100 * first.repaired:.2f}%" in lines[1]
    assert f"14 layers quantized, {made.nbytes:,} bytes" in lines
    text = Text(tokens(64, 9), torch.ones(64, dtype=torch.int64))
    of_text, of_tokens = (gptq.quantize(model, batches, 3).tensors["blocks.1.mlp.up"] for batches in (text, text.tokens[:, :-1]))
    assert of_text.equal(of_tokens)


def test_a_model_that_is_quantized_is_saved_and_read(tmp_path):
    made = gptq.quantize(GPT(SMALL), tokens(8), 4, 8, scheme="affine", scale_dtype=torch.float16)
    made.save(tmp_path / "gpt.safetensors")
    assert torch.equal(ptq.load(tmp_path / "gpt.safetensors", GPT(SMALL)).model(tokens(2)), made.model(tokens(2)))


def images(count):
    return torch.nn.functional.interpolate(random(count, 2, 4, 4), 8, mode="bilinear")       # neighbours are alike


def test_convolutions_grouped_and_depthwise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Dropout(0.5),
                        nn.Conv2d(8, 12, 3, stride=2, groups=2), nn.Flatten(2), nn.Conv1d(12, 6, 2), nn.Flatten(), nn.Linear(18, 4))
    made = gptq.quantize(net, [images(40), images(60)], 3)
    assert list(made.tensors) == ["0", "3", "5", "7", "9"] and set(made.left) == {"1"}
    assert all(error.repaired < error.rounded for error in made.errors.values())
    for name, q in made.tensors.items():
        layer = made.model.get_submodule(name)
        assert torch.equal(layer.weight, q.dequantize()) and q.scale.shape == layer.weight.shape[:1]
    net.eval()
    expected = layer_by_layer(net, [images(40), images(60)], ["0", "3", "5", "7", "9"], bits=3)
    for name, q in expected.items():
        assert (made.tensors[name].codes.flatten(1) != q.codes).float().mean() < 0.01


def test_layers_that_no_input_reaches_are_shared_or_are_skipped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.unused, self.kept = nn.Linear(4, 4), nn.Linear(4, 4)
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.b.weight, self.head.weight = self.a.weight, self.embedding.weight

        def forward(self, x):
            x = self.twice(self.b(input=self.a(self.embedding(x))))
            self.unused(x[:0])                                                              # an expert that no token is sent to
            return self.head(self.kept(self.twice(x)))

    torch.manual_seed(0)
    net = Odd()
    made = gptq.quantize(net, torch.arange(9)[None], 3, skip=("kept",))
    assert set(made.tensors) == set(made.errors) == {"a", "b", "twice"} and made.tensors["a"] is made.tensors["b"]
    assert made.left == {"kept": "named in skip", "unused": "no calibration input reached it", "head": "shares its weight with embedding",
                         "embedding": "Embedding: only weights of Conv1d, Conv2d, Linear are quantized"}
    assert made.model.a.weight is made.model.b.weight and torch.equal(made.model.head.weight, net.head.weight)
    assert made.nbytes == 2 * (6 + 16) + 4 * (5 * 4 + 2 * 16 + 36)                          # codes, scales; biases, two layers, one table


def test_a_pruned_layer_is_taken_as_what_it_computes_with():
    torch.manual_seed(0)
    net = nn.Sequential(prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5))
    made = gptq.quantize(net, correlated(50, 8), 4)
    assert made.tensors["0"].equal(gptq.quantize_matrix(net[0].weight, hessian_of(correlated(50, 8)), 4))


def nan_inside():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].bias.data[0] = torch.nan
    return net


def test_the_error_of_a_layer_by_its_outputs_and_shapes_that_do_not_fit():
    torch.manual_seed(0)
    x, w, near = torch.randn(9, 6).double(), torch.randn(4, 6).double(), torch.randn(4, 6).double()
    wanted = (x @ (w - near).T).square().sum() / (x @ w.T).square().sum()
    assert output_error(w, near, hessian_of(x)) == pytest.approx(wanted.item())
    assert output_error(0 * w, near, hessian_of(x)) == torch.inf and output_error(0 * w, 0 * w, hessian_of(x)) == 0
    for shapes in (((4, 6), (1, 6), (6, 6)), ((4, 6), (4, 6), (3, 6)), ((4, 6), (4, 6), (3, 6, 6)), ((6,), (6,), (6, 6)),
                   ((4, 6), (4, 6), ())):
        with pytest.raises(ValueError, match="they must be .out, in., twice, and .in, in."):
            output_error(*map(torch.ones, shapes))
    for x, layer in ((torch.tensor(1.0), None), (torch.ones(3, 0), None), (torch.ones(5, 4), nn.Conv2d(3, 2, 1)),
                     (torch.ones(2, 4, 5, 5), nn.Conv2d(3, 2, 1))):
        with pytest.raises(ValueError, match="x has shape .*, and must be"):
            hessian_of(x, layer)


@pytest.mark.parametrize(("model", "batches", "options", "said"), [
    (nn.Sequential(nn.ReLU()), torch.ones(2, 4), {}, "the model, a Sequential, has no Conv1d, Conv2d, Linear"),
    (nn.Linear(4, 2), torch.ones(0, 4), {}, "there are no calibration inputs"),
    (nn.Linear(4, 2), [], {}, "there are no calibration inputs"),
    (nn.Linear(4, 2), [torch.ones(2, 4), torch.ones(2, 3)], {}, r"batches have the shapes \(2, 4\), \(2, 3\), .* cut all texts"),
    (nn.Linear(4, 2), torch.ones(2, 5), {}, r"the model cannot take the calibration batches, torch.float32 \(2, 5\) \(mat1 and mat2"),
    (nn.Linear(4, 2), torch.full((2, 4), torch.nan), {}, "the inputs of the network on the calibration batches hold NaN"),
    (nan_inside(), torch.ones(2, 4), {}, "the inputs of 2 on the calibration batches hold NaN"),
    (nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4), {"group_size": 3}, "the weight of 0 cannot be quantized: group_size is 3"),
    (nn.Linear(4, 2), torch.ones(2, 4), {"damping": 0}, "the weight of the network cannot be quantized: the Hessian is singular"),
    (nn.Linear(4, 2), torch.ones(2, 4), {"skip": ("fc",)}, "skip names fc"),
    (GPT(SMALL), torch.full((1, 4), 99), {}, "tokens go from 99 to 99"),
    (GPT(SMALL), torch.zeros(1, 9, dtype=torch.int64), {}, "the text is 9 tokens long, and the model reads at most 8"),
])
def test_models_and_batches_that_do_not_fit_are_one_sentence(model, batches, options, said):
    with pytest.raises(ValueError, match=said):
        gptq.quantize(model, batches, **options)


def test_batches_that_are_no_tensors():
    with pytest.raises(TypeError, match="batches is a int, and must be a tensor"):
        gptq.quantize(nn.Linear(4, 2), 3)
    with pytest.raises(TypeError, match="batches holds a list, and must hold tensors .*, without labels"):
        gptq.quantize(nn.Linear(4, 2), [[torch.ones(2, 4), torch.zeros(2)]])
    with pytest.raises(TypeError, match="batches holds a str"):
        gptq.quantize(GPT(SMALL), "a text")
