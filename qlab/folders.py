"""Where the course lies: the clone that qlab is installed from, its notebooks, and the one that a name means."""

import re
from pathlib import Path

import qlab
from qlab.translate import tr

WELCOME = "00_welcome.ipynb"


def course() -> Path:
    """The folder that holds notebooks/: the current one, or the clone that qlab is installed from."""
    places = (Path.cwd(), Path(qlab.__file__).resolve().parent.parent)
    for holds in (WELCOME, ""):  # some other notebooks/ in the current folder must not hide the course
        for place in places:
            if (place / "notebooks" / holds).exists():
                return place
    raise FileNotFoundError(tr("there is no notebooks folder in {here} or {there}: run this command in a clone of qlab.",
                               here=places[0], there=places[1]))


def clone() -> Path:
    """The folder that qlab is installed from, which holds tests/ and notebooks/ too."""
    folder = Path(qlab.__file__).resolve().parent.parent
    if not (folder / "pyproject.toml").exists():
        raise FileNotFoundError(tr("{folder} is not a clone of qlab: this command needs one.", folder=folder))
    return folder


def _choices(name: str, folder: Path) -> str:
    """The notebooks whose names hold the word; if there are none, all of them, by their numbers."""
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    return ", ".join([near for near in names if name and name.lower() in near.lower()]
                     or [re.match(r"\d+(?=_)|.*", one)[0] for one in names])


def find_notebook(name: str, root: Path) -> Path:
    """The notebook meant by name: a path, a name in notebooks/ with or without .ipynb, or a number that starts one ("02")."""
    tried = [Path.cwd() / name, root / name, root / "notebooks" / name, root / "notebooks" / f"{name}.ipynb"]
    found = [path for path in tried if path.is_file()] or sorted(
        path for path in (root / "notebooks").glob("*.ipynb") if name and path.name.startswith(f"{name}_"))[:1]
    if not found:
        raise FileNotFoundError(tr("there is no notebook {name} in {folder}: name one of {choices}.", name=name,
                                   folder=root / "notebooks", choices=_choices(name, root / "notebooks")))
    path = found[0].resolve()
    if path.suffix != ".ipynb" or not path.is_relative_to(root.resolve()):
        raise ValueError(tr("{path} is not a notebook (.ipynb) inside {root}.", path=path, root=root))
    return path
