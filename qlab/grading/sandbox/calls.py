"""The system calls that a worker may make, and the filter that says so: what is not listed does not exist (ENOSYS, as on an older kernel).

A library that meets such a call does without it, as all do on older kernels. The list is by measurement: `strace -f` of every solution
with all its cases, and of a tour through what a notebook may do (IPython's magics, NumPy, torch with threads, training, saving and data
loaders, matplotlib, scikit-learn, onnx, the standard library's files, archives, processes, threads, asyncio, sockets, signals, terminals,
a shell with the usual programs). To what they called are added the older and newer forms of the same calls, which another C library uses.

Measured, and left out all the same; their callers have another way:
    getrusage                                   tells whether a page came from the disk, and so what an earlier process has read
    fadvise64                                   steers what stays in the page cache
    sysinfo                                     the whole machine's free memory and number of processes
    sched_setaffinity, mbind                    a slot has one processor
    copy_file_range, sendfile, pidfd_open       can hold memory that no process shows, or are not needed

Some calls are let through by their arguments (`CHECKED`). What this costs a student: no file locks (so no SQLite database in a file), no
shared anonymous memory (`mmap.mmap(-1, n)`), no `resource.getrusage`.

Linux on x86-64 and ARM64. Sources: seccomp(2), linux/filter.h, asm/unistd_64.h, asm-generic/unistd.h, and the manual page of each call.
"""

import errno
import struct

# A name, its number on x86-64, its number on ARM64; - where it has none.
ALLOWED = {
    "files": """
        read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70, open 2 -,
        openat 257 56, creat 85 -, close 3 57, close_range 436 436, lseek 8 62, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79,
        statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -,
        getdents64 217 61, statfs 137 43, fstatfs 138 44, truncate 76 45, ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83,
        mkdir 83 -, mkdirat 258 34, rmdir 84 -, rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -,
        symlinkat 266 36, unlink 87 -, unlinkat 263 35, mknod 133 -, mknodat 259 33, chmod 90 -, fchmod 91 52, fchmodat 268 53,
        fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -,
        utimensat 280 88, umask 95 166, chdir 80 49, fchdir 81 50, getcwd 79 17, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59,
        ioctl 16 29, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13,
        setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16""",
    "memory": "brk 12 214, munmap 11 215, mremap 25 216, mprotect 10 226, msync 26 227, madvise 28 233",
    "processes and threads": """
        fork 57 -, vfork 58 -, execve 59 221, exit 60 93, exit_group 231 94, kill 62 129, tkill 200 130, tgkill 234 131, getpid 39 172,
        getppid 110 173, gettid 186 178, getpgid 121 155, getpgrp 111 -, getsid 124 156, setsid 112 157, setpgid 109 154, getuid 102 174,
        geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, getpriority 140 141,
        setpriority 141 140, prctl 157 167, arch_prctl 158 -, set_tid_address 218 96, set_robust_list 273 99, get_robust_list 274 100,
        rseq 334 293, futex 202 98, futex_waitv 449 449, membarrier 324 283, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168,
        prlimit64 302 261, getrlimit 97 163, setrlimit 160 164, uname 63 160, capget 125 90""",
    "signals": """
        rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
        rt_sigsuspend 130 133, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, sigaltstack 131 132, signalfd 282 -, signalfd4 289 74,
        pause 34 -, restart_syscall 219 128""",
    "waiting": """
        poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
        epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, nanosleep 35 101, clock_nanosleep 230 115""",
    "clocks and chance": """
        time 201 -, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, times 100 153, alarm 37 -, getitimer 36 102,
        setitimer 38 103, timer_create 222 107, timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109,
        timer_delete 226 111, timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87, getrandom 318 278""",
    "local sockets": """
        bind 49 200, connect 42 203, listen 50 201, accept 43 202, accept4 288 242, getsockname 51 204, getpeername 52 205,
        getsockopt 55 209, sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, sendmmsg 307 269, recvmmsg 299 243,
        shutdown 48 210""",
}  # fmt: skip
ALL = 0xFFFFFFFF
CLONE_NEW_ANY = 0x7E020000  # new namespaces: mount, cgroup, UTS, IPC, user, process and network
MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB = 0x01, 0x20, 0x40000
RWF_HARMLESS = 0x17  # HIPRI, DSYNC, SYNC, APPEND
F_HARMLESS = (0, 1, 2, 3, 4, 1030, 1032)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ
SO_HARMLESS = (2, 8, 9, 13, 16, 20, 21)  # SO_REUSEADDR, RCVBUF, KEEPALIVE, LINGER, PASSCRED, RCVTIMEO, SNDTIMEO
# The calls that depend on an argument: it must be one of these values under a mask, else the call fails with this error. An argument is
# given by its index; one that may be a pointer is 64 bits wide, and its upper half is index + 0.5.
CHECKED = {
    "clone 56 220": (errno.EPERM, [(0, CLONE_NEW_ANY, (0,))]),  # threads and processes, no namespaces; clone3 hides its flags: not listed
    # What is shared and in no file outlives its mapping, and no process shows it; huge pages are in no process's count.
    "mmap 9 222": (errno.EPERM, [(3, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, (0, MAP_SHARED, MAP_ANONYMOUS))]),
    "preadv2 327 286": (errno.EOPNOTSUPP, [(5, ALL ^ RWF_HARMLESS, (0,))]),  # RWF_NOWAIT tells what is in the page cache
    "pwritev2 328 287": (errno.EOPNOTSUPP, [(5, ALL ^ RWF_HARMLESS, (0,))]),
    "fcntl 72 25": (errno.EPERM, [(1, ALL, F_HARMLESS)]),  # no locks, leases and watches on files that others read, no larger pipes
    "socket 41 198": (errno.EACCES, [(0, ALL, (1,))]),  # AF_UNIX
    "socketpair 53 199": (errno.EACCES, [(0, ALL, (1,))]),
    "setsockopt 54 208": (errno.EPERM, [(2, ALL, SO_HARMLESS)]),  # no larger SO_SNDBUF: what a socket holds is in no process's count
    "wait4 61 260": (errno.ENOSYS, [(3, ALL, (0,)), (3.5, ALL, (0,))]),  # the child's getrusage
    "waitid 247 95": (errno.ENOSYS, [(4, ALL, (0,)), (4.5, ALL, (0,))]),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH
LOAD, AND, JUMP_EQUAL, JUMP_AT_LEAST, END = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF_LD | W | ABS, ALU | AND | K, JMP | JEQ, JMP | JGE, RET
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def numbers(machine: str) -> dict[str, int]:
    """Each listed call's number on a machine, the checked ones included.

    >>> numbers("x86_64")["openat"], numbers("aarch64")["openat"], "open" in numbers("aarch64")
    (257, 56, False)
    """
    column = ARCHITECTURES[machine][0]
    entries = [entry.split() for text in (*ALLOWED.values(), *CHECKED) for entry in text.split(",")]
    return {name: int(columns[column]) for name, *columns in entries if columns[column] != "-"}


def seccomp_filter(machine: str) -> bytes:
    """The filter as a classic BPF program: another architecture's calls (32-bit ones, too) end the process.

    Raises ValueError for a machine whose system calls are not known here.

    >>> len(seccomp_filter("x86_64")) % 8, seccomp_filter("x86_64") != seccomp_filter("aarch64")
    (0, True)
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, not of {machine}.")
    number, arch = 0, 4  # offsets in struct seccomp_data; the arguments follow from 16 on
    program = [(LOAD, 0, 0, arch), (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine][1]), (END, 0, 0, KILL), (LOAD, 0, 0, number)]
    program += [(JUMP_AT_LEAST, 0, 1, 0x40000000), (END, 0, 0, REFUSE | errno.ENOSYS)]  # x86-64's second numbering, x32
    known = numbers(machine)
    for entry, (error, conditions) in CHECKED.items():
        body = []
        for index, mask, values in conditions:
            body += [(LOAD, 0, 0, 16 + int(8 * index)), (AND, 0, 0, mask)]
            body += [(JUMP_EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
            body.append((END, 0, 0, REFUSE | error))
        body.append((END, 0, 0, ALLOW))
        program += [(JUMP_EQUAL, 0, len(body), known.pop(entry.split()[0])), *body]
    for call in known.values():
        program += [(JUMP_EQUAL, 0, 1, call), (END, 0, 0, ALLOW)]
    program.append((END, 0, 0, REFUSE | errno.ENOSYS))
    return b"".join(struct.pack("HBBI", *step) for step in program)
