"""A network's forward method, noted node by node and written in one way.

torch.fx runs the method once with a placeholder. What it notes is then put in order: functions that are layers become those layers, what
is computed in place becomes a value of its own, and what does nothing in evaluation goes.
"""

import inspect
import keyword
import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from qlab.errors import first_line
from qlab.nets import operations
from qlab.nets.operations import (
    ADD,
    AS_MODULE,
    CASTS,
    DEFAULTS,
    DROPOUTS,
    IN_PLACE,
    LAYER_KINDS,
    MUL,
    NOTHING,
    NOTHING_CALLS,
    SUB,
    VIEWS,
    kind,
)
from qlab.nets.plain import refuse_hooks
from qlab.nets.rewrite import free_name, with_constants

COPIES = ("contiguous", "clone", "float", torch.clone)  # the same values, but perhaps not the same memory
FLOAT32 = (torch.float32, torch.FloatTensor, "torch.FloatTensor")


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

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return type(module) in LAYER_KINDS or super().is_leaf_module(module, qualified_name)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """One placeholder, for the image: whatever else forward could be told has its default."""
        image, *others = list(inspect.signature(root_fn).parameters.values())[1:] or [None]
        if image is None or image.kind not in (image.POSITIONAL_ONLY, image.POSITIONAL_OR_KEYWORD) or any(map(_must_be_told, others)):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return root_fn, [self.root, self.create_proxy("placeholder", image.name, (), {})]

    def call_module(self, m, forward, args, kwargs):
        if "output_size" in kwargs:  # a transposed convolution, which is a Sequential by now
            raise ValueError(f"{self.path_of_module(m)} is told an output_size, and must have an output_padding instead")
        return super().call_module(m, forward, args, kwargs)


def _must_be_told(argument: inspect.Parameter) -> bool:
    return argument.default is argument.empty and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)


def noted(model: nn.Module) -> fx.GraphModule:
    """The model itself as a graph, which shares its layers: see graph.trace. Nothing in it computes in place any more."""
    refuse_hooks(model)
    for name, _ in model.named_modules():
        parts = name.split(".")
        if any(map(keyword.iskeyword, parts)) or hasattr(fx.GraphModule, parts[0]) and not hasattr(nn.Module, parts[0]):
            raise ValueError(f"{name} is a name that no layer of a graph may have: give the layer another.")
    # A bare layer is a leaf of fx, and so would be no graph at all: wrap it.
    root, tracer = nn.Sequential(model) if type(model) in LAYER_KINDS else model, _Tracer()
    try:
        traced = fx.GraphModule(root, tracer.trace(root))
    except Exception as error:  # noqa: BLE001 - whatever forward does with a placeholder may raise anything
        said = first_line(error).partition(". ")[0]
        raise ValueError(f"the network cannot be read as a graph ({said}): its forward may call layers and add tensors, without deciding "
                         "by their values or shapes.") from None
    for node in list(traced.graph.nodes):
        _by_position(node)
        _as_float(node)
        if _does_nothing(traced, node) and node.target not in COPIES:
            _leave_out(traced, node)
        elif node.op == "call_function" and node.target is torch._assert:                   # it says something about the input, at most
            traced.graph.erase_node(node)
        elif node.op == "call_method" and node.target == "view":
            node.target = "reshape"                                                         # the same, whatever the order in memory
    _without_unread_numbers(traced)
    _out_of_place(traced)
    for node in list(traced.graph.nodes):
        if node.op != "call_module" and node.target in COPIES and _does_nothing(traced, node):
            _leave_out(traced, node)
    for node in list(traced.graph.nodes):
        if node.op in ("call_function", "call_method"):
            _as_module(traced, node)
    for node in list(traced.graph.nodes):
        if _broadcasts(node):
            _leave_out(traced, node)
    with_constants(traced)
    for node in traced.graph.nodes:
        if kind(traced, node) == "sub":
            with traced.graph.inserting_before(node):
                other = traced.graph.call_function(operator.neg, (node.args[1],))
            node.op, node.target, node.args = "call_function", operator.add, (node.args[0], other)
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


def _as_float(node: fx.Node) -> None:
    """Whatever makes a float32 tensor on the CPU of one, such as x.to(torch.float32), as x.float()."""
    told = [*node.args[1:], *node.kwargs.values()]
    if node.op == "call_method" and node.target in CASTS and all(_leaves_float32(value) for value in told):
        node.target, node.args, node.kwargs = "float", node.args[:1], {}


def _leaves_float32(told) -> bool:
    """Whether x.to(told) is x, in a network of one dtype on the CPU: told a dtype, device or tensor of the network's, or how to copy."""
    if isinstance(told, fx.Node):
        return not _asks(told, "shape") and not operations.is_number(told, {})
    return told in FLOAT32 or told is None or isinstance(told, (bool, torch.memory_format)) or str(told) == "cpu"


def _asks(node: fx.Node, *names: str) -> bool:
    return node.op == "call_function" and node.target is getattr and node.args[1] in names


def _broadcasts(node: fx.Node) -> bool:
    """Whether a node is y.expand_as(x), for sums or products with x, which stretch y themselves."""
    return node.op == "call_method" and node.target == "expand_as" and len(node.args) == 2 and all(
        user.target in (*ADD, *SUB, *MUL) and len(user.args) == 2 and not user.kwargs and {*user.args} == {node, node.args[1]}
        for user in node.users)


def _leave_out(traced: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])
    traced.graph.erase_node(node)


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
    """Sizes, dtypes and devices that forward asks for and does not use."""
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and (operations.is_number(node, {}) or _asks(node, "dtype", "device") or node.op == "get_attr"):
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
    if node.op == "call_module":
        return operations.call_kind(traced, node) in VIEWS
    is_layer = node.target in AS_MODULE and LAYER_KINDS[AS_MODULE[node.target][0]] in VIEWS
    return is_layer or node.target in ("contiguous", "float") or operations.call_kind(traced, node) in VIEWS


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
    name = free_name(traced, f"{node.name}_layer")
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
