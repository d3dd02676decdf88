"""What becomes of a network in C: its layers, each a call of a kernel, their constants, and the tensors that the calls hand on."""

import math
import re
from dataclasses import dataclass, field

import torch

from qlab.deploy.c_places import Place, in_order, last, loops, plain, stored

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
    """layers: in their order; constants: arrays by C name; stored: of each tensor that has bytes of its own, the shape in memory;
    places: how each of the network's tensors is stored, by its name."""

    layers: list[Layer] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    stored: dict[str, tuple[int, ...]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

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

    def new(self, root: str, at: torch.Tensor, shape: tuple[int, ...], name: str | None = None) -> Place:
        """Bytes of their own for a tensor. root, name: of the bytes and of the tensor, if they differ; shape: in memory."""
        self.stored[root] = shape
        self.places[name or root] = place = Place(root, at)
        return place

    def new_map(self, name: str, shape: tuple[int, ...]) -> Place:
        """Bytes of its own for a tensor of torch's shape, the first dimension last."""
        return self.new(name, last(shape), stored(shape))

    def layer(self, name: str, kernel: str, about: str, ctype: str, fields: list[str], tensors: tuple[str, ...], into: tuple[int, ...],
              out: tuple[int, ...], products: int = 0, patch: int = 0) -> None:
        """Note the layer: a struct of the C type, which the kernel gets before its tensors; for "" the fields are arguments themselves.
        into, out: shapes in memory."""
        prefix = self.prefix(name)
        weight = self.constants.get(f"{prefix}_weight")                                     # none where it is stored under another name
        body = ",\n    ".join(fields)
        struct = f"static const {ctype} {prefix}_layer = {{\n    {body},\n}};" if ctype else ""
        arguments = ([f"&{prefix}_layer"] if ctype else fields) + [f"{{{i}}}" for i in range(len(tensors))]
        call = f"{kernel}({', '.join(arguments)});"
        self.layers.append(Layer(name, kernel, about, into, out, products, 0 if weight is None else len(weight), prefix, struct, call,
                                 tensors, patch))

    # Bytes in another order

    def whole(self, place: Place) -> bool:
        """Whether the tensor is all of the bytes that it shares, in whichever order: what is done to each number can be done to them."""
        return place.at.numel() == math.prod(self.stored[place.root])

    def as_last(self, name: str) -> Place:
        """The tensor with its first dimension last, copied if it is stored otherwise."""
        place = self.places[name]
        return place if place.at.equal(last(place.shape)) else self.copy(name)

    def as_plain(self, name: str) -> Place:
        """The tensor in torch's own order, copied if it is stored otherwise."""
        place = self.places[name]
        if place.at.equal(plain(place.shape)):
            return place
        return self._copied(name, place.at.flatten(), plain(place.shape), place.shape)

    def copy(self, name: str) -> Place:
        """Bytes of its own for the tensor, its first dimension last."""
        place = self.places[name]
        if loops(in_order(place.at)) is None:
            place = self.as_plain(name)                                                     # which loops can visit in any order
        return self._copied(name, in_order(place.at), last(place.shape), stored(place.shape))

    def _copied(self, name: str, addresses: torch.Tensor, at: torch.Tensor, shape: tuple[int, ...]) -> Place:
        root, place = f"{name} in order", self.places[name]
        while root in self.stored:
            root += "_"
        walked = walk(addresses, plain((len(addresses),)))
        self.move(name, "copy in another order", place.root, root, walked, self.stored[place.root], shape)
        return self.new(root, at, shape, name)

    def move(self, name: str, about: str, root: str, to: str, walked: str, into: tuple, out: tuple, fill: int | None = None) -> None:
        """A call that copies bytes; fill: what the others are."""
        rest = "" if fill is None else f",\n    .bytes = {math.prod(out)}, .fill = {fill}"
        self.layer(name, "move", about, "Move", [walked + rest], (root, to), into, out)


def walk(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """The loops that visit these addresses of two tensors together, as fields of a struct; None where `loops` knows none."""
    found = loops(a, b)
    if found is None:
        return None
    times = [n for n, _ in found] or [min(len(a), 1)]
    first = ", ".join(f".{name}_first = {int(t[0]) if len(t) else 0}" for name, t in (("a", a), ("b", b)))
    parts = {"times": times, "a": [by[0] for _, by in found] or [0], "b": [by[1] for _, by in found] or [0]}
    arrays = ", ".join(f".{name} = {{{', '.join(map(str, values))}}}" for name, values in parts.items())
    return f".walk = {{.loops = {len(times)}, {first}, {arrays}}}"
