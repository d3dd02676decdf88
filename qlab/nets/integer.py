"""Integer-only inference: int8 operands, 32-bit sums, and nothing but integers between the input's codes and the logits' codes.

    steps       what a network consists of here: one operation on codes each, with its arithmetic     (qlab.nets.steps)
    sums        how a layer adds its products as fast as float32, without rounding                     (qlab.nets.sums)
    rescale     multiplying by a real number: two roundings in integers, or one in float64             (qlab.nets.rescale)
    lowering    how a fake-quantized network becomes such steps                                        (qlab.nets.lowering)

Every number in between is an integer, as on a chip without floating point. Here a CPU's float32 and float64 may hold it, because their
kernels are the fast ones, where its bits suffice for every sum that can occur; elsewhere int32 and int64 do. The codes are the same.

This page is what a user meets: `convert` makes an IntegerNetwork, which encodes, runs, decodes, saves and loads.
Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2.
"""

from dataclasses import dataclass

import torch

from qlab.errors import first_line
from qlab.nets import lowering
from qlab.nets.ptq import Quantized
from qlab.nets.steps import ADD_SHIFT, RUN, Grid, Step, multiplier, multiply
from qlab.quant.layout import FLOATS, as_tensor

__all__ = ["ADD_SHIFT", "RUN", "Grid", "IntegerNetwork", "Step", "convert", "load", "multiplier", "multiply"]


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """The steps in the order in which they run. Calling it with images gives the logits' codes, int8 (batch, classes).

    input, output: names of tensors; grid_in, grid_out: their meaning. nbytes: weights, biases, multipliers, zero-points, scales.
    """

    steps: tuple[Step, ...]
    input: str
    output: str
    grid_in: Grid
    grid_out: Grid

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Float images of any precision to int8 codes: what a camera's pixels are to begin with.

        Raises TypeError for integers, ValueError for NaN or infinity, which have no code.
        """
        images = as_tensor(images, "the images")
        if images.dtype not in FLOATS:
            raise TypeError(f"the images are {images.dtype}, and must be floating point: run(codes) takes int8 codes.")
        if not images.isfinite().all():
            raise ValueError("the images hold NaN or infinity, and must be finite.")
        g = self.grid_in
        return (images.float() / g.scale).round_().add_(g.zero_point).clamp_(g.low, g.high).to(torch.int8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The logits' codes as float32 logits (or probabilities, where the network ends in a softmax)."""
        return (codes.to(torch.int32) - self.grid_out.zero_point) * torch.tensor(self.grid_out.scale)

    @torch.no_grad()
    def run(self, codes: torch.Tensor) -> torch.Tensor:
        """int8 codes of images to int8 codes of logits, in integers. TypeError for other codes, ValueError for a wrong shape."""
        codes = as_tensor(codes, "codes")
        if codes.dtype != torch.int8:
            raise TypeError(f"codes are {codes.dtype}, and must be int8: encode(images) gives them.")
        tensors, last = {self.input: codes}, {name: step for step in self.steps for name in step.inputs}
        for step in self.steps:
            try:
                tensors[step.output] = RUN[step.kind](step, *(tensors[name] for name in step.inputs))
            except (RuntimeError, IndexError) as error:
                said = first_line(error)
                raise ValueError(f"codes have the shape {tuple(codes.shape)}, which {step.name} cannot take ({said}).") from None
            for name in set(step.inputs):  # what nothing reads again makes room
                if last[name] is step and name != self.output:
                    del tensors[name]
        return tensors[self.output].contiguous()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.run(self.encode(images))

    @property
    def nbytes(self) -> int:
        tensors = [t for s in self.steps for t in (s.weight, s.bias, s.m, s.n, s.table) if t is not None]
        grids = 1 + sum(s.m is not None or s.table is not None for s in self.steps)
        return sum(t.numel() * t.element_size() for t in tensors) + 5 * grids               # a float32 scale and a byte of zero-point

    def save(self, path) -> None:
        """Write a safetensors file, whole or not at all. Raises OSError where the place cannot be written."""
        from qlab.nets import stored_integer
        stored_integer.save(path, self)


def load(path) -> IntegerNetwork:
    """What IntegerNetwork.save wrote, on the CPU: equal in every field, so that it computes the same codes.

    Raises OSError where the file cannot be read; ValueError, in one sentence, for a file that is damaged or foreign.

    >>> import tempfile
    >>> from torch import nn
    >>> from qlab.nets import ptq
    >>> network = convert(ptq.quantize(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(8, 1, 4, 4)), (1, 4, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     network.save(f"{folder}/net.safetensors")
    ...     again = load(f"{folder}/net.safetensors")
    >>> codes = network.encode(torch.rand(3, 1, 4, 4))
    >>> torch.equal(again.run(codes), network.run(codes))
    True
    """
    from qlab.nets import stored_integer
    return stored_integer.load(path)


def convert(quantized: Quantized, image_shape: tuple[int, ...] = (1, 28, 28)) -> IntegerNetwork:
    """The integer-only network of what ptq.quantize or qat.convert returned, for images of one shape.

    Raises ValueError for weights that are not symmetric int8 codes per tensor or per output channel (k-means and logarithmic codes
    are names, not numbers to multiply; groups would need a sum each), for a network whose activations were not calibrated, and, by name,
    for what the integers would lose: a forward hook, a weight that is no longer what its codes decode to.

    >>> from torch import nn
    >>> from qlab.nets import ptq
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> codes = convert(ptq.quantize(net, torch.rand(8, 1, 4, 4)), image_shape=(1, 4, 4))(torch.rand(3, 1, 4, 4))
    >>> codes.shape, codes.dtype
    (torch.Size([3, 2]), torch.int8)
    """
    return IntegerNetwork(*lowering.lower(quantized, image_shape))
