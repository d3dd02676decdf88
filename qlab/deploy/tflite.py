"""A full-INT8 .tflite file, and the runtimes that run it: LiteRT (TensorFlow Lite's name since 2024) and tflite-micro.

The file holds what qlab.nets.integer computes: int8 codes in and out, int8 weights with a scale an output channel, int32 biases. Which
operators the layers become: qlab.deploy.tflite_graph. Four sets of kernels run it:

    xnnpack    LiteRT's default on a CPU                     builtin    LiteRT without XNNPACK: multiplies with the library ruy
    reference  LiteRT's plain loops                          micro      tflite-micro, for microcontrollers

All add the same int32 sums. They differ in how a sum becomes a code, y = z + round(M sum). Jacob et al. 2018, and qlab.nets.integer, round
twice: the upper half of sum * m to nearest, then its shift to the right, ties away from zero. Read in the runtimes' sources, and measured
one operator at a time, on x86-64:

                 convolution, mean                        fully connected                          sum of two tensors
    micro        twice                                    twice                                    twice
    reference    twice                                    once, in float64 (fully_connected.h)     twice
    builtin      twice, ties up (ruy; 8 channels at once) twice, ties up (ruy)                     twice
    xnnpack      once, in float32, ties to even (requantize_fp32)                                  once, with fewer bits of M

tflite-micro therefore gives qlab's codes, bit for bit, on all 10,000 test images. "Ties up" shows only below the zero-point, and never
under a ReLU. Rounding once instead of twice moves a code in about one of 2**(1 - n) sums, where M = m 2**(n - 31): one in some thousand
behind a convolution, one in thirty behind the depthwise net's mean. An operator is never more than one code away from qlab's; the
operators after it carry that on (to 4 codes in 10,000 images of the depthwise net under XNNPACK).
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qlab.deploy import files
from qlab.deploy.tflite_graph import PROBABILITY, lower
from qlab.nets.integer import Grid, IntegerNetwork

KERNELS = ("xnnpack", "builtin", "reference", "micro")
ARENA = 16 << 20                                                                            # what tflite-micro may plan in here, bytes
BATCH = 100


def export(network: IntegerNetwork, path: str | os.PathLike, image_shape: tuple[int, ...] = (1, 28, 28), softmax: bool = False,
           name: str | None = None) -> files.Description:
    """Write the network as a .tflite file, for images of one shape (channels, rows, columns), and NAME.json beside it.

    softmax: end in probabilities, codes of 1/256, instead of logits. name: of the network; without it, the file's. In the file an image
    is (1, rows, columns, channels), as TensorFlow has it; run turns PyTorch's images. Raises ValueError, naming the layer, for what a
    .tflite file cannot hold or a shape that is not fixed, TypeError for a network that is not an integer-only one, OSError where the
    file cannot be written.

    >>> from qlab.nets import integer, ptq
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> network = integer.convert(ptq.quantize(net, torch.rand(8, 1, 4, 4)), image_shape=(1, 4, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     about = export(network, f"{folder}/tiny.tflite", image_shape=(1, 4, 4))
    ...     logits = run(f"{folder}/tiny.tflite", torch.rand(5, 1, 4, 4))
    ...     scales = describe(f"{folder}/tiny.tflite").operators[0].inputs[1].scale
    >>> [layer["operator"] for layer in about.layers], logits.shape, len(scales)
    (['CONV_2D', 'RESHAPE', 'FULLY_CONNECTED'], torch.Size([5, 2]), 4)
    """
    if not isinstance(network, IntegerNetwork):
        raise TypeError(f"network is a {type(network).__name__}, and must be an IntegerNetwork: quantize it with qlab.nets.ptq.quantize, "
                        "then convert it with qlab.nets.integer.convert.")
    graph, source, sink = lower(network, tuple(image_shape), softmax, _schema())
    content = graph.pack(source, sink, "integer-only network, written by qlab")
    return files.write(
        path, content, format="tflite", network=Path(path).stem if name is None else name, layers=tuple(graph.layers),
        input=_port(tuple(image_shape), network.grid_in),
        output=_port(graph.shapes[network.output], PROBABILITY if softmax else network.grid_out))


def _port(shape: tuple[int, ...], grid: Grid) -> files.Port:
    return files.Port(shape, "int8", grid.scale, grid.zero_point)


def _schema():
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise ImportError(_missing("ai-edge-litert")) from None
    return schema_py_generated


def _missing(library: str) -> str:
    only = " (it has a wheel for Linux on x86-64 alone)" if library == "tflite-micro" else ""
    return f"{library} is not installed: pip install qlab[deploy]{only}."


# Reading a file


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


def describe(path: str | os.PathLike) -> Model:
    """Read any .tflite file's operators and quantization parameters. Raises FileNotFoundError; ValueError for what is no such file.

    For instance, describe(path).operators[0].inputs[1].scale has the scales of the first layer's weights.
    """
    return _parse(path, _read(path))


def _read(path: str | os.PathLike) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): tflite.export writes such a file.") from None
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is not a .tflite file: it does not begin as one.")
    files.read_description(path)
    return content


def _parse(path: str | os.PathLike, content: bytes) -> Model:
    s = _schema()
    names = {value: name for name, value in vars(s.BuiltinOperator).items() if isinstance(value, int)}
    dtypes = {value: name.lower() for name, value in vars(s.TensorType).items() if isinstance(value, int)}
    try:
        model = s.ModelT.InitFromPackedBuf(content)
        graph = model.subgraphs[0]

        def tensor(i: int) -> Tensor:
            t, q = graph.tensors[i], graph.tensors[i].quantization
            scale = () if q is None or q.scale is None else tuple(float(value) for value in q.scale)
            zero = () if q is None or q.zeroPoint is None else tuple(int(value) for value in q.zeroPoint)
            data = model.buffers[t.buffer].data
            return Tensor((t.name or b"").decode(), tuple(int(size) for size in t.shape), dtypes[t.type], scale, zero,
                          q.quantizedDimension if len(scale) > 1 else None, 0 if data is None else len(data))

        def tensors(indices) -> tuple[Tensor, ...]:
            return tuple(tensor(i) for i in indices if i >= 0)                              # -1: an input that is left out

        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
        operators = tuple(Operator(names[codes[o.opcodeIndex]], tensors(o.inputs), tensors(o.outputs)) for o in graph.operators)
        return Model(tensors(graph.inputs), tensors(graph.outputs), operators, len(content))
    except Exception:  # noqa: BLE001 - damaged offsets make the reader raise whatever they lead to
        raise ValueError(f"{path} is damaged: it begins as a .tflite file and cannot be read to its end.") from None


def constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights, biases and other constants of a .tflite file, by name: their codes."""
    content = _read(path)
    model, s = _parse(path, content), _schema()
    raw = s.ModelT.InitFromPackedBuf(content)
    data = {(t.name or b"").decode(): raw.buffers[t.buffer].data for t in raw.subgraphs[0].tensors}
    known = {t.name: t for operator in model.operators for t in operator.inputs if t.nbytes}
    return {name: np.frombuffer(data[name].tobytes(), t.dtype).reshape(t.shape) for name, t in known.items()}


# Running it


def run(path: str | os.PathLike, x: torch.Tensor, kernels: str = "xnnpack", threads: int = 1) -> torch.Tensor:
    """Logits of images (N, channels, rows, columns), computed from the file by one of the four sets of kernels.

    Floats give float32 logits (N, classes), int8 codes give the logits' int8 codes. Raises ValueError for another shape, a damaged file
    or one that the runtime refuses, TypeError for another dtype, ImportError where the runtime is not installed.
    """
    model = describe(path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs, and must have one of each.")
    source, sink = model.inputs[0], model.outputs[0]
    x = torch.as_tensor(x)
    if x.dtype != torch.int8 and not x.is_floating_point():
        raise TypeError(f"the images are {x.dtype}, and must be floats or int8 codes.")
    shape = (*source.shape[3:], *source.shape[1:3]) if len(source.shape) == 4 else source.shape[1:]
    if tuple(x.shape[1:]) != shape or x.dim() != len(source.shape):
        raise ValueError(f"the images have the shape {tuple(x.shape)}, and must have (N, {', '.join(map(str, shape))}).")
    codes = x if x.dtype == torch.int8 or source.dtype != "int8" else encode(x.float(), source)
    if source.dtype != str(codes.dtype).removeprefix("torch."):
        raise TypeError(f"the images are {x.dtype}, and {path} takes {source.dtype}.")
    inference = load(path, kernels, threads)
    codes = codes.movedim(1, -1) if codes.dim() == 4 else codes                             # (N, rows, columns, channels)
    out = [torch.from_numpy(inference(batch.contiguous().numpy())) for batch in codes.split(BATCH) if len(batch)]
    out = torch.cat(out) if out else torch.zeros(0, *sink.shape[1:], dtype=getattr(torch, sink.dtype))
    out = out.movedim(-1, 1) if out.dim() == 4 else out
    return out if x.dtype == torch.int8 or sink.dtype != "int8" else (out.int() - sink.zero_point[0]) * torch.tensor(sink.scale[0])


def encode(images: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """Float images as the int8 codes of a file's input."""
    return (images / tensor.scale[0]).round_().add_(tensor.zero_point[0]).clamp_(-128, 127).to(torch.int8)


def load(path: str | os.PathLike, kernels: str = "xnnpack", threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """The file in a runtime, ready to be called (and timed): codes (n, rows, columns, channels) to codes (n, classes), both NumPy.

    LiteRT takes n images at once, tflite-micro one after the other.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}, and must be one of {', '.join(KERNELS)}.")
    content = _read(path)
    _parse(path, content)                                                                   # the runtimes crash on a damaged file
    interpreter = _micro(path, content) if kernels == "micro" else _litert(path, content, kernels, threads)
    if kernels == "micro":
        def one(image: np.ndarray) -> np.ndarray:
            interpreter.set_input(image, 0)
            interpreter.invoke()
            return interpreter.get_output(0)

        return lambda codes: np.concatenate([one(codes[i:i + 1]) for i in range(len(codes))])
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(codes: np.ndarray) -> np.ndarray:
        if interpreter.get_input_details()[0]["shape"][0] != len(codes):
            with _stderr():
                interpreter.resize_tensor_input(source, codes.shape)
                interpreter.allocate_tensors()
        interpreter.set_tensor(source, codes)
        interpreter.invoke()
        return interpreter.get_tensor(sink)

    return infer


def _litert(path, content: bytes, kernels: str, threads: int):
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise ImportError(_missing("ai-edge-litert")) from None
    resolver = {"xnnpack": OpResolverType.BUILTIN, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                "reference": OpResolverType.BUILTIN_REF}[kernels]
    with _refusals(path, "LiteRT"):
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _micro(path, content: bytes):
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        raise ImportError(_missing("tflite-micro")) from None
    with _refusals(path, "tflite-micro"):
        return runtime.Interpreter.from_bytes(content, arena_size=ARENA)


def arena(path: str | os.PathLike) -> dict[str, int]:
    """The bytes of memory that tflite-micro plans for the file: total, activations and persistent (its own structures).

    The weights are not among them: they stay in flash. The structures hold pointers, here of 8 bytes, on a microcontroller of 4.
    """
    content = _read(path)
    _parse(path, content)
    interpreter = _micro(path, content)
    with _stderr() as said:
        interpreter.print_allocations()
        numbers = dict(re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", said()))
    return {"total": int(numbers["total"]), "activations": int(numbers["head"]), "persistent": int(numbers["tail"])}


@contextlib.contextmanager
def _refusals(path, runtime: str) -> Iterator[None]:
    """What a runtime writes to stderr when it refuses a file, as the error's one sentence."""
    with _stderr() as said:
        try:
            yield
        except (ValueError, RuntimeError) as error:
            lines = [line for line in f"{error}\n{said()}".splitlines() if line.strip()]
            raise ValueError(f"{runtime} refuses {path}: {lines[0] if lines else type(error).__name__}") from None


@contextlib.contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Catch what C++ writes to the process's stderr; calling the value, inside, tells it."""
    with tempfile.TemporaryFile() as caught:
        def said() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
