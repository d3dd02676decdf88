"""Refreshing notebooks: what is stored, what is refused, and that nbval accepts the result."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from qlab import saving
from qlab.lab import notebooks

ROOT = Path(__file__).parents[1]
WIDGET = """import ipywidgets
from qlab.lab import widgets
fig, ax = widgets.figure(4, 2)
line, = ax.plot([0, 1], [0, 1])
widgets.Live(fig, lambda slope: line.set_ydata([0, slope]) or f"slope {slope}",
             slope=ipywidgets.IntSlider(2, 1, 3))"""
QUESTIONS = """display(widgets.predict("How many?", ["one", "two"], 0, "SECRET one"))
widgets.quiz([("Which?", ["this", "that"], 0, "SECRET two")])"""
FIGURE = """import matplotlib.pyplot as plt
_ = plt.plot([1, 2])
for i in range(3):
    print(i, flush=True)"""
CHANCE = "import time\nassert print(time.time_ns()) is None"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def made(path: Path, *cells, **metadata) -> Path:
    """A notebook of code cells ("# ..." is markdown, a pair is a source and its tags), as an author's tools might leave it."""
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    for cell in cells:
        source, tags = cell if isinstance(cell, tuple) else (cell, [])
        new = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
        notebook.cells.append(new(source, metadata={"tags": tags, "execution": {"iopub.status.busy": "2026-01-01"}, "collapsed": False}))
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        path = made(tmp_path_factory.mktemp("good") / "good.ipynb", "# Title", WIDGET, QUESTIONS, FIGURE, "# ## Not a heading",
                    (CHANCE, ["nbval-ignore-output"]), "1 + 1", "1 + 1", widgets={"state": {}}, jupytext={"version": "1"})
        said = []
        assert notebooks.refresh([path], said.append) == [path] and said == [str(path)]
    return path


def test_stills_are_stored_in_place_of_widgets(refreshed):
    notebook = nbformat.read(refreshed, 4)
    nbformat.validate(notebook)
    live, (guess, quiz) = notebook.cells[1].outputs[0], notebook.cells[2].outputs
    assert set(live.data) == {"image/png", "text/plain"} and live.data["text/plain"] == "Live figure: slope = 2. slope 2"
    assert Image.open(io.BytesIO(base64.b64decode(live.data["image/png"]))).width == 4 * 144
    assert live.metadata["image/png"]["width"] == 4 * 96
    assert set(guess.data) == set(quiz.data) == {"text/html", "text/plain"} and "<li>two</li>" in guess.data["text/html"]
    text = refreshed.read_text()
    assert "widget-view" not in text and "widget-state" not in text
    assert not any("SECRET" in str(cell.get("outputs")) for cell in notebook.cells)


def test_outputs_are_stored_and_noise_is_not(refreshed):
    notebook = nbformat.read(refreshed, 4)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5, 6]
    stream, figure = notebook.cells[3].outputs
    assert stream.text == "0\n1\n2\n" and figure.data["text/plain"].startswith("<Figure size") and "image/png" in figure.data
    assert notebook.metadata == notebooks.METADATA and notebook.metadata.kernelspec.display_name == "Python 3"
    assert [set(cell.metadata) - {"tags"} for cell in notebook.cells] == [{"slideshow"}, {"jupyter"}, {"jupyter"}, set(),
                                                                             {"slideshow"}, set(), set(), set()]
    assert notebook.cells[2].metadata.jupyter == {"source_hidden": True}
    assert notebook.cells[0].metadata.slideshow == {"slide_type": "slide"}
    assert notebook.cells[5].metadata.tags == ["nbval-ignore-output"]
    assert not list(refreshed.parent.glob(".*"))


def test_refreshing_twice_gives_the_same_bytes(refreshed):
    first = nbformat.read(refreshed, 4)
    path = refreshed.parent / "again.ipynb"
    first.cells = [cell for cell in first.cells if cell.source != CHANCE]
    for cell in first.cells:
        cell.id = f"other-{cell.id}"
    nbformat.write(first, path)
    notebooks.refresh([path])
    once = path.read_bytes()
    notebooks.refresh([path])
    assert path.read_bytes() == once and once.endswith(b"}\n")
    again = {cell.id: cell for cell in nbformat.read(path, 4).cells}
    for cell in nbformat.read(refreshed, 4).cells:  # a cell left out renames no other, and pictures do not depend on the run
        if cell.source != CHANCE:
            assert again[cell.id].source == cell.source
            if cell.cell_type == "code":
                assert [o.get("data", {}).get("image/png") for o in again[cell.id].outputs] == \
                       [o.get("data", {}).get("image/png") for o in cell.outputs]


def test_nbval_accepts_a_refreshed_notebook_without_tags_on_widget_cells_and_notices_what_one_says(refreshed, tmp_path):
    """In one run: the notebook as it was refreshed, and one whose widget says something else."""
    (tmp_path / "good.ipynb").write_text(refreshed.read_text())
    (tmp_path / "changed.ipynb").write_text(refreshed.read_text().replace("slope = 2. slope 2", "slope = 2. slope 9"))
    command = [sys.executable, "-m", "pytest", "-v", "-pno:cacheprovider", "--nbval", "--nbval-current-env", f"--rootdir={tmp_path}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 1 and "1 failed, 11 passed" in result.stdout, result.stdout
    assert re.findall(r"(\w+)::ipynb::Cell (\d) FAILED", result.stdout) == [("changed", "0")], result.stdout


@pytest.mark.parametrize("cells, says", [
    (["1", "1 / 0"], r"bad.ipynb, cell 2 ends in ZeroDivisionError: division by zero\."),
    ([("1 / 0", ["raises-exception"])], "bad.ipynb, cell 1 ends in ZeroDivisionError, and no stored output may be an error"),
    (["# Title", "x = '" + "a" * 83 + "'"], "bad.ipynb, cell 2 has a line of 89 columns, and may have at most 88"),
    (["# Title", "\n".join(["1"] * 26)], "bad.ipynb, cell 2 has 26 lines of code, and may have at most 25"),
    ([("print(1)  # assert", ["nbval-ignore-output"])], "bad.ipynb, cell 1 is tagged nbval-ignore-output and asserts nothing"),
    (["import warnings; warnings.warn('old')"], "bad.ipynb, cell 1 writes to stderr.* old"),
    (["import ipywidgets; ipywidgets.IntSlider()"], "bad.ipynb, cell 1 shows a widget that has no still"),
    (["1", "print('x' * 1_000_000)"], r"bad.ipynb would have 1,00\d,\d+ bytes, 1,00\d,\d+ of them in cell 2, and must stay"),
    (["import os; os._exit(1)"], "bad.ipynb, cell 1 kills its kernel"),
])
def test_each_broken_house_rule_is_named_and_the_file_is_left_as_it_was(tmp_path, cells, says):
    path = made(tmp_path / "bad.ipynb", *cells)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says):
        notebooks.refresh([path])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["bad.ipynb"]


def test_a_cell_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "TIMEOUT_S", 1)
    path = made(tmp_path / "bad.ipynb", "import time; time.sleep(600)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="bad.ipynb, cell 1 takes more than 1 s"):
        notebooks.refresh([path])
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "kept.ipynb"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        saving.write({path: b"new"})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["kept.ipynb"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"cells": [], "nbformat": 4'])
def test_a_file_that_is_no_notebook(tmp_path, content):
    path = tmp_path / "bad.ipynb"
    path.write_text(content)
    with pytest.raises(ValueError, match="bad.ipynb is not a Jupyter notebook"):
        notebooks.refresh([path])
    assert path.read_text() == content


def test_a_missing_notebook_is_found_out_before_any_runs(tmp_path):
    path = made(tmp_path / "there.ipynb", "1")
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="there is no notebook .*missing.ipynb"):
        notebooks.refresh([path, tmp_path / "missing.ipynb"])
    assert path.read_bytes() == before


def test_without_paths_the_whole_course_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    monkeypatch.setattr(notebooks, "_execute", lambda path, notebook: None)
    for name in ("01_b.ipynb", "00_a.ipynb"):
        made(tmp_path / name, "1")
    assert [path.name for path in notebooks.refresh()] == ["00_a.ipynb", "01_b.ipynb"]


@pytest.mark.parametrize("mode, colors", [("RGBA", 5), ("RGB", 256), ("RGB", 300), ("RGBA", 400)])
def test_pictures_shrink_without_loss(mode, colors):
    rng = np.random.default_rng(colors)
    pixels = rng.integers(0, 256, (colors, 3), np.uint8)[rng.integers(0, colors, (60, 80)).ravel()].reshape(60, 80, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "png", compress_level=1)
    smaller = base64.b64decode(notebooks._smaller(base64.b64encode(stream.getvalue()).decode()))
    assert (np.asarray(Image.open(io.BytesIO(smaller)).convert("RGB")) == pixels).all()
    assert len(smaller) < len(stream.getvalue()) or (mode == "RGB" and colors > 256 and len(smaller) == len(stream.getvalue()))


def test_transparency_is_kept():
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 128))
    stream = io.BytesIO()
    image.save(stream, "png")
    smaller = base64.b64decode(notebooks._smaller(base64.b64encode(stream.getvalue()).decode()))
    assert Image.open(io.BytesIO(smaller)).convert("RGBA").getpixel((0, 0)) == (255, 0, 0, 128)
