"""Calibration images as people have them: a tensor, an array, a DataLoader of images and labels, a Dataset, a list, a generator.

What is wrong with them is said in one sentence, and what they look like: the usual mistakes are pixels of 0 to 255, channels that come
last, a missing dimension. Whether images fit, the network itself is asked.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch

from qlab.deploy import checks
from qlab.quant.layout import FLOATS, as_tensor

FIRST = 1024                                                                                # read where batches come one by one


def images_for(network: Callable, calibration, notes: list[str]) -> torch.Tensor:
    """float32 images (n, ...) on the CPU, as the network takes them.

    calibration: a tensor, an array, a pair (images, labels); or a DataLoader, Dataset, list or generator of images, of batches, or of pairs
    of these with labels, of which the first FIRST images are read. notes get what was left out. Raises TypeError for what holds no floats,
    ValueError for none, NaN, several shapes, what breaks while it is read, or images that the network cannot take, with what they look
    like.

    >>> notes = []
    >>> images_for(torch.nn.Linear(4, 2), [(torch.rand(5, 4), torch.zeros(5)), (torch.rand(3, 4), torch.zeros(3))], notes).shape, notes
    (torch.Size([8, 4]), ['labels left out'])
    """
    parts, whole = _parts(calibration, notes)
    parts = [_floats(part) for part in parts]
    if not sum(map(len, parts)):
        raise ValueError("there are no calibration images, and activations cannot be given a range without any: a few hundred are enough.")
    parts = [part for part in parts if len(part)]
    if len(shapes := {tuple(part.shape[1:]) for part in parts}) > 1:
        raise ValueError(f"the calibration images have the shapes {' and '.join(map(str, sorted(shapes)[:3]))}, and must have one.")
    if not whole and len({part.shape for part in parts}) == 1 and not _taken(network, parts[0]) and _taken(network, torch.stack(parts[:2])):
        return torch.stack(parts)                                                           # they came image by image
    images = torch.cat(parts)
    refusal = f"the network cannot take the calibration images, of shape {tuple(images.shape)}"
    try:
        checks.check_forward(network, images[:2], refusal)
    except ValueError as error:
        hint = _hint(network, images) if str(error).startswith(refusal) else ""
        raise ValueError(str(error).removesuffix(".") + hint + ".") from None
    return images


def _taken(network: Callable, images: torch.Tensor) -> bool:
    try:
        checks.check_forward(network, images[:2], "")
    except ValueError:
        return False
    return True


def _hint(network: Callable, images: torch.Tensor) -> str:
    """What else the images might be, if the network takes them so."""
    if images.dim() == 4 and _taken(network, images[:2].movedim(-1, 1)):
        return ": the channels come last, and must come before the rows (images.movedim(-1, 1))"
    if images.dim() > 1 and _taken(network, images[:2].unsqueeze(1)):
        return ": they lack the dimension of the channels (images[:, None])"
    if _taken(network, images[None]):
        return ": it is one image, and must be a batch (images[None])"
    return ""


def _parts(calibration, notes: list[str]) -> tuple[list, bool]:
    """Tensors or arrays of images, without labels; whether they were given as one."""
    if calibration is None:
        raise ValueError("there are no calibration images, and activations cannot be given a range without any: a few hundred are enough.")
    if _is_array(calibration):
        return [calibration], True
    if _is_pair(calibration):
        notes.append("labels left out")
        return [calibration[0]], True
    if isinstance(calibration, (str, os.PathLike, dict)) or not (isinstance(calibration, Iterable) or hasattr(calibration, "__getitem__")):
        what = f"the path {calibration}" if isinstance(calibration, (str, os.PathLike)) else f"a {type(calibration).__name__}"
        raise TypeError(f"calibration is {what}, and must be images: a tensor or an array (n, ...), or batches of them.")
    parts, count, labels, left = [], 0, False, False
    for batch in _read(calibration):
        if count >= FIRST:
            left = True
            break
        if isinstance(batch, (tuple, list)) and batch and _is_array(batch[0]):
            labels |= len(batch) > 1
            batch = batch[0]
        if not _is_array(batch):
            named = [key for key, value in batch.items() if _is_array(value) and value.ndim > 1] if isinstance(batch, Mapping) else []
            raise TypeError(f"calibration holds a {type(batch).__name__}, and must hold images: tensors or arrays, alone or before their "
                            "labels" + (f", such as (batch[{named[0]!r}] for batch in ...)." if named else "."))
        parts.append(batch)
        count += len(batch) if np.ndim(batch) else 1
    notes += ["labels left out"] * labels + [f"calibrated with the first {count:,} images"] * left
    return parts, False


def _read(calibration) -> Iterator:
    """What it holds, one by one. Whatever somebody's Dataset or generator raises, as a ValueError of one sentence."""
    try:
        yield from calibration if hasattr(calibration, "__iter__") else (calibration[i] for i in range(len(calibration)))
    except Exception as error:  # noqa: BLE001
        said = str(error).strip().splitlines()[-1] if "DataLoader worker" in str(error) else checks.first_line(error)
        raise ValueError(f"calibration cannot be read to its end ({type(error).__name__}: {said.rstrip('.')}).") from error


def _is_array(x) -> bool:
    return isinstance(x, (torch.Tensor, np.ndarray))


def _is_pair(x) -> bool:
    """Images and labels: as many labels as images, and of fewer dimensions."""
    if not (isinstance(x, (tuple, list)) and len(x) == 2 and all(map(_is_array, x))):
        return False
    images, labels = x
    return 0 < labels.ndim < images.ndim and len(images) == len(labels)


def _floats(part) -> torch.Tensor:
    if getattr(part, "is_nested", False):
        raise TypeError("the calibration images are a nested tensor, and must be one tensor (n, ...), or a list of batches.")
    part = as_tensor(part, "calibration")
    if part.dtype not in FLOATS or part.dim() == 0:
        raise TypeError(f"the calibration images are {part.dtype} of shape {tuple(part.shape)}, and must be floats (n, ...), scaled as "
                        "those that the network was trained on (images.float() / 255, where that is from 0 to 1).")
    if part.is_meta:
        raise ValueError("the calibration images are on the meta device, and have no values.")
    return checks.finite(part.to("cpu", torch.float32).clone(), "the calibration images")
