"""The qlab command: opens the course, tests it, measures it, trains its networks again. `qlab --help` lists what it can do.

Only the standard library is imported here; each command imports what it needs when it runs, so that help and errors come at once.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import qlab
from qlab import (
    auto_command,
    collect_command,
    demo_command,
    export_command,
    get_command,
    lab_command,
    lecture_command,
    site_command,
    translate_command,
)
from qlab.errors import one_line
from qlab.folders import clone, course, find_notebook
from qlab.translate import tr

QUICK = ("linear", "log", "kmeans", "ranges", "storage", "sparse", "huffman", "matmul", "measure", "integer", "ptq", "channels", "prune",
         "compress", "distill", "mixed_precision", "training", "records", "check", "grading_values", "links",
         "translate", "translate_pages")  # of tests/, for qlab check
PYTEST_TAKES_A_VALUE = ("-k", "-m", "-n", "-p", "-o", "-c", "-W", "--ignore", "--deselect", "--maxfail", "--dist", "--durations")


def pytest_command(args: list[str], root: Path) -> list[str]:
    """One pytest run over everything, or over the paths among args; a notebook's cells stay together (loadfile)."""
    chosen = any((root / arg.partition("::")[0]).exists() and before not in PYTEST_TAKES_A_VALUE and not arg.startswith("-")
                 for before, arg in zip(["", *args], args))
    workers = 0 if "--pdb" in args else min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    everything = [folder for folder in ("qlab", "tests", "notebooks") if (root / folder).is_dir()]
    return [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env",
            "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder",  # tests/conftest.py says which file goes first
            *args, *([] if chosen else everything)]


NO_TESTS = "tests are not part of this copy of the course; they are in the repository that it was made from."


def run_tests(args: list[str]) -> int:
    root = clone()
    if not (root / "tests").is_dir():
        raise FileNotFoundError(NO_TESTS)
    settings = {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",  # the workers fill the cores
        "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000",  # glibc keeps freed memory: getting it anew is a sixth of the time
    }
    try:
        return subprocess.call(pytest_command(args, root), cwd=root, env=settings | os.environ)
    except KeyboardInterrupt:
        return 130


def tests_of_page(page: Path, root: Path) -> list[str]:
    """The page itself and the tests of the demos that it imports."""
    demos = re.findall(r"qlab\.lab\.demos(?: import |\.)(\w+)", page.read_text(encoding="utf-8"))
    paths = [page, *(root / "tests" / f"test_demo_{name}.py" for name in dict.fromkeys(demos))]
    return [path.relative_to(root).as_posix() for path in paths if path.is_file()]


def check(args: argparse.Namespace) -> int:
    root = clone().resolve()
    pages = [find_notebook(name, root) for name in args.names]
    chosen = [f"tests/test_{name}.py" for name in QUICK] + [test for page in pages for test in tests_of_page(page, root)]
    codes = [lint([]), run_tests(chosen)]
    for page in pages:
        if (root / "solutions" / page.name).is_file():
            codes.append(main(["build", page.stem, "--check"]))
    return int(any(codes))  # a child that a signal ended has a negative one


def browser(args: argparse.Namespace) -> int:
    root = clone()
    numbers = [find_notebook(name, root).stem for name in args.names]  # all of them before the first is opened
    if not (root / "tests").is_dir():
        raise FileNotFoundError(NO_TESTS)
    return subprocess.call([sys.executable, "-m", "pytest", "-q", str(root / "tests" / "test_browser.py")], cwd=root,
                           env=os.environ | {"QLAB_PAGES": " ".join(numbers) or "all"})


def bench(args: list[str]) -> int:
    from qlab.lab import bench

    return bench.main(args) or 0


def lint(args: list[str]) -> int:
    return subprocess.call([sys.executable, "-m", "ruff", "check", *(args or ["."])], cwd=clone())


def pins(args: list[str]) -> int:
    from qlab import pins

    return pins.main(args)


def zoo(args: argparse.Namespace) -> int:
    from qlab.nets.models import MODELS

    for name in args.names:  # all of them before the first is trained
        if name not in (*MODELS, "gpt"):
            raise ValueError(tr("there is no network {name}: choose among {choices} and gpt.", name=name, choices=", ".join(MODELS)))
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(tr("epochs is {epochs}, and must be 1 or more.", epochs=args.epochs))
    from qlab.lab import language, zoo

    folder = Path(args.folder) if args.folder else zoo.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(tr("cannot write to {folder}: name another folder with --folder.", folder=folder))
    for name in args.names or (*MODELS, "gpt"):
        if name == "gpt":
            run = language.train(seed=args.seed, epochs=args.epochs, folder=folder)
            print(f"gpt: {run['test_bits_per_byte'][0]:.4f} bits per byte of a novel that it has not read, {run['steps']} steps, "
                  f"{run['minutes']} minutes", flush=True)
        else:
            run = zoo.train(name, seed=args.seed, epochs=args.epochs, folder=folder)
            accuracy = f"{run['test_accuracy']:.2%} of {run['test_images']:,} test images"
            print(f"{name}: {accuracy}, {run['epochs']} epochs, {run['minutes']} minutes", flush=True)
    return 0


def notebooks(args: argparse.Namespace) -> int:
    root = course()
    paths = [find_notebook(name, root) for name in args.names] or sorted((root / "notebooks").glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"there are no notebooks in {root / 'notebooks'}.")
    from qlab.lab import quiet
    from qlab.lab.notebooks import refresh, takes_times

    def report(path: str) -> None:
        print(path, flush=True)
        if takes_times(Path(path)):
            quiet.wait(args.busy)

    refresh(paths, report)
    record_release(root)
    return 0


def record_release(root: Path) -> None:
    """Notes the notebooks of a clone as the released ones, which JupyterLab then trusts."""
    if root.resolve() == Path(qlab.__file__).resolve().parent.parent:
        from qlab.lab.jupyter import released

        released.record(root)


def build(args: argparse.Namespace) -> int:
    from qlab.grading.author.build import build

    problems = build(clone(), args.names, args.seed, args.check)
    for problem in problems:
        print("qlab:", problem, file=sys.stderr)
    if not (problems or args.check):
        record_release(clone())
    return 1 if problems else 0


def release(args: argparse.Namespace) -> int:
    from qlab.grading.author.release import release

    out = Path(args.zip)
    count = release(clone(), out)
    print(f"{out}: {count} files, {out.stat().st_size / 2**20:.1f} MiB")
    return 0


def gradescope(args: argparse.Namespace) -> int:
    from qlab.grading.gradescope.package import package

    print(package(clone(), args.assignment, Path(args.zip), args.bundle, not args.without_namespaces))
    return 0


def grade(args: list[str]) -> int:
    from qlab.grading import grade

    return grade.main(args)


def doctor(args: argparse.Namespace) -> int:
    from qlab import doctor

    return int(any([doctor.report(), doctor.attack_the_sandbox()]))


# Commands that read their arguments, -h included, themselves.
PASSED_ON = {"test": run_tests, "bench": bench, "lint": lint, "grade": grade, "pins": pins}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="qlab", description="Low-precision deep learning: a course and a small library.")
    top.add_argument("--version", action="version", version=f"qlab {qlab.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    lab_command.add_to(commands)
    demo_command.add_to(commands)
    commands.add_parser("test", help="run all tests, notebooks included; arguments are pytest's: qlab test -k log")
    command = commands.add_parser("check", help="lint and the quick tests; with a page's number also that page, its demos, its exercises")
    command.add_argument("names", nargs="*", metavar="NOTEBOOK", help="a path, a name or a number such as 02")
    command.set_defaults(run=check)

    command = commands.add_parser("browser", help="use the notebooks in a real browser: run, slide, guess, save, reopen")
    command.add_argument("names", nargs="*", metavar="NOTEBOOK", help="a path, a name or a number such as 02 (default: all)")
    command.set_defaults(run=browser)

    commands.add_parser("bench", help="measure speeds and write the record")

    command = commands.add_parser("zoo", help="train the networks again")
    command.add_argument("names", nargs="*", metavar="NAME", help="networks to train (default: all)")
    command.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of the images (default: 0)")
    command.add_argument("--epochs", type=int, help="instead of the recipe's number")
    command.add_argument("--folder", help="where checkpoint and record go (default: the package's own, which they replace)")
    command.set_defaults(run=zoo)

    command = commands.add_parser("doctor", help="say what this machine can do, what is in place, and whether the graders' sandbox holds")
    command.set_defaults(run=doctor)

    command = commands.add_parser("notebooks", help="execute the notebooks and store their outputs")
    command.add_argument("names", nargs="*", metavar="NOTEBOOK", help="a path, a name or a number such as 02 (default: all)")
    command.add_argument("--busy", action="store_true", help="execute pages that measure times on a busy machine too, without waiting")
    command.set_defaults(run=notebooks)

    command = commands.add_parser("build", help="make exercises/, the grader's bundles and the list of released notebooks from "
                                   "solutions/")
    command.add_argument("names", nargs="*", metavar="SET", help="a name or a number such as 02 (default: all)")
    command.add_argument("--check", action="store_true", help="write nothing; say whether everything holds and exercises/ is up to date")
    command.add_argument("--seed", help="of the hidden cases (default: QLAB_SEED, or the teacher's own in ~/.config/qlab/seed)")
    command.set_defaults(run=build)

    command = commands.add_parser("release", help="make a zip for students, without solutions, bundles and seeds")
    command.add_argument("zip", metavar="OUT.zip", help="the file to write")
    command.set_defaults(run=release)

    command = commands.add_parser("gradescope", help="make the zip of an autograder that runs in Gradescope's container")
    command.add_argument("assignment", metavar="NN", help="the set's number or name: 02 or 02_linear_quantization")
    command.add_argument("zip", metavar="OUT.zip", help="the file to write; the hidden tests are in it, so it is for Gradescope alone")
    command.add_argument("--bundle", metavar="FILE", help="made by qlab build (default: bundles/NN_topic.json.gz)")
    command.add_argument("--without-namespaces", action="store_true", help="for a container that forbids the sandbox, as Docker's default "
                         "does: student code runs as another user, without network, and sees the container's other files")
    command.set_defaults(run=gradescope)

    auto_command.add_to(commands)
    collect_command.add_to(commands)
    export_command.add_to(commands)
    get_command.add_to(commands)
    lecture_command.add_to(commands)
    site_command.add_to(commands)
    translate_command.add_to(commands)

    commands.add_parser("grade", help="grade what was handed in: qlab grade FOLDER --assignment 02; see qlab grade --help")
    commands.add_parser("pins", help="show that the pins of constraints.txt resolve on every Python and platform; see qlab pins --help")
    commands.add_parser("lint", help="check the code's style; arguments are ruff's: qlab lint --fix")
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code; an error that the user can settle is one line on stderr, without a traceback.

    With QLAB_TRACEBACK=1 in the environment the traceback is shown.
    """
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads sleep while they wait: spinning takes the core a browser needs
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal or file that cannot show a Chinese word gets its escape, and the command goes on
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv and argv[0] in PASSED_ON:
            return PASSED_ON[argv[0]](argv[1:])
        args = parser().parse_args(argv)
        return args.run(args)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("QLAB_TRACEBACK"):
            raise
        print("qlab:", one_line(error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
