"""Which statements of a page a cell needs: those that give its names their values, those that change these, and so on backwards.

So a live figure, or the answer to a question, is made from the page's own code without running the page: of the statements before it only
those that it hangs on.
"""

import ast
import re
import symtable
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nbformat import NotebookNode

from qlab.lab import hidden
from qlab.lab.notebooks import TIMERS

SAYS = ("print", "display", "assert_close", *hidden.QUESTIONS)  # calls that change nothing that they are given


@dataclass(frozen=True)
class Statement:
    """One statement of a page.

    cell: its index; sets: the names that it gives a value or changes; fresh: those of them whose value is new, whatever it was; reads: the
    names that it reads, or that the function which it defines reads when it is called; defines: that function's name.
    """

    cell: int
    source: str
    sets: frozenset[str]
    fresh: frozenset[str]
    reads: frozenset[str]
    defines: str = ""


def statements(cells: Sequence[NotebookNode]) -> list[Statement]:
    """All statements of the code cells, in order. Raises SyntaxError for a cell that is no plain Python, a magic say."""
    trees = [(number, node) for number, cell in enumerate(cells) if cell.cell_type == "code" for node in ast.parse(cell.source).body]
    fixed = {name for _, node in trees if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)  # modules and functions: no call
             for name in _table(node)[1]}                                                                # changes them
    return [_statement(number, node, fixed) for number, node in trees]


def needed(page: Sequence[Statement], cells: Iterable[int]) -> list[Statement]:
    """The statements of these cells, and those before them that they need.

    >>> import nbformat
    >>> page = ["import math", "a = 2", "a = [math.pi]", "b = 1", "a[0] += 1", "print(a)", "a"]
    >>> page = statements([nbformat.v4.new_code_cell(source) for source in page])
    >>> [statement.source for statement in needed(page, [6])]
    ['import math', 'a = [math.pi]', 'a[0] += 1', 'a']
    """
    cells, wanted, kept = set(cells), set(), []
    functions = {statement.defines: statement.reads for statement in page if statement.defines}
    for statement in reversed(page):
        if statement.cell in cells or statement.sets & wanted:
            kept.append(statement)
            reads = set(statement.reads)
            while more := set().union(*(functions.get(name, ()) for name in reads)) - reads:
                reads |= more  # what a function reads when it is called, it may have been given after it was defined
            wanted = wanted - statement.fresh | reads
    return kept[::-1]


def takes_times(statements: Iterable[Statement]) -> bool:
    """Whether one of these measures a time of this machine, so that what hangs on it is other each time.

    >>> takes_times([Statement(0, "ms = measure.latency_ms(net)", frozenset(), frozenset(), frozenset())])
    True
    """
    return any(re.search(rf"\b({'|'.join(TIMERS)})\(", statement.source) for statement in statements)


def _table(node: ast.stmt) -> tuple[symtable.SymbolTable, set[str]]:
    """Python's own table of a statement's names, and those that it gives a value."""
    table = symtable.symtable(ast.unparse(node), "cell", "exec")
    return table, {name.get_name() for name in table.get_symbols() if name.is_assigned() or name.is_imported() or name.is_namespace()}


def _statement(cell: int, node: ast.stmt, fixed: set[str]) -> Statement:
    table, sets = _table(node)
    reads = {name.get_name() for name in table.get_symbols() if name.is_referenced()} | _from_inside(table)
    changed = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            changed.add(_base(part))
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call) and _base(part.value.func, last=True) not in SAYS:
            changed |= {name.id for name in ast.walk(part) if isinstance(name, ast.Name)}  # train(model, images), found.append(x)
    targets = node.targets if isinstance(node, ast.Assign) else []
    fresh = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    defines = node.name if isinstance(node, ast.FunctionDef) else ""
    return Statement(cell, ast.unparse(node), frozenset(sets | changed - fixed - {""}), frozenset(fresh), frozenset(reads), defines)


def _from_inside(table: symtable.SymbolTable) -> set[str]:
    """Names of the page that functions and comprehensions inside a statement read."""
    names = set()
    for child in table.get_children():
        names |= {name.get_name() for name in child.get_symbols() if name.is_global() and name.is_referenced()} | _from_inside(child)
    return names


def _base(node: ast.expr, last: bool = False) -> str:
    """The name that a[...].b belongs to: "a"; with last=True the one it ends in: "b"; "" if there is none."""
    if last and isinstance(node, ast.Attribute):
        return node.attr
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
