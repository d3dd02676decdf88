"""A network as the graph of its layers: who feeds whom, in the order in which they run.

The list of a module's children does not tell that. `torch.fx` runs the forward method once with a placeholder and notes what happens
to it: each note is a node. Quantization needs the graph to know which batch norm follows which convolution, which sums (residual
connections) there are, and where a tensor of activations comes to be, which then gets a scale of its own:

    input -> [conv -> relu] -> maxpool -> [conv] -> [+ -> relu] -> [mean] -> flatten -> [linear]       a scale at the input, and at each ]
"""

import copy
import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from qlab.nets import operations
from qlab.nets.operations import AS_MODULE, DEFAULTS, DROPOUTS, FUSES, IN_PLACE, LAYER_KINDS, MAKES, NOTHING, NOTHING_CALLS, VIEWS
from qlab.nets.plain import LAYERS, plain_copy, refuse_hooks
from qlab.nets.rewrite import give_convolutions, without_transposed

__all__ = ["LAYERS", "MAKES", "Walk", "after", "calls", "folding_pairs", "kind", "maker", "only_user", "points", "readable", "trace"]


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


def readable(model: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, that computes the same and is written in layers that `trace` knows (qlab.nets.rewrite).

    A transposed convolution is there as a stretched map and a convolution; a batch norm that cannot be folded into the layer before it
    gets a depthwise convolution with 1 x 1 filters of ones, into which it can be. Raises ValueError as trace does.

    >>> [type(layer).__name__ for layer in readable(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))[1]]
    ['Conv2d', 'BatchNorm2d']
    """
    model = without_transposed(plain_copy(model).eval())
    traced = _traced(copy.deepcopy(model))                                                  # the graph computes nothing in place
    alone = {node.target: _is_flat(traced, node) for node in calls(traced, "batchnorm") if not _foldable(traced, node)}
    return give_convolutions(model, alone) if alone else model


def trace(model: nn.Module) -> fx.GraphModule:
    """A copy of the model as a graph, in evaluation mode: only nodes of the kinds in qlab.nets.operations, dropout and identities left out.

    A layer that is never called is not in the graph. What is computed in place is in the graph as a value of its own, which all later
    readers read. A weight that is recomputed in each forward is the weight that it comes to (qlab.nets.plain), and the layers are those
    of `readable`. Raises ValueError, naming the node, for anything else, for control flow that depends on values, for more than one input
    or output, for a forward hook, for dropout that is active in evaluation.

    >>> [kind(graph, node) for graph in [trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()))] for node in graph.graph.nodes]
    ['input', 'conv', 'relu', 'flatten', 'output']
    """
    return _traced(readable(model))


def _traced(model: nn.Module) -> fx.GraphModule:
    refuse_hooks(model)
    # A bare layer is a leaf of fx, and so would be no graph at all: wrap it.
    root, tracer = nn.Sequential(model) if type(model) in LAYER_KINDS else model, _Tracer()
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
        elif node.op == "call_function" and node.target is torch._assert:                   # it says something about the input, at most
            traced.graph.erase_node(node)
    _without_unread_numbers(traced)
    _out_of_place(traced)
    for node in list(traced.graph.nodes):
        if node.op in ("call_function", "call_method"):
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
    if node.op == "call_module":
        return isinstance(traced.get_submodule(node.target), NOTHING)
    if node.op not in ("call_function", "call_method") or not node.args:
        return False
    if node.target in DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's, which drops whole branches
        place, unsaid = (2, True) if node.target in DROPOUTS else (3, True)
        if node.args[place] if len(node.args) > place else node.kwargs.get("training", unsaid):
            raise ValueError(f"{node.name}, a call of {node.target.__name__}, drops values in evaluation too: call it with "
                             "training=self.training, or use nn.Dropout.")
        return True
    return node.target in NOTHING_CALLS and len(node.all_input_nodes) == 1


def _without_unread_numbers(traced: fx.GraphModule) -> None:
    """Sizes that forward asks for and does not use."""
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and operations.is_number(node, {}):
            traced.graph.erase_node(node)


def _out_of_place(traced: fx.GraphModule) -> None:
    """Let every operation that writes over its operand make a new value, and whoever reads the operand later read that value.

    ValueError where a view shares the operand's memory and is read later: whether it changes too depends on the layout.
    """
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node in order:
        if not _made_in_place(traced, node):
            continue
        operand = node.args[0]
        for view in _views(operand, [other for other in order if order[other] < order[node] and _is_view(traced, other)]):
            if any(order[user] > order[node] for user in view.users):
                raise ValueError(f"{node.name} changes {operand.name} in place, and {view.name}, which shares its memory, is read later: "
                                 "take the operation that is not in place.")
        operand.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
            node.op = "call_method" if isinstance(node.target, str) else "call_function"
    for module in traced.modules():
        if type(module) in LAYER_KINDS and hasattr(module, "inplace"):
            module.inplace = False


def _made_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node writes its result over its first operand."""
    if node.op == "call_module":
        return getattr(traced.get_submodule(node.target), "inplace", False)
    if node.op not in ("call_function", "call_method"):
        return False
    return node.target in IN_PLACE or bool(_arguments(node).get("inplace", False))


def _arguments(node: fx.Node) -> dict:
    """What a function that is a layer is called with, by name, but the tensor."""
    names = AS_MODULE.get(node.target, (None, ()))[1]
    return dict(zip(names, node.args[1:])) | dict(node.kwargs)


def _is_view(traced: fx.GraphModule, node: fx.Node) -> bool:
    is_layer = node.target in AS_MODULE and LAYER_KINDS[AS_MODULE[node.target][0]] in VIEWS
    return is_layer or operations.call_kind(traced, node) in VIEWS


def _views(node: fx.Node, views: list[fx.Node]) -> set[fx.Node]:
    """The other nodes whose values may lie in the node's memory, through the views given."""
    found, before = {node}, None
    while before != len(found):
        before = len(found)
        for view in views:
            if view in found or view.args[0] in found:
                found |= {view, view.args[0]}
    return found - {node}


def _as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    """A call of a function that is a layer becomes that layer."""
    made = AS_MODULE.get(node.target, (None,))[0]
    options = _arguments(node)
    if node.target is torch.nn.functional.pad:
        made, options = _padding(node)
    if made is None:
        return
    options = {name: value for name, value in options.items() if name not in ("inplace", "_stacklevel") and (name != "dtype" or value)}
    if len(node.args) > 1 + len(AS_MODULE.get(node.target, ((), node.args))[1]) or any(isinstance(v, fx.Node) for v in _flat(options)):
        raise ValueError(f"{node.name}, a call of {getattr(node.target, '__name__', node.target)}, is told sizes that depend on the image, "
                         "and must be told numbers.")
    if type(node.target) is str and node.target == "flatten" or node.target is torch.flatten:
        options = DEFAULTS[nn.Flatten] | options
    name = f"{node.name}_layer"
    try:
        traced.add_submodule(name, made(**options))
    except TypeError as error:
        raise ValueError(f"{node.name}, a call of {getattr(node.target, '__name__', node.target)}, cannot be a {made.__name__} ({error})."
                         ) from None
    with traced.graph.inserting_after(node):
        replacement = traced.graph.call_module(name, (node.args[0],))
    node.replace_all_uses_with(replacement)
    traced.graph.erase_node(node)


def _flat(options: dict) -> list:
    return [v for value in options.values() for v in (value if isinstance(value, (tuple, list)) else (value,))]


def _padding(node: fx.Node) -> tuple[type | None, dict]:
    """F.pad of constants, as the layer that it is."""
    told = dict(zip(("pad", "mode", "value"), node.args[1:])) | dict(node.kwargs)
    made = {2: nn.ConstantPad1d, 4: nn.ConstantPad2d, 6: nn.ConstantPad3d}.get(len(told.get("pad", ())))
    if made is None or told.get("mode", "constant") != "constant":
        return None, {}
    return made, {"padding": tuple(told["pad"]), "value": told.get("value") or 0}


def kind(traced: fx.GraphModule, node: fx.Node) -> str:
    """What a node is (qlab.nets.operations); ValueError for what no quantized network may hold."""
    found = operations.call_kind(traced, node)
    if node.op == "output" and not isinstance(node.args[0], fx.Node):
        raise ValueError("the network returns several values, and may return one tensor.")
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if getattr(module, "return_indices", False):
            raise ValueError(f"{node.target} returns the places of the maxima too (return_indices=True), and may return one tensor.")
        what = f"{node.target}, a {type(module).__name__}"
    elif node.op == "get_attr":
        what = f"{node.target}, which forward reads itself"
    else:
        what = f"{node.name}, a call of {getattr(node.target, '__name__', node.target)}"
    if found is None:
        known = ", ".join(c.__name__ for c in LAYER_KINDS if c is not operations.Stretch)
        raise ValueError(f"{what}, cannot be quantized: a network may hold {known}, ConvTranspose2d, Dropout, Identity, sums, products, "
                         "means and concatenations of tensors, functions of one number, other views of a tensor.")
    return found


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that reads this one, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def calls(traced: fx.GraphModule, *kinds: str) -> list[fx.Node]:
    """The nodes of these kinds, in the order of the run; a layer that runs twice has two."""
    return [node for node in traced.graph.nodes if kind(traced, node) in kinds]


def points(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values get a scale: what makes values (qlab.nets.operations); taken after the ReLU where only that reads them.

    Pooling by the maximum, flattening and any other ReLU hand on the codes they get, and need none.

    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)))
    >>> [node.name for node in points(graph)]
    ['input_1', '_1', '_3']
    """
    return [after(traced, node) for node in calls(traced, *MAKES)]


def after(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The ReLU or ReLU6 that alone reads the node, which is then computed with it in one step; else the node itself."""
    user = only_user(node)
    fused = kind(traced, node) in FUSES and user is not None and kind(traced, user) in ("relu", "relu6")
    return user if fused else node


def maker(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The point whose codes reach the node through pooling by maximum, flattening, ReLU: the last one upstream (not for sums)."""
    made = points(traced)
    node = node.args[0]
    while node not in made:
        node = node.args[0]
    return node


def folding_pairs(traced: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Each convolution or linear layer with the batch norm behind it; one batch norm may stand behind several.

    ValueError for a batch norm that cannot be folded: one without running statistics (all others have a layer before them after `trace`).
    """
    pairs = []
    for node in calls(traced, "batchnorm"):
        if traced.get_submodule(node.target).running_var is None:
            raise ValueError(f"{node.target} cannot be folded: it has no running statistics (track_running_stats=False), and computes with "
                             "those of each batch.")
        pairs.append((node.args[0], node))
    return pairs


def _foldable(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a batch norm has a layer of its width before it, which nothing else reads whenever it runs."""
    before, bn = node.args[0], traced.get_submodule(node.target)
    layer = traced.get_submodule(before.target) if before.op == "call_module" else None
    fits = {nn.Conv2d: nn.BatchNorm2d, nn.Conv1d: nn.BatchNorm1d, nn.Linear: nn.BatchNorm1d}.get(type(layer)) is type(bn)
    runs = [only_user(n) for n in traced.graph.nodes if n.op == "call_module" and n.target == before.target]
    return fits and all(user is not None and user.target == node.target for user in runs) and len(layer.weight) == bn.num_features


def _is_flat(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a BatchNorm1d reads (n, channels) and not (n, channels, length): by what stands before it or, if that is nothing, behind."""
    if type(traced.get_submodule(node.target)) is nn.BatchNorm2d:
        return False
    ranks = {nn.Conv1d: False, nn.MaxPool1d: False, nn.AvgPool1d: False, nn.AdaptiveAvgPool1d: False, nn.Unflatten: False, nn.Flatten: True}
    before, behind = node.all_input_nodes, list(node.users)
    while before or behind:
        for other in (before[:1] or behind[:1]):
            found = ranks.get(type(traced.get_submodule(other.target)) if other.op == "call_module" else None)
            if found is not None:
                return found and bool(before)
        before, behind = (before[0].all_input_nodes, behind) if before else ([], list(behind[0].users))
    return True
