"""Whose a hand-in is, and when it came: told by the outermost names, which the platform gave, and by what the platform says of them.

    canvas      the user's number; LATE. A group's hand-in has the name and number of the member whom Canvas takes for it
    moodle      the participant's number; the time, and a team's members, from the worksheet (module moodle) alone
    gradescope  e-mail, student id, created_at from submission_metadata.yml; of a group, each member
    nbgrader    the student's folder; timestamp.txt in the assignment's, whose time is UTC where it states no zone
    plain       the name of the file, zip or folder

Nothing below the outermost name is looked at, so no name, zip or timestamp.txt of a student's makes them somebody else, or makes them
earlier. Numbers decide, not names: one name with two numbers is two students. One number with two names is a name that somebody chose so
that it reads as another's: both are kept apart, without a number; and so is a name that may be read with two numbers (module canvas). A
time that nobody states is not known: files are as old as their download or clone, so their own times count only where the teacher says so
(file_times), and for plain folders alone. nbgrader's timestamp.txt is written by its submit, mostly as the student.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from qlab.grading.handed_in import canvas, teams
from qlab.grading.handed_in.files import File, kind_of, shown, stem_of
from qlab.grading.handed_in.layouts import MOODLE, Layout, is_hand_in, others_notebook
from qlab.grading.handed_in.moodle import Participant
from qlab.grading.handed_in.teams import cleaned, lookalike
from qlab.grading.handed_in.times import YEARS, parse_time, possible


@dataclass(frozen=True)
class Owner:
    """Whom a file belongs to; files with one key are one student's."""

    key: tuple
    name: str
    platform: str = "plain"
    number: str = ""
    email: str | None = None
    time: float | None = None     # of the hand-in, where somebody who can be trusted says it
    late: bool | None = None      # likewise
    order: int = 0                # the platform's own number of the upload: the higher, the later
    note: str = ""                # for the teacher


def late(owner: Owner, deadline: datetime | None, extended: bool = False) -> bool | None:
    """Whether it came after the deadline; None where that is not known. extended: a platform's mark may speak of an earlier deadline.

    >>> deadline = datetime(2026, 11, 23, 18, tzinfo=UTC)
    >>> [late(Owner((), "ada", time=when), deadline) for when in (deadline.timestamp(), deadline.timestamp() + 1, None)]
    [False, True, None]
    """
    if owner.late is not None and not (owner.late and extended):
        return owner.late
    return False if deadline is None else None if owner.time is None else owner.time > deadline.timestamp()


def owners(found: list[File], layout: Layout, assignment: str, participants: Mapping[str, Participant] | None = None,
           file_times: bool = False, users: Collection[str] | None = None) -> list[tuple[Owner, ...]]:
    """For each file those whose it is; nobody for what no student handed in.

    participants: of Moodle's worksheet. file_times: plain files are as old as they say. users: the numbers of all of Canvas's users.
    """
    stamps = _stamps(found, layout) if layout.name == "nbgrader" else {}
    folders = _moodles(found, layout) if layout.name == "moodle" else []
    hidden = _hidden(folders)
    groups = teams.groups_of(folders, {one.group for one in participants.values() if one.group}) if participants else {}
    whose = [_owners(file, layout, assignment, stamps, participants, groups, hidden, file_times, users) for file in found]
    return _told_apart(whose, hidden) if layout.name in ("canvas", "moodle") else whose


def _owners(file: File, layout: Layout, assignment: str, stamps: dict, participants: Mapping[str, Participant] | None, groups: dict,
            hidden: str, file_times: bool, users: Collection[str] | None) -> tuple[Owner, ...]:
    depth = len(layout.root)
    if file.parts[:depth] != layout.root or len(file.parts) <= depth:
        return _nobodys(file)
    part, alone = file.parts[depth], len(file.parts) == depth + 1 and file.kind != "empty"
    if layout.name == "canvas" and (match := canvas.told(part, layout.anonymous)):
        return (_canvas(match, layout.anonymous, part, users),)
    if layout.name == "moodle" and (match := MOODLE.fullmatch(stem_of(part) if alone else part)):
        return _moodle(match, participants, groups, hidden)
    if layout.name == "gradescope" and (not alone or part in layout.people):
        return tuple(_gradescope(member, part) for member in layout.people.get(part) or [{}])
    if layout.name == "nbgrader" and not alone:
        time, note = stamps.get(file.parts[:depth + 2], (None, ""))
        return (Owner(("nbgrader", part), part, "nbgrader", time=time, note=note),)
    return _plain(file, layout, assignment, file_times)


def _nobodys(file: File) -> tuple[Owner, ...]:
    """What lies beside the students: nobody's, unless it cannot be read, and might hold a student's."""
    return (Owner(("path", *file.parts), file.parts[-1] if file.parts else ""),) if file.refused and file.parts else ()


def _plain(file: File, layout: Layout, assignment: str, file_times: bool) -> tuple[Owner, ...]:
    time, note = file.time if file_times else None, ""
    if time is not None and not possible(time):
        time, note = None, f"the time of {file.parts[-1] if file.parts else 'its file'} is not from {YEARS.start} to {YEARS.stop - 1}"
    if layout.student:
        return (Owner(("path",), layout.student, time=time, note=note),) if file.kind != "metadata" else ()
    depth = len(layout.root)
    if layout.name == "sections" and len(file.parts) > depth + 1:
        depth += 1
    alone = len(file.parts) == depth + 1 and file.kind != "empty"
    part = file.parts[depth]
    if alone and (not is_hand_in(file) or others_notebook(part, assignment)):
        return ()
    name = (stem_of(part) if alone or kind_of(part) == "archive" else "") or part
    before, named, after = name.partition(assignment) if alone else (name, "", "")
    name = (before + after).strip(" _-.") or name if named else name
    return (Owner(("path", *file.parts[:depth], name), name, time=time, note=note),)


def _canvas(match, anonymous: bool, part: str, users: Collection[str] | None) -> Owner:
    told = match.groupdict()
    late = bool(told["late"])
    if anonymous:
        return Owner(("canvas", "", told["name"]), told["name"], "canvas", late=late, order=int(told["upload"] or 0))
    (name, number, _), *others = readings = canvas.whose(part, users)
    order = max(int(upload or 0) for *_, upload in readings)
    if others:
        named = tuple((name, number) for name, number, _ in readings)
        why = " or ".join(f"{name} (user {number})" for name, number in named)
        note = f"its name may be that of {why}: whose it is, is to be seen on Canvas"
        return Owner(("canvas", "", named), name, "canvas", late=late, order=order, note=note)
    return Owner(("canvas", number), name or f"user {number}", "canvas", number, late=late, order=order)


def _gradescope(member: dict, folder: str) -> Owner:
    email, number = member.get("email", ""), member.get("sid", "")
    name = member.get("name") or folder
    key = ("gradescope", email.lower()) if email else ("gradescope", "", number) if number else ("gradescope", "", folder, name)
    return Owner(key, name, "gradescope", number, email or None, time=member.get("time"), note=member.get("note", ""))


def _moodle(match, participants: Mapping[str, Participant] | None, groups: dict, hidden: str) -> tuple[Owner, ...]:
    name, number = match["name"].strip() or "participant", match["number"] or ""
    if not number and (hidden_one := re.fullmatch("(participant) ([0-9]+)", name, re.IGNORECASE)):
        name, number = hidden_one.groups()
    if participants is None:
        return (Owner(("moodle", number) if number else ("moodle", "", name), name, "moodle", number),)
    fits = groups.get(_called(match), ())
    if len(fits) == 1:
        team = [one for one in participants.values() if one.group == fits[0]]
        return tuple(_participant(one, name) for one in sorted(team, key=lambda one: int(one.number)))
    person, ends = participants.get(number), [name[k:] for k in range(len(name)) if not k or name[k - 1] == "-"]  # Team-Full Name
    if person and not fits and (not person.name or cleaned(person.name) in map(cleaned, ends) or lookalike(name) == hidden):
        return (_participant(person, name),)
    why = f"the worksheet calls participant {number} {person.name}" if person else "it is not in the worksheet"
    if fits:
        told = " or ".join(map(shown, dict.fromkeys(fits)))
        why = f"it may be that of the group {told}" + (", and so may another folder" if len(set(fits)) == 1 else "")
        why += ": whose it is, is to be seen on Moodle"
    return (Owner(("moodle", number, name), name, "moodle", note=why),)


def _participant(person: Participant, name: str) -> Owner:
    return Owner(("moodle", person.number), person.name or name, "moodle", person.number, person.email, time=person.time)


def _called(match) -> tuple[str, str]:
    return match["name"].strip(), match["number"] or ""


def _moodles(found: list[File], layout: Layout) -> list[tuple[str, str]]:
    """Name and number of each that Moodle names."""
    depth = len(layout.root)
    outermost = {stem_of(file.parts[depth]) for file in found if len(file.parts) > depth}
    return sorted({_called(match) for name in outermost if (match := MOODLE.fullmatch(name))})


def _hidden(folders: Collection[tuple[str, str]]) -> str:
    """The name of all, where Moodle hides names: its word for a participant, in the language of whoever downloaded it."""
    names = {lookalike(name) for name, _ in folders}
    return next(iter(names)) if len(names) == 1 and len({number for _, number in folders}) > 1 else "participant"


def _stamps(found: list[File], layout: Layout) -> dict[tuple[str, ...], tuple[float | None, str]]:
    """nbgrader's folders of assignments: the time in the timestamp.txt of each, and a note where it holds none."""
    times = {}
    for file in found:
        if file.parts[-1:] == ("timestamp.txt",) and len(file.parts) == len(layout.root) + 3 and file.content:
            try:
                times[file.parts[:-1]] = parse_time(file.content.decode("utf-8-sig", "replace"), UTC).timestamp(), ""
            except ValueError as error:
                times[file.parts[:-1]] = None, f"when it came is not known: timestamp.txt: {error}".rstrip(".")
    return times


def _told_apart(whose: list[tuple[Owner, ...]], hidden: str) -> list[tuple[Owner, ...]]:
    """Without a number, who shares it with another name; with it in the name, who shares a name that hides who they are."""
    names = defaultdict(set)
    for owner in {owner for of in whose for owner in of if owner.number}:
        names[owner.number].add(lookalike(owner.name))
    return [tuple(_told(owner, names[owner.number], hidden) if owner.number else owner for owner in of) for of in whose]


def _told(owner: Owner, names: set[str], hidden: str) -> Owner:
    if len(names) > 1:
        why = f"files of {len(names)} names have the number {owner.number}: whose it is, is to be seen on the platform"
        return replace(owner, key=(*owner.key, lookalike(owner.name)), number="", note=why)
    if owner.platform == "moodle" and lookalike(owner.name) == hidden:
        return replace(owner, name=f"{owner.name} {owner.number}")
    return owner
