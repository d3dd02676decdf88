"""The student's check: `check("q1")` runs a question's public tests on what the notebook has defined, `check()` those of all questions.

    setup cell      check.start(q1=3, q2=(1, 3))           the points of each question; q2 gives them in two parts
    test cell       @public("q1") def examples(): ...      the cases
                    check("q1")                            the verdict: a picture in JupyterLab, text in a terminal

It needs no extension, no file and no name of the notebook: the student's names are those of the cell that calls it. The verdict on an
answer is the grader's own (module compare); hidden tests are not here.
"""

import ast
import copy
import html
import linecache
import os
import sys
import traceback
from dataclasses import dataclass, field
from decimal import Decimal

from qlab.grading.author.cases import PUBLIC, Case
from qlab.translate import columns, tr

POINTS: dict[str, float] = {}
PARTS: dict[str, tuple[float, ...]] = {}  # of the questions that give their points in parts
SECONDS: dict[str, float] = {}


@dataclass(frozen=True)
class Result:
    """One question's public tests. state: passed, failed, unanswered or untested; details: (label, text) pairs about the first failure.

    reached: of a question that failed, the points of those groups of public tests that give points of their own and pass.
    """

    question: str
    state: str
    passed: int
    total: int
    message: str
    details: tuple[tuple[str, str], ...] = ()
    reached: float = 0

    def __repr__(self) -> str:
        indent = "\n" + " " * 12
        rows = (f"  {_padded(_label(label), 8)}  {text.replace(chr(10), indent)}" for label, text in self.details)
        return "\n".join([self.message, *rows])

    def _repr_html_(self) -> str:
        return _page(_entry(self))


@dataclass(frozen=True)
class Summary:
    """All questions of the notebook."""

    results: tuple[Result, ...]
    points: dict[str, float]
    parts: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def message(self) -> str:
        done = [r.question for r in self.results if r.state == "passed"]
        reached, full = sum(map(self._reached, self.results)), sum(self.points.values())
        return tr("Public tests pass for {done} of {all} questions, worth {reached:g} of {full:g} points if the hidden tests pass, too.",
                  done=len(done), all=len(self.results), reached=reached, full=full)

    def __repr__(self) -> str:
        share = self._share()
        bar = "#" * round(30 * share) + "." * (30 - round(30 * share))
        worth = list(map(self._worth, self.results))
        width = max([10, *map(columns, worth)])
        lines = [f"  {r.question:8}{' ' * (width - columns(points))}{points}   {_state(r.state)}" for r, points in zip(self.results, worth)]
        return "\n".join([f"[{bar}] {100 * share:.0f} %", *lines, self.message])

    def _repr_html_(self) -> str:
        percent = f"{100 * self._share():.0f}"
        bar = (f'<div role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" style="height: 8px; '
               f'max-width: 32em; margin: 4px 0 8px; border-radius: 4px; overflow: hidden; background: {LINE}">'
               f'<div style="height: 8px; width: {percent}%; background: {COLORS["passed"]}"></div></div>')
        rows = "".join(
            f'<tr style="background: none"><td style="text-align: left; padding: 2px 16px 2px 0"><b>{html.escape(r.question)}</b></td>'
            f'<td style="text-align: right; padding: 2px 16px 2px 0">{self._worth(r)}</td>'
            f'<td style="text-align: left; padding: 2px 0">{_mark(r.state)}{_state(r.state)}</td></tr>' for r in self.results)
        table = f'<table style="margin: 0; border-collapse: collapse; font-size: inherit; color: inherit">{rows}</table>'
        return _page(f"{bar}{table}<div style=\"margin-top: 6px\">{html.escape(self.message)}</div>")

    def _share(self) -> float:
        return sum(map(self._reached, self.results)) / (sum(self.points.values()) or 1)

    def _worth(self, result: Result) -> str:
        parts = () if result.reached else self.parts.get(result.question, ())
        if parts:
            return tr("{points} points", points=" + ".join(f"{part:g}" for part in parts))
        return _points(self.points[result.question], result.reached)

    def _reached(self, result: Result) -> float:
        return self.points[result.question] if result.state == "passed" else result.reached


def check(question: str | None = None) -> None:
    """Runs the public tests of a question, or of all of them, with the caller's definitions, and shows the verdict.

    It says nothing, and runs nothing, while the notebook is being graded.

    >>> from qlab.grading import case, public
    >>> @public("q1")
    ... def examples():
    ...     yield case("double(x)", x=3, expect=6, hint="twice x")
    >>> def double(x):
    ...     return x ** 2
    >>> check("q1")
    Public tests of q1: 0 of 1 passed.
      test      double(x)
      input     x = 3
      expected  6
      got       9
      why       expected 6, got 9.
      hint      twice x
    >>> del PUBLIC["q1"]
    """
    if "QLAB_GRADING" in os.environ:  # the grader (sandbox.slot) runs no test cells, so a verdict would be false
        return
    names = sys._getframe(1).f_globals
    if question is not None:
        _show(run(question, names))
    elif not POINTS:
        raise ValueError(tr("there is nothing to check yet: run the first code cell of this notebook."))
    else:
        _show(Summary(tuple(run(q, names) for q in POINTS), dict(POINTS), dict(PARTS)))


def start(*, seconds: dict[str, float] | None = None, **points: float | tuple[float, ...]) -> None:
    """Says, in the first cell, how many points each question has, a tuple where it gives them in parts, each by itself.

    seconds: the grader's time for the questions that need more than 10. Raises ValueError for points that are no such numbers.

    >>> start(q1=3, q2=(0.1, 0.2))
    >>> POINTS, PARTS
    ({'q1': 3, 'q2': 0.3}, {'q2': (0.1, 0.2)})
    >>> start()
    """
    for question, worth in points.items():
        if not all(type(part) in (int, float) and part >= 0 for part in (worth if isinstance(worth, tuple) else (worth,))):
            told = f"write {tuple(worth)}" if isinstance(worth, list) else "it must be a number, or a tuple of numbers like (1, 2)"
            raise ValueError(f"check.start: {question} is {worth!r}: {told}.")
    for store in (POINTS, PARTS, SECONDS):
        store.clear()
    PARTS.update({question: worth for question, worth in points.items() if isinstance(worth, tuple)})
    POINTS.update(points | {question: float(sum(Decimal(str(part)) for part in worth)) for question, worth in PARTS.items()})
    SECONDS.update(seconds or {})


check.start = start


def run(question: str, names: dict) -> Result:
    """The public tests of a question, on the definitions in names; all of them run, and the first failure is told."""
    groups = [(function.points or 0, list(function())) for function in PUBLIC.get(question, {}).values()]
    cases = [case for _, found in groups for case in found]
    if not cases:
        return Result(question, "untested", 0, 0, tr("The tests of {question} are not here yet: run its test cell.", question=question))
    failing = [[failure for case in found if (failure := _failure(case, names)) is not None] for _, found in groups]
    failures = [failure for group in failing for failure in group]
    passed = len(cases) - len(failures)
    count = {"question": question, "passed": passed, "all": len(cases)}
    if not failures:
        said = tr("Public tests of {question}: {passed} of {all} passed. Hidden tests run when it is graded.", **count) \
            if POINTS.get(question) != 0 else tr("Public tests of {question}: {passed} of {all} passed.", **count)  # 0: nobody grades it
        return Result(question, "passed", passed, len(cases), said)
    blank = next((name for name, _ in failures if name), None)
    if blank:
        own = any(blank in _names(case.call + "\n" + case.setup) for case in cases)
        said = tr("{question} is not answered yet.", question=question) if own else tr(
            "{question} cannot be checked yet: it uses {blank}, which is not answered yet.", question=question, blank=blank)
        return Result(question, "unanswered", passed, len(cases), said)
    reached = sum(points for (points, found), failed in zip(groups, failing) if found and not failed)
    said = tr("Public tests of {question}: {passed} of {all} passed, worth {points} by themselves.", points=_points(reached), **count) \
        if reached else tr("Public tests of {question}: {passed} of {all} passed.", **count)
    return Result(question, "failed", passed, len(cases), said, failures[0][1], reached)


def _failure(case: Case, names: dict) -> tuple[str, tuple] | None:
    """None if a case passes; else the name of the function that has no answer yet, or "", and what to tell."""
    from qlab.grading import show, values  # they import NumPy, and `import qlab.grading` stays light
    from qlab.grading.compare import compare

    inputs = "\n".join(f"{name} = {values.show(values.encode(value))}" for name, value in case.inputs.items())
    told = [("test", case.call), *([("input", inputs)] if inputs else [])]
    hint = [("hint", case.hint)] if case.hint else []
    expect = None if case.raises else values.encode(case.expect)
    expected = ("expected", tr("{error} is raised", error=case.raises) if case.raises else values.show(expect))
    try:
        here = {**names, **copy.deepcopy(case.inputs)}
        exec(compile(case.setup, "<setup>", "exec"), here)
        got = values.encode(eval(compile(case.call, "<test>", "eval"), here))
    except Exception as error:
        if case.raises in [base.__name__ for base in type(error).__mro__]:
            return None
        return _unanswered(error, names), (*told, expected, ("error", _own_line(error, names)), *hint)
    if case.raises:
        return "", (*told, expected, ("got", values.show(got)), ("why", tr("no error was raised.")), *hint)
    if not (why := compare(got, expect, case.tol, case.dtype)):
        return None
    right, given = show.beside(expect, got, case.tol)
    return "", (*told, ("expected", right), ("got", given), ("why", why), *hint)


def _own_frames(error: BaseException, names: dict) -> list[traceback.FrameSummary]:
    """The part of the traceback that lies in the notebook's own functions."""
    found, step = [], error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals is names:
            code = step.tb_frame.f_code
            found.append(traceback.FrameSummary(code.co_filename, step.tb_lineno, code.co_name, lookup_line=False))
        step = step.tb_next
    return found


def _unanswered(error: Exception, names: dict) -> str:
    """The name of the function whose stub raised the error; "" if none did."""
    frames = _own_frames(error, names)
    return frames[-1].name if type(error) is NotImplementedError and not error.args and frames else ""


def _own_line(error: Exception, names: dict) -> str:
    """The error, and the line of the student's own code that it came from."""
    said = "".join(traceback.format_exception_only(error)).strip().split("\n")[-1]
    if isinstance(error, NameError) and error.name not in names and not (frames := _own_frames(error, names)):
        return tr("{name} is not defined: run the cell with your answer first.", name=error.name)
    frames = _own_frames(error, names)
    if not frames:
        return said
    frame = frames[-1]
    line = linecache.getline(frame.filename, frame.lineno).strip()
    where = tr("in line {number} of the cell, in {name}", number=frame.lineno, name=frame.name)
    return f"{said}\n{where}{': ' if line else ''}{line}"[:2000]


def _names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


# How it looks. JupyterLab's own colours, light or dark, with others where a page does not have them.

COLORS = {"passed": "var(--jp-success-color1, #2e7d32)", "failed": "var(--jp-error-color1, #c62828)",
          "unanswered": "var(--jp-ui-font-color2, #757575)", "untested": "var(--jp-ui-font-color2, #757575)"}
LINE = "var(--jp-border-color2, #bdbdbd)"


def _state(state: str) -> str:
    return {"passed": tr("public tests passed"), "failed": tr("a public test fails"), "unanswered": tr("not answered yet"),
            "untested": tr("its test cell has not run")}[state]


def _label(label: str) -> str:
    return {"test": tr("test"), "input": tr("input"), "expected": tr("expected"), "got": tr("got"), "why": tr("why"), "hint": tr("hint"),
            "error": tr("error")}[label]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def _points(points: float, reached: float = 0) -> str:
    if reached:
        return tr("{reached:g} of {all}", reached=reached, all=_points(points))
    return tr("{points:g} point", points=points) if points == 1 else tr("{points:g} points", points=points)


def _mark(state: str) -> str:
    size = "display: inline-block; width: 9px; height: 9px; margin-right: 7px; border-radius: 2px"
    return f'<span style="{size}; background: {COLORS[state]}"></span>'


def _page(inside: str) -> str:
    return f'<div style="font-family: var(--jp-content-font-family, sans-serif); font-size: 14px; line-height: 1.5">{inside}</div>'


def _entry(result: Result) -> str:
    cell = "text-align: left; vertical-align: top; padding: 1px 14px 1px 0"
    code = "margin: 0; padding: 0; background: none; font-size: 13px; line-height: 1.5; white-space: pre-wrap"
    rows = "".join(
        f'<tr style="background: none"><td style="{cell}; color: {COLORS["unanswered"]}">{_label(label)}</td><td style="{cell}">'
        + (f"<span>{html.escape(text)}</span>" if label in ("why", "hint") else f'<pre style="{code}">{html.escape(text)}</pre>')
        + "</td></tr>" for label, text in result.details)
    table = f'<table style="margin: 4px 0 0; border-collapse: collapse; font-size: inherit; color: inherit">{rows}</table>' if rows else ""
    edge = f"border-left: 3px solid {COLORS[result.state]}; padding: 2px 0 2px 12px"
    return f'<div style="{edge}">{html.escape(result.message)}{table}</div>'


def _show(result) -> None:
    """Into the notebook where there is one, else as text."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(result)
    else:
        print(result)
