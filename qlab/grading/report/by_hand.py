"""Marks that a teacher sets by hand: results/ASSIGNMENT/overrides.csv, which the grader reads at every run and never writes.

    student,question,points,comment
    Ada Lovelace,q1,2,Right: the test was too strict about the dtype.
    bob@example.edu,q2,,Look at the lead-in again.
    17,,4.5,Shown at the blackboard.

A student is named as in the gradebook: by id, number, e-mail or name. A row with a question sets its points, or without points only adds
the comment; one without a question sets the points of the whole assignment, and from these nothing is subtracted for being late.
What the grader found stays in the result; a row that is taken out of the file no longer counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qlab.grading import results
from qlab.grading.handed_in import table
from qlab.grading.report.text import neutral

NAME = "overrides.csv"
COLUMNS = ("student", "question", "points", "comment")


@dataclass(frozen=True)
class Row:
    """One line of the file: question "" for the whole assignment; points None for a comment alone."""

    line: int
    student: str
    question: str
    points: Fraction | None
    comment: str


def read(path: Path, bundle: dict) -> list[Row]:
    """The rows of the file, none where there is no file. Raises ValueError: a sentence for each line that is wrong, a line each."""
    if not path.exists():
        return []
    most = {question["id"]: question["points"] for question in bundle["questions"]} | {"": results.max_score(bundle)}
    rows, wrong = [], []
    for line, fields in table.read(path, COLUMNS):
        try:
            rows.append(Row(line, fields["student"], fields["question"], _points(fields, most), fields["comment"]))
        except ValueError as error:
            wrong.append(f"{path}: line {line}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return rows


def _points(fields: dict[str, str], most: dict[str, float]) -> Fraction | None:
    question, points = fields["question"], fields["points"]
    if not fields["student"]:
        raise ValueError("it names no student.")
    if question not in most:
        raise ValueError(f"there is no question {question!r}: choose among {', '.join(filter(None, most))}, or leave it empty for the "
                         "whole assignment.")
    comment = fields["comment"]
    if re.fullmatch("[+-]?[0-9]*", points) and re.fullmatch("[0-9]+", comment):  # 2,5 or ,5 in a table whose fields are apart by commas
        raise ValueError(f"points are {points or 'empty'} and the comment is {comment}: write {points or 0}.{comment} with a point, or "
                         f'"{points or 0},{comment}" in double quotes; a comment needs more than digits.')
    if not points:
        if not fields["comment"]:
            raise ValueError("it gives neither points nor a comment.")
        return None
    if not re.fullmatch(r"[+-]?[0-9]+([.,][0-9]{1,9})?", points):
        raise ValueError(f"points are {points[:60]!r}, and must be a number like 2 or 2.5.")
    value = Fraction(points.replace(",", "."))
    if not 0 <= value <= exact(most[question]):
        raise ValueError(f"points are {points}, and must be between 0 and {most[question]:g}.")
    return value


def exact(points: float) -> Fraction:
    """Points as they are written: 0.1 is one tenth.

    >>> exact(0.1) + exact(0.2) == exact(0.3)
    True
    """
    return Fraction(str(points))


def of_students(rows: list[Row], counts: list[dict], path: Path, elsewhere: Iterable[dict] = ()) -> dict[str, list[Row]]:
    """The rows of each result in counts, by its id. elsewhere: results of students who are not in this run; their rows are left alone.

    Raises ValueError, a line for each row whose student is unknown or one of several, or that speaks of what another row has settled.
    """
    known, others, given, wrong = _called(counts), _called(elsewhere), {}, []
    for row in rows:
        fits = known.get(table.same(row.student), set())
        if len(fits) > 1:
            wrong.append(f"{path}: line {row.line}: {row.student!r} fits {len(fits)} students: write the id, as in gradebook.csv.")
        elif fits:
            given.setdefault(*fits, []).append(row)
        elif table.same(row.student) not in others:
            wrong.append(f"{path}: line {row.line}: there is no student {row.student!r} among those who handed something in.")
    for of_one in given.values():
        for k, row in enumerate(of_one):
            wrong += [f"{path}: line {row.line}: {_settled(row, before)}" for before in of_one[:k] if _settled(row, before)][:1]
    if wrong:
        raise ValueError("\n".join(wrong))
    return given


def _called(made: Iterable[dict]) -> dict[str, set[str]]:
    """What a student may be called, and the ids of the results of those who are; no student's name is another one's id."""
    called, ids = {}, set()
    for result in made:
        who = result["submission"]
        ids.add(table.same(who["id"]))
        shown = neutral(who["student"])  # as in the gradebook
        for name in table.called(who["student"], who["number"], who["email"]) | ({table.same(shown)} if shown != who["student"] else set()):
            called.setdefault(name, set()).add(who["id"])
    return called | {name: {name} for name in ids}


def _settled(row: Row, before: Row) -> str:
    if row.question == before.question:
        what = row.question or "the whole assignment"
        return f"{row.student!r} has a row for {what} already, in line {before.line}."
    if row.points is not None and before.points is not None and "" in (row.question, before.question):
        return f"points of the whole assignment and of a question of it, in line {before.line}: give one or the other."
    return ""
