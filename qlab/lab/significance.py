"""How sure is an accuracy, and is one model better than another? Counting statistics on the images of one test set.

    wilson    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)                 Wilson 1927
    mcnemar   p = 2 P(X <= min(a_only, b_only)),  X ~ Binomial(a_only + b_only, 1/2)         McNemar 1947, exact
    interval  d -+ z sqrt(((a + b) / n - d^2) / n),  d = (b - a) / n, an image added to each  Bonett and Price 2012
    holm      the smallest p times m, the next times m - 1, ..., none below one before it     Holm 1979

The first two are derived in notebook 00, the third in notebook 02.

Two models are measured on the same images, so their errors are not independent: most images are right, or wrong, for both. Only the
images on which they disagree say which is better. That is why a difference has a test of its own, and why two overlapping intervals
prove nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch

from qlab.search.paired import p_value, z_of


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval (low, high), in 0 to 1, for a proportion of which correct out of n were seen (Wilson 1927).

    Unlike p -+ z sqrt(p (1 - p) / n) it has a width at 0 and 100 %, and never leaves 0 to 1.
    Raises ValueError unless n >= 1, 0 <= correct <= n and 0 < confidence < 1, TypeError if a count is no integer.

    >>> low, high = wilson(9213, 10_000)
    >>> round(low, 4), round(high, 4)
    (0.9159, 0.9264)
    """
    correct, n, z = index(correct), index(n), z_of(confidence)
    if n < 1:
        raise ValueError(f"n is {n}, and must be 1 or more.")
    if not 0 <= correct <= n:
        raise ValueError(f"correct is {correct}, and must be from 0 to n = {n}.")
    p = correct / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((center + side * half) / (1 + z * z / n) for side in (-1, 1))
    return (0.0 if correct == 0 else min(low, p)), (1.0 if correct == n else max(high, p))  # exact where rounding would miss by an ulp


def _bools(name: str, values) -> torch.Tensor:
    values = values.correct if isinstance(values, Accuracy) else torch.as_tensor(values)
    if values.dtype != torch.bool or values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} has dtype {values.dtype} and shape {tuple(values.shape)}, "
            "and must be bool, one value (right or wrong) an image, at least one.")
    return values.cpu()


@dataclass(frozen=True, eq=False, repr=False)
class Accuracy:
    """correct: bool (n,), right or wrong for each image, in the order of the split. Shares are from 0 to 1.

    >>> print(Accuracy(torch.tensor([True, True, True, False])))
    75.0 % [30.1, 95.4]
    """

    correct: torch.Tensor

    def __post_init__(self):
        object.__setattr__(self, "correct", _bools("correct", self.correct))

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.correct)

    @property
    def value(self) -> float:
        """The share of right images, 0 to 1."""
        return int(self.correct.sum()) / self.n

    @property
    def low(self) -> float:
        """The lower end of the 95 % Wilson interval, 0 to 1."""
        return wilson(int(self.correct.sum()), self.n)[0]

    @property
    def high(self) -> float:
        """The upper end of the 95 % Wilson interval, 0 to 1."""
        return wilson(int(self.correct.sum()), self.n)[1]

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def __repr__(self) -> str:
        return f"Accuracy({self}, n={self.n})"


@dataclass(frozen=True)
class McNemar:
    """Models A and B on the same n images: a_only are right for A alone, b_only for B alone. Shares are from -1 to 1.

    The interval is Wald's with the adjustment of Bonett and Price (2012), one image added to a_only and to b_only: it has a width even
    where the models never disagree. `significant` goes by p; near 0.05 the interval, an approximation, may say otherwise.

    >>> print(McNemar(n=10_000, a_only=130, b_only=88))
    B is 0.42 points lower (95 % interval -0.71 to -0.13), p = 0.005
    >>> print(McNemar(n=10_000, a_only=51, b_only=60))
    B is 0.09 points higher (95 % interval -0.12 to 0.30), p = 0.448: inside the noise
    """

    n: int
    a_only: int
    b_only: int

    def __post_init__(self):
        if self.n < 1 or self.a_only < 0 or self.b_only < 0 or self.a_only + self.b_only > self.n:
            raise ValueError(f"a_only is {self.a_only}, b_only {self.b_only}, n {self.n}: "
                             "n must be 1 or more, the others 0 or more and together at most n.")

    @property
    def p(self) -> float:
        """How likely so uneven a split of the disagreements is if both models are equally good: exact, two-sided, 0 < p <= 1.

        A p below the smallest float64, 2.2e-308, is given as that.
        """
        return p_value(self.a_only, self.b_only)

    @property
    def difference(self) -> float:
        """Accuracy of B minus accuracy of A, -1 to 1 (0.01 is one point)."""
        return (self.b_only - self.a_only) / self.n

    def _end(self, side: int) -> float:
        a, b = (self.a_only + 1) / (self.n + 2), (self.b_only + 1) / (self.n + 2)
        return max(-1.0, min(1.0, b - a + side * z_of(0.95) * math.sqrt((a + b - (b - a) ** 2) / (self.n + 2))))

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the difference, -1 to 1."""
        return self._end(-1)

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the difference, -1 to 1."""
        return self._end(1)

    @property
    def significant(self) -> bool:
        """p < 0.05. Of twenty comparisons between equal models up to one looks like this on average: ask few questions."""
        return self.p < 0.05

    def __str__(self) -> str:
        digits = max(2, len(str(self.n - 1)) - 2)  # one image out of n must show
        points = f"{abs(100 * self.difference):.{digits}f} points {'higher' if self.difference > 0 else 'lower'}"
        verdict = f"B is {points}" if self.a_only != self.b_only else "A and B are right equally often"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        noise = "" if self.significant else ": inside the noise"
        return f"{verdict} (95 % interval {100 * self.low:.{digits}f} to {100 * self.high:.{digits}f}), {p}{noise}"


def mcnemar(a, b) -> McNemar:
    """Is B better or worse than A, or is the difference noise? The exact test of McNemar (1947) on the images where they disagree.

    a, b: the Accuracy, or a bool tensor (n,), of two models on the same images in the same order.
    Raises ValueError for another dtype, no images, or different lengths.

    >>> a, b = torch.tensor([True, True, True, True, False]), torch.tensor([False, True, True, True, True])
    >>> mcnemar(a, b), mcnemar(a, b).p
    (McNemar(n=5, a_only=1, b_only=1), 1.0)
    """
    a, b = _bools("a", a), _bools("b", b)
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} images and b has {len(b)}, and they must be the same images.")
    return McNemar(len(a), int((a & ~b).sum()), int((b & ~a).sum()))


@dataclass(frozen=True)
class OverSeeds:
    """Method B against method A, each trained with several seeds; all numbers are points of accuracy, B minus A.

    each: the difference of every seed. low, high: the 95 % interval of their mean, for other test images and these very seeds. It knows
    nothing of other seeds: take a difference for one of the methods only if the interval leaves out 0 and the seeds agree.

    >>> print(OverSeeds(each=(0.83, 0.37, 0.43), low=0.26, high=0.83))
    +0.54 [+0.26, +0.83]  seeds +0.83 +0.37 +0.43
    """

    each: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return sum(self.each) / len(self.each)

    @property
    def agree(self) -> bool:
        """Whether the interval leaves out 0 and every seed has the sign of the mean."""
        return (self.low > 0 or self.high < 0) and all(value * self.mean > 0 for value in self.each)

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]  seeds {' '.join(f'{value:+.2f}' for value in self.each)}"


def over_seeds(a, b) -> OverSeeds:
    """How far method B is ahead of A: a and b hold the results of as many seeds, in the same order, all on the same images.

    For each image, how much more often B was right than A, as a share of the seeds; the interval is that of the mean over the images.
    Raises ValueError for no seeds, another number of them, fewer than two images, or what mcnemar refuses.

    >>> right, wrong = torch.tensor([True, True, True, False]), torch.tensor([True, False, True, False])
    >>> print(over_seeds([wrong, right], [right, right]))
    +12.50 [-12.00, +37.00]  seeds +25.00 +0.00
    """
    a, b = [_bools("a", one) for one in a], [_bools("b", one) for one in b]
    if not 0 < len(a) == len(b):
        raise ValueError(f"a has {len(a)} seeds and b has {len(b)}, and they must be as many, at least one.")
    if len({len(one) for one in (*a, *b)}) > 1 or len(a[0]) < 2:
        raise ValueError(f"the results have {sorted({len(one) for one in (*a, *b)})} images, and must have the same, at least two.")
    gains = 100 * torch.stack([one.double() - other.double() for one, other in zip(b, a)])                  # (seeds, images)
    mean, half = gains.mean().item(), z_of(0.95) * gains.mean(0).std().item() / math.sqrt(len(a[0]))
    return OverSeeds(tuple(gains.mean(1).tolist()), mean - half, mean + half)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, in their order, raised so that among all of them together one below 0.05 is as rare as for a single test.

    Sorted, the smallest is multiplied by their number, the next by one less, and so on; none may come out below one before it, or above 1.
    It holds however the tests depend on each other (Holm 1979). Raises ValueError for a p that is not from 0 to 1.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    wrong = [p for p in ps if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"one of the p is {wrong[0]}, and each must be from 0 to 1.")
    raised, largest = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = raised[i] = max(largest, min(1.0, (len(ps) - place) * ps[i]))
    return raised
