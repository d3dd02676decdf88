"""A .tflite file from elsewhere, run in a process of its own: what makes a runtime crash, hang or eat memory ends that process alone.

The runtimes check little of what they read. A file with one byte flipped may make them write outside their memory, and no Python
can catch that. So the file runs in a child, which is asked through its standard input and answers through its standard output:

    kind (1 byte), seconds (float64), length (int64), then as many bytes: arrays as np.save writes them, the rest as JSON or text

A question has SECONDS to be answered, and a batch a second more for each of its images; the child may take MEMORY bytes more than it
starts with (where the system limits memory: Linux). It ends with the function that load returns, with its parent, or with its file.
"""

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

import qlab
from qlab.deploy import tflite_runtime

SECONDS = 60
MEMORY = 4 << 30
HEAD = struct.Struct("<cdq")
ERRORS = {b"V": ValueError, b"I": ImportError}                                              # kinds of answers that are raised
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from qlab.deploy.tflite_child import serve; serve()"

# The parent's half


def load(path, content: bytes, kernels: str, threads: int, arena: int) -> Callable[[np.ndarray], np.ndarray]:
    """As tflite_runtime.load, in a child of its own; ValueError also, naming the signal or the limit, where the child does not survive."""
    ask = _start(path, kernels, {"path": str(path), "kernels": kernels, "threads": threads, "arena": arena}, content)

    def infer(codes: np.ndarray) -> np.ndarray:
        question = io.BytesIO()
        np.save(question, codes, allow_pickle=False)
        return np.load(io.BytesIO(ask(b"R", question.getvalue(), len(codes))), allow_pickle=False)

    try:
        ask(b"L")
    except BaseException:
        ask.end()
        raise
    weakref.finalize(infer, ask.end)
    return infer


def planned(path, content: bytes, arena: int) -> dict[str, int]:
    """As tflite_runtime.planned, in a child of its own."""
    ask = _start(path, "micro", {"path": str(path), "arena": arena}, content)
    try:
        return json.loads(ask(b"A"))
    finally:
        ask.end()


def _start(path, kernels: str, options: dict, content: bytes) -> "_Child":
    # -I and the parent's own path: neither the folder that we are in nor a variable of the environment decides what is imported.
    known = [os.path.abspath(folder) for folder in sys.path if folder] + [str(Path(qlab.__file__).parents[1])]
    try:
        process = subprocess.Popen([sys.executable or "python", "-I", "-c", PROGRAM, json.dumps(known)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise ValueError(f"{path} was not exported here, so that it must run in a process of its own, and none can be started "
                         f"({error.strerror}).") from None
    child = _Child(process, f"{path} cannot be run by {tflite_runtime.NAMES[kernels]}, whose process")
    with contextlib.suppress(ValueError):  # a child that cannot even begin says so at the first question
        child(b"F", json.dumps(options).encode() + b"\n" + content)
    return child


class _Child:
    """Asks a process, one question at a time, whichever thread asks."""

    def __init__(self, process: subprocess.Popen, blame: str):
        self.process, self.blame, self.lock, self.ended = process, blame, threading.Lock(), ""

    def __call__(self, kind: bytes, content: bytes = b"", images: int = 0) -> bytes:
        seconds = SECONDS + images
        with self.lock:
            if self.ended:
                raise ValueError(self.ended)
            late = threading.Event()
            timer = threading.Timer(seconds, lambda: (late.set(), self.process.kill()))
            timer.daemon = True
            timer.start()
            try:
                _write(self.process.stdin, kind, seconds, content)
                kind, _, answer = _read(self.process.stdout)
            except (OSError, EOFError):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)                                                    # it is on its way out: by which signal?
                self.end()
                self.ended = f"{self.blame} {f'did not answer within {seconds} seconds' if late.is_set() else self._why()}."
                raise ValueError(self.ended) from None
            except BaseException:  # an interrupt: the answer to come would be taken for the next question's
                self.end()
                self.ended = f"{self.blame} was interrupted: load the file again."
                raise
            finally:
                timer.cancel()
        if kind in ERRORS:
            raise ERRORS[kind](answer.decode())
        return answer

    def _why(self) -> str:
        code = self.process.returncode
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")

    def end(self) -> None:
        """Let no process stay behind."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # a question that nobody read is still in it
                pipe.close()


def _write(pipe, kind: bytes, seconds: float, content: bytes) -> None:
    pipe.write(HEAD.pack(kind, seconds, len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe) -> tuple[bytes, float, bytes]:
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    kind, seconds, length = HEAD.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return kind, seconds, content


# The child's half


def serve() -> None:
    """Answer until there are no more questions."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                                                           # what a runtime prints is no answer
    _limit_memory()
    state = {}
    with contextlib.suppress(EOFError):
        while True:
            kind, seconds, content = _read(questions)
            if hasattr(signal, "alarm"):
                signal.alarm(int(seconds) + 10)                                             # a parent that was killed stops nobody
            try:
                answer = b"K", _answer(kind, content, state)
            except ImportError as error:
                answer = b"I", str(error).encode()
            except MemoryError:
                answer = b"V", f"{state['path']} needs more than {MEMORY >> 30} GiB of memory, and may take no more.".encode()
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, it is the file's doing
                said = str(error) if isinstance(error, ValueError) else f"{state['path']} cannot be run: {error or type(error).__name__}."
                answer = b"V", said.encode()
            if hasattr(signal, "alarm"):
                signal.alarm(0)
            _write(answers, answer[0], 0.0, answer[1])


def _answer(kind: bytes, content: bytes, state: dict) -> bytes:
    if kind == b"F":  # a file and what to do with it
        options, state["content"] = content.split(b"\n", 1)
        state |= json.loads(options)
    elif kind == b"A":
        return json.dumps(tflite_runtime.planned(state["path"], state["content"], state["arena"])).encode()
    elif kind == b"L":
        state["infer"] = tflite_runtime.load(*(state[name] for name in ("path", "content", "kernels", "threads", "arena")))
    elif kind == b"R":
        answer = io.BytesIO()
        with tflite_runtime.refusals(state["path"], tflite_runtime.NAMES[state["kernels"]]):
            np.save(answer, state["infer"](np.load(io.BytesIO(content), allow_pickle=False)), allow_pickle=False)
        return answer.getvalue()
    return b""


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))                                    # a crash leaves no file behind
