"""The command that grades what was handed in.

    qlab grade FOLDER --assignment 02 --export csv html

reads FOLDER (handed_in), marks what has no standing result (batch), says what came of it, and writes exports (report).
"""

import argparse
import gzip
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from qlab.grading import hints, mark, results
from qlab.grading.batch import Run, batch, result_of, run_here, sentence, trusted
from qlab.grading.challenge import board, measure
from qlab.grading.challenge.files import Files
from qlab.grading.handed_in import canvas, deadlines, ingest, layouts, moodle
from qlab.grading.handed_in.times import parse_time, stated, zone
from qlab.grading.handed_in.which import asked
from qlab.grading.handed_in.zips import MIB, Budget, shown
from qlab.grading.report import by_hand, final, last_run, late, summary

EXPORTS = ("csv", "html", "gradescope", "canvas", "canvas-feedback", "moodle", "moodle-feedback", "statistics", "leaderboard",
           "pages", "similar")


def find_bundle(assignment: str, given: str | None = None) -> Path:
    """The bundle file: the one given, or bundles/NN_topic.json.gz here or in the clone that qlab is installed from."""
    if given:
        return Path(given)
    places = _bundles()
    patterns = f"{assignment}.json.gz", f"{assignment.zfill(2)}_*.json.gz"
    found = [path for place in places for pattern in patterns for path in sorted(place.glob(pattern))]
    if not found:
        there = {path.name.partition(".")[0] for place in places for pattern in ("solutions/*.ipynb", "solutions/challenge", "bundles/*.gz")
                 for path in place.parent.glob(pattern)}
        if there and not any(is_of(assignment, name) for name in there):
            raise FileNotFoundError(f"there is no set {assignment}: choose among {', '.join(sorted(there))}.")
        raise FileNotFoundError(f"there is no bundle of {assignment} in {places[0]}: make it with qlab build {assignment}.")
    return found[0]


def is_of(assignment: str, name: str) -> bool:
    """Whether a set's number or name, as a teacher writes it, is that of the set of this name.

    >>> is_of("2", "02_linear_quantization"), is_of("02_linear_quantization", "02_linear_quantization"), is_of("03", "02_linear")
    (True, True, False)
    """
    return assignment == name or name.startswith(f"{assignment.zfill(2)}_")


def _bundles() -> list[Path]:
    return [Path.cwd() / "bundles", Path(__file__).resolve().parents[2] / "bundles"]


def load_bundle(path: Path) -> dict:
    """A bundle that qlab build wrote. Raises FileNotFoundError, or ValueError if it is something else."""
    try:
        bundle = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no bundle {path}: make it with qlab build.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError):
        raise ValueError(f"{path} is not a bundle, or is damaged: make it again with qlab build.") from None
    if not isinstance(bundle, dict) or bundle.get("format") != 1 or not {"assignment", "digest", "questions"} <= bundle.keys():
        raise ValueError(f"{path} is not a bundle of format 1: make it again with qlab build.")
    if results.digest(bundle) != bundle["digest"]:
        raise ValueError(f"{path} is damaged, for its digest is another: make it again with qlab build.")
    return bundle


def parser() -> argparse.ArgumentParser:
    """The command line of qlab grade."""
    command = argparse.ArgumentParser(prog="qlab grade", description="Mark what was handed in, each in a sandbox.",
                                      epilog=f"Marks set by hand: DIR/ASSIGNMENT/{by_hand.NAME}, a table (CSV) of "
                                             f"{', '.join(by_hand.COLUMNS)}, read at every run. Options hold for one run: repeat them.")
    command.add_argument("folder", help="a folder, a zip or a notebook: a download of Canvas, Moodle, Gradescope, nbgrader, or plain files")
    command.add_argument("--assignment", required=True, metavar="NN", help="its number or name: 02 or 02_linear_quantization; or challenge")
    command.add_argument("--bundle", metavar="FILE", help="made by qlab build (default: bundles/NN_topic.json.gz)")
    command.add_argument("--out", default="results", metavar="DIR", help="where the results go (default: results)")
    command.add_argument("--jobs", type=int, metavar="N", help="how many at a time (default: one for each core)")
    command.add_argument("--deadline", metavar="TIME", help="2026-11-23T18:00, local, or with a zone: 2026-11-23T18:00+01:00")
    command.add_argument("--time-zone", metavar="NAME", help="of times that state none, as in Europe/Berlin (default: this machine's)")
    command.add_argument("--layout", choices=layouts.NAMES, help="who laid out the folder, where its names leave it in doubt; sections: "
                         "folders of students' folders and files")
    command.add_argument("--file-times", action="store_true", help="plain files and folders were handed in when the files say: not after a "
                         "download or a git clone, which are as old as themselves")
    command.add_argument("--extensions", metavar="FILE", help="a table (CSV) of student and deadline, for those who have more time")
    command.add_argument("--late-penalty", metavar="RULE", help='"10%% per day, at most 50%%": of the points reached, for each day begun '
                         'after the student\'s deadline; or "0.5 points per hour, at most 2 points"; either with ", grace 15 minutes"')
    command.add_argument("--moodle-worksheet", metavar="FILE", help="Moodle's grading worksheet, downloaded in English: it says when each "
                         "handed in, and who is in a team; the export moodle fills in its grades and feedback")
    command.add_argument("--canvas-gradebook", metavar="FILE", help="the gradebook that Canvas exports: whose a file is that two users' "
                         "numbers could be read from")
    command.add_argument("--export", nargs="+", default=[], choices=EXPORTS, metavar="FORMAT", help=f"{', '.join(EXPORTS)}; pages (a page "
                         "a student with code and failed case, an index) and similar (answers that are alike) are for the teacher alone")
    command.add_argument("--reveal", choices=("hints",), help="after --deadline and the last extension: exports tell students what a "
                         "failed hidden test is about, and which known mistake gives the same answers; never its input")
    command.add_argument("--canvas-column", metavar="TITLE", help='the assignment\'s column in Canvas, as in "Linear quantization (4711)"')
    command.add_argument("--hand-in-mib", type=float, default=256, metavar="N", help="MiB that one student's files may have, zips unpacked "
                         "(default: 256), beside 10,000 files, 200 notebooks of 20 MiB, and zips three deep; what has more is unreadable")
    command.add_argument("--hand-in-seconds", type=float, default=20, metavar="N", help="how long reading them may take (default: 20)")
    command.add_argument("--seconds", type=float, default=mark.SECONDS["submission"], metavar="N", help="how long one submission may run "
                         "in all (default: %(default)g); each question has its own seconds beside, which the set states")
    command.add_argument("--cell-seconds", type=float, default=mark.SECONDS["cell"], metavar="N", help="how long one cell may run "
                         "(default: %(default)g); marks made with other limits are made anew")
    command.add_argument("--dask", metavar="ADDRESS", help="mark on a Dask cluster: tcp://host:8786")
    command.add_argument("--unsafe-local", action="store_true", help="a self-check without a sandbox, for your own work: writes nothing")
    return command


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if everything that counts is graded or unreadable for a stated reason, 1 if something is left to do."""
    args = parser().parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"jobs is {args.jobs}, and must be 1 or more.")
    for name in ("seconds", "cell_seconds", "hand_in_mib", "hand_in_seconds"):
        if not 0 < getattr(args, name) < math.inf:  # not a number is refused, too
            raise ValueError(f"{name} is {getattr(args, name):g}, and must be a finite number above 0.")
    if args.unsafe_local and (args.export or args.dask):
        raise ValueError("--unsafe-local is a self-check without a sandbox: it makes no gradebook or other export, and uses no cluster.")
    local = zone(args.time_zone)
    common = parse_time(args.deadline, local) if args.deadline else None
    until = deadlines.read(common, Path(args.extensions) if args.extensions else None, local)
    participants = moodle.worksheet(Path(args.moodle_worksheet), local) if args.moodle_worksheet else None
    users = canvas.users(Path(args.canvas_gradebook)) if args.canvas_gradebook else None
    penalty = late.parse(args.late_penalty) if args.late_penalty else None
    if penalty and not until.last():
        raise ValueError("--late-penalty is for what comes after a deadline: state it with --deadline.")
    if args.reveal:
        hints.allow(until.last(), args.export)
    kept = find_bundle(args.assignment, args.bundle)
    bundle = load_bundle(kept) | {"seconds": {"submission": args.seconds, "cell": args.cell_seconds}}
    if not is_of(args.assignment, bundle["assignment"]):
        raise ValueError(f"{kept} is the bundle of {bundle['assignment']}, and --assignment is {args.assignment}: name one set.")
    if "leaderboard" in args.export and "tracks" not in bundle:
        raise ValueError(f"{bundle['assignment']} has no leaderboard: only the challenge has.")
    entries = ingest.hand_ins(Path(args.folder), bundle["assignment"], until, asked(bundle), _say, (Path(args.out), kept.parent),
                              args.layout, participants, args.file_times, _budget(args), users)
    if "tracks" in bundle:
        if args.unsafe_local or args.dask or {"pages", "similar"} & set(args.export):
            raise ValueError("the challenge is measured in the sandbox of this machine, without notebooks: it goes with no --unsafe-local, "
                             "no --dask, and no export of pages or similar.")
        entries = [Files(entry) for entry in entries]
    if common:
        _say(f"deadline: {stated(common)}")
    jobs = args.jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if args.unsafe_local:
        return _self_check(entries, bundle, jobs)
    if args.dask:
        from qlab.grading import cluster

        run = partial(cluster.run, args.dask)
    else:
        run = partial(run_here, jobs=jobs, **({"open_mark": measure.sandboxed} if "tracks" in bundle else {}))
    folder = Path(args.out) / bundle["assignment"]
    rows = by_hand.read(folder / by_hand.NAME, bundle)
    try:
        with _progress(bundle["assignment"], len(entries)) as tick:
            made, stood = batch(entries, bundle, folder, run, tick)
    except KeyboardInterrupt:
        _say("stopped; what is graded is kept: repeat the command to go on.", sys.stderr)
        raise
    with results.alone_in(folder):
        former, options = last_run.read(folder), _options(args)
        try:
            ended = final.adjust(made, bundle, folder, rows, penalty)
        except (OSError, ValueError) as error:
            _tell([{key: value for key, value in result.items() if key != "adjusted"} for result in made], bundle, folder, stood)
            _say(f"{error}\nnothing was exported, and no mark was set by hand or lowered.", sys.stderr)
            return 1
        _tell(ended, bundle, folder, stood, last_run.changed(former.get("options", {}), options))
        failed = _export(ended, bundle, folder, args, entries, former, options, run)
    return int(failed or _unfinished(ended))


def _budget(args: argparse.Namespace) -> Callable[[], Budget]:
    """What reading one hand-in may cost."""
    return partial(Budget, size=int(min(args.hand_in_mib, 2**20) * MIB), seconds=args.hand_in_seconds)


def _options(args: argparse.Namespace) -> dict[str, str]:
    """What holds for one run alone, and whose absence a teacher may not notice in the next."""
    rule = args.late_penalty and f'"{args.late_penalty}"'
    told = {"--deadline": args.deadline, "--extensions": args.extensions, "--late-penalty": rule}
    return {name: value for name, value in told.items() if value}


def _tell(made: list[dict], bundle: dict, folder: Path, stood: int, before: str = "") -> None:
    """The first details, and all of them into a file; then the counts, which are not to scroll away."""
    details, path = summary.details(made), folder / summary.NAME
    try:
        results.write(path, "".join(f"{line}\n" for line in details).encode("utf-8", "backslashreplace"))
        more = f"{len(details) - summary.SHOWN} more lines are in {path}"
    except OSError as error:
        more = f"{len(details) - summary.SHOWN} more lines: not written: {sentence(error)}"
    _say("\n".join([*details[:summary.SHOWN], *([more] if len(details) > summary.SHOWN else []),
                    f"{bundle['assignment']}: {summary.counts(made, stood, before)}", f"results in {folder}"]))


def _references(bundle: dict, folder: Path, run: Run) -> list[dict]:
    """The results of the clone's reference hand-ins, measured as the class's are, and standing as long; none where there is no clone."""
    place = next(filter(Path.is_dir, (place.parent / "solutions" / bundle["assignment"] for place in _bundles())), None)
    hand_ins = [Files(one) for one in ingest.hand_ins(place, bundle["assignment"])] if place else []
    with _progress("references", len(hand_ins)) as tick:
        return batch(hand_ins, bundle, folder / "references", run, tick)[0] if hand_ins else []


def _export(made: list[dict], bundle: dict, folder: Path, args: argparse.Namespace, entries: list, former: dict, options: dict,
            run: Run = run_here) -> bool:
    from qlab.grading.report import each, exports, teacher

    worksheet, not_written = Path(args.moodle_worksheet) if args.moodle_worksheet else None, []
    names, state = list(dict.fromkeys(args.export)), last_run.state(made)
    stale = bool(names) and former.get("exports") != state
    mixed, failed = stale and _remove(folder, [name for name in EXPORTS if name not in names]), False
    for name in names:
        told = [hints.reveal(result, bundle) for result in made] if args.reveal and name not in hints.TEACHERS else made
        try:
            if name in teacher.NAMES:
                exercises = [place.parent / "exercises" / f"{bundle['assignment']}.ipynb" for place in _bundles()]
                _say(f"{name}: {teacher.export(name, told, bundle, folder / 'teacher', entries, exercises, 'pages' in args.export)}")
                continue
            if name == "leaderboard":
                _say(f"{name}: {board.export(told, bundle, folder, _references(bundle, folder, run))}")
                continue
            _say(f"{name}: {exports.export(name, told, bundle, folder / 'export', args.canvas_column, worksheet)}")
        except each.Incomplete as error:
            failed = True
            _say(f"{name}: {error}", sys.stderr)
        except Exception as error:  # noqa: BLE001  whatever it is, the other exports are written
            not_written.append(name)
            _say(f"{name}: not written: {sentence(error)}", sys.stderr)
    mixed = stale and _remove(folder, not_written) or mixed
    try:
        last_run.write(folder, options, "" if mixed else state if names else former.get("exports", ""))
    except OSError as error:
        _say(f"{folder / last_run.NAME}: not written: {sentence(error)}", sys.stderr)
        return True
    return failed or mixed or bool(not_written)


def _remove(folder: Path, names: list[str]) -> bool:
    """Remove exports of earlier marks and say so; whether one could not be removed."""
    try:
        if gone := last_run.remove(folder, names):
            _say(f"removed, for what they show has changed: {', '.join(str(folder / path) for path in gone)}")
    except OSError as error:
        _say(f"exports of earlier marks are not removed: {sentence(error)}", sys.stderr)
        return True
    return False


def _self_check(entries: list, bundle: dict, jobs: int) -> int:
    entries = [entry for hand_in in entries for entry in hand_in.read()]
    todo = [entry for entry in entries if not entry.status]
    made = {entry.id: results.make(entry, bundle) for entry in entries if entry.status}
    for entry, marks, seconds in run_here(todo, bundle, trusted, jobs):
        made[entry.id] = result_of(entry, bundle, marks, seconds)
    ordered = [made[entry.id] for entry in entries]
    for result in ordered:
        for question in result["questions"]:
            told = f": {shown(question['reason'])}" if question["reason"] else ""  # a student's own words may be in it
            _say(f"{summary.named(result)} {question['id']}: {question['score']:g} of {question['points']:g}{told}")
    _say("\n".join([*summary.details(ordered), f"{bundle['assignment']}: {summary.counts(ordered)}"]))
    _say("A self-check without a sandbox: nothing was written, and no gradebook can be made of it.")
    return int(_unfinished(ordered))


def _say(text: str, to=None) -> None:
    to = to or sys.stdout
    try:
        print(text, file=to, flush=True)
    except UnicodeEncodeError:  # a terminal that cannot show a student's name
        print(text.encode(to.encoding, "backslashreplace").decode(to.encoding), file=to, flush=True)
    except BrokenPipeError:  # its reader, such as head, has gone; what is still to be written does not depend on it
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())


def _unfinished(made: list[dict]) -> bool:
    return any(result["status"] == "not graded" and not result["submission"]["duplicate_of"] for result in made)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
