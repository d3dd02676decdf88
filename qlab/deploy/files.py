"""What every exported file comes with: a description beside it, written together, both files or neither."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import qlab
from qlab import saving


@dataclass(frozen=True)
class Port:
    """An input or output: its shape for one image as run takes it, dtype, and x = scale * (code - zero_point); both None for floats."""

    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Description:
    """What an exported file holds. layers: one dictionary an operation, in order; nbytes, sha256: of the file."""

    format: str
    network: str
    input: Port
    output: Port
    layers: tuple[dict, ...]
    nbytes: int
    sha256: str
    qlab: str


def beside(path: str | os.PathLike) -> Path:
    """Where the description of a file is: NAME.json for the file NAME.

    >>> beside("out/cnn.tflite").as_posix()
    'out/cnn.tflite.json'
    """
    path = Path(path)
    return path.with_name(path.name + ".json")


def write(path: str | os.PathLike, content: bytes, also: Mapping[str | os.PathLike, bytes] | None = None, **description) -> Description:
    """Write the content to path and its description beside it, all or none; old files stay until the new ones are whole.

    also: files that belong to it, by their paths. description: format, network, input, output, layers of Description. Raises OSError,
    in one sentence, where it cannot write.
    """
    result = Description(**description, nbytes=len(content), sha256=hashlib.sha256(content).hexdigest(), qlab=qlab.__version__)
    about = (json.dumps(asdict(result), indent=1) + "\n").encode()
    saving.write({**(also or {}), path: content, beside(path): about})
    return result


def read_description(path: str | os.PathLike) -> Description | None:
    """The description beside a file; None where there is none. Raises ValueError for one that does not match the file's bytes."""
    place, path = beside(path), Path(path)
    if not place.exists():
        return None
    try:
        told = json.loads(place.read_text())
        told = Description(**told | {"input": _port(told["input"]), "output": _port(told["output"]), "layers": tuple(told["layers"])})
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{place} is not a description that qlab wrote: export the network again.") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != told.sha256:
        raise ValueError(f"{path} is damaged (its sha256 is not that of {place.name}): export the network again.")
    return told


def _port(told: dict) -> Port:
    return Port(**told | {"shape": tuple(told["shape"])})
