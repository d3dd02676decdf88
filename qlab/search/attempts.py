"""What a search stands on: the split images, what each width weighs, and the trials so far, each made once and judged on what was held out.

    images  ->  at most 512, or half, to make networks with   |   the others, to judge them by
    trial   ->  a way (qlab.search.ways) at certain bits: from the folder, if it was made before, else made now

Which trials are to be made, and when there are enough, qlab.search.auto says.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from qlab.llm.weights import RANGES, check_values, round_to_nearest
from qlab.nets.calibration import batches_of, check_norms
from qlab.nets.graph import trace
from qlab.nets.ptq import Quantized, fold_batch_norm
from qlab.nets.stored_graph import told
from qlab.quant.layout import generator
from qlab.search import allocate, candidates, costs, paired, sensitivity, trials
from qlab.search.candidates import WIDTHS
from qlab.search.given import classes_of, finite, logits_of
from qlab.search.table import Table
from qlab.search.trials import Trial, p_in_words
from qlab.search.ways import BETTER, Way, per_tensor

LEAST, FIT = 100, 512                                                                       # images; of them to make networks with
RISK = 0.05                                                                                 # of one error, among all that may be tried


class Attempts:
    """trials and networks by key, in the order in which they were made. planned: how many trials there may be; bar: counts them. The other
    arguments are those of auto.quantize, and so are the errors."""

    def __init__(self, model: nn.Module, calibration, planned: int, bar: tqdm, folder: str | os.PathLike | None, seed: int,
                 skip: tuple[str, ...], steps: int):
        images, labels = _given(calibration)
        check_values(model)
        check_norms(model, [images])
        self.network = trace(fold_batch_norm(model)).requires_grad_(False)
        self.seed, self.steps, self.bar = seed, steps, bar
        self.confidence, self.pairs = 1 - RISK / planned, planned * (planned - 1) // 2
        fit, held = _split(len(images), seed)
        self.fit, self.held = images[fit], images[held]
        logits = finite(_logits(self.network, self.held))
        self.wanted = logits.argmax(1)
        self.judged_by = f"right: as the float network says, for there are no labels, on {len(held):,} held-out images"
        if labels is not None:
            self.wanted = classes_of(labels, len(images), logits.shape[1])[held]
        self.reference = logits.argmax(1) == self.wanted
        if labels is not None:
            share = 100 * self.reference.double().mean().item()
            self.judged_by = f"right: as labelled, on {len(held):,} held-out images, of which the float network has {share:.2f}%"
        self.grids = {ranges: candidates.make(self.network, WIDTHS, partial(round_to_nearest, ranges=ranges), skip) for ranges in RANGES}
        self.layers = tuple(self.grids["mse"])
        each = {True: self.grids["mse"], False: candidates.make(self.network, WIDTHS, per_tensor, skip)}
        self.costs = {per_channel: costs.nbytes(made) for per_channel, made in each.items()}
        self.rest = costs.rest_nbytes(self.network, self.grids["mse"])                      # biases, and all that keeps its floats
        self.trials: dict[str, Trial] = {}
        self.networks: dict[str, Quantized] = {}
        self._kl: dict[tuple[int, str], Table] = {}                                         # by bits and ranges
        self.folder = None
        if folder is not None:
            of = self.network.state_dict() | {"fit images": self.fit, "held-out images": self.held, "wanted": self.wanted}
            settings = {"seed": seed, "steps": steps, "skip": sorted(skip), "graph": told(self.network)}
            if settings["graph"] is None:
                raise ValueError("folder is given, and no file can hold the graph of this network: leave folder out, or give its layers "
                                 "names of letters, digits, - and _.")
            self.folder = trials.claim(folder, trials.fingerprint(of, settings))

    # What to try

    def uniform(self, bits: int) -> dict[str, int]:
        return dict.fromkeys(self.layers, bits)

    def nbytes(self, way: Way, bits: Mapping[str, int]) -> int:
        """Of the whole network."""
        return round(self.costs[way.per_channel](bits)) + self.rest

    def at_width(self, way: Way, bits: int) -> str | None:
        """The key of the trial with so many bits for every layer; bits by layer take the bytes of these."""
        uniform = self.uniform(bits)
        if way.mixed:
            return self.at_budget(way, self.nbytes(way, uniform))
        return self._run(f"{way.key}-{bits}", way, uniform, time.perf_counter())

    def at_budget(self, way: Way, budget: int) -> str | None:
        """The key of the trial with the widest bits that fit; None where none do, or where bits by layer come out uniform."""
        started = time.perf_counter()
        if not way.mixed:
            fit = [bits for bits in WIDTHS if self.nbytes(way, self.uniform(bits)) <= budget]
            return self.at_width(way, fit[-1]) if fit else None
        key, bits = f"{way.key}-{budget}-bytes", {}
        if not self._is_kept(key):
            if budget < self.nbytes(way, self.uniform(WIDTHS[0])):
                return None
            each = torch.cat([self._kl_at(b, way.ranges).values for b in WIDTHS], 1)
            bits = allocate.exact(Table(self.layers, WIDTHS, each), self.costs[way.per_channel], budget - self.rest)
            if len(set(bits.values())) == 1:
                return None
        return self._run(key, way, bits, started)

    def _is_kept(self, key: str) -> bool:
        return self.folder is not None and trials.is_kept(self.folder, key)

    def _kl_at(self, bits: int, ranges: str) -> Table:
        """The KL of each layer alone at so many bits."""
        if (bits, ranges) not in self._kl:
            self.bar.set_postfix_str(f"each layer's KL at {bits} bits")
            made = {name: {bits: of_layer[bits]} for name, of_layer in self.grids[ranges].items()}
            self._kl[bits, ranges] = sensitivity.by_kl(self.network, made, self.fit)
        return self._kl[bits, ranges]

    def _better(self, bits: Mapping[str, int]) -> dict[str, str]:
        """By layer, the ranges with the lesser KL."""
        return {name: min(RANGES, key=lambda ranges: self._kl_at(b, ranges)[name, b]) for name, b in bits.items()}

    def _run(self, key: str, way: Way, bits: Mapping[str, int], started: float) -> str:
        """Make it, or take it from the folder, where bits are not needed."""
        if self._is_kept(key):
            made, right, seconds = trials.kept(self.folder, key, len(self.held))
        else:
            ranges = self._better(bits) if way.ranges == BETTER else way.ranges
            self.bar.set_postfix_str(way.name)
            made = way.make(self.network, bits, self.fit, self.seed, self.steps, ranges)
            logits = _logits(made.model, self.held)
            right = (logits.argmax(1) == self.wanted) & ~logits.isnan().any(1)              # torch takes NaN for the largest
            seconds = time.perf_counter() - started
            if self.folder is not None:
                trials.keep(self.folder, key, made, right, seconds)
        bits = {name: made.tensors[name].bits for name in self.layers}
        self.trials[key] = trials.judged(way.name, bits, made.nbytes, right, self.reference, seconds, self.confidence)
        self.networks[key] = made
        self.bar.update()
        return key

    # What they come to

    def forget(self, key: str) -> None:
        """What cannot be chosen; its trial stays in the table."""
        del self.networks[key]

    def unbeaten(self) -> str:
        """The first that no other beats; those that are beaten are forgotten."""
        for key in list(self.networks):
            if any(self._p(key, other) <= RISK and self._more(key, other) > 0 for other in self.networks):
                self.forget(key)
        return next(iter(self.networks))

    def apart(self, chosen: str, other: str) -> str:
        """How far the other is above or below the chosen one, in words."""
        more, p = self._more(chosen, other), self._p(chosen, other)
        where = f"{100 * abs(more) / len(self.held):.2f} points {'higher' if more > 0 else 'lower'}" if more else "right as often"
        return f"{where} ({p_in_words(p)}, of {self.pairs} pairs{', inside the noise' * (p > RISK)})"

    def compared(self, chosen: str) -> Iterator[Trial]:
        """All trials, each with its p against the chosen one."""
        for key, trial in self.trials.items():
            yield trial if key == chosen else replace(trial, p=self._p(chosen, key))

    def _p(self, a: str, b: str) -> float:
        """Times the number of pairs: whichever are compared, one of them is below RISK by chance no more often than RISK."""
        a, b = self.trials[a].right, self.trials[b].right
        return min(1.0, self.pairs * paired.p_value(int((a & ~b).sum()), int((b & ~a).sum())))

    def _more(self, a: str, b: str) -> int:
        """How many images more b has right."""
        return int(self.trials[b].right.sum()) - int(self.trials[a].right.sum())


def _given(calibration) -> tuple[torch.Tensor, object]:
    """Images (n, ...), and labels as they were given, or None. TypeError or ValueError for what is neither, or too few."""
    images, labels = calibration if isinstance(calibration, (tuple, list)) and len(calibration) == 2 else (calibration, None)
    if not isinstance(images, (torch.Tensor, np.ndarray)):
        raise TypeError(f"calibration is a {type(calibration).__name__}, and must be images (n, ...), or (images, labels).")
    images = torch.cat(batches_of(images))
    if len(images) < LEAST:
        raise ValueError(f"calibration has {len(images)} images, and must have at least {LEAST}: half of them are held out to judge by.")
    if wrong := (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
        raise ValueError(f"calibration image {wrong[0]:,} holds NaN or infinity, as do {len(wrong) - 1:,} others, and all must be finite.")
    return images, labels


def _split(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images make networks, and which judge them."""
    order, fit = torch.randperm(n, generator=generator(seed)), min(FIT, n // 2)
    return order[:fit], order[fit:]


@torch.no_grad()
def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return logits_of(model.eval(), images)
