"""The sandbox under attack: each submission, and the exact marks that it must get."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grading_helpers as small
import pytest

import qlab
from qlab.grading import mark
from qlab.grading.sandbox import attack, bwrap, calls, cgroups, drive, hostile, leftovers, slot

pytestmark = pytest.mark.skipif(
    not small.has_bwrap() and not os.environ.get("CI"), reason="the sandbox needs bubblewrap: apt install bubblewrap"
)
if not sys.platform.startswith("linux"):
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

PLENTY, LONGER, SHORT = 20.0, 1.0, 0.4  # seconds for a question; the short ones are for those that never end


@pytest.fixture(scope="module")
def box():
    with bwrap.Sandbox(jobs=2, memory_mib=512, processes=40, tmp_mib=16) as opened:
        yield opened
        groups, processes = opened._groups, [slot._process.pid for slot in opened._slots]
    assert not any(Path(f"/proc/{process}").exists() for process in processes)  # nothing stays on the host
    assert not any(folder and folder.exists() for group in groups for folder in (group.memory, group.processes))


@pytest.fixture(scope="module")
def bare():
    """A sandbox as on a machine where no cgroup is writable."""
    with bwrap.Sandbox(memory_mib=512, processes=40, tmp_mib=16, groups=False) as opened:
        assert "rlimit" in opened.limits_that_hold["memory"] and "rlimit" in opened.limits_that_hold["processes"]
        yield opened


def grade(box, seconds=PLENTY, q1_seconds=None, **answers):
    bundle = small.bundle(seconds)
    bundle["questions"][0]["seconds"] = q1_seconds or seconds
    return mark.grade_notebook(box, small.cells(**answers), bundle, cell_seconds=seconds)


def scores(result):
    return [question["score"] for question in result["questions"]]


def states(result):
    return [question["state"] for question in result["questions"]]


Q1 = "def codes(x, lo, hi, bits):\n    "  # and a body of one's own
Q2 = "def nbytes(shape, bits):\n    "
MAGICS = "%matplotlib inline\n%timeit -n1 -r1 1 + 1\n!echo hello\n%nosuchmagic\n%pip install nothing\nx = !ls\n%%nosuchcell"
HELPER = "def rounded(x):\n    return torch.round(x)"
USES_HELPER = small.CODES.replace("torch.round(", "rounded(")
STUB = Q1 + '"""Codes of x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
REST = small.NBYTES.split("\n", 1)[1]
COUNTS = "def count(x):\n    return sum([len([x]) for _ in range(int(abs(min(max(1, 0), 2))))])"
USES_COUNTS = small.CODES + " * count(x)"
HIDES = "len = 4\nsum = 0\nmax = 2\nmin = 1\nabs = 1\nint = 5\nfloat = 2\nlist = [1]\nrange = (0, 3)\nisinstance = 3\nprint = 0"
MADE = """import sys, warnings
import numpy as np
def made():
    warnings.warn("slow")
    assert np.float64(1) / 0 > 1 and depth(300) == 300
    a = torch.ones(1, requires_grad=True)
    return int((2 * a).requires_grad and a.dtype == torch.float32 and a.device.type == "cpu" and torch.get_num_threads() == 1)
def depth(n):
    return n and 1 + depth(n - 1)"""
SETS = """torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
torch.set_num_threads(2)
"""
SETS_TOO = "np.seterr(all='raise')\nsys.setrecursionlimit(150)\nwarnings.simplefilter('error')\n"
RAISING = """import numpy as np
np.seterr(all="raise")
def raising():
    try:
        return np.float64(1) / 0
    except FloatingPointError:
        return 1
"""
CHANGES_INPUTS = small.CODES + """
kept = codes
def codes(x, lo, hi, bits):
    y = kept(x, lo, hi, bits)
    x.zero_()
    return y"""

# Each: a name, what is answered, the scores of q1 and q2, which have 2 and 3 points.
HONEST = [
    ("correct", {}, [2, 3]),
    ("blank", {"q1": Q1 + "raise NotImplementedError()", "q2": Q2 + "raise NotImplementedError()"}, [0, 0]),
    ("blank cells", {"q1": small.BLANK, "q2": small.BLANK}, [0, 0]),
    ("one wrong", {"q1": small.CODES.replace("round", "floor")}, [0, 3]),
    ("warns", {"before": "import warnings", "q2": small.NBYTES.replace("count = 1", "count = 1; warnings.warn('slow')")}, [2, 3]),
    ("prints", {"q2": small.NBYTES.replace("count = 1", "count = 1; print(shape, bits)"), "after": "nbytes((1,), 1)"}, [2, 3]),
    ("magics", {"before": MAGICS, "q1": "%config nosuch\n" + small.CODES}, [2, 3]),
    ("a cell magic around the answer", {"q1": "%%time\n" + small.CODES}, [2, 3]),
    ("a broken cell of its own", {"before": "1 / 0", "after": "this is no Python"}, [2, 3]),
    ("a syntax error in one answer", {"q1": "def codes(x:\n    return 1"}, [0, 3]),
    ("calls check itself", {"after": "check('q1')\ncheck()"}, [2, 3]),
    ("draws", {"after": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"}, [2, 3]),
    ("changes its inputs", {"q1": CHANGES_INPUTS}, [2, 3]),
    ("answers before an error in the same cell", {"q2": small.NBYTES + "\nnbytes(None, None)"}, [2, 3]),
    ("waits for input", {"q2": Q2 + "return int(input('bytes? '))"}, [2, 0]),
    ("a scratch cell makes something else of the names", {"after": "nbytes = nbytes((10, 7), 3)\ncodes = torch.ones"}, [2, 3]),
    ("a scratch cell deletes the names", {"after": "del codes, nbytes"}, [2, 3]),
    ("a scratch cell deletes everything", {"after": "%reset -f"}, [2, 3]),
    ("a scratch cell takes a helper's name", {"before": HELPER, "q1": USES_HELPER, "after": "rounded = 3"}, [2, 3]),
    ("a scratch cell hides builtins", {"before": COUNTS, "q1": USES_COUNTS, "after": HIDES}, [2, 3]),
    ("a scratch cell imports what hides builtins", {"before": COUNTS, "q1": USES_COUNTS, "after": "from numpy import *"}, [2, 3]),
    ("what hides a builtin before the answer stays", {"before": "abs = float", "q1": small.CODES + " + int(abs(-1)) + 1"}, [2, 3]),
    ("a scratch cell sets the process", {"q1": small.CODES + " * made()", "before": MADE, "after": SETS + SETS_TOO}, [2, 3]),
    ("a cell between sets the process", {"q1": small.CODES + " * made()\n" + SETS, "before": MADE, "q2": SETS + small.NBYTES}, [2, 3]),
    ("an answer counts on what its cell has set", {"q1": f"{RAISING}{small.CODES} * raising()", "after": "np.seterr(all='warn')"}, [2, 3]),
    ("a scratch cell takes the seeds away", {"after": "import random\nrandom.seed = torch.manual_seed = None"}, [2, 3]),
    ("a helper comes last", {"q1": USES_HELPER, "after": HELPER}, [2, 3]),
    ("the second answer takes a helper's name", {"before": HELPER, "q1": USES_HELPER, "q2": "rounded = 3\n" + small.NBYTES}, [2, 3]),
    ("answered further down", {"q1": STUB, "q2": Q2 + "codes(torch.ones(1), 0.0, 1.0, 2)\n" + REST, "after": small.CODES}, [2, 3]),
    ("right only in a scratch cell", {"q1": small.CODES.replace("round", "floor"), "after": small.CODES}, [0, 3]),
    ("a module of its own", {"before": f"%%writefile mine.py\nimport torch\n{HELPER}", "q1": f"from mine import *\n{USES_HELPER}"}, [2, 3]),
]

EQUAL = """
class Yes:
    def __eq__(self, other):
        return True
    def __getattr__(self, name):
        return self
    def __call__(self, *a, **k):
        return self
class Int(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
"""
SUBCLASS = "class Mine(torch.Tensor):\n    pass\n" + small.CODES + ".as_subclass(Mine)"
PRETENDS = """
class Fake:
    @property
    def __class__(self):
        return torch.Tensor
    dtype, shape, layout = torch.int32, (1,), torch.strided
"""
PATCHES_TORCH = "torch.equal = torch.allclose = lambda *a, **k: True\ntorch.Tensor.__eq__ = lambda a, b: True\n"
PATCHES_QLAB = """
import builtins, qlab.grading
from qlab.grading import compare, mark, values
from qlab.grading.sandbox import drive, worker
qlab.grading.check = lambda *a: True
builtins.AssertionError = type("Quiet", (Exception,), {})
compare.compare = mark.compare = lambda *a, **k: ""
mark.why_wrong = lambda *a: ""
drive._valid = lambda *a: True
worker.answer = lambda names, case: {"t": "bool", "v": True}
values.encode = lambda value: {"t": "passed"}
"""
UNSHOWN = "class E(Exception):\n    def __str__(self):\n        raise SystemExit\n"

LIES = [
    ("wrong dtype", {"q1": small.CODES.replace("int32", "int64")}, [0, 3]),
    ("wrong shape", {"q1": small.CODES + ".reshape(-1, 1)"}, [0, 3]),
    ("NaN", {"q1": Q1 + "return torch.full_like(x, float('nan'))"}, [0, 3]),
    ("an array for a tensor", {"q1": small.CODES + ".numpy()"}, [0, 3]),
    ("a float for an int", {"q2": small.NBYTES.replace("// 8", "/ 8")}, [2, 0]),
    ("True for 1", {"q2": Q2 + "return True"}, [2, 0]),
    ("equal to everything", {"before": EQUAL, "q1": Q1 + "return Yes()", "q2": Q2 + "return Int(5)"}, [0, 0]),
    ("a subclass of Tensor", {"q1": SUBCLASS}, [0, 3]),
    ("pretends to be a Tensor", {"before": PRETENDS, "q1": Q1 + "return Fake()"}, [0, 3]),
    ("patches torch", {"q1": PATCHES_TORCH + Q1 + "return torch.zeros(7)"}, [0, 3]),
    ("patches the checker", {"before": PATCHES_QLAB, "q1": Q1 + "return 1", "q2": Q2 + "return 1"}, [0, 0]),
    ("raises everything", {"q1": Q1 + "raise SystemExit(0)", "q2": Q2 + "raise KeyboardInterrupt"}, [0, 0]),
    ("an error that cannot be shown", {"q2": UNSHOWN + Q2 + "raise E"}, [2, 0]),
    ("an endless recursion", {"q2": Q2 + "return nbytes(shape, bits)"}, [2, 0]),
    ("a list that holds itself", {"q2": Q2 + "a = []; a.append(a); return a"}, [2, 0]),
    ("a huge answer", {"q1": Q1 + "return torch.zeros(1).expand(10**12)", "q2": Q2 + "return 1 << 10**7"}, [0, 0]),
    ("a long answer", {"q2": Q2 + "return [0] * 10**6"}, [2, 0]),
]


@pytest.mark.parametrize(("answers", "expected"), [pytest.param(*rest, id=name) for name, *rest in HONEST + LIES])
def test_marks(box, answers, expected):
    assert scores(grade(box, **answers)) == expected


IGNORES_SIGINT = """import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            while True: pass
        except BaseException: pass"""
KILLS = """import os, signal
    for pid in (0, 1, -1, os.getppid(), os.getpid()):
        os.kill(pid, signal.SIGKILL)"""
CHILDREN = """import os, time
    for _ in range(8):
        if not os.fork():
            kept = bytearray(2**27); kept[::4096] = b'x' * 2**15; time.sleep(100)
    time.sleep(100)"""
FORK_BOMB = """import os
    while True:
        try:
            os.fork()
        except OSError:
            pass"""
THREAD_BOMB = """import threading, time
    while True:
        try:
            threading.Thread(target=time.sleep, args=(99,)).start()
        except RuntimeError:
            pass"""

# These end the process, or would run for ever: only their own question is lost.
VIOLENT = [
    ("an endless loop", "while True: pass", "timeout"),
    ("a loop that ignores SIGINT", IGNORES_SIGINT, "timeout"),
    ("sleeps", "import time; time.sleep(1000)", "timeout"),
    ("a loop inside C", "return 7 ** 7 ** 10", "timeout"),
    ("os._exit", "import os; os._exit(0)", "killed"),
    ("a segmentation fault", "import ctypes; ctypes.string_at(0)", "killed"),
    ("abort", "import os; os.abort()", "killed"),
    ("kills all it can", KILLS, "killed"),
    ("closes all files", "import os; os.closerange(0, 256)", "killed"),
    ("a memory bomb", "kept = [bytearray(2**26) for _ in range(100)]\n    return len(kept)", "killed"),
    ("a memory bomb of tensors", "return [torch.ones(2**24) for _ in range(100)]", "killed"),
    ("a memory bomb of children", CHILDREN, "timeout"),
    ("a fork bomb", FORK_BOMB, "timeout"),
    ("a thread bomb", THREAD_BOMB, "timeout"),
]


@pytest.mark.parametrize(("body", "state"), [pytest.param(*rest, id=name) for name, *rest in VIOLENT])
def test_one_bad_question_never_zeroes_the_rest(box, request, body, state):
    endless = LONGER if "bomb" in request.node.callspec.id else SHORT
    result = grade(box, q1_seconds=endless if state == "timeout" else PLENTY, q1=Q1 + body)
    by_rlimit = {"a memory bomb": "error", "a memory bomb of tensors": "error", "a thread bomb": states(result)[0]}
    if "rlimit" in box.limits_that_hold["memory"]:  # then it is refused the memory, and Python says so, or gives up
        state = by_rlimit.get(request.node.callspec.id, state)
    assert (scores(result), states(result)) == ([0, 3], [state, "passed"])  # killed, and not timeout: nobody waits for what is gone


def test_a_cell_that_never_ends_or_ends_the_process_is_left_out(box):
    result = grade(box, seconds=LONGER, before="while True: pass", after="import os; os._exit(1)")
    assert scores(result) == [2, 3]
    result = grade(box, seconds=LONGER, q1=small.CODES + "\nwhile True: pass", q2=small.NBYTES + "\nimport os; os._exit(1)")
    assert (scores(result), states(result)) == ([0, 0], ["timeout", "killed"])


def test_the_whole_notebook_has_a_limit_too(box):
    slow = small.cells(before="import time; time.sleep(3)")
    result = mark.grade_notebook(box, slow, small.bundle(), total_seconds=1.0)
    assert (scores(result), states(result)) == ([0, 0], ["timeout", "timeout"])
    assert "whole notebook" in result["questions"][0]["reason"]
    result = mark.grade_notebook(box, slow, small.bundle() | {"seconds": {"submission": 1.0, "cell": 30.0}})
    assert states(result) == ["timeout", "timeout"] and "whole notebook" in result["questions"][0]["reason"]
    looped = small.cells(before="while True: pass")
    result = mark.grade_notebook(box, looped, small.bundle() | {"seconds": {"submission": 120.0, "cell": 1.0}})
    assert scores(result) == [2, 3]


TOUR = """
import asyncio, concurrent.futures, mmap, multiprocessing, os, resource, shelve, shutil, signal, socket, sqlite3, subprocess, tarfile, time
import numpy, pexpect, torch
from matplotlib import pyplot
failed, context = [], multiprocessing.get_context("fork")
def check(name, right, function, *given):
    try:
        answer = function(*given)
        assert right is None or answer == right, answer
    except BaseException as error:
        failed.append(f"{name}: {error!r}")
def files():
    open("/tmp/a", "w").write("text")
    shutil.copy2("/tmp/a", "/tmp/b"); shutil.copytree("/tmp", "/tmp/c", ignore=lambda folder, names: {*names} - {"a", "b"})
    os.symlink("a", "/tmp/l"); os.mkfifo("/tmp/f"); os.chmod("/tmp/a", 0o600); os.utime("/tmp/a")
    with tarfile.open("/tmp/t", "w:gz") as archive: archive.add("/tmp/c")
    with shelve.open("/tmp/s") as kept: kept["key"] = 1
    with open("/tmp/a", "r+b") as file: return mmap.mmap(file.fileno(), 0)[:4]
def processes():
    queue = context.Queue()
    process = context.Process(target=queue.put, args=(3,)); process.start(); process.join()
    with context.Pool(2) as pool: return queue.get() + sum(pool.map(abs, [-1, 2]))
def database():
    with sqlite3.connect(":memory:") as base: return base.execute("select 1 + 1").fetchone()[0]
async def nap():
    await asyncio.sleep(0.001)
    return await asyncio.to_thread(abs, -1)
def alarm():
    signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
def local():
    ours, theirs = socket.socketpair(); ours.send(b"x")
    return theirs.recv(1)
def shell(): return subprocess.run("ls -l /tmp | sort | head -1; nproc; cp /tmp/a /tmp/d", shell=True, capture_output=True).returncode
def save():
    torch.save(torch.ones(3), "/tmp/t.pt")
    return torch.load("/tmp/t.pt", mmap=True).sum().item() + torch.ones(3).share_memory_().sum().item()
def train():
    torch.set_num_threads(2); net = torch.nn.Conv2d(1, 2, 3); net(torch.rand(2, 1, 8, 8)).sum().backward()
    torch.optim.Adam(net.parameters()).step()
def load(): return len([*torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 3)), batch_size=4, num_workers=1)])
check("files", b"text", files); check("processes", 6, processes); check("database", 2, database); check("asyncio", 1, asyncio.run, nap())
check("alarm", None, alarm); check("socket", b"x", local); check("shell", 0, shell)
check("terminal", b"hi", lambda: pexpect.run("echo hi").strip())
check("usage", True, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_utime > 0)
check("numpy", 3, lambda: numpy.linalg.svd(numpy.eye(3))[1].sum())
check("torch", None, train); check("loader", 2, load); check("saved", 6.0, save)
check("figure", None, lambda: pyplot.plot([1])[0].figure.savefig("/tmp/p.png"))
print("FAILED", failed)
"""


def test_what_a_notebook_may_want_to_do_works(box):
    """No call that it needs is missing from the list of those that are allowed."""
    result = grade(box, before=TOUR, q2="%%time\n" + small.NBYTES)
    assert "FAILED []" in result["stdout_tail"] and "CPU times" in result["stdout_tail"]
    assert scores(result) == [2, 3]


def test_copies_of_the_test_cells_do_not_matter(box):
    cells = small.cells()
    without = [cell for cell in cells if not cell["grade"]]
    twice = cells + [{"source": "raise SystemExit('changed')", "grade_id": "q1_test", "grade": True}] * 2
    assert scores(mark.grade_notebook(box, without, small.bundle())) == [2, 3]
    assert scores(mark.grade_notebook(box, twice, small.bundle())) == [2, 3]
    assert scores(mark.grade_notebook(box, [], small.bundle())) == [0, 0]
    redefined = cells + [{"source": small.CODES.replace("round", "floor"), "grade_id": "q1", "grade": False}]
    assert scores(mark.grade_notebook(box, redefined, small.bundle())) == [0, 3]  # as in a kernel: the last definition is the one


def test_answers_are_found_by_name_wherever_they_stand(box):
    cells = small.cells()
    renamed = [{**cell, "grade_id": None, "grade": False} for cell in cells if not cell["grade"]]
    moved = [cells[0], *(cell for cell in reversed(cells[1:]) if not cell["grade"])]
    merged = [{"source": "\n\n".join(cell["source"] for cell in cells if not cell["grade"]), "grade_id": "q2", "grade": False}]
    for given in (renamed, moved, merged):
        assert scores(mark.grade_notebook(box, given, small.bundle())) == [2, 3]


def test_answers_without_end_cost_their_own_question(box, monkeypatch):
    monkeypatch.setattr(drive, "MAX_BYTES", 2**20)
    result = grade(box, q1=Q1 + "return torch.zeros(2**19)")
    assert (scores(result), states(result)) == ([0, 3], ["killed", "passed"])
    assert result["questions"][0]["reason"] == "What this question returns is too large to be compared."
    assert scores(grade(box, q2=Q2 + "return 'x' * 2**19 if bits == 4 else 0")) == [2, 0]  # half a MiB is no flood


def test_leaving_python_is_told_from_running_out_of_time(box):
    question = grade(box, q1=Q1 + "import os; os._exit(0)")["questions"][0]
    assert question["state"] == "killed" and question["note"].startswith("killed: it left Python; ")


def test_output_is_cut_off(box):
    flood = "import os\nfor _ in range(200): os.write(1, b'x' * 2**20)\nprint('the end')"
    result = grade(box, before=flood)
    assert scores(result) == [2, 3]
    assert len(result["stdout_tail"]) <= 4096 and result["stdout_tail"].endswith("x" * 100 + "the end\n")
    assert scores(grade(box, before="import sys; sys.stdout.close(); sys.stdout = sys.stderr = None")) == [2, 3]


def test_nothing_is_searched_found_reached_or_rewritten(box, tmp_path):
    """A submission that would answer from a stolen bundle, rewrite results or call home finds nothing to do it with."""
    bundle = tmp_path / "bundles" / "99_small.json"
    bundle.parent.mkdir()
    bundle.write_text(json.dumps(small.bundle()))
    results = tmp_path / "results.json"
    results.write_text("{}")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == os.getuid() and str(folder) != "/tmp":
            folder.chmod(0o755)
    here = Path(qlab.__file__).resolve().parent.parent
    hunt = f"""
import os, json
found = []
for path in ({str(bundle)!r}, {str(results)!r}, {str(here / "solutions")!r}, {str(here / "bundles")!r}, {str(here / "tests")!r}):
    if os.path.exists(path): found.append(path)
for top, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if name not in ("site-packages", "usr")]
    found += [os.path.join(top, name) for name in files if name.startswith("99_small") or name == "results.json" or "CODES" == name]
for path in ({str(results)!r},):
    try:
        open(path, "w").write("full marks"); found.append("rewrote " + path)
    except OSError: pass
import ctypes, gc, sys
found += {{*os.listdir(sys.prefix)}} - set({bwrap.PARTS!r})  # a folder of the teacher's, in the environment's own
watch = ctypes.CDLL(None).inotify_init1(0)
if ctypes.CDLL(None).inotify_add_watch(watch, os.__file__.encode(), 0xFFF) >= 0: found.append("watches what others open")
for thing in gc.get_objects():
    if type(thing) is dict and ("expect" in thing or "points" in thing): found.append(repr(thing)[:200])
print("FOUND", sorted(set(found)))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        call = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))\nprint('CONNECTED')"
        result = grade(box, before=hunt, after=call)
        with pytest.raises(TimeoutError):
            server.accept()
    assert scores(result) == [2, 3]
    assert "FOUND []" in result["stdout_tail"] and "CONNECTED" not in result["stdout_tail"]
    assert results.read_text() == "{}"


def test_nothing_stays_for_the_next_submission(box):
    leave = """
import os, sys, torch, subprocess, builtins, threading, time, qlab.grading.values as v, qlab.grading.sandbox.worker as w
for place in ("/tmp/left", "/dev/shm/left"):
    open(place, "w").write("here")
torch.left = builtins.left = sys.left = 1
v.decode = v.encode = w.answer = None
os.environ["LEFT"] = "1"
threading.Thread(target=time.sleep, args=(1000,)).start()
"""
    look = """
import os, sys, torch, builtins
modules = [hasattr(m, "left") for m in (torch, builtins, sys)]
print("LEFT", "left" in os.listdir("/tmp"), os.listdir("/dev/shm"), modules, os.environ.get("LEFT"))
"""
    assert scores(grade(box, after=leave)) == [0, 0]  # it has broken its own worker, nobody else's
    result = grade(box, after=look)
    assert scores(result) == [2, 3]
    assert "LEFT False [] [False, False, False] None" in result["stdout_tail"]


def test_a_module_of_its_own_is_found_as_soon_as_it_is_written(box):
    """Also when the clock of the file system has not ticked since the folder was last looked through."""
    look = "import os, importlib.util\nfound, then = importlib.util.find_spec('mine'), os.stat('.').st_mtime_ns"
    cells = [look, "%%writefile mine.py\nvalue = 5", "os.utime('.', ns=(then, then))", "import mine\nprint('FOUND', found, mine.value)"]
    made = [{"source": source, "grade_id": None, "grade": False} for source in cells]
    assert "FOUND None 5" in mark.grade_notebook(box, made + small.cells(), small.bundle(PLENTY), cell_seconds=PLENTY)["stdout_tail"]


def test_what_imports_much_is_imported_before_the_students_time_runs(box):
    first = """
import sys
before = set(sys.modules)
import torch
weight = torch.nn.Parameter(torch.ones(2))
torch.func.vjp(torch.sin, torch.ones(2))[1](torch.ones(2))
torch.autograd.functional.vjp(torch.sin, torch.ones(2), torch.ones(2))
for kind in (torch.optim.SGD, torch.optim.Adam):
    weight.sum().backward()
    kind([weight], 0.1).step()
from qlab.lab import data, zoo
from qlab.nets import ptq
print("IMPORTED", len(set(sys.modules) - before))
"""
    found = re.search(r"IMPORTED (\d+)", grade(box, before=first)["stdout_tail"])
    assert int(found[1]) < 10  # of some 900


def test_the_installed_qlab_cannot_be_patched_on_disk(box):
    patch = """
import glob, os, qlab, torch
for folder in (os.path.dirname(qlab.__file__), os.path.dirname(torch.__file__), os.path.dirname(os.__file__)):
    for path in glob.glob(folder + "/*.py") + [folder + "/new.py"] + glob.glob(folder + "/grading/**/*.py", recursive=True):
        for action, *rest in ((open, "a"), (os.unlink,), (os.rename, path + "x"), (os.chmod, 0o777)):
            try:
                action(path, *rest)
                print("PATCHED", path)
            except OSError:
                pass
"""
    source = Path(mark.__file__).read_bytes()
    result = grade(box, before=patch, q1=Q1 + "return 1")
    assert scores(result) == [0, 3] and "PATCHED" not in result["stdout_tail"]
    assert Path(mark.__file__).read_bytes() == source


def test_threads_and_orphans_are_ended(box):
    leave = """
import subprocess, threading, time, os, signal
for _ in range(10):
    threading.Thread(target=time.sleep, args=(1000,)).start()
for _ in range(20):
    subprocess.Popen(["setsid", "nohup", "sleep", "86398.25"], stdout=subprocess.DEVNULL)
"""
    assert scores(grade(box, before=leave)) == [2, 3]
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and b"86398.25" in _command(p)]
    assert left == []


def _command(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_full_tmp_harms_only_itself(box):
    fill = """
try:
    with open("/tmp/full", "wb", buffering=0) as file:
        while True: file.write(bytes(2**20))
except OSError as error:
    print("FULL", error.errno)
"""
    result = grade(box, before=fill)
    assert scores(result) == [2, 3] and "FULL" in result["stdout_tail"]
    assert scores(grade(box, before="open('/tmp/x', 'wb').write(bytes(2**20))")) == [2, 3]


# Writes a line into every pipe that it can find, before the worker writes its own.
FORGE = """
import os, json, stat
def forge(*lines):
    for fd in range(3, 256):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\\n" for line in lines))
        except OSError:
            pass
"""


def test_forged_lines_are_no_answers(box):
    """They may say what the function could have returned, and nothing else: a wrong answer is wrong on whatever way it comes."""
    wrong = {"t": "int", "v": "1"}
    lines = [{"question": "q1", "case": 0, "value": wrong}, {"question": "q1", "score": 2}, {"question": "q2", "case": 7, "value": wrong}]
    forging = f"\nreal = codes\ndef codes(*a):\n    forge(*{lines!r})\n    return real(*a)"
    result = grade(box, before=FORGE, q1=small.CODES + forging)
    assert scores(result) == [0, 3]
    assert "answered a case twice" in result["questions"][0]["note"]
    assert "which were ignored" in result["questions"][0]["note"]
    halves = ['b\'{"question": "q1", "case": 0, "value": {"t": "error", "type": "\\\\ud800", "bases": [], "message": ""}}\\n\'',
              "b'{\"question\": \"q1\", \"case\": 0, \"value\": {\"t\": \"str\", \"v\": \"\\xed\\xa0\\x80\"}}\\n'"]
    garbage = [
        *halves, "b'\\xff\\xfe\\n'", "b'[' * 10**5 + b'\\n'", "b'{\"a\":' * 10**4 + b'\\n'", "b'9' * 10**5 + b'\\n'", "b'null\\n'",
        '{"question": "q1", "case": 0, "value": {"t": "tensor"}}', '{"question": "q1", "case": [], "value": {}}', '{"ready": True}',
        '{"cell": 99, "error": "x"}', '{"done": 1}', '{"done": True}', '{"passed": True, "score": 5}',
    ]  # fmt: skip
    result = grade(box, before=FORGE, q1=small.CODES.replace("scale =", f"forge({', '.join(garbage)})\n    scale =", 1))
    assert scores(result) == [2, 3]
    text = "forge(b'{\"cell\": 2, \"error\": \"NotImplementedError \\\\udfff\"}\\n')"  # half a character, which no file could hold
    result = grade(box, before=FORGE + text, q1="")
    assert scores(result) == [0, 3] and result["questions"][0]["reason"] == "What this question asks for is not defined."


def test_a_flood_of_forged_lines_costs_the_question_that_sends_it(box, monkeypatch):
    result = grade(box, before=FORGE, q1=Q1 + "while True: forge(*[{'passed': True}] * 50)")
    assert (scores(result), states(result)) == ([0, 3], ["killed", "passed"])
    assert "flooded" in result["questions"][0]["note"]
    monkeypatch.setattr(drive, "MAX_LINE", 2**20)
    result = grade(box, before=FORGE, q1=Q1 + "while True: forge(b'x' * 60000)")
    assert (scores(result), states(result)) == ([0, 3], ["killed", "passed"])
    result = grade(box, before=FORGE + "while True: forge(*[{'passed': True}] * 50)")
    assert scores(result) == [2, 3]  # a cell of the student's own is left out


def _student_text(result):
    """All of a result that a student may read."""
    return json.dumps([{key: value for key, value in question.items() if key != "note"} for question in result["questions"]])


EXFILTRATE = """
import gc, sys, os
def loot():
    texts = []
    frame = sys._getframe()
    while frame:
        texts.append(repr({k: v for k, v in frame.f_locals.items() if k not in ("texts", "frame")})[:20000])
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) is dict and ("inputs" in thing or "cases" in thing): texts.append(repr(thing)[:20000])
    return " ".join(texts)
"""


@pytest.mark.parametrize("leak", [
    "raise ValueError(loot())",
    "return loot()",
    "print(loot()); print(loot(), file=sys.stderr); return 1",
    "raise type('E' + loot().encode().hex()[:4000], (Exception,), {})('x')",
    "return type('T' + loot().encode().hex()[:4000], (), {})()",
    "os._exit(bits)",
    "open('/tmp/loot', 'w').write(loot()); os._exit(1)",
])  # fmt: skip
def test_hidden_inputs_leave_neither_in_answers_nor_in_errors(box, leak):
    """All of the process's memory may be read and sent: at the public cases there is nothing hidden in it, later nothing is shown."""
    result = grade(box, before=EXFILTRATE, q1=Q1 + leak, q2=Q2 + leak)
    text = _student_text(result)
    assert scores(result) == [0, 0]
    for number in (987654321, small.SECRET):
        assert str(number) not in text and str(number).encode().hex() not in text
    late = "\ndef nbytes(shape, bits):\n    if shape == (2, 3): return right(shape, bits)\n    "
    result = grade(box, before=EXFILTRATE, q2=small.NBYTES.replace("def nbytes", "def right") + late + leak)
    assert scores(result) == [2, 0] and "987654321" not in _student_text(result)
    assert result["questions"][1]["public_failed"] is None
    assert result["questions"][1]["reason"] in (
        "The public tests pass; a hidden test fails.",
        "The process ended while this question was tested: it left Python, crashed, or used too much memory.",
    )


TELLS = """
real = codes
def codes(x, *rest):
    if len(x) == 1:
        return real(x, *rest)
    import os
    with open({0!r}, "w") as file:
        file.write(str(x.tolist()))
    os._exit(0)"""
# A cell of q2 that says what a hidden case of q1 has left behind, in every way in which a cell can end.
LATER = {
    "another error": "import os\nraise ValueError(open({0!r}).read() if os.path.exists({0!r}) else 'first')",
    "an error, then none": "import os\nif not os.path.exists({0!r}): raise ValueError('first')\n" + small.NBYTES,
    "it ends the process": "import os\nif os.path.exists({0!r}): os._exit(7)\nraise ValueError('first')",
    "it never ends": "import os\nwhile os.path.exists({0!r}): pass\nraise ValueError('first')",
}


@pytest.mark.parametrize("how", LATER)
def test_what_cells_raised_before_the_first_hidden_input_stays(tmp_path, how):
    """Here a file leads from the hidden case that kills the worker to the cells that run again: no sandbox, so the leak is perfect."""
    path = str(tmp_path / "left")
    answers = small.cells(q1=small.CODES + TELLS.format(path), q2=LATER[how].format(path))
    result = mark.grade_notebook(slot.Trusted(), answers, small.bundle(), cell_seconds=LONGER)
    assert str(small.SECRET) in Path(path).read_text()  # it was told, and told on
    assert (scores(result), states(result)) == ([0, 0], ["killed", "missing" if how != "an error, then none" else "error"])
    told = {"an error, then none": "A public test fails."}
    line = LATER[how].count("\n", 0, LATER[how].index("raise")) + 1
    first = f"The cell of this question stopped: ValueError: first (line {line} of the cell)"
    assert result["questions"][1]["reason"] == told.get(how, first)
    assert str(small.SECRET) not in _student_text(result)


def test_a_cell_that_breaks_when_it_runs_again_costs_no_more_than_its_hidden_cases(tmp_path):
    path = str(tmp_path / "left")
    q2 = f"import os\nif os.path.exists({path!r}): raise ValueError('later')\n" + small.NBYTES
    result = mark.grade_trusted(small.cells(q1=small.CODES + TELLS.format(path), q2=q2), small.bundle())
    assert (scores(result), states(result)) == ([0, 0], ["killed", "error"])
    assert result["questions"][1]["reason"] == "The public tests pass; a hidden test fails."


def test_reasons_help_the_student(box):
    result = grade(box, q1=small.CODES.replace("round(", "floor(").replace("- lo", "- hi"))
    failed = result["questions"][0]["public_failed"]
    assert (failed["call"], failed["inputs"]["bits"], failed["hint"]) == ("codes(x, lo, hi, bits)", "8", "(0.5 + 1) / s is 191.25")
    assert failed["expect"] == "tensor([191], dtype=int32)" and failed["got"] == "tensor([0], dtype=int32)"
    floor = grade(box, q1=small.CODES.replace("round(", "floor("))["questions"][0]
    assert (floor["reason"], floor["failed_case"], floor["answers_like"]) == (
        "The public tests pass; a hidden test fails.", 1, "floor for round")
    bits = grade(box, q2=Q2 + "import math\n    return math.prod(shape) * bits")["questions"][1]
    assert (bits["state"], bits["failed_case"], bits["answers_like"]) == ("failed", 0, "bits, not bytes")
    blank = grade(box, q1=Q1 + "raise NotImplementedError()")["questions"][0]
    assert (blank["state"], blank["reason"]) == ("missing", "Not answered yet.")
    absent = grade(box, q1="def other(): pass")["questions"][0]
    assert (absent["state"], absent["reason"]) == ("missing", "What this question asks for is not defined.")
    broken = grade(box, q1="def codes(x:\n    return 1")["questions"][0]
    assert broken["state"] == "missing" and broken["reason"].startswith("The cell of this question stopped: SyntaxError: ")


def test_three_runs_give_the_same_bytes(box):
    chance = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1), hash('a'), set('abcdef'))"
    attack = {"before": chance, "q1": Q1 + "return torch.rand(3)", "after": FORGE + "forge(b'junk\\n')"}
    violent = {"q1": Q1 + "import os; os._exit(3)", "q2": Q2 + "return [0] * shape[0]"}
    for answers in ({}, attack, violent):
        assert len({json.dumps(grade(box, **answers)) for _ in range(3)}) == 1


def test_two_slots_do_not_meet(box):
    """A submission that takes all the processor time it can get does not make another one fail, and both are graded at once."""
    hog = "import os, threading\nfor _ in range(10):\n    if os.fork() == 0:\n        while True: pass"
    results = {}
    jobs = {"hog": {"before": hog, "q1": Q1 + "while True: pass"}, "fair": {}}

    def work(name):
        results[name] = scores(grade(box, seconds=5.0, q1_seconds=LONGER if name == "hog" else None, **jobs[name]))

    threads = [threading.Thread(target=work, args=(name,)) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["fair"] == [2, 3] and results["hog"][0] == 0


def test_every_attack_of_the_doctor_is_repelled(box):
    report = attack.report(box)
    assert [line for line in report if not line[1]] == []
    assert len(report) >= 17


def test_the_doctors_attacks_have_teeth(tmp_path):
    """Without a sandbox they succeed."""

    def run(source, target):
        return subprocess.run([sys.executable, "-c", f"{source}\nprint(attack({target!r}))"], capture_output=True, text=True).stdout.strip()

    (tmp_path / "secret").write_text("found it")
    assert run(hostile.READ, str(tmp_path / "secret")).endswith("found it")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "connected" in run(hostile.NETWORK, server.getsockname()[1])
    assert int(run(hostile.SEEING, 0)) > 0
    worked = run(leftovers.LEFTOVERS, 0).split(", ")  # the least that every kernel and user has
    assert {"mincore", "getrusage", "wait4", "waitid", "sysinfo", "flock", "a lock", "a larger pipe", "memfd_create"} <= {*worked}
    for kind in ("memfd_create", "System V", "shared pages", "/dev/zero", "sockets"):
        only = hostile.UNSEEN.replace("in kinds.items()", f"in [({kind!r}, kinds[{kind!r}])]")
        taken, ways = ast.literal_eval(run(only, 20))
        assert taken >= 20 and ways == f"{taken} by {kind}"
    write = hostile.WRITE.replace("import qlab, torch", "qlab = torch = os")
    write = write.replace("for path in", "for path in [] if place != target else")
    assert run(write, str(tmp_path)) == f"could write {tmp_path}/qlab-attack"
    assert run(write, str(tmp_path / "no folder")).startswith("could set the times of ")


def test_nothing_that_an_earlier_process_left_is_found_and_no_hidden_input_reaches_feedback(box, bare):
    """A hidden case of q1 ends the process; a cell of q2 looks for what it left in every way, and tells in its error."""
    search = leftovers.LEFTOVERS.strip()
    line = search.count("\n") + 2
    for sandbox in (box, bare):
        answers = {"q1": small.CODES + TELLS.format("/tmp/left"), "q2": f"{search}\nraise ValueError(attack(0))"}
        result = grade(sandbox, **answers)
        assert (scores(result), states(result)) == ([0, 0], ["killed", "missing"])
        assert result["questions"][1]["reason"] == f"The cell of this question stopped: ValueError: refused (line {line} of the cell)"
        assert str(small.SECRET) not in _student_text(result)


def test_what_the_machine_tells_is_the_same_for_each_submission(box):
    """Memory that one takes, in processes or in the page cache, is no news to the next one."""
    tell = "import hashlib, os\nprint('TOLD', hashlib.sha256(b''.join(open(f'/{path}', 'rb').read() for path in ("
    tell += "'proc/meminfo', 'proc/cpuinfo', 'sys/devices/system/cpu/online'))).hexdigest(), os.listdir('/sys/devices/system/cpu'))"
    take = "kept = bytearray(2**28)\nkept[::4096] = bytes([1]) * 2**16\n" + tell
    with box.lease() as start:  # one slot, whose zygote is the same
        tails = [drive.drive(start, [source], [], 60.0, 30.0).tail for source in (tell, take, tell)]
    assert len(set(tails)) == 1 and tails[0].startswith(b"TOLD")


HOARDS = [
    ("one process", hostile.MEMORY, {"failed"}),  # its rlimit says so, it stops there, and answers how much it got
    ("many processes", hostile.MANY, {"killed"}),
    ("what no process shows", hostile.UNSEEN, {"failed"}),
    ("behind a closed door", "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)" + hostile.MANY, {"killed"}),
]


@pytest.mark.parametrize(("source", "fates"), [pytest.param(*rest, id=name) for name, *rest in HOARDS])
def test_without_a_cgroup_the_memory_of_all_processes_together_is_bounded(bare, source, fates):
    result = grade(bare, before=source, q1=Q1 + "return attack(2048)")
    assert scores(result) == [0, 3] and states(result)[0] in fates
    assert fates != {"killed"} or result["questions"][0]["note"].startswith("killed: it used more memory than it may")
    assert bare._slots[0].alive()


def test_without_a_cgroup_what_processes_have_in_common_counts_once(bare):
    """300 MiB that ten children have from their parent, and a program that is started from a process of that size, are no 512 MiB."""
    share = """
import os, subprocess, time
kept = bytearray(300 * 2**20)
kept[::4096] = bytes([1]) * (300 * 256)
for _ in range(10):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
for _ in range(20): subprocess.run(["true"], check=True)
while True:
    try: os.wait()
    except ChildProcessError: break
print("SHARED")
"""
    result = grade(bare, before=share)
    assert scores(result) == [2, 3] and "SHARED" in result["stdout_tail"]


def test_a_bomb_costs_its_own_question_without_a_cgroup_too(bare):
    for name, body, state in VIOLENT:
        if "bomb" in name:
            state = {"a memory bomb": "error", "a memory bomb of tensors": "error", "a memory bomb of children": "killed"}.get(name, state)
            result = grade(bare, q1_seconds=LONGER if state == "timeout" else PLENTY, q1=Q1 + body)
            assert scores(result) == [0, 3] and (states(result) == [state, "passed"] or name == "a thread bomb")


def test_the_watch_adds_up_what_is_held(tmp_path):
    """Against what a child is told to hold: pages of its own, the same pages in another child, files in memory are left to the sandbox."""
    script = f"""
import os, sys, time
sys.path.insert(0, {str(Path(qlab.__file__).parent.parent)!r})
from qlab.grading.sandbox import watch
watch.PLACES = ()
def child(size, children=0):
    if os.fork() == 0:
        kept = bytearray(size * 2**20)
        kept[::4096] = bytes([1]) * (size * 256)
        for _ in range(children):
            if os.fork() == 0: break
        time.sleep(60)
seer = watch.Watch(100 * 2**20)
for size, children in ((40, 0), (40, 3), (40, 0)):
    before = set(seer._processes())
    child(size, children)
    time.sleep(1)
    print(round(seer._exact() / 2**20), seer.over())
for process in seer._processes(): os.kill(int(process), 9)
"""
    alone = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", script]
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a /proc of its own needs root here")
    told = [line.split() for line in subprocess.run(alone, capture_output=True, text=True).stdout.splitlines()]
    held = [int(size) for size, _ in told]
    assert [over for _, over in told] == ["False", "False", "True"]
    assert all(expected <= size <= expected + 12 for size, expected in zip(held, (40, 80, 120), strict=True))


def test_limits_are_recorded(box):
    limits = grade(box)["limits"]
    assert limits["network"] == "none" and limits["memory"].startswith("512 MiB by ") and limits["processes"].startswith("40 by ")


def test_it_fails_closed(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    monkeypatch.setattr(bwrap, "PACKAGED", tmp_path / "none")
    with pytest.raises(bwrap.SandboxUnavailable, match="apt install bubblewrap"):
        bwrap.Sandbox().__enter__()
    fake = tmp_path / "bwrap"
    monkeypatch.setattr(shutil, "which", lambda *a, **k: str(fake))
    for said, told in (
        ("bwrap: setting up uid map: Permission denied", "forbids the sandbox's namespaces .*apparmor_restrict_unprivileged_userns"),
        ("bwrap: Unknown option --perms", "the sandbox did not start .*Unknown option"),
    ):
        fake.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        fake.chmod(0o755)
        with pytest.raises(bwrap.SandboxUnavailable, match=told):
            bwrap.Sandbox().__enter__()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(bwrap.SandboxUnavailable, match="needs Linux"):
        bwrap.Sandbox().__enter__()
    with pytest.raises(ValueError, match="jobs is at least 1, not 0"):
        bwrap.Sandbox(jobs=0)


def test_a_host_that_forbids_namespaces_inside_is_told_apart(box, monkeypatch):
    """Bubblewrap starts there, but no worker can confine itself; what the zygote then writes was seen in a changed root."""

    def refuse(*args):
        raise drive.WorkerFailed("the worker did not start.")

    monkeypatch.setattr(bwrap, "drive", refuse)
    monkeypatch.setattr(slot.Slot, "said", lambda self: "PermissionError: [Errno 1] unshare: Operation not permitted")
    with pytest.raises(bwrap.SandboxUnavailable, match="forbids the sandbox's namespaces .*unshare.*apparmor"):
        box._prove()


def test_a_door_left_open_is_noticed(box, monkeypatch):
    """What the probe meets inside decides, not what was asked for."""
    doors = [("AF_INET", "AF_UNIX", "a network socket can be made"), ('"/usr",', '"/tmp",', "files can be written outside /tmp")]
    for right, other, door in doors:
        with monkeypatch.context() as patch:
            patch.setattr(bwrap, "PROBE", bwrap.PROBE.replace(right, other))
            with pytest.raises(bwrap.SandboxUnavailable, match=f"does not hold here: {door}"):
                box._prove()
    assert box._prove() == box.limits_that_hold


def test_a_killed_grader_leaves_nothing(box):
    """Its sandbox ends with it; its cgroup's folder goes when the next one is made."""
    group = box._groups[0]
    script = "import sys, os, signal\nfrom qlab.grading.sandbox import bwrap\nopened = bwrap.Sandbox().__enter__()\n"
    script += "print(opened._slots[0]._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    for _ in range(100):
        if not _command(Path(f"/proc/{int(told.stdout)}")):
            break
        time.sleep(0.05)
    assert _command(Path(f"/proc/{int(told.stdout)}")) == b""
    cgroups.make().remove()  # whoever makes the next group sweeps up what the dead left
    if group.memory:
        alive = [folder.name for folder in group.memory.parent.glob("qlab-*") if not Path("/proc", folder.name.split("-")[1]).exists()]
        assert alive == []


def test_seccomp_filter_is_a_program_the_kernel_would_take():
    """Emulated step by step: the calls that are refused, and the ones that must work."""
    import struct

    def decide(machine, number, argument=0, index=0):
        program = list(struct.iter_unpack("HBBI", calls.seccomp_filter(machine)))
        arguments = [argument if k == index else 0 for k in range(6)]
        data = {0: number, 4: calls.ARCHITECTURES[machine][1]}
        data |= {16 + 4 * half: arguments[half // 2] >> 32 * (half % 2) & 0xFFFFFFFF for half in range(12)}
        at, held = 0, 0
        while True:
            code, yes, no, value = program[at]
            at += 1
            if code == 0x20:
                held = data[value]
            elif code == 0x54:
                held &= value
            elif code == 0x06:
                return value
            else:
                at += yes if {0x15: held == value, 0x35: held >= value}[code] else no

    allow, absent, denied = 0x7FFF0000, 0x00050026, 0x00050001
    machines = {  # read, openat, exit_group; unshare, ptrace, mount, clone3, memfd_create, shmget, mincore, flock, cachestat, io_uring
        "x86_64": ((0, 257, 231), (272, 101, 165, 435, 319, 29, 27, 73, 451, 425)),
        "aarch64": ((63, 56, 94), (97, 117, 40, 435, 279, 194, 232, 32, 451, 425)),
    }
    for machine, (may, may_not) in machines.items():
        number = calls.numbers(machine)
        assert [decide(machine, call) for call in may] == [allow] * len(may)
        assert [decide(machine, call) for call in may_not] == [absent] * len(may_not)
        assert len({*number.values()}) == len(number) and decide(machine, max(number.values()) + 1) == absent
        assert decide(machine, number["clone"], 0x3D0F00) == allow and decide(machine, number["clone"], 0x10000000) == denied
        for family, verdict in ((1, allow), (2, 0x0005000D), (1 << 32 | 16, 0x0005000D)):
            assert decide(machine, number["socket"], family) == decide(machine, number["socketpair"], family) == verdict
        for flags, verdict in ((0x22, allow), (1, allow), (2, allow), (0x21, denied), (0x23, denied), (0x40022, denied)):
            assert decide(machine, number["mmap"], flags, 3) == verdict
        for flags, verdict in ((0, allow), (4, allow), (8, 0x0005005F), (12, 0x0005005F), (0x80, 0x0005005F)):
            assert decide(machine, number["preadv2"], flags, 5) == verdict
        for command, verdict in ((3, allow), (1030, allow), (5, denied), (6, denied), (37, denied), (1024, denied), (1026, denied)):
            assert decide(machine, number["fcntl"], command, 1) == verdict
        assert decide(machine, number["setsockopt"], 2, 2) == allow and decide(machine, number["setsockopt"], 7, 2) == denied
        for call, index in (("wait4", 3), ("waitid", 4)):
            usage = [decide(machine, number[call], pointer, index) for pointer in (0, 0x7F00, 0x7F00 << 32)]
            assert usage == [allow, absent, absent]
    assert decide("x86_64", 0x40000000 + 1) == absent  # x32
    with pytest.raises(ValueError, match="not of riscv64"):
        calls.seccomp_filter("riscv64")


@pytest.mark.parametrize(("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")])
def test_numbers_of_system_calls_are_those_of_the_kernels_headers(machine, header):
    if not (path := Path("/usr/include") / header).exists():
        pytest.skip("the kernel's headers are not here")
    stated = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
    if machine == "aarch64":
        stated["newfstatat"] = stated["fstatat"]
    ours = calls.numbers(machine)
    assert {name: number for name, number in ours.items() if stated.get(name, number) != number} == {}
    assert set(ours) - set(stated) <= {"fchmodat2"} and ours["fchmodat2"] == 452  # of Linux 6.6
    absent = {name for text in calls.ALLOWED.values() for name in re.findall(r"(\w+) \d+ -", text)}
    assert machine == "x86_64" or not absent & set(stated) - {"getrlimit", "setrlimit"}


def test_cgroup_places(tmp_path):
    """v1 below the grader's own group; v2 beside it where it holds processes; none where nothing is writable."""
    proc, tree = tmp_path / "proc", tmp_path / "cgroup"
    (tree / "a" / "b").mkdir(parents=True)
    proc.mkdir()
    (proc / "mountinfo").write_text(f"31 23 0:28 / {tree} rw,relatime - cgroup2 cgroup2 rw\n")
    (proc / "cgroup").write_text("0::/a/b\n")
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    places = cgroups._places(mounts, [["0", "", "/a/b"]], "cgroup2", "")
    assert places == [tree / "a" / "b", tree / "a", tree]
    group = cgroups.make(proc)
    assert (group.memory, group.processes, group.entries(), group.kills()) == (None, None, [], 0)
    assert list(tree.rglob("qlab-*")) == []
