"""Honest numbers: accuracy with its interval, the error in decibels, true size, and time with its machine.

    sqnr      10 log10(sum x^2 / sum (x - x_hat)^2)

wilson, mcnemar, over_seeds and their results come from qlab.lab.significance, one page of statistics, and are available here too.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import nn

from qlab.lab import machine
from qlab.lab.data import Split
from qlab.lab.significance import Accuracy, McNemar, mcnemar, over_seeds, wilson
from qlab.quant import settled

__all__ = ["Accuracy", "Latency", "McNemar", "accuracy", "latency_ms", "logits", "mcnemar", "over_seeds", "right",
           "size_bytes", "sqnr_db", "wilson"]


def logits(model: Callable, images: torch.Tensor, batch_size: int = 100) -> torch.Tensor:
    """The model's outputs for all images, (n, classes), on the CPU, in the model's dtype and the images' order.

    model: images (batch, ...) -> logits (batch, classes), a module or any function. A module runs in evaluation mode, on its own
    device, without gradients; afterwards every part of it is in the mode it was in.
    batch_size: at 100 a small network's activations stay in the processor's cache; with 500 images at a time it takes about twice as long.
    Raises ValueError for no images, batch_size < 1, or a model that does not return (batch, classes).

    >>> logits(lambda images: torch.cat([-images, images], dim=1), torch.tensor([[-1.0], [2.0]]))
    tensor([[ 1., -1.],
            [-2.,  2.]])
    """
    images = torch.as_tensor(images)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError("there are no images, and there must be at least one.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, and must be 1 or more.")
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    held = next(chain(model.parameters(), model.buffers()), images) if parts else images
    modes, found = [part.training for part in parts], []
    # On a CPU, convolutions take about two thirds of the time if the channels of a pixel lie side by side (channels_last). A model
    # that calls view on a feature map refuses that order: it gets the plain one.
    channels_last = bool(parts) and images.ndim == 4
    try:
        if parts:
            model.eval()
        with torch.inference_mode():
            for x in images.split(batch_size):
                x = x.to(held.device)
                if channels_last:
                    try:
                        out = model(x.to(memory_format=torch.channels_last))         # contiguous() leaves images of one channel as they are
                    except RuntimeError:
                        channels_last = False
                if not channels_last:
                    out = model(x)
                _check_logits(out, len(x), found)
                found.append(out.cpu())
    finally:
        for part, mode in zip(parts, modes):  # not model.train(): a part may have been frozen in evaluation mode
            part.training = mode
    return torch.cat(found).clone()  # outside of inference mode: a plain tensor again


def accuracy(model: Callable, split: Split, batch_size: int = 100) -> Accuracy:
    """The share of images for which the largest of the model's outputs is the label's, image by image.

    model, batch_size: as for logits. split: images (n, ...) and integer labels (n,). Among equal logits the first class counts, as in
    argmax. An image whose logits hold a NaN is wrong: torch takes NaN for the largest, so a broken network would otherwise be right by
    luck. Raises ValueError if the split is empty or its lengths differ, for a label that is no class, and as logits does.

    >>> one_pixel = lambda images: torch.cat([-images, images], dim=1)               # class 1 if the pixel is positive
    >>> print(accuracy(one_pixel, Split(torch.tensor([[-1.0], [2.0], [3.0], [-4.0]]), torch.tensor([0, 1, 0, 0]))))
    75.0 % [30.1, 95.4]
    """
    images, labels = (torch.as_tensor(part) for part in split)
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"split has {len(images)} images and {len(labels)} labels, and must have equally many, at least one.")
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}, and must be integers, one an image.")
    return right(logits(model, images, batch_size), labels)


def right(logits: torch.Tensor, labels: torch.Tensor) -> Accuracy:
    """The accuracy of outputs that are there already: logits (n, classes), labels (n,). An image with a NaN among its logits is wrong.

    Raises ValueError for a label that is no class.

    >>> print(right(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])))
    50.0 % [9.5, 90.5]
    """
    labels = labels.to(logits.device)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, and must be from 0 to {logits.shape[1] - 1}: "
                         f"model has {logits.shape[1]} classes.")
    return Accuracy((logits.argmax(1) == labels) & ~logits.isnan().any(1))


def _check_logits(out, images: int, before: list[torch.Tensor]):
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != images or out.shape[1] == 0:
        raise ValueError(f"model returned {shape} for {images} images, and must return a tensor ({images}, classes).")
    if before and before[0].shape[1] != out.shape[1]:
        raise ValueError(f"model returned {before[0].shape[1]} classes for one batch and {out.shape[1]} for another.")


def _log10_energy(x: torch.Tensor) -> float:
    peak = float(x.abs().max())
    if peak == 0:
        return -math.inf
    return math.log10(float((x / peak).square().sum())) + 2 * math.log10(peak)  # divided first, so that no square over- or underflows


def sqnr_db(x, x_hat) -> float:
    """Signal-to-quantization-noise ratio in decibels: 10 log10(sum x^2 / sum (x - x_hat)^2), in float64.

    x, x_hat: numbers of the same shape. An error of 1 % of the signal gives 40 dB; each bit of a uniform quantizer adds about 6 dB.
    inf if x_hat is exact, -inf if only x is zero everywhere. Raises ValueError for different shapes, no elements, NaN or infinity.

    >>> round(sqnr_db([1.0, -1.0], [1.1, -0.9]), 6)
    20.0
    """
    x = torch.as_tensor(x, dtype=torch.float64, device="cpu").detach()
    x_hat = torch.as_tensor(x_hat, dtype=torch.float64, device="cpu").detach()
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and x_hat {tuple(x_hat.shape)}, and they must be the same.")
    if x.numel() == 0:
        raise ValueError("x is empty, and must have at least one element.")
    for name, tensor in {"x": x, "x_hat": x_hat}.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity, and must be finite.")
    noise = _log10_energy(x - x_hat)
    return math.inf if noise == -math.inf else 10 * (_log10_energy(x) - noise)


def _stored(value):
    """The plain tensors inside a value of a state dict: some quantized tensors are made of several (codes, scales, zero-points)."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _stored(part)
    elif isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _stored(getattr(value, name))
    elif isinstance(value, torch.Tensor) and value.is_quantized:
        per_tensor = value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        scale = value.q_scale() if per_tensor else value.q_per_channel_scales()
        zero_point = value.q_zero_point() if per_tensor else value.q_per_channel_zero_points()
        yield from (value.int_repr(), torch.as_tensor(scale), torch.as_tensor(zero_point))
    elif isinstance(value, torch.Tensor):
        yield value


def size_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that a file would hold, each in its own dtype; what two layers share counts once.

    Fake-quantized weights are float32 and count four bytes each: a model is small only once its codes are stored. Names, the
    settings of a qlab.quant.settled module and the file's header are not counted. Raises TypeError if model is no torch.nn.Module.

    >>> size_bytes(nn.Linear(10, 4)), size_bytes(nn.Linear(10, 4).bfloat16())
    (176, 88)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    tensors = {}
    settings = {f"{name}.{settled.KEY}".lstrip(".") for name, module in model.named_modules(remove_duplicate=False)
                if isinstance(module, settled.Settled)}
    for tensor in _stored({key: value for key, value in model.state_dict(keep_vars=True).items() if key not in settings}):
        shared = id(tensor) if tensor.is_meta else (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        tensors[shared] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: every sample, and the machine they were taken on (qlab.lab.machine.describe).

    >>> print(Latency((1.0, 2.0, 3.0, 4.0, 5.0), "AMD EPYC, 2 cores"))
    3 ms [2, 4] (median and quartiles of 5; AMD EPYC, 2 cores)
    """

    samples_ms: tuple[float, ...] = field(repr=False)
    machine: str

    @property
    def median_ms(self) -> float:
        """Half of the samples were faster."""
        return float(np.median(self.samples_ms))

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """Half of the samples lie between these two."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.quartiles_ms
        return f"{self.median_ms:.3g} ms [{low:.3g}, {high:.3g}] (median and quartiles of {len(self.samples_ms)}; {self.machine})"


def _synchronize():
    # A GPU returns before it has finished. is_initialized is true once anything in this process has used CUDA.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def latency_ms(fn: Callable[[], object], warmup: int = 3, repeats: int = 20, min_sample_ms: float = 1.0) -> Latency:
    """How long fn() takes: the median of repeats samples after warmup calls that are not counted.

    A sample is one call; if the last warm-up call took less than min_sample_ms, it is the mean of as many calls as fill that time,
    since a single one would measure the clock. Waits for the GPU if one is in use. Ratios belong to one run on one machine.
    Raises TypeError if fn cannot be called, ValueError if warmup or repeats < 1 or min_sample_ms < 0.

    >>> latency_ms(lambda: sum(range(1000)), repeats=5).median_ms > 0
    True
    """
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}, and must be a function without arguments, for example lambda: model(x).")
    for name, value in {"warmup": warmup, "repeats": repeats}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, and must be 1 or more.")
    if not (math.isfinite(min_sample_ms) and min_sample_ms >= 0):
        raise ValueError(f"min_sample_ms is {min_sample_ms}, and must be a finite number, 0 or more.")

    def sample(calls: int) -> float:
        _synchronize()
        started = time.perf_counter_ns()
        for _ in range(calls):
            fn()
        _synchronize()
        return max(1, time.perf_counter_ns() - started) / 1e6 / calls

    for _ in range(warmup):
        once = sample(1)
    calls = max(1, math.ceil(min_sample_ms / once))
    return Latency(tuple(sample(calls) for _ in range(repeats)), machine.describe())
