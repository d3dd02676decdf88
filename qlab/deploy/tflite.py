"""A full-INT8 .tflite file, and the runtimes that run it: LiteRT (TensorFlow Lite's name since 2024) and tflite-micro.

The file holds what qlab.nets.integer computes: int8 codes in and out, int8 weights with a scale an output channel, int32 biases. Which
operators the layers become: qlab.deploy.tflite_steps. Four sets of kernels run it:

    xnnpack    LiteRT's default on a CPU                     builtin    LiteRT without XNNPACK: multiplies with the library ruy
    reference  LiteRT's plain loops                          micro      tflite-micro, for microcontrollers

All add the same int32 sums. They differ in how a sum becomes a code, y = z + round(M sum). Jacob et al. 2018, and qlab.nets.integer, round
twice: the upper half of sum * m to nearest, then its shift to the right, ties away from zero. Read in the runtimes' sources, and measured
one operator at a time, on x86-64:

                         micro    reference           builtin                                    xnnpack
    convolution, mean    twice    twice               twice, ties up (ruy; 8 channels at once)   once, in float32, ties to even
    fully connected      twice    once, in float64    twice, ties up (ruy)                       once, in float32, ties to even
    sum of two tensors   twice    twice               twice                                      once, with fewer bits of M
    product of two       twice    twice               twice                                      once, in float32
    cat: another scale   twice    twice               twice, ties up                             once, M cut to 8 bits behind the point
    softmax              qlab.nets.softmax's codes    exp from a table of float32                exp from a table of float32

What moves codes (reshape, permute, slice, padding, maximum, ReLU, ReLU6) or looks them up in a table is the same in all four.

tflite-micro therefore gives qlab's codes, bit for bit, on all 10,000 test images. "Ties up" shows only below the zero-point, and never
under a ReLU. Rounding once instead of twice moves a code in about one of 2**(1 - n) sums, where M = m 2**(n - 31): one in some thousand
behind a convolution, one in thirty behind the depthwise net's mean. An operator is never more than one code away from qlab's; the
operators after it carry that on (to 4 codes in 10,000 images of the depthwise net under XNNPACK), and a steep table multiplies it.

A file that export writes runs under all four, if its activations fit the memory that tflite-micro is given here. What one of them would
abort on, refuse or compute otherwise is refused by export, in one sentence that names the step: qlab.deploy.tflite_limits.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qlab.deploy import checks, files, tflite_child, tflite_runtime
from qlab.deploy.tflite_file import Model, Tensor, parse, read, schema
from qlab.deploy.tflite_limits import ARENA, check_arena
from qlab.deploy.tflite_steps import PROBABILITY, lower
from qlab.nets.integer import Grid, IntegerNetwork
from qlab.quant.layout import as_tensor

KERNELS = ("xnnpack", "builtin", "reference", "micro")
BATCH, BYTES = 100, 1 << 28                                                                 # images at once, and bytes of their activations
NUMPY = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "complex64")


def export(network: IntegerNetwork, path: str | os.PathLike, image_shape: tuple[int, ...] = (1, 28, 28), softmax: bool = False,
           name: str | None = None) -> files.Description:
    """Write the network as a .tflite file, for images of one shape, and NAME.json beside it.

    image_shape: (channels, rows, columns), (channels, length) or (values,). softmax: end in probabilities, codes of 1/256, instead of
    logits. name: of the network; without it, the file's. In the file an image is (1, rows, columns, channels), as TensorFlow has it; run
    turns PyTorch's images. A network that needs more memory than tflite-micro is given here is written, for LiteRT runs it. Raises
    ValueError, naming the layer, for what a .tflite file cannot hold or a shape that is not fixed, TypeError for a network that is not an
    integer-only one, OSError where the file cannot be written.

    >>> import tempfile
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
    image_shape = tuple(int(n) if isinstance(n, np.integer) else n for n in image_shape)
    graph, source, sink = lower(network, image_shape, softmax, schema())
    content = graph.pack(source, sink, "integer-only network, written by qlab")
    return files.write(
        path, content, format="tflite", network=Path(path).stem if name is None else name, layers=tuple(graph.layers),
        input=_port(image_shape, network.grid_in),
        output=_port(graph.shapes[network.output], PROBABILITY if softmax else network.grid_out))


def _port(shape: tuple[int, ...], grid: Grid) -> files.Port:
    return files.Port(shape, "int8", grid.scale, grid.zero_point)


# Reading a file


def describe(path: str | os.PathLike) -> Model:
    """Read any .tflite file's operators and quantization parameters. Raises FileNotFoundError; ValueError for what is no such file.

    For instance, describe(path).operators[0].inputs[1].scale has the scales of the first layer's weights.
    """
    return parse(path, read(path)[0])[0]


def constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights, biases and other constants of a .tflite file, by name: their codes, read-only.

    Raises ValueError, naming the constant, for a dtype that NumPy lacks, for bytes that do not fill its shape, for a name that two share.
    """
    model, data = parse(path, read(path)[0])
    result, known = {}, {id(t): t for operator in model.operators for t in operator.inputs if t.nbytes}
    for key, t in known.items():
        if t.name in result:
            raise ValueError(f"{path} has two constants called {t.name!r}: describe(path) tells them apart.")
        if t.dtype not in NUMPY:
            raise ValueError(f"{t.name} in {path} is of the dtype {t.dtype}, and must be one that NumPy has: {', '.join(NUMPY)}.")
        if math.prod(t.shape) * np.dtype(t.dtype).itemsize != t.nbytes or min(t.shape, default=0) < 0:
            raise ValueError(f"{path} is damaged: {t.name}, {t.dtype} of the shape {t.shape}, has {t.nbytes} bytes.")
        result[t.name] = data[key].view(t.dtype).reshape(t.shape)
    return result


# Running it


def run(path: str | os.PathLike, x, kernels: str = "xnnpack", threads: int = 1) -> torch.Tensor:
    """Logits of images (N, channels, rows, columns), computed from the file by one of the four sets of kernels.

    x: floats of any precision, encoded as float32, give float32 logits (N, classes); int8 codes give the logits' int8 codes. A tensor,
    an array or lists; images of another shape if the file was exported for it. Raises ValueError for a shape that is not the file's, NaN
    or infinity, a damaged file or one that the runtime refuses or does not survive (load says where it runs), or that does not fit
    tflite-micro's memory; TypeError for another dtype, ImportError where the runtime is not installed.
    """
    model, inference = _open(path, kernels, threads)
    source, sink, x = model.inputs[0], model.outputs[0], as_tensor(x)
    if x.dtype != torch.int8 and not x.is_floating_point():
        raise TypeError(f"the images are {x.dtype}, and must be floats or int8 codes.")
    shape = (*source.shape[3:], *source.shape[1:3]) if len(source.shape) == 4 else source.shape[1:]
    if tuple(x.shape[1:]) != shape or x.dim() != len(source.shape):
        raise ValueError(f"the images have the shape {tuple(x.shape)}, and must have (N, {', '.join(map(str, shape))}).")
    codes = x if x.dtype == torch.int8 else encode(x, source) if source.dtype == "int8" else _finite(x)
    if source.dtype != str(codes.dtype).removeprefix("torch."):
        raise TypeError(f"the images are {x.dtype}, and {path} takes {source.dtype}.")
    codes = codes.movedim(1, -1) if codes.dim() == 4 else codes                             # (N, rows, columns, channels)
    out = [torch.from_numpy(inference(batch.numpy())) for batch in codes.split(_images_at_once(model))]
    out = torch.cat(out)
    out = out.movedim(-1, 1) if out.dim() == 4 else out
    return out if x.dtype == torch.int8 or sink.dtype != "int8" else (out.int() - sink.zero_point[0]) * torch.tensor(sink.scale[0])


def _images_at_once(model: Model) -> int:
    """LiteRT holds a batch's activations at once: as many images as fit into BYTES with what one operator reads and writes."""
    largest = max((sum(math.prod(t.shape) for t in (*o.inputs, *o.outputs) if not t.nbytes) for o in model.operators), default=0)
    return max(1, min(BATCH, BYTES // max(1, largest)))


def encode(images, tensor: Tensor) -> torch.Tensor:
    """Float images as the int8 codes of a file's input. Raises ValueError for NaN and infinity."""
    codes = _finite(as_tensor(images, "images")) / tensor.scale[0]
    return codes.round_().add_(tensor.zero_point[0]).clamp_(-128, 127).to(torch.int8)


def _finite(images: torch.Tensor) -> torch.Tensor:
    return checks.finite(images.detach().to("cpu", torch.float32), "the images")


def load(path: str | os.PathLike, kernels: str = "xnnpack", threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """The file in a runtime, ready to be called (and timed): codes (n, rows, columns, channels) to codes (n, classes), both NumPy.

    LiteRT takes n images at once, tflite-micro one after the other. What this version's export wrote, with its description beside it,
    runs in this process. Any other file runs in a process of its own, which ends with the function: the runtimes check little, and a
    file can crash them, hang, or eat memory. That then is a ValueError, which names the signal or the limit: a minute to load, a minute
    and a second an image to run, and 4 GiB. Raises ValueError for codes of another shape or dtype as well.
    """
    return _open(path, kernels, threads)[1]


def _open(path, kernels: str, threads: int) -> tuple[Model, Callable[[np.ndarray], np.ndarray]]:
    """What the file holds, and the function from its input to its output."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}, and must be one of {', '.join(KERNELS)}.")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads is {threads!r}, and must be 1 or more.")
    content, ours = read(path)
    model = parse(path, content)[0]
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs, and must have one of each.")
    source, sink = model.inputs[0], model.outputs[0]
    for tensor in (source, sink):
        if not tensor.shape or min(tensor.shape) < 1 or tensor.dtype not in NUMPY:
            raise ValueError(f"{path} takes or gives {tensor.dtype} of the shape {tensor.shape}, and must take and give batches of "
                             "numbers.")
        if tensor.dtype == "int8" and not (len(tensor.scale) == len(tensor.zero_point) == 1 and 0 < tensor.scale[0] < math.inf):
            raise ValueError(f"{path} takes or gives int8 codes with the scales {tensor.scale} and the zero-points {tensor.zero_point}, "
                             "and must have one of each, the scale positive.")
    if ours and kernels == "micro":
        check_arena(path, model)
    inference = (tflite_runtime if ours else tflite_child).load(path, content, kernels, threads, ARENA)

    def infer(codes: np.ndarray) -> np.ndarray:
        codes = np.ascontiguousarray(codes)
        if codes.dtype != source.dtype or codes.shape[1:] != source.shape[1:] or codes.ndim != len(source.shape):
            raise ValueError(f"the codes are {codes.dtype} of the shape {codes.shape}, and must be {source.dtype} of the shape (n, "
                             f"{', '.join(map(str, source.shape[1:]))}).")
        if codes.dtype.kind == "f" and not np.isfinite(codes).all():
            raise ValueError("the images hold NaN or infinity, and must be finite.")
        return inference(codes) if len(codes) else np.zeros((0, *sink.shape[1:]), sink.dtype)

    return model, infer


def arena(path: str | os.PathLike) -> dict[str, int]:
    """The bytes of memory that tflite-micro plans for the file: total, activations and persistent (its own structures).

    The weights are not among them: they stay in flash. The structures hold pointers, here of 8 bytes, on a microcontroller of 4.
    Raises as load does.
    """
    content, ours = read(path)
    model = parse(path, content)[0]
    if ours:
        check_arena(path, model)
    return (tflite_runtime if ours else tflite_child).planned(path, content, ARENA)
