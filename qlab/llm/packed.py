"""Generating from packed weights: each linear layer multiplies by its codes as they are, and fewer bytes are read for a token.

    bytes read for a token  =  all weights once, and the cache          time  >=  bytes read / bytes a second of the memory

One text at a time, a token takes each weight for one product: the memory sets the pace, not the arithmetic (qlab.matmul.roofline).
"""

import copy

import torch
from torch import nn

from qlab.llm.model import GPT
from qlab.matmul.int4_layer import pack_linears_
from qlab.nets.ptq import Quantized


def pack(q: Quantized, backend: str = "auto", accuracy_level: int = 4) -> nn.Module:
    """A copy of q.model whose quantized layers are `Int4Linear`; for inference. backend, accuracy_level: of qlab.matmul.int4.int4_matmul.

    q: of any method for weights (qlab.llm.weights, gptq, awq, hqq, ternary), with linear schemes of up to 8 bits; 3 bits are stored in 4,
    ternary weights in 2. It computes what q.model does as far as the backend does. Raises ValueError for a layer that cannot be packed.

    >>> from qlab.llm import weights
    >>> q = weights.quantize(nn.Sequential(nn.Linear(64, 10)), bits=4, group_size=32)
    >>> pack(q)[0]
    Int4Linear(in_features=64, out_features=10, bias=True, bits=4, group_size=32)
    """
    if not isinstance(q, Quantized):
        raise TypeError(f"q is a {type(q).__name__}, and must be what a method for weights returns, weights.quantize for example.")
    copied = copy.deepcopy(q.model)
    if left := pack_linears_(copied, q.tensors, backend, accuracy_level):
        name, why = next(iter(left.items()))
        raise ValueError(f"{name} cannot be packed: {why}.")
    return copied.eval()


def read_nbytes(model: GPT) -> int:
    """Bytes of weights that are read for each new token, of a GPT with layers of floats, `Int8Linear` or `Int4Linear`.

    All of them, the tied embedding for the logits; of an embedding that is not tied, and of the turns, one row. The cache comes on top:
    `kv_cache.cache_nbytes`.

    >>> from qlab.llm.model import Config
    >>> read_nbytes(GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=2, hidden=16, context=32)))   # 744 weights, a turn
    2992
    """
    if not isinstance(model, GPT):
        raise TypeError(f"model is a {type(model).__name__}, and must be a GPT of qlab.llm.model.")
    held: dict[int, torch.Tensor] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    total = sum(t.nbytes for t in held.values()) - model.turn.nbytes + model.turn[0].nbytes
    embedding = model.embedding.weight
    return total if model.head is None else total - embedding.nbytes + embedding[0].nbytes
