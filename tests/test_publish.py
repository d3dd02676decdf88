"""docs/hub/publish.sh: a release becomes the newest state of a repository; what is none is told in one sentence and changes nothing."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "hub" / "publish.sh"
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("git"), reason="needs git, and a shell as Linux and macOS have it")


def publish(release, repository):
    return subprocess.run(["sh", SCRIPT, release, repository], capture_output=True, text=True)


def release(path, version, page):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"qlab-{version}/notebooks/00 wélcome.ipynb", page)
        archive.writestr(f"qlab-{version}/exercises/00.ipynb", "{}")
        archive.writestr(f"qlab-{version}/pyproject.toml", "not for the repository")
    return path


def git(repository, *words):
    return subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True, check=True).stdout


def test_a_release_is_the_newest_state(tmp_path):
    repository = tmp_path / "the course.git"
    for version, page, commits in (("1", "first", 1), ("2", "first", 1), ("3", "second", 2)):
        run = publish(release(tmp_path / "for students.zip", version, page), repository)
        assert (run.returncode, run.stderr) == (0, "") and ("nothing is new" in run.stdout) == (version == "2")
        assert len(git(repository, "log", "--format=%h", "main").split()) == commits
        assert git(repository, "show", "main:notebooks/00 wélcome.ipynb") == page
    assert sorted(git(repository, "ls-tree", "--name-only", "main").split()) == [".gitattributes", ".gitignore", "exercises", "notebooks"]


def test_what_is_no_release_or_no_repository_is_told(tmp_path):
    good, broken, other = release(tmp_path / "good.zip", "1", "page"), tmp_path / "broken.zip", tmp_path / "other.zip"
    broken.write_bytes(good.read_bytes()[:100])
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("thesis/thesis.tex", "x")
    (tmp_path / "folder").mkdir()
    for zipped, repository, told in (
            (tmp_path / "none.zip", "new.git", "there is no file "), (broken, "new.git", "broken.zip cannot be unpacked: "),
            (other, "new.git", "other.zip is no release: make one with qlab release students.zip"),
            (good, "folder", "folder cannot be cloned: fatal: ")):
        run = publish(zipped, tmp_path / repository)
        assert run.returncode == 1 and run.stderr.startswith("qlab: ") and told in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "new.git").exists() and not list((tmp_path / "folder").iterdir())
