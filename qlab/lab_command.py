"""The command `qlab lab`: the course in JupyterLab, on a free port of this machine.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from qlab.folders import WELCOME, course, find_notebook
from qlab.translate import known, language, tr

PORT = 8888


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("lab", help="open the course in JupyterLab")
    command.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help=f"a path, a name or a number such as 02 (default: {WELCOME})")
    command.add_argument("--port", type=int, help=f"port on 127.0.0.1 (default: the first free one from {PORT} on)")
    command.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    command.add_argument("--lang", metavar="LANGUAGE", help="open the pages in that language, zh for Chinese, where they are translated; "
                         "they are made in a folder of that name (default: QLAB_LANG, or English)")
    command.set_defaults(run=run)


def why_taken(port: int) -> str:
    """Why nothing can listen on 127.0.0.1 at this port; "" if something can."""
    with socket.socket() as probe:
        if os.name == "posix":  # a port whose last connection has just closed is free; on Windows this option means something else
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return tr("needs administrator rights")
        except OSError:
            return tr("is taken by another program")
    return ""


def choose_port(asked: int | None) -> int:
    """The port asked for, if it is free; without one, the first free port from 8888 on."""
    if asked is not None:
        if not 1 <= asked <= 65535:
            raise ValueError(tr("port is {asked}, and must be from 1 to 65535.", asked=asked))
        if why := why_taken(asked):
            raise OSError(tr("port {asked} {why}: choose another one, or none to get the first free one.", asked=asked, why=why))
        return asked
    for port in range(PORT, PORT + 100):
        if not why_taken(port):
            if port != PORT:
                print(tr("qlab: port {taken} is taken, using {port}.", taken=PORT, port=port), flush=True)
            return port
    raise OSError(tr("ports {first} to {last} are all taken: name a free one (qlab lab --port P).", first=PORT, last=PORT + 99))


def run(args: argparse.Namespace) -> int:
    if args.lang is not None:
        os.environ["QLAB_LANG"] = known(args.lang)  # the kernels inherit it: their widgets and check() speak
    asked = language()
    root = course()
    notebook = find_notebook(args.notebook or WELCOME, root).relative_to(root.resolve()).as_posix()
    if asked:
        from qlab.translate import edition

        notebook = edition.open_in(root.resolve(), asked, notebook)
    port = choose_port(args.port)
    print(tr("qlab: starting JupyterLab in {root}; stop it with Ctrl-C.", root=root), flush=True)
    launch(root, notebook, port, args.no_browser)
    return 0


def launch(root: Path, notebook: str, port: int, no_browser: bool, more: Sequence[str] = ()) -> None:
    """JupyterLab at a notebook of the folder root, until Ctrl-C; more: further settings, as its command line has them."""
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's check of IRIs, which no notebook has: a second of each start
    from jupyterlab.labapp import LabApp

    from qlab.lab.jupyter import enable

    LabApp.launch_instance([
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{quote(notebook)}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",  # nothing is fetched from outside
        "--ServerApp.allow_root=True",     # in a container one is root, and the server listens to this machine only
        "--ServerApp.answer_yes=True",     # one Ctrl-C stops it
        "--Application.log_level=WARN",
        *more,
        *enable(),
        *(["--ServerApp.open_browser=False"] if no_browser else []),
    ])
