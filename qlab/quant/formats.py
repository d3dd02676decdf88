"""Number formats of 4 to 8 bits: levels that a standard has fixed, and a scale that moves them to where the values are.

    x_hat = scale * element[code]          scale = max|x| / largest element          of each tensor, channel or group

    e4m3, e5m2, e3m2, e2m3, e2m1         small floating-point numbers                             qlab.quant.small_floats
    nf4                                  the quantiles of a normal distribution, in groups of 64  qlab.quant.normal_float
    mxfp8_e4m3, mxfp8_e5m2,              small numbers in blocks of 32 whose scale is a power     qlab.quant.block
    mxfp6_e3m2, mxfp6_e2m3, mxfp4          of two in one byte
    nvfp4                                e2m1 in blocks of 16 whose scale is an e4m3 number       qlab.quant.block

A code says which element: for nf4 the rank of the level, for the others sign, exponent and mantissa as the standard packs them.
"""

import math

import torch

from qlab.quant import block, normal_float, small_floats
from qlab.quant.layout import (
    as_float,
    as_tensor,
    blocks,
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
from qlab.quant.qtensor import FORMATS, QTensor, format_levels

GROUPS = {"nf4": 64} | {name: kind.size for name, kind in block.FORMATS.items()}            # the formats' own; the others have none


def quantize(x, format: str, axis: int | None = None, group_size: int | None = None, scale=None,
             scale_dtype: torch.dtype | None = None) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to a number format: the nearest element of x / scale.

    format: e4m3, e5m2, e3m2, e2m3, e2m1, nf4, mxfp8_e4m3, mxfp8_e5m2, mxfp6_e3m2, mxfp6_e2m3, mxfp4 or nvfp4. axis, group_size: which
    values share a scale, as in linear.quantize. By default nf4 has groups of 64, the mx formats of 32, nvfp4 of 16 (fewer, where there
    are fewer values), the others one scale. Groups are cut in memory order; axis=0 keeps them inside an output channel, as a product needs.

    scale: a number, or a tensor of the scale's shape, in place of max|x| / largest, for the formats that have no scale of their own kind;
    scale=1 is the plain cast. scale_dtype: of such scales, float32 by default (float64 for float64 x). Ties go to the even code (nf4: to
    the lower level); what lies beyond the largest element saturates, never becomes infinity or NaN. Scales of mx end at 2**-127 and
    2**127, those of nvfp4 at float32's, which only numbers of float64, or close to 0, can pass: they saturate, or become 0.

    codes are uint8; q.scale of the mx formats is torch.float8_e8m0fnu, of nvfp4 torch.float8_e4m3fn beside q.tensor_scale.
    Raises TypeError for x that is not floating point; ValueError for NaN or infinity, an unknown format, an axis, a group size or a scale
    that do not fit.

    >>> q = quantize([0.1, -0.7, 1.5, 3.0], "e2m1")
    >>> q.codes.tolist(), q.scale, q.dequantize()
    ([0, 11, 5, 7], tensor(0.5000), tensor([ 0.0000, -0.7500,  1.5000,  3.0000]))
    >>> w = torch.linspace(-1, 1, 4096).reshape(64, 64)
    >>> [(name, quantize(w, name).bits_per_weight) for name in ("nf4", "mxfp4", "nvfp4", "mxfp6_e2m3")]
    [('nf4', 4.5), ('mxfp4', 4.25), ('nvfp4', 4.5078125), ('mxfp6_e2m3', 6.25)]
    """
    check_name("format", format, FORMATS)
    x = as_float(x)
    axis, _ = check_layout(x.shape, axis, None)
    axis, group_size = check_layout(x.shape, axis, _own_group(x, format, axis) if group_size is None else group_size)
    rows, shape = to_rows(x, axis, group_size), params_shape(x.shape, axis, group_size)
    check_finite(*extremes(rows))
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    parts = {}
    if format in block.FORMATS:
        if scale is not None or scale_dtype is not None:
            raise ValueError(f"{format} has scales of its own: give neither scale nor scale_dtype.")
        codes, scale, *of_tensor = block.nv(rows.to(work)) if format == "nvfp4" else block.mx(rows.to(work), block.FORMATS[format].element)
        parts = {"tensor_scale": of_tensor[0]} if of_tensor else {}
    else:
        scale = _scale(rows, format, shape, scale, check_scale_dtype(scale_dtype, x))
        codes = torch.empty(rows.shape, dtype=torch.uint8, device=x.device)
        for i, j in blocks(rows):
            part = rows[i, j].to(work) / scale[i, None].to(work)
            codes[i, j] = normal_float.nearest(part) if format == "nf4" else small_floats.rounded(part, small_floats.FORMATS[format])
    return QTensor(codes=from_rows(codes, x.shape, axis), bits=FORMATS[format], scheme=format, dtype=x.dtype, scale=scale.reshape(shape),
                   axis=axis, group_size=group_size, **parts)


def levels(format: str) -> torch.Tensor:
    """Every value that a code of the format decodes to, unscaled, ascending: float32 (levels,). -0 and 0 count once, NaN and infinity not.

    >>> levels("e2m1")
    tensor([-6.0000, -4.0000, -3.0000, -2.0000, -1.5000, -1.0000, -0.5000,  0.0000,
             0.5000,  1.0000,  1.5000,  2.0000,  3.0000,  4.0000,  6.0000])
    >>> len(levels("mxfp8_e4m3")), levels("mxfp8_e4m3").max()
    (253, tensor(448.))
    """
    check_name("format", format, FORMATS)
    codes, values = format_levels(format)
    return values[codes]


def _own_group(x: torch.Tensor, format: str, axis: int | None) -> int | None:
    """The format's group size; all that there is, where that is less."""
    others, size = math.prod(n for i, n in enumerate(x.shape) if i != axis), GROUPS.get(format)
    if size is None or others < size:
        return None
    if others % size:
        fits = max((n for n in range(2, size) if others % n == 0), default=others)
        raise ValueError(f"{format} has groups of {size}, which do not divide the {others} elements of "
                         f"{'the tensor' if axis is None else 'each channel'}: give a group_size that does, {fits} for example.")
    return size


def _scale(rows: torch.Tensor, format: str, shape: tuple, given, dtype: torch.dtype) -> torch.Tensor:
    """Scales (rows,) of the dtype: max|x| / largest element, 1 for zeros, or those given."""
    if given is None:
        low, high = (t.double() for t in extremes(rows))
        largest = torch.maximum(low.abs(), high.abs())
        element = 1.0 if format == "nf4" else small_floats.FORMATS[format].largest
        return stored_scale(torch.where(largest > 0, largest / element, 1.0), dtype)
    given = as_tensor(given, "scale", torch.float64).to(rows.device)
    if given.dim() and tuple(given.shape) != shape:
        raise ValueError(f"scale has shape {tuple(given.shape)}, and must be one number or have the shape {shape}.")
    stored = given.to(dtype)
    if (unfit := ~((stored > 0) & stored.isfinite())).any():
        raise ValueError(f"scale holds {given[unfit][0]:g}, and must be finite and above 0 in {dtype}.")
    return stored.reshape(-1).expand(len(rows))
