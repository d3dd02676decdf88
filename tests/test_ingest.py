"""What was handed in: the platforms' namings, which submission counts, and every kind of bad input with the sentence it is reported by."""

import io
import json
import os
import stat
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.grading.handed_in import files, handin, ingest, notebook, times, zips

NN = "02_linear_quantization"
DEADLINE = datetime(2026, 11, 20, 18, tzinfo=UTC)


def nb(*sources, ids=("q1", "q2"), **extra):
    """A notebook's bytes: a code cell for each source, the first ones with answer ids."""
    cells = [{"cell_type": "code", "source": source, "metadata": {}, "outputs": []} for source in sources or ("x = 1",)]
    for cell, name in zip(cells, ids if sources else ()):
        cell["metadata"]["nbgrader"] = {"grade_id": name, "grade": False, "solution": True, "schema_version": 3}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells} | extra).encode()


def put(root, path, content=None, when=None):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nb(f"# {path}") if content is None else content)
    if when:
        os.utime(path, (when.timestamp(),) * 2)
    return path


def zipped(entries):
    """A zip's bytes; entries: name -> bytes, or (ZipInfo, bytes) pairs."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return stream.getvalue()


def collect(root, **options):
    return ingest.collect(root, NN, **options)


def told(root, **options):
    """student: (status, reason) of everything collected; each is there once."""
    entries = collect(root, **options)
    assert len({entry.id for entry in entries}) == len(entries)
    return {(entry.student, entry.source): (entry.status, entry.reason) for entry in entries}


def at(day):
    return datetime(2026, 11, day, tzinfo=UTC)


def test_an_answer_that_is_defined_again_later_is_told(tmp_path):
    answers = "def f(x):\n    return x\n\nclass C:\n    pass", "def g():\n    raise NotImplementedError()"
    cells = json.loads(nb(*answers, "f = f(3)\ny = 2", "text = '''\ndef f():\n    return 3'''"))["cells"]
    later = json.loads(nb("x = 1\nasync def f(): return 1\nclass C: y = 2", "def g():\n    return 2\ndef own(): return 1", ids=()))["cells"]
    again = "a later cell defines {} again: the one of answer cell q1 counts".format
    twice = "answer cell q1 is there 2 times: the last definition counts"
    for more, told in (([], ()), (later, (again("C"), again("f"))), (cells[:1], (twice,))):
        book = json.dumps({"nbformat": 4, "cells": cells + more}).encode()
        (entry,) = collect(put(tmp_path, "ada.ipynb", book), answers={"q1": frozenset("fC"), "q2": frozenset("g")})
        assert entry.notes == told


def test_notes_are_few_and_short_whatever_is_handed_in(tmp_path):
    flood = "\n".join(f"def a{k:x}(): return 1" for k in range(60_000))
    answer = "def f(x):\n    return x\n"
    for k, more in enumerate((flood, f"'''\n{flood}\n'''", "def " + "a" * 10**6)):
        book = nb(answer + more, more, "def f(x): return 3", ids=("q1", None, None))
        (entry,) = collect(put(tmp_path / str(k), "ada.ipynb", book), answers={"q1": frozenset("f")})
        assert entry.notes == ("a later cell defines f again: the one of answer cell q1 counts",)
    named = {f"{'z' * 200}/{'y' * 200}/{k}.ipynb": nb(f"def f{k}(x): return 1", ids=(f"q{k}",)) for k in range(20)}
    answers = {f"q{k}": frozenset([f"f{k}"]) for k in range(20)}
    put(tmp_path / "class", "bob.ipynb")
    entry, *_ = collect(put(tmp_path / "class", "ada.zip", zipped(named)).parent, answers=answers)
    assert len(entry.notes) == 31 and entry.notes[-1] == "and 9 more" and max(map(len, entry.notes)) == 300


# The platforms


def test_plain_files_and_folders(tmp_path):
    for path in ("ada.ipynb", "bob/02_linear_quantization.ipynb", "cyd/work/homework.ipynb", "eve/02.ipynb", "eve/02 (1).ipynb"):
        put(tmp_path, path)
    put(tmp_path, "fay_02_linear_quantization.ipynb")
    put(tmp_path, "notes.txt", b"not a submission")
    put(tmp_path, "ada/.ipynb_checkpoints/02-checkpoint.ipynb")
    put(tmp_path, "bob/03_log.ipynb")
    put(tmp_path, "04/02.ipynb")  # a student with a number for a name
    counted = {entry.student: entry.source for entry in collect(tmp_path) if not entry.duplicate_of}
    assert counted.pop("eve") in ("eve/02.ipynb", "eve/02 (1).ipynb")
    assert counted == {"04": "04/02.ipynb", "ada": "ada.ipynb", "bob": "bob/02_linear_quantization.ipynb", "cyd": "cyd/work/homework.ipynb",
                       "fay": "fay_02_linear_quantization.ipynb"}


def test_a_student_may_have_a_number_for_a_name(tmp_path):
    for path in ("17/hw.ipynb", "03/homework.ipynb", "ada/03/hw.ipynb", "ada/02/hw.ipynb"):
        put(tmp_path / "class", path)
    put(tmp_path / "class", "18.zip", zipped({"hw.ipynb": nb()}))
    expected = {"03": "03/homework.ipynb", "17": "17/hw.ipynb", "18": "18.zip/hw.ipynb", "ada": "ada/02/hw.ipynb"}
    for place, prefix in ((tmp_path / "class", ""), (tmp_path, "class/")):
        assert {entry.student: entry.source for entry in collect(place)} == {name: prefix + source for name, source in expected.items()}


def test_one_student_with_a_number_for_a_name(tmp_path):
    put(tmp_path, "17/hw.ipynb")
    assert [(entry.student, entry.status) for entry in collect(tmp_path)] == [("17", "")]


@pytest.mark.parametrize("files, counts", [
    (["03_mine.ipynb"], "03_mine.ipynb"), (["03_mine (1).ipynb", "03_mine.ipynb"], "03_mine.ipynb"),
    (["02.ipynb", "03_mine.ipynb"], "02.ipynb"), (["hw.ipynb", "03_mine.ipynb"], "hw.ipynb")])
@pytest.mark.parametrize("place", ["Ada Byron_7_assignsubmission_file_", "submission_7"])
def test_on_a_platform_another_number_in_a_name_is_no_other_assignment(tmp_path, place, files, counts):
    """It was handed in for this one; beside a notebook without that number it is passed over."""
    for day, name in enumerate(files, 1):
        put(tmp_path, f"plain/{place}/{name}", when=at(day))
    packed = {zipfile.ZipInfo(name, (2026, 11, day, 0, 0, 0)): nb(name) for day, name in enumerate(files, 1)}
    put(tmp_path, f"packed/{place}/work.zip", zipped(packed))
    for kind in ("plain", "packed"):
        (entry,) = [entry for entry in collect(tmp_path / kind) if not entry.duplicate_of]
        assert (entry.status, entry.source.split("/")[0], entry.source.split("/")[-1]) == ("", place, counts)
        told = f"it has another assignment's name, {counts}, and was handed in for this one"
        assert (told in entry.notes) == counts.startswith("03")


def test_a_whole_course_without_this_assignment_is_no_notebook_of_it(tmp_path):
    put(tmp_path, "Ada_7_assignsubmission_file_/all.zip", zipped({f"{k:02}_topic.ipynb": nb() for k in (0, 1, 3, 4)}))
    assert [entry.status for entry in collect(tmp_path)] == ["unreadable"]


def test_a_notebook_that_a_browser_saved_under_a_longer_name_is_read(tmp_path):
    for path in ("ada.ipynb.txt", f"bob/{NN}.ipynb.json", "cyd/work.IPYNB.TXT"):
        put(tmp_path, path)
    put(tmp_path, "dan.zip", zipped({"02.ipynb.txt": nb()}))
    put(tmp_path, "eve/03_log.ipynb.txt")
    entries = {entry.student: entry for entry in collect(tmp_path)}
    assert {name: entry.status for name, entry in entries.items()} == {"ada": "", "bob": "", "cyd": "", "dan": "", "eve": "unreadable"}
    assert "it was saved as ada.ipynb.txt, and read as a notebook" in entries["ada"].notes
    (alone,) = collect(tmp_path / "ada.ipynb.txt")
    assert (alone.student, alone.status) == ("ada", "")


def test_a_file_that_could_be_a_hand_in_is_not_passed_over_in_silence(tmp_path):
    put(tmp_path, "ada.ipynb")
    put(tmp_path, "bob.rar", b"Rar!")
    put(tmp_path, "cyd.ipynb.bak")
    put(tmp_path, "fay/work.pdf", b"%PDF")
    said = []
    assert [(entry.student, entry.reason) for entry in collect(tmp_path, tell=said.append)] == [
        ("ada", ""), ("bob", "it is a .rar archive, and of archives only .zip is read"),
        ("fay", f"there is no notebook of {NN} in it, only work.pdf")]
    assert said == ["passed over: 1 file that is neither a notebook nor a zip: cyd.ipynb.bak"]


def test_a_folder_of_sections_keeps_the_students_apart(tmp_path):
    for path in ("tuesday/ada.ipynb", "tuesday/bob.ipynb", "friday/ada.ipynb", "friday/cyd/02.ipynb", "friday/dan/02.ipynb"):
        put(tmp_path, path)
    entries = collect(tmp_path, layout="sections")
    assert [entry.student for entry in entries] == ["ada", "ada", "bob", "cyd", "dan"]
    assert not any(entry.duplicate_of or entry.status for entry in entries)
    assert entries[0].notes[-1] == "another student is called ada too: tuesday/ada.ipynb"
    assert entries[1].notes[-1] == "another student is called ada too: friday/ada.ipynb"


def test_canvas(tmp_path):
    put(tmp_path, "lovelaceada_101_9001_02_linear.ipynb", nb("first"))
    put(tmp_path, "lovelaceada_101_9007_02_linear-1.ipynb", nb("second"))
    put(tmp_path, "turingalan_LATE_102_9002_homework.ipynb")
    put(tmp_path, "hopper_103_9003_work.zip", zipped({"my work/02.ipynb": nb(), "my work/data.csv": b"1"}))
    put(tmp_path, "lovelaceada_104_9004_02_linear.ipynb")  # another person of that name
    put(tmp_path, "noether_105_9005_report.pdf", b"%PDF")
    entries = {(entry.number, entry.source): entry for entry in collect(tmp_path)}
    assert {entry.platform for entry in entries.values()} == {"canvas"} and len(entries) == 6
    second = entries["101", "lovelaceada_101_9007_02_linear-1.ipynb"]
    first = entries["101", "lovelaceada_101_9001_02_linear.ipynb"]
    assert not second.status and "1 more handed in by the same student: this one counts" in second.notes
    assert first.duplicate_of == second.id and first.reason == (
        "the same student's lovelaceada_101_9007_02_linear-1.ipynb counts: it is newer")
    assert entries["102", "turingalan_LATE_102_9002_homework.ipynb"].late and not second.late
    assert entries["103", "hopper_103_9003_work.zip/my work/02.ipynb"].student == "hopper"
    assert "another student is called lovelaceada too: lovelaceada_104_9004_02_linear.ipynb" in second.notes
    nothing = entries["105", "noether_105_9005_report.pdf"]
    assert (nothing.status, nothing.reason) == ("unreadable", f"there is no notebook of {NN} in it, only noether_105_9005_report.pdf")


def test_moodle(tmp_path):
    put(tmp_path, "Ada, Countess of Lovelace_17_assignsubmission_file_/02.ipynb")
    put(tmp_path, "Ada, Countess of Lovelace_17_assignsubmission_onlinetext_/onlinetext.html", b"<p>hi</p>")
    put(tmp_path, "José Ñuñez_18_assignsubmission_file/work.ipynb")
    put(tmp_path, "Max Muster_19_assignsubmission_file_homework.ipynb")
    (tmp_path / "Empty Person_20_assignsubmission_file_").mkdir()
    entries = {entry.number: entry for entry in collect(tmp_path)}
    assert {number: entry.student for number, entry in entries.items()} == {
        "17": "Ada, Countess of Lovelace", "18": "José Ñuñez", "19": "Max Muster", "20": "Empty Person"}
    assert (entries["20"].status, entries["20"].reason) == ("unreadable", "it is empty")


def test_gradescope_with_a_group(tmp_path):
    yml = b"""---
submission_7:
  :submitters:
  - :name: Ada Lovelace
    :sid: 4711
    :email: ada@example.edu
  - :name: '=cmd|calc'
    :sid: '4712'
    :email: b@example.edu
  :created_at: 2026-11-21 10:00:00.117497000 Z
submission_8:
  :submitters:
  - :name: Ada Lovelace
    :sid: '4713'
    :email: other@example.edu
  :created_at: 2026-11-19 10:00:00 UTC
"""
    put(tmp_path, "assignment_1_export/submission_metadata.yml", yml)
    for number in (7, 8, 9):
        put(tmp_path, f"assignment_1_export/submission_{number}/02.ipynb")
    entries = {(entry.student, entry.number): entry for entry in collect(tmp_path, deadline=DEADLINE)}
    assert set(entries) == {("Ada Lovelace", "4711"), ("=cmd|calc", "4712"), ("Ada Lovelace", "4713"), ("submission_9", "")}
    assert entries["Ada Lovelace", "4711"].late and not entries["Ada Lovelace", "4713"].late
    assert entries["Ada Lovelace", "4711"].email == "ada@example.edu"
    assert any("another student is called Ada Lovelace too" in note for note in entries["Ada Lovelace", "4711"].notes)


@pytest.mark.parametrize("content", [
    b"[1, 2", b"\xff\xfe", b"a: &x [1]\nb: *x", b"submission_7:\n  :submitters: 3", b"- 1", b"!!python/object:os.system {}",
    b"[" * 100_000, b"submission_7: " + b"{a: " * 50_000])
def test_a_metadata_file_that_is_not_gradescopes_is_passed_over(tmp_path, content):
    put(tmp_path, "submission_metadata.yml", content)
    put(tmp_path, "submission_7/02.ipynb")
    assert [entry.student for entry in collect(tmp_path)] == ["submission_7"]


def test_nbgrader(tmp_path):
    stamps = {"ada": b"2026-11-21 10:00:00.000001 UTC\n", "bob": b"2026-11-20 16:00:00 America/New_York", "cyd": b"yesterday"}
    for student, stamp in stamps.items():
        put(tmp_path, f"submitted/{student}/ps1/{NN}.ipynb", when=at(1))
        put(tmp_path, f"submitted/{student}/ps1/timestamp.txt", stamp)
        put(tmp_path, f"submitted/{student}/ps2/03_log.ipynb")
    (tmp_path / "submitted" / "dan").mkdir()
    for root in (tmp_path, tmp_path / "submitted"):
        entries = {entry.student: entry for entry in collect(root, deadline=DEADLINE)}
        assert list(entries) == ["ada", "bob", "cyd", "dan"]
        assert [entries[name].late for name in ("ada", "bob", "cyd")] == [True, True, None]  # 16:00 in New York is 21:00 UTC
        assert (entries["dan"].status, entries["dan"].reason) == ("unreadable", "it is empty")


def test_zips_nested_and_by_themselves(tmp_path):
    ada = zipped({"homework/02.ipynb": nb("a")})
    inner = {"ada.zip": ada, "bob/02.ipynb": nb("b"), "cyd.ipynb": nb("c"), "__MACOSX/bob/._02.ipynb": b"x"}
    whole = put(tmp_path, "class.zip", zipped(inner))
    for root, prefix in ((tmp_path, "class.zip/"), (whole, "")):
        assert {entry.student: entry.source.removeprefix(prefix) for entry in collect(root)} == {
            "ada": "ada.zip/homework/02.ipynb", "bob": "bob/02.ipynb", "cyd": "cyd.ipynb"}


def test_one_notebook_by_itself(tmp_path):
    (entry,) = collect(put(tmp_path, "ada.ipynb", nb("x = 1\n")))
    assert (entry.student, entry.source, entry.status) == ("ada", "ada.ipynb", "")
    assert entry.cells == ({"source": "x = 1\n", "grade_id": "q1", "grade": False},)


def test_a_students_zip_claims_nobody_elses_name_on_a_platform(tmp_path):
    put(tmp_path, "ada_1_10_02.ipynb")
    people = b"submission_1:\n  :submitters:\n  - :name: ada\n"
    forged = {"ada_1_99_02.ipynb": nb(), "submission_metadata.yml": people, "submission_1/02.ipynb": nb()}
    put(tmp_path, "mallory_2_11_work.zip", zipped(forged))
    assert {(entry.student, entry.number) for entry in collect(tmp_path)} == {("ada", "1"), ("mallory", "2")}


# Which counts


@pytest.mark.parametrize("days, counts, late", [
    ((18, 19, 21), "02 (19)", False), ((21, 22, 23), "02 (21)", True), ((18, 19), "02 (19)", False), ((23,), "02 (23)", True)])
def test_the_last_in_time_counts_or_the_first_late_one(tmp_path, days, counts, late):
    for day in days:
        put(tmp_path, f"ada/02 ({day}).ipynb", when=at(day))
    put(tmp_path, "bob/02.ipynb")
    entries = [entry for entry in collect(tmp_path, deadline=DEADLINE, file_times=True) if entry.student == "ada"]
    (counting,) = [entry for entry in entries if not entry.duplicate_of]
    assert (counting.source, counting.late, counting.status) == (f"ada/{counts}.ipynb", late, "")
    for entry in [entry for entry in entries if entry is not counting]:
        assert (entry.duplicate_of, entry.status) == (counting.id, "not graded")
        why = "this one is late" if entry.late and not late else "it came first" if late else "it is newer"
        assert entry.reason == f"the same student's ada/{counts}.ipynb counts: {why}"


def test_nothing_is_late_without_a_deadline(tmp_path):
    put(tmp_path, "ada.ipynb", when=at(30))
    assert not collect(tmp_path)[0].late


def test_what_cannot_be_read_does_not_count_while_another_can(tmp_path):
    put(tmp_path, "ada/02 (1).ipynb", when=at(1))
    put(tmp_path, "ada/02 (2).ipynb", b"{", when=at(2))
    put(tmp_path, "bob/02.ipynb")
    broken, good = sorted((entry for entry in collect(tmp_path) if entry.student == "ada"), key=lambda entry: not entry.status)
    assert good.source == "ada/02 (1).ipynb" and broken.duplicate_of == good.id and broken.status == "unreadable"
    assert broken.reason == ("it is not valid JSON (Expecting property name enclosed in double quotes, line 1, column 2); "
                             "the same student's ada/02 (1).ipynb counts")


def test_the_order_and_the_ids_do_not_depend_on_the_run(tmp_path):
    for k in range(20):
        put(tmp_path, f"s{k}/02.ipynb")
    before = collect(tmp_path)
    put(tmp_path, "aaa/02.ipynb")
    assert collect(tmp_path)[1:] == before == sorted(before, key=lambda entry: entry.student)


# Bad input


@pytest.mark.parametrize("content, reason", [
    (b"", "it is empty"),
    (b"  \n", "it is empty"),
    (b'{"cells": [', "it is not valid JSON (Expecting value, line 1, column 12)"),
    (b"[" * 100_000, "it is not valid JSON (a number too long or brackets too deep)"),
    (b'{"nbformat": ' + b"1" * 5000 + b"}", "it is not valid JSON (a number too long or brackets too deep)"),
    (b"[1, 2]", "it is JSON, but not a notebook: it has no list of cells"),
    (b'{"name": "package"}', "it is JSON, but not a notebook: it has no nbformat"),
    (b'{"nbformat": 4}', "it is JSON, but not a notebook: it has no list of cells"),
    (b'{"nbformat": 4, "cells": {"a": 1}}', "it is JSON, but not a notebook: it has no list of cells"),
    (b'{"nbformat": 4, "cells": [7]}', "it is not a notebook that can be read: cell 1 has no source"),
    (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": [1]}]}', "it is not a notebook that can be read: cell 1 has no source"),
    (b'{"nbformat": 5, "cells": []}', "it is of nbformat 5, and 3 and 4 can be read"),
    (b'{"nbformat": 2, "worksheets": []}', "it is of nbformat 2, and 3 and 4 can be read"),
    (b'{"nbformat": "4", "cells": []}', "it is of nbformat unknown, and 3 and 4 can be read"),
    (b'{"nbformat": 3, "worksheets": 5}', "it is of nbformat 3, and cannot be converted to nbformat 4"),
    (b"\xff\xfe{\x00\xff", "it is not UTF-16 text (byte 0xff at position 4)"),
    (b"\xff\xfe", "it is empty"),
    (b"[" + b"[]," * 3_000_000 + b"1]", "it has more than 4,000,000 values"),
    (b'{"cells": "\xe9"}', "it is not UTF-8 text (byte 0xe9 at position 11)"),
    (nb(metadata={"language_info": {"name": "R"}}), "it is written for R, and Python was asked for"),
    (nb(metadata={"kernelspec": {"name": "julia-1.9", "language": "julia"}}), "it is written for julia, and Python was asked for"),
    (nb(metadata={"language_info": {"name": "R\nnote: forged"}}), "it is written for R\ufffdnote: forged, and Python was asked for"),
    (nb("#" * (notebook.SOURCE_BYTES + 2**20)), "its code has 5 MiB, and 4 MiB are allowed"),
], ids=lambda given: str(given)[:50])
def test_a_file_that_is_no_notebook(tmp_path, content, reason):
    put(tmp_path, "ada.ipynb", content)
    put(tmp_path, "bob.ipynb")
    assert told(tmp_path) == {("ada", "ada.ipynb"): ("unreadable", reason), ("bob", "bob.ipynb"): ("", "")}


NBFORMAT_3 = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"metadata": {}, "cells": [
    {"cell_type": "code", "language": "python", "input": ["x"], "collapsed": False, "metadata": {}, "outputs": [], "prompt_number": 1}]}]}


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbf" + nb("x"), nb("x", nbformat_minor=99), nb("x", metadata={"kernelspec": {"name": "conda-py", "language": "python"}}),
    nb("x", metadata=None), nb("x", metadata={"language_info": {"name": "ipython"}}),
    nb("x", metadata={"language_info": {"name": "python3"}, "kernelspec": {"name": "python3", "language": "python"}}),
    nb("x", metadata={"language_info": {"name": "Python 3"}}), nb("x", metadata={"kernelspec": {"language": "ipython3"}}),
    nb("x", metadata={"language_info": {"name": "r"}, "kernelspec": {"language": "python3"}}), nb("x", metadata={"kernelspec": 7}),
    json.dumps(NBFORMAT_3).encode(),
], ids=["bom", "minor", "conda", "none", "ipython", "python3", "Python 3", "ipython3", "r by python3", "no kernel", "nbformat 3"])
def test_odd_notebooks_that_can_be_read(tmp_path, content):
    (entry,) = collect(put(tmp_path, "ada.ipynb", content))
    assert entry.status == "" and [cell["source"] for cell in entry.cells] == ["x"]


def test_cells_are_read_in_their_order_and_only_code(tmp_path):
    content = json.loads(nb(["a\n", "b"], "second", "third", ids=("q2", "q1", "q1")))
    content["cells"].insert(1, {"cell_type": "markdown", "source": "text"})
    test_cell = {"nbgrader": {"grade_id": "q1_test", "grade": True, "solution": False}}
    content["cells"].append({"cell_type": "code", "source": "check('q1')", "metadata": test_cell})
    content["cells"].append({"cell_type": "code", "source": "odd", "metadata": {"nbgrader": [3]}})
    (entry,) = collect(put(tmp_path, "ada.ipynb", json.dumps(content).encode()), answers=dict.fromkeys(("q1", "q2", "q3"), frozenset()))
    assert [(cell["source"], cell["grade_id"], cell["grade"]) for cell in entry.cells] == [
        ("a\nb", "q2", False), ("second", "q1", False), ("third", "q1", False), ("check('q1')", "q1_test", True), ("odd", None, False)]
    assert entry.notes == ("answer cell q1 is there 2 times: the last definition counts",
                           "there is no answer cell q3: its function is looked for by name")


def test_a_foreign_notebook_is_graded_and_noted(tmp_path):
    (entry,) = collect(put(tmp_path, "ada.ipynb", nb("import antigravity", ids=())), answers={"q1": frozenset()})
    assert entry.status == "" and entry.notes == ("none of the assignment's answer cells is there: functions are looked for by name",)


def test_a_huge_notebook_is_refused_before_it_is_read(tmp_path):
    path = put(tmp_path, "ada.ipynb")
    os.truncate(path, files.NOTEBOOK_BYTES + 1)
    put(tmp_path, "bob.zip", zipped({"02.ipynb": b" " * (files.NOTEBOOK_BYTES + 1)}))
    reason = "it has 20 MiB, and 20 MiB are allowed"
    assert told(tmp_path) == {("ada", "ada.ipynb"): ("unreadable", reason), ("bob", "bob.zip/02.ipynb"): ("unreadable", reason)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_pipes_and_folders_that_are_links_are_refused(tmp_path):
    secret = put(tmp_path.parent, f"{tmp_path.name}-secret/02.ipynb")
    put(tmp_path, "ada/02.ipynb")
    (tmp_path / "bob.ipynb").symlink_to(secret)
    (tmp_path / "cyd").symlink_to(secret.parent, target_is_directory=True)
    (tmp_path / "dan.ipynb").symlink_to("nowhere")
    os.mkfifo(tmp_path / "eve.ipynb")
    link = "it is a symbolic link, and links are not followed"
    assert told(tmp_path) == {
        ("ada", "ada/02.ipynb"): ("", ""), ("bob", "bob.ipynb"): ("unreadable", link), ("cyd", "cyd"): ("unreadable", link),
        ("dan", "dan.ipynb"): ("unreadable", link),
        ("eve", "eve.ipynb"): ("unreadable", "it is a device, a pipe or a socket, and not a file")}


@pytest.mark.parametrize("name", ["../../up.ipynb", "/etc/up.ipynb", "..\\up.ipynb", "C:\\up.ipynb", "a/../../up.ipynb"])
def test_a_path_that_leads_out_of_an_archive_is_refused(tmp_path, name):
    put(tmp_path, "bob.ipynb")
    put(tmp_path, "mallory.zip", zipped({"02.ipynb": nb("good"), name: nb("bad")}))
    before = sorted(tmp_path.parent.rglob("*"))
    entries = [entry for entry in collect(tmp_path) if entry.student == "mallory"]
    good, bad = sorted(entries, key=lambda entry: bool(entry.status))
    assert good.source == "mallory.zip/02.ipynb" and not good.status
    assert bad.reason.startswith(f"its path leads out of the archive: {name}") and bad.duplicate_of == good.id
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("02.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    put(tmp_path, "mallory.zip", zipped([(link, b"/etc/passwd")]))
    assert told(tmp_path) == {("mallory", "mallory.zip/02.ipynb"): ("unreadable", "it is a symbolic link, and links are not followed")}


def bomb_by_size():
    zeros = bytes(64 * zips.MIB)
    return zipped({f"{k}.bin": zeros for k in range(2)})


def test_zip_bombs_are_refused_by_their_table_of_contents(tmp_path, monkeypatch):
    put(tmp_path, "ratio.zip", bomb_by_size())
    put(tmp_path, "count.zip", zipped({f"{k}.txt": b"" for k in range(10_001)}))
    monkeypatch.setattr(zips.table, "__defaults__", (96 * zips.MIB, zips.DIRECTORY_BYTES))
    put(tmp_path, "sum.zip", zipped({"a": bytes(range(256)) * 2**15, "b": os.urandom(2**20) * 96}))
    opened, kept = [], zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, entry, *rest: opened.append(entry.filename) or kept(self, entry, *rest))
    reasons = {student: reason for (student, _), (status, reason) in told(tmp_path).items() if status == "unreadable"}
    assert not opened  # not a byte is unpacked
    assert reasons == {"ratio": "it is refused as a zip bomb: it unpacks to 128 MiB, and 96 MiB are allowed",
                       "count": "it is refused as a zip bomb: it has 10,001 entries, and 10,000 are allowed",
                       "sum": "it is refused as a zip bomb: it unpacks to 104 MiB, and 96 MiB are allowed"}


def test_a_bomb_by_ratio(tmp_path):
    put(tmp_path, "ratio.zip", bomb_by_size())
    put(tmp_path, "bob.ipynb")
    reason = told(tmp_path)["ratio", "ratio.zip"][1]
    assert reason.startswith("it is refused as a zip bomb: ") and reason.endswith(" bytes unpack to 128 MiB")


def test_a_zip_in_a_zip_in_a_zip_and_no_further(tmp_path):
    inner = {"02.ipynb": nb()}
    for k in range(4):
        inner = {f"z{k}.zip": zipped(inner)}
    put(tmp_path, "ada.zip", zipped(inner))
    put(tmp_path, "bob.ipynb")
    assert told(tmp_path)["ada", "ada.zip/z3.zip/z2.zip/z1.zip"] == ("unreadable", "it is a zip inside of 3 others, and 3 are allowed")


def test_damaged_and_encrypted_archives(tmp_path):
    whole = zipped({"02.ipynb": nb("x" * 1000)})
    put(tmp_path, "torn.zip", whole[:-30])
    put(tmp_path, "text.zip", b"not a zip")
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF
    put(tmp_path, "damaged.zip", bytes(damaged))
    encrypted = bytearray(whole)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(mark) + offset] |= 1
    put(tmp_path, "locked.zip", bytes(encrypted))
    reasons = {student: reason for (student, _), (status, reason) in told(tmp_path).items() if status == "unreadable"}
    assert reasons["torn"] == reasons["text"] == "it is no zip that can be read (File is not a zip file)"
    assert reasons["locked"] == "it is encrypted"
    assert reasons["damaged"].startswith("it cannot be unpacked (") and len(reasons) == 4


def test_empty_folders_and_wrong_files(tmp_path):
    (tmp_path / "ada").mkdir()
    put(tmp_path, "bob/homework.py", b"x = 1")
    put(tmp_path, "bob/report.pdf", b"%PDF")
    put(tmp_path, "cyd/03_log.ipynb")
    put(tmp_path, "dan/deep/deeper/notes.txt", b"")
    put(tmp_path, "eve/02.ipynb")
    put(tmp_path, "fay.zip", zipped({}))
    assert told(tmp_path) == {
        ("ada", "ada"): ("unreadable", "it is empty"),
        ("bob", "bob"): ("unreadable", f"there is no notebook of {NN} in it, only homework.py, report.pdf"),
        ("cyd", "cyd"): ("unreadable", f"there is no notebook of {NN} in it, only 03_log.ipynb"),
        ("dan", "dan"): ("unreadable", f"there is no notebook of {NN} in it, only notes.txt"),
        ("eve", "eve/02.ipynb"): ("", ""), ("fay", "fay.zip"): ("unreadable", "it is empty")}


def test_no_permission_is_not_the_students_fault(tmp_path, monkeypatch):
    for name in ("ada", "bob", "cyd"):
        put(tmp_path, f"{name}/02.ipynb")
    true_open, true_list = os.open, os.listdir

    def guarded(function):
        def call(path, *rest):
            if "bob" in str(path) and function is true_open or "cyd" in str(path):
                raise PermissionError(13, "Permission denied", path)
            return function(path, *rest)
        return call

    monkeypatch.setattr(os, "open", guarded(true_open))
    monkeypatch.setattr(os, "listdir", guarded(true_list))
    assert told(tmp_path) == {
        ("ada", "ada/02.ipynb"): ("", ""), ("bob", "bob/02.ipynb"): ("not graded", "it cannot be read here: Permission denied"),
        ("cyd", "cyd"): ("not graded", "the folder cannot be read here: Permission denied")}


def test_a_folder_without_a_submission_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no notebook \\(.ipynb\\) of {NN}\\."):
        collect(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is nothing at .*missing\\."):
        collect(tmp_path / "missing")
    with pytest.raises(ValueError, match="x.txt is neither a folder nor a zip nor a notebook"):
        collect(put(tmp_path, "x.txt", b""))


def test_the_same_path_twice_in_a_zip(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        put(tmp_path, "ada.zip", zipped([("02.ipynb", nb("a")), ("02.ipynb", nb("b"))]))
    assert len(told(tmp_path)) == 1 and len(collect(tmp_path)) == 2  # one path, two submissions with ids of their own


# Names

@pytest.mark.parametrize("name", [
    "Lovelace, Ada", 'Bob "Tables" O\'Neil', "=cmd|'calc'!A0", "@SUM(A1)", "-2+3", "+1", "名前", "🎓 émile", "a\tb", "con", "a" * 80])
def test_awkward_names_are_kept_and_their_ids_are_plain(tmp_path, name):
    put(tmp_path, f"{name}.ipynb")
    (entry,) = collect(tmp_path)
    assert entry.student == name.replace("\t", "\ufffd") and entry.source == f"{entry.student}.ipynb"


def test_a_name_with_a_slash_comes_from_a_zip_or_metadata(tmp_path):
    put(tmp_path, "submission_metadata.yml", "submission_1:\n  :submitters:\n  - :name: a/b/../c 🎓\n".encode())
    put(tmp_path, "submission_1/02.ipynb")
    (entry,) = collect(tmp_path)
    assert entry.student == "a/b/../c 🎓" and "/" not in entry.id


def test_a_name_that_is_no_utf8(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9mile.ipynb")).write_bytes(nb())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (entry,) = collect(tmp_path)
    assert entry.student == "\ufffdmile" and json.dumps(entry.header()).encode("ascii")


def test_names_in_zips_without_the_utf8_flag(tmp_path):
    data = bytearray(zipped({"José/02.ipynb": nb(), "bob/02.ipynb": nb()}))
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        data[data.index(mark) + offset] &= ~0x08
    put(tmp_path, "class.zip", bytes(data))
    assert [entry.student for entry in collect(tmp_path)] == ["bob", "José"]


@given(st.text(max_size=60), st.text(max_size=60))
def test_ids_are_safe_file_names_and_apart(name, source):
    ident = handin.ident(name, source, 0)
    assert ident == os.path.basename(ident) and set(ident) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and 0 < len(ident) <= 51
    assert handin.ident(name, source, 1) != ident != handin.ident(name + "x", source, 0)


pieces = st.lists(st.sampled_from(["..", "/", "\\", "C:", "a", ".", "\0"])).map("".join)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40) | pieces)
def test_paths_never_escape(name):
    parts = files.inside(name)
    if parts is not None:
        joined = os.path.normpath(os.path.join("/in/here", *parts))
        assert joined.startswith("/in/here/")
        assert all("/" not in part and "\\" not in part and part not in ("", ".", "..") for part in parts)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_notebook_or_one_sentence(content):
    try:
        cells = notebook.cells_of(content)
    except ValueError as error:
        assert str(error).startswith(("it is", "its ")) and "\n" not in str(error)
    else:
        assert isinstance(cells, list)


KEYS = st.sampled_from(["cells", "cell_type", "source", "metadata", "nbgrader", "grade_id", "code"])
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(st.dictionaries(st.sampled_from(["cells", "metadata", "worksheets"]), json_values), st.sampled_from([3, 4]))
def test_any_json_is_a_notebook_or_one_sentence(content, version):
    try:
        for cell in notebook.cells_of(json.dumps({"nbformat": version} | content).encode()):
            assert set(cell) == {"source", "grade_id", "grade"} and isinstance(cell["source"], str)
    except ValueError as error:
        assert str(error).startswith(("it is", "its "))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_zip_or_one_refusal(content):
    try:
        archive, table = zips.table(io.BytesIO(content), 10, 1000)
    except ValueError as error:
        assert str(error).startswith(("it is no zip", "it is refused"))
    else:
        assert all(file.refused for file in files.entries(archive, table, ("x.zip",)))


@pytest.mark.parametrize("text", ["soon", "2026-13-01", "", "2026-11-23 10:00 Mars/Olympus", "2026-11-23 10:00 ../../etc/passwd"])
def test_a_time_that_is_none_is_one_sentence(text):
    with pytest.raises(ValueError, match="is no date and time: write it like 2026-11-23T18:00 or 2026-11-23T18:00\\+01:00\\."):
        times.parse_time(text)
