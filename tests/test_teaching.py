"""The teacher's guide: its tables are the notebooks' own, its courses fit their hours and the pages' needs; the check before the course."""

import importlib
import json
import re
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from qlab.lab import teaching

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
CHOSEN = teaching.chosen(ROOT)


@cache
def heads():
    """Number -> (minutes along the short path, numbers of the pages that it says it needs), read by other rules than the command's."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        first = " ".join("".join(json.loads(path.read_bytes())["cells"][0]["source"]).split())
        minutes = [int(number) for number in re.findall(r"\b\d+\b", first.partition("*Time:*")[2].partition("*Source")[0])]
        needs = re.findall(r"\b\d\d\b", first.partition("*You need:*")[2].partition("*Time:*")[0])
        found[path.name[:2]] = minutes[-1], set(needs)
    return found


def section(title):
    return GUIDE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| (?!---)", line)][1:]


def pages(text):
    return re.findall(r"\b[01]\d\b", text)


# The tables


def test_the_tables_are_up_to_date():
    assert teaching.filled(GUIDE, ROOT) == GUIDE, "run python -m qlab.lab.teaching"


def test_the_first_table_has_every_page_with_its_questions_and_sections():
    table = rows(section("What each page is for"))
    assert [row[0][1:3] for row in table] == list(heads())
    for notebook, promise, minutes, sections, questions in table:
        source = json.loads((ROOT / re.search(r"\.\./(exercises/\S+?)\)", questions)[1]).read_bytes())
        asked = [cell["source"][0] for cell in source["cells"] if "".join(cell["source"]).startswith("## Question ")]
        assert [f"## Question {n} {t}" for n, t in re.findall(r"(\d) ([^;]+?)(?:; |$)", questions.partition(": ")[2])] == [
            line.strip().replace(":", "", 1) for line in asked]
        assert int(re.findall(r"\d+", minutes)[-1]) == heads()[notebook[1:3]][0]
        assert promise and re.match(r"\d(\.\d)?", sections)


def test_every_mistake_is_one_that_its_set_catches():
    assert 25 <= len(CHOSEN) <= 30 and len({belief for belief, *_ in CHOSEN}) == len(CHOSEN)
    for _, question, note, _ in CHOSEN:
        path = next((ROOT / "solutions").glob(f"{question[:2]}_*.ipynb"))
        sources = ["".join(cell["source"]) for cell in json.loads(path.read_bytes())["cells"]]
        assert any(f'@wrong("q{question[3:]}", {json.dumps(note)}' in source for source in sources), (question, note)


def test_a_mistake_that_no_set_knows_is_told(monkeypatch):
    monkeypatch.setattr(teaching, "chosen", lambda root: [("x", "02.1", "no such note", "y")])
    with pytest.raises(ValueError, match="question 02.1 has no wrong solution named 'no such note'"):
        teaching.misconceptions(ROOT)


def test_a_page_without_its_marks_is_told_and_other_text_stays():
    with pytest.raises(ValueError, match="must hold '<!-- objectives"):
        teaching.filled("# Teaching\n", ROOT)
    start, end = "<!-- objectives: made by python -m qlab.lab.teaching -->", "<!-- end of objectives -->"
    marks = GUIDE[GUIDE.index("<!-- misconceptions"):GUIDE.index("<!-- end of misc")] + "<!-- end of misconceptions -->"
    made = teaching.filled(f"before\n{start}\nof yesterday\n{end}\nbetween\n{marks}\nafter\n", ROOT)
    assert made.startswith(f"before\n{start}\n| notebook") and "of yesterday" not in made
    assert "\nbetween\n" in made and made.endswith("\nafter\n")


def test_the_command_writes_nothing_where_it_only_checks_and_lists_a_set(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks", "exercises", "solutions"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "teaching.md"
    page.write_text(GUIDE.replace("floor for round", "rounded up"), encoding="utf-8")
    before = page.read_bytes()
    monkeypatch.setattr(teaching, "ROOT", tmp_path)
    assert teaching.main(["--check"]) == 1 and page.read_bytes() == before and "not up to date" in capsys.readouterr().err
    assert teaching.main([]) == 0 and page.read_text(encoding="utf-8") == GUIDE and teaching.main(["--check"]) == 0
    assert teaching.main(["--mistakes", "02"]) == 0 and "Question 1: the document's formula\n  floor for round\n" in capsys.readouterr().out
    assert teaching.main(["--mistakes", ""]) == 1 and capsys.readouterr().err.startswith("qlab: there is no set ")  # and writes no table
    assert teaching.main(["--mistakes", "99"]) == 1 and capsys.readouterr().err == "qlab: there is no set 99 in solutions/.\n"
    page.unlink()
    for arguments in ([], ["--check"]):
        assert teaching.main(arguments) == 1 and capsys.readouterr().err.startswith("qlab: there is no docs/teaching.md in ")


@pytest.mark.parametrize("source", ["# Welcome", "# 02 · Linear\n\n**Promise.**\n\n*Time:* 5 minutes."])
def test_a_head_without_its_parts_is_refused(source):
    with pytest.raises(ValueError, match="the first cell must have"):
        teaching.head(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)]))


# The courses


def course(title):
    """Each session's pages, in their order."""
    return [pages(re.sub(r"\bsets? \d\d.*", "", cell)) for row in rows(section(title)) for cell in row[1:3]]


@pytest.mark.parametrize("title", ["A two-day workshop", "A four-week course"])
def test_no_page_comes_before_what_it_needs(title):
    seen = set()
    for session in course(title):
        for number in sorted(session):
            assert heads()[number][1] <= seen | {number}, f"{number} needs {heads()[number][1] - seen}"
            seen.add(number)
    assert len(seen) > 12


def test_the_sessions_fit_their_time():
    read = {"11", "08", "17"}  # "to read"
    assert all(sum(heads()[number][0] for number in session if number not in read) <= 90 for session in course("A four-week course"))
    assert set(re.findall(r"\((\d\d) to read\)", section("A four-week course"))) == read
    assert set().union(*course("A four-week course")) == set(heads())
    days = [sum(heads()[number][0] for number in session) for session in course("A two-day workshop")]
    assert 105 <= min(days) and max(days) <= 140, "two hours or a little more"


def test_a_term_has_thirteen_weeks():
    double = re.search(r"two in the weeks of (.+?), and\b", " ".join(section("A four-week course").split()))[1]
    pairs = re.findall(r"(\d\d) and (\d\d)", double)
    assert all(int(two) == int(one) + 1 for one, two in pairs) and len(heads()) - len(pairs) == 13


def test_the_single_lecture_is_ninety_minutes():
    table = rows(section("A single lecture"))
    assert sum(int(row[0]) for row in table) == 90
    for minutes, _, what in table:
        for number in re.findall(r"qlab lecture (\d\d) --short", what):
            assert int(minutes) >= heads()[number][0]


def test_what_is_said_to_be_needed_by_none_is_needed_by_none():
    faq = " ".join(section("Questions that teachers ask").split())
    said = set(pages(re.search(r"nearly all; (.+?) by none that follows", faq)[1]))
    needed = set().union(*(needs for _, needs in heads().values()))
    assert said == set(heads()) - needed - {"17", "18"} - said.intersection(needed) and not said & needed
    assert [number for number, (_, needs) in heads().items() if "03" in needs] == ["05"]
    chosen = set(pages(re.search(r"on language models\?\*\* (.+?):", faq)[1]))
    assert "16" in chosen and all(heads()[number][1] <= chosen for number in chosen)


# The check before the course


@pytest.fixture
def check(monkeypatch):
    """Runs the page, then a task's cell with a student's answer in it: what it shows."""
    shown = []
    monkeypatch.setattr(importlib.import_module("qlab.grading.check"), "_show", lambda result: shown.append(repr(result)))
    cells = [cell.source for cell in nbformat.read(ROOT / "notebooks" / "prerequisites.ipynb", 4).cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    exec("\n\n".join(cells), names)
    stubs = {re.search(r"def (\w+)", cell)[1]: cell for cell in cells if "raise NotImplementedError()" in cell}
    assert shown == [f"{task} is not answered yet." for task in stubs] and len(stubs) == 3

    def run(task, answer):
        exec(stubs[task].replace("raise NotImplementedError()", answer), names)
        return shown[-1]

    yield run
    plt.close("all")


@pytest.mark.parametrize("task, right, wrong", [
    ("rows", "return w / w.abs().amax(dim=1, keepdim=True)", ["return w / w.abs().amax()", "return w / w.amax(dim=1, keepdim=True)",
                                                              "return w / w.abs().amax(dim=0)"]),
    ("layer", "return torch.nn.functional.linear(x, weight, bias)", ["return x @ weight.T", "return x @ weight.T - bias"]),
    ("slope", "return (2 * x * (w * x - y)).mean()", ["return ((w * x - y) ** 2).mean()", "return (2 * (w * x - y)).mean()",
                                                      "return (2 * x * (w * x - y)).sum()"]),
])
def test_a_task_says_whether_it_is_done_and_what_to_read(check, task, right, wrong):
    assert re.fullmatch(rf"Public tests of {task}: (\d) of \1 passed\.", check(task, right)), "and nothing about hidden tests"
    for answer in wrong:
        said = check(task, answer)
        number = re.search(r"task (\d) in the table below", said, re.IGNORECASE)[1]
        page = "\n".join(cell.source for cell in nbformat.read(ROOT / "notebooks" / "prerequisites.ipynb", 4).cells)
        assert re.search(rf"^\| {number} \| \[", page, re.MULTILINE)


def test_a_gradient_by_autograd_is_an_answer_too(check):
    said = check("slope", "w = torch.tensor(w, requires_grad=True)\n    ((w * x - y) ** 2).mean().backward()\n    return w.grad")
    assert said.endswith("2 of 2 passed.")
