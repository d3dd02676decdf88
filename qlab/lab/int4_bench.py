"""How fast are products with packed weights here? Each backend and level, 4, 2 and 8 bits, beside float32 and bfloat16 in the same run.

Part of `qlab bench`. One token through a layer of 4096 x 4096 waits for its weights, so fewer bytes are less time; 512 tokens wait for
the arithmetic, and packed weights have to be fast there, too.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from qlab.lab import matmul_bench
from qlab.matmul import int4, int4_onnxruntime, int4_torch, packed
from qlab.matmul.int4_layer import Int4Linear

SHAPES = ((1, 4096, 4096), (512, 4096, 4096))  # (M, K, N)
GROUP = 32
FLOAT32 = "float32"


def contenders(m: int, k: int, n: int) -> dict[str, Callable]:
    """name: a function that makes operands of x (m, k) and weights (n, k) and returns a call on them."""
    def floats(dtype):
        def make():
            x, w = (torch.randn(*shape).to(dtype) for shape in ((m, k), (n, k)))
            return lambda: F.linear(x, w)
        return make

    def weights(bits):
        codes, scale = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8), torch.rand(n, k // GROUP).half()
        return packed.pack_codes(codes, scale, bits=bits)

    def product(bits, backend, level=4, dtype=torch.float32):
        def make():
            x, w = torch.randn(m, k).to(dtype), weights(bits)
            return lambda: int4.int4_matmul(x, w, backend, level)
        return make

    def layer():
        x, packed_layer = torch.randn(m, k), Int4Linear(weights(4), nn.Linear(1, n).bias.detach())
        return lambda: packed_layer(x)

    found = {FLOAT32: floats(torch.float32), "bfloat16": floats(torch.bfloat16), "Int4Linear": layer}
    for bits in packed.BITS:
        for level in int4_onnxruntime.LEVELS:
            if not int4_onnxruntime.why_not(bits, GROUP, level) and (m == 1 or bits == 4 or level == 4):  # minutes, with more rows
                found[f"{bits} bits, onnxruntime, level {level}"] = product(bits, "onnxruntime", level)
    if not int4_torch.why_not(4, GROUP):
        found["4 bits, torch, bfloat16"] = product(4, "torch", dtype=torch.bfloat16)
    return found | {"4 bits, unpacked in torch, then float32": product(4, "reference")}


def measure(shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> dict[tuple, float]:
    """{(m, k, n, threads, name): median ms}, with one thread and with all."""
    times, everything = {}, torch.get_num_threads()
    try:
        for threads in sorted({1, everything}):
            torch.set_num_threads(threads)
            for shape in shapes:
                calls = {name: [make() for _ in range(2)] for name, make in contenders(*shape).items()}
                times |= {(*shape, threads, name): ms for name, ms in matmul_bench.time_cpu(calls).items()}
    finally:
        torch.set_num_threads(everything)
    return times
