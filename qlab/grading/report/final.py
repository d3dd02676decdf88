"""The points that a student ends with: the grader's, with what a teacher set by hand (by_hand), less what being late costs (late).

A result keeps what the grader found; under "adjusted" its file says what became of it and why. Exports read the results that `final`
returns: "score" and each question's are the final ones there, and "adjusted" and a question's "by_hand" tell where they come from.
"""

from collections.abc import Iterable
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from qlab.grading import results
from qlab.grading.report import by_hand, late, words

NOTHING = {"reason": "", "note": "", "failed_case": None, "public_failed": None, "answers_like": None}


def adjust(made: list[dict], bundle: dict, folder: Path, rows: list[by_hand.Row], rule: late.Penalty | None = None) -> list[dict]:
    """All results as they end, in their order; what changed is noted in their files. rows: of folder/overrides.csv, as by_hand reads them.

    Raises ValueError for a row that fits no student, and OSError if a file cannot be written; then nothing of it is exported.
    """
    counts = [result for result in made if result["submission"]["duplicate_of"] is None]
    names = {f"{result['submission']['id']}.json" for result in made}
    elsewhere = (result for path in sorted(folder.glob("*.json")) if path.name not in names and (result := results.read(path)))
    given = by_hand.of_students(rows, counts, folder / by_hand.NAME, elsewhere if rows else ())
    ended = []
    for result in made:
        told = {key: value for key, value in result.items() if key != "adjusted"}
        end = final(told, bundle, given.get(result["submission"]["id"], []), rule)
        kept = told | ({"adjusted": end["adjusted"]} if "adjusted" in end else {})
        if kept != result:
            results.write(folder / f"{result['submission']['id']}.json", results.to_json(kept))
        ended.append(end)
    return ended


def final(result: dict, bundle: dict, rows: Iterable[by_hand.Row] = (), rule: late.Penalty | None = None) -> dict:
    """One result with its final points; the same result where nothing was set by hand and nothing is subtracted."""
    if result["submission"]["duplicate_of"] is not None:
        return result
    rows = {row.question: row for row in rows}
    found = {question["id"]: question for question in result["questions"]}
    questions, points = [], []
    for asked in bundle["questions"]:
        row, question = rows.get(asked["id"]), found.get(asked["id"])
        graded = question["score"] if question else 0 if result["status"] == "unreadable" else None
        if row and (question or row.points is not None):
            question = {**(question or {"id": asked["id"], "points": asked["points"], "score": graded, "state": "by hand", **NOTHING}),
                        "by_hand": _said(row, graded)}
            if row.points is not None:
                question["score"] = late.rounded(row.points)
        questions += [question] if question else []
        points.append(row.points if row and row.points is not None else graded)
    whole = rows.get("")
    if whole and whole.points is not None:
        before = whole.points
    elif any(row.points is not None for row in rows.values()):
        before = None if None in points else sum((by_hand.exact(value) for value in points), Fraction(0))
    else:
        before = None if result["score"] is None else by_hand.exact(result["score"])
    costs = None if before is None or whole and whole.points is not None else _lateness(result["submission"], before, rule)
    if not rows and not costs:
        return result
    score = None if before is None else late.rounded(before - (costs["exactly"] if costs else 0))
    said = [{"question": name, **_said(row, found[name]["score"] if name in found else None if name or result["score"] is None else
                                       result["score"])} for name, row in sorted(rows.items())]
    costs = costs and {**{key: value for key, value in costs.items() if key != "exactly"}, "before": late.rounded(before), "after": score}
    return {**result, "questions": questions, "score": score, "adjusted": {"score": score, "by_hand": said, "late": costs}}


def _said(row: by_hand.Row, graded: float | None) -> dict:
    """What a row says, beside what the grader had said; points None for a comment alone."""
    return {"points": None if row.points is None else late.rounded(row.points), "graded": graded, "comment": row.comment}


def _lateness(who: dict, points: Fraction, rule: late.Penalty | None) -> dict | None:
    """What being late costs of so many points; None for who is in time, or of whom it is not known."""
    if rule is None or who["late"] is not True:
        return None
    if who.get("time") is None or who.get("deadline") is None:  # a platform's mark alone says not by how much
        return {"told": "late, by how much is not known: nothing is subtracted", "exactly": Fraction(0)}
    due = datetime.fromisoformat(who["deadline"])
    units = rule.units(Fraction(who["time"]) - Fraction(due.timestamp()))
    return {"told": rule.told(units) if units else "late, within the grace: nothing is subtracted", "handed_in": words.handed_in(who),
            "deadline": due.isoformat(" ", "seconds"), "exactly": rule.subtracted(points, units)}
