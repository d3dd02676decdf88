"""Small submissions that do what a hostile student would: `attack` runs them and judges. Each defines attack(target)."""

ORPHAN = "86399.125"  # seconds that an orphan sleeps: a number that nothing else sleeps

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
# Each holds memory of one kind, and answers how many MiB it got: in many processes, and where no process shows it.
MANY = """
import os, select, time
def attack(target):
    told, tell = os.pipe()
    children = []
    for child in range(30):
        children.append(os.fork())
        if children[-1] == 0:
            kept = []
            try:
                for _ in range(target // 8):
                    kept.append(bytearray(2**20))
                    kept[-1][::4096] = bytes([1]) * 256
                    os.write(tell, bytes([child]))
            except MemoryError:
                pass
            time.sleep(100)
    taken = b""
    while select.select([told], [], [], 1)[0]:
        taken += os.read(told, 4096)
    return sum(taken.count(child) for child, process in enumerate(children) if os.waitpid(process, os.WNOHANG)[0] == 0)
"""
UNSEEN = """
import ctypes, mmap, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
kept = []
def write(file):
    kept.append(file)
    return os.write(file, bytes(2**24)) / 2**20
def named(folder):
    return write(os.open(f"{folder}/{len(kept)}", os.O_RDWR | os.O_CREAT))
def memfd():
    return write(os.memfd_create("kept"))
def mapped(*args, **words):
    whole = mmap.mmap(*args, **words)
    whole[::4096] = bytes([1]) * (len(whole) // 4096)
    kept.append(whole)
def system_v():
    segment = libc.shmget(0, 2**26, 0o1600)
    place = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)  # it goes with the last process that has it
    if place in (None, 2**64 - 1): raise OSError
    ctypes.memset(place, 1, 2**26)
def zeros():
    with open("/dev/zero", "r+b") as device: mapped(device.fileno(), 2**26)
def sockets():
    held = 0
    for _ in range(100):
        for one in socket.socketpair():
            kept.append(one)
            one.setblocking(False)
            try:
                while True: held += one.send(bytes(2**16))
            except BlockingIOError:
                pass
    return held / 2**20
def attack(target):
    taken, ways = 0, {}
    kinds = {"/tmp": lambda: named("/tmp"), "/dev/shm": lambda: named("/dev/shm"), "memfd_create": memfd, "System V": system_v,
             "shared pages": lambda: mapped(-1, 2**26), "/dev/zero": zeros, "sockets": sockets}
    for name, take in kinds.items():
        try:
            while taken < target:
                got = take() or 64
                taken, ways[name] = taken + got, ways.get(name, 0) + got
        except (OSError, ValueError):
            pass
    time.sleep(0.3)
    return [round(taken), ", ".join(f"{got:.0f} by {name}" for name, got in ways.items())]
"""
