"""The verdict on an answer: whether the VALUE that came is the one expected (see `values`), and in one sentence why not.

The grader and a student's `check` share it. Both sides are plain values that have been decoded here, by NumPy and the standard library;
torch is never asked.
"""

import numpy as np

from qlab.grading.values import decode, encode, show
from qlab.translate import tr

MAX_WHY = 1000  # characters of the sentence

_NUMBERS = ("int", "float", "tensor", "array")
_KINDS = {"bool": ("bool",), "int": ("int", "uint"), "float": ("float", "bfloat")}  # the dtypes of the scalars that are such a number


def compare(got: dict, expect: dict, tol: float = 0.0, dtype: bool = True) -> str:
    """"" if the VALUE got is the one expected, else one sentence that says why not.

    Shapes always count; tol bounds the largest absolute error (0: equal numbers, so -0.0 is 0.0); NaN equals only an expected NaN,
    and infinities must match. Where a plain number is expected, a NumPy scalar or a tensor of shape () of its kind (bool, integer, real)
    is one. dtype=False compares numbers by their values: an int, a float, a tensor and an array are then alike.

    >>> compare(encode(np.array([1.0, 2.0])), encode(np.array([1.0, 2.5])))
    '1 of 2 elements differs: expected 2.5 at [1], got 2.0; the largest error is 0.5, and 0 is allowed.'
    >>> compare(encode(np.array([1.0, 2.0])), encode(np.array([1.0, 2.5])), tol=0.5), compare(encode(1), encode(1.0), dtype=False)
    ('', '')
    >>> compare(encode([1, True]), encode([1, 1]))
    'In item 1: expected an int, got a bool.'
    >>> compare(encode(np.float64(0.5)), encode(0.5)), compare(encode(np.float64(2)), encode(2))
    ('', 'expected an int, got a NumPy float64.')
    """
    decode(got), decode(expect)
    places, why = _compare(got, expect, float(tol), dtype)
    if places:
        why = tr("In {places}: {why}", places=", ".join(places), why=why)
    return why if len(why) <= MAX_WHY else why[: MAX_WHY - 5] + " ...."


def _compare(got: dict, expect: dict, tol: float, dtype: bool) -> tuple[list[str], str]:
    """Where inside of a list, tuple or dict the two differ, from the outside inwards, and why; [] and "" if they are equal."""
    if "shape" in got and not got["shape"] and got["dtype"].startswith(_KINDS.get(expect["t"], ())):
        got = encode(decode(got).item())  # what NumPy or torch computed is as good a number as Python's
    have, want = got["t"], expect["t"]
    if have in ("error", "unsupported"):
        return [], _expected(_kind(want), show(got)) if got != expect else ""
    if have != want and (dtype or have not in _NUMBERS or want not in _NUMBERS):
        return [], _expected(show(expect) if want in ("error", "unsupported") else _kind(want), _name(got))
    if want in ("list", "tuple"):
        if len(got["v"]) != len(expect["v"]):
            return [], tr("expected a {kind} of {count} items, got {other}.", kind=want, count=len(expect["v"]), other=len(got["v"]))
        pairs = [(tr("item {index}", index=index), one, other) for index, (one, other) in enumerate(zip(got["v"], expect["v"]))]
    elif want == "dict":
        items = dict(got["v"])
        if items.keys() != {key for key, _ in expect["v"]}:
            return [], tr("expected the keys {keys}, got {others}.", keys=sorted(key for key, _ in expect["v"]), others=sorted(items))
        pairs = [(tr("key {key!r}", key=key), items[key], other) for key, other in expect["v"]]
    elif want in _NUMBERS:
        return [], _compare_numbers(got, expect, tol, dtype)
    else:
        return [], "" if got == expect else _expected(show(expect), show(got))
    for place, one, other in pairs:
        places, why = _compare(one, other, tol, dtype)
        if why:
            return [place, *places], why
    return [], ""


def _expected(right: str, given: str) -> str:
    return tr("expected {right}, got {given}.", right=right, given=given)


def _name(value: dict) -> str:
    if value["t"] == "array" and not value["shape"]:
        return tr("a NumPy {dtype}", dtype=value["dtype"])
    return _kind(value["t"])


def _kind(kind: str) -> str:
    if kind in ("error", "unsupported"):
        return tr("an error")
    names = {"none": "None", "int": tr("an int"), "array": tr("a NumPy array")}
    return names.get(kind) or tr("a {kind}", kind=kind)


def _compare_numbers(got: dict, expect: dict, tol: float, dtype: bool) -> str:
    a, b = decode(got), decode(expect)
    if isinstance(a, int) and isinstance(b, int):  # Python's own, of any size
        return "" if abs(a - b) <= tol else _expected(show(expect), show(got))
    try:
        a, b = np.asarray(a), np.asarray(b)
        if object in (a.dtype, b.dtype):
            raise OverflowError
    except OverflowError:
        return _expected(show(expect), show(got))
    if a.shape != b.shape:
        return tr("expected shape {right}, got {given}.", right=b.shape, given=a.shape)
    if dtype and got.get("dtype") != expect.get("dtype"):
        return tr("expected dtype {right}, got {given}.", right=expect["dtype"], given=got["dtype"])
    with np.errstate(all="ignore"):
        wide = complex if "c" in (a.dtype.kind, b.dtype.kind) else float
        error = np.abs(a.astype(wide) - b.astype(wide))
        same = (a == b) | ((a != a) & (b != b))  # != itself: NaN
        wrong = ~(same | (error <= tol)) if tol else ~same
    if not wrong.any():
        return ""
    if not a.shape:
        return _expected(show(expect), show(got))
    first = tuple(int(i[0]) for i in np.nonzero(wrong))
    count = tr("1 of {all} elements differs", all=a.size) if wrong.sum() == 1 else \
        tr("{wrong} of {all} elements differ", wrong=wrong.sum(), all=a.size)
    largest = tr("not a number") if np.isnan(error[wrong]).any() else f"{error[wrong].max():.6g}"
    return tr("{count}: expected {right} at {place}, got {given}; the largest error is {largest}, and {tol:.6g} is allowed.",
              count=count, right=b[first].item(), place=list(first), given=a[first].item(), largest=largest, tol=tol)
