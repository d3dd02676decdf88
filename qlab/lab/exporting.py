"""A network of the zoo in somebody else's runtime: what `qlab export` does.

The float network is quantized with the calibration images of the training set. tflite and c get the integer-only network of
qlab.nets.integer, bit for bit; onnx and pytorch quantize by themselves, as qlab.deploy says.
"""

import importlib
import os

from qlab.deploy.files import Description
from qlab.lab import data, zoo
from qlab.nets import integer, ptq

INTEGER = ("tflite", "c")
RUNTIMES = (*INTEGER, "onnx", "pytorch")


def export(name: str, runtime: str, path: str | os.PathLike) -> Description:
    """Write the network of that name, in INT8, for the runtime, and its description beside it.

    Raises ValueError for an unknown runtime or network, ImportError where a library is missing, OSError where path cannot be written.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}, and must be one of {', '.join(RUNTIMES)}.")
    model, images = zoo.load(name), data.calibration(512).images
    module = importlib.import_module(f"qlab.deploy.{runtime}")
    if runtime in INTEGER:
        return module.export(integer.convert(ptq.quantize(model, images)), path, name=name)
    return module.export(model, path, images, name=name)
