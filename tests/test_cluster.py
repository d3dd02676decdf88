"""A batch on a real Dask cluster of several processes: the same marks as here, also when a worker is killed, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grading_helpers
import pytest

import qlab
from qlab.grading import batch, cluster
from qlab.grading.author.build import digest
from qlab.grading.handed_in.ingest import Submission

distributed = pytest.importorskip("distributed", reason="the cluster's tests need Dask: pip install 'qlab[cluster]'")
pytestmark = pytest.mark.skipif(not (grading_helpers.has_bwrap() or os.environ.get("CI") and sys.platform == "linux"),
                                reason="the sandbox's tests need bubblewrap: apt install bubblewrap")

BUNDLE = grading_helpers.bundle()
BUNDLE["digest"] = digest(BUNDLE)
QUIET = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50}
SLOW = "import time\ntime.sleep(0.4)"


def entry(name, **changed):
    return Submission(f"{name}-id", name, f"{name}.ipynb", f"sha-{name}", cells=tuple(grading_helpers.cells(**changed)))


def a_class(students, before=""):
    answers = [{}, {"q1": "def codes(x, lo, hi, bits):\n    return x"}, {"q2": "import os\nos._exit(0)"}, {"q2": grading_helpers.BLANK}]
    return [entry(f"s{k:02}", **{"before": before, **answers[k % 4]}) for k in range(students)], [5, 3, 2, 2]


def helpers():
    """Process ids of the helpers on this machine that belong to this test run's Dask workers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"\0qlab.grading.cluster\0" in path.read_bytes():
                if f"QLAB_TEST={os.getpid()}".encode() in (path.parent / "environ").read_bytes():
                    found.add(int(path.parent.name))
        except OSError:
            pass  # it ended while it was looked at
    return found


def gone(pids, seconds=20):
    until = time.monotonic() + seconds
    while pids & helpers() and time.monotonic() < until:
        time.sleep(0.1)
    return not pids & helpers()


@pytest.fixture(scope="module")
def workers():
    os.environ["QLAB_TEST"] = str(os.getpid())
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, host="127.0.0.1", **QUIET) as local:
        yield local
    del os.environ["QLAB_TEST"]
    assert gone(helpers())


def test_a_killed_worker_loses_no_result(workers, tmp_path):
    entries, expected = a_class(9, SLOW)
    with distributed.Client(workers, set_as_default=False) as client:
        before = client.run(os.getpid)
        assert len(before) == 3
        killed = threading.Event()

        def run(todo, bundle):
            for number, marked in enumerate(cluster.run(workers.scheduler_address, todo, bundle)):
                if number == 1:  # every worker has its next submission
                    os.kill(sorted(before.values())[0], signal.SIGKILL)
                    killed.set()
                yield marked

        made, _ = batch.batch(entries, BUNDLE, tmp_path, run)
        after = client.run(os.getpid)
        assert killed.is_set() and set(after.values()) != set(before.values())
        assert len(set(after.values()) & set(before.values())) == 2  # os._exit in a submission ends no worker
        assert not any(client.run(lambda: "torch" in __import__("sys").modules).values())  # nor does student code run in one
    assert [result["status"] for result in made] == ["graded"] * 9
    assert [result["score"] for result in made] == [expected[k % 4] for k in range(9)]
    assert len(list(tmp_path.glob("*.json"))) == 9
    assert gone(helpers())  # those of the killed worker, too

    here, _ = batch.batch(entries[:4], BUNDLE, tmp_path / "here", lambda todo, bundle: batch.run_here(todo, bundle, jobs=1))
    for one, other in zip(here, made):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_helper_that_dies_is_replaced(workers):
    entries, expected = a_class(4)
    stop = threading.Event()

    def kill_one():
        while not helpers() and not stop.is_set():
            time.sleep(0.05)
        for pid in list(helpers())[:1]:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    made = {one.id: marks for one, marks, _ in cluster.run(workers.scheduler_address, entries, BUNDLE)}
    stop.set()
    killer.join()
    assert [made[one.id]["score"] for one in entries] == expected


def test_a_cluster_without_qlab_of_this_version_is_one_sentence(workers, monkeypatch):
    monkeypatch.setattr(qlab, "__version__", "9.9")
    sentence = r"the worker tcp://127.0.0.1:\d+ has qlab .*, and this is 9.9: install the same on all machines\."
    with pytest.raises(ValueError, match=sentence):
        list(cluster.run(workers.scheduler_address, [entry("ada")], BUNDLE))


def test_a_worker_that_can_start_no_helper_gives_no_marks(workers):
    def become(program):
        import sys

        before, sys.executable = sys.executable, program
        return before

    with distributed.Client(workers, set_as_default=False) as client:
        before = client.run(become, "/no/python")
        try:
            ((_, marks, _),) = cluster.run(workers.scheduler_address, [entry("ada")], BUNDLE)
        finally:
            client.run(become, list(before.values())[0])
    assert re.fullmatch(r"on tcp://127.0.0.1:\d+: No such file or directory", marks)


def test_a_helper_without_a_sandbox_says_so():
    code = """
from qlab.grading import cluster
from qlab.grading.sandbox import bwrap

def missing():
    raise bwrap.SandboxUnavailable("the sandbox needs bubblewrap: apt install bubblewrap.")

bwrap.find_bwrap = missing
cluster.main(0)
"""
    why = f"there is no sandbox on {os.uname().nodename}: the sandbox needs bubblewrap: apt install bubblewrap"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper:
        for _ in range(2):  # it tries again for each
            print(json.dumps({"cells": [], "bundle": BUNDLE}), file=helper.stdin, flush=True)
            assert json.loads(helper.stdout.readline()) == {"marks": why, "seconds": 0.0}
        helper.stdin.close()
        assert helper.wait(20) == 0


def test_no_scheduler_no_workers_and_no_dask_are_one_sentence(monkeypatch):
    with pytest.raises(OSError, match=r"there is no Dask scheduler at nonsense://x .*: start one with dask scheduler\."):
        list(cluster.run("nonsense://x", [entry("ada")], BUNDLE))
    with distributed.LocalCluster(n_workers=0, host="127.0.0.1", **QUIET) as local:
        with pytest.raises(OSError, match=r"the cluster at tcp://127.0.0.1:\d+ has no workers: start some with dask worker\."):
            list(cluster.run(local.scheduler_address, [entry("ada")], BUNDLE))
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ImportError, match=r"^Dask is not installed: \.venv/bin/pip install -e '\.\[cluster\]' "):
        list(cluster.run("tcp://127.0.0.1:1", [entry("ada")], BUNDLE))


def test_a_cluster_that_loses_all_its_workers_says_so_of_each(workers):
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", **QUIET) as local:
        entries, _ = a_class(3, "import time\ntime.sleep(1.5)")
        run = cluster.run(local.scheduler_address, entries, BUNDLE, patience=1)
        first = next(run)
        local.scale(0)
        rest = list(run)
    assert isinstance(first[1], dict) and 1 <= len(rest) == 2
    assert [marks for _, marks, _ in rest if not isinstance(marks, dict)][-1] == "the cluster has lost all its workers"


def test_nothing_to_do_needs_no_cluster():
    assert list(cluster.run("tcp://127.0.0.1:1", [], BUNDLE)) == []
