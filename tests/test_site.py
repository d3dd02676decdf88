"""The parts of the website: what a cell needs of its page, which states are drawn, answers, links, documentation."""

import base64
import json
import re

import ipywidgets
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from qlab.folders import clone
from qlab.lab import hidden, needs, teaching, widgets
from qlab.site import asked, entrance, figures, frames, library, links, pages, states
from qlab.site.build import MADE, build, check_installed, check_place
from qlab.site_command import address, origin

ROOT = clone()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def needed(cells: list[str], *wanted: int) -> list[str]:
    return [statement.source for statement in needs.needed(needs.statements([new_code_cell(cell) for cell in cells]), wanted)]


@pytest.mark.parametrize("before, kept", [
    ("train(net)", True), ("net.weight[0] = 1", True), ("net['a'].b += 1", True), ("for x in data:\n    net.append(x)", True),
    ("with quiet():\n    fit(net, data)", True), ("print(net)", False), ("loss = measure(net)", False),
    ("other = [net for net in data]", False),
    ("def f(net):\n    return net", False), ("data.sort()", False), ("if data:\n    net = 0", True), ("import net", True)])
def test_a_cell_needs_what_gives_its_names_their_values_and_what_changes_them(before, kept):
    cells = ["net, data = make()", before, "show(net)"]
    assert (before in [source.strip() for source in needed(cells, 2)]) == kept


@pytest.mark.parametrize("seed", range(3))
def test_a_cell_computes_the_same_from_what_it_needs_as_from_all(seed):
    """On made-up pages of assignments, changes in place and calls: the needed statements give the last cell's value."""
    rng = np.random.default_rng(seed)
    names = "abcde"
    for _ in range(40):
        cells = ["def twice(x):\n    x.extend(x[-1:])"] + [f"{name} = [{i}]" for i, name in enumerate(names)]
        for _ in range(12):
            one, two, three = rng.choice(list(names), 3)
            cells.append(rng.choice([f"{one} = {two} + {three}", f"{one}.append(len({two}))", f"{one}[0] += {two}[-1]", f"twice({one})",
                                     f"{one} = [x + {two}[0] for x in {three}][:9]", f"for x in {two}:\n    {one}.append(x)\n    break"]))
        cells = [cell.replace("for x in a:\n    a.", "for x in b:\n    a.") for cell in cells] + ["a"]
        whole, part = {}, {}
        exec("\n".join(cells), whole)
        kept = needed(cells, len(cells) - 1)
        exec("\n".join(kept), part)
        assert whole["a"] == part["a"], "\n".join(cells)


def live(**controls) -> widgets.Live:
    fig, ax = widgets.figure(2, 1)
    line, = ax.plot([0, 1], [0, 1])

    def update(**values):
        line.set_ydata([0, hash(str(values)) % 97])
        return " ".join(f"{name} {value}" for name, value in values.items())

    return widgets.Live(fig, update, **controls)


def test_a_grid_keeps_ends_and_the_present_value_and_stays_under_its_limit():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ends = rng.integers(1, 90, 3).tolist()
        controls = {f"s{i}": ipywidgets.IntSlider(int(rng.integers(0, end + 1)), 0, end) for i, end in enumerate(ends)}
        axes = states.grid(live(**controls), most=40)
        assert np.prod([len(axis.values) for axis in axes]) <= 40
        for axis in axes:
            control = controls[axis.name]
            assert {control.min, control.max, control.value} <= set(axis.values) and axis.values == sorted(set(axis.values))
            assert axis.values[axis.at] == control.value
            assert axis.thinned == (len(axis.values) < control.max + 1)


def test_frames_are_what_the_figure_shows_in_each_state():
    demo = live(kind=ipywidgets.Dropdown(options=["a", "b"]), bits=ipywidgets.IntSlider(2, 1, 3))
    wanted = [values for _, values in states.states(states.grid(demo))]
    for values, (all_values, pixels, text) in zip(wanted, demo.frames(wanted)):
        assert values == all_values and text == f"kind {values['kind']} bits {values['bits']}"
        alone = live(kind=ipywidgets.Dropdown(options=["a", "b"], value=values["kind"]), bits=ipywidgets.IntSlider(values["bits"], 1, 3))
        assert np.array_equal(pixels, alone._canvas.pixels())
    assert len(wanted) == 6 and list(demo.frames([{"kind": "c"}])) == [None]


def a_page(*cells) -> nbformat.NotebookNode:
    return new_notebook(cells=list(cells))


LIVE = """import ipywidgets
from qlab.lab import widgets
fig, ax = widgets.figure(2, 1)
line, = ax.plot([0, 1], [0, 1])
def update(bits):
    line.set_ydata([0, bits])
    return f"<b>{bits}</b> bits"
"""
SHOWN = "live = widgets.Live(fig, update, bits=ipywidgets.IntSlider(2, 1, 4))\nlive"


def stored(source: str) -> list:
    """The outputs that a page has stored for LIVE and this cell."""
    namespace = {}
    exec(LIVE + source.rpartition("\n")[0], namespace)
    data, metadata = namespace["live"]._repr_mimebundle_()
    data.pop("application/vnd.jupyter.widget-view+json")
    data["image/png"] = base64.b64encode(data["image/png"]).decode()
    return [new_output("display_data", data, metadata=metadata)]


def test_a_figure_is_drawn_from_its_page_and_from_nothing_else(tmp_path):
    asking = "from qlab.lab import widgets\nwidgets.predict('?', ['2', '3'], str(bits), '')"
    notebook = a_page(new_code_cell(LIVE), new_code_cell("raise RuntimeError('not needed')"), new_code_cell(SHOWN, outputs=stored(SHOWN)),
                      new_code_cell("bits = 3"), new_code_cell(asking))
    path = tmp_path / "page.ipynb"
    nbformat.write(notebook, path)
    drawn = frames.draw(path, tmp_path / "drawn")
    figure = drawn["figures"][2]
    assert [frame[1] for frame in figure["frames"].values()] == [f"<b>{bits}</b> bits" for bits in (1, 2, 3, 4)]
    assert figure["axes"] == [{"label": "bits", "words": ["1", "2", "3", "4"], "at": 1, "ordered": True, "thinned": False}]
    assert drawn["answers"] == {4: ["<b>3</b>. "]} and drawn == frames.read(tmp_path / "drawn")
    sizes = {Image.open(tmp_path / "drawn" / name).size for name, _, _ in figure["frames"].values()}
    assert sizes == {(figure["width"], figure["height"])} and len({name for name, _, _ in figure["frames"].values()}) == 4


def test_a_figure_that_is_not_what_the_page_has_stored_is_left_alone(tmp_path):
    other = SHOWN.replace("IntSlider(2,", "IntSlider(4,")
    timed = "from time import perf_counter\nstart = perf_counter()\n" + SHOWN.replace("IntSlider(2,", "IntSlider(2 + int(0 * start),")
    notebook = a_page(new_code_cell(LIVE), new_code_cell(SHOWN, outputs=stored(other)), new_code_cell(timed, outputs=stored(SHOWN)))
    nbformat.write(notebook, tmp_path / "page.ipynb")
    drawn = frames.draw(tmp_path / "page.ipynb", tmp_path / "drawn")
    assert not drawn["figures"] and set(drawn["left"]) == {1, 2} and drawn["left"][2] == frames.MEASURED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_page_can_be_read_for_what_its_figures_and_questions_need(path):
    cells = nbformat.read(path, as_version=4).cells
    statements = needs.statements(cells)
    for number, cell in enumerate(cells):
        if hidden.is_live(cell) or cell.cell_type == "code" and asked.computes(cell.source):
            assert "import" in "".join(statement.source for statement in needs.needed(statements, [number]))
    known = teaching.first(nbformat.read(path, as_version=4))
    assert known.title and (known.objective or not re.match(r"\d", path.name))
    assert known.sections or not re.match(r"\d", path.name)


def test_a_question_is_found_however_it_is_called():
    asked_by_name = 'predict(question="How many?", options=["3", "8"], answer="8", explain="Each bit doubles them.")'
    for source in (asked_by_name, f"widgets.{asked_by_name}", 'display(quiz([("A?", ["x", "y"], 0, "why")]))'):
        assert asked.literal(source) and not asked.computes(source) and hidden.asks(source)
    assert asked.computes("predict(question=text, options=['3', '8'], answer='8', explain='')")
    assert asked.computes("predict('How many?', ['3', '8'])")  # too few: the page's own run tells
    assert not asked.computes("%timeit quiz()") and asked.literal("%timeit quiz()") is None


def test_a_question_keeps_its_text_and_folds_its_answers():
    one = widgets.predict("How many?", ["3", "<8>"], "<8>", "Why & how.")
    html = asked.with_answers(one.still, one.answers)
    assert html.startswith(one.still) and html.count("<details") == 1 and "<b>&lt;8&gt;</b>. Why & how." in html
    many = widgets.quiz([("A?", ["x", "y"], 0, "since x"), ("B?", ["x", "y"], 1, "since y")])
    html = asked.with_answers(many.still, many.answers)
    assert re.sub("<details.*?</details>", "", html) == many.still
    assert html.index("A?") < html.index("since x") < html.index("B?") < html.index("since y")
    with pytest.raises(ValueError, match="1 answers do not fit 2"):
        asked.with_answers(many.still, ["one"])
    assert "run the page" in asked.with_answers(one.still, None)
    assert "<summary>答案</summary>" in asked.with_answers(one.still, one.answers, "zh")


def test_a_page_without_notes_with_links_pictures_and_folded_code():
    picture = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"},
                         metadata={"image/png": {"alt": "A saw.", "width": 90}})
    notebook = a_page(
        new_markdown_cell("# 02 · Title\n\n**Promise.**\n\n**Run all cells now** (menu *Run*): about 5 seconds on this course's two-core "
                          "machine. *Time:* 5 minutes. *Source document:* 2.1.\n\n[03](03.ipynb) `[a](b)` [gone](gone.ipynb)"),
        new_markdown_cell("ask the class", metadata={"tags": ["speaker"]}),
        new_code_cell("# a picture (folded: its code only draws)\nplot()", metadata={"jupyter": {"source_hidden": True}},
                      outputs=[picture]),
        new_code_cell("widgets.predict('$x$?', ['1', '2'], '1', 'So.')",
                      outputs=[new_output("display_data", {"text/html": "<p>Predict. $x$?</p>"})]))
    page = pages.page(notebook, "notebooks/02.ipynb", None, {"notebooks/03.ipynb": "/notebooks/03.ipynb"}.get, pages.foot(
        notebook, "/exercises/02.ipynb", "../downloads/02.ipynb", None))
    head, code, question, foot = page.cells
    assert "[03](/notebooks/03.ipynb) `[a](b)` gone" in head.source and "Run all" not in head.source and "*Time:*" in head.source
    assert code.metadata["tags"] == ["hide-input"] and code.metadata["mystnb"]["image"] == {"alt": "A saw.", "width": "90px"}
    assert r'<span class="math notranslate nohighlight">\(x\)</span>' in question.source and "<b>1</b>. So." in question.source
    assert "**Objective.** Promise." in foot.source and "(/exercises/02.ipynb)" in foot.source and "2.1" in foot.source
    assert len(pages.without_notes(notebook).cells) == 3 and len(notebook.cells) == 4


def test_a_figure_says_what_it_shows_before_its_script_runs():
    found = {"axes": [{"label": "bits", "words": ["2", "3"], "at": 1, "ordered": True, "thinned": True},
                      {"label": "scheme", "words": ["<a>", "b"], "at": 0, "ordered": False, "thinned": False}],
             "fixed": ["range = 100"], "width": 300, "height": 150, "css_width": 200,
             "frames": {f"{i},{j}": [f"{i}{j}.webp", f"<b>{i}</b> \"</script>", [i, j]] for i in range(2) for j in range(2)}}
    html = figures.figure(found, "../frames/02", "figure-3")
    assert 'src="../frames/02/10.webp"' in html and 'width="200" height="100"' in html
    assert 'alt="Live figure: bits = 3, scheme = &lt;a&gt;. 1 &quot;' in html.replace("&lt;/script&gt;", "")
    assert html.count("<label for=") == 2 and 'type="range"' in html and "<select" in html and "Here range = 100." in html
    script = re.search(r"<script[^>]*>(.*?)</script>", html)[1]
    assert json.loads(script.replace("<\\/", "</"))["frames"] == found["frames"] and "\n" not in html


@pytest.mark.parametrize("href, leads", [
    ("03_logarithmic_quantization.ipynb", "/notebooks/03_logarithmic_quantization.ipynb"),
    ("../README.md#the-course", "/README.md#the-course"), ("../qlab/quant/linear.py", "/api/quant.md#qlabquantlinear"),
    ("../qlab/quant", "/api/quant.md"), ("../qlab/cli.py", "R/blob/HEAD/qlab/cli.py"), ("../docs/hub", "/docs/hub/README.md"),
    ("../tests", "R/tree/HEAD/tests"), ("gone.ipynb", None), ("../../outside", None)])
def test_links_lead_to_pages_documentation_the_repository_or_nowhere(href, leads):
    to = links.leading(ROOT, {"notebooks/03_logarithmic_quantization.ipynb", "README.md", "docs/hub/README.md"}, library.modules(ROOT), "R")
    assert links.rewritten(f"see [words]({href}).", "notebooks/02.ipynb", to) == (f"see [words]({leads})." if leads else "see words.")


def test_documentation_shows_every_public_function_of_what_the_course_imports():
    known = library.modules(ROOT)
    assert {"qlab.quant.linear", "qlab.nets.ptq", "qlab.matmul.product", "qlab.llm.gptq", "qlab.deploy.tflite"} <= set(known)
    from qlab.quant import linear
    page = library.page("qlab.quant", known)
    for name, thing in vars(linear).items():
        if callable(thing) and thing.__module__ == linear.__name__ and not name.startswith("_"):
            assert f"### linear.{name}\n" in page
    examples = re.findall(r"```pycon\n(.*?)```", page, re.DOTALL)
    assert any("linear.quantize" in example and ">>>" in example for example in examples)
    assert library._text("one_two * three\n\n    x = 1\n\n>>> f(`a`)\n2") == \
        "one\\_two \\* three\n\n```text\nx = 1\n```\n\n```pycon\n>>> f(`a`)\n2\n```"


def test_every_notebook_has_a_part_and_a_place_on_the_first_page():
    heads = {f"notebooks/{path.name}": teaching.first(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    page = entrance.page("# qlab", heads, {"Numbers": list(heads)})
    for path, head in heads.items():
        assert page.count(f"[{head.title}](/{path})") == 1 and head.objective in page
    assert [entrance.part(f"{n:02}_x.ipynb") for n in (5, 6, 11, 12, 14, 15, 18)] == [
        "Numbers", "Networks", "Networks", "Hardware", "Hardware", "Frontier", "Frontier"]


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="holds thesis.tex, which this command has not made"):
        build(ROOT, tmp_path)
    check_place(tmp_path / "new")
    with pytest.raises(FileExistsError, match="holds ., which"):
        check_place(tmp_path / "thesis.tex")
    site = tmp_path / "site"
    (site / "_static").mkdir(parents=True)
    check_place(site)
    (site / "_static" / "qlab.js").touch()
    (site / MADE).write_text("_static/qlab.js\n")
    check_place(site)
    for name in ("CNAME", ".git"):  # a worktree of the branch that a host publishes
        (site / name).touch()
        with pytest.raises(FileExistsError, match=f"holds {re.escape(name)}, which"):
            check_place(site)
        (site / name).unlink()


@pytest.mark.parametrize("url, known", [
    ("git@github.com:a/b.git", "https://github.com/a/b"), ("https://user@gitlab.com/a/b", "https://gitlab.com/a/b"),
    ("ssh://git@codeberg.org/a/b.git", "https://codeberg.org/a/b"), ("../clone", None), ("", None), (None, None), ("/srv/a/b", None)])
def test_the_address_of_a_repository(url, known):
    assert address(url) == known


def test_a_folder_without_git_has_no_origin(tmp_path):
    assert origin(tmp_path) is None


def test_a_page_that_does_not_run_stays_readable(tmp_path):
    notebook = a_page(new_code_cell("import no_such_library"), new_code_cell(LIVE + "fig = no_such_library.f(fig)"),
                      new_code_cell(SHOWN, outputs=stored(SHOWN)))
    nbformat.write(notebook, tmp_path / "page.ipynb")
    drawn = frames.draw(tmp_path / "page.ipynb", tmp_path / "drawn")
    assert not drawn["figures"] and "No module named 'no_such_library'" in drawn["left"][2] and frames.fails(drawn)
    page = pages.page(notebook, "notebooks/page.ipynb", drawn, lambda path: None)
    assert "Live in JupyterLab; here it is one picture." in page.cells[-1].source
    notebook.cells.append(new_code_cell("%matplotlib inline"))
    nbformat.write(notebook, tmp_path / "page.ipynb")
    assert "SyntaxError" in frames.draw(tmp_path / "page.ipynb", tmp_path / "drawn")["left"][2]


def test_a_missing_extra_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^sphinx is not installed: .*pip install -e '\.\[site\]' "):
        check_installed()
