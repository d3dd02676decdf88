"""Structured pruning: whole channels removed, and the network really smaller (Li et al. 2017; source document, 2.3).

    strength of output channel c = sum |w[c]|          conv1 loses channel c  =>  whoever reads conv1 loses input c

A removed channel leaves ordinary dense layers behind, so every machine gains, with no sparse format and no kernel of its own. A
convolution costs out x in x kernel x pixels multiply-accumulates (MACs), and both its out and its in shrink: to keep 70 % of all
channels is to keep about half of the MACs.

Who reads whom is found in qlab.nets.channel_groups:

    conv1 -> relu1 -> pool1 -> conv2         the inputs of conv2 are cut
    conv3 -> relu3 -> pool3 -> flatten -> fc1    channel c became the columns c * 9 .. c * 9 + 8 of fc1, if pool3 leaves 3 x 3 pixels
    conv4 -> + -> conv6                      a sum joins channel c of conv4 and conv5 (a residual network): both lose it, or neither
    conv5 ---^
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from qlab.errors import first_line
from qlab.nets.channel_groups import Group, groups, steps
from qlab.nets.plain import CONVOLUTIONS, LAYERS
from qlab.quant.layout import as_tensor


def weakest(model: nn.Module, share: float | Mapping[str, float], layers: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Which output channels to keep, bool (out,) by layer name: all but the round(share * out) whose weights have the least L1 norm.

    share: 0 <= share < 1, for all of `layers` (by default the removable convolutions), or a dictionary from layer to share.
    At least one channel stays; among equals the first goes. Layers whose channels a sum ties together (a group) are ranked together, by
    the sum of the norms of their filters, and get one mask: Fang et al. 2023 add up the importance over a group, too, though theirs
    counts the readers' weights and the batch norms' as well. A layer that `remove` would refuse is ranked alone.
    Raises ValueError for a share out of range, two shares in one group, a name that is no Conv2d or Linear, NaN or infinity among
    the weights, and for a model that `channel_groups.groups` refuses.

    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    >>> net[0].weight.data = torch.tensor([2.0, -1.0, 3.0]).view(3, 1, 1, 1)
    >>> weakest(net, 0.34)["0"].tolist()
    [True, False, True]
    """
    found, layers_of = groups(model), {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if isinstance(share, Mapping) and layers is not None:
        raise ValueError("share names the layers already: give layers only with one share for all.")
    if not isinstance(share, Mapping):
        names = [n for n in _removable(found, model) if isinstance(layers_of[n], CONVOLUTIONS)] if layers is None else layers
        share = dict.fromkeys(names, share)
    tied = {name: group.makers for group in found if not group.obstacles for name in group.makers}
    keep = {}
    for name, part in share.items():
        if name not in layers_of:
            raise ValueError(f"there is no layer {name!r}: the layers are {', '.join(layers_of)}.")
        if not (math.isfinite(part) and 0 <= part < 1):
            raise ValueError(f"share of {name} is {part}, and must be 0 or more and below 1.")
        together = tied.get(name, [name])
        for other in together:
            if share.get(other, part) != part:
                raise ValueError(f"share of {name} is {part} and of {other} {share[other]}, and must be one: a sum ties their channels.")
        strength = sum(_norms(layers_of[other].weight, other) for other in together)        # (out,)
        drop = min(round(part * len(strength)), len(strength) - 1)
        mask = torch.ones_like(strength, dtype=torch.bool)
        mask[torch.argsort(strength, stable=True)[:drop]] = False
        keep[name] = mask.to(layers_of[name].weight.device)
    return keep


def remove(model: nn.Module, keep: Mapping[str, torch.Tensor]) -> nn.Module:
    """A smaller copy without the output channels that keep[layer], bool (out,), says False for; whoever reads them loses those inputs.

    What lies between may be activations, pooling, dropout, batch norm and depthwise convolutions (both cut as well), Flatten and
    additions. A mask for one layer of a group, whose channels sums tie together, is for all of them. The copy computes what the model
    would if its readers' weights for those inputs were zero; it runs the model's own forward.
    Raises ValueError for a model that `channel_groups.groups` refuses, a layer that is never called or called more than once, a weight
    that two layers share, a grouped convolution, a sum with an input of the model or with another number of channels, any other
    operation on the way, channels that are outputs of the model, a mask that is not bool (out,) or keeps nothing, masks of one group
    that differ, a forward that goes by the widths of its layers.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
    >>> small = remove(net, weakest(net, 0.5))
    >>> small[0].weight.shape, small[3].weight.shape
    (torch.Size([4, 1, 3, 3]), torch.Size([2, 16]))
    """
    found, chosen = groups(model), {}                                                       # all is checked before anything is cut
    for name, mask in keep.items():
        group = _group(found, model, name)
        if group.obstacles:
            raise ValueError(f"channels of {name} cannot be removed: {group.obstacles[0]}.")
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != (group.channels,) or not mask.any():
            raise ValueError(f"keep[{name!r}] must be a bool tensor of shape ({group.channels},) that keeps at least one channel.")
        first = chosen.setdefault(group, name)
        if not torch.equal(keep[first].cpu(), mask.cpu()):
            raise ValueError(f"keep[{first!r}] and keep[{name!r}] differ, and must be equal: a sum ties their channels.")
    small = copy.deepcopy(model)
    for group, name in chosen.items():
        _cut_group(small, group, keep[name].nonzero()[:, 0])
    try:
        same = steps(small) == steps(model)
    except ValueError:
        same = False
    if not same:
        raise ValueError("the model's forward goes by the widths of its layers, and would do something else with fewer channels.")
    return small


def removable(model: nn.Module) -> list[str]:
    """The layers whose output channels `remove` can take away, in the order of registration; ValueError as `channel_groups.groups`.

    >>> removable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))              # the last one's outputs are the answer
    ['0']
    """
    return _removable(groups(model), model)


def macs(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates of each Conv2d and Linear when the model is given example, a batch; sum(macs(...).values()) is all of them.

    A layer that is called twice counts twice, one that is never called 0. Biases, activations and pooling are not counted, and weights
    that are zero are: a dense kernel multiplies by them. The example is not changed, nor the model. Raises TypeError for a model that is
    no module or an example that is no tensor, ValueError for an example that the model cannot take.

    >>> macs(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10)), torch.zeros(1, 1, 4, 4))
    {'0': 1152, '2': 1280}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    example = as_tensor(example, "example").clone()                                         # the model may write on it
    counted = {name: 0 for name, module in model.named_modules() if isinstance(module, LAYERS)}

    def counter(name):
        def count(module, _inputs, output):
            counted[name] += output.numel() * module.weight[0].numel()                      # each output is one dot product
        return count

    # First of a layer's hooks, for another may change what the layer gave.
    handles = [model.get_submodule(name).register_forward_hook(counter(name), prepend=True) for name in counted]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(example)
    except Exception as error:  # noqa: BLE001 - a forward may raise anything
        said = first_line(error)
        raise ValueError(f"example is {example.dtype} of the shape {tuple(example.shape)}, which the model cannot take ({said}): give it a "
                         "batch of its inputs.") from None
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return counted


def _removable(found: Sequence[Group], model: nn.Module) -> list[str]:
    free = {name for group in found if not group.obstacles for name in group.makers}
    return [name for name, _ in model.named_modules() if name in free]


def _group(found: Sequence[Group], model: nn.Module, name: str) -> Group:
    modules = dict(model.named_modules(remove_duplicate=False))
    module = modules.get(name)
    if not isinstance(module, LAYERS):
        raise ValueError(f"{name} is not a Conv2d or Linear of the model.")
    name = next(first for first, same in modules.items() if same is module)                 # the graph knows a layer by its first name
    for group in found:
        if name in group.makers:
            return group
        if name in group.carriers:
            raise ValueError(f"{name} is a convolution in {module.groups} groups: its channels go with those of the layer that it reads.")
    kind = "" if type(module) in LAYERS else f" as a plain layer, being a {type(module).__name__}"
    raise ValueError(f"{name} is called 0 times{kind}, and must be called once for its channels to be removed.")


def _norms(weight: torch.Tensor, name: str) -> torch.Tensor:
    """The L1 norm of each filter, float64 (out,), on the CPU, for not every device has float64."""
    norms = weight.detach().cpu().double().abs().flatten(1).sum(1)
    if not torch.isfinite(norms).all():
        raise ValueError(f"weights of {name} hold NaN or infinity, or add up to it, and must be finite to be ranked.")
    return norms


def _cut_group(model: nn.Module, group: Group, kept: torch.Tensor) -> None:
    for name in group.makers:
        _cut(model.get_submodule(name), 0, kept)
    for name in group.carriers:
        _cut_carrier(model.get_submodule(name), kept)
    for name in group.readers:
        layer, columns = model.get_submodule(name), kept
        if isinstance(layer, nn.Linear):                                                    # after Flatten a channel is a block of columns
            block = layer.in_features // group.channels
            columns = (kept[:, None] * block + torch.arange(block, device=kept.device)).flatten()
        _cut(layer, 1, columns)


def _cut(module: nn.Module, axis: int, kept: torch.Tensor) -> None:
    """Keep only some outputs (axis 0) or inputs (axis 1) of a layer."""
    for key in ("weight", "bias") if axis == 0 else ("weight",):
        _take(module._parameters, key, axis, kept)
    conv = isinstance(module, CONVOLUTIONS)
    setattr(module, ("out_channels" if conv else "out_features") if axis == 0 else ("in_channels" if conv else "in_features"), len(kept))


def _cut_carrier(module: nn.Module, kept: torch.Tensor) -> None:
    """Keep only some channels of a depthwise convolution or a batch norm."""
    if isinstance(module, CONVOLUTIONS):
        _cut(module, 0, kept)
        module.in_channels = module.groups = len(kept)
        return
    for tensors, keys in ((module._parameters, ("weight", "bias")), (module._buffers, ("running_mean", "running_var"))):
        for key in keys:
            _take(tensors, key, 0, kept)
    module.num_features = len(kept)


def _take(tensors: dict[str, torch.Tensor | None], key: str, axis: int, kept: torch.Tensor) -> None:
    old = tensors[key]
    if old is not None:
        new = old.detach().index_select(axis, kept.to(old.device)).clone()
        tensors[key] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
