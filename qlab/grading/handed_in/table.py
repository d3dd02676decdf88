"""A table that a teacher wrote: CSV as any spreadsheet saves it, read whole or refused with the line that is wrong.

UTF-8 with or without the mark that Excel puts first, or UTF-16 with its mark; fields apart by comma, semicolon or tab, as the first line
shows, which names the columns in any order; Excel's own line "sep=;", in quotes or not, and empty lines may come before it. Columns that
nobody asks for are left alone.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

SEPARATORS = ",;\t"
BEFORE = re.compile(r'("?)sep=[^\r\n]?\1[ \t,;]*(?:\r\n?|\n|$)|(?:[ \t,;]|"")*(?:\r\n?|\n)', re.IGNORECASE)


def read(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its first line; fields are stripped, and one that a short row lacks is "".

    Raises FileNotFoundError, or ValueError in one sentence that names the file and the line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "points.csv")
    ...     _ = path.write_bytes("\\ufeffStudent;points\\r\\nGauß, C. F.;2,5\\r\\n".encode())
    ...     read(path, ["student", "points"])
    [(2, {'student': 'Gauß, C. F.', 'points': '2,5'})]
    """
    wanted = tuple(columns)
    lines, rows = rows_of(path, lambda head: set(wanted) <= {name.strip().lower() for name in head})
    if not rows or lines is None:
        first = ", ".join(name.strip() for name in rows[0][1]) if rows else ""
        told = f"it names {first[:200]}" if first.strip(" ,") else "it is empty"
        raise ValueError(f"{path}: the first line must name the columns {', '.join(wanted)}, and {told}.")
    names = [name.strip().lower() for name in rows[0][1]]
    twice = next((name for name in wanted if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{path}: line {rows[0][0]} names the column {twice} twice, and each must be there once.")
    found = []
    for line, fields in rows[1:]:
        fields = [field.strip() for field in fields]
        if not any(fields):
            continue
        if any(fields[len(names):]):
            raise ValueError(f"{path}: line {line} has {len(fields)} fields, and the first line {len(names)}: a field that holds the "
                             "separator must stand in double quotes.")
        fields += [""] * (len(names) - len(fields))
        found.append((line, {name: fields[names.index(name)] for name in wanted}))
    return found


def rows_of(path: Path, fits=lambda head: True) -> tuple[str | None, list[tuple[int, list[str]]]]:
    """The separator, and all rows with the numbers of their first lines, the header first; the separator is the first of , ; and tab of
    which fits(header) holds, None if none does. Raises as read."""
    try:
        text = decoded(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}.") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, and must be a table (CSV).") from None
    before = 0  # lines before the one that names the columns
    while match := BEFORE.match(text):
        text, before = text[match.end():], before + 1
    first = re.split("[\r\n]", text, maxsplit=1)[0][:10_000]
    for separator in SEPARATORS:
        head = next(csv.reader([first], delimiter=separator), [])
        if fits(head):
            break
    else:
        head = next(csv.reader([first], delimiter=max(SEPARATORS, key=first.count)), [])
        return None, [(1 + before, head)] if text.strip() else []
    reader, rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [], 1
    try:
        for fields in reader:
            rows.append((line + before, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: line {line + before} is no row of a table ({error}): a double quote in a field must be doubled, "
                         "and the field stand in double quotes.") from None
    return separator, rows


def decoded(content: bytes, name: str) -> str:
    """A text file's text. Raises ValueError for one that is neither UTF-8 nor UTF-16 with its mark.

    >>> decoded("\\ufeffname".encode(), "a.csv"), decoded("name".encode("utf-16"), "a.csv")
    ('name', 'name')
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, what = "utf-16", "UTF-16, though its first two bytes say so"
    else:
        encoding, what = "utf-8-sig", "UTF-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f'{name}: line {line} is not {what}: in a spreadsheet, save it as "CSV UTF-8".') from None


def same(text: str) -> str:
    """What two ways to write one name have in common: Unicode's composed form, no difference of case, single spaces.

    >>> same("Zoe\\u0308  MEIER") == same("Zo\\u00eb Meier")
    True
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def called(name: str, number: str | None = None, email: str | None = None) -> set[str]:
    """What a teacher's table may call a student, as `same` gives it.

    Who has a number or e-mail is not called by a name that looks like one: it may be chosen to look like another student's.

    >>> sorted(called("Ada", "17", "ada@x.edu")), called("bob@x.edu", "18", "eve@x.edu") == {"18", "eve@x.edu"}, called("23", "18")
    (['17', 'ada', 'ada@x.edu'], True, {'18'})
    """
    seems = email and "@" in name or number and same(name).isdecimal()
    return {same(text) for text in (number, email, "" if seems else name) if text and same(text)}
