"""The notebooks of the course, as released, are trusted: Jupyter shows their stored outputs at once, and does not warn of them.

Jupyter trusts what its user has run or signed. It distrusts any other file, for a stored output may hold a script. The course's own outputs
come with the code that made them, so who runs the one may see the other; but only as they were released. `released.json` holds the SHA-256
of each, written when a notebook is refreshed or built; a notebook that anybody has changed since, or handed on, is not in it, and is
Jupyter's own affair.

    python -m qlab.lab.jupyter.released        writes released.json again, from the notebooks of this clone
"""

import hashlib
import json
from pathlib import Path

from qlab import saving

RELEASED = Path(__file__).parent / "released.json"
CLONE = Path(__file__).parents[3]
FOLDERS = ("notebooks", "exercises")


def digest(content: bytes) -> str:
    """SHA-256 of a text, whatever the ends of its lines: git may write them as Windows does.

    >>> digest(b"a\\r\\n") == digest(b"a\\n")
    True
    """
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def as_released(root: str | Path) -> list[Path]:
    """The notebooks below root, in notebooks/ and exercises/, that are byte for byte those that were released."""
    known = json.loads(RELEASED.read_text())
    paths = [Path(root) / name for name in known]
    return [path for path in paths if path.is_file() and digest(path.read_bytes()) in known.values()]


def trust(contents_manager) -> None:
    """Signs the released notebooks below the server's folder, as `jupyter trust` would. A failure is logged, and they stay untrusted."""
    import nbformat

    try:
        for path in as_released(contents_manager.root_dir):
            contents_manager.notary.sign(nbformat.v4.reads(path.read_text(encoding="utf-8")))
    except Exception:  # a full disk or a locked database must not keep the server from starting
        contents_manager.log.warning("The course's notebooks could not be marked as trusted.", exc_info=True)


def record(root: str | Path = CLONE) -> None:
    """Writes released.json from the notebooks below root."""
    paths = sorted(path for folder in FOLDERS for path in (Path(root) / folder).glob("*.ipynb"))
    known = {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in paths}
    saving.write({RELEASED: (json.dumps(known, indent=1) + "\n").encode()})


if __name__ == "__main__":
    record()
