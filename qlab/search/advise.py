"""Which method? Six questions about what you have, and what is left of a table of methods, with the measured reason for every answer.

    data       what may the method see: nothing, some calibration images, the training set?
    training   may the network be trained again?
    hardware   what is it to run on?
    want       fewer bytes, or less time?
    bits       at most how many for a weight, on average?
    lost       at most how much, in points of accuracy or bits a byte, by the upper end of the 95 % interval?

There is no rule here without a record. A row goes out because of what its record says it needs, or does not say: arithmetic that no record
timed is not called fast, a processor on which no record ran it is not called possible. What is left becomes a ladder, from the fewest bytes
(or the least time) up: a row stays if it beats the one below it by a paired test of the two, its p times the number of candidates. So what
stays was measured to be worth its bytes; what went out for noise may be, too.

Source document, 8.2. What such advice cannot know: your network. It is a list of what to try first, and in which order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real

from qlab.search.methods import DATA, HARDWARE, Method, table

WANTS = ("size", "latency")


@dataclass(frozen=True)
class Advice:
    """rows: the methods that remain, what was wanted most first; reasons: why each; out: (row, reason) of all others."""

    rows: tuple[Method, ...]
    reasons: tuple[str, ...]
    out: tuple[tuple[Method, str], ...]

    def why_not(self, name: str) -> str:
        """Why a method of the table is not among the rows. Raises ValueError for a name that is not out."""
        found = [reason for row, reason in self.out if row.name == name]
        if not found:
            some = f"such as {', '.join(repr(row.name) for row, _ in self.out[:3])}" if self.out else "and none is"
            raise ValueError(f"name is {name!r}, and must be one of the methods that are out, {some}.")
        return found[0]

    def __str__(self) -> str:
        if not self.rows:
            return "No method of the table fits. " + "; ".join(f"{n} {reason}" for reason, n in self.counts().items()) + "."
        commands = sorted({f"{row.record}: {row.command}" for row in self.rows if row.command})
        lines = [table(self.rows), "", *(f"{row.name}: {reason}." for row, reason in zip(self.rows, self.reasons))]
        return "\n".join(lines + ([""] + commands if commands else []))

    def counts(self) -> dict[str, int]:
        """How many methods went out for which kind of reason, by the reason's words before the first colon."""
        kinds = [reason.partition(":")[0] for _, reason in self.out]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def advise(rows: Iterable[Method], data: str = "calibration", training: bool = False, hardware: str | None = None, want: str = "size",
           bits: float | None = None, lost: float | None = None) -> Advice:
    """The methods that remain of one network's rows, and why; Advice prints as a table with a reason a row.

    rows: of qlab.lab.methods.load(net), or your own; data: "none", "calibration", "training"; hardware: "cpu", "gpu", "microcontroller", or
    None for any; want: "size" or "latency"; bits: the most that a weight may have, lost: the most that may be lost, None for any.
    Raises TypeError for rows that are no Method, ValueError for rows of two networks, for another answer, and for training without the
    training set.

    >>> import numpy as np
    >>> from qlab.search.methods import lost
    >>> before = np.arange(10_000) < 9_000                                  # 90 % right, and what each method made of it
    >>> after = {8: np.arange(10_000) < 8_995, 4: np.arange(10_000) < 8_960, 2: np.arange(10_000) < 7_000}
    >>> rows = [Method(f"{bits} bits", "mine", bits, 1000 * bits, lost(a, before), results=(a,)) for bits, a in after.items()]
    >>> found = advise(rows, lost=1.0)
    >>> for reason in found.reasons:
    ...     print(reason)
    loses +0.40 [+0.29, +0.54] points, p < 0.001, against the float network
    loses +0.05 [+0.01, +0.12] points, p = 0.062, against the float network. 4,000 bytes more than 4 bits for +0.35 points, p < 0.001
    >>> found.why_not("2 bits")
    'may lose more than asked for: +20.00 [+19.23, +20.80] points, p < 0.001'
    """
    rows = tuple(rows)
    for row in rows:
        if not isinstance(row, Method):
            raise TypeError(f"rows hold a {type(row).__name__}, and must be Method, such as qlab.lab.methods.load('cnn') returns.")
    if len(nets := sorted({row.net for row in rows})) > 1:
        raise ValueError(f"rows are of {' and '.join(nets)}, and must be of one network.")
    for name, given, allowed in (("data", data, DATA), ("hardware", hardware, (*HARDWARE, None)), ("want", want, WANTS)):
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}, and must be one of {', '.join(map(repr, allowed))}.")
    if not isinstance(training, bool):
        raise ValueError(f"training is {training!r}, and must be True or False.")
    for name, given in (("bits", bits), ("lost", lost)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, Real)):
            raise ValueError(f"{name} is {given!r}, and must be a number, or None for any.")
    if bits is not None and not bits > 0:
        raise ValueError(f"bits is {bits!r}, and must be above 0, or None for any.")
    if lost is not None and not lost >= 0:
        raise ValueError(f"lost is {lost!r}, and must be 0 or more, or None for any.")
    if training and data != "training":
        raise ValueError(f"training is asked for with data {data!r}, and needs 'training', the whole training set.")
    left, out = [], []
    for row in rows:
        reason = _unfit(row, data, training, hardware, want, bits, lost)
        out.append((row, reason)) if reason else left.append(row)
    left.sort(key=lambda row: (row.nbytes if want == "size" else -row.faster, row.lost.value))
    rungs, reasons = [], []
    for row in left:
        said = f"loses {row.lost}, against {row.against}"
        if row.faster:
            said += f"; {row.faster:.2f} times as fast as float32 ({row.faster_from})"
        if rungs:
            below, step = rungs[-1], row.compared(rungs[-1])
            dearer = f"{row.nbytes - below.nbytes:,} bytes more" if want == "size" else f"{below.faster / row.faster:.2f} times the time"
            p = min(1.0, step.p * (len(left) - 1))
            bought = f"{dearer} than {below.name} for {-step.value:+.3g} {step.unit}"
            if step.value >= 0 or p >= 0.05:
                out.append((row, f"beaten: {bought}" if step.value >= 0 else f"no gain beyond noise: {bought}, p = {p:.3f}"))
                continue
            said += f". {bought}, {f'p = {p:.3f}' if p >= 0.001 else 'p < 0.001'}"
        rungs.append(row)
        reasons.append(said)
    return Advice(tuple(rungs), tuple(reasons), tuple(out))


def _unfit(row: Method, data: str, training: bool, hardware: str | None, want: str, bits: float | None, lost: float | None) -> str:
    """Why the row is no answer to the questions, or an empty string."""
    if row.trains and not training:
        return "has to train"
    if DATA.index(row.needs) > DATA.index(data):
        return f"needs more data: {row.needs}"
    if bits is not None and row.bits > bits:
        return f"has more bits a weight than asked for: {row.bits:.3g}"
    if lost is not None and row.lost.high > lost:
        return f"may lose more than asked for: {row.lost}"
    if hardware is not None and hardware not in row.runs_on:
        return f"no record ran it on that hardware: {', '.join(row.runs_on)}"
    if want == "latency" and row.faster is None:
        return "no record timed it against float32"
    if want == "latency" and row.faster <= 1:
        return f"ran no faster than float32: {row.faster:.2f} times as fast ({row.faster_from})"
    return ""
