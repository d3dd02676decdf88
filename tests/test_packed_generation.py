"""A language model whose linear layers multiply packed codes: the same text, and the bytes that it reads."""

import re

import pytest
import torch
from small_gpt import gpt, tokens
from torch import nn

from qlab.llm import packed, weights
from qlab.llm.generate import generate
from qlab.llm.kv_cache import QuantizedCache
from qlab.matmul import Int4Linear, quantize_linears_


@pytest.mark.parametrize(("bits", "scheme"), [(4, "symmetric"), (4, "affine"), (3, "minmax"), (2, "minmax"), (8, "symmetric")])
def test_packed_weights_generate_what_their_floats_do(bits, scheme):
    model = gpt(dtype=torch.float32).requires_grad_(False)
    q = weights.quantize(model, bits, 16, scheme, scale_dtype=torch.float16)
    fast = packed.pack(q, backend="reference")
    assert sum(isinstance(m, Int4Linear) for m in fast.modules()) == 14 and not any(type(m) is nn.Linear for m in fast.modules())
    torch.testing.assert_close(fast(tokens()), q.model(tokens()), rtol=1e-4, atol=1e-4)
    assert generate(fast, [3, 1], 12) == generate(q.model, [3, 1], 12)
    cache = QuantizedCache(model.config, 8, 8, group_size=12, window=4)                     # everything small at once
    assert len(generate(fast, [3, 1], 12, cache=cache)) == 12


def test_the_fastest_backend_is_near():
    q = weights.quantize(gpt(dtype=torch.float32, width=64, hidden=64), 4, 32)
    found, wanted = packed.pack(q)(tokens()), q.model(tokens())
    assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_the_model_that_is_packed_stays():
    q = weights.quantize(gpt(dtype=torch.float32), 4, 16)
    packed.pack(q, "reference")
    assert type(q.model.blocks[0].mlp.up) is nn.Linear


def test_bytes_read_for_a_token():
    model = gpt(dtype=torch.float32)                                                        # 40 x 48 entries, 2 blocks of these matrices
    matrices = 2 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 96)
    rest = 4 * (40 * 48 + 5 * 48) + 6 * 2 * 4                                               # embedding, gains, a row of turns
    assert packed.read_nbytes(model) == 4 * matrices + rest
    assert packed.read_nbytes(gpt(dtype=torch.float32).half()) == 2 * matrices + (rest - 48) // 2 + 24
    four = weights.quantize(model, 4, 16, scale_dtype=torch.float16)
    assert packed.read_nbytes(packed.pack(four, "reference")) == matrices // 2 + 2 * matrices // 16 + rest
    eight = gpt(dtype=torch.float32)
    quantize_linears_(eight)
    rows = 2 * (48 + 24 + 24 + 48 + 96 + 96 + 48)
    assert packed.read_nbytes(eight) == matrices + 2 * 4 * rows + rest                      # a scale and a sum for each row
    untied = gpt(dtype=torch.float32)
    untied.head = nn.Parameter(torch.zeros(40, 48))
    assert packed.read_nbytes(untied) == packed.read_nbytes(model) + 48 * 4


def test_what_cannot_be_packed_is_refused():
    q = weights.quantize(gpt(dtype=torch.float32), scheme="kmeans", bits=4)
    with pytest.raises(ValueError, match=re.escape("blocks.0.attention.query cannot be packed: the scheme of q is 'kmeans', and must be")):
        packed.pack(q)
    with pytest.raises(TypeError, match="q is a GPT, and must be what a method for weights returns"):
        packed.pack(gpt())
    with pytest.raises(TypeError, match="model is a Linear, and must be a GPT"):
        packed.read_nbytes(nn.Linear(2, 2))
