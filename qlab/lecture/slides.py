"""What is a slide: worked out from a notebook's cells, in their order.

    a slide begins    at every heading, also those inside a cell; before every figure but a title's; where the last one has no room left
    on its own        a live figure (its code runs, and is not shown), a question
    unfolds           what stands under Derive: paragraph by paragraph, formula by formula
    not shown         folded code, which runs; what is for who reads alone (ALONE); cells with the tag speaker, which are the notes

A text that does not fit is spread over slides of nearly equal height, a table with its head repeated. Code and what it prints stand
together where they fit, one after the other otherwise. What is still too large is scaled down, never cut.
"""

import math
import re
from dataclasses import dataclass, field

from nbformat import NotebookNode

from qlab.lab import minutes
from qlab.lecture import HEIGHT, INNER, MARGIN, blocks, outputs
from qlab.lecture.outputs import CODE_BOX, CODE_LINE

HEAD, ROOM = 50, HEIGHT - 2 * MARGIN - 12           # a heading; all that stands on a slide, the number in its corner left out
PROSE = 300                                         # of text alone: a slide is not a page
PICTURE, CAPTION = 235, 115                         # the least height of a figure; text of at most this height may stand below it
EMBLEM = 150                                        # the least height of a figure below a title
SMALLEST = 0.7                                      # of a table that code has printed; a longer one takes several slides
LEAST, LARGEST = 0.8, 1.3                           # how much smaller code may be to keep its sentence, how much larger a short text is
SPEAKER = "speaker"
ALONE = re.compile(r"(\*\*Run all cells now\*\*|\*(You need|Time|Source document|Where it leads):\*).*?\.(\s+|\Z)", re.DOTALL)
"""Sentences for who reads alone: how long it takes, what comes before."""


@dataclass
class Piece:
    """What stands on a slide: kind is text, source (code), output, picture, live, question or run (a cell that is not shown, and runs)."""

    kind: str
    height: float = 0.0
    source: str = ""                    # a text's Markdown
    cell: NotebookNode | None = None
    step: int = 0                       # how often one goes on until it appears
    scale: float = 1.0                  # of its own size
    picture: float = 0.0                # the height of the picture in it
    rows: tuple[int, int] | None = None # of a long table: the rows of its body that this slide shows


@dataclass
class Slide:
    """A heading, Markdown without its marks, and the pieces below it. level: 1 the title, 2 a part, 3 a section."""

    title: str
    level: int
    pieces: list[Piece] = field(default_factory=list)
    unfolds: bool = False

    @property
    def shown(self) -> list[Piece]:
        """The pieces that a class sees."""
        return [piece for piece in self.pieces if piece.kind != "run"]

    @property
    def room(self) -> float:
        """Pixels that are left."""
        return ROOM - HEAD - sum(min(piece.height, PICTURE) if piece.kind == "picture" else piece.height for piece in self.shown)

    def holds(self, *kinds: str) -> bool:
        """Is a piece of one of these kinds on it?"""
        return any(piece.kind in kinds for piece in self.pieces)


def make(cells: list[NotebookNode], short: bool = False) -> list[Slide]:
    """The slides of a notebook's cells. short: of the short path alone, where one is marked; what is left out
    still runs, wherever it has code.

    >>> from nbformat.v4 import new_code_cell, new_markdown_cell
    >>> [(slide.title, len(slide.pieces)) for slide in make([new_markdown_cell("# One\\nA.\\n\\nB.\\n## Two"), new_code_cell("x = 1")])]
    [('One', 2), ('Two', 1)]
    """
    marked = any(cell.cell_type == "markdown" and minutes.MARK in cell.source for cell in cells)
    kept = {id(cell) for cell in (minutes.short_path(cells) if short and marked else cells)}
    slides = [Slide("", 1)]
    for cell in cells:
        if SPEAKER in cell.metadata.get("tags", []):
            continue
        if id(cell) not in kept:
            if cell.cell_type == "code":
                slides[-1].pieces.append(Piece("run", cell=cell))
        elif cell.cell_type == "markdown":
            _add_text(slides, blocks.split(ALONE.sub("", cell.source)))
        elif cell.cell_type == "code":
            _add_code(slides, cell)
    slides = _tidied(slides)
    for slide in slides:
        _finish(slide)
    return slides


def notes(cells: list[NotebookNode]) -> str:
    """The Markdown of the cells with the tag speaker; "" where there are none.

    >>> from nbformat.v4 import new_markdown_cell
    >>> notes([new_markdown_cell("# Title"), new_markdown_cell("Ask them.", metadata={"tags": ["speaker"]})])
    'Ask them.'
    """
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown" and SPEAKER in cell.metadata.get("tags", []))


def _next(slides: list[Slide]) -> Slide:
    """A further slide under the same heading."""
    last = slides[-1]
    slides.append(Slide(last.title, last.level, unfolds=last.unfolds))
    return slides[-1]


def _add_text(slides: list[Slide], found: list[blocks.Block]) -> None:
    held: list[Piece] = []
    for block in [*found, blocks.Block("heading", "")]:
        if block.kind == "heading":
            _spread(slides, held)
            held = []
            if block.source:
                title = block.source.replace(minutes.MARK, "").strip()
                part = block.level < 3
                slides.append(Slide(title, block.level, unfolds=title == "Derive" if part else slides[-1].unfolds))
        else:
            held += _pieces(block)


def _pieces(block: blocks.Block) -> list[Piece]:
    if block.kind == "table" and block.height > ROOM - HEAD:
        tables = (blocks.Block("table", part) for part in blocks.cut_table(block.source, ROOM - HEAD))
        return [Piece("text", table.height, table.source) for table in tables]
    return [Piece("text", block.height, block.source)]


def _spread(slides: list[Slide], pieces: list[Piece]) -> None:
    """Texts onto the last slide where they fit, and else onto as many as they need, about equally full."""
    if not pieces:
        return
    slide, total = slides[-1], sum(piece.height for piece in pieces)
    alone, largest = not slide.shown, max(piece.height for piece in pieces)
    if total <= CAPTION and not alone:
        _shrink(slide, total)
    if total <= min(slide.room, max(PROSE, largest) if alone else CAPTION if slide.holds("picture") else ROOM):
        slide.pieces += pieces
        return
    goal = total / math.ceil(total / max(PROSE, largest))
    slide = slide if alone else _next(slides)
    for group in _together(pieces):
        height, more = (sum(piece.height for piece in some) for some in (slide.shown, group))
        if slide.shown and (height + more / 2 > goal or more > slide.room):
            slide = _next(slides)
        slide.pieces += group


def _together(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces that one slide shows, as far as it can: a sentence that a formula interrupts, a list and the colon before it."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        before = groups[-1][-1].source.rstrip().rstrip("$").rstrip() if groups else ""
        goes_on = re.match(r"[a-z]|\(?\$(?!\$)", piece.source) and groups and groups[-1][-1].source.startswith("$$") and before[-1:] != "."
        if (goes_on or before.endswith((":", ","))) and sum(other.height for other in groups[-1]) + piece.height <= PROSE:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _shrink(slide: Slide, height: float) -> None:
    """Code and what it prints made a little smaller, if that leaves room for height below them."""
    pieces = [piece for piece in slide.shown if piece.kind in ("source", "output")]
    code = sum(piece.height for piece in pieces)
    if code and slide.room < height <= slide.room + code - LEAST * code and all(piece.scale == 1 for piece in pieces):
        _scale(pieces, 1 - (height - slide.room) / code)


def _scale(pieces: list[Piece], factor: float) -> None:
    for piece in pieces:
        piece.scale, piece.height = piece.scale * factor, piece.height * factor


def _add_code(slides: list[Slide], cell: NotebookNode) -> None:
    kind, output = outputs.kind(cell.outputs), outputs.height(cell.outputs)
    folded = cell.metadata.get("jupyter", {}).get("source_hidden")
    if folded and kind == "none":
        slides[-1].pieces.append(Piece("run", cell=cell))
        return
    if kind in ("live", "question"):
        _add_alone(slides, Piece(kind, ROOM - HEAD, cell=cell))
        return
    source = None if folded else Piece("source", CODE_LINE * len(cell.source.splitlines()) + CODE_BOX, cell=cell)
    shown = Piece("picture" if kind == "picture" else "output", output, cell=cell) if kind != "none" else None
    together = sum(piece.height for piece in (source, shown) if piece)
    if source and shown and (kind == "picture" or LEAST * together > ROOM - HEAD):  # one after the other
        _add_below(slides, source)
        source = None
    if kind == "picture":
        _add_picture(slides, shown)
    elif shown and not source and shown.height > ROOM - HEAD and (table := outputs.table(cell.outputs)):
        _add_pages(slides, shown, table)
    else:
        _add_below(slides, *filter(None, (source, shown)))


def _add_below(slides: list[Slide], *pieces: Piece) -> None:
    """Code or its output below what is there, if it fits; else on a further slide, with the text that announces it if that fits there."""
    slide, height = slides[-1], sum(piece.height for piece in pieces)
    if slide.holds("picture", "output") and slide.room < height or slide.holds("picture"):
        slide = _next(slides)
    elif slide.shown and height > slide.room and (LEAST * height > slide.room or ROOM - HEAD - slide.room > CAPTION):
        last = slide.shown[-1]
        takes = len(slide.shown) > 1 and last.source.rstrip().endswith((":", "?")) and last.height + LEAST * height <= ROOM - HEAD
        if takes:
            slide.pieces.remove(last)
        slide = _next(slides)
        slide.pieces += [last] if takes else []
    if height > slide.room:
        _scale(pieces, slide.room / height)
    slide.pieces += pieces


def _add_pages(slides: list[Slide], piece: Piece, table: str) -> None:
    """A table that code has printed, on as few slides as letters of SMALLEST times their size need, and there as large as it can be."""
    other = piece.height - sum(blocks.rows(table))
    cuts = [(scale / 20, _cut(table, scale / 20, other)) for scale in range(20, round(20 * SMALLEST) - 1, -1)]
    scale, parts = min(cuts, key=lambda cut: len(cut[1]))           # the first of those with the fewest slides, so the largest
    for rows, height in parts:
        slide = _next(slides) if slides[-1].shown else slides[-1]
        slide.pieces.append(Piece("output", min(height, ROOM - HEAD), cell=piece.cell, scale=scale, rows=rows if len(parts) > 1 else None))


def _cut(table: str, scale: float, other: float) -> list[tuple[tuple[int, int], float]]:
    """The rows of a table's body, and the height, of each slide on which it stands with other pixels beside it."""
    first, *heights = blocks.rows(table, INNER / scale)
    for count in range(1, max(1, len(heights)) + 1):
        ends = [k * len(heights) // count for k in range(count + 1)]
        parts = [((start, end), scale * (first + other + sum(heights[start:end]))) for start, end in zip(ends, ends[1:])]
        if max(height for _, height in parts) <= ROOM - HEAD:
            break
    return parts


def _add_alone(slides: list[Slide], piece: Piece) -> None:
    slide = slides[-1]
    slide = _next(slides) if slide.shown else slide
    slide.pieces.append(piece)
    _next(slides)


def _add_picture(slides: list[Slide], piece: Piece) -> None:
    """A figure: on the title's slide where that has room for it; else on a slide that it begins, as large as the slide allows."""
    slide = slides[-1]
    if slide.level == 1 and slide.room >= min(piece.height, EMBLEM) and not slide.holds("picture", "source"):
        piece.height = min(piece.height, slide.room)
        slide.pieces.append(piece)
        return
    slide = _next(slides) if slide.shown else slide
    slide.pieces.append(piece)


def _tidied(slides: list[Slide]) -> list[Slide]:
    """Without slides on which nothing new stands; the code on them runs all the same."""
    kept: list[Slide] = []
    for slide in slides:
        if slide.shown or (slide.title and not (kept and kept[-1].title == slide.title)):
            kept.append(slide)
        elif kept:
            kept[-1].pieces += slide.pieces
        elif slide.pieces:
            kept.append(slide)
    return kept


def _finish(slide: Slide) -> None:
    """The steps; a short text larger, and a picture as high as the text beside it allows."""
    texts = [piece for piece in slide.shown if piece.kind == "text"]
    height = sum(piece.height for piece in texts)
    if texts and texts == slide.shown:
        scales = [scale / 20 for scale in range(round(20 * LARGEST), 20, -1)]
        fitting = [scale for scale in scales if sum(_enlarged(piece, scale) for piece in texts) <= 0.8 * (ROOM - HEAD)]
        scale = fitting[0] if fitting else min(1.0, math.sqrt((ROOM - HEAD) / height))
        for piece in texts:
            piece.scale, piece.height = scale, _enlarged(piece, scale) if scale != 1 else piece.height
    for k, piece in enumerate(slide.shown):
        piece.step = k if slide.unfolds else 0
        if piece.kind == "picture":
            piece.height = min(piece.height, ROOM - HEAD - height)
            piece.picture = piece.height - outputs.height(piece.cell.outputs, pictures=False)


def _enlarged(piece: Piece, scale: float) -> float:
    """The height of a text in letters of scale times their size: it has more lines, and they are higher."""
    if piece.source.startswith("|"):
        return scale * (sum(blocks.rows(piece.source, INNER / scale)) + blocks.GAP)
    return piece.height * scale**2
