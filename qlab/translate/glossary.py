"""One word for one thing: translations/zh/glossary.md, and whether a page keeps to it.

    | English | 中文 | |
    | :-- | :-- | :-- |
    | scale, scales | 缩放因子 | of a quantizer |

Where an English text has one of the forms on the left, as a word of its own, its translation must have one of those on the right.
"""

import re
from pathlib import Path

from qlab import saving
from qlab.translate import survives

ROW = re.compile(r"\|(.+?)\|(.+?)\|(.*)\|$")


def read(path: Path) -> list[tuple[list[str], list[str]]]:
    """[(English forms, forms in the other language), ...] of a glossary. Raises ValueError for a term that stands there twice."""
    rows = [match.groups() for line in saving.read(path).decode("utf-8").splitlines() if (match := ROW.match(line.strip()))]
    terms = [([one.strip() for one in english.split(",")], [one.strip() for one in other.split(",")]) for english, other, _ in rows[2:]]
    forms = [form for english, _ in terms for form in english]
    if twice := [form for form in forms if forms.count(form) > 1]:
        raise ValueError(f"{path} has two lines for {twice[0]}.")
    return terms


def strays(english: str, other: str, terms: list[tuple[list[str], list[str]]]) -> list[str]:
    """The terms that a text's translation does not use, one line each.

    >>> strays("Two scales, and `scale`", "两个尺度", [(["scale", "scales"], ["缩放因子"])])
    ['scales is 缩放因子 in the glossary']
    """
    told, prose, other = [], _prose(english), re.sub(r"\n *", "", other)
    for forms, others in terms:
        found = next((form for form in forms if re.search(rf"(?<![\w-]){re.escape(form)}(?![\w-])", prose, re.IGNORECASE)), None)
        if found and not any(one in other for one in others):
            told.append(f"{found} is {' or '.join(others)} in the glossary")
    return told


NO_PROSE = (survives.FENCE, survives.FORMULA, survives.CODE, survives.LINK,
            re.compile(r"(?<!\*)\*[^*]{25,}\*(?!\*)"), re.compile(r'"[^"]*"'),                    # titles of papers
            re.compile(r"\S*\w\.[a-z]\S*|\d\*\*\S*|\b[a-z_]\w*:"))                             # code and names in a docstring


def _prose(text: str) -> str:
    """A text without what is not translated."""
    for pattern in NO_PROSE:
        text = pattern.sub(" ", text)
    return " ".join(text.split())
