"""From a solution notebook to the student's: what nbgrader's generate_assignment does to the cells, and the rules for authors.

    answer cell   ### BEGIN SOLUTION ..      ### END SOLUTION        becomes   # YOUR CODE HERE, raise NotImplementedError()
    test cell     ### BEGIN HIDDEN TESTS ..  ### END HIDDEN TESTS    is cut
    every cell    outputs are cleared; cells that a student must not edit or delete are locked
    the notebook  is stamped with its set's version, a hash of what its cells say, so that a hand-in tells which one it was made from

Cells carry nbgrader's metadata, schema 3. A rule that is broken raises ValueError: one sentence with the notebook, the question, what.
"""

import ast
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from qlab.errors import first_line

STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")
KEYS = {"schema_version", "grade_id", "grade", "solution", "locked", "task"}
LEAST_WRONG = 3
SHORTEST_SECRET = 13  # shorter lines, "return x", stand in every notebook


@dataclass(frozen=True)
class Question:
    """answer and test: indices of its two cells. wrong: [(note, source of the definition)]."""

    id: str
    points: float
    answer: int
    test: int
    wrong: tuple[tuple[str, str], ...]


def read(path) -> nbformat.NotebookNode:
    """A solution notebook, nbformat 4. Raises ValueError where it cannot be read as one."""
    try:
        notebook = nbformat.read(Path(path), 4)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no notebook: {first_line(error)}.") from None
    for cell in notebook.cells:
        cell.source = cell.source.replace("\r\n", "\n")
    return notebook


def grade_id(cell) -> str | None:
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def flag(cell, name: str) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get(name))


def split(source: str, mark: str, replacement: tuple[str, ...] = ()) -> tuple[str, str]:
    """The source without its marked regions, and what was cut.

    >>> split("a = 1\\n### BEGIN SOLUTION\\nb = 2\\n### END SOLUTION", "SOLUTION", ("pass",))
    ('a = 1\\npass', 'b = 2')
    """
    kept, cut, inside = [], [], False
    for line in source.split("\n"):
        if f"BEGIN {mark}" in line:
            if inside:
                raise ValueError(f"a second BEGIN {mark} before the END of the first")
            inside = True
            indent = re.match(r"\s*", line).group(0)
            kept += [indent + stub for stub in replacement]
        elif f"END {mark}" in line:
            if not inside:
                raise ValueError(f"an END {mark} without a BEGIN")
            inside = False
        else:
            (cut if inside else kept).append(line)
    if inside:
        raise ValueError(f"a BEGIN {mark} without an END")
    return "\n".join(kept), "\n".join(cut)


def student_notebook(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """What a student gets: the same cells without solutions, hidden tests and outputs; ids that do not change from build to build."""
    cells = []
    for n, cell in enumerate(notebook.cells):
        source, _ = split(cell.source, "SOLUTION", STUB)
        source, _ = split(source, "HIDDEN TESTS")
        metadata = {k: v for k, v in cell.metadata.items() if k in ("nbgrader", "tags", "slideshow")}
        if flag(cell, "grade"):  # folded: its 25 to 35 lines stood between an answer and its verdict
            metadata |= {"jupyter": {"source_hidden": True}}
        if flag(cell, "grade") or flag(cell, "locked"):
            metadata |= {"deletable": False, "editable": False}
        elif flag(cell, "solution"):
            metadata |= {"deletable": False}
        new = dict(cell_type=cell.cell_type, id=grade_id(cell) or f"cell{n}", metadata=metadata, source=source)
        if cell.cell_type == "code":
            new |= {"outputs": [], "execution_count": None}
        cells.append(nbformat.from_dict(new))
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"},
                "qlab": {"version": version(cells)}}
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def version(cells: list) -> str:
    """The version of a set: 12 digits of the SHA-256 of the kind, id and source of each cell that a student gets."""
    content = json.dumps([[cell.cell_type, cell.id, cell.source] for cell in cells])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def text(notebook: nbformat.NotebookNode) -> str:
    """A notebook as it stands in its file."""
    return nbformat.writes(notebook, indent=1) + "\n"


def questions(notebook: nbformat.NotebookNode, name: str) -> list[Question]:
    """The questions of a solution notebook, once its form has been checked."""
    cells = notebook.cells
    for n, cell in enumerate(cells):
        where = f"{name}, {grade_id(cell) or f'cell {n + 1}'}"
        try:
            _check_cell(cell)
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from None
    ids = [grade_id(cell) for cell in cells if grade_id(cell)]
    for one in ids:
        if ids.count(one) > 1:
            raise ValueError(f"{name}, {one}: two cells have this grade_id.")
    answers = {grade_id(cell): n for n, cell in enumerate(cells) if flag(cell, "solution")}
    tests = {grade_id(cell): n for n, cell in enumerate(cells) if flag(cell, "grade")}
    for test in tests:
        if test.removesuffix("_test") not in answers or not test.endswith("_test"):
            raise ValueError(f"{name}, {test}: a test cell must be named after an answer cell, as q1_test after q1.")
    found = []
    for question, answer in answers.items():
        where = f"{name}, {question}"
        test = tests.get(f"{question}_test")
        if test is None or test < answer:
            raise ValueError(f"{where}: there is no test cell {question}_test after the answer cell.")
        points = cells[test].metadata.nbgrader.get("points")
        if isinstance(points, bool) or not isinstance(points, int | float) or not points > 0:
            raise ValueError(f"{where}: points are missing; the test cell's metadata must hold a number above 0.")
        visible, secret = split(cells[test].source, "HIDDEN TESTS")
        if not secret.strip():
            raise ValueError(f"{where}: there are no hidden tests in the test cell.")
        if not re.search(rf"^check\(['\"]{re.escape(question)}['\"]\)", visible, re.M):
            raise ValueError(f"{where}: the test cell must call check({question!r}) before its hidden tests.")
        wrong = _wrong_solutions(secret, question, where)
        if len(wrong) < LEAST_WRONG:
            raise ValueError(f"{where}: there are {len(wrong)} wrong solutions, and must be at least {LEAST_WRONG}.")
        found.append(Question(question, points, answer, test, tuple(wrong)))
    if not found:
        raise ValueError(f"{name}: there is no question in it.")
    return found


def _check_cell(cell) -> None:
    metadata = cell.metadata.get("nbgrader")
    if metadata is not None and (not KEYS <= metadata.keys() or metadata["schema_version"] != 3):
        raise ValueError(f"the nbgrader metadata must have schema_version 3 and the keys {', '.join(sorted(KEYS))}")
    solution, grade = flag(cell, "solution"), flag(cell, "grade")
    if (solution or grade) and (cell.cell_type != "code" or solution == grade):
        raise ValueError("answers and tests are code cells, each of its own: one of solution and grade is true, the other false")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", grade_id(cell) or "setup"):
        raise ValueError("a grade_id has letters, digits and _ only")
    without, _ = split(cell.source, "SOLUTION")
    if solution and without == cell.source:
        raise ValueError("the answer cell has no ### BEGIN SOLUTION and ### END SOLUTION")
    if not solution and without != cell.source:
        raise ValueError("a solution is marked in a cell that is no answer cell")
    if split(cell.source, "HIDDEN TESTS")[0] != cell.source and not grade:  # of a test cell, too, half a marker is told with its place
        raise ValueError("hidden tests are marked in a cell that is no test cell")
    if grade and not flag(cell, "locked"):
        raise ValueError("a test cell must be locked")


def _wrong_solutions(secret: str, question: str, where: str) -> list[tuple[str, str]]:
    """(note, source without the decorator) of each definition marked @wrong(question, note)."""
    try:
        tree = ast.parse(secret)
    except SyntaxError as error:
        raise ValueError(f"{where}: the hidden tests are no Python ({error.msg}, line {error.lineno} of them).") from None
    lines, found = secret.split("\n"), []
    for node in tree.body:
        for mark in getattr(node, "decorator_list", []):
            if not (isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "wrong"):
                continue
            words = [word.value for word in mark.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            if len(words) != 2 or words[0] != question or not words[1].strip():
                raise ValueError(f"{where}: a wrong solution here must be marked @wrong({question!r}, \"what is wrong\").")
            if words[1] in dict(found):
                raise ValueError(f"{where}: two wrong solutions are called {words[1]!r}.")
            found.append((words[1], "\n".join(lines[node.lineno - 1:node.end_lineno])))
    return found


def leaks(solutions: dict[str, nbformat.NotebookNode], files: dict[str, str]) -> list[str]:
    """One sentence for each solution notebook of which a hidden line stands in one of the files (name -> text) that students get.

    Hidden are the lines of solutions and of hidden tests. Left out are those of fewer than 13 characters, and those that stand, whole,
    in the code which students see.
    """
    texts, visible = {}, set()
    for title, text in files.items():
        try:
            content = json.loads(text) if title.endswith(".ipynb") else text
        except ValueError:
            content = text
        texts[title] = "\n".join(_strings(content))
        for cell in content.get("cells", []) if isinstance(content, dict) else []:
            if cell.get("cell_type") == "code":
                visible |= {line.strip() for line in "".join(cell.get("source", [])).split("\n")}
    found = []
    for name, notebook in solutions.items():
        for cell in notebook.cells:
            rest, solution = split(cell.source, "SOLUTION")
            secrets = [line.strip() for line in f"{solution}\n{split(rest, 'HIDDEN TESTS')[1]}".split("\n")]
            leaked = [(line, title) for line in secrets if len(line) >= SHORTEST_SECRET and line not in visible
                      for title, text in texts.items() if line in text]
            if leaked:
                line, title = leaked[0]
                found.append(f"{name}, {grade_id(cell).removesuffix('_test')}: a hidden line is in {title}: {line!r}.")
                break
    return found


def _strings(content):
    """Everything that someone could read in a notebook: sources, outputs, attachments, metadata; a text itself."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _strings(value)
    elif isinstance(content, list) and all(isinstance(line, str) for line in content):
        yield "".join(content)  # the lines of a source
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
    elif isinstance(content, str):
        yield content
