"""Where no cgroup bounds the memory: what all processes of a run hold together, added up from /proc by the run's keeper.

    held = private pages, each process's share of those it has in common with others (PSS), and page tables
           (but for what it has in common with the zygote, whose pages they were)
         + files in /tmp and /dev/shm
         + for each local socket what it may hold (twice SO_SNDBUF: a sender may go beyond it once)

All other ways to hold memory are closed: what is shared and in no file, huge pages, memfd and System V memory by `calls`, locked pages and
message queues by rlimits. Pipes are left, which Linux itself bounds to 64 MiB a user and 8 KiB for each further one (pipe(7)). Between two
looks a run grows by what one processor can write in that time, some 200 MiB; each process has an rlimit of its own that holds at once.
Sources: proc(5), proc_pid_smaps(5), unix(7).
"""

import contextlib
import ctypes
import os
import platform
import signal
import socket

SECONDS = 0.02  # between two looks
PLACES = ("/tmp", "/dev/shm")


class Watch:
    """Looks at the memory of what is started after it was made; limit in bytes. Made by the keeper, which has the zygote's pages, too."""

    def __init__(self, limit: int):
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # the slot's; the run will see an empty one
        self._before = set(os.listdir(self._proc))
        self._inherited = _sum(self._fields("self/status"), "RssAnon")
        # A run may write to half of what it inherits: a process that is alone meets its rlimit first, always, and Python says so.
        self._limit = limit + self._inherited // 2
        with socket.socket(socket.AF_UNIX) as one:
            self._socket = 2 * one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._sockets = self._sockets_used()

    def over(self) -> bool:
        """Whether the run holds more than it may."""
        return self._rough() > self._limit + self._inherited // 2 and self._exact() > self._limit

    def leave_out(self, process: int) -> None:
        """This process is the grader's own."""
        self._before.add(str(process))

    def _exact(self) -> int:
        """What the run's processes hold together. It takes milliseconds for each, so they are stopped meanwhile, and take no more."""
        stopped = set()
        while new := set(self._processes()) - stopped:  # those that were just being started, too
            self._signal(new, signal.SIGSTOP)
            stopped |= new
        parents = {process: self._alive(process).get("PPid", "").strip() for process in stopped}
        double = {child for child, parent in parents.items() if parent in parents and _same_memory(child, parent)}
        shares = {process: self._share(process) for process in stopped}
        twice = sum(shares[child] for child in double)  # less, where it has just got a memory of its own: the call that does so goes on
        self._signal(stopped, signal.SIGCONT)
        return self._outside() + sum(shares.values()) - twice - self._common()

    def _signal(self, processes: set[str], which: int) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), which)

    def _common(self) -> int:
        """What the run has of the zygote's pages: zygote, keeper and process 1 have an equal share each, the run the rest."""
        own = self._fields("self/smaps_rollup")
        changed = _sum(own, "Private_Dirty")
        return max(0, self._inherited - changed - 3 * max(0, _sum(own, "Pss_Anon") - changed))

    def _rough(self) -> int:
        """An upper bound, quicker to read: pages that several processes have in common count for each."""
        return self._outside() + sum(self._whole(process) for process in self._processes())

    def _outside(self) -> int:
        """What is in no process's account: files in memory, sockets."""
        files = sum((place.f_blocks - place.f_bfree) * place.f_frsize for place in map(os.statvfs, PLACES))
        return files + self._socket * max(0, self._sockets_used() - self._sockets)

    def _sockets_used(self) -> int:
        return int(self._read("self/net/sockstat").split()[2])  # sockets: used N

    def _processes(self) -> list[str]:
        return [name for name in os.listdir(self._proc) if name.isdigit() and name not in self._before]

    def _whole(self, process: str) -> int:
        return _sum(self._alive(process), "RssAnon", "VmSwap", "VmPTE")

    def _share(self, process: str) -> int:
        status = self._alive(process)
        share = self._fields(f"{status.get('Pid', process).strip()}/smaps_rollup")
        if "Pss_Anon" not in share:  # it has forbidden to be looked at: it pays for all it can reach
            return _sum(status, "RssAnon", "VmSwap", "VmPTE")
        return _sum(share, "Pss_Anon", "SwapPss") + _sum(status, "VmPTE")

    def _alive(self, process: str) -> dict[str, str]:
        """The status of a process, or of another thread of it where the first has ended and shows no memory."""
        status = self._fields(f"{process}/status")
        if "RssAnon" in status or not status:
            return status
        others = (self._fields(f"{process}/task/{thread}/status") for thread in self._list(f"{process}/task"))
        return next((other for other in others if "RssAnon" in other), status)

    def _list(self, name: str) -> list[str]:
        try:
            folder = os.open(name, os.O_RDONLY, dir_fd=self._proc)
        except OSError:  # it has just ended
            return []
        try:
            return os.listdir(folder)
        except OSError:
            return []
        finally:
            os.close(folder)

    def _fields(self, name: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in self._read(name).splitlines() if ":" in line)

    def _read(self, name: str) -> str:
        try:
            with open(os.open(name, os.O_RDONLY, dir_fd=self._proc), errors="replace") as file:
                return file.read()
        except OSError:  # it has just ended, or may not be looked at
            return ""


def _same_memory(child: str, parent: str) -> bool:
    """Whether a child still is in its parent's memory, as between vfork and exec: kcmp(2), False where the kernel has none."""
    call = {"x86_64": 312, "aarch64": 272}[platform.machine()]
    return ctypes.CDLL(None).syscall(call, int(child), int(parent), 1, 0, 0) == 0


def _sum(fields: dict[str, str], *names: str) -> int:
    """Bytes of fields that are given in kB.

    >>> _sum({"RssAnon": "     12 kB", "VmPTE": " 4 kB"}, "RssAnon", "VmPTE", "VmSwap")
    16384
    """
    return sum(1024 * int(fields[name].split()[0]) for name in names if name in fields)
