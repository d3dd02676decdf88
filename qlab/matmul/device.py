"""Where Triton's compiled kernels can run: what the door to the products (`product`) and the kernels themselves (`triton`) both ask."""

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
