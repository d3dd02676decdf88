"""qlab export: a network of the zoo, written for each runtime and run there."""

import json

import pytest
import torch

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
