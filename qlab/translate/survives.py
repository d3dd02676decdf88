"""What of a text must come through its translation unharmed: formulas, code, links, tags and numbers.

A number may change its unit, as 175 billion does into 1750 亿. The words in a formula's \\text{...} are words. Of the links that lead to a
heading of the same page only the number is compared, for the heading's name is translated.
"""

import re
from collections import Counter

FENCE = re.compile(r"```.*?```", re.DOTALL)
FORMULA = re.compile(r"\$\$.*?\$\$|\$(?!\s)[^$\n]*(?:\n[^$\n]+)?\$", re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TAG = re.compile(r"</?([a-z]+)[^>]*>|&\w+;")
EXPRESSION = re.compile(r"(?<!\{)\{[^{}]+\}(?!\})")
NUMBER = re.compile(r"(?<![A-Za-z_\d.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?(billion|million|thousand|亿|万))?")
UNITS = {"billion": 10**9, "million": 10**6, "thousand": 10**3, "亿": 10**8, "万": 10**4}


def parts(text: str) -> dict[str, Counter]:
    """How often each formula, code span, link, tag and number stands in a text.

    >>> parts("$x$ is 2, see [page 3](a.ipynb)")["number"]
    Counter({2.0: 1, 3.0: 1})
    >>> parts("1750 亿") == parts("175 billion"), parts(r"$0 \\text{ else}$") == parts(r"$0 \\text{，否则}$")
    (True, True)
    """
    found = {}
    for kind, pattern in (("code", FENCE), ("formula", FORMULA), ("code", CODE), ("expression", EXPRESSION), ("link", LINK), ("tag", TAG)):
        hits = [" ".join(match[0].split()) for match in pattern.finditer(text)]
        if kind == "link":
            hits = ["](#...)" if hit.startswith("](#") else hit for hit in hits]
        if kind == "formula":
            hits = [re.sub(r"\\text\{[^{}]*\}", r"\\text{}", hit) for hit in hits]
        found[kind] = found.get(kind, Counter()) + Counter(hits)
        text = pattern.sub(" ", text)
    found["number"] = Counter(_value(match) for match in NUMBER.finditer(text))
    return found


def _value(match: re.Match) -> float:
    digits = re.match(r"[\d,.]+", match[0])[0]
    return round(float(digits.replace(",", "").rstrip(".")) * UNITS.get(match[1], 1), 9)


def lost(english: str, other: str) -> list[str]:
    """What a translation has lost, or has too much: one line for each kind, [] if everything is there.

    >>> lost("$s / 2$ is 0.15", "$s / 2$ 等于 0.51")
    ['number: 0.15 is missing, 0.51 is new']
    """
    told = []
    before, after = parts(english), parts(other)
    for kind in before:
        gone, new = before[kind] - after[kind], after[kind] - before[kind]
        said = [f"{_shown(one)} is missing" for one in gone] + [f"{_shown(one)} is new" for one in new]
        if said:
            told.append(f"{kind}: {', '.join(said)}")
    return told


def _shown(one) -> str:
    return f"{one:g}" if isinstance(one, float) else one
