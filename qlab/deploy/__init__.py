"""Out of the notebook: a trained network in somebody else's runtime.

    tflite     full INT8 for LiteRT (once TensorFlow Lite) on a phone and tflite-micro on a microcontroller
    c          one C99 file without dependencies
    onnx       ONNX Runtime
    pytorch    PyTorch's own quantization

export(model, calibration, "net.tflite") does everything: it quantizes a network as it was trained, writes it for the runtime that the
file's ending names, runs the file on the images and tells how it did (qlab.deploy.door). Behind it each module has export(model, path),
which writes a file and what it holds, and run(path, x), which runs it there. tflite and c take what qlab.nets.integer.convert made; onnx
and pytorch take the float network and calibration images. Their libraries are optional, and each is imported by the function that needs
it: the extra deploy.
"""

import importlib

__all__ = ["c", "export", "onnx", "pytorch", "tflite"]


def __getattr__(name):
    if name == "export":
        return importlib.import_module("qlab.deploy.door").export
    if name in __all__:
        return importlib.import_module(f"qlab.deploy.{name}")
    raise AttributeError(f"module 'qlab.deploy' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
