"""Layers written as others that compute the same, so that one set of rules quantizes both.

    ConvTranspose2d         Stretch, then Conv2d: zeros between the values, then a convolution with the kernel turned by 180 degrees and its
                            channels exchanged, padded by dilation (kernel - 1) - padding       (Dumoulin and Visin 2016, section 4.3)
    a batch norm alone      a depthwise convolution with 1 x 1 filters of ones before it, into which it folds
    a constant              what forward reads itself and adds to a map or multiplies it by, a number for each channel: a depthwise
                            convolution with 1 x 1 filters; one number: that number
    a subclass              of a layer, which computes what the layer does: that layer
"""

import operator

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from qlab.nets.operations import ADD, DIV, LAYER_KINDS, MUL, SUB, Stretch

# What a subclass may define, though its base class does too, and compute the same.
_HARMLESS = {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__constants__", "__static_attributes__",
             "__firstlineno__", "__dict__", "__weakref__", "__repr__", "reset_parameters", "extra_repr"}


def without_transposed(model: nn.Module) -> nn.Module:
    """The model, its transposed convolutions replaced in place. ValueError, by name, for one that crops more than it pads.

    >>> up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
    >>> x = torch.rand(1, 2, 4, 4)
    >>> torch.allclose(without_transposed(up)(x), up(x), atol=1e-6)
    True
    """
    made = {module: _as_convolution(module, name) for name, module in model.named_modules() if type(module) is nn.ConvTranspose2d}
    return _replaced(model, made)


def without_subclasses(model: nn.Module) -> nn.Module:
    """The model, in which a layer of a subclass that changes nothing but how it is made or shown is of its base class, in place.

    >>> class Conv3x3(nn.Conv2d):
    ...     def __init__(self, *channels):
    ...         super().__init__(*channels, kernel_size=3, padding=1)
    >>> type(without_subclasses(nn.Sequential(Conv3x3(1, 4)))[0]).__name__
    'Conv2d'
    """
    known = (*LAYER_KINDS, nn.ConvTranspose2d)
    for module in model.modules():
        bases = type(module).__mro__
        base = next((place for place, found in enumerate(bases) if found in known), 0)
        own = {name: value for made in bases[:base] for name, value in vars(made).items() if name not in _HARMLESS}
        if base and not any(hasattr(bases[base], name) or isinstance(value, property) for name, value in own.items()):
            module.__class__ = bases[base]
    return model


def with_constants(traced: fx.GraphModule) -> None:
    """Change sums, differences, products and quotients of a tensor and a constant in the graph as told above; others stay as they are."""
    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method") or node.target not in (*ADD, *SUB, *MUL, *DIV) or len(node.args) != 2:
            continue
        read = [isinstance(a, fx.Node) and a.op == "get_attr" for a in node.args]
        if node.kwargs or sum(read) != 1 or not isinstance(node.args[1 - read.index(True)], fx.Node):
            continue
        x, constant = node.args[1 - read.index(True)], operator.attrgetter(node.args[read.index(True)].target)(traced)
        if constant.numel() == 1 and constant.dim() <= 1:
            node.op, node.args = "call_function", tuple(constant.item() if known else a for known, a in zip(read, node.args))
            node.target = next(calls[0] for calls in (ADD, SUB, MUL, DIV) if node.target in calls)
        elif (layer := _as_filters(constant.detach(), node.target, read[0])) is not None:
            name = free_name(traced, f"{node.name}_layer")
            traced.add_submodule(name, layer)
            with traced.graph.inserting_after(node):
                made = traced.graph.call_module(name, (x,))
            node.replace_all_uses_with(made)
            traced.graph.erase_node(node)
    for node in reversed(list(traced.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            traced.graph.erase_node(node)
    still = {node.target for node in traced.graph.nodes}
    for name in [name for name in (*traced._parameters, *traced._buffers) if name not in still]:  # the graph's own: no file holds them
        delattr(traced, name)


def _as_filters(constant: torch.Tensor, target, first: bool) -> nn.Module | None:
    """(1, channels, 1, 1) or (channels, 1, 1) with a map, (1, channels, 1) with a line; None for others. first: it is the first operand."""
    layer, shape = (nn.Conv1d, (-1, 1, 1)), constant.shape
    if len(shape) in (3, 4) and shape[-2:] == (1, 1) and shape[:-3] in ((), (1,)) and shape[-3] > 1:
        layer = nn.Conv2d, (-1, 1, 1, 1)
    elif not (len(shape) == 3 and shape[0] == shape[2] == 1 and shape[1] > 1):
        return None
    if target in DIV and first or not constant.is_floating_point():
        return None
    values, one = constant.flatten(), torch.ones_like(constant.flatten())
    weight, bias = ((values, 0 * one) if target in MUL else (1 / values, 0 * one) if target in DIV else (one, values) if target in ADD else
                    (-one, values) if first else (one, -values))
    conv = skip_init(layer[0], len(values), len(values), 1, groups=len(values)).to(constant)
    conv.weight, conv.bias = nn.Parameter(weight.view(layer[1]).clone()), nn.Parameter(bias.clone())
    return conv


def free_name(traced: fx.GraphModule, name: str) -> str:
    """The name, or one like it if the network has it already."""
    while hasattr(traced, name):
        name += "_"
    return name


def give_convolutions(model: nn.Module, norms: dict[str, bool]) -> nn.Module:
    """The model, a convolution put before each batch norm named; True: what it reads is (n, channels), without a map."""
    made = {}
    for name, flat in norms.items():
        bn = model.get_submodule(name)
        made_of, width = (nn.Conv2d if type(bn) is nn.BatchNorm2d else nn.Conv1d), bn.num_features
        like = next((t for t in (bn.weight, bn.running_var) if t is not None), torch.zeros(()))
        conv = skip_init(made_of, width, width, 1, groups=width, bias=False).to(like)        # draws no random number
        nn.init.ones_(conv.weight)
        layers = [nn.Unflatten(1, (width, 1)), conv, bn, nn.Flatten()] if flat else [conv, bn]
        made[bn] = nn.Sequential(*layers).train(bn.training)
    return _replaced(model, made)


def _replaced(model: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    if model in made:
        return made[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):                                   # under all of its names, if it has several
            if child in made:
                setattr(parent, name, made[child])
    return model


@torch.no_grad()
def _as_convolution(layer: nn.ConvTranspose2d, name: str) -> nn.Sequential:
    into, out, groups = layer.in_channels, layer.out_channels, layer.groups
    reach = tuple(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size))
    padding = tuple(r - p for r, p in zip(reach, layer.padding))
    if min(padding) < 0:
        raise ValueError(f"{name or 'the network'}, a ConvTranspose2d with padding {layer.padding}, cuts off more than its kernel reaches, "
                         f"and may have at most {reach}.")
    options = {"padding": padding, "dilation": layer.dilation, "groups": groups, "bias": layer.bias is not None}
    conv = skip_init(nn.Conv2d, into, out, layer.kernel_size, **options).to(layer.weight)
    weight = layer.weight.unflatten(0, (groups, into // groups)).transpose(1, 2).flatten(0, 1).flip(-2, -1)
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return nn.Sequential(Stretch(layer.stride, layer.output_padding), conv).train(layer.training)
