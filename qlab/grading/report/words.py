"""What came of a submission in the words that its student reads: of each question, of what was set by hand, of being late."""

from datetime import UTC, datetime

from qlab.grading.report.text import clean


def comments(result: dict) -> list[str]:
    """What a student may read, a line a question, and one for what holds for all.

    >>> comments({"reason": "", "questions": [{"id": "q1", "score": 0, "points": 2, "reason": "A public test fails."}]})
    ['q1: 0 of 2. A public test fails.']
    """
    lines = [f"Your notebook could not be read: {result['reason']}."] if result["reason"] else []
    for question in result["questions"]:
        said = by_hand(question.get("by_hand"))
        lines.append(" ".join([f"{question['id']}: {question['score']:g} of {question['points']:g}.", *said, question["reason"]]).rstrip())
    late = (result.get("adjusted") or {}).get("late")
    return lines + of_all(result) + ([lateness(late)] if late else [])


def of_all(result: dict) -> list[str]:
    """What a teacher's rows say that stands at none of the questions shown.

    >>> said = [{"question": "", "points": 4, "graded": 3, "comment": ""},
    ...         {"question": "q2", "points": None, "graded": None, "comment": "Try."}]
    >>> of_all({"score": 4, "questions": [], "adjusted": {"by_hand": said}})
    ['All questions: Set by hand to 4; the grader gave 3.', 'q2: "Try."']
    """
    shown = {question["id"] for question in result["questions"]} if result.get("score") is not None else ()
    rows = (result.get("adjusted") or {}).get("by_hand", ())
    return [f"{row['question'] or 'All questions'}: {' '.join(by_hand(row))}" for row in rows if row["question"] not in shown]


def by_hand(row: dict | None) -> list[str]:
    """What a teacher's row says to the student: that the points were set by hand, and the comment in quotes, apart from what else is said.

    >>> by_hand({"points": 2, "graded": 0, "comment": "Right after all."})
    ['Set by hand to 2; the grader gave 0.', '"Right after all."']
    """
    if not row:
        return []
    said = [] if row["points"] is None else [f"Set by hand to {row['points']:g}; the grader gave {graded(row)}."]
    return said + ([f'"{row["comment"]}"'] if row["comment"] else [])


def lateness(late: dict) -> str:
    """What being late costs, in a sentence.

    >>> lateness({"told": "2 days late: 20 %", "before": 4, "after": 3.2, "deadline": "2026-11-23 18:00:00+00:00",
    ...           "handed_in": "2026-11-25 09:00:00+00:00"})
    'Handed in 2026-11-25 09:00:00+00:00, deadline 2026-11-23 18:00:00+00:00, 2 days late: 20 %. 4 points before, 3.2 after.'
    """
    if "handed_in" not in late:
        return f"Handed in {late['told']}."
    return (f"Handed in {late['handed_in']}, deadline {late['deadline']}, {late['told']}. {late['before']:g} points before, "
            f"{late['after']:g} after.")


def handed_in(who: dict) -> str:
    """When a submission came, in the zone of its deadline; "" where that is not known.

    >>> handed_in({"time": 1795629600.0, "deadline": "2026-11-23T18:00:00+01:00"})
    '2026-11-25 19:00:00+01:00'
    """
    zone = datetime.fromisoformat(who["deadline"]).tzinfo if who.get("deadline") else UTC
    return "" if who.get("time") is None else datetime.fromtimestamp(who["time"], zone).isoformat(" ", "seconds")


def deadline(who: dict) -> str:
    """Until when its student could hand in, and whether that is an extended deadline.

    >>> deadline({"deadline": "2026-11-23T18:00:00+01:00", "extended": True})
    '2026-11-23 18:00:00+01:00, extended'
    """
    when = datetime.fromisoformat(who["deadline"]).isoformat(" ", "seconds") if who.get("deadline") else ""
    return when + (", extended" if who.get("extended") else "")


def named(of: list[dict], most: int = 10) -> str:
    """The students of results by name, so many of them.

    >>> named([{"submission": {"student": name}} for name in ("Ada", "Bob\\n", "Cyd")], most=2)
    'Ada, Bob and 1 more'
    """
    names = [clean(" ".join(str(result["submission"]["student"]).split())) for result in of]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def graded(row: dict) -> str:
    """The points that the grader gave, of a row of what was set by hand.

    >>> graded({"graded": None}), graded({"graded": 2.5})
    ('nothing', '2.5')
    """
    return "nothing" if row["graded"] is None else f"{row['graded']:g}"
