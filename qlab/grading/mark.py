"""Marks: compares what a submission answered with what the bundle expects, and says why in words that give nothing hidden away.

    a question's score = its points if every public and every hidden case has the expected value, else 0
    a question with groups = the sum of the points of those groups of which every case has the expected value

`reason` and `public_failed` are for the student: they are made of the bundle's public cases, of what the submission answered before it was
told any hidden input, and of fixed sentences. `note`, `failed_answers` and `stdout_tail` are for the teacher alone.
"""

from collections.abc import Iterable
from fractions import Fraction

from qlab.grading import values
from qlab.grading.compare import compare
from qlab.grading.handed_in import definitions, which
from qlab.grading.sandbox import drive, slot

SECONDS = {"submission": 120.0, "cell": 30.0}  # unless a bundle, as a command has loaded it, says otherwise under "seconds"


def grade_notebook(sandbox, cells: list[dict], bundle: dict, total_seconds: float | None = None, cell_seconds: float | None = None) -> dict:
    """The marks of one notebook's cells ({"source", "grade_id", "grade"}), run in a sandbox (see `bwrap.Sandbox`).

    Cells with grade true, the student's copies of tests, are not run. Returns {"questions", "score", "max_score", "limits", "stdout_tail"},
    a question being {"id", "points", "score", "state", "reason", "note", "failed_case", "public_failed", "answers_like"} with state
    one of "passed", "failed", "error", "timeout", "killed" and "missing", and, where cases give points in groups, "groups": a list of
    {"name", "points", "score", "failed_case", "answers_like"}. total_seconds bounds the whole, cell_seconds each cell; without them,
    bundle["seconds"] or SECONDS does.
    Raises SandboxUnavailable or WorkerFailed where the submission cannot be graded: that is no mark of 0.
    """
    seconds = SECONDS | bundle.get("seconds", {})
    total_seconds, cell_seconds = total_seconds or seconds["submission"], cell_seconds or seconds["cell"]
    kept = [cell for cell in cells if not cell["grade"]]
    places = definitions.places(kept, which.asked(bundle))
    asked = [{"id": part, "seconds": question["seconds"], "cases": [question["cases"][k] for k in held],
              "after": places[question["answer_cell"]][0]} for question in bundle["questions"] for part, held in _parts(question)]
    with sandbox.lease() as start:
        transcript = drive.drive(start, [cell["source"] for cell in kept], asked, total_seconds, cell_seconds)
    questions = [_mark(question, kept, transcript) for question in bundle["questions"]]
    return {
        "questions": questions,
        "score": total(question["score"] for question in questions),
        "max_score": total(question["points"] for question in questions),
        "limits": sandbox.limits_that_hold,
        "stdout_tail": transcript.tail.decode(errors="replace"),
    }


def grade_trusted(cells: list[dict], bundle: dict) -> dict:
    """The same without a sandbox, in a plain process: only for notebooks of one's own."""
    return grade_notebook(slot.Trusted(), cells, bundle)


def total(points: Iterable[float]) -> float:
    """The exact sum of points as they are written: an int where it is whole.

    >>> total([0.1, 0.2]), total([2.5, 0.5])
    (0.3, 3)
    """
    exact = sum(Fraction(str(one)) for one in points)
    return int(exact) if exact.denominator == 1 else float(exact)


def _parts(question: dict) -> list[tuple[str, list[int]]]:
    """What the worker is asked for by itself, so that a loop in one group takes no time from another: names, and indices of cases."""
    held = {}
    for k in range(len(question["cases"])):
        held.setdefault(tuple(n for n, group in enumerate(question.get("groups", ())) if k in group["cases"]), []).append(k)
    return [(f"{question['id']}/{n}" if n else question["id"], places) for n, places in enumerate(held.values())]


def _mark(question: dict, cells: list[dict], transcript: drive.Transcript) -> dict:
    name, cases = question["id"], question["cases"]
    answers, fates = [None] * len(cases), {}
    for part, held in _parts(question):
        for place, k in enumerate(held):
            answers[k] = transcript.answers.get((part, place))
            fates |= {k: transcript.ended[part]} if part in transcript.ended else {}
    whys = [why_wrong(case, answer) for case, answer in zip(cases, answers)]
    order = sorted(range(len(cases)), key=lambda k: cases[k]["kind"] != "public")  # public ones first
    failed = next((k for k in order if whys[k]), None)
    fate = next((fates[k] for k in order if k in fates), None)
    groups = [_group(question, group, answers, whys, fates) for group in question.get("groups", ())]
    notes = _flags(transcript)
    public_failed = None
    if failed is None and fate is None:
        state, reason = "passed", "All tests pass."
    else:
        state, reason = _fate(question, cells, transcript, fate, answers, failed)
        if failed is not None:
            notes.insert(0, f"{cases[failed]['kind']} case {failed} ({cases[failed]['about'] or cases[failed]['call']}): {whys[failed]}")
            if cases[failed]["kind"] == "public" and answers[failed] is not None:
                public_failed = _shown(cases[failed], answers[failed], whys[failed])
        if fate:
            notes.insert(0, f"{fate[0]}: {fate[1] or ('out of time' if fate[0] == 'timeout' else 'it left Python')}")
        if groups and state != "missing":
            passed = sum(group["score"] > 0 for group in groups)
            reason += f" {passed} of the {len(groups)} parts of this question pass{'es' if passed == 1 else ''}."
    full = question["points"] if state == "passed" else 0
    return {
        "id": name,
        "points": question["points"],
        "score": total(group["score"] for group in groups) if groups else full,
        "state": state,
        "reason": reason,
        "note": "; ".join(notes),
        "failed_case": failed if state != "passed" else None,
        "failed_answers": {str(k): values.show(answers[k]) for k in sorted(_failed(failed, groups)) if answers[k] is not None},
        "public_failed": public_failed,
        "answers_like": None if state == "passed" else _like(question, answers, range(len(cases))),
        **({"groups": groups} if groups else {}),
    }


def _failed(failed: int | None, groups: list[dict]) -> set[int]:
    """The case that failed first, in the question and in each of its groups."""
    return {k for k in (failed, *(group["failed_case"] for group in groups)) if k is not None}


def _group(question: dict, group: dict, answers: list, whys: list[str], fates: dict) -> dict:
    """What a group of cases gives: its points if all of them pass, whatever the question's other cases do."""
    failed = next((k for k in group["cases"] if whys[k]), None)
    passed = failed is None and not any(k in fates for k in group["cases"])
    like = None if passed else _like(question, answers, group["cases"])
    return {"name": group["name"], "points": group["points"], "score": group["points"] if passed else 0, "failed_case": failed,
            "answers_like": like}


def why_wrong(case: dict, answer: dict | None) -> str:
    """"" if the answer is the expected one, else one sentence."""
    if answer is None:
        return "it gave no answer."
    if case["raises"]:
        right = answer["t"] == "error" and case["raises"] in (answer["type"], *answer["bases"])
        return "" if right else f"expected {case['raises']}, got {values.show(answer)}."
    return compare(answer, case["expect"], case["tol"], case["dtype"])


def _fate(question: dict, cells: list, transcript: drive.Transcript, fate, answers: list, failed: int | None) -> tuple[str, str]:
    """State and reason of a question that did not pass: fixed sentences, and errors of cells, which run before any input is known."""
    if fate == ("timeout", "notebook"):
        return "timeout", "The whole notebook ran out of time before this question was tested to its end."
    if fate and fate[0] == "timeout":
        return "timeout", f"Stopped after {question['seconds']:g} s, which is the time that this question has: does a loop never end?"
    if fate and fate[1] == drive.TOO_LARGE:
        return "killed", "What this question returns is too large to be compared."
    if fate:
        return "killed", "The process ended while this question was tested: it left Python, crashed, or used too much memory."
    kinds = {answer["type"] if answer and answer["t"] == "error" else "" for answer in answers}
    if kinds == {"NotImplementedError"}:
        return "missing", "Not answered yet."
    own = [index for index, cell in enumerate(cells) if cell["grade_id"] == question["answer_cell"]]
    broken = next((index for index in own if index in transcript.cells), next(iter(sorted(transcript.cells)), None) if not own else None)
    if kinds == {"NameError"}:
        if broken is None:
            return "missing", "What this question asks for is not defined."
        state, how = transcript.cells[broken]
        if how.startswith("NotImplementedError"):
            return "missing", "Not answered yet."
        if state == "error":
            return "missing", f"The cell of this question stopped: {how}"
        if state == "timeout":
            return "timeout", "The cell of this question ran out of time."
        return "killed", "The cell of this question ended the process: it left Python, crashed, or used too much memory."
    error = "error" if answers[failed]["t"] == "error" and not question["cases"][failed]["raises"] else "failed"
    if question["cases"][failed]["kind"] == "public":
        return error, "A public test fails."
    return error, "The public tests pass; a hidden test fails."


def _flags(transcript: drive.Transcript) -> list[str]:
    flags = []
    if transcript.twice:
        flags.append("the notebook answered a case twice, as only a forged line does: the first answer counts")
    if transcript.strange:
        flags.append("the notebook wrote lines into the grader's channel, which were ignored")
    return flags


def _shown(case: dict, answer: dict, why: str) -> dict:
    return {
        "call": case["call"],
        "inputs": {name: values.show(value) for name, value in case["inputs"].items()},
        "expect": case["raises"] or values.show(case["expect"]),
        "got": values.show(answer),
        "why": why,
        "hint": case["hint"],
    }


def _like(question: dict, answers: list, held: Iterable[int]) -> str | None:
    """The note of the wrong solution that answers all hidden cases among these as it was answered, one of them wrongly."""
    asked = [(question["cases"][k], answers[k]) for k in held if question["cases"][k]["kind"] == "hidden"]
    if not any(why_wrong(case, answer) for case, answer in asked):
        return None
    for note in question["wrong"]:
        if all(_same(case, answer, case["wrong"].get(note)) for case, answer in asked):
            return note
    return None


def _same(case: dict, answer: dict | None, wrong: dict | None) -> bool:
    if answer is None or wrong is None:
        return False
    if "error" in (answer["t"], wrong["t"]):
        return answer["t"] == wrong["t"] and answer["type"] == wrong["type"]
    return not compare(answer, wrong, case["tol"], case["dtype"])
