"""The pages for whoever reads the answers: everything that is needed is on them, and nothing that a student wrote can leave its box."""

import gzip
import json
import re
from fractions import Fraction
from html.parser import HTMLParser

import grading_helpers
import pytest
import test_browser

from qlab.grading import batch, grade, mark, results
from qlab.grading.handed_in import notebook, outputs
from qlab.grading.handed_in.ingest import Submission
from qlab.grading.report import answers, by_hand, final, pages, teacher

BUNDLE = grading_helpers.bundle()
FLOOR = grading_helpers.CODES.replace("torch.round", "torch.floor")
LONG = "def codes(x, lo, hi, bits):\n" + "".join(f"    {{0}}{k} = x[{k}] * {k + 1} - hi\n" for k in range(5)) + "    return {0}0 - {0}1"
HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="alert(2)"> & \' " <!-- \ud800 \u202e \x00 \x1b[31m'


def result(student, cells, **fields):
    entry = Submission(fields.pop("id", f"{student.lower()}-1"), student, f"{student}.ipynb", "ab" * 32, cells=tuple(cells), **fields)
    return results.make(entry, BUNDLE, None if entry.status else mark.grade_trusted(list(cells), BUNDLE))


@pytest.fixture(scope="module")
def made():
    wrong = grading_helpers.cells(q1=FLOOR, before="print('a scratch cell')")
    wrong[2]["output"] = "what was saved"
    cells = {"ada-1": tuple(grading_helpers.cells()), "bob-1": tuple(wrong), "cyd-1": tuple(grading_helpers.cells(q2="1 / 0"))}
    found = [result("Ada", cells["ada-1"]), result("Bob", cells["bob-1"], late=True), result("Cyd", cells["cyd-1"]),
             result("Dan", (), status="unreadable", reason="it is empty")]
    return found, cells


class Reader(HTMLParser):
    """The text of each element by its tag, the links, and whether every tag that is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.links, self.scripts = [], {}, [], 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        self.links += [value for name, value in attrs if name == "href"]
        self.scripts += tag == "script"
        assert tag not in ("img", "iframe", "object", "link") and not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in dict.fromkeys(self.open):
            self.texts[tag][-1] += data


def test_a_page_has_all_that_a_reader_needs(made):
    found = pages.pages(*[made[0], BUNDLE, made[1]])
    assert list(found) == ["index.html", "ada-1.html", "bob-1.html", "cyd-1.html", "dan-1.html"]
    bob = Reader(found["bob-1.html"])
    assert bob.links == ["ada-1.html", "index.html", "cyd-1.html"] and bob.scripts == 0
    assert [text.strip() for text in bob.texts["h1"]] == ["Bob"] and pages.FOR_THE_TEACHER in bob.texts["p"]
    boxes = [text.strip("\n") for text in bob.texts["pre"]]
    assert boxes[0] == FLOOR and boxes[1] == "what was saved" and "a scratch cell" in boxes[-1]
    case = dict(zip(bob.texts["th"], bob.texts["td"]))
    assert case["call"].strip() == "codes(x, lo, hi, bits)" and f"{grading_helpers.SECRET:.6e}" in case["x"]
    assert case["about"].strip() == "two axes, and a value outside the range" and case["bits"].strip() == "4"
    assert case["expected"] != case["got"] and case["got"].strip().startswith("tensor([[ 0,  8, 11],\n        [ 9, 15, 14]]")
    assert "It answers as the wrong solution floor for round does." in bob.texts["p"]
    assert "late" in found["bob-1.html"] and "2 of 2, passed" not in found["bob-1.html"]
    cyd = Reader(found["cyd-1.html"])
    assert "The cell of this question stopped: ZeroDivisionError: division by zero (line 1 of the cell)" in cyd.texts["p"]
    dan = Reader(found["dan-1.html"])
    assert dan.links == ["cyd-1.html", "index.html"] and "it is empty" in dan.texts["p"] and "0 of 5 points" in dan.texts["p"]


def test_the_index_counts_each_mistake(made):
    text = pages.index(made[0], BUNDLE)
    page = Reader(text)
    assert page.scripts == 1 and page.links[:4] == ["ada-1.html", "bob-1.html", "cyd-1.html", "dan-1.html"]
    assert [option for option in page.texts["option"] if "(" in option] == [
        "q1: floor for round (1)", "q2: The cell of this question stopped (1)", "all: unreadable (1)"]
    cells = re.findall(r'<td colspan="(\d)" data-question="(\w+)" data-mistake="(\d*)">([^<]*)</td>', text)
    assert cells == [("1", "0", "", "2"), ("1", "1", "", "3"), ("1", "0", "0", "0: floor for round"), ("1", "1", "", "3"),
                     ("1", "0", "", "2"), ("1", "1", "1", "0: The cell of this question stopped"), ("2", "all", "2", "unreadable")]
    assert page.links[4:] == ["#0,0", "#1,1", "#,2"]


def test_the_index_shows_what_was_set_by_hand(made):
    ada, bob, cyd, dan = made[0]
    rows = [[by_hand.Row(1, "", name, points, comment)] for name, points, comment in (
        ("q1", Fraction(3, 2), ""), ("", Fraction(4), "Well."), ("q2", None, "Read it."), ("q2", Fraction(3), ""))]
    text = pages.index([final.final(one, BUNDLE, set_to) for one, set_to in zip((bob, ada, cyd, dan), rows)], BUNDLE)
    rows = [re.sub("<[^>]*>", "|", row).strip("|") for row in text.split("<tbody>")[1].split("</tbody>")[0].strip().split("\n")]
    assert [re.sub(r"\|+", "|", row) for row in rows] == [
        "Bob|4.5|1.5 (by hand): floor for round|3|late",
        "Ada|4 (by hand)|2|3|All questions: Set by hand to 4; the grader gave 5. &quot;Well.&quot;",
        "Cyd|2|2|0: The cell of this question stopped", "Dan|3|unreadable|3 (by hand)|it is empty"]


@pytest.mark.parametrize("last", ["check()", "check('q1')", "%%time\nprint(check())"])
def test_check_says_nothing_while_it_is_graded(last):
    """Test cells are not run then, so it would say that none has passed."""
    cells = grading_helpers.cells(before="check.start(q1=2, q2=3)\nprint('mine')", after=last)
    graded = result("Ada", cells)
    assert graded["score"] == 5 and "mine" in graded["stdout_tail"]
    assert not re.search("0 %|test cell|[Pp]ublic tests", graded["stdout_tail"])
    quiet = pages.page(result("Ada", [*cells[:-1], {**cells[-1], "source": "check()"}]), BUNDLE, ())
    assert Reader(quiet).texts["pre"][-1] == "\nmine\n"


def test_nothing_of_a_stranger_leaves_its_box():
    cells = grading_helpers.cells(q1=HOSTILE, before=HOSTILE)
    cells[2]["output"] = HOSTILE
    bad = result("Eve", grading_helpers.cells())
    bad["submission"] |= {"student": HOSTILE, "source": HOSTILE}
    bad["stdout_tail"] = bad["reason"] = HOSTILE
    bad["notes"] = [HOSTILE]
    question = bad["questions"][0]
    question.update(state="failed", reason=HOSTILE, note=HOSTILE, answers_like=HOSTILE, failed_case=1, failed_answers={"1": HOSTILE})
    found = pages.pages([bad], BUNDLE, {"eve-1": tuple(cells)})
    for name, text in found.items():
        assert Reader(text).scripts == (name == "index.html")
        assert not set(text) & set("\ud800\u202e\x00\x1b") and text.encode()
        assert "script-src" not in text if name != "index.html" else f"script-src 'sha256-{pages._HASH}'" in text
        assert "\\u202e" in text and "\\ud800" in text and "alert(2)" in text


def test_a_case_of_another_bundle_is_not_looked_up():
    old = result("Ada", grading_helpers.cells(q1=FLOOR))
    del old["questions"][0]["failed_answers"]
    assert "no answer is kept" in pages.page(old, BUNDLE, ())
    old["questions"][0]["failed_case"] = 99
    assert "No cell has this question" in pages.page(old, BUNDLE, ())


def test_a_group_of_cases_shows_the_case_that_it_failed_on():
    grouped = result("Ada", grading_helpers.cells(q1=FLOOR))
    groups = [{"name": "<edges>", "points": 1.5, "score": 0, "failed_case": 1, "answers_like": "floor & more"},
              {"name": "", "points": 0.5, "score": 0.5, "failed_case": None, "answers_like": None}]
    grouped["questions"][0] |= {"failed_case": 0, "groups": groups}
    page = Reader(pages.page(grouped, BUNDLE, ()))
    assert page.texts["h3"] == ["The case that failed first: a public one", "In <edges>: a hidden one"]
    assert "<edges>: 0 of 1.5, as the wrong solution floor & more" in page.texts["p"]
    assert "the cases without points of their own: 0.5 of 0.5" in page.texts["p"]


def test_an_answer_that_lost_its_id_is_found_by_its_function():
    cells = [{**cell, "grade_id": None} for cell in grading_helpers.cells(after="def nbytes(shape, bits):\n    return 4")]
    found = [answers.of_question(tuple(cells), question)["source"] for question in BUNDLE["questions"]]
    assert found == [grading_helpers.CODES, "def nbytes(shape, bits):\n    return 4"]
    assert [cell["source"] for cell in answers.others(tuple(cells), BUNDLE)] == [grading_helpers.SETUP, grading_helpers.NBYTES]
    twice = tuple(grading_helpers.cells() + grading_helpers.cells(q1=FLOOR, q2=""))
    assert answers.of_question(twice, BUNDLE["questions"][0])["source"] == FLOOR
    assert grading_helpers.CODES in [cell["source"] for cell in answers.others(twice, BUNDLE)]


def test_long_code_is_cut():
    text = pages._code({"source": "x" * (answers.LONGEST + 1234)})
    assert len(text) < answers.LONGEST + 100 and "... cut: 1,234 more characters" in text


def test_what_a_cell_was_saved_with():
    said = [{"output_type": "stream", "text": "\x1b[31mred\x1b[0m\n"}, {"output_type": "display_data", "data": {"image/png": "AAAA"}},
            {"output_type": "execute_result", "data": {"text/plain": ["tensor", "([1])"]}},
            {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["long"]}]
    assert outputs.text_of({"outputs": said}) == "red\n [image/png]\ntensor([1])\nValueError: no"
    for strange in (None, 3, [None, 3, {"text": 5}, {"data": []}, {"data": {"text/plain": {"a": 1}}}]):
        assert outputs.text_of({"outputs": strange}).strip() == ""
    assert outputs.text_of({"outputs": [{"text": ["y" * 10**6] * 10}] * 10}) == "y" * outputs.LONGEST + "\n..."
    cell = {"cell_type": "code", "source": "1", "metadata": {"nbgrader": {"grade_id": "q1"}}, "outputs": [{"text": "saved"}]}
    cells = notebook.cells_of(json.dumps({"nbformat": 4, "cells": [cell]}).encode())
    assert cells == [{"source": "1", "grade_id": "q1", "grade": False, "output": "saved"}]


def test_they_lie_beside_the_export_folder_and_replace_the_former_ones(made, tmp_path):
    found, cells = made
    entries = [Submission(name, name, f"{name}.ipynb", cells=those) for name, those in cells.items()]
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "left-the-course.html").write_text("old")
    told = teacher.export("pages", found, BUNDLE, tmp_path, entries)
    assert told == f"{tmp_path / 'pages' / 'index.html'}, 4 pages, for the teacher only: hidden inputs are on them"
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        "ada-1.html", "bob-1.html", "cyd-1.html", "dan-1.html", "index.html"]
    assert "a scratch cell" in (tmp_path / "pages" / "bob-1.html").read_text()
    long = {name: ({"source": LONG.format(name[0]), "grade_id": "q1", "grade": False},) for name in ("ada-1", "bob-1")}
    entries = [Submission(name, name, f"{name}.ipynb", cells=those) for name, those in long.items()]
    told = teacher.export("similar", found, BUNDLE, tmp_path, entries, [tmp_path / "none.ipynb"], linked=True)
    assert '<h2><a href="pages/ada-1.html">Ada</a> and <a href="pages/bob-1.html">Bob</a></h2>' in (tmp_path / "similar.html").read_text()
    assert told.startswith(f"{tmp_path / 'similar.html'} and .csv, 1 pair, for the teacher only, without the exercise")
    assert (tmp_path / "similar.csv").read_text("utf-8-sig").splitlines()[1:] == ["Ada,Bob,q1,100,53,ada-1,bob-1"]
    stub = {"cell_type": "code", "source": LONG.format("x"), "metadata": {"nbgrader": {"grade_id": "q1"}}}
    (tmp_path / "given.ipynb").write_text(json.dumps({"nbformat": 4, "cells": [stub]}))
    told = teacher.export("similar", found, BUNDLE, tmp_path, entries, [tmp_path / "none.ipynb", tmp_path / "given.ipynb"])
    assert told == f"{tmp_path / 'similar.html'} and .csv, 0 pairs, for the teacher only"


def test_the_command_writes_them(tmp_path, monkeypatch, capsys):
    bundle = {**BUNDLE, "digest": results.digest(BUNDLE)}
    (tmp_path / "bundle.json.gz").write_bytes(gzip.compress(json.dumps(bundle).encode()))
    for student, answer in (("ada", grading_helpers.CODES), ("bob", FLOOR)):
        cells = [{"cell_type": "code", "source": cell["source"], "metadata": {"nbgrader": {"grade_id": cell["grade_id"],
                  "grade": cell["grade"]}}} for cell in grading_helpers.cells(q1=answer)]
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{student}.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    monkeypatch.setattr(grade, "run_here", lambda todo, bundle, jobs: batch.run_here(todo, bundle, batch.trusted, jobs))
    args = [str(tmp_path / "in"), "--assignment", "99", "--bundle", str(tmp_path / "bundle.json.gz"), "--out", str(tmp_path / "out"),
            "--jobs", "1", "--export", "html", "pages", "similar"]
    for _ in range(2):  # in the second run the marks stand, and the code is read again
        assert grade.main(args) == 0
        made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.html")}
        names = [path.stem for path in sorted((tmp_path / "out" / "99_small").glob("*.json"))]
        assert made == {*(f"99_small/export/feedback/{name}.html" for name in names), "99_small/teacher/pages/index.html",
                        *(f"99_small/teacher/pages/{name}.html" for name in names), "99_small/teacher/similar.html"}
        assert "torch.floor" in (tmp_path / "out" / "99_small" / "teacher" / "pages" / f"{names[1]}.html").read_text()
    assert capsys.readouterr().out.count("2 pages, for the teacher only: hidden inputs are on them") == 2


def test_the_index_filters_by_question_and_by_mistake(made, tmp_path):
    """In a real browser, from a file: no server and no network."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    if not test_browser.CHROMIUM:
        pytest.skip("needs a Chromium: on Debian apt install chromium, elsewhere name one in QLAB_CHROMIUM")
    found = [*made[0], result("Eve", made[1]["bob-1"], id="eve-1")]
    found[-1]["submission"]["student"] = "<script>document.title = 'broken'</script>"
    teacher.export("pages", found, BUNDLE, tmp_path, [])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=test_browser.CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        troubles, asked_for = [], []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked_for.append(request.url.split(":")[0]))

        def shown():
            names = [link.inner_text() for link in page.locator("#students tbody tr:visible a").all()]
            assert page.locator("#shown").inner_text() == f"{len(names)} of 5 shown"
            return [name[:3] for name in names]

        page.goto((tmp_path / "pages" / "index.html").as_uri())
        assert shown() == ["Ada", "Bob", "Cyd", "Dan", "<sc"] and page.title() == "99_small: all students"
        page.select_option("#question", label="q2")
        assert shown() == ["Cyd", "Dan"]
        page.select_option("#question", label="q1")
        assert shown() == ["Bob", "Dan", "<sc"]
        page.select_option("#mistake", label="q1: floor for round (2)")
        assert shown() == ["Bob", "<sc"]
        page.click("text=Bob")
        page.click("text=next")
        assert page.locator("h1").inner_text() == "Cyd"
        page.go_back()
        page.go_back()
        assert shown() == ["Bob", "<sc"] and page.locator("#question").input_value() == "0"
        page.select_option("#question", label="q2")  # the mistake was one of q1
        assert shown() == ["Cyd", "Dan"]
        page.click("a:has-text('The cell of this question stopped')")
        assert shown() == ["Cyd"]
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
        assert page.title() == "99_small: all students"
        browser.close()
    assert set(asked_for) == {"file"} and all("Content Security Policy" in text for text in troubles)
