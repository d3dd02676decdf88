"""What several kinds of steps are written of: a clamp, padding, parts of a tensor, tensors after each other (qlab.deploy.tflite_steps)."""

import math

import numpy as np

from qlab.deploy.tflite_graph import Graph
from qlab.nets.integer import Step

JOINED = 10                                                                                 # inputs that tflite-micro concatenates at once


def fused(graph: Graph, step: Step) -> int:
    """The clamp at the end of a step: at the codes of 0.0 and, where the grid ends there, of 6.0."""
    six = step.grids[-1].high < 127
    if six and not step.relu:
        raise ValueError(f"{step.name} clamps at the code of 6.0 without a ReLU, and must end in one.")
    return getattr(graph.schema.ActivationFunctionType, "RELU6" if six else "RELU" if step.relu else "NONE")


def output(graph: Graph, step: Step) -> int:
    return graph.activation(step.output, step.grids[-1])


def pad(graph: Graph, name: str, source: int, widths: list[tuple[int, int]], fill: int | None = None) -> int:
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


def part(graph: Graph, name: str, source: int, ranges: list[range]) -> int:
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


def joined(graph: Graph, name: str, parts: list[int], axis: int) -> int:
    """Tensors after each other along a dimension of the file's, the batch's being 0."""
    while len(parts) > 1:
        some, sizes = parts[:JOINED], list(graph.sizes(parts[0]))
        sizes[axis - 1] = sum(graph.sizes(part)[axis - 1] for part in some)
        sink = graph.like(parts[0], f"{name} joined", sizes)
        graph.operator("CONCATENATION", some, [sink], "ConcatenationOptions", 2, axis=axis)
        parts = [sink, *parts[JOINED:]]
    return parts[0]


def along(graph: Graph, name: str, dim: int) -> tuple[tuple[int, ...] | None, int]:
    """The sizes in which a file's operator finds a dimension of a tensor (None: channels last as it is), and at which axis.

    dim: with the batch's, 0. More than three dimensions are put together, for tflite-micro knows four with the batch's.
    """
    shape = graph.shapes[name]
    if len(shape) <= 3:
        return None, dim if len(shape) < 3 else (0, 3, 1, 2)[dim]
    return (math.prod(shape[:dim - 1]), shape[dim - 1], math.prod(shape[dim:])), 2
