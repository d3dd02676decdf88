"""One door to the INT8 product: int8_matmul(a, b), whoever computes it.

    backend         computes with                                             where
    "triton"        our own kernel (`triton`)                                 CUDA; on the CPU in Triton's interpreter, for study
    "torch"         torch._int_mm (`cpu`): oneDNN, or cuBLASLt on CUDA        everywhere
    "onnxruntime"   ONNX Runtime's product of uint8 by uint8 (`onnxruntime`)  CPU, if it is installed
    "float32"       float32 products of chunks of K (`float32`)               CPU
    "reference"     a float64 product (`reference`)                           everywhere
    "auto"          the fastest of them where the operands lie (`choose`)

All are exact. On a CPU the question is not whether it has an instruction for 8-bit products, but which kernel uses what it has: torch's is
the fastest with AVX-512 VNNI and some 20 times slower than float32 without; ONNX Runtime's beats float32 on both.
"""

import math

import torch

from qlab.matmul import cpu, float32, reference
from qlab.matmul.device import why_not_onnxruntime, why_not_triton, why_torch_is_slow

BACKENDS = ("auto", "reference", "torch", "onnxruntime", "float32", "triton")
ON_CPU = ("onnxruntime", "float32")

# Without VNNI, from where on ONNX Runtime is faster than float32: measured with one thread of an AMD Zen 4 whose AVX-512 was hidden, at
# M, K and N from 8 to 4096, b lying by rows and by columns.
SMALL = 2**22  # multiplications, M * K * N
FEW = 4        # rows or columns: so many are still float32's


def int8_matmul(a: torch.Tensor, b: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """The exact product of int8 (M, K) and int8 (K, N), as int32 (M, N), on the device of the operands.

    Any shape with K below 131,072, sizes of 0 included, and any strides: b.T of a row-major weight costs no copy. Takes NumPy arrays too.
    Raises TypeError for a dtype other than int8 and ValueError for operands that are not matrices, do not fit together or lie on
    different devices, for K of 131,072 or more (split the sum and add the parts in int64), and for an unknown backend;
    RuntimeError where the backend asked for cannot run. backend: see the table above; `choose` says which one "auto" takes.

    >>> a = torch.tensor([[100, 100]], dtype=torch.int8)
    >>> int8_matmul(a, a.T), a @ a.T        # exact in int32; torch's own product keeps the last 8 bits of 20,000
    (tensor([[20000]], dtype=torch.int32), tensor([[32]], dtype=torch.int8))
    """
    a, b = check_operands(a, b)
    name = choose(a.device.type, backend, (*a.shape, b.shape[1]))[0]
    if name in ON_CPU and a.device.type != "cpu":
        raise RuntimeError(f"the operands are on {a.device}, and the backend {name!r} computes on the CPU: move them, or use another one.")
    if name == "triton":
        from qlab.matmul import triton

        return triton.matmul(a, b)
    if name == "onnxruntime":
        from qlab.matmul import onnxruntime

        return onnxruntime.matmul(a, b)
    return {"torch": cpu, "float32": float32, "reference": reference}[name].matmul(a, b)


def check_operands(a, b) -> tuple[torch.Tensor, torch.Tensor]:
    """a and b as tensors, if their INT8 product exists and fits into int32; raises what `int8_matmul` says."""
    a, b = reference.as_tensor(a), reference.as_tensor(b)
    for name, x in (("a", a), ("b", b)):
        if x.dtype != torch.int8:
            raise TypeError(f"{name} has dtype {x.dtype}, and must be torch.int8.")
        if x.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, and must be a matrix, (rows, columns).")
        if x.layout != torch.strided:
            raise ValueError(f"{name} has layout {x.layout}, and must be a dense (strided) tensor.")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a has {a.shape[1]} columns and b has {b.shape[0]} rows: they must be the same number.")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device} and b on {b.device}: they must be on one device.")
    if a.shape[1] >= reference.MAX_K:
        raise ValueError(f"K is {a.shape[1]:,}, and must be below {reference.MAX_K:,}, for K * 128 * 128 must fit into int32: "
                         "split K and add the parts in int64.")
    return a, b


def choose(device: str = "cpu", backend: str = "auto", shape: tuple[int, int, int] | None = None) -> tuple[str, str]:
    """(backend, why): which one computes a product of operands on this device ("cpu", "cuda"). What "auto" decides, in words.

    shape: (M, K, N) of the product; None: any that is neither small nor thin. Raises ValueError for an unknown backend.

    >>> choose("cpu", "reference")
    ('reference', 'it was asked for')
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, and must be one of {', '.join(BACKENDS)}.")
    if backend != "auto":
        return backend, "it was asked for"
    reason = why_not_triton(device)
    if not reason:
        return "triton", "the operands are on CUDA and Triton is installed"
    if device == "cpu" and not torch.compiler.is_compiling():  # which traces torch's operators and no other library's
        slow = why_torch_is_slow()
        return _without_vnni(slow, shape) if slow else ("torch", "torch._int_mm computes with this CPU's AVX-512 VNNI or AMX")
    if hasattr(torch, "_int_mm"):
        return "torch", f"{reason}, and this torch has torch._int_mm"
    return "reference", f"{reason}, and this torch has no torch._int_mm"


def _without_vnni(slow: str, shape: tuple[int, int, int] | None) -> tuple[str, str]:
    if shape and (math.prod(shape) < SMALL or min(shape[0], shape[2]) <= FEW):
        return "float32", f"{slow}, and ONNX Runtime takes longer to pack the operands than so small or thin a product takes"
    if why_not := why_not_onnxruntime():
        return "float32", f"{slow}, and {why_not}"
    return "onnxruntime", slow
