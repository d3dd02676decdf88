"""Knowledge distillation: a small network, the student, learns from the soft labels of a large one, the teacher.

    p_i = exp(z_i / T) / sum_j exp(z_j / T)                                 soft labels at temperature T: Hinton et al. 2015, eq. 1
    L   = alpha T^2 KL(p_teacher || p_student) + (1 - alpha) CE(labels, student)                                       section 2

For the student's logits z, with soft labels q, and the teacher's logits v, with soft labels p, the derivative of KL is

    dKL / dz_i = (q_i - p_i) / T                                                                                       eq. 2
               ~ (z_i - v_i) / (N T^2)        T large, both logits with mean 0 over the N classes                      eq. 4

At a high temperature the soft part therefore pulls 1 / T^2 as hard as the labels do: T^2 makes up for it, and alpha keeps its meaning
when T changes. In the limit the soft part is a squared error on the logits, sum_i (z_i - v_i)^2 / 2N.

A class that the teacher masks has the logit -infinity and the share 0, and adds 0 to KL: p log(p / q) tends to 0 with p, whatever q is.
"""

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from qlab.nets.fake import wide
from qlab.nets.training import fit


def soft_labels(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / temperature) over the last axis. T = 1 is the usual softmax, T below 1 sharpens it, a large T tends to uniform.

    Half-precision logits are taken to float32, and so are their labels. Raises ValueError unless temperature is a finite number above
    0, and for logits that have no softmax: NaN or +infinity, or a row of -infinity alone (elsewhere it is a share of 0).

    >>> soft_labels(torch.tensor([4.0, 2.0, -6.0]), temperature=2.0)
    tensor([0.7275, 0.2676, 0.0049])
    """
    _check_temperature(temperature)
    logits = wide(logits)
    labels = torch.softmax(logits / temperature, -1)
    if labels.isnan().any():
        _check_logits("the logits", logits)
        labels = torch.softmax(_from_the_top(logits) / temperature, -1)                     # they are finite: the division was not
    return labels


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor | None,
                      temperature: float = 4.0, alpha: float = 0.9) -> torch.Tensor:
    """alpha T^2 KL(teacher || student), both at temperature T, plus (1 - alpha) cross-entropy with the labels at temperature 1; a scalar.

    student_logits, teacher_logits: float (n, classes), the teacher's without a gradient; labels: int64 (n,), or None where alpha is 1.
    Both parts are means over the n images, computed in float32 where the logits are in half precision. alpha = 0 is plain training,
    alpha = 1 needs no label. A teacher's logit may be -infinity: a class that it masks.
    Raises ValueError for logits of different or other shapes or of no image, teacher logits that require a gradient, or that hold NaN,
    +infinity or a row of -infinity alone (where alpha is above 0), a temperature that is not a finite number above 0, an alpha outside
    0 to 1, or, where alpha is below 1, no labels, or labels that are not a class for each image.

    >>> v = torch.tensor([[4.0, 2.0, -6.0]])
    >>> distillation_loss(v, v, None, alpha=1.0)
    tensor(0.)
    >>> distillation_loss(torch.zeros(1, 3), v, torch.tensor([0]), alpha=0.0)         # log 3
    tensor(1.0986)
    """
    _check_loss(temperature, alpha, labels)
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or not student_logits.numel():
        raise ValueError(f"the student's logits have the shape {tuple(student_logits.shape)} and the teacher's "
                         f"{tuple(teacher_logits.shape)}: both must be the same (n, classes), none of them 0.")
    if teacher_logits.requires_grad:
        raise ValueError("the teacher's logits require a gradient: compute them under torch.no_grad(), or call detach().")
    if alpha < 1:
        _check_labels(labels, *student_logits.shape)
    student_logits, teacher_logits, loss = wide(student_logits), wide(teacher_logits), 0.0
    if alpha > 0:
        loss = loss + _soft_loss(student_logits, teacher_logits, temperature, alpha)
    if alpha < 1:
        loss = loss + (1 - alpha) * cross_entropy(student_logits, labels)
    return loss


USUAL = 1e-15, 30.0                                                                         # below T^2 is, above KL, lost in float32


def _soft_loss(z: torch.Tensor, v: torch.Tensor, temperature: float, alpha: float) -> torch.Tensor:
    """alpha T^2 KL(teacher || student), the mean over the images."""
    usual = USUAL[0] < temperature < USUAL[1]
    if usual:
        log_q, log_p = log_softmax(z / temperature, 1), log_softmax(v / temperature, 1)
        kl = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        if kl.isfinite():                                                                   # one number to look at, in ordinary training
            return alpha * temperature**2 * kl
    _check_logits("the teacher's logits", v)
    if usual:
        log_q, log_p = (log_softmax(_from_the_top(logits) / temperature, 1) for logits in (z, v))
        p = log_p.exp()
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum() / len(z)                    # 0 times infinity is NaN, and its limit 0
        if kl.isfinite():
            return alpha * temperature**2 * kl
    return alpha * _careful(z.double(), v.double(), temperature).to(z.dtype)


def _careful(z: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL, the mean over the images, where T^2, z / T or a difference of logarithms would lose it; float64.

    With r = log(q / p), which is small where T is large, and sum p (e^r - 1) = 0, KL = sum p (e^r - 1 - r), and nothing cancels in
    e^r - 1 - r = r^2 / 2 + r^3 / 6 + ... Over the classes that the teacher does not mask; the student's share m of the others makes
    q larger on these by 1 / (1 - m), and adds -log(1 - m).
    """
    z, v = _from_the_top(z), _from_the_top(v)
    p, seen = torch.softmax(v / temperature, 1), v.isfinite()
    apart = torch.where(seen, z - torch.where(seen, v, 0.0), 0.0)
    apart = apart - (p * apart).sum(1, keepdim=True)                                        # T log(q / p), but for a constant
    near = (apart.abs() < temperature / 4).all(1)
    total = _far(z[~near], v[~near], temperature)
    apart, p, seen = apart[near], p[near], seen[near]
    t_r = apart - temperature * (p * torch.expm1(apart / temperature)).sum(1, keepdim=True).log1p()
    r = t_r / temperature
    series = sum(r**k / math.factorial(k + 2) for k in range(14))                           # |r| < 1/2: exact in float64
    masked = (torch.softmax(z[near] / temperature, 1) * ~seen).sum(1)
    masked = masked[masked > 0]                                                             # T^2 may be infinite, times 0 NaN
    return (total + (p * t_r**2 * series).sum() - (temperature * (temperature * torch.log1p(-masked))).sum()) / len(z)


def _far(z: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL, the sum over the rows, from T log p and T log q: finite however small T is. The largest logit of a row is 0."""
    t_log_q, t_log_p = (x - temperature * torch.logsumexp(x / temperature, 1, keepdim=True) for x in (z, v))
    p = torch.softmax(v / temperature, 1)
    return temperature * torch.where(p > 0, p * (t_log_p - t_log_q), 0.0).sum()


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
    _check_loss(temperature, alpha, labels)
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
            _check_labels(labels, len(images), z.shape[-1])
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
    _check_labels(labels, *logits.shape)
    _check_logits("the logits", logits)
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


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, and must be a finite number above 0.")


def _check_logits(what: str, logits: torch.Tensor) -> None:
    bad = ~logits.amax(-1).isfinite()  # NaN if one is; +infinity if one is; -infinity if all are
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of the {bad.numel()} rows of {what} hold NaN or +infinity, or nothing but -infinity: give "
                         "finite logits, or -infinity for some of the classes.")


def _from_the_top(logits: torch.Tensor) -> torch.Tensor:
    """Shifted so that the largest of each row is 0, which changes no softmax: divided by a small temperature, it stays 0."""
    return logits - logits.detach().amax(-1, keepdim=True)


def _check_loss(temperature: float, alpha: float, labels: torch.Tensor | None) -> None:
    _check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, and must be from 0 to 1.")
    if labels is None and alpha < 1:
        raise ValueError(f"labels is None and alpha is {alpha}: without labels alpha must be 1.")


def _check_labels(labels: torch.Tensor, n: int, classes: int) -> None:
    if labels.shape != (n,) or labels.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}, and must be int64, one for each of the {n} images.")
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {int(low)} to {int(high)}, and must be classes from 0 to {classes - 1}.")


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
