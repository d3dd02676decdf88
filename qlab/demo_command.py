"""The command `qlab demo`: a notebook's live figure alone and large, for a beamer; without a notebook, the list of all.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import os
import secrets
import sys
import tempfile
import textwrap
from pathlib import Path

from qlab.errors import not_installed
from qlab.folders import course, find_notebook
from qlab.lab_command import choose_port

KEYS = "Arrow keys move the slider in hand, Tab goes on to the next control, s saves a still as PNG, f fills the screen."



def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("demo", help="show a notebook's live figure alone and large, for a beamer; without a number, list them",
                                  description=f"Shows a notebook's live figure alone, as large as the window. {KEYS}")
    command.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help="a path, a name or a number such as 02 (default: list all)")
    command.add_argument("--stills", metavar="FOLDER", default=".", help="where the key s saves (default: the current folder)")
    command.add_argument("--port", type=int, help="port on 127.0.0.1 (default: the first free one from 8888 on)")
    command.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The figures of a notebook until Ctrl-C, or the list of all; exit status 0, or 1 for an error in one sentence."""
    root = course()
    if args.notebook is None:
        return show_list(root)
    path, folder = find_notebook(args.notebook, root), Path(args.stills).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} for stills.")
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's check of IRIs, which no notebook has: a second of each start
    try:
        import voila.app  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError(not_installed("Voila", extra="lecture")) from None
    import nbformat

    from qlab.lecture import demo, served

    notebook = demo.page(path, folder)
    port, token = choose_port(args.port), secrets.token_urlsafe(24)
    own = Path(demo.__file__).parent  # its folder voila/templates holds the page's template
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(own), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    with tempfile.TemporaryDirectory(prefix="qlab-demo-") as made:
        page, address = Path(made) / path.name, f"http://127.0.0.1:{port}/?token={token}"
        nbformat.write(notebook, page)
        print(f"qlab: {path.stem} at {address} until Ctrl-C. {KEYS}", flush=True)
        served.serve(page, port, token, address, not args.no_browser)
    return 0


def show_list(root: Path) -> int:
    """Prints every live figure of the course with the first sentence about it."""
    from qlab.lecture import demo

    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for figure in demo.figures(path):
            print(textwrap.fill(f"{path.stem[:2]}  {figure.sentence}", 110, subsequent_indent="    "))
    return 0
