"""A cgroup for one slot of the sandbox: the kernel's bound on the memory and the number of processes of all that runs in it together.

cgroup v1 has a hierarchy for each resource, v2 one for all (Linux: admin-guide/cgroup-v1, admin-guide/cgroup-v2). A group is made below
the grader's own one, so whatever bounds the grader bounds it too; in v2, where a group that holds processes cannot have children with
limits, beside it. Where none is writable, the caller falls back on rlimits.
"""

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "qlab-"


@dataclass(frozen=True)
class Group:
    """The folders of one group: the memory's, the processes' (the same one in v2); None where there is none."""

    version: int
    memory: Path | None
    processes: Path | None

    def entries(self) -> list[str]:
        """The files into which a process writes its id to enter."""
        return [str(folder / "cgroup.procs") for folder in dict.fromkeys((self.memory, self.processes)) if folder]

    def usage(self) -> int:
        """Bytes in use, without the pages of files that can be dropped at any time."""
        name, inactive = ("memory.usage_in_bytes", "total_inactive_file") if self.version == 1 else ("memory.current", "inactive_file")
        stat = dict(line.split() for line in (self.memory / "memory.stat").read_text().splitlines())
        return int((self.memory / name).read_text()) - int(stat.get(inactive, 0))

    def limit_memory(self, size: int) -> None:
        """Bounds memory, and swap with it where there is swap accounting; size in bytes."""
        if self.version == 2:
            wanted = [("memory.max", size), ("memory.swap.max", 0)]
        else:  # the limit of memory and swap together is never below the one of memory, not even on the way
            both = "memory.memsw.limit_in_bytes"
            wanted = [(both, -1), ("memory.limit_in_bytes", size), (both, size)]
        for name, value in wanted:
            if (self.memory / name).exists():
                (self.memory / name).write_text(str(value))

    def limit_processes(self, count: int) -> None:
        """Bounds the number of processes and threads."""
        (self.processes / "pids.max").write_text(str(count))

    def kills(self) -> int:
        """How many processes have been ended for want of memory."""
        text = (self.memory / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text() if self.memory else ""
        return sum(int(line.split()[1]) for line in text.splitlines() if line.split()[0] == "oom_kill")

    def remove(self) -> None:
        """Removes the folders, once the processes in them are gone; waits a second for that."""
        for folder in dict.fromkeys((self.memory, self.processes)):
            for _ in range(100 if folder else 0):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)


def make(proc: Path = Path("/proc/self")) -> Group:
    """A new group, with whatever of the two limits can be had here; proc is for tests."""
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    own = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    found, version = {}, 1
    for controller, limit in (("memory", "memory.limit_in_bytes"), ("pids", "pids.max")):
        for place in _places(mounts, own, "cgroup", controller)[:1]:
            found[controller] = _create(place, name, (limit,))
    if not any(found.values()):
        version = 2
        for place in _places(mounts, own, "cgroup2", ""):
            if folder := _create(place, name, ("memory.max", "pids.max")):
                found = {"memory": folder, "pids": folder}
                break
    return Group(version, found.get("memory"), found.get("pids"))


def _places(mounts: list, own: list, kind: str, controller: str) -> list[Path]:
    """The grader's own group in a hierarchy, then those above it."""
    for mount in mounts:
        rest = mount[mount.index("-") + 1 :]
        if rest[0] == kind and (kind == "cgroup2" or controller in rest[2].split(",")):
            top = Path(mount[4])
            inside = next((path for _, controllers, path in own if controller in controllers.split(",")), "/")
            place = top / inside.lstrip("/")
            place = place if place.is_dir() else top  # in a container, whose view of the tree starts lower
            return [folder for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return []


def _create(place: Path, name: str, limits: tuple[str, ...]) -> Path | None:
    """A new folder with these limits in it; None, and nothing left behind, if that cannot be. Empty ones of graders long dead go."""
    for old in place.glob(f"{PREFIX}*-*"):
        process = old.name.removeprefix(PREFIX).split("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists():
            Group(1, old, None).remove()
    folder = place / name
    try:
        folder.mkdir()
    except OSError:
        return None
    if all(os.access(folder / limit, os.W_OK) for limit in limits) and os.access(folder / "cgroup.procs", os.W_OK):
        return folder
    folder.rmdir()
    return None
