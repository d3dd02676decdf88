"""Whose source a reader does not see: what stands before a page's first question, every cell that asks one, and what only draws.

A question's own code gives its answer away, imports are not what a first screen is for, and a cell that does nothing but draw what the
cells before it have computed (its first line is PICTURE) is not what a page teaches. Such cells carry JupyterLab's metadata
{"jupyter": {"source_hidden": true}}: JupyterLab folds their source (a click opens it), and `HideSource` leaves it out of what nbconvert
makes for reading. An installation tells every `jupyter nbconvert` of its environment to use it (etc/jupyter/jupyter_nbconvert_config.json);
scripts and notebooks keep their whole source.
"""

import ast
from collections.abc import Sequence

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from traitlets import Bool

from qlab.lab.jupyter.saving import OUR_WIDGETS

LIVE, PREDICT, CHECK = OUR_WIDGETS  # how what is stored of a live figure, of predict and of quiz begins, as plain text
QUESTIONS = ("predict", "quiz")
PICTURE = "# a picture (folded: its code only draws)"


def asks(source: str) -> bool:
    """Whether a cell asks the reader something: a call of predict or quiz, whatever module they are called by.

    >>> asks("widgets.quiz([])"), asks("model.predict_proba(x)")
    (True, False)
    """
    return question(_parsed(source)) is not None


def question(tree: ast.Module) -> tuple[str, ast.Call] | None:
    """The first call of predict or quiz in a cell, after which of the two it is; None where there is none.

    >>> question(ast.parse("x = 1\\nquiz([])"))[0]
    'quiz'
    """
    calls = ((getattr(node.func, "attr", getattr(node.func, "id", "")), node) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return next((found for found in calls if found[0] in QUESTIONS), None)


def imports(source: str) -> bool:
    """Whether a cell is imports, and at most one call besides, such as plot.use_style().

    >>> imports("import torch\\nplot.use_style()"), imports("import torch\\nx = 1")
    (True, False)
    """
    body = _parsed(source).body
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    calls = all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in rest)
    return len(rest) < len(body) and len(rest) <= 1 and calls


def is_live(cell: NotebookNode) -> bool:
    """Whether a cell shows a live figure, by what it has stored.

    >>> from nbformat.v4 import new_code_cell, new_output
    >>> is_live(new_code_cell(outputs=[new_output("display_data", {"text/plain": "Live figure: bits = 4"})])), is_live(new_code_cell())
    (True, False)
    """
    texts = [output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return any(text.startswith(LIVE) for text in texts)


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a magic, say: nothing that we hide
        return ast.Module([], [])


def mark(cells: Sequence[NotebookNode]) -> None:
    """Sets source_hidden on the code cells that are to be folded, in place, and takes it from those that ask nothing any more."""
    asking = [n for n, cell in enumerate(cells) if cell.cell_type == "code" and asks(cell.source)]
    first = asking[0] if asking else -1
    for n, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        folded = cell.metadata.get("jupyter", NotebookNode())
        folded.pop("source_hidden", None)
        if n <= first or n in asking or imports(cell.source) or cell.source.startswith(PICTURE):
            folded["source_hidden"] = True
        if folded:
            cell.metadata["jupyter"] = folded
        else:
            cell.metadata.pop("jupyter", None)


class HideSource(Preprocessor):
    """nbconvert's exporters leave out the source of a cell that JupyterLab folds; its outputs stay."""

    enabled = Bool(True).tag(config=True)  # whoever names it wants it: nbconvert's other preprocessors are off until told

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code" and cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.setdefault("transient", {})["remove_source"] = True
        return cell, resources
