"""Fashion-MNIST unpacked once for all kernels of a machine: each maps the same files, where it would else hold a copy of its own.

    python -m qlab.lab.shared /srv/qlab/shared      writes them, 220 MB
    QLAB_SHARED=/srv/qlab/shared                    in a kernel's environment: data.load and data.calibration take them from there

A mapped page is in memory once, whoever reads it, until somebody writes to it: then that kernel has a copy of this page. For a class on one
server (docs/classroom.md); without QLAB_SHARED nothing changes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from qlab import saving

NAME = "QLAB_SHARED"
SPLITS = ("train", "test")


def write(folder: str | os.PathLike) -> list[Path]:
    """Write train.safetensors, test.safetensors and sha256.json, all or none; the paths.

    Each split holds images, float32 (n, 1, 28, 28), normalised, and labels, int64 (n,). Raises OSError, in one sentence, where they cannot
    be written.
    """
    from qlab.lab import data

    folder = saving.make_folder(folder)
    contents = {folder / f"{split}.safetensors": save(data.load(split)._asdict()) for split in SPLITS}
    known = {path.stem: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    contents[folder / "sha256.json"] = (json.dumps(known, indent=1) + "\n").encode()
    saving.write(contents)
    return list(contents)


def read(split: str) -> dict[str, torch.Tensor] | None:
    """The images and labels of "train" or "test", mapped, from the folder that QLAB_SHARED names; None where it names none that holds them.

    Raises ValueError where a file is damaged: another sha256 than was written beside it.

    >>> read("test") is None or sorted(read("test")) == ["images", "labels"]
    True
    """
    if not there():
        return None
    folder = Path(os.environ[NAME])
    path = folder / f"{split}.safetensors"
    known = json.loads(saving.read(folder / "sha256.json"))
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known.get(split) != found:
        raise ValueError(f"{path} is damaged (wrong sha256): write it again, python -m qlab.lab.shared {folder}, or unset {NAME}.")
    return load_file(path)


def there() -> bool:
    """Whether QLAB_SHARED names a folder that holds them.

    >>> there() == (read("test") is not None)
    True
    """
    return bool(os.environ.get(NAME)) and Path(os.environ[NAME], "sha256.json").is_file()


def main(argv: list[str]) -> int:
    """Write the files to the one folder that is named, and say so; whoever is on the machine may read them."""
    if len(argv) != 1:
        raise SystemExit("qlab: name one folder: python -m qlab.lab.shared /srv/qlab/shared")
    os.umask(0o022)  # root's own may be stricter, and students read them
    try:
        for path in write(argv[0]):
            print(f"{path}, {path.stat().st_size:,} bytes")
    except (OSError, ValueError) as error:
        raise SystemExit(f"qlab: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
