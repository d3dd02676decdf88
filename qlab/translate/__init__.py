"""The course in another language: its pages, and the words that the library says to a reader.

    QLAB_LANG=zh ...                    what check(), the widgets and the commands say, in Chinese
    qlab lab --lang zh                  the Chinese pages, with that
    qlab translate --check              how much is done, and what is stale
    translated(path, "zh")              a notebook with its text in Chinese; its code and its outputs are the English page's

English is the only source: code marks its words by `tr`, and a page is translated cell by cell (module pages).

    words          LANGUAGE.po beside this file: what `tr` says instead
    pages          translations/LANGUAGE/ in the course's folder: NAME.txt for each page, code.po for the words inside of code, glossary.md

This module imports the standard library only: without QLAB_LANG `tr` costs one look at the environment.
"""

import functools
import os
import unicodedata
from pathlib import Path

FOLDER = Path(__file__).parent
LANGUAGES = {path.stem for path in FOLDER.glob("*.po")}


def language() -> str:
    """The language that QLAB_LANG asks for, by its two letters; "" for English, and for one that the course does not have.

    >>> os.environ["QLAB_LANG"] = "zh_CN.UTF-8"
    >>> language()
    'zh'
    >>> del os.environ["QLAB_LANG"]
    >>> language()
    ''
    """
    asked = os.environ.get("QLAB_LANG", "")[:2].lower()
    return asked if asked in LANGUAGES else ""


def tr(text: str, /, **values) -> str:
    """The text in the reader's language, or as it is, with the values put into its braces, as str.format does.

    text: a literal, for `qlab translate --check` finds it in the source. Values are not translated.

    >>> tr("{n:g} of {total:g} points", n=3, total=7.5)
    '3 of 7.5 points'
    """
    return into(language() if "QLAB_LANG" in os.environ else "", text, **values)


def into(asked: str, text: str, /, **values) -> str:
    """As tr, in the language that is asked for; "" is English.

    >>> into("zh", "not answered yet")
    '还没有作答'
    """
    said = words(asked).get(text) or text if asked else text
    return said.format(**values) if values else said


def columns(text: str) -> int:
    """How wide a text is on a terminal: a Chinese letter takes two columns.

    >>> columns("8 位")
    4
    """
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


@functools.cache
def words(asked: str) -> dict[str, str]:
    """English -> the other language, of the library's words.

    >>> words("zh")["not answered yet"]
    '还没有作答'
    """
    from qlab.translate import po

    return po.read(FOLDER / f"{asked}.po")


def known(asked: str) -> str:
    """The two letters of a language that the course has, "" for English. Raises ValueError for any other.

    >>> known("zh"), known("en")
    ('zh', '')
    """
    if asked not in LANGUAGES | {"en", ""}:
        others = ", ".join(sorted(LANGUAGES))
        raise ValueError(tr("there is no language {asked}: choose among en and {others}.", asked=asked, others=others))
    return "" if asked == "en" else asked


def translated(path: str | Path, asked: str):
    """A page of the course in another language: an nbformat notebook, or None where nobody has begun to translate it.

    path: NAME.ipynb in a folder notebooks/ or exercises/, beside which translations/ lies. Cells whose translation is missing or stale are
    in English. Raises ValueError for a language that the course does not have.

    >>> from qlab.folders import clone
    >>> notebook = translated(clone() / "notebooks" / "02_linear_quantization.ipynb", "zh")
    >>> notebook.cells[0].source.splitlines()[0]
    '# 02 · 线性量化'
    >>> translated(clone() / "notebooks" / "12_int8_matmul.ipynb", "zh") is None
    True
    """
    from qlab.translate import pages

    return pages.translated(Path(path), known(asked))
