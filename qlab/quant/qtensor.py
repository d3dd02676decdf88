"""QTensor: what every quantizer returns. Integer codes, plus what is needed to decode them.

    minmax, affine, symmetric, sign_magnitude     x_hat = scale * (codes - zero_point)
    log                                           x_hat = sign(c) * scale * base**(|c| - top),  0 for c = 0,  top = 2**(bits-1) - 1
    kmeans                                        x_hat = codebook[codes]
"""

import math
from dataclasses import dataclass, replace

import torch

from qlab import saving
from qlab.errors import first_line
from qlab.quant import checked
from qlab.quant.layout import FLOATS, check_layout, from_rows, params_shape, to_rows
from qlab.quant.packing import pack, packed_size, unpack

SIGNED = ("symmetric", "sign_magnitude", "log")  # codes from -(2**(bits-1) - 1) to 2**(bits-1) - 1; the others' from 0 to 2**bits - 1
SCHEMES = ("minmax", "affine", "kmeans", *SIGNED)
CODES = (torch.uint8, torch.int8, torch.int16, torch.int32)


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
        return self._decode(every).reshape(*shape, high - low + 1)

    def to(self, device) -> "QTensor":
        """The same codes and parameters on another device ("cuda", "cpu", a torch.device, ...); dtypes stay. Raises ValueError for what is
        no device, or none that this machine has.

        >>> from qlab.quant import linear
        >>> linear.quantize(torch.zeros(3), 8, "symmetric").to("meta").codes
        tensor(..., device='meta', size=(3,), dtype=torch.int8)
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        try:
            device = torch.device(device)
            return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})
        except (TypeError, RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            said = first_line(error)
            raise ValueError(f"device is {device!r}, and must be one that this machine has, 'cpu' for example ({said}).") from None

    def save(self, path) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError where the place cannot be written, ValueError for a QTensor on the
        meta device, or with a code out of its range."""
        saving.write({path: checked.content("QTensor", *self.packed())})

    def packed(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """What a file keeps: the fields, for JSON, and the tensors: "codes" (uint8, packed), "scale", "zero_point", "codebook"."""
        fields = {"bits": self.bits, "scheme": self.scheme, "dtype": _name(self.dtype), "codes_dtype": _name(self.codes.dtype),
                  "shape": list(self.shape), "base": self.base, "axis": self.axis, "group_size": self.group_size}
        if self.codes.is_meta:
            raise ValueError("the codes are on the meta device, and have no values to save: move them to another one first.")
        return fields, {"codes": pack(self.codes.to(torch.int64) - self.code_range[0], self.bits), **self._stored()}

    def _stored(self) -> dict[str, torch.Tensor]:
        """What has to be kept beside the codes; a zero-point that is 0 by definition has not."""
        tensors = {"scale": self.scale, "zero_point": None if self.scheme in SIGNED else self.zero_point, "codebook": self.codebook}
        return {k: t.contiguous() for k, t in tensors.items() if t is not None}

    def _decode(self, rows: torch.Tensor) -> torch.Tensor:
        if self.scheme == "kmeans":
            book = self.codebook.reshape(rows.shape[0], self.codebook.shape[-1])
            return book.gather(1, rows.long()).to(self.dtype)
        scale, limit = self.scale.reshape(-1, 1), torch.finfo(self.dtype).max
        low, top = self.code_range
        if self.scheme == "log":  # in float64: the smallest level's ratio to the largest may be no float32
            code = torch.arange(low, top + 1, device=rows.device)
            down = top - code.abs()                                                         # how many ratios below the largest level
            stride = max(1, math.floor(1020 / math.log2(self.base)))                        # so many at once are a normal number
            far = down.clamp(max=math.ceil(2100 / math.log2(self.base)))                    # 0 in float64, from the largest number on
            table = code.sign() * self.base ** -(far % stride).double()                     # one entry a code; sign(0) = 0
            values, strides = table[rows.long() - low] * scale, far // stride
            for done in range(int(strides.max())):  # whole strides last: rounded once, for before one what is subnormal becomes 0
                values = torch.where((strides > done)[rows.long() - low], values / self.base**stride, values)
            return values.clamp_(-limit, limit).to(self.dtype)
        values = rows.to(scale.dtype)
        if self.scheme not in SIGNED:
            values = values.sub_(self.zero_point.reshape(-1, 1)) if values is not rows else values - self.zero_point.reshape(-1, 1)
        values = values * scale
        zero_point = 0 if self.scheme in SIGNED else self.zero_point.reshape(-1, 1).double()
        farthest = top if self.scheme in SIGNED else torch.maximum(zero_point.abs(), (top - zero_point).abs())
        if (scale.double() * farthest > limit).any():  # the outermost level may lie half a step beyond the largest number
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
    return checked.load(path, "QTensor", unpacked)


def unpacked(fields: dict, tensors: dict[str, torch.Tensor]) -> QTensor:
    """The inverse of QTensor.packed. Raises ValueError, KeyError or TypeError for what packed does not return."""
    shape, bits, scheme, base = torch.Size(fields["shape"]), fields["bits"], fields["scheme"], fields["base"]
    dtype, codes_dtype = getattr(torch, fields["dtype"]), getattr(torch, fields["codes_dtype"])
    if scheme not in SCHEMES or dtype not in FLOATS or codes_dtype not in CODES:
        raise ValueError(f"unknown scheme {scheme!r} or dtype {dtype}, {codes_dtype}")
    if not (isinstance(base, float) and 1 < base < math.inf if scheme == "log" else base is None):
        raise ValueError(f"base is {base!r} in scheme {scheme}")
    axis, group_size = check_layout(shape, fields["axis"], fields["group_size"])
    expected = params_shape(shape, axis, group_size)
    needed = {"kmeans": ("codebook",), "minmax": ("scale", "zero_point"), "affine": ("scale", "zero_point")}.get(scheme, ("scale",))
    if set(tensors) != {"codes", *needed}:
        raise ValueError(f"it holds {', '.join(sorted(tensors))}, and scheme {scheme} has codes, {', '.join(needed)}")
    for name in needed:
        found, kind = tuple(tensors[name].shape), tensors[name].dtype
        if found[:len(expected)] != expected or len(found) - len(expected) != (name == "codebook"):
            raise ValueError(f"{name} has shape {found}")
        if kind not in FLOATS and (name != "zero_point" or scheme != "affine" or kind not in CODES):
            raise ValueError(f"{name} is {kind}")
        if not torch.isfinite(tensors[name].double()).all():
            raise ValueError(f"{name} is not finite")
    codes = unpack(tensors["codes"], bits, math.prod(shape))
    if scheme == "kmeans" and codes.numel() and int(codes.max()) >= tensors["codebook"].shape[-1]:
        raise ValueError("a code lies outside the codebook")
    low = -(2 ** (bits - 1) - 1) if scheme in SIGNED else 0
    codes = codes.to(torch.int32) + low
    if codes.numel() and (scheme in SIGNED and codes.max() > -low or not torch.equal(codes.to(codes_dtype).to(torch.int32), codes)):
        raise ValueError(f"a code is out of the range of {bits} bits, or of {codes_dtype}")
    scale, zero_point = tensors.get("scale"), tensors.get("zero_point")
    if scheme in ("symmetric", "sign_magnitude"):
        zero_point = torch.zeros_like(scale, dtype=codes_dtype)
    return QTensor(codes.to(codes_dtype).reshape(shape), bits, scheme, dtype, scale, zero_point, tensors.get("codebook"), base, axis,
                   group_size)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
