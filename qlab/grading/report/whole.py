"""An export takes the place of the former one as a whole: who is killed while it is made leaves the former one as it was.

A file does so by one rename (`qlab.saving`). A folder is made beside its place; then the two change places, on Linux in one step
(renameat2 with RENAME_EXCHANGE, see its manual page), and the former one is removed.
"""

import ctypes
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from qlab import saving

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def files(contents: Mapping[Path, str | bytes]) -> None:
    """Write the files of an export that belong together, and the folders that they lie in. Raises OSError."""
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    saving.write({path: _bytes(content) for path, content in contents.items()})


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def folder(place: Path, contents: Mapping[str, str | bytes]) -> None:
    """Make a folder of nothing but these files ({"page.html": ..., "ada/results.json": ...}) in place of what was there.

    Raises OSError, in one sentence, if what was there is no folder, or if there is no room; it is then as it was.
    """
    if place.is_symlink() or place.exists() and not place.is_dir():
        raise OSError(f"cannot write {place}: it must be a folder, or nothing yet.")
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}.partial")  # results.alone_in removes what a killed run left
    beside.mkdir(parents=True)
    try:
        for name in contents:
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
        saving.write({beside / name: _bytes(content) for name, content in contents.items()})
        exchange(beside, place) if place.exists() else os.rename(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places. Raises OSError."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # no Linux, or a C library from before 2018
        failed = True
    if failed:  # a file system that cannot, as well: two steps, and the former one is there under another name between them
        aside = one.with_name(f"{one.name}.former")
        os.rename(other, aside)
        try:
            os.rename(one, other)
        except BaseException:
            os.rename(aside, other)
            raise
        os.rename(aside, one)
