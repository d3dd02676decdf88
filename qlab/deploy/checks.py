"""What stands at the door of a runtime that takes floats: a float network going in, float images going through, no chatter coming out."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from qlab.nets import ptq
from qlab.quant.layout import as_tensor


def float_network(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """The network with its batch norms folded, in evaluation mode, as a copy; it takes images of this shape, and gives (n, classes).

    Raises TypeError for what is no module, ValueError for a layer that qlab.nets.graph refuses, by name, for weights that are not finite
    float32 numbers on the CPU, or for a shape that does not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a float torch.nn.Module: this runtime brings its own quantizer.")
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in image_shape):
        raise ValueError(f"image_shape is {image_shape}, and must be whole numbers, 1 or more each.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, and must be float32 on the CPU: model.float().cpu() is.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity, and must be finite everywhere.")
    folded = ptq.fold_batch_norm(model)
    example = torch.zeros(2, *image_shape)
    try:
        with torch.no_grad():
            logits = folded(example)
    except (RuntimeError, IndexError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"image_shape is {image_shape}, which the network cannot take ({said}).") from None
    if logits.dim() != 2 or len(logits) != 2:
        raise ValueError(f"the network gives {tuple(logits.shape)} for two images, and must give (2, classes).")
    return folded


def calibration_batches(calibration, image_shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Batches of calibration images, checked. Raises ValueError for none, for NaN, or for images of another shape."""
    if calibration is None:
        raise ValueError("there are no calibration images, and activations cannot be given a range without any: a few hundred are enough.")
    return [as_images(batch, image_shape, name="the calibration images") for batch in ptq.batches_of(calibration)]


def as_images(x, shape: tuple[int, ...], batch: int | None = None, name: str = "images") -> torch.Tensor:
    """float32 images (n, *shape), from a tensor, an array or lists; batch: the only n there may be. name: for messages.

    Raises TypeError for integers, ValueError for another shape, for NaN and infinity.

    >>> as_images([[0.0, 1.0]], shape=(2,)).shape
    torch.Size([1, 2])
    """
    x = as_tensor(x)
    if not x.is_floating_point():
        raise TypeError(f"{name} are {x.dtype}, and must be floating point: this file does its own encoding.")
    if x.shape[1:] != shape or x.dim() == 0 or len(x) == 0 or batch not in (None, len(x)):
        wanted = ", ".join(str(size) for size in (batch or "n", *shape))
        raise ValueError(f"{name} have shape {tuple(x.shape)}, and must have ({wanted}).")
    return finite(x.detach().to("cpu", torch.float32), name)


def finite(x: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor, or ValueError where it holds NaN or infinity: an integer has no code for either."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} hold NaN or infinity, and must be finite.")
    return x


def read(path: str | os.PathLike) -> bytes:
    """The file's bytes. Raises FileNotFoundError in one sentence."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): write it with export first.") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines, nothing on stdout while somebody else's converter works. An error still comes through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
