"""INT8 and INT4 arithmetic: the exact product, packed weights, the layers that use them, and the roofline that says when it can pay.

    reference   three loops, the exact product, zero-points, the epilogue      what everything else is compared with
    cpu         torch._int_mm: oneDNN on the CPU, cuBLASLt on CUDA
    onnxruntime ONNX Runtime's product of unsigned bytes: fast without VNNI, too
    float32     products of floats, exact in chunks: fast everywhere
    triton      our own kernels, with the epilogue fused; without a GPU in Triton's interpreter
    device      what this machine has for them
    product     int8_matmul: one door to all of them
    layers      Int8Linear; swap: quantize_linears_, which puts it into a whole model
    packed      weights of 4 bits (2 and 8, too) in bytes, in groups with a scale each
    int4        int4_matmul: one door to products with them; int4_onnxruntime, int4_torch, int4_triton
    int4_layer  Int4Linear, pack_linears_
    onnx_file   what ONNX Runtime is given, written by hand
    roofline    what this machine can reach
    systolic    the array of a TPU, cycle by cycle; hdl: its processing element as hardware

How fast they are: python -m qlab.lab.matmul_bench, exactness first, then times.
"""

import importlib

from qlab.matmul.product import int8_matmul

__all__ = ["Int4Linear", "Int8Linear", "int4_matmul", "int8_matmul", "pack_linears_", "quantize_linears_"]


def __getattr__(name):
    page = {"Int8Linear": "layers", "quantize_linears_": "swap", "int4_matmul": "int4", "Int4Linear": "int4_layer",
            "pack_linears_": "int4_layer"}.get(name)
    if page:
        return getattr(importlib.import_module(f"qlab.matmul.{page}"), name)
    raise AttributeError(f"module 'qlab.matmul' has no attribute {name!r}")
