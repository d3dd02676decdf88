"""The transformer against the same written in NumPy, its vocabulary against the slow algorithm, its scores against their formulas."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.lab import text
from qlab.llm import evaluate, tokenizer
from qlab.llm.generate import generate
from qlab.llm.kv_cache import Cache
from qlab.llm.model import GPT, Config

SMALL = Config(vocabulary=50, width=24, blocks=2, heads=6, kv_heads=2, hidden=20, context=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = GPT(SMALL).double()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.5)
    return made.eval()


def numpy_logits(model, tokens):
    """One text, one token and one head at a time."""
    c, w = model.config, {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(x, gain):
        return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + c.eps)

    def turned(x, position):
        pairs = x.reshape(-1, 2) @ [1, 1j] * np.exp(1j * position * c.rope_base ** (-2 * np.arange(len(x) // 2) / len(x)))
        return np.stack([pairs.real, pairs.imag], -1).ravel()

    x = w["embedding.weight"][tokens]
    for b in range(c.blocks):
        at = {name.split(f"blocks.{b}.")[1]: p for name, p in w.items() if name.startswith(f"blocks.{b}.")}
        y, new = norm(x, at["attention_norm.weight"]), np.zeros_like(x)
        for i in range(len(tokens)):
            for h in range(c.heads):
                own, shared = (slice(k * c.head_width, (k + 1) * c.head_width) for k in (h, h * c.kv_heads // c.heads))
                q = turned(at["attention.query.weight"][own] @ y[i], i)
                keys = [turned(at["attention.key.weight"][shared] @ y[j], j) for j in range(i + 1)]
                p = np.exp(np.array([q @ k for k in keys]) / math.sqrt(c.head_width))
                values = [at["attention.value.weight"][shared] @ y[j] for j in range(i + 1)]
                new[i] += at["attention.output.weight"][:, own] @ (p / p.sum() @ values)
        x = x + new
        y = norm(x, at["mlp_norm.weight"])
        gate = y @ at["mlp.gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ at["mlp.up.weight"].T)) @ at["mlp.down.weight"].T
    return norm(x, w["norm.weight"]) @ w["embedding.weight"].T


def test_the_model_is_the_formulas(model):
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    for row, logits in zip(tokens, model(tokens)):
        np.testing.assert_allclose(logits.detach().numpy(), numpy_logits(model, row.numpy()), rtol=1e-5, atol=1e-5)  # the turns are float32


@pytest.mark.parametrize("steps", [[9], [1] * 9, [4, 5], [3, 1, 5]])
def test_with_a_cache_the_logits_are_the_same(model, steps):
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(2))
    cache = Cache(SMALL)
    parts = [model(part, cache) for part in tokens.split(steps, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-10)
    assert cache.length == 9 and cache.nbytes == 2 * 2 * 3 * 2 * 4 * 9 * 8


def test_no_token_sees_those_after_it(model):
    tokens = torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[0, 6:] = (other[0, 6:] + 1) % 50
    torch.testing.assert_close(model(tokens)[:, :6], model(other)[:, :6], rtol=0, atol=0)


@pytest.mark.parametrize(("tokens", "message"), [
    (torch.zeros(1, 17, dtype=torch.int64), "17 tokens long, and the model reads at most 16"),
    (torch.tensor([[0, 50]]), "tokens go from 0 to 50, and must be from 0 to 49"),
    (torch.tensor([[-1]]), "tokens go from -1"),
    (torch.zeros(1, 3), "tokens are torch.float32"),
    (torch.zeros(3, dtype=torch.int64), "must be int64"),
    (torch.zeros(1, 0, dtype=torch.int64), "at least one of them"),
])
def test_wrong_tokens_are_refused(model, tokens, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(tokens)


@pytest.mark.parametrize(("sizes", "message"), [
    ({"heads": 5}, "width is 24, and must be a multiple of 2 * heads = 10"),
    ({"kv_heads": 4}, "heads is 6, and must be a multiple of kv_heads = 4"),
    ({"width": 24.0}, "width is 24.0, and must be a whole number"),
    ({"context": "8"}, "context is '8', and must be a whole number"),
    ({"rope_base": 0.0}, "rope_base is 0.0, and must be a number above 0"),
    ({"eps": math.nan}, "eps is nan, and must be a number above 0"),
    ({"blocks": 0}, "blocks is 0, and must be a whole number of at least 1"),
])
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**vars(SMALL) | sizes)


# Generation


def test_the_most_likely_token_each_time_with_and_without_a_cache(model):
    made = [3, 7]
    for _ in range(10):
        made.append(int(model(torch.tensor([made]))[0, -1].argmax()))
    assert generate(model, [3, 7], 10) == made[2:]
    assert generate(model, [3, 7], 10, stop=made[4]) == made[2:made.index(made[4], 2)]


def test_drawing_follows_the_probabilities(model):
    p = torch.softmax(model(torch.tensor([[3, 7]]))[0, -1] / 2, 0)
    drawn = torch.tensor([generate(model, [3, 7], 1, temperature=2.0, seed=seed) for seed in range(400)]).flatten()
    found = torch.bincount(drawn, minlength=50) / 400
    assert (found - p).abs().max() < 4 * math.sqrt(0.25 / 400)
    top = set(p.topk(3).indices.tolist())
    assert {generate(model, [3, 7], 1, temperature=5.0, top_k=3, seed=seed)[0] for seed in range(60)} == top
    assert generate(model, [3, 7], 8, temperature=1.0, seed=5) == generate(model, [3, 7], 8, temperature=1.0, seed=5)


@pytest.mark.parametrize(("how", "message"), [
    ({"tokens": []}, "the prompt has no token"),
    ({"count": 15}, "2 tokens and 15 more are wanted; the model reads at most 16"),
    ({"count": -1}, "count is -1"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"top_k": 0}, "top_k is 0"),
    ({"tokens": [50]}, "must be from 0 to 49"),
    ({"tokens": [3, -1]}, "tokens go from -1 to 3, and must be from 0 to 49"),
    ({"tokens": [10**30]}, "must be from 0 to 49"),
    ({"count": 2.0}, "count is 2.0, and must be a whole number of at least 0"),
    ({"temperature": "hot"}, "temperature is 'hot', and must be a number"),
    ({"top_k": 1.5}, "top_k is 1.5, and must be a whole number of at least 1"),
    ({"stop": "."}, "stop is '.', and must be a whole number"),
    ({"seed": None}, "seed is None, and must be a whole number from 0"),
])
def test_wrong_wishes_are_refused(model, how, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model, **{"tokens": [3, 7], "count": 2} | how)


@pytest.mark.parametrize(("how", "message"), [
    ({"tokens": None}, "tokens is a NoneType, and must hold whole numbers"),
    ({"tokens": "3 7"}, "tokens is a str"),
    ({"tokens": [3.0]}, "tokens is a list"),
    ({"tokens": torch.tensor([[3, 7]])}, "tokens is a Tensor"),
    ({"cache": []}, "cache is a list, and must be a Cache or QuantizedCache"),
    ({"model": torch.nn.Identity()}, "model is a Identity, and must be a GPT"),
])
def test_what_is_no_model_no_tokens_and_no_cache(model, how, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        generate(**{"model": model, "tokens": [3, 7], "count": 2} | how)


def test_a_prompt_may_be_an_array_and_a_model_of_nan_says_nothing(model):
    made = generate(model, [3, 7], 4)
    assert generate(model, torch.tensor([3, 7]), 4) == generate(model, np.array([3, 7]), 4) == made
    spoilt = GPT(SMALL)
    spoilt.norm.weight.data.fill_(math.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not finite"):
            generate(spoilt, [3], 1, temperature)


def test_the_coldest_draw_is_the_most_likely_token_and_of_equals_top_k_takes_so_many(model):
    for temperature in (1e-320, 1e-40, 1e-6):
        assert generate(model, [3, 7], 4, temperature) == generate(model, [3, 7], 4)
    even = GPT(SMALL)
    even.embedding.weight.data.fill_(1.0)                                                   # every token as likely as any other
    assert len({generate(even, [3], 1, 1.0, top_k=2, seed=seed)[0] for seed in range(40)}) == 2


# The vocabulary


def slow_merges(string, size):
    """Every pair counted anew for every merge."""
    words, merges = [list(word.encode()) for word in tokenizer.WORDS.findall(string)], []
    while 256 + len(merges) < size:
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [255 + len(merges)]
                i += 1
    return merges


@pytest.mark.parametrize("start", [0, 20_000, 77_777])
def test_learning_joins_the_most_frequent_pair(start):
    string = text.book("emma")[start:start + 2000]
    assert tokenizer.learn(string, 320).merges == slow_merges(string, 320)
    assert tokenizer.learn("aaaa aaaa aaa", 258).merges == slow_merges("aaaa aaaa aaa", 258)


@given(st.text(max_size=60))
def test_a_text_comes_back(string):
    assert text.bpe().decode(text.bpe().encode(string)) == string


def test_the_vocabulary_is_what_the_training_part_teaches():
    assert tokenizer.learn(text.part("train"), text.ENTRIES).merges == text.bpe().merges
    assert tokenizer.load(text.bpe().save()).merges == text.bpe().merges


@pytest.mark.parametrize(("call", "message"), [
    (lambda: tokenizer.learn("abc", 255), "size is 255, and must be a whole number of at least 256"),
    (lambda: tokenizer.learn("abc", 300), "the text has pairs for 258 entries"),
    (lambda: tokenizer.Tokenizer([(97, 256)]), "the merge (97, 256) is number 0"),
    (lambda: tokenizer.load("{"), "the merges must be as Tokenizer.save writes them, JSON, a list of pairs (Expecting"),
    (lambda: tokenizer.load("[" * 10**5), "the merges must be as Tokenizer.save writes them"),
    (lambda: tokenizer.load("[1]"), "(merges must be a list of pairs of entries)"),
    (lambda: tokenizer.learn("a", 300.5), "size is 300.5"),
    (lambda: text.bpe().encode("a\ud800"), "the text has half of a letter, '\\ud800'"),
    (lambda: text.bpe().decode([1024]), "token 1024 is not of this vocabulary: it must be from 0 to 1023"),
    (lambda: text.bpe().decode([-1]), "token -1"),
    (lambda: text.book("lady_susan"), "name is 'lady_susan'"),
    (lambda: text.part("all"), "part is 'all'"),
])
def test_wrong_texts_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("call", [
    lambda: text.bpe().encode(b"ab"), lambda: tokenizer.learn(None, 300), lambda: text.bpe().decode([1.5]), lambda: text.bpe().decode("ab"),
    lambda: tokenizer.Tokenizer(None), lambda: evaluate.blocks([0.5, 1.0], [1], 1), lambda: evaluate.score(len, torch.zeros(2, 3)),
])
def test_other_types_are_refused(call):
    with pytest.raises(TypeError, match=r"(text|tokens) is a .*, and must|merges must be"):
        call()


def test_a_damaged_book_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "FOLDER", tmp_path)
    (tmp_path / "emma.txt.xz").write_bytes(b"Emma")
    with pytest.raises(ValueError, match="damaged .4 bytes, wrong sha256"):
        text.book.__wrapped__("emma")
    with pytest.raises(FileNotFoundError, match="reinstall qlab"):
        text.book.__wrapped__("persuasion")


def test_no_part_overlaps_another():
    parts = {name: text.part(name) for name in text.PARTS}
    assert sum(map(len, parts.values())) == sum(len(text.book(name)) for name in text.SHA256)
    assert not set(parts["test"].splitlines()) & {line for line in parts["train"].splitlines() if len(line) > 80}


# Scores


@pytest.fixture(scope="module")
def blocks():
    tokens = torch.randint(50, (121,), generator=torch.Generator().manual_seed(4)).tolist()
    return evaluate.blocks(tokens, [1 + i % 3 for i in range(50)], 12)


def test_blocks_predict_each_token_once(blocks):
    assert blocks.tokens.shape == (10, 13)
    assert torch.equal(blocks.tokens[1:, 0], blocks.tokens[:-1, -1])
    assert blocks.nbytes.sum() == sum(1 + int(token) % 3 for token in blocks.tokens[:, 1:].flatten())
    few = evaluate.blocks(list(range(50)), [1] * 50, 5, count=3)
    assert few.tokens[:, 0].tolist() == [0, 15, 30]


def test_scores_are_sums_of_log_probabilities(model, blocks):
    scores = evaluate.score(model, blocks, batch=3)
    for row, nats in zip(blocks.tokens, scores.nats):
        logits = numpy_logits(model, row[:-1].numpy())
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert nats.item() == pytest.approx(-np.log(p[np.arange(12), row[1:]]).sum(), rel=1e-5)
    assert evaluate.bits_per_byte(scores).value == pytest.approx(scores.nats.sum().item() / math.log(2) / blocks.nbytes.sum().item())
    assert evaluate.perplexity(scores) == pytest.approx(math.exp(scores.nats.mean() / 12))


def test_the_error_is_that_of_blocks_drawn_again(model, blocks):
    generator = torch.Generator().manual_seed(5)
    n = 300
    nbytes = torch.randint(20, 60, (n,), generator=generator)
    a = evaluate.Scores(nbytes * (2 + torch.randn(n, generator=generator).double() / 5), nbytes, torch.full((n,), 12))
    b = a._replace(nats=a.nats + 0.3 + torch.randn(n, generator=generator).double())
    again = torch.randint(n, (4000, n), generator=generator)
    for found, nats in ((evaluate.bits_per_byte(a), a.nats), (evaluate.difference(b, a), b.nats - a.nats)):
        drawn = nats[again].sum(1) / math.log(2) / nbytes[again].sum(1)
        assert found.error == pytest.approx(drawn.std().item(), rel=0.08)
        assert found.interval[0] < found.value < found.interval[1] and found.t == found.value / found.error


def test_the_divergence_is_the_mean_of_kullback_and_leiblers(model, blocks):
    torch.manual_seed(6)
    other = GPT(SMALL).double().eval()
    found = []
    for row in blocks.tokens:
        p, q = (torch.softmax(m(row[None, :-1]), -1).detach().numpy() for m in (model, other))
        found.append((p * np.log2(p / q)).sum())
    by_block = evaluate.divergences(other, model, blocks)
    np.testing.assert_allclose(by_block.nats / math.log(2), found)
    assert evaluate.divergence(other, model, blocks).value == pytest.approx(sum(found) / blocks.nbytes.sum().item())
    assert evaluate.difference(by_block, by_block) == evaluate.Estimate(0.0, 0.0)
    assert evaluate.divergence(model, model, blocks).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("call", "message"), [
    (lambda b: evaluate.blocks([1, 2], [1] * 3, 2), "the text has 2 tokens, and a block of 2 predictions needs 3"),
    (lambda b: evaluate.blocks([1, 2, 3], [1] * 4, 0), "length is 0, and must be a whole number of at least 1"),
    (lambda b: evaluate.blocks([1, -1, 2], [1] * 4, 1), "tokens go from -1 to 2, and must be from 0 to 3"),
    (lambda b: evaluate.blocks([1, 4], [1] * 4, 1), "tokens go from 1 to 4"),
    (lambda b: evaluate.blocks([1, 0], [1, -1], 1), "sizes holds -1"),
    (lambda b: evaluate.score(lambda rows: torch.zeros(4, 8), b), "the model gives shape (4, 8) for tokens of shape"),
    (lambda b: evaluate.score(lambda rows: None, b), "the model gives a NoneType"),
    (lambda b: evaluate.score(len, b, batch=0), "batch is 0"),
    (lambda b: evaluate.score(len, evaluate.Text(b.tokens[:0], b.nbytes[:0])), "at least one block"),
    (lambda b: evaluate.bits_per_byte(evaluate.Scores(*[torch.zeros(2)] * 3)), "the scores are of no byte"),
    (lambda b: evaluate.perplexity(evaluate.Scores(*[torch.zeros(0)] * 3)), "the scores are of no token"),
    (lambda b: evaluate.blocks([1, 2, 3], [1] * 4, 2, count=2), "count is 2, and must be from 1 to 1"),
    (lambda b: evaluate.score(lambda rows: torch.full((*rows.shape, 50), math.nan), b), "not finite"),
    (lambda b: evaluate.difference(evaluate.Scores(*[torch.ones(2)] * 3), evaluate.Scores(*[torch.ones(3)] * 3)), "2 and 3 blocks"),
])
def test_scores_that_cannot_be_taken_are_refused(blocks, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(blocks)


def test_a_perplexity_beyond_the_largest_float_is_infinite():
    assert evaluate.perplexity(evaluate.Scores(*(torch.tensor([n]) for n in (800.0, 3, 1)))) == math.inf
