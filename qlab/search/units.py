"""Which part of a network is reconstructed at once: a layer, a residual unit, or a block of layers that the caller names.

    a layer          with the ReLU or ReLU6 that alone reads it                                  AdaRound, Nagel et al. 2020
    a block          a stretch of the network with one way in and one way out                    BRECQ, Li et al. 2021, section 3.2

The graph of a network (qlab.nets.graph) is cut wherever one value is all that the rest of the network reads. What lies between two
neighbouring cuts is a stretch. In a chain every stretch is one layer. A stretch of several layers has branches inside, between which no
cut can be: that is what is called a residual unit here, whatever the network's modules are named.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx
from torch.func import functional_call

from qlab.nets.graph import after, calls, kind
from qlab.nets.plain import memory_of

RESIDUAL = "residual"
Blocks = str | Iterable[Iterable[str]] | None


@dataclass(frozen=True)
class Unit:
    """Nodes of a graph that are computed from the value of one node before them, source; the last of them hands its value on.

    layers: the names of those whose weights are rounded here.
    """

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.layers)


def units(traced: fx.GraphModule, blocks: Blocks = None, skip: Iterable[str] = ()) -> list[Unit]:
    """The units of a network from graph.trace, in the order in which they run; each layer that is not in skip is in one of them.

    blocks: None, every layer by itself; "residual", every residual unit, and all other layers by themselves; or groups of layers' names,
    each the layers between two cuts, all of them: the rest by themselves. A layer that runs twice, or shares its weight with one before
    it, belongs to the first.
    Raises ValueError for a name that is no layer, a layer in two groups, and a group that leaves out a layer on its way.

    >>> from torch import nn
    >>> from qlab.nets.graph import trace
    >>> net = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> [unit.name for unit in units(net)], [unit.name for unit in units(net, [("0", "2")])]
    (['0', '2', '4'], ['0 + 2', '4'])
    """
    nodes = calls(traced, "conv", "linear")
    taken: set[int] = set()                                                                 # weights that an earlier unit has

    def unit(source: fx.Node, part: list[fx.Node]) -> Unit:
        own = []
        for node in part:
            memory = memory_of(traced.get_submodule(node.target).weight) if node in layers else None
            if memory is not None and memory not in taken and node.target not in skip:
                taken.add(memory)
                own.append(node.target)
        last = after(traced, part[-1])
        return Unit(source, (*part, *[last] * (last is not part[-1])), tuple(own))

    layers = set(nodes)
    begins = {part[0]: (source, part) for source, part in _blocks(traced, blocks)}
    inside = {node for _, part in begins.values() for node in part}
    found = []
    for node in traced.graph.nodes:
        if node in begins:
            found.append(unit(*begins[node]))
        elif node in layers and node not in inside:
            found.append(unit(node.args[0], [node]))
    return [part for part in found if part.layers]


def stretches(traced: fx.GraphModule) -> list[tuple[fx.Node, list[fx.Node]]]:
    """The nodes between neighbouring cuts, each with the node whose value they are computed from."""
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    place = {node: i for i, node in enumerate(nodes)}
    found, source, part, last_read = [], nodes[0], [], 0
    for i, node in enumerate(nodes):
        if i:
            part.append(node)
            if last_read <= i:  # of all before it, nothing is read any more: its value is all there is
                found.append((source, part))
                source, part = node, []
        if kind(traced, node) != "size":
            last_read = max([last_read, *(place.get(user, len(nodes)) for user in node.users if kind(traced, user) != "size")])
    return found


def _blocks(traced: fx.GraphModule, blocks: Blocks) -> list[tuple[fx.Node, list[fx.Node]]]:
    layers = {node: node.target for node in calls(traced, "conv", "linear")}
    if blocks is None:
        return []
    every = stretches(traced)
    if isinstance(blocks, str):
        if blocks != RESIDUAL:
            raise ValueError(f"blocks is {blocks!r}, and must be None, {RESIDUAL!r}, or groups of layers' names.")
        return [(source, part) for source, part in every if sum(node in layers for node in part) > 1]
    found, used = [], {}
    for group in blocks:
        names = (group,) if isinstance(group, str) else tuple(group)
        for name in names:
            if name not in layers.values():
                raise ValueError(f"blocks names {name!r}, and may name {', '.join(dict.fromkeys(layers.values()))}.")
            if name in used:
                raise ValueError(f"blocks names {name} twice, and a layer may be in one block.")
            used[name] = names
        at = [i for i, (_, part) in enumerate(every) if any(layers.get(node) in names for node in part)]
        if not at:
            raise ValueError("blocks holds an empty group, and each must name a layer at least.")
        part = [node for _, nodes in every[at[0]:at[-1] + 1] for node in nodes]
        if missing := [layers[node] for node in part if node in layers and layers[node] not in names]:
            raise ValueError(f"the block {', '.join(names)} has {', '.join(missing)} on its way: name it, too, or make two blocks of it.")
        found.append((every[at[0]][0], part))
    return found


def runner(traced: fx.GraphModule, unit: Unit) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """What the unit computes, from its layers' weights by name (those that are given; the others are the network's) and its input.

    Raises ValueError for a unit that reads a size of a value outside of it.

    >>> from torch import nn
    >>> from qlab.nets.graph import trace
    >>> net = trace(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()))
    >>> runner(net, units(net)[0])({"0": torch.tensor([[1.0, 0.0], [0.0, -1.0]])}, torch.ones(1, 2))
    tensor([[1., 0.]])
    """
    graph = fx.Graph()
    copies = {unit.source: graph.placeholder("x")}
    for node in unit.nodes:
        if outside := [n for n in node.all_input_nodes if n not in copies]:
            raise ValueError(f"{node.name} reads {outside[0].name}, from outside of the block {unit.name}: let the block end before it.")
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[unit.nodes[-1]])
    module = fx.GraphModule(traced, graph)

    def run(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, {f"{name}.weight": w for name, w in weights.items()}, (x,))

    return run
