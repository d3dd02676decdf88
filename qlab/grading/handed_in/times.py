"""Times that somebody wrote down, read with their zone: a time before 2000 or after 2199 is none, whoever wrote it.

Python's calendar ends with the year 9999, so a time close to it cannot be told in every zone; and no hand-in is of such a year.
"""

import re
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from qlab.grading.handed_in.files import shown

YEARS = range(2000, 2200)
FIRST, LAST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (YEARS.start, YEARS.stop))


def possible(seconds: float | None) -> bool:
    """Whether a time in POSIX seconds is from 2000 to 2199.

    >>> possible(1795629600.0), possible(253402300799.0), possible(0), possible(None), possible(float("nan"))
    (True, False, False, False, False)
    """
    return seconds is not None and FIRST <= seconds < LAST


def zone(name: str | None) -> tzinfo | None:
    """A time zone by its name; None, which stands for this machine's, where no name is given. Raises ValueError.

    >>> str(zone("Europe/Berlin"))
    'Europe/Berlin'
    """
    try:
        return ZoneInfo(name) if name else None
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{shown(name)[:60]!r} is no time zone: write it like Europe/Berlin or UTC.") from None


def in_zone(when: datetime, default: tzinfo | None = None) -> datetime:
    """A time with its zone; one that states none is of the default's, or of this machine's if that is None.

    >>> in_zone(datetime(2026, 11, 23, 18), ZoneInfo("UTC")).isoformat()
    '2026-11-23T18:00:00+00:00'
    """
    return when if when.tzinfo else when.replace(tzinfo=default) if default else when.astimezone()


def stated(when: datetime) -> str:
    """A time with its zone, as a teacher reads it.

    >>> stated(datetime(2026, 11, 23, 18, tzinfo=ZoneInfo("Europe/Berlin")))
    '2026-11-23 18:00, CET (UTC+01:00)'
    """
    name, offset = when.tzname() or "", when.strftime("%z")
    named = name if name.startswith("UTC") else f"{name} (UTC{offset[:3]}:{offset[3:5]})"
    return f"{when:%Y-%m-%d %H:%M}{f':{when:%S}' if when.second else ''}, {named}"


def parse_time(text: str, default: tzinfo | None = None) -> datetime:
    """A date and time with its zone: ISO 8601, or nbgrader's "2026-11-23 18:00:00.5 Europe/Berlin".

    default: the zone of a text that states none, this machine's if None. Raises ValueError.

    >>> parse_time("2026-11-23 18:00:00 UTC").isoformat()
    '2026-11-23T18:00:00+00:00'
    """
    text = text.strip()
    day, name = text, None
    if (words := text.rsplit(" ", 1))[-1][:1].isalpha() and len(words) == 2:
        day, name = words
    given = shown(text)[:60]
    try:
        when = datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", lambda m: "." + m[1].ljust(6, "0"), day))
        if not re.search(r"[T ]", day):
            raise ValueError("a date alone would be its first minute")
        when = when.replace(tzinfo=zone(name)) if name else in_zone(when, default)
        seconds = when.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{given!r} is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00+01:00.") from None
    if not possible(seconds):
        raise ValueError(f"{given!r} is no date and time: it must be from {YEARS.start} to {YEARS.stop - 1}.")
    return when
