"""How long does one image take, all of it? The median with its interval, of the network and of what stands before and behind it.

    interval    from the k-th smallest to the k-th largest sample, the largest k with 2 P(X < k) <= 5 %, X ~ Binomial(n, 1/2)

Half of all calls are faster than the median, so the number of samples below it is binomial, whatever times look like: no distribution is
assumed, only that samples are independent. What disturbs a machine lasts longer than a call, so several calls are timed in turns, one
after the other, again and again; ratios are then taken turn by turn, and are surer than the times.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch

from qlab.lab import data
from qlab.lab.measure import Latency, latency_ms
from qlab.quant.layout import as_tensor, check_whole


@dataclass(frozen=True)
class Median:
    """A median with its interval; n: of how many samples.

    >>> print(Median(2.0, 1.5, 3.0, 20))
    2 [1.5, 3] (median of 20)
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (median of {self.n})"


def median(samples: Sequence[float], confidence: float = 0.95) -> Median:
    """The median of numbers, with the interval that holds the median of all such numbers, whatever their distribution.

    Raises ValueError for samples that are not finite, for a confidence that does not lie between 0 and 1, and for too few samples:
    five have no such interval at 95 %, six have the smallest and the largest. TypeError for samples that are no numbers.

    >>> median([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    Median(value=3.5, low=1.0, high=6.0, n=6)
    """
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}, and must lie between 0 and 1, for example 0.95.")
    samples = as_tensor(samples, "samples", torch.float64)
    if samples.ndim != 1 or not samples.isfinite().all():
        raise ValueError(f"samples have the shape {tuple(samples.shape)}, and must be numbers (n,), finite: no NaN, no infinity.")
    n, rank, below = len(samples), 0, 0
    # P(X <= rank) = below / 2^n, in whole numbers
    while rank < n / 2 and 2 * (below + math.comb(n, rank)) <= (1 - confidence) * 2**n:
        below += math.comb(n, rank)
        rank += 1
    if rank == 0:
        need = math.ceil(1 - math.log2(1 - confidence))
        raise ValueError(f"there are {n} samples, and a median at {100 * confidence:g} % needs at least {need}.")
    ordered = samples.sort().values.tolist()
    return Median((ordered[(n - 1) // 2] + ordered[n // 2]) / 2, ordered[rank - 1], ordered[n - rank], n)


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int = 30, warmup: int = 3) -> dict[str, Latency]:
    """Every call's milliseconds, one sample of each a turn, in their order; measure.latency_ms says what a sample is.

    Raises ValueError for no calls, for turns or warmup that are no whole number of at least 1, TypeError for what cannot be called.

    >>> taken = in_turns({"ten": lambda: sum(range(10)), "ten thousand": lambda: sum(range(10_000))}, turns=6)
    >>> {name: len(latency.samples_ms) for name, latency in taken.items()}
    {'ten': 6, 'ten thousand': 6}
    """
    if not calls:
        raise ValueError("there are no calls, and there must be at least one.")
    check_whole("turns", turns, 1)
    check_whole("warmup", warmup, 1)
    samples = {name: [] for name in calls}
    for turn in range(turns):
        for name, call in calls.items():
            taken = latency_ms(call, warmup=warmup if turn == 0 else 1, repeats=1)
            samples[name] += taken.samples_ms
    return {name: Latency(tuple(one), taken.machine) for name, one in samples.items()}


def ratio(a: Latency, b: Latency) -> Median:
    """How many times b's time a takes: the median of the turns' ratios. ValueError unless both have as many samples, at least six."""
    if len(a.samples_ms) != len(b.samples_ms):
        raise ValueError(f"a has {len(a.samples_ms)} samples and b has {len(b.samples_ms)}, and they must be of the same turns.")
    return median([x / y for x, y in zip(a.samples_ms, b.samples_ms)])


def stages(network: Callable, pixels: torch.Tensor, mean: float = data.MEAN, std: float = data.STD) -> dict[str, Callable[[], object]]:
    """What happens between a camera and an answer, as calls for in_turns: preprocess, network, argmax, whole.

    pixels: uint8 (n, channels, rows, columns), as a camera gives them; network: images, float32 and normalised, to logits, a module or
    any function. A module is run as it is: call eval() before. Raises ValueError for other pixels.

    >>> calls = stages(lambda x: x.flatten(1), torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    >>> list(calls), calls["whole"]()
    (['preprocess', 'network', 'argmax', 'whole'], tensor([1]))
    """
    pixels = as_tensor(pixels, "pixels")
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) == 0:
        raise ValueError(f"pixels have dtype {pixels.dtype} and shape {tuple(pixels.shape)}, and must be uint8 (images, channels, rows, "
                         "columns), at least one image.")

    def without_gradients(call):
        return torch.inference_mode()(call)

    def preprocess():
        return pixels.float().mul_(1 / (255 * std)).sub_(mean / std)

    images = preprocess()
    logits = without_gradients(network)(images)
    return {name: without_gradients(call) for name, call in {
        "preprocess": preprocess, "network": lambda: network(images), "argmax": lambda: logits.argmax(1),
        "whole": lambda: network(preprocess()).argmax(1)}.items()}
