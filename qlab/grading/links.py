"""Links between the files of a course: does each relative one lead to a file that is there, and its #section to a heading of that file?

    [text](../notebooks/02.ipynb#The-formula)   ![picture](pareto.png)   [text]: path   <a href="path">   <img src="path">

in Markdown files and in the Markdown cells of notebooks, outside of code. What leads out of the course (https:, mailto:) is not looked at.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

CODE = re.compile(r"^(```+|~~~+).*?^\1[`~]*[ \t]*$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\(\s*(<[^>\n]*>|[^)\s]+)[^)]*\)'      # [text](path "title"), ![text](path)
                  r'|^ {0,3}\[[^\]\n]+\]:\s*(\S+)'             # [text]: path
                  r'|(?:href|src)="([^"]+)"', re.MULTILINE)


def broken(contents: dict[str, bytes]) -> list[str]:
    """One sentence for each relative link that leads nowhere; contents: every file's path, with slashes, and what it holds.

    >>> broken({"README.md": b"[how](docs/how.md#units), [why](why.md), [top](#qlab)\\n# qlab", "docs/how.md": b"# Shapes"})
    ['README.md links to docs/how.md#units, which has no such heading.', 'README.md links to why.md, which is not there.']
    """
    there, problems = _places(contents), []
    for name, content in contents.items():
        for target in targets(name, content):
            path, section = _resolved(name, target)
            if path not in there:
                problems.append(f"{name} links to {target}, which is not there.")
            elif section and section not in anchors(path, contents.get(path, b"")):
                problems.append(f"{name} links to {target}, which has no such heading.")
    return problems


def without(name: str, content: bytes, folders: set[str]) -> bytes:
    """A Markdown file in which a link into one of these folders of the course is its words only.

    >>> without("README.md", b"[written once](solutions/README.md); [read](notebooks/02.ipynb)", {"solutions"})
    b'written once; [read](notebooks/02.ipynb)'
    """
    def words(found: re.Match) -> str:
        return found[1] if _resolved(name, found[2])[0].split("/")[0] in folders else found[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", words, content.decode()).encode()


def targets(name: str, content: bytes) -> list[str]:
    """The relative links of a Markdown file or a notebook, as they are written; [] for any other file."""
    found = []
    for text in _texts(name, content):
        for match in LINK.finditer(CODE.sub("", text)):
            target = next(filter(None, match.groups())).strip("<>")
            if not urlsplit(target).scheme and not target.startswith("//"):
                found.append(target)
    return found


def anchors(name: str, content: bytes) -> set[str]:
    """What may stand behind # in a link to this file: a notebook's headings as JupyterLab names them, a Markdown file's as code hosts do.

    >>> sorted(anchors("README.md", b"# The source, and how\\n## Grading\\n## Grading"))
    ['grading', 'grading-1', 'the-source-and-how']
    """
    seen, found = Counter(), set()
    for text in _texts(name, content):
        for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", CODE.sub(lambda code: code[0] if code[2] else "", text), re.MULTILINE):
            words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
            slug = words.replace(" ", "-") if name.endswith(".ipynb") else re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        found |= set(re.findall(r'\b(?:id|name)="([^"]+)"', text))
    return found


def _texts(name: str, content: bytes) -> list[str]:
    if name.endswith(".md"):
        return [content.decode()]
    if not name.endswith(".ipynb"):
        return []
    return ["".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown"]


def _resolved(name: str, target: str) -> tuple[str, str]:
    """The path from the course's folder, and the section."""
    path, _, section = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path))) if path else name, unquote(section)


def _places(names: Iterable[str]) -> set[str]:
    """The files, and the folders that they lie in."""
    return {".", *names, *(name[:k] for name in names for k, letter in enumerate(name) if letter == "/")}
