"""Which linear layers a method takes the place of, by name, and the exchange itself."""

from collections.abc import Callable

from torch import nn

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
    if isinstance(targets, str):
        raise TypeError(f"targets is {targets!r}, and must be a tuple of names: ({targets!r},).")
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
