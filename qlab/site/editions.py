"""The course's pages in other languages, those that are translated: the same tree of pages under the language's two letters."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from nbformat import NotebookNode

from qlab.translate import LANGUAGES, translated

NAMES = {"en": "English", "zh": "中文"}


def pages(root: Path, notebooks: Collection[str]) -> dict[str, NotebookNode]:
    """The translated notebooks: zh/notebooks/02_... and so on."""
    found = {f"{language}/{path}": translated(root / path, language) for language in sorted(LANGUAGES) for path in notebooks}
    return {path: notebook for path, notebook in found.items() if notebook}


def language(path: str) -> str:
    """A page's language.

    >>> language("zh/notebooks/02"), language("notebooks/02")
    ('zh', 'en')
    """
    first = path.partition("/")[0]
    return first if first in LANGUAGES else "en"


def code(path: str) -> str:
    """A page's language as qlab.translate has it: "" for English.

    >>> code("zh/notebooks/02"), code("notebooks/02")
    ('zh', '')
    """
    return language(path).replace("en", "")


def english(path: str) -> str:
    """The path of the English page.

    >>> english("zh/notebooks/02.ipynb"), english("README.md")
    ('notebooks/02.ipynb', 'README.md')
    """
    return path if language(path) == "en" else path.partition("/")[2]


def switch(notebooks: Collection[str]) -> Mapping[str, dict[str, str]]:
    """For each page that is there in several languages its others, without their endings.

    >>> switch(["notebooks/02.ipynb", "zh/notebooks/02.ipynb", "notebooks/12.ipynb"])
    {'notebooks/02': {'zh': 'zh/notebooks/02'}, 'zh/notebooks/02': {'en': 'notebooks/02'}}
    """
    names = [path.removesuffix(".ipynb") for path in notebooks]
    return {name: others for name in names
            if (others := {language(other): other for other in names if english(other) == english(name) and other != name})}


def leading(leads: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Links of a translated page: to a page in its language where there is one, else as on the English page."""
    return lambda path: leads(path) or leads(english(path))
