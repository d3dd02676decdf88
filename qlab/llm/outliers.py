"""Outliers in activations: a few channels that are far louder than the rest (Dettmers et al. 2022, LLM.int8()). Found, and planted.

Large models grow them by themselves, small ones do not. `plant` gives a small model what the large ones have, and leaves what it computes:

    gain[j] * factor,   W[:, j] / factor        in every norm of the blocks and in the layers that read it

with a power of two exactly, else up to rounding. So whatever a method loses on the planted model and not on the original, it loses by the
outliers alone. The last norm is left: the embedding reads it, which also is the model's input, and cannot take a factor.
"""

import math
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import nn

from qlab.llm import scaling
from qlab.llm.activations import batches_of, check_plain, evaluating, watch
from qlab.llm.model import GPT, rotate
from qlab.nets.plain import plain_copy
from qlab.quant.layout import generator


def plant(model: GPT, channels: int = 2, factor: float = 30.0, seed: int = 0) -> GPT:
    """A copy of the same function in which `channels` channels, the same behind every norm of the blocks, are `factor` times as large.

    Raises ValueError for another model, channels that are not 1 to the model's width, or a factor that is not above 0 and finite.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> planted, tokens = plant(model, factor=32), torch.tensor([[1, 2, 3]])
    >>> planted.blocks[0].mlp_norm.weight.unique().tolist(), torch.equal(planted(tokens), model(tokens))
    ([1.0, 32.0], True)
    """
    scaling.check_gpt(model)
    check_plain(model)
    if isinstance(channels, bool) or not isinstance(channels, Integral) or not 1 <= channels <= model.config.width:
        raise ValueError(f"channels is {channels!r}, and must be a whole number from 1 to the model's width, {model.config.width}.")
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < factor < math.inf:
        raise ValueError(f"factor is {factor!r}, and must be above 0 and finite.")
    s = torch.ones(model.config.width, dtype=torch.float64)
    s[torch.randperm(len(s), generator=generator(seed))[:channels]] = 1 / factor
    planted = plain_copy(model)
    for pair in scaling.checked(planted, scaling.pairs(planted, "norm")):
        scaling.fold(planted, pair, s)
    return planted


class Outliers(NamedTuple):
    """What several layers read: layers, their names; amax, (channels,), max|x| of each channel; positions, (length,), max|x| at each place
    of the text, empty where x is (n, channels); kurtosis of all values: 3 for a normal distribution, more with heavier tails."""

    layers: tuple[str, ...]
    amax: torch.Tensor
    positions: torch.Tensor
    kurtosis: float

    @property
    def channel(self) -> int:
        """The loudest channel."""
        return int(self.amax.argmax())

    @property
    def position(self) -> int | None:
        """Where in the texts the largest magnitude is: 0 is the first token."""
        return int(self.positions.argmax()) if len(self.positions) else None

    @property
    def ratio(self) -> float:
        """How many times as loud the loudest channel is as the median channel."""
        median = self.amax.double().median().item()
        return self.amax.max().item() / median if median else math.nan if not self.amax.any() else math.inf


def measure(model: nn.Module, batches) -> list[Outliers]:
    """The outliers in what each linear layer reads, in the order of the calls; layers that read the same tensor are one entry.

    batches: what the model is called with. Raises ValueError for a model without linear layers, no tokens, NaN or infinity.

    >>> found = measure(nn.Sequential(nn.Linear(3, 2)), torch.tensor([[1.0, -9.0, 1.5], [2.0, 0.0, -1.0]]))[0]
    >>> found.layers, found.channel, found.ratio
    (('0',), 1, 4.5)
    """
    found, leader, last = {}, {}, [None, None]

    def see(name, x):
        first = leader.setdefault(name, last[0] if x is last[1] else name)                  # query, key and value read one tensor
        last[:] = first, x
        if first != name:
            found[first]["layers"].setdefault(name)
            return
        kept = found.setdefault(name, {"layers": {name: None}, "amax": x.new_zeros(x.shape[-1]), "positions": x.new_zeros(0), "sums": 0})
        kept["amax"] = torch.maximum(kept["amax"], x.abs().flatten(0, -2).amax(0))
        if x.dim() > 2:
            here = x.abs().amax(-1).flatten(0, -2).amax(0)                                  # (length,)
            both = nn.utils.rnn.pad_sequence([kept["positions"], here], batch_first=True)   # texts may differ in length
            kept["positions"] = both.amax(0)
        kept["sums"] += torch.stack([x.double().pow(power).sum() for power in range(5)])

    watch(model, batches, see)
    return [Outliers(tuple(kept["layers"]), kept["amax"], kept["positions"], _kurtosis(kept["sums"])) for kept in found.values()]


def _kurtosis(sums: torch.Tensor) -> float:
    """The mean of ((x - mean) / deviation)**4 from the sums of x**0 .. x**4; nan where all values are the same."""
    _, m, m2, m3, m4 = (sums / sums[0]).tolist()
    variance = m2 - m**2
    return (m4 - 4 * m * m3 + 6 * m**2 * m2 - 3 * m**4) / variance**2 if variance > 1e-12 * m2 else math.nan


@torch.no_grad()
def sinks(model: GPT, batches) -> torch.Tensor:
    """How much attention the first token gets: its mean weight in the softmax of all later tokens, float64 (blocks, heads).

    Where no token were preferred it would be the mean of 1 / (position + 1). Heads that find nothing put their attention there (attention
    sink, Xiao et al. 2023). batches: tokens (n, length), of at least 2. Raises ValueError for another model, no tokens, a text of one.

    >>> from qlab.llm.model import Config
    >>> model = GPT(Config(vocabulary=10, width=8, blocks=3, heads=2, kv_heads=1, hidden=16, context=32))
    >>> sinks(model, torch.tensor([[1, 2, 3, 4]])).shape
    torch.Size([3, 2])
    """
    scaling.check_gpt(model)
    batches = batches_of(batches)
    if short := [batch.shape[-1] for batch in batches if batch.shape[-1] < 2]:
        raise ValueError(f"a text is {short[0]} token long, and must have at least 2: the second is the first to look back.")
    total, count = torch.zeros(model.config.blocks, model.config.heads, dtype=torch.float64), 0
    numbers = {block.attention: number for number, block in enumerate(model.blocks)}

    def see(attention, args):
        x, turn = args[:2]
        query, key = (rotate(layer(x).unflatten(-1, (-1, attention.head_width)).transpose(1, 2), turn).double()
                      for layer in (attention.query, attention.key))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)                      # a head of keys serves several of queries
        logits = query @ key.transpose(-1, -2) / attention.head_width**0.5
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        total[numbers[attention]] += logits.masked_fill(later, -torch.inf).softmax(-1)[:, :, 1:, 0].sum((0, 2)).cpu()

    hooks = [attention.register_forward_pre_hook(see) for attention in numbers]
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
                count += batch.shape[0] * (batch.shape[1] - 1)
    finally:
        for handle in hooks:
            handle.remove()
    return total / count


class Without:
    """A cache for one call of a model, in which no token behind `token` sees it: what the model loses where its attention sink is hidden.

    >>> Without(0).append(0, *[torch.zeros(1, 1, 3, 4)] * 2)[2].int()
    tensor([[1, 0, 0],
            [0, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """

    length = 0

    def __init__(self, token: int):
        self.token = token

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """key and value as they are, (texts, heads, length, width), and the mask (length, length), True where a row sees a column."""
        mask = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool).tril()
        mask[self.token + 1:, self.token] = False
        return key, value, mask


class Window:
    """A cache for one call of a model, in which a token sees the `size` latest, itself among them, and those of `kept`: what is left of a
    text that goes on for longer than the memory, with the first tokens kept or without (StreamingLLM, Xiao et al. 2024).

    >>> Window(1, kept=(0,)).append(0, *[torch.zeros(1, 1, 3, 4)] * 2)[2].int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 0, 1]], dtype=torch.int32)
    """

    length = 0

    def __init__(self, size: int, kept: tuple[int, ...] = ()):
        self.size, self.kept = size, list(kept)

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """key and value as they are, (texts, heads, length, width), and the mask (length, length), True where a row sees a column."""
        mask = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool).triu(1 - self.size)
        mask[:, self.kept] = True
        return key, value, mask.tril()
