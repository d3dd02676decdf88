"""How fast the course's own exercise sets are graded: python -m qlab.grading.bench --sets 02 07, on a machine that does nothing else.

60 students a set: of three one is right, one wrong in one question, one blank in one. Stated are the seconds of the command, started from
nothing, for each student, and the same without the start, which is what two students take. On two cores set 02 should take at most 0.15 s
each, and set 07, which trains, at most twice that.
"""

import copy
import gzip
import json
import sys
import tempfile
from pathlib import Path

from qlab.grading import bench, results
from qlab.grading.author import student
from qlab.grading.author.measure import measure

MOST = {"02": 0.15, "07": 0.3}  # seconds each, on two cores


def time_set(root: Path, name: str, students: int = 60) -> dict:
    """Seconds of qlab grade for so many students of one of the course's sets, and for two, which is little but the start."""
    path = next((bench.RECORD.parents[3] / "solutions").glob(f"{name}_*.ipynb"))
    solution = student.read(path)
    questions, blank = student.questions(solution, path.stem), student.student_notebook(solution)
    bundle = measure(str(path), "bench")
    if isinstance(bundle, str):
        raise RuntimeError(bundle)
    root.mkdir()
    results.write(root / "bundle.json.gz", gzip.compress(json.dumps(bundle | {"digest": results.digest(bundle)}).encode()))
    seconds = []
    for count in (2, students):
        for k in range(count):
            notebook = copy.deepcopy(blank)
            for place, question in enumerate(questions):
                spoilt = place == k // 3 % len(questions)
                source = "\n".join(line for line in solution.cells[question.answer].source.split("\n") if "### " not in line)
                source += f"\n\n\n{question.wrong[k % len(question.wrong)][1]}" if spoilt and k % 3 == 1 else ""
                if not (spoilt and k % 3 == 2):
                    notebook.cells[question.answer].source = source
            results.write(root / f"in{count}" / f"s{k:03}.ipynb", student.text(notebook))
        seconds.append(bench.timed([sys.executable, "-m", "qlab.cli", "grade", str(root / f"in{count}"), "--assignment", name, "--bundle",
                               str(root / "bundle.json.gz"), "--out", str(root / f"out{count}")], root))
    full = results.max_score(bundle)
    for path in (root / f"out{students}" / bundle["assignment"]).glob("*.json"):
        mark = json.loads(path.read_text())
        if mark["status"] != "graded" or (mark["score"] == full) != (int(mark["submission"]["student"][1:]) % 3 == 0):
            raise RuntimeError(f"{path.name} has a wrong mark, {mark['score']}.")
    return {"set": name, "students": students, "seconds": round(seconds[1], 1), "seconds_each": round(seconds[1] / students, 3),
            "seconds_each_without_the_start": round((seconds[1] - seconds[0]) / (students - 2), 3)}


def run(names: list[str]) -> None:
    """Time these sets, and print what they took beside the machine."""
    print(json.dumps(bench.environment()))
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            took = time_set(Path(folder, name), name)
            print(json.dumps(took | ({"wanted": f"at most {MOST[name]} s each"} if name in MOST else {})), flush=True)
