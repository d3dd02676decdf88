"""The frame: the bootstrap of a fresh clone, the qlab command, the rules between the folders, and the lists of dependencies."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qlab
from qlab import bootstrap, cli, doctor

ROOT = Path(__file__).resolve().parents[1]


# The bootstrap


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A clone with nothing but what the bootstrap reads; commands are noted in .ran and played, not run; .codes holds pip's exit codes."""
    for name in ("pyproject.toml", "constraints.txt", "qlab/__init__.py", "qlab/bootstrap.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    here = SimpleNamespace(root=tmp_path, venv=tmp_path / ".venv", stamp=tmp_path / ".venv" / "qlab-installed", ran=[], codes=[])

    def call(command, quiet=False):
        if "-c" == command[1]:
            return 0 if os.path.exists(command[0]) else 127
        here.ran.append("venv" if "venv" in command else "pip" if "pip" in command else command[0])
        if here.ran[-1] == "venv":
            python = Path(bootstrap.venv_python())
            python.parent.mkdir(parents=True)
            python.touch()
        if here.ran[-1] == "pip":
            assert here.stamp.read_text().strip() == "unfinished"
            code = here.codes.pop(0) if here.codes else 0
            if isinstance(code, BaseException):
                raise code
            return code
        return 0

    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    monkeypatch.setattr(bootstrap, "call", call)
    return here


def test_first_run_installs_and_second_does_nothing(fresh, capsys):
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip"]
    capsys.readouterr()
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_list_is_installed_into_the_same_venv(fresh, name):
    bootstrap.main()
    with open(fresh.root / name, "a") as file:
        file.write("\n# changed\n")
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "pip"]


def test_a_moved_clone_is_installed_again(fresh, monkeypatch):
    bootstrap.main()
    moved = fresh.root.with_name("moved clone")
    fresh.root.rename(moved)
    monkeypatch.setattr(bootstrap, "ROOT", str(moved))
    assert not bootstrap.installed(bootstrap.wanted())


def test_an_interrupted_installation_is_made_anew(fresh, capsys):
    fresh.codes = [KeyboardInterrupt()]
    assert bootstrap.main() == 130 and "interrupted" in capsys.readouterr().err
    (fresh.venv / "half-written").touch()
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "venv", "pip"]
    assert not (fresh.venv / "half-written").exists()


def test_a_broken_venv_is_made_anew(fresh):
    bootstrap.main()
    (fresh.venv / "pyvenv.cfg").touch()
    Path(bootstrap.venv_python()).unlink()  # as after an upgrade of the Python it pointed to
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "venv", "pip"]


def test_a_venv_made_by_hand_is_kept(fresh):
    python = Path(bootstrap.venv_python())
    python.parent.mkdir(parents=True)
    python.touch()
    assert bootstrap.main() == 0 and fresh.ran == ["pip"]


def test_a_folder_that_is_no_venv_is_not_removed(fresh, capsys):
    fresh.venv.mkdir()
    (fresh.venv / "thesis.tex").touch()
    assert bootstrap.main() == 1 and (fresh.venv / "thesis.tex").exists()
    assert re.fullmatch(r"qlab: .*\.venv is not a virtual environment: rename or remove it\.\n", capsys.readouterr().err)


def test_pip_failing_is_one_sentence_and_loses_nothing(fresh, capsys):
    bootstrap.main()
    before = fresh.stamp.read_text()
    (fresh.root / "constraints.txt").write_text("# changed\n")
    fresh.codes = [1]
    assert bootstrap.main() == 1 and fresh.stamp.read_text() == before
    assert re.fullmatch(r"qlab: pip could not install \(exit code 1, .*\): check the network .*\n", capsys.readouterr().err)
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "pip", "pip"]


def test_a_full_disk_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**8))
    assert bootstrap.main() == 1 and fresh.ran == []
    assert capsys.readouterr().err == f"qlab: 0.5 GB are free on the disk of {fresh.root}, and the installation needs 3 GB.\n"


def test_a_read_only_folder_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, who may write everywhere, runs some tests
    assert bootstrap.main() == 1 and fresh.ran == []
    assert capsys.readouterr().err == f"qlab: the folder {fresh.root} is read-only: copy it to a place where you may write.\n"


def test_a_missing_venv_module_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert bootstrap.main() == 1 and fresh.ran == []
    sentence = r"qlab: Python 3\.\d+ has no venv module: install it \(Debian, Ubuntu: sudo apt install python3\.\d+-venv\)\.\n"
    assert re.fullmatch(sentence, capsys.readouterr().err)


def test_a_folder_that_is_no_clone_is_one_sentence(fresh, capsys):
    (fresh.root / "constraints.txt").unlink()
    assert bootstrap.main() == 1 and "cannot read constraints.txt" in capsys.readouterr().err


def test_an_old_python_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap, "newer_python", lambda: None)
    assert bootstrap.main() == 1 and fresh.ran == []
    expected = "qlab: Python 3.9.2 was found, and qlab needs 3.11 or newer: install one and name it: make PYTHON=python3.12 lab.\n"
    assert capsys.readouterr().err == expected


def test_an_old_python_hands_over_to_a_newer_one(fresh, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap, "newer_python", lambda: "/usr/bin/python3.12")
    assert bootstrap.main() == 0 and fresh.ran == ["/usr/bin/python3.12"]
    assert "Python 3.9.2 is too old: using /usr/bin/python3.12." in capsys.readouterr().out


def test_newer_python_on_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.newer_python() is None
    if os.name == "posix":
        broken, good = tmp_path / "python3.13", tmp_path / "python3.12"
        broken.write_text("#!/bin/sh\nexit 127\n")  # like the shim of a version that is not active
        broken.chmod(0o755)
        good.symlink_to(sys.executable)
        assert bootstrap.newer_python() == str(good)


@pytest.mark.parametrize("name", ["__init__.py", "bootstrap.py"])
def test_old_pythons_can_read_the_bootstrap(name):
    ast.parse((ROOT / "qlab" / name).read_text(), feature_version=(3, 6))


def test_real_old_pythons(fresh):
    pythons = [shutil.which(f"python3.{minor}") for minor in range(6, 11)]
    pythons += sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python"))
    pythons = [str(python) for python in pythons if python and subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0]
    if not pythons:
        pytest.skip("no Python older than 3.11 on this machine")
    for python in pythons:
        nothing_newer = {**os.environ, "PATH": ""}
        run = subprocess.run([python, "-m", "qlab.bootstrap"], cwd=fresh.root, capture_output=True, text=True, env=nothing_newer)
        assert run.returncode == 1 and run.stdout == ""
        assert re.fullmatch(r"qlab: Python 3\.\d+\.\d+ was found, and qlab needs 3\.11 or newer: .*\n", run.stderr)
        assert not fresh.venv.exists()


# The command


def command(*args, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "qlab.cli", *args], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for name in (cli.WELCOME, "02_linear_quantization.ipynb"):
        (tmp_path / "notebooks" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_import_and_help_load_nothing_heavy():
    code = "import qlab, qlab.cli, sys; print([m for m in ('torch', 'numpy', 'matplotlib', 'rich', 'jupyterlab') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_lists_every_command():
    text = command("--help").stdout
    makefile = (ROOT / "Makefile").read_text()
    for name in ("lab", "test", "bench", "zoo", "doctor", "notebooks", "lint"):
        assert re.search(rf"^ +{name}\b", text, re.M) and re.search(rf'^\t@echo "make {name} ', makefile, re.M)


def test_a_taken_port_is_one_sentence(course, taken):
    run = command("lab", "--no-browser", "--port", str(taken), cwd=course)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"qlab: port {taken} is taken by another program: choose another one, or none to get the first free one.\n"


def test_the_next_port_is_used_if_the_default_is_taken(taken, monkeypatch, capsys):
    monkeypatch.setattr(cli, "PORT", taken)
    port = cli.choose_port(None)
    assert port > taken and cli.why_taken(port) == ""
    assert capsys.readouterr().out == f"qlab: port {taken} is taken, using {port}.\n"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_one_sentence(course, port, capsys):
    assert cli.main(["lab", "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"qlab: port is {port}, and must be from 1 to 65535.\n"


def test_lab_starts_the_server_on_this_machine_only(course, monkeypatch):
    labapp = pytest.importorskip("jupyterlab.labapp")
    started = []
    monkeypatch.setattr(labapp.LabApp, "launch_instance", started.extend)
    monkeypatch.setattr(cli, "choose_port", lambda port: 9999)
    assert cli.main(["lab", "--no-browser", "02"]) == 0
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=9999", f"--ServerApp.root_dir={course}", "--ServerApp.open_browser=False",
            "--LabApp.default_url=/lab/tree/notebooks/02_linear_quantization.ipynb", "--LabApp.news_url=None"} <= set(started)


@pytest.mark.parametrize("name", ["02", "02_linear_quantization", "02_linear_quantization.ipynb", "notebooks/02_linear_quantization.ipynb"])
def test_a_notebook_is_found_by_its_number_name_or_path(course, name):
    assert cli.find_notebook(name, cli.course()) == course / "notebooks" / "02_linear_quantization.ipynb"


def test_an_unknown_notebook_is_one_sentence(course, capsys):
    for name in ("lab", "notebooks"):
        assert cli.main([name, "99"]) == 1
        assert capsys.readouterr().err == f"qlab: there is no notebook 99 in {course / 'notebooks'}.\n"


def test_a_notebook_outside_the_course_is_one_sentence(course, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("elsewhere") / "mine.ipynb"
    other.write_text("{}")
    assert cli.main(["lab", str(other)]) == 1
    assert capsys.readouterr().err == f"qlab: {other} is not a notebook (.ipynb) inside {course}.\n"


def test_no_notebooks_folder_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qlab, "__file__", str(tmp_path / "site" / "qlab" / "__init__.py"))
    assert cli.main(["lab"]) == 1
    assert capsys.readouterr().err.startswith("qlab: there is no notebooks folder in ")
    for name in ("test", "lint"):
        assert cli.main([name]) == 1
        assert capsys.readouterr().err == f"qlab: {tmp_path / 'site'} is not a clone of qlab: this command needs one.\n"


def test_an_unknown_network_is_one_sentence():
    run = command("zoo", "cnn", "vgg")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "qlab: there is no network vgg: choose among cnn, depthwise, resnet, lenet300, lenet5.\n"


def test_zoo_refuses_what_would_fail_after_the_training(tmp_path, monkeypatch, capsys):
    assert cli.main(["zoo", "--epochs", "0"]) == 1
    assert capsys.readouterr().err == "qlab: epochs is 0, and must be 1 or more.\n"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cli.main(["zoo", "cnn", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"qlab: cannot write to {tmp_path}: name another folder with --folder.\n"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.PASSED_ON, "bench", lambda args: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["bench"])


@pytest.mark.parametrize("error, line", [
    (ValueError("bits is 0,\nand must be 1 or more."), "qlab: bits is 0, and must be 1 or more."),
    (PermissionError(13, "Permission denied", "record.json"), "qlab: record.json: Permission denied"),
    (ImportError("no rich"), "qlab: no rich: run make setup (or pip install -e .) to install what is missing."),
])
def test_an_error_is_one_line_without_traceback(error, line, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.delenv("QLAB_TRACEBACK", raising=False)
    monkeypatch.setitem(cli.PASSED_ON, "bench", fail)
    assert cli.main(["bench"]) == 1 and capsys.readouterr() == ("", line + "\n")
    monkeypatch.setenv("QLAB_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["bench"])


def test_pytest_runs_everything_once_or_the_paths_given(tmp_path):
    for folder in ("qlab", "tests", "log"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tests" / "test_log.py").touch()
    everything = cli.pytest_command(["-k", "log"], tmp_path)  # a word for -k that is a folder's name too
    assert everything[-4:] == ["-k", "log", "qlab", "tests"] and "--nbval" in everything  # and no notebooks/, for there is none yet
    assert cli.pytest_command(["-x", "tests/test_log.py::test_a"], tmp_path)[-2:] == ["-x", "tests/test_log.py::test_a"]
    assert cli.pytest_command(["--pdb"], tmp_path)[cli.pytest_command(["--pdb"], tmp_path).index("-n") + 1] == "0"


def test_doctor_names_what_is_broken(monkeypatch, capsys):
    from qlab.lab import zoo

    def damaged(name):
        raise ValueError(f"{name} is not the checkpoint of its record (wrong sha256)")

    monkeypatch.setattr(zoo, "load", damaged)
    monkeypatch.setattr(doctor, "_abilities", lambda: {"cuda": None, "avx2": True})
    assert doctor.report() == 1
    out, err = capsys.readouterr()
    assert "wrong sha256" in out
    assert err.startswith("qlab: broken: network cnn, network depthwise, network resnet, network lenet300, network lenet5. ")
    monkeypatch.setattr(doctor, "_network", lambda name: "fine")
    assert doctor.report() == 0 and capsys.readouterr().err == ""


def test_doctor_attacks_the_sandbox_and_forgives_a_machine_without_one(monkeypatch):
    monkeypatch.setattr("qlab.grading.attack.main", lambda: 1)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.attack_the_sandbox() == 1  # a limit does not hold
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.attack_the_sandbox() == 0  # there is no sandbox, which attack.main has said


# The rules

MAY_IMPORT = {
    "quant": {"quant"},
    "nets": {"nets", "quant"},
    "matmul": {"matmul", "quant"},
    "deploy": {"deploy", "nets", "quant"},
    "lab": {"lab", "deploy", "matmul", "nets", "quant"},
    "grading": {"grading"},
}


def imports(path):
    """Absolute names of everything a file imports, wherever in the file: qlab.quant.linear, torch.nn, ..."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join([*package[:len(package) - node.level + 1], node.module or ""]).rstrip(".") if node.level else node.module
            yield from (f"{start}.{alias.name}" for alias in node.names)


def test_imports_finds_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "qlab" / "quant").mkdir(parents=True)
    path = tmp_path / "qlab" / "quant" / "page.py"
    lines = ("import qlab.nets", "from qlab import lab", "from . import log", "from .log import f", "from ..nets import g")
    path.write_text("\n".join([*lines, "def h():", "    import torch"]))
    assert list(imports(path)) == ["qlab.nets", "qlab.lab", "qlab.quant.log", "qlab.quant.log.f", "qlab.nets.g", "torch"]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    for path in sorted((ROOT / "qlab" / folder).rglob("*.py")):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "qlab" and path.name != "bench.py":  # a program that writes a record, which says what machine it was
                assert parts[1:] in ([], ["__version__"]) or parts[1] in MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_bootstrap_imports_the_standard_library_only():
    for name in ("__init__.py", "bootstrap.py", "cli.py"):
        top = [node for node in ast.parse((ROOT / "qlab" / name).read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in top}
        assert names - {"qlab"} <= set(sys.stdlib_module_names)


# The lists of dependencies

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def test_every_dependency_is_pinned_to_one_version_that_it_allows():
    pinned = {}
    for pin in PINS:
        (only,) = pin.specifier
        assert only.operator == "==" and "+" not in only.version and pin.url is None, f"{pin} is not name==version"
        assert pinned.setdefault(canonicalize_name(pin.name), only.version) == only.version
    assert pinned["torch"] == "2.13.0" and "qlab" not in pinned
    for requirement in CORE + EXTRAS:
        if requirement.name == "qlab":
            assert requirement.extras <= set(PROJECT["optional-dependencies"])
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, and constraints.txt pins {version}"


def test_every_import_is_declared():
    comes_as = {"pillow": "PIL", "scikit-learn": "sklearn", "ipython": "IPython", "pyyaml": "yaml"}
    core, extra = ({comes_as.get(r.name, r.name.replace("-", "_")) for r in group} for group in (CORE, EXTRAS))
    elsewhere = {"tensorflow", "keras"}  # make tflite-keras gives it an environment of its own
    for path in sorted((ROOT / "qlab").rglob("*.py")):
        for name in {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"qlab"}:
            assert name in core | extra | elsewhere, f"{path.relative_to(ROOT)} imports {name}: add it to pyproject.toml"


def test_conda_installs_the_same_lists():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[test]"] and "python=3.11" in dependencies and "pip" in dependencies


def test_the_package_holds_its_data():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["qlab.lab"]
    for folder in ("fashion-mnist", "checkpoints"):
        assert f"{folder}/*" in declared and any((ROOT / "qlab" / "lab" / folder).iterdir())
