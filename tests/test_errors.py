"""qlab.errors: somebody else's error inside a sentence of ours."""

from pathlib import Path

import pytest

from qlab import errors


@pytest.mark.parametrize("error, said", [
    (RuntimeError("shapes do not fit.\n\nWhile executing %conv : [num_users=1]"), "shapes do not fit"),
    (RuntimeError("While executing %conv : [num_users=1]\nshapes do not fit"), "shapes do not fit"),
    (ValueError("\n  these sizes:\n    4\n"), "these sizes"),
    (ValueError("1.5 is no size. Take 2."), "1.5 is no size. Take 2"),
    (KeyError("weight"), "'weight'"),
    (AssertionError(), "AssertionError"),
    (RuntimeError("\n \n"), "RuntimeError"),
])
def test_the_first_line_ends_without_a_period_and_says_something(error, said):
    assert errors.first_line(error) == said


def test_no_module_cuts_an_error_by_itself():
    """Where str(error) is empty, its first line is none: errors.first_line knows."""
    root = Path(errors.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    assert [name for name, text in sources.items() if "str(error).splitlines()[0]" in text or "__name__).splitlines()[0]" in text] == []
