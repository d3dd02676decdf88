"""Compiles the kernels of qlab.matmul.triton for GPUs that need not be there, and prints what the machine code uses, as JSON lines.

Run by test_triton.py in a process of its own, for Triton is either its interpreter or its compiler. No kernel is launched.
"""

import json
import os
import re

import torch

if __name__ == "__main__":  # not when pytest collects this file
    os.environ["TRITON_INTERPRET"] = "0"
    torch.cuda.is_available = lambda: True

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from qlab.matmul import int4_triton  # noqa: E402
from qlab.matmul import triton as kernels  # noqa: E402


def compiled(kernel, types: dict, constants: dict, capability: int, **options) -> dict:
    """The PTX of a kernel: types by argument, the rest int32 and divisible by 16; constants by argument."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*" or signature[name] == "i32"}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    instructions = re.findall(r"wgmma\.mma_async[\w.]*|mma\.sync[\w.]*|cp\.async\.bulk\.tensor|cp\.async\.cg", made.asm["ptx"])
    return {"kernel": kernel.__name__, "capability": capability, "shared": made.metadata.shared, "instructions": sorted(set(instructions)),
            "keeps_nan": "max.NaN.f32" in made.asm["ptx"]}


def product(capability: int, descriptors: bool, config: triton.Config, fused: bool = True) -> dict:
    tile = config.kwargs
    types = {"a": "*i8", "b": "*i8", "out": "*bf16" if fused else "*i32"}
    if descriptors:
        types |= {name: f"tensordesc<i8[{tile[block]}, {tile['BLOCK_K']}]>" for name, block in (("a", "BLOCK_M"), ("b", "BLOCK_N"))}
    constants = {"K": 4096, "M_BUCKET": 4096, "a_inner": 1, "b_inner": 1, "RELU": fused, "DESCRIPTORS": descriptors, **tile}
    epilogue = {"row_scale": "*fp32", "column_scale": "*fp32", "zero_point": "*i32", "column_sums": "*i32", "bias": "*bf16"}
    for name, kind in epilogue.items():
        (types if fused else constants)[name] = kind if fused else None
    row = compiled(kernels.product_kernel, types, constants, capability, num_warps=config.num_warps, num_stages=config.num_stages)
    return row | {"descriptors": descriptors, "fused": fused}


def packed_weights(capability: int, config: triton.Config, bits: int, group_bytes: int, zero_point: str | None, x: str) -> dict:
    types = {"x": x, "codes": "*u8", "scale": "*fp16", "out": x} | ({"zero_point": zero_point} if zero_point else {})
    constants = {"M_BUCKET": 1, "GROUPS": 4096 * bits // 8 // group_bytes, "GROUP_BYTES": group_bytes, "BITS": bits,
                 "REAL_ZEROS": zero_point == "*fp16", "BLOCK_BYTES": min(max(group_bytes, 16), 64), **config.kwargs}
    constants |= {} if zero_point else {"zero_point": None}
    return compiled(int4_triton._packed.fn, types, constants, capability, num_warps=config.num_warps, num_stages=config.num_stages)


if __name__ == "__main__":
    kernels.product_kernel = kernels._product.fn
    large, small = kernels.TILES[0], kernels.TILES[-1]
    rows = [product(90, True, large), product(90, True, large, fused=False), product(90, False, large),
            product(80, False, large), product(80, False, small)]
    weights = {"x": "*bf16", "w": "*i8", "out": "*bf16", "column_scale": "*fp32", "bias": "*bf16"}
    tile = {"K": 4096, "M_BUCKET": 1, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 256}
    rows.append(compiled(kernels._weight_only.fn, weights, tile, 80, num_stages=4))
    tokens = {"x": "*bf16", "codes": "*i8", "scales": "*fp32"}
    rows.append(compiled(kernels.quantize_rows_kernel, tokens, {"K": 4096, "BLOCK": 4096}, 80, num_warps=8))
    for capability, tile, bits, group_bytes, zero_point, x in (  # one token in groups of 32 codes, then many
            (80, 1, 4, 16, None, "*bf16"), (90, 1, 4, 16, "*u8", "*bf16"), (90, -1, 2, 64, "*u8", "*fp16"),
            (80, -1, 8, 64, "*fp16", "*bf16")):
        rows.append(packed_weights(capability, int4_triton.TILES[tile], bits, group_bytes, zero_point, x))
    for row in rows:
        print(json.dumps(row))
