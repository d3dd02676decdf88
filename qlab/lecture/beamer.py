"""The live figures of a page as a beamer shows them: what the kernel of `qlab demo` runs. It imports little, to be there soon."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import ipywidgets

from qlab import saving
from qlab.lab import stored

DOTS = 200     # an inch of the picture: 1920 dots for the widest figure of the course, about as many as a beamer has
TALLEST = 4.3  # inches: a window is about twice as wide as the room for a picture is high, and the letters of a taller one would be small


def show(figures: list, page: str, folder: str):
    """The figures as one widget, drawn finely enough for a beamer, each with a button that saves its still as a PNG in folder.

    figures: of qlab.lab.widgets.Live; page: what the stills' names begin with. The page's script (voila/templates/qlab) presses the button.
    """
    rooms = []
    for live in figures:
        if live.fig.get_figheight() > TALLEST:
            live.fig.set_figheight(TALLEST)
            live.fig.set_layout_engine("constrained")  # the last layout was for the old height
        live.sharpen(DOTS)
        button, said = ipywidgets.Button(description="save a still"), ipywidgets.HTML()
        button.on_click(lambda _, live=live, said=said: setattr(said, "value", _saved(live, page, Path(folder))))
        room = ipywidgets.VBox([live, button, said])
        for widget, name in ((room, "qlab-demo"), (button, "qlab-still"), (said, "qlab-said")):
            widget.add_class(name)
        rooms.append(room)
    return ipywidgets.VBox(rooms)


def as_stored(figures: list, path: str, cells: Sequence[int]) -> bool:
    """Whether these figures say and show what the cells of the notebook at path have stored."""
    page = json.loads(Path(path).read_bytes())["cells"]  # nbformat would be the slowest import of the page
    for live, number in zip(figures, cells):
        new, _ = live._repr_mimebundle_()
        for old in (output.get("data", {}) for output in page[number]["outputs"]):
            if "image/png" in old and not ("".join(old["text/plain"]) == new["text/plain"]
                                           and stored.alike(base64.b64decode("".join(old["image/png"])), new["image/png"])):
                return False
    return True


def _saved(live, page: str, folder: Path) -> str:
    """Writes the still under the first name that is free; one sentence, for the page."""
    number = 1
    while (path := folder / f"{page}_still_{number}.png").exists():
        number += 1
    try:
        saving.write({path: live.still()})
    except OSError as error:
        return f"The still could not be saved in {folder}: {error.strerror or error}."
    return f"Saved as {path}"
