"""A notebook's live figures alone, on a page of their own: which statements of the notebook build them, and how they are shown.

A figure's page is worked out from the notebook. Its cell ends in the figure; of the statements before it those are kept that it needs
(qlab.lab.needs), and imports with the calls that stand in their cell, which set the look of pictures. Where what they make does not look
as the page has stored it, for a call such as losses = fit(net) has changed what it was given, all statements before it run.

    figures(path)   what live figures a notebook has, and what each is about: read from its text, nothing runs
    page(path)      the small notebook that builds them and calls qlab.lecture.beamer.show, which runs in the kernel of that page
"""

import ast
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from qlab.lab import demos, hidden, needs
from qlab.lecture.live import read


@dataclass(frozen=True)
class Figure:
    """A live figure of a notebook: the number of its cell, and the first sentence of what the library says of it."""

    cell: int
    sentence: str


def figures(path: Path) -> list[Figure]:
    """The live figures of a stored notebook, in their order; a stored output says which cells show one.

    >>> from qlab.lab.notebooks import FOLDER
    >>> [figure.sentence for figure in figures(FOLDER / "04_kmeans_quantization.ipynb")]
    ["Lloyd's iteration on any of the named weights: layer, start and bits are chosen, and a slider goes through the iterations."]
    """
    cells = read(path).cells
    makers = _makers([cell.source for cell in cells if cell.cell_type == "code" and _is_python(cell.source)])
    return [Figure(n, _sentence(cell.source, makers)) for n, cell in enumerate(cells) if hidden.is_live(cell)]


def page(path: Path, folder: Path) -> NotebookNode:
    """A notebook of two cells that builds the live figures of the one at path and shows them; stills go to folder.

    Its metadata has what the page says until they are there: the title, and a sentence. Raises ValueError where the notebook has none, or a
    cell above one is no plain Python.
    """
    cells = read(path).cells
    live = {n for n, cell in enumerate(cells) if hidden.is_live(cell)}
    if not live:
        raise ValueError(f"{path.name} has no live figure: qlab demo lists the notebooks that have one.")
    if broken := [n for n, cell in enumerate(cells[:max(live) + 1]) if cell.cell_type == "code" and not _is_python(cell.source)]:
        raise ValueError(f"cell {broken[0] + 1} of {path.name} is no plain Python, so no live figure can be made from it: mend it.")
    setup, timed = _setup(cells, live)
    wait = {"title": cells[0].source.partition("\n")[0].lstrip("# "), "why": _why_wait(setup)}
    silent = ("from IPython.utils.capture import capture_output\n\nfrom qlab.lecture.beamer import as_stored\n\n"
              f"qlab_figures = []\nwith capture_output():\n{textwrap.indent(setup, 4 * ' ')}")
    if not timed:  # what is measured looks other each time
        whole = textwrap.indent(_setup(cells, live, whole=True)[0], 8 * " ")
        silent += f"\n    if not as_stored(qlab_figures, {str(path.resolve())!r}, {sorted(live)}):\n        qlab_figures.clear()\n{whole}"
    show = f"from qlab.lecture.beamer import show\n\nshow(qlab_figures, {path.stem!r}, {str(folder)!r})"
    code = [nbformat.v4.new_code_cell(source) for source in (silent, show)]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return nbformat.v4.new_notebook(cells=code, metadata={"kernelspec": kernel, "qlab": wait})


def _why_wait(setup: str) -> str:
    """What the page says while its statements run.

    >>> _why_wait("a = 1"), _why_wait("net = student()\\nfit(net, images)")
    ('The page is getting ready', 'This page first trains a network')
    """
    called = {_last_word(node.func) for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Call)}
    return "This page first trains a network" if "fit" in called else "The page is getting ready"


def _setup(cells: list[NotebookNode], live: set[int], whole: bool = False) -> tuple[str, bool]:
    """The statements that build the figures, in their order, or all up to them; each figure is appended to the list qlab_figures.

    And whether a time is measured among those that are needed.
    """
    page = needs.statements(cells[:max(live) + 1])
    last = {statement.cell: statement for statement in page if statement.cell in live}
    kept = needs.needed(page, live | {n for n, cell in enumerate(cells) if cell.cell_type == "code" and _prepares(cell.source)})
    return "\n".join(f"qlab_figures.append({statement.source})" if statement is last.get(statement.cell) else statement.source
                     for statement in (page if whole else kept)), needs.takes_times(kept)


def _prepares(source: str) -> bool:
    """Whether a cell is imports, and calls beside them whose results are dropped, such as plot.use_style().

    >>> _prepares("import os; os.chdir('.')"), _prepares("import torch; x = torch.ones(2)")
    (True, False)
    """
    body = ast.parse(source).body if _is_python(source) else []
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    calls = [node for node in body if isinstance(node, ast.Expr) or isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_"]
    return bool(imports) and len(imports) + len(calls) == len(body)


def _last_word(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def _is_python(source: str) -> bool:
    """No magic, and finished."""
    try:
        return bool(ast.parse(source))
    except (SyntaxError, ValueError):
        return False


def _makers(sources: list[str]) -> dict[str, str]:
    """What a page calls each function of qlab.lab.demos that makes a live figure -> the function's docstring."""
    makers = {}
    for node in (node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)):
        for alias in node.names:
            name, module = alias.asname or alias.name, node.module or ""
            if module == demos.__name__:
                makers |= {f"{name}.{function}": text for function, text in _docstrings(alias.name).items()}
            elif module.startswith(f"{demos.__name__}.") and (text := _docstrings(module.rpartition(".")[2]).get(alias.name)):
                makers[name] = text
    return makers


def _docstrings(module: str) -> dict[str, str]:
    tree = ast.parse((Path(demos.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).endswith("Live")}


def _sentence(source: str, makers: dict[str, str]) -> str:
    called = (ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)) if _is_python(source) else ()
    text = next((makers[name] for name in called if name in makers), "A figure of the page's own.")
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."
