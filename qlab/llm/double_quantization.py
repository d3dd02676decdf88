"""Double quantization (QLoRA: Dettmers et al. 2023, section 3): the scales of the weights are quantized, too.

    w_hat  =  c_hat * level[code]                 c: float32, one for each 64 weights                          32 / 64 = 0.5 bits a weight
    c_hat  =  mean + d * e4m3[code]               8 bits; d: float32, one for each 256 c                 8 / 64 + 32 / (64 * 256) = 0.127

Scales are positive; without their mean they lie around 0, and a number format with a sign serves them. NF4 (qlab.quant.normal_float) has
4 + 0.127 = 4.127 bits a weight then, where it had 4.5: of 65 billion weights, 3 GB. The paper has 8-bit floats for the scales, and so has
this page; bitsandbytes spaces its 256 numbers otherwise.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from qlab.quant import QTensor, formats
from qlab.quant.layout import to_rows
from qlab.quant.packing import packed_size
from qlab.quant.qtensor import FORMATS

BLOCK = 256  # scales that share a scale
SCHEMES = ("symmetric", *(name for name in FORMATS if not name.startswith(("mx", "nv"))))


@dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """codes: a QTensor that decodes with the decoded scales. scales: e4m3 codes (blocks, 256) and their d, the last block filled up with
    zeros, which no file would hold; mean: float32 ().

    >>> nf4(torch.randn(256, 256)).bits_per_weight                           # 4 + 8 / 64 + 32 / (64 * 256), and a mean
    4.12744140625
    """

    codes: QTensor
    scales: QTensor
    mean: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes as a file would hold it: packed codes, a byte for each scale, a float32 for each block of scales, the mean."""
        codes = packed_size(self.codes.codes.numel(), self.codes.bits)
        return codes + self.codes.scale.numel() + self.scales.scale.nbytes + self.mean.nbytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.codes.codes.numel()

    def dequantize(self) -> torch.Tensor:
        """The decoded values: shape and dtype of the original."""
        return self.codes.dequantize()

    def to(self, device) -> "DoubleQuantized":
        """The same on another device."""
        return DoubleQuantized(self.codes.to(device), self.scales.to(device), self.mean.to(device))


def nf4(weight: torch.Tensor, group_size: int | None = None) -> DoubleQuantized:
    """A weight (any shape, floats) in NF4, groups of 64 cut in memory order, and its scales in 8 bits.

    Raises TypeError for weights that are not floating point; ValueError for NaN, infinity, no weights, a group size that does not divide.

    >>> w = torch.linspace(-1, 1, 4096).reshape(64, 64)
    >>> float((nf4(w).dequantize() - w).abs().max()) < 0.16                  # half of the widest step, and what the scale is off
    True
    """
    return double(formats.quantize(weight, "nf4", group_size=group_size, scale_dtype=torch.float32))


def double(q: QTensor) -> DoubleQuantized:
    """The same codes with their scales in 8 bits. q: symmetric, nf4 or a small floating-point format, with float32 scales.

    A group of zeros decodes to zeros whatever its scale is: it takes the mean, so that none of its neighbours pays for it. A scale is off
    by at most 1/16 of its distance from the mean, or d / 1024 where that is more.
    Raises TypeError for what is no QTensor; ValueError for other schemes, scales that are not float32, no weights.

    >>> q = double(formats.quantize(torch.tensor([1.0, 3.0, 0.0, -4.0]), "e2m1", group_size=1))
    >>> q.mean, q.codes.scale * 6                                            # the mean of 1, 3 and 4, by 6
    (tensor(0.4444), tensor([1.0000, 2.9940, 2.6667, 3.9762]))
    """
    if not isinstance(q, QTensor):
        raise TypeError(f"q is a {type(q).__name__}, and must be a QTensor: quantize the weights first, by formats.quantize for example.")
    if q.scheme not in SCHEMES:
        raise ValueError(f"the scheme of q is {q.scheme!r}, and must be one of {', '.join(SCHEMES)}: a scale times a number, and no more.")
    if q.scale.dtype != torch.float32:
        raise ValueError(f"the scales of q are {q.scale.dtype}, and must be torch.float32: quantize with scale_dtype=torch.float32.")
    if not q.codes.numel():
        raise ValueError("q holds no weights, and must hold one at least.")
    c = q.scale.flatten()
    used = to_rows(q.dequantize(), q.axis, q.group_size).abs().amax(1) > 0
    mean = c[used].mean() if bool(used.any()) else c.new_ones(())
    centred = torch.where(used, c - mean, 0.0)
    scales = formats.quantize(pad(centred, (0, -len(c) % min(BLOCK, len(c)))).view(-1, min(BLOCK, len(c))), "e4m3", axis=0)
    decoded = (mean + scales.dequantize().flatten()[:len(c)]).clamp(min=torch.finfo(torch.float32).tiny)
    return DoubleQuantized(replace(q, scale=decoded.view(q.scale.shape)), scales, mean)
