"""A batch on a Dask cluster, for a class that outgrows one machine: qlab grade FOLDER --assignment 02 --dask tcp://host:8786.

    here (trusted)          Dask worker, any machine      its helper (trusted)            sandbox (untrusted)
    notebook, bundle  -->   mark_there                    python -m qlab.grading.cluster  student code
    writes the result <--   passes text on            <-- mark.grade_notebook         <-- answers

Student code runs in the sandbox of the worker's machine, held by a process of its own, never in the Dask worker: each worker thread keeps
one such helper and sends it one submission after the other, so that torch is imported once. What comes back is JSON text. A task is a
submission: Dask gives those of a lost worker to another one, and results are written only here. Every worker needs qlab of this version
and bubblewrap.
"""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path

import qlab
from qlab.errors import not_installed
from qlab.grading.batch import Marked, mark_one, sandboxed, sentence
from qlab.grading.handed_in.handin import Submission

AHEAD = 500              # submissions that are read and not yet marked
TRIES = 4                # of one submission, on workers that are lost under it
ANSWER_SECONDS = 600     # far above what a submission may take; after it the helper is taken to be stuck
PATIENCE_SECONDS = 60    # how long a cluster may be without any worker


def run(address: str, todo: Iterable[Submission], bundle: dict, patience: float = PATIENCE_SECONDS) -> Iterator[Marked]:
    """Mark on the cluster whose scheduler is at address; yields each as it is done, those the cluster could not mark with the reason.

    The cluster is never more than AHEAD submissions ahead of what is taken from todo.

    Raises ImportError without Dask, OSError if there is no cluster at address, ValueError if its workers lack this version of qlab.
    """
    todo = iter(todo)
    if not (first := list(islice(todo, 1))):
        return
    todo = enumerate(chain(first, todo))
    with ExitStack() as stack:
        client = stack.enter_context(_connect(address))
        processors = _processors(client)
        stack.callback(_quietly, client.run, close_helpers)
        done, waiting, tries = queue.SimpleQueue(), {}, Counter()
        shared = client.submit(str, json.dumps(bundle))  # a task, and no scattered data, so that a lost copy is made again

        def submit(number: int) -> None:
            tries[number] += 1
            cells = json.dumps(list(waiting[number].cells))
            future = client.submit(mark_there, cells, shared, processors, pure=False)
            future.add_done_callback(lambda ended: done.put((number, ended)))

        seen = time.monotonic()
        while True:
            for number, entry in islice(todo, AHEAD - len(waiting)):
                waiting[number] = entry
                submit(number)
            if not waiting:
                return
            try:
                number, future = done.get(timeout=1)
            except queue.Empty:
                seen = time.monotonic() if _has_workers(client) else seen
                if time.monotonic() - seen > patience:
                    rest = chain(waiting.values(), (entry for _, entry in todo))
                    yield from ((entry, "the cluster has lost all its workers", 0.0) for entry in rest)
                    return
                continue
            seen = time.monotonic()
            answer = _answer(future)
            if answer is None and tries[number] < TRIES and client.status == "running":
                submit(number)
                continue
            marks, seconds = answer or (f"the cluster lost it {tries[number]} times", 0.0)
            yield waiting.pop(number), marks, seconds


def _connect(address: str):
    try:
        from distributed import Client
    except ImportError:
        raise ImportError(not_installed("Dask", extra="cluster")) from None
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise OSError(f"there is no Dask scheduler at {address} ({sentence(error)}): start one with dask scheduler.") from None


def _processors(client) -> dict[str, int]:
    """Worker: the number of its first processor among those of its machine, so that no two sandboxes share one while others idle."""
    versions = client.run(_version, on_error="return")
    if not versions:
        raise OSError(f"the cluster at {client.scheduler.address} has no workers: start some with dask worker.")
    for worker, version in versions.items():
        if version != qlab.__version__:
            raise ValueError(f"the worker {worker} has qlab {version}, and this is {qlab.__version__}: install the same on all machines."
                             if isinstance(version, str) else f"the worker {worker} has no qlab: install it there ({sentence(version)}).")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    taken, first = {}, {}
    for worker in sorted(workers):
        host = workers[worker]["host"]
        first[worker] = taken.get(host, 0)
        taken[host] = first[worker] + workers[worker]["nthreads"]
    return first


def _version() -> str:
    return qlab.__version__


def _has_workers(client) -> bool:
    try:
        return client.status == "running" and bool(client.scheduler_info(n_workers=-1)["workers"])
    except Exception:  # noqa: BLE001  a scheduler that does not answer has none
        return False


def _answer(future) -> tuple[dict | str, float] | None:
    """What a task gave; None if it was lost together with its worker."""
    if future.status == "error" and type(future.exception()).__name__ != "KilledWorker":
        return f"the cluster failed on it: {sentence(future.exception())}", 0.0
    if future.status != "finished":
        return None
    try:
        answer = json.loads(future.result())
        return answer["marks"], float(answer["seconds"])
    except Exception as error:  # noqa: BLE001
        return f"the cluster's answer cannot be read: {sentence(error)}", 0.0


def _quietly(function, *args) -> None:
    with suppress(Exception):  # the cluster may have gone
        function(*args)


# In the Dask worker: no student code, and nothing that holds a sandbox


class Helper:
    """The process that holds a sandbox for one thread of a Dask worker; it ends with the worker, however that ends."""

    def __init__(self, processor: int):
        path = [str(Path(qlab.__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen([sys.executable, "-P", "-m", "qlab.grading.cluster", str(processor)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)})

    def ask(self, line: str) -> str:
        """Send one submission and wait for its marks, both JSON in one line. Raises OSError if the helper ends or is stuck."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        answer = self.process.stdout.readline() if ready else b""
        if not answer.endswith(b"\n"):
            raise OSError("the helper that holds the sandbox ended" if ready else "the helper that holds the sandbox is stuck")
        return answer.decode()

    def close(self) -> None:
        """End the helper, and with it its sandbox."""
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


_helpers: dict[int, Helper] = {}  # of this Dask worker, by thread


def mark_there(cells: str, bundle: str, processors: dict[str, int]) -> str:
    """The task: cells and bundle as JSON; returns {"marks": the marks, or why there are none, "seconds"} as JSON."""
    from distributed import get_worker

    thread, worker = threading.get_ident(), get_worker()
    line = f'{{"cells": {cells}, "bundle": {bundle}}}'
    start = time.perf_counter()
    for _ in range(2):
        try:
            if thread not in _helpers:
                _helpers[thread] = Helper(processors.get(worker.address, 0) + len(_helpers))
            return _helpers[thread].ask(line)
        except OSError as error:
            if thread in _helpers:
                _helpers.pop(thread).close()
            why = f"on {worker.address}: {sentence(error)}"
    return json.dumps({"marks": why, "seconds": time.perf_counter() - start})


def close_helpers() -> None:
    """End all helpers of this Dask worker."""
    while _helpers:
        _helpers.popitem()[1].close()


# The helper


def main(processor: int) -> None:
    """Mark what comes in, a line each, until the input ends; the sandbox is opened for the first, and again if it could not be."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, the answers stay clean
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {usable[processor % len(usable)]})
    lines, stack = queue.SimpleQueue(), ExitStack()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        if busy.is_set():  # the Dask worker died: whatever is under way will be done elsewhere
            stack.close()
            os._exit(0)

    busy, mark = threading.Event(), None
    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        busy.set()
        request = json.loads(line)
        try:
            mark = mark or stack.enter_context(sandboxed(1))
            _, marks, seconds = mark_one(mark, Submission("", "", "", cells=tuple(request["cells"])), request["bundle"])
        except Exception as error:  # noqa: BLE001  no sandbox, no mark
            marks, seconds = f"there is no sandbox on {os.uname().nodename}: {sentence(error)}", 0.0
        answers.write(json.dumps({"marks": marks, "seconds": seconds}) + "\n")
        answers.flush()
        busy.clear()
    stack.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
