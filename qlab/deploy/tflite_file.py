"""What a .tflite file holds: its operators, its tensors with their quantization parameters, and the bytes of its constants.

Any file is read, whoever wrote it; a damaged one is a ValueError, and takes no longer than a whole one.
Source: the schema of TensorFlow Lite, as ai-edge-litert has it.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import qlab
from qlab.deploy import files, tflite_runtime


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. scale, zero_point: one for all, or one for each index of axis; empty for what is not quantized.

    nbytes: of a constant; 0 for what is computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    nbytes: int


@dataclass(frozen=True)
class Operator:
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Model:
    """What a .tflite file holds: its operators in the order in which they run."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    nbytes: int


def schema():
    """The classes that FlatBuffers makes of TensorFlow Lite's schema. Raises ImportError, with what to install."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise ImportError(tflite_runtime.missing("ai-edge-litert")) from None
    return schema_py_generated


def read(path: str | os.PathLike) -> tuple[bytes, bool]:
    """The file's bytes, and whether they are what this version's export wrote: a description beside them has their checksum."""
    try:
        if Path(path).stat().st_size >= 2**31:
            raise ValueError(f"{path} is not a .tflite file: it has {Path(path).stat().st_size:,} bytes, and such a file less than 2 GiB.")
        content = Path(path).read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): tflite.export writes such a file.") from None
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is not a .tflite file: it does not begin as one.")
    told = files.read_description(path)
    ours = told is not None and (told.format, told.qlab) == ("tflite", qlab.__version__)
    return content, ours and told.sha256 == hashlib.sha256(content).hexdigest()


def parse(path: str | os.PathLike, content: bytes) -> tuple[Model, dict[str, np.ndarray]]:
    """What the file holds, and the bytes of its constants by the id of their Tensor (uint8, as in the file). path: for messages."""
    s = schema()
    names = {value: name for name, value in vars(s.BuiltinOperator).items() if isinstance(value, int)}
    dtypes = {value: name.lower() for name, value in vars(s.TensorType).items() if isinstance(value, int)}
    left, data = len(content), {}

    def whole(count: int, nbytes: int) -> range:
        # A damaged length may lead to the same bytes again and again, for hours: what a whole file holds adds up to its size at most.
        nonlocal left
        left -= count * nbytes
        if left < 0:
            raise ValueError
        return range(count)

    def values(count: int, nbytes: int, as_numpy) -> list:
        return as_numpy().tolist() if len(whole(count, nbytes)) else []

    def tensor(t) -> Tensor:
        q, raw, name = t.Quantization(), model.Buffers(range(model.BuffersLength())[t.Buffer()]), (t.Name() or b"").decode()
        whole(len(name), 1)
        scale = () if q is None else tuple(values(q.ScaleLength(), 4, q.ScaleAsNumpy))
        zero = () if q is None else tuple(values(q.ZeroPointLength(), 8, q.ZeroPointAsNumpy))
        found = Tensor(name, tuple(values(t.ShapeLength(), 4, t.ShapeAsNumpy)), dtypes[t.Type()], scale, zero,
                       q.QuantizedDimension() if len(scale) > 1 else None, raw.DataLength())
        if found.nbytes:
            data[id(found)] = raw.DataAsNumpy()
        return found

    def chosen(indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(tensors[i] for i in indices if i >= 0)                                 # -1: an input that is left out

    try:
        model = s.Model.GetRootAs(content)
        graph = model.Subgraphs(0)
        tensors = [tensor(graph.Tensors(i)) for i in whole(graph.TensorsLength(), 8)]
        codes = [model.OperatorCodes(i) for i in whole(model.OperatorCodesLength(), 8)]
        codes = [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
        operators = []
        for o in map(graph.Operators, whole(graph.OperatorsLength(), 8)):
            ends = [chosen(values(o.InputsLength(), 4, o.InputsAsNumpy)), chosen(values(o.OutputsLength(), 4, o.OutputsAsNumpy))]
            operators.append(Operator(codes[o.OpcodeIndex()], *ends))
        source, sink = values(graph.InputsLength(), 4, graph.InputsAsNumpy), values(graph.OutputsLength(), 4, graph.OutputsAsNumpy)
        return Model(chosen(source), chosen(sink), tuple(operators), len(content)), data
    except Exception:  # noqa: BLE001 - damaged offsets make the reader raise whatever they lead to
        raise ValueError(f"{path} is damaged: it begins as a .tflite file and cannot be read to its end.") from None
