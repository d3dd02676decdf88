"""The limits for a container that is thrown away after one submission and forbids the sandbox's namespaces, as Docker's default does.

    grader (root)  -- pipes -->  worker: imports torch, becomes another user, drops its rights, limits itself, filters its system calls,
                                 and only then meets the student's code

As in the sandbox (see `sandbox.confine`): no network, no capability, no new privileges, no tracing, only the system calls that computing
needs; rlimits on processes, files and address space; the grader's clock; no right answer in the process.
Not as there: it sees the container's other files and processes, so what is secret must be readable by root alone; memory is bounded for
each process and not for all together; what it writes stays until the container ends. With one submission a container there is nobody else's
to be seen or changed. What a worker leaves running is adopted by the grader (PR_SET_CHILD_SUBREAPER, prctl(2)) and ended: nothing else runs
as this user, so kill(-1) ends all of it in one step, which a process that forks for ever cannot outrun (kill(2)).

Fails closed: what a probe does not meet when the container opens raises SandboxUnavailable.
"""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import qlab
from qlab.grading import values
from qlab.grading.sandbox import bwrap, confine, worker, zygote
from qlab.grading.sandbox.drive import Run, WorkerFailed, drive

PR_SET_CHILD_SUBREAPER = 36
STUDENT = 54_321  # a user and group that nothing else has
START = "import sys; sys.path.append(sys.argv.pop()); from qlab.grading.gradescope import container; container.main()"


class Container:
    """A context manager whose `lease` is a Sandbox's, for mark.grade_notebook. Needs root; only in a container for one submission.

    secret: files and folders that student code may neither read nor write; memory_mib: of each process beyond torch's own; file_mib: of
    each file. Raises SandboxUnavailable, with one sentence.
    """

    def __init__(self, secret: Iterable[Path] = (), memory_mib: int = 2048, processes: int = 64, file_mib: int = 64):
        self._secret = [str(path) for path in secret]
        self._limits = {"memory": memory_mib * 2**20, "processes": processes, "file": file_mib * 2**20}
        self.limits_that_hold: dict[str, str] = {}

    def __enter__(self) -> "Container":
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            raise bwrap.SandboxUnavailable("without namespaces student code must run as another user, which takes Linux and root.")
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._prove()
        memory, file = self._limits["memory"] // 2**20, self._limits["file"] // 2**20
        self.limits_that_hold = {
            "sandbox": "none: the container is the sandbox, and must be thrown away after this submission", "network": "none",
            "files": f"the container's that everybody may read; {file} MiB each that is written", "processes of others": "seen",
            "rights": "no capabilities, no new privileges, no namespaces, system calls filtered", "user": "another one",
            "memory": f"{memory} MiB by rlimit, each process", "processes": f"{self._limits['processes']} by rlimit",
            "time": "kept by the grader",
        }
        return self

    def __exit__(self, *_) -> None:
        _end_all()

    @contextmanager
    def lease(self) -> Iterator[Callable[[], Run]]:
        """For one submission: a function that starts a worker, as often as needed."""
        yield self._start

    def _start(self) -> Run:
        (requests, to_worker), (from_worker, answers), (from_output, output) = (os.pipe() for _ in range(3))
        place = tempfile.mkdtemp()  # the worker's home and working folder
        os.chown(place, STUDENT, STUDENT)
        settings = {**self._limits, "pipes": [requests, answers, output], "uid": STUDENT}
        environment = {**bwrap.ENVIRONMENT, **dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "IPYTHONDIR"), place)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-c", START, json.dumps(settings), str(Path(qlab.__file__).resolve().parents[1])],
            pass_fds=settings["pipes"], env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for pipe in settings["pipes"]:
            os.close(pipe)

        def end(by_itself: bool) -> str:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2 if by_itself else 0)
            process.kill()
            code = process.wait()
            _end_all()
            shutil.rmtree(place, ignore_errors=True)
            return f"signal {-code}" if code < 0 else f"exit status {code}" if code else ""

        return Run(to_worker, from_worker, from_output, end)

    def _prove(self) -> None:
        inputs = {"secret": values.encode(self._secret)}
        question = {"id": "probe", "seconds": 30.0, "cases": [{"kind": "public", "call": "probe(secret)", "setup": "", "inputs": inputs}]}
        try:
            transcript = drive(self._start, [PROBE], [question], 60.0, 30.0)
        except WorkerFailed:
            raise bwrap.SandboxUnavailable("student code cannot be confined here: see the line above.") from None
        answer = transcript.answers.get(("probe", 0))
        if answer is None or answer["t"] != "list" or answer["v"]:
            told = ", ".join(values.decode(answer)) if answer and answer["t"] == "list" else answer or transcript.ended["probe"][1]
            raise bwrap.SandboxUnavailable(f"the limits do not hold here: {told}.")


def _end_all() -> None:
    """Ends every process of the student's user and waits for them; the grader has no other children."""
    subprocess.run(["/bin/sh", "-c", "kill -9 -1"], user=STUDENT, group=STUDENT, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


# Returns the doors it finds open; each should be shut.
PROBE = """
def probe(secret):
    import ctypes, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def opens(action):
        try:
            action()
        except OSError:
            return False
        return True
    doors = {f"{path} can be read or written": os.access(path, os.R_OK) or os.access(path, os.W_OK) or os.access(path, os.X_OK)
             for path in secret}
    doors |= {
        "a network socket can be made": opens(lambda: socket.socket(socket.AF_INET)),
        "the library can be written": opens(lambda: open(os.path.dirname(os.__file__) + "/qlab-probe", "w")),
        "the course can be written": opens(lambda: open(os.path.dirname(__import__("qlab").__file__) + "/qlab-probe", "w")),
        "a user namespace can be made": libc.unshare(0x10000000) == 0,
        "processes can be traced": libc.ptrace(0, 0, 0, 0) == 0,
        "privileges can be gained": libc.prctl(39, 0, 0, 0, 0) != 1,
        "no filter of system calls is set": libc.prctl(21, 0, 0, 0, 0) != 2,
        "it is root": 0 in (os.getuid(), os.geteuid(), os.getgid()),
        "the grader can be ended": opens(lambda: os.kill(os.getppid(), 0)),
    }
    return [door for door, is_open in doors.items() if is_open]
"""


# In the worker


def main() -> None:
    """Become another user, import what submissions need, take away all that they do not, and answer."""
    settings = json.loads(sys.argv[1])
    requests, answers, output = settings["pipes"]
    os.setsid()
    confine.drop_uid(settings["uid"])
    confine.die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("1000")  # out of memory, the kernel shall choose the student's process, not the grader
    shell = worker.make_shell()
    for name in zygote.PRELOAD:
        with suppress(ImportError):  # a submission that needs it will say so
            importlib.import_module(name)
    import torch

    for call in zygote.WARM_UP:  # better here than on a student's clock
        worker.answer({"torch": torch}, {"call": call, "inputs": {}})
    confine.drop_rights()
    own = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    confine.limit(settings["processes"], 256, settings["file"], own + settings["memory"])
    confine.refuse_system_calls()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    worker.work(requests, answers, shell)
    os._exit(0)  # whatever threads the student left running
