"""SmoothQuant (Xiao et al. 2022): some channels of the activations are loud, none of the weights is; so scale from one to the other.

    y  =  (x / s) @ (s * W).T                                                               eq. 3
    s[j]  =  max|x[:, j]|**alpha / max|W[:, j]|**(1 - alpha)                                eq. 4

alpha 0 makes the columns of the weights equally loud and 1 the channels of the activations; at 0.5 both share what is difficult:
max|x[j] / s[j]| and max|s[j] W[:, j]| are then equal, sqrt(max|x[:, j]| max|W[:, j]|). The division is folded into the norm before.

    smoothed = smoothquant.smooth(model, calibration)                                       # the same function
    w8 = weights.quantize(smoothed, 8).model
    w8a8 = activations.quantize(w8, 8, "static", calibration)
"""

from collections.abc import Iterable
from numbers import Real

import torch
from torch import nn

from qlab.llm import scaling
from qlab.llm.activations import batches_of, watch
from qlab.quant.layout import as_float


def factors(x_amax, w_amax, alpha: float = 0.5) -> torch.Tensor:
    """s of each channel, float64 (channels,), from max|x| and max|W| of each. A channel that is 0 in one of them keeps 1: s is arbitrary.

    Raises ValueError for alpha outside [0, 1], two shapes, NaN, infinity or negative numbers.

    >>> factors([16.0, 1.0, 0.0], [1.0, 4.0, 2.0])
    tensor([4.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}, and must be from 0 to 1.")
    x, w = as_float(x_amax, "x_amax").double(), as_float(w_amax, "w_amax").double()
    if x.shape != w.shape:
        raise ValueError(f"x_amax has shape {tuple(x.shape)} and w_amax {tuple(w.shape)}, and both must have one value for each channel.")
    for name, values in (("x_amax", x), ("w_amax", w)):
        if not bool(((values >= 0) & values.isfinite()).all()):
            raise ValueError(f"{name} holds NaN, infinity or a negative number, and must hold the largest magnitudes.")
    return torch.where((x > 0) & (w > 0), x**alpha / w ** (1 - alpha), 1.0)


def smooth(model: nn.Module, batches, alpha: float = 0.5, pairs: Iterable | None = None) -> nn.Module:
    """A copy that computes the same, up to rounding, with the loudness of channels shared between activations and weights.

    batches: what the model is called with, tokens (n, length) or several such tensors, from a text that nothing is measured on. pairs:
    (norm or linear layer, [linear layers that read it]) by name, of any model; by default those of a GPT behind its norms, as in the paper.
    scaling.pairs(model, "norm", "output", "down") takes attention's output matrix and the down projection, too. The weights' ranges are
    taken when a pair's turn comes.

    Raises ValueError for another model without pairs, pairs that do not fit, no calibration tokens, alpha outside [0, 1], NaN or infinity,
    and where the copy would compute something else: the pairs then lack a reader.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))
    >>> _ = model[0].weight.data.copy_(torch.tensor([1.0, 100.0, 1.0, 1.0]))
    >>> x = torch.randn(50, 4)
    >>> smoothed = smooth(model, x, pairs=[("0", ["1"])])
    >>> bool(smoothed[0].weight.max() < 20), torch.allclose(smoothed(x), model(x), atol=1e-4)
    (True, True)
    """
    batches = batches_of(batches)
    factors([1.0], [1.0], alpha)
    pairs = scaling.checked(model, scaling.pairs(model) if pairs is None else pairs)
    high = input_amax(model, batches, {pair.readers[0] for pair in pairs})

    def of_pair(smoothed, pair):
        w = torch.stack([smoothed.get_submodule(name).weight.abs().amax(0) for name in pair.readers]).amax(0)
        channels = len(smoothed.get_submodule(pair.source).weight)
        x, w = (scaling.by_channel(pair.columns, values, channels, "amax") for values in (high[pair.readers[0]], w))
        return factors(x, w, alpha)

    return scaling.folded(model, pairs, of_pair, batches)


def input_amax(model: nn.Module, batches, names) -> dict[str, torch.Tensor]:
    """max|x| of each channel, (in_features,), that the linear layers of these names read in calibration.

    >>> input_amax(nn.Sequential(nn.Linear(2, 2)), torch.tensor([[1.0, -3.0], [2.0, 0.0]]), ["0"])
    {'0': tensor([2., 3.])}
    """
    high = {}

    def see(name, x):
        amax = x.abs().flatten(0, -2).amax(0)
        high[name] = torch.maximum(high.get(name, amax), amax)

    watch(model, batches, see, names)
    return high
