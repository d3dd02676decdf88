"""The steps of an integer-only network as operators of TensorFlow Lite: what `qlab.deploy.tflite` writes.

Both sides compute Jacob et al. 2018: int8 codes with a scale and a zero-point a tensor, int8 weights with a scale an output channel,
an int32 bias whose scale is s_x s_w, the same multiplier M = s_x s_w / s_y of 31 bits. A file holds no M but the three scales, as
float32: M has 31 bits and a float32 has 24, so the s_w that gives M back, bit for bit, is the float32 next to M s_y / s_x.

What differs is the order of the numbers, and these operations:
    layout      PyTorch orders images (channel, row, column), TensorFlow Lite (row, column, channel). Weights are turned here, and so
                are the columns of a linear layer that reads a flattened map. What else needs another order: qlab.deploy.tflite_graph.
    padding     TensorFlow Lite knows VALID (none) and SAME, which at stride 2 may pad one side only, where PyTorch pads both. What is
                neither becomes an operator PAD of its own, filled with the zero-point.
    a mean      is a DEPTHWISE_CONV_2D with weights of 1 and the scale 1 / values: a sum and one M, as here. AVERAGE_POOL_2D cannot
                change the scale; MEAN does, but divides m by the number of values without shifting it up again, so that its
                roundings fall elsewhere than qlab's (3 of 100 codes of the depthwise net were one apart).
    windows     of different sizes: such a mean for each block of the map in which they have one size, stride and M; where there are
                many blocks, one CONV_2D over all places at once, a filter of ones and zeros and an M for each window.
    groups      A CONV_2D whose filters are less deep than its input; all four sets of kernels run it. DEPTHWISE_CONV_2D where each channel
                is a group of its own.
    ReLU, ReLU6 are clamps of the operator before them, at the codes of 0.0 and of 6.0.
    a table     is a GATHER from its 256 codes, at code + 128 as an int32. LOGISTIC, HARD_SWISH and their like round elsewhere in each set.
    cat         needs one scale: a QUANTIZE for each input whose scale is another, then CONCATENATION.
    stretch     PADV2 puts the zeros behind each value, between two RESHAPEs. TRANSPOSE_CONV would do it with the layer behind it, and holds
                the number of images in a constant.
"""

import torch

from qlab.deploy import tflite_limits as limits
from qlab.deploy.tflite_graph import Graph
from qlab.deploy.tflite_layers import LAYERS
from qlab.deploy.tflite_moves import MOVES, PROBABILITY, softmax_of
from qlab.nets.integer import RUN, IntegerNetwork, Step

__all__ = ["PROBABILITY", "lower"]
WRITE = LAYERS | MOVES


def lower(network: IntegerNetwork, image_shape: tuple[int, ...], softmax: bool, schema) -> tuple[Graph, int, int]:
    """The graph of a network, and its input's and its output's index. Raises ValueError, naming the step, for what it does not cover."""
    limits.check_grids(network)
    graph = Graph(schema, map_shapes(network, image_shape))
    source = graph.activation(network.input, network.grid_in)
    for step in network.steps:
        WRITE[step.kind](graph, step)
    sink = graph.read(network.output)
    if softmax:
        sink = softmax_of(graph, sink, network.output, network.grid_out, "probabilities")
    limits.check_size(graph)
    return graph, source, sink


def map_shapes(network: IntegerNetwork, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one image. Raises ValueError for a shape that is not fixed or that the network cannot take."""
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in image_shape):
        raise ValueError(f"image_shape is {image_shape}, and must be fixed: a microcontroller's memory is planned before it runs.")
    limits.check_numbers(network.input, image_shape)
    tensors = {network.input: torch.zeros(1, *image_shape, dtype=torch.int8)}
    for step in network.steps:
        if step.kind not in WRITE:
            raise ValueError(f"{step.name} is a {step.kind}, and a .tflite file is written of {', '.join(WRITE)}.")
        try:
            found = _zeros(step, [tensors[name] for name in step.inputs])
        except (RuntimeError, IndexError):
            raise ValueError(f"image_shape is {tuple(image_shape)}, which {step.name} cannot take.") from None
        if found.dim() < 1 or len(found) != 1 or not found.numel():
            raise ValueError(f"{step.name} gives {tuple(found.shape)} for one image, and must leave the batch as it is and some values.")
        limits.check_numbers(step.output, found.shape[1:])
        tensors[step.output] = found
    return {name: tuple(codes.shape[1:]) for name, codes in tensors.items()}


def _zeros(step: Step, inputs: list[torch.Tensor]) -> torch.Tensor:
    """What a step gives, as far as its shape goes: no layer of a large network is computed for that."""
    if step.kind == "conv":
        into, weight = inputs[0].to("meta", torch.float32), step.weight.to("meta", torch.float32)
        return inputs[0].new_zeros(torch.nn.functional.conv2d(into, weight, **step.options).shape)
    if step.kind == "linear":
        return inputs[0].new_zeros((inputs[0].to("meta", torch.float32) @ step.weight.to("meta", torch.float32).T).shape)
    return RUN[step.kind](step, *inputs)
