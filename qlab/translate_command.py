"""The command `qlab translate`: how much of another edition is done, and the files that a translator fills.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
from pathlib import Path

MUST = ("00", "01", "02", "03")  # the pages that are promised, with their exercise sets


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("translate", help="say how much of the Chinese edition is done, or refresh what a translator fills",
                                  description="Without --check it writes translations/zh/: what is done stays, and what is missing or "
                                  "stale gets the English text below it.")
    command.add_argument("names", nargs="*", metavar="PAGE", help="a path, a name or a number such as 02, with its exercise set (default: "
                         "all pages that somebody has begun)")
    command.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something is stale or broken, or missing "
                         f"in {MUST[0]} to {MUST[-1]}")
    command.add_argument("--lang", default="zh", help="the language (default: zh)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where --check finds something, or for an error in one sentence."""
    from qlab.folders import course
    from qlab.translate import known, progress

    asked = known(args.lang)
    if not asked:
        raise ValueError("the pages are written in English: name another language with --lang.")
    root = course()
    paths = pages(args.names, root)
    if args.check:
        lines, good = progress.check(root, asked, paths, MUST)
        print("\n".join(lines))
        return 0 if good else 1
    for path in progress.refresh(root, asked, paths if args.names else None):
        print(path)
    return 0


def pages(names: list[str], root: Path) -> list[Path]:
    """The notebooks and exercise sets meant: of a number or a name both, of a path the one; all without names.

    Raises ValueError for a notebook that is no page of the course.
    """
    from qlab.folders import find_notebook

    if not names:
        return sorted(path for folder in ("notebooks", "exercises") for path in (root / folder).glob("*.ipynb"))
    found = []
    for name in names:
        path = find_notebook(name, root)
        if path.parent not in [(root / folder).resolve() for folder in ("notebooks", "exercises")]:
            raise ValueError(f"{path} is no page of the course: name one in notebooks/ or exercises/.")
        found += [path] if "/" in name else [one for folder in ("notebooks", "exercises") if (one := root / folder / path.name).is_file()]
    return list(dict.fromkeys(found))
