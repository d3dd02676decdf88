"""The machine that the course is installed on: whether torch has a wheel for it, which Python fits, how a command runs there.

An older Python must be able to read this file, as it must bootstrap.py: no newer syntax here, and nothing but the standard library.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST = (3, 11), (3, 14)  # the Pythons that the pinned torch has wheels for; pyproject.toml says the same
VERSIONS = ("3.13", "3.12", "3.11", "3.14")  # looked for if the Python that runs this does not fit


class Problem(Exception):
    """Something the user must settle; the message says what and how."""


def say(text):
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"  # a folder's name may have letters that this terminal cannot show
    print(("qlab: " + text).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def call(command, quiet=False):
    """The exit code of a command, run in the clone's folder; its output goes to the terminal unless quiet."""
    sink = subprocess.DEVNULL if quiet else None
    environment = dict(os.environ, PIP_USER="0")  # a user's "install into my home" setting makes pip refuse to work in a .venv
    try:
        return subprocess.call(command, cwd=ROOT, stdout=sink, stderr=sink, env=environment)
    except OSError:
        return 127


def output(command):
    """What a command prints; "" if it fails."""
    try:
        return subprocess.check_output(command, cwd=ROOT, stderr=subprocess.DEVNULL, universal_newlines=True)
    except (OSError, subprocess.CalledProcessError):
        return ""


def why_not_this_machine():
    """Why the pinned torch has no wheel for this system, whatever the Python: a sentence; "" if it has."""
    machine = platform.machine()
    if sys.platform.startswith("linux"):
        try:
            name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
        except (AttributeError, OSError, ValueError):
            name, version = "musl", ""
        if name != "glibc":
            return "this Linux stands on musl, as Alpine does, and torch has no wheel for it: use one with glibc, such as Debian or Ubuntu."
        if tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
            return "this Linux has glibc " + version + ", and torch needs 2.28 or newer (Debian 10, Ubuntu 20.04 and later have it)."
        if machine not in ("x86_64", "aarch64"):
            return "torch has no wheel for a processor of the kind " + machine + ": use a machine with x86-64 or 64-bit ARM."
    elif sys.platform == "darwin":
        version = platform.mac_ver()[0]
        if machine == "x86_64" and output(["sysctl", "-n", "hw.optional.arm64"]).strip() != "1":  # Apple silicon may run Intel programs
            return "this is an Intel Mac, and torch has wheels for Apple silicon alone since 2.3: use another machine."
        if version and not version.startswith("10.16") and int(version.split(".")[0]) < 14:  # 10.16: what newer ones tell old programs
            return "this is macOS " + version + ", and torch has no wheel for it: macOS 14 or newer on Apple silicon is needed."
    elif sys.platform != "win32":
        return "torch has no wheel for " + sys.platform + ": use Linux, macOS or Windows."
    return ""


def why_not_this_python():
    """Why the libraries have no wheel for this interpreter: a clause after "Python 3.9.2 "; "" if they have."""
    if sys.version_info[:2] < OLDEST:
        return "is too old"
    if sys.version_info[:2] > NEWEST:
        return "is too new: the libraries have no wheels for it"
    if sys.implementation.name != "cpython":
        return "is " + sys.implementation.name + ", and the libraries have wheels for CPython"
    if sys.maxsize <= 2**32:
        return "is a 32-bit program, and the libraries have 64-bit wheels"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "is a free-threaded build, and not all libraries have wheels for it"
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "is for Intel Macs, which torch has no wheels for any more: on Apple silicon, install the Python for arm64"
    if sysconfig.get_platform() == "win-arm64":
        return "is for Windows on ARM, and the libraries have wheels for x86-64: install that Python, which runs there, too"
    return ""


def works(python):
    """Whether that interpreter of a .venv starts, is of a version that fits, and has pip."""
    return call([python, "-c", "import sys; assert %s <= sys.version_info[:2] <= %s; import pip" % (OLDEST, NEWEST)], quiet=True) == 0


def other_python():
    """The command of the first Python that fits, on the PATH or known to the launcher of Windows; None if there is none."""
    launcher = shutil.which("py") if sys.platform == "win32" else None
    commands = [[shutil.which("python" + version)] for version in VERSIONS] + [[shutil.which("python3")]]
    commands += [[launcher, "-" + version] for version in VERSIONS]
    for command in commands:
        if command[0] and call(command + ["-m", "qlab.bootstrap", "--fits"], quiet=True) == 0:
            return command
    return None


def check_fits():
    """Raises Problem if no Python can do it on this machine; the command of another Python if this one cannot, else None."""
    why = why_not_this_machine()
    if why:
        raise Problem(why)
    why = why_not_this_python()
    if not why:
        return None
    this, other = "Python {}.{}.{} ".format(*sys.version_info[:3]), other_python()
    if other is None:
        how = "py -3.12 -m qlab.bootstrap" if sys.platform == "win32" else "make PYTHON=python3.12 lab"
        needs = "qlab needs Python 3.11 to 3.14, 64 bits: install one and name it: " + how
        raise Problem(this + why + "; " + needs + ".")
    say(this + why + "; using " + " ".join(other) + ".")
    return other


def has_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def fits():
    """Whether this Python can make the environment on this machine."""
    return not why_not_this_machine() and not why_not_this_python() and has_venv()
