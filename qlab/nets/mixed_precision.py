"""Mixed-precision training (source document, 3.3; Micikevicius et al. 2018): products in 16 bits, what must not get lost in 32.

    1.  w16 = half(w32)                                 a copy of the weights in half precision; the activations follow
    2.  y16 = f(x16, w16),   g16 = d(S L) / d w16       products of the forward and of the backward pass in half precision
    3.  L = loss(float(y16)),   g32 = float(g16) / S    loss, gradient and update in float32,
        w32 = w32 - lr g32                              on the master weights w32; the copy of the next step is made from them

S is the loss scale. The smallest float16 above 0 is 2^-24, and gradients smaller than half of that become 0. Backpropagation is linear, so
gradients of S L are S times those of L: they are moved into the range that float16 has, and are divided by S once they are float32.
Why w32: a float16 keeps 11 significant bits, so an update below about 2^-11 of its weight changes nothing (2048 + 1 is 2048).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from qlab.nets.fake import HALVES
from qlab.nets.training import check, loop
from qlab.quant.settled import Settled

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}, and must be a finite number above 0.")


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
        _positive("scale", self.scale)
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


def half_copies(model: nn.Module, half: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Step 1: every floating-point parameter and buffer by name, in half precision; those of batch norm and quantizers stay float32.

    Batch norm keeps float32 because its statistics are sums over a batch and running averages with updates of a tenth and less: in
    half they stand still as weights do. It takes half activations and returns half ones. A quantizer's scale (qlab.nets.fake, qat) keeps
    it because all levels are its multiples: rounded, it would move every one of them.

    >>> {name: w.dtype for name, w in half_copies(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))).items() if "weight" in name}
    {'0.weight': torch.float16, '1.weight': torch.float32}
    """
    _check_half(half)
    kept = {id(t) for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase | Settled)
            for t in [*m.parameters(), *m.buffers()]}
    copies = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and id(tensor) not in kept:
            copies[name] = tensor.detach().to(half).requires_grad_(tensor.requires_grad)
        else:
            copies[name] = tensor.detach().requires_grad_(tensor.requires_grad)  # the same storage: running averages move on
    return copies


def half_gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, half: torch.dtype = torch.float16, scale: float = 1.0,
                   loss: Loss = cross_entropy) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Steps 1 and 2 and the loss of step 3: the float32 loss, not scaled, and the gradients of scale * loss in half precision.

    x: (n, ...), float; y: what loss takes beside the float32 logits, here int64 (n,). The gradients are as half precision leaves
    them: 0 where they underflow, infinite or NaN where they overflow, None for a parameter that the model does not use.
    Raises ValueError for a dtype that is no half, a scale that is not positive, or a model that is not float32.

    >>> net, x = nn.Linear(1, 2, bias=False), torch.tensor([[1.0]])
    >>> with torch.no_grad(): _ = net.weight.zero_()
    >>> value, g = half_gradients(net, x, torch.tensor([0]), scale=1024)        # softmax is (0.5, 0.5)
    >>> round(value.item(), 4), g["weight"].flatten().tolist()
    (0.6931, [-512.0, 512.0])
    """
    _check_half(half)
    _check_model(model)
    _positive("scale", scale)
    copies = half_copies(model, half)                                                       # 1. weights in half,
    x = x.to(half) if x.is_floating_point() else x                                          #    activations in half
    logits = functional_call(model, copies, (x,))                                           # 2. products in half, forward
    value = loss(logits.float(), y)                                                         # 3. result and loss in float32
    wanted = {name: copy for name, copy in copies.items() if copy.requires_grad}
    gradients = torch.autograd.grad(value * scale, list(wanted.values()), allow_unused=True)  # 2. and backward: of S times the loss
    return value.detach(), dict(zip(wanted, gradients))


@torch.no_grad()
def update(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, torch.Tensor | None], *, scale: float = 1.0,
           half: torch.dtype = torch.float16, master: bool = True, skip: bool = False) -> None:
    """The rest of step 3: gradients to float32, divided by scale; the optimiser changes the float32 weights; skip: nothing changes.

    master=False: there are no master weights. The new weight is rounded to half precision after the update, so that nothing but its
    16 bits lives on to the next step; the update itself is still computed in float32.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad(): _ = net.weight.fill_(2048.0)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    >>> for master in (False, True):
    ...     update(net, sgd, {"weight": torch.full((1, 1), -1.0).half()}, master=master)
    ...     print(net.weight.item())
    2048.0
    2049.0
    """
    for name, parameter in model.named_parameters():
        gradient = None if skip else gradients.get(name)                                    # a parameter without one stays as it is
        parameter.grad = None if gradient is None else gradient.float() / scale
    optimizer.step()
    if not master:
        _round(model, half)


def _round(model: nn.Module, half: torch.dtype) -> None:
    copies = half_copies(model, half)
    for name, parameter in model.named_parameters():
        parameter.copy_(copies[name])


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
            _round(model, half)
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


@dataclass(frozen=True)
class Shares:
    """Of the numbers that were not 0, the share (0 to 1) that in half precision is 0, subnormal (fewer bits), normal, or infinite."""

    underflow: float
    subnormal: float
    normal: float
    overflow: float


def shares(x: torch.Tensor, half: torch.dtype = torch.float16, scale: float = 1.0) -> Shares:
    """What becomes of scale * x, each number rounded to half precision. Zeros are not counted; if all are 0, normal is 1.

    float16: 0 up to 2^-25, subnormal below 2^-14, infinite from 65520 on. Raises ValueError for a dtype that is no half, a scale
    that is not positive, or NaN or infinity in x.

    >>> shares(torch.tensor([1e-8, 1e-6, 1.0, 1e6, 0.0]))
    Shares(underflow=0.25, subnormal=0.25, normal=0.25, overflow=0.25)
    """
    _check_half(half)
    _positive("scale", scale)
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinity, and must be finite.")
    x = x.detach().double()
    there = (x[x != 0] * scale).to(half).abs().float()
    n = len(there)
    if n == 0:
        return Shares(0.0, 0.0, 1.0, 0.0)
    zero, infinite = int((there == 0).sum()), int(there.isinf().sum())
    small = int((there < torch.finfo(half).smallest_normal).sum()) - zero
    return Shares(zero / n, small / n, (n - zero - small - infinite) / n, infinite / n)


def _check_half(half: torch.dtype) -> None:
    if half not in HALVES:
        raise ValueError(f"half is {half}, and must be torch.float16 or torch.bfloat16.")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"the parameter {name} is {parameter.dtype}, and must be torch.float32: it is the master copy.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient: call model.requires_grad_(True) first.")


def _check_train(model, images, labels, epochs, max_lr, batch_size, half, scaler) -> None:
    _check_half(half)
    _check_model(model)
    check(images, labels, epochs, batch_size, max_lr)
    if not isinstance(scaler, LossScale | None):
        raise TypeError(f"scaler is a {type(scaler).__name__}, and must be a LossScale or None.")
