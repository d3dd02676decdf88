"""The memory that a class takes on one server: notebook 02 run to its end by 1 and by 10 students; and by 1 without the hub's economies.

    PSS    what a process has, each page that it shares with others divided by their number: sums add up
    USS    what it has alone, and would give back if it ended

    python -m qlab.lab.classroom_bench        some five minutes of a core; writes qlab/lab/records/classroom.json
    python -m qlab.lab.classroom_bench hub    one of the two, hub or plain, into the record that is there

Memory, unlike time, may be measured on a busy machine. Needs Linux and the extra hub. All servers run as one user, which changes nothing.
"""

import datetime
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from qlab import saving
from qlab.lab import classroom, machine, shared

RECORD = Path(__file__).parent / "records" / "classroom.json"
PAGE, ARMS = "notebooks/02_linear_quantization.ipynb", {"hub": 10, "plain": 1}
ECONOMIES = ("QLAB_SHARED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_",
             "MALLOC_MMAP_THRESHOLD_")


def memory(pid: int) -> dict[str, float]:
    """{"pss": MiB, "uss": MiB} of a process, to a tenth. Raises OSError where there is none, or no Linux.

    >>> import os, sys
    >>> found = memory(os.getpid()) if sys.platform == "linux" else {"uss": 1, "pss": 2}
    >>> 0 < found["uss"] <= found["pss"]
    True
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return {"pss": round(kib["Pss"] / 1024, 1), "uss": round((kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, 1)}


def each_mib(record: dict) -> float:
    """MiB that one more student takes, by a record: what server and kernel have alone, when there are ten.

    >>> each_mib({"arms": {"hub": {"server": {"uss": 100.5}, "kernel": {"uss": 300}}}})
    400.5
    """
    row = record["arms"]["hub"]
    return row["server"]["uss"] + row["kernel"]["uss"]


def needed_gib(record: dict, students: int) -> float:
    """GiB that a class of so many takes by a record: hub and proxy, the students that were measured, and each further one.

    >>> row = {"students": 10, "hub_pss": 100, "all_pss": 4200, "server": {"uss": 100}, "kernel": {"uss": 300}}
    >>> round(needed_gib({"arms": {"hub": row}}, 30), 2)
    12.01
    """
    row = record["arms"]["hub"]
    return (row["hub_pss"] + row["all_pss"] + (students - row["students"]) * each_mib(record)) / 1024


def measure(folder: Path, course: str, environment: dict, students: int) -> dict:
    """One arm: MiB of the first student's server and kernel alone, of all, and of each on average, with the page run to its end."""
    with classroom.hub(folder, environment, course=course) as hub:
        alone = _work(hub.student("student0"))
        first = {name: memory(pid) for name, pid in alone.items()}
        with ThreadPoolExecutor(2) as pool:
            everyone = [alone, *pool.map(_work, [hub.student(f"student{k}") for k in range(1, students)])]
        found = [{name: memory(pid) for name, pid in one.items()} for one in everyone]
        children = Path(f"/proc/{hub.pid}/task/{hub.pid}/children").read_text().split()
        proxy = [int(pid) for pid in children if "configurable-http-proxy" in Path(f"/proc/{pid}/cmdline").read_text()]
        return {"students": students, "first": first, "first_pss": _sum(first, "pss"), "first_uss": _sum(first, "uss"),
                "all_pss": round(sum(_sum(one, "pss") for one in found), 1),
                "server": {key: round(statistics.mean(one["server"][key] for one in found), 1) for key in ("pss", "uss")},
                "kernel": {key: round(statistics.mean(one["kernel"][key] for one in found), 1) for key in ("pss", "uss")},
                "hub_pss": round(sum(memory(pid)["pss"] for pid in (hub.pid, *proxy)), 1)}


def _work(student: classroom.Student) -> dict[str, int]:
    """A student opens the page and runs every cell; the numbers of her server's process and of her kernel's."""
    student.start()
    kernel = student.kernel(PAGE)
    for cell in student.open(PAGE)["cells"]:
        if cell["cell_type"] == "code":
            kernel.run(cell["source"])
    pids = kernel.run("import os; print(os.getppid(), os.getpid())").split()
    print(f"{student.name} has run the page", flush=True)
    return dict(zip(("server", "kernel"), map(int, pids)))


def _sum(of: dict, key: str) -> float:
    return round(sum(one[key] for one in of.values()), 1)


def main(argv: list[str]) -> None:
    """Measure one arm or both, and write the record."""
    if len(argv) > 1 or not set(argv) <= set(ARMS):
        raise SystemExit(f"qlab: name nothing or one of {', '.join(ARMS)}: python -m qlab.lab.classroom_bench hub")
    if sys.platform != "linux" or not importlib.util.find_spec("jupyterhub"):
        raise SystemExit("qlab: this needs Linux and the extra hub: .venv/bin/pip install -e '.[hub]' -c constraints.txt")
    arms = json.loads(RECORD.read_text())["arms"] if argv else {}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        course = classroom.publish(place / "course.git")
        shared.write(place / "shared")
        for name in argv or ARMS:
            environment = {"QLAB_SHARED": place / "shared"} if name == "hub" else dict.fromkeys(ECONOMIES)
            arms[name] = measure(place / name, course, environment, ARMS[name])
    write(arms)


def write(arms: dict) -> None:
    """The record of these arms, made on this machine today."""
    record = {"command": "python -m qlab.lab.classroom_bench", "date": datetime.date.today().isoformat(), "machine": machine.abilities(),
              "versions": {name: version(name) for name in ("torch", "jupyterhub", "jupyterlab", "ipykernel")} | {
                  "python": platform.python_version()},
              "unit": "MiB", "page": PAGE, "arms": arms}
    saving.write({RECORD: (json.dumps(record, indent=1) + "\n").encode()})
    print(f"{RECORD}: 30 students need {needed_gib(record, 30):.1f} GiB")


if __name__ == "__main__":
    main(sys.argv[1:])
