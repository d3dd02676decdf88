"""One network in several runtimes, side by side: bytes on disk, which images it gets right, and the time of one image.

A machine does other things too, now and then. So the runtimes take turns, one call each, again and again: what disturbs one disturbs all,
and the median of each is compared with the others of the same minute.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Runtime = Callable[[torch.Tensor], torch.Tensor]                                            # images to logits
BATCHES = (1, 100)


@dataclass(frozen=True, eq=False)
class Row:
    """nbytes: of the file. right: bool (n,), image by image. operators: what the runtime executes, and how often, for one batch.

    ms: milliseconds an image, by (threads, images in a batch).
    """

    name: str
    nbytes: int
    right: torch.Tensor
    ms: dict[tuple[int, int], float]
    operators: dict[str, int]

    @property
    def accuracy(self) -> float:
        return self.right.double().mean().item()


def all_threads() -> tuple[int, ...]:
    """One thread, and as many as this process may use: (1, 2) on two cores, (1,) on one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, usable}))


def right(runtime: Runtime, images: torch.Tensor, labels: torch.Tensor, batch: int = 100) -> torch.Tensor:
    """Whether the largest logit is the label's, bool (n,); an image with a NaN among its logits is wrong.

    The runtime gets copies of the images, and may write on them.

    >>> right(lambda x: x, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([ True, False])
    """
    logits = torch.cat([runtime(x.clone()) for x in images.split(batch)])
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def times(runtimes: Mapping[str, Runtime], images: torch.Tensor, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds an image of each runtime, on copies of this batch of images, in turns after three that do not count."""
    samples = {name: [] for name in runtimes}
    for turn in range(3 + repeats):
        for name, runtime in runtimes.items():
            own = images.clone()                                                            # the next one gets what this one got
            started = time.perf_counter_ns()
            runtime(own)
            if turn >= 3:
                samples[name].append(time.perf_counter_ns() - started)
    return {name: statistics.median(taken) / 1e6 / len(images) for name, taken in samples.items()}


def table(rows: list[Row]) -> str:
    """The rows as text: bytes, accuracy on so many images, microseconds an image.

    >>> print(table([Row("float", 4000, torch.tensor([True, False]), {(1, 1): 0.5, (1, 100): 0.25}, {})]))
                                      right of     us an image at threads x batch
                             bytes           2      1x1    1x100
    float                    4,000           1      500      250
    """
    cases = list(rows[0].ms)
    lines = [f"{'':29}{'right of':>13}     us an image at threads x batch",
             f"{'':21}{'bytes':>9}{len(rows[0].right):>12,}" + "".join(f"{f'{t}x{b}':>9}" for t, b in cases)]
    for row in rows:
        lines.append(f"{row.name:21}{row.nbytes:>9,}{int(row.right.sum()):>12,}" + "".join(f"{1e3 * row.ms[c]:>9.0f}" for c in cases))
    return "\n".join(lines)
