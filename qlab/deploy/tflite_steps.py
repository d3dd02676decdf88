"""The steps of an integer-only network as operators of TensorFlow Lite: what `qlab.deploy.tflite` writes.

Both sides compute Jacob et al. 2018: int8 codes with a scale and a zero-point a tensor, int8 weights with a scale an output channel,
an int32 bias whose scale is s_x s_w, the same multiplier M = s_x s_w / s_y of 31 bits. A file holds no M but the three scales, as
float32: M has 31 bits and a float32 has 24, so the s_w that gives M back, bit for bit, is the float32 next to M s_y / s_x.

What differs is the order of the numbers, and these operations:
    layout      PyTorch orders images (channel, row, column), TensorFlow Lite (row, column, channel). Weights are turned here, and so
                are the columns of a linear layer that reads a flattened map. What else needs another order: qlab.deploy.tflite_graph.
    padding     TensorFlow Lite knows VALID (none) and SAME, which at stride 2 may pad one side only, where PyTorch pads both. What is
                neither becomes an operator PAD of its own, filled with the zero-point.
    a mean      is a DEPTHWISE_CONV_2D with weights of 1 and the scale 1 / values: a sum and one M, as here. AVERAGE_POOL_2D cannot
                change the scale; MEAN does, but divides m by the number of values without shifting it up again, so that its
                roundings fall elsewhere than qlab's (3 of 100 codes of the depthwise net were one apart).
    windows     of different sizes: such a mean for each block of the map in which they have one size, stride and M; where there are
                many blocks, one CONV_2D over all places at once, a filter of ones and zeros and an M for each window.
    groups      A CONV_2D whose filters are less deep than its input; all four sets of kernels run it. DEPTHWISE_CONV_2D where each channel
                is a group of its own.
    ReLU, ReLU6 are clamps of the operator before them, at the codes of 0.0 and of 6.0.
    a table     is a GATHER from its 256 codes, at code + 128 as an int32. LOGISTIC, HARD_SWISH and their like round elsewhere in each set.
    cat         needs one scale: a QUANTIZE for each input whose scale is another, then CONCATENATION.
    stretch     PADV2 puts the zeros behind each value, between two RESHAPEs. TRANSPOSE_CONV would do it with the layer behind it, and holds
                the number of images in a constant.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from qlab.deploy import tflite_limits as limits
from qlab.deploy.tflite_graph import Graph
from qlab.deploy.tflite_layout import in_order, indices, permuted
from qlab.nets.integer import RUN, Grid, IntegerNetwork, Step, multiplier

PROBABILITY = Grid(1 / 256, -128, -128, 127)                                                # what SOFTMAX must write
JOINED = 10                                                                                 # inputs that tflite-micro concatenates at once
FILTERS = 1 << 22                                                                           # bytes of filters over all places at once
BLOCKS = 9                                                                                  # of windows alike: padded pooling has as many


def lower(network: IntegerNetwork, image_shape: tuple[int, ...], softmax: bool, schema) -> tuple[Graph, int, int]:
    """The graph of a network, and its input's and its output's index. Raises ValueError, naming the step, for what it does not cover."""
    limits.check_grids(network)
    graph = Graph(schema, map_shapes(network, image_shape))
    source = graph.activation(network.input, network.grid_in)
    for step in network.steps:
        WRITE[step.kind](graph, step)
    sink = graph.read(network.output)
    if softmax:
        sink = _softmax_of(graph, sink, network.output, network.grid_out, "probabilities")
    limits.check_size(graph)
    return graph, source, sink


def map_shapes(network: IntegerNetwork, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one image. Raises ValueError for a shape that is not fixed or that the network cannot take."""
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in image_shape):
        raise ValueError(f"image_shape is {image_shape}, and must be fixed: a microcontroller's memory is planned before it runs.")
    limits.check_numbers(network.input, image_shape)
    tensors = {network.input: torch.zeros(1, *image_shape, dtype=torch.int8)}
    for step in network.steps:
        if step.kind not in WRITE:
            raise ValueError(f"{step.name} is a {step.kind}, and a .tflite file is written of {', '.join(WRITE)}.")
        try:
            found = _zeros(step, [tensors[name] for name in step.inputs])
        except (RuntimeError, IndexError):
            raise ValueError(f"image_shape is {tuple(image_shape)}, which {step.name} cannot take.") from None
        if found.dim() < 1 or len(found) != 1 or not found.numel():
            raise ValueError(f"{step.name} gives {tuple(found.shape)} for one image, and must leave the batch as it is and some values.")
        limits.check_numbers(step.output, found.shape[1:])
        tensors[step.output] = found
    return {name: tuple(codes.shape[1:]) for name, codes in tensors.items()}


def _zeros(step: Step, inputs: list[torch.Tensor]) -> torch.Tensor:
    """What a step gives, as far as its shape goes: no layer of a large network is computed for that."""
    if step.kind == "conv":
        into, weight = inputs[0].to("meta", torch.float32), step.weight.to("meta", torch.float32)
        return inputs[0].new_zeros(torch.nn.functional.conv2d(into, weight, **step.options).shape)
    if step.kind == "linear":
        return inputs[0].new_zeros((inputs[0].to("meta", torch.float32) @ step.weight.to("meta", torch.float32).T).shape)
    return RUN[step.kind](step, *inputs)


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


# What steps share


def _fused(graph: Graph, step: Step) -> int:
    """The clamp at the end of a step: at the codes of 0.0 and, where the grid ends there, of 6.0."""
    six = step.grids[-1].high < 127
    if six and not step.relu:
        raise ValueError(f"{step.name} clamps at the code of 6.0 without a ReLU, and must end in one.")
    return getattr(graph.schema.ActivationFunctionType, "RELU6" if six else "RELU" if step.relu else "NONE")


def _output(graph: Graph, step: Step) -> int:
    return graph.activation(step.output, step.grids[-1])


def _pad(graph: Graph, name: str, source: int, widths: list[tuple[int, int]], fill: int | None = None) -> int:
    """Codes around a tensor, the zero-point without fill. widths: before and after, of each dimension but the batch's."""
    sizes = [size + sum(width) for size, width in zip(graph.sizes(source), widths)]
    sink = graph.like(source, f"{name} padded", sizes)
    inputs, q = [source, graph.constant(f"{name} padding", [(0, 0), *widths])], graph.tensors[source].quantization
    if fill is None or fill == q.zeroPoint[0]:
        graph.operator("PAD", inputs, [sink], "PadOptions", 2)
    else:
        constant = graph.add(f"{name} filling", [1], scale=q.scale, zero_point=int(q.zeroPoint[0]), data=np.array([fill], np.int8))
        graph.operator("PADV2", [*inputs, constant], [sink], "PadV2Options", 2)
    return sink


def _part(graph: Graph, name: str, source: int, ranges: list[range]) -> int:
    """Of each dimension but the batch's the places in a range."""
    if all(part == range(size) for part, size in zip(ranges, graph.sizes(source))):
        return source
    sink = graph.like(source, f"{name} part", map(len, ranges))
    ends = [[0, *values] for values in ([r.start for r in ranges], [r[-1] + 1 for r in ranges])]
    inputs = [source, *(graph.constant(f"{name} {what}", values) for what, values in zip(("begin", "end"), ends)),
              graph.constant(f"{name} steps", [1, *(r.step for r in ranges)])]
    graph.operator("STRIDED_SLICE", inputs, [sink], "StridedSliceOptions", 2, beginMask=1, endMask=1, ellipsisMask=0, newAxisMask=0,
                   shrinkAxisMask=0)                                                        # the masks' 1: all images of the batch
    return sink


def _joined(graph: Graph, name: str, parts: list[int], axis: int) -> int:
    """Tensors after each other along a dimension of the file's, the batch's being 0."""
    while len(parts) > 1:
        some, sizes = parts[:JOINED], list(graph.sizes(parts[0]))
        sizes[axis - 1] = sum(graph.sizes(part)[axis - 1] for part in some)
        sink = graph.like(parts[0], f"{name} joined", sizes)
        graph.operator("CONCATENATION", some, [sink], "ConcatenationOptions", 2, axis=axis)
        parts = [sink, *parts[JOINED:]]
    return parts[0]


def _along(graph: Graph, name: str, dim: int) -> tuple[tuple[int, ...] | None, int]:
    """The sizes in which a file's operator finds a dimension of a tensor (None: channels last as it is), and at which axis.

    dim: with the batch's, 0. More than three dimensions are put together, for tflite-micro knows four with the batch's.
    """
    shape = graph.shapes[name]
    if len(shape) <= 3:
        return None, dim if len(shape) < 3 else (0, 3, 1, 2)[dim]
    return (math.prod(shape[:dim - 1]), shape[dim - 1], math.prod(shape[dim:])), 2


# One function a kind of step


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
    return _pad(graph, step.name, source, [*zip(padding, right), (0, 0)], fill), options


def _constants(graph: Graph, step: Step, weight: np.ndarray, bias: np.ndarray, axis: int) -> list[int]:
    """The weight and the bias of a layer: codes and scales."""
    scale = weight_scale(step)
    limits.check_total(step, weight, bias, axis)
    return [graph.add(f"{step.name} weight", weight.shape, scale=scale, axis=axis, data=weight),
            graph.add(f"{step.name} bias", bias.shape, "INT32", np.float32(step.grids[0].scale) * scale, data=bias)]


def _conv(graph: Graph, step: Step) -> None:
    o, channels, weight, bias = step.options, graph.shapes[step.inputs[0]][0], step.weight.numpy(), step.bias.numpy()
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], o["dilation"])]
    source, window = _padding(graph, step, graph.read(step.inputs[0]), reach, o["stride"], o["padding"])
    window |= {"dilationHFactor": o["dilation"][0], "dilationWFactor": o["dilation"][1], "fusedActivationFunction": _fused(graph, step)}
    if not 1 < o["groups"] == channels:  # the kernels see other groups in the depth of the filters
        inputs = [source, *_constants(graph, step, weight.transpose(0, 2, 3, 1), bias, 0)]  # (out, rows, columns, in / groups)
        graph.operator("CONV_2D", inputs, [_output(graph, step)], "Conv2DOptions", 3, **window)
    else:
        inputs = [source, *_constants(graph, step, weight.transpose(1, 2, 3, 0), bias, 3)]  # (1, rows, columns, out)
        graph.operator("DEPTHWISE_CONV_2D", inputs, [_output(graph, step)], "DepthwiseConv2DOptions", 3,
                       depthMultiplier=len(weight) // channels, **window)


def _linear(graph: Graph, step: Step) -> None:
    """Of a flattened map, in whichever order it lies; else of the last dimension."""
    name, weight, fused = step.inputs[0], step.weight.numpy(), _fused(graph, step)
    shape, out, layout = graph.shapes[name], graph.shapes[step.output], graph.layouts[step.inputs[0]]
    if len(shape) == 1:
        source, weight = graph.read(name, layout), weight if layout == in_order(shape[0]) else weight[:, indices(layout)]
    else:
        source, out = graph.read(name, in_order(math.prod(shape)), (math.prod(shape[:-1]), shape[-1])), (math.prod(out[:-1]), out[-1])
    inputs = [source, *_constants(graph, step, weight, step.bias.numpy(), 0)]
    sink = graph.activation(step.output, step.grids[-1], out, in_order(math.prod(out)))
    graph.operator("FULLY_CONNECTED", inputs, [sink], "FullyConnectedOptions", 12, fusedActivationFunction=fused,
                   keepNumDims=len(shape) > 1)


def _mean(graph: Graph, step: Step) -> None:
    inputs = _ones(graph, step, graph.read(step.inputs[0]), step.options["kernel_size"])
    _write_mean(graph, step, inputs, _output(graph, step), step.options["stride"])


def _ones(graph: Graph, step: Step, source: int, kernel) -> list[int]:
    """What the operator of a mean reads: the map, its ones, no bias."""
    channels = graph.sizes(source)[-1]
    return [source, *_constants(graph, step, np.ones((1, *kernel, channels), np.int8), np.zeros(channels, np.int32), 3)]


def _write_mean(graph: Graph, step: Step, inputs: list[int], sink: int, stride) -> int:
    graph.operator("DEPTHWISE_CONV_2D", inputs, [sink], "DepthwiseConv2DOptions", 3, depthMultiplier=1,
                   padding=graph.schema.Padding.VALID, strideH=stride[0], strideW=stride[1], fusedActivationFunction=_fused(graph, step))
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
            part = replace(step, m=m[above[0], left[0]].view(1), n=n[above[0], left[0]].view(1))
            ends = [(run[0], run[-1], sides) for run, sides in ((above, rows), (left, columns))]
            kernel = [sides[first][1] - sides[first][0] for first, _, sides in ends]
            stride = [max(1, sides[min(first + 1, last)][0] - sides[first][0]) for first, last, sides in ends]
            inside = _part(graph, step.name, source, [*(range(sides[first][0], sides[last][1]) for first, last, sides in ends),
                                                      range(graph.sizes(source)[-1])])
            inputs, sizes = _ones(graph, part, inside, kernel), (1, len(above), len(left), graph.sizes(source)[-1])
            sink = graph.add(f"{step.name} block", sizes, scale=grid.scale, zero_point=grid.zero_point)
            band.append(_write_mean(graph, part, inputs, sink, stride))
        bands.append(_joined(graph, step.name, band, 2))
    graph.hold(step.output, _joined(graph, step.name, bands, 1))


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
                   dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=_fused(graph, step))


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
    graph.operator(code, inputs, [sink], options, 2, fusedActivationFunction=_fused(graph, step))


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


def _cat(graph: Graph, step: Step) -> None:
    _fused(graph, step)
    limits.check_rescaling(step)
    dim, out = step.options["dim"] % (len(graph.shapes[step.output]) + 1), step.grids[-1]
    parts = []
    for name in step.inputs:
        sizes, axis = _along(graph, name, dim)
        part = graph.read(name, None if sizes is None else in_order(math.prod(sizes)), sizes)
        parts.append(_rescaled(graph, f"{name} for {step.name}", part, out))
    shape, together = graph.shapes[step.output], _along(graph, step.output, dim)[0]
    graph.hold(step.output, _joined(graph, step.name, parts, axis), None if together is None else in_order(math.prod(shape)))


def _rescaled(graph: Graph, name: str, source: int, out: Grid) -> int:
    q = graph.tensors[source].quantization
    if (q.scale[0], q.zeroPoint[0]) == (np.float32(out.scale), out.zero_point):
        return source
    if (source, out) not in graph.known:
        sink = graph.add(name, graph.tensors[source].shape, scale=out.scale, zero_point=out.zero_point)
        graph.operator("QUANTIZE", [source], [sink], "QuantizeOptions", 2)
        graph.known[source, out] = sink
    return graph.known[source, out]


def _maxpool(graph: Graph, step: Step) -> None:
    o = step.options
    kernel, stride = _pair(o["kernel_size"]), _pair(o["stride"])
    if _pair(o["dilation"]) != (1, 1):
        raise ValueError(f"{step.name} pools with dilation={o['dilation']}, and may not.")
    source, window = _padding(graph, step, graph.read(step.inputs[0]), kernel, stride, _pair(o["padding"]), fill=-128)
    graph.operator("MAX_POOL_2D", [source], [_output(graph, step)], "Pool2DOptions", 2, filterHeight=kernel[0], filterWidth=kernel[1],
                   **window)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _reshape(graph: Graph, step: Step) -> None:
    name, out = step.inputs[0], graph.shapes[step.output]
    place, layout = graph.places[name], graph.layouts[name]
    if len(out) == 1 and len(graph.sizes(place)) > 1:
        place = graph.reshaped(place, out, step.output)
    graph.hold(step.output, place, layout)


def _permute(graph: Graph, step: Step) -> None:
    name, dims = step.inputs[0], tuple(d % (len(graph.shapes[step.inputs[0]]) + 1) for d in step.options["dims"])
    if dims[0] != 0:
        raise ValueError(f"{step.name} puts the batch at another place, dims={step.options['dims']}, and must leave it first.")
    shape, place, dims = graph.shapes[name], graph.places[name], tuple(d - 1 for d in dims[1:])
    found = permuted(graph.layouts[name], shape, dims)
    if found is None:
        place, found = graph.read(name, in_order(math.prod(shape))), permuted(in_order(math.prod(shape)), shape, dims)
    graph.hold(step.output, place, found)


def _slice(graph: Graph, step: Step) -> None:
    o, name = step.options, step.inputs[0]
    shape, dim = graph.shapes[name], o["dim"] % (len(graph.shapes[name]) + 1)
    if dim == 0:
        raise ValueError(f"{step.name} takes some images of a batch, and must take all.")
    sizes, axis = _along(graph, name, dim)
    source = graph.read(name, None if sizes is None else in_order(math.prod(sizes)), sizes)
    ranges = [range(size) for size in graph.sizes(source)]
    ranges[axis - 1] = ranges[axis - 1][o["start"]:o["stop"]:o["step"]]
    layout = None if len(shape) <= 3 else in_order(math.prod(graph.shapes[step.output]))
    graph.hold(step.output, _part(graph, step.name, source, ranges), layout)


def _pad_step(graph: Graph, step: Step) -> None:
    name, shape = step.inputs[0], graph.shapes[step.inputs[0]]
    padding = list(step.options["padding"])[:2 * len(shape)]                                # the last dimension first
    widths = [(0, 0)] * (len(shape) - len(padding) // 2) + list(zip(padding[-2::-2], padding[::-2]))
    if len(shape) <= 3:
        layout, source = None, graph.read(name)
        widths = [*widths[1:], widths[0]] if len(shape) == 3 else widths
    else:  # what lies before the first that is padded, together
        first = next((i for i, width in enumerate(widths) if width != (0, 0)), len(shape) - 1)
        if len(shape) - first > 2:
            raise ValueError(f"{step.name} pads {len(shape) - first} of {len(shape)} dimensions, and may pad the last two of so many.")
        layout, widths = in_order(math.prod(graph.shapes[step.output])), [(0, 0), *widths[first:]]
        source = graph.read(name, in_order(math.prod(shape)), (math.prod(shape[:first]), *shape[first:]))
    cut = [range(max(0, -before), size + min(0, after)) for (before, after), size in zip(widths, graph.sizes(source))]
    source = _part(graph, step.name, source, cut)                                           # a negative width crops
    if any(max(width) > 0 for width in widths):
        source = _pad(graph, step.name, source, [(max(0, before), max(0, after)) for before, after in widths], step.options["code"])
    graph.hold(step.output, source, layout)


def _stretch(graph: Graph, step: Step) -> None:
    (down, right), zero = step.options["stride"], [(0, 0)]
    (channels, height, width), (_, rows, columns) = graph.shapes[step.inputs[0]], graph.shapes[step.output]
    place = graph.read(step.inputs[0])
    if right > 1:
        place = _pad(graph, step.name, graph.reshaped(place, (height * width, 1, channels)), [*zero, (0, right - 1), *zero])
    if down > 1:
        place = _pad(graph, step.name, graph.reshaped(place, (height, 1, width * right * channels)), [*zero, (0, down - 1), *zero])
    place = graph.reshaped(place, (height * down, width * right, channels))
    ends = [(rows, height * down), (columns, width * right)]
    place = _part(graph, step.name, place, [*(range(min(wanted, made)) for wanted, made in ends), range(channels)])
    if any(wanted > made for wanted, made in ends):
        place = _pad(graph, step.name, place, [*((0, max(0, wanted - made)) for wanted, made in ends), *zero])
    graph.hold(step.output, place)


def _unary(graph: Graph, step: Step) -> tuple[int, int]:
    """What a function of one number reads and writes: in whichever order it lies."""
    name = step.inputs[0]
    place, layout = graph.places[name], graph.layouts[name]
    return place, graph.activation(step.output, step.grids[-1], graph.sizes(place), layout)


def _relu(graph: Graph, step: Step) -> None:
    source, sink = _unary(graph, step)
    graph.operator("RELU", [source], [sink], version=2)


def _relu6(graph: Graph, step: Step) -> None:
    limits.check_six(step)
    source, sink = _unary(graph, step)
    graph.operator("RELU6", [source], [sink], version=2)


def _table(graph: Graph, step: Step) -> None:
    source, grid, kinds = graph.places[step.inputs[0]], step.grids[-1], graph.schema.TensorType
    sizes = graph.tensors[source].shape
    wide, places = (graph.add(f"{step.name} {what}", sizes, "INT32") for what in ("codes", "places"))
    graph.operator("CAST", [source], [wide], "CastOptions", inDataType=kinds.INT8, outDataType=kinds.INT32)
    graph.operator("ADD", [wide, graph.constant(f"{step.name} offset", [128])], [places], "AddOptions")
    table = graph.add(f"{step.name} table", [256], scale=grid.scale, zero_point=grid.zero_point, data=step.table.numpy())
    _, sink = _unary(graph, step)
    graph.operator("GATHER", [table, places], [sink], "GatherOptions", 2, axis=0)


def _softmax(graph: Graph, step: Step) -> None:
    limits.check_probabilities(step, PROBABILITY)
    name, shape = step.inputs[0], graph.shapes[step.inputs[0]]
    count = math.prod(shape)
    place = graph.read(name, in_order(count), (count // shape[-1], shape[-1]) if len(shape) > 1 else shape)
    graph.hold(step.output, _softmax_of(graph, place, name, step.grids[0], step.output), in_order(count))


def _softmax_of(graph: Graph, source: int, name: str, grid: Grid, output: str) -> int:
    """SOFTMAX of the last of a tensor's sizes. name: of the logits."""
    limits.check_logits(name, grid, graph.sizes(source)[-1])
    sink = graph.add(output, graph.tensors[source].shape, scale=PROBABILITY.scale, zero_point=PROBABILITY.zero_point)
    graph.operator("SOFTMAX", [source], [sink], "SoftmaxOptions", 2, beta=1.0)
    return sink


WRITE = {
    "conv": _conv, "linear": _linear, "mean": _mean, "add": _add, "maxpool": _maxpool, "flatten": _reshape, "relu": _relu,
    "windows": _windows, "mul": _mul, "cat": _cat, "table": _table, "softmax": _softmax, "relu6": _relu6, "reshape": _reshape,
    "permute": _permute, "slice": _slice, "pad": _pad_step, "stretch": _stretch,
}
