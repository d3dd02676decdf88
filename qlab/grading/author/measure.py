"""What the grader needs to know of one exercise set: its cases, the right answers, and the answers of the wrong solutions.

    solution    every case            must pass, twice
    blank       every question        must fail
    wrong       every wrong solution  must fail some hidden case, and every hidden case must fail some wrong solution

Where groups of cases have points of their own (`groups`), all this holds for each group.

The expected values are the answers of the reference solution, given by the same worker that runs a student's; hidden cases are drawn from
the teacher's seed, so a public repository does not give them away.
"""

import contextlib
import gc
import hashlib
import io
import signal
import time
from pathlib import Path

import numpy

import qlab
from qlab.grading import hints, mark, values
from qlab.grading.author import cases, groups, student
from qlab.grading.check import PARTS, POINTS, run, start
from qlab.grading.check import SECONDS as BUDGETS
from qlab.grading.sandbox import worker

SECONDS = 10.0  # the time budget of a question, unless check.start says otherwise


def measure(path: str, seed: str) -> dict | str:
    """The bundle of a solution notebook, without its digest; or the first problem, in one sentence."""
    name, notebook = Path(path).stem, student.read(path)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return _measure(name, notebook, seed)
    except ValueError as error:
        return str(error)


def _measure(name: str, notebook, seed: str) -> dict:
    shell = worker.make_shell()
    gc.freeze()  # torch's objects stay: each reset of the shell would look through them
    questions = student.questions(notebook, name)
    drawn, grouped = _collect(name, notebook, questions, seed, shell)
    end = 1 + max(question.answer for question in questions)  # what follows, check() and such, defines nothing that is tested
    sources = [cell.source if cell.cell_type == "code" and not student.flag(cell, "grade") else None for cell in notebook.cells[:end]]
    right = _answers(shell, sources, questions, drawn)
    for question in questions:
        for case, answer in zip(drawn[question.id], right[question.id]):
            what = f"{name}, {question.id}: the solution gets less than full marks: {case['call']}"
            if case["raises"] is None and case["expect"] is None:
                if answer["t"] in ("error", "unsupported"):
                    raise ValueError(f"{what} gives {values.show(answer)}.")
                case["expect"] = answer
            elif why := mark.why_wrong(case, answer):
                raise ValueError(f"{what}{_about(case)}: {why}")
    again = _answers(shell, sources, questions, drawn)
    handed_out = student.student_notebook(notebook)
    blank = [cell.source if source is not None else None for cell, source in zip(handed_out.cells, sources)]
    empty = _answers(shell, blank, questions, drawn)
    for question in questions:
        asked = drawn[question.id]
        for case, answer in zip(asked, again[question.id]):
            if why := mark.why_wrong(case, answer):
                raise ValueError(f"{name}, {question.id}: the solution gives two answers to {case['call']}{_about(case)}: {why}")
        if not any(mark.why_wrong(case, answer) for case, answer in zip(asked, empty[question.id])):
            raise ValueError(f"{name}, {question.id}: a blank answer gets its points.")
        for note, source in question.wrong:
            spoilt = list(sources)
            spoilt[question.answer] += f"\n\n\n{source}"
            _try_wrong(f"{name}, {question.id}", note, asked, _answers(shell, spoilt, [question], drawn)[question.id])
        with _told(f"{name}, {question.id}"):
            groups.check(grouped[question.id] or [], asked, empty[question.id])
        for case in asked:
            if case["kind"] == "hidden" and not any(mark.why_wrong(case, answer) for answer in case["wrong"].values()):
                raise ValueError(f"{name}, {question.id}: no wrong solution fails the hidden case {case['call']}{_about(case)}.")
    return {"format": 1, "assignment": name, "version": handed_out.metadata.qlab.version, "qlab": qlab.__version__,
            "seed_sha256": hashlib.sha256(seed.encode()).hexdigest(),
            "questions": [{"id": q.id, "points": q.points, "seconds": float(BUDGETS.get(q.id, SECONDS)), "answer_cell": q.id,
                           "wrong": [note for note, _ in q.wrong], "cases": drawn[q.id],
                           **({"groups": grouped[q.id]} if grouped[q.id] else {})} for q in questions]}


@contextlib.contextmanager
def _told(where: str):
    """Makes a sentence of what is found wrong there."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from None


def _collect(name: str, notebook, questions: list, seed: str, shell) -> tuple[dict[str, list[dict]], dict[str, list[dict] | None]]:
    """Runs the whole solution notebook, as its author would, and draws the cases of each question; and their groups."""
    registered = {"public": cases.PUBLIC, "hidden": cases.HIDDEN}
    cases.PUBLIC.clear(), cases.HIDDEN.clear(), start()
    for cell in notebook.cells:
        if cell.cell_type == "code" and (error := worker.run_cell(shell, cell.source)):
            raise ValueError(f"{name}, {student.grade_id(cell) or 'a cell'}: the solution notebook fails: {error}.")
    if {q.id: q.points for q in questions} != POINTS:
        stated = ", ".join(f"{q.id}={q.points:g}" for q in questions)
        raise ValueError(f"{name}: the first code cell must call check.start({stated}), as the test cells' points say.")
    ids = {q.id for q in questions}
    for what, names in (("time budget", BUDGETS), ("public test", cases.PUBLIC), ("hidden test", cases.HIDDEN)):
        for stray in sorted(set(names) - ids):
            raise ValueError(f"{name}: there is a {what} for {stray}, which is no question of it.")
    drawn, grouped = {}, {}
    for question in questions:
        where = f"{name}, {question.id}"
        drawn[question.id], functions = [], []
        for kind, registry in registered.items():
            for title, function in registry.get(question.id, {}).items():
                key = hashlib.sha256(f"{seed}/{name}/{question.id}/{title}".encode()).digest()
                rng = numpy.random.default_rng(int.from_bytes(key, "big"))
                try:
                    found = list(function(rng) if kind == "hidden" else function())
                except Exception as error:
                    raise ValueError(f"{where}: {title} fails with {type(error).__name__}: {error}.") from None
                first = len(drawn[question.id])
                drawn[question.id] += [_encoded(case, kind, where) for case in found]
                functions.append((title, kind, function.points, list(range(first, first + len(found)))))
            if not any(case["kind"] == kind for case in drawn[question.id]):
                raise ValueError(f"{where}: there is no {kind} case.")
        with _told(where):
            grouped[question.id] = groups.divide(question.points, functions)
        parts = sorted(group["points"] for group in grouped[question.id] or ())
        if question.id in PARTS and sorted(PARTS[question.id]) != parts:
            stated = " and ".join(f"{part:g}" for part in parts) or "all or nothing"
            raise ValueError(f"{where}: check.start says that its parts give {PARTS[question.id]} points, and its groups give {stated}.")
        told = run(question.id, shell.user_ns)
        if told.state != "passed":
            why = dict(told.details).get("why") or dict(told.details).get("error") or told.message
            raise ValueError(f"{where}: the solution gets less than full marks: {dict(told.details).get('test', 'check')}: {why}")
    return drawn, grouped


def _encoded(case, kind: str, where: str) -> dict:
    inputs = {name: values.encode(value) for name, value in case.inputs.items()}
    expect = None if case.expect is cases.MISSING else values.encode(case.expect)
    for title, value in [*inputs.items(), *([("expect", expect)] if expect else [])]:
        if value["t"] in ("unsupported", "error"):
            raise ValueError(f"{where}: {title} of the case {case.call} is {values.show(value)}, and cannot be kept in a bundle.")
    if kind == "public" and expect is None and case.raises is None:
        raise ValueError(f"{where}: the public case {case.call} must state what it expects.")
    made = {"kind": kind, "call": case.call, "setup": case.setup, "inputs": inputs, "expect": expect, "raises": case.raises,
            "tol": case.tol, "dtype": case.dtype, "about": case.about, "hint": case.hint, "wrong": {}}
    if kind == "hidden" and (told := hints.gives_away(made)):
        raise ValueError(f"{where}: what the hidden case {case.call} is about, {case.about!r}, holds {told}: students read it after the "
                         "deadline, and it may hold no number but 0 and 1, and no text of the inputs.")
    return made


def _answers(shell, sources: list, questions: list, drawn: dict) -> dict[str, list[dict]]:
    """Runs a notebook's cells in a fresh namespace, then the cases of the questions: what it answers, question by question."""
    budgets = dict(BUDGETS)
    shell.reset(new_session=False)
    for source in sources:
        if source is not None:
            worker.run_cell(shell, source)
    return {q.id: [_in_time(budgets.get(q.id, SECONDS), worker.answer, shell.user_ns, case) for case in drawn[q.id]] for q in questions}


def _in_time(seconds: float, function, *args):
    """What the function returns; after so many seconds of work, or ten times as many in all, a TimeoutError is raised in it.

    Of work, for a build is no race: on a machine that it shares a right answer takes longer. Not on Windows.
    """
    if not hasattr(signal, "setitimer"):
        return function(*args)
    began, worked = time.monotonic(), time.process_time()

    def stop(*_):
        left = min(seconds - (time.process_time() - worked), 10 * seconds - (time.monotonic() - began))
        if left <= 0:
            raise TimeoutError(f"no answer within {seconds:g} seconds")
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _about(case: dict) -> str:
    return f" ({case['about']})" if case["about"] else ""


def _try_wrong(where: str, note: str, asked: list[dict], answers: list[dict]) -> None:
    """Notes what a wrong solution answers; ValueError if no hidden case catches it, or if it does not even run."""
    failing = {kind: any(mark.why_wrong(c, a) for c, a in zip(asked, answers) if c["kind"] == kind) for kind in ("public", "hidden")}
    if not failing["hidden"]:
        but = "only public ones do" if failing["public"] else "it gets full marks"
        raise ValueError(f"{where}: no hidden case fails the wrong solution {note!r}: {but}.")
    if all(answer["t"] == "error" for answer in answers):
        raise ValueError(f"{where}: the wrong solution {note!r} runs on no case at all: {values.show(answers[0])}.")
    for case, answer in zip(asked, answers):
        case["wrong"][note] = answer
