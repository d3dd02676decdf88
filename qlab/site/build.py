"""The whole site: a tree of sources for Sphinx, made from the clone, and what Sphinx makes of it."""

import contextlib
import importlib.util
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat

from qlab import saving
from qlab.errors import not_installed
from qlab.lab import teaching
from qlab.site import editions, entrance, frames, library, links, pages, theme

STATIC = Path(__file__).parent / "static"
MATHJAX = "sphinx-mathjax-offline"
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", MATHJAX)
TEXTS = ("README.md", "exercises/README.md", "exercises/challenge/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "solutions/README.md",
         "qlab/grading/README.md")
FIRST = ("docs/teaching.md", "docs/classroom.md", "docs/architecture.md")  # of docs/, in this order
FRAMES = "build/frames"  # in the clone
MADE = "_static/qlab-site.txt"  # in the site: its files
WORKERS = 4  # that draw at the same time: each holds torch and a network or two


def check_installed() -> None:
    """Raises ImportError where the packages of the extra `site` are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(not_installed(missing[0], extra="site"))


def check_place(out: Path) -> None:
    """Raises OSError where out holds something that no build has made, the .git or the CNAME of a branch of pages say: it would be lost."""
    found = _files(out) if out.is_dir() else ["."] if out.exists() else []
    made = (out / MADE).read_text(encoding="utf-8").splitlines() if (out / MADE).is_file() else []
    if others := [name for name in found if name not in {*made, MADE}]:
        raise FileExistsError(f"{out} holds {others[0]}, which this command has not made: name another with --out, or remove this one.")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def build(root: Path, out: Path, repository: str | None = None, draw: Sequence[str] | None = None,
          say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Makes the site of the clone root in the folder out, and returns Sphinx's warnings.

    repository: where the course is published, for links to files and for Binder; draw: the notebooks, by their stems, whose live figures
    move, all without it; say is told what goes on. out is replaced at the end, as a whole. Raises OSError where it holds something else or
    cannot be written, ImportError without the extra site.
    """
    check_place(out)
    check_installed()
    with saving.whole_folder(out) as web, tempfile.TemporaryDirectory(prefix="qlab-site-") as made:
        notebooks = {path.relative_to(root).as_posix(): nbformat.read(path, as_version=4)
                     for folder in ("notebooks", "exercises") for path in sorted((root / folder).glob("*.ipynb"))}
        notebooks |= editions.pages(root, notebooks)
        drawn = _draw(root, [path for path in sorted((root / "notebooks").glob("*.ipynb")) if draw is None or path.stem in draw], say)
        for name, (_, found) in drawn.items():
            for number, why in found["left"].items():
                if why != frames.MEASURED:
                    say(f"{name}, cell {number + 1}: {why}, and stays one picture")
        source = Path(made) / "source"
        for path, content in _sources(root, notebooks, {name: found for name, (_, found) in drawn.items()}, repository).items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        say(f"{len(list(source.rglob('*.ipynb')))} notebooks and {len(list(source.rglob('*.md')))} other pages")
        warnings = _sphinx(source, Path(made) / "html", Path(made) / "doctrees", sorted(notebooks), repository)
        shutil.copytree(Path(made) / "html", web, dirs_exist_ok=True)  # myst-nb leaves a folder beside where Sphinx writes
        for name, (pictures, _) in drawn.items():
            shutil.copytree(pictures, web / "frames" / name, ignore=shutil.ignore_patterns("page.json"))
        for path, notebook in notebooks.items():
            (web / "downloads" / path).parent.mkdir(parents=True, exist_ok=True)
            (web / "downloads" / path).write_bytes(pages.as_text(pages.without_notes(notebook)))
        _mathjax(web / "_static" / "mathjax")
        for macros in (web / "_static").glob("*.html"):  # the theme's templates, which are no pages
            macros.unlink()
        saving.write({web / MADE: "".join(f"{name}\n" for name in _files(web)).encode()})
    return [line.replace(str(source), "") for line in warnings]


def _draw(root: Path, sources: list[Path], say: Callable[[str], None]) -> dict[str, tuple[Path, dict]]:
    """Each notebook's folder of pictures, and what qlab.site.frames says of them; those that are there already are taken as they are."""
    store = root / FRAMES
    places = {path: store / f"{path.stem}-{frames.key(path)}" for path in sources}
    missing = [path for path, place in places.items() if (found := frames.read(place)) is None or frames.fails(found)]
    for old in store.glob("*") if store.is_dir() else ():
        if old not in places.values() and old.name.rpartition("-")[0] in {path.stem for path in sources}:
            shutil.rmtree(old)
    if missing:
        say(f"drawing the live figures of {len(missing)} pages")
        workers = min(WORKERS, len(missing), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        vars(sys.modules["__main__"]).setdefault("__spec__", None)  # which a program that IPython or a test runner began has not
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=frames.alone) as pool:
            drawing = {pool.submit(frames.draw, path, places[path]): path.stem for path in missing}
            for count, one in enumerate(as_completed(drawing), 1):
                one.result()
                say(f"{drawing[one]} is drawn, {count} of {len(missing)}")
    return {path.stem: (place, frames.read(place)) for path, place in places.items()}


def _sources(root: Path, notebooks: dict, drawn: dict[str, dict], repository: str | None) -> dict[str, bytes]:
    """What Sphinx reads: path -> content."""
    texts = [path for path in TEXTS if (root / path).is_file()]
    docs = sorted(path for found in (root / "docs").rglob("*.md") if "/." not in (path := found.relative_to(root).as_posix()))
    docs.sort(key=lambda path: FIRST.index(path) if path in FIRST else len(FIRST))
    known = library.modules(root)
    leads = editions.leading(links.leading(root, {*notebooks, *texts, *docs}, known, repository))
    found = {}
    for path, notebook in notebooks.items():
        lesson = Path(path).parent.name == "notebooks"
        exercise = path.replace("notebooks/", "exercises/")
        up = "../" * path.count("/")
        foot = pages.foot(notebook, f"/{exercise}" if lesson and exercise in notebooks else None, f"{up}downloads/{path}",
                          theme.binder(repository, editions.english(path)), spoken := editions.code(path))
        found[path] = pages.as_text(pages.page(notebook, path, drawn.get(Path(path).stem) if lesson else None, leads, foot, spoken))
    heads = {path: teaching.first(notebook) for path, notebook in notebooks.items() if path.startswith("notebooks/")}
    readme = dict(zip(("top", "README.md"), entrance.split((root / "README.md").read_text(encoding="utf-8"))))
    for path in texts + docs:
        text = readme.get(path) or (root / path).read_text(encoding="utf-8")
        found[path] = links.rewritten(text, path, leads).encode()
    for package in library.PACKAGES:
        found[f"api/{package}.md"] = library.page(f"qlab.{package}", known).encode()
    top = links.rewritten(readme["top"], "README.md", leads)
    found["index.md"] = entrance.page(top, heads, _menu(list(notebooks), texts, docs)).encode()
    for picture in [path for folder in ("notebooks", "docs") for kind in ("png", "svg") for path in (root / folder).rglob(f"*.{kind}")]:
        found[picture.relative_to(root).as_posix()] = picture.read_bytes()
    return found


def _menu(notebooks: list[str], texts: list[str], docs: list[str]) -> dict[str, list[str]]:
    """The titles of the menu, each with its pages."""
    lessons = [path for path in notebooks if path.startswith("notebooks/")]
    menu = {title or "Before you begin": [path for path in lessons if entrance.part(Path(path).name) == title]
            for title in ("", *entrance.PARTS)}
    sets = [path for path in texts if path.startswith("exercises/")]
    menu["Exercises"] = sets[:1] + [path for path in notebooks if path.startswith("exercises/")] + sets[1:]
    menu["Teaching"] = docs
    menu["Library"] = [f"api/{package}.md" for package in library.PACKAGES]
    menu["About"] = [path for path in texts if path not in sets]
    menu |= {name: [path for path in notebooks if editions.language(path) == code] for code, name in editions.NAMES.items() if code != "en"}
    return {title: paths for title, paths in menu.items() if paths}


def _sphinx(source: Path, out: Path, doctrees: Path, notebooks: list[str], repository: str | None) -> list[str]:
    """Runs Sphinx, and returns its warnings."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    settings = {
        "project": "qlab", "author": "the qlab authors", "html_title": "qlab", "language": "en",
        "extensions": ["myst_nb", "qlab.site.theme"], "nb_execution_mode": "off", "nb_merge_streams": True,
        "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"], "myst_heading_anchors": 4,
        "myst_heading_slug_func": "qlab.site.links.anchor",
        "html_theme": "sphinx_book_theme", "html_static_path": [str(STATIC)],
        "html_css_files": ["qlab.css"], "html_js_files": ["qlab.js"], "mathjax_path": "mathjax/tex-chtml.js",
        "mathjax3_config": {"options": {"enableMenu": False}},  # it would ask for parts that are left out
        "html_copy_source": False, "html_show_sphinx": False, "html_show_copyright": False,
        "html_theme_options": {
            "navbar_start": [], "navbar_center": [], "navbar_end": [], "navbar_persistent": [], "use_download_button": False,
            "show_toc_level": 2, "show_navbar_depth": 1, "max_navbar_depth": 1, "home_page_in_toc": True,
            "logo": {"text": "qlab"}, "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
        } | ({"repository_url": repository, "use_repository_button": True} if repository else {}),
        "html_context": {"default_mode": "auto"}, "html_favicon": str(STATIC / "qlab.svg"),
        "qlab_notebooks": notebooks, "qlab_switch": editions.switch(notebooks), "qlab_repository": repository,
    }
    said = io.StringIO()
    with docutils_namespace(), contextlib.redirect_stderr(io.StringIO()):
        app = Sphinx(source, None, out, doctrees, "html", confoverrides=settings, status=None, warning=said, freshenv=True,
                     parallel=min(WORKERS, os.cpu_count() or 1))
        app.build()
    return [re.sub(r"\x1b\[[\d;]*m", "", line) for line in said.getvalue().splitlines() if line.strip()]


def _mathjax(folder: Path) -> None:
    """MathJax's part that makes HTML of TeX, with its fonts; a screen reader is given MathML."""
    shipped = Path(next(iter(importlib.util.find_spec(MATHJAX).submodule_search_locations))) / "static" / "mathjax"
    shutil.copytree(shipped / "output" / "chtml", folder / "output" / "chtml")
    shutil.copy(shipped / "tex-chtml.js", folder)
