"""What a forked worker does to itself before it meets a student's code: it takes away all it will not need, for good.

    namespaces    a user, process, mount and IPC namespace of its own: it sees no other process, and what it mounts nobody else sees
    mounts        an empty /tmp, /dev/shm and /proc in memory, of limited size; all else is read-only, the devices' times too
    rights        no capability, no new privileges
    rlimits       processes, file size, open files, no core dumps; address space where no cgroup can bound the memory
    seccomp       system calls that ask the kernel for more than computing are refused: namespaces, mounts, tracing, sockets, ...

Linux on x86-64 and ARM64. Sources: namespaces(7), user_namespaces(7), capabilities(7), seccomp(2), linux/filter.h. Only `prctl`, `mount`,
`unshare` and `capset` are called through ctypes; each failure is an OSError, and a worker that could not confine itself runs nothing.
"""

import ctypes
import errno
import os
import platform
import struct

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
CLONE_NEW_ANY = 0x7E020000  # those four, and the cgroup, UTS and network namespaces
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 1 << 12, 1 << 14, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SIGKILL = 9
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts")  # what bubblewrap puts into /dev, each a mount of its own

# A name, its number on x86-64, its number on ARM64 (asm/unistd_64.h and asm-generic/unistd.h).
REFUSED = """
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431,
fsmount 432 432, fspick 433 433, mount_setattr 442 442, name_to_handle_at 303 264, open_by_handle_at 304 265, unshare 272 97, setns 308 268,
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272, pidfd_getfd 438 438,
add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, fanotify_init 300 262,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, kexec_load 246 104, kexec_file_load 320 294, init_module 175 105,
finit_module 313 273, delete_module 176 106, reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, syslog 103 116,
lookup_dcookie 212 18, personality 135 92, sched_setaffinity 203 122, sched_setscheduler 144 119, sched_setattr 314 274,
inotify_add_watch 254 27
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E, {"clone": 56, "clone3": 435, "socket": 41}),
                 "aarch64": (1, 0xC00000B7, {"clone": 220, "clone3": 435, "socket": 198})}  # fmt: skip


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


def hide_files(tmp_mib: int) -> None:
    """Puts empty file systems in memory over what a submission may write or should not see: /tmp, /dev/shm and /proc."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    facts = {}
    for name in ("cpuinfo", "meminfo", "version"):
        with open(f"/proc/{name}", "rb") as file:
            facts[name] = file.read()
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
    _call("mount", b"tmpfs", b"/proc", b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    for name, content in facts.items():
        with open(f"/proc/{name}", "wb") as file:
            file.write(content)
    _call("mount", b"none", b"/proc", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
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
    import resource  # not there on Windows, where this module is only read

    wanted = {"CORE": 0, "NOFILE": files, "FSIZE": file_bytes, "NPROC": processes, "MSGQUEUE": 0, "MEMLOCK": 0, "RTPRIO": 0}
    if address_space is not None:
        wanted["AS"] = address_space
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def seccomp_filter(machine: str) -> bytes:
    """The filter as a classic BPF program: another architecture's calls end the process, the refused ones fail with EPERM.

    `clone` may make threads and processes but no namespace, `clone3`, whose flags a filter cannot see, is said not to exist, and a
    socket can only be a local one (AF_UNIX).

    >>> len(seccomp_filter("x86_64")) % 8, seccomp_filter("x86_64") != seccomp_filter("aarch64")
    (0, True)
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, not of {machine}.")
    column, audit_arch, special = ARCHITECTURES[machine]
    load, jump_equal, jump_at_least, jump_any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD | W | ABS, BPF_JMP | JEQ, JGE, JSET, BPF_RET
    number, arch, argument = 0, 4, 16  # offsets in struct seccomp_data; the lower half of the first argument
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    program = [(load, 0, 0, arch), (jump_equal, 1, 0, audit_arch), (end, 0, 0, kill), (load, 0, 0, number)]
    program += [(jump_at_least, 0, 1, 0x40000000), (end, 0, 0, refuse | errno.ENOSYS)]  # x86-64's second numbering, x32
    for entry in REFUSED.split(","):
        program += [(jump_equal, 0, 1, int(entry.split()[1 + column])), (end, 0, 0, refuse | errno.EPERM)]
    program += [(jump_equal, 0, 1, special["clone3"]), (end, 0, 0, refuse | errno.ENOSYS)]
    program += [(jump_equal, 0, 4, special["clone"]), (load, 0, 0, argument), (jump_any_bit, 0, 1, CLONE_NEW_ANY)]
    program += [(end, 0, 0, refuse | errno.EPERM), (end, 0, 0, allow)]
    program += [(jump_equal, 0, 3, special["socket"]), (load, 0, 0, argument), (jump_equal, 1, 0, 1), (end, 0, 0, refuse | errno.EACCES)]
    program += [(end, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *step) for step in program)


def refuse_system_calls() -> None:
    """Installs the filter; it holds for every process that this one starts, and cannot be taken off."""
    code = ctypes.create_string_buffer(program := seccomp_filter(platform.machine()), len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    _prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(code))))
