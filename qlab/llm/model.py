"""A decoder-only transformer as Llama has it (Touvron et al. 2023): what today's small language models are built of.

    x  =  embedding[token]
    x +=  attention(norm(x))                    in each block: look back,
    x +=  down(silu(gate(norm(x))) * up(norm(x)))              then think (SwiGLU, Shazeer 2020)
    logits  =  embedding @ norm(x)              the embedding is read twice: tied

    norm(x)  =  gain * x / sqrt(mean(x**2) + eps)                                   RMSNorm, Zhang and Sennrich 2019
    rotary positions: at position p the pair (x[2i], x[2i + 1]) of a query or key is turned by the angle p * base**(-2i / width of a head),
    so the product of a query and a key depends on the distance of their positions alone (RoFormer, Su et al. 2021)

No biases. Several heads of queries may share one head of keys and values (grouped queries, Ainslie et al. 2023).
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from qlab.quant.layout import check_whole


@dataclass(frozen=True)
class Config:
    """Sizes of a model: entries of the vocabulary, width of the stream, blocks, heads of queries, heads of keys and values, width of the
    MLP, longest text in tokens, the rotary base, and what RMSNorm adds under the root.

    Raises ValueError for sizes that are no whole numbers of at least 1, or do not fit together, and for a base or eps that is not above 0.

    >>> Config(vocabulary=1024, width=256, blocks=3, heads=4, kv_heads=4, hidden=512, context=256).head_width
    64
    """

    vocabulary: int
    width: int
    blocks: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    rope_base: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self):
        for name in ("vocabulary", "width", "blocks", "heads", "kv_heads", "hidden", "context"):
            check_whole(name, getattr(self, name), 1)
        for name in ("rope_base", "eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}, and must be a number above 0.")
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}, and must be a multiple of 2 * heads = {2 * self.heads}: positions turn pairs.")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads is {self.heads}, and must be a multiple of kv_heads = {self.kv_heads}.")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Attention(nn.Module):
    """Each token looks at itself and those before it; x (batch, length, width) to the same shape."""

    def __init__(self, c: Config):
        super().__init__()
        self.head_width = c.head_width
        self.query = nn.Linear(c.width, c.heads * c.head_width, bias=False)
        self.key = nn.Linear(c.width, c.kv_heads * c.head_width, bias=False)
        self.value = nn.Linear(c.width, c.kv_heads * c.head_width, bias=False)
        self.output = nn.Linear(c.heads * c.head_width, c.width, bias=False)

    def forward(self, x, turn, cache=None, block: int = 0):
        def heads(y):
            return y.unflatten(-1, (-1, self.head_width)).transpose(1, 2)                   # (batch, heads, length, head_width)

        query, key, value = rotate(heads(self.query(x)), turn), rotate(heads(self.key(x)), turn), heads(self.value(x))
        mask = None
        if cache is not None:
            key, value, mask = cache.append(block, key, value)                              # with those of the tokens before
        n, seen = query.shape[2], key.shape[2]
        if mask is None and n == seen:
            y = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            mask = torch.ones(n, seen, dtype=torch.bool, device=x.device).tril(seen - n) if mask is None else mask
            y = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return self.output(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), (batch, length, width) to the same shape."""

    def __init__(self, c: Config):
        super().__init__()
        self.gate = nn.Linear(c.width, c.hidden, bias=False)
        self.up = nn.Linear(c.width, c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.width, bias=False)
        self.rotation = nn.Identity()                                                       # where qlab.llm.rotate turns what down reads

    def forward(self, x):
        return self.down(self.rotation(silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(c.width, c.eps), Attention(c)
        self.mlp_norm, self.mlp = nn.RMSNorm(c.width, c.eps), MLP(c)

    def forward(self, x, turn, cache=None, block: int = 0):
        x = x + self.attention(self.attention_norm(x), turn, cache, block)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The model of a `Config`; forward(tokens) gives the logits of the token after each.

    tokens: int64 (batch, length), each from 0 to vocabulary - 1; result: (batch, length, vocabulary). cache: a `Cache` or `QuantizedCache`
    of `kv_cache`, which gives and keeps the keys and values of the tokens before; the positions go on where it ends. Raises ValueError for
    tokens that are not such numbers and for more than `context` of them, those in the cache included.

    >>> model = GPT(Config(vocabulary=10, width=8, blocks=2, heads=2, kv_heads=1, hidden=16, context=32))
    >>> model(torch.tensor([[1, 2, 3]])).shape, model.blocks[0].mlp.down.weight.shape
    (torch.Size([1, 3, 10]), torch.Size([8, 16]))
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.register_parameter("head", None)                                               # (vocabulary, width) where it is not tied
        self.register_buffer("turn", turns(config), persistent=False)

    def forward(self, tokens: torch.Tensor, cache=None) -> torch.Tensor:
        before = 0 if cache is None else cache.length
        check_tokens(tokens, self.config, before)
        x, turn = self.embedding(tokens), self.turn[before:before + tokens.shape[1]]
        for number, block in enumerate(self.blocks):
            x = block(x, turn, cache, number)
        return self.norm(x) @ (self.embedding.weight if self.head is None else self.head).T


def check_config(config) -> None:
    """Raises TypeError for what is no Config."""
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}, and must be a Config of qlab.llm.model: a model's is model.config.")


def check_tokens(tokens: torch.Tensor, config: Config, before: int = 0) -> None:
    """Raises ValueError unless tokens are int64 (batch, length) of the vocabulary and fit into the context behind `before` others;
    TypeError where they are no tensor."""
    if not isinstance(tokens, torch.Tensor):
        raise TypeError(f"tokens is a {type(tokens).__name__}, and must be a tensor, int64 (batch, length).")
    if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.shape[1] == 0:
        raise ValueError(f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, and must be int64 (batch, length), at least one of "
                         "them.")
    if before + tokens.shape[1] > config.context:
        raise ValueError(f"the text is {before + tokens.shape[1]} tokens long, and the model reads at most {config.context}: cut it.")
    if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < config.vocabulary):
        raise ValueError(f"tokens go from {int(tokens.min())} to {int(tokens.max())}, and must be from 0 to {config.vocabulary - 1}.")


def turns(config: Config) -> torch.Tensor:
    """Cosine and sine of each pair's angle at each position: float32 (context, head_width / 2, 2)."""
    slowness = config.rope_base ** (torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width)
    angle = torch.arange(config.context, dtype=torch.float64)[:, None] / slowness
    return torch.stack([angle.cos(), angle.sin()], -1).float()


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Each pair (x[2i], x[2i + 1]) of (..., length, head_width) turned by the angle of its position and pair."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = turn.to(x.dtype).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
