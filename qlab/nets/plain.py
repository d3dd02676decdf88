"""Whether a module computes what its parameters say. Where it does not, a changed weight changes nothing, or the rest of it gets lost.

    a recomputed weight     layer.weight is made anew in each forward, from other parameters: torch.nn.utils.prune, weight_norm,
                            spectral_norm, torch.nn.utils.parametrize. What is written into it is gone at the next call.
    a hook                  registered on a module, or a forward that was put on the instance, may change what the module gives; neither is
                            part of the graph of layers (qlab.nets.graph), nor of an integer or exported network.

The first can be made plain: the weight that the layer computes with becomes a parameter. The second can only be refused.
"""

import copy

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LAYERS = (*CONVOLUTIONS, nn.Linear)                                                  # what has a weight to quantize or prune


def recomputed(module: nn.Module) -> dict[str, str]:
    """The names of a module's own tensors that are made anew in each forward, and how to make each a plain parameter.

    >>> recomputed(prune.random_unstructured(nn.Linear(4, 2), "weight", 0.5))
    {'weight': "torch.nn.utils.prune.remove(layer, 'weight')"}
    """
    found = {name: f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})" for name in _parametrized(module)}
    for name, kind in _hooked(module):
        call = {prune.BasePruningMethod: "prune.remove", WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm"}[kind]
        found[name] = f"torch.nn.utils.{call}(layer, {name!r})"
    if isinstance(module, LAYERS) and not isinstance(module._parameters.get("weight"), nn.Parameter):
        found.setdefault("weight", "the class that the layer is of")
    return found


def _parametrized(module: nn.Module) -> list[str]:
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []


def _hooked(module: nn.Module) -> list[tuple[str, type]]:
    """The tensors that one of torch's own hooks recomputes before forward, and the kind of hook."""
    found = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            found.append((hook._tensor_name, prune.BasePruningMethod))
        elif isinstance(hook, (WeightNorm, SpectralNorm)):
            found.append((hook.name, type(hook)))
    return found


def refuse_recomputed(model: nn.Module) -> None:
    """ValueError, naming the layer and what to call, where the weight of a Conv2d or Linear is made anew in each forward."""
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and (how := recomputed(layer).get("weight")):
            raise ValueError(f"the weight of {_called(name)} is computed anew in each forward, so that changing it would change nothing: "
                             f"make it a parameter first ({how}).")


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in which every recomputed weight (or bias) is a parameter with the value that forward would compute in evaluation mode.

    Nothing else differs; layers that share a parameter still do. Raises ValueError, naming the layer, for a weight that is no parameter
    for another reason, one that has no values yet (a lazy layer that has not run), or a forward that was put on an instance.

    >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    >>> copied = plain_copy(layer)
    >>> sorted(copied.state_dict()), torch.equal(copied.weight, layer.weight)
    (['bias', 'weight'], True)
    """
    refuse_forwards(model)
    # deepcopy refuses a tensor that was computed from parameters, as old-style reparametrizations leave it in the module.
    computed = {id(t): t.detach().clone() for module in model.modules() for t in [*vars(module).values(), *module._buffers.values()]
                if isinstance(t, torch.Tensor) and not t.is_leaf}
    copied = copy.deepcopy(model, computed)
    modes = [(module, module.training) for module in copied.modules()]
    copied.eval()                                                                           # spectral norm iterates in training
    for name, module in copied.named_modules():
        _unparametrize(module)
        for own, kind in _hooked(module):
            for source, old in list(module._parameters.items()):  # removal writes into them, and another layer may hold them too
                if source.startswith(f"{own}_"):
                    module._parameters[source] = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
            {prune.BasePruningMethod: prune.remove, WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}[kind](module, own)
        if isinstance(module, LAYERS):
            _check_weight(module, name)
    for module, mode in modes:
        module.training = mode
    return copied


@torch.no_grad()
def _unparametrize(module: nn.Module) -> None:
    """torch's remove_parametrizations deletes a property of the class, which a copy shares with the original: this leaves it alone."""
    names, own_class = _parametrized(module), parametrize.type_before_parametrizations(module)
    values = {name: getattr(module, name).detach().clone() for name in names}
    learned = {name: [p.requires_grad for p in module.parametrizations[name].parameters(recurse=False)] for name in names}
    if names:
        del module.parametrizations
        module.__class__ = own_class
    for name in names:
        if learned[name]:
            module.register_parameter(name, nn.Parameter(values[name], requires_grad=any(learned[name])))
        else:
            module.register_buffer(name, values[name])


def _check_weight(layer: nn.Module, name: str) -> None:
    weight = layer._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        raise ValueError(f"the weight of {_called(name)} has no values yet: run the network on an image first.")
    if weight is None:
        raise ValueError(f"the weight of {_called(name)}, a {type(layer).__name__}, is no parameter, and must be one.")


def refuse_hooks(model: nn.Module) -> None:
    """ValueError, by name, for a module with a forward hook or pre-hook, or whose forward was replaced on the instance."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise ValueError("a forward hook is registered for all modules, which may change what they compute: remove it first.")
    refuse_forwards(model)
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            hook = next(iter([*module._forward_hooks.values(), *module._forward_pre_hooks.values()]))
            said = getattr(hook, "__name__", type(hook).__name__)
            raise ValueError(f"{_called(name)} has a forward hook ({said}), which may change what it computes and would be lost: remove it "
                             "first (handle.remove()).")


def refuse_forwards(model: nn.Module) -> None:
    """ValueError, by name, for a forward that was put on an instance: a copy would go on calling it, with the original's weights."""
    for name, module in model.named_modules():
        if "forward" in vars(module):
            raise ValueError(f"{_called(name)} has a forward of its own, other than its class's, which would be lost: give it a class.")


def _called(name: str) -> str:
    return name or "the network"


def users_of(model: nn.Module) -> dict[int, list[str]]:
    """Which modules hold each parameter: names by id(parameter), several where it is shared, or its memory is.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> net[1].weight = net[0].weight
    >>> list(users_of(net).values())
    [['0', '1']]
    """
    users: dict[int, list[str]] = {}
    held = [(parameter, name) for name, module in model.named_modules() for parameter in module.parameters(recurse=False)]
    for parameter, name in held:
        users.setdefault(memory_of(parameter), []).append(name)
    return {id(parameter): users[memory_of(parameter)] for parameter, _ in held}


def memory_of(parameter: torch.Tensor) -> int:
    """Equal for tensors that lie at one place, whether they are one object or not."""
    there = not isinstance(parameter, UninitializedParameter) and not parameter.is_meta and parameter.numel()
    return parameter.data_ptr() if there else -id(parameter)
