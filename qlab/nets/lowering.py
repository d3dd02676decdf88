"""From a fake-quantized network to the steps of an integer-only one (qlab.nets.steps).

The graph of layers (qlab.nets.graph) is gone through in its order, one function a kind of node. What a fake quantizer stood behind makes
new codes, and its scale and zero-point say what they mean (lower_values); everything else hands on the codes that it gets (lower_places).
"""

import math
import operator

import torch
from torch import fx

from qlab.errors import first_line
from qlab.nets.fake import FakeQuantize
from qlab.nets.graph import Walk, after, calls, kind
from qlab.nets.lower_places import PLACES
from qlab.nets.lower_values import VALUES
from qlab.nets.made import Made, limited
from qlab.nets.plain import refuse_hooks
from qlab.nets.ptq import Quantized
from qlab.nets.steps import Grid, Step

IMAGES = (3, 2)                                                                             # run to find the shapes: each must stay apart
LOWER = VALUES | PLACES


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
    made = Made(plain, grids, _sizes(plain, image_shape), quantized.tensors)
    fused = set()
    for node in plain.graph.nodes:
        what = kind(plain, node)
        if node not in fused and what in LOWER:
            last = after(plain, node)
            fused.add(last)
            if last is not node:
                grids[last.name] = limited(plain, last, grids[last.name])
            LOWER[what](made, node, last)
    source, sink = calls(plain, "input")[0].name, made.real(calls(plain, "output")[0].args[0].name)
    return made.read(sink), source, sink, grids[source], grids[sink]


def _shape(image_shape) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in image_shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"image_shape is {image_shape!r}, and must be the sizes of one image: (channels, rows, columns), or (values,).")
    return sizes


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


def _sizes(plain: fx.GraphModule, image_shape: tuple[int, ...]) -> dict[fx.Node, tuple]:
    """The shape of each node's values for one image; of several tensors, their shapes. ValueError where images are mixed."""
    sizes = {}

    def one(node: fx.Node, value: torch.Tensor) -> tuple[int, ...]:
        size = tuple(value.shape[1:])
        if value.dim() == 0 or len(value) != count or count != IMAGES[0] and size not in (sizes[node], *sizes[node]):
            raise ValueError(f"{node.name} makes {tuple(value.shape)} of {count} images, and must keep each image apart, in the first "
                             "dimension.")
        return size

    class Shapes(Walk):
        def run_node(self, node):
            result = super().run_node(node)
            several = kind(plain, node) == "parts"
            if isinstance(result, torch.Tensor) or several:
                sizes[node] = tuple(one(node, part) for part in result) if several else one(node, result)
            return result

    dtype = next((p.dtype for p in plain.parameters()), torch.float32)
    try:
        for count in IMAGES:
            with torch.no_grad():
                Shapes(plain).run(torch.zeros(count, *image_shape, dtype=dtype))
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"image_shape is {image_shape}, which the network cannot take ({first_line(error)}).") from None
    return sizes
