"""The still of a question in another language, made from the English one: nothing is run.

A page stores of `predict` and `quiz` what a reader without a kernel sees: the question and its options, as HTML and as plain text. Their
words are those of the cell, so the translated cell's words take their places; what an f-string's {expression} gave is found in the English
still. The plain text goes on beginning with "Predict." or "Check yourself.", by which a saved page's widgets are known
(qlab.lab.jupyter.saving).
"""

import functools
import html
import re
from collections.abc import Mapping

from qlab.lab.hidden import CHECK, PREDICT
from qlab.lab.questions import plain
from qlab.translate import into
from qlab.translate.survives import EXPRESSION, TAG

BEGINNINGS = (PREDICT, CHECK)


def translate(output, known: Mapping[str, str], asked: str) -> None:
    """Puts the translated words into the still of a question, in place; other outputs stay as they are.

    known: English -> translation, of the words of the cell.

    >>> still = "<p><b>Predict.</b> Round 3.5. <em>Choose before you read on.</em></p>"
    >>> output = {"data": {"text/plain": "Predict. Round 3.5.", "text/html": still}}
    >>> translate(output, {"Round {x:g}.": "把 {x:g} 舍入。"}, "zh")
    >>> output["data"]["text/plain"]
    'Predict. 把 3.5 舍入。'
    """
    data = output.get("data") or {}
    said = data.get("text/plain", "")
    if not said.startswith(BEGINNINGS) or "text/html" not in data:
        return
    beginning = next(one for one in BEGINNINGS if said.startswith(one))
    pairs = sorted(known.items(), key=lambda pair: -len(pair[0]))
    inside = [(plain(one), plain(other)) for one, other in pairs]
    data["text/plain"] = beginning + _put(said.removeprefix(beginning), inside)
    own = [(one, into(asked, one)) for one in STILL]
    escaped = [(html.escape(one), html.escape(other)) for one, other in pairs]
    data["text/html"] = _put(data["text/html"], [*pairs, *escaped, *own], tags=TAG.pattern)


STILL = (f"<b>{PREDICT}</b>", f"<b>{CHECK}</b>", "Choose before you read on.", "A number from {low:g} to {high:g}.")


def _put(text: str, pairs: list[tuple[str, str]], tags: str = r"(?!)") -> str:
    """The text with each first word of the pairs as its second; what the pattern tags finds is no word, and passed over."""
    for one, other in pairs:
        names = EXPRESSION.findall(one)
        pattern = r"([^<>\s]+)".join(re.escape(part) for part in EXPRESSION.split(one))
        said = functools.partial(_filled, other, names)
        text = re.sub(rf"((?<![A-Za-z\d]){pattern}(?![A-Za-z\d]))|{tags}", said, text)
    return text


def _filled(other: str, names: list[str], match: re.Match) -> str:
    if match[1] is None:
        return match[0]
    for name, value in zip(names, match.groups()[1:]):
        other = other.replace(name, value)
    return other
