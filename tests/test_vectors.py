"""Other projects' test vectors (tests/data/README.md) against the steps of qlab.nets.integer and the C kernels, bit for bit."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from c_library import one_library

from qlab.deploy import c
from qlab.nets import integer
from qlab.nets.integer import Grid, IntegerNetwork, Step

DATA = Path(__file__).parent / "data"
CMSIS = np.load(DATA / "cmsis_nn.npz")
MICRO = np.load(DATA / "tflite_micro.npz")
CASES = {case["name"]: (number, case["kind"], case["cfg"]) for number, case in enumerate(json.loads(str(CMSIS["cases"])))}
LEFT_OUT = {
    **dict.fromkeys(("avgpooling", "avgpooling_2", "avgpooling_4"), "its windows reach over the edge and hold 3, 15 or 25 values: a mean "
                    "is a sum times a multiplier, rounded twice, and CMSIS-NN divides"),
    "fully_connected_w_zp": "its weights have a zero-point, and ours are symmetric",
}


@dataclass(frozen=True)
class Case:
    """A step, the int8 codes it gets (n, ...), and the codes it must give."""

    step: Step
    inputs: tuple[torch.Tensor, ...]
    out: torch.Tensor


def codes(values, *shape) -> torch.Tensor:
    """int8 codes; maps (n, rows, columns, channels) as torch has them."""
    whole = torch.from_numpy(np.asarray(values)).view(shape)
    assert -128 <= int(whole.min()) and int(whole.max()) <= 127
    return (whole.movedim(-1, 1) if len(shape) == 4 else whole).to(torch.int8).contiguous()


def nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    """int4 numbers out of bytes, the low half first.

    >>> nibbles(np.array([0x7f]), 2).tolist()
    [-1, 7]
    """
    halves = np.stack([packed & 15, packed >> 4 & 15], 1).ravel()[:count]
    return np.where(halves > 7, halves - 16, halves)


def window(x, zero, kernel, stride, pad, dilation, out):
    """The input and the padding that a step gets: its own where torch's symmetric one gives these rows and columns, else what is missing
    is put around the input."""
    missing = [(o - 1) * s + (k - 1) * d + 1 - i - p for o, s, k, d, i, p in zip(out, stride, kernel, dilation, x.shape[2:], pad)]
    if all((i + 2 * p - (k - 1) * d - 1) // s + 1 == o for i, p, k, d, s, o in zip(x.shape[2:], pad, kernel, dilation, stride, out)):
        return x, pad
    right = [max(0, m) for m in missing]
    x = F.pad(x, (pad[1], right[1], pad[0], right[0]), value=zero)
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation)]
    return x[:, :, :reach[0], :reach[1]].contiguous(), (0, 0)


def multipliers(number, cfg, channels):
    if f"{number}.m" in CMSIS and "OUTPUT_MULTIPLIER" not in cfg:
        m, n = CMSIS[f"{number}.m"], CMSIS[f"{number}.s"]
    else:
        m, n = [cfg["OUTPUT_MULTIPLIER"]] * channels, [cfg["OUTPUT_SHIFT"]] * channels
    assert len(m) == len(n) == channels
    return torch.as_tensor(np.array(m), dtype=torch.int32), torch.as_tensor(np.array(n), dtype=torch.int8)


def layer(name) -> Case:
    """A convolution, depthwise convolution or fully connected layer of CMSIS-NN; int4 weights are int8 weights of small numbers."""
    number, kind, cfg = CASES[name]
    batch, channels, outs = cfg["INPUT_BATCHES"], cfg["IN_CH"], cfg["OUT_CH"]
    x, out = CMSIS[f"{number}.x"], CMSIS[f"{number}.out"]
    limits = cfg["OUT_ACTIVATION_MIN"], cfg["OUT_ACTIVATION_MAX"]
    grids = (Grid(1.0, -cfg["INPUT_OFFSET"], -128, 127), Grid(1.0, cfg["OUTPUT_OFFSET"], *limits))
    bias = torch.from_numpy(CMSIS[f"{number}.bias"]) if f"{number}.bias" in CMSIS else torch.zeros(outs, dtype=torch.int32)
    kernel = (cfg.get("FILTER_Y", 1), cfg.get("FILTER_X", 1))
    if kind == "fc":
        depth, channels = cfg["ACCUMULATION_DEPTH"], cfg["ACCUMULATION_DEPTH"]
    else:
        depth = math.prod(kernel) * (1 if kind == "depthwise" else cfg.get("FILTER_CH", channels))
    w = CMSIS[f"{number}.w"]
    w = nibbles(w, depth * outs) if len(w) == -(-depth * outs // 2) and "int4" in name else w
    m, n = multipliers(number, cfg, outs)
    step = {"grids": grids, "bias": bias, "m": m, "n": n, "inputs": ("x",), "output": "y", "name": name}
    if kind == "fc":
        weight = codes(w, outs, depth)
        return Case(Step("linear", weight=weight, **step), (codes(x, batch, channels),), codes(out, batch, outs))
    stride, pad = (cfg["STRIDE_Y"], cfg["STRIDE_X"]), (cfg["PAD_Y"], cfg["PAD_X"])
    dilation, size = (cfg["DILATION_Y"], cfg["DILATION_X"]), (cfg["OUTPUT_H"], cfg["OUTPUT_W"])
    if kind == "depthwise":
        weight, groups = codes(w, 1, *kernel, outs).transpose(0, 1).contiguous(), channels
    else:
        weight, groups = codes(w, outs, *kernel, depth // math.prod(kernel)), channels // cfg.get("FILTER_CH", channels)
    x, pad = window(codes(x, batch, cfg["INPUT_H"], cfg["INPUT_W"], channels), grids[0].zero_point, kernel, stride, pad, dilation, size)
    options = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
    return Case(Step("conv", weight=weight, options=options, **step), (x,), codes(out, batch, *size, outs))


def over_the_edge(cfg) -> bool:
    """Whether a window reaches over the edge of the map, where there are fewer values."""
    return cfg["PADDING_H"] + cfg["PADDING_W"] > 0 or any(
        (cfg[f"OUTPUT_{d}"] - 1) * cfg[f"STRIDE_{d}"] + cfg[f"FILTER_{d}"] > cfg[f"INPUT_{d}"] for d in "HW")


def pooling(name) -> Case:
    number, kind, cfg = CASES[name]
    kernel, stride = (cfg["FILTER_H"], cfg["FILTER_W"]), (cfg["STRIDE_H"], cfg["STRIDE_W"])
    size, pad = (cfg["OUTPUT_H"], cfg["OUTPUT_W"]), (cfg["PADDING_H"], cfg["PADDING_W"])
    x = CMSIS[f"{number}.x"]
    batch = len(x) // (cfg["INPUT_H"] * cfg["INPUT_W"] * cfg["INPUT_C"])
    x = codes(x, batch, cfg["INPUT_H"], cfg["INPUT_W"], cfg["INPUT_C"])
    out = codes(CMSIS[f"{number}.out"], batch, *size, cfg["OUTPUT_C"])
    grid = Grid(1.0, 0, cfg["ACTIVATION_MIN"], cfg["ACTIVATION_MAX"])
    step = {"name": name, "inputs": ("x",), "output": "y"}
    if kind == "avgpool":
        if not over_the_edge(cfg):
            m, n = integer.multiplier([1 / math.prod(kernel)])
            return Case(Step("mean", grids=(grid, grid), m=m, n=n, options={"kernel_size": kernel, "stride": stride}, **step), (x,), out)
        rows, columns = (tuple((max(i * s - p, 0), min(i * s - p + k, end)) for i in range(o))
                         for o, s, p, k, end in zip(size, stride, pad, kernel, x.shape[2:]))
        m, n = integer.multiplier([1 / ((b - a) * (d - c)) for a, b in rows for c, d in columns])
        return Case(Step("windows", grids=(grid, grid), m=m, n=n, options={"rows": rows, "columns": columns}, **step), (x,), out)
    x, pad = window(x, -128, kernel, stride, pad, (1, 1), size)
    options = {"kernel_size": kernel, "stride": stride, "padding": pad, "dilation": 1, "ceil_mode": False}
    return Case(Step("maxpool", grids=(grid, grid), options=options, **step), (x,), out)


def addition(name) -> Case:
    number, _, cfg = CASES[name]
    assert cfg["LEFT_SHIFT"] == integer.ADD_SHIFT
    m, n = (torch.tensor([cfg[f"{part}_{what}"] for part in ("INPUT1", "INPUT2", "OUTPUT")], dtype=dtype)
            for what, dtype in (("MULT", torch.int32), ("SHIFT", torch.int8)))
    grids = (Grid(1.0, -cfg["INPUT1_OFFSET"], -128, 127), Grid(1.0, -cfg["INPUT2_OFFSET"], -128, 127),
             Grid(1.0, cfg["OUTPUT_OFFSET"], cfg["OUT_ACTIVATION_MIN"], cfg["OUT_ACTIVATION_MAX"]))
    a, b, out = (codes(CMSIS[f"{number}.{part}"], 1, cfg["DST_SIZE"]) for part in ("a", "b", "out"))
    return Case(Step("add", name, ("x", "z"), "y", grids, m=m, n=n), (a, b), out)


MAKE = {"conv": layer, "depthwise": layer, "fc": layer, "avgpool": pooling, "maxpool": pooling, "add": addition}
USED = [name for name in CASES if name not in LEFT_OUT]


def result(case: Case) -> torch.Tensor:
    out = integer.RUN[case.step.kind](case.step, *case.inputs)
    grid = case.step.grids[-1]
    return out.clamp(grid.low, grid.high) if case.step.kind == "maxpool" else out           # the only one with a clamp that ours lacks


@pytest.mark.parametrize("name", USED)
def test_cmsis_nn(name):
    case = MAKE[CASES[name][1]](name)
    np.testing.assert_array_equal(result(case).numpy(), case.out.numpy())


def test_what_is_left_out_has_its_reason():
    assert len(CASES) == 107 and len(USED) == 103 and set(LEFT_OUT) <= set(CASES)
    assert CASES["fully_connected_w_zp"][2]["FILTER_OFFSET"] != 0
    assert all(not case[2].get("FILTER_OFFSET") for name, case in CASES.items() if name in USED)
    assert sum(kind == "avgpool" and over_the_edge(cfg) for _, kind, cfg in CASES.values()) == 4


@pytest.mark.parametrize("name", [name for name in LEFT_OUT if name.startswith("avg")])
def test_a_mean_that_is_rounded_twice_is_a_code_off_at_most(name):
    """Half a code of the second rounding, a quarter of the first one."""
    case = pooling(name)
    x, found = case.inputs[0].numpy().astype(float), result(case).numpy().astype(float)
    exact = np.stack([np.stack([x[..., a:b, c:d].mean((-2, -1)) for c, d in case.step.options["columns"]], -1)
                      for a, b in case.step.options["rows"]], -2)
    assert np.abs(found - exact).max() <= 0.75 and np.abs(found - case.out.numpy()).max() == 1


# TensorFlow Lite Micro: scales as its conv_test.cc has them, from which multipliers follow


FILTER_SCALES = (2.18926089e-05, 0.00453596329, 0.000504297379, 0.00184638216, 0.00596635276, 0.000199135626, 0.0047677448, 0.00193942268)
GOLDENS = {  # input and filter with their shapes, scales of input, filter and output, zero-points, bias, golden output with its shape
    "kConvGoldenOutput1x16x16x8": (("kConvInput1x32x32x3", 32, 3), ("kConvFilter8x3x3x3", 8), 0.00784313772, FILTER_SCALES, 0.0235294122,
                                   (-1, -128), "kConvBiasQuantized8", 16, True),
    "kConvGoldenOutput4x4InputPaddingSame2x2": (("kConvInput1x4x4x1", 4, 1), ("kConvFilter1x3x3x1", 1), 0.00392120517, (0.00448552053,),
                                                0.00627814838, (-128, -7), None, 2, False),
    "kConvGoldenOutput5x5InputPaddingSame3x3": (("kConvInput1x5x5x1", 5, 1), ("kConvFilter1x3x3x1", 1), 0.00392120517, (0.00448552053,),
                                                0.00627814838, (-128, -7), None, 3, False),
}


def golden(name) -> Case:
    (x, size, channels), (w, outs), scale, scales, out_scale, (zero, out_zero), bias, rows, relu6 = GOLDENS[name]
    scale, out_scale = float(np.float32(scale)), float(np.float32(out_scale))
    real = scale * np.float32(scales).astype(float) / out_scale
    m, n = integer.multiplier(real)
    high = out_zero + round(6 / out_scale) if relu6 else 127
    grids = (Grid(scale, zero, -128, 127), Grid(out_scale, out_zero, max(-128, out_zero) if relu6 else -128, high))
    x = codes(MICRO[x], 1, size, size, channels)
    pad = max(0, (rows - 1) * 2 + 3 - size) // 2                                            # of an odd number the right side gets more
    x, pad = window(x, zero, (3, 3), (2, 2), (pad, pad), (1, 1), (rows, rows))
    step = Step("conv", name, ("x",), "y", grids, weight=codes(MICRO[w], outs, 3, 3, channels), m=m, n=n,
                bias=torch.zeros(outs, dtype=torch.int32) if bias is None else torch.from_numpy(MICRO[bias]),
                options={"stride": (2, 2), "padding": pad, "dilation": (1, 1), "groups": 1})
    return Case(step, (x,), codes(MICRO[name], 1, rows, rows, outs))


@pytest.mark.parametrize("name", GOLDENS)
def test_tflite_micro(name):
    case = golden(name)
    np.testing.assert_array_equal(result(case).numpy(), case.out.numpy())


def test_every_array_of_tflite_micro_is_used():
    used = {name for name in GOLDENS} | {g[0][0] for g in GOLDENS.values()} | {g[1][0] for g in GOLDENS.values()}
    assert used | {"kConvBiasQuantized8"} == set(MICRO.files)


# The same through the C kernels, all of them in one shared library


def network(case: Case) -> tuple[IntegerNetwork, torch.Tensor]:
    """The step alone, and the codes that it gets; an addition gets its terms as the two channels of one image, picked by convolutions."""
    step, grid = case.step, case.step.grids[0]
    if step.kind != "add":
        return IntegerNetwork((step,), "x", "y", grid, step.grids[-1]), case.inputs[0]
    assert step.grids[0] == step.grids[1]
    m, n = integer.multiplier([1.0])
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    picks = [Step("conv", f"pick{i}", ("image",), name, (grid, grid), weight=torch.eye(2, dtype=torch.int8)[i].view(1, 2, 1, 1),
                  bias=torch.zeros(1, dtype=torch.int32), m=m, n=n, options=options) for i, name in enumerate(step.inputs)]
    return IntegerNetwork((*picks, step), "image", "y", grid, step.grids[-1]), torch.stack(case.inputs, 1)[..., None]


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason=c.NO_COMPILER)
def test_the_c_kernels_give_the_same(tmp_path):
    cases = {name: MAKE[CASES[name][1]](name) for name in USED} | {name: golden(name) for name in GOLDENS}
    networks = {name: network(case) for name, case in cases.items()}
    run = one_library({name: (made, tuple(x.shape[1:])) for name, (made, x) in networks.items()}, tmp_path)
    for name, (_, x) in networks.items():
        case, grid = cases[name], cases[name].step.grids[-1]
        out = run(name, x)
        out = out.clamp(grid.low, grid.high) if case.step.kind == "maxpool" else out
        np.testing.assert_array_equal(out.flatten(1).numpy(), case.out.flatten(1).numpy(), err_msg=name)
