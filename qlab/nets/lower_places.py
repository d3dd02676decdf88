"""What hands on the codes that it gets, as steps: one function a kind of node."""

import torch
from torch import fx, nn

from qlab.nets.made import Made, limited, options_of, padding_of
from qlab.nets.operations import kind


def _pad(made: Made, node: fx.Node, last: fx.Node) -> None:
    source = made.inputs(node)[0]
    padding = padding_of(made.plain.get_submodule(node.target), node)
    made.add("pad", node.name, (source,), node.name, options={"padding": padding, "code": made.grids[source].zero_point})


def _relu6(made: Made, node: fx.Node, last: fx.Node) -> None:
    source = made.inputs(node)[0]
    high = limited(made.plain, node, made.grids[source]).high
    made.add("relu6", node.name, (source,), node.name, options={"high": high})


def _maxpool(made: Made, node: fx.Node, last: fx.Node) -> None:
    module, source, size = made.plain.get_submodule(node.target), made.inputs(node)[0], made.sizes[node.name]
    options = options_of(module, "maxpool")
    if isinstance(module, nn.MaxPool2d):
        made.add("maxpool", node.name, (source,), node.name, options=options)
        return
    whole = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    options = {key: (whole[key], *_tuple(value)) if key in whole else value for key, value in options.items()}
    done = made.add("maxpool", node.name, (made.row(node.name, source),), made.fresh(f"{node.name}_map"), None, (size[0], 1, size[1]),
                    options=options)
    made.reshape(node.name, done, node.name, size)


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _flatten(made: Made, node: fx.Node, last: fx.Node) -> None:
    source, size = made.inputs(node)[0], made.sizes[node.name]
    if source in made.reshaped:
        made.reshape(node.name, source, node.name, size)
    else:
        made.add("flatten", node.name, (source,), node.name, options=options_of(made.plain.get_submodule(node.target), "flatten"))


def _reshape(made: Made, node: fx.Node, last: fx.Node) -> None:
    made.reshape(node.name, made.inputs(node)[0], node.name, made.sizes[node.name])


def _permute(made: Made, node: fx.Node, last: fx.Node) -> None:
    source, size = made.inputs(node)[0], made.sizes[node.name]
    if node.op == "call_module":  # a channel shuffle: groups and the channels in each change places
        groups, channels = made.plain.get_submodule(node.target).groups, size[0]
        split = made.reshape(f"{node.name}_groups", source, made.fresh(f"{node.name}_split"), (groups, channels // groups, *size[1:]))
        turned = made.add("permute", node.name, (split,), made.fresh(f"{node.name}_turned"), None,
                          (channels // groups, groups, *size[1:]), options={"dims": (0, 2, 1, *range(3, len(size) + 2))})
        made.reshape(node.name, turned, node.name, size)
        return
    told = torch.empty([2 + i for i in range(len(size) + 1)])                               # sizes that tell the dimensions apart
    args = [told if isinstance(a, fx.Node) else a for a in node.args]
    call = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
    dims = tuple(s - 2 for s in call(*args, **node.kwargs).shape)
    if dims[0] != 0:
        raise ValueError(f"{node.name} moves the images to another dimension than the first, and must leave them there.")
    made.add("permute", node.name, (source,), node.name, options={"dims": dims})


def _slice(made: Made, node: fx.Node, last: fx.Node) -> None:
    (before, index), moved = node.args, False
    if kind(made.plain, before) == "parts":
        dim = before.kwargs.get("dim", before.args[2] if len(before.args) > 2 else 0) % (len(made.sizes[node.name]) + 1)
        index %= len(made.sizes[before.name])
        start = sum(size[dim - 1] for size in made.sizes[before.name][:index])
        cuts = {dim: (start, start + made.sizes[node.name][dim - 1], 1)}
        source = made.real(before.args[0].name)
    else:
        source, index = made.real(before.name), index if isinstance(index, tuple) else (index,)
        cuts = _cuts(index, made.sizes[source])
        if moved := any(i is None or isinstance(i, int) for i in index):                    # dimensions go, or come
            cuts = {dim: cut for dim, cut in cuts.items() if cut != (0, made.sizes[source][dim - 1], 1)}
    for i, (dim, (start, stop, step)) in enumerate(cuts.items()):
        output = node.name if i == len(cuts) - 1 and not moved else made.fresh(f"{node.name}_{dim}")
        size = tuple(len(range(start, stop, step)) if d + 1 == dim else s for d, s in enumerate(made.sizes[source]))
        source = made.add("slice", node.name, (source,), output, None, size,
                          options={"dim": dim, "start": start, "stop": stop, "step": step})
    if moved:
        made.reshape(node.name, source, node.name, made.sizes[node.name])


def _cuts(index: tuple, size: tuple[int, ...]) -> dict[int, tuple[int, int, int]]:
    """By dimension (1 is the first behind the images), start, stop and step of what x[index] keeps."""
    kept = [i for i in index if i is not None]
    whole = len(size) + 1 - sum(i is not Ellipsis for i in kept)
    spread = [j for i in kept for j in ([slice(None)] * whole if i is Ellipsis else [i])]
    ends = [slice(i, i + 1 or None) if isinstance(i, int) else i for i in spread]
    cuts = {d: part.indices(size[d - 1]) for d, part in enumerate(ends) if d > 0 and part != slice(None)}
    return cuts or {1: (0, size[0], 1)}


def _hand_on(made: Made, node: fx.Node, last: fx.Node) -> None:
    what = kind(made.plain, node)
    options = options_of(made.plain.get_submodule(node.target), what) if node.op == "call_module" else {}
    made.add(what, node.name, made.inputs(node), node.name, options=options)


def _parts(made: Made, node: fx.Node, last: fx.Node) -> None:
    """Nothing: whoever takes one of the parts slices."""


PLACES = {"pad": _pad, "relu": _hand_on, "relu6": _relu6, "maxpool": _maxpool, "flatten": _flatten, "reshape": _reshape,
          "permute": _permute, "slice": _slice, "stretch": _hand_on, "parts": _parts}
