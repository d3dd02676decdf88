"""The quantized key-value cache against one that is written in NumPy and reads a token at a time, and against the plain cache."""

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_gpt import gpt, tokens

from qlab.llm import evaluate
from qlab.llm.generate import generate
from qlab.llm.kv_cache import Cache, QuantizedCache, cache_nbytes, encode, with_cache

MODEL = gpt().requires_grad_(False)                                                         # heads 12 wide, 2 blocks, 2 heads of keys
WIDTH = MODEL.config.head_width


def coded_by_hand(x, bits):
    """Groups along the last axis: the formula, with float16's rounding done by looking at the neighbours."""
    lowest, highest = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    low = lowest.astype(np.float16)
    low = np.where(low <= lowest, low, np.nextafter(low, np.float16(-np.inf))).astype(float)
    exact = (highest - low) / (2**bits - 1)
    scale = exact.astype(np.float16)
    scale = np.where(scale >= exact, scale, np.nextafter(scale, np.float16(np.inf))).astype(float)
    return low + scale * np.clip(np.rint((x - low) / np.where(scale > 0, scale, 1)), 0, 2**bits - 1)


class ByHand:
    """A token at a time: all floats are kept, and what is outside of the window is coded anew, group by group."""

    def __init__(self, key_bits, value_bits, keys, group_size, window):
        self.bits, self.keys, self.group, self.window = (key_bits, value_bits), keys, group_size, window
        self.held = [([], []), ([], [])]

    @property
    def length(self):
        return len(self.held[-1][0])

    def append(self, block, key, value):
        for kept, x in zip(self.held[block], (key, value)):
            assert x.shape[2] == 1
            kept.append(x[:, :, 0].numpy())
        return *(torch.from_numpy(self.seen(np.stack(kept, 2), kind)) for kind, kept in enumerate(self.held[block])), None

    def seen(self, x, kind):
        x, g = x.copy(), self.group                                                         # (texts, heads, tokens, channels)
        end = max(0, x.shape[2] - self.window)
        by_channel = kind == 0 and self.keys == "channel"
        if self.bits[kind] and by_channel:
            for t in range(0, end - end % g, g):
                x[:, :, t:t + g] = coded_by_hand(x[:, :, t:t + g].swapaxes(2, 3), self.bits[kind]).swapaxes(2, 3)
        elif self.bits[kind]:
            for c in range(0, WIDTH, g):
                x[:, :, :end, c:c + g] = coded_by_hand(x[:, :, :end, c:c + g], self.bits[kind])
        return x


SETTINGS = st.tuples(st.sampled_from([None, 1, 2, 3, 4, 8]), st.sampled_from([None, 1, 2, 4, 5, 8]), st.sampled_from(["channel", "token"]),
                     st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 14))


@given(SETTINGS, st.lists(st.integers(1, 6), min_size=1, max_size=4))
@example((2, 4, "channel", 4, 3), [6, 1, 6, 5])
@settings(max_examples=8)
def test_a_text_is_read_alike_at_once_in_pieces_and_token_by_token_by_hand(given_settings, pieces):
    text = tokens(2, sum(pieces))
    by_hand, cache = ByHand(*given_settings), QuantizedCache(MODEL.config, *given_settings)
    wanted = torch.cat([MODEL(text[:, i:i + 1], by_hand) for i in range(text.shape[1])], 1)
    torch.testing.assert_close(with_cache(MODEL, *given_settings)(text), wanted, rtol=1e-9, atol=1e-9)
    found = torch.cat([MODEL(piece, cache) for piece in text.split(pieces, 1)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert cache.length == text.shape[1]
    assert cache.nbytes == cache_nbytes(MODEL.config, text.shape[1], *given_settings, batch=2, dtype=torch.float64)


def test_without_codes_it_is_the_plain_cache():
    text, plain = tokens(2, 20), Cache(MODEL.config)
    for cache in (QuantizedCache(MODEL.config, None, None), QuantizedCache(MODEL.config, 2, 2, group_size=4, window=20)):
        torch.testing.assert_close(MODEL(text, cache), MODEL(text), rtol=1e-12, atol=1e-12)
    MODEL(text, plain)
    assert cache.nbytes == plain.nbytes == cache_nbytes(MODEL.config, 20, batch=2, dtype=torch.float64)


def test_bytes_of_a_large_cache_by_hand():
    config = gpt(width=64, heads=1, kv_heads=1, blocks=3).config
    assert cache_nbytes(config, 100) == 2 * 3 * 64 * 100 * 4
    keys = 64 * 64 * 4 // 8 + 2 * 64 * 4 + 36 * 64 * 2                                      # two groups of 32 tokens; 36 stay float16
    values = 95 * 64 * 2 // 8 + 95 * 2 * 4 + 5 * 64 * 2                                     # two groups a token; 5 stay
    assert cache_nbytes(config, 100, 4, 2, window=5, dtype=torch.float16) == 3 * (keys + values)
    assert cache_nbytes(config, 100, 4, 2, window=100, dtype=torch.float16) == 2 * 3 * 64 * 100 * 2
    assert cache_nbytes(config, 0, 4, 2) == 0


def test_each_token_by_itself_is_a_model_whose_keys_and_values_are_rounded():
    """keys="token", window 0: what goes in is what is seen, so two hooks on the matrices do the same for values."""
    text = tokens(3, 16)
    hooked = gpt().requires_grad_(False)
    for block in hooked.blocks:
        block.attention.value.register_forward_hook(
            lambda _, __, y: encode(y.unflatten(-1, (-1, WIDTH)).transpose(1, 2), 2, 1, 6).decode().transpose(1, 2).flatten(2))
    torch.testing.assert_close(with_cache(MODEL, None, 2, "token", 6, 0)(text), hooked(text), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 8), st.sampled_from([(4, 1), (1, 6), (2, 3)]),
       st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.floats(-6, 3), st.floats(-20, 20),
       st.integers(0, 2**16))
@settings(max_examples=40)
def test_no_number_is_further_off_than_half_a_step(bits, group, dtype, size, centre, seed):
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = ((x + centre) * 10**size).to(dtype)
    coded = encode(x, bits, *group)
    hat, exact = coded.decode(), x.double()
    step = coded.scale.double().repeat_interleave(group[0], 2).repeat_interleave(group[1], 3)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    assert hat.dtype == dtype and hat.shape == x.shape
    assert ((hat.double() - exact).abs() <= step / 2 + 2 * eps * (exact.abs() + step * 2**bits)).all()
    lowest = x.double().unflatten(3, (-1, group[1])).unflatten(2, (-1, group[0])).amin((3, 5))
    assert (coded.low.double() <= lowest).all() and (lowest - coded.low.double() <= lowest.abs() * 2**-10 + 2**-24).all()
    assert coded.codes.nbytes == 2 * 3 * 8 * -(-12 * bits // 8) or bits % 2                 # an odd width of codes fills its byte up


def test_a_constant_and_zeros_come_back_exactly():
    x = torch.tensor([0.0, 1.5, -3.25]).repeat(1, 1, 4, 1)
    assert torch.equal(encode(x, 2, 4, 1).decode(), x)
    assert torch.equal(encode(x * 0, 1, 1, 3).decode(), x * 0)


def test_generation_with_a_cache_of_codes():
    plain = generate(MODEL, [3, 7, 1], 20)
    assert generate(MODEL, [3, 7, 1], 20, cache=QuantizedCache(MODEL.config, 8, 8, group_size=4, window=2)) == plain
    coarse = QuantizedCache(MODEL.config, 1, 1, group_size=12, window=0)
    made = generate(MODEL, [3, 7, 1], 20, cache=coarse)
    assert made != plain and coarse.length == 22
    see = with_cache(MODEL, 1, 1, group_size=12, window=0)
    assert made == see(torch.tensor([[3, 7, 1, *made]]))[0, 2:-1].argmax(1).tolist()        # what it drew is what the one pass says


def test_scores_with_a_cache():
    text = evaluate.blocks(tokens(1, 100)[0].tolist(), [1] * 40, 16)
    plain = evaluate.score(MODEL, text)
    off = [evaluate.difference(evaluate.score(with_cache(MODEL, bits, bits, group_size=4, window=0), text), plain).value
           for bits in (8, 4, 1)]
    assert abs(off[0]) < abs(off[1]) < abs(off[2]) and abs(off[0]) < 0.01


def test_loud_channels_of_keys_want_scales_of_their_own():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 1, 32, 32, generator=generator)
    keys[..., 5] = 40 + 3 * keys[..., 5]
    error = [(encode(keys, 2, *group).decode() - keys)[..., torch.arange(32) != 5].square().mean() for group in ((32, 1), (1, 32))]
    assert error[0] < 0.05 * error[1]


@pytest.mark.parametrize(("given_settings", "message"), [
    ({"key_bits": 0}, "key_bits is 0, and must be a whole number from 1 to 8, or None"),
    ({"value_bits": 9}, "value_bits is 9, and must be"),
    ({"value_bits": 2.0}, "value_bits is 2.0, and must be"),
    ({"keys": "head"}, "keys is 'head', and must be one of channel, token"),
    ({"group_size": 5}, "group_size is 5, and must divide the 12 channels of a head"),
    ({"group_size": 0}, "group_size is 0, and must be a whole number of at least 1"),
    ({"window": -1, "group_size": 4}, "window is -1, and must be a whole number of at least 0"),
])
def test_settings_that_do_not_fit_are_refused(given_settings, message):
    for refuse in (lambda: QuantizedCache(MODEL.config, **given_settings), lambda: with_cache(MODEL, **given_settings),
                   lambda: cache_nbytes(MODEL.config, 10, **{"key_bits": 4, "value_bits": 4} | given_settings)):
        with pytest.raises(ValueError, match=re.escape(message)):
            refuse()


def test_bytes_of_fewer_than_no_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens is -1, and must be a whole number of at least 0"):
        cache_nbytes(MODEL.config, -1)
    with pytest.raises(ValueError, match="batch is -2, and must be a whole number of at least 0"):
        cache_nbytes(MODEL.config, 1, batch=-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7e4])
def test_what_cannot_be_coded_is_refused_and_nothing_is_kept(bad):
    x = torch.ones(1, 2, 3, WIDTH)
    cache = QuantizedCache(MODEL.config, group_size=4, window=0, keys="token")
    for block in (0, 1):
        cache.append(block, x, x)
    spoilt = x.clone()
    spoilt[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="values go up to .*, and must be at most 65504, the largest float16"):
        cache.append(0, x, spoilt)
    cache.append(0, x, x)
    cache.append(1, x, x)
    assert cache.length == 6


@pytest.mark.parametrize("cache", [Cache(MODEL.config), QuantizedCache(MODEL.config, group_size=4, window=0)])
def test_another_batch_or_a_text_read_in_part_is_refused(cache):
    MODEL(tokens(2, 5), cache)
    with pytest.raises(ValueError, match="the cache holds 2 texts, and is given 3"):
        MODEL(tokens(3, 5), cache)
    x = torch.ones(2, 2, 1, WIDTH, dtype=torch.float64)
    cache.append(0, x, x)
    with pytest.raises(ValueError, match="block 0 of the cache holds 6 tokens, and the last block 5: a text was read in part"):
        MODEL(tokens(2, 1), cache)


@pytest.mark.parametrize("other", [gpt(blocks=3), gpt(kv_heads=1), gpt(heads=2, kv_heads=2)])
@pytest.mark.parametrize("kind", [Cache, lambda config: QuantizedCache(config, group_size=4)])
def test_the_cache_of_another_model_is_refused(other, kind):
    with pytest.raises(ValueError, match="the cache is for 2 blocks with 2 heads of 12 channels, and is given keys of block"):
        other(tokens(2, 5), kind(MODEL.config))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_and_no_texts(dtype):
    model = gpt(dtype=dtype).requires_grad_(False)
    see = with_cache(model, 4, 4, group_size=4, window=3)
    assert see(tokens(2, 9)).dtype == dtype and see(tokens(0, 9)).shape == (0, 9, 40)
    torch.testing.assert_close(with_cache(model, None, 8, group_size=4)(tokens(2, 9)), model(tokens(2, 9)), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Cache(None), "config is a NoneType, and must be a Config"),
    (lambda: QuantizedCache(3), "config is a int, and must be a Config"),
    (lambda: encode(None, 4, 1, 1), "x is a NoneType and no tensor"),
    (lambda: encode(torch.ones(1, 1, 2, 4).long(), 4, 1, 1), "x holds torch.int64"),
    (lambda: cache_nbytes(MODEL.config, 4, group_size=4, dtype="half"), "dtype is a str, and must be a torch.dtype"),
])
def test_other_types_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: encode(torch.zeros(1, 1, 4, 4), 4, 0, 1), "tokens is 0, and must be a whole number of at least 1"),
    (lambda: encode(torch.zeros(1, 1, 4, 4), 4, 1, -2), "channels is -2"),
    (lambda: cache_nbytes(MODEL.config, 1.5, group_size=4), "tokens is 1.5"),
    (lambda: cache_nbytes(MODEL.config, 4, group_size=4, batch="a"), "batch is 'a'"),
])
def test_other_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=re.escape("keys of shape (1, 1, 5, 12) must be")):
        encode(torch.zeros(1, 1, 5, 12), 4, 2, 1, what="keys")
