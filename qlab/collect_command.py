"""The command `qlab collect`: hand-ins from the homes of a class's server, and feedback back into them (qlab.grading.collect).

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import os
from pathlib import Path

EXAMPLES = """At the deadline: qlab collect 02 --deadline 2026-11-23T18:00
then:            qlab grade collected --assignment 02 --deadline 2026-11-23T18:00 --export csv html
and back:        qlab collect 02 --give-back results
docs/classroom.md tells more. Those who need it may read every home: run it as root."""


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("collect", help="copy hand-ins from students' homes on a class's server, or give feedback back",
                                  formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
                                  description="Copies exercises/NN_topic.ipynb from each student's folder of the course, as it is saved, "
                                  "into the layout\nthat qlab grade reads; or the graded pages back.")
    command.add_argument("assignment", metavar="NN", help="the set's number or name: 02 or 02_linear_quantization")
    command.add_argument("--homes", default="/home", metavar="DIR", help="the folder of the homes (default: /home)")
    command.add_argument("--course", default="course", metavar="NAME", help="the folder of the course in a home (default: course)")
    command.add_argument("--students", metavar="FILE", help="their names, one a line (default: all who have that folder, or a page)")
    command.add_argument("--to", default="collected", metavar="DIR", help="where the copies go (default: collected)")
    command.add_argument("--deadline", metavar="TIME", help="2026-11-23T18:00, local, or with a zone: who was late is told")
    command.add_argument("--update", action="store_true", help="take what was changed since it was collected; the former copy is kept")
    command.add_argument("--give-back", metavar="RESULTS", help="instead: write the pages of qlab grade --export html into each "
                         "student's folder feedback")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 1 where a student's file or folder was refused, or for an error in one sentence."""
    if not hasattr(os, "O_NOFOLLOW"):
        raise OSError("qlab collect needs Linux or macOS, where a folder can be opened without following a link.")
    from qlab.folders import clone
    from qlab.grading import collect
    from qlab.grading.handed_in.times import parse_time

    sets = sorted(path.stem for path in (clone() / "exercises").glob("*.ipynb"))
    assignment = next((name for name in sets if args.assignment in (name, name.partition("_")[0])), None)
    if assignment is None:
        raise ValueError(f"there is no set {args.assignment}: choose among {', '.join(name.partition('_')[0] for name in sets)}.")
    if "/" in args.course or args.course in ("", ".", ".."):
        raise ValueError(f"--course is {args.course!r}, and must be the name of one folder in each home.")
    deadline = parse_time(args.deadline) if args.deadline else None
    listed = Path(args.students).read_text("utf-8").split() if args.students else None
    if listed == []:
        raise ValueError(f"{args.students} names nobody: it must hold the students' names, one a line.")
    if args.give_back:
        return _tell(collect.give_back(Path(args.homes), assignment, Path(args.give_back), args.course, listed), assignment)
    names = collect.students(Path(args.homes), listed, args.course)
    if not names:
        raise FileNotFoundError(f"no home in {args.homes} has a folder {args.course}: name them with --students, or run this as root.")
    taken = collect.collect(Path(args.homes), names, assignment, Path(args.to), args.course, args.update)
    return _tell(taken, assignment, deadline, args.to)


def _tell(taken: list, assignment: str, deadline=None, to: str = "") -> int:
    told = {"collected": f"collected into {to}", "the same": "collected before", "newer": "collected before and changed since (--update "
            "takes it)", "nothing": "nothing there", "given back": "given back", "there": "given back before", "refused": "refused"}
    for status, words in told.items():
        names = [one.student for one in taken if one.status == status]
        if names and status == "refused":
            print(*(f"{one.student}: refused: {one.why}" for one in taken if one.status == status), sep="\n")
        elif names:
            print(f"{assignment}: {len(names)} {words}: {', '.join(names)}")
    for one in taken:
        if (seconds := one.late(deadline)) and one.status != "refused":
            print(f"{one.student}: late by {_span(seconds)}")
    return int(any(one.status == "refused" for one in taken))


def _span(seconds: float) -> str:
    """A time in words.

    >>> _span(59), _span(3900), _span(180000)
    ('1 min', '1 h 5 min', '2 days 2 h')
    """
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} day{'s' * (hours >= 48)} {hours % 24} h"
