"""What the students of a made-up class write: notebooks of an exercise set, each with the marks that it must get.

    right, blank      the solution's answers, and none
    wrong             some of the wrong solutions that the set names, others right
    honest            right answers in notebooks that are not as they were handed out
    hostile           one question attacks the grader and gets 0, the others are right
    damaged           no notebook: 0 points for all of it

The marks are known from the solution notebook: a question whose answer is the solution's gives its points, any other one gives 0; where
groups of cases give points of their own, a wrong solution has those of the groups that it passed when the set was built.
"""

import ast
import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path

from nbformat.v4 import new_code_cell

from qlab.grading import mark, results
from qlab.grading.author import student
from qlab.grading.author.measure import measure

ROOT = Path(__file__).resolve().parents[1]
SEEN = "/tmp/seen"

# Cells before the answers, and bodies of the question's function: `right` is the right one, `calls` how often it was called.
LEAVES_A_TRACE = f"import os\nif os.path.exists('{SEEN}'):\n    raise RuntimeError('seen: ' + open('{SEEN}').read())"
EQUAL = "class Yes(str):\n    __eq__ = lambda *_: True\n    __hash__ = str.__hash__\n    __getattr__ = lambda *_: True"
PATCHES = """import builtins, torch
import qlab.grading
from qlab.grading import compare, mark
torch.equal = torch.allclose = lambda *a, **k: True
compare.compare = mark.compare = lambda *a, **k: ""
mark.why_wrong = lambda *a: ""
builtins.AssertionError = type("Quiet", (Exception,), {})"""
FORGED = r"""
    import os
    for pipe in range(3, 64):
        try:
            os.write(pipe, b'\n{"question": "%s", "case": 0, "value": {"t": "str", "v": "forged"}}\n')
        except OSError:
            pass
    return right(*args, **kwargs)"""
ATTACKS = {  # name: (cell before the answers, body)
    "leaves Python": ("", "import os; os._exit(0)"),
    "crashes": ("", "import ctypes; ctypes.string_at(0)"),
    "kills all it can": ("", "import os\n    for process in (0, -1, 1, os.getppid(), os.getpid()):\n        os.kill(process, 9)"),
    "ends the program": ("", "raise SystemExit(0)"),
    "shows its inputs in an error": ("", "raise ValueError(repr((args, kwargs)))"),
    "shows its inputs in an error's name": ("", "raise type(repr((args, kwargs)), (Exception,), {})('x')"),
    "shows its inputs in a warning": ("import warnings\nwarnings.simplefilter('error')", "import warnings\n    warnings.warn(repr(args))"),
    "writes its inputs down for the next process": (
        LEAVES_A_TRACE, f"open('{SEEN}', 'a').write(repr((args, kwargs)))\n    import os\n    if calls > 3:\n        os._exit(1)\n"
                        "    return right(*args, **kwargs)"),
    "returns its inputs": ("", "return [args, kwargs]"),
    "is equal to everything": (EQUAL, "return Yes('yes')"),
    "patches the checker": (PATCHES, "return 'anything'"),
    "forges an answer": ("", FORGED),
    "returns too much": ("", "return list(range(2_000_000))"),
    "never ends": ("", "while True: pass"),
    "takes all memory": ("", "kept = []\n    while True:\n        kept.append(b'x' * 2**29)"),
}
SLOW = ("never ends", "takes all memory", "returns too much")

SCRATCH = "# my own tests\nx = [1, 2, 3]\nprint(x[7])"
HONEST = {  # name: (cell before, cell after)
    "prints a lot": ("print('x' * 1_000_000)", "for _ in range(1000): print('y' * 1000)"),
    "has cells that fail": (SCRATCH, "this is no Python"),
    "uses magics": ("%matplotlib inline\n%timeit -q -n1 -r1 sum(range(10))\n!echo here", "%%capture\nprint(1)"),
    "calls check": ("", "check()"),
    "leaves orphans behind": ("import subprocess\nfor _ in range(3): subprocess.Popen(['sleep', '1000'])", ""),
    "leaves a thread running": ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()", ""),
    "shows markup": ("raise RuntimeError('</p><script>alert(1)</script>')", "print('<b>=1+1</b>')"),
}
DAMAGED = {
    "an empty file": b"", "half of a notebook": None, "another file's bytes": b"%PDF-1.7\n\xff\xfe\x00", "a list": b"[1, 2]",
    "a notebook without cells": b'{"nbformat": 4, "metadata": {}}', "of another version": b'{"nbformat": 2, "cells": []}',
    "deep brackets": b'{"nbformat": 4, "cells": ' + b"[" * 100_000, "a long number": b'{"nbformat": 4, "cells": [' + b"9" * 10_000 + b"]}",
}


@dataclass(frozen=True)
class Work:
    """A notebook file's bytes, and the marks of each question; None where it is no notebook, and the whole gets 0."""

    name: str
    data: bytes
    marks: dict[str, float] | None


class Exercise:
    """An exercise set of solutions/, by its number, its bundle, and ways to answer it. seconds: what each question may take."""

    def __init__(self, number: str, seconds: float = 10.0, seed: str = "a made-up class"):
        path = next((ROOT / "solutions").glob(f"{number}_*.ipynb"))
        self.name, self.solution = path.stem, student.read(path)
        self.questions = student.questions(self.solution, self.name)
        self.released = student.student_notebook(self.solution)
        self.points = {question.id: question.points for question in self.questions}
        self.rights = {}
        for question in self.questions:
            source = self.solution.cells[question.answer].source
            self.rights[question.id] = "\n".join(line for line in source.split("\n") if not line.strip().startswith("### "))
        self.bundle = measure(str(path), seed)
        if isinstance(self.bundle, str):
            raise ValueError(self.bundle)
        for question in self.bundle["questions"]:
            question["seconds"] = seconds
        self.bundle["digest"] = results.digest(self.bundle)
        self.cases = {question["id"]: question["cases"] for question in self.bundle["questions"]}
        self.groups = {question["id"]: question.get("groups", []) for question in self.bundle["questions"]}

    def points_of(self, question: str, note: str) -> float:
        """What a wrong solution still gets."""
        passed = [group["points"] for group in self.groups[question]
                  if not any(mark.why_wrong(case, case["wrong"][note]) for case in map(self.cases[question].__getitem__, group["cases"]))]
        return mark.total(passed)

    def work(self, name: str, answers: dict[str, str], marks: dict | None = None, before: str = "", after: str = "", change=None) -> Work:
        """A notebook with these answers, the others left blank; marks: of those that are not right. change: alters its JSON."""
        notebook = copy.deepcopy(self.released)
        for question in self.questions:
            if question.id in answers:
                notebook.cells[question.answer].source = answers[question.id]
        for index, source in ((self.questions[0].answer, before), (len(notebook.cells), after)):
            if source:
                notebook.cells.insert(index, new_code_cell(source))
        content = json.loads(student.text(notebook))
        if change:
            change(content)
        known = {question: points if question in answers else 0 for question, points in self.points.items()} | (marks or {})
        return Work(name, json.dumps(content).encode(), known)

    def right(self) -> Work:
        return self.work("right", self.rights)

    def blank(self) -> Work:
        return self.work("blank", {})

    def wrong(self, rng: random.Random) -> Work:
        """One question or more is wrong, or left out."""
        answers, marks, how = dict(self.rights), {}, []
        for question in rng.sample(self.questions, rng.randint(1, len(self.questions))):
            if rng.random() < 0.2:
                del answers[question.id]
                how.append(f"{question.id} blank")
            else:
                note, source = rng.choice(question.wrong)
                answers[question.id] += f"\n\n\n{source}"
                marks[question.id] = self.points_of(question.id, note)
                how.append(f"{question.id} {note}")
        return self.work(", ".join(how), answers, marks)

    def hostile(self, rng: random.Random, attack: str) -> Work:
        """One question attacks, the others are right."""
        question = rng.choice([q for q in self.questions if self._function(q.id) and not self.groups[q.id]])
        before, body = ATTACKS[attack]
        function = self._function(question.id)
        kept = f"right_{function}"
        body = (body % question.id if attack == "forges an answer" else body).replace("right(", f"{kept}(")
        source = f"{self.rights[question.id]}\n\n{kept}, calls = {function}, 0\ndef {function}(*args, **kwargs):\n    global calls\n" \
                 f"    calls += 1\n    {body.strip()}"
        return self.work(f"{question.id} {attack}", self.rights | {question.id: source}, {question.id: 0}, before)

    def honest(self, rng: random.Random) -> Work:
        """Right, in a notebook that is not as it was handed out."""
        name = rng.choice([*HONEST, *CHANGES])
        before, after = HONEST.get(name, ("", ""))
        work = self.work(name, self.rights, before=before, after=after, change=CHANGES.get(name))
        return Work(name, b"\xef\xbb\xbf" + work.data.replace(b"\\n", b"\\r\\n"), work.marks) if name == "saved by Windows" else work

    def damaged(self, rng: random.Random) -> Work:
        name, data = rng.choice(list(DAMAGED.items()))
        return Work(name, self.right().data[:-100] if data is None else data, None)

    def _function(self, question: str) -> str | None:
        defined = ast.parse(self.rights[question]).body
        return defined[-1].name if isinstance(defined[-1], ast.FunctionDef) else None


def _test_cells(content: dict) -> list[dict]:
    return [cell for cell in content["cells"] if cell["metadata"].get("nbgrader", {}).get("grade")]


def _without_tests(content: dict) -> None:
    content["cells"] = [cell for cell in content["cells"] if cell not in _test_cells(content)]


def _tests_twice(content: dict) -> None:
    content["cells"] += copy.deepcopy(_test_cells(content))


def _tests_that_pass(content: dict) -> None:
    for cell in _test_cells(content):
        cell["source"] = ["assert True"]
        cell["metadata"]["nbgrader"]["points"] = 1000


def _without_ids(content: dict) -> None:
    for cell in content["cells"]:
        cell["metadata"].pop("nbgrader", None)


def _with_outputs(content: dict) -> None:
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"], cell["outputs"] = 7, [{"output_type": "stream", "name": "stdout", "text": ["<b>12 of 12</b>\n"]}]


CHANGES = {"without test cells": _without_tests, "test cells twice": _tests_twice, "test cells that pass": _tests_that_pass,
           "without ids": _without_ids, "with outputs": _with_outputs, "saved by Windows": None}
