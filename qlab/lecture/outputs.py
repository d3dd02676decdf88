"""What a class sees of a code cell's outputs, and how high they are on a slide."""

import base64
import io
import math
import re
from collections.abc import Sequence

from nbformat import NotebookNode
from PIL import Image

from qlab.lecture import INNER, blocks

CODE_LINE, CODE_BOX, LETTER = 17, 14, 7.85          # a line of code or of what it prints, the box around it, a letter


def kind(outputs: Sequence[NotebookNode]) -> str:
    """live (a live figure), question, picture, output (anything else), or none.

    >>> from nbformat.v4 import new_output
    >>> kind([new_output("stream", text="1")]), kind([new_output("display_data", {"text/plain": "Predict. Which?"})]), kind([])
    ('output', 'question', 'none')
    """
    plain = [_text(output.get("data", {}).get("text/plain", "")) for output in outputs]
    if any(text.startswith("Live figure:") for text in plain):
        return "live"
    if any(text.startswith(("Predict.", "Check yourself.")) for text in plain):
        return "question"
    if any("image/png" in output.get("data", {}) for output in outputs):
        return "picture"
    return "output" if outputs else "none"


def height(outputs: Sequence[NotebookNode], pictures: bool = True) -> float:
    """Pixels of all outputs, one below the other, a picture being as wide as the text; without pictures, of the others.

    >>> from nbformat.v4 import new_output
    >>> height([new_output("stream", text="one\\ntwo\\n")]) == 2 * CODE_LINE + CODE_BOX
    True
    """
    total = 0.0
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            total += _picture(data["image/png"]) if pictures else 0
        elif "text/markdown" in data or "text/html" in data:
            total += sum(block.height for block in _blocks(data))
        else:
            lines = _text(output.get("text", data.get("text/plain", ""))).rstrip("\n").splitlines()
            total += CODE_LINE * sum(math.ceil(max(1, len(line)) * LETTER / (INNER - 16)) for line in lines) + CODE_BOX
    return total


def table(outputs: Sequence[NotebookNode]) -> str:
    """The table among the outputs as Markdown; "" where there is none, or more than one.

    >>> from nbformat.v4 import new_output
    >>> table([new_output("display_data", {"text/markdown": "Bits:\\n\\n| a |\\n| - |\\n| 1 |"})])
    '| a |\\n| - |\\n| 1 |'
    """
    found = [block.source for output in outputs if {"text/markdown", "text/html"} & set(output.get("data", {}))
             for block in _blocks(output.data) if block.kind == "table"]
    return found[0] if len(found) == 1 else ""


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _blocks(data: NotebookNode) -> list[blocks.Block]:
    return blocks.split(_text(data.get("text/markdown", "")) or _as_markdown(_text(data["text/html"])))


def _as_markdown(page: str) -> str:
    """The tables in a piece of HTML as Markdown, to count their lines; of what is folded, the line that is seen."""
    page = re.sub(r"<details.*?<summary>(.*?)</summary>.*?</details>", r"\1<br>", page, flags=re.DOTALL)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)]
    lines = ["| " + " | ".join(re.sub(r"<[^>]+>", "", cell).strip() for cell in row) + " |" for row in rows]
    told = re.findall(r"<caption>(.*?)</caption>", page) + re.findall(r"(?:^|<br>)([^<]+)(?=<br>)", page)
    return "\n\n".join([*told, "\n".join(lines)])


def _picture(png: str) -> float:
    width, height = Image.open(io.BytesIO(base64.b64decode(png))).size
    return INNER * height / width
