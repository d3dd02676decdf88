"""Saving a notebook: it shows a still where a live widget was, and differs from the file only where the reader changed something.

A widget's output holds a view, which needs the kernel that drew it, beside the still. JupyterLab prefers the view, and once that kernel has
gone shows an error instead of either; so the view of qlab's widgets is not saved. The widget on the page stays live.

JupyterLab also writes its own kernel's name and Python's version into every notebook that it opens. The course's files hold neither, and a
save leaves them so.

Jupyter calls `before_saving`, and if that fails, logs why and saves the notebook as it is.
"""

import json
from pathlib import Path

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
OUR_WIDGETS = ("Live figure:", "Predict.", "Check yourself.")  # how the plain text of qlab's widgets begins


def before_saving(model: dict, path: str, contents_manager, **_) -> None:
    """Jupyter's pre-save hook: changes the model of a notebook that is about to be saved at path, in place; other files are left alone.

    >>> view, still = {"model_id": "1"}, "<p>Which?</p>"
    >>> output = {"output_type": "display_data", "data": {WIDGET_VIEW: view, "text/html": still, "text/plain": "Predict. Which?"}}
    >>> notebook = {"cells": [{"cell_type": "code", "source": "", "outputs": [output]}], "metadata": {}}
    >>> show_stills(notebook)
    >>> sorted(output["data"])
    ['text/html', 'text/plain']
    """
    if model.get("type") != "notebook" or not model.get("content"):
        return
    show_stills(model["content"])
    root = getattr(contents_manager, "root_dir", None)
    before = _read(Path(root, path.strip("/"))) if root else None
    if before and _is_ours(before):
        keep_metadata(model["content"], before)


def show_stills(notebook: dict) -> None:
    """Drops the view of each of qlab's widgets that has a still beside it, unless the widget's state is saved too, which is a choice."""
    saved = _inside(notebook, "metadata", "widgets", WIDGET_STATE, "state")
    for cell in notebook.get("cells") or []:
        for output in cell.get("outputs") or []:
            data = _inside(output, "data")
            still = "image/png" in data or "text/html" in data
            ours = WIDGET_VIEW in data and _text(data.get("text/plain", "")).startswith(OUR_WIDGETS)
            if ours and still and _inside(data, WIDGET_VIEW).get("model_id") not in saved:
                del data[WIDGET_VIEW]


def _inside(holder: dict, *keys: str) -> dict:
    """The dictionary found by one key after the other; an empty one where there is none, or something else."""
    for key in keys:
        holder = holder.get(key)
        if not isinstance(holder, dict):
            return {}
    return holder


def keep_metadata(notebook: dict, before: dict) -> None:
    """The descriptions of kernel and language stay those of the file before, as long as they mean the same kernel and language."""
    for key in ("kernelspec", "language_info"):
        now, then = _inside(notebook, "metadata", key), _inside(before, "metadata", key)
        if now and then and now.get("name") == then.get("name"):
            notebook["metadata"][key] = then


def _is_ours(notebook: dict) -> bool:
    """Is it a notebook of the course: about qlab, and stored without the version of the Python that ran it?"""
    language = _inside(notebook, "metadata", "language_info")
    cells = notebook["cells"] if isinstance(notebook["cells"], list) else []
    return bool(language) and "version" not in language and any("qlab" in _text(cell.get("source", "")) for cell in cells)


def _read(path: Path) -> dict | None:
    try:
        notebook = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # a new file, or not a notebook yet
        return None
    return notebook if isinstance(notebook, dict) and "cells" in notebook and "metadata" in notebook else None


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
