"""The arithmetic of every kind of step against NumPy's integers, on random codes, shapes, grids and multipliers."""

import math
import zlib

import numpy as np
import pytest
import step_reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.nets.softmax import softmax_multiplier
from qlab.nets.steps import RUN, Grid, Step, multiplier

EDGES = (0, 2**30, 2**30 + 1, 1342177281, 2**31 - 1)


def grid(rng, bits=None):
    half = 2 ** ((bits or rng.choice([8, 8, 8, 4, 2])) - 1)
    return Grid(float(np.float32(rng.uniform(0.001, 2))), int(rng.integers(-half, half)), -half, half - 1)


def codes(rng, *shape):
    """Full-range, one-sided or extreme codes: int8 (shape)."""
    low, high = [(-128, 127), (-128, 127), (-128, -120), (120, 127), (-128, -128), (-3, 3)][rng.integers(6)]
    return torch.from_numpy(rng.integers(low, high + 1, shape).astype(np.int8))


def scaling(rng, count, size):
    """m and n of count multipliers that bring numbers of that size to codes, extreme ones among them."""
    m, n = multiplier(np.exp(rng.normal(0, 1, count)) * 100 / max(size, 1))
    odd = torch.from_numpy(rng.random(count) < 0.2)
    extreme = torch.from_numpy(rng.choice(EDGES, count).astype(np.int32)), torch.from_numpy(rng.integers(-31, 31, count).astype(np.int8))
    return {"m": torch.where(odd, extreme[0], m), "n": torch.where(odd & (extreme[0] > 0), extreme[1], n)}


def step(rng, kind, grids, **fields):
    relu = bool(rng.integers(2)) and kind not in ("cat", "table", "softmax")
    return Step(kind, kind, tuple("abcd"[:len(grids) - 1]), "y", tuple(grids), **{"relu": relu} | fields)


def some(rng, *choices):
    return choices[rng.integers(len(choices))]


def made_conv(rng):
    groups, ins, outs, *kernel = some(rng, 1, 1, 2, 3), *map(int, rng.integers(1, 4, 4))
    if rng.random() < 0.25:
        groups, ins, outs = int(rng.integers(2, 20)), 1, 1                                  # a depthwise one
    dilation, padding = tuple(map(int, rng.integers(1, 4, 2))), some(rng, "same", "valid", (0, 0), (1, 0), (2, 3))
    stride = (1, 1) if padding == "same" else tuple(map(int, rng.integers(1, 4, 2)))
    rows, columns = ((k - 1) * d + 1 + int(rng.integers(0, 5)) for k, d in zip(kernel, dilation))
    size = 64 * 100 * math.sqrt(ins * math.prod(kernel))
    return step(rng, "conv", [grid(rng), grid(rng)], weight=codes(rng, outs * groups, ins, *kernel),
                bias=torch.from_numpy(rng.integers(-2000, 2000, outs * groups).astype(np.int32)), **scaling(rng, outs * groups, size),
                options={"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
                ), codes(rng, rng.integers(0, 4), ins * groups, rows, columns)


def made_linear(rng):
    ins, outs = map(int, rng.integers(1, 40, 2))
    return step(rng, "linear", [grid(rng), grid(rng)], weight=codes(rng, outs, ins),
                bias=torch.from_numpy(rng.integers(-2000, 2000, outs).astype(np.int32)), **scaling(rng, outs, 64 * 100 * math.sqrt(ins)),
                ), codes(rng, *rng.integers(0, 4, rng.integers(1, 4)), ins)


def made_mean(rng):
    kernel, stride = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(2))
    return step(rng, "mean", [grid(rng), grid(rng)], **scaling(rng, 1, 100 * math.prod(kernel)),
                options={"kernel_size": kernel, "stride": stride},
                ), codes(rng, rng.integers(0, 3), rng.integers(1, 4), *rng.integers(3, 9, 2))


def made_windows(rng):
    rows, columns = ([(int(i), int(i + rng.integers(1, 4))) for i in rng.integers(0, 4, rng.integers(1, 4))] for _ in range(2))
    return step(rng, "windows", [grid(rng), grid(rng)], **scaling(rng, len(rows) * len(columns), 400),
                options={"rows": rows, "columns": columns}), codes(rng, rng.integers(0, 3), 2, 7, 8)


def two(rng):
    shape = tuple(map(int, rng.integers(1, 5, 4))) if rng.random() < 0.7 else (int(rng.integers(0, 4)), 3, 4, 5)
    other = some(rng, shape, shape, (*shape[:2], 1, 1), (1, *shape[1:]), (shape[0], 1, *shape[2:]), shape[1:], (1,))
    return [codes(rng, *s) for s in ((shape, other) if rng.random() < 0.5 else (other, shape))]


def made_add(rng):
    terms, whole = multiplier(rng.uniform(0.001, 0.5, 2)), scaling(rng, 1, 2**26)
    return step(rng, "add", [grid(rng), grid(rng), grid(rng)], m=torch.cat([terms[0], whole["m"]]), n=torch.cat([terms[1], whole["n"]]),
                ), *two(rng)


def made_mul(rng):
    return step(rng, "mul", [grid(rng), grid(rng), grid(rng)], **scaling(rng, 1, 10_000)), *two(rng)


def made_cat(rng):
    count, dim = int(rng.integers(1, 5)), some(rng, 1, 1, 2, 3, -1)
    shapes = [[2, 3, 4, 5] for _ in range(count)]
    for shape in shapes:
        shape[dim] = int(rng.integers(1, 5))
    return step(rng, "cat", [grid(rng) for _ in range(count + 1)], **scaling(rng, count, 100), options={"dim": dim},
                ), *(codes(rng, *shape) for shape in shapes)


def made_table(rng):
    return step(rng, "table", [grid(rng), grid(rng)], table=codes(rng, 256)), codes(rng, *rng.integers(0, 5, rng.integers(1, 5)))


def made_relu(rng):
    return step(rng, "relu", [grid(rng)] * 2, relu=False), codes(rng, *rng.integers(0, 5, rng.integers(1, 5)))


def made_relu6(rng):
    g = grid(rng)
    return step(rng, "relu6", [g, g], relu=False, options={"high": int(rng.integers(g.zero_point, 128))},
                ), codes(rng, *rng.integers(0, 5, rng.integers(1, 5)))


def made_maxpool(rng):
    kernel, dilation = tuple(map(int, rng.integers(1, 4, 2))), tuple(map(int, rng.integers(1, 3, 2)))
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    sizes = [(k - 1) * d + 1 + int(rng.integers(0, 6)) for k, d in zip(kernel, dilation)]
    options = {"kernel_size": kernel, "stride": tuple(map(int, rng.integers(1, 4, 2))), "padding": padding, "dilation": dilation,
               "ceil_mode": bool(rng.integers(2))}
    if rng.random() < 0.3:
        options |= {"kernel_size": 2, "stride": 2, "padding": some(rng, 0, 1), "dilation": 1}
    return step(rng, "maxpool", [grid(rng)] * 2, relu=False, options=options), codes(rng, rng.integers(0, 3), 3, *np.maximum(sizes, 2))


def made_flatten(rng):
    dims = int(rng.integers(2, 5))
    start = int(rng.integers(1, dims))
    end = int(rng.integers(start, dims)) - some(rng, 0, dims)
    return step(rng, "flatten", [grid(rng)] * 2, relu=False, options={"start_dim": start, "end_dim": end},
                ), codes(rng, *rng.integers(1, 5, dims))


def made_reshape(rng):
    shape = some(rng, (24,), (2, 12), (3, 2, 2, 2), (24, 1, 1))
    return step(rng, "reshape", [grid(rng)] * 2, relu=False, options={"shape": shape}), codes(rng, rng.integers(0, 4), 2, 3, 4)


def made_permute(rng):
    dims = (0, *(1 + rng.permutation(3)).tolist())
    return step(rng, "permute", [grid(rng)] * 2, relu=False, options={"dims": dims}), codes(rng, rng.integers(0, 4), 2, 3, 4)


def made_slice(rng):
    dim, start = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    options = {"dim": dim, "start": start, "stop": start + int(rng.integers(1, 5)), "step": int(rng.integers(1, 4))}
    return step(rng, "slice", [grid(rng)] * 2, relu=False, options=options), codes(rng, 2, 5, 6, 7)


def made_pad(rng):
    far = tuple(map(int, rng.integers(-1, 4, some(rng, 2, 4, 6))))
    return step(rng, "pad", [grid(rng)] * 2, relu=False, options={"padding": far, "code": int(rng.integers(-128, 128))},
                ), codes(rng, rng.integers(0, 3), 3, 4, 5)


def made_stretch(rng):
    options = {"stride": tuple(map(int, rng.integers(1, 4, 2))), "extra": tuple(map(int, rng.integers(0, 3, 2)))}
    return step(rng, "stretch", [grid(rng)] * 2, relu=False, options=options), codes(rng, rng.integers(0, 3), 2, *rng.integers(1, 5, 2))


def made_softmax(rng):
    m, n = softmax_multiplier(float(np.exp(rng.normal(-2, 2))))
    return step(rng, "softmax", [grid(rng)] * 2, m=torch.tensor([m], dtype=torch.int32), n=torch.tensor([n], dtype=torch.int8),
                ), codes(rng, rng.integers(0, 4), rng.integers(1, 12))


MADE = {name.removeprefix("made_"): made for name, made in globals().items() if name.startswith("made_")}


def same(step, *inputs):
    before = [x.clone() for x in inputs]
    out = RUN[step.kind](step, *inputs)
    assert out.dtype == torch.int8
    np.testing.assert_array_equal(out.numpy(), step_reference.run(step, *inputs))
    assert all(map(torch.equal, inputs, before))
    return out


@pytest.mark.parametrize("kind", MADE)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_kind_computes_numpy_s_integers(kind, seed):
    same(*MADE[kind](np.random.default_rng([seed, zlib.crc32(kind.encode())])))


def test_every_kind_is_tested():
    assert set(MADE) == set(step_reference.KINDS) == set(RUN)


def test_a_result_near_the_ends_of_int32_does_not_wrap():
    """q_y = z_y + M sum: with M = 2**29 every sum is beyond int32, and z_y = 100 must not lead around it."""
    ends = Grid(1.0, 0, -128, 127), Grid(1.0, 100, -128, 127)
    m, n = multiplier([2.0**29])
    layer = Step("linear", "l", ("x",), "y", ends, weight=torch.tensor([[1]], dtype=torch.int8), bias=torch.tensor([0]).int(), m=m, n=n)
    assert same(layer, torch.tensor([[-128], [0], [127]], dtype=torch.int8)).flatten().tolist() == [-128, 100, 127]
    pool = Step("mean", "p", ("x",), "y", ends, m=m, n=n, options={"kernel_size": (1, 1), "stride": (1, 1)})
    assert same(pool, torch.tensor([-128, 0, 127], dtype=torch.int8).view(3, 1, 1, 1)).flatten().tolist() == [-128, 100, 127]
    largest = {"m": torch.full((3,), 2**31 - 1, dtype=torch.int32), "n": torch.full((3,), 30, dtype=torch.int8)}
    total = Step("add", "a", ("x", "z"), "y", (ends[0], *ends), **largest)
    assert same(total, *[torch.tensor([-128, 0, 127], dtype=torch.int8)] * 2).tolist() == [-128, 100, 127]


def test_a_relu_above_the_highest_code_leaves_that():
    ends = Grid(1.0, 0, -128, 127), Grid(1.0, 100, -128, 60)
    m, n = multiplier([0.5])
    layer = Step("linear", "l", ("x",), "y", ends, True, torch.tensor([[1]], dtype=torch.int8), torch.tensor([0]).int(), m, n)
    assert same(layer, torch.tensor([[-128], [127]], dtype=torch.int8)).flatten().tolist() == [60, 60]


@pytest.mark.parametrize("shape", [(3, 8, 8), (8,), (2, 3, 8), (1, 2, 3, 8, 8)])
def test_a_convolution_refuses_what_is_no_map(shape):
    made, _ = made_conv(np.random.default_rng(0))
    with pytest.raises(RuntimeError, match=r"a convolution takes maps, \(n, channels, rows, columns\)"):
        RUN["conv"](made, torch.zeros(shape, dtype=torch.int8))


@pytest.mark.parametrize("options", [{"kernel_size": 5}, {"padding": 2}, {"kernel_size": (3, 9)}, {"stride": 0}])
def test_max_pooling_refuses_what_torch_refuses(options):
    options = {"kernel_size": 3, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False} | options
    with pytest.raises(RuntimeError):
        RUN["maxpool"](Step("maxpool", "p", ("x",), "y", (), options=options), torch.zeros(1, 2, 4, 4, dtype=torch.int8))


@pytest.mark.parametrize("options", [{}, {"kernel_size": (2, 3), "padding": 1}, {"dilation": 2}, {"ceil_mode": True}, {"stride": None}])
@pytest.mark.parametrize("shape", [(2, 3, 9, 10), (3, 9, 10)])
def test_max_pooling_is_torch_s(options, shape):
    options = {"kernel_size": 3, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False} | options
    x = codes(np.random.default_rng(0), *shape)
    ours = RUN["maxpool"](Step("maxpool", "p", ("x",), "y", (), options=options), x)
    assert torch.equal(ours, F.max_pool2d(x.double(), **options).to(torch.int8))
