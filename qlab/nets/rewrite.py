"""Layers written as others that compute the same, so that one set of rules quantizes both.

    ConvTranspose2d         Stretch, then Conv2d: zeros between the values, then a convolution with the kernel turned by 180 degrees and its
                            channels exchanged, padded by dilation (kernel - 1) - padding       (Dumoulin and Visin 2016, section 4.3)
    a batch norm alone      a depthwise convolution with 1 x 1 filters of ones before it, into which it folds
"""

import torch
from torch import nn

from qlab.nets.operations import Stretch


def without_transposed(model: nn.Module) -> nn.Module:
    """The model, its transposed convolutions replaced in place. ValueError, by name, for one that crops more than it pads.

    >>> up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
    >>> x = torch.rand(1, 2, 4, 4)
    >>> torch.allclose(without_transposed(up)(x), up(x), atol=1e-6)
    True
    """
    made = {module: _as_convolution(module, name) for name, module in model.named_modules() if type(module) is nn.ConvTranspose2d}
    return _replaced(model, made)


def give_convolutions(model: nn.Module, norms: dict[str, bool]) -> nn.Module:
    """The model, a convolution put before each batch norm named; True: what it reads is (n, channels), without a map."""
    made = {}
    for name, flat in norms.items():
        bn = model.get_submodule(name)
        made_of, width = (nn.Conv2d if type(bn) is nn.BatchNorm2d else nn.Conv1d), bn.num_features
        like = next((t for t in (bn.weight, bn.running_var) if t is not None), torch.zeros(()))
        conv = made_of(width, width, 1, groups=width, bias=False).to(like)
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
    conv = nn.Conv2d(into, out, layer.kernel_size, padding=padding, dilation=layer.dilation, groups=groups, bias=layer.bias is not None)
    conv = conv.to(layer.weight)
    weight = layer.weight.unflatten(0, (groups, into // groups)).transpose(1, 2).flatten(0, 1).flip(-2, -1)
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return nn.Sequential(Stretch(layer.stride, layer.output_padding), conv).train(layer.training)
