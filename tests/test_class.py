"""A made-up class whose every mark is known (made_up_class), graded as a teacher would: every result, table and page is compared."""

import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import class_checks
import grading_helpers
import made_up_class
import made_up_layouts
import pytest
from made_up_work import Exercise

from qlab.grading import batch, grade, mark
from qlab.grading.sandbox import bwrap

needs_bwrap = pytest.mark.skipif(not (grading_helpers.has_bwrap() or os.environ.get("CI") and sys.platform == "linux"),
                                 reason="the sandbox's tests need bubblewrap: apt install bubblewrap")
SET, SECONDS = "01", 6.0  # a set without networks, and how long a question may take


@pytest.fixture(scope="module")
def exercise():
    return Exercise(SET, SECONDS)


@pytest.fixture(scope="module")
def box():
    with bwrap.Sandbox(2) as opened:
        yield opened


@pytest.fixture
def in_the_box(box, monkeypatch):
    """One sandbox for all classes: to open it takes longer than to mark one."""
    @contextmanager
    def opened(jobs):
        yield partial(mark.grade_notebook, box)

    monkeypatch.setattr(grade, "run_here", partial(batch.run_here, open_mark=opened))


def made(folder, exercise, layout, count, seed, slow=0):
    """The students of a class that lies in the folder, ready to be graded."""
    students = made_up_class.students(exercise, layout, count, seed, slow)
    made_up_layouts.lay_out(folder, layout, students, exercise)
    return students


@needs_bwrap
@pytest.mark.parametrize("layout, count, slow", [
    ("canvas", 13, 0), ("canvas-anonymous", 4, 0), ("moodle", 11, 1), ("gradescope", 11, 0), ("nbgrader", 6, 0), ("plain", 6, 0)])
def test_every_mark_of_a_class(tmp_path, exercise, in_the_box, layout, count, slow):
    students = made(tmp_path, exercise, layout, count, 1, slow)
    assert grade.main(class_checks.command(tmp_path, layout, exercise.name, "out", 2)) == 0
    assert class_checks.differences(tmp_path, exercise, students, layout, "out") == []


@needs_bwrap
def test_three_runs_are_identical_whatever_the_number_at_a_time(tmp_path, exercise, in_the_box):
    made(tmp_path, exercise, "canvas", 7, 2)
    runs = []
    for jobs in (1, 2, 3):
        assert grade.main(class_checks.command(tmp_path, "canvas", exercise.name, f"out{jobs}", jobs)) == 0
        runs.append(class_checks.contents(tmp_path / f"out{jobs}"))
    assert [class_checks.same(runs[0], run) for run in runs[1:]] == [[], []]
    assert sum(name.endswith(".html") for name in runs[0]) == 7


# Killed at any moment; what a mark would be is made up of the notebook, for the moments are what is tested here

KILLED = """
import hashlib, sys, time
from contextlib import contextmanager
from functools import partial
from qlab.grading import batch, grade

def made_up(cells, bundle):
    time.sleep(0.02)
    draw = hashlib.sha256(repr(cells).encode()).digest()
    asked = [{"id": q["id"], "points": q["points"], "score": q["points"] * (draw[k] % 2), "state": ("failed", "passed")[draw[k] % 2],
              "reason": "", "note": "", "failed_case": None, "public_failed": None, "answers_like": None}
             for k, q in enumerate(bundle["questions"])]
    score, most = (sum(q[name] for q in asked) for name in ("score", "points"))
    return {"questions": asked, "score": score, "max_score": most, "limits": {}, "stdout_tail": "x" * 10_000}

@contextmanager
def opened(jobs):
    yield made_up

grade.run_here = partial(batch.run_here, open_mark=opened)
sys.exit(grade.main(sys.argv[1:]))
"""


def run(line, folder, moment=None):
    """Seconds of a command, killed at this moment if it is not done by then; whether it came to its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    start = time.monotonic()
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        error = process.communicate(timeout=moment)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return time.monotonic() - start, False
    assert process.returncode == 0, error
    return time.monotonic() - start, True


@pytest.mark.skipif(os.name != "posix", reason="this system has no kill -9")
def test_a_kill_at_any_moment_loses_nothing(tmp_path, exercise):
    made(tmp_path, exercise, "moodle", 24, 3)
    rng, results, kept, kills = random.Random(3), tmp_path / "killed" / exercise.name, {}, 0

    def line(out):
        return [sys.executable, "-c", KILLED, *class_checks.command(tmp_path, "moodle", exercise.name, out, 2)]

    whole, _ = run(line("whole"), tmp_path)
    for _ in range(4):
        _, ended = run(line("killed"), tmp_path, rng.uniform(0.2, 1) * whole)
        kills += not ended
        now = class_checks.results(results)  # each is whole, and as it was
        assert kept.items() <= now.items()
        kept = now
    run(line("killed"), tmp_path)
    expected = class_checks.contents(tmp_path / "whole")
    assert class_checks.same(class_checks.contents(tmp_path / "killed"), expected) == [] and kills
    # All is marked; now in the midst of exports, of which each is the former one, or the new one, as a whole.
    exports = {path.name for path in (results / "export").iterdir()}
    again, _ = run(line("killed"), tmp_path)
    for _ in range(3):
        run(line("killed"), tmp_path, rng.uniform(0.5, 1) * again)
        assert {path.name for path in (results / "export").iterdir() if path.name[0] != "."} == exports
        differ = class_checks.same(class_checks.contents(tmp_path / "killed"), expected)
        assert [name for name in differ if "/." not in name] == []  # what it was about to write has a name that begins with a dot
    run(line("killed"), tmp_path)
    assert class_checks.same(class_checks.contents(tmp_path / "killed"), expected) == []


def test_the_checks_see_what_is_wrong(tmp_path, exercise):
    """Each kind of difference is named: a mark, a state, lateness, the file that counts, a student who is not there, a leak, a tag."""
    students = made(tmp_path, exercise, "canvas", 12, 4)
    run([sys.executable, "-c", KILLED, *class_checks.command(tmp_path, "canvas", exercise.name, "out", 2)], tmp_path)
    told = class_checks.differences(tmp_path, exercise, students, "canvas", "out")
    assert any("graded {" in line for line in told) and any(line.startswith("canvas.csv: ") for line in told)
    export = tmp_path / "out" / exercise.name / "export"
    page = next((export / "feedback").glob("*.html"))
    secret = sorted(class_checks.secrets(exercise))[0]
    page.write_text(page.read_text() + f"<script>{secret}</script>")
    counted = class_checks.differences(tmp_path, exercise, [*students[1:], made_up_class.Student("x", 1, "", "x", [], None, paths=["x"])],
                                       "canvas", "out")
    for part in ("has the tag script", f"names a hidden input, {secret}", "'x' 1 (x): 0 results", "nobody handed that in"):
        assert any(part in line for line in counted), part
