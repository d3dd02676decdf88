"""Integer-only inference in NumPy, written from Jacob et al. 2018 and the code of its appendix's library, gemmlowp.

It walks the fake-quantized network, keeps at each node either codes with their scale and zero-point, or 32-bit sums with the real scale
of one unit, and turns sums into codes where the network has a fake quantizer.
"""

import math
import operator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from qlab.nets.fake import FakeQuantize


def rounding_doubling_high_mul(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul: C++'s division, which cuts towards zero, after a nudge."""
    ab = a.astype(np.int64) * np.int64(b)
    nudged = ab + np.where(ab >= 0, 1 << 30, 1 - (1 << 30))
    return np.sign(nudged) * (np.abs(nudged) >> 31)


def rounding_divide_by_power_of_two(x, exponent):
    """gemmlowp's RoundingDivideByPOT."""
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def scaled(a, real):
    """a * real for integers a and one real number, as integers."""
    fraction, exponent = math.frexp(real)
    m = round(fraction * (1 << 31))
    if m == 1 << 31:
        m, exponent = m // 2, exponent + 1
    if exponent < -31:
        return np.zeros_like(a)
    a = np.clip(a.astype(np.int64) << max(exponent, 0), -(1 << 31), (1 << 31) - 1)
    return rounding_divide_by_power_of_two(rounding_doubling_high_mul(a, m), max(-exponent, 0))


def convolve(x, w, stride, padding, dilation, groups):
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation)]
    windows = sliding_window_view(x, reach, (2, 3))[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]
    n, _, rows, columns = windows.shape[:4]
    windows = windows.reshape(n, groups, -1, *windows.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    return np.einsum("ngcyxij,gocij->ngoyx", windows, w).reshape(n, -1, rows, columns)


class Codes:
    """Integers q with x = scale * (q - zero_point)."""

    def __init__(self, q, scale, zero_point):
        self.q, self.scale, self.zero_point = q, scale, zero_point

    def centred(self):
        return self.q - self.zero_point


class Sums:
    """Integers of which channel c, along the axis, is worth scales[c] * total; relu: still to be applied, True or the 6 of ReLU6."""

    def __init__(self, total, scales, relu=False, axis=1):
        self.total, self.scales, self.relu, self.axis = total, scales, relu, axis


def layer(module, codes, q):
    w, w_scale = q.codes.numpy().astype(np.int64), np.broadcast_to(q.scale.double().numpy(), len(q.codes))
    b = np.zeros(len(w)) if module.bias is None else module.bias.detach().double().numpy()
    wide = np.maximum(w_scale, np.abs(b) / (codes.scale * 2**30)).astype(np.float32).astype(float)  # a bias has at most 30 bits
    w = np.rint(w * (w_scale / wide).reshape(-1, *[1] * (w.ndim - 1))).astype(np.int64)
    b = np.rint(b / (codes.scale * wide)).astype(np.int64)
    axis = -1 if isinstance(module, nn.Linear) else 1
    if isinstance(module, nn.Linear):
        total = codes.centred() @ w.T + b
    else:
        total = convolve(codes.centred(), w, module.stride, module.padding, module.dilation, module.groups) + b[:, None, None]
    assert np.abs(total).max() < 2**31
    return Sums(total, codes.scale * wide, axis=axis)


def pool(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=-(10**9))
    return sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride].max((-2, -1))


def to_codes(value, fake):
    scale, zero_point = fake.scale.item(), int(fake.zero_point)
    if isinstance(value, np.ndarray):                                                       # the network's input, in floating point
        q, relu = np.rint(value / np.float32(scale)).astype(np.int64) + zero_point, False
    elif isinstance(value, tuple):                                                          # a sum of two tensors
        (a, b), relu = value
        twice = 2 * max(a.scale, b.scale)
        total = scaled(a.centred() << 20, a.scale / twice) + scaled(b.centred() << 20, b.scale / twice)
        q = scaled(total, twice / (2**20 * scale)) + zero_point
    else:
        relu, scales = value.relu, np.broadcast_to(value.scales, value.total.shape[value.axis])
        channels = np.moveaxis(value.total, value.axis, 0)
        q = np.stack([scaled(channel, s / scale) for channel, s in zip(channels, scales)], axis=value.axis) + zero_point
    q = np.maximum(q, zero_point) if relu else q
    q = np.minimum(q, zero_point + round(6 / scale)) if relu == 6 else q
    return Codes(np.clip(q, 0, 2**fake.bits - 1), scale, zero_point)


def run(quantized, images):
    """The codes of the logits, 0 to 255, int64 (n, classes), and their FakeQuantize."""
    values, last = {}, None
    for node in quantized.model.graph.nodes:
        inputs = [values[a] for a in node.args if a in values] if node.op != "output" else []
        if node.op == "placeholder":
            values[node] = images.numpy()
        elif node.op == "call_function":
            assert node.target in (operator.add, operator.iadd)
            values[node] = (tuple(inputs), False)
        elif node.op == "call_module":
            module, x = quantized.model.get_submodule(node.target), inputs[0]
            if isinstance(module, FakeQuantize):
                values[node], last = to_codes(x, module), module
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                values[node] = layer(module, x, quantized.tensors[node.target])
            elif isinstance(module, nn.ReLU6):
                values[node] = (x[0], 6) if isinstance(x, tuple) else Sums(x.total, x.scales, 6, x.axis)
            elif isinstance(module, nn.ReLU):
                if isinstance(x, Codes):
                    values[node] = Codes(np.maximum(x.q, x.zero_point), x.scale, x.zero_point)
                else:
                    values[node] = (x[0], True) if isinstance(x, tuple) else Sums(x.total, x.scales, True, x.axis)
            elif isinstance(module, nn.MaxPool2d):
                values[node] = Codes(pool(x.q, module.kernel_size, module.stride, module.padding), x.scale, x.zero_point)
            elif isinstance(module, nn.Flatten):
                values[node] = Codes(x.q.reshape(len(x.q), -1), x.scale, x.zero_point)
            elif isinstance(module, nn.AvgPool2d):
                k = module.kernel_size
                total = sliding_window_view(x.centred(), (k, k), (2, 3))[:, :, ::module.stride, ::module.stride].sum((-2, -1))
                values[node] = Sums(total, x.scale / k**2)
            else:
                assert isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size == 1
                values[node] = Sums(x.centred().sum((2, 3), keepdims=True), x.scale / math.prod(x.q.shape[2:]))
        else:
            return values[node.args[0]].q, last
