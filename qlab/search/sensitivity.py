"""How much a network suffers when one layer alone is rounded: by its loss, its answers, the layer's output, or the weights' error.

    by_loss      mean over images of  loss(network with layer l at b bits) - loss(network)              1 + layers * widths forward passes
    by_kl        mean over images of  KL(p || p_hat),  p the softmax of the network's logits            1 + layers * widths
    by_output    || W x - W_hat x ||**2 / || W x ||**2  of the layer's own output                       1
    by_weight    || W - W_hat ||**2                                                                     0

From above to below they know less and cost less; qlab.search.curvature has two in between, by derivatives. KL asks how far the answers
move, the loss only how far they move from the labels: an image that becomes right by luck is a gain for the loss, and a change for KL. That
is why KL is never negative and has the smaller error (Cai et al. 2020, ZeroQ, finds a layer's sensitivity so).

None of them is the truth about a whole allocation: two layers rounded at once are not the sum of each alone. `kl` is that truth.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qlab.llm.hessian import hessian_of, output_error
from qlab.search.candidates import Candidates, checked
from qlab.search.given import classes_of, finite, logits_of
from qlab.search.table import Table


@torch.no_grad()
def by_loss(model: nn.Module, candidates: Candidates, images: torch.Tensor, labels: torch.Tensor) -> Table:
    """The growth of the mean cross-entropy, in nats, with its standard error over the images; negative where rounding helps by chance.

    candidates: see qlab.search.candidates. images: float (n, ...), calibration images, never test images; labels: whole numbers (n,). The
    model is run in evaluation mode, and is not changed. Raises TypeError for what is no model, no candidates, no images or no labels,
    ValueError for no images, images that the model cannot take or gives no finite logits for, labels that do not fit.

    >>> from qlab.search import candidates
    >>> net, x, y = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(50, 16), torch.arange(50) % 2
    >>> table = by_loss(net, candidates.make(net, (2, 8)), x, y)
    >>> table.layers, table.widths, table.values.shape, table.forwards
    (('0', '2'), (2, 8), torch.Size([2, 2]), 5)
    """
    def growth(before: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        loss = partial(cross_entropy, target=classes_of(labels, *before.shape), reduction="none")
        was = loss(before.double())
        return lambda logits: loss(logits.double()) - was

    return _alone(model, candidates, images, growth)


@torch.no_grad()
def by_kl(model: nn.Module, candidates: Candidates, images: torch.Tensor) -> Table:
    """The mean KL divergence of the network's predictions from what they were, in nats, with its standard error over the images.

    Arguments as for by_loss; labels are not needed. Raises ValueError as by_loss does.

    >>> from qlab.search import candidates
    >>> net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> table = by_kl(net, candidates.make(net, (2, 8)), torch.randn(50, 16))
    >>> bool((table["0", 2] > table["0", 8]) and (table.values >= 0).all())
    True
    """
    return _alone(model, candidates, images, lambda before: partial(divergence, reference=before))


@torch.no_grad()
def by_output(model: nn.Module, candidates: Candidates, images: torch.Tensor) -> Table:
    """The squared error of the layer's own output on the images, as a part of the output's power; the inputs are the float network's.

    One pass collects the Hessian 2 X X^T of each layer's inputs (qlab.llm.hessian), from which every width's error follows. Relative,
    because absolute errors of layers whose outputs have other sizes cannot be added. Raises ValueError as by_loss does, and, by name, for a
    layer that no image reaches.

    >>> from qlab.search import candidates
    >>> net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> by_output(net, candidates.make(net, (2, 8)), torch.randn(50, 16)).forwards
    1
    """
    working, layers, widths = checked(model, candidates)
    hessians = {}

    def collect(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            vectors = output.numel() // len(layer.weight)                                   # hessian_of is their mean
            hessians[name] = hessians.get(name, 0) + vectors * hessian_of(inputs[0], layer)
        return hook

    for name in layers:
        working.get_submodule(name).register_forward_hook(collect(name))
    finite(logits_of(working, images))
    if missed := [name for name in layers if name not in hessians]:
        raise ValueError(f"no calibration image reaches {', '.join(missed)}: leave it out of the candidates.")
    rows = [[_output_error(working.get_submodule(name).weight, q.dequantize(), hessians[name]) for q in _ascending(candidates[name])]
            for name in layers]
    return Table(layers, widths, torch.tensor(rows, dtype=torch.float64), forwards=1)


@torch.no_grad()
def by_weight(model: nn.Module, candidates: Candidates) -> Table:
    """The sum of the squared errors of the layer's weights: what is known without a single image. Raises ValueError for other candidates.

    >>> from qlab.quant import linear
    >>> net = nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, 0.5]])
    >>> by_weight(net, {"": {3: linear.quantize(net.weight, 3, "symmetric")}})["", 3]        # 3 is exact, 0.5 becomes 0
    0.25
    """
    model, layers, widths = checked(model, candidates)
    return Table(layers, widths, torch.stack([squared_errors(model.get_submodule(name).weight, candidates[name]) for name in layers]))


@torch.no_grad()
def kl(model: nn.Module, other: Callable, images: torch.Tensor) -> torch.Tensor:
    """KL(model || other) of each image, in nats, float64 (n,): the truth about a whole allocation, in two forward passes.

    other: a module, as candidates.apply(...).model, or any function from images to logits; modules are run in evaluation mode, and are left
    in theirs. Raises ValueError as by_loss does.

    >>> net = nn.Linear(4, 3)
    >>> kl(net, net, torch.randn(5, 4)).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    modes = [(module, module.training) for network in (model, other) if isinstance(network, nn.Module) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        return divergence(logits_of(other, images), finite(logits_of(model, images)))
    finally:
        for module, mode in modes:
            module.training = mode


def divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(softmax(reference) || softmax(logits)) of each row, in nats (bits are these / ln 2); float64 (n,), and never below 0.

    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 3.0]]))
    tensor([0.], dtype=torch.float64)
    """
    p, q = log_softmax(reference.double(), 1), log_softmax(logits.double(), 1)
    return kl_div(q, p, reduction="none", log_target=True).sum(1).clamp(min=0)              # rounding may leave -1e-17


def squared_errors(weight: torch.Tensor, of_layer) -> torch.Tensor:
    """|| W - W_hat ||**2 of a layer's candidates, by width: float64 (widths,)."""
    return torch.stack([(weight.detach().double() - q.dequantize().double()).square().sum() for q in _ascending(of_layer)])


def _alone(model: nn.Module, candidates: Candidates, images: torch.Tensor, against: Callable) -> Table:
    """The mean over the images of against(logits before)(logits), (n,), with one layer at one width, for each; and its standard error."""
    working, layers, widths = checked(model, candidates)
    lost = against(finite(logits_of(working, images)))
    each = torch.stack([lost(logits_of(working, images)).double() for _ in _one_by_one(working, candidates)])  # (alone, n)
    shape, n = (len(layers), len(widths)), each.shape[1]
    errors = None if n == 1 else (each.std(1) / n**0.5).view(shape)                         # one image alone has no spread
    return Table(layers, widths, each.mean(1).view(shape), errors, forwards=1 + len(each))


def _one_by_one(working: nn.Module, candidates: Candidates) -> Iterator[None]:
    """Puts each candidate into its layer in turn, and the float weight back before the next layer's."""
    for name, of_layer in candidates.items():
        weight = working.get_submodule(name).weight
        whole = weight.detach().clone()
        for q in _ascending(of_layer):
            weight.data.copy_(q.dequantize())
            yield
        weight.data.copy_(whole)


def _ascending(of_layer) -> list:
    return [of_layer[bits] for bits in sorted(of_layer)]


def _output_error(weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor) -> float:
    return output_error(weight.flatten(1), approximation.flatten(1), hessian)
