"""The speaker notes, the last cell of every page: true to the page, and out of a student's sight."""

import hashlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from test_browser import lab  # noqa: F401

from qlab.grading.author import release
from qlab.lab import minutes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
NUMBER = re.compile(r"\d(?:[\d,.]*\d)?")


def is_notes(cell):
    return "speaker" in cell["metadata"].get("tags", [])


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: path.stem[:2])
def page(request):
    """(notes, the other cells)"""
    cells = nbformat.read(request.param, 4).cells
    assert [is_notes(cell) for cell in cells] == [False] * (len(cells) - 1) + [True], "one cell has the tag speaker, the last"
    return cells[-1], cells[:-1]


def headings(cells):
    found = (match for cell in cells if cell.cell_type == "markdown" for match in re.findall(r"^#{2,4} (.+)$", cell.source, re.MULTILINE))
    return {match.strip().removesuffix(" (short path)") for match in found}


def shown(cells):
    for cell in cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_the_path_has_three_places_and_says_what_to_ask_and_to_skip(page):
    notes, _ = page
    parts = notes.source.split("\n\n")
    assert len(re.findall(r"^[123]\. \*[^*]+\*: ", parts[1], re.MULTILINE)) == 3
    assert [re.match(r"\*\*([^*]+)\*\* ", part)[1] for part in parts[2:]] == ["Ask", "Expect", "It surprises", "Skip"]
    assert 120 <= len(notes.source.split()) <= 205
    assert max(map(len, notes.source.splitlines())) <= 140


def test_its_headings_are_the_page_s(page):
    notes, cells = page
    named = re.findall(r"^[123]\. \*([^*]+)\*: ", notes.source, re.MULTILINE)
    skipped = re.findall(r"\*([^*]+)\*", " ".join(notes.source.partition("**Skip**")[2].split()))
    assert {*named, *skipped} <= headings(cells) and skipped


def test_every_number_stands_on_the_page(page):
    notes, cells = page
    text = re.sub(r"^[123]\. ", "", notes.source, flags=re.MULTILINE)
    known = {number for part in shown(cells) for number in NUMBER.findall(part)}
    assert not [number for number in NUMBER.findall(text) if number not in known]


def test_they_take_no_minute_of_a_reader(page):
    notes, cells = page
    assert minutes.of([*cells, notes]) == minutes.of(cells)


def test_a_release_leaves_them_out_and_trusts_what_is_left():
    names = [f"notebooks/{path.name}" for path in PAGES]
    before = {name: (ROOT / name).read_bytes() for name in [*names, release.RELEASED]}
    after = dict(before)
    release._leave_out_notes(after)
    known = json.loads(after[release.RELEASED])
    for name in names:
        cells, left = (json.loads(contents[name])["cells"] for contents in (before, after))
        assert left == [cell for cell in cells if not is_notes(cell)] and len(left) < len(cells)
        assert after[name] == (nbformat.writes(nbformat.reads(after[name].decode(), 4)) + "\n").encode()  # as Jupyter writes it
        assert known[name] == hashlib.sha256(after[name]).hexdigest()
    others = json.loads(before[release.RELEASED]).keys() - set(names)
    assert {name: known[name] for name in others} == {name: json.loads(before[release.RELEASED])[name] for name in others}


def test_jupyterlab_hides_them_until_the_view_menu_shows_them(lab):  # noqa: F811
    lab.open("notebooks/02_linear_quantization.ipynb")
    before = (lab.root / "notebooks" / "02_linear_quantization.ipynb").read_bytes()
    last = "[...jupyterapp.shell.currentWidget.content.widgets].at(-1)"
    lab.page.wait_for_function(f"{last}.isHidden")
    lab.page.evaluate("jupyterapp.shell.currentWidget.content.scrollToItem(jupyterapp.shell.currentWidget.content.widgets.length - 2)")
    notes = lab.page.locator(".jp-RenderedMarkdown strong:text-is('Speaker notes: ten minutes with this page')")
    assert not notes.is_visible()

    lab.page.locator(".lm-MenuBar-itemLabel:text-is('View')").click()
    lab.page.locator(".lm-Menu-itemLabel:text-is('Speaker Notes')").click()
    lab.page.wait_for_function(f"!{last}.isHidden")
    lab.page.evaluate("jupyterapp.shell.currentWidget.content.scrollToItem(jupyterapp.shell.currentWidget.content.widgets.length - 1)")
    notes.wait_for()
    lab.do("qlab:speaker-notes")
    lab.page.wait_for_function(f"{last}.isHidden")
    lab.do("docmanager:save")
    assert (lab.root / "notebooks" / "02_linear_quantization.ipynb").read_bytes() == before
    said = [problem for problem in lab.problems if "speaker" in problem.lower()]
    assert said == []
