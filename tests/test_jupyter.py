"""What qlab adds to Jupyter: saving, trust, the two ways in which it is enabled. tests/test_browser.py sees it work on a page."""

import asyncio
import copy
import hashlib
import json
import logging
import os
import runpy
import tomllib
from pathlib import Path

import nbformat
import pytest
import zmq
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager, LargeFileManager
from nbformat.sign import NotebookNotary
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream

import qlab
from qlab.lab import jupyter
from qlab.lab.jupyter import released, saving

ROOT = Path(__file__).resolve().parents[1]
COURSE = sorted(path for folder in released.FOLDERS for path in (ROOT / folder).glob("*.ipynb"))
VIEW = {"model_id": "5a", "version_major": 2, "version_minor": 0}
PICTURE, QUESTION = {"image/png": "aGk=\n"}, {"text/html": "<p>Which?</p>"}


def as_jupyterlab_saves(path):
    """A notebook as JupyterLab hands it in after it was opened, seen in its requests: its kernel's own description, the rest as it was."""
    notebook = json.loads(path.read_bytes())
    notebook["metadata"] |= {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
                          "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"},
    }
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["metadata"]["trusted"] = True
    return notebook


@pytest.fixture(params=[LargeFileManager, AsyncLargeFileManager])
def contents(request, tmp_path):
    """A real contents manager of Jupyter on tmp_path, with the hook: .put(name, notebook) saves as the page does, and gives the bytes."""
    with NotebookNotary(data_dir=str(tmp_path)) as notary:
        manager = request.param(root_dir=str(tmp_path), notary=notary)
        manager.register_pre_save_hook(saving.before_saving)

        def put(name, notebook):
            saved = manager.save({"type": "notebook", "format": "json", "content": notebook}, name)
            if asyncio.iscoroutine(saved):
                asyncio.run(saved)
            return (tmp_path / name).read_bytes()

        manager.put = put
        yield manager


def with_output(data, text, notebook=None):
    bundle = {"application/vnd.jupyter.widget-view+json": dict(VIEW), "text/plain": text, **data}
    cell = nbformat.v4.new_code_cell("show()", outputs=[nbformat.v4.new_output("display_data", bundle)])
    notebook = notebook or nbformat.v4.new_notebook()
    notebook["cells"].append(cell)
    return json.loads(json.dumps(notebook))


def views(saved):
    return b"widget-view" in saved


# Saving


@pytest.mark.parametrize("path", COURSE, ids=lambda path: f"{path.parent.name}/{path.stem[:2]}")
def test_a_notebook_that_nobody_changed_keeps_its_bytes(path, tmp_path):
    with NotebookNotary(data_dir=str(tmp_path)) as notary:
        manager = LargeFileManager(root_dir=str(tmp_path), notary=notary)
        manager.register_pre_save_hook(saving.before_saving)
        (tmp_path / path.name).write_bytes(path.read_bytes())
        manager.save({"type": "notebook", "format": "json", "content": as_jupyterlab_saves(path)}, path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_change_is_the_only_difference(contents, tmp_path):
    (tmp_path / "a.ipynb").write_bytes(COURSE[0].read_bytes())
    notebook = as_jupyterlab_saves(COURSE[0])
    notebook["cells"][0]["source"] += "\nmine"
    expected = json.loads(COURSE[0].read_bytes())
    saved = json.loads(contents.put("a.ipynb", notebook))
    assert "".join(saved["cells"][0].pop("source")) == "".join(expected["cells"][0].pop("source")) + "\nmine"
    assert saved == expected


def test_another_kernel_and_metadata_of_the_readers_own_are_kept(contents, tmp_path):
    (tmp_path / "a.ipynb").write_bytes(COURSE[0].read_bytes())
    notebook = as_jupyterlab_saves(COURSE[0])
    notebook["metadata"] |= {"kernelspec": {"display_name": "Mine", "name": "mine"}, "title": "My copy"}
    metadata = json.loads(contents.put("a.ipynb", notebook))["metadata"]
    assert metadata["kernelspec"] == {"display_name": "Mine", "name": "mine"} and metadata["title"] == "My copy"
    assert metadata["language_info"] == json.loads(COURSE[0].read_bytes())["metadata"]["language_info"]


@pytest.mark.parametrize("data, text", [(PICTURE, "Live figure: bits = 4"), (QUESTION, "Predict. Which?"), (QUESTION, "Check yourself.")])
def test_a_still_takes_the_place_of_the_widget(contents, data, text):
    saved = contents.put("new.ipynb", with_output(data, text))
    bundle = json.loads(saved)["cells"][0]["outputs"][0]["data"]
    assert not views(saved) and set(bundle) == {"text/plain", *data}


@pytest.mark.parametrize("data, text", [
    (PICTURE, "IntSlider(value=4)"),     # somebody else's widget, with a picture
    ({}, "Live figure: bits = 4"),       # nothing beside it to show instead
])
def test_other_widgets_keep_their_view(contents, data, text):
    assert views(contents.put("new.ipynb", with_output(data, text)))


def test_a_widget_whose_state_is_saved_keeps_its_view(contents):
    """JupyterLab has a setting that saves the state: then the view can be shown without a kernel, and that was a choice."""
    notebook = with_output(PICTURE, "Live figure: bits = 4")
    notebook["metadata"]["widgets"] = {saving.WIDGET_STATE: {"state": {"5a": {"state": {}}}, "version_major": 2, "version_minor": 0}}
    assert views(contents.put("new.ipynb", notebook))


def test_a_notebook_that_is_not_ours_is_saved_as_it_is(contents, tmp_path):
    for name, source, language in [("theirs.ipynb", "import numpy", {"name": "python"}),
                                   ("run.ipynb", "import qlab", {"name": "python", "version": "3.11.7"})]:
        before = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={"language_info": language})
        (tmp_path / name).write_text(nbformat.writes(before))
        after = copy.deepcopy(before)
        after["metadata"]["language_info"] = {"name": "python", "version": "3.12.0"}
        assert json.loads(contents.put(name, after))["metadata"] == after["metadata"]


def test_what_is_on_the_disk_may_be_anything(contents, tmp_path):
    for content in (b"", b"not JSON", b"[]", b'{"cells": []}', b"\xff\xfe"):
        (tmp_path / "a.ipynb").write_bytes(content)
        assert not views(contents.put("a.ipynb", with_output(QUESTION, "Predict. Which?")))


def test_a_failure_loses_nothing(contents, monkeypatch):
    monkeypatch.setattr(saving, "show_stills", lambda notebook: notebook["no such key"])
    assert b"show()" in contents.put("a.ipynb", with_output(QUESTION, "Predict. Which?"))


def test_other_files_are_left_alone(tmp_path):
    for model in ({"type": "file", "content": "text"}, {"type": "notebook", "content": None}, {"type": "directory"}):
        before = copy.deepcopy(model)
        saving.before_saving(model, path="a", contents_manager=LargeFileManager(root_dir=str(tmp_path)))
        assert model == before


def test_no_answer_is_saved(contents):
    """Neither before nor after the guess: the outcome is in the kernel and on the page only."""
    from qlab.lab.widgets import predict, quiz

    question = predict("Which?", ["one", "two"], 1, "a reason")
    asked = quiz([("And which?", ["one", "two"], 0, "another reason")])
    for answer in (lambda: None, lambda: (setattr(question.guess, "value", "one"), question.lock.click(),
                                          setattr(asked.choices[0], "value", "one"))):
        answer()
        for widget in (question, asked):
            data = dict(widget._repr_mimebundle_())
            saved = contents.put("a.ipynb", with_output(data, data["text/plain"])).decode()
            assert "reason" not in saved and "Right." not in saved and "widget-view" not in saved and "hich?" in saved


# Trust


def test_released_json_holds_every_notebook_of_the_course():
    known = json.loads(released.RELEASED.read_text())
    stale = [name for name in {*known, *(path.relative_to(ROOT).as_posix() for path in COURSE)}
             if known.get(name) != (hashlib.sha256((ROOT / name).read_bytes()).hexdigest() if (ROOT / name).exists() else None)]
    assert not stale, f"run python -m qlab.lab.jupyter.released: {sorted(stale)} changed"


def test_only_what_was_released_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(released, "RELEASED", tmp_path / "released.json")
    for folder, name in [("notebooks", "00_a"), ("notebooks", "01_b"), ("exercises", "00_a"), ("elsewhere", "02_c")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        cell = nbformat.v4.new_code_cell(folder, outputs=[nbformat.v4.new_output("display_data", {"text/html": "<b>hi</b>"})])
        (tmp_path / folder / f"{name}.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    released.record(tmp_path)
    changed = tmp_path / "notebooks" / "01_b.ipynb"
    changed.write_text(changed.read_text().replace("hi", "<script>"))
    with NotebookNotary(data_dir=str(tmp_path)) as notary:
        manager = LargeFileManager(root_dir=str(tmp_path), notary=notary)
        released.trust(manager)
        trusted = {path: manager.get(path)["content"]["cells"][0]["metadata"]["trusted"]
                   for path in ("notebooks/00_a.ipynb", "notebooks/01_b.ipynb", "exercises/00_a.ipynb", "elsewhere/02_c.ipynb")}
    assert trusted == {"notebooks/00_a.ipynb": True, "notebooks/01_b.ipynb": False, "exercises/00_a.ipynb": True,
                       "elsewhere/02_c.ipynb": False}


def test_a_failure_to_sign_does_not_stop_the_server(monkeypatch):
    monkeypatch.setattr(released, "as_released", lambda root: [Path(root, "gone.ipynb")])
    released.trust(LargeFileManager(root_dir=str(ROOT)))


# Enabled in two ways


def test_an_installation_puts_every_file_where_jupyter_looks():
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    extension = jupyter.FOLDER / "labextension" / "qlab"
    for source in [*extension.rglob("*.*"), *(jupyter.FOLDER / "etc").rglob("*.json")]:
        under = (f"share/jupyter/labextensions/qlab/{source.parent.relative_to(extension)}".rstrip("/.") if extension in source.parents
                 else f"etc/jupyter/{source.parent.relative_to(jupyter.FOLDER / 'etc')}".rstrip("/."))
        assert source.relative_to(ROOT).as_posix() in files[under]
    assert all((ROOT / name).is_file() for names in files.values() for name in names)


def test_the_extension_is_named_by_its_content():
    """The server lets a browser keep the file for a year: a changed one needs another address."""
    package = json.loads((jupyter.FOLDER / "labextension" / "qlab" / "package.json").read_text())
    script, _, version = package["jupyterlab"]["_build"]["load"].partition("?v=")
    content = (jupyter.FOLDER / "labextension" / "qlab" / script).read_bytes()
    assert version == released.digest(content)[:8], "write the first 8 digits of released.digest into package.json, after ?v="
    assert package["version"] == qlab.__version__


def test_the_server_extension_registers_the_hook_once(tmp_path, monkeypatch):
    signed = []
    monkeypatch.setattr(released, "trust", signed.append)
    monkeypatch.setattr(os, "environ", {})

    class App:
        config, contents_manager = Config(), LargeFileManager(root_dir=str(tmp_path))

    (point,) = jupyter._jupyter_server_extension_points()
    assert point == {"module": jupyter.__name__}
    jupyter._load_jupyter_server_extension(App)
    assert App.contents_manager._pre_save_hooks == [saving.before_saving] and signed == [App.contents_manager]
    assert os.environ == {"OMP_WAIT_POLICY": "PASSIVE"}  # two threads that spin, beside a browser on two cores, take four times the time


@pytest.mark.parametrize("name, told", [("WebSocketClosedError", 0), ("StreamClosedError", 0), ("ValueError", 1)])
def test_a_page_that_is_closed_early_is_not_news(name, told, caplog):
    """As a kernel's stream meets it, which logs what its callback raises and raises it to the loop, which logs it, too."""
    def answer(message):
        raise type(name, (Exception,), {})  # told by its name: nothing of tornado is imported to say nothing

    async def speak():
        with zmq.Context() as context, context.socket(zmq.PAIR) as kernel, context.socket(zmq.PAIR) as server:
            server.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
            stream = ZMQStream(server)
            stream.on_recv(answer)
            kernel.send(b"said")
            await asyncio.sleep(0.3)
            stream.close()

    speakers = [logging.getLogger(speaker) for speaker in jupyter.SPEAKERS]
    try:
        [speaker.addFilter(jupyter._worth_telling) for speaker in speakers]
        asyncio.run(speak())
    finally:
        [speaker.removeFilter(jupyter._worth_telling) for speaker in speakers]
    assert bool([record for record in caplog.records if record.levelno >= logging.ERROR]) == told


def test_enable_adds_to_what_a_user_has_set(monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/mine")
    for _ in range(2):
        settings = jupyter.enable()
    assert os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep) == [str(jupyter.FOLDER / "etc"), "/mine"]
    assert all(setting.startswith("--") and "=" in setting for setting in settings)


def test_an_editable_installation_has_the_data_files_too():
    """setuptools asks a Distribution for has_data before it installs them; its own has none."""
    module = runpy.run_path(str(ROOT / "setup.py"), run_name="read")
    assert module["WithDataFiles"]({"data_files": [("etc", ["a"])]}).has_data() and not module["WithDataFiles"]().has_data()


@pytest.mark.parametrize("content", [
    {"cells": None, "metadata": None}, {"metadata": {"widgets": None}, "cells": [{"outputs": None}, {"outputs": [{"data": None}, {}]}]},
    {"metadata": {}, "cells": [{"outputs": [{"data": {saving.WIDGET_VIEW: None, "text/html": "x", "text/plain": "Predict. x"}}]}]},
    {"worksheets": [], "metadata": {}},
])
def test_odd_notebooks_do_not_stop_the_hook(content, tmp_path):
    (tmp_path / "odd.ipynb").write_text(json.dumps({"cells": [{}], "metadata": {"language_info": None, "kernelspec": "python3"}}))
    saving.before_saving({"type": "notebook", "content": content}, "odd.ipynb", LargeFileManager(root_dir=str(tmp_path)))
