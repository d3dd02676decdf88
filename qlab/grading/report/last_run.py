"""What the run before was told, and which marks the exports are of: results/ASSIGNMENT/last_run.txt, a JSON text.

All exports in export/ and teacher/ show one state of the marks: when marks have changed, those that are not made anew are removed.
"""

import hashlib
import json
import shutil
from pathlib import Path

from qlab import saving

NAME = "last_run.txt"  # no .json, which are the results
FILES = {"csv": ["export/gradebook.csv"], "html": ["export/feedback"], "gradescope": ["export/gradescope"], "canvas": ["export/canvas.csv"],
         "canvas-feedback": ["export/canvas_feedback.zip"], "moodle": ["export/moodle.csv"],
         "moodle-feedback": ["export/moodle_feedback.zip"], "statistics": ["export/statistics.png", "export/statistics.html"],
         "leaderboard": ["export/leaderboard.html", "export/leaderboard.csv", "teacher/leaderboard.csv"],
         "pages": ["teacher/pages"], "similar": ["teacher/similar.html", "teacher/similar.csv"]}


def state(made: list[dict]) -> str:
    """A hash of everything in final results but the time that marking took, the limits that held, and a deadline that makes nobody late.

    >>> one = {"score": 2, "seconds": 1.5, "submission": {"id": "ada", "late": False, "extended": False, "deadline": None}}
    >>> state([one]) == state([{**one, "submission": one["submission"] | {"deadline": "2026-11-23T18:00:00+01:00"}}])
    True
    """
    kept = [{key: value for key, value in result.items() if key not in ("seconds", "limits")} for result in made]
    for result in kept:
        who = result["submission"]
        if who["late"] is False and not who["extended"]:
            result["submission"] = {key: value for key, value in who.items() if key != "deadline"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict:
    """{"options": {"--deadline": ...}, "exports": a state}; {} where there was no run, or the file is damaged."""
    try:
        told = json.loads((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and isinstance(told.get("options"), dict) else {}


def write(folder: Path, options: dict[str, str], exports: str) -> None:
    """Note this run's. Raises OSError."""
    saving.write({folder / NAME: json.dumps({"options": options, "exports": exports}, indent=1).encode() + b"\n"})


def changed(before: dict[str, str], now: dict[str, str]) -> str:
    """A line that names what the run before had and this one has not; "" where there is nothing.

    >>> changed({"--deadline": "2026-11-23T18:00", "--extensions": "x.csv"}, {"--deadline": "2026-11-24T18:00"})
    '  options     the run before had --extensions x.csv, this one has not: options hold for one run'
    """
    gone = [f"{name} {value}" for name, value in before.items() if name not in now]
    return f"  options     the run before had {' and '.join(gone)}, this one has not: options hold for one run" if gone else ""


def remove(folder: Path, names: list[str]) -> list[str]:
    """Remove these exports; the paths below folder that were there. Raises OSError."""
    there = [path for name in names for path in FILES[name] if (folder / path).is_symlink() or (folder / path).exists()]
    for path in there:
        if (folder / path).is_dir() and not (folder / path).is_symlink():
            shutil.rmtree(folder / path)
        else:
            (folder / path).unlink()
    return there
