"""How well a language model reads a text it has not seen: bits per byte, with an interval, and differences paired by block.

    bits per byte  =  sum of -log p(token | those before)  /  (ln 2 * bytes of the text)

Perplexity, exp(nats per token), depends on the vocabulary: a model with longer tokens has fewer and harder ones. Bits per byte does not.
The text is read in blocks of equal length, each without what came before it. Blocks differ far more from each other than two models do on
the same block, so a difference is taken block by block, and its error comes from those differences.
"""

import math
from numbers import Integral
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qlab.llm.tokenizer import whole
from qlab.quant.layout import check_whole

Z95 = 1.959963984540054


class Text(NamedTuple):
    """tokens: int64 (blocks, length + 1), the last of a block is the first of the next; nbytes: int64 (blocks,), of what is predicted."""

    tokens: torch.Tensor
    nbytes: torch.Tensor


class Scores(NamedTuple):
    """nats: float64 (blocks,), -log p of all tokens of the block; nbytes, predicted: int64 (blocks,), bytes and tokens they are of."""

    nats: torch.Tensor
    nbytes: torch.Tensor
    predicted: torch.Tensor


class Estimate(NamedTuple):
    """A value with its standard error and its 95 % interval."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.value - Z95 * self.error, self.value + Z95 * self.error

    @property
    def t(self) -> float:
        """value / error: beyond about 2 the value is not zero by chance."""
        return self.value / self.error if self.error else math.copysign(math.inf, self.value) if self.value else 0.0


def blocks(tokens: list[int], sizes: list[int], length: int, count: int | None = None) -> Text:
    """A text's tokens in blocks of `length` predictions; sizes: the bytes of each entry of the vocabulary. count: blocks, spread evenly.

    Raises TypeError for tokens or sizes that are no whole numbers; ValueError for tokens outside the vocabulary, sizes below 0, fewer
    tokens than one block needs, or more blocks than there are.

    >>> text = blocks([0, 1, 2, 1, 0], sizes=[1, 2, 3], length=2)
    >>> text.tokens.tolist(), text.nbytes.tolist()
    ([[0, 1, 2], [2, 1, 0]], [5, 3])
    """
    tokens, sizes = whole(tokens), whole(sizes, "sizes")
    check_whole("length", length, 1)
    there = (len(tokens) - 1) // length
    if there < 1:
        raise ValueError(f"the text has {len(tokens)} tokens, and a block of {length} predictions needs {length + 1}: take more text.")
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= count <= there):
        raise ValueError(f"count is {count!r}, and must be from 1 to {there}, the blocks of {length} tokens that the text has.")
    if not (0 <= min(tokens) and max(tokens) < len(sizes)):
        raise ValueError(f"tokens go from {min(tokens)} to {max(tokens)}, and must be from 0 to {len(sizes) - 1}: sizes has {len(sizes)}.")
    if min(sizes) < 0:
        raise ValueError(f"sizes holds {min(sizes)}, and must hold numbers of at least 0: the bytes of each entry.")
    picked = torch.arange(there) if count is None else torch.arange(count) * there // count
    rows = torch.tensor(tokens)[picked[:, None] * length + torch.arange(length + 1)]
    return Text(rows, torch.tensor(sizes)[rows[:, 1:]].sum(1))


@torch.inference_mode()
def score(model: nn.Module, text: Text, batch: int = 16) -> Scores:
    """The model's -log p of each block's tokens but the first. model: tokens (batch, length) to logits (batch, length, vocabulary).

    Sums are taken in float64. Raises TypeError for what is no Text or no model; ValueError for a text without blocks, a batch below 1, and
    logits of another shape or not finite.
    """
    nats = []
    for rows in _rows(text, batch):
        logits = _logits(model, rows)
        nats.append(cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1).sum(1))
    nats = torch.cat(nats)
    return Scores(nats, text.nbytes, torch.full_like(text.nbytes, text.tokens.shape[1] - 1))


def _rows(text: Text, batch: int) -> tuple[torch.Tensor, ...]:
    if not isinstance(text, Text):
        raise TypeError(f"text is a {type(text).__name__}, and must be a Text, as evaluate.blocks makes it.")
    check_whole("batch", batch, 1)
    if text.tokens.ndim != 2 or not len(text.tokens) or text.tokens.shape[1] < 2 or text.nbytes.shape != (len(text.tokens),):
        raise ValueError(f"the text has tokens of shape {tuple(text.tokens.shape)} and nbytes of {tuple(text.nbytes.shape)}, and must have "
                         "(blocks, length + 1) and (blocks,), at least one block.")
    return text.tokens.split(batch)


def _logits(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}, and must be a module, or a function, from tokens to logits.")
    logits = model(rows[:, :-1])
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != (len(rows), rows.shape[1] - 1):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"the model gives {found} for tokens of shape {(len(rows), rows.shape[1] - 1)}, and must give logits, (batch, "
                         "length, vocabulary).")
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits are not finite numbers: its weights or activations have overflowed.")
    return logits.float()


def bits_per_byte(scores: Scores) -> Estimate:
    """Bits per byte of the text, its error from the blocks (a ratio of sums: Cochran 1977, equation 6.13).

    >>> bits_per_byte(Scores(torch.tensor([math.log(4.0)] * 3, dtype=torch.float64), torch.tensor([2, 2, 2]), torch.tensor([1, 1, 1])))
    Estimate(value=1.0, error=0.0)
    """
    return _ratio(scores.nats / math.log(2), scores.nbytes)


def perplexity(scores: Scores) -> float:
    """exp of the mean -log p of a token; infinite where that is no float. Raises ValueError for scores of no token."""
    if not scores.predicted.sum() > 0:
        raise ValueError("the scores are of no token, and must be of one at least.")
    mean = scores.nats.sum().item() / scores.predicted.sum().item()
    return math.exp(mean) if mean < 709 else math.inf                                       # exp(710) is no float


def difference(a: Scores, b: Scores) -> Estimate:
    """a's bits per byte minus b's, paired by block: its error is that of the differences. Raises ValueError for scores of two texts.

    >>> a = Scores(torch.tensor([1.0, 2.0]).double(), torch.tensor([1, 1]), torch.tensor([1, 1]))
    >>> difference(a, a)
    Estimate(value=0.0, error=0.0)
    """
    if a.nbytes.shape != b.nbytes.shape or not bool((a.nbytes == b.nbytes).all()):
        raise ValueError(f"the scores are of {len(a.nbytes)} and {len(b.nbytes)} blocks, and must be of the same text in the same blocks.")
    return _ratio((a.nats - b.nats) / math.log(2), a.nbytes)


@torch.inference_mode()
def divergences(model: nn.Module, reference: nn.Module, text: Text, batch: int = 16) -> Scores:
    """Kullback-Leibler divergence of the model's predictions from the reference's, block by block: what bits_per_byte and difference take.

    nats: sum p_reference (log p_reference - log p_model), over the vocabulary and the block's tokens; 0 only if they always agree.
    Raises as `score` does, and ValueError for models of two vocabularies.
    """
    nats = []
    for rows in _rows(text, batch):
        p, q = (log_softmax(_logits(m, rows).double(), -1) for m in (model, reference))
        if p.shape != q.shape:
            raise ValueError(f"the models have vocabularies of {p.shape[-1]} and {q.shape[-1]} entries, and must have the same.")
        nats.append(kl_div(p, q, log_target=True, reduction="none").sum((1, 2)))
    return Scores(torch.cat(nats), text.nbytes, torch.full_like(text.nbytes, text.tokens.shape[1] - 1))


def divergence(model: nn.Module, reference: nn.Module, text: Text, batch: int = 16) -> Estimate:
    """Mean divergence of the model's predictions from the reference's, in bits a byte. Raises as `divergences` does.

    Likelihood asks how good a model is, this how far it is from the one that it was made of.
    """
    return bits_per_byte(divergences(model, reference, text, batch))


def _ratio(x: torch.Tensor, y: torch.Tensor) -> Estimate:
    """sum x / sum y and its standard error over n blocks: sqrt(n / (n - 1) * sum (x - r y)**2) / sum y; nan for one block."""
    if not y.sum() > 0:
        raise ValueError("the scores are of no byte, and must be of one at least.")
    x, y, n = x.double(), y.double(), len(x)
    r = (x.sum() / y.sum()).item()
    left = ((x - r * y) ** 2).sum().item()
    return Estimate(r, math.sqrt(n / (n - 1) * left) / y.sum().item() if n > 1 else math.nan)
