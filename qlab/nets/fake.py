"""Fake quantization: values in floating point that could be codes. It shows what quantization does to accuracy, and never its speed.

    q     = clamp(round(x / s) + z, low, high)          x_hat = s * (q - z)                 Jacob et al. 2018, eq. 1 and 12

Rounding has the derivative 0 almost everywhere, so training would stop. The straight-through estimator (Bengio et al. 2013) passes the
gradient on as if rounding were not there, and 0 where the code is cut off. A learned step size (LSQ, Esser et al. 2020) clamps first and
rounds then: the codes are the same, but what lies beyond the last level saturates, even where it would have been rounded to it. With
v = x / s and the ends -Q_N = low - z and Q_P = high - z (eq. 3 and 5):

                           v <= -Q_N         between          v >= Q_P
    dx_hat/ds                -Q_N         round(v) - v           Q_P
    dx_hat/dx                  0                1                 0
"""

import torch
from torch import nn

from qlab.quant import linear


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        v = x / scale
        if isinstance(zero_point, torch.Tensor):
            zero_point = zero_point.to(v.dtype)                                             # low - z is negative, and codes are uint8
        ends = low - zero_point, high - zero_point
        learned = ctx.needs_input_grad[1]
        if learned:
            inside = (v > ends[0]).logical_and_(v < ends[1])
        q = v.round_()
        if not learned:
            inside = (q >= ends[0]).logical_and_(q <= ends[1])
        x_hat = q.clamp_(*ends).mul_(scale)
        ctx.save_for_backward(inside, scale, *((x, x_hat) if learned else ()))
        return x_hat

    @staticmethod
    def backward(ctx, gradient):
        inside, scale, *values = ctx.saved_tensors
        by_x, by_scale = gradient * inside, None
        if values:  # dx_hat/ds = (x_hat - x inside) / s, summed over all that share the scale
            x, x_hat = values
            by_scale = (gradient * x_hat).sub_(by_x * x).sum_to_size(scale.shape) / scale
        return by_x, by_scale, None, None, None


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int) -> torch.Tensor:
    """x_hat of the formula above. The gradient for x is the straight-through estimator's; a scale that requires a gradient is learned,
    and then both gradients are LSQ's.

    x: float, any shape. scale, and zero_point if it is a tensor: of a shape that broadcasts to x's. low, high: the codes' ends.

    >>> x, s = torch.tensor([0.3, 0.8, 1.6, 5.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize(x, s, 0, 0, 3).tolist()
    [0.5, 1.0, 1.5, 1.5]
    >>> torch.autograd.grad(fake_quantize(x, s.detach(), 0, 0, 3).sum(), x)             # 1.6 / 0.5 rounds to 3, a code
    (tensor([1., 1., 1., 0.]),)
    >>> torch.autograd.grad(fake_quantize(x, s, 0, 0, 3).sum(), x)                      # and is above 3: LSQ has it saturated
    (tensor([1., 1., 0., 0.]),)
    """
    return _FakeQuantize.apply(x, scale, zero_point, low, high)


class FakeQuantize(nn.Module):
    """A tensor of activations on 2**bits levels, one scale and zero-point (buffers) for all of it: scheme affine of qlab.quant.linear.

    >>> FakeQuantize(bits=2, x_min=0.0, x_max=1.5)(torch.tensor([0.3, 0.8, 5.0]))
    tensor([0.5000, 1.0000, 1.5000])
    """

    def __init__(self, bits: int, x_min, x_max):
        super().__init__()
        self.bits, self.top = bits, 2**bits - 1
        scale, zero_point = affine_parameters(bits, x_min, x_max)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, self.scale, self.zero_point, 0, self.top)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scale={self.scale.item():.4g}, zero_point={int(self.zero_point)}"


def affine_parameters(bits: int, x_min, x_max) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero-point (uint8) of a range, as linear.quantize sets them in scheme affine: 0.0 is exact.

    >>> affine_parameters(8, -1.0, 1.55)
    (tensor(0.0100), tensor(100, dtype=torch.uint8))
    """
    q = linear.quantize(torch.zeros(1), bits, "affine", x_min=x_min, x_max=x_max)
    return q.scale, q.zero_point
