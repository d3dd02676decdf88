"""Slides from notebooks: hand-made notebooks whose slides are known, the copy for JupyterLab, the folder of web pages, the command.

tests/test_lecture_pages.py looks at the slides in a browser.
"""

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from qlab import cli, lecture_command
from qlab.lecture import blocks, html, lab, live, slides

ROOT = Path(__file__).resolve().parents[1]
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
FOLDED = {"jupyter": {"source_hidden": True}}


def png(width=800, height=400):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


def shown(text, **data):
    return new_output("display_data", {"text/plain": text, **data})


def printed(lines, text="line"):
    return new_output("stream", text="\n".join([text] * lines) + "\n")


def code(source, *outputs, **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def figure(**metadata):
    return code("draw()", shown("<Figure>", **{"image/png": png()}), **metadata)


def outline(*cells, short=False):
    """Each slide as its title and the kinds on it."""
    return [(slide.title, [piece.kind for piece in slide.pieces]) for slide in slides.make(list(cells), short)]


TITLE = new_markdown_cell("# Title\n\nPromise.")


# What is a slide


def test_a_heading_begins_a_slide_also_inside_a_cell_and_loses_the_mark_of_the_short_path():
    assert outline(new_markdown_cell("# Title\n\nPromise.\n\n## One (short path)\nText.\n\n### Two\n\nMore.")) == [
        ("Title", ["text"]), ("One", ["text"]), ("Two", ["text"])]


def test_a_figure_begins_a_slide_and_the_sentence_after_it_stands_below_it():
    section = new_markdown_cell("## Two\nLook at this.")
    assert outline(TITLE, section, figure(**FOLDED), new_markdown_cell("It rises.")) == [
        ("Title", ["text"]), ("Two", ["text"]), ("Two", ["picture", "text"])]


def test_a_title_has_its_figure_on_its_own_slide_if_there_is_room():
    assert outline(TITLE, figure(**FOLDED)) == [("Title", ["text", "picture"])]
    assert outline(new_markdown_cell("# Title\n\n" + "\n\n".join(["word " * 60] * 3)), figure(**FOLDED)) == [
        ("Title", ["text"] * 3), ("Title", ["picture"])]


def test_code_that_is_not_folded_is_shown_before_its_figure_and_folded_code_is_not():
    assert outline(TITLE, new_markdown_cell("## Two"), figure(), figure(**FOLDED)) == [
        ("Title", ["text"]), ("Two", ["source"]), ("Two", ["picture"]), ("Two", ["picture"])]


def test_setup_is_skipped_and_runs():
    assert outline(TITLE, code("import torch", **FOLDED)) == [("Title", ["text", "run"])]


def test_live_figures_and_questions_have_slides_of_their_own():
    figure, ask = code("play()", shown("Live figure: bits = 4", **{"image/png": png()})), code("predict()", shown("Predict. Which?"))
    assert outline(new_markdown_cell("## Play\nTry it."), figure, new_markdown_cell("See?"), ask) == [
        ("Play", ["text"]), ("Play", ["live"]), ("Play", ["text"]), ("Play", ["question"])]


def test_code_and_what_it_prints_stand_together_or_one_after_the_other():
    assert outline(TITLE, new_markdown_cell("## Two"), code("print()", printed(3)))[1:] == [("Two", ["source", "output"])]
    long = code("\n".join(["x = 1"] * 20), printed(20))
    assert outline(TITLE, new_markdown_cell("## Two"), long)[1:] == [("Two", ["source"]), ("Two", ["output"])]


def test_the_sentence_that_announces_code_goes_with_it():
    text = new_markdown_cell("## Two\n\n" + "\n\n".join(["word " * 70] * 4) + "\n\nThree lines:")
    made = outline(TITLE, text, code("\n".join(["x = 1"] * 12)))
    assert made[-1] == ("Two", ["text", "source"]) and sum(kinds.count("text") for _, kinds in made[1:]) == 5


def test_derivations_unfold_and_nothing_else_does():
    text = "First.\n\n$$x$$\n\nThen."
    made = slides.make([new_markdown_cell(f"## Derive\n{text}\n### By hand\n{text}\n## Build\n{text}")])
    assert [[piece.step for piece in slide.pieces] for slide in made] == [[0, 1, 2], [0, 1, 2], [0, 0, 0]]


def test_sentences_for_who_reads_alone_are_left_out():
    made = slides.make([new_markdown_cell("# Title\n\nPromise.\n\n**Run all cells now** (menu): about 20 seconds. *You need:* PyTorch.\n"
                                          "*Time:* 5 minutes; 2 on the *short path*. *Source document:* 2.1, 3.1. Below: a ruler.")])
    assert [piece.source for piece in made[0].pieces] == ["Promise.", "Below: a ruler."]


def test_the_speakers_cell_is_no_slide():
    cells = [TITLE, new_markdown_cell("## Two\nText."), new_markdown_cell("Ask them.", metadata={"tags": ["speaker"]})]
    assert outline(*cells) == [("Title", ["text"]), ("Two", ["text"])] and slides.notes(cells) == "Ask them."


def test_the_short_path_alone_and_all_code_runs():
    cells = [TITLE, new_markdown_cell("## One (short path)\nText."), code("a"), new_markdown_cell("## Two\nText."), code("b")]
    assert outline(*cells, short=True) == [("Title", ["text"]), ("One", ["text", "source", "run"])]
    assert outline(TITLE, *cells[3:], short=True) == [("Title", ["text"]), ("Two", ["text", "source"])]  # nothing is marked: all of it


def test_a_long_text_is_spread_evenly():
    made = slides.make([new_markdown_cell("## Two\n\n" + "\n\n".join(["word " * 60] * 9))])
    counts = [len(slide.pieces) for slide in made]
    assert sum(counts) == 9 and len(counts) > 1 and max(counts) - min(counts) <= 1


def test_a_sentence_that_a_formula_interrupts_stays_on_one_slide():
    text = "\n\n".join(["word " * 75] * 4 + ["$$\\frac{a}{b},$$", "and stop."])
    made = slides.make([new_markdown_cell(f"## Two\n\n{text}")])
    assert len(made) > 1 and [piece.source for piece in made[-1].pieces][-2:] == ["$$\\frac{a}{b},$$", "and stop."]


def test_a_long_table_that_code_has_printed_is_spread_and_loses_no_row():
    table = "| a | b |\n| - | - |\n" + "\n".join(f"| {k} | text |" for k in range(40))
    made = slides.make([TITLE, code("show()", shown("", **{"text/markdown": table}), **FOLDED)])
    rows = [piece.rows for slide in made for piece in slide.pieces if piece.kind == "output"]
    assert len(rows) > 1 and [k for first, last in rows for k in range(first, last)] == list(range(40))
    head = shown("", **{"text/markdown": "| a | b |\n| - | - |"})
    assert outline(TITLE, code("show()", head, printed(40), **FOLDED)) == [("Title", ["text"]), ("Title", ["output"])]


@settings(max_examples=50)
@given(st.lists(st.one_of(
    st.integers(1, 900).map(lambda n: new_markdown_cell("word " * n)),
    st.integers(1, 400).map(lambda n: new_markdown_cell("word " * n + "is:\n\n$$\\frac{a}{b},$$\n\nand so on:\n\n" + "- word\n" * 20)),
    st.tuples(st.integers(1, 25), st.integers(0, 40)).map(lambda n: code("\n".join(["x"] * n[0]), *([printed(n[1])] if n[1] else []))),
    st.integers(1, 4).map(lambda n: new_markdown_cell("#" * n + " Heading\n\n$$\\frac{a}{b}$$")),
    st.booleans().map(lambda folded: figure(**FOLDED if folded else {})),
    st.just(None).map(lambda _: code("ask()", shown("Predict. Which?"))),
    st.integers(1, 60).map(lambda n: new_markdown_cell("| a | b |\n| - | - |\n" + "| one | two |\n" * n)),
), max_size=12))
def test_any_notebook_no_slide_is_overfull_and_nothing_is_lost(cells):
    made = slides.make(cells)
    for slide in made:
        heights = sum(piece.height for piece in slide.shown)
        assert heights <= slides.ROOM - slides.HEAD + 1
        assert all(0 < piece.scale <= slides.LARGEST for piece in slide.shown)
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    placed = list(dict.fromkeys(id(piece.cell) for slide in made for piece in slide.pieces if piece.cell is not None))
    assert placed == [id(cell) for cell in code_cells]
    words = sum(piece.source.count("word") for slide in made for piece in slide.pieces)
    assert words == sum(cell.source.count("word") for cell in cells if cell.cell_type == "markdown")


# The pieces of a text


def test_sentences_are_not_parted_inside_formulas_code_and_brackets():
    text = "A sum $a. B$ of `c. D` things (as in e.g. E. F). Then the next one. " * 12
    parts = blocks.sentences(text.strip())
    assert " ".join(parts) == text.strip() and len(parts) > 1
    for part in parts:
        assert part.count("$") % 2 == part.count("`") % 2 == 0 and part.count("(") == part.count(")")


@pytest.mark.parametrize("source, kinds", [
    ("| a |\n| - |\n| $x|y$ |\nafter", ["table", "text"]),
    ("1. a\n   more\n2. b\n\nText", ["item", "item", "text"]),
    ("A list of\n2018. years", ["text"]),
    ("$$\na\n\nb\n$$\nText\n$$c$$", ["math", "text", "math"]),
    ("Text\n```python\nx = 1\n\n# a comment\n- y\n```\n# After", ["text", "code", "heading"]),
    ("~~~\n```\n\n| a |\n~~~\nText", ["code", "text"]),
    ("- a\n  ```\n  # b\n\n  c\n  ```\n- d", ["item", "item"]),
    ("", []),
])
def test_blocks(source, kinds):
    assert [block.kind for block in blocks.split(source)] == kinds


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem[:2])
def test_no_word_of_the_course_is_lost_on_the_way_to_slides(path):
    cells = nbformat.read(path, as_version=4).cells
    said = [cell.source for cell in cells if cell.cell_type == "markdown" and slides.SPEAKER not in cell.metadata.get("tags", [])]
    before = slides.ALONE.sub("", "\n\n".join(said))
    made = slides.make(cells)
    heading = "\0"                                                      # a title that is repeated on a further slide counts once
    after = []
    for slide in made:
        after += [] if slide.title == heading else [slide.title]
        heading = slide.title
        after += [piece.source for piece in slide.pieces]

    def words(text):  # tables repeat their heads
        return set(re.findall(r"[\w$\\]+", text.replace("(short path)", "")))

    assert words(" ".join(after)) == words(before)


# The copy for JupyterLab


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem[:2])
def test_the_copy_runs_the_same_code_in_the_same_order_and_the_notebook_stays_as_it_was(path):
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    made = live.copy(notebook)
    nbformat.validate(made)
    assert [cell.source for cell in made.cells if cell.cell_type == "code"] == [
        cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert nbformat.writes(notebook) == before
    seen = {entry[0] for cell in made.cells for entry in cell.metadata[live.KEY]["at"]}
    assert seen == set(range(len(made.metadata[live.KEY]["titles"])))


def test_what_stands_apart_in_the_slides_is_one_cell_in_the_copy():
    long = code("\n".join(["x = 1"] * 20), printed(20))
    made = live.copy(new_notebook(cells=[new_markdown_cell("## Two"), long, new_markdown_cell("Seen?")]))
    heading, cell, text = made.cells
    assert [entry[0] for entry in heading.metadata[live.KEY]["at"]] == [0, 1]
    assert [(entry[0], entry[2]) for entry in cell.metadata[live.KEY]["at"]] == [(0, "source"), (1, "output")]
    assert text.metadata[live.KEY]["at"][0][0] == 1
    assert [cell.metadata.slideshow.get("slide_type") for cell in made.cells] == ["slide", None, None]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one small notebook, in the current folder: .notebooks/02_small.ipynb."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_welcome.ipynb").write_text("{}")
    cells = [TITLE, new_markdown_cell("## Two, the second\nText."), code("print(1)", printed(1)), figure(**FOLDED),
             new_markdown_cell("- Begin here.\n- At *Two, the second* ask them.", metadata={"tags": ["speaker"]})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "02_small.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def test_a_fresh_copy_each_time_and_a_changed_one_is_kept(course):
    path = course / "notebooks" / "02_small.ipynb"
    copied, kept = live.write(path, course)
    assert copied == course / "lectures" / "02_small.ipynb" and kept is None
    first = copied.read_bytes()

    notebook = nbformat.read(copied, as_version=4)
    ran = next(cell for cell in notebook.cells if cell.cell_type == "code")
    ran.outputs = []                                      # it has run: nothing that anybody would miss
    nbformat.write(notebook, copied)
    assert live.write(path, course) == (copied, None) and copied.read_bytes() == first

    ran.source += "\nprint('mine')"
    nbformat.write(notebook, copied)
    changed = copied.read_bytes()
    _, kept = live.write(path, course)
    assert kept.read_bytes() == changed and copied.read_bytes() == first and kept.parent == copied.parent
    assert live.write(kept, course) == (kept, None)                     # and can be shown again, as it is


def test_whatever_lies_in_the_copys_place_is_kept(course):
    copied, _ = live.write(course / "notebooks" / "02_small.ipynb", course)
    copied.write_text("not a notebook")
    _, kept = live.write(course / "notebooks" / "02_small.ipynb", course)
    assert kept.read_text() == "not a notebook" and nbformat.read(copied, as_version=4).cells


def test_the_notes_lie_beside_the_copy_and_go_with_their_cell(course):
    path = course / "notebooks" / "02_small.ipynb"
    page = live.notes_page(live.write(path, course)[0])
    assert "<li>Begin here.</li>" in page.read_text() and "<script" not in page.read_text()
    notebook = nbformat.read(path, as_version=4)
    del notebook.cells[-1]
    nbformat.write(notebook, path)
    live.write(path, course)
    assert not page.exists()


def test_formulas_in_the_notes_are_set_without_a_network(course):
    pytest.importorskip("jupyterlab_slideshow", reason="needs the extra lecture: pip install -e '.[lecture]' -c constraints.txt")
    path = course / "notebooks" / "02_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = "0.5 on $[-1, 1]$"
    nbformat.write(notebook, path)
    page = live.notes_page(live.write(path, course)[0]).read_text(encoding="utf-8")
    assert "<p>0.5 on $[-1, 1]$</p>" in page and page.count("<script>") == page.count("</script>") == 2 and "inlineMath" in page


def test_a_page_that_somebody_has_written_is_no_page_of_notes(course):
    mine = course / "lectures" / "02_small_notes.html"
    mine.parent.mkdir()
    mine.write_text("mine")
    path = course / "notebooks" / "02_small.ipynb"
    for _ in range(2):
        copied, _ = live.write(path, course)
        assert nbformat.read(copied, as_version=4).metadata[live.KEY]["notes"] == "02_small_notes_2.html"
        assert "Begin here." in live.notes_page(copied).read_text()
    notebook = nbformat.read(path, as_version=4)
    del notebook.cells[-1]
    nbformat.write(notebook, path)
    live.write(path, course)
    assert mine.read_text() == "mine" and len(list(mine.parent.glob("*.html"))) == 1


def test_copies_that_are_changed_within_one_second_are_all_kept(course, monkeypatch):
    class Still(live.datetime):
        @classmethod
        def now(cls):
            return cls(2024, 1, 2)

    monkeypatch.setattr(live, "datetime", Still)
    path, kept = course / "notebooks" / "02_small.ipynb", []
    for number in range(4):
        copied, aside = live.write(path, course)
        kept += [aside.read_text()] if aside else []
        copied.write_text(f"mine {number}")
    assert kept == ["mine 0", "mine 1", "mine 2"]
    assert sorted(path.read_text() for path in copied.parent.glob("02_small_2024*")) == kept


def test_a_text_keeps_its_pictures(course):
    """An attachment of the cell, and a file that lies beside the notebook and not beside the copy."""
    path, data = course / "notebooks" / "02_small.ipynb", base64.b64encode(b"PNG").decode()
    (path.parent / "b 1.png").write_bytes(b"PNG")
    notebook = nbformat.read(path, as_version=4)
    text = "![one](attachment:a.png) ![two](b%201.png) ![three](none.png) ![four](https://a.b/c.png)"
    notebook.cells[1] = new_markdown_cell(f"## Two\n{text}", attachments={"a.png": {"image/png": data}})
    nbformat.write(notebook, path)
    copied, _ = live.write(path, course)
    held = f"![one](data:image/png;base64,{data}) ![two](data:image/png;base64,{data}) ![three](none.png) ![four](https://a.b/c.png)"
    assert any(cell.source == held for cell in nbformat.read(copied, as_version=4).cells)
    assert html.prose(held).count(f'src="data:image/png;base64,{data}"') == 2


# The folder of web pages

needs_lecture = pytest.mark.skipif(not all(importlib.util.find_spec(name) for name in ("jupyterlab_slideshow", "sphinx_revealjs")),
                                   reason="needs the extra lecture: pip install -e '.[lecture]' -c constraints.txt")


@needs_lecture
def test_the_exported_folder_has_all_that_it_needs(course, capsys):
    assert cli.main(["lecture", "02", "--html", "out"]) == 0
    assert capsys.readouterr().out.startswith("out/index.html: 3 slides")
    text = (course / "out" / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text)
    for name in re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", text):
        assert (course / "out" / name).is_file(), name
    assert text.count("<section>") == 3 and len(list((course / "out" / "pictures").iterdir())) == 1
    first, second, *_ = text.split("</section>")
    assert "Begin here." in first and "ask them" in first and "Begin here." not in second and "ask them" in second  # the notes


@needs_lecture
def test_an_earlier_export_is_replaced_and_nothing_else_is(course, capsys):
    assert cli.main(["lecture", "02", "--html"]) == cli.main(["lecture", "02", "--html"]) == 0
    assert (course / "lectures" / "02_small" / "index.html").is_file()
    (course / "mine").mkdir()
    (course / "mine" / "letter").write_text("mine")
    assert cli.main(["lecture", "02", "--html", "mine"]) == 1
    assert "holds something else" in capsys.readouterr().err and (course / "mine" / "letter").read_text() == "mine"
    (course / "lectures" / "02_small" / "assets" / "mine.css").write_text("mine")
    assert cli.main(["lecture", "02", "--html"]) == 1 and (course / "lectures" / "02_small" / "assets" / "mine.css").is_file()
    assert not list(course.rglob(".*.partial")) and not list(course.rglob(".*.old"))


@needs_lecture
def test_a_failed_export_leaves_the_earlier_one(course, monkeypatch):
    assert cli.main(["lecture", "02", "--html", "out"]) == 0
    before = {path: path.read_bytes() for path in (course / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(html, "page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["lecture", "02", "--html", "out"])
    assert before == {path: path.read_bytes() for path in (course / "out").rglob("*") if path.is_file()}
    assert not list(course.rglob(".*.partial")) and not list(course.rglob(".*.old"))


def test_what_is_written_is_escaped():
    cell = code("print('<script>')", new_output("stream", text="<script>alert(1)</script>"))
    page = html.page(slides.make([new_markdown_cell("## A < B"), cell]), "", Path())
    assert "<script>alert" not in page and "A &lt; B" in page


def test_brackets_in_code_and_formulas_are_no_link_and_a_picture_stays():
    assert html.prose("![alt *text*](pic.png), `f[i](x)`, $w[i](x)$, [b `c[i]`](d.ipynb), [e](https://f.g)") == (
        '<p><img src="pic.png" alt="alt text" />, <code>f[i](x)</code>, $w[i](x)$, b <code>c[i]</code>, <a href="https://f.g">e</a></p>')
    assert "d[0](1)" in re.sub("<.*?>", "", html.prose("~~~\nd[0](1)\n~~~\n"))
    assert html.prose("$5 and [a](b.ipynb) $6") == "<p>$5 and a $6</p>"


def test_errors_drawings_and_photographs_are_shown(tmp_path):
    error = new_output("error", ename="ValueError", evalue="a < b", traceback=["Traceback", "\x1b[31mValueError\x1b[0m: a < b"])
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"></svg>'
    drawing, photograph = shown("<SVG>", **{"image/svg+xml": svg}), shown("<Image>", **{"image/jpeg": png()})
    cells = [code("1 / 0", error), code("saw()", drawing), code("cat()", photograph)]
    made = slides.make([TITLE, new_markdown_cell("## Shown"), *cells])
    page = html.page(made, "", tmp_path)
    assert "<pre>Traceback\nValueError: a &lt; b</pre>" in page and "&lt;SVG&gt;</pre>" not in page
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jpg", ".svg"]
    assert all(map(html.PICTURE.fullmatch, re.findall('src="(pictures.*?)"', page)))
    assert [piece.kind for slide in made for piece in slide.shown if piece.cell in cells[1:] and piece.kind != "source"] == ["picture"] * 2
    assert slides.outputs.height(cells[1].outputs) == slides.outputs.height(cells[2].outputs) == slides.INNER / 2


# The command


@pytest.mark.parametrize("package", ["jupyterlab_slideshow", "sphinx_revealjs"])
def test_a_missing_extra_is_said_with_what_installs_it(course, capsys, monkeypatch, package):
    find = html.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    assert cli.main(["lecture", "02", *(["--html", "out"] if package == "sphinx_revealjs" else [])]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install -e '.[lecture]'" in said
    assert not (course / "out").exists() and not (course / "lectures").exists()


@needs_lecture
@pytest.mark.parametrize("text", ["not JSON", "[]", json.dumps({"cells": 3})])
def test_what_is_no_notebook_is_refused(course, capsys, text):
    (course / "notebooks" / "03_bad.ipynb").write_text(text)
    for more in ([], ["--html", "out"]):
        assert cli.main(["lecture", "03", *more]) == 1
        assert capsys.readouterr().err == "qlab: 03_bad.ipynb is not a Jupyter notebook of format 4.\n"
    assert not (course / "out").exists() and not (course / "lectures").exists()


def test_a_lecture_leaves_out_what_it_does_not_need_and_tells_its_addresses_when_the_server_answers(course, monkeypatch, capsys):
    pytest.importorskip("jupyterlab_slideshow", reason="needs the extra lecture: pip install -e '.[lecture]' -c constraints.txt")
    from jupyter_core.paths import jupyter_config_path
    from jupyter_server.extension.config import ExtensionConfigManager
    from jupyterlab_server.config import get_static_page_config

    started, later = [], []
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    monkeypatch.delitem(sys.modules, "rfc3987_syntax", raising=False)
    monkeypatch.setattr(lecture_command, "launch", lambda *args: started.append(args))
    assert cli.main(["lecture", "02"]) == 0
    assert sys.modules["rfc3987_syntax"] is None        # a second of each start
    extensions = ExtensionConfigManager(read_config_path=jupyter_config_path()).get_jpserver_extensions()
    assert extensions[lab.__name__] and not any(extensions[name] for name in lab.SERVER)
    page = get_static_page_config(level="all")
    assert not page["buildCheck"] and set(lab.PAGE) <= set(page["disabledExtensions"])
    (_, name, _, _, more), = started
    assert name == "lectures/02_small.ipynb" and any(setting.startswith("--IdentityProvider.token=") for setting in more)
    assert "http" not in capsys.readouterr().out
    app = SimpleNamespace(io_loop=SimpleNamespace(add_callback=lambda tell, app: later.append(lambda: tell(app))),
                          identity_provider=SimpleNamespace(token="abc"), connection_url="http://127.0.0.1:9/")
    lab._load_jupyter_server_extension(app)
    later.pop()()
    assert capsys.readouterr().out.splitlines() == ["qlab: slides: http://127.0.0.1:9/lab/tree/lectures/02_small.ipynb?token=abc",
                                                    "qlab: speaker's notes: http://127.0.0.1:9/files/lectures/02_small_notes.html?token=abc"]


def test_help_names_the_keys():
    done = subprocess.run([sys.executable, "-m", "qlab.cli", "lecture", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Page Down" in done.stdout and "lectures/" in done.stdout


def test_git_ignores_the_copies():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    assert subprocess.run(["git", "check-ignore", "-q", "lectures/02_linear_quantization.ipynb"], cwd=ROOT).returncode == 0
