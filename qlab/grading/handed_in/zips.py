"""Zips from strangers, read in memory: a path in them can name no place on this machine, and what they cost is bounded before it is spent.

A Budget is what one student's hand-in may cost, all its files and zips together. What a zip says of itself is not believed: bytes are
counted as they are unpacked, and a table of contents that is too long is not read. Some bombs are already known by their table: too many
entries, too large a sum, or more than 100 MiB that were packed more than a hundredfold. Python's zipfile refuses entries that overlap.
"""

import os
import time
import zipfile
from dataclasses import dataclass, field
from typing import BinaryIO

MIB = 2**20
UNPACKED_BYTES = 2048 * MIB    # of one zip, all entries together, as its table says
RATIO, RATIO_FROM = 100, 100 * MIB
DIRECTORY_BYTES = 2 * MIB      # of a table of contents
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # the others could ask for gigabytes to begin with
CONTROLS = {c: "\ufffd" for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


class OverBudget(Exception):
    """A hand-in costs more than it may; the text says what, in half a sentence."""


@dataclass
class Budget:
    """What may still be spent on one hand-in: bytes read and unpacked, files and entries seen, notebooks taken, seconds of the processor's
    time, which a busy machine does not shorten.

    >>> Budget(files=2).spend(files=3)
    Traceback (most recent call last):
    qlab.grading.handed_in.zips.OverBudget: the whole hand-in has more than 2 files
    """

    size: int = 256 * MIB
    files: int = 10_000
    notebooks: int = 200
    seconds: float = 20.0
    spent: dict = field(default_factory=lambda: {"size": 0, "files": 0, "notebooks": 0})
    start: float = field(default_factory=time.thread_time)

    def spend(self, size: int = 0, files: int = 0, notebooks: int = 0) -> None:
        """Takes note of what is about to be used; raises OverBudget if that is more than is left."""
        for name, more in (("size", size), ("files", files), ("notebooks", notebooks)):
            self.spent[name] += more
        if self.spent["size"] > self.size:
            raise OverBudget(f"the whole hand-in has more than {size_text(self.size)}, zips unpacked")
        for name in ("files", "notebooks"):
            if self.spent[name] > getattr(self, name):
                raise OverBudget(f"the whole hand-in has more than {getattr(self, name):,} {name}")
        if time.thread_time() - self.start > self.seconds:
            raise OverBudget(f"the whole hand-in takes more than {self.seconds:g} s to read")


def shown(name: str) -> str:
    """A file's name as text that can be stored and printed: no control characters, no change of direction, no half characters.

    >>> shown("ada\\n.ipynb"), shown("b\\udcfc.ipynb")
    ('ada\ufffd.ipynb', 'b\ufffd.ipynb')
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").translate(CONTROLS)


def size_text(size: int) -> str:
    """A size that can be read.

    >>> size_text(21 * 2**20), size_text(500)
    ('21 MiB', '500 bytes')
    """
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size:,} bytes"


def say(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return shown(" ".join(str(error).split()))[:200] or type(error).__name__


def unpacked(stream: BinaryIO, budget: Budget, limit: int) -> bytes:
    """All of a stream, at most limit bytes of it, counted as they come. Raises OverBudget."""
    chunks, left = [], limit
    while left and (chunk := stream.read(min(MIB, left))):
        budget.spend(size=len(chunk))
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _opened(path: str) -> BinaryIO:
    # Whoever swaps the file for a link or a pipe gets an error or an empty file, not a wait.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(path, flags), "rb")


def on_disk(path: str, budget: Budget, limit: int) -> bytes:
    """A file's bytes, at most limit of them; no link is followed. Raises OverBudget and OSError."""
    with _opened(path) as stream:
        return unpacked(stream, budget, limit)


class OnDisk:
    """A file, read from any place, that is not open between two reads: a class's zip, from which each student's files are taken in turn."""

    def __init__(self, path: str):
        self.path, self.at = path, 0

    def read(self, size: int = -1) -> bytes:
        with _opened(self.path) as file:
            file.seek(self.at)
            data = file.read(size)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        with _opened(self.path) as file:
            file.seek(self.at)
            self.at = file.seek(offset, whence)
        return self.at

    def tell(self) -> int:
        return self.at

    def seekable(self) -> bool:
        return True


class _Bounded:
    """A stream for zipfile that refuses to hand out more than limit bytes at once: only a table of contents asks for so many."""

    def __init__(self, stream: BinaryIO, limit: int):
        self.stream, self.limit, self.seek, self.tell, self.seekable = stream, limit, stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise OverBudget(f"its table of contents has {size_text(size)}, and {size_text(self.limit)} are allowed")
        return self.stream.read(size)


def table(stream: BinaryIO, entries: int, limit: int | None = UNPACKED_BYTES, directory: int = DIRECTORY_BYTES
          ) -> tuple[zipfile.ZipFile, list[tuple[str, zipfile.ZipInfo]]]:
    """A zip and its files, (name, entry), in the order of the names; folders are left out.

    entries, limit, directory: how many entries, bytes unpacked and bytes of the table of contents are allowed; without a limit a bomb among
    the entries is no reason against the others. Raises ValueError, whose text says in half a sentence why it is not read.
    """
    try:
        archive = zipfile.ZipFile(_Bounded(stream, directory))
        found = archive.infolist()
    except OverBudget as error:
        raise ValueError(f"it is refused as a zip bomb: {error}") from None
    except Exception as error:  # noqa: BLE001  zipfile answers damage with many kinds of error
        raise ValueError(f"it is no zip that can be read ({say(error)})") from None
    if why := _bomb(found, entries, limit):
        raise ValueError(f"it is refused as a zip bomb: {why}")
    return archive, sorted(((_name(entry), entry) for entry in found if not entry.filename.endswith("/")), key=lambda pair: pair[0])


def _bomb(entries: list[zipfile.ZipInfo], most: int, limit: int | None) -> str:
    whole, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if len(entries) > most:
        return f"it has {len(entries):,} entries, and {most:,} are allowed"
    if limit is None:
        return ""
    if whole > limit:
        return f"it unpacks to {size_text(whole)}, and {size_text(limit)} are allowed"
    return f"{size_text(packed)} unpack to {size_text(whole)}" if whole > max(RATIO_FROM, RATIO * packed) else ""


def content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget, limit: int) -> bytes:
    """One entry's bytes. Raises OverBudget, OSError, or ValueError whose text says in half a sentence why it is not read."""
    if entry.flag_bits & 1:
        raise ValueError("it is encrypted")
    if entry.compress_type not in PACKED:
        raise ValueError(f"it is packed in a way (number {entry.compress_type}) that is not read: pack it as an ordinary zip")
    if entry.file_size > limit:
        raise ValueError(f"it has {size_text(entry.file_size)}, and {size_text(limit)} are allowed")
    try:
        with archive.open(entry) as stream:
            return unpacked(stream, budget, limit)
    except OverBudget:
        raise
    except Exception as error:  # noqa: BLE001
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine's: damaged data have no number
        raise ValueError(f"it cannot be unpacked ({say(error)})") from None


def when(entry: zipfile.ZipInfo) -> float | None:
    """An entry's time, POSIX seconds, local as zips have it; None if it has none."""
    try:
        return time.mktime((*entry.date_time, 0, 0, -1)) if entry.date_time[0] > 1980 else None  # 1980: not set
    except (ValueError, OverflowError):
        return None


def _name(entry: zipfile.ZipInfo) -> str:
    # Without the UTF-8 flag zipfile reads names as cp437, but most programs that omit the flag wrote UTF-8.
    if not entry.flag_bits & 0x800:
        try:
            return entry.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return entry.orig_filename


def inside(name: str) -> tuple[str, ...] | None:
    """The parts of an entry's name, or None if it leads out of the archive.

    >>> inside("ada/02.ipynb"), inside("../02.ipynb"), inside("/etc/passwd"), inside("C:\\\\02.ipynb")
    (('ada', '02.ipynb'), None, None, None)
    """
    name = name.replace("\\", "/")  # what Windows programs write
    parts = tuple(shown(part) for part in name.split("/") if part not in ("", "."))
    drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    return None if not parts or name.startswith("/") or drive or ".." in parts or "\0" in name else parts
