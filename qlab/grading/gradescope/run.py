"""What run_autograder calls in Gradescope's container: python -m qlab.grading.gradescope.run /autograder

    /autograder/submission, submission_metadata.json, source/bundle.json.gz   ->   /autograder/results/results.json

What is handed in goes the way of every other hand-in (handed_in, mark, report). A notebook that cannot be read gets 0 and a reason. Where
nothing can be graded, because the limits do not hold or the grader failed, no results.json is written: Gradescope then says that the
autograder failed and gives no score, which a mark of 0 would be. What is printed only instructors see.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from qlab.grading import mark, results
from qlab.grading.batch import Mark, result_of, run_here, sandboxed
from qlab.grading.grade import load_bundle
from qlab.grading.gradescope.container import Container
from qlab.grading.handed_in import ingest
from qlab.grading.handed_in.handin import Submission
from qlab.grading.handed_in.which import asked
from qlab.grading.report import exports

ID = "submission_1"


def main(argv: list[str] | None = None) -> int:
    """Grade the one submission; 0 if results.json was written."""
    command = argparse.ArgumentParser(prog="python -m qlab.grading.gradescope.run", description="Grade in Gradescope's container.")
    command.add_argument("folder", type=Path, help="/autograder")
    command.add_argument("--without-namespaces", action="store_true", help="where the container forbids them (module container)")
    args = command.parse_args(argv)
    bundle = load_bundle(args.folder / "source" / "bundle.json.gz")
    entry = handed_in(args.folder, bundle)
    if entry.status:
        result = results.make(entry, bundle)
    else:
        open_mark = partial(_contained, args.folder.resolve()) if args.without_namespaces else sandboxed
        (_, marks, seconds), = run_here([entry], bundle, open_mark)
        result = result_of(entry, bundle, marks, seconds)
    if result["score"] is None:
        print(f"not graded: {result['reason']}.", flush=True)
        return 1
    for name, told in result["limits"].items():
        print(f"{name}: {told}", flush=True)
    results.write(args.folder / "results" / "results.json", results.to_json(exports.gradescope(result)))
    return 0


def handed_in(folder: Path, bundle: dict) -> Submission:
    """What folder/submission holds, of the student whom submission_metadata.json names: laid out as Gradescope exports it, and read."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder / "submission", Path(place, ID), symlinks=True)
        Path(place, "submission_metadata.yml").write_text(json.dumps({ID: {":submitters": [_student(folder)]}}), "utf-8")  # JSON is YAML
        try:
            found = ingest.hand_ins(Path(place), bundle["assignment"], None, asked(bundle), layout="gradescope")
            return found[0].read()[0]
        except ValueError:
            told = f"there is no notebook of {bundle['assignment']} in it"
            return Submission(ID, "student", ID, platform="gradescope", status="unreadable", reason=told)


def _student(folder: Path) -> dict:
    """The first of those who handed in; no mark depends on it."""
    try:
        user = json.loads((folder / "submission_metadata.json").read_text("utf-8"))["users"][0]
        return {":name": str(user["name"]), ":email": str(user.get("email") or "")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {":name": "student"}


@contextmanager
def _contained(folder: Path, jobs: int) -> Iterator[Mark]:
    with Container([folder / "source", folder / "results"]) as box:
        yield partial(mark.grade_notebook, box)


if __name__ == "__main__":
    sys.exit(main())
