"""Makes the environment of a fresh clone: python3 -m qlab.bootstrap, from the clone's folder, with any Python from 3.6 on.

    .venv is made with Python 3.11 to 3.14, and qlab installed into it: pip install -e .[course] -c constraints.txt
    python3 -m qlab.bootstrap test adds what tests and graders need; --cpu and --cuda choose torch's build
    python3 -m qlab.bootstrap course lecture adds an extra of pyproject.toml, which from then on is kept as new as the rest
    .venv/qlab-installed holds the sha256 of what was installed, which set and which extras; while they agree, there is nothing to do

An older Python must be able to read this file, to say that it is too old: no newer syntax here, and nothing but the standard library.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import sys

from qlab.bootstrap_machine import ROOT, Problem, call, check_fits, fits, has_venv, output, say, works

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # where pytorch.org keeps torch for Linux without CUDA
COURSE, TEST = "course", "test"  # the sets, extras of pyproject.toml; the second holds the first
EXTRAS = ("lecture", "site", "hub", "browser", "nbgrader", "pins")  # what no set holds, a few tens of megabytes each
GIGABYTES = {COURSE: (0.4, 1.4), TEST: (0.7, 2.7)}  # to download, and on the disk then
CUDA_GIGABYTES = (2.5, 4.0)  # more, where torch comes with CUDA and Triton
UNFINISHED, EMPTY = "unfinished", "empty"


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


def holds():
    """(sha256, set, extras) of what .venv was installed from; ("", "", []) if that is not known."""
    words = (read_stamp() or "").split()
    if len(words) == 1 and len(words[0]) == 64:
        return words[0], TEST, []  # of an earlier qlab, which installed everything
    return (words[0], words[1], words[2:]) if len(words) >= 2 else ("", "", [])


def venv_python():
    return os.path.join(ROOT, ".venv", "Scripts", "python.exe") if os.name == "nt" else os.path.join(ROOT, ".venv", "bin", "python")


def check_machine():
    """Raises Problem if no .venv can be made here."""
    if not has_venv():
        version = "{}.{}".format(*sys.version_info[:2])
        raise Problem(f"Python {version} has no venv module: install it (Debian, Ubuntu: sudo apt install python{version}-venv).")
    if not os.access(ROOT, os.W_OK):
        raise Problem(f"the folder {ROOT} is read-only: copy it to a place where you may write.")


def make_venv(which):
    """Makes .venv, or keeps the one that is there if it works and its installation was not cut off."""
    folder, stamp = os.path.join(ROOT, ".venv"), read_stamp()
    if stamp not in ("", UNFINISHED) and works(venv_python()):
        return
    if os.path.lexists(folder):
        if os.path.islink(folder):
            raise Problem(f"{folder} is a link to what is no working environment: remove the link, or mend what it leads to.")
        ours = os.path.isdir(folder) and (stamp is not None or os.path.exists(os.path.join(folder, "pyvenv.cfg")) or not os.listdir(folder))
        if not ours:
            raise Problem(f"{folder} is not a virtual environment: rename or remove it.")
        say("the environment in .venv is incomplete or broken: making it anew.")
        shutil.rmtree(folder)
    check_space(*GIGABYTES[which])
    os.mkdir(folder)
    write_stamp(UNFINISHED)
    base = getattr(sys, "_base_executable", None) or sys.executable  # not the .venv's own Python, just removed
    if call([base, "-m", "venv", folder]) != 0:
        raise Problem(f"{base} could not make a virtual environment in {folder}; its own message is above.")
    write_stamp(EMPTY)


def check_space(download, disk):
    """Raises Problem if an installation of so many gigabytes does not fit: pip keeps each wheel once more, and unpacks it elsewhere."""
    free, needed = shutil.disk_usage(ROOT).free / 1e9, disk + 2 * download
    if free < needed:
        raise Problem(f"{free:.1f} GB are free on the disk of {ROOT}, and the installation needs {needed:.1f} GB.")


def pip(*arguments):
    """The exit code of pip in .venv; its output goes to the terminal."""
    return call([venv_python(), "-m", "pip", *arguments, "--disable-pip-version-check"])


def pinned(name):
    """The version that constraints.txt pins."""
    with open(os.path.join(ROOT, "constraints.txt")) as file:
        found = re.search(r"^%s==([^\s;]+)" % name, file.read(), re.M)
    if not found:
        raise Problem(f"constraints.txt in {ROOT} does not pin {name}: restore it (git checkout constraints.txt).")
    return found.group(1)


def installed_torch():
    """The version of torch in .venv, such as "2.13.0+cpu"; "" if there is none."""
    return output([venv_python(), "-c", "import importlib.metadata; print(importlib.metadata.version('torch'))"]).strip()


def offered(version, *index):
    """Whether that version of torch can be had with pip's own settings, or from another index."""
    versions = output([venv_python(), "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check", *index])
    return version in re.split(r"[\s,]+", versions)


def has_nvidia_driver():
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia")


def choose_torch(asked):
    """(what pip is told about torch first, whether CUDA comes along); asked: "cpu", "cuda", or None, which keeps a right version.

    On Linux, the wheel of that plain name brings CUDA, 2.5 GB more to download. Where no driver could use it, torch's CPU build is
    taken, from where pip's own settings find it, else from where pytorch.org keeps it; if that is not reached, the plain one.
    """
    version, there = pinned("torch"), installed_torch()
    cpu = version + "+cpu"
    if not sys.platform.startswith("linux"):
        if asked == "cuda":
            raise Problem(f"--cuda is for Linux: install torch {version} with CUDA into .venv as pytorch.org says, and it is kept.")
        return [], False
    if there.split("+")[0] == version and (asked is None or (asked == "cpu") == there.endswith("+cpu")):
        return [], False
    if asked == "cuda":
        return ["torch===" + version], True  # === is this name alone, not also the CPU build
    plain_is_cpu = offered(cpu)
    if asked is None and has_nvidia_driver():
        return [], not plain_is_cpu
    if plain_is_cpu:
        return ["torch==" + cpu], False
    if offered(cpu, "--index-url", CPU_BUILDS, "--timeout", "15", "--retries", "0"):
        return ["torch==" + cpu, "--no-deps", "--index-url", CPU_BUILDS], False
    if asked == "cpu":
        raise Problem(f"torch {cpu} was not found at {CPU_BUILDS}: run the same command again when that address can be reached.")
    say(f"torch's CPU build was not found at {CPU_BUILDS}: the plain one brings CUDA, {CUDA_GIGABYTES[0]} GB more to download.")
    return [], True


def install(goal, which, extras, asked):
    """Runs pip in .venv; the stamp says unfinished while it does, and after a plain failure what it said before."""
    before = read_stamp()
    new = before == EMPTY
    replaced = installed_torch()
    torch, cuda = choose_torch(asked)
    download, disk = (gigabytes + (more if cuda else 0) for gigabytes, more in zip(GIGABYTES[which], CUDA_GIGABYTES))
    if new:
        check_space(download, disk)
        minutes = download * 8000 / 50 / 60 + (1 if which == COURSE else 2) + (2 if cuda else 0)
        say(f"installing into .venv: {download:.1f} GB to download, {disk:.1f} GB on the disk, about {minutes:.0f} minutes at 50 Mbit/s.")
    else:
        say("installing into .venv what is missing or has changed.")
    write_stamp(UNFINISHED)
    # Students' files are compiled when they are first imported: half a minute less to wait here, and 0.2 GB less on the disk.
    compiling = ["--no-compile"] if which == COURSE and not os.environ.get("PYTHONDONTWRITEBYTECODE") else []
    code = pip("install", *compiling, *torch, "-c", "constraints.txt") if torch else 0
    code = code or pip("install", *compiling, "-e", ".[{}]".format(",".join([which, *extras])), "-c", "constraints.txt")
    if code != 0:
        write_stamp(before)
        if shutil.disk_usage(ROOT).free < 3e8:
            raise Problem(f"the disk of {ROOT} is full: free some space and run the same command again.")
        raise Problem(f"pip could not install (exit code {code}): its own message is above, and the same command goes on from here.")
    if torch and torch[0].endswith("+cpu") and replaced and not replaced.endswith("+cpu"):  # what only CUDA's build needs
        with open(os.path.join(ROOT, "constraints.txt")) as file:
            names = re.findall(r"^(?:nvidia|cuda)-[\w.-]+", file.read(), re.M)
        pip("uninstall", "-y", "-qq", *names, *(["triton"] if which == COURSE else []))
    write_stamp(" ".join([goal, which, *extras]))


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


def installed(goal, which, extras=()):
    """Whether .venv holds what the lists ask for now, in that set or the larger one, with these extras."""
    held, its_set, its_extras = holds()
    return held == goal and its_set in (which, TEST) and set(extras) <= set(its_extras) and os.path.exists(venv_python())


def ensure(which, extras, torch):
    """Makes sure that .venv holds a set and extras of what pyproject.toml and constraints.txt ask for; returns the exit code."""
    goal = wanted()
    if torch is None and installed(goal, which, extras):
        return 0
    other = check_fits()
    if other:
        return call(other + ["-m", "qlab.bootstrap", which] + extras + (["--" + torch] if torch else []))
    check_machine()
    with alone():
        if torch is not None or not installed(goal, which, extras):
            make_venv(which)
            _, its_set, its_extras = holds()
            install(goal, TEST if its_set == TEST else which, sorted(set(its_extras) | set(extras)), torch)
            say("installed.")
    return 0


def main(arguments=()):
    parser = argparse.ArgumentParser(prog="python3 -m qlab.bootstrap", description="Makes .venv and installs qlab into it.")
    parser.add_argument("sets", nargs="*", metavar="SET", help="course, what the notebooks need (default), or test, that and what the "
                        "tests do; and extras: " + ", ".join(EXTRAS))
    build = parser.add_mutually_exclusive_group()
    build.add_argument("--cpu", dest="torch", action="store_const", const="cpu", help="torch's build without CUDA")
    build.add_argument("--cuda", dest="torch", action="store_const", const="cuda", help="torch's build for NVIDIA GPUs")
    parser.add_argument("--fits", action="store_true", help="install nothing; exit code 0 if this Python can be used")
    asked = parser.parse_args(arguments)
    if asked.fits:
        return 0 if fits() else 1
    try:
        for name in asked.sets:
            if name not in (COURSE, TEST) + EXTRAS:
                raise Problem(f"there is no set {name}: choose among course, test, " + ", ".join(EXTRAS) + ".")
        return ensure(TEST if TEST in asked.sets else COURSE, [name for name in EXTRAS if name in asked.sets], asked.torch)
    except Problem as problem:
        message, code = str(problem), 1
    except OSError as error:
        message, code = f"cannot change {error.filename or ROOT} ({error.strerror or error}).", 1
    except KeyboardInterrupt:
        message, code = "the installation was interrupted: run the same command to make it anew.", 130
    print("qlab: " + message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
