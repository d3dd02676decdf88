"""A notebook as a page of the site: what it has stored, no speaker's notes, the answers to its questions, its live figures moving."""

import copy
import html
import json
import posixpath
import re
from collections.abc import Callable

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from qlab.lab import hidden, teaching
from qlab.site import asked, figures, frames, links
from qlab.translate import into

RUN = re.compile(r"\*\*Run all cells now\*\*.*?machine\.\s+|\*\*现在就运行所有单元格\*\*[^。]*。", re.DOTALL)  # advice for JupyterLab


def without_notes(notebook: NotebookNode) -> NotebookNode:
    """A copy without the cells that only a speaker sees.

    >>> import nbformat
    >>> cells = [new_markdown_cell("# Title"), new_markdown_cell("Ask them.", metadata={"tags": ["speaker"]})]
    >>> [cell.source for cell in without_notes(nbformat.v4.new_notebook(cells=cells)).cells]
    ['# Title']
    """
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if "speaker" not in cell.metadata.get("tags", [])]
    return notebook


def page(notebook: NotebookNode, path: str, drawn: dict | None, leads: Callable[[str], str | None], foot: str = "",
         language: str = "") -> NotebookNode:
    """The notebook that Sphinx makes a page of.

    path: where it lies in the repository; drawn: what qlab.site.frames has made of it, None if nothing; leads: of qlab.site.links;
    foot: Markdown for the end; language: of qlab.translate, "" for English.
    """
    drawn = drawn or {"figures": {}, "answers": {}, "left": {}}
    pictures = posixpath.relpath(f"frames/{posixpath.splitext(posixpath.basename(path))[0]}", posixpath.dirname(path))
    new = copy.deepcopy(notebook)
    new.cells = []
    for number, cell in enumerate(notebook.cells):
        if "speaker" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            new.cells.append(new_markdown_cell(links.rewritten(RUN.sub("", cell.source), path, leads)))
        elif cell.cell_type == "code":
            new.cells += _code(cell, number, drawn, pictures, language)
    if foot:
        new.cells.append(new_markdown_cell(foot))
    return new


def _code(cell: NotebookNode, number: int, drawn: dict, pictures: str, language: str) -> list[NotebookNode]:
    """A question as its text; a live figure as its code and pictures; any other cell with its outputs, pictures with their text."""
    if hidden.asks(cell.source):
        still = next((output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})), "")
        answers = asked.literal(cell.source) or drawn["answers"].get(number)
        return [_raw(f'<div class="qlab-question">{asked.with_answers(still, answers, language)}</div>')]
    cell = copy.deepcopy(cell)
    folded = cell.metadata.get("jupyter", {}).get("source_hidden")
    summary = NotebookNode(code_prompt_show=_summary(cell.source, language))
    cell.metadata = NotebookNode(tags=["hide-input"] if folded else [], mystnb=summary)
    picture = next((output for output in cell.outputs if "image/png" in output.get("data", {})), None)
    if not picture:
        return [cell]
    if number in drawn["figures"]:
        cell.outputs = [output for output in cell.outputs if output is not picture]
        return [cell, _raw(figures.figure(drawn["figures"][number], pictures, f"figure-{number}", language))]
    known = picture.metadata.get("image/png", {})
    look = {"alt": known.get("alt") or picture.data.get("text/plain", "")} | ({"width": f"{known['width']}px"} if "width" in known else {})
    cell.metadata["mystnb"]["image"] = look
    if not frames.is_live(cell):
        return [cell]
    note = (into(language, "Live in JupyterLab. Here it is one picture: its numbers are measured on the machine that runs the page.")
            if drawn["left"].get(number) == frames.MEASURED else into(language, "Live in JupyterLab; here it is one picture."))
    return [cell, _raw(f'<p class="qlab-note">{note}</p>')]


def _summary(source: str, language: str = "") -> str:
    """What stands on folded code: its first comment.

    >>> _summary("# a picture (folded: its code only draws)")
    'Code: a picture'
    """
    comment = re.match(r"# (.+?)(?: \(folded|（|$)", source.split("\n")[0])
    return into(language, "Code") + (f": {comment[1]}" if comment else "")


def _raw(text: str) -> NotebookNode:
    """HTML as it is, on one line; LaTeX between dollar signs outside its tags and its data becomes what MathJax looks for."""
    def math(found: re.Match) -> str:
        return f'<span class="math notranslate nohighlight">\\({found[1]}\\)</span>'

    parts = re.split(r"(<script.*?</script>|<[a-zA-Z/][^>]*>)", " ".join(text.split()))
    return new_markdown_cell("".join(part if i % 2 else re.sub(r"\$([^$]+)\$", math, part) for i, part in enumerate(parts)))


def foot(notebook: NotebookNode, exercise: str | None, download: str, binder: str | None, language: str = "") -> str:
    """What stands at a page's end: its objective, its sections of the source document, its exercise set, and where to work on it."""
    known = teaching.first(notebook)
    work = [f'<a href="{html.escape(download)}" download>{into(language, "Download this page as a notebook")}</a>']
    work += [f'<a href="{html.escape(binder)}">{into(language, "Run it on Binder")}</a>'] if binder else []
    lines = [f"**{into(language, 'Objective.')}** {known.objective}" if known.objective else "",
             f"**{into(language, 'In the source document.')}** {known.sections}" if known.sections else "",
             f"**{into(language, 'Practise.')}** [{into(language, 'The exercise set of this page')}]({exercise})" if exercise else "",
             f"**{into(language, 'Work on it.')}** {' · '.join(work)}"]
    return f":::{{admonition}} {into(language, 'About this page')}\n:class: qlab-foot\n" + "\n\n".join(filter(None, lines)) + "\n:::"


def as_text(notebook: NotebookNode) -> bytes:
    """The bytes of a notebook's file."""
    return (json.dumps(notebook, ensure_ascii=False, indent=1) + "\n").encode()
