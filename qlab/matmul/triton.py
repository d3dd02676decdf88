"""INT8 products in Triton: one kernel for the product and its epilogue, one for weights alone (source document, 2.4).

    y = (a @ b - zero_point column_sums) * row_scale * column_scale + bias, then ReLU          (`reference.epilogue`, fused)

A program computes one tile of y, BLOCK_M by BLOCK_N. It walks along K in steps of BLOCK_K, multiplies two int8 tiles on the tensor cores
(tl.dot) and adds the products to an int32 tile in registers. While the tile is still there it is scaled, biased and written in 16 bits:
fused, the int32 matrix, four bytes an element, never goes to memory and comes back. The tiles are visited in groups of GROUP_M rows,
so that programs that run at the same time share rows of a and columns of b in the L2 cache (Tillet et al. 2019; Triton's tutorial 03).

Loop bounds are tl.constexpr, so the same code runs without a GPU in Triton's interpreter. Which one it is, is decided when Triton
is imported: this module asks for the interpreter on a machine without CUDA.
"""

import contextlib
import os

import torch

from qlab.matmul.device import why_not_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton.jit, when the kernels below are defined

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as error:
    raise ImportError("Triton 3.4 or newer is not installed: pip install triton (on Linux), or use backend='torch'.") from error
if INTERPRETED and isinstance(tl.zeros, triton.JITFunction):
    raise ImportError("Triton was imported before, for a GPU: set TRITON_INTERPRET=1 before Python starts, or import this module first.")

OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def product_kernel(a, b, out, row_scale, column_scale, zero_point, column_sums, bias,  # all after out: None, or pointers
                   M, N, K: tl.constexpr, M_BUCKET: tl.constexpr,
                   a_row, a_inner, b_inner, b_column, out_row, scale_row, zero_row,     # strides, in elements
                   RELU: tl.constexpr, DESCRIPTORS: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):
    # Which tile: down GROUP_M tiles, then to the right, so that neighbours in time are neighbours in memory.
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (GROUP_M * tiles_n)
    height = min(tiles_m - group * GROUP_M, GROUP_M)  # the last group may be lower
    within = tl.program_id(0) % (GROUP_M * tiles_n)
    first_m, first_n = (group * GROUP_M + within % height) * BLOCK_M, (within // height) * BLOCK_N
    m, n, k = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    if DESCRIPTORS:  # Hopper's tensor memory accelerator copies whole tiles, and reads zeros beyond the edge; b lies as (N, K)
        for start in range(0, K, BLOCK_K):
            accumulator = tl.dot(a.load([first_m, start]), b.load([first_n, start]).T, accumulator, out_dtype=tl.int32)
    else:            # rows beyond the edge read some row again and are never written: no mask in the loop
        a_tile = a + (m % M).to(tl.int64)[:, None] * a_row + k[None, :] * a_inner
        b_tile = b + (n % N).to(tl.int64)[None, :] * b_column + k[:, None] * b_inner
        for start in range(0, K, BLOCK_K):
            if K % BLOCK_K == 0:
                x, w = tl.load(a_tile), tl.load(b_tile)
            else:
                x = tl.load(a_tile, mask=k[None, :] < K - start, other=0)
                w = tl.load(b_tile, mask=k[:, None] < K - start, other=0)
            accumulator = tl.dot(x, w, accumulator, out_dtype=tl.int32)
            a_tile += BLOCK_K * a_inner
            b_tile += BLOCK_K * b_inner

    if zero_point is not None:
        z = tl.load(zero_point + m * zero_row, mask=m < M, other=0)
        accumulator -= z[:, None] * tl.load(column_sums + n, mask=n < N, other=0)[None, :]
    y = accumulator
    if row_scale is not None:
        y = accumulator.to(tl.float32) * tl.load(row_scale + m * scale_row, mask=m < M, other=0.0)[:, None]
        y = y * tl.load(column_scale + n, mask=n < N, other=0.0)[None, :]
        if bias is not None:
            y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        if RELU:
            y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)  # else the larger of NaN and 0 is 0
    where = out + m.to(tl.int64)[:, None] * out_row + n[None, :]
    tl.store(where, y.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def weight_only_kernel(x, w, out, column_scale, bias, M, N, K: tl.constexpr, M_BUCKET: tl.constexpr, x_row, w_row, out_row,
                       BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    # The weights cross memory as int8 and become x's type in registers; x is small, so each program reads all of its rows again.
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + (m % M).to(tl.int64)[:, None] * x_row + k[None, :]
    w_tile = w + (n % N).to(tl.int64)[None, :] * w_row + k[:, None]  # w lies as (N, K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x_part, w_part = tl.load(x_tile), tl.load(w_tile)
        else:
            x_part = tl.load(x_tile, mask=k[None, :] < K - start, other=0.0)
            w_part = tl.load(w_tile, mask=k[:, None] < K - start, other=0)
        accumulator = tl.dot(x_part, w_part.to(x_part.dtype), accumulator, input_precision="ieee")
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    y = accumulator * tl.load(column_scale + n, mask=n < N, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    where = out + m.to(tl.int64)[:, None] * out_row + n[None, :]
    tl.store(where, y.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def quantize_rows_kernel(x, codes, scales, K: tl.constexpr, x_row, BLOCK: tl.constexpr):
    # One row a program, read twice: the second time it comes from the cache.
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    peak = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, K, BLOCK):
        values = tl.load(x + row * x_row + start + k, mask=k < K - start, other=0.0).to(tl.float32)
        size = tl.abs(values)
        peak = tl.maximum(peak, tl.where(size == size, size, float("inf")))  # NaN is equal to nothing, and tl.max would drop it
    peak = tl.max(peak, axis=0)
    finite = peak < float("inf")
    scale = tl.maximum(tl.div_rn(peak, tl.full((), 127.0, tl.float32)), 1.1754943508222875e-38)  # the smallest normal number, or more
    scale = tl.where((peak > 0) & finite, scale, 1.0)
    tl.store(scales + row, tl.where(finite, scale, float("nan")))
    for start in range(0, K, BLOCK):
        values = tl.load(x + row * x_row + start + k, mask=k < K - start, other=0.0).to(tl.float32)
        steps = tl.div_rn(values, tl.zeros_like(values) + scale)
        rounded = (steps + 12582912.0) - 12582912.0  # 1.5 * 2**23, where float32 has no fractions: to nearest, ties to even
        rounded = tl.where(finite, tl.minimum(tl.maximum(rounded, -127.0), 127.0), 0.0)
        tl.store(codes + row * K + start + k, rounded.to(tl.int8), mask=k < K - start)


def _fit_descriptors(arguments: dict):
    """The block shapes of TMA descriptors are part of the tile, which the tuner chooses."""
    for name, rows in (("a", "BLOCK_M"), ("b", "BLOCK_N")):
        if isinstance(arguments[name], TensorDescriptor):
            arguments[name].block_shape = [arguments[rows], arguments["BLOCK_K"]]


def _config(block_m: int, block_n: int, block_k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8},
                         num_warps=warps, num_stages=stages, pre_hook=_fit_descriptors)


TILES = [_config(*tile) for tile in (
    (128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (128, 256, 64, 8, 4), (256, 128, 128, 8, 3), (256, 128, 64, 8, 4), (128, 128, 128, 8, 4),
    (128, 128, 128, 4, 3), (128, 128, 64, 4, 5), (64, 256, 128, 4, 4), (64, 128, 128, 4, 5), (64, 64, 256, 4, 4), (32, 128, 256, 4, 3),
    (32, 64, 256, 4, 4), (16, 128, 256, 4, 3), (16, 64, 256, 4, 4), (16, 32, 512, 4, 3))]
INTERPRETED_TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP_M": 2}  # large: the interpreter's time goes by operations
WEIGHT_ONLY_TILES = [triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages) for n, k, warps, stages in (
    (16, 256, 4, 4), (16, 512, 4, 3), (16, 512, 8, 4), (32, 128, 4, 5), (32, 256, 4, 4), (32, 512, 8, 3), (64, 128, 4, 4), (64, 256, 8, 3),
    (128, 128, 8, 4))]


def _worth_trying(configs: list, arguments: dict, **_) -> list:
    """Tiles that are not taller than the matrix has rows: the others would waste their work."""
    rows = max(16, triton.next_power_of_2(arguments["M_BUCKET"]))
    return [config for config in configs if config.kwargs["BLOCK_M"] <= rows and config.kwargs["BLOCK_M"] >= min(rows, 64) // 4]


# Tuned once for each N, K and power of two of M: a batch that grows by one row must not tune again.
_product = product_kernel if INTERPRETED else triton.autotune(
    TILES, key=["M_BUCKET", "N", "K", "RELU", "DESCRIPTORS"], prune_configs_by={"early_config_prune": _worth_trying})(product_kernel)
_weight_only = weight_only_kernel if INTERPRETED else triton.autotune(WEIGHT_ONLY_TILES, key=["M_BUCKET", "N", "K"])(weight_only_kernel)


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The interpreter computes in NumPy, which has no bfloat16: there it is float32 inside, and rounded to bfloat16 by torch."""
    return torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """int8 (M, K) by (K, N) to int32 (M, N), exact; any shape, any strides, on CUDA or, interpreted, on the CPU.

    >>> matmul(torch.tensor([[100, 100]], dtype=torch.int8), torch.tensor([[100], [100]], dtype=torch.int8))
    tensor([[20000]], dtype=torch.int32)
    """
    return _launch(a, b, torch.int32)


def scaled_matmul(a: torch.Tensor, b: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None = None,
                  zero_point: torch.Tensor | None = None, column_sums: torch.Tensor | None = None,
                  relu: bool = False, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The product with `reference.epilogue` fused into it: int8 (M, K) by (K, N) to float32, float16 or bfloat16 (M, N).

    Arguments as there. Equal to it but for the last bit of float32, where a GPU may fuse a multiplication with an addition.
    Raises ValueError for another out_dtype.

    >>> a = torch.tensor([[100, 100]], dtype=torch.int8)
    >>> scaled_matmul(a, a.T, torch.tensor([0.5]), torch.tensor([0.001]), bias=torch.tensor([-20.0]), relu=True)
    tensor([[0.]])
    """
    if out_dtype not in OUT_DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}, and must be one of {', '.join(map(str, OUT_DTYPES))}.")
    return _launch(a, b, out_dtype, row_scale, column_scale, zero_point, column_sums, bias, relu)


def weight_only(x: torch.Tensor, w: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ (w * scale).T + bias with int8 weights: x float (M, K), w int8 (N, K) row-major, column_scale float32 (N,), to x's dtype (M, N).

    For few rows: one token needs all weights once, so memory decides, and int8 weights are half the bytes of half precision.

    >>> weight_only(torch.tensor([[1.0, 2.0]]), torch.tensor([[3, 4]], dtype=torch.int8), torch.tensor([0.5]))
    tensor([[5.5000]])
    """
    (m, k), n = x.shape, w.shape[0]
    dtype, x = x.dtype, x.to(_computed(x.dtype))
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m == 0 or n == 0:
        return out.to(dtype)
    x, w = x if x.stride(1) == 1 else x.contiguous(), w if w.stride(1) == 1 else w.contiguous()
    tile = {"BLOCK_N": 64, "BLOCK_K": 128} if INTERPRETED else {}
    with _on(x):
        _weight_only[lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), triton.cdiv(m, 16))](
            x, w, out, column_scale, bias, m, n, k, triton.next_power_of_2(m), x.stride(0), w.stride(0), out.stride(0), BLOCK_M=16, **tile)
    return out.to(dtype)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 codes of each row, one scale a row (a token), in one pass: x float (M, K) to int8 (M, K) and float32 (M,).

    The codes and scales of `linear.quantize(x, 8, "symmetric", axis=0)` computed in float32; a row of zeros has scale 1,
    and one that holds NaN or infinity scale NaN and codes 0.

    >>> quantize_rows(torch.tensor([[1.0, -2.0]]))
    (tensor([[  64, -127]], dtype=torch.int8), tensor([0.0157]))
    """
    m, k = x.shape
    codes, scales = torch.empty(m, k, dtype=torch.int8, device=x.device), torch.ones(m, dtype=torch.float32, device=x.device)
    if m and k:
        x = x if x.stride(1) == 1 else x.contiguous()
        block = min(triton.next_power_of_2(k), 4096)
        with _on(x):
            quantize_rows_kernel[(m,)](x, codes, scales, k, x.stride(0), BLOCK=block, num_warps=8 if block >= 2048 else 4)
    return codes, scales


def _launch(a, b, out_dtype, row_scale=None, column_scale=None, zero_point=None, column_sums=None, bias=None, relu=False) -> torch.Tensor:
    (m, k), n = a.shape, b.shape[1]
    place = _on(a)
    out = torch.empty(m, n, dtype=_computed(out_dtype), device=a.device)
    if m == 0 or n == 0:
        return out.to(out_dtype)
    # A tile's strides are added up in 32 bits; a matrix of millions of columns is copied.
    a, b = (x.contiguous() if max(x.stride()) >= 2**22 and min(x.shape) > 1 else x for x in (a, b))
    scale_row = 0 if row_scale is None or len(row_scale) == 1 else 1
    zero_row = 0 if zero_point is None or len(zero_point) == 1 else 1
    strides = (*a.stride(), *b.stride(), out.stride(0), scale_row, zero_row)
    descriptors = _takes_descriptors(a, b)
    if descriptors:
        a, b = (TensorDescriptor(x, list(x.shape), list(x.stride()), [16, 16]) for x in (a, b.T))
    tile = INTERPRETED_TILE if INTERPRETED else {}
    with place:
        _product[lambda meta: (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)](
            a, b, out, row_scale, column_scale, zero_point, column_sums, bias, m, n, k, triton.next_power_of_2(m), *strides,
            RELU=relu, DESCRIPTORS=descriptors, **tile)
    return out.to(out_dtype)


def _takes_descriptors(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Hopper's copy engine takes rows that lie along K, begin at multiples of 16 bytes, and are many enough to be worth it."""
    if INTERPRETED or torch.cuda.get_device_capability(a.device)[0] < 9 or min(a.shape[0], b.shape[1]) < 64:
        return False
    return all(x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.stride(0) >= x.shape[1] and x.data_ptr() % 16 == 0 for x in (a, b.T))


def _on(x: torch.Tensor):
    """The tensor's device made the current one, on which Triton launches; raises RuntimeError where no compiled kernel can run."""
    if not INTERPRETED and (reason := why_not_triton(x.device.type)):
        raise RuntimeError(f"Triton cannot compute here: {reason}. Use backend='torch', or set TRITON_INTERPRET=1 before Python starts.")
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
