"""What makes new codes, as steps: one function a kind of node. last: the node itself, or the ReLU that is computed with it."""

import copy
import math

import torch
from torch import fx, nn

from qlab.nets.graph import only_user
from qlab.nets.made import Made, listed, multiplier_of, options_of, padding_of
from qlab.nets.pooling import windows_of
from qlab.nets.softmax import softmax_multiplier
from qlab.nets.steps import ADD_SHIFT
from qlab.quant import QTensor


def _layer(made: Made, node: fx.Node, last: fx.Node) -> None:
    module, grid, out = made.plain.get_submodule(node.target), made.grids[made.inputs(node)[0]], made.grids[last.name]
    codes, scale = _weight(made.tensors[node.target], node.target)
    bias = torch.zeros(len(codes), dtype=torch.float64) if module.bias is None else module.bias.detach().double()
    # A channel of zeros has a bias alone, and any scale (1.0): where that would round the bias by more than half a code, it gets 20 bits.
    alone = ~codes.flatten(1).any(1) & (grid.scale * scale > out.scale)
    scale = torch.where(alone, bias.abs().clamp(min=out.scale) / (grid.scale * 2**20), scale)
    # Where a channel's weights are next to nothing, its bias would not fit: such a channel gets the scale that its bias needs.
    needed = bias.abs() / (grid.scale * 2**30)
    wider = torch.maximum(scale, needed).float().double()                                   # float32, as every scale in a file
    codes = (codes * (scale / wider).view(-1, *[1] * (codes.dim() - 1))).round().to(torch.int8)
    if codes[0].numel() > 2**30 // (128 * 256):
        raise ValueError(f"{node.target} sums {codes[0].numel()} products an output, and int32 holds the sum of at most 32768.")
    m, n = multiplier_of(node, grid.scale * wider / out.scale)
    fields = {"bias": (bias / (grid.scale * wider)).round().to(torch.int32), "m": m, "n": n, "relu": last is not node}
    if isinstance(module, nn.Linear):
        made.add("linear", node.name, made.inputs(node), last.name, out, weight=codes, **fields)
        return
    if module.padding_mode != "zeros":
        raise ValueError(f"{node.target} pads with {module.padding_mode!r}, and must pad with zeros.")
    options = options_of(module, "conv")
    if isinstance(module, nn.Conv2d):
        made.add("conv", node.name, made.inputs(node), last.name, out, weight=codes, options=options, **fields)
        return
    row, size = made.row(node.name, made.inputs(node)[0]), made.sizes[last.name]
    padding = options["padding"] if isinstance(options["padding"], str) else (0, *options["padding"])
    options |= {"stride": (1, *options["stride"]), "padding": padding, "dilation": (1, *options["dilation"])}
    done = made.add("conv", node.name, (row,), made.fresh(f"{last.name}_map"), out, (size[0], 1, size[1]), weight=codes[:, :, None],
                    options=options, **fields)
    made.reshape(last.name, done, last.name, size)


def _add(made: Made, node: fx.Node, last: fx.Node) -> None:
    inputs, out = made.inputs(node), made.grids[last.name]
    a, b = (made.grids[name].scale for name in inputs)
    m, n = multiplier_of(node, [a / (2 * max(a, b)), b / (2 * max(a, b)), 2 * max(a, b) / (2**ADD_SHIFT * out.scale)])
    made.add("add", node.name, inputs, last.name, out, m=m, n=n, relu=last is not node)


def _mul(made: Made, node: fx.Node, last: fx.Node) -> None:
    inputs, out = made.inputs(node), made.grids[last.name]
    m, n = multiplier_of(node, [made.grids[inputs[0]].scale * made.grids[inputs[1]].scale / out.scale])
    made.add("mul", node.name, inputs, last.name, out, m=m, n=n, relu=last is not node)


def _cat(made: Made, node: fx.Node, last: fx.Node) -> None:
    size, dim = made.sizes[node.name], node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    inputs = tuple(made.real(n.name) for n in listed(node.args[:1] or (node.kwargs["tensors"],)))
    m, n = multiplier_of(node, [made.grids[name].scale / made.grids[node.name].scale for name in inputs])
    made.add("cat", node.name, inputs, node.name, made.grids[node.name], m=m, n=n, options={"dim": dim % (len(size) + 1)})


def _mean(made: Made, node: fx.Node, last: fx.Node) -> None:
    source, size = made.inputs(node)[0], made.sizes[node.name]
    before = made.sizes[source]
    if node.op != "call_module":
        source, kernel = _axes_as_rows(made, node, source, before)
        made_size = tuple(s // k for s, k in zip(made.sizes[source], (1, *kernel)))
        rows, columns, divisor = None, None, math.prod(kernel)
        stride = kernel
    else:
        module = made.plain.get_submodule(node.target)
        flat = isinstance(module, (nn.AvgPool1d, nn.AdaptiveAvgPool1d))
        if flat:
            source = made.row(node.name, source)
        if len(made.sizes[source]) != 3:
            raise ValueError(f"{node.target} averages a tensor of shape {made.sizes[source]}, and must be given a map of channels.")
        made_size = (size[0], 1, size[1]) if flat else size
        kernel, stride, padding, rows, columns, divisor = windows_of(module, made.sizes[source][1:], made_size[1:])
        if any(padding):  # zeros that the average counts
            (top, left), (c, h, w) = padding, made.sizes[source]
            source = made.add("pad", f"{node.name}_pad", (source,), made.fresh(f"{node.name}_padded"), None,
                              (c, h + 2 * top, w + 2 * left),
                              options={"padding": (left, left, top, top), "code": made.grids[source].zero_point})
    grid, out, direct = made.grids[source], made.grids[last.name], made_size == size
    output, fields = last.name if direct else made.fresh(f"{last.name}_map"), {"relu": last is not node}
    if rows is None:
        share = torch.tensor(1 / divisor).item()                                            # float32, as every scale in a file
        m, n = multiplier_of(node, [grid.scale * share / out.scale])
        done = made.add("mean", node.name, (source,), output, out, made_size, m=m, n=n,
                        options={"kernel_size": kernel, "stride": stride}, **fields)
    else:
        m, n = multiplier_of(node, [grid.scale * torch.tensor(1 / d).item() / out.scale for d in divisor])
        done = made.add("windows", node.name, (source,), output, out, made_size, m=m, n=n,
                        options={"rows": rows, "columns": columns}, **fields)
    if not direct:
        made.reshape(last.name, done, last.name, size)


def _axes_as_rows(made: Made, node: fx.Node, source: str, size: tuple[int, ...]) -> tuple[str, tuple[int, int]]:
    """The map whose rows (and columns) are what x.mean(dims) averages, and how many there are of both."""
    dims = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    dims = sorted({d % (len(size) + 1) for d in ((dims,) if isinstance(dims, int) else dims)})
    if len(size) == 3 and set(dims) <= {2, 3}:
        return source, tuple(s if d in dims else 1 for d, s in ((2, size[1]), (3, size[2])))
    if dims != list(range(dims[0], dims[-1] + 1)):
        order = (0, *(d for d in range(1, len(size) + 1) if d not in dims), *dims)
        size = tuple(size[d - 1] for d in order[1:])
        source = made.add("permute", f"{node.name}_order", (source,), made.fresh(f"{node.name}_ordered"), None, size,
                          options={"dims": order})
        dims = list(range(len(size) + 1 - len(dims), len(size) + 1))
    rows = math.prod(size[d - 1] for d in dims)
    as_rows = math.prod(size[:dims[0] - 1]), rows, math.prod(size[dims[-1]:])
    source = made.reshape(f"{node.name}_rows", source, made.fresh(f"{node.name}_as_rows"), as_rows)
    return source, (rows, 1)


@torch.no_grad()
def _table(made: Made, node: fx.Node, last: fx.Node) -> None:
    source, out = made.inputs(node)[0], made.grids[node.name]
    grid = made.grids[source]
    x = grid.scale * (torch.arange(-128, 128, dtype=torch.float64) - grid.zero_point)
    if node.op == "call_module":
        y = copy.deepcopy(made.plain.get_submodule(node.target)).double()(x)
    else:
        args, named = ([x if isinstance(a, fx.Node) else a for a in given] for given in (node.args, node.kwargs.values()))
        call = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
        y = call(*args, **dict(zip(node.kwargs, named)))
    if y[grid.low + 128:grid.high + 129].isnan().any():
        ends = f"{x[grid.low + 128]:.4g} and {x[grid.high + 128]:.4g}"
        raise ValueError(f"{node.name} makes no number of some value between {ends}, which its input may be, and must make one of all.")
    codes = ((y.nan_to_num(0.0, math.inf, -math.inf) / out.scale).round() + out.zero_point).clamp(out.low, out.high).to(torch.int8)
    made.add("table", node.name, (source,), node.name, out, table=codes)


def _softmax(made: Made, node: fx.Node, last: fx.Node) -> None:
    dim, size = made.plain.get_submodule(node.target).dim, made.sizes[node.name]
    if only_user(node) is None or only_user(node).op != "output" or len(size) != 1 or dim not in (1, -1):
        raise ValueError(f"{node.target}, a Softmax over dimension {dim} of {size}, must be the network's last layer, over its "
                         "(n, classes).")
    m, n = softmax_multiplier(made.grids[made.inputs(node)[0]].scale)
    made.add("softmax", node.name, made.inputs(node), node.name, made.grids[node.name], m=torch.tensor([m], dtype=torch.int32),
             n=torch.tensor([n], dtype=torch.int8))


def _fill(made: Made, node: fx.Node, last: fx.Node) -> None:
    """A padding that is not 0: the codes take the scale that has room for it."""
    source, out = made.inputs(node)[0], made.grids[node.name]
    m, n = multiplier_of(node, [made.grids[source].scale / out.scale])
    scaled = made.add("cat", node.name, (source,), made.fresh(f"{node.name}_scaled"), out, made.sizes[source], m=m, n=n,
                      options={"dim": 1})
    module = made.plain.get_submodule(node.target)
    code = min(max(round(module.value / out.scale) + out.zero_point, out.low), out.high)
    made.add("pad", f"{node.name}_pad", (scaled,), node.name, options={"padding": padding_of(module, node), "code": code})


def _weight(q: QTensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes (out, ...) and the scale of each output channel, float64 (out,)."""
    if q.scheme != "symmetric" or q.bits > 8 or q.group_size is not None or q.axis not in (None, 0):
        raise ValueError(f"the weights of {name} are {q.scheme} codes of {q.bits} bits (axis={q.axis}, group_size={q.group_size}), and "
                         "must be symmetric, of 2 to 8 bits, per tensor or with axis=0.")
    return q.codes, q.scale.double().expand(len(q.codes)).clone()


VALUES = {"conv": _layer, "linear": _layer, "add": _add, "mul": _mul, "cat": _cat, "mean": _mean, "table": _table, "softmax": _softmax,
          "fill": _fill}
