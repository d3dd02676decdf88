"""Hand-ins out of students' homes, and feedback back into them.

    HOMES/ada/course/exercises/02_linear_quantization.ipynb  to  TO/submitted/ada/02_linear_quantization/, with a timestamp.txt
    results/02_linear_quantization/export/feedback/ID.html   to  HOMES/ada/course/feedback/02_linear_quantization.html

Who does this may read and write everything, and a student may put a link, a pipe or a folder in the way at any moment. So no path is
followed: each folder is opened inside the one before, a link never is, and what is read or written must lie in folders of the student's
own, and be the student's own file. The layout is nbgrader's, which qlab grade reads, lateness included.

The time is the inode's (st_ctime): the kernel sets it at every change, and no student can set it back, as they can the file's date.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from qlab import saving
from qlab.grading import results
from qlab.grading.handed_in import notebook
from qlab.grading.handed_in.files import NOTEBOOK_BYTES
from qlab.grading.handed_in.times import parse_time
from qlab.grading.handed_in.zips import size_text

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}")
COURSE, TRIES = "course", 3
if hasattr(os, "O_NOFOLLOW"):  # elsewhere this module can be imported, and `qlab collect` says what it needs
    FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without waiting for a pipe's other end


@dataclass(frozen=True)
class Taken:
    """What became of one student's hand-in, or of the feedback.

    status: "collected", "the same" (as was collected before), "newer" (and left where it is), "not begun", "nothing", "refused" with why;
    "given back", "there" (the same page was). owner: the number of the user whose file it is; time: POSIX seconds of its last change, by
    the kernel, as it was when what lies there was collected.
    """

    student: str
    status: str
    why: str = ""
    owner: int | None = None
    time: float | None = None
    size: int | None = None
    sha256: str = ""

    def late(self, deadline: datetime | None) -> float:
        """Seconds after the deadline; 0 where it is not late."""
        return max(0.0, self.time - deadline.timestamp()) if self.time and deadline else 0.0


class Refused(Exception):
    """Why a student's file or folder is left alone."""


def collect(homes: Path, names: Iterable[str], assignment: str, to: Path, course: str = COURSE, update: bool = False) -> list[Taken]:
    """Copy what each student has saved, and say what became of it; TO/.record/ASSIGNMENT.json keeps the same.

    A set in which a student has changed nothing is not begun, and not copied: it lies there since the course came. What was collected
    before stays as it is, unless update is set: then what a student has changed since takes its place, and the former copy goes into the
    folder .earlier beside it. A student whose copy cannot be written is refused. Raises OSError where TO or the record cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     os.makedirs(f"{place}/homes/ada/course/exercises")
    ...     [one.status for one in collect(Path(place, "homes"), ["ada"], "02_linear_quantization", Path(place, "collected"))]
    ['nothing']
    """
    made = not Path(to).exists()
    to = saving.make_folder(to)
    if made:
        to.chmod(0o700)
    path = saving.make_folder(to / ".record") / f"{assignment}.json"  # a name that the grader passes over without a word
    before = {entry["student"]: entry for entry in json.loads(saving.read(path))} if path.exists() else {}
    # Of what lies there the first record tells: who saves again later was in time, and who deletes it later has handed in.
    lies = {name for name, entry in before.items() if entry["status"] in ("collected", "the same", "newer")}
    after, taken = dict(before), []
    try:
        for name in names:
            copy = None if name in lies else _copied(to / "submitted" / name / assignment, name)
            one = _collect(Path(homes), name, assignment, to, course, update)
            if one.status != "collected" and copy:
                after[name] = asdict(replace(copy, owner=one.owner, time=one.time if copy.time is None else copy.time))
            elif one.status == "collected" or name not in lies:
                after[name] = asdict(one)
            taken.append(replace(one, time=after[name]["time"]) if one.status in ("the same", "newer") else one)
    finally:  # after Ctrl-C, too: without it, who saves again would be told late
        saving.write({path: (json.dumps([after[name] for name in sorted(after)], indent=1) + "\n").encode()}, private=[path])
    return taken


def _copied(place: Path, name: str) -> Taken | None:
    """What a copy that lies there tells of itself, where a run that was cut off left no record; None where there is no copy."""
    path, stamp = place / f"{place.name}.ipynb", place / "timestamp.txt"
    with contextlib.suppress(OSError):
        content, time = saving.read(path), None
        with contextlib.suppress(OSError, ValueError):
            time = parse_time(saving.read(stamp).decode(), UTC).timestamp()
        return Taken(name, "collected", time=time, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return None


def _collect(homes: Path, name: str, assignment: str, to: Path, course: str, update: bool) -> Taken:
    try:
        with _home(homes, name) as (home, owner), _inside(home, (course, "exercises"), owner) as folder:
            content, time = _read(folder, f"{assignment}.ipynb", owner)
    except FileNotFoundError:
        return Taken(name, "nothing")
    except Refused as why:
        return Taken(name, "refused", str(why))
    except OSError as error:
        return Taken(name, "refused", f"it cannot be read here: {error.strerror}")
    if _untouched(content):
        return Taken(name, "not begun", owner=owner)
    try:
        status = _keep(to / "submitted" / name / assignment, content, time, update)
    except OSError as error:
        return Taken(name, "refused", f"its copy fails: {str(error).rstrip('.')}")
    return Taken(name, status, owner=owner, time=time, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _untouched(content: bytes) -> bool:
    """Whether a set says what it said when it was released: its stamp is a hash of that (author.student.version). Outputs do not count."""
    with contextlib.suppress(Exception):  # whatever is wrong with a notebook, the grader tells
        version = notebook.read(content)[1]  # first, for it reads within limits
        cells = [(cell["cell_type"], cell["id"], "".join(cell["source"])) for cell in json.loads(content)["cells"]]
        said = json.dumps([cell for cell in cells if cell[2].strip()])  # JupyterLab adds an empty cell below the last one that is run
        return hashlib.sha256(said.encode()).hexdigest()[:12] == version
    return False


def _keep(place: Path, content: bytes, time: float, update: bool) -> str:
    """Write the copy and its time, unless one lies there that is not to be replaced; the status. Raises OSError."""
    path, stamp = place / f"{place.name}.ipynb", place / "timestamp.txt"
    if path.exists():
        former = saving.read(path)
        if former == content or not update:
            return "the same" if former == content else "newer"
        earlier = saving.make_folder(place / ".earlier" / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}")
        kept = {earlier / old.name: saving.read(old) for old in (path, stamp) if old.exists()}
        saving.write(kept, private=kept)
    saving.make_folder(place)
    when = f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S.%f} UTC\n"
    saving.write({path: content, stamp: when.encode()}, private=[path, stamp])
    return "collected"


def give_back(homes: Path, assignment: str, out: Path, course: str = COURSE, names: Iterable[str] | None = None) -> list[Taken]:
    """Write each student's page, of `qlab grade --export html`, into the folder feedback of the course, readable by that student alone.

    out: the results' folder; names: of these students alone. A page that is there and another goes on under its own date. Raises
    FileNotFoundError where nothing is graded or exported.
    """
    folder = Path(out) / assignment
    made = [result for path in sorted(folder.glob("*.json")) if (result := results.read(path))]
    pages = folder / "export" / "feedback"
    if not made or not pages.is_dir():
        raise FileNotFoundError(f"there are no pages in {pages}: make them with qlab grade ... --assignment {assignment} --export html.")
    of = {result["submission"]["student"]: result for result in made if result["submission"]["duplicate_of"] is None}
    chosen = sorted(of.keys() if names is None else of.keys() & set(names))
    return [_give_back(Path(homes), name, assignment, pages / f"{of[name]['submission']['id']}.html", course) for name in chosen]


def _give_back(homes: Path, name: str, assignment: str, page: Path, course: str) -> Taken:
    if not page.is_file():
        return Taken(name, "nothing")
    content = saving.read(page)
    try:
        with _home(homes, name) as (home, owner), _inside(home, (course,), owner) as folder:
            group = os.fstat(home).st_gid
            _make(folder, "feedback", owner, group)
            with _inside(folder, ("feedback",), owner) as feedback:
                status = "given back" if _put(feedback, f"{assignment}.html", content, owner, group) else "there"
        return Taken(name, status, owner=owner, size=len(content))
    except FileNotFoundError:
        return Taken(name, "refused", f"there is no folder {course} in that home")
    except Refused as why:
        return Taken(name, "refused", str(why))
    except OSError as error:
        return Taken(name, "refused", f"it cannot be written there: {error.strerror}")


@contextlib.contextmanager
def _home(homes: Path, name: str) -> Iterator[tuple[int, int]]:
    """An open home, and its owner's number."""
    import pwd  # Linux's and macOS's

    if not NAME.fullmatch(name):
        raise Refused("that is no user's name")
    with _open(os.open(homes, FOLDER & ~os.O_NOFOLLOW)) as all_homes, _inside(all_homes, (name,)) as home:
        owner = os.fstat(home).st_uid
        try:
            known = pwd.getpwnam(name).pw_uid
        except KeyError:  # no user of this system, as in a trial
            known = owner
        if known != owner:
            raise Refused(f"the home belongs to user {owner}, and {name} is user {known}")
        yield home, owner


@contextlib.contextmanager
def _inside(folder: int, parts: tuple[str, ...], owner: int | None = None) -> Iterator[int]:
    """A folder below an open one, opened step by step; each must belong to the owner. Raises Refused."""
    with contextlib.ExitStack() as stack:
        for part in parts:
            try:
                folder = stack.enter_context(_open(os.open(part, FOLDER, dir_fd=folder)))
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise Refused(f"{part} is a link or a file, and must be a folder") from None
                raise
            if owner is not None and os.fstat(folder).st_uid != owner:
                raise Refused(f"the folder {part} belongs to user {os.fstat(folder).st_uid}, and must be the student's, user {owner}")
        yield folder


@contextlib.contextmanager
def _open(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: int, name: str, owner: int) -> tuple[bytes, float]:
    """A student's file and the time of its last change; read again if it changed meanwhile. Raises Refused."""
    for _ in range(TRIES):
        try:
            opened = os.open(name, FILE, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Refused(f"{name} is a link or a socket, and must be a file") from None
            raise
        with _open(opened):
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{name} is a folder, a pipe or a device, and must be a file")
            if status.st_uid != owner:
                raise Refused(f"{name} belongs to user {status.st_uid}, and must be the student's own, user {owner}")
            with open(opened, "rb", closefd=False) as file:
                content = file.read(NOTEBOOK_BYTES + 1)
            if len(content) > NOTEBOOK_BYTES:
                raise Refused(f"{name} has {size_text(status.st_size)}, and {size_text(NOTEBOOK_BYTES)} are allowed")
            after = os.fstat(opened)
        if (status.st_ctime_ns, len(content)) == (after.st_ctime_ns, after.st_size):
            return content, after.st_ctime
    raise Refused(f"{name} was being written: collect it again")


def _make(folder: int, name: str, owner: int, group: int) -> None:
    """A folder for the owner alone, unless something of that name is there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
        with _inside(folder, (name,), os.geteuid()) as made:  # by its number: the name may be something else's by now
            _hand_over(made, owner, group)


def _hand_over(descriptor: int, owner: int, group: int) -> None:
    if os.geteuid() == 0:  # nobody else may, and whoever else gets here writes into a home of their own
        os.fchown(descriptor, owner, group)


def _put(folder: int, name: str, content: bytes, owner: int, group: int) -> bool:
    """Write a file for the owner alone, whole or not at all; another one of the name is kept under its date. Whether there was any need."""
    try:
        old = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        old = None
    with contextlib.suppress(Refused, OSError):
        if old and _read(folder, name, owner)[0] == content:
            return False
    partial = f".{name}.{secrets.token_hex(8)}.partial"
    try:
        with open(os.open(partial, NEW, 0o600, dir_fd=folder), "wb") as file:
            _hand_over(file.fileno(), owner, group)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if old:
            stem, _, ending = name.rpartition(".")
            kept = f"{stem}.{datetime.fromtimestamp(old.st_mtime, UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}.{ending}"
            os.link(name, kept, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
    return True
