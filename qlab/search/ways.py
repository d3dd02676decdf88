"""Eleven ways to round a network's weights, from the cheapest to the dearest: what qlab.search.auto goes through.

    one scale a layer         to the largest weight; of least squared error; the channels equalized first; the biases corrected, too
    a scale a channel         to the largest weight; of least squared error
                              whichever moves the answers less: biases corrected; GPTQ; learned rounding (qlab.search.rounding)
    and bits by layer         an exact program on each layer's KL (qlab.search.sensitivity, allocate): biases corrected; learned rounding

Few large weights can matter more than the squared error of many small ones, which cuts them off; at very few bits it is the reverse. So
uniform bits get, for each layer, the ranges whose KL is less when this layer alone is rounded. Bits by layer do not: there the program
already chooses by these KLs, which do not add up, and a second choice by them trusts them too far: the depthwise net of the zoo loses.

The first take milliseconds and hardly an image. Learned rounding takes minutes, and knows what the rest does not: what becomes of the
output. Learned rounding comes before mixed widths, for on most networks it gains more, and then the widths gain less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx, nn

from qlab.llm.weights import choose
from qlab.nets.equalize import cross_layer_equalize, subtract_mean_error
from qlab.nets.graph import trace
from qlab.nets.plain import LAYERS
from qlab.nets.ptq import Quantized, quantize_weights
from qlab.quant import QTensor, linear
from qlab.quant import ranges as ranges_of
from qlab.search import rounding

Ranges = str | Mapping[str, str]
Make = Callable[[fx.GraphModule, Mapping[str, int], torch.Tensor, int, int, Ranges], Quantized]
BETTER = "better"


@dataclass(frozen=True)
class Way:
    """make(network, bits by layer, images, seed, steps of learning, ranges) -> Quantized. ranges: "max", "mse", or BETTER, for each layer
    the better of both. per_channel: has a scale a channel. mixed: is for bits that differ by layer. key: a short name, for files."""

    key: str
    name: str
    make: Make
    ranges: str = BETTER
    per_channel: bool = True
    mixed: bool = False


def per_tensor(weight: torch.Tensor, bits: int, ranges: str = "max") -> QTensor:
    """Symmetric codes and one scale, to the largest weight ("max") or of least squared error ("mse").

    >>> per_tensor(torch.tensor([[0.0, 1.0], [7.0, -3.0]]), 4).codes.tolist()
    [[0, 1], [7, -3]]
    """
    low, high = ranges_of.mse(weight, bits, "symmetric") if ranges == "mse" else (None, None)
    return linear.quantize(weight, bits, "symmetric", x_min=low, x_max=high)


def one_scale(network: fx.GraphModule, bits: Mapping[str, int], images: torch.Tensor, seed: int = 0, steps: int = 0, ranges: str = "mse",
              equalize: bool = False, correct: bool = False) -> Quantized:
    """One scale a layer. network: from graph.trace, batch norm folded; it is not changed. bits: of each layer that gets codes. images: for
    correct alone. seed and steps are not needed, and are there as every way has them.

    >>> net = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> one_scale(net, {"0": 2, "2": 8}, torch.rand(8, 4), equalize=True, correct=True).nbytes  # 4 + 8 of codes, 2 scales, 6 biases
    44
    """
    network = trace(network).requires_grad_(False)
    equalized = cross_layer_equalize(network) if equalize else None
    rest = tuple(name for name, layer in network.named_modules() if isinstance(layer, LAYERS) and name not in bits)
    made = quantize_weights(network, {name: partial(per_tensor, bits=b, ranges=ranges) for name, b in bits.items()}, rest)
    before = _bias_bytes(made.model)
    if correct:
        subtract_mean_error(network, made.model, list(images.split(128)))
    return Quantized(made.model, made.tensors, made.nbytes + _bias_bytes(made.model) - before, made.left, equalized)


def scale_a_channel(network: fx.GraphModule, bits: Mapping[str, int], images: torch.Tensor, seed: int = 0, steps: int = 400,
                    ranges: Ranges = "mse", method: str = "nearest") -> Quantized:
    """A scale a channel, and the codes of a method of qlab.search.rounding; seed, steps: of learning; ranges: for all layers, or by name.

    >>> net = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> scale_a_channel(net, {"0": 2, "2": 8}, torch.rand(8, 4)).nbytes      # 4 + 8 of codes, 6 scales, 6 biases
    60
    """
    skip = tuple(name for name in choose(network)[0] if name not in bits)
    options = {"seed": seed, "steps": steps} if method == "adaround" else {}
    made = rounding.quantize(network, images, bits, method, ranges, skip=skip, **options)
    return Quantized(made.model, made.tensors, made.nbytes, made.left)


def _bias_bytes(model: nn.Module) -> int:
    return sum(layer.bias.numel() * layer.bias.element_size() for layer in model.modules()
               if isinstance(layer, LAYERS) and layer.bias is not None)


WAYS = (
    Way("largest", "one scale a layer, to the largest weight", one_scale, "max", per_channel=False),
    Way("least-error", "one scale a layer, of least error", one_scale, "mse", per_channel=False),
    Way("equalized", "one scale a layer, equalized", partial(one_scale, equalize=True), "mse", per_channel=False),
    Way("equalized-corrected", "one scale a layer, equalized, biases corrected", partial(one_scale, equalize=True, correct=True), "mse",
        per_channel=False),
    Way("channel-largest", "a scale a channel, to the largest weight", scale_a_channel, "max"),
    Way("channel", "a scale a channel, of least error", scale_a_channel, "mse"),
    Way("corrected", "a scale a channel, biases corrected", partial(scale_a_channel, method="corrected")),
    Way("gptq", "a scale a channel, GPTQ", partial(scale_a_channel, method="gptq")),
    Way("learned", "a scale a channel, learned rounding", partial(scale_a_channel, method="adaround")),
    Way("mixed-corrected", "by layer, biases corrected", partial(scale_a_channel, method="corrected"), "mse", mixed=True),
    Way("mixed-learned", "by layer, learned rounding", partial(scale_a_channel, method="adaround"), "mse", mixed=True),
)
