"""LiteRT and tflite-micro in this process, from a file's bytes: what qlab.deploy.tflite calls, here or in a process of its own.

It needs NumPy and the runtime, and not PyTorch: a process that only runs a file starts in a few tenths of a second.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from qlab.errors import not_installed

NAMES = {"xnnpack": "LiteRT", "builtin": "LiteRT", "reference": "LiteRT", "micro": "tflite-micro"}


def load(path, content: bytes, kernels: str, threads: int, arena: int) -> Callable[[np.ndarray], np.ndarray]:
    """The bytes in a runtime, as a function from codes (n, ...) to codes (n, ...), n at least 1. path: for messages.

    arena: the bytes that tflite-micro may plan in. Raises ValueError for what the runtime refuses, ImportError where it is missing.
    """
    return _one_by_one(micro(path, content, arena)) if kernels == "micro" else _batches(litert(path, content, kernels, threads))


def _one_by_one(interpreter) -> Callable[[np.ndarray], np.ndarray]:
    def one(image: np.ndarray) -> np.ndarray:
        interpreter.set_input(image, 0)
        interpreter.invoke()
        return interpreter.get_output(0)

    return lambda codes: np.concatenate([one(codes[i:i + 1]) for i in range(len(codes))])


def _batches(interpreter) -> Callable[[np.ndarray], np.ndarray]:
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(codes: np.ndarray) -> np.ndarray:
        if interpreter.get_input_details()[0]["shape"][0] != len(codes):
            with stderr():
                interpreter.resize_tensor_input(source, codes.shape)
                interpreter.allocate_tensors()
        interpreter.set_tensor(source, codes)
        interpreter.invoke()
        return interpreter.get_tensor(sink)

    return infer


def litert(path, content: bytes, kernels: str, threads: int):
    """LiteRT's interpreter of the bytes, with its tensors allocated."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise ImportError(missing("ai-edge-litert")) from None
    resolver = {"xnnpack": OpResolverType.BUILTIN, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                "reference": OpResolverType.BUILTIN_REF}[kernels]
    with refusals(path, "LiteRT"):
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def micro(path, content: bytes, arena: int):
    """tflite-micro's interpreter of the bytes."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        raise ImportError(missing("tflite-micro")) from None
    with refusals(path, "tflite-micro"):
        return runtime.Interpreter.from_bytes(content, arena_size=arena)


def planned(path, content: bytes, arena: int) -> dict[str, int]:
    """The bytes that tflite-micro plans for the file: total, activations, persistent."""
    interpreter = micro(path, content, arena)
    with stderr() as said:
        interpreter.print_allocations()
        numbers = dict(re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", said()))
    return {"total": int(numbers["total"]), "activations": int(numbers["head"]), "persistent": int(numbers["tail"])}


def missing(library: str) -> str:
    only = " (which has a wheel for Linux on x86-64 alone)" if library == "tflite-micro" else ""
    return not_installed(library + only, extra="deploy")


@contextlib.contextmanager
def refusals(path, runtime: str) -> Iterator[None]:
    """What a runtime writes to stderr when it refuses a file, as the error's one sentence."""
    with stderr() as said:
        try:
            yield
        except (ValueError, RuntimeError) as error:
            lines = [line for line in f"{error}\n{said()}".splitlines() if line.strip() and not line.startswith("INFO")]
            raise ValueError(f"{runtime} refuses {path}: {lines[0] if lines else 'it gives no reason, as where memory runs out'}") from None


@contextlib.contextmanager
def stderr() -> Iterator[Callable[[], str]]:
    """Catch what C++ writes to the process's stderr; calling the value, inside, tells it."""
    with tempfile.TemporaryFile() as caught:
        def said() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
