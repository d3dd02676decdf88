"""docs/hub/publish.sh: a release becomes the newest state of a repository; what is none is told in one sentence and changes nothing."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "hub" / "publish.sh"
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("git"), reason="needs git, and a shell as Linux and macOS have it")


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """The home of a teacher without settings of git's, in place of whoever's runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "home" / "settings"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "home" / ".config" / "git").mkdir(parents=True)
    (tmp_path / "home" / "settings").touch()
    return tmp_path / "home"


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


def test_the_teachers_own_settings_of_git_change_nothing(settings, tmp_path):
    hooks, template = tmp_path / "hooks", tmp_path / "template" / "info"
    for folder in (hooks, template):
        folder.mkdir(parents=True)
    for name in ("pre-commit", "commit-msg", "pre-push", "post-checkout"):
        (hooks / name).write_text("#!/bin/sh\necho a hook >&2\nexit 1\n")
        (hooks / name).chmod(0o755)
    own = settings / ".config" / "git"
    for path, line in ((template / "exclude", "*.ipynb"), (own / "ignore", "exercises"), (settings / "ignore", "notebooks"),
                       (own / "attributes", "*.ipynb filter=empty")):
        path.write_text(line + "\n")
    (settings / "settings").write_text(f"""
[core]\n hooksPath = {hooks}\n excludesFile = {settings / "ignore"}\n autocrlf = input
[commit]\n gpgSign = true\n[gpg]\n program = false\n[init]\n templateDir = {template.parent}\n defaultBranch = other
[filter "empty"]\n clean = true\n smudge = true\n required = true\n""")
    for version, page in (("1", "first\r\n"), ("2", "second\r\n")):
        run = publish(release(tmp_path / "students.zip", version, page), tmp_path / "course.git")
        assert (run.returncode, run.stderr) == (0, "") and "4 files in" in run.stdout
    shown = subprocess.run(["git", "-C", tmp_path / "course.git", "show", "main:notebooks/00 wélcome.ipynb"], capture_output=True)
    assert shown.stdout == b"second\r\n"


def test_a_repository_that_does_not_take_it_is_told(tmp_path):
    publish(release(tmp_path / "1.zip", "1", "first"), tmp_path / "course.git")
    hook = tmp_path / "course.git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    run = publish(release(tmp_path / "2.zip", "2", "second"), tmp_path / "course.git")
    assert run.returncode == 1 and run.stderr.startswith(f"qlab: {tmp_path / 'course.git'} cannot be changed: ")
    assert len(run.stderr.splitlines()) == 1 and git(tmp_path / "course.git", "show", "main:notebooks/00 wélcome.ipynb") == "first"


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
