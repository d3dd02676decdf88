"""The blocks of a Markdown text (headings, paragraphs, formulas, list items, tables, code), and the height of each on a slide.

A height is an estimate, on the large side: how wide a letter is depends on the machine. A browser measures in tests/test_lecture_pages.py.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qlab.lecture import INNER

LINE, GAP, LETTER = 20.5, 8, 8.1        # a line of prose, the space below a paragraph, the mean width of a letter
ROW, CELL = 19, 8                       # a line in a table, and what is around it
CODE_LINE, CODE_BOX = 17, 14            # a line of code or of what it prints, the box around it
LONGEST = 420                           # letters of a paragraph: what is longer is cut between sentences
TALL = re.compile(r"\\(frac|sum|int|prod|underbrace|binom|sqrt)\b")
_HEADING = re.compile(r"(#{1,6}) +(.*)")
_ITEM = re.compile(r"([-*]|\d+\.) +")
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_WHOLE = re.compile(r"\$[^$]+\$|`[^`]+`|\*\*.+?\*\*|(?<!\*)\*[^*]+\*(?!\*)|\[[^\]]*\]\([^)]*\)|\([^()]*\)", re.DOTALL)  # never cut


@dataclass(frozen=True)
class Block:
    """One block: kind is heading, text, math, item, table or code (between fences); source its Markdown; level that of a heading."""

    kind: str
    source: str
    level: int = 0

    @property
    def height(self) -> float:
        """Pixels, the space below included."""
        if self.kind == "heading":
            return 0
        if self.kind == "math":
            return _formula(self.source) + GAP
        if self.kind == "table":
            return sum(rows(self.source)) + GAP
        if self.kind == "code":
            return CODE_LINE * max(1, len(self.source.splitlines()) - 2) + CODE_BOX + GAP
        width = INNER - (30 if self.kind == "item" else 0)
        extra = 7 if any(TALL.search(part) for part in re.findall(r"\$[^$]+\$", self.source)) else 0
        return math.ceil(len(seen(self.source)) * LETTER / width * 1.03) * (LINE + extra) + (GAP if self.kind == "text" else GAP / 2)


def split(source: str) -> list[Block]:
    """The blocks of a Markdown text, in order. A paragraph of more than LONGEST letters is cut between two of its sentences.

    >>> [(block.kind, block.source) for block in split("## Zero\\nOne line.\\n\\n$$x$$\\n\\n- a\\n  b\\n- c")]
    [('heading', 'Zero'), ('text', 'One line.'), ('math', '$$x$$'), ('item', '- a\\n  b'), ('item', '- c')]
    """
    return list(_blocks(source))


def _blocks(source: str) -> Iterator[Block]:
    for chunk in _chunks(source):
        if chunk.startswith(("```", "~~~")):
            yield Block("code", chunk)
        elif match := _HEADING.fullmatch(chunk):
            yield Block("heading", match[2].strip(), len(match[1]))
        elif chunk.startswith("$$"):
            yield Block("math", chunk)
        elif chunk.startswith("|"):
            yield Block("table", chunk)
        elif _ITEM.match(chunk):
            yield Block("item", chunk)
        else:
            yield from (Block("text", part) for part in sentences(chunk))


def _chunks(source: str) -> Iterator[str]:
    """Lines that belong together: a heading or a list item begins a chunk, an empty line ends one, outside of a formula and of code."""
    held: list[str] = []
    fence = ""                                                              # of the code that has begun
    for line in source.splitlines():
        first = held[0] if held else ""
        if fence or first.startswith("$$") and "\n".join(held).count("$$") % 2:     # inside of these nothing begins or ends
            held.append(line)
            closes = _FENCE.fullmatch(line.rstrip()) if fence else None
            fence = "" if closes and closes[1].startswith(fence) else fence
            continue
        item = re.match(r"[-*] |1\. ", line) or _ITEM.match(line) and (not held or _ITEM.match(first))  # "2018. " is no item of a list
        begins = (_HEADING.fullmatch(line) or item or line.startswith(("$$", "```", "~~~"))
                  or line.startswith("|") != first.startswith("|"))
        if held and (not line.strip() or begins or _HEADING.fullmatch(first) or first.startswith(("$$", "```", "~~~"))):
            yield "\n".join(held)
            held = []
        if line.strip():
            held.append(line)
            fence = found[1] if (found := _FENCE.match(line)) else ""
    if held:
        yield "\n".join(held)


def sentences(text: str, longest: int = LONGEST) -> list[str]:
    """A paragraph cut between sentences into nearly equal parts of about longest letters at most; never inside a formula, code or brackets.

    >>> sentences("One. Two (e.g. three. Four). Five.", longest=12)
    ['One.', 'Two (e.g. three. Four).', 'Five.']
    """
    count = math.ceil(len(seen(text)) / longest)
    if count < 2:
        return [text]
    masked = text
    while (hidden := _WHOLE.sub(lambda found: "x" * len(found[0]), masked)) != masked:
        masked = hidden
    ends = [match.end() for match in re.finditer(r"(?<!e\.g)(?<!i\.e)(?<!al)(?<! vs)[.?!]\s+(?=[A-Zx$`*])", masked)]
    parts, start, goal = [], 0, len(text) / count
    for end, following in zip(ends, [*ends[1:], len(text)]):
        if following - start > 1.15 * goal:
            parts.append(text[start:end].strip())
            start = end
    return [*parts, text[start:].strip()]


def seen(source: str) -> str:
    """About what a reader sees of a line of Markdown: no marks, no address of a link, one letter for a command of LaTeX.

    >>> seen("**A** [page](a.ipynb), $\\\\frac{a}{b}$")
    'A page, xab'
    """
    source = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", source)
    source = re.sub(r"\$([^$]+)\$", lambda found: re.sub(r"[{}^_ ]", "", re.sub(r"\\[a-zA-Z]+|\\.", "x", found[1])), source)
    return re.sub(r"\*\*|`|(?<!\w)[*_]|[*_](?!\w)|<[^>]+>", "", " ".join(source.split()))


def _formula(source: str) -> float:
    """A displayed formula: its lines, and what is tall in them."""
    inner = re.findall(r"\\begin\{(\w+)\}(.*?)\\end", source, re.DOTALL)
    if inner:
        return max((30 if name == "aligned" else 24) * (1 + body.count(r"\\")) for name, body in inner) + 24
    return 54 + 14 * ("underbrace" in source) if TALL.search(source) else 34


def _cells(line: str) -> list[str]:
    inside = re.sub(r"\$[^$]*\$|`[^`]*`", lambda found: found[0].replace("|", "\0"), line.strip().strip("|"))
    return [cell.replace("\0", "|").strip() for cell in re.split(r"(?<!\\)\|", inside)]


def rows(source: str, width: float = INNER) -> list[float]:
    """The height of each row of a table of this width, the ruler between head and body left out.

    >>> rows("| a | b |\\n| - | - |\\n| 1 | two |")
    [27, 27]
    """
    table = [[seen(cell) for cell in _cells(line)] for line in source.splitlines() if not re.fullmatch(r"[|:\s-]+", line)]
    widths = [max(len(row[k]) if k < len(row) else 0 for row in table) for k in range(max(map(len, table)))]
    room = width / 7.6 - 2.4 * len(widths)
    free, narrow = room, set()
    for k in sorted(range(len(widths)), key=widths.__getitem__):  # narrow columns have what they need, wide ones share the rest
        share = free / (len(widths) - len(narrow))
        if widths[k] <= share:
            narrow.add(k)
            free -= widths[k]
    rest = [k for k in range(len(widths)) if k not in narrow]
    total = sum(widths[k] for k in rest) or 1
    given = [widths[k] if k in narrow else max(8, free * widths[k] / total) for k in range(len(widths))]
    lines = [max(math.ceil(len(cell) * 1.1 / given[k]) if len(cell) > given[k] else 1 for k, cell in enumerate(row)) for row in table]
    return [ROW * count + CELL + (6 if re.search(r"\\(frac|sum)", line) else 0) for count, line in zip(lines, source.splitlines())]


def cut_table(source: str, room: float) -> list[str]:
    """A table as several tables that each fit into room, with the head repeated.

    >>> cut_table("| a |\\n| - |\\n| 1 |\\n| 2 |", 70)
    ['| a |\\n| - |\\n| 1 |', '| a |\\n| - |\\n| 2 |']
    """
    head, ruler, *body = source.splitlines()
    first, *heights = rows(source)
    total = sum(heights)
    count = math.ceil(total / max(1, room - first - GAP))
    parts, held, height = [], [], 0.0
    for line, one in zip(body, heights):
        if held and (height + one > room - first - GAP or height + one / 2 > total / count):
            parts.append(held)
            held, height = [], 0.0
        held.append(line)
        height += one
    return ["\n".join([head, ruler, *part]) for part in [*parts, held]]
