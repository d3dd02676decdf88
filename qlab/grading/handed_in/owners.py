"""Whose a notebook is, read off its path from the outermost folder in; a zip counts as a folder of its name. The first that fits:

    Moodle       Full Name_123_assignsubmission_file_/any.ipynb      kept apart by the participant's number
    Canvas       lastfirst_LATE_123_456_any-1.ipynb                  by the user's number, 123
    Gradescope   submission_123/any.ipynb + submission_metadata.yml  by e-mail or student id; of a group, each member
    nbgrader     submitted/student/assignment/NN.ipynb               by the student's folder
    plain        student/NN.ipynb or student.ipynb                   by the path

A plain file belongs to the student that the outermost folder with no other notebook is named after; in a folder of several, a file named
after the assignment to the folder's student, any other to the one it is named after itself. What names another assignment (03_log.ipynb
when 02 is graded) belongs to nobody, unless a platform says whose it is and all of that student's notebooks are named so: they were handed
in for this assignment, whatever their name. A folder that is nothing but a number names a student where the students' folders lie.
"""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo

from qlab.grading.handed_in import files

MOODLE = re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_(file|onlinetext)(_.*)?", re.DOTALL)
CANVAS = re.compile(r"(?P<name>[^_]+)_(?P<late>LATE_)?(?P<number>\d+)_(?P<upload>\d+)_.+", re.DOTALL)
GRADESCOPE = re.compile(r"submission_(?P<number>\d+)")
YAML_EVENTS = 1_000_000  # of all metadata files together, about ten seconds: those of a class have some hundred a student


@dataclass(frozen=True)
class Owner:
    """Whom a file belongs to; files with one key are one student's."""

    key: tuple
    name: str
    platform: str = "plain"
    number: str = ""
    email: str | None = None
    depth: int = 0                # how many parts of the path are not the student's own making: a zip below them is
    time: float | None = None     # of the hand-in, where the platform says it
    late: bool | None = None      # likewise
    order: int = 0                # the platform's own number of the upload: the higher, the later


def names_assignment(name: str, assignment: str) -> bool | None:
    """Whether a file or folder is named after the assignment: True, False for another assignment's name, None for neither.

    >>> [names_assignment(n, "02_linear") for n in ("02_linear (1)", "02", "02-mine", "03_log", "ada")]
    [True, True, True, False, None]
    """
    name, number = name.lower(), assignment.partition("_")[0]
    if name.startswith(assignment.lower()):
        return True
    if number.isdigit() and (match := re.match(r"(\d+)(?=[_ -]|$)", name)):
        return True if match[1] == number else False if len(match[1]) == len(number) else None
    return None


def stem_of(part: str) -> str:
    """A part of a path without the ending of a notebook or a zip.

    >>> stem_of("ada.ipynb"), stem_of("ada.ipynb.txt"), stem_of("ada.zip"), stem_of("ada.pdf")
    ('ada', 'ada', 'ada', 'ada.pdf')
    """
    if part.lower().endswith(files.SAVED_AS):
        part = PurePosixPath(part).stem
    return PurePosixPath(part).stem if files.kind_of(part) in ("notebook", "archive") else part


def owners(found: list[files.File], assignment: str) -> list[tuple[Owner, ...]]:
    """For each file those it belongs to; nobody for what is no notebook, or another assignment's."""
    people, times = gradescope_people(found), _times(found)
    shared = len(os.path.commonprefix([file.parts[:-1] for file in found]))
    could_be = [bool(file.parts) and (file.kind == "notebook" or bool(file.refused) and file.kind == "other") for file in found]
    others = [_other_number(file.parts, assignment, shared) if could else "" for file, could in zip(found, could_be)]
    platform = [platform_owners(file.parts, people) if could else () for file, could in zip(found, could_be)]
    numbers = defaultdict(set)  # of each student's notebooks
    for other, of in zip(others, platform):
        for owner in of:
            numbers[owner.key].add(other)
    wanted = [could and (not other or bool(of) and all(len(numbers[owner.key]) == 1 for owner in of))
              for could, other, of in zip(could_be, others, platform)]
    held = Counter(file.parts[:k] for file, want in zip(found, wanted) if want and not file.refused for k in range(len(file.parts)))
    return [(of or (_plain_owner(file.parts, assignment, times, held, sum(wanted) == 1, shared),)) if want else ()
            for file, of, want in zip(found, platform, wanted)]


def _other_number(parts: tuple[str, ...], assignment: str, shared: int) -> str:
    """The number of the other assignment that a file is named after, or else its folder; "" if neither is."""
    names = [stem_of(part) for part in reversed(parts[-2:])]
    if len(names) > 1 and names[1].isdecimal() and len(parts) - 2 in (0, shared):
        names.pop()  # a student with a number for a name
    name, says = next(((name, says) for name in names if (says := names_assignment(name, assignment)) is not None), ("", True))
    return "" if says else re.match(r"\d+", name)[0]


def platform_owners(parts: tuple[str, ...], people: dict) -> tuple[Owner, ...]:
    """Those whom a platform's naming says a path belongs to; people: as gradescope_people returns it."""
    # The outermost name decides: what a student puts into his own zip can claim nobody else's name.
    for k, part in enumerate(parts):
        name = stem_of(part)
        if match := MOODLE.fullmatch(name):
            return (Owner(("moodle", match["number"]), match["name"].strip(), "moodle", match["number"], depth=k + 1),)
        if match := CANVAS.fullmatch(part):
            return (Owner(("canvas", match["number"]), match["name"], "canvas", match["number"], depth=k + 1, late=bool(match["late"]),
                           order=int(match["upload"])),)
        if parts[:k + 1] in people or GRADESCOPE.fullmatch(name) and k < len(parts) - 1:
            return tuple(_gradescope_owner(member, name, k + 1) for member in people.get(parts[:k + 1]) or [{}])
    return ()


def _plain_owner(parts: tuple[str, ...], assignment: str, times: dict, held: Counter, only: bool, shared: int) -> Owner:
    """times: of the folders with nbgrader's timestamp.txt; held: how many notebooks of the assignment lie at or below a folder;
    only: nothing else was handed in; shared: how many outermost folders everything lies in."""
    platform, stamped = "plain", next((k for k in range(len(parts)) if parts[:k] in times), None)  # the outermost is nbgrader's own
    single = [k for k in range(1, len(parts)) if held[parts[:k]] <= 1 and not names_assignment(stem_of(parts[k - 1]), assignment)]
    zipped = next((k for k in range(shared, len(parts)) if files.kind_of(parts[k]) == "archive"), len(parts))  # whose names are a student's
    time = None if stamped is None or stamped > zipped else times[parts[:stamped]]
    if "submitted" in parts[:min(shared + 1, zipped, len(parts) - 2)]:
        at, platform = parts.index("submitted") + 2, "nbgrader"
    elif time is not None and stamped > 1:
        at, platform = stamped - 1, "nbgrader"
    elif single:  # of a batch of one the folder nearest to it, for the outer ones may be the course's
        at = single[-1] if only else single[0]
    elif names_assignment(stem_of(parts[-1]), assignment) or files.kind_of(parts[-1]) != "notebook":
        at = max((k for k in range(len(parts)) if not k or not names_assignment(stem_of(parts[k - 1]), assignment)), default=0)
    else:
        at = 0
    if at:
        return Owner(("path", *parts[:at]), stem_of(parts[at - 1]), platform, depth=at, time=time)
    stem = stem_of(parts[-1])
    before, named, after = stem.partition(assignment)
    name = (before + after).strip(" _-.") or stem if named else stem
    return Owner(("path", *parts[:-1], name), name, depth=len(parts), time=time)


def _times(found: list[files.File]) -> dict[tuple[str, ...], float]:
    """Folder: the time in nbgrader's timestamp.txt there; a file that holds no time is passed over."""
    times = {}
    for file in found:
        if file.kind == "metadata" and file.parts[-1] == "timestamp.txt" and not file.refused:
            try:
                times[file.parts[:-1]] = parse_time(file.content.decode("utf-8-sig", "replace")).timestamp()
            except ValueError:
                continue
    return times


def gradescope_people(found: list[files.File]) -> dict[tuple[str, ...], list[dict]]:
    """Gradescope's folder: those who handed it in. A metadata file inside of a hand-in is the student's own, and is not read."""
    people, left = {}, YAML_EVENTS
    told = [file for file in found if file.kind == "metadata" and file.parts[-1] == "submission_metadata.yml" and not file.refused]
    for file in sorted(told, key=lambda file: len(file.parts)):
        if not platform_owners(file.parts, people):
            entries, left = _gradescope(file.content, left)
            people |= {(*file.parts[:-1], name): members for name, members in entries.items()}
    return people


def _gradescope_owner(member: dict, folder: str, depth: int) -> Owner:
    email, number = member.get("email"), member.get("sid", "")
    name = member.get("name") or folder
    return Owner(("gradescope", email or number or folder), name, "gradescope", number, email, depth, member.get("time"))


def _gradescope(content: bytes, left: int) -> tuple[dict[str, list[dict]], int]:
    """Folder name: its submitters, each {"name", "email", "sid", "time"}; nothing for a file that is not what Gradescope writes, or has
    more than `left` YAML events. Second: how many of them are left."""
    import yaml

    loader, depth = getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    try:
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            left -= 1
            if depth > 20 or left < 0 or isinstance(event, yaml.AliasEvent):
                return {}, max(left, 0)  # brackets in brackets end the C loader, aliases of aliases unfold to any size
        loaded = yaml.load(content, Loader=loader)
        entries = {str(name): entry for name, entry in loaded.items() if isinstance(entry, dict)}
    except Exception:  # noqa: BLE001  whatever else it is, it is not Gradescope's
        return {}, left
    return {name: [_gradescope_member(member, entry.get(":created_at")) for member in _list(entry.get(":submitters"))]
            for name, entry in entries.items()}, left


def _list(value) -> list:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _gradescope_member(member: dict, created) -> dict:
    try:
        when = (created if isinstance(created, datetime) else parse_time(str(created))).timestamp()
    except ValueError:
        when = None
    told = {name: files.shown(str(member.get(f":{name}") or "")[:200]) for name in ("name", "email", "sid")}
    return {**told, "email": told["email"] or None, "time": when}


def parse_time(text: str) -> datetime:
    """A date and time with its zone: ISO 8601, nbgrader's "2026-11-23 18:00:00.5 Europe/Berlin"; without a zone this machine's is meant.

    Raises ValueError.

    >>> parse_time("2026-11-23 18:00:00 UTC").isoformat()
    '2026-11-23T18:00:00+00:00'
    """
    text = text.strip()
    day, zone = text, None
    if (words := text.rsplit(" ", 1))[-1][:1].isalpha() and len(words) == 2:
        day, zone = words
    try:
        when = datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", lambda m: "." + m[1].ljust(6, "0"), day))
        if not re.search(r"[T ]", day):
            raise ValueError("a date alone would be its first minute")
        return when.replace(tzinfo=ZoneInfo(zone)) if zone else when if when.tzinfo else when.astimezone()
    except (ValueError, OSError, KeyError, OverflowError):  # ZoneInfoNotFoundError is a KeyError
        given = files.shown(text)[:60]
        raise ValueError(f"{given!r} is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00.") from None
