"""Linear quantization: evenly spaced levels.

    q     = round((x - x_min) / s),   s = (x_max - x_min) / (2**b - 1)      source document, 4.1
    x_hat = s * (q - z)                                                     Jacob et al. 2018, eq. 1

One decoding rule, three schemes, which differ in the zero-point z, the code that means 0.0:

    minmax      z = -x_min / s, a real number    the document's formula; 0.0 is in general not a level
    affine      z = round(-x_min / s)            the range is first widened to hold 0, which then is a level exactly
    symmetric   z = 0                            codes from -(2**(b-1) - 1) to 2**(b-1) - 1, s = max|x| / (2**(b-1) - 1)

The document's 3.1 multiplies by "the scale" where its 4.1 divides: both are right if one scale is the other's inverse. Here s is
always the distance between two levels, and encoding divides by it. Rounding is to nearest, ties to even (IEEE 754).
"""

import torch

from qlab.quant.layout import (
    as_float,
    as_tensor,
    blocks,
    check_bits,
    check_finite,
    check_layout,
    check_name,
    check_scale_dtype,
    extremes,
    from_rows,
    params_shape,
    stored_scale,
    to_rows,
)
from qlab.quant.qtensor import QTensor

SCHEMES = ("minmax", "affine", "symmetric")


def quantize(x, bits: int = 8, scheme: str = "minmax", axis: int | None = None, group_size: int | None = None,
             x_min=None, x_max=None, scale_dtype: torch.dtype | None = None) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to evenly spaced levels, with one scale per tensor, axis or group.

    bits: 1 to 16 (symmetric: 2 to 16). x_min, x_max: numbers, or tensors of the shape of the scale; they replace the smallest and
    largest element, and what lies outside saturates. codes are uint8 (minmax, affine) or int8 (symmetric), wider above 8 bits.
    scale_dtype: what the scales are stored as, float32 by default (float64 for float64 x); in torch.float16 or torch.bfloat16 they are
    rounded up, to the next number that still holds the range. A file packs codes, and affine's zero-points, to `bits` bits each.

    Inside the range, |x - x_hat| <= scale / 2, plus the rounding of floating-point arithmetic: one unit in the last place of the
    largest magnitude (minmax, whose zero-point is itself rounded: two).

    Raises TypeError for x that is not floating point; ValueError for NaN or infinity, bits, a scheme, an axis or a group size that
    do not fit, x_min above x_max.

    >>> q = quantize(torch.tensor([-1.0, 0.5, 1.0]), bits=8)
    >>> q.codes.tolist(), round(q.scale.item(), 6)
    ([0, 191, 255], 0.007843)
    >>> quantize(torch.tensor([-1.0, 0.0, 3.0]), bits=4, scheme="affine").dequantize()
    tensor([-1.0667,  0.0000,  2.9333])
    >>> w = torch.linspace(-1, 1, 4096).reshape(64, 64)
    >>> for scheme in ("symmetric", "affine"):          # 4 + 16 / 32, and 4 / 32 more for the zero-points
    ...     quantize(w, 4, scheme, axis=0, group_size=32, scale_dtype=torch.float16).bits_per_weight
    4.5
    4.625
    """
    x = as_float(x)
    check_name("scheme", scheme, SCHEMES)
    stored = check_scale_dtype(scale_dtype, x)
    bits = check_bits(bits, 2 if scheme == "symmetric" else 1)
    axis, group_size = check_layout(x.shape, axis, group_size)
    rows = to_rows(x, axis, group_size)
    shape = params_shape(x.shape, axis, group_size)
    low, high = _range(rows, shape, x_min, x_max)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale, zero_point, offset = _parameters(low, high, bits, scheme, work, stored)
    step = scale.to(work)
    if scheme == "minmax":
        step = torch.where(high > low, step, torch.inf)                                     # a range of one point: all saturate to it
    codes = _encode(rows, step, zero_point, offset, bits, scheme)
    return QTensor(codes=from_rows(codes, x.shape, axis), bits=bits, scheme=scheme, dtype=x.dtype, scale=scale.reshape(shape),
                   zero_point=zero_point.reshape(shape), axis=axis, group_size=group_size)


def _range(rows: torch.Tensor, shape: tuple, x_min, x_max) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of each row in float64, (rows,): the elements' own unless it is given."""
    low, high = (t.double() for t in extremes(rows))
    check_finite(low, high)
    for name, given in (("x_min", x_min), ("x_max", x_max)):
        if given is None:
            continue
        given = as_tensor(given, name, torch.float64).to(rows.device)
        check_finite(given, given, name)
        work = torch.float64 if rows.dtype == torch.float64 else torch.float32
        if (beyond := given.abs() > torch.finfo(work).max).any():
            raise ValueError(f"{name} holds {given[beyond][0]:g}, and must be within the range of {work}.")
        if given.dim() and tuple(given.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, and must be one number or have the scale's shape {shape}.")
        if name == "x_min":
            low = given.reshape(-1).expand_as(low)
        else:
            high = given.reshape(-1).expand_as(high)
    if (low > high).any():
        raise ValueError(f"x_min is {low[low > high][0]:g} where x_max is {high[low > high][0]:g}, and x_min must not exceed x_max.")
    return low, high


def _parameters(low, high, bits: int, scheme: str, dtype: torch.dtype, stored: torch.dtype):
    """scale, zero_point and the value that encoding subtracts first, (rows,) each, from the range of each row (float64)."""
    if scheme == "symmetric":
        high = torch.maximum(low.abs(), high.abs())
        low, steps = torch.zeros_like(high), 2 ** (bits - 1) - 1
    elif scheme == "affine":
        low, high, steps = low.clamp(max=0), high.clamp(min=0), 2**bits - 1
    else:
        steps = 2**bits - 1
    scale = (high - low) / steps
    scale = torch.where(scale.isinf(), high / steps - low / steps, scale)                   # a range wider than the largest float64
    # A constant c needs no step: with |c| for the scale and z = -1 or 1, code 0 decodes to c exactly (to 0 for c = 0).
    constant = torch.where(low == 0, 1.0, low.abs())
    scale = stored_scale(torch.where(high > low, scale, constant), stored)
    if scheme == "symmetric":
        return scale, torch.zeros_like(scale, dtype=_code_dtype(bits, scheme)), None
    exact = -low / scale.double()
    if scheme == "affine":
        return scale, exact.round().clamp(0, steps).to(_code_dtype(bits, scheme)), None
    return scale, exact.to(dtype), low.to(dtype)


def _code_dtype(bits: int, scheme: str) -> torch.dtype:
    if scheme == "symmetric":
        return torch.int8 if bits <= 8 else torch.int16
    return torch.uint8 if bits <= 8 else torch.int32


def _encode(rows, step, zero_point, offset, bits: int, scheme: str) -> torch.Tensor:
    """round((x - offset) / step) + zero_point, kept inside the codes; block by block, so that each block stays in the cache."""
    top = 2 ** (bits - 1) - 1 if scheme == "symmetric" else 2**bits - 1
    bottom = -top if scheme == "symmetric" else 0
    codes = torch.empty(rows.shape, dtype=_code_dtype(bits, scheme), device=rows.device)
    if offset is not None and (step.isfinite() & (step * top).isinf()).any():               # x - offset would overflow inside the range
        rows, offset, step = rows / 2, offset / 2, step / 2
    for i, j in blocks(rows):
        q = rows[i, j].to(step.dtype)
        q = q / step[i, None] if offset is None else (q - offset[i, None]).div_(step[i, None])
        q.round_()
        if scheme == "affine":
            q.add_(zero_point[i, None])
        codes[i, j] = q.clamp_(bottom, top)
    return codes
