"""What calibration inputs say about the error of a layer's weights: the Hessian of its output's squared error.

    || W X - W_hat X ||**2  =  sum over the rows d of W - W_hat:  d H d^T / 2,          H  =  2 X X^T

H[i, i] is the mean power of input i; H[i, j] says how much of an error on weight i one on weight j can undo. All rows have the same H.
A convolution is a linear layer of the patches that its filters meet. Each group of channels has inputs, and so a Hessian, of its own.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import pad, unfold

from qlab.nets.plain import CONVOLUTIONS
from qlab.quant.layout import as_float

AT_ONCE = 1 << 22                                                                           # numbers in one product of inputs


def hessian_of(x, layer: nn.Module | None = None) -> torch.Tensor:
    """2 X X^T / n of the n vectors x (..., in) that a linear layer was given: float64 (in, in).

    layer: a convolution, for which x is its input, (images, channels, height, width) or (images, channels, length), and the vectors are
    the patches that its filters meet; with groups of channels the result is (groups, in, in), in = channels / groups * height * width of
    a filter. Raises TypeError for x that is not floating point, ValueError for another shape.

    >>> hessian_of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([[10.,  2.],
            [ 2.,  4.]], dtype=torch.float64)
    """
    total, count = 0, 0
    for vectors in _vectors(as_float(x), layer):  # (groups, vectors, in)
        wide = vectors.double()
        total, count = total + wide.mT @ wide, count + vectors.shape[1]
    return (2 / max(1, count) * total).squeeze(0)


def _vectors(x: torch.Tensor, layer: nn.Module | None) -> Iterator[torch.Tensor]:
    if not isinstance(layer, CONVOLUTIONS):
        if not x.dim() or not x.shape[-1]:
            raise ValueError(f"x has shape {tuple(x.shape)}, and must be (..., in), vectors of at least one number.")
        yield from x.reshape(1, -1, x.shape[-1]).split(max(1, AT_ONCE // max(1, x.shape[-1])), 1)
        return
    two = len(layer.kernel_size) == 2
    size, stride, dilation = (t if two else (1, *t) for t in (layer.kernel_size, layer.stride, layer.dilation))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = x[None] if x.dim() == len(layer.kernel_size) + 1 else x                             # one image alone
    if x.dim() != len(layer.kernel_size) + 2 or x.shape[1] != layer.in_channels:
        rest = "height, width" if two else "length"
        raise ValueError(f"x has shape {tuple(x.shape)}, and must be (images, {layer.in_channels}, {rest}).")
    for images in x.split(max(1, AT_ONCE // max(1, x[0].numel() * size[0] * size[1]))):
        images = pad(images, layer._reversed_padding_repeated_twice, mode)
        patches = unfold(images if two else images.unsqueeze(2), size, dilation, 0, stride)  # (images, channels * filter, places)
        yield patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def output_error(weight, approximation, hessian) -> float:
    """|| W X - W_hat X ||**2 / || W X ||**2 from the inputs' Hessian: weight, approximation (out, in); 0 where both products are 0.

    hessian: (in, in), or (groups, in, in) for equal parts of the rows. Raises ValueError for shapes that do not fit.

    >>> output_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]]), torch.eye(2))
    0.04
    """
    weight, approximation, hessian = (as_float(t).double() for t in (weight, approximation, hessian))
    parts = hessian.shape[:-2]
    fit = weight.dim() == 2 and approximation.shape == weight.shape and hessian.shape[-2:] == (weight.shape[1],) * 2
    if not fit or len(parts) > 1 or parts and (not parts[0] or len(weight) % parts[0]):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, approximation {tuple(approximation.shape)} and hessian "
                         f"{tuple(hessian.shape)}: they must be (out, in), twice, and (in, in).")

    def power(w):
        w = w.unflatten(0, (*parts, -1)) if parts else w
        return ((w @ hessian) * w).sum().item()

    lost = power(weight - approximation)
    whole = power(weight)
    return lost / whole if whole else math.inf if lost else 0.0
