"""What the parts of the experiment behind notebook 14 share: the runtimes' names, the networks, and their files.

The files lie in a temporary folder that is gone when Python ends; each is written once.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from qlab.deploy import c, onnx, pytorch, tflite
from qlab.lab import data, zoo
from qlab.nets import integer, ptq

NETS, CALIBRATION_IMAGES = ("cnn", "depthwise"), 512
OURS, MICRO, HOST, CORTEX = "qlab, integer-only", "tflite-micro", "C, this CPU", "C, Cortex-M4"
LITERT = {"LiteRT, reference": "reference", "LiteRT, built-in": "builtin", "LiteRT, XNNPACK": "xnnpack"}
ONNX = {"ONNX Runtime, float32": "float", "ONNX Runtime, static": "static", "ONNX Runtime, static, 8-bit weights": "static-8bit",
        "ONNX Runtime, dynamic": "dynamic"}
TORCH = {  # name: (kind of file, through torch.compile)
    "PyTorch, float32": ("float", False), "PyTorch, float32, compiled": ("float", True),
    "PyTorch, quantize_dynamic": ("document", False), "PyTorch, torchao dynamic": ("dynamic", False),
    "PyTorch, pt2e": ("static", False), "PyTorch, pt2e, compiled": ("static", True),
    "PyTorch, pt2e, 8 bits, compiled": ("static-8bit", True),
}
ONE_BY_ONE = (MICRO, HOST)                                                                  # what takes no batch, and has one thread


@cache
def network(net: str) -> integer.IntegerNetwork:
    return integer.convert(ptq.quantize(zoo.load(net), data.calibration(CALIBRATION_IMAGES).images))


@cache
def encoded(net: str) -> torch.Tensor:
    """The test images' codes, int8 (10000, 1, 28, 28)."""
    return network(net).encode(data.load("test").images)


@cache
def ours(net: str) -> torch.Tensor:
    """The logits' codes of all test images, by qlab's integer-only network."""
    return in_batches(network(net).run, encoded(net))


def in_batches(runtime: Callable, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([runtime(batch) for batch in x.split(100)])


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def folder() -> Path:
    return Path(_folder().name)


@cache
def place(net: str, kind: str) -> Path:
    """The network's file of this kind, written once: tflite, c, or onnx or pytorch with a kind of their own, as "onnx float"."""
    to, _, own = kind.partition(" ")
    path = folder() / f"{net}{own.replace('-', '_')}.{'pt' if to == 'pytorch' else to}"
    if to in ("tflite", "c"):
        {"tflite": tflite, "c": c}[to].export(network(net), path)
    else:
        {"onnx": onnx, "pytorch": pytorch}[to].export(zoo.load(net), path, data.calibration(CALIBRATION_IMAGES).images, own)
    return path


@cache
def library(net: str) -> Path:
    """The C file as a shared library for this machine, without symbols that nobody needs."""
    path = folder() / f"{net}.so"
    c.compile_c([place(net, "c")], path, "-O3", "-shared", "-fPIC", "-s")
    return path
