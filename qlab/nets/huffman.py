"""Huffman coding: what comes often gets a short code. The last step of Deep Compression (Han et al. 2016, section 4).

    entropy        H = -sum p_s log2 p_s        bits a symbol: no code that is read back without doubt does better on average   Shannon 1948
    Huffman        H <= sum p_s l_s < H + 1     l_s: the length of symbol s's code, in bits                                     Huffman 1952
    Kraft          sum 2**-l_s = 1              the codes fill the tree, and none is the beginning of another

The tree is built from its leaves: join the two rarest into one that comes as often as both, until one is left. A symbol's length is the
number of joins it took part in. Lengths are all that a file has to keep if the codes are canonical: ordered by length, then by symbol,
each the next free number. With L the longest length, a code of length l is the beginning of 2**(L - l) of the 2**L patterns that L bits
can have, and canonical codes hand the patterns out in order:

    symbol, length     a 1     b 2     c 3     d 3
    patterns           000 001 010 011         100 101        110        111         L = 3
    code               0                       10             110        111

That row of patterns is the decoder's table: L bits in, a symbol and its length out.
"""

import heapq
from numbers import Integral

import numpy as np
import torch

from qlab.quant.layout import as_tensor

MAX_LENGTH = 15  # a length then takes 4 bits of a file, and the decoder's table has at most 32,768 entries: DEFLATE's limit too
STRIDE = 64      # the decoder follows the chain of codes in Python only at every 64th symbol
PIECE = 8192     # bytes that it reads at a time


def entropy(counts) -> float:
    """The entropy of symbols that come counts[s] times, in bits a symbol; 0.0 where there are none (Shannon 1948).

    >>> entropy([4, 2, 1, 1])
    1.75
    """
    counts = _counts(counts)
    p = counts[counts > 0] / float(max(sum(counts.tolist()), 1))                            # Python's integers do not overflow
    return float(-(p * np.log2(p)).sum()) + 0.0  # + 0.0: not -0.0


def code_lengths(counts, max_length: int = MAX_LENGTH) -> torch.Tensor:
    """The length in bits of each symbol's Huffman code, uint8 (symbols,); 0 for a symbol that never comes.

    counts: how often each symbol 0, 1, 2, ... comes, integers. A single symbol gets length 1. Where Huffman's tree is deeper than
    max_length (1 to 15), the best code within it is taken, by package-merge (Larmore and Hirschberg 1990).

    Raises TypeError for counts that are not integers, ValueError for negative ones, or more symbols than 2**max_length codes.

    >>> code_lengths([4, 2, 1, 1, 0])
    tensor([1, 2, 3, 3, 0], dtype=torch.uint8)
    """
    counts = _counts(counts)
    if isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= MAX_LENGTH:
        raise ValueError(f"max_length is {max_length!r}, and must be a whole number from 1 to {MAX_LENGTH}.")
    present = np.flatnonzero(counts)
    if len(present) > 2**max_length:
        raise ValueError(f"{len(present)} symbols come, and {max_length} bits make only {2**max_length} codes.")
    lengths = np.zeros(len(counts), np.uint8)
    often = [int(count) for count in counts[present]]
    if len(often) == 1:
        lengths[present] = 1  # an empty code would do, but then nothing in the file would say how many there are
    elif often:
        found = _huffman(often)
        lengths[present] = found if max(found) <= max_length else _package_merge(often, max_length)
    return torch.from_numpy(lengths)


def _huffman(counts: list[int]) -> list[int]:
    """Each leaf's depth in Huffman's tree; leaves are the nodes 0 .. n - 1, joins the nodes after them."""
    n = len(counts)
    heap = [(count, node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    parent = [0] * (2 * n - 1)
    for joined in range(n, 2 * n - 1):
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)                           # the two rarest
        parent[i] = parent[j] = joined
        heapq.heappush(heap, (a + b, joined))
    depth = [0] * (2 * n - 1)
    for node in range(2 * n - 3, -1, -1):                                                   # from below the root down to the leaves
        depth[node] = depth[parent[node]] + 1
    return depth[:n]


def _package_merge(counts: list[int], max_length: int) -> list[int]:
    """The lengths of least total cost among those of at most max_length.

    A code of length l costs its count once for each level 1 .. l. From the deepest level up, pairs of the cheapest become packages,
    which compete with the single symbols of the next level; the 2n - 2 cheapest at the top are the code.
    """
    singles = sorted((count, (symbol,)) for symbol, count in enumerate(counts))
    row = singles
    for _ in range(max_length - 1):
        packages = [(a + b, symbols + others) for (a, symbols), (b, others) in zip(row[::2], row[1::2])]
        row = sorted(singles + packages)
    chosen = [symbol for _, symbols in row[:2 * len(counts) - 2] for symbol in symbols]
    return np.bincount(chosen, minlength=len(counts)).tolist()


def canonical_codes(lengths) -> torch.Tensor:
    """The canonical code of each symbol, int64 (symbols,), to be written in lengths[s] bits, the most significant first.

    Raises ValueError for lengths that are no full Huffman code: Kraft's sum must be 1 (1/2 for a single symbol).

    >>> [f"{code:0{length}b}" for code, length in zip(canonical_codes([1, 2, 3, 3]), [1, 2, 3, 3])]
    ['0', '10', '110', '111']
    """
    return torch.from_numpy(_codes(_lengths(lengths)))


def encode(symbols, lengths) -> bytes:
    """The symbols' codes, end to end; the last byte is filled with zeros. ceil(sum of lengths / 8) bytes.

    symbols: integers of any shape, read in memory order; lengths: of code_lengths. The number of symbols is not written.
    Raises TypeError for symbols that are not integers, ValueError for one that has no code.

    >>> encode([0, 1, 3, 0], [1, 2, 3, 3]).hex()      # 0 10 111 0 0
    '5c'
    """
    lengths = _lengths(lengths)
    symbols = _integers(symbols, "symbols")
    if not symbols.size:
        return b""
    if symbols.min() < 0 or symbols.max() >= len(lengths) or not (length := lengths[symbols].astype(np.int64)).all():
        wrong = next(int(s) for s in symbols if not 0 <= s < len(lengths) or not lengths[s])
        raise ValueError(f"symbols holds {wrong}, which has no code: lengths must be made from counts in which it comes.")
    end = np.cumsum(length)
    begin = end - length                                                                    # the bit at which each code begins
    # Aligned to the word of 32 bits it begins in, a code reaches at most into the next one. Codes do not overlap: adding is writing.
    aligned = _codes(lengths)[symbols].astype(np.uint64) << (64 - (begin & 31) - length).astype(np.uint64)
    words = -(-int(end[-1]) // 32)
    stream = np.bincount(begin >> 5, aligned >> np.uint64(32), words + 1)
    stream += np.bincount((begin >> 5) + 1, aligned & np.uint64(2**32 - 1), words + 1)      # float64 holds 32 bits exactly
    return stream.astype(">u4").tobytes()[:-(-int(end[-1]) // 8)]


def decode(data: bytes, lengths, n: int) -> torch.Tensor:
    """The n symbols that encode wrote: uint8 up to 256 symbols, int32 above; shape (n,).

    Where a code begins is known only once the one before it has been read. So look up at every bit how long the code would be that
    begins there: a pointer to the next one. Pointers of pointers jump 2, 4, .. 64 codes ahead; one walk in jumps of 64, then all
    stretches of 64 at once. The stream is read in pieces that fit into a processor's cache.

    Raises ValueError where data is not exactly the bytes of n codes.

    >>> decode(bytes.fromhex("5c"), [1, 2, 3, 3], n=4).tolist()
    [0, 1, 3, 0]
    """
    lengths = _lengths(lengths)
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise ValueError(f"n is {n!r}, and must be a whole number.")
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data is a {type(data).__name__}, and must be bytes, as encode returns them.")
    dtype = np.uint8 if len(lengths) <= 256 else np.int32
    wrong = f"data is not the code of {n} symbols: {len(data)} bytes, damaged or cut off, or other lengths than it was encoded with."
    if n < 0 or (n > 0 and not lengths.any()) or n > 8 * len(data) or (n == 0 and data):
        raise ValueError(wrong)
    if n == 0:
        return torch.from_numpy(np.zeros(0, dtype))
    order, shares, longest = _shares(lengths)
    symbol_at = np.resize(np.repeat(order, shares), 1 << longest)                           # a single symbol owns both patterns of a bit
    length_at = lengths[symbol_at].astype(np.int64)
    found, begins, at = [], [], 0
    for first in range(0, len(data), PIECE):
        piece = data[first:first + PIECE]
        window = _windows(piece + data[first + PIECE:first + PIECE + 2], longest)[:8 * len(piece)]
        begin = _chain(length_at[window], at - 8 * first)
        if len(begin):
            found.append(symbol_at[window[begin]])
            begins.append(8 * first + begin)
            at = int(begins[-1][-1] + length_at[window[begin[-1]]])
    symbols, begin = np.concatenate(found)[:n], np.concatenate(begins)
    if len(symbols) < n or -(-int(begin[n - 1] + lengths[symbols[n - 1]]) // 8) != len(data):
        raise ValueError(wrong)
    return torch.from_numpy(symbols.astype(dtype))


def _chain(length: np.ndarray, first: int) -> np.ndarray:
    """Where codes begin, from `first` on, in a stretch in which a code that began at bit i would be length[i] bits long."""
    n = len(length)
    if first >= n:
        return np.zeros(0, np.int64)
    after = np.append(np.minimum(np.arange(n) + length, n), n)                              # from the end there is no way on
    jump, stride = after, 1
    while stride < STRIDE:
        jump, stride = jump[jump], 2 * stride
    heads = [first]
    while heads[-1] < n:
        heads.append(int(jump[heads[-1]]))
    begin = np.empty((STRIDE, len(heads)), np.int64)
    begin[0] = heads
    for i in range(1, STRIDE):
        begin[i] = after[begin[i - 1]]
    begin = begin.T.reshape(-1)
    return begin[begin < n]


def _windows(data: bytes, longest: int) -> np.ndarray:
    """The pattern of the `longest` bits (at most 15) that begin at each bit of the stream, zeros beyond its end, int64 (bits,)."""
    octets = np.frombuffer(data + b"\0\0", np.uint8).astype(np.int64)
    three = octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]                              # 24 bits from each byte on
    return (three[:, None] >> (24 - longest - np.arange(8)) & ((1 << longest) - 1)).reshape(-1)


def _shares(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The symbols in canonical order, how many of the patterns of L bits each owns, and L."""
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order, longest = order[lengths[order] > 0], int(lengths.max(initial=0))
    return order, 1 << (longest - lengths[order].astype(np.int64)), longest


def _codes(lengths: np.ndarray) -> np.ndarray:
    """Each code is the first of the patterns its symbol owns, without the bits that follow it."""
    order, shares, _ = _shares(lengths)
    codes = np.zeros(len(lengths), np.int64)
    codes[order] = (np.cumsum(shares) - shares) // shares
    return codes


def _integers(values, name: str) -> np.ndarray:
    try:
        values = as_tensor(values, name).cpu() if isinstance(values, torch.Tensor) else np.asarray(values)
    except ValueError:
        raise TypeError(f"{name} is a {type(values).__name__} of unequal rows, and must hold integers.") from None
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{name} holds {values.dtype}, and must hold integers.")
        values = values.numpy()
    if values.size == 0:
        return np.zeros(0, np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} holds {values.dtype}, and must hold integers{' of at most 64 bits' if values.dtype == object else ''}.")
    return values.reshape(-1)


def _counts(counts) -> np.ndarray:
    counts = _integers(counts, "counts")
    if counts.size and counts.min() < 0:
        raise ValueError(f"counts holds {counts.min()}, and must hold no negative number.")
    return counts


def _lengths(lengths) -> np.ndarray:
    lengths = _integers(lengths, "lengths")
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= MAX_LENGTH:
        raise ValueError(f"lengths run from {lengths.min()} to {lengths.max()}, and must be from 0 to {MAX_LENGTH} bits.")
    used = lengths[lengths > 0].astype(np.int64)
    kraft = int((1 << (MAX_LENGTH - used)).sum())
    if len(used) and kraft != 1 << MAX_LENGTH and used.tolist() != [1]:
        raise ValueError(f"lengths are those of no Huffman code: the sum of 2**-length is {kraft / 2**MAX_LENGTH:g}, and must be 1.")
    return lengths
