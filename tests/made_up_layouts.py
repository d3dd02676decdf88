"""A made-up class as a platform's download lays it out, and the tables that the platform gives beside it.

The names are made as the platforms make them: instructure/canvas-lms, lib/content_zipper.rb; moodle/moodle,
mod/assign/classes/downloader.php and gradingtable.php; Gradescope's submission_metadata.yml; jupyter/nbgrader, exchange/default/collect.py.
"""

import csv
import gzip
import io
import json
import re
from datetime import timedelta
from pathlib import Path

import yaml
from made_up_class import DEADLINE, Student
from made_up_work import Exercise


def lay_out(folder: Path, layout: str, students: list[Student], exercise: Exercise) -> None:
    """Write what all handed in to folder/handed_in, as the platform's download; where each file lies is noted.

    Beside it lie bundle.json.gz and, for Moodle, worksheet.csv.
    """
    files, place = {}, folder / "handed_in"
    for student in students:
        made = dict(LAYOUTS[layout](student, exercise.name))
        student.paths = [path for path in made if not path.endswith("timestamp.txt")]
        files |= made
    if layout == "gradescope":
        files["submission_metadata.yml"] = _metadata(students)
    for path, data in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    (folder / "bundle.json.gz").write_bytes(gzip.compress(json.dumps(exercise.bundle).encode()))
    if layout == "moodle":
        (folder / "worksheet.csv").write_bytes(worksheet(students, sum(exercise.points.values())))


def shown_name(student: Student, layout: str) -> str:
    """The name that results have."""
    if layout == "canvas":
        return canvas_name(student.name)
    if layout == "canvas-anonymous":
        return f"anon_{student.number:05d}"
    return student.name.replace("\t", "\ufffd")  # what cannot be shown


def canvas_name(name: str) -> str:
    """Last and first name, of word characters alone, in lower case."""
    first, _, last = name.rpartition(" ")
    return re.sub(r"[^\w]", "", re.sub(r"_(\d+)_", r"-\1-", last + first)).lower()


def _canvas(student: Student, assignment: str):
    for k, (name, data) in enumerate(student.uploads):
        stem, dot, ending = name.partition(".")
        late = "LATE_" if student.late else ""
        if "a PDF" in student.kind and student.number % 2:  # what was typed in, or an address
            yield f"{canvas_name(student.name)}_{late}{student.number}_{'text' if student.number % 3 else 'link'}.html", b"<p>my work</p>"
        else:
            yield f"{canvas_name(student.name)}_{late}{student.number}_{9000 + 10 * student.number + k}_{stem}-1{dot}{ending}", data


def _canvas_anonymous(student: Student, assignment: str):
    late = "LATE_" if student.late else ""
    for k, (name, data) in enumerate(student.uploads):
        yield f"{late}anon_{student.number:05d}_{9000 + 10 * student.number + k}_{name}", data


def _moodle(student: Student, assignment: str):
    name = re.sub(r"[&<>\"`|':\\/\t\n*?]", "", student.name).replace("_", " ").strip()
    for file, data in student.uploads:
        if "a PDF" in student.kind and student.number % 2:
            yield f"{name}_{student.number}_assignsubmission_onlinetext/onlinetext.html", b"<p>my work</p>"
        else:
            yield f"{name}_{student.number}_assignsubmission_file/{file}", data


def _gradescope(student: Student, assignment: str):
    for file, data in student.uploads:
        yield f"submission_{student.number}/{file}", data


def _nbgrader(student: Student, assignment: str):
    folder = f"submitted/{student.name}/{assignment}"
    yield f"{folder}/timestamp.txt", _handed_in(student).strftime("%Y-%m-%d %H:%M:%S.%f UTC").encode()
    for file, data in student.uploads:
        yield f"{folder}/{file}", data


def _plain(student: Student, assignment: str):
    """Most have a folder; some one file, or a zip, of their name."""
    (file, data), *more = student.uploads
    if not more and student.number % 3 == 0 and file.lower().endswith((".ipynb", ".zip")) and "another assignment" not in student.kind:
        yield f"{student.name}.{file.rpartition('.')[2]}", data
    else:
        for file, data in student.uploads:
            yield f"{student.name}/{file}", data


LAYOUTS = {"canvas": _canvas, "canvas-anonymous": _canvas_anonymous, "moodle": _moodle, "gradescope": _gradescope, "nbgrader": _nbgrader,
           "plain": _plain}


def _handed_in(student: Student):
    return DEADLINE + timedelta(hours=30 if student.late else -30, minutes=student.number % 50)


def _metadata(students: list[Student]) -> bytes:
    return yaml.safe_dump({f"submission_{student.number}": {
        ":submitters": [{":name": student.name, ":sid": str(student.number), ":email": student.email}], ":created_at": _handed_in(student),
        ":score": None} for student in students}, allow_unicode=True).encode()


def worksheet(students: list[Student], most: float) -> bytes:
    """Moodle's grading worksheet, in English, its times in UTC; most: the maximum grade. One participant has handed in nothing."""
    head = ["Identifier", "Full name", "Email address", "Status", "Grade", "Maximum grade", "Grade can be changed",
            "Last modified (submission)", "Last modified (grade)", "Feedback comments"]
    rows = [[f"Participant {student.number}", student.name, student.email, "Submitted for grading", "", f"{most:.2f}", "Yes",
             _moodle_time(_handed_in(student)), "-", ""] for student in students]
    rows.append(["Participant 7", "Nobody Yet", "s7@example.edu", "No submission", "", f"{most:.2f}", "Yes", "-", "-", ""])
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([head, *rows])
    return b"\xef\xbb\xbf" + stream.getvalue().encode()


def _moodle_time(when) -> str:
    return f"{when:%A}, {when.day} {when:%B} {when.year}, {when.hour % 12 or 12}:{when:%M} {'PM' if when.hour >= 12 else 'AM'}"
