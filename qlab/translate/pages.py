"""A page in another language, from the English notebook and what translators wrote.

    translations/zh/notebooks/02_linear_quantization.txt    the text of its Markdown cells, each under the English cell that it is of
    translations/zh/code.po                                 the words inside of all pages' code (module code)

    <!-- cell a480b678 of 0c1f5a9d22e7 -->                  the cell's id, and 12 digits of the SHA-256 of its English text
    # 02 · 线性量化

A text is current as long as the page has a cell with that hash. A cell of another hash in the same place makes it stale: the page then
shows the English text, with a line that says so. `qlab translate 02` writes ": stale" or ": missing" behind the new hash, and the English
text below; a translator who has mended the text takes the word away.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

from qlab import saving
from qlab.translate import code, into, po, stills, survives

CELL = re.compile(r"<!-- cell (\S+) of ([0-9a-f]{12})(?:: (stale|missing))? -->$")
ENGLISH, END = "<!-- english", "english -->"
SPEAKER = "speaker"  # the tag of a lecturer's notes: no part of the page that a student reads


@dataclass(frozen=True)
class Text:
    """A translated cell: the id and hash of the English one, the text, and "stale" or "missing" where it is still to be done."""

    id: str
    of: str
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Cell:
    """An English Markdown cell and what there is of it. state: done, stale or missing."""

    id: str
    english: str
    text: str
    state: str


def digest(english: str) -> str:
    """12 digits of the SHA-256 of a cell's text.

    >>> digest("")
    'e3b0c44298fc'
    """
    return hashlib.sha256(english.encode()).hexdigest()[:12]


def place(path: Path, asked: str) -> Path:
    """Where the translation of a page lies: translations/LANGUAGE/FOLDER/NAME.txt in the course's folder.

    >>> place(Path("notebooks/02_linear.ipynb"), "zh").relative_to(Path.cwd()).as_posix()
    'translations/zh/notebooks/02_linear.txt'
    """
    return path.resolve().parents[1] / "translations" / asked / path.parent.name / f"{path.stem}.txt"


def read(path: Path) -> list[Text]:
    """The texts of such a file, in their order; none where there is no file. Raises ValueError for a line that belongs to no cell."""
    if not path.is_file():
        return []
    found, lines, english = [], None, False
    for number, line in enumerate(saving.read(path).decode("utf-8").splitlines(), 1):
        if english or line == ENGLISH:
            english = line != END
        elif match := CELL.match(line):
            lines = []
            found.append((match, lines))
        elif lines is not None:
            lines.append(line)
        elif line.strip() and not line.startswith("<!--"):
            raise ValueError(f"{path}, line {number} stands before the first cell.")
    return [Text(match[1], match[2], "\n".join(lines).strip(), match[3] or "") for match, lines in found]


def cells(notebook: nbformat.NotebookNode, texts: list[Text]) -> list[Cell]:
    """The Markdown cells of an English page, in their order, each with its translation: by its hash, else by its id, else by its place.

    >>> page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id=text) for text in ("Two", "Zero")])
    >>> [cell.state for cell in cells(page, [Text("Tow", "0" * 12, "二"), Text("Zero", digest("Zero"), "零")])]
    ['stale', 'done']
    """
    english = [cell for cell in notebook.cells if cell.cell_type == "markdown" and SPEAKER not in cell.metadata.get("tags", [])]
    by_hash = {text.of: text for text in texts if not text.mark}
    by_id = {text.id: text for text in texts}
    known = {cell.id: by_hash.get(digest(cell.source)) for cell in english}
    used = {text.id for text in known.values() if text}
    known |= {name: by_id[name] for name in known if known[name] is None and name in by_id and name not in used}
    used |= {text.id for text in known.values() if text}
    left, ids = [text.id for text in texts], [known[cell.id].id if known[cell.id] else None for cell in english]
    for kind, i, j, k, m in difflib.SequenceMatcher(None, left, ids, autojunk=False).get_opcodes():
        if kind == "replace":  # texts whose cell is gone, where cells without a text stand
            gone = [one for one in left[i:j] if one not in used]
            known |= dict(zip((cell.id for cell in english[k:m] if known[cell.id] is None), (by_id[one] for one in gone)))
    return [_cell(cell, known[cell.id]) for cell in english]


def _cell(cell: nbformat.NotebookNode, text: Text | None) -> Cell:
    if text is None or not text.text:
        return Cell(cell.id, cell.source, "", "missing")
    current = text.of == digest(cell.source) and not text.mark
    return Cell(cell.id, cell.source, text.text, "done" if current else "stale")


def words(path: Path, asked: str) -> dict[str, str]:
    """The words inside of code, of all pages: English -> translation, "" where there is none; {} without a code.po."""
    file = place(path, asked).parents[1] / "code.po"
    return po.read(file) if file.is_file() else {}


def load(path: Path) -> nbformat.NotebookNode:
    """An English page. Raises ValueError where it is no notebook."""
    try:
        return nbformat.reads(saving.read(path).decode("utf-8"), 4)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is no notebook.") from error


def translated(path: Path, asked: str) -> nbformat.NotebookNode | None:
    """As qlab.translate.translated, for a known language."""
    if not asked or not place(path, asked).is_file():
        return None
    notebook = load(path)
    texts = {cell.id: cell for cell in cells(notebook, read(place(path, asked)))}
    known = {one: other for one, other in words(path, asked).items() if other}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _translate_code(cell, known, asked)
        elif cell.id in texts:
            cell.source = _shown(texts[cell.id], asked)
    return notebook


def _translate_code(cell: nbformat.NotebookNode, known: Mapping[str, str], asked: str) -> None:
    english = cell.source
    try:
        cell.source = code.replaced(english, known)
    except ValueError:  # `qlab translate --check` tells; a reader gets code that runs
        return
    for output in cell.outputs:
        stills.translate(output, {one: known[one] for one in code.words(english) if one in known}, asked)


def _shown(cell: Cell, asked: str) -> str:
    if cell.state == "stale":
        return f"{cell.english}\n\n*{into(asked, 'The English text has changed since it was translated.')}*"
    return unwrapped(cell.text) or cell.english


WIDE = "\u3000-\u303f\u3400-\u9fff\uff00-\uffef“”…"  # Chinese letters and marks
BREAK = re.compile(rf"(?<=[{WIDE}*])(?<![^{WIDE}*]\*)\n *(?=\*{{0,2}}[{WIDE}])"
                   r"|(?<=[，。；：、！？）”])\n *(?!\s|[-*+#|>] |[#|>$]|\d+\. |```)")


def unwrapped(text: str) -> str:
    """A Chinese text without its line breaks inside of a paragraph: a browser would show a space for each.

    >>> unwrapped("一个\\n**例子**\\n是，\\n- `a`\\n  和 b")
    '一个**例子**是，\\n- `a`\\n  和 b'
    """
    return BREAK.sub("", text)


def skeleton(path: Path, asked: str) -> str:
    """The file of a page as a translator wants it: what is done as it is, and what is not with the English text below it.

    A text whose English cell is gone stays at the end, under the same header, and is not shown.
    """
    texts = read(place(path, asked))
    found = cells(load(path), texts)
    blocks = [f"<!-- The text of {path.parent.name}/{path.name}: qlab translate {path.parent.name}/{path.name} refreshes this file. -->"]
    for cell in found:
        mark = "" if cell.state == "done" else f": {cell.state}"
        english = [] if cell.state == "done" else [f"{ENGLISH}\n{cell.english}\n{END}"]
        blocks.append("\n".join([f"<!-- cell {cell.id} of {digest(cell.english)}{mark} -->", *filter(None, [cell.text]), *english]))
    shown = {cell.text for cell in found}
    blocks += [f"<!-- cell {text.id} of {text.of}: stale -->\n{text.text}" for text in texts if text.text and text.text not in shown]
    return "\n\n".join(blocks) + "\n"


def problems(path: Path, asked: str) -> list[str]:
    """What the translation of a page has broken: one line each, [] if it holds."""
    told, notebook = [], load(path)
    found = cells(notebook, read(place(path, asked)))
    for cell in found:
        if cell.state == "done":
            told += [f"cell {cell.id}: {why}" for why in survives.lost(cell.english, cell.text)]
    headings = {match[1].strip().replace(" ", "-") for cell in found for match in re.finditer(r"^#+ (.+)$", cell.text, re.MULTILINE)}
    links = (match[1] for cell in found if cell.state == "done" for match in re.finditer(r"\]\(#([^)\s]+)\)", cell.text))
    told += [f"the link #{link} leads to no heading of the page" for link in links if link not in headings]
    known = {one: other for one, other in words(path, asked).items() if other}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            told += _code_problems(cell, known)
    return told


def _code_problems(cell: nbformat.NotebookNode, known: Mapping[str, str]) -> list[str]:
    told = [f"code cell {cell.id}: {why}" for one in code.words(cell.source) if one in known for why in survives.lost(one, known[one])]
    try:
        code.replaced(cell.source, known)
    except ValueError as error:
        told.append(f"code cell {cell.id}: {error}")
    return told
