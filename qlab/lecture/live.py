"""The slides as a copy of the notebook, for JupyterLab: each slide's heading, texts and code as cells, with their stored outputs.

A cell's metadata says where it stands, in words that jupyterlab-slideshow reads (slideshow.slide_type) and, under KEY, in those that
labextension/ reads: at = [slide, step, part, scale, height] for each slide on which the cell is seen, part being source, output or both;
of a long table also the first and the last row.
"""

import base64
import functools
import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_markdown_cell

from qlab import saving
from qlab.lab.jupyter import released
from qlab.lecture import blocks, slides
from qlab.lecture.html import MARKER, mathjax, prose
from qlab.lecture.slides import Piece

KEY = "qlab_lecture"
FOLDER = "lectures"                 # beside notebooks/, so that links and relative paths lead where they led
SHOWN = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}  # pictures that a text may hold itself
NOTES = """<!DOCTYPE html><html lang="en"><meta charset="utf-8">{marker}<title>Notes: {title}</title>
<style>body {{font: 20px/1.5 sans-serif; max-width: 44em; margin: 1em auto; padding: 0 1em}} code {{background: #eee}}</style>
<h1>{title}</h1>
{notes}{mathjax}</html>
"""


def copy(notebook: NotebookNode, short: bool = False) -> NotebookNode:
    """The lecture's copy of a notebook, which stays as it was. short: slides of the short path alone; all code runs nevertheless.

    >>> from nbformat.v4 import new_code_cell, new_notebook
    >>> made = copy(new_notebook(cells=[new_markdown_cell("# Title\\nText."), new_code_cell("print(1)")]))
    >>> [(cell.source, cell.metadata.slideshow.get("slide_type")) for cell in made.cells]
    [('# Title', 'slide'), ('Text.', None), ('print(1)', None)]
    """
    made = slides.make(notebook.cells, short)
    cells: list[NotebookNode] = []
    placed: dict[int, NotebookNode] = {}                            # id of a cell of the notebook -> its copy
    heading = None
    for number, slide in enumerate(made):
        first = slide.shown[0].cell if slide.shown else None
        if heading and id(first) in placed:                                     # its output alone, under the same heading
            heading.metadata[KEY]["at"].append([number, 0, "both", 1.0, 0])
        else:
            heading = _cell("slide", new_markdown_cell(f"{'#' * min(2, slide.level)} {slide.title}"), number, Piece("text"))
            heading.metadata[KEY]["heading"] = "section" if not slide.shown else slide.shown[0].kind
            cells.append(heading)
        for piece in slide.pieces:
            if piece.cell is None:
                before = cells[-1]
                if before.cell_type == "markdown" and before is not heading and before.metadata[KEY]["at"][-1][:2] == [number, piece.step]:
                    before.source = _joined(before.source, piece.source)
                else:
                    cells.append(_cell("fragment" if piece.step else "", new_markdown_cell(piece.source), number, piece))
            elif id(piece.cell) in placed:
                _also(placed[id(piece.cell)], number, piece)
            else:
                kind = "skip" if piece.kind == "run" else "fragment" if piece.step else ""
                placed[id(piece.cell)] = _cell(kind, nbformat.from_dict(json.loads(json.dumps(piece.cell))), number, piece)
                cells.append(placed[id(piece.cell)])
    for number, cell in enumerate(cells):
        cell.id = f"slide-{number}"
    result = nbformat.v4.new_notebook(cells=cells, metadata=dict(notebook.metadata))
    result.metadata[KEY] = {"titles": [slide.title for slide in made], "sources": sources(result)}
    return result


def _cell(kind: str, cell: NotebookNode, number: int, piece: Piece) -> NotebookNode:
    cell.metadata["slideshow"] = NotebookNode({"slide_type": kind} if kind else {})      # none: below the cell before it
    cell.metadata[KEY] = {"at": [] if piece.kind == "run" else [_at(number, piece)]}
    return cell


def _at(number: int, piece: Piece) -> list:
    part = {"source": "source", "text": "both"}.get(piece.kind, "output")
    return [number, piece.step, part, round(piece.scale, 3), round(piece.picture or piece.height), *(piece.rows or ())]


def _also(cell: NotebookNode, number: int, piece: Piece) -> None:
    """A cell whose source is already placed: its output beside it, or on a further slide."""
    at = cell.metadata[KEY]["at"]
    if at and at[-1][0] == number:                                  # its source stands on the same slide
        at[-1][2] = "both"
    else:
        at.append(_at(number, piece))


def _joined(before: str, after: str) -> str:
    """Two texts in one; items of a list stay one list, without a gap."""
    items = blocks.split(before)[-1].kind == "item" == blocks.split(after)[0].kind
    return before + ("\n" if items else "\n\n") + after


def sources(notebook: NotebookNode) -> str:
    """SHA-256 of the cells' texts: it tells a copy that a lecturer has changed from one that has only run.

    >>> from nbformat.v4 import new_code_cell, new_notebook
    >>> one, ran, changed = (new_notebook(cells=[cell]) for cell in (
    ...     new_code_cell("1"), new_code_cell("1", execution_count=1), new_code_cell("2")))
    >>> sources(one) == sources(ran), sources(one) == sources(changed)
    (True, False)
    """
    return hashlib.sha256(json.dumps([[cell.cell_type, cell.source] for cell in notebook.cells]).encode()).hexdigest()


def write(path: Path, root: Path, short: bool = False) -> tuple[Path, Path | None]:
    """Makes the lecture's copy of the notebook at path, in root's folder FOLDER; a notebook that lies there already is opened as it is.

    Returns the copy's path, and that of an earlier copy which somebody had changed and which is kept under another name, or None.
    Raises ValueError for what is no notebook, and OSError, in one sentence, where the folder cannot be written.
    """
    folder = root / FOLDER
    if path.parent.resolve() == folder.resolve():
        return path, None
    notebook, target = with_pictures(read(path), path.parent), folder / path.name
    saving.make_folder(folder)
    kept = _kept(target)
    made, notes, page = copy(notebook, short), slides.notes(notebook.cells), notes_page(target)
    made.metadata[KEY]["notes"] = page.name if notes else ""
    saving.write({target: (nbformat.writes(made) + "\n").encode()})
    if path.resolve() in map(Path.resolve, released.as_released(root)):   # its stored outputs are shown at once, as the notebook's own are
        with NotebookNotary() as notary:
            notary.sign(made)
    if notes:
        saving.write({page: NOTES.format(marker=MARKER, title=html.escape(path.stem.replace("_", " ")), notes=prose(notes),
                                         mathjax=mathjax() if "$" in notes else "").encode()})
    else:
        page.unlink(missing_ok=True)
    return target, kept


def notes_page(copied: Path) -> Path:
    """Where the speaker's notes of a copy lie: a page that was written here, or the first name that is free.

    >>> notes_page(Path("lectures/02_linear.ipynb")).as_posix()
    'lectures/02_linear_notes.html'
    """
    return next(path for path in _names(copied, f"{copied.stem}_notes", ".html")
                if not path.exists() or path.is_file() and MARKER.encode() in path.read_bytes()[:500])


def _names(beside: Path, stem: str, end: str) -> Iterator[Path]:
    """The name, the name with _2, with _3 and so on."""
    return (beside.with_name(f"{stem}{'' if number == 1 else f'_{number}'}{end}") for number in itertools.count(1))


def with_pictures(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy whose Markdown holds the pictures that it shows: those attached to a cell, and files named from folder, where the page lies.

    >>> from nbformat.v4 import new_notebook
    >>> cell = new_markdown_cell("![saw](attachment:a.png)", attachments={"a.png": {"image/png": "AAAA"}})
    >>> with_pictures(new_notebook(cells=[cell]), Path()).cells[0].source
    '![saw](data:image/png;base64,AAAA)'
    """
    made = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in made.cells:
        if cell.cell_type == "markdown":
            held = functools.partial(_held, cell.pop("attachments", {}), folder)
            cell.source = re.sub(r"!\[([^\]]*)\]\((?!https?:|data:)([^)\s]+)\)", held, cell.source)
    return made


def _held(attached: Mapping, folder: Path, found: re.Match) -> str:
    name = unquote(found[2])
    path, kind = folder / name, SHOWN.get(Path(name).suffix.lower())
    content = next(iter(attached.get(name.removeprefix("attachment:"), {}).values()), "")
    if kind and not content and path.is_file():
        content = base64.b64encode(path.read_bytes()).decode()
    return f"![{found[1]}](data:image/{kind};base64,{content})" if kind and content else found[0]


def read(path: Path) -> NotebookNode:
    """A notebook of format 4. Raises ValueError for anything else."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError:
        raise
    except Exception:
        raise ValueError(f"{path.name} is not a Jupyter notebook of format 4.") from None
    return notebook


def _kept(target: Path) -> Path | None:
    """Moves an earlier copy aside if its cells are no longer those that were written."""
    if not target.exists():
        return None
    try:
        before = read(target)
        if before.metadata.get(KEY, {}).get("sources") == sources(before):
            return None
    except ValueError:                                              # whatever it is, it is not ours to throw away
        pass
    aside = next(path for path in _names(target, f"{target.stem}_{datetime.now():%Y-%m-%d_%H%M%S}", ".ipynb") if not path.exists())
    target.rename(aside)
    return aside
