"""Where a link of the course leads on the site: to a page, to the library's documentation, to the repository, or nowhere."""

import posixpath
import re
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def anchor(heading: str) -> str:
    """The name of a heading, whether a link writes it as JupyterLab or as a code host does.

    >>> anchor("The course"), anchor("The-course"), anchor("the-course")
    ('the-course', 'the-course', 'the-course')
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def rewritten(markdown: str, page: str, leads: Callable[[str], str | None]) -> str:
    """The text of a page with its links as on the site; where a link leads nowhere, its words stay. Code is left alone.

    page: the page's path in the repository; leads: a path in the repository, with its anchor, to a path on the site, or None.

    >>> leads = {"notebooks/03_log.ipynb": "/notebooks/03_log.ipynb"}.get
    >>> rewritten("[03](03_log.ipynb), [file](../LICENSE), [here](#Play), [there](https://a.b)", "notebooks/02.ipynb", leads)
    '[03](/notebooks/03_log.ipynb), file, [here](#play), [there](https://a.b)'
    """
    def one(match: re.Match) -> str:
        words, href = match.groups()
        if re.match(r"[a-z]+:", href):
            return match[0]
        if href.startswith("#"):
            return f"[{words}](#{anchor(unquote(href[1:]))})"
        new = leads(posixpath.normpath(posixpath.join(posixpath.dirname(page), href)))
        return f"[{words}]({new})" if new else words

    return "".join(part if i % 2 else LINK.sub(one, part) for i, part in enumerate(CODE.split(markdown)))


def leading(root: Path, pages: Collection[str], modules: Collection[str], repository: str | None) -> Callable[[str], str | None]:
    """The function that `rewritten` asks, for a site of these pages and modules.

    root: the clone; repository: the address of its code host, such as https://github.com/owner/name.
    """
    def leads(path: str) -> str | None:
        path, _, at = path.partition("#")
        if path in pages:
            return f"/{path}#{anchor(unquote(at))}" if at else f"/{path}"
        if f"{path}/README.md" in pages:
            return f"/{path}/README.md"
        module = re.sub(r"(/__init__)?\.py$", "", path).replace("/", ".")
        if module in modules:
            package = module.split(".")[1]
            return f"/api/{package}.md" + (f"#{anchor(module)}" if module.count(".") > 1 else "")
        if repository and (root / path).exists():
            return f"{repository}/{'tree' if (root / path).is_dir() else 'blob'}/HEAD/{path}"
        return None

    return leads
