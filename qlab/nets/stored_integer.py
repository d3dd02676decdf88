"""An integer-only network as a file: safetensors with a checksum (qlab.quant.checked).

    fields       input, output, their grids, and the steps: names, grids, options
    tensors      weights and tables int8, biases and multipliers int32, shifts int8; what two steps share is there once
"""

import math
from dataclasses import asdict, fields

import torch

from qlab import saving
from qlab.nets.integer import RUN, Grid, IntegerNetwork, Step
from qlab.nets.softmax import CLASSES
from qlab.nets.stored_layers import check_option, whole
from qlab.quant import checked

TENSORS = ("weight", "bias", "m", "n", "table")
OPTIONS = {  # what a step of each kind is told; a kind that is not here is told nothing
    "conv": ("stride", "padding", "dilation", "groups"), "mean": ("kernel_size", "stride"), "windows": ("rows", "columns"),
    "maxpool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"), "flatten": ("start_dim", "end_dim"), "cat": ("dim",),
    "relu6": ("high",), "reshape": ("shape",), "permute": ("dims",), "slice": ("dim", "start", "stop", "step"),
    "pad": ("padding", "code"), "stretch": ("stride", "extra"),
}
FUSED = ("conv", "linear", "mean", "windows", "add", "mul")                                 # kinds in which a ReLU may be computed


def save(path, network: IntegerNetwork) -> None:
    """Write the file, whole or not at all. Raises OSError where the place cannot be written, ValueError for a network that cannot run."""
    _check(network)
    tensors, known, steps = {}, {}, []
    for i, step in enumerate(network.steps):
        kept = {}
        for what in TENSORS:
            if (tensor := getattr(step, what)) is not None:
                if id(tensor) not in known:
                    known[id(tensor)] = f"{i}.{what}"
                    tensors[known[id(tensor)]] = tensor
                kept[what] = known[id(tensor)]
        steps.append({f.name: getattr(step, f.name) for f in fields(Step) if f.name not in (*TENSORS, "grids")}
                     | {"grids": [asdict(grid) for grid in step.grids], "tensors": kept})
    content = {"input": network.input, "output": network.output, "grid_in": asdict(network.grid_in), "grid_out": asdict(network.grid_out),
               "steps": steps}
    saving.write({path: checked.content("IntegerNetwork", content, tensors)})


def load(path) -> IntegerNetwork:
    """What save wrote, equal in every field, on the CPU. Raises OSError where the file cannot be read; ValueError, in one sentence, for one
    that is damaged or foreign."""
    return checked.load(path, "IntegerNetwork", _restored)


def _restored(content: dict, tensors: dict) -> IntegerNetwork:
    steps = tuple(Step(**{name: value for name, value in told.items() if name != "tensors"} | {
        "inputs": tuple(told["inputs"]), "grids": tuple(Grid(**grid) for grid in told["grids"]),
        "options": {name: _tuples(value) for name, value in told["options"].items()},
    } | {what: tensors[key] for what, key in told["tensors"].items()}) for told in content["steps"])
    network = IntegerNetwork(steps, content["input"], content["output"], Grid(**content["grid_in"]), Grid(**content["grid_out"]))
    _check(network)
    return network


def _tuples(value):
    """Lists of JSON, within each other too, are tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check(network: IntegerNetwork) -> None:
    """ValueError for a network that cannot run: an unknown operation, a tensor that nothing makes, a shape or a number out of its range."""
    if not isinstance(network.input, str):
        raise ValueError(f"the input {network.input!r} is no name")
    made = {network.input}
    for grid in (network.grid_in, network.grid_out, *(grid for step in network.steps for grid in step.grids)):
        low, high = whole(grid.low, -128, 127), whole(grid.high, -128, 127)
        if not isinstance(grid.scale, float) or not 0 < torch.tensor(grid.scale, dtype=torch.float32) < math.inf or low > high:
            raise ValueError(f"a grid without a float32 scale above 0, or with its ends out of order, has no codes: {grid}")
        whole(grid.zero_point, -128, 127)
    for step in network.steps:
        if step.kind not in RUN or not isinstance(step.relu, bool) or not isinstance(step.name, str) or not isinstance(step.output, str):
            raise ValueError(f"step {step.name!r} of kind {step.kind!r} is none that a network has")
        terms = {"add": 2, "mul": 2, "cat": max(1, len(step.inputs))}.get(step.kind, 1)
        if len(step.inputs) != terms or len(step.grids) != terms + 1 or not made.issuperset(step.inputs) or step.output in made:
            raise ValueError(f"step {step.name!r} has the inputs {step.inputs!r} and the output {step.output!r}")
        if step.relu and step.kind not in FUSED:
            raise ValueError(f"step {step.name!r}, {step.kind}, has a ReLU, which is computed with {', '.join(FUSED)} alone")
        made.add(step.output)
        if set(step.options) != set(OPTIONS.get(step.kind, ())):
            raise ValueError(f"step {step.name!r} has the options {', '.join(step.options)}")
        for name, value in step.options.items():
            if step.kind in RIGHT:
                if not RIGHT[step.kind](name, value):
                    raise ValueError(f"step {step.name!r} has {name} {value!r}")
                continue
            check_option(name, list(value) if isinstance(value, tuple) else value)
            if not isinstance(value, tuple) and (step.kind == "mean" or step.kind == "conv" and name in ("stride", "dilation")):
                raise ValueError(f"step {step.name!r} has {name} {value!r}, which is no pair")
        _check_tensors(step)
    if network.output not in made:
        raise ValueError(f"nothing makes the output {network.output!r}")
    refused = [_misfit(network, rank) for rank in range(2, 7)]  # the file does not say how many dimensions images have
    if all(refused):
        raise ValueError(next(filter(None, reversed(refused[:3]))))


def _whole(value, low: int = 0, high: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _wholes(value, low: int = 0, count: int | None = None) -> bool:
    """Whether it is a tuple of whole numbers, so many of them."""
    return isinstance(value, tuple) and count in (None, len(value)) and all(_whole(n, low) for n in value)


RIGHT = {  # whether an option of a kind is one; what torch's layers have too, check_option checks
    "windows": lambda name, value: isinstance(value, tuple) and len(value) > 0 and all(_wholes(ends, 0, 2) and ends[0] < ends[1]
                                                                                          for ends in value),
    "cat": lambda name, value: _whole(value, -64, 63), "relu6": lambda name, value: _whole(value, -128, 127),
    "reshape": lambda name, value: _wholes(value, 1),
    "permute": lambda name, value: _wholes(value) and sorted(value) == list(range(len(value))) and value[:1] == (0,),
    "slice": lambda name, value: _whole(value, {"dim": -64, "step": 1}.get(name, 0)),
    "pad": lambda name, value: _whole(value, -128, 127) if name == "code" else _wholes(value, -2**31) and len(value) % 2 == 0,
    "stretch": lambda name, value: _wholes(value, 1 if name == "stride" else 0, 2),
}


def _misfit(network: IntegerNetwork, rank: int) -> str:
    """Why no images of that many dimensions can run through the steps, or "". A size that depends on the images' is None."""
    sizes = {network.input: (None,) * rank}
    for step in network.steps:
        given = [sizes[name] for name in step.inputs]
        try:
            sizes[step.output] = SIZES[step.kind](step, *given)
        except ValueError as error:
            return f"step {step.name!r}, {step.kind}, cannot take what it is given: {error}"
    return ""


def _convolved(step: Step, x: tuple) -> tuple:
    _need(len(x) == 4, f"{len(x)} dimensions instead of 4")
    _need(x[1] in (None, step.weight.shape[1] * step.options["groups"]), f"{x[1]} channels")
    _need(step.options["padding"] != "same" or step.options["stride"] == (1, 1), "padding 'same' has no stride")
    return (x[0], len(step.weight), None, None)


def _multiplied(step: Step, x: tuple) -> tuple:
    _need(x[-1] in (None, step.weight.shape[1]) and len(x) > 1, f"{x[-1]} features")
    return (*x[:-1], len(step.weight))


def _pooled(step: Step, x: tuple) -> tuple:
    _need(len(x) == 4 or len(x) == 3 and step.kind == "maxpool", f"{len(x)} dimensions instead of 4")
    if step.kind == "maxpool":
        options = (step.options[name] for name in ("kernel_size", "padding", "dilation"))
        kernel, padding, dilation = (value if isinstance(value, tuple) else (value, value) for value in options)
        _need(all(2 * p <= (k - 1) * d + 1 for k, p, d in zip(kernel, padding, dilation)), f"padding {padding} of a window of {kernel}")
    return (*x[:-2], None, None)


def _flattened(step: Step, x: tuple) -> tuple:
    start, end = (at + len(x) if at < 0 else at for at in (step.options["start_dim"], step.options["end_dim"]))
    _need(0 < start <= end < len(x), f"start_dim {step.options['start_dim']} and end_dim "
          f"{step.options['end_dim']} of {len(x)} dimensions, the first of which is the images'")
    flat = x[start:end + 1]
    return (*x[:start], None if None in flat else math.prod(flat), *x[end + 1:])


def _added(step: Step, a: tuple, b: tuple) -> tuple:
    longest = max(len(a), len(b))
    a, b = ((1,) * (longest - len(x)) + x for x in (a, b))
    _need(all(None in (m, n) or 1 in (m, n) or m == n for m, n in zip(a, b)), f"{a} and {b}")
    return tuple(None if None in (m, n) else max(m, n) for m, n in zip(a, b))


def _averaged(step: Step, x: tuple) -> tuple:
    _need(len(x) > 2, f"{len(x)} dimensions instead of 3 or more")
    for ends, size in zip((step.options["rows"], step.options["columns"]), x[-2:]):
        _need(size is None or max(stop for _, stop in ends) <= size, f"{size} values, less than a window's end")
    return (*x[:-2], len(step.options["rows"]), len(step.options["columns"]))


def _joined(step: Step, *inputs: tuple) -> tuple:
    dims = len(inputs[0])
    dim = _dimension(step, dims)
    for x in inputs[1:]:
        _need(len(x) == dims and all(i == dim or None in (m, n) or m == n for i, (m, n) in enumerate(zip(x, inputs[0]))),
              f"{x} beside {inputs[0]}")
    sizes = [x[dim] for x in inputs]
    return (*inputs[0][:dim], None if None in sizes else sum(sizes), *inputs[0][dim + 1:])


def _dimension(step: Step, dims: int) -> int:
    dim = step.options["dim"]
    _need(-dims < dim < dims and dim % dims > 0, f"dim {dim} of {dims} dimensions, the first of which is the images'")
    return dim % dims


def _reshaped(step: Step, x: tuple) -> tuple:
    shape = step.options["shape"]
    _need(None in x[1:] or math.prod(x[1:]) == math.prod(shape), f"{x[1:]} to be {shape}")
    return (x[0], *shape)


def _permuted(step: Step, x: tuple) -> tuple:
    _need(len(x) == len(step.options["dims"]), f"{len(x)} dimensions")
    return tuple(x[dim] for dim in step.options["dims"])


def _sliced(step: Step, x: tuple) -> tuple:
    dim, part = _dimension(step, len(x)), slice(*(step.options[name] for name in ("start", "stop", "step")))
    size = None if x[dim] is None else len(range(*part.indices(x[dim])))
    _need(size != 0 and part.start < part.stop, f"a part from {part.start} to {part.stop} of {x[dim]}, in which there is nothing")
    return (*x[:dim], size, *x[dim + 1:])


def _padded(step: Step, x: tuple) -> tuple:
    around = step.options["padding"]
    _need(len(around) < 2 * len(x), f"{len(x)} dimensions, the first of which is the images'")
    more = (0,) * (len(x) - len(around) // 2) + tuple(map(sum, reversed(tuple(zip(around[::2], around[1::2])))))
    sizes = tuple(None if n is None else n + far for n, far in zip(x, more))
    _need(all(n is None or n > 0 for n in sizes[1:]), f"{x}, of which it leaves nothing")
    return sizes


def _stretched(step: Step, x: tuple) -> tuple:
    _need(len(x) > 2, f"{len(x)} dimensions instead of 3 or more")
    sizes = zip(x[-2:], step.options["stride"], step.options["extra"])
    return (*x[:-2], *(None if n is None else (n - 1) * stride + 1 + more for n, stride, more in sizes))


def _shared(step: Step, x: tuple) -> tuple:
    _need(len(x) > 1 and (x[-1] is None or x[-1] <= CLASSES), f"{x[-1]} classes, more than {CLASSES}")
    return x


SIZES = {
    "conv": _convolved, "linear": _multiplied, "mean": _pooled, "maxpool": _pooled, "flatten": _flattened, "add": _added, "mul": _added,
    "windows": _averaged, "cat": _joined, "reshape": _reshaped, "permute": _permuted, "slice": _sliced, "pad": _padded,
    "stretch": _stretched, "softmax": _shared, **dict.fromkeys(("relu", "relu6", "table"), lambda step, x: x),
}


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)


def _check_tensors(step: Step) -> None:
    layer, rank = step.kind in ("conv", "linear"), {"conv": 4, "linear": 2}.get(step.kind, 0)
    if layer and (step.weight is None or step.weight.dim() != rank or step.weight.dtype != torch.int8):
        raise ValueError(f"step {step.name!r} has no int8 weight of {rank} dimensions")
    options = step.options
    outs = {"mean": 1, "add": 3, "mul": 1, "softmax": 1, "cat": len(step.inputs),
            "windows": len(options.get("rows", ())) * len(options.get("columns", ()))}.get(step.kind, 0) if not layer else len(step.weight)
    dtypes = {"bias": torch.int32 if layer else None, "m": torch.int32 if outs else None, "n": torch.int8 if outs else None}
    dtypes["table"] = torch.int8 if step.kind == "table" else None
    for what, dtype in dtypes.items():
        tensor, shape = getattr(step, what), (256 if what == "table" else outs,)
        if (tensor is None) is not (dtype is None) or dtype and (tensor.dtype != dtype or tuple(tensor.shape) != shape):
            raise ValueError(f"{what} of step {step.name!r} is not {dtype} of shape {shape}")
    if not layer and step.weight is not None or step.kind == "conv" and outs % step.options["groups"]:
        raise ValueError(f"the weight of step {step.name!r} does not fit")
    if layer and outs and step.weight[0].numel() > 2**30 // (128 * 256):
        raise ValueError(f"step {step.name!r} sums more products than int32 holds")
    low, high = (0, 31) if step.kind == "softmax" else (-31, 30)
    zero = (step.m == 0) & (step.kind != "softmax") if outs else None
    if outs and not (zero | (step.m >= 2**30)).all() or outs and not ((step.n >= low) & (step.n <= high)).all():
        raise ValueError(f"a multiplier of step {step.name!r} is out of range")
