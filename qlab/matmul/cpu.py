"""torch._int_mm behind a door that stays where it is: int8 (M, K) by (K, N) to int32 (M, N), exact.

On the CPU torch._int_mm hands the product to oneDNN where the machine has AVX-512 VNNI (or AMX, which no CPU has without it), and to plain
loops where it has not: exact, fast only there. A oneDNN that ONEDNN_MAX_CPU_ISA keeps from VNNI would be neither slow nor exact, and is
left out. On CUDA it is cuBLASLt, which wants more than 16 rows, K and N in multiples of 8, and one of two memory layouts. This page pads,
copies or splits when, and only when, it must.

Its name starts with an underscore, so torch may change it: this is the one place of qlab that knows it.
"""

import contextlib

import torch

from qlab.matmul.device import onednn_is_exact

CHUNK_BYTES = 2**28  # of an operand that has to be copied at once


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) by (K, N) to int32 (M, N) through torch._int_mm, exact, on the CPU or CUDA; any shape and strides.

    A row-major or transposed operand is used as it lies; anything else (every second row, say) is copied, at most 256 MB at a time.
    Raises RuntimeError where this torch has no torch._int_mm. The arguments are checked by `int8_matmul`.

    >>> matmul(torch.tensor([[100, 100]], dtype=torch.int8), torch.tensor([[100], [100]], dtype=torch.int8))
    tensor([[20000]], dtype=torch.int32)
    """
    if not hasattr(torch, "_int_mm"):
        raise RuntimeError(f"torch {torch.__version__} has no torch._int_mm: use torch 2.2 or newer, or backend='reference'.")
    (m, k), n = a.shape, b.shape[1]
    if m == 0 or n == 0 or k == 0:
        return torch.zeros(m, n, dtype=torch.int32, device=a.device)
    b = _as_it_lies(b)
    if a.is_cuda:
        if m > 16 and k % 8 == 0 and n % 8 == 0:
            return torch._int_mm(_as_it_lies(a), b)
        return torch._int_mm(_padded(a, max(m, 17), k + -k % 8), _padded(b, k + -k % 8, n + -n % 8))[:m, :n]
    rows = m if _dense(a) else max(1, CHUNK_BYTES // k)
    with contextlib.nullcontext() if onednn_is_exact() else _without_onednn():
        if rows >= m:
            return torch._int_mm(_as_it_lies(a), b)
        return torch.cat([torch._int_mm(a[start:start + rows].contiguous(), b) for start in range(0, m, rows)])


@contextlib.contextmanager
def _without_onednn():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def _dense(x: torch.Tensor) -> bool:
    """Row-major or a transposed row-major matrix: what BLAS takes without a copy."""
    return x.is_contiguous() or x.T.is_contiguous()


def _as_it_lies(x: torch.Tensor) -> torch.Tensor:
    """The matrix where it is, or a copy if it is not dense. The stride of a dimension of size 1 means nothing to torch, which leaves it at
    whatever it was; torch._int_mm takes it for the distance of two rows, and computes from what lies elsewhere."""
    if not _dense(x):
        return x.contiguous()
    return x.as_strided(x.shape, (x.shape[1], 1) if x.is_contiguous() else (1, x.shape[0]))


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    padded = x.new_zeros(rows, columns)
    padded[:x.shape[0], :x.shape[1]] = x
    return padded
