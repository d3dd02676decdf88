"""Jane Austen's six novels, in the package: four megabytes of public-domain English for the course's small language model.

    train        Sense and Sensibility, Pride and Prejudice, Mansfield Park, Emma, and the first half of Northanger Abbey
    calibration  the third quarter of Northanger Abbey: what may be looked at to choose ranges, scales and roundings
    validation   the last quarter: what may be looked at to choose settings
    test         Persuasion, for measuring and for nothing else

The parts are whole books, or runs of a book, so nothing that is tested has been read in another edition, a page earlier. A paragraph is a
line: the editions' line breaks are not the author's.
"""

import lzma
from functools import lru_cache
from pathlib import Path

from qlab.lab.data import packaged
from qlab.llm import tokenizer
from qlab.llm.evaluate import Text, blocks

FOLDER = Path(__file__).parent / "austen"
SHA256 = {
    "emma": "d05f8070d4a7446e58ca46edce138da060f0e5d5e1d936e3ec4e9f6d0931546c",
    "mansfield_park": "4109bfd47b3143738017c9005ccd4c55b02f62d96763365ec3dbc51b6c7cda95",
    "northanger_abbey": "53088972df5cc6def4c081c68b36b82ceb59470d58fdca51f1f812108734d1aa",
    "persuasion": "8c410bcd36cedd38ac221bb8b89fdf5bfcc4820b5b20500a5da252bbb219673d",
    "pride_and_prejudice": "15e9b527a74b7f91fe827b4b8f459486d1d3bb3b1b3a3c722f9f4bae10d14705",
    "sense_and_sensibility": "de12f19cfa6244670478b9d0194faf9c620ab780174b6f3f688a9655257595e9",
}
PARTS = ("train", "calibration", "validation", "test")
ENTRIES = 1024


@lru_cache
def book(name: str) -> str:
    """A novel's text, a paragraph a line: "emma", "mansfield_park", "northanger_abbey", "persuasion", "pride_and_prejudice" or
    "sense_and_sensibility".

    Raises ValueError for another name or a damaged file, FileNotFoundError for a missing one.

    >>> book("emma").splitlines()[4][:56]
    'Emma Woodhouse, handsome, clever, and rich, with a comfo'
    """
    if name not in SHA256:
        raise ValueError(f"name is {name!r}, and must be one of {', '.join(SHA256)}.")
    packed = packaged(FOLDER / f"{name}.txt.xz", SHA256[name])
    paragraphs = lzma.decompress(packed).decode().split("\n\n")
    return "".join(" ".join(paragraph.split()) + "\n" for paragraph in paragraphs if paragraph.strip())


@lru_cache
def part(name: str) -> str:
    """The text of "train", "calibration", "validation" or "test". Raises ValueError for another name.

    >>> len(part("test").encode())
    463316
    """
    if name not in PARTS:
        raise ValueError(f"part is {name!r}, and must be one of {', '.join(PARTS)}.")
    lines = book("northanger_abbey").splitlines(keepends=True)
    quarters = ["".join(lines[len(lines) * i // 4:len(lines) * (i + 1) // 4]) for i in range(4)]
    if name == "train":
        return "".join(map(book, ("sense_and_sensibility", "pride_and_prejudice", "mansfield_park", "emma"))) + quarters[0] + quarters[1]
    return {"calibration": quarters[2], "validation": quarters[3], "test": book("persuasion")}[name]


@lru_cache
def bpe() -> tokenizer.Tokenizer:
    """The course's byte-pair vocabulary of 1,024 entries, learnt from the training part by `qlab zoo gpt`.

    >>> len(bpe()), bpe().encode("Elizabeth")
    (1024, [69, 730])
    """
    path = FOLDER / "merges.json"
    try:
        return tokenizer.load(path.read_text())
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path} ({error.strerror}): reinstall qlab, or restore the file with git checkout.") from None


@lru_cache
def tokens(name: str) -> tuple[int, ...]:
    """A part's tokens in the course's vocabulary."""
    return tuple(bpe().encode(part(name)))


def sample(name: str, length: int = 256, count: int | None = None) -> Text:
    """A part in blocks of `length` predictions, `count` of them spread evenly or all: what `evaluate.score` reads.

    >>> sample("test", count=8).tokens.shape
    torch.Size([8, 257])
    """
    return blocks(list(tokens(name)), [len(entry) for entry in bpe().entries], length, count)
