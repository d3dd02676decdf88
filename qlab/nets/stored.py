"""A quantized network as a file: safetensors with a checksum (qlab.quant.checked), packed codes, everything else as it is.

Where the model is a graph of layers (ptq.quantize, qat.convert), the file holds the graph too (qlab.nets.stored_graph), and is loaded by
itself. Any other model (quantize_weights) has code of its own, which no file keeps: load fills a copy of one like it.
"""

from dataclasses import asdict

import torch
from torch import fx, nn

from qlab import saving
from qlab.nets import stored_graph
from qlab.nets.equalize import Equalized
from qlab.nets.fake import FakeQuantize
from qlab.nets.plain import plain_copy, refuse_hooks
from qlab.nets.ptq import Quantized
from qlab.nets.stored_layers import whole
from qlab.quant import checked
from qlab.quant.layout import FLOATS
from qlab.quant.qtensor import unpacked


def save(path, quantized: Quantized) -> None:
    """Write the file, whole or not at all. Raises OSError where the place cannot be written; ValueError, by name, for a weight that is no
    longer what its codes decode to, a hook, a tensor without values, a module whose state is more than parameters and buffers."""
    model, tensors, codes, known = quantized.model, {}, [], {}                              # known: id of what is kept -> its key
    if empty := [name for name, _, _, tensor in _owners(model, False) if tensor.is_meta]:
        raise ValueError(f"{empty[0]} is on the meta device, and has no values to save: move the network to another one first.")
    graph = stored_graph.told(model) if isinstance(model, fx.GraphModule) else None
    if graph:
        refuse_hooks(model)
    elif extra := [name for name, module in model.named_modules() if type(module).get_extra_state is not nn.Module.get_extra_state]:
        raise ValueError(f"{extra[0] or 'the network'} keeps a state that is no parameter and no buffer, and only these can be saved.")
    state = {name: tensor for name, _, _, tensor in _owners(model, graph is not None)}
    for layer, q in quantized.tensors.items():
        weight = state.get(_key(layer))
        if weight is None or not torch.equal(weight.detach().cpu(), q.to("cpu").dequantize().to(weight.dtype)):
            raise ValueError(f"the weight of {layer or 'the network'} is not what its codes decode to: quantize the network again.")
        if id(q) not in known:
            known[id(q)] = len(codes)
            told, packed = q.packed()
            codes.append(told | {"name": _key(layer), "tensors": list(packed)})
            tensors |= {f"{_key(layer)}.{what}": tensor for what, tensor in packed.items()}
        known.setdefault(id(weight), [known[id(q)], str(weight.dtype).removeprefix("torch."), len(known)])
    for name, tensor in state.items():
        if name in tensors:
            raise ValueError(f"{name} is the name of a tensor and of a weight's packed codes: name the layer otherwise.")
        if id(tensor) not in known:
            known[id(tensor)], tensors[name] = name, tensor
    content = {
        "nbytes": quantized.nbytes, "codes": codes, "layers": {layer: known[id(q)] for layer, q in quantized.tensors.items()},
        "elsewhere": {name: known[id(tensor)] for name, tensor in state.items() if known[id(tensor)] != name},
        "learned": [name for name, tensor in state.items() if tensor.requires_grad], "graph": graph, "left": quantized.left,
        "equalized": quantized.equalized and asdict(quantized.equalized),
    }
    saving.write({path: checked.content("Quantized", content, tensors)})


def load(path, model: nn.Module | None = None) -> Quantized:
    """What save wrote. model: for a file without a graph, one of the architecture that was quantized; a copy of it is filled.
    Tensors are on the CPU, the model in evaluation mode.

    Raises OSError where the file cannot be read; ValueError, in one sentence, for one that is damaged or foreign, that needs a model or
    needs none, or whose names and shapes are not the model's.
    """
    nbytes, layers, state, graph, left, equalized = checked.load(path, "Quantized", _restored)
    if graph is not None:
        if model is not None:
            raise ValueError(f"{path} holds the graph of its network: load it without a model.")
        return Quantized(graph, layers, nbytes, left, equalized)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} holds weights without their network: load it with a model of the architecture that was quantized.")
    copied = plain_copy(model).eval()
    try:
        _fill(copied, state, graph=False)
    except ValueError as error:
        raise ValueError(f"{path} is of another network: {error}.") from None
    return Quantized(copied, layers, nbytes, left, equalized)


def _key(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _owners(model: nn.Module, graph: bool):
    """(full name, module, its own name for it, tensor) of each parameter and persistent buffer, under each name that it has; of a graph,
    without those that are told with it."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in () if graph and type(module) is FakeQuantize else [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, module, name, tensor


def _restored(content: dict, tensors: dict) -> tuple:
    codes, made, state = [], {}, {}
    for told in content["codes"]:
        codes.append(unpacked(told, {what: tensors.pop(f"{told['name']}.{what}") for what in told["tensors"]}))
    for name, key in ({name: name for name in tensors} | content["elsewhere"]).items():
        if isinstance(key, list):  # [which codes, the weight's dtype, ...]: names with equal keys are one tensor
            key = index, dtype, _ = tuple(key)
            value = made[key] if key in made else codes[index].dequantize().to(_float(dtype))
        else:
            value = tensors[key]
        if name in content["learned"] and not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}, and cannot learn")
        state[name] = made.setdefault(key, value), name in content["learned"]
    layers = {layer: codes[index] for layer, index in content["layers"].items()}
    for layer, q in layers.items():
        if not torch.equal(state[_key(layer)][0], q.dequantize().to(state[_key(layer)][0])):
            raise ValueError(f"the weight of {layer} is not what its codes decode to")
    graph = None if content["graph"] is None else stored_graph.made(content["graph"])
    if graph is not None:
        _fill(graph, state, graph=True)
        graph.eval()
    said = content.get("equalized")                                                         # files of before had no such entries
    equalized = said and Equalized([_pair(pair) for pair in said["pairs"]], _reasons(said["left"]))
    return whole(content["nbytes"]), layers, state, graph, _reasons(content.get("left", {})), equalized


def _reasons(told) -> dict[str, str]:
    if not isinstance(told, dict) or not all(isinstance(why, str) for why in told.values()):
        raise ValueError("what was left as it is has no reasons")
    return told


def _pair(told) -> tuple[str, str]:
    if not isinstance(told, list) or len(told) != 2 or not all(isinstance(name, str) for name in told):
        raise ValueError(f"{told!r} is no pair of layers")
    return tuple(told)


def _float(name: str) -> torch.dtype:
    found = next((dtype for dtype in FLOATS if str(dtype) == f"torch.{name}"), None)
    if found is None:
        raise ValueError(f"a weight of dtype {name!r}")
    return found


def _fill(model: nn.Module, state: dict[str, tuple[torch.Tensor, bool]], graph: bool) -> None:
    """Give the model these tensors, in place of its own; ValueError where names, shapes or kinds differ."""
    owners = list(_owners(model, graph))
    names = {name for name, *_ in owners}
    for what, found in (("it lacks", names - set(state)), ("the model lacks", set(state) - names)):
        if found:
            raise ValueError(f"{what} {', '.join(sorted(found)[:5])}")
    given, parameters = {}, {}
    for name, module, own, tensor in owners:
        value, learned = state[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype and not (tensor.is_meta and {value.dtype, tensor.dtype} <= {*FLOATS}):
            raise ValueError(f"{name} is {value.dtype} of shape {tuple(value.shape)} in the file, and {tensor.dtype} of shape "
                             f"{tuple(tensor.shape)} in the model")
        if given.setdefault((id(module), own), value) is not value:
            raise ValueError(f"{name} belongs to a layer that has two names in the model, and different values in the file")
    for name, module, own, _ in owners:
        value, learned = state[name]
        if own in module._parameters:
            value = parameters.setdefault(id(value), nn.Parameter(value, requires_grad=learned))
        setattr(module, own, value)                                                         # a module may keep a list of its own weights
