"""The file of a compressed network, byte by byte. All numbers are little-endian; the Huffman streams fill bytes from the top.

    "qlab-dc" version                          7 + 1 bytes
    number of tensors                          2
    for each tensor
        length of the name, name               1 + length
        kind                                   1          0 .. 4: a dtype of DTYPES, as it is; 255: shared
        dimensions, each of them               1 + 4 each
      as it is
        values                                 as many bytes as they take
      shared
        centroids, bits of a gap               2 + 1
        weights stored, bytes of both streams  4 + 4 + 4
        codebook                               4 a centroid, float32
        code lengths                           1/2 a symbol: one table for the codes, one for the gaps
        codes, gaps                            two Huffman streams
    CRC-32 of everything before                4

A shared weight is stored as Deep Compression does (Han et al. 2016, section 3): the codes of the weights that are not zero, and before
each the gap, the number of zeros since the last. A gap that does not fit is broken by a filler, an entry of code 0. Codes 1, 2, .. are
the centroids, so a codebook of 2**b has 2**b + 1 symbols: a Huffman code does not mind. Gaps get the bits that make the layer smallest;
with 0 bits there are none, and every weight has its code, zeros too: what a dense layer wants.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from qlab.nets import huffman, sparse
from qlab.quant import packing

MAGIC, VERSION = b"qlab-dc", 1
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
SHARED = 255
MAX_BITS = 12
GAP_BITS = range(9)
_ENTRY = struct.Struct("<HBIII")  # centroids, bits of a gap, weights stored, bytes of codes, bytes of gaps


class Part(NamedTuple):
    """part: "header", "as it is", "codebook", "tables", "codes" or "gaps"; tensor: its name, "" for what belongs to the whole file."""

    tensor: str
    part: str
    nbytes: int


def pack(tensors: Mapping[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]) -> bytes:
    """The file's content. A value is a tensor, stored as it is, or (codes, codebook): code 0 is zero, j is codebook[j - 1].

    Raises ValueError, by name, for what the file has no place for: a dtype that is none of DTYPES, more than 65,535 tensors, a name of
    more than 255 bytes or with characters that do not print, more than 255 dimensions, 2**32 elements, a codebook of more than 4,096
    centroids, codes that are not its, a tensor without values.
    """
    if len(tensors) > 0xFFFF:
        raise ValueError(f"the network has {len(tensors)} tensors, and a file holds at most {0xFFFF}.")
    pieces = [MAGIC, struct.pack("<BH", VERSION, len(tensors))]
    for name, value in tensors.items():
        _check(name, value)
        shape, encoded = (value[0].shape if isinstance(value, tuple) else value.shape), name.encode()
        kind = SHARED if isinstance(value, tuple) else DTYPES.index(value.dtype)
        pieces.append(struct.pack(f"<B{len(encoded)}sBB{len(shape)}I", len(encoded), encoded, kind, len(shape), *shape))
        pieces += _shared(*value) if isinstance(value, tuple) else [raw(value)]
    content = b"".join(pieces)
    return content + struct.pack("<I", zlib.crc32(content))


def _check(name: str, value: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> None:
    """ValueError for what has no place in a file."""
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(tensor, torch.Tensor) for tensor in values):
        raise ValueError(f"{name} is a {type(value).__name__}, and a file holds tensors only.")
    if not name.isprintable() or len(name.encode()) > 255:
        raise ValueError(f"the name {name[:40]!r}{'...' * (len(name) > 40)} cannot be stored: a name has at most 255 bytes, all of "
                         "characters that print.")
    if values[0].dim() > 255 or max(values[0].numel(), *values[0].shape, 0) >= 2**32:
        raise ValueError(f"{name} has {values[0].dim()} dimensions and {values[0].numel()} elements: a file holds tensors of at most 255 "
                         f"dimensions, none of them and no number of elements above {2**32 - 1}.")
    if any(tensor.is_meta or tensor.layout != torch.strided for tensor in values):
        raise ValueError(f"{name} is on the meta device or sparse, and must be a dense tensor with values.")
    if not isinstance(value, tuple):
        if value.dtype not in DTYPES:
            raise ValueError(f"{name} is {value.dtype}, and must be one of {', '.join(str(dtype) for dtype in DTYPES)}.")
        return
    codes, codebook = value
    if codebook.dtype != torch.float32 or codebook.dim() != 1 or len(codebook) > 2**MAX_BITS:
        raise ValueError(f"the codebook of {name} is {codebook.dtype} of shape {tuple(codebook.shape)}, and must be float32, a list of at "
                         f"most {2**MAX_BITS} centroids.")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"the codes of {name} are {codes.dtype}, and must be integers.")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= len(codebook):
        raise ValueError(f"the codes of {name} run from {int(codes.min())} to {int(codes.max())}, and must run from 0 to {len(codebook)}, "
                         "the number of its centroids.")


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's elements as bytes, in the order of their indices."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _shared(codes: torch.Tensor, codebook: torch.Tensor) -> list[bytes]:
    """Header, codebook, tables and streams of one weight."""
    best = relative(codes, len(codebook))
    streams = huffman.encode(best.kept, best.code_lengths), huffman.encode(best.gaps, best.gap_lengths)
    return [_ENTRY.pack(len(codebook), best.bits, len(best.kept), *(len(stream) for stream in streams)), raw(codebook.float()),
            _nibbles(best.code_lengths), _nibbles(best.gap_lengths), *streams]


@dataclass(frozen=True, eq=False)
class Relative:
    """What a file stores of one weight's codes: those kept, fillers among them, the gaps before them, and both Huffman codes' lengths.

    sizes: bytes of "codes", "gaps" and "tables", known before anything is encoded.
    """

    bits: int
    kept: torch.Tensor
    gaps: torch.Tensor
    code_lengths: torch.Tensor
    gap_lengths: torch.Tensor
    sizes: dict[str, int]


def relative(codes: torch.Tensor, centroids: int, bits: int | None = None) -> Relative:
    """The codes in relative form, with gaps of `bits` bits (0 to 8), by default as many as take the fewest bytes.

    >>> stored = relative(torch.tensor([0, 1, 0, 0, 0, 2]), centroids=2, bits=1)
    >>> stored.kept.tolist(), stored.gaps.tolist()      # a gap of 3 zeros takes a filler
    ([1, 0, 2], [1, 1, 1])
    """
    codes = codes.detach().cpu()
    if bits is None:
        return min((relative(codes, centroids, b) for b in GAP_BITS), key=lambda stored: sum(stored.sizes.values()))
    gaps, kept = sparse.to_relative(codes, bits) if bits else (torch.zeros(0, dtype=torch.int32), codes.reshape(-1))
    sizes, lengths = {"tables": 0}, []
    for name, symbols, alphabet in (("codes", kept, centroids + 1), ("gaps", gaps, 1 << bits)):
        counts = torch.bincount(symbols, minlength=alphabet)
        lengths.append(huffman.code_lengths(counts))
        sizes[name] = -(-int((counts * lengths[-1]).sum()) // 8)
        sizes["tables"] += packing.packed_size(alphabet, 4)
    return Relative(bits, kept, gaps, *lengths, sizes)


def _nibbles(lengths: torch.Tensor) -> bytes:
    return packing.pack(lengths, bits=4).numpy().tobytes()


class _Reader:
    """The bytes of a file from the front; where they are short, the file is damaged."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.content):
            raise ValueError("the file is damaged: it ends in the middle.")
        self.at += n
        return self.content[self.at - n:self.at]

    def numbers(self, form: str) -> tuple:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))


def _open(content: bytes) -> tuple[_Reader, int]:
    """The reader at the first tensor, and how many there are."""
    if content[:len(MAGIC)] != MAGIC:
        raise ValueError("this is no compressed network: only files written by compress.save can be read.")
    if len(content) < len(MAGIC) + 7 or zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError("the file is damaged or cut off (wrong checksum).")
    reader = _Reader(content[:-4])
    reader.take(len(MAGIC))
    version, count = reader.numbers("BH")
    if version != VERSION:
        raise ValueError(f"the file is of version {version}, and this program reads version {VERSION}.")
    return reader, count


def _head(reader: _Reader) -> tuple[str, int, tuple[int, ...]]:
    name = reader.take(*reader.numbers("B")).decode(errors="replace")
    kind, dims = reader.numbers("BB")
    if not name.isprintable() or kind != SHARED and kind >= len(DTYPES):
        raise ValueError(f"the file is damaged: {name!r} is of the unknown kind {kind}.")
    return name, kind, reader.numbers(f"{dims}I")


def _body(reader: _Reader, kind: int, shape: tuple[int, ...]) -> dict[str, bytes]:
    """The bytes of each part of one tensor, by the name of the part; "entry" is a shared weight's own header."""
    if kind != SHARED:
        return {"as it is": reader.take(math.prod(shape) * DTYPES[kind].itemsize)}
    entry = reader.take(_ENTRY.size)
    centroids, bits, _, code_bytes, gap_bytes = _ENTRY.unpack(entry)
    if bits not in GAP_BITS:
        raise ValueError(f"the file is damaged: gaps of {bits} bits.")
    tables = packing.packed_size(centroids + 1, 4) + packing.packed_size(1 << bits, 4)
    return {"entry": entry, "codebook": reader.take(4 * centroids), "tables": reader.take(tables),
            "codes": reader.take(code_bytes), "gaps": reader.take(gap_bytes)}


def unpack(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
    """What pack was given. shapes: the tensors that there must be, and their shapes.

    Raises ValueError, in one sentence, for content that is damaged, cut off, foreign, or holds other tensors.
    """
    reader, count = _open(content)
    found = {}
    for _ in range(count):
        name, kind, shape = _head(reader)
        if name in found:
            raise ValueError(f"the file is damaged: it holds {name} twice.")
        if shapes.get(name) != shape:
            wanted = f"shape {shapes[name]}" if name in shapes else f"only {', '.join(shapes)}"
            raise ValueError(f"the file is of another network: it holds {name} of shape {shape}, and the model has {wanted}.")
        body = _body(reader, kind, shape)
        found[name] = _decoded(name, body, shape) if kind == SHARED else \
            torch.frombuffer(bytearray(body["as it is"]), dtype=DTYPES[kind]).reshape(shape) if math.prod(shape) else \
            torch.empty(shape, dtype=DTYPES[kind])
    if len(found) != len(shapes):
        raise ValueError(f"the file is of another network: it lacks {', '.join(sorted(set(shapes) - set(found)))}.")
    _check_end(reader)
    return found


def _check_end(reader: _Reader) -> None:
    if reader.at != len(reader.content):
        raise ValueError(f"the file is damaged: {len(reader.content) - reader.at} bytes follow its last tensor.")


def _decoded(name: str, body: dict[str, bytes], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    centroids, bits, stored, _, _ = _ENTRY.unpack(body["entry"])
    cut = packing.packed_size(centroids + 1, 4)
    try:
        kept = huffman.decode(body["codes"], _lengths(body["tables"][:cut], centroids + 1), stored)
        if bits:
            gaps = huffman.decode(body["gaps"], _lengths(body["tables"][cut:], 1 << bits), stored)
            kept = sparse.from_relative(gaps, kept, math.prod(shape))
        codes = kept.int().view(shape)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the file is damaged in {name}: {error}") from None
    codebook = torch.frombuffer(bytearray(body["codebook"]), dtype=torch.float32) if centroids else torch.zeros(0)
    return codes, codebook


def _lengths(table: bytes, n: int) -> torch.Tensor:
    return packing.unpack(torch.frombuffer(bytearray(table), dtype=torch.uint8), 4, n)


def parts(content: bytes) -> list[Part]:
    """What every byte is for, tensor by tensor; the sizes add up to len(content). Raises as unpack does."""
    reader, count = _open(content)
    listed = [Part("", "header", reader.at + 4)]                                            # with the checksum at the end
    for _ in range(count):
        before = reader.at
        name, kind, shape = _head(reader)
        body = _body(reader, kind, shape)
        sizes = {part: len(piece) for part, piece in body.items() if part != "entry"}
        listed += [Part(name, "header", reader.at - before - sum(sizes.values())), *(Part(name, *item) for item in sizes.items())]
    _check_end(reader)
    return listed
