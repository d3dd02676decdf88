"""The linear layers of a whole model swapped for Int8Linear, in place, where the swap computes the same layer; and a word on each.

A layer is left where its weight is not all that it computes, or not its own: see quantize_linears_.
"""

from dataclasses import dataclass

import torch
from torch import nn

from qlab.matmul import reference
from qlab.matmul.layers import FLOATS, Int8Linear, check_activations, why_other


@dataclass(frozen=True)
class Swap:
    """What happened to one layer: its name in the model, its type, whether it was swapped, and why (not)."""

    name: str
    layer: str
    swapped: bool
    why: str

    def __str__(self) -> str:
        return f"{'swapped' if self.swapped else 'left'}  {self.name or '(the model itself)'}  {self.layer}: {self.why}"


def quantize_linears_(model: nn.Module, activations="token", skip: tuple[str, ...] = (), backend: str = "auto") -> list[Swap]:
    """Swaps the linear layers of a model for Int8Linear, in place, and says what it swapped and what it left and why.

    activations: "token", (scale, zero_point) for all layers, a dict {layer name: (scale, zero_point)}, or None for weight-only;
    skip: names of layers to leave (a last layer that decides the classes, say). Left too: subclasses of nn.Linear, whose owner may
    use the weight without calling the layer (nn.MultiheadAttention does), layers whose weight another layer shares or that is made anew
    in each forward (pruning, parametrizations), layers with hooks or a forward of their own, and weights that are not finite or of
    another dtype. Raises, before anything is changed, TypeError for what is no module and for names that are no tuple; ValueError for a
    name in skip or activations that is no layer of the model, and for one layer that has two names and different activations.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> for swap in quantize_linears_(model, skip=("2",)):
    ...     print(swap)
    swapped  0  Linear(8, 8): int8 weights, activations by token
    left  2  Linear(8, 2): it was to be skipped
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    if not isinstance(skip, (tuple, list, set, frozenset)):
        raise TypeError(f"skip is {skip!r}, and must be a tuple of names.")
    modules = dict(model.named_modules(remove_duplicate=False))
    static = activations if isinstance(activations, dict) else {}
    for name in (*skip, *static):
        if not isinstance(modules.get(name), nn.Linear):
            raise ValueError(f"{name!r} is no linear layer of this model: choose among "
                             f"{', '.join(repr(n) for n, m in modules.items() if isinstance(m, nn.Linear)) or 'none, for it has none'}.")
    for wanted in static.values() if isinstance(activations, dict) else [activations]:
        check_activations(wanted)
    chosen = {}  # one layer may have two names, and has one way all the same
    for name, wanted in static.items():
        other, before = chosen.setdefault(id(modules[name]), (name, wanted))
        if check_activations(before) != check_activations(wanted):
            raise ValueError(f"{other!r} and {name!r} are one layer, and have the activations {before!r} and {wanted!r}: give it one.")
    owners = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    report, made = [], {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            continue
        kind = f"{type(module).__name__}({module.in_features}, {module.out_features})"
        why = _why_left(name, module, skip, [other for other in owners.get(id(module.weight), ()) if modules[other] is not module])
        if why or not name:
            report.append(Swap(name, kind, False, why or "it is the whole model: use Int8Linear.from_float"))
            continue
        how = chosen.get(id(module), (name, "token"))[1] if isinstance(activations, dict) else activations
        if id(module) not in made:  # one layer under two names stays one layer
            made[id(module)] = Int8Linear.from_float(module, how, backend=backend)
        put(modules, name, made[id(module)])
        told = {"token": "activations by token", None: "activations as they are"}.get(how, "activations static")
        report.append(Swap(name, kind, True, f"int8 weights, {told}"))
    return report


def put(modules: dict[str, nn.Module], name: str, layer: nn.Module) -> None:
    """layer into the place that has this name. modules: all of the model, by name."""
    parent, _, last = name.rpartition(".")
    setattr(modules[parent], last, layer)
    if isinstance(modules[parent], nn.TransformerEncoderLayer):
        modules[parent].activation_relu_or_gelu = 0  # else its fast path, which takes the weights of its layers and not the layers


def _why_left(name: str, layer: nn.Linear, skip: tuple[str, ...], sharers: list[str]) -> str:
    """Why this layer is left as it is, or ""."""
    if name in skip:
        return "it was to be skipped"
    if type(layer) is not nn.Linear:
        return "a subclass of nn.Linear, whose owner may use its weight without calling it"
    if why := why_other(layer):
        return why
    if sharers:
        return f"its weight is shared with {', '.join(sharers)}"
    if layer.weight.is_meta:
        return "its weight is on the meta device, without values"
    if layer.weight.dtype not in FLOATS:
        return f"its weight has dtype {layer.weight.dtype}"
    if layer.in_features >= reference.MAX_K // 2:
        return f"in_features is {layer.in_features:,}, and sums of {reference.MAX_K // 2:,} or more may not fit into int32"
    if not torch.isfinite(layer.weight).all():
        return "its weight is not finite"
    if not layer.weight.numel():
        return "its weight is empty"
    return ""
