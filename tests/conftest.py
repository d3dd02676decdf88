"""Figures are drawn into memory, never into a window; hypothesis does not time its examples, for shared machines are slow at times."""

import os

import matplotlib
from hypothesis import settings

matplotlib.use("agg")
if not os.environ.get("CI"):  # there hypothesis has a profile of its own: the same examples each time, and no deadline either
    settings.register_profile("qlab", deadline=None)
    settings.load_profile("qlab")
