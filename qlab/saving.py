"""Files written whole or not at all, several together or none: what every writer of qlab goes through.

    write          all contents into new files beside their places, then each takes its place by one rename
    read           the bytes of a file
    make_folder    a folder, and those that it lies in
    whole_folder   a folder with all that is in it, in the place of the one before

A rename replaces a file in one step, so a program that is killed leaves the old file or the new one, never half of one. It would also
replace a pipe or a symbolic link by a file without a word; such places are refused. Standard library only.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

_RENAMING = threading.Lock()  # files that belong together are renamed together: two threads' sets do not mix
_ZERO = "a path holds only characters that the system can write, and no zero."
_KINDS = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def write(contents: Mapping[str | os.PathLike, bytes], private: Collection[str | os.PathLike] = ()) -> None:
    """Write each content to its path: all of them or none. A new file has the permissions that open() would give, an old one keeps its.

    private: the paths of files that only their owner may read, whatever an old file allowed.

    Raises OSError, in one sentence, where a place cannot be written or holds what is no regular file (a folder, a symbolic link, a pipe,
    a device); whatever was there before is then still there, and nothing lies beside it. Threads and processes may write to one path at
    the same time: the file is then one of theirs. Of several files, threads see one set; processes must take turns.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write({f"{folder}/codes": b"1 2", f"{folder}/scale": b"0.5"})
    ...     sorted(os.listdir(folder)), read(f"{folder}/codes")
    (['codes', 'scale'], b'1 2')
    """
    contents, private = {Path(path): content for path, content in contents.items()}, {Path(path) for path in private}
    partial, old = ({path: _beside(path) for path in contents} for _ in range(2))
    renamed = []
    try:
        modes = {}
        for path in contents:
            modes[path] = _mode(path)
        for path, content in contents.items():
            _create(partial[path], content, 0o600 if path in private else modes[path])
        with _RENAMING:
            for path in contents if len(contents) > 1 else ():  # a single rename leaves nothing to take back
                _keep(path, old[path])
            for path in contents:
                renamed.append(path)
                os.replace(partial[path], path)
    except BaseException as error:  # Ctrl-C too
        for place in renamed if len(contents) > 1 else ():
            with contextlib.suppress(OSError):
                os.replace(old[place], place) if old[place].exists() else place.unlink()
        if isinstance(error, OSError) and error.errno:
            raise _told(error, f"cannot write {path} ({error.strerror}): {_reason(path, error.errno)}.") from None
        raise
    finally:
        _remove([*partial.values(), *old.values()])


def read(path: str | os.PathLike) -> bytes:
    """The bytes of a file. Raises OSError, in one sentence, where there is none, where it cannot be read or is no regular file."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise OSError(f"cannot read {path}: it is not a file.")                         # a pipe would wait for ever
        return path.read_bytes()
    except ValueError:
        raise OSError(f"cannot read {str(path)!r}: {_ZERO}") from None
    except OSError as error:
        if not error.errno:
            raise
        raise _told(error, f"cannot read {path} ({error.strerror}).") from None


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder, and those that it lies in; one that is there stays as it is. Raises OSError, in one sentence, where it cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_folder(f"{folder}/runs/today").is_dir()
    True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except ValueError:
        raise OSError(f"cannot make the folder {str(path)!r}: {_ZERO}") from None
    except OSError as error:
        there = next(folder for folder in path.parents if os.path.exists(folder))           # what is missing would lie in it
        why = "it is a file" if os.path.exists(path) else _reason(there / path.relative_to(there).parts[0], error.errno)
        raise _told(error, f"cannot make the folder {path} ({error.strerror}): {why}.") from None
    return path


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to write into, which takes the place of the one at path when all is written; where that fails, the former one stays.

    A link at path stays, and what it leads to is replaced. Raises OSError, in one sentence, where the folder cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in ("first", "second"):
    ...         with whole_folder(f"{place}/site") as new:
    ...             write({new / name: b""})
    ...     os.listdir(f"{place}/site")
    ['second']
    """
    target = Path(path).resolve()
    make_folder(target.parent)
    partial, old = (target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.{kind}") for kind in ("partial", "old"))
    try:
        yield make_folder(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else has; short, for the file's own may be as long as names can be."""
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}.partial"


def _mode(path: Path) -> int | None:
    """The permissions of the file that is there, None where there is none. Raises OSError for what is no file, or is write-protected."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    except ValueError:
        raise OSError(f"cannot write {str(path)!r}: {_ZERO}") from None
    if not stat.S_ISREG(mode):
        found = next((name for test, name in _KINDS if test(mode)), "a device")
        raise OSError(f"cannot write {path}: it is {found}, and must be a file, or nothing yet.")
    effective = os.access in os.supports_effective_ids                                      # whom open() would ask
    if not os.access(path, os.W_OK, effective_ids=effective):                               # open() would refuse it, a rename would not
        number = errno.EROFS if _read_only(path) else errno.EACCES
        raise OSError(number, os.strerror(number))
    return stat.S_IMODE(mode)


def _read_only(path: Path) -> bool:
    """Whether the file system is: os.access does not say why it refuses."""
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _create(place: Path, content: bytes, mode: int | None) -> None:
    first = 0o600 if mode == 0o600 else 0o666                                               # what is private is so from its first byte on
    with open(place, "xb", opener=lambda name, flags: os.open(name, flags, first)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())                                                             # a full quota may show only here
    if mode is not None and mode != stat.S_IMODE(place.stat().st_mode):
        place.chmod(mode)


def _keep(path: Path, place: Path) -> None:
    """The file at path under a second name, if there is one; as a copy where the file system has no second names."""
    if path.exists():
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def _remove(places: list[Path]) -> None:
    """Remove what there is of these; a Ctrl-C meanwhile takes effect when all are gone."""
    late = None
    while places:
        try:
            while places:
                with contextlib.suppress(OSError, ValueError):
                    places[-1].unlink()
                places.pop()
        except KeyboardInterrupt as error:
            late = error
    if late:
        raise late


def _told(error: OSError, sentence: str) -> OSError:
    told = type(error)(sentence)
    told.errno = error.errno                                                                # for programs; str() gives the sentence alone
    return told


def _reason(path: Path, number: int) -> str:
    folder = path.parent
    if number == errno.ENOENT and not folder.exists():
        return f"name a place that exists, for there is no folder {folder}"
    if number == errno.ENOTDIR:
        return f"name a place that exists, for {folder} is not a folder"
    if number in (errno.EACCES, errno.EPERM):
        return f"name a place that can be written, for this program has no permission to write {path.name} in {folder}"
    if number == errno.EROFS:
        return f"name a place that can be written, for {folder} is on a read-only file system"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"name a place that has room, for {folder} has none left for it"
    if number == errno.ENAMETOOLONG:
        return "name a place with a shorter name"
    return "name a place that exists, can be written and has room"
