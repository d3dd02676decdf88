"""Where a tensor holds its channels, and where they are behind an operation that keeps each channel to itself.

    "maps"      along axis 1 of (n, channels, rows, columns) or (n, channels, length), as a convolution leaves them
    "columns"   maps flattened: each channel a block of neighbouring columns
    "last"      along the last axis, as a linear layer leaves them
    "rows"      that flattened: the channels over and over again, unless there was one row

Equalization and channel pruning follow channels by these words.
"""

import operator

from torch import fx, nn

from qlab.nets.operations import AS_MODULE, DROPOUTS, IN_PLACE, LAYER_KINDS, NOTHING, NOTHING_CALLS, ONE_NUMBER, call_kind

ANYWHERE = ("relu", "relu6", "table", "nothing")


def what(model: nn.Module, node: fx.Node) -> str | None:
    """The kind of a node (qlab.nets.operations), of a function that of the layer that it is; "nothing" for what evaluation leaves out."""
    if node.op == "call_module":
        return "nothing" if isinstance(model.get_submodule(node.target), NOTHING) else call_kind(model, node)
    target = IN_PLACE.get(node.target, node.target)
    if target in AS_MODULE:
        return LAYER_KINDS[AS_MODULE[target][0]]
    if target is not node.target:
        return "table" if target in ONE_NUMBER and len(node.all_input_nodes) == 1 else None
    return "nothing" if target in DROPOUTS or target in NOTHING_CALLS else call_kind(model, node)


def behind(model: nn.Module, node: fx.Node, how: str, dims: int | None = None) -> str | None:
    """Where the channels that reach a node are behind it, None where it does not keep them to themselves, or may not.

    dims: of maps, 4 for (n, channels, rows, columns) and 3 for (n, channels, length); None where that is not known.

    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()))
    >>> [behind(net, node, "maps") for node in net.graph.nodes if node.op == "call_module"]
    [None, 'maps', 'columns']
    """
    found = what(model, node)
    if found in ANYWHERE:
        return how
    if found in ("maxpool", "stretch") or found == "mean" and (node.op == "call_module" or node.target in AS_MODULE):
        return how if how == "maps" else None
    if found == "pad":
        return how if how == "maps" and len(model.get_submodule(node.target).padding) // 2 <= (dims or 3) - 2 else None
    if found == "flatten" and _from_one(model, node, dims) or found == "reshape" and _rows_of_all(node):
        return {"maps": "columns", "last": "rows"}.get(how, how)
    if found == "mean" and how == "maps":
        return _averaged(node, dims)
    return None


def _from_one(model: nn.Module, node: fx.Node, dims: int | None) -> bool:
    """Whether a flattening makes (n, all the rest)."""
    if node.op == "call_module":
        module = model.get_submodule(node.target)
        start, end = module.start_dim, module.end_dim
    else:
        told = dict(zip(AS_MODULE[node.target][1], node.args[1:])) | dict(node.kwargs)
        start, end = told.get("start_dim", 0), told.get("end_dim", -1)
    return start == 1 and (end == -1 or dims is not None and end == dims - 1)


def _rows_of_all(node: fx.Node) -> bool:
    """x.view(x.size(0), -1), or reshape."""
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return len(sizes) == 2 and is_batch(sizes[0]) and sizes[1] == -1 and not node.kwargs


def is_batch(size) -> bool:
    """Whether a size is x.size(0) or x.shape[0], as the graph notes them."""
    if not isinstance(size, fx.Node) or size.args[1:] != (0,):
        return False
    return size.target == "size" or size.target is operator.getitem and size.args[0].target in ("size", getattr)


def _averaged(node: fx.Node, dims: int | None) -> str | None:
    """x.mean((2, 3)) of a map: the channels alone are left."""
    over = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    over = over if isinstance(over, (tuple, list)) else (over,)
    whole = {d % dims for d in over} == set(range(2, dims)) if dims else set(over) in ({2, 3}, {-1, -2}, {2, -1}, {-2, 3})
    return ("maps" if keep else "columns") if whole else None
