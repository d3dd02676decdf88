"""AdaRound: whether a weight is rounded up or down is learned, so that the output stays what it was, and not the weight.

    w_hat  =  below + h(v) (above - below)                 the two levels of its grid that a weight lies between
    h(v)   =  clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1),   zeta = 1.1, gamma = -0.1         Nagel et al. 2020, eq. 23

    minimise over v    || f(w) - f_hat(w_hat) ||**2  +  price * mean of 1 - |2 h(v) - 1|**beta  eq. 24, 25

f is what the float network computes here, with the ReLU behind it, and f_hat the same with the inputs that the quantized network has by
then: the errors of the layers before are answered for (the paper's asymmetric reconstruction). v starts where w_hat = w. The second part
draws every h to 0 or 1. It is absent for the first fifth of the steps; then beta falls from 20 to 2, so that at first only what is almost
decided is decided. At the end h >= 1/2 is up.

The paper's lambda weighs a sum over the weights against a squared error in the units of the output. Here the error is divided by that of
rounding to nearest: multiply the images or the weights by any factor, and the same weights go up.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import NamedTuple

import torch

from qlab.quant import QTensor
from qlab.quant.layout import as_float, check_whole, from_rows, generator, to_rows

ZETA, GAMMA, WARM, BETAS = 1.1, -0.1, 0.2, (20.0, 2.0)
BITS = 8                                                                                    # a row of 16 bits has 65,535 levels
Run = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]                       # weights by name, inputs -> outputs


class Between(NamedTuple):
    """The levels around each weight, of the weight's shape and dtype, and their codes; both the same for a weight beyond its grid."""

    below: torch.Tensor
    above: torch.Tensor
    code_below: torch.Tensor
    code_above: torch.Tensor


def between(weight: torch.Tensor, q: QTensor) -> Between:
    """Between which two levels of its grid each weight lies; q: the weight on that grid, with at most 8 bits, of any scheme.

    >>> from qlab.quant import linear
    >>> w = torch.tensor([0.2, -1.0, 3.0, 1.0])
    >>> found = between(w, linear.quantize(w, 3, "symmetric"))                # the levels -3, -2, .. 3
    >>> found.below, found.above
    (tensor([ 0., -1.,  3.,  1.]), tensor([1., 0., 3., 2.]))
    """
    if q.bits > BITS:
        raise ValueError(f"bits is {q.bits}, and must be at most {BITS} for a rounding that is learned.")
    rows = to_rows(weight, q.axis, q.group_size).contiguous()
    levels = q.levels().reshape(-1, q.levels().shape[-1]).contiguous()                      # (rows, levels), ascending
    after = torch.searchsorted(levels, rows, right=True)                                    # the first level above the weight
    places = (after - 1).clamp(min=0), after.clamp(max=levels.shape[1] - 1)
    codes = q.level_codes().to(weight.device, q.codes.dtype)
    values = (from_rows(levels.gather(1, place), q.shape, q.axis) for place in places)
    return Between(*values, *(from_rows(codes[place], q.shape, q.axis) for place in places))


def rectified_sigmoid(v: torch.Tensor) -> torch.Tensor:
    """h(v), from 0 to 1; both are reached, at v = -2.4 and 2.4, where a sigmoid only comes near them.

    >>> rectified_sigmoid(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(h: torch.Tensor) -> torch.Tensor:
    """The v of an h from 0 to 1.

    >>> rectified_sigmoid(inverse(torch.tensor([0.0, 0.25, 1.0])))
    tensor([0.0000, 0.2500, 1.0000])
    """
    share = (h - GAMMA) / (ZETA - GAMMA)
    return (share / (1 - share)).log()


def undecided(h: torch.Tensor, beta: float) -> torch.Tensor:
    """1 - |2 h - 1|**beta, of each h: 0 where it is 0 or 1, and 1 at 1/2. Its slope is -2 beta |2 h - 1|**(beta - 1) sign(2 h - 1).

    >>> undecided(torch.tensor([0.0, 0.25, 0.5, 1.0]), beta=2.0)
    tensor([0.0000, 0.7500, 1.0000, 0.0000])
    """
    return 1 - (2 * h - 1).abs() ** beta


def beta_at(step: int, steps: int) -> float | None:
    """None in the first fifth of the steps; then beta, from 20 down to 2 in a straight line.

    >>> [beta_at(step, 11) for step in (0, 2, 3, 10)]
    [None, None, 20.0, 2.0]
    """
    first, (high, low) = math.ceil(WARM * steps), BETAS
    return None if step < first else high + (low - high) * (step - first) / max(1, steps - 1 - first)


@torch.inference_mode(False)
def learn(run: Run, weights: dict[str, torch.Tensor], nearest: dict[str, QTensor], x: torch.Tensor, y: torch.Tensor,
          axis: int | None = None, steps: int = 400, batch: int = 32, lr: float = 0.03, price: float = 3.0,
          seed: int = 0) -> dict[str, QTensor]:
    """The codes whose outputs run(decoded weights, x) are nearest to y, learned from those of rounding to nearest.

    run: what computes the outputs from weights by name and inputs (n, ...), a layer or a block of layers. weights, nearest: what the
    weights are, and each on its grid, which stays. x, y: inputs of the quantized network, outputs of the float one. axis: for one layer,
    where its output has its channels; each channel depends on a row of the weight alone, and keeps the nearest where that is better. For
    a block (None) it is the nearest codes or the learned ones for the whole. So on x and y no result is worse than rounding to nearest.
    steps of Adam with learning rate lr, each on `batch` inputs drawn from the seed.

    Raises ValueError for options that do not fit, x or y that are not finite, of different lengths or not what run takes and gives,
    nearest of other names or shapes than the weights, a grid of more than 8 bits.

    >>> from qlab.quant import linear
    >>> w, x = torch.tensor([[1.0, 0.45, 0.4]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])  # two inputs that are always equal
    >>> run = lambda weights, x: x @ weights["w"].T
    >>> nearest = {"w": linear.quantize(w, 2, "symmetric", axis=0)}
    >>> nearest["w"].codes, learn(run, {"w": w}, nearest, x, x @ w.T, axis=1)["w"].codes   # 0.45 + 0.4 is nearer to 1 than to 0
    (tensor([[1, 0, 0]], dtype=torch.int8), tensor([[1, 1, 0]], dtype=torch.int8))
    """
    check_options(steps, batch, lr, price, seed)
    weights, x, y = {name: as_float(w, "weight") for name, w in weights.items()}, as_float(x), as_float(y, "y")
    _check_shapes(weights, nearest, x, y)
    found = {name: between(w, nearest[name]) for name, w in weights.items()}
    rounded = {name: q.dequantize() for name, q in nearest.items()}
    with torch.no_grad():
        shape = run(rounded, x[:1]).shape[1:]
    if shape != y.shape[1:]:
        raise ValueError(f"run gives outputs of shape {(len(x), *shape)}, and y has {tuple(y.shape)}: they must be equal.")
    before = squared_error(run, rounded, x, y, axis)
    unit = before.sum().item() / max(1, y.numel())
    if not unit or not steps:  # nothing was lost
        return dict(nearest)
    h = _learned(run, weights, found, x, y, unit, steps, batch, lr, price, generator(seed))
    up = {name: part >= 0.5 for name, part in h.items()}
    after = squared_error(run, {name: torch.where(up[name], part.above, part.below) for name, part in found.items()}, x, y, axis)
    better = after < before                                                                 # (channels,), or one for all
    made = {}
    for name, part in found.items():
        codes = torch.where(up[name], part.code_above, part.code_below)
        keep_learned = better.view(-1, *[1] * (codes.dim() - 1))
        made[name] = replace(nearest[name], codes=torch.where(keep_learned, codes, nearest[name].codes))
    return made


def _learned(run: Run, weights: dict, found: dict[str, Between], x, y, unit: float, steps: int, batch: int, lr: float, price: float,
             random: torch.Generator) -> dict[str, torch.Tensor]:
    """h of each weight, after the last step."""
    free = {name: part.above > part.below for name, part in found.items()}
    number = max(1, sum(int(part.sum()) for part in free.values()))
    v = {}
    for name, (below, above, *_) in found.items():
        share = torch.where(free[name], (weights[name] - below).float() / (above - below).float().clamp(min=torch.finfo().tiny), 0.5)
        v[name] = inverse(share.clamp(0, 1)).requires_grad_()
    adam = torch.optim.Adam(v.values(), lr)
    with torch.enable_grad():
        for step in range(steps):
            some = torch.randint(len(x), (batch,), generator=random).to(x.device)
            h = {name: rectified_sigmoid(part) for name, part in v.items()}
            soft = {name: (below + h[name] * (above - below)).to(below.dtype) for name, (below, above, *_) in found.items()}
            loss = (run(soft, x[some]) - y[some]).square().mean() / unit
            beta = beta_at(step, steps)
            if beta is not None:
                loss = loss + price * sum(undecided(part, beta)[free[name]].sum() for name, part in h.items()) / number
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {name: rectified_sigmoid(part.detach()) for name, part in v.items()}


def _check_shapes(weights: dict[str, torch.Tensor], nearest: dict[str, QTensor], x: torch.Tensor, y: torch.Tensor) -> None:
    if set(weights) != set(nearest) or not weights:
        raise ValueError(f"weights name {', '.join(weights) or 'nothing'}, and nearest {', '.join(nearest) or 'nothing'}: both must name "
                         "the same, at least one.")
    for name, weight in weights.items():
        if tuple(nearest[name].shape) != tuple(weight.shape):
            raise ValueError(f"the codes of {name} have the shape {tuple(nearest[name].shape)}, and its weight has {tuple(weight.shape)}.")
    if not x.dim() or not y.dim() or len(x) != len(y) or not len(x):
        raise ValueError(f"x has the shape {tuple(x.shape)} and y {tuple(y.shape)}: both must have as many rows, at least one.")
    for what, given in (("inputs x", x), ("outputs y", y)):
        if not given.isfinite().all():
            raise ValueError(f"the {what} hold NaN or infinity, and must be finite.")


@torch.no_grad()
def squared_error(run: Run, weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """The sum of (run(weights, x) - y)**2, float64: () over all, or by the index along an axis of y.

    >>> squared_error(lambda weights, x: x * weights["w"], {"w": torch.tensor(2.0)}, torch.ones(3, 2), torch.zeros(3, 2), axis=1)
    tensor([12., 12.], dtype=torch.float64)
    """
    total = torch.zeros((), dtype=torch.float64, device=y.device)
    for some, wanted in zip(x.split(128), y.split(128)):
        error = (run(weights, some) - wanted).double().square()
        total = total + (error.sum() if axis is None else error.movedim(axis, 0).flatten(1).sum(1))
    return total


def check_options(steps, batch, lr, price, seed) -> None:
    """ValueError, in one sentence, for what learn cannot take."""
    check_whole("steps", steps, 0)
    check_whole("batch", batch, 1)
    generator(seed)
    for name, value, fits, allowed in (("lr", lr, lambda v: v > 0, "above 0"), ("price", price, lambda v: v >= 0, "of at least 0")):
        if isinstance(value, bool) or not isinstance(value, Real) or not (fits(value) and value < math.inf):
            raise ValueError(f"{name} is {value!r}, and must be a finite number {allowed}.")
