"""Byte-pair encoding (Sennrich, Haddow and Birch 2016), on bytes (GPT-2, Radford et al. 2019): text to numbers and back, without loss.

Learning: the vocabulary begins as the 256 bytes. Count the neighbours in all words; join the most frequent pair into a new entry;
repeat until the vocabulary is full. Encoding: in each word join the pair that was learnt first, until none is left. A word keeps the space
before it, so " the" is one entry and nothing about spaces is lost; no entry reaches over the border of two words.
"""

import json
import re
from collections import Counter
from functools import lru_cache
from numbers import Integral
from operator import index

from qlab.errors import first_line

# A word with the space before it, a digit, marks with the space before them, the space at a line's end, other space.
WORDS = re.compile(r" ?[^\W\d_]+| ?\d| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s")


class Tokenizer:
    """merges: the pairs of entries that were joined, in the order of learning; entry 256 + i is merges[i]. words: splits a text into words.

    Raises TypeError for what are no pairs, ValueError for a pair of entries that are not there yet.

    >>> tokenizer = Tokenizer([(ord("t"), ord("h")), (256, ord("e"))])
    >>> tokenizer.encode("the hat"), tokenizer.decode([257, 33])
    ([257, 32, 104, 97, 116], 'the!')
    """

    def __init__(self, merges: list[tuple[int, int]], words: re.Pattern = WORDS):
        if not isinstance(merges, (list, tuple)) or not all(isinstance(pair, (list, tuple)) for pair in merges):
            raise TypeError("merges must be a list of pairs of entries.")
        self.merges, self.words = [tuple(pair) for pair in merges], words
        self.entries = [bytes([byte]) for byte in range(256)]
        for pair in self.merges:
            if len(pair) != 2 or not all(isinstance(entry, int) and 0 <= entry < len(self.entries) for entry in pair):
                raise ValueError(f"the merge {pair} is number {len(self.entries) - 256}, and must be a pair of entries below "
                                 f"{len(self.entries)}.")
            self.entries.append(self.entries[pair[0]] + self.entries[pair[1]])
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._word = lru_cache(maxsize=2**16)(self._encode_word)

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self, text: str) -> list[int]:
        """The entries' numbers. Raises TypeError for what is no text, ValueError for half of a letter (a surrogate), which has no bytes."""
        check_text(text)
        return [entry for word in self.words.findall(text) for entry in self._word(word)]

    def decode(self, tokens) -> str:
        """The text of entries' numbers; bytes that are no text become the replacement character. Raises ValueError for other numbers."""
        return self.bytes(tokens).decode(errors="replace")

    def bytes(self, tokens) -> bytes:
        """The bytes of entries' numbers, a list or a tensor of one dimension."""
        return bytes_of(self.entries, tokens)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        entries = list(word.encode())
        while len(entries) > 1:
            first = min(zip(entries, entries[1:]), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if first not in self._rank:
                break
            entries = _join(entries, first, 256 + self._rank[first])
        return tuple(entries)

    def save(self) -> str:
        """The merges as JSON, which `load` reads."""
        return json.dumps(self.merges, separators=(",", ":"))


def load(text: str) -> Tokenizer:
    """The tokenizer that `save` wrote, with the words of this page. Raises ValueError for what it did not write.

    >>> len(load("[[116, 104], [256, 101]]"))
    258
    """
    try:
        return Tokenizer(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the merges must be as Tokenizer.save writes them, JSON, a list of pairs ({first_line(error)}).") from None


def learn(text: str, size: int) -> Tokenizer:
    """The tokenizer with `size` entries that this text suggests; of two pairs equally frequent the smaller numbers win.

    Raises ValueError for a size below 256 or a text in which no pair is left to join, and as `Tokenizer.encode` does.

    >>> learn("the cat and the hat", 259).entries[256:]
    [b'at', b'he', b'the']
    """
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 256:
        raise ValueError(f"size is {size!r}, and must be a whole number of at least 256: each byte has an entry.")
    check_text(text)
    words = [(list(word.encode()), count) for word, count in Counter(WORDS.findall(text)).items()]
    pairs, places = Counter(), {}
    for number, (entries, count) in enumerate(words):
        for pair in zip(entries, entries[1:]):
            pairs[pair] += count
            places.setdefault(pair, set()).add(number)
    merges = []
    while 256 + len(merges) < size:
        most = max(pairs.values(), default=0)
        if most < 1:
            raise ValueError(f"the text has pairs for {256 + len(merges)} entries, and size is {size}: take more text or fewer entries.")
        best = min(pair for pair, count in pairs.items() if count == most)
        for number in places.pop(best):  # only the words that hold the pair change
            entries, count = words[number]
            for pair in zip(entries, entries[1:]):
                pairs[pair] -= count
            joined = _join(entries, best, 256 + len(merges))
            for pair in zip(joined, joined[1:]):
                pairs[pair] += count
                places.setdefault(pair, set()).add(number)
            words[number] = (joined, count)
        del pairs[best]
        merges.append(best)
    return Tokenizer(merges)


def check_text(text) -> None:
    """Raises TypeError for what is no text; ValueError for a text with half of a letter, which no bytes stand for."""
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}, and must be a string.")
    if half := re.search("[\ud800-\udfff]", text):
        raise ValueError(f"the text has half of a letter, {half[0]!r}, which no bytes stand for: remove it.")


def whole(tokens, name: str = "tokens") -> list[int]:
    """Tokens, a list, an array or a tensor of one dimension, as Python's numbers. Raises TypeError for what is no such thing.

    >>> whole(range(3, 5))
    [3, 4]
    """
    try:
        return [index(token) for token in getattr(tokens, "tolist", lambda: tokens)()]
    except TypeError:
        raise TypeError(f"{name} is a {type(tokens).__name__}, and must hold whole numbers, one after the other.") from None


def bytes_of(entries: list[bytes], tokens) -> bytes:
    """The bytes of tokens, numbers of entries, one after the other. Raises TypeError for what are no numbers, ValueError for a number that
    no entry has.

    >>> bytes_of([b"a", b"bc"], [1, 0])
    b'bca'
    """
    tokens = whole(tokens)
    for token in tokens:
        if not 0 <= token < len(entries):
            raise ValueError(f"token {token} is not of this vocabulary: it must be from 0 to {len(entries) - 1}.")
    return b"".join(entries[token] for token in tokens)


def _join(entries: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Every occurrence of the pair, from the left, as one entry."""
    joined, i = [], 0
    while i < len(entries):
        here = entries[i:i + 2] == list(pair)
        joined.append(new if here else entries[i])
        i += 2 if here else 1
    return joined
