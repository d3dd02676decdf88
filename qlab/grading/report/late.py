"""What being late costs: qlab grade --late-penalty "10% per day, at most 50%, grace 15 minutes".

    RATE per day|hour [, at most MOST] [, grace N minutes|hours|days]

RATE and MOST are both percentages of the points reached, or both points ("0.5 points per hour"). Every day (24 hours) or hour that has
begun counts as a whole one, from the student's own deadline on. Who is not later than the grace loses nothing; who is later loses from the
deadline on. Nobody ends below 0. Arithmetic is exact; what remains is rounded to hundredths of a point, halves upward.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

SECONDS = {"minute": 60, "hour": 3600, "day": 86400}
NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
AMOUNT = NUMBER + r"\s*(%|points?)"
RULE = re.compile(rf"{AMOUNT} per (day|hour)(?: started)?(?:, at most {AMOUNT})?(?:, grace {NUMBER} (minute|hour|day)s?)?", re.ASCII)


@dataclass(frozen=True)
class Penalty:
    """rate and most: shares of the points reached (1/10) where percent, else points; grace in seconds."""

    rate: Fraction
    percent: bool
    unit: str
    most: Fraction | None = None
    grace: Fraction = Fraction(0)

    def units(self, seconds: float | Fraction) -> int:
        """Days or hours that count for so many seconds after the deadline.

        >>> rule = parse("10% per day, grace 15 minutes")
        >>> rule.units(900), rule.units(901), rule.units(86400), rule.units(86401)
        (0, 1, 1, 2)
        """
        return 0 if seconds <= max(self.grace, 0) else math.ceil(Fraction(seconds) / SECONDS[self.unit])

    def subtracted(self, points: Fraction, units: int) -> Fraction:
        """What is taken from so many points.

        >>> parse("10% per day, at most 50%").subtracted(Fraction(4), 2)
        Fraction(4, 5)
        """
        amount = self.rate * units
        amount = amount if self.most is None else min(amount, self.most)
        return min(points, points * amount if self.percent else amount)

    def told(self, units: int) -> str:
        """In words, for the student: "2 days late: 20 %"."""
        amount = self.rate * units if self.most is None else min(self.rate * units, self.most)
        share = f"{float(min(1, amount) * 100):g} %" if self.percent else f"{float(amount):g} points"
        return f"{units} {self.unit}{'s' if units != 1 else ''} late: {share}"


def parse(text: str) -> Penalty:
    """A rule as above. Raises ValueError.

    >>> parse("0.5 points per hour, at most 2 points")
    Penalty(rate=Fraction(1, 2), percent=False, unit='hour', most=Fraction(2, 1), grace=Fraction(0, 1))
    """
    match = RULE.fullmatch(re.sub(r"\s+", " ", re.sub(r"\s*,\s*", ", ", text.strip().lower())))
    if not match or match[4] and (match[2] == "%") != (match[5] == "%"):
        raise ValueError(f'a late penalty is {text[:80]!r}, and must be like "10% per day, at most 50%", '
                         '"0.5 points per hour, at most 2 points" or "10% per day, at most 50%, grace 15 minutes".')
    percent = match[2] == "%"
    scale = 100 if percent else 1
    rate, most = Fraction(match[1]) / scale, Fraction(match[4]) / scale if match[4] else None
    if percent and max(rate, most or 0) > 1:
        raise ValueError(f"a late penalty is {text[:80]!r}, and no more than 100% can be lost.")
    return Penalty(rate, percent, match[3], most, Fraction(match[6]) * SECONDS[match[7]] if match[6] else Fraction(0))


def rounded(points: Fraction) -> float:
    """To hundredths, halves upward; whole points as an int, as the grader's own are.

    >>> rounded(Fraction(1, 200)), rounded(Fraction(16, 5)), rounded(Fraction(3))
    (0.01, 3.2, 3)
    """
    hundredths = math.floor(points * 100 + Fraction(1, 2))
    return hundredths // 100 if hundredths % 100 == 0 else hundredths / 100
