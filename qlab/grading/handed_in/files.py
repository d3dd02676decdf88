"""What was handed in, as the platform laid it out: a folder, or the zip of a class, file by file; nothing of it is read yet.

What cannot be read safely is refused with the reason, and the rest goes on. A zip that a student handed in is one file here, whatever is in
it: it is opened when its student's turn comes (module reading). Names that begin with a dot, __MACOSX and __pycache__ are what programs
leave behind: nobody handed them in, and they are passed over.

"""

import os
import re
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from qlab.grading.handed_in import zips
from qlab.grading.handed_in.zips import MIB, Budget, inside, shown, size_text

NOTEBOOK_BYTES = 20 * MIB
CLASS_ENTRIES, CLASS_TABLE_BYTES = 500_000, 64 * MIB  # of a class's zip, into which Gradescope unpacks those of its students
METADATA_BYTES = 64 * MIB      # all metadata files together, which are read at once
FOLDERS = 50                   # in one another, on the disk or in an archive
NAME = 255                     # characters of one name, as on a disk
SAVED_AS = (".ipynb.txt", ".ipynb.json")  # what browsers make of a notebook's name
PACKED = re.compile(r".+(?P<ending>\.(tar|7z|rar|gz|tgz|bz2|tbz2?|xz|txz|zst|z|cpio|lz4|lzma|cab|arj|iso|dmg))", re.IGNORECASE)
METADATA = {"timestamp.txt": 1024, "submission_metadata.yml": 20 * MIB}  # nbgrader's and Gradescope's, and how large they may be
LEFT_BEHIND = ("__MACOSX", "__pycache__")
NOTEBOOK = b'"nbformat"'      # what every notebook holds
LINK = "it is a symbolic link, and links are not followed"


@dataclass(frozen=True)
class File:
    """One thing that was handed in.

    parts: its path below the place that was searched, a class's zip counting as a folder; time: of its last change, POSIX seconds, if
    known; kind: as kind_of says, or "empty" for an empty folder; content: of metadata; refused: why it is not read, "" if it is; ours:
    whether that lies in this machine (no permission, say) rather than in the file; read: given a budget and a limit, gives the bytes;
    raises OSError for what lies in this machine, ValueError for what lies in the file.
    """

    parts: tuple[str, ...]
    time: float | None = None
    kind: str = "other"
    content: bytes | None = None
    refused: str = ""
    ours: bool = False
    read: Callable[[Budget, int], bytes] | None = None


def kind_of(name: str) -> str:
    """What a file's name says it is: "notebook", "json", "archive", "packed" (not a zip), "metadata" or "other".

    >>> [kind_of(name) for name in ("ADA.IPYNB", "ada.ipynb.txt", "ada.json", "class.zip", "ada.tar.gz", "timestamp.txt", "report.pdf")]
    ['notebook', 'notebook', 'json', 'archive', 'packed', 'metadata', 'other']
    """
    lower = name.lower()
    if lower.endswith((".ipynb", *SAVED_AS)):
        return "notebook"
    suffix = PurePosixPath(lower).suffix
    return {".zip": "archive", ".json": "json"}.get(suffix) or (
        "packed" if PACKED.fullmatch(name) else "metadata" if name in METADATA else "other")


def stem_of(part: str) -> str:
    """A name without the ending of a notebook or an archive.

    >>> [stem_of(name) for name in ("ada.ipynb", "ada.ipynb.txt", "ada.zip", "ada.tar.gz", "ada.pdf")]
    ['ada', 'ada', 'ada', 'ada', 'ada.pdf']
    """
    ended = re.compile(r"(.+?)(\.ipynb\.(txt|json)|\.(ipynb|json|zip))", re.IGNORECASE | re.DOTALL).fullmatch(part)
    if ended:
        return ended[1]
    return stem_of(part[:packed.start("ending")]) if (packed := PACKED.fullmatch(part)) else part.removesuffix(".tar")


def left_behind(name: str) -> bool:
    """Whether a program made a file or folder of this name for itself."""
    return name.startswith(".") or name in LEFT_BEHIND


def not_unpacked(name: str) -> str:
    """Why an archive that is no zip is refused."""
    return f"it is a {PACKED.fullmatch(name)['ending'].lower()} archive, and of archives only .zip is read"


def walk(place: Path, own: Iterable[Path] = ()) -> Iterator[File]:
    """Everything handed in at place (a folder, a zip or a notebook), in the order of the names; what is refused says why.

    A zip that is all there is counts as the class's. own: folders below place that are the grader's own, results of an earlier run say, and
    nobody's hand-in. Raises FileNotFoundError if there is nothing at place, ValueError if it is neither of the three.
    """
    place, looked_at = Path(place), Budget(METADATA_BYTES, sys.maxsize, sys.maxsize, float("inf"))
    real, kind = os.path.realpath(place), kind_of(place.name)
    if place.is_dir():
        found = list(_folder(str(place), (), {os.path.realpath(folder) for folder in own}))
        if len(found) == 1 and found[0].kind == "archive" and len(found[0].parts) == 1:
            path = next(name for name in os.listdir(place) if shown(name) == found[0].parts[0])
            found = _class(os.path.join(place, path), found[0].parts)
    elif place.is_file() and kind == "archive":
        found = _class(real, ())
    elif place.is_file() and kind in ("notebook", "json"):
        found = [replace(_regular(real, (shown(place.name),)), kind="notebook")]
    elif place.exists():
        raise ValueError(f"{place} is neither a folder nor a zip nor a notebook (.ipynb).")
    else:
        raise FileNotFoundError(f"there is nothing at {place}.")
    yield from (_looked_into(file, looked_at) for file in found)


def _looked_into(file: File, budget: Budget) -> File:
    """Metadata with its content; a .json file as a notebook, if it is one."""
    if file.kind not in ("metadata", "json") or file.refused:
        return file if file.kind != "json" else File(file.parts, file.time)
    try:
        content = file.read(budget, NOTEBOOK_BYTES)
    except (OSError, ValueError):
        return File(file.parts, file.time)
    if file.kind == "metadata":
        return replace(file, content=content)
    return replace(file, kind="notebook") if NOTEBOOK in content else File(file.parts, file.time)


def _folder(folder: str, parts: tuple[str, ...], own: set[str]) -> Iterator[File]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield File(parts, refused=f"the folder cannot be read here: {error.strerror}", ours=True)
        return
    names = [name for name in names if not left_behind(name)]
    if not names and parts:
        yield File(parts, kind="empty")
    taken = Counter()
    for name in names:
        taken[shown(name)] += 1  # names that no text can hold may look alike, and are not one student's
        path, inner = os.path.join(folder, name), (*parts, shown(name).replace("\ufffd", "\ufffd" * taken[shown(name)], 1))
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
            yield File(inner, refused=LINK)
        elif not stat.S_ISREG(mode):
            yield File(inner, refused="it is a device, a pipe or a socket, and not a file")
        else:
            yield _regular(path, inner)


def _regular(path: str, parts: tuple[str, ...]) -> File:
    try:
        status = os.lstat(path)
    except OSError as error:
        return File(parts, refused=f"it cannot be read here: {error.strerror}", ours=True)
    return _file(parts, status.st_mtime, status.st_size, partial(zips.on_disk, path))


def _file(parts: tuple[str, ...], time: float | None, size: int, read: Callable[[Budget, int], bytes]) -> File:
    kind = kind_of(parts[-1])
    if kind in ("packed", "other"):
        return File(parts, time, kind, refused=not_unpacked(parts[-1]) if kind == "packed" else "", read=read)
    limit = METADATA.get(parts[-1], NOTEBOOK_BYTES)
    why = f"it has {size_text(size)}, and {size_text(limit)} are allowed" if size > limit and kind != "archive" else ""  # of which: Budget
    return File(parts, time, kind, refused=why, read=read)


def _class(path: str, prefix: tuple[str, ...]) -> Iterator[File]:
    """What a class's zip holds."""
    try:
        archive, table = zips.table(zips.OnDisk(path), CLASS_ENTRIES, None, CLASS_TABLE_BYTES)
    except ValueError as error:
        yield File(prefix, kind="archive", refused=str(error))
    except OSError as error:
        yield File(prefix, kind="archive", refused=f"it cannot be read here: {error.strerror}", ours=True)
    else:
        yield from entries(archive, table, prefix)


def entries(archive: zipfile.ZipFile, table: list[tuple[str, zipfile.ZipInfo]], parts: tuple[str, ...]) -> Iterator[File]:
    """The files of a zip, which lies at parts."""
    table = [(name, entry) for name, entry in table if not any(left_behind(part) for part in inside(name) or ())]
    if not table and parts:
        yield File(parts, kind="empty")
    for name, entry in table:
        below = inside(name)
        if below is None:
            harmless = shown(name).replace("\\", "/").replace("/", "_").replace("..", "_").strip("_") or "entry"
            yield File((*parts, harmless), kind=kind_of(harmless), refused=f"its path leads out of the archive: {shown(name)}")
        elif len(below) > FOLDERS or max(map(len, below)) > NAME:
            cut = [part if len(part) <= NAME else f"{part[:NAME // 4]}...{part[-NAME // 4:]}" for part in below]
            cut = [cut[0], "...", cut[-1]] if len(cut) > FOLDERS else cut
            why = f"its path has more than {FOLDERS} folders, or a name of more than {NAME} characters"
            yield File((*parts, *cut), kind=kind_of(cut[-1]), refused=why)
        elif stat.S_ISLNK(entry.external_attr >> 16):
            yield File((*parts, *below), kind=kind_of(below[-1]), refused=LINK)
        else:
            yield _file((*parts, *below), zips.when(entry), entry.file_size, partial(zips.content, archive, entry))
