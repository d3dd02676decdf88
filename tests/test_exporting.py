"""qlab export: a network of the zoo, or one's own, written for each runtime and run there."""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from qlab import cli
from qlab.deploy import files
from qlab.lab import data, exporting, zoo

IMAGES = data.load("test").images[:20]
SUFFIX = {"tflite": ".tflite", "c": ".c", "onnx": ".onnx", "pytorch": ".pt2"}


@pytest.mark.parametrize("runtime", exporting.RUNTIMES)
def test_a_network_leaves_and_gives_the_answers_it_gave(runtime, tmp_path, capsys):
    path = tmp_path / f"lenet{SUFFIX[runtime]}"
    assert cli.main(["export", "--to", runtime, "lenet300", str(path)]) == 0
    told = files.read_description(path)
    assert told.nbytes == path.stat().st_size and f"{told.nbytes:,} bytes" in capsys.readouterr().out
    assert json.loads(files.beside(path).read_text())["sha256"] == told.sha256
    module = exporting.importlib.import_module(f"qlab.deploy.{runtime}")
    answers = torch.as_tensor(module.run(path, IMAGES)).argmax(1)
    assert (answers == zoo.load("lenet300")(IMAGES).argmax(1)).sum() >= 19


@pytest.mark.parametrize("arguments, sentence", [
    (["--to", "c", "lenet", "x.c"], "qlab: there is no network lenet: choose among cnn, depthwise, resnet, lenet300, lenet5."),
    (["--to", "onnx", "lenet300", "no/such/place.onnx"], "cannot write no/such/place.onnx"),
])
def test_bad_arguments_are_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments]) == 1
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_unknown_runtime():
    with pytest.raises(ValueError, match="runtime is 'coreml', and must be one of tflite, c, onnx, pytorch."):
        exporting.export("cnn", "coreml", "x")


def test_the_ending_names_the_runtime_of_a_network_of_the_zoo_too(tmp_path, capsys):
    assert cli.main(["export", "lenet300", str(tmp_path / "net.c")]) == 0
    assert files.read_description(tmp_path / "net.c").format == "C99"
    assert cli.main(["export", "lenet300", str(tmp_path / "net.bin")]) == 1
    assert "must end in .tflite, .c, .onnx, .pt2" in capsys.readouterr().err


# One's own network

OWN = """
import torch
from torch import nn
from helper_of_mine import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, WIDTH, 3), nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def make_model():
    torch.manual_seed(0)
    return Net()

net = make_model()
seven = 7

def needs_one(width):
    return Net()

def breaks():
    raise RuntimeError("no\\nnetwork")

def leaves():
    raise SystemExit(3)
"""
X = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder, with a module of somebody's and images in every form."""
    (tmp_path / "mine_of_test.py").write_text(OWN)
    (tmp_path / "helper_of_mine.py").write_text("WIDTH = 4\n")
    np.save(tmp_path / "x.npy", X.numpy())
    np.savez(tmp_path / "x.npz", images=X.numpy(), labels=np.arange(12))
    torch.save(X, tmp_path / "x.pt")
    torch.save((X, torch.arange(12)), tmp_path / "pair.pt")
    for folder, parts in (("batches", X.split(5)), ("single", X)):
        (tmp_path / folder).mkdir()
        for i, part in enumerate(parts):
            np.save(tmp_path / folder / f"{i:02}.npy", part.numpy())
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mine_of_test", "helper_of_mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("model", ["mine_of_test:make_model", "mine_of_test:net", "mine_of_test.py:make_model", "mine_of_test:Net"])
def test_ones_own_network_leaves(own, model, capsys):
    assert cli.main(["export", "--to", "tflite", model, "--calibration", "x.npy", "out/net.tflite"]) == 0
    told, said = files.read_description("out/net.tflite"), capsys.readouterr().out
    assert f"{told.nbytes:,} bytes" in said and "run by LiteRT on 12 calibration images" in said and "out/net.tflite.json says" in said
    assert told.input.shape == (3, 6, 6) and len(said.splitlines()) <= 6


def test_a_file_elsewhere_brings_its_neighbours(own, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert cli.main(["export", f"{own}/mine_of_test.py:make_model", "--calibration", f"{own}/x.npy", "net.c"]) == 0


@pytest.mark.parametrize("images", ["x.npz", "x.pt", "pair.pt", "batches", "single"])
def test_images_from_files_are_the_same_images(own, images):
    for given, out in (("x.npy", "out/a.tflite"), (images, "out/b.tflite")):
        assert cli.main(["export", "mine_of_test:make_model", "--calibration", given, out]) == 0
    assert files.read_description("out/a.tflite").layers == files.read_description("out/b.tflite").layers


@pytest.mark.parametrize("name", ["w.pt", "nested.pt", "w.safetensors"])
def test_weights_are_loaded(own, name):
    from importlib import import_module

    sys.path.insert(0, str(own))
    torch.manual_seed(1)
    net = import_module("mine_of_test").Net()
    torch.save(net.state_dict(), "w.pt")
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, "nested.pt")
    safetensors.torch.save_file(net.state_dict(), "w.safetensors")
    assert cli.main(["export", "mine_of_test:make_model", "--weights", name, "--calibration", "x.npy", "out/net.onnx"]) == 0
    from qlab.deploy import onnx

    with torch.no_grad():
        assert (onnx.run("out/net.onnx", X) - net(X)).abs().max() < 0.05 * net(X).abs().max()


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("arguments, sentence", [
    (["mine_of_test:make_model", "out/n.c"], "calibration images are needed for a network of your own"),
    (["depthwise", "out/n.c", "--weights", "w.pt"], "depthwise is a network of the zoo, which brings its weights and its images"),
    (["mine_of_test:nothing", "--calibration", "x.npy", "out/n.c"], "there is no nothing in mine_of_test"),
    (["mine_of_test:seven", "--calibration", "x.npy", "out/n.c"], "model is a int, and must be a torch.nn.Module."),
    (["mine_of_test:needs_one", "--calibration", "x.npy", "out/n.c"], "cannot be called without arguments to make a network (TypeError: "),
    (["mine_of_test:breaks", "--calibration", "x.npy", "out/n.c"], "to make a network (RuntimeError: no)."),
    (["mine_of_test:leaves", "--calibration", "x.npy", "out/n.c"], "to make a network (SystemExit: 3)."),
    (["mine_of_test.py", "--calibration", "x.npy", "out/n.c"], "the network is 'mine_of_test.py', and must be MODULE:NAME or FILE.py:NAME"),
    (["cnn", "--calibration", "x.npy", "out/n.c"], "cnn is a network of the zoo, which brings its weights and its images: leave out"),
    (["no_such_module:net", "--calibration", "x.npy", "out/n.c"], "no_such_module cannot be imported (ModuleNotFoundError: "),
    (["none.py:net", "--calibration", "x.npy", "out/n.c"], "there is no file none.py."),
    (["broken.py:net", "--calibration", "x.npy", "out/n.c"], "broken.py cannot be imported (SyntaxError: "),
    (["mine_of_test:net", "--calibration", "none.npy", "out/n.c"], "there is no file none.npy."),
    (["mine_of_test:net", "--calibration", "x.jpg", "out/n.c"], "the calibration images are x.jpg, and must be .npy, .npz, .pt, or a"),
    (["mine_of_test:net", "--calibration", "empty", "out/n.c"], "there are no .npy files in empty."),
    (["mine_of_test:net", "--calibration", "objects.npy", "out/n.c"], "objects.npy is no array of numbers that NumPy can read"),
    (["mine_of_test:net", "--calibration", "torn.npz", "out/n.c"], "torn.npz is no array of numbers that NumPy can read"),
    (["mine_of_test:net", "--calibration", "two.npz", "out/n.c"], "two.npz holds a and b, and must hold one array of images"),
    (["mine_of_test:net", "--calibration", "evil.pt", "out/n.c"], "evil.pt holds more than tensors, and unpickling it would run code"),
    (["mine_of_test:net", "--calibration", "torn.pt", "out/n.c"], "torn.pt is damaged, or no file of torch.save"),
    (["mine_of_test:net", "--calibration", "bytes.npy", "out/n.c"], "the calibration images are torch.uint8"),
    (["mine_of_test:net", "--calibration", "x.npy", "out/n.bin"], "must end in .tflite, .c, .onnx, .pt2"),
    (["mine_of_test:net", "--calibration", "x.npy", "none/n.c"], "cannot write none/n.c: there is no folder none."),
    (["--to", "onnx", "mine_of_test:net", "--calibration", "x.npy", "out/n.c"], "a file for onnx ends in .onnx."),
    (["mine_of_test:net", "--weights", "x.pt", "--calibration", "x.npy", "out/n.c"], "x.pt holds no state_dict"),
    (["mine_of_test:net", "--weights", "none.safetensors", "--calibration", "x.npy", "out/n.c"], "there is no file none.safetensors."),
    (["mine_of_test:net", "--weights", "torn.safetensors", "--calibration", "x.npy", "out/n.c"], "torn.safetensors is damaged, or no safe"),
    (["mine_of_test:net", "--weights", "fewer.pt", "--calibration", "x.npy", "out/n.c"], "does not fit the network: it lacks fc.weight"),
    (["mine_of_test:net", "--weights", "wider.pt", "--calibration", "x.npy", "out/n.c"], "does not fit the network (size mismatch"),
])
def test_what_is_wrong_is_one_sentence_and_status_2(own, arguments, sentence, capsys):
    (own / "broken.py").write_text("net = = 1\n")
    (own / "empty").mkdir()
    np.save("objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez("two.npz", a=X.numpy(), b=X.numpy())
    np.save("bytes.npy", (X * 255).byte().numpy())
    torch.save(Evil(), "evil.pt")
    for name in ("torn.npz", "torn.pt", "torn.safetensors"):
        (own / name).write_bytes(b"PK\x03\x04 torn")
    conv = nn.Conv2d(3, 4, 3).state_dict(prefix="conv.")
    torch.save(conv, "fewer.pt")
    torch.save({"conv.weight": torch.zeros(9, 3, 3, 3), "conv.bias": torch.zeros(4), "fc.weight": torch.zeros(5, 4),
                "fc.bias": torch.zeros(5)}, "wider.pt")
    assert cli.main(["export", *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("qlab: ") and sentence in told.err and told.err.count("\n") == 1 and not told.out
    assert not list((own / "out").iterdir())


def test_help_says_how(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["export", "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and all(part in said for part in ("my_module:make_model", "--calibration", "--weights", ".pt2"))
