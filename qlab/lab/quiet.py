"""Times that can be believed: a command that takes some waits for a machine that does nothing else, and says in its record what it was.

    busy = (time that the cores spent on anything - time that they spent on this program) / time that went by        [cores]

The cores are those that this program may use. The load average would tell of the last minute, the command itself included; so the
processors' own counters are read twice, two seconds apart: /proc/stat on Linux (what a hypervisor took away counts too), GetSystemTimes on
Windows. Elsewhere, or where the counters stand still, as in some sandboxes, the load average has to do. Standard library only.
"""

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK_S, AGAIN_S, PATIENCE_S = 2, 10, 300
STAT = Path("/proc/stat")
OPTION = "--busy"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --busy, whose value belongs into wait(anyway=...).

    >>> parser = argparse.ArgumentParser()
    >>> add_option(parser)
    >>> parser.parse_args(["--busy"]).busy
    True
    """
    parser.add_argument(OPTION, action="store_true", help="take times on a busy machine too, without waiting; the record says so")


@dataclass(frozen=True)
class Watch:
    """What wait found before the first time was taken; load() says what has been since. Busy: cores, None where nothing tells.

    A program that this one started counts as one of the others until it has ended.
    """

    cores: int
    at_start: float | None
    waited_s: float
    anyway: bool
    counters: tuple[float, float] | None

    @property
    def limit(self) -> float:
        """The cores that others may keep busy: half of them."""
        return self.cores / 2

    def load(self) -> dict:
        """How busy others kept the machine, as a record holds it; takes two seconds, and warns on stderr if they kept it too busy.

        cores, limit                      of the machine, those that this program may use; the cores that others may keep busy
        at_start, meanwhile, at_end       cores that they did keep busy; meanwhile: the mean, None where there are no counters
        waited_s, anyway                  how long the command waited at first; whether it was told not to
        by                                "processor times" or "load average", which counts this program too
        quiet                             whether none of the three was above the limit; None where nothing tells
        """
        meanwhile, at_end = _between(self.counters, _counters()), look()
        seen = [busy for busy in (self.at_start, meanwhile, at_end) if busy is not None]
        if self.counters is None:
            seen = seen[:1]                                                                 # later ones are of this program's own making
        quiet = max(seen) <= self.limit if seen else None
        if quiet is False:
            _say(f"others kept {max(seen):.1f} of {self.cores} cores busy: these times are not to be believed, and the record says so.")
        return {"cores": self.cores, "limit": self.limit, "at_start": _rounded(self.at_start), "meanwhile": _rounded(meanwhile),
                "at_end": _rounded(at_end), "waited_s": round(self.waited_s), "anyway": self.anyway,
                "by": "load average" if self.counters is None else "processor times", "quiet": quiet}


def wait(anyway: bool = False, patience_s: float = PATIENCE_S) -> Watch:
    """Returns once others keep at most half of the cores busy, having looked for two seconds; the first call of a command that times.

    anyway: return at once, busy or not. patience_s: how long to wait, with one line on stderr. Raises SystemExit, which ends a command with
    one sentence and the exit status 1, if the machine is still busy then. Where nothing tells how busy it is, a line says so.

    >>> watch = wait(anyway=True)
    >>> watch.limit == watch.cores / 2
    True
    """
    began, told = time.monotonic(), False
    while True:
        busy, waited = look(), time.monotonic() - began
        watch = Watch(_cores(), busy, waited if told else 0, anyway, _counters())
        said = f"{busy or 0:.1f} of {watch.cores} cores are busy with other things"
        if busy is None:
            _say("nothing here tells how busy this machine is; times count only if it does nothing else.")
            return watch
        if busy <= watch.limit or anyway:
            if busy > watch.limit:
                _say(f"{said}; the record will say so.")
            return watch
        if waited >= patience_s:
            raise SystemExit(f"qlab: {said}, and times count only where at most {watch.limit:g} are: try again later, or take them all the "
                             f"same with {OPTION}, which the record then says.")
        if not told:
            _say(f"{said}: waiting for at most {watch.limit:g}, up to {patience_s / 60:g} minutes.")
            told = True
        time.sleep(min(AGAIN_S, patience_s))


def look(seconds: float = LOOK_S) -> float | None:
    """The cores that others keep busy, over so many seconds from now, or by the load average; None where nothing tells.

    >>> busy = look(0.1)
    >>> busy is None or busy >= 0
    True
    """
    before = _counters()
    if before is not None:
        time.sleep(seconds)
        return _between(before, _counters())
    return _or_none(lambda: os.getloadavg()[0])


def _cores() -> int:
    return _or_none(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or 1


def _counters() -> tuple[float, float] | None:
    """(now, seconds that the cores have spent on others up to now); None where there are no counters."""
    busy = _or_none(_linux) or _or_none(_windows)
    return (time.monotonic(), busy - sum(os.times()[:4])) if busy else None


def _between(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    # Counters move in steps of a hundredth of a second, so a difference can be a little below zero.
    return max(0.0, (after[1] - before[1]) / (after[0] - before[0])) if before and after and after[0] > before[0] else None


def _linux() -> float:
    lines = [line.split() for line in STAT.read_text().splitlines() if line.startswith("cpu")]
    ticks = {name: [int(n) for n in rest] for name, *rest in lines}
    mine = [f"cpu{core}" for core in os.sched_getaffinity(0)]
    spent = [ticks[name] for name in mine] if ticks.keys() >= set(mine) else [ticks["cpu"]]  # a container may number its cores anew
    # user, nice, system, (idle, waiting for a disk,) interrupts, the same in software, stolen by the hypervisor; guests are in user
    return sum(sum(t[:3]) + sum(t[5:8]) for t in spent) / os.sysconf("SC_CLK_TCK")


def _windows() -> float:
    idle, kernel, user = (ctypes.c_ulonglong() for _ in range(3))                            # in 100 ns; the kernel's holds the idle time
    if not ctypes.windll.kernel32.GetSystemTimes(*(ctypes.byref(part) for part in (idle, kernel, user))):
        raise OSError("GetSystemTimes failed.")
    return (kernel.value + user.value - idle.value) / 1e7


def _or_none(function: Callable):
    # A machine that cannot be asked must still run the command: whatever goes wrong in a probe, the answer is "unknown".
    try:
        return function()
    except Exception:  # noqa: BLE001
        return None


def _say(line: str) -> None:
    print(f"qlab: {line}", file=sys.stderr, flush=True)


def _rounded(busy: float | None) -> float | None:
    return None if busy is None else round(busy, 2)
