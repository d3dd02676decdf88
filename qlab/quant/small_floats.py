"""Floating-point numbers of 4 to 8 bits: a sign s, an exponent E and a mantissa M of m bits, in one code from the highest bit down.

    x = (-1)**s * 2**(E - bias) * (1 + M / 2**m)     E > 0
    x = (-1)**s * 2**(1 - bias) * (0 + M / 2**m)     E = 0, the subnormal numbers          OCP 8-bit Floating Point 1.0; OCP MX 1.0

    format   bits   E   M   bias   largest   smallest above 0   codes without a value
    e4m3      8     4   3     7      448     2**-9              2 NaN, no infinity (PyTorch calls it e4m3fn)
    e5m2      8     5   2    15    57344     2**-16             6 NaN, 2 infinities
    e3m2      6     3   2     3       28     2**-4              none
    e2m3      6     2   3     1      7.5     2**-3              none
    e2m1      4     2   1     1        6     2**-1              none

Levels are evenly spaced from one power of two to the next, and twice as far apart above it: a relative error that stays the same, down to
the subnormal numbers. Rounding is to nearest, ties to the even code; what is larger than the largest number becomes the largest, never
infinity or NaN. The sign of zero is kept.
"""

import math
from functools import cache
from typing import NamedTuple

import torch

from qlab.quant.layout import as_float, as_integers, check_finite, check_name, extremes


class Format(NamedTuple):
    """exponent, mantissa: their bits. largest: the largest number."""

    exponent: int
    mantissa: int
    largest: float

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1


FORMATS = {"e4m3": Format(4, 3, 448.0), "e5m2": Format(5, 2, 57344.0), "e3m2": Format(3, 2, 28.0), "e2m3": Format(2, 3, 7.5),
           "e2m1": Format(2, 1, 6.0)}


def encode(x, format: str) -> torch.Tensor:
    """The codes of the nearest numbers of the format: uint8, of x's shape. No scale: the cast that hardware does, but that it saturates.

    x: any shape; float16, bfloat16, float32 or float64. Raises TypeError for x that is not floating point; ValueError for an unknown
    format, NaN or infinity.

    >>> encode([0.3, 0.25, -2.4, 100.0], "e2m1").tolist()        # 0.25 lies between 0 and 0.5: the even code
    [1, 0, 12, 7]
    """
    check_name("format", format, FORMATS)
    x = as_float(x)
    check_finite(*extremes(x.reshape(1, -1)))
    return rounded(x if x.dtype == torch.float64 else x.float(), FORMATS[format])


def rounded(x: torch.Tensor, f: Format) -> torch.Tensor:
    """encode of finite float32 or float64, in which each step below is exact but the rounding itself."""
    low = 1 - f.bias
    steps = torch.tensor([2.0 ** (low + k - f.mantissa) for k in range(2**f.exponent)], dtype=x.dtype, device=x.device)
    size = x.abs().clamp_(max=f.largest)
    octave = torch.frexp(size.clamp(min=2.0**low)).exponent - 1 - low                       # floor(log2), 0 of the subnormal numbers too
    units = size.div_(steps[octave.long()]).round_().to(torch.int32)                        # 2**m and more of a normal number
    code = (octave << f.mantissa) + units                                                   # 2**(m+1) of them carry into the exponent
    return (code + (x.signbit().to(torch.int32) << f.bits - 1)).to(torch.uint8)


def decode(codes, format: str) -> torch.Tensor:
    """The numbers of the codes, 0 to 2**bits - 1 of any integer dtype: float32, of the codes' shape; NaN and infinity for such codes.

    Raises TypeError for codes that are not integers, ValueError for an unknown format or a code that it has not.

    >>> decode([1, 7, 8, 12], "e2m1")
    tensor([ 0.5000,  6.0000, -0.0000, -2.0000])
    """
    check_name("format", format, FORMATS)
    codes, top = as_integers(codes, "codes"), 2 ** FORMATS[format].bits - 1
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= top:
        raise ValueError(f"codes run from {int(codes.min())} to {int(codes.max())}, and must run from 0 to {top} in {format}.")
    return values(format).to(codes.device)[codes.long()]


@cache
def values(format: str) -> torch.Tensor:
    """The value of every code, float32 (2**bits,): the formula above."""
    f = FORMATS[format]
    sizes = []
    for code in range(2 ** (f.bits - 1)):
        exponent, mantissa = divmod(code, 2**f.mantissa)
        size = 2.0 ** (max(exponent, 1) - f.bias) * ((exponent > 0) + mantissa / 2**f.mantissa)
        sizes.append(size if size <= f.largest else math.nan if mantissa else math.inf)
    return torch.tensor(sizes + [-size for size in sizes])
