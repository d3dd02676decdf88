"""A layer as data: its class by name, and what its constructor takes; each option is checked both ways."""

import inspect
import math

import torch
from torch import nn

from qlab.nets.fake import FakeQuantize
from qlab.nets.operations import Stretch
from qlab.quant.layout import check_bits

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_POOL = ("kernel_size", "stride", "padding")
LAYERS = {  # what a graph may hold, and what its constructor takes; bias: whether there is one
    nn.Conv1d: _CONV, nn.Conv2d: _CONV, nn.Linear: ("in_features", "out_features", "bias"), nn.BatchNorm1d: _NORM, nn.BatchNorm2d: _NORM,
    nn.MaxPool1d: (*_POOL, "dilation", "return_indices", "ceil_mode"), nn.MaxPool2d: (*_POOL, "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool1d: (*_POOL, "ceil_mode", "count_include_pad"),
    nn.AvgPool2d: (*_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool1d: ("output_size",), nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"), nn.Unflatten: ("dim", "unflattened_size"), nn.ChannelShuffle: ("groups",),
    nn.ZeroPad1d: ("padding",), nn.ZeroPad2d: ("padding",), Stretch: ("stride", "extra"),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), ("padding", "value")),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.Mish, nn.SELU), ("inplace",)),
    **dict.fromkeys((nn.Sigmoid, nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink), ()),
    **dict.fromkeys((nn.ELU, nn.CELU), ("alpha", "inplace")), **dict.fromkeys((nn.Hardshrink, nn.Softshrink), ("lambd",)),
    nn.LeakyReLU: ("negative_slope", "inplace"), nn.GELU: ("approximate",), nn.Hardtanh: ("min_val", "max_val", "inplace"),
    nn.Softplus: ("beta", "threshold"), nn.Threshold: ("threshold", "value", "inplace"), nn.Softmax: ("dim",),
    FakeQuantize: ("bits", "scale", "zero_point"),
}
_FLAGS = ("bias", "affine", "track_running_stats", "inplace", "return_indices", "ceil_mode", "count_include_pad")
_NUMBERS = ("value", "alpha", "lambd", "negative_slope", "min_val", "max_val", "beta", "threshold")
_WORDS = {"padding_mode": ("zeros", "reflect", "replicate", "circular"), "approximate": ("none", "tanh")}
_TUPLES = (*_POOL, "dilation", "output_size", "extra", "unflattened_size")
_LOWEST = {"start_dim": -64, "end_dim": -64, "dim": -64, "unflattened_size": -1,
           **dict.fromkeys(("padding", "extra", "in_features", "out_features"), 0)}         # others: 1


def options_of(module: nn.Module) -> dict:
    """What the layer was made with, less what its constructor takes by default. ValueError for what no layer would be made with."""
    options = {name: getattr(module, name) for name in LAYERS[type(module)]}
    if type(module) is FakeQuantize:
        if options["scale"].dtype != torch.float32 or options["zero_point"].dtype != torch.uint8:
            raise ValueError(f"its scale is {options['scale'].dtype}, and must be float32: quantize the network again")
        if not 0 < options["scale"].item() < math.inf:
            raise ValueError(f"its scale is {options['scale'].item()}, and must be a finite number above 0: quantize the network again")
        return options | {"scale": options["scale"].item(), "zero_point": int(options["zero_point"])}
    if "bias" in options:
        options["bias"] = module.bias is not None
    if "unflattened_size" in options:
        options["unflattened_size"] = tuple(options["unflattened_size"])
    for name, value in options.items():
        _check(type(module), name, list(value) if isinstance(value, tuple) else value)
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(module)).parameters.items()}
    several = {nn.Conv1d: 1, nn.Conv2d: 2}.get(type(module), 0)                             # whose constructors make tuples of numbers
    return {name: value for name, value in options.items()
            if value != defaults[name] and not (several and value == (defaults[name],) * several)}


def layer(kind: str, options: dict) -> nn.Module:
    """A layer without values: on the meta device a size costs nothing until it is compared with the file's."""
    made = next((layer for layer in LAYERS if layer.__name__ == kind), None)
    if made is None or not set(options) <= set(LAYERS[made]):
        raise ValueError(f"{kind!r} with {', '.join(options)} is no layer that a graph may hold")
    if made is FakeQuantize:
        fake = FakeQuantize(check_bits(options["bits"], 1, 8), 0.0, 1.0)
        fake.scale, fake.zero_point = torch.tensor(float(options["scale"])), torch.tensor(whole(options["zero_point"], 0, fake.top)).byte()
        if not 0 < fake.scale.item() < math.inf:
            raise ValueError(f"a scale is {options['scale']!r}")
        return fake
    start, end = options.get("start_dim", 1), options.get("end_dim", -1)
    if made is nn.Flatten and _is_whole(start) and _is_whole(end) and (start < 0) == (end < 0) and start > end:
        raise ValueError(f"start_dim is {start} and end_dim {end}, which comes before it")
    with torch.device("meta"):
        return made(**{name: _check(made, name, value) for name, value in options.items()})


def _check(made: type, name: str, value):
    """check_option, and as many numbers as the layer has dimensions."""
    pad = "Pad" in made.__name__
    if pad and name == "padding":
        if not isinstance(value, list) or not all(_is_whole(n) and -2**31 < n < 2**31 for n in value):
            raise ValueError(f"padding is {value!r}")
        value = tuple(value)
    elif made is Stretch:
        _need(name, value, isinstance(value, list))
    found = check_option(name, value) if not isinstance(value, tuple) else value
    if isinstance(found, tuple) and name != "unflattened_size":
        dims = int(made.__name__[-2]) if made.__name__[-2:] in ("1d", "2d", "3d") else 2
        _need(name, value, len(found) == dims * (1 + pad))
    return found


def _need(name: str, value, right: bool) -> None:
    if not right:
        raise ValueError(f"{name} is {value!r}")


def check_option(name: str, value):
    """An option as its constructor takes it; ValueError for what is none. Lists of JSON are tuples again."""
    numbers = tuple(value) if isinstance(value, list) else (value,)
    if name in _FLAGS:
        right = isinstance(value, bool)
    elif name in _WORDS:
        right = value in _WORDS[name]
    elif name in ("eps", "momentum"):
        right = value is None or _is_number(value) and value >= 0
    elif name in _NUMBERS:
        right = _is_number(value)
    elif name in ("divisor_override", "output_size", "dim") and value is None or name == "padding" and value in ("same", "valid"):
        right = True
    else:
        low = _LOWEST.get(name, 1)
        right = all(_is_whole(n) and low <= n < 2**31 or name == "output_size" and n is None for n in numbers)
        right = right and (not isinstance(value, list) or name in _TUPLES and 0 < len(numbers) < (3 if name != "unflattened_size" else 9))
    _need(name, value, right)
    return numbers if isinstance(value, list) else value


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= torch.finfo(torch.float64).max


def whole(value, low: int = 0, high: int = 2**63) -> int:
    if not _is_whole(value) or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value
