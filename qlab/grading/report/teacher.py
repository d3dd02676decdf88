"""What is for the teacher alone, because hidden inputs are in it: written beside the export folder, never into it.

    pages      results/02/teacher/pages/index.html    a page a student, and an index (module pages)
    similar    results/02/teacher/similar.html, .csv  answers that are alike (module similar)
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qlab.grading.handed_in import notebook
from qlab.grading.report import each, pages, similar, whole
from qlab.grading.report.summary import number
from qlab.grading.report.text import table

NAMES = ("pages", "similar")


def export(name: str, made: list[dict], bundle: dict, folder: Path, hand_ins: Iterable, exercises: Iterable[Path] = (),
           linked: bool = False) -> str:
    """Write one of the two below folder and say what was written. Raises OSError, or each.Incomplete where some had to be left out.

    hand_ins: as ingest.hand_ins returns them, to read the code again; exercises: where the exercise as it was handed out may lie;
    linked: whether both are exported, so that names in similar lead to the pages.
    """
    counts = [result for result in made if result["submission"]["duplicate_of"] is None]
    cells = {entry.id: entry.cells for hand_in in hand_ins for entry in hand_in.read()}
    if name == "pages":
        counts, lost = each.sound(counts, lambda one: pages.page(one, bundle, cells.get(one["submission"]["id"], ())))
        whole.folder(folder / "pages", pages.pages(counts, bundle, cells))
        told = f"{folder / 'pages' / 'index.html'}, {number(len(counts), 'page')}, for the teacher only: hidden inputs are on them"
        if lost:
            raise each.Incomplete(f"{told}; {lost}")
        return told
    given = next(filter(None, map(handed_out, exercises)), ())
    found = similar.pairs(counts, bundle, cells, given)
    whole.files({folder / "similar.csv": "\ufeff" + table(similar.rows(found)),
                 folder / "similar.html": similar.page(found, bundle, cells, len(counts), linked)})
    without = "" if given else ", without the exercise as it was handed out, so that its lines count as the students' own"
    return f"{folder / 'similar.html'} and .csv, {number(len(found), 'pair')}, for the teacher only{without}"


def handed_out(path: Path) -> tuple[dict, ...]:
    """The cells of an exercise notebook; none where there is none."""
    with suppress(OSError, ValueError):
        return tuple(notebook.cells_of(path.read_bytes()))
    return ()
