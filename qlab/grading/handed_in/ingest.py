"""Everything handed in for an assignment, a hand-in a student; each is read when its turn comes, and not before.

Who laid it out is decided once (module layouts), and with it whose each file is and when it came (owners); what lies in a hand-in is found
within one budget for each student (reading); one of its notebooks counts (which, handin). Two students of one name are both graded, and
both results say so. A student's deadline is that of all, or an extended one (deadlines).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from qlab.grading.handed_in import files, layouts, which
from qlab.grading.handed_in.deadlines import Deadlines
from qlab.grading.handed_in.files import File, stem_of
from qlab.grading.handed_in.handin import HandIn, Submission
from qlab.grading.handed_in.moodle import Participant
from qlab.grading.handed_in.owners import lookalike, owners
from qlab.grading.handed_in.zips import Budget


def hand_ins(place: Path, assignment: str, deadline: datetime | Deadlines | None = None, answers: which.Answers | None = None,
             tell: Callable[[str], None] = lambda sentence: None, own: Iterable[Path] = (), layout: str | None = None,
             participants: Mapping[str, Participant] | None = None, file_times: bool = False,
             budget: Callable[[], Budget] = Budget, users: Collection[str] | None = None) -> list[HandIn]:
    """What each student handed in at place (a folder, a zip, a notebook) for the assignment "02_linear_quantization", in a fixed order.

    Nothing is read yet: that is done by the read() of each. answers: as which.asked finds them, to tell which notebook counts; tell is
    given a sentence about what is passed over; own: the grader's own folders (files.walk); layout: where it cannot be told from the names
    (layouts.detect); participants, file_times, users: owners.owners; budget: what reading one of them may cost. Raises FileNotFoundError or
    ValueError if place holds nothing to grade.
    """
    found = list(files.walk(place, own))
    laid_out = layouts.detect(found, assignment, stem_of(Path(place).resolve().name), layout)
    _fits(laid_out, place, participants, file_times, users)
    depth = 0 if laid_out.student else len(laid_out.root) + 1 + (laid_out.name == "sections")
    whose = owners(found, laid_out, assignment, participants, file_times, users)
    deadlines = deadline if isinstance(deadline, Deadlines) else Deadlines(deadline)
    groups = defaultdict(list)
    for file, of in zip(found, whose):
        for owner in of:
            groups[owner.key].append((file, owner))
    turns, students = defaultdict(int), []
    for members in groups.values():
        if laid_out.name not in layouts.TITLES and all(file.kind == "metadata" for file, _ in members):
            continue
        name = members[0][1].name, tuple(file.parts for file, _ in members)
        notes = tuple(dict.fromkeys(owner.note for _, owner in members if owner.note))
        owner = members[0][1]
        until, extended = deadlines.of(owner.name, owner.number, owner.email)
        students.append(HandIn(owner, tuple(members), assignment, depth, until, answers or {}, turns[name], notes, extended, budget))
        turns[name] += 1
    _tell_passed_over(found, whose, tell)
    if said := layouts.hint(found, laid_out, assignment):
        tell(said)
    for sentence in deadlines.check([(one.owner.name, one.owner.number, one.owner.email) for one in students]):
        tell(sentence)
    if not students:
        unread = [file.refused for file in found if not file.parts and file.refused]  # the zip itself
        raise ValueError(f"{place}: {unread[0]}." if unread else f"{place} holds no notebook (.ipynb) of {assignment}.")
    return sorted(_with_namesakes(students), key=lambda hand_in: (hand_in.student.casefold(), hand_in.source, hand_in.turn))


def collect(*args, **options) -> list[Submission]:
    """The same, all of it read: of each student the submission that counts, and after it those set aside."""
    return [entry for hand_in in hand_ins(*args, **options) for entry in hand_in.read()]


def _fits(laid_out: layouts.Layout, place: Path, participants: Mapping[str, Participant] | None, file_times: bool,
          users: Collection[str] | None) -> None:
    """Raises ValueError if what is told beside the files does not belong to them."""
    if participants is not None and laid_out.name != "moodle":
        raise ValueError(f"a Moodle worksheet was given, and {place} is not laid out as Moodle does it.")
    if users is not None and laid_out.name != "canvas":
        raise ValueError(f"Canvas's gradebook was given, and {place} is not laid out as Canvas does it.")
    if file_times and laid_out.name in layouts.TITLES:
        raise ValueError(f"{place} is laid out as {layouts.TITLES[laid_out.name]} does it, and its files are as old as their download: "
                         "their times say nothing.")


def _tell_passed_over(found: list[File], whose: list, tell: Callable[[str], None]) -> None:
    nobodys = [file for file, of in zip(found, whose) if file.parts and not of]
    if others := [file.parts[-1] for file in nobodys if file.kind == "notebook"]:
        what = "1 notebook" if len(others) == 1 else f"{len(others)} notebooks"
        tell(f"passed over: {what} with another assignment's number: {', '.join(list(dict.fromkeys(others))[:5])}")
    if loose := [file.parts[0] for file in nobodys if file.kind == "other" and len(file.parts) == 1]:
        what = "1 file that is" if len(loose) == 1 else f"{len(loose)} files that are"
        tell(f"passed over: {what} neither a notebook nor a zip: {', '.join(loose[:5])}")


def _with_namesakes(students: list[HandIn]) -> list[HandIn]:
    named = defaultdict(list)
    for entry in students:
        named[lookalike(entry.student)].append(entry)
    told = []
    for same in named.values():
        first = sorted(same, key=lambda entry: entry.source)[:6]
        for entry in same:
            others = ", ".join([other.source for other in first if other is not entry][:5])
            note = (f"another student is called {entry.student} too: {others}",) if len(same) > 1 else ()
            told.append(replace(entry, notes=(*entry.notes, *note)))
    return told
