"""qlab check: the part of the tests that answers at once, and what it adds for one page."""

import pytest

from qlab import cli

ROOT = cli.clone()


@pytest.fixture
def ran(monkeypatch):
    """What would be run, in its order; each part succeeds."""
    calls = []
    monkeypatch.setattr(cli, "lint", lambda args: calls.append("lint") or 0)
    monkeypatch.setattr(cli, "run_tests", lambda args: calls.append(args) or 0)
    kept = cli.main
    monkeypatch.setattr(cli, "main", lambda argv: kept(argv) if argv[0] == "check" else calls.append(argv) or 0)
    return calls


def test_without_a_page_lint_and_the_quick_tests(ran):
    assert cli.main(["check"]) == 0
    assert ran == ["lint", [f"tests/test_{name}.py" for name in cli.QUICK]]


def test_every_quick_test_is_there_once():
    assert len(set(cli.QUICK)) == len(cli.QUICK) and all((ROOT / "tests" / f"test_{name}.py").is_file() for name in cli.QUICK)


def test_with_a_page_it_too_and_its_demo_and_its_exercise_set(ran):
    assert cli.main(["check", "02"]) == 0
    lint, tests, build = ran
    assert tests[len(cli.QUICK):] == ["notebooks/02_linear_quantization.ipynb", "tests/test_demo_linear.py"]
    assert build == ["build", "02_linear_quantization", "--check"]


def test_every_page_has_a_demo_with_tests():
    for page in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        tests = cli.tests_of_page(page, ROOT)
        assert tests[0] == f"notebooks/{page.name}" and len(tests) > 1, page.name


def test_a_page_that_is_not_there_is_told_before_anything_runs(ran, capsys):
    assert cli.main(["check", "97"]) == 1 and ran == []
    assert capsys.readouterr().err.startswith("qlab: there is no notebook 97 in ")


@pytest.mark.parametrize("failing", ["lint", "run_tests"])
def test_one_failure_fails_the_check_and_the_rest_still_runs(ran, monkeypatch, failing):
    monkeypatch.setattr(cli, failing, lambda args: ran.append(failing) or 1)
    assert cli.main(["check", "02"]) == 1 and len(ran) == 3


@pytest.mark.parametrize("failing", ["lint", "run_tests"])
def test_one_that_a_signal_ended_fails_the_check(ran, monkeypatch, failing):
    monkeypatch.setattr(cli, failing, lambda args: -9)
    assert cli.main(["check"]) == 1


@pytest.mark.parametrize("arguments", [["test"], ["test", "-k", "log"], ["check"], ["browser"]])
def test_a_students_copy_says_that_it_has_no_tests(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setattr(cli, "clone", lambda: tmp_path)
    monkeypatch.setattr(cli, "lint", lambda args: 0)
    assert cli.main(arguments) == 1
    sentence = "qlab: tests are not part of this copy of the course; they are in the repository that it was made from.\n"
    assert capsys.readouterr() == ("", sentence)
