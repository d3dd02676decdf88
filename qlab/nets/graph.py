"""A network as the graph of its layers: who feeds whom, in the order in which they run.

The list of a module's children does not tell that. `torch.fx` runs the forward method once with a placeholder and notes what happens
to it: each note is a node. Quantization needs the graph to know which batch norm follows which convolution, which sums (residual
connections) there are, and where a tensor of activations comes to be, which then gets a scale of its own:

    input -> [conv -> relu] -> maxpool -> [conv] -> [+ -> relu] -> [mean] -> flatten -> [linear]       a scale at the input, and at each ]
"""

import copy

import torch
from torch import fx, nn

from qlab.nets.operations import FUSES, MAKES, kind
from qlab.nets.plain import LAYERS, plain_copy
from qlab.nets.rewrite import give_convolutions, without_subclasses, without_transposed
from qlab.nets.tracing import Walk, noted

__all__ = ["LAYERS", "MAKES", "Walk", "after", "calls", "folding_pairs", "kind", "maker", "only_user", "points", "readable", "trace"]


def readable(model: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, that computes the same and is written in layers that `trace` knows (qlab.nets.rewrite).

    A transposed convolution is there as a stretched map and a convolution; a batch norm that cannot be folded into the layer before it
    gets a depthwise convolution with 1 x 1 filters of ones, into which it can be; a subclass that computes what its layer does is that
    layer. Raises ValueError as trace does.

    >>> [type(layer).__name__ for layer in readable(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))[1]]
    ['Conv2d', 'BatchNorm2d']
    """
    model = without_transposed(without_subclasses(plain_copy(model).eval()))
    model = nn.Sequential(model) if isinstance(model, (nn.BatchNorm1d, nn.BatchNorm2d)) else model
    traced = noted(copy.deepcopy(model))                                                  # the graph computes nothing in place
    layers = {name for name, _ in model.named_modules()}                                   # a constant's is in the graph alone
    alone = {node.target: _is_flat(traced, node) for node in calls(traced, "batchnorm")
             if node.args[0].target not in layers or not _foldable(traced, node)}
    return give_convolutions(model, alone) if alone else model


def trace(model: nn.Module) -> fx.GraphModule:
    """A copy of the model as a graph, in evaluation mode: only nodes of the kinds in qlab.nets.operations, dropout and identities left out.

    A layer that is never called is not in the graph. What is computed in place is in the graph as a value of its own, which all later
    readers read. A difference of tensors is a sum with the negative; a number for each channel that forward reads and adds or multiplies
    with is a depthwise convolution, and one number alone is that number. What forward could be told beside the image has its default. A
    weight that is recomputed in each forward is the weight that it comes to (qlab.nets.plain), and the layers are those
    of `readable`. Raises ValueError, naming the node, for anything else, for control flow that depends on values, for more than one input
    or output, for a forward hook, for dropout that is active in evaluation.

    >>> [kind(graph, node) for graph in [trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()))] for node in graph.graph.nodes]
    ['input', 'conv', 'relu', 'flatten', 'output']
    """
    return noted(readable(model))


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
    fits = fits and (type(layer) is not nn.Linear or _is_flat(traced, node))
    return fits and all(user is not None and user.target == node.target for user in runs) and len(layer.weight) == bn.num_features


def _is_flat(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a BatchNorm1d reads (n, channels) and not (n, channels, length): by what stands before it or, if that is silent, behind."""
    bn, before = traced.get_submodule(node.target), node.args[0]
    if type(bn) is nn.BatchNorm2d:
        return False
    linear = traced.get_submodule(before.target) if kind(traced, before) == "linear" else None
    if linear is not None and linear.out_features != bn.num_features:
        return False
    ranks: dict[fx.Node, int | None] = {}
    for other in traced.graph.nodes:
        ranks[other] = _rank(traced, other, ranks)
    rank, readers = ranks[before], [(user, True) for user in node.users]
    while rank is None and readers:
        reader, same = readers.pop(0)
        found = kind(traced, reader)
        if found == "linear" and same:  # of (n, channels, length) it would read the length
            return traced.get_submodule(reader.target).in_features == bn.num_features
        rank = _RANKS.get(type(traced.get_submodule(reader.target))) if reader.op == "call_module" else None
        if found in ("relu", "relu6", "table", "flatten", "add", "mul", "cat", "pad"):
            readers += [(user, same and found not in ("cat", "pad")) for user in reader.users]
    return rank in (None, 2)


_RANKS = {nn.Conv1d: 3, nn.MaxPool1d: 3, nn.AvgPool1d: 3, nn.AdaptiveAvgPool1d: 3, nn.Conv2d: 4, nn.MaxPool2d: 4, nn.AvgPool2d: 4,
          nn.AdaptiveAvgPool2d: 4, nn.BatchNorm2d: 4}


def _rank(traced: fx.GraphModule, node: fx.Node, known: dict[fx.Node, int | None]) -> int | None:
    """How many dimensions a node's values have, that of the images among them; None where the graph does not tell. known: before it."""
    found, module = kind(traced, node), traced.get_submodule(node.target) if node.op == "call_module" else None
    if type(module) in _RANKS:
        return _RANKS[type(module)]
    if found == "flatten" and (module.start_dim, module.end_dim) == (1, -1):
        return 2
    if found == "reshape" and node.target in ("reshape", torch.reshape):
        sizes = node.kwargs.get("shape", node.args[1] if len(node.args) == 2 else node.args[1:])
        return len(sizes) if isinstance(sizes, (tuple, list)) else 1
    rank = max((known[before] for before in node.all_input_nodes if known[before] is not None), default=None)
    if rank is None or found in ("reshape", "slice", "parts", "size", "output"):
        return None
    if found == "flatten":
        return rank - (module.end_dim % rank - module.start_dim % rank)
    if found == "mean":
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else range(rank))
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        return rank if keep else rank - (1 if isinstance(dims, int) else len(dims))
    return rank
