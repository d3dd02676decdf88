"""The command `qlab site`: the course as a static website, offline.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import re
import subprocess
from pathlib import Path

from qlab.folders import clone


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("site", help="build the course as a website in site/, offline", description="Builds the course as a "
                                  "website. No notebook is run: pages show what is stored. Live figures are drawn in their states by the "
                                  "statements that they need, and kept in build/frames until something they come from changes.")
    command.add_argument("--out", default="site", metavar="FOLDER", help="where the site goes, in the clone (default: site)")
    command.add_argument("--repository", metavar="URL", help="where the course is published, such as https://github.com/owner/name: for "
                         "links to files and for Binder (default: the clone's origin; without one these are left out)")
    command.add_argument("--no-frames", action="store_true", help="leave live figures as one picture: a quick look at the text")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where Sphinx had something to say, a link that leads nowhere say; the site is there all the same."""
    from qlab.site.build import build

    root = clone()
    out = root / args.out
    warnings = build(root, out, address(args.repository) or origin(root), [] if args.no_frames else None,
                     lambda line: print(f"qlab: {line}", flush=True))
    for warning in warnings:
        print(warning)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages, {size / 1e6:.0f} MB")
    return 1 if warnings else 0


def address(url: str | None) -> str | None:
    """A repository's address in the web, of what git calls it; None for a folder, or nothing.

    >>> address("git@github.com:owner/name.git"), address("https://gitlab.com/owner/name.git"), address("/srv/course")
    ('https://github.com/owner/name', 'https://gitlab.com/owner/name', None)
    """
    found = re.fullmatch(r"(?:git@|ssh://git@|https?://)(?:[^@/]*@)?([\w.-]+\.[a-z]+)[:/](\S+?/\S+?)(?:\.git)?/?", url or "")
    return f"https://{found[1]}/{found[2]}" if found else None


def origin(root: Path) -> str | None:
    """The address of the clone's origin, if it has one."""
    try:
        told = subprocess.run(["git", "remote", "get-url", "origin"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return address(told.stdout.strip())
