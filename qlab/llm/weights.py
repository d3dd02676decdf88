"""A model whose weights alone are quantized: what all methods for weights share, and rounding to nearest, which they have to beat.

    w_hat  =  the level nearest to w,   on a grid for each row (output channel), or for each group of group_size weights of a row

A method is a function from a weight, (out, in) of a linear layer, to a QTensor; it may choose the grid, the levels on it, or both. The
embedding stays in floats, and so does a linear layer that shares its weight with it: the logits depend on it directly, and the first
layer reads it.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from qlab.nets import ptq
from qlab.nets.plain import LAYERS, memory_of
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor, formats, kmeans, linear, ternary
from qlab.quant import ranges as ranges_of
from qlab.quant.layout import as_float, check_layout, check_name
from qlab.quant.qtensor import FORMATS

RANGES = ("max", "mse")
SCHEMES = (*linear.SCHEMES, "kmeans", "ternary", *FORMATS)


def round_to_nearest(weight, bits: int | None = None, group_size: int | None = None, scheme: str = "symmetric", ranges: str = "max",
                     scale_dtype: torch.dtype | None = None) -> QTensor:
    """weight (out, in) or (out, in, height, width), each value to the nearest level of its row's grid, or of its group's.

    bits: 4 unless given. group_size: weights of a row that share a grid; it must divide the row. scheme: of qlab.quant.linear, "kmeans",
    "ternary", or a format of qlab.quant.formats; the latter have bits, and perhaps groups, of their own. ranges: "max", the grid reaches
    to the outermost weights; "mse", it is shrunk to the least squared error (qlab.quant.ranges.mse). scale_dtype: what scales are stored
    as, float32 unless given.
    Raises TypeError for a weight that is not floating point; ValueError for NaN or infinity, and whatever else does not fit.

    >>> q = round_to_nearest(torch.tensor([[0.1, -0.9, 2.0, 7.0]]), bits=4, group_size=2)
    >>> q.codes.tolist(), q.nbytes                                           # four codes of 4 bits, two float32 scales
    ([[1, -7, 2, 7]], 10)
    """
    weight = as_float(weight, "weight")
    if weight.dim() < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, and must be (out, in), or (out, in, height, width) of a convolution.")
    check_name("scheme", scheme, SCHEMES)
    check_name("ranges", ranges, RANGES)
    check_layout(weight.shape, 0, group_size)
    own = {"ternary": ternary.TERNARY, **FORMATS}.get(scheme)
    if own is not None and bits not in (None, own):
        raise ValueError(f"bits is {bits!r}, and must be {own:g}, or left out, for {scheme}.")
    if scheme not in linear.SCHEMES and ranges != "max":
        raise ValueError(f"ranges is {ranges!r}, and must be 'max' for {scheme}: only evenly spaced levels are shrunk.")
    if scheme == "kmeans" and scale_dtype is not None:
        raise ValueError(f"scale_dtype is {scale_dtype}, and must be None for kmeans, which has a codebook and no scale.")
    if scheme in FORMATS:
        return formats.quantize(weight, scheme, axis=0, group_size=group_size, scale_dtype=scale_dtype)
    if scheme == "ternary":
        return ternary.quantize(weight, axis=0, group_size=group_size, scale_dtype=scale_dtype)
    if scheme == "kmeans":
        return kmeans.quantize(weight, 4 if bits is None else bits, axis=0, group_size=group_size)
    bits, low, high = 4 if bits is None else bits, None, None
    if ranges == "mse" and weight.numel():
        rows = weight.reshape(-1, group_size or weight[0].numel())
        shape = (len(weight), -1) if group_size else (-1,)
        low, high = (end.reshape(shape) for end in ranges_of.mse(rows, bits, scheme, axis=0))
    return linear.quantize(weight, bits, scheme, axis=0, group_size=group_size, x_min=low, x_max=high, scale_dtype=scale_dtype)


def quantize(model: nn.Module, bits: int | None = None, group_size: int | None = None, scheme: str = "symmetric", ranges: str = "max",
             scale_dtype: torch.dtype | None = None, skip: tuple[str, ...] = ()) -> Quantized:
    """A copy of the model with every weight rounded to nearest, its codes and its true bytes: see `round_to_nearest`, `quantize_weights`.

    >>> q = quantize(nn.Sequential(nn.Linear(64, 10, bias=False)), bits=4, group_size=32, scale_dtype=torch.float16)
    >>> q.nbytes                                                             # 640 codes of 4 bits, 20 float16 scales
    360
    """
    return quantize_weights(model, lambda weight: round_to_nearest(weight, bits, group_size, scheme, ranges, scale_dtype), skip)


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
    names, kept = choose(model, skip)
    if isinstance(how, dict):
        kept = {name: why for name, why in kept.items() if name not in how}
    made = ptq.quantize_weights(model, how, tuple(kept))
    return replace(made, left=made.left | kept)


def choose(model: nn.Module, skip: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """The names of the layers whose weights are to be quantized; of those that are not, name and why.

    Raises TypeError for what is no module; ValueError for one without such a layer, one on the meta device, or a name in skip that is none.

    >>> net = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "fc": nn.Linear(4, 4), "head": nn.Linear(4, 10, bias=False)})
    >>> net["head"].weight = net["embedding"].weight
    >>> choose(net)
    (['fc'], {'head': 'shares its weight with embedding'})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    layers, embeddings = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, *LAYERS)):
            weight = module._parameters.get("weight")                                       # None where it is made anew in each forward
            (embeddings if isinstance(module, nn.Embedding) else layers)[name] = memory_of(weight) if weight is not None else None
    if not layers:
        raise ValueError(f"the model, a {type(model).__name__}, has no {', '.join(layer.__name__ for layer in LAYERS)}, and must have one "
                         "for its weights to be quantized.")
    check_values(model)
    if isinstance(skip, str) or not isinstance(skip, Collection):
        raise TypeError(f"skip is {skip!r}, and must be a tuple of names{f': ({skip!r},)' if isinstance(skip, str) else ''}.")
    if unknown := sorted(set(skip) - set(layers)):
        raise ValueError(f"skip names {', '.join(unknown)}, and may name {', '.join(layers)}.")
    held = {memory: name for name, memory in embeddings.items() if memory is not None}
    kept = {name: f"shares its weight with {held[memory]}" for name, memory in layers.items() if memory in held}
    kept |= dict.fromkeys(skip, "named in skip")
    return [name for name in layers if name not in kept], kept


def check_values(model: nn.Module) -> None:
    """Raises ValueError, by name, for a parameter that has no values: on the meta device, or of a lazy layer that has not run."""
    for name, p in model.named_parameters():
        if p.is_meta or isinstance(p, UninitializedParameter):
            raise ValueError(f"{name} has no values (it is on the meta device, or of a layer that has not run): load the model first.")
