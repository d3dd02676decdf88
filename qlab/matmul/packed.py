"""Weights packed into bytes: codes of 4 bits (2 and 8, too) in groups along K, each with a scale and a zero-point.

    w[n, k]  =  scale[n, g] (code[n, k] - zero_point[n, g]),     g = k // group_size

    two codes of 4 bits in a byte, the first in the low half:     0xA, 0xB  ->  0xBA;   each row begins with a new byte

What a weight takes is more than its code: 4 bits in groups of 32 with a float16 scale are 4 + 16 / 32 = 4.5 bits, with a zero-point of 4
bits 4.625. So ONNX Runtime keeps its weights (MatMulNBits), and the kernel in `int4_triton` reads them; `int4` multiplies by them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from torch.nn.functional import pad

from qlab.errors import first_line
from qlab.quant.layout import as_integers, as_tensor
from qlab.quant.qtensor import QTensor

BITS = (2, 4, 8)  # so many go into a byte, none over its edge
SCHEMES = ("symmetric", "affine", "minmax", "ternary")
SCALES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """A weight matrix (N, K) as `pack` makes it.

    codes: uint8 (N, bytes of K codes); scale: float16, bfloat16 or float32 (N, groups); zero_point: None, which stands for
    2**(bits - 1), or uint8 (N, bytes of the groups' zero-points), packed as the codes are, or real numbers of the scale's shape.

    What a backend makes of the weights for itself it keeps here until they change in place; copies and files leave it out.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int
    group_size: int
    _made: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if torch.compiler.is_compiling():  # which cannot ask, and keeps nothing
            return
        for name, tensor in self.tensors().items():
            if tensor.is_inference():  # one that was made in inference mode does not count its changes
                with torch.inference_mode(False):
                    object.__setattr__(self, name, tensor.clone())

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), self.scale.shape[1] * self.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: packed codes, scales, zero-points.

        >>> from qlab.quant import linear
        >>> w = pack(linear.quantize(torch.ones(10, 64), 4, "symmetric", axis=0, group_size=32, scale_dtype=torch.float16))
        >>> 8 * w.nbytes / 640
        4.5
        """
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def to(self, device) -> "PackedWeights":
        """The same weights on another device. Raises ValueError for what is no device, or none that this machine has."""
        try:
            return replace(self, _made={}, **{name: tensor.to(torch.device(device)) for name, tensor in self.tensors().items()})
        except (TypeError, RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            raise ValueError(f"device is {device!r}, and must be one that this machine has, 'cpu' for example "
                             f"({first_line(error)}).") from None

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {"codes": self.codes, "scale": self.scale, "zero_point": self.zero_point}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def unpacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """codes uint8 (N, K), and zero-points float32 (N, groups)."""
        n, k = self.shape
        if self.zero_point is None:
            zero_point = torch.full(self.scale.shape, 2.0 ** (self.bits - 1), device=self.scale.device)
        else:
            packed = self.zero_point.dtype == torch.uint8
            zero_point = (unpack_rows(self.zero_point, self.bits, self.scale.shape[1]) if packed else self.zero_point).float()
        return unpack_rows(self.codes, self.bits, k), zero_point

    def dequantize(self) -> torch.Tensor:
        """The weights as float32 (N, K).

        >>> pack_codes([[0, 15]], torch.tensor([0.5]), torch.tensor([3])).dequantize()
        tensor([[-1.5000,  6.0000]])
        """
        codes, zero_point = self.unpacked()
        w = codes.float().reshape(*self.scale.shape, self.group_size)
        return w.sub_(zero_point[..., None]).mul_(self.scale.float()[..., None]).reshape(self.shape)

    def made(self, name: str, make: Callable, *settings):
        """What make() returns, kept under this name until the weights change in place, or the settings."""
        state = (*settings, *(tensor._version for tensor in self.tensors().values()))
        if name not in self._made or self._made[name][0] != state:
            self._made[name] = state, make()
        return self._made[name][1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_made": {}}


def pack(q: QTensor) -> PackedWeights:
    """A quantized weight matrix (N, K), packed: codes of up to 8 bits with one scale for the tensor, each row, or each group of a row.

    Decodes to what q decodes to, in float32. 3 bits are stored in 4, those of a ternary tensor in 2, 5 to 7 in 8.
    Raises TypeError if q is no QTensor; ValueError for a tensor that is no matrix, more bits, a scheme that is not linear, scales along K,
    and groups that go beyond a row.

    >>> from qlab.quant import linear
    >>> w = pack(linear.quantize(torch.tensor([[7.0, -3.0, 0.0, 1.0]]), 4, "symmetric", axis=0))
    >>> [f"{byte:02X}" for byte in w.codes[0].tolist()], w.scale.tolist()     # 15, 5 and 8, 9: each code plus 8
    (['5F', '98'], [[1.0]])
    """
    if not isinstance(q, QTensor):
        raise TypeError(f"q is a {type(q).__name__}, and must be a QTensor: quantize the weights first, for example "
                        "linear.quantize(w, 4, 'symmetric', axis=0, group_size=32).")
    if q.scheme not in SCHEMES:
        raise ValueError(f"the scheme of q is {q.scheme!r}, and must be one of {', '.join(SCHEMES)}: a code times a scale.")
    if q.bits > 8:
        raise ValueError(f"q has codes of {q.bits} bits, and must have at most 8.")
    if q.codes.dim() != 2:
        raise ValueError(f"q has shape {tuple(q.shape)}, and must be a matrix, (out_features, in_features).")
    n, k = q.shape
    if q.axis == 1:
        raise ValueError("q has axis=1, a scale for each column, and must have axis=0: the scale of a row comes out of its sum.")
    if q.axis is None and q.group_size is not None and k % q.group_size:
        raise ValueError(f"q has groups of {q.group_size} in rows of {k}, and a group must not go beyond its row: quantize with axis=0.")
    bits = next(bits for bits in BITS if q.bits <= bits)
    signed = q.scheme in ("symmetric", "ternary")
    codes = q.codes.to(torch.int16) + 2 ** (bits - 1) if signed else q.codes
    scale = q.scale if q.scale.dtype in SCALES else q.scale.float()
    groups = scale.numel() // n if scale.dim() and n else 1
    scale, zero_point = (None if t is None else t.reshape(n, groups) if t.dim() else t.expand(n, 1)
                         for t in (scale, None if signed else q.zero_point))
    return pack_codes(codes, scale, zero_point, bits)


def pack_codes(codes, scale, zero_point=None, bits: int = 4) -> PackedWeights:
    """Codes (N, K) from 0 to 2**bits - 1 with a scale for each row, (N,), or each group of it, (N, groups), packed.

    codes: integers; scale: float16, bfloat16 or float32; zero_point: None for 2**(bits - 1) everywhere, or of the scale's shape: integers
    from 0 to 2**bits - 1, which are packed as well, or real numbers.
    Raises TypeError for other dtypes; ValueError for bits other than 2, 4 and 8, shapes that do not fit, groups that do not divide K,
    codes or zero-points out of range, and numbers that are not finite.

    >>> w = pack_codes([[0, 15, 8, 9]], torch.tensor([[0.5, 2.0]]))
    >>> w.group_size, w.dequantize()
    (2, tensor([[-4.0000,  3.5000,  0.0000,  2.0000]]))
    """
    bits = check_bits(bits)
    codes, scale = as_tensor(codes, "codes"), as_tensor(scale, "scale")
    _check_integers(codes, "codes", bits)
    if scale.dtype not in SCALES:
        raise TypeError(f"scale has dtype {scale.dtype}, and must be one of {', '.join(map(str, SCALES))}.")
    if codes.dim() != 2:
        raise ValueError(f"codes has shape {tuple(codes.shape)}, and must be a matrix, (out_features, in_features).")
    scale = scale[:, None] if scale.dim() == 1 else scale
    n, k = codes.shape
    if scale.dim() != 2 or len(scale) != n or not scale.shape[1]:
        raise ValueError(f"scale has shape {tuple(scale.shape)}, and must be ({n},) or ({n}, groups) for {n} rows of codes.")
    groups = scale.shape[1]
    if k % groups:
        raise ValueError(f"scale has {groups} groups, and they must divide the {k} codes of a row.")
    _check_finite(scale, "scale")
    scale = scale.to(codes.device)
    if zero_point is not None:
        zero_point = as_tensor(zero_point, "zero_point").to(codes.device)
        zero_point = zero_point[:, None] if zero_point.dim() == 1 else zero_point
        if zero_point.shape != scale.shape:
            raise ValueError(f"zero_point has shape {tuple(zero_point.shape)}, and must have the scale's, {tuple(scale.shape)}.")
        if zero_point.is_floating_point():
            zero_point = _own(zero_point if zero_point.dtype in SCALES else zero_point.float())
            _check_finite(zero_point, "zero_point")
        else:
            _check_integers(zero_point, "zero_point", bits)
            zero_point = pack_rows(zero_point, bits)
    return PackedWeights(pack_rows(codes, bits), _own(scale), zero_point, bits, k // groups)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (N, K) from 0 to 2**bits - 1 as uint8 (N, bytes): 8 / bits in a byte, the first lowest, each row from a new byte on.

    >>> [f"{byte:02X}" for byte in pack_rows(torch.tensor([[0xA, 0xB, 0xC]]), 4)[0].tolist()]
    ['BA', '0C']
    """
    each = 8 // bits
    codes = pad(codes.to(torch.uint8), (0, -codes.shape[1] % each))
    packed = codes[:, ::each].clone()
    for i in range(1, each):
        packed |= codes[:, i::each] << (i * bits)
    return packed


def unpack_rows(packed: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """The inverse of pack_rows: uint8 (N, k).

    >>> unpack_rows(torch.tensor([[0xBA, 0x0C]], dtype=torch.uint8), 4, 3).tolist()
    [[10, 11, 12]]
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & (2**bits - 1)).flatten(1)[:, :k]


def why_not_whole_bytes(bits: int, group_size: int) -> str:
    """Why a kernel cannot read such groups byte by byte, as a clause; "" if it can."""
    return f"groups of {group_size} codes of {bits} bits do not end with a byte" if group_size * bits % 8 else ""


def check_bits(bits) -> int:
    if isinstance(bits, bool) or not isinstance(bits, Integral) or bits not in BITS:
        raise ValueError(f"bits is {bits!r}, and must be 2, 4 or 8, to fill bytes.")
    return int(bits)


def _check_integers(x: torch.Tensor, name: str, bits: int) -> None:
    known = as_integers(x, name)
    low, high = (int(end) for end in known.aminmax()) if x.numel() else (0, 0)  # int: a uint8 is compared with 256 as with 0
    if low < 0 or high >= 2**bits:
        raise ValueError(f"{name} goes from {low} to {high}, and must be from 0 to {2**bits - 1} to fit in {bits} bits.")


def _own(x: torch.Tensor) -> torch.Tensor:
    """A row-major copy: a state that is loaded into a layer is written into its tensors, and must not reach those it was made from."""
    return x.clone(memory_format=torch.contiguous_format)


def _check_finite(x: torch.Tensor, name: str) -> None:
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device, and must be on one that holds values: fill it first.")
    if not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity, and must be finite everywhere.")
