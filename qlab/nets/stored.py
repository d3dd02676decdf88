"""A quantized network as a file: safetensors with a checksum (qlab.quant.checked), packed codes, everything else as it is.

Where the model is a graph of layers (ptq.quantize, qat.convert), the file holds the graph too, its nodes and each layer's type and options,
and is loaded by itself. Any other model (quantize_weights) has code of its own, which no file keeps: load fills a copy of one like it.

Nothing in a file is ever run: a layer is made from a name of the table below and numbers, a sum is one of three functions.
"""

import inspect
import math
import operator
import re
from dataclasses import asdict

import torch
from torch import fx, nn

from qlab import saving
from qlab.nets.equalize import Equalized
from qlab.nets.fake import FakeQuantize
from qlab.nets.plain import plain_copy, refuse_hooks
from qlab.nets.ptq import Quantized
from qlab.quant import checked
from qlab.quant.layout import FLOATS, check_bits
from qlab.quant.qtensor import unpacked

_POOL = ("kernel_size", "stride", "padding")
LAYERS = {  # what a graph may hold, and what its constructor takes; bias: whether there is one
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode"),
    nn.Linear: ("in_features", "out_features", "bias"), nn.ReLU: ("inplace",), nn.ReLU6: ("inplace",),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.MaxPool2d: (*_POOL, "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: (*_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",), nn.Flatten: ("start_dim", "end_dim"), FakeQuantize: ("bits", "scale", "zero_point"),
}
SUMS = {"operator.add": operator.add, "torch.add": torch.add, "add": "add"}
_INPUTS = {"placeholder": 0, "call_module": 1, "call_function": 2, "call_method": 2, "output": 1}
_NAME, _PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")  # fx writes them into a function
_FLAGS = ("bias", "affine", "track_running_stats", "inplace", "return_indices", "ceil_mode", "count_include_pad")
_PAIRS = (*_POOL, "dilation", "output_size")


def save(path, quantized: Quantized) -> None:
    """Write the file, whole or not at all. Raises OSError where the place cannot be written; ValueError, by name, for a weight that is no
    longer what its codes decode to, a hook, a tensor without values, a module whose state is more than parameters and buffers."""
    model, tensors, codes, known = quantized.model, {}, [], {}                              # known: id of what is kept -> its key
    if empty := [name for name, _, _, tensor in _owners(model, False) if tensor.is_meta]:
        raise ValueError(f"{empty[0]} is on the meta device, and has no values to save: move the network to another one first.")
    graph = _told(model) if isinstance(model, fx.GraphModule) else None
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
    graph = None if content["graph"] is None else _made(content["graph"], state)
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


# A graph of layers


def _told(model: fx.GraphModule) -> dict | None:
    """The graph as JSON; None where it holds what no graph of qlab.nets does."""
    nodes, modules = [], {}
    for node in model.graph.nodes:
        target, inputs = str(node.target), [a for a in node.args if isinstance(a, fx.Node)]
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            if type(module) not in LAYERS or not _PATH.fullmatch(target):
                return None
            try:
                modules[target] = [type(module).__name__, _options(module)]
            except ValueError as error:
                raise ValueError(f"{target} cannot be saved: {error}.") from None
        elif node.op in ("call_function", "call_method"):
            target = next((name for name, call in SUMS.items() if call == node.target), None)
        if target is None or node.kwargs or len(inputs) != len(node.args) or node.op not in _INPUTS or len(inputs) != _INPUTS[node.op]:
            return None
        nodes.append([node.op, node.name, target, [a.name for a in inputs]])
    return {"nodes": nodes, "modules": modules}


def _options(module: nn.Module) -> dict:
    """What the layer was made with, less what its constructor takes by default."""
    options = {name: getattr(module, name) for name in LAYERS[type(module)]}
    if type(module) is FakeQuantize:
        if options["scale"].dtype != torch.float32 or options["zero_point"].dtype != torch.uint8:
            raise ValueError(f"its scale is {options['scale'].dtype}, and must be float32: quantize the network again")
        if not 0 < options["scale"].item() < math.inf:
            raise ValueError(f"its scale is {options['scale'].item()}, and must be a finite number above 0: quantize the network again")
        return options | {"scale": options["scale"].item(), "zero_point": int(options["zero_point"])}
    if "bias" in options:
        options["bias"] = module.bias is not None
    for name, value in options.items():
        check_option(name, list(value) if isinstance(value, tuple) else value)
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(module)).parameters.items()}
    pairs = type(module) is nn.Conv2d                                                       # whose constructor makes pairs of numbers
    return {name: value for name, value in options.items() if value != defaults[name] and not (pairs and value == (defaults[name],) * 2)}


def _made(told: dict, state: dict[str, tuple[torch.Tensor, bool]]) -> fx.GraphModule:
    root, known, graph = nn.Module(), {}, fx.Graph()
    for path, (kind, options) in told["modules"].items():
        _check_name(path, _PATH)
        parent, _, child = path.rpartition(".")
        here = root
        for part in parent.split(".") if parent else ():
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here._modules[part]
        if child in here._modules:
            raise ValueError(f"{path} is two layers")
        here.add_module(child, _layer(kind, options))
    for op, name, target, inputs in told["nodes"]:
        _check_name(name, _NAME)
        if _INPUTS[op] != len(inputs):
            raise ValueError(f"{name} has {len(inputs)} inputs")
        if op == "call_module" and target not in told["modules"]:
            raise ValueError(f"{name} calls {target!r}, which is no layer of the file")
        if op in ("placeholder", "output"):
            _check_name(target, _NAME)
        call = SUMS[target] if op in ("call_function", "call_method") else target
        if isinstance(call, str) is (op == "call_function"):
            raise ValueError(f"{name} is no sum")
        args = tuple(known[i] for i in inputs)
        known[name] = graph.output(args[0]) if op == "output" else graph.create_node(op, call, args, name=name)
        if known[name].name != name:
            raise ValueError(f"the name {name!r} is taken")
    ops = [op for op, *_ in told["nodes"]]
    if ops.count("placeholder") != 1 or ops.count("output") != 1 or ops[0] != "placeholder" or ops[-1] != "output":
        raise ValueError("a graph begins with its one input and ends with its one output")
    if {node.target for node in graph.nodes if node.op == "call_module"} != set(told["modules"]):
        raise ValueError("a layer is never called")
    model = fx.GraphModule(root, graph)
    _fill(model, state, graph=True)
    return model.eval()


def _check_name(name, pattern: re.Pattern) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{name!r} is no name")


def _layer(kind: str, options: dict) -> nn.Module:
    """A layer without values: on the meta device a size costs nothing until it is compared with the file's."""
    made = next((layer for layer in LAYERS if layer.__name__ == kind), None)
    if made is None or not set(options) <= set(LAYERS[made]):
        raise ValueError(f"{kind!r} with {', '.join(options)} is no layer that a graph may hold")
    if made is FakeQuantize:
        fake = FakeQuantize(check_bits(options["bits"], 1, 8), 0.0, 1.0)
        fake.scale, fake.zero_point = torch.tensor(float(options["scale"])), torch.tensor(whole(options["zero_point"], 0, fake.top)).byte()
        if not 0 < fake.scale.item() < math.inf:
            raise ValueError(f"a scale is {options['scale']!r}")
        return fake
    start, end = options.get("start_dim", 1), options.get("end_dim", -1)
    if made is nn.Flatten and __is_whole(start) and __is_whole(end) and (start < 0) == (end < 0) and start > end:
        raise ValueError(f"start_dim is {start} and end_dim {end}, which comes before it")
    with torch.device("meta"):
        return made(**{name: check_option(name, value) for name, value in options.items()})


def check_option(name: str, value):
    """An option as its constructor takes it; ValueError for what is none. Lists of JSON are tuples again."""
    numbers = tuple(value) if isinstance(value, list) else (value,)
    if name in _FLAGS:
        right = isinstance(value, bool)
    elif name == "padding_mode":
        right = value in ("zeros", "reflect", "replicate", "circular")
    elif name in ("eps", "momentum"):
        right = value is None or isinstance(value, (int, float)) and 0 <= value <= torch.finfo(torch.float64).max
    elif name in ("divisor_override", "output_size") and value is None or name == "padding" and value in ("same", "valid"):
        right = True
    else:
        low = -64 if name in ("start_dim", "end_dim") else 0 if name in ("padding", "in_features", "out_features") else 1
        right = all(__is_whole(n) and low <= n < 2**31 or name == "output_size" and n is None for n in numbers)
        right = right and (len(numbers) == 2 and name in _PAIRS or not isinstance(value, list))
    if not right:
        raise ValueError(f"{name} is {value!r}")
    return numbers if isinstance(value, list) else value


def __is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(value, low: int = 0, high: int = 2**63) -> int:
    if not __is_whole(value) or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value
