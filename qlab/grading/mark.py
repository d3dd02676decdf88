"""Marks: compares what a submission answered with what the bundle expects, and says why in words that give nothing hidden away.

    a question's score = its points if every public and every hidden case has the expected value, else 0

`reason` and `public_failed` are for the student: they are made of the bundle's public cases, of what the submission answered before it was
told any hidden input, and of fixed sentences. `note` and `stdout_tail` are for the teacher alone.
"""

from qlab.grading import values
from qlab.grading.compare import compare
from qlab.grading.sandbox import drive, slot


def grade_notebook(sandbox, cells: list[dict], bundle: dict, total_seconds: float = 120.0, cell_seconds: float = 30.0) -> dict:
    """The marks of one notebook's cells ({"source", "grade_id", "grade"}), run in a sandbox (see `bwrap.Sandbox`).

    Cells with grade true, the student's copies of tests, are not run. Returns {"questions", "score", "max_score", "limits", "stdout_tail"},
    a question being {"id", "points", "score", "state", "reason", "note", "failed_case", "public_failed", "answers_like"} with state
    one of "passed", "failed", "error", "timeout", "killed" and "missing". total_seconds bounds the whole, cell_seconds each cell.
    Raises SandboxUnavailable or WorkerFailed where the submission cannot be graded: that is no mark of 0.
    """
    kept = [cell for cell in cells if not cell["grade"]]
    places = {cell["grade_id"]: index for index, cell in enumerate(kept)}  # of an answer cell that is there twice, the last
    asked = [{**question, "after": places.get(question["answer_cell"])} for question in bundle["questions"]]
    with sandbox.lease() as start:
        transcript = drive.drive(start, [cell["source"] for cell in kept], asked, total_seconds, cell_seconds)
    questions = [_mark(question, kept, transcript) for question in bundle["questions"]]
    return {
        "questions": questions,
        "score": sum(question["score"] for question in questions),
        "max_score": sum(question["points"] for question in questions),
        "limits": sandbox.limits_that_hold,
        "stdout_tail": transcript.tail.decode(errors="replace"),
    }


def grade_trusted(cells: list[dict], bundle: dict, total_seconds: float = 120.0, cell_seconds: float = 30.0) -> dict:
    """The same without a sandbox, in a plain process: only for notebooks of one's own."""
    return grade_notebook(slot.Trusted(), cells, bundle, total_seconds, cell_seconds)


def _mark(question: dict, cells: list[dict], transcript: drive.Transcript) -> dict:
    name, cases = question["id"], question["cases"]
    answers = [transcript.answers.get((name, k)) for k in range(len(cases))]
    whys = [why_wrong(case, answer) for case, answer in zip(cases, answers)]
    order = sorted(range(len(cases)), key=lambda k: cases[k]["kind"] != "public")  # public ones first
    failed = next((k for k in order if whys[k]), None)
    fate = transcript.ended.get(name)
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
    return {
        "id": name,
        "points": question["points"],
        "score": question["points"] if state == "passed" else 0,
        "state": state,
        "reason": reason,
        "note": "; ".join(notes),
        "failed_case": failed if state != "passed" else None,
        "public_failed": public_failed,
        "answers_like": None if state == "passed" else _like(question, answers),
    }


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


def _like(question: dict, answers: list) -> str | None:
    """The note of the wrong solution that gives all of these answers."""
    for note in question["wrong"]:
        if all(_same(case, answer, case["wrong"].get(note)) for case, answer in zip(question["cases"], answers)):
            return note
    return None


def _same(case: dict, answer: dict | None, wrong: dict | None) -> bool:
    if answer is None or wrong is None:
        return False
    if "error" in (answer["t"], wrong["t"]):
        return answer["t"] == wrong["t"] and answer["type"] == wrong["type"]
    return not compare(answer, wrong, case["tol"], case["dtype"])
