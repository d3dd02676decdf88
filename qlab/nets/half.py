"""One step of mixed-precision training (source document, 3.3; Micikevicius et al. 2018): products in 16 bits, what must not get lost in 32.

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
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from qlab.nets.fake import HALVES
from qlab.quant.settled import Settled

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def half_copies(model: nn.Module, half: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Step 1: every floating-point parameter and buffer by name, in half precision; those of batch norm and quantizers stay float32.

    Batch norm keeps float32 because its statistics are sums over a batch and running averages with updates of a tenth and less: in
    half they stand still as weights do. It takes half activations and returns half ones. A quantizer's scale (qlab.nets.fake, qat) keeps
    it because all levels are its multiples: rounded, it would move every one of them.

    >>> {name: w.dtype for name, w in half_copies(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))).items() if "weight" in name}
    {'0.weight': torch.float16, '1.weight': torch.float32}
    """
    check_half(half)
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
    check_half(half)
    check_model(model)
    check_positive("scale", scale)
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
        round_to_half(model, half)


def round_to_half(model: nn.Module, half: torch.dtype) -> None:
    copies = half_copies(model, half)
    for name, parameter in model.named_parameters():
        parameter.copy_(copies[name])


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
    check_half(half)
    check_positive("scale", scale)
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


def check_half(half: torch.dtype) -> None:
    if half not in HALVES:
        raise ValueError(f"half is {half}, and must be torch.float16 or torch.bfloat16.")


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"the parameter {name} is {parameter.dtype}, and must be torch.float32: it is the master copy.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient: call model.requires_grad_(True) first.")


def check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}, and must be a finite number above 0.")
