"""The minutes of a page, counted by hand."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from qlab.lab import minutes

LINE = 1 / 3                                                                # 20 s
TITLE = new_markdown_cell("# Page\n\n*Time:* 0 minutes. More.")


@pytest.mark.parametrize("cell, takes", [
    (new_markdown_cell("word " * 200), 1),
    (new_markdown_cell("a formula $x + y$ and `some code here` and [a link](https://example.org/a b c)"), 9 / 200),
    (new_markdown_cell("$$\na + b = c\n$$"), 1 / 200),
    (new_code_cell("x = 1\n\n    # a comment\ny = 2  # another\n"), 2 * LINE),
    (new_code_cell("x = 1", metadata={"jupyter": {"source_hidden": True}}), 0),
])
def test_a_cell_s_minutes(cell, takes):
    assert minutes.of([cell]) == pytest.approx(takes)


def page(lines):
    """A title; two code cells under headings on the path, one of them a level down; one that is not."""
    code = new_code_cell("\n".join(["x = 1"] * lines))
    cells = []
    for heading in ("## One (short path)", "### Two", "### Three (short path)"):
        cells += [new_markdown_cell(heading), code]
    return [new_markdown_cell(TITLE.source), *cells]


def test_the_path_is_what_marked_headings_hold_up_to_the_next_heading():
    cells = page(3)
    assert [cells.index(cell) for cell in minutes.short_path(cells)] == [0, 1, 2, 5, 2]     # the one code cell, thrice the same
    start = [TITLE, new_code_cell("x")]
    assert minutes.short_path([*start, new_markdown_cell("## Three")]) == start


@pytest.mark.parametrize("lines, says", [
    (1, "*Time:* 5 minutes. More."),                                        # never 0
    (30, "*Time:* 30 minutes. More."),
    (45, "*Time:* 45 minutes; 30 along the headings marked *short path*. More."),
])
def test_the_title_is_filled_in_and_again(lines, says):
    cells = page(lines)
    minutes.say(cells)
    assert cells[0].source == f"# Page\n\n{says}"
    minutes.say(cells)
    assert cells[0].source == f"# Page\n\n{says}"
