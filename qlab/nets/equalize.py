"""Two repairs for per-tensor quantization that need no training (Nagel et al. 2019, data-free quantization).

Cross-layer equalization. A ReLU passes positive factors on: relu(c x) = c relu(x). So a channel i between two layers may be divided by
any s_i > 0 in the first and multiplied by it in the second, and the network computes the same. Choose s_i so that the channel has the
same range in both weights (eq. 11):

    W1[i] / s_i,  b1[i] / s_i,  W2[:, i] * s_i          s_i = sqrt(r1_i / r2_i),  r_i = max|W[i]|

Bias correction. Rounded weights W + e move the mean of a layer's output by e * mean(x), in each channel; subtract it from the bias
(section 4.2, with the mean measured on calibration images, appendix D).
"""

import torch
from torch import fx, nn

from qlab.nets.graph import Walk, calls, kind, only_user
from qlab.nets.plain import LAYERS, users_of

PASSES = ("relu", "maxpool", "mean", "flatten")                                             # pass on a positive factor of a channel

# Where the channels are: "maps", along axis 1 of a convolution's output; "columns", maps flattened, each channel a block of neighbouring
# columns; "last", along the last axis of a linear layer's output. A convolution reads the first, a linear layer the others.


@torch.no_grad()
def cross_layer_equalize(traced: fx.GraphModule, rounds: int = 100) -> list[tuple[str, str]]:
    """Equalize in place every pair of layers between which there are only ReLU, pooling and flattening; return their names.

    traced: from graph.trace, batch norm folded. Each pair changes its neighbours', so all are gone through until the factors settle.
    The computed function stays the same up to rounding. A layer that runs twice, or whose weight or bias is shared, is left as it is.

    >>> from qlab.nets.graph import trace
    >>> net = trace(nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)))
    >>> net.get_submodule("0").weight.data = torch.tensor([[8.0], [1.0]])
    >>> net.get_submodule("2").weight.data = torch.tensor([[0.5, 4.0]])
    >>> pairs = cross_layer_equalize(net)
    >>> net.get_submodule("0").weight.flatten(), net.get_submodule("2").weight.flatten()
    (tensor([2., 2.], grad_fn=<ViewBackward0>), tensor([2., 2.], grad_fn=<ViewBackward0>))
    """
    pairs = _pairs(traced)
    for _ in range(rounds):
        moved = max([_equalize(traced.get_submodule(a), traced.get_submodule(b)) for a, b in pairs], default=0.0)
        if moved < 1e-3:
            break
    return pairs


def _pairs(traced: fx.GraphModule) -> list[tuple[str, str]]:
    nodes = calls(traced, "conv", "linear")
    targets = [node.target for node in nodes]
    users = users_of(traced)
    alone = [n for n in nodes if targets.count(n.target) == 1 and
             all(len(users[id(p)]) == 1 for p in traced.get_submodule(n.target).parameters(recurse=False))]
    pairs = []
    for node in alone:
        user, how = only_user(node), "maps" if kind(traced, node) == "conv" else "last"
        while user is not None and kind(traced, user) in PASSES:
            how, user = _behind(traced, user, how), only_user(user)
        channels = traced.get_submodule(node.target).weight.shape[0]
        if user in alone and _reads(traced.get_submodule(user.target), channels, how):
            pairs.append((node.target, user.target))
    return pairs


def _behind(traced: fx.GraphModule, node: fx.Node, how: str) -> str:
    """Where the channels are behind a node of PASSES; "" where it mixes up their places."""
    what = kind(traced, node)
    if what == "flatten" and how == "maps":
        module = traced.get_submodule(node.target)
        return "columns" if (module.start_dim, module.end_dim) in ((1, -1), (1, 3)) else ""
    return how if what in ("relu", "flatten") or how == "maps" else ""


def _reads(layer: nn.Module, channels: int, how: str) -> bool:
    """Whether each input of the layer belongs to one channel."""
    if isinstance(layer, nn.Conv2d):
        return how == "maps" and _inputs(layer, channels) is not None
    inputs = layer.weight.shape[1]                                                          # of a flattened vector as many as channels
    return inputs % channels == 0 if how == "columns" else how == "last" and inputs == channels


def _inputs(layer: nn.Module, channels: int) -> torch.Tensor | None:
    """The weight as a view (channels, what they are multiplied by); None where groups cut across channels."""
    w = layer.weight
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return w.view(channels, -1) if layer.groups == channels == w.shape[0] else None
    if w.shape[1] % channels:
        return None
    return w.view(w.shape[0], channels, -1).transpose(0, 1)                                 # a flattened map has several columns a channel


def _equalize(first: nn.Module, second: nn.Module) -> float:
    """One step of a pair; returns the largest |log s|."""
    inputs = _inputs(second, first.weight.shape[0])
    r1, r2 = first.weight.abs().flatten(1).amax(1), inputs.abs().amax(tuple(range(1, inputs.dim())))
    used = (r1 > 0) & (r2 > 0)
    s = torch.where(used, (r1.double() / r2.double().clamp(min=1e-300)).sqrt(), 1.0)
    s = s.clamp(1e-9, 1e9).to(r1)
    first.weight.div_(s.view(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.div_(s)
    inputs.mul_(s.view(-1, *[1] * (inputs.dim() - 1)))
    return s.log().abs().max().item()


@torch.no_grad()
def subtract_mean_error(traced: fx.GraphModule, quantized: fx.GraphModule, batches: list[torch.Tensor]) -> None:
    """Correct in place the biases of quantized (decoded weights) for the mean error of its weights, on the float network's inputs.

    A layer without bias gets one; one that runs twice gets the mean over its runs. batches: images (n, ...).
    """
    error, count = {}, {}

    class Difference(Walk):
        def call_module(self, target, args, kwargs):
            layer = self.module.get_submodule(target)
            if isinstance(layer, LAYERS):
                e = quantized.get_submodule(target).weight - layer.weight
                y = layer._conv_forward(args[0], e, None) if isinstance(layer, nn.Conv2d) else args[0] @ e.T
                dims = [d for d in range(y.dim()) if d != (1 if isinstance(layer, nn.Conv2d) else y.dim() - 1)]
                error[target] = error.get(target, 0) + y.sum(dims)
                count[target] = count.get(target, 0) + y.numel() // y.shape[1 if isinstance(layer, nn.Conv2d) else -1]
            return super().call_module(target, args, kwargs)

    for batch in batches:
        Difference(traced).run(batch)
    for target in error:
        layer = quantized.get_submodule(target)
        bias = torch.zeros_like(error[target]) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(bias - error[target] / count[target], requires_grad=bias.requires_grad)
