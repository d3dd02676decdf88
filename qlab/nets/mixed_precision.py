"""Mixed-precision training: the loop around the step of qlab.nets.half (source document, 3.3; Micikevicius et al. 2018).

    train             the step written out: half copies of the weights, a loss scale that finds itself, float32 master weights
    train_autocast    the same as torch does it, by torch.autocast and GradScaler; step by step the same weights

Both keep a diary: the loss and the scale of every step, and the steps that overflowed and changed nothing.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qlab.nets.half import Loss, check_half, check_model, check_positive, half_gradients, round_to_half, update
from qlab.nets.training import check, loop


@dataclass(frozen=True)
class LossScale:
    """S and how it finds itself: after an overflow S * backoff, after interval good steps in a row S * growth.

    A step whose gradients overflow is skipped. dynamic=False: S stays. The defaults are those of torch.amp.GradScaler, and so is each
    step; S never grows past the largest float32. Raises ValueError unless scale is finite and above 0, growth is finite and above 1,
    backoff lies between 0 and 1, and interval is 1 or more. Micikevicius et al. 2018, 3.2.

    >>> s = LossScale(8.0, interval=2)
    >>> s.after(overflow=True).scale, s.after(overflow=False).after(overflow=False).scale
    (4.0, 16.0)
    """

    scale: float = 2.0**16
    dynamic: bool = True
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good_steps: int = 0

    def __post_init__(self):
        check_positive("scale", self.scale)
        if not (math.isfinite(self.growth) and self.growth > 1):
            raise ValueError(f"growth is {self.growth}, and must be a finite number above 1.")
        if not 0 < self.backoff < 1:
            raise ValueError(f"backoff is {self.backoff}, and must lie between 0 and 1.")
        if self.interval < 1:
            raise ValueError(f"interval is {self.interval}, and must be 1 or more steps.")

    def after(self, overflow: bool) -> "LossScale":
        """What the next step uses."""
        if not self.dynamic:
            return self
        if overflow:
            return replace(self, scale=self.scale * self.backoff, good_steps=0)
        if self.good_steps + 1 < self.interval:
            return replace(self, good_steps=self.good_steps + 1)
        grown = self.scale * self.growth
        return replace(self, scale=grown if grown <= torch.finfo(torch.float32).max else self.scale, good_steps=0)


@dataclass(frozen=True)
class Run:
    """model: the trained float32 (master) weights, in evaluation mode. One entry a step: losses (not scaled) and the scales used.

    skipped: the steps, counted from 0, whose gradients overflowed and that changed nothing.
    """

    model: nn.Module
    losses: list[float]
    scales: list[float]
    skipped: list[int]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float, *, half: torch.dtype = torch.float16,
          master: bool = True, scaler: LossScale | None = LossScale(), seed: int = 0, batch_size: int = 128,
          momentum: float = 0.9, weight_decay: float = 5e-4, loss: Loss = cross_entropy, name: str = "mixed precision") -> Run:
    """Train the float32 model in place with products in half precision; optimiser, schedule and batches are those of training.fit.

    images: float (n, ...); labels: int64 (n,), on the model's device; loss(logits, labels) gives a scalar from float32 logits.
    master=False leaves the master weights out (see update). scaler=None leaves the scaling out, and with it the check for overflow:
    what overflows reaches the weights. The same seed, machine and number of threads give the same weights.

    Raises what training.fit and half_gradients raise, TypeError for a scaler of another type, and FloatingPointError where a dynamic
    scale has fallen below 2^-24, since then something other than the scale is infinite.

    >>> x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    >>> run = train(nn.Linear(4, 2), x, y, epochs=3, max_lr=0.1, batch_size=32)
    >>> len(run.losses), run.scales[-1], run.skipped
    (6, 65536.0, [])
    """
    _check_train(model, images, labels, epochs, max_lr, batch_size, half, scaler)
    state = scaler or LossScale(1.0, dynamic=False)

    def step(optimizer, x, y):
        nonlocal state
        scale = state.scale
        value, gradients = half_gradients(model, x, y, half=half, scale=scale, loss=loss)
        overflow = scaler is not None and not all(g.isfinite().all() for g in gradients.values() if g is not None)
        update(model, optimizer, gradients, scale=scale, half=half, master=master, skip=overflow)
        state = state.after(overflow)
        return value, scale, overflow

    if not master:
        with torch.no_grad():
            round_to_half(model, half)
    return _loop(model, images, labels, epochs, max_lr, step, seed, batch_size, momentum, weight_decay, name)


def train_autocast(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float, *,
                   half: torch.dtype = torch.float16, scaler: LossScale | None = LossScale(), seed: int = 0, batch_size: int = 128,
                   momentum: float = 0.9, weight_decay: float = 5e-4, loss: Loss = cross_entropy, name: str = "autocast") -> Run:
    """The same training as torch does it: torch.autocast for steps 1 and 2, torch.amp.GradScaler with the scaler's settings for S.

    >>> x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    >>> torch.manual_seed(0); a, b = nn.Linear(4, 2), nn.Linear(4, 2)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> _ = b.load_state_dict(a.state_dict())
    >>> torch.equal(train(a, x, y, 2, 0.1).model.weight, train_autocast(b, x, y, 2, 0.1).model.weight)
    True
    """
    _check_train(model, images, labels, epochs, max_lr, batch_size, half, scaler)
    if scaler is not None and not scaler.dynamic:
        raise ValueError(f"scaler is {scaler}, and must be a dynamic LossScale or None, as GradScaler knows no other.")
    device, start = images.device.type, scaler or LossScale()
    grad_scaler = torch.amp.GradScaler(device, start.scale, start.growth, start.backoff, start.interval, enabled=scaler is not None)

    def step(optimizer, x, y):
        scale = grad_scaler.get_scale()
        with torch.autocast(device, half):
            logits = model(x)
        value = loss(logits.float(), y)
        optimizer.zero_grad()
        grad_scaler.scale(value).backward()
        grad_scaler.unscale_(optimizer)
        overflow = scaler is not None and not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        if overflow:
            optimizer.zero_grad()       # GradScaler.step will not call the optimiser, at which the schedule would warn:
            optimizer.step()            # without gradients it changes nothing
        grad_scaler.step(optimizer)
        grad_scaler.update()
        return value.detach(), scale, overflow

    return _loop(model, images, labels, epochs, max_lr, step, seed, batch_size, momentum, weight_decay, name)


def _loop(model, images, labels, epochs, max_lr, step, seed, batch_size, momentum, weight_decay, name) -> Run:
    """training.fit's loop, with a diary; step(optimizer, x, y) returns the loss, the scale, and whether it overflowed."""
    losses, scales, skipped = [], [], []

    def noted(optimizer, x, y):
        value, scale, overflow = step(optimizer, x, y)
        if overflow:
            skipped.append(len(losses))
            if scale < 2.0**-24:
                raise FloatingPointError(f"the gradients are not finite even at a loss scale of {scale:.3g}: an image, a weight or "
                                         "an activation is NaN, infinite, or larger than half precision can hold.")
        losses.append(value.item())
        scales.append(scale)
        return value

    loop(model, images, labels, epochs, max_lr, noted, seed=seed, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay,
         name=name)
    model.zero_grad()
    return Run(model, losses, scales, skipped)


def _check_train(model, images, labels, epochs, max_lr, batch_size, half, scaler) -> None:
    check_half(half)
    check_model(model)
    check(images, labels, epochs, batch_size, max_lr)
    if not isinstance(scaler, LossScale | None):
        raise TypeError(f"scaler is a {type(scaler).__name__}, and must be a LossScale or None.")
