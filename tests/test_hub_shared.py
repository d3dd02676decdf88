"""The images that all kernels of a class's server share: the same numbers as each would unpack, from pages that are mapped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlab.lab import data, shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("class") / "shared"
    assert [path.name for path in shared.write(place)] == ["train.safetensors", "test.safetensors", "sha256.json"]
    return place


@pytest.fixture
def fresh(monkeypatch):
    """No split is kept from before, nor left for the tests that follow."""
    data._load.cache_clear()
    yield monkeypatch
    data._load.cache_clear()


def test_a_class_gets_the_same_images(folder, fresh):
    fresh.delenv(shared.NAME, raising=False)
    own = data.load("test"), data.load("train"), data.calibration(300, seed=7)
    fresh.setenv(shared.NAME, str(folder))
    data._load.cache_clear()
    for one, other in zip(own, (data.load("test"), data.load("train"), data.calibration(300, seed=7))):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_they_are_mapped_and_one_kernels_writing_is_its_own(folder, fresh):
    fresh.setenv(shared.NAME, str(folder))
    before = (folder / "test.safetensors").read_bytes()
    images = data.load("test").images
    assert str(folder / "test.safetensors") in Path("/proc/self/maps").read_text()
    images += 1
    assert (folder / "test.safetensors").read_bytes() == before


def test_without_the_folder_nothing_changes(tmp_path, fresh):
    for value in ("", str(tmp_path), str(tmp_path / "none")):
        fresh.setenv(shared.NAME, value)
        assert not shared.there() and shared.read("test") is None


def test_a_damaged_file_is_refused(tmp_path, fresh):
    (tmp_path / "test.safetensors").write_bytes(b"short")
    (tmp_path / "sha256.json").write_text(json.dumps({"test": "0" * 64}))
    fresh.setenv(shared.NAME, str(tmp_path))
    with pytest.raises(ValueError, match=r"test.safetensors is damaged \(wrong sha256\): write it again, python -m qlab.lab.shared"):
        data.load("test")


@pytest.mark.skipif(os.name != "posix", reason="rights as Linux and macOS have them")
def test_students_may_read_what_a_strict_root_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda split: data.Split(torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)))
    before = os.umask(0o077)
    try:
        assert shared.main([str(tmp_path / "srv" / "shared")]) == 0
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "srv").rglob("*")]
    assert len(made) == 4 and {path.stat().st_mode & 0o777 for path in made} == {0o644, 0o755}


def test_the_command_names_what_it_wants(tmp_path):
    (tmp_path / "file").touch()
    for arguments, told in (((), "name one folder"), ((str(tmp_path / "file" / "x"),), "cannot make the folder")):
        run = subprocess.run([sys.executable, "-m", "qlab.lab.shared", *arguments], capture_output=True, text=True)
        assert run.returncode == 1 and told in run.stderr and len(run.stderr.splitlines()) == 1
