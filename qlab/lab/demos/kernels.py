"""Notebook 12's kernels: the exact INT8 products that this machine has, raced, and two ways to compute with codes that are not exact.

    exact       every backend of `qlab.matmul.int8_matmul` that runs here
    not exact   uint8 by int8 in ONNX Runtime on a CPU without VNNI: vpmaddubsw adds pairs of products in 16 bits, which saturate
    not exact   Winograd's convolution in float32: its weights are divided by 6 and 24, and codes by these are no integers
"""

from functools import lru_cache

import numpy as np
import torch

from qlab.errors import not_installed
from qlab.lab import measure, widgets
from qlab.matmul import device, int8_matmul, reference

BACKENDS = {"torch._int_mm": "torch", "float32 in chunks": "float32", "ONNX Runtime": "onnxruntime"}  # name on the page: backend


def exact_kernels() -> dict[str, str]:
    """The exact INT8 products that can be raced here, name: backend of `int8_matmul`.

    ONNX Runtime is an extra, and torch's is left out where a limit set for oneDNN makes it inexact.

    >>> exact_kernels()["float32 in chunks"]
    'float32'
    """
    runs = {"torch": hasattr(torch, "_int_mm") and device.onednn_is_exact(), "onnxruntime": not device.why_not_onnxruntime()}
    return {name: backend for name, backend in BACKENDS.items() if runs.get(backend, True)}


def race(m: int, k: int, n: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of an (m, k) by (k, n) product on one thread, the fastest of some calls: float32, then each of `exact_kernels()`.

    Codes of the whole range, -128 included. Raises ValueError for a kernel whose result is not the reference's: that is no contestant.

    >>> list(race(8, 8, 8, repeats=1))[0]
    'float32'
    """
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))
    x, y, exact = a.float(), b.float(), reference.matmul(a, b)
    calls = {"float32": lambda: x @ y}
    with widgets.one_thread():
        for name, backend in exact_kernels().items():
            calls[name] = lambda backend=backend: int8_matmul(a, b, backend)
            if not torch.equal(calls[name](), exact):
                raise ValueError(f"{name} is not exact for {m} x {k} x {n}, and only exact products are raced.")
        return {name: min(measure.latency_ms(call, repeats=repeats).samples_ms) for name, call in calls.items()}


def matmul_integer(u: np.ndarray, s: np.ndarray) -> np.ndarray:
    """ONNX Runtime's own product of uint8 (M, K) by int8 (K, N), int32 (M, N): exact with VNNI, and on x86 without it only if no pair
    of products leaves 16 bits. Raises ImportError, with what to install, without onnx and onnxruntime.

    >>> matmul_integer(np.array([[1, 2]], np.uint8), np.array([[3], [-4]], np.int8))  # doctest: +SKIP
    array([[-5]], dtype=int32)
    """
    return _session().run(None, {"u": np.ascontiguousarray(u, np.uint8), "s": np.ascontiguousarray(s, np.int8)})[0]


@lru_cache
def _session():
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError:
        raise ImportError(not_installed("ONNX Runtime", extra="deploy")) from None
    values = [helper.make_tensor_value_info(name, kind, [None, None]) for name, kind in
              (("u", TensorProto.UINT8), ("s", TensorProto.INT8), ("c", TensorProto.INT32))]
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["u", "s"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def winograd(inputs: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Four outputs of a filter of three taps from six products, F(4, 3): float (n, 6) and (n, 3) to (n, 4).

        outputs = A ((B inputs) * (G taps)),     outputs[i] = inputs[i] taps[0] + inputs[i + 1] taps[1] + inputs[i + 2] taps[2]

    In real numbers the same; in floating point not exact, for G divides by 6 and 24. Source: Lavin and Gray 2016, section 4.3.

    >>> winograd(torch.arange(6.0, dtype=torch.float64)[None], torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)).round()
    tensor([[-2., -2., -2., -2.]], dtype=torch.float64)
    """
    B = inputs.new_tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                           [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])
    G = taps.new_tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
    A = inputs.new_tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
    return ((inputs @ B.T) * (taps @ G.T)) @ A.T
