"""The other edition's tools: catalogues, what must survive a translation, what is stale, and the pages that a reader works in."""

import io
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from babel.messages import pofile
from hypothesis import given
from hypothesis import strategies as st
from jupyterlab import labapp
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qlab import cli, translate
from qlab.lab.jupyter import released
from qlab.translate import code, edition, extract, glossary, pages, po, stills, survives

ROOT = Path(__file__).resolve().parents[1]
LINES = st.text(st.one_of(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), st.sampled_from("\n\t\r\"\\")))


# Catalogues


@pytest.mark.parametrize("path", [translate.FOLDER / "zh.po", ROOT / "translations" / "zh" / "code.po"], ids=lambda path: path.name)
def test_a_catalogue_is_read_as_babel_reads_it(path):
    theirs = pofile.read_po(io.BytesIO(path.read_bytes()), locale="zh")
    assert po.read(path) == {message.id: message.string for message in theirs if message.id}


@given(st.dictionaries(LINES.filter(bool), LINES, max_size=4))
def test_what_is_written_is_read(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("po") / "a.po"
    path.write_text(po.text(entries, head=["Words."]), encoding="utf-8", newline="")
    assert po.read(path) == entries


@pytest.mark.parametrize("text, why", [
    ('msgid "a"\n', "ends without the msgstr"), ('msgstr "a"\n', "stands where the other"),
    ('msgid "a"\nmsgid "b"\n', "stands where the other"),
    ('msgid "a"\nmsgstr "b"\nmsgid "a"\nmsgstr "c"\n', "two entries for 'a'"), ("msgid a\n", "must be msgid or msgstr"),
    ('"a"\n', "must be msgid or msgstr"), ('msgid "a\\"\n', "is no text in quotes"),
])
def test_a_broken_catalogue_is_one_sentence(tmp_path, text, why):
    (tmp_path / "a.po").write_text(text)
    with pytest.raises(ValueError, match=why):
        po.read(tmp_path / "a.po")


def test_without_a_language_words_stay_as_they_are(monkeypatch):
    for asked in (None, "", "en", "fr", "C.UTF-8"):
        monkeypatch.delenv("QLAB_LANG", raising=False) if asked is None else monkeypatch.setenv("QLAB_LANG", asked)
        assert translate.tr("not answered yet") == "not answered yet"
    code = "import qlab.grading, sys; print(sorted(m for m in sys.modules if m.startswith('qlab.translate')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "['qlab.translate']\n"


def test_words_come_in_the_language_that_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("QLAB_LANG", "zh_CN.UTF-8")
    assert translate.tr("not answered yet") == "还没有作答" and translate.tr("no such text {n}", n=3) == "no such text 3"
    assert cli.main(["lab", "99"]) == 1
    assert capsys.readouterr().err.startswith(f"qlab: {ROOT / 'notebooks'} 中没有笔记本 99：请从 00, 01, ")
    assert cli.main(["lab", "--lang", "fr"]) == 1
    assert capsys.readouterr().err == "qlab: 没有语言 fr：请从 en 和 zh 中选择。\n"


def test_a_text_that_nobody_could_translate_is_found():
    assert extract.of_source('tr("a {x}", x=tr("b"))\ninto(asked, "c")') == ["a {x}", "b", "c"]
    with pytest.raises(ValueError, match="a.py, line 2: tr needs a literal text."):
        extract.of_source("\ntr(f'a {x}')", "a.py")


def test_a_word_that_is_gone_is_kept_as_a_comment(tmp_path):
    (tmp_path / "a.po").write_text(extract.merged({"old": "旧", "half": "一半"}, {"half": "a.py", "new": "b.py"}))
    assert po.read(tmp_path / "a.po") == {"half": "一半", "new": ""} and '#~ msgid "old"' in extract.kept(tmp_path / "a.po")


# What must survive


@pytest.mark.parametrize("english, other, lost", [
    ("$s / 2$ and `x`", "`x` 和 $s / 2$", ""),                          # the order may change
    ("$s / 2$", "$s / 3$", "formula"), ("`bits`", "`bit`", "code"), ("[a](b.ipynb)", "[a](c.ipynb)", "link"),
    ("[a](#The-course)", "[a](#课程)", ""), ("12.3 million", "1230 万", ""), ("175 billion", "175 亿", "number"),
    ("10,000 images, 3 bits", "10000 张图像，3 位", ""), ("INT8 and float32", "INT8 与浮点", ""), ("3 bits", "三位", "number"),
    ("{n:,} <em>bits</em>", "<em>位</em> {n:,}", ""), ("{n:,}", "{n}", "expression"), ("<em>a</em>", "a", "tag"),
    ("```\nx = 1\n```", "```\nx = 2\n```", "code"),
])
def test_what_is_lost_in_a_translation_is_told(english, other, lost):
    assert " ".join(one.partition(":")[0] for one in survives.lost(english, other)) == lost


def test_a_term_of_the_glossary_is_missed(tmp_path):
    (tmp_path / "g.md").write_text("| English | 中文 | |\n| - | - | - |\n| scale, scales | 缩放因子, 刻度 | |\n| zero-point | 零点 | |\n")
    terms = glossary.read(tmp_path / "g.md")
    assert glossary.strays("The scales and `zero-point`, rescaled", "缩放\n因子", terms) == []  # a term may be cut at the line's end
    assert glossary.strays("A zero-point", "零", terms) == ["zero-point is 零点 in the glossary"]
    (tmp_path / "g.md").write_text((tmp_path / "g.md").read_text() + "| scale | 尺度 | |\n")
    with pytest.raises(ValueError, match="two lines for scale"):
        glossary.read(tmp_path / "g.md")


# Code

ASKS = 'widgets.predict(\n    f"Is {x:.1f} <em>large</em>? "\n    "Or {{not}}?", ["Yes", "4"], "Yes", "It is.")'


def test_a_question_is_translated_and_its_code_is_not():
    known = {"Is {x:.1f} <em>large</em>? Or {{{{not}}}}?": "", "Yes": "是", "It is.": "“对”，\\ 且 \"大\"。"}
    known = {one: known.get(one) or "大吗：{x:.1f}，还是 {{不}}？" for one in code.words(ASKS)} | {"Yes": "是", "It is.": known["It is."]}
    called = {}
    namespace = {"x": 2.5, "widgets": type("W", (), {"predict": lambda *words: called.update(words=words)})}
    exec(code.replaced(ASKS, known), namespace)
    assert called["words"] == ("大吗：2.5，还是 {不}？", ["是", "4"], "是", '“对”，\\ 且 "大"。')


@pytest.mark.parametrize("source, known", [
    ('quiz([f"{x}"])', {}), ('quiz([f"a {x}"])', {"a {x}": "a"}), ('quiz([f"a {x}"])', {"a {x}": "a {y}"}),
    ('quiz([f"a {x}"])', {"a {x}": "a {x"}), ("x = 1  # one", {"# one": "# 一\ny = 2"}),
])
def test_a_translation_that_changes_more_than_words_is_refused(source, known):
    if not known:
        assert code.replaced(source, known) == source
        return
    with pytest.raises(ValueError, match="changes more than words"):
        code.replaced(source, known)


def test_only_words_count_as_words():
    source = ('def f(x):\n    """Twice x.\n\n    x: any.\n    """\n    # YOUR CODE HERE\n    print("twice")  # (n, 3)\n'
              '    # one\n    # two\n    return case("f(x)", hint="think")')
    assert code.words(source) == ["Twice x.\n\n    x: any.\n    ", "# one two", "think"]
    assert code.words("%matplotlib inline\n!ls") == []
    assert '"""两倍的 x。\n"""' in code.replaced(source, {code.words(source)[0]: "两倍的 x。\n"})


# Pages


@pytest.fixture
def course(tmp_path):
    """A course of one page: .cells, .save() writes it, .text is the file of its translation."""
    for folder in ("notebooks", "exercises", "translations/zh/notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    cells = [new_markdown_cell("# Bits", id="a1"), new_markdown_cell("A bit is 0 or 1.", id="b1"),
             new_code_cell("print(1)  # one", id="c1"), new_markdown_cell("The end.", id="d1")]
    path = tmp_path / "notebooks" / "00_welcome.ipynb"

    class Course:
        root, page, text = tmp_path, path, tmp_path / "translations" / "zh" / "notebooks" / "00_welcome.txt"

        def save(self):
            nbformat.write(new_notebook(cells=self.cells), path)

        def states(self):
            return [cell.state for cell in pages.cells(pages.load(path), pages.read(self.text))]

    made = Course()
    made.cells = cells
    made.save()
    blocks = [("a1", "# Bits", "# 位"), ("b1", "A bit is 0 or 1.", "一位是 0 或 1。"), ("d1", "The end.", "完。")]
    made.text.write_text("\n\n".join(f"<!-- cell {name} of {pages.digest(english)} -->\n{other}" for name, english, other in blocks) + "\n")
    (tmp_path / "translations" / "zh" / "code.po").write_text(po.text({"# one": "# 一"}))
    (tmp_path / "translations" / "zh" / "glossary.md").write_text("| English | 中文 | |\n| - | - | - |\n| bit, bits | 位 | |\n")
    return made


def test_a_page_is_translated_by_its_cells(course):
    notebook = translate.translated(course.page, "zh")
    assert [cell.source for cell in notebook.cells] == ["# 位", "一位是 0 或 1。", "print(1)  # 一", "完。"]
    assert [cell.id for cell in notebook.cells] == ["a1", "b1", "c1", "d1"] and translate.translated(course.page, "en") is None
    course.text.unlink()
    assert translate.translated(course.page, "zh") is None
    with pytest.raises(ValueError, match="there is no language fr"):
        translate.translated(course.page, "fr")


def test_a_changed_cell_is_stale_and_is_shown_in_english(course):
    course.cells[1] = new_markdown_cell("A bit is 1 or 0.", id="b2")  # a page's ids are made of its text
    course.save()
    assert course.states() == ["done", "stale", "done"]
    assert translate.translated(course.page, "zh").cells[1].source == "A bit is 1 or 0.\n\n*英文原文在翻译之后有改动，此处为英文。*"


def test_a_moved_cell_is_current_and_a_new_one_is_missing(course):
    course.cells[1], course.cells[3] = course.cells[3], course.cells[1]
    course.cells.insert(1, new_markdown_cell("New.", id="n1"))
    course.cells.append(new_markdown_cell("For the lecturer.", id="s1", metadata={"tags": ["speaker"]}))
    course.save()
    assert course.states() == ["done", "missing", "done", "done"]


def test_a_cell_that_takes_over_an_id_takes_no_text(course):
    """An exercise set's cells are numbered: a new one moves the numbers behind it."""
    course.cells.insert(1, new_markdown_cell("New.", id="b1"))
    course.cells[2].id, course.cells[4].id = "d1", "e1"
    course.save()
    assert course.states() == ["done", "missing", "done", "done"]


def test_a_translator_gets_the_english_below_and_takes_the_mark_away(course, capsys):
    course.cells[1].source, course.cells[3].source = "A bit is 1 or 0.", "The end"
    course.cells.append(new_markdown_cell("--> English\nenglish", id="e1"))
    course.save()
    course.text.write_text(pages.skeleton(course.page, "zh"))
    assert course.states() == ["done", "stale", "stale", "missing"] and course.text.read_text() == pages.skeleton(course.page, "zh")
    text = course.text.read_text()
    assert "<!-- english\nA bit is 1 or 0.\nenglish -->" in text and "一位是 0 或 1。" in text
    course.text.write_text(text.replace(": stale -->", " -->").replace("0 或 1", "1 或 0").replace(": missing -->\n", " -->\n--> 英文\n"))
    assert course.states() == ["done"] * 4 and "english" not in pages.skeleton(course.page, "zh").splitlines()


def test_a_page_is_begun_by_its_number(course, monkeypatch, capsys):
    course.page.with_name("07_more.ipynb").write_bytes(course.page.read_bytes())
    course.page.with_name("07_more.ipynb").write_text(course.page.read_text().replace("# one", "# two"))
    monkeypatch.chdir(course.root)
    before = (translate.FOLDER / "zh.po").read_bytes()
    assert cli.main(["translate", "07"]) == 0 and (translate.FOLDER / "zh.po").read_bytes() == before
    assert capsys.readouterr().out.splitlines() == [str(course.text.with_name("07_more.txt")), str(course.root / "translations/zh/code.po")]
    assert course.text.with_name("07_more.txt").read_text().count(": missing -->\n<!-- english\n") == 3
    assert po.read(course.root / "translations" / "zh" / "code.po") == {"# one": "# 一", "# two": ""}  # of all pages that are begun


def test_only_a_page_of_the_course_is_translated(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    (course.root / "lectures").mkdir()
    (course.root / "lectures" / "00_welcome.ipynb").write_bytes(course.page.read_bytes())
    before = sorted(course.root.rglob("*"))
    assert cli.main(["translate", "lectures/00_welcome.ipynb"]) == 1 and sorted(course.root.rglob("*")) == before
    assert capsys.readouterr().err.endswith("lectures/00_welcome.ipynb is no page of the course: name one in notebooks/ or exercises/.\n")


def test_a_text_whose_cell_is_gone_is_not_lost(course):
    del course.cells[1]
    course.save()
    assert course.states() == ["done", "done"] and "一位是 0 或 1。" in pages.skeleton(course.page, "zh")


@pytest.mark.parametrize("english, other, told", [
    ("A bit is 0 or 1.", "一位是 0 或 2。", "number: 1 is missing, 2 is new"),
    ("A bit is 0 or 1.", "一比特是 0 或 1。", "bit is 位 in the glossary"),
    ("See [it](#Bits), 0, 1", "见[它](#Bits)，0，1", "the link #Bits leads to no heading of the page"),
])
def test_the_check_tells_what_is_broken(course, monkeypatch, capsys, english, other, told):
    monkeypatch.chdir(course.root)
    assert cli.main(["translate", "--check", "00"]) == 0, capsys.readouterr().out
    course.cells[1].source = english
    course.save()
    assert cli.main(["translate", "--check", "00"]) == (english != "A bit is 0 or 1.")  # stale
    text = course.text.read_text().replace("一位是 0 或 1。", other)
    course.text.write_text(text.replace(pages.digest("A bit is 0 or 1."), pages.digest(english)))
    capsys.readouterr()
    assert cli.main(["translate", "--check", "00"]) == 1 and told in capsys.readouterr().out


def test_what_a_page_lacks_counts_only_where_it_is_promised(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    course.page.rename(course.page.with_name("07_more.ipynb"))
    course.text.unlink()
    (course.root / "notebooks" / "00_welcome.ipynb").write_text(nbformat.writes(new_notebook()))
    assert cli.main(["translate", "--check", "07"]) == 0 and "0 of   3 texts" in capsys.readouterr().out
    course.text.with_name("07_more.txt").write_text("no cell\n")
    assert cli.main(["translate", "--check", "07"]) == 1
    assert capsys.readouterr().err.endswith("07_more.txt, line 1 stands before the first cell.\n")
    assert cli.main(["translate", "--lang", "en"]) == 1 and "written in English" in capsys.readouterr().err


def test_a_word_of_a_question_is_no_word_of_its_tags():
    question = 'Is <b class="b">b</b> &lt; a?'
    output = {"data": {"text/plain": "Predict. Is b < a?", "text/html": f"<p><b>Predict.</b> {question}</p><ul><li>b</li></ul>"}}
    stills.translate(output, {"b": "乙", "lt": "x", "class": "y"}, "zh")
    assert output["data"]["text/html"] == '<p><b>预测。</b> Is <b class="b">乙</b> &lt; a?</p><ul><li>乙</li></ul>'
    output["data"]["text/html"] = f"<p><b>Predict.</b> {question}</p>"
    stills.translate(output, {question: "<b>乙</b> 小？", "b": "乙"}, "zh")  # a text with tags in it is one
    assert output["data"]["text/html"] == "<p><b>预测。</b> <b>乙</b> 小？</p>"


# A reader's copy


def test_a_readers_work_is_never_lost(course, monkeypatch, capsys):
    monkeypatch.setattr(edition, "_trust", lambda *_: None)
    (course.root / "exercises" / "README.md").write_text("English")
    copy = course.root / "zh" / "notebooks" / "00_welcome.ipynb"
    assert edition.open_in(course.root, "zh", "notebooks/00_welcome.ipynb") == "zh/notebooks/00_welcome.ipynb"
    assert "一位是" in copy.read_text() and (course.root / "zh" / "exercises" / "README.md").read_text() == "English"
    course.cells[3].source = "End."
    course.save()
    edition.make(course.root, "zh")
    assert "End." in copy.read_text()                                 # nobody had changed it
    mine = copy.read_text().replace("print(1)", "print(2)")
    copy.write_text(mine)
    assert edition.make(course.root, "zh")[1] == [] and copy.read_text() == mine
    course.cells[3].source = "The very end."
    course.save()
    for _ in range(2):                                                # it is said as long as it holds
        capsys.readouterr()
        edition.open_in(course.root, "zh", "notebooks/00_welcome.ipynb")
        assert copy.read_text() == mine and "zh/notebooks/00_welcome.ipynb has your changes" in capsys.readouterr().out
    copy.rename(copy.with_name("mine.ipynb"))
    edition.make(course.root, "zh")
    assert "The very end." in copy.read_text() and copy.with_name("mine.ipynb").read_text() == mine
    (course.root / "zh" / "made.json").write_text("{")                # then every page counts as the reader's
    copy.write_text(mine)
    assert edition.make(course.root, "zh")[1] == [copy] and copy.read_text() == mine


def test_what_is_no_page_is_passed_over_and_a_page_that_is_gone_goes(course, monkeypatch):
    monkeypatch.setattr(edition, "_trust", lambda *_: None)
    sources, copies = course.root / "exercises", course.root / "zh" / "exercises"
    (sources / "folder.md").mkdir()
    (sources / "nowhere.png").symlink_to(sources / "none.png")
    for name in ("a.md", "b.md"):
        (sources / name).write_text("English")
    edition.make(course.root, "zh")
    assert sorted(path.name for path in copies.iterdir()) == ["a.md", "b.md"]
    (copies / "b.md").write_text("mine")
    for name in ("a.md", "b.md"):
        (sources / name).unlink()
    for _ in range(2):
        edition.make(course.root, "zh")
        assert [path.read_text() for path in copies.iterdir()] == ["mine"]
    (sources / "b.md").write_text("English")                           # it is back, as it was when the reader began
    assert edition.make(course.root, "zh")[1] == [] and (copies / "b.md").read_text() == "mine"


def test_lab_opens_the_page_in_the_language_that_is_asked_for(course, monkeypatch):
    started = []
    monkeypatch.setattr(labapp.LabApp, "launch_instance", started.extend)
    monkeypatch.setattr(edition, "_trust", lambda *_: None)
    monkeypatch.setenv("QLAB_LANG", "")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")  # lab adds to it
    monkeypatch.chdir(course.root)
    for words, page in ((["--lang", "zh"], "zh/notebooks/00_welcome.ipynb"), (["--lang", "en"], "notebooks/00_welcome.ipynb")):
        started.clear()
        assert cli.main(["lab", "00", *words]) == 0 and f"--LabApp.default_url=/lab/tree/{page}" in started
        assert translate.tr("not answered yet") == ("还没有作答" if page.startswith("zh") else "not answered yet")  # as its kernels say it
    monkeypatch.setenv("QLAB_LANG", "zh")
    assert cli.main(["lab", "zh/notebooks/00_welcome.ipynb"]) == 0
    assert "--LabApp.default_url=/lab/tree/zh/notebooks/00_welcome.ipynb" in started


def test_pages_of_released_ones_are_trusted_and_others_are_not(course, monkeypatch, tmp_path):
    from nbformat.sign import NotebookNotary

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setattr(released, "RELEASED", tmp_path / "released.json")
    course.cells[2].outputs = [new_output("display_data", {"text/html": "<b>1</b>"})]
    course.save()
    (tmp_path / "released.json").write_text(json.dumps({"notebooks/00_welcome.ipynb": released.digest(course.page.read_bytes())}))

    def trusted():
        edition.open_in(course.root, "zh", "notebooks/00_welcome.ipynb")
        with NotebookNotary() as notary:
            return notary.check_signature(nbformat.read(course.root / "zh" / "notebooks" / "00_welcome.ipynb", 4))

    assert trusted()
    course.cells[2].outputs[0].data["text/html"] = "<script>1</script>"
    course.save()
    assert not trusted()
