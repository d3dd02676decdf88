"""What a result says of the rest: which layers and parameters of a network were left as they are, by name, and why."""

from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.utils import parametrize

from qlab.nets.plain import LAYERS


class ByLayer(dict):
    """What was made for each layer, by its name. left: what was left as it is, by name, and why.

    >>> found = ByLayer({"fc": 1}, {"embedding": "Embedding: not pruned"})
    >>> found["fc"], found.left["embedding"]
    (1, 'Embedding: not pruned')
    """

    def __init__(self, made: Mapping[str, object], left: Mapping[str, str]):
        super().__init__(made)
        self.left = dict(left)


def behind(model: nn.Module, taken: Collection[str], done: str, why: str) -> dict[str, str]:
    """Every module with parameters that is not among those taken, by name, and every parameter that is in no layer; and why.

    done: what was done with the weights ("pruned"); why: of a Conv1d, Conv2d or Linear that was not taken. The bias of a layer that was
    taken is not listed: it always stays.

    >>> behind(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)), {"1"}, "pruned", "named in skip")
    {'0': 'Embedding: only weights of Conv1d, Conv2d, Linear are pruned', '2': 'named in skip'}
    """
    only = f"only weights of {', '.join(layer.__name__ for layer in LAYERS)} are {done}"
    found = {}
    for name, module in model.named_modules():
        if name in taken or isinstance(module, parametrize.ParametrizationList):
            continue
        kind = parametrize.type_before_parametrizations(module)
        own = [own for own, _ in module.named_parameters(recurse=False)]
        own += list(module.parametrizations) if parametrize.is_parametrized(module) else []  # computed from parameters: they are there
        if isinstance(module, LAYERS):
            found[name] = why
        elif own and kind.__module__.startswith("torch.nn."):
            found[name] = f"{kind.__name__}: {only}"
        else:
            found |= {f"{name}.{p}" if name else p: f"a parameter of {kind.__name__} itself: {only}" for p in own}
    return found
