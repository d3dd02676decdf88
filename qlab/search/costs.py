"""What a layer costs at each width, as tables that an allocation is paid from: bytes, bit operations, milliseconds.

    nbytes      packed codes, scales, zero-points, codebooks: what a QTensor counts, all of which a file holds
    bitops      multiply-accumulates * bits of the weight * bits of the activation                  (HAWQ-V3, Yao et al. 2021, section 3.4)
    latency     the median time of a kernel, measured on this machine; see qlab.search.kernels for kernels to measure

The three rank allocations differently. A depthwise layer has few weights and many operations; a wide linear layer at the end is the
reverse. And time goes by the kernels that there are: where 8 bits are the narrowest, 2 bits are not faster.
"""

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn

from qlab.nets.channels import macs
from qlab.quant.layout import as_tensor, check_bits, check_whole
from qlab.search.candidates import Candidates, check_kind, checked
from qlab.search.table import WIDEST, Table

SAMPLE_S = 0.001                                                                            # a sample is as many calls as take this long


def nbytes(candidates: Candidates) -> Table:
    """The true bytes of each candidate. Raises TypeError for no candidates, ValueError where layers have different widths.

    >>> from qlab.search import candidates
    >>> print(nbytes(candidates.make(nn.Sequential(nn.Linear(64, 10)), (2, 4))))           # 640 codes, 10 float32 scales
       2 bits  4 bits
    0     200     360
    """
    check_kind(candidates)
    return Table.from_rows({name: {bits: q.nbytes for bits, q in of_layer.items()} for name, of_layer in candidates.items()})


def rest_nbytes(model: nn.Module, candidates: Candidates) -> int:
    """Bytes of all that the candidates leave as it is, biases among them: a file's budget is this, and a budget for nbytes.

    >>> from qlab.search import candidates
    >>> net = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> made = candidates.make(net, (2, 8))
    >>> rest_nbytes(net, made), candidates.apply(net, made, {"0": 2, "2": 8}).nbytes - nbytes(made)({"0": 2, "2": 8})
    (48, 48.0)
    """
    model, layers, _ = checked(model, candidates)                                           # whose weights are those that are stored
    weights = {id(model.get_submodule(name).weight) for name in layers}
    rest = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor) and id(t) not in weights}
    return sum(t.numel() * t.element_size() for t in rest.values())


def bitops(model: nn.Module, candidates: Candidates, image: torch.Tensor, activation_bits: int = 8) -> Table:
    """Bit operations of each layer for one image: MACs * bits * activation_bits. image: (1, ...), its values do not matter.

    Raises ValueError for an image that the model cannot take, more or fewer than one, candidates of another model, activation_bits outside
    1 to 32.

    >>> from qlab.search import candidates
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 10))
    >>> print(bitops(net, candidates.make(net, (2, 4)), torch.zeros(1, 1, 4, 4)))           # 1152 and 1280 MACs
       2 bits  4 bits
    0   18432   36864
    2   20480   40960
    """
    model, layers, widths = checked(model, candidates)
    activation_bits, image = check_bits(activation_bits, 1, WIDEST), as_tensor(image, "image")
    if not image.dim() or len(image) != 1:
        raise ValueError(f"image has {len(image) if image.dim() else 'no'} images, and must be one, (1, ...).")
    counted = macs(model, image)
    return Table(layers, widths, [[counted[name] * bits * activation_bits for bits in widths] for name in layers])


def latency(kernels: Mapping[str, Mapping[int, Callable[[], object]]], widths: Iterable[int], repeats: int = 20) -> Table:
    """The median time of each layer's kernel, in milliseconds, with the standard error of the median.

    kernels: by layer and bits, functions without arguments that compute the layer once (qlab.search.kernels.of). A width without a kernel
    costs what the next wider one costs: its codes are unpacked for that kernel when the model is loaded, once. repeats: samples; all
    kernels are run in turn, so that a slow moment of the machine meets all of them, and a sample is as many calls as take a millisecond.
    Times are of this machine, now: measure where nothing else runs, and do not add tables of two machines.
    Raises ValueError for no layers, a layer without a kernel as wide as the widest width, fewer than 2 repeats.

    >>> table = latency({"a": {8: lambda: sum(range(2000))}, "b": {4: lambda: None, 8: lambda: sum(range(200))}}, (2, 4, 8), repeats=3)
    >>> table["a", 2] == table["a", 4] == table["a", 8] > table["b", 8] > table["b", 4]
    True
    """
    widths = sorted({check_bits(bits, 1, WIDEST) for bits in widths})
    check_whole("repeats", repeats, 2)
    if not widths or not kernels:
        raise ValueError("there are no kernels or no widths, and both must be given, at least one.")
    for name, of_layer in kernels.items():
        if not of_layer or max(of_layer) < widths[-1]:
            raise ValueError(f"{name or 'the network'} has kernels for {', '.join(map(str, sorted(of_layer))) or 'no'} bits, and must have "
                             f"one for {widths[-1]} bits or more, the widest of widths.")
    taken = {(name, min(own for own in of_layer if own >= bits)) for name, of_layer in kernels.items() for bits in widths}
    calls, samples = {}, {place: [] for place in sorted(taken)}
    for name, bits in samples:
        kernel = kernels[name][bits]
        kernel()                                                                            # the first call prepares
        calls[name, bits] = max(1, round(SAMPLE_S / _seconds(kernel, 1)))
    for _ in range(repeats):
        for place, seconds in samples.items():
            seconds.append(_seconds(kernels[place[0]][place[1]], calls[place]))
    rows = {name: [1000 * np.array(samples[name, min(own for own in of_layer if own >= bits)]) for bits in widths]
            for name, of_layer in kernels.items()}
    medians = torch.tensor([[float(np.median(ms)) for ms in row] for row in rows.values()], dtype=torch.float64)
    errors = torch.tensor([[_error_of_median(ms) for ms in row] for row in rows.values()], dtype=torch.float64)
    return Table(tuple(rows), tuple(widths), medians, errors)


def _seconds(kernel: Callable[[], object], calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        kernel()
    return max(1, time.perf_counter_ns() - started) / 1e9 / calls


def _error_of_median(samples: np.ndarray) -> float:
    """For normal samples 1.2533 sigma / sqrt(n), sigma from the quartiles, which an interrupted sample does not move: IQR / 1.349."""
    low, high = np.percentile(samples, [25, 75])
    return float(1.2533 * (high - low) / 1.349 / len(samples)**0.5)
