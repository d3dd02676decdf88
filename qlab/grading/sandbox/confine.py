"""What a forked worker does to itself before it meets a student's code: it takes away all it will not need, for good.

    namespaces    a user, process, mount and IPC namespace of its own: it sees no other process, and what it mounts nobody else sees
    mounts        an empty /tmp, /dev/shm and /proc in memory, of limited size; all else is read-only, the devices' times too; what /proc
                  and /sys tell of the machine stays as it was before the first student's code ran
    rights        no capability, no new privileges
    rlimits       processes, file size, open files, no core dumps; address space where no cgroup can bound the memory
    seccomp       only the system calls that computing needs (see `calls`)

What is left. All processes of a run end with it, and their files, pipes, sockets, shared memory and locks end with them. But there is one
kernel: a page that one run has read from the disk the next one reads faster, and the numbers that the kernel gives to pipes and sockets
(st_ino) go on counting. So a hidden case can leave bits, by a clock or such a counter, for a later process. They do not reach the feedback
on the same submission, where all that a student reads of cells and public cases was said before the first hidden input came (see `drive`).
Another submission that is in the plot, or a student's next one, could say them, as it could go by the bit that each mark tells: a hidden
case passed, or not. New hidden inputs are the remedy: a new seed.

Sources: namespaces(7), user_namespaces(7), capabilities(7), seccomp(2), linux/filter.h. Only `prctl`, `mount`,
`unshare` and `capset` are called through ctypes; each failure is an OSError, and a worker that could not confine itself runs nothing.
"""

import ctypes
import os
import platform
import struct
import time

from qlab.grading.sandbox import calls

try:
    import resource
except ImportError:  # on Windows, where this module is only read
    resource = None

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 1 << 12, 1 << 14, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SIGKILL = 9
FACTS = {"/proc": ("cpuinfo", "meminfo", "version"), "/sys/devices/system/cpu": ("online", "possible", "present")}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts")  # what bubblewrap puts into /dev, each a mount of its own


def _call(function: str, *args) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _prctl(option: int, argument: int = 0, pointer=None) -> None:
    none = ctypes.c_ulong(0)
    _call("prctl", option, ctypes.c_ulong(argument), none if pointer is None else pointer, none, none)


def die_with_parent() -> None:
    """This process is killed when the one that forked it ends."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)


def drop_uid(uid: int) -> None:
    """From root to another user, for good; /proc/self stays this process's own."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _prctl(PR_SET_DUMPABLE, 1)


def enter_namespaces() -> None:
    """Leaves the shared namespaces; the next child is process 1 of the new process namespace."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def facts() -> dict[str, dict[str, bytes]]:
    """What programs read of the machine, for `hide_files`: the live numbers would tell of what other submissions do."""
    told = {}
    for place, names in FACTS.items():
        for name in names:
            try:
                with open(f"{place}/{name}", "rb") as file:
                    told.setdefault(place, {})[name] = file.read()
            except OSError:  # not on this kernel
                pass
    return told


def hide_files(tmp_mib: int, facts: dict[str, dict[str, bytes]]) -> None:
    """Puts empty file systems in memory over what a submission may write or should not see: /tmp, /dev/shm, and /proc but for the facts."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    with open("/proc/self/mountinfo") as mounts:  # an interpreter or packages that lie below /tmp must still be seen there
        below = {path: os.open(path, os.O_PATH) for path in (line.split()[4] for line in mounts) if path.startswith("/tmp/")}
    for place in (b"/tmp", b"/dev/shm"):
        _call("mount", b"tmpfs", place, b"tmpfs", MS_NOSUID | MS_NODEV, f"size={tmp_mib}m,nr_inodes=10000,mode=700".encode())
    for path, file in below.items():
        folder = path if os.path.isdir(f"/proc/self/fd/{file}") else os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        if folder != path and not os.path.exists(path):
            open(path, "xb").close()
        _call("mount", f"/proc/self/fd/{file}".encode(), path.encode(), None, MS_BIND | MS_REC, None)
        os.close(file)
    for place, told in facts.items():
        _call("mount", b"tmpfs", place.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
        for name, content in told.items():
            with open(f"{place}/{name}", "wb") as file:
                file.write(content)
        _call("mount", b"none", place.encode(), None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    _call("mount", b"/dev/full", b"/dev/zero", None, MS_BIND, None)  # it reads as zeros, too, and cannot be mapped: see `calls`, mmap
    for name in DEVICES:  # they are the host's: who may write to one could set its times, and so leave a message for others
        flags = os.statvfs(f"/dev/{name}").f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        _call("mount", b"none", f"/dev/{name}".encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, None)
    os.chdir("/tmp")


def drop_rights() -> None:
    """No capability in any set, and none to be had from a program either."""
    capability = 0
    while True:
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # the last one of this kernel
            break
        capability += 1
    header, none = struct.pack("II", 0x20080522, 0), struct.pack("6I", *[0] * 6)  # version 3; effective, permitted, inheritable
    _call("capset", header, none)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def limit(processes: int, files: int, file_bytes: int, address_space: int | None) -> None:
    """The rlimits, file_bytes and address_space in bytes; address_space is None where a cgroup bounds the memory."""
    wanted = {"CORE": 0, "NOFILE": files, "FSIZE": file_bytes, "NPROC": processes, "MSGQUEUE": 0, "MEMLOCK": 0, "RTPRIO": 0}
    if address_space is not None:
        wanted["AS"] = address_space
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def refuse_system_calls() -> None:
    """Installs the filter; it holds for every process that this one starts, and cannot be taken off."""
    code = ctypes.create_string_buffer(program := calls.seccomp_filter(platform.machine()), len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    _prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(code))))
    resource.getrusage = _times_only  # IPython's %time asks for it


def _times_only(who: int):
    """resource.getrusage without what the kernel no longer tells: the times alone, the rest zeros."""
    times = os.times()
    seconds = times.children_user + times.children_system if who == resource.RUSAGE_CHILDREN else time.process_time()
    return resource.struct_rusage([seconds, 0.0, *[0] * 14])
