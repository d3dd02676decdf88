"""The key-value cache: what attention keeps of the tokens before, so that a new token costs one row and not the whole text again.

    bytes  =  2 * blocks * kv_heads * head_width * tokens * bytes of a number

Long texts and many of them at once make it larger than the weights. KIVI (Liu et al. 2024) stores codes, with a scale and a lowest value,
both float16, for each group of numbers; asymmetric, as keys are seldom centred:

    q  =  round((x - low) / scale)              x_hat  =  low + scale * q               bits + 32 / group_size bits a number

    keys      a group is one channel over group_size tokens: some channels are loud in every token, and spoil only themselves
    values    a group is group_size channels of one token: no channel is loud, and a new token changes no group before it

The latest `window` tokens stay floats, the new one counted; of keys also those whose group is not full. (KIVI empties the window of keys
all at once when it is full, and then begins with none.) What is decoded is what attention sees, and a token sees those before it as the
cache holds them when it comes. So a text has the same logits read at once, in pieces, or token by token. (KIVI lets a prompt see floats.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from qlab.llm.model import GPT, Config, check_config
from qlab.quant import QTensor, linear
from qlab.quant.layout import as_float, check_bits, check_name, check_whole
from qlab.quant.packing import pack, unpack

KEYS = ("channel", "token")
FLOAT16 = torch.finfo(torch.float16).max


class Cache:
    """Keys and values of each block as they come, for `GPT.forward`; length: the tokens in it. Made for one batch of texts.

    >>> cache = Cache(Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32))
    >>> key = torch.zeros(1, 1, 3, 4)                                       # (batch, kv_heads, new tokens, head_width)
    >>> cache.append(0, key, key)[0].shape, cache.append(0, key, key)[0].shape, cache.length
    (torch.Size([1, 1, 3, 4]), torch.Size([1, 1, 6, 4]), 6)
    """

    def __init__(self, config: Config):
        check_config(config)
        self._config, self._held = config, [None] * config.blocks                           # for keys and for values: Coded or None, floats

    @property
    def length(self) -> int:
        return 0 if self._held[-1] is None else _tokens(*self._held[-1][0])

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for held in self._held if held is not None for parts in held for x in parts if x is not None)

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """All keys and values of the block, with the new ones at the end; (batch, kv_heads, tokens, head_width) each. The third part, the
        mask, is None: a token sees itself and those before it. Raises ValueError for another number of texts than before, or the keys of
        another model."""
        held = self._checked(block, key)
        if held is not None:
            key, value = (torch.cat([old, new], 2) for (_, old), new in zip(held, (key, value)))
        self._held[block] = (None, key), (None, value)
        return key, value, None

    def _checked(self, block: int, key: torch.Tensor) -> tuple | None:
        """What the block holds, after a look at whether the new tokens' keys fit to it."""
        config = self._config
        if block >= config.blocks or (key.shape[1], key.shape[3]) != (config.kv_heads, config.head_width):
            raise ValueError(f"the cache is for {config.blocks} blocks with {config.kv_heads} heads of {config.head_width} channels, and "
                             f"is given keys of block {block} with {key.shape[1]} heads of {key.shape[3]}: make it with this model's "
                             "config.")
        held = self._held[block]
        if held is not None and _tokens(*held[0]) != self.length:
            raise ValueError(f"block {block} of the cache holds {_tokens(*held[0])} tokens, and the last block {self.length}: a text was "
                             "read in part. Take a new cache.")
        if held is not None and len(held[0][1]) != len(key):
            raise ValueError(f"the cache holds {len(held[0][1])} texts, and is given {len(key)}: take a new one for another batch.")
        return held


class QuantizedCache(Cache):
    """A cache of packed codes, in place of a `Cache` for a model and for `generate`. key_bits, value_bits: 1 to 8, or None for floats.

    keys: "channel", each channel's keys in groups of group_size tokens, or "token", each token's in groups of group_size channels, as
    values are. window: so many of the latest tokens stay floats, in the model's dtype, the new one counted.

    nbytes counts packed codes, scales, lowest values and floats. It shows what codes cost a text, and no speed: what attention reads is
    decoded each time.
    Raises ValueError for other bits or keys, a group_size that does not divide the head's width, a window below 0; and when tokens come,
    for keys or values that are not finite or above float16's largest number.

    >>> config = Config(vocabulary=10, width=64, blocks=1, heads=2, kv_heads=1, hidden=16, context=128)
    >>> cache = QuantizedCache(config, key_bits=4, value_bits=2, group_size=32, window=0)
    >>> _ = GPT(config)(torch.zeros(1, 96, dtype=torch.int64), cache)
    >>> cache.nbytes * 8 / (96 * 32)                                         # bits of a key and a value: 4 + 1, 2 + 1
    8.0
    """

    def __init__(self, config: Config, key_bits: int | None = 4, value_bits: int | None = 4, keys: str = "channel", group_size: int = 32,
                 window: int = 32):
        super().__init__(config)
        _check(config, key_bits, value_bits, keys, group_size, window)
        self.bits, self.window = (key_bits, value_bits), window
        by_token = 1, group_size
        self.groups = (group_size, 1) if keys == "channel" else by_token, by_token          # (tokens, channels) that share a scale

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys, values and mask (new tokens, keys), which a product of attention takes for these new tokens.

        With several new tokens a key may be there twice, as it is decoded and as the float that it was: the mask, boolean, gives each new
        token the one that the cache held when its turn came. For one new token there is no mask. Raises ValueError for another number of
        texts than before, the keys of another model, and keys or values that cannot be coded; the cache then holds what it held."""
        held = self._checked(block, key)
        grown = [self._grow(kind, (None, x[:, :, :0]) if held is None else held[kind], x) for kind, x in enumerate((key, value))]
        self._held[block] = tuple(kept for _, _, kept in grown)                             # both or none
        (floats, decoded, _), (value_floats, value_decoded, _) = grown
        new, total = key.shape[2], decoded.shape[2]
        if new == 1:
            return decoded, value_decoded, None
        there = torch.arange(total - new + 1, total + 1, device=key.device)[:, None]       # tokens in the cache at each new token's turn
        place = torch.arange(total, device=key.device)
        coded, value_coded = (place < self._coded(kind, there) for kind in (0, 1))
        parts = [(a, b, (place < there) & (coded == first) & (value_coded == second))
                 for a, first in ((decoded, True), (floats, False)) for b, second in ((value_decoded, True), (value_floats, False))]
        keys, values, masks = zip(*(part for part in parts if part[2].any()))
        return torch.cat(keys, 2), torch.cat(values, 2), torch.cat(masks, 1)

    def _coded(self, kind: int, tokens: torch.Tensor) -> torch.Tensor:
        """How many of the first tokens are codes when the cache holds so many: whole groups outside of the window."""
        group = self.groups[kind][0]
        return (tokens - self.window).clamp(min=0) // group * group if self.bits[kind] is not None else torch.zeros_like(tokens)

    def _grow(self, kind: int, held: tuple, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple]:
        """All keys (or values), those coded until now decoded; the same, those that are coded now decoded; and what the cache keeps."""
        coded, recent = held
        old = new[:, :, :0] if coded is None else coded.decode()
        recent = torch.cat([recent, new], 2)
        floats = torch.cat([old, recent], 2)
        leaving = int(self._coded(kind, torch.tensor(floats.shape[2]))) - old.shape[2]
        if not leaving:
            return floats, floats, (coded, recent)
        fresh = encode(recent[:, :, :leaving], self.bits[kind], *self.groups[kind], what=("keys", "values")[kind])
        recent = recent[:, :, leaving:].clone()                                             # a view would keep what has left
        return floats, torch.cat([old, fresh.decode(), recent], 2), (fresh if coded is None else coded.joined(fresh), recent)


@dataclass(frozen=True, eq=False)
class Coded:
    """Keys or values as `encode` stores them. codes: uint8 (batch, heads, tokens, bytes of a token); scale, low: float16 (batch, heads,
    groups of tokens, groups of channels); group: the tokens and channels of one; dtype: what decode returns."""

    codes: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    bits: int
    width: int
    group: tuple[int, int]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes

    def decode(self) -> torch.Tensor:
        """The values, (batch, heads, tokens, width)."""
        shape = (*self.codes.shape[:3], self.width)
        wide = _row(self.width, self.bits)
        codes = unpack(self.codes.flatten(), self.bits, math.prod(shape[:3]) * wide).view(*shape[:3], wide)[..., :self.width]
        scale, low = self.scale.flatten(), self.low.flatten()
        work = torch.float64 if self.dtype == torch.float64 else torch.float32
        zero_point = (-low.double() / scale.double()).to(work)                              # as linear.quantize had it
        q = QTensor(_to_groups(codes.to(scale.device), *self.group), self.bits, "minmax", self.dtype, scale, zero_point, axis=0)
        return _from_groups(q.dequantize(), shape, *self.group)

    def joined(self, after: "Coded") -> "Coded":
        """These tokens and those after them."""
        parts = {name: torch.cat([getattr(self, name), getattr(after, name)], 2) for name in ("codes", "scale", "low")}
        return replace(self, **parts)


def encode(x: torch.Tensor, bits: int, tokens: int, channels: int, what: str = "x") -> Coded:
    """x (batch, heads, tokens, width), floats, as codes of 1 to 8 bits; a group is so many tokens by so many channels.

    |x - x_hat| <= scale / 2 and rounding of floats; low is the lowest value of the group, rounded down to float16, and scale is rounded up.
    Raises ValueError for groups that do not divide, NaN, infinity and numbers above float16's largest, 65504.

    >>> coded = encode(torch.tensor([[[[0.0, 10.0], [1.0, 40.0], [3.0, 10.0]]]]), bits=2, tokens=3, channels=1)
    >>> coded.scale.tolist(), coded.low.tolist(), coded.decode()[0, 0, :, 1]      # a scale for each channel
    ([[[[1.0, 10.0]]]], [[[[0.0, 10.0]]]], tensor([10., 40., 10.]))
    """
    bits, x = check_bits(bits, 1, 8), as_float(x, what)
    shape = x.shape
    for name, group in (("tokens", tokens), ("channels", channels)):
        check_whole(name, group, 1)
    if len(shape) != 4 or shape[2] % tokens or shape[3] % channels:
        raise ValueError(f"{what} of shape {tuple(shape)} must be (batch, heads, tokens, width), and groups of {tokens} tokens by "
                         f"{channels} channels must divide it.")
    if x.numel() and not bool(x.abs().amax() <= FLOAT16):
        raise ValueError(f"{what} go up to {x.abs().amax().item():g}, and must be at most {FLOAT16:g}, the largest float16, to be coded.")
    rows = _to_groups(x, tokens, channels)
    low, high = _floor_float16(rows.amin(1)), rows.amax(1)
    q = linear.quantize(rows, bits, "minmax", axis=0, x_min=low, x_max=high, scale_dtype=torch.float16)
    wide = _row(shape[3], bits)
    codes = pad(_from_groups(q.codes, shape, tokens, channels), (0, wide - shape[3]))
    packed = pack(codes, bits).view(*shape[:3], wide * bits // 8).to(x.device)
    pairs = (*shape[:2], shape[2] // tokens, shape[3] // channels)
    return Coded(packed, q.scale.view(pairs), low.half().view(pairs), bits, shape[3], (tokens, channels), x.dtype)


def cache_nbytes(config: Config, tokens: int, key_bits: int | None = None, value_bits: int | None = None, keys: str = "channel",
                 group_size: int = 32, window: int = 32, batch: int = 1, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of a cache with so many tokens of each text: of `Cache`, or, where bits are given, of `QuantizedCache`.

    dtype: of the model, and so of what stays float. Raises ValueError as QuantizedCache does, and for tokens or batch below 0.

    >>> config = Config(vocabulary=49152, width=576, blocks=30, heads=9, kv_heads=3, hidden=1536, context=2048)   # SmolLM2-135M
    >>> cache_nbytes(config, 2048, dtype=torch.float16), cache_nbytes(config, 2048, 2, 2, dtype=torch.float16)
    (47185920, 9446400)
    """
    _check(config, key_bits, value_bits, keys, group_size, window)
    for name, given in (("tokens", tokens), ("batch", batch)):
        check_whole(name, given, 0)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is a {type(dtype).__name__}, and must be a torch.dtype.")
    width, total = config.head_width, 0
    for bits, per_channel in ((key_bits, keys == "channel"), (value_bits, False)):
        group = group_size if per_channel else 1
        coded = 0 if bits is None else max(0, tokens - window) // group * group
        total += (tokens - coded) * width * dtype.itemsize
        if coded:
            total += coded * _row(width, bits) * bits // 8 + 4 * (coded * width // group_size)
    return batch * config.blocks * config.kv_heads * total


def with_cache(model: GPT, key_bits: int | None = 4, value_bits: int | None = 4, keys: str = "channel", group_size: int = 32,
               window: int = 32) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as it predicts with a `QuantizedCache`: tokens (batch, length) to logits, all at once; for `evaluate.score`.

    Each token sees those before it as it would if they came one by one. Raises ValueError as QuantizedCache does.

    >>> config = Config(vocabulary=10, width=8, blocks=1, heads=2, kv_heads=1, hidden=16, context=32)
    >>> with_cache(GPT(config), key_bits=2, value_bits=2, group_size=4, window=0)(torch.zeros(1, 9, dtype=torch.int64)).shape
    torch.Size([1, 9, 10])
    """
    settings = key_bits, value_bits, keys, group_size, window
    QuantizedCache(model.config, *settings)                                                 # what is wrong is said here
    return lambda tokens: model(tokens, QuantizedCache(model.config, *settings))


def _check(config: Config, key_bits, value_bits, keys: str, group_size: int, window: int) -> None:
    check_config(config)
    for name, bits in (("key_bits", key_bits), ("value_bits", value_bits)):
        try:
            bits is None or check_bits(bits, 1, 8)
        except ValueError:
            raise ValueError(f"{name} is {bits!r}, and must be a whole number from 1 to 8, or None for floats.") from None
    check_name("keys", keys, KEYS)
    check_whole("group_size", group_size, 1)
    if (value_bits is not None or key_bits is not None and keys == "token") and config.head_width % group_size:
        raise ValueError(f"group_size is {group_size!r}, and must divide the {config.head_width} channels of a head.")
    check_whole("window", window, 0)


def _tokens(coded: Coded | None, floats: torch.Tensor) -> int:
    return floats.shape[2] + (0 if coded is None else coded.codes.shape[2])


def _row(width: int, bits: int) -> int:
    """Codes of a token and a head with those that fill its last byte: each token begins with a new byte."""
    each = 8 // math.gcd(bits, 8)
    return -(-width // each) * each


def _to_groups(x: torch.Tensor, tokens: int, channels: int) -> torch.Tensor:
    """x (batch, heads, tokens, width) as rows, (groups, tokens * channels of a group)."""
    b, h, t, w = x.shape
    return x.reshape(b, h, t // tokens, tokens, w // channels, channels).transpose(3, 4).reshape(-1, tokens * channels)


def _from_groups(rows: torch.Tensor, shape: tuple, tokens: int, channels: int) -> torch.Tensor:
    """The inverse of _to_groups."""
    b, h, t, w = shape
    return rows.reshape(b, h, t // tokens, w // channels, tokens, channels).transpose(3, 4).reshape(shape)


def _floor_float16(x: torch.Tensor) -> torch.Tensor:
    """The next float16 at or below each number, as float64: 11 bits, of which none is worth less than 2**-24."""
    x = x.double()
    step = torch.ldexp(torch.ones_like(x), (torch.frexp(x).exponent - 11).clamp(min=-24))
    return (x / step).floor() * step
