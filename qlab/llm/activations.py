"""Activations on few levels: what each linear layer reads is quantized on its way in.

    x_hat = s * clamp(round(x / s), -top, top)          s = max|x| / top,   top = 2**(bits - 1) - 1        symmetric

    per="static"    one s for all that a layer will ever read, from calibration       fastest: s is known before the product
    per="tensor"    one s for each call, from all that it brings                      dynamic
    per="token"     one s for each token, over its channels                           dynamic: a loud token spoils no other

A channel cannot have an s of its own: a product sums over channels, and an s could not be taken out of the sum. That is why one loud
channel spoils all three, and why qlab.llm.smoothquant moves the scale into the weights and qlab.llm.rotate mixes the channels.

The same is fake quantization (qlab.nets.fake): it shows what the levels cost, and no speed. W4A8, W4A4 and the like are this with
quantized weights (qlab.llm.weights).
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from qlab.errors import first_line
from qlab.llm.evaluate import Text
from qlab.llm.targets import check_module, linear_layers
from qlab.llm.weights import check_values
from qlab.nets.fake import fake_quantize, wide
from qlab.nets.plain import plain_copy
from qlab.quant import QTensor, formats, linear
from qlab.quant import ranges as ranges_of
from qlab.quant.layout import as_tensor, check_bits
from qlab.quant.settled import Settled

PER = ("static", "tensor", "token")
RANGES = ("minmax", "percentile", "mse")
SAMPLE = 1 << 16                                                                            # values of a layer's inputs that are kept


class Levels(Settled):
    """x (..., channels) on 2**bits - 1 levels around 0; per: see above. scale: of per="static", float32 (), and stays so in half().

    >>> Levels(4, "token")(torch.tensor([[7.0, 1.2], [0.7, 0.26]]))
    tensor([[7.0000, 1.0000],
            [0.7000, 0.3000]])
    """

    settings_required = False  # a file that holds tensors alone is taken as it is

    def __init__(self, bits: int, per: str, scale: torch.Tensor | None = None):
        super().__init__()
        self.bits, self.per, self.top = bits, per, 2 ** (bits - 1) - 1
        self.register_buffer("scale", scale)

    def settings(self) -> dict:
        return {"bits": self.bits, "per": self.per}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x
        scale = self.scale
        if scale is None:
            high = x.detach().abs().amax(-1, keepdim=True) if self.per == "token" else x.detach().abs().amax()
            scale = (wide(high) / self.top).clamp(min=torch.finfo(torch.float32).tiny)      # a token of zeros stays zeros
        return fake_quantize(x, scale, 0, -self.top, self.top)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, per={self.per!r}" + (f", scale={self.scale.item():.4g}" if self.scale is not None else "")


class Coded(nn.Module):
    """x (..., channels) through codes and back; how: a function from the same values as (tokens, channels) to a QTensor.

    >>> Coded(in_format("mxfp4"), "mxfp4")(torch.tensor([[[1.0, -7.0, 0.1]]]))
    tensor([[[ 1., -6.,  0.]]])
    """

    def __init__(self, how: Callable[[torch.Tensor], QTensor], name: str):
        super().__init__()
        self.how, self.name = how, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x
        q = self.how(x.detach().reshape(-1, x.shape[-1]))
        if not isinstance(q, QTensor):
            raise TypeError(f"{self.name} returns a {type(q).__name__}, and must return a QTensor.")
        return q.dequantize().view(x.shape)

    def extra_repr(self) -> str:
        return self.name


def in_format(name: str) -> Callable[[torch.Tensor], QTensor]:
    """A function from (tokens, channels) to a QTensor in a format of qlab.quant.formats: a scale for each token, or each of its blocks."""
    return partial(formats.quantize, format=name, axis=0)


def quantize(model: nn.Module, how: int | str | Callable[[torch.Tensor], QTensor] = 8, per: str = "token", batches=None,
             ranges: str = "minmax", skip: tuple[str, ...] = ()) -> nn.Module:
    """A copy whose linear layers read quantized inputs; `remove` takes that off again. Names and weights are the model's.

    how: bits from 2 to 16; or a format of qlab.quant.formats (mxfp4, nvfp4, e4m3, ...), each token or block of a token with its scale
    (nvfp4's second one is of the call); or any function from x (tokens, channels) to a QTensor. per, for bits: static, tensor or token.
    batches, for static: what the model is called with, a tensor (n, ...) or several of them; ranges: what s covers of the values seen,
    minmax all of them, percentile 99.9 %, mse what has the least squared error. skip: names of layers that read what they did. Gradients
    pass bits straight through, and no other how.

    Raises ValueError for a model without linear layers, a name in skip that is none, bits, format, per or ranges that there are not,
    channels that a format's blocks do not divide, no calibration tokens, a layer that calibration does not reach or that reads NaN there.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> quantize(model, 4)[2]
    Linear(
      in_features=8, out_features=2, bias=True
      (inputs): Levels(bits=4, per='token')
    )
    """
    if per not in PER:
        raise ValueError(f"per is {per!r}, and must be one of {', '.join(PER)}.")
    linear_layers(model, skip)
    copied = remove(model)
    layers = {name: layer for name, layer in linear_layers(copied).items() if name not in skip}
    if isinstance(how, str) or callable(how):
        if per != "token":
            raise ValueError(f"per is {per!r}, which is for bits: {how if isinstance(how, str) else 'a function'} has scales of its own.")
        code, named = (in_format(how), how) if isinstance(how, str) else (how, getattr(how, "__name__", type(how).__name__))
        made = {name: Coded(code, named) for name in layers}
        for name, layer in layers.items():                                                  # at the door, not when the first text is read
            try:
                made[name](torch.zeros(1, layer.in_features))
            except ValueError as error:
                raise ValueError(f"what {name or 'the layer'} reads: {error}") from None
    else:
        bits = check_bits(how, 2)
        scales = _scales(copied, batches, bits, ranges, list(layers)) if per == "static" else {}
        made = {name: Levels(bits, per, scales.get(name)) for name in layers}
    for name, layer in layers.items():
        layer.inputs = made[name]
        layer.register_forward_pre_hook(_through_inputs, with_kwargs=True)
    return copied


def remove(model: nn.Module) -> nn.Module:
    """A copy whose linear layers read their inputs as they come: without what `quantize` put in.

    >>> remove(quantize(nn.Linear(4, 8)))
    Linear(in_features=4, out_features=8, bias=True)
    """
    check_module(model)
    copied = plain_copy(model)
    for layer in copied.modules():
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _through_inputs]:
            del layer._forward_pre_hooks[key], layer.inputs
    return copied


# A hook and not another class of layer: the layer's name and type stay, so that every page finds it, and torch calls it also where it
# has a shorter way past forward (nn.TransformerEncoderLayer).
def _through_inputs(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return (layer.inputs(args[0] if args else kwargs["input"]),), {}


def _scales(model: nn.Module, batches, bits: int, ranges: str, names: list[str]) -> dict[str, torch.Tensor]:
    """The scale of each layer's inputs, float32 (); percentile and mse look at a random sample and at the extremes."""
    if ranges not in RANGES:
        raise ValueError(f"ranges is {ranges!r}, and must be one of {', '.join(RANGES)}.")
    high, kept, generator = {}, {}, torch.Generator().manual_seed(0)

    def see(name, x):
        high[name] = torch.maximum(high.get(name, x.new_zeros(())), x.abs().amax())
        if ranges != "minmax":
            some = torch.randint(x.numel(), (min(x.numel(), SAMPLE // 4),), generator=generator)
            kept[name] = torch.cat([kept.get(name, x.new_zeros(0)), x.flatten()[some.to(x.device)].abs()])

    watch(model, batches, see, names)
    found = {}
    for name in names:
        end = high[name].double()
        if ranges != "minmax":
            values = torch.cat([kept[name][torch.randint(len(kept[name]), (SAMPLE,), generator=generator)], high[name][None]])
            # |x| and -|x| in one: the range of a symmetric code has two equal ends.
            both = torch.cat([values, -values])
            end = (ranges_of.percentile(both, 99.9) if ranges == "percentile" else ranges_of.mse(both, bits, "symmetric")).x_max.double()
        found[name] = linear.quantize(torch.zeros(1, device=end.device), bits, "symmetric", x_min=-end, x_max=end).scale
    return found


def inputs(model: nn.Module, batches, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """All that each linear layer of these names reads, (tokens, channels): for a look at it, or a picture. Raises ValueError as `watch`.

    >>> inputs(nn.Sequential(nn.Identity(), nn.Linear(2, 1)), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))["1"].shape
    torch.Size([2, 2])
    """
    found = {}
    watch(model, batches, lambda name, x: found.setdefault(name, []).append(x.flatten(0, -2)), names)
    return {name: torch.cat(parts) for name, parts in found.items()}


def check_plain(model: nn.Module) -> None:
    """Raises ValueError where `quantize` has put something in: it would see weights change for which it was not made."""
    if any(hook is _through_inputs for module in model.modules() for hook in module._forward_pre_hooks.values()):
        raise ValueError("the model reads quantized activations already: take that off first, by activations.remove(model).")


@contextmanager
def evaluating(model: nn.Module):
    """The model in evaluation mode, and each of its modules in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def batches_of(batches) -> list[torch.Tensor]:
    """What a model is called with, one batch after the other: a tensor (n, ...) or an evaluate.Text in sixteens, or each of several
    tensors.

    Raises TypeError for what is no tensor, ValueError where there is not one token.

    >>> [tuple(batch.shape) for batch in batches_of(torch.zeros(20, 8, dtype=torch.int64))]
    [(16, 8), (4, 8)]
    """
    if isinstance(batches, Text):
        batches = batches.tokens[:, :-1]                                                    # the last of a block is only predicted
    if isinstance(batches, (torch.Tensor, np.ndarray)):
        whole = as_tensor(batches, "batches")
        found = list(whole.split(16)) if whole.dim() else []
    elif isinstance(batches, Iterable) and not isinstance(batches, str):
        found = []
        for batch in batches:
            if not isinstance(batch, (torch.Tensor, np.ndarray)):
                raise TypeError(f"batches holds a {type(batch).__name__}, and must hold tensors that the model takes, (n, ...).")
            found.append(as_tensor(batch, "batches"))
    else:
        raise TypeError(f"batches is {'None' if batches is None else f'a {type(batches).__name__}'}, and must be a tensor of what the "
                        "model takes, (n, ...), or several of them: calibration reads them.")
    found = [batch for batch in found if batch.numel()]
    if not found:
        raise ValueError("batches holds no tokens, and calibration needs some: a few thousand are enough.")
    return found


@torch.no_grad()
def watch(model: nn.Module, batches, see: Callable[[str, torch.Tensor], None], names: Collection[str] | None = None) -> None:
    """Run the model on the batches, in evaluation mode, and call see(name, x) with what each linear layer reads, in the order of the calls.

    x: (..., channels). names: of the layers to watch; all of them by default. Raises ValueError for a model on the meta device, no tokens,
    batches that the model cannot take, a layer that reads NaN or infinity, and one of `names` that the model never calls.

    >>> watch(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(3, 4), lambda name, x: print(name, tuple(x.shape)))
    0 (3, 4)
    1 (3, 8)
    """
    batches, layers, called = batches_of(batches), linear_layers(model), set()
    check_values(model)

    def hook(name):
        def seen(layer, args, kwargs):
            x = args[0] if args else kwargs["input"]
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name or 'the layer'} reads NaN or infinity, and what it reads in calibration must be finite.")
            if x.numel():
                called.add(name)
                see(name, x)
        return seen

    hooks = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()
             if names is None or name in names]
    try:
        with evaluating(model):
            for batch in batches:
                try:
                    model(batch)
                except (RuntimeError, IndexError, TypeError) as error:
                    said = f"{batch.dtype} {tuple(batch.shape)} ({first_line(error)})"
                    raise ValueError(f"the model cannot take the calibration batches, {said}.") from None
    finally:
        for handle in hooks:
            handle.remove()
    if missing := [name for name in names or () if name not in called]:
        raise ValueError(f"the model does not call {missing[0]} on these batches, so that nothing is known of what it reads.")
