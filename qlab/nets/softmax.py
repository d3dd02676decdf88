"""Softmax of int8 codes in integers, as TensorFlow Lite's reference kernel, tflite-micro and CMSIS-NN compute it.

    p_i = exp(s (q_i - max q)) / sum_j exp(s (q_j - max q)),          code of p_i = 256 p_i - 128

No number is real. d = s (q_i - max q), from 0 down to -32, is an int32 with 26 bits behind the point: (q_i - max q) times a multiplier.

    exp(d)          d = r - k / 4 with -1/4 <= r < 0: Taylor's polynomial of degree 4 around -1/8 gives exp(r), and each bit of k that
                    is 1 multiplies by one of the seven constants exp(-1/4), exp(-1/2), exp(-1), .. exp(-16)
    1 / sum         sum = 2**k (1 + x) with 0 <= x < 1; three steps of Newton's method give 1 / (1 + x)

Every product is the upper half of 2 a b, rounded to nearest. Sources: the library gemmlowp (fixedpoint.h: exp_on_negative_values,
one_over_one_plus_x_for_x_in_0_1), TensorFlow Lite's reference/softmax.h; Jacob et al. 2018, appendix A.
"""

import math

import torch

INT32 = 2**31 - 1
SCALED_BITS, SUM_BITS = 5, 12                                                               # bits before the point: of d, of the sum
FINEST = 2.0**-26
CLASSES = 4095                                                                              # of 1.0 each: more would leave SUM_BITS
EXP = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}  # exp(-2**i) 2**31


def softmax_multiplier(scale: float) -> tuple[int, int]:
    """m and n: scale * 2**26 = m 2**(n - 31), 2**30 <= m < 2**31, at most 2**31 - 1 in all. scale: of the logits' codes.

    Raises ValueError for a scale of 2**-26 or less, where the difference of two codes is no longer seen, and for one that is not finite.

    >>> softmax_multiplier(0.5)
    (1073741824, 26)
    """
    if not FINEST < scale < float("inf"):
        raise ValueError(f"the logits have the scale {scale:g}, and softmax takes a finite one above 2**-26.")
    fraction, n = math.frexp(min(scale / FINEST, INT32))                                    # the largest: all but the greatest get nothing
    m = round(fraction * 2**31)
    return (m, n) if m < 2**31 else (2**30, n + 1)


def softmax(codes: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """The codes of the probabilities along the last dimension: scale 1/256, zero-point -128, so that 1.0 saturates at 127.

    codes: int8 (..., classes), 1 to 4,095 classes; m, n: what softmax_multiplier gives for their scale. Returns int8 of the same shape.
    Raises TypeError for other codes, ValueError for another number of classes or a multiplier that is none.

    >>> softmax(torch.tensor([[0, 0], [0, 100]], dtype=torch.int8), *softmax_multiplier(0.02))
    tensor([[  0,   0],
            [-97,  97]], dtype=torch.int8)
    """
    m, n = int(m), int(n)
    if codes.dtype != torch.int8:
        raise TypeError(f"codes are {codes.dtype}, and must be int8.")
    if codes.dim() == 0 or not 1 <= codes.shape[-1] <= CLASSES:
        raise ValueError(f"codes have the shape {tuple(codes.shape)}, and must have 1 to {CLASSES:,} classes in the last dimension.")
    if not (2**30 <= m < 2**31 and 0 <= n <= 31):
        raise ValueError(f"m and n are {m} and {n}, and must be from 2**30 to 2**31 - 1 and from 0 to 31.")
    wide = codes.to(torch.int64)
    difference = wide - wide.amax(-1, keepdim=True)
    seen = difference >= -(31 << 26 >> n)                                                   # below, d would leave its five bits
    terms = torch.where(seen, _exp(_times(torch.where(seen, difference << n, 0), m)), 0)    # 31 bits behind the point
    total = _halve(terms, SUM_BITS).sum(-1, keepdim=True)
    k = torch.frexp(total.double()).exponent.long() - (31 - SUM_BITS) - 1                        # 2**k <= sum < 2**(k + 1)
    share = _one_over_one_plus((total << (SUM_BITS - k)) - 2**31)
    shift = k + 31 - 8                                                                      # to eight bits behind the point
    return (_halve(_times(share, terms), shift) - 128).clamp(-128, 127).to(torch.int8)


def _times(a, b):
    """round(a b / 2**31), ties up; -2**31 times itself does not occur."""
    return (a * b + 2**30) >> 31


def _halve(a, times):
    """round(a / 2**times), ties away from zero."""
    half = (1 << times) >> 1
    return a.sign() * ((a.abs() + half) >> times)


def _exp(d: torch.Tensor) -> torch.Tensor:
    """exp(d) with 31 bits behind the point, of d <= 0 with 26; 1.0 is 2**31 - 1."""
    quarter = 1 << (31 - SCALED_BITS - 2)
    r = (d & (quarter - 1)) - quarter
    x = (r << SCALED_BITS) + 2**28                                                          # r + 1/8
    x2 = _times(x, x)
    x3, x4 = _times(x2, x), _times(x2, x2)
    higher = _halve(_times(_halve(x4, 2) + x3, 715827883) + x2, 1)                          # x**4/24 + x**3/6 + x**2/2: 715827883 is 1/3
    result = 1895147668 + _times(x + higher, 1895147668)                                    # exp(-1/8) (1 + x + ...)
    for exponent, constant in EXP.items():
        result = torch.where(((r - d) >> (31 - SCALED_BITS + exponent)) & 1 == 1, _times(result, constant), result)
    return torch.where(d == 0, INT32, result)


def _one_over_one_plus(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + x) for 0 <= x < 1, 31 bits behind the point."""
    half = (x + INT32 + 1) >> 1                                                             # (1 + x) / 2, rounded up
    y = 1515870810 + _times(half, -1010580540)                                              # 48/17 - 32/17 half, 29 bits behind the point
    for _ in range(3):
        y = y + (_times(y, 2**29 - _times(half, y)) << 2).clamp(-INT32 - 1, INT32)
    return (y << 1).clamp(-INT32 - 1, INT32)
