"""Which of one student's notebooks counts: answers first, then the name, then the time; the mark, and what is said of the others."""

import io
import json
import os
import sys
import zipfile
from datetime import UTC, datetime

import pytest

from qlab.grading import mark, values
from qlab.grading.handed_in import ingest, which
from qlab.grading.report import answers

NN = "02_linear"
WHOLE = "def f(x):\n    return x + 1", "def g(x):\n    return 2 * x"
BLANK = "def f(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()", "def g(x):\n    raise NotImplementedError()"
OTHER = "def assign(x):\n    return x", "def move(x):\n    return x"  # q1 and q2 of another set
CASE = {"kind": "hidden", "setup": "", "raises": None, "tol": 0.0, "dtype": True, "about": "", "hint": "", "wrong": {},
        "inputs": {"x": values.encode(3)}}
BUNDLE = {"assignment": NN, "questions": [
    {"id": name, "points": points, "seconds": 10.0, "answer_cell": name, "wrong": [],
     "cases": [CASE | {"call": call, "expect": values.encode(right)}]}
    for name, points, call, right in (("q1", 2, "f(x)", 4), ("q2", 3, "g(x)", 6))]}
ASKED = which.asked(BUNDLE)
COUNTS = "the same student's {} counts".format


def nb(*sources, ids=("q1", "q2")):
    """A notebook's bytes: code cells, the first ones with answer ids."""
    cells = [{"cell_type": "code", "source": source, "outputs": [], "metadata": {
        "nbgrader": {"grade_id": name, "grade": False, "solution": True, "schema_version": 3}} if name else {}}
        for source, name in zip(sources, (*ids, *[None] * len(sources)))]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).encode()


def zipped(files):
    """A zip's bytes of name: bytes, or (bytes, day of November)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            content, day = content if isinstance(content, tuple) else (content, 1)
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, day, 12, 0, 0)), content)
    return stream.getvalue()


def laid_out(root, files):
    for name, content in {**files, "zoe/zoe.ipynb": nb(*WHOLE)}.items():  # so that the folder is a class's
        content, day = content if isinstance(content, tuple) else (content, 1)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (datetime(2026, 11, day, tzinfo=UTC).timestamp(),) * 2)


def adas(root, files, **options):
    """What ada handed in as these files: the submission that counts, and the reasons of the others by their source."""
    laid_out(root, files)
    entries = [entry for entry in ingest.collect(root, NN, answers=ASKED, **options) if entry.student != "zoe"]
    assert {entry.student for entry in entries} == {"ada"} and len({entry.id for entry in entries}) == len(entries)
    (counts,) = [entry for entry in entries if not entry.duplicate_of]
    assert all(entry.duplicate_of == counts.id and entry.status for entry in entries if entry is not counts)
    return counts, {entry.source: entry.reason for entry in entries if entry is not counts}


ANSWERS = "it answers 2 of 2 questions, this one 0"
LESSON = nb("def f(x):\n    return 0", "f(1)", ids=())  # lessons define some of the functions, and not all
COURSE = {f"{folder}/{name}.ipynb": LESSON if folder == "notebooks" else nb(*OTHER)
          for folder in ("exercises", "notebooks") for name in ("01_why", "03_log", "04_kmeans")}
PICKED = {
    "a newer scratch file": ({f"ada/{NN}.ipynb": nb(*WHOLE), "ada/scratch.ipynb": (nb("x = 1", ids=()), 9)},
                             f"ada/{NN}.ipynb", {"ada/scratch.ipynb": ANSWERS}),
    "a scratch file with one of the functions": ({"ada/a.ipynb": nb(*WHOLE), "ada/z.ipynb": (nb("def f(x):\n    return 0", ids=()), 9)},
                                                 "ada/a.ipynb", {"ada/z.ipynb": ANSWERS}),
    "the lesson of the same name": ({f"ada/exercises/{NN}.ipynb": nb(*WHOLE), f"ada/notebooks/{NN}.ipynb": (LESSON, 9)},
                                    f"ada/exercises/{NN}.ipynb", {f"ada/notebooks/{NN}.ipynb": ANSWERS}),
    "the lesson beside a blank set": ({f"ada/exercises/{NN}.ipynb": nb(*BLANK), f"ada/notebooks/{NN}.ipynb": (LESSON, 9)},
                                      f"ada/exercises/{NN}.ipynb",
                                      {f"ada/notebooks/{NN}.ipynb": "it holds 2 of 2 answer cells, this one 0"}),
    "a checkpoint": ({f"ada/{NN}.ipynb": nb(*WHOLE), f"ada/{NN}-checkpoint.ipynb": (nb(*WHOLE), 9)},
                     f"ada/{NN}.ipynb", {f"ada/{NN}-checkpoint.ipynb": "this one is a checkpoint of Jupyter's"}),
    "a checkpoint alone": ({f"ada/{NN}-checkpoint.ipynb": nb(*WHOLE)}, f"ada/{NN}-checkpoint.ipynb", {}),
    "what Jupyter and macOS keep": ({f"ada/{NN}.ipynb": nb(*WHOLE), f"ada/.ipynb_checkpoints/{NN}-checkpoint.ipynb": nb(*WHOLE),
                                     f"ada/__MACOSX/._{NN}.ipynb": b"\0\5", f"ada/._{NN}.ipynb": b"\0\5"}, f"ada/{NN}.ipynb", {}),
    "a browser's copy": ({f"ada/{NN} (1).ipynb": (nb(*BLANK), 9), f"ada/{NN}.ipynb": nb(*WHOLE)},
                         f"ada/{NN}.ipynb", {f"ada/{NN} (1).ipynb": ANSWERS}),
    "a browser's copy that is answered": ({f"ada/{NN} (1).ipynb": nb(*WHOLE), f"ada/{NN}.ipynb": (nb(*BLANK), 9)},
                                          f"ada/{NN} (1).ipynb", {f"ada/{NN}.ipynb": ANSWERS}),
    "the exact name before a newer copy": ({f"ada/{NN} (1).ipynb": (nb(*WHOLE), 9), f"ada/{NN}.ipynb": nb(*WHOLE)},
                                           f"ada/{NN}.ipynb", {f"ada/{NN} (1).ipynb": f"it is named {NN}"}),
    "versions": ({"ada/v1.ipynb": (nb(*WHOLE), 3), "ada/v2.ipynb": (nb(*WHOLE), 9), "ada/v3.ipynb": (nb(*WHOLE), 5)},
                 "ada/v2.ipynb", {"ada/v1.ipynb": "it is newer", "ada/v3.ipynb": "it is newer"}),
    "versions in one zip": ({"ada.zip": zipped({"v1.ipynb": (nb(*WHOLE), 9), "v2.ipynb": (nb(*WHOLE), 3)})},
                            "ada.zip/v1.ipynb", {"ada.zip/v2.ipynb": "it is newer"}),
    "versions of one age": ({"ada.zip": zipped({"v1.ipynb": nb(*WHOLE), "v2.ipynb": nb(*WHOLE)})},
                            "ada.zip/v2.ipynb", {"ada.zip/v1.ipynb": "they are equally old, and its path comes last"}),
    "a newer one that is half answered": ({"ada/a.ipynb": nb(*WHOLE), "ada/b.ipynb": (nb(WHOLE[0], BLANK[1]), 9)},
                                          "ada/a.ipynb", {"ada/b.ipynb": "it answers 2 of 2 questions, this one 1"}),
    "another set with the same ids": ({"ada/a.ipynb": nb(*WHOLE), "ada/b.ipynb": (nb(*OTHER), 9)}, "ada/a.ipynb", {"ada/b.ipynb": ANSWERS}),
    "this set under another's number": ({"ada/03_log.ipynb": nb(*WHOLE), f"ada/{NN}.ipynb": (nb(*BLANK), 9)},
                                        "ada/03_log.ipynb", {f"ada/{NN}.ipynb": ANSWERS}),
    "answers that have lost their ids beside a newer blank set": (
        {"ada/a.ipynb": nb("x = 1", *WHOLE, ids=()), f"ada/{NN}.ipynb": (nb(*BLANK), 9)}, "ada/a.ipynb", {f"ada/{NN}.ipynb": ANSWERS}),
    "one answer that has lost its id": ({"ada/a.ipynb": nb(WHOLE[0], WHOLE[1], ids=("q1",)), "ada/b.ipynb": (nb(WHOLE[0], BLANK[1]), 9)},
                                        "ada/a.ipynb", {"ada/b.ipynb": "it answers 2 of 2 questions, this one 1"}),
    "a name of its own": ({"ada/final FINAL (2).ipynb": nb(*WHOLE)}, "ada/final FINAL (2).ipynb", {}),
    "in capitals": ({"ada/WORK.IPYNB": nb(*WHOLE)}, "ada/WORK.IPYNB", {}),
    "the course's folder": ({"ada.zip": zipped({**COURSE, f"exercises/{NN}.ipynb": nb(*WHOLE), f"notebooks/{NN}.ipynb": (LESSON, 9)})},
                            f"ada.zip/exercises/{NN}.ipynb", {f"ada.zip/notebooks/{NN}.ipynb": ANSWERS}),
    "the course's folder in a folder, other sets answered": (
        {"ada.zip": zipped({f"qlab-0.1/{name}": content for name, content in {**COURSE, f"exercises/{NN}.ipynb": nb(*WHOLE)}.items()})},
        f"ada.zip/qlab-0.1/exercises/{NN}.ipynb", {}),
    "a zip in a zip": ({"ada.zip": zipped({"more.zip": zipped({"hw.ipynb": nb(*WHOLE)}), "hw.ipynb": (nb(*BLANK), 9)})},
                       "ada.zip/more.zip/hw.ipynb", {"ada.zip/hw.ipynb": ANSWERS}),
    "a zip that is named .ipynb": ({"ada.ipynb": zipped({"hw.ipynb": nb(*WHOLE)})}, "ada.ipynb/hw.ipynb", {}),
    "a notebook that is named .zip": ({"ada.zip": nb(*WHOLE)}, "ada.zip", {}),
    "a notebook that is named .json": ({"ada/hw.json": nb(*WHOLE), "ada/data.json": b"[1, 2]"}, "ada/hw.json", {}),
    "a notebook in a zip that is named .json": ({"ada.zip": zipped({"hw.json": nb(*WHOLE), "data.json": b"[1]"})}, "ada.zip/hw.json", {}),
    "a damaged one beside": ({"ada/a.ipynb": nb(*WHOLE), f"ada/{NN}.ipynb": (b"{", 9)}, "ada/a.ipynb", {f"ada/{NN}.ipynb": None}),
}


@pytest.mark.parametrize("handed_in, source, others", PICKED.values(), ids=PICKED)
def test_the_answers_then_the_name_then_the_time(tmp_path, handed_in, source, others):
    counts, aside = adas(tmp_path, handed_in)
    assert (counts.source, counts.status) == (source, "")
    assert aside == {name: f"{COUNTS(source)}: {why}" if why else aside[name] for name, why in others.items()}
    assert (f"{len(others)} more handed in by the same student: this one counts" in counts.notes) == bool(others)


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text, lambda text: text.decode().encode("utf-16"), lambda text: text.decode().encode("utf-16-be"),
    lambda text: text.decode().encode("utf-32"), lambda text: text.replace(b"\\n", b"\\r\\n").replace(b", ", b",\r\n"),
    lambda text: text.replace(b'"metadata": {}', b'"metadata": {"x": NaN, "y": -Infinity}', 1),
    lambda text: text.replace(b'"nbformat": 4', b'"nbformat": 3, "nbformat": 4', 1),
], ids=["byte-order mark", "UTF-16", "UTF-16 without mark", "UTF-32", "CRLF", "NaN", "a key twice"])
def test_odd_texts_are_read_and_get_full_marks(tmp_path, change):
    (tmp_path / "ada.ipynb").write_bytes(change(nb(*WHOLE)))
    (entry,) = ingest.collect(tmp_path, NN, answers=ASKED)
    assert (entry.status, entry.reason) == ("", "")
    if sys.platform == "linux":
        assert mark.grade_trusted(list(entry.cells), BUNDLE)["score"] == 5


@pytest.mark.skipif(sys.platform != "linux", reason="marks are given on Linux")
@pytest.mark.parametrize("name, score", [("a newer scratch file", 5), ("the course's folder", 5), ("another set with the same ids", 5),
                                         ("a newer one that is half answered", 5), ("the lesson beside a blank set", 0)])
def test_the_mark_of_what_counts(tmp_path, name, score):
    counts, _ = adas(tmp_path, PICKED[name][0])
    assert mark.grade_trusted(list(counts.cells), BUNDLE)["score"] == score


def test_answers_in_several_files_are_not_put_together(tmp_path):
    counts, aside = adas(tmp_path, {"ada/a.ipynb": nb(WHOLE[0], BLANK[1]), "ada/b.ipynb": (nb(BLANK[0], WHOLE[1]), 9)})
    assert (counts.source, aside) == ("ada/b.ipynb", {"ada/a.ipynb": f"{COUNTS('ada/b.ipynb')}: it is newer"})
    assert "q1: answered in ada/a.ipynb, which is set aside; answers are not put together" in counts.notes


def test_in_time_before_late_but_not_a_blank_one(tmp_path):
    deadline = datetime(2026, 11, 5, tzinfo=UTC)
    half, whole = nb(WHOLE[0], BLANK[1]), nb(*WHOLE)
    counts, aside = adas(tmp_path / "half", {"ada/a.ipynb": (half, 3), "ada/b.ipynb": (whole, 9)}, deadline=deadline, file_times=True)
    assert (counts.source, counts.late) == ("ada/a.ipynb", False)
    assert aside == {"ada/b.ipynb": f"{COUNTS('ada/a.ipynb')}: this one is late"}
    blank = nb(*BLANK)
    counts, aside = adas(tmp_path / "blank", {"ada/a.ipynb": (blank, 3), "ada/b.ipynb": (whole, 9)}, deadline=deadline, file_times=True)
    assert (counts.source, counts.late, aside) == ("ada/b.ipynb", True, {"ada/a.ipynb": f"{COUNTS('ada/b.ipynb')}: {ANSWERS}"})


def test_of_a_late_zip_the_newest_counts(tmp_path):
    """It came at one time; the oldest of late ones counts where they came one after the other."""
    work = zipped({"old.ipynb": (nb(*WHOLE), 1), "new.ipynb": (nb(*WHOLE), 2)})
    (tmp_path / "canvas").mkdir()
    (tmp_path / "canvas" / "ada_LATE_7_8_hw.zip").write_bytes(work)
    (tmp_path / "canvas" / "bob_9_10_hw.ipynb").write_bytes(nb(*WHOLE))
    ada, aside, _ = ingest.collect(tmp_path / "canvas", NN, answers=ASKED)
    assert (ada.source, ada.late) == ("ada_LATE_7_8_hw.zip/new.ipynb", True)
    assert aside.reason == f"{COUNTS(ada.source)}: it is newer"
    deadline = datetime(2026, 11, 5, tzinfo=UTC)
    counts, aside = adas(tmp_path / "plain", {"ada/a.zip": (work, 9), "ada/b.zip": (work, 8)}, deadline=deadline, file_times=True)
    assert (counts.source, counts.late) == ("ada/b.zip/new.ipynb", True)
    assert {source: reason.split(": ")[1] for source, reason in aside.items()} == {
        "ada/a.zip/new.ipynb": "it came first", "ada/a.zip/old.ipynb": "it came first", "ada/b.zip/old.ipynb": "it is newer"}


def test_a_number_before_a_platforms_name_is_the_students(tmp_path):
    (tmp_path / f"23_1077_19770_{NN}-1.ipynb").write_bytes(nb(*WHOLE))
    (tmp_path / "bob_9_10_hw.ipynb").write_bytes(nb(*WHOLE))
    assert [(entry.student, entry.notes) for entry in ingest.collect(tmp_path, NN, answers=ASKED)] == [("23", ()), ("bob", ())]


def test_the_wrong_assignment_alone_is_said(tmp_path):
    counts, _ = adas(tmp_path / "named", {"ada/03_log.ipynb": nb(*OTHER)})
    assert (counts.status, counts.reason) == ("unreadable", f"there is no notebook of {NN} in it, only 03_log.ipynb")
    counts, _ = adas(tmp_path / "renamed", {"ada/hw.ipynb": nb(*OTHER)})
    assert counts.status == "" and counts.notes == (
        "its answer cells define none of the functions that are asked for: it looks like another assignment's notebook",)
    counts, _ = adas(tmp_path / "lesson", {f"ada/{NN}.ipynb": nb("x = 1", ids=())})
    assert counts.notes == ("none of the assignment's answer cells is there: functions are looked for by name",)


def test_notebooks_of_other_assignments_in_a_zip_are_mentioned(tmp_path):
    counts, aside = adas(tmp_path, {"ada.zip": zipped({**COURSE, f"exercises/{NN}.ipynb": nb(*WHOLE)})})
    assert aside == {} and counts.notes == (
        "passed over in it: 6 with another assignment's number: 01_why.ipynb, 03_log.ipynb, 04_kmeans.ipynb",)


@pytest.mark.parametrize("place", ["the zip itself", "a folder with the zip", "a folder of many"])
@pytest.mark.parametrize("prefix", ["", "qlab-0.1/"])
def test_a_zip_of_the_course_is_one_student(tmp_path, place, prefix):
    content = zipped({f"{prefix}{name}": text for name, text in {**COURSE, f"exercises/{NN}.ipynb": nb(*WHOLE),
                                                                 f"notebooks/{NN}.ipynb": (LESSON, 9), "README.md": b""}.items()})
    (tmp_path / "ada.zip").write_bytes(content)
    if place == "a folder of many":
        (tmp_path / "bob.ipynb").write_bytes(nb(*WHOLE))
    entries = ingest.collect(tmp_path / "ada.zip" if place == "the zip itself" else tmp_path, NN, answers=ASKED)
    counts = [(entry.student, entry.source.split("/")[-2:]) for entry in entries if not entry.duplicate_of and entry.student != "bob"]
    assert counts == [("ada", ["exercises", f"{NN}.ipynb"])]


def test_canvas_numbers_a_name_that_is_there_already(tmp_path):
    laid = {f"ada_7_100_{NN}.ipynb": nb(*WHOLE), f"ada_7_200_{NN}-1.ipynb": nb(*WHOLE), "bob_8_300_hw.ipynb": nb(*WHOLE)}
    for name, content in laid.items():
        (tmp_path / name).write_bytes(content)
    counts = {entry.number: entry.source for entry in ingest.collect(tmp_path, NN, answers=ASKED) if not entry.duplicate_of}
    assert counts == {"7": f"ada_7_200_{NN}-1.ipynb", "8": "bob_8_300_hw.ipynb"}


def test_what_is_asked_of_a_student():
    setup = "def right(n):\n    return n"
    calls = ("[h(p, x) for p in range(6)]", setup), ("right(lsq.step(x))", setup), ("x", "")
    questions = [{"answer_cell": "q1", "cases": [CASE | {"call": call, "setup": setup} for call, setup in calls]}, {"answer_cell": "q2"}]
    assert which.asked({"questions": questions}) == {"q1": {"h"}, "q2": set()}


@pytest.mark.parametrize("source, is_one", [
    ("def f(x): return x", True), ("async  def f(): return 1", True), ("class f: pass", True), ("f = lambda x: x", True),
    ("f: object = g", True), ("from mine import e, f", True), ("%%writefile mine.py\ndef f(x):\n    return x", True),
    ("if True:\n    def f(x): return x", True), ("f == 3", False), ("f = 3", False), ("f = f(3)", False), ("# def f(x)", False),
    ("def ff(x): pass", False), ("print(f)", False), ("x = f(3)", False)])
def test_what_an_answer_cell_defines(source, is_one):
    held, done, _ = which.answered([{"source": source, "grade_id": "q1", "grade": False}], {"q1": frozenset("f")})
    assert (held, done) == (({"q1"}, {"q1"}) if is_one else (set(), set()))


RAISES = "raise NotImplementedError()"
BODIES = {
    "the stub": (f"    # YOUR CODE HERE\n    {RAISES}", False),
    "a docstring and the stub": (f"    '''Twice x,\n\n    return 2 * x.'''\n    {RAISES}", False),
    "a message": ("    raise NotImplementedError('later')", False),
    "no brackets": ("    raise NotImplementedError", False),
    "dots and the stub": (f"    ...\n    {RAISES}", False),
    "only dots": ("    ...", False),
    "only pass": ("    pass", False),
    "an answer below the stub, which is never reached": (f"    {RAISES}\n    return 2 * x", False),
    "left over below the answer": (f"    return 2 * x\n    {RAISES}", True),
    "a branch": ("    if x > 16:\n        raise NotImplementedError('more than 16')\n    return 2 * x", True),
    "a branch of one line": ("    if x > 16: raise NotImplementedError('more than 16')\n    return 2 * x", True),
    "a function inside": (f"    def g():\n        {RAISES}\n    return 2 * x", True),
    "said in a docstring": (f"    '''Replace\n    {RAISES}\n    '''\n    return 2 * x", True),
    "caught": (f"    try:\n        {RAISES}\n    except NotImplementedError:\n        return 2 * x", True),
    "a magic below, and left over": (f"    return 2 * x\n    {RAISES}\n%timeit f(1)\nf?", True),
    "a magic below the stub": (f"    {RAISES}\n%timeit f(1)\nf?", False),
    "the stub, and the answer below it": (f"    {RAISES}\n\ndef f(x):\n    return 2 * x", True),
    "no Python, and a left-over": (f"    return 2 * x\n    {RAISES}\n)", True),
    "no Python, and the stub": (f"    {RAISES}\n)", False),
}


@pytest.mark.parametrize("body, done", BODIES.values(), ids=BODIES)
def test_what_is_blank(body, done):
    cell = {"source": f"def f(x):\n{body}", "grade_id": "q1", "grade": False}
    assert which.answered([cell], {"q1": frozenset("f")}) == ({"q1"}, {"q1"} if done else set(), 0)


@pytest.mark.parametrize("hostile", [
    "-" * 19_000 + "1", "f" + ".a" * 9_000, "f(" * 9_000, "[" * 199 + "a b" + "]" * 199, "if 1:\n " * 3_000, "x = '\0'", "x = '\ud800'",
    "x = " + "9" * 9_000, "if a:\n  1\n" + "elif a:\n  1\n" * 1_900, "y = [" + "1," * 900_000 + "]", r"x = '\q'", "\x0c\x1a\x00",
], ids=lambda text: ascii(text[:8]))
def test_hostile_text_is_read_by_its_lines(hostile):
    for above, below in ((hostile + "\n", ""), ("", "\n" + hostile)):
        cells = [{"source": f"{above}def f(x):\n    return x{below}", "grade_id": "q1", "grade": False}]
        assert which.answered(cells, {"q1": frozenset("f")}) == ({"q1"}, {"q1"}, 0)
        cells[0]["source"] = f"{above}def f(x):\n    {RAISES}{below}"
        assert which.answered(cells, {"q1": frozenset("f")}) == ({"q1"}, set(), 0)


RIGHT, LEFT_OVER = WHOLE[0], WHOLE[0] + f"\n    {RAISES}"
BRANCH = f"def f(x):\n    if x > 16:\n        {RAISES}\n    return x + 1"
HELD = f"class H:\n    def a(self):\n        {RAISES}\n    def b(self, x):\n        return x + 1\ndef f(x):\n    return H().b(x)"
Q1S = {  # a notebook's cells as (grade id, source); the mark of q1, of 2 points; which cell counts
    "its copy calls it": ([("q1", RIGHT), ("q1", "y = f(3)\nprint(y)")], 2, 0),
    "its copy overwrites it": ([("q1", RIGHT), ("q1", "f = f(3)")], 2, 0),
    "its copy overwrites it with a list": ([("q1", RIGHT), ("q1", "f = [f(3)]")], 2, 0),
    "its copy overwrites it by another's answer": ([("q1", RIGHT), ("q1", "import torch\nf = torch.ones(1)")], 2, 0),
    "its copy is empty": ([("q1", RIGHT), ("q1", "")], 2, 0),
    "its copy is the stub": ([("q1", RIGHT), ("q1", BLANK[0])], 2, 0),
    "its copy is no Python": ([("q1", RIGHT), ("q1", "f(3")], 2, 0),
    "the copy is a second try, and right": ([("q1", "def f(x):\n    return x"), ("q1", RIGHT)], 2, 1),
    "the copy is a second try, and wrong": ([("q1", RIGHT), ("q1", "def f(x):\n    return x")], 0, 1),
    "the stub is kept above, with the id": ([("q1", BLANK[0]), ("q1", RIGHT)], 2, 1),
    "the answer has no id, and is overwritten": ([("q1", BLANK[0]), (None, RIGHT), (None, "f = 3")], 2, 1),
    "no ids at all, and overwritten": ([(None, RIGHT), (None, "f = f(3)")], 2, 0),
    "a lambda": ([("q1", "f = lambda x: x + 1"), ("q1", "f = f(3)")], 2, 0),
    "a partial": ([("q1", "from functools import partial\nf = partial(int.__add__, 1)"), ("q1", "f = f(3)")], 2, 0),
    "a raise left over, and overwritten": ([("q1", LEFT_OVER), (None, "f = f(3)")], 2, 0),
    "a raise in a branch, and overwritten": ([("q1", BRANCH), (None, "f = f(3)")], 2, 0),
    "a raise left over, and its copy overwrites it": ([("q1", LEFT_OVER), ("q1", "f = f(3)")], 2, 0),
    "a helper that is answered below": ([("q1", f"def h(x):\n    {RAISES}\ndef f(x):\n    return h(x)"),
                                         (None, "def h(x):\n    return x + 1")], 2, 0),
    "a class with a method for others to fill in": ([("q1", HELD), (None, "H = 3")], 2, 0),
    "blank all the same": ([("q1", BLANK[0]), ("q1", "f = 3")], 0, 0),
}


@pytest.mark.skipif(sys.platform != "linux", reason="marks are given on Linux")
@pytest.mark.parametrize("sources, score, at", Q1S.values(), ids=Q1S)
def test_the_cell_that_counts(sources, score, at):
    cells = [{"source": source, "grade_id": name, "grade": False} for name, source in sources]
    marks = mark.grade_trusted(cells, BUNDLE)
    assert [question["score"] for question in marks["questions"]] == [score, 0]
    assert answers.of_question(tuple(cells), BUNDLE["questions"][0]) is cells[at]


def test_a_raise_left_over_does_not_let_a_draft_count(tmp_path):
    draft = nb("def f(x):\n    return x", WHOLE[1])
    for k, final in enumerate((nb(*[f"{text}\n    {RAISES}" for text in WHOLE]), nb(BRANCH, BRANCH.replace("f(x)", "g(x)")))):
        counts, aside = adas(tmp_path / str(k), {"ada.zip": zipped({"draft.ipynb": (draft, 1), "final.ipynb": (final, 2)})})
        assert (counts.source, aside) == ("ada.zip/final.ipynb", {"ada.zip/draft.ipynb": f"{COUNTS('ada.zip/final.ipynb')}: it is newer"})
