"""Figures are drawn into memory, never into a window; hypothesis does not time its examples, for shared machines are slow at times;
without a GPU Triton is its interpreter, whichever test imports it first."""

import os

import matplotlib
import torch
from hypothesis import settings

matplotlib.use("agg")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if not os.environ.get("CI"):  # there hypothesis has a profile of its own: the same examples each time, and no deadline either
    settings.register_profile("qlab", deadline=None)
    settings.load_profile("qlab")
