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
from qlab.grading.sandbox import bwrap, drive

ORPHAN = "86399.125"  # seconds that an orphan sleeps: a number that nothing else sleeps

# Each defines attack(target), whose answer is a text or a number.
NETWORK = """
import socket
def attack(target):
    for address in (("127.0.0.1", target), ("192.0.2.1", 53), ("::1", target)):
        try:
            with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
                connection.settimeout(0.5)
                connection.connect(address)
            return f"connected to {address[0]}"
        except OSError as error:
            refused = error.strerror
    return refused
"""
READ = """
import os, sys
def attack(target):
    for path in (target, "/proc/1/root" + target, "/proc/self/root" + target, "/etc/shadow"):
        try:
            return "read " + path + ": " + open(path).read()
        except OSError as error:
            refused = error.strerror
    for top in ("/home", "/root", "/mnt", "/media", "/srv", "/var", "/opt"):
        for folder, below, files in os.walk(top):
            below[:] = [name for name in below if os.path.join(folder, name) not in (sys.prefix, sys.base_prefix)]
            if files:
                return f"saw {files} in {folder}"
    return refused
"""
WRITE = """
import os, sys
def attack(target):
    import qlab, torch
    places = ["/", "/usr", "/usr/bin", "/etc", "/dev", "/proc", "/sys", "/var", "/var/tmp", "/home", target]
    places += [sys.prefix] * (not sys.prefix.startswith("/tmp/"))  # below its own /tmp an empty folder leads to the interpreter
    places += [os.path.dirname(module.__file__) for module in (os, qlab, torch)]
    for place in places:
        for path in (place + "/qlab-attack", place + "/__init__.py"):
            try:
                with open(path, "a"):
                    return "could write " + path
            except OSError as error:
                refused = error.strerror
    for name in {*os.listdir("/dev")} - {"shm"}:  # a time is a message, too, and /dev/shm its own
        try:
            os.utime("/dev/" + name)
            return "could set the times of /dev/" + name
        except OSError as error:
            refused = error.strerror
    return refused
"""
DISK = """
def attack(target):
    written = 0
    try:
        with open("/tmp/full", "wb", buffering=0) as file:
            while written < 2**32:
                written += file.write(bytes(2**20))
    except OSError as error:
        return written
    return written
"""
FORK = """
import os, time
def attack(target):
    children = 0
    while children < 10_000:
        try:
            if os.fork() == 0:
                time.sleep(100)
        except OSError:
            return children
        children += 1
    return children
"""
MEMORY = """
def attack(target):
    kept = []
    try:
        while len(kept) < target:
            kept.append(bytearray(2**20))
            kept[-1][::4096] = bytes([1]) * 256
    except MemoryError:
        pass
    return len(kept)
"""
LOOP = """
import signal
def attack(target):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""
FLOOD = """
import os
def attack(target):
    for _ in range(target):
        os.write(1, b"x" * 2**20)
    return target
"""
NAMESPACES = """
import ctypes, platform
def attack(target):
    libc = ctypes.CDLL(None, use_errno=True)
    clone = 56 if platform.machine() == "x86_64" else 220
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
        if libc.unshare(flag) == 0:
            return f"unshare({flag:#x}) worked"
        if libc.syscall(clone, flag | 17, 0, 0, 0, 0) >= 0:
            return f"clone({flag:#x}) worked"
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0:
        return "mount worked"
    return "refused"
"""
TRACE = """
import ctypes, os
def attack(target):
    libc = ctypes.CDLL(None, use_errno=True)
    for pid in (os.getppid(), 1, target):
        if libc.ptrace(16, pid, 0, 0) == 0:
            return f"attached to {pid}"
        if libc.process_vm_readv(pid, None, 0, None, 0, 0) == 0:
            return f"read the memory of {pid}"
    return "refused"
"""
SIGNALS = """
import os, signal
def attack(target):
    reached = 0
    for pid in [target, *range(3, 5000)]:
        try:
            os.kill(pid, signal.SIGKILL)
            reached += 1
        except OSError:
            pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for group in (0, -1):
        try:
            os.kill(group, signal.SIGTERM)
        except OSError:
            pass
    return reached
"""
SEEING = """
import os
def attack(target):
    seen = [name for name in os.listdir("/proc") if name.isdigit()]
    for pid in range(1, 5000):
        try:
            os.kill(pid, 0)
            seen.append(pid)
        except PermissionError:
            seen.append(pid)
        except ProcessLookupError:
            pass
    return len(set(map(int, seen)) - {1, os.getpid()})
"""
ORPHANS = f"""
import subprocess
def attack(target):
    for _ in range(target):
        subprocess.Popen(["setsid", "sleep", "{ORPHAN}"])
    return target
"""


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
            count += folder.name.isdigit() and ORPHAN.encode() in (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            pass
    return count


def report(box: bwrap.Sandbox | None = None) -> list[tuple[str, bool, str]]:
    """(limit, whether it holds, what was seen) of each limit of a sandbox on this host: an open one, or one of its own.

    Raises bwrap.SandboxUnavailable where there can be none. Takes about ten seconds.
    """
    if box is None:
        with bwrap.Sandbox(memory_mib=512, processes=40, tmp_mib=16) as box:
            return report(box)
    seen = []
    refused = ("refused", "Permission denied", "Operation not permitted", "No such file or directory", "Read-only file system")

    def judge(limit: str, holds: object, evidence: object) -> None:
        seen.append((limit, bool(holds), str(evidence)))

    with tempfile.TemporaryDirectory() as folder:
        try_it: Callable = lambda source, target=0, seconds=20.0: _run(box, source, target, seconds)  # noqa: E731
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.1)
            outcome = try_it(NETWORK, server.getsockname()[1])
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
                outcome = try_it(READ, file.name)
            judge(f"files in {name} are not seen", str(outcome.answer) in refused, outcome.answer)
        outcome = try_it(WRITE, folder)
        judge("nothing can be written outside /tmp", str(outcome.answer) in refused and not os.listdir(folder), outcome.answer)
        outcome = try_it(DISK)
        written = outcome.answer or 0
        judge("its own /tmp is bounded", 0 < written <= box.tmp_mib * 2**20, f"{written >> 20} MiB, then no more")
        outcome = try_it(FORK)
        count = outcome.answer or 0
        judge("a fork bomb", 0 < count <= box.processes, f"{count} children, then no more")
        outcome = try_it(MEMORY, 4 * box.memory_mib)
        stopped = outcome.fate == "killed" or (outcome.answer or 0) < 1.5 * box.memory_mib  # an rlimit leaves what the zygote had free
        judge("memory", stopped, outcome.how or f"{outcome.answer} MiB, then no more")
        outcome = try_it(LOOP, 0, 1.0)
        judge("time", outcome.fate == "timeout" and outcome.seconds < 10, f"stopped after {outcome.seconds:.1f} s; it had 1 s")
        outcome = try_it(FLOOD, 100)
        kept = len(outcome.tail)
        judge("output is cut off", outcome.answer == 100 and kept <= drive.TAIL, f"{kept:,} bytes kept of 100 MiB")
        outcome = try_it(NAMESPACES)
        judge("no namespaces, no mounts", outcome.answer == "refused", outcome.answer)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
            outcome = try_it(TRACE, victim.pid)
            judge("no tracing", outcome.answer == "refused", outcome.answer)
            outcome = try_it(SIGNALS, victim.pid)
            judge("signals reach nobody else", outcome.answer == 0 and victim.poll() is None, f"{outcome.answer} processes reached")
            victim.communicate(b"\n")
        outcome = try_it(SEEING)
        judge("other processes are not seen", outcome.answer == 0, f"{outcome.answer} seen")
        outcome = try_it(ORPHANS, 30)
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
