"""A batch: every submission marked, each in a sandbox, one result file each, in any number of runs.

As many threads as there are cores each lease a slot of one sandbox and mark one submission after the other. Without a sandbox nothing is
graded, and nobody gets 0 for it: every result says "not graded" and why, and the next run tries again. Results stand as module results
says, so a run that was killed is simply repeated. A hand-in is read when its turn to be marked comes: whatever is in it, those before it
are graded by then.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path

from qlab.grading import results
from qlab.grading.handed_in.handin import HandIn, Submission
from qlab.grading.handed_in.zips import shown

Mark = Callable[[list[dict], dict], dict]                      # cells, bundle -> mark.grade_notebook's result; called by several threads
OpenMark = Callable[[int], AbstractContextManager[Mark]]       # how many at a time -> where they can be marked
Marked = tuple[Submission, dict | str, float]                  # the marks, or why there are none; seconds
Run = Callable[[Iterable[Submission], dict], Iterator[Marked]]


@contextmanager
def sandboxed(jobs: int) -> Iterator[Mark]:
    """Marks in a sandbox of so many slots. Raises bwrap.SandboxUnavailable."""
    from qlab.grading import mark
    from qlab.grading.sandbox import bwrap

    with bwrap.Sandbox(jobs) as box:
        yield partial(mark.grade_notebook, box)


@contextmanager
def trusted(jobs: int) -> Iterator[Mark]:
    """Marks in plain processes, for a self-check of one's own work."""
    from qlab.grading import mark

    yield mark.grade_trusted


def run_here(todo: Iterable[Submission], bundle: dict, open_mark: OpenMark = sandboxed, jobs: int = 1) -> Iterator[Marked]:
    """Mark on this machine, jobs at a time; yields each as it is done. Where nothing can be marked, each is yielded with the reason.

    No more are taken from todo than the jobs have use for.
    """
    todo = iter(todo)
    if not (first := list(islice(todo, jobs))):
        return
    todo = chain(first, todo)
    with ExitStack() as stack:
        try:
            mark = stack.enter_context(open_mark(len(first)))
        except Exception as error:  # noqa: BLE001  whatever it is, without a sandbox there is no mark
            yield from ((entry, f"there is no sandbox: {sentence(error)}", 0.0) for entry in todo)
            return
        pool, under_way = ThreadPoolExecutor(jobs), set()
        try:
            while True:  # two for each job, so that a grader that is killed has few marks that it has not stored
                under_way |= {pool.submit(mark_one, mark, entry, bundle) for entry in islice(todo, 2 * jobs - len(under_way))}
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the sandbox closes at once, and what runs in it ends


def mark_one(mark: Mark, entry: Submission, bundle: dict) -> Marked:
    """Mark one submission; if the grader fails on it, which is no student's fault, once more."""
    start = time.perf_counter()
    for _ in range(2):
        try:
            return entry, mark(list(entry.cells), bundle), time.perf_counter() - start
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on
            why = f"the grader failed on it: {sentence(error)}"
    return entry, why, time.perf_counter() - start


def batch(hand_ins: list[HandIn | Submission], bundle: dict, folder: Path, run: Run,
          tick: Callable[[int], None] = lambda done: None) -> tuple[list[dict], int]:
    """Grade what has no standing result yet; returns all results in the order of hand_ins, and how many stood before.

    run(todo, bundle) marks; tick(n) is told how many hand-ins are done. A result that cannot be written becomes "not graded", with the
    reason; the others go on. Raises OSError if the folder cannot be made or another grader is at work in it.
    """
    made, order, stood, done = {}, [], 0, 0

    def todo() -> Iterator[Submission]:
        nonlocal stood, done
        for hand_in in hand_ins:
            to_mark = []
            for entry in hand_in.read():
                order.append(entry.id)
                old = results.read(folder / f"{entry.id}.json")
                if results.stands(old, entry, bundle):
                    made[entry.id] = _store(folder, entry, bundle, results.renew(old, entry, bundle), old)
                    stood += made[entry.id]["status"] == "graded"
                elif entry.status:
                    made[entry.id] = _store(folder, entry, bundle, results.make(entry, bundle), old)
                else:
                    to_mark.append(entry)
            yield from to_mark
            if not to_mark:
                done += 1
                tick(done)

    with results.alone_in(folder):
        for entry, marks, seconds in run(todo(), bundle):
            made[entry.id] = _store(folder, entry, bundle, result_of(entry, bundle, marks, seconds), None)
            done += 1
            tick(done)
    return [made[name] for name in order], stood


def result_of(entry: Submission, bundle: dict, marks: dict | str, seconds: float) -> dict:
    """The result of one that was run: its marks, or "not graded" and why."""
    if isinstance(marks, str):
        return results.make(entry, bundle, None, "not graded", marks, seconds)
    return results.make(entry, bundle, marks, seconds=seconds)


def _store(folder: Path, entry: Submission, bundle: dict, result: dict, old: dict | None) -> dict:
    try:
        if result != old:
            results.write(folder / f"{entry.id}.json", results.to_json(result))
        return result
    except (OSError, ValueError) as error:
        return results.make(entry, bundle, None, "not graded", f"its result could not be written: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """What an error says, in one line without a full stop.

    >>> sentence(OSError(28, "No space left on device", "x.json"))
    'No space left on device'
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return shown(text or type(error).__name__).rstrip(".")[:500]
