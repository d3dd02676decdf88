"""A network within a budget: what `qlab auto` does.

    qlab auto depthwise --budget 36KB                                                   a network of the zoo, on images of the training set
    qlab auto my_module:make_model --calibration images.npy --labels labels.npy --max-drop 0.5                                one's own

One's own network and its images are read as `qlab export` reads them (qlab.lab.exporting).
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from qlab.deploy.images import images_for
from qlab.lab import data, exporting, zoo
from qlab.lab.measure import accuracy, mcnemar
from qlab.search.auto import Found


def of_the_zoo(name: str, images: int) -> tuple[nn.Module, data.Split]:
    """The network, and so many training images with their labels. ValueError for another name, or a number that is not there."""
    return zoo.load(name), data.calibration(images)


def own(model: str, calibration: str, labels: str | None = None, weights: str | None = None):
    """The network, and its images, or images and labels, each of one file.

    Raises ValueError, TypeError, OSError or ImportError, in one sentence, for what cannot be read or does not fit.
    """
    network = exporting.make(model)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{model} is a {type(network).__name__}, and must be a torch.nn.Module in floating point.")
    if weights is not None:
        exporting.load_weights(network, weights)
    images = images_for(network.eval(), _one_array(calibration, "images"), [])
    return network, images if labels is None else (images, _one_array(labels, "labels"))


def _one_array(path: str, what: str) -> np.ndarray | torch.Tensor:
    found = None if Path(path).is_dir() else exporting.images(path)
    if not isinstance(found, (np.ndarray, torch.Tensor)):
        raise ValueError(f"the {what} are {path}, and must be one array in a .npy, .npz or .pt file.")
    return found


def check_place(path: str) -> None:
    """OSError for a file that could not be written at the end, before anything takes time."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder, and must be a file, or nothing yet.")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {Path(path).parent}.")


def last_word(model: nn.Module, found: Found) -> str:
    """What test images say, which nothing was chosen by: both accuracies, and a paired test."""
    test = data.load("test")
    before, after = accuracy(model, test), accuracy(found.quantized.model, test)
    return f"On the {after.n:,} test images A, the float network, has {before}; B, the quantized one, {after}; {mcnemar(before, after)}."
