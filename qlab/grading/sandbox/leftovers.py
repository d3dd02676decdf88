"""The attack on what leads from one process of a submission to a later one, or to another submission: see `hostile`."""

# What tells a process of what an earlier one has done, or holds something for a later one: answers what worked.
LEFTOVERS = """
import ctypes, fcntl, mmap, os, platform, signal
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    number = numbers[platform.machine() == "aarch64"]
    return lambda *args: libc.syscall(number, *args) >= 0
def system(name, *args):
    function = getattr(libc, name, None)  # of another C library, or a later one
    return lambda: function is not None and function(*args) not in (-1, None)
def attack(target):
    buffer, usage = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(512)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # what a lease or a watch would send
    file = os.open(os.__file__, os.O_RDONLY)
    page = mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    where = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    def child():
        if (pid := os.fork()) == 0: os._exit(0)
        told = libc.wait4(pid, None, 0, usage)
        if told != pid: os.waitpid(pid, 0)
        return told == pid
    def child_by_waitid():
        if (pid := os.fork()) == 0: os._exit(0)
        told = call(247, 95)(1, pid, buffer, 4, usage)
        if not told: os.waitpid(pid, 0)
        return told
    ways = {
        "preadv2 without waiting": lambda: os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT) >= 0,
        "mincore": system("mincore", where, ctypes.c_size_t(4096), buffer),
        "cachestat": lambda: call(451, 451)(file, bytes(16), buffer, 0), "readahead": lambda: call(187, 213)(file, 0, 4096),
        "posix_fadvise": lambda: call(221, 223)(file, 0, 0, 4),
        "getrusage": lambda: libc.getrusage(0, usage) == 0, "wait4": child, "waitid": child_by_waitid,
        "sysinfo": system("sysinfo", usage), "io_setup": lambda: call(206, 0)(1, ctypes.create_string_buffer(8)),
        "flock": lambda: fcntl.flock(file, fcntl.LOCK_SH) is None,
        "a lock": lambda: fcntl.fcntl(file, fcntl.F_SETLK, bytes(32)) is not None,
        "a question for locks": lambda: fcntl.fcntl(file, fcntl.F_GETLK, bytes(32)) is not None,
        "a lease": lambda: fcntl.fcntl(file, fcntl.F_GETLEASE) >= 0,
        "dnotify": lambda: fcntl.fcntl(os.open("/usr", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS) >= 0,
        "inotify": system("inotify_init1", 0), "fanotify": system("fanotify_init", 0, 0),
        "a larger pipe": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETPIPE_SZ, 2**17) >= 0,
        "memfd_create": system("memfd_create", b"left", 0), "memfd_secret": lambda: call(447, 447)(0),
        "shmget": lambda: made(libc.shmget(0, 4096, 0o1600), libc.shmctl), "msgget": lambda: made(libc.msgget(0, 0o1600), libc.msgctl),
        "semget": lambda: (one := libc.semget(0, 1, 0o1600)) >= 0 and libc.semctl(one, 0, 0) == 0,
        "mq_open": lambda: call(240, 180)(b"left", os.O_CREAT | os.O_RDWR, 0o600, None) and call(241, 181)(b"left"),
        "add_key": lambda: call(248, 217)(b"user", b"left", b"bits", 4, -2), "keyctl": lambda: call(250, 219)(0, -3, 1),
        "request_key": lambda: call(249, 218)(b"user", b"left", None, 0),
        "userfaultfd": lambda: call(323, 282)(1), "io_uring": lambda: call(425, 425)(1, ctypes.create_string_buffer(120)),
        "perf_event_open": lambda: call(298, 241)(ctypes.create_string_buffer(bytes([1, 0, 0, 0, 128]), 128), 0, -1, -1, 0),
        "bpf": lambda: call(321, 280)(0, ctypes.create_string_buffer(bytes([1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]), 128), 128),
        "process_vm_readv": lambda: libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0) >= 0,
        "name_to_handle_at": lambda: call(303, 264)(-100, b"/usr", ctypes.create_string_buffer(bytes([128]), 136), buffer, 0),
        "vmsplice": lambda: call(278, 75)(os.pipe()[1], None, 0, 0),
        "sched_setaffinity": system("sched_setaffinity", 0, 128, bytes([255] * 128)),
        "a large send buffer": lambda: __import__("socket").socketpair()[0].setsockopt(1, 7, 2**20) is None,
        "x32": lambda: platform.machine() == "x86_64" and libc.syscall(0x40000000 + 39) >= 0, "32-bit calls": int80,
        "the machine's memory": lambda: os.path.getmtime("/proc/meminfo") < 0 or fresh(), "access times": read_at,
    }
    ways |= {f"{path} exists": lambda path=path: os.path.exists(path) for path in KERNEL}
    open_ways = []
    for name, way in ways.items():
        try:
            if way(): open_ways.append(name)
        except (OSError, AttributeError):
            pass
    return ", ".join(open_ways) or "refused"
def made(one, control):  # and takes it away again: outside of a sandbox it would stay
    return one >= 0 and control(one, 0, None) == 0
KERNEL = ("/proc/1", "/proc/sys", "/proc/self", "/proc/loadavg", "/sys/fs/cgroup", "/sys/devices/system/cpu/cpu0", "/sys/kernel")
def read_at():  # whether reading a file leaves a time
    places = [os.path.join(folder, name) for folder in ("/usr/bin", os.path.dirname(os.__file__)) for name in os.listdir(folder)[:300]]
    files = [path for path in places if os.path.isfile(path) and os.access(path, os.R_OK)]
    before = [os.stat(path).st_atime_ns for path in files]
    for path in files: open(path, "rb").read(1)
    return before != [os.stat(path).st_atime_ns for path in files]
def fresh():  # whether /proc/meminfo follows what a process does
    before = open("/proc/meminfo").read()
    kept = bytearray(2**25); kept[::4096] = bytes([1]) * 2**13
    return open("/proc/meminfo").read() != before
def int80():  # a system call by the 32-bit door, in a child, as the answer may be its end
    if platform.machine() != "x86_64": return False
    if (pid := os.fork()) == 0:
        code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
        code.write(bytes.fromhex("53b814000000cd805bc3"))  # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
        ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
"""
