"""From the steps of an integer-only network to C: what each layer's constants are, and which kernel is called with them.

Maps are stored by rows, columns, channels, so that a pixel's channels lie side by side and a convolution is a dot product of two runs
of bytes; torch's are channels, rows, columns. Weights are put in that order here, once: on the device nothing is rearranged, and
flattening is no work at all.
"""

import math
import re
from dataclasses import dataclass, field

import torch

from qlab.nets import integer
from qlab.nets.integer import IntegerNetwork, Step

PATCH, NONE = "(patch)", "(none)"                                                           # a call's scratch memory, or no such


@dataclass(frozen=True)
class Layer:
    """One call of a kernel. shape_in, shape_out: (rows, columns, channels), for a ReLU or a sum of flattened maps too, or (values,);
    products: multiplications for one image; weight_bytes: what it stores, 0 where it shares another layer's weights.

    prefix: of the layer's C names; struct: the layer's constants as C text, "" for none; call: the call with {0}, {1}, .. for the
    tensors; patch: bytes of scratch memory.
    """

    name: str
    kernel: str
    about: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    products: int
    weight_bytes: int
    prefix: str
    struct: str
    call: str
    tensors: tuple[str, ...]
    patch: int = 0


def identifier(name: str) -> str:
    """A layer's name as the beginning of a C name.

    >>> identifier("_3"), identifier("block1.conv")
    ('layer_3', 'block1_conv')
    """
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name[0].isalpha() else f"layer{'' if name[0] == '_' else '_'}{name}"


@dataclass(frozen=True, eq=False)
class Program:
    """What becomes of a network: its layers, and their arrays of constants by C name."""

    layers: list[Layer] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def prefix(self, name: str) -> str:
        """A C name for a layer that no other has."""
        prefix = identifier(name)
        while prefix in {layer.prefix for layer in self.layers}:
            prefix += "_"
        return prefix

    def constant(self, name: str, values: torch.Tensor) -> str:
        """The name under which the values are stored: an earlier one where they are the same, as with shared weights."""
        for known, other in self.constants.items():
            if values.dtype == other.dtype and values.equal(other):
                return known
        self.constants[name] = values
        return name


@dataclass(frozen=True, eq=False)
class Place:
    """How a tensor is stored. shape: (rows, columns, channels) or (values,); root: the tensor whose bytes it shares; map: of a flattened
    map, what its shape was."""

    shape: tuple[int, ...]
    root: str
    map: tuple[int, ...] | None = None

    def as_map(self) -> "Place":
        """The same bytes before they were flattened: their order is the map's still."""
        return Place(self.map or self.shape, self.root)

    def __str__(self):
        return " x ".join(str(n) for n in self.shape)


def compile_steps(network: IntegerNetwork, image_shape: tuple[int, ...]) -> tuple[Program, dict[str, Place]]:
    """The program, and how each tensor is stored. Raises ValueError for a step that has no kernel, by the step's name."""
    shapes = _shapes(network, image_shape)
    program, places = Program(), {network.input: Place(_stored(network.input, shapes[network.input]), network.input)}
    for step in network.steps:
        if step.kind not in LOWER:
            raise ValueError(f"{step.name} is a {step.kind}, and C has {', '.join(sorted(LOWER))}.")
        inputs = [places[name] for name in step.inputs]
        if step.kind == "flatten":
            places[step.output] = _flattened(step, inputs[0])
            continue
        if len({place.map for place in inputs}) > 1:
            raise ValueError(f"{step.name} adds values that were flattened from different maps: add the maps, then flatten.")
        flat = inputs[0].map if step.kind in ("add", "relu") else None
        places[step.output] = Place(_stored(step.name, shapes[step.output]), step.output, flat)
        LOWER[step.kind](program, step, inputs, places[step.output])
    if places[network.output].root == network.input:
        raise ValueError("the network computes nothing: it has no layer, sum or pooling.")
    return program, places


def _shapes(network: IntegerNetwork, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one image, torch's order, found by running one."""
    if not all(isinstance(n, int) and n > 0 for n in image_shape) or len(image_shape) not in (1, 3):
        raise ValueError(f"image_shape is {image_shape}, and must be (channels, rows, columns) or (values,), fixed and positive: the arena "
                         "is laid out for one shape.")
    tensors = {network.input: torch.zeros(1, *image_shape, dtype=torch.int8)}
    for step in network.steps:
        if step.kind not in integer.RUN:
            continue                                                                        # refused by name later
        try:
            tensors[step.output] = integer.RUN[step.kind](step, *(tensors[name] for name in step.inputs))
        except (RuntimeError, IndexError, KeyError) as error:
            raise ValueError(f"image_shape is {image_shape}, which {step.name} cannot take ({str(error).splitlines()[0]}).") from None
    return {name: tuple(t.shape[1:]) for name, t in tensors.items()}


def _stored(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (1, 3):
        raise ValueError(f"the values of {name} have the shape {shape}, and C takes (channels, rows, columns) or (values,).")
    return shape if len(shape) == 1 else (shape[1], shape[2], shape[0])


def _flattened(step: Step, place: Place) -> Place:
    dims, (rows, columns, channels) = len(place.shape), place.shape if len(place.shape) == 3 else (1, 1, 1)
    if step.options["start_dim"] != 1 or step.options["end_dim"] not in (-1, dims):
        raise ValueError(f"{step.name} flattens dimensions {step.options['start_dim']} to {step.options['end_dim']}, and must flatten all "
                         "but the batch: 1 to -1.")
    moved = rows * columns > 1 and channels > 1                                             # else both orders are the same
    return Place((math.prod(place.shape),), place.root, place.shape if moved else place.map)


# One function a kind: its constants, its struct, its call


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling: (rows, columns) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, step: Step) -> "Window":
        o = step.options
        kernel = tuple(step.weight.shape[2:]) if step.weight is not None else _pair(o["kernel_size"])
        dilation, padding = _pair(o.get("dilation", 1)), o.get("padding", 0)
        if padding in ("valid", "same"):  # of an odd number the right side gets more; the kernels need the left one alone
            padding = tuple(d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel))
        return cls(kernel, _pair(o["stride"]), _pair(padding), dilation)

    def fields(self, into: Place, out: Place) -> list[str]:
        """Two lines of C: the maps' shapes, and the window."""
        shapes = {f"in_{axis}": n for axis, n in zip("hwc", into.shape)} | {f"out_{axis}": n for axis, n in zip("hwc", out.shape)}
        steps = {"kernel": self.kernel, "stride": self.stride, "pad": self.padding, "dilation": self.dilation}
        window = {f"{name}_{axis}": n for name, pair in steps.items() for axis, n in zip("hw", pair)}
        return [", ".join(f".{name} = {n}" for name, n in part.items()) for part in (shapes, window)]

    def __str__(self):
        words = [f"{self.kernel[0]} x {self.kernel[1]}"]
        for name, pair, plain in (("stride", self.stride, 1), ("padding", self.padding, 0), ("dilation", self.dilation, 1)):
            if pair != (plain, plain):
                words.append(f"{name} {pair[0]}" if pair[0] == pair[1] else f"{name} {pair[0]} x {pair[1]}")
        return ", ".join(words)


def _nested(window: Window, into: Place, out: Place) -> str:
    return ".window = {" + (",\n" + 15 * " ").join(window.fields(into, out)) + "}"


def _limits(step: Step) -> str:
    grid = step.grids[-1]
    low = max(grid.low, grid.zero_point) if step.relu else grid.low
    return f".out_zero = {grid.zero_point}, .low = {low}, .high = {grid.high}"


def _layer(program: Program, step: Step, kernel: str, about: str, into: Place, out: Place, ctype: str, fields: list[str],
           tensors: tuple[str, ...], products: int = 0, patch: int = 0) -> None:
    """Note the layer: a struct of the C type, which the kernel gets before its tensors; for "" the fields are arguments themselves."""
    about += ", ReLU" * step.relu
    prefix = program.prefix(step.name)
    weight = program.constants.get(f"{prefix}_weight")                                      # none where it is stored under another name
    body = ",\n    ".join(fields)
    struct = f"static const {ctype} {prefix}_layer = {{\n    {body},\n}};" if ctype else ""
    arguments = ([f"&{prefix}_layer"] if ctype else fields) + [f"{{{i}}}" for i in range(len(tensors))]
    call = f"{kernel}({', '.join(arguments)});"
    program.layers.append(Layer(step.name, kernel, about, into.shape, out.shape, products, 0 if weight is None else len(weight), prefix,
                                struct, call, tensors, patch))


def _weights(program: Program, step: Step, weight: torch.Tensor) -> str:
    prefix, channels = program.prefix(step.name), len(step.bias)
    parts = {"weight": weight.flatten(), "bias": step.bias, "m": step.m.expand(channels), "n": step.n.expand(channels)}
    return ", ".join(f".{part} = {program.constant(f'{prefix}_{part}', values.contiguous())}" for part, values in parts.items())


def _conv(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    into, groups, window = inputs[0], step.options["groups"], Window.of(step)
    values, products = step.weight[0].numel(), math.prod(out.shape) * step.weight[0].numel()
    if groups == into.shape[2] == out.shape[2] and groups > 1:
        kernel, about, tensors, patch = "depthwise", f"depthwise convolution {window}", (into.root, out.root), 0
        weight = step.weight[:, 0].permute(1, 2, 0)                                         # (kernel rows, columns, channels)
    else:
        about = f"convolution {window}" + (f", {groups} groups" if groups > 1 else "")
        patch = 0 if window.kernel == (1, 1) and window.padding == (0, 0) else values
        kernel, tensors = "convolution", (into.root, PATCH if patch else NONE, out.root)
        weight = step.weight.permute(0, 2, 3, 1)                                            # (out, kernel rows, columns, in)
    fields = [_nested(window, into, out), f".groups = {groups}, .in_zero = {step.grids[0].zero_point}, {_limits(step)}",
              _weights(program, step, weight)]
    _layer(program, step, kernel, about, into, out, "Layer", fields, tensors, products, patch)


def _linear(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    into, weight = inputs[0], step.weight
    if len(into.shape) != 1:
        raise ValueError(f"{step.name} is fully connected and gets a map of {into}, and must get a vector: put a Flatten before it.")
    if into.map is not None:
        rows, columns, channels = into.map
        weight = weight.view(-1, channels, rows, columns).permute(0, 2, 3, 1)
    one = Window((1, 1), (1, 1), (0, 0), (1, 1))
    fields = [_nested(one, Place((1, 1, *into.shape), ""), Place((1, 1, *out.shape), "")),
              f".groups = 1, .in_zero = {step.grids[0].zero_point}, {_limits(step)}", _weights(program, step, weight)]
    tensors = (into.root, NONE, out.root)
    _layer(program, step, "convolution", "fully connected", into, out, "Layer", fields, tensors, weight.numel())


def _mean(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    into, window = inputs[0], Window.of(step)
    fields = [_nested(window, into, out), f".in_zero = {step.grids[0].zero_point}, {_limits(step)}, .m = {step.m[0]}, .n = {step.n[0]}"]
    _layer(program, step, "mean", f"mean {window}", into, out, "Mean", fields, (into.root, out.root))


def _maxpool(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    into, window = inputs[0], Window.of(step)
    _layer(program, step, "maxpool", f"maximum {window}", into, out, "Window", window.fields(into, out), (into.root, out.root))


def _add(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    a, b = inputs
    if a.shape != b.shape:
        raise ValueError(f"{step.name} adds maps of {a} and {b}, and must add maps of one shape.")
    zeros = f".a_zero = {step.grids[0].zero_point}, .b_zero = {step.grids[1].zero_point}"
    m, n = (", ".join(map(str, part.tolist())) for part in (step.m, step.n))
    fields = [f".count = {math.prod(out.shape)}, {zeros}, {_limits(step)}", f".m = {{{m}}}, .n = {{{n}}}"]
    _layer(program, step, "add", "sum", a.as_map(), out.as_map(), "Add", fields, (a.root, b.root, out.root))


def _relu(program: Program, step: Step, inputs: list[Place], out: Place) -> None:
    fields = [str(math.prod(out.shape)), str(step.grids[0].zero_point)]
    _layer(program, step, "relu", "ReLU", inputs[0].as_map(), out.as_map(), "", fields, (inputs[0].root, out.root))


LOWER = {"conv": _conv, "linear": _linear, "mean": _mean, "maxpool": _maxpool, "add": _add, "relu": _relu, "flatten": None}
