"""What does one image cost in energy? By a counter where the machine has one, by a model where it has not.

    counter    Intel's and AMD's processors count the microjoules of the whole package (RAPL); Linux shows them in /sys/class/powercap
    model      MACs * (multiply + add) + bytes of the weights * DRAM                                            Horowitz 2014, figure 1.1.9

A counter sees everything that the processor does, other programs and idling included: the machine has to be quiet, and the share of the
network is the difference to the same time idle. Many machines hide it (virtual ones have none, and Linux shows it to root alone).

The model is of bare arithmetic and of fetching each weight once from DRAM, for a chip of 45 nm at 0.9 V. It leaves out instructions (about
70 pJ each), caches and activations. So its joules are of no machine; that one network takes so many times the energy of another, for the
same arithmetic and traffic, is what it can say.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

POWERCAP = Path("/sys/class/powercap")
MAC_PJ = {"float32": 3.7 + 0.9, "float16": 1.1 + 0.4, "int8": 0.2 + 0.1}        # int8: the sum is of 32 bits
DRAM_PJ_A_BYTE = (1300 / 8, 2600 / 8)                                           # an access fetches 64 bits


@dataclass(frozen=True)
class Modelled:
    """Microjoules an image. arithmetic: of the MACs; low, high: with the weights fetched from DRAM, at its best and at its worst.

    >>> print(Modelled(macs=1_000_000, arithmetic=0.3, low=16.5, high=32.8))
    16.5 to 32.8 uJ by a model (1,000,000 MACs: 0.3 uJ; the rest is DRAM)
    """

    macs: int
    arithmetic: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} uJ by a model ({self.macs:,} MACs: {self.arithmetic:.2g} uJ; the rest is DRAM)"


def counters(folder: Path = POWERCAP) -> dict[str, Path]:
    """The packages whose energy this program may read: name -> folder of the counter. Empty where there are none.

    >>> counters(Path("nowhere"))
    {}
    """
    found = {}
    for place in sorted(folder.glob("*")):
        try:
            name = (place / "name").read_text().strip()
            if name.startswith("package"):                                      # a package's parts (core, dram) would count twice
                int((place / "energy_uj").read_text()), int((place / "max_energy_range_uj").read_text())
                found[name] = place
        except (OSError, ValueError):
            continue
    return found


def measured(fn: Callable[[], object], seconds: float = 5.0, folder: Path = POWERCAP) -> float | None:
    """Joules that one call of fn() takes above idling, of all packages, by their counters; None where nothing can be read.

    The machine idles for so many seconds, and then calls fn for as many. Below zero where others did more meanwhile: then repeat it on a
    quiet machine. Raises ValueError unless seconds is from 0.001 to 30: a counter that runs over twice is taken to have run over once.

    >>> measured(lambda: None, seconds=0.001, folder=Path("nowhere")) is None
    True
    """
    if not 0.001 <= seconds <= 30:
        raise ValueError(f"seconds is {seconds}, and must be from 0.001 to 30.")
    packages = list(counters(folder).values())
    if not packages:
        return None
    idle, idle_s, _ = _during(lambda: time.sleep(seconds), 0, packages)
    busy, busy_s, calls = _during(fn, seconds, packages)
    return (busy - idle / idle_s * busy_s) / calls


def _during(fn: Callable[[], object], seconds: float, packages: list[Path]) -> tuple[float, float, int]:
    """Joules, seconds and calls: fn() again and again until the seconds are over, once at least."""
    before, began, calls = _read(packages), time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        fn()
        calls += 1
    took, after = time.perf_counter() - began, _read(packages)
    # A counter begins at 0 again behind its largest value.
    return sum((b - a) % (top + 1) for (a, top), (b, _) in zip(before, after)) / 1e6, took, calls


def _read(packages: list[Path]) -> list[tuple[int, int]]:
    return [(int((p / "energy_uj").read_text()), int((p / "max_energy_range_uj").read_text())) for p in packages]


def _formulas() -> dict:
    """Operations by operator, torch's. Its page imports Triton; without a GPU that must be told first to interpret, as ours tells it."""
    with contextlib.suppress(ImportError):
        import qlab.matmul.triton  # noqa: F401
    from torch.utils.flop_counter import flop_registry

    return flop_registry


class _Count(TorchDispatchMode):
    """What torch's own FlopCounterMode counts, without its import of a compiler, which takes seconds."""

    def __init__(self):
        super().__init__()
        self.flops, self.formulas = 0, _formulas()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.formulas:
            self.flops += self.formulas[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@torch.no_grad()
def macs(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image (1, ...). ValueError for more than one.

    >>> macs(nn.Conv2d(1, 2, 3), torch.ones(1, 1, 5, 5))                        # 2 channels of 3 x 3 places, 9 factors each
    162
    """
    if len(image) != 1:
        raise ValueError(f"image holds {len(image)} images, and must hold one.")
    with _Count() as count:
        model(image)
    return count.flops // 2                                                     # the multiplication and the addition are two


def modelled(macs: int, nbytes: int, arithmetic: str) -> Modelled:
    """Microjoules an image by the model: macs multiply-accumulates in "float32", "float16" or "int8", nbytes of weights fetched once.

    Raises ValueError for another arithmetic or negative counts.

    >>> print(modelled(1_000_000, 100_000, "int8"))
    16.6 to 32.8 uJ by a model (1,000,000 MACs: 0.3 uJ; the rest is DRAM)
    """
    if arithmetic not in MAC_PJ:
        raise ValueError(f"arithmetic is {arithmetic!r}, and must be one of {', '.join(MAC_PJ)}.")
    if macs < 0 or nbytes < 0:
        raise ValueError(f"macs is {macs} and nbytes is {nbytes}, and both must be 0 or more.")
    computed = macs * MAC_PJ[arithmetic] / 1e6
    return Modelled(macs, computed, *(computed + nbytes * pj / 1e6 for pj in DRAM_PJ_A_BYTE))
