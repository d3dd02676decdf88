"""Which cell of a notebook answers a question: among those with the question's id the last that defines a function asked for.

    def, class, import, f = lambda ...            defines it, unless it is blank: a body that begins with raise NotImplementedError
    f = partial(g, 8)                             may do so: counts where no cell does
    f = f(3), f = 4                               makes something else of the name: a scratch cell, maybe a copy of the answer's

JupyterLab's copy of a cell keeps its id. Is no cell of the id an answer, then the last of all that defines all functions asked for is.
The text is a stranger's: it is parsed, never run, and only up to a length (Python's parser raises RecursionError or MemoryError for what
is nested too deep); of what is longer or is no Python, as a cell with magics, the lines that look like definitions are taken.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Mapping

SURE, MAYBE, BLANK = 3, 2, 1
LONGEST, MOST = 20_000, 400_000  # characters of a cell, and of all cells of a notebook, that are parsed
OPEN = re.compile(r"^[ \t]*raise NotImplementedError\b", re.MULTILINE)
_INTO_A_FILE = "%%writefile", "%%file"  # a later cell will import it
_MAGIC = re.compile(r"^[ \t]*[%!?].*$|^.*\?[ \t]*$", re.MULTILINE)
_DEFINED = re.compile(r"^[ \t]*(?:async +)?(?:def|class) +(\w+)", re.MULTILINE)
_IMPORTED = re.compile(r"^[ \t]*from +[\w.]+ +import +(.*)", re.MULTILINE)
_ASSIGNED = re.compile(r"^[ \t]*(\w+) *(?::[^=\n]*)?=(?!=)", re.MULTILINE)


def places(cells: list[dict], answers: Mapping[str, Iterable[str]]) -> dict[str, tuple[int | None, bool]]:
    """Of each answer cell that the assignment has: the index of the cell that counts as it, and whether it is answered there.

    cells: without copies of test cells; answers: as which.asked finds them. None where no cell has the id or defines all its functions.

    >>> sources = "def f(x): return x", "f = f(3)", "def g(x): raise NotImplementedError()"
    >>> cells = [{"source": source, "grade_id": name} for source, name in zip(sources, ("q1", "q1", "q2"))]
    >>> places(cells, {"q1": {"f"}, "q2": {"g"}, "q3": {"h"}})
    {'q1': (0, True), 'q2': (2, False), 'q3': (None, False)}
    """
    kinds = of_cells(cells)
    return {name: _place(cells, kinds, name, set(functions)) for name, functions in answers.items()}


def of_cells(cells: Iterable[dict]) -> list[dict[str, int]]:
    """What each cell defines, as `defined` finds it."""
    found, spent = [], 0
    for cell in cells:
        spent += min(len(cell["source"]), LONGEST)
        found.append(defined(cell["source"], parse=spent <= MOST))
    return found


def best(kinds: Mapping[str, int], functions: Iterable[str]) -> int:
    """The surest way in which a cell defines one of these functions; 0 if it defines none."""
    return max((kinds.get(function, 0) for function in functions), default=0)


def _place(cells: list[dict], kinds: list[dict[str, int]], name: str, functions: set[str]) -> tuple[int | None, bool]:
    own = [k for k, cell in enumerate(cells) if cell["grade_id"] == name]
    if functions:
        ways = {k: best(kinds[k], functions) for k in own}
    else:  # they are not known
        ways = {k: BLANK if OPEN.search(cells[k]["source"]) or not cells[k]["source"].strip() else SURE for k in own}
    answered = [k for k in own if ways[k] > BLANK]
    if answered:
        return max(answered, key=lambda k: (ways[k], k)), True
    elsewhere = [k for k, kind in enumerate(kinds) if functions and all(kind.get(function) == SURE for function in functions)]
    if elsewhere:
        return elsewhere[-1], True
    return (max(own, key=lambda k: (ways[k], k)), False) if own else (None, False)


def defined(source: str, parse: bool = True) -> dict[str, int]:
    """The names that a cell's text defines, outside of functions: SURE, MAYBE or BLANK.

    >>> defined("def f(bits):\\n    if bits > 16:\\n        raise NotImplementedError('more than 16')\\n    return bits")
    {'f': 3}
    >>> defined("%matplotlib inline\\ndef f(x):\\n    '''Twice x.'''\\n    raise NotImplementedError()")
    {'f': 1}
    >>> defined("def f(x:\\n    return 1\\ng = 2")  # no Python
    {'g': 2, 'f': 3}
    """
    tree = _parsed(source) if parse and len(source) <= LONGEST else None
    found = _of_text(source) if tree is None else _of_tree(tree)
    return {name: min(way, MAYBE) for name, way in found.items()} if source.lstrip().startswith(_INTO_A_FILE) else found


def _parsed(source: str) -> ast.Module | None:
    for text in dict.fromkeys((source, _MAGIC.sub("", source))):
        try:
            with warnings.catch_warnings(action="ignore"):
                return ast.parse(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # ValueError: a NUL, half a character, a number too long
            pass
    return None


def _of_tree(tree: ast.Module) -> dict[str, int]:
    found, waiting = {}, tree.body[::-1]
    while waiting:  # not by recursion: elif after elif is nested as deep as it is long
        step = waiting.pop()
        if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[step.name] = BLANK if _blank(step) else SURE
        elif isinstance(step, ast.ImportFrom):
            found |= {alias.asname or alias.name: SURE for alias in step.names}
        elif isinstance(step, ast.Assign | ast.AnnAssign) and step.value:
            for name in _targets(step):
                way = SURE if isinstance(step.value, ast.Lambda) else 0 if _uses_up(step.value, name) else MAYBE
                if way and found.get(name) != SURE:
                    found[name] = way
        else:
            inner = [node for node in ast.iter_child_nodes(step) if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case)]
            waiting += inner[::-1]
    return found


def _targets(step: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = step.targets if isinstance(step, ast.Assign) else [step.target]
    flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]
    return [one.id for one in flat if isinstance(one, ast.Name)]


def _uses_up(value: ast.expr, name: str) -> bool:
    """Whether what is assigned to a name is no function: a number, a list, or what the name's own function returns."""
    if isinstance(value, ast.Constant | ast.List | ast.Tuple | ast.Dict | ast.Set | ast.JoinedStr | ast.Compare):
        return True
    return any(isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name for node in ast.walk(value))


def _blank(step: ast.stmt) -> bool:
    """Whether a function does nothing, or raises NotImplementedError before anything else; of a class, whether all of its methods do so."""
    if isinstance(step, ast.ClassDef):
        methods = [node for node in step.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        methods = [node for node in methods if node.name != "__init__"] or methods
        return bool(methods) and all(map(_blank, methods))
    first = next((node for node in step.body if not _says_nothing(node)), None)
    raised = first.exc if isinstance(first, ast.Raise) else None
    raised = raised.func if isinstance(raised, ast.Call) else raised
    return first is None or isinstance(raised, ast.Name) and raised.id == "NotImplementedError"


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _of_text(source: str) -> dict[str, int]:
    """The same by lines: taken for blank if all that the cell does is to raise."""
    blank = OPEN.search(source) and not re.search(r"^[ \t]*(?:return|yield)\b", source, re.MULTILINE)
    found = dict.fromkeys(_ASSIGNED.findall(source), MAYBE)
    found |= {name: SURE for line in _IMPORTED.findall(source) for name in re.findall(r"\w+", line[:1000])}
    return found | dict.fromkeys(_DEFINED.findall(source), BLANK if blank else SURE)
