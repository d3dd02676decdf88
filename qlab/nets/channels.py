"""Structured pruning: whole channels removed, and the network really smaller (Li et al. 2017; source document, 2.3).

    strength of output channel c = sum |w[c]|          conv1 loses channel c  =>  whoever reads conv1 loses input c

A removed channel leaves ordinary dense layers behind, so every machine gains, with no sparse format and no kernel of its own. A
convolution costs out x in x kernel x pixels multiply-accumulates (MACs), and both its out and its in shrink: to keep 70 % of all
channels is to keep about half of the MACs.

Who reads whom is found by torch.fx, which runs the model's code once with symbols in place of tensors and notes what is called:

    conv1 -> relu1 -> pool1 -> conv2         the inputs of conv2 are cut
    conv3 -> relu3 -> pool3 -> flatten -> fc1    channel c became the columns c * 9 .. c * 9 + 8 of fc1, if pool3 leaves 3 x 3 pixels
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F

from qlab.nets.graph import LAYERS

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Identity)
ELEMENTWISE_CALLS = (F.relu, torch.relu, F.gelu, F.silu, torch.sigmoid, torch.tanh, F.dropout, "relu", "sigmoid", "tanh")
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d)
POOLING_CALLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def weakest(model: nn.Module, share: float | Mapping[str, float], layers: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Which output channels to keep, bool (out,) by layer name: all but the round(share * out) whose weights have the least L1 norm.

    share: 0 <= share < 1, for all of `layers` (by default the removable ones that are Conv2d), or a dictionary from layer to share.
    At least one channel stays. Raises ValueError for a share out of range or a name that is no Conv2d or Linear.

    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    >>> net[0].weight.data = torch.tensor([2.0, -1.0, 3.0]).view(3, 1, 1, 1)
    >>> weakest(net, 0.34)["0"].tolist()
    [True, False, True]
    """
    known = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if not isinstance(share, Mapping):
        share = dict.fromkeys([n for n in removable(model) if isinstance(known[n], nn.Conv2d)] if layers is None else layers, share)
    keep = {}
    for name, part in share.items():
        if name not in known:
            raise ValueError(f"there is no layer {name!r}: the layers are {', '.join(known)}.")
        if not (math.isfinite(part) and 0 <= part < 1):
            raise ValueError(f"share of {name} is {part}, and must be 0 or more and below 1.")
        strength = known[name].weight.detach().abs().float().flatten(1).sum(1)                     # (out,)
        drop = min(round(part * len(strength)), len(strength) - 1)
        keep[name] = torch.ones_like(strength, dtype=torch.bool)
        keep[name][torch.argsort(strength, stable=True)[:drop]] = False
    return keep


def remove(model: nn.Module, keep: Mapping[str, torch.Tensor]) -> nn.Module:
    """A smaller copy without the output channels that keep[layer], bool (out,), says False for; whoever reads them loses those inputs.

    What lies between may be activations, pooling, dropout, batch norm and depthwise convolutions (both cut as well) and Flatten. The copy
    computes what the model would if its readers' weights for those inputs were zero.
    Raises ValueError for a model that fx cannot follow, a layer that is never called or called more than once, a weight that two layers
    share, a grouped convolution, an addition or any other operation on the way, channels that are outputs of the model, a mask that is
    not bool (out,) or keeps nothing.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
    >>> small = remove(net, weakest(net, 0.5))
    >>> small[0].weight.shape, small[3].weight.shape
    (torch.Size([4, 1, 3, 3]), torch.Size([2, 16]))
    """
    model, graph = copy.deepcopy(model), _trace(model)
    modules = dict(model.named_modules())
    plans = {name: _readers(graph, modules, name) for name in keep}                         # all is checked before anything is cut
    for name, mask in keep.items():
        out = modules[name].weight.shape[0]
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != (out,) or not mask.any():
            raise ValueError(f"keep[{name!r}] must be a bool tensor of shape ({out},) that keeps at least one channel.")
    for name, readers in plans.items():
        kept = keep[name].nonzero()[:, 0].to(modules[name].weight.device)
        _cut(modules[name], 0, kept)
        for reader in readers:
            _cut_reader(modules[reader], kept, len(keep[name]))
    return model


def removable(model: nn.Module) -> list[str]:
    """The layers whose output channels `remove` can take away, in the order of registration.

    >>> removable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))              # the last one's outputs are the answer
    ['0']
    """
    graph, modules, found = _trace(model), dict(model.named_modules()), []
    for name, module in modules.items():
        if isinstance(module, LAYERS):
            try:
                _readers(graph, modules, name)
            except ValueError:
                continue
            found.append(name)
    return found


def macs(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates of each Conv2d and Linear when the model is given example, a batch; sum(macs(...).values()) is all of them.

    A layer that is called twice counts twice, one that is never called 0. Biases, activations and pooling are not counted, and weights
    that are zero are: a dense kernel multiplies by them.

    >>> macs(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10)), torch.zeros(1, 1, 4, 4))
    {'0': 1152, '2': 1280}
    """
    counted = {name: 0 for name, module in model.named_modules() if isinstance(module, LAYERS)}

    def counter(name):
        def count(module, _inputs, output):
            counted[name] += output.numel() * module.weight[0].numel()                      # each output is one dot product
        return count

    handles = [model.get_submodule(name).register_forward_hook(counter(name)) for name in counted]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return counted


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"torch.fx cannot follow the model's forward ({type(error).__name__}): its steps must not depend on the data."
                         ) from None


def _readers(graph: fx.Graph, modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """What must be cut if channels of `name` go: the layers that read them, and batch norms and depthwise convolutions on the way."""
    producer = modules.get(name)
    if not isinstance(producer, LAYERS):
        raise ValueError(f"{name} is not a Conv2d or Linear of the model.")
    if isinstance(producer, nn.Conv2d) and producer.groups > 1:
        raise ValueError(f"{name} is a convolution in {producer.groups} groups: channels can be removed only from one in 1 group.")
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    if calls[name] != 1:
        raise ValueError(f"{name} is called {calls[name]} times, and must be called once for its channels to be removed.")
    start = next(node for node in graph.nodes if node.op == "call_module" and node.target == name)
    readers, waiting = [], [(user, isinstance(producer, nn.Linear)) for user in start.users]
    while waiting:
        node, flat = waiting.pop()                                                          # flat: channels lie along the last axis
        module = modules[node.target] if node.op == "call_module" else None
        what = _does(node, module, flat, producer.weight.shape[0], isinstance(producer, nn.Linear))
        if what == "ties":
            raise ValueError(f"channels of {name} cannot be removed: they reach {_said(node, module)}, which ties them to others.")
        if what in ("reads", "cut too"):
            readers.append(node.target)
        if what != "reads":
            waiting += [(user, flat or what == "flattens") for user in node.users]
    uses = Counter(id(weight) for module in modules.values() for weight in module._parameters.values() if weight is not None)
    for layer in [name, *readers]:
        alone = all(uses[id(weight)] == 1 for weight in modules[layer]._parameters.values() if weight is not None)
        if calls[layer] != 1 or not alone or any(node.op == "get_attr" and node.target.startswith(f"{layer}.") for node in graph.nodes):
            raise ValueError(f"channels of {name} cannot be removed: {layer} is used more than once, or its weight is.")
    return readers


def _does(node: fx.Node, module: nn.Module | None, flat: bool, channels: int, from_linear: bool) -> str:
    """What becomes of each channel here: "passes", "flattens", "cut too" (a parameter a channel), "reads" (the end), or "ties"."""
    called = node.target if node.op in ("call_function", "call_method") else None
    if isinstance(module, ELEMENTWISE) or called in ELEMENTWISE_CALLS:
        return "passes"
    if isinstance(module, POOLING) or called in POOLING_CALLS:
        return "ties" if flat else "passes"
    if _flattens(node, module):
        return "flattens"
    if isinstance(module, NORMS):
        return "cut too" if module.num_features == channels else "ties"
    if isinstance(module, nn.Conv2d) and not flat:
        if module.groups == 1:
            return "reads"
        return "cut too" if module.groups == module.in_channels == module.out_channels else "ties"
    if isinstance(module, nn.Linear) and flat:                                              # of a Linear, Flatten must have changed nothing
        return "reads" if module.in_features == channels or not from_linear and module.in_features % channels == 0 else "ties"
    return "ties"


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Does it make (n, channels * height * width) of (n, channels, height, width)?"""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    called = node.op == "call_function" and node.target is torch.flatten or node.op == "call_method" and node.target == "flatten"
    return called and (tuple(node.args[1:]), dict(node.kwargs)) in (((1,), {}), ((1, -1), {}), ((), {"start_dim": 1}))


def _said(node: fx.Node, module: nn.Module | None) -> str:
    if node.op == "output":
        return "the model's output"
    target = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
    return f"{node.name} ({target})"


def _cut(module: nn.Module, axis: int, kept: torch.Tensor) -> None:
    """Keep only some outputs (axis 0) or inputs (axis 1) of a layer, or only some channels of a batch norm."""
    for key in ("weight", "bias") if axis == 0 else ("weight",):
        old = getattr(module, key)
        if old is not None:
            setattr(module, key, nn.Parameter(old.detach().index_select(axis, kept).clone(), requires_grad=old.requires_grad))
    conv = isinstance(module, nn.Conv2d)
    setattr(module, ("out_channels" if conv else "out_features") if axis == 0 else ("in_channels" if conv else "in_features"), len(kept))


def _cut_reader(module: nn.Module, kept: torch.Tensor, channels: int) -> None:
    if isinstance(module, NORMS):
        for key in ("weight", "bias"):
            if getattr(module, key) is not None:
                old = getattr(module, key)
                setattr(module, key, nn.Parameter(old.detach()[kept].clone(), requires_grad=old.requires_grad))
        for key in ("running_mean", "running_var"):
            if getattr(module, key) is not None:
                setattr(module, key, getattr(module, key)[kept].clone())
        module.num_features = len(kept)
    elif isinstance(module, nn.Conv2d) and module.groups > 1:                               # depthwise: a channel's filter goes with it
        _cut(module, 0, kept)
        module.in_channels = module.groups = len(kept)
    elif isinstance(module, nn.Linear):                                                     # after Flatten a channel is a block of columns
        block = module.in_features // channels
        _cut(module, 1, (kept[:, None] * block + torch.arange(block, device=kept.device)).flatten())
    else:
        _cut(module, 1, kept)
