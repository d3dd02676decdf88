"""The worker: runs a student's cells and evaluates the cases' expressions. Nobody trusts it, and it decides nothing.

    it is told                                                    it answers (JSON, one line each)
                                                                  {"ready": true}, before any of the student's code runs
    {"cells": [source or null, ...], "kept": [i, ...]}            {"cell": i, "error": null or text} for each that is not null
    {"questions": [{"id": "q1", "after": i or null,               {"question": "q1", "case": k, "value": VALUE} for each case,
      "cases": [{"case": k, "call": ..., "setup": ...,            then {"done": n}, n counting such requests from 1
      "inputs": {...}}]}]}

It receives inputs only, never an expected value, and is told a question's hidden cases only after it has answered all public ones.
Cells run in an IPython shell, so magics work; one that fails prints and the cell goes on. A cell that raises does not stop the others.
Each case gets inputs of its own and the same random seeds, so one case cannot spoil the next by writing into a tensor.
A question is asked of what stood after its answer cell, as in a notebook whose test cell follows: a scratch cell that later makes something
else of a name, storage = storage(10, 7), costs nothing. What a later cell adds is there too, and an answer that the cell left blank; but
no name that would hide a builtin, len = 4. What is set for the whole process does not stay (`reset`).
"""

import builtins
import contextlib
import dis
import json
import os
import random
import sys
import types
import warnings
from functools import partial

import numpy as np

from qlab.grading import values

BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("__"))  # a module has a __name__ of its own
# Functions as they are before a student's code runs, which may put something else in their places.
SEEDS = [random.seed, np.random.seed]
AS_LEFT = [(np.geterr, lambda errors, put=np.seterr: put(**errors)), (sys.getrecursionlimit, sys.setrecursionlimit),
           (warnings.filters.copy, partial(warnings.filters.__setitem__, slice(None)))]
DEFAULTS = []
NOT_RUN = ("matplotlib", "pip", "conda", "mamba", "uv")  # figures stay in memory, and nothing can be installed


def make_shell():
    """The IPython shell that runs the cells: no history, no colours, no files; made before any student's code is there."""
    import torch  # nearly every notebook does
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    torch.set_num_threads(1)
    SEEDS.append(torch.manual_seed)
    DEFAULTS.extend(partial(*of) for of in ((torch.set_default_dtype, torch.float32), (torch.set_default_device, None),
                                            (torch.set_grad_enabled, True), (torch.set_num_threads, 1)))
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.xmode = "Plain"
    shell = InteractiveShell.instance(config=config)
    line_magic, cell_magic, system = shell.run_line_magic, shell.run_cell_magic, shell.system

    def forgiving(run, *args, **kwargs):
        try:
            return run(*args, **kwargs)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")

    def run_line_magic(name, line, _stack_depth=1):
        if name not in NOT_RUN:
            return forgiving(line_magic, name, line, _stack_depth=_stack_depth + 2)

    shell.run_line_magic = run_line_magic
    shell.run_cell_magic = lambda name, line, cell: forgiving(cell_magic, name, line, cell)
    shell.system = lambda command: forgiving(system, command)
    return shell


def run_cell(shell, source: str) -> str | None:
    """Runs one cell; None, or the error that stopped it with its line.

    >>> import IPython.core.interactiveshell as ipython
    >>> shell = ipython.InteractiveShell()
    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...     error = run_cell(shell, "x = 1\\ny = x + z")
    >>> error, shell.user_ns["x"]
    ("NameError: name 'z' is not defined (line 2 of the cell)", 1)
    """
    try:
        result = shell.run_cell(source, store_history=False)
        error = result.error_before_exec or result.error_in_exec
    except BaseException as trouble:  # what the cell has done to the shell, or to Python
        error = trouble
    if error is None:
        return None
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename.startswith("<ipython-input"):
            line = step.tb_lineno if line is None else line
        step = step.tb_next
    said = values.encode(error)
    message = error.msg if isinstance(error, SyntaxError) else said["message"]
    return f"{said['type']}: {message}".removesuffix(": ")[: values.MAX_TEXT] + (f" (line {line} of the cell)" if line else "")


def standing(names: dict) -> dict:
    """The names that stand after an answer cell, without the functions and classes that are not answered yet.

    >>> def blank(): raise NotImplementedError()
    >>> def double(x): return 2 * x
    >>> list(standing({"bits": 8, "blank": blank, "double": double}))
    ['bits', 'double']
    """
    return {name: value for name, value in names.items() if not _blank(value)}


def _blank(value) -> bool:
    """Whether a function raises NotImplementedError before anything else, or all of a class's own methods do so."""
    parts = {name: part for name, part in vars(value).items() if name != "__init__"} if type(value) is type else {"": value}
    codes = [part.__code__ for part in parts.values() if type(part) is types.FunctionType]
    return bool(codes) and all("NotImplementedError" in code.co_names and _first(code) == "NotImplementedError" for code in codes)


def _first(code: types.CodeType):
    return next((step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_")), None)


def found(end: dict, kept: dict) -> dict:
    """The names that a question finds: those kept after its answer cell, and from the end those that were not there and hide no builtin.

    >>> found({"bits": 3, "helper": abs, "len": 4}, {"bits": 8})
    {'helper': <built-in function abs>, 'bits': 8}
    """
    return {name: value for name, value in end.items() if name not in kept and name not in BUILTINS} | kept


def settings() -> tuple:
    """What an answer may count on: as its cell left NumPy's floating-point errors, the depth of recursion and the warnings."""
    return tuple(get() for get, _ in AS_LEFT)


def reset(left: tuple) -> None:
    """These as they were left, and as in a new kernel the default dtype and device, gradients and threads."""
    for one in (*(partial(put, value) for (_, put), value in zip(AS_LEFT, left)), *DEFAULTS):
        with contextlib.suppress(Exception):
            one()


def seed() -> None:
    """The same random numbers for each submission and each case."""
    for one in SEEDS:
        with contextlib.suppress(Exception):
            one(0)


def answer(names: dict, case: dict) -> dict:
    """The VALUE of a case's call over the student's names and the case's inputs, or of the exception that it raises.

    >>> answer({"double": lambda x: 2 * x}, {"call": "double(x)", "inputs": {"x": {"t": "int", "v": "3"}}})
    {'t': 'int', 'v': '6'}
    """
    seed()
    scope = {**names, **{name: values.restore(value) for name, value in case["inputs"].items()}}
    try:
        exec(compile(case.get("setup", ""), "<setup>", "exec"), scope)
        return values.encode(eval(compile(case["call"], "<call>", "eval"), scope))
    except BaseException as error:  # SystemExit and KeyboardInterrupt too
        return values.encode(error)


def work(requests: int, answers: int, shell) -> None:
    """Answers the requests that arrive on one file descriptor on another, until the first is closed."""

    def say(message: dict) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            pass
        sys.stdout, sys.stderr = (open(fd, "w", errors="replace", closefd=False) for fd in (1, 2))  # whatever a cell has put there
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(answers, data) :]

    say({"ready": True})
    seed()
    if "" not in sys.path:
        sys.path.insert(0, "")  # as in a notebook: what %%writefile has written can be imported
    done, kept, end = 0, {}, ({}, settings())
    with open(requests, "rb") as lines:
        for line in lines:
            request = json.loads(line)
            for index, source in enumerate(request.get("cells", ())):
                if source is not None:
                    with contextlib.suppress(Exception):  # what an earlier cell wrote may be newer than the import system's list of files
                        sys.path_importer_cache.pop(os.getcwd(), None)
                    error = run_cell(shell, source)
                    if index in request["kept"]:
                        kept[index] = standing(shell.user_ns), settings()
                    say({"cell": index, "error": error})
            end = (dict(shell.user_ns), settings()) if "cells" in request else end
            for question in request.get("questions", ()):
                stood, left = kept.get(question["after"], ({}, end[1]))
                names = found(end[0], stood)
                for name in shell.user_ns.keys() - names.keys():
                    del shell.user_ns[name]
                shell.user_ns.update(names)
                reset(left)
                for case in question["cases"]:
                    say({"question": question["id"], "case": case["case"], "value": answer(shell.user_ns, case)})
            if "questions" in request:
                say({"done": (done := done + 1)})


def main() -> None:
    """A worker by itself, without a sandbox: requests on stdin, answers on stdout, and what the cells print on stderr."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    work(requests, answers, make_shell())
    os._exit(0)  # whatever threads the student left running


if __name__ == "__main__":
    main()
