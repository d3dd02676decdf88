"""qlab build: solutions/ to exercises/, what a student gets, and to bundles/, what the grader needs.

Each notebook is held to the rules (`student` has those of its form, `measure` those of its answers) in a process of its own. Nothing is
written unless everything holds, and then all of it.
"""

import concurrent.futures
import contextlib
import gzip
import json
import multiprocessing
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from qlab import saving
from qlab.grading.author import student
from qlab.grading.author.measure import measure
from qlab.grading.challenge import bundle as challenge
from qlab.grading.results import digest


def build(root: Path, names: list[str] = (), seed: str | None = None, check: bool = False, report=print) -> list[str]:
    """Builds the notebooks of root/solutions, all or those named by number or name; the problems found, one sentence each.

    With check nothing is written, and an exercise notebook that is not up to date is a problem. Raises FileNotFoundError where
    there is no such solution.
    """
    everything = not names
    with_challenge = challenge.NAME in names or everything and (root / "solutions" / challenge.NAME).is_dir()
    names = [name for name in names if name != challenge.NAME]
    paths = _find(root, names) if names or everything else []
    seed = teacher_seed() if seed is None else seed
    problems, texts, bundles, notebooks = [], {}, {}, {}
    for path in paths:
        try:
            notebooks[path] = student.read(path)
            student.questions(notebooks[path], path.stem)
            texts[path.stem] = student.text(student.student_notebook(notebooks[path]))
        except ValueError as error:
            problems.append(str(error))
    for path, outcome in _in_processes(measure, [(str(path), seed) for path in notebooks if path.stem in texts]):
        if isinstance(outcome, str):
            problems.append(outcome)
        else:
            bundles[Path(path).stem] = outcome
    problems += _leaks(root, notebooks, texts, alone=everything)
    if problems:
        return problems
    for name, bundle in bundles.items():
        report(f"{name}: {summary(bundle)}")
    if check:
        return [f"exercises/{name}.ipynb is not up to date: run qlab build." for name, text in texts.items()
                if _read(root / "exercises" / f"{name}.ipynb") != text]
    if with_challenge:
        bundles[challenge.NAME] = challenge.make(seed)
        report(f"{challenge.NAME}: {len(bundles[challenge.NAME]['labels']):,} hidden images")
    _write({root / "exercises" / f"{name}.ipynb": text.encode() for name, text in texts.items()}
           | {path: data for name, bundle in bundles.items() for path, data in [_packed(root, name, bundle)] if data})
    return []


def summary(bundle: dict) -> str:
    """What a bundle holds, in words."""
    cases = [case["kind"] for question in bundle["questions"] for case in question["cases"]]
    points = sum(question["points"] for question in bundle["questions"])
    caught = sum(len(question["wrong"]) for question in bundle["questions"])
    count = len(bundle["questions"])
    return (f"{count} {'question' if count == 1 else 'questions'}, {points:g} points, {cases.count('public')} public and "
            f"{cases.count('hidden')} hidden cases, {caught} wrong solutions caught")


def teacher_seed() -> str:
    """The seed of the hidden cases: QLAB_SEED, or the file ~/.config/qlab/seed, which is made at the first build."""
    if os.environ.get("QLAB_SEED"):
        return os.environ["QLAB_SEED"]
    path = Path.home() / ".config" / "qlab" / "seed"
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    seed = path.read_text().strip()
    if not seed:
        raise ValueError(f"{path} is empty: remove it, and the next build makes a new seed.")
    return seed


def _find(root: Path, names: list[str]) -> list[Path]:
    folder = root / "solutions"
    if not names:
        found = sorted(folder.glob("*.ipynb"))
        if not found:
            raise FileNotFoundError(f"there are no notebooks in {folder}.")
        return found
    paths = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        found = [folder / f"{stem}.ipynb"] if (folder / f"{stem}.ipynb").is_file() else sorted(folder.glob(f"{stem}_*.ipynb"))
        if not found:
            raise FileNotFoundError(f"there is no notebook {name} in {folder}.")
        paths += [path for path in found[:1] if path not in paths]
    return paths


def _in_processes(function, tasks: list[tuple]):
    """(first argument, result) of each task, each in a process of its own; torch is imported once, by the process they are forked from."""
    if not tasks:
        return
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["torch", "IPython.core.interactiveshell", "qlab.grading.author.measure"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(min(cores, 8, len(tasks)), mp_context=context, max_tasks_per_child=1) as pool:
        futures = [(task, pool.submit(function, *task)) for task in tasks]
        for task, future in futures:
            try:
                yield task[0], future.result()
            except concurrent.futures.process.BrokenProcessPool:
                yield task[0], f"{Path(task[0]).stem}: the process that ran it, or one beside it, ended without an answer."


def _leaks(root: Path, notebooks: dict, texts: dict[str, str], alone: bool) -> list[str]:
    """Hidden lines in what students get, be it new or already there; and exercises that no solution generates."""
    files, problems = {f"exercises/{name}.ipynb": text for name, text in texts.items()}, []
    for path in sorted((root / "exercises").rglob("*")):
        title = path.relative_to(root).as_posix()
        if path.is_file() and title not in files and ".ipynb_checkpoints" not in path.parts:
            files[title] = path.read_text(encoding="utf-8", errors="replace")
            if alone and path.suffix == ".ipynb" and not (root / "solutions" / path.name).exists():
                problems.append(f"{title} comes from no notebook in solutions: remove it.")
    return problems + student.leaks({path.stem: notebook for path, notebook in notebooks.items() if path.stem in texts}, files)


def _packed(root: Path, name: str, bundle: dict) -> tuple[Path, bytes]:
    """Where the bundle belongs, and its bytes: none if it is there already, but for the time it was built."""
    path = root / "bundles" / f"{name}.json.gz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError):
        there = json.loads(gzip.decompress(path.read_bytes()))
        if {**bundle, "built": there["built"], "digest": there["digest"]} == there and digest(there) == there["digest"]:
            return path, b""
    bundle = {**bundle, "built": datetime.now(UTC).isoformat(timespec="seconds")}
    bundle["digest"] = digest(bundle)
    return path, gzip.compress(json.dumps(bundle).encode(), mtime=0)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _write(files: dict[Path, bytes]) -> None:
    """All files, or none; bundles for their owner alone."""
    secret = [path for path in files if path.parent.name == "bundles"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if path in secret else 0o777)
    saving.write(files, private=secret)
