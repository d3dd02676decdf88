"""The author's words: what the notebook of an exercise set says about a question.

    case(call, expect=...)    an expression over the student's names and the inputs, and the value it should have
    @public(question)         a function that yields cases which students see; check runs them
    @hidden(question)         the same for cases which only the grader runs; it is given a random generator with the teacher's seed
    @hidden(question, points=1)   its cases are a group that gives so many of the question's points alone; public can, too
    @wrong(question, note)    a solution that students really write, and that some hidden case must fail

The format is described for authors in solutions/README.md.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

MISSING = object()                             # no value stated: the reference solution's answer is what is expected
PUBLIC: dict[str, dict[str, Callable]] = {}    # question -> name of the function -> the function: run again, a cell replaces its own
HIDDEN: dict[str, dict[str, Callable]] = {}


@dataclass(frozen=True, eq=False)
class Case:
    """What `case` returns; the fields are its arguments."""

    call: str
    expect: object = MISSING
    tol: float = 0.0
    dtype: bool = True
    about: str = ""
    hint: str = ""
    setup: str = ""
    raises: str | None = None
    inputs: dict = field(default_factory=dict)


def case(call: str, /, *, expect=MISSING, tol: float = 0.0, dtype: bool = True, about: str = "", hint: str = "", setup: str = "",
         raises: str | None = None, **inputs) -> Case:
    """One test case: `call`, a Python expression over the student's names and the inputs, and what it should give.

    expect: the right value (a public case must state it); raises instead: the name of the right exception, or of a base of it.
    tol: the largest absolute error of any element that passes; 0 is exact. dtype: whether the dtype must be right, too; the shape
    always must. setup: statements that run before the call. about: what a hidden case is about, for the teacher, and for students after
    the deadline (`qlab grade --reveal hints`); hint: for the student whose answer fails a public one.
    Inputs and expected values: None, bool, int, float, str, list, tuple, dict, torch tensors and NumPy arrays.

    Raises ValueError for a call or a setup that is no Python, a negative tol, or both expect and raises.

    >>> case("double(x)", x=3, expect=6).inputs
    {'x': 3}
    """
    for text, mode, name in ((call, "eval", "call"), (setup, "exec", "setup")):
        try:
            compile(text, name, mode)
        except (SyntaxError, ValueError) as error:
            what = "one expression" if mode == "eval" else "statements"
            raise ValueError(f"{name} is {text!r}, and must be {what} in Python ({error}).") from None
    if not tol >= 0:
        raise ValueError(f"tol is {tol}, and must be 0 or more.")
    if raises is not None and expect is not MISSING:
        raise ValueError(f"{call} has both expect and raises, and can have only one of them.")
    return Case(call, expect, float(tol), bool(dtype), about, hint, setup, raises, inputs)


def public(question: str, points: float | None = None) -> Callable:
    """Registers a function without arguments that yields the cases of a question that students see.

    points: what its cases give by themselves, of the question's points; without it they count with the question's other cases.
    Raises ValueError for points that are no number above 0.

    >>> @public("q0")
    ... def examples():
    ...     yield case("double(x)", x=3, expect=6)
    >>> [c.call for c in PUBLIC.pop("q0")["examples"]()]
    ['double(x)']
    """
    return _register(PUBLIC, question, points)


def hidden(question: str, points: float | None = None) -> Callable:
    """Registers a function of a numpy.random.Generator that yields the cases that only the grader runs; points as in `public`.

    >>> @hidden("q0", points=2)
    ... def draws(rng):
    ...     yield case("double(x)", x=int(rng.integers(9)), about="a small number")
    >>> HIDDEN.pop("q0")["draws"].points
    2
    """
    return _register(HIDDEN, question, points)


def wrong(question: str, note: str) -> Callable:
    """Marks a function or class as a wrong solution of a question; the name keeps the right solution that it stood for.

    note: a few words that tell a teacher what is wrong. Raises ValueError where there is no solution of that name.

    >>> def double(x):
    ...     return 2 * x
    >>> @wrong("q0", "squares")
    ... def double(x):
    ...     return x * x
    >>> double(3)
    6
    """
    names = sys._getframe(1).f_globals

    def keep(definition):
        if definition.__name__ not in names:
            raise ValueError(f"{question}: the wrong solution {note!r} defines {definition.__name__}, of which there is no right one.")
        return names[definition.__name__]

    return keep


def _register(registry: dict, question: str, points: float | None) -> Callable:
    number = isinstance(points, int | float) and not isinstance(points, bool) and 0 < points < math.inf
    if points is not None and not number:
        raise ValueError(f"{question}: points is {points!r}, and must be a number above 0.")

    def keep(function):
        function.points = points
        registry.setdefault(question, {})[function.__name__] = function
        return function

    return keep
