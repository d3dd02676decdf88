"""QTensor: what every quantizer returns. Integer codes, plus what is needed to decode them.

    minmax, affine, symmetric, sign_magnitude     x_hat = scale * (codes - zero_point)
    log                                           x_hat = sign(c) * scale * base**(|c| - top),  0 for c = 0,  top = 2**(bits-1) - 1
    kmeans                                        x_hat = codebook[codes]
"""

import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from qlab.quant.layout import FLOATS, check_layout, from_rows, params_shape, to_rows
from qlab.quant.packing import pack, packed_size, unpack

SIGNED = ("symmetric", "sign_magnitude", "log")  # codes from -(2**(bits-1) - 1) to 2**(bits-1) - 1; the others' from 0 to 2**bits - 1
SCHEMES = ("minmax", "affine", "kmeans", *SIGNED)


@dataclass(frozen=True, eq=False)
class QTensor:
    """codes: integers, of the original shape. scale, zero_point: () per tensor, (channels,) per axis, (channels, groups) per group.
    codebook: the scale's shape, then its entries. dtype: what dequantize returns. base: of the logarithm.

    >>> from qlab.quant import linear
    >>> q = linear.quantize(torch.linspace(-1, 1, 1000), bits=4)
    >>> q.nbytes                  # 1000 codes of 4 bits, a float32 scale, a float32 zero-point
    508
    """

    codes: torch.Tensor
    bits: int
    scheme: str
    dtype: torch.dtype
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    base: float | None = None
    axis: int | None = None
    group_size: int | None = None

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code there can be."""
        top = 2 ** (self.bits - 1) - 1
        return (-top, top) if self.scheme in SIGNED else (0, 2**self.bits - 1)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that save writes but the file's header: packed codes, scale, zero-point, codebook."""
        return packed_size(self.codes.numel(), self.bits) + sum(t.numel() * t.element_size() for t in self._stored().values())

    def equal(self, other: "QTensor") -> bool:
        """Whether both hold the same: codes, parameters, scheme, dtype.

        >>> from qlab.quant import linear
        >>> x = torch.linspace(-1, 1, 100)
        >>> linear.quantize(x, 8).equal(linear.quantize(x, 8)), linear.quantize(x, 8).equal(linear.quantize(x, 4))
        (True, False)
        """
        return all(torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
                   for a, b in zip(vars(self).values(), vars(other).values()))

    def dequantize(self) -> torch.Tensor:
        """The decoded values: shape and dtype of the original."""
        return from_rows(self._decode(to_rows(self.codes, self.axis, self.group_size)), self.shape, self.axis)

    def levels(self) -> torch.Tensor:
        """Every value that some code decodes to, ascending: (levels,) per tensor, else the scale's shape, then the levels."""
        if self.codebook is not None:
            return self.codebook.sort(dim=-1).values.to(self.dtype)
        low, high = self.code_range
        shape = tuple(self.scale.shape)
        every = torch.arange(low, high + 1, device=self.codes.device).expand(math.prod(shape), -1)
        return self._decode(every).reshape(*shape, -1)

    def save(self, path) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError where the place cannot be written."""
        path, low = Path(path), self.code_range[0]
        fields = {"bits": self.bits, "scheme": self.scheme, "dtype": _name(self.dtype), "codes_dtype": _name(self.codes.dtype),
                  "shape": list(self.shape), "base": self.base, "axis": self.axis, "group_size": self.group_size}
        packed = pack(self.codes.to(torch.int64) - low, self.bits)
        content = save_bytes({"codes": packed, **self._stored()}, {"format": "qlab.QTensor", "version": "1", "fields": json.dumps(fields)})
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            problem = f"cannot write {path} ({error.strerror}): give a path in a folder that exists and may be written"
            raise type(error)(error.errno, problem) from None

    def _stored(self) -> dict[str, torch.Tensor]:
        """What has to be kept beside the codes; a zero-point that is 0 by definition has not."""
        tensors = {"scale": self.scale, "zero_point": None if self.scheme in SIGNED else self.zero_point, "codebook": self.codebook}
        return {k: t.contiguous() for k, t in tensors.items() if t is not None}

    def _decode(self, rows: torch.Tensor) -> torch.Tensor:
        if self.scheme == "kmeans":
            book = self.codebook.reshape(rows.shape[0], -1)
            return book.gather(1, rows.long()).to(self.dtype)
        scale = self.scale.reshape(-1, 1)
        if self.scheme == "log":  # in float64: the smallest level's ratio to the largest may be no float32
            low, top = self.code_range
            code = torch.arange(low, top + 1, device=rows.device)
            table = code.sign() * self.base ** (code.abs() - top).double()                  # one entry a code; sign(0) = 0
            return (table[rows.long() - low] * scale).to(self.dtype)
        values = rows.to(scale.dtype)
        if self.scheme not in SIGNED:
            values = values.sub_(self.zero_point.reshape(-1, 1)) if values is not rows else values - self.zero_point.reshape(-1, 1)
        values = values * scale
        limit = torch.finfo(self.dtype).max
        if scale.numel() and scale.max() * 2**self.bits > limit:  # the outermost level may lie half a step beyond the largest number
            values = values.clamp(-limit, limit)
        return values.to(self.dtype)


def load(path) -> QTensor:
    """Read what QTensor.save wrote. Raises FileNotFoundError, or ValueError where the file is damaged or is not a QTensor.

    >>> import tempfile
    >>> from qlab.quant import kmeans
    >>> q = kmeans.quantize(torch.tensor([0.1, 0.9, 1.0]), bits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     q.save(f"{folder}/q.safetensors")
    ...     load(f"{folder}/q.safetensors").dequantize()
    tensor([0.1000, 0.9500, 0.9500])
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(error.errno, f"cannot read {path} ({error.strerror})") from None
    try:
        tensors = load_bytes(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged ({error}).") from None
    if metadata.get("format") != "qlab.QTensor":
        raise ValueError(f"{path} is a safetensors file but holds no qlab QTensor: only files written by QTensor.save can be loaded.")
    try:
        return _restore(tensors, json.loads(metadata["fields"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is a damaged QTensor file ({error}).") from None


def _restore(tensors: dict, fields: dict) -> QTensor:
    shape, bits, scheme = torch.Size(fields["shape"]), fields["bits"], fields["scheme"]
    dtype, codes_dtype = getattr(torch, fields["dtype"]), getattr(torch, fields["codes_dtype"])
    if scheme not in SCHEMES or dtype not in FLOATS or codes_dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32):
        raise ValueError(f"unknown scheme {scheme!r} or dtype {dtype}, {codes_dtype}")
    axis, group_size = check_layout(shape, fields["axis"], fields["group_size"])
    expected = params_shape(shape, axis, group_size)
    needed = {"kmeans": ("codebook",), "minmax": ("scale", "zero_point"), "affine": ("scale", "zero_point")}.get(scheme, ("scale",))
    for name in needed:
        found = tuple(tensors[name].shape)
        if found[:len(expected)] != expected or len(found) - len(expected) != (name == "codebook"):
            raise ValueError(f"{name} has shape {found}")
        if not torch.isfinite(tensors[name].double()).all():
            raise ValueError(f"{name} is not finite")
    codes = unpack(tensors["codes"], bits, math.prod(shape))
    if scheme == "kmeans" and codes.numel() and int(codes.max()) >= tensors["codebook"].shape[-1]:
        raise ValueError("a code lies outside the codebook")
    low = -(2 ** (bits - 1) - 1) if scheme in SIGNED else 0
    codes = (codes.to(torch.int32) + low).to(codes_dtype).reshape(shape)
    scale, zero_point = tensors.get("scale"), tensors.get("zero_point")
    if scheme in ("symmetric", "sign_magnitude"):
        zero_point = torch.zeros_like(scale, dtype=codes_dtype)
    return QTensor(codes, bits, scheme, dtype, scale, zero_point, tensors.get("codebook"), fields["base"], axis, group_size)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
