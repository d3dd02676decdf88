"""A model whose weights alone are quantized: what all methods for weights share, and rounding to nearest, which they have to beat.

    w_hat  =  the level nearest to w,   on a grid for each row (output channel), or for each group of group_size weights of a row

A method is a function from a weight, (out, in) of a linear layer, to a QTensor; it may choose the grid, the levels on it, or both. The
embedding stays in floats, and so does a linear layer that shares its weight with it: the logits depend on it directly, and the first
layer reads it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from qlab.nets import ptq
from qlab.nets.plain import LAYERS, memory_of
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor, kmeans, linear
from qlab.quant import ranges as ranges_of
from qlab.quant.layout import as_float, check_layout

RANGES = ("max", "mse")
SCHEMES = (*linear.SCHEMES, "kmeans")


def round_to_nearest(weight, bits: int = 4, group_size: int | None = None, scheme: str = "symmetric", ranges: str = "max") -> QTensor:
    """weight (out, in) or (out, in, height, width), each value to the nearest level of its row's grid, or of its group's.

    group_size: weights of a row that share a grid; it must divide the row. scheme: of qlab.quant.linear, or kmeans. ranges: "max", the
    grid reaches to the outermost weights; "mse", it is shrunk to the least squared error (qlab.quant.ranges.mse). Raises TypeError for a
    weight that is not floating point; ValueError for NaN or infinity, a weight of one dimension, and whatever else does not fit.

    >>> q = round_to_nearest(torch.tensor([[0.1, -0.9, 2.0, 7.0]]), bits=4, group_size=2)
    >>> q.codes.tolist(), q.nbytes                                           # four codes of 4 bits, two float32 scales
    ([[1, -7, 2, 7]], 10)
    """
    weight = as_float(weight, "weight")
    if weight.dim() < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, and must be (out, in), or (out, in, height, width) of a convolution.")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}, and must be one of {', '.join(SCHEMES)}.")
    if ranges not in RANGES:
        raise ValueError(f"ranges is {ranges!r}, and must be one of {', '.join(RANGES)}.")
    check_layout(weight.shape, 0, group_size)
    if scheme == "kmeans":
        if ranges != "max":
            raise ValueError(f"ranges is {ranges!r}, and must be 'max' for kmeans, whose levels are the best already.")
        return kmeans.quantize(weight, bits, axis=0, group_size=group_size)
    low = high = None
    if ranges == "mse" and weight.numel():
        rows = weight.reshape(-1, group_size or weight[0].numel())
        shape = (len(weight), -1) if group_size else (-1,)
        low, high = (end.reshape(shape) for end in ranges_of.mse(rows, bits, scheme, axis=0))
    return linear.quantize(weight, bits, scheme, axis=0, group_size=group_size, x_min=low, x_max=high)


def quantize(model: nn.Module, bits: int = 4, group_size: int | None = None, scheme: str = "symmetric", ranges: str = "max",
             skip: tuple[str, ...] = ()) -> Quantized:
    """A copy of the model with every weight rounded to nearest, its codes and its true bytes: see `round_to_nearest`, `quantize_weights`.

    >>> q = quantize(nn.Sequential(nn.Linear(64, 10, bias=False)), bits=4, group_size=32)
    >>> q.nbytes                                                             # 640 codes of 4 bits, 20 float32 scales
    400
    """
    return quantize_weights(model, lambda weight: round_to_nearest(weight, bits, group_size, scheme, ranges), skip)


def quantize_weights(model: nn.Module, how: Callable[[torch.Tensor], QTensor] | dict[str, Callable[[torch.Tensor], QTensor]],
                     skip: tuple[str, ...] = ()) -> Quantized:
    """A copy of the model in which each linear layer (and convolution) computes with the weight that how(weight) decodes to.

    how: one function for all layers, or one for each by its name. skip: names of layers that keep their floats; so do embeddings, and
    layers that share a weight with one. The result has the copy (`model`), each layer's QTensor by name (`tensors`), the bytes of it all
    as a file would hold it (`nbytes`), and what was left, and why (`left`). The given model is not changed.

    Raises ValueError for a model without such a layer, a name in skip that is none, and, with the layer's name, whatever how refuses.

    >>> q = quantize_weights(nn.Linear(100, 10, bias=False), lambda w: linear.quantize(w, 4, "symmetric", axis=0))
    >>> q.nbytes, list(q.tensors)
    (540, [''])
    """
    check_layers(model)
    if isinstance(skip, str):
        raise TypeError(f"skip is {skip!r}, and must be a tuple of names: ({skip!r},).")
    held = tied(model)
    if isinstance(how, dict):
        held = {name: other for name, other in held.items() if name not in how}
    made = ptq.quantize_weights(model, how, tuple({*skip, *held}))
    return replace(made, left=made.left | {name: f"shares its weight with {other}" for name, other in held.items() if name not in skip})


def check_layers(model: nn.Module) -> None:
    """Raises TypeError for what is no module, ValueError for one without a layer whose weight could be quantized."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        raise ValueError(f"the model, a {type(model).__name__}, has no {', '.join(layer.__name__ for layer in LAYERS)}, and must have one "
                         "for its weights to be quantized.")


def tied(model: nn.Module) -> dict[str, str]:
    """The layers that share their weight with an embedding, and its name.

    >>> net = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    >>> net["head"].weight = net["embedding"].weight
    >>> tied(net)
    {'head': 'embedding'}
    """
    layers, embeddings = {}, {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and isinstance(module, (nn.Embedding, *LAYERS)):
            (embeddings if isinstance(module, nn.Embedding) else layers)[name] = memory_of(weight)
    names = {memory: name for name, memory in embeddings.items()}
    return {name: names[memory] for name, memory in layers.items() if memory in names}
