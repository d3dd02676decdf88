"""Logarithmic quantization: levels that are powers of a base, so that steps are fine near zero and coarse far from it.

    x_hat = sign(x) * base**round(log_base|x|), clipped to 2**(b-1) - 1 exponents below the largest, and 0 beneath them
                                                                            Miyashita et al. 2016, eq. 9 and 10

A code is a sign and a magnitude m. m = 0 means 0.0; m = 1 .. top, with top = 2**(b-1) - 1, means base**(e_max - top + m). With
base 2 a product with x_hat is a shift of bits; base sqrt(2) has two levels an octave, half the range and half the error.

The source document's 4.2 calls another formula logarithmic, round(|x| * (2**b - 1)) with the sign kept. That is linear in |x|: it
is here as sign_magnitude.
"""

import math
from numbers import Real

import torch

from qlab.quant.layout import (
    as_float,
    blocks,
    check_bits,
    check_finite,
    check_layout,
    extremes,
    from_rows,
    params_shape,
    to_rows,
)
from qlab.quant.qtensor import QTensor


def quantize(x, bits: int = 4, base: float = 2.0, axis: int | None = None, group_size: int | None = None) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to sign and power of base; e_max per tensor, axis or group.

    bits: 2 to 16, the sign included. base: above 1; 2 and sqrt(2) are the paper's. codes are int8 (int16 above 8 bits), the scale
    is base**e_max, with e_max = round(log_base(max|x|)): float32, or float64 for float64 x and where float32 has no normal number of
    that size.

    A value at or above half a level's ratio below the smallest level, |x| >= base**(e_max - top + 1/2), is off by at most the
    factor sqrt(base) either way; a smaller one becomes 0. The logarithm is float32's (float64's for float64 x and a base below 1.01):
    within one part in 10**5 of the border between two levels a value may take either, and x_hat is rounded to the dtype of x. A largest
    level beyond the dtype's largest number becomes that number, which is nearer. In float64 alone e_max is limited, to exponents
    for which base**e_max is a normal number: a larger value is off by less than the factor base, and one below a limit of 2**-1022
    counts from there.

    Raises TypeError for x that is not floating point; ValueError for NaN or infinity, bits, a base, an axis or a group size that do
    not fit.

    >>> q = quantize(torch.tensor([-1.0, 0.3, 0.05, 0.0]), bits=4)
    >>> q.codes.tolist(), q.dequantize().tolist()
    ([-7, 5, 3, 0], [-1.0, 0.25, 0.0625, 0.0])
    """
    x = as_float(x)
    bits = check_bits(bits, 2)
    if isinstance(base, bool) or not isinstance(base, Real) or not 1 < base < math.inf:
        raise ValueError(f"base is {base!r}, and must be a number above 1, for example 2 or 2 ** 0.5.")
    axis, group_size = check_layout(x.shape, axis, group_size)
    rows = to_rows(x, axis, group_size)
    low, high = extremes(rows)
    check_finite(low, high)
    top, per_octave = 2 ** (bits - 1) - 1, math.log2(base)

    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    largest = torch.maximum(low.abs(), high.abs()).double()
    e_max = torch.where(largest > 0, (largest.log2() / per_octave).round(), 0.0)
    e_max.clamp_(math.ceil((1e-9 - 1022) / per_octave), math.floor((1024 - 1e-9) / per_octave))     # base**e_max is a normal number
    scale = float(base) ** e_max
    fits = (scale <= torch.finfo(work).max) & (scale >= torch.finfo(work).tiny)
    stored = work if fits.all() else torch.float64
    work = torch.float64 if base < 1.01 else work                                           # levels as close as float32's logarithms

    codes = torch.empty(rows.shape, dtype=torch.int8 if bits <= 8 else torch.int16, device=rows.device)
    for i, j in blocks(rows):
        block = rows[i, j].to(work)
        exponent = block.abs().log2_().div_(per_octave).round_()                            # -inf for 0, which the clamp makes code 0
        codes[i, j] = exponent.add_(top - e_max[i, None].to(work)).clamp_(0, top).mul_(block.sign())
    shape = params_shape(x.shape, axis, group_size)
    return QTensor(codes=from_rows(codes, x.shape, axis), bits=bits, scheme="log", dtype=x.dtype, base=float(base),
                   scale=scale.to(stored).reshape(shape), axis=axis, group_size=group_size)


def sign_magnitude(x, bits: int = 8, x_max: float = 1.0) -> QTensor:
    """The source document's example in 4.2: q = round(|x| / x_max * (2**bits - 1)), with the sign of x. Linear, not logarithmic.

    The magnitude takes `bits` bits and the sign one more, so the result has bits + 1. |x| above x_max saturates. bits: 1 to 15.
    The scale, x_max / (2**bits - 1), is float32 (float64 for float64 x), and must be a normal number of it.

    >>> q = sign_magnitude(torch.tensor([0.5, -0.5]), bits=8)
    >>> q.codes.tolist(), q.bits                  # 127.5 rounds to even
    ([128, -128], 9)
    """
    x = as_float(x)
    bits = check_bits(bits, 1, 15)
    check_finite(*extremes(to_rows(x, None, None)))
    if isinstance(x_max, bool) or not isinstance(x_max, Real) or not 0 < x_max < math.inf:
        raise ValueError(f"x_max is {x_max!r}, and must be a finite number above 0.")
    steps, work = 2**bits - 1, torch.float64 if x.dtype == torch.float64 else torch.float32
    if not torch.finfo(work).tiny * (1 + 2**-20) <= x_max / steps <= torch.finfo(work).max or math.isinf(steps / x_max):
        raise ValueError(f"x_max is {x_max!r}, and must be such that the scale x_max / {steps} is a normal number of {work}.")
    codes = (x.double() * (steps / x_max)).round().clamp(-steps, steps)
    scale = torch.tensor(x_max / steps, dtype=work, device=x.device)
    dtype = torch.int8 if bits < 8 else torch.int16
    return QTensor(codes=codes.to(dtype), bits=bits + 1, scheme="sign_magnitude", dtype=x.dtype, scale=scale,
                   zero_point=torch.zeros_like(scale, dtype=dtype))
