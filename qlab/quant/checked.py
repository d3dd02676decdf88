"""A safetensors file of what is more than tensors: they, the fields that say what they mean, as JSON, and a checksum of both.

    __metadata__     format     "qlab." and what the file holds
                     version    "1"
                     fields     JSON
                     crc32      of the header without this entry, and of all bytes after it
    tensors          as any program that knows safetensors reads them

The format's own checks find a header that is damaged, but no flipped bit of a tensor: the checksum does. The same content gives the
same bytes.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from qlab import saving

VERSION = "1"
T = TypeVar("T")


def content(what: str, fields: dict, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a file of `what` ("QTensor", ...); tensors may lie on any device that holds values.

    Raises ValueError for a tensor on the meta device, or fields that are no JSON (NaN, infinity).

    >>> content("QTensor", {"bits": 4}, {"codes": torch.arange(3)})[-24:].hex(" ", 8)
    '0000000000000000 0100000000000000 0200000000000000'
    """
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"{empty[0]} is on the meta device, and has no values to save: move it to another one first.")
    metadata = {"format": f"qlab.{what}", "version": VERSION, "fields": json.dumps(fields, allow_nan=False)}
    made = save_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)
    header, data = _parts(made)
    header["__metadata__"] = metadata | {"crc32": _sum(header, data)}                       # safetensors writes the entries in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                                                         # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data


def load(path, what: str, restore: Callable[[dict, dict[str, torch.Tensor]], T]) -> T:
    """What restore(fields, tensors) makes of a file that content wrote; restore may raise whatever it will.

    Raises OSError where the file cannot be read; ValueError, in one sentence, where it is damaged, of another version, or no such file.
    """
    file = saving.read(path)
    try:
        tensors = load_bytes(file)
        header, data = _parts(file)
        metadata = header.get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged ({_said(error)}).") from None
    if metadata.get("format") != f"qlab.{what}":
        raise ValueError(f"{path} is a safetensors file but holds no qlab {what}: only files written by {what}.save can be loaded.")
    if metadata.get("version") != VERSION:
        raise ValueError(f"{path} is a {what} file of version {metadata.get('version')!r}, and this program reads version {VERSION!r}.")
    try:
        if metadata.get("crc32", _sum(header, data)) != _sum(header, data):
            raise ValueError("wrong checksum")
        return restore(json.loads(metadata["fields"]), tensors)
    except Exception as error:  # noqa: BLE001 - a field may be anything, and so may be what it makes a constructor raise
        raise ValueError(f"{path} is a damaged {what} file ({_said(error)}).") from None


def _parts(file: bytes) -> tuple[dict, memoryview]:
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), memoryview(file)[end:]


def _sum(header: dict, data: memoryview) -> str:
    metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key != "crc32"}
    return f"{zlib.crc32(data, zlib.crc32(json.dumps(header | {'__metadata__': metadata}, sort_keys=True).encode())):08x}"


def _said(error: Exception) -> str:
    """An error's text as part of a sentence."""
    said = " ".join(str(error).split()).rstrip(".")[:300]
    return f"no entry {said}" if isinstance(error, KeyError) else said or type(error).__name__
