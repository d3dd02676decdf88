"""Products with packed weights in Triton: codes cross memory as they are packed, and become numbers in registers (source document, 2.4).

    y[m, n]  =  sum over groups g of  scale[n, g]  sum over k in g of  x[m, k] (code[n, k] - zero_point[n, g])

A program computes one tile of y. It walks along K a group at a time, or a part of one: it reads a tile of bytes, and for each of the
2, 4 or 1 codes in a byte shifts it down, subtracts the zero-point and multiplies by the columns of x that these codes belong to, every
second one for 4 bits: nothing is put together again. A code less its zero-point is at most 255 in size and exact in bfloat16, too, so no
weight is rounded (where zero-points are real numbers, the difference is); each group's sum is scaled in float32.

Interpreted or compiled: as in `triton`.
"""

import torch

from qlab.matmul import triton as int8
from qlab.matmul.packed import PackedWeights, why_not_whole_bytes

import triton  # isort: skip  after `int8`, which decides whether it interprets
import triton.language as tl  # isort: skip


@triton.jit
def packed_kernel(x, codes, scale, zero_point, out, M, N, M_BUCKET: tl.constexpr, x_row, codes_row, zero_row, out_row,
                  GROUPS: tl.constexpr, GROUP_BYTES: tl.constexpr, BITS: tl.constexpr, REAL_ZEROS: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_BYTES: tl.constexpr):
    EACH: tl.constexpr = 8 // BITS  # codes in a byte
    TOP: tl.constexpr = 2**BITS - 1
    PARTS: tl.constexpr = (GROUP_BYTES + BLOCK_BYTES - 1) // BLOCK_BYTES
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    byte = tl.arange(0, BLOCK_BYTES)
    x_tile = x + (m % M).to(tl.int64)[:, None] * x_row  # rows beyond the edge read some row again and are never written
    row = (n % N).to(tl.int64)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, GROUPS * PARTS):
        group, within = step // PARTS, (step % PARTS) * BLOCK_BYTES + byte
        first, inside = group * GROUP_BYTES + within, within < GROUP_BYTES
        packed = tl.load(codes + row[None, :] * codes_row + first[:, None], mask=inside[:, None], other=0)      # (BLOCK_BYTES, BLOCK_N)
        s = tl.load(scale + row * GROUPS + group).to(tl.float32)
        if zero_point is None:
            z = tl.full((BLOCK_N,), 2 ** (BITS - 1), tl.float32)
        elif REAL_ZEROS:
            z = tl.load(zero_point + row * zero_row + group).to(tl.float32)
        else:
            z = ((tl.load(zero_point + row * zero_row + group // EACH) >> (group % EACH * BITS)) & TOP).to(tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i in tl.static_range(EACH):
            x_part = tl.load(x_tile + (first * EACH + i)[None, :], mask=inside[None, :], other=0.0)             # 0 where nothing is read
            w = ((packed >> (i * BITS)) & TOP).to(tl.float32) - z[None, :]
            sums = tl.dot(x_part, w.to(x_part.dtype), sums, input_precision="ieee")
        accumulator += sums * s[None, :]
    where = out + m.to(tl.int64)[:, None] * out_row + n[None, :]
    tl.store(where, accumulator.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


TILES = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in (
    (16, 16, 4, 4), (16, 32, 4, 5), (16, 64, 4, 4), (16, 128, 4, 3), (32, 64, 4, 4), (64, 64, 4, 4), (64, 128, 8, 3), (128, 128, 8, 3))]
_packed = packed_kernel if int8.INTERPRETED else triton.autotune(
    TILES, key=["M_BUCKET", "N", "GROUPS", "GROUP_BYTES", "BITS"],
    prune_configs_by={"early_config_prune": int8._worth_trying})(packed_kernel)


def matmul(x: torch.Tensor, weights: PackedWeights) -> torch.Tensor:
    """Floats (M, K) by packed weights (N, K) to (M, N) in x's dtype, on CUDA or, interpreted, on the CPU; none of the sizes 0.

    Raises RuntimeError for groups that do not end with a byte, and where no compiled kernel can run. The arguments are checked by
    `int4.int4_matmul`.

    >>> from qlab.matmul.packed import pack_codes
    >>> matmul(torch.arange(32.0)[None], pack_codes(torch.full((1, 32), 9), torch.tensor([0.5])))     # 496 * (9 - 8) * 0.5
    tensor([[248.]])
    """
    if why := why_not_whole_bytes(weights.bits, weights.group_size):
        raise RuntimeError(f"{why}: use backend='reference'.")
    (m, _), (n, _), dtype = x.shape, weights.shape, x.dtype
    place, x = int8._on(x), x.to(int8._computed(dtype))
    x, zero_point = x if x.stride(1) == 1 else x.contiguous(), weights.zero_point
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    real = zero_point is not None and zero_point.is_floating_point()
    group_bytes = weights.group_size * weights.bits // 8
    block_bytes = min(max(triton.next_power_of_2(group_bytes), 16), 64)  # tl.dot multiplies 16 columns at least
    tile = {"BLOCK_M": 16, "BLOCK_N": 64} if int8.INTERPRETED else {}
    with place:
        _packed[lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), triton.cdiv(m, meta["BLOCK_M"]))](
            x, weights.codes, weights.scale, zero_point, out, m, n, triton.next_power_of_2(m), x.stride(0), weights.codes.stride(0),
            0 if zero_point is None else zero_point.stride(0), out.stride(0), weights.scale.shape[1], group_bytes, weights.bits, real,
            BLOCK_BYTES=block_bytes, **tile)
    return out.to(dtype)
