"""Attacks the sandbox on this host, and says which limit holds: what `qlab doctor` shows.

Each attack is a small submission that does what a hostile student would, and a judge on this side that looks at the host as well as at the
answer: a secret file that must not be read, a listening port that must not be reached, a process that must survive, orphans that must not.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlab.grading import values
from qlab.grading.sandbox import bwrap, drive, hostile, leftovers


@dataclass(frozen=True)
class _Outcome:
    answer: object  # of attack(target), None if there was none
    fate: str  # "", "timeout" or "killed"
    how: str
    tail: bytes
    seconds: float


def _run(box: bwrap.Sandbox, source: str, target: object, seconds: float) -> _Outcome:
    case = {"kind": "public", "call": "attack(target)", "setup": "", "inputs": {"target": values.encode(target)}}
    before = time.monotonic()
    with box.lease() as start:
        transcript = drive.drive(start, [source], [{"id": "attack", "seconds": seconds, "cases": [case]}], 60.0, 30.0)
    value = transcript.answers.get(("attack", 0))
    answer = None if value is None else values.decode(value)
    fate, how = transcript.ended.get("attack", ("", ""))
    return _Outcome(answer, fate, how, transcript.tail, time.monotonic() - before)


def _orphans() -> int:
    """How many of the attack's sleepers are on this host."""
    count = 0
    for folder in Path("/proc").iterdir():
        try:
            count += folder.name.isdigit() and hostile.ORPHAN.encode() in (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            pass
    return count


def memory(box: bwrap.Sandbox) -> list[tuple[str, bool, str]]:
    """The same of the memory alone: that of one process, of many, and what no process shows (files in memory, shared pages, sockets)."""
    seen = []
    for limit, source in (("memory", hostile.MEMORY), ("memory of many processes", hostile.MANY), ("memory unseen", hostile.UNSEEN)):
        outcome = _run(box, source, 4 * box.memory_mib, 20.0)
        taken, ways = outcome.answer if isinstance(outcome.answer, list | tuple) else (outcome.answer, "")
        holds = outcome.fate == "killed" or (taken is not None and taken < 1.5 * box.memory_mib)  # an rlimit leaves what the zygote had
        seen.append((limit, holds, outcome.how or f"{taken} MiB, then no more{ways and ': '}{ways}"))
    return seen


def report(box: bwrap.Sandbox | None = None) -> list[tuple[str, bool, str]]:
    """(limit, whether it holds, what was seen) of each limit of a sandbox on this host: an open one, or one of its own.

    One of its own that has a cgroup is tried without one, too, as on a machine where none is writable: there the memory has other guards.
    Raises bwrap.SandboxUnavailable where there can be none. Takes about twenty seconds.
    """
    if box is None:
        small = {"memory_mib": 512, "processes": 40, "tmp_mib": 16}
        with bwrap.Sandbox(**small) as box:
            seen = report(box)
        if "cgroup" in box.limits_that_hold["memory"]:
            with bwrap.Sandbox(**small, groups=False) as box:
                seen += [(f"{limit}, without a cgroup", *rest) for limit, *rest in memory(box)]
        return seen
    seen = []
    refused = ("refused", "Permission denied", "Operation not permitted", "No such file or directory", "Read-only file system")

    def judge(limit: str, holds: object, evidence: object) -> None:
        seen.append((limit, bool(holds), str(evidence)))

    with tempfile.TemporaryDirectory() as folder:
        try_it: Callable = lambda source, target=0, seconds=20.0: _run(box, source, target, seconds)  # noqa: E731
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.1)
            outcome = try_it(hostile.NETWORK, server.getsockname()[1])
            try:
                server.accept()
                reached = True
            except TimeoutError:
                reached = False
        judge("no network", not reached and str(outcome.answer) in refused, outcome.answer)
        secret = secrets.token_hex()
        os.chmod(folder, 0o755)
        for name, place in (("/tmp", folder), ("home", Path.home())):
            with tempfile.NamedTemporaryFile("w", dir=place, prefix=".qlab-attack-") as file:
                file.write(secret)
                file.flush()
                os.chmod(file.name, 0o644)
                outcome = try_it(hostile.READ, file.name)
            judge(f"files in {name} are not seen", str(outcome.answer) in refused, outcome.answer)
        outcome = try_it(hostile.WRITE, folder)
        judge("nothing can be written outside /tmp", str(outcome.answer) in refused and not os.listdir(folder), outcome.answer)
        outcome = try_it(hostile.DISK)
        written = outcome.answer or 0
        judge("its own /tmp is bounded", 0 < written <= box.tmp_mib * 2**20, f"{written >> 20} MiB, then no more")
        outcome = try_it(hostile.FORK)
        count = outcome.answer or 0
        judge("a fork bomb", 0 < count <= box.processes, f"{count} children, then no more")
        seen += memory(box)
        outcome = try_it(hostile.LOOP, 0, 1.0)
        judge("time", outcome.fate == "timeout" and outcome.seconds < 10, f"stopped after {outcome.seconds:.1f} s; it had 1 s")
        outcome = try_it(hostile.FLOOD, 100)
        kept = len(outcome.tail)
        judge("output is cut off", outcome.answer == 100 and kept <= drive.TAIL, f"{kept:,} bytes kept of 100 MiB")
        outcome = try_it(hostile.NAMESPACES)
        judge("no namespaces, no mounts", outcome.answer == "refused", outcome.answer)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
            outcome = try_it(hostile.TRACE, victim.pid)
            judge("no tracing", outcome.answer == "refused", outcome.answer)
            outcome = try_it(hostile.SIGNALS, victim.pid)
            judge("signals reach nobody else", outcome.answer == 0 and victim.poll() is None, f"{outcome.answer} processes reached")
            victim.communicate(b"\n")
        outcome = try_it(hostile.SEEING)
        judge("other processes are not seen", outcome.answer == 0, f"{outcome.answer} seen")
        outcome = try_it(leftovers.LEFTOVERS)
        judge("nothing is left for a later process", outcome.answer == "refused", outcome.answer)
        outcome = try_it(hostile.ORPHANS, 30)
        judge("no orphans stay", outcome.answer == 30 and not _orphans(), f"{_orphans()} of {outcome.answer} left")
    return seen


def main(argv: list[str] | None = None) -> int:
    """Prints the report; 0 if every limit holds."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    try:
        seen = report()
    except bwrap.SandboxUnavailable as error:
        console.print(f"No sandbox: {error}", markup=False)
        return 1
    table = Table("limit", "holds", "what was seen", box=None)
    for limit, holds, evidence in seen:
        table.add_row(limit, "yes" if holds else "NO", evidence)
    console.print(table)
    return 0 if all(holds for _, holds, _ in seen) else 1


if __name__ == "__main__":
    sys.exit(main())
