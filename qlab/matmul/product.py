"""One door to the INT8 product: int8_matmul(a, b), whoever computes it.

    backend       computes with                                           where
    "triton"      our own kernel (`triton`)                               CUDA; on the CPU in Triton's interpreter, for study
    "torch"       torch._int_mm (`cpu`): oneDNN, or cuBLASLt on CUDA      everywhere
    "reference"   a float64 product (`reference`)                         everywhere
    "auto"        the first of them that fits where the operands lie: Triton on CUDA if it is there, else torch._int_mm, else the reference
"""

import torch

from qlab.matmul import cpu, reference
from qlab.matmul.device import why_not_triton

BACKENDS = ("auto", "reference", "torch", "triton")


def int8_matmul(a: torch.Tensor, b: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """The exact product of int8 (M, K) and int8 (K, N), as int32 (M, N), on the device of the operands.

    Any shape with K below 131,072, sizes of 0 included, and any strides: b.T of a row-major weight costs no copy. Takes NumPy arrays too.
    Raises TypeError for a dtype other than int8 and ValueError for operands that are not matrices, do not fit together or lie on
    different devices, for K of 131,072 or more (split the sum and add the parts in int64), and for an unknown backend;
    RuntimeError where the backend asked for cannot run.

    >>> a = torch.tensor([[100, 100]], dtype=torch.int8)
    >>> int8_matmul(a, a.T), a @ a.T        # exact in int32; torch's own product keeps the last 8 bits of 20,000
    (tensor([[20000]], dtype=torch.int32), tensor([[32]], dtype=torch.int8))
    """
    a, b = check_operands(a, b)
    name = choose(a.device.type, backend)[0]
    if name == "triton":
        from qlab.matmul import triton

        return triton.matmul(a, b)
    return cpu.matmul(a, b) if name == "torch" else reference.matmul(a, b)


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


def choose(device: str = "cpu", backend: str = "auto") -> tuple[str, str]:
    """(backend, why): which one computes a product of operands on this device ("cpu", "cuda"). What "auto" decides, in words.

    Raises ValueError for an unknown backend.

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
    if hasattr(torch, "_int_mm"):
        return "torch", f"{reason}, and this torch has torch._int_mm"
    return "reference", f"{reason}, and this torch has no torch._int_mm"
