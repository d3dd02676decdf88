"""Calibration: which values each tensor of activations has on training images, and so which range its codes have to cover.

The range comes from what was seen, in one of five ways (qlab.quant.ranges); where it is needed, qlab.nets.graph tells (points).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import fx, nn

from qlab.errors import first_line
from qlab.nets.graph import Walk, folding_pairs, kind, points, trace
from qlab.quant import ranges as ranges_of
from qlab.quant.layout import FLOATS, as_tensor

RANGES = ("minmax", "average", "percentile", "mse", "entropy")
SAMPLE = 1 << 18                                                                            # values of an activation that are kept


def batches_of(calibration: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Batches of images, as tensors; TypeError or ValueError, in one sentence, for what is none.

    >>> [tuple(batch.shape) for batch in batches_of(torch.zeros(200, 1, 4, 4))]
    [(128, 1, 4, 4), (72, 1, 4, 4)]
    """
    if isinstance(calibration, (torch.Tensor, np.ndarray)):
        batches = list(_images(calibration).split(128))
    elif isinstance(calibration, Iterable):
        batches = [_images(batch) for batch in calibration]
    else:
        raise TypeError(f"calibration is a {type(calibration).__name__}, and must be a tensor of images, (n, ...), or batches of them.")
    if not sum(len(batch) for batch in batches):
        raise ValueError("there are no calibration images, and some are needed: a few hundred are enough.")
    return batches


def _images(batch) -> torch.Tensor:
    if not isinstance(batch, (torch.Tensor, np.ndarray)):
        raise TypeError(f"calibration holds a {type(batch).__name__}, and must hold tensors of images, (n, ...).")
    batch = as_tensor(batch, "calibration")
    if batch.dtype not in FLOATS or batch.dim() == 0:
        raise ValueError(f"calibration holds {batch.dtype} of shape {tuple(batch.shape)}, and must hold images (n, ...) in floating point.")
    return batch


@torch.no_grad()
def observe(traced: fx.GraphModule, batches: list[torch.Tensor], ranges: str, bits: dict[str, int]) -> dict[str, ranges_of.Range]:
    """The range of the values at each of graph.points, by node name, over all batches; bits: of each point.

    All extremes are seen; percentile, mse and entropy work on a random sample of up to 262,144 values and the extremes. A softmax's codes
    are those of 0, 1/256, .. 255/256, whatever was seen.

    >>> net = trace(nn.Sequential(nn.Flatten(), nn.ReLU()))
    >>> seen = observe(net, [torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.5, 3.0]])], "minmax", {"input_1": 8})
    >>> {name: (low.item(), high.item()) for name, (low, high) in seen.items()}
    {'input_1': (-1.0, 3.0)}
    """
    wanted = {node: _Seen(node.name, ranges) for node in points(traced)}

    class Observer(Walk):
        def run_node(self, node):
            result = super().run_node(node)
            if node in wanted:
                wanted[node].update(result)
            return result

    for batch in (batch for batch in batches if len(batch)):
        _run(Observer(traced), batch)
    shares = (torch.tensor(0.0), torch.tensor(255 / 256))
    return {node.name: shares if kind(traced, node) == "softmax" else seen.range(bits[node.name]) for node, seen in wanted.items()}


class _Seen:
    """What calibration keeps of one tensor of activations."""

    def __init__(self, name: str, ranges: str):
        self.name, self.ranges = name, ranges
        self.extremes = ranges_of.MovingAverage() if ranges == "average" else ranges_of.RunningMinMax()
        self.values, self.generator = [], torch.Generator().manual_seed(0)

    def update(self, x: torch.Tensor) -> None:
        if not torch.isfinite(x).all():
            raise ValueError(f"the values at {self.name} hold NaN or infinity on the calibration images, and must be finite.")
        self.extremes.update(x)
        if self.ranges not in ("minmax", "average"):
            self.values.append(self._some(x.flatten(), SAMPLE // 4))

    def _some(self, x: torch.Tensor, most: int) -> torch.Tensor:
        return x if len(x) <= most else x[torch.randint(len(x), (most,), generator=self.generator).to(x.device)]

    def range(self, bits: int) -> ranges_of.Range:
        if not self.values:
            return self.extremes.range()
        values = torch.cat([self._some(torch.cat(self.values), SAMPLE), torch.stack(self.extremes.range())])
        if self.ranges == "percentile":
            return ranges_of.percentile(values, 99.9)
        return ranges_of.mse(values, bits, "affine") if self.ranges == "mse" else ranges_of.entropy(values, bits)


@torch.no_grad()
def check_norms(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """ValueError for a BatchNorm1d behind a linear layer of (n, rows, features): it norms the rows, and no weight has these."""
    if not any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        return
    traced = trace(model)
    behind = {linear: bn for linear, bn in folding_pairs(traced) if kind(traced, linear) == "linear"}

    class Ranks(Walk):
        def run_node(self, node):
            result = super().run_node(node)
            if node in behind and result.dim() > 2:
                raise ValueError(f"{behind[node].target} norms dimension 1 of the {tuple(result.shape)} that {node.target} makes, whose "
                                 "features are the last: it may stand behind a linear layer of (n, features), or a Conv1d.")
            return result

    if behind:
        _run(Ranks(traced), next(batch for batch in batches if len(batch)))


def _run(walk: Walk, batch: torch.Tensor) -> None:
    try:
        walk.run(batch)
    except (RuntimeError, IndexError, TypeError) as error:
        own = next((f", a network of {p.dtype}," for p in walk.module.parameters() if p.dtype != batch.dtype), "")
        said = first_line(error)
        raise ValueError(f"the network{own} cannot take the calibration images, {batch.dtype} {tuple(batch.shape)} ({said}).") from None
