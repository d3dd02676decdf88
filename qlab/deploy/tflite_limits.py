"""What the runtimes of a .tflite file abort on, refuse, or compute otherwise than qlab.nets.integer: refused before a file is written.

A file that all four sets of kernels run (qlab.deploy.tflite) is the contract, so the narrowest of each kind counts:

    layer, mean   M = s_x s_w / s_y < 256                                         XNNPACK does not prepare a larger one
                  |sum| 2**n < 2**31, where M = m 2**(n - 31) and n > 0           the shift to the left wraps in all; here it saturates
                  s_w and s_x s_w float32 of full precision                       XNNPACK and the bias's scale
    sum           |s_a (q_a - z_a)| + |s_b (q_b - z_b)| < 2**15 s_y               LiteRT's fast kernels hold it in int16;
                                                                                  at 2 max(s_a, s_b) = 2**20 s_y all abort
                  s_a, s_b < 2**127, s_y < 2**108                                 2 s and 2**20 s are float32 there, and infinite: abort
    SOFTMAX       s > 2**-26, and less than 512 classes                           tflite-micro and the plain loops abort
    activations   codes of 8 bits, clamped at 127 or at the code of 6.0; s of full precision in float32
    product       |M (q_a - z_a) (q_b - z_b)| + |z_y| < 2**15                      LiteRT's fast kernels hold it in int16
    cat           |q - z| 2**n < 2**31                                            QUANTIZE's shift to the left wraps
    ReLU6         s > 6 / 2**30                                                   the code of 6.0 leaves int32
    memory        2 GiB for a file, and for a tensor. 16 MiB for tflite-micro's arena (a microcontroller has less): such a file is
                  written, for LiteRT runs it, and refused where tflite-micro is to run it

Sources: TensorFlow Lite's quantization_util.cc (QuantizeMultiplierSmallerThanOneExp takes multipliers between 0 and 1,
PreprocessSoftmaxScaling only above 1), XNNPACK's operators (requantization scale), and random networks run under each.
"""

import math

import numpy as np
import torch

from qlab.deploy.arena import Tensor, plan
from qlab.nets.integer import ADD_SHIFT, Grid, IntegerNetwork, Step, multiplier
from qlab.nets.softmax import FINEST, softmax_multiplier

ARENA = 16 << 20                                                                            # bytes
CLASSES = 512                                                                               # of 1.0 each: SOFTMAX shifts by 32 bits
WIDTHS = {2: 4}                                                                             # bytes a number of the schema's types: int32
NORMAL, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)                                # float32 of full precision
RANGE = f"float32 from {NORMAL:.2g} to {LARGEST:.2g}"


def check_grids(network: IntegerNetwork) -> None:
    """Raises ValueError for activations that no tensor of a file can be, or that two steps take for different numbers: it has one scale."""
    known = {network.input: network.grid_in}
    check_grid(network.input, network.grid_in)
    for step in network.steps:
        check_grid(step.output, step.grids[-1])
        for name, grid in zip(step.inputs, step.grids):
            if grid != known.get(name):
                raise ValueError(f"{step.name} reads {name} as {grid}, and it is {known.get(name)} where it is written.")
        if step.m is None and step.table is None and step.grids[0] != step.grids[-1]:
            raise ValueError(f"{step.name}, a {step.kind}, reads codes of {step.grids[0]} and writes {step.grids[-1]}, and must hand on "
                             "what it reads.")
        known[step.output] = step.grids[-1]
    if network.grid_out != known.get(network.output):
        raise ValueError(f"the network gives {network.output} as {network.grid_out}, and it is {known.get(network.output)} where it is "
                         "written.")


def check_grid(name: str, grid: Grid) -> None:
    """Raises ValueError for a grid that a file cannot hold."""
    if grid.low != -128:
        raise ValueError(f"{name} has codes from {grid.low} to {grid.high}, those of {(-grid.low).bit_length()} bits, and TensorFlow "
                         "Lite's go from -128 to 127: quantize activations to 8 bits.")
    if not NORMAL <= grid.scale <= LARGEST:
        raise ValueError(f"{name} has the scale {grid.scale:g}, and must have a {RANGE}.")
    if not -128 <= grid.zero_point <= 127:
        raise ValueError(f"{name} has the zero-point {grid.zero_point}, and must have one from -128 to 127.")
    if grid.high not in (127, code_of(6.0, grid)):
        raise ValueError(f"{name} has codes up to {grid.high}, and TensorFlow Lite clamps at 127 or, after a ReLU6, at the code of 6.0, "
                         f"here {code_of(6.0, grid)}.")


def code_of(value: float, grid: Grid) -> int:
    """The code at which TensorFlow Lite clamps, in float32 and away from zero at ties, as it does (kernel_util.cc)."""
    with np.errstate(over="ignore"):
        steps = min(float(np.float32(value) / np.float32(grid.scale)), 2.0**31)             # of the finest scales infinity
    return min(grid.zero_point + math.floor(steps + 0.5), 127)


def check_scales(step: Step, scale: np.ndarray) -> None:
    """scale: of a layer's or a mean's weights, float64 (out,). Raises ValueError for M, s_w or s_x s_w out of range."""
    into, out = step.grids
    real = scale * into.scale / out.scale
    if real.max() >= 2**8:
        raise ValueError(f"{step.name} multiplies its sums by {real.max():g}, and XNNPACK multiplies by less than 256: the codes that it "
                         "writes are too fine for those that it reads.")
    needed = np.concatenate([scale, scale * into.scale])
    if not (NORMAL <= needed.min() and needed.max() <= LARGEST):
        raise ValueError(f"{step.name} needs scales from {needed.min():.3g} to {needed.max():.3g} for its weights and its bias, and they "
                         f"must be {RANGE}.")


def check_total(step: Step, weight: np.ndarray, bias: np.ndarray, axis: int) -> None:
    """Raises ValueError where the largest sum of an output channel, shifted to the left where M > 1, would leave int32."""
    grid = step.grids[0]
    channels = np.moveaxis(weight, axis, 0)                                                 # one by one: 100 MB would be 800 as int64
    sums = np.array([np.abs(w.astype(np.int16)).sum(dtype=np.int64) for w in channels])
    largest = sums * _reach(grid) + np.abs(bias.astype(np.int64))
    shift = step.n.clamp(min=0).numpy()
    if (largest * 2.0**shift).max() >= 2**31:
        raise ValueError(f"{step.name} may reach the sum {largest.max():,}, shifts it to the left by {shift.max()} bits, and must stay "
                         "below 2**31.")


def check_sum(step: Step) -> None:
    """Raises ValueError for scales that the kernels of ADD abort on or compute something else from."""
    a, b, out = step.grids
    twice = 2 * max(a.scale, b.scale)
    if twice >= 2.0**128 or out.scale >= 2.0**108:
        raise ValueError(f"{step.name} has terms of the scales {a.scale:g} and {b.scale:g} and a result of {out.scale:g}, and the runtimes "
                         "take terms below 1.7e+38 and a result below 3.2e+32.")
    largest = sum(grid.scale * _reach(grid) for grid in (a, b)) / out.scale
    if largest + abs(out.zero_point) >= 2**15:
        raise ValueError(f"{step.name} may reach {largest:.3g} times the scale of its result, and LiteRT's kernels hold that in 16 bits: "
                         "its terms are too large for the codes that it writes.")
    _same_multipliers(step, [a.scale / twice, b.scale / twice, twice / (2**ADD_SHIFT * out.scale)])


def check_product(step: Step) -> None:
    """Raises ValueError for scales from which the kernels of MUL compute something else, or multipliers that are not theirs."""
    a, b, out = step.grids
    real = a.scale * b.scale / out.scale
    largest = _reach(a) * _reach(b) * real
    if largest + abs(out.zero_point) >= 2**15:
        raise ValueError(f"{step.name} may reach {largest:.3g} times the scale of its result, and LiteRT's kernels hold that in 16 bits: "
                         "its factors are too large for the codes that it writes.")
    _same_multipliers(step, [real])


def check_rescaling(step: Step) -> None:
    """Raises ValueError for scales from which QUANTIZE computes something else, or multipliers that are not its."""
    _same_multipliers(step, [grid.scale / step.grids[-1].scale for grid in step.grids[:-1]])
    for name, grid, n in zip(step.inputs, step.grids, step.n.tolist()):
        if _reach(grid) * 2.0 ** max(n, 0) >= 2**31:
            raise ValueError(f"{step.name} multiplies the codes of {name} by {grid.scale / step.grids[-1].scale:.3g}, and QUANTIZE shifts "
                             "them to the left in 32 bits: they are too large for the codes that it writes.")


def _reach(grid: Grid) -> int:
    """The largest distance of a code from the zero-point."""
    return max(grid.high - grid.zero_point, grid.zero_point - grid.low)


def _same_multipliers(step: Step, real: list[float]) -> None:
    m, n = multiplier(real)
    if not (torch.equal(m, step.m) and torch.equal(n, step.n)):
        raise ValueError(f"{step.name} has other multipliers than its scales give, and a .tflite file holds the scales alone.")


def check_six(step: Step) -> None:
    """Raises ValueError for a ReLU6 that clamps elsewhere than the runtimes."""
    six, grid = code_of(6.0, step.grids[0]), step.grids[0]
    if 6.0 / grid.scale >= 2**30:
        raise ValueError(f"{step.name} reads codes of the scale {grid.scale:g}, and RELU6 takes one above {6 * 2.0**-30:.2g}.")
    if step.options["high"] != six:
        raise ValueError(f"{step.name} clamps at the code {step.options['high']}, and TensorFlow Lite at that of 6.0, here {six}.")


def check_probabilities(step: Step, wanted: Grid) -> None:
    """Raises ValueError for a softmax of other multipliers than its scale gives, or other codes than SOFTMAX's."""
    if step.grids[-1] != wanted:
        raise ValueError(f"{step.name} gives probabilities as {step.grids[-1]}, and SOFTMAX as {wanted}.")
    m, n = softmax_multiplier(step.grids[0].scale)
    if (int(step.m), int(step.n)) != (m, n):
        raise ValueError(f"{step.name} has other multipliers than its scales give, and a .tflite file holds the scales alone.")


def check_logits(name: str, grid: Grid, classes: int) -> None:
    """Raises ValueError for logits that SOFTMAX does not take."""
    if grid.scale <= FINEST:
        raise ValueError(f"{name} has the scale {grid.scale:g}, and SOFTMAX takes logits of a scale above 2**-26.")
    if classes >= CLASSES:
        raise ValueError(f"{name} has {classes:,} classes, and SOFTMAX takes less than {CLASSES}: where as many are equally likely, "
                         "tflite-micro and LiteRT's plain loops abort.")


def check_numbers(name: str, shape, nbytes: int = 1) -> None:
    """nbytes: of a number. Raises ValueError for more than a tensor can hold."""
    if math.prod(shape) * nbytes >= 2**31:
        raise ValueError(f"{name} has the shape {tuple(shape)}, which is 2 GiB or more, and a tensor holds less.")


def check_size(graph) -> None:
    """graph: a tflite_graph.Graph. Raises ValueError for more than a file or one of its tensors can hold."""
    if sum(len(buffer.data) for buffer in graph.buffers[1:]) >= 2**31 - 2**24:
        raise ValueError("the network's weights have 2 GiB or more, and a .tflite file holds less.")
    for tensor in graph.tensors:
        check_numbers(tensor.name, tensor.shape, WIDTHS.get(tensor.type, 1))


def check_arena(path, model) -> None:
    """model: a tflite.Model, of a file that qlab wrote. Raises ValueError where tflite-micro's memory does not hold its activations.

    Its own structures come on top: where they alone are too much, it says so itself.
    """
    first, last, tensors = {}, {id(t): len(model.operators) for t in model.outputs}, {id(t): t for t in model.inputs}
    for at, operator in enumerate(model.operators):
        last |= {id(t): max(at, last.get(id(t), 0)) for t in operator.inputs}
        first |= {id(t): at for t in operator.outputs}
        tensors |= {id(t): t for t in operator.outputs}
    alive = []
    for i, t in tensors.items():
        nbytes = math.prod(t.shape) * (4 if t.dtype == "int32" else 1)
        alive.append(Tensor(str(i), -(-nbytes // 16) * 16, first.get(i, 0), last.get(i, first.get(i, 0))))
    if sum(t.size for t in alive) <= ARENA or (needed := plan(alive, 16)[1]) <= ARENA:
        return
    loads = [sum(t.size for t in alive if t.first <= at <= t.last) for at in range(len(model.operators))]
    name = model.operators[loads.index(max(loads))].outputs[0].name if loads else "the image"
    raise ValueError(f"{path} needs more memory than the {ARENA >> 20} MiB that tflite-micro is given here: at {name}, with what lives "
                     f"beside it, {needed:,} bytes. LiteRT runs it.")
