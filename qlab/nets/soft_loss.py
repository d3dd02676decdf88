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

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qlab.nets.fake import wide


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
        check_logits("the logits", logits)
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
    check_loss(temperature, alpha, labels)
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or not student_logits.numel():
        raise ValueError(f"the student's logits have the shape {tuple(student_logits.shape)} and the teacher's "
                         f"{tuple(teacher_logits.shape)}: both must be the same (n, classes), none of them 0.")
    if teacher_logits.requires_grad:
        raise ValueError("the teacher's logits require a gradient: compute them under torch.no_grad(), or call detach().")
    if alpha < 1:
        check_labels(labels, *student_logits.shape)
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
    check_logits("the teacher's logits", v)
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


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, and must be a finite number above 0.")


def check_logits(what: str, logits: torch.Tensor) -> None:
    bad = ~logits.amax(-1).isfinite()  # NaN if one is; +infinity if one is; -infinity if all are
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of the {bad.numel()} rows of {what} hold NaN or +infinity, or nothing but -infinity: give "
                         "finite logits, or -infinity for some of the classes.")


def _from_the_top(logits: torch.Tensor) -> torch.Tensor:
    """Shifted so that the largest of each row is 0, which changes no softmax: divided by a small temperature, it stays 0."""
    return logits - logits.detach().amax(-1, keepdim=True)


def check_loss(temperature: float, alpha: float, labels: torch.Tensor | None) -> None:
    _check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, and must be from 0 to 1.")
    if labels is None and alpha < 1:
        raise ValueError(f"labels is None and alpha is {alpha}: without labels alpha must be 1.")


def check_labels(labels: torch.Tensor, n: int, classes: int) -> None:
    if labels.shape != (n,) or labels.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}, and must be int64, one for each of the {n} images.")
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {int(low)} to {int(high)}, and must be classes from 0 to {classes - 1}.")
