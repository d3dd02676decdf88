"""Steps that make new codes of sums and products, as operators of TensorFlow Lite: layers, means, windows, sums, products, the maximum.

How they differ from PyTorch's: qlab.deploy.tflite_steps.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from qlab.deploy import tflite_limits as limits
from qlab.deploy.tflite_graph import Graph
from qlab.deploy.tflite_layout import in_order, indices
from qlab.deploy.tflite_parts import fused, joined, output, pad, part
from qlab.nets.integer import Step, multiplier

FILTERS = 1 << 22                                                                           # bytes of filters over all places at once
BLOCKS = 9                                                                                  # of windows alike: padded pooling has as many


def weight_scale(step: Step) -> np.ndarray:
    """The float32 scale of each output channel of a layer, or of a mean's one, that gives back its multipliers; (out,) or (1,).

    Raises ValueError where there is none, which no step of qlab.nets.integer.convert needs, or where a runtime could not use it.
    """
    into, out = step.grids
    real = step.m.double().numpy() * 2.0 ** (step.n.double().numpy() - 31)
    real[step.m.numpy() == 0] = 2.0**-40                                                    # below 2**-32 all runtimes multiply by 0
    exact = real * out.scale / into.scale
    limits.check_scales(step, exact)
    scale = exact.astype(np.float32)
    m, n = multiplier(into.scale * torch.from_numpy(scale).double() / out.scale)
    if not (torch.equal(m, step.m) and torch.equal(n, step.n)):
        raise ValueError(f"{step.name} has a multiplier that no float32 scale of its weights gives, and a .tflite file holds such scales.")
    return scale


def _constants(graph: Graph, step: Step, weight: np.ndarray, bias: np.ndarray, axis: int) -> list[int]:
    """The weight and the bias of a layer: codes and scales."""
    scale = weight_scale(step)
    limits.check_total(step, weight, bias, axis)
    return [graph.add(f"{step.name} weight", weight.shape, scale=scale, axis=axis, data=weight),
            graph.add(f"{step.name} bias", bias.shape, "INT32", np.float32(step.grids[0].scale) * scale, data=bias)]


def _padding(graph: Graph, step: Step, source: int, kernel, stride, padding, fill: int | None = None) -> tuple[int, dict]:
    """What a window operator reads, padded by an operator of its own if need be, and the options padding and stride."""
    inside, outside = graph.shapes[step.inputs[0]][1:], graph.shapes[step.output][1:]
    if isinstance(padding, str):
        padding = [0 if padding == "valid" else (k - 1) // 2 for k in kernel]
    missing = [max(0, (o - 1) * s + k - i) for i, o, k, s in zip(inside, outside, kernel, stride)]
    right = [max(0, (o - 1) * s + k - i - p) for i, o, k, s, p in zip(inside, outside, kernel, stride, padding)]
    same = all(o == -(-i // s) and p == m // 2 for i, o, s, p, m in zip(inside, outside, stride, padding, missing))
    options = {"padding": graph.schema.Padding.SAME if same else graph.schema.Padding.VALID, "strideH": stride[0], "strideW": stride[1]}
    if same or not any([*padding, *right]):
        return source, options
    return pad(graph, step.name, source, [*zip(padding, right), (0, 0)], fill), options


def _conv(graph: Graph, step: Step) -> None:
    o, channels, weight, bias = step.options, graph.shapes[step.inputs[0]][0], step.weight.numpy(), step.bias.numpy()
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], o["dilation"])]
    source, window = _padding(graph, step, graph.read(step.inputs[0]), reach, o["stride"], o["padding"])
    window |= {"dilationHFactor": o["dilation"][0], "dilationWFactor": o["dilation"][1], "fusedActivationFunction": fused(graph, step)}
    if not 1 < o["groups"] == channels:  # the kernels see other groups in the depth of the filters
        inputs = [source, *_constants(graph, step, weight.transpose(0, 2, 3, 1), bias, 0)]  # (out, rows, columns, in / groups)
        graph.operator("CONV_2D", inputs, [output(graph, step)], "Conv2DOptions", 3, **window)
    else:
        inputs = [source, *_constants(graph, step, weight.transpose(1, 2, 3, 0), bias, 3)]  # (1, rows, columns, out)
        graph.operator("DEPTHWISE_CONV_2D", inputs, [output(graph, step)], "DepthwiseConv2DOptions", 3,
                       depthMultiplier=len(weight) // channels, **window)


def _linear(graph: Graph, step: Step) -> None:
    """Of a flattened map, in whichever order it lies; else of the last dimension."""
    name, weight, clamp = step.inputs[0], step.weight.numpy(), fused(graph, step)
    shape, out, layout = graph.shapes[name], graph.shapes[step.output], graph.layouts[step.inputs[0]]
    if len(shape) == 1:
        source, weight = graph.read(name, layout), weight if layout == in_order(shape[0]) else weight[:, indices(layout)]
    else:
        source, out = graph.read(name, in_order(math.prod(shape)), (math.prod(shape[:-1]), shape[-1])), (math.prod(out[:-1]), out[-1])
    inputs = [source, *_constants(graph, step, weight, step.bias.numpy(), 0)]
    sink = graph.activation(step.output, step.grids[-1], out, in_order(math.prod(out)))
    graph.operator("FULLY_CONNECTED", inputs, [sink], "FullyConnectedOptions", 12, fusedActivationFunction=clamp,
                   keepNumDims=len(shape) > 1)


def _mean(graph: Graph, step: Step) -> None:
    inputs = _ones(graph, step, graph.read(step.inputs[0]), step.options["kernel_size"])
    _write_mean(graph, step, inputs, output(graph, step), step.options["stride"])


def _ones(graph: Graph, step: Step, source: int, kernel) -> list[int]:
    """What the operator of a mean reads: the map, its ones, no bias."""
    channels = graph.sizes(source)[-1]
    return [source, *_constants(graph, step, np.ones((1, *kernel, channels), np.int8), np.zeros(channels, np.int32), 3)]


def _write_mean(graph: Graph, step: Step, inputs: list[int], sink: int, stride) -> int:
    graph.operator("DEPTHWISE_CONV_2D", inputs, [sink], "DepthwiseConv2DOptions", 3, depthMultiplier=1,
                   padding=graph.schema.Padding.VALID, strideH=stride[0], strideW=stride[1], fusedActivationFunction=fused(graph, step))
    return sink


def _windows(graph: Graph, step: Step) -> None:
    rows, columns = step.options["rows"], step.options["columns"]
    m, n = (t.view(len(rows), len(columns)) for t in (step.m, step.n))
    down, right = _runs(rows, torch.cat([m, n], 1)), _runs(columns, torch.cat([m, n], 0).T)
    if len(down) * len(right) > BLOCKS and len(rows) * len(columns) * math.prod(graph.shapes[step.inputs[0]][1:]) <= FILTERS:
        return _windows_at_once(graph, step)
    source, grid, bands = graph.read(step.inputs[0]), step.grids[-1], []
    for above in down:
        band = []
        for left in right:
            block = replace(step, m=m[above[0], left[0]].view(1), n=n[above[0], left[0]].view(1))
            ends = [(run[0], run[-1], sides) for run, sides in ((above, rows), (left, columns))]
            kernel = [sides[first][1] - sides[first][0] for first, _, sides in ends]
            stride = [max(1, sides[min(first + 1, last)][0] - sides[first][0]) for first, last, sides in ends]
            inside = part(graph, step.name, source, [*(range(sides[first][0], sides[last][1]) for first, last, sides in ends),
                                                      range(graph.sizes(source)[-1])])
            inputs, sizes = _ones(graph, block, inside, kernel), (1, len(above), len(left), graph.sizes(source)[-1])
            sink = graph.add(f"{step.name} block", sizes, scale=grid.scale, zero_point=grid.zero_point)
            band.append(_write_mean(graph, block, inputs, sink, stride))
        bands.append(joined(graph, step.name, band, 2))
    graph.hold(step.output, joined(graph, step.name, bands, 1))


def _runs(sides, multipliers: torch.Tensor) -> list[list[int]]:
    """The windows of one dimension that follow each other with one size, one stride, and the same multipliers, a row each."""
    runs = []
    for i, (start, stop) in enumerate(sides):
        if runs:
            run = runs[-1]
            first, last = sides[run[0]], sides[run[-1]]
            stride = start - last[0]
            if stop - start == first[1] - first[0] and stride > 0 and torch.equal(multipliers[i], multipliers[run[0]]) and (
                    len(run) == 1 or stride == sides[run[1]][0] - first[0]):
                run.append(i)
                continue
        runs.append([i])
    return runs


def _windows_at_once(graph: Graph, step: Step) -> None:
    """A map as so many channels as it has places, a row of it each of the map's channels; a window is a filter."""
    (channels, height, width), rows, columns = graph.shapes[step.inputs[0]], step.options["rows"], step.options["columns"]
    windows, places = len(rows) * len(columns), height * width
    weight = np.zeros((len(rows), len(columns), height, width), np.int8)
    for r, (top, bottom) in enumerate(rows):
        for c, (left, right) in enumerate(columns):
            weight[r, c, top:bottom, left:right] = 1
    source = graph.read(step.inputs[0], in_order(channels * places), (channels, 1, places))
    inputs = [source, *_constants(graph, step, weight.reshape(windows, 1, 1, places), np.zeros(windows, np.int32), 0)]
    sink = graph.activation(step.output, step.grids[-1], (channels, 1, windows), in_order(channels * windows))
    graph.operator("CONV_2D", inputs, [sink], "Conv2DOptions", 3, padding=graph.schema.Padding.VALID, strideH=1, strideW=1,
                   dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=fused(graph, step))


def _add(graph: Graph, step: Step) -> None:
    limits.check_sum(step)
    _of_two(graph, step, "ADD", "AddOptions")


def _mul(graph: Graph, step: Step) -> None:
    limits.check_product(step)
    _of_two(graph, step, "MUL", "MulOptions")


def _of_two(graph: Graph, step: Step, code: str, options: str) -> None:
    a, b = (graph.shapes[name] for name in step.inputs)
    layout, sizes, out = graph.layouts[step.inputs[0]], None, None
    if len(a) != len(b):
        raise ValueError(f"{step.name} combines tensors of the shapes {a} and {b}, which must have as many dimensions each.")
    if a == b and layout == graph.layouts[step.inputs[1]]:  # number by number, in whichever order
        out = sizes = graph.sizes(graph.places[step.inputs[0]])
        inputs = [graph.read(name, layout, sizes) for name in step.inputs]
    elif len(a) <= 3:
        layout, inputs = None, [graph.read(name) for name in step.inputs]
    else:
        groups = _together(a, b)
        if len(groups) > 3:
            raise ValueError(f"{step.name} combines tensors of the shapes {a} and {b}, of which more than three dimensions differ in turn.")
        layout, inputs = in_order(math.prod(graph.shapes[step.output])), []
        for name, shape in zip(step.inputs, (a, b)):
            inputs.append(graph.read(name, in_order(math.prod(shape)), tuple(math.prod(shape[i] for i in group) for group in groups)))
        out = tuple(math.prod(graph.shapes[step.output][i] for i in group) for group in groups)
    sink = graph.activation(step.output, step.grids[-1], out, layout)
    graph.operator(code, inputs, [sink], options, 2, fusedActivationFunction=fused(graph, step))


def _together(a: tuple[int, ...], b: tuple[int, ...]) -> list[list[int]]:
    """Neighbouring dimensions that are alike: of equal sizes, or one side's all 1."""
    groups, kinds = [], []
    for i, (p, q) in enumerate(zip(a, b)):
        kind = "equal" if p == q else "a" if p == 1 else "b"
        if kinds and kinds[-1] == kind:
            groups[-1].append(i)
        else:
            groups.append([i])
            kinds.append(kind)
    return groups


def _maxpool(graph: Graph, step: Step) -> None:
    o = step.options
    kernel, stride = _pair(o["kernel_size"]), _pair(o["stride"])
    if _pair(o["dilation"]) != (1, 1):
        raise ValueError(f"{step.name} pools with dilation={o['dilation']}, and may not.")
    source, window = _padding(graph, step, graph.read(step.inputs[0]), kernel, stride, _pair(o["padding"]), fill=-128)
    graph.operator("MAX_POOL_2D", [source], [output(graph, step)], "Pool2DOptions", 2, filterHeight=kernel[0], filterWidth=kernel[1],
                   **window)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


LAYERS = {"conv": _conv, "linear": _linear, "mean": _mean, "windows": _windows, "add": _add, "mul": _mul, "maxpool": _maxpool}
