"""QLoRA (Dettmers et al. 2023): a frozen model in four bits, and a low-rank part beside each of its matrices, which alone is trained.

    y  =  x W_hat^T  +  alpha / r * (x A^T) B^T + b         A: (r, in), random; B: (out, r), zeros         LoRA: Hu et al. 2021, eq. 3

W_hat is in NF4 with its scales in 8 bits, 4.127 bits a weight, and is decoded for each product. B begins at 0, so the model begins as W_hat
has it. What is saved is not the weights alone: gradients and AdamW's two moments are kept of A and B, and of nothing else.

    tuned = lora.prepare(model, rank=8)                    # a copy; the model stays as it is
    training.fit(tuned, tokens, steps=100, max_lr=1e-3)    # trains A and B
    lora.merge(tuned)                                      # one matrix a layer again: float, for it is on no grid

A state dict of the copy holds A and B and what was never coded; W_hat is made again from the same model.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from qlab.llm.double_quantization import DoubleQuantized, nf4
from qlab.llm.targets import check_module, exchange, select
from qlab.nets.plain import plain_copy
from qlab.quant import QTensor
from qlab.quant.layout import generator
from qlab.quant.settled import Settled


class LoraLinear(Settled):
    """A linear layer of frozen codes with a low-rank part: base (QTensor or DoubleQuantized), a (rank, in), b (out, rank), bias, frozen.

    a and b are float32 (float64 beside float64 weights), and stay so in half(). x (..., in) to (..., out) of x's dtype.
    """

    settings_required = False  # a file that holds a and b alone is taken as it is

    def __init__(self, base: QTensor | DoubleQuantized, bias: torch.Tensor | None, rank: int, alpha: float,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        out_features, in_features = base.shape
        weight = base.dequantize()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.a = nn.Parameter(torch.empty(rank, in_features, dtype=dtype))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)               # uniform within 1 / sqrt(in), as nn.Linear's
        self.b = nn.Parameter(torch.zeros(out_features, rank, dtype=dtype))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.merged: torch.Tensor | None = None
        self.to(weight.device)

    def settings(self) -> dict:
        return {"rank": self.rank, "alpha": self.alpha}

    def weight(self) -> torch.Tensor:
        """W_hat + alpha / rank * B A, (out, in), float32 or float64: the one matrix that computes the same."""
        return self.base.dequantize().to(self.a.dtype) + self.alpha / self.rank * self.b @ self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.merged is not None:
            return linear(x, self.merged.to(x.dtype), bias)
        y = linear(x, self.base.dequantize().to(x.dtype), bias)
        return y + self.alpha / self.rank * linear(linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.base = self.base.to(self.a.device)                                             # no buffers: a file of a and b is small
        self.merged = None if self.merged is None else self.merged.to(self.a.device)
        return self

    def extra_repr(self) -> str:
        out_features, in_features = self.base.shape
        return f"in_features={in_features}, out_features={out_features}, rank={self.rank}, alpha={self.alpha:g}"


def prepare(model: nn.Module, rank: int = 8, alpha: float = 16.0, targets: tuple[str, ...] | None = None,
            base: Callable[[torch.Tensor], QTensor | DoubleQuantized] = nf4, seed: int = 0) -> nn.Module:
    """A copy with a LoraLinear in the place of linear layers, in which only A and B require a gradient.

    targets: names, or ends of names ("query"), of any model's linear layers; by default all but those that share an embedding's weight.
    Other layers keep their floats, frozen. base: what makes codes of a weight (out, in), any function to a QTensor. alpha / rank is the
    weight of the low-rank part. The same seed gives the same A.
    Raises ValueError for a rank below 1 or above a matrix's smaller side, alpha that is not above 0, a target that no layer has, a model
    without linear layers, and, with the layer's name, what base refuses (a group that does not divide, NaN).

    >>> prepare(nn.Sequential(nn.Linear(64, 32), nn.ReLU()), rank=4)[0]
    LoraLinear(in_features=64, out_features=32, rank=4, alpha=16)
    """
    copied, layers = select(model, targets)
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
        raise ValueError(f"rank is {rank!r}, and must be a whole number of at least 1.")
    for name, layer in layers.items():
        if rank > min(layer.weight.shape):
            raise ValueError(f"rank is {rank}, and must be at most {min(layer.weight.shape)}, the smaller side of {name or 'the layer'}.")
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}, and must be a number above 0.")
    if not callable(base):
        raise TypeError(f"base is a {type(base).__name__}, and must be a function from a weight to a QTensor.")
    random = generator(seed)

    def make(name, layer):
        try:
            q = base(layer.weight.detach())
        except (ValueError, TypeError) as error:
            raise type(error)(f"the weight of {name or 'the layer'} cannot be quantized: {error}") from None
        if not isinstance(q, (QTensor, DoubleQuantized)) or q.shape != layer.weight.shape:
            raise TypeError(f"base returns a {type(q).__name__} for {name or 'the layer'}, and must return a QTensor of its shape.")
        return LoraLinear(q, layer.bias, int(rank), float(alpha), random)

    prepared = exchange(copied, layers, make).requires_grad_(False)
    for layer in _layers(prepared):
        layer.a.requires_grad_(True)
        layer.b.requires_grad_(True)
    return prepared


def merge(model: nn.Module) -> None:
    """Each LoraLinear computes with one matrix from here on, in place: faster, and for use, not for training. See `unmerge`.

    The matrix is float: W_hat + alpha / rank * B A lies on no grid. Raises ValueError for a model without LoraLinear.

    >>> model = prepare(nn.Sequential(nn.Linear(64, 32)), rank=4)
    >>> merge(model)
    >>> model[0].merged.shape
    torch.Size([32, 64])
    """
    for layer in _layers(model):
        layer.merged = layer.weight().detach()


def unmerge(model: nn.Module) -> None:
    """Takes back what `merge` did, exactly: codes, A and B were there all the time. Raises ValueError for a model without LoraLinear."""
    for layer in _layers(model):
        layer.merged = None


def plain(model: nn.Module) -> nn.Module:
    """A copy with ordinary linear layers of the merged weights, in the dtype of what they were made of; nothing requires a gradient.

    Raises ValueError for a model without LoraLinear.

    >>> plain(prepare(nn.Sequential(nn.Linear(64, 32)), rank=4))
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
    )
    """
    _layers(model)

    def make(name, layer):
        out_features, in_features = layer.base.shape
        made = nn.Linear(in_features, out_features, layer.bias is not None, device="meta")
        made.weight = nn.Parameter(layer.weight().detach().to(layer.base.dequantize().dtype))
        made.bias = layer.bias
        return made

    copied = plain_copy(model)
    return exchange(copied, {name: m for name, m in copied.named_modules() if isinstance(m, LoraLinear)}, make).requires_grad_(False)


class Bytes(NamedTuple):
    """codes: of the frozen layers, with scales; floats: all else that is frozen; trained: what requires a gradient; gradients: of it;
    optimizer: AdamW's two moments of it."""

    codes: int
    floats: int
    trained: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return sum(self)


def training_nbytes(model: nn.Module) -> Bytes:
    """What training a model keeps in memory beside activations, in bytes; of any model, so that the float one stands beside it.

    >>> training_nbytes(nn.Linear(64, 32, bias=False))
    Bytes(codes=0, floats=0, trained=8192, gradients=8192, optimizer=16384)
    >>> training_nbytes(prepare(nn.Linear(64, 32, bias=False), rank=4))
    Bytes(codes=1064, floats=0, trained=1536, gradients=1536, optimizer=3072)
    """
    check_module(model)
    codes = sum(m.base.nbytes for m in model.modules() if isinstance(m, LoraLinear))
    held = [*model.parameters(), *model.buffers()]
    trained = sum(t.nbytes for t in held if t.requires_grad)
    return Bytes(codes, sum(t.nbytes for t in held if not t.requires_grad), trained, trained, 2 * trained)


def _layers(model: nn.Module) -> list[LoraLinear]:
    check_module(model)
    found = [m for m in model.modules() if isinstance(m, LoraLinear)]
    if not found:
        raise ValueError(f"the model, a {type(model).__name__}, has no LoraLinear: prepare it first.")
    return found
