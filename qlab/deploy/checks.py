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
from torch.nn.parameter import is_lazy

from qlab.errors import first_line
from qlab.nets import graph, ptq
from qlab.nets.calibration import batches_of
from qlab.nets.plain import plain_copy, refuse_hooks
from qlab.quant.layout import as_tensor


def float_network(model: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """A copy of the network in evaluation mode, which takes images of this shape and gives one tensor, (n, ...).

    Its batch norms are folded where qlab.nets.graph can read the network; any other is handed over as it is, for the runtime folds what it
    can. Raises TypeError for what is no module or is a scripted one; ValueError, by name, for weights that are not finite float32 numbers
    on the CPU, a forward hook, a batch norm without running statistics; for a shape that does not fit, several outputs, and a network that
    is random in evaluation, or whose result for an image depends on those beside it.

    >>> norms = [float_network(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), act), (4,))[1] for act in (nn.ReLU(), nn.PReLU())]
    >>> [type(norm).__name__ for norm in norms]
    ['Identity', 'BatchNorm1d']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a float torch.nn.Module: this runtime brings its own quantizer.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a scripted module (torch.jit), and must be the torch.nn.Module that it was made of.")
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in image_shape):
        raise ValueError(f"image_shape is {image_shape}, and must be whole numbers, 1 or more each.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"{name} has no values yet: run the network on an image first.")
        if tensor.is_floating_point() and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, and must be float32 on the CPU: model.float().cpu() is.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity, and must be finite everywhere.")
    refuse_hooks(model)
    network = ptq.fold_batch_norm(model) if readable(model) else plain_copy(model).eval()
    check_forward(network, torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)),
                  f"image_shape is {image_shape}, which the network cannot take")
    return network


def readable(model: nn.Module) -> bool:
    """Whether qlab.nets.graph can read the network."""
    try:
        graph.trace(model)
    except ValueError:
        return False
    return True


@torch.no_grad()
def check_forward(network: nn.Module, images: torch.Tensor, refusal: str) -> None:
    """ValueError, in one sentence, unless the network gives one tensor, image by image. refusal: how it begins if forward raises."""
    try:
        whole, again, one = (network(x.clone()) for x in (images, images, images[:1]))       # a network may write on them
    except Exception as error:  # noqa: BLE001 - a forward may raise anything
        raise ValueError(f"{refusal} ({first_line(error)}).") from None
    if not isinstance(whole, torch.Tensor):
        several = isinstance(whole, (tuple, list, dict)) and len(whole) > 1
        raise ValueError(f"the network returns {'several values' if several else f'a {type(whole).__name__}'}, and may return one tensor.")
    n = len(images)
    for found, count in ((whole, n), (one, 1)):
        if found.dim() < 2 or len(found) != count or not found.is_floating_point():
            raise ValueError(f"the network gives {found.dtype} of shape {tuple(found.shape)} for {count} image{'s' * (count > 1)}, and "
                             f"must give floats, ({count}, ...), of two dimensions or more.")
    for found, what in ((again, "the network gives other values when it is asked again: it is random in evaluation, too."),
                        (one, "what the network gives for an image depends on the images beside it, and must not.")):
        wanted = whole[:len(found)]
        if not torch.allclose(found, wanted, rtol=1e-2, atol=1e-3 * wanted.nan_to_num().abs().max().item() + 1e-9, equal_nan=True):
            raise ValueError(what)


def exported(network: nn.Module, image_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The network as torch.export reads it, for any number of images. Raises ValueError, in one sentence, for what it cannot read.

    >>> program = exported(nn.Sequential(nn.Linear(4, 2), nn.PReLU()).eval(), (4,))
    >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ['aten.linear.default', 'aten.prelu.default']
    """
    # The example is saved in a file, with all that it is a view of: no image of the calibration set, then.
    example, any_number = (torch.zeros(2, *image_shape),), ({0: torch.export.Dim("n")},)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # it prints the graph that it could not finish
            return torch.export.export(network, example, dynamic_shapes=any_number)
    except Exception as error:  # noqa: BLE001 - a forward may raise anything, and so may its reader
        said = first_line(error)
        if "onstraint" in said or "specializ" in said.lower():
            raise ValueError("the network cannot be exported for any number of images: its forward decides by their number.") from None
        if "data-dependent" in said:
            raise ValueError("torch.export cannot read the network: its forward decides by the values of the images.") from None
        raise ValueError(f"torch.export cannot read the network ({said}).") from None


def calibration_batches(calibration, image_shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Batches of calibration images, checked. Raises ValueError for none, for NaN, or for images of another shape."""
    if calibration is None:
        raise ValueError("there are no calibration images, and activations cannot be given a range without any: a few hundred are enough.")
    return [as_images(batch, image_shape, name="the calibration images") for batch in batches_of(calibration)]


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
