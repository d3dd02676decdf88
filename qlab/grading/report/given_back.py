"""Feedback as the zips that Canvas and Moodle take back, under the names under which they gave the hand-ins out.

Moodle ("Upload multiple feedback files in a zip") reads the student and the plugin off the folder, Full Name_17_assignsubmission_file_,
and hands what lies in it to that student under its own name: feedback.html (mod/assign/feedback/file/importziplib.php).

Canvas ("Upload Multiple Submissions") reads the student's and the upload's number off the file's name, lovelaceada_LATE_123_456_02.ipynb,
or anon_AbC12_456_02.ipynb, and attaches the file to a comment, under the name of the student's own upload whatever it holds
(app/models/abstract_assignment.rb, infer_comment_context_from_filename). So what goes back for a notebook is a notebook, with the page as
its one output, for a zip a zip with the page in it, for a text the page's text. What is none of these (.pdf, .rar) would open as nothing,
and is left out. A link or text that was handed in has no upload's number: Canvas takes nothing back.
"""

import io
import json
import re
import zipfile

from qlab.grading.handed_in import canvas
from qlab.grading.report import feedback, words
from qlab.grading.report.summary import number
from qlab.grading.report.text import clean

FOLDER = re.compile(r"[^_]+_[0-9]+_assignsubmission_[a-z0-9]+_?")  # what follows it is the name of a file, where all lay in one folder
TEXTS = ("txt", "md", "py", "csv", "log", "rst", "tex")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that the same results make the same zip


def packed(platform: str, scored: list[dict]) -> tuple[bytes, str]:
    """The zip for "canvas" or "moodle", and what is in it. Raises ValueError if nothing came from there."""
    of = [result for result in scored if result["submission"]["platform"] == platform]
    if not of:
        raise ValueError(f"no hand-in came from {platform.capitalize()}, so there are no names to give feedback back under.")
    groups = {}
    for result in of:
        groups.setdefault(handed_out_as(result["submission"]), []).append(result)
    rest = [result for result in scored if result not in of] + groups.pop(None, [])
    files, unlike = {}, []
    for name, group in groups.items():
        if len({feedback.page(_called(result, "")) for result in group}) > 1:
            rest += group  # members of one group with different marks: who opens the file would read another one's
            continue
        result = _called(group[0], ", ".join(result["submission"]["student"] for result in group))
        if platform == "moodle":
            files[f"{name}/feedback.html"] = feedback.page(result)
        elif (content := _like(name, result)) is not None:
            files[name] = content
        else:
            unlike += group
    told = [number(len(files), "file"), *([f"{len(rest)} without a name to give theirs back under: {words.named(rest)}"] if rest else []),
            *([f"{len(unlike)} left out, whose hand-in is no notebook, zip or text, so that a page under its name could not be opened: "
               f"{words.named(unlike)}"] if unlike else [])]
    return _zipped(files), ", ".join(told)


def _like(name: str, result: dict) -> str | bytes | None:
    """The feedback as what a file of this name can be opened as; None if it is nothing that can hold it."""
    suffix = name.lower().rpartition(".")[2]
    if suffix in ("ipynb", "json"):  # a notebook saved under another name
        return notebook(result)
    if suffix == "zip":
        return _zipped({"feedback.html": feedback.page(result)})
    if suffix in ("html", "htm"):
        return feedback.page(result)
    return clean("\n".join(words.comments(result))) + "\n" if suffix in TEXTS else None


def _zipped(files: dict[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _called(result: dict, name: str) -> dict:
    return {**result, "submission": {**result["submission"], "student": name}}


def handed_out_as(who: dict) -> str | None:
    """The name under which a platform takes feedback for a submission, or None: that under which it gave the submission out.

    A team's folder of Moodle's has the number of the group, and Moodle hands what lies in it to each member (get_participant_mapping).
    A submission without a number is one of which it is in doubt whose it is, or Canvas hid the name.

    >>> handed_out_as({"platform": "moodle", "number": "17", "entry": "Ada Lovelace_17_assignsubmission_file_02.ipynb"})
    'Ada Lovelace_17_assignsubmission_file_'
    """
    name = clean(who["entry"]).replace("\\", "_")  # a student may have chosen the end of it
    if who["platform"] == "moodle":
        match = FOLDER.match(name)
        return match[0] if match and who["number"] else None
    match = canvas.HIDDEN.fullmatch(name) or who["number"] and canvas.UPLOAD.fullmatch(name)
    return name if match and match["upload"] else None


def notebook(result: dict) -> str:
    """The feedback as a Jupyter notebook (nbformat 4.4) of one cell, which is not there to be run."""
    page, text = feedback.body(result), "\n".join(words.comments(result))
    output = {"output_type": "display_data", "data": {"text/html": page, "text/plain": clean(text)}, "metadata": {}}
    cell = {"cell_type": "code", "source": "# Feedback", "execution_count": None, "metadata": {}, "outputs": [output]}
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}, indent=1) + "\n"
