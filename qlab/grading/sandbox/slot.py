"""A slot: one zygote, the pipes to it, and the workers forked off it; and the slots for code that is trusted, which confine nothing."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qlab.grading.sandbox import cgroups
from qlab.grading.sandbox.drive import START_SECONDS, Run, WorkerFailed

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0",
               "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "QLAB_GRADING": "1"}


class Slot:
    """One zygote and the pipes to it; started again when it has died."""

    def __init__(self, command: Callable[[int], list[str]], environment: dict, group: cgroups.Group | None = None, memory: int = 0):
        self._command, self._environment, self._group, self._memory = command, environment, group, memory
        self._process, self._control, self._errors = None, None, None

    def open(self) -> None:
        """Starts the zygote; `ready` waits for it."""
        self.close()
        self._control, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()
        with theirs:
            self._process = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=(theirs.fileno(),), env=self._environment, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
            )  # fmt: skip

    def ready(self) -> None:
        """Waits until the zygote has imported what it needs; raises WorkerFailed with what it said if it has not."""
        if self._read(START_SECONDS) != {"ready": True}:
            said = self.said()
            self.close()
            raise WorkerFailed(said)
        if self._group and self._group.memory:
            self._group.limit_memory(self._group.usage() + self._memory)

    def said(self) -> str:
        """The last line that the zygote, or what should have become it, wrote about its troubles."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Run:
        """A new worker, forked off the zygote."""
        kills = self._group.kills() if self._group else 0
        (requests, to_worker), (from_worker, answers), (from_output, output), (lifeline, hold) = (os.pipe() for _ in range(4))
        try:
            socket.send_fds(self._control, [b"run"], [requests, answers, output, lifeline])
        except OSError:
            for pipe in (to_worker, from_worker, from_output, hold):
                os.close(pipe)
            raise WorkerFailed("the sandbox has died.") from None
        finally:
            for pipe in (requests, answers, output, lifeline):
                os.close(pipe)

        spent = {}

        def end(by_itself: bool) -> str:
            told = self._read(2) if by_itself else None
            os.close(hold)
            told = told or self._read(30)
            spent.update(told or {})
            if told is None:
                self.close()
            if (told and told.get("memory")) or (self._group and self._group.kills() > kills):
                return "it used more memory than it may"
            code = told.get("code") if told else None
            if code is None:
                return "the sandbox died with it"
            return f"signal {code - 128}" if code > 128 else f"exit status {code}" if code else ""

        return Run(to_worker, from_worker, from_output, end, spent)

    def _read(self, seconds: float) -> dict | None:
        self._control.settimeout(seconds)
        line = b""
        try:
            while not line.endswith(b"\n"):
                data = self._control.recv(1)
                if not data:
                    return None
                line += data
        except OSError:
            return None
        return json.loads(line)

    def close(self) -> None:
        """Ends the zygote and all that came of it."""
        if self._process is not None:
            self._control.close()
            self._process.kill()
            self._process.wait()
            self._errors.close()
            self._process = None


class Trusted:
    """Workers for trusted code, the authors' own: `lease` as a Sandbox's, but nothing is confined. A zygote is kept for the next lease."""

    limits_that_hold = {"sandbox": "none: the code was trusted"}
    _idle: list[Slot] = []

    @contextmanager
    def lease(self) -> Iterator[Callable[[], Run]]:
        if not sys.platform.startswith("linux"):
            yield _plain
            return
        slot = self._idle.pop() if self._idle else Slot(_trusted_command, {**os.environ, **ENVIRONMENT})

        def start() -> Run:
            if not slot.alive():
                slot.open()
                slot.ready()
            return slot.start()

        try:
            yield start
        finally:
            self._idle.append(slot)


@atexit.register
def _close_idle() -> None:
    while Trusted._idle:
        Trusted._idle.pop().close()


def _trusted_command(control: int) -> list[str]:
    settings = {"control": control, "uid": None, "cpu": None, "confine": None}
    return [sys.executable, "-m", "qlab.grading.sandbox.zygote", json.dumps(settings)]


def _plain() -> Run:
    """A worker in a process of its own, for a system without Linux's means: it imports torch each time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qlab.grading.sandbox.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    pipes = (process.stdin, process.stdout, process.stderr)
    ends = [os.dup(pipe.fileno()) for pipe in pipes]
    for pipe in pipes:
        pipe.close()

    def end(by_itself: bool) -> str:
        try:
            code = process.wait(2 if by_itself else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"signal {-code}" if code < 0 else f"exit status {code}" if code else ""

    return Run(*ends, end)
