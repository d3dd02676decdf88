"""The challenge's hidden images: test images, moved, paler and noisy, each in a way that a seed draws. They are in no package.

    moved       by up to 2 or 3 pixels each way
    contrast    a factor from 1 down to 0.95, 0.9 or 0.85
    noise       Gaussian, of at most 0.02, 0.03 or 0.04 where black is 0 and white 1

The seed draws the three limits, then for each image where between none and the limit it lies, and the noise itself. Who does not know the
seed knows the test images, but not these: a table of them with their labels finds none of them again.

Among them lie images made in the same way from training images, the control: no network that is honestly made knows more about test images
than about those that it was trained on. What is better on the first has learned their labels.
"""

import hashlib
from typing import NamedTuple

import torch

from qlab.lab import data
from qlab.lab.judge import shifts

TEST, CONTROL = 5000, 2500


class Hidden(NamedTuple):
    """pixels: uint8 (n, 1, 28, 28); labels: int64 (n,); from_test: bool (n,), False for the control."""

    pixels: torch.Tensor
    labels: torch.Tensor
    from_test: torch.Tensor


def make(seed: str, test: int = TEST, control: int = CONTROL) -> Hidden:
    """So many images of each kind, mixed; the same for the same seed on every machine. Raises ValueError for more than there are.

    >>> made = make("practice", test=0, control=3)                          # to practise on: no test image is in it
    >>> made.pixels.shape, made.from_test
    (torch.Size([3, 1, 28, 28]), tensor([False, False, False]))
    """
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))
    far, pale, loud = torch.randint(3, (3,), generator=generator).tolist()
    every, n = data.load("test"), test + control
    if not (0 <= test <= len(every.labels) and 0 <= control and n):
        raise ValueError(f"test is {test} and control {control}, and must be at least one image, at most {len(every.labels)} of test.")
    of_test = torch.randperm(len(every.labels), generator=generator)[:test]
    drawn = int(torch.randint(2**31, (), generator=generator))
    others = data.calibration(control, drawn) if control else data.Split(*(tensor[:0] for tensor in every))
    mixed = torch.randperm(n, generator=generator)
    images, labels = (torch.cat([own[of_test], other])[mixed] for own, other in zip(every, others))
    pixels = _changed(images * data.STD + data.MEAN, generator, 2 + far // 2, (0.95, 0.9, 0.85)[pale], (0.02, 0.03, 0.04)[loud])
    return Hidden(pixels, labels, mixed < test)


def _changed(pixels: torch.Tensor, generator: torch.Generator, reach: int, palest: float, loudest: float) -> torch.Tensor:
    n = len(pixels)
    down, right = torch.randint(-reach, reach + 1, (2, n), generator=generator)
    factor, sigma = (torch.rand(n, 1, 1, 1, generator=generator) for _ in range(2))
    moved = shifts.contrast(shifts.translate(pixels, down, right), 1 - (1 - palest) * factor)
    noisy = moved + loudest * sigma * torch.randn(moved.shape, generator=generator)
    return (255 * noisy.clamp(0, 1)).round().to(torch.uint8)
