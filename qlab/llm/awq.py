"""AWQ (Lin et al. 2023): weights that multiply loud channels matter most; so scale those columns up before rounding, and x down.

    s*  =  argmin  || Q(W s) (x / s) - W x ||               eq. 4
    s   =  mean|x|**a,   a* = argmin over [0, 1]            eq. 5: 20 steps, the same a for all channels of a layer

A weight's error is at most half a step of its group, and s[j] > 1 divides what comes of it in column j by s[j], as long as the group's
largest weight, and so its step, hardly grow. a = 0 is rounding to nearest. What is to be multiplied into x is folded into the layer before
(qlab.llm.scaling), so nothing is computed more than before.

The squared error of a layer over all calibration tokens needs their second moments alone:

    || X E.T ||**2  =  trace(E G E.T),   G = X.T X,   E = Q(W s) / s - W
"""

from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral
from typing import NamedTuple

import torch
from torch import nn

from qlab.llm import scaling
from qlab.llm.activations import batches_of, watch
from qlab.llm.weights import choose, quantize_weights, round_to_nearest
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor, linear
from qlab.quant.layout import as_float, check_layout


class Moments(NamedTuple):
    """Of what a layer reads in calibration: mean, mean|x| of each channel, float64 (in,); gram, X.T X / tokens, float64 (in, in)."""

    mean: torch.Tensor
    gram: torch.Tensor


class Found(NamedTuple):
    """s: float64 (channels,); exponent: the a it was made with; errors: the squared error at each a that was tried, 0, 1/steps, ..."""

    s: torch.Tensor
    exponent: float
    errors: list[float]


class Scaled(NamedTuple):
    """model: the copy, in floats, the same function; found: by the name of each pair's source."""

    model: nn.Module
    found: dict[str, Found]


def moments(model: nn.Module, batches, names: Iterable[str] | None = None) -> dict[str, Moments]:
    """The moments of what linear layers of these names read, by default of all that are called; sums are taken in float64.

    Raises ValueError as `activations.watch` does: no tokens, NaN, one of the names that is not called.

    >>> moments(nn.Sequential(nn.Linear(2, 1)), torch.tensor([[1.0, -2.0], [3.0, 0.0]]), ["0"])["0"].gram.tolist()
    [[5.0, -1.0], [-1.0, 2.0]]
    """
    sums = {}

    def see(name, x):
        x = x.flatten(0, -2).double()
        count, mean, gram = sums.get(name, (0, 0, 0))
        sums[name] = count + len(x), mean + x.abs().sum(0), gram + x.T @ x

    watch(model, batches, see, names)
    return {name: Moments(mean / count, gram / count) for name, (count, mean, gram) in sums.items()}


def search(weights: list[torch.Tensor], read: Moments, how: Callable[[torch.Tensor], QTensor], steps: int = 20,
           columns: torch.Tensor | None = None) -> Found:
    """The best s of equation 5 for layers that read the same, weights (out, in) each, whose errors are added.

    how: rounds a weight. s is divided by the root of its largest times its smallest, as its size changes nothing that has scales; channels
    in which calibration saw only 0 keep 1. columns: which channel each column reads, as in scaling.Pair. Raises ValueError for steps
    below 1.

    >>> weight, x = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.1, 40.0]])                 # the small weight reads the loud channel
    >>> found = search([weight], Moments(x.abs().mean(0), x.T @ x), lambda w: linear.quantize(w, 2, "symmetric"))
    >>> found.exponent > 0, found.errors[0] > min(found.errors)
    (True, True)
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps is {steps!r}, and must be a whole number of at least 1.")
    if not callable(how):
        raise TypeError(f"how is a {type(how).__name__}, and must be a function from a weight to a QTensor.")
    if columns is None:
        columns = torch.arange(len(read.mean))
    x = scaling.by_channel(columns, read.mean.double(), int(columns.max()) + 1, "mean")
    best, errors = None, []
    for step in range(steps):
        s = _factors(x, step / steps)
        errors.append(sum(_error(weight, s[columns], read.gram.double(), how) for weight in weights))
        if best is None or errors[-1] < errors[best[0]]:
            best = step, s
    return Found(best[1], best[0] / steps, errors)


def _factors(x: torch.Tensor, a: float) -> torch.Tensor:
    alive = x > 0
    s = x.pow(a).clamp(min=1e-4)
    if alive.any():
        s = s / (s[alive].max() * s[alive].min()).sqrt()
    return torch.where(alive, s, 1.0)


def _error(weight: torch.Tensor, s: torch.Tensor, gram: torch.Tensor, how: Callable[[torch.Tensor], QTensor]) -> float:
    rounded = how((weight.detach().double() * s).to(weight.dtype)).dequantize()
    e = rounded.double() / s - weight.detach().double()
    return float(((e @ gram) * e).sum())


def scale(model: nn.Module, batches, how: Callable[[torch.Tensor], QTensor], pairs: Iterable | None = None, steps: int = 20) -> Scaled:
    """A copy in floats that computes the same, up to rounding, and loses least when `how` rounds its weights.

    batches: what the model is called with, tokens (n, length) or several such tensors, from a text that nothing is measured on. how: what
    will quantize each weight. pairs: (norm or linear layer, [linear layers that read it]) by name, of any model; by default those of a GPT,
    the attention's output and the down projection among them. A pair's factors are searched when its turn comes, on weights that the pairs
    before have scaled.

    Raises ValueError for another model without pairs, pairs that do not fit, no calibration tokens, steps below 1, NaN or infinity, what
    `how` refuses, and where the copy would compute something else: the pairs then lack a reader.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))
    >>> list(scale(model, torch.randn(50, 4), lambda w: linear.quantize(w, 3, "symmetric", axis=0), [("0", ["1"])]).found)
    ['0']
    """
    batches = batches_of(batches)
    pairs = scaling.checked(model, scaling.pairs(model, *scaling.PLACES) if pairs is None else pairs)
    read, found = moments(model, batches, {pair.readers[0] for pair in pairs}), {}

    def of_pair(scaled, pair):
        weights = [scaled.get_submodule(name).weight for name in pair.readers]
        best = search(weights, read[pair.readers[0]], how, steps, pair.columns)
        channels = len(scaled.get_submodule(pair.source).weight)
        best = best._replace(s=torch.cat([best.s, best.s.new_ones(channels - len(best.s))]))    # last channels that no column reads
        found[pair.source] = best
        return best.s

    return Scaled(scaling.folded(model, pairs, of_pair, batches), found)


@torch.no_grad()
def clip(weight, gram: torch.Tensor, bits: int = 4, group_size: int | None = None, scheme: str = "symmetric", steps: int = 20,
         scale_dtype: torch.dtype | None = None) -> QTensor:
    """weight (out, in) rounded on the grid of each group that gives the least output error: its range shrunk to 1, .. 0.5, steps of them.

    gram: (in, in) of Moments. A group's error is counted as if the others had none. This is the second half of AWQ's code; the paper has
    it as clipping. Raises ValueError for what linear.quantize refuses, a gram of another shape, or steps below 1.

    >>> q = clip(torch.tensor([[0.3, 0.3, 0.3, 1.0]]), torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.01])), bits=2)
    >>> q.scale < 1
    tensor([True])
    """
    weight, gram = as_float(weight, "weight"), as_float(gram, "gram")
    if weight.dim() != 2 or tuple(gram.shape) != (weight.shape[1],) * 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)} and gram {tuple(gram.shape)}: they must be (out, in) and (in, in).")
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps is {steps!r}, and must be a whole number of at least 1.")
    check_layout(weight.shape, 0, group_size)
    if not weight.numel():
        return linear.quantize(weight, bits, scheme, axis=0, group_size=group_size, scale_dtype=scale_dtype)
    size = group_size or weight.shape[1]
    grouped = weight.double().unflatten(1, (-1, size))                                      # (out, groups, size)
    blocks = torch.stack([gram[i:i + size, i:i + size].double() for i in range(0, len(gram), size)])    # (groups, size, size)
    low, high = grouped.amin(2), grouped.amax(2)
    least, kept = torch.full_like(low, torch.inf), torch.ones_like(low)

    def rounded(f):
        ends = [end if group_size else end.flatten() for end in (f * low, f * high)]
        return linear.quantize(weight, bits, scheme, axis=0, group_size=group_size, x_min=ends[0], x_max=ends[1],
                               scale_dtype=scale_dtype)

    for step in range(steps):
        f = 1 - 0.5 * step / steps
        e = rounded(f).dequantize().double().unflatten(1, (-1, size)) - grouped
        error = torch.einsum("ogi,gij,ogj->og", e, blocks, e)
        kept, least = torch.where(error < least, f, kept), torch.minimum(error, least)
    return rounded(kept)


def quantize(model: nn.Module, batches, bits: int | None = None, group_size: int | None = None, scheme: str = "symmetric",
             ranges: str = "max", scale_dtype: torch.dtype | None = None, clipped: bool = False, pairs: Iterable | None = None,
             steps: int = 20, skip: tuple[str, ...] = ()) -> Quantized:
    """A copy scaled by `scale`, its weights then rounded to nearest: see weights.quantize, which rounds them as they are.

    clipped: each group's range is chosen by `clip` instead, in all linear layers that calibration reaches, but the queries and keys
    of a GPT: what a product of the two loses is not what each of them loses (the authors' code leaves them, too). ranges is then of those
    alone. Raises ValueError as `scale` and `quantize_weights` do.

    >>> model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 10, bias=False))
    >>> quantize(model, torch.randn(50, 64), 4, 32, scale_dtype=torch.float16, pairs=[("0", ["1"])]).tensors["1"].bits_per_weight
    4.5
    """
    batches, (names, _) = batches_of(batches), choose(model, skip)
    how = partial(round_to_nearest, bits=bits, group_size=group_size, scheme=scheme, ranges=ranges, scale_dtype=scale_dtype)
    scaled = scale(model, batches, how, pairs, steps).model
    if not clipped:
        return quantize_weights(scaled, how, skip)
    by_name = dict.fromkeys(names, how)
    for name, read in moments(scaled, batches).items():
        if name in by_name and name.split(".")[-1] not in ("query", "key"):
            by_name[name] = partial(clip, gram=read.gram, bits=4 if bits is None else bits, group_size=group_size, scheme=scheme,
                                    scale_dtype=scale_dtype)
    return quantize_weights(scaled, by_name, skip)
