"""The course as a reader meets it: JupyterLab, started by the real command, in a real browser, on a copy of the course.

`make test` opens one page of each part; `make browser` all of them (`qlab browser 02 09` some). Needs the extra `browser` (playwright) and
Debian's package chromium, or another Chromium that the environment variable QLAB_CHROMIUM names.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("00", "09", "13")  # one of each part
CHROMIUM = os.environ.get("QLAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WINDOW = {"width": 1366, "height": 768}  # a small laptop, and many projectors
PATIENCE_MS, RUN_MS = 60_000, 600_000    # until a step, and a whole page, counts as failed; no test is about how long it took


def pages() -> list[str]:
    """The pages to open: those named in QLAB_PAGES by their numbers, all, or one of each part."""
    found = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    asked = os.environ.get("QLAB_PAGES", " ".join(QUICK)).split()
    return found if asked == ["all"] else [name for name in found if name.startswith(tuple(asked))]


PAGES = pages()


@dataclass
class Lab:
    """A running `qlab lab`, its terminal and a page of a browser that is open at it."""

    root: Path
    home: Path
    page: object = None
    process: subprocess.Popen = None
    address: dict = None
    problems: list[str] = field(default_factory=list)  # what the browser's console said, and requests to the outside
    read: int = 0                                      # lines of the terminal

    def start(self) -> None:
        folders = {f"JUPYTER_{name}_DIR": str(self.home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        for folder in folders.values():
            Path(folder).mkdir(exist_ok=True)
        for old in (self.home / "runtime").iterdir():
            old.unlink()
        # The two settings of the test: the page's own object for scripts, and no nbgrader, which a teacher may have beside qlab.
        (self.home / "config" / "jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}')
        nbgrader = {f"nbgrader.server_extensions.{name}": False
                    for name in ("formgrader", "validate_assignment", "assignment_list", "course_list")}
        (self.home / "config" / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": {"jpserver_extensions": nbgrader}}))
        with open(self.home / "terminal", "a") as terminal:
            keyboard = os.openpty()[1]  # Jupyter stops its kernels at Ctrl-C only where there is somebody to press it
            with socket.socket() as probe:  # other tests may start a server meanwhile
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            self.process = subprocess.Popen([sys.executable, "-m", "qlab.cli", "lab", "--no-browser", "--port", port],
                                            cwd=self.root, stdin=keyboard,
                                            stdout=terminal, stderr=terminal, start_new_session=True,
                                            env=os.environ | folders | {"HOME": str(self.home), "PYTHONPATH": str(ROOT)})
        while not (files := [file for file in (self.home / "runtime").glob("jpserver-*.json") if file.read_text()]):
            assert self.process.poll() is None, (self.home / "terminal").read_text()
            self.page.wait_for_timeout(50)
        self.address = json.loads(files[0].read_text())

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # one Ctrl-C
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise

    def restart(self) -> None:
        self.page.goto("about:blank")  # its reader closes the page first, and the server has noticed
        kernels = f"{self.address['url']}api/kernels?token={self.address['token']}"
        while any(kernel["connections"] for kernel in self.page.request.get(kernels).json()):
            self.page.wait_for_timeout(50)
        self.stop()
        self.start()

    def warnings(self) -> list[str]:
        """What the terminal has shown since the last time, but for the two greetings, of qlab and of the server."""
        lines = (self.home / "terminal").read_text().splitlines()[self.read:]
        self.read += len(lines)
        start = re.compile(r"qlab: (starting JupyterLab|port \d+ is taken)|\[C |\s*$|\s+(To access the server|Or copy and paste|file:|http://)")
        return [line for line in lines if not start.match(line)]

    def open(self, name: str) -> None:
        """A notebook of the course, with its kernel ready."""
        self.page.goto(f"{self.address['url']}lab/tree/{name}?token={self.address['token']}&reset", wait_until="commit")
        self.page.wait_for_url(lambda url: "reset" not in url, wait_until="commit")  # the page loads itself twice
        self.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 0")
        self.page.evaluate("""async () => {
            const panel = jupyterapp.shell.currentWidget;
            await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
            const kernel = panel.sessionContext.session.kernel;
            await kernel.info;
            while (kernel.status !== 'idle') await new Promise(again => setTimeout(again, 50));
        }""")

    def do(self, command: str):
        return self.page.evaluate("command => jupyterapp.commands.execute(command).then(() => null)", command)

    def run_all(self) -> None:
        self.page.evaluate("""() => {
            const panel = jupyterapp.shell.currentWidget;
            const ran = jupyterapp.commands.execute('notebook:run-all-cells');
            ran.then(() => panel.sessionContext.session.kernel.requestKernelInfo()).finally(() => { window.qlabRan = panel.id; });
        }""")
        self.page.wait_for_function("window.qlabRan === jupyterapp.shell.currentWidget.id", timeout=RUN_MS)

    def show(self, selector: str):
        """The first element of that kind, in view."""
        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        return element


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    if os.name != "posix":
        pytest.skip("needs a terminal as Linux and macOS have it")
    if not CHROMIUM:
        pytest.skip("needs a Chromium: on Debian apt install chromium, elsewhere name one in QLAB_CHROMIUM")
    home = tmp_path_factory.mktemp("reader")
    root = tmp_path_factory.mktemp("course")
    for folder in ("notebooks", "exercises"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(PATIENCE_MS)
        lab = Lab(root, home, page)
        page.on("console", lambda said: lab.problems.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: lab.problems.append(f"exception: {error}"))
        page.on("request", lambda request: None if re.match(r"(http|ws)://127\.0\.0\.1[:/]|data:|blob:|about:", request.url)
                else lab.problems.append(f"request to {request.url}"))
        try:
            lab.start()
            yield lab
        finally:
            lab.stop()
            browser.close()


@pytest.fixture(autouse=True)
def quiet(lab):
    """After every test: nothing on the terminal, nothing on the console, no request to the outside."""
    yield
    said, lab.problems = [*lab.warnings(), *lab.problems], []
    assert said == []


def stored(name: str) -> dict:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_bytes())


def plain_texts(notebook: dict) -> list[str]:
    return ["".join(output.get("data", {}).get("text/plain", "")) for cell in notebook["cells"] for output in cell.get("outputs", [])]


def has(name: str, beginning: str) -> bool:
    return any(text.startswith(beginning) for text in plain_texts(stored(name)))


def every_picture_has_words(page) -> None:
    page.wait_for_function("[...document.querySelectorAll('.jp-Notebook img')].every(image => image.alt.trim())")


# A page before anything runs


@pytest.mark.parametrize("name", PAGES)
def test_the_first_screen_holds_title_picture_and_question(lab, name):
    """In a window of 1366 x 768, from the stored outputs: the first heading, a picture, and the whole question with its answers."""
    lab.open(f"notebooks/{name}.ipynb")
    lab.do("application:toggle-left-area") if lab.page.evaluate("!jupyterapp.shell.leftCollapsed") else None
    lab.page.wait_for_function("document.querySelector('.jp-Notebook img')?.complete")
    window = lab.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first.bounding_box()
    below = {}
    for what, selector in [("title", ".jp-Notebook h1"), ("picture", ".jp-Notebook :is(.jp-RenderedImage, .jp-RenderedMarkdown) img"),
                           ("question", ".jp-Notebook .jp-RenderedHTML:has(> p > b:text-is('Predict.'))")]:
        found = lab.page.locator(selector)
        assert found.count(), f"there is no {what} on the page"
        box = found.first.bounding_box()
        below[what] = round(box["y"] + box["height"] - window["y"] - window["height"])
    assert max(below.values()) <= 0, f"pixels below the first screen: { {what: by for what, by in below.items() if by > 0} }"


@pytest.mark.parametrize("name", [*(f"notebooks/{name}" for name in PAGES), *(f"exercises/{name}" for name in PAGES if name[0].isdigit())])
def test_opening_and_saving_changes_no_byte(lab, name):
    path = lab.root / f"{name}.ipynb"
    shutil.copy(ROOT / f"{name}.ipynb", path)
    before = path.read_bytes()
    lab.open(f"{name}.ipynb")
    written = path.stat().st_mtime_ns
    lab.do("docmanager:save")
    assert path.stat().st_mtime_ns > written and path.read_bytes() == before
    every_picture_has_words(lab.page)


# A page from the first to the second day


@pytest.mark.parametrize("name", PAGES)
def test_the_first_and_the_second_day(lab, name):
    path, page = lab.root / "notebooks" / f"{name}.ipynb", lab.page
    shutil.copy(ROOT / "notebooks" / path.name, path)
    lab.open(f"notebooks/{path.name}")
    lab.run_all()
    assert not page.evaluate("[...jupyterapp.shell.currentWidget.content.widgets].some(cell => "
                             "cell.outputArea?.model.toJSON().some(output => output.output_type === 'error'))")
    sliders_have_names(lab)
    every_picture_has_words(page)
    if has(name, "Live figure:"):
        live_figures_answer(lab) if page.locator(".qlab-live .noUi-handle").count() else a_button_answers(lab)
    if has(name, "Predict."):
        a_guess_is_made_by_keyboard(lab)
    lab.do("docmanager:save")
    saved = path.read_text()
    assert "widget-view" not in saved and "You said" not in saved

    lab.restart()
    lab.open(f"notebooks/{path.name}")
    page.wait_for_function("document.querySelector('.jp-Notebook img')?.complete")
    assert page.get_by_text("Error displaying widget").count() == page.get_by_text("model not found").count() == 0
    stills = page.evaluate("""[...jupyterapp.shell.currentWidget.content.widgets].flatMap(cell => cell.outputArea?.widgets ?? [])
                              .map(output => output.node).filter(node => node.querySelector('.jp-RenderedImage img, b')).length""")
    kinds = [text for text in plain_texts(json.loads(saved)) if text.startswith(("Live figure:", "Predict.", "Check yourself."))]
    assert stills >= len(kinds) > 0
    every_picture_has_words(page)


def sliders_have_names(lab) -> None:
    lab.page.wait_for_function("[...document.querySelectorAll('.jp-Notebook .noUi-handle')].every(handle => "
                               "handle.getAttribute('aria-label') && handle.getAttribute('aria-valuetext'))")


def picture(lab) -> str:
    return lab.page.locator(".qlab-live:has(.noUi-handle) .qlab-picture").first.get_attribute("src")


def a_button_answers(lab) -> None:
    """The live figure of a page without a slider follows its first button."""
    image = lab.page.locator(".qlab-live .qlab-picture").first
    source = image.get_attribute("src")
    lab.show(".qlab-live button").click()
    lab.page.wait_for_function("([image, source]) => image.src !== source", arg=[image.element_handle(), source])


def live_figures_answer(lab) -> None:
    """The first slider on the page moves by key and by mouse; the picture and its words follow each time."""
    handle = lab.show(".qlab-live .noUi-handle")
    image = lab.page.locator(".qlab-live:has(.noUi-handle) .qlab-picture").first

    def follows(move) -> None:
        source, words, value = image.get_attribute("src"), image.get_attribute("alt"), handle.get_attribute("aria-valuetext")
        move()
        lab.page.wait_for_function("([image, handle, source, words, value]) => image.src !== source && image.alt !== words && "
                                   "handle.getAttribute('aria-valuetext') !== value",
                                   arg=[image.element_handle(), handle.element_handle(), source, words, value])

    handle.focus()
    high = float(handle.get_attribute("aria-valuenow")) >= float(handle.get_attribute("aria-valuemax"))
    follows(lambda: lab.page.keyboard.press("ArrowLeft" if high else "ArrowRight"))
    assert lab.page.evaluate("document.activeElement.classList.contains('noUi-handle')")  # the key was the slider's alone

    def drag() -> None:
        track, grip = handle.locator("xpath=../..").bounding_box(), handle.bounding_box()
        left = grip["x"] + grip["width"] / 2 > track["x"] + track["width"] / 2
        lab.page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
        lab.page.mouse.down()
        lab.page.mouse.move(track["x"] + (0 if left else track["width"]), grip["y"] + grip["height"] / 2, steps=4)
        lab.page.mouse.up()

    follows(drag)


def a_guess_is_made_by_keyboard(lab) -> None:
    page, first = lab.page, lab.page.locator(".qlab-question").first
    lab.show(".qlab-question :is(input[type=radio], .noUi-handle)")
    control = first.locator("input[type=radio], .noUi-handle").first
    control.focus()
    if control.get_attribute("type") == "radio":
        page.wait_for_function("""[...document.querySelectorAll('.qlab-question [role=radiogroup]')].every(group => {
            const names = [...group.querySelectorAll('input')].map(input => input.name);
            return group.getAttribute('aria-label') && names[0] && new Set(names).size === 1;
        })""")
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
        assert first.locator("input[type=radio]").nth(1).is_checked()
    else:
        page.keyboard.press("ArrowRight")
    first.locator("button:enabled").wait_for()
    for _ in range(3):  # past a slider's value, which may be typed in
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.qlab-question button')"):
            break
    page.keyboard.press("Enter")
    first.get_by_text("You said:").wait_for()
