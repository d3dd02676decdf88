"""A .tflite file's graph in the making: tensors, constants and operators, and each of the network's tensors in the order asked for.

PyTorch orders an image's numbers (channel, row, column), TensorFlow Lite (row, column, channel). The network's reshapes and permutations
change neither the memory nor the file; where an operator wants another order than its operand lies in, `read` writes a TRANSPOSE
(qlab.deploy.tflite_layout says of which axes).
"""

from collections.abc import Iterable
from functools import partial

import numpy as np

from qlab.deploy.tflite_layout import Layout, channels_last, in_sizes, moves
from qlab.nets.steps import Grid


class Graph:
    """A subgraph in the making.

    shapes: of each of the network's tensors for one image, in PyTorch's order. places, layouts: where each is, and in which order.
    layers: what was written, for the description.
    """

    def __init__(self, schema, shapes: dict[str, tuple[int, ...]]):
        self.schema, self.shapes = schema, shapes
        self.buffers, self.tensors, self.operators, self.codes = [schema.BufferT()], [], [], {}
        self.places, self.layouts, self.layers = {}, {}, []
        self.names, self.known = {}, {}

    def add(self, name: str, shape, dtype: str = "INT8", scale=None, zero_point: int = 0, axis: int = 0,
            data: np.ndarray | None = None) -> int:
        """A tensor; its index. data: of a constant. A name that is taken gets a number."""
        tensor, buffer = self.schema.TensorT(), self.schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = self._name(name), list(shape), getattr(self.schema.TensorType, dtype)
        tensor.buffer = 0 if data is None else len(self.buffers) - 1
        if scale is not None:
            q = tensor.quantization = self.schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint, q.quantizedDimension = np.full(len(q.scale), zero_point, np.int64), axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _name(self, name: str) -> str:
        while name in self.names:
            self.names[name] += 1
            name = f"{name} {self.names[name]}"
        self.names[name] = 1
        return name

    def constant(self, name: str, values, dtype: str = "INT32") -> int:
        """Numbers that an operator takes beside its operands."""
        data = np.array(values, {"INT32": np.int32, "INT8": np.int8}[dtype])
        return self.add(name, data.shape, dtype, data=data)

    def like(self, source: int, name: str, sizes: Iterable[int]) -> int:
        """A tensor of the same codes in other sizes, without the batch."""
        q = self.tensors[source].quantization
        return self.add(name, (1, *sizes), scale=q.scale, zero_point=int(q.zeroPoint[0]))

    def sizes(self, index: int) -> tuple[int, ...]:
        """Of a tensor as it lies in the file, without the batch."""
        return tuple(self.tensors[index].shape[1:])

    # The network's tensors

    def hold(self, name: str, index: int, layout: Layout | None = None) -> int:
        """Note that a tensor of the file holds one of the network's; layout: without it, what TensorFlow Lite's operators take."""
        self.places[name], self.layouts[name] = index, channels_last(self.shapes[name]) if layout is None else layout
        return index

    def activation(self, name: str, grid: Grid, sizes: tuple[int, ...] | None = None, layout: Layout | None = None) -> int:
        """A new tensor for one of the network's, to be written by the next operator."""
        sizes = map_sizes(self.shapes[name]) if sizes is None else sizes
        return self.hold(name, self.add(name, (1, *sizes), scale=grid.scale, zero_point=grid.zero_point), layout)

    def read(self, name: str, layout: Layout | None = None, sizes: tuple[int, ...] | None = None) -> int:
        """One of the network's tensors in an order and in sizes that an operator takes; without them, channels last."""
        shape, index = self.shapes[name], self.places[name]
        layout = channels_last(shape) if layout is None else layout
        for axes, order in moves(self.layouts[name], layout):
            same = in_sizes(axes, order, self.sizes(index))
            index = self._transposed(self.reshaped(index, axes), name, order) if same is None else self._transposed(index, name, same)
        return self.reshaped(index, map_sizes(shape) if sizes is None else sizes)

    def reshaped(self, index: int, sizes: Iterable[int], name: str | None = None) -> int:
        """The same memory in other sizes."""
        sizes, source = tuple(sizes), self.tensors[index].name
        if sizes == self.sizes(index) and name is None:
            return index
        if (index, sizes, name) not in self.known:
            sink = self.like(index, f"{source} reshaped" if name is None else name, sizes)
            shape = np.array([-1, *sizes], np.int32)                                        # -1: whatever the batch
            inputs = [index, self.add(f"{self.tensors[sink].name} shape", shape.shape, "INT32", data=shape)]
            self.operator("RESHAPE", inputs, [sink], "ReshapeOptions", newShape=shape)
            self.known[index, sizes, name] = sink
        return self.known[index, sizes, name]

    def _transposed(self, index: int, name: str, order: tuple[int, ...]) -> int:
        if (index, order) not in self.known:
            sink = self.like(index, f"{name} transposed", [self.sizes(index)[i] for i in order])
            inputs = [index, self.constant(f"{self.tensors[sink].name} order", [0, *(i + 1 for i in order)])]
            self.operator("TRANSPOSE", inputs, [sink], "TransposeOptions", 2)
            self.known[index, order] = sink
        return self.known[index, order]

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
        q = written.quantization
        self.layers.append({"name": written.name, "operator": code, "shape": list(written.shape),
                            "scale": None if q is None else float(q.scale[0]), "zero_point": None if q is None else int(q.zeroPoint[0])})

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


def map_sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of an image's tensor in a file, channels last for a map; both without the batch."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)
