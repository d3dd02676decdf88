"""A question on a page without a kernel: its text and options as they are stored, and below each the answer to unfold."""

import ast

from qlab.lab.hidden import question
from qlab.lab.questions import predict, quiz
from qlab.translate import into


def literal(source: str) -> list[str] | None:
    """The answers of a cell's question, as HTML, if its code spells them out; None if it computes them, or asks nothing.

    >>> literal('widgets.predict("How many levels have 3 bits?", ["3", "8"], "8", "Each bit doubles them.")')
    ['<b>8</b>. Each bit doubles them.']
    >>> literal('widgets.predict("How many?", options, right, "")')
    """
    found = _question(source)
    if found is None:
        return None
    kind, call = found
    try:
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return {"predict": predict, "quiz": quiz}[kind](*map(ast.literal_eval, call.args), **named).answers
    except (ValueError, TypeError):  # a name stands there, or arguments that do not fit, which the page's own run will tell
        return None


def computes(source: str) -> bool:
    """Whether a cell asks, and takes the answer from what the page has computed.

    >>> computes('widgets.predict("How many?", options, right, "")'), computes("print(1)")
    (True, False)
    """
    return _question(source) is not None and literal(source) is None


def with_answers(still: str, answers: list[str] | None, language: str = "") -> str:
    """The stored HTML of predict or quiz, each question followed by its answer, folded.

    >>> with_answers("<p>Why?</p>", ["So."])
    '<p>Why?</p><details class="qlab-answer"><summary>Answer</summary><p>So.</p></details>'
    """
    parts = still.split("</ul></li>") if "<ol>" in still else [still, ""]
    later = into(language, "The answer hangs on what the page measures on your machine: run the page to see it.")
    folded = [_folded(answer, language) for answer in answers or [later] * (len(parts) - 1)]
    if len(folded) != len(parts) - 1:
        raise ValueError(f"{len(folded)} answers do not fit {len(parts) - 1} questions.")
    end = "</ul>{}</li>" if "<ol>" in still else "{}"
    return "".join(part + end.format(answer) for part, answer in zip(parts, folded)) + parts[-1]


def _folded(answer: str, language: str) -> str:
    return f'<details class="qlab-answer"><summary>{into(language, "Answer")}</summary><p>{answer}</p></details>'


def _question(source: str) -> tuple[str, ast.Call] | None:
    try:
        return question(ast.parse(source))
    except SyntaxError:
        return None
