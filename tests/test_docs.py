"""What the pages in docs/, README, CONTRIBUTING and CHANGELOG name is there: paths, commands, modules; and one version everywhere."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_frame
import yaml

import qlab
from qlab import cli
from qlab.lab import data

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MADE = ("bundles/", "results/", "lectures/", "site/", "build/", "zh/", "export/", "frames/")  # a command makes it, and git ignores it
PATH = re.compile(r"(?:^|(?<=[\s`(\[]))((?:\.?\w[\w-]*/)+(?:[\w.-]*\w)?|[A-Z]+\.md|[\w-]+\.(?:toml|yml|cff))(?=[\s`)\],.:;#]|$)")
COMMANDS = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)).choices


def words(page):
    """Code in backticks and in fences, one piece a line."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [" ".join(piece.split()) for piece in inline] + [line for fence in fences for line in fence.splitlines()]


def paths(text):
    """Words with a slash whose first folder is one of the clone's, and files of its root; NN stands for any number."""
    here = {path.name for path in ROOT.iterdir()}
    return [name for name in PATH.findall(text) if name.split("/")[0] in here and not name.startswith(MADE) and "OWNER" not in name]


def is_there(name):
    return any(ROOT.glob(name.replace("NN", "[0-9][0-9]").replace("topic", "*").replace("NAME", "*").rstrip("/")))


def commands(pieces):
    """(subcommand, options) of each `qlab ...`, and the target of each `make ...`."""
    for piece in pieces:
        for found in re.finditer(r"(?<![\w./-])(?:\.venv/bin/)?qlab (\w+)((?: [^\s#]+)*)", piece):
            yield "qlab", found[1], re.findall(r"(?<=\s)--[\w-]+", found[2].partition("  ")[0])
        for found in re.finditer(r"^make ([a-z][\w-]*)", piece):
            yield "make", found[1], []


def options(command):
    """The options of a command, as its help has them."""
    if command in cli.PASSED_ON:
        return set(re.findall(r"--[\w-]+", subprocess.run([sys.executable, "-m", "qlab.cli", command, "--help"], cwd=ROOT,
                                                          capture_output=True, text=True, check=True).stdout))
    return {option for action in COMMANDS[command]._actions for option in action.option_strings}


@pytest.mark.parametrize("page", ["README.md", "exercises/challenge/README.md"])
def test_its_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    few = data.Split(*(part[:100] for part in data.load("test")))
    monkeypatch.setattr(data, "load", lambda split: few)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predict.py").write_text("def predict(pixels):\n    return [3] * len(pixels)\n")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec("\n".join(blocks).replace("control=2000", "control=50").replace("control=1000", "control=50"), {"__name__": "a_reader"})
    assert len(blocks) >= 3 and capsys.readouterr().out


def test_what_counts_as_a_path_and_as_a_command():
    assert paths("see `docs/hub/x.py`, (qlab/lab/), solutions/NN_topic.ipynb and pyproject.toml; bundles/a, and/or") == [
        "docs/hub/x.py", "qlab/lab/", "solutions/NN_topic.ipynb", "pyproject.toml"]
    assert is_there("solutions/NN_topic.ipynb") and is_there("qlab/lab/") and not is_there("docs/hub/x.py")
    assert list(commands(["qlab lecture 02 --short   a note", "make lab ARGS=02", ".venv/bin/qlab demo"])) == [
        ("qlab", "lecture", ["--short"]), ("make", "lab", []), ("qlab", "demo", [])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    named = [name for name in paths(page.read_text(encoding="utf-8")) if not is_there(name)]
    assert named == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_is_one_and_knows_its_options(page):
    targets = set(re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    for what, name, given in commands(words(page)):
        assert name in (COMMANDS if what == "qlab" else targets), f"{what} {name}"
        assert set(given) <= (options(name) if given and what == "qlab" else set()), f"{what} {name} {given}"


def test_every_module_that_a_page_runs_is_there():
    for page in PAGES:
        for name in re.findall(r"python3? -m (qlab[\w.]*\w)", page.read_text(encoding="utf-8")):
            path = ROOT / name.replace(".", "/").removesuffix("/NAME")
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{page.name}: python -m {name}"


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[0] == (qlab.__version__, citation["date-released"]) and citation["version"] == qlab.__version__
    assert newest == sorted(newest, key=lambda one: [int(part) for part in one[0].split(".")], reverse=True)


def test_the_citation_has_what_its_schema_asks_for():
    """Citation File Format 1.2.0: the required fields, and the kinds of those that are given."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset") and citation["license"] == "MIT" and "MIT" in (ROOT / "LICENSE").read_text()[:40]
    assert citation["authors"] and all(set(author) & {"name", "family-names", "given-names", "alias"} for author in citation["authors"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"]) and len(set(citation["keywords"])) == len(citation["keywords"])


def test_before_a_commit_the_quick_check_runs_as_make_runs_it():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = repo["hooks"]
    assert repo["repo"] == "local" and hook["language"] == "system" and hook["entry"] == "make check" and not hook["pass_filenames"]


def test_the_architecture_fits_a_screen_and_draws_the_folders_that_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = text.partition("## The folders")[2].partition("```\n")[2].partition("```")[0]
    allowed = {name: set(re.findall(r"\w+", right)) for name, right in re.findall(r"^ {7}(\w+)  .+   (\S.*)$", drawn, re.MULTILINE)}
    assert sorted(allowed) == sorted(path.parent.name for path in (ROOT / "qlab").glob("*/__init__.py"))
    none = {"nothing", "of", "these"}
    assert {name: right - none for name, right in allowed.items()} == {
        name: may - {name, "folders"} for name, may in test_frame.MAY_IMPORT.items()}
    assert len(text.splitlines()) <= 80 and max(map(len, text.splitlines())) <= 140
