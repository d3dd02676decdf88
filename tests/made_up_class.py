"""A made-up class whose marks are known: who they are, what each hands in, and how a platform lays it out for the teacher.

    python tests/made_up_class.py FOLDER --layout canvas --students 300 --seed 1     makes FOLDER/handed_in and, for Moodle, worksheet.csv
    ... --grade                                                                      and has it graded, killed, graded again, and compared

Among them are namesakes, names that break HTML, CSV and file systems, late ones, several notebooks of one student, zips of the whole course
folder, zips in zips, renamed files, another assignment's notebook, links and texts in place of files, and what made_up_work writes. The
same seed makes the same class. What comes out is compared by class_checks.
"""

import argparse
import io
import random
import re
import sys
import unicodedata
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from made_up_work import ATTACKS, ROOT, SLOW, Exercise, Work

LAYOUTS = ("canvas", "canvas-anonymous", "moodle", "gradescope", "nbgrader", "plain")
DEADLINE = datetime(2026, 11, 23, 18, tzinfo=UTC)
FIRST = ("Ada", "Bo", "Chloé", "Dmitri", "Elif", "Farah", "Grace", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mei", "Noor", "Oskar", "Priya")
LAST = ("Abe", "Brandt", "Costa", "Diaz", "Eriksen", "Fall", "García", "Haddad", "Ito", "Jansen", "Kim", "Łukasik", "Müller", "Nkosi")
STRANGE = (
    "Points Possible", "José Núñez", unicodedata.normalize("NFD", "José Núñez"), "=HYPERLINK(A1)", "+1", "-2+3", "@SUM(A1)", "O'Neill, Jr",
    'Robert "Bobby" Tables', "<b>Bold<b>", "<img src=x onerror=alert(1)>", "&lt;script&gt;", "李小龙", "محمد علي", "שרה", "Ω≈ç√",
    "🎓 Émile", "x" * 90, "ada lovelace", "Ada Lovelace", "Ada  Lovelace", "Null", "4711", "results", "feedback", "LATE",
    "submission 12", "a;-1;=2", "%s %(name)s {0}", "Student, Test", "tab\tin it", "Late Anon", "Dr. Émile Zola-d'Arc III.",
)


@dataclass
class Student:
    """One student, and what must come of the hand-in. marks None: nothing can be read; counts: which upload does, and the path in it."""

    name: str
    number: int
    email: str
    kind: str
    uploads: list[tuple[str, bytes]]
    marks: dict[str, float] | None
    counts: tuple[int, str] = (0, "")
    late: bool = False
    reason: str = ""                                    # words of the reason, where it is unreadable
    paths: list[str] = field(default_factory=list)      # of the uploads, where the platform puts them


class _Chooser:
    """Goes through all kinds in turn before one comes again, so that a small class has as many as it can."""

    def __init__(self, rng: random.Random, kinds):
        self.rng, self.kinds, self.left = rng, list(kinds), []

    def next(self):
        if not self.left:
            self.left = self.rng.sample(self.kinds, len(self.kinds))
        return self.left.pop()


def zipped(entries: dict[str, bytes], when: datetime = DEADLINE - timedelta(days=1)) -> bytes:
    """A zip; the later of two entries is a minute newer."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, (name, content) in enumerate(entries.items()):
            archive.writestr(zipfile.ZipInfo(name, (when + timedelta(minutes=k)).timetuple()[:6]), content)
    return stream.getvalue()


def course(exercise: Exercise, work: Work) -> bytes:
    """The folder of a release as a student zips it: the answered set among blank ones, the lessons, and what systems leave behind."""
    there = [*sorted((ROOT / "exercises").glob("*.ipynb"))[:6], *(ROOT / "notebooks").glob(f"{exercise.name[:2]}_*.ipynb")]
    others = {f"qlab/{path.parent.name}/{path.name}": path.read_bytes() for path in there}
    own = {f"qlab/exercises/{exercise.name}.ipynb": work.data,
           f"qlab/exercises/.ipynb_checkpoints/{exercise.name}-checkpoint.ipynb": exercise.right().data,
           f"__MACOSX/qlab/exercises/._{exercise.name}.ipynb": b"\0\5\x16\7"}
    return zipped({"qlab/README.md": b"# qlab", **others, **own})


def works(exercise: Exercise, rng: random.Random, slow: int):
    """Without end: what a student wrote."""
    attacks = _Chooser(rng, [name for name in ATTACKS if name not in SLOW])
    slow = [SLOW[k % len(SLOW)] for k in range(slow)]
    kinds = _Chooser(rng, ["right", "right", "wrong", "wrong", "wrong", "honest", "honest", "hostile", "hostile", "blank", "damaged"])
    while True:
        kind = kinds.next()
        if kind == "hostile":
            yield exercise.hostile(rng, slow.pop() if slow and rng.random() < 0.3 else attacks.next())
        elif kind in ("wrong", "honest", "damaged"):
            yield getattr(exercise, kind)(rng)
        else:
            yield getattr(exercise, kind)()


def hand_in(exercise: Exercise, rng: random.Random, kind: str, work: Work, platform: str) -> tuple:
    """(what is uploaded, (which of it counts, the path in it), what that is, words of the reason where nothing can be read)."""
    name, data, file = exercise.name, work.data, f"{exercise.name}.ipynb"
    nothing = Work("", b"", None)
    if kind == "renamed":
        names = "homework final (3).ipynb", f"{name} (1).ipynb", f"{name[:2]}.ipynb", "HW.IPYNB", f"Copy of {file}", f"{file}.txt"
        other = rng.choice(names)
        return [(other, data)], (0, ""), work, ""
    if kind == "zip":
        return [("hw.zip", zipped({file: data}))], (0, file), work, ""
    if kind == "zip in zip":
        inner = zipped({f"my work/{file}": data})
        return [("all.zip", zipped({"in/hw.zip": inner, "in/notes.txt": b"notes"}))], (0, f"in/hw.zip/my work/{file}"), work, ""
    if kind == "course folder":
        return [("qlab.zip", course(exercise, work))], (0, f"qlab/exercises/{file}"), work, ""
    if kind == "scratch beside it":
        return [("scratch.ipynb", exercise.work("", {}, change=_scratch).data), (file, data)], (1, ""), work, ""
    if kind == "older version":
        newest = exercise.right()
        return [("hw.zip", zipped({f"old/{file}": exercise.wrong(rng).data, f"new/{file}": newest.data}))], (0, f"new/{file}"), newest, ""
    if kind == "newer but blank":
        return [("hw.zip", zipped({f"done/{file}": data, f"again/{file}": exercise.blank().data}))], (0, f"done/{file}"), work, ""
    if kind == "another assignment":
        other = next(path for path in sorted((ROOT / "exercises").glob("*.ipynb")) if not path.name.startswith(name[:2]))
        there = platform in ("canvas", "moodle", "gradescope")  # whatever its name: it was handed in for this one
        blank = exercise.work("nothing of this one", {}) if there else nothing
        return [(other.name, other.read_bytes())], (0, ""), blank, f"there is no notebook of {name} in it, only {other.name}"
    if kind == "a PDF":
        return [("homework.pdf", b"%PDF-1.7")], (0, ""), nothing, f"there is no notebook of {name} in it, only "
    if kind == "not a zip":
        other = rng.choice(["hw.tar.gz", "hw.7z", "hw.rar"])
        return [(other, b"\x1f\x8b\0")], (0, ""), nothing, "archive, and of archives only .zip is read"
    if kind == "a zip bomb":
        bomb = zipped({f"{k}/{file}": zipped({f"{j}.ipynb": b"{}" for j in range(150)}) for k in range(3)})
        return [("bomb.zip", zipped({f"{k}.zip": bomb for k in range(3)}))], (0, ""), nothing, "more than 200 notebooks"
    return [(file, data)], (0, ""), work, ""


KINDS = ["as it should be"] * 5 + ["renamed", "zip", "zip in zip", "course folder", "scratch beside it", "older version", "newer but blank",
                                   "another assignment", "a PDF", "not a zip", "a zip bomb"]
NEEDS_ANSWERS = ("scratch beside it", "newer but blank", "course folder")  # else the other notebook is as good


def _scratch(content: dict) -> None:
    content["cells"] = [{"cell_type": "code", "source": "x = 1 + 1", "metadata": {}, "outputs": [], "execution_count": None}]


def students(exercise: Exercise, layout: str, count: int, seed: int, slow: int = 3) -> list[Student]:
    """A class of so many; slow: how many hold up the grader for as long as they may."""
    rng, platform = random.Random(f"{seed}/{layout}"), layout.partition("-")[0]
    kinds, written, names, made = _Chooser(rng, KINDS), works(exercise, rng, slow), _names(rng, platform, count), []
    for k, name in enumerate(names):
        kind, work = kinds.next(), next(written)
        while kind in NEEDS_ANSWERS and (work.marks is None or "blank" in work.name):
            work = next(written)
        uploads, counts, work, reason = hand_in(exercise, rng, kind, work, platform)
        made.append(Student(name, 1000 + 7 * k, f"s{1000 + 7 * k}@example.edu", f"{kind}: {work.name}", uploads, work.marks, counts,
                            rng.random() < 0.15, reason))
    return made


def _names(rng: random.Random, platform: str, count: int) -> list[str]:
    """Every fourth name is a strange one; where numbers tell students apart, some have one name."""
    unique, names, strange = platform in ("plain", "nbgrader"), [], _Chooser(rng, STRANGE)
    while len(names) < count:
        name = strange.next() if len(names) % 4 == 3 else f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        if unique and any(_folded(name) == _folded(other) for other in names):
            name = f"{name} {len(names)}"
        if unique:
            name = re.sub(r"[/\t]", "-", name)
        if platform == "moodle":  # it takes tags out of names, PARAM_NOTAGS
            name = re.sub(r"<[^<>]*>", "", name) or "No Tags"
        names.append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def main(argv: list[str] | None = None) -> int:
    """Make the class, and with --grade have it graded and compared; 1 if something differs."""
    import class_checks
    import made_up_layouts

    parser = argparse.ArgumentParser(prog="python tests/made_up_class.py", description="Make a class whose marks are known.")
    parser.add_argument("folder", type=Path, help="a new folder for it")
    parser.add_argument("--layout", choices=LAYOUTS, default="canvas")
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--assignment", default="02", metavar="NN")
    parser.add_argument("--slow", type=int, default=6, help="how many hold the grader up for as long as they may")
    parser.add_argument("--grade", action="store_true", help="grade it three times, killed on the way, and compare all that comes out")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True)
    exercise = Exercise(args.assignment)
    made = students(exercise, args.layout, args.students, args.seed, args.slow)
    made_up_layouts.lay_out(args.folder, args.layout, made, exercise)
    if not args.grade:
        return 0
    wrong = class_checks.graded_thrice(args.folder, exercise, made, args.layout, args.seed)
    print("\n".join(wrong) or f"{len(made)} students: every mark is right")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
