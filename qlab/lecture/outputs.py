"""What a class sees of a code cell's outputs, and how high they are on a slide."""

import base64
import io
import math
import re
from collections.abc import Sequence

from nbformat import NotebookNode
from PIL import Image

from qlab.lab.hidden import CHECK, LIVE, PREDICT
from qlab.lecture import INNER, blocks
from qlab.lecture.blocks import CODE_BOX, CODE_LINE

LETTER = 7.85                       # a letter of code or of what it prints
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}  # the best first


def kind(outputs: Sequence[NotebookNode]) -> str:
    """live (a live figure), question, picture, output (anything else), or none.

    >>> from nbformat.v4 import new_output
    >>> kind([new_output("stream", text="1")]), kind([new_output("display_data", {"text/plain": "Predict. Which?"})]), kind([])
    ('output', 'question', 'none')
    """
    plain = [_text(output.get("data", {}).get("text/plain", "")) for output in outputs]
    if any(text.startswith(LIVE) for text in plain):
        return "live"
    if any(text.startswith((PREDICT, CHECK)) for text in plain):
        return "question"
    if any(map(picture, outputs)):
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
        if found := picture(output):
            total += _picture(*found) if pictures else 0
        elif "text/markdown" in data or "text/html" in data:
            total += sum(block.height for block in _blocks(data))
        else:
            lines = text(output).splitlines()
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


def picture(output: NotebookNode) -> tuple[str, bytes] | None:
    """The picture of an output: the end of its file's name, and its content; None where it has none.

    >>> from nbformat.v4 import new_output
    >>> picture(new_output("display_data", {"image/svg+xml": "<svg/>", "text/plain": "<SVG>"}))
    ('svg', b'<svg/>')
    """
    data = output.get("data", {})
    kind = next((kind for kind in PICTURES if kind in data), None)
    if kind is None:
        return None
    content = _text(data[kind])
    return PICTURES[kind], content.encode() if PICTURES[kind] == "svg" else base64.b64decode(content)


def text(output: NotebookNode) -> str:
    """What an output says in letters: what was printed, an error with its traceback, or a value's plain text.

    >>> from nbformat.v4 import new_output
    >>> text(new_output("error", ename="ValueError", evalue="no", traceback=["\\x1b[31mValueError\\x1b[0m: no"]))
    'ValueError: no'
    """
    if output.output_type == "error":
        told = "\n".join(output.traceback) or f"{output.ename}: {output.evalue}"
        return re.sub(r"\x1b\[[\d;]*m", "", told).rstrip()
    return _text(output.get("text", output.get("data", {}).get("text/plain", ""))).rstrip()


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


def _picture(kind: str, content: bytes) -> float:
    """Its height where it is as wide as the text; that of a drawing (SVG) by its viewBox, or its own width and height."""
    width, height = 4.0, 3.0
    if kind != "svg":
        width, height = Image.open(io.BytesIO(content)).size
    elif found := (re.search(rb"viewBox=[\"'][-\d.e]+[ ,]+[-\d.e]+[ ,]+([\d.]+)[ ,]+([\d.]+)", content)
                   or re.search(rb"<svg[^>]*?\bwidth=[\"']([\d.]+)[^>]*?\bheight=[\"']([\d.]+)", content)):
        width, height = map(float, found.groups())
    return INNER * height / (width or 1)
