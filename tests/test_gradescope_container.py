"""The autograder for Gradescope: the zip has what Gradescope asks for; run_autograder, in folders laid out as there, gives exact results.

A container is made with bubblewrap: a root of its own with the capabilities that Docker gives by default, which do not let it make
namespaces.
"""

import gzip
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import grading_helpers
import pytest

from qlab import cli
from qlab.grading import results
from qlab.grading.gradescope import container, package, run
from qlab.grading.sandbox import bwrap

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = grading_helpers.bundle()
BUNDLE["digest"] = results.digest(BUNDLE)
METADATA = {"id": 123456, "created_at": "2018-07-01T14:22:32.365935-07:00", "assignment": {"title": "Small", "total_points": "5.0"},
            "submission_method": "upload", "users": [{"email": "ada@example.edu", "id": 1234, "name": "Ada Lovelace"}],
            "previous_submissions": []}
DOCKER = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
FLOOR = grading_helpers.CODES.replace("torch.round", "torch.floor")
# What a student may try there, before and while hidden cases are asked; what succeeds is counted, and makes q1 wrong.
HOSTILE = """
import os, signal, socket, subprocess, sys
opened = []
def tried(what, *args):
    try:
        opened.append((what(*args), what, args))
    except OSError:
        pass
def attack():
    for name in ("mem", "environ", "fd/0"):
        tried(open, f"/proc/{os.getppid()}/{name}", "rb")
    for path in ("/autograder/source/bundle.json.gz", "/autograder/results/results.json"):
        tried(open, path)
        tried(open, path, "w")
    tried(os.listdir, "/autograder/source")
    tried(os.kill, os.getppid(), signal.SIGKILL)
    tried(socket.socket, socket.AF_INET)
    tried(os.setuid, 0)
attack()
for endless in ("time.sleep(1)", "os.fork() and os._exit(0)"):
    subprocess.Popen([sys.executable, "-c", f"import os, time\\nos.setsid()\\nwhile True: {endless}"])
"""
RIGHT_IF_SHUT = grading_helpers.CODES.replace("    scale", "    attack()\n    scale") + " + len(opened)"
LEAVES = "def nbytes(shape, bits):\n    attack()\n    if shape[0] != 2:\n        os._exit(0)\n    return 3"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the zip is for Linux, and its scripts are run with bash")
needs_bwrap = pytest.mark.skipif(not grading_helpers.has_bwrap(), reason="a container needs bubblewrap: apt install bubblewrap")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root makes a container that root runs")


def notebook(**answers):
    cells = [{"cell_type": "code", "source": cell["source"], "outputs": [], "execution_count": None,
              "metadata": {"nbgrader": {"grade_id": cell["grade_id"], "grade": cell["grade"], "schema_version": 3}}}
             for cell in grading_helpers.cells(**answers)]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


@pytest.fixture
def autograder(tmp_path):
    """/autograder as Gradescope lays it out, after setup.sh; what is handed in is still missing."""
    place = tmp_path / "autograder"
    for name in ("source", "submission", "results"):
        (place / name).mkdir(parents=True)
    (place / "submission_metadata.json").write_text(json.dumps(METADATA))
    (place / "source" / "bundle.json.gz").write_bytes(gzip.compress(json.dumps(BUNDLE).encode()))
    (place / "source" / "python").write_text(f"{sys.executable}\n")
    options(place, "")
    return place


def options(place, words):
    (place / "run_autograder").write_text(package.RUN.format(options=words))
    (place / "run_autograder").chmod(0o755)


def read(place):
    return json.loads((place / "results" / "results.json").read_text())


def in_container(place):
    """run_autograder, as root of a container: bubblewrap's own root has the paths that the interpreter and qlab are found by."""
    shown = [Path(path) for path in (sys.prefix, sys.base_prefix, ROOT / "qlab") if not Path(path).is_relative_to("/usr")]
    command = [bwrap.find_bwrap(), "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--cap-drop", "ALL"]
    command += [word for name in DOCKER for word in ("--cap-add", f"CAP_{name}")]
    command += ["--ro-bind", "/usr", "/usr", "--perms", "1777", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
        command += ["--symlink", os.readlink(path), str(path)] if path.is_symlink() else ["--ro-bind-try", str(path), str(path)]
    for parent in dict.fromkeys(parent for path in shown for parent in reversed(path.parents[:-1])):
        command += ["--perms", "0755", "--dir", str(parent)]
    command += [word for path in shown for word in ("--ro-bind", str(path), str(path))]
    left = f"code=$?; grep -l '^Uid:.{container.STUDENT}' /proc/[0-9]*/status; exit $code"  # processes that it has not ended
    command += ["--bind", str(place), "/autograder", "--chdir", "/autograder", "--", "/bin/sh", "-c", f"/autograder/run_autograder; {left}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_zip_is_laid_out_as_gradescope_asks(tmp_path, capsys, monkeypatch):
    bundle = tmp_path / "99_small.json.gz"
    bundle.write_bytes(gzip.compress(json.dumps(BUNDLE).encode()))
    monkeypatch.setattr(package.release, "names", lambda root, folders: ["pyproject.toml", "qlab/cli.py"])
    assert cli.main(["gradescope", "99", str(tmp_path / "a.zip"), "--bundle", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert "the autograder of 99_small, 5 files" in told and "give it to nobody" in told and package.FULL in told
    assert stat.S_IMODE((tmp_path / "a.zip").stat().st_mode) == 0o600
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}
        assert modes == {"setup.sh": 0o755, "run_autograder": 0o755, "bundle.json.gz": 0o644, "qlab/pyproject.toml": 0o644,
                         "qlab/qlab/cli.py": 0o644}
        assert archive.read("bundle.json.gz") == bundle.read_bytes()
        scripts = {name: archive.read(name) for name in ("setup.sh", "run_autograder")}
    assert cli.main(["gradescope", "99", str(tmp_path / "b.zip"), "--bundle", str(bundle), "--without-namespaces"]) == 0
    assert package.WITHOUT in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.read("run_autograder") != scripts["run_autograder"] and archive.read("setup.sh") == scripts["setup.sh"]
        assert b" --without-namespaces\n" in archive.read("run_autograder")
    for script in scripts.values():
        assert script.startswith(b"#!") and b"\r" not in script
        assert subprocess.run(["bash", "-n"], input=script).returncode == 0
        assert not re.search(rb"https?://", script)


def test_the_course_in_the_zip_can_install_itself():
    names = set(package.release.names(ROOT, ("qlab",)))
    assert {"pyproject.toml", "constraints.txt", "setup.py", "README.md", "LICENSE", "qlab/bootstrap.py", "qlab/bootstrap_machine.py",
            "qlab/grading/gradescope/run.py"} <= names
    assert not [name for name in names if name.startswith(("solutions/", "bundles/", "tests/", "exercises/"))]


def test_what_cannot_be_made_is_one_sentence(tmp_path, capsys):
    for args, said in (((str(tmp_path / "a.tar"),), "must end with .zip."), ((str(tmp_path / "no" / "a.zip"),), "there is no folder"),
                       ((str(tmp_path / "a.zip"), "--bundle", str(tmp_path / "none")), "there is no bundle")):
        assert cli.main(["gradescope", "02", *args]) == 1
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_bwrap
def test_run_autograder_grades_in_the_sandbox(autograder):
    (autograder / "submission" / "99_small.ipynb").write_text(notebook(q1=FLOOR))
    (autograder / "submission" / "notes.txt").write_text("not code")
    (autograder / "results" / "results.json").write_text("of an earlier run")
    done = subprocess.run([autograder / "run_autograder"], cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "network: none\n" in done.stdout and "system calls filtered" in done.stdout
    told = read(autograder)
    assert (told["score"], told["stdout_visibility"], told["output"]) == (3, "hidden", "")
    assert set(told) == {"score", "output", "output_format", "visibility", "stdout_visibility", "tests"}  # no time, which could tell bits
    assert [(test["name"], test["score"], test["max_score"], test["status"], test["output"].split("\n")[0]) for test in told["tests"]] == [
        ("q1", 0, 2, "failed", "The public tests pass; a hidden test fails."), ("q2", 3, 3, "passed", "All tests pass.")]
    assert str(grading_helpers.SECRET) not in json.dumps(told)


@needs_bwrap
@needs_root
def test_a_container_that_forbids_namespaces(autograder):
    (autograder / "submission" / "99_small.ipynb").write_text(notebook(before=HOSTILE, q1=RIGHT_IF_SHUT, q2=LEAVES))
    refused = in_container(autograder)
    assert refused.returncode == 1 and not (autograder / "results" / "results.json").exists()
    assert "not graded: there is no sandbox: this machine forbids the sandbox's namespaces" in refused.stdout
    options(autograder, "--without-namespaces")
    done = in_container(autograder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "network: none\n" in done.stdout and "processes of others: seen\n" in done.stdout
    assert done.stdout.endswith("time: kept by the grader\n")  # and no process is left
    told = read(autograder)
    assert [(test["name"], test["score"], test["output"]) for test in told["tests"]] == [
        ("q1", 2, "All tests pass."),
        ("q2", 0, "The process ended while this question was tested: it left Python, crashed, or used too much memory.")]
    assert told["score"] == 2


@needs_bwrap
@needs_root
def test_without_namespaces_what_is_secret_must_be(autograder):
    """Fails closed: a folder that everybody may read is found before any student code runs."""
    (autograder / "submission" / "99_small.ipynb").write_text(notebook())
    options(autograder, "--without-namespaces")
    script = (autograder / "run_autograder").read_text()
    (autograder / "run_autograder").write_text(script.replace("chmod 700 source results", "chmod 755 source results"))
    done = in_container(autograder)
    assert done.returncode == 1 and not (autograder / "results" / "results.json").exists()
    assert "not graded: there is no sandbox: the limits do not hold here: /autograder/source can be read or written" in done.stdout


@pytest.mark.parametrize("name, content, said", [
    ("99_small.ipynb", "", "it is empty"), ("99_small.ipynb", "[", "it is not valid JSON"),
    ("essay.txt", "words", "there is no notebook of"), (None, "", "")])
def test_what_cannot_be_read_gets_0_and_a_reason(autograder, name, content, said):
    if name:
        (autograder / "submission" / name).write_text(content)
    assert run.main([str(autograder)]) == 0
    told = read(autograder)
    assert (told["score"], told["tests"]) == (0, []) and told["output"].startswith(f"Your notebook could not be read: {said}")


def test_what_was_handed_in_decides_neither_whose_it_is_nor_what_counts(autograder):
    folder = autograder / "submission" / "submission_7" / "99_small"
    folder.mkdir(parents=True)
    (folder / "99_small.ipynb").write_text(notebook())
    (autograder / "submission" / "submission_metadata.yml").write_text("submission_7:\n  :submitters:\n  - :name: Somebody Else\n")
    (autograder / "submission" / "99_small.ipynb").write_text(notebook(q1="", q2=""))
    (autograder / "submission" / "link.ipynb").symlink_to("/etc/passwd")
    entry = run.handed_in(autograder, BUNDLE)
    assert (entry.student, entry.email, entry.status) == ("Ada Lovelace", "ada@example.edu", "")
    assert entry.source.endswith("submission_7/99_small/99_small.ipynb")
    for strange in ("", "[]", '{"users": []}', '{"users": [3]}', '{"users": [{"name": null}]}', "{" * 9999):
        (autograder / "submission_metadata.json").write_text(strange)
        assert run.handed_in(autograder, BUNDLE).status == ""


@pytest.mark.parametrize("fits, installed", [
    (True, ["bubblewrap python3 python3-venv"]), (False, ["bubblewrap python3 python3-venv", "python3.12 python3.12-venv"])])
def test_setup_makes_the_environment_and_closes_its_folder(tmp_path, fits, installed):
    """With stand-ins for what changes the machine: which packages, in which folder, and who may read it afterwards."""
    source, commands = tmp_path / "source", tmp_path / "commands"
    (source / "qlab").mkdir(parents=True)
    (source / "qlab" / "pyproject.toml").write_text("the course")
    commands.mkdir()
    stand_ins = {"apt-get": f'echo "apt-get $*" >> {tmp_path}/log',
                 "python3": f'[ "$1" = -c ] && exit {int(not fits)}; echo "python3 $* in $PWD" >> {tmp_path}/log'}
    for name, script in stand_ins.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    script = package.SETUP.replace("/autograder/source", str(source)).replace("/opt/qlab", str(tmp_path / "opt"))
    done = subprocess.run(["bash"], input=script, text=True, env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"})
    assert done.returncode == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert [line.removeprefix("apt-get install -y ").removeprefix("--no-install-recommends ") for line in said[1:-1]] == installed
    assert said[-1] == f"python3 -m qlab.bootstrap --cpu in {tmp_path / 'opt'}"
    assert (tmp_path / "opt" / "pyproject.toml").read_text() == "the course"
    assert stat.S_IMODE(source.stat().st_mode) == 0o700 and (source / "python").read_text() == f"{tmp_path / 'opt'}/.venv/bin/python\n"
