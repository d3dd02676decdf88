"""Marks set by hand, late penalties and extensions: the exact points, on every export, and one sentence for each line that is wrong."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import BUNDLE, parsed, result, rows

from qlab.grading import results
from qlab.grading.handed_in import deadlines, table
from qlab.grading.handed_in.owners import Owner
from qlab.grading.handed_in.owners import late as is_late
from qlab.grading.report import by_hand, exports, feedback, final, late, moodle, pages, words

DUE = datetime(2026, 11, 23, 18, tzinfo=timezone(timedelta(hours=1)))


def tardy(student, seconds, **fields):
    """A result with 3 of 5 points, handed in so many seconds after the deadline."""
    return result(student, q1=False, late=True, time=DUE.timestamp() + seconds, deadline=DUE.isoformat(), **fields)


def adjusted(folder, made, text="", rule=None):
    """The results of a batch as they end, with text as the overrides.csv of its folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "overrides.csv"
    if text:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for one in made:
        results.write(folder / f"{one['submission']['id']}.json", results.to_json(one))
    return final.adjust(made, BUNDLE, folder, by_hand.read(path, BUNDLE), rule and late.parse(rule))


def text_of(path):
    """What a page says, in one line."""
    return " ".join(" ".join(parsed(path.read_text("utf-8")).text).split())


HEAD = "student,question,points,comment\n"


# By hand


def test_a_mark_set_by_hand_is_in_every_export(tmp_path):
    made = [result("Ada", q1=False), result("Bob", q1=False), result("Cyd")]
    text = HEAD + 'Ada,q1,1.5,"Right <b>idea</b>, wrong dtype."\nbob,,,Well tried.\ncyd,,2,\n'
    ada, bob, cyd = adjusted(tmp_path / "r", made, text)
    assert [one["score"] for one in (ada, bob, cyd)] == [4.5, 3, 2]
    assert [question["score"] for question in ada["questions"]] == [1.5, 3]
    for name in ("csv", "html", "gradescope", "moodle"):
        exports.export(name, [ada, bob, cyd], BUNDLE, tmp_path)
    head, *body = rows(tmp_path / "gradebook.csv", "utf-8-sig")
    told = [[row[head.index(name)] for name in ("score", "q1", "by_hand", "comment")] for row in body]
    assert told == [["4.5", "1.5", "q1: 1.5, graded 0", "q1: Right <b>idea</b>, wrong dtype."], ["3", "0", "", "Well tried."],
                    ["2", "2", "total: 2, graded 5", ""]]
    page = text_of(tmp_path / "feedback" / "ada-1.html")
    assert "4.5 of 5 points" in page and "q1 1.5 of 2 Set by hand to 1.5; the grader gave 0. \"Right <b>idea</b>, wrong dtype.\"" in page
    page = text_of(tmp_path / "feedback" / "cyd-1.html")
    assert "2 of 5 points All questions: Set by hand to 2; the grader gave 5. q1 2 of 2" in page
    graded = json.loads((tmp_path / "gradescope" / "ada-1" / "results.json").read_text())
    assert graded["score"] == 4.5 and graded["tests"][0]["score"] == 1.5
    assert graded["tests"][0]["output"].startswith("Set by hand to 1.5; the grader gave 0.\n\"Right <b>idea</b>")
    comments = {row[1]: row[-1] for row in rows(tmp_path / "moodle.csv")}
    assert comments["Bob"].endswith("<br>All questions: &quot;Well tried.&quot;")
    assert "Set by hand to 1.5; the grader gave 0. &quot;Right &lt;b&gt;idea&lt;/b&gt;, wrong dtype.&quot;" in comments["Ada"]
    kept = json.loads((tmp_path / "r" / "ada-1.json").read_text())
    assert kept["score"] == 3 and kept["questions"][0]["score"] == 0  # what the grader found
    assert kept["adjusted"] == {"score": 4.5, "late": None, "by_hand": [
        {"question": "q1", "points": 1.5, "graded": 0, "comment": "Right <b>idea</b>, wrong dtype."}]}


def test_a_comment_stands_apart_from_what_the_grader_says(tmp_path):
    made = [result("Ada", q1=False, platform="moodle", number="17"), result("Bob", q1=False)]
    ada, bob = adjusted(tmp_path / "r", made, HEAD + 'Ada,q1,2,"half right:\r\nrounding"\nBob,,4,"=well;\n=tried"\n')
    said = 'q1: 2 of 2. Set by hand to 2; the grader gave 0. "half right:\r\nrounding" A public test fails.'
    assert words.comments(ada)[0] == said
    assert moodle.told(ada) == ("q1: 2 of 2. Set by hand to 2; the grader gave 0. &quot;half right:<br>rounding&quot; A public test "
                                "fails.<br>q2: 3 of 3. All tests pass.")
    assert moodle.told(bob).endswith("<br>All questions: Set by hand to 4; the grader gave 3. &quot;&#61;well;<br>=tried&quot;")
    assert exports.gradescope(ada)["tests"][0]["output"].startswith(
        'Set by hand to 2; the grader gave 0.\n"half right:\r\nrounding"\nA public test fails.\n')
    asked = {**BUNDLE, "questions": [{"id": name, "answer_cell": name, "cases": []} for name in ("q1", "q2")]}
    assert ('<p class="hand">Set by hand to 2; the grader gave 0.</p>\n<p class="hand">&quot;half right:\nrounding&quot;</p>\n'
            "<p>A public test fails.</p>") in pages.page(ada, asked, ())
    assert ('<p class="hand">All questions: Set by hand to 4; the grader gave 3. &quot;=well;\n=tried&quot;</p>'
            in pages.page(bob, asked, ()))


def test_a_row_that_is_taken_out_no_longer_counts_and_the_file_is_left_alone(tmp_path):
    folder, plain = tmp_path / "r", [result("Ada", q1=False)]
    text = HEAD + "Ada,q1,2,\n"
    assert adjusted(folder, plain, text)[0]["score"] == 5
    assert (folder / "overrides.csv").read_text() == text
    again = [results.read(folder / "ada-1.json")]
    (folder / "overrides.csv").write_text(HEAD)
    assert final.adjust(again, BUNDLE, folder, [], None) == plain == [results.read(folder / "ada-1.json")]


@pytest.mark.parametrize("content", [
    "\ufeffstudent;question;points;comment\r\nAda;q1;1,5;a, b\r\n", "sep=;\nstudent;question;points;comment\nAda;q1;1.5;a, b\n",
    "Comment\tStudent\tQuestion\tPoints\na, b\t  ada  \tq1\t1.50\n".encode("utf-16"),
    'student,question,points,comment\r"Ada",q1,1.5,"a, b"\r',
    "note,student,question,points,comment\nmine,Ada,q1,1.5,\"a, b\"\n\n,,,,\n",
    '\ufeff"sep=;"\r\nstudent;question;points;comment\r\nAda;q1;1,5;a, b\r\n', "sep=;\rstudent;question;points;comment\rAda;q1;1,5;a, b\r",
    '\r\nstudent,question,points,comment\r\nAda,q1,1.5,"a, b"\r\n', "\n;;;\nsep=;\nstudent;question;points;comment\nAda;q1;1,5;a, b\n",
    'sep=,,,,\nstudent,question,points,comment\nAda,q1,"1,5","a, b"\n'])
def test_any_spreadsheets_csv_is_read(tmp_path, content):
    (ada,) = adjusted(tmp_path, [result("Ada", q1=False)], content)
    assert ada["score"] == 4.5 and ada["questions"][0]["by_hand"]["comment"] == "a, b"


@pytest.mark.parametrize("text, told", [
    ("Zoe,q1,1,\n", "line 2: there is no student 'Zoe' among those who handed something in."),
    ("Ada,q9,1,\n", "line 2: there is no question 'q9': choose among q1, q2, or leave it empty for the whole assignment."),
    ("Ada,q1,2.5,\n", "line 2: points are 2.5, and must be between 0 and 2."),
    ("Ada,q1,-1,\n", "line 2: points are -1, and must be between 0 and 2."),
    ("Ada,,6,\n", "line 2: points are 6, and must be between 0 and 5."),
    ("Ada,q1,nan,\n", "line 2: points are 'nan', and must be a number like 2 or 2.5."),
    ("Ada,q1,1e0,\n", "line 2: points are '1e0', and must be a number like 2 or 2.5."),
    ("Ada,q1,\u0661,\n", "line 2: points are '\u0661', and must be a number like 2 or 2.5."),
    ("Ada,q1,,\n", "line 2: it gives neither points nor a comment."),
    ("Ada,q1,1,5\n", 'line 2: points are 1 and the comment is 5: write 1.5 with a point, or "1,5" in double quotes; a comment needs more '
                     "than digits."),
    ("Ada,,4,25,\n", 'line 2: points are 4 and the comment is 25: write 4.25 with a point, or "4,25" in double quotes; a comment needs '
                     "more than digits."),
    ("Ada,q1,,5\n", 'line 2: points are empty and the comment is 5: write 0.5 with a point, or "0,5" in double quotes; a comment needs '
                    "more than digits."),
    ("Ada,q1,+1, 50 \n", 'line 2: points are +1 and the comment is 50: write +1.50 with a point, or "+1,50" in double quotes; a comment '
                         "needs more than digits."),
    (",q1,1,\n", "line 2: it names no student."),
    ("\nAda,q1,1,\nada,q1,2,\n", "line 4: 'ada' has a row for q1 already, in line 3."),
    ("Ada,q1,1,\nAda,,2,\n", "line 3: points of the whole assignment and of a question of it, in line 2: give one or the other."),
    ('"Ada\n",q1,,"two\nlines"\nBob,q9,1,\n', "line 5: there is no question 'q9': choose among q1, q2, or leave it empty for the whole "
                                               "assignment."),
    ("Ada,q1,1,well, well\n", "line 2 has 5 fields, and the first line 4: a field that holds the separator must stand in double quotes."),
    ('Ada,q1,1,"open\n', "line 2 is no row of a table (unexpected end of data): a double quote in a field must be doubled, and the field "
                         "stand in double quotes."),
    ("Bob,q1,1,\n", "line 2: 'Bob' fits 2 students: write the id, as in gradebook.csv."),
])
def test_a_wrong_line_is_one_sentence(tmp_path, text, told):
    made = [result("Ada"), result("Bob"), result("bob", id="bob-2")]
    with pytest.raises(ValueError) as error:
        adjusted(tmp_path, made, HEAD + text)
    assert str(error.value) == f"{tmp_path / 'overrides.csv'}: {told}"
    assert [results.read(tmp_path / f"{one['submission']['id']}.json") for one in made] == made  # nothing half-done


def test_every_wrong_line_is_told(tmp_path):
    with pytest.raises(ValueError) as error:
        adjusted(tmp_path, [result("Ada")], HEAD + "Ada,q9,1,\nAda,q1,9,\n")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["line 2", "line 3"]


@pytest.mark.parametrize("content, told", [
    (b"", "the first line must name the columns student, question, points, comment, and it is empty."),
    (b"name,points\nAda,2\n", "the first line must name the columns student, question, points, comment, and it names name, points."),
    (b"student,question,points,points,comment\n", "line 1 names the column points twice, and each must be there once."),
    ("student,question,points,comment\nJos\u00e9,q1,2,\n".encode("latin-1"),
     'line 2 is not UTF-8: in a spreadsheet, save it as "CSV UTF-8".'),
])
def test_a_file_that_is_no_such_table_is_one_sentence(tmp_path, content, told):
    with pytest.raises(ValueError) as error:
        adjusted(tmp_path, [result("Ada")], content or b"\n")
    assert str(error.value) == f"{tmp_path / 'overrides.csv'}: {told}"


def test_who_is_meant(tmp_path):
    made = [result("Ada", number="17", email="ada@example.edu", platform="moodle"), result("=1", id="x-2"),
            result("Zoe\u0308", id="z-3"), result("17a", id="b-4")]
    text = HEAD + "17,q1,0,\nADA@example.edu,q2,0,\n'=1,q1,0,\nzo\u00eb,q1,0,\nb-4,q1,0,\n"
    assert [one["score"] for one in adjusted(tmp_path, made, text)] == [0, 3, 3, 3]


def test_a_student_cannot_take_what_is_set_for_another(tmp_path):
    """Whoever takes another one's id for a name is not meant by it; who takes a number makes the row doubtful, and nobody gets it."""
    made = [result("Ada", id="ada-1"), result("ada-1", id="eve-9")]
    assert [one["score"] for one in adjusted(tmp_path, made, HEAD + "ada-1,,1,\n")] == [1, 5]
    made = [result("Ada", number="17"), result("17", id="eve-9")]
    with pytest.raises(ValueError, match="'17' fits 2 students"):
        adjusted(tmp_path, made, HEAD + "17,,1,\n")


def test_a_name_that_looks_like_anothers_number_or_mail_is_nobodys(tmp_path):
    made = [result("Ada", number="17", email="ada@x.edu"), result("17", id="eve-9", number="99"),
            result("ADA@x.edu", id="eve-8", email="eve@x.edu")]
    assert [one["score"] for one in adjusted(tmp_path, made, HEAD + "17,q1,0,\nada@x.edu,q2,0,\n")] == [0, 5, 5]
    until = deadlines.read(DUE, written(tmp_path, "ada@x.edu,2026-11-25T18:00+01:00\n"))
    assert until.of("ada@x.edu", "", "eve@x.edu") == (DUE, False) and until.of("ada@x.edu")[1]  # a plain folder has nothing but names


def test_a_student_of_another_run_is_known(tmp_path):
    results.write(tmp_path / "zoe-1.json", results.to_json(result("Zoe")))
    assert adjusted(tmp_path, [result("Ada")], HEAD + "Zoe,,1,\n")[0]["score"] == 5


def test_points_by_hand_for_who_has_none(tmp_path):
    made = [result("Dan", status="unreadable", reason="it is empty"), result("Eve", status="not graded", reason="there is no sandbox"),
            result("Fay", status="not graded", reason="there is no sandbox"), result("Gus", status="not graded", reason="no sandbox")]
    text = HEAD + "Dan,q2,3,Shown to me.\nEve,,4,\nFay,q1,1,\nGus,q1,,Wait.\n"
    ended = adjusted(tmp_path, made, text)
    assert [one["score"] for one in ended] == [3, 4, None, None]
    for name in ("csv", "html", "gradescope", "moodle", "canvas", "statistics"):
        exports.export(name, ended, BUNDLE, tmp_path)
    page = feedback.page(ended[3])
    assert "Not graded yet" in page and "q1: &quot;Wait.&quot;" in page
    assert [row[4] for row in rows(tmp_path / "moodle.csv")[1:]] == ["3", "4"]


def test_what_is_set_aside_stays_as_it_is(tmp_path):
    made = [result("Ada"), result("Ada", id="ada-2", duplicate_of="ada-1", status="not graded", reason="another counts")]
    assert adjusted(tmp_path, made, HEAD + "Ada,,1,\n")[1] == made[1]


@given(st.lists(st.integers(0, 200), min_size=2, max_size=2))
def test_points_add_up_exactly(hundredths):
    ended = final.final(result("Ada"), BUNDLE, [by_hand.Row(2, "Ada", name, Fraction(points, 100), "") for name, points in
                                               zip(("q1", "q2"), hundredths)])
    assert Fraction(str(ended["score"])) == Fraction(sum(hundredths), 100)


# Late


@pytest.mark.parametrize("rule, seconds, points", [
    ("10% per day, at most 50%", 1, 2.7), ("10% per day, at most 50%", 86400, 2.7), ("10% per day, at most 50%", 86401, 2.4),
    ("10% per day, at most 50%", 86400 * 4.5, 1.5), ("10% per day, at most 50%", 86400 * 100, 1.5), ("10% per day", 86400 * 11, 0),
    ("10% per day, at most 50%, grace 15 minutes", 900, 3), ("10% per day, at most 50%, grace 15 minutes", 900.5, 2.7),
    ("1% per hour, grace 1 hour", 3601, 2.94), ("0.25 points per hour, at most 2 points", 3600 * 5, 1.75),
    ("1 point per day", 86400 * 9, 0),
    ("  33.3 %  PER Day started ,at most 100%", 1, 2), ("0.125 points per day", 5, 2.88), ("100% per day", 1, 0), ("0% per day", 1, 3),
])
def test_what_being_late_costs(rule, seconds, points):
    ended = final.final(tardy("Ada", seconds), BUNDLE, rule=late.parse(rule))
    assert ended["score"] == points and ended["adjusted"]["late"]["before"] == 3 and ended["adjusted"]["late"]["after"] == points


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1e7), st.integers(0, 100_000))
def test_percent_against_exact_arithmetic(rate, most, seconds, grace):
    rule = late.parse(f"{rate}% per day, at most {most}%, grace {grace} minutes")
    days = 0 if seconds <= grace * 60 else -(-Fraction(seconds) // 86400)
    wanted = 3 - 3 * min(Fraction(rate * days, 100), Fraction(most, 100))
    assert Fraction(3) - rule.subtracted(Fraction(3), rule.units(seconds)) == wanted
    assert abs(Fraction(str(late.rounded(wanted))) - wanted) <= Fraction(1, 200)


def test_the_penalty_is_on_the_page_and_in_the_tables(tmp_path):
    ended = [final.final(tardy("Ada", 86400 + 3600, platform="moodle", number="17"), BUNDLE, rule=late.parse("10% per day, at most 50%"))]
    for name in ("csv", "html", "moodle", "canvas", "gradescope"):
        exports.export(name, ended, BUNDLE, tmp_path)
    head, row = rows(tmp_path / "gradebook.csv", "utf-8-sig")
    got = dict(zip(head, row))
    assert (got["score"], got["before_penalty"], got["penalty"], got["late"]) == ("2.4", "3", "2 days late: 20 %", "late")
    said = "Handed in 2026-11-24 19:00:00+01:00, deadline 2026-11-23 18:00:00+01:00, 2 days late: 20 %. 3 points before, 2.4 after."
    assert f"2.4 of 5 points {said}" in text_of(tmp_path / "feedback" / "ada-1.html")
    assert rows(tmp_path / "moodle.csv")[1][4] == rows(tmp_path / "canvas.csv")[2][-1] == "2.4"
    assert said in rows(tmp_path / "moodle.csv")[1][-1]
    graded = json.loads((tmp_path / "gradescope" / "ada-1" / "results.json").read_text())
    assert graded["score"] == 2.4 and said in graded["output"]


def test_who_is_in_time_or_perhaps_not_late_loses_nothing():
    rule = late.parse("10% per day")
    for one in (result("Ada"), result("Ada", late=None), result("Ada", late=None, deadline=DUE.isoformat())):
        assert final.final(one, BUNDLE, rule=rule) == one
    marked = final.final(result("Ada", late=True, deadline=DUE.isoformat()), BUNDLE, rule=rule)  # Canvas's mark says not by how much
    assert marked["score"] == 5 and "Handed in late, by how much is not known: nothing is subtracted." in feedback.page(marked)
    assert "late" not in feedback.page(result("Ada", late=None))


def test_a_penalty_after_points_by_hand(tmp_path):
    made = [tardy("Ada", 1), tardy("Bob", 1), tardy("Cyd", 1)]
    ended = adjusted(tmp_path, made, HEAD + "Ada,q1,2,\nBob,,3,\nCyd,q1,,see above\n", "50% per day")
    assert [one["score"] for one in ended] == [2.5, 3, 1.5]  # points of the whole assignment are what the teacher wants them to be
    assert ended[1]["adjusted"]["late"] is None


@pytest.mark.parametrize("rule", ["", "10%", "10 per day", "10% a day", "-1% per day", "10% per week", "1e3% per day",
                                  "10% per day, at most 2 points",
                                  "2 points per day, at most 50%", "10% per day at most 50%", "10% per day, grace 15", "\u0661% per day",
                                  "10% per day; drop table"])
def test_a_rule_that_is_none_is_one_sentence(rule):
    with pytest.raises(ValueError) as error:
        late.parse(rule)
    assert str(error.value) == (f'a late penalty is {rule!r}, and must be like "10% per day, at most 50%", "0.5 points per hour, at most 2 '
                                'points" or "10% per day, at most 50%, grace 15 minutes".')


def test_more_than_everything_cannot_be_lost():
    with pytest.raises(ValueError, match="and no more than 100% can be lost"):
        late.parse("150% per day")


@given(st.fractions(0, 1000))
def test_points_are_rounded_to_hundredths_halves_upward(points):
    up = Fraction(str(late.rounded(points)))
    assert up * 100 == int(up * 100) and Fraction(-1, 200) < up - points <= Fraction(1, 200)


# Extensions


def written(folder, text):
    path = Path(folder, "extensions.csv")
    path.write_text("student,deadline\n" + text, encoding="utf-8")
    return path


def test_an_extension_is_the_students_deadline(tmp_path):
    until = deadlines.read(DUE, written(tmp_path, "Ada,2026-11-25T18:00+01:00\nbob@x,2026-11-24 12:00 Europe/Berlin\n"))
    assert until.of("ADA", "17", None) == (DUE + timedelta(days=2), True) and until.of("Cyd", "", "c@x") == (DUE, False)
    assert until.of("Bob", "", "bob@x")[0] == datetime(2026, 11, 24, 11, tzinfo=UTC) and until.last() == DUE + timedelta(days=2)
    owner = Owner((), "Ada", late=True)  # Canvas marks who is later than Canvas's deadline
    assert is_late(owner, DUE) is True and is_late(owner, DUE + timedelta(days=2), extended=True) is None
    page = feedback.page(result("Ada", deadline="2026-11-25T18:00:00+01:00", extended=True))
    assert "Your deadline was extended to 2026-11-25 18:00:00+01:00." in page
    made = result("Ada", time=DUE.timestamp(), deadline=DUE.isoformat(), extended=True)
    head, row = csv.reader(io.StringIO(exports.gradebook([made], BUNDLE)))
    assert dict(zip(head, row))["deadline"] == "2026-11-23 18:00:00+01:00, extended"
    assert dict(zip(head, row))["handed_in"] == "2026-11-23 18:00:00+01:00"


@pytest.mark.parametrize("text, told", [
    ("Ada,soon\n", "line 2: 'soon' is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00."),
    (",2026-11-23T18:00\n", "line 2 names no student."),
    ("Ada,2026-11-23T18:00Z\nada,2026-11-24T18:00Z\n", "line 3 gives 'ada' a second deadline, after line 2: each student has one."),
    ("Bob,2026-11-23T18:00+01:00\nAda,2025-11-25T18:00Z\n",
     "line 3 gives 'Ada' until 2025-11-25 18:00, UTC, and must give no less than all have, until 2026-11-23 18:00, UTC+01:00."),
    ("Ada,2026-11-23T17:59:59+01:00\n",
     "line 2 gives 'Ada' until 2026-11-23 17:59:59, UTC+01:00, and must give no less than all have, until 2026-11-23 18:00, UTC+01:00."),
    ("Ada,9999-12-31T23:59\n", "line 2: '9999-12-31T23:59' is no date and time: it must be from 2000 to 2199."),
])
def test_a_wrong_extension_is_one_sentence(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        deadlines.read(DUE, path)
    assert str(error.value) == f"{path}: {told}"


def test_whose_an_extension_is(tmp_path):
    path = written(tmp_path, "Ada,2026-11-25T18:00Z\nZoe,2026-11-25T18:00Z\n")
    until = deadlines.read(DUE, path)
    assert until.check([("Ada", "1", None)]) == [f"{path}: line 3: 'Zoe' is nobody who handed something in."]
    with pytest.raises(ValueError, match="line 2: 'Ada' fits 2 students: write the number or e-mail."):
        until.check([("Ada", "1", None), ("ada", "2", None)])
    until = deadlines.read(DUE, written(tmp_path, "Ada,2026-11-25T18:00Z\n17,2026-11-26T18:00Z\n"))
    with pytest.raises(ValueError, match="line 3: '17' has a deadline in line 2 already"):
        until.check([("Ada", "17", None)])


def test_no_file_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.csv\\."):
        deadlines.read(None, tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="is a folder, and must be a table"):
        table.read(tmp_path, ["student"])


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=2, max_size=2), max_size=5),
       st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_what_pythons_csv_writes_is_read(tmp_path_factory, fields, separator, encoding):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator).writerows([["student", "deadline"], *fields])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(stream.getvalue().encode(encoding))
    wanted = [[field.strip() for field in row] for row in fields]
    assert [list(row.values()) for _, row in table.read(path, ("student", "deadline"))] == [row for row in wanted if any(row)]
