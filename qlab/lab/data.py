"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), in the package: 28 x 28 grey images of clothing in 10 classes.

    train        60,000 images
    test         10,000 images, for measuring accuracy and for nothing else
    calibration  a sample of the *training* images: what may be looked at to choose a quantization range

Pixels are normalised by the training images' mean and standard deviation: x = (pixel / 255 - MEAN) / STD.
"""

import gzip
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qlab.lab import shared
from qlab.translate import tr

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TRAIN = 60_000
MEAN, STD = 0.2860, 0.3530  # of the training images, on the scale 0 to 1
FOLDER = Path(__file__).parent / "fashion-mnist"
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


class Split(NamedTuple):
    """images: float32 (n, 1, 28, 28), normalised; labels: int64 (n,), 0 to 9, named by CLASSES."""

    images: torch.Tensor
    labels: torch.Tensor


def packaged(path: Path, sha256: str) -> bytes:
    """The content of a file of the package. Raises FileNotFoundError for a missing one, ValueError for another content than sha256 says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(tr("cannot read {path} ({reason}): reinstall qlab, or restore the file with git checkout.",
                                   path=path, reason=error.strerror)) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(tr("{path} is damaged ({count} bytes, wrong sha256): reinstall qlab, or restore the file with git checkout.",
                            path=path, count=len(content)))
    return content


@lru_cache(maxsize=8)
def _read(name: str, folder: Path) -> np.ndarray:
    packed = packaged(folder / name, SHA256[name])
    raw = gzip.decompress(packed)
    dims = raw[3]  # IDX: two zero bytes, the type (8: uint8), the number of dimensions, then each as a big-endian int32
    shape = np.frombuffer(raw, ">i4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


@lru_cache(maxsize=4)
def _load(split: str, folder: Path) -> Split:
    if folder == FOLDER and (mapped := shared.read(split)):  # of a class's server: one copy for all its kernels
        return Split(**mapped)
    prefix = {"train": "train", "test": "t10k"}[split]
    return _normalised(_read(f"{prefix}-images-idx3-ubyte.gz", folder), _read(f"{prefix}-labels-idx1-ubyte.gz", folder))


def _normalised(pixels: np.ndarray, labels: np.ndarray) -> Split:
    images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1)
    images.mul_(1 / (255 * STD)).sub_(MEAN / STD)
    return Split(images, torch.from_numpy(labels.astype(np.int64)))


def load(split: str) -> Split:
    """The "train" (60,000) or "test" (10,000) images and labels; kept in memory after the first call: do not change them in place.

    Raises ValueError for another split or a damaged file, FileNotFoundError for a missing one.

    >>> images, labels = load("test")
    >>> images.shape, CLASSES[labels[0]]
    (torch.Size([10000, 1, 28, 28]), 'Ankle boot')
    """
    if split not in ("train", "test"):
        raise ValueError(tr("split is {split!r}, and must be \"train\" or \"test\".", split=split))
    return _load(split, FOLDER)


def calibration(n: int = 1024, seed: int = 0) -> Split:
    """n training images in an order drawn from seed: data to choose ranges by. Never a test image.

    >>> calibration(256).images.shape
    torch.Size([256, 1, 28, 28])
    """
    if not 1 <= n <= TRAIN:
        raise ValueError(tr("n is {n}, and must be from 1 to {most}.", n=n, most=TRAIN))
    picked = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))[:n]
    if shared.there():
        return Split(*(tensor[picked] for tensor in load("train")))
    pixels, labels = _read("train-images-idx3-ubyte.gz", FOLDER), _read("train-labels-idx1-ubyte.gz", FOLDER)
    return _normalised(pixels[picked.numpy()], labels[picked.numpy()])  # of these alone: all 60,000 as floats take 188 MB
