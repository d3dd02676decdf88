"""What lies in one student's hand-in: its notebooks, those in zips and in zips of zips among them, within one budget for the whole.

A zip that goes over the budget is refused as a whole, and what was handed in beside it stands. Whatever the name says, bytes that begin
as a zip does are read as a zip.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

from qlab.grading.handed_in import files, notebook, which, zips
from qlab.grading.handed_in.files import File
from qlab.grading.handed_in.zips import Budget, OverBudget

DEPTH = 3  # a student's zip of zips of zips


@dataclass(frozen=True)
class Found:
    """A notebook, or something that should be one and cannot be read.

    file: whose parts lead to it through the zips; upload: which of the files handed in it lies in; sha256 of its bytes; cells: as
    notebook.cells_of returns them; answered: as which.answered finds it; version: as notebook.read finds it; reason: why there are no
    cells; ours: whether that lies in this machine.
    """

    file: File
    upload: int
    sha256: str = ""
    cells: tuple[dict, ...] = ()
    reason: str = ""
    ours: bool = False
    version: str | None = None
    answered: tuple[set[str], set[str], int] = (set(), set(), 0)


def notebooks(handed_in: list[File], answers: which.Answers, budget: Budget) -> tuple[list[Found], list[File]]:
    """The notebooks in the files of one hand-in, and the files that are none.

    Raises OverBudget if the files, zips left aside, are more than the budget allows.
    """
    found, others = [], []
    budget.spend(files=len(handed_in))
    for upload, file in sorted(enumerate(handed_in), key=lambda pair: (pair[1].kind == "archive", pair[0])):  # a bomb costs no notebook
        try:
            for one, why, ours, data in _in(file, budget, 0):
                if data is None and not why:
                    others.append(one)
                elif why and one.kind not in ("notebook", "archive"):
                    others.append(one)
                else:
                    budget.spend(notebooks=1)
                    found.append(_read(one, upload, why, ours, data, answers))
        except OverBudget as error:
            if file.kind != "archive":
                raise
            found = [one for one in found if one.upload != upload] + [Found(file, upload, reason=str(error))]
    return found, others


def _in(file: File, budget: Budget, depth: int) -> Iterator[tuple[File, str, bool, bytes | None]]:
    """What a file is or holds: (file, why it is not read, whether that lies in this machine, the bytes of a notebook or None)."""
    if file.refused or file.kind not in ("notebook", "archive", "json"):
        yield file, file.refused, file.ours, None
        return
    try:
        data = file.read(budget, budget.size + 1 if file.kind == "archive" else files.NOTEBOOK_BYTES)
    except OSError as error:
        yield file, f"it cannot be read here: {error.strerror}", True, None
        return
    except ValueError as error:
        yield file, str(error), False, None
        return
    if file.kind == "json" and files.NOTEBOOK not in data:
        yield file, "", False, None
    elif data.startswith(b"PK\x03\x04") or file.kind == "archive" and not _is_notebook(data):
        yield from _in_zip(file, data, budget, depth + 1)
    else:
        yield file, "", False, data


def _is_notebook(data: bytes) -> bool:
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and files.NOTEBOOK in data


def _in_zip(file: File, data: bytes, budget: Budget, depth: int) -> Iterator[tuple[File, str, bool, bytes | None]]:
    if depth > DEPTH:
        yield file, f"it is a zip inside of {DEPTH} others, and {DEPTH} are allowed", False, None
        return
    try:
        archive, table = zips.table(io.BytesIO(data), budget.files)
    except ValueError as error:
        yield file, str(error), False, None
        return
    budget.spend(files=len(table))
    for one in files.entries(archive, table, file.parts):
        yield from _in(one, budget, depth)


def _read(file: File, upload: int, why: str, ours: bool, data: bytes | None, answers: which.Answers) -> Found:
    if data is None:
        return Found(file, upload, reason=why, ours=ours)
    try:
        cells, version = notebook.read(data)
        answered = which.answered(cells, answers)
        return Found(file, upload, hashlib.sha256(data).hexdigest(), tuple(cells), version=version, answered=answered)
    except ValueError as error:
        return Found(file, upload, hashlib.sha256(data).hexdigest(), reason=str(error))
