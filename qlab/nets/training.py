"""Training, one way for the whole course: SGD with Nesterov momentum, and a learning rate that rises and falls once (Smith 2018).

Pruning, quantization-aware training and distillation are this loop with another loss, or with something done after each step.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm


def hard_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits with the labels: what fit minimises unless it is told otherwise."""
    return cross_entropy(model(x), y)


def fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float, *, seed: int = 0,
        batch_size: int = 128, momentum: float = 0.9, weight_decay: float = 5e-4,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] = hard_loss,
        parameters: Iterable | None = None, after_step: Callable[[], None] | None = None,
        after_epoch: Callable[[int], None] | None = None, name: str = "training") -> list[float]:
    """Train the model in place; return the mean loss of each epoch. It is left in evaluation mode.

    images: float (n, ...); labels: int64 (n,), on the model's device. loss(model, x, y) gives what to minimise, a scalar;
    augment(x, generator) changes a batch; after_step() runs after each step of the optimiser (to put a mask back, say),
    after_epoch(epoch) after each epoch, counted from 0. parameters: what the optimiser takes, by default all that require a
    gradient. The same seed, machine and number of threads give the same weights. Images (n, channels, rows, columns) reach the loss with
    the channels of a pixel side by side (channels_last), or in the usual order where the first step fails on that; the tensors of the
    model keep their order.

    Raises ValueError for no images, another number of labels, epochs or batch_size below 1, a learning rate that is not positive,
    or nothing to train.

    >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> len(fit(nn.Linear(4, 2), x, y, epochs=3, max_lr=0.1))
    3
    """
    check(images, labels, epochs, batch_size, max_lr)

    def step(optimizer, x, y):
        value = loss(model, x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    return loop(model, images, labels, epochs, max_lr, step, seed=seed, batch_size=batch_size, momentum=momentum,
                weight_decay=weight_decay, augment=augment, parameters=parameters, after_step=after_step, after_epoch=after_epoch,
                name=name)


def loop(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float,
         step: Callable[[torch.optim.Optimizer, torch.Tensor, torch.Tensor], torch.Tensor], *, seed: int, batch_size: int, momentum: float,
         weight_decay: float, augment=None, parameters=None, after_step=None, after_epoch=None, name: str) -> list[float]:
    """What fit and mixed-precision training share: optimiser, schedule, order of the images; step(optimizer, x, y) returns the loss."""
    parameters = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient: call model.requires_grad_(True) first.")
    torch.manual_seed(seed)                                                                 # dropout and the like
    generator = torch.Generator().manual_seed(seed)                                         # the order of the images, augmentation
    step = _channels_last(model, step, seed)
    optimizer = torch.optim.SGD(parameters, max_lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    steps = math.ceil(len(images) / batch_size) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    history, bar = [], tqdm(total=steps, desc=name, unit="step")
    for epoch in range(epochs):
        model.train()
        total = torch.zeros((), device=images.device)
        for batch in torch.randperm(len(images), generator=generator).split(batch_size):
            batch = batch.to(images.device)
            x = images[batch] if augment is None else augment(images[batch], generator)
            total += step(optimizer, x, labels[batch]) * len(batch)
            schedule.step()
            if after_step:
                after_step()
            bar.update()
        history.append(total.item() / len(images))
        bar.set_postfix(loss=f"{history[-1]:.3f}")
        model.eval()
        if after_epoch:
            after_epoch(epoch)
    bar.close()
    return history


def _channels_last(model: nn.Module, step: Callable, seed: int) -> Callable:
    """The step on images whose channels of a pixel lie side by side, with which convolutions take two thirds of the time on a CPU.

    A forward that calls view refuses that order. So whether the images may have it is seen at the first step: if that fails, what it
    changed (running statistics, the random numbers) is put back, and it and all others get the usual order.
    """
    order = None

    def ordered(optimizer, x, y):
        nonlocal order
        if order is None and x.dim() == 4:
            before = [(buffer, buffer.clone()) for buffer in model.buffers()]
            try:
                value = step(optimizer, x.to(memory_format=torch.channels_last), y)
                order = torch.channels_last
                return value
            except RuntimeError:
                order = torch.contiguous_format
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            torch.manual_seed(seed)
        return step(optimizer, x.to(memory_format=order) if x.dim() == 4 else x, y)

    return ordered


def check(images: torch.Tensor, labels: torch.Tensor, epochs: int, batch_size: int, max_lr: float) -> None:
    """ValueError for what no training can start with."""
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels: they must be as many, and at least one.")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, and must be 1 or more.")
    if not (math.isfinite(max_lr) and max_lr > 0):
        raise ValueError(f"max_lr is {max_lr}, and must be a finite number above 0.")
