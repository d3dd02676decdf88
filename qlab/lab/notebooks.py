"""Refreshing the course's notebooks: run each from top to bottom, check the house rules, store what a reader without a kernel can see.

A refreshed notebook depends only on its cells' text and on what they print and draw, so refreshing twice gives the same bytes: no times, no
versions, no widget state, cell names made from the cells' own text. Widgets are stored as their stills (see qlab.lab.widgets).

House rules: no error, nothing on stderr, a code cell of at most 25 lines of 88 columns (they fit a slide), an assert in every cell whose
output is not compared (tag nbval-ignore-output), no widget without a still, a file under 1 MB. What breaks one is left as it was.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
import numpy as np
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

from qlab import saving
from qlab.lab import hidden, minutes
from qlab.lab.jupyter.saving import WIDGET_VIEW

FOLDER = Path(__file__).parents[2] / "notebooks"
BENCH = Path(__file__).parent / "records" / "bench.json"
MAX_LINES, MAX_COLUMNS, MAX_BYTES, TIMEOUT_S = 25, 88, 1_000_000, 300
TIMERS = ("latency_ms", "measure_roof", "measure_peak", "measure_bandwidth", "time_cpu", "in_turn", "race", "perf_counter", "process_time")
KEPT_METADATA = ("tags", "slideshow", "jupyter")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"},
}


def refresh(paths: Iterable[str | Path] | None = None, report: Callable[[str], None] | None = None) -> list[Path]:
    """Execute notebooks and store their outputs; without paths, all of the course's in the order of their numbers. Returns the paths.

    Each runs in a kernel of its own, in its own folder, with this Python; a cell may take 300 s. report, if given, is called with each
    path before its turn. Raises FileNotFoundError for a missing path, and ValueError with the notebook and the cell for a broken house
    rule; notebooks before that one are refreshed, that one and those after it are untouched.
    """
    paths = sorted(FOLDER.glob("*.ipynb")) if paths is None else [Path(path) for path in paths]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no notebook {path}.")
    for path in paths:
        if report:
            report(str(path))
        saving.write({path: _refreshed(path)})
    return paths


def takes_times(path: Path) -> bool:
    """Whether a page measures times itself, and stores them among its outputs, by the names of what measures.

    >>> takes_times(FOLDER / "01_why_low_precision.ipynb"), takes_times(FOLDER / "02_linear_quantization.ipynb")
    (True, False)
    """
    cells = nbformat.read(path, as_version=4).cells
    return any(re.search(rf"\b({'|'.join(TIMERS)})\(", cell.source) for cell in cells if cell.cell_type == "code")


def _refreshed(path: Path) -> bytes:
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception:
        raise ValueError(f"{path.name} is not a Jupyter notebook of format 4.") from None
    _say_seconds(path.stem, notebook)
    _tidy_cells(notebook)
    minutes.say(notebook.cells)
    _check_sources(path.name, notebook)
    _execute(path, notebook)
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            cell.outputs = _tidy_outputs(f"{path.name}, cell {number}", cell.outputs)
    notebook.metadata, notebook.nbformat, notebook.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    content = (nbformat.writes(notebook).rstrip("\n") + "\n").encode()
    if len(content) >= MAX_BYTES:
        sizes = {number: len(nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))) for number, cell in enumerate(notebook.cells, 1)}
        largest = max(sizes, key=sizes.get)
        raise ValueError(f"{path.name} would have {len(content):,} bytes, {sizes[largest]:,} of them in cell {largest}, "
                         f"and must stay below {MAX_BYTES:,}: draw fewer or smaller pictures.")
    return content


def _tidy_cells(notebook: NotebookNode) -> None:
    """Names made from each cell's text (so that an inserted cell renames no other), a slide for each heading, questions' code folded."""
    hidden.mark(notebook.cells)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key in KEPT_METADATA})
        if cell.cell_type == "markdown" and re.match(r"#{1,6} ", cell.source):
            cell.metadata["slideshow"] = {"slide_type": "slide"}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def seconds_to_say(page: str) -> int | None:
    """The seconds that Run All of a page (02_linear_quantization) takes, as its first cell says them: the record's, up to the next five.

    None while the record has no such page: `qlab bench` measures it.
    """
    rows = json.loads(BENCH.read_text()).get("pages", [])
    found = [row["wall_s"] for row in rows if row["page"] == page]
    return 5 * math.ceil(found[0] / 5) if found else None


def _say_seconds(page: str, notebook: NotebookNode) -> None:
    seconds = seconds_to_say(page)
    if seconds and notebook.cells:
        notebook.cells[0].source = re.sub(r"about \d+ seconds on this course's", f"about {seconds} seconds on this course's",
                                          notebook.cells[0].source)


def _check_sources(name: str, notebook: NotebookNode) -> None:
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES:
            raise ValueError(f"{name}, cell {number} has {lines} lines of code, and may have at most {MAX_LINES}: split it.")
        if long := [line for line in cell.source.splitlines() if len(line) > MAX_COLUMNS]:
            raise ValueError(f"{name}, cell {number} has a line of {len(long[0])} columns, and may have at most {MAX_COLUMNS}: "
                             f"{long[0].strip()[:40]} ...")
        if "nbval-ignore-output" in cell.metadata.get("tags", []) and not re.search(r"^\s*assert\b", cell.source, re.MULTILINE):
            raise ValueError(f"{name}, cell {number} is tagged nbval-ignore-output and asserts nothing: assert what must hold everywhere.")


def _execute(path: Path, notebook: NotebookNode) -> None:
    # With no folder to look for kernels in, "python3" is this very Python, whatever other kernels the machine has.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    started: list[int] = []
    client = NotebookClient(notebook, km=manager, timeout=TIMEOUT_S, store_widget_state=False, record_timing=False,
                            extra_arguments=["--log-level=ERROR"],  # a kernel's advice about its transport is not for our reader
                            on_cell_start=lambda cell, cell_index: started.append(cell_index + 1),
                            resources={"metadata": {"path": str(path.resolve().parent)}})
    try:
        client.execute(cleanup_kc=True)  # or its kernel, of a manager that it was given, would stay beside the next page's
    except CellExecutionError as error:
        message = f"ends in {error.ename}: {' '.join(error.evalue.split())}"
    except CellTimeoutError:
        message = f"takes more than {TIMEOUT_S} s"
    except DeadKernelError:
        message = "kills its kernel"
    else:
        return
    raise ValueError(f"{path.name}, cell {started[-1]} {message}.") from None


def _tidy_outputs(where: str, outputs: list[NotebookNode]) -> list[NotebookNode]:
    tidy: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "error":
            raise ValueError(f"{where} ends in {output.ename}, and no stored output may be an error.")
        if output.output_type == "stream":
            if output.name == "stderr":
                raise ValueError(f"{where} writes to stderr, which differs between machines: {' '.join(output.text.split())[:120]}")
            if tidy and tidy[-1].output_type == "stream":  # how a kernel cuts its text into pieces is chance
                tidy[-1].text += output.text
                continue
        elif WIDGET_VIEW in output.data:
            del output.data[WIDGET_VIEW]  # without a kernel it would be shown as an error, in place of the still
            if not {"image/png", "text/html"} & set(output.data):
                raise ValueError(f"{where} shows a widget that has no still: use qlab.lab.widgets.Live, predict or quiz.")
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _smaller(output.data["image/png"])
        tidy.append(output)
    return tidy


def _smaller(picture: str) -> str:
    """A base64 PNG, without loss: no alpha channel where nothing is transparent, a palette where 256 colours do, the best compression."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode == "RGB" and image.getcolors(256):  # by hand: the library's own quantize() moves colours that lie close together
        colors, codes = np.unique(np.asarray(image).reshape(-1, 3) @ np.array([65536, 256, 1]), return_inverse=True)
        palette = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], 1)
        image = Image.fromarray(codes.reshape(image.height, image.width).astype(np.uint8))
        image.putpalette(palette.astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    smaller = base64.b64encode(stream.getvalue()).decode()
    return smaller if len(smaller) < len(picture.strip()) else picture.strip()
