"""The slides of the course in a browser at 1920 x 1080: nothing is cut, everything can be read from the back, no network is asked.

All notebooks as web pages; one live in JupyterLab, by the real command. Needs what tests/test_browser.py needs, and the extra lecture.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from qlab.lecture import html

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("QLAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BEAMER = {"width": 1920, "height": 1080}
PROSE, CODE, FORMULA = 28, 18, 22       # pixels of the beamer: the least size of letters
PATIENCE_MS, RUN_MS = 60_000, 600_000   # until a step, and a whole page, counts as failed; no test is about how long it took
INSIDE = r"(http|ws)://127\.0\.0\.1[:/]|file:|data:|blob:|about:"

# Of each slide: what is beyond its edges, what had to become smaller, the smallest letters in beamer's pixels, pictures that are missing.
MEASURE = """() => {
  Reveal.configure({ viewDistance: 10000 });
  const smallest = (stage, selector) => Math.min(999, ...[...stage.querySelectorAll(selector)].filter(e => e.textContent.trim()).map(e =>
    parseFloat(getComputedStyle(e).fontSize) * (e.closest('.piece').style.zoom || 1) * Reveal.getScale()));
  return Reveal.getSlides().map(section => {
    lecture.fit(section);
    const stage = section.querySelector('.stage');
    const seen = [...stage.querySelectorAll('*')].filter(e => e.checkVisibility());
    const bottom = Math.max(...seen.map(e => e.getBoundingClientRect().bottom));
    return {
      title: stage.querySelector('h1, h2').textContent, shrunk: stage.dataset.scale ?? '', down: stage.scrollHeight - stage.clientHeight,
      right: stage.scrollWidth - stage.clientWidth, bottom: bottom - stage.getBoundingClientRect().bottom,
      prose: smallest(stage, '.text :is(p, li, td), .question :is(p, li)'), code: smallest(stage, 'pre, .output td'),
      formula: smallest(stage, 'mjx-container[display="true"]'),
      pictures: [...stage.querySelectorAll('img')].filter(image => !image.naturalWidth).length,
    };
  });
}"""


def problems(slides: list[dict]) -> list[dict]:
    """The slides on which something is cut, missing or too small to read."""
    return [slide for slide in slides if slide["shrunk"] or max(slide["down"], slide["right"], slide["bottom"]) > 1 or slide["pictures"]
            or slide["prose"] < PROSE or slide["code"] < CODE or slide["formula"] < FORMULA]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    pytest.importorskip("jupyterlab_slideshow", reason="needs the extra lecture: pip install -e '.[lecture]' -c constraints.txt")
    if not CHROMIUM:
        pytest.skip("needs a Chromium: on Debian apt install chromium, elsewhere name one in QLAB_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page of a beamer's size to which any other machine is out of reach; .problems: what it asked of one, what the console said."""
    page = browser.new_page(viewport=BEAMER)
    page.set_default_timeout(PATIENCE_MS)
    page.problems = []

    def refuse(route):
        page.problems.append(f"request to {route.request.url}")
        route.abort()

    page.route(lambda url: not re.match(INSIDE, url), refuse)
    page.on("console", lambda said: page.problems.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(f"exception: {error}"))
    yield page
    page.close()
    assert page.problems == []


def opened(page, notebook, folder) -> list[dict]:
    count = html.export(notebook, folder)
    page.goto(f"{folder.as_uri()}/index.html")
    page.wait_for_function("document.body.dataset.ready")
    slides = page.evaluate(MEASURE)
    assert len(slides) == count
    return slides


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_every_slide_of_the_course_fits_and_can_be_read(page, path, tmp_path):
    assert problems(opened(page, nbformat.read(path, as_version=4), tmp_path / "out")) == []


def test_a_slide_that_is_too_full_would_be_found(page, tmp_path, monkeypatch):
    monkeypatch.setattr("qlab.lecture.blocks.LINE", 4)                  # lines are counted too low
    text = "\n\n".join(["word " * 150] * 4)
    found = problems(opened(page, new_notebook(cells=[new_markdown_cell(f"# Title\n\n{text}")]), tmp_path / "out"))
    assert found and float(found[0]["shrunk"]) < 1 and found[0]["down"] <= 1  # and on a screen it would be smaller, not cut


def test_keys_turn_the_pages_and_the_notes_open(page, tmp_path):
    cells = [new_markdown_cell("# One"), new_markdown_cell("## Derive\nFirst.\n\nSecond."), new_markdown_cell("## Three\nLast.")]
    cells.append(new_markdown_cell("Ask them.", metadata={"tags": ["speaker"]}))
    html.export(new_notebook(cells=cells), tmp_path / "out")
    page.goto((tmp_path / "out" / "index.html").as_uri())
    page.wait_for_function("document.body.dataset.ready")
    places = [page.evaluate("Reveal.getIndices()")["h"]]
    for key in ("PageDown", "ArrowRight", "ArrowDown", "PageUp"):
        page.keyboard.press(key)
        places.append(page.evaluate("Reveal.getIndices()")["h"])
    assert places == [0, 1, 1, 2, 1]                                    # the second text of a derivation is a step of its own
    page.keyboard.press(".")
    assert page.evaluate("Reveal.isPaused()")
    page.keyboard.press("b")
    assert not page.evaluate("Reveal.isPaused()")
    page.keyboard.press("l")
    page.mouse.move(500, 300)
    assert page.locator(".pointer").bounding_box()["x"] == pytest.approx(491, abs=2)
    page.keyboard.press("Home")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    popup.value.get_by_text("Ask them.").wait_for(timeout=PATIENCE_MS)


# Live


class Lecture:
    """A running `qlab lecture`, its terminal, its address."""

    def __init__(self, number: str, root: Path, home: Path):
        folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        for folder in folders.values():
            Path(folder).mkdir()
        (home / "config" / "jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}')
        with socket.socket() as probe:                                  # other tests may start a server meanwhile
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.terminal = home / "terminal"
        nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")} | {"no_proxy": "127.0.0.1"}
        with open(self.terminal, "w") as terminal:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qlab.cli", "lecture", number, "--no-browser", "--port", port], cwd=root,
                stdin=os.openpty()[1], stdout=terminal, stderr=terminal, start_new_session=True,
                env=os.environ | folders | nowhere | {"HOME": str(home), "PYTHONPATH": str(ROOT)})

    def address(self, page) -> str:
        """That of the slides, as soon as it is told: the server answers then. Below it stands that of the notes."""
        while not (told := re.findall(r"^qlab: (slides|speaker's notes): (\S+)\n", self.terminal.read_text(), re.MULTILINE))[1:]:
            assert self.process.poll() is None, self.terminal.read_text()
            page.wait_for_timeout(50)
        assert [name for name, _ in told] == ["slides", "speaker's notes"]
        return told[0][1]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)                         # one Ctrl-C
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal as Linux and macOS have it")
def test_a_live_lecture(page, tmp_path):
    """Notebook 00: every slide fits before and after its cells have run, the live figure answers, keys do what --help says."""
    root, home = tmp_path / "course", tmp_path / "home"
    (root / "notebooks").mkdir(parents=True)
    home.mkdir()
    shutil.copy(ROOT / "notebooks" / "00_welcome.ipynb", root / "notebooks")
    lecture = Lecture("00", root, home)
    try:
        page.goto(lecture.address(page), wait_until="commit")           # the server's first page, as its browser would open it
        page.locator('[data-slide="0.0"]').wait_for(state="attached")
        walk(page)
        page.wait_for_function("!document.querySelector('.qlab-bar span').textContent.includes('runs')", timeout=RUN_MS)
        assert page.locator(".qlab-bar span").text_content() == ""      # no cell has failed
        live = walk(page)
        assert live, "no slide has a live figure"
        the_live_figure_answers(page, live[0])
        everything_scales_together(page, live[0])
        keys(page)
        page.keyboard.press("Escape")
        page.wait_for_function("!document.body.dataset.jpDeckMode")
    finally:
        page.goto("about:blank")                                        # a reader closes the page first
        lecture.stop()
    said = [line for line in lecture.terminal.read_text().splitlines() if re.match(r"\[[WE]|Traceback|\S*Warning", line)]
    assert said == []
    assert (root / "lectures" / "00_welcome.ipynb").is_file()


STEP = """() => {
  const stage = document.querySelector('.jp-Deck .jp-WindowedPanel-viewport'), zoom = +stage.style.getPropertyValue('--stage');
  const cells = [...stage.querySelectorAll('.jp-Cell')].filter(cell => cell.offsetHeight > 0);
  const letters = [...stage.querySelectorAll('.jp-MarkdownCell:not([data-kind^=heading]) p')].filter(p => p.offsetHeight > 0).map(p =>
    parseFloat(getComputedStyle(p).fontSize) * +p.closest('.jp-Cell').style.getPropertyValue('--scale') * zoom);
  return { at: document.querySelector('[data-slide]').dataset.slide, fit: +stage.dataset.fit, cells: cells.length,
           down: stage.scrollHeight - stage.clientHeight, right: stage.scrollWidth - stage.clientWidth, prose: Math.min(999, ...letters),
           live: cells.some(cell => cell.querySelector('.qlab-live')) };
}"""


def walk(page) -> list[str]:
    """From the first slide to the last by a remote control's key; returns the slides with a live figure."""
    page.keyboard.press("Home")
    seen, live = [], []
    while not seen or seen[-1] != page.evaluate("document.querySelector('[data-slide]').dataset.slide"):
        page.wait_for_timeout(60)                                       # as long as the page itself waits before it measures
        step = page.evaluate(STEP)
        assert max(step["down"], step["right"]) <= 1 and step["fit"] > 0.75 and step["cells"] > 0 and step["prose"] > PROSE, step
        seen.append(step["at"])
        live += [step["at"]] if step["live"] else []
        page.keyboard.press("PageDown")
    assert len({at.partition(".")[0] for at in seen}) == page.locator(".qlab-bar option").count()
    return live


def the_live_figure_answers(page, slide: str) -> None:
    """A slider's arrow key is its own; Page Down turns the slide even then."""
    page.locator(".qlab-bar select").select_option(slide.partition(".")[0])
    image = page.locator(".jp-Cell:not(.qlab-off) .qlab-picture").first
    source = image.get_attribute("src")
    control = page.locator(".jp-Cell:not(.qlab-off) .qlab-live :is(.noUi-handle, button)").first
    if "noUi-handle" in control.get_attribute("class"):
        control.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft") if image.get_attribute("src") == source else None
    else:
        control.click()
    page.wait_for_function("([image, source]) => image.src !== source", arg=[image.element_handle(), source])
    assert page.evaluate("document.querySelector('[data-slide]').dataset.slide") == slide
    page.keyboard.press("PageDown")
    assert page.evaluate("document.querySelector('[data-slide]').dataset.slide") != slide


SIZES = """() => Object.fromEntries(['h1, h2', '.qlab-live .widget-label', '.qlab-live .qlab-picture', '.qlab-text'].map(
  what => [what, document.querySelector(`.jp-Cell:not(.qlab-off) :is(${what})`).getBoundingClientRect().width]))"""


def everything_scales_together(page, slide: str) -> None:
    """On a screen of half the size heading, names of controls, picture and text have half theirs."""
    page.locator(".qlab-bar select").select_option(slide.partition(".")[0])
    large = page.evaluate(SIZES)
    page.set_viewport_size({side: pixels // 2 for side, pixels in BEAMER.items()})
    page.wait_for_function("document.querySelector('.jp-Deck .jp-WindowedPanel-viewport').style.getPropertyValue('--stage') < 1.2")
    small = page.evaluate(SIZES)
    assert small == pytest.approx({what: width / 2 for what, width in large.items()}, rel=0.05)
    page.set_viewport_size(BEAMER)
    page.wait_for_function("document.querySelector('.jp-Deck .jp-WindowedPanel-viewport').style.getPropertyValue('--stage') > 2.2")


def keys(page) -> None:
    """Black, pointer, notes; a stray letter, which JupyterLab takes for a command, changes nothing."""
    page.keyboard.press("Home")
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    for key in ("x", "a", "d", "d"):
        page.keyboard.press(key)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells
    page.keyboard.press("b")
    assert page.locator(".qlab-black").bounding_box() == {"x": 0, "y": 0, **BEAMER}
    page.keyboard.press(".")
    assert page.locator(".qlab-black").count() == 0
    page.keyboard.press("l")
    page.mouse.move(500, 300)
    assert page.locator(".qlab-pointer").bounding_box()["x"] == pytest.approx(490, abs=2)
    arrow = "getComputedStyle(document.querySelector('.qlab-bar select')).paddingRight"
    assert float(page.evaluate(arrow).removesuffix("px")) >= 16         # of the list of slides: no letter stands below it
    page.keyboard.press("l")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    popup.value.get_by_text("ten minutes with this page").wait_for()
    popup.value.locator("mjx-container").first.wait_for()               # a formula is set, in Jupyter's sandbox
    assert "$" not in popup.value.locator("body").inner_text()
    popup.value.close()
