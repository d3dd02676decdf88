"""Post-training quantization of a whole network's weights.

Batch norm is an affine map of each channel, so in evaluation mode it folds into the convolution before it (Jacob et al. 2018, eq. 14):

    w' = w * gamma / sqrt(var + eps)          b' = beta + (b - mean) * gamma / sqrt(var + eps)

The folded weight is what a device stores and multiplies. Its channels' ranges carry each channel's gamma / sqrt(var), which differ.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from qlab.nets.graph import LAYERS, folding_pairs, trace
from qlab.quant import QTensor


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in which every BatchNorm2d that a Conv2d feeds is folded into it and gone (an Identity is in its place).

    The copy is in evaluation mode and computes the same logits up to rounding. Raises ValueError for a batch norm without running
    statistics, one that no convolution feeds, or a network that qlab.nets.graph cannot read.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> fold_batch_norm(net)
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    pairs = folding_pairs(trace(model))
    model = copy.deepcopy(model).eval()
    for conv, bn in pairs:
        _fold(model.get_submodule(conv.target), model.get_submodule(bn.target))
        parent, _, child = bn.target.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


@torch.no_grad()
def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    gamma = torch.ones_like(bn.running_var) if bn.weight is None else bn.weight
    beta = torch.zeros_like(bn.running_var) if bn.bias is None else bn.bias
    factor = gamma / (bn.running_var + bn.eps).sqrt()
    bias = torch.zeros_like(beta) if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(beta + (bias - bn.running_mean) * factor, requires_grad=conv.weight.requires_grad)
    conv.weight.mul_(factor[:, None, None, None])


@dataclass(frozen=True)
class QuantizedWeights:
    """model: a network with decoded weights (float arithmetic: it shows accuracy, never speed). tensors: the QTensor of each layer.

    nbytes: the network as a file would hold it, in bytes: quantized weights with their scales or codebooks, everything else as it is.
    """

    model: nn.Module
    tensors: dict[str, QTensor]
    nbytes: int


def quantize_weights(model: nn.Module, quantizer: Callable[[torch.Tensor], QTensor], skip: tuple[str, ...] = ()) -> QuantizedWeights:
    """Quantize the weight of every Conv2d and Linear, but those named in skip, with any function from a tensor to a QTensor.

    Biases stay as they are. The model given is not changed. Raises ValueError for a name in skip that is no such layer.

    >>> from qlab.quant import linear
    >>> q = quantize_weights(nn.Linear(100, 10), lambda w: linear.quantize(w, 4, "symmetric", axis=0))
    >>> q.nbytes                  # 1000 codes of 4 bits, 10 float32 scales, 10 float32 biases
    580
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    unknown = sorted(set(skip) - set(layers))
    if unknown:
        raise ValueError(f"skip names {', '.join(unknown)}, and may name {', '.join(layers)}.")
    quantized = copy.deepcopy(model)
    tensors, nbytes, done = {}, 0, {}
    for name in layers:
        weight = layers[name].weight
        if name in skip:
            continue
        if id(weight) not in done:  # layers that share a weight share its codes
            done[id(weight)] = quantizer(weight)
            nbytes += done[id(weight)].nbytes
        tensors[name] = done[id(weight)]
        with torch.no_grad():
            quantized.get_submodule(name).weight.copy_(tensors[name].dequantize())
    rest = {id(t): t for t in [*model.parameters(), *model.buffers()] if id(t) not in done}
    nbytes += sum(t.numel() * t.element_size() for t in rest.values())
    return QuantizedWeights(quantized, tensors, nbytes)
