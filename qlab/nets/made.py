"""The steps that a network has become so far, and what the functions that add to them need to know."""

from dataclasses import replace

import torch
from torch import fx, nn

from qlab.nets.operations import kind
from qlab.nets.steps import Grid, Step, multiplier
from qlab.quant import QTensor

OPTIONS = {
    "conv": ("stride", "padding", "dilation", "groups"), "maxpool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "flatten": ("start_dim", "end_dim"), "stretch": ("stride", "extra"),
}


class Made:
    """The steps made so far, and what the functions below need to know of the network.

    A reshape of a reshape is one, and one that changes nothing is none: `real` says where a tensor's codes are.
    """

    def __init__(self, plain: fx.GraphModule, grids: dict[str, Grid], sizes: dict[fx.Node, tuple], tensors: dict[str, QTensor]):
        self.plain, self.grids, self.tensors, self.steps = plain, grids, tensors, []
        self.sizes = {node.name: size for node, size in sizes.items()}
        self.same, self.reshaped = {}, {}
        self.taken = {node.name for node in plain.graph.nodes}

    def fresh(self, name: str) -> str:
        """A name for a tensor that no node of the network makes: this one, unless it is taken."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def real(self, name: str) -> str:
        while name in self.same:
            name = self.same[name]
        return name

    def inputs(self, node: fx.Node) -> tuple[str, ...]:
        return tuple(self.real(n.name) for n in listed(node.args) if n.name in self.grids)

    def add(self, what: str, name: str, inputs: tuple[str, ...], output: str, grid: Grid | None = None,
            size: tuple | None = None, **fields) -> str:
        """One step. grid: None where it hands on the codes that it gets; size: where no node tells it."""
        grids = tuple(self.grids[i] for i in inputs)
        self.grids[output] = grids[0] if grid is None else grid
        if size is not None:
            self.sizes[output] = size
        self.steps.append(Step(what, name, inputs, output, (*grids, self.grids[output]), **fields))
        return output

    def reshape(self, name: str, source: str, output: str, size: tuple[int, ...]) -> str:
        source = self.real(source)
        source = self.reshaped.get(source, source)
        self.grids[output], self.sizes[output] = self.grids[source], size
        if self.sizes[source] == size:
            self.same[output] = source
            return source
        self.reshaped[output] = source
        if len(size) == 1 and len(self.sizes[source]) == 3:
            return self.add("flatten", name, (source,), output, options={"start_dim": 1, "end_dim": -1})
        return self.add("reshape", name, (source,), output, options={"shape": size})

    def row(self, name: str, source: str) -> str:
        """A one-dimensional map, (channels, length), as a map of one row."""
        channels, length = self.sizes[source]
        return self.reshape(name, source, self.fresh(f"{name}_row"), (channels, 1, length))

    def read(self, sink: str) -> tuple[Step, ...]:
        """All steps, but for the reshapes that nobody reads."""
        for step in reversed(list(self.steps)):
            if step.output in self.reshaped and step.output != sink and not any(step.output in other.inputs for other in self.steps):
                self.steps.remove(step)
        return tuple(self.steps)


def listed(args) -> list[fx.Node]:
    """The nodes among the arguments, in their order, as often as they are there."""
    return [n for a in args for n in (listed(a) if isinstance(a, (list, tuple)) else [a] if isinstance(a, fx.Node) else [])]


def options_of(module: nn.Module, what: str) -> dict:
    return {name: getattr(module, name) for name in OPTIONS.get(what, ())}


def multiplier_of(node: fx.Node, real) -> tuple[torch.Tensor, torch.Tensor]:
    """multiplier, with the node's name in what it says."""
    try:
        return multiplier(real)
    except ValueError as error:
        raise ValueError(f"{node.name} cannot be computed in integers: {error}") from None


def limited(plain: fx.GraphModule, last: fx.Node, grid: Grid) -> Grid:
    """The grid after a ReLU6 ends at the code of 6.0."""
    return replace(grid, high=min(grid.high, grid.zero_point + round(6 / grid.scale))) if kind(plain, last) == "relu6" else grid


def padding_of(module: nn.Module, node: fx.Node) -> tuple[int, ...]:
    if min(module.padding) < 0:
        raise ValueError(f"{node.target} pads by {tuple(module.padding)}, and may not cut off values.")
    return tuple(module.padding)
