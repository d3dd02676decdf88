"""Fake quantization: values in floating point that could be codes. It shows what quantization does to accuracy, and never its speed.

    q     = clamp(round(x / s) + z, low, high)          x_hat = s * (q - z)                 Jacob et al. 2018, eq. 1 and 12

Rounding has the derivative 0 almost everywhere, so training would stop. The straight-through estimator (Bengio et al. 2013) passes the
gradient on as if rounding were not there, and 0 where the code is cut off. A learned step size (LSQ, Esser et al. 2020) clamps first and
rounds then: the codes are the same, but what lies beyond the last level saturates, even where it would have been rounded to it. With
v = x / s and the ends -Q_N = low - z and Q_P = high - z (eq. 3 and 5):

                           v <= -Q_N         between          v >= Q_P
    dx_hat/ds                -Q_N         round(v) - v           Q_P
    dx_hat/dx                  0                1                 0

In half precision x / s would be rounded before it is rounded to a code, and every 15th code of bfloat16 would be another: whatever the
dtype of x, this page computes in float32 or wider, and its scales stay float32 when the model around them is halved.
"""

import torch

from qlab.quant import linear
from qlab.quant.settled import Settled

HALVES = (torch.float16, torch.bfloat16)


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 where it is in half precision, else x itself."""
    return x.float() if x.dtype in HALVES else x


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        given, x, s = x, wide(x), wide(scale)
        v = x / s
        if isinstance(zero_point, torch.Tensor):
            zero_point = zero_point.to(v.dtype)                                             # low - z is negative, and codes are uint8
        ends = low - zero_point, high - zero_point
        learned = ctx.needs_input_grad[1]
        if learned:
            inside = (v > ends[0]).logical_and_(v < ends[1])
        q = v.round_()
        if not learned:
            inside = (q >= ends[0]).logical_and_(q <= ends[1])
        x_hat = q.clamp_(*ends).mul_(s)
        ctx.save_for_backward(inside, scale, *((x, x_hat) if learned else ()))
        return x_hat.to(given.dtype)

    @staticmethod
    def backward(ctx, gradient):
        inside, scale, *values = ctx.saved_tensors
        by_x, by_scale = gradient * inside, None
        if values:  # dx_hat/ds = (x_hat - x inside) / s, summed over all that share the scale
            x, x_hat = values
            total = (wide(gradient) * x_hat).sub_(wide(by_x) * x).sum_to_size(scale.shape)
            by_scale = (total / wide(scale)).to(scale.dtype)
        return by_x, by_scale, None, None, None


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int) -> torch.Tensor:
    """x_hat of the formula above. The gradient for x is the straight-through estimator's; a scale that requires a gradient is learned,
    and then both gradients are LSQ's.

    x: float, any shape. scale, and zero_point if it is a tensor: of a shape that broadcasts to x's. low, high: the codes' ends.
    x_hat and the gradient for x have the dtype of x. The codes of float16 and bfloat16 are those of their float32 copies.

    >>> x, s = torch.tensor([0.3, 0.8, 1.6, 5.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize(x, s, 0, 0, 3).tolist()
    [0.5, 1.0, 1.5, 1.5]
    >>> torch.autograd.grad(fake_quantize(x, s.detach(), 0, 0, 3).sum(), x)             # 1.6 / 0.5 rounds to 3, a code
    (tensor([1., 1., 1., 0.]),)
    >>> torch.autograd.grad(fake_quantize(x, s, 0, 0, 3).sum(), x)                      # and is above 3: LSQ has it saturated
    (tensor([1., 1., 0., 0.]),)
    """
    return _FakeQuantize.apply(x, scale, zero_point, low, high)


class FakeQuantize(Settled):
    """A tensor of activations on 2**bits levels, one scale and zero-point (buffers) for all of it: scheme affine of qlab.quant.linear.

    half(), double() and the like leave the scale float32. A state dict holds bits: loading it under others is a ValueError.

    >>> FakeQuantize(bits=2, x_min=0.0, x_max=1.5)(torch.tensor([0.3, 0.8, 5.0]))
    tensor([0.5000, 1.0000, 1.5000])
    """

    settings_required = False  # a file that holds tensors alone is taken as it is

    def __init__(self, bits: int, x_min, x_max):
        super().__init__()
        self.bits, self.top = bits, 2**bits - 1
        scale, zero_point = affine_parameters(bits, x_min, x_max)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def settings(self) -> dict:
        return {"bits": self.bits}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, self.scale, self.zero_point, 0, self.top)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scale={self.scale.item():.4g}, zero_point={int(self.zero_point)}"


def affine_parameters(bits: int, x_min, x_max) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero-point (uint8) of a range, as linear.quantize sets them in scheme affine: 0.0 is exact.

    >>> affine_parameters(8, -1.0, 1.55)
    (tensor(0.0100), tensor(100, dtype=torch.uint8))
    """
    q = linear.quantize(torch.zeros(1, dtype=torch.float32), bits, "affine", x_min=x_min, x_max=x_max)
    return q.scale, q.zero_point
