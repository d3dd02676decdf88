"""From the steps of an integer-only network to C: what each layer's constants are, and which kernel is called with them.

Weights are put in the order of the bytes that they meet (qlab.deploy.c_places) here, once: on the device nothing is rearranged for
them, and flattening is no work at all.
"""

import math
from dataclasses import dataclass

import torch

from qlab.deploy.c_moves import MOVES, Shape, too_many
from qlab.deploy.c_places import Place, in_order, last, plain, stored
from qlab.deploy.c_program import NONE, PATCH, Program, walk
from qlab.errors import first_line
from qlab.nets import integer
from qlab.nets.integer import IntegerNetwork, Step


def compile_steps(network: IntegerNetwork, image_shape: Shape) -> Program:
    """The program. Raises ValueError for a step that has no kernel, by the step's name."""
    shapes, program = _shapes(network, image_shape), Program()
    program.new_map(network.input, shapes[network.input])
    for step in network.steps:
        LOWER[step.kind](program, step, shapes[step.output])
    place = program.places[network.output]
    if place.root == network.input:
        raise ValueError("the network computes nothing: it has no layer, sum or pooling.")
    shape = program.stored[place.root]
    if not program.whole(place) or not place.at.flatten().equal(last((*shape[-1:], *shape[:-1])).flatten()):
        program.copy(network.output)                                                        # whoever reads the output knows one order
    return program


def _shapes(network: IntegerNetwork, image_shape: Shape) -> dict[str, Shape]:
    """The shape of every tensor for one image, torch's order, found by running one."""
    if not all(isinstance(n, int) and n > 0 for n in image_shape) or len(image_shape) not in (1, 2, 3):
        raise ValueError(f"image_shape is {image_shape}, and must be (channels, rows, columns), (channels, columns) or (values,), fixed "
                         "and positive: the arena is laid out for one shape.")
    tensors = {network.input: torch.zeros(1, *image_shape, dtype=torch.int8)}
    for step in network.steps:
        if step.kind not in LOWER:
            raise ValueError(f"{step.name} is a {step.kind}, and C has {', '.join(sorted(LOWER))}.")
        _keep_apart(step, tensors[step.inputs[0]].dim())
        try:
            tensors[step.output] = integer.RUN[step.kind](step, *(tensors[name] for name in step.inputs))
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(f"image_shape is {image_shape}, which {step.name} cannot take ({first_line(error)}).") from None
        shape = tuple(tensors[step.output].shape[1:])
        if not shape or 0 in shape:
            raise ValueError(f"image_shape is {image_shape}, and {step.name} then gives values of the shape {shape}: C takes one dimension "
                             "or more, each of one value or more.")
    return {name: tuple(t.shape[1:]) for name, t in tensors.items()}


def _keep_apart(step: Step, dims: int) -> None:
    """ValueError for a step that puts the values of several images together."""
    option = {"flatten": "start_dim", "slice": "dim", "cat": "dim", "permute": "dims"}.get(step.kind)
    if option and (step.options[option] % dims == 0 if option != "dims" else step.options[option][0] % dims):
        raise ValueError(f"{step.name} is a {step.kind} with {option} {step.options[option]}, and must leave the first dimension as it is: "
                         "C takes one image after the other.")


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling: (rows, columns) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, step: Step) -> "Window":
        o = step.options
        kernel = tuple(step.weight.shape[2:]) if step.weight is not None else _pair(o["kernel_size"])
        dilation, padding = _pair(o.get("dilation", 1)), o.get("padding", 0)
        if padding in ("valid", "same"):  # of an odd number the right side gets more; the kernels need the left one alone
            padding = tuple(d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel))
        return cls(kernel, _pair(o["stride"]), _pair(padding), dilation)

    def fields(self, into: Shape, out: Shape) -> list[str]:
        """Two lines of C: the maps' shapes in memory, and the window."""
        shapes = {f"in_{axis}": n for axis, n in zip("hwc", into)} | {f"out_{axis}": n for axis, n in zip("hwc", out)}
        steps = {"kernel": self.kernel, "stride": self.stride, "pad": self.padding, "dilation": self.dilation}
        window = {f"{name}_{axis}": n for name, pair in steps.items() for axis, n in zip("hw", pair)}
        return [", ".join(f".{name} = {n}" for name, n in part.items()) for part in (shapes, window)]

    def __str__(self):
        words = [f"{self.kernel[0]} x {self.kernel[1]}"]
        for name, pair, usual in (("stride", self.stride, 1), ("padding", self.padding, 0), ("dilation", self.dilation, 1)):
            if pair != (usual, usual):
                words.append(f"{name} {pair[0]}" if pair[0] == pair[1] else f"{name} {pair[0]} x {pair[1]}")
        return ", ".join(words)


def _map(program: Program, step: Step) -> Place:
    """The one input as a map, its bytes by rows, columns, channels."""
    shape = program.places[step.inputs[0]].shape
    if len(shape) != 3:
        raise ValueError(f"{step.name}, {step.kind}, gets values of the shape {shape}, and must get a map: (channels, rows, columns).")
    return program.as_last(step.inputs[0])


def _nested(window: Window, into: Shape, out: Shape) -> str:
    return ".window = {" + (",\n" + 15 * " ").join(window.fields(into, out)) + "}"


def _limits(step: Step) -> str:
    grid = step.grids[-1]
    low = max(grid.low, grid.zero_point) if step.relu else grid.low
    return f".out_zero = {grid.zero_point}, .low = {low}, .high = {grid.high}"


def _zeros(step: Step) -> str:
    if len(step.inputs) == 1:
        return f".in_zero = {step.grids[0].zero_point}"
    return f".a_zero = {step.grids[0].zero_point}, .b_zero = {step.grids[1].zero_point}"


def _constants(program: Program, step: Step, **values: torch.Tensor) -> str:
    prefix = program.prefix(step.name)
    return ", ".join(f".{part} = {program.constant(f'{prefix}_{part}', v.contiguous())}" for part, v in values.items())


def _weights(program: Program, step: Step, weight: torch.Tensor) -> str:
    channels, farthest = len(step.bias), max(127 - step.grids[0].zero_point, step.grids[0].zero_point + 128)
    largest = (farthest * step.weight.long().abs().flatten(1).sum(1) + step.bias.long().abs()).max()
    if largest > 2**31 - 1:
        raise ValueError(f"{step.name} may reach a sum of {largest}, and C's sums are int32.")
    return _constants(program, step, weight=weight.flatten(), bias=step.bias, m=step.m.expand(channels), n=step.n.expand(channels))


def _conv(program: Program, step: Step, shape: Shape) -> None:
    place, groups, window, out = _map(program, step), step.options["groups"], Window.of(step), stored(shape)
    into, values, products = stored(place.shape), step.weight[0].numel(), math.prod(shape) * step.weight[0].numel()
    about, relu = f"convolution {window}", ", ReLU" * step.relu
    if groups == into[2] == out[2] and groups > 1:
        kernel, about, tensors, patch = "depthwise", f"depthwise {about}", (place.root, step.output), 0
        weight = step.weight[:, 0].permute(1, 2, 0)                                         # (kernel rows, columns, channels)
    else:
        about += f", {groups} groups" if groups > 1 else ""
        patch = 0 if window.kernel == (1, 1) and window.padding == (0, 0) else values
        kernel, tensors = "convolution", (place.root, PATCH if patch else NONE, step.output)
        weight = step.weight.permute(0, 2, 3, 1)                                            # (out, kernel rows, columns, in)
    fields = [_nested(window, into, out), f".groups = {groups}, {_zeros(step)}, {_limits(step)}", _weights(program, step, weight)]
    program.layer(step.name, kernel, about + relu, "Layer", fields, tensors, into, out, products, patch)
    program.new_map(step.output, shape)


def _linear(program: Program, step: Step, shape: Shape) -> None:
    place, weight = program.places[step.inputs[0]], step.weight
    if len(shape) == 1 and program.whole(place):  # in whatever order the values lie, the weights can follow
        into, weight = program.stored[place.root], weight[:, place.at.argsort()]
    else:
        place = program.as_plain(step.inputs[0])
        into = place.shape
    rows = math.prod(shape[:-1])
    fields = [_nested(Window((1, 1)), (rows, 1, weight.shape[1]), (rows, 1, len(weight))),
              f".groups = 1, {_zeros(step)}, {_limits(step)}", _weights(program, step, weight)]
    about, values = "fully connected" + ", ReLU" * step.relu, (weight.shape[1],) if len(shape) == 1 else into
    program.layer(step.name, "convolution", about, "Layer", fields, (place.root, NONE, step.output), values, shape, rows * weight.numel())
    program.new(step.output, plain(shape), shape)


def _mean(program: Program, step: Step, shape: Shape) -> None:
    place, window, out = _map(program, step), Window.of(step), stored(shape)
    into = stored(place.shape)
    fields = [_nested(window, into, out), f"{_zeros(step)}, {_limits(step)}, .m = {step.m[0]}, .n = {step.n[0]}"]
    program.layer(step.name, "mean", f"mean {window}" + ", ReLU" * step.relu, "Mean", fields, (place.root, step.output), into, out)
    program.new_map(step.output, shape)


def _windows(program: Program, step: Step, shape: Shape) -> None:
    place, out = _map(program, step), stored(shape)
    into, ends = stored(place.shape), {what: torch.tensor(step.options[what], dtype=torch.int32).flatten() for what in ("rows", "columns")}
    sizes = f".in_w = {into[1]}, .in_c = {into[2]}, .out_h = {out[0]}, .out_w = {out[1]}, {_zeros(step)}, {_limits(step)}"
    fields = [sizes, _constants(program, step, **ends, m=step.m, n=step.n)]
    about = f"mean of {out[0]} x {out[1]} windows" + ", ReLU" * step.relu
    program.layer(step.name, "windows", about, "Windows", fields, (place.root, step.output), into, out)
    program.new_map(step.output, shape)


def _maxpool(program: Program, step: Step, shape: Shape) -> None:
    place, window, out = _map(program, step), Window.of(step), stored(shape)
    into = stored(place.shape)
    program.layer(step.name, "maxpool", f"maximum {window}", "Window", window.fields(into, out), (place.root, step.output), into, out)
    program.new_map(step.output, shape)


def _two(program: Program, step: Step, shape: Shape, what: str) -> tuple[Place, Place, str | None]:
    """The two inputs, and the loops that visit both in the order of the output; None where they lie in one order, and so does the
    output."""
    places = [program.places[name] for name in step.inputs]
    if len({len(place.shape) for place in places}) > 1:
        raise ValueError(f"{step.name} {what} values of the shapes {places[0].shape} and {places[1].shape}, and must get as many "
                         "dimensions of both.")
    a, b = places
    if a.at.equal(b.at) and program.whole(a) and program.whole(b):
        program.new(step.output, a.at, program.stored[a.root])
        return a, b, None
    for made in (program.places.get, program.as_last):
        a, b = (made(name) for name in step.inputs)
        walked = walk(*(in_order(place.at.expand(shape)) for place in (a, b)))
        if walked is not None:
            program.new_map(step.output, shape)
            return a, b, walked
    too_many(step)


def _add(program: Program, step: Step, shape: Shape) -> None:
    if step.m[:2].double().ldexp(step.n[:2].double() - 31).sum() * 255 * 2**integer.ADD_SHIFT >= 2**31:
        raise ValueError(f"{step.name} may reach a sum beyond 32 bits, and C's sums are int32.")
    a, b, walked = _two(program, step, shape, "adds")
    m, n = (", ".join(map(str, part.tolist())) for part in (step.m, step.n))
    count, rest = f".count = {math.prod(shape)}, ", f"{_zeros(step)}, {_limits(step)}"
    lines, about, out = [rest, f".m = {{{m}}}, .n = {{{n}}}"], "sum" + ", ReLU" * step.relu, program.stored[step.output]
    if walked is None:
        kernel, ctype, fields = "add", "Add", [count + lines[0], lines[1]]
    else:
        kernel, ctype, fields = "add_walk", "AddWalk", [walked, ".add = {" + ",\n            ".join(lines) + "}"]
    program.layer(step.name, kernel, about, ctype, fields, (a.root, b.root, step.output), program.stored[a.root], out)


def _mul(program: Program, step: Step, shape: Shape) -> None:
    a, b, walked = _two(program, step, shape, "multiplies")
    if walked is None:
        walked = walk(*[plain((math.prod(shape),))] * 2)
    fields = [walked, f"{_zeros(step)}, {_limits(step)}, .m = {step.m[0]}, .n = {step.n[0]}"]
    about, into, out = "product" + ", ReLU" * step.relu, program.stored[a.root], program.stored[step.output]
    program.layer(step.name, "mul", about, "Mul", fields, (a.root, b.root, step.output), into, out)


def _cat(program: Program, step: Step, shape: Shape) -> None:
    """One call for each input, which goes to its own part of the output."""
    dim, start, out = step.options["dim"] % (len(shape) + 1) - 1, 0, program.new_map(step.output, shape)
    for i, name in enumerate(step.inputs):
        size = program.places[name].shape[dim]
        part = in_order(out.at.narrow(dim, start, size))
        walked = walk(in_order(program.places[name].at), part) or walk(in_order(program.as_last(name).at), part) or too_many(step)
        place, start = program.places[name], start + size
        fields = [walked, f".in_zero = {step.grids[i].zero_point}, {_limits(step)}, .m = {step.m[i]}, .n = {step.n[i]}"]
        about = f"part {i + 1} of {len(step.inputs)} side by side"
        program.layer(step.name, "cat", about, "Cat", fields, (place.root, step.output), stored(place.shape), stored(shape))


def _same(program: Program, step: Step) -> tuple[str, str, Shape]:
    """The input's bytes, all of them, for what is done to each; how many; their shape. The output's lie in the same order."""
    place = program.places[step.inputs[0]]
    if not program.whole(place):
        place = program.as_last(step.inputs[0])
        place = place if program.whole(place) else program.copy(step.inputs[0])
    program.new(step.output, place.at, program.stored[place.root])
    return place.root, str(place.at.numel()), program.stored[place.root]


def _relu(program: Program, step: Step, shape: Shape) -> None:
    root, count, into = _same(program, step)
    program.layer(step.name, "relu", "ReLU", "", [count, str(step.grids[0].zero_point)], (root, step.output), into, into)


def _relu6(program: Program, step: Step, shape: Shape) -> None:
    root, count, into = _same(program, step)
    fields = [count, str(step.grids[0].zero_point), str(step.options["high"])]
    program.layer(step.name, "relu6", "ReLU6", "", fields, (root, step.output), into, into)


def _table(program: Program, step: Step, shape: Shape) -> None:
    root, count, into = _same(program, step)
    codes = program.constant(f"{program.prefix(step.name)}_table", step.table)
    program.layer(step.name, "table", "table", "", [count, codes], (root, step.output), into, into)


def _softmax(program: Program, step: Step, shape: Shape) -> None:
    place = program.as_plain(step.inputs[0])
    fields = [f".rows = {math.prod(shape[:-1])}, .classes = {shape[-1]}, .m = {step.m[0]}, .n = {step.n[0]}"]
    program.layer(step.name, "softmax", "softmax", "Softmax", fields, (place.root, step.output), shape, shape)
    program.new(step.output, place.at, shape)


LOWER = {
    "conv": _conv, "linear": _linear, "mean": _mean, "windows": _windows, "maxpool": _maxpool, "add": _add, "mul": _mul, "cat": _cat,
    "relu": _relu, "relu6": _relu6, "table": _table, "softmax": _softmax,
} | MOVES
