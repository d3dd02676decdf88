"""A graph of layers as data: its nodes, who feeds whom, and each layer's class and options.

    [op, name, target, inputs]               a node that is given nothing but other nodes, by their names
    [op, name, target, args, kwargs]         any other, its arguments: numbers, None, lists, and one of
                                             {"node": name}, {"tuple": [..]}, {"slice": [start, stop, step]}, {"all": "..."}
Nothing in a file is ever run: a layer is made from a name of a table and numbers, a function is one of the operations that a graph knows.
"""

import math
import re

from torch import fx, nn

from qlab.nets import operations
from qlab.nets.fake import FakeQuantize
from qlab.nets.stored_layers import LAYERS, layer, options_of

_TABLES = (operations.ADD, operations.MUL, operations.ONE_NUMBER, operations.RESHAPES, operations.PERMUTES, operations.PARTS,
           operations.CATS, operations.MEANS, operations.ARITHMETIC, (getattr, "size", "dim"))


def _name(target) -> str:
    """A method's own; a function's with its module's before it, so that the two differ."""
    if isinstance(target, str):
        return target
    module = (target.__module__ or "torch").split(".")[0].removeprefix("_")
    return f"{module}.{target.__name__}"


CALLS = {_name(target): target for table in _TABLES for target in table}                    # what a file may name
_NAMES = {target: name for name, target in CALLS.items()}
_INPUTS = {"placeholder": 0, "call_module": 1, "call_function": None, "call_method": None, "output": 1}
_NAME, _PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")  # fx writes them into a function


def told(model: fx.GraphModule) -> dict | None:
    """The graph as JSON; None where it holds what no graph of qlab.nets does."""
    nodes, modules = [], {}
    for node in model.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            if type(module) not in LAYERS or not _PATH.fullmatch(target):
                return None
            try:
                modules[target] = [type(module).__name__, options_of(module)]
            except ValueError as error:
                raise ValueError(f"{target} cannot be saved: {error}.") from None
        elif node.op in ("call_function", "call_method"):
            target = _NAMES.get(node.target)
        plain = all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
        if target is None or node.op not in _INPUTS or _INPUTS[node.op] not in (None, len(node.args)):
            return None
        if plain:
            nodes.append([node.op, node.name, target, [a.name for a in node.args]])
            continue
        try:
            nodes.append([node.op, node.name, target, _data(list(node.args)), {key: _data(value) for key, value in node.kwargs.items()}])
        except TypeError:
            return None
    return {"nodes": nodes, "modules": modules}


def _data(value):
    """An argument as JSON; TypeError for what is none of a graph's."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [_data(end) for end in (value.start, value.stop, value.step)]}
    if isinstance(value, (list, tuple)):
        values = [_data(v) for v in value]
        return values if isinstance(value, list) else {"tuple": values}
    if value is Ellipsis:
        return {"all": "..."}
    if value is None or isinstance(value, (bool, int, str)) or isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError


def _argument(value, known: dict):
    """What _data made JSON of."""
    if isinstance(value, list):
        return [_argument(v, known) for v in value]
    if not isinstance(value, dict):
        return value
    (what, inner), = value.items()
    if what == "node":
        return known[inner]
    if what == "all":
        return Ellipsis
    if what not in ("tuple", "slice") or not isinstance(inner, list):
        raise ValueError(f"{what!r} is no argument")
    inner = _argument(inner, known)
    return tuple(inner) if what == "tuple" else slice(*inner)


def made(data: dict) -> fx.GraphModule:
    """The graph, its layers without their values."""
    root, known, graph = nn.Module(), {}, fx.Graph()
    for path, (kind, options) in data["modules"].items():
        _check_name(path, _PATH)
        parent, _, child = path.rpartition(".")
        here = root
        for part in parent.split(".") if parent else ():
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here._modules[part]
        if child in here._modules:
            raise ValueError(f"{path} is two layers")
        here.add_module(child, layer(kind, options))
    for op, name, target, inputs, *named in data["nodes"]:
        _check_name(name, _NAME)
        if _INPUTS[op] not in (None, len(inputs)) or len(named) > 1:
            raise ValueError(f"{name} has {len(inputs)} inputs")
        if op == "call_module" and target not in data["modules"]:
            raise ValueError(f"{name} calls {target!r}, which is no layer of the file")
        if op in ("placeholder", "output"):
            _check_name(target, _NAME)
        call = CALLS[target] if op in ("call_function", "call_method") else target
        if isinstance(call, str) is (op == "call_function"):
            raise ValueError(f"{name} is no function of a graph")
        args = tuple(_argument(inputs, known)) if named else tuple(known[i] for i in inputs)
        kwargs = {_check_name(key, _NAME): _argument(value, known) for key, value in named[0].items()} if named else {}
        known[name] = graph.output(args[0]) if op == "output" else graph.create_node(op, call, args, kwargs, name=name)
        if known[name].name != name:
            raise ValueError(f"the name {name!r} is taken")
    ops = [op for op, *_ in data["nodes"]]
    if ops.count("placeholder") != 1 or ops.count("output") != 1 or ops[0] != "placeholder" or ops[-1] != "output":
        raise ValueError("a graph begins with its one input and ends with its one output")
    if {node.target for node in graph.nodes if node.op == "call_module"} != set(data["modules"]):
        raise ValueError("a layer is never called")
    model = fx.GraphModule(root, graph)
    for node in model.graph.nodes:
        fake = node.op == "call_module" and type(model.get_submodule(node.target)) is FakeQuantize
        if not fake and operations.call_kind(model, node) is None:
            raise ValueError(f"{node.name} is no operation that a graph may hold")
    return model


def _check_name(name, pattern: re.Pattern) -> str:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{name!r} is no name")
    return name
