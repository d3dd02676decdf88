"""Rotations: Hadamard matrices against scipy's and by their definition, and models that compute what they did before."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard
from small_gpt import gpt, tokens
from torch import nn

from qlab.llm import activations, lora, rotate, ternary
from qlab.llm.generate import generate
from qlab.llm.outliers import measure, plant
from qlab.llm.weights import quantize_weights
from qlab.quant import linear


@pytest.mark.parametrize("n", [1, 2, 8, 64, 128, 256])
def test_a_power_of_two_has_sylvesters_matrix(n):
    assert np.abs(rotate.hadamard(n).numpy() - scipy_hadamard(n) / n**0.5).max() < 1e-15


@pytest.mark.parametrize("n", [12, 20, 24, 48, 144, 240, 320, 400, 576, 1536])
def test_rows_are_orthogonal_and_entries_are_signs(n):
    signs = rotate.hadamard(n) * n**0.5
    assert torch.equal(signs.round().abs(), torch.ones(n, n).double()) and (signs - signs.round()).abs().max() < 1e-12
    whole = signs.round().float()
    assert torch.equal(whole @ whole.T, n * torch.eye(n))                                   # whole numbers below 2**24: exact


@given(st.integers(0, 7), st.integers(0, 1), st.integers(0, 1), st.integers(0, 2**16))
@settings(max_examples=15)
def test_the_fast_product_is_the_slow_one(twos, twelves, twenties, seed):
    n = 2**twos * 12**twelves * 20**twenties
    n = n if n <= 2000 else 24
    x = torch.randn(3, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert (rotate.Hadamard(n)(x) - x @ rotate.hadamard(n)).abs().max() < 1e-12


def test_the_fast_product_is_exact_in_signs_whatever_the_model_was_converted_to():
    x = torch.randn(5, 48, dtype=torch.float64)
    assert torch.equal(rotate.Hadamard(48).half().double()(x), rotate.Hadamard(48)(x))
    assert rotate.Hadamard(48)(x.half()).dtype == torch.float16
    assert list(rotate.Hadamard(48).state_dict()) == []
    with pytest.raises(ValueError, match="x has 3 channels, and must have 48"):
        rotate.Hadamard(48)(torch.zeros(2, 3))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 28, 36, 7 * 64, 2.0, True, "64"])
def test_another_order_is_refused(n):
    with pytest.raises(ValueError, match="no Hadamard matrix of order"):
        rotate.hadamard(n)


def test_signs_are_drawn_by_the_seed():
    assert torch.equal(rotate.random_hadamard(24, 3), rotate.random_hadamard(24, 3))
    assert not torch.equal(rotate.random_hadamard(24, 3), rotate.random_hadamard(24, 4))
    q = rotate.random_hadamard(24, 3)
    assert (q @ q.T - torch.eye(24)).abs().max() < 1e-14


SIZES = [{}, {"kv_heads": 4}, {"kv_heads": 1, "blocks": 1}, {"width": 40, "heads": 2, "kv_heads": 1, "hidden": 80}]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("places", [("stream",), ("values",), ("down",), rotate.PLACES, ()])
def test_a_rotated_model_computes_the_same(sizes, places):
    model = gpt(1, **sizes)
    before, text = copy.deepcopy(model.state_dict()), tokens()
    rotated = rotate.rotate(model, 5, places)
    assert (rotated(text) - model(text)).abs().max() < 1e-10 < model(text).abs().max() * 1e-9
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items()) and model.head is None
    changed = {name for name, p in rotated.named_parameters() if name not in before or not torch.equal(p, before[name])}
    of = {"stream": {"query", "key", "value", "output", "gate", "up", "down", "attention_norm", "mlp_norm", "norm", "head", "embedding"},
          "values": {"value", "output"}, "down": {"down"}}
    assert {name.removesuffix(".weight").split(".")[-1] for name in changed} == set().union(*(of[place] for place in places))


def test_gains_become_one_and_the_head_takes_the_last():
    model, text = gpt(2), tokens()
    folded = rotate.fold_gains(model)
    assert all(bool((p == 1).all()) for name, p in folded.named_parameters() if name.endswith("norm.weight"))
    assert torch.equal(folded.embedding.weight, model.embedding.weight)
    assert (folded.head - model.embedding.weight * model.norm.weight).abs().max() < 1e-15
    assert (folded(text) - model(text)).abs().max() < 1e-11
    again = rotate.fold_gains(folded)                                                       # a model with a head keeps it
    assert torch.equal(again.head, folded.head)


def test_a_rotated_model_rotates_again_generates_and_keeps_its_half_precision():
    model = gpt(3)
    rotated = rotate.rotate(rotate.rotate(model, 1), 2, ("stream", "values"))
    assert (rotated(tokens()) - model(tokens())).abs().max() < 1e-10
    assert generate(rotated, [1, 2, 3], 12) == generate(model, [1, 2, 3], 12)
    half = rotate.rotate(gpt(3, torch.bfloat16), 1)
    once = rotate.rotate(gpt(3, torch.bfloat16).double(), 1)
    assert all(torch.equal(p, dict(once.named_parameters())[name].bfloat16()) for name, p in half.named_parameters())


@torch.no_grad()
def test_rotation_spreads_planted_outliers_and_saves_four_bit_activations():
    model, text = gpt(4, torch.float32), tokens(8, 32)
    planted = plant(model, factor=100)
    rotated = rotate.rotate(planted)
    before, after = ({name: found.ratio for found in measure(m, text) for name in found.layers} for m in (planted, rotated))
    for name in before:
        if name.split(".")[-1] in ("query", "gate"):
            assert before[name] > 50 and after[name] < 5
    error = [float((activations.quantize(m, 4)(text) - model(text)).square().mean()) for m in (model, planted, rotated)]
    assert error[1] > 4 * error[0] and error[2] < 1.5 * error[0]


def test_what_reads_down_is_the_rotated_input_so_that_other_pages_see_it():
    rotated, seen = rotate.rotate(gpt(5)), {}
    activations.watch(rotated, tokens(), lambda name, x: seen.__setitem__(name, x), ["blocks.1.mlp.down", "blocks.1.mlp.gate"])
    mlp = rotated.blocks[1].mlp
    x = seen["blocks.1.mlp.gate"]
    hidden = torch.nn.functional.silu(mlp.gate(x)) * mlp.up(x)
    assert (seen["blocks.1.mlp.down"] - hidden @ rotate.hadamard(96)).abs().max() < 1e-12
    q = quantize_weights(rotated, lambda w: linear.quantize(w, 12, "symmetric", axis=0))
    assert "blocks.1.mlp.down" in q.tensors
    assert (q.model(tokens()) - rotated(tokens())).square().mean() < 1e-3 * rotated(tokens()).square().mean()


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="the model is a Sequential, and must be a GPT of qlab.llm.model"):
        rotate.rotate(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"places is \('stream', 'keys'\), and may hold stream, values, down"):
        rotate.rotate(gpt(), places=("stream", "keys"))
    with pytest.raises(ValueError, match="places is 'down'"):
        rotate.rotate(gpt(), places="down")
    with pytest.raises(ValueError, match="rotated already"):
        rotate.rotate(rotate.rotate(gpt()), places=("down",))
    for sizes in ({"width": 56, "heads": 7, "kv_heads": 7}, {"width": 24}, {"hidden": 44}):
        with pytest.raises(ValueError, match="no Hadamard matrix of order"):
            rotate.rotate(gpt(**sizes))
    with pytest.raises(ValueError, match="take that off first"):
        rotate.rotate(activations.quantize(gpt(), 4))
    with pytest.raises(ValueError, match="seed is 1.5, and must be a whole number from 0"):
        rotate.rotate(gpt(), seed=1.5)


@pytest.mark.parametrize("turn", [rotate.rotate, rotate.fold_gains])
def test_a_model_that_would_compute_something_else_is_refused(turn):
    """A mean that a norm subtracts, a bias and codes would all have to be turned; a turned half may overflow."""
    model = gpt()
    model.blocks[1].mlp_norm = nn.LayerNorm(48)
    with pytest.raises(ValueError, match="blocks.1.mlp_norm is a LayerNorm and must be an nn.RMSNorm without bias"):
        turn(model)
    model = gpt()
    model.blocks[0].mlp.down = nn.Linear(96, 48)
    with pytest.raises(ValueError, match="blocks.0.mlp.down is a Linear with a bias and must be an nn.Linear without bias"):
        turn(model)
    for other in (lora.prepare(gpt(), 2, base=lambda w: linear.quantize(w, 4, "symmetric")), ternary.prepare(gpt())):
        with pytest.raises(ValueError, match="blocks.0.attention.query is a (Lora|Bit)Linear and must be an nn.Linear"):
            turn(other)
    loud = gpt(dtype=torch.float16)
    loud.blocks[0].attention.query.weight.data[0] = 6e4
    loud.blocks[0].attention_norm.weight.data.fill_(2)
    with pytest.raises(ValueError, match="attention.query.weight holds NaN or infinity, or numbers beyond the largest torch.float16"):
        turn(loud)
