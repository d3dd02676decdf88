"""The Chinese pages 00 to 03 and their exercise sets: complete, in one voice, of the same code and outputs, and graded alike."""

import ast
import json
from pathlib import Path

import made_up_work
import nbformat
import pytest
import torch
from markdown_it import MarkdownIt

from qlab.grading import mark
from qlab.grading.author import student
from qlab.grading.handed_in import notebook as handed_in
from qlab.lab import widgets
from qlab.translate import progress, survives, translated
from qlab.translate_command import MUST

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for folder in ("notebooks", "exercises") for number in MUST for path in sorted((ROOT / folder).glob(f"{number}_*.ipynb"))]
IDS = [f"{path.parent.name}/{path.stem[:2]}" for path in PAGES]
MARKDOWN = MarkdownIt("commonmark").enable("table")
VALUES = {"widest": torch.tensor([61.6])}  # what cells that take seconds would have computed


def both(path):
    return nbformat.read(path, 4), translated(path, "zh")


def test_nothing_is_missing_stale_or_broken():
    """Numbers, formulas, links, code and the glossary's terms of each cell, and every word that the library says."""
    lines, good = progress.check(ROOT, "zh", PAGES, MUST)
    assert good, "\n".join(lines)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_code_and_outputs_are_the_english_ones(path):
    english, chinese = both(path)
    assert english.metadata == chinese.metadata and len(english.cells) == len(chinese.cells)
    for one, other in zip(english.cells, chinese.cells):
        assert (one.id, one.cell_type, one.metadata) == (other.id, other.cell_type, other.metadata)
        if one.cell_type == "code":
            assert without_strings(one.source) == without_strings(other.source)
            assert stripped(one.outputs) == stripped(other.outputs)


def without_strings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        elif isinstance(node, ast.JoinedStr):
            node.values = sorted((part for part in node.values if isinstance(part, ast.FormattedValue)), key=ast.dump)
    return ast.dump(tree)


def stripped(outputs):
    """Without the words of a question, whose answer is to follow."""
    kept = json.loads(json.dumps(outputs))
    for output in kept:
        if output.get("data", {}).get("text/plain", "").startswith(("Predict.", "Check yourself.")):
            del output["data"]["text/plain"], output["data"]["text/html"]
    return kept


@pytest.mark.parametrize("path", PAGES[:len(MUST)], ids=IDS[:len(MUST)])
def test_a_stored_question_is_the_one_that_is_asked(path, monkeypatch):
    """Runs the questions, and compares what they show with the stills, which nobody ran."""
    monkeypatch.setenv("QLAB_LANG", "zh")
    chinese, names, asked = translated(path, "zh"), {"widgets": widgets, **VALUES}, 0
    first = next(n for n, cell in enumerate(chinese.cells) if "widgets.predict" in cell.source)
    for n, cell in enumerate(chinese.cells):
        needed = n < first and path.stem[:2] == "03"  # its first question tells what a layer gains
        if cell.cell_type == "code" and (needed or "widgets.predict" in cell.source or "widgets.quiz" in cell.source):
            tree = ast.parse(cell.source)
            if n >= first:
                tree.body[-1] = ast.Assign([ast.Name("shown", ast.Store())], tree.body[-1].value)
            exec(compile(ast.fix_missing_locations(tree), path.stem, "exec"), names)
        if "shown" in names:
            question, data = names.pop("shown"), cell.outputs[0].data
            assert (question.still, question.summary) == (data["text/html"], data["text/plain"])
            asked += 1
    assert asked >= 2


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_a_text_is_built_as_the_english_one(path):
    """As many headings, lists, table cells, bold and slanted words: a Chinese mark beside an asterisk easily undoes it."""
    for one, other in zip(*(page.cells for page in both(path))):
        if one.cell_type == "markdown":
            assert built(one.source) == built(other.source), other.source


def built(text):
    """How many of each tag; formulas apart, which MathJax renders."""
    html = MARKDOWN.render(survives.FORMULA.sub("x", text))
    return [html.count(mark) for mark in ("<h1", "<h2", "<h3", "<strong", "<em>", "<li", "<td", "<th>", "<code", "<a ", "**")]


def test_a_hand_in_made_from_the_chinese_page_gets_its_marks():
    """Right answers written into the Chinese stubs, one question left blank, one wrong: the marks that an English page would get."""
    exercise = made_up_work.Exercise("00")
    page = translated(ROOT / "exercises" / f"{exercise.name}.ipynb", "zh")
    first, second, *_ = exercise.questions
    for question in exercise.questions:
        if question is first:
            continue
        cell = page.cells[question.answer]
        right = student.split(exercise.solution.cells[question.answer].source, "SOLUTION")[1]
        assert "raise NotImplementedError()" in cell.source and "提示" in cell.source
        body = right if question is not second else "    return None"
        cell.source = cell.source.replace("    # YOUR CODE HERE\n    raise NotImplementedError()", body)
    cells, version = handed_in.read(nbformat.writes(page).encode())
    assert version == exercise.released.metadata.qlab.version
    marks = {question["id"]: question["score"] for question in mark.grade_trusted(cells, exercise.bundle)["questions"]}
    assert marks == {question.id: 0 if question in (first, second) else question.points for question in exercise.questions}
