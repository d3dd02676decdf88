"""Post-training quantization of a whole network: weights, and activations after a look at calibration images.

Batch norm is an affine map of each channel, so in evaluation mode it folds into the convolution before it (Jacob et al. 2018, eq. 14):

    w' = w * gamma / sqrt(var + eps)          b' = beta + (b - mean) * gamma / sqrt(var + eps)

The folded weight is what a device stores and multiplies. Its channels' ranges carry each channel's gamma / sqrt(var), which differ.

Then every weight becomes codes, and every tensor of activations gets a scale and a zero-point, from the range it had on training
images (qlab.nets.calibration). Where scales are needed, qlab.nets.graph tells.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from qlab.nets import left
from qlab.nets.calibration import RANGES, batches_of, check_norms, observe
from qlab.nets.equalize import Equalized, cross_layer_equalize, subtract_mean_error
from qlab.nets.fake import FakeQuantize
from qlab.nets.graph import calls, folding_pairs, kind, maker, points, readable, trace
from qlab.nets.plain import LAYERS, plain_copy
from qlab.nets.tracing import free_name, noted
from qlab.quant import QTensor, linear
from qlab.quant.layout import check_bits


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in which every batch norm is folded into the convolution or linear layer before it and gone (an Identity is in its place).

    The copy is in evaluation mode and computes the same logits up to rounding. Convolutions that share a weight get one each: their batch
    norms differ. A batch norm that no such layer feeds becomes a depthwise convolution with 1 x 1 filters, and a transposed convolution
    a convolution (qlab.nets.rewrite). Raises ValueError for a batch norm without running statistics, or a network that qlab.nets.graph
    cannot read.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> fold_batch_norm(net)
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    model = readable(model)
    pairs = dict.fromkeys((conv.target, bn.target) for conv, bn in folding_pairs(noted(copy.deepcopy(model))))  # once each
    norms = [model.get_submodule(name) for _, name in pairs]
    for (conv, name), bn in zip(pairs, norms):
        _check_statistics(bn, name)
        _fold(model.get_submodule(conv), bn)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):                                   # under all of its names, if it has several
            if child in norms:
                setattr(parent, name, nn.Identity())
    return model


def _check_statistics(bn: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> None:
    if not (bn.running_mean.isfinite().all() and bn.running_var.isfinite().all() and (bn.running_var >= 0).all()):
        raise ValueError(f"the running statistics of {name} hold NaN, infinity or a negative variance, and must be finite.")


@torch.no_grad()
def _fold(conv: nn.Conv1d | nn.Conv2d | nn.Linear, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """In float32 at least, whatever the network's dtype."""
    wide, old = torch.promote_types(conv.weight.dtype, torch.float32), conv.weight
    mean, var = bn.running_mean.to(wide), bn.running_var.to(wide)
    gamma = torch.ones_like(var) if bn.weight is None else bn.weight.to(wide)
    beta = torch.zeros_like(var) if bn.bias is None else bn.bias.to(wide)
    factor = gamma / (var + bn.eps).sqrt()
    bias = torch.zeros_like(beta) if conv.bias is None else conv.bias.to(wide)
    weight = old.to(wide) * factor.view(-1, *[1] * (old.dim() - 1))                  # a new one: another layer may share the old
    conv.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    conv.bias = nn.Parameter((beta + (bias - mean) * factor).to(old.dtype), requires_grad=old.requires_grad)


@dataclass(frozen=True)
class Quantized:
    """model: a network with decoded weights, and with fake-quantized activations if they were calibrated (float arithmetic: it shows
    accuracy, never speed). tensors: the QTensor of each layer's weight.

    nbytes: the network as a file would hold it, in bytes: codes with their scales or codebooks, everything else as it is.
    left: the layers, and parameters of no layer, that keep their floats, by name, and why (the biases do, too, and are not listed).
    equalized: where quantize was told to equalize: the pairs of layers, and why not others (qlab.nets.equalize).
    """

    model: nn.Module
    tensors: dict[str, QTensor]
    nbytes: int
    left: dict[str, str] = field(default_factory=dict)
    equalized: Equalized | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.tensors)} layers quantized, {self.nbytes:,} bytes"]
        lines += ["left as they are:"] * bool(self.left) + [f"    {name or 'the network'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines + ([] if self.equalized is None else [str(self.equalized)]))

    def save(self, path) -> None:
        """Write a safetensors file of packed codes, whole or not at all; with the graph of layers where the model is one, so that load
        needs nothing else. Raises OSError where the place cannot be written, ValueError for a model that is no longer what it was."""
        from qlab.nets import stored
        stored.save(path, self)


def load(path, model: nn.Module | None = None) -> Quantized:
    """What Quantized.save wrote, on the CPU, its model in evaluation mode.

    model: only for what quantize_weights made of a network with code of its own: a network of the architecture that was quantized, with
    any weights; a copy of it is filled. Raises OSError where the file cannot be read; ValueError, in one sentence, for a file that is
    damaged or foreign, a model that is missing, not needed or another one.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> q, x = quantize(net, torch.rand(8, 1, 4, 4)), torch.rand(3, 1, 4, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     q.save(f"{folder}/net.safetensors")
    ...     again = load(f"{folder}/net.safetensors")
    >>> torch.equal(again.model(x), q.model(x)), again.tensors["3"].equal(q.tensors["3"])
    (True, True)
    """
    from qlab.nets import stored
    return stored.load(path, model)


def quantize_weights(model: nn.Module, quantizer: Callable[[torch.Tensor], QTensor] | dict[str, Callable[[torch.Tensor], QTensor]],
                     skip: tuple[str, ...] = ()) -> Quantized:
    """Quantize the weight of every Conv1d, Conv2d and Linear, but those named in skip, with any function from a tensor to a QTensor.

    quantizer: one function for all, or one for each layer by its name. Biases stay as they are, the model given is not changed. Layers
    that share a weight share its codes, unless their functions differ; a skipped layer, or an embedding, that shares it keeps its floats,
    and both are counted. A weight that is recomputed in each forward (qlab.nets.plain) is quantized as what it comes to. What else the
    network holds (embeddings, recurrent layers, norms, parameters of its own) keeps its floats; the result's left names it.
    Raises ValueError for a layer that has no function, a name that is no such layer, and, with the layer's name, whatever its function
    refuses (NaN, say) or a QTensor of another shape than the weight's; TypeError for a function that returns no QTensor.

    >>> from qlab.quant import linear
    >>> q = quantize_weights(nn.Linear(100, 10), lambda w: linear.quantize(w, 4, "symmetric", axis=0))
    >>> q.nbytes                  # 1000 codes of 4 bits, 10 float32 scales, 10 float32 biases
    580
    """
    quantized = plain_copy(model)
    layers = {name: m for name, m in quantized.named_modules() if isinstance(m, LAYERS)}
    by_name = quantizer if isinstance(quantizer, dict) else {name: quantizer for name in layers if name not in skip}
    for what, names in (("skip", set(skip)), ("quantizer", set(by_name))):
        if names - set(layers):
            raise ValueError(f"{what} names {', '.join(sorted(names - set(layers)))}, and may name {', '.join(layers)}.")
    if set(layers) - set(by_name) - set(skip):
        missing = ", ".join(sorted(set(layers) - set(by_name) - set(skip)))
        raise ValueError(f"quantizer has nothing for {missing}: add it, or name it in skip.")
    tensors, made = {}, {}                                                                  # made: weight -> its codes, decoded, so far
    for name, layer in layers.items():
        if name in skip:
            continue
        weight, q = layer.weight, _codes(by_name[name], layer.weight, name)
        of_weight = made.setdefault(weight, [])
        same = next(((known, decoded) for known, decoded in of_weight if known.equal(q)), None)
        if same is None:
            same = (q, _decoded(q, weight))
            of_weight.append(same)
        tensors[name], layer.weight = same
    decoded = {id(layers[name].weight) for name in tensors}
    rest = {id(t): t for t in quantized.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor) and id(t) not in decoded}
    nbytes = sum(q.nbytes for same in made.values() for q, _ in same) + sum(t.numel() * t.element_size() for t in rest.values())
    return Quantized(quantized, tensors, nbytes, left.behind(quantized, set(tensors), "quantized", "named in skip"))


@contextmanager
def naming_weight(layer: str) -> Iterator[None]:
    """What a quantizer refuses inside, a ValueError or a TypeError, says whose weight it is.

    >>> with naming_weight("fc"):
    ...     raise ValueError("x holds NaN.")
    Traceback (most recent call last):
    ValueError: the weight of fc cannot be quantized: x holds NaN.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"the weight of {layer or 'the network'} cannot be quantized: {error}") from None


def _codes(quantizer: Callable[[torch.Tensor], QTensor], weight: nn.Parameter, name: str) -> QTensor:
    with naming_weight(name):
        q = quantizer(weight)
    if not isinstance(q, QTensor):
        raise TypeError(f"the quantizer of {name or 'the network'} returns a {type(q).__name__}, and must return a QTensor.")
    if q.shape != weight.shape:
        raise ValueError(f"the quantizer of {name or 'the network'} returns codes of shape {tuple(q.shape)}, and the weight has "
                         f"{tuple(weight.shape)}.")
    return q


@torch.no_grad()
def _decoded(q: QTensor, weight: nn.Parameter) -> nn.Parameter:
    """What the codes decode to, in the place, layout and dtype of the weight."""
    return nn.Parameter(weight.detach().clone().copy_(q.dequantize()), requires_grad=weight.requires_grad)


def int8_per_channel(weight: torch.Tensor) -> QTensor:
    """Symmetric int8 codes, one scale for each output channel: what integer hardware expects of weights."""
    return linear.quantize(weight, 8, "symmetric", axis=0)


def quantize(model: nn.Module, calibration: torch.Tensor | Iterable[torch.Tensor],
             weights: Callable[[torch.Tensor], QTensor] | dict = int8_per_channel, activation_bits: int = 8, ranges: str = "minmax",
             equalize: bool = False, correct_bias: bool = False) -> Quantized:
    """Quantize weights and activations of a trained network: fold, observe on calibration images, fake-quantize.

    calibration: images (n, ...) or batches of them; training images, never test images. weights: any function from a weight to a
    QTensor, or one by layer name. activation_bits: 2 to 8, per tensor, affine; the network's input and its logits keep 8. ranges: how
    an activation's range is chosen from what was seen: minmax, average (moving), percentile (99.9), mse or entropy (qlab.quant.ranges).
    equalize: balance the channels first (cross-layer equalization; the result's equalized says which, and a ReLU6 stands in its way:
    qlab.nets.equalize.relu6_to_relu); correct_bias: take the mean error that the weights' codes make
    out of the bias (Nagel et al. 2019).

    The result's model computes in floating point: it shows accuracy, never speed; qlab.nets.integer.convert makes the integer one.
    Raises ValueError for no calibration images, NaN in them or in an activation, a network that qlab.nets.graph cannot read, a BatchNorm1d
    that norms other than the features of the linear layer before it.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> q = quantize(net, torch.rand(8, 1, 4, 4))
    >>> [name for name, m in q.model.named_modules() if isinstance(m, FakeQuantize)]
    ['input_1_codes', '_1_codes', '_3_codes']
    """
    if ranges not in RANGES:
        raise ValueError(f"ranges is {ranges!r}, and must be one of {', '.join(RANGES)}.")
    check_bits(activation_bits, 2, 8)
    batches = batches_of(calibration)
    check_norms(model, batches)
    traced = trace(fold_batch_norm(model))
    equalized = cross_layer_equalize(traced) if equalize else None
    bits = point_bits(traced, activation_bits)
    seen = observe(traced, batches, ranges, bits)
    q = quantize_weights(traced, weights)
    if correct_bias:
        subtract_mean_error(traced, q.model, batches)
    insert(q.model, {name: FakeQuantize(bits[name], *seen[name]) for name in seen})
    nbytes = q.nbytes + 5 * len(seen)                                                       # a float32 scale and one byte of zero-point
    return Quantized(q.model, q.tensors, nbytes, q.left, equalized)


def point_bits(traced: fx.GraphModule, inner: int) -> dict[str, int]:
    """The bits of each of graph.points, by node name: 8 for the network's input and its logits, inner for all between."""
    ends = [calls(traced, "input")[0], maker(traced, calls(traced, "output")[0])]
    ends += [maker(traced, node) for node in ends[1:] if kind(traced, node) == "softmax"]   # the logits themselves
    return {node.name: 8 if node in ends else inner for node in points(traced)}


def insert(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Put a module after each node named, as NAME_codes, for all that read the node."""
    for node in list(traced.graph.nodes):
        if node.name in modules:
            name = free_name(traced, f"{node.name}_codes")
            traced.add_submodule(name, modules[node.name])
            with traced.graph.inserting_after(node):
                codes = traced.graph.call_module(name, (node,))
            node.replace_all_uses_with(codes, delete_user_cb=lambda user, codes=codes: user is not codes)
    traced.recompile()
