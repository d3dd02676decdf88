"""The exact INT8 product from float32 products: what every CPU does fast, with no integer instruction at all.

float32 holds every integer up to 2**24. A product of two codes is at most 128 * 128 = 2**14 in size, so a sum of 2**10 = 1024 of them is
at most 2**24, which at -128 * -128 is reached and still held. Every partial sum of such a chunk of K is an integer no larger than
that, so nothing is ever rounded, in whatever order a library adds them and whether or not it fuses the multiplication with the addition;
nor if torch is allowed to compute float32 products in bfloat16, whose 8 bits hold every code. The chunks are summed in int32.

The codes of large operands become floats a slab at a time, which is multiplied while it is in the cache. A slab lies as b does, whole
rows of b or whole columns: a conversion with gaps would take longer than the product of a few rows.
"""

import torch

CHUNK = 2**24 // 2**14  # 1024
SLAB = 2**20            # floats, 4 MB: with few rows the slab's way from the cache decides
LARGE_SLAB = 2**22      # with many rows the sums in int32 do, of which there is one a slab of rows
ROWS = 4096             # of a that are floats at a time
FEW = 64


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) by (K, N) to int32 (M, N) on the CPU, exact; any shape and strides. The arguments are checked by `int8_matmul`.

    >>> a = torch.full((1, 2048), -128, dtype=torch.int8)
    >>> matmul(a, a.T)          # 2**25
    tensor([[33554432]], dtype=torch.int32)
    """
    (m, k), n = a.shape, b.shape[1]
    if max(m * k, k * n, m * n) <= SLAB and k:
        chunks = [(a[:, start:start + CHUNK].float() @ b[start:start + CHUNK].float()).int() for start in range(0, k, CHUNK)]
        return sum(chunks[1:], start=chunks[0])
    if n < min(m, FEW):  # slabs of the larger operand
        return matmul(b.T, a.T).T.contiguous()
    c = torch.zeros(m, n, dtype=torch.int32)
    multiply = _rows_of_b if b.stride(0) >= b.stride(1) else _columns_of_b
    for start in range(0, m, ROWS):
        multiply(a[start:start + ROWS].float(), b, c[start:start + ROWS])
    return c


def _rows_of_b(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """c += a @ b, a slab of at most CHUNK rows of b at a time; a float32, b int8, c int32."""
    k, n = b.shape
    step = max(1, min(CHUNK, k, _slab(len(a)) // max(n, 1)))
    slab, y = torch.empty(step, n), torch.empty(len(a), n)
    for start in range(0, k, step):
        rows = b[start:start + step]
        c += torch.mm(a[:, start:start + step], slab[:len(rows)].copy_(rows), out=y).int()


def _columns_of_b(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """c += a @ b, a slab of columns of b at a time, each in chunks of K; a float32, b int8, c int32."""
    k, n = b.shape
    step = max(1, min(n, _slab(len(a)) // max(k, 1)))
    slab = torch.empty(step, k).T
    for first in range(0, n, step):
        columns = b[:, first:first + step]
        floats = slab[:, :columns.shape[1]].copy_(columns)
        for start in range(0, k, CHUNK):
            c[:, first:first + step] += (a[:, start:start + CHUNK] @ floats[start:start + CHUNK]).int()


def _slab(rows: int) -> int:
    return SLAB if rows < FEW else LARGE_SLAB
