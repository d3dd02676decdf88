"""How far results may be apart, by arithmetic alone: from the network itself in float64, and from each other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from network_writer import Network
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from qlab.nets import ptq
from qlab.nets.fake import FakeQuantize

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
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in ("conv2d", "linear"):
            x, w, b, *rest = (*args, None)[:max(3, len(args))]
            self.terms += w[0].numel() + 2
            return func(x, w.abs() + self.spread(w), None if b is None else b.abs(), *rest, **kwargs)
        if name == "batch_norm":
            named = dict(zip(("input", "running_mean", "running_var", "weight", "bias"), args)) | kwargs
            self.terms += 12
            return self.norm(named, named.get("eps", 1e-5))
        if name in ("relu6", "hardtanh", "hardtanh_"):
            return F.relu(args[0], inplace=name == "hardtanh_" or kwargs.get("inplace", len(args) in (2, 4) and args[-1]))
        if name.startswith("max_pool2d") or name == "boolean_dispatch":
            named = dict(zip(("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), args)) | kwargs
            return self.window_sum(named, func(*args, **kwargs))
        if name in ("avg_pool2d", "adaptive_avg_pool2d"):
            self.terms += args[0].shape[-1] * args[0].shape[-2]
        self.terms += name in ("add", "add_", "iadd", "__add__", "__iadd__", "__radd__")
        return func(*args, **kwargs)

    @staticmethod
    def norm(named: dict, eps: float) -> torch.Tensor:
        def shaped(t):
            return t.abs().view(1, -1, 1, 1)

        if named["running_mean"] is None:
            return named["input"]                                                           # refused anyway
        y = (named["input"] + shaped(named["running_mean"])) / (shaped(named["running_var"]) + eps).sqrt()
        y = y if named.get("weight") is None else y * shaped(named["weight"])
        return y if named.get("bias") is None else y + shaped(named["bias"])

    @staticmethod
    def window_sum(named: dict, out: torch.Tensor) -> torch.Tensor:
        def pair(key, default):
            value = named.get(key, default)
            return (value, value) if isinstance(value, int) else tuple(value or default)

        x, kernel = named["input"], pair("kernel_size", 1)
        stride, padding, dilation = pair("stride", kernel), pair("padding", (0, 0)), pair("dilation", (1, 1))
        far = [(o - 1) * s + (k - 1) * d + 1 - i - p
               for o, s, k, d, i, p in zip(out.shape[-2:], stride, kernel, dilation, x.shape[-2:], padding)]
        x = F.pad(x, (padding[1], max(0, far[1]), padding[0], max(0, far[0])))
        y = F.conv2d(x, x.new_ones(x.shape[1], 1, *kernel), None, stride, 0, dilation, x.shape[1])
        return y[:, :, :out.shape[-2], :out.shape[-1]]


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
    grid: dict[fx.Node, float] = {}
    known: dict[fx.Node, tuple[torch.Tensor, torch.Tensor]] = {}
    for node in quantized.model.graph.nodes:
        sources = [a for a in node.args if isinstance(a, fx.Node)]
        if node.op == "output":
            return known[sources[0]]
        if node.op == "placeholder":
            known[node] = images.double(), torch.zeros_like(images, dtype=torch.float64)
            continue
        (x, e), *others = (known[a] for a in sources)
        module = quantized.model.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            scale = module.scale.item()
            grid[node] = scale
            known[node] = (module(x.float()).double(), e + code * scale) if codes else (x, e)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            step = quantized.tensors[node.target].scale.double().expand(len(module.weight))
            bias = torch.zeros(1) if module.bias is None else module.bias.abs().double()
            scale = grid.get(source_of(node, grid), 0.0)
            wide = torch.maximum(step, bias / (scale * 2**30)) if scale else step           # a channel that is mostly bias
            off = weight * step + (0.51 * wide if unit else 0.0) * (wide > step)
            y = layer(module, x, module.weight.double(), module.bias)
            size = layer(module, x.abs(), module.weight.abs().double(), bias.expand(len(step)))
            own = layer(module, x.abs() + e, off.view(-1, *[1] * (module.weight.dim() - 1)).expand_as(module.weight), None)
            own = own + layer(module, e, module.weight.abs().double(), None)
            own = own + (module.weight[0].numel() + 8) * 2.0**-23 * size                    # float32 sums, and multipliers of 31 bits
            units = unit * scale * wide
            known[node] = y, own + (units if isinstance(module, nn.Linear) else units[:, None, None])
        elif module is None:  # a sum of two: 20 bits of fraction
            (y, f), = others or [(x, e)]
            known[node] = x + y, e + f + (2.0**-17 * max(grid.get(source_of_node(a, grid), 0.0) for a in sources) if unit else 0.0)
        elif isinstance(module, (nn.ReLU, nn.ReLU6, nn.Identity)):
            known[node] = module(x), e
        elif isinstance(module, nn.MaxPool2d):
            known[node] = module(x), module(e)
        else:
            known[node] = module(x), module(e) + 2.0**-20 * module(x.abs())
    raise AssertionError("a graph without an output")


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
