"""A network as the graph of its layers: who feeds whom, in the order in which they run.

The list of a module's children does not tell that. `torch.fx` runs the forward method once with a placeholder and notes what happens
to it: each note is a node. Quantization needs the graph to know which batch norm follows which convolution, which sums (residual
connections) there are, and where a tensor of activations comes to be, which then gets a scale of its own:

    input -> [conv -> relu] -> maxpool -> [conv] -> [+ -> relu] -> [mean] -> flatten -> [linear]       a scale at the input, and at each ]
"""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from qlab.nets.plain import LAYERS, plain_copy, refuse_hooks

__all__ = ["LAYERS", "Walk", "after", "calls", "folding_pairs", "kind", "maker", "only_user", "points", "trace"]
KINDS = {
    nn.Conv2d: "conv", nn.Linear: "linear", nn.BatchNorm2d: "batchnorm", nn.ReLU: "relu", nn.ReLU6: "relu6",
    nn.MaxPool2d: "maxpool", nn.AvgPool2d: "mean", nn.AdaptiveAvgPool2d: "mean", nn.Flatten: "flatten",
}
MODULES = {  # functions that forward may call, as the layers that they are
    F.relu: nn.ReLU, F.relu6: nn.ReLU6, torch.relu: nn.ReLU, "relu": nn.ReLU, F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d, torch.flatten: nn.Flatten, "flatten": nn.Flatten,
}
DEFAULTS = {nn.Flatten: {"start_dim": 0}}                                                   # where the function's is not the module's
ADD = (operator.add, torch.add, "add")
IN_PLACE = {operator.iadd: operator.add, "add_": "add", torch.relu_: F.relu, "relu_": "relu"}  # the result is written over the operand
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)                                           # what does nothing in evaluation
MAKES = ("conv", "linear", "add", "mean", "input")                                          # what makes values that need a scale


class Walk(fx.Interpreter):
    """Runs a graph node by node; an error is the one that was raised, without fx's notes on where."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.extra_traceback = False


class _Proxy(fx.Proxy):
    """fx takes `y += x` for `y = y + x`, though whoever holds the old y sees it change: note it as what it is."""


def _noted(call: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy("call_function", call, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift", "irshift"):
    setattr(_Proxy, f"__{_name}__", _noted(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(model: nn.Module) -> fx.GraphModule:
    """A copy of the model as a graph, in evaluation mode: only nodes of the kinds below, dropout and identities left out.

    Kinds: input, conv, linear, batchnorm, relu, maxpool, mean (average pooling), flatten, add, output. A layer that is never called
    is not in the graph. What is computed in place is in the graph as a value of its own, which all later readers read. A weight that
    is recomputed in each forward is the weight that it comes to (qlab.nets.plain).
    Raises ValueError, naming the node, for anything else, for control flow that depends on values, for more than one input, for a
    forward hook, for dropout that is active in evaluation.

    >>> [kind(graph, node) for graph in [trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()))] for node in graph.graph.nodes]
    ['input', 'conv', 'relu', 'flatten', 'output']
    """
    model = plain_copy(model).eval()
    refuse_hooks(model)
    # A bare layer is a leaf of fx, and so would be no graph at all: wrap it.
    root, tracer = nn.Sequential(model) if type(model) in KINDS else model, _Tracer()
    try:
        traced = fx.GraphModule(root, tracer.trace(root))
    except Exception as error:  # noqa: BLE001 - whatever forward does with a placeholder may raise anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the network cannot be read as a graph ({said}): its forward may call layers and add tensors, without deciding "
                         "by their values or shapes.") from None
    for node in list(traced.graph.nodes):
        _by_position(node)
        if _does_nothing(traced, node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    _out_of_place(traced)
    for node in list(traced.graph.nodes):
        if node.op in ("call_function", "call_method") and node.target in MODULES:
            _as_module(traced, node)
    for node in traced.graph.nodes:
        kind(traced, node)
    if [node.op for node in traced.graph.nodes].count("placeholder") != 1:
        raise ValueError("the network takes several inputs, and may take one tensor.")
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _by_position(node: fx.Node) -> None:
    """The tensors that a call names, input and other, as its first arguments."""
    named = [name for name in ("input", "other") if name in node.kwargs]
    if node.op in ("call_module", "call_function") and named:
        node.args = (*node.args, *(node.kwargs[name] for name in named))
        node.kwargs = {name: value for name, value in node.kwargs.items() if name not in named}


def _does_nothing(traced: fx.GraphModule, node: fx.Node) -> bool:
    """An identity, or dropout in evaluation; ValueError for the function F.dropout where it is told nothing of evaluation."""
    if node.op == "call_function" and node.target in (F.dropout, F.dropout2d):
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        if training:
            raise ValueError(f"{node.name}, a call of {node.target.__name__}, drops values in evaluation too: call it with "
                             "training=self.training, or use nn.Dropout.")
        return True
    return node.op == "call_module" and isinstance(traced.get_submodule(node.target), NOTHING)


def _out_of_place(traced: fx.GraphModule) -> None:
    """Let every operation that writes over its operand make a new value, and whoever reads the operand later read that value.

    ValueError where a flattened view shares the operand's memory and is read later: whether it changes too depends on the layout.
    """
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node in order:
        if not _made_in_place(traced, node):
            continue
        operand = node.args[0]
        for view in _views(operand, [other for other in order if order[other] < order[node] and _flattens(traced, other)]):
            if any(order[user] > order[node] for user in view.users):
                raise ValueError(f"{node.name} changes {operand.name} in place, and {view.name}, which shares its memory, is read later: "
                                 "take the operation that is not in place.")
        operand.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
    for module in traced.modules():
        if type(module) in (nn.ReLU, nn.ReLU6):
            module.inplace = False


def _made_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node writes its result over its first operand."""
    if node.op == "call_module":
        return getattr(traced.get_submodule(node.target), "inplace", False)
    called = node.op in ("call_function", "call_method")
    if called and node.target in (F.relu, F.relu6):
        return node.args[1] if len(node.args) > 1 else node.kwargs.get("inplace", False)
    return called and node.target in IN_PLACE


def _flattens(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(node.target), nn.Flatten)
    return MODULES.get(node.target) is nn.Flatten


def _views(node: fx.Node, flattened: list[fx.Node]) -> set[fx.Node]:
    """The other nodes whose values may lie in the node's memory, through the flattenings given."""
    found, before = {node}, None
    while before != len(found):
        before = len(found)
        for view in flattened:
            if view in found or view.args[0] in found:
                found |= {view, view.args[0]}
    return found - {node}


def _as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    made = MODULES[node.target]
    options = DEFAULTS.get(made, {}) | {k: v for k, v in node.kwargs.items() if k != "inplace"}
    positional = () if made in (nn.ReLU, nn.ReLU6) else node.args[1:]
    if positional and made is nn.Flatten:
        options.pop("start_dim")
    name = f"{node.name}_layer"
    traced.add_submodule(name, made(*positional, **options))
    with traced.graph.inserting_after(node):
        replacement = traced.graph.call_module(name, (node.args[0],))
    node.replace_all_uses_with(replacement)
    traced.graph.erase_node(node)


def kind(traced: fx.GraphModule, node: fx.Node) -> str:
    """What a node is; ValueError for what no quantized network may hold."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        if not isinstance(node.args[0], fx.Node):
            raise ValueError("the network returns several values, and may return one tensor.")
        return "output"
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if getattr(module, "return_indices", False):
            raise ValueError(f"{node.target} returns the places of the maxima too (return_indices=True), and may return one tensor.")
        if type(module) in KINDS and len(node.args) == 1 and not node.kwargs:
            return KINDS[type(module)]
        found = f"{node.target}, a {type(module).__name__}"
    elif node.target in ADD and all(isinstance(a, fx.Node) for a in node.args) and len(node.args) == 2 and not node.kwargs:
        return "add"
    else:
        found = f"{node.name}, a call of {getattr(node.target, '__name__', node.target)}"
    raise ValueError(f"{found}, cannot be quantized: a network may hold {', '.join(c.__name__ for c in KINDS)}, Dropout, Identity, and "
                     "sums of two tensors.")


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that reads this one, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def calls(traced: fx.GraphModule, *kinds: str) -> list[fx.Node]:
    """The nodes of these kinds, in the order of the run; a layer that runs twice has two."""
    return [node for node in traced.graph.nodes if kind(traced, node) in kinds]


def points(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values get a scale: the input, each layer, sum and mean; taken after the ReLU where only that reads them.

    Pooling by the maximum, flattening and any other ReLU hand on the codes they get, and need none.

    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)))
    >>> [node.name for node in points(graph)]
    ['input_1', '_1', '_3']
    """
    return [after(traced, node) for node in calls(traced, *MAKES)]


def after(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The ReLU or ReLU6 that alone reads the node, which is then computed with it in one step; else the node itself."""
    user = only_user(node)
    fused = kind(traced, node) != "input" and user is not None and kind(traced, user) in ("relu", "relu6")
    return user if fused else node


def maker(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The point whose codes reach the node through pooling by maximum, flattening, ReLU: the last one upstream (not for sums)."""
    made = points(traced)
    node = node.args[0]
    while node not in made:
        node = node.args[0]
    return node


def folding_pairs(traced: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Each convolution with the batch norm behind it; one batch norm may stand behind several. ValueError for one that cannot be folded."""
    pairs = []
    for node in calls(traced, "batchnorm"):
        before, bn = node.args[0], traced.get_submodule(node.target)
        twice = [n.target for n in traced.graph.nodes].count(before.target) > 1
        if kind(traced, before) != "conv" or only_user(before) is not node or twice or bn.running_var is None:
            raise ValueError(f"{node.target} cannot be folded into {before.name}: a BatchNorm2d needs running statistics and a Conv2d of "
                             "its width before it, which runs once and which nothing else reads.")
        pairs.append((before, node))
    return pairs
