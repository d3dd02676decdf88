"""Knowledge distillation: a small network, the student, is trained on what a large one, the teacher, says (Hinton et al. 2015).

    distill      on the teacher's soft labels (qlab.nets.soft_loss has the loss), live or from its logits, computed once
    fit_hints    first, on what the teacher computes half-way (Romero et al. 2015)
    best_bias    afterwards, for a class that the student never saw

The teacher's logits and features are computed without gradients; the training is qlab.nets.training.fit.
"""

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import nn
from torch.nn.functional import mse_loss

from qlab.nets.soft_loss import check_labels, check_logits, check_loss, distillation_loss
from qlab.nets.training import fit


def teacher_logits(teacher: nn.Module, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """The teacher's logits of all images, (n, classes), without gradients: compute them once, and every student learns from them.

    teacher: in evaluation mode, no parameter requiring a gradient; images: (n, ...) on its device.
    Raises ValueError for no images, or for a teacher that is in training mode or has parameters that require gradients.

    >>> teacher_logits(nn.Linear(4, 3).eval().requires_grad_(False), torch.zeros(10, 4)).shape
    torch.Size([10, 3])
    """
    _check_teacher(teacher)
    if len(images) == 0:
        raise ValueError("there are no images: give at least one.")
    with torch.no_grad():
        return torch.cat([_asked(teacher, x) for x in images.split(batch_size)])


def distill(student: nn.Module, teacher: nn.Module | torch.Tensor, images: torch.Tensor, labels: torch.Tensor | None, epochs: int,
            max_lr: float, *, temperature: float = 4.0, alpha: float = 0.9, seed: int = 0,
            augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None, name: str = "distillation",
            **options) -> list[float]:
    """Train the student in place on the distillation loss; return the mean loss of each epoch. It is left in evaluation mode.

    teacher: the network, in evaluation mode and without gradients, which then sees every batch as the student does (live); or a tensor
    (n, classes), its logits of the images in their order (cached; not with augment, which changes the images).
    images, epochs, max_lr, seed, augment and the other options are those of qlab.nets.training.fit, labels too, but they may be None
    where alpha is 1: a teacher can label images that nobody has. alpha = 0 gives the weights of fit without a teacher, bit for bit.

    Raises ValueError as distillation_loss, teacher_logits and fit do, for cached logits of another number of images, or with augment.

    >>> student, x = nn.Linear(4, 3), torch.randn(64, 4)
    >>> len(distill(student, nn.Linear(4, 3).eval().requires_grad_(False), x, None, epochs=2, max_lr=0.1, alpha=1.0))
    2
    """
    check_loss(temperature, alpha, labels)
    cached = isinstance(teacher, torch.Tensor)
    if not cached:
        _check_teacher(teacher)
    elif augment is not None:
        raise ValueError("the teacher is given as cached logits, and augment would change the images that they belong to: "
                         "give the teacher itself, or no augment.")
    for what, tensor in (("labels", labels), ("cached logits", teacher if cached else None)):
        if tensor is not None and len(tensor) != len(images):
            raise ValueError(f"there are {len(images)} images and {len(tensor)} {what}: they must be as many.")

    def loss(student: nn.Module, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            v = teacher[index] if cached else teacher(x)
        z = student(x)
        if alpha < 1:  # all of them, not the batch's alone: before a first step is taken
            check_labels(labels, len(images), z.shape[-1])
        return distillation_loss(z, v, None if labels is None else labels[index], temperature, alpha)

    index = torch.arange(len(images), device=images.device)  # fit hands each batch the numbers of its images in place of labels
    return fit(student, images, index, epochs, max_lr, seed=seed, augment=augment, loss=loss, name=name, **options)


class _Reached(Exception):
    pass


def features(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What the layer of that name puts out for x. The model stops there: what lies behind it is not computed, nor its batch norm updated.

    Raises ValueError for a name the model does not have, or a layer that is not called.

    >>> features(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "1", torch.zeros(2, 4)).shape
    torch.Size([2, 8])
    """
    layers = dict(model.named_modules())
    if layer not in layers:
        raise ValueError(f"layer is {layer!r}, and must be one of {', '.join(name for name in layers if name)}.")

    def stop(module, args, output):
        raise _Reached(output)

    hook = layers[layer].register_forward_hook(stop)
    try:
        model(x)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise ValueError(f"layer {layer!r} is not called when the model computes its output.")


def fit_hints(student: nn.Module, teacher: nn.Module, images: torch.Tensor, guided: str, hint: str, epochs: int, max_lr: float, *,
              seed: int = 0, name: str = "hints", **options) -> list[float]:
    """FitNets' first stage (Romero et al. 2015, eq. 3): the student's features at `guided` learn to predict the teacher's at `hint`.

        1/2 |u - r(v)|^2        u the teacher's features, v the student's, r a regressor that is thrown away afterwards

    The square is averaged over the features, not summed, so that max_lr does not depend on their number. r is a 1 x 1 convolution for
    maps (n, channels, h, w), a linear layer for (n, features). The student is trained in place up to the guided layer; what lies
    behind it is not touched. Then call distill, the second stage. Returns the mean loss of each epoch; options are those of fit.

    Raises ValueError as features, teacher_logits and fit do, and for maps of different height or width.

    >>> student, teacher = (nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)) for width in (8, 32))
    >>> len(fit_hints(student, teacher.eval().requires_grad_(False), torch.randn(64, 4), "1", "1", epochs=2, max_lr=0.1))
    2
    """
    _check_teacher(teacher)
    if len(images) == 0:
        raise ValueError("there are no images: give at least one.")
    with torch.no_grad():  # a look at the shapes, in evaluation mode so that no batch norm counts it; fit then sets training mode
        u, v = features(teacher, hint, images[:1]), features(student.eval(), guided, images[:1])
    if u.ndim != v.ndim or u.ndim not in (2, 4) or u.shape[2:] != v.shape[2:]:
        raise ValueError(f"{guided} gives {tuple(v.shape[1:])} an image and {hint} {tuple(u.shape[1:])}: both must be (channels, h, w) "
                         "of the same h and w, or both (features,).")
    torch.manual_seed(seed)
    r = (nn.Linear(v.shape[1], u.shape[1]) if u.ndim == 2 else nn.Conv2d(v.shape[1], u.shape[1], 1)).to(images.device)

    def loss(student: nn.Module, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            u = features(teacher, hint, x)
        return mse_loss(r(features(student, guided, x)), u) / 2

    trained = [*(p for p in student.parameters() if p.requires_grad), *r.parameters()]
    index = torch.arange(len(images), device=images.device)  # nobody reads it: a hint needs no label
    return fit(student, images, index, epochs, max_lr, seed=seed, loss=loss, parameters=trained, name=name, **options)


def best_bias(logits: torch.Tensor, labels: torch.Tensor, missing: int) -> float:
    """What to add to the logit of the class missing from the transfer set, for the most right answers on these images.

    A student that never saw a class learns that it is rare, and its bias comes out too low (Hinton et al. 2015, section 3). An image
    is given to the class once the bias passes d = (largest other logit) - (its logit): so the number of right answers changes only at
    the d of each image, and the best interval between two of them is found exactly. Its middle is returned, of several equal ones that
    nearest to 0. logits: (n, classes); labels: int64 (n,), of held-out images, never the test set's.

    Raises ValueError if logits are not (n, classes) with n labels and two classes or more, or hold NaN, +infinity or a row of -infinity
    alone (a masked class is -infinity), or missing or a label is no class. 0.0 where no number changes an answer.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 1.0], [2.0, -1.0]])             # class 1 is behind by 2, 1 and 3
    >>> best_bias(logits, torch.tensor([1, 1, 0]), missing=1)                    # right for all if 2 < bias < 3
    2.5
    """
    if logits.ndim != 2 or not len(logits) == len(labels) > 0 or logits.shape[1] < 2:
        raise ValueError(f"logits have the shape {tuple(logits.shape)} for {len(labels)} labels, and must be (n, classes), a label each.")
    if isinstance(missing, bool) or not isinstance(missing, Integral) or not 0 <= missing < logits.shape[1]:
        raise ValueError(f"missing is {missing!r}, and must be a class from 0 to {logits.shape[1] - 1}.")
    check_labels(labels, *logits.shape)
    check_logits("the logits", logits)
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    others = logits.clone()
    others[:, missing] = -math.inf
    best, guess = others.max(1)
    d, order = (best - logits[:, missing]).sort()
    order, d = order[d.isfinite()], d[d.isfinite()]  # an infinite d (a masked class) is passed by every number, or by none
    if not len(d):
        return 0.0
    gain = (labels == missing).long() - (guess == labels).long()  # passing an image's d makes a right answer, or spoils one
    ends = torch.cat([d[:1] - 2, d, d[-1:] + 2])                                            # (n + 2,): n + 1 intervals
    right = torch.cat([torch.zeros(1, dtype=torch.long), gain[order].cumsum(0)])            # in each, from the first on
    right[ends.diff() == 0] = right.min() - 1                                               # no number lies between two equal d
    middle = (ends[1:] + ends[:-1]) / 2
    middle = middle[right == right.max()]
    return middle[middle.abs().argmin()].item()


def _check_teacher(teacher: nn.Module) -> None:
    if any(module.training for module in teacher.modules()):
        raise ValueError("the teacher is in training mode: call teacher.eval(), or its dropout and batch norm change its answers.")
    if any(p.requires_grad for p in teacher.parameters()):
        raise ValueError("the teacher has parameters that require gradients: call teacher.requires_grad_(False), it is not trained.")


def _asked(teacher: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.ndim == 4:
        try:
            return teacher(x.contiguous(memory_format=torch.channels_last))                 # a third faster on a CPU
        except RuntimeError:                                                                # of view, say, which refuses that order
            x = x.contiguous()
    return teacher(x)
