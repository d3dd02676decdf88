"""How far results may be apart, by arithmetic alone: from the network itself in float64, and from each other."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from network_writer import Network
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from qlab.nets import operations, ptq
from qlab.nets.fake import FakeQuantize
from qlab.nets.plain import LAYERS

# What the network is: itself, in float64


class Magnitude(TorchFunctionMode):
    """The same forward over absolute values: weights, biases, means as they are without their signs, an activation as the identity,
    a maximum as the sum of its window. What comes out bounds every sum of products on the way to a value, however its terms cancel.

    u: the relative error of one rounding. A value computed in floating point by about `terms` roundings in a row is within terms * u *
    magnitude of the exact one (Higham 2002, section 3.1). spread(w): by how much each weight may be off; the result then differs by at
    most the magnitude with |w| + spread(w) less the magnitude with |w|.
    """

    def __init__(self, spread: Callable[[torch.Tensor], torch.Tensor | float] = lambda w: 0.0):
        super().__init__()
        self.spread, self.terms = spread, 8

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, plain_name(func)
        if name in ("conv1d", "conv2d", "conv_transpose2d", "linear"):
            x, w, b, *rest = (*args, None)[:max(3, len(args))]
            self.terms += max(w[0].numel(), w[:, 0].numel()) + 2
            return func(x, w.abs() + self.spread(w), None if b is None else b.abs(), *rest, **kwargs)
        if name == "batch_norm":
            named = dict(zip(("input", "running_mean", "running_var", "weight", "bias"), args)) | kwargs
            self.terms += 12
            return self.norm(named, named.get("eps", 1e-5))
        if name.startswith("max_pool") or name == "boolean_dispatch":
            named = dict(zip(("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), args)) | kwargs
            return self.window_sum(named, func(*args, **kwargs))
        if name in ("mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"):
            self.terms += args[0][0].numel()
        self.terms += 4
        two = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if name == "mul" and len(two) == 2:
            self.terms *= 2
            return func(*args, **kwargs)
        if name == "softmax":
            return 1 + 0.5 * args[0].amax(kwargs.get("dim", args[1] if len(args) > 1 else None), keepdim=True).expand_as(args[0])
        if name == "pad":
            named = dict(zip(("input", "pad", "mode", "value"), args)) | kwargs
            return F.pad(named["input"], named["pad"], value=abs(named.get("value") or 0))
        slope = None if len(two) == 2 or name == "abs" else lipschitz(name, args, kwargs)
        if slope is not None:
            x, (steepness, at_zero) = two[0], slope
            y = x * (steepness(x) if callable(steepness) else steepness) + at_zero
            self.terms *= 2 if callable(steepness) else 1
            inplace = func.__name__.endswith("_") and not func.__name__.endswith("__") or kwargs.get("inplace", args[-1] is True)
            inplace = inplace or func.__name__ in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "iadd", "isub", "imul", "itruediv")
            return x.copy_(y) if inplace else y
        return func(*args, **kwargs)

    @staticmethod
    def norm(named: dict, eps: float) -> torch.Tensor:
        def shaped(t):
            return t.abs().view(1, -1, *[1] * (named["input"].dim() - 2))

        if named["running_mean"] is None:
            return named["input"]                                                           # refused anyway
        y = (named["input"] + shaped(named["running_mean"])) / (shaped(named["running_var"]) + eps).sqrt()
        y = y if named.get("weight") is None else y * shaped(named["weight"])
        return y if named.get("bias") is None else y + shaped(named["bias"])

    @staticmethod
    def window_sum(named: dict, out: torch.Tensor) -> torch.Tensor:
        flat = out.dim() == 3                                                               # a map of one row

        def pair(key, default, alone):
            value = named.get(key, default)
            value = default if value is None or value == () else value
            values = value if isinstance(value, (tuple, list)) else (value,) if flat else (value, value)
            return (alone, *values) if flat and len(values) == 1 else tuple(values)

        x, kernel = (named["input"][:, :, None] if flat else named["input"]), pair("kernel_size", 1, 1)
        stride, padding, dilation = pair("stride", kernel, 1), pair("padding", 0, 0), pair("dilation", 1, 1)
        rows, columns = (1, out.shape[-1]) if flat else out.shape[-2:]
        far = [(o - 1) * s + (k - 1) * d + 1 - i - p
               for o, s, k, d, i, p in zip((rows, columns), stride, kernel, dilation, x.shape[-2:], padding)]
        x = F.pad(x, (padding[1], max(0, far[1]), padding[0], max(0, far[0])))
        y = F.conv2d(x, x.new_ones(x.shape[1], 1, *kernel), None, stride, 0, dilation, x.shape[1])[:, :, :rows, :columns]
        return y[:, :, 0] if flat else y


def plain_name(func) -> str:
    """add of add, add_, __add__, __radd__, iadd."""
    given = getattr(func, "__name__", str(func))
    name = given.strip("_")
    operators = ("add", "sub", "mul", "truediv", "pow")
    special = given.startswith("__") or not isinstance(func, str)
    name = name[1:] if special and name[:1] in ("r", "i") and name[1:] in operators else name
    return {"truediv": "div", "multiply": "mul", "clip": "clamp", "absolute": "abs"}.get(name, name)


SLOPES = {  # |f(a) - f(b)| <= slope |a - b|, and |f(0)|
    "relu": (1, 0), "relu6": (1, 0), "leaky_relu": (1, 0), "sigmoid": (0.25, 0.5), "hardsigmoid": (1 / 6, 0.5), "tanh": (1, 0),
    "hardswish": (1.5, 0), "silu": (1.1, 0), "gelu": (1.13, 0), "elu": (1, 0), "selu": (1.76, 0), "celu": (1, 0), "softplus": (1, 0.7),
    "softsign": (1, 0), "mish": (1.09, 0), "logsigmoid": (1, 0.7), "tanhshrink": (1, 0), "softshrink": (1, 0), "neg": (1, 0), "abs": (1, 0),
}


def lipschitz(name: str, args: tuple, kwargs: dict) -> tuple | None:
    """The slope and |f(0)| of a function of one number, as above; slope: a function of the magnitude for powers. None for any other.

    args, kwargs: of the call, a tensor where the number goes.
    """
    numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if name in SLOPES:
        return SLOPES[name]
    if name in ("hardtanh", "clamp"):
        low, high = numbers if len(numbers) == 2 else (-1, 1)
        if name == "clamp":
            given = dict(zip(("min", "max"), args[1:])) | kwargs
            low, high = (limit if given.get(key) is None else given[key] for key, limit in (("min", -float("inf")), ("max", float("inf"))))
        return 1, abs(min(max(0, low), high))
    if name == "square" or name == "pow" and numbers[-1:] == [2]:
        return (lambda x: x), 0
    if name in ("add", "sub") and numbers:
        return 1, abs(numbers[0])
    if name == "mul" and numbers:
        return abs(numbers[0]), 0
    if name == "div" and numbers and isinstance(args[0], torch.Tensor):
        return 1 / abs(numbers[0]), 0
    return None


@dataclass(frozen=True)
class Truth:
    """The network's own values on its images, in float64; magnitude and terms as above; u: of the network's dtype."""

    values: torch.Tensor
    magnitude: torch.Tensor
    spread: torch.Tensor
    terms: int
    u: float

    def rounding(self, runs: int = 2) -> torch.Tensor:
        """How far two computations may be apart by rounding. A half network rounds each tensor to 11 bits, its sums in float32."""
        return runs * self.terms * self.u * self.magnitude + 1e-30


UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)


@torch.no_grad()
def truth(net: Network) -> Truth:
    def run(mode=None):
        model, images = net.make()
        model, images = model.eval().double(), images.double().clone()
        for module in model.modules():  # a weight that is a mere attribute stays as it was
            vars(module).update({name: t.double() for name, t in vars(module).items() if isinstance(t, torch.Tensor)})
        if mode is None:
            return model(images)
        with mode:
            return model(images.abs())

    def sixteen(w):  # half a step of 16 bits, and the rounding of what is decoded to the weight's dtype
        return w.abs().amax() * (0.5000001 / (2**15 - 1) + 4 * unit)

    model, _ = net.make()
    unit = max(UNIT[dtype_of(model)], UNIT[torch.float32])                                  # scales and codes are float32's
    plain = Magnitude()
    magnitude = run(plain)
    wider = run(Magnitude(sixteen))
    return Truth(run(), magnitude, wider - magnitude, plain.terms, unit)


# How far the quantized networks may be from each other


@torch.no_grad()
def distances(quantized: ptq.Quantized, images: torch.Tensor, weight: float = 0.0, code: float = 0.0, unit: float = 0.0,
              codes: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The simulated network's values, and a bound on the distance to what differs from it by these errors at each node.

    weight: of each weight, in its steps; code: of each new code, in codes; unit: of each bias, in the units s_x s_w of its sums. Errors
    go through a layer times |w|, through everything else at most unchanged. codes: False leaves the fake quantizers out.
    """
    model, grid = quantized.model, {}
    known: dict[fx.Node, tuple] = {}  # value and error; of several tensors, such pairs; of a size, it and 0
    for node in model.graph.nodes:
        if node.op == "output":
            return known[node.args[0]]
        if node.op == "placeholder":
            known[node] = images.double(), torch.zeros_like(images, dtype=torch.float64)
            continue
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        found = operations.call_kind(model, node)
        tensors = [known[n] for n in operands(node) if operations.call_kind(model, n) != "size"]
        if found == "size":
            known[node] = computed(model, node, known, 0), 0
        elif isinstance(module, FakeQuantize):
            (x, e), = tensors
            grid[node] = scale = module.scale.item()
            known[node] = (module(x.float()).double(), e + code * scale) if codes else (x, e)
        elif isinstance(module, LAYERS):
            known[node] = through_layer(quantized, module, node, tensors[0], grid.get(source_of(node, grid), 0.0), weight, unit)
        elif found == "fill":
            (x, e), = tensors
            known[node] = module(x), F.pad(e, module.padding)
        elif found == "relu6":  # where it clips codes, 6.0 is a code
            (x, e), = tensors
            known[node] = module(x), e + (0.51 * grid.get(source_of(node, grid), 0.0) if unit else 0.0)
        elif found == "relu":
            known[node] = module(tensors[0][0]), tensors[0][1]
        elif found == "add":  # 20 bits of fraction
            (x, e), (y, f) = tensors
            known[node] = x + y, e + f + (2.0**-17 * max(grid.get(source_of_node(n, grid), 0.0) for n in operands(node)) if unit else 0.0)
        elif found == "mul":
            (x, e), (y, f) = tensors
            known[node] = x * y, x.abs() * f + y.abs() * e + e * f + 2.0**-20 * (x * y).abs()
        elif found == "softmax":  # a share of 1 has 8 bits, and TFLite's exponential function about 20
            (x, e), = tensors
            known[node] = module(x), 0.5 * e.amax(-1, keepdim=True).expand_as(e) + 2.0**-12
        elif found == "table":
            (x, e), = tensors
            called = (module, (x,), {}) if module is not None else (node.target, *mapped(node, known, 0))
            name = plain_name(type(module).__name__.lower() if module is not None else called[0])
            name = {"leakyrelu": "leaky_relu"}.get(name, name)
            settings = ((x, module.min_val, module.max_val), {}) if name == "hardtanh" and module is not None else called[1:]
            slope, _ = lipschitz(name, *settings)
            y = computed(model, node, known, 0)
            known[node] = y, (2 * x.abs() * e + e * e if callable(slope) else slope * e) + 2.0**-20 * y.abs()
        elif found == "mean":
            size = known | {n: (known[n][0].abs(), 0) for n in operands(node)}
            known[node] = computed(model, node, known, 0), computed(model, node, known, 1) + 2.0**-20 * computed(model, node, size, 0)
        else:  # values at other places
            values, errors = (computed(model, node, known, i) for i in (0, 1))
            known[node] = tuple(zip(values, errors)) if found == "parts" else (values, errors)
    raise AssertionError("a graph without an output")


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads, as often as it does."""
    found = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n))
    return found


def mapped(node: fx.Node, known: dict, which: int) -> tuple[tuple, dict]:
    """The arguments of a call: values (which = 0), or errors; of sizes always the values."""
    def one(n):
        if type(known[n][0]) is tuple:
            return [part[which] for part in known[n]]
        return known[n][which if isinstance(known[n][0], torch.Tensor) else 0]

    return fx.map_arg(node.args, one), fx.map_arg(node.kwargs, one)


def computed(model: fx.GraphModule, node: fx.Node, known: dict, which: int):
    args, kwargs = mapped(node, known, which)
    if node.op == "call_module":
        return copy.deepcopy(model.get_submodule(node.target)).double()(*args)
    return getattr(args[0], node.target)(*args[1:], **kwargs) if node.op == "call_method" else node.target(*args, **kwargs)


def through_layer(quantized, module: nn.Module, node: fx.Node, given: tuple, scale: float, weight: float, unit: float) -> tuple:
    """Value and error behind a layer; scale: of its input's codes."""
    x, e = given
    step = quantized.tensors[node.target].scale.double().expand(len(module.weight))
    bias = torch.zeros(1) if module.bias is None else module.bias.abs().double()
    wide = torch.maximum(step, bias / (scale * 2**30)) if scale else step                   # a channel that is mostly bias
    off = weight * step + (0.51 * wide if unit else 0.0) * (wide > step)
    y = layer(module, x, module.weight.double(), module.bias)
    size = layer(module, x.abs(), module.weight.abs().double(), bias.expand(len(step)))
    own = layer(module, x.abs() + e, off.view(-1, *[1] * (module.weight.dim() - 1)).expand_as(module.weight), None)
    own = own + layer(module, e, module.weight.abs().double(), None)
    own = own + (module.weight[0].numel() + 8) * 2.0**-23 * size                            # float32 sums, and multipliers of 31 bits
    units = unit * scale * wide
    return y, own + (units if isinstance(module, nn.Linear) else units.view(-1, *[1] * (module.weight.dim() - 2)))


def source_of_node(node: fx.Node, grid: dict) -> fx.Node:
    while node not in grid and node.args:
        node = node.args[0]
    return node


def source_of(node: fx.Node, grid: dict) -> fx.Node:
    """The fake quantizer whose codes a node reads, through pooling, flattening and ReLU."""
    return source_of_node(node.args[0], grid)


def layer(module: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    bias = None if bias is None else bias.double()
    return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, bias)
