"""Makes the environment of a fresh clone: python3 -m qlab.bootstrap, from the clone's folder, with any Python from 3.6 on.

    .venv is made with Python 3.11 or newer, and qlab installed into it: pip install -e .[test] -c constraints.txt
    .venv/qlab-installed holds the sha256 of what was installed; while it agrees, there is nothing to do

An older Python must be able to read this file, to say that it is too old: no newer syntax here, and nothing but the standard library.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14")  # looked for on the PATH if the one that runs this is too old
FREE_BYTES = 3 * 10**9  # an installation takes half of it, with pip's temporary files; more where torch comes with its CUDA libraries
UNFINISHED = "unfinished"


class Problem(Exception):
    """Something the user must settle; the message says what and how."""


def say(text):
    print("qlab: " + text, flush=True)


def wanted():
    """What the stamp must hold: the sha256 of pyproject.toml, constraints.txt and this folder's place (a .venv cannot be moved)."""
    digest = hashlib.sha256(ROOT.encode("utf-8", "surrogateescape"))
    for name in ("pyproject.toml", "constraints.txt"):
        try:
            with open(os.path.join(ROOT, name), "rb") as file:
                digest.update(file.read())
        except OSError as error:
            raise Problem(f"cannot read {name} in {ROOT} ({error.strerror}): this command belongs in a clone of qlab.") from None
    return digest.hexdigest()


def stamp_path():
    return os.path.join(ROOT, ".venv", "qlab-installed")


def read_stamp():
    """The stamp's text; None if there is none."""
    try:
        with open(stamp_path()) as file:
            return file.read().strip()
    except OSError:
        return None


def write_stamp(text):
    if text is None:
        os.remove(stamp_path())
    else:
        with open(stamp_path(), "w") as file:
            file.write(text + "\n")


def venv_python():
    return os.path.join(ROOT, ".venv", "Scripts", "python.exe") if os.name == "nt" else os.path.join(ROOT, ".venv", "bin", "python")


def call(command, quiet=False):
    """The exit code of a command, run in the clone's folder; its output goes to the terminal unless quiet."""
    sink = subprocess.DEVNULL if quiet else None
    environment = dict(os.environ, PIP_USER="0")  # a user's "install into my home" setting makes pip refuse to work in a .venv
    try:
        return subprocess.call(command, cwd=ROOT, stdout=sink, stderr=sink, env=environment)
    except OSError:
        return 127


def works(python, code="import pip"):
    """Whether that interpreter starts, is new enough, and runs the code."""
    return call([python, "-c", f"import sys; assert sys.version_info >= {OLDEST}; {code}"], quiet=True) == 0


def newer_python():
    """The first Python on the PATH that is new enough; None if there is none."""
    for name in CANDIDATES:
        path = shutil.which(name)
        if path and works(path, "import venv, ensurepip"):
            return path
    return None


def check_machine():
    """Raises Problem if no .venv can be made here."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = "{}.{}".format(*sys.version_info[:2])
        raise Problem(f"Python {version} has no venv module: install it (Debian, Ubuntu: sudo apt install python{version}-venv).") from None
    if not os.access(ROOT, os.W_OK):
        raise Problem(f"the folder {ROOT} is read-only: copy it to a place where you may write.")


def make_venv():
    """Makes .venv, or keeps the one that is there if it works and its installation was not cut off."""
    folder, stamp = os.path.join(ROOT, ".venv"), read_stamp()
    if stamp not in ("", UNFINISHED) and works(venv_python()):
        return
    if os.path.lexists(folder):
        ours = os.path.isdir(folder) and (stamp is not None or os.path.exists(os.path.join(folder, "pyvenv.cfg")) or not os.listdir(folder))
        if not ours:
            raise Problem(f"{folder} is not a virtual environment: rename or remove it.")
        say("the environment in .venv is incomplete or broken: making it anew.")
        shutil.rmtree(folder)
    free = shutil.disk_usage(ROOT).free
    if free < FREE_BYTES:
        raise Problem(f"{free / 1e9:.1f} GB are free on the disk of {ROOT}, and the installation needs {FREE_BYTES / 1e9:.0f} GB.")
    os.mkdir(folder)
    write_stamp(UNFINISHED)
    base = getattr(sys, "_base_executable", None) or sys.executable  # not the .venv's own Python, just removed
    if call([base, "-m", "venv", folder]) != 0:
        raise Problem(f"{base} could not make a virtual environment in {folder}; its own message is above.")


def install(goal):
    """Runs pip in .venv; the stamp says unfinished while it does, and after a plain failure what it said before."""
    before = read_stamp()
    write_stamp(UNFINISHED)
    say("installing qlab and what it needs into .venv: some minutes the first time.")
    code = call([venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "-e", ".[test]", "-c", "constraints.txt"])
    if code != 0:
        write_stamp(before)
        if shutil.disk_usage(ROOT).free < FREE_BYTES / 10:
            raise Problem(f"the disk of {ROOT} is full: free some space and run the same command again.")
        raise Problem(f"pip could not install (exit code {code}, its message is above): check the network and run the same command again.")
    write_stamp(goal)


@contextlib.contextmanager
def alone():
    """Waits until no other process installs into this folder (where the system has file locks; Windows goes on)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(os.path.join(ROOT, "pyproject.toml")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another installation is running in this folder: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a network folder without locks
        yield


def installed(goal):
    return read_stamp() == goal and os.path.exists(venv_python())


def ensure():
    """Makes sure that .venv holds what pyproject.toml and constraints.txt ask for; returns the exit code."""
    goal = wanted()
    if installed(goal):
        return 0
    if sys.version_info < OLDEST:
        found, python = "{}.{}.{}".format(*sys.version_info[:3]), newer_python()
        if python is None:
            raise Problem(f"Python {found} was found, and qlab needs 3.11 or newer: install one and name it: make PYTHON=python3.12 lab.")
        say(f"Python {found} is too old: using {python}.")
        return call([python, "-m", "qlab.bootstrap"])
    check_machine()
    with alone():
        if not installed(goal):
            make_venv()
            install(goal)
            say("installed.")
    return 0


def main():
    try:
        return ensure()
    except Problem as problem:
        message, code = str(problem), 1
    except OSError as error:
        message, code = f"cannot change {error.filename or ROOT} ({error.strerror}).", 1
    except KeyboardInterrupt:
        message, code = "the installation was interrupted: run the same command to make it anew.", 130
    print("qlab: " + message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
