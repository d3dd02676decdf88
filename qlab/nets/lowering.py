"""From a fake-quantized network to the steps of an integer-only one (qlab.nets.steps).

The graph of layers (qlab.nets.graph) is gone through in its order. What a fake quantizer stood behind makes new codes, and its scale and
zero-point say what they mean; everything else hands on the codes that it gets.
"""

import math
import operator
from dataclasses import replace

import torch
from torch import fx, nn

from qlab.nets.fake import FakeQuantize
from qlab.nets.graph import MAKES, Walk, after, calls, kind
from qlab.nets.plain import refuse_hooks
from qlab.nets.ptq import Quantized
from qlab.nets.steps import ADD_SHIFT, Grid, Step, multiplier
from qlab.quant import QTensor


def lower(quantized: Quantized, image_shape: tuple[int, ...]) -> tuple[tuple[Step, ...], str, str, Grid, Grid]:
    """The steps, the names of the input and the output, and their grids. Raises ValueError as `integer.convert` says."""
    if not isinstance(quantized.model, fx.GraphModule) or not any(isinstance(m, FakeQuantize) for m in quantized.model.modules()):
        raise ValueError("the network's activations have no codes: quantize it with ptq.quantize, or prepare, train and convert it by qat.")
    image_shape = _shape(image_shape)
    refuse_hooks(quantized.model)
    for name, q in quantized.tensors.items():
        weight = quantized.model.get_submodule(name).weight
        if not torch.equal(weight, q.dequantize().to(weight)):
            raise ValueError(f"the weight of {name} is no longer what its codes decode to: quantize the network again.")
    plain, grids = _without_codes(quantized.model)
    sizes = _map_sizes(plain, image_shape)
    steps, fused = [], set()
    for node in plain.graph.nodes:
        what = kind(plain, node)
        if what in ("input", "output") or node in fused:
            continue
        inputs = tuple(a.name for a in node.args if isinstance(a, fx.Node))
        known = [grids[name] for name in inputs]
        if what in MAKES:
            last = after(plain, node)
            fused.add(last)
            grids[last.name] = _limited(plain, last, grids[last.name])
            step = _step(plain, node, what, known, grids[last.name], sizes, quantized.tensors)
            steps.append(replace(step, inputs=inputs, output=last.name, relu=last is not node))
        elif what == "relu6":
            raise ValueError(f"{node.name}, a ReLU6, must directly follow a layer, a sum or a mean that nothing else reads.")
        else:  # hands on the codes that it gets
            grids[node.name] = known[0]
            steps.append(Step(what, node.name, inputs, node.name, (known[0], known[0]), options=_options(plain, node, what)))
    source, sink = calls(plain, "input")[0].name, calls(plain, "output")[0].args[0].name
    return tuple(steps), source, sink, grids[source], grids[sink]


def _shape(image_shape) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in image_shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"image_shape is {image_shape!r}, and must be the sizes of one image: (channels, rows, columns), or (values,).")
    return sizes


def _limited(plain: fx.GraphModule, last: fx.Node, grid: Grid) -> Grid:
    """The grid after a ReLU6 ends at the code of 6.0."""
    return replace(grid, high=min(grid.high, grid.zero_point + round(6 / grid.scale))) if kind(plain, last) == "relu6" else grid


def _without_codes(traced: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, Grid]]:
    """The graph without its fake quantizers, and the grid that each left at its node."""
    graph, grids = fx.Graph(), {}
    graph.output(graph.graph_copy(traced.graph, {}))
    plain = fx.GraphModule(traced, graph)
    for node in list(plain.graph.nodes):
        module = plain.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            offset = 2 ** (module.bits - 1)
            if not 0 < module.scale.item() < math.inf:
                raise ValueError(f"the scale of {node.target} is {module.scale.item()}, and must be finite and above 0: calibrate again.")
            grids[node.args[0].name] = Grid(module.scale.item(), int(module.zero_point) - offset, -offset, module.top - offset)
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    return plain, grids


def _map_sizes(plain: fx.GraphModule, image_shape: tuple[int, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of each node's values for one image: pooling over a whole map divides by its size."""
    sizes = {}

    class Shapes(Walk):
        def run_node(self, node):
            result = super().run_node(node)
            sizes[node] = tuple(result.shape)
            return result

    dtype = next((p.dtype for p in plain.parameters()), torch.float32)
    try:
        with torch.no_grad():
            Shapes(plain).run(torch.zeros(1, *image_shape, dtype=dtype))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"image_shape is {image_shape}, which the network cannot take ({str(error).splitlines()[0]}).") from None
    return sizes


def _step(plain: fx.GraphModule, node: fx.Node, what: str, known: list[Grid], out: Grid, sizes: dict, tensors: dict[str, QTensor]) -> Step:
    """A step that makes new codes: layer, mean or sum; its place in the network is still to be filled in."""
    if what == "add":
        twice = 2 * max(g.scale for g in known)
        m, n = _of(node, [known[0].scale / twice, known[1].scale / twice, twice / (2**ADD_SHIFT * out.scale)])
        return Step(what, node.name, (), "", (*known, out), m=m, n=n)
    grid, module = known[0], plain.get_submodule(node.target)
    if what == "mean":
        options = _mean_options(module, node.target, sizes[node.args[0]][-2:])
        share = torch.tensor(1 / math.prod(options["kernel_size"])).item()                  # float32, as every scale in a file
        m, n = _of(node, [grid.scale * share / out.scale])
        return Step(what, node.name, (), "", (grid, out), m=m, n=n, options=options)
    codes, scale = _weight(tensors[node.target], node.target)
    bias = torch.zeros(len(codes), dtype=torch.float64) if module.bias is None else module.bias.detach().double()
    # Where a channel's weights are next to nothing, its bias would not fit: such a channel gets the scale that its bias needs.
    needed = bias.abs() / (grid.scale * 2**30)
    wider = torch.maximum(scale, needed).float().double()                                   # float32, as every scale in a file
    codes = (codes * (scale / wider).view(-1, *[1] * (codes.dim() - 1))).round().to(torch.int8)
    if codes[0].numel() > 2**30 // (128 * 256):
        raise ValueError(f"{node.target} sums {codes[0].numel()} products an output, and int32 holds the sum of at most 32768.")
    m, n = _of(node, grid.scale * wider / out.scale)
    bias = (bias / (grid.scale * wider)).round().to(torch.int32)
    if what == "conv" and module.padding_mode != "zeros":
        raise ValueError(f"{node.target} pads with {module.padding_mode!r}, and must pad with zeros.")
    return Step(what, node.name, (), "", (grid, out), weight=codes, bias=bias, m=m, n=n, options=_options(plain, node, what))


def _of(node: fx.Node, real) -> tuple[torch.Tensor, torch.Tensor]:
    """multiplier, with the node's name in what it says."""
    try:
        return multiplier(real)
    except ValueError as error:
        raise ValueError(f"{node.name} cannot be computed in integers: {error}") from None


def _weight(q: QTensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes (out, ...) and the scale of each output channel, float64 (out,)."""
    if q.scheme != "symmetric" or q.bits > 8 or q.group_size is not None or q.axis not in (None, 0):
        raise ValueError(f"the weights of {name} are {q.scheme} codes of {q.bits} bits (axis={q.axis}, group_size={q.group_size}), and "
                         "must be symmetric, of 2 to 8 bits, per tensor or with axis=0.")
    return q.codes, q.scale.double().expand(len(q.codes)).clone()


OPTIONS = {
    "conv": ("stride", "padding", "dilation", "groups"), "maxpool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "flatten": ("start_dim", "end_dim"),
}


def _options(plain: fx.GraphModule, node: fx.Node, what: str) -> dict:
    return {name: getattr(plain.get_submodule(node.target), name) for name in OPTIONS.get(what, ())}


def _mean_options(module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, name: str, size: tuple[int, int]) -> dict:
    """Kernel and stride, (rows, columns) each, of a pooling whose windows all have the same number of values."""
    def pair(value):
        return tuple(value) if isinstance(value, (tuple, list)) else (value, value)

    if isinstance(module, nn.AdaptiveAvgPool2d):
        wanted = tuple(w or s for w, s in zip(pair(module.output_size), size))
        if any(s % w for s, w in zip(size, wanted)):
            raise ValueError(f"{name} averages a map of {size[0]} x {size[1]} over {wanted[0]} x {wanted[1]} windows of different sizes, "
                             "and every window must have as many values.")
        kernel = stride = tuple(s // w for s, w in zip(size, wanted))
        return {"kernel_size": kernel, "stride": stride}
    for what, is_so in (("pads the map", pair(module.padding) != (0, 0)), ("rounds the map's size up (ceil_mode)", module.ceil_mode),
                        ("divides by a number of its own (divisor_override)", module.divisor_override is not None)):
        if is_so:
            raise ValueError(f"{name} {what}, and an average in integers is of whole windows inside the map.")
    return {"kernel_size": pair(module.kernel_size), "stride": pair(module.stride)}
