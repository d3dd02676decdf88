"""The one writer: whole or not at all, several or none, never over what is no file; and every function of the library that uses it."""

import builtins
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from qlab import saving
from qlab.deploy import c, files
from qlab.grading.author import release
from qlab.lab import machine, runs
from qlab.nets import compress, integer, ptq
from qlab.quant import linear

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links and permissions of POSIX")
PORTS = {"input": files.Port((2,), "float32"), "output": files.Port((2,), "float32")}


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    return ptq.quantize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), torch.rand(8, 1, 4, 4))


@pytest.fixture(scope="module")
def writers(quantized):
    """Every function that writes, to a path that ends in .c; and how many files it writes."""
    network, q, model = integer.convert(quantized, (1, 4, 4)), linear.quantize(torch.arange(6.0), 4), nn.Linear(2, 2)
    return {
        "saving.write": lambda path: saving.write({path: b"new"}), "QTensor.save": q.save, "Quantized.save": quantized.save,
        "IntegerNetwork.save": network.save, "compress.save": lambda path: compress.save(path, model, {}),
        "files.write": lambda path: files.write(path, b"new", format="none", network="n", layers=(), **PORTS),
        "c.export": lambda path: c.export(network, path, (1, 4, 4), name="net"),
        "machine.write_record": lambda path: machine.write_record(path, "command", rows=[1]),
    }


WRITERS = ("saving.write", "QTensor.save", "Quantized.save", "IntegerNetwork.save", "compress.save", "files.write", "c.export",
           "machine.write_record")
NO_FILES = {
    "pipe": os.mkfifo if hasattr(os, "mkfifo") else None, "folder": os.mkdir, "socket": None,
    "link to nothing": lambda place: place.symlink_to("nothing"), "link to a file": lambda place: place.symlink_to("file"),
    "link to a folder": lambda place: place.symlink_to("."), "link to itself": lambda place: place.symlink_to(place.name),
}


def seen(folder):
    """Everything in a folder, as it is: kind, permissions, content or target."""
    return {place.name: (place.lstat().st_mode, os.readlink(place) if place.is_symlink() else
                         place.read_bytes() if place.is_file() else None) for place in folder.iterdir()}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_left_alone(tmp_path, monkeypatch, writers, writer, kind):
    monkeypatch.chdir(tmp_path)                                                             # a socket's path must be short
    (tmp_path / "file").write_bytes(b"theirs")
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("net.c")
    else:
        NO_FILES[kind](tmp_path / "net.c")
    before = seen(tmp_path)
    with pytest.raises(OSError, match=r"^cannot write .*net\.c: it is a (pipe|folder|socket|symbolic link), and must be a file") as error:
        writers[writer](Path("net.c"))
    assert "\n" not in str(error.value) and seen(tmp_path) == before


def test_a_device_is_refused():
    for path in ("/dev/null", "/dev/full"):
        with pytest.raises(OSError, match=f"cannot write {path}: it is a device"):
            saving.write({path: b"new"})


@pytest.mark.parametrize("blocked", ["net.h", "net.c.json"])
def test_of_several_files_one_that_is_blocked_stops_all(tmp_path, writers, blocked):
    (tmp_path / "net.c").write_bytes(b"old")
    (tmp_path / blocked).symlink_to("elsewhere")
    before = seen(tmp_path)
    with pytest.raises(OSError, match=f"cannot write .*{blocked}: it is a symbolic link"):
        writers["c.export"](tmp_path / "net.c")
    assert seen(tmp_path) == before


def test_eight_threads_write_one_path(tmp_path):
    path, contents, failed = tmp_path / "one", [bytes([i]) * (100_000 + i) for i in range(8)], []

    def work(content):
        try:
            for _ in range(5):
                saving.write({path: content})
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must know
            failed.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in contents                           # never half of one
    assert not failed and path.read_bytes() in contents and os.listdir(tmp_path) == ["one"]


def test_threads_do_not_mix_files_that_belong_together(tmp_path):
    paths = [tmp_path / name for name in "abc"]

    def work(i):
        for _ in range(5):
            saving.write({path: bytes([i]) for path in paths})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1 and sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_processes_write_one_path(tmp_path):
    program = "import sys; from qlab import saving\nfor _ in range(20): saving.write({sys.argv[1]: sys.argv[2].encode() * 50_000})"
    started = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "one", letter]) for letter in "xyz"]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert (tmp_path / "one").read_bytes() in [letter * 50_000 for letter in (b"x", b"y", b"z")] and os.listdir(tmp_path) == ["one"]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_that_open_gives(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        saving.write({tmp_path / "new": b""})
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode) == mode
    (tmp_path / "new").chmod(0o640)
    saving.write({tmp_path / "new": b"again"})                                              # open() leaves an old file's, too
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


REASONS = {
    errno.ENOSPC: "No space left on device.: name a place that has room", errno.EDQUOT: "name a place that has room",
    errno.EFBIG: "name a place that has room",
    errno.EROFS: "Read-only file system.: name a place that can be written, for .* is on a read-only",
    errno.EACCES: "Permission denied.: name a place that can be written, for this program has no permission",
    errno.EPERM: "no permission", errno.EIO: "name a place that exists, can be written and has room",
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", REASONS)
def test_a_place_that_cannot_be_written_is_told_and_left_as_it_was(tmp_path, monkeypatch, writers, writer, where, number):
    writers[writer](tmp_path / "net.c")
    before = seen(tmp_path)

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    real = builtins.open
    with monkeypatch.context() as patched:
        if where == "open":
            patched.setattr(builtins, "open", lambda file, mode="r", *a, **k: fails() if "x" in mode else real(file, mode, *a, **k))
        else:
            patched.setattr(os, where, fails)
        with pytest.raises(OSError, match=f"^cannot write .*{REASONS[number]}") as error:
            writers[writer](tmp_path / "net.c")
    assert error.value.errno == number and "\n" not in str(error.value) and seen(tmp_path) == before


def test_a_file_system_that_takes_nothing_back_gives_the_first_reason(tmp_path, monkeypatch):
    """On a read-only file system nothing can be removed either."""
    def fails(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("replace", "unlink", "link"):
        monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="read-only file system"):
        saving.write({tmp_path / "a": b"", tmp_path / "b": b""})


@pytest.fixture
def read_only(monkeypatch):
    """The system calls as they fail on a read-only file system, root's included; unlink fails too, whether the file exists or not."""
    real, access = builtins.open, os.access

    def fails(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(builtins, "open", lambda file, mode="r", *a, **k: fails() if set(mode) & set("wxa+") else real(file, mode, *a, **k))
    for name in ("unlink", "link", "replace", "rename", "mkdir", "rmdir", "chmod"):
        monkeypatch.setattr(os, name, fails)
    monkeypatch.setattr(os, "access", lambda path, mode, **options: not mode & os.W_OK and access(path, mode, **options))
    monkeypatch.setattr(os, "statvfs", lambda path: type("Flags", (), {"f_flag": os.ST_RDONLY}))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("writer", [*WRITERS, "release.write_zip"])
def test_a_read_only_file_system_is_told_as_what_it_is(tmp_path, request, writers, writer, there):
    write = writers.get(writer, lambda path: release.write_zip(path, {"a": b"1"}, private=True))
    if there:
        write(tmp_path / "net.c")
    before = seen(tmp_path)
    request.getfixturevalue("read_only")
    with pytest.raises(OSError, match=f"^cannot write {tmp_path}/net.*Read-only file system.: name a place that can be written, for "
                                      f"{tmp_path} is on a read-only file system.$") as error:
        write(tmp_path / "net.c")
    assert error.value.errno == errno.EROFS and seen(tmp_path) == before


def test_a_folder_on_a_read_only_file_system(tmp_path, read_only):
    with pytest.raises(OSError, match=f"^cannot make the folder {tmp_path}/a/b .Read-only file system.: name a place that can be written, "
                                      f"for {tmp_path} is on a read-only file system.$"):
        runs.write("record", "command", folder=tmp_path / "a" / "b")


def test_folders(tmp_path):
    assert saving.make_folder(tmp_path / "a" / "b") == saving.make_folder(str(tmp_path / "a" / "b")) and (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="^cannot make the folder .*file .File exists.: it is a file.$"):
        saving.make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="^cannot make the folder .*file/below .Not a directory.: name a place that exists, for "
                                                 ".*file is not a folder.$"):
        saving.make_folder(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="cannot make the folder .*shorter name"):
        saving.make_folder(tmp_path / ("x" * 256))
    with pytest.raises(OSError, match="cannot make the folder .*no zero"):
        saving.make_folder("a\0b")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    site, link = saving.make_folder(tmp_path / "site"), tmp_path / "link"
    (site / "old").touch()
    with pytest.raises(ZeroDivisionError), saving.whole_folder(site) as new:
        (new / "half").touch()
        raise ZeroDivisionError
    assert os.listdir(site) == ["old"] and os.listdir(tmp_path) == ["site"]
    link.symlink_to(site)
    with saving.whole_folder(link) as new:
        (new / "new").touch()
        assert os.listdir(site) == ["old"]
    assert os.listdir(site) == ["new"] and link.is_symlink() and sorted(os.listdir(tmp_path)) == ["link", "site"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot make the folder"), saving.whole_folder(tmp_path / "file" / "site"):
        pass


def test_what_is_private_is_for_its_owner_alone(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "old").chmod(0o644)
    modes, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (modes.append(stat.S_IMODE(os.fstat(file).st_mode)), real(file)))
    contents = {tmp_path / "old": b"1", tmp_path / "new": b"2", tmp_path / "free": b"3"}
    saving.write(contents, private=[tmp_path / "old", str(tmp_path / "new")])
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("old", "new")] == [0o600, 0o600] == modes[:2]
    assert stat.S_IMODE((tmp_path / "free").stat().st_mode) == modes[2] != 0o600


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="No such file.*name a place that exists, for there is no folder .*missing"):
        saving.write({tmp_path / "missing" / "x": b""})
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        saving.write({tmp_path / "file" / "x": b""})
    with pytest.raises(OSError, match="name a place with a shorter name"):
        saving.write({tmp_path / ("x" * 256): b""})
    with pytest.raises(OSError, match="cannot write .*no zero"):
        saving.write({"a\0b": b""})
    saving.write({tmp_path / ("x" * 255): b"as long as names can be"})
    assert sorted(os.listdir(tmp_path)) == ["file", "x" * 255]


_NO_PERMISSION = "cannot write .*old .Permission denied.*no permission to write old in"


def test_no_permission_for_a_file_or_for_its_folder_is_said(tmp_path, monkeypatch):
    """As the system would answer: for the rights themselves do not bind every user who runs tests."""
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for target, name, answer in ((os, "access", lambda *_, **__: False), (saving, "_create", refused), (os, "replace", refused)):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, answer)
            with pytest.raises(PermissionError, match=_NO_PERMISSION):
                saving.write({path: b"new"})
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["old"]


def test_the_rights_of_the_folder_and_of_the_file_bind():
    """With real rights, in a folder that everyone may enter, and as another user where root runs the tests."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old"
        path.write_bytes(b"old")
        for place, mode in ((Path(folder), 0o555), (path, 0o444)):
            Path(folder).chmod(0o777)
            path.chmod(0o666)
            place.chmod(mode)
            try:
                if root:
                    os.seteuid(65534)
                if os.access(place, os.W_OK, effective_ids=True):
                    pytest.skip("this user may write where rights forbid it")
                with pytest.raises(PermissionError, match=_NO_PERMISSION):
                    saving.write({path: b"new"})
            finally:
                if root:
                    os.seteuid(0)
            Path(folder).chmod(0o777)
            assert path.read_bytes() == b"old" and os.listdir(folder) == ["old"]


@pytest.mark.parametrize("had", [(), ("a",), ("b", "c"), ("a", "b", "c")])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("interrupted", ["before", "after"])
def test_whichever_rename_fails_all_are_taken_back(tmp_path, monkeypatch, had, at, links, interrupted):
    for name in had:
        (tmp_path / name).write_bytes(b"old " + name.encode())
    before, real, calls = seen(tmp_path), os.replace, []

    def replace(source, target):
        calls.append(target)
        if interrupted == "after":
            real(source, target)
        if len(calls) == at:
            raise KeyboardInterrupt
        if interrupted == "before":
            real(source, target)

    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(KeyboardInterrupt):
        saving.write({tmp_path / name: b"new" for name in "abc"})
    assert seen(tmp_path) == before


def test_ctrl_c_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saving.write({tmp_path / "a": b"new"})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("at", range(1, 7))
def test_ctrl_c_while_cleaning_up_leaves_nothing_beside_the_files(tmp_path, monkeypatch, at):
    for name in "abc":
        (tmp_path / name).write_bytes(b"old")
    real, calls = os.unlink, []

    def unlink(path, **options):
        calls.append(path)
        if len(calls) == at:
            raise KeyboardInterrupt
        real(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            saving.write({tmp_path / name: b"new" for name in "abc"})
    assert len(calls) == 7 and {name: entry[1] for name, entry in seen(tmp_path).items()} == dict.fromkeys("abc", b"new")


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_program_that_is_killed_leaves_the_old_file(tmp_path, when):
    (tmp_path / "a").write_bytes(b"old")
    program = f"import os, signal; from qlab import saving; os.{when} = lambda *_: os.kill(os.getpid(), signal.SIGKILL); " \
              f"saving.write({{{str(tmp_path / 'a')!r}: b'new' * 9999}})"
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"
    saving.write({tmp_path / "a": b"newer"})                                                # what the dead one left is in nobody's way
    assert (tmp_path / "a").read_bytes() == b"newer"


def test_reading_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "cannot read .*pipe: it is not a file"), ("none", "cannot read .*none .No such file"),
                       (".", "Is a directory"), ("a\0b", "cannot read")):
        with pytest.raises(OSError, match=said):
            saving.read(tmp_path / name)


def test_a_network_and_its_record_are_both_new_or_both_old(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    sha256 = runs.save_model("net", model, tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="net.safetensors .No space left"):
        runs.save_model("net", nn.Linear(2, 2), tmp_path)
    assert torch.equal(runs.load_model("net", nn.Linear(2, 2), sha256, tmp_path).weight, model.weight)
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_no_module_writes_by_itself():
    """Files of the library are written by saving.write; what is listed here writes into a temporary folder, into one that counts only when
    it is whole (the slides, the site, its pictures), or is no library's business."""
    known = {"deploy/cortex_m.py", "lab/experiments/tflite_keras.py", "bootstrap.py", "saving.py", "deploy/onnx.py", "lecture/html.py",
             "site/build.py", "site/frames.py"}
    root = Path(saving.__file__).parent
    writes = ("write_bytes(", "write_text(", "os.replace(", "os.rename(", "mkstemp(", "save_file(", ".savefig(path", "shutil.copy")
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if any(word in path.read_text() for word in writes)}
    assert {name for name in found if not name.startswith("grading/")} <= known
