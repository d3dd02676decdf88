"""What qlab.search is given beside a network: calibration images, what the network says of them, and their labels."""

from collections.abc import Callable

import torch

from qlab.errors import first_line
from qlab.nets.calibration import batches_of
from qlab.nets.soft_loss import check_labels
from qlab.quant.layout import as_integers


def logits_of(model: Callable, images: torch.Tensor) -> torch.Tensor:
    """The logits of all images, (n, classes), 128 images at a time; a module runs in the mode it is in. ValueError for what is not."""
    batches = batches_of(images)
    return torch.cat([logits_of_batch(model, batch, sum(map(len, batches))) for batch in batches])


def logits_of_batch(model: Callable, batch: torch.Tensor, n: int) -> torch.Tensor:
    """The logits of one batch of n images."""
    try:
        logits = model(batch)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"the network cannot take the calibration images, {batch.dtype} {(n, *batch.shape[1:])} "
                         f"({first_line(error)}).") from None
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else ()
    if len(shape) != 2 or shape[0] != len(batch):
        raise ValueError(f"the network returns {shape or type(logits).__name__} for {len(batch)} images, and must return logits, "
                         f"({len(batch)}, classes).")
    return logits


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The same logits. ValueError where they hold NaN or infinity: nothing that is computed from them would be true."""
    if not logits.isfinite().all():
        raise ValueError("the logits on the calibration images hold NaN or infinity, and must be finite.")
    return logits


def classes_of(labels, n: int, classes: int) -> torch.Tensor:
    """Labels of n images, integers of any kind, as a new int64 tensor (n,).

    Raises TypeError for what holds no integers, None among it; ValueError for another shape, or a label that is no class.

    >>> classes_of([0, 2], 2, 3)
    tensor([0, 2])
    """
    labels = as_integers(labels, "labels").long().clone()                                   # one of inference mode fits no gradient
    if labels.shape != (n,):
        raise ValueError(f"labels have the shape {tuple(labels.shape)}, and must be whole numbers, one for each of the {n} images.")
    check_labels(labels, n, classes)
    return labels
