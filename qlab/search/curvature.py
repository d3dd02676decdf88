"""How much a layer's rounding costs, by derivatives of the loss: no width has to be tried.

    loss(W + dW) - loss(W)  =  g . dW  +  dW^T H dW / 2  +  ...               g the gradient, H the Hessian, dW = W_hat - W

by_hessian (Dong et al. 2020, HAWQ-V2, section 3.1). Training has ended where g is about 0; what is left is the second term. If the errors
of a layer's n weights are as good as independent and of one size, its mean is

    tr(H) / n * || dW ||**2 / 2                       (HAWQ-V2 leaves out the 1/2, which changes no order)

and the trace can be estimated without the Hessian (Hutchinson 1989): for v of independent signs, +1 or -1, E[v^T H v] = tr(H), with the
variance 2 sum over i != j of H[i, j]**2, and H v is the gradient of g . v: one more backward pass, and no matrix.

by_taylor goes on with g alone. The mean gradient's g . dW says little: at the end of training it is a small number of either sign, and a
layer whose term happens to be negative would look improved by any error. Two ways around that, each with one gradient pass:

    absolute    sum over the weights of |g_i dW_i|          errors that cancel are counted as if they added up: it grows with n
    squared     mean over images of (g_image . dW)**2 / 2   = dW^T F dW / 2,  F = mean of g g^T, the Fisher information

The second is the one to use: with labels drawn from the network's own predictions, F is the Hessian of KL(p || p_hat) at dW = 0 (Kunstner
et al. 2019, section 2), so that it is the second-order term of sensitivity.by_kl, never negative, and has an error bar over the images.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from qlab.errors import first_line
from qlab.nets.calibration import batches_of
from qlab.nets.fake import wide
from qlab.nets.plain import plain_copy
from qlab.quant.layout import check_whole, generator
from qlab.search.candidates import Candidates, checked
from qlab.search.given import classes_of, finite, logits_of, logits_of_batch
from qlab.search.sensitivity import squared_errors
from qlab.search.table import Table

KINDS = ("squared", "absolute")
AT_ONCE = 32                                                                                # images whose gradients are held apart


def hutchinson(product: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, probes: int, seed: int = 0) -> torch.Tensor:
    """v^T H v of random signs v, float64 (probes,): the mean estimates the trace of H, the standard deviation / sqrt(probes) is its error.

    product(v): H v, both of the shape of like. Raises ValueError for fewer than 2 probes, which have no standard error.

    >>> h = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> samples = hutchinson(lambda v: h @ v, torch.zeros(2), probes=1000)                  # each is 5 + 2 or 5 - 2: a variance of 4
    >>> round(samples.mean().item()), round(samples.var().item())
    (5, 4)
    """
    check_whole("probes", probes, 2)
    random, samples = generator(seed), []
    for _ in range(probes):
        v = (2 * torch.randint(0, 2, like.shape, generator=random) - 1).to(like)
        samples.append((v.double() * product(v).detach().double()).sum().cpu())
    return torch.stack(samples)


@torch.inference_mode(False)                                                                # which turns gradients on, too
def traces(model: nn.Module, layers: Iterable[str], images: torch.Tensor, labels: torch.Tensor, probes: int = 32,
           seed: int = 0) -> torch.Tensor:
    """Samples of the trace of the loss's Hessian for each layer's weight: float64 (layers, probes). Loss: the mean cross-entropy.

    The mean of a row is the estimate, its standard deviation / sqrt(probes) the standard error: of the signs alone, for these images. A
    trace may be negative, for the loss is not convex. One forward and one backward pass, and a backward pass for each layer and probe, from
    the last layer to this one. Signs for all layers at once would need one for each probe alone; but then the squares of all that couples
    a layer to the others are part of its variance, which makes the error of a small layer among large ones ten times what it is.
    Raises ValueError as by_hessian does.

    >>> traces(nn.Linear(4, 3), [""], torch.randn(9, 4), torch.arange(9) % 3, probes=5).shape
    torch.Size([1, 5])
    """
    working = plain_copy(model).eval().requires_grad_(False)
    weights = [working.get_submodule(name).weight.requires_grad_(True) for name in layers]
    batches = _batches(images)
    labels, total, done = _labels(working, batches, labels), 0, 0
    for batch in batches:
        loss = cross_entropy(finite(working(batch)).double(), labels[done:done + len(batch)])
        gradients = [torch.zeros_like(w) for w in weights]                                  # of layers that are never called
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        samples = [hutchinson(partial(_product, g, w), w, probes, seed) for g, w in zip(gradients, weights)]
        total = total + len(batch) / len(labels) * torch.stack(samples)                     # one seed: each batch meets the same signs
        done += len(batch)
    return total


def _product(gradient: torch.Tensor, weight: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """H v: how the gradient changes when the weight moves along v."""
    if not gradient.requires_grad:
        return torch.zeros_like(v)
    return torch.autograd.grad(gradient, weight, v, retain_graph=True, materialize_grads=True)[0]


@torch.inference_mode(False)
def by_hessian(model: nn.Module, candidates: Candidates, images: torch.Tensor, labels: torch.Tensor, probes: int = 32,
               seed: int = 0) -> Table:
    """tr(H) / n * || dW ||**2 / 2, in nats, with its standard error over the probes; below 0 where the estimated trace is.

    Arguments as for sensitivity.by_loss. Raises TypeError and ValueError as by_loss does, and ValueError for fewer than 2 probes.

    >>> from qlab.search import candidates
    >>> net, x, y = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(50, 16), torch.arange(50) % 2
    >>> table = by_hessian(net, candidates.make(net, (2, 8)), x, y, probes=8)
    >>> table.forwards, table.backwards                                      # 8 products for each of 2 layers
    (1, 17)
    """
    model, layers, widths = checked(model, candidates)
    samples = traces(model, layers, images, labels, probes, seed)
    weights = [model.get_submodule(name).weight for name in layers]
    errors = torch.stack([squared_errors(w, candidates[name]).cpu() / (2 * w.numel()) for name, w in zip(layers, weights)])
    spread = samples.std(1) / samples.shape[1]**0.5
    return Table(layers, widths, samples.mean(1)[:, None] * errors, spread[:, None] * errors, forwards=1,
                 backwards=1 + probes * len(layers))


@torch.inference_mode(False)
def by_taylor(model: nn.Module, candidates: Candidates, images: torch.Tensor, labels: torch.Tensor | None = None, kind: str = "squared",
              seed: int = 0) -> Table:
    """What the gradient says: kind "squared", with its standard error over the images, or "absolute"; see above. In nats.

    Arguments as for sensitivity.by_loss. labels: of the images; None, with "squared" alone: one drawn for each image from what the network
    itself predicts, by seed. Raises ValueError as by_loss does, for another kind, and for "absolute" without labels.

    >>> from qlab.search import candidates
    >>> net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> table = by_taylor(net, candidates.make(net, (2, 8)), torch.randn(50, 16))
    >>> bool((table.values >= 0).all()), table.forwards, table.backwards
    (True, 2, 1)
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, and must be one of {', '.join(KINDS)}.")
    if labels is None and kind == "absolute":
        raise ValueError("labels is None, and must be the images' labels for 'absolute': of drawn ones the mean gradient is chance.")
    working, layers, widths = checked(model, candidates)
    working.requires_grad_(False)
    forwards, batches = 1 + (labels is None), _batches(images)
    weights = {name: working.get_submodule(name).weight for name in layers}
    moved = {name: torch.stack([(candidates[name][bits].dequantize() - weights[name]).flatten() for bits in widths]) for name in layers}
    labels = _drawn(working, images, seed) if labels is None else _labels(working, batches, labels)
    own = {f"{name}.weight" if name else "weight": weights[name] for name in layers}

    def loss(own: dict, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional_call(working, own, (x[None],))
        return cross_entropy(logits.double(), y[None]), logits

    each_gradient, terms, total, done = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0)), [], 0, 0
    for batch in (few for many in batches for few in many.split(AT_ONCE)):
        try:
            found, logits = each_gradient(own, batch, labels[done:done + len(batch)])
        except RuntimeError as error:
            raise ValueError(f"the gradient of each image apart cannot be taken of this network ({first_line(error)}).") from None
        finite(logits)
        gradients = [g.flatten(1) for g in found.values()]                                  # (images, weights) of each layer
        done += len(batch)
        if kind == "squared":
            terms.append(torch.stack([(g @ dw.mT).double().square() / 2 for g, dw in zip(gradients, moved.values())], 1))
        else:
            total = [g.double().sum(0) + t for g, t in zip(gradients, total or [0] * len(layers))]
    if kind == "absolute":
        values = torch.stack([(mean / done * dw).abs().sum(1) for mean, dw in zip(total, moved.values())])
        return Table(layers, widths, values, forwards=1, backwards=1)
    terms = torch.cat(terms)                                                                # (images, layers, widths)
    errors = None if done == 1 else terms.std(0) / done**0.5
    return Table(layers, widths, terms.mean(0), errors, forwards=forwards, backwards=1)


def _batches(images: torch.Tensor) -> list[torch.Tensor]:
    """Batches that a gradient may be taken through: of images that were made in inference mode a copy."""
    return [batch.clone() if batch.is_inference() else batch for batch in batches_of(images)]


@torch.no_grad()
def _labels(working: nn.Module, batches: list[torch.Tensor], labels) -> torch.Tensor:
    """The labels, int64. The first images show the classes; errors for images or labels that do not fit."""
    n = sum(map(len, batches))
    return classes_of(labels, n, logits_of_batch(working, batches[0], n).shape[1])


@torch.no_grad()
def _drawn(working: nn.Module, images: torch.Tensor, seed: int) -> torch.Tensor:
    """A label for each image, drawn from the predictions."""
    logits = wide(finite(logits_of(working, images)))
    return torch.multinomial(logits.softmax(1), 1, generator=generator(seed)).squeeze(1)
