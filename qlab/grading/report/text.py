"""Text that a student can influence, made harmless: names, file names, errors, answers.

A spreadsheet runs what begins with = + - @ (or their full-width forms), and one whose list separator is the semicolon begins a field
after each, as it does after a tab or a line end that it does not know to be quoted. At each such place a quote goes before one of these
signs, and before a quote, so that taking one quote away there always gives the text back. A character that ends or reorders what is shown
around it (NUL and other controls, changes of direction, halves of surrogate pairs) becomes U+FFFD, and a text longer than a cell of a
spreadsheet holds is cut.
"""

import csv
import html
import io
import re

FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20']|[\t\r])")
HARMFUL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CELL = 32_000  # characters: Excel takes 32,767, and puts the rest into the next rows


def clean(value) -> str:
    """A value as text without harmful characters, cut to the length of a cell; None is "".

    >>> clean("a\\0b\\u202e"), clean(None), clean(2.5), len(clean("x" * 1_000_000))
    ('a\ufffdb\ufffd', '', '2.5', 32000)
    """
    text = "" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
    more = f" ... ({len(text)} characters)"
    return HARMFUL.sub("\ufffd", text if len(text) <= CELL else text[:CELL - len(more)] + more)


def neutral(value) -> str:
    """A field that no spreadsheet takes for a formula.

    >>> neutral("=1+1"), neutral("Ada, Countess"), neutral("'quoted"), neutral(3), neutral("a;-1")
    ("'=1+1", 'Ada, Countess', "''quoted", '3', "a;'-1")
    """
    text = clean(value)
    return text if isinstance(value, int | float) else FORMULA.sub("'", text)


def table(rows: list[list]) -> str:
    """Rows as CSV that no spreadsheet runs.

    >>> table([["student", "score"], ["=Ada", 2.5]])
    "student,score\\r\\n'=Ada,2.5\\r\\n"
    """
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([[neutral(value) for value in row] for row in rows])
    return stream.getvalue()


def markup(value) -> str:
    """Text for a page.

    >>> markup("a < b")
    'a &lt; b'
    """
    return html.escape(clean(value))


def markup_in_field(text: str) -> str:
    """Text for a page that is itself a field of a table: without a sign of a formula after the semicolon of an escape.

    >>> markup_in_field("a <= b")
    'a &lt;&#61; b'
    """
    return re.sub(r"(?<=;)[=+\-@]", lambda sign: f"&#{ord(sign[0])};", markup(text))
