"""An integer-only network as a file: safetensors with a checksum (qlab.quant.checked).

    fields       input, output, their grids, and the steps: names, grids, options
    tensors      weights int8, biases and multipliers int32, shifts int8; what two steps share is there once
"""

import math
from dataclasses import asdict, fields

import torch

from qlab import saving
from qlab.nets.integer import RUN, Grid, IntegerNetwork, Step
from qlab.nets.made import OPTIONS
from qlab.nets.stored import check_option, whole
from qlab.quant import checked

TENSORS = ("weight", "bias", "m", "n")


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
        "options": {name: tuple(value) if isinstance(value, list) else value for name, value in told["options"].items()},
    } | {what: tensors[key] for what, key in told["tensors"].items()}) for told in content["steps"])
    network = IntegerNetwork(steps, content["input"], content["output"], Grid(**content["grid_in"]), Grid(**content["grid_out"]))
    _check(network)
    return network


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
        terms = 2 if step.kind == "add" else 1
        if step.kind not in RUN or not isinstance(step.relu, bool) or not isinstance(step.name, str) or not isinstance(step.output, str):
            raise ValueError(f"step {step.name!r} of kind {step.kind!r} is none that a network has")
        if len(step.inputs) != terms or len(step.grids) != terms + 1 or not made.issuperset(step.inputs) or step.output in made:
            raise ValueError(f"step {step.name!r} has the inputs {step.inputs!r} and the output {step.output!r}")
        made.add(step.output)
        wanted = ("kernel_size", "stride") if step.kind == "mean" else OPTIONS.get(step.kind, ())
        if set(step.options) != set(wanted):
            raise ValueError(f"step {step.name!r} has the options {', '.join(step.options)}")
        for name, value in step.options.items():
            check_option(name, list(value) if isinstance(value, tuple) else value)
            if not isinstance(value, tuple) and (step.kind == "mean" or step.kind == "conv" and name in ("stride", "dilation")):
                raise ValueError(f"step {step.name!r} has {name} {value!r}, which is no pair")
        _check_tensors(step)
    if network.output not in made:
        raise ValueError(f"nothing makes the output {network.output!r}")
    refused = [_misfit(network, rank) for rank in range(2, 7)]  # the file does not say how many dimensions images have
    if all(refused):
        raise ValueError(next(filter(None, reversed(refused[:3]))))


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
    _need(0 < start <= end < len(x) and (start < end or len(x) == 2), f"start_dim {step.options['start_dim']} and end_dim "
          f"{step.options['end_dim']} of {len(x)} dimensions, the first of which is the images'")
    flat = x[start:end + 1]
    return (*x[:start], None if None in flat else math.prod(flat), *x[end + 1:])


def _added(step: Step, a: tuple, b: tuple) -> tuple:
    longest = max(len(a), len(b))
    a, b = ((1,) * (longest - len(x)) + x for x in (a, b))
    _need(all(None in (m, n) or 1 in (m, n) or m == n for m, n in zip(a, b)), f"{a} and {b}")
    return tuple(None if None in (m, n) else max(m, n) for m, n in zip(a, b))


SIZES = {"conv": _convolved, "linear": _multiplied, "mean": _pooled, "maxpool": _pooled, "flatten": _flattened, "add": _added,
         "relu": lambda step, x: x}


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)


def _check_tensors(step: Step) -> None:
    layer, rank = step.kind in ("conv", "linear"), {"conv": 4, "linear": 2}.get(step.kind, 0)
    if layer and (step.weight is None or step.weight.dim() != rank or step.weight.dtype != torch.int8):
        raise ValueError(f"step {step.name!r} has no int8 weight of {rank} dimensions")
    outs = {"mean": 1, "add": 3}.get(step.kind, 0) if not layer else len(step.weight)
    dtypes = {"bias": torch.int32 if layer else None, "m": torch.int32 if outs else None, "n": torch.int8 if outs else None}
    for what, dtype in dtypes.items():
        tensor = getattr(step, what)
        if (tensor is None) is not (dtype is None) or dtype and (tensor.dtype != dtype or tuple(tensor.shape) != (outs,)):
            raise ValueError(f"{what} of step {step.name!r} is not {dtype} of shape ({outs},)")
    if not layer and step.weight is not None or step.kind == "conv" and outs % step.options["groups"]:
        raise ValueError(f"the weight of step {step.name!r} does not fit")
    if layer and outs and step.weight[0].numel() > 2**30 // (128 * 256):
        raise ValueError(f"step {step.name!r} sums more products than int32 holds")
    if outs and not ((step.m == 0) | (step.m >= 2**30)).all() or outs and not ((step.n >= -31) & (step.n <= 30)).all():
        raise ValueError(f"a multiplier of step {step.name!r} is out of range")
