"""Which platform laid out what was handed in: decided once, by all outermost entries together, and by nothing that lies in one of them.

    canvas      lastfirst_LATE_123_456_any-1.ipynb, lastfirst_123_text.html, LATE_anon_a1B2c_456_any.ipynb
    moodle      Full Name_123_assignsubmission_file/any.ipynb, or all in one folder: Full Name_123_assignsubmission_file_any.ipynb
    gradescope  submission_123/any.ipynb beside submission_metadata.yml
    nbgrader    submitted/student/assignment/any.ipynb with timestamp.txt
    sections    tuesday/student/any.ipynb, tuesday/student.ipynb: never guessed
    plain       student/any.ipynb, student.ipynb, student.zip

Where each comes from: module canvas. moodle/moodle, mod/assign/classes/downloader.php and, before 4.1, locallib.php, download_submissions
("_" in names becomes a space; a team's folder has the group's name and number, or "Default group" and none; earlier "Team-Full Name" and
the participant's). jupyter/nbgrader, exchange/default/collect.py and submit.py.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qlab.grading.handed_in import canvas, gradescope
from qlab.grading.handed_in.files import File, kind_of, stem_of

NAMES = ("canvas", "moodle", "gradescope", "nbgrader", "sections", "plain")
TITLES = {"canvas": "Canvas", "moodle": "Moodle", "gradescope": "Gradescope", "nbgrader": "nbgrader"}
MOODLE = re.compile(r"(?P<name>[^_]+)(?:_(?P<number>[0-9]+))?_assignsubmission_[a-z0-9]+(?:_.*)?", re.DOTALL)
GRADESCOPE = re.compile(r"submission_[0-9]+")
NBGRADER = {"source", "release", "submitted", "autograded", "feedback"}  # the folders of a course
METADATA = "submission_metadata.yml"
COURSE = ("exercises", "notebooks")  # the folders of a release that hold notebooks


@dataclass(frozen=True)
class Layout:
    """Who laid it out, one of NAMES; root: the folders that all of it lies in, before a student's name; anonymous: Canvas hides names;
    people: Gradescope's folders, and who handed in each; student: the name of the one whose hand-in the whole is, else ""."""

    name: str
    root: tuple[str, ...] = ()
    anonymous: bool = False
    people: Mapping[str, list[dict]] | None = None
    student: str = ""


def names_assignment(name: str, assignment: str) -> bool | None:
    """Whether a file or folder is named after the assignment: True, False for another assignment's name, None for neither.

    >>> [names_assignment(n, "02_linear") for n in ("02_linear (1)", "02", "02-mine", "03_log", "ada")]
    [True, True, True, False, None]
    """
    name, number = name.lower(), assignment.partition("_")[0]
    if name.startswith(assignment.lower()):
        return True
    if number.isdigit() and (match := re.match(r"(\d+)(?=[_ -]|$)", name)):
        return True if match[1] == number else False if len(match[1]) == len(number) else None
    return None


def is_hand_in(file: File) -> bool:
    """Whether a file could be, or hold, a notebook."""
    return file.kind in ("notebook", "archive", "packed") or bool(file.refused) and file.kind != "metadata"


def _below(found: Iterable[File], root: tuple[str, ...]) -> dict[str, list[File]]:
    """The entries of a folder, and the files at or below each."""
    entries = {}
    for file in found:
        if len(file.parts) > len(root) and file.parts[:len(root)] == root:
            entries.setdefault(file.parts[len(root)], []).append(file)
    return entries


def _is_folder(files: list[File], depth: int) -> bool:
    return any(len(file.parts) > depth or file.kind == "empty" for file in files)


def one_students(hand_ins: Iterable[tuple[str, ...]], assignment: str) -> bool | None:
    """Whether notebooks and zips at these paths are all one student's, and not a class's; None where they may be either.

    They are where all that lies at the top is named as the assignment or is a folder of the course's release: beside anything else, one of
    a class may have left the notebook its name. A folder that holds the release is one student's, too.

    >>> paths = [("02_linear.ipynb",), ("02 (1).ipynb",)], [("02_linear.ipynb",), ("ada.ipynb",)], [("02_a.ipynb",), ("02_b.ipynb",)]
    >>> [one_students(of, "02_linear") for of in paths]
    [True, None, False]
    >>> one_students([("qlab", "exercises", "02_linear.ipynb"), ("qlab", "notebooks", "02_linear.ipynb")], "02_linear")
    True
    """
    hand_ins = [parts for parts in hand_ins if len(parts) > 1 or not others_notebook(parts[0], assignment)]
    outer = {parts[0] for parts in hand_ins}
    own = {parts[0] for parts in hand_ins if (parts[0] in COURSE if len(parts) > 1 else
                                              kind_of(parts[0]) == "notebook" and _is_named(parts[0], assignment))}
    if own:
        return True if own == outer else None
    return len(outer) == 1 and any(len(parts) > 2 and parts[1] in COURSE for parts in hand_ins)


def _is_named(part: str, assignment: str) -> bool:
    """Whether a file has the assignment's name or number and nothing else, but for what a browser puts behind it."""
    stem = re.sub(r" ?\(\d+\)$", "", stem_of(part)).lower()
    return stem in (assignment.lower(), assignment.partition("_")[0])


def others_notebook(name: str, assignment: str) -> bool:
    """Whether a loose notebook is another assignment's by its name. A folder or zip may be that of a student with a number.

    >>> [others_notebook(name, "02_linear") for name in ("03_log.ipynb", "02_bob.ipynb", "03_cyd.zip", "03_cyd")]
    [True, False, False, False]
    """
    return kind_of(name) == "notebook" and names_assignment(stem_of(name), assignment) is False


def detect(found: list[File], assignment: str, place: str = "", given: str | None = None) -> Layout:
    """The layout of everything handed in. place: the name of the folder or zip that was searched; given: the layout, if it is told.

    Raises ValueError where some entries are named as a platform names them and others are not, or where what is there may be a class's as
    well as one student's.
    """
    if given is not None and given not in NAMES:
        raise ValueError(f"layout is {given!r}, and must be one of {', '.join(NAMES)}.")
    root = ()
    while True:
        entries = _below(found, root)
        layout = _platform(entries, root, place, given)
        if layout:
            zipped = next((part for part in layout.root if kind_of(part) == "archive"), None)
            if zipped and not given:
                raise ValueError(f"{zipped} is all that there is, and laid out as by {TITLES[layout.name]}: if it is the class's, grade "
                                 f"{zipped} itself; if one student handed it in, say --layout plain.")
            return layout
        entries = {name: files for name, files in entries.items() if not others_notebook(name, assignment)
                   and (any(map(is_hand_in, files)) or _is_folder(files, len(root) + 1))}
        if any(name.lower().startswith(assignment.lower()) for name in entries):  # folders of assignments
            entries = {name: files for name, files in entries.items() if names_assignment(name, assignment) is not False}
        only = next(iter(entries), "")
        if len(entries) != 1 or not _is_folder(entries[only], len(root) + 1) or given == "sections":
            break
        inside = _below(found, (*root, only))
        if given == "plain" and kind_of(only) == "archive" or not _fits(inside, (*root, only), given) and _is_student(
                only, entries[only], root, assignment, given):
            break
        root += (only,)
    if given and given not in ("sections", "plain"):
        raise ValueError(f"nothing there is named as {TITLES[given]} names it: leave out --layout {given}, or name the folder or zip "
                         "that was downloaded.")
    released = len(entries) == 1 and only.lower().startswith("qlab")  # the folder of a release, or of a clone: no student's name
    whole = not root and not given and (released or len(entries) > 1 and one_students([file.parts for file in found if is_hand_in(file)],
                                                                                      assignment))
    if whole is None:
        raise _doubt("it", found, assignment, "put it, as a zip with the student's name, into a folder, and grade that with --layout plain")
    return Layout(given or "plain", root, student=place if whole else "")


def _doubt(what: str, files: Iterable[File], assignment: str, one: str, depth: int = 0) -> ValueError:
    """That files may be one student's or a class's, and what to do."""
    outer = sorted({file.parts[depth] for file in files if len(file.parts) > depth and is_hand_in(file)})
    named = next(name for name in outer if name in COURSE or _is_named(name, assignment) and kind_of(name) == "notebook")
    other = next(name for name in outer if name not in COURSE and not _is_named(name, assignment) and not others_notebook(name, assignment))
    each = f"grade {what} itself" if kind_of(what) == "archive" else "say --layout plain"
    return ValueError(f"{what} holds {named} and {other}, and may be a class's or one student's: if each in it is a student's, {each}; if "
                      f"all of it is one student's, {one}.")


def _is_student(name: str, files: list[File], root: tuple[str, ...], assignment: str, given: str | None) -> bool:
    """Whether a folder or zip that is alone is a student's, and not the class's. Raises ValueError if it may be either, and is not told."""
    if names_assignment(name, assignment) and len(name.strip("0123456789")) > 0:
        return False
    inner = [file.parts[len(root) + 1:] for file in files if is_hand_in(file) and len(file.parts) > len(root) + 1]
    deeper = [parts for parts in inner if len(parts) > 1 and not names_assignment(parts[0], assignment)]
    if len(inner) < 2:  # nearest to the one hand-in
        return not deeper
    one = one_students(inner, assignment)
    if one is None and not given:
        zipped = "say --layout plain" if kind_of(name) == "archive" else "put a zip of it in its place, and say --layout plain"
        raise _doubt(name, files, assignment, zipped, len(root) + 1)
    return bool(one)


def own_name(part: str, platform: str) -> str:
    """The name that a student gave a file, without what Canvas, and Moodle where all lies in one folder, put before it.

    >>> own_name("ada_LATE_7_8_03_log.ipynb", "canvas"), own_name("Ada_7_assignsubmission_file_03_log.ipynb", "moodle")
    ('03_log.ipynb', '03_log.ipynb')
    """
    if platform == "canvas" and (match := canvas.UPLOAD.fullmatch(part) or canvas.HIDDEN.fullmatch(part)) and match["upload"]:
        return part[match.end("upload") + 1:]
    if platform == "moodle" and (match := re.match(r"[^_]+(_[0-9]+)?_assignsubmission_[a-z0-9]+_(?=.)", part)):
        return part[match.end():]
    return part


def _platform(entries: dict[str, list[File]], root: tuple[str, ...], place: str, given: str | None) -> Layout | None:
    """The platform that laid out these entries; None if none did. Raises ValueError if it is one for some of them alone."""
    if given in ("sections", "plain"):
        return None
    depth = len(root) + 1
    held = [name for name, files in entries.items() if any(map(is_hand_in, files))]
    metadata = next((file.content for file in entries.get(METADATA, []) if file.content and len(file.parts) == depth), b"")
    people = gradescope.people(metadata)
    fitting = {
        "moodle": [name for name in entries if MOODLE.fullmatch(name if _is_folder(entries[name], depth) else stem_of(name))],
        "canvas": [name for name in entries if canvas.told(name) or canvas.told(name, True)],
        "gradescope": [name for name in entries if name in people or _is_folder(entries[name], depth) and GRADESCOPE.fullmatch(name)],
    }
    told = {name: fit for name, fit in fitting.items() if fit and given in (None, name)}
    for name, fit in told.items():
        if given or set(held) <= set(fit):
            return Layout(name, root, name == "canvas" and all(canvas.told(entry, True) for entry in fit), people)
    if (submitted := _nbgrader(entries, root, place, given)) is not None:
        return Layout("nbgrader", submitted)
    if not told:
        return None
    name, fit = max(told.items(), key=lambda pair: len(pair[1]))
    other = next(entry for entry in held if entry not in fit)
    raise ValueError(f"{fit[0]} is named as {TITLES[name]} names what was handed in, and {other} is not: say --layout {name} or "
                     "--layout plain.")


def _fits(entries: dict[str, list[File]], root: tuple[str, ...], given: str | None) -> bool:
    try:
        return _platform(entries, root, "", given) is not None
    except ValueError:
        return False


def _nbgrader(entries: dict[str, list[File]], root: tuple[str, ...], place: str, given: str | None) -> tuple[str, ...] | None:
    """Where nbgrader's folders of students lie, if it is nbgrader that laid them out."""
    depth = len(root) + 1
    if given not in (None, "nbgrader"):
        return None
    folders = {name for name in entries if _is_folder(entries[name], depth)}
    others = {name for name, files in entries.items() if any(map(is_hand_in, files))} - NBGRADER
    if "submitted" in folders and (given or not others):
        return (*root, "submitted")
    nested = all(len(file.parts) > depth + 1 for files in entries.values() for file in files if is_hand_in(file))
    if given or not root and place == "submitted" and others and others <= folders and nested:
        return root
    # Copied to a folder of another name: every student has the assignment's timestamp.txt, which no single one can bring about.
    stamped = {file.parts[depth - 1:depth + 1] for files in entries.values() for file in files
               if len(file.parts) == depth + 2 and file.parts[-1] == "timestamp.txt"}
    same = [{student for student, assignment in stamped if assignment == name} for name in {assignment for _, assignment in stamped}]
    return root if any(len(students) > 1 and others <= students for students in same) else None


def hint(found: list[File], layout: Layout, assignment: str) -> str:
    """What a teacher should be told who may have given folders of sections; "" if nothing."""
    if layout.name != "plain" or layout.student:
        return ""
    several, depth = [], len(layout.root) + 1
    for name, files in _below(found, layout.root).items():
        inner = [file.parts[depth:] for file in files if is_hand_in(file) and len(file.parts) > depth]
        if len({parts[0] for parts in inner}) > 1 and not any(_is_named(parts[0], assignment) for parts in inner):
            several.append(name)
    more = f" and {len(several) - 3} more" if len(several) > 3 else ""
    told = "say --layout sections if such a folder holds several students'"
    return f"read as one student's each: {', '.join(several[:3])}{more}; {told}" if several else ""
