"""Codes of any width packed into bytes: n codes of b bits take ceil(n * b / 8) bytes, not n.

Code i occupies the bits i*b .. i*b + b - 1 of the stream, least significant bit first, and the stream fills each byte from its
least significant bit: two 4-bit codes 0xA, 0xB become the byte 0xBA.

Codes of three values, 0 to 2, have 1.6 bits: five of them are the digits of one byte in base 3, the first the lowest, at most 242.
"""

from numbers import Integral

import numpy as np
import torch

from qlab.quant.layout import as_integers, as_tensor, check_bits

TERNARY = 1.6  # bits of a code of three values
POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)


def packed_size(n: int, bits: int | float) -> int:
    """Bytes that n codes of `bits` bits take.

    >>> packed_size(1000, 3), packed_size(1000, 1.6)
    (375, 200)
    """
    return -(-n // 5) if bits == TERNARY else -(-n * bits // 8)


def pack(codes: torch.Tensor, bits: int | float) -> torch.Tensor:
    """Codes from 0 to 2**bits - 1 (any integer dtype and shape, bits 1 to 16; 0 to 2 for bits=1.6) as a uint8 tensor of
    packed_size(n, bits) bytes.

    Raises TypeError for codes that are not integers, ValueError for a code that does not fit.

    >>> pack(torch.tensor([0xA, 0xB, 1]), bits=4).tolist()
    [186, 1]
    >>> pack(torch.tensor([2, 0, 1, 2, 2, 1]), bits=1.6).tolist()            # 2 + 0 * 3 + 1 * 9 + 2 * 27 + 2 * 81, and 1
    [227, 1]
    """
    bits, values = _check(bits)
    codes = as_integers(codes, "codes")
    flat = codes.reshape(-1).cpu().numpy()
    if flat.size and not (flat.min() >= 0 and flat.max() < values):
        raise ValueError(f"codes run from {flat.min()} to {flat.max()}, and must run from 0 to {values - 1} to fit in {bits} bits.")
    if bits == TERNARY:
        digits = np.zeros((packed_size(len(flat), bits), 5), dtype=np.uint8)
        digits.reshape(-1)[:len(flat)] = flat
        return torch.from_numpy((digits * POWERS).sum(1, dtype=np.uint8))
    if bits == 8:
        return torch.from_numpy(flat.astype(np.uint8))
    width = 1 if bits < 8 else 2
    wide = flat.astype(f"<u{width}").view(np.uint8).reshape(len(flat), width)
    single = np.unpackbits(wide, axis=1, bitorder="little")[:, :bits]                       # (n, bits)
    return torch.from_numpy(np.packbits(single, bitorder="little"))


def unpack(packed: torch.Tensor, bits: int | float, n: int) -> torch.Tensor:
    """The n codes that pack made: uint8 for bits up to 8, int32 above; shape (n,).

    Raises ValueError where packed is not exactly the bytes that n codes take, or a byte of bits=1.6 is above 242.

    >>> unpack(torch.tensor([186, 1], dtype=torch.uint8), bits=4, n=3).tolist()
    [10, 11, 1]
    """
    bits, _ = _check(bits)
    packed = as_tensor(packed, "packed")
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 0:
        raise ValueError(f"n is {n!r}, and must be a whole number of at least 0.")
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != packed_size(n, bits):
        raise ValueError(f"packed is {packed.dtype} of shape {tuple(packed.shape)}, and must be the {packed_size(n, bits)} uint8 bytes "
                         f"that {n} codes of {bits} bits take.")
    raw = packed.cpu().numpy()
    if bits == TERNARY:
        if raw.size and raw.max() > 242:
            raise ValueError(f"packed holds the byte {raw.max()}, and five codes of three values make at most 242.")
        return torch.from_numpy((raw[:, None] // POWERS % 3).reshape(-1)[:n].copy())
    if bits == 8:
        return torch.from_numpy(raw.copy())
    single = np.unpackbits(raw, count=n * bits, bitorder="little").reshape(n, bits)
    wide = np.packbits(single, axis=1, bitorder="little")                                   # (n, 1 or 2) bytes, low byte first
    if bits < 8:
        return torch.from_numpy(wide[:, 0].copy())
    return torch.from_numpy(wide.view("<u2")[:, 0].astype(np.int32))


def _check(bits) -> tuple[int | float, int]:
    """bits, and how many values a code may have."""
    if not isinstance(bits, bool) and bits == TERNARY:
        return TERNARY, 3
    bits = check_bits(bits, 1)
    return bits, 1 << bits
