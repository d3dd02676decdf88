"""Products with packed weights: 4 bits each (2 and 8, too), multiplied by activations that stay floats.

    y[m, n]  =  sum over k of  x[m, k] scale[n, g] (code[n, k] - zero_point[n, g]),     g = k // group_size         (`packed`)

Weights alone are quantized ("W4A16", Frantar et al. 2022): with few rows of x a product takes as long as its weights take to be
read, and packed they are an eighth of float32.

    backend         computes with                                                      where
    "triton"        our own kernel (`int4_triton`)                                     CUDA; on the CPU in Triton's interpreter, for study
    "onnxruntime"   ONNX Runtime's MatMulNBits (`int4_onnxruntime`), x in int8 inside  CPU, if it is installed
    "torch"         torch._weight_int4pack_mm (`int4_torch`), in bfloat16              CPU, 4 bits in groups of 32 or multiples
    "reference"     the weights decoded, then a float32 product                        everywhere
    "auto"          the fastest of them where x lies (`choose`)

The reference is also the trap: to unpack nibbles in one operation and multiply in the next takes many times as long as float32 weights,
for memory is crossed more often than it was.
"""

import math

import torch

from qlab.matmul import int4_onnxruntime, int4_torch
from qlab.matmul.device import why_not_triton
from qlab.matmul.packed import PackedWeights, why_not_whole_bytes
from qlab.quant.layout import as_tensor

BACKENDS = ("auto", "reference", "onnxruntime", "torch", "triton")
MANY = 1024  # rows of x beyond which decoding the weights pays: with one thread of an AMD EPYC with AVX-512, at K = N = 4096
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@torch.no_grad()
def int4_matmul(x: torch.Tensor, weights: PackedWeights, backend: str = "auto", accuracy_level: int = 4) -> torch.Tensor:
    """x @ w.T with packed weights w (N, K): floats (..., K) to (..., N), of x's dtype, on the device of both.

    x: float32, float16 or bfloat16, any strides, also without rows; an array, too. backend: see the table above.

    accuracy_level: of "onnxruntime"; others take no notice. 4 rounds x to int8, in blocks as long as the groups (as their largest part
    that ONNX Runtime takes: `int4_onnxruntime.block`), each with a scale of its own: y is off by at most the sum over k of |w[n, k]|
    max |x[m, block of k]| / 254, and float32's rounding (where zero-points are real numbers, w with the nearest whole one). 0 computes in
    float32, slower: some times with 4 bits, some hundred times with 2 or 8.

    "torch" rounds x, scales and results to bfloat16; "triton" multiplies codes in x's dtype and adds in float32. Rows of x that hold NaN
    or infinity become NaN or infinite, and no others.

    Raises TypeError for another dtype or weights that are not packed; ValueError for sizes that do not fit, operands on different devices,
    an unknown backend or level; RuntimeError where the backend asked for cannot run, or not with these weights. No gradients.

    >>> from qlab.matmul.packed import pack_codes
    >>> w = pack_codes([[0, 15, 8, 9]], torch.tensor([[0.5, 2.0]]))
    >>> int4_matmul(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), w, "reference")     # 1 * -4 + 2 * 3.5 + 3 * 0 + 4 * 2
    tensor([[11.]])
    """
    if not isinstance(weights, PackedWeights):
        raise TypeError(f"weights is a {type(weights).__name__}, and must be PackedWeights: packed.pack makes them of a QTensor.")
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        x = as_tensor(x)
    if x.dtype not in FLOATS:
        raise TypeError(f"x has dtype {x.dtype}, and must be one of {', '.join(map(str, FLOATS))}.")
    n, k = weights.shape
    if not x.dim() or x.shape[-1] != k:
        raise ValueError(f"x has shape {tuple(x.shape)}, and its last size must be {k}, as many as the weights have columns.")
    if x.device != weights.codes.device:
        raise ValueError(f"x is on {x.device} and the weights on {weights.codes.device}: they must be on one device.")
    name = choose(x.device.type, backend, accuracy_level, weights, math.prod(x.shape[:-1]))[0]
    rows = x.reshape(math.prod(x.shape[:-1]), k)
    y = _multiply(name, rows, weights, accuracy_level) if 0 not in (len(rows), n, k) else rows.new_zeros(len(rows), n)
    return y.to(x.dtype).reshape(*x.shape[:-1], n)


def _multiply(name: str, x: torch.Tensor, weights: PackedWeights, accuracy_level: int) -> torch.Tensor:
    if name in ("onnxruntime", "torch") and x.device.type != "cpu":
        raise RuntimeError(f"x is on {x.device}, and the backend {name!r} computes on the CPU: move it, or use another one.")
    if name == "triton":
        from qlab.matmul import int4_triton

        return int4_triton.matmul(x, weights)
    if name == "onnxruntime":
        return int4_onnxruntime.matmul(x.float(), weights, accuracy_level)
    if name == "torch":
        return int4_torch.matmul(x, weights)
    return x.float() @ weights.dequantize().T


def choose(device: str = "cpu", backend: str = "auto", accuracy_level: int = 4, weights: PackedWeights | None = None,
           rows: int = 1) -> tuple[str, str]:
    """(backend, why): which one multiplies so many rows on this device ("cpu", "cuda") by these weights; None: 4 bits in groups of 32.

    Raises ValueError for an unknown backend or level.

    >>> choose("cpu", "reference")
    ('reference', 'it was asked for')
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, and must be one of {', '.join(BACKENDS)}.")
    if type(accuracy_level) is not int or accuracy_level not in int4_onnxruntime.LEVELS:
        raise ValueError(f"accuracy_level is {accuracy_level!r}, and must be 4 (x in int8 inside) or 0 (float32).")
    if backend != "auto":
        return backend, "it was asked for"
    bits, group_size, nbytes = (weights.bits, weights.group_size, weights.nbytes) if weights is not None else (4, 32, 0)
    if device == "cuda":
        why = why_not_triton(device) or why_not_whole_bytes(bits, group_size)
        return ("reference", why) if why else ("triton", "x is on CUDA and Triton is installed")
    if device != "cpu" or torch.compiler.is_compiling():  # which traces torch's operators and no other library's
        return "reference", "only it computes there"
    why = int4_onnxruntime.why_not(bits, group_size, accuracy_level, nbytes)
    if not why and accuracy_level == 0 and bits != 4:
        why = f"ONNX Runtime takes as long without rounding x as decoding {bits}-bit weights does"
    if not why:
        return "onnxruntime", "MatMulNBits multiplies packed weights as they are"
    other = "torch multiplies in bfloat16" if accuracy_level == 0 else int4_torch.why_not(bits, group_size)
    if not other and rows > MANY:
        other = f"with {rows} rows torch takes longer than decoding the weights once does"
    return ("reference", f"{why}, and {other}") if other else ("torch", why)
