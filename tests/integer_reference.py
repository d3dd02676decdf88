"""Integer-only inference in NumPy, written from Jacob et al. 2018 and the code of its appendix's library, gemmlowp.

It walks the fake-quantized network, keeps at each node either codes with their scale and zero-point, or 32-bit sums with the real scale
of one unit, and turns sums into codes where the network has a fake quantizer.
"""

import math
import operator

import numpy as np
import torch
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


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def convolve(x, w, stride, padding, dilation, groups):
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation)]
    if padding == "same":  # of an odd number the right side gets more
        padding = [((r - 1) // 2, r // 2) for r in reach]
    else:
        padding = [(0, 0)] * 2 if padding == "valid" else [(p, p) for p in padding]
    x = np.pad(x, ((0, 0), (0, 0), *padding))
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


def layer(module, codes, q, out):
    """out: the scale of the codes that the sums become."""
    w, w_scale = q.codes.numpy().astype(np.int64), np.broadcast_to(q.scale.double().numpy(), len(q.codes))
    b = np.zeros(len(w)) if module.bias is None else module.bias.detach().double().numpy()
    alone = ~w.reshape(len(w), -1).any(1) & (codes.scale * w_scale > out)                   # a bias and no weights: 20 bits
    w_scale = np.where(alone, np.maximum(np.abs(b), out) / (codes.scale * 2**20), w_scale)
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


def windows_of(x, kernel, stride, dilation=(1, 1)):
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    return sliding_window_view(x, reach, (2, 3))[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]


def maximum(x, module):
    """Pooling by the maximum; with ceil_mode one window more where it begins inside, on the map or its left padding."""
    kernel, dilation, padding = pair(module.kernel_size), pair(module.dilation), pair(module.padding)
    stride, far = pair(module.stride), []
    for size, k, d, p, s in zip(x.shape[2:], kernel, dilation, padding, stride):
        free = size + 2 * p - (k - 1) * d - 1
        steps = free // s
        if module.ceil_mode and free % s and (steps + 1) * s < size + p:
            steps += 1
        far.append(max(p, steps * s + (k - 1) * d + 1 - size - p))
    x = np.pad(x, ((0, 0), (0, 0), *zip(padding, far)), constant_values=-(10**9))
    return windows_of(x, kernel, stride, dilation).max((-2, -1))


def mean(codes, module):
    """The sums of windows that all hold as many values."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        wanted = [w or size for w, size in zip(pair(module.output_size), codes.q.shape[2:])]
        assert all(size % w == 0 for size, w in zip(codes.q.shape[2:], wanted))
        kernel = stride = [size // w for size, w in zip(codes.q.shape[2:], wanted)]
    else:
        kernel, stride = pair(module.kernel_size), pair(module.stride)
    return Sums(windows_of(codes.centred(), kernel, stride).sum((-2, -1)), codes.scale * float(np.float32(1 / math.prod(kernel))))


def knows(model) -> bool:
    """Whether every node is one that is walked here: layers, sums, evenly divided means, maxima, flattening, and a ReLU6 behind sums."""
    for node in model.graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if module is None and node.op in ("call_function", "call_method"):
            if node.target not in (operator.add, torch.add, "add") or len(node.args) != 2 or not all(hasattr(a, "op") for a in node.args):
                return False
        elif isinstance(module, nn.ReLU6):
            before = node.args[0]
            if before.op == "call_module" and isinstance(model.get_submodule(before.target), (FakeQuantize, nn.ReLU, nn.MaxPool2d, nn.ReLU6,
                                                                                             nn.Flatten)):
                return False
        elif isinstance(module, nn.AvgPool2d):
            if pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override:
                return False
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            if any(wanted not in (1, None) for wanted in pair(module.output_size)):         # the size of the map is not known here
                return False
        elif module is not None and not isinstance(module, (FakeQuantize, nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Flatten)):
            return False
    return True


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


def scale_behind(model, node):
    """Of the codes that a layer's sums become, perhaps after a ReLU."""
    while not (node.op == "call_module" and isinstance(model.get_submodule(node.target), FakeQuantize)):
        node = next(iter(node.users))
    return model.get_submodule(node.target).scale.item()


def run(quantized, images):
    """The codes of the logits, 0 to 255, int64 (n, classes), and their FakeQuantize."""
    values, last = {}, None
    for node in quantized.model.graph.nodes:
        inputs = [values[a] for a in node.args if a in values] if node.op != "output" else []
        if node.op == "placeholder":
            values[node] = images.numpy()
        elif node.op in ("call_function", "call_method"):
            assert node.target in (operator.add, torch.add, "add")
            values[node] = (tuple(inputs), False)
        elif node.op == "call_module":
            module, x = quantized.model.get_submodule(node.target), inputs[0]
            if isinstance(module, FakeQuantize):
                values[node], last = to_codes(x, module), module
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                values[node] = layer(module, x, quantized.tensors[node.target], scale_behind(quantized.model, node))
            elif isinstance(module, nn.ReLU6):
                values[node] = (x[0], 6) if isinstance(x, tuple) else Sums(x.total, x.scales, 6, x.axis)
            elif isinstance(module, nn.ReLU):
                if isinstance(x, Codes):
                    values[node] = Codes(np.maximum(x.q, x.zero_point), x.scale, x.zero_point)
                else:
                    values[node] = (x[0], True) if isinstance(x, tuple) else Sums(x.total, x.scales, True, x.axis)
            elif isinstance(module, nn.MaxPool2d):
                values[node] = Codes(maximum(x.q, module), x.scale, x.zero_point)
            elif isinstance(module, nn.Flatten):
                first, end = module.start_dim % x.q.ndim, module.end_dim % x.q.ndim
                values[node] = Codes(x.q.reshape(*x.q.shape[:first], -1, *x.q.shape[end + 1:]), x.scale, x.zero_point)
            else:
                assert isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d))
                values[node] = mean(x, module)
        else:
            return values[node.args[0]].q, last
