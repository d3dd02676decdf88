"""What this machine has for INT8 products: what the door to them (`product`) and the kernels behind it ask."""

import importlib.util
import os
import shutil
from functools import lru_cache

import torch


@lru_cache  # asked at every product, and the answer does not change
def why_not_triton(device: str = "cuda") -> str:
    """Why Triton's compiled kernels cannot run on this device ("cpu", "cuda"), as a clause; "" if they can.

    >>> why_not_triton("cpu")
    'the operands are not on CUDA'
    """
    if device != "cuda":
        return "the operands are not on CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
        return "this GPU's compute capability is below 8.0, the least that Triton compiles for"
    if not any(map(shutil.which, [os.environ.get("CC") or "cc", "gcc", "clang"])):
        return "Triton needs a C compiler for its launcher and there is none: install gcc, or name yours in the variable CC"
    return ""


@lru_cache
def why_not_onnxruntime() -> str:
    """Why ONNX Runtime cannot compute here, as a clause; "" if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed"
    try:
        from onnxruntime import InferenceSession  # noqa: F401
    except Exception as error:  # whatever is wrong with it, there are other backends
        return f"ONNX Runtime cannot be imported ({type(error).__name__}: {error})"
    return ""


def why_torch_is_slow() -> str:
    """Why torch._int_mm does not reach the CPU's INT8 instructions here, as a clause; "" if it does.

    torch hands the product to oneDNN where the CPU has AVX-512 VNNI (every CPU with AMX has it too) and oneDNN is on. Elsewhere, also on
    ARM and where VNNI comes without AVX-512, it is three plain loops.
    """
    if not hasattr(torch, "_int_mm"):
        return "this torch has no torch._int_mm"
    if not _has_vnni():
        return "torch._int_mm is fast with AVX-512 VNNI only, which this CPU lacks"
    if not _onednn_is_on():
        return "torch._int_mm is fast with oneDNN only, which is off in this torch"
    if not onednn_is_exact():
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
        return f"oneDNN, limited to {limit or 'older instructions'}, adds products in 16 bits, where they do not fit"
    return ""


def onednn_is_exact() -> bool:
    """Whether torch._int_mm, as it is now, is exact on this CPU.

    With VNNI it is, and so are its plain loops. Where ONEDNN_MAX_CPU_ISA hides the VNNI that torch has seen, oneDNN takes vpmaddubsw.
    """
    return not (_has_vnni() and _onednn_is_on()) or _onednn_adds_in_32_bits()


@lru_cache
def _has_vnni() -> bool:
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _onednn_is_on() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


@lru_cache  # oneDNN reads its limit once
def _onednn_adds_in_32_bits() -> bool:
    a = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(a, a.T) == 64 * 127 * 127).all())
