"""Pruning: most weights of a trained network can be removed, and the rest trained to make up for them (source document, 2.3).

    mask = |w| among the largest       w <- mask * w       train, and after each step of the optimiser again  w <- mask * w

Magnitude is the score that Han et al. 2015 used and that is still hard to beat; where the largest are looked for is the choice:

    layer       the same share of every layer, or a share for each          global      one threshold for the whole network
    n : m       the n largest of every m consecutive input weights (Mishra et al. 2021: 2 : 4 is what a GPU's sparse unit reads)

A mask is a bool tensor of the weight's shape, True where the weight stays; masks.left names what has none, and why. Masked weights are
zero, not gone: qlab.nets.sparse stores them in fewer bytes, and qlab.nets.channels removes whole channels, so that there is less to
compute. When to remove how much: qlab.nets.prune_schedules.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from qlab.nets.left import ByLayer, behind
from qlab.nets.plain import LAYERS, memory_of, plain_copy, refuse_recomputed, users_of

Masks = ByLayer


def magnitude(model: nn.Module, sparsity: float | Mapping[str, float], scope: str = "layer", skip: Sequence[str] = (),
              within: Mapping[str, torch.Tensor] | None = None) -> Masks:
    """Masks that remove the smallest weights of every Conv1d, Conv2d and Linear not in skip, by layer name; the model is not changed.

    sparsity: the share to remove, 0 <= sparsity < 1, exactly round(sparsity * n) weights; for scope "layer" also a dictionary from layer
    to share (a layer not named keeps all). scope: "layer", each layer alone; "global", one ranking of all weights. Among equal magnitudes
    the first in memory goes first. within: earlier masks; what they remove counts, and stays removed. A weight that two layers share is
    counted once, and both get its mask.
    Raises ValueError for a sparsity or scope out of range, a sparsity below that of earlier masks, a name that is no such layer, NaN or
    infinity among the weights, and, by name, for a weight that is shared with a module that is not pruned, or recomputed in each forward
    (qlab.nets.plain).

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> net[0].weight.data = torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> magnitude(net, 0.5)["0"].tolist()
    [[False, True, True, False]]
    """
    weights = _weights(model, skip)
    if scope not in ("layer", "global"):
        raise ValueError(f'scope is {scope!r}, and must be "layer" or "global".')
    if scope == "global" and isinstance(sparsity, Mapping):
        raise ValueError('sparsity is a dictionary, and for scope "global" must be one number.')
    if within is not None:
        _fitting(model, within)
    shares = _shares(weights, sparsity)
    groups = _shared(weights)
    scores = [_score(names, weights[names[0]], within) for names in groups]
    if scope == "layer":
        counts = [_removed(round(_one(names, shares) * len(score)), score, names) for names, score in zip(groups, scores)]
        kept = [_largest(score[None], count)[0] for score, count in zip(scores, counts)]
    else:
        everything = torch.cat([score.cpu() for score in scores]) if scores else torch.zeros(0)
        count = _removed(round(sparsity * len(everything)), everything, weights)
        kept = _largest(everything[None], count)[0].split([len(score) for score in scores])
    found = {name: mask.view_as(weights[name]).to(weights[name].device) for names, mask in zip(groups, kept) for name in names}
    return Masks({name: found[name] for name in weights}, behind(model, weights, "pruned", "named in skip"))


def n_m(model: nn.Module, n: int = 2, m: int = 4, skip: Sequence[str] = ()) -> Masks:
    """Masks that keep the n largest of every m consecutive input weights of every Conv1d, Conv2d and Linear not in skip.

    A linear layer's m run along a row of its weight (out, in); a convolution's along the input channels, at one position of the kernel,
    for that is the inner dimension of the matrix product a GPU makes of it. Among equal magnitudes the first goes first.
    Raises ValueError unless 1 <= n <= m, or for a layer whose inputs are not a multiple of m: it must be skipped.

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> net[0].weight.data = torch.tensor([[0.1, -3.0, 2.0, -0.2]])
    >>> n_m(net)["0"].tolist()
    [[False, True, True, False]]
    """
    if not 1 <= n <= m:
        raise ValueError(f"n is {n} and m is {m}, and they must be 1 <= n <= m.")
    masks = {}
    for name, weight in _weights(model, skip).items():
        inputs = weight.shape[1]
        if inputs % m:
            raise ValueError(f"{name} has {inputs} inputs, which is no multiple of {m}: name it in skip.")
        rows = weight.detach().abs().movedim(1, -1)                                         # (out, in) or (out, height, width, in)
        kept = _largest(rows.reshape(-1, m), m - n)
        masks[name] = kept.view(rows.shape).movedim(-1, 1).contiguous()
    return Masks(masks, behind(model, masks, "pruned", "named in skip"))


@torch.no_grad()
def apply(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the removed weights to zero, in place. Raises ValueError for a mask that fits no layer.

    >>> net = nn.Sequential(nn.Linear(4, 1))
    >>> apply(net, magnitude(net, 0.75))
    >>> int((net[0].weight != 0).sum())
    1
    """
    for module, mask in _fitting(model, masks):
        module.weight.masked_fill_(~mask.to(module.weight.device), 0.0)


def hold(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> Callable[[], None]:
    """What to call after each step of an optimiser, as fit(after_step=...) does, so that removed weights stay removed.

    A gradient of zero would not do: momentum still moves the weight for many steps. The masks are read anew at each call, so a schedule
    may replace them in the dictionary as it goes. Removed weights are set to zero at once. Raises ValueError for a mask that fits no layer.
    """
    apply(model, masks)
    return lambda: apply(model, masks)


def sparsity(masks: Mapping[str, torch.Tensor]) -> float:
    """The share of weights removed, 0 to 1, by all masks together.

    >>> sparsity({"fc1": torch.tensor([True, False]), "fc2": torch.tensor([False, False])})
    0.75
    """
    count = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / count if count else 0.0


def sensitivity(model: nn.Module, evaluate: Callable[[nn.Module], object], sparsities: Iterable[float],
                skip: Sequence[str] = ()) -> dict[str, list]:
    """Each layer pruned alone, at each sparsity: what evaluate(model) says, by layer name; nothing is trained.

    A layer whose curve falls late can give up more than the others (Han et al. 2015, section 4, figure 6). The model given is not changed.

    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> sensitivity(net, lambda net: int((net[0].weight != 0).sum()), [0, 0.5, 0.75])
    {'0': [16, 8, 4]}
    """
    _weights(model, skip)                                                                   # refuses what has no weight to prune
    model, sparsities, results = plain_copy(model), list(sparsities), {}
    for name, weight in _weights(model, skip).items():
        whole, results[name] = weight.detach().clone(), []
        for share in sparsities:
            apply(model, {name: magnitude(model, {name: share}, skip=skip)[name]})
            results[name].append(evaluate(model))
            weight.data.copy_(whole)
    return results


def _weights(model: nn.Module, skip: Sequence[str]) -> dict[str, torch.Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if isinstance(skip, str) or not set(skip) <= set(layers):
        raise ValueError(f"skip is {skip!r}, and must be a list of layers among: {', '.join(layers)}.")
    refuse_recomputed(model)
    weights, users = {name: layer.weight for name, layer in layers.items() if name not in skip}, users_of(model)
    for name, weight in weights.items():
        if others := [user for user in users[id(weight)] if user not in weights]:
            why = "which is skipped: skip both or neither" if others[0] in skip else "which is not pruned: skip it, or untie them"
            raise ValueError(f"{name} shares its weight with {others[0]}, {why}.")
        if not weight.isfinite().all():
            raise ValueError(f"the weights of {name} hold NaN or infinity, and must be finite.")
    return weights


def _shared(weights: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names of the layers, those that share one weight together. ValueError for one memory in two shapes."""
    groups: dict[int, list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(memory_of(weight), []).append(name)
    for first, *others in groups.values():
        for other in others:
            if weights[other].shape != weights[first].shape or weights[other].stride() != weights[first].stride():
                raise ValueError(f"{first} and {other} share their weight's memory in two shapes, and no mask fits both: untie them.")
    return list(groups.values())


def _shares(weights: Mapping, sparsity: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(sparsity, Mapping) and not set(sparsity) <= set(weights):
        raise ValueError(f"sparsity names {', '.join(map(str, sparsity))}, and the layers to prune are {', '.join(weights)}.")
    named = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(weights, sparsity)
    for share in [*named.values()] if isinstance(sparsity, Mapping) else [sparsity]:
        if not (math.isfinite(share) and 0 <= share < 1):
            raise ValueError(f"sparsity is {share}, and must be 0 or more and below 1.")
    return named


def _one(names: Sequence[str], shares: Mapping[str, float]) -> float:
    """The share of a weight that has several names: all that are given must say the same."""
    given = {shares[name] for name in names if name in shares}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(names)} share one weight, and must have the same sparsity.")
    return given.pop() if given else 0.0


def _score(names: Sequence[str], weight: torch.Tensor, within: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    score = weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32)).flatten()
    for name in names:
        if within and name in within:
            score = score.masked_fill(~within[name].to(score.device).flatten(), -1.0)       # before all that is left, zeros among them
    return score


def _removed(count: int, score: torch.Tensor, names: Iterable[str]) -> int:
    """count, if it is no less than what earlier masks have removed."""
    if (before := int((score < 0).sum())) > count:
        raise ValueError(f"within removes {before:,} weights of {', '.join(names)}, and the sparsity is to remove {count:,}: what is "
                         "removed stays removed, so that sparsities must not fall.")
    return count


def _largest(scores: torch.Tensor, remove: int) -> torch.Tensor:
    """(rows, n) bool: False for the `remove` smallest of each row; among equals the first are removed."""
    order = torch.argsort(scores, dim=1, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :remove], False)


def _fitting(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> list[tuple[nn.Module, torch.Tensor]]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    refuse_recomputed(model)
    users = users_of(model)
    for name, mask in masks.items():
        if name not in layers:
            raise ValueError(f"masks names {name!r}, and the layers are {', '.join(layers)}.")
        if others := [user for user in users[id(layers[name].weight)] if user not in layers]:
            raise ValueError(f"{name} shares its weight with {others[0]}, which is not pruned: untie them.")
        if mask.dtype != torch.bool or mask.shape != layers[name].weight.shape:
            raise ValueError(f"the mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}, and must be bool of shape "
                             f"{tuple(layers[name].weight.shape)}.")
    return [(layers[name], mask) for name, mask in masks.items()]
