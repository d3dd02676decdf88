"""torch._weight_int4pack_mm_for_cpu: PyTorch's own product with 4-bit weights, in bfloat16.

    w[n, k]  =  scale[g, n] (code[n, k] - 8) + zero[g, n],        zero  =  scale (8 - zero_point)

It wants N in multiples of 16, groups of 32, 64, 128 or 256, and codes in an order of its own, which depends on the CPU. With float32
activations the same operation is slower than float32 weights; with bfloat16 it is fast.

Its name starts with an underscore, so torch may change it: this is the one place of qlab that knows it.
"""

import torch
from torch.nn.functional import pad

from qlab.matmul.packed import PackedWeights

GROUPS = (256, 128, 64, 32)


def why_not(bits: int, group_size: int) -> str:
    """Why torch cannot multiply such weights, as a clause; "" if it can.

    >>> why_not(4, 32), why_not(2, 32)
    ('', 'torch multiplies packed weights of 4 bits, not of 2')
    """
    if not hasattr(torch, "_weight_int4pack_mm_for_cpu"):
        return "this torch has no torch._weight_int4pack_mm_for_cpu"
    if bits != 4:
        return f"torch multiplies packed weights of 4 bits, not of {bits}"
    return "" if _group(group_size) else f"torch takes groups of multiples of 32, not of {group_size}"


def matmul(x: torch.Tensor, weights: PackedWeights) -> torch.Tensor:
    """Floats (M, K) by packed weights (N, K) to bfloat16 (M, N) on the CPU; none of the sizes 0.

    With A[n, k] = scale (|code - 8| + |8 - zero_point|) the result is off by 2**-7 sum over k of |x[m, k]| A[n, k] at most: x, scale, zero,
    weight and result are each rounded to 8 bits. Raises RuntimeError where torch cannot multiply these weights.

    >>> from qlab.matmul.packed import pack_codes
    >>> matmul(torch.arange(32.0)[None], pack_codes(torch.full((1, 32), 9), torch.tensor([0.5])))     # 496 * (9 - 8) * 0.5
    tensor([[248.]], dtype=torch.bfloat16)
    """
    if why := why_not(weights.bits, weights.group_size):
        raise RuntimeError(f"{why}: use backend='reference'.")
    codes, parameters, group = weights.made("torch", lambda: _pack(weights))
    return torch._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16).contiguous(), codes, group, parameters)[:, :weights.shape[0]]


def _pack(weights: PackedWeights) -> tuple[torch.Tensor, torch.Tensor, int]:
    group, more = _group(weights.group_size), -weights.shape[0] % 16
    codes, zero_point = weights.unpacked()
    scale = weights.scale.float()
    parameters = torch.stack((scale, scale * (8 - zero_point)), 2)                          # (N, groups, 2)
    parameters = pad(parameters.repeat_interleave(weights.group_size // group, 1), (0, 0, 0, 0, 0, more))
    codes = torch._convert_weight_to_int4pack_for_cpu(pad(codes.int(), (0, 0, 0, more)), 1)
    return codes, parameters.transpose(0, 1).to(torch.bfloat16).contiguous(), group


def _group(group_size: int) -> int | None:
    return next((group for group in GROUPS if group_size % group == 0), None)
