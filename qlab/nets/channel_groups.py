"""Which channels go together: those that meet in a sum (Fang et al. 2023, DepGraph, arXiv:2301.12900).

    y = conv1(x) + conv2(z)        channel c of y is channel c of conv1 plus channel c of conv2: it goes from both, or from neither

torch.fx runs the model's code once with a symbol in place of the input and notes each call. Going through these notes in order, every
tensor gets the group that its channels belong to:

    conv, linear                            read the group of their input, and make a group of their own
    batch norm, depthwise convolution       keep the group, and carry a parameter for each of its channels
    activation, pooling, dropout, flatten   keep the group
    a + b, a - b, a * b                     make one group of two, with all their makers, carriers and readers
    x.size(0)                               asks nothing of the channels
    anything else                           is an obstacle: no channel of a group that reaches it can go

A residual network adds each block to the sum so far, so that the first layers of all blocks between two changes of width are free,
and the last ones are one group, with the projection on the skip.
"""

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn
from torch.nn import functional as F

from qlab.nets import places
from qlab.nets.operations import ADD, MUL, SUB, is_number
from qlab.nets.plain import CONVOLUTIONS, LAYERS, refuse_hooks, refuse_recomputed, users_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
JOINS = (*ADD, *SUB, *MUL, operator.iadd, "add_", operator.isub, "sub_", operator.imul, "mul_")  # channel by channel
OTHER_POOLING = (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)                               # pruned like any, though no integers know it

# A tensor holds its channels in "maps", "columns", "last" or "rows" (qlab.nets.places), or "unknown".


@dataclass(eq=False)
class Group:
    """Channels that can only go together, from every layer named here.

    channels: how many, None where that is not known. makers: the Conv2d and Linear layers whose outputs they are. carriers: the batch
    norms and depthwise convolutions on their way. readers: the layers whose inputs they are. obstacles: why none of the channels can go,
    in clauses of a sentence; empty if they can.
    """

    channels: int | None = None
    makers: list[str] = field(default_factory=list)
    carriers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


def groups(model: nn.Module) -> list[Group]:
    """The groups of the channels that the model's layers make, in the order in which they are first made.

    Raises ValueError, by name, for a model with a weight that is recomputed in each forward, a forward hook, a forward put on an
    instance; one that fx cannot follow; one that takes other steps in training than in evaluation.

    >>> import torch
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.c, self.d = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)
    ...     def forward(self, x):
    ...         y = self.a(x)
    ...         return self.d(y + self.c(torch.relu(self.b(y))))
    >>> [(group.makers, group.readers) for group in groups(Block())]
    [(['a', 'c'], ['b', 'd']), (['b'], ['c']), (['d'], [])]
    """
    refuse_recomputed(model)
    refuse_hooks(model)
    (training, _), (graph, modules) = _trace(model, True), _trace(model, False)
    if _calls(training) != _calls(graph):
        raise ValueError("the model takes other steps in training than in evaluation: who reads whom must be the same in both.")
    shared = _used_elsewhere(graph, modules)
    place: dict[fx.Node, tuple[Group, str]] = {}                                            # the channels that a tensor holds, and how
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        place[node] = _after(node, modules[""], module, place)
        if module is not None and node.target in shared:
            for group, _ in (place[n] for n in (node, *node.all_input_nodes)):
                group.obstacles.append(shared[node.target])
    return [group for group in dict.fromkeys(group for group, _ in place.values()) if group.makers]


def steps(model: nn.Module) -> str:
    """All that the model's forward does in evaluation, with the numbers it is called with; ValueError if fx cannot follow.

    >>> steps(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == steps(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    True
    """
    graph, modules = _trace(model, False)
    constants = [node.target for node in graph.nodes if node.op == "get_attr" and node.target.startswith("_tensor_constant")]
    return f"{graph} {[getattr(modules[''], name).tolist() for name in constants]}"


def _trace(model: nn.Module, training: bool) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The graph, and the modules by name, of a copy: forward and fx may leave something behind."""
    model, tracer = copy.deepcopy(model), fx.Tracer()
    model.train(training)
    tracer.proxy_buffer_attributes = True                                                   # forward reads a buffer: note that too
    try:
        return tracer.trace(model), dict(model.named_modules())
    except Exception as error:
        raise ValueError(f"torch.fx cannot follow the model's forward ({type(error).__name__}): its steps must not depend on the data."
                         ) from None


def _calls(graph: fx.Graph) -> list[tuple]:
    return [(node.op, node.target, [i.name for i in node.all_input_nodes]) for node in graph.nodes]


def _used_elsewhere(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """What is wrong with modules that are called more than once, or whose tensors another module holds or forward itself reads."""
    called = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    users, found = users_of(modules[""]), {}
    for name, times in called.items():
        own = [*modules[name]._parameters.values(), *modules[name]._buffers.values()]
        if times > 1 and any(tensor is not None for tensor in own):
            found[name] = f"{name} is called {times} times, and must be called once"
        elif name in read or any(len(users.get(id(tensor), ())) > 1 for tensor in own):
            found[name] = f"{name} is used more than once, or its weight is"
    return found


def _after(node: fx.Node, model: nn.Module, module: nn.Module | None,
           place: dict[fx.Node, tuple[Group, str]]) -> tuple[Group, str]:
    """The group of what the node makes, and how it holds the channels; the groups of its inputs are told what the node does to them."""
    if is_number(node, {}):
        return Group(), "unknown"
    inputs = [i for i in node.all_input_nodes if not is_number(i, {})]
    if _adds(node):
        return _joined(node, place)
    if len(inputs) == 1:
        group, how = place[inputs[0]]
        kept = _passes(node, model, module, group, how)
        if kept is not None:
            group.carriers += [node.target] if type(module) in (*CONVOLUTIONS, *NORMS) else []
            return group, kept
        if _reads(module, group, how):
            group.readers.append(node.target)
            inputs = []
    for group, _ in (place[i] for i in inputs):
        group.obstacles.append(f"they reach {_said(node, module)}" + (", which ties them to others" if node.op != "output" else ""))
    if type(module) not in LAYERS:
        return Group(obstacles=[f"a sum ties them to {_said(node, module)}"]), "unknown"
    made = Group(module.weight.shape[0], makers=[node.target])
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        made.obstacles.append(f"{node.target} is a convolution in {module.groups} groups, and only one in 1 group can lose outputs")
    return made, "maps" if isinstance(module, CONVOLUTIONS) else "last"


def _passes(node: fx.Node, model: nn.Module, module: nn.Module | None, group: Group, how: str) -> str | None:
    """How the channels lie behind a node that keeps each to itself; None for any other node."""
    if type(module) in OTHER_POOLING or node.target in OTHER_POOLING:
        return how if how == "maps" else None
    if type(module) in NORMS and module.num_features == group.channels:
        return how if how == "maps" or type(module) is nn.BatchNorm1d else None
    if type(module) in CONVOLUTIONS and 1 < module.groups == module.in_channels == module.out_channels:
        return how if how == "maps" else None
    return places.behind(model, node, how, model.get_submodule(group.makers[0]).weight.dim() if group.makers and how == "maps" else None)


def _reads(module: nn.Module | None, group: Group, how: str) -> bool:
    """Is it a layer each of whose inputs belongs to one channel?"""
    if type(module) in CONVOLUTIONS:
        return how == "maps" and module.groups == 1 and module.in_channels == group.channels
    if type(module) is nn.Linear:
        one_each = module.in_features == group.channels
        return one_each if how in ("last", "rows") else how == "columns" and module.in_features % max(group.channels, 1) == 0
    return False


def _adds(node: fx.Node) -> bool:
    """Is it a sum or product of two tensors, or of a tensor and a number?"""
    terms = [*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
    return (node.op in ("call_function", "call_method") and node.target in JOINS and set(node.kwargs) <= {"input", "other", "alpha"}
            and len(terms) == 2 and all(isinstance(term, (fx.Node, int, float)) for term in [*terms, node.kwargs.get("alpha", 1)])
            and not isinstance(node.kwargs.get("alpha"), fx.Node))


def _joined(node: fx.Node, place: dict[fx.Node, tuple[Group, str]]) -> tuple[Group, str]:
    """One group of the groups of a sum's terms, which from now on holds whatever belonged to either."""
    (group, how), *others = [place[i] for i in node.all_input_nodes]
    for other, as_other in others:                                                          # none for x + 1 and x + x, and at most one
        hows = {how, as_other}
        if group.channels != other.channels and None not in (group.channels, other.channels):
            group.obstacles.append(f"{node.name} adds {group.channels} channels to {other.channels}")
        if hows in ({"columns", "last"}, {"rows", "last"}):                                 # as wide as the channels: 1 x 1 maps, one row
            how = "last"
        elif len(hows) > 1:
            group.obstacles += [f"{node.name} adds tensors whose channels lie in different places"] if "unknown" not in hows else []
            how = "unknown"
        if group is not other:
            group.channels = group.channels or other.channels
            group.makers, group.carriers = group.makers + other.makers, group.carriers + other.carriers
            group.readers, group.obstacles = group.readers + other.readers, group.obstacles + other.obstacles
            place.update({n: (group, h) for n, (g, h) in place.items() if g is other})
    return group, how


def _said(node: fx.Node, module: nn.Module | None) -> str:
    if node.op in ("placeholder", "output"):
        return f"the model's input {node.target}" if node.op == "placeholder" else "the model's output"
    if node.op == "get_attr":
        return f"{node.target}, which the model's forward reads"
    target = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
    return f"{node.name} ({target})"
