"""A network that was tried: what it weighs, what it loses on held-out images, how long it took; and a folder in which it is kept.

    folder/run.json                      what the trials are of: a checksum of the network, the images and the settings
    folder/learned-3.safetensors         a network
    folder/learned-3.json                which held-out images it has right; written when the first is whole

A search that was killed finds them there. A folder of another run is refused, for its trials are of other images.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qlab import saving
from qlab.nets import ptq
from qlab.nets.ptq import Quantized
from qlab.search import paired

AGAIN = "remove it, and the trial is made again"


@dataclass(frozen=True)
class Trial:
    """One way at certain bits. bits: by layer. nbytes: of the network as a file would hold it. right: bool (held-out images,). seconds: of
    the wall clock, to make it and to judge it. lost, low, high: how many points fewer are right than of the float network, and between
    which limits that lies; they hold for all trials of a search together. p: of the comparison with the network that was chosen, times
    the number of pairs that could be compared; None for that one, and where nothing was compared."""

    way: str
    bits: Mapping[str, int]
    nbytes: int
    right: torch.Tensor = field(repr=False)
    seconds: float
    lost: float
    low: float
    high: float
    p: float | None = None

    @property
    def name(self) -> str:
        """The way, and the bits.

        >>> Trial("a scale a channel", {"0": 3, "1": 3}, 10, torch.tensor([True]), 1.0, 0.0, 0.0, 0.0).name
        'uniform 3 bits (a scale a channel)'
        """
        return f"{told(self.bits)} ({self.way})"

    @property
    def points(self) -> str:
        """What it loses, and the limits, in words.

        >>> Trial("", {}, 0, torch.tensor([True]), 1.0, lost=0.5, low=-0.125, high=1.25).points
        'loses 0.50 points (-0.12 to 1.25)'
        """
        return f"loses {self.lost:.2f} points ({self.low:.2f} to {self.high:.2f})"


def told(bits: Mapping[str, int]) -> str:
    """Bits by layer, in words.

    >>> told({"a": 3, "b": 3}), told({"a": 8, "b": 2})
    ('uniform 3 bits', '2 to 8 bits')
    """
    low, high = min(bits.values()), max(bits.values())
    return f"uniform {low} bits" if low == high else f"{low} to {high} bits"


def judged(way: str, bits: Mapping[str, int], nbytes: int, right: torch.Tensor, reference: torch.Tensor, seconds: float,
           confidence: float) -> Trial:
    """The trial of a network of which `right` says what it has right, where the float network has `reference` right; bool (n,), both.

    >>> trial = judged("nearest", {"0": 3}, 10, torch.tensor([True, False]), torch.tensor([True, True]), 0.1, 0.95)
    >>> trial.lost
    50.0
    """
    lost, won = int((reference & ~right).sum()), int((right & ~reference).sum())
    low, high = paired.limits(lost, won, len(right), confidence)
    return Trial(way, dict(bits), nbytes, right, seconds, 100 * (lost - won) / len(right), 100 * low, 100 * high)


def table(trials: list[Trial]) -> str:
    """What was tried, a line each.

    >>> print(table([judged("nearest", {"0": 3}, 10, torch.tensor([True] * 99 + [False]), torch.ones(100, dtype=torch.bool), 0.1, 0.95)]))
                                 bytes   right  points lost  at least  at most         p   seconds
    uniform 3 bits (nearest)        10  99.00%         1.00     -2.74     5.45         -       0.1
    """
    wide = max(len(trial.name) for trial in trials)
    lines = [f"{'':{wide}}  {'bytes':>8}  {'right':>6}  points lost  at least  at most         p   seconds"]
    for t in trials:
        p = "-" if t.p is None else p_in_words(t.p).removeprefix("p ").removeprefix("= ")
        lines.append(f"{t.name:{wide}}  {t.nbytes:8,}  {100 * t.right.double().mean().item():5.2f}%  {t.lost:11.2f}  {t.low:8.2f}  "
                     f"{t.high:7.2f}  {p:>8}  {t.seconds:8.1f}")
    return "\n".join(lines)


def p_in_words(p: float) -> str:
    """Four digits.

    >>> p_in_words(0.03), p_in_words(1e-9)
    ('p = 0.0300', 'p < 0.0001')
    """
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def fingerprint(tensors: Mapping[str, torch.Tensor], settings: Mapping) -> str:
    """A sha256 of tensors and settings (of what JSON holds), in whatever order they are.

    >>> x = torch.zeros(2)
    >>> fingerprint({"x": x}, {"seed": 0}) == fingerprint({"x": x}, {"seed": 1})
    False
    """
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        found.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        found.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def check_folder(folder: str | os.PathLike) -> None:
    """ValueError, in one sentence, where trials cannot be kept: a file, or a folder that holds something else."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder that is empty, or none yet.")
    kept = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if kept and "run.json" not in kept:
        raise ValueError(f"{folder} holds {kept[0]} and no run.json: name a folder that is empty, or none yet.")


def claim(folder: str | os.PathLike, of: str) -> Path:
    """Make the folder, or take one that is of the same run; ValueError, in one sentence, for one of another."""
    check_folder(folder)
    folder = saving.make_folder(folder)
    place = folder / "run.json"
    if not place.exists():
        saving.write({place: json.dumps({"trials_of": of}).encode()})
    if _read(place, "name another folder").get("trials_of") != of:
        raise ValueError(f"{folder} holds trials of another network, other calibration images, or other settings: name another folder.")
    return folder


def keep(folder: Path, key: str, made: Quantized, right: torch.Tensor, seconds: float) -> None:
    """Write the network, and then the words about it. Raises OSError where that cannot be done."""
    made.save(folder / f"{key}.safetensors")
    words = {"right": np.packbits(right.numpy()).tobytes().hex(), "images": len(right), "seconds": seconds}
    saving.write({folder / f"{key}.json": json.dumps(words).encode()})


def is_kept(folder: Path, key: str) -> bool:
    """Whether it was written to its end, and both files are still there."""
    return all((folder / f"{key}.{ending}").exists() for ending in ("json", "safetensors"))


def kept(folder: Path, key: str, images: int) -> tuple[Quantized, torch.Tensor, float]:
    """What keep wrote, of so many images. Raises OSError where it cannot be read, ValueError, in one sentence, where it is damaged."""
    place, network = folder / f"{key}.json", folder / f"{key}.safetensors"
    words = _read(place, AGAIN)
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(words["right"]), np.uint8))
        right, seconds = torch.from_numpy(bits[:images].astype(bool)), float(words["seconds"])
        whole = words["images"] == len(right) == images and math.isfinite(seconds)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{place} is damaged: {AGAIN}.")
    try:
        return ptq.load(network), right, seconds
    except ValueError:
        raise ValueError(f"{network} is damaged: {AGAIN}.") from None


def _read(place: Path, do: str) -> dict:
    try:
        found = json.loads(saving.read(place))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{place} is damaged: {do}.")
    return found
