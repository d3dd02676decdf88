"""A notebook's live figures alone, on a page of their own: which statements of the notebook build them, and how they are shown.

A figure's page is worked out from the notebook. Its cell ends in the figure; read backwards from there, every statement that sets or
changes what a later one reads is kept, the others (what prints, draws or asserts) are left out. Imports are kept, and with them the calls
that stand in their cell, which set the look of pictures.

    figures(path)   what live figures a notebook has, and what each is about: read from its text, nothing runs
    page(path)      the small notebook that builds them and calls qlab.lecture.beamer.show, which runs in the kernel of that page
"""

import ast
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from qlab.lab import demos, hidden
from qlab.lecture.live import read

NO_CHANGE = ("print", "display", "assert_close", *hidden.QUESTIONS)  # calls that leave what they are given as it was


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
    setup = statements([cell.source if cell.cell_type == "code" else "" for cell in cells], live)
    wait = {"title": cells[0].source.partition("\n")[0].lstrip("# "), "why": _why_wait(setup)}
    setup = textwrap.indent(setup, 4 * " ")
    silent = f"from IPython.utils.capture import capture_output\n\nqlab_figures = []\nwith capture_output():\n{setup}"
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


def statements(sources: list[str], live: set[int]) -> str:
    """The statements of code cells that the figures need, in their order; each figure is appended to the list qlab_figures.

    sources: the cells; live: the indices of those whose last expression is a figure.

    >>> print(statements(["a = 1; b = 2", "print(a)", "a += b\\nc = 3", "f(a)"], {3}))
    a = 1
    b = 2
    a += b
    qlab_figures.append(f(a))
    """
    kept, needed, sources = [], {"qlab_figures"}, sources[:max(live) + 1]
    every = [node for source in sources for node in ast.parse(source).body]
    modules = {alias.asname or alias.name for node in every if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    functions = {node.name: _reads(node) for node in every if isinstance(node, ast.FunctionDef)}
    for n, source in reversed(list(enumerate(sources))):
        body = ast.parse(source).body
        whole = _prepares(body)
        if n in live:
            body[-1] = ast.parse(f"qlab_figures.append({ast.unparse(body[-1])})").body[0]
        for node in reversed(body):
            if whole or isinstance(node, ast.Import | ast.ImportFrom) or needed & _changes(node) - modules:
                kept.append(ast.unparse(node))
                reads = _reads(node)
                while more := set().union(*(functions.get(name, ()) for name in reads)) - reads:
                    reads |= more  # what a function reads when it is called, it may have been given after it was defined
                needed = needed - _sets(node) | reads
    return "\n".join(reversed(kept))


def _prepares(body: list[ast.stmt]) -> bool:
    """Whether a cell is imports, and calls beside them whose results are dropped, such as plot.use_style()."""
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    calls = [node for node in body if isinstance(node, ast.Expr) or _stored(node) == {"_"}]
    return bool(imports) and len(imports) + len(calls) == len(body)


def _reads(statement: ast.AST) -> set[str]:
    """The names of the notebook that it reads: not those of its own loops, its own functions' arguments and what these set inside."""
    nodes = list(ast.walk(statement))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.For | ast.comprehension):
            own |= _stored(node.target)
        elif isinstance(node, ast.FunctionDef):
            own |= _stored(node)
    reads = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return (reads | {name for node in nodes if isinstance(node, ast.AugAssign) for name in _stored(node.target)}) - own


def _stored(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load)}


def _sets(statement: ast.stmt) -> set[str]:
    """The names that have a new value after it, whatever they were before."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {name for target in targets for name in _stored(target)}


def _changes(statement: ast.stmt) -> set[str]:
    """The names that it sets, or whose objects it may change: targets, definitions, and all in a call whose result is dropped."""
    names = _stored(statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            names |= _reads(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _last_word(node.value.func) not in NO_CHANGE:
            names |= _reads(node.value)
    return names


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
