"""The command `qlab collect`: hand-ins from the homes of a class's server, and feedback back into them (qlab.grading.collect).

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import os
from pathlib import Path

EXAMPLES = """At the deadline: qlab collect 02 --deadline 2026-11-23T18:00
then:            qlab grade collected --assignment 02 --deadline 2026-11-23T18:00 --export csv html
and back:        qlab collect 02 --give-back results
Who is refused is named and stops nobody else: the exit status is 0, and 1 where every one was refused, or for an error.
docs/classroom.md tells more. Those who need it may read every home: run it as root."""


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("collect", help="copy hand-ins from students' homes on a class's server, or give feedback back",
                                  formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
                                  description="Copies exercises/NN_topic.ipynb from each student's folder of the course, as it is saved, "
                                  "into the layout\nthat qlab grade reads, unless nothing in it was changed; or the graded pages back.")
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
    """Exit status 0; 1 where every student's file or folder was refused, or for an error in one sentence."""
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
    if not os.path.isdir(args.homes):
        what = f"{args.homes} is no folder" if os.path.lexists(args.homes) else f"there is no folder {args.homes}"
        raise FileNotFoundError(f"{what}: name the folder of the homes with --homes.")
    listed = _listed(args.students) if args.students else None
    if args.give_back:
        return _tell(collect.give_back(Path(args.homes), assignment, Path(args.give_back), args.course, listed), assignment)
    names = _with_course(args.homes, args.course) if listed is None else listed
    if not names:
        raise FileNotFoundError(f"no home in {args.homes} has a folder {args.course}: name them with --students, or run this as root.")
    taken = collect.collect(Path(args.homes), names, assignment, Path(args.to), args.course, args.update)
    return _tell(taken, assignment, deadline, args.to)


def _listed(path: str) -> list[str]:
    """The names in a list of students, each once."""
    from qlab.grading.collect import NAME

    try:
        names = list(dict.fromkeys(Path(path).read_text("utf-8-sig").split()))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}: name the list of the students with --students.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read {path} ({why}): it must be a text file that holds the students' names, one a line.") from None
    if not names:
        raise ValueError(f"{path} names nobody: it must hold the students' names, one a line.")
    if wrong := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no user's name: of letters, digits, and _ . @ + - within it.")
    return names


def _with_course(homes: str, course: str) -> list[str]:
    """The students who have a folder of the course in their homes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as homes:
    ...     for path in ("ada/course", "bob"):
    ...         os.makedirs(f"{homes}/{path}")
    ...     _with_course(homes, "course")
    ['ada']
    """
    from qlab.grading.collect import NAME

    try:
        return sorted(name for name in os.listdir(homes) if NAME.fullmatch(name) and os.path.lexists(os.path.join(homes, name, course)))
    except OSError as error:
        raise OSError(f"cannot list {homes} ({error.strerror}): name the students with --students, or run this as root.") from None


def _tell(taken: list, assignment: str, deadline=None, to: str = "") -> int:
    told = {"collected": f"collected into {to}", "the same": "collected before", "newer": "collected before and changed since (--update "
            "takes it)", "not begun": "not begun", "nothing": "nothing there", "given back": "given back", "there": "given back before",
            "refused": "refused"}
    for status, words in told.items():
        names = [one.student for one in taken if one.status == status]
        if names and status == "refused":
            print(*(f"{one.student}: refused: {one.why}" for one in taken if one.status == status), sep="\n")
        elif names:
            print(f"{assignment}: {len(names)} {words}: {', '.join(names)}")
    for one in taken:
        if (seconds := one.late(deadline)) and one.status != "refused":
            print(f"{one.student}: late by {_span(seconds)}")
    return int({one.status for one in taken} == {"refused"})  # one student's link must not keep a class from being graded


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
