"""Files that strangers handed in: what lies in a folder or a zip, read without following a link and without unpacking to disk.

Three rules. What cannot be read safely is refused before anything is parsed, with the reason, and the rest goes on. A zip is a folder
whose content is read in memory, entry by entry, each up to a limit, so no path in it can name a place on this machine. Names that begin
with a dot, __MACOSX and __pycache__ are what programs leave behind: nobody handed them in, and they are passed over.

A bomb is recognised by its table of contents, before a byte of it is unpacked: too many entries, too large a sum, or more than 100 MiB
that were packed more than a hundredfold.
"""

import io
import os
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MIB = 2**20
NOTEBOOK_BYTES = 20 * MIB
ARCHIVE_BYTES = 256 * MIB      # a zip that lies in a zip, as it is read into memory
ENTRIES = 10_000               # of one archive; of the archive that holds a whole class ten times as many
UNPACKED_BYTES = 2048 * MIB    # of one archive, all entries together
RATIO, RATIO_FROM = 100, 100 * MIB
DEPTH = 3                      # a class's zip of students' zips of zips
FOLDERS = 50                   # in one another, on the disk or in an archive
NAME = 255                     # characters of one name, as on a disk
SAVED_AS = (".ipynb.txt", ".ipynb.json")  # what browsers make of a notebook's name
METADATA = ("timestamp.txt", "submission_metadata.yml")  # nbgrader's and Gradescope's
LEFT_BEHIND = ("__MACOSX", "__pycache__")
CONTROLS = {c: "\ufffd" for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True)
class File:
    """One thing that was handed in.

    parts: its path below the place that was searched, a zip counting as a folder; time: of its last change, POSIX seconds, if known;
    kind: "notebook", "metadata", "other", or "empty" for an empty folder; content: bytes of the first two kinds;
    refused: why it is not read, "" if it is; ours: whether that lies in this machine (no permission, say) rather than in the file;
    zips: (how many parts lead to it, its own time) of each zip that the file lies in, from the outermost in.
    """

    parts: tuple[str, ...]
    time: float | None = None
    kind: str = "other"
    content: bytes | None = None
    refused: str = ""
    ours: bool = False
    zips: tuple[tuple[int, float | None], ...] = ()


def shown(name: str) -> str:
    """A file's name as text that can be stored and printed: no control characters, no change of direction, no half characters.

    >>> shown("ada\\n.ipynb"), shown("b\\udcfc.ipynb")
    ('ada\ufffd.ipynb', 'b\ufffd.ipynb')
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").translate(CONTROLS)


def kind_of(name: str) -> str:
    """What a file's name says it is: "notebook", "archive", "metadata" or "other".

    >>> kind_of("ADA.IPYNB"), kind_of("class.zip"), kind_of("timestamp.txt"), kind_of("report.pdf"), kind_of("ada.ipynb.txt")
    ('notebook', 'archive', 'metadata', 'other', 'notebook')
    """
    if name.lower().endswith(SAVED_AS):
        return "notebook"
    suffix = PurePosixPath(name).suffix.lower()
    return {".ipynb": "notebook", ".zip": "archive"}.get(suffix, "metadata" if name in METADATA else "other")


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND


def size_text(size: int) -> str:
    """A size that can be read.

    >>> size_text(21 * 2**20), size_text(500)
    ('21 MiB', '500 bytes')
    """
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size:,} bytes"


def _too_large(size: int, limit: int) -> str:
    return f"it has {size_text(size)}, and {size_text(limit)} are allowed" if size > limit else ""


def walk(place: Path, own: Iterable[Path] = ()) -> Iterator[File]:
    """Everything handed in at place (a folder, a zip or a notebook), in the order of the names; what is refused says why.

    own: folders below place that are the grader's own, results of an earlier run say, and nobody's hand-in.
    Raises FileNotFoundError if there is nothing at place, ValueError if it is neither of the three.
    """
    place = Path(place)
    if place.is_dir():
        yield from _folder(str(place), (), {os.path.realpath(folder) for folder in own})
    elif place.is_file() and kind_of(place.name) == "archive":
        with open(place, "rb") as stream:
            yield from _archive(stream, (), 0, ENTRIES * 10, None)
    elif place.is_file() and kind_of(place.name) == "notebook":
        yield from _regular(str(place), (shown(place.name),))
    elif place.exists():
        raise ValueError(f"{place} is neither a folder nor a zip nor a notebook (.ipynb).")
    else:
        raise FileNotFoundError(f"there is nothing at {place}.")


def _folder(folder: str, parts: tuple[str, ...], own: set[str]) -> Iterator[File]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield File(parts, refused=f"the folder cannot be read here: {error.strerror}", ours=True)
        return
    names = [name for name in names if not _left_behind(name)]
    if not names and parts:
        yield File(parts, kind="empty")
    for name in names:
        path, inner = os.path.join(folder, name), (*parts, shown(name))
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            yield File(inner, refused=f"it cannot be read here: {error.strerror}", ours=True)
            continue
        if stat.S_ISDIR(mode) and os.path.realpath(path) in own:
            continue
        if stat.S_ISDIR(mode) and len(inner) > FOLDERS:
            yield File(inner, refused=f"it lies more than {FOLDERS} folders deep")
        elif stat.S_ISDIR(mode):
            yield from _folder(path, inner, own)
        elif stat.S_ISLNK(mode):
            yield File(inner, refused="it is a symbolic link, and links are not followed")
        elif not stat.S_ISREG(mode):
            yield File(inner, refused="it is a device, a pipe or a socket, and not a file")
        else:
            yield from _regular(path, inner)


def _regular(path: str, parts: tuple[str, ...]) -> Iterator[File]:
    kind = kind_of(parts[-1])
    if kind == "other":
        yield File(parts)
        return
    try:
        # Whoever swaps the file for a link or a pipe after lstat gets an error or an empty file, not a wait.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(number, "rb") as stream:
            status = os.fstat(number)
            if kind == "archive":
                yield from _archive(stream, parts, 1, ENTRIES, UNPACKED_BYTES, ((len(parts), status.st_mtime),))
            elif why := _too_large(status.st_size, NOTEBOOK_BYTES):
                yield File(parts, status.st_mtime, kind, refused=why)
            else:
                yield File(parts, status.st_mtime, kind, stream.read(NOTEBOOK_BYTES))
    except OSError as error:
        yield File(parts, kind=kind if kind != "archive" else "other", refused=f"it cannot be read here: {error.strerror}", ours=True)


def _entry_name(entry: zipfile.ZipInfo) -> str:
    # Without the UTF-8 flag zipfile reads names as cp437, but most programs that omit the flag wrote UTF-8.
    if not entry.flag_bits & 0x800:
        try:
            return entry.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return entry.orig_filename


def inside(name: str) -> tuple[str, ...] | None:
    """The parts of an archive entry's name, or None if it leads out of the archive.

    >>> inside("ada/02.ipynb"), inside("../02.ipynb"), inside("/etc/passwd"), inside("C:\\\\02.ipynb")
    (('ada', '02.ipynb'), None, None, None)
    """
    name = name.replace("\\", "/")  # what Windows programs write
    parts = tuple(shown(part) for part in name.split("/") if part not in ("", "."))
    drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    return None if not parts or name.startswith("/") or drive or ".." in parts or "\0" in name else parts


def _entry_time(entry: zipfile.ZipInfo) -> float | None:
    try:
        return time.mktime((*entry.date_time, 0, 0, -1)) if entry.date_time[0] > 1980 else None  # 1980: not set
    except (ValueError, OverflowError):
        return None


def _bomb(entries: list[zipfile.ZipInfo], most: int, limit: int | None) -> str:
    unpacked, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if len(entries) > most:
        return f"it is refused as a zip bomb: it has {len(entries):,} entries, and {most:,} are allowed"
    if limit is not None and unpacked > limit:
        return f"it is refused as a zip bomb: it unpacks to {size_text(unpacked)}, and {size_text(limit)} are allowed"
    if unpacked > max(RATIO_FROM, RATIO * packed):
        return f"it is refused as a zip bomb: {size_text(packed)} unpack to {size_text(unpacked)}"
    return ""


def _archive(stream: io.BufferedIOBase, parts: tuple[str, ...], depth: int, most: int, limit: int | None,
             zips: tuple = ()) -> Iterator[File]:
    if depth > DEPTH:
        yield File(parts, refused=f"it is a zip inside of {DEPTH} others, and {DEPTH} are allowed")
        return
    try:
        archive = zipfile.ZipFile(stream)
        entries = archive.infolist()
    except Exception as error:  # noqa: BLE001  zipfile answers damage with many kinds of error
        yield File(parts, refused=f"it is no zip that can be read ({_say(error)})")
        return
    if why := _bomb(entries, most, limit):
        yield File(parts, refused=why)
        return
    named = [(_entry_name(entry), entry) for entry in entries if not entry.is_dir()]
    named = [(name, entry) for name, entry in named if not any(_left_behind(part) for part in inside(name) or ())]
    if not named and parts:
        yield File(parts, kind="empty")
    for name, entry in sorted(named, key=lambda pair: pair[0]):
        yield from _entry(archive, name, entry, parts, depth, zips)


def _entry(archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo, parts: tuple[str, ...], depth: int, zips: tuple) -> Iterator[File]:
    below = inside(name)
    if below is None:
        harmless = shown(name).replace("\\", "/").replace("/", "_").replace("..", "_").strip("_") or "entry"
        yield File((*parts, harmless), refused=f"its path leads out of the archive: {shown(name)}")
        return
    if len(below) > FOLDERS or max(map(len, below)) > NAME:
        cut = [part if len(part) <= NAME else f"{part[:NAME // 4]}...{part[-NAME // 4:]}" for part in below]
        cut = [cut[0], "...", cut[-1]] if len(cut) > FOLDERS else cut
        yield File((*parts, *cut), refused=f"its path has more than {FOLDERS} folders, or a name of more than {NAME} characters")
        return
    inner, kind = (*parts, *below), kind_of(below[-1])
    if stat.S_ISLNK(entry.external_attr >> 16):
        yield File(inner, refused="it is a symbolic link, and links are not followed")
        return
    if kind == "other":
        yield File(inner)
        return
    limit = ARCHIVE_BYTES if kind == "archive" else NOTEBOOK_BYTES
    file_kind = "other" if kind == "archive" else kind
    why = _too_large(entry.file_size, limit) or ("it is encrypted" if entry.flag_bits & 1 else "")
    if not why:
        try:
            with archive.open(entry) as unpacked:
                content = unpacked.read(limit)
        except Exception as error:  # noqa: BLE001
            why = f"it cannot be unpacked ({_say(error)})"
    if why:
        yield File(inner, kind=file_kind, refused=why)
    elif kind == "archive":
        yield from _archive(io.BytesIO(content), inner, depth + 1, ENTRIES, UNPACKED_BYTES, (*zips, (len(inner), _entry_time(entry))))
    else:
        yield File(inner, _entry_time(entry), kind, content, zips=zips)


def _say(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:200] or type(error).__name__
