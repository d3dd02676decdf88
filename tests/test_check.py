"""check("q1"), as a student meets it: the words, the picture, and a plain kernel."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from qlab.grading import case, check, public, show, values, wrong
from qlab.grading.author import cases
from qlab.grading.check import POINTS, Result, Summary, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fresh():
    """No question of another test."""
    cases.PUBLIC.clear()
    check.start()
    yield
    cases.PUBLIC.clear()
    check.start()


def asked(*given, question="q1"):
    public(question)(lambda: given)


def notebook(code):
    """A namespace like a notebook's, with a line cache like IPython's."""
    import linecache

    names, name = {}, "<ipython-input-1-abc>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    exec(compile(code, name, "exec"), names)
    return names


# What it says


def test_all_passed_says_that_these_are_the_public_tests():
    asked(case("f(x)", x=1, expect=2), case("f(x)", x=2, expect=3))
    told = run("q1", {"f": lambda x: x + 1})
    assert repr(told) == "Public tests of q1: 2 of 2 passed. Hidden tests run when it is graded."
    assert told.state == "passed" and "Hidden tests" in told._repr_html_()


def test_a_failure_shows_input_expected_got_and_the_hint():
    asked(case("f(x)", x=torch.tensor([0.5, 1.0]), expect=torch.tensor([191, 255]), hint="Round, do not cut off."),
          case("f(x[:0])", x=torch.ones(1), expect=torch.zeros(0, dtype=torch.int64)))
    told = run("q1", {"f": lambda x: (x * 127.5 + 127.4).long()})
    assert repr(told) == """\
Public tests of q1: 1 of 2 passed.
  test      f(x)
  input     x = tensor([0.5, 1. ], dtype=float32)
  expected  [191, 255]
  got       [191, 254]
                  ^^^
  why       1 of 2 elements differs: expected 255 at [1], got 254; the largest error is 1, and 0 is allowed.
  hint      Round, do not cut off."""
    assert told.state == "failed"


def test_a_blank_answer_is_told_kindly():
    asked(case("f(x)", x=1, expect=2))
    told = run("q1", notebook("def f(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"))
    assert (repr(told), told.state) == ("q1 is not answered yet.", "unanswered")


def test_a_blank_helper_is_named():
    asked(case("g(x)", x=1, expect=2), question="q2")
    told = run("q2", notebook("def f(x):\n    raise NotImplementedError()\n\ndef g(x):\n    return f(x)"))
    assert repr(told) == "q2 cannot be checked yet: it uses f, which is not answered yet."


def test_torchs_own_not_implemented_is_an_error_like_others():
    asked(case("f(x)", x=torch.zeros(2), expect=torch.zeros(2)))
    told = run("q1", notebook("def f(x):\n    raise NotImplementedError('\"round_cpu\" not implemented for Half')"))
    assert told.state == "failed" and "round_cpu" in repr(told)


def test_an_answer_that_has_not_run_is_told():
    asked(case("f(x)", x=1, expect=2))
    assert "  error     f is not defined: run the cell with your answer first." in repr(run("q1", {}))


def test_a_test_cell_that_has_not_run_is_told():
    assert repr(run("q3", {})) == "The tests of q3 are not here yet: run its test cell."


def test_an_error_shows_the_students_own_line_and_nothing_of_ours():
    asked(case("f(x)", x=torch.ones(2), expect=torch.ones(2), hint="Mind the shapes."))
    told = repr(run("q1", notebook("def g(x):\n    return x @ torch_missing\n\n\ndef f(x):\n    y = 2 * x\n    return g(y)")))
    assert ("  error     NameError: name 'torch_missing' is not defined\n"
            "            in line 2 of the cell, in g: return x @ torch_missing\n") in told
    assert "Traceback" not in told and "check.py" not in told and told.endswith("hint      Mind the shapes.")
    told = repr(run("q1", notebook("def f(x):\n    return x.reshape(3)")))  # raised inside torch, shown at the student's line
    assert "in line 2 of the cell, in f: return x.reshape(3)" in told and "RuntimeError: shape '[3]' is invalid" in told
    assert "TypeError: f() missing 1 required positional argument: 'y'" in repr(run("q1", notebook("def f(x, y):\n    return x")))


def test_an_expected_error():
    asked(case("f(x)", x=0, raises="ArithmeticError"))
    assert run("q1", {"f": lambda x: 1 / x}).state == "passed"  # ZeroDivisionError is one
    told = run("q1", {"f": lambda x: x})
    assert dict(told.details)["expected"] == "ArithmeticError is raised" and dict(told.details)["why"] == "no error was raised."
    assert run("q1", {"f": lambda x: [][x]}).state == "failed"


@pytest.mark.parametrize("answer, why", [
    (lambda x: x.double(), "expected dtype float32, got float64."),
    (lambda x: x[None], "expected shape (2,), got (1, 2)."),
    (lambda x: x.tolist(), "expected a tensor, got a list."),
    (lambda x: x.numpy(), "expected a tensor, got a NumPy array."),
    (lambda x: x * float("nan"),
     "2 of 2 elements differ: expected 1.0 at [0], got nan; the largest error is not a number, and 0 is allowed."),
    (lambda x: None, "expected a tensor, got None."),
    (lambda x: type("Always", (torch.Tensor,), {"__eq__": lambda a, b: True})(x),
     "expected a tensor, got an object that cannot be compared (Always)."),
])
def test_the_verdict_is_the_graders(answer, why):
    asked(case("f(x)", x=torch.ones(2), expect=torch.ones(2)))
    told = run("q1", {"f": answer})
    assert told.state == "failed" and dict(told.details)["why"] == why


def test_a_number_of_numpy_passes():
    asked(case("f(x)", x=np.array([1.0, 2.0]), expect=1.5, tol=1e-9))
    assert run("q1", {"f": lambda x: x.mean()}).state == "passed"
    assert dict(run("q1", {"f": lambda x: x.sum()}).details)["why"] == "expected 1.5, got 3.0."


def test_an_input_that_is_written_into_spoils_no_other_case():
    x = torch.ones(2)
    asked(*[case("f(x)", x=x, expect=torch.full((2,), 2.0))] * 2)
    assert run("q1", {"f": lambda x: x.add_(1)}).state == "passed" and x.tolist() == [1, 1]


def test_setup_runs_before_the_call_and_leaves_nothing_behind():
    asked(case("y + f(1)", setup="y = f(x)", x=1, expect=4))
    names = {"f": lambda x: x + 1}
    assert run("q1", names).state == "passed" and set(names) == {"f"}


def test_prints_and_warnings_fail_nothing(recwarn):
    asked(case("f(x)", x=1, expect=1))
    assert run("q1", notebook("import warnings\ndef f(x):\n    print('here')\n    warnings.warn('loud')\n    return x")).state == "passed"


def test_a_test_cell_that_runs_twice_counts_once():
    for _ in range(2):
        @public("q1")
        def examples():
            yield case("f(x)", x=1, expect=1)

    assert run("q1", {"f": lambda x: x}).total == 1


def test_the_callers_own_names_are_used(capsys):
    names = notebook("from qlab.grading import case, check, public\ndef f(x):\n    return x\n"
                     "@public('q1')\ndef examples():\n    yield case('f(x)', x=1, expect=1)\ncheck('q1')")
    assert capsys.readouterr().out == "Public tests of q1: 1 of 1 passed. Hidden tests run when it is graded.\n" and "f" in names


def test_what_a_student_prints_cannot_become_html():
    asked(case("f(x)", x="<b>", expect="<script>alert(1)</script>", hint="<i>"))
    page = run("q1", {"f": lambda x: "<img src=x>"})._repr_html_()
    assert "<script" not in page and "<img" not in page and "<i>" not in page and "&lt;img" in page


# The summary


def test_the_summary_counts_points_and_says_what_is_left(capsys):
    check.start(q1=3, q2=1, q3=4, seconds={"q1": 20})
    assert POINTS == {"q1": 3, "q2": 1, "q3": 4}
    asked(case("f(x)", x=1, expect=1))
    asked(case("g(x)", x=1, expect=2), question="q2")
    results = tuple(run(q, notebook("def f(x):\n    return x\ng = f")) for q in POINTS)
    summary = Summary(results, dict(POINTS))
    assert repr(summary) == """\
[###########...................] 38 %
  q1        3 points   public tests passed
  q2         1 point   a public test fails
  q3        4 points   its test cell has not run
Public tests pass for 1 of 3 questions, worth 3 of 8 points if the hidden tests pass, too."""
    page = summary._repr_html_()
    assert 'aria-valuenow="38"' in page and "width: 38%" in page and "public tests passed" in page


def test_public_tests_with_points_of_their_own_count_by_themselves():
    """A question of 4 points: 1 for the evens, 0.5 for the odds, the rest for hidden tests."""
    check.start(q1=4, q2=1)

    @public("q1", points=1)
    def evens():
        yield case("f(x)", x=4, expect=2)

    @public("q1", points=0.5)
    def odds():
        yield case("f(x)", x=5, expect=2)
        yield case("f(x)", x=7, expect=3)

    asked(case("f(x)", x=0, expect=0), question="q2")
    told = run("q1", {"f": lambda x: x / 2})
    assert (told.state, told.reached) == ("failed", 0) and repr(told).startswith("Public tests of q1: 0 of 3 passed.\n")
    told = run("q1", {"f": lambda x: x // 2 + x % 2})
    assert (told.state, told.reached) == ("failed", 1)
    assert repr(told).startswith("Public tests of q1: 1 of 3 passed, worth 1 point by themselves.\n  test      f(x)\n  input     x = 5\n")
    summary = Summary((told, run("q2", {"f": lambda x: x})), dict(POINTS))
    assert repr(summary) == """\
[############..................] 40 %
  q1      1 of 4 points   a public test fails
  q2            1 point   public tests passed
Public tests pass for 1 of 2 questions, worth 2 of 5 points if the hidden tests pass, too."""
    assert "1 of 4 points" in summary._repr_html_()
    assert run("q1", {"f": lambda x: x // 2}).reached == 0  # all passed: the question's points, if the hidden tests pass


@pytest.mark.parametrize("worth, told", [
    ([1, 2], "check.start: q1 is [1, 2]: write (1, 2)."),
    ("3", "check.start: q1 is '3': it must be a number, or a tuple of numbers like (1, 2)."),
    ((1, "2"), "check.start: q1 is (1, '2'): it must be a number, or a tuple of numbers like (1, 2)."),
    (-1, "check.start: q1 is -1: it must be a number, or a tuple of numbers like (1, 2)."),
    ({1: 2}, "check.start: q1 is {1: 2}: it must be a number, or a tuple of numbers like (1, 2).")])
def test_points_that_are_none_are_one_sentence(worth, told):
    check.start(q1=4)
    with pytest.raises(ValueError) as error:
        check.start(q2=1, q1=worth)
    assert str(error.value) == told and POINTS == {"q1": 4}


def test_the_summary_says_which_points_come_in_parts(capsys):
    check.start(q1=(1, 2), q2=4, q3=(0.5, 0.5))
    for question in ("q1", "q2"):
        asked(case("f(x)", x=1, expect=1), question=question)

    @public("q3", points=0.5)
    def right():
        yield case("f(x)", x=1, expect=1)

    @public("q3", points=0.5)
    def wrong():
        yield case("f(x)", x=1, expect=2)

    names = {"f": lambda x: x, "check": check}
    exec("check()", names)
    assert capsys.readouterr().out == """\
[############################..] 94 %
  q1        1 + 2 points   public tests passed
  q2            4 points   public tests passed
  q3      0.5 of 1 point   a public test fails
Public tests pass for 2 of 3 questions, worth 7.5 of 8 points if the hidden tests pass, too.
"""


def test_the_summary_before_the_first_cell_is_one_sentence():
    with pytest.raises(ValueError, match="^there is nothing to check yet: run the first code cell of this notebook.$"):
        check()


# Values side by side


def side(expect, got, tol=0.0):
    return show.beside(values.encode(expect), values.encode(got), tol)


def test_columns_are_aligned_and_differences_marked():
    right, given = side(np.array([[1.5, -20.25], [3.0, 4.0]]), np.array([[1.5, -20.25], [3.125, 4.0]]))
    assert right == "[   1.5, -20.25]\n[     3,      4]"
    assert given == "[   1.5, -20.25]\n[ 3.125,      4]\n  ^^^^^"


def test_a_difference_that_six_digits_hide_is_shown():
    right, given = side(np.float32([0.1, 1.0]), np.float32([0.1, np.nextafter(np.float32(1), np.float32(2))]))
    assert right.split(", ")[1] != given.split("\n")[0].split(", ")[1]
    assert "^" not in side(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2)), tol=1e-6)[1]


def test_a_large_tensor_is_cut_around_the_first_difference():
    x = np.arange(10_000).reshape(100, 100)
    y = x.copy()
    y[70, 40] = -1
    right, given = side(x, y)
    assert "7040" in right and " -1" in given and len(right.split("\n")) == show.ROWS + 2 and right.startswith("...\n[..., ")
    assert all(len(line) < 80 for line in given.split("\n"))
    line, carets = given.split("\n")[5:7]
    assert line[carets.index("^"):].startswith("-1")


def test_the_items_of_a_tuple_stand_one_a_line():
    right, given = side((np.array([1, 2]), 0.5, "a"), (np.array([1, 3]), 0.25, "a"))
    assert right == "item 0: [1, 2]\nitem 1: 0.5\nitem 2: 'a'"
    assert given == "item 0: [1, 3]\n            ^\nitem 1: 0.25\nitem 2: 'a'"


@pytest.mark.parametrize("expect, got", [
    (np.zeros((0, 3)), np.ones((0, 3))), (np.array(1.5), np.array(2.5)), (np.array([True, False]), np.array([True, True])),
    (np.array([np.nan, np.inf]), np.array([0.0, -np.inf])), (np.zeros((2, 3, 4)), np.ones((2, 3, 4))), ((), ()), ([1], {"a": 1}), (None, 3),
    (np.zeros(2, dtype=np.int8), np.zeros(2)),
    (np.zeros(2, dtype=complex), np.ones(2, dtype=complex)), (np.zeros((3, 0)), np.zeros((3, 0))),
])
def test_every_value_has_a_text(expect, got):
    assert all(isinstance(text, str) and text for text in side(expect, got))


# The author's words


@pytest.mark.parametrize("call, given, sentence", [
    ("f(", {}, "call is 'f(', and must be one expression in Python"),
    ("x = 1", {}, "call is 'x = 1', and must be one expression"),
    ("f()", {"setup": "def"}, "setup is 'def', and must be statements in Python"),
    ("f()", {"tol": -1}, "tol is -1, and must be 0 or more."),
    ("f()", {"tol": float("nan")}, "tol is nan, and must be 0 or more."),
    ("f()", {"expect": 1, "raises": "ValueError"}, "f() has both expect and raises, and can have only one of them."),
])
def test_a_case_that_makes_no_sense_is_one_sentence(call, given, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        case(call, **given)


def test_a_wrong_solution_leaves_the_right_one_in_place():
    assert wrong("q1", "nothing")(notebook).__code__ is notebook.__code__
    with pytest.raises(ValueError, match="the wrong solution 'x' defines other, of which there is no right one"):
        wrong("q1", "x")(type("other", (), {}))


def test_the_import_loads_nothing_heavy():
    code = "import qlab.grading, sys; print([m for m in ('torch', 'numpy', 'IPython', 'nbformat', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


# A plain kernel


def test_in_a_kernel_under_any_name_in_any_folder(tmp_path):
    """The exercise of notebook 02, renamed, one question right, one wrong, one that fails, one blank; only torch and qlab are needed."""
    nbclient = pytest.importorskip("nbclient")
    exercise = nbformat.read(ROOT / "exercises" / "02_linear_quantization.ipynb", 4)
    solution = nbformat.read(ROOT / "solutions" / "02_linear_quantization.ipynb", 4)
    by_id = {cell.metadata.nbgrader.grade_id: cell for cell in exercise.cells if "nbgrader" in cell.metadata}
    right = {cell.metadata.nbgrader.grade_id: cell.source for cell in solution.cells if "nbgrader" in cell.metadata}
    by_id["q1"].source = right["q1"]
    by_id["q2"].source = right["q2"].replace(" + new_z", "")
    by_id["q3"].source = right["q3"].replace("amax(1)", "amax(7)")
    client = nbclient.NotebookClient(exercise, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = {name: by_id[f"{name}_test"].outputs[0].data for name in ("q1", "q2", "q3", "q4")}
    assert shown["q1"]["text/plain"] == "Public tests of q1: 3 of 3 passed. Hidden tests run when it is graded."
    assert "Public tests of q2: 0 of 2 passed." in shown["q2"]["text/plain"] and "hint" in shown["q2"]["text/plain"]
    assert "in per_channel: scale = w.flatten(1).abs().amax(7) / top" in shown["q3"]["text/plain"]
    assert shown["q4"]["text/plain"] == "q4 is not answered yet."
    summary = exercise.cells[-1].outputs[0].data
    assert summary["text/plain"].startswith("[########......................] 25 %") and "progressbar" in summary["text/html"]
    assert not list(tmp_path.iterdir())  # it writes no file


@pytest.mark.parametrize(("added", "state"), [(0, "passed"), (1, "failed")])
def test_a_check_calls_the_answer_once_a_case(added, state):
    calls = []
    asked(*[case("f(x)", x=torch.ones(1000), expect=torch.ones(1000))] * 20)
    assert run("q1", {"f": lambda x: calls.append(1) or x + added}).state == state
    assert len(calls) == 20


def test_a_result_is_what_is_shown_in_a_terminal_and_in_html():
    told = Result("q1", "failed", 0, 1, "Public tests of q1: 0 of 1 passed.", (("got", "[1,\n 2]"), ("why", "so")))
    assert repr(told) == "Public tests of q1: 0 of 1 passed.\n  got       [1,\n             2]\n  why       so"
    assert "<pre" in told._repr_html_() and "var(--jp-error-color1" in told._repr_html_()
