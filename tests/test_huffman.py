"""Huffman codes against brute force, a tree of linked nodes, scipy's entropy, a decoder that reads bit by bit, and hypothesis."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.nets import huffman

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=60)


def cost(counts, lengths):
    return int((np.asarray(counts, dtype=object) * np.asarray(lengths).astype(object)).sum())


def kraft(lengths):
    return sum(Fraction(1, 2 ** int(length)) for length in lengths if length)


def cheapest(counts, longest):
    """The least cost of all lengths 1 .. longest that satisfy Kraft's inequality: every one of them is tried."""
    every = np.stack(np.meshgrid(*[np.arange(1, longest + 1)] * len(counts), indexing="ij"), -1).reshape(-1, len(counts))
    possible = every[(2.0 ** -every).sum(1) <= 1]
    return int((possible @ np.array(counts)).min())


def tree_cost(counts):
    """Huffman's own way, without lengths: the cost of the code is the sum of all joins."""
    left, total = sorted(c for c in counts if c), 0
    while len(left) > 1:
        joined = left[0] + left[1]
        total += joined
        left = sorted([*left[2:], joined])
    return total


def read_bit_by_bit(data, lengths, n):
    codes = {(int(length), int(code)): s for s, (length, code) in enumerate(zip(lengths, huffman.canonical_codes(lengths))) if length}
    bits, found, at = "".join(f"{byte:08b}" for byte in data), [], 0
    while len(found) < n:
        length = next(k for k in range(1, 16) if (k, int(bits[at:at + k], 2)) in codes)
        found.append(codes[length, int(bits[at:at + length], 2)])
        at += length
    assert set(bits[at:]) <= {"0"} and len(bits) - at < 8
    return found


@pytest.mark.parametrize("counts", [[5, 9, 12, 13, 16, 45], [1, 1, 1, 1], [1, 1, 2, 4, 8], [7, 1], [3, 3, 3], [1, 2, 3, 4, 5]])
def test_no_code_is_better_brute_force(counts):
    assert cost(counts, huffman.code_lengths(counts)) == cheapest(counts, 6)


@pytest.mark.parametrize("limit", [3, 4, 5])
@pytest.mark.parametrize("counts", [[1, 1, 2, 3, 5, 8, 13], [100, 1, 1, 1, 1], [40, 20, 10, 5, 2, 1, 1]])
def test_no_limited_code_is_better_brute_force(counts, limit):
    lengths = huffman.code_lengths(counts, limit)
    assert cost(counts, lengths) == cheapest(counts, limit)
    assert lengths.max() <= limit and kraft(lengths) == 1


@given(COUNTS)
def test_kraft_entropy_and_the_cost_of_the_tree(counts):
    lengths = huffman.code_lengths(counts)
    assert ((lengths > 0).numpy() == (np.array(counts) > 0)).all()
    present = sum(c > 0 for c in counts)
    if present == 0:
        assert huffman.entropy(counts) == 0
        return
    average, bound = cost(counts, lengths) / sum(counts), scipy.stats.entropy(counts, base=2)
    assert huffman.entropy(counts) == pytest.approx(bound, abs=1e-12)
    if present == 1:
        assert lengths.max() == 1 and bound == 0
        return
    assert kraft(lengths) == 1
    assert bound - 1e-9 <= average < bound + 1
    if lengths.max() < huffman.MAX_LENGTH:
        assert cost(counts, lengths) == tree_cost(counts)


@given(COUNTS, st.integers(6, 15))
def test_a_limit_that_does_not_bind_costs_nothing_and_a_longer_one_never_more(counts, limit):
    lengths = huffman.code_lengths(counts, limit)
    assert lengths.max() <= limit
    assert cost(counts, lengths) >= cost(counts, huffman.code_lengths(counts))
    free = huffman._huffman([c for c in counts if c]) if sum(c > 0 for c in counts) > 1 else []
    if free and max(free) <= limit:
        assert cost(counts, lengths) == cost([c for c in counts if c], free)


def test_package_merge_is_huffman_where_nothing_binds():
    counts = np.random.default_rng(0).integers(1, 200, 40).tolist()
    assert cost(counts, huffman._package_merge(counts, 15)) == tree_cost(counts)


def test_fibonacci_counts_want_the_deepest_tree_and_are_kept_within_fifteen_bits():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert max(huffman._huffman(fibonacci)) == 39
    lengths = huffman.code_lengths(fibonacci)
    assert lengths.max() == huffman.MAX_LENGTH and kraft(lengths) == 1
    assert cost(fibonacci, lengths) < 1.001 * tree_cost(fibonacci)  # what the limit costs: the rare symbols are rare
    symbols = torch.arange(40).repeat_interleave(3)
    assert torch.equal(huffman.decode(huffman.encode(symbols, lengths), lengths, 120).long(), symbols)


def test_canonical_codes_by_hand_and_prefix_free():
    codes, lengths = huffman.canonical_codes([2, 1, 0, 3, 3]), [2, 1, 0, 3, 3]
    assert [f"{c:0{n}b}" if n else "" for c, n in zip(codes.tolist(), lengths)] == ["10", "0", "", "110", "111"]
    lengths = huffman.code_lengths(np.random.default_rng(0).integers(0, 500, 300))
    words = [f"{c:0{n}b}" for c, n in zip(huffman.canonical_codes(lengths).tolist(), lengths.tolist()) if n]
    assert sorted(words, key=lambda w: (len(w), w)) == [w for _, w in sorted(zip(lengths[lengths > 0].tolist(), words), key=lambda p: p[0])]
    assert not any(b.startswith(a) for a, b in itertools.pairwise(sorted(words)))


@given(st.lists(st.integers(0, 299), max_size=400))
def test_any_symbols_come_back(symbols):
    lengths = huffman.code_lengths(np.bincount(np.array(symbols, dtype=np.int64), minlength=300))
    data = huffman.encode(symbols, lengths)
    assert len(data) == -(-sum(int(lengths[s]) for s in symbols) // 8)
    assert huffman.decode(data, lengths, len(symbols)).tolist() == symbols
    assert read_bit_by_bit(data, lengths, len(symbols)) == symbols


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_long_skewed_streams_come_back(weights, n, seed):
    p = np.array(weights) ** 8
    symbols = np.random.default_rng(seed).choice(len(p), n, p=p / p.sum())
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=len(p)))
    decoded = huffman.decode(huffman.encode(symbols, lengths), lengths, n)
    assert (decoded.numpy() == symbols).all() and decoded.dtype == torch.uint8


@pytest.mark.parametrize("piece", [1, 2, 3, 50, 8192])
def test_codes_that_cross_from_one_piece_of_the_stream_to_the_next(piece, monkeypatch):
    monkeypatch.setattr(huffman, "PIECE", piece)
    symbols = np.random.default_rng(1).geometric(0.4, 5000).clip(max=20)
    lengths = huffman.code_lengths(np.bincount(symbols))
    data = huffman.encode(symbols, lengths)
    assert lengths.max() > 8 and (huffman.decode(data, lengths, 5000).numpy() == symbols).all()
    with pytest.raises(ValueError, match="not the code of 5000 symbols"):
        huffman.decode(data[:-1], lengths, 5000)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_one_symbol_takes_a_bit_each(n):
    lengths = huffman.code_lengths([0, 0, n, 0])
    data = huffman.encode([2] * n, lengths)
    assert len(data) == -(-n // 8)
    assert huffman.decode(data, lengths, n).tolist() == [2] * n


def test_shapes_dtypes_and_nothing_at_all():
    lengths = huffman.code_lengths(torch.tensor([3, 2, 1]))
    symbols = torch.tensor([[0, 1, 2], [0, 0, 1]], dtype=torch.uint8)
    assert huffman.decode(huffman.encode(symbols, lengths), lengths, 6).tolist() == [0, 1, 2, 0, 0, 1]
    wide = huffman.code_lengths([1] * 300)
    assert huffman.decode(huffman.encode([299], wide), wide, 1).dtype == torch.int32
    assert huffman.code_lengths([]).tolist() == [] and huffman.encode([], []) == b"" and len(huffman.decode(b"", [], 0)) == 0


@pytest.mark.parametrize("call, error, message", [
    (lambda: huffman.code_lengths([1.5, 2.0]), TypeError, "must hold integers"),
    (lambda: huffman.code_lengths([1, -1]), ValueError, "counts holds -1"),
    (lambda: huffman.code_lengths([1] * 9, max_length=3), ValueError, "9 symbols come, and 3 bits make only 8"),
    (lambda: huffman.code_lengths([1, 2], max_length=16), ValueError, "max_length is 16"),
    (lambda: huffman.encode([0, 2], [1, 1, 0]), ValueError, "symbols holds 2, which has no code"),
    (lambda: huffman.encode([0, 5], [1, 1]), ValueError, "symbols holds 5, which has no code"),
    (lambda: huffman.encode([-1], [1, 1]), ValueError, "symbols holds -1"),
    (lambda: huffman.encode([0.5], [1, 1]), TypeError, "symbols holds float64"),
    (lambda: huffman.encode([0], [1, 2]), ValueError, "the sum of 2\\*\\*-length is 0.75"),
    (lambda: huffman.canonical_codes([1, 1, 1]), ValueError, "no Huffman code"),
    (lambda: huffman.canonical_codes([16, 1]), ValueError, "from 0 to 15"),
    (lambda: huffman.decode(b"", [1, 1], 3), ValueError, "not the code of 3 symbols"),
    (lambda: huffman.decode(b"\0\0", [1, 1], 3), ValueError, "not the code of 3 symbols"),
    (lambda: huffman.decode(b"\0", [1, 1], -1), ValueError, "not the code of -1"),
    (lambda: huffman.decode(b"\0", [0, 0], 3), ValueError, "not the code of 3 symbols"),
    (lambda: huffman.decode(b"\xff", [1, 2, 3, 3], 4), ValueError, "not the code of 4 symbols"),
])
def test_what_does_not_fit_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_stream_that_lost_its_end_is_refused():
    symbols = np.random.default_rng(0).integers(0, 9, 500)
    lengths = huffman.code_lengths(np.bincount(symbols))
    data = huffman.encode(symbols, lengths)
    for broken in (data[:-1], data[:len(data) // 2], data + b"\0"):
        with pytest.raises(ValueError, match="not the code of 500 symbols"):
            huffman.decode(broken, lengths, 500)
