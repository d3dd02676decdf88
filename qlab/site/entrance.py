"""The site's first page, from the README's head and the heads of the notebooks."""

import re
from collections.abc import Mapping

from qlab.lab.teaching import First

PARTS = {"Numbers": 0, "Networks": 6, "Hardware": 12, "Frontier": 15}  # each part's first page


def part(name: str) -> str:
    """The part of the course that a notebook belongs to, by its number; "" for one without.

    >>> part("13_rooflines_and_hardware.ipynb"), part("prerequisites.ipynb")
    ('Hardware', '')
    """
    number = re.match(r"\d+", name)
    return max((first, title) for title, first in PARTS.items() if first <= int(number[0]))[1] if number else ""


def split(readme: str) -> tuple[str, str]:
    """The README's head, up to its first section, and the rest under a title of its own.

    >>> split("# qlab\\nA course.\\n## Install\\nmake lab")
    ('# qlab\\nA course.', '# Install and use\\n\\n## Install\\nmake lab')
    """
    top, rest = readme.split("\n## ", 1)
    return top, "# Install and use\n\n## " + rest


def page(top: str, heads: Mapping[str, First], trees: Mapping[str, list[str]]) -> str:
    """Markdown of the first page. heads: the notebooks' paths and heads; trees: titles of the menu, each with its pages."""
    first = next(iter(path for path in heads if part(path.rpartition("/")[2])))
    links = [f"[Start with the first page](/{first})"]
    links += [f"[{words}](/{path})" for path, words in {"docs/teaching.md": "teach with it", "README.md": "install it"}.items()
              if path in sum(trees.values(), [])]
    lines = [top, f"{', '.join(links[:-1])}{' or ' if len(links) > 1 else ''}{links[-1]}."]
    for title in ["", *PARTS]:
        here = {path: head for path, head in heads.items() if part(path.rpartition("/")[2]) == title}
        lines += [f"## {title or 'Before you begin'}" if here else ""]
        lines += ["\n".join(f"- [{head.title}](/{path}): {head.objective}" for path, head in here.items())]
    for title, paths in trees.items():
        lines.append(":::{toctree}\n:hidden:\n:caption: " + title + "\n" + "\n".join(f"/{path}" for path in paths) + "\n:::")
    return "\n\n".join(filter(None, lines)) + "\n"
