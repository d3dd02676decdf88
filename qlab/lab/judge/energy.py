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
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qlab.llm.activations import evaluating
from qlab.quant.layout import as_tensor, check_name, check_whole

POWERCAP = Path("/sys/class/powercap")
MAC_PJ = {"float32": 3.7 + 0.9, "float16": 1.1 + 0.4, "int8": 0.2 + 0.1}        # int8: the sum is of 32 bits
DRAM_PJ_A_BYTE = (1300 / 8, 2600 / 8)                                           # an access fetches 64 bits
# What an operator that multiplies matrices has in its name, between underscores. A fused cell (thnn) only adds up what was multiplied.
PRODUCT = re.compile(r"(?!_thnn).*(^|_)([a-z]*(mm|mv|dot|linear|matmul)|conv(\dd|olution)?|attention|encoder|rnn|lstm|gru|cdist)(_|$)")


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
    quiet machine. Raises ValueError unless seconds is from 0.001 to 30 (a counter that runs over twice is taken to have run over once),
    TypeError if fn cannot be called.

    >>> measured(lambda: None, seconds=0.001, folder=Path("nowhere")) is None
    True
    """
    check_seconds(seconds)
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}, and must be a function without arguments, for example lambda: model(x).")
    packages = list(counters(folder).values())
    if not packages:
        return None
    idle, idle_s, _ = _during(lambda: time.sleep(seconds), 0, packages)
    busy, busy_s, calls = _during(fn, seconds, packages)
    return (busy - idle / idle_s * busy_s) / calls


def check_seconds(seconds) -> None:
    """Raises ValueError unless a counter can be watched for so long."""
    if not isinstance(seconds, Real) or not 0.001 <= seconds <= 30:
        raise ValueError(f"seconds is {seconds!r}, and must be a number from 0.001 to 30.")


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

    aten = torch.ops.aten
    return flop_registry | {                                                    # the CPU's own, which torch has no formulas for
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
        aten.mkldnn_rnn_layer: lambda x, *weights, out_val: 2 * x[..., 0].numel() * (weights[0].numel() + weights[1].numel())}


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
        elif func.namespace not in ("aten", "prim", "prims") or PRODUCT.match(func._overloadpacket.__name__):
            raise ValueError(f"the model calls {func._overloadpacket}, whose multiplications cannot be counted.")
        return out


@contextlib.contextmanager
def _step_by_step():
    """Attention as the matrix products that it is made of: torch's fast path is one operator, in evaluation mode alone."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def macs(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image (1, ...), in evaluation mode; the model stays as it is.

    Raises TypeError for what is no module, ValueError for more than one image, and for an operator that multiplies and cannot be counted.

    >>> macs(nn.Conv2d(1, 2, 3), torch.ones(1, 1, 5, 5))                        # 2 channels of 3 x 3 places, 9 factors each
    162
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    image = as_tensor(image, "image")
    if image.ndim == 0 or len(image) != 1:
        raise ValueError(f"image has the shape {tuple(image.shape)}, and must be (1, ...), one image.")
    with evaluating(model), _step_by_step(), _Count() as count:
        model(image)
    return count.flops // 2                                                     # the multiplication and the addition are two


def modelled(macs: int, nbytes: int, arithmetic: str) -> Modelled:
    """Microjoules an image by the model: macs multiply-accumulates in "float32", "float16" or "int8", nbytes of weights fetched once.

    Raises ValueError for another arithmetic, and for counts that are no whole numbers of 0 or more.

    >>> print(modelled(1_000_000, 100_000, "int8"))
    16.6 to 32.8 uJ by a model (1,000,000 MACs: 0.3 uJ; the rest is DRAM)
    """
    check_name("arithmetic", arithmetic, MAC_PJ)
    check_whole("macs", macs, 0)
    check_whole("nbytes", nbytes, 0)
    computed = macs * MAC_PJ[arithmetic] / 1e6
    return Modelled(macs, computed, *(computed + nbytes * pj / 1e6 for pj in DRAM_PJ_A_BYTE))
