"""Whether the INT8 products of this machine are right, before anything is timed: odd shapes and strides, the largest sums, fresh operands.

qlab.lab.matmul_bench asks first.
"""

import contextlib

import torch

from qlab.matmul import product, reference

ODD = ((1, 1, 1), (1, 4096, 11), (17, 33, 65), (129, 1000, 257), (1000, 3, 1000), (31, 4097, 127), (513, 511, 1), (256, 512, 384))


@contextlib.contextmanager
def poisoned_memory():
    """Inside, torch.empty gives memory full of one number: an element that a kernel forgets to write cannot look right by luck."""
    empty = torch.empty
    torch.empty = lambda *size, **how: empty(*size, **how).fill_(77)
    try:
        yield
    finally:
        torch.empty = empty


def _operands(m: int, k: int, n: int, seed: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One product, its operands laid out as they come: row-major, transposed, and with gaps; and one of the largest sums."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8, generator=g).to(device) for shape in ((m, k), (k, n)))
    lowest = (torch.full_like(a, -128), torch.full_like(b, -128))
    gaps = (a.repeat_interleave(2, 0)[::2], b.repeat_interleave(2, 1)[:, ::2])
    return [(a, b), (a, b.T.contiguous().T), (a.T.contiguous().T, b), gaps, lowest]


def check(device: str, backends: tuple[str, ...], seed: int) -> dict:
    """Products of ODD shapes by each backend, and the fused epilogue, against the reference; what was tried and the largest differences."""
    differing, tried, worst = 0, 0, 0.0
    for shape in ODD:
        for a, b in _operands(*shape, seed, device):
            expected = reference.matmul(a, b)
            assert shape != (17, 33, 65) or torch.equal(expected.cpu(), (a.cpu().long() @ b.cpu().long()).int())
            for backend in backends:
                with poisoned_memory():
                    got = product.int8_matmul(a, b, backend)
                differing, tried = differing + int((got != expected).sum()), tried + 1
            if "triton" in backends:
                from qlab.matmul import triton

                g = torch.Generator().manual_seed(seed)
                row, column, bias = (torch.rand(size, generator=g).to(device) for size in (shape[0], shape[2], shape[2]))
                with poisoned_memory():
                    fused = triton.scaled_matmul(a, b, row, column, bias)
                apart = reference.epilogue(expected, row, column, bias)
                worst = max(worst, ((fused - apart).abs().max() / apart.abs().max()).item())
    return {"seed": seed, "products": tried, "backends": list(backends), "differing_elements": differing, "fused_relative_error": worst}
