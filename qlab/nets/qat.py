"""Quantization-aware training: train with the rounding in place, so that what is minimised is the loss of the rounded weights.

Every weight and every tensor of activations passes through a fake quantizer (qlab.nets.fake) in the forward pass; the optimiser moves the
floating-point weights behind them. Steps are set in one of two ways:

    learned=False    weights: max|w| / (2**(b-1) - 1), anew in each step. Activations: as calibrated; or, with moving=True, from a
                     moving average of the batches' extremes                                Jacob et al. 2018, section 3.1
    learned=True     every scale is a parameter, with the gradient of fake.py, times 1 / sqrt(values * largest code)
                                                                                            Esser et al. 2020 (LSQ), section 2.2
Batch norm is folded while it trains: a device will hold w * gamma / sigma, so this is what must be rounded. The convolution runs with the
rounded folded weight, and its output is divided by gamma / sigma again, so that batch norm can go on measuring (Jacob et al. 2018,
section 3.2, in the form of Krishnamoorthi 2018, section 3.2.2: sigma from the running statistics). In the end the statistics are frozen,
and the weights get used to those that the device will have.
"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import fx, nn

from qlab.nets.fake import HALVES, FakeQuantize, fake_quantize, wide
from qlab.nets.graph import calls, folding_pairs, trace
from qlab.nets.plain import refuse_hooks
from qlab.nets.ptq import RANGES, Quantized, batches_of, check_norms, fold_batch_norm, insert, observe, point_bits, quantize_weights
from qlab.nets.training import fit
from qlab.quant import linear
from qlab.quant.layout import check_bits
from qlab.quant.settled import Settled

SMALLEST = 1e-12                                                                            # no scale in training is below


class _Slower(torch.autograd.Function):
    """The identity, with a gradient that is a factor smaller: LSQ's balance between a scale, which many values pull, and a weight."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class WeightQuantizer(Settled):
    """A weight (out, ...) on 2**bits - 1 levels, symmetric; one scale per tensor or, with axis=0, per output channel.

    half(), double() and the like leave the scale as it is. A state dict holds bits, axis and learned: loading it under others is a
    ValueError.

    >>> WeightQuantizer(torch.tensor([[-1.0, 0.3], [0.2, 0.1]]), bits=2, axis=None, learned=False)(torch.tensor([[-1.0, 0.6]]))
    tensor([[-1.,  1.]])
    """

    settings_required = False  # a file that holds tensors alone is taken as it is

    def __init__(self, weight: torch.Tensor, bits: int, axis: int | None, learned: bool):
        super().__init__()
        self.bits, self.axis, self.top = bits, axis, 2 ** (bits - 1) - 1
        self.scale = None
        if learned:  # starts at 2 mean|w| / sqrt(largest code), Esser et al. 2020, section 2.1: a few huge weights hardly move it
            size = wide(weight.detach()).abs()
            mean = size.mean() if axis is None else size.flatten(1).mean(1)
            self.scale = nn.Parameter((2 * mean / math.sqrt(self.top)).clamp(min=SMALLEST).float())
            per_scale = weight.numel() // self.scale.numel()
            self.factor = 1 / math.sqrt(per_scale * self.top)

    def settings(self) -> dict:
        return {"bits": self.bits, "axis": self.axis, "learned": self.scale is not None}

    def current_scale(self, weight: torch.Tensor) -> torch.Tensor:
        if self.scale is not None:
            return _Slower.apply(self.scale, self.factor).abs().clamp(min=SMALLEST)
        return (self._largest(weight) / self.top).clamp(min=SMALLEST)

    def _largest(self, weight: torch.Tensor) -> torch.Tensor:
        size = wide(weight.detach()).abs()
        return size.max() if self.axis is None else size.flatten(1).amax(1)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = self.current_scale(weight)
        if self.axis is not None:
            scale = scale.view(-1, *[1] * (weight.dim() - 1))
        return fake_quantize(weight, scale, 0, -self.top, self.top)

    def encode(self, weight: torch.Tensor):
        """The codes as a QTensor: what forward has rounded to. The scale of zeros alone, which may be any, is that of linear.quantize."""
        reach = torch.where(self._largest(weight) > 0, self.top * self.current_scale(weight).detach(), 0)
        return linear.quantize(weight, self.bits, "symmetric", axis=self.axis, x_min=-reach, x_max=reach)


class QuantizedLayer(nn.Module):
    """A convolution or Linear whose weight is rounded in the forward pass; with batch norm, the folded weight."""

    def __init__(self, layer: nn.Module, bn: nn.BatchNorm1d | nn.BatchNorm2d | None, bits: int, axis: int | None, learned: bool):
        super().__init__()
        self.layer, self.bn, self.frozen = layer, bn, False
        self.quantizer = WeightQuantizer(self.folded(), bits, axis, learned)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen and self.bn is not None:
            self.bn.eval()
        return self

    def factor(self) -> torch.Tensor:
        """gamma / sigma of each channel, never exactly 0: it is divided by. A constant for the gradient, for what it multiplies and
        divides again cancels; gamma learns through batch norm itself."""
        gamma = torch.ones_like(self.bn.running_var) if self.bn.weight is None else self.bn.weight
        factor = wide(gamma) / (wide(self.bn.running_var) + self.bn.eps).sqrt()
        return torch.where(factor.abs() < 1e-12, 1e-12, factor).detach()

    def folded(self) -> torch.Tensor:
        return self.layer.weight if self.bn is None else self.layer.weight * self._shaped(self.factor())

    def _shaped(self, channels: torch.Tensor, outputs: bool = False) -> torch.Tensor:
        """A number a channel, as it multiplies the weight (out, ...) or the outputs (n, out, ...)."""
        rest = [1] * (self.layer.weight.dim() - (2 if outputs else 1))
        return channels.view(*([1] if outputs else []), -1, *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bn is None:
            return self._run(x, self.quantizer(self.layer.weight), self.layer.bias)
        factor = self.factor()
        y = (self._run(x, self.quantizer(self.layer.weight * self._shaped(factor)), None) / self._shaped(factor, True)).to(x.dtype)
        y = y if self.layer.bias is None else y + self._shaped(self.layer.bias, True)
        return self.bn(y) if len(y) else y                                                  # the mean of no images is NaN, for good

    def _run(self, x, weight, bias):
        weight = weight.to(x.dtype) if x.dtype in HALVES else weight                        # of half activations: products in half
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


class LearnedActivations(FakeQuantize):
    """A fake quantizer whose scale is trained (LSQ); its zero-point stays."""

    def __init__(self, bits: int, x_min, x_max):
        super().__init__(bits, x_min, x_max)
        scale = self.scale
        del self.scale
        self.scale = nn.Parameter(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = 1 / math.sqrt(max(x.shape[1:].numel(), 1) * self.top)
        scale = _Slower.apply(self.scale, factor).abs().clamp(min=SMALLEST)
        return fake_quantize(x, scale, self.zero_point, 0, self.top)


class AveragedActivations(FakeQuantize):
    """A fake quantizer whose range follows the batches' extremes in training: momentum * range + (1 - momentum) * new.

    A batch that is empty, or holds NaN or infinity, leaves the range where it is: a mean that once took one in would keep it for good.
    """

    def __init__(self, bits: int, x_min, x_max, momentum: float = 0.99):
        super().__init__(bits, x_min, x_max)
        self.momentum = momentum
        self.register_buffer("range", torch.stack([torch.as_tensor(x_min), torch.as_tensor(x_max)]).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.numel():
            with torch.no_grad():
                new = torch.stack(x.aminmax()).to(self.range.dtype)
                finite = (new[1] - new[0]).isfinite()                                       # a number on the device: no GPU waits for it
                self.range.lerp_(torch.where(finite, new, self.range), 1 - self.momentum)
                low, high = self.range[0].clamp(max=0), self.range[1].clamp(min=0)          # affine_parameters, without its checks:
                self.scale.copy_(((high - low) / self.top).clamp(min=SMALLEST))                # each would make a GPU wait
                self.zero_point.copy_((-low / self.scale).round())
        return super().forward(x)


def prepare(model: nn.Module, calibration: torch.Tensor | Iterable[torch.Tensor], weight_bits: int = 4, activation_bits: int = 4,
            axis: int | None = 0, learned: bool = True, ranges: str = "mse", moving: bool = False) -> fx.GraphModule:
    """A copy of a trained network with fake quantizers in place, ready to be trained; every parameter requires a gradient.

    calibration: training images (n, ...) or batches of them: the activations start with the ranges that ptq.quantize would use.
    axis: 0 for a scale per output channel, None for one per tensor. moving: the activations' ranges follow the batches' extremes; not
    together with learned. The network's input and its logits keep 8 bits, all weights have weight_bits. Raises ValueError for what
    ptq.quantize refuses.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> prepare(net, torch.rand(8, 1, 4, 4))(torch.rand(8, 1, 4, 4)).shape
    torch.Size([8, 2])
    """
    for bits in (weight_bits, activation_bits):
        check_bits(bits, 2, 8)
    if axis not in (0, None):
        raise ValueError(f"axis is {axis!r}, and must be 0 (a scale per output channel) or None (one per tensor).")
    if learned and moving:
        raise ValueError("learned and moving are both True, and an activation's range is either learned or follows the batches.")
    if ranges not in RANGES:
        raise ValueError(f"ranges is {ranges!r}, and must be one of {', '.join(RANGES)}.")
    batches = batches_of(calibration)
    check_norms(model, batches)
    folded = trace(fold_batch_norm(model))
    bits = point_bits(folded, activation_bits)
    seen = observe(folded, batches, ranges, bits)

    traced = trace(model).requires_grad_(True)
    pairs = folding_pairs(traced)
    norms = {conv.target: traced.get_submodule(bn.target) for conv, bn in pairs}
    for target in dict.fromkeys(n.target for n in calls(traced, "conv", "linear")):
        layer = QuantizedLayer(traced.get_submodule(target), norms.get(target), weight_bits, axis, learned)
        parent, _, child = target.rpartition(".")
        setattr(traced.get_submodule(parent), child, layer)
    for conv, bn in pairs:
        bn.replace_all_uses_with(conv)
        traced.graph.erase_node(bn)
    for name in dict.fromkeys(bn.target for _, bn in pairs):                                # they live in the layers now
        traced.delete_submodule(name)
    kind_of = LearnedActivations if learned else AveragedActivations if moving else FakeQuantize
    insert(traced, {name: kind_of(bits[name], *seen[name]) for name in seen})
    return traced.eval()


def train(prepared: fx.GraphModule, images: torch.Tensor, labels: torch.Tensor, epochs: int, max_lr: float, *, seed: int = 0,
          weight_decay: float = 5e-4, augment: Callable | None = None, **options) -> list[float]:
    """training.fit, but scales do not decay: a scale pulled to zero is a range that closes. Returns each epoch's mean loss."""
    scales = [p for name, p in prepared.named_parameters() if name.rpartition(".")[2] == "scale"]
    others = [p for name, p in prepared.named_parameters() if name.rpartition(".")[2] != "scale"]
    groups = [{"params": others}] + ([{"params": scales, "weight_decay": 0.0}] if scales else [])
    return fit(prepared, images, labels, epochs, max_lr, seed=seed, weight_decay=weight_decay, augment=augment, parameters=groups,
               **options)


def freeze(prepared: fx.GraphModule) -> None:
    """From now on training uses batch norm's running statistics and leaves them as they are, as the deployed network does.

    While sigma moves with every batch, w * gamma / sigma moves on the levels, and codes change without any training. Train on at a
    small learning rate: without the batch's statistics nothing holds the outputs' scale.
    """
    for module in prepared.modules():
        if isinstance(module, QuantizedLayer):
            module.frozen = True


def convert(prepared: fx.GraphModule) -> Quantized:
    """The trained network as ptq.quantize would return it: batch norm folded for good, weights as codes, activation scales fixed.

    Its logits are those of the prepared network in evaluation mode, up to rounding; qlab.nets.integer.convert takes it from here.
    Raises ValueError, by name, for a forward hook, which would be lost, and for a weight, a bias or a scale that is not finite.
    """
    refuse_hooks(prepared)
    _check_trained(prepared)
    model = copy.deepcopy(prepared).eval().requires_grad_(False)
    encoders = {}  # layer name -> its encoder
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, QuantizedLayer):
            layer = module.layer if module.bn is None else fold_batch_norm(nn.Sequential(module.layer, module.bn))[0]
            if layer.bias is not None:
                _check_finite(f"the bias of {name}, with batch norm folded into it,", layer.bias)
            setattr(model.get_submodule(parent), child, layer)
            encoders[name] = module.quantizer.encode
        elif isinstance(module, FakeQuantize):
            fixed = FakeQuantize(module.bits, 0.0, 1.0)
            scale = module.scale.detach().abs()
            fixed.scale = scale.clamp(min=SMALLEST) if isinstance(module, LearnedActivations) else scale
            fixed.zero_point = module.zero_point.clone()
            setattr(model.get_submodule(parent), child, fixed)
    return quantize_weights(model, encoders)


def _check_trained(prepared: fx.GraphModule) -> None:
    """ValueError for numbers that training has made infinite, or NaN: no code stands for them."""
    for name, module in prepared.named_modules():
        if isinstance(module, QuantizedLayer):
            for key, tensor in (module.state_dict() | {"folded weight": module.folded()}).items():
                _check_finite(f"{name}.{key}", tensor)
        elif isinstance(module, FakeQuantize):
            _check_finite(f"{name}.scale", module.scale)


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity, and must be finite: prepare the network again, and train it at a smaller "
                         "learning rate.")
