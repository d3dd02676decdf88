"""What comes out of a batch: tables for a spreadsheet, for Canvas, Moodle and Gradescope, pages for students, a picture for the teacher.

    csv          gradebook.csv             everything, a row a student
    html         feedback/ID.html          what that student may see (module feedback)
    gradescope   gradescope/*/results.json what its autograder would have written
    canvas       canvas.csv                Gradebook > Import; students are found by ID, else by SIS ID, else by name
    moodle       moodle.csv                the assignment's "Upload grading worksheet"; students are found by Identifier
    statistics   statistics.png, .html     the class (module classroom); hidden tests' names are in it, so for the teacher only

A spreadsheet runs what begins with = + - @ (or their full-width forms), and one whose list separator is the semicolon begins a field
after each, as it does after a tab or a line end that it does not know to be quoted. At each such place a quote goes before one of these
signs, and before a quote, so that taking one quote away there always gives the text back. Who has no score is left out of what Canvas,
Moodle and Gradescope read, because an empty field there may wipe out a mark.
"""

import csv
import html
import io
import re
from pathlib import Path

from qlab.grading import results

FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20']|[\t\r])")


def export(name: str, made: list[dict], bundle: dict, folder: Path, canvas_column: str | None = None) -> str:
    """Write one of the exports above below folder and say what was written. Raises OSError.

    made: the results of a batch; those set aside for another one of the same student are in no export.
    """
    counts = [result for result in made if result["submission"]["duplicate_of"] is None]
    scored = [result for result in counts if result["score"] is not None]
    left_out = len(counts) - len(scored)
    without = f", {left_out} without a score left out" if left_out else ""
    if name == "csv":
        results.write(folder / "gradebook.csv", "\ufeff" + gradebook(counts, bundle))  # without the mark Excel misreads umlauts
        return f"{folder / 'gradebook.csv'}, {len(counts)} rows"
    if name == "canvas":
        results.write(folder / "canvas.csv", canvas(scored, bundle, canvas_column))
        return f"{folder / 'canvas.csv'}, {len(scored)} rows{without}"
    if name == "moodle":
        results.write(folder / "moodle.csv", moodle(scored))
        return f"{folder / 'moodle.csv'}, {len(scored)} rows{without}"
    if name == "gradescope":
        for result in scored:
            results.write(folder / "gradescope" / _gradescope_name(result) / "results.json", results.to_json(gradescope(result)))
        return f"{folder / 'gradescope'}, {len(scored)} results{without}"
    if name == "html":
        from qlab.grading.report import feedback

        for result in counts:
            results.write(folder / "feedback" / f"{result['submission']['id']}.html", feedback.page(result))
        return f"{folder / 'feedback'}, {len(counts)} pages"
    if name == "statistics":
        from qlab.grading.report import classroom

        picture = classroom.picture(counts, bundle)
        results.write(folder / "statistics.png", picture)
        results.write(folder / "statistics.html", classroom.page(counts, bundle, picture))
        return f"{folder / 'statistics.html'} and .png, for the teacher only"
    raise ValueError(f"there is no export {name!r}: choose among csv, html, gradescope, canvas, moodle, statistics.")


def neutral(value) -> str:
    """A field that no spreadsheet takes for a formula.

    >>> neutral("=1+1"), neutral("Ada, Countess"), neutral("'quoted"), neutral(3), neutral("a;-1")
    ("'=1+1", 'Ada, Countess', "''quoted", '3', "a;'-1")
    """
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return FORMULA.sub("'", text)


def _table(rows: list[list]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([[neutral(value) for value in row] for row in rows])
    return stream.getvalue()


def gradebook(counts: list[dict], bundle: dict) -> str:
    """The gradebook as CSV: who, the score, each question's, and why where something is not as usual."""
    names = [question["id"] for question in bundle["questions"]]
    rows = [["student", "email", "number", "score", "max_score", *names, "late", "status", "reason", "notes", "source", "id"]]
    for result in counts:
        who, scores = result["submission"], {question["id"]: question["score"] for question in result["questions"]}
        rows.append([who["student"], who["email"], who["number"], result["score"], result["max_score"], *map(scores.get, names),
                     "late" if who["late"] else "", result["status"], result["reason"], "; ".join(result["notes"]), who["source"],
                     who["id"]])
    return _table(rows)


def canvas(scored: list[dict], bundle: dict, column: str | None = None) -> str:
    """Canvas's gradebook as CSV. column: the assignment's title there, with its id in parentheses if titles repeat.

    Canvas reads a number in parentheses as the assignment's id, so points stand in the row "Points Possible" and not in the title.
    """
    column = column or bundle["assignment"]
    rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", column],
            ["    Points Possible", "", "", "", "", results.max_score(bundle)]]
    for result in scored:
        who = result["submission"]
        number = {"canvas": (who["number"], "", ""), "gradescope": ("", who["number"], who["email"]),
                  "nbgrader": ("", "", who["student"])}.get(who["platform"], ("", "", who["email"]))
        rows.append([who["student"], *number, "", result["score"]])
    return _table(rows)


def moodle(scored: list[dict]) -> str:
    """Moodle's grading worksheet as CSV; its feedback column is HTML, so the text in it is escaped."""
    rows = [["Identifier", "Full name", "Email address", "Status", "Grade", "Maximum Grade", "Last modified (grade)", "Feedback comments"]]
    for result in scored:
        who = result["submission"]
        identifier = f"Participant {who['number']}" if who["platform"] == "moodle" else ""
        rows.append([identifier, who["student"], who["email"], "Submitted for grading", result["score"], result["max_score"], "",
                     "<br>".join(_markup(line) for line in comments(result))])
    return _table(rows)


def _markup(text: str) -> str:
    """Escaped, and without a sign of a formula after the semicolon of an escape.

    >>> _markup("a <= b")
    'a &lt;&#61; b'
    """
    return re.sub(r"(?<=;)[=+\-@]", lambda sign: f"&#{ord(sign[0])};", html.escape(text))


def comments(result: dict) -> list[str]:
    """What a student may read, a line a question.

    >>> comments({"reason": "", "questions": [{"id": "q1", "score": 0, "points": 2, "reason": "A public test fails."}]})
    ['q1: 0 of 2. A public test fails.']
    """
    lines = [f"Your notebook could not be read: {result['reason']}."] if result["reason"] else []
    return lines + [f"{q['id']}: {q['score']:g} of {q['points']:g}. {q['reason']}".rstrip() for q in result["questions"]]


def gradescope(result: dict) -> dict:
    """Gradescope's results.json of one submission: a test a question, visible, in plain text."""
    tests = [{"name": question["id"], "score": question["score"], "max_score": question["points"],
              "status": "passed" if question["state"] == "passed" else "failed", "output_format": "text",
              "output": _output(question), "visibility": "visible"} for question in result["questions"]]
    told = "\n".join(comments({**result, "questions": []}))
    return {"score": result["score"], "execution_time": result["seconds"], "output": told, "output_format": "text", "visibility": "visible",
            "stdout_visibility": "hidden", "tests": tests}


def _output(question: dict) -> str:
    lines = [question["reason"]]
    if failed := question["public_failed"]:
        lines += [f"call: {failed['call']}", *(f"{name} = {text}" for name, text in failed["inputs"].items()),
                  f"expected: {failed['expect']}", f"got: {failed['got']}", *([f"hint: {failed['hint']}"] if failed["hint"] else [])]
    return "\n".join(lines)


def _gradescope_name(result: dict) -> str:
    match = re.search(r"(?:^|/)(submission_\d+)/", result["submission"]["source"])
    return match[1] if match and result["submission"]["platform"] == "gradescope" else result["submission"]["id"]
