"""Storing a weight that is mostly zeros: three formats, and what each costs in bytes beside the dense array.

For n weights of v bits each, of which a share d (the density) is not zero, in bits a weight:

    dense       v                           every weight
    bitmask     1 + d v                     one bit a weight: is it there; then the values
    csr         d (v + c) + row starts      each value with its column, c bits; where each row starts (compressed sparse rows)
    relative    (d + f) (v + b)             each value with the number of zeros before it, in b bits; f is the share of fillers

A gap of more than 2^b - 1 zeros does not fit in b bits: a *filler*, a zero that is stored as if it were a value, breaks it (Deep
Compression, Han et al. 2016, section 2, figure 2, where 3 bits span 8 places). All bytes here are counted from what `encode` returns,
and `decode` makes the weight from that again.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qlab.quant import packing
from qlab.quant.layout import as_tensor

FORMATS = ("dense", "bitmask", "csr", "relative")


def to_relative(values, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(gaps, kept): what is not zero, in order, fillers among it, and the number of zeros before each, at most 2**bits - 1.

    values: any numbers, of any shape, read in the order of memory; bits: 1 to 16. gaps: int32 (k,); kept: (k,), dtype of values. Zeros
    after the last value are not stored. A gap is the paper's difference of positions less one, so that b bits span 2**b places.
    Raises ValueError for bits out of range.

    >>> gaps, kept = to_relative([0, 3.4, 0, 0, 0.9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1.7], bits=3)   # the paper's figure 2
    >>> gaps.tolist(), [round(value, 1) for value in kept.tolist()]
    ([1, 2, 7, 2], [3.4, 0.9, 0.0, 1.7])
    """
    span = 1 << _bits(bits)
    flat = as_tensor(values, "values").reshape(-1)
    at = flat.nonzero()[:, 0]
    skipped = at - torch.cat([at.new_full((1,), -1), at])[:-1] - 1                          # zeros between a value and the one before
    last = (skipped // span + 1).cumsum(0) - 1                                      # a filler stands for `span` places, its own among them
    gaps = torch.full((int(last[-1]) + 1 if len(at) else 0,), span - 1, dtype=torch.int32, device=flat.device)
    kept = torch.zeros(len(gaps), dtype=flat.dtype, device=flat.device)
    gaps[last], kept[last] = (skipped % span).int(), flat[at]
    return gaps, kept


def from_relative(gaps, kept, n: int) -> torch.Tensor:
    """The n values, (n,), that to_relative was given. Raises TypeError for gaps that are not integers, ValueError if
    gaps and kept do not fit each other, or n.

    >>> from_relative([1, 0], torch.tensor([5.0, 6.0]), n=4).tolist()
    [0.0, 5.0, 6.0, 0.0]
    """
    gaps, kept = as_tensor(gaps, "gaps").reshape(-1), as_tensor(kept, "kept").reshape(-1)
    if len(gaps) and (gaps.is_floating_point() or gaps.is_complex() or gaps.dtype == torch.bool):
        raise TypeError(f"gaps holds {gaps.dtype}, and must hold integers.")
    gaps = gaps.long()
    at = (gaps + 1).cumsum(0) - 1
    # Each gap by itself first: a sum of huge ones would overflow, and may look as if it fitted.
    if len(gaps) != len(kept) or len(at) and (int(gaps.min()) < 0 or int(gaps.max()) >= n or int(at[-1]) >= n):
        reach = sum(gap + 1 for gap in gaps.tolist())
        raise ValueError(f"there are {len(gaps)} gaps and {len(kept)} values, which reach {reach} places: "
                         f"they must be as many, and reach at most n = {n}.")
    values = torch.zeros(n, dtype=kept.dtype, device=kept.device)
    values[at.to(kept.device)] = kept
    return values


@dataclass(frozen=True, eq=False)
class Sparse:
    """A weight as a file would hold it. parts: the arrays; shape and bits are the header, which every format needs and none counts."""

    format: str
    shape: tuple[int, ...]
    bits: int
    parts: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(part.nbytes for part in self.parts.values())


def encode(weight, format: str, bits: int = 4) -> Sparse:
    """The weight in one of FORMATS. weight: numbers that NumPy has a type for, of any shape; a value takes the bytes of its dtype.

    bits: of a gap, for "relative". Rows for "csr" run along the first axis; columns and row starts take 1, 2 or 4 bytes, the fewest that
    hold the largest of them. Raises TypeError for numbers that NumPy has no type for (bfloat16), ValueError for an unknown format or bits
    from outside 1 to 16.

    >>> weight = torch.zeros(10, 100).fill_diagonal_(1.5)
    >>> {format: encode(weight, format).nbytes for format in FORMATS}
    {'dense': 4000, 'bitmask': 165, 'csr': 61, 'relative': 288}
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, and must be one of {', '.join(FORMATS)}.")
    bits, weight = _bits(bits), as_tensor(weight, "weight").cpu()
    if weight.dtype == torch.bfloat16:
        raise TypeError(f"weight holds {weight.dtype}, which NumPy has no type for: convert it, for example weight.float().")
    flat = weight.numpy().reshape(-1)
    if format == "dense":
        parts = {"values": flat.copy()}
    elif format == "bitmask":
        parts = {"mask": packing.pack(torch.from_numpy((flat != 0).astype(np.uint8)), bits=1).numpy(), "values": flat[flat != 0]}
    elif format == "csr":
        rows, columns = flat.reshape(_matrix(weight.shape)).nonzero()
        starts = np.concatenate([[0], np.bincount(rows, minlength=_matrix(weight.shape)[0]).cumsum()])
        parts = {"values": flat[flat != 0], "columns": _narrow(columns), "starts": _narrow(starts)}
    else:
        gaps, kept = to_relative(weight, bits)
        parts = {"values": kept.numpy(), "gaps": packing.pack(gaps, bits).numpy()}
    return Sparse(format, tuple(weight.shape), bits, parts)


def decode(sparse: Sparse) -> torch.Tensor:
    """The weight that encode was given, value by value (a -0.0 becomes 0.0).

    >>> decode(encode([[0.0, 2.0], [0.0, 0.0]], "csr")).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    parts, n = sparse.parts, int(np.prod(sparse.shape, dtype=np.int64))
    if sparse.format == "dense":
        flat = parts["values"].copy()
    elif sparse.format == "bitmask":
        flat = np.zeros(n, parts["values"].dtype)
        flat[packing.unpack(torch.from_numpy(parts["mask"]), 1, n).numpy() == 1] = parts["values"]
    elif sparse.format == "csr":
        matrix = np.zeros(_matrix(sparse.shape), parts["values"].dtype)
        rows = np.repeat(np.arange(len(matrix)), np.diff(parts["starts"].astype(np.int64)))
        matrix[rows, parts["columns"]] = parts["values"]
        flat = matrix.reshape(-1)
    else:
        gaps = packing.unpack(torch.from_numpy(parts["gaps"]), sparse.bits, len(parts["values"]))
        flat = from_relative(gaps, torch.from_numpy(parts["values"]), n).numpy()
    return torch.from_numpy(flat).reshape(sparse.shape)


def nbytes(weight, format: str, bits: int = 4) -> int:
    """True bytes of the weight in one of FORMATS: the length of what encode makes of it.

    >>> nbytes(torch.eye(8), "dense"), nbytes(torch.eye(8), "bitmask")
    (256, 40)
    """
    return encode(weight, format, bits).nbytes


def _bits(bits: int) -> int:
    if isinstance(bits, bool) or bits not in range(1, 17):
        raise ValueError(f"bits is {bits!r}, and must be a whole number from 1 to 16.")
    return int(bits)


def _matrix(shape) -> tuple[int, int]:
    """(rows, columns): the first axis against all others; a weight without axes is one row."""
    rows = shape[0] if len(shape) else 1
    return rows, int(np.prod(shape[1:], dtype=np.int64))


def _narrow(index: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest unsigned type that holds the largest."""
    return index.astype(np.min_scalar_type(int(index.max()) if index.size else 0))
