"""Which linear layers a method takes the place of, by name, and the exchange itself."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qlab.llm.weights import choose
from qlab.matmul import swap
from qlab.matmul.layers import why_other
from qlab.nets.plain import plain_copy


def select(model: nn.Module, targets: tuple[str, ...] | None = None) -> tuple[nn.Module, dict[str, nn.Linear]]:
    """A copy of the model whose weights are plain parameters, and its linear layers of these names, in the model's order.

    A target is a whole name, or its end: "query" stands for blocks.0.attention.query and all its like. None: all linear layers but those
    that share their weight with an embedding.
    Raises TypeError for what is no module, or where targets is one text; ValueError for a model without linear layers, a target that no
    layer has, and a layer that computes something else than its weight says.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> list(select(model)[1]), list(select(model, ("2",))[1])
    (['0', '2'], ['2'])
    """
    if targets is not None and not (isinstance(targets, (tuple, list)) and all(isinstance(target, str) for target in targets)):
        raise TypeError(f"targets is {targets!r}, and must be a tuple of names{f': ({targets!r},)' if isinstance(targets, str) else ''}.")
    free, _ = choose(model)
    copied = plain_copy(model)
    layers = {name: layer for name, layer in copied.named_modules() if type(layer) is nn.Linear}
    if not layers:
        raise ValueError(f"the model, a {type(model).__name__}, has no linear layers, and must have one at least.")
    if targets is None:
        taken = {name: layer for name, layer in layers.items() if name in free}
        if not taken:
            raise ValueError("every linear layer of the model shares its weight with an embedding: name those to take in targets.")
    else:
        for target in targets:
            if not any(_named(name, target) for name in layers):
                raise ValueError(f"no linear layer is called {target!r}: targets may name {', '.join(list(layers)[:8])}"
                                 f"{' and so on' if len(layers) > 8 else ''}, or the ends of such names.")
        taken = {name: layer for name, layer in layers.items() if any(_named(name, target) for target in targets)}
        if not taken:
            raise ValueError("targets is empty, and must name a linear layer at least.")
    for name, layer in taken.items():
        if why := why_other(layer):
            raise ValueError(f"{name or 'the layer'} cannot be replaced: {why}.")
    return copied, taken


def check_module(model) -> None:
    """Raises TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")


def linear_layers(model: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """The linear layers by name; ValueError where there is none, or where a name in skip is none of them.

    The matrices of nn.MultiheadAttention are none: it multiplies by them itself, and calls no layer.

    >>> list(linear_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))))
    ['0', '2']
    """
    check_module(model)
    if isinstance(skip, str):
        raise TypeError(f"skip is {skip!r}, and must be a tuple of names: ({skip!r},).")
    found = {name: layer for name, layer in model.named_modules()
             if isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)}
    if not found:
        raise ValueError(f"the model, a {type(model).__name__}, has no linear layers, and must have one at least.")
    if unknown := [name for name in skip if name not in found]:
        raise ValueError(f"{unknown[0]!r} is no linear layer of the model: skip may hold {', '.join(list(found)[:8])}"
                         f"{' and so on' if len(found) > 8 else ''}.")
    return found


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def exchange(model: nn.Module, layers: dict[str, nn.Module], make: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """The model with make(name, layer) in the place of each of these layers of its own, in place; a layer with two names stays one.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> exchange(model, {"0": model[0]}, lambda name, layer: nn.Identity())
    Sequential(
      (0): Identity()
      (1): ReLU()
    )
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made = {id(layer): make(name, layer) for name, layer in layers.items()}
    for name, module in modules.items():
        if name and id(module) in made:
            swap.put(modules, name, made[id(module)])
    return made.get(id(model), model)
