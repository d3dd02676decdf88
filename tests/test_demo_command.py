"""qlab demo: which statements a live figure needs, that they make the figure of the page, and its page in a real browser."""

import base64
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import ipywidgets
import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from qlab import cli
from qlab.lab import widgets
from qlab.lab.demos import hardware, matmul
from qlab.lecture import beamer, demo

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
WITH_FIGURES = [path for path in PAGES if demo.figures(path)]
LONG = ("01", "10")  # one measures this machine for seconds, the other trains a network
MEASURED = ("13",)   # shows times of this machine


def live_cell(source):
    output = nbformat.v4.new_output("display_data", {"text/plain": "Live figure: bits = 4"})
    return nbformat.v4.new_code_cell(source, outputs=[output])


def notebook(tmp_path, *cells):
    path = tmp_path / "02_own.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


# Which statements


def setup(cells, *live):
    return demo._setup([nbformat.v4.new_code_cell(source) for source in cells], set(live))


@pytest.mark.parametrize("cells, kept", [
    (["a = 1", "b = 2", "f(a)"], ["a = 1"]),
    (["a = 1", "a = 2", "f(a)"], ["a = 2"]),                                        # the first is never read
    (["a = 1", "a = a + 1", "f(a)"], ["a = 1", "a = a + 1"]),
    (["a = []", "a.append(1)", "print(a)", "assert a", "f(a)"], ["a = []", "a.append(1)"]),
    (["a = {}", "for k in (1, 2):\n    a[k] = k\n    print(k)", "f(a)"], ["a = {}", "for k in (1, 2):\n    a[k] = k\n    print(k)"]),
    (["def f(x):\n    return x + c", "c = 1", "f(0)"], ["def f(x):\n    return x + c", "c = 1"]),   # read when it is called
    (["k = 3", "a = [k for k in (1, 2)]", "f(a)"], ["a = [k for k in (1, 2)]"]),    # its own k
    (["import os\nos.chdir('.')", "a = 1", "f(0)"], ["import os", "os.chdir('.')"]),  # imports and the call beside them stay
    (["import torch", "x = 1", "y = torch.relu(2)\nf(y)"], ["import torch", "y = torch.relu(2)"]),
])
def test_what_a_figure_needs(cells, kept):
    figure = cells[-1].splitlines()[-1]
    assert setup(cells, len(cells) - 1)[0] == "\n".join([*kept, f"qlab_figures.append({figure})"])


def test_a_page_that_somebody_is_working_on(tmp_path):
    """A figure that is made without the library's demos, a magic, a cell that is not finished, no notebook at all."""
    path = notebook(tmp_path, nbformat.v4.new_code_cell("%matplotlib inline"), live_cell("widgets.Live(fig, update)"), live_cell("play("))
    assert [(figure.cell, figure.sentence) for figure in demo.figures(path)] == [(n, "A figure of the page's own.") for n in (1, 2)]
    with pytest.raises(ValueError, match="^cell 1 of 02_own.ipynb is no plain Python, so no live figure can be made from it: mend it.$"):
        demo.page(path, tmp_path)
    path = notebook(tmp_path, live_cell("play("))
    with pytest.raises(ValueError, match="^cell 1 of 02_own.ipynb is no plain Python"):
        demo.page(path, tmp_path)
    path.write_text("[]")
    for asked in (demo.figures, lambda path: demo.page(path, tmp_path)):
        with pytest.raises(ValueError, match="^02_own.ipynb is not a Jupyter notebook of format 4.$"):
            asked(path)


def test_two_figures_of_a_page_come_in_their_order():
    assert setup(["a = 1", "f(a)", "b = a", "g(b)", "c = 2"], 1, 3)[0].splitlines() == [
        "a = 1", "qlab_figures.append(f(a))", "b = a", "qlab_figures.append(g(b))"]


SHOW = """from qlab.lab import widgets
def live(values):
    fig, ax = widgets.figure(2, 1)
    _ = ax.plot(values)
    return widgets.Live(fig, lambda: f"largest {max(values)}")
"""


def ran(source, monkeypatch):
    """The names that a source leaves in a kernel."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts its own there
    shell = InteractiveShell()
    with torch.enable_grad():  # as it was, behind a page that turns gradients off
        shell.run_cell(source).raise_error()
    return shell.user_ns


@pytest.mark.parametrize("changes", [["losses = fit(a)"], ["b = a", "b.append(7)"]])
def test_what_a_call_changes_behind_a_name_is_not_left_out(tmp_path, monkeypatch, changes):
    """The statements that the figure seems to need make another one: then all of them run."""
    cells = [SHOW, "def fit(a):\n    a.append(7)", "a = [1, 2]", *changes]
    data = ran("\n".join([*cells, "figure = live(a)"]), monkeypatch)["figure"]._repr_mimebundle_()[0]
    shown = {"text/plain": data["text/plain"], "image/png": base64.b64encode(data["image/png"]).decode()}
    figure = nbformat.v4.new_code_cell("live(a)", outputs=[nbformat.v4.new_output("display_data", shown)])
    path = notebook(tmp_path, *map(nbformat.v4.new_code_cell, cells), figure)
    source = demo.page(path, tmp_path).cells[0].source
    assert changes[-1] not in source.partition("if not as_stored(")[0]
    made, = ran(source, monkeypatch)["qlab_figures"]
    assert made._repr_mimebundle_()[0]["text/plain"] == "Live figure: . largest 7"


@pytest.mark.parametrize("path", [path for path in WITH_FIGURES if path.stem[:2] not in LONG], ids=lambda path: path.stem[:2])
def test_the_page_s_own_figure_comes_out(path, tmp_path, monkeypatch):
    """What the needed statements build says the same as what the page has stored, which the whole page made."""
    setup, _, rest = demo.page(path, tmp_path).cells[0].source.partition("    if not as_stored(")
    assert bool(rest) == (path.stem[:2] not in MEASURED)
    named = ran(setup, monkeypatch)
    cells = nbformat.read(path, as_version=4).cells
    stored = [output.data["text/plain"] for cell in cells for output in cell.get("outputs", [])
              if output.get("data", {}).get("text/plain", "").startswith("Live figure:")]
    made = [live._repr_mimebundle_()[0]["text/plain"] for live in named["qlab_figures"]]
    if path.stem[:2] in MEASURED:
        stored, made = ([text.partition(". ")[0] for text in texts] for texts in (stored, made))
    assert made == stored


def test_a_page_that_trains_says_so(tmp_path):
    said = {path.stem[:2]: demo.page(path, tmp_path).metadata["qlab"] for path in WITH_FIGURES}
    assert [number for number, wait in said.items() if wait["why"] == "This page first trains a network"] == ["10"]
    assert said["10"]["title"] == "10 · Knowledge distillation"


# What the kernel shows


def test_a_tall_figure_is_drawn_less_tall_and_whole():
    """Its letters are larger then, and no label is cut off: the layout is found again for the new height."""
    figures = [widgets.Live(widgets.figure(9, height)[0], lambda: None) for height in (3.0, 5.2)]
    for live in figures:
        live.fig.axes[0].set_xlabel("microseconds")
        live.sharpen(50)
    beamer.show(figures, "14", ".")
    assert [live.fig.get_figheight() for live in figures] == [3.0, beamer.TALLEST]
    label = figures[1].fig.axes[0].xaxis.label.get_window_extent()
    assert 0 <= label.y0 < label.y1 < figures[1].fig.axes[0].get_window_extent().y0


@pytest.mark.parametrize("make, slider", [(hardware.array_steps, "cycle"), (matmul.tiled_product, "step"), (matmul.waves, "wave")])
def test_a_play_button_begins_where_its_slider_stands(make, slider):
    """When a page is opened, the browser sets the target of a link to its source: the button to the slider, not the slider to 0."""
    live = make()
    (source, _), (target, _) = live.link.source, live.link.target
    assert source is live.controls[slider] and isinstance(target, ipywidgets.Play)


# The command


def test_the_list_has_every_figure_and_a_sentence_for_each(capsys):
    assert cli.main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines if not line.startswith(" ")] == [
        path.stem[:2] for path in PAGES for cell in nbformat.read(path, as_version=4).cells
        if any(output.get("data", {}).get("text/plain", "").startswith("Live figure:") for output in cell.get("outputs", []))]
    assert any(re.fullmatch(r"02  .*\bbits\b.*", line, re.IGNORECASE) for line in lines) and max(map(len, lines)) <= 110


def refused(capsys, *args):
    assert cli.main(["demo", *args]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_notebook_without_a_live_figure_is_told_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("voila", reason="needs voila: pip install -e '.[lecture]' -c constraints.txt")
    (tmp_path / "notebooks").mkdir()
    notebook(tmp_path / "notebooks", nbformat.v4.new_code_cell("x = 1"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks" / "00_welcome.ipynb").write_text("{}")
    assert refused(capsys, "02") == "qlab: 02_own.ipynb has no live figure: qlab demo lists the notebooks that have one.\n"


def test_a_missing_extra_and_a_missing_folder_are_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert "pip install -e '.[lecture]' -c constraints.txt" in refused(capsys, "02")
    assert refused(capsys, "02", "--stills", str(tmp_path / "none")) == f"qlab: there is no folder {tmp_path / 'none'} for stills.\n"
    assert "there is no notebook 99" in refused(capsys, "99")


def test_stills_get_names_that_are_free(tmp_path, monkeypatch):
    class Still:
        def still(self):
            return b"PNG"

    said = [beamer._saved(Still(), "02", tmp_path) for _ in range(2)]
    assert said == [f"Saved as {tmp_path / f'02_still_{number}.png'}" for number in (1, 2)]
    monkeypatch.setattr(beamer.saving, "write", lambda files: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert beamer._saved(Still(), "02", tmp_path) == f"The still could not be saved in {tmp_path}: No space left on device."
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kernel_whose_page_has_gone_ends_and_one_whose_page_is_open_lives():
    pytest.importorskip("voila", reason="needs voila: pip install -e '.[lecture]' -c constraints.txt")
    from voila.configuration import VoilaConfiguration

    from qlab.lecture import served

    config = served.settings(8888, "token", False)
    manager = VoilaConfiguration(config=config).multi_kernel_manager_class(config=config)
    assert (manager.cull_idle_timeout, manager.cull_interval) == (served.IDLE, served.LOOK)
    assert not manager.cull_connected and not manager.cull_busy


def test_the_browser_that_is_opened_has_the_token(tmp_path, monkeypatch):
    pytest.importorskip("voila", reason="needs voila: pip install -e '.[lecture]' -c constraints.txt")
    from qlab.lecture import served

    opened = queue.Queue()
    monkeypatch.setattr(served.webbrowser, "open", opened.put)
    monkeypatch.setattr(served._Page, "launch_instance", classmethod(lambda page, argv, config: page.launch_browser(page)))
    served.serve(tmp_path / "02.ipynb", 8888, "abc", "http://127.0.0.1:8888/?token=abc", True)
    url = opened.get(timeout=60)
    assert "abc" not in url and 'url=http://127.0.0.1:8888/?token=abc"' in urllib.request.urlopen(url).read().decode()


# In a browser


@pytest.fixture
def projector(tmp_path):
    """(page, stills' folder, requests to the outside and errors): `qlab demo 13`, two figures, in a window of 1280 x 720."""
    pytest.importorskip("voila", reason="needs voila: pip install -e '.[lecture]' -c constraints.txt")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    from test_browser import CHROMIUM, PATIENCE_MS

    if os.name != "posix" or not CHROMIUM:
        pytest.skip("needs a Chromium, and a terminal as Linux and macOS have it")
    stills, terminal = tmp_path / "stills", tmp_path / "terminal"
    stills.mkdir()
    (tmp_path / "temporary").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(terminal, "w") as said:
        command = [sys.executable, "-m", "qlab.cli", "demo", "13", "--no-browser", "--port", str(port), "--stills", stills]
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True,
                                   env=os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")},
                                   preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # these tests may run under nohup
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync"])
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.set_default_timeout(2 * PATIENCE_MS)
            problems = []
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))

            def only_here(route):
                if re.match(r"http://127\.0\.0\.1[:/]", route.request.url):
                    return route.continue_()
                problems.append(f"request to {route.request.url}")
                return route.abort()

            page.route(re.compile("^https?:"), only_here)
            while not terminal.read_text():
                assert process.poll() is None, terminal.read_text()
                page.wait_for_timeout(50)
            address = re.search(r"http://\S+", terminal.read_text())[0]
            for _ in range(600):  # the line comes just before the server
                try:
                    page.goto(address, wait_until="commit")
                    break
                except sync_api.Error:
                    assert process.poll() is None, terminal.read_text()
                    page.wait_for_timeout(100)
            yield page, stills, problems
            browser.close()
        process.send_signal(signal.SIGHUP)  # the terminal is closed
        process.wait(60)
        assert [path.name for path in (tmp_path / "temporary").iterdir() if path.name.startswith(("qlab-demo-", "voila_"))] == []
        told = [line for line in terminal.read_text().splitlines() if not line.startswith("403 GET")]  # what the test has asked for
        assert len(told) == 1  # the greeting, and nothing else
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def status(address, **headers):
    """What the server answers somebody without the browser's cookie; a page of its own is not followed."""
    request = urllib.request.Request(address, headers=headers)
    try:
        return urllib.request.build_opener(NotOn).open(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


class NotOn(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def test_a_lecturer_s_keys(projector):
    page, stills, problems = projector
    address = page.url.partition("?")[0]
    assert status(address) == 302 and status(page.url, Host="elsewhere.org") == 403  # without the token; by a name made to lead here
    page.wait_for_function("document.querySelector('#loading_text')?.textContent === '13 · Rooflines and hardware'")  # while it works
    page.get_by_text("The page is getting ready").wait_for()
    page.wait_for_function("document.activeElement?.matches('.noUi-handle')")  # the first slider is in hand at once
    figure = page.locator(".qlab-demo").first
    image = figure.locator(".qlab-picture")
    assert figure.locator(".qlab-text").inner_text().startswith("Cycle 6 of ")  # as the page's cell has set it

    def moves(key):
        source = image.get_attribute("src")
        page.keyboard.press(key)
        page.wait_for_function("([image, source]) => image.src !== source", arg=[image.element_handle(), source])

    moves("ArrowRight")
    page.evaluate("document.activeElement.blur()")
    moves("ArrowLeft")  # the slider in hand stays in hand
    focused = page.evaluate_handle("document.activeElement")
    page.keyboard.press("Tab")
    assert page.evaluate("before => before !== document.activeElement && document.activeElement.closest('.qlab-demo') !== null", focused)
    page.keyboard.press("s")
    figure.locator(".qlab-said").get_by_text("13_rooflines_and_hardware_still_1.png").wait_for()
    assert (stills / "13_rooflines_and_hardware_still_1.png").read_bytes().startswith(b"\x89PNG")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement !== null")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement === null")

    # Nothing is cut off, words can be read from the last row (28 px on a beamer of 1920 x 1080), and code is nowhere.
    for width, height in ((1280, 720), (1920, 1080), (1024, 768)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function("([width, height]) => innerWidth === width && innerHeight === height", arg=[width, height])
        for number in range(page.locator(".qlab-demo").count()):
            box, picture, words = page.evaluate("""number => {
                const figure = document.querySelectorAll('.qlab-demo')[number];
                const of = selector => { const {left, top, right, bottom} = figure.querySelector(selector).getBoundingClientRect();
                                         return {left, top, right, bottom}; };
                return [of('.qlab-live'), of('.qlab-picture'), of('.qlab-text')];
            }""", number)
            assert box["top"] <= picture["top"] and picture["bottom"] <= words["top"] + 1 and words["bottom"] <= box["bottom"] + 1
            assert picture["bottom"] - picture["top"] > height / 2
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.wait_for_function("""[...document.querySelectorAll('.qlab-text')].every(words =>
        parseFloat(getComputedStyle(words).fontSize) * words.currentCSSZoom >= 28)""")
    assert page.locator(".jp-InputArea, .highlight").count() == 0
    assert problems == []
