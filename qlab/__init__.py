"""qlab: low-precision deep learning, one readable page an algorithm.

    qlab.quant     numbers to codes: linear, logarithmic and k-means quantization
    qlab.nets      networks made small
    qlab.matmul    INT8 arithmetic and the roofline
    qlab.llm       a language model made small
    qlab.search    bits and roundings chosen by the machine
    qlab.deploy    out of the notebook: TensorFlow Lite, C, ONNX Runtime, PyTorch
    qlab.lab       data, trained networks, measurements, plots and widgets
    qlab.grading   exercises and the grader

Beside them stands what shows the course to a class, on the web and in Chinese: qlab.lecture, qlab.site, qlab.translate.
`import qlab` imports none of them: each loads at its first use, so the command line answers at once.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["quant", "nets", "matmul", "llm", "search", "deploy", "lab", "grading"]


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"qlab.{name}")
    raise AttributeError(f"module 'qlab' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
