"""Folded sources: which cells, and that every way of reading honours it."""

import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbconvert.exporters import get_exporter
from nbconvert.nbconvertapp import NbConvertApp
from traitlets.config import Config

from qlab.lab import hidden, jupyter

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "qlab" / "lab" / "jupyter" / "etc"
QUESTION = 'widgets.predict("How many?", ["one", "two"], 0, "SECRET one")'
CELLS = ["# Title", "import torch\n\nplot.use_style()", "picture = 1", QUESTION, "print('kept')",
         'x = quiz([("Which?", ["a", "b"], 1, "SECRET two")])']


@pytest.fixture
def page():
    cells = [nbformat.v4.new_markdown_cell(CELLS[0]), *map(nbformat.v4.new_code_cell, CELLS[1:])]
    hidden.mark(cells)
    return nbformat.v4.new_notebook(cells=cells)


def folded(cells):
    return [bool(cell.metadata.get("jupyter", {}).get("source_hidden")) for cell in cells]


def test_what_stands_before_the_first_question_and_what_asks_is_folded(page):
    assert folded(page.cells) == [False, True, True, True, False, True]


def test_a_cell_that_asks_nothing_any_more_is_opened_and_other_metadata_stay(page):
    page.cells[5].source, page.cells[5].metadata["jupyter"]["outputs_hidden"] = "x = 1", False
    page.cells[3].source = "pass"
    hidden.mark(page.cells)
    assert folded(page.cells) == [False, True, False, False, False, False]
    assert page.cells[5].metadata.jupyter == {"outputs_hidden": False} and "jupyter" not in page.cells[3].metadata


def test_a_cell_that_only_draws_is_folded_if_it_says_so():
    sources = [QUESTION, f"{hidden.PICTURE}\nax.plot(x)", "ax.plot(x)  " + hidden.PICTURE]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    hidden.mark(cells)
    assert folded(cells) == [True, True, False]


def test_a_magic_is_not_python_and_is_left_alone():
    assert not hidden.asks("%timeit quiz()") and not hidden.imports("%matplotlib inline\nimport torch")


def converted(page, folder, to):
    nbformat.write(page, folder / "page.ipynb")
    config = CONFIG / "jupyter_nbconvert_config.json"
    app = NbConvertApp()  # the command's own application, in this process
    app.initialize([f"--to={to}", "--config", str(config), str(folder / "page.ipynb"), "--output", "read"])
    app.start()
    (read,) = folder.glob("read*")
    return read.read_text()


@pytest.mark.parametrize("to", ["html", "slides", "markdown"])
def test_nbconvert_leaves_folded_sources_out_of_what_is_read(page, tmp_path, to):
    text = converted(page, tmp_path, to)
    assert "SECRET" not in text and "plot" not in text and "kept" in text


def test_scripts_keep_the_whole_source(page, tmp_path):
    text = converted(page, tmp_path, "script")
    assert "SECRET two" in text and "import torch" in text


@pytest.mark.parametrize("to", ["html", "slides", "markdown"])
def test_the_menu_of_jupyterlab_follows_the_same_rule(page, monkeypatch, to):
    """The server's handler of Save and Export Notebook As builds its exporter from the server's own settings."""
    class App:
        config = Config({"HTMLExporter": {"preprocessors": ["nbconvert.preprocessors.HighlightMagicsPreprocessor"]}})
        contents_manager = SimpleNamespace(register_pre_save_hook=lambda hook: None)

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("qlab.lab.jupyter.released.trust", lambda manager: None)
    jupyter._load_jupyter_server_extension(App)
    text, _ = get_exporter(to)(config=App.config).from_notebook_node(page)
    assert "SECRET" not in text and "kept" in text and len(App.config.HTMLExporter.preprocessors) == 2
