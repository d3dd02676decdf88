"""qlab build: what students get, what the grader gets, and each rule for authors, broken."""

import copy
import gzip
import hashlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from qlab import cli
from qlab.grading import mark, values
from qlab.grading.author import build, student
from qlab.grading.author.measure import _in_time, measure

ROOT = Path(__file__).resolve().parents[1]
NAME = "01_halves"

SETUP = """from qlab.grading import case, check, public

check.start(q1=2)"""

ANSWER = '''def halve(x: int) -> int:
    """Half of x, rounded down."""
    ### BEGIN SOLUTION
    half_rounded_down = x // 2
    return half_rounded_down
    ### END SOLUTION'''

TEST = '''@public("q1")
def examples():
    yield case("halve(x)", x=6, expect=3, hint="6 is 3 + 3.")

check("q1")
### BEGIN HIDDEN TESTS
from qlab.grading import hidden, wrong


@hidden("q1")
def draws(rng):
    yield case("halve(x)", x=2 * int(rng.integers(1, 10**9)) + 1, about="odd")
    yield case("halve(x)", x=-2 * int(rng.integers(1, 10**9)) - 1, expect=None, about="odd and negative")


@wrong("q1", "rounded up")
def halve(x):
    return -(-x // 2)


@wrong("q1", "rounded towards zero")
def halve(x):
    return int(x / 2)


@wrong("q1", "a float")
def halve(x):
    return x / 2
### END HIDDEN TESTS'''.replace(", expect=None", "")


def metadata(grade_id, **given):
    base = {"schema_version": 3, "grade_id": grade_id, "grade": False, "solution": False, "locked": False, "task": False}
    return {"nbgrader": base | given}


def notebook(setup=SETUP, answer=ANSWER, test=TEST, lead_in="## Question 1\n\nHalve a number."):
    cells = [new_markdown_cell("# Halves"), new_code_cell(setup, metadata=metadata("setup", locked=True)), new_markdown_cell(lead_in),
             new_code_cell(answer, metadata=metadata("q1", solution=True)),
             new_code_cell(test, metadata=metadata("q1_test", grade=True, locked=True, points=2)), new_code_cell("check()")]
    return new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}})


def course(folder, solution=None):
    for name in ("solutions", "exercises"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    nbformat.write(solution or notebook(), folder / "solutions" / f"{NAME}.ipynb")
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def bundle_of(folder, name=NAME):
    return json.loads(gzip.decompress((folder / "bundles" / f"{name}.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = course(tmp_path_factory.mktemp("built"))
    assert build.build(folder, seed="a seed", report=lambda line: None) == []
    return folder


@pytest.fixture
def again(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "again"))


# What students get


def test_a_student_gets_no_solution_no_hidden_test_and_no_output(built):
    cells = nbformat.read(built / "exercises" / f"{NAME}.ipynb", 4).cells
    assert cells[3].source.endswith('rounded down."""\n    # YOUR CODE HERE\n    raise NotImplementedError()')
    assert cells[4].source.endswith('check("q1")')
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells if cell.cell_type == "code")
    assert [cell.id for cell in cells] == ["cell0", "setup", "cell2", "q1", "q1_test", "cell5"]
    assert cells[4].metadata.editable is False and "editable" not in cells[3].metadata
    assert [cell.id for cell in cells if "jupyter" in cell.metadata] == ["q1_test"] and cells[4].metadata.jupyter == {"source_hidden": True}


def test_a_student_gets_the_version_of_what_the_cells_say(again, tmp_path):
    def version(folder):
        return nbformat.read(folder / "exercises" / f"{NAME}.ipynb", 4).metadata.qlab.version

    first = version(again)
    content = json.dumps([["markdown", "cell0", "# Halves"], *(
        [cell.cell_type, cell.id, cell.source] for cell in nbformat.read(again / "exercises" / f"{NAME}.ipynb", 4).cells[1:])])
    assert first == hashlib.sha256(content.encode()).hexdigest()[:12] == bundle_of(again)["version"]
    changes = {"lead-in": ({"lead_in": "## Question 1\n\nHalve it."}, False), "public": (in_test(("6 is 3 + 3", "6 is 2 times 3")), False),
               "hidden": (in_test(('"odd"', '"an odd number"')), True)}
    for name, (changed, same) in changes.items():
        folder = course(tmp_path / name, notebook(**changed))
        assert build.build(folder, seed="a seed", report=print) == [] and (version(folder) == first) == same
        assert bundle_of(folder)["version"] == version(folder) and len(version(folder)) == 12


def test_outputs_and_ids_of_the_solution_change_nothing(again):
    path = again / "solutions" / f"{NAME}.ipynb"
    solution = nbformat.read(path, 4)
    for n, cell in enumerate(solution.cells):
        cell.id = f"other{n}"
        if cell.cell_type == "code":
            cell.execution_count = n
            cell.outputs = [nbformat.v4.new_output("stream", text="half_rounded_down = x // 2")]
    nbformat.write(solution, path)
    before = tree(again / "exercises")
    assert build.build(again, seed="a seed", report=print) == [] and tree(again / "exercises") == before


def test_nbgrader_gives_students_the_same_cells(tmp_path):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install -e '.[nbgrader]' -c constraints.txt")
    names = [path.stem for path in sorted((ROOT / "solutions").glob("*.ipynb"))]
    course(tmp_path)
    (tmp_path / "source" / "all").mkdir(parents=True)
    for path in [*(ROOT / "solutions").glob("*.ipynb"), tmp_path / "solutions" / f"{NAME}.ipynb"]:
        shutil.copy(path, tmp_path / "source" / "all")
    home = {name: str(tmp_path / "home") for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    home["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic by its name
    run = subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", "all", "--create", f"--CourseDirectory.root={tmp_path}"],
                         cwd=tmp_path, env=os.environ | home, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in [*names, NAME]:
        theirs = nbformat.read(tmp_path / "release" / "all" / f"{name}.ipynb", 4).cells
        ours = student.student_notebook(student.read(tmp_path / "source" / "all" / f"{name}.ipynb")).cells
        for cell in theirs:
            for added in ("checksum", "cell_type"):  # for nbgrader's own data base
                cell.metadata.get("nbgrader", {}).pop(added, None)
        for mine, its in zip(ours, theirs, strict=True):
            assert (mine.cell_type, mine.source, mine.get("outputs")) == (its.cell_type, its.source, its.get("outputs"))
            for key in ("nbgrader", "deletable", "editable"):
                assert mine.metadata.get(key) == its.metadata.get(key)


# What the grader gets


def test_the_bundle_holds_the_reference_answers(built):
    bundle = bundle_of(built)
    (question,) = bundle["questions"]
    assert bundle["format"] == 1 and bundle["assignment"] == NAME and bundle["digest"] == build.digest(bundle)
    assert bundle["seed_sha256"] == hashlib.sha256(b"a seed").hexdigest() and "a seed" not in json.dumps(bundle)
    assert (question["id"], question["points"], question["seconds"], question["answer_cell"]) == ("q1", 2, 10.0, "q1")
    assert question["wrong"] == ["rounded up", "rounded towards zero", "a float"]
    assert [case["kind"] for case in question["cases"]] == ["public", "hidden", "hidden"]
    for case in question["cases"]:
        x = values.decode(case["inputs"]["x"])
        assert values.decode(case["expect"]) == (x - x % 2) / 2
        assert values.decode(case["wrong"]["a float"]) == x / 2 and case["wrong"].keys() == set(question["wrong"])
    assert stat.S_IMODE((built / "bundles" / f"{NAME}.json.gz").stat().st_mode) == 0o600 or os.name == "nt"


def test_the_seed_alone_decides_the_hidden_inputs(again):
    before, bundle = tree(again), bundle_of(again)
    assert build.build(again, seed="a seed", report=print) == [] and tree(again) == before
    assert build.build(again, seed="another", report=print) == []
    other = bundle_of(again)
    inputs = [[case["inputs"] for case in b["questions"][0]["cases"]] for b in (bundle, other)]
    assert inputs[0][0] == inputs[1][0] and inputs[0][1] != inputs[1][1] and inputs[0][2] != inputs[1][2]
    assert {f"exercises/{key}": data for key, data in tree(again / "exercises").items()}.items() <= before.items()


def test_an_answer_that_never_comes_is_a_wrong_one(tmp_path):
    endless = TEST.replace("    return int(x / 2)", "    while x < 0:\n        pass\n    return x // 2")
    course(tmp_path, notebook(SETUP.replace("q1=2", 'q1=2, seconds={"q1": 0.2}'), test=endless))
    assert build.build(tmp_path, seed="s", report=print) == []
    question = bundle_of(tmp_path)["questions"][0]
    answer = question["cases"][2]["wrong"]["rounded towards zero"]
    assert question["seconds"] == 0.2 and (answer["t"], answer["type"]) == ("error", "TimeoutError")


def test_time_counts_while_there_is_work_so_a_busy_machine_makes_no_answer_wrong():
    assert _in_time(0.05, lambda: time.sleep(0.2) or "an answer") == "an answer"           # waiting, as for a processor
    with pytest.raises(TimeoutError, match="no answer within 0.05 seconds"):
        _in_time(0.05, time.sleep, 60)                                                     # but not for ever


def test_errors_can_be_what_is_asked_for(tmp_path):
    answer = ANSWER.replace("half_rounded_down = x // 2", "if x < 0:\n        raise ArithmeticError(x)\n    half_rounded_down = x // 2")
    test = TEST.replace('x=-2 * int(rng.integers(1, 10**9)) - 1, about', 'x=-3, raises="ArithmeticError", about')
    course(tmp_path, notebook(answer=answer, test=test))
    assert build.build(tmp_path, seed="s", report=print) == []
    assert bundle_of(tmp_path)["questions"][0]["cases"][2]["raises"] == "ArithmeticError"


# Groups of cases with points of their own

EDGES = '''

@hidden("q1", points=0.5)
def edges(rng):
    yield case("halve(x)", x=-1, about="the first below nothing")
'''
GROUPED = TEST.replace("\n\n@wrong(\"q1\", \"rounded up\")", EDGES + "\n\n@wrong(\"q1\", \"rounded up\")")
ALL_GROUPED = GROUPED.replace('@hidden("q1")', '@hidden("q1", points=1.5)')
PUBLIC_TOO = ALL_GROUPED.replace('@public("q1")', '@public("q1", points=0.1)').replace("points=1.5", "points=1.4")
BY_HAND = {  # how a student halves, and its points: edges alone has points of its own, draws too, the public cases too
    "x // 2": (2, 2, 2),
    "-(-x // 2)": (0, 0, 0.1),
    "int(x / 2)": (0, 0, 0.1),
    "x / 2": (0, 0, 0),
    "x // 2 if x > -3 else None": (0.5, 0.5, 0.6),
    "x // 2 if x < -3 or x > 0 else None": (1.5, 1.5, 1.5),
    "x // 2 if x != 6 else 0": (0.5, 0, 1.9),
    "x // 2 if x != -1 else __import__('os')._exit(3)": (1.5, 1.5, 1.5),
    "x // 2 if x > -3 or [1 for _ in iter(int, 1)] else 0": (0.5, 0.5, 0.6),
}


def grouped(folder, test):
    """The bundle of a set with this test cell, in which a question has a second."""
    stated = "(0.5, 1.5)" if test == GROUPED else "2"
    course(folder, notebook(SETUP.replace("q1=2", f'q1={stated}, seconds={{"q1": 1}}'), test=test))
    assert build.build(folder, seed="a seed", report=lambda line: None) == []
    return bundle_of(folder)


def test_the_bundle_says_which_cases_give_which_points(tmp_path, built):
    assert "groups" not in bundle_of(built)["questions"][0]
    for k, (test, groups) in enumerate({
        GROUPED: [("", 1.5, [0, 1, 2]), ("edges", 0.5, [3])], ALL_GROUPED: [("draws", 1.5, [0, 1, 2]), ("edges", 0.5, [0, 3])],
        PUBLIC_TOO: [("examples", 0.1, [0]), ("draws", 1.4, [1, 2]), ("edges", 0.5, [3])]}.items()):
        (question,) = grouped(tmp_path / str(k), test)["questions"]
        assert [tuple(group.values()) for group in question["groups"]] == groups and question["points"] == 2


def test_each_group_gives_its_points_alone(tmp_path):
    bundles = [grouped(tmp_path / str(k), test) for k, test in enumerate((GROUPED, ALL_GROUPED, PUBLIC_TOO))]
    for answer, marks in BY_HAND.items():
        cells = [{"source": f"def halve(x):\n    return {answer}", "grade_id": "q1", "grade": False}]
        for bundle, points in zip(bundles, marks):
            result = mark.grade_trusted(cells, bundle)
            (question,) = result["questions"]
            assert (result["score"], question["score"], result["max_score"]) == (points, points, 2), (answer, question)
            assert (question["state"] == "passed") == (points == 2)


def test_a_question_in_groups_says_how_many_of_them_pass(tmp_path):
    bundle = grouped(tmp_path, GROUPED)
    (question,) = mark.grade_trusted([{"source": "def halve(x):\n    return x // 2 if x > 0 else -(-x // 2)", "grade_id": "q1",
                                       "grade": False}], bundle)["questions"]
    assert question["reason"] == "The public tests pass; a hidden test fails. 0 of the 2 parts of this question pass."
    assert question["answers_like"] == "rounded towards zero"
    assert question["groups"] == [
        {"name": "", "points": 1.5, "score": 0, "failed_case": 2, "answers_like": "rounded towards zero"},
        {"name": "edges", "points": 0.5, "score": 0, "failed_case": 3, "answers_like": "rounded up"}]  # of those alike the first
    blank = mark.grade_trusted([{"source": "def halve(x):\n    raise NotImplementedError()", "grade_id": "q1", "grade": False}], bundle)
    assert blank["score"] == 0 and blank["questions"][0]["reason"] == "Not answered yet."


@pytest.mark.parametrize("points", ["0", "-1", "True", "float('nan')", "float('inf')", "'2'"])
def test_points_of_a_group_are_a_number_above_0(tmp_path, points):
    course(tmp_path, notebook(test=GROUPED.replace("points=0.5", f"points={points}")))
    (problem,) = build.build(tmp_path, seed="s", report=print)
    sentence = f"{NAME}, q1_test: the solution notebook fails: ValueError: q1: points is {eval(points)!r}, and must be a number above 0."
    assert problem.startswith(sentence)


# Each rule, broken


def change(cell, **keys):
    def spoil(solution):
        for key, value in keys.items():
            if value is None:
                del solution.cells[cell].metadata.nbgrader[key]
            else:
                solution.cells[cell].metadata.nbgrader[key] = value
        return solution

    return spoil


def double_the_test(solution):
    solution.cells.append(copy.deepcopy(solution.cells[4]))
    solution.cells[-1].id = "another"
    return solution


def no_test(solution):
    del solution.cells[4]
    return solution


Q1 = f"{NAME}, q1: "
RIGHT_AGAIN = '@wrong("q1", "right")\ndef halve(x):\n    return x - x // 2 - x % 2\n### END'
def in_test(*replaced):
    """The test cell with some text replaced: pairs of (old, new)."""
    text = TEST
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return {"test": text}


def answer_with(old, new):
    assert old in ANSWER
    return {"answer": ANSWER.replace(old, new)}


def setup_with(points):
    return {"setup": SETUP.replace("q1=2", points)}


BODY = "half_rounded_down = x // 2"
LESS = Q1 + "the solution gets less than full marks: "
HARMLESS = '    yield case("halve(x)", x=8, dtype=False, about="even")\n'
BROKEN = {
    "the solution fails a public case": (in_test(("expect=3", "expect=4")), LESS + "halve(x): expected 4, got 3."),
    "the solution fails a hidden case": (in_test(('about="odd")', 'about="odd", expect=0)')), LESS + "halve(x) (odd): expected 0, got "),
    "the solution raises": (in_test(('"halve(x)", x=2', '"halve([x])", x=2')), LESS + "halve([x]) gives TypeError: "),
    "the solution answers at random": (
        answer_with("x // 2", "x // 2 if x == 6 else int.from_bytes(__import__('os').urandom(8))"),
        Q1 + "the solution gives two answers to halve(x) (odd): "),
    "a blank gets points": (
        answer_with(BODY, "raise NotImplementedError(x)")
        | in_test(("expect=3", 'raises="NotImplementedError"'), (", about", ', raises="NotImplementedError", about')),
        Q1 + "a blank answer gets its points."),
    "a wrong solution is right": (
        in_test(("### END", RIGHT_AGAIN)), Q1 + "no hidden case fails the wrong solution 'right': it gets full marks."),
    "only a public case catches a wrong solution": (
        in_test(("### END", RIGHT_AGAIN.replace("x - x // 2 - x % 2", "x // 2 + (x == 6)"))),
        Q1 + "no hidden case fails the wrong solution 'right': only public ones do."),
    "a wrong solution that only crashes": (
        in_test(("return x / 2", "return numpy.floor(x / 2)")),
        Q1 + "the wrong solution 'a float' runs on no case at all: NameError: name 'numpy' is not defined."),
    "two wrong solutions": (
        in_test(('@wrong("q1", "a float")\n', "")), Q1 + "there are 2 wrong solutions, and must be at least 3."),
    "a wrong solution of another question": (
        in_test(('"q1", "a float"', '"q2", "a float"')), Q1 + "a wrong solution here must be marked @wrong('q1', \"what is wrong\")."),
    "two wrong solutions of one name": (in_test(("a float", "rounded up")), Q1 + "two wrong solutions are called 'rounded up'."),
    "a wrong solution of nothing": (
        in_test(("def halve(x):\n    return x / 2", "def third(x):\n    return x / 2")),
        f"{NAME}, q1_test: the solution notebook fails: ValueError: q1: the wrong solution 'a float' defines third, "),
    "a hidden case that tests nothing": (
        in_test(("def draws(rng):\n", f"def draws(rng):\n{HARMLESS}")), Q1 + "no wrong solution fails the hidden case halve(x) (even)."),
    "the solution in the lead-in": (
        {"lead_in": f"Compute `{BODY}`."}, Q1 + f"a hidden line is in exercises/{NAME}.ipynb: '{BODY}'."),
    "a hidden test in the lead-in": (
        {"lead_in": next(line for line in TEST.split("\n") if '"odd"' in line)}, Q1 + "a hidden line is in exercises/"),
    "repeated ids": (double_the_test, f"{NAME}, q1_test: two cells have this grade_id."),
    "no markers": (
        {"answer": ANSWER.replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")},
        Q1 + "the answer cell has no ### BEGIN SOLUTION and ### END SOLUTION."),
    "half a marker": (answer_with("### END SOLUTION", ""), Q1 + "a BEGIN SOLUTION without an END."),
    "no end of hidden tests": (in_test(("### END HIDDEN TESTS", "")), Q1.replace(":", "_test:") + "a BEGIN HIDDEN TESTS without an END."),
    "no beginning of hidden tests": (in_test(("### BEGIN HIDDEN TESTS", "")),
                                     Q1.replace(":", "_test:") + "an END HIDDEN TESTS without a BEGIN."),
    "points missing": (change(4, points=None), Q1 + "points are missing; the test cell's metadata must hold a number above 0."),
    "points of 0": (change(4, points=0), Q1 + "points are missing; the test cell's metadata must hold a number above 0."),
    "other points in the first cell": (
        setup_with("q1=3"), f"{NAME}: the first code cell must call check.start(q1=2), as the test cells' points say."),
    "a budget for nothing": (
        setup_with('q1=2, seconds={"q7": 1}'), f"{NAME}: there is a time budget for q7, which is no question of it."),
    "no test cell": (no_test, Q1 + "there is no test cell q1_test after the answer cell."),
    "a test cell of another name": (
        change(4, grade_id="test"), f"{NAME}, test: a test cell must be named after an answer cell, as q1_test after q1."),
    "a test that is not locked": (change(4, locked=False), f"{NAME}, q1_test: a test cell must be locked."),
    "metadata with a key too few": (
        change(3, task=None), Q1 + "the nbgrader metadata must have schema_version 3 and the keys grade, "),
    "no check": (in_test(('check("q1")\n', "")), Q1 + "the test cell must call check('q1') before its hidden tests."),
    "no hidden tests": ({"test": TEST[:TEST.index("### BEGIN")]}, Q1 + "there are no hidden tests in the test cell."),
    "no hidden case": (in_test(('@hidden("q1")', "")), Q1 + "there is no hidden case."),
    "hidden tests for another question": (
        in_test(('@hidden("q1")', '@hidden("q9")')), f"{NAME}: there is a hidden test for q9, which is no question of it."),
    "a public case without a value": (in_test(("expect=3, ", "")), Q1 + "the public case halve(x) must state what it expects."),
    "an input that is no value": (
        in_test(("x=2 * int", "x={1}, y=2 * int")),
        Q1 + "x of the case halve(x) is an object that cannot be compared (set), and cannot be kept in a bundle."),
    "a hidden test that fails": (in_test(("rng.integers(1, 10**9)) + 1", "rng.integer(1))")), Q1 + "draws fails with AttributeError: "),
    "a cell that fails": (
        {"setup": SETUP + "\n1 / 0"}, f"{NAME}, setup: the solution notebook fails: ZeroDivisionError: division by zero (line 4"),
    "a text for students with a number of the input": (
        in_test(('x=2 * int(rng.integers(1, 10**9)) + 1, about="odd"', 'x=7, about="odd: 7"')),
        Q1 + "what the hidden case halve(x) is about, 'odd: 7', holds 7: students read it after the deadline, and it may hold no number "
        "but 0 and 1, and no text of the inputs."),
    "other parts in the first cell": (
        {"setup": SETUP.replace("q1=2", "q1=(1, 1)"), "test": GROUPED},
        Q1 + "check.start says that its parts give (1, 1) points, and its groups give 0.5 and 1.5."),
    "parts without groups": (
        setup_with("q1=(1, 1)"), Q1 + "check.start says that its parts give (1, 1) points, and its groups give all or nothing."),
    "groups of too many points": (
        {"test": GROUPED.replace("points=0.5", "points=2")},
        Q1 + "its groups give 2 of 2 points, and must leave some for the hidden cases without points."),
    "groups of too few points": (
        {"test": ALL_GROUPED.replace("points=1.5", "points=1")},
        Q1 + "its groups give 1.5 points, and must give all 2, for no hidden case is left without points."),
    "a group without a case": (
        {"test": GROUPED.replace(EDGES.split("\n")[-2], "    yield from ()")}, Q1 + "edges has points and no case."),
    "a group that no wrong solution fails": (
        {"test": GROUPED.replace("x=-1, about", "x=-2, dtype=False, about")},
        Q1 + "no wrong solution fails edges: its 0.5 points are given to any of them."),
    "a public group that no wrong solution fails": (
        {"test": PUBLIC_TOO.replace("expect=3, hint", "expect=3, dtype=False, hint")},
        Q1 + "no wrong solution fails examples: its 0.1 points are given to any of them."),
    "a group that a blank passes": (
        answer_with(BODY, "if x == -1:\n        raise NotImplementedError(x)\n    half_rounded_down = x // 2")
        | {"test": GROUPED.replace("x=-1, about", 'x=-1, raises="NotImplementedError", about')},
        Q1 + "a blank answer gets the points of edges."),
    "a process that ends": (
        {"setup": SETUP + "\n__import__('os')._exit(3)"}, f"{NAME}: the process that ran it, or one beside it, ended without"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_one_sentence_and_changes_nothing(rule, again):
    how, sentence = BROKEN[rule]
    nbformat.write(how(notebook()) if callable(how) else notebook(**how), again / "solutions" / f"{NAME}.ipynb")
    before = tree(again)
    problems = build.build(again, seed="a seed", report=print)
    assert len(problems) == 1 and problems[0].startswith(sentence), problems
    assert tree(again) == before
    if problems[0] != sentence:
        assert sentence[-1] != "."  # a whole sentence is compared as a whole


def test_a_corrupt_notebook_is_one_sentence(again):
    path = again / "solutions" / f"{NAME}.ipynb"
    path.write_text("{")
    (problem,) = build.build(again, seed="a seed", report=print)
    assert problem.startswith(f"{path} is no notebook: ")


def test_a_hidden_line_in_any_file_of_exercises_is_found(again):
    (again / "exercises" / "README.md").write_text("Try\n\n    return half_rounded_down\n")
    assert build.build(again, seed="a seed", report=print) == [Q1 + "a hidden line is in exercises/README.md: 'return half_rounded_down'."]


def test_an_exercise_without_a_solution_is_named(again):
    shutil.copy(again / "exercises" / f"{NAME}.ipynb", again / "exercises" / "99_old.ipynb")
    assert build.build(again, seed="a seed", report=print) == ["exercises/99_old.ipynb comes from no notebook in solutions: remove it."]
    assert build.build(again, names=["01"], seed="a seed", report=print) == []


def test_one_broken_notebook_is_named_and_nothing_at_all_is_written(again):
    nbformat.write(notebook(test=TEST.replace("expect=3", "expect=4")), again / "solutions" / "02_more.ipynb")
    nbformat.write(notebook(lead_in="Another text."), again / "solutions" / f"{NAME}.ipynb")
    before = tree(again)
    (problem,) = build.build(again, seed="a seed", report=print)
    assert problem.startswith("02_more, q1: the solution gets less") and tree(again) == before
    assert build.build(again, names=["01_halves.ipynb"], seed="a seed", report=print) == [] and tree(again) != before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(again, step, monkeypatch):
    nbformat.write(notebook(lead_in="Another text."), again / "solutions" / f"{NAME}.ipynb")
    before = tree(again)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        build.build(again, seed="another", report=print)
    assert tree(again) == before


# The command


def test_check_writes_nothing_and_says_what_is_out_of_date(again, monkeypatch, capsys):
    monkeypatch.setattr(cli, "clone", lambda: again)
    shutil.rmtree(again / "bundles")
    before = tree(again)
    assert cli.main(["build", "--check", "--seed", "s"]) == 0 and tree(again) == before
    assert capsys.readouterr().out == f"{NAME}: 1 question, 2 points, 1 public and 2 hidden cases, 3 wrong solutions caught\n"
    exercise = again / "exercises" / f"{NAME}.ipynb"
    exercise.write_text(exercise.read_text().replace("Halve a number", "Halve it"))
    assert cli.main(["build", "01", "--check", "--seed", "s"]) == 1
    assert capsys.readouterr().err == f"qlab: exercises/{NAME}.ipynb is not up to date: run qlab build.\n"
    exercise.unlink()
    assert cli.main(["build", "--check", "--seed", "s"]) == 1 and not exercise.exists()


def test_an_unknown_set_is_one_sentence(again, monkeypatch, capsys):
    monkeypatch.setattr(cli, "clone", lambda: again)
    assert cli.main(["build", "77"]) == 1
    assert capsys.readouterr().err == f"qlab: there is no notebook 77 in {again / 'solutions'}.\n"


def test_the_teachers_seed_is_made_once_and_kept_private(tmp_path, monkeypatch):
    monkeypatch.delenv("QLAB_SEED", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    seed = build.teacher_seed()
    path = tmp_path / ".config" / "qlab" / "seed"
    assert len(seed) == 64 and build.teacher_seed() == seed and (os.name == "nt" or stat.S_IMODE(path.stat().st_mode) == 0o600)
    monkeypatch.setenv("QLAB_SEED", "mine")
    assert build.teacher_seed() == "mine"
    monkeypatch.delenv("QLAB_SEED")
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty: remove it"):
        build.teacher_seed()


# The course's own sets


@pytest.fixture(scope="module")
def measured():
    """A seed, and what it makes of each set: a bundle, or a problem."""
    seed = secrets.token_hex(8)
    return seed, dict(build._in_processes(measure, [(str(path), seed) for path in sorted((ROOT / "solutions").glob("*.ipynb"))]))


def test_every_set_holds_with_any_seed_and_exercises_are_up_to_date(measured, monkeypatch):
    seed, outcomes = measured
    monkeypatch.setattr(build, "_in_processes", lambda function, tasks: [(path, outcomes[path]) for path, _ in tasks])
    assert build.build(ROOT, seed=seed, check=True, report=print) == [], f"with seed {seed}"


@pytest.mark.parametrize("path", sorted((ROOT / "solutions").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_grader_gives_the_solution_full_marks_and_the_blank_none(path, measured):
    bundle = measured[1][str(path)]
    assert isinstance(bundle, dict), bundle
    for notebook_path, share in ((path, 1), (ROOT / "exercises" / path.name, 0)):
        cells = [{"source": cell.source, "grade_id": student.grade_id(cell), "grade": student.flag(cell, "grade")}
                 for cell in nbformat.read(notebook_path, 4).cells if cell.cell_type == "code"]
        result = mark.grade_trusted(cells, bundle)
        assert result["score"] == share * result["max_score"], result["questions"]


def test_of_set_01_the_first_family_alone_gives_one_point(measured):
    path = ROOT / "solutions" / "01_why_low_precision.ipynb"
    notebook = student.read(path)
    question = student.questions(notebook, path.stem)[0]
    right = notebook.cells[question.answer].source
    points = {}
    for note, source in [("right", ""), *question.wrong]:
        cells = [{"source": cell.source if cell.source != right else f"{right}\n\n\n{source}", "grade_id": student.grade_id(cell),
                  "grade": student.flag(cell, "grade")} for cell in notebook.cells[:question.answer + 1] if cell.cell_type == "code"]
        marked = mark.grade_trusted(cells, {"questions": measured[1][str(path)]["questions"][:1]})["questions"][0]
        points[note] = marked["score"], marked["answers_like"]
    stops = "a finite format stops where one with infinities would"
    nan = "the NaN of a finite format is taken for its largest number"
    others = {note: (0, note) for note, _ in question.wrong} | {"in float32, which has no 2**128": (1, "in float32, which has no 2**128")}
    assert points == others | {"right": (3, None), stops: (1, stops), nan: (1, nan)}
