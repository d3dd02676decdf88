"""What was handed in, and which of it counts.

Whose a notebook is, is told by its path (module owners). Two students of one name are both graded, and both results say so.

When: Canvas's LATE mark; Gradescope's created_at; nbgrader's timestamp.txt; else the file's own time, local where it has no zone, and
for what a student zipped the zip's, for the times in it are the student's to choose.
Which counts: the last one before the deadline; if all are late, the first late one, flagged as late. What cannot be read never
counts while something else of the same student can. Nothing is subtracted for being late: that is the teacher's to decide.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from qlab.grading.handed_in import files, notebook
from qlab.grading.handed_in.owners import Owner, gradescope_people, names_assignment, owners, platform_owners, stem_of


@dataclass(frozen=True)
class Submission:
    """One notebook of one student. status is "" for one that counts and can be graded, else "unreadable" or "not graded" with a reason.

    id: names the result's file, made of the student's name and a hash of the path; number: the platform's for this student;
    cells: as notebook.cells_of returns them; duplicate_of: id of the submission of the same student that counts, None for that one.
    """

    id: str
    student: str
    source: str
    sha256: str = ""
    email: str | None = None
    number: str = ""
    platform: str = "plain"
    late: bool = False
    duplicate_of: str | None = None
    status: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    cells: tuple[dict, ...] = ()

    def header(self) -> dict:
        """What a result file keeps of it."""
        names = ("id", "student", "email", "number", "platform", "source", "sha256", "late", "duplicate_of")
        return {name: getattr(self, name) for name in names}


def collect(place: Path, assignment: str, deadline: datetime | None = None, answers: Iterable[str] = (),
            tell: Callable[[str], None] = lambda sentence: None, own: Iterable[Path] = ()) -> list[Submission]:
    """Everything handed in at place (a folder, a zip, a notebook) for the assignment "02_linear_quantization", in a fixed order.

    answers: grade ids of the answer cells, for the remarks; tell is given a sentence about notebooks that are passed over; own: the
    grader's own folders (`files.walk`). Raises FileNotFoundError or ValueError if place holds nothing to grade; whatever is wrong with a
    submission is its status and reason.
    """
    found = [_read(file) for file in files.walk(place, own)]
    whose = owners([item.file for item in found], assignment)
    candidates, taken = defaultdict(list), Counter()
    for item, its_owners in zip(found, whose):
        for owner in its_owners:
            entry = _submission(item, owner, deadline, assignment, tuple(answers), taken)
            candidates[owner.key].append((owner, _when(owner, item.file), entry))
    for owner, entry in _without_notebook([item.file for item in found], whose, assignment):
        if owner.key not in candidates:
            candidates[owner.key].append((owner, None, entry))
    others = [item.file.parts[-1] for item, of in zip(found, whose) if item.file.kind == "notebook" and item.file.parts and not of]
    if others:
        what = "1 notebook" if len(others) == 1 else f"{len(others)} notebooks"
        tell(f"passed over: {what} with another assignment's number: {', '.join(list(dict.fromkeys(others))[:5])}")
    counted = {entry.source for group in candidates.values() for _, _, entry in group}
    loose = [item.file.parts[0] for item in found if item.file.kind == "other" and len(item.file.parts) == 1]
    if loose := [name for name in loose if name not in counted]:
        what = "1 file that is" if len(loose) == 1 else f"{len(loose)} files that are"
        tell(f"passed over: {what} neither a notebook nor a zip: {', '.join(loose[:5])}")
    if not candidates:
        unread = [item.reason for item in found if not item.file.parts and item.reason]  # the zip itself
        raise ValueError(f"{place}: {unread[0]}." if unread else f"{place} holds no notebook (.ipynb) of {assignment}.")
    chosen = [entry for group in candidates.values() for entry in _which_counts(group)]
    return sorted(_with_namesakes(chosen), key=lambda entry: (entry.student.casefold(), entry.source, entry.id))


def _without_notebook(found: list[files.File], whose: list, assignment: str) -> Iterable[tuple[Owner, Submission]]:
    """Those who handed in no notebook of this assignment: the outermost folders without one, and other files of a platform's name."""
    held = {file.parts[:k] for file, of in zip(found, whose) if of for k in range(len(file.parts) + 1)}
    people, there = gradescope_people(found), defaultdict(set)
    students = {owner.key[1:] for of in whose for owner in of if owner.key[0] == "path"}
    for file, of in zip(found, whose):
        if of or file.kind == "metadata" or not file.parts:
            continue
        folder = file.parts if file.kind == "empty" else file.parts[:-1]
        top = next((folder[:k] for k in range(1, len(folder) + 1) if folder[:k] not in held), None)
        if top and any(top[:k] in students for k in range(1, len(top))):
            continue
        if top or platform_owners(file.parts, people):
            there[top or file.parts] |= set() if file.kind == "empty" else {file.parts[-1]}
    for parts, names in there.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        reason = f"there is no notebook of {assignment} in it, only {', '.join(sorted(names)[:5])}{more}" if names else "it is empty"
        for owner in platform_owners((*parts, ""), people) or (Owner(("path", *parts), stem_of(parts[-1])),):
            source = "/".join(parts)
            yield owner, Submission(_id(owner.name, source, 0), owner.name, source, email=owner.email, number=owner.number,
                                    platform=owner.platform, late=bool(owner.late), status="unreadable", reason=reason)


# Which counts


def _id(name: str, source: str, turn: int) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:34].strip("-") or "student"
    unique = f"{name}\0{source}" + (f"\0{turn}" if turn else "")
    return f"{slug}-{hashlib.sha256(unique.encode()).hexdigest()[:16]}"  # so long that nobody finds a name with another one's id


@dataclass(frozen=True)
class _Item:
    file: files.File  # without its content, so that a class's notebooks are not all held in memory
    sha256: str = ""
    cells: tuple[dict, ...] = ()
    reason: str = ""


def _read(file: files.File) -> _Item:
    if file.kind != "notebook" or file.refused:
        return _Item(file, reason=file.refused)
    item = _Item(replace(file, content=None), hashlib.sha256(file.content).hexdigest())
    try:
        return replace(item, cells=tuple(notebook.cells_of(file.content)))
    except ValueError as error:
        return replace(item, reason=str(error))


def _submission(item: _Item, owner: Owner, deadline: datetime | None, assignment: str, answers: tuple[str, ...],
                taken: Counter) -> Submission:
    source = "/".join(item.file.parts)
    turn = taken[owner.name, source]  # a zip may hold one path twice
    taken[owner.name, source] += 1
    when = _when(owner, item.file)
    late = owner.late if owner.late is not None else deadline is not None and when is not None and when > deadline.timestamp()
    status = "" if not item.reason else "not graded" if item.file.ours else "unreadable"
    notes = () if status else (*_named_otherwise(item.file.parts[-1], assignment), *notebook.remarks(list(item.cells), list(answers)))
    return Submission(_id(owner.name, source, turn), owner.name, source, item.sha256, owner.email, owner.number, owner.platform, late,
                      None, status, item.reason, notes, item.cells)


def _named_otherwise(name: str, assignment: str) -> Iterable[str]:
    if names_assignment(stem_of(name), assignment) is False:
        yield f"it has another assignment's name, {name}, and was handed in for this one"
    if name.lower().endswith(files.SAVED_AS):
        yield f"it was saved as {name}, and read as a notebook"


def _when(owner: Owner, file: files.File) -> float | None:
    """When it was handed in, POSIX seconds."""
    if owner.time is not None:
        return owner.time
    return next((time for parts, time in file.zips if parts >= owner.depth and time is not None), file.time)


def _which_counts(group: list[tuple[Owner, float | None, Submission]]) -> list[Submission]:
    def order(member):
        owner, when, entry = member
        return owner.order, float("-inf") if when is None else when, entry.source, entry.id

    readable = [member for member in group if not member[2].status] or group
    in_time = [member for member in readable if not member[2].late]
    counts = (max(in_time, key=order) if in_time else min(readable, key=order))[2]
    others = [entry for _, _, entry in group if entry is not counts]
    told = (f"{len(others)} more handed in by the same student: this one counts",) if others else ()
    return [replace(counts, notes=counts.notes + told)] + [_set_aside(entry, counts) for entry in others]


def _set_aside(entry: Submission, counts: Submission) -> Submission:
    instead = f"the same student's {counts.source} counts"
    return replace(entry, duplicate_of=counts.id, status=entry.status or "not graded", cells=(),
                   reason=f"{entry.reason}; {instead}" if entry.reason else instead)


def _with_namesakes(entries: list[Submission]) -> list[Submission]:
    named = defaultdict(list)
    for entry in entries:
        if entry.duplicate_of is None:
            named[entry.student.casefold()].append(entry)
    told = {}
    for same in named.values():
        first = sorted(same, key=lambda entry: entry.source)[:6]
        for entry in same if len(same) > 1 else ():
            others = ", ".join([other.source for other in first if other is not entry][:5])
            told[entry.id] = f"another student is called {entry.student} too: {others}"
    return [replace(entry, notes=(*entry.notes, told[entry.id])) if entry.id in told else entry for entry in entries]
