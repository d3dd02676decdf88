"""Moodle's grading worksheet: who each participant is, in which group, and when they handed in. A zip of Moodle's tells none of this.

The assignment's "Download grading worksheet" is a CSV of one row a participant, its headings and times in the language of whoever
downloads it (moodle/moodle, mod/assign/gradingtable.php: the columns; lang/en/langconfig.php, strftimedaydatetime: the times):

    Identifier,Full name,Email address,Status,Group,Grade,...,Last modified (submission),...,Last modified (grade),...
    Participant 17,Ada Lovelace,ada@example.edu,Submitted for grading,Team A,,...,"Friday, 20 November 2026, 5:59 PM",...,-,...

The identifier ends in the number that the zip's folder has. A time states no zone: it is that of the teacher's Moodle profile. It
states no seconds either: 5:59 PM is read as the minute's beginning, in the student's favour. Headings and months are known in English,
German, French, Spanish, Italian, Portuguese and Dutch, and so is a time of numbers alone, 2026-11-20 17:59. In any other language: set
Moodle to English, and download it again.
"""

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from qlab.grading.handed_in import table
from qlab.grading.handed_in.files import shown
from qlab.grading.handed_in.table import same
from qlab.grading.handed_in.times import in_zone, parse_time, possible

# lang/XX/assign.php, lastmodifiedsubmission, of the language packs
SUBMITTED = {"last modified (submission)", "zuletzt geändert (abgabe)", "zuletzt geändert (einreichung)",
             "dernière modification (travail remis)", "última modificación (entrega)", "ultima modifica (consegna)",
             "última modificação (submissão)", "última modificação (envio)", "laatst gewijzigd (inzending)"}
GROUP = {"group", "gruppe", "groupe", "grupo", "gruppo", "groep"}  # submissionteam
NAME = {"full name", "vollständiger name", "nom complet", "nombre completo", "nombre", "nome completo", "nome", "volledige naam"}
EMAIL = re.compile(r"mail|correo|courriel", re.IGNORECASE)
MONTHS = [set(names.split()) for names in (
    "january jan januar jän jänner janvier janv enero ene gennaio gen janeiro januari",
    "february feb februar février févr febrero febbraio fevereiro fev februari",
    "march mar märz mär mrz mars marzo março maart mrt",
    "april apr avril avr abril abr aprile",
    "may mai mayo mag maggio maio mei",
    "june jun juni juin junio giugno giu junho",
    "july jul juli juillet juil julio luglio lug julho",
    "august aug août agosto ago augustus",
    "september sep sept septembre septiembre settembre set setembro",
    "october oct oktober okt octobre octubre ottobre ott outubro out",
    "november nov novembre noviembre novembro",
    "december dec dezember dez décembre déc diciembre dic dicembre dezembro")]


@dataclass(frozen=True)
class Participant:
    """A row of the worksheet. time: of the hand-in, POSIX seconds, None where there is none."""

    number: str
    name: str = ""
    email: str | None = None
    group: str = ""
    time: float | None = None


def worksheet(path: Path, zone: tzinfo | None = None) -> dict[str, Participant]:
    """The worksheet's participants by number. zone: of its times, this machine's if None.

    Raises FileNotFoundError, or ValueError with the line that cannot be read.
    """
    separator, rows = table.rows_of(Path(path), lambda head: not SUBMITTED.isdisjoint(map(same, head)))
    if separator is None or not rows:
        raise ValueError(f'{path} has no column "Last modified (submission)": give Moodle\'s grading worksheet, downloaded in English.')
    head = [same(title) for title in rows[0][1]]
    submitted, name, group = (next((k for k, title in enumerate(head) if title in titles), None) for titles in (SUBMITTED, NAME, GROUP))
    email = next((k for k, title in enumerate(head) if EMAIL.search(title)), None)
    found = {}
    for line, row in rows[1:]:
        if not any(row):
            continue
        row = row + [""] * (len(head) - len(row))
        number = re.search(r"([0-9]+)\s*$", row[0])
        if not number:
            raise ValueError(f"{path}: line {line} begins with {shown(row[0])[:40]!r}, and an identifier like Participant 17 is needed.")
        if number[1] in found:
            raise ValueError(f"{path}: line {line} has participant {number[1]} a second time.")
        try:
            when = _time(row[submitted], zone)
        except ValueError:
            raise ValueError(f"{path}: line {line} has the time {shown(row[submitted])[:60]!r}, which is not understood: download the "
                             "worksheet with Moodle in English, or write the time like 2026-11-20 17:59.") from None
        cell = {key: _shown(row[k]) if k is not None else "" for key, k in (("name", name), ("email", email))}
        team = row[group].strip() if group is not None else ""  # as it is: two groups may differ in a sign that is not seen
        found[number[1]] = Participant(number[1], cell["name"], cell["email"] or None, team, when)
    return found


def _shown(text: str) -> str:
    return shown(re.sub(r"<[^<>]*>", "", text)).strip()[:200]  # Moodle marks who is suspended with HTML


def _time(text: str, zone: tzinfo | None) -> float | None:
    """
    >>> from zoneinfo import ZoneInfo
    >>> written = "-", "Friday, 20 November 2026, 5:59 PM", "vendredi 20 novembre 2026 à 17h59", "2026-11-20 17:59"
    >>> [_time(text, ZoneInfo("UTC")) for text in written]
    [None, 1795197540.0, 1795197540.0, 1795197540.0]
    """
    if text.strip() in ("", "-"):
        return None
    try:
        return parse_time(text, zone).timestamp()
    except ValueError:
        text = same(text)
    clock = re.search(r"(?<!\d)(\d{1,2})(?:[:h]|\.(?=\d\d(?:\D|$)(?!\d)))(\d\d)(?::(\d\d))?\s*([ap])?\.?\s*m?\.?\s*(?:uhr)?$", text)
    if not clock:
        raise ValueError
    hour, minute, second = (int(part or 0) for part in clock.groups()[:3])
    if clock[4]:
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + 12 * (clock[4] == "p")
    day = text[:clock.start()]
    numbers = [int(number) for number in re.findall(r"\d+", day)]
    months = [k for word in re.findall(r"[^\W\d_]+", day) for k, names in enumerate(MONTHS, 1) if word in names]
    if len(numbers) == 2 and len(set(months)) == 1 and max(numbers) > 31:
        when = datetime(max(numbers), months[0], min(numbers), hour, minute, second)
    elif len(numbers) == 3 and numbers[0] > 31:  # year, month, day; the other orders differ from country to country
        when = datetime(*numbers, hour, minute, second)
    else:
        raise ValueError
    if not possible(seconds := in_zone(when, zone).timestamp()):
        raise ValueError
    return seconds
