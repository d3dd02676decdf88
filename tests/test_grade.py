"""The batch: nothing lost when it is killed or the disk is full, nothing marked twice, no mark without a sandbox; the command."""

import csv
import gzip
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grading_helpers
import pytest

from qlab import cli
from qlab.grading import batch, bench, grade, results
from qlab.grading.author.build import digest
from qlab.grading.handed_in import gradescope, ingest, notebook
from qlab.grading.handed_in.ingest import Submission
from qlab.grading.report import summary
from qlab.grading.sandbox import bwrap

BUNDLE = {"format": 1, "assignment": "99_small", "questions": [{"id": "q1", "points": 2, "answer_cell": "q1"},
                                                               {"id": "q2", "points": 3, "answer_cell": "q2"}]}
BUNDLE["digest"] = digest(BUNDLE)
needs_bwrap = pytest.mark.skipif(not (grading_helpers.has_bwrap() or os.environ.get("CI") and sys.platform == "linux"),
                                 reason="the sandbox's tests need bubblewrap: apt install bubblewrap")


def notebook_of(cells):
    """The bytes of a notebook of cells like grading_helpers.cells()."""
    made = [{"cell_type": "code", "source": cell["source"], "outputs": [], "execution_count": None, "metadata": {"nbgrader": {
        "grade_id": cell["grade_id"], "grade": cell["grade"], "solution": str(cell["grade_id"]) in ("q1", "q2"), "schema_version": 3}}}
        for cell in cells]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made}).encode()


def simple(*answers):
    return notebook_of([{"source": answer, "grade_id": f"q{k + 1}", "grade": False} for k, answer in enumerate(answers)])


def stand_in(cells, bundle):
    """In place of mark.grade_notebook: a question is passed whose answer cell says "right"; "break" breaks the grader."""
    given = {cell["grade_id"]: cell["source"] for cell in cells}
    if "break" in given.values():
        raise RuntimeError("it broke\nin two lines.")
    questions = [{"id": q["id"], "points": q["points"], "score": q["points"] * (given.get(q["id"]) == "right"),
                  "state": "passed" if given.get(q["id"]) == "right" else "failed", "reason": "", "note": "", "failed_case": None,
                  "public_failed": None, "answers_like": None} for q in bundle["questions"]]
    return {"questions": questions, "score": sum(q["score"] for q in questions), "max_score": 5, "limits": {}, "stdout_tail": ""}


@contextmanager
def in_place(jobs, mark=stand_in):
    yield mark


class Marker:
    """The stand-in, which notes what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, cells, bundle):
        self.seen.append(cells[0]["source"])
        return stand_in(cells, bundle)

    def run(self, jobs=2):
        return partial(batch.run_here, open_mark=partial(in_place, mark=self), jobs=jobs)


def entry(name, *answers, **fields):
    cells = tuple({"source": answer, "grade_id": f"q{k + 1}", "grade": False} for k, answer in enumerate(answers))
    return Submission(f"{name}-id", name, f"{name}.ipynb", fields.pop("sha256", f"sha-{name}-{answers}"), cells=cells, **fields)


def stored(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


# The batch


def test_each_is_marked_once_and_stored(tmp_path):
    marker, ticks = Marker(), []
    entries = [entry("ada", "right", "right"), entry("bob", "wrong", "right"), entry("cyd", status="unreadable", reason="it is empty"),
               entry("dan", status="not graded", reason="the same student's ada.ipynb counts", duplicate_of="ada-id")]
    made, stood = batch.batch(entries, BUNDLE, tmp_path, marker.run(), ticks.append)
    assert stood == 0 and sorted(marker.seen) == ["right", "wrong"] and ticks[-1] == 4
    assert [(result["status"], result["score"], result["max_score"], result["reason"]) for result in made] == [
        ("graded", 5, 5, ""), ("graded", 3, 5, ""), ("unreadable", 0, 5, "it is empty"),
        ("not graded", None, 5, "the same student's ada.ipynb counts")]
    assert stored(tmp_path) == {result["submission"]["id"]: result for result in made}
    assert {path.name for path in tmp_path.iterdir()} == {".lock", *(f"{one.id}.json" for one in entries)}


def test_what_stands_is_not_marked_again(tmp_path):
    entries = [entry("ada", "right"), entry("bob", "wrong")]
    first, _ = batch.batch(entries, BUNDLE, tmp_path, Marker().run())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    marker = Marker()
    again, stood = batch.batch(entries, BUNDLE, tmp_path, marker.run())
    assert (marker.seen, stood, again) == ([], 2, first)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before


@pytest.mark.parametrize("change", ["notebook", "bundle", "damage", "empty"])
def test_what_changed_is_marked_again(tmp_path, change):
    ada, bob, bundle = entry("ada", "right"), entry("bob", "wrong"), BUNDLE
    batch.batch([ada, bob], BUNDLE, tmp_path, Marker().run())
    if change == "notebook":
        ada = entry("ada", "right", "right")
    if change == "bundle":
        bundle = {**BUNDLE, "digest": "other"}
    if change == "damage":
        (tmp_path / "ada-id.json").write_text((tmp_path / "ada-id.json").read_text()[:100])
    if change == "empty":
        (tmp_path / "ada-id.json").write_text("")
    marker = Marker()
    batch.batch([ada, bob], bundle, tmp_path, marker.run())
    assert sorted(marker.seen) == (["right", "wrong"] if change == "bundle" else ["right"])


def test_a_new_deadline_renews_the_result_and_marks_nothing(tmp_path):
    batch.batch([entry("ada", "right")], BUNDLE, tmp_path, Marker().run())
    marker = Marker()
    (late,), stood = batch.batch([entry("ada", "right", late=True)], BUNDLE, tmp_path, marker.run())
    assert (marker.seen, stood, late["submission"]["late"], late["score"]) == ([], 1, True, 2)
    assert stored(tmp_path)["ada-id"] == late


def test_three_runs_are_identical_apart_from_times(tmp_path):
    texts = []
    for k in range(3):
        entries = [entry(f"s{n}", "right" if n % 3 else "wrong") for n in range(9)]
        entries.append(entry("x", status="unreadable", reason="it is empty"))
        batch.batch(entries, BUNDLE, tmp_path / str(k), Marker().run(jobs=k + 1))
        texts.append({path.name: re.sub(r'"seconds": [0-9.]+', "", path.read_text()) for path in (tmp_path / str(k)).glob("*.json")})
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 10


def test_one_that_breaks_the_grader_is_not_graded_and_the_others_are(tmp_path):
    marker = Marker()
    made, _ = batch.batch([entry("ada", "right"), entry("bob", "break"), entry("cyd", "right")], BUNDLE, tmp_path, marker.run(jobs=1))
    assert [(result["status"], result["score"], result["reason"]) for result in made] == [
        ("graded", 2, ""), ("not graded", None, "the grader failed on it: it broke in two lines"), ("graded", 2, "")]
    assert marker.seen.count("break") == 2  # it gets a second chance
    marker = Marker()
    batch.batch([entry("bob", "break")], BUNDLE, tmp_path, marker.run())
    assert marker.seen == ["break", "break"]  # and another one in the next run


@contextmanager
def no_sandbox(jobs):
    raise RuntimeError("the sandbox needs bubblewrap: apt install bubblewrap.")
    yield


def test_without_a_sandbox_nobody_gets_0(tmp_path):
    entries = [entry("ada", "right"), entry("bob", "wrong")]
    batch.batch(entries[:1], BUNDLE, tmp_path, Marker().run())
    made, stood = batch.batch(entries, BUNDLE, tmp_path, partial(batch.run_here, open_mark=no_sandbox, jobs=2))
    assert stood == 1 and (made[0]["status"], made[0]["score"]) == ("graded", 2)  # what is graded stays
    assert (made[1]["status"], made[1]["score"], made[1]["questions"]) == ("not graded", None, [])
    assert made[1]["reason"] == "there is no sandbox: the sandbox needs bubblewrap: apt install bubblewrap"
    again, _ = batch.batch(entries, BUNDLE, tmp_path, Marker().run())
    assert again[1]["status"] == "graded"  # the next run tries again


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    entries = [entry(name, "right") for name in ("ada", "bob", "cyd")]
    batch.batch(entries[1:2], BUNDLE, tmp_path, Marker().run())
    true_replace, full = os.replace, ["ada-id.json"]

    def replace(partial, path):
        if path.name in full:
            raise OSError(28, "No space left on device")
        true_replace(partial, path)

    monkeypatch.setattr(os, "replace", replace)
    made, _ = batch.batch(entries, BUNDLE, tmp_path, Marker().run())
    assert [(result["status"], result["score"]) for result in made] == [("not graded", None), ("graded", 2), ("graded", 2)]
    assert made[0]["reason"] == "its result could not be written: No space left on device"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "bob-id.json", "cyd-id.json"}
    full.clear()
    marker = Marker()
    made, stood = batch.batch(entries, BUNDLE, tmp_path, marker.run())
    assert stood == 2 and len(marker.seen) == 1 and made[0]["score"] == 2


def test_two_graders_do_not_share_a_folder(tmp_path):
    with results.alone_in(tmp_path):
        with pytest.raises(OSError, match="another qlab grade is at work in .*: wait for it, or name another folder with --out\\."):
            batch.batch([entry("ada", "right")], BUNDLE, tmp_path, Marker().run())
    batch.batch([entry("ada", "right")], BUNDLE, tmp_path, Marker().run())


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    results.write(tmp_path / "x.json", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(13, "Permission denied")))
    with pytest.raises(OSError):
        results.write(tmp_path / "x.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_text() == "old"


# The command


@pytest.fixture
def class_of_five(tmp_path, monkeypatch):
    folder = tmp_path / "handed in"
    handed_in = {"ada": simple("right", "right"), "bob": simple("wrong", "right"), "cyd": b"{", "=dan, jr": simple("right"),
                 "eve/99_small": simple("right"), "eve/99_small (1)": simple("wrong")}
    for name, content in handed_in.items():
        path = folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1e9 + ("(1)" in name),) * 2)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "99_small.json.gz").write_bytes(gzip.compress(json.dumps(BUNDLE).encode()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=in_place))
    return folder


SUMMARY = """\
unreadable: cyd (cyd.ipynb): it is not valid JSON (Expecting property name enclosed in double quotes, line 1, column 2)
set aside: eve (eve/99_small (1).ipynb): the same student's eve/99_small.ipynb counts: it is named 99_small
note: =dan, jr (=dan, jr.ipynb): there is no answer cell q2: its function is looked for by name
note: eve (eve/99_small.ipynb): there is no answer cell q2: its function is looked for by name
note: eve (eve/99_small.ipynb): 1 more handed in by the same student: this one counts
99_small: 6 handed in by 5 students
  graded          4
  unreadable      1  (0 points)
  set aside       1  (another one of the same student counts)
  mean         3.00 of 5, median 2.5
results in results/99_small
"""


def test_the_command(class_of_five, capsys):
    assert cli.main(["grade", str(class_of_five), "--assignment", "99", "--jobs", "2"]) == 0
    assert capsys.readouterr().out == SUMMARY
    formats = ["csv", "html", "gradescope", "canvas", "moodle"]
    assert cli.main(["grade", str(class_of_five), "--assignment", "99_small", "--export", *formats]) == 0
    out = capsys.readouterr().out
    assert "  graded          4  (4 of them in an earlier run)\n" in out and out.count("\n") == SUMMARY.count("\n") + 5
    exported = {path.name for path in Path("results/99_small/export").iterdir()}
    assert exported == {"gradebook.csv", "canvas.csv", "moodle.csv", "feedback", "gradescope"}
    assert "'=dan, jr" in Path("results/99_small/export/gradebook.csv").read_text("utf-8-sig")


def test_the_limits_of_time_are_options_and_marks_of_other_limits_are_made_anew(class_of_five, monkeypatch, capsys):
    limits = []

    @contextmanager
    def opened(jobs):
        def noted(cells, bundle):
            limits.append(bundle["seconds"])
            return stand_in(cells, bundle)
        yield noted

    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=opened))
    command = ["grade", str(class_of_five), "--assignment", "99"]
    assert cli.main(command) == cli.main(command) == 0
    assert limits == 4 * [{"submission": 120.0, "cell": 30.0}]
    assert cli.main([*command, "--seconds", "300", "--cell-seconds", "60"]) == 0
    assert limits[4:] == 4 * [{"submission": 300.0, "cell": 60.0}]
    assert json.loads(next(path for path in Path("results/99_small").glob("eve*.json")).read_text())["limit_seconds"] == limits[-1]
    with pytest.raises(SystemExit):
        grade.parser().parse_args(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "may run in all (default: 120)" in told and "one cell may run (default: 30)" in told


def test_a_terminal_that_cannot_show_a_name_gets_it_in_ascii(class_of_five, monkeypatch):
    (class_of_five / "🎓 émile.ipynb").write_bytes(b"")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert grade.main([str(class_of_five), "--assignment", "99"]) == 0
    assert b"unreadable: \\U0001f393 \xe9mile (" in terminal.buffer.getvalue()


def test_the_command_says_what_is_late(class_of_five, capsys):
    grades = [str(class_of_five), "--assignment", "99", "--deadline"]
    assert grade.main([*grades, "2001-09-08T00:00", "--time-zone", "Europe/Berlin"]) == 0
    out = capsys.readouterr().out
    assert "deadline: 2001-09-08 00:00, CEST (UTC+02:00)\n" in out and "  late  " not in out
    assert "  late?           5  (not known: nothing says when they were handed in)" in out
    grades.insert(1, "--file-times")
    assert grade.main([*grades, "2001-09-09T01:46:40+00:00"]) == 0
    out = capsys.readouterr().out
    assert "deadline: 2001-09-09 01:46:40, UTC\n" in out
    assert "  late  " not in out
    assert "set aside: eve (eve/99_small (1).ipynb): the same student's eve/99_small.ipynb counts: this one is late" in out
    assert grade.main([*grades, "2001-09-08T00:00:00+00:00"]) == 0
    assert "  late            5  (nothing is subtracted)" in capsys.readouterr().out


def scores():
    lines = list(csv.DictReader(io.StringIO(Path("results/99_small/export/gradebook.csv").read_text("utf-8-sig"))))
    return {line["student"]: line["score"] for line in lines}


def test_what_a_teacher_decides_is_in_every_run(class_of_five, capsys):
    Path("extensions.csv").write_text("student,deadline\nbob,2001-09-10T00:00Z\nzoe,2001-09-10T00:00Z\n")
    overrides = Path("results/99_small/overrides.csv")
    overrides.parent.mkdir(parents=True)
    overrides.write_text(text := "student,question,points,comment\n\"'=dan, jr\",q2,1,shown to me\ncyd,,,Save it again.\n")
    grades = [str(class_of_five), "--assignment", "99", "--export", "csv", "html"]
    late = ["--file-times", "--deadline", "2001-09-08T00:00Z", "--extensions", "extensions.csv", "--late-penalty", "10% per day"]
    assert grade.main([*grades, *late]) == 0
    out = capsys.readouterr().out
    assert "extensions.csv: line 3: 'zoe' is nobody who handed something in.\n" in out
    assert "  late            4  (points are subtracted from 3)\n  by hand         2  (set or commented in overrides.csv)\n" in out
    assert "  mean         2.75 of 5, median 2.7\n" in out
    penalized = {"'=dan, jr": "2.4", "ada": "4", "bob": "3", "cyd": "0", "eve": "1.6"}  # 26 hours after the deadline
    assert scores() == penalized
    before = stored(Path("results/99_small"))
    for path in Path("results/99_small").glob("*.json"):
        path.unlink()  # from scratch
    assert grade.main([*grades, *late]) == 0 and scores() == penalized and overrides.read_text() == text
    assert [{**result, "seconds": 0} for result in stored(Path("results/99_small")).values()] == [
        {**result, "seconds": 0} for result in before.values()]
    assert grade.main(grades) == 0 and scores() == {"'=dan, jr": "3", "ada": "5", "bob": "3", "cyd": "0", "eve": "2"}
    capsys.readouterr()
    overrides.write_text(text + "nobody,q1,1,\nada,q1,0,\n")
    assert grade.main(grades) == 1 and scores()["ada"] == "5"  # the former export
    assert capsys.readouterr().err == ("results/99_small/overrides.csv: line 4: there is no student 'nobody' among those who handed "
                                       "something in.\nnothing was exported, and no mark was set by hand or lowered.\n")
    overrides.write_text(text + "ada,q1,7,\n")
    assert cli.main(["grade", *grades]) == 1
    assert capsys.readouterr().err == "qlab: results/99_small/overrides.csv: line 4: points are 7, and must be between 0 and 2.\n"


@pytest.mark.parametrize("arguments, sentence", [
    (["--late-penalty", "10% per day"], "--late-penalty is for what comes after a deadline: state it with --deadline."),
    (["--extensions", "none.csv"], "there is no file none.csv."),
    (["--moodle-worksheet", "none.csv"], "there is no file none.csv."),
])
def test_a_teachers_table_or_rule_that_is_missing_is_one_sentence(class_of_five, arguments, sentence, capsys):
    assert cli.main(["grade", str(class_of_five), "--assignment", "99", *arguments]) == 1
    assert capsys.readouterr().err == f"qlab: {sentence}\n" and not Path("results").exists()


def test_ctrl_c_keeps_what_is_graded(class_of_five, monkeypatch, capsys):
    def run(todo, bundle, jobs):
        yield next(batch.run_here(todo, bundle, in_place))
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "run_here", run)
    assert cli.main(["grade", str(class_of_five), "--assignment", "99"]) == 130
    assert capsys.readouterr() == ("", "stopped; what is graded is kept: repeat the command to go on.\n")
    assert sum(result["status"] == "graded" for result in stored(Path("results/99_small")).values()) == 1


def test_an_export_that_cannot_be_written_does_not_stop_the_others(class_of_five, capsys):
    Path("results/99_small/export").mkdir(parents=True)
    Path("results/99_small/export/feedback").write_text("in the way")
    assert grade.main([str(class_of_five), "--assignment", "99", "--export", "html", "csv"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("html: not written: ") and err.count("\n") == 1 and "csv: results/99_small/export/gradebook.csv, 5 rows" in out


def test_the_self_check_writes_nothing(class_of_five, monkeypatch, capsys):
    monkeypatch.setattr(grade, "trusted", in_place)
    refused = "qlab: --unsafe-local is a self-check without a sandbox: it makes no gradebook or other export, and uses no cluster.\n"
    for options in (["--export", "csv"], ["--dask", "tcp://127.0.0.1:1"]):
        assert cli.main(["grade", str(class_of_five), "--assignment", "99", "--unsafe-local", *options]) == 1
        assert capsys.readouterr().err == refused
    monkeypatch.setattr(grade, "run_here", batch.run_here)
    assert grade.main([str(class_of_five), "--assignment", "99", "--unsafe-local"]) == 0
    out = capsys.readouterr().out
    assert "ada (ada.ipynb) q2: 3 of 3\n" in out
    assert out.endswith("A self-check without a sandbox: nothing was written, and no gradebook can be made of it.\n")
    assert not Path("results").exists()


@pytest.mark.parametrize("arguments, sentence", [
    (["--jobs", "0"], "jobs is 0, and must be 1 or more."),
    (["--deadline", "2026-11-23"], "'2026-11-23' is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00."),
    (["--deadline", "soon"], "'soon' is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00."),
    (["--bundle", "missing.gz"], "there is no bundle missing.gz: make it with qlab build."),
    (["--bundle", "text.gz"], "text.gz is not a bundle, or is damaged: make it again with qlab build."),
    (["--bundle", "list.gz"], "list.gz is not a bundle of format 1: make it again with qlab build."),
    (["--bundle", "changed.gz"], "changed.gz is damaged, for its digest is another: make it again with qlab build."),
])
def test_a_wrong_argument_is_one_sentence(class_of_five, arguments, sentence, capsys):
    Path("text.gz").write_text("text")
    Path("list.gz").write_bytes(gzip.compress(b"[]"))
    Path("changed.gz").write_bytes(gzip.compress(json.dumps({**BUNDLE, "assignment": "98_other"}).encode()))
    assert cli.main(["grade", str(class_of_five), "--assignment", "99", *arguments]) == 1
    assert capsys.readouterr().err == f"qlab: {sentence}\n"


def test_a_missing_bundle_or_folder_is_one_sentence(class_of_five, monkeypatch, capsys):
    monkeypatch.setattr(grade, "_bundles", lambda: [Path.cwd() / "bundles"])  # not the course's own beside these
    assert cli.main(["grade", str(class_of_five), "--assignment", "98"]) == 1
    assert capsys.readouterr().err == "qlab: there is no set 98: choose among 99_small.\n"
    Path("solutions").mkdir()
    Path("solutions/98_more.ipynb").write_text("{}")
    assert cli.main(["grade", str(class_of_five), "--assignment", "97"]) == 1
    assert capsys.readouterr().err == "qlab: there is no set 97: choose among 98_more, 99_small.\n"
    assert cli.main(["grade", str(class_of_five), "--assignment", "98"]) == 1
    assert capsys.readouterr().err == f"qlab: there is no bundle of 98 in {Path.cwd() / 'bundles'}: make it with qlab build 98.\n"
    assert cli.main(["grade", "nowhere", "--assignment", "99"]) == 1
    assert capsys.readouterr().err == "qlab: there is nothing at nowhere.\n"
    Path("taken").write_text("")
    assert cli.main(["grade", str(class_of_five), "--assignment", "99", "--out", "taken"]) == 1
    assert capsys.readouterr().err == "qlab: taken/99_small: Not a directory\n"


def test_one_sets_bundle_is_not_anothers(class_of_five, capsys):
    for name in ("98", "98_small", "9", "99_smal"):
        assert cli.main(["grade", str(class_of_five), "--assignment", name, "--bundle", "bundles/99_small.json.gz"]) == 1
        assert capsys.readouterr() == ("", f"qlab: bundles/99_small.json.gz is the bundle of 99_small, and --assignment is {name}: "
                                           "name one set.\n")
    shutil.copy("bundles/99_small.json.gz", "bundles/98_other.json.gz")
    assert cli.main(["grade", str(class_of_five), "--assignment", "98"]) == 1
    assert "98_other.json.gz is the bundle of 99_small, and --assignment is 98: name one set.\n" in capsys.readouterr().err
    assert not Path("results").exists()
    for name in ("99", "99_small"):
        assert cli.main(["grade", str(class_of_five), "--assignment", name, "--bundle", "bundles/99_small.json.gz"]) == 0


def exported():
    return {path.relative_to("results/99_small").as_posix() for place in ("export", "teacher")
            for path in Path("results/99_small", place).glob("*")}


def test_all_exports_show_one_state_of_the_marks(class_of_five, monkeypatch, capsys):
    command = [str(class_of_five), "--assignment", "99", "--export"]
    names = ["csv", "html", "canvas", "moodle", "similar", "pages"]
    files = {"export/gradebook.csv", "export/feedback", "export/canvas.csv", "export/moodle.csv",
             "teacher/similar.html", "teacher/similar.csv", "teacher/pages"}
    assert grade.main([*command, *names]) == 0 and exported() == files
    capsys.readouterr()
    assert grade.main([*command, "csv"]) == 0 and exported() == files  # the same marks
    assert grade.main([*command, "statistics"]) == 0 and exported() == files | {"export/statistics.html", "export/statistics.png"}
    assert "removed" not in capsys.readouterr().out
    Path("results/99_small/overrides.csv").write_text("student,question,points,comment\nada,q1,0,\n")
    Path("results/99_small/export/notes of mine.txt").write_text("x")
    assert grade.main(command[:-1]) == 0 and exported() == {*files, "export/statistics.html", "export/statistics.png",
                                                           "export/notes of mine.txt"}
    assert grade.main([*command, "csv", "html"]) == 0
    assert exported() == {"export/gradebook.csv", "export/feedback", "export/notes of mine.txt"} and scores()["ada"] == "3"
    gone = ("export/canvas.csv", "export/moodle.csv", "export/statistics.png", "export/statistics.html",
            "teacher/pages", "teacher/similar.html", "teacher/similar.csv")
    told = ", ".join(f"results/99_small/{name}" for name in gone)
    assert f"\nremoved, for what they show has changed: {told}\n" in capsys.readouterr().out
    Path("results/99_small/overrides.csv").unlink()

    def broken(*_):
        raise ValueError("no page")

    monkeypatch.setattr("qlab.grading.report.whole.folder", broken)  # who is not made anew must not stay, either
    assert grade.main([*command, "html", "canvas"]) == 1
    assert exported() == {"export/canvas.csv", "export/notes of mine.txt"}
    out, err = capsys.readouterr()
    assert err == "html: not written: no page\n"
    assert "removed, for what they show has changed: results/99_small/export/gradebook.csv\n" in out
    assert "removed, for what they show has changed: results/99_small/export/feedback\n" in out
    assert grade.main([*command, "csv"]) == 0 and {"export/canvas.csv", "export/gradebook.csv"} < exported()


def test_exports_stay_where_no_mark_has_changed(class_of_five, capsys):
    command = [str(class_of_five), "--assignment", "99", "--file-times"]
    assert grade.main([*command, "--deadline", "2026-01-01T00:00Z", "--export", "csv", "html"]) == 0
    there, out = exported(), capsys.readouterr().out
    assert there == {"export/gradebook.csv", "export/feedback"} and "  late  " not in out
    assert cli.main(["grade", *command, "--export", "leaderboard"]) == 1 and exported() == there
    assert capsys.readouterr() == ("", "qlab: 99_small has no leaderboard: only the challenge has.\n")  # at the door: nothing was graded
    assert grade.main([*command, "--export", "canvas"]) == 0 and exported() == {*there, "export/canvas.csv"}
    assert "removed" not in capsys.readouterr().out
    assert grade.main([*command, "--deadline", "2001-09-08T00:00Z", "--export", "csv"]) == 0 and exported() == {"export/gradebook.csv"}
    assert "removed, for what they show has changed: results/99_small/export/feedback, " in capsys.readouterr().out  # all are late


def test_options_hold_for_one_run_and_the_next_says_so(class_of_five, capsys):
    Path("x.csv").write_text("student,deadline\nbob,2001-09-10T00:00Z\n")
    command = [str(class_of_five), "--assignment", "99", "--file-times"]
    due = ["--deadline", "2001-09-08T00:00Z"]
    told = []
    for options in ([*due, "--extensions", "x.csv", "--late-penalty", "10% per day"], due, due, [], []):
        assert grade.main([*command, *options]) == 0
        told.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("  options")])
    end = ", this one has not: options hold for one run"
    assert told == [[], ['  options     the run before had --extensions x.csv and --late-penalty "10% per day"' + end], [],
                    ["  options     the run before had --deadline 2001-09-08T00:00Z" + end], []]


def test_where_overrides_are_wrong_the_summary_is_the_graders(class_of_five, capsys):
    overrides = Path("results/99_small/overrides.csv")
    overrides.parent.mkdir(parents=True)
    overrides.write_text(text := "student,question,points,comment\nada,q1,0,\ncyd,,1,\nbob,,,Well.\n")
    command = [str(class_of_five), "--assignment", "99", "--file-times", "--deadline", "2001-09-08T00:00Z", "--late-penalty", "1% per day"]
    assert grade.main(command) == 0
    out = capsys.readouterr().out
    assert "  unreadable      1  (0 points, but 1 with points set by hand)\n" in out and "  by hand         3  (" in out
    assert "  late            5  (points are subtracted from 4)\n" in out
    overrides.write_text(text + "nobody,q1,1,\n")
    assert grade.main(command) == 1
    out, err = capsys.readouterr()
    assert "  unreadable      1  (0 points)\n" in out and "by hand" not in out and "  late            5  (nothing is subtracted)\n" in out
    assert "  mean         3.00 of 5, median 2.5\n" in out
    assert err.endswith("\nnothing was exported, and no mark was set by hand or lowered.\n")


def test_of_a_large_class_the_counts_are_at_the_end_and_details_in_a_file(class_of_five, capsys):
    for k in range(60):
        (class_of_five / f"s{k:02}.ipynb").write_bytes(b"{")
    assert grade.main([str(class_of_five), "--assignment", "99", "--export", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    details = Path("results/99_small/details.txt").read_text().splitlines()
    assert len(details) == 65 and lines[:20] == details[:20]
    assert lines[20:] == ["45 more lines are in results/99_small/details.txt", "99_small: 66 handed in by 65 students",
                          "  graded          4", "  unreadable     61  (0 points)",
                          "  set aside       1  (another one of the same student counts)", "  mean         3.00 of 5, median 2.5",
                          "results in results/99_small", "csv: results/99_small/export/gradebook.csv, 65 rows"]


def test_a_reader_that_goes_away_stops_no_export(class_of_five):
    program = ("import sys, time; from functools import partial; from test_grade import in_place; from qlab.grading import batch, grade; "
               "sys.stdin.read(); grade.run_here = partial(batch.run_here, open_mark=in_place); sys.exit(grade.main(sys.argv[1:]))")
    command = [sys.executable, "-c", program, str(class_of_five), "--assignment", "99", "--export", "csv", "html"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait() == 0
    assert exported() == {"export/gradebook.csv", "export/feedback"}


@pytest.mark.parametrize("late, told", [
    ([None], "nothing is subtracted"),
    (["mark"], "nothing is subtracted; 1 with a LATE mark alone, which does not say by how much"),
    (["mark", "lost", "kept", None], "points are subtracted from 1; 1 with a LATE mark alone, which does not say by how much"),
])
def test_canvas_mark_says_not_by_how_much_and_the_summary_does(late, told):
    costs = {None: None, "mark": {"before": 3, "after": 3}, "lost": {"before": 3, "after": 2, "handed_in": "x"},
             "kept": {"before": 3, "after": 3, "handed_in": "x"}}
    made = [{"status": "graded", "score": 3, "max_score": 5, "notes": [], "submission": {"duplicate_of": None, "late": True},
             "adjusted": {"by_hand": [], "late": costs[of]}} for of in late]
    assert f"  late        {len(late):5}  ({told})\n" in summary.counts(made)
    assert summary.counts(made[:1]).startswith("1 handed in by 1 student\n")


def test_half_a_character_stops_no_export(class_of_five, monkeypatch, capsys):
    monkeypatch.setattr(results, "make", lambda entry, *rest, make=results.make, **more: make(entry, *rest, **more) | {"reason": "\ud800"})
    assert grade.main([str(class_of_five), "--assignment", "99", "--export", "html", "canvas"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "html: results/99_small/export/feedback, 5 pages\ncanvas: results/99_small/export/canvas.csv, 5 rows\n" in out
    assert "could not be read: \ufffd." in next(Path("results/99_small/export/feedback").glob("ada*.html")).read_text("utf-8")


def test_what_is_passed_over_is_told(class_of_five, capsys):
    for number in ("01", "11"):
        (class_of_five / f"{number}.ipynb").write_bytes(simple("right"))
    assert grade.main([str(class_of_five), "--assignment", "99"]) == 0
    told = "passed over: 2 notebooks with another assignment's number: 01.ipynb, 11.ipynb\n"
    assert capsys.readouterr().out == told + SUMMARY


def test_results_beside_the_hand_ins_are_nobodys(class_of_five, monkeypatch, capsys):
    monkeypatch.chdir(class_of_five)
    shutil.move("../bundles", ".")
    for told in ("  graded          4\n", "  graded          4  (4 of them in an earlier run)\n"):
        assert grade.main([".", "--assignment", "99", "--export", "csv", "html"]) == 0
        out = capsys.readouterr().out
        assert f"\n99_small: 6 handed in by 5 students\n{told}" in out


def test_a_class_zip_that_is_none_says_so(class_of_five, capsys):
    Path("class.zip").write_bytes(b"PK, and nothing more")
    assert cli.main(["grade", "class.zip", "--assignment", "99"]) == 1
    assert capsys.readouterr().err == "qlab: class.zip: it is no zip that can be read (File is not a zip file).\n"


# What a student can name, and may not claim

EARLY, LATE = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 25, tzinfo=UTC)


def zipped(entries):
    """A zip's bytes; entries: name -> (bytes, time)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, (content, when) in entries.items():
            archive.writestr(zipfile.ZipInfo(name, when.timetuple()[:6]), content)
    return stream.getvalue()


def whose(tmp_path, entries, deadline=None, **options):
    """(student, number, late) of what counts in a class's zip with these entries."""
    (tmp_path / "class.zip").write_bytes(zipped(entries))
    found = ingest.collect(tmp_path / "class.zip", "02_linear_quantization", deadline, **options)
    return sorted((entry.student, entry.number, entry.late) for entry in found if not entry.duplicate_of)


NB = simple("x")
STAMP = b"2026-11-20 10:00:00 UTC"


@pytest.mark.parametrize("entries, found", [
    ({"Vic_124_assignsubmission_file_hw.ipynb": (NB, EARLY),
      "Mal_123_assignsubmission_file_X_124_assignsubmission_file_hw.ipynb": (NB, LATE)}, [("Mal", "123", False), ("Vic", "124", False)]),
    ({"vic_124_1_hw.ipynb": (NB, EARLY), "mal_123_2_vic_124_3_hw.ipynb": (NB, LATE)}, [("mal", "123", False), ("vic", "124", False)]),
    ({"vic/02.ipynb": (NB, EARLY), "mal.zip": (zipped({"submitted/vic/02/02.ipynb": (NB, EARLY)}), LATE)},
     [("mal", "", False), ("vic", "", False)]),
    ({"vic/ps/02.ipynb": (NB, EARLY), "vic/ps/timestamp.txt": (STAMP, EARLY), "mal/ps/timestamp.txt": (STAMP, EARLY),
      "mal/ps/vic/ps/02.ipynb": (NB, EARLY), "mal/ps/vic/ps/timestamp.txt": (STAMP, EARLY)}, [("mal", "", False), ("vic", "", False)]),
], ids=["Moodle", "Canvas", "a zip like nbgrader's", "nbgrader"])  # fmt: skip
def test_a_name_inside_a_hand_in_claims_nobody_elses(tmp_path, entries, found):
    assert whose(tmp_path, entries) == found


def test_the_times_in_a_students_zip_do_not_count(tmp_path):
    early = {"hw.ipynb": (NB, EARLY), "timestamp.txt": (STAMP, EARLY)}
    deadline = datetime(2026, 11, 23).astimezone()
    entries = {"ann.zip": (zipped(early), LATE), "bob/02.ipynb": (NB, EARLY)}
    assert whose(tmp_path, entries, deadline, file_times=True) == [("ann", "", True), ("bob", "", False)]
    assert whose(tmp_path, entries, deadline) == [("ann", "", None), ("bob", "", None)]
    nested = {"ann/ps/timestamp.txt": (b"2026-11-25 10:00:00 UTC", LATE), "ann/ps/more/02.ipynb": (NB, EARLY),
              "ann/ps/more/timestamp.txt": (STAMP, EARLY), "bob/ps/02.ipynb": (NB, EARLY), "bob/ps/timestamp.txt": (STAMP, EARLY)}
    assert whose(tmp_path, nested, deadline) == [("ann", "", True), ("bob", "", False)]


def test_names_and_files_that_would_stop_the_grader_are_refused(tmp_path):
    """Each took minutes or gigabytes, or ended the batch."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "eve.ipynb").write_bytes(NB)
    deep = tmp_path / "in" / "dan"
    for name in ("a" * 200,) * 5 + ("b",) * 60:
        deep /= name
    deep.mkdir(parents=True)
    (deep / "02.ipynb").write_bytes(NB)
    found = {entry.student: entry.reason for entry in ingest.collect(tmp_path / "in", "02_linear_quantization")}
    assert found == {"dan": "it lies more than 50 folders deep", "eve": ""}
    entries = {"ann/02.ipynb": (NB, EARLY), "a/" * 30_000 + "02.ipynb": (NB, EARLY), "b" * 60_000 + ".ipynb": (NB, EARLY)}
    (tmp_path / "class.zip").write_bytes(zipped(entries))
    found = {entry.source: entry.reason for entry in ingest.collect(tmp_path / "class.zip", "02_linear_quantization")}
    assert found.pop("ann/02.ipynb") == "" and found.pop("a/.../02.ipynb") and max(map(len, found)) < 255
    assert list(found.values()) == ["its path has more than 50 folders, or a name of more than 255 characters"]
    cells = [{"cell_type": "code", "source": "", "metadata": {}}] * 10_001
    for book in ({"nbformat": 4, "cells": cells}, {"nbformat": 3, "worksheets": [{"cells": cells}]}):
        with pytest.raises(ValueError, match="^it has 10,001 cells, and 10,000 are allowed$"):
            notebook.cells_of(json.dumps(book).encode())


def test_a_metadata_file_without_end_is_given_up(monkeypatch):
    content = b"submission_1:\n  :submitters:\n  - :name: Ada\n    :email: a@b\n"
    assert gradescope.people(content)["submission_1"][0]["name"] == "Ada"
    monkeypatch.setattr(gradescope, "YAML_EVENTS", 10)
    assert gradescope.people(content) == {}


# Killed, and on a full disk, for real

SCRIPT = """
import sys, time
from contextlib import contextmanager
from functools import partial
sys.path.insert(0, {clone!r})
from qlab.grading import batch, grade

{stand_in}

def slow(cells, bundle):
    with open({log!r}, "a") as log:
        log.write(cells[1]["source"] + "\\n")
    time.sleep({seconds})
    return stand_in(cells, bundle) | {{"stdout_tail": "x" * {size}}}

@contextmanager
def open_mark(jobs):
    yield slow

grade.run_here = partial(batch.run_here, open_mark=open_mark)
sys.exit(grade.main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path):
    """Makes a class, and a command that grades it: script(how many, seconds, bytes)."""
    def make(students, seconds, size):
        for k in range(students):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"s{k:02}.ipynb").write_bytes(simple("right", f"{k:02}"))
        (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(BUNDLE).encode()))
        own = {"clone": str(Path(__file__).parents[1]), "log": str(tmp_path / "log"), "seconds": seconds, "size": size}
        (tmp_path / "run.py").write_text(SCRIPT.format(stand_in=inspect.getsource(stand_in), **own))
        return [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in"), "--assignment", "99", "--jobs", "2",
                "--bundle", str(tmp_path / "b.json.gz"), "--out", str(tmp_path / "out")]
    return make


@pytest.mark.skipif(os.name != "posix", reason="this system has no kill -9")
def test_kill_9_in_mid_batch_and_resume(tmp_path, script):
    students, kills, folder = 30, 0, tmp_path / "out" / "99_small"
    command = script(students, 0.03, 100)
    for enough in (4, 15):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 60
        while len(list(folder.glob("*.json"))) < enough and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        there = stored(folder)  # every file is whole
        assert enough <= len(there) < students and all(result["score"] == 2 for result in there.values())
    (folder / ".s99.json.1.partial").write_text("{")
    last = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert last.returncode == 0 and f"graded         {students}  ({len(there)} of them in an earlier run)" in last.stdout and kills == 2
    assert len(stored(folder)) == students and not list(folder.glob(".*.partial"))
    marked = (tmp_path / "log").read_text().split()
    assert set(marked) == {f"{k:02}" for k in range(students)} and len(marked) <= students + 4 * kills  # at most what was under way


@needs_bwrap
def test_a_disk_that_is_really_full(tmp_path, script):
    (tmp_path / "out").mkdir()
    small_disk = [bwrap.find_bwrap(), "--dev-bind", "/", "/", "--size", str(2**18), "--tmpfs", str(tmp_path / "out")]
    run = subprocess.run([*small_disk, *script(20, 0, 30_000), "--export", "csv"], capture_output=True, text=True, timeout=60)
    full = re.findall(r"^not graded: (s\d\d) \(s\d\d.ipynb\): its result could not be written: No space left on device$", run.stdout, re.M)
    graded = int(re.search(r"graded +(\d+)", run.stdout)[1])
    assert run.returncode == 1 and 1 <= len(full) == len(set(full)) == 20 - graded < 20 and "Traceback" not in run.stderr


# The benchmark


def test_the_record_names_its_machine_and_keeps_its_promises():
    record = json.loads(bench.RECORD.read_text())
    assert all(record["environment"][name] for name in ("date", "cpu", "usable_cores", "python", "torch", "nbgrader", "bubblewrap"))
    few, many = record["against_nbgrader"], record["many"]
    assert few["students"] == 20 and few["ratio"] == round(few["nbgrader_seconds"] / max(few["qlab_seconds"]), 2) >= 5
    assert many["students"] == 300 and many["qlab_seconds"] < 300 and record["environment"]["usable_cores"] <= 2


def test_the_benchmark_stops_at_a_wrong_mark():
    right = {f"s{k:03}": bench.GIVEN[k % 4][1] for k in range(5)}
    bench._compare(right, 5)
    with pytest.raises(RuntimeError, match=r"these marks are wrong \(given, right\): \{'s003': \(4, 3\)\}"):
        bench._compare({**right, "s003": 4}, 5)


# With the sandbox


@needs_bwrap
def test_a_batch_in_the_sandbox_three_times(tmp_path, monkeypatch):
    answers = {"ada": {}, "bob": {"q1": "def codes(x, lo, hi, bits):\n    return x"}, "cyd": {"q2": "import os\nos._exit(0)"},
               "dan": {"q1": grading_helpers.BLANK, "q2": grading_helpers.BLANK}, "eve": {"before": "%matplotlib inline\nprint('hello')"}}
    for name, changed in answers.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.ipynb").write_bytes(notebook_of(grading_helpers.cells(**changed)))
    (tmp_path / "in" / "fay.ipynb").write_bytes(b"\xff\xfe")
    bundle = grading_helpers.bundle()
    bundle["digest"] = digest(bundle)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(bundle).encode()))
    texts = []

    def run(k):
        out = tmp_path / str(k)
        assert grade.main([str(tmp_path / "in"), "--assignment", "99", "--bundle", str(tmp_path / "b.json.gz"), "--out", str(out)]) == 0
        texts.append({path.name: re.sub(r'"seconds": [0-9.]+', "", path.read_text()) for path in (out / "99_small").glob("*.json")})
        return out

    run(0)
    with batch.sandboxed(1) as mark:  # the other two in one sandbox, one after the other
        monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=partial(in_place, mark=mark)))
        run(1)
        out = run(2)
    marks = {result["submission"]["student"]: (result["status"], result["score"]) for result in stored(out / "99_small").values()}
    assert marks == {"ada": ("graded", 5), "bob": ("graded", 3), "cyd": ("graded", 2), "dan": ("graded", 0), "eve": ("graded", 5),
                     "fay": ("unreadable", 0)}
    assert texts[0] == texts[1] == texts[2]
    assert all(result["limits"]["network"] == "none" for result in stored(out / "99_small").values() if result["status"] == "graded")
