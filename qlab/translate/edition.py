"""The pages of another language as files, in a folder beside the English ones, for a reader to work in: zh/notebooks/ and zh/exercises/.

They are made fresh at every `qlab lab --lang zh`, and the reader's work comes first. `made.json` holds each page's hash as it was made:

    the file is as it was made       a newer page takes its place
    the reader has changed it        it stays; where a newer page exists, this is said
    it is not there                  it is made
    its English page is gone         it goes too, unless the reader has changed it

A page that nobody has translated is the English one, so that every link leads somewhere.
"""

import contextlib
import json
import os
from pathlib import Path

import nbformat

from qlab import saving
from qlab.lab.jupyter.released import as_released, digest
from qlab.translate import pages, tr

FOLDERS = ("notebooks", "exercises")


def make(root: Path, asked: str) -> tuple[list[Path], list[Path]]:
    """Makes the pages of a language in root/LANGUAGE: (the ones as made, the reader's of which a newer one exists).

    Raises OSError, in one sentence, where they cannot be written; whatever was there is then still there.
    """
    folder = root / asked
    made_before = _read(folder / "made.json")
    made, write, ours, newer = {}, {}, [], []
    for source in sorted(path for name in FOLDERS for path in (root / name).rglob("*")
                         if path.suffix in (".ipynb", ".png", ".md") and path.is_file()):
        name = source.relative_to(root).as_posix()
        if "/." in name:  # Jupyter's checkpoints
            continue
        content, path = _content(source, asked), folder / name
        there = path.read_bytes() if path.is_file() else None
        made[name] = digest(content)
        if there is not None and digest(there) not in (made[name], made_before.get(name)):
            if made[name] != made_before.get(name):
                newer.append(path)
            made[name] = made_before.get(name, "")
            continue
        if there is None or digest(there) != made[name]:
            write[path] = content
        ours.append(path)
    gone = [folder / name for name in made_before if name not in made and (folder / name).is_file()]
    made |= {path.relative_to(folder).as_posix(): made_before[path.relative_to(folder).as_posix()] for path in gone}
    for path in {path.parent for path in write} | {folder}:
        saving.make_folder(path)
    saving.write(write | {folder / "made.json": (json.dumps(made, indent=1) + "\n").encode()})
    for path in gone:
        if digest(path.read_bytes()) == made[path.relative_to(folder).as_posix()]:
            with contextlib.suppress(OSError):  # it is shown once more, and nothing is lost
                path.unlink()
    return ours, newer


def open_in(root: Path, asked: str, notebook: str) -> str:
    """Makes the pages, says what a reader should know, and gives the page that stands for an English one; as POSIX paths below root."""
    ours, newer = make(root, asked)
    _trust(root, asked, ours)
    for path in newer:
        print(tr("qlab: {path} has your changes and stays as it is; a newer one exists: rename yours to get it.",
                 path=path.relative_to(root).as_posix()), flush=True)
    return f"{asked}/{notebook}" if (root / asked / notebook).is_file() else notebook


def _content(source: Path, asked: str) -> bytes:
    notebook = pages.translated(source, asked) if source.suffix == ".ipynb" else None
    return source.read_bytes() if notebook is None else (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def _trust(root: Path, asked: str, paths: list[Path]) -> None:
    """Signs those pages whose English one is as released, outputs and all; a failure leaves them untrusted, as Jupyter would."""
    from nbformat.sign import NotebookNotary

    released = set(as_released(root))
    try:
        with NotebookNotary() as notary:
            for path in paths:
                if root / path.relative_to(root / asked) in released:
                    notary.sign(nbformat.v4.reads(path.read_text(encoding="utf-8")))
    except Exception as error:  # a full disk or a locked database must not keep the server from starting
        if os.environ.get("QLAB_TRACEBACK"):
            raise
        print(tr("qlab: the pages could not be marked as trusted: {why}.", why=str(error)), flush=True)


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the first time; or it is broken, and then every page counts as the reader's
        return {}
    return found if isinstance(found, dict) else {}
