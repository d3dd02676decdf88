"""What of a network can be run layer by layer on this CPU, and at which widths: the kernels for a latency table (qlab.search.costs).

    32 bits    every layer as torch computes it, in float32
    8 bits     every layer in integers, int8 codes in and out, as the integer-only network runs it (qlab.nets.integer)
    4, 2 bits  linear layers, where ONNX Runtime multiplies packed weights of their size (qlab.matmul.int4)

No kernel here convolves with fewer than 8 bits. Each layer is run on what it is given when the network is given the images, so that a table
is of a batch of that size, with all memory in whatever cache it is in when one layer runs again and again.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from qlab.matmul import int4_onnxruntime
from qlab.matmul.int4_layer import Int4Linear
from qlab.nets import integer, ptq
from qlab.nets.calibration import batches_of
from qlab.nets.plain import LAYERS, plain_copy
from qlab.search.given import logits_of

PACKED = (2, 4)


@torch.no_grad()
def of(model: nn.Module, images: torch.Tensor) -> dict[str, dict[int, Callable[[], object]]]:
    """By layer and bits, functions without arguments that compute the layer for these images once. The model is not changed.

    model: batch norm folded (qlab.nets.ptq.fold_batch_norm). images: (n, ...), at most 128, what one call of the network is given, and what
    activations are calibrated on. A layer that is called twice is run as in its first call.
    Raises ValueError for a network that qlab.nets.integer.convert refuses, or with batch norm; more images.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> list(of(net, torch.rand(2, 1, 4, 4))["0"])
    [32, 8]
    """
    if any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules()):
        raise ValueError("the model holds batch norm, which a device folds into the layer before: call ptq.fold_batch_norm first.")
    images = torch.cat(batches_of(images))
    if len(images) > 128:
        raise ValueError(f"images are {len(images)}, and must be at most 128: a latency is of one batch.")
    model, inputs, hooks = plain_copy(model).eval(), {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            hooks.append(layer.register_forward_pre_hook(partial(_keep, inputs, name)))
    logits_of(model, images)
    for hook in hooks:
        hook.remove()
    integers, found = _integers(model, images), {}
    for name, x in inputs.items():
        layer = model.get_submodule(name)
        found[name] = {32: partial(_float32, layer, x)} | ({8: integers[name]} if name in integers else {})
        for bits in PACKED if isinstance(layer, nn.Linear) else ():
            if not int4_onnxruntime.why_not(bits, layer.in_features):
                packed = Int4Linear.from_float(layer, bits, group_size=None, backend="onnxruntime")
                found[name][bits] = partial(packed, x)
    return found


def _keep(inputs: dict, name: str, _layer: nn.Module, args: tuple) -> None:
    inputs.setdefault(name, args[0].clone())


def _integers(model: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Each layer of the integer-only network, as it is given the images."""
    quantized = ptq.quantize(model, images)
    network = integer.convert(quantized, tuple(images.shape[1:]))
    layers = {node.name: node.target for node in quantized.model.graph.nodes if node.op == "call_module"}
    tensors, found = {network.input: network.encode(images)}, {}
    for step in network.steps:
        run = partial(integer.RUN[step.kind], step, *(tensors[name] for name in step.inputs))
        tensors[step.output] = run()
        if step.kind in ("conv", "linear"):
            found.setdefault(layers.get(step.name, step.name), run)
    return found


@torch.no_grad()
def _float32(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x)
