"""GGUF: a language model in one file, as llama.cpp and what stands on it read it. A header that says all, then the tensors.

    "GGUF" | version, 4 bytes: 3 | number of tensors, 8 bytes | number of entries, 8 bytes
    each entry      key, type of its value (4 bytes), value         architecture, sizes, the tokenizer, ...
    each tensor     name, number of extents (4 bytes), extents (8 bytes each, the one that runs fastest first), type (4 bytes),
                    where it begins behind the header (8 bytes)
    padding to a multiple of general.alignment (32), then the tensors, each padded alike

A string is its length in 8 bytes, then UTF-8; an array the type of its items, their number in 8 bytes, then they. All numbers are
little-endian. The file is mapped into memory, not read: only tensors that are asked for are decoded.

Source: ggml, docs/gguf.md.
"""

import math
import mmap
import os
import reprlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from qlab.llm import gguf_blocks

VERSION = 3
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
KINDS = {  # all of ggml's, for a type that this page cannot decode is refused by its name
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0",
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in the file. kind: its type, such as "Q4_1"; shape: as torch has it, the extent that runs fastest last; start: its first
    byte, counted from the beginning of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    file: mmap.mmap = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, scales included. Raises ValueError for a type that this page does not read."""
        self._check()
        return gguf_blocks.stored_bytes(self.kind, math.prod(self.shape))

    def blocks(self) -> gguf_blocks.Blocks:
        """Its codes and scales, copied. Raises ValueError for a type that this page does not read, by its name."""
        size = self.nbytes
        return gguf_blocks.unpack(self.kind, memoryview(self.file)[self.start:self.start + size], self.shape)

    def dequantize(self) -> torch.Tensor:
        """Its weights, float32. Raises ValueError as `blocks` does."""
        return self.blocks().dequantize()

    def _check(self) -> None:
        try:
            gguf_blocks.check(self.kind, self.shape)
        except ValueError as error:
            raise ValueError(f"tensor {self.name} cannot be decoded: {error}") from None


@dataclass(frozen=True, eq=False)
class File:
    """metadata: key to a number, a bool, a str, a list (of str or of arrays), or a NumPy array of numbers (a view of the file: read-only);
    tensors: name to `Stored`."""

    path: str | os.PathLike
    metadata: dict = field(repr=False)                                                      # a vocabulary would fill the screen
    tensors: dict[str, Stored] = field(repr=False)


def read(path: str | os.PathLike) -> File:
    """The header of a GGUF file, version 3; the tensors stay in the file until they are asked for.

    Raises OSError where it cannot be read; ValueError, in one sentence, for what is no GGUF file, for another version or byte order, for
    one that is cut off or damaged. A tensor of a type that this page does not decode raises only when it is asked for.

    >>> import struct, tempfile
    >>> from qlab import saving
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "answer.gguf")
    ...     saving.write({path: b"GGUF" + struct.pack("<IQQ Q6sII", 3, 0, 1, 6, b"answer", 4, 42)})    # 4: uint32
    ...     read(path).metadata
    {'answer': 42}
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise OSError(f"cannot read {path}: it is not a file.")                         # a pipe would wait for ever
        with open(path, "rb") as file:
            start = file.read(8)
            _check_kind(path, start)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if not error.errno:
            raise
        raise type(error)(f"cannot read {path} ({error.strerror}).") from None
    try:
        return _read(path, data)
    except _Damaged as error:
        raise ValueError(f"{path} is a damaged GGUF file, or not all of one: {error}.") from None


def _check_kind(path: Path, start: bytes) -> None:
    if start[:4] != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it begins with {start[:4]!r}, and must begin with b'GGUF'.")
    version, swapped = (int.from_bytes(start[4:8], order) for order in ("little", "big"))
    if len(start) < 8:
        raise ValueError(f"{path} is a damaged GGUF file, or not all of one: it has {len(start)} bytes.")
    if version != VERSION:
        what = "a big-endian GGUF file" if 0 < swapped < 2**16 else f"a GGUF file of version {version}"
        raise ValueError(f"{path} is {what}, and must be a little-endian one of version {VERSION}: convert it, or take another.")


def shown(value) -> str:
    """A value of the header as a sentence can show it, whatever it is.

    >>> shown("llama"), shown([1] * 1000)
    ("'llama'", '[1, 1, 1, 1, 1, 1, ...]')
    """
    return " ".join(reprlib.repr(value).split())


class _Damaged(Exception):
    """What is wrong, as the end of a sentence."""


def _read(path: Path, data: mmap.mmap) -> File:
    header = _Header(data)
    n_tensors, n_entries = header.count(24, "tensors"), header.count(13, "entries")         # bytes that the shortest one takes
    metadata, found = {}, {}
    for _ in range(n_entries):
        key = header.name()
        if key in metadata:
            raise _Damaged(f"its header has the entry {key!r} twice")
        metadata[key] = header.value(header.number("<u4"))
    for _ in range(n_tensors):
        name, n_extents = header.name(), header.number("<u4")
        if name in found or n_extents > 4:
            wrong = "twice" if name in found else f"with {n_extents} extents, and 4 are the most"
            raise _Damaged(f"its header has the tensor {name!r} {wrong}")
        extents = header.numbers("<u8", n_extents).tolist()
        kind = header.number("<u4")
        found[name] = KINDS.get(kind, f"unknown ({kind})"), tuple(reversed(extents)), header.number("<u8")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise _Damaged(f"its general.alignment is {shown(alignment)}, and must be a whole number of at least 1")
    first = -(-header.at // alignment) * alignment
    tensors = {name: Stored(name, kind, shape, first + begin, data) for name, (kind, shape, begin) in found.items()}
    _check_places(tensors.values(), len(data))
    return File(path, metadata, tensors)


def _check_places(tensors, size: int) -> None:
    """Every tensor lies inside the file, and no two in one place."""
    ends = []
    for tensor in tensors:
        try:
            end = tensor.start + tensor.nbytes
        except ValueError as error:
            if tensor.kind in gguf_blocks.LAYOUT:
                raise _Damaged(str(error).rstrip(".")) from None
            end = tensor.start                                                              # this page knows no other kind's length
        if end > size:
            raise _Damaged(f"tensor {tensor.name} ends at byte {end:,}, and the file has {size:,}")
        ends.append((tensor.start, end, tensor.name))
    for (_, end, name), (start, _, other) in pairwise(sorted(ends)):
        if start < end:
            raise _Damaged(f"the tensors {name} and {other} share bytes")


class _Header:
    """A place in the header, and what is read from there on. Nothing is made room for before the bytes for it are known to be there."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 8                                                        # behind magic and version

    def skip(self, size: int) -> int:
        """The place, `size` bytes on; returns where it was."""
        before = self.at
        if size > len(self.data) - before:
            raise _Damaged(f"its header goes on behind its last byte, {len(self.data):,}")
        self.at += size
        return before

    def number(self, kind: str):
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: str, n: int) -> np.ndarray:
        start = self.skip(n * np.dtype(kind).itemsize)
        found = np.frombuffer(self.data, "u1" if kind == "?" else kind, n, start) if n else np.empty(0, kind)
        if kind == "?" and n and found.max() > 1:
            raise _Damaged(f"its header has a bool that is {found.max()}, not 0 or 1")
        return found.view(bool) if kind == "?" else found

    def count(self, least: int, what: str) -> int:
        """A number of things that take at least so many bytes each."""
        n = int.from_bytes(self.data[self.skip(8):self.at], "little")
        if n * least > len(self.data) - self.at:
            raise _Damaged(f"its header counts {n:,} {what}, more than fit into the {len(self.data):,} bytes of the file")
        return n

    def string(self) -> str:
        start = self.skip(self.count(1, "bytes of a string"))
        try:
            return self.data[start:self.at].decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"its header has a string that is not UTF-8 (byte {start + error.start:,})") from None

    def name(self) -> str:
        """A string that a sentence can show."""
        name = self.string()
        if len(name) > 255 or not name.isprintable():
            raise _Damaged(f"its header has the name {shown(name)}, and a name must be 255 letters at most, all printable")
        return name

    def value(self, kind: int, depth: int = 0):
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth == 8:
            raise _Damaged("its header has arrays in arrays, deeper than 8" if kind == ARRAY else f"its header has a value of type {kind}")
        kind = self.number("<u4")
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind], self.count(np.dtype(NUMBERS[kind]).itemsize, "items"))
        return [self.value(kind, depth + 1) for _ in range(self.count(8, "items"))]
