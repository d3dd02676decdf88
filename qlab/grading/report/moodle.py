"""Moodle's grading worksheet: the one that was downloaded from the assignment, filled in, or one of our own in its form.

Moodle finds a student by the number at the end of Identifier, and the columns by their titles in the language of whoever uploads it
(mod/assign/feedback/offline/importgradeslib.php); it takes Grade and the feedback, and where Last modified (grade) is older than the mark
that Moodle has, only if one says so. Feedback comments is HTML, so the text in it is escaped, and a line's end is <br>.

Grade is in points of the assignment's maximum, which stands beside it (mod/assign/gradingtable.php, col_grademax; entitled "Maximum Grade",
in newer versions "Maximum grade") and is a whole number (lib/form/modgrade.php): 12 points of 12 beside a maximum of 100 are 12 %.
"""

import csv
import io
import re
from pathlib import Path

from qlab.grading.handed_in import table as teachers
from qlab.grading.report import text, words
from qlab.grading.report.summary import number as counted
from qlab.grading.report.text import markup_in_field, neutral

IDENTIFIER, GRADE, FEEDBACK = "Identifier", "Grade", "Feedback comments"
CHANGEABLE, MOST = "Grade can be changed", "Maximum Grade"
FORM = [IDENTIFIER, "Full name", "Email address", "Status", GRADE, MOST, "Last modified (grade)", FEEDBACK]


def table(scored: list[dict]) -> str:
    """A worksheet of all students, without one of Moodle's own."""
    rows = [FORM]
    for result in scored:
        who = result["submission"]
        rows.append([_identifier(who), who["student"], who["email"], "Submitted for grading", result["score"], result["max_score"], "",
                     told(result)])
    return text.table(rows)


def nobodys(scored: list[dict]) -> str:
    """What to say of those whom Moodle does not find in a worksheet of our own; "" if there are none."""
    without = [result for result in scored if not _identifier(result["submission"])]
    return (f", {len(without)} without Moodle's number, so that Moodle cannot import their rows (--moodle-worksheet finds them by e-mail "
            f"or name): {words.named(without)}") if without else ""


def _identifier(who: dict) -> str:
    return f"Participant {who['number']}" if who["platform"] == "moodle" and who["number"] else ""


def told(result: dict) -> str:
    """The field Feedback comments of one student."""
    return "<br>".join(map(markup_in_field, re.split("\r\n|[\r\n]", "\n".join(words.comments(result)))))


def filled(worksheet: Path, scored: list[dict]) -> tuple[str, str]:
    """Moodle's worksheet with Grade and Feedback comments filled in, its rows and columns otherwise as they are; and what became of it.

    A student is found by Moodle's number, or where the hand-in did not come from Moodle by e-mail, or by a name that only one has. A row
    of nobody who was graded, or whose grade Moodle says cannot be changed, stays as it is.
    Raises FileNotFoundError, or ValueError if it is no such worksheet, or its maximum grade is not the set's.
    """
    separator, rows = teachers.rows_of(worksheet, lambda head: {IDENTIFIER, GRADE} <= {name.strip() for name in head})
    if separator is None:
        raise ValueError(f"{worksheet} is no grading worksheet of Moodle: its first line must name the columns {IDENTIFIER} and {GRADE}, "
                         "as it does when Moodle's language is English.")
    head = [MOST if name.strip().lower() == MOST.lower() else name.strip() for name in rows[0][1]]
    lines = [fields + [""] * (len(head) - len(fields)) for _, fields in rows[1:] if any(fields)]
    at = {name: head.index(name) for name in (IDENTIFIER, "Full name", "Email address", GRADE, MOST, CHANGEABLE, FEEDBACK) if name in head}
    if MOST in at and scored:
        _same_most(worksheet, {fields[at[MOST]].strip() for fields in lines} - {""}, scored[0]["max_score"])
    found = _found([{name: fields[k].strip() for name, k in at.items()} for fields in lines], scored)
    done, locked = set(), 0
    for fields, result in zip(lines, found):
        for k, field in enumerate(fields):
            fields[k] = field if k == at[IDENTIFIER] or field == "-" else _kept(field)
        if result and CHANGEABLE in at and fields[at[CHANGEABLE]].strip().lower() == "no":
            locked += 1
        elif result:
            fields[at[GRADE]] = neutral(result["score"])
            if FEEDBACK in at:
                fields[at[FEEDBACK]] = neutral(told(result))
        if result:
            done.add(result["submission"]["id"])
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator).writerows([rows[0][1], *lines])
    missing = [result["submission"]["student"] for result in scored if result["submission"]["id"] not in done]
    said = [f"{len(done) - locked} of its {counted(len(lines), 'row')} filled in",
            *([f"{locked} that cannot be changed"] if locked else []),
            *([f"not in it: {len(missing)} of those graded: {', '.join(missing[:5])}"] if missing else [])]
    return stream.getvalue(), "; ".join(said)


def _same_most(worksheet: Path, found: set[str], most: float) -> None:
    others = sorted(one for one in found if not _same_number(one, most))
    if others:
        whole = "" if most == int(most) else " (Moodle takes only a whole number: let the set's points add up to one)"
        raise ValueError(f"{worksheet} has the maximum grade {', '.join(others)}, and the set has {most:g} points: in Moodle set the "
                         f"assignment's maximum grade to {most:g}{whole}, and download the worksheet again.")


def _found(rows: list[dict[str, str]], scored: list[dict]) -> list[dict | None]:
    """The result that each row of a worksheet is for."""
    by_number, by_email, by_name = {}, {}, {}
    for result in scored:
        who = result["submission"]
        if who["platform"] == "moodle":  # without a number, whose it is is to be seen there
            by_number.setdefault(who["number"] or None, []).append(result)
        else:
            by_email.setdefault(teachers.same(who["email"] or ""), []).append(result)
            by_name.setdefault(teachers.same(who["student"]), []).append(result)
    names = [teachers.same(row.get("Full name", "")) for row in rows]
    found = []
    for row, name in zip(rows, names):
        number = re.search(r"[0-9]*$", row[IDENTIFIER])[0]
        email = teachers.same(row.get("Email address", ""))
        fits = by_number.get(number) or email and by_email.get(email) or (names.count(name) == 1 and by_name.get(name)) or []
        found.append(fits[0] if len(fits) == 1 else None)
    return found


def _kept(field: str) -> str:
    """A field of the worksheet as it is, or harmless if a spreadsheet would run it: names and texts in it are the students' own."""
    return field if re.fullmatch(r"-?[0-9]+([.,][0-9]+)?", field) else neutral(field)


def _same_number(text: str, value: float) -> bool:
    try:
        return abs(float(text.replace(",", ".")) - value) < 0.005
    except ValueError:
        return False
