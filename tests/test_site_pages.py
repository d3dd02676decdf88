"""The website in a real browser without a network: every page opens in both themes, no link is broken, a slider swaps pictures, and
axe-core finds no serious fault. One live figure is drawn, that of a page that loads no network; the others stay still.

Needs the extras `site` and `browser`, and Debian's package chromium, or another Chromium that QLAB_CHROMIUM names.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest

from qlab.folders import clone

ROOT = clone()
DRAWN = "13_rooflines_and_hardware"
CHROMIUM = os.environ.get("QLAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SERIOUS = ("serious", "critical")
# axe takes time with the square of what is on a page: of coloured code the first blocks stand for all, the first page's menu for all menus,
# and MathJax answers for its own.
THIN = """(first) => {
    if (!first) document.querySelectorAll(".bd-sidebar-primary .bd-links, .bd-sidebar-secondary li").forEach((part) => part.remove());
    document.querySelectorAll(".highlight pre").forEach((code, i) => { if (i > 2) code.textContent = code.textContent; });
    document.querySelectorAll("mjx-container").forEach((formula) => formula.remove());
    document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>"); // a theme is there at once
}"""


pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API modifications")  # of the theme's


class Page(HTMLParser):
    """A page's anchors, links and pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.without_text = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        self.loads += [attrs[name] for name in ("src", "href") if tag in ("img", "script", "link") and attrs.get(name)]
        if tag == "img" and not (attrs.get("alt") or "").strip():
            self.without_text.append(attrs.get("src"))


SAID = []  # what the build has told


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx_book_theme", reason="needs the extra site: pip install -e '.[site]' -c constraints.txt")
    from qlab.site import build

    out = tmp_path_factory.mktemp("web") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FRAMES", str(out.with_name("frames")))  # drawn now, and not into the clone
        warnings = build.build(ROOT, out, "https://github.com/owner/name", [DRAWN], SAID.append)
    assert warnings == []
    return out


@pytest.fixture(scope="module")
def parsed(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def browser(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]' -c constraints.txt")
    if not CHROMIUM:
        pytest.skip("needs a Chromium: on Debian apt install chromium, elsewhere name one in QLAB_CHROMIUM")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        page = chromium.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(60_000)
        page.problems, page.address = [], f"http://127.0.0.1:{server.server_port}"
        page.on("console", lambda said: page.problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.route(lambda url: not url.startswith((page.address, "data:")), lambda route: (
            page.problems.append(f"request to {route.request.url}"), route.abort()))
        yield page
        chromium.close()
    server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


def test_a_build_leaves_nothing_but_the_site_and_says_when_a_page_is_drawn(site):
    """What lies beside the site lies in the root of a clone, where the command puts it."""
    assert sorted(path.name for path in site.parent.iterdir()) == ["frames", "site"]
    assert not list(site.rglob("jupyter_execute")) and f"{DRAWN} is drawn, 1 of 1" in SAID


def test_all_links_lead_to_a_page_and_an_anchor_that_are_there(site, parsed):
    broken = []
    for path, page in parsed.items():
        for href in page.links + page.loads:
            url = urlparse(urljoin(f"http://site/{path}", href))
            if url.hostname in ("127.0.0.1", "localhost"):  # of a server that the page tells how to start
                continue
            if url.hostname != "site":
                assert url.scheme in ("https", "mailto", "data"), (path, href)  # where it leads is not asked
                continue
            target = unquote(url.path).lstrip("/")
            if not (site / target).is_file():
                broken.append((path, href))
            elif url.fragment and target in parsed and unquote(url.fragment) not in parsed[target].ids and url.fragment != "main-content":
                broken.append((path, href))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere_and_every_picture_has_its_text(parsed):
    assert [href for page in parsed.values() for href in page.loads if re.match(r"(https?:)?//", href)] == []
    assert {path: page.without_text for path, page in parsed.items() if page.without_text} == {}


def test_each_notebook_is_there_with_its_foot_and_without_speakers_notes(site, parsed):
    import nbformat

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        html = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        download = nbformat.read(site / "downloads" / "notebooks" / path.name, as_version=4)
        notes = [cell.source for cell in nbformat.read(path, as_version=4).cells if "speaker" in cell.metadata.get("tags", [])]
        for note in notes:
            assert note.splitlines()[-1] not in html and note not in [cell.source for cell in download.cells]
        if path.name[0].isdigit():
            foot = html[html.index("About this page"):]
            assert "Objective." in foot and "In the source document." in foot and f"../exercises/{path.stem}.html" in foot
            assert f"https://mybinder.org/v2/gh/owner/name/HEAD?urlpath=lab/tree/notebooks/{path.name}" in html


def test_a_slider_swaps_pictures_by_the_keyboard(browser):
    browser.goto(f"{browser.address}/notebooks/{DRAWN}.html")
    figure = browser.locator(".qlab-frames").first
    slider, picture = figure.get_by_role("slider").first, figure.locator("img")
    before = picture.get_attribute("src"), picture.get_attribute("alt"), figure.locator("figcaption").inner_text()
    with browser.expect_response(lambda response: response.url.endswith(".webp")) as loaded:
        slider.press("ArrowRight")
    after = picture.get_attribute("src"), picture.get_attribute("alt"), figure.locator("figcaption").inner_text()
    assert loaded.value.ok and all(a != b for a, b in zip(before, after))
    assert slider.get_attribute("aria-valuetext") == figure.locator("output").first.inner_text()
    assert picture.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") > 300
    assert browser.problems == []


def test_every_page_opens_in_both_themes_without_an_error_or_a_serious_fault(browser, parsed):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    found = {}
    for path in sorted(parsed):
        browser.goto(f"{browser.address}/{path}", wait_until="load")
        browser.evaluate(THIN, path == "index.html")
        browser.evaluate(axe)
        for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # a theme changes colours and nothing else
            browser.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            settings = {"resultTypes": ["violations"], "preload": False} | rules
            for fault in browser.evaluate("async settings => (await axe.run(document, settings)).violations", settings):
                if fault["impact"] in SERIOUS:
                    nodes = [node["html"][:160] for node in fault["nodes"][:2]]
                    found.setdefault(f"{theme}: {fault['id']}", []).append((path, len(fault["nodes"]), nodes))
        if browser.problems:
            found[path], browser.problems[:] = list(browser.problems), []
    assert found == {}


def test_a_search_finds_pages(browser):
    browser.goto(f"{browser.address}/search.html?q=zero-point")
    browser.locator("#search-results li a").first.wait_for()
    assert "02_linear_quantization.html" in " ".join(link.get_attribute("href") for link in browser.locator("#search-results li a").all())
    assert browser.problems == []


def test_a_phone_needs_no_sideways_scrolling(browser):
    browser.set_viewport_size({"width": 390, "height": 844})
    wide = {}
    for path in ("index.html", f"notebooks/{DRAWN}.html", "exercises/02_linear_quantization.html", "api/quant.html", "README.html",
                 "docs/classroom.html"):
        browser.goto(f"{browser.address}/{path}")
        wide[path] = browser.evaluate("document.documentElement.scrollWidth")
    browser.set_viewport_size({"width": 1366, "height": 768})
    assert set(wide.values()) == {390}, wide
