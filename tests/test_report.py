"""The exports: no formula reaches a spreadsheet, nothing hidden reaches a student, and every table is what its platform reads."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qlab.grading import grade, results
from qlab.grading.handed_in.ingest import Submission
from qlab.grading.report import classroom, each, exports, feedback
from qlab.grading.report.text import clean

BUNDLE = {"assignment": "02_linear_quantization", "digest": "d0", "questions": [{"id": "q1", "points": 2}, {"id": "q2", "points": 3}]}
PUBLIC = {"call": "f(x)", "inputs": {"x": "tensor([0.5])"}, "expect": "tensor([191])", "got": "<img src=x onerror=alert(1)>",
          "why": "element [0] is 190", "hint": "it is 191.25"}
SECRET = "hidden-input-4711"


def question(name, points, passed, reason="", public=None, like=None, state=None):
    return {"id": name, "points": points, "score": points if passed else 0, "state": state or ("passed" if passed else "failed"),
            "reason": reason or ("All tests pass." if passed else "The public tests pass; a hidden test fails."), "note": SECRET,
            "failed_case": None if passed else 3, "failed_answers": {"3": SECRET}, "public_failed": public, "answers_like": like}


def result(student, q1=True, q2=True, bundle=BUNDLE, **fields):
    public = None if q1 else PUBLIC
    questions = [question("q1", 2, q1, public=public, reason="A public test fails." if public else ""),
                 question("q2", 3, q2, like=None if q2 else f"floor for round {SECRET}")]
    marks = {"questions": questions, "score": 2 * q1 + 3 * q2, "max_score": 5, "limits": {"network": SECRET}, "stdout_tail": SECRET}
    entry = Submission(fields.pop("id", f"{student.lower()}-1"), student, fields.pop("source", f"{student}.ipynb"), "ab" * 32, **fields)
    return results.make(entry, bundle, None if entry.status else marks, seconds=0.5)


@pytest.fixture
def made():
    return [result("Ada"), result("Bob", q1=False), result("Cyd", q2=False, late=True),
            result("Dan", status="unreadable", reason="it is empty"),
            result("Eve", status="not graded", reason=f"there is no sandbox: {SECRET}"),
            result("Ada", id="ada-2", duplicate_of="ada-1", status="not graded", reason="the same student's Ada.ipynb counts")]


def rows(path, encoding="utf-8"):
    with open(path, newline="", encoding=encoding) as stream:
        return list(csv.reader(stream))


def test_the_gradebook(tmp_path, made):
    assert exports.export("csv", made, BUNDLE, tmp_path) == f"{tmp_path / 'gradebook.csv'}, 5 rows"
    assert (tmp_path / "gradebook.csv").read_bytes().startswith(b"\xef\xbb\xbfstudent,")
    head, *body = rows(tmp_path / "gradebook.csv", "utf-8-sig")
    assert head == ["student", "email", "number", "score", "max_score", "q1", "q2", "late", "handed_in", "deadline",
                    "before_penalty", "penalty", "by_hand", "comment", "status", "reason", "notes", "source", "id"]
    kept = [[row[head.index(name)] for name in ("student", "score", "q1", "q2", "late", "status", "reason")] for row in body]
    assert kept == [["Ada", "5", "2", "3", "", "graded", ""], ["Bob", "3", "0", "3", "", "graded", ""],
                    ["Cyd", "2", "2", "0", "late", "graded", ""], ["Dan", "0", "", "", "", "unreadable", "it is empty"],
                    ["Eve", "", "", "", "", "not graded", f"there is no sandbox: {SECRET}"]]


def test_canvas_reads_its_table(tmp_path, made):
    made[0]["submission"] |= {"platform": "canvas", "number": "101"}
    made[1]["submission"] |= {"platform": "gradescope", "number": "4711", "email": "bob@example.edu"}
    made[2]["submission"] |= {"platform": "nbgrader"}
    assert exports.export("canvas", made, BUNDLE, tmp_path).endswith("canvas.csv, 4 rows, 1 without a score left out")
    assert rows(tmp_path / "canvas.csv") == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "02_linear_quantization"],
        ["    Points Possible", "", "", "", "", "5"], ["Ada", "101", "", "", "", "5"], ["Bob", "", "4711", "bob@example.edu", "", "3"],
        ["Cyd", "", "", "Cyd", "", "2"], ["Dan", "", "", "", "", "0"]]
    exports.export("canvas", made, BUNDLE, tmp_path, "Linear quantization (4711)")
    assert rows(tmp_path / "canvas.csv")[0][5] == "Linear quantization (4711)"


def test_moodle_reads_its_table(tmp_path, made):
    made[0]["submission"] |= {"platform": "moodle", "number": "17"}
    exports.export("moodle", made, BUNDLE, tmp_path)
    head, ada, bob, *_ = rows(tmp_path / "moodle.csv")
    assert {"Identifier", "Email address", "Grade", "Last modified (grade)", "Feedback comments"} <= set(head)
    ada, bob = dict(zip(head, ada)), dict(zip(head, bob))
    assert (ada["Identifier"], ada["Grade"], ada["Maximum Grade"]) == ("Participant 17", "5", "5") and bob["Identifier"] == ""
    assert bob["Feedback comments"] == "q1: 0 of 2. A public test fails.<br>q2: 3 of 3. All tests pass."


def test_moodles_feedback_is_escaped(tmp_path):
    bad = result("Ada", q1=False)
    bad["questions"][0]["reason"] = "The cell of this question stopped: <script>alert(1)</script>"
    exports.export("moodle", [bad], BUNDLE, tmp_path)
    text = rows(tmp_path / "moodle.csv")[1][-1]
    assert "&lt;script&gt;" in text and "<script>" not in text


def test_gradescopes_results(tmp_path, made):
    made[1]["submission"] |= {"platform": "gradescope", "source": "assignment_1_export/submission_77/02.ipynb"}
    exports.export("gradescope", made, BUNDLE, tmp_path)
    assert sorted(path.name for path in (tmp_path / "gradescope").iterdir()) == ["ada-1", "cyd-1", "dan-1", "submission_77"]
    bob = json.loads((tmp_path / "gradescope" / "submission_77" / "results.json").read_text())
    assert bob["score"] == 3 == sum(test["score"] for test in bob["tests"]) and bob["stdout_visibility"] == "hidden"
    assert [(test["name"], test["status"], test["max_score"]) for test in bob["tests"]] == [("q1", "failed", 2), ("q2", "passed", 3)]
    assert bob["tests"][0]["output"] == ("A public test fails.\ncall: f(x)\nx = tensor([0.5])\nexpected: tensor([191])\n"
                                         "got: <img src=x onerror=alert(1)>\nhint: it is 191.25")
    assert {test["output_format"] for test in bob["tests"]} == {"text"}
    dan = json.loads((tmp_path / "gradescope" / "dan-1" / "results.json").read_text())
    assert (dan["score"], dan["tests"], dan["output"]) == (0, [], "Your notebook could not be read: it is empty.")


def test_a_group_of_gradescopes_has_one_file_or_none(tmp_path):
    """Its members read the same file: what only one of them may read, or would get, is in none."""
    group = {"platform": "gradescope", "entry": "submission_8", "source": "submission_8/02.ipynb"}
    made = [result("Ada", **group), result("Bob", **group), result("Cyd", platform="gradescope", source="submission_9/02.ipynb")]
    made[1] |= {"seconds": 0.75}
    told = exports.export("gradescope", made, BUNDLE, tmp_path)
    assert told == f"{tmp_path / 'gradescope'}, 2 results"
    said = {"score": 5, "by_hand": [{"question": "", "points": None, "graded": 5, "comment": "Bob alone."}], "late": None}
    for other in (result("Bob", q1=False, **group), made[1] | {"adjusted": said}):
        told = exports.export("gradescope", [made[0], other, made[2]], BUNDLE, tmp_path)
        assert told == f"{tmp_path / 'gradescope'}, 1 result, none of submission_8, whose members' results differ"
        assert [path.name for path in (tmp_path / "gradescope").iterdir()] == ["submission_9"]


@pytest.mark.parametrize("name, rest", [
    ("csv", "gradebook.csv, 1 row"), ("canvas", "canvas.csv, 1 row"), ("moodle", "moodle.csv, 1 row"), ("html", "feedback, 1 page"),
    ("gradescope", "gradescope, 1 result"), ("canvas-feedback", "canvas_feedback.zip, 1 file"),
    ("moodle-feedback", "moodle_feedback.zip, 1 file")])
def test_a_record_that_cannot_be_written_ends_no_export(tmp_path, name, rest):
    of = {"canvas-feedback": {"platform": "canvas", "number": "17", "entry": "ada_17_9001_02.ipynb"},
          "moodle": {"platform": "moodle", "number": "17"},
          "moodle-feedback": {"platform": "moodle", "number": "17", "entry": "Ada_17_assignsubmission_file_"}}.get(name, {})
    broken = result("Bob", id="bob-2", **of)
    del broken["questions"][0]["score"]
    if name == "canvas":
        broken["submission"]["student"] = None
    with pytest.raises(each.Incomplete) as error:
        exports.export(name, [result("Ada", **of), broken], BUNDLE, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / rest}; left out is what cannot be written: ")
    assert ("None" if name == "canvas" else "Bob (Bob.ipynb): KeyError: 'score'") in str(error.value)


def test_an_export_that_fails_does_not_end_the_others(tmp_path, made, monkeypatch, capsys):
    def fails(made, bundle):
        raise OverflowError("date value out of range")

    monkeypatch.setattr(exports, "gradebook", fails)
    args = grade.parser().parse_args(["x", "--assignment", "02", "--export", "csv", "html"])
    assert grade._export(made, BUNDLE, tmp_path, args, [], {}, {})
    assert len(list((tmp_path / "export" / "feedback").iterdir())) == 5
    assert "csv: " in capsys.readouterr().err


def test_what_students_see_holds_nothing_hidden(tmp_path, made):
    for name in ("html", "gradescope", "moodle", "canvas"):
        exports.export(name, made, BUNDLE, tmp_path)
    pages = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(pages) == 5 + 4 + 1 + 1
    for path in pages:
        text = path.read_text()
        assert SECRET not in text and "failed_case" not in text and "answers_like" not in text and "stdout_tail" not in text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_feedback_page():
    shown = parsed(feedback.page(result("Bob", q1=False, late=True)))
    text = " ".join(" ".join(shown.text).split())
    for part in ("02_linear_quantization", "Bob , Bob.ipynb , handed in late", "3 of 5 points", "q1 0 of 2 A public test fails.",
                 "call f(x)", "x tensor([0.5])", "expected tensor([191])", "got <img src=x onerror=alert(1)>", "hint it is 191.25",
                 "q2 3 of 3"):
        assert part in text
    assert "Your notebook could not be read: it is empty." in feedback.page(result("Dan", status="unreadable", reason="it is empty"))
    waiting = feedback.page(result("Eve", status="not graded", reason=SECRET))
    assert "Not graded yet" in waiting and SECRET not in waiting


@given(st.text(max_size=80))
def test_no_text_of_a_student_becomes_a_tag(text):
    text = "</pre></style><script>" + text + "\"'><img src=x onerror=y>"
    bad = result("Bob", q1=False)
    bad["submission"] |= {"student": text, "source": text}
    bad["questions"][0] |= {"reason": text, "public_failed": {**PUBLIC, "got": text, "why": text, "inputs": {text: text}}}
    tags = {tag for tag, _ in parsed(feedback.page(bad)).tags}
    assert not tags & {"script", "img", "iframe", "a", "link", "object", "form"}
    assert tags == {tag for tag, _ in parsed(feedback.page(result("Bob", q1=False))).tags}


def test_the_pages_load_and_run_nothing(made):
    for page in (feedback.page(made[0]), classroom.page(made[:5], BUNDLE, b"png")):
        assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page


NAMES = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "'=1", "a,b", 'a"b', "a\nb", "a\r\nb", "🎓", "a/b", "", "'", "''=", "a;=1", "; =1;'",
     "＝1", " -1"])


@given(NAMES, NAMES)
def test_any_name_comes_back_from_the_csv_and_is_no_formula(name, source):
    row = result("Ada")
    row["submission"] |= {"student": name, "source": source}
    head, body = csv.reader(io.StringIO(exports.gradebook([row], BUNDLE), newline=""))
    read = dict(zip(head, body))
    for field, original in (("student", name), ("source", source)):
        for part in re.split("[;\t\r\n]", read[field]):  # where a spreadsheet whose separator is the semicolon may begin a field
            assert not part.strip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))
        assert not read[field].startswith(("\t", "\r")) and re.sub("(^|[;\t\r\n])'", r"\1", read[field]) == clean(original)


def test_the_commonest_wrong_answers(made):
    graded = made[:3]
    graded[0]["questions"][0] = question("q1", 2, False, "The cell of this question stopped: NameError: foo", state="missing")
    assert classroom.success(graded, BUNDLE) == [
        {"id": "q1", "points": 2, "passed": 1, "tried": 3, "wrong": [("A public test fails", 1), ("The cell of this question stopped", 1)]},
        {"id": "q2", "points": 3, "passed": 2, "tried": 3, "wrong": [(f"floor for round {SECRET}", 1)]}]


def test_the_picture_has_a_style_of_its_own(made):
    before = classroom.picture(made, BUNDLE)
    with plt.rc_context({"savefig.bbox": "tight", "savefig.dpi": 50, "font.size": 20, "axes.grid": True}):
        assert classroom.picture(made, BUNDLE) == before


def test_the_statistics_are_a_picture_and_a_page(tmp_path, made):
    made[2]["questions"][1]["answers_like"] = "costs $5$ and 名前 <b>"
    assert exports.export("statistics", made, BUNDLE, tmp_path).endswith("statistics.html and .png, for the teacher only")
    image = Image.open(tmp_path / "statistics.png").convert("RGB")
    assert image.width == 1200 and len(image.getcolors(2**20)) > 20
    page = (tmp_path / "statistics.html").read_text()
    assert "3 graded, 1 not graded, 1 unreadable" in page and "<td>2 of 3</td>" in page and "1 × costs $5$ and 名前 &lt;b&gt;" in page


@pytest.mark.parametrize("scores, bundle", [([], BUNDLE), ([True], BUNDLE), ([True] * 40, {**BUNDLE, "questions": [
    {"id": "q1", "points": 0.5}, {"id": "q2", "points": 100}]})])
def test_a_picture_of_no_of_one_and_of_odd_scores(scores, bundle):
    assert Image.open(io.BytesIO(classroom.picture([result("Ada", bundle=bundle) for _ in scores], bundle))).height > 300


def test_an_unknown_export_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no export 'xls': choose among csv, html, .*moodle-feedback, statistics.*\\."):
        exports.export("xls", [], BUNDLE, tmp_path)
