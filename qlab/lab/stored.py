"""Whether the still of a live figure that is made again is the one that a page has stored."""

import io

import numpy as np
from PIL import Image

ALIKE = 0.99  # share of pixels: another processor may draw a line a pixel higher


def alike(one: bytes, other: bytes) -> bool:
    """Whether two PNGs show the same.

    >>> from qlab.lab import widgets
    >>> low, high = (widgets.Live(widgets.figure(2, height)[0], lambda: "one").still() for height in (1, 1.2))
    >>> alike(low, low), alike(low, high)
    (True, False)
    """
    one, other = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (one, other))
    return one.shape == other.shape and bool((one == other).all(2).mean() > ALIKE)
