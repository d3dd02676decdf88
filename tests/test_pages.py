"""Every page of the course, as it is stored: its first screen, and no answer before its question."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from qlab.lab import hidden, minutes, notebooks
from qlab.lab.questions import plain

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BEFORE = ROOT / "notebooks" / "prerequisites.ipynb"  # no lecture: of the anatomy it has what its first screen needs
SHORTEST = 12  # shorter options, "8 bits", stand on every page


@pytest.fixture(scope="module", params=[*PAGES, BEFORE], ids=lambda path: path.stem[:2])
def cells(request):
    return nbformat.read(request.param, 4).cells


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: path.stem[:2])
def lecture(request):
    """The stem and the cells of a page with a number."""
    return request.param.stem, nbformat.read(request.param, 4).cells


def is_folded(cell):
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def questions(cells):
    """(index of the cell, call) of every predict and quiz."""
    for n, cell in enumerate(cells):
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in hidden.QUESTIONS:
                    yield n, node


def strings(node):
    """Every string in an expression; of an f-string its fixed parts."""
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def shown(cells):
    """What a reader sees of some cells: text, sources that are not folded, outputs."""
    for cell in cells:
        if cell.cell_type != "code" or not is_folded(cell):
            yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_questions_and_what_stands_before_the_first_are_folded_and_nothing_else(cells):
    stored = [is_folded(cell) for cell in cells]
    hidden.mark(cells)
    assert stored == [is_folded(cell) for cell in cells]


def test_the_first_screen_has_a_promise_a_picture_and_a_question(cells):
    first = next(questions(cells))[0]
    before = cells[:first]
    assert re.match(r"# .+\n\n\*\*[^*]+\*\*", cells[0].source), "a title, then the promise in bold"
    assert sum("image/png" in output.get("data", {}) for cell in before for output in cell.get("outputs", [])) == 1, "one picture"
    words = sum(len(cell.source.split()) for cell in before if cell.cell_type == "markdown")
    assert words <= 130, f"{words} words stand before the first question"
    assert len(before) <= 4, f"{len(before)} cells stand before the first question"


def test_a_lecture_has_its_number_in_the_title(lecture):
    stem, cells = lecture
    assert cells[0].source.startswith(f"# {stem[:2]} · ")


def test_the_page_says_to_run_all_and_how_long_that_takes(lecture):
    stem, cells = lecture
    said = re.search(r"\*\*Run all cells now\*\* \(menu \*Run › Run All Cells\*\): about (\d+) seconds on this course's two-core machine",
                     cells[0].source)
    assert said and int(said[1]) == notebooks.seconds_to_say(stem)


def test_the_title_s_minutes_are_what_the_page_takes(cells):
    """Within a quarter; and a page of more than 40 minutes has a path of 30 through it."""
    said = re.search(r"\*Time:\* (\d+) minutes(?:; (\d+) along the headings marked \*short path\*)?", cells[0].source)
    whole, path = minutes.of(cells), minutes.of(minutes.short_path(cells))
    assert abs(int(said[1]) - whole) <= whole / 4
    assert (said[2] is None) == (int(said[1]) <= minutes.LONG)
    if said[2]:
        assert abs(int(said[2]) - path) <= path / 4 and abs(path - minutes.PATH) <= minutes.PATH / 4


def test_the_first_page_says_how_long_notebooks_are():
    whole = [int(re.search(r"\*Time:\* (\d+) minutes", nbformat.read(path, 4).cells[0].source)[1]) for path in PAGES]
    assert f"{min(whole)} to {max(whole)} minutes with every line of code" in (ROOT / "README.md").read_text()


def test_code_fits_a_slide(cells):
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > notebooks.MAX_COLUMNS] == []


def test_no_answer_stands_before_its_question(cells):
    for n, call in questions(cells):
        seen = "\n".join(" ".join(plain(text).split()) for text in shown(cells[:n]))
        own = "\n".join(shown(cells[n:n + 1]))
        explained = [call.args[-1]] if call.func.attr == "predict" else [one.elts[-1] for one in call.args[0].elts]
        for text in [text for part in explained for text in strings(part)]:
            for sentence in filter(lambda s: len(s) >= 30, re.split(r"(?<=[.:])\s+", plain(text))):
                assert sentence not in seen, f"cell {n + 1}: {sentence!r} stands before the question"
                assert sentence not in own, f"cell {n + 1}: the stored question tells {sentence!r}"


def test_the_right_option_is_not_the_only_one_that_was_mentioned(cells):
    for n, call in questions(cells):
        if call.func.attr != "predict" or not isinstance(call.args[1], ast.List) or not isinstance(call.args[2], ast.Constant):
            continue
        options, right = strings(call.args[1]), call.args[2].value
        right = right if isinstance(right, str) else options[right]
        seen = " ".join(" ".join(shown(cells[:n])).split())
        if len(right) >= SHORTEST and right in seen:
            assert all(option in seen for option in options), f"cell {n + 1}: of the options only {right!r} stands on the page before"


def test_every_stored_picture_has_alternative_text(cells):
    for n, cell in enumerate(cells, 1):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert len(output.metadata.get("image/png", {}).get("alt", "")) >= 20, f"cell {n}: a picture without alternative text"


def test_links_say_where_they_lead(cells):
    for n, cell in enumerate(cells, 1):
        for text in re.findall(r"\[([^\]]+)\]\([^)]+\)", cell.source) if cell.cell_type == "markdown" else []:
            assert not re.fullmatch(r"[\w./-]+(\.ipynb|\.md|\.py|/)", text), f"cell {n}: the text of a link is a path, {text}"


def test_the_bench_record_has_every_page():
    assert {row["page"] for row in json.loads(notebooks.BENCH.read_text())["pages"]} == {path.stem for path in PAGES}
