"""Two repairs for per-tensor quantization that need no training (Nagel et al. 2019, data-free quantization).

Cross-layer equalization. A ReLU passes positive factors on: relu(c x) = c relu(x). So a channel i between two layers may be divided by
any s_i > 0 in the first and multiplied by it in the second, and the network computes the same. Choose s_i so that the channel has the
same range in both weights (eq. 11):

    W1[i] / s_i,  b1[i] / s_i,  W2[:, i] * s_i          s_i = sqrt(r1_i / r2_i),  r_i = max|W[i]|

A depthwise layer between two others is in two pairs. Gone through again and again, they settle where the channel has one range in all
three: (r1_i r2_i r3_i)^(1/3).

A ReLU6 clips at 6, before the factor or after it, and passes none on. The paper puts a ReLU in its place first, which cost MobileNetV2
0.02 of 71.72 % on ImageNet (table 1); what it costs another network is to be measured:

    unclipped = relu6_to_relu(model)
    print(agreement(model, unclipped, images, labels))
    q = ptq.quantize(unclipped, calibration, equalize=True)
    print(q.equalized)                                                                      # the pairs, and why not others

Bias correction. Rounded weights W + e move the mean of a layer's output by e * mean(x), in each channel; subtract it from the bias
(section 4.2, with the mean measured on calibration images, appendix D).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from qlab.nets import places
from qlab.nets.graph import Walk, calls, kind, trace
from qlab.nets.plain import CONVOLUTIONS, LAYERS, users_of

# Where channels are is said in the words of qlab.nets.places. A convolution reads "maps", a linear layer the others.


@dataclass(frozen=True)
class Equalized:
    """pairs: the names of two layers whose channels between them got factors. left: every layer that is first in no pair, by name, and why
    the channels that it puts out have none.

    >>> print(Equalized([("conv1", "conv2")], {"conv2": "it makes the network's output"}))
    1 of 2 layers equalized with the next
    left as they are:
        conv2: it makes the network's output
    """

    pairs: list[tuple[str, str]]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.pairs)} of {len(self.pairs) + len(self.left)} layers equalized with the next"]
        return "\n".join(lines + ["left as they are:"] * bool(self.left) + [f"    {name}: {why}" for name, why in self.left.items()])


@torch.no_grad()
def cross_layer_equalize(traced: fx.GraphModule, rounds: int = 100) -> Equalized:
    """Equalize in place every pair of layers between which there is only what passes positive factors on; return which, and why not others.

    traced: from graph.trace, batch norm folded. What passes them on: ReLU, leaky ReLU, pooling, padding with zeros, flattening. Each pair
    changes its neighbours', so all are gone through until the factors settle. The computed function stays the same up to rounding. A
    layer that runs twice, whose weight or bias is shared, or whose output is read at two places, is left as it is, and so are sums, as
    in the paper: every layer that such a channel reaches would have to take one factor.

    >>> net = trace(nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)))
    >>> net.get_submodule("0").weight.data = torch.tensor([[8.0], [1.0]])
    >>> net.get_submodule("2").weight.data = torch.tensor([[0.5, 4.0]])
    >>> cross_layer_equalize(net)
    Equalized(pairs=[('0', '2')], left={'2': "it makes the network's output"})
    >>> net.get_submodule("0").weight.flatten(), net.get_submodule("2").weight.flatten()
    (tensor([2., 2.], grad_fn=<ViewBackward0>), tensor([2., 2.], grad_fn=<ViewBackward0>))
    """
    found = _found(traced)
    for _ in range(rounds):
        moved = max([_equalize(traced.get_submodule(a), traced.get_submodule(b)) for a, b in found.pairs], default=0.0)
        if moved < 1e-3:
            break
    return found


def _found(traced: fx.GraphModule) -> Equalized:
    nodes, users, kept = calls(traced, "conv", "linear"), users_of(traced), {}
    targets = [node.target for node in nodes]
    for target in targets:
        shared = {user: what for what, p in traced.get_submodule(target).named_parameters(recurse=False) for user in users[id(p)]
                  if user != target}
        if targets.count(target) > 1:
            kept[target] = f"it runs {targets.count(target)} times"
        elif shared:
            kept[target] = f"it shares its {next(iter(shared.values()))} with {next(iter(shared))}"
    pairs, left = [], dict(kept)
    for node in nodes:
        if node.target not in kept:
            second, why = _reader(traced, node)
            if second in kept:
                second, why = None, f"{second} reads it, and {kept[second]}"
            if second:
                pairs.append((node.target, second))
            else:
                left[node.target] = why
    return Equalized(pairs, {target: left[target] for target in targets if target in left})


def _reader(traced: fx.GraphModule, node: fx.Node) -> tuple[str | None, str]:
    """The layer that alone reads the channels that a layer puts out; or None, and why there is none to take their factors."""
    layer, how = traced.get_submodule(node.target), "maps" if kind(traced, node) == "conv" else "last"
    while True:
        readers = [_called(user) for user in node.users]
        if not readers:
            return None, "nothing reads it"
        if len(readers) > 1:
            return None, f"it is read at {len(readers)} places ({', '.join(readers)}), and all would need its factors"
        before, node = node, next(iter(node.users))
        what = kind(traced, node)
        if what == "output":
            return None, "it makes the network's output"
        if what == "add":
            return None, f"it is added to another in {node.name}, and both would need the same factors"
        if what == "relu6":
            return None, f"{node.target}, a ReLU6, clips at 6, whatever the factor is: relu6_to_relu takes a ReLU"
        if what in ("conv", "linear"):
            fits = _inputs(traced.get_submodule(node.target), len(layer.weight), how) is not None
            return (node.target, "") if fits else (None, f"an input of {node.target} is not one of its channels")
        if not _passes(traced, node, what):
            return None, f"{_called(node)} reads it, through which no factors are led"
        how = places.behind(traced, node, how, layer.weight.dim())
        if not how:
            return None, f"{_called(node)} reads {_called(before)}, and its channels are at other places then"


def _called(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _passes(traced: fx.GraphModule, node: fx.Node, what: str) -> bool:
    """Whether f(c x) = c f(x) for c > 0, channel by channel."""
    leaky = node.op == "call_module" and type(traced.get_submodule(node.target)) is nn.LeakyReLU
    return leaky or what in ("relu", "maxpool", "mean", "flatten", "reshape", "pad", "stretch")


def _inputs(layer: nn.Module, channels: int, how: str) -> torch.Tensor | None:
    """The weight as a view (groups, channels / groups, what they are multiplied by ...); None where an input is not one channel's."""
    w, groups = layer.weight, getattr(layer, "groups", 1)
    if isinstance(layer, CONVOLUTIONS):
        if how != "maps" or w.shape[1] * groups != channels:
            return None
    elif how == "columns" and w.shape[1] % channels or how in ("last", "rows") and w.shape[1] != channels or how == "maps":
        return None                                                                         # of a flattened vector as many as channels
    return w.view(groups, len(w) // groups, channels // groups, -1).transpose(1, 2)         # a flattened map has several columns a channel


def _equalize(first: nn.Module, second: nn.Module) -> float:
    """One step of a pair; returns the largest |log s|."""
    inputs = _inputs(second, len(first.weight), "maps" if isinstance(second, CONVOLUTIONS) else "columns")
    r1, r2 = first.weight.abs().flatten(1).amax(1), inputs.abs().amax((2, 3)).flatten()
    used = (r1 > 0) & (r2 > 0)
    s = torch.where(used, (r1.double() / r2.double().clamp(min=1e-300)).sqrt(), 1.0)
    s = s.clamp(1e-9, 1e9).to(r1)
    first.weight.div_(s.view(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.div_(s)
    inputs.mul_(s.view(*inputs.shape[:2], 1, 1))
    return s.log().abs().max().item()


def relu6_to_relu(model: nn.Module) -> fx.GraphModule:
    """A copy of the network as a graph, in evaluation mode, with a ReLU for each ReLU6, module or function.

    What that costs, `agreement` measures. The layers keep their names. Raises ValueError for a network that qlab.nets.graph cannot read.

    >>> relu6_to_relu(nn.Sequential(nn.Linear(1, 1), nn.ReLU6())).get_submodule("1")
    ReLU()
    """
    traced = trace(model)
    for node in calls(traced, "relu6"):
        traced.set_submodule(node.target, nn.ReLU())
    return traced


@dataclass(frozen=True)
class Agreement:
    """Of two networks on the same images: how many images, on how many the largest logit is at the same place, the largest difference of
    two logits; and, with labels, on how many images each is right (None without)."""

    images: int
    same: int
    largest: float
    right_before: int | None = None
    right_after: int | None = None


@torch.no_grad()
def agreement(before: Callable, after: Callable, images: torch.Tensor, labels: torch.Tensor | None = None) -> Agreement:
    """Compare two networks, in the mode that they are in, on images (n, ...), and with labels, int64 (n,), their right answers too.

    Choose by images that are not the test set's. Raises ValueError for no images, another number of labels, or logits that are not
    (n, classes) of both.

    >>> clipped = nn.Sequential(nn.Linear(1, 1), nn.ReLU6(), nn.Linear(1, 2)).eval()
    >>> agreement(clipped, relu6_to_relu(clipped), torch.zeros(3, 1))
    Agreement(images=3, same=3, largest=0.0, right_before=None, right_after=None)
    """
    if len(images) == 0 or labels is not None and len(labels) != len(images):
        told = "" if labels is None else f" and {len(labels)} labels"
        raise ValueError(f"there are {len(images)} images{told}: there must be at least one image, and as many labels, if any.")
    a, b = (torch.cat([network(x) for x in images.split(128)]) for network in (before, after))
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"the networks give {tuple(a.shape)} and {tuple(b.shape)}, and must both give the same (n, classes).")
    first, second = a.argmax(1), b.argmax(1)
    right = (None, None) if labels is None else (int((answer == labels).sum()) for answer in (first, second))
    return Agreement(len(images), int((first == second).sum()), (a - b).abs().max().item(), *right)


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
                maps = isinstance(layer, CONVOLUTIONS)
                y = layer._conv_forward(args[0], e, None) if maps else args[0] @ e.T
                channels = 1 if maps else y.dim() - 1
                error[target] = error.get(target, 0) + y.sum([d for d in range(y.dim()) if d != channels])
                count[target] = count.get(target, 0) + y.numel() // y.shape[channels]
            return super().call_module(target, args, kwargs)

    for batch in batches:
        Difference(traced).run(batch)
    for target in error:
        layer = quantized.get_submodule(target)
        bias = torch.zeros_like(error[target]) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(bias - error[target] / count[target], requires_grad=bias.requires_grad)
