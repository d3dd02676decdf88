"""How long a page takes: 200 words a minute, and 20 seconds for each line of code that a reader sees.

Not counted: comments, blank lines, the source of folded cells (qlab.lab.hidden), and a lecturer's notes (cells with the tag speaker).
A page of more than LONG minutes marks a path of about 30 minutes through it: headings that end in MARK, each with what stands under it up
to the next heading, and all before the first one.
The title says both numbers; `qlab notebooks` fills them in.
"""

import re
from collections.abc import Sequence

from nbformat import NotebookNode

WORDS_A_MINUTE, SECONDS_A_LINE, LONG, PATH = 200, 20, 40, 30
MARK = "(short path)"
_HEADING = re.compile(r"#{2,4} .*")
_SAID = re.compile(r"\*Time:\* \d+ minutes(; \d+ along the headings marked \*short path\*)?")


def of(cells: Sequence[NotebookNode]) -> float:
    """The minutes that these cells take to read.

    >>> from nbformat.v4 import new_code_cell, new_markdown_cell
    >>> of([new_markdown_cell("word " * 300), new_code_cell("x = 1\\n\\n# that was all\\ny = 2\\nz = 3")])
    2.5
    """
    words = sum(len(_prose(cell.source).split()) for cell in cells
                if cell.cell_type == "markdown" and "speaker" not in cell.metadata.get("tags", []))
    seen = [cell.source for cell in cells if cell.cell_type == "code" and not cell.metadata.get("jupyter", {}).get("source_hidden")]
    lines = sum(bool(line.strip()) and not line.lstrip().startswith("#") for source in seen for line in source.splitlines())
    return words / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60


def _prose(source: str) -> str:
    """A formula, a code word and a link's address each read as one word."""
    return re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|(?<=\])\([^)]*\)", " x ", source, flags=re.DOTALL)


def short_path(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The cells before the first heading, and those under headings that end in MARK."""
    path, on = [], True
    for cell in cells:
        if cell.cell_type == "markdown" and (heading := _HEADING.match(cell.source)):
            on = heading[0].rstrip().endswith(MARK)
        if on:
            path.append(cell)
    return path


def sentence(cells: Sequence[NotebookNode]) -> str:
    """What the title says: to the next five minutes, and the short path's where the page is long."""
    whole, path = (5 * max(1, round(of(part) / 5)) for part in (cells, short_path(cells)))
    return f"*Time:* {whole} minutes" + (f"; {path} along the headings marked *short path*" if whole > LONG else "")


def say(cells: Sequence[NotebookNode]) -> None:
    """Writes the sentence into the first cell, in place of the one that stands there."""
    if cells:
        cells[0].source = _SAID.sub(sentence(cells), cells[0].source)
