"""Steps that hand on codes, to other places or by a table, as operators of TensorFlow Lite; and cat and softmax.

How they differ from PyTorch's: qlab.deploy.tflite_steps.
"""

import math

import numpy as np

from qlab.deploy import tflite_limits as limits
from qlab.deploy.tflite_graph import Graph
from qlab.deploy.tflite_layout import in_order, permuted
from qlab.deploy.tflite_parts import along, fused, joined, pad, part
from qlab.nets.integer import Grid, Step

PROBABILITY = Grid(1 / 256, -128, -128, 127)                                                # what SOFTMAX must write


def _cat(graph: Graph, step: Step) -> None:
    fused(graph, step)                                                                      # refuses a clamp, which CONCATENATION has not
    limits.check_rescaling(step)
    dim, out = step.options["dim"] % (len(graph.shapes[step.output]) + 1), step.grids[-1]
    parts = []
    for name in step.inputs:
        sizes, axis = along(graph, name, dim)
        source = graph.read(name, None if sizes is None else in_order(math.prod(sizes)), sizes)
        parts.append(_rescaled(graph, f"{name} for {step.name}", source, out))
    shape, together = graph.shapes[step.output], along(graph, step.output, dim)[0]
    graph.hold(step.output, joined(graph, step.name, parts, axis), None if together is None else in_order(math.prod(shape)))


def _rescaled(graph: Graph, name: str, source: int, out: Grid) -> int:
    q = graph.tensors[source].quantization
    if (q.scale[0], q.zeroPoint[0]) == (np.float32(out.scale), out.zero_point):
        return source
    if (source, out) not in graph.known:
        sink = graph.add(name, graph.tensors[source].shape, scale=out.scale, zero_point=out.zero_point)
        graph.operator("QUANTIZE", [source], [sink], "QuantizeOptions", 2)
        graph.known[source, out] = sink
    return graph.known[source, out]


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
    sizes, axis = along(graph, name, dim)
    source = graph.read(name, None if sizes is None else in_order(math.prod(sizes)), sizes)
    ranges = [range(size) for size in graph.sizes(source)]
    ranges[axis - 1] = ranges[axis - 1][o["start"]:o["stop"]:o["step"]]
    layout = None if len(shape) <= 3 else in_order(math.prod(graph.shapes[step.output]))
    graph.hold(step.output, part(graph, step.name, source, ranges), layout)


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
    source = part(graph, step.name, source, cut)                                           # a negative width crops
    if any(max(width) > 0 for width in widths):
        source = pad(graph, step.name, source, [(max(0, before), max(0, after)) for before, after in widths], step.options["code"])
    graph.hold(step.output, source, layout)


def _stretch(graph: Graph, step: Step) -> None:
    (down, right), zero = step.options["stride"], [(0, 0)]
    (channels, height, width), (_, rows, columns) = graph.shapes[step.inputs[0]], graph.shapes[step.output]
    place = graph.read(step.inputs[0])
    if right > 1:
        place = pad(graph, step.name, graph.reshaped(place, (height * width, 1, channels)), [*zero, (0, right - 1), *zero])
    if down > 1:
        place = pad(graph, step.name, graph.reshaped(place, (height, 1, width * right * channels)), [*zero, (0, down - 1), *zero])
    place = graph.reshaped(place, (height * down, width * right, channels))
    ends = [(rows, height * down), (columns, width * right)]
    place = part(graph, step.name, place, [*(range(min(wanted, made)) for wanted, made in ends), range(channels)])
    if any(wanted > made for wanted, made in ends):
        place = pad(graph, step.name, place, [*((0, max(0, wanted - made)) for wanted, made in ends), *zero])
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
    graph.hold(step.output, softmax_of(graph, place, name, step.grids[0], step.output), in_order(count))


def softmax_of(graph: Graph, source: int, name: str, grid: Grid, output: str) -> int:
    """SOFTMAX of the last of a tensor's sizes. name: of the logits."""
    limits.check_logits(name, grid, graph.sizes(source)[-1])
    sink = graph.add(output, graph.tensors[source].shape, scale=PROBABILITY.scale, zero_point=PROBABILITY.zero_point)
    graph.operator("SOFTMAX", [source], [sink], "SoftmaxOptions", 2, beta=1.0)
    return sink


MOVES = {
    "flatten": _reshape, "relu": _relu, "cat": _cat, "table": _table, "softmax": _softmax, "relu6": _relu6, "reshape": _reshape,
    "permute": _permute, "slice": _slice, "pad": _pad_step, "stretch": _stretch,
}
