"""qlab collect: what students saved, and nothing else, comes out of their homes; pages go back to them alone, whatever lies in the way."""

import json
import os
import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qlab import cli
from qlab.grading.author import student
from qlab.grading.handed_in import files, ingest
from qlab.saving import make_folder

if not hasattr(os, "O_NOFOLLOW"):
    pytest.skip("qlab collect opens folders as Linux and macOS can", allow_module_level=True)
from qlab.grading import collect

SET = "02_linear_quantization"
RELEASED = Path(__file__).resolve().parents[1] / "exercises"
SECRET = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5, "secret": "of somebody else"}'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def notebook(text: str) -> bytes:
    cell = {"cell_type": "code", "source": text, "outputs": [], "execution_count": None, "metadata": {"nbgrader": {
        "grade_id": "q1", "grade": False, "solution": True, "schema_version": 3}}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}).encode()


@pytest.fixture
def homes(tmp_path):
    """Homes of ada and bob, who have saved something, and a file of somebody else's."""
    for name in ("ada", "bob"):
        make_folder(tmp_path / "homes" / name / "course" / "exercises")
        saved(tmp_path / "homes", name).write_bytes(notebook(f"def f(x):\n    return '{name}'"))
    (tmp_path / "secret.ipynb").write_bytes(SECRET)
    return tmp_path / "homes"


def saved(homes, name):
    return homes / name / "course" / "exercises" / f"{SET}.ipynb"


def take(homes, names=("ada", "bob"), **options):
    return {one.student: one for one in collect.collect(homes, names, SET, homes.parent / "to", **options)}


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def pages(homes, **texts):
    """Results of qlab grade, as far as they are read, with a page for each student."""
    folder = homes.parent / "results" / SET
    for name, text in texts.items():
        make_folder(folder / "export" / "feedback")
        (folder / "export" / "feedback" / f"{name}-1a2b.html").write_text(text)
        (folder / f"{name}-1a2b.json").write_text(json.dumps({
            "format": 1, "status": "graded", "questions": [], "score": 1, "max_score": 1, "seconds": 0,
            "submission": {"student": name, "id": f"{name}-1a2b", "duplicate_of": None}}))
    return homes.parent / "results"


# Out of the homes


def test_the_grader_reads_what_was_collected(homes):
    taken = take(homes)
    assert {one.status for one in taken.values()} == {"collected"}
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    for until, late in ((deadline, False), (deadline - timedelta(hours=1), True)):
        told = []
        found = [entry for hand_in in ingest.hand_ins(homes.parent / "to", SET, until, tell=told.append) for entry in hand_in.read()]
        assert not told
        assert [(entry.student, entry.platform, entry.late, entry.status) for entry in found] == [
            ("ada", "nbgrader", late, ""), ("bob", "nbgrader", late, "")]
        assert [entry.sha256 for entry in found] == [taken[entry.student].sha256 for entry in found]
        assert taken["ada"].late(until) > 3500 if late else taken["ada"].late(until) == 0


def test_only_the_teacher_reads_it_and_the_owner_is_recorded(homes):
    take(homes)
    to = homes.parent / "to"
    assert stat.S_IMODE(to.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in to.rglob("*") if path.is_file()} == {0o600}
    record = json.loads((to / ".record" / f"{SET}.json").read_text())
    assert [(one["student"], one["owner"], one["size"]) for one in record] == [
        (name, os.geteuid(), saved(homes, name).stat().st_size) for name in ("ada", "bob")]


def test_no_student_can_set_the_time_back(homes):
    before = time.time()
    os.utime(saved(homes, "ada"), (10**9, 10**9))
    assert take(homes)["ada"].time >= before - 1


@pytest.mark.parametrize("where", ["file", "exercises", "course", "home"])
def test_no_link_is_followed(homes, where):
    path = {"file": saved(homes, "bob"), "exercises": saved(homes, "bob").parent, "course": homes / "bob" / "course",
            "home": homes / "bob"}[where]
    elsewhere = make_folder(homes.parent / "elsewhere")
    target = homes.parent / "secret.ipynb"
    if where != "file":  # a folder in which all is as it should be, but that it is somebody else's
        target = elsewhere
        inner = elsewhere / Path(*saved(homes, "bob").relative_to(path).parts)
        make_folder(inner.parent)
        inner.write_bytes(SECRET)
    path.rename(homes.parent / "away")
    path.symlink_to(target)
    taken = take(homes)
    assert (taken["ada"].status, taken["bob"].status) == ("collected", "refused") and "is a link" in taken["bob"].why
    assert b"somebody else" not in everything(homes.parent / "to")


def test_what_is_no_file_is_refused_at_once(homes):
    for name, make in (("ada", os.mkfifo), ("bob", os.mkdir)):
        saved(homes, name).unlink()
        make(saved(homes, name))
    assert {one.why for one in take(homes).values()} == {f"{SET}.ipynb is a folder, a pipe or a device, and must be a file"}


def test_what_is_too_large_is_refused(homes):
    os.truncate(saved(homes, "bob"), files.NOTEBOOK_BYTES + 1)  # of zeros, which take no room
    os.truncate(saved(homes, "ada"), files.NOTEBOOK_BYTES)
    taken = take(homes)
    assert taken["ada"].status == "collected" and taken["bob"].why.endswith("are allowed")


@as_root
def test_another_ones_file_is_refused(homes):
    """A hard link, where the system allows it, has its owner with it."""
    for path in (homes / "bob", *(homes / "bob").rglob("*")):
        os.chown(path, 12345, 12345)
    saved(homes, "bob").unlink()
    os.link(homes.parent / "secret.ipynb", saved(homes, "bob"))
    assert take(homes)["bob"].why == f"{SET}.ipynb belongs to user 0, and must be the student's own, user 12345"
    os.chown(saved(homes, "bob").parent, 54321, 54321)
    assert take(homes)["bob"].why == "the folder exercises belongs to user 54321, and must be the student's, user 12345"


@as_root
def test_a_home_is_that_of_the_user_of_its_name(homes):
    (homes / "ada").rename(homes / "daemon")
    assert take(homes, ["daemon"])["daemon"].why == "the home belongs to user 0, and daemon is user 1"


def test_a_student_who_swaps_the_file_meanwhile_gains_nothing(homes):
    path, ended = saved(homes, "bob"), threading.Event()
    own, link = path.with_name("own"), path.with_name("link")
    own.write_bytes(path.read_bytes())

    def swap():
        while not ended.is_set():
            for make in (lambda: link.symlink_to(homes.parent / "secret.ipynb"), lambda: os.link(own, link)):
                make()
                os.replace(link, path)
                link.unlink(missing_ok=True)  # a rename of one link to a file over another leaves both

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        found = {take(homes, ["bob"], update=True)["bob"].status for _ in range(300)}
    finally:
        ended.set()
        swapping.join()
    assert found <= {"collected", "the same", "refused", "nothing"} and b"somebody else" not in everything(homes.parent / "to")


def test_what_was_collected_stays_until_it_is_asked_for_anew(homes):
    first = take(homes)["ada"]
    path = homes.parent / "to" / "submitted" / "ada" / SET / f"{SET}.ipynb"
    former, content = path.read_bytes(), notebook("def f(x):\n    return 2")
    assert take(homes)["ada"].status == "the same"
    saved(homes, "ada").write_bytes(content)
    assert take(homes)["ada"].status == "newer" and path.read_bytes() == former
    assert json.loads((homes.parent / "to" / ".record" / f"{SET}.json").read_text())[0]["time"] == first.time
    assert take(homes, update=True)["ada"].status == "collected" and path.read_bytes() == content
    earlier = list(path.parent.glob(f".earlier/*/{SET}.ipynb"))
    assert [one.read_bytes() for one in earlier] == [former] and stat.S_IMODE(earlier[0].stat().st_mode) == 0o600
    counted = [entry for hand_in in ingest.hand_ins(homes.parent / "to", SET) for entry in hand_in.read()]
    assert len(counted) == 2  # the former copy is nobody's second hand-in


def test_who_was_in_time_stays_in_time(homes):
    """Whatever becomes of the file after it was collected: saved again as it was, saved with something new, deleted."""
    path, first = saved(homes, "ada"), take(homes)["ada"]
    record = (homes.parent / "to" / ".record" / f"{SET}.json").read_bytes()
    for content, status in ((path.read_bytes(), "the same"), (notebook("def f(x):\n    return 2"), "newer"), (None, "nothing")):
        while content and path.stat().st_ctime == first.time:  # until the kernel's clock has ticked
            path.write_bytes(content)
        path.unlink() if content is None else path.write_bytes(content)
        again = take(homes)["ada"]
        assert (again.status, again.time) == (status, first.time if content else None)
    assert (homes.parent / "to" / ".record" / f"{SET}.json").read_bytes() == record


def record(homes):
    return {entry["student"]: entry for entry in json.loads((homes.parent / "to" / ".record" / f"{SET}.json").read_text())}


def test_one_copy_that_cannot_be_written_stops_nobody_else(homes):
    make_folder(saved(homes, "cyd").parent)
    saved(homes, "cyd").write_bytes(notebook("def f(x):\n    return 'cyd'"))
    (make_folder(homes.parent / "to" / "submitted") / "bob").touch()
    taken = take(homes, ["ada", "bob", "cyd"])
    assert {name: one.status for name, one in taken.items()} == {"ada": "collected", "bob": "refused", "cyd": "collected"}
    assert taken["bob"].why.startswith("its copy fails: cannot make the folder ")
    assert {name: entry["status"] for name, entry in record(homes).items()} == {"ada": "collected", "bob": "refused", "cyd": "collected"}
    (homes.parent / "to" / "submitted" / "bob").unlink()
    assert take(homes)["bob"].status == "collected" and record(homes)["bob"]["status"] == "collected"


def test_a_run_that_is_interrupted_records_what_it_has_collected(homes, monkeypatch):
    real = collect._collect

    def interrupted(homes, name, *rest):
        if name == "bob":
            raise KeyboardInterrupt
        return real(homes, name, *rest)

    monkeypatch.setattr(collect, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(homes)
    assert record(homes).keys() == {"ada"}


@pytest.mark.parametrize("then", ["the same", "newer", "nothing"])
def test_a_copy_without_a_record_tells_of_itself(homes, then):
    first = take(homes)["ada"]
    (homes.parent / "to" / ".record" / f"{SET}.json").unlink()  # as where the run was killed
    content = saved(homes, "ada").read_bytes()
    while saved(homes, "ada").stat().st_ctime == first.time:  # until the kernel's clock has ticked
        saved(homes, "ada").write_bytes(content + b" " * (then == "newer"))
    if then == "nothing":
        saved(homes, "ada").unlink()
    again, entry = take(homes)["ada"], record(homes)["ada"]
    assert again.status == then and (entry["status"], entry["sha256"], entry["size"]) == ("collected", first.sha256, first.size)
    assert entry["time"] == pytest.approx(first.time, abs=1e-5) and (then == "nothing" or again.time == entry["time"])


def test_who_has_saved_nothing(homes):
    saved(homes, "bob").unlink()
    assert {name: one.status for name, one in take(homes, ["ada", "bob", "cyd"]).items()} == {
        "ada": "collected", "bob": "nothing", "cyd": "nothing"}


def changed(do) -> bytes:
    """The released set, once something was done to its cells, found by their ids, or to the notebook."""
    content = json.loads((RELEASED / f"{SET}.ipynb").read_text())
    do({cell["id"]: cell for cell in content["cells"]}, content)
    return json.dumps(content).encode()


def cell(**parts):
    return {"cell_type": "code", "id": "own", "metadata": {}, "outputs": [], "execution_count": None, "source": "", **parts}


def run(cells, content):
    """As JupyterLab saves a set through which somebody has pressed Shift and Enter."""
    for count, one in enumerate(one for one in content["cells"] if one["cell_type"] == "code"):
        one |= {"execution_count": count, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["q1: not answered yet"]}]}
    content["cells"].append(cell())
    content["metadata"]["language_info"] = {"name": "python", "version": "3.12.4"}


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_every_released_set_is_known_for_untouched(path):
    assert collect._untouched(path.read_bytes())


def test_a_set_of_another_release_is_known_for_untouched_too(homes):
    older = student.read(RELEASED / f"{SET}.ipynb")
    older.cells[0].source += " An earlier wording."
    older.metadata.qlab.version = student.version(older.cells)
    saved(homes, "bob").write_text(student.text(older))
    assert take(homes)["bob"].status == "not begun"


@pytest.mark.parametrize("what, begun", [
    (lambda cells, content: None, False),
    (run, False),
    (lambda cells, content: cells["q1"].update(source=["def f(x):\n", "    return x"]), True),
    (lambda cells, content: cells["q1"]["source"].insert(0, "# x / scale?\n"), True),
    (lambda cells, content: content["cells"].append(cell(source="def f(x):\n    return x")), True),
    (lambda cells, content: content["cells"].append(cell(cell_type="markdown", source="I was ill.")), True),
    (lambda cells, content: cells["q1"].update(cell_type="raw"), True),
    (lambda cells, content: content["cells"].remove(cells["q1"]), True),
    (lambda cells, content: content["cells"].clear(), True),
    (lambda cells, content: content["metadata"].pop("qlab"), True),  # nobody knows
    (lambda cells, content: content["metadata"]["qlab"].update(version=""), True),
    (lambda cells, content: cells["q1"].pop("id"), True),
    (lambda cells, content: content["cells"].append(7), True),
    (lambda cells, content: content.update(nbformat=3), True),
])
def test_who_has_changed_nothing_has_not_begun(homes, what, begun):
    saved(homes, "bob").write_bytes(changed(what))
    taken = take(homes)
    assert {name: one.status for name, one in taken.items()} == {"ada": "collected", "bob": "collected" if begun else "not begun"}
    assert (homes.parent / "to" / "submitted" / "bob").exists() == begun and record(homes)["bob"]["status"] == taken["bob"].status


def test_who_begins_after_the_first_collection_is_collected_and_what_was_begun_stays(homes):
    blank, begun = changed(run), changed(lambda cells, content: cells["q1"].update(source="def f(x):\n    return x"))
    saved(homes, "bob").write_bytes(blank)
    assert take(homes)["bob"].status == "not begun" and take(homes)["bob"].late(datetime(2020, 1, 1, tzinfo=UTC)) == 0
    saved(homes, "bob").write_bytes(begun)
    first = take(homes)["bob"]
    assert first.status == "collected" and record(homes)["bob"]["sha256"] == first.sha256
    saved(homes, "bob").write_bytes(blank)
    assert take(homes, update=True)["bob"].status == "not begun" and record(homes)["bob"]["sha256"] == first.sha256
    assert (homes.parent / "to" / "submitted" / "bob" / SET / f"{SET}.ipynb").read_bytes() == begun


# And back


def test_a_page_is_for_its_student_alone(homes):
    out = pages(homes, ada="<p>Ada</p>", bob="<p>Bob</p>")
    assert {one.status for one in collect.give_back(homes, SET, out)} == {"given back"}
    for name in ("ada", "bob"):
        page = homes / name / "course" / "feedback" / f"{SET}.html"
        assert page.read_text() == f"<p>{name.title()}</p>" and stat.S_IMODE(page.stat().st_mode) == 0o600
        assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700 and [path.name for path in page.parent.iterdir()] == [page.name]
    assert {one.status for one in collect.give_back(homes, SET, out)} == {"there"}


@as_root
def test_a_page_belongs_to_its_student(homes):
    for path in (homes / "ada", *(homes / "ada").rglob("*")):
        os.chown(path, 12345, 12346)
    collect.give_back(homes, SET, pages(homes, ada="<p>Ada</p>"))
    folder = homes / "ada" / "course" / "feedback"
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (folder, folder / f"{SET}.html")} == {(12345, 12346)}


def test_no_page_is_lost(homes):
    folder = homes / "ada" / "course" / "feedback"
    for text in ("first", "second"):
        collect.give_back(homes, SET, pages(homes, ada=text))
    (folder / f"{SET}.html").write_text("second, with the student's remarks")
    collect.give_back(homes, SET, pages(homes, ada="third"))
    assert sorted(path.read_text() for path in folder.iterdir()) == ["first", "second, with the student's remarks", "third"]
    assert (folder / f"{SET}.html").read_text() == "third"


@pytest.mark.parametrize("where", ["folder", "page"])
def test_nothing_is_written_through_a_link(homes, where):
    outside = make_folder(homes.parent / "outside")
    (outside / f"{SET}.html").write_text("somebody else's")
    folder = homes / "bob" / "course" / "feedback"
    if where == "folder":
        folder.symlink_to(outside)
    else:
        folder.mkdir()
        (folder / f"{SET}.html").symlink_to(outside / f"{SET}.html")
    (told,) = collect.give_back(homes, SET, pages(homes, bob="<p>Bob</p>"))
    assert (outside / f"{SET}.html").read_text() == "somebody else's" and [path.name for path in outside.iterdir()] == [f"{SET}.html"]
    if where == "folder":
        assert (told.status, told.why) == ("refused", "feedback is a link or a file, and must be a folder")
    else:
        assert told.status == "given back" and (folder / f"{SET}.html").read_text() == "<p>Bob</p>"


def test_a_full_disk_leaves_the_former_page(homes, monkeypatch):
    collect.give_back(homes, SET, pages(homes, ada="first"))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (told,) = collect.give_back(homes, SET, pages(homes, ada="second"))
    assert (told.status, told.why) == ("refused", "it cannot be written there: No space left on device")
    folder = homes / "ada" / "course" / "feedback"
    assert [path.read_text() for path in folder.iterdir()] == ["first"]


def test_without_pages_there_is_nothing_to_give(homes):
    with pytest.raises(FileNotFoundError, match="there are no pages in .*: make them with qlab grade .* --export html"):
        collect.give_back(homes, SET, homes.parent / "results")


# The command


def test_the_command_tells_of_each(homes, capsys, monkeypatch):
    monkeypatch.chdir(homes.parent)
    saved(homes, "bob").unlink()
    saved(homes, "bob").symlink_to(homes.parent / "secret.ipynb")
    make_folder(homes / "cyd" / "course")
    make_folder(homes / "teacher")
    make_folder(saved(homes, "cleo").parent)
    saved(homes, "cleo").write_bytes((RELEASED / f"{SET}.ipynb").read_bytes())
    assert cli.main(["collect", "02", "--homes", "homes", "--deadline", "2020-01-01T00:00"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [f"{SET}: 1 collected into collected: ada", f"{SET}: 1 not begun: cleo", f"{SET}: 1 nothing there: cyd",
                        f"bob: refused: {SET}.ipynb is a link or a socket, and must be a file"]
    assert len(told) == 5 and told[4].startswith("ada: late by ") and " days " in told[4]
    saved(homes, "bob").unlink()
    assert cli.main(["collect", SET, "--homes", "homes"]) == 0
    assert cli.main(["collect", "02", "--homes", "homes", "--give-back", str(pages(homes, ada="<p>Ada</p>"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{SET}: 1 given back: ada"
    Path("list").write_text("bob\n")
    back = ["collect", "02", "--homes", "homes", "--give-back", str(pages(homes, ada="<p>Ada</p>", bob="<p>Bob</p>"))]
    assert cli.main([*back, "--students", "list"]) == 0 and capsys.readouterr().out == f"{SET}: 1 given back: bob\n"


def test_one_who_is_refused_keeps_nobody_from_being_graded_and_all_who_are_refused_is_an_error(homes, capsys, monkeypatch):
    """The exit status, which `qlab collect ... && qlab grade ...` hangs on."""
    monkeypatch.chdir(homes.parent)
    command = ["collect", "02", "--homes", "homes", "--students", "list"]
    saved(homes, "bob").unlink()
    saved(homes, "bob").symlink_to(homes.parent / "secret.ipynb")
    for names, status in (("ada\nbob", 0), ("bob\ncyd", 0), ("bob", 1)):
        Path("list").write_text(f"\ufeff{names}\n", "utf-8")  # as Windows' Notepad saves it
        assert cli.main(command) == status and "bob: refused: " in capsys.readouterr().out
    (homes / "bob" / "course" / "feedback").symlink_to(homes)
    results = pages(homes, ada="<p>Ada</p>", bob="<p>Bob</p>")
    assert cli.main([*command[:4], "--give-back", str(results)]) == 0 and cli.main([*command, "--give-back", str(results)]) == 1


@pytest.mark.parametrize("arguments, told", [
    (["77"], "there is no set 77: choose among 00, 01, 02"),
    (["02", "--homes", "none"], "there is no folder none: name the folder of the homes with --homes."),
    (["02", "--homes", "none", "--students", "good"], "there is no folder none: name the folder of the homes with --homes."),
    (["02", "--homes", "none", "--give-back", "results"], "there is no folder none: name the folder of the homes with --homes."),
    (["02", "--homes", "good"], "good is no folder: name the folder of the homes with --homes."),
    (["02", "--students", "none"], "there is no file none: name the list of the students with --students."),
    (["02", "--students", "homes"], "cannot read homes (Is a directory): it must be a text file that holds the students' names, one a li"),
    (["02", "--students", "latin"], "cannot read latin (it is not UTF-8 text): it must be a text file that holds the students' names"),
    (["02", "--course", "../ada"], "--course is '../ada', and must be the name of one folder in each home."),
    (["02", "--course", "lesson"], "no home in homes has a folder lesson: name them with --students, or run this as root."),
    (["02", "--students", "list"], "'../ada' is no user's name"),
    (["02", "--students", "nobody"], "nobody names nobody: it must hold the students' names, one a line."),
    (["02", "--deadline", "soon"], "'soon' is no date and time"),
    (["02", "--to", "secret.ipynb"], "cannot make the folder secret.ipynb"),
])
def test_what_cannot_be_is_told_in_one_sentence(homes, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(homes.parent)
    Path("list").write_text("ada\n../ada\n")
    Path("nobody").touch()
    Path("good").write_text("ada\n")
    Path("latin").write_bytes("zoë\n".encode("latin-1"))
    assert cli.main(["collect", *(["--homes", "homes"] if "--homes" not in arguments else []), *arguments]) == 1
    said = capsys.readouterr()
    assert told in said.err and len(said.err.splitlines()) == 1 and not said.out and not Path("collected").exists()


def test_homes_that_cannot_be_listed_are_told_in_one_sentence(homes, capsys, monkeypatch):
    def closed(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", closed)
    assert cli.main(["collect", "02", "--homes", str(homes)]) == 1
    said = capsys.readouterr().err
    assert said == f"qlab: cannot list {homes} (Permission denied): name the students with --students, or run this as root.\n"
