"""Until when a student could hand in: the deadline of all, or the one in a table of extensions (qlab grade --extensions FILE).

    student,deadline
    Ada Lovelace,2026-11-25T18:00
    bob@example.edu,2026-11-30 12:00 Europe/Berlin

A student is named as in the gradebook: by number, e-mail or name. An extension counts for lateness, and for which of several notebooks of
one student is the last in time. It is never earlier than the deadline of all.
"""

from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from qlab.grading.handed_in import table
from qlab.grading.handed_in.times import parse_time, stated


@dataclass(frozen=True)
class Deadlines:
    """common: the deadline of all, None where there is none; extended: (line in the file, student as written there, deadline)."""

    common: datetime | None = None
    extended: tuple[tuple[int, str, datetime], ...] = ()
    path: str = ""

    def of(self, name: str, number: str | None = None, email: str | None = None) -> tuple[datetime | None, bool]:
        """The deadline of a student, and whether it is an extended one.

        >>> from datetime import UTC
        >>> later = datetime(2026, 11, 25, tzinfo=UTC)
        >>> given = Deadlines(None, ((2, "Ada", later),))
        >>> given.of("ada", "17", None) == (later, True), given.of("Bob", "", None)
        (True, (None, False))
        """
        names = table.called(name, number, email)
        found = [when for _, student, when in self.extended if table.same(student) in names]
        return (max(found), True) if found else (self.common, False)

    def last(self) -> datetime | None:
        """The deadline after which nobody may hand in, None where there is none."""
        return max(filter(None, (self.common, *(when for _, _, when in self.extended))), default=None)

    def check(self, students: list[tuple[str | None, ...]]) -> list[str]:
        """A sentence for each extension of a student who handed nothing in. students: of each what `of` takes.

        Raises ValueError for an extension that may be one of several students', and for a student with several.
        """
        told, whose, names = [], {}, [table.called(*student) for student in students]
        for line, student, _ in self.extended:
            fits = [k for k, called in enumerate(names) if table.same(student) in called]
            if len(fits) > 1:
                raise ValueError(f"{self.path}: line {line}: {student!r} fits {len(fits)} students: write the number or e-mail.")
            if not fits:
                told.append(f"{self.path}: line {line}: {student!r} is nobody who handed something in.")
            elif (first := whose.setdefault(fits[0], line)) != line:
                raise ValueError(f"{self.path}: line {line}: {student!r} has a deadline in line {first} already: each student has one.")
        return told


def read(common: datetime | None, path: Path | None, zone: tzinfo | None = None) -> Deadlines:
    """The deadlines of a class; path: the table of extensions; zone: of its times that state none.

    Raises ValueError or FileNotFoundError in one sentence, with the line.
    """
    extended, seen = [], {}
    for line, row in table.read(path, ("student", "deadline")) if path else ():
        if not row["student"]:
            raise ValueError(f"{path}: line {line} names no student.")
        if (first := seen.setdefault(table.same(row["student"]), line)) != line:
            raise ValueError(f"{path}: line {line} gives {row['student']!r} a second deadline, after line {first}: each student has one.")
        try:
            when = parse_time(row["deadline"], zone)
        except ValueError as error:
            raise ValueError(f"{path}: line {line}: {error}") from None
        if common and when < common:
            raise ValueError(f"{path}: line {line} gives {row['student']!r} until {stated(when)}, and must give no less than all have, "
                             f"until {stated(common)}.")
        extended.append((line, row["student"], when))
    return Deadlines(common, tuple(extended), str(path or ""))
