"""QTensor: what every quantizer returns. Integer codes, plus what is needed to decode them.

    minmax, affine, symmetric, sign_magnitude     x_hat = scale * (codes - zero_point)
    log                                           x_hat = sign(c) * scale * base**(|c| - top),  0 for c = 0,  top = 2**(bits-1) - 1
    kmeans                                        x_hat = codebook[codes]
    ternary                                       x_hat = scale * codes,  scale the mean of |x|
    e4m3, .. nf4, .. mxfp4, .. nvfp4              x_hat = scale * element[codes],  or (tensor_scale * scale) * element[codes] for nvfp4
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch

from qlab import saving
from qlab.errors import first_line
from qlab.quant import block, checked, normal_float, small_floats
from qlab.quant.layout import FLOATS, check_layout, from_rows, params_shape, to_rows
from qlab.quant.packing import TERNARY, pack, packed_size, unpack

SIGNED = ("symmetric", "sign_magnitude", "log", "ternary")  # codes from -(2**(bits-1) - 1), ternary -1; the others' from 0 to 2**bits - 1
FORMATS = {name: f.bits for name, f in small_floats.FORMATS.items()} | {"nf4": 4} | {
    name: small_floats.FORMATS[kind.element].bits for name, kind in block.FORMATS.items()}  # number format -> bits
SCHEMES = ("minmax", "affine", "kmeans", *SIGNED, *FORMATS)
CODES = (torch.uint8, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class QTensor:
    """codes: integers, of the original shape. scale, zero_point: () per tensor, (channels,) per axis, (channels, groups) per group.
    codebook: the scale's shape, then its entries. dtype: what dequantize returns. base: of the logarithm. bits: of a stored code, 1 to 16;
    1.6 of a ternary one. scheme: of linear.quantize, or log, kmeans, ternary, or the name of a number format. tensor_scale: nvfp4's.

    >>> from qlab.quant import linear
    >>> q = linear.quantize(torch.linspace(-1, 1, 1000), bits=4)
    >>> q.nbytes                  # 1000 codes of 4 bits, a float32 scale, a float32 zero-point
    508
    """

    codes: torch.Tensor
    bits: int | float
    scheme: str
    dtype: torch.dtype
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    base: float | None = None
    axis: int | None = None
    group_size: int | None = None
    tensor_scale: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code there can be."""
        return _code_range(self.scheme, self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that save writes but the file's header: packed codes, scales, zero-point (affine's: packed), codebook."""
        sizes = {name: t.numel() * t.element_size() for name, t in self._stored().items()}
        if self.scheme == "affine":
            sizes["zero_point"] = packed_size(self.zero_point.numel(), self.bits)
        return packed_size(self.codes.numel(), self.bits) + sum(sizes.values())

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes over the number of codes: what a weight takes with its share of scales and all else. NaN where there are no codes.

        >>> from qlab.quant import formats
        >>> formats.quantize(torch.ones(32, 32), "mxfp4").bits_per_weight     # 4 + 8 / 32
        4.25
        """
        return 8 * self.nbytes / self.codes.numel() if self.codes.numel() else math.nan

    def equal(self, other: "QTensor") -> bool:
        """Whether both hold the same: codes, parameters, scheme, dtype.

        >>> from qlab.quant import linear
        >>> x = torch.linspace(-1, 1, 100)
        >>> linear.quantize(x, 8).equal(linear.quantize(x, 8)), linear.quantize(x, 8).equal(linear.quantize(x, 4))
        (True, False)
        """
        return all(a.dtype == b.dtype and torch.equal(_comparable(a), _comparable(b))
                   if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
                   for a, b in zip(vars(self).values(), vars(other).values()))

    def dequantize(self) -> torch.Tensor:
        """The decoded values: shape and dtype of the original."""
        return from_rows(self._decode(to_rows(self.codes, self.axis, self.group_size)), self.shape, self.axis)

    def levels(self) -> torch.Tensor:
        """Every value that some code decodes to, ascending: (levels,) per tensor, else the scale's shape, then the levels."""
        if self.codebook is not None:
            return self.codebook.sort(dim=-1).values.to(self.dtype)
        shape, every = tuple(self.scale.shape), self.level_codes()
        return self._decode(every.to(self.codes.device).expand(math.prod(shape), -1)).reshape(*shape, len(every))

    def level_codes(self) -> torch.Tensor:
        """The code of each of levels(), (levels,).

        >>> from qlab.quant import formats
        >>> formats.quantize([1.0], "e2m1").level_codes()            # sign and magnitude: -6 is 1111, -0.5 is 1001, 0 is 0000
        tensor([15, 14, 13, 12, 11, 10,  9,  0,  1,  2,  3,  4,  5,  6,  7])
        """
        if self.scheme in FORMATS:
            return format_levels(self.scheme)[0]
        low, high = self.code_range
        return torch.arange(low, high + 1 if self.codebook is None else self.codebook.shape[-1])

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
        """What a file keeps: the fields, for JSON, and the tensors: "codes" (uint8, packed), "scale", "zero_point", "codebook",
        "tensor_scale"; scales of one byte as uint8, and affine's zero-points packed as codes are."""
        fields = {"bits": self.bits, "scheme": self.scheme, "dtype": _name(self.dtype), "codes_dtype": _name(self.codes.dtype),
                  "shape": list(self.shape), "base": self.base, "axis": self.axis, "group_size": self.group_size}
        if self.codes.is_meta:
            raise ValueError("the codes are on the meta device, and have no values to save: move them to another one first.")
        tensors = {name: _comparable(tensor) for name, tensor in self._stored().items()}
        if self.scheme == "affine":
            fields["packed"], tensors["zero_point"] = ["codes", "zero_point"], pack(self.zero_point, self.bits)
        return fields, {"codes": pack(self.codes.to(torch.int64) - self.code_range[0], self.bits), **tensors}

    def _stored(self) -> dict[str, torch.Tensor]:
        """What has to be kept beside the codes; a zero-point that is 0 by definition has not."""
        tensors = {"scale": self.scale, "zero_point": None if self.scheme in SIGNED else self.zero_point, "codebook": self.codebook,
                   "tensor_scale": self.tensor_scale}
        return {k: t.contiguous() for k, t in tensors.items() if t is not None}

    def _decode(self, rows: torch.Tensor) -> torch.Tensor:
        if self.scheme == "kmeans":
            book = self.codebook.reshape(rows.shape[0], self.codebook.shape[-1])
            return book.gather(1, rows.long()).to(self.dtype)
        work = torch.float64 if torch.float64 in (self.dtype, self.scale.dtype) else torch.float32
        scale, limit = self.scale.reshape(-1, 1).to(work), torch.finfo(self.dtype).max
        if self.tensor_scale is not None:
            scale = self.tensor_scale.to(work) * scale
        low, top = self.code_range
        if self.scheme in FORMATS:
            element = format_levels(self.scheme)[1].to(rows.device)
            return (element[rows.long()] * scale).clamp_(-limit, limit).to(self.dtype)      # the product may be rounded up to infinity
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
        values = rows.to(work)
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
    if bits != FORMATS.get(scheme, TERNARY if scheme == "ternary" else bits) or bits == TERNARY and scheme != "ternary":
        raise ValueError(f"bits is {bits!r} in scheme {scheme}")
    if not (isinstance(base, float) and 1 < base < math.inf if scheme == "log" else base is None):
        raise ValueError(f"base is {base!r} in scheme {scheme}")
    axis, group_size = check_layout(shape, fields["axis"], fields["group_size"])
    expected = params_shape(shape, axis, group_size)
    needed = {"kmeans": ("codebook",), "minmax": ("scale", "zero_point"), "affine": ("scale", "zero_point"),
              "nvfp4": ("scale", "tensor_scale")}.get(scheme, ("scale",))
    if set(tensors) != {"codes", *needed}:
        raise ValueError(f"it holds {', '.join(sorted(tensors))}, and scheme {scheme} has codes, {', '.join(needed)}")
    if scheme == "affine" and "zero_point" in fields.get("packed", ()):                     # files of before hold a byte or four for each
        zero_point = unpack(tensors["zero_point"], bits, math.prod(expected)).to(codes_dtype).reshape(expected)
        tensors = tensors | {"zero_point": zero_point}
    if scheme in block.FORMATS and tensors["scale"].dtype == torch.uint8:
        tensors = tensors | {"scale": tensors["scale"].view(block.FORMATS[scheme].scale)}
    for name in needed:
        found, kind = tuple(tensors[name].shape), tensors[name].dtype
        wanted = () if name == "tensor_scale" else expected
        if found[:len(wanted)] != wanted or len(found) - len(wanted) != (name == "codebook"):
            raise ValueError(f"{name} has shape {found}")
        own = block.FORMATS[scheme].scale if scheme in block.FORMATS and name == "scale" else None
        if kind != own if own else kind not in FLOATS and (name != "zero_point" or scheme != "affine" or kind not in CODES):
            raise ValueError(f"{name} is {kind}")
        if not torch.isfinite(tensors[name].double()).all():
            raise ValueError(f"{name} is not finite")
    codes = unpack(tensors["codes"], bits, math.prod(shape))
    if scheme == "kmeans" and codes.numel() and int(codes.max()) >= tensors["codebook"].shape[-1]:
        raise ValueError("a code lies outside the codebook")
    if scheme in FORMATS and not format_levels(scheme)[1][codes.long()].isfinite().all():
        raise ValueError(f"a code of {scheme} is no number")
    low = _code_range(scheme, bits)[0]
    codes = codes.to(torch.int32) + low
    if codes.numel() and (scheme in SIGNED and codes.max() > -low or not torch.equal(codes.to(codes_dtype).to(torch.int32), codes)):
        raise ValueError(f"a code is out of the range of {bits} bits, or of {codes_dtype}")
    scale, zero_point = tensors.get("scale"), tensors.get("zero_point")
    if scheme in ("symmetric", "sign_magnitude"):
        zero_point = torch.zeros_like(scale, dtype=codes_dtype)
    return QTensor(codes.to(codes_dtype).reshape(shape), bits, scheme, dtype, scale, zero_point, tensors.get("codebook"), base, axis,
                   group_size, tensors.get("tensor_scale"))


@cache
def format_levels(scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a number format: the codes of its levels, ascending, without -0, NaN and infinity, int64; the value of every code, float32."""
    element = block.FORMATS[scheme].element if scheme in block.FORMATS else scheme
    values = normal_float.NF4 if element == "nf4" else small_floats.values(element)
    levels = (values.isfinite() & ~((values == 0) & values.signbit())).nonzero()[:, 0]
    return levels[values[levels].argsort()], values


def _code_range(scheme: str, bits: int | float) -> tuple[int, int]:
    top = 1 if scheme == "ternary" else 2 ** (bits - 1) - 1
    return (-top, top) if scheme in SIGNED else (0, 2**bits - 1)


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """Floating-point numbers of one byte as their bytes: torch compares none of these dtypes, and safetensors loads not all of them."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
