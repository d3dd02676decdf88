"""Whose a hand-in is, and when it came: each platform's own names, and what a student may put below or into them to be somebody else."""

import csv
import gzip
import io
import json
import os
import shutil
import unicodedata
import zipfile
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.grading import grade, results
from qlab.grading.handed_in import canvas, files, gradescope, ingest, layouts, moodle, owners, times
from qlab.grading.report import exports, feedback, given_back
from qlab.grading.report import moodle as tables

NN = "02_linear_quantization"
DEADLINE = datetime(2026, 11, 20, 18, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
YML = """---
submission_7:
  :submitters:
  - :name: Ada Lovelace
    :sid: 4711
    :email: Ada@example.edu
  :created_at: 2026-11-20 17:59:59.117497000 Z
submission_8:
  :submitters:
  - :name: Bob
    :sid: '4712'
    :email: bob@example.edu
  - :name: Cyd
    :email: cyd@example.edu
  - :name: Dan
  - :name: Eve
  :created_at: 2026-11-20 18:00:01 UTC
"""


def nb(text="x = 1"):
    cell = {"cell_type": "code", "source": text, "outputs": [], "metadata": {"nbgrader": {"grade_id": "q1", "solution": True}}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}).encode()


def zipped(entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, nb(name) if content is None else content)
    return stream.getvalue()


def laid(root, *names):
    """Files below a folder, notebooks where no content is given; a name that ends in a slash is an empty folder."""
    for name in names:
        name, content = name if isinstance(name, tuple) else (name, None)
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(nb(name) if content is None else content)
    return root


def students(place, **options):
    """(student, number, late) of what counts, and those set aside after them."""
    entries = ingest.collect(place, NN, **options)
    assert len({entry.id for entry in entries}) == len(entries)
    return sorted((entry.student, entry.number, entry.late) for entry in entries if not entry.duplicate_of)


def sheet(path, *rows, head="Identifier,Full name,Email address,Status,Group,Grade,Last modified (submission),Last modified (grade)"):
    path.write_text("\n".join((head, *rows)) + "\n", "utf-8-sig")
    return path


# A hand-in is opaque

FORGED = {  # what a student may lay into a hand-in; each would make them another student, or early, if it were looked at
    "gradescope": {"submission_metadata.yml": YML.encode(), "submission_7/02.ipynb": None, "02.ipynb": None},
    "canvas": {"vic_124_1_02.ipynb": None, "02.ipynb": None}, "moodle": {"Vic_124_assignsubmission_file_/02.ipynb": None},
    "nbgrader": {"submitted/vic/ps1/02.ipynb": None, "submitted/vic/ps1/timestamp.txt": b"2026-01-01 00:00:00 UTC"},
    "stamp": {"02.ipynb": None, "timestamp.txt": b"2026-01-01 00:00:00 UTC"}, "names": {"vic.ipynb": None, "vic/02.ipynb": None},
    "course": {"exercises/02_linear_quantization.ipynb": None, "notebooks/02_linear_quantization.ipynb": None},
    "zips": {"vic.zip": zipped({"vic_124_1_02.ipynb": None, "02.ipynb": None})}}
PLATFORMS = {  # where the hand-ins of mal and of vic lie on each platform; whose they are, and whether they are late
    "canvas": ("mal_LATE_123_9002_{}", "vic_124_9001_02.ipynb", ("mal", "123", True), ("vic", "124", False)),
    "moodle": ("Mal_123_assignsubmission_file_/{}", "Vic_124_assignsubmission_file_/02.ipynb", ("Mal", "123", None), ("Vic", "124", None)),
    "gradescope": ("submission_8/{}", "submission_7/02.ipynb", ("Mal", "123", True), ("Vic", "124", False)),
    "nbgrader": ("submitted/mal/ps1/{}", "submitted/vic/ps1/02.ipynb", ("mal", "", True), ("vic", "", False)),
    "plain": ("mal/{}", "vic.ipynb", ("mal", "", None), ("vic", "", None))}
BESIDE = {
    "gradescope": {layouts.METADATA: b"submission_7:\n  :submitters:\n  - :name: Vic\n    :sid: 124\n  :created_at: 2026-11-20 17:00:00 Z\n"
                   b"submission_8:\n  :submitters:\n  - :name: Mal\n    :sid: 123\n  :created_at: 2026-11-20 19:00:00 Z\n"},
    "nbgrader": {"submitted/mal/ps1/timestamp.txt": b"2026-11-20 19:00:00 UTC",
                 "submitted/vic/ps1/timestamp.txt": b"2026-11-20 17:00:00 UTC"}}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("as_zip", [True, False])
def test_nothing_in_a_hand_in_makes_its_student_another_or_early(tmp_path, platform, forged, as_zip):
    place, other, mal, vic = PLATFORMS[platform]
    content = {f"deep/{name}" if platform == "nbgrader" and not as_zip else name: text for name, text in FORGED[forged].items()}
    if as_zip or platform == "canvas":
        mine = {place.format("work.zip"): zipped(content)}
    else:
        mine = {place.format(name): text for name, text in content.items()}
    laid(tmp_path / "in", *{**mine, other: None, **BESIDE.get(platform, {})}.items())
    (tmp_path / "class.zip").write_bytes(zipped({**mine, other: None, **BESIDE.get(platform, {})}))
    for where in ("in", "class.zip"):
        assert students(tmp_path / where, deadline=DEADLINE) == sorted([mal, vic])


@pytest.mark.parametrize("name", FORGED)
def test_one_students_zip_alone_is_one_student_or_asked_about(tmp_path, name):
    laid(tmp_path / "in", ("ada.zip", zipped(FORGED[name])))
    assert students(tmp_path / "in", layout="plain") == [("ada", "", False)]
    if name in ("moodle", "nbgrader"):
        title = layouts.TITLES[name]
        told = (f"ada.zip is all that there is, and laid out as by {title}: if it is the class's, grade ada.zip itself; if one student "
                "handed it in, say --layout plain.")
        with pytest.raises(ValueError, match=told):
            students(tmp_path / "in")


def test_a_layout_is_told_by_all_outermost_entries_together(tmp_path):
    laid(tmp_path, "ada_101_9001_02.ipynb", "bob_102_9002_02.ipynb", "mal.ipynb", ("notes.txt", b""))
    with pytest.raises(ValueError, match=r"^ada_101_9001_02.ipynb is named as Canvas names what was handed in, and mal.ipynb is not: say "
                                         r"--layout canvas or --layout plain\.$"):
        students(tmp_path)
    assert students(tmp_path, layout="canvas") == [("ada", "101", False), ("bob", "102", False), ("mal", "", False)]
    assert [name for name, *_ in students(tmp_path, layout="plain")] == ["ada_101_9001_02", "bob_102_9002_02", "mal"]
    with pytest.raises(ValueError, match="nothing there is named as Moodle names it: leave out --layout moodle, or name the folder or zip"):
        students(tmp_path, layout="moodle")
    with pytest.raises(ValueError, match="layout is 'blackboard', and must be one of canvas, moodle, gradescope, nbgrader, "):
        students(tmp_path, layout="blackboard")


def test_a_platforms_folders_may_lie_in_others(tmp_path):
    laid(tmp_path / "moodle/CS1/02", "Ada_1_assignsubmission_file_/02.ipynb", "Bob_2_assignsubmission_file_/02.ipynb")
    assert students(tmp_path / "moodle") == [("Ada", "1", False), ("Bob", "2", False)]
    laid(tmp_path / "course", "source/ps1/02.ipynb", "release/ps1/02.ipynb", "submitted/ada/ps1/02.ipynb", "autograded/ada/ps1/02.ipynb")
    assert students(tmp_path / "course") == [("ada", "", False)]
    laid(tmp_path / "wrapped", "submissions/ada_101_9001_02.ipynb")
    assert students(tmp_path / "wrapped") == [("ada", "101", False)]
    (tmp_path / "submitted.zip").write_bytes(zipped({"Ada_1_assignsubmission_file_/hw/02.ipynb": None}))
    assert students(tmp_path / "submitted.zip") == [("Ada", "1", False)]
    stamp = b"2026-01-01 00:00:00 UTC"
    (tmp_path / "submitted.zip").write_bytes(zipped({"ada/02.ipynb": None, "mal/x/02.ipynb": None, "mal/x/timestamp.txt": stamp}))
    assert students(tmp_path / "submitted.zip", deadline=DEADLINE) == [("ada", "", None), ("mal", "", None)]
    (tmp_path / "submitted.zip").write_bytes(zipped({"ada/ps1/02.ipynb": None, "bob/ps1/02.ipynb": None, "bob/ps1/timestamp.txt": stamp}))
    assert students(tmp_path / "submitted.zip", deadline=DEADLINE) == [("ada", "", None), ("bob", "", False)]
    laid(tmp_path / "one", "class/ada/02.ipynb", "class/ada/scratch.ipynb", "class/bob.ipynb")
    assert students(tmp_path / "one") == [("ada", "", False), ("bob", "", False)]
    laid(tmp_path / "by set", "02_linear_quantization/ada.ipynb", "02_linear_quantization/bob/hw.ipynb", "03_log/ada.ipynb")
    assert students(tmp_path / "by set") == [("ada", "", False), ("bob", "", False)]


def test_a_folder_is_one_student_whatever_lies_in_it(tmp_path):
    laid(tmp_path / "class", "ada/scratch.ipynb", "ada/homework.ipynb", "bob/a/02.ipynb", "bob/b/02.ipynb", "cyd/vic.ipynb")
    assert students(tmp_path / "class") == [("ada", "", False), ("bob", "", False), ("cyd", "", False)]
    laid(tmp_path / "ada", "exercises/02_linear_quantization.ipynb", "notebooks/02_linear_quantization.ipynb", ("README.md", b""))
    assert students(tmp_path / "ada") == [("ada", "", False)]
    (tmp_path / "bob.zip").write_bytes(zipped({"02.ipynb": None, "02 (1).ipynb": None, "03_log.ipynb": None, "data/x.csv": b"1"}))
    assert students(tmp_path / "bob.zip") == [("bob", "", False)]


@pytest.mark.parametrize("named", ["02.ipynb", f"{NN}.ipynb", f"{NN} (1).ipynb", "02.ipynb.txt"])
@pytest.mark.parametrize("others", [
    [f"{name}.ipynb" for name in "ada bob cyd dan eve fay gus hal ida jim".split()], ["ada.ipynb"], ["ada.zip", "bob.zip", "cyd.zip"],
    ["ada/hw.ipynb", "bob/hw.ipynb"], ["ada/02.ipynb"], ["ada.ipynb.txt"], ["exercises/02.ipynb", "ada.ipynb"]])
def test_a_loose_notebook_named_as_the_set_makes_no_class_one_student(tmp_path, named, others):
    content = {named: None} | {name: zipped({"02.ipynb": None}) if name.endswith(".zip") else None for name in others}
    laid(tmp_path / "in", *content.items())
    (tmp_path / "class.zip").write_bytes(zipped(content))
    outer = sorted({name.split("/")[0] for name in (named, *others)} - {"exercises"})
    other = next(name for name in outer if name != named)
    for place in (tmp_path / "in", tmp_path / "class.zip"):
        with pytest.raises(ValueError) as error:
            students(place)
        assert str(error.value) == (
            f"it holds {named} and {other}, and may be a class's or one student's: if each in it is a student's, say --layout plain; if "
            "all of it is one student's, put it, as a zip with the student's name, into a folder, and grade that with --layout plain.")
        found = ingest.collect(place, NN, layout="plain")
        assert len(found) == 1 + len({name.split("/")[0] for name in others}) and not any(entry.duplicate_of for entry in found)


def test_a_class_that_lies_in_one_folder_or_zip_is_asked_about(tmp_path):
    names = ["02.ipynb", "ada.ipynb", "bob.ipynb"]
    laid(tmp_path / "in", *(f"class/{name}" for name in names))
    with pytest.raises(ValueError, match="^class holds 02.ipynb and ada.ipynb, and may be .*: if each in it is a student's, say --layout "
                                         "plain; if all of it is one student's, put a zip of it in its place, and say --layout plain\\.$"):
        students(tmp_path / "in")
    assert [name for name, *_ in students(tmp_path / "in", layout="plain")] == ["02", "ada", "bob"]
    laid(tmp_path / "zip", ("dan.zip", zipped(dict.fromkeys(names))))
    with pytest.raises(ValueError, match="^dan.zip holds 02.ipynb and ada.ipynb, and may be .*: if each in it is a student's, grade "
                                         "dan.zip itself; if all of it is one student's, say --layout plain\\.$"):
        students(tmp_path / "zip")
    assert students(tmp_path / "zip", layout="plain") == [("dan", "", False)]
    assert [name for name, *_ in students(tmp_path / "zip" / "dan.zip", layout="plain")] == ["02", "ada", "bob"]


def test_zips_beside_a_students_course_folder_are_others(tmp_path):
    laid(tmp_path, "ada/exercises/02.ipynb", "ada/notebooks/02.ipynb", ("bob.zip", zipped({"02.ipynb": None})))
    assert students(tmp_path) == [("ada", "", False), ("bob", "", False)]


def test_students_with_a_number_before_their_name_stay(tmp_path):
    laid(tmp_path, "01_ada/hw.ipynb", "02_bob/hw.ipynb", ("03_cyd.zip", zipped({"hw.ipynb": None})), "04/02.ipynb", "05_eve/")
    assert students(tmp_path) == [(name, "", False) for name in ("01_ada", "02_bob", "03_cyd", "04", "05_eve")]


def test_sections_are_told_and_not_guessed(tmp_path):
    laid(tmp_path, "tuesday/ada.ipynb", "tuesday/bob/02.ipynb", "friday/ada.ipynb")
    assert students(tmp_path, layout="sections") == [("ada", "", False), ("ada", "", False), ("bob", "", False)]
    told = []
    assert [name for name, *_ in students(tmp_path, tell=told.append)] == ["friday", "tuesday"]
    assert told == ["read as one student's each: tuesday; say --layout sections if such a folder holds several students'"]


# When


def test_plain_files_are_as_old_as_their_copy(tmp_path):
    laid(tmp_path, "ada.ipynb", "bob/02.ipynb")
    early = datetime(2026, 11, 1, tzinfo=UTC)
    assert students(tmp_path, deadline=early) == [("ada", "", None), ("bob", "", None)]
    assert students(tmp_path, deadline=early, file_times=True) == [("ada", "", True), ("bob", "", True)]
    assert students(tmp_path) == [("ada", "", False), ("bob", "", False)]


@pytest.mark.parametrize("platform", ["canvas", "moodle", "gradescope", "nbgrader"])
def test_a_platforms_files_are_as_old_as_their_download(tmp_path, platform):
    place, other, *_ = PLATFORMS[platform]
    laid(tmp_path, place.format("02.ipynb"), other)
    with pytest.raises(ValueError, match=f"is laid out as {layouts.TITLES[platform]} does it, and its files are as old as their download: "
                                         r"their times say nothing\."):
        students(tmp_path, file_times=True)


@pytest.mark.parametrize("stamp, late", [
    ("2026-11-20 18:00:00.0 UTC", False), ("2026-11-20 18:00:00.000001 UTC\n", True), ("2026-11-20 19:00 Europe/Berlin", False),
    ("2026-11-20 17:59:59", False), ("2026-11-20 18:30:00", True), ("2026-11-20 18:00:00 LMT", None), ("yesterday", None), ("", None)])
def test_nbgraders_stamp(tmp_path, stamp, late):
    """A time without a zone is UTC, as nbgrader writes it."""
    laid(tmp_path, "submitted/ada/ps1/02.ipynb", ("submitted/ada/ps1/timestamp.txt", stamp.encode()))
    assert students(tmp_path, deadline=DEADLINE) == [("ada", "", late)]


@pytest.mark.parametrize("stamp", [
    "9999-12-31 23:59:59 UTC", "9999-12-31 23:59:59-12:00", "0001-01-01 00:00:00+14:00", "1999-12-31 23:59 UTC", "2200-01-01 00:00 UTC",
    "9999-12-31 23:59:59 Etc/GMT+12", "yesterday"])
def test_a_time_that_cannot_be_is_none_and_ends_no_export(tmp_path, stamp):
    when = f"submission_7:\n  :created_at: {stamp}\n  :submitters:\n  - :name: ada\n"
    laid(tmp_path / "stamp", "submitted/ada/ps1/02.ipynb", ("submitted/ada/ps1/timestamp.txt", stamp.encode()))
    laid(tmp_path / "yml", "submission_7/02.ipynb", (layouts.METADATA, when.encode()))
    why = "write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00" if stamp == "yesterday" else ""
    for place, of in ((tmp_path / "stamp", "timestamp.txt: "), (tmp_path / "yml", "")):
        for deadline in (DEADLINE.astimezone(BERLIN), None):
            (made,) = graded(place, deadline=deadline)
            assert made["submission"]["late"] is (None if deadline else False) and made["submission"]["time"] is None
            (note,) = made["notes"]
            assert note.startswith(f"when it came is not known: {of}'{stamp}' is no date and time: ")
            assert why in note and note.endswith(why or "it must be from 2000 to 2199")
            head, row = table(exports.gradebook([made], BUNDLE))
            assert row[head.index("handed_in")] == ""


@pytest.mark.parametrize("seconds", [300_000_000_000, 0, -(2**31)])
def test_a_file_as_old_as_no_file_can_be_has_no_time(tmp_path, seconds):
    laid(tmp_path, "ada.ipynb", "bob.ipynb")
    os.utime(tmp_path / "ada.ipynb", (seconds, seconds))
    (ada, bob) = graded(tmp_path, deadline=DEADLINE, file_times=True)
    assert (ada["submission"]["time"], ada["submission"]["late"], bob["submission"]["late"]) == (None, None, True)
    assert ada["notes"] == ["the time of ada.ipynb is not from 2000 to 2199"] and not bob["notes"]


def test_nbgraders_folder_under_another_name(tmp_path):
    stamp = b"2026-11-20 17:00:00 UTC"
    laid(tmp_path / "a", "ada/ps1/02.ipynb", ("ada/ps1/timestamp.txt", stamp), "bob/ps1/02.ipynb", ("bob/ps1/timestamp.txt", stamp))
    assert students(tmp_path / "a", deadline=DEADLINE) == [("ada", "", False), ("bob", "", False)]
    laid(tmp_path / "b", "ada/ps1/02.ipynb", "bob/ps1/02.ipynb", ("bob/ps1/timestamp.txt", stamp))  # bob's own
    assert students(tmp_path / "b", deadline=DEADLINE) == [("ada", "", None), ("bob", "", None)]
    assert students(tmp_path / "b", deadline=DEADLINE, layout="nbgrader") == [("ada", "", None), ("bob", "", False)]


@pytest.mark.parametrize("text", [
    "Friday, 20 November 2026, 6:59 PM", "Friday, November 20, 2026, 6:59 PM", "Freitag, 20. November 2026, 18:59",
    "vendredi 20 novembre 2026, 18:59", "vendredi 20 novembre 2026 à 18h59", "viernes, 20 de noviembre de 2026, 18:59",
    "venerdì, 20 novembre 2026, 18:59", "sexta-feira, 20 de novembro de 2026 às 18:59", "vrijdag, 20 november 2026, 18:59",
    "2026年11月20日(金曜日) 18:59", "2026-11-20 18:59", "2026-11-20T17:59Z", "Friday, 20 November 2026, 06:59\u202fPM"])
def test_times_of_the_worksheet(tmp_path, text):
    path = sheet(tmp_path / "w.csv", f'Participant 17,Ada,a@x.edu,Submitted,,,"{text}",-')
    assert moodle.worksheet(path, BERLIN)["17"].time == datetime(2026, 11, 20, 18, 59, tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize("text, hour", [("12:00 AM", 0), ("12:30 AM", 0), ("12:00 PM", 12), ("1:00 PM", 13), ("0:00", 0), ("23:00", 23)])
def test_twelve_hours_twice_a_day(tmp_path, text, hour):
    path = sheet(tmp_path / "w.csv", f'Participant 17,Ada,a@x.edu,Submitted,,,"Tuesday, 3 March 2026, {text}",-')
    assert datetime.fromtimestamp(moodle.worksheet(path, BERLIN)["17"].time, BERLIN).hour == hour


@pytest.mark.parametrize("text", ["20/11/26, 17:59", "perjantai, 20. marraskuuta 2026, 17:59", "Friday, 31 February 2026, 5:59 PM", "soon",
                                  "Friday, 20 November 2026", "Friday, 20 November 2026, 13:00 PM", "Friday, 20 November 2026, 25:00"])
def test_a_time_that_is_not_understood_is_one_sentence(tmp_path, text):
    path = sheet(tmp_path / "w.csv", 'Participant 16,Bob,,,,,-,-', f'Participant 17,Ada,a@x.edu,Submitted,,,"{text}",-')
    with pytest.raises(ValueError) as error:
        moodle.worksheet(path, BERLIN)
    assert str(error.value) == (f"{path}: line 3 has the time {text!r}, which is not understood: download the worksheet with Moodle in "
                                "English, or write the time like 2026-11-20 17:59.")


@pytest.mark.parametrize("rows, told", [
    (["Ada,Ada,,,,,-,-"], "line 2 begins with 'Ada', and an identifier like Participant 17 is needed."),
    (["Participant 1,A,,,,,-,-", "Participant 1,B,,,,,-,-"], "line 3 has participant 1 a second time.")])
def test_a_worksheet_that_is_none_is_one_sentence(tmp_path, rows, told):
    path = sheet(tmp_path / "w.csv", *rows)
    with pytest.raises(ValueError) as error:
        moodle.worksheet(path)
    assert str(error.value) == f"{path}: {told}"


def test_a_file_that_is_no_worksheet_is_one_sentence(tmp_path):
    for content in (b"", b"Identifier,Full name\nParticipant 1,Ada\n", b"\x00" * 100):
        (tmp_path / "w.csv").write_bytes(content)
        with pytest.raises(ValueError, match='has no column "Last modified'):
            moodle.worksheet(tmp_path / "w.csv")
    with pytest.raises(FileNotFoundError):
        moodle.worksheet(tmp_path / "none.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("head", [
    "Identifier,Full name,Email address,Last modified (submission)", "ID,Vollständiger Name,E-Mail-Adresse,Zuletzt geändert (Abgabe)",
    "Identifiant,Nom complet,Adresse de courriel,Dernière modification (travail remis)",
    "Identificador,Nombre completo,Dirección de correo,Última modificación (entrega)"])
def test_the_worksheet_in_other_languages_and_as_a_spreadsheet_saves_it(tmp_path, head, separator):
    rows = head, "Participant 17,Ada,ada@x.edu,2026-11-20 17:59"
    (tmp_path / "w.csv").write_text("\r\n".join(rows).replace(",", separator), "utf-8-sig", newline="")
    when = datetime(2026, 11, 20, 17, 59, tzinfo=UTC).timestamp()
    assert moodle.worksheet(tmp_path / "w.csv", UTC) == {"17": moodle.Participant("17", "Ada", "ada@x.edu", "", when)}


@given(st.text(max_size=60))
def test_any_time_is_one_or_refused(text):
    try:
        assert isinstance(moodle._time(text, UTC), float | None)
    except ValueError:
        pass


def test_zones():
    assert times.parse_time("2026-11-23T18:00", BERLIN).isoformat() == "2026-11-23T18:00:00+01:00"
    assert times.parse_time("2026-07-23T18:00", BERLIN).isoformat() == "2026-07-23T18:00:00+02:00"
    assert times.parse_time("2026-07-23T18:00Z", BERLIN).isoformat() == "2026-07-23T18:00:00+00:00"
    with pytest.raises(ValueError, match="'Mars/Olympus' is no time zone: write it like Europe/Berlin or UTC."):
        times.zone("Mars/Olympus")


# Canvas


def test_canvas_names(tmp_path):
    """instructure/canvas-lms, lib/content_zipper.rb: word characters in lower case; LATE in upper case is Canvas's own."""
    laid(tmp_path, "lovelaceada_101_9001_02-1.ipynb", "x_late_102_9002_02.ipynb", "x_LATE_103_9003_7_8_02.ipynb", "_104_9004_02.ipynb",
         "van_der_berg_105_9005_02.ipynb", "名前_106_9006_02.ipynb", ("bob_107_text.html", b"<p>hi"), ("cyd_LATE_108_link.html", b""),
         ("dan_109_9009_photo.jpg", b""), "हिन्दी_110_9010_02.ipynb")
    assert students(tmp_path, deadline=DEADLINE) == sorted([
        ("lovelaceada", "101", False), ("x_late", "102", False), ("x", "103", True), ("user 104", "104", False),
        ("van_der_berg", "105", False), ("名前", "106", False), ("bob", "107", False), ("cyd", "108", True), ("dan", "109", False),
        ("हिन्दी", "110", False)])
    nothing = {entry.student: (entry.status, entry.reason) for entry in ingest.collect(tmp_path, NN) if entry.status}
    assert nothing == {name: ("unreadable", f"there is no notebook of {NN} in it, only {file}") for name, file in (
        ("bob", "bob_107_text.html"), ("cyd", "cyd_LATE_108_link.html"), ("dan", "dan_109_9009_photo.jpg"))}


def test_the_name_of_a_students_file_is_what_canvas_and_moodle_put_their_own_before(tmp_path):
    laid(tmp_path / "canvas", "23_1077_19770_02.ipynb", "ada_7_8_03_log-1.ipynb", "anon_9_10_02.ipynb")
    laid(tmp_path / "moodle", "03_7_assignsubmission_file_02.ipynb", "Ada_8_assignsubmission_file_03_log.ipynb")
    told = "it has another assignment's name, {}, and was handed in for this one".format
    for platform, name in (("canvas", "03_log-1.ipynb"), ("moodle", "03_log.ipynb")):
        notes = [note for entry in ingest.collect(tmp_path / platform, NN) for note in entry.notes if "another assignment" in note]
        assert notes == [told(name)]


def test_canvas_without_names(tmp_path):
    laid(tmp_path, "anon_AbC12_9001_02.ipynb", "LATE_anon_xYz99_9002_77_02.ipynb", ("anon_12345_text.html", b""),
         "anon_AbC12_9004_02-1.ipynb")
    assert students(tmp_path) == [("anon_12345", "", False), ("anon_AbC12", "", False), ("anon_xYz99", "", True)]
    (tmp_path / "more").mkdir()
    laid(tmp_path / "more", "anon_101_9001_02.ipynb", "bob_102_9002_02.ipynb")  # a person of that name
    assert students(tmp_path / "more") == [("anon", "101", False), ("bob", "102", False)]


def test_a_name_that_reads_as_anothers_number_has_none(tmp_path):
    """Canvas takes "_1_" out of a name, and leaves "_1" at its end: mal_1, user 123, is written as mal's user 1."""
    laid(tmp_path / "other", "x_١_101_9001_02.ipynb", "bob_2_9003_02.ipynb")  # digits, but none of Canvas's
    assert students(tmp_path / "other") == [("bob", "2", False), ("x_١", "101", False)]
    laid(tmp_path, "vic_1_9001_02.ipynb", "mal_1_123_9002_02.ipynb", "bob_2_9003_02.ipynb")
    shutil.rmtree(tmp_path / "other")
    assert students(tmp_path) == [("bob", "2", False), ("mal", "", False), ("vic", "1", False)]
    notes = {entry.student: entry.notes for entry in ingest.collect(tmp_path, NN)}
    told = "its name may be that of mal (user 1) or mal_1 (user 123): whose it is, is to be seen on Canvas"
    assert told in notes["mal"] and not notes["vic"] and not notes["bob"]
    laid(tmp_path / "two", "ada_1_9001_02.ipynb", "vic_1_9002_02.ipynb")  # made by hand: Canvas gives a number to one name
    assert students(tmp_path / "two") == [("ada", "", False), ("vic", "", False)]


@pytest.mark.parametrize("name, readings", [
    ("mal_1_123_9002_02.ipynb", [("mal", "1"), ("mal_1", "123")]), ("mal_1_123_text.html", [("mal", "1"), ("mal_1", "123")]),
    ("mal_1_123_9002_4711_02.ipynb", [("mal", "1"), ("mal_1", "123"), ("mal_1_123", "9002")]),
    ("mal_1_123_x_777_9002_02.ipynb", [("mal", "1"), ("mal_1_123_x", "777")]),
    ("mal_1_LATE_123_9002_02.ipynb", [("mal_1", "123")]), ("mal_LATE_123_9002_4711_02.ipynb", [("mal", "123")]),
    ("ada_101_9001_02_linear_quantization-1.ipynb", [("ada", "101")]), ("ada_101_9001_12_int8_matmul.ipynb", [("ada", "101")]),
    ("ada_101_9001_HW_1_2026_final.ipynb", [("ada", "101")]), ("ada_101_9001_my work_1_2026_a.ipynb", [("ada", "101")]),
    ("ada_101_9001_text.html", [("ada", "101"), ("ada_101", "9001")]), ("_104_9004_02.ipynb", [("", "104")]), ("ada.ipynb", []),
    ("agent_007_123_9002_02.ipynb", [("agent_007", "123")])])
def test_all_that_a_name_of_canvas_may_say(name, readings):
    assert [one[:2] for one in canvas.readings(name)] == readings


def test_the_newest_upload_counts_of_a_name_that_ends_in_digits(tmp_path):
    laid(tmp_path, "agent_007_123_9010_02.ipynb", "agent_007_123_9002_02-1.ipynb", "mal_1_124_9004_02.ipynb", "mal_1_124_9003_02-1.ipynb")
    assert sorted((entry.student, entry.source) for entry in ingest.collect(tmp_path, NN) if not entry.duplicate_of) == [
        ("agent_007", "agent_007_123_9010_02.ipynb"), ("mal", "mal_1_124_9004_02.ipynb")]


def test_nobody_gets_a_mark_under_a_number_that_is_in_doubt(tmp_path):
    laid(tmp_path / "in", "mal_1_123_9002_02.ipynb", "bob_2_9003_4711_02.ipynb", "cyd_3_9004_02.ipynb")  # user 1 handed nothing in
    assert students(tmp_path / "in") == [("bob", "", False), ("cyd", "3", False), ("mal", "", False)]
    told = exports.export("canvas", graded(tmp_path / "in"), BUNDLE, tmp_path)
    assert told.endswith("canvas.csv, 1 row, 2 in doubt whose they are left out: bob, mal")
    assert [row[:2] for row in table((tmp_path / "canvas.csv").read_text())[2:]] == [["cyd", "3"]]
    path = tmp_path / "gradebook.csv"
    path.write_text("Student,ID,SIS Login ID,Section,02 (7)\n    Points Possible,,,,12\nVic,1,,,\nBob,2,,,\nCyd,3,,,\nMal 1,123,,,\n")
    users = canvas.users(path)
    assert students(tmp_path / "in", users=users) == [("bob", "2", False), ("cyd", "3", False), ("mal", "", False)]
    with pytest.raises(ValueError, match="Canvas's gradebook was given, and .* is not laid out as Canvas does it"):
        students(laid(tmp_path / "plain", "ada.ipynb"), users=users)
    path.write_text("Student,ID\nPoints Possible,\n")
    with pytest.raises(ValueError, match="has no user's number in its column ID: give the gradebook that Canvas exports"):
        canvas.users(path)


def test_numbers_decide_and_not_the_form_of_a_name(tmp_path):
    composed, apart = (unicodedata.normalize(form, "josé") for form in ("NFC", "NFD"))
    entries = {f"{composed}_101_9001_02.ipynb": None, f"{apart}_101_9002_02-1.ipynb": None, f"{apart}_102_9003_02.ipynb": None}
    (tmp_path / "class.zip").write_bytes(zipped(entries))
    found = ingest.collect(tmp_path / "class.zip", NN)
    assert [entry.source for entry in found if entry.duplicate_of] == [f"{composed}_101_9001_02.ipynb"]
    assert {entry.number for entry in found if not entry.duplicate_of} == {"101", "102"}
    note = [note for entry in found if entry.number == "102" for note in entry.notes]
    assert any(text.startswith("another student is called") for text in note)


@pytest.mark.parametrize("one, two", [("José", "José"), ("ada", "Ada"), ("ada", "ada\u200f"), ("Straße", "STRASSE")])
def test_names_that_look_alike_are_two_where_no_number_says_otherwise(tmp_path, one, two):
    one, two = unicodedata.normalize("NFC", one), two if one != two else unicodedata.normalize("NFD", two)
    (tmp_path / "class.zip").write_bytes(zipped({f"{one}.ipynb": None, f"{two}.ipynb": None}))
    found = ingest.collect(tmp_path / "class.zip", NN)
    assert {entry.student for entry in found} == {one, two} and not any(entry.duplicate_of for entry in found)
    assert all(any("another student is called" in note for note in entry.notes) for entry in found)


# Moodle


def test_moodle_folders(tmp_path):
    """moodle/moodle, mod/assign/classes/downloader.php, and locallib.php before it."""
    laid(tmp_path, "Ada, Countess_17_assignsubmission_file_/02.ipynb", "José Ñuñez_18_assignsubmission_file/deep/02.ipynb",
         ("Bob_19_assignsubmission_onlinetext/onlinetext.html", b"<p>hi"), "Cyd_20_assignsubmission_file_02.ipynb",
         ("Ada, Countess_17_assignsubmission_onlinetext_/onlinetext.html", b""), "Eve_21_assignsubmission_file_/")
    assert students(tmp_path, deadline=DEADLINE) == [
        ("Ada, Countess", "17", None), ("Bob", "19", None), ("Cyd", "20", None), ("Eve", "21", None), ("José Ñuñez", "18", None)]
    reasons = {entry.student: entry.reason for entry in ingest.collect(tmp_path, NN) if entry.status}
    assert reasons == {"Bob": f"there is no notebook of {NN} in it, only onlinetext.html", "Eve": "it is empty"}


@pytest.mark.parametrize("word", ["Participant", "Teilnehmer in", "参加者"])
def test_moodle_without_names(tmp_path, word):
    laid(tmp_path, *(f"{word}_{number}_assignsubmission_file/02.ipynb" for number in (7, 8)))
    assert students(tmp_path) == [(f"{word} 7", "7", False), (f"{word} 8", "8", False)]


def test_one_of_moodles_participants(tmp_path):
    for name in ("Participant_123_assignsubmission_file_", "Participant 123_assignsubmission_onlinetext"):
        laid(tmp_path / name, f"{name}/02.ipynb")
        assert students(tmp_path / name) == [("Participant 123", "123", False)]
    laid(tmp_path / "team", "Team - Ada_123_assignsubmission_file/02.ipynb")
    assert students(tmp_path / "team") == [("Team - Ada", "123", False)]


@pytest.mark.parametrize("word", ["Participant", "Teilnehmer in"])
def test_moodle_without_names_and_with_the_worksheet(tmp_path, word):
    laid(tmp_path / "in", *(f"{word}_{number}_assignsubmission_file/02.ipynb" for number in (7, 8, 9)))
    path = sheet(tmp_path / "w.csv", "Participant 7,Ada,a@x.edu,,,,2026-11-20 17:00,-", "Participant 8,,,,,,2026-11-20 19:00,-")
    assert students(tmp_path / "in", deadline=DEADLINE, participants=moodle.worksheet(path, UTC)) == sorted([
        ("Ada", "7", False), (f"{word} 8", "8", True), (word, "", None)])
    path = sheet(tmp_path / "w.csv", "Participant 7,2026-11-20 17:00", "Participant 8,-", head="Identifier,Last modified (submission)")
    assert students(tmp_path / "in", deadline=DEADLINE, participants=moodle.worksheet(path, UTC)) == sorted([
        (f"{word} 7", "7", False), (f"{word} 8", "8", None), (word, "", None)])


def test_a_team_named_after_another_participant(tmp_path):
    laid(tmp_path / "in", "Team Ada_17_assignsubmission_file/02.ipynb")
    path = sheet(tmp_path / "w.csv", "Participant 17,Ada,,,Team B,,-,-", "Participant 18,Bob,,,Team Ada,,-,-")
    assert students(tmp_path / "in", participants=moodle.worksheet(path, UTC)) == [("Bob", "18", False)]


def test_teams_of_signs_alone_are_told_apart(tmp_path):
    laid(tmp_path / "in", "★_1_assignsubmission_file/02.ipynb", "♥_2_assignsubmission_file/02.ipynb")
    path = sheet(tmp_path / "w.csv", "Participant 11,Ada,,,★,,-,-", "Participant 12,Bob,,,♥,,-,-")
    found = ingest.collect(tmp_path / "in", NN, participants=moodle.worksheet(path, UTC))
    assert [(entry.student, entry.source[0]) for entry in found] == [("Ada", "★"), ("Bob", "♥")]


SIGNS = "Group 1-1", "Group 11", "C", "C++", "C#", "A.B", "AB", "x & y", "x y", "R:S", "\u2605", "Team_Z"
IN_FOLDERS = "Group 1-1", "Group 11", "C", "C++", "C#", "A.B", "AB", "x  y", "x y", "RS", "\u2605", "Team Z"


def test_teams_whose_names_differ_in_signs_are_told_apart(tmp_path):
    """Moodle takes & and : out, and makes "_" a space: "x & y" is written "x  y", or "x amp; y" where the site escapes."""
    path = sheet(tmp_path / "w.csv", *(f'Participant {k},S{k},,,"{name}",,-,-' for k, name in enumerate(SIGNS, 101)))
    known = moodle.worksheet(path, UTC)
    for folders in (IN_FOLDERS, tuple(name.replace("x  y", "x amp; y") for name in IN_FOLDERS)):
        place = laid(tmp_path / folders[7], *(f"{name}_{k}_assignsubmission_file_/02.ipynb" for k, name in enumerate(folders, 1)))
        whose = {entry.source.split("_")[0]: entry.student for entry in ingest.collect(place, NN, participants=known)}
        assert whose == {name: f"S{k}" for k, name in enumerate(folders, 101)}


@pytest.mark.parametrize("folders, groups, whose", [
    (["c_1"], ["C"], {"c": "S0"}), (["Group 1 1_1"], ["Group 1-1"], {"Group 1 1": "S0"}), (["C_1"], ["C++", "C#"], {"C": "C"}),
    (["C_1", "C++_2"], ["C++"], {"C": "C", "C++": "S0"}), (["AB_1"], ["A:B", "AB"], {"AB": "AB"}), (["C_1"], ["C", "C<x>"], {"C": "C"}),
    (["A-B_1", "A B_2"], ["A+B"], {"A-B": "A-B", "A B": "A B"})])
def test_a_team_in_doubt_is_nobodys(tmp_path, folders, groups, whose):
    laid(tmp_path / "in", *(f"{name}_assignsubmission_file_/02.ipynb" for name in folders))
    path = sheet(tmp_path / "w.csv", *(f'Participant {k + 101},S{k},,,"{name}",,-,-' for k, name in enumerate(groups)))
    found = ingest.collect(tmp_path / "in", NN, participants=moodle.worksheet(path, UTC))
    assert {entry.source.split("_")[0]: entry.student for entry in found} == whose
    for entry in found:
        doubt = entry.student == entry.source.split("_")[0]
        assert bool(entry.number) != doubt
        assert doubt == any(note.startswith("it may be that of the group ") or note == "it is not in the worksheet" for note in entry.notes)


def test_namesakes_of_moodle_keep_their_name(tmp_path):
    laid(tmp_path, *(f"{name}_assignsubmission_file/02.ipynb" for name in ("Ada_7", "Ada_8", "Bob_9")))
    assert students(tmp_path) == [("Ada", "7", False), ("Ada", "8", False), ("Bob", "9", False)]


def test_the_worksheet_says_when_and_who(tmp_path):
    laid(tmp_path / "in", *(f"{name}_assignsubmission_file/02.ipynb" for name in ("Ada_17", "Bob_18", "Cyd_19", "Dan_20", "Team A-Eve_21")),
         "Mal_17_assignsubmission_onlinetext/02.ipynb")
    path = sheet(tmp_path / "w.csv", 'Participant 17,Ada,a@x.edu,,,,"Friday, 20 November 2026, 7:00 PM",-',
                 'Participant 18,Bob,b@x.edu,,,,"Friday, 20 November 2026, 7:01 PM",-', "Participant 19,Cyd,c@x.edu,,,,-,-",
                 'Participant 21,Eve,e@x.edu,,Team A,,"Friday, 20 November 2026, 6:00 PM",-')
    found = ingest.collect(tmp_path / "in", NN, deadline=DEADLINE, participants=moodle.worksheet(path, BERLIN))
    assert [(entry.student, entry.number, entry.email, entry.late) for entry in found] == [
        ("Ada", "17", "a@x.edu", False), ("Bob", "18", "b@x.edu", True), ("Cyd", "19", "c@x.edu", None), ("Dan", "", None, None),
        ("Eve", "21", "e@x.edu", False), ("Mal", "", None, None)]
    notes = {entry.student: entry.notes for entry in found}
    assert "it is not in the worksheet" in notes["Dan"] and "the worksheet calls participant 17 Ada" in notes["Mal"]


def test_a_team_of_moodles_is_its_members(tmp_path):
    """Since 4.1 a team's folder has the group's number, which may be another participant's."""
    laid(tmp_path / "in", "Team A_17_assignsubmission_file/02.ipynb", "Default group_assignsubmission_file/02.ipynb")
    path = sheet(tmp_path / "w.csv", 'Participant 17,Vic,v@x.edu,,Default group,,"Friday, 20 November 2026, 7:01 PM",-',
                 'Participant 18,Ada,a@x.edu,,Team_A,,"Friday, 20 November 2026, 6:00 PM",-',
                 'Participant 19,Bob,b@x.edu,,Team_A,,"Friday, 20 November 2026, 6:00 PM",-')
    known = moodle.worksheet(path, BERLIN)
    assert students(tmp_path / "in", deadline=DEADLINE, participants=known) == [
        ("Ada", "18", False), ("Bob", "19", False), ("Vic", "17", True)]
    assert students(tmp_path / "in", deadline=DEADLINE) == [("Default group", "", None), ("Team A", "17", None)]


def test_a_worksheet_of_another_platforms_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a Moodle worksheet was given, and .* is not laid out as Moodle does it"):
        students(laid(tmp_path, "ada.ipynb"), participants={})


# Gradescope


def test_gradescopes_groups_and_times(tmp_path):
    laid(tmp_path, "export/submission_7/02.ipynb", "export/submission_8/02.ipynb", "export/submission_9/02.ipynb",
         ("export/submission_metadata.yml", YML.encode()))
    assert students(tmp_path, deadline=DEADLINE) == [
        ("Ada Lovelace", "4711", False), ("Bob", "4712", True), ("Cyd", "", True), ("Dan", "", True), ("Eve", "", True),
        ("submission_9", "", None)]
    assert {entry.student: entry.email for entry in ingest.collect(tmp_path, NN)}["Ada Lovelace"] == "Ada@example.edu"


@pytest.mark.parametrize("when, late", [
    ("2026-11-20 18:00:00", False), ("2026-11-20T18:00:01Z", True), ("2026-11-20 18:00:00.117497000 Z", True),
    ("2026-11-20 10:00:00 -0800", False),
    ("2026-11-20 10:00:00 -08:00", False), ("[]", None), ("9999-99-99", None), ("2026-11-20", None)])
def test_gradescopes_times(tmp_path, when, late):
    told = f"submission_7:\n  :created_at: {when}\n  :submitters:\n  - :name: A"
    laid(tmp_path, "submission_7/02.ipynb", (layouts.METADATA, told.encode()))
    assert students(tmp_path, deadline=DEADLINE) == [("A", "", late)]


def test_a_file_that_gradescope_names_is_a_hand_in(tmp_path):
    told = "02.ipynb:\n  :submitters:\n  - :name: Ada\n    :sid: '007'\nbob.ipynb:\n  :submitters:\n  - :name: Bob\n    :sid: 8\n"
    laid(tmp_path, "02.ipynb", "bob.ipynb", (layouts.METADATA, told.encode()))
    assert students(tmp_path) == [("Ada", "007", False), ("Bob", "8", False)]


def test_metadata_of_any_bytes_stops_nothing():
    for content in (b"\xff", b"&a [*a]", b"[" * 10**5, b"a: 1", b"submission_7: {:submitters: [1, null, {:name: [1]}]}"):
        assert isinstance(gradescope.people(content), dict)


# Any names at all

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=20) | st.sampled_from(
    ["ada_1_2_x.ipynb", "anon_a_1_x.ipynb", "Ada_1_assignsubmission_file_", "submission_7", "submitted", layouts.METADATA, "ada.zip",
     "02.ipynb", "timestamp.txt", "exercises", "notebooks", "03_log", "Points Possible"])


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4).map(tuple), max_size=6), st.sampled_from([None, *layouts.NAMES]))
def test_any_names_have_owners_or_one_sentence(paths, given_layout):
    found = [files.File(parts, kind=files.kind_of(parts[-1])) for parts in paths]
    try:
        layout = layouts.detect(found, NN, "in", given_layout)
    except ValueError as error:
        assert str(error).endswith(".")
        return
    whose = owners.owners(found, layout, NN)
    assert len(whose) == len(found) and all(isinstance(owner.name, str) and owner.name for of in whose for owner in of)
    depth = len(layout.root) + 1 + (layout.name == "sections")
    keys = {}
    for file, of in zip(found, whose):  # what lies below one outermost name is one hand-in's
        if len(file.parts) > depth and of and not layout.student:
            assert keys.setdefault(file.parts[:depth], {owner.key for owner in of}) == {owner.key for owner in of}


# What the tables and zips for the platforms make of it

BUNDLE = {"assignment": NN, "digest": "d0", "questions": [{"id": "q1", "points": 2}]}


def graded(place, **options):
    """Results with full marks of what counts, as a batch makes them."""
    question = {"id": "q1", "points": 2, "score": 2, "state": "passed", "reason": "All tests pass.", "note": "", "failed_case": None,
                "public_failed": None, "answers_like": None}
    marks = {"questions": [question], "score": 2, "max_score": 2, "limits": {}, "stdout_tail": ""}
    return [results.make(entry, BUNDLE, None if entry.status else marks) for entry in ingest.collect(place, NN, **options)]


def table(text):
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_a_student_called_points_possible_is_no_row_of_points(tmp_path):
    """instructure/canvas-lms, lib/gradebook_importer.rb, check_for_non_student_row: row[0]&.include?("Points Possible")."""
    yml = "submission_7:\n  :submitters:\n  - :name: Points Possible\n    :sid: 4711\n"
    rows = table(exports.canvas(graded(laid(tmp_path, "submission_7/02.ipynb", (layouts.METADATA, yml.encode()))), BUNDLE))
    assert [row[0] for row in rows if "Points Possible" in row[0]] == ["    Points Possible"]
    assert rows[2] == ["Points-Possible", "", "4711", "", "", "2"]


def test_canvas_gets_its_own_numbers_back_and_no_others(tmp_path):
    laid(tmp_path, "ada_101_9001_02.ipynb", "vic_1_9002_02.ipynb", "mal_1_123_9003_02.ipynb", ("bob_107_text.html", b""))
    assert [row[:2] for row in table(exports.canvas(graded(tmp_path), BUNDLE))[2:]] == [
        ["ada", "101"], ["bob", "107"], ["mal", ""], ["vic", "1"]]
    head, *rows = table(exports.gradebook(graded(tmp_path), BUNDLE))
    assert [(row[0], row[head.index("score")], row[head.index("status")]) for row in rows] == [
        ("ada", "2", "graded"), ("bob", "0", "unreadable"), ("mal", "2", "graded"), ("vic", "2", "graded")]


def test_the_gradebook_says_that_lateness_is_not_known(tmp_path):
    laid(tmp_path, "ada_LATE_101_9001_02.ipynb", "bob_102_9002_02.ipynb")
    head, *rows = table(exports.gradebook(graded(tmp_path), BUNDLE))
    assert [row[head.index("late")] for row in rows] == ["late", ""]
    (made,) = graded(laid(tmp_path / "plain", "ada.ipynb"), deadline=DEADLINE)
    head, row = table(exports.gradebook([made], BUNDLE))
    assert made["submission"]["late"] is None and row[head.index("late")] == "not known"
    assert "late" not in feedback.page(made)


def test_moodle_gets_each_member_of_a_team_by_their_own_number(tmp_path):
    laid(tmp_path / "in", "Team A_17_assignsubmission_file/02.ipynb", "Mal_99_assignsubmission_file/02.ipynb")
    path = sheet(tmp_path / "w.csv", "Participant 17,Vic,v@x.edu,,Team B,,-,-", "Participant 18,Ada,a@x.edu,,Team A,,-,-",
                 "Participant 19,Bob,b@x.edu,,Team A,,-,-")
    made = graded(tmp_path / "in", participants=moodle.worksheet(path, UTC))
    assert [row[:2] for row in table(tables.table(made))[1:]] == [["Participant 18", "Ada"], ["Participant 19", "Bob"], ["", "Mal"]]
    text, told = tables.filled(path, made)
    assert [(row[0], row[5]) for row in table(text)[1:]] == [("Participant 17", ""), ("Participant 18", "2"), ("Participant 19", "2")]
    assert "not in it: 1 of those graded: Mal" in told
    content, _ = given_back.packed("moodle", made)
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["Team A_17_assignsubmission_file/feedback.html"]  # as it was given out


@pytest.fixture
def all_right(tmp_path, monkeypatch):
    """The command, in a folder with a bundle of one question of 2 points, which everybody answers rightly."""
    bundle = {"format": 1, "assignment": NN, "questions": [{"id": "q1", "points": 2, "answer_cell": "q1"}]}
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / f"{NN}.json.gz").write_bytes(gzip.compress(json.dumps(bundle | {"digest": results.digest(bundle)}).encode()))
    question = {"id": "q1", "points": 2, "score": 2, "state": "passed", "reason": "All tests pass.", "note": "", "failed_case": None,
                "public_failed": None, "answers_like": None}
    marks = {"questions": [question], "score": 2, "max_score": 2, "limits": {}, "stdout_tail": ""}
    monkeypatch.setattr(grade, "run_here", lambda todo, *_, **__: ((entry, marks, 0.0) for entry in todo))
    monkeypatch.chdir(tmp_path)
    return lambda *args: grade.main(["in", "--assignment", "02", *args])


def test_the_command_with_moodles_worksheet(tmp_path, all_right, capsys):
    laid(tmp_path / "in", "Ada_17_assignsubmission_file/02.ipynb", "Bob_18_assignsubmission_file/02.ipynb",
         ("Cyd_19_assignsubmission_onlinetext/onlinetext.html", b"<p>hi"), "Dan_20_assignsubmission_file/02.ipynb")
    sheet(tmp_path / "w.csv", 'Participant 17,Ada,a@x.edu,,,,"Friday, 20 November 2026, 6:00 PM",-',
          'Participant 18,Bob,b@x.edu,,,,"Friday, 20 November 2026, 6:01 PM",-', 'Participant 19,Cyd,c@x.edu,,,,"2026-11-20 17:00",-',
          "Participant 20,Dan,d@x.edu,,,,-,-", "Participant 21,Eve,e@x.edu,,,,-,-")
    options = "--deadline", "2026-11-20T18:00", "--time-zone", "Europe/Berlin"
    assert all_right(*options, "--moodle-worksheet", "w.csv", "--export", "csv", "moodle", "html") == 0
    out = capsys.readouterr().out
    assert out.startswith("deadline: 2026-11-20 18:00, CET (UTC+01:00)\n")
    assert "\n02_linear_quantization: 4 handed in by 4 students\n" in out
    assert "  late            1  (nothing is subtracted)\n  late?           1  (not known: nothing says when they were handed in)\n" in out
    exported = tmp_path / "results" / NN / "export"
    head, *rows = table((exported / "gradebook.csv").read_text("utf-8"))
    assert [[row[head.index(name)] for name in ("student", "email", "number", "score", "late", "status")] for row in rows] == [
        ["Ada", "a@x.edu", "17", "2", "", "graded"], ["Bob", "b@x.edu", "18", "2", "late", "graded"],
        ["Cyd", "c@x.edu", "19", "0", "", "unreadable"], ["Dan", "d@x.edu", "20", "2", "not known", "graded"]]
    assert [(row[0], row[5]) for row in table((exported / "moodle.csv").read_text("utf-8"))[1:]] == [
        ("Participant 17", "2"), ("Participant 18", "2"), ("Participant 19", "0"), ("Participant 20", "2"), ("Participant 21", "")]
    kept = {made["submission"]["student"]: made["submission"] for made in map(json.loads, (path.read_text() for path in (
        tmp_path / "results" / NN).glob("*.json")))}
    assert {name: (who["late"], who["number"], who["platform"]) for name, who in kept.items()} == {
        "Ada": (False, "17", "moodle"), "Bob": (True, "18", "moodle"), "Cyd": (False, "19", "moodle"), "Dan": (None, "20", "moodle")}
    pages = {name: (exported / "feedback" / f"{who['id']}.html").read_text() for name, who in kept.items()}
    assert [name for name, page in pages.items() if "late" in page] == ["Bob"]


def test_a_class_of_moodles_is_not_late_by_its_download(tmp_path, all_right, capsys):
    laid(tmp_path / "in", *(f"S_{number}_assignsubmission_file/02.ipynb" for number in range(5)))
    assert all_right("--deadline", "2001-01-01T00:00", "--export", "csv", "canvas", "moodle", "html", "gradescope") == 0
    out = capsys.readouterr().out
    assert "  late?           5  (not known" in out and "  late  " not in out
    assert not any("late" in path.read_text() for path in (tmp_path / "results" / NN / "export" / "feedback").iterdir())


def test_the_command_says_in_a_sentence_what_it_cannot_tell(tmp_path, all_right, capsys):
    laid(tmp_path / "in", "ada_101_9001_02.ipynb", "mal.ipynb")
    for args, told in ((), "say --layout canvas or --layout plain."), (("--time-zone", "Mars"), "'Mars' is no time zone"), (
            ("--moodle-worksheet", "none.csv"), "there is no file none.csv"), (
            ("--layout", "plain", "--moodle-worksheet", "w.csv"), "a Moodle worksheet was given"):
        sheet(tmp_path / "w.csv")
        with pytest.raises((ValueError, OSError), match=told):
            all_right(*args)
    assert not (tmp_path / "results").exists()
    assert all_right("--layout", "canvas", "--export", "canvas") == 0
    rows = table((tmp_path / "results" / NN / "export" / "canvas.csv").read_text("utf-8"))
    assert [row[:2] + row[5:] for row in rows[2:]] == [["ada", "101", "2"], ["mal", "", "2"]]
