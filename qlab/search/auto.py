"""The one call: the weights of a network within a budget of bytes, or within a loss of accuracy, by whatever way it takes.

    auto.quantize(model, (images, labels), budget="40 KB")       as little loss as so many bytes allow
    auto.quantize(model, (images, labels), max_drop=0.5)         the fewest bytes that are shown to lose at most so many points

The calibration images are split: one part to make networks with, the other to judge them by. The ways of qlab.search.ways are tried from
the cheapest to the dearest.

    budget      each way at the widest bits that fit; chosen is the first that no other beats. It stops early where the network is shown
                to lose less than ENOUGH: nothing that is dearer could gain more.
    max_drop    8 bits, then 7, .. 2, by the cheapest way that is shown to hold; a way that fails at a width is not tried at narrower ones.
                At the end, bits by layer between the last width that held and the first that did not.

The best of ten on the same images is partly the luckiest. So the limits of what is lost hold for all that may be tried at once (each has
the confidence 1 - 0.05 / how many), a p counts as many comparisons as there are pairs, and a network is shown to lose at most x where the
upper limit is below x (qlab.search.paired). What was held out are calibration images: test images stay unseen, for the last word.
"""

import os
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from numbers import Real

import torch
from torch import nn
from tqdm.auto import tqdm

from qlab.nets.ptq import Quantized
from qlab.search import paired, trials
from qlab.search.adaround import check_options
from qlab.search.attempts import Attempts
from qlab.search.candidates import WIDTHS
from qlab.search.trials import Trial
from qlab.search.ways import WAYS

NUMBER = r"\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|[\d_]*\.?\d+)\s*([a-zA-Z]*)\s*"             # a comma between thousands, and no decimal one
UNITS = {"b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2}
ENOUGH = 0.25                                                                               # points


@dataclass(frozen=True)
class Found:
    """quantized: the network. chosen: its trial. trials: all that was tried, in that order. reason: why it ended, one sentence. met:
    whether the demand is. judged_by: what "right" means, and on how many images."""

    quantized: Quantized
    chosen: Trial
    trials: tuple[Trial, ...]
    reason: str
    met: bool
    judged_by: str

    def __str__(self) -> str:
        return f"{trials.table(list(self.trials))}\n{self.judged_by}\n{self.reason}"


@torch.inference_mode(False)
def quantize(model: nn.Module, calibration, budget: int | float | str | None = None, max_drop: float | None = None,
             folder: str | os.PathLike | None = None, seed: int = 0, skip: tuple[str, ...] = (), steps: int = 400) -> Found:
    """The network's weights as codes, within a budget of bytes or a loss of accuracy; exactly one of the two is given.

    calibration: (images, labels), float (n, ...) and integers (n,); training images, never test images, and at least 100. Of them 512,
    or half, make the networks, and the others judge: a difference of half a point needs some thousands. Without labels (images alone) a
    network is right where it says what the float network says. budget: of the whole network, as a number of bytes or with B, KB, KiB, MB,
    MiB. max_drop: percentage points. folder: where trials are kept, so that a call that was cut off goes on with them; the trials of both
    demands may share it. seed: of the split and of learned rounding. skip: names of layers that keep their floats. steps: of learned
    rounding, a layer.

    Weights only. The activations, too: qlab.nets.ptq.quantize(q.model, images, {name: lambda _, own=own: own for name, own in
    q.tensors.items()}), q being the result's quantized. The given model is not changed. The same seed finds the same on the same machine.
    Raises ValueError, in one sentence, for both demands or none, a budget in an unknown unit or below the least possible, a drop that the
    held-out images could never show, too few images, labels that do not fit, a network that qlab.nets.graph cannot read, a folder of
    another run; TypeError for what is no network, images, labels or path; OSError where the folder cannot be written.

    >>> import torch
    >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(400, 8)
    >>> found = quantize(net, (x, net(x).argmax(1)), budget="200 B", steps=20)
    >>> found.met, found.quantized.nbytes <= 200, found.chosen in found.trials
    (True, True, True)
    """
    if (budget is None) == (max_drop is None):
        raise ValueError("give either a budget in bytes or a max_drop in percentage points: there "
                         f"{'is neither' if budget is None else 'are both'}.")
    limit = None if budget is None else bytes_of(budget)
    if max_drop is not None and (isinstance(max_drop, bool) or not isinstance(max_drop, Real) or not 0 < max_drop < 100):
        raise ValueError(f"max_drop is {max_drop!r}, and must be percentage points, above 0 and below 100.")
    check_options(steps, 1, 1, 0, seed)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder is a {type(folder).__name__}, and must be a path, or None.")
    if folder is not None:
        trials.check_folder(folder)                                                              # before anything takes time
    planned = len(WAYS) + (max_drop is not None) * (len(WIDTHS) + 1)
    with tqdm(total=planned, desc="auto", unit="trial") as bar:
        made = Attempts(model, calibration, planned, bar, folder, int(seed), skip, int(steps))
        return _within(made, limit) if max_drop is None else _smallest(made, float(max_drop))


def bytes_of(budget: int | float | str) -> int:
    """A number of bytes, or a number and a unit; KB is 1,000 bytes, and KiB 1,024. ValueError for anything else.

    >>> bytes_of("40 KB"), bytes_of("1.5KiB"), bytes_of(31136)
    (40000, 1536, 31136)
    """
    nbytes, told = budget, re.fullmatch(NUMBER, budget) if isinstance(budget, str) else None
    if told and (told[2] or "b").lower() in UNITS:
        nbytes = int(Decimal(re.sub("[_,]", "", told[1])) * UNITS[(told[2] or "b").lower()])    # 1.001 is no float
    if isinstance(nbytes, bool) or not isinstance(nbytes, Real) or not 1 <= nbytes < 2**63:
        raise ValueError(f"budget is {budget!r}, and must be a number of bytes, at least 1 and below 2**63, or one with B, KB (1,000), KiB "
                         "(1,024), MB or MiB.")
    return int(nbytes)


def _within(made: Attempts, budget: int) -> Found:
    """The first, of what fits, that no other beats."""
    least = made.nbytes(WAYS[0], made.uniform(WIDTHS[0]))
    if budget < least:
        raise ValueError(f"the budget is {budget:,} bytes, and must be at least {least:,}: what the network takes with {WIDTHS[0]} bits "
                         "for every weight, and one scale a layer.")
    enough = False
    for way in WAYS:
        key = made.at_budget(way, budget)
        if key is not None and made.trials[key].nbytes > budget:                            # biases that it did not have before
            made.forget(key)
        enough = made.trials[made.unbeaten()].high <= ENOUGH
        if enough:
            break
    best = made.unbeaten()
    chosen, others = made.trials[best], {key: t for key, t in made.trials.items() if t.nbytes <= budget and key != best}
    if enough:
        reason = f"Stopped at {chosen.name}, in {chosen.nbytes:,} bytes: it {chosen.points}, so that nothing dearer could bring it " \
                 f"more than {ENOUGH} points nearer to the float network."
    elif others:
        key = max(others, key=lambda key: int(others[key].right.sum()))
        reason = f"All {1 + len(others)} ways that fit into {budget:,} bytes were tried, and nothing beats {chosen.name}, which " \
                 f"{chosen.points}; the best of the others, {others[key].name}, is {made.apart(best, key)}."
    else:
        reason = f"Nothing else fits into {budget:,} bytes than {chosen.name}, which {chosen.points}."
    return _found(made, best, reason)


def _smallest(made: Attempts, max_drop: float) -> Found:
    """The fewest bytes that are shown to lose at most so many points."""
    could = 100 * paired.least_limit(len(made.held), made.confidence)
    if max_drop < could:
        above = Context(prec=3, rounding=ROUND_CEILING).create_decimal(could)
        raise ValueError(f"max_drop is {max_drop:g}, and must be at least {above}: less cannot be shown on {len(made.held):,} held-out "
                         "images, even if none changes.")

    def holds(key: str | None) -> bool:
        return key is not None and made.trials[key].high <= max_drop

    ways, last = list(WAYS), None
    for bits in reversed(WIDTHS):
        while ways and not holds(made.at_width(ways[0], bits)):
            ways.pop(0)
        if not ways:
            break
        last = bits
    if last is not None and last > WIDTHS[0]:
        made.at_budget(WAYS[-1], sum(made.nbytes(WAYS[-1], made.uniform(bits)) for bits in (last, last - 1)) // 2)
    held = [key for key in made.trials if holds(key)]
    if not held:
        key = min(made.trials, key=lambda key: (made.trials[key].lost, made.trials[key].nbytes))
        closest = made.trials[key]
        return _found(made, key, f"Nothing that was tried is shown to lose at most {max_drop:g} points: {closest.name}, in "
                                 f"{closest.nbytes:,} bytes, came closest, and {closest.points}.", met=False)
    key = min(held, key=lambda key: (made.trials[key].nbytes, made.trials[key].lost))
    chosen = made.trials[key]
    smaller = [trial for trial in made.trials.values() if trial.nbytes < chosen.nbytes]
    why = "nothing smaller was left to try"
    if smaller:
        near = min(smaller, key=lambda trial: trial.high)
        why = f"of what is smaller {near.name}, in {near.nbytes:,} bytes, came closest, and {near.points}"
    return _found(made, key, f"The smallest that is shown to lose at most {max_drop:g} points is {chosen.name}, in {chosen.nbytes:,} "
                             f"bytes, which {chosen.points}; {why}.")


def _found(made: Attempts, key: str, reason: str, met: bool = True) -> Found:
    return Found(made.networks[key], made.trials[key], tuple(made.compared(key)), reason, met, made.judged_by)
