"""The code that was handed in, as the teacher's pages show it: text from a stranger, cut to a length, with every invisible sign visible."""

import re
import unicodedata

from qlab.grading.handed_in import definitions, which

LONGEST = 20_000  # characters of one cell or output
# Cc, Cf, Cs, Co, Cn, Zl and Zp are seen by no reader, or change the order of what is seen (CVE-2021-42574); a half surrogate fits no file.
_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")


def visible(text: str, longest: int = LONGEST) -> str:
    """Text of at most so many characters, without a sign that hides, reorders or breaks what is shown: each of these becomes its number.

    >>> visible("x = 1 # \\u202e drawkcab \\x1b[31m")
    'x = 1 # \\\\u202e drawkcab \\\\x1b[31m'
    >>> visible("é" * 5, longest=3)
    'ééé\\n... cut: 2 more characters'
    """
    cut = f"\n... cut: {len(text) - longest:,} more characters" if len(text) > longest else ""
    return _SUSPECT.sub(lambda sign: _named(sign[0]), text[:longest].replace("\r\n", "\n")) + cut


def _named(sign: str) -> str:
    return sign if unicodedata.category(sign)[0] not in "C" and sign not in "\u2028\u2029" else ascii(sign)[1:-1]


def of_question(cells: tuple[dict, ...], question: dict) -> dict | None:
    """The cell that answers a question, the one that counts (handed_in.definitions); None if there is none.

    >>> cells = [{"source": "1", "grade_id": "q1", "grade": False}, {"source": "2", "grade_id": "q1", "grade": False}]
    >>> of_question(tuple(cells), {"answer_cell": "q1"})["source"]
    '2'
    """
    run = [cell for cell in cells if not cell["grade"]]
    at, _ = definitions.places(run, which.asked({"questions": [question]}))[question["answer_cell"]]
    return None if at is None else run[at]


def others(cells: tuple[dict, ...], bundle: dict) -> list[dict]:
    """The cells that answer no question and are no copy of a test, without empty ones."""
    shown = [of_question(cells, question) for question in bundle["questions"]]
    return [cell for cell in cells if not cell["grade"] and cell["source"].strip() and not any(cell is answer for answer in shown)]
