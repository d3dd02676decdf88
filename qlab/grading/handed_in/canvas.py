"""Canvas's names of the files in "Download Submissions": lovelaceada_LATE_123_456_any.ipynb, whose user is 123 and whose upload is 456.

    lovelaceada_123_text.html      a text or link that was handed in: it has no upload's number
    LATE_anon_a1B2c_456_any.ipynb  where Canvas hides names, and the user's number with them

instructure/canvas-lms, lib/content_zipper.rb (add_submission, get_filename, sanitize_user_name): a name is of word characters, in lower
case, and "_digits_" becomes "digits". So a name may still end in "_1", and a file's own may begin with digits: mal_1_123_9002_a.ipynb is
mal_1's, user 123, or that of mal, user 1, who called it 9002_a.ipynb. Such a file is nobody's for sure. Not doubted are numbers of fewer
than three digits where an upload's would be, as in 12_int8.ipynb, nor such as begin with 0: Canvas counts its uploads through all courses.
"""

import re
from collections.abc import Collection
from pathlib import Path

from qlab.grading.handed_in import table

WORD = r"[^\s!-/:-@\[-^`{-~]"  # Ruby's [[:word:]], near enough: no space and, but for "_", no sign of ASCII
UPLOAD = re.compile(rf"(?P<name>{WORD}*?)_(?P<late>LATE_)?(?P<number>[0-9]+)_(?P<upload>[0-9]+)_.+", re.DOTALL)
PAGE = re.compile(rf"(?P<name>{WORD}*?)_(?P<late>LATE_)?(?P<number>[0-9]+)_(?P<upload>text|link)\.html")
HIDDEN = re.compile(r"(?P<late>LATE_)?(?P<name>anon_[0-9A-Za-z]+)_(?:(?P<upload>[0-9]+)_.+|(?:text|link)\.html)", re.DOTALL)
AGAIN = re.compile(r"_([1-9][0-9]*)_(?:([1-9][0-9]{2,})_(?=.)|(?:text|link)\.html$)", re.DOTALL)  # behind another end of the name


def told(part: str, anonymous: bool = False) -> re.Match | None:
    """What the name of a file tells, taking the shortest name of a user; anonymous: whether Canvas hides names.

    >>> told("ada_LATE_7_8_03_log.ipynb").groups(), told("ada.ipynb")
    (('ada', 'LATE_', '7', '8'), None)
    """
    return HIDDEN.fullmatch(part) if anonymous else UPLOAD.fullmatch(part) or PAGE.fullmatch(part)


def readings(part: str) -> tuple[tuple[str, str, str], ...]:
    """(name, number, upload) of each user whose file it may be, the shortest name first; upload "" where it has none.

    >>> readings("mal_1_123_9002_a.ipynb"), readings("mal_1_123_text.html")
    ((('mal', '1', '123'), ('mal_1', '123', '9002')), (('mal', '1', '123'), ('mal_1', '123', '')))
    >>> readings("ada_101_9001_12_int8.ipynb"), readings("agent_007_123_9002_a.ipynb")
    ((('ada', '101', '9001'),), (('agent_007', '123', '9002'),))
    """
    first = told(part)
    if not first:
        return ()
    upload = first["upload"] if first["upload"].isdecimal() else ""
    found, at = [(first["name"], first["number"], upload)], first.end("name") + 1
    if first["late"]:  # Canvas's own: no name has capitals
        return tuple(found)
    while again := AGAIN.search(part, at):
        name, at = part[:again.start()], again.start() + 1
        if re.fullmatch(f"{WORD}*", name) and name == name.lower():
            found.append((name, again[1], again[2] or ""))
    return tuple(one for one in found if one[1][0] != "0") or tuple(found)  # no number of Canvas's begins so


def users(path: Path) -> frozenset[str]:
    """The numbers of all users in Canvas's gradebook as it exports it (Student, ID, ...; lib/gradebook_exporter.rb).

    Raises FileNotFoundError, or ValueError in one sentence.
    """
    numbers = frozenset(row["id"] for _, row in table.read(path, ("student", "id")) if row["id"].isdecimal())
    if not numbers:
        raise ValueError(f"{path} has no user's number in its column ID: give the gradebook that Canvas exports.")
    return numbers


def whose(part: str, known: Collection[str] | None = None) -> tuple[tuple[str, str, str], ...]:
    """The readings that are left: of several those whose number is a user's, if known names all users and one of them is.

    >>> whose("bob_2_9003_4711_a.ipynb", {"1", "2"}), whose("mal_1_123_9002_a.ipynb", {"1", "123"})
    ((('bob', '2', '9003'),), (('mal', '1', '123'), ('mal_1', '123', '9002')))
    """
    found = readings(part)
    return tuple(one for one in found if one[1] in known) or found if known is not None and len(found) > 1 else found
