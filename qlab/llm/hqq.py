"""HQQ, half-quadratic quantization: for each group a zero-point that lets most weights fit well, found from the weights alone.

    minimise over z   || W - W_hat ||_p ** p,      W_hat = s (q - z),   q = round(W / s + z),   p < 1         Badri and Shaji 2023

With p below 1 a few large errors count little: the grid follows the many weights and lets outliers go. To minimise it, the errors get a
name, E, and a price for differing from E (half-quadratic splitting). Then each of two steps is easy:

    E  <-  shrink(W - W_hat),    shrink(x) = sign(x) max(0, |x| - |x|**(p - 1) / beta)        large errors stay, small ones become 0
    z  <-  the mean of  q - (W - E) / s                                                       the least squares of what is left

and beta, the price, grows a little each time. The scale stays that of the range. Errors are measured in steps of the grid here: the unit
of the weights makes no difference, and beta = 10 keeps errors beyond 0.17 steps. (The authors' program measures them in units of the
weights, of which hardly any is beyond 0.17: then no error is kept, and the zero-point is that of least squares.)
"""

from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import nn

from qlab.llm.weights import quantize_weights, round_to_nearest
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor
from qlab.quant.layout import as_float, from_rows, to_rows


def quantize_matrix(weight, bits: int = 4, group_size: int | None = None, scale_dtype: torch.dtype | None = None, p: float = 0.7,
                    beta: float = 10.0, kappa: float = 1.01, iterations: int = 20) -> QTensor:
    """weight (out, in) or (out, in, height, width) in scheme "minmax": a scale and a real zero-point for each row, or group of group_size.

    p: above 0, at most 1. beta: the first price, above 0, and times kappa, at least 1, after each of so many iterations. The best
    zero-point on the way is taken, the range's own among them: no group's || W - W_hat ||_p is larger than rounding to nearest makes it.
    scale_dtype: what scales are stored as, float32 unless given. Raises TypeError for a weight that is not floating point; ValueError for
    NaN or infinity, and numbers that do not fit.

    >>> weight = torch.tensor([[0.0, 0.24, 0.25, 0.26, 1.24, 1.25, 1.26, 3.0]])
    >>> round_to_nearest(weight, 2, scheme="minmax").dequantize()             # the range decides
    tensor([[0., 0., 0., 0., 1., 1., 1., 3.]])
    >>> quantize_matrix(weight, 2).dequantize()                               # the many decide
    tensor([[0.2055, 0.2055, 0.2055, 0.2055, 1.2055, 1.2055, 1.2055, 3.2055]])
    """
    _check("p", p, lambda p: 0 < p <= 1, "above 0 and at most 1")
    _check("beta", beta, lambda beta: 0 < beta < float("inf"), "above 0")
    _check("kappa", kappa, lambda kappa: 1 <= kappa < float("inf"), "of at least 1")
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}, and must be a whole number of at least 0.")
    weight = as_float(weight, "weight")
    start = round_to_nearest(weight, bits, group_size, "minmax", scale_dtype=scale_dtype)
    x = to_rows(weight, 0, group_size).double() / start.scale.double().reshape(-1, 1)       # in steps: (rows, group)
    if not x.numel():
        return start
    zero, codes = start.zero_point.reshape(-1, 1).double(), to_rows(start.codes, 0, group_size).double()
    best = [(x - codes + zero).abs().pow(p).sum(1, keepdim=True), zero, codes]
    for _ in range(iterations):
        kept = shrink(x - codes + zero, beta, p)
        zero = (codes - x + kept).mean(1, keepdim=True).to(start.zero_point.dtype).double()  # as it is stored
        codes = (x + zero).round_().clamp_(*start.code_range)
        loss, beta = (x - codes + zero).abs().pow(p).sum(1, keepdim=True), beta * kappa
        better = loss < best[0]
        best = [torch.where(better, new, old) for new, old in zip((loss, zero, codes), best)]
    _, zero, codes = best
    return QTensor(codes=from_rows(codes.to(start.codes.dtype), weight.shape, 0), bits=start.bits, scheme="minmax", dtype=weight.dtype,
                   scale=start.scale, zero_point=zero.to(start.zero_point.dtype).reshape(start.zero_point.shape), axis=0,
                   group_size=start.group_size)


def shrink(x: torch.Tensor, beta: float, p: float) -> torch.Tensor:
    """sign(x) max(0, |x| - |x|**(p - 1) / beta): what is kept of each error; nothing of those up to beta**(1 / (p - 2)).

    >>> shrink(torch.tensor([-1.0, 0.1, 0.0, 0.5]), beta=10.0, p=0.5)
    tensor([-0.9000,  0.0000,  0.0000,  0.3586])
    """
    size = x.abs()
    return x.sign() * (size - size.pow(p - 1) / beta).clamp(min=0)                          # of 0: max(0, 0 - infinity)


def _check(name: str, value, fits: Callable[[Real], bool], allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(value):
        raise ValueError(f"{name} is {value!r}, and must be a number {allowed}.")


def quantize(model: nn.Module, bits: int = 4, group_size: int | None = None, scale_dtype: torch.dtype | None = None,
             skip: tuple[str, ...] = (), **options) -> Quantized:
    """A copy of the model, every weight quantized by quantize_matrix (options: its p, beta, kappa, iterations): weights.quantize_weights.

    >>> quantize(nn.Sequential(nn.Linear(64, 10)), bits=2, group_size=64).tensors["0"].bits_per_weight
    3.0
    """
    return quantize_weights(model, lambda weight: quantize_matrix(weight, bits, group_size, scale_dtype, **options), skip)
