"""Block scaling: a few neighbouring numbers share a scale that is itself a small number, so that the scales cost little.

    MX       x_hat = 2**(e - 127) * element       e = floor(log2(max|x|)) - emax + 127, one byte (e8m0) for 32 numbers
                                                  emax: the exponent of the element format's largest number
                                                                           OCP Microscaling Formats (MX) 1.0, section 6.3
    NVFP4    x_hat = t * s * element              t = max|tensor| / (448 * 6), float32, for the tensor
                                                  s = e4m3(max|block| / 6 / t) for 16 numbers         NVIDIA's, as in torchao

MX's scale is a power of two, so decoding only adds exponents; and by the floor the largest number of a block lies from 2**emax up to
2**(emax + 1), of which the part above the largest element saturates: 7.9 times a scale becomes 6 in MXFP4. NVFP4's scale has three bits of
mantissa, and puts the largest number of each block near 6; what e4m3's short range lacks, the tensor's scale makes up for.
"""

import math
from typing import NamedTuple

import torch

from qlab.quant import small_floats


class Block(NamedTuple):
    """element: the format of the numbers (qlab.quant.small_floats). scale: the dtype of a block's scale. size: numbers in a block."""

    element: str
    scale: torch.dtype
    size: int


E8M0, E4M3 = torch.float8_e8m0fnu, torch.float8_e4m3fn
FORMATS = {"mxfp8_e4m3": Block("e4m3", E8M0, 32), "mxfp8_e5m2": Block("e5m2", E8M0, 32), "mxfp6_e3m2": Block("e3m2", E8M0, 32),
           "mxfp6_e2m3": Block("e2m3", E8M0, 32), "mxfp4": Block("e2m1", E8M0, 32), "nvfp4": Block("e2m1", E4M3, 16)}
LEAST = 2.0**-120  # NVFP4's scale of a tensor: 1 / t and 1 / (t * s) are then no infinity


def mx(rows: torch.Tensor, element: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (blocks, size) and scales (blocks,), float8_e8m0fnu, of finite float32 or float64 rows, one a block.

    >>> codes, scale = mx(torch.tensor([[1.0, -0.3, 15.9, 12.0]]), "e2m1")
    >>> scale.float(), small_floats.decode(codes, "e2m1") * scale.float()      # 2**3 <= 15.9, and 2**3 / 4 = 2
    (tensor([2.]), tensor([[ 1., -0., 12., 12.]]))
    """
    f = small_floats.FORMATS[element]
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    exponent = torch.frexp(largest).exponent - math.frexp(f.largest)[1]
    exponent = torch.where(largest > 0, exponent, -127).clamp(-127, 127)                    # zeros: as of the least number
    scale = (exponent + 127).to(torch.uint8).view(E8M0)
    return small_floats.rounded(rows / scale.to(rows.dtype)[:, None], f), scale             # by a power of two: exact


def nv(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (blocks, size), scales (blocks,), float8_e4m3fn, and the tensor's scale, float32 (), of finite float32 or float64 rows.

    A block's scale is at least 2**-6, the smallest normal number of e4m3, as torchao has it.

    >>> codes, scale, of_tensor = nv(torch.tensor([[2688.0, 100.0], [6.0, 2.0]]))
    >>> of_tensor, scale.float(), codes.tolist()
    (tensor(1.), tensor([448.,   1.]), [[7, 0], [7, 4]])
    """
    f, of_scale = small_floats.FORMATS["e2m1"], small_floats.FORMATS["e4m3"]
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    of_tensor = largest.max() if len(rows) else rows.new_zeros(())
    of_tensor = (of_tensor / (of_scale.largest * f.largest)).clamp(LEAST, torch.finfo(torch.float32).max).float()
    wanted = (largest / f.largest / of_tensor.to(rows.dtype)).clamp(min=2.0 ** (1 - of_scale.bias))
    scale = small_floats.rounded(wanted, of_scale).view(E4M3)
    inverse = (1 / of_tensor.to(rows.dtype)) / scale.to(rows.dtype)                         # in this order, as kernels do: the same bits
    return small_floats.rounded(rows * inverse[:, None], f), scale, of_tensor
