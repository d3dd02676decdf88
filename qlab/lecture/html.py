"""The slides as one folder of web pages that needs no network: reveal.js, MathJax, the stored outputs, a still for a live figure.

    index.html      all slides; S opens the speaker's window, B or a full stop blackens the screen, L is a pointer, F fills the screen
    pictures/       the figures
    assets/         reveal.js (MIT) and MathJax (Apache-2.0), copied from the packages of the extra lecture, with the two files of page/
"""

import html
import importlib.util
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from nbformat import NotebookNode

from qlab import saving
from qlab.errors import not_installed
from qlab.lab.hidden import CHECK
from qlab.lecture import blocks, outputs, slides
from qlab.lecture.slides import Piece, Slide

PAGE = Path(__file__).parent / "page"
MARKER = '<meta name="generator" content="qlab lecture">'       # what is in a folder that may be replaced
PICTURE = re.compile(rf"pictures/\d+-\d+-\d+\.({'|'.join(outputs.PICTURES.values())})")
CODE, FORMULA = r"^ *(`{3,}|~{3,}).*?(?:^ *\1|\Z)|(`+)(?!`).+?(?<!`)\2(?!`)", r"\$\$.+?\$\$|\$(?!\s)[^$]+?(?<!\s)\$"
LEFT = re.compile(f"{CODE}|{FORMULA}", re.DOTALL | re.MULTILINE)  # where brackets are no link
ASSETS = {"sphinx_revealjs": {f"_static/revealjs/{name}": name.rpartition("/")[2] for name in (
              "dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE")},
          "sphinx-mathjax-offline": {"static/mathjax/tex-svg.js": "tex-svg.js"}}
DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
{marker}
<title>{title}</title>
<link rel="stylesheet" href="assets/reveal.css">
<link rel="stylesheet" href="assets/slides.css">
<style>{highlight}</style>
</head>
<body>
<div class="reveal"><div class="slides">
{sections}
</div></div>
<script src="assets/slides.js"></script>
<script src="assets/tex-svg.js"></script>
<script src="assets/reveal.js"></script>
<script src="assets/notes.js"></script>
<script>lecture.start()</script>
</body>
</html>
"""


def export(notebook: NotebookNode, folder: str | Path, short: bool = False) -> int:
    """Writes the slides of a notebook into folder, and returns how many there are. An earlier export there is replaced, all at once.

    Raises OSError, in one sentence, where the folder holds something else or cannot be written, and where a package is missing.
    """
    folder = Path(folder)
    sources = _assets()
    if folder.exists() and not _is_ours(folder, sources):
        raise FileExistsError(f"{folder} holds something else: name a folder that does not exist yet, or an earlier export.")
    made = slides.make(notebook.cells, short)
    with saving.whole_folder(folder) as new:
        for name in ("pictures", "assets"):
            saving.make_folder(new / name)
        for name, source in sources.items():
            shutil.copyfile(source, new / "assets" / name)
        (new / "index.html").write_text(page(made, slides.notes(notebook.cells), new / "pictures"), encoding="utf-8")
    return len(made)


def _is_ours(folder: Path, sources: Mapping[str, Path]) -> bool:
    """Is it empty, or an earlier export with no file of anybody's in it?"""
    if not folder.is_dir():
        return False
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    mine = {"index.html", *(f"assets/{name}" for name in sources)}
    if any(name not in mine and not PICTURE.fullmatch(name) for name in files):
        return False
    return not files or (folder / "index.html").is_file() and MARKER in (folder / "index.html").read_text("utf-8", "replace")[:2000]


def _assets() -> dict[str, Path]:
    """The name of each file in assets/, and where it is copied from."""
    found = {path.name: path for path in PAGE.iterdir() if path.is_file()}
    for package, files in ASSETS.items():
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise FileNotFoundError(not_installed(package.replace("_", "-"), extra="lecture"))
        found |= {name: Path(spec.submodule_search_locations[0]) / file for file, name in files.items()}
    return found


def mathjax() -> str:
    """What sets the formulas of a page that is one file: Jupyter shows such a page in a sandbox, without the cookie for a further file."""
    settings = "{tex: {inlineMath: [['$', '$']]}, options: {enableMenu: false}}"
    return f"<script>window.MathJax = {settings}</script>\n<script>{_assets()['tex-svg.js'].read_text(encoding='utf-8')}</script>\n"


def page(made: list[Slide], notes: str, pictures: Path) -> str:
    """index.html; the figures are written into pictures."""
    from pygments.formatters import HtmlFormatter

    told = _told(made, notes)
    sections = "\n".join(_section(slide, number, pictures, told.get(number, "")) for number, slide in enumerate(made, 1))
    return DOCUMENT.format(marker=MARKER, title=html.escape(blocks.seen(made[0].title)) if made else "", sections=sections,
                           highlight=HtmlFormatter(style="default").get_style_defs(".source"))


def _told(made: list[Slide], notes: str) -> dict[int, str]:
    """Slide number -> notes: all of them with the first slide, and each paragraph or item again with the first slide that it names."""
    told = {1: notes} if notes else {}
    for block in blocks.split(notes):
        for number, slide in enumerate(made[1:], 2):
            first = made[number - 2].title != slide.title
            if first and len(slide.title) > 3 and slide.title in block.source and block.kind != "heading":
                told[number] = (told.get(number, "") + "\n\n" + block.source).strip()
    return told


def _section(slide: Slide, number: int, pictures: Path, notes: str) -> str:
    kind = "title" if slide.level == 1 else "section" if not slide.shown else "plain"
    heading = "h1" if slide.level == 1 else "h2"
    inside = "\n".join(_piece(piece, f"{number:02}-{k}", pictures) for k, piece in enumerate(slide.shown))
    aside = f'<aside class="notes">{prose(notes)}</aside>' if notes else ""
    return (f'<section><div class="stage {kind}"><{heading}>{inline(slide.title)}</{heading}>\n'
            f'{inside}</div>{aside}</section>')


def _piece(piece: Piece, name: str, pictures: Path) -> str:
    size = f"zoom: {piece.scale:.3f}; --height: {piece.picture or piece.height:.0f}px"
    step = f' class="piece {piece.kind}{" fragment" if piece.step else ""}" style="{size}"'
    if piece.kind == "text":
        return f"<div{step}>{prose(piece.source)}</div>"
    if piece.kind == "source":
        return f"<div{step}><pre>{_highlighted(piece.cell.source)}</pre></div>"
    inside = "\n".join(_shown(output, f"{name}-{k}", pictures) for k, output in enumerate(piece.cell.outputs))
    return f"<div{step}>{_some_rows(inside, piece.rows) if piece.rows else inside}</div>"


def _some_rows(table: str, rows: tuple[int, int]) -> str:
    """A table of which some rows of the body are shown."""
    number = iter(range(-1, table.count("<tr")))                                  # the first is the head

    def one(row: re.Match) -> str:
        k = next(number)
        return row[0] if k < 0 or rows[0] <= k < rows[1] else ""

    return re.sub(r"<tr.*?</tr>", one, table, flags=re.DOTALL)


def _shown(output: NotebookNode, name: str, pictures: Path) -> str:
    """One stored output, in the richest form that a page without a kernel can show."""
    data = output.get("data", {})
    if found := outputs.picture(output):
        (pictures / f"{name}.{found[0]}").write_bytes(found[1])
        alt = output.metadata.get("image/png", {}).get("alt") or data.get("text/plain", "")
        return f'<img src="pictures/{name}.{found[0]}" alt="{html.escape(alt)}">'
    if "text/html" in data:
        kind = ' class="quiz"' if data.get("text/plain", "").startswith(CHECK) else ""
        return f"<div{kind}>{data['text/html']}</div>"
    if "text/markdown" in data:
        return prose(data["text/markdown"])
    return f"<pre>{html.escape(outputs.text(output))}</pre>"


def prose(markdown: str) -> str:
    """Markdown with formulas as HTML; a link to another file of the course, which does not lie in the folder, is its text alone.

    >>> prose("See [page 03](03_log.ipynb), `f[i](x)`: $w[i](x)$")
    '<p>See page 03, <code>f[i](x)</code>: $w[i](x)$</p>'
    """
    from nbconvert.filters import markdown2html

    kept: list[str] = []

    def keep(found: re.Match) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    text = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", LEFT.sub(keep, markdown))
    return markdown2html(re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)).strip()


def inline(markdown: str) -> str:
    """One line of Markdown as HTML, without a paragraph around it.

    >>> inline("From `x` to *y*")
    'From <code>x</code> to <em>y</em>'
    """
    return prose(markdown).removeprefix("<p>").removesuffix("</p>")


def _highlighted(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()
