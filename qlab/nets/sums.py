"""The sums of a layer of codes in float32, exactly: what lets integers run as fast as a CPU's floating point.

    |sum over i of (x_i - z) w_i + b| <= max|x - z| sum|w| + |b|

float32 holds every integer up to 2**24. Where the right side is at most that, for every output channel, all partial sums are integers that
float32 holds, and nothing is ever rounded, in whichever order they are taken. A layer beyond it is cut between input channels into parts
that stay below it, whose sums are added in float64. The kernel must be direct: Winograd's, which multiplies transformed numbers, rounds,
and so does one that sums in bfloat16. Random codes decide it before a kernel is trusted; int32 has kernels of its own, slow ones.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

FLOAT32 = 2**24
CHECKED = 64                                                                                # output channels that random codes look at


@dataclass(frozen=True)
class Sums:
    """How a layer is summed: weights (out, ...) for a slice of the input channels each, in float32 or int32; the bias in the only part's
    sums, or added in float64; options of a convolution, None for a linear layer."""

    parts: tuple[tuple[slice, torch.Tensor], ...]
    bias: torch.Tensor | None
    added: torch.Tensor | None
    options: dict | None

    def __call__(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """int8 codes, a map (n, channels, rows, columns) or (..., channels), to sums, their channels last."""
        x = codes.to(self.parts[0][1].dtype).sub_(zero_point)                               # padding with 0 now pads with the zero-point
        if self.added is None:
            return self._part(x, self.parts[0][1])
        total = self.added
        for part, weight in self.parts:
            total = total + self._part(x[..., part] if self.options is None else x[:, part], weight)
        return total

    def _part(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.options is None:
            return F.linear(x, weight, self.bias) if x.is_floating_point() else x @ weight.T + self.bias
        return _convolve(x, weight, self.bias, **self.options).permute(0, 2, 3, 1)


def _convolve(x, w, bias, stride, padding, dilation, groups) -> torch.Tensor:
    reach = [(k - 1) * d for k, d in zip(w.shape[2:], dilation)]
    if isinstance(padding, str):
        before, after = ([r // 2 for r in reach], [r - r // 2 for r in reach]) if padding == "same" else ([0, 0], [0, 0])
    else:
        before = after = [padding, padding] if isinstance(padding, int) else list(padding)
    if before != after or any(p > r for p, r in zip(before, reach)):  # oneDNN has crashed on windows that see nothing but padding
        x, before = F.pad(x, (before[1], after[1], before[0], after[0])), [0, 0]
    if dilation != (1, 1) and not x.is_floating_point():
        # torch dilates no integers: the same kernel with zeros between its rows and columns
        spread = w.new_zeros(*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation)))
        spread[:, :, ::dilation[0], ::dilation[1]] = w
        w, dilation = spread, (1, 1)
    if x.is_floating_point():  # the order in which a convolution is fastest
        x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, w, bias, stride, before, dilation, groups)


def bound(weight: torch.Tensor, bias: torch.Tensor, zero_point: int) -> torch.Tensor:
    """max|x - z| sum|w| + |b| of each output channel, over all int8 codes x: float64 (out,). weight int8, bias int32, as in a Step.

    >>> bound(torch.tensor([[-128, 3]], dtype=torch.int8), torch.tensor([-7], dtype=torch.int32), zero_point=-28)
    tensor([20312.], dtype=torch.float64)
    """
    return _products(weight, zero_point) + bias.double().abs()                              # (127 + 28) * (128 + 3) + 7


def _products(weight: torch.Tensor, zero_point: int) -> torch.Tensor:
    size = weight.to(torch.int32).abs()                                                     # in int8, |-128| is -128
    return max(127 - zero_point, zero_point + 128) * size.flatten(1).sum(1, dtype=torch.float64)


def integers(weight: torch.Tensor, bias: torch.Tensor, options: dict | None) -> Sums:
    """The layer in int32, as it is defined."""
    return Sums(((slice(None), weight.to(torch.int32)),), bias, None, options)


def floats(weight: torch.Tensor, bias: torch.Tensor, zero_point: int, options: dict | None) -> Sums | None:
    """The layer in float32, each part within its 24 bits, or None where no cut between input channels makes it fit.

    >>> weight = torch.full((1, 2000), 127, dtype=torch.int8)
    >>> layer = floats(weight, torch.zeros(1, dtype=torch.int32), 0, None)
    >>> len(layer.parts), layer(torch.full((1, 2000), -128, dtype=torch.int8), 0).item() == -2000 * 128 * 127
    (2, True)
    """
    whole = weight.float() if options is None else weight.float().contiguous(memory_format=torch.channels_last)
    if (bound(weight, bias, zero_point) <= FLOAT32).all():
        return Sums(((slice(None), whole),), bias.float(), None, options)
    each = channels = weight.shape[1]
    grouped = options is not None and options["groups"] > 1                                 # these read other channels, and are small
    while any((_products(weight[:, i:i + each], zero_point) > FLOAT32).any() for i in range(0, channels, each)):
        if each == 1 or grouped:
            return None
        each = -(-each // 2)
    parts = [slice(None)] if each == channels else [slice(i, i + each) for i in range(0, channels, each)]
    return Sums(tuple((part, whole[:, part]) for part in parts), None, bias.double(), options)


def exact(weight: torch.Tensor, bias: torch.Tensor, zero_point: int, options: dict | None) -> Sums:
    """The way to a layer's sums that this machine's kernels take without rounding: in float32, or else in int32.

    Random codes, extreme ones among them, go through both, alone and 16 at a time: kernels are chosen by the size of a batch.
    """
    fast = floats(weight, bias, zero_point, options)
    if fast is None:
        return integers(weight, bias, options)
    few = slice(CHECKED if options is None or options["groups"] == 1 else None)             # grouped ones are small
    slow, small = integers(weight[few], bias[few], options), floats(weight[few], bias[few], zero_point, options)
    random = torch.Generator().manual_seed(0)
    shape = weight.shape[1:]
    if options is not None:
        shape = (shape[0] * options["groups"], *((k - 1) * d + 8 for k, d in zip(shape[1:], options["dilation"])))
    codes = torch.randint(-128, 128, shape, generator=random, dtype=torch.int8)
    codes = torch.where(torch.rand(shape, generator=random) < 0.5, codes, torch.where(codes < 0, -128, 127).to(torch.int8))[None]
    true = slow(codes, zero_point)
    for batch in (codes, codes.expand(16, *codes.shape[1:])):
        if small(batch, zero_point).dtype not in (torch.float32, torch.float64) or not (small(batch, zero_point) == true).all():
            return integers(weight, bias, options)
    return fast
