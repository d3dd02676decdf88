"""ONNX Runtime's MatMulNBits (com.microsoft, version 1): packed weights multiplied as they are, on the CPU.

    accuracy_level 4      x is rounded to int8 as well, in blocks along K:   x = s_x q_x,   s_x = max |x in the block| / 127
                          y  =  sum over blocks of  s_x s_w sum over the block of q_x (q_w - z)                 products of integers
    accuracy_level 0      the weights are decoded in the cache, and multiplied in float32

It reads codes, scales and zero-points as `packed` lays them, and brings the codes into its own order when a session begins. A block
is a power of two from 16 to 256 (with 2 bits: 32 to 128, others are decoded, some hundred times slower); a group of another size is
several blocks with one scale. Zero-points are integers: of a real one it gets
the nearest, and what is left is a product of the sums of x over groups,

    sum over k of x (q - z) s  =  sum over k of x (q - r) s  +  sum over groups of (sum of x in the group) (r - z) s,      r = round(z).

No int8 stands for NaN or infinity: a row of x that holds one is NaN in level 4, where the operator itself would say some number.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from qlab.errors import first_line
from qlab.matmul import onnx_file, onnxruntime
from qlab.matmul.device import why_not_onnxruntime
from qlab.matmul.packed import PackedWeights, pack_rows

BLOCKS = {2: (128, 64, 32), 4: (256, 128, 64, 32, 16), 8: (256, 128, 64, 32, 16)}
LEVELS = (0, 4)


def why_not(bits: int, group_size: int, accuracy_level: int = 4, nbytes: int = 0) -> str:
    """Why ONNX Runtime cannot multiply such weights here, as a clause; "" if it can. nbytes: of all of them.

    >>> why_not(4, 32), why_not(4, 10)
    ('', 'ONNX Runtime takes 4-bit weights in groups of multiples of 16, not of 10')
    """
    if why := why_not_onnxruntime():
        return why
    if not block(bits, group_size):
        return f"ONNX Runtime takes {bits}-bit weights in groups of multiples of {BLOCKS[bits][-1]}, not of {group_size}"
    if nbytes > onnxruntime.MODEL_BYTES:
        return f"an ONNX file holds {onnxruntime.MODEL_BYTES / 1e9:.1f} GB of weights, and these are {nbytes / 1e9:.1f}"
    return why_not_exact(bits, accuracy_level)


def block(bits: int, group_size: int) -> int | None:
    """The block in which x is rounded for groups of this size; None if there is none.

    >>> block(4, 32), block(4, 96), block(2, 4096), block(4, 10)
    (32, 32, 128, None)
    """
    return next((size for size in BLOCKS[bits] if group_size % size == 0), None)


@lru_cache
def why_not_exact(bits: int, accuracy_level: int) -> str:
    """Why this ONNX Runtime cannot multiply codes of so many bits on this CPU, as a clause; "" if it can: tried once, by the largest sums.

    An older version lacks bits. A sum of 8-bit products in 16 bits, as there is on CPUs without VNNI, would not fit, and would show here.
    """
    codes = np.full((3, 2, 32 * bits // 8), 255, np.uint8)                                  # every code is 2**bits - 1, its zero-point 0
    x, w = np.full((2, 64), 127, np.float32), np.full((3, 64), 2**bits - 1, np.float32)
    try:
        y = _session(codes, np.ones((3, 2), np.float32), np.zeros((3, math.ceil(2 * bits / 8)), np.uint8), bits, 32, accuracy_level,
                     1).run(None, {"x": x})[0]
    except Exception as error:  # whatever it says, there are other backends
        return f"this ONNX Runtime does not multiply {bits}-bit weights ({first_line(error)})"
    return "" if np.array_equal(y, x @ w.T) else f"ONNX Runtime's sums of {bits}-bit weights overflow on this CPU at accuracy level 4"


def matmul(x: torch.Tensor, weights: PackedWeights, accuracy_level: int = 4) -> torch.Tensor:
    """float32 (M, K) by packed weights (N, K) to float32 (M, N), with as many threads as torch has; none of the sizes 0.

    Raises RuntimeError where ONNX Runtime cannot multiply these weights. The arguments are checked by `int4_matmul`.

    >>> from qlab.matmul.packed import pack_codes
    >>> matmul(torch.arange(32.0)[None], pack_codes(torch.full((1, 32), 9), torch.tensor([0.5])), accuracy_level=0)
    tensor([[248.]])
    """
    if why := why_not(weights.bits, weights.group_size, accuracy_level, weights.nbytes):
        raise RuntimeError(f"{why}: use backend='reference'{', or pip install onnxruntime' if why_not_onnxruntime() else ''}.")
    threads = torch.get_num_threads()
    session, rest = weights.made(f"onnxruntime {accuracy_level}", lambda: _pack(weights, accuracy_level, threads), threads)
    given, y = x.contiguous().numpy(), np.empty((len(x), weights.shape[0]), np.float32)
    onnxruntime.run(session, {"x": given}, y)
    if rest is not None:
        y += (x.reshape(len(x), -1, weights.group_size).sum(2) @ rest.T).numpy()
    if accuracy_level:
        y[~np.isfinite(given).all(1)] = math.nan  # by NumPy, in one thread: torch's go on looking for work for a while
    return torch.from_numpy(y)


def _pack(weights: PackedWeights, accuracy_level: int, threads: int):
    """A session that holds the weights, and what real zero-points leave, float32 (N, groups) or None."""
    size = block(weights.bits, weights.group_size)
    scale, zero_point, rest = weights.scale.float(), None, None
    if weights.zero_point is not None:
        real = weights.unpacked()[1]
        nearest = real.round().clamp(0, 2**weights.bits - 1)
        rest = (nearest - real) * scale if (nearest != real).any() else None
        zero_point = pack_rows(nearest.repeat_interleave(weights.group_size // size, 1), weights.bits).numpy()
    scale = scale.repeat_interleave(weights.group_size // size, 1)
    codes = weights.codes.reshape(*scale.shape, size * weights.bits // 8).numpy()
    return _session(codes, scale.numpy(), zero_point, weights.bits, size, accuracy_level, threads), rest


def _session(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, bits: int, block: int, accuracy_level: int, threads: int):
    operands = {"x": onnx_file.FLOAT, "codes": codes, "scale": scale} | ({} if zero_point is None else {"zero_point": zero_point})
    attributes = {"K": scale.shape[1] * block, "N": len(codes), "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    file = onnx_file.model("MatMulNBits", list(operands), operands, ("c", onnx_file.FLOAT), attributes, "com.microsoft")
    return onnxruntime.session(file, threads)
