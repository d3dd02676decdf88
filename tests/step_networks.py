"""Random integer-only networks of every kind of step, made by hand: what no converter needs to know how to make.

    network(rng, count)     an IntegerNetwork of about that many steps, and the shape of its images
Any tensor may be read by several steps, in any order of its dimensions; shapes have one to five dimensions behind that of the images.
"""

import itertools
import math

import numpy as np
import test_steps
import torch
from test_steps import codes, scaling, some

from qlab.nets.integer import RUN, Grid, IntegerNetwork, Step


def whole(rng, low, high, count=None):
    found = rng.integers(low, high + 1, count)
    return int(found) if count is None else tuple(map(int, found))


def grid(rng, bits=None):
    made = test_steps.grid(rng, bits)
    return Grid(made.scale, *map(int, (made.zero_point, made.low, made.high)))              # as a file holds them


def weights(rng, outs, *shape):
    return {"weight": codes(rng, outs, *shape), "bias": torch.from_numpy(rng.integers(-2000, 2000, outs).astype(np.int32)),
            **scaling(rng, outs, 64 * 50 * math.sqrt(math.prod(shape)))}


def conv(rng, shape):
    channels, *sizes = shape
    groups = some(rng, 1, 1, channels, math.gcd(channels, 4))
    kernel, dilation, stride = (whole(rng, 1, 3, 2) for _ in range(3))
    padding = some(rng, whole(rng, 0, 2, 2), "same", "valid")
    options = {"stride": (1, 1) if padding == "same" else stride, "padding": padding, "dilation": dilation, "groups": groups}
    return weights(rng, groups * whole(rng, 1, 3), channels // groups, *kernel) | {"options": options}


def linear(rng, shape):
    return weights(rng, whole(rng, 1, 9), shape[-1])


def mean(rng, shape):
    kernel = tuple(whole(rng, 1, size) for size in shape[-2:])
    return scaling(rng, 1, 100 * math.prod(kernel)) | {"options": {"kernel_size": kernel, "stride": whole(rng, 1, 3, 2)}}


def windows(rng, shape):
    rows, columns = (tuple((start, whole(rng, start + 1, size)) for start in whole(rng, 0, size - 1, whole(rng, 1, 3)))
                     for size in shape[-2:])
    return scaling(rng, len(rows) * len(columns), 300) | {"options": {"rows": rows, "columns": columns}}


def maxpool(rng, shape):
    kernel = tuple(whole(rng, 1, min(3, size)) for size in shape[-2:])
    return {"options": {"kernel_size": kernel, "stride": whole(rng, 1, 3, 2), "padding": tuple(whole(rng, 0, k // 2) for k in kernel),
                        "dilation": 1, "ceil_mode": bool(whole(rng, 0, 1))}}


def reshape(rng, shape):
    """In torch's order, to a few dimensions: often by splitting or joining two."""
    count, sizes = math.prod(shape), []
    for _ in range(whole(rng, 0, 4)):
        sizes.append(some(rng, *[n for n in range(1, count + 1) if count % n == 0]))
        count //= sizes[-1]
    return {"options": {"shape": (*sizes, count)}}


def split(rng, shape):
    dim = whole(rng, 0, len(shape) - 1)
    start = whole(rng, 0, shape[dim] - 1)
    return {"options": {"dim": dim + 1, "start": start, "stop": whole(rng, start + 1, shape[dim]), "step": some(rng, 1, 1, 2)}}


def pad(rng, shape):
    low = 0 if min(shape) < 3 else -1
    return {"options": {"padding": whole(rng, low, 2, 2 * whole(rng, 1, min(3, len(shape)))), "code": whole(rng, -128, 127)}}


def flatten(rng, shape):
    start = whole(rng, 1, len(shape))
    return {"options": {"start_dim": start, "end_dim": some(rng, -1, whole(rng, start, len(shape)))}}


ONE = {
    "conv": conv, "linear": linear, "mean": mean, "windows": windows, "maxpool": maxpool, "reshape": reshape, "slice": split, "pad": pad,
    "flatten": flatten, "relu": lambda rng, shape: {}, "relu6": lambda rng, shape: {"options": {"high": whole(rng, 0, 127)}},
    "table": lambda rng, shape: {"table": codes(rng, 256)},
    "softmax": lambda rng, shape: {"m": torch.tensor([whole(rng, 2**30, 2**31 - 1)], dtype=torch.int32),
                                   "n": torch.tensor([whole(rng, 15, 29)], dtype=torch.int8)},
    "permute": lambda rng, shape: {"options": {"dims": (0, *(1 + rng.permutation(len(shape))).tolist())}},
    "stretch": lambda rng, shape: {"options": {"stride": whole(rng, 1, 2, 2), "extra": whole(rng, 0, 1, 2)}},
}
SEVERAL = ("add", "mul", "cat")
MAPS = ("conv", "mean", "windows", "maxpool", "stretch")
FUSED = ("conv", "linear", "mean", "windows", "add", "mul")


def terms(rng, kind, shapes):
    """Names of tensors that a sum, product or concatenation may take, and the fields."""
    name = some(rng, *shapes)
    shape = shapes[name]
    if kind == "cat":
        dim = whole(rng, 0, len(shape) - 1)
        fits = [n for n, s in shapes.items() if len(s) == len(shape) and all(i == dim or a == b for i, (a, b) in enumerate(zip(s, shape)))]
        names = [some(rng, *fits) for _ in range(whole(rng, 1, 3))]
        return names, scaling(rng, len(names), 100) | {"options": {"dim": dim + 1}}
    fits = [n for n, s in shapes.items() if len(s) == len(shape) and all(1 in (a, b) or a == b for a, b in zip(s, shape))]
    other = some(rng, *fits)
    if kind == "mul":
        return [name, other], scaling(rng, 1, 3000)
    ends = scaling(rng, 1, 2**26)
    return [name, other], {"m": torch.cat([torch.tensor([2**30, 1342177281], dtype=torch.int32), ends["m"]]),
                           "n": torch.cat([torch.tensor([0, -1], dtype=torch.int8), ends["n"]])}


def network(rng, count=12, kinds=(*ONE, *SEVERAL)) -> tuple[IntegerNetwork, tuple[int, ...]]:
    shape = some(rng, (3, 5, 6), (4, 3, 7), (2, 8), (4, 6), (12,), (8, 4, 4))
    values, steps, shapes = {"x": torch.zeros(1, *shape, dtype=torch.int8)}, [], {"x": shape}
    grids = {"x": grid(rng, 8)}
    for i in range(count):
        kind, recent = some(rng, *kinds), dict(itertools.islice(reversed(shapes.items()), some(rng, 1, 2, 3, 9)))
        if kind in SEVERAL:
            names, fields = terms(rng, kind, recent)
        else:
            names = [some(rng, *recent)]
            at = shapes[names[0]]
            if kind in MAPS and len(at) != 3:
                continue
            fields = ONE[kind](rng, at)
        given = [grids[name] for name in names]
        makes = "m" in fields or "table" in fields
        out = Grid(1 / 256, -128, -128, 127) if kind == "softmax" else grid(rng) if makes else given[0]
        step = Step(kind, f"{kind}_{i}", tuple(names), f"t{i}", (*given, out), **{"relu": kind in FUSED and rng.random() < 0.3} | fields)
        try:
            made = RUN[kind](step, *(values[name] for name in names))
        except (RuntimeError, IndexError):
            continue                                                                        # a window larger than its map
        if 0 < made.numel() <= 3000 and made.dim() <= 6:
            steps.append(step)
            values[step.output], shapes[step.output], grids[step.output] = made, tuple(made.shape[1:]), out
    if not steps:
        return network(rng, count, kinds)
    return IntegerNetwork(tuple(steps), "x", steps[-1].output, grids["x"], grids[steps[-1].output]), shape
