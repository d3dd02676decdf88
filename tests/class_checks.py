"""What the grader made of a made-up class, compared with what it must be; every difference is a sentence."""

import contextlib
import csv
import io
import json
import random
import re
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

from made_up_class import DEADLINE, Student
from made_up_layouts import shown_name
from made_up_work import Exercise

from qlab.grading import values

TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code",
        "bdi", "br", "span", "div", "strong", "em", "ul", "li", "section"}


def results(folder: Path) -> dict[str, dict]:
    """Every result by the name of its file, without what differs from run to run."""
    return {path.name: {**json.loads(path.read_text()), "seconds": 0} for path in sorted(folder.glob("*.json"))}


def of_results(made: dict[str, dict], students: list[Student], layout: str, late_known: bool) -> list[str]:
    """Marks, states, lateness, and which file counts."""
    found, wrong = {}, []
    for result in made.values():
        if result["submission"]["duplicate_of"] is None:
            found.setdefault(_key(result["submission"], layout), []).append(result)
    for student in students:
        mine = found.pop(_key(_who(student, layout), layout), [])
        who = f"{student.name!r} {student.number} ({student.kind})"
        if len(mine) != 1:
            wrong.append(f"{who}: {len(mine)} results")
            continue
        result, head = mine[0], mine[0]["submission"]
        marks = {question["id"]: question["score"] for question in result["questions"]}
        expected = ("graded", student.marks) if student.marks is not None else ("unreadable", {})
        if (result["status"], marks) != expected:
            wrong.append(f"{who}: {result['status']} {marks} {result['reason']}, and not {expected}")
        if result["score"] != sum((student.marks or {}).values()):
            wrong.append(f"{who}: score {result['score']}")
        late = student.late if late_known else None
        if head["late"] != late:
            wrong.append(f"{who}: late is {head['late']}, and not {late}")
        counts = "/".join(filter(None, (student.paths[student.counts[0]], student.counts[1])))
        if student.marks is not None and head["source"] != counts:
            wrong.append(f"{who}: {head['source']} counts, and not {counts}")
        if student.marks is None and student.reason not in result["reason"]:
            wrong.append(f"{who}: the reason is {result['reason']!r}, and not {student.reason!r}")
        if head["student"] != shown_name(student, layout):
            wrong.append(f"{who}: is called {head['student']!r}")
    return wrong + [f"{key}: nobody handed that in" for key in found]


def _who(student: Student, layout: str) -> dict:
    return {"number": str(student.number), "email": student.email, "student": shown_name(student, layout)}


def _key(who: dict, layout: str) -> str:
    return who[{"canvas": "number", "moodle": "number", "gradescope": "email"}.get(layout, "student")]


def of_tables(export: Path, students: list[Student], layout: str, worksheet: bytes | None) -> list[str]:
    """Each platform's table has each student's score under the identity that the platform gave."""
    scores = {_key(_who(student, layout), layout): float(sum((student.marks or {}).values())) for student in students}
    wrong, column = [], {"canvas": "number", "moodle": "number", "gradescope": "email"}.get(layout, "student")
    book = _rows((export / "gradebook.csv").read_text("utf-8-sig"))
    wrong += _differ("gradebook.csv", {_plain(row[column]): float(row["score"] or "nan") for row in book}, scores)
    wrong += [f"gradebook.csv: {field!r} is a formula" for row in book for field in row.values() if re.match(r"\s*[=+@]|\s*-\D", field)]
    if layout == "canvas":
        rows = [row for row in _rows((export / "canvas.csv").read_text()) if row["ID"]]
        wrong += _differ("canvas.csv", {row["ID"]: float(list(row.values())[5]) for row in rows}, scores)
    if layout == "moodle":
        rows = _rows((export / "moodle.csv").read_text("utf-8-sig"))
        graded = {row["Identifier"].removeprefix("Participant "): float(row["Grade"]) for row in rows if row["Grade"]}
        wrong += _differ("moodle.csv", graded, scores)
        before = [row["Identifier"] for row in _rows(worksheet.decode("utf-8-sig"))] if worksheet else None
        if before and before != [row["Identifier"] for row in rows]:
            wrong.append("moodle.csv: other rows than the worksheet")
    if layout == "gradescope":
        told = {path.parent.name: json.loads(path.read_text())["score"] for path in (export / "gradescope").glob("*/results.json")}
        wrong += _differ("gradescope", told, {f"submission_{s.number}": scores[s.email] for s in students})
    return wrong


def _rows(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _plain(field: str) -> str:
    """A field without the quotes that keep a spreadsheet from running it."""
    return re.sub(r"(^|(?<=[;\t\r\n]))'", "", field)


def _differ(table: str, told: dict, scores: dict) -> list[str]:
    return [f"{table}: {key!r} has {told.get(key)}, and not {scores.get(key)}" for key in told.keys() | scores.keys()
            if told.get(key) != scores.get(key)]


def of_pages(export: Path, made: dict[str, dict], secrets: set[str]) -> list[str]:
    """A page for each student, of no tags but the page's own; and no hidden input in anything that a student gets."""
    count = {result["submission"]["id"] for result in made.values() if result["submission"]["duplicate_of"] is None}
    pages = {path.stem: path.read_text("utf-8") for path in (export / "feedback").glob("*.html")}
    wrong = [] if pages.keys() == count else [f"pages without a student or students without a page: {sorted(pages.keys() ^ count)}"]
    for name, text in pages.items():
        tags = _Tags()
        tags.feed(text)
        wrong += [f"{name}.html: has the tag {tag}" for tag in tags.found - TAGS]
    texts = {f"{name}.html": text for name, text in pages.items()}
    texts |= {f"gradescope/{path.parent.name}": path.read_text() for path in (export / "gradescope").glob("*/results.json")}
    texts |= {name: (export / name).read_text("utf-8-sig") for name in ("canvas.csv", "moodle.csv") if (export / name).exists()}
    for path in export.glob("*_feedback.zip"):
        texts |= _unpacked(path.name, path.read_bytes())
    joined = "\n".join(texts.values())
    for secret in secrets:
        if secret in joined:
            wrong.append(f"{next(name for name, text in texts.items() if secret in text)}: names a hidden input, {secret}")
    return wrong


def _unpacked(name: str, data: bytes) -> dict[str, str]:
    if not data.startswith(b"PK"):
        return {name: data.decode()}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inner = [_unpacked(f"{name}/{entry}", archive.read(entry)) for entry in archive.namelist()]
    return {path: text for texts in inner for path, text in texts.items()}


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)


def secrets(exercise: Exercise) -> set[str]:
    """The numbers of hidden inputs as Python and torch print them, and how pages would show them whole.

    Left out are those too short to be told from others, and those that also stand in what students are given.
    """
    public, hidden = set(), set()
    for case in (case for cases in exercise.cases.values() for case in cases):
        place = public if case["kind"] == "public" else hidden
        for value in [*case["inputs"].values(), *([case["expect"]] if case["expect"] else [])]:
            place |= set(_numbers(values.decode(value)))
            if len(text := values.show(value)) > 20:
                place.add(text)
    given = json.dumps(exercise.released, ensure_ascii=False) + "\n".join(public)
    return {text for text in hidden if len(text) > 5 and text not in given}


def _numbers(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float) and abs(value) < 1e15 and value != round(value, 3):
        yield repr(value)
        if 0.1 <= abs(value) < 1000:
            yield f"{value:.4f}"
    elif isinstance(value, int) and abs(value) > 99999:
        yield str(value)


EXPORTS = {"canvas": ["canvas", "canvas-feedback"], "moodle": ["moodle", "moodle-feedback"], "gradescope": ["gradescope"]}


def command(folder: Path, layout: str, assignment: str, out: str, jobs: int, deadline: str = DEADLINE.isoformat()) -> list[str]:
    """The arguments of qlab grade for a class that was laid out in this folder, with all that its students and their platform get back."""
    given = [str(folder / "handed_in"), "--assignment", assignment, "--bundle", str(folder / "bundle.json.gz"), "--out", str(folder / out)]
    given += ["--jobs", str(jobs), "--deadline", deadline, "--export", "csv", "html", *EXPORTS.get(layout, ())]
    return given + (["--moodle-worksheet", str(folder / "worksheet.csv"), "--time-zone", "UTC"] if layout == "moodle" else [])


def differences(folder: Path, exercise: Exercise, students: list[Student], layout: str, out: str) -> list[str]:
    """All that is wrong with what the command made of a class."""
    made = results(folder / out / exercise.name)
    export, sheet = folder / out / exercise.name / "export", folder / "worksheet.csv"
    known = layout != "plain"
    return (of_results(made, students, layout, known) + of_tables(export, students, layout, sheet.read_bytes() if sheet.exists() else None)
            + of_pages(export, made, secrets(exercise)))


def graded_thrice(folder: Path, exercise: Exercise, students: list[Student], layout: str, seed: int) -> list[str]:
    """Grade the class three times, with one, two and three at a time, the first one killed again and again; what is wrong."""
    rng, runs, wrong = random.Random(seed), [], []
    for jobs, out in ((2, "killed"), (1, "one"), (3, "three")):
        line = [sys.executable, "-m", "qlab.cli", "grade", *command(folder, layout, exercise.name, out, jobs)]
        for _ in range(6 if out == "killed" else 0):
            process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 0.3 * len(students)))
            process.kill()
            process.wait()
        start = time.perf_counter()
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        print(f"{out}: {time.perf_counter() - start:.1f} s, {jobs} at a time\n{done.stdout}", flush=True)
        wrong += [f"{out}: {done.stderr}"] if done.returncode else []
        wrong += [f"{out}: {what}" for what in differences(folder, exercise, students, layout, out)]
        runs.append(contents(folder / out))
    return wrong + [f"run {k}: {name} differs" for k in (1, 2) for name in same(runs[0], runs[k])]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a batch left, by its path, the times taken out."""
    return {path.relative_to(folder).as_posix(): re.sub(rb'"seconds": [0-9.]+', b"", path.read_bytes())
            for path in sorted(folder.rglob("*")) if path.is_file()}


def same(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The paths at which two runs differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
