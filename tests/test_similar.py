"""Similar answers: a renamed copy is found; independent solutions of one task, one-liners, and what the whole class has, are not."""

import random

import pytest

from qlab.grading.report import similar

STUB = 'def quantize(x, x_min, x_max, bits):\n    """Codes of x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
ADA = '''def quantize(x, x_min, x_max, bits):
    """Codes of x."""
    levels = 2**bits - 1
    scale = (x_max - x_min) / levels
    if scale == 0:
        return torch.zeros_like(x, dtype=torch.int64), scale
    shifted = (x - x_min) / scale
    codes = torch.round(shifted)
    codes = torch.clamp(codes, 0, levels)
    return codes.to(torch.int64), scale'''
COPY = """def quantize(x, x_min, x_max, bits):
    # all my own work
    highest = 2**bits-1
    delta = ((x_max - x_min) / highest)
    if delta == 0: return torch.zeros_like(x, dtype=torch.int64), delta
    moved = (x - x_min) / delta; rounded = torch.round(moved)
    rounded = torch.clamp(rounded,
                          0, highest,)
    return (rounded.to(torch.int64), delta)"""
OTHERS = ["""def quantize(x, x_min, x_max, bits):
    n = 2 ** bits
    s = (x_max - x_min) / (n - 1)
    if s == 0:
        return torch.zeros(x.shape, dtype=torch.int64), s
    return ((x - x_min) / s).round().clamp(0, n - 1).to(torch.int64), s""", """def quantize(x, x_min, x_max, bits):
    top = (1 << bits) - 1
    step = (x_max - x_min) / top
    if not step:
        q = torch.zeros_like(x)
    else:
        q = torch.clamp(torch.round((x - x_min) / step), min=0, max=top)
    return q.long(), step""", """def quantize(x, x_min, x_max, bits):
    width = x_max - x_min
    count = 2 ** bits - 1
    safe = width if width > 0 else 1.0
    inside = torch.minimum(torch.maximum(x, torch.tensor(x_min)), torch.tensor(x_max))
    q = torch.round((inside - x_min) * count / safe)
    q[q > count] = count
    return q.type(torch.int64), width / count"""]
SHORT = [f"def quantize(x, x_min, x_max, bits):\n    {s} = (x_max - x_min) / (2**bits - 1)\n    return torch.round((x - x_min) / {s}), {s}"
         for s in ("scale", "step")]
BUNDLE = {"assignment": "99_small", "questions": [{"id": "q1", "answer_cell": "q1"}, {"id": "q2", "answer_cell": "q2"}]}


def cell(source, name="q1"):
    return {"source": source, "grade_id": name, "grade": False}


HANDED_OUT = (cell(STUB),)


def compared(*sources, given=HANDED_OUT, files=None):
    names = [f"s{k}" for k in range(len(sources))]
    made = [{"submission": {"id": name, "student": name.upper(), "source": (files or names)[k]}} for k, name in enumerate(names)]
    cells = {name: tuple(source) if isinstance(source, tuple) else (cell(source),) for name, source in zip(names, sources)}
    return similar.pairs(made, BUNDLE, cells, given), made, cells


def found(*sources, **words):
    return [(pair.one["submission"]["id"], pair.other["submission"]["id"]) for pair in compared(*sources, **words)[0]]


def test_a_renamed_copy_is_found_and_nothing_else():
    assert found(ADA, *OTHERS, COPY) == [("s0", "s4")]
    pair, = compared(ADA, *OTHERS, COPY)[0]
    assert pair.alike["q1"][1] == 1.0 and list(pair.alike) == ["q1"]


@pytest.mark.parametrize("change", [
    lambda code: code.replace("    codes = torch.round", "    print(shifted.mean())\n    codes = torch.round"),
    lambda code: code.replace('"""Codes of x."""', "'''Somebody else's words,\n    in two lines.'''"),
    lambda code: code.replace("if scale == 0", "if scale <= 0").replace("    shifted", "    # a comment\n\n    shifted"),
    lambda code: code.replace("    ", "\t").replace("\n", "\r\n"),
    lambda code: "import torch\n\n\ndef helper(y):\n    return y\n\n\n" + code,
    lambda code: code.replace("x_min, x_max, bits)", "x_min: float, x_max: float, bits: int) -> tuple"),
])
def test_a_copy_with_small_changes_is_found(change):
    assert found(ADA, *OTHERS, change(COPY)) == [("s0", "s4")]


def test_independent_solutions_are_not_reported():
    assert found(ADA, *OTHERS) == [] == found(COPY, *OTHERS)


@pytest.mark.parametrize("sources", [SHORT, SHORT * 3, ["x = 1", "y = 1"], ["", ""], [STUB, STUB]])
def test_short_answers_are_not_reported(sources):
    assert found(*sources) == []


def test_what_many_of_the_class_have_is_not_reported():
    own = [ADA.replace("levels", f"levels_{k}") for k in range(similar.FEW)]
    assert len(found(*own)) == 10 and found(*own, COPY) == []
    many = [ADA] * 30 + [f"{OTHERS[2]}\n    # {k}" for k in range(2)] + [OTHERS[0]]
    assert found(*many) == [("s30", "s31")]


def test_the_given_code_does_not_count():
    assert found(ADA, COPY, given=(cell(ADA),)) == []
    long_stub = ADA.replace("def quantize", "def given") + "\n\n\n" + STUB
    answered = [long_stub.replace("raise NotImplementedError()", f"return x * {k}") for k in range(2)]
    assert found(*answered) == [("s0", "s1")] and found(*answered, given=(cell(long_stub),)) == []


def test_a_team_is_not_a_pair():
    assert found(ADA, COPY, files=["submission_1/02.ipynb"] * 2) == []


def test_only_answers_of_the_same_question_are_compared():
    assert found((cell(ADA, "q1"),), (cell(COPY, "q2"),)) == []
    both = (cell(ADA, "q1"), cell(OTHERS[2], "q2"))
    pair, = compared(both, (cell(COPY, "q1"), cell(OTHERS[2], "q2")))[0]
    assert list(pair.alike) == ["q1", "q2"]
    test = {"source": ADA, "grade_id": "q1", "grade": True}
    assert found((test,), (test,)) == []
    assert found((cell(ADA), cell(OTHERS[0])), COPY) == []  # of an answer given twice, the last counts


@pytest.mark.parametrize("source", ["def f(:\n  '", '"""never ends', "(" * 50_000, "-" * 50_000 + "1", "\0", "%%bash\nls", "\ud800 = 1",
                                    "\t x\n y\n\tz", "f'{x!r:{y}}' " * 20, "lambda:" * 9999, "'" * 40_001, "0_" * 30_000,
                                    "é" * 40_000])
def test_what_is_no_python_is_compared_as_far_as_it_goes(source):
    assert found(source, ADA, COPY)[-1] == ("s1", "s2")


def test_any_consistent_renaming_gives_the_same_fingerprints():
    rng = random.Random(1)
    for _ in range(20):
        names = rng.sample(range(100), 5)
        code = ADA
        for name, number in zip(("levels", "scale", "shifted", "codes", "bits"), names):
            code = code.replace(name, f"v{number}_")
        assert similar.fingerprints(code.replace("Codes_", "")) == similar.fingerprints(ADA)


def test_the_report_says_what_it_means_and_escapes_what_it_shows(tmp_path):
    evil = "</pre><script>alert(1)</script>"
    pairs, made, cells = compared(ADA + f"\n# {evil}\u202e", COPY)
    for result in made:
        result["submission"]["student"] = f"=1+1;{evil}"
    text = similar.page(pairs, BUNDLE, cells, 2)
    assert "<script" not in text and "\u202e" not in text and "&lt;/pre&gt;" in text and "For the teacher only" in text
    assert "1 pair of 2 hand-ins" in text and "No mark depends on it." in text and "default-src 'none'" in text
    assert "href" not in text and 'href="pages/s0.html"' in similar.page(pairs, BUNDLE, cells, 2, linked=True)
    assert "No pair of 2" in similar.page([], BUNDLE, cells, 2)
    assert similar.rows(pairs) == [["student", "other student", "question", "alike, %", "fingerprints shared", "id", "other id"],
                                   [f"=1+1;{evil}"] * 2 + ["q1", "100", pairs[0].alike["q1"][0], "s0", "s1"]]
