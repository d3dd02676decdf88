"""Which of one student's notebooks counts. Of two, the first of these that tells them apart:

    the one that can be read                        a damaged file takes nothing from a good one
    the one in which a question is answered         a scratch file, a lesson and a blank set are no hand-in
    the one in time                                 what came after the deadline was not asked for
    the one that Jupyter did not save by itself     NAME-checkpoint.ipynb is an earlier state
    the one that answers more questions
    the one that holds more answer cells, or else defines more of the functions asked for
    the one named exactly as the assignment
    the newest; of late ones the newest of what came first

An answer cell has the question's id and defines a function that the question's tests call: every set calls its questions q1, q2, ... Some
editors drop the ids: a notebook that defines the functions of all questions without one is the set as well. A lesson defines a few.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Mapping

from qlab.grading.handed_in import definitions
from qlab.grading.handed_in.files import stem_of
from qlab.grading.handed_in.notebook import DEFINED

Answers = Mapping[str, frozenset[str]]  # answer cell: the functions that its question's tests call; empty where they are not known


def asked(bundle: dict) -> Answers:
    """The answer cells of a bundle, and the functions that a student defines in them.

    >>> case = {"call": "f(x, len(x))[0]", "inputs": {"x": [1]}, "setup": ""}
    >>> asked({"questions": [{"answer_cell": "q1", "cases": [case]}]})
    {'q1': frozenset({'f'})}
    """
    return {question["answer_cell"]: frozenset().union(*map(_called, question.get("cases", []))) for question in bundle["questions"]}


def _called(case: dict) -> set[str]:
    calls = (node.func for node in ast.walk(ast.parse(case["call"].strip())) if isinstance(node, ast.Call))
    names = {function.id for function in calls if isinstance(function, ast.Name)}
    return names - set(dir(builtins)) - set(case["inputs"]) - set(DEFINED.findall(case["setup"]))


def answered(cells: Iterable[dict], answers: Answers) -> tuple[set[str], set[str], int]:
    """The answer cells of the assignment that a notebook holds, those of them that are answered, and of how many others the functions are
    defined in some cell. Are all others' defined, then their cells have only lost their ids, and the notebook holds them.

    >>> stub = {"source": "def f(x):\\n    raise NotImplementedError()", "grade_id": "q1", "grade": False}
    >>> lost = {"source": "def g(x):\\n    return x", "grade_id": None, "grade": False}
    >>> answered([stub, lost], {"q1": {"f"}, "q2": {"g"}, "q3": {"h"}})
    ({'q1'}, set(), 1)
    >>> held, done, others = answered([stub, lost], {"q1": {"f"}, "q2": {"g"}})
    >>> sorted(held), done, others
    (['q1', 'q2'], {'q2'}, 0)
    """
    own = [cell for cell in cells if not cell["grade"]]
    kinds, there = definitions.of_cells(own), {cell["grade_id"] for cell in own}
    found = definitions.places(own, answers)
    held = {name for name, functions in answers.items() if name in there and _holds(own, kinds, name, functions)}
    done = {name for name in held if found[name][1]}
    lost = {name: [best for kind in kinds if (best := definitions.best(kind, functions))]
            for name, functions in answers.items() if name not in held}
    if all(lost.values()):
        return held | set(lost), done | {name for name, ways in lost.items() if max(ways) > definitions.BLANK}, 0
    return held, done, sum(map(bool, lost.values()))


def _holds(own: list[dict], kinds: list[dict[str, int]], name: str, functions: frozenset[str]) -> bool:
    """Whether a cell with the id defines one of the functions; where they are not known, any cell with the id will do."""
    return not functions or any(cell["grade_id"] == name and definitions.best(kind, functions) for cell, kind in zip(own, kinds))


def named(part: str, assignment: str, platform: str) -> bool:
    """Whether a file has exactly the assignment's name; platforms put the student's before it, and Canvas a number behind it.

    >>> named("02_linear.ipynb", "02_linear", "plain"), named("02.ipynb", "02_linear", "plain")
    (True, False)
    >>> named("ada_7_8_02_linear-1.ipynb", "02_linear", "canvas")
    True
    """
    before, after = ("(.*_)?", r"(-\d+)?" if platform == "canvas" else "") if platform in ("canvas", "moodle") else ("", "")
    return bool(re.fullmatch(f"{before}{re.escape(assignment)}{after}", stem_of(part), re.IGNORECASE | re.DOTALL))


def checkpoint(part: str) -> bool:
    """Whether Jupyter saved it by itself.

    >>> checkpoint("02_linear-checkpoint.ipynb"), checkpoint("02_linear.ipynb")
    (True, False)
    """
    return bool(re.search(r"-checkpoint( ?\(\d+\)|-\d+)?$", stem_of(part), re.IGNORECASE))
