"""qlab release: a zip for students. The course, the library and the exercises; no solutions, no bundles, no results, no tests, no seed.

It is a clone that works: `make lab` in the unpacked folder. What goes in is named here, so nothing else can; in a clone that git keeps,
only what git knows (staged or committed), and a line on stderr names the rest of those folders. The notebooks go without their speaker
notes, the cells with the tag speaker. Where a Markdown file links to what is left out, the zip's copy keeps the words and drops the link.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import qlab
from qlab import saving
from qlab.grading import links
from qlab.grading.author import student

FILES = ("README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "setup.py", "constraints.txt", "environment.yml")
FOLDERS = ("qlab", "notebooks", "exercises", "translations")
RELEASED = "qlab/lab/jupyter/released.json"
LEFT_OUT = {"solutions", "bundles", "tests", "docs", "CHANGELOG.md", "CITATION.cff"}


def release(root: Path, out: Path) -> int:
    """Writes the zip, whole or not at all; the number of files in it.

    Raises ValueError where exercises/ is not what solutions/ generates, a hidden line or the teacher's seed stands in a file, a link leads
    nowhere, or out is no .zip; FileNotFoundError where something of the course is missing.
    """
    check_zip(out)
    contents = {name: (root / name).read_bytes() for name in sorted(names(root))}
    for name, content in contents.items():
        if name.endswith(".md"):
            contents[name] = links.without(name, content, LEFT_OUT)
    _check(root, contents)
    _leave_out_notes(contents)
    write_zip(out, {f"qlab-{qlab.__version__}/{name}": content for name, content in contents.items()})
    return len(contents)


def _leave_out_notes(contents: dict[str, bytes]) -> None:
    """Takes the cells with the tag speaker from the notebooks, and notes the changed ones as released, so that JupyterLab trusts them."""
    digests = json.loads(contents[RELEASED]) if RELEASED in contents else {}
    for name in [name for name in contents if name.startswith("notebooks/") and name.endswith(".ipynb")]:
        notebook = json.loads(contents[name])
        cells = [cell for cell in notebook["cells"] if "speaker" not in cell["metadata"].get("tags", [])]
        if len(cells) < len(notebook["cells"]):
            contents[name] = (json.dumps(notebook | {"cells": cells}, ensure_ascii=False, indent=1) + "\n").encode()
            digests[name] = hashlib.sha256(contents[name]).hexdigest()
    if RELEASED in contents:
        contents[RELEASED] = (json.dumps(digests, indent=1) + "\n").encode()


def check_zip(out: Path) -> None:
    """ValueError or FileNotFoundError where out is no .zip or its folder is missing."""
    if out.suffix != ".zip":
        raise ValueError(f"{out} must end with .zip.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}.")


def write_zip(out: Path, contents: Mapping[str, bytes], mode: Callable[[str], int] = lambda name: 0o644, private: bool = False) -> None:
    """Write the archive whole or not at all; the same contents give the same bytes. mode: of each file in it; private: for its owner alone.

    Raises OSError, in one sentence, where it cannot be written.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)  # of 1980
            entry.external_attr, entry.compress_type = mode(name) << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    saving.write({out: made.getvalue()}, private=[out] if private else ())


def names(root: Path, folders: tuple[str, ...] = FOLDERS) -> Iterator[str]:
    """The files of the course that a copy of it needs, below root, without what a run leaves behind or git does not know.

    Files of the folders that git does not know are named in one line on stderr. Raises FileNotFoundError.
    """
    for name in FILES:
        if not (root / name).is_file():
            raise FileNotFoundError(f"there is no {name} in {root}: this is not a clone of qlab.")
        yield name
    known, unknown = _known_to_git(root), []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            left_out = any(part.startswith(".") or part == "__pycache__" for part in parts) or path.suffix in (".zip", ".pyc")
            if path.is_file() and not path.is_symlink() and not left_out:
                if known is None or "/".join(parts) in known:
                    yield "/".join(parts)
                else:
                    unknown.append("/".join(parts))
    if unknown:
        told = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        print(f"qlab: left out, for git does not know it: {told}; what belongs to the course goes in after git add.", file=sys.stderr)


def _known_to_git(root: Path) -> set[str] | None:
    """The files below root that are staged or committed; None where the folder is no git clone of the course, or git cannot tell."""
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if (root / ".git").exists():
            why = os.fsdecode(getattr(error, "stderr", None) or b"").strip().partition("\n")[0] or "it could not be run"
            print(f"qlab: git does not tell which files are the course's ({why}): all that lies in its folders goes in.", file=sys.stderr)
        return None
    known = set(map(os.fsdecode, run.stdout.split(b"\0")))
    return known if FILES[0] in known else None  # an unpacked copy may lie in a folder that git keeps for something else


def _check(root: Path, contents: dict[str, bytes]) -> None:
    """What students get must be what the solutions generate, without a line that is hidden and without the teacher's seed."""
    solutions = sorted((root / "solutions").glob("*.ipynb"))
    if not solutions:
        raise FileNotFoundError(f"there are no notebooks in {root / 'solutions'}: a release is made from a teacher's clone.")
    handed_out = {name: content.decode(errors="replace") for name, content in contents.items() if name.startswith("exercises/")}
    notebooks = {path.stem: student.read(path) for path in solutions}
    expected = {f"exercises/{name}.ipynb": student.text(student.student_notebook(notebook)) for name, notebook in notebooks.items()}
    for name in sorted(expected.keys() | {name for name in handed_out if name.endswith(".ipynb")}):
        if name not in handed_out and (root / name).is_file():
            raise ValueError(f"{name} is not known to git, and its solution is in solutions/: run git add {name} first.")
        if expected.get(name) != handed_out.get(name):
            raise ValueError(f"{name} is not what solutions/ generates: run qlab build first.")
    if problems := student.leaks(notebooks, handed_out):
        raise ValueError(problems[0])
    seeds = [os.environ.get("QLAB_SEED", "")]
    if (kept := Path.home() / ".config" / "qlab" / "seed").is_file():
        seeds.append(kept.read_text())
    for seed in filter(lambda seed: len(seed) >= 8, map(str.strip, seeds)):  # a seed such as 1 stands in every file
        for name, content in contents.items():
            if seed.encode() in content:
                raise ValueError(f"the seed of the hidden tests is in {name}.")
    if problems := links.broken(contents):
        raise ValueError(problems[0])
