"""The command `qlab lecture`: a notebook as slides, in JupyterLab with its kernel, or as one folder of web pages.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import importlib.util
import secrets
import sys
from pathlib import Path
from urllib.parse import quote

from qlab.errors import not_installed
from qlab.folders import course, find_notebook
from qlab.lab_command import choose_port, launch

KEYS = """keys:
  right, down, space, Page Down     on; the keys of a remote control among them
  left, up, shift-space, Page Up    back
  Home, End                         the first and the last slide
  b or .                            a black screen, and back
  l                                 a pointer that follows the mouse
  f                                 full screen
  s                                 the speaker's notes in a window of their own
  Escape                            live: out of the slides and into JupyterLab; exported: all slides at a glance
An arrow key that a slider or an answer has in hand is theirs; Page Up and Page Down always turn the slides.

live: the copy lies in lectures/, made afresh each time; one that you have changed is kept there under another name, which is said.
Its cells run in their order while you speak; until a cell's turn has come its slide shows the stored output. Shift-Enter runs a
changed cell again."""


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("lecture", help="show a notebook as slides, live in JupyterLab or as one folder of web pages",
                                  description="Shows a notebook as slides, worked out from the notebook itself: one at every "
                                  "heading and before every figure. Nothing is fetched from the network.",
                                  epilog=KEYS, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("notebook", metavar="NOTEBOOK", help="a path, a name or a number such as 02; one from lectures/ opens as it is")
    command.add_argument("--short", action="store_true", help="slides of the headings marked (short path) alone")
    command.add_argument("--html", nargs="?", const="", metavar="FOLDER", help="write web pages with the stored outputs instead, "
                         "reveal.js and MathJax among them (default: lectures/ and the notebook's name)")
    command.add_argument("--port", type=int, help="port on 127.0.0.1 (default: the first free one from 8888 on)")
    command.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The slides live until Ctrl-C, or as a folder; exit status 0, or 1 for an error in one sentence."""
    root = course()
    path = find_notebook(args.notebook, root)
    if args.html is not None:
        return export(path, Path(args.html) if args.html else root / "lectures" / path.stem, args.short)
    for package in ("jupyterlab_slideshow", "jupyterlab_fonts"):
        if importlib.util.find_spec(package) is None:
            raise FileNotFoundError(not_installed(package.replace("_", "-"), extra="lecture"))
    port = choose_port(args.port)
    sys.modules.setdefault("rfc3987_syntax", None)  # as in launch: a second of each start
    from qlab.lecture import live

    copied, kept = live.write(path, root.resolve(), args.short)
    if kept:
        print(f"qlab: {copied.name} had been changed, and is kept as {kept.relative_to(root.resolve())}.", flush=True)
    start(root, copied, port, args.no_browser)
    return 0


def export(path: Path, folder: Path, short: bool) -> int:
    """Write the slides of a notebook into a folder, and say how many there are; exit status 0."""
    from qlab.lecture import html, live

    count = html.export(live.with_pictures(live.read(path), path.parent), folder, short)
    print(f"{folder / 'index.html'}: {count} slides; open it in a browser, no network is needed.")
    return 0


def start(root: Path, copied: Path, port: int, no_browser: bool) -> None:
    """JupyterLab at the copy, until Ctrl-C. Its settings and windows are the lecture's own: `qlab lab` opens as it was left."""
    from qlab.lecture import lab, live

    page, notes = copied.relative_to(root.resolve()).as_posix(), live.notes_page(copied)
    told = {"slides": f"lab/tree/{quote(page)}"}
    if notes.exists():
        told["speaker's notes"] = f"files/{live.FOLDER}/{quote(notes.name)}"
    print(f"qlab: starting the slides of {copied.name}; stop them with Ctrl-C. f fills the screen; qlab lecture --help lists the keys.",
          flush=True)
    more = lab.settings(root.resolve() / live.FOLDER / ".jupyter", told)
    launch(root, page, port, no_browser, [*more, f"--IdentityProvider.token={secrets.token_hex(24)}"])  # with it Jupyter tells no address
