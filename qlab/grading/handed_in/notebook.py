"""A student's notebook, taken for what it is: text from a stranger. Only its code cells' sources and their grade ids are read.

A notebook is JSON: {"nbformat": 4, "metadata": {...}, "cells": [{"cell_type": "code", "source": ..., "metadata": {...}}, ...]}.
nbformat 4 with any minor version is read as it is, nbformat 3 is converted, others are refused by name. Text is UTF-8, or UTF-16 or UTF-32
as some editors save it; a byte-order mark is passed over; of a key that is there twice the last counts. All code cells are run in their
order, as a kernel would: of an answer given twice the last one counts, as it stands after its cell.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from qlab.grading.handed_in import definitions, outputs
from qlab.grading.handed_in.zips import shown, size_text

SOURCE_BYTES = 4 * 2**20
CELLS = 10_000
VALUES = 4_000_000  # numbers, texts, lists and objects: 20 MiB of empty lists would fill gigabytes
VERSION = re.compile(r"[0-9a-f]{12}")
DEFINED = re.compile(r"^(?:async +)?(?:def|class) +(\w+)", re.MULTILINE)


def cells_of(content: bytes) -> list[dict]:
    """The code cells of a notebook: {"source": str, "grade_id": str or None, "grade": bool}, grade being True for test cells.

    One with a grade id that was saved with an output has its text as "output" too, which the teacher's pages show.

    Raises ValueError whose text says what it is instead, in half a sentence that begins with "it".

    >>> cells_of(b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": ["x = 1\\\\n", "x"], "metadata": {}}]}')
    [{'source': 'x = 1\\nx', 'grade_id': None, 'grade': False}]
    """
    return read(content)[0]


def read(content: bytes) -> tuple[list[dict], str | None]:
    """The code cells, as `cells_of` returns them, and the version of the exercise set that the notebook says it was made from.

    The build stamps it into the notebook's metadata; some editors drop it. It is a student's word like all the rest, so it is shown to the
    teacher and decides nothing. What has not the form of a version, 12 hexadecimal digits, is None.

    >>> read(b'{"nbformat": 4, "cells": [], "metadata": {"qlab": {"version": "0123456789ab"}}}')
    ([], '0123456789ab')
    """
    notebook = _parsed(content)
    version = notebook.get("nbformat")
    if version == 3:
        notebook = _from_3(notebook)
    elif version != 4:
        raise ValueError(f"it is of nbformat {_number(version)}, and 3 and 4 can be read" if "nbformat" in notebook else
                         "it is JSON, but not a notebook: it has no nbformat")
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise ValueError("it is JSON, but not a notebook: it has no list of cells")
    _limit(cells)
    if language := _other_language(notebook.get("metadata")):
        raise ValueError(f"it is written for {language}, and Python was asked for")
    found = [_cell(cell, k) for k, cell in enumerate(cells) if not isinstance(cell, dict) or cell.get("cell_type") == "code"]
    size = sum(len(cell["source"]) for cell in found)
    if size > SOURCE_BYTES:
        raise ValueError(f"its code has {size_text(size)}, and {size_text(SOURCE_BYTES)} are allowed")
    return found, _version(notebook.get("metadata"))


def _version(metadata) -> str | None:
    stamp = metadata.get("qlab") if isinstance(metadata, dict) else None
    version = stamp.get("version") if isinstance(stamp, dict) else None
    return version if isinstance(version, str) and VERSION.fullmatch(version) else None


def remarks(cells: Iterable[dict], answers: Mapping[str, Iterable[str]]) -> list[str]:
    """What a teacher should know of the answer cells; answers: the ids that the assignment has, with the functions that are asked for.

    >>> remarks([{"source": "", "grade_id": "q1", "grade": False}] * 2, {"q1": ["f"], "q2": ["g"]})
    ['answer cell q1 is there 2 times: the last definition counts', 'there is no answer cell q2: its function is looked for by name']
    """
    count = Counter(cell["grade_id"] for cell in cells if not cell["grade"])
    if answers and not any(count[name] for name in answers):
        return ["none of the assignment's answer cells is there: functions are looked for by name"]
    return [f"answer cell {name} is there {count[name]} times: the last definition counts" for name in answers if count[name] > 1] + \
           [f"there is no answer cell {name}: its function is looked for by name" for name in answers if not count[name]] + \
           [f"a later cell defines {what} again: the one of answer cell {name} counts" for name, what in _again(cells, answers)]


def _again(cells: Iterable[dict], answers: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    """(answer cell, name) of each function asked for that an answered cell defines and a later cell defines anew."""
    own = [cell for cell in cells if not cell["grade"]]
    kinds = definitions.of_cells(own)
    for name, (at, done) in definitions.places(own, answers).items():
        if done:
            asked = sorted(what for what in answers[name] if kinds[at].get(what) == definitions.SURE)
            yield from ((name, what) for what in asked if any(kind.get(what) == definitions.SURE for kind in kinds[at + 1 :]))


def _parsed(content: bytes) -> dict:
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"it is not {name} text (byte {content[error.start]:#04x} at position {error.start:,})") from None
    if not text.strip():
        raise ValueError("it is empty")
    if sum(map(text.count, ",[{")) > VALUES:
        raise ValueError(f"it has more than {VALUES:,} values")
    try:
        notebook = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets thousands deep
        raise ValueError("it is not valid JSON (a number too long or brackets too deep)") from None
    if not isinstance(notebook, dict):
        raise ValueError("it is JSON, but not a notebook: it has no list of cells")
    return notebook


def _number(version) -> str:
    return str(version)[:20] if isinstance(version, int | float) else "unknown"


def _limit(cells: list) -> None:
    if len(cells) > CELLS:
        raise ValueError(f"it has {len(cells):,} cells, and {CELLS:,} are allowed")


def _from_3(notebook: dict) -> dict:
    import nbformat

    for sheet in notebook["worksheets"] if isinstance(notebook.get("worksheets"), list) else []:
        if isinstance(sheet, dict) and isinstance(sheet.get("cells"), list):
            _limit(sheet["cells"])
    try:
        with warnings.catch_warnings(action="ignore"):
            return nbformat.convert(nbformat.from_dict(notebook), 4)
    except Exception:  # noqa: BLE001  the converter meets what no validator has seen
        raise ValueError("it is of nbformat 3, and cannot be converted to nbformat 4") from None


def _other_language(metadata) -> str:
    """The language of a kernel that is not Python's; "" for Python, which some editors call python3, or where nothing is said."""
    places = metadata if isinstance(metadata, dict) else {}
    info, spec = (places.get(key) if isinstance(places.get(key), dict) else {} for key in ("language_info", "kernelspec"))
    said = [name for name in (info.get("name"), spec.get("language")) if isinstance(name, str) and name.strip()]
    if not said or any(name.strip().lower().startswith(("python", "ipython")) for name in said):
        return ""
    return shown(said[0])[:40]


def _cell(cell, k: int) -> dict:
    source = cell.get("source", "") if isinstance(cell, dict) else None
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise ValueError(f"it is not a notebook that can be read: cell {k + 1} has no source")
    metadata = cell.get("metadata")
    grading = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grading = grading if isinstance(grading, dict) else {}
    grade_id = grading.get("grade_id")
    output = outputs.text_of(cell) if isinstance(grade_id, str) else ""
    return {"source": source, "grade_id": grade_id if isinstance(grade_id, str) else None,
            "grade": grading.get("grade") is True and grading.get("solution") is not True, **({"output": output} if output else {})}
