"""ONNX Runtime's MatMulInteger (ONNX operators, MatMulInteger-10): exact INT8 products, faster than float32 on a CPU without VNNI too.

AVX2 has two ways to add products of 8-bit numbers. vpmaddubsw multiplies 32 pairs at once, unsigned by signed, and adds neighbours in 16
bits: 255 * 127 + 255 * 127 = 64,770 does not fit into int16 and becomes 32,767, without a word. vpmaddwd multiplies 16 pairs of 16-bit
numbers and adds neighbours in 32 bits: exact, at half the rate. ONNX Runtime takes the first for uint8 by int8 and the second for uint8
by uint8, so both operands are shifted by 128, which flips one bit, and named with the zero-point 128:

    sum a b  =  sum (a + 128)(b + 128)  -  128 sum (a + 128)  -  128 sum (b + 128)  +  128 * 128 K          (Jacob et al. 2018, equation 7)

It takes the sums of rows and columns while it packs the operands for the product. K goes in parts of at most 2**14: the sum of products is
then at most 255 * 255 * 2**14 and each correction at most 128 * 255 * 2**14 in size: within int32, whatever is added first.
"""

from functools import lru_cache

import numpy as np
import torch

from qlab.matmul import onnx_file
from qlab.matmul.device import why_not_onnxruntime

PART = 2**14            # of K: (255 * 255 + 128 * 128) * 2**14 < 2**31
CACHED = 2**21          # elements of c in one product: it goes over them once for every hundred or two of K: keep them in the cache
MODEL_BYTES = 2**30     # of a packed operand in one model: protocol buffers end at 2**31


def matmul(a: torch.Tensor, b: torch.Tensor, packed: tuple = ()) -> torch.Tensor:
    """int8 (M, K) by (K, N) to int32 (M, N) on the CPU, exact; any shape and strides, with as many threads as torch has.

    packed: `pack(b)`, if there will be several products with this b. Raises RuntimeError where ONNX Runtime is not there. The arguments
    are checked by `int8_matmul`.

    >>> a = torch.tensor([[100, 100]], dtype=torch.int8)
    >>> matmul(a, a.T), matmul(a, a.T, pack(a.T))
    (tensor([[20000]], dtype=torch.int32), tensor([[20000]], dtype=torch.int32))
    """
    if why := why_not_onnxruntime():
        raise RuntimeError(f"{why}: pip install onnxruntime, or use another backend.")
    (m, k), n = a.shape, b.shape[1]
    if 0 in (m, k, n):
        return torch.zeros(m, n, dtype=torch.int32)
    if not packed and b.stride(0) < b.stride(1) and m * (k + 4 * n) < k * n:  # b lies by columns: cheaper to turn a and the product around
        return matmul(b.T, a.T).T.contiguous()
    step, rows, c = _step(n), max(256, CACHED // n), np.empty((m, n), np.int32)
    for i, start in enumerate(range(0, k, step)):
        left = _shifted(a[:, start:start + step])
        right = {} if packed else {"b": _shifted(b[start:start + step])}
        product = packed[i] if packed else _two_operands(torch.get_num_threads())
        for first in range(0, m, rows):
            part = c[first:first + rows]
            if i == 0:
                run(product, {"a": left[first:first + rows]} | right, part)
            else:
                part += product.run(None, {"a": left[first:first + rows]} | right)[0]
    return torch.from_numpy(c)


def pack(b: torch.Tensor) -> tuple:
    """Sessions of ONNX Runtime that hold int8 b (K, N) once more, in the order in which the product reads it: one each part of K.

    They compute with as many threads as torch has now: make them anew when that changes, or b.
    """
    step = _step(b.shape[1])
    parts = (_shifted(b[start:start + step]) for start in range(0, b.shape[0], step))
    return tuple(session(_model(part), torch.get_num_threads()) for part in parts)


def _step(n: int) -> int:
    return max(1, min(PART, MODEL_BYTES // max(n, 1)))


def _shifted(x: torch.Tensor) -> np.ndarray:
    """int8 codes + 128 as a row-major uint8 array: in two's complement that is the highest bit flipped.

    By NumPy, in one thread: torch's threads would go on looking for work while ONNX Runtime's need the cores.
    """
    return x.contiguous().numpy().view(np.uint8) ^ np.uint8(128)


def run(session, operands: dict, c: np.ndarray) -> None:
    """One product, written into the rows c where they lie: a copy would cost as much as a tenth of a large product."""
    binding = session.io_binding()
    for name, operand in operands.items():
        binding.bind_cpu_input(name, operand)
    binding.bind_output("c", "cpu", 0, c.dtype, c.shape, c.ctypes.data)
    session.run_with_iobinding(binding)


@lru_cache
def _two_operands(threads: int):
    return session(_model(), threads)


def session(model: bytes, threads: int):
    """ONNX Runtime's session of a model on the CPU, with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take the cores from torch's
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model(b=None) -> bytes:
    """The file of c = MatMulInteger(a, b, 128, 128): with the uint8 array b in it, or with an operand "b"."""
    operands = {"z": np.array(128, np.uint8), "a": onnx_file.UINT8, "b": onnx_file.UINT8 if b is None else b}
    return onnx_file.model("MatMulInteger", ["a", "b", "z", "z"], operands, ("c", onnx_file.INT32))
