"""What can be chosen from: each layer's weight, quantized at each width, before anything is chosen.

    candidates[layer][bits]    a QTensor

Made once, they say what each choice would do to the network (qlab.search.sensitivity) and what it would weigh (qlab.search.costs), and the
chosen ones are the quantized network. They may come from any method: rounding to nearest, GPTQ, learned rounding.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from qlab.llm.weights import choose, quantize_weights, round_to_nearest
from qlab.nets.plain import LAYERS, plain_copy, users_of
from qlab.nets.ptq import Quantized, naming_weight
from qlab.quant import QTensor
from qlab.quant.layout import check_bits

Candidates = Mapping[str, Mapping[int, QTensor]]
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def to_nearest(weight: torch.Tensor, bits: int) -> QTensor:
    """Symmetric codes, a scale for each output channel, its range the one of least squared error.

    >>> to_nearest(torch.tensor([[0.1, -0.9, 2.0, 7.0]]), 4).codes
    tensor([[ 0, -1,  2,  7]], dtype=torch.int8)
    """
    return round_to_nearest(weight, bits, ranges="mse")


def make(model: nn.Module, widths: Iterable[int] = WIDTHS, how: Callable[[torch.Tensor, int], QTensor] = to_nearest,
         skip: tuple[str, ...] = ()) -> dict[str, dict[int, QTensor]]:
    """Every Conv1d, Conv2d and Linear but those in skip at every width, by name, then bits. The model is not changed.

    widths: from 2 to 16. how(weight, bits): the quantizer. A layer that shares its weight with an embedding is left out, as
    qlab.llm.weights.choose does. Fold batch norm first (qlab.nets.ptq.fold_batch_norm): the folded weight is what a device stores.
    Raises ValueError for no widths or one that is no bits, a model of which no layer is left, layers that share one weight, and, by name,
    what how refuses.

    >>> made = make(nn.Sequential(nn.Linear(64, 10)), widths=(2, 4))
    >>> {bits: q.nbytes for bits, q in made["0"].items()}                    # 640 codes and 10 float32 scales
    {2: 200, 4: 360}
    """
    widths = sorted({check_bits(bits, 2) for bits in widths})
    if not widths:
        raise ValueError("widths are none, and must be bits from 2 to 16, at least one.")
    names, kept = choose(model, skip)
    if not names:
        raise ValueError(f"nothing is left to choose bits for: {', '.join(f'{name} is left out ({why})' for name, why in kept.items())}.")
    model = plain_copy(model)
    users, made = users_of(model), {}
    for name in names:
        weight = model.get_submodule(name).weight
        if others := [other for other in users[id(weight)] if other != name]:
            raise ValueError(f"{name} and {others[0]} share one weight, and would get their bits apart: untie them, or name both in skip.")
        with naming_weight(name):
            made[name] = {bits: how(weight.detach(), bits) for bits in widths}
    return made


def apply(model: nn.Module, candidates: Candidates, allocation: Mapping[str, int]) -> Quantized:
    """A copy of the model in which each layer of the allocation has its candidate of so many bits; the other layers keep their floats.

    Raises TypeError for candidates or an allocation that are none, ValueError for a layer or width that is not among the candidates, or
    candidates of another model.

    >>> net = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> apply(net, make(net), {"0": 2, "2": 8}).nbytes                       # 160 + 4 * 10, 20 + 4 * 2, and 12 float32 biases
    276
    """
    check_kind(candidates)
    if not isinstance(allocation, Mapping):
        raise TypeError(f"allocation is a {type(allocation).__name__}, and must be a dictionary, from the name of a layer to its bits.")
    for name, bits in allocation.items():
        if name not in candidates or bits not in candidates[name]:
            known = candidates.get(name)
            raise ValueError(f"there is no candidate for {name!r} at {bits!r} bits: choose among "
                             f"{', '.join(map(str, known)) if known else ', '.join(candidates)}.")
    chosen = {name: candidates[name][bits] for name, bits in allocation.items()}
    rest = tuple(name for name, module in model.named_modules() if isinstance(module, LAYERS) and name not in chosen)
    return quantize_weights(model, {name: lambda _, q=q: q for name, q in chosen.items()}, rest)


def check_kind(candidates: Candidates) -> None:
    """TypeError for what is no dictionary of dictionaries of QTensors."""
    fits = isinstance(candidates, Mapping) and all(isinstance(of_layer, Mapping) for of_layer in candidates.values())
    if not fits or not all(isinstance(q, QTensor) for of_layer in candidates.values() for q in of_layer.values()):
        raise TypeError(f"candidates are a {type(candidates).__name__}, and must be QTensors by layer and bits, as candidates.make gives "
                        "them.")


def checked(model: nn.Module, candidates: Candidates) -> tuple[nn.Module, tuple[str, ...], tuple[int, ...]]:
    """A plain copy of the model (qlab.nets.plain) in evaluation mode, the names of the layers, and the widths.

    TypeError for what is no model or no candidates; ValueError for none, for different widths, or where they are not the model's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, and must be a torch.nn.Module.")
    check_kind(candidates)
    model = plain_copy(model).eval()
    widths = {tuple(sorted(of_layer)) for of_layer in candidates.values()}
    if len(widths) != 1 or not next(iter(widths)):
        raise ValueError(f"candidates have the widths {' and '.join(map(str, sorted(widths))) or 'of no layer'}, and must have the same "
                         "for every layer, at least one.")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    for name, of_layer in candidates.items():
        if name not in layers:
            raise ValueError(f"candidates name {name!r}, and the layers of the model are {', '.join(layers)}.")
        shape = tuple(layers[name].weight.shape)
        for bits, q in of_layer.items():
            if tuple(q.shape) != shape:
                raise ValueError(f"the candidate for {name!r} at {bits} bits has shape {tuple(q.shape)}, and the weight has {shape}.")
    return model, tuple(candidates), next(iter(widths))
