"""Every relative link of the course leads somewhere: in its Markdown files, and in the Markdown cells of its notebooks."""

import json
from pathlib import Path

import pytest

from qlab.grading import links

ROOT = Path(__file__).resolve().parents[1]


def notebook(*sources):
    return json.dumps({"cells": [{"cell_type": "markdown", "source": source} for source in sources]}).encode()


def test_every_link_of_the_repository_leads_somewhere():
    made = {"site", "zh", "lectures", "build", "bundles", "results"}  # by commands; git ignores them
    paths = [path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] not in made
             and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    contents = {path.relative_to(ROOT).as_posix(): path.read_bytes() if path.suffix in (".md", ".ipynb") else b"" for path in paths}
    assert links.broken(contents) == []
    assert {"notebooks/pareto.png", "#grading", "CONTRIBUTING.md"} <= set(links.targets("README.md", contents["README.md"]))
    assert "#The-course" in links.targets("a.ipynb", contents["notebooks/00_welcome.ipynb"])


@pytest.mark.parametrize("text", [
    "[a](here.md)", "![a](here.md)", '[a](here.md "a title")', "[a]: here.md", '<a href="here.md">', '<img src="here.md" width="9">',
    "[![a](here.md)](here.md)", "[two\nlines](here.md)", "[a](<here.md>)", "[a](he%72e.md)", "[a](../docs/here.md)", "[a](here.md#My-part)",
])
def test_every_form_of_a_link_is_found(text):
    """Each leads to docs/here.md, and nowhere when that is not there."""
    name = "docs/read.ipynb" if "My-part" in text else "docs/read.md"
    read = notebook(text) if name.endswith("ipynb") else text.encode()
    here = {"docs/here.md": b'<a id="My-part"></a>'}
    assert links.broken({name: read} | here) == []
    problems = links.broken({name: read})
    assert problems and all(problem.endswith("which is not there.") for problem in problems)


def test_sections_are_headings_of_the_file_that_is_meant():
    readme = b"[1](#a-b-c) [2](#A-b-c) [3](x.ipynb#A-b) [4](x.ipynb#a-b) [5](x.ipynb#no)\n# A `b`, c\n"
    assert links.broken({"README.md": readme, "x.ipynb": notebook("# A b", "text\n```\n# no\n```")}) == [
        f"README.md links to {target}, which has no such heading." for target in ("#A-b-c", "x.ipynb#a-b", "x.ipynb#no")]


def test_equal_headings_are_numbered():
    assert links.anchors("a.md", b"# Same\n## Same\n### Same\n") == {"same", "same-1", "same-2"}


def test_code_and_other_places_are_not_looked_at():
    text = b"`[a](b.md)` ``[a`](b.md)``\n```\n[a](b.md)\n```\n[a](https://example.org/b.md) [a](mailto:b@example.org) [a](//b.md)"
    assert links.targets("a.md", text) == [] == links.targets("a.py", b"[a](b.md)")


def test_a_folder_is_a_place_and_what_lies_above_the_course_is_none():
    assert links.broken({"docs/a.md": b"[up](..) [here](.) [there](../more/)", "more/b.md": b""}) == []
    assert links.broken({"docs/a.md": b"[far](../../b.md)"}) == ["docs/a.md links to ../../b.md, which is not there."]


def test_links_into_a_folder_that_is_left_out_become_words():
    text = b"[a\nb](../solutions/x.md#y) [c](solutions.md) ![d](../solutions/e.png) [f](https://x.org/solutions/)"
    assert links.without("docs/read.md", text, {"solutions"}) == text.replace(b"[a\nb](../solutions/x.md#y)", b"a\nb")
