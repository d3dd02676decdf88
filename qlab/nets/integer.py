"""Integer-only inference: int8 operands, int32 sums, and no floating point between the input's codes and the logits' codes.

With x = s_x (q_x - z_x) and w = s_w q_w, a layer is                                        Jacob et al. 2018, section 2
    y = s_x s_w (sum (q_x - z_x) q_w + q_b),            q_b = round(b / (s_x s_w)), int32   (eq. 7 to 9, and section 2.4)
    q_y = z_y + M (sum (q_x - z_x) q_w + q_b),          M = s_x s_w / s_y                   (eq. 4)
The one real number, M, is an int32 m and a shift: M = m 2**(n - 31) with m from 2**30 to 2**31 (eq. 5). Multiplying by it takes a
doubling high multiplication (the upper half of 2 a m) and a shift to the right, both rounded to nearest (appendix B).

Codes are int8: an activation's code of b bits is shifted by 2**(b-1), so that 0 .. 255 becomes -128 .. 127. Weights are symmetric,
per tensor or per output channel. Sums need 32 bits: the products are taken after widening, for int8 arithmetic wraps silently.
"""

import math
import operator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from qlab.nets.fake import FakeQuantize
from qlab.nets.graph import MAKES, Walk, after, calls, kind
from qlab.nets.plain import refuse_hooks
from qlab.nets.ptq import Quantized
from qlab.quant import QTensor
from qlab.quant.layout import FLOATS, as_tensor

ADD_SHIFT = 20                                                                              # a sum's terms get 20 bits of fraction first
INT32 = 2**31 - 1


@dataclass(frozen=True)
class Grid:
    """What the codes of a tensor of activations mean: x = scale * (code - zero_point), low <= code <= high, codes int8."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on codes. inputs, output: names of tensors; grids: of the inputs and of the output.

    conv, linear: weight int8, bias int32 (out,), m int32 and n int8 (out,), the multiplier of each channel.
    mean: m, n (1,). add: m, n (3,): of the first term, the second, and the sum. maxpool, flatten, relu: nothing.
    relu: clamp the result at the code of 0.0. options: stride, padding, kernel_size, ... as torch names them.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    grids: tuple[Grid, ...]
    relu: bool = False
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    m: torch.Tensor | None = None
    n: torch.Tensor | None = None
    options: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """The steps in the order in which they run. Calling it with images gives the logits' codes, int8 (batch, classes).

    input, output: names of tensors; grid_in, grid_out: their meaning. nbytes: weights, biases, multipliers, zero-points, scales.
    """

    steps: tuple[Step, ...]
    input: str
    output: str
    grid_in: Grid
    grid_out: Grid

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Float images of any precision to int8 codes: what a camera's pixels are to begin with.

        Raises TypeError for integers, ValueError for NaN or infinity, which have no code.
        """
        images = as_tensor(images, "the images")
        if images.dtype not in FLOATS:
            raise TypeError(f"the images are {images.dtype}, and must be floating point: run(codes) takes int8 codes.")
        if not images.isfinite().all():
            raise ValueError("the images hold NaN or infinity, and must be finite.")
        g = self.grid_in
        return (images.float() / g.scale).round_().add_(g.zero_point).clamp_(g.low, g.high).to(torch.int8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The logits' codes as float32 logits."""
        return (codes.to(torch.int32) - self.grid_out.zero_point) * torch.tensor(self.grid_out.scale)

    @torch.no_grad()
    def run(self, codes: torch.Tensor) -> torch.Tensor:
        """int8 codes of images to int8 codes of logits, in integers. TypeError for other codes, ValueError for a wrong shape."""
        codes = as_tensor(codes, "codes")
        if codes.dtype != torch.int8:
            raise TypeError(f"codes are {codes.dtype}, and must be int8: encode(images) gives them.")
        tensors = {self.input: codes}
        for step in self.steps:
            try:
                tensors[step.output] = RUN[step.kind](step, *(tensors[name] for name in step.inputs))
            except (RuntimeError, IndexError) as error:
                said = str(error).splitlines()[0]
                raise ValueError(f"codes have the shape {tuple(codes.shape)}, which {step.name} cannot take ({said}).") from None
        return tensors[self.output]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.run(self.encode(images))

    @property
    def nbytes(self) -> int:
        tensors = [t for s in self.steps for t in (s.weight, s.bias, s.m, s.n) if t is not None]
        grids = 1 + sum(s.m is not None for s in self.steps)
        return sum(t.numel() * t.element_size() for t in tensors) + 5 * grids               # a float32 scale and a byte of zero-point

    def save(self, path) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError where the place cannot be written."""
        from qlab.nets import stored_integer
        stored_integer.save(path, self)


def load(path) -> IntegerNetwork:
    """What IntegerNetwork.save wrote, on the CPU: equal in every field, so that it computes the same codes.

    Raises OSError where the file cannot be read; ValueError, in one sentence, for a file that is damaged or foreign.

    >>> import tempfile
    >>> from qlab.nets import ptq
    >>> network = convert(ptq.quantize(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(8, 1, 4, 4)), (1, 4, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     network.save(f"{folder}/net.safetensors")
    ...     again = load(f"{folder}/net.safetensors")
    >>> codes = network.encode(torch.rand(3, 1, 4, 4))
    >>> torch.equal(again.run(codes), network.run(codes))
    True
    """
    from qlab.nets import stored_integer
    return stored_integer.load(path)


# Arithmetic


def multiplier(real) -> tuple[torch.Tensor, torch.Tensor]:
    """Real numbers M (k,) as m (int32, 2**30 <= m < 2**31) and n (int8): M = m 2**(n - 31). Below 2**-32, m = n = 0.

    Raises ValueError for a negative one, NaN, or 2**30 and above.

    >>> multiplier([0.5, 0.003])
    (tensor([1073741824, 1649267442], dtype=torch.int32), tensor([ 0, -8], dtype=torch.int8))
    """
    m, n = [], []
    for value in torch.as_tensor(real, dtype=torch.float64).reshape(-1).tolist():
        if not 0 <= value < math.inf:
            raise ValueError(f"a multiplier is {value:g}, and must be finite and not negative.")
        fraction, exponent = math.frexp(value)  # value = fraction * 2**exponent, 1/2 <= fraction < 1
        whole = round(fraction * 2**31)
        if whole == 2**31:
            whole, exponent = 2**30, exponent + 1
        if exponent > 30:
            raise ValueError(f"a multiplier is {value:g}, and must be below 2**30: two scales that follow each other differ too much.")
        m.append(whole if exponent > -32 else 0)
        n.append(exponent if exponent > -32 else 0)
    return torch.tensor(m, dtype=torch.int32), torch.tensor(n, dtype=torch.int8)


def multiply(a: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """round(a * M), int32 in and out: shift left by n > 0, doubling high multiplication by m, shift right by n < 0.

    a: int32; m, n: of a shape that broadcasts to it. Rounded to nearest, ties up in the multiplication and away from zero in the
    shift, as ARM's instructions, gemmlowp and TensorFlow Lite's kernels do. What leaves int32 on the shift to the left saturates.

    >>> multiply(torch.tensor([100, -100, 1], dtype=torch.int32), *multiplier([0.5]))
    tensor([ 50, -50,   1], dtype=torch.int32)
    """
    n = n.to(torch.int64)
    wide = (a.to(torch.int64) << n.clamp(min=0)).clamp_(-INT32 - 1, INT32)
    high = (wide * m + 2**30) >> 31
    right = (-n).clamp(min=0)
    half = (1 << right) >> 1
    return (high.sign() * ((high.abs() + half) >> right)).to(torch.int32)


def _per_channel(t: torch.Tensor, dims: int) -> torch.Tensor:
    return t.view(1, -1, *[1] * (dims - 2))


def _centred(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    return codes.to(torch.int32) - grid.zero_point


def _finish(step: Step, scaled: torch.Tensor) -> torch.Tensor:
    grid = step.grids[-1]
    low = max(grid.low, grid.zero_point) if step.relu else grid.low
    return (scaled + grid.zero_point).clamp_(low, grid.high).to(torch.int8)


def _layer(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, w = _centred(codes, step.grids[0]), step.weight.to(torch.int32)                      # padding with 0 now pads with the zero-point
    total = _convolve(x, w, step.bias, **step.options) if step.kind == "conv" else x @ w.T + step.bias
    m, n = (_per_channel(t, total.dim()) if step.kind == "conv" else t for t in (step.m, step.n))  # a linear layer's outputs are last
    return _finish(step, multiply(total, m, n))


def _convolve(x, w, bias, stride, padding, dilation, groups) -> torch.Tensor:
    if dilation != (1, 1):  # torch dilates no integers: the same kernel with zeros between its rows and columns
        spread = w.new_zeros(*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation)))
        spread[:, :, ::dilation[0], ::dilation[1]] = w
        w = spread
    return F.conv2d(x, w, bias, stride, padding, groups=groups)


def _mean(step: Step, codes: torch.Tensor) -> torch.Tensor:
    x, (kernel, stride) = _centred(codes, step.grids[0]), (step.options["kernel_size"], step.options["stride"])
    total = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).sum((-2, -1), dtype=torch.int32)
    return _finish(step, multiply(total, step.m, step.n))


def _add(step: Step, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    terms = [multiply(_centred(q, grid) << ADD_SHIFT, step.m[i], step.n[i]) for i, (q, grid) in enumerate(zip((a, b), step.grids))]
    return _finish(step, multiply(terms[0] + terms[1], step.m[2], step.n[2]))


RUN = {
    "conv": _layer, "linear": _layer, "mean": _mean, "add": _add,
    "maxpool": lambda step, codes: F.max_pool2d(codes, **step.options),
    "flatten": lambda step, codes: codes.flatten(**step.options),
    "relu": lambda step, codes: codes.clamp(min=step.grids[0].zero_point),
}


# From a fake-quantized network to the steps


def convert(quantized: Quantized, image_shape: tuple[int, ...] = (1, 28, 28)) -> IntegerNetwork:
    """The integer-only network of what ptq.quantize or qat.convert returned, for images of one shape.

    Raises ValueError for weights that are not symmetric int8 codes per tensor or per output channel (k-means and logarithmic codes
    are names, not numbers to multiply; groups would need a sum each), for a network whose activations were not calibrated, and, by name,
    for what the integers would lose: a forward hook, a weight that is no longer what its codes decode to.

    >>> from qlab.nets import ptq
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> codes = convert(ptq.quantize(net, torch.rand(8, 1, 4, 4)), image_shape=(1, 4, 4))(torch.rand(3, 1, 4, 4))
    >>> codes.shape, codes.dtype
    (torch.Size([3, 2]), torch.int8)
    """
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
    return IntegerNetwork(tuple(steps), source, sink, grids[source], grids[sink])


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
