"""Scale a channel, keep the function: what SmoothQuant, AWQ and planted outliers have in common.

    (x / s) @ (s * W).T  =  x @ W.T

Channel j of what several linear layers read is divided by s[j] where it is made, and column j of the readers is multiplied by it. Made
by a norm, it is divided in the gain (and the bias); by a linear layer, in its row. Nothing is computed more than before. Between the two
may be only what passes factors on, channel by channel: attention does with its values (its output is a weighted mean of them), and the
product of SwiGLU with one of its two sides: down reads silu(gate) * up.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from qlab.llm.activations import check_plain, evaluating
from qlab.llm.model import GPT
from qlab.llm.targets import linear_layers
from qlab.llm.weights import check_values
from qlab.nets.fake import HALVES
from qlab.nets.plain import plain_copy
from qlab.quant.layout import as_integers

PLACES = ("norm", "output", "down")


class Pair(NamedTuple):
    """Names of the norm or linear layer that makes the channels and of all linear layers that read them. columns, int64 (in_features,): the
    channel that each column of the readers reads; None: column j reads channel j."""

    source: str
    readers: tuple[str, ...]
    columns: torch.Tensor | None = None


def pairs(model: GPT, *places: str) -> list[Pair]:
    """The pairs of a GPT, block by block. places: norm (both norms of a block and what reads them), output (attention's values and its
    output matrix, several of whose heads may read one), down (up and down); by default norm alone, where SmoothQuant's paper scales.

    Raises ValueError for another model or a place that there is not.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> [pair.source for pair in pairs(model, "norm", "output", "down")]
    ['blocks.0.attention_norm', 'blocks.0.attention.value', 'blocks.0.mlp_norm', 'blocks.0.mlp.up']
    >>> pairs(model, "output")[0].columns
    tensor([0, 1, 2, 3, 0, 1, 2, 3])
    """
    check_gpt(model)
    places = places or ("norm",)
    if unknown := [place for place in places if place not in PLACES]:
        raise ValueError(f"{unknown[0]!r} is no place of a block, which has {', '.join(PLACES)}.")
    c, found = model.config, []
    # Head h of the queries reads the values of head h // (heads / kv_heads).
    columns = torch.arange(c.kv_heads * c.head_width).view(c.kv_heads, -1).repeat_interleave(c.heads // c.kv_heads, 0).flatten()
    for number in range(c.blocks):
        attention, mlp = f"blocks.{number}.attention", f"blocks.{number}.mlp"
        here = [("norm", Pair(f"{attention}_norm", (f"{attention}.query", f"{attention}.key", f"{attention}.value"))),
                ("output", Pair(f"{attention}.value", (f"{attention}.output",), columns)),
                ("norm", Pair(f"{mlp}_norm", (f"{mlp}.gate", f"{mlp}.up"))),
                ("down", Pair(f"{mlp}.up", (f"{mlp}.down",)))]
        found += [pair for place, pair in here if place in places]
    return found


def check_gpt(model: nn.Module) -> None:
    """Raises ValueError for a model that is no GPT, whose places are not known, or that is one without values, on the meta device."""
    if not isinstance(model, GPT):
        raise ValueError(f"the model is a {type(model).__name__}, and must be a GPT of qlab.llm.model, whose norms and readers are known.")
    check_values(model)


def checked(model: nn.Module, given: Iterable) -> list[Pair]:
    """The pairs, each with an int64 `columns`; TypeError for what are no pairs, ValueError for names, layers or sizes that do not fit."""
    check_plain(model)
    modules, linears, found = dict(model.named_modules()), linear_layers(model), []
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TypeError(f"pairs is a {type(given).__name__}, and must be a list of (source, [readers]), each by name.")
    for pair in given:
        if not isinstance(pair, (tuple, list)) or len(pair) not in (2, 3) or not isinstance(pair[1], (str, tuple, list)):
            raise TypeError(f"pairs holds {pair!r}, and must hold (source, [readers]), each by name.")
        pair = Pair(*pair)
        source, readers = modules.get(pair.source), [pair.readers] if isinstance(pair.readers, str) else list(pair.readers)
        weight = getattr(source, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != (2 if isinstance(source, nn.Linear) else 1):
            what = "no layer of the model" if source is None else f"a {type(source).__name__} without a gain for each channel"
            raise ValueError(f"{pair.source} is {what}, and must be a norm with a gain or a linear layer.")
        if unknown := [name for name in readers if name not in linears]:
            raise ValueError(f"{unknown[0]} is no linear layer of the model, and only linear layers take factors from {pair.source}.")
        if not readers:
            raise ValueError(f"{pair.source} has no readers in its pair, and must have at least one, which takes the factors.")
        columns = torch.arange(len(weight)) if pair.columns is None else as_integers(pair.columns, "columns").long()
        for name in readers:
            if len(columns) != linears[name].in_features or not bool(((columns >= 0) & (columns < len(weight))).all()):
                raise ValueError(f"{name} reads {linears[name].in_features} channels and {pair.source} makes {len(weight)}: "
                                 "they do not fit.")
        found.append(Pair(pair.source, tuple(readers), columns))
    if not found:
        raise ValueError("there are no pairs of a norm and its readers, and there must be one at least.")
    return found


def by_channel(columns: torch.Tensor, values: torch.Tensor, channels: int, reduce: str) -> torch.Tensor:
    """For each channel the amax or mean of what its columns have; 0 for a channel that no column reads.

    >>> by_channel(torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 1.0]), 2, "amax")
    tensor([3., 2.])
    """
    return values.new_zeros(channels).scatter_reduce(0, columns.to(values.device), values, reduce, include_self=False)


@torch.no_grad()
def fold(model: nn.Module, pair: Pair, s: torch.Tensor) -> None:
    """In place: divide the channels that pair.source makes by s (channels,), and multiply the readers' columns by it.

    Computed in float64, so that each weight is rounded once. Raises ValueError where a weight would not be finite in its dtype.
    """
    source = model.get_submodule(pair.source)
    readers = [model.get_submodule(name) for name in pair.readers]
    own = [p for p in (source.weight, getattr(source, "bias", None)) if p is not None]
    changes = [(p, p.double() / (s[:, None] if p.dim() == 2 else s)) for p in own]
    changes += [(reader.weight, reader.weight.double() * s[pair.columns]) for reader in readers]
    for p, new in changes:
        if not bool(new.to(p.dtype).isfinite().all()):
            raise ValueError(f"the factors from {s.min():.3g} to {s.max():.3g} take weights at {pair.source} beyond the largest {p.dtype}.")
        p.copy_(new)


@torch.no_grad()
def folded(model: nn.Module, given: list[Pair], factors: Callable[[nn.Module, Pair], torch.Tensor],
           batches: list[torch.Tensor]) -> nn.Module:
    """A copy in which each pair of `checked`, one after the other, was folded with s = factors(copy, pair).

    Half precision is scaled in float32 and rounded once, at the end. Raises ValueError where the copy's output on the first batch differs
    by more than rounding: then the pairs were not all that reads a channel.
    """
    before, after, batch = model, plain_copy(model), batches[0]
    if half := any(p.dtype in HALVES for p in model.parameters()):
        before, after, batch = plain_copy(model).float(), after.float(), batch.float() if batch.is_floating_point() else batch
    for pair in given:
        fold(after, pair, factors(after, pair))
    outputs = []
    for network in (before, after):
        with evaluating(network):
            outputs.append(network(batch))
    y, z = outputs
    if isinstance(y, torch.Tensor) and not float((y - z).abs().max()) <= torch.finfo(y.dtype).eps ** 0.5 * float(y.abs().max()):
        raise ValueError("the scaled model computes something else: another layer reads the channels too, or something between the two "
                         "layers of a pair does not pass factors on.")
    if not half:
        return after
    rounded = plain_copy(model)
    for p, wide in zip(rounded.parameters(), after.parameters()):
        p.copy_(wide)
        if not bool(p.isfinite().all()):
            raise ValueError(f"the factors take weights beyond the largest {p.dtype}: scale the model in float32.")
    return rounded
