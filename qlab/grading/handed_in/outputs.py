"""What a cell was saved with below it, as text: what its student saw, or wrote there. Shown to a teacher, and trusted by nobody.

Source: the notebook format, nbformat 4.5: output_type stream with text, execute_result and display_data with data by MIME type, error
with ename and evalue.
"""

import re

LONGEST = 2_000  # characters; of a longer one the beginning is kept
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def text_of(cell: dict) -> str:
    """The text of a cell's outputs, "" where there is none; whatever is no output is passed over.

    >>> text_of({"outputs": [{"output_type": "stream", "text": ["1, ", "2, "]}, {"output_type": "error", "ename": "E", "evalue": "no"}]})
    '1, 2, E: no'
    """
    text = ""
    for output in cell["outputs"] if isinstance(cell.get("outputs"), list) else []:
        if len(text) <= LONGEST and isinstance(output, dict):
            text += COLOURS.sub("", _text(output))
    return text if len(text) <= LONGEST else text[:LONGEST] + "\n..."


def _text(output: dict) -> str:
    if output.get("output_type") == "error":
        return f"{_joined(output.get('ename'))}: {_joined(output.get('evalue'))}"
    data = output.get("data")
    if not isinstance(data, dict):
        return _joined(output.get("text"))
    shown = _joined(data.get("text/plain"))
    pictures = [kind for kind in ("image/png", "image/svg+xml", "image/jpeg") if kind in data]
    return f"{shown}{f' [{pictures[0]}]' if pictures else ''}\n"


def _joined(text) -> str:
    lines = text if isinstance(text, list) else [text]
    return "".join(line[:LONGEST] for line in lines[:LONGEST] if isinstance(line, str))[: LONGEST + 1]
