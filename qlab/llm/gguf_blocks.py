"""Weights in blocks of 32 with a scale of their own, as llama.cpp keeps them in its GGUF files: what a weight takes, and what it is.

    type     32 weights are                                                     bits a weight     a weight is
    F32      32 float32                                                         32                itself
    F16      32 float16                                                         16                itself
    Q8_0     scale float16, 32 codes int8                                       8.5               scale * code
    Q4_1     scale float16, minimum float16, 16 bytes of two codes each         5.0               scale * code + minimum
    Q4_0     scale float16, 16 bytes of two codes each                          4.5               scale * (code - 8)
    MXFP4    scale e8m0, 16 bytes of two codes each                             4.25              2**(scale - 127) * e2m1(code)

Two codes in a byte: byte i holds code i in its low half, and code i + 16, not i + 1, in its high half: 16 bytes in a register become two
registers of codes by one mask and one shift. e2m1 is a number of one sign, two exponent and one mantissa bit: code & 7 stands for
0, 0.5, 1, 1.5, 2, 3, 4 or 6, code & 8 for minus. e8m0 is an exponent alone.

Sources: llama.cpp, ggml-common.h (layout) and ggml-quants.c (arithmetic); OCP Microscaling Formats v1.0, 5.3.3 and 5.4.1 (MXFP4).
"""

from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 32
LAYOUT = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK)]),
    "Q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("pairs", "u1", BLOCK // 2)]),
    "Q4_0": np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]),
    "MXFP4": np.dtype([("scale", "u1"), ("pairs", "u1", BLOCK // 2)]),
}
TWICE_E2M1 = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A tensor as it is stored. codes: int8 (Q8_0) or uint8, of the tensor's shape (..., n); scale and minimum: (..., n / 32), float16, or
    uint8 where the scale is e8m0. F32 and F16 have no scale: their codes are the numbers themselves.

    >>> blocks = unpack("Q4_0", bytes.fromhex("0038") + bytes([0x18] * 16), (32,))         # scale 0.5; codes 8 first, then 1
    >>> blocks.scale, blocks.codes[[0, 16]], blocks.dequantize()[[0, 16]], blocks.nbytes
    (tensor([0.5000], dtype=torch.float16), tensor([8, 1], dtype=torch.uint8), tensor([ 0.0000, -3.5000]), 18)
    """

    kind: str
    codes: torch.Tensor
    scale: torch.Tensor | None = None
    minimum: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file: packed codes, scales and minimums."""
        return stored_bytes(self.kind, self.codes.numel())

    def dequantize(self) -> torch.Tensor:
        """The weights, float32, of the shape of codes, bit for bit as llama.cpp decodes them."""
        if self.scale is None:
            return self.codes.float()
        scale, codes = self.scale[..., None], self.codes.unflatten(-1, (-1, BLOCK))         # (..., n / 32, 1), (..., n / 32, 32)
        if self.kind == "Q8_0":
            x = scale.float() * codes
        elif self.kind == "Q4_0":
            x = scale.float() * (codes.float() - 8)
        elif self.kind == "Q4_1":
            x = scale.float() * codes + self.minimum[..., None].float()
        else:
            half = np.ldexp(np.float32(1), scale.numpy().astype(np.int32) - 128)            # 2**128, the largest scale, is no float32
            x = torch.from_numpy(half) * TWICE_E2M1[codes.int()]
        return x.flatten(-2)


def stored_bytes(kind: str, n: int) -> int:
    """Bytes of n weights, n a multiple of 32 where they lie in blocks.

    >>> [8 * stored_bytes(kind, 320) / 320 for kind in LAYOUT]
    [32.0, 16.0, 8.5, 5.0, 4.5, 4.25]
    """
    return n * LAYOUT[kind].itemsize // (BLOCK if LAYOUT[kind].fields else 1)


def unpack(kind: str, data, shape: tuple[int, ...]) -> Blocks:
    """The blocks in data, bytes or a part of a mapped file, as a tensor of that shape; what is returned is a copy.

    Raises ValueError for a kind that is not in LAYOUT, rows that are not whole blocks, or another number of bytes than they take.
    """
    check(kind, shape)
    n, size = int(np.prod(shape, dtype=object)), memoryview(data).nbytes
    if size != stored_bytes(kind, n):
        raise ValueError(f"{n} weights in {kind} are {stored_bytes(kind, n)} bytes, and there are {size}.")
    raw = np.frombuffer(data, LAYOUT[kind]) if n else np.empty(0, LAYOUT[kind])             # NumPy refuses an empty buffer
    if not raw.dtype.fields:
        return Blocks(kind, _tensor(raw, shape))
    groups = (*shape[:-1], shape[-1] // BLOCK)
    codes = raw["codes"] if kind == "Q8_0" else np.concatenate([raw["pairs"] & 15, raw["pairs"] >> 4], axis=1)     # (blocks, 32)
    return Blocks(kind, _tensor(codes, shape), _tensor(raw["scale"], groups), _tensor(raw["minimum"], groups) if kind == "Q4_1" else None)


def check(kind: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a kind of block that this page does not read, or rows that are not whole blocks."""
    if kind not in LAYOUT:
        raise ValueError(f"its type is {kind}, and must be one of {', '.join(LAYOUT)}.")
    if LAYOUT[kind].fields and (not shape or shape[-1] % BLOCK):
        raise ValueError(f"its shape is {tuple(shape)}, and in {kind} the last number must be a multiple of {BLOCK}: whole blocks.")


def _tensor(x: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(x.astype(x.dtype.newbyteorder("=")).reshape(shape))             # astype copies: the file may be closed
