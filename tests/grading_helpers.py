"""A small assignment, made by hand: two questions, 2 and 3 points, with its bundle and ways to answer it."""

import torch

from qlab.grading import values
from qlab.grading.sandbox import bwrap

SETUP = "import torch\n\nfrom qlab.grading import case, check, public"
CODES = """def codes(x, lo, hi, bits):
    scale = (hi - lo) / (2**bits - 1)
    return torch.round((x - lo) / scale).clamp(0, 2**bits - 1).to(torch.int32)"""
NBYTES = """def nbytes(shape, bits):
    count = 1
    for size in shape:
        count *= size
    return (count * bits + 7) // 8"""
TEST = '@public("{0}")\ndef examples():\n    yield case("1 + 1", expect=2)\n\ncheck("{0}")'
BLANK = "# YOUR CODE HERE\nraise NotImplementedError()"
SECRET = 1234.5625  # an input of a hidden case; no text that a student reads may hold it


def has_bwrap() -> bool:
    """Whether bubblewrap is here, the system's or the one that the tests bring along."""
    try:
        return bool(bwrap.find_bwrap())
    except bwrap.SandboxUnavailable:
        return False


def _tensor_case(kind, x, bits, wrong, **words):
    expect = torch.round((x + 1) / 2 * (2**bits - 1)).clamp(0, 2**bits - 1).to(torch.int32)
    inputs = {"x": x, "lo": -1.0, "hi": 1.0, "bits": bits}
    return {
        "kind": kind, "call": "codes(x, lo, hi, bits)", "setup": "", "inputs": {name: values.encode(v) for name, v in inputs.items()},
        "expect": values.encode(expect), "raises": None, "tol": 0.0, "dtype": True, "about": "", "hint": "", **words,
        "wrong": {"floor for round": values.encode(wrong)},
    }  # fmt: skip


def _bytes_case(kind, shape, bits, expect, wrong, raises=None):
    return {
        "kind": kind, "call": "nbytes(shape, bits)", "setup": "", "inputs": {"shape": values.encode(shape), "bits": values.encode(bits)},
        "expect": None if raises else values.encode(expect), "raises": raises, "tol": 0.0, "dtype": True, "about": "", "hint": "",
        "wrong": {"bits, not bytes": values.encode(wrong)},
    }  # fmt: skip


def _floor(x, bits):
    return torch.floor((x + 1) / 2 * (2**bits - 1)).clamp(0, 2**bits - 1).to(torch.int32)


def bundle(seconds: float = 10.0) -> dict:
    """The bundle; seconds is the time budget of each question."""
    half, odd = torch.tensor([0.5]), torch.tensor([[-1.0, 0.1, 0.5], [0.3, SECRET, 0.9]])
    q1 = [
        _tensor_case("public", half, 8, _floor(half, 8) - 1, hint="(0.5 + 1) / s is 191.25"),
        _tensor_case("hidden", odd, 4, _floor(odd, 4), about="two axes, and a value outside the range"),
        _tensor_case("hidden", torch.zeros(0), 4, torch.zeros(0, dtype=torch.int32), about="nothing"),
    ]
    q2 = [
        _bytes_case("public", (2, 3), 4, 3, 24),
        _bytes_case("hidden", (3,), 3, 2, 9),
        _bytes_case("hidden", (987654321,), 1, 123456791, 987654321),
    ]
    questions = [
        {"id": "q1", "points": 2, "seconds": seconds, "answer_cell": "q1", "wrong": ["floor for round"], "cases": q1},
        {"id": "q2", "points": 3, "seconds": seconds, "answer_cell": "q2", "wrong": ["bits, not bytes"], "cases": q2},
    ]
    head = {"format": 1, "assignment": "99_small", "qlab": "0", "seed_sha256": "0" * 64, "built": "", "digest": "0" * 64}
    return {**head, "questions": questions}


def cells(q1: str = CODES, q2: str = NBYTES, before: str = "", after: str = "") -> list[dict]:
    """The cells of a submission with these answers; before and after are cells of the student's own."""
    tests = [(f"{name}_test", TEST.format(name)) for name in ("q1", "q2")]
    sources = [("setup", SETUP), (None, before), ("q1", q1), tests[0], ("q2", q2), tests[1], (None, after)]
    return [{"source": source, "grade_id": name, "grade": str(name).endswith("_test")} for name, source in sources if source or name]
