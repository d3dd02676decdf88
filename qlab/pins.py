"""qlab pins: shows that the pins of constraints.txt resolve on every Python and platform that the course promises, and renews them.

    qlab pins                       resolves pyproject.toml under constraints.txt for each of PYTHONS and PLATFORMS; installs nothing
    qlab pins --write               one resolution for all of them: adds to constraints.txt what is missing, keeps the versions that fit
    qlab pins --write --upgrade     the same with the newest versions; or --upgrade-package NAME

The resolver is uv's, which can answer for another machine than this one; it asks the package index, so it needs the network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qlab import saving
from qlab.errors import not_installed

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11.0", "3.11.5", "3.12.0", "3.13.0", "3.14.0")  # the first of each; soupsieve 4 begins with 3.11.5
EVERYTHING = ("--all-extras",)
PLATFORMS = {  # uv's names, and the extras; wheels only. kmeans1d, for a test, has one for glibc 2.34 and needs a C++ compiler before
    "x86_64-manylinux_2_28": ("--extra", "course"), "aarch64-manylinux_2_28": ("--extra", "course"),
    "x86_64-manylinux_2_34": EVERYTHING, "aarch64-manylinux_2_34": EVERYTHING,
    "x86_64-pc-windows-msvc": EVERYTHING, "aarch64-apple-darwin": EVERYTHING,
}  # fmt: skip
HEADER = '# The tested set: pip install -e .[test] -c constraints.txt. Written by make pins; CONTRIBUTING.md, "Releases", says how.\n'


def find_uv() -> str:
    """The path of uv: .venv's, else the PATH's. Raises FileNotFoundError if there is none."""
    found = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    if found is None:
        raise FileNotFoundError(not_installed("uv", extra="pins"))
    return found


def pins(path: Path) -> list[Requirement]:
    """The pins of a constraints file, each name==version, perhaps with a marker."""
    return [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith(("#", "-"))]


def resolve(uv: str, python: str, platform: str) -> str:
    """Why the pins do not resolve there, in uv's words; "" if they do, to pinned packages alone."""
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:", "-c", "constraints.txt",
               *PLATFORMS[platform], "--python-version", python, "--python-platform", platform, "pyproject.toml"]
    macos = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that torch has a wheel for
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **macos})
    if run.returncode:
        return run.stderr.strip()
    pinned = {canonicalize_name(pin.name) for pin in pins(ROOT / "constraints.txt")}
    loose = [line for line in run.stdout.splitlines() if "==" in line and canonicalize_name(line.partition("==")[0]) not in pinned]
    return f"not pinned: {', '.join(loose)}" if loose else ""


def check() -> int:
    """Prints a line for each Python and platform; returns 1 if the pins do not resolve somewhere, else 0."""
    uv = find_uv()
    places = [(python, platform) for platform in PLATFORMS for python in PYTHONS]
    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(lambda place: resolve(uv, *place), places))
    for (python, platform), why in zip(places, reasons):
        print(f"Python {python:7} {platform:23} {'resolves' if not why else why}")
    return 1 if any(reasons) else 0


def write(options: list[str]) -> int:
    """Renews constraints.txt by one resolution for every Python and platform; returns uv's exit code. options: more of uv's own."""
    path = ROOT / "constraints.txt"
    command = [find_uv(), "pip", "compile", "--universal", "--python-version", PYTHONS[0], "--all-extras", "--quiet", "--no-header",
               "--no-annotate", "--output-file", path.name, *options, "pyproject.toml"]
    code = subprocess.call(command, cwd=ROOT, stdout=subprocess.DEVNULL)  # it prints the file, too
    if code == 0:
        saving.write({path: (HEADER + path.read_text()).encode()})
    return code


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="qlab pins", allow_abbrev=False,
                                     description="Shows that the pins resolve on every Python and platform.")
    parser.add_argument("--write", action="store_true", help="renew constraints.txt; other options are those of uv pip compile")
    asked, options = parser.parse_known_args(args)
    if options and not asked.write:
        parser.error(f"unknown: {' '.join(options)}")
    return write(options) if asked.write else check()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
