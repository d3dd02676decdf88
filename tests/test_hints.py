"""What a class sees of a question in groups, of hidden tests before the deadline and after, and of the version that a hand-in has."""

import gzip
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grading_helpers as small
import pytest

from qlab import cli
from qlab.grading import batch, grade, hints, results
from qlab.grading.handed_in import notebook
from qlab.grading.report import teacher

VERSION, OLD = "0123456789ab", "ba9876543210"
PASSED = "2001-09-09T01:46:40+00:00"
ABOUT = ("two axes, and a value outside the range", "nothing", "floor for round", "bits, not bytes")  # what hints are made of
HIDDEN = "The public tests pass; a hidden test fails."
FLOOR = small.CODES.replace("round(", "floor(")
EXITS = small.CODES + "\n\nright = codes\ndef codes(x, *rest):\n    return right(x, *rest) if x.numel() else __import__('os')._exit(3)"
CLASS = {  # who, the answers; the sentences on q1 and q2, without a hint and with
    "ada": ({}, "All tests pass.", "", "All tests pass.", ""),
    "bob": ({"q1": FLOOR}, HIDDEN, " The hidden test that fails is about: two axes, and a value outside the range. "
            "The answers are those of a known mistake: floor for round.", "All tests pass.", ""),
    "cyd": ({"q2": small.NBYTES.replace("(count * bits + 7) // 8", "count * bits")}, "All tests pass.", "", "A public test fails.",
            " The answers are those of a known mistake: bits, not bytes."),
    "dan": ({"q1": EXITS}, "The process ended while this question was tested: it left Python, crashed, or used too much memory.",
            " The hidden test that fails is about: nothing.", "All tests pass.", ""),
    "eve": ({"q1": small.BLANK, "q2": small.BLANK}, "Not answered yet.", "", "Not answered yet.", ""),
    "fay": ({"q1": small.CODES.replace("int32)", "int32) + int(x.ndim > 1)")}, HIDDEN,
            " The hidden test that fails is about: two axes, and a value outside the range.", "All tests pass.", ""),
}


def hand_in(folder, name, metadata=None, **answers):
    """A notebook of the small assignment."""
    made = [{"cell_type": "code", "source": cell["source"], "metadata": {"nbgrader": {
        "grade_id": cell["grade_id"], "grade": cell["grade"], "solution": str(cell["grade_id"]) in ("q1", "q2"), "schema_version": 3}}}
        for cell in small.cells(**answers)]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata or {}, "cells": made}))


def bundled(path, **changed):
    bundle = {**small.bundle(), **changed}
    bundle["digest"] = results.digest(bundle)
    path.write_bytes(gzip.compress(json.dumps(bundle).encode()))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The beginning of a command that grades tmp_path/in without a sandbox: the answers are our own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=batch.trusted))
    bundled(tmp_path / "b.json.gz")
    return ["grade", "in", "--assignment", "99", "--bundle", "b.json.gz"]


def exported():
    """All that lies in the export folder, as text: name -> text."""
    folder = Path("results/99_small/export")
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8-sig")
            for path in sorted(folder.rglob("*")) if path.suffix in (".csv", ".html", ".json")}


def test_hints_after_the_deadline_and_nothing_before(command, capsys):
    for name, (answers, *_) in CLASS.items():
        hand_in(Path("in"), name, **answers)
    assert cli.main([*command, "--export", "html", "gradescope", "moodle", "csv"]) == 0
    for name, text in exported().items():
        assert not any(word in text for word in ABOUT), name
    stored = {path.name: path.read_text() for path in Path("results/99_small").glob("*.json")}
    made = {json.loads(text)["submission"]["student"]: json.loads(text) for text in stored.values()}
    for name, (_, q1, _, q2, _) in CLASS.items():
        assert [question["reason"] for question in made[name]["questions"]] == [q1, q2], name

    assert cli.main([*command, "--deadline", PASSED, "--reveal", "hints", "--export", "html", "gradescope", "moodle", "csv"]) == 0
    told = exported()
    for name, (_, q1, hint1, q2, hint2) in CLASS.items():
        ident = made[name]["submission"]["id"]
        page, sent = told[f"feedback/{ident}.html"], json.loads(told[f"gradescope/{ident}/results.json"])
        for reason in (q1 + hint1, q2 + hint2):
            assert f"<p>{reason}</p>" in page and reason in [test["output"].split("\n")[0] for test in sent["tests"]]
            assert reason in told["moodle.csv"]
        assert page.count("about:") == ("about" in hint1) and page.count("mistake") == ("mistake" in hint1 + hint2)
    assert not any(word in told["gradebook.csv"] for word in ABOUT)
    for text in told.values():
        assert str(small.SECRET) not in text and "987654321" not in text and "123456791" not in text
    again = {path.name: path.read_text() for path in Path("results/99_small").glob("*.json")}
    assert {name: json.loads(text)["questions"] for name, text in again.items()} == {
        name: json.loads(text)["questions"] for name, text in stored.items()}  # what is kept holds no hint


@pytest.mark.parametrize("options, sentence", [
    (["--export", "html"], "--reveal hints is for after the deadline: state it with --deadline."),
    (["--deadline", "2199-01-01T00:00+00:00", "--export", "html"], "--reveal hints is for after the deadline, which is "
     "2199-01-01T00:00+00:00: until then nothing is revealed, and nothing was graded."),
    (["--deadline", PASSED], "--reveal hints goes with an export for students: --export html, for instance."),
    (["--deadline", PASSED, "--export", "csv", "statistics"], "--reveal hints goes with an export for students: --export html, for "
     "instance."),
])
def test_hints_are_refused_before_anything_is_graded(command, options, sentence, capsys):
    hand_in(Path("in"), "ada")
    assert cli.main([*command, "--reveal", "hints", *options]) == 1
    assert capsys.readouterr().err == f"qlab: {sentence}\n" and not Path("results").exists()


def test_hints_wait_for_the_last_extension(command, capsys):
    hand_in(Path("in"), "ada")
    Path("more.csv").write_text("student,deadline\nada,2199-01-01T00:00+00:00\n")
    given = ["--deadline", PASSED, "--extensions", "more.csv", "--reveal", "hints", "--export", "html"]
    assert cli.main([*command, *given]) == 1 and "which is 2199-01-01T00:00+00:00: until then" in capsys.readouterr().err


def test_exports_that_students_do_not_see_hold_no_hint():
    assert set(hints.TEACHERS) == {"csv", "statistics", *teacher.NAMES} and set(hints.TEACHERS) < set(grade.EXPORTS)


def test_the_deadline_itself_is_not_yet_after_it():
    deadline = datetime(2026, 11, 23, 18, tzinfo=UTC)
    with pytest.raises(ValueError, match="until then nothing is revealed"):
        hints.allow(deadline, ["html"], deadline)
    hints.allow(deadline, ["csv", "html"], deadline.replace(microsecond=1))


@pytest.mark.parametrize("about, shown", [
    ("an odd shape", "an odd shape"), ("float32 and 0", "float32 and 0"), ("<b>&", "<b>&"),
    ("x is 1234.5625", ""), ("1234.5625", ""), ("1e9 of them", ""), ("0x4d2", ""), ("-2 below", ""), ("2**31", ""), ("7bits", ""),
    ("the word is sesame", ""), ("1,234", ""), ("٣ rows", ""),
])
def test_a_text_that_gives_an_input_away_is_not_shown(about, shown):
    """Bundles of earlier builds may hold such texts."""
    case = {"kind": "hidden", "about": about, "inputs": {"x": {"t": "list", "v": [{"t": "str", "v": "sesame"}]}}}
    question = {"id": "q1", "state": "failed", "reason": "R.", "note": "", "failed_case": 0, "answers_like": None}
    told = hints.reveal({"questions": [question]}, {"questions": [{"id": "q1", "cases": [case]}]})["questions"][0]["reason"]
    assert told == (f"R. The hidden test that fails is about: {shown}." if shown else "R.")


def test_of_groups_each_has_its_hint_once():
    cases = [{"kind": "public", "about": "shown", "inputs": {}}, *({"kind": "hidden", "about": about, "inputs": {}} for about in "abb")]
    groups = [{"failed_case": k, "answers_like": like} for k, like in ((0, None), (1, "first"), (2, "second"), (3, "second"), (None, None))]
    question = {"id": "q1", "state": "failed", "reason": "R.", "note": "", "failed_case": 0, "answers_like": None, "groups": groups}
    bundle = {"questions": [{"id": "q1", "cases": cases}]}
    told = hints.reveal({"questions": [question]}, bundle)["questions"][0]["reason"]
    assert told == "R. The hidden tests that fail are about: a; b. The answers are those of a known mistake: first; second."
    whole = hints.reveal({"questions": [{**question, "answers_like": "both"}]}, bundle)["questions"][0]["reason"]
    assert whole.endswith("The answers are those of a known mistake: both.")
    late = hints.reveal({"questions": [{**question, "state": "timeout", "note": "timeout: notebook"}]}, bundle)
    assert late["questions"][0]["reason"] == "R."  # the whole notebook ran out of time: this question has failed nothing


# Points in groups


def test_points_of_groups_reach_every_table_and_page(command, capsys):
    bundle = small.bundle()
    bundle["questions"][0]["groups"] = [{"name": name, "points": points, "cases": held}
                                        for name, points, held in (("", 1.5, [0, 1]), ("secret <name>", 0.5, [2]))]
    bundled(Path("b.json.gz"), questions=bundle["questions"])
    for name in ("bob", "dan", "eve"):
        hand_in(Path("in"), name, **CLASS[name][0])
    exports = ["csv", "html", "gradescope", "canvas", "moodle", "pages", "statistics"]
    assert cli.main([*command, "--deadline", PASSED, "--reveal", "hints", "--export", *exports]) == 0
    assert "mean         2.67 of 5, median 3.5" in capsys.readouterr().out
    told = exported()
    rows = [line.split(",") for line in told["gradebook.csv"].splitlines()]
    columns = [rows[0].index(name) for name in ("student", "score", "q1", "q2")]
    assert [" ".join(row[k] for k in columns) for row in rows[1:]] == ["bob 3.5 0.5 3", "dan 4.5 1.5 3", "eve 0 0 0"]
    assert [line.split(",")[-1] for line in told["canvas.csv"].splitlines()[2:]] == ["3.5", "4.5", "0"]
    pages = {name: text for name, text in told.items() if name.startswith("feedback/")}
    (bob,) = [text for name, text in pages.items() if "/bob-" in name]
    assert ">0.5 of 2<" in bob and "3.5 of 5 points" in bob and "about: two axes, and a value outside the range. The answers are" in bob
    assert "a hidden test fails. 1 of the 2 parts of this question passes. The hidden test that fails is" in bob
    (dan,) = [json.loads(text) for name, text in told.items() if name.startswith("gradescope/dan")]
    assert [(test["score"], test["max_score"], test["status"]) for test in dan["tests"]] == [(1.5, 2, "failed"), (3, 3, "passed")]
    assert not any("secret" in text for text in told.values())  # what a group is called is for the teacher
    made = [json.loads(path.read_text()) for path in sorted(Path("results/99_small").glob("*.json"))]
    assert [[group["score"] for group in result["questions"][0]["groups"]] for result in made] == [[0, 0.5], [1.5, 0], [0, 0]]


# The version of the set

STAMPS = {  # what stands in the notebook's metadata: the version that is read
    "right": ({"qlab": {"version": VERSION}}, VERSION), "old": ({"qlab": {"version": OLD}}, OLD), "none": ({}, None),
    "list": ({"qlab": [VERSION]}, None), "number": ({"qlab": {"version": 123456789012}}, None), "text": ({"qlab": VERSION}, None),
    "long": ({"qlab": {"version": VERSION * 100_000}}, None), "markup": ({"qlab": {"version": "<script>1/1"}}, None),
    "formula": ({"qlab": {"version": "=1+1+1+1+1+1"}}, None), "upper": ({"qlab": {"version": VERSION.upper()}}, None),
    "line": ({"qlab": {"version": VERSION + "\n"}}, None), "half": ({"qlab": {"version": "\ud800" * 12}}, None),
}


@pytest.mark.parametrize("stamp", STAMPS)
def test_a_stamp_is_read_or_is_none(stamp):
    metadata, version = STAMPS[stamp]
    cells, found = notebook.read(json.dumps({"nbformat": 4, "metadata": metadata, "cells": []}).encode())
    assert (cells, found) == ([], version)
    for metadata in ([], None, "qlab", 3):
        assert notebook.read(json.dumps({"nbformat": 4, "metadata": metadata, "cells": []}).encode()) == ([], None)


@contextmanager
def three_points(jobs):
    """In place of a sandbox: marks that cost nothing."""
    yield lambda cells, bundle: {"questions": [], "score": 3, "max_score": 5, "limits": {}, "stdout_tail": ""}


def test_a_hand_in_of_another_version_is_graded_and_flagged(command, capsys, monkeypatch):
    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=three_points))
    bundled(Path("b.json.gz"), version=VERSION)
    for name in ("right", "old", "none", "markup"):
        hand_in(Path("in"), name, STAMPS[name][0])
    other = f"it was made from another version of the set, {OLD}; it is graded by version {VERSION}"
    unknown = "version not known: it has no stamp of the set that it was made from"
    for stood in ("", "  (4 of them in an earlier run)"):
        assert cli.main([*command, "--export", "csv", "html"]) == 0
        assert capsys.readouterr().out.startswith(f"""\
note: markup (markup.ipynb): {unknown}
note: none (none.ipynb): {unknown}
note: old (old.ipynb): {other}
99_small: 4 handed in by 4 students
  graded          4{stood}
  version?        1  (made from another version of the set; graded all the same)
  version?        2  (without the stamp of a version; graded all the same)
  mean         3.00 of 5, median 3
results in """)
        made = {result["submission"]["student"]: result for result in map(json.loads, map(
            Path.read_text, Path("results/99_small").glob("*.json")))}
        assert {name: (result["score"], result["version"], result["submission"]["version"], result["notes"])
                for name, result in made.items()} == {
            "right": (3, "this", VERSION, []), "old": (3, "another", OLD, [other]), "none": (3, "not known", None, [unknown]),
            "markup": (3, "not known", None, [unknown])}
        told = exported()
        assert other in told["gradebook.csv"]
        assert not any("version" in text for name, text in told.items() if name.endswith(".html"))  # it is no student's fault


def test_a_bundle_without_a_version_flags_nothing(command, capsys, monkeypatch):
    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=three_points))
    hand_in(Path("in"), "ada", STAMPS["old"][0])
    assert cli.main(command) == 0
    assert "version" not in capsys.readouterr().out
    (result,) = map(json.loads, map(Path.read_text, Path("results/99_small").glob("*.json")))
    assert (result["score"], result["version"], result["notes"]) == (3, "", [])
