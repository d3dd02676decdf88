"""qlab release: the zip opened and every file in it searched, and what it refuses to make."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest

import qlab
from qlab import cli
from qlab.grading import links
from qlab.grading.author import student
from qlab.grading.author.release import FILES, release

ROOT = Path(__file__).resolve().parents[1]
TOP = f"qlab-{qlab.__version__}/"
SEED = "a-seed-that-only-the-teacher-knows"


@pytest.fixture(autouse=True)
def teacher(monkeypatch, tmp_path):
    monkeypatch.setenv("QLAB_SEED", SEED)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A teacher's clone with one finished set, and everything beside it that must stay at home."""
    root = tmp_path_factory.mktemp("teacher") / "clone"
    for name in FILES:
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root)
    leave = shutil.ignore_patterns("__pycache__", "fashion-mnist", "checkpoints", "records", "[01]?_*", "prerequisites*")
    for name in ("qlab", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=leave)
    shutil.copy(ROOT / "notebooks" / "02_linear_quantization.ipynb", root / "notebooks")
    for name in ("00_welcome", "06_quantizing_a_network"):  # the page links to them
        (root / "notebooks" / f"{name}.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    for name in ("README.md", "CONTRIBUTING.md"):  # the course's own are released below; here most of what they link to is left out
        (root / name).write_text("# A course\n\n[Two](notebooks/02_linear_quantization.ipynb), [written once](solutions/README.md).\n")
    (root / "solutions").mkdir()
    (root / "exercises").mkdir()
    shutil.copy(ROOT / "solutions" / "02_linear_quantization.ipynb", root / "solutions")
    solution = student.student_notebook(student.read(root / "solutions" / "02_linear_quantization.ipynb"))
    (root / "exercises" / "02_linear_quantization.ipynb").write_text(student.text(solution))
    (root / "exercises" / "README.md").write_text("# Exercises\n")
    for name in ("bundles/02.json.gz", "results/02/a.json", "tests/test_sandbox.py", "qlab/lab/__pycache__/data.pyc", "notebooks/old.zip",
                 "notebooks/.ipynb_checkpoints/02.ipynb", ".git/config", "exercises/.02.partial", "grades.csv", ".env"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("stays at home")
    return root


@pytest.fixture
def again(clone, tmp_path):
    return Path(shutil.copytree(clone, tmp_path / "again"))


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_file_of_the_zip_is_searched(clone, tmp_path):
    out = tmp_path / "students.zip"
    count = release(clone, out)
    files = unpacked(out)
    assert files[TOP + "README.md"] == b"# A course\n\n[Two](notebooks/02_linear_quantization.ipynb), written once.\n"
    assert len(files) == count and all(name.startswith(TOP) for name in files)
    names = {name.removeprefix(TOP) for name in files}
    assert {*FILES, "exercises/02_linear_quantization.ipynb", "exercises/README.md", "notebooks/02_linear_quantization.ipynb",
            "qlab/__init__.py", "qlab/grading/check.py", "qlab/quant/linear.py", "qlab/lab/jupyter/overrides.json"} <= names
    for name in names:
        parts = name.split("/")
        assert parts[0] in {*FILES, "qlab", "notebooks", "exercises"} and not any(part.startswith(".") for part in parts)
        assert not name.endswith((".pyc", ".zip", ".partial")) and "__pycache__" not in parts
    solution = nbformat.read(clone / "solutions" / "02_linear_quantization.ipynb", 4)
    tests = [student.split(cell.source, "HIDDEN TESTS")[1].split("\n") for cell in solution.cells if cell.cell_type == "code"]
    hidden = {line.strip() for lines in tests for line in lines if len(line.strip()) > 30}
    hidden -= {"from qlab.grading import hidden, wrong", '@wrong("q1", "floor for round")'}  # the grader's benchmark has them, too
    assert len(hidden) > 50
    for name, content in files.items():
        assert SEED.encode() not in content and b"stays at home" not in content
        text = content.decode(errors="replace")
        if name.endswith(".ipynb"):
            text = "\n".join(student._strings(json.loads(text)))
            assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS)|@hidden|@wrong", text), name
        assert not [line for line in hidden if line in text], name


def test_the_zip_is_a_clone_that_works(clone, tmp_path):
    release(clone, tmp_path / "students.zip")
    with zipfile.ZipFile(tmp_path / "students.zip") as archive:
        archive.extractall(tmp_path)
    root = tmp_path / TOP
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert (root / project["readme"]).is_file() and all((root / name).is_file() for name in project["license-files"])
    exercise = nbformat.read(root / "exercises" / "02_linear_quantization.ipynb", 4)
    (root / "exercise.py").write_text("\n\n".join(cell.source for cell in exercise.cells if cell.cell_type == "code"))
    env = os.environ | {"PYTHONPATH": str(root)}
    where = subprocess.run([sys.executable, "-c", "import qlab; print(qlab.__file__)"], cwd=root, env=env, capture_output=True, text=True)
    assert where.stdout.startswith(str(root))
    run = subprocess.run([sys.executable, "exercise.py"], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("q1 is not answered yet.\nq2 is not answered yet.\n"), run.stderr
    help_text = subprocess.run([sys.executable, "-m", "qlab.cli", "--help"], cwd=root, env=env, capture_output=True, text=True).stdout
    assert "open the course in JupyterLab" in help_text


@pytest.fixture
def git(again, tmp_path, monkeypatch):
    """A clone that git keeps, with all that is in it now; runs git there."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    shutil.rmtree(again / ".git")

    def run(*words):
        subprocess.run(["git", *words], cwd=again, check=True, capture_output=True)

    run("init")
    run("add", *FILES, "qlab", "notebooks", "exercises", "solutions")
    return run


def test_what_git_does_not_know_stays_at_home_and_is_named(again, git, tmp_path, capsys):
    drafts = ("exercises/grades.csv", "notebooks/exam_dräft.md", "qlab/site/private/notes.txt")
    for name in drafts:
        (again / name).parent.mkdir(parents=True, exist_ok=True)
        (again / name).write_text("ada: 5")
    (again / "notebooks" / "my own.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    git("add", "notebooks/my own.ipynb")  # staged is enough
    release(again, tmp_path / "a.zip")
    names = {name.removeprefix(TOP) for name in unpacked(tmp_path / "a.zip")}
    assert "notebooks/my own.ipynb" in names and not names & set(drafts)
    err = capsys.readouterr().err
    assert err.startswith("qlab: left out, for git does not know it: ") and err.count("\n") == 1 and all(name in err for name in drafts)


def test_a_set_that_git_does_not_know_is_refused(again, git, tmp_path):
    git("rm", "-q", "--cached", "exercises/02_linear_quantization.ipynb")
    sentence = "^exercises/02_linear_quantization.ipynb is not known to git, and its solution is in solutions/: run git add exercises/02"
    refused(again, tmp_path / "a.zip", ValueError, sentence)


def test_a_copy_in_a_folder_that_git_keeps_for_something_else_goes_whole(again, git, tmp_path, capsys):
    git("rm", "-q", "-r", "--cached", ".")
    release(again, tmp_path / "a.zip")
    assert TOP + "qlab/cli.py" in unpacked(tmp_path / "a.zip") and capsys.readouterr().err == ""


def test_where_git_cannot_tell_a_line_says_so(clone, tmp_path, capsys):
    release(clone, tmp_path / "a.zip")  # its .git is none
    assert re.fullmatch("qlab: git does not tell which files are the course's .+: all that lies in its folders goes in.\n",
                        capsys.readouterr().err)


def test_the_same_files_give_the_same_bytes(clone, tmp_path):
    release(clone, tmp_path / "a.zip")
    release(clone, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_course_itself_can_be_released(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "clone", lambda: ROOT)
    assert cli.main(["release", str(tmp_path / "students.zip")]) == 0
    names = {name.removeprefix(TOP) for name in unpacked(tmp_path / "students.zip")}
    assert {f"exercises/{path.name}" for path in (ROOT / "solutions").glob("*.ipynb")} <= names
    assert "qlab/lab/checkpoints/cnn.json" in names and not any(name.startswith(("solutions", "bundles", "tests")) for name in names)
    assert links.broken({name.removeprefix(TOP): content for name, content in unpacked(tmp_path / "students.zip").items()}) == []
    assert re.fullmatch(rf".*students\.zip: {len(names)} files, \d+\.\d MiB\n", capsys.readouterr().out)


# What it refuses


def refused(root, out, error, sentence):
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=sentence):
        release(root, out)
    assert sorted(out.parent.iterdir()) == before


def test_an_exercise_that_is_out_of_date(again, tmp_path):
    path = again / "exercises" / "02_linear_quantization.ipynb"
    path.write_text(path.read_text().replace("Four questions", "Five questions"))
    sentence = "^exercises/02_linear_quantization.ipynb is not what solutions/ generates: run qlab build first.$"
    refused(again, tmp_path / "a.zip", ValueError, sentence)


def test_an_exercise_that_is_missing_or_that_nobody_generated(again, tmp_path):
    path = again / "exercises" / "02_linear_quantization.ipynb"
    path.rename(again / "exercises" / "99_other.ipynb")
    refused(again, tmp_path / "a.zip", ValueError, "^exercises/02_linear_quantization.ipynb is not what")
    shutil.copy(again / "exercises" / "99_other.ipynb", path)
    refused(again, tmp_path / "a.zip", ValueError, "^exercises/99_other.ipynb is not what")


def test_a_hidden_line_in_a_file_beside_the_exercises(again, tmp_path):
    (again / "exercises" / "README.md").write_text("    position = (x - x_min) / scale\n")
    refused(again, tmp_path / "a.zip", ValueError, "^02_linear_quantization, q1: a hidden line is in exercises/README.md: 'position = ")


def test_the_seed_in_any_file(again, tmp_path, monkeypatch):
    (again / "notebooks" / "notes.md").write_text(f"QLAB_SEED={SEED}")
    refused(again, tmp_path / "a.zip", ValueError, "^the seed of the hidden tests is in notebooks/notes.md.$")
    monkeypatch.delenv("QLAB_SEED")
    kept = Path.home() / ".config" / "qlab" / "seed"
    kept.parent.mkdir(parents=True)
    kept.write_text(SEED + "\n")
    refused(again, tmp_path / "a.zip", ValueError, "^the seed of the hidden tests is in notebooks/notes.md.$")


def test_a_link_that_leads_nowhere(again, tmp_path):
    (again / "exercises" / "README.md").write_text("[notes](../notes.md)\n")
    refused(again, tmp_path / "a.zip", ValueError, r"^exercises/README.md links to ../notes.md, which is not there\.$")
    (again / "exercises" / "README.md").write_text("[top](../README.md#the-top)\n")
    refused(again, tmp_path / "a.zip", ValueError, r"^exercises/README.md links to ../README.md#the-top, which has no such heading\.$")


def test_a_students_clone_and_a_damaged_one(again, tmp_path):
    shutil.rmtree(again / "solutions")
    refused(again, tmp_path / "a.zip", FileNotFoundError, "a release is made from a teacher's clone.$")
    (again / "LICENSE").unlink()
    refused(again, tmp_path / "a.zip", FileNotFoundError, "there is no LICENSE in ")


def test_a_place_that_is_none(clone, tmp_path):
    refused(clone, tmp_path / "a.tar", ValueError, r"a\.tar must end with \.zip\.$")
    with pytest.raises(FileNotFoundError, match="there is no folder "):
        release(clone, tmp_path / "nowhere" / "a.zip")


def test_a_full_disk_keeps_the_zip_that_was_there(clone, tmp_path, monkeypatch):
    out = tmp_path / "a.zip"
    out.write_bytes(b"the last release")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(clone, out, OSError, "No space left on device")
    assert out.read_bytes() == b"the last release"
