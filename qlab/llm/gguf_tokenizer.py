"""The tokenizer in a GGUF file: byte-pair encoding of GPT-2's kind (Radford et al. 2019), as its vocabulary is written down.

A vocabulary of bytes has entries that are no text: half of a letter, a line's end. GPT-2 writes each byte as one letter that can be
seen: the 188 printing ones of Latin-1 as themselves, the other 68, in their order, as the letters from U+0100 on. So a space is written
G with a dot (U+0120), and " the" is the entry of that letter, t, h, e. A merge is two entries with a space between them.

Numbers are the file's: an entry's place in tokenizer.ggml.tokens. Some entries are no bytes of a text but marks, such as <|im_start|>;
a text that merely contains these letters must not be taken for one, so `encode` reads them as marks only where it is told to.
"""

import re
import sys
import unicodedata
from functools import cache

from qlab.llm.gguf import File, shown
from qlab.llm.tokenizer import Tokenizer, bytes_of, check_text

NORMAL, USER_DEFINED = 1, 4  # of tokenizer.ggml.token_type; the others are 2 unknown, 3 control, 5 unused, 6 byte
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's white space; Python's \s has four more
KINDS = {  # tokenizer.ggml.pre: how a text falls into words, L letters, N numbers, S space
    # An English ending; a word, a number or marks with the space before them; spaces but the last, which belongs to the next word.
    "gpt-2": r"'(?:s|t|re|ve|m|ll|d)| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+",
    # The same, between single digits: each stands alone, without the space before it.
    "smollm": r"[{N}]|'(?:s|t|re|ve|m|ll|d)| ?[{L}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}{N}])|[{S}]+",
}


class FileTokenizer:
    """The tokenizer of a file that `gguf.read` returned: as qlab.llm.tokenizer's, with the file's numbers.

    entries: the bytes of each number; marks: those that are no text, by name; start, end: the numbers of the marks that begin and end a
    text, None where the file names none. Raises ValueError, in one sentence, for a file that has no tokenizer or one of another kind.

    >>> told = {"model": "gpt2", "pre": "gpt-2", "tokens": ["<end>", "Ġ", "a", "b", "ab"], "token_type": [3, 1, 1, 1, 1], "merges": ["a b"]}
    >>> tokenizer = FileTokenizer(File("by hand", {f"tokenizer.ggml.{key}": value for key, value in told.items()}, {}))
    >>> tokenizer.encode("ab ba<end>", marks=True), tokenizer.decode([4, 2]), [len(entry) for entry in tokenizer.entries]
    ([4, 1, 3, 2, 0], 'aba', [5, 1, 1, 1, 2])
    """

    def __init__(self, file: File):
        tokens, merges, types = (_of(file, f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
        kind, pre = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        if not (isinstance(kind, str) and kind == "gpt2" and isinstance(pre, str) and pre in KINDS):
            raise ValueError(f"{file.path} has a tokenizer of kind {shown(kind)}, {shown(pre)}, and must have one of kind "
                             f"'gpt2', {' or '.join(map(repr, KINDS))}.")
        number = {token: i for i, token in enumerate(tokens)}
        if len(types) != len(tokens) or len(number) != len(tokens):
            raise ValueError(f"{file.path} is damaged: its vocabulary has {len(number)} different entries, {len(tokens)} in all, and their "
                             f"types are {len(types)}.")
        byte = {letter: value for value, letter in enumerate(letters())}
        self.marks = {token: i for token, i in number.items() if types[i] != NORMAL}
        self._always = [token for token, i in self.marks.items() if types[i] == USER_DEFINED]
        try:
            self.entries = [token.encode() if token in self.marks else bytes(byte[letter] for letter in token) for token in tokens]
            pairs = [merge.split(" ") for merge in merges]
            if odd := [merge for merge, pair in zip(merges, pairs) if len(pair) != 2]:
                raise ValueError(f"the merge {shown(odd[0])} is no pair")
            ours = byte | {a + b: 256 + i for i, (a, b) in enumerate(pairs)}
            if len(ours) != 256 + len(pairs):
                raise ValueError("two merges make one entry")
            self._bytes = Tokenizer([(ours[a], ours[b]) for a, b in pairs], words(pre))
            self._number = [number.get(letter) for letter in byte] + [number[a + b] for a, b in pairs]      # from its numbers to the file's
        except (KeyError, ValueError) as error:
            said = f"{shown(error.args[0])} is no entry" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise ValueError(f"{file.path} is damaged: its vocabulary and its merges do not fit together ({said}).") from None
        self.start, self.end = (self._place(file, name) for name in ("bos", "eos"))

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self, text: str, marks: bool = False) -> list[int]:
        """The entries' numbers. marks: reads "<|im_start|>" and its like as the marks that they name, not as letters.

        Raises ValueError for a byte that has no entry; TypeError for what is no text.
        """
        check_text(text)
        names = sorted(self.marks if marks else self._always, key=len, reverse=True)        # of two that begin here, the longer one
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        return [n for i, part in enumerate(parts) for n in ([self.marks[part]] if i % 2 else self._plain(part))]

    def decode(self, tokens) -> str:
        """The text of entries' numbers, a list or a tensor of one dimension; bytes that are no text become the replacement character.
        Raises ValueError for other numbers."""
        return self.bytes(tokens).decode(errors="replace")

    def bytes(self, tokens) -> bytes:
        """The bytes of entries' numbers."""
        return bytes_of(self.entries, tokens)

    def _plain(self, text: str) -> list[int]:
        numbers = [self._number[entry] for entry in self._bytes.encode(text)]
        if None in numbers:
            without = next(letter for letter in text if any(self._number[value] is None for value in letter.encode()))
            raise ValueError(f"the text has {without!r}, and this vocabulary has no entry for one of its bytes: remove it.")
        return numbers

    def _place(self, file: File, name: str) -> int | None:
        place = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if place is not None and not (isinstance(place, int) and 0 <= place < len(self)):
            raise ValueError(f"{file.path} is damaged: tokenizer.ggml.{name}_token_id is {shown(place)}, and must be below {len(self)}.")
        return place


def letters() -> str:
    """The letter that GPT-2 writes for each of the 256 bytes.

    >>> letters()[32:36], len(set(letters()))
    ('Ġ!"#', 256)
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [value for value in range(256) if value not in seen]
    return "".join(chr(value if value in seen else 256 + hidden.index(value)) for value in range(256))


@cache
def words(kind: str) -> re.Pattern:
    """What splits a text into words; no merge reaches over the border of two.

    >>> words("smollm").findall("I'll take 12,  or two")
    ['I', "'ll", ' take', ' ', '1', '2', ',', ' ', ' or', ' two']
    """
    categories = "".join(unicodedata.category(chr(i))[0] for i in range(sys.maxunicode + 1))

    def every(category: str) -> str:  # Python's re knows no category: the ranges of all characters that are of it
        return "".join(f"\\U{run.start():08x}-\\U{run.end() - 1:08x}" for run in re.finditer(f"{category}+", categories))

    return re.compile(KINDS[kind].format(S=SPACE, L=every("L"), N=every("N")))


def _of(file: File, key: str):
    found = file.metadata.get(key)
    wanted = "numbers" if key.endswith("type") else "strings"
    if found is None or (wanted == "strings") != (isinstance(found, list) and all(isinstance(item, str) for item in found)):
        raise ValueError(f"{file.path} has no {key}, or it is no array of {wanted}: a tokenizer needs one.")
    return found
