"""One student's hand-in, and what becomes of it when its turn comes: the submission that counts, and those set aside, each with why."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from qlab.grading.handed_in import notebook, reading, which, zips
from qlab.grading.handed_in.files import SAVED_AS, File, stem_of
from qlab.grading.handed_in.layouts import names_assignment, own_name
from qlab.grading.handed_in.owners import Owner, late
from qlab.grading.handed_in.reading import Found

NOTES, LONGEST = 30, 300


@dataclass(frozen=True)
class Submission:
    """One notebook of one student. status is "" for one that counts and can be graded, else "unreadable" or "not graded" with a reason.

    id: names the result's file, made of the student's name and a hash of the path; number: the platform's for this student;
    late: None where it is not known; cells, version: as notebook.read returns them; duplicate_of: id of the submission of the same student
    that counts, None for that one.
    """

    id: str
    student: str
    source: str
    sha256: str = ""
    email: str | None = None
    number: str = ""
    platform: str = "plain"
    late: bool | None = False
    duplicate_of: str | None = None
    status: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    cells: tuple[dict, ...] = ()
    time: float | None = None
    entry: str = ""
    deadline: str | None = None
    extended: bool = False
    version: str | None = None

    def header(self) -> dict:
        """What a result file keeps of it."""
        names = ("id", "student", "email", "number", "platform", "source", "sha256", "late", "duplicate_of",
                 "time", "entry", "deadline", "extended", "version")
        return {name: getattr(self, name) for name in names}

    def read(self) -> list["Submission"]:
        """What HandIn.read returns, of one that has been read."""
        return [self]


@dataclass(frozen=True)
class HandIn:
    """What one student handed in for an assignment, not yet read: its files, each with the owner that it names.

    depth: how many parts of a path are not the student's own making; turn: tells two of one name apart whose files are the same; notes:
    remarks for the teacher; budget: makes what reading it may cost.
    """

    owner: Owner
    files: tuple[tuple[File, Owner], ...]
    assignment: str
    depth: int = 0
    deadline: datetime | None = None
    answers: which.Answers = field(default_factory=dict)
    turn: int = 0
    notes: tuple[str, ...] = ()
    extended: bool = False
    budget: Callable[[], zips.Budget] = zips.Budget

    @property
    def student(self) -> str:
        """The student's name."""
        return self.owner.name

    @property
    def source(self) -> str:
        """Where it lies."""
        parts = self.files[0][0].parts
        return "/".join(parts[:self.depth] or parts)

    def read(self) -> list[Submission]:
        """The submission that counts, and after it those set aside; whatever is wrong is its status and reason."""
        try:
            found, others = reading.notebooks([file for file, _ in self.files], self.answers, self.budget())
            return self._submissions(found, others)
        except zips.OverBudget as error:
            return [self._unread("unreadable", str(error))]
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on
            return [self._unread("not graded", f"the grader failed to read it: {zips.say(error)}")]

    def _submissions(self, found: list[Found], others: list[File]) -> list[Submission]:
        told = [(one, self._other_number(one)) for one in found]
        candidates = [one for one, number in told if not number]
        passed = [one for one, number in told if number]
        if not candidates and self.owner.platform in ("canvas", "moodle", "gradescope") and len({number for _, number in told}) == 1:
            candidates, passed = passed, []  # a platform says what it was handed in for
        if not candidates:
            status = "not graded" if any(file.ours for file in others) else "unreadable"
            return [self._unread(status, only(others + [one.file for one in passed], self.assignment))]
        ranks = [self._rank(one) for one in candidates]
        tied = [one for one, rank in zip(candidates, ranks) if rank == max(ranks)]
        if self._late(tied[0].upload):  # what came first; of what came together the newest, as always
            first = min(map(self._came, tied))
            tied = [one for one in tied if self._came(one) == first]
        chosen = max(tied, key=self._age)
        taken = Counter()
        counts = self._submission(chosen, taken)
        aside = [self._aside(one, rank, chosen, max(ranks), counts, taken) for one, rank in zip(candidates, ranks) if one is not chosen]
        return [replace(counts, notes=(*few((*counts.notes, *self._beside(chosen, candidates, passed))), *self.notes)), *aside]

    def _unread(self, status: str, reason: str) -> Submission:
        return self._made(self.source, 0, 0, status=status, reason=reason, notes=self.notes)

    def _made(self, source: str, upload: int, turn: int, **more) -> Submission:
        owner = self.files[upload][1]
        entry = self.files[upload][0].parts[self.depth - 1] if self.depth and owner.platform != "plain" else ""
        return Submission(ident(owner.name, source, 1000 * self.turn + turn), owner.name, source, email=owner.email, number=owner.number,
                          platform=owner.platform, late=late(owner, self.deadline, self.extended), time=owner.time, entry=entry,
                          deadline=self.deadline and self.deadline.isoformat(), extended=self.extended, **more)

    def _submission(self, one: Found, taken: Counter) -> Submission:
        source = "/".join(one.file.parts)
        taken[source] += 1  # a zip may hold one path twice
        status = "" if not one.reason else "not graded" if one.ours else "unreadable"
        name = one.file.parts[-1]
        if len(one.file.parts) == self.depth:
            name = own_name(name, self.owner.platform)
        notes = () if status else (*_named_otherwise(name, self.assignment), *_remarks(one, self.answers))
        return self._made(source, one.upload, taken[source] - 1, sha256=one.sha256, status=status, reason=one.reason, notes=notes,
                          cells=one.cells, version=one.version)

    def _late(self, upload: int) -> bool:
        return late(self.files[upload][1], self.deadline, self.extended) is True

    def _other_number(self, one: Found) -> str:
        """The number of the other assignment that a notebook is named after by its student, unless it holds this one's answer cells."""
        for part in reversed(one.file.parts[self.depth:][-2:]):
            if (says := names_assignment(stem_of(part), self.assignment)) is not None:
                held = () if says else one.answered[0]
                return "" if says or any(self.answers[name] for name in held) else re.match(r"\d+", part)[0]
        return ""

    def _rank(self, one: Found) -> tuple:
        held, done, anywhere = one.answered
        name = one.file.parts[-1]
        platform = self.owner.platform if len(one.file.parts) == self.depth else ""
        return (not one.reason, bool(done), not self._late(one.upload), not which.checkpoint(name), len(done), len(held), anywhere,
                which.named(name, self.assignment, platform))

    def _came(self, one: Found) -> float:
        """When it came; the files of one upload to a platform came together, whatever numbers it gave them."""
        time = self.files[one.upload][1].time
        return float("-inf") if time is None else time

    def _age(self, one: Found) -> tuple:
        file, owner = self.files[one.upload]
        times = owner.time, file.time, one.file.time  # a file's own only tells one student's own files apart
        return owner.order, *(float("-inf") if time is None else time for time in times), one.file.parts

    def _aside(self, one: Found, rank: tuple, chosen: Found, best: tuple, counts: Submission, taken: Counter) -> Submission:
        entry, instead = self._submission(one, taken), f"the same student's {counts.source} counts"
        if entry.reason:
            reason = f"{entry.reason}; {instead}"
        else:
            at = next((k for k, (mine, its) in enumerate(zip(rank, best)) if mine != its), len(best))
            late = self._late(one.upload) and self._came(one) != self._came(chosen)
            answers = f"it answers {best[4]} of {len(self.answers)} questions, this one {rank[4]}"
            cells = f"it holds {best[5]} of {len(self.answers)} answer cells, this one {rank[5]}"
            why = (None, answers, "this one is late", "this one is a checkpoint of Jupyter's", answers, cells,
                   "it defines more of the functions asked for", f"it is named {self.assignment}",
                   "it came first" if late else "it is newer")[at]
            if at == len(best) and self._age(one)[:-1] == self._age(chosen)[:-1]:
                why = "they are equally old, and its path comes last"
            reason = f"{instead}: {why}"
        return replace(entry, duplicate_of=counts.id, status=entry.status or "not graded", cells=(), notes=(), reason=reason)

    def _beside(self, chosen: Found, candidates: list[Found], passed: list[Found]) -> Iterable[str]:
        """What a teacher should know of the other notebooks."""
        if len(candidates) > 1:
            yield f"{len(candidates) - 1} more handed in by the same student: this one counts"
        done = set(chosen.answered[1])
        for one in candidates:
            if more := sorted(one.answered[1] - done):
                done |= one.answered[1]  # said once of each question
                yield f"{', '.join(more)}: answered in {'/'.join(one.file.parts)}, which is set aside; answers are not put together"
        if passed:
            names = list(dict.fromkeys(one.file.parts[-1] for one in passed))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"passed over in it: {len(passed)} with another assignment's number: {', '.join(names[:3])}{more}"


def few(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes that a teacher can read, however many and long a hand-in's names make them: NOTES of LONGEST characters, and how many more.

    >>> few(["a" * 400, "b"])[0][-5:], few("abc" * 20)[-1]
    ('a ...', 'and 30 more')
    """
    notes = [note if len(note) <= LONGEST else f"{note[:LONGEST - 4]} ..." for note in notes]
    return (*notes[:NOTES], *([f"and {len(notes) - NOTES} more"] if len(notes) > NOTES else []))


def ident(name: str, source: str, turn: int) -> str:
    """A submission's id: plain, and so long that nobody finds a name with another one's."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:34].strip("-") or "student"
    unique = f"{name}\0{source}" + (f"\0{turn}" if turn else "")
    return f"{slug}-{hashlib.sha256(unique.encode()).hexdigest()[:16]}"


def only(others: Iterable[File], assignment: str) -> str:
    """Why there is nothing to grade in a hand-in that holds no more than these files."""
    others = [file for file in others if file.kind not in ("empty", "metadata")]
    names = sorted({file.parts[-1] for file in others})
    if not names:
        return "it is empty"
    refused = next((file for file in others if file.refused), None)
    if refused and len(names) == 1:
        return refused.refused
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    why = f"; {refused.parts[-1]}: {refused.refused}" if refused else ""
    return f"there is no notebook of {assignment} in it, only {', '.join(names[:5])}{more}{why}"


def _remarks(one: Found, answers: which.Answers) -> Iterable[str]:
    held, _, anywhere = one.answered
    if held or anywhere or not any(answers.values()) or not any(cell["grade_id"] in answers for cell in one.cells):
        return notebook.remarks(one.cells, answers)
    return ["its answer cells define none of the functions that are asked for: it looks like another assignment's notebook"]


def _named_otherwise(name: str, assignment: str) -> Iterable[str]:
    if names_assignment(stem_of(name), assignment) is False:
        yield f"it has another assignment's name, {name}, and was handed in for this one"
    if not name.lower().endswith(".ipynb") or name.lower().endswith(SAVED_AS):
        yield f"it was saved as {name}, and read as a notebook"
