"""Dead channels: filters that a trained network carries and never uses (Sheng et al. 2018, arXiv:1803.08607, section 3).

    starved   every input channel of the filter is 0 on every image: whatever its weights are, it gives its bias
    silent    what it hands on, after its ReLU, is 0 on every image: whatever it computes, nobody hears it

A depthwise filter reads one channel. If the channel before it has died in training (its ReLU gives 0 for every image), the filter is
starved, its variance is near 0, and folding batch norm divides by the root of that: its weights become the largest of the layer and
set the scale for all others, though they multiply nothing but zeros. Set to zero they cost nothing, and per-tensor ranges shrink.

Found on calibration images, so "never" means "on none of these": take hundreds, and check the outcomes on others.
"""

from dataclasses import dataclass

import torch
from torch import fx, nn

from qlab.errors import first_line
from qlab.nets.graph import Walk, after, calls, folding_pairs, kind, trace
from qlab.nets.plain import plain_copy


@dataclass(frozen=True)
class Dead:
    """starved and silent: bool (out,) for one layer, which of its filters are; both can be true of one."""

    starved: torch.Tensor
    silent: torch.Tensor

    @property
    def any(self) -> torch.Tensor:
        """bool (out,): starved, silent or both."""
        return self.starved | self.silent


@torch.no_grad()
def find(model: nn.Module, images: torch.Tensor, batch_size: int = 128) -> dict[str, Dead]:
    """The dead filters of each Conv2d and Linear that the model calls, by name.

    images: (n, ...), n at least 1, training images. Batch norm must have been folded (ptq.fold_batch_norm).
    Raises ValueError for no images, NaN or infinity in them, a network that qlab.nets.graph cannot read or that has batch norm, a layer
    that runs twice.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1, groups=2))
    >>> net[0].weight.data, net[0].bias.data = torch.ones(2, 1, 1, 1), torch.tensor([0.0, -9.0])
    >>> found = find(net, torch.rand(8, 1, 4, 4))
    >>> found["0"].silent.tolist(), found["2"].starved.tolist()
    ([False, True], [False, True])
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point() or images.dim() == 0:
        raise TypeError("images must be a tensor of floating-point images, (n, ...).")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, and must be 1 or more.")
    if not len(images):
        raise ValueError("there are no images, and a channel is dead only by what it does on some: a few hundred are enough.")
    if not images.isfinite().all():
        raise ValueError("the images hold NaN or infinity, and must be finite.")
    traced = trace(model)
    if calls(traced, "batchnorm"):
        raise ValueError("the network has batch norm: fold it first (ptq.fold_batch_norm), for it changes what is zero.")
    layers = calls(traced, "conv", "linear")
    if twice := [node.target for node in layers if [other.target for other in layers].count(node.target) > 1]:
        raise ValueError(f"{twice[0]} runs more than once, and has no one input to look at.")
    alive = _alive(traced, images.split(batch_size))
    found = {}
    for node in layers:
        axis = 1 if kind(traced, node) == "conv" else -1                                    # where the layer's inputs and outputs are
        inputs, outputs = ~alive[node.args[0], axis], ~alive[after(traced, node), axis]
        found[node.target] = Dead(_starved(traced.get_submodule(node.target), inputs), outputs)
    return found


def _alive(traced: fx.GraphModule, batches) -> dict[tuple[fx.Node, int], torch.Tensor]:
    """bool (channels,) of each node, along axis 1 and along axis -1: whether the channel is other than 0 anywhere in any batch."""
    seen: dict[tuple[fx.Node, int], torch.Tensor] = {}

    class Watch(Walk):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor) and kind(traced, node) != "output":
                for axis in (1, -1):
                    nonzero = (result != 0).movedim(axis, 0).flatten(1).any(1)
                    seen[node, axis] = seen[node, axis] | nonzero if (node, axis) in seen else nonzero
            return result

    for batch in batches:
        try:
            Watch(traced).run(batch)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"the network cannot take the images, {batch.dtype} {tuple(batch.shape)} ({first_line(error)}).") from None
    return seen


def _starved(layer: nn.Module, dead_inputs: torch.Tensor) -> torch.Tensor:
    """bool (out,): filters of which every input is dead. dead_inputs: bool (in,)."""
    groups = getattr(layer, "groups", 1)
    return dead_inputs.view(groups, -1).all(1).repeat_interleave(layer.weight.shape[0] // groups)


@torch.no_grad()
def zero(model: nn.Module, dead: dict[str, Dead]) -> nn.Module:
    """A copy in which the weights of dead filters are 0, and the biases of silent ones: it computes what the model does.

    dead: from find. The model may be folded or not: a silent filter's batch norm then gets gamma = beta = 0, which folds to the same.
    Layers that share a weight get one each, for their filters die apart.
    On the images of find the logits are the same to the last bit that summation order leaves; on others they are as long as what was
    dead stays dead. Raises ValueError for a name that is no layer of the model, a mask of another length, a silent filter whose batch norm
    stands behind another convolution too.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1, groups=2))
    >>> net[0].weight.data, net[0].bias.data = torch.ones(2, 1, 1, 1), torch.tensor([0.0, -9.0])
    >>> x = torch.rand(8, 1, 4, 4)
    >>> cleaned = zero(net, find(net, x))
    >>> int((cleaned[2].weight == 0).sum()), torch.equal(cleaned(x), net(x))
    (1, True)
    """
    model = plain_copy(model)
    layers, norms = dict(model.named_modules()), {conv.target: bn.target for conv, bn in folding_pairs(trace(model))}
    for name, found in dead.items():
        layer = layers.get(name)
        if getattr(layer, "weight", None) is None or len(found.starved) != len(layer.weight):
            raise ValueError(f"{name!r} is no layer of this model with {len(found.starved)} filters: dead must be what find says of it.")
        _set(layer, "weight", layer.weight, found.any)
        if layer.bias is not None:
            _set(layer, "bias", layer.bias, found.silent)
        if name in norms and found.silent.any():  # folding a batch norm with gamma = beta = 0 leaves the bias 0
            if list(norms.values()).count(norms[name]) > 1:
                raise ValueError(f"{norms[name]} stands behind {name} and another convolution, and cannot silence a filter of one of them.")
            bn = layers[norms[name]]
            _set(bn, "weight", torch.ones_like(bn.running_var) if bn.weight is None else bn.weight, found.silent)
            _set(bn, "bias", torch.zeros_like(bn.running_var) if bn.bias is None else bn.bias, found.silent)
    return model


def _set(module: nn.Module, name: str, values: torch.Tensor, zeros: torch.Tensor) -> None:
    """A parameter of the module's own, whoever shared the old one, with zeros where they shall be."""
    own = nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
    own.data[zeros] = 0
    setattr(module, name, own)
