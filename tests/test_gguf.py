"""GGUF files and their blocks, against what the package gguf wrote and decoded (tests/gguf_vectors.py) and by hand; damaged ones."""

import os
import random
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.llm import gguf, gguf_blocks

DATA = Path(__file__).parent / "data" / "gguf"
BLOCKED = ("Q8_0", "Q4_0", "Q4_1", "MXFP4")


@pytest.fixture(scope="module")
def blocks():
    return gguf.read(DATA / "blocks.gguf")


# What gguf wrote


def test_metadata_of_every_type(blocks):
    one = {key.removeprefix("one."): value for key, value in blocks.metadata.items() if key.startswith("one.")}
    assert one == {"uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 2**32 - 1, "int32": -2**31, "uint64": 2**64 - 1,
                   "int64": -2**63, "float32": float(np.float32(0.1)), "float64": 0.1, "bool": True, "string": "für €😀"}
    assert {type(value) for value in one.values()} == {int, float, bool, str}
    many = {key.removeprefix("many."): value for key, value in blocks.metadata.items() if key.startswith("many.")}
    assert many.pop("STRING") == ["a", "", "ß"]
    assert {key: (value.dtype.name, value.tolist()) for key, value in many.items()} == {
        "UINT8": ("uint8", [1, 255]), "INT16": ("int16", [-1, 2]), "FLOAT32": ("float32", [0.5, -0.25]), "INT64": ("int64", [-2**40]),
        "BOOL": ("bool", [True, False])}


@pytest.mark.parametrize("kind", BLOCKED)
def test_blocks_decode_bit_for_bit_as_ggufs(blocks, kind):
    ours, expected = blocks.tensors[kind].dequantize(), blocks.tensors[f"expected.{kind}"].dequantize()
    assert ours.shape == (5, 96) and ours.dtype == torch.float32 and torch.equal(ours, expected)


def test_plain_numbers(blocks):
    assert blocks.tensors["F32"].dequantize().tolist() == [0, 1, 2, 3, 4, 5, 6]
    half = blocks.tensors["F16"]
    assert half.shape == half.blocks().codes.shape == (2, 3, 5) and half.blocks().codes.dtype == torch.float16 and half.nbytes == 60
    assert half.blocks().scale is None and torch.equal(half.dequantize(), half.blocks().codes.float())


@pytest.mark.parametrize("kind, bits", [("Q8_0", 8.5), ("Q4_1", 5), ("Q4_0", 4.5), ("MXFP4", 4.25)])
def test_bytes_are_those_of_the_file_and_of_codes_and_scales(blocks, kind, bits):
    stored = blocks.tensors[kind]
    found = stored.blocks()
    parts = found.codes.numel() * (8 if kind == "Q8_0" else 4) // 8
    parts += sum(part.numel() * part.element_size() for part in (found.scale, found.minimum) if part is not None)
    assert stored.nbytes == found.nbytes == parts == 5 * 96 * bits / 8
    after = min(other.start for other in blocks.tensors.values() if other.start > stored.start)
    assert 0 <= after - stored.start - stored.nbytes < 32                                   # the next one, after padding
    assert found.scale.shape == (5, 3) and found.codes.shape == (5, 96)


# By hand


@given(st.lists(st.integers(0, 15), min_size=32, max_size=32), st.sampled_from(["Q4_0", "Q4_1", "MXFP4"]))
def test_two_codes_in_a_byte(codes, kind):
    """Byte i is code i and 16 times code i + 16."""
    head = {"Q4_0": struct.pack("<e", 0.25), "Q4_1": struct.pack("<ee", 0.25, -3), "MXFP4": b"\x7d"}[kind]
    pairs = bytes(codes[i] + 16 * codes[i + 16] for i in range(16))
    found = gguf_blocks.unpack(kind, head + pairs, (32,))
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    rule = {"Q4_0": lambda c: 0.25 * (c - 8), "Q4_1": lambda c: 0.25 * c - 3, "MXFP4": lambda c: 2.0**-2 * e2m1[c % 8] * (-1) ** (c // 8)}
    assert found.codes.tolist() == codes and found.dequantize().tolist() == [rule[kind](code) for code in codes]


@given(st.lists(st.integers(-128, 127), min_size=64, max_size=64), st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_eight_bits(codes, scale):
    raw = (struct.pack("<e", 1) + struct.pack("32b", *codes[:32])) + (struct.pack("<e", scale) + struct.pack("32b", *codes[32:]))
    found = gguf_blocks.unpack("Q8_0", raw, (2, 32))
    assert found.dequantize().tolist() == [codes[:32], [code * scale for code in codes[32:]]]


@pytest.mark.parametrize("kind", gguf_blocks.LAYOUT)
@pytest.mark.parametrize("shape", [(0,), (0, 32), (3, 0, 64), (2, 1, 32)])
def test_any_number_of_extents_and_none_of_weights(kind, shape):
    found = gguf_blocks.unpack(kind, bytes(gguf_blocks.stored_bytes(kind, int(np.prod(shape)))), shape)
    assert found.dequantize().shape == shape and found.nbytes == gguf_blocks.stored_bytes(kind, int(np.prod(shape)))


def test_what_is_returned_is_a_copy(blocks):
    first = blocks.tensors["F32"].dequantize()
    first.add_(1)
    assert blocks.tensors["F32"].dequantize()[0] == 0


@pytest.mark.parametrize("arguments, sentence", [
    (("Q5_K", b"", (32,)), "its type is Q5_K, and must be one of F32, F16, Q8_0, Q4_1, Q4_0, MXFP4."),
    (("Q4_0", bytes(18), (16, 2)), r"its shape is \(16, 2\), and in Q4_0 the last number must be a multiple of 32: whole blocks."),
    (("Q4_0", bytes(18), ()), r"its shape is \(\), and in Q4_0 .*"),
    (("Q4_0", bytes(17), (32,)), "32 weights in Q4_0 are 18 bytes, and there are 17."),
    (("F32", bytes(8), (3,)), "3 weights in F32 are 12 bytes, and there are 8."),
])
def test_wrong_blocks(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        gguf_blocks.unpack(*arguments)


# Files written here, byte by byte

U32, STRING, ARRAY = 4, 8, 9


def string(text):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def entry(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def tensor(name, extents, kind, begin):
    return string(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, begin)


def file(path, entries=(), tensors=(), data=b"", version=3, order="<", counts=None, alignment=32):
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, n_tensors, n_entries) + b"".join([*entries, *tensors])
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def refused(path, sentence):
    with pytest.raises(ValueError) as error:
        gguf.read(path)
    said = str(error.value)
    assert sentence in said and str(path) in said and said.endswith(".") and "\n" not in said, said


def test_arrays_in_arrays_other_alignment_and_unusual_order(tmp_path):
    inner = struct.pack("<IQII", U32, 2, 7, 9)
    entries = [entry("general.alignment", U32, struct.pack("<I", 8)), entry("nested", ARRAY, struct.pack("<IQ", ARRAY, 2) + inner + inner),
               entry("", ARRAY, struct.pack("<IQ", 12, 0))]
    data = struct.pack("<2f", 5, 6) + struct.pack("<2f", 1, 2) + struct.pack("<f", 7)
    tensors = [tensor("b", [2], 0, 8), tensor("a", [2, 1], 0, 0), tensor("c", [], 0, 16)]
    found = gguf.read(file(tmp_path / "x", entries, tensors, data, alignment=8))
    assert [part.tolist() for part in found.metadata["nested"]] == [[7, 9], [7, 9]] and len(found.metadata[""]) == 0
    assert [found.tensors[name].dequantize().tolist() for name in "abc"] == [[[5, 6]], [1, 2], 7]


@pytest.mark.parametrize("content, sentence", [
    (b"", "is not a GGUF file: it begins with b'', and must begin with b'GGUF'."),
    (b"GG", "is not a GGUF file: it begins with b'GG'"),
    (b"PK\x03\x04" + bytes(100), r"is not a GGUF file: it begins with b'PK\x03\x04'"),
    (b"FUGG" + bytes(100), "is not a GGUF file"),
    (b"GGUF\x03\x00", "or not all of one: it has 6 bytes."),
    (b"GGUF\x03\x00\x00\x00\x01", "its header goes on behind its last byte, 9."),
])
def test_foreign_and_cut_off(tmp_path, content, sentence):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(path, sentence)


@pytest.mark.parametrize("arguments, sentence", [
    ({"version": 1}, "is a GGUF file of version 1, and must be a little-endian one of version 3"),
    ({"version": 2}, "of version 2"),
    ({"version": 4}, "of version 4"),
    ({"order": ">"}, "is a big-endian GGUF file, and must be a little-endian one of version 3"),
    ({"counts": (2**60, 0)}, "its header counts 1,152,921,504,606,846,976 tensors, more than fit into the"),
    ({"counts": (0, 2**63 + 5)}, "entries, more than fit into the"),
    ({"counts": (0, 3), "data": bytes(1000)}, "has the entry '' twice"),
    ({"entries": [entry("a", ARRAY, struct.pack("<IQ", 12, 2**61))]}, "counts 2,305,843,009,213,693,952 items, more than fit"),
    ({"entries": [entry("a", ARRAY, struct.pack("<IQ", STRING, 2**40))]}, "items, more than fit"),
    ({"entries": [entry("a", STRING, struct.pack("<Q", 2**62))]}, "bytes of a string, more than fit"),
    ({"entries": [entry("a", 13, b"1234")]}, "has a value of type 13"),
    ({"entries": [entry("a", 7, b"\x02")]}, "has a bool that is 2, not 0 or 1"),
    ({"entries": [entry("a", STRING, string(b"\xff"))]}, "has a string that is not UTF-8 (byte 45)"),
    ({"entries": [entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 50)]}, "has arrays in arrays, deeper than 8"),
    ({"entries": [entry("a\nb", U32, bytes(4))]}, r"has the name 'a\nb', and a name must be 255 letters at most, all printable"),
    ({"tensors": [tensor("a" * 256, [1], 0, 0)], "data": bytes(64)}, "has the name 'aaaaaaaaaaaa...aaaaaaaaaaaaa', and a name must be"),
    ({"entries": [entry("a", U32, bytes(4))] * 2}, "has the entry 'a' twice"),
    ({"tensors": [tensor("a", [1], 0, 0)] * 2, "data": bytes(64)}, "has the tensor 'a' twice"),
    ({"tensors": [tensor("a", [1] * 5, 0, 0)], "data": bytes(64)}, "has the tensor 'a' with 5 extents, and 4 are the most"),
    ({"tensors": [tensor("a", [3], 0, 0)], "data": bytes(8)}, "tensor a ends at byte 76, and the file has 72"),
    ({"tensors": [tensor("a", [2**40, 2**40], 2, 0)], "data": bytes(64)}, "tensor a ends at byte"),
    ({"tensors": [tensor("a", [8], 0, 2**63)], "data": bytes(64)}, "tensor a ends at byte"),
    ({"tensors": [tensor("a", [31], 3, 0)], "data": bytes(64)}, "tensor a cannot be decoded: its shape is (31,), and in Q4_1 the last"),
    ({"tensors": [tensor("a", [8], 0, 0), tensor("b", [2], 1, 28)], "data": bytes(64)}, "the tensors a and b share bytes"),
    ({"entries": [entry("general.alignment", U32, bytes(4))]}, "its general.alignment is 0, and must be a whole number of at least 1"),
    ({"entries": [entry("general.alignment", STRING, string("32"))]}, "its general.alignment is '32'"),
])
def test_a_damaged_header_is_one_sentence_and_takes_no_memory(tmp_path, arguments, sentence):
    path = file(tmp_path / "x.gguf", **arguments)
    tracemalloc.start()
    try:
        refused(path, sentence)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number, name", [(12, "Q4_K"), (30, "BF16"), (28, "F64"), (4, "unknown (4)"), (2**31, "unknown (2147483648)")])
def test_another_block_type_is_named_when_it_is_asked_for(tmp_path, number, name):
    tensors = [tensor("w", [256], number, 0), tensor("b", [1], 0, 256)]
    found = gguf.read(file(tmp_path / "x", [], tensors, bytes(256) + struct.pack("<f", 3)))
    assert found.tensors["b"].dequantize().tolist() == [3] and found.tensors["w"].kind == name
    for asked in (found.tensors["w"].blocks, found.tensors["w"].dequantize, lambda: found.tensors["w"].nbytes):
        with pytest.raises(ValueError) as error:
            asked()
        assert str(error.value) == f"tensor w cannot be decoded: its type is {name}, and must be one of F32, F16, Q8_0, Q4_1, Q4_0, MXFP4."


def test_cut_off_anywhere_and_one_byte_changed_anywhere(tmp_path):
    """One sentence, or a file that can be read to its end; never another error."""
    path, whole, draw = tmp_path / "x.gguf", (DATA / "blocks.gguf").read_bytes(), random.Random(1)
    for cut in [*range(0, 600, 7), *(draw.randrange(len(whole) - 31) for _ in range(60))]:  # the last tensor ends within the last 32
        path.write_bytes(whole[:cut])
        refused(path, "GGUF file")
    read = 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[draw.randrange(1500)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            found = gguf.read(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        for stored in found.tensors.values():
            try:
                read += stored.dequantize().numel()
            except ValueError as error:
                assert stored.kind not in gguf_blocks.LAYOUT and stored.name in str(error)
    assert read > 0


def test_places_that_hold_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^cannot read .*nothing \(No such file or directory\)\.$"):
        gguf.read(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"^cannot read .* \(Is a directory\)\.$"):
        gguf.read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="^cannot read .*pipe: it is not a file.$"):
            gguf.read(tmp_path / "pipe")


def test_tensors_stay_readable_after_the_file_is_replaced(tmp_path):
    path = tmp_path / "x.gguf"
    shutil.copy(DATA / "blocks.gguf", path)
    found = gguf.read(str(path))
    path.unlink()
    assert found.tensors["F32"].dequantize().sum() == 21
