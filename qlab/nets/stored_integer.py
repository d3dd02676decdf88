"""An integer-only network as a file: safetensors with a checksum (qlab.quant.checked).

    fields       input, output, their grids, and the steps: names, grids, options
    tensors      weights int8, biases and multipliers int32, shifts int8; what two steps share is there once
"""

import math
from dataclasses import asdict, fields

import torch

from qlab import saving
from qlab.nets.integer import OPTIONS, RUN, Grid, IntegerNetwork, Step
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
        if not isinstance(grid.scale, (int, float)) or not 0 < grid.scale < math.inf or low > high:
            raise ValueError(f"the grid {grid} has no codes")
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
