"""The tables of docs/teaching.md, made from the notebooks' own heads and from the exercise sets: python -m qlab.lab.teaching

    objectives        each notebook's promise, its minutes, its sections of the source document, its set's questions
    misconceptions    the mistakes chosen in solutions/mistakes.csv, each with the wrong solution that the set itself knows

Each stands between two marks in docs/teaching.md, which the command replaces and nothing else. --check writes nothing, and says whether
they are up to date; --mistakes 02 prints all wrong solutions of a set. Run in a clone: the sources are in solutions/.
"""

import argparse
import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from qlab import saving

ROOT = Path(__file__).resolve().parents[2]
PAGE, MISTAKES = "docs/teaching.md", "solutions/mistakes.csv"
_MARKS = "<!-- {}: made by python -m qlab.lab.teaching -->", "<!-- end of {} -->"
_QUESTION = re.compile(r"^## Question (\d+): (.+)$", re.MULTILINE)
_WRONG = re.compile(r'^@(?:wrong)\("q(\d+)\w*",\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)


SECTIONS = re.compile(r"\*Source document:\*\s+((?:\d|\.\d|,|and|to|the worked example of|\s)+)|\*对应源文档\*：([^。]+)")


@dataclass(frozen=True)
class First:
    """What a notebook's first Markdown cell says in any language: title, objective and sections of the source document, "" without one."""

    title: str
    objective: str = ""
    sections: str = ""


@dataclass(frozen=True)
class Head:
    """What the first cell of a numbered notebook says: number, title, promise, minutes and sections, all as text."""

    number: str
    title: str
    promise: str
    minutes: str
    sections: str


def first(notebook: NotebookNode) -> First:
    """Of any notebook.

    >>> from nbformat.v4 import new_markdown_cell, new_notebook
    >>> source = "# 02 · Linear\\n\\n**Turn numbers\\ninto codes.**\\n\\n*Time:* 5 minutes. *Source document:* 2.1,\\n3.1 and 4.1.\\n\\nA"
    >>> first(new_notebook(cells=[new_markdown_cell(source)]))
    First(title='02 · Linear', objective='Turn numbers into codes.', sections='2.1, 3.1 and 4.1')
    """
    source = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (.+)$", source, re.MULTILINE)
    objective = re.search(r"^\*\*(.+?)\*\*\s*$", source, re.MULTILINE | re.DOTALL)
    words = [" ".join((found[1] or found[2]).split()) if found else "" for found in (title, objective, SECTIONS.search(source))]
    return First(words[0], words[1], words[2].rstrip(".,"))


def head(notebook: NotebookNode) -> Head:
    """Of a numbered notebook; ValueError where the first cell is not of the course's form.

    >>> from nbformat.v4 import new_markdown_cell, new_notebook
    >>> source = "# 02 · Linear\\n\\n**Turn numbers\\ninto codes.**\\n\\n*Time:* 85 minutes; 35 along it. *Source document:* 2.1, 4.1.\\nX."
    >>> head(new_notebook(cells=[new_markdown_cell(source)]))
    Head(number='02', title='Linear', promise='Turn numbers into codes.', minutes='85; 35', sections='2.1, 4.1')
    """
    known = first(notebook)
    numbered = re.fullmatch(r"(\d\d) · (.+)", known.title)
    minutes = re.search(r"\*Time:\*\s+(\d+)\s+minutes(?:;\s+(\d+))?", notebook.cells[0].source)
    if not (numbered and known.objective and minutes and known.sections):
        raise ValueError("the first cell must have '# NN · Title', a promise in bold, *Time:* and *Source document:*.")
    promise = known.objective.removeprefix("After this page you can ")
    return Head(numbered[1], numbered[2], promise[0].upper() + promise[1:], "; ".join(filter(None, minutes.groups())), known.sections)


def questions(notebook: NotebookNode) -> dict[int, str]:
    """The titles of an exercise set's questions by number.

    >>> from nbformat.v4 import new_markdown_cell, new_notebook
    >>> questions(new_notebook(cells=[new_markdown_cell("## Question 1: the range\\nIn bits.")]))
    {1: 'the range'}
    """
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return {int(number): title.strip() for number, title in _QUESTION.findall(text)}


def wrongs(notebook: NotebookNode) -> dict[int, list[str]]:
    """The names of the wrong solutions of a set's source, by question.

    >>> from nbformat.v4 import new_code_cell, new_notebook
    >>> wrongs(new_notebook(cells=[new_code_cell('@' 'wrong("q2", "subtracted in uint8")\\ndef f(): ...')]))
    {2: ['subtracted in uint8']}
    """
    found: dict[int, list[str]] = {}
    for cell in notebook.cells:
        for number, name in _WRONG.findall(cell.source) if cell.cell_type == "code" else ():
            found.setdefault(int(number), []).append(name.replace('\\"', '"'))
    return found


def objectives(root: Path) -> str:
    """The first table, in Markdown."""
    lines = ["| notebook | after it, a student can | minutes (short path) | source document | exercise questions |",
             "| --- | --- | --- | --- | --- |"]
    for path in _numbered(root / "notebooks"):
        of = head(_read(path))
        minutes = re.sub(r"; (\d+)", r" (\1)", of.minutes)
        asked = "; ".join(f"{number} {title}" for number, title in questions(_read(root / "exercises" / path.name)).items())
        lines.append(f"| [{of.number} {of.title}](../notebooks/{path.name}) | {of.promise} | {minutes} | {of.sections} "
                     f"| [set {of.number}](../exercises/{path.name}): {asked} |")
    return "\n".join(lines)


def chosen(root: Path) -> list[tuple[str, str, str, str]]:
    """Of each mistake the belief, the question (02.1), the note of the wrong solution, and what helps."""
    with open(root / MISTAKES, newline="", encoding="utf-8") as file:
        return [(row["belief"], row["question"], row["note"], row["help"]) for row in csv.DictReader(file)]


def misconceptions(root: Path) -> str:
    """The second table: the mistakes that were chosen, each with the note of the wrong solution in which it shows.

    Raises ValueError where a note is not one of that question's.
    """
    paths = {path.name[:2]: path for path in _numbered(root / "solutions")}
    notes = {number: wrongs(_read(path)) for number, path in paths.items()}
    lines = ["| they believe | in question | it shows as | what helps |", "| --- | --- | --- | --- |"]
    for belief, question, note, help in chosen(root):
        number, _, asked = question.partition(".")
        if note not in notes.get(number, {}).get(int(asked), []):
            raise ValueError(f"question {question} has no wrong solution named {note!r}: choose another in {MISTAKES}.")
        shown = note.replace("*", "\\*")  # two of them would begin bold print
        lines.append(f"| {belief} | [{question}](../exercises/{paths[number].name}) | {shown} | {help} |")
    return "\n".join(lines)


def listed(path: Path) -> str:
    """All wrong solutions of a set, question by question, as lines of text."""
    notebook = _read(path)
    lines = []
    for number, title in questions(notebook).items():
        lines += [f"Question {number}: {title}", *(f"  {note}" for note in wrongs(notebook).get(number, []))]
    return "\n".join(lines)


TABLES = {"objectives": objectives, "misconceptions": misconceptions}


def filled(page: str, root: Path) -> str:
    """The page with its tables as they are now. Raises ValueError where a mark is missing."""
    for name, make in TABLES.items():
        start, end = (mark.format(name) for mark in _MARKS)
        before, found, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{PAGE} must hold '{start}' and, behind it, '{end}'.")
        page = f"{before}{start}\n{make(root)}\n{end}{after}"
    return page


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def main(arguments: list[str] | None = None) -> int:
    """Write the tables, check them or list a set's wrong solutions; exit status 1 where they are old, or there is no such set."""
    parser = argparse.ArgumentParser(prog="python -m qlab.lab.teaching", description=f"Makes the tables of {PAGE}.")
    parser.add_argument("--check", action="store_true", help="write nothing; say whether they are up to date")
    parser.add_argument("--mistakes", metavar="NN", help="print all wrong solutions that the tests of set NN are known to catch")
    options = parser.parse_args(arguments)
    if options.mistakes is not None:
        found = sorted((ROOT / "solutions").glob(f"{options.mistakes}_*.ipynb"))
        print(listed(found[0]) if found else f"qlab: there is no set {options.mistakes} in solutions/.", file=None if found else sys.stderr)
        return int(not found)
    path = ROOT / PAGE
    if not path.exists():
        print(f"qlab: there is no {PAGE} in {ROOT}: this command needs the teacher's clone.", file=sys.stderr)
        return 1
    page = path.read_text(encoding="utf-8")
    new = filled(page, ROOT)
    if options.check:
        if new != page:
            print(f"{PAGE} is not up to date: run python -m qlab.lab.teaching.", file=sys.stderr)
        return int(new != page)
    saving.write({path: new.encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
