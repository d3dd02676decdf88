"""A number for each layer at each width: what its rounding costs in accuracy, in bytes, in operations, in milliseconds.

    table[layer, bits]                    one entry
    table(allocation)                     sum over the layers of table[layer, allocation[layer]]

Whatever chooses bits (qlab.search.allocate) reads such tables, wherever their numbers come from. An allocation is a dictionary, from the
name of a layer to its bits.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch

from qlab.quant.layout import as_float, as_tensor, check_bits

WIDEST = 32


@dataclass(frozen=True, eq=False)
class Table:
    """layers: names, (layers,). widths: bits from 1 to 32, ascending. values: float64 (layers, widths). errors: the standard errors of
    values that were sampled, or None. forwards, backwards: how often all calibration images went through the network for it.

    Raises ValueError for layers or widths that are missing or there twice, widths that are no bits, another shape, NaN or infinity.

    >>> bytes_of = Table.from_rows({"conv": {2: 90, 8: 324}, "fc": {2: 360, 8: 1320}})
    >>> bytes_of["fc", 2], bytes_of({"conv": 8, "fc": 2})
    (360.0, 684.0)
    >>> print(bytes_of)
          2 bits  8 bits
    conv      90     324
    fc       360    1320
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    values: torch.Tensor
    errors: torch.Tensor | None = None
    forwards: int = 0
    backwards: int = 0

    def __post_init__(self):
        put = object.__setattr__
        put(self, "layers", tuple(self.layers))
        put(self, "widths", tuple(check_bits(bits, 1, WIDEST) for bits in self.widths))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers are {', '.join(self.layers) or 'none'}, and must be names, each once, at least one.")
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths are {self.widths}, and must be bits in ascending order, each once, at least one.")
        for name in ("values", "errors"):
            given = getattr(self, name)
            if given is None and name == "errors":
                continue
            numbers = as_float(as_tensor(given, name, torch.float64), name).cpu()
            if numbers.shape != (len(self.layers), len(self.widths)):
                raise ValueError(f"{name} have the shape {tuple(numbers.shape)}, and must have ({len(self.layers)}, {len(self.widths)}): a "
                                 "row for each layer, a column for each width.")
            if not numbers.isfinite().all():
                i, j = (~numbers.isfinite()).nonzero()[0].tolist()
                raise ValueError(f"{name} hold {numbers[i, j].item()} for {self.layers[i] or 'the network'} at {self.widths[j]} bits, and "
                                 "must be finite everywhere.")
            put(self, name, numbers)

    @classmethod
    def from_rows(cls, rows: Mapping[str, Mapping[int, float]]) -> "Table":
        """The table of a dictionary from layer to a dictionary from bits to number. Raises ValueError where rows have different widths."""
        widths = {tuple(sorted(row)) for row in rows.values()}
        if len(widths) > 1:
            raise ValueError(f"rows have the widths {' and '.join(map(str, sorted(widths)))}, and must all have the same.")
        order = next(iter(widths), ())
        return cls(tuple(rows), order, [[row[bits] for bits in order] for row in rows.values()])

    def __getitem__(self, place: tuple[str, int]) -> float:
        """The value of table[layer, bits]. Raises KeyError for what is not there."""
        layer, bits = place
        if layer not in self.layers or bits not in self.widths:
            raise KeyError(f"there is no {layer!r} at {bits} bits: layers {', '.join(self.layers)}; widths {self.widths}")
        return self.values[self.layers.index(layer), self.widths.index(bits)].item()

    def __call__(self, allocation: Mapping[str, int]) -> float:
        """The sum of an allocation. Raises ValueError for one that misses a layer, names another, or has a width that is not there."""
        if set(allocation) != set(self.layers):
            missing, other = sorted(set(self.layers) - set(allocation)), sorted(set(allocation) - set(self.layers))
            raise ValueError(f"the allocation {'misses ' + ', '.join(missing) if missing else 'names ' + ', '.join(other)}, and must give "
                             f"bits to {', '.join(self.layers)}.")
        if wrong := {name: bits for name, bits in allocation.items() if bits not in self.widths}:
            name, bits = next(iter(wrong.items()))
            raise ValueError(f"the allocation has {bits!r} bits for {name}, and may have {', '.join(map(str, self.widths))}.")
        return sum(self[name, bits] for name, bits in allocation.items())

    def __str__(self) -> str:
        cells = [["", *(f"{bits} bits" for bits in self.widths)]]
        cells += [[name, *(f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}" for value in row)]
                  for name, row in zip(self.layers, self.values.tolist())]
        wide = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
        return "\n".join("  ".join([row[0].ljust(wide[0]), *(cell.rjust(n) for cell, n in zip(row[1:], wide[1:]))]) for row in cells)


def same_places(first: Table, second: Table, names: tuple[str, str]) -> None:
    """ValueError unless both tables are of the same layers, in the same order, and widths; TypeError for what is no Table."""
    for name, table in zip(names, (first, second)):
        if not isinstance(table, Table):
            raise TypeError(f"{name} is a {type(table).__name__}, and must be a Table of qlab.search.table.")
    for what in ("layers", "widths"):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            missing = [str(x) for x in a if x not in b] or [str(x) for x in b if x not in a]
            lacks = names[1] if any(x not in b for x in a) else names[0]
            if not missing:
                raise ValueError(f"{names[0]} and {names[1]} have the {what} in different orders, and must have them in the same.")
            raise ValueError(f"{lacks} has no {what[:-1]} {', '.join(missing)}, which the other has: both must be of the same {what}.")


def check_number(what: str, x) -> float:
    """x as a float; ValueError for what is no finite number."""
    if not isinstance(x, bool) and isinstance(x, Real) and -sys.float_info.max <= x <= sys.float_info.max:  # 10**400 is no float
        return float(x)
    raise ValueError(f"{what} is {x!r}, and must be a finite number.")
