"""The challenge's weights: the depthwise network in as few bytes as carry it, and no byte beside them.

    hand-in     a file of Quantized.save: codes, scales, codebooks, biases, with names, a graph, JSON fields
    encoding    of each tensor of the network, in the network's own order:
                    255, dtype, values                                                     a tensor that is kept as it is
                    scheme, bits, axis, group size, (base), then dtype, values of each     a QTensor: codes, scale, zero-point, codebook
    network     made of the encoding alone

What is measured is the network that comes out of the encoding, and what counts is the encoding's length. So names, metadata, padding, the
order of keys and the graph may say what they like: nothing of them arrives. A number that reaches the network is among the bytes.
"""

import copy
import math
import struct
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import nn

from qlab import saving
from qlab.lab import data
from qlab.nets.models import depthwise_net
from qlab.nets.ptq import Quantized, fold_batch_norm
from qlab.quant import QTensor, checked
from qlab.quant.layout import FLOATS, check_layout, params_shape
from qlab.quant.packing import TERNARY, packed_size
from qlab.quant.qtensor import CODES, SCHEMES, unpacked

BUDGET = 27_000                                                                             # bytes of the encoding
KEPT = 255
DTYPES = (*FLOATS, *CODES)
_HEAD = struct.Struct("<BBBH")                                                              # scheme, bits, axis, group size
State = Mapping[str, QTensor | torch.Tensor]


def blank() -> nn.Module:
    """The network whose weights are asked for: the depthwise net of the zoo with batch norm folded, in evaluation mode, untrained."""
    return fold_batch_norm(depthwise_net()).eval()


@cache
def _shapes() -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in blank().state_dict().items()}


def save(path, quantized: Quantized, bias_dtype: torch.dtype = torch.float16) -> int:
    """Write a hand-in, its biases in bias_dtype; what it weighs, in bytes of the encoding.

    quantized: of the depthwise net with its batch norm folded, as qlab.search.rounding.quantize and qlab.search.candidates.apply make it.
    Raises ValueError for a bias that is not finite in bias_dtype, one for another dtype than torch's floats, and as true_bytes does: then
    nothing is written.
    """
    if bias_dtype not in FLOATS:
        raise ValueError(f"bias_dtype is {bias_dtype}, and must be one of {', '.join(map(str, FLOATS))}.")
    model = copy.deepcopy(quantized.model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            if not parameter.to(bias_dtype).isfinite().all():
                raise ValueError(f"{name} holds {parameter.abs().max().item():g}, and must be finite in bias_dtype, {bias_dtype}.")
            parameter.data = parameter.to(bias_dtype)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "weights.safetensors"
        Quantized(model, quantized.tensors, quantized.nbytes, quantized.left).save(trial)
        try:
            weight = true_bytes(trial)
        except ValueError as error:
            raise ValueError(str(error).replace(str(trial), str(path))) from None
        saving.write({path: trial.read_bytes()})
    return weight


def true_bytes(path) -> int:
    """What a hand-in weighs: the length of its encoding. Raises OSError, or ValueError as read does."""
    return len(encode(read(path)))


def read(path) -> dict[str, QTensor | torch.Tensor]:
    """The network's tensors in a hand-in, by name; all else in the file is passed over.

    Raises OSError where the file cannot be read; ValueError, in one sentence, for one that is damaged or foreign, that lacks a tensor of
    the network or holds another one, a tensor of another shape, numbers that are not finite.
    """
    shapes = _shapes()

    def restore(fields: dict, tensors: dict[str, torch.Tensor]) -> dict:
        found = {}
        for told in fields["codes"]:
            name, own = told["name"], {what: tensors.pop(f"{told['name']}.{what}") for what in told["tensors"]}
            if name in found or name not in shapes or list(shapes[name]) != told["shape"]:
                raise ValueError(f"{name} has the shape {told['shape']}, and the network has {_told(shapes, name)}")
            found[name] = unpacked(told, own)
        for name, tensor in tensors.items():
            if name in found or shapes.get(name) != tensor.shape:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, and the network has {_told(shapes, name)}")
            if tensor.dtype not in FLOATS or not tensor.isfinite().all():
                raise ValueError(f"{name} is {tensor.dtype} and must be finite floating-point numbers")
            found[name] = tensor
        if missing := [name for name in shapes if name not in found]:
            raise ValueError(f"it lacks {', '.join(missing[:5])}")
        return found

    return checked.load(path, "Quantized", restore)


def _told(shapes: dict, name: str) -> str:
    return f"one of {list(shapes[name])}" if name in shapes else "no such tensor"


def encode(state: State) -> bytes:
    """The canonical encoding: one and only one for each network that a hand-in decodes to and each way of coding it.

    >>> state = {name: tensor.half() for name, tensor in blank().state_dict().items()}
    >>> len(encode(state)), 28 * 2 + 2 * (69_952 + 1_226)                    # 28 tensors, 69,952 weights, 1,226 biases
    (142412, 142412)
    """
    pieces = []
    for name in _shapes():
        value = state[name]
        if isinstance(value, torch.Tensor):
            pieces += [bytes([KEPT]), _raw(value)]
            continue
        fields, tensors = value.packed()
        bits = 0 if value.bits == TERNARY else value.bits
        pieces.append(_HEAD.pack(SCHEMES.index(value.scheme), bits, KEPT if value.axis is None else value.axis, value.group_size or 0))
        if value.base is not None:
            pieces.append(struct.pack("<d", value.base))
        if value.codebook is not None:
            pieces.append(struct.pack("<H", value.codebook.shape[-1] - 1))
        pieces += [_raw(tensors[what]) for what in _parts(value.scheme)]
    return b"".join(pieces)


def decode(content: bytes) -> dict[str, QTensor | torch.Tensor]:
    """What encode was given, up to what does not matter: every weight decodes to float32.

    Raises ValueError for content that is cut off, too long, or that encode cannot have written: each bit of it is in what comes out.
    """
    try:
        found = _decoded(content)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # an unknown scheme or dtype, and what no QTensor holds
        raise ValueError(f"the encoding is damaged ({str(error).rstrip('.')}).") from None
    if encode(found) != content:
        raise ValueError("the encoding is not the canonical one of what it decodes to.")
    return found


def _decoded(content: bytes) -> dict[str, QTensor | torch.Tensor]:
    at, found = 0, {}

    def take(form: str) -> tuple:
        nonlocal at
        at += struct.calcsize(f"<{form}")
        if at > len(content):
            raise ValueError("it is cut off")
        return struct.unpack_from(f"<{form}", content, at - struct.calcsize(f"<{form}"))

    def values(shape: tuple[int, ...]) -> torch.Tensor:
        dtype = DTYPES[take("B")[0]]
        raw, = take(f"{math.prod(shape) * dtype.itemsize}s")
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)

    for name, shape in _shapes().items():
        kind, = take("B")
        if kind == KEPT:
            found[name] = values(shape)
            continue
        bits, axis, group_size = take("BBH")
        scheme = SCHEMES[kind]
        bits, axis, group_size = bits or TERNARY, None if axis == KEPT else axis, group_size or None
        base = take("d")[0] if scheme == "log" else None
        entries = (take("H")[0] + 1,) if scheme == "kmeans" else ()
        rows = params_shape(shape, *check_layout(shape, axis, group_size))
        sizes = {"codes": (packed_size(math.prod(shape), bits),), "scale": rows, "tensor_scale": (), "codebook": (*rows, *entries),
                 "zero_point": (packed_size(math.prod(rows), bits),) if scheme == "affine" else rows}
        fields = {"shape": list(shape), "bits": bits, "scheme": scheme, "dtype": "float32", "codes_dtype": "int32", "base": base,
                  "axis": axis, "group_size": group_size, "packed": ["codes", "zero_point"]}
        found[name] = unpacked(fields, {what: values(sizes[what]) for what in _parts(scheme)})
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes follow its last tensor")
    return found


def network(content: bytes) -> nn.Module:
    """The network that an encoding describes: what is measured. Raises ValueError as decode does."""
    model, state = blank(), decode(content)
    decoded = {name: value if isinstance(value, torch.Tensor) else value.dequantize() for name, value in state.items()}
    model.load_state_dict({name: tensor.float() for name, tensor in decoded.items()})
    return model.requires_grad_(False)


@torch.no_grad()
def predict(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The class of each image, int64 (n,), -1 where the outputs hold NaN; pixels: uint8 (n, 1, 28, 28)."""
    found = []
    for some in pixels.split(100):
        logits = model(normalised(some))
        found.append(logits.argmax(1).masked_fill(logits.isnan().any(1), -1))
    return torch.cat(found)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels from 0 to 255, uint8, as the networks of the zoo take them.

    >>> normalised(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-0.8102,  2.0227])
    """
    return (pixels.float() / 255 - data.MEAN) / data.STD


def _parts(scheme: str) -> tuple[str, ...]:
    """The tensors of a QTensor of this scheme, in the order of the encoding."""
    beside = {"kmeans": ("codebook",), "minmax": ("scale", "zero_point"), "affine": ("scale", "zero_point"),
              "nvfp4": ("scale", "tensor_scale")}
    return ("codes", *beside.get(scheme, ("scale",)))


def _raw(tensor: torch.Tensor) -> bytes:
    return bytes([DTYPES.index(tensor.dtype)]) + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
