"""Do two networks say the same, and how far apart are their probabilities? What two equal accuracies do not tell.

    agreement     the share of images for which both name the same class, right or wrong
    divergences   D(p || q) = sum_c p_c (log2 p_c - log2 q_c),  p of the reference, q of the model     bits; Kullback and Leibler 1951;
                  those of qlab.search.sensitivity.divergence, which are in nats, divided by ln 2
    log_losses    -log2 q_label                                                                        bits
    mean          m -+ z s / sqrt(n)

Divergence asks how far a network is from the one that it was made of, loss how good it is. Both are numbers an image, so two networks are
compared by the mean of the differences, image by image: that is far surer than the difference of two means.
"""

import math
from dataclasses import dataclass

import torch

from qlab.lab.significance import wilson
from qlab.llm.evaluate import Estimate
from qlab.quant.layout import FLOATS, as_integers, as_tensor
from qlab.search import sensitivity


@dataclass(frozen=True)
class Agreement:
    """Networks A and B on the same images, in counts. wrong_alike: both name the same wrong class; wrong_apart: two different ones.

    >>> print(Agreement(both_right=90, a_only=2, b_only=2, wrong_alike=5, wrong_apart=1))
    the same class for 95.0 % [88.8, 97.8] of 100 images: 90 both right, 5 wrong alike; 2 only A right, 2 only B right, 1 wrong apart
    """

    both_right: int
    a_only: int
    b_only: int
    wrong_alike: int
    wrong_apart: int

    @property
    def n(self) -> int:
        """The number of images."""
        return self.both_right + self.a_only + self.b_only + self.wrong_alike + self.wrong_apart

    @property
    def same(self) -> int:
        """How many images both call the same."""
        return self.both_right + self.wrong_alike

    @property
    def value(self) -> float:
        """The share of images that both call the same, 0 to 1."""
        return self.same / self.n

    @property
    def low(self) -> float:
        """The lower end of the 95 % Wilson interval, 0 to 1."""
        return wilson(self.same, self.n)[0]

    @property
    def high(self) -> float:
        """The upper end of the 95 % Wilson interval, 0 to 1."""
        return wilson(self.same, self.n)[1]

    def __str__(self) -> str:
        return (f"the same class for {100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n:,} images: "
                f"{self.both_right:,} both right, {self.wrong_alike:,} wrong alike; {self.a_only:,} only A right, "
                f"{self.b_only:,} only B right, {self.wrong_apart:,} wrong apart")


def agreement(a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor) -> Agreement:
    """How often two networks name the same class. a, b: their logits (n, classes) on the same images; labels: integers (n,).

    An image with a NaN among its logits is called nothing: wrong, and like no other. Raises ValueError for different shapes, no images,
    or a label that is no class, TypeError for what is no tensor of real numbers.

    >>> a, b = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([[9.0, 8.0], [1.0, 0.0], [1.0, 0.0]])
    >>> agreement(a, b, torch.tensor([0, 1, 1]))
    Agreement(both_right=1, a_only=1, b_only=0, wrong_alike=1, wrong_apart=0)
    """
    a, b = as_tensor(a, "a", torch.float64), as_tensor(b, "b", torch.float64)
    _check_same(a, b)
    labels = checked_labels(labels, *a.shape)
    called_a, called_b = (torch.where(x.isnan().any(1), -1, x.argmax(1)) for x in (a, b))
    right_a, right_b, same = called_a == labels, called_b == labels, (called_a == called_b) & (called_a >= 0)
    wrong = ~right_a & ~right_b
    cases = right_a & right_b, right_a & ~right_b, right_b & ~right_a, wrong & same, wrong & ~same
    return Agreement(*(int(case.sum()) for case in cases))


def divergences(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How far each image's probabilities are from the reference's, in bits: float64 (n,), 0 where they agree, never below.

    logits, reference: (n, classes) on the same images. Raises ValueError for different shapes, no images, NaN or infinity, TypeError for
    integers: the codes of a network in integers have to be decoded first.

    >>> q, p = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    >>> [round(bits, 4) for bits in divergences(q, p).tolist()]                 # 0.5 log2(0.5 / 0.25) + 0.5 log2(0.5 / 0.75)
    [0.2075, 0.0]
    """
    logits, reference = as_tensor(logits, "logits"), as_tensor(reference, "reference")
    _check_same(logits, reference)
    logits, reference = _logits(logits), _logits(reference)
    return sensitivity.divergence(logits, reference) / math.log(2)


def log_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How surprised the network is by each label, in bits: float64 (n,). Raises as divergences does, and for labels that do not fit.

    >>> [round(bits, 4) for bits in log_losses(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([0, 1])).tolist()]
    [2.0, 1.0]
    """
    found = log_probabilities(logits)
    labels = checked_labels(labels, *found.shape)
    return -found.gather(1, labels[:, None].long())[:, 0] / math.log(2)


def mean(values: torch.Tensor) -> Estimate:
    """The mean of numbers an image, with its standard error and its 95 % interval; of differences, for two networks on the same images.

    values: (n,), at least two, finite; ValueError otherwise, TypeError for what is no tensor of real numbers.

    >>> print("%.2f +- %.2f" % mean(torch.tensor([1.0, 2.0, 3.0])))
    2.00 +- 0.58
    """
    values = as_tensor(values, "values", torch.float64)
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"values have the shape {tuple(values.shape)}, and must be finite numbers, one an image, at least two.")
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log softmax, natural, float64, of logits (n, classes). ValueError for another shape, NaN or infinity, TypeError for integers."""
    return _logits(logits).double().log_softmax(1)


def _logits(logits) -> torch.Tensor:
    logits = as_tensor(logits, "logits")
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"logits have the shape {tuple(logits.shape)}, and must be (images, classes), at least one of each.")
    if logits.dtype not in FLOATS:
        raise TypeError(f"logits are {logits.dtype}, and must be floating point: codes have to be decoded first.")
    if not logits.isfinite().all():
        raise ValueError("logits hold NaN or infinity, and must be finite.")
    return logits


def checked_labels(labels, images: int, classes: int | None = None) -> torch.Tensor:
    """labels as a tensor: integers, one an image, each a class. Raises ValueError otherwise, TypeError for what is no tensor."""
    labels = as_tensor(labels, "labels")
    if labels.shape != (images,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}, and must be integers, one for each of the "
                         f"{images} images.")
    labels = as_integers(labels, "labels")
    if labels.min() < 0 or classes is not None and labels.max() >= classes:
        allowed = "0 or more" if classes is None else f"from 0 to {classes - 1}"
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, and must be {allowed}.")
    return labels


def _check_same(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.numel() == 0:
        raise ValueError(f"the logits have the shapes {tuple(a.shape)} and {tuple(b.shape)}, and must be (images, classes) of the same "
                         "images, at least one of each.")
