"""The result files of a batch: results/ASSIGNMENT/ID.json, one a submission, each whole or not there.

A result is written by `qlab.saving`: whoever kills the grader at any moment finds results that are complete, and the next run goes on
with the rest. A result stands as long as the notebook's sha256 and the
bundle's digest are the ones it was made from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlab import saving
from qlab.grading.handed_in.handin import Submission

FORMAT = 1


def digest(bundle: dict) -> str:
    """sha256 of everything in a bundle but the digest itself."""
    rest = {key: value for key, value in bundle.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def max_score(bundle: dict) -> float:
    """The points that all questions of a bundle give together.

    >>> max_score({"questions": [{"points": 2}, {"points": 3}]})
    5
    """
    return sum(question["points"] for question in bundle["questions"])


def make(entry: Submission, bundle: dict, marks: dict | None = None, status: str = "", reason: str = "", seconds: float = 0.0) -> dict:
    """A submission's result; marks as mark.grade_notebook gives them, or None where there are none.

    status: "graded"; "unreadable": what was handed in is no notebook that can be run, 0 points; "not graded": no score.
    """
    status = status or entry.status or "graded"
    score = 0 if status == "unreadable" else None
    none = {"questions": [], "score": score, "max_score": max_score(bundle), "limits": {}, "stdout_tail": ""}
    return {"format": FORMAT, "assignment": bundle["assignment"], "submission": entry.header(), "bundle": bundle["digest"],
            "status": status, "reason": reason or entry.reason, "limit_seconds": bundle.get("seconds", {}), **_of_version(entry, bundle),
            **(marks or none),
            "seconds": round(seconds, 3)}


def _of_version(entry: Submission, bundle: dict) -> dict:
    """"version": whether the hand-in was made from the version of the set that it is graded by, as far as its stamp tells; and the notes.

    A stamp changes no mark: whoever forges one only hides that the questions may have been others.
    """
    if "version" not in bundle or entry.status:
        return {"version": "", "notes": list(entry.notes)}
    if entry.version is None:
        return {"version": "not known", "notes": [*entry.notes, "version not known: it has no stamp of the set that it was made from"]}
    if entry.version != bundle["version"]:
        told = f"it was made from another version of the set, {entry.version}; it is graded by version {bundle['version']}"
        return {"version": "another", "notes": [*entry.notes, told]}
    return {"version": "this", "notes": list(entry.notes)}


def stands(result: dict | None, entry: Submission, bundle: dict) -> bool:
    """Whether an earlier result is still this submission's: marked, of the same notebook, with the same bundle and limits of time."""
    return (result is not None and result["status"] == "graded" and not entry.status
            and result["submission"].get("sha256") == entry.sha256 and result.get("bundle") == bundle["digest"]
            and result.get("limit_seconds") == bundle.get("seconds", {}))


def renew(result: dict, entry: Submission, bundle: dict) -> dict:
    """An earlier result that stands, with what this run says of the hand-in: late or not, the notes."""
    return {**result, "submission": entry.header(), **_of_version(entry, bundle)}


def read(path: Path) -> dict | None:
    """A result file; None if there is none, or if it is damaged and must be made again."""
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(result, dict) and result.get("format") == FORMAT and isinstance(result.get("submission"), dict)
    return result if whole and {"status", "questions", "score", "max_score", "seconds"} <= result.keys() else None


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, and the folders that it lies in; raises OSError, after which the old file is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        saving.write({path: content.encode("utf-8") if isinstance(content, str) else content})
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None  # the short reason: it stands in a result


def to_json(result: dict) -> str:
    """The text of a result file: the same for the same result, ASCII, a line a value."""
    return json.dumps(result, indent=1, allow_nan=False) + "\n"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, keep other graders out of it, and remove what a killed one left half-written. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            import fcntl  # the sandbox needs Linux, so nothing is graded where this is missing
        except ImportError:
            fcntl = None
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back when the grader dies, however it dies
            except OSError:
                raise OSError(f"another qlab grade is at work in {folder}: wait for it, or name another folder with --out.") from None
        for partial in list(folder.rglob(".*.partial")):
            if partial.is_dir() and not partial.is_symlink():  # of an export
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
        yield
