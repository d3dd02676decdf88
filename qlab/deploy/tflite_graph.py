"""The steps of an integer-only network as operators of TensorFlow Lite: what `qlab.deploy.tflite` writes.

Both sides compute Jacob et al. 2018: int8 codes with a scale and a zero-point a tensor, int8 weights with a scale an output channel,
an int32 bias whose scale is s_x s_w, the same multiplier M = s_x s_w / s_y of 31 bits. A file holds no M but the three scales, as
float32: M has 31 bits and a float32 has 24, so the s_w that gives M back, bit for bit, is the float32 next to M s_y / s_x.

What differs is the order of the numbers, and these operations:
    layout      PyTorch orders images (channel, row, column), TensorFlow Lite (row, column, channel). Weights are turned here, and so
                are the columns of a linear layer that reads a flattened map.
    padding     TensorFlow Lite knows VALID (none) and SAME, which at stride 2 may pad one side only, where PyTorch pads both. What is
                neither becomes an operator PAD of its own, filled with the zero-point.
    a mean      is a DEPTHWISE_CONV_2D with weights of 1 and the scale 1 / values: a sum and one M, as here. AVERAGE_POOL_2D cannot
                change the scale; MEAN does, but divides m by the number of values without shifting it up again, so that its
                roundings fall elsewhere than qlab's (3 of 100 codes of the depthwise net were one apart).
    groups      A CONV_2D whose filters are less deep than its input; all four sets of kernels run it. DEPTHWISE_CONV_2D where each channel
                is a group of its own.
    ReLU, ReLU6 are clamps of the operator before them, at the codes of 0.0 and of 6.0.
"""

import math
from functools import partial

import numpy as np
import torch

from qlab.deploy import tflite_limits as limits
from qlab.nets.integer import RUN, Grid, IntegerNetwork, Step, multiplier

PROBABILITY = Grid(1 / 256, -128, -128, 127)                                              # what SOFTMAX must write


class Graph:
    """A subgraph in the making: tensors, their constant buffers, operators.

    shapes: of each of the network's tensors for one image, in PyTorch's order. order: of a flattened tensor, the place that each of its
    values has in PyTorch. layers: what was written, for the description.
    """

    def __init__(self, schema, shapes: dict[str, tuple[int, ...]]):
        self.schema, self.shapes = schema, shapes
        self.buffers, self.tensors, self.operators, self.codes = [schema.BufferT()], [], [], {}
        self.places, self.order, self.layers = {}, {}, []

    def add(self, name: str, shape, dtype: str = "INT8", scale=None, zero_point: int = 0, axis: int = 0,
            data: np.ndarray | None = None) -> int:
        """A tensor; its index. data: of a constant."""
        tensor, buffer = self.schema.TensorT(), self.schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = name, list(shape), getattr(self.schema.TensorType, dtype)
        tensor.buffer = 0 if data is None else len(self.buffers) - 1
        if scale is not None:
            q = tensor.quantization = self.schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint, q.quantizedDimension = np.full(len(q.scale), zero_point, np.int64), axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def activation(self, name: str, shape: tuple[int, ...], grid: Grid) -> int:
        """The tensor of one image's codes; shape in PyTorch's order without the batch."""
        self.places[name] = self.add(name, (1, *channels_last(shape)), scale=grid.scale, zero_point=grid.zero_point)
        return self.places[name]

    def operator(self, code: str, inputs: list[int], outputs: list[int], options: str | None = None, version: int = 1, **values) -> None:
        """An operator; options: the name of its table in the schema, values: what it holds."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault((code, version), len(self.codes))
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in values.items():
                setattr(operator.builtinOptions, name, value)
        self.operators.append(operator)
        written = self.tensors[outputs[0]]
        self.layers.append({"name": written.name, "operator": code, "shape": list(written.shape),
                            "scale": float(written.quantization.scale[0]), "zero_point": int(written.quantization.zeroPoint[0])})

    def pack(self, source: int, sink: int, description: str) -> bytes:
        """The whole file."""
        import flatbuffers

        s = self.schema
        model, subgraph = s.ModelT(), s.SubGraphT()
        model.version, model.description, model.buffers, model.subgraphs = 3, description, self.buffers, [subgraph]
        model.operatorCodes = []
        for name, version in self.codes:
            code = s.OperatorCodeT()
            code.builtinCode, code.version = getattr(s.BuiltinOperator, name), version
            code.deprecatedBuiltinCode = code.builtinCode                                   # where readers before 2021 look
            model.operatorCodes.append(code)
        subgraph.name, subgraph.tensors, subgraph.operators = "main", self.tensors, self.operators
        subgraph.inputs, subgraph.outputs = [source], [sink]
        for buffer in self.buffers:
            buffer.Pack = partial(_pack_aligned, s, buffer.data)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _pack_aligned(schema, data: np.ndarray | None, builder) -> int:
    """A buffer whose data begin at a multiple of 16 bytes, as the schema asks and its Python classes forget."""
    if data is not None:
        builder.StartVector(1, len(data), 16)
        builder.head -= len(data)
        builder.Bytes[builder.head:builder.head + len(data)] = data.tobytes()
        place = builder.EndVector()
    schema.BufferStart(builder)
    if data is not None:
        schema.BufferAddData(builder, place)
    return schema.BufferEnd(builder)


def lower(network: IntegerNetwork, image_shape: tuple[int, ...], softmax: bool, schema) -> tuple[Graph, int, int]:
    """The graph of a network, and its input's and its output's index. Raises ValueError, naming the step, for what it does not cover."""
    limits.check_grids(network)
    graph = Graph(schema, map_shapes(network, image_shape))
    source = graph.activation(network.input, image_shape, network.grid_in)
    for step in network.steps:
        WRITE[step.kind](graph, step)
    sink, shape = graph.places[network.output], graph.shapes[network.output]
    if network.output in graph.order:
        raise ValueError(f"{network.output} flattens a map of channels and is the network's output, which would come in another order "
                         "than PyTorch's: end with a linear layer.")
    if softmax:
        limits.check_logits(network)
        logits, sink = sink, graph.activation("probabilities", shape, PROBABILITY)
        graph.operator("SOFTMAX", [logits], [sink], "SoftmaxOptions", 2, beta=1.0)
    limits.check_memory(graph, sink)
    return graph, source, sink


def map_shapes(network: IntegerNetwork, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one image. Raises ValueError for a shape that is not fixed or that the network cannot take."""
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in image_shape):
        raise ValueError(f"image_shape is {image_shape}, and must be fixed: a microcontroller's memory is planned before it runs.")
    tensors = {network.input: torch.zeros(1, *image_shape, dtype=torch.int8)}
    for step in network.steps:
        if step.kind not in WRITE:
            raise ValueError(f"{step.name} is a {step.kind}, and a .tflite file is written of {', '.join(WRITE)}.")
        if step.kind == "linear" and tensors[step.inputs[0]].dim() != 2:
            raise ValueError(f"{step.name} is a linear layer that reads an unflattened tensor, and must read a flattened one.")
        try:
            tensors[step.output] = RUN[step.kind](step, *(tensors[name] for name in step.inputs))
        except (RuntimeError, IndexError):
            raise ValueError(f"image_shape is {tuple(image_shape)}, which {step.name} cannot take.") from None
    return {name: tuple(codes.shape[1:]) for name, codes in tensors.items()}


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


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


# One function a kind of step


def _fused(graph: Graph, step: Step) -> int:
    """The clamp at the end of a step: at the codes of 0.0 and, where the grid ends there, of 6.0."""
    six = step.grids[-1].high < 127
    if six and not step.relu:
        raise ValueError(f"{step.name} clamps at the code of 6.0 without a ReLU, and must end in one.")
    return getattr(graph.schema.ActivationFunctionType, "RELU6" if six else "RELU" if step.relu else "NONE")


def _output(graph: Graph, step: Step) -> int:
    return graph.activation(step.output, graph.shapes[step.output], step.grids[-1])


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
    widths = np.array([(0, 0), *zip(padding, right), (0, 0)], np.int32)
    tensor, grid = graph.tensors[source], step.grids[0]
    padded = graph.add(f"{step.name} padded", [size + int(width.sum()) for size, width in zip(tensor.shape, widths)],
                       scale=grid.scale, zero_point=grid.zero_point)
    inputs = [source, graph.add(f"{step.name} padding", widths.shape, "INT32", data=widths)]
    if fill is None:
        graph.operator("PAD", inputs, [padded], "PadOptions", 2)
    else:
        constant = graph.add(f"{step.name} filling", [1], scale=grid.scale, zero_point=grid.zero_point, data=np.array([fill], np.int8))
        graph.operator("PADV2", [*inputs, constant], [padded], "PadV2Options", 2)
    return padded, options


def _constants(graph: Graph, step: Step, weight: np.ndarray, bias: np.ndarray, axis: int) -> list[int]:
    """The weight and the bias of a layer: codes and scales."""
    scale = weight_scale(step)
    limits.check_total(step, weight, bias, axis)
    return [graph.add(f"{step.name} weight", weight.shape, scale=scale, axis=axis, data=weight),
            graph.add(f"{step.name} bias", bias.shape, "INT32", np.float32(step.grids[0].scale) * scale, data=bias)]


def _conv(graph: Graph, step: Step) -> None:
    o, channels, weight, bias = step.options, graph.shapes[step.inputs[0]][0], step.weight.numpy(), step.bias.numpy()
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], o["dilation"])]
    source, window = _padding(graph, step, graph.places[step.inputs[0]], reach, o["stride"], o["padding"])
    window |= {"dilationHFactor": o["dilation"][0], "dilationWFactor": o["dilation"][1], "fusedActivationFunction": _fused(graph, step)}
    if not 1 < o["groups"] == channels:  # the kernels see other groups in the depth of the filters
        inputs = [source, *_constants(graph, step, weight.transpose(0, 2, 3, 1), bias, 0)]  # (out, rows, columns, in / groups)
        graph.operator("CONV_2D", inputs, [_output(graph, step)], "Conv2DOptions", 3, **window)
    else:
        inputs = [source, *_constants(graph, step, weight.transpose(1, 2, 3, 0), bias, 3)]  # (1, rows, columns, out)
        graph.operator("DEPTHWISE_CONV_2D", inputs, [_output(graph, step)], "DepthwiseConv2DOptions", 3,
                       depthMultiplier=len(weight) // channels, **window)


def _linear(graph: Graph, step: Step) -> None:
    weight, order = step.weight.numpy(), graph.order.get(step.inputs[0])
    fused, weight = _fused(graph, step), weight if order is None else weight[:, order]
    inputs = [graph.places[step.inputs[0]], *_constants(graph, step, weight, step.bias.numpy(), 0)]
    graph.operator("FULLY_CONNECTED", inputs, [_output(graph, step)], "FullyConnectedOptions", 12, fusedActivationFunction=fused)


def _mean(graph: Graph, step: Step) -> None:
    channels, kernel, stride = graph.shapes[step.inputs[0]][0], step.options["kernel_size"], step.options["stride"]
    constants = _constants(graph, step, np.ones((1, *kernel, channels), np.int8), np.zeros(channels, np.int32), 3)
    graph.operator("DEPTHWISE_CONV_2D", [graph.places[step.inputs[0]], *constants], [_output(graph, step)], "DepthwiseConv2DOptions", 3,
                   depthMultiplier=1, padding=graph.schema.Padding.VALID, strideH=stride[0], strideW=stride[1],
                   fusedActivationFunction=_fused(graph, step))


def _reshape(graph: Graph, source: int, sink: int) -> None:
    shape = np.array([-1, *graph.tensors[sink].shape[1:]], np.int32)                        # -1: whatever the batch
    inputs = [source, graph.add(f"{graph.tensors[sink].name} shape", shape.shape, "INT32", data=shape)]
    graph.operator("RESHAPE", inputs, [sink], "ReshapeOptions", newShape=shape)


def _add(graph: Graph, step: Step) -> None:
    if len({graph.shapes[name] for name in step.inputs}) != 1:
        raise ValueError(f"{step.name} adds tensors of the shapes {' and '.join(str(graph.shapes[n]) for n in step.inputs)}, which must be "
                         "one shape.")
    _same_order(graph, step)
    limits.check_sum(step)
    graph.operator("ADD", [graph.places[name] for name in step.inputs], [_output(graph, step)], "AddOptions", 2,
                   fusedActivationFunction=_fused(graph, step))


def _same_order(graph: Graph, step: Step) -> None:
    orders = [graph.order.get(name) for name in step.inputs]
    if any(order is not None for order in orders):
        if not all(order is not None and np.array_equal(order, orders[0]) for order in orders):
            raise ValueError(f"{step.name} adds a flattened map of channels to a tensor in another order: add before flattening.")
        graph.order[step.output] = orders[0]


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _maxpool(graph: Graph, step: Step) -> None:
    o = step.options
    kernel, stride = _pair(o["kernel_size"]), _pair(o["stride"])
    if _pair(o["dilation"]) != (1, 1) or o["ceil_mode"]:
        raise ValueError(f"{step.name} pools with dilation={o['dilation']} and ceil_mode={o['ceil_mode']}, and may have neither.")
    source, window = _padding(graph, step, graph.places[step.inputs[0]], kernel, stride, _pair(o["padding"]), fill=-128)
    graph.operator("MAX_POOL_2D", [source], [_output(graph, step)], "Pool2DOptions", 2, filterHeight=kernel[0], filterWidth=kernel[1],
                   **window)


def _flatten(graph: Graph, step: Step) -> None:
    shape, o = graph.shapes[step.inputs[0]], step.options
    if o["start_dim"] != 1 or len(graph.shapes[step.output]) != 1:
        raise ValueError(f"{step.name} flattens dimensions {o['start_dim']} to {o['end_dim']}, and must flatten all but the batch.")
    order = np.arange(math.prod(shape))
    if len(shape) == 3:
        order = order.reshape(shape).transpose(1, 2, 0).ravel()
    if (order != np.arange(len(order))).any():
        graph.order[step.output] = order
    if len(graph.tensors[graph.places[step.inputs[0]]].shape) == 2:
        graph.places[step.output] = graph.places[step.inputs[0]]
    else:
        _reshape(graph, graph.places[step.inputs[0]], _output(graph, step))


def _relu(graph: Graph, step: Step) -> None:
    _same_order(graph, step)
    graph.operator("RELU", [graph.places[step.inputs[0]]], [_output(graph, step)], version=2)


WRITE = {"conv": _conv, "linear": _linear, "mean": _mean, "add": _add, "maxpool": _maxpool, "flatten": _flatten, "relu": _relu}
