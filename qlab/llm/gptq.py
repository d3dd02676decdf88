"""GPTQ: codes that answer for each other. Rounding a weight makes an error; the weights that are not rounded yet take it back.

    minimise  || W X - W_hat X ||**2          a layer's output on calibration inputs X              Frantar et al. 2022, eq. 1

Each row w of W by itself: with H = 2 X X^T its error is (w - w_hat) H (w - w_hat)^T / 2. Round the weight of input i to its grid, for good.
The best that the weights F from i on can do about it is (Optimal Brain Surgeon, Hassibi and Stork 1993; eq. 2)

    w_F  -=  (w_i - w_hat_i) * inverse(H_F)[i] / inverse(H_F)[i, i]

With one order of inputs for all rows, all the rows of inverses that this asks for are in one matrix: inverse(H) = U^T U, U upper triangular
(Cholesky), and U[i] = inverse(H_F)[i] / sqrt(inverse(H_F)[i, i]). That is algorithm 1:

    for each input i:     e  =  (W[:, i] - W_hat[:, i]) / U[i, i],        W[:, i:]  -=  e U[i, i:]

done block by block: the columns behind a block hear of all its errors at once, by one product. The codes are the same.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from qlab.errors import first_line
from qlab.llm.evaluate import Text
from qlab.llm.hessian import hessian_of, output_error
from qlab.llm.weights import choose, quantize_weights, round_to_nearest
from qlab.nets.plain import memory_of, plain_copy
from qlab.nets.ptq import Quantized, naming_weight
from qlab.quant import QTensor, linear
from qlab.quant.layout import as_float, as_tensor, check_whole


def quantize_matrix(weight, hessian, bits: int | None = None, group_size: int | None = None, scheme: str = "symmetric",
                    ranges: str = "max", scale_dtype: torch.dtype | None = None, order: bool = False, static_groups: bool = False,
                    damping: float = 0.01, block: int = 128) -> QTensor:
    """weight (out, in) with the codes that GPTQ finds, for inputs with this hessian, (in, in): see hessian.hessian_of.

    bits, group_size, scheme, ranges, scale_dtype: the grids, as in weights.round_to_nearest. The grid of a group is taken when its first
    input is reached, from weights that have answered for others by then; with static_groups, all are taken before. order: the inputs with
    the largest diagonal of the Hessian first, while many can still answer for them; groups stay where they lie, and are static then (those
    of nvfp4 always are: they share a scale). damping: this part of the mean diagonal is added to the diagonal. block: inputs between two
    products; the codes do not depend on it. A hessian (groups, in, in) is for as many equal parts of the rows, one after the other.

    An input that calibration never saw but at 0 (a diagonal of 0) gets weights of 0, before any grid is taken. A factor of the Hessian
    makes no difference. The optimum is not promised: a weight that is rounded is never looked at again.

    Raises ValueError for a Hessian that is not finite, symmetric and of that shape, or singular and not damped, for a damping below 0, a
    block below 1, and whatever round_to_nearest refuses.

    >>> weight, x = torch.tensor([[1.0, 0.4, 0.4]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])  # two inputs that are always equal
    >>> round_to_nearest(weight, bits=2).codes, quantize_matrix(weight, hessian_of(x), bits=2).codes    # 0.4 + 0.4 is nearer to 1 than to 0
    (tensor([[1, 0, 0]], dtype=torch.int8), tensor([[1, 0, 1]], dtype=torch.int8))
    """
    weight = as_float(weight, "weight")
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, and must be (out, in).")
    hessian = _checked(hessian, weight, damping, block)                                     # (groups, in, in)

    def grids(part: torch.Tensor, size: int | None) -> QTensor:
        return round_to_nearest(part, bits, size, scheme, ranges, scale_dtype)

    live, rows = hessian.diagonal(dim1=1, dim2=2) > 0, len(weight) // len(hessian)
    grids(weight[:1], group_size)                                                           # refuses what does not fit, weights of 0 or not
    seen = torch.where(live.repeat_interleave(rows, 0), weight, weight * 0)                 # NaN stays NaN, and is refused
    start = grids(seen, group_size)
    if not weight.numel():
        return start
    static = order or static_groups or start.group_size is None or start.tensor_scale is not None
    parts = []
    for h, part, number in zip(hessian, seen.split(rows), range(len(hessian))):
        own = _each(start, lambda t, i=number * rows: t[i:i + rows], "codes")
        parts.append(_solve(part, h, own, None if static else grids, order, damping, block))
    return _cat(parts, 0)


def _solve(weight: torch.Tensor, hessian: torch.Tensor, start: QTensor, grids: Callable | None, order: bool, damping: float,
           block: int) -> QTensor:
    """Algorithm 1. start: the weight rounded to nearest, on grids that stay if `grids`, which makes one when it is reached, is None."""
    (out, n), work = weight.shape, torch.promote_types(weight.dtype, torch.float32)
    size = start.group_size or n
    places = hessian.diagonal().argsort(descending=True, stable=True) if order else torch.arange(n, device=weight.device)
    upper = _upper(hessian[places][:, places], damping)
    columns = weight.double().T[places].contiguous()                                        # (in, out): a column lies in one piece
    codes, reached, rounders = torch.empty_like(start.codes), [], {}
    for i, j in _blocks(n, block, size):
        errors = columns.new_empty(j - i, out)
        for c in range(i, j):
            place = int(places[c])
            group = place // size
            if group not in rounders:
                if grids is not None:
                    reached.append(grids(columns[c:c + size].T.to(work).contiguous(), size))
                rounders[group] = _rounder(start, group) if grids is None else _rounder(reached[-1], 0)
            codes[:, place], value = rounders[group](columns[c])
            errors[c - i] = (columns[c] - value) / upper[c, c]
            columns[c:j].addr_(upper[c, c:j], errors[c - i], alpha=-1)
        columns[j:].addmm_(upper[i:j, j:].T, errors, alpha=-1)
    return replace(start if grids is None else _cat(reached, 1, group_size=size), codes=codes, dtype=start.dtype)


def _blocks(n: int, block: int, size: int) -> Iterator[tuple[int, int]]:
    """From where to where each block of columns goes. It holds whole groups, or is within one: so a group's grid is taken when all the
    errors before it have reached it."""
    span = max(size, block // size * size)
    for begin in range(0, n, span):
        end = min(begin + span, n)
        yield from ((i, min(i + block, end)) for i in range(begin, end, block))


def _upper(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """U of inverse(H) = U^T U, float64 (in, in), damped; an input that was always 0 is as if it were independent of the others."""
    diagonal = hessian.diagonal()
    live = diagonal > 0
    mean = diagonal[live].mean() if live.any() else diagonal.new_ones(())
    hessian = hessian + torch.diag(torch.where(live, damping * mean, mean))
    lower, failed = torch.linalg.cholesky_ex(hessian)
    least = len(hessian) * torch.finfo(hessian.dtype).eps * hessian.diagonal().max()
    if failed or lower.diagonal().square().min() <= least:
        raise ValueError(f"the Hessian is singular with damping {damping}: damp it more (0.01 is usual), or calibrate on more inputs, at "
                         f"least {len(hessian)} of them.")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _rounder(q: QTensor, group: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What rounds a column, float64 (out,), to the grids of a group of q: to codes and values."""
    if q.group_size is not None:
        q = replace(_each(q, lambda t: t[:, group]), group_size=None)
    if q.scheme not in linear.SCHEMES:
        levels, of_level = q.levels().double(), q.level_codes().to(q.codes)                 # (out, levels), (levels,)

        def nearest(column):
            found = (levels - column[:, None]).abs_().argmin(1)
            return of_level[found], levels.gather(1, found[:, None])[:, 0]

        return nearest
    scale, zero_point, (low, high) = q.scale.double(), q.zero_point.double(), q.code_range
    inside, behind = (zero_point, 0) if q.scheme == "minmax" else (0, zero_point)           # a zero-point that is an integer is added last

    def nearest_of_even(column):
        codes = (column / scale + inside).round_().add_(behind).clamp_(low, high)
        return codes.to(q.codes), scale * (codes - zero_point)

    return nearest_of_even


def _each(q: QTensor, what: Callable[[torch.Tensor], torch.Tensor], *others: str) -> QTensor:
    """q with what(tensor) of each tensor that the grids are made of, and of others."""
    names = ("scale", "zero_point", "codebook", *others)
    return replace(q, **{name: what(getattr(q, name)) for name in names if getattr(q, name) is not None})


def _cat(parts: list[QTensor], dim: int, **others) -> QTensor:
    """Rows of a weight (dim 0) or groups of its columns (dim 1), joined."""
    names = [name for name in ("codes", "scale", "zero_point", "codebook") if getattr(parts[0], name) is not None]
    return replace(parts[0], **{name: torch.cat([getattr(q, name) for q in parts], dim) for name in names}, **others)


def _checked(hessian, weight: torch.Tensor, damping: float, block: int) -> torch.Tensor:
    """The Hessian as float64 (groups, in, in), on the weight's device."""
    if isinstance(damping, bool) or not isinstance(damping, Real) or not 0 <= damping < float("inf"):
        raise ValueError(f"damping is {damping!r}, and must be a number of at least 0.")
    check_whole("block", block, 1)
    hessian = as_float(hessian, "hessian").to(weight.device, torch.float64)
    shape, (out, n) = tuple(hessian.shape), weight.shape
    if hessian.dim() not in (2, 3) or shape[-2:] != (n, n) or hessian.dim() == 3 and (not len(hessian) or out % len(hessian)):
        raise ValueError(f"hessian has shape {shape}, and must be ({n}, {n}) for a weight of shape {tuple(weight.shape)}, or several such "
                         f"matrices, as many as divide {out}.")
    hessian = hessian if hessian.dim() == 3 else hessian[None]
    if not hessian.isfinite().all():
        raise ValueError("hessian holds NaN or infinity, and must be finite everywhere.")
    if n and ((hessian - hessian.mT).abs().max() > 1e-4 * hessian.abs().max() or (hessian.diagonal(dim1=1, dim2=2) < 0).any()):
        raise ValueError("hessian is not symmetric, or has a negative diagonal, and must be 2 X X^T of some inputs X.")
    return hessian


class Errors(NamedTuple):
    """The squared error of a layer's output on the calibration inputs, as a part of its power: of rounding to nearest, and of GPTQ.

    Both are of the same inputs, those that the layers before it, already quantized, give it.
    """

    rounded: float
    repaired: float


@dataclass(frozen=True)
class Repaired(Quantized):
    """What GPTQ made of a model (see qlab.nets.ptq.Quantized), and the errors of each layer by name."""

    errors: dict[str, Errors] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [f"{'':{width}}  {'bytes':>10}  rounded  repaired     error of the output"]
        lines += [f"{name:{width}}  {self.tensors[name].nbytes:>10,}  {100 * e.rounded:6.2f}%  {100 * e.repaired:7.2f}%"
                  for name, e in self.errors.items()]
        return "\n".join([*lines, super().__str__()])


@torch.no_grad()
def quantize(model: nn.Module, batches: torch.Tensor | Text | Iterable[torch.Tensor], bits: int | None = None,
             group_size: int | None = None, scheme: str = "symmetric", ranges: str = "max", scale_dtype: torch.dtype | None = None,
             order: bool = False, static_groups: bool = False, damping: float = 0.01, skip: tuple[str, ...] = ()) -> Repaired:
    """A copy of the model whose linear layers and convolutions were quantized one after the other, each for the inputs that it then gets.

    batches: what the model takes, (n, ...): tokens (texts, length) or images; one tensor, several of one shape but for n, or an
    evaluate.Text. Training data, never test data. bits .. damping: see quantize_matrix. skip: layers that keep their floats, as embeddings
    do, and layers that share a weight with one (weights.choose).

    The cost is one forward pass and the products of the Hessians, however deep the model is: all batches go through it together, and each
    layer waits until it has been quantized. So the memory is that of all batches' activations at once: n texts of a model with `hidden`
    wide MLPs take about 16 * n * length * hidden bytes. A layer that is called several times is quantized for its first call.

    The result has the copy, tensors, nbytes and left, as weights.quantize has, and the errors of each layer. The model is run in
    evaluation mode, and is not changed. Raises ValueError for a model without such layers, no batches, batches that the model cannot take,
    NaN or infinity on the way, and, with the layer's name, for what quantize_matrix refuses.

    >>> net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x = torch.randn(100, 4) @ torch.randn(4, 16)                         # inputs that depend on each other
    >>> made = quantize(net, x, bits=3)
    >>> [error.repaired < error.rounded for error in made.errors.values()]
    [True, True]
    """
    names, _ = choose(model, skip)
    inputs = _together(batches)
    working = plain_copy(model).eval()
    options = {"bits": bits, "group_size": group_size, "scheme": scheme, "ranges": ranges, "scale_dtype": scale_dtype}
    repair = {"order": order, "static_groups": static_groups, "damping": damping}
    layers = {working.get_submodule(name): name for name in names}
    for layer, name in layers.items():  # before the long work begins
        with naming_weight(name):
            round_to_nearest(layer.weight[:1], **options)
    made, errors, of_weight, last = {}, {}, {}, {}

    def reached(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        name, x = layers[layer], args[0] if args else kwargs["input"]
        if name in made or not x.numel():                                                   # an expert may be chosen by no token
            return
        version = None if x.is_inference() else x._version
        if not (isinstance(layer, nn.Linear) and last.get("x") is x and last["version"] == version):
            last.clear()                                                                    # query, key and value are given one x
            last.update(x=x, version=version, hessian=hessian_of(x, layer))
        hessian, weight, memory = last["hessian"], layer.weight, memory_of(layer.weight)
        if hessian.shape[-1] != weight[0].numel():
            return                                                                          # forward is about to say why
        if not hessian.isfinite().all():
            raise ValueError(f"the inputs of {name or 'the network'} on the calibration batches hold NaN or infinity, and must be finite.")
        if memory not in of_weight:
            with naming_weight(name):
                q = quantize_matrix(weight.flatten(1), hessian, **options, **repair)
            q = replace(q, codes=q.codes.reshape(weight.shape))
            of_weight[memory] = q, nn.Parameter(q.dequantize(), requires_grad=False), weight
        made[name], layer.weight, _ = of_weight[memory]
        rounded = round_to_nearest(weight.flatten(1), **options).dequantize()
        errors[name] = Errors(*(output_error(weight.flatten(1), w, hessian) for w in (rounded, layer.weight.flatten(1))))
        if len(made) == len(layers):
            raise _Finished

    for layer in layers:
        layer.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        working(inputs)
    except _Finished:
        pass
    except (RuntimeError, IndexError, TypeError) as error:
        said = f"{inputs.dtype} {tuple(inputs.shape)} ({first_line(error)})"
        raise ValueError(f"the model cannot take the calibration batches, {said}.") from None
    missed = [name for name in names if name not in made]
    q = quantize_weights(model, {name: lambda _, q=q: q for name, q in made.items()}, (*skip, *missed))
    return Repaired(**vars(q) | {"left": q.left | dict.fromkeys(missed, "no calibration input reached it")}, errors=errors)


class _Finished(Exception):
    """All layers have been quantized: the rest of the model need not be computed."""


def _together(batches: torch.Tensor | Text | Iterable[torch.Tensor]) -> torch.Tensor:
    """All calibration batches as one tensor, (n, ...)."""
    if isinstance(batches, Text):
        return batches.tokens[:, :-1]                                                       # the last is only predicted
    if isinstance(batches, (torch.Tensor, np.ndarray)):
        batches = [batches]
    elif not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}, and must be a tensor (n, ...), or several of them.")
    batches = list(batches)
    for batch in batches:
        if not isinstance(batch, (torch.Tensor, np.ndarray)):
            raise TypeError(f"batches holds a {type(batch).__name__}, and must hold tensors (n, ...), without labels.")
    batches = [as_tensor(batch, "batches") for batch in batches]
    if len({batch.shape[1:] for batch in batches}) > 1 or any(batch.dim() == 0 for batch in batches):
        shapes = ", ".join(str(tuple(batch.shape)) for batch in batches[:4])
        raise ValueError(f"batches have the shapes {shapes}, and must be (n, ...), equal but for n: cut all texts to one length.")
    if not sum(batch.numel() for batch in batches):
        raise ValueError("there are no calibration inputs, and GPTQ needs some: better ten times as many vectors as a layer is wide.")
    return torch.cat(batches)
