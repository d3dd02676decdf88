"""The exact INT8 product, the slow way, and why it is summed in 32 bits (source document, 2.4; Jacob et al. 2018, section 2.2).

    c[m, n] = sum over k of a[m, k] * b[k, n],     a, b in [-128, 127]

One product needs 16 bits: |a b| <= 128 * 128 = 2**14. A sum of K of them needs 14 + log2(K) bits and a sign, so 32 bits hold every
sum as long as K * 2**14 < 2**31: K < 131,072. A sum kept in 8 bits wraps modulo 256, and torch's own `a @ b` of two int8 matrices
does just that, without a word.

    real value of what the codes stand for:  x = s_x (q_x - z_x),  w = s_w (q_w - z_w)
    sum (q_x - z_x)(q_w - z_w) = sum q_x q_w  -  z_w sum q_x  -  z_x sum q_w  +  K z_x z_w          (Jacob et al. 2018, equation 7)

so zero-points cost one sum a row and one a column, and the product itself stays a product of 8-bit codes.
"""

import numpy as np
import torch

MAX_K = 2**31 // 2**14  # 131,072: from here on an int32 sum of int8 products can overflow
ROWS = 4096             # rows that are converted at a time: 4096 x 16384 in float64 is half a gigabyte


def as_tensor(x, device: torch.device | None = None) -> torch.Tensor:
    """x (tensor, array, list or number) as a tensor, which shares the memory of x if it can.

    torch.as_tensor refuses an array with negative strides or another machine's byte order, and warns of a read-only one: they are copied.

    >>> as_tensor(np.array([1, 2])[::-1])
    tensor([2, 1])
    """
    if isinstance(x, np.ndarray) and not (x.flags.writeable and x.dtype.isnative and all(stride >= 0 for stride in x.strides)):
        x = np.array(x, x.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(x, device=device)


def three_loops(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The definition, one multiplication at a time: int8 (M, K) by (K, N), as integers of any size, to int32 (M, N). For tiny matrices.

    >>> three_loops(torch.tensor([[100, 100]], dtype=torch.int8), torch.tensor([[100], [100]], dtype=torch.int8))
    tensor([[20000]], dtype=torch.int32)
    """
    (rows, inner), columns = a.shape, b.shape[1]
    c = torch.zeros(rows, columns, dtype=torch.int32)
    for m in range(rows):
        for n in range(columns):
            for k in range(inner):
                c[m, n] += int(a[m, k]) * int(b[k, n])
    return c


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same product at the speed of a float64 matrix product: int8 (M, K) by (K, N) to int32 (M, N), exact, on any device.

    Exact because float64 holds every integer up to 2**53 and all partial sums stay below 2**31, in whatever order they are added.

    >>> matmul(torch.tensor([[100, 100]], dtype=torch.int8), torch.tensor([[100], [100]], dtype=torch.int8))
    tensor([[20000]], dtype=torch.int32)
    """
    c = torch.empty(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
    for start in range(0, b.shape[1], ROWS):  # a part at a time: float64 needs eight times the memory of the codes
        part = b[:, start:start + ROWS].double()
        for first in range(0, a.shape[0], ROWS):
            c[first:first + ROWS, start:start + ROWS] = a[first:first + ROWS].double() @ part
    return c


def zero_point_correction(a: torch.Tensor, b: torch.Tensor, a_zero_point=0, b_zero_point=0) -> torch.Tensor:
    """What has to be added to a @ b to get (a - a_zero_point) @ (b - b_zero_point): int32, of a shape that broadcasts to (M, N).

    a: int8 (M, K); b: int8 (K, N); a_zero_point: an integer or one a row, (M,); b_zero_point: an integer or one a column, (N,);
    all in [-128, 127]. Uses the row sums of a and the column sums of b only. Raises ValueError for zero-points of another shape or
    range, and for K >= 33,025, from where on K * 255 * 255 would not fit into int32.

    >>> a, b = torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor([[3], [4]], dtype=torch.int8)
    >>> matmul(a, b) + zero_point_correction(a, b, 1, 2)     # (0, 1) times (1, 2)
    tensor([[2]], dtype=torch.int32)
    """
    k = a.shape[1]
    if k >= 33_025:
        raise ValueError(f"K is {k:,}, and must be below 33,025 with zero-points: from there on an int32 sum can overflow.")
    z_a, z_b = (_zero_point(name, z, size, a.device) for name, z, size in
                (("a_zero_point", a_zero_point, a.shape[0]), ("b_zero_point", b_zero_point, b.shape[1])))
    z_a = z_a[:, None] if z_a.ndim else z_a
    row_sums = a.sum(1, dtype=torch.int32)[:, None]       # (M, 1)
    column_sums = b.sum(0, dtype=torch.int32)             # (N,)
    return k * z_a * z_b - z_b * row_sums - z_a * column_sums


def _zero_point(name: str, value, size: int, device) -> torch.Tensor:
    z = as_tensor(value, device)
    if z.is_floating_point() or z.is_complex() or z.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {z.dtype}, and must be an integer.")
    if z.shape not in ((), (size,)):
        raise ValueError(f"{name} has shape {tuple(z.shape)}, and must be one number or have shape ({size},).")
    if z.numel() and (z.min() < -128 or z.max() > 127):
        raise ValueError(f"{name} goes from {z.min()} to {z.max()}, and must be from -128 to 127.")
    return z.to(torch.int32)


def epilogue(c: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None = None,
             zero_point: torch.Tensor | None = None, column_sums: torch.Tensor | None = None,
             relu: bool = False, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """From the integer product to real numbers, a step at a time; the kernel in `triton` fuses the same steps into the product.

        y = (c - zero_point[m] * column_sums[n]) * row_scale[m] * column_scale[n] + bias[n],   then ReLU, then out_dtype

    c: int32 (M, N); row_scale: float32 (M,) or (1,); column_scale: float32 (N,); bias: float (N,); zero_point: int32 (M,) or (1,);
    column_sums: int32 (N,), of the weights' codes. Computed in float32.

    >>> epilogue(torch.tensor([[8, -8]], dtype=torch.int32), torch.tensor([0.5]), torch.tensor([1.0, 0.25]), relu=True)
    tensor([[4., 0.]])
    """
    if zero_point is not None:
        c = c - zero_point[:, None] * column_sums
    y = c.float().mul_(row_scale[:, None]).mul_(column_scale)  # in place: fresh memory for each step takes longer than the step
    if bias is not None:
        y.add_(bias.float())
    return (y.relu_() if relu else y).to(out_dtype)
