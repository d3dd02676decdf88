"""What comes out of a batch: tables for a spreadsheet, for Canvas, Moodle and Gradescope, pages for students, a picture for the teacher.

    csv              gradebook.csv             everything, a row a student
    html             feedback/ID.html          what that student may see (module feedback)
    gradescope       gradescope/*/results.json what its autograder would have written
    canvas           canvas.csv                Gradebook > Import; students are found by ID, else by SIS ID, else by name
    canvas-feedback  canvas_feedback.zip       Canvas: "Upload Multiple Submissions" (module given_back)
    moodle           moodle.csv                the assignment's "Upload grading worksheet" (module moodle)
    moodle-feedback  moodle_feedback.zip       Moodle: "Upload multiple feedback files in a zip" (module given_back)
    statistics       statistics.png, .html     the class (module classroom); hidden tests' names are in it, so for the teacher only

Each takes the place of the former one as a whole (module whole), without those alone who cannot be written (module each); what a student
can influence is made harmless (module text). Who has no score is left out of what Canvas, Moodle and Gradescope read, because an empty
field there may wipe out a mark; of whom it is in doubt who they are, out of what Canvas reads, because it might find another by the name.
"""

import re
from pathlib import Path

from qlab.grading import results
from qlab.grading.handed_in.canvas import HIDDEN
from qlab.grading.report import each, feedback, given_back, moodle, whole
from qlab.grading.report.summary import number
from qlab.grading.report.text import clean, table
from qlab.grading.report.words import by_hand, comments, deadline, graded, handed_in, named

NAMES = ("csv", "html", "gradescope", "canvas", "canvas-feedback", "moodle", "moodle-feedback", "statistics")


def export(name: str, made: list[dict], bundle: dict, folder: Path, canvas_column: str | None = None, worksheet: Path | None = None) -> str:
    """Write one of the exports above below folder and say what was written.

    Raises OSError, ValueError for a worksheet that is none, or each.Incomplete where some students had to be left out.

    made: the results of a batch, as final.adjust returns them; those set aside for another one of the same student are in no export.
    """
    alone = {"csv": lambda result: gradebook([result], bundle), "canvas": lambda result: canvas([result], bundle),
             "moodle": lambda result: moodle.table([result]), "gradescope": gradescope, "statistics": lambda result: None}
    counts, lost = each.sound([result for result in made if result["submission"]["duplicate_of"] is None], alone.get(name, feedback.page))
    told = _written(name, counts, bundle, folder, canvas_column, worksheet)
    if lost:
        raise each.Incomplete(f"{told}; {lost}")
    return told


def _written(name: str, counts: list[dict], bundle: dict, folder: Path, canvas_column: str | None, worksheet: Path | None) -> str:
    scored = [result for result in counts if result["score"] is not None]
    left_out = len(counts) - len(scored)
    without = f", {left_out} without a score left out" if left_out else ""
    if name == "csv":
        whole.files({folder / "gradebook.csv": "\ufeff" + gradebook(counts, bundle)})  # without the mark Excel misreads umlauts
        return f"{folder / 'gradebook.csv'}, {number(len(counts), 'row')}"
    if name == "canvas":
        sure = [result for result in scored if not _doubted(result["submission"])]
        whole.files({folder / "canvas.csv": canvas(sure, bundle, canvas_column)})
        unsure = [result for result in scored if _doubted(result["submission"])]
        doubted = f", {len(unsure)} in doubt whose they are left out: {named(unsure)}" if unsure else ""
        hidden = [result for result in sure if _hidden(result["submission"])]
        if hidden:
            doubted += f", {len(hidden)} without an ID, for Canvas hides their names, so that it cannot import their rows: {named(hidden)}"
        return f"{folder / 'canvas.csv'}, {number(len(sure), 'row')}{doubted}{without}"
    if name == "moodle":
        text, told = moodle.filled(worksheet, scored) if worksheet else (moodle.table(scored), number(len(scored), "row")
                                                                                + moodle.nobodys(scored))
        whole.files({folder / "moodle.csv": text})
        return f"{folder / 'moodle.csv'}, {told}{without}"
    if name == "gradescope":
        files, differ = _of_groups(scored)
        whole.folder(folder / "gradescope", files)
        none = f", none of {', '.join(differ)}, whose members' results differ" if differ else ""
        return f"{folder / 'gradescope'}, {number(len(files), 'result')}{none}{without}"
    if name == "html":
        whole.folder(folder / "feedback", {f"{result['submission']['id']}.html": feedback.page(result) for result in counts})
        return f"{folder / 'feedback'}, {number(len(counts), 'page')}"
    if name in ("canvas-feedback", "moodle-feedback"):
        place = folder / f"{name.replace('-', '_')}.zip"
        content, told = given_back.packed(name.partition("-")[0], scored)
        whole.files({place: content})
        return f"{place}, {told}{without}"
    if name == "statistics":
        from qlab.grading.report import classroom

        picture = classroom.picture(counts, bundle)
        whole.files({folder / "statistics.png": picture, folder / "statistics.html": classroom.page(counts, bundle, picture)})
        return f"{folder / 'statistics.html'} and .png, for the teacher only"
    raise ValueError(f"there is no export {name!r}: choose among {', '.join(NAMES)}.")


def _doubted(who: dict) -> bool:
    """Whether a hand-in of Canvas's has no number, and that not because Canvas hides it: by its name it might become another one's."""
    return who["platform"] == "canvas" and not who["number"] and not _hidden(who)


def _hidden(who: dict) -> bool:
    return who["platform"] == "canvas" and not who["number"] and bool(HIDDEN.fullmatch(who["entry"]))


def _of_groups(scored: list[dict]) -> tuple[dict[str, str], list[str]]:
    """Gradescope's files, and the names of those that are not written: a group has one file, and reads what is in it."""
    found = {}
    for result in scored:
        found.setdefault(_gradescope_name(result), set()).add(results.to_json(gradescope(result)))
    files = {f"{name}/results.json": content for name, (content, *others) in found.items() if not others}
    return files, [name for name, contents in found.items() if len(contents) > 1]


def gradebook(counts: list[dict], bundle: dict) -> str:
    """The gradebook as CSV: who, the score, each question's, how they came about, and why where something is not as usual."""
    names = [question["id"] for question in bundle["questions"]]
    rows = [["student", "email", "number", "score", "max_score", *names, "late", "handed_in", "deadline", "before_penalty",
             "penalty", "by_hand", "comment", "status", "reason", "notes", "source", "id"]]
    for result in counts:
        who, scores = result["submission"], {question["id"]: question["score"] for question in result["questions"]}
        late, said = result.get("adjusted", {}).get("late") or {}, result.get("adjusted", {}).get("by_hand", ())
        set_to = [f"{row['question'] or 'total'}: {row['points']:g}, graded {graded(row)}" for row in said if row["points"] is not None]
        told = [f"{row['question']}: {row['comment']}" if row["question"] else row["comment"] for row in said if row["comment"]]
        rows.append([who["student"], who["email"], who["number"], result["score"], result["max_score"], *map(scores.get, names),
                     {True: "late", None: "not known"}.get(who["late"], ""), handed_in(who), deadline(who), late.get("before"),
                     late.get("told"), "; ".join(set_to), "; ".join(told), result["status"], result["reason"], "; ".join(result["notes"]),
                     who["source"], who["id"]])
    return table(rows)


def canvas(scored: list[dict], bundle: dict, column: str | None = None) -> str:
    """Canvas's gradebook as CSV. column: the assignment's title there, with its id in parentheses if titles repeat.

    Canvas reads a number in parentheses as the assignment's id, so points stand in the row "Points Possible" and not in the title. It takes
    every row with these words in the first column for that one (instructure/canvas-lms, lib/gradebook_importer.rb), a student's as well.
    """
    column = column or bundle["assignment"]
    rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", column],
            ["    Points Possible", "", "", "", "", results.max_score(bundle)]]
    for result in scored:
        who = result["submission"]
        number = {"canvas": (who["number"], "", ""), "gradescope": ("", who["number"], who["email"]),
                  "nbgrader": ("", "", who["student"])}.get(who["platform"], ("", "", who["email"]))
        rows.append([who["student"].replace("Points Possible", "Points-Possible"), *number, "", result["score"]])
    return table(rows)


def gradescope(result: dict) -> dict:
    """Gradescope's results.json of one submission: a test a question, visible, in plain text.

    execution_time, which is optional there, is left out: students read it, and code can tell a hidden input by how long it sleeps
    (gradescope/autograder_samples, docs/specs.md).
    """
    tests = [{"name": question["id"], "score": question["score"], "max_score": question["points"],
              "status": "passed" if question["score"] == question["points"] else "failed", "output_format": "text",
              "output": clean(_output(question)), "visibility": "visible"} for question in result["questions"]]
    told = clean("\n".join(comments({**result, "questions": []})))
    return {"score": result["score"], "output": told, "output_format": "text", "visibility": "visible",
            "stdout_visibility": "hidden", "tests": tests}


def _output(question: dict) -> str:
    lines = [*by_hand(question.get("by_hand")), question["reason"]]
    if failed := question["public_failed"]:
        lines += [f"call: {failed['call']}", *(f"{name} = {text}" for name, text in failed["inputs"].items()),
                  f"expected: {failed['expect']}", f"got: {failed['got']}", *([f"hint: {failed['hint']}"] if failed["hint"] else [])]
    return "\n".join(lines)


def _gradescope_name(result: dict) -> str:
    match = re.search(r"(?:^|/)(submission_\d+)(?:/|$)", result["submission"]["source"])
    return match[1] if match and result["submission"]["platform"] == "gradescope" else result["submission"]["id"]
