"""The frame: the bootstrap of a fresh clone, the qlab command, the rules between the folders, and the lists of dependencies."""

import ast
import contextlib
import graphlib
import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging import markers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qlab
from qlab import bootstrap, bootstrap_machine, cli, doctor, folders, lab_command, pins
from qlab.grading.sandbox import bwrap

ROOT = Path(__file__).resolve().parents[1]


# The bootstrap


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A clone with nothing but what the bootstrap reads; commands are noted in .ran and played, not run; .codes holds pip's exit codes.

    .pip holds pip's arguments; .torch is the version in .venv; .offers, the addresses (None: pip's own settings) that have the CPU build.
    """
    for name in ("pyproject.toml", "constraints.txt", "qlab/__init__.py", "qlab/bootstrap.py", "qlab/bootstrap_machine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    here = SimpleNamespace(root=tmp_path, venv=tmp_path / ".venv", stamp=tmp_path / ".venv" / "qlab-installed", ran=[], codes=[],
                           pip=[], removed=[], torch="", offers=[None])

    def call(command, quiet=False):
        if "-c" == command[1]:
            return 0 if os.path.exists(command[0]) else 127
        here.ran.append("venv" if "venv" in command else "pip" if "pip" in command else command[0])
        if here.ran[-1] == "venv":
            python = Path(bootstrap.venv_python())
            python.parent.mkdir(parents=True)
            python.touch()
        if here.ran[-1] == "pip":
            (here.pip if command[3] == "install" else here.removed).append(command[3:-1])
            assert here.stamp.read_text().strip() == "unfinished"
            code = here.codes.pop(0) if here.codes else 0
            if isinstance(code, BaseException):
                raise code
            return code
        return 0

    def output(command):
        if "index" not in command:
            return here.torch
        address = command[command.index("--index-url") + 1] if "--index-url" in command else None
        return "Available versions: 2.14.1, " + ("2.13.0+cpu, " if address in here.offers else "") + "2.13.0, 2.12.1"

    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    for module in (bootstrap, bootstrap_machine):
        monkeypatch.setattr(module, "call", call)
        monkeypatch.setattr(module, "output", output)
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(bootstrap, "check_fits", lambda: None)  # whatever machine and Python run this test
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**11))
    here.torch = "2.13.0+cpu"  # so that pip runs once; the choice of a build has its own tests
    return here


def test_first_run_installs_and_second_does_nothing(fresh, capsys):
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip"]
    capsys.readouterr()
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip"]
    assert capsys.readouterr() == ("", "")


def test_a_fresh_installation_says_first_what_it_costs(fresh, capsys):
    assert bootstrap.main() == 0
    assert "qlab: installing into .venv: 0.4 GB to download, 1.4 GB on the disk, about 2 minutes at 50 Mbit/s.\n" in capsys.readouterr().out


def test_tests_add_to_the_course_and_the_course_takes_nothing_away(fresh):
    assert bootstrap.main() == 0 and ".[course]" in fresh.pip[-1] and "--upgrade" not in fresh.pip[-1]
    assert bootstrap.main(["test"]) == 0 and ".[test]" in fresh.pip[-1] and fresh.ran == ["venv", "pip", "pip"]
    assert bootstrap.main() == 0 and bootstrap.main(["test"]) == 0 and len(fresh.pip) == 2
    with open(fresh.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert bootstrap.main() == 0 and ".[test]" in fresh.pip[-1]  # as much as there was


def test_an_extra_is_kept_as_new_as_the_rest(fresh):
    assert bootstrap.main() == 0 and bootstrap.main(["course", "site"]) == 0 and ".[course,site]" in fresh.pip[-1]
    assert bootstrap.main(["site"]) == 0 and bootstrap.main() == 0 and len(fresh.pip) == 2
    with open(fresh.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert bootstrap.main() == 0 and ".[course,site]" in fresh.pip[-1] and len(fresh.pip) == 3
    assert bootstrap.main(["lecture"]) == 0 and ".[course,lecture,site]" in fresh.pip[-1]
    assert bootstrap.main(["test"]) == 0 and ".[test,lecture,site]" in fresh.pip[-1]
    assert bootstrap.main(["course", "site", "lecture"]) == 0 and len(fresh.pip) == 5


def test_an_extra_that_was_not_installed_is_tried_again(fresh):
    bootstrap.main()
    fresh.codes = [1]
    assert bootstrap.main(["course", "lecture"]) == 1 and bootstrap.main() == 0 and len(fresh.pip) == 2
    assert bootstrap.main(["course", "lecture"]) == 0 and ".[course,lecture]" in fresh.pip[-1]


def test_a_set_that_there_is_not_is_one_sentence(fresh, capsys):
    assert bootstrap.main(["lectures"]) == 1 and fresh.ran == []
    assert capsys.readouterr().err.startswith("qlab: there is no set lectures: choose among course, test, lecture, site, ")


def test_the_bootstrap_knows_every_extra_that_no_set_holds():
    extras, held = PROJECT["optional-dependencies"], {bootstrap.COURSE, bootstrap.TEST}
    for name in (bootstrap.TEST, bootstrap.COURSE):
        held |= {extra for text in extras[name] if Requirement(text).name == "qlab" for extra in Requirement(text).extras}
    assert set(bootstrap.EXTRAS) == extras.keys() - held


def test_make_installs_the_extra_that_a_command_needs():
    if not shutil.which("make"):
        pytest.skip("needs make")
    for target, extra in (("lecture", "lecture"), ("demo", "lecture"), ("site", "site")):
        said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert re.search(rf"-m qlab.bootstrap course {extra}$", said, re.MULTILINE)


@pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize("environment, code", [({"CI": "true"}, 1), ({}, 0)])
def test_where_the_extras_cannot_be_installed_a_ci_fails(tmp_path, environment, code):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    for name, line in (("python3", 'case "$*" in *bootstrap*) exit 1;; esac'), ("make", "echo make >> made")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("gcc", "bwrap", "arm-none-eabi-gcc", "qemu-system-arm", "chromium"):
        (tmp_path / name).symlink_to("make")  # so that nothing is missing
    run = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, env=environment | {
        "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert run.returncode == code and "the extras could not be installed" in run.stderr
    assert (tmp_path / "made").read_text() == "make\n" * (2 - code)


def test_what_commands_write_by_default_git_does_not_offer_and_lint_does_not_read():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a clone")
    for name in ("collected/submitted/ada/02/02.ipynb", "submitted/ada.ipynb", "results/02/a.json", "bundles/02.json.gz", "runs/a.json",
                 "site/index.html", "lectures/02/index.html", "zh/README.md", "students.zip"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0, name


def test_the_stamp_of_an_earlier_qlab_means_everything(fresh):
    bootstrap.main()
    fresh.stamp.write_text(bootstrap.wanted() + "\n")
    assert bootstrap.main(["test"]) == 0 and len(fresh.pip) == 1


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
    assert not bootstrap.installed(bootstrap.wanted(), bootstrap.COURSE)


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


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_venv_that_is_a_broken_link_is_one_sentence(fresh, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "pyvenv.cfg").touch()
    fresh.venv.symlink_to(elsewhere)
    assert bootstrap.main() == 1 and (elsewhere / "pyvenv.cfg").exists()
    assert re.fullmatch(r"qlab: .*\.venv is a link to what is no working environment: .*\n", capsys.readouterr().err)


def test_pip_failing_is_one_sentence_and_loses_nothing(fresh, capsys):
    bootstrap.main()
    before = fresh.stamp.read_text()
    with open(fresh.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    fresh.codes = [1]
    assert bootstrap.main() == 1 and fresh.stamp.read_text() == before
    sentence = "qlab: pip could not install (exit code 1): its own message is above, and the same command goes on from here.\n"
    assert capsys.readouterr().err == sentence
    assert bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "pip", "pip"]


def test_pip_failing_the_first_time_keeps_the_environment(fresh):
    fresh.codes = [1]
    assert bootstrap.main() == 1 and bootstrap.main() == 0 and fresh.ran == ["venv", "pip", "pip"]


def test_a_full_disk_is_one_sentence(fresh, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**8))
    assert bootstrap.main() == 1 and fresh.ran == []
    assert capsys.readouterr().err == f"qlab: 0.5 GB are free on the disk of {fresh.root}, and the installation needs 2.2 GB.\n"


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
    (fresh.root / "constraints.txt").write_text("# nothing\n")
    assert bootstrap.main() == 1 and "does not pin torch" in capsys.readouterr().err
    (fresh.root / "constraints.txt").unlink()
    assert bootstrap.main() == 1 and "cannot read constraints.txt" in capsys.readouterr().err


def choices(fresh, *arguments):
    """What pip is told about torch before the rest is installed."""
    before = len(fresh.pip)
    assert bootstrap.main(arguments) == 0
    assert fresh.pip[-1][-4:] == ["-e", ".[course]", "-c", "constraints.txt"]
    return [[word for word in line if word not in ("install", "--no-compile")] for line in fresh.pip[before:-1]]


CPU = "https://download.pytorch.org/whl/cpu"
PINS_TOO = ["-c", "constraints.txt"]


def test_without_a_driver_the_cpu_build_is_installed(fresh):
    fresh.torch, fresh.offers = "", [None]
    assert choices(fresh) == [["torch==2.13.0+cpu", *PINS_TOO]]  # pip's own settings have it


def test_the_cpu_build_comes_from_where_pytorch_keeps_it(fresh):
    fresh.torch, fresh.offers = "", [CPU]
    assert choices(fresh) == [["torch==2.13.0+cpu", "--no-deps", "--index-url", CPU, *PINS_TOO]]


def test_where_the_cpu_build_is_not_reached_the_plain_one_comes_and_its_price_is_said(fresh, capsys):
    fresh.torch, fresh.offers = "", []
    assert choices(fresh) == []
    out = capsys.readouterr().out
    assert f"torch's CPU build was not found at {CPU}: the plain one brings CUDA, 2.5 GB more to download.\n" in out
    assert "2.9 GB to download, 5.4 GB on the disk, about 11 minutes at 50 Mbit/s" in out


def test_the_space_for_cuda_is_looked_at_too(fresh, monkeypatch, capsys):
    fresh.torch, fresh.offers = "", []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**9))
    assert bootstrap.main() == 1 and fresh.pip == []
    assert capsys.readouterr().err == f"qlab: 5.0 GB are free on the disk of {fresh.root}, and the installation needs 11.2 GB.\n"


@pytest.mark.parametrize("offers, plan", [([], "2.9 GB"), ([None], "0.4 GB")])
def test_with_a_driver_the_plain_name_is_asked_for(fresh, monkeypatch, capsys, offers, plan):
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: True)
    fresh.torch, fresh.offers = "", offers
    assert choices(fresh) == [] and f"{plan} to download" in capsys.readouterr().out


def test_cpu_and_cuda_are_asked_for_by_name(fresh, monkeypatch, capsys):
    fresh.torch, fresh.offers = "", [CPU]
    assert choices(fresh, "--cuda") == [["torch===2.13.0", *PINS_TOO]]
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: True)
    fresh.torch = "2.13.0"
    assert choices(fresh) == [] and len(fresh.pip) == 2  # the course is there: nothing to do
    assert fresh.removed == []
    assert choices(fresh, "--cpu") == [["torch==2.13.0+cpu", "--no-deps", "--index-url", CPU, *PINS_TOO]]
    assert {"uninstall", "nvidia-cublas", "cuda-toolkit", "triton"} <= set(fresh.removed[0])


def test_a_build_that_is_there_is_kept(fresh, monkeypatch):
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: True)
    fresh.torch = "2.13.0+cpu"
    assert choices(fresh) == []
    fresh.torch, fresh.offers = "2.13.0+cu130", []
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: False)
    with open(fresh.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert choices(fresh) == [] and choices(fresh, "--cuda") == []


def test_cpu_that_cannot_be_had_is_one_sentence(fresh, capsys):
    fresh.torch, fresh.offers = "", []
    assert bootstrap.main(["--cpu"]) == 1 and fresh.pip == []
    assert capsys.readouterr().err.startswith(f"qlab: torch 2.13.0+cpu was not found at {CPU}: run the same command again when ")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_elsewhere_the_plain_name_is_the_cpu_build(fresh, monkeypatch, platform, capsys):
    monkeypatch.setattr(sys, "platform", platform)
    fresh.torch, fresh.offers = "", []
    assert choices(fresh) == [] and "0.4 GB" in capsys.readouterr().out
    assert bootstrap.main(["--cuda"]) == 1 and "--cuda is for Linux" in capsys.readouterr().err


def test_a_newer_torch_than_the_one_that_is_there_is_chosen_again(fresh):
    fresh.torch, fresh.offers = "2.12.1+cpu", [None]
    assert choices(fresh) == [["torch==2.13.0+cpu", *PINS_TOO]]


class Pretender(SimpleNamespace):
    """A module, real, but for the values that it is given."""

    def __getattr__(self, name):
        return getattr(self.real, name)


@pytest.fixture
def machine(fresh, monkeypatch):
    """Says what the bootstrap believes to stand on; check_fits is the real one again."""
    monkeypatch.undo()
    monkeypatch.setattr(bootstrap, "ROOT", str(fresh.root))
    monkeypatch.setattr(bootstrap, "call", lambda command: fresh.ran.append(command) or 0)
    monkeypatch.setattr(bootstrap_machine, "other_python", lambda: None)
    monkeypatch.setattr(bootstrap_machine, "output", lambda command: "")

    def pretend(system="linux", processor="x86_64", libc="glibc 2.36", macos="", python=(3, 12, 4), name="cpython", size=2**63 - 1,
                threads=0, build="linux-x86_64"):
        said = {  # to the two modules alone: what anything else imports now must not take this machine for another
            sys: {"platform": system, "version_info": python, "implementation": SimpleNamespace(name=name), "maxsize": size},
            platform: {"machine": lambda: processor, "mac_ver": lambda: (macos, ("", "", ""), processor)},
            os: {"confstr": lambda name: libc},
            sysconfig: {"get_config_var": lambda name: threads, "get_platform": lambda: build},
        }
        for module, (real, values) in itertools.product((bootstrap, bootstrap_machine), said.items()):
            if hasattr(module, real.__name__):
                monkeypatch.setattr(module, real.__name__, Pretender(real=real, **values))

    return pretend


MAC = {"system": "darwin", "processor": "arm64", "macos": "14.5"}


@pytest.mark.parametrize("kind, sentence", [
    ({"libc": None}, "this Linux stands on musl"),
    ({"libc": "glibc 2.17"}, "this Linux has glibc 2.17, and torch needs 2.28 or newer"),
    ({"processor": "riscv64"}, "torch has no wheel for a processor of the kind riscv64"),
    ({"system": "darwin", "macos": "14.5"}, "this is an Intel Mac"),
    ({**MAC, "macos": "13.6.1"}, "this is macOS 13.6.1, and torch has no wheel for it: macOS 14 or newer"),
    ({"system": "freebsd14"}, "torch has no wheel for freebsd14"),
    ({"python": (3, 9, 2)}, "Python 3.9.2 is too old; qlab needs Python 3.11 to 3.14, 64 bits: install one and name it: make PYTHON="),
    ({"python": (3, 15, 0)}, "Python 3.15.0 is too new: the libraries have no wheels for it; qlab needs Python 3.11 to 3.14"),
    ({"name": "pypy"}, "Python 3.12.4 is pypy"),
    ({"size": 2**31 - 1}, "Python 3.12.4 is a 32-bit program"),
    ({"threads": 1}, "Python 3.12.4 is a free-threaded build"),
    ({"system": "win32", "build": "win-arm64"}, "Python 3.12.4 is for Windows on ARM"),
    ({"system": "win32", "build": "win32", "size": 2**31 - 1}, "Python 3.12.4 is a 32-bit program"),
])
def test_what_cannot_work_is_one_sentence_before_anything_is_made(machine, fresh, kind, sentence, capsys):
    machine(**kind)
    assert bootstrap.main() == 1 and not fresh.venv.exists()
    err = capsys.readouterr().err
    assert err.startswith(f"qlab: {sentence}") and err.count("\n") == 1
    assert bootstrap.main(["--fits"]) == 1


def test_an_intel_python_on_apple_silicon_is_told_apart(machine, monkeypatch, capsys):
    machine(system="darwin", macos="14.5")
    monkeypatch.setattr(bootstrap_machine, "output", lambda command: "1\n")  # sysctl -n hw.optional.arm64
    assert bootstrap.main() == 1
    assert capsys.readouterr().err.startswith("qlab: Python 3.12.4 is for Intel Macs")


@pytest.mark.parametrize("kind", [{}, {"processor": "aarch64"}, {"libc": "glibc 2.28"}, MAC, {"system": "win32", "build": "win-amd64"},
                                  {"python": (3, 11, 0)}, {"python": (3, 14, 9)}])
def test_what_can_work_is_not_refused(machine, kind):
    machine(**kind)
    assert bootstrap_machine.check_fits() is None and bootstrap.main(["--fits"]) == 0


@pytest.mark.parametrize("version, word", [((3, 9, 2), "old"), ((3, 15, 0), "new")])
def test_a_python_that_does_not_fit_hands_over_to_one_that_does(machine, fresh, monkeypatch, capsys, version, word):
    machine(python=version)
    monkeypatch.setattr(bootstrap_machine, "other_python", lambda: ["py", "-3.12"])
    assert bootstrap.main(["test", "--cpu"]) == 0 and fresh.ran == [["py", "-3.12", "-m", "qlab.bootstrap", "test", "--cpu"]]
    assert re.match(rf"qlab: Python 3\.\d+\.\d is too {word}.*; using py -3.12\.\n", capsys.readouterr().out)


def test_another_python_on_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap_machine.other_python() is None
    if os.name == "posix":
        broken, good = tmp_path / "python3.13", tmp_path / "python3.12"
        broken.write_text("#!/bin/sh\nexit 127\n")  # like the shim of a version that is not active
        broken.chmod(0o755)
        good.symlink_to(sys.executable)
        assert bootstrap_machine.other_python() == [str(good)]


def test_the_launcher_of_windows_is_asked_for_each_version(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(shutil, "which", lambda name: r"C:\Windows\py.exe" if name == "py" else None)
    monkeypatch.setattr(bootstrap_machine, "call", lambda command, quiet: 0 if command[1] == "-3.12" else 103)
    assert bootstrap_machine.other_python() == [r"C:\Windows\py.exe", "-3.12"]


def test_the_bootstrap_knows_the_bounds_of_the_project():
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    older, newer = (bootstrap_machine.OLDEST[1] - 1, bootstrap_machine.NEWEST[1] + 1)
    assert [f"3.{minor}.0" in allowed for minor in range(older, newer + 1)] == [False, True, True, True, True, False]
    assert set(bootstrap_machine.VERSIONS) == {f"3.{minor}" for minor in range(older + 1, newer)}


@pytest.mark.parametrize("name", ["__init__.py", "bootstrap.py", "bootstrap_machine.py"])
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
        assert re.fullmatch(r"qlab: Python 3\.\d+\.\d+ is too old; qlab needs Python 3\.11 to 3\.14, 64 bits: .*\n", run.stderr)
        assert not fresh.venv.exists()


# The command


def command(*args, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "qlab.cli", *args], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for name in (folders.WELCOME, "02_linear_quantization.ipynb"):
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


def test_no_page_but_its_own_loads_triton():
    """Whoever loads it first decides whether it interprets; where there is no GPU, qlab.matmul.triton must be asked before."""
    code = """
import importlib, pkgutil, sys, qlab
for page in sorted(page.name for page in pkgutil.walk_packages(qlab.__path__, "qlab.")):
    if not page.endswith(("triton", "__main__", "zygote")):
        importlib.import_module(page)
        assert "triton" not in sys.modules, page
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_help_lists_every_command():
    text = command("--help").stdout
    makefile = (ROOT / "Makefile").read_text()
    for name in ("lab", "test", "browser", "bench", "zoo", "doctor", "notebooks", "lint"):
        assert re.search(rf"^ +{name}\b", text, re.M) and re.search(rf'^\t@echo "make {name} ', makefile, re.M)


def test_a_terminal_that_cannot_show_it_stops_nothing():
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
    code = ("from qlab import bootstrap_machine, cli; bootstrap_machine.say('in 课程'); cli.PASSED_ON['bench'] = print; "
            "cli.main(['bench', '课'])")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=plain)
    assert run.stdout == "qlab: in \\u8bfe\\u7a0b\n['\\u8bfe']\n", run.stderr


def test_a_taken_port_is_one_sentence(course, taken):
    run = command("lab", "--no-browser", "--port", str(taken), cwd=course)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"qlab: port {taken} is taken by another program: choose another one, or none to get the first free one.\n"


def test_the_next_port_is_used_if_the_default_is_taken(taken, monkeypatch, capsys):
    monkeypatch.setattr(lab_command, "PORT", taken)
    port = lab_command.choose_port(None)
    assert port > taken and lab_command.why_taken(port) == ""
    assert capsys.readouterr().out == f"qlab: port {taken} is taken, using {port}.\n"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_one_sentence(course, port, capsys):
    assert cli.main(["lab", "--port", str(port)]) == 1
    assert capsys.readouterr().err == f"qlab: port is {port}, and must be from 1 to 65535.\n"


def test_lab_starts_the_server_on_this_machine_only(course, monkeypatch):
    labapp = pytest.importorskip("jupyterlab.labapp")
    started = []
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    monkeypatch.setattr(labapp.LabApp, "launch_instance", started.extend)
    monkeypatch.setattr(lab_command, "choose_port", lambda port: 9999)
    assert cli.main(["lab", "--no-browser", "02"]) == 0
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=9999", f"--ServerApp.root_dir={course}", "--ServerApp.open_browser=False",
            "--LabApp.default_url=/lab/tree/notebooks/02_linear_quantization.ipynb", "--LabApp.news_url=None",
            "--Application.log_level=WARN"} <= set(started)  # warnings are shown: there is nothing to hide
    assert str(ROOT / "qlab" / "lab" / "jupyter" / "etc") in os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)


@pytest.mark.parametrize("name", ["02", "02_linear_quantization", "02_linear_quantization.ipynb", "notebooks/02_linear_quantization.ipynb"])
def test_a_notebook_is_found_by_its_number_name_or_path(course, name):
    assert folders.find_notebook(name, folders.course()) == course / "notebooks" / "02_linear_quantization.ipynb"


def test_an_unknown_notebook_is_one_sentence(course, capsys):
    for name in ("lab", "notebooks"):
        assert cli.main([name, "99"]) == 1
        assert capsys.readouterr().err.startswith(f"qlab: there is no notebook 99 in {course / 'notebooks'}: name one of 00, ")
    assert cli.main(["lab", "linear"]) == 1
    assert capsys.readouterr().err.endswith(": name one of 02_linear_quantization.\n")


@pytest.mark.parametrize("name", ["/nowhere/x.ipynb", "*", "**", "[0"])
def test_a_name_is_a_name_and_no_pattern(course, name, capsys):
    assert cli.main(["notebooks", name]) == 1
    assert capsys.readouterr().err.startswith(f"qlab: there is no notebook {name} in {course / 'notebooks'}: name one of 00, ")


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
    assert run.stderr == "qlab: there is no network vgg: choose among cnn, depthwise, resnet, lenet300, lenet5 and gpt.\n"


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
    (ImportError("no rich", name="rich"), "qlab: no rich: run make setup (or pip install -e .) to install what is missing."),
    (ImportError("sphinx is missing."), "qlab: sphinx is missing."),
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


def test_doctor_reads_the_novels_and_the_language_model(monkeypatch, capsys):
    from qlab.lab import language

    assert [works for thing, _, works in doctor.health() if thing in ("Austen's novels", "network gpt")] == [True, True]

    def damaged():
        raise ValueError("gpt is not the checkpoint of its record (wrong sha256)")

    monkeypatch.setattr(language, "load", damaged)
    assert ("network gpt", "gpt is not the checkpoint of its record (wrong sha256)", False) in doctor.health()


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
    monkeypatch.setattr("qlab.grading.sandbox.attack.main", lambda: 1)
    monkeypatch.setattr("qlab.grading.sandbox.bwrap.find_bwrap", lambda: "/usr/bin/bwrap")
    assert doctor.attack_the_sandbox() == 1  # a limit does not hold

    def none():
        raise RuntimeError("the sandbox needs bubblewrap")

    monkeypatch.setattr("qlab.grading.sandbox.bwrap.find_bwrap", none)
    assert doctor.attack_the_sandbox() == 0  # there is no sandbox, which attack.main has said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")
def test_the_system_s_bubblewrap_comes_before_the_packaged_one(monkeypatch, tmp_path):
    packaged = tmp_path / "bwrap"
    packaged.touch(0o755)
    monkeypatch.setattr(bwrap, "PACKAGED", packaged)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: "/usr/bin/bwrap")
    assert bwrap.find_bwrap() == "/usr/bin/bwrap"
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert bwrap.find_bwrap() == str(packaged)
    packaged.unlink()
    with pytest.raises(bwrap.SandboxUnavailable, match="apt install bubblewrap"):
        bwrap.find_bwrap()


# The rules

MAY_IMPORT = {
    "quant": {"quant"},
    "nets": {"nets", "quant"},
    "matmul": {"matmul", "quant"},
    "llm": {"llm", "matmul", "nets", "quant"},
    "search": {"search", "llm", "matmul", "nets", "quant"},
    "deploy": {"deploy", "nets", "quant"},
    "lab": {"lab", "deploy", "llm", "matmul", "nets", "quant", "search"},
    "grading": {"grading"},
    "translate": {"translate", "lab"},
    "lecture": {"lecture", "lab"},
    "site": {"site", "folders", "lab", "translate"},
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
            if parts[0] == "qlab" and path != ROOT / "qlab" / "grading" / "bench.py":  # a program: its record says what machine it was
                allowed = parts[1:] in ([], ["__version__"], ["saving"], ["errors", "first_line"], ["errors", "not_installed"],
                                         ["translate", "tr"], ["translate", "columns"]) or parts[1] in MAY_IMPORT[folder]
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


# The rooms of qlab.grading and what stands between them, in their order: each may import only what has a line above its own, or itself.
IN_GRADING = {
    "values": set(),
    "compare": {"values"},
    "show": {"values"},
    "links": set(),
    "hints": set(),
    "author.cases": set(),  # the words of a notebook, which a student's check reads
    "check": {"author.cases", "compare", "show", "values"},
    "sandbox": {"values"},
    "handed_in": set(),
    "mark": {"compare", "handed_in", "sandbox", "values"},
    "results": {"handed_in"},
    "report": {"handed_in", "results", "values"},
    "challenge": {"handed_in", "report", "sandbox", "values"},
    "author": {"author.cases", "challenge", "check", "hints", "links", "mark", "results", "sandbox", "values"},
    "batch": {"handed_in", "mark", "results", "sandbox"},
    "cluster": {"batch", "handed_in"},
    "collect": {"handed_in", "results"},
    "grade": {"batch", "challenge", "cluster", "handed_in", "hints", "mark", "report", "results"},
    "gradescope": {"author", "batch", "grade", "handed_in", "mark", "report", "results", "sandbox", "values"},
}


def in_grading(name):
    """The line of IN_GRADING that a module below qlab.grading belongs to: "author.cases" and "sandbox.drive.drive" to two of them."""
    return next((room for room in ("author.cases", name.split(".")[0]) if f"{name}.".startswith(f"{room}.")), "")


def test_the_lines_of_grading_go_one_way():
    above = set()
    for room, others in IN_GRADING.items():
        assert others <= above, f"{room} may import {others - above}, which have no line above it"
        above.add(room)


def test_in_grading_imports_go_one_way():
    folder, met = ROOT / "qlab" / "grading", set()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).with_suffix("").as_posix().replace("/", ".").removesuffix("__init__").rstrip(".")
        if name in ("", "bench", "bench_sets"):  # the package hands out the words of a notebook, and its benchmarks run everything
            continue
        room = in_grading(name)
        assert room in IN_GRADING, f"{path.relative_to(ROOT)} has no line in IN_GRADING"
        met.add(room)
        for other in imports(path):
            if other.startswith("qlab.grading."):
                other = in_grading(other.removeprefix("qlab.grading."))
                assert other == room or other in IN_GRADING[room], f"{path.relative_to(ROOT)} imports {other}"
    assert met == IN_GRADING.keys()


def test_a_room_of_grading_imports_nothing_by_itself():
    """So that `from qlab.grading import check` stays light, and a sandbox holds no more of the grader than it needs."""
    for path in (ROOT / "qlab" / "grading").glob("*/__init__.py"):
        assert not list(imports(path)), f"{path.relative_to(ROOT)} imports"


def test_no_page_of_matmul_imports_one_that_imports_it():
    folder = ROOT / "qlab" / "matmul"
    pages = {path.stem: {name.split(".")[2] for name in imports(path) if name.startswith("qlab.matmul.")} for path in folder.glob("*.py")}
    order = list(graphlib.TopologicalSorter(pages).static_order())  # raises CycleError, with the circle; imports in functions count too
    assert order.index("device") < order.index("triton") < order.index("product") < order.index("layers")


def test_bootstrap_and_command_import_the_standard_library_only():
    for name in ("__init__.py", "auto_command.py", "bootstrap.py", "bootstrap_machine.py", "cli.py", "errors.py", "export_command.py",
                 "folders.py", "lab_command.py"):
        top = [node for node in ast.parse((ROOT / "qlab" / name).read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in top}
        assert names - {"qlab"} <= set(sys.stdlib_module_names)


# The lists of dependencies


def test_what_is_missing_is_installed_by_a_command_that_every_shell_reads_and_an_extra_that_there_is():
    asked = []
    for path in sorted((ROOT / "qlab").rglob("*.py")):
        source = path.read_text()
        assert not re.search(r"pip install [\"']?qlab\[", source), f"{path.relative_to(ROOT)}: qlab is in no package index"
        asked += re.findall(r'not_installed\(.*extra=[\\]?["\'](\w+)', source)
    assert set(asked) <= set(PROJECT["optional-dependencies"]) and len(asked) >= 10


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts]
PINS = pins.pins(ROOT / "constraints.txt")


def places():
    """What markers see on every Python and platform that the course promises."""
    for python in pins.PYTHONS:
        for system, os_name, processor in (("linux", "posix", "x86_64"), ("linux", "posix", "aarch64"), ("win32", "nt", "AMD64"),
                                           ("darwin", "posix", "arm64")):
            yield {"python_version": python.rpartition(".")[0], "python_full_version": python, "sys_platform": system, "os_name": os_name,
                   "platform_machine": processor, "implementation_name": "cpython", "platform_python_implementation": "CPython",
                   "platform_system": {"win32": "Windows", "darwin": "Darwin"}.get(system, "Linux"), "extra": ""}


def test_every_dependency_is_pinned_to_one_version_that_it_allows():
    for pin in PINS:
        (only,) = pin.specifier
        assert only.operator == "==" and "+" not in only.version and pin.url is None, f"{pin} is not name==version"
    for place in places():
        pinned = {}
        for pin in PINS:
            if pin.marker is None or pin.marker.evaluate(place):
                (only,) = pin.specifier
                assert pinned.setdefault(canonicalize_name(pin.name), only.version) == only.version, f"{pin.name} has two pins: {place}"
        assert pinned["torch"] == "2.13.0" and "qlab" not in pinned
        for requirement in CORE + EXTRAS:
            if requirement.name == "qlab":
                assert requirement.extras <= set(PROJECT["optional-dependencies"])
            elif requirement.marker is None or requirement.marker.evaluate(place):
                version = pinned.get(canonicalize_name(requirement.name))
                assert version and requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}, {place}"


def test_what_is_installed_here_is_the_tested_set():
    place = {**markers.default_environment(), "extra": ""}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(place):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an extra that nobody asked for
                version = importlib.metadata.version(pin.name)
                assert pin.specifier.contains(version, prereleases=True) or pin.name == "setuptools", f"{pin}, and {version} is installed"


def test_pins_are_tried_on_the_oldest_and_the_newest_python():
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert all(python in allowed for python in pins.PYTHONS) and pins.PYTHONS[0] == "3.11.0"
    assert {tuple(map(int, python.split(".")[:2])) for python in pins.PYTHONS} == {(3, minor) for minor in range(11, 15)}


def test_pins_without_uv_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert cli.main(["pins"]) == 1
    assert capsys.readouterr().err == "qlab: uv is not installed: .venv/bin/pip install -e '.[pins]' -c constraints.txt brings it.\n"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for uv is a shell script")
@pytest.mark.parametrize("script, code, line", [
    ("echo torch==2.13.0", 0, "resolves"),
    ("echo torch==2.13.0; echo left-pad==1.3", 1, "not pinned: left-pad==1.3"),
    ("echo soupsieve needs 3.11.5 >&2; exit 1", 1, "soupsieve needs 3.11.5"),
])
def test_pins_says_where_they_do_not_resolve(tmp_path, monkeypatch, capsys, script, code, line):
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\n{script}\n")
    uv.chmod(0o755)
    monkeypatch.setattr(pins, "find_uv", lambda: str(uv))
    assert cli.main(["pins"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(pins.PYTHONS) * len(pins.PLATFORMS) and all(text.endswith(line) for text in lines)


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
    assert pip == [f"--extra-index-url {bootstrap.CPU_BUILDS}", "-c constraints.txt", f"-e .[{bootstrap.COURSE}]"]
    assert "python=3.11" in dependencies and "pip" in dependencies


def test_the_package_holds_its_data():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["qlab.lab"]
    for folder in ("fashion-mnist", "checkpoints"):
        assert f"{folder}/*" in declared and any((ROOT / "qlab" / "lab" / folder).iterdir())
