"""Every kind of step of qlab.nets.steps in NumPy's int64, from the formulas of its docstring: no torch, and nothing of what it tests.

    run(step, *codes)       the new codes of one step
    network(net, codes)     those of the logits
Codes go in as int8 tensors or arrays, and come out as int64 arrays. The two roundings are gemmlowp's, which integer_reference holds.
"""

import itertools
import math

import numpy as np
from integer_reference import pair, rounding_divide_by_power_of_two, rounding_doubling_high_mul

INT32 = 2**31 - 1


def saturated(a):
    return np.clip(a, -INT32 - 1, INT32)


def times(a, m, n):
    """round(a m 2**(n - 31)) of 32-bit integers a, in the library's order: to the left, high multiplication, to the right."""
    a = saturated(np.asarray(a, np.int64) << max(n, 0))
    return rounding_divide_by_power_of_two(rounding_doubling_high_mul(a, m), max(-n, 0))


def fit(step, steps_above):
    """Codes from whole steps above the zero-point: the grid's ends, and of a ReLU the code of 0.0."""
    grid = step.grids[-1]
    q = grid.zero_point + steps_above
    q = np.maximum(q, grid.zero_point) if step.relu else q
    return np.minimum(np.maximum(q, grid.low), grid.high)


def multipliers(step):
    return list(zip(np.asarray(step.m).tolist(), np.asarray(step.n).tolist()))


def above(step, i, q):
    return q - step.grids[i].zero_point


def around(x, far, value):
    """x, a map, with value around: far = ((top, bottom), (left, right)). A negative number takes away."""
    out = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(max(a, 0), max(b, 0)) for a, b in far], constant_values=value)
    rows, columns = (slice(max(-a, 0), size - max(-b, 0)) for (a, b), size in zip(far, out.shape[-2:]))
    return out[..., rows, columns]


def conv(step, q):
    o, x, w = step.options, above(step, 0, q), np.asarray(step.weight).astype(np.int64)
    (down, right), reach = o["stride"], [(k - 1) * d for k, d in zip(w.shape[2:], o["dilation"])]
    if isinstance(o["padding"], str):  # "same": of an odd number the right side gets more
        far = [(r // 2, r - r // 2) if o["padding"] == "same" else (0, 0) for r in reach]
    else:
        far = [(p, p) for p in pair(o["padding"])]
    x = around(x, far, 0)
    rows, columns = (max(0, (size - r - 1) // s + 1) for size, r, s in zip(x.shape[2:], reach, (down, right)))
    outs, ins = len(w) // o["groups"], w.shape[1]
    total = np.zeros((len(x), len(w), rows, columns), np.int64) + np.asarray(step.bias).astype(np.int64)[:, None, None]
    for channel, i, j, k in itertools.product(range(len(w)), range(ins), range(w.shape[2]), range(w.shape[3])):
        top, left = j * o["dilation"][0], k * o["dilation"][1]
        seen = x[:, channel // outs * ins + i, top:top + (rows - 1) * down + 1:down, left:left + (columns - 1) * right + 1:right]
        total[:, channel] += w[channel, i, j, k] * seen
    assert np.abs(total).max(initial=0) <= INT32
    return fit(step, np.stack([times(total[:, c], m, n) for c, (m, n) in enumerate(multipliers(step))], 1))


def linear(step, q):
    x, out = above(step, 0, q), []
    for w, b, (m, n) in zip(np.asarray(step.weight).astype(np.int64), np.asarray(step.bias).astype(np.int64), multipliers(step)):
        total = (x * w).sum(-1) + b
        assert np.abs(total).max(initial=0) <= INT32
        out.append(times(total, m, n))
    return fit(step, np.stack(out, -1))


def mean(step, q):
    x, (kernel, stride), (m, n) = above(step, 0, q), (step.options["kernel_size"], step.options["stride"]), multipliers(step)[0]
    rows, columns = ((size - k) // s + 1 for size, k, s in zip(x.shape[2:], kernel, stride))
    total = np.zeros((*x.shape[:2], rows, columns), np.int64)
    for i, j in np.ndindex(rows, columns):
        total[:, :, i, j] = x[:, :, i * stride[0]:i * stride[0] + kernel[0], j * stride[1]:j * stride[1] + kernel[1]].sum((2, 3))
    return fit(step, times(total, m, n))


def windows(step, q):
    x, each = above(step, 0, q), iter(multipliers(step))
    return fit(step, np.stack([np.stack([times(x[..., top:bottom, left:right].sum((-2, -1)), *next(each))
                                         for left, right in step.options["columns"]], -1) for top, bottom in step.options["rows"]], -2))


def add(step, a, b):
    first, second, whole = multipliers(step)
    total = times(above(step, 0, a) * 2**20, *first) + times(above(step, 1, b) * 2**20, *second)
    return fit(step, times(saturated(total), *whole))


def mul(step, a, b):
    return fit(step, times(above(step, 0, a) * above(step, 1, b), *multipliers(step)[0]))


def cat(step, *inputs):
    return np.concatenate([fit(step, times(above(step, i, q), *mn)) for i, (q, mn) in enumerate(zip(inputs, multipliers(step)))],
                          step.options["dim"])


def maxpool(step, q):
    """With ceil_mode one window more where it begins on the map or its left padding."""
    o, spans = step.options, []
    kernel, dilation, padding, stride = (pair(o[name]) for name in ("kernel_size", "dilation", "padding", "stride"))
    for size, k, d, p, s in zip(q.shape[-2:], kernel, dilation, padding, stride):
        free = size + 2 * p - (k - 1) * d - 1
        count = free // s + 1
        if o["ceil_mode"] and free % s and count * s < size + p:
            count += 1
        spans.append([[at for at in range(i * s - p, i * s - p + (k - 1) * d + 1, d) if 0 <= at < size] for i in range(count)])
    out = np.full((*q.shape[:-2], len(spans[0]), len(spans[1])), -128)
    for (i, rows), (j, columns) in itertools.product(enumerate(spans[0]), enumerate(spans[1])):
        out[..., i, j] = q[..., rows, :][..., columns].max((-2, -1), initial=-128)
    return out


def stretch(step, q):
    (down, right), (below, beside) = step.options["stride"], step.options["extra"]
    rows, columns = ((size - 1) * s + 1 + more for size, s, more in zip(q.shape[-2:], (down, right), (below, beside)))
    out = np.full((*q.shape[:-2], rows, columns), step.grids[0].zero_point)
    for i, j in np.ndindex(*q.shape[-2:]):
        out[..., i * down, j * right] = q[..., i, j]
    return out


def flatten(step, q):
    start, end = (step.options[name] % q.ndim for name in ("start_dim", "end_dim"))
    return q.reshape(*q.shape[:start], math.prod(q.shape[start:end + 1]), *q.shape[end + 1:])


def padded(step, q):
    """torch's order: the last dimension first, its beginning and its end. A negative number takes away."""
    far = step.options["padding"]
    for axis, (before, after) in enumerate(zip(far[::2], far[1::2]), 1):
        q = np.moveaxis(q, -axis, -1)
        q = around(q[..., None, :], ((0, 0), (before, after)), step.options["code"])[..., 0, :]
        q = np.moveaxis(q, -1, -axis)
    return q


def part(step, q):
    o = step.options
    return np.take(q, range(*slice(o["start"], o["stop"], o["step"]).indices(q.shape[o["dim"]])), o["dim"])


# Softmax: gemmlowp's fixedpoint.h and TensorFlow Lite's reference/softmax.h, on Python's integers


def doubling(a, b):
    return int(rounding_doubling_high_mul(np.array(a), b))


def down(x, exponent):
    return int(rounding_divide_by_power_of_two(np.array(x), exponent))


def exp_on_negative_values(a):
    """exp of a number with 26 bits behind the point, a <= 0; 31 bits behind the point."""
    if a == 0:
        return INT32
    low = (a & (2**24 - 1)) - 2**24
    x = (low << 5) + 2**28
    x2 = doubling(x, x)
    x3, x4 = doubling(x2, x), doubling(x2, x2)
    result = 1895147668 + doubling(x + down(doubling(down(x4, 2) + x3, 715827883) + x2, 1), 1895147668)
    for bit, constant in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242), 24):
        if (low - a) & 1 << bit:
            result = doubling(result, constant)
    return result


def one_over_one_plus(a):
    half = (a + INT32 + 1) // 2
    x = 1515870810 + doubling(half, -1010580540)
    for _ in range(3):
        x += int(saturated(doubling(x, 2**29 - doubling(half, x)) << 2))
    return int(saturated(x << 1))


def softmax(step, q):
    (m, n), out = multipliers(step)[0], np.full(q.shape, -128)
    smallest = -math.floor(31 * 2**26 / 2**n)
    for where in np.ndindex(q.shape[:-1]):
        row = (q[where] - q[where].max()).tolist()
        terms = [exp_on_negative_values(doubling(d << n, m)) if d >= smallest else None for d in row]
        total = sum(down(term, 12) for term in terms if term is not None)
        head = 32 - total.bit_length()
        share = one_over_one_plus((total << head) - 2**31)
        for i, term in enumerate(terms):
            if term is not None:
                out[where][i] = min(127, down(doubling(share, term), 12 - head + 31 - 8) - 128)
    return out


KINDS = {
    "conv": conv, "linear": linear, "mean": mean, "windows": windows, "add": add, "mul": mul, "cat": cat, "maxpool": maxpool,
    "stretch": stretch, "flatten": flatten, "pad": padded, "slice": part, "softmax": softmax,
    "table": lambda step, q: np.asarray(step.table).astype(np.int64)[q + 128],
    "relu": lambda step, q: np.maximum(q, step.grids[0].zero_point),
    "relu6": lambda step, q: np.minimum(np.maximum(q, step.grids[0].zero_point), step.options["high"]),
    "reshape": lambda step, q: q.reshape(len(q), *step.options["shape"]),
    "permute": lambda step, q: q.transpose(step.options["dims"]),
}


def run(step, *codes):
    """The codes of one step, int64."""
    return KINDS[step.kind](step, *(np.asarray(q).astype(np.int64) for q in codes))


def network(net, codes):
    """The codes of the logits, int64: every step of an IntegerNetwork in turn."""
    values = {net.input: np.asarray(codes).astype(np.int64)}
    for step in net.steps:
        values[step.output] = run(step, *(values[name] for name in step.inputs))
    return values[net.output]
