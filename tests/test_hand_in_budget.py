"""What a hand-in may cost: bombs of every kind are one sentence for their student, and the others are graded; nothing is read early."""

import io
import json
import os
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.grading import batch, grade
from qlab.grading.author.build import digest
from qlab.grading.handed_in import files, ingest, reading, zips
from qlab.grading.handed_in.zips import Budget

NN = "02_linear"
MIB = 2**20
NB = json.dumps({"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "x = 1", "metadata": {}}]}).encode()


def zipped(entries, how=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def by_hand(contents, entries=1, says=None, name=b"02.ipynb", method=8):
    """A zip with one file that its table of contents names so many times, and that says it has so many bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(contents) + packer.flush()
    told = 0, 33, zlib.crc32(contents), len(body), len(contents) if says is None else says, len(name)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, *told, 0) + name + body
    table = (struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, method, *told, 0, 0, 0, 0, 0, 0) + name) * entries
    return local + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(table), len(local), 0)


def in_zips(content, times, name="02.ipynb"):
    for _ in range(times):
        content, name = zipped({name: content}), "a.zip"
    return content


def nested():
    """5,000 notebooks in 64 KB."""
    inner = zipped({f"{k}.ipynb": NB for k in range(100)})
    return zipped({f"{k}.zip": inner for k in range(50)})


def nested_ratio():
    """900 times 20 MiB in 23 KB; no zip in it is a bomb by its own table."""
    inner = zipped({"x.ipynb": bytes(20 * MIB)})
    return zipped({f"{k}.zip": zipped({f"{j}.zip": inner for j in range(30)}) for k in range(30)})


def empty_members():
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    return entry * 10**5 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(entry) * 10**5, 0, 0)


NOT_ONE = "it is no zip that can be read ({})".format
BOMB = "it is refused as a zip bomb: {}".format
BOMBS = {
    "5,000 notebooks in zips": (nested, "the whole hand-in has more than 200 notebooks"),
    "18 GiB in zips": (nested_ratio, "the whole hand-in has more than 256 MiB, zips unpacked"),
    "files in zips": (lambda: zipped({f"{k}.zip": zipped({f"{j}.txt": b"" for j in range(600)}) for k in range(20)}),
                      "the whole hand-in has more than 10,000 files"),
    "zips in zips": (lambda: in_zips(NB, 200), "it is a zip inside of 3 others, and 3 are allowed"),
    "100,000 empty members": (empty_members, BOMB("its table of contents has 4 MiB, and 2 MiB are allowed")),
    "overlapping entries": (lambda: by_hand(NB + b" " * MIB, 9000), BOMB("it unpacks to 9001 MiB, and 2048 MiB are allowed")),
    "a size that is too small": (lambda: by_hand(bytes(30 * MIB), says=10), "it cannot be unpacked (Bad CRC-32 for file '02.ipynb')"),
    "a size that is too large": (lambda: by_hand(NB, says=0xFFFF_FFF0), BOMB("it unpacks to 4096 MiB, and 2048 MiB are allowed")),
    "a table that is too large": (lambda: b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, 0xFFFF_FFF0, 0, 0),
                                  NOT_ONE("Bad offset for central directory")),
    "a ratio": (lambda: zipped({"02.ipynb": bytes(101 * MIB)}), None),
    "LZMA": (lambda: zipped({"02.ipynb": NB}, zipfile.ZIP_LZMA),
             "it is packed in a way (number 14) that is not read: pack it as an ordinary zip"),
    "no way of packing": (lambda: by_hand(NB, method=99), "it is packed in a way (number 99) that is not read: pack it as an ordinary zip"),
    "no name": (lambda: by_hand(NB, name=b""), "its path leads out of the archive: "),
    "nothing": (lambda: b"", NOT_ONE("File is not a zip file")),
    "lists": (lambda: zipped({"02.ipynb": b"[" + b"[]," * 6_900_000 + b"1]"}), "it has more than 4,000,000 values"),
    "brackets": (lambda: zipped({"02.ipynb": b"[" * MIB}), "it is not valid JSON (a number too long or brackets too deep)"),
    "digits": (lambda: zipped({"02.ipynb": b"9" * MIB}), "it is not valid JSON (a number too long or brackets too deep)"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, reason", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_one_sentence_and_the_others_are_read(tmp_path, make, reason):
    (tmp_path / "mal.zip").write_bytes(make())
    (tmp_path / "zoe.ipynb").write_bytes(NB)
    mal, zoe = ingest.collect(tmp_path, NN)
    assert (zoe.student, zoe.status, mal.student, mal.status) == ("zoe", "", "mal", "unreadable")
    assert mal.reason == reason or reason is None and mal.reason.startswith(BOMB("")) and mal.reason.endswith(" bytes unpack to 101 MiB")


def test_what_lies_beside_a_bomb_counts(tmp_path):
    (tmp_path / "mal").mkdir()
    (tmp_path / "mal" / "a.zip").write_bytes(nested())
    (tmp_path / "mal" / "hw.ipynb").write_bytes(NB)
    (tmp_path / "zoe.ipynb").write_bytes(NB)
    counts, aside, _ = ingest.collect(tmp_path, NN)
    assert (counts.source, counts.status, aside.source) == ("mal/hw.ipynb", "", "mal/a.zip")
    assert aside.reason == "the whole hand-in has more than 200 notebooks; the same student's mal/hw.ipynb counts"


def test_a_folder_of_notebooks_has_the_same_budget(tmp_path):
    (tmp_path / "mal").mkdir()
    for k in range(201):
        (tmp_path / "mal" / f"{k}.ipynb").write_bytes(NB)
    (tmp_path / "zoe.ipynb").write_bytes(NB)
    mal, zoe = ingest.collect(tmp_path, NN)
    assert (mal.source, mal.status, mal.reason) == ("mal", "unreadable", "the whole hand-in has more than 200 notebooks")
    assert zoe.status == ""


@pytest.mark.parametrize("limits, reason", [
    ({"size": 1500}, "the whole hand-in has more than 1,500 bytes, zips unpacked"),
    ({"files": 3}, "the whole hand-in has more than 3 files"),
    ({"notebooks": 2}, "the whole hand-in has more than 2 notebooks"),
    ({"seconds": 0.0}, "the whole hand-in takes more than 0 s to read")])
def test_each_limit_is_one_for_the_whole_hand_in(tmp_path, limits, reason):
    (tmp_path / "mal").mkdir()
    for name in "abc":
        (tmp_path / "mal" / f"{name}.ipynb").write_bytes(NB + b" " * 500)
    (tmp_path / "mal" / "d.txt").write_bytes(b"")
    (tmp_path / "zoe.ipynb").write_bytes(NB)
    mal = ingest.collect(tmp_path, NN, budget=partial(Budget, **limits))[0]
    assert (mal.student, mal.status, mal.reason) == ("mal", "unreadable", reason)


def test_a_zip_without_end_stops_at_the_limit_of_bytes():
    class Endless:
        given = 0

        def read(self, size):
            self.given += size
            return bytes(size)

    stream = Endless()
    with pytest.raises(zips.OverBudget):
        zips.unpacked(stream, Budget(size=3 * MIB), 10**12)
    assert stream.given <= 4 * MIB


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".RAR", ".tar.xz", ".gz"])
def test_another_archive_is_refused_by_name(tmp_path, ending):
    (tmp_path / f"ada{ending}").write_bytes(b"x")
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / f"work{ending}").write_bytes(b"x")
    (tmp_path / "bob" / "notes.txt").write_bytes(b"x")
    (tmp_path / "cyd.zip").write_bytes(zipped({f"work{ending}": b"x"}))
    why = f"it is a {'.' + ending.lower().split('.')[-1]} archive, and of archives only .zip is read"
    assert [(entry.student, entry.status, entry.reason) for entry in ingest.collect(tmp_path, NN)] == [
        ("ada", "unreadable", why),
        ("bob", "unreadable", f"there is no notebook of {NN} in it, only notes.txt, work{ending}; work{ending}: {why}"),
        ("cyd", "unreadable", why)]


def test_paths_links_and_names_within_a_hand_in(tmp_path):
    link = zipfile.ZipInfo("link.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name in ("../up.ipynb", "/abs.ipynb", "C:\\drive.ipynb", link, "caf\u00e9.ipynb", "cafe\u0301.ipynb", "CAF\u00c9.ipynb",
                     "a.ipynb", "a.ipynb"):
            archive.writestr(name, NB)
    (tmp_path / "mal.zip").write_bytes(stream.getvalue())
    (tmp_path / "zoe.ipynb").write_bytes(NB)
    before = sorted(tmp_path.parent.rglob("*"))
    entries = [entry for entry in ingest.collect(tmp_path, NN) if entry.student == "mal"]
    assert sorted(tmp_path.parent.rglob("*")) == before and len({entry.id for entry in entries}) == len(entries) == 9
    refused = {entry.source.removeprefix("mal.zip/"): entry.reason.split(";")[0] for entry in entries if entry.status == "unreadable"}
    out = "its path leads out of the archive: {}".format
    assert refused == {"up.ipynb": out("../up.ipynb"), "abs.ipynb": out("/abs.ipynb"), "C:_drive.ipynb": out("C:\\drive.ipynb"),
                       "link.ipynb": "it is a symbolic link, and links are not followed"}


@pytest.mark.skipif(os.name != "posix", reason="names that are no text exist on POSIX systems")
def test_names_that_look_alike_as_text_are_not_one_student(tmp_path):
    try:
        for name in (b"\xe9mile.ipynb", b"\xe8mile.ipynb", b"\x01mile.ipynb"):
            with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
                file.write(NB)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    entries = ingest.collect(tmp_path, NN)
    assert [entry.status for entry in entries] == ["", "", ""] and len({entry.student for entry in entries}) == 3


def test_a_bomb_in_the_zip_of_a_class_takes_nothing_from_the_others(tmp_path):
    """Its ratio is far beyond what one student may hand in, and most of the zip is one student's."""
    (tmp_path / "class.zip").write_bytes(zipped({"ada.ipynb": NB, "bob.zip": zipped({"02.ipynb": NB}), "mal.ipynb": bytes(120 * MIB)}))
    assert [(entry.student, entry.reason) for entry in ingest.collect(tmp_path / "class.zip", NN)] == [
        ("ada", ""), ("bob", ""), ("mal", "it has 120 MiB, and 20 MiB are allowed")]


def test_nothing_of_a_class_is_read_before_its_turn(tmp_path, monkeypatch):
    """Nor stays open after it."""
    bundle = {"format": 1, "assignment": NN, "questions": []}
    bundle["digest"] = digest(bundle)
    (tmp_path / "class.zip").write_bytes(zipped({f"s{k}.zip": zipped({"02.ipynb": NB}) for k in range(20)}))
    order, content = [], zips.content
    monkeypatch.setattr(zips, "content", lambda archive, entry, *rest: order.append(entry.filename) or content(archive, entry, *rest))

    def run(todo, bundle):
        for entry in todo:
            order.append(f"{entry.student} marked")
            yield entry, {"questions": [], "score": 0, "max_score": 0, "limits": {}, "stdout_tail": ""}, 0.0

    hand_ins = ingest.hand_ins(tmp_path / "class.zip", NN)
    assert order == []
    made, _ = batch.batch(hand_ins, bundle, tmp_path / "out", run)
    assert [result["status"] for result in made] == ["graded"] * 20
    assert order == [step for k in sorted(range(20), key=str) for step in (f"s{k}.zip", "02.ipynb", f"s{k} marked")]
    os.remove(tmp_path / "class.zip")
    assert [entry.status for entry in hand_ins[0].read()] == ["not graded"]  # gone is no student's fault


def test_a_hand_in_that_breaks_the_reader_is_not_graded_and_the_others_are(tmp_path, monkeypatch):
    for name in ("ada", "mal", "zoe"):
        (tmp_path / f"{name}.ipynb").write_bytes(NB + b" " * (name == "mal"))
    read = ingest.HandIn.read.__globals__["reading"].notebook.read

    def broken(data):
        if data.endswith(b" "):
            raise MemoryError("no memory\nis left.")
        return read(data)

    monkeypatch.setattr("qlab.grading.handed_in.notebook.read", broken)
    assert [(entry.student, entry.status, entry.reason) for entry in ingest.collect(tmp_path, NN)] == [
        ("ada", "", ""), ("mal", "not graded", "the grader failed to read it: no memory is left."), ("zoe", "", "")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_file_that_is_swapped_for_a_pipe_or_a_link_is_no_wait(tmp_path):
    for name in ("ada", "bob", "cyd"):
        (tmp_path / f"{name}.ipynb").write_bytes(NB)
    hand_ins = ingest.hand_ins(tmp_path, NN)
    os.remove(tmp_path / "ada.ipynb")
    os.mkfifo(tmp_path / "ada.ipynb")
    os.remove(tmp_path / "bob.ipynb")
    (tmp_path / "bob.ipynb").symlink_to(tmp_path / "cyd.ipynb")
    assert [hand_in.read()[0].reason for hand_in in hand_ins] == [
        "it is empty", "it cannot be read here: Too many levels of symbolic links", ""]


def test_a_class_of_any_size_is_listed(tmp_path):
    """More entries than a hand-in may have: a student's are the student's own, and bound nobody else."""
    many = {f"mal/{k}.txt": b"" for k in range(61)}
    (tmp_path / "class.zip").write_bytes(zipped({**many, "zoe/02.ipynb": NB, "ada/02.ipynb": NB}))
    assert files.CLASS_ENTRIES >= 50 * Budget.files
    found = {entry.student: entry.reason for entry in ingest.collect(tmp_path / "class.zip", NN, budget=partial(Budget, files=60))}
    assert found == {"ada": "", "mal": "the whole hand-in has more than 60 files", "zoe": ""}


WHOLE = zipped({"more.zip": zipped({"02.ipynb": NB, "a/b.txt": b"x" * 50}), "hw.ipynb": NB, "data.json": b"[1]"})


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(WHOLE)))
def test_no_damage_to_a_zip_stops_the_reader(changes, end):
    data = bytearray(WHOLE[:end] if end % 3 == 0 else WHOLE)
    for at, byte in changes:
        if at < len(data):
            data[at] = byte
    file = files.File(("ada.zip",), kind="archive", read=lambda budget, limit: bytes(data))
    found, others = reading.notebooks([file], {}, Budget())
    assert found or others
    assert all(one.reason.startswith(("it ", "its ", "the whole hand-in")) and "\n" not in one.reason for one in found if one.reason)


def test_marking_is_never_far_behind_reading():
    taken = []

    def todo():
        for k in range(50):
            taken.append(k)
            yield ingest.Submission(f"s{k}", f"s{k}", f"s{k}.ipynb")

    @contextmanager
    def in_place(jobs):
        yield lambda cells, bundle: {"score": 0}

    run = batch.run_here(todo(), {}, in_place, jobs=2)
    next(run)
    assert len(taken) <= 4 and len(list(run)) == 49 and taken == list(range(50))


def test_the_options_of_the_command(capsys):
    command = ["in", "--assignment", "02", "--hand-in-mib", "1.5", "--hand-in-seconds", "3"]
    made = grade._budget(grade.parser().parse_args(command))()
    assert (made.size, made.seconds, made.files, made.notebooks) == (3 * MIB // 2, 3.0, 10_000, 200)
    for name in ("hand_in_mib", "hand_in_seconds", "seconds", "cell_seconds"):
        for value in ("0", "-1", "nan", "inf"):
            with pytest.raises(ValueError, match=f"^{name} is {value}, and must be a finite number above 0\\.$"):
                grade.main([*command, f"--{name.replace('_', '-')}", value])
    with pytest.raises(SystemExit):
        grade.parser().parse_args(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "(default: 256), beside 10,000 files, 200 notebooks of 20 MiB, and zips three deep; what has more is unreadable" in told
    assert (Budget.size, Budget.files, Budget.notebooks, Budget.seconds) == (256 * MIB, 10_000, 200, 20.0)
    assert files.NOTEBOOK_BYTES == 20 * MIB and reading.DEPTH == 3


def test_two_of_one_name_in_a_group_have_results_of_their_own(tmp_path):
    people = "".join(f"  - :name: Ada\n    :email: a{k}@example.edu\n" for k in range(2))
    (tmp_path / "submission_metadata.yml").write_text(f"submission_1:\n  :submitters:\n{people}")
    (tmp_path / "submission_1").mkdir()
    for name in "ab":
        (tmp_path / "submission_1" / f"{name}.ipynb").write_bytes(NB)
    entries = ingest.collect(tmp_path, NN)
    assert len({entry.id for entry in entries}) == 4
    assert {entry.email: entry.source for entry in entries if not entry.duplicate_of} == {
        "a0@example.edu": "submission_1/b.ipynb", "a1@example.edu": "submission_1/b.ipynb"}
