"""The zygote: a process that imports torch once, runs no student's code, and forks a worker for each submission.

    grader -> zygote     four pipe ends: requests, answers, output, and a lifeline that the grader closes to end the run
    zygote -> grader     {"ready": true} once; {"code": n, "memory": bool, "cpu": seconds} when all of a run's processes are gone (128 +
                         n: ended by signal n; memory: by the keeper, because they held more than they may; cpu: of those that ended by
                         themselves, as wait4 counts)

    zygote -- fork --> keeper -- fork --> process 1 of a new process namespace -- fork --> worker, the student's code
              waits    lifeline, memory    confined; when it ends, the kernel ends all that the worker has started

A fork costs milliseconds where an import of torch costs seconds, and a worker has a copy of the zygote's memory, so nothing it does
reaches another submission.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

from qlab.grading.sandbox import worker

PRELOAD = ("matplotlib.pyplot", "qlab.grading", "qlab.quant", "qlab.nets.ptq", "qlab.lab.zoo")  # what many submissions import
# What takes long when it is done for the first time: the second and the third import some 900 modules. None runs a backward pass, whose
# threads, where torch sees a GPU, would forbid every worker one of its own.
WARM_UP = ("torch.zeros(2, 2) @ torch.zeros(2, 2) + 1", "torch.func.vjp(torch.sin, torch.ones(1))[0]",
           "len(torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1).state)", "data.load('test')[1][0]", "data.calibration(1)[1][0]")

TOO_MUCH = signal.SIGUSR1  # how a keeper ends that has ended a run for its memory: no exit status, as the run could have that too


def main() -> None:
    """`python -m qlab.grading.sandbox.zygote SETTINGS`, a JSON object: control (file descriptor), uid, cpu, confine (None, or limits)."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    if settings["cpu"] is not None:
        os.sched_setaffinity(0, {settings["cpu"]})
    shell = worker.make_shell()
    if settings["confine"]:
        from qlab.grading.sandbox import confine

        if settings["uid"] is not None:
            confine.drop_uid(settings["uid"])
        settings["confine"]["facts"] = confine.facts()
    import torch

    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ImportError:  # a submission that needs it will say so
            pass
    if not os.access(torch.__file__, os.R_OK):
        raise PermissionError(f"{torch.__file__} cannot be read by another user: chmod -R go+rX the environment's folder.")
    worker.run_cell(shell, "pass")  # better here than in each worker
    for call in WARM_UP:
        worker.answer({"torch": torch}, {"setup": "from qlab.lab import data", "call": call, "inputs": {}})
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was only needed to get here: each fork copies the list of all pages
    gc.freeze()  # so that the workers' collector leaves these pages shared
    control.sendall(b'{"ready": true}\n')
    while True:
        message, pipes, _, _ = socket.recv_fds(control, 16, 4)
        if not message:  # the grader has gone
            os._exit(0)
        keeper = os.fork()
        if keeper == 0:
            code = 125
            try:
                control.close()
                code = _keep(*pipes, shell, settings)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        for pipe in pipes:
            os.close(pipe)
        _, status, used = os.wait4(keeper, 0)
        memory = os.WIFSIGNALED(status) and os.WTERMSIG(status) == TOO_MUCH
        control.sendall(json.dumps({"code": _code(status), "memory": memory, "cpu": used.ru_utime + used.ru_stime}).encode() + b"\n")


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _keep(requests: int, answers: int, output: int, lifeline: int, shell, settings: dict) -> int:
    """The keeper: starts the run, and ends it when the lifeline closes or the run holds too much memory. Returns how it ended."""
    watch = None
    if settings["confine"]:
        from qlab.grading.sandbox import confine
        from qlab.grading.sandbox.watch import SECONDS, Watch

        confine.die_with_parent()
        confine.enter_namespaces()
        if settings["confine"]["memory"]:
            watch = Watch(settings["confine"]["memory"])
    first = os.fork()
    if first == 0:
        os.close(lifeline)
        try:
            if settings["confine"]:
                _confined(requests, answers, output, shell, settings["confine"])
            _work(requests, answers, output, shell)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(125)
    for pipe in (requests, answers, output):
        os.close(pipe)
    if watch:
        watch.leave_out(first)
    ended = os.pidfd_open(first)
    over = False
    while not over and not any(select.select([lifeline, ended], [], [], SECONDS if watch else None)):
        over = watch.over()
    for kill, process in ((os.kill, first), *([] if settings["confine"] else [(os.killpg, first)])):
        try:
            kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = os.waitpid(first, 0)[1]
    if over:
        os.kill(os.getpid(), TOO_MUCH)
    return _code(status)


def _confined(requests: int, answers: int, output: int, shell, limits: dict) -> None:
    """Process 1: confines itself, starts the worker, and ends with it."""
    from qlab.grading.sandbox import confine

    confine.die_with_parent()
    with open("/proc/self/oom_score_adj", "w") as file:  # out of memory, the kernel shall choose the student's process, not the zygote
        file.write("1000")
    address_space = limits["memory"]
    if address_space is not None:
        with open("/proc/self/statm") as file:
            address_space += int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    confine.hide_files(limits["tmp_mib"], limits["facts"])
    confine.drop_rights()
    child = os.fork()
    if child == 0:
        confine.limit(limits["processes"], 256, limits["tmp_mib"] * 2**20, address_space)
        confine.refuse_system_calls()
        _work(requests, answers, output, shell)
    os.closerange(0, 256)
    while True:
        process, status = os.wait()  # orphans come here too
        if process == child:
            os._exit(_code(status))


def keep_memory() -> None:
    """What this process frees it uses again: to get memory from the kernel anew for each tensor took a third of a network's time.

    Source: mallopt(3); M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4.
    """
    library = ctypes.CDLL(None)
    library.mallopt(-1, 2**30)
    library.mallopt(-4, 0)


def _work(requests: int, answers: int, output: int, shell) -> None:
    os.setsid()  # a signal to its process group reaches neither the zygote nor the grader
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for other in set(range(3, 256)) - {requests, answers}:
        try:
            os.close(other)
        except OSError:
            pass
    keep_memory()
    worker.work(requests, answers, shell)
    os._exit(0)  # whatever threads the student left running


if __name__ == "__main__":
    main()
