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
    graded = {asked["id"]: found[asked["id"]]["score"] if asked["id"] in found else 0 if result["status"] == "unreadable" else None
              for asked in bundle["questions"]} | {"": result["score"]}
    said = {name: {"points": None if row.points is None else late.rounded(row.points), "graded": graded[name], "comment": row.comment}
            for name, row in sorted(rows.items())}
    questions = []
    for asked in bundle["questions"]:
        question, of_hand = found.get(asked["id"]), said.get(asked["id"])
        if of_hand and of_hand["points"] is not None:
            new = {"id": asked["id"], "points": asked["points"], "state": "by hand", **NOTHING}
            question = {**(question or new), "score": of_hand["points"]}
        questions += [{**question, "by_hand": of_hand} if of_hand else question] if question else []
    before, last = _points(rows, graded), "" in rows and rows[""].points is not None
    costs = None if before is None or last else _lateness(result["submission"], before, rule)
    if not rows and not costs:
        return result
    score = None if before is None else late.rounded(before - (costs.pop("exactly") if costs else 0))
    costs = costs and {**costs, "before": late.rounded(before), "after": score}
    by_rows = [{"question": name, **of_hand} for name, of_hand in said.items()]
    return {**result, "questions": questions, "score": score, "adjusted": {"score": score, "by_hand": by_rows, "late": costs}}


def _points(rows: dict[str, by_hand.Row], graded: dict[str, float | None]) -> Fraction | None:
    """The points before lateness; None where some are not known. graded: by question, and under "" the whole."""
    set_to = {name: row.points for name, row in rows.items() if row.points is not None}
    if not set_to or "" in set_to:
        return set_to.get("") if set_to else None if graded[""] is None else by_hand.exact(graded[""])
    points = [set_to.get(name, value) for name, value in graded.items() if name]
    return None if None in points else sum(map(by_hand.exact, points), Fraction(0))


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
