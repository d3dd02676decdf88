"""Multiplying by a real number in integers, M = m 2**(n - 31): as it is defined, and as it is fast.

    multiply     h = floor(a m / 2**31 + 1/2),  y = sign(h) floor(|h| / 2**r + 1/2),  r = max(0, -n)       two roundings, in int64
    Floor        y = floor(a M + 1/2 + sign(a) 2**(n - 1)),  without the last term for n >= 0               one, in float64

Floors nest, floor((floor(u) + k) / 2**r) = floor((u + k) / 2**r), so that the two are equal where float64 holds what is in between. Of
a result that is clamped to a code only |a M| <= 2**9 has to be exact: beyond, rounding keeps the order, and both are clamped. There a m is
below 2**(9 + 31 + r), and 53 bits hold it and the sum up to r = 13: every M from 2**-14 on, whatever a. For smaller ones the 53 bits
depend on how large a gets. Both are stairs that never fall, with at most 255 steps: they are equal if they are on both sides of each step,
and `floor` looks there.

Sources: Jacob et al. 2018, appendix B; gemmlowp's fixedpoint.h.
"""

import math
from dataclasses import dataclass

import torch

INT32 = 2**31 - 1


def multiplier(real) -> tuple[torch.Tensor, torch.Tensor]:
    """Real numbers M (k,) as m (int32, 2**30 <= m < 2**31) and n (int8): M = m 2**(n - 31). Below 2**-32, m = n = 0.

    Raises ValueError for a negative one, NaN, or 2**30 and above.

    >>> multiplier([0.5, 0.003])
    (tensor([1073741824, 1649267442], dtype=torch.int32), tensor([ 0, -8], dtype=torch.int8))
    """
    m, n = [], []
    for value in torch.as_tensor(real, dtype=torch.float64).reshape(-1).tolist():
        if not 0 <= value < math.inf:
            raise ValueError(f"a multiplier is {value:g}, and must be finite and not negative.")
        fraction, exponent = math.frexp(value)  # value = fraction * 2**exponent, 1/2 <= fraction < 1
        whole = round(fraction * 2**31)
        if whole == 2**31:
            whole, exponent = 2**30, exponent + 1
        if exponent > 30:
            raise ValueError(f"a multiplier is {value:g}, and must be below 2**30: two scales that follow each other differ too much.")
        m.append(whole if exponent > -32 else 0)
        n.append(exponent if exponent > -32 else 0)
    return torch.tensor(m, dtype=torch.int32), torch.tensor(n, dtype=torch.int8)


def multiply(a: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """round(a * M), int32 in and out: shift left by n > 0, doubling high multiplication by m, shift right by n < 0.

    a: int32; m, n: of a shape that broadcasts to it. Rounded to nearest, ties up in the multiplication and away from zero in the
    shift, as ARM's instructions, gemmlowp and TensorFlow Lite's kernels do. What leaves int32 on the shift to the left saturates.

    >>> multiply(torch.tensor([100, -100, 1], dtype=torch.int32), *multiplier([0.5]))
    tensor([ 50, -50,   1], dtype=torch.int32)
    """
    n = n.to(torch.int64)
    wide = (a.to(torch.int64) << n.clamp(min=0)).clamp_(-INT32 - 1, INT32)
    high = (wide * m + 2**30) >> 31
    right = (-n).clamp(min=0)
    half = (1 << right) >> 1
    return (high.sign() * ((high.abs() + half) >> right)).to(torch.int32)


def to_code(scaled: torch.Tensor, zero_point: int, low: int, high: int) -> torch.Tensor:
    """int32 steps above the zero-point as int8 codes between low and high."""
    scaled = scaled.clamp(low - zero_point, high - zero_point)                              # first, so that nothing leaves int32
    return scaled.add_(zero_point).to(torch.int8)


@dataclass(frozen=True)
class Floor:
    """code = floor(a factor + middle + sign(a) away), clamped to low .. high. Tensors float64, one value a channel; away may be None, 0."""

    factor: torch.Tensor
    middle: torch.Tensor
    away: torch.Tensor | None
    low: int
    high: int

    def __call__(self, a: torch.Tensor) -> torch.Tensor:
        """Integers a of any dtype that float64 holds, their channels last, to int8 codes."""
        y = a.to(torch.float64, copy=True).mul_(self.factor)
        if self.away is not None:
            y.addcmul_(y.sign(), self.away)
        return y.add_(self.middle).clamp_(self.low, self.high).floor_().to(torch.int8)


def floor(m: torch.Tensor, n: torch.Tensor, bound: torch.Tensor, zero_point: int, low: int, high: int) -> Floor | None:
    """The Floor that gives to_code(multiply(a, m, n), zero_point, low, high) for all integers |a| <= bound, or None where it does not.

    m int32, n int8: (out,); bound: (out,), at most 2**31 - 1. None is possible only where M is below 2**-14.

    >>> m, n = multiplier([0.003])
    >>> a = torch.arange(-100_000, 100_000, dtype=torch.int32)
    >>> fast = floor(m, n, torch.tensor([100_000.0]), zero_point=-5, low=-128, high=127)
    >>> torch.equal(fast(a[:, None])[:, 0], to_code(multiply(a, m, n), -5, -128, 127))
    True
    """
    n = n.to(torch.float64)
    away = torch.where(n < 0, 2.0 ** (n - 1), 0.0)
    middle = torch.full_like(away, zero_point + 0.5)
    if low >= zero_point or not away.any():  # what a ReLU makes of a negative a is clamped with either sign
        middle, away = middle + away, None
    found = Floor(m.to(torch.float64) * 2.0 ** (n - 31), middle, away, low, high)
    steps = torch.arange(low + 1, high + 1, dtype=torch.float64)[:, None]                   # the codes that a step leads to, (steps, 1)
    at = ((steps - zero_point - 0.5) / found.factor).nan_to_num(0, 0, 0).round()            # (steps, out): at most 2 beside the step itself
    sides = at + torch.arange(-3, 4)[:, None, None]                                         # (7, steps, out)
    sides = torch.cat([sides.flatten(0, 1), bound.expand(2, -1) * torch.tensor([[-1], [1]])]).clamp(-bound, bound).to(torch.int32)
    return found if torch.equal(found(sides), to_code(multiply(sides, m, n.to(torch.int64)), zero_point, low, high)) else None
