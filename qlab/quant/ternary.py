"""Ternary weights: -1, 0 or 1 times one scale, the mean of |w|.

    w_hat = gamma * clip(round(w / gamma), -1, 1)          gamma = mean |w|          BitNet b1.58: Ma et al. 2024, eq. 1 to 3

A value above half the mean keeps its sign, a smaller one becomes 0, of normally distributed weights 31 %. The scale is the mean and not the
largest magnitude, so no outlier decides it. Three values are log2(3) = 1.58 bits; five of them, 3**5 = 243 in all, fit one byte: 1.6 bits.
(Equation 1 adds a small number to gamma, for a tensor of zeros; here that has gamma = 0 and codes 0.)
"""

import torch

from qlab.quant.layout import as_float, check_finite, check_layout, check_scale_dtype, extremes, from_rows, params_shape, to_rows
from qlab.quant.packing import TERNARY
from qlab.quant.qtensor import QTensor


def quantize(x, axis: int | None = None, group_size: int | None = None, scale_dtype: torch.dtype | None = None) -> QTensor:
    """x (any shape; float16, bfloat16, float32 or float64) to -1, 0 and 1, with one gamma per tensor (the paper's), axis or group.

    codes are int8, packed five in a byte: q.bits is 1.6. scale_dtype: of gamma, float32 by default (float64 for float64 x). Ties go to
    even, so half of gamma is 0. Raises TypeError for x that is not floating point; ValueError for NaN or infinity, an axis, a group size
    or a scale_dtype that do not fit.

    >>> q = quantize([0.9, -0.3, 0.1, -0.7])
    >>> q.codes.tolist(), q.scale, q.nbytes               # 4 codes in one byte, and gamma
    ([1, -1, 0, -1], tensor(0.5000), 5)
    """
    x = as_float(x)
    dtype = check_scale_dtype(scale_dtype, x)
    axis, group_size = check_layout(x.shape, axis, group_size)
    rows, shape = to_rows(x, axis, group_size), params_shape(x.shape, axis, group_size)
    low, high = extremes(rows)
    check_finite(low, high)
    largest = torch.maximum(low.abs(), high.abs()).double()
    shares = rows.double().abs() / torch.where(largest > 0, largest, 1.0)[:, None]          # at most 1: no sum overflows
    gamma = (largest * (shares.sum(1) / max(1, rows.shape[1]))).to(dtype)
    if gamma.isinf().any():
        raise ValueError(f"gamma is above {torch.finfo(dtype).max:g}, the largest {dtype}: choose another scale_dtype.")
    step = torch.where(gamma > 0, gamma.double(), torch.inf)
    codes = (rows.double() / step[:, None]).round_().clamp_(-1, 1).to(torch.int8)
    return QTensor(codes=from_rows(codes, x.shape, axis), bits=TERNARY, scheme="ternary", dtype=x.dtype, scale=gamma.reshape(shape),
                   axis=axis, group_size=group_size)
