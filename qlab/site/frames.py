"""What a page computes for the site: its live figures in their states, and the answers that its questions take from its own code.

They are made by the page's own statements, those that they need (qlab.lab.needs), and kept in a folder until the page's code, the library
or its data change. What the figure first shows has to be what the page has stored: where the statements that it seems to need make
something else, all statements before it are run. What hangs on a time that the page measures is left as it is stored.
"""

import base64
import contextlib
import functools
import hashlib
import io
import json
from pathlib import Path

import nbformat
import numpy as np
import torch
from nbformat import NotebookNode
from PIL import Image

from qlab import saving
from qlab.folders import clone
from qlab.lab import needs, stored
from qlab.lab.hidden import is_live
from qlab.lab.widgets import CSS_DPI, Live
from qlab.site import asked, states

VERSION = 1  # of what is kept; a new one draws everything again
FAILS = "its code does not run here"
MEASURED = "its numbers are measured on the machine that runs the page"
ENCODINGS = ({"lossless": True, "method": 3, "quality": 20}, {"method": 3, "quality": 80})  # lines and areas; many shades: the smaller


def key(source: Path) -> str:
    """What the pictures of a page come from, as a hash: its code and stored outputs, and the library's modules and data."""
    return hashlib.sha256(f"{VERSION} {states.MOST} {_library()}".encode() + source.read_bytes()).hexdigest()[:20]


def draw(source: Path, folder: Path) -> dict:
    """Draws the figures of a notebook into folder, as WebP, and returns what the page has to know, by the cell's number.

    {"figures": {cell: _draw's}, "answers": {cell: [HTML, ...]}, "left": {cell: why}}; folder/page.json holds it too, and is written last.
    """
    cells = nbformat.read(source, as_version=4).cells
    live = [number for number, cell in enumerate(cells) if is_live(cell)]
    asking = [number for number, cell in enumerate(cells) if cell.cell_type == "code" and asked.computes(cell.source)]
    found, wanted = {"figures": {}, "answers": {}, "left": {}}, {*live, *asking}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        page = needs.statements(cells)
        found["left"] = {number: MEASURED for number in live + asking if needs.takes_times(needs.needed(page, [number]))}
        wanted -= set(found["left"])
        made = _run(needs.needed(page, wanted), wanted)
        for number in sorted(wanted):
            if number in asking:
                found["answers"][number] = made[number].answers
                continue
            figure = made[number]
            if not _as_stored(figure, cells[number]):
                figure = _run([statement for statement in page if statement.cell <= number], {number})[number]
            if _as_stored(figure, cells[number]):
                found["figures"][number] = _draw(figure, folder, number)
            else:
                found["left"][number] = "drawn again, it does not show what the page has stored"
    except Exception as error:  # an optional library is missing, or a cell is a magic: the page is readable all the same, and build tells
        for number in wanted - set(found["figures"]) - set(found["answers"]):
            found["left"][number] = f"{FAILS} ({type(error).__name__}: {' '.join(str(error).split())})"
    saving.write({folder / "page.json": json.dumps(found, ensure_ascii=False).encode()})
    return read(folder)


def read(folder: Path) -> dict | None:
    """What draw has left in folder; None if it has not come to an end there."""
    path = folder / "page.json"
    if not path.is_file():
        return None
    return {kind: {int(number): what for number, what in by_cell.items()} for kind, by_cell in json.loads(path.read_bytes()).items()}


def fails(found: dict) -> bool:
    """Whether a cell of the page did not run, which may be otherwise when something is installed: such a page is drawn anew each time.

    >>> fails({"left": {3: MEASURED}}), fails({"left": {3: f"{FAILS} (ImportError: no onnx)"}})
    (False, True)
    """
    return any(why.startswith(FAILS) for why in found["left"].values())


def _run(statements: list[needs.Statement], wanted: set[int]) -> dict[int, object]:
    """Runs the statements, and returns what the last one of each wanted cell gives."""
    namespace, made = {"__name__": "page"}, {}
    last = {statement.cell: n for n, statement in enumerate(statements) if statement.cell in wanted}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for n, statement in enumerate(statements):
            if last.get(statement.cell) == n:
                made[statement.cell] = eval(statement.source, namespace)
            else:
                exec(statement.source, namespace)
    return made


def _as_stored(figure: Live, cell: NotebookNode) -> bool:
    still = next(output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return stored.alike(base64.b64decode(still), figure.still())


def _draw(figure: Live, folder: Path, number: int) -> dict:
    """Every state of the grid: {"axes", "fixed", "width", "height", "frames": {"0,1": [file, text, [0, 1]]}}.

    A frame is named by the indices of the values that were asked for, and ends with those that the figure took, an iteration beyond the
    last becoming the last.
    """
    axes, fixed, frames, sizes, encoding = states.grid(figure), figure.values, {}, set(), None
    moved = {axis.name for axis in axes}
    settings = dict(zip(figure.controls, figure.settings().split("   ")))
    grid = list(states.states(axes))
    for (at, _), shown in zip(grid, figure.frames(values for _, values in grid)):
        if shown is None:
            continue
        values, pixels, text = shown
        encoding = encoding or min(ENCODINGS, key=lambda encoding: len(_webp(pixels, encoding)))
        picture = _webp(pixels, encoding)
        name = f"{number}-{hashlib.sha256(picture).hexdigest()[:10]}.webp"
        (folder / name).write_bytes(picture)
        taken = [_taken(axis, values[axis.name], index) for axis, index in zip(axes, at)]
        frames[",".join(map(str, at))] = [name, text, taken]
        sizes.add(pixels.shape[:2])
        fixed = {control: value for control, value in fixed.items() if values[control] == value}
    (height, width), = sizes
    return {"axes": [{"label": axis.label, "words": axis.words, "at": axis.at, "ordered": axis.ordered, "thinned": axis.thinned}
                     for axis in axes],
            "fixed": [settings[control] for control in fixed if control not in moved], "width": width, "height": height,
            "css_width": round(CSS_DPI * figure.fig.get_size_inches()[0]), "frames": frames}


def _webp(pixels: np.ndarray, encoding: dict) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "webp", **encoding)
    return stream.getvalue()


def _taken(axis: states.Axis, value, asked_for: int) -> int:
    """The index of the value that a control has taken, or of its nearest, where it was asked for another."""
    if axis.values[asked_for] == value:
        return asked_for
    if isinstance(value, int | float) and all(isinstance(other, int | float) for other in axis.values):
        return min(range(len(axis.values)), key=lambda i: abs(axis.values[i] - value))
    return axis.values.index(value) if value in axis.values else asked_for


@functools.cache
def _library() -> str:
    """The hash of all that a figure may be made of: the library's modules, the course's data, checkpoints and records."""
    package = clone() / "qlab"
    parts = [path for folder in ("quant", "nets", "matmul", "llm", "search", "deploy", "lab") for path in (package / folder).rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(path for path in parts if path.is_file() and "__pycache__" not in path.parts and "jupyter" not in path.parts):
        digest.update(path.relative_to(package).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def alone() -> None:
    """Sets up a process that draws beside others: one thread each."""
    torch.set_num_threads(1)
