"""How long the pages take: Run All of every notebook, and each step of its live figures. Part of `qlab bench`."""

import functools
import gc
import json
import statistics
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from qlab.lab import notebooks, widgets


def figures() -> list[dict]:
    """Every live figure of the course, driven through what its controls reach: milliseconds of CPU in the kernel a step, all threads."""
    return [{"page": page, **row} for page, (_, found) in _pages().items() for row in found]


def pages() -> list[dict]:
    """Run All of every notebook, the kernel's start included: seconds, and seconds of CPU, those of its child processes too."""
    return [{"page": page, **seconds} for page, (seconds, _) in _pages().items()]


@functools.cache  # both tables come from one run
def _pages() -> dict[str, tuple[dict, list[dict]]]:
    return {path.stem: _page(path) for path in sorted(notebooks.FOLDER.glob("[0-9]*.ipynb"))}


def _page(path: Path) -> tuple[dict, list[dict]]:
    """A notebook's seconds and its live figures, measured in its own kernel after its last cell."""
    measuring = "import json, os; cpu_s = sum(os.times()[:4])\n"
    measuring += "from qlab.lab import page_bench; print(json.dumps([cpu_s, page_bench.live_steps()]))"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(measuring))
    ended = []
    client = NotebookClient(notebook, km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
                            timeout=900, resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=ERROR"],
                            on_cell_executed=lambda **_: ended.append(time.perf_counter()))
    started = time.perf_counter()
    client.execute(cleanup_kc=True)  # or its kernel, of a manager that it was given, would stay beside the next page
    cpu_s, found = json.loads(next(output.text for output in notebook.cells[-1].outputs if output.get("name") == "stdout"))
    return {"cpu_s": round(cpu_s, 1), "wall_s": round(ended[-2] - started, 1)}, found


def live_steps(most: int = 25, lives: list[widgets.Live] | None = None) -> list[dict]:
    """Every Live of this process, or those given, driven twice through all options and most places of each slider: ms of CPU a step."""
    rows = []
    gc.collect()  # what the cells before have left is no part of a step
    for live in lives or [thing for thing in gc.get_objects() if type(thing) is widgets.Live]:  # isinstance would wake lazy objects
        steps = []
        for name, control in 2 * list(live.controls.items()):
            kept = control.value
            for value in [*_reach(control, most), kept]:
                if value != control.value:
                    started = time.process_time()
                    control.value = value
                    steps.append((1000 * (time.process_time() - started), f"{name} = {value}"))
        ms, where = max(steps)
        rows.append({"controls": list(live.controls), "steps": len(steps), "median_ms": round(statistics.median(s for s, _ in steps), 1),
                     "worst_ms": round(ms, 1), "at": where})
    return rows


def _reach(control, most: int) -> list:
    if hasattr(control, "options"):
        return [option[1] if isinstance(option, tuple) else option for option in control.options]
    if isinstance(control, widgets.SLIDERS):
        places = round((control.max - control.min) / control.step)
        return [type(control.value)(control.min + control.step * i) for i in range(0, places + 1, max(1, places // (most - 1)))]
    return [not control.value] if isinstance(control.value, bool) else []
