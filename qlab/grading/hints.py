"""What students may read of hidden tests once the deadline has passed: what a test that fails is about, and the mistake it looks like.

    qlab grade FOLDER --assignment 02 --deadline 2026-11-23T18:00 --export html --reveal hints

A hint is made of the author's words alone, the `about` of the first hidden case that fails, and the note of the wrong solution that answers
the hidden cases as the student does: never of inputs, expected values, calls or code. So `about` may hold no number, which might be one.
What only a teacher reads has the input itself, and no hint.
"""

import re
from datetime import UTC, datetime

NUMBER = re.compile(r"(?<![A-Za-z_\d])\d[\w.,]*")  # float32 and q1 are names
SHORTEST = 4  # letters of a text among the inputs: shorter ones stand in any sentence
TEACHERS = ("csv", "statistics", "pages", "similar")  # exports that no student sees


def gives_away(case: dict) -> str:
    """The first number but 0 and 1, or text among the inputs, that stands in what a case of a bundle is about; "" if it is fit to be read.

    >>> gives_away({"about": "float32: 1 row, nothing below 0", "inputs": {}}), gives_away({"about": "x is 3.", "inputs": {}})
    ('', '3')
    """
    for found in NUMBER.findall(case["about"]):
        if (number := found.rstrip(".,")) not in ("0", "1", "0.0", "1.0"):
            return number
    texts = [text for value in case["inputs"].values() for text in _texts(value)]
    return next((text for text in texts if len(text) >= SHORTEST and text in case["about"]), "")


def _texts(value: dict) -> list[str]:
    """All texts in a VALUE (see `values`)."""
    if value["t"] == "str":
        return [value["v"]]
    items = {"list": lambda: value["v"], "tuple": lambda: value["v"], "dict": lambda: [item for _, item in value["v"]]}
    return [text for item in items.get(value["t"], list)() for text in _texts(item)]


def allow(deadline: datetime | None, exports: list[str], now: datetime | None = None) -> None:
    """Raises ValueError, one sentence, unless the deadline is stated and has passed, and one of the exports is for students.

    >>> allow(datetime(2001, 9, 9, tzinfo=UTC), ["html"])
    """
    if not set(exports) - set(TEACHERS):
        raise ValueError("--reveal hints goes with an export for students: --export html, for instance.")
    if deadline is None:
        raise ValueError("--reveal hints is for after the deadline: state it with --deadline.")
    if (now or datetime.now(UTC)) <= deadline:
        raise ValueError(f"--reveal hints is for after the deadline, which is {deadline.isoformat(timespec='minutes')}: until then nothing "
                         "is revealed, and nothing was graded.")


def reveal(result: dict, bundle: dict) -> dict:
    """A result whose questions' `reason`, which every export shows to the student, goes on with the hint; others are as they were.

    >>> case = {"kind": "hidden", "about": "an odd shape", "inputs": {}}
    >>> question = {"id": "q1", "state": "failed", "reason": "A test fails.", "note": "", "failed_case": 0, "answers_like": "floor"}
    >>> reveal({"questions": [question]}, {"questions": [{"id": "q1", "cases": [case]}]})["questions"][0]["reason"]
    'A test fails. The hidden test that fails is about: an odd shape. The answers are those of a known mistake: floor.'
    """
    asked = {question["id"]: question["cases"] for question in bundle["questions"]}
    questions = [{**question, "reason": " ".join([question["reason"], *_hints(question, asked.get(question["id"], []))])}
                 for question in result["questions"]]
    return {**result, "questions": questions}


def _hints(question: dict, cases: list[dict]) -> list[str]:
    if question["state"] in ("passed", "missing") or question["note"].startswith("timeout: notebook"):  # it has failed no test of its own
        return []
    failed = [question, *question.get("groups", ())]
    places = dict.fromkeys(one["failed_case"] for one in failed if one["failed_case"] is not None)
    hidden = [cases[k] for k in places if k < len(cases) and cases[k]["kind"] == "hidden"]
    about = list(dict.fromkeys(case["about"] for case in hidden if case["about"] and not gives_away(case)))
    like = list(dict.fromkeys([question["answers_like"]] if question["answers_like"] else
                              [one["answers_like"] for one in failed if one["answers_like"]]))
    told = [f"The hidden test that fails is about: {about[0]}."] if len(about) == 1 else []
    told += [f"The hidden tests that fail are about: {'; '.join(about)}."] if len(about) > 1 else []
    return told + ([f"The answers are those of a known mistake: {'; '.join(like)}."] if like else [])
