"""Exports replace the former one as a whole, go back to Canvas and Moodle under their names, and let no text of a student's do harm."""

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_report import BUNDLE, PUBLIC, SECRET, parsed, result, rows

from qlab import saving
from qlab.grading import results
from qlab.grading.report import classroom, exports, feedback, given_back, late, moodle, text, whole
from qlab.grading.report.final import final


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# As a whole


@pytest.mark.parametrize("name", ["html", "gradescope"])
def test_who_is_gone_is_in_no_export(tmp_path, name):
    place = tmp_path / {"html": "feedback"}.get(name, name)
    exports.export(name, [result("Ada"), result("Bob")], BUNDLE, tmp_path)
    exports.export("csv", [result("Ada")], BUNDLE, tmp_path)
    assert [path.name.split("-")[0] for path in sorted(place.iterdir())] == ["ada", "bob"]
    exports.export(name, [result("Bob")], BUNDLE, tmp_path)
    assert [path.name.split("-")[0] for path in place.iterdir()] == ["bob"]
    exports.export(name, [], BUNDLE, tmp_path)
    assert not list(place.iterdir()) and sorted(path.name for path in tmp_path.iterdir()) == sorted([place.name, "gradebook.csv"])


@pytest.mark.parametrize("way", ["in one step", "in two steps"])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, way):
    if way == "in two steps":
        monkeypatch.setattr(whole.ctypes, "CDLL", lambda *args, **options: object())
    for files in ({"a": b"1", "b/c": b"2"}, {"b/c": "\u00fc"}, {}, {"d": b""}):
        whole.folder(tmp_path / "place", files)
        assert contents(tmp_path / "place") == {name: content if isinstance(content, bytes) else content.encode()
                                                for name, content in files.items()}
        assert os.listdir(tmp_path) == ["place"]


def test_an_export_that_fails_leaves_the_former_one(tmp_path, monkeypatch):
    exports.export("html", [result("Ada")], BUNDLE, tmp_path)
    former = contents(tmp_path)
    create = saving._create

    def full(place, content, mode):
        if "cyd" in place.name:
            raise OSError(28, "No space left on device")
        create(place, content, mode)

    monkeypatch.setattr(saving, "_create", full)
    with pytest.raises(OSError, match="No space left on device"):
        exports.export("html", [result("Ada", q1=False), result("Bob"), result("Cyd")], BUNDLE, tmp_path)
    assert contents(tmp_path) == former


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_what_is_no_folder_is_not_replaced(tmp_path, in_the_way):
    if in_the_way == "file":
        (tmp_path / "feedback").write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "feedback").symlink_to("elsewhere")
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'feedback'}: it must be a folder, or nothing yet\\."):
        exports.export("html", [result("Ada")], BUNDLE, tmp_path)
    assert (tmp_path / "feedback").is_symlink() or (tmp_path / "feedback").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_a_killed_export_leaves_one_version_whole(tmp_path):
    program = ("import sys, itertools; from pathlib import Path; from qlab.grading.report import whole\n"
               "for k in itertools.count(int(sys.argv[2])):\n"
               "    whole.folder(Path(sys.argv[1], 'feedback'), {f'{n}.html': str(k) for n in range(30)})")
    dice, kills = random.Random(1), 0
    whole.folder(tmp_path / "export" / "feedback", {f"{n}.html": "0" for n in range(30)})
    for start in range(1, 6):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "export"), str(start * 10**6)])
        while not list((tmp_path / "export").glob(".*")) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.random() / 20)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        there = contents(tmp_path / "export" / "feedback")
        assert len(there) == 30 and len(set(there.values())) == 1
        with results.alone_in(tmp_path):  # as the next run begins
            assert os.listdir(tmp_path / "export") == ["feedback"]
    assert kills == 5


# Back to the platforms


def canvas_takes(name):
    """What Canvas makes of a feedback file's name: (user or anonymous id, upload's id), None if it ignores the file.

    As instructure/canvas-lms does, app/models/abstract_assignment.rb, infer_comment_context_from_filename.
    """
    parts = [part for part in name.split("_") if part != "LATE"]
    if parts[0] == "anon":
        user, upload = parts[1], parts[2]
    else:
        user, upload = ([part for part in parts if re.fullmatch("[0-9]+", part)] + [None, None])[:2]
    return None if re.match("link", parts[-1]) or not upload or not re.fullmatch("[0-9]+", upload) else (user, upload)


def moodle_takes(path):
    """What Moodle makes of a feedback file's path: (participant, plugin, file's name), None if it ignores the file.

    As moodle/moodle does, mod/assign/feedback/file/importziplib.php, is_valid_filename_for_import.
    """
    parts = path.split("/")
    if parts[-1][0] in ".~":
        return None
    while parts:
        info = parts.pop(0).split("_", 4)
        if len(info) >= 4 and info[1].isdigit():
            return int(info[1]), f"{info[2]}_{info[3]}", "/".join(["".join(info[4:]), *parts]).lstrip("/")
    return None


def from_platform(platform, *entries):
    return [result(f"Student {k}", id=f"s{k}", number=str(k + 17), platform=platform, entry=entry, q1=bool(k % 2))
            for k, entry in enumerate(entries)]


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_canvas_takes_its_feedback_back(tmp_path):
    names = ["lovelaceada_123_456_02.ipynb", "bobx_LATE_124_457_02_linear-1.ipynb", "anon_aB3xY_458_3_4.ipynb", "cyd_126_459_cyd.zip",
             "dan_127_460_report.pdf", "eve_128_461_page.html"]
    made = from_platform("canvas", *names, "fay_129_text.html", "gus_130_link.html")
    told = exports.export("canvas-feedback", made, BUNDLE, tmp_path)
    assert told == f"{tmp_path / 'canvas_feedback.zip'}, 5 files, 2 without a name to give theirs back under: Student 6, Student 7, " \
                   "1 left out, whose hand-in is no notebook, zip or text, so that a page under its name could not be opened: Student 4"
    files = unpacked(tmp_path / "canvas_feedback.zip")
    assert sorted(files) == sorted(name for name in names if not name.endswith(".pdf"))
    assert [canvas_takes(name) for name in names] == [("123", "456"), ("124", "457"), ("aB3xY", "458"), ("126", "459"), ("127", "460"),
                                                      ("128", "461")]
    ada = json.loads(files[names[0]])
    (output,) = ada["cells"][0]["outputs"]
    assert "Student 0" in output["data"]["text/html"] and "q1: 0 of 2. A public test fails." in output["data"]["text/plain"]
    assert zipfile.ZipFile(io.BytesIO(files[names[3]])).read("feedback.html").decode() == feedback.page(made[3])
    assert files[names[5]].decode() == feedback.page(made[5])
    assert all(SECRET.encode() not in content for content in files.values())
    before = (tmp_path / "canvas_feedback.zip").read_bytes()
    exports.export("canvas-feedback", made, BUNDLE, tmp_path)
    assert (tmp_path / "canvas_feedback.zip").read_bytes() == before


@pytest.mark.parametrize("ending, kind", [("02.IPYNB", "{"), ("02.ipynb.json", "{"), ("02.ipynb.txt", "q1: "),
                                          ("notes.md", "q1: "), ("a.py", "q1: "), ("a.htm", "<!DOCTYPE"), ("a.ZIP", "PK"),
                                          ("a.pdf", None), ("a.rar", None), ("a.7z", None), ("a.tar.gz", None),
                                          ("a.docx", None), ("a.png", None), ("02_linear", None), ("a.", None)])
def test_what_goes_back_can_be_opened_under_its_name(tmp_path, ending, kind):
    made = from_platform("canvas", f"ada_123_456_{ending}")
    told = exports.export("canvas-feedback", made, BUNDLE, tmp_path)
    files = unpacked(tmp_path / "canvas_feedback.zip")
    if kind is None:
        assert files == {} and told.endswith(", 0 files, 1 left out, whose hand-in is no notebook, zip or text, so that a page under its "
                                             "name could not be opened: Student 0")
    else:
        assert files[f"ada_123_456_{ending}"].startswith(kind.encode()) and told.endswith(", 1 file")


def test_who_cannot_be_imported_is_named(tmp_path):
    ada = result("Ada", platform="moodle", number="17")
    others = [result(f"Student {k}", id=f"s{k}") for k in range(12)]
    assert exports.export("moodle", [ada], BUNDLE, tmp_path).endswith("moodle.csv, 1 row")
    assert exports.export("moodle", [ada, *others[:2]], BUNDLE, tmp_path).endswith(
        "moodle.csv, 3 rows, 2 without Moodle's number, so that Moodle cannot import their rows (--moodle-worksheet finds them by e-mail "
        "or name): Student 0, Student 1")
    assert exports.export("moodle", others, BUNDLE, tmp_path).endswith("Student 8, Student 9 and 2 more")
    hidden = result("anon_aB3xY", platform="canvas", entry="anon_aB3xY_458_02.ipynb")
    eve = result("Eve", platform="canvas", number="3", entry="eve_3_459_02.ipynb")
    assert exports.export("canvas", [hidden, eve], BUNDLE, tmp_path).endswith(
        "canvas.csv, 2 rows, 1 without an ID, for Canvas hides their names, so that it cannot import their rows: anon_aB3xY")
    assert exports.export("canvas", [eve], BUNDLE, tmp_path).endswith("canvas.csv, 1 row")


def test_the_notebook_that_goes_back_is_one():
    import nbformat

    nbformat.validate(nbformat.reads(given_back.notebook(result("Ada", q1=False)), as_version=4))


def test_moodle_takes_its_feedback_back(tmp_path):
    made = from_platform("moodle", "Ada Lovelace_17_assignsubmission_file_", "Bob_18_assignsubmission_file",
                         "Cyd_19_assignsubmission_onlinetext_",
                         "Dan O'Neil_20_assignsubmission_file_02_linear.ipynb", "Default group_assignsubmission_file_")
    told = exports.export("moodle-feedback", made, BUNDLE, tmp_path)
    assert told == f"{tmp_path / 'moodle_feedback.zip'}, 4 files, 1 without a name to give theirs back under: Student 4"
    files = unpacked(tmp_path / "moodle_feedback.zip")
    assert sorted(moodle_takes(name) for name in files) == [
        (17, "assignsubmission_file", "feedback.html"), (18, "assignsubmission_file", "feedback.html"),
        (19, "assignsubmission_onlinetext", "feedback.html"), (20, "assignsubmission_file", "feedback.html")]
    assert files["Ada Lovelace_17_assignsubmission_file_/feedback.html"].decode() == feedback.page(made[0])


def test_a_team_gets_one_page_and_nobodys_own_marks(tmp_path):
    team = [result(name, platform="moodle", number=number, entry="Team A_7_assignsubmission_file_", source="Team A/02.ipynb")
            for name, number in (("Ada", "17"), ("Bob", "18"))]
    exports.export("moodle-feedback", team, BUNDLE, tmp_path)
    (page,) = unpacked(tmp_path / "moodle_feedback.zip").values()
    assert "Ada, Bob" in page.decode()
    team[1] = final(team[1] | {"submission": team[1]["submission"] | {"late": True, "time": 1.0, "deadline": "1970-01-01T00:00:00+00:00"}},
                    BUNDLE, rule=late.parse("50% per day"))
    told = exports.export("moodle-feedback", team, BUNDLE, tmp_path)
    assert told.endswith("0 files, 2 without a name to give theirs back under: Ada, Bob")


@pytest.mark.parametrize("platform", ["canvas", "moodle"])
def test_feedback_for_a_platform_that_nothing_came_from_is_refused(tmp_path, platform):
    with pytest.raises(ValueError, match=f"no hand-in came from {platform.capitalize()}, so there are no names"):
        exports.export(f"{platform}-feedback", [result("Ada")], BUNDLE, tmp_path)
    assert not list(tmp_path.iterdir())


# Moodle's worksheet

WORKSHEET = '''\ufeffIdentifier,"Full name","Email address",Status,Grade,"Maximum Grade","Grade can be changed",\
"Last modified (submission)","Last modified (grade)","Feedback comments"
"Participant 17","Ada Lovelace",ada@example.edu,"Submitted for grading - ",,5.00,Yes,"Friday, 20 November 2026, 5:59 PM",-,
"Participant 18",Bob,bob@example.edu,"No submission",1.00,5.00,Yes,-,-,"as it was, ""quoted"""
"Participant 19",Cyd,cyd@example.edu,Submitted,,5.00,No,-,-,
"Participant 171",Dan,dan@example.edu,Submitted,,5.00,Yes,-,-,
'''


def filled(folder, sheet, made):
    path = folder / "worksheet.csv"
    path.write_bytes(sheet if isinstance(sheet, bytes) else sheet.encode())
    told = exports.export("moodle", made, BUNDLE, folder, worksheet=path)
    assert path.read_bytes() == (sheet if isinstance(sheet, bytes) else sheet.encode())  # Moodle's own stays as it was
    return told.partition(", ")[2]


def test_moodles_worksheet_is_filled_in(tmp_path):
    made = [result("A. Lovelace", q1=False, platform="moodle", number="17"), result("Cyd", platform="moodle", number="19"),
            result("Eve", platform="moodle", number="7")]
    assert filled(tmp_path, WORKSHEET, made) == "1 of its 4 rows filled in; 1 that cannot be changed; not in it: 1 of those graded: Eve"
    before, after = rows(tmp_path / "worksheet.csv", "utf-8-sig"), rows(tmp_path / "moodle.csv")
    assert after[0] == before[0] and after[2:] == before[2:]
    assert after[1] == [*before[1][:4], "3", *before[1][5:9], "q1: 0 of 2. A public test fails.<br>q2: 3 of 3. All tests pass."]


def test_a_worksheet_in_any_order_and_with_other_separators(tmp_path):
    sheet = "Feedback comments;Grade;Group;Identifier\r\n;;Blue;Participant 17\r\n"
    told = filled(tmp_path, sheet, [result("Ada", platform="moodle", number="17")])
    assert told == "1 of its 1 row filled in"
    assert (tmp_path / "moodle.csv").read_bytes().decode() == ("Feedback comments;Grade;Group;Identifier\r\nq1: 2 of 2. All tests pass.<br>"
                                                               "q2: 3 of 3. All tests pass.;5;Blue;Participant 17\r\n")
    assert filled(tmp_path, "Identifier,Grade\nParticipant 17,\n".encode("utf-16"), [result("Ada", platform="moodle", number="17")])
    assert rows(tmp_path / "moodle.csv") == [["Identifier", "Grade"], ["Participant 17", "5"]]


def test_hand_ins_from_elsewhere_are_found_by_mail_or_name(tmp_path):
    twins = WORKSHEET + '"Participant 20",Fay,f1@example.edu,,,5.00,Yes,-,-,\n"Participant 21",Fay,f2@example.edu,,,5.00,Yes,-,-,\n'
    made = [result("x", id="x", email="ADA@example.edu"), result("bob", id="b", q1=False), result("Fay", id="f"), result("18", id="e")]
    assert filled(tmp_path, twins, made) == "2 of its 6 rows filled in; not in it: 2 of those graded: Fay, 18"
    assert [row[4] for row in rows(tmp_path / "moodle.csv")[1:]] == ["5", "3", "", "", "", ""]


@pytest.mark.parametrize("title", ["Maximum Grade", "Maximum grade"])
@pytest.mark.parametrize("most", ["100.00", "100,00", "5.50", "-", "Good"])
def test_another_maximum_is_refused(tmp_path, title, most):
    (tmp_path / "moodle.csv").write_text("former")
    sheet = WORKSHEET.replace("Maximum Grade", title).replace("5.00", f'"{most}"')
    with pytest.raises(ValueError) as refused:
        filled(tmp_path, sheet, [result("Ada", platform="moodle", number="17")])
    assert str(refused.value) == (f"{tmp_path / 'worksheet.csv'} has the maximum grade {most}, and the set has 5 points: in Moodle set the "
                                  "assignment's maximum grade to 5, and download the worksheet again.")
    assert (tmp_path / "moodle.csv").read_text() == "former"


@pytest.mark.parametrize("most", ["5", "5,00", "5.00000", ""])
def test_the_same_maximum_is_taken(tmp_path, most):
    sheet = WORKSHEET.replace("Maximum Grade", "Maximum grade").replace("5.00", f'"{most}"')
    assert filled(tmp_path, sheet, [result("Ada", platform="moodle", number="17")]) == "1 of its 4 rows filled in"


def test_a_maximum_that_moodle_cannot_have_is_told(tmp_path):
    halves = [result("Ada", platform="moodle", number="17") | {"max_score": 5.5}]
    with pytest.raises(ValueError, match=r"the set has 5\.5 points: in Moodle set the assignment's maximum grade to 5\.5 \(Moodle takes "
                                         r"only a whole number: let the set's points add up to one\), and download the worksheet again\."):
        filled(tmp_path, WORKSHEET, halves)


@pytest.mark.parametrize("sheet", ["", "Kennung,Bewertung\nTeilnehmer/in 17,\n", "student,score\nAda,5\n", "PK\u0003\u0004"])
def test_what_is_no_worksheet_is_one_sentence(tmp_path, sheet):
    (tmp_path / "moodle.csv").write_text("former")
    with pytest.raises(ValueError, match="is no grading worksheet of Moodle: its first line must name the columns Identifier and Grade, as "
                                         "it does when Moodle's language is English\\."):
        filled(tmp_path, sheet, [result("Ada")])
    assert (tmp_path / "moodle.csv").read_text() == "former"


# Text of a student's, over every export

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "a;=1", "\uff1d1", "'=1",
            "=HYPERLINK(\"http://x\")", "=cmd|' /C calc'!A0"]
BREAKING = ['a"b', '""', "a,b", "a\nb", "a\r\nb", "\0", "a\0b", "\x1b[31m", "\u202egpj.exe", "\u2066x", "\ud800", "\udc80b",
            "\ufeff", "\x85",
            "x" * 1_000_000, "=" * 100_000, "</pre></style></script><script>alert(1)</script>", "\"'><img src=x onerror=y>", "<!--", "]]>",
            "&#60;b&#62;", "&lt;=1", "{{7*7}}", "$\\alpha$", "%s%n", "../../x", "\\\\host\\x"]


def hostile(value):
    """A result in which everything that a student can influence is this text."""
    bad = result("Bob", q1=False, platform="canvas", number=value or "1", email=value, entry=f"b_1_2_{value[:150].replace('/', ':')}.ipynb")
    bad["submission"] |= {"student": value, "source": value}
    bad["notes"], bad["stdout_tail"] = [value, value], value
    failed = {**PUBLIC, "call": value, "got": value, "why": value, "expect": value, "inputs": {value: value}}
    bad["questions"][0] |= {"reason": value, "note": value, "public_failed": failed}
    return bad


def check_table(content, students, columns):
    lines = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    assert len(lines) == students and {len(line) for line in lines} == {columns}
    for field in (field for line in lines for field in line):
        assert len(field) <= 32_767 and not text.HARMFUL.search(field)
        for part in re.split("[;\t\r\n]", field):
            assert not part.strip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    content.encode("utf-8")


TAGS = {"br"} | {tag for tag, _ in parsed(feedback.page(result("Bob", q1=False))).tags}


def check_page(page):
    assert {tag for tag, _ in parsed(page).tags} <= TAGS and not text.HARMFUL.search(page)
    assert all(not name.startswith("on") and name not in ("src", "href") for _, names in parsed(page).tags for name in names)
    page.encode("utf-8")


def check_everything(value):
    bad, other = hostile(value), result("Ada")
    check_table(exports.gradebook([bad, other], BUNDLE), 3, 19)
    check_table(exports.canvas([bad, other], BUNDLE), 4, 6)
    check_table(moodle.table([bad, other]), 3, 8)
    check_page(moodle.told(bad))
    check_page(feedback.page(bad))
    graded = json.loads(results.to_json(exports.gradescope(bad)))
    assert graded["score"] == 3 and not text.HARMFUL.search(graded["tests"][0]["output"])
    content, _ = given_back.packed("canvas", [bad])
    (name,) = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert canvas_takes(name) == ("1", "2") and "/" not in name and "\\" not in name and not text.HARMFUL.search(name)
    back = zipfile.ZipFile(io.BytesIO(content)).read(name).decode("utf-8")
    check_page(json.loads(back)["cells"][0]["outputs"][0]["data"]["text/html"])


@pytest.mark.parametrize("value", FORMULAS + BREAKING, ids=ascii)
def test_what_breaks_a_table_or_a_page_does_no_harm(value):
    check_everything(value)


@given(st.text(st.characters(codec=None, categories=["L", "N", "P", "S", "Z", "C"]), max_size=30))
@example("\ud800\udc00")
def test_any_text_does_no_harm(value):
    check_everything(value)


@pytest.mark.parametrize("value", ["\0", "\ud800", "\u202e=1", "$x$ \\frac", "x" * 1_000_000])
def test_the_class_picture_stands_any_text(tmp_path, value):
    exports.export("statistics", [hostile(value)], BUNDLE, tmp_path)
    page = (tmp_path / "statistics.html").read_text("utf-8")
    assert not text.HARMFUL.search(page) and classroom.success([hostile(value)], BUNDLE)[0]["tried"] == 1


@pytest.mark.parametrize("value", [value for value in FORMULAS + BREAKING if len(value) < 1000], ids=ascii)
def test_a_worksheets_own_texts_are_harmless_too(tmp_path, value):
    """Names and online texts in Moodle's worksheet are the students' own."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["Identifier", "Full name", "Grade", "Last modified (grade)", "Online text", "Feedback comments"],
                                  ["Participant 17", value, "", "-", value, ""], ["Participant 18", value, "-1.5", "-", value, value]])
    filled(tmp_path, stream.getvalue().encode("utf-8", "replace"), [result("Ada", platform="moodle", number="17")])
    _, ada, bob = rows(tmp_path / "moodle.csv")
    assert (ada[0], ada[2], ada[3], bob[2], bob[3]) == ("Participant 17", "5", "-", "-1.5", "-")
    for field in (ada[1], ada[4], bob[1], bob[4], bob[5]):
        assert not text.HARMFUL.search(field)
        assert field == "-1" or not any(part.strip().startswith(("=", "+", "-", "@", "\uff1d")) for part in re.split("[;\t\r\n]", field))


def test_a_hostile_comment_of_a_table_is_escaped_too():
    said = {"points": 2, "graded": 0, "comment": "<script>=1\u202e"}
    bad = result("Ada", q1=False)
    bad["questions"][0]["by_hand"] = said
    bad["adjusted"] = {"score": 5, "late": None, "by_hand": [{"question": "q1", **said}]}
    check_page(feedback.page(bad))
    check_table(exports.gradebook([bad], BUNDLE), 2, 19)
    assert "&lt;script&gt;=1\ufffd" in feedback.page(bad) and "<script>" not in moodle.told(bad)


def test_the_files_names_are_the_graders_own(tmp_path):
    exports.export("html", [hostile("../../x")], BUNDLE, tmp_path)
    exports.export("gradescope", [hostile("../../x")], BUNDLE, tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in Path(tmp_path).rglob("*") if path.is_file()) == [
        "feedback/bob-1.html", "gradescope/bob-1/results.json"]
