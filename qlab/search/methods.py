"""A table of methods: of each what it weighs, what it loses, what it needs to see and what runs it.

The course's own table is qlab.lab.methods.load, read from its records; a table of your own is a list of Method, whose losses `lost`
computes from what was right. qlab.search.advise chooses from either.
"""

from dataclasses import dataclass, field

import numpy as np

from qlab.search import paired

DATA = ("none", "calibration", "training")      # what a method has to see: nothing, some hundred images or blocks, the whole training set
HARDWARE = ("cpu", "gpu", "microcontroller")
EVERYWHERE = ("cpu", "gpu")                     # decoded to float32 before it runs: what multiplies floats


@dataclass(frozen=True)
class Lost:
    """What one result loses against another: value, with its 95 % interval; p, that of no difference. Above 0 is worse."""

    value: float
    low: float
    high: float
    p: float
    unit: str

    def __str__(self) -> str:
        digits = 2 if self.unit == "points" else 4
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{self.value:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}] {self.unit}, {p}"


@dataclass(frozen=True)
class Method:
    """One row. bits: of a weight, on average, without scales; activations: of theirs, 32 for floats; nbytes: of the network.

    needs: of DATA; minutes: of work, None where no record has them, on what; runs_on: of HARDWARE, as it is stored or decoded; integers:
    whether it is multiplied as integers there; faster: times as fast as float32 in the same runtime, None where no record has timed it.
    record: where it was measured (the name of a record, for the course's rows); command: what makes it again. against: what the loss is
    against. results: what was right, bool (images,), by which two methods are told apart.
    """

    name: str
    net: str
    bits: float
    nbytes: int
    lost: Lost
    record: str = ""
    command: str = ""
    needs: str = "none"
    activations: int = 32
    trains: bool = False
    minutes: float | None = None
    minutes_on: str = ""
    integers: bool = False
    runs_on: tuple[str, ...] = EVERYWHERE
    faster: float | None = None
    faster_from: str = ""
    against: str = "the float network"
    results: tuple = field(default=(), repr=False, compare=False)

    def compared(self, other: "Method") -> Lost:
        """What it loses against another method, tested directly. Raises ValueError for two networks, and for one without results."""
        if self.net != other.net:
            raise ValueError(f"the rows are of {self.net} and {other.net}, and must be of the same network.")
        for row in (self, other):
            if not row.results:
                raise ValueError(f"{row.name} has no results, by which it could be told apart from another method.")
        return self._lost(self.results, other.results)

    @staticmethod
    def _lost(results: tuple, reference: tuple) -> Lost:
        return lost(results[0], reference[0])


def lost(right, reference) -> Lost:
    """What one network loses against another on the same images, in points, with Tango's 95 % interval and McNemar's exact p.

    right, reference: bool (images,). Raises ValueError for anything else.

    >>> print(lost(right=[True] * 90 + [False] * 10, reference=[True] * 97 + [False] * 3))
    +7.00 [+3.04, +13.75] points, p = 0.016
    """
    right, reference = np.asarray(right), np.asarray(reference)
    for name, given in (("right", right), ("reference", reference)):
        if given.dtype != bool or given.ndim != 1 or not given.size or given.shape != right.shape:
            raise ValueError(f"{name} has dtype {given.dtype} and shape {given.shape}, and must be bool, one value an image, for the same "
                             "images as the other.")
    gone, come = int((reference & ~right).sum()), int((right & ~reference).sum())
    low, high = paired.limits(gone, come, right.size)
    return Lost(100 * (gone - come) / right.size, 100 * low, 100 * high, paired.p_value(gone, come), "points")


NUMBERS = ("bits", "bytes", "minutes", "faster")
COLUMNS = ("method", "bits", "bytes", "loses [95 %]", "needs", "minutes", "runs on", "faster", "record")


def cells(row: Method) -> tuple[str, ...]:
    """A row's entries, one for each of COLUMNS. faster: times as fast as float32; "-" where no record says it.

    >>> cells(Method("4 bits", "mine", bits=4, nbytes=38_202, lost=Lost(0.07, -0.24, 0.38, 0.6, "points"), needs="calibration"))[2:6]
    ('38,202', '+0.07 [-0.24, +0.38] points', 'calibration', '-')
    """
    minutes, faster = ("-" if x is None else f"{x:.2g}" for x in (row.minutes, row.faster))
    return (row.name, f"{row.bits:.2g}", f"{row.nbytes:,}", str(row.lost).rpartition(", p")[0], row.needs, minutes,
            ", ".join(row.runs_on), faster, row.record)


def table(rows) -> str:
    """Rows as text, one a line, under a head.

    >>> print(table([Method("4 bits", "mine", bits=4, nbytes=38_202, lost=Lost(0.07, -0.24, 0.38, 0.6, "points"), record="mine.json")]))
    method  bits   bytes  loses [95 %]                 needs  minutes  runs on   faster  record
    4 bits     4  38,202  +0.07 [-0.24, +0.38] points  none         -  cpu, gpu       -  mine.json
    """
    lines = [COLUMNS, *map(cells, rows)]
    shapes = [f"{'>' if name in NUMBERS else '<'}{max(map(len, column))}" for name, column in zip(COLUMNS, zip(*lines))]
    return "\n".join("  ".join(map(format, line, shapes)).rstrip() for line in lines)
