"""How fast a batch is, beside nbgrader: python -m qlab.grading.bench, which waits for a machine that does nothing else.

One assignment of two questions that imports torch, in two forms: for qlab with cases, for nbgrader with the same tests as asserts. The same
answers of 20 students, right, wrong and blank, are graded by both, one after the other, each as a command started from nothing, and both
must give the same marks. Then 300 students are graded by qlab alone. What is stated is the ratio of the two commands' times.

The record is qlab/lab/records/grading.json: the command, the machine, how busy others kept it, the date and the versions beside the times.

With --sets 02 07, a minute or so, sets of the course are timed instead (module bench_sets), and nothing is written.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qlab.grading import results
from qlab.grading.sandbox import bwrap
from qlab.lab import quiet

RECORD = Path(__file__).resolve().parents[1] / "lab" / "records" / "grading.json"
NAME = "99_bench"
TIMES_NBGRADER, MINUTES_300 = 5, 5  # what is promised: so many times faster for 20, at most so many minutes for 300

SETUP = "import torch"
LEAD_IN = "## {0}\n\nFor the benchmark."
ANSWERS = {"q1": '''def codes(x: torch.Tensor, lo: float, hi: float, bits: int) -> torch.Tensor:
    """Codes of x on [lo, hi], int64."""
    ### BEGIN SOLUTION
    step_of_the_grid = (hi - lo) / (2**bits - 1)
    return torch.round((x - lo) / step_of_the_grid).clamp(0, 2**bits - 1).to(torch.int64)
    ### END SOLUTION''', "q2": '''def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a packed array."""
    ### BEGIN SOLUTION
    whole_bytes_needed = (count * bits + 7) // 8
    return whole_bytes_needed
    ### END SOLUTION'''}
CASES = {"q1": '''@public("q1")
def examples():
    yield case("codes(x, -1.0, 1.0, 8)", x=torch.tensor([0.5]), expect=torch.tensor([191]))

check("q1")
### BEGIN HIDDEN TESTS
from qlab.grading import hidden, wrong

@hidden("q1")
def more(rng):
    for shape in ((64,), (7, 3), (5, 4, 3)):
        yield case("codes(x, -1.0, 1.0, 4)", x=torch.tensor(rng.uniform(-1.2, 1.2, shape), dtype=torch.float32))

@wrong("q1", "floor for round")
def codes(x, lo, hi, bits):
    return torch.floor((x - lo) / ((hi - lo) / (2**bits - 1))).clamp(0, 2**bits - 1).to(torch.int64)

@wrong("q1", "no clamp")
def codes(x, lo, hi, bits):
    return torch.round((x - lo) / ((hi - lo) / (2**bits - 1))).to(torch.int64)

@wrong("q1", "one level too many")
def codes(x, lo, hi, bits):
    return torch.round((x - lo) / ((hi - lo) / 2**bits)).clamp(0, 2**bits - 1).to(torch.int64)
### END HIDDEN TESTS''', "q2": '''@public("q2")
def examples():
    yield case("packed_bytes(n, 4)", n=6, expect=3)

check("q2")
### BEGIN HIDDEN TESTS
from qlab.grading import hidden, wrong

@hidden("q2")
def more(rng):
    for bits in (1, 3, 5):
        yield case("packed_bytes(n, bits)", n=8 * int(rng.integers(10, 10**6)) + 3, bits=bits)

@wrong("q2", "rounded down")
def packed_bytes(count, bits):
    return count * bits // 8

@wrong("q2", "bits, not bytes")
def packed_bytes(count, bits):
    return count * bits

@wrong("q2", "a byte too many")
def packed_bytes(count, bits):
    return count * bits // 8 + 2
### END HIDDEN TESTS'''}
ASSERTS = {"q1": '''assert torch.equal(codes(torch.tensor([0.5]), -1.0, 1.0, 8), torch.tensor([191]))
### BEGIN HIDDEN TESTS
rng = torch.Generator().manual_seed(0)
for shape in ((64,), (7, 3), (5, 4, 3)):
    x = torch.rand(shape, generator=rng) * 2.4 - 1.2
    expect = torch.round((x + 1) / (2 / 15)).clamp(0, 15).to(torch.int64)
    assert torch.equal(codes(x, -1.0, 1.0, 4), expect) and codes(x, -1.0, 1.0, 4).dtype == torch.int64
### END HIDDEN TESTS''', "q2": '''assert packed_bytes(6, 4) == 3
### BEGIN HIDDEN TESTS
for bits in (1, 3, 5):
    assert packed_bytes(8003, bits) == (8003 * bits + 7) // 8
### END HIDDEN TESTS'''}
FLOOR = "def codes(x, lo, hi, bits):\n    return torch.floor((x - lo) / ((hi - lo) / (2**bits - 1))).clamp(0, 2**bits - 1).to(torch.int64)"
BITS = "def packed_bytes(count, bits):\n    return count * bits"
GIVEN = [({}, 5), ({"q1": FLOOR}, 3), ({"q2": BITS}, 2), ({"q1": "# YOUR CODE HERE\nraise NotImplementedError()"}, 3)]  # answers, marks


def source(tests: dict[str, str], setup: str):
    """The solution notebook with these test cells; answers and lead-ins are the same for both graders."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    def cell(text, grade_id, **given):
        base = {"schema_version": 3, "grade_id": grade_id, "grade": False, "solution": False, "locked": False, "task": False}
        return new_code_cell(text, metadata={"nbgrader": base | given})

    cells = [new_markdown_cell("# Benchmark"), cell(setup, "setup", locked=True)]
    for name, points in (("q1", 2), ("q2", 3)):
        cells += [new_markdown_cell(LEAD_IN.format(name)), cell(ANSWERS[name], name, solution=True),
                  cell(tests[name], f"{name}_test", grade=True, locked=True, points=points)]
    return new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}})


def answered(blank, k: int):
    """What student k hands in: the blank notebook with this student's answers."""
    import nbformat

    notebook = nbformat.from_dict(json.loads(nbformat.writes(blank)))
    solved = {name: "\n".join(line for line in text.splitlines() if "###" not in line) for name, text in ANSWERS.items()}
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in solved:
            cell.source = f"# student {k}\n" + {**solved, **GIVEN[k % len(GIVEN)][0]}[name]
    return notebook


def time_qlab(root: Path, students: int, jobs: int | None = None) -> float:
    """Seconds of qlab grade for so many students, from nothing to the results; raises RuntimeError if a mark is wrong."""
    import nbformat

    from qlab.grading.author import build

    (root / "solutions").mkdir(parents=True)
    setup = f"{SETUP}\n\nfrom qlab.grading import case, check, public\n\ncheck.start(q1=2, q2=3)"
    nbformat.write(source(CASES, setup), root / "solutions" / f"{NAME}.ipynb")
    if problems := build.build(root, seed="bench", report=lambda line: None):
        raise RuntimeError(problems[0])
    blank = nbformat.read(root / "exercises" / f"{NAME}.ipynb", 4)
    (root / "in").mkdir()
    for k in range(students):
        nbformat.write(answered(blank, k), root / "in" / f"s{k:03}.ipynb")
    command = [sys.executable, "-m", "qlab.cli", "grade", str(root / "in"), "--assignment", "99", "--out", str(root / "out"),
               "--bundle", str(root / "bundles" / f"{NAME}.json.gz"), *(["--jobs", str(jobs)] if jobs else [])]
    seconds = timed(command, root)
    marks = [json.loads((path).read_text()) for path in sorted((root / "out" / NAME).glob("*.json"))]
    _compare({mark["submission"]["student"]: mark["score"] for mark in marks}, students)
    return seconds


def time_nbgrader(root: Path, students: int, nbgrader: list[str]) -> float:
    """Seconds of nbgrader autograde for so many students; raises RuntimeError if a mark is wrong."""
    import nbformat

    (root / "source" / NAME).mkdir(parents=True)
    nbformat.write(source(ASSERTS, SETUP), root / "source" / NAME / f"{NAME}.ipynb")
    course = f"--CourseDirectory.root={root}"
    timed([*nbgrader, "generate_assignment", NAME, "--create", course], root)
    blank = nbformat.read(root / "release" / NAME / f"{NAME}.ipynb", 4)
    for k in range(students):
        (root / "submitted" / f"s{k:03}" / NAME).mkdir(parents=True)
        nbformat.write(answered(blank, k), root / "submitted" / f"s{k:03}" / NAME / f"{NAME}.ipynb")
    seconds = timed([*nbgrader, "autograde", NAME, "--create", course], root)
    timed([*nbgrader, "export", f"--CsvExportPlugin.to={root / 'grades.csv'}", course], root)
    with open(root / "grades.csv", newline="") as stream:
        _compare({row["student_id"]: float(row["raw_score"]) for row in csv.DictReader(stream)}, students)
    return seconds


def timed(command: list[str], root: Path) -> float:
    private = {name: str(root / "jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])  # nbgrader calls alembic by its name
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env={**os.environ, **private, "PATH": path}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return seconds


def _compare(marks: dict[str, float], students: int) -> None:
    expected = {f"s{k:03}": GIVEN[k % len(GIVEN)][1] for k in range(students)}
    if marks != expected:
        wrong = {name: (marks.get(name), expected.get(name)) for name in marks | expected if marks.get(name) != expected.get(name)}
        raise RuntimeError(f"these marks are wrong (given, right): {wrong}")


def environment() -> dict:
    """The machine, the date and the versions."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    version = subprocess.run([bwrap.find_bwrap(), "--version"], capture_output=True, text=True).stdout.split()
    return {"date": datetime.date.today().isoformat(), "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "nbgrader")}, "bubblewrap": version[-1],
            "os": f"{platform.system()} {platform.release().split('-')[0]}", "architecture": platform.machine(),
            "cpu": cpu[0] if cpu else None, "usable_cores": len(os.sched_getaffinity(0))}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write the record."""
    parser = argparse.ArgumentParser(prog="python -m qlab.grading.bench", description="Time qlab grade beside nbgrader.")
    parser.add_argument("--nbgrader", help="its executable (default: that of this environment)")
    parser.add_argument("--few", type=int, default=20, help="students that both grade (default: 20)")
    parser.add_argument("--many", type=int, default=300, help="students that qlab alone grades (default: 300)")
    parser.add_argument("--sets", nargs="+", metavar="NN", help="time these sets of the course instead, and write nothing")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    quiet.add_option(parser)
    args = parser.parse_args(argv)
    if args.sets:
        from qlab.grading import bench_sets

        quiet.wait(args.busy)
        return bench_sets.run(args.sets)
    nbgrader = [args.nbgrader] if args.nbgrader else [sys.executable, "-m", "nbgrader"]
    if args.nbgrader and not shutil.which(args.nbgrader):
        raise FileNotFoundError(f"there is no {args.nbgrader}: pip install nbgrader, or name its executable with --nbgrader.")
    machine, watch = environment(), quiet.wait(args.busy)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        qlab_few = time_qlab(root / "few", args.few)
        theirs = time_nbgrader(root / "nbgrader", args.few, nbgrader)
        qlab_few_again = time_qlab(root / "again", args.few)
        many = time_qlab(root / "many", args.many)
    ours = max(qlab_few, qlab_few_again)  # before and after: the worse of the two
    record = {
        "command": "python -m qlab.grading.bench", "environment": machine, "load": watch.load(),
        "against_nbgrader": {
            "students": args.few, "qlab_seconds": [round(qlab_few, 2), round(qlab_few_again, 2)], "nbgrader_seconds": round(theirs, 2),
            "ratio": round(theirs / ours, 2), "promise": f"at least {TIMES_NBGRADER}"},
        "many": {"students": args.many, "qlab_seconds": round(many, 1), "qlab_seconds_each": round(many / args.many, 3),
                 "promise": f"300 in less than {60 * MINUTES_300} s"},
    }
    results.write(args.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
