"""Drives a worker that nobody trusts: sends it cells and cases, keeps the clock, and believes nothing but the shape of what it answers.

    run the cells -> ask the public cases -> when they are all answered: ask the hidden ones
    a cell or a question that takes too long, or ends the process -> end the run, start another without it, ask what is still open

The clock is the grader's own: the cell or question that the worker owes an answer for pays for the time. Its lines are read with limits,
and one that is not exactly an answer that is awaited is counted and ignored; of two answers to one case the first counts. Hidden inputs
are thus never inside the process while something that a student will read (a public answer, a cell's error) can still leave it. When a
hidden case ends the process the cells run again, and whatever an earlier process has left them to find (`confine` says what it could),
what they then raise is not kept: of the cells a student reads what was known before the first hidden input was sent.
"""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qlab.grading import values

MAX_LINE = 96 * 2**20
MAX_BYTES = 128 * 2**20  # of lines while one cell or question is awaited
MAX_MARKS = 1_000_000  # of , [ { in one line: what makes JSON large in memory
MAX_STRANGE = 1000  # lines of one run that are no answer
TAIL = 4096
TOO_LARGE = "its answers are too large"
START_SECONDS = 120.0


class WorkerFailed(RuntimeError):
    """The worker did not even start: the submission is not graded, which is not the same as a mark of 0."""


@dataclass(frozen=True)
class Run:
    """One worker process: three pipe ends, and `end`, which ends it with all it has started and says how it ended ("" if well).

    end(True) gives one that is about to end by itself a moment to do so, so that its own exit status can be told. spent: after that, where
    it is known, "code" and "cpu", the seconds that the processor worked for it; whole only if all its processes ended by themselves.
    """

    requests: int
    answers: int
    output: int
    end: Callable[[bool], str]
    spent: dict = field(default_factory=dict)


@dataclass
class Transcript:
    """What a submission answered."""

    answers: dict[tuple[str, int], dict] = field(default_factory=dict)  # (question, case) -> VALUE
    ended: dict[str, tuple[str, str]] = field(default_factory=dict)  # question -> "timeout" or "killed", and how
    cells: dict[int, tuple[str, str]] = field(default_factory=dict)  # index of a cell -> "error", "timeout" or "killed", and how
    told: bool = False  # a hidden input has been sent: from then on `cells` stays as it is
    tail: bytes = b""  # the end of what it printed
    twice: int = 0  # answers to a case that had one
    strange: int = 0  # lines that are no answer


class _Link:
    """The pipes of one run, each served by a thread, so that nothing the other side does or omits can block the grader."""

    def __init__(self, run: Run, tail: bytes):
        self.run, self.tail, self.lines, self.closed = run, tail, queue.Queue(maxsize=4), False
        self._to_send = queue.Queue()
        self._threads = [threading.Thread(target=job, daemon=True) for job in (self._send, self._read_answers, self._read_output)]
        for thread in self._threads:
            thread.start()

    def send(self, request: dict) -> None:
        self._to_send.put(json.dumps(request).encode() + b"\n")

    def close(self, by_itself: bool) -> str:
        how = self.run.end(by_itself)
        self.closed = True
        self._to_send.put(None)
        for thread in self._threads:
            thread.join(timeout=5)
        return how

    def _send(self) -> None:
        try:
            with open(self.run.requests, "wb", buffering=0) as pipe:
                while (data := self._to_send.get()) is not None:
                    view = memoryview(data)
                    while view:
                        view = view[pipe.write(view) :]
        except OSError:  # it does not listen any more
            pass

    def _put(self, line) -> None:
        while not self.closed:
            try:
                return self.lines.put(line, timeout=0.05)
            except queue.Full:
                pass

    def _read_answers(self) -> None:
        parts, length = [], 0
        with open(self.run.answers, "rb", buffering=0) as pipe:
            while data := pipe.read(2**20):
                *ends, rest = data.split(b"\n")
                for end in ends:
                    self._put(b"".join([*parts, end]))
                    parts, length = [], 0
                parts, length = parts + [rest] if rest else parts, length + len(rest)
                if length > MAX_LINE:
                    self._put(TOO_LARGE)
                    parts, length = [], 0
        self._put(None)

    def _read_output(self) -> None:
        with open(self.run.output, "rb", buffering=0) as pipe:
            while data := pipe.read(2**20):
                self.tail = (self.tail + data)[-TAIL:]


def drive(start: Callable[[], Run], sources: list[str], questions: list[dict], total_seconds: float, cell_seconds: float) -> Transcript:
    """Runs the cells and asks every case of every question, as often as it takes until each has an answer or its question has ended.

    questions: {"id", "seconds", "cases": [{"kind", "call", "setup", "inputs"}]}, and "after": the index of the cell after which the names
    are as the question needs them; None, or left out, for the last. total_seconds bounds the whole, cell_seconds one cell.
    Raises WorkerFailed if a worker does not start.
    """
    transcript = Transcript()
    clock = _Clock({question["id"]: float(question["seconds"]) for question in questions}, time.monotonic() + total_seconds)
    cases = [(q, k, case["kind"]) for q in questions for k, case in enumerate(q["cases"])]
    left_out: set[int] = set()  # cells that did not come to their end
    kept = [question["after"] for question in questions if question.get("after") is not None]
    first = True
    while True:
        still = [(q, k, kind) for q, k, kind in cases if (q["id"], k) not in transcript.answers and q["id"] not in transcript.ended]
        if not still and not first:
            return transcript
        first = False
        link = _Link(start(), transcript.tail)
        inbox = _Inbox(link, transcript)
        try:
            batches = {wanted: [(q, k) for q, k, kind in still if kind == wanted] for wanted in ("public", "hidden")}
            cells = [None if index in left_out else source for index, source in enumerate(sources)]
            blame = _run(link, inbox, cells, kept, batches, clock, cell_seconds)
        finally:
            how = link.close(inbox.fault == "killed")
            transcript.tail = link.tail
            transcript.strange += inbox.strange
            transcript.twice += inbox.twice
        what, which = blame
        fate = ("timeout", "") if inbox.fault == "timeout" else ("killed", how if inbox.fault == "killed" else inbox.fault)
        if what == "cell":
            left_out.add(which)
            if not transcript.told:
                transcript.cells[which] = fate
        elif what == "question":
            transcript.ended[which] = fate
            if inbox.fault == TOO_LARGE:
                transcript.answers = {at: value for at, value in transcript.answers.items() if at[0] != which}
        if time.monotonic() >= clock.deadline:
            for q, k, _ in still:
                if (q["id"], k) not in transcript.answers:
                    transcript.ended.setdefault(q["id"], ("timeout", "notebook"))


@dataclass(frozen=True)
class _Clock:
    left: dict[str, float]  # the seconds that each question has left
    deadline: float  # of the whole


def _run(link: _Link, inbox: "_Inbox", cells: list, kept: list, batches: dict, clock: _Clock,
         cell_seconds: float) -> tuple[str, object]:
    """One run of a worker: what did not come to its end, "cell", "question" or "" for nothing, and which."""
    if inbox.next("ready", time.monotonic() + START_SECONDS) is None:
        raise WorkerFailed("the worker did not start.")
    link.send({"cells": cells, "kept": kept})
    inbox.cells = deque(index for index, source in enumerate(cells) if source is not None)
    while inbox.cells:
        index = inbox.cells[0]
        if inbox.next("cell", min(time.monotonic() + cell_seconds, clock.deadline), index) is None:
            return "cell", index
    for kind, batch in batches.items():
        if not batch:
            continue
        inbox.transcript.told |= kind == "hidden"
        inbox.waiting, inbox.batches = {(q["id"], k) for q, k in batch}, inbox.batches + 1
        link.send({"questions": [_question(q, batch) for q in {q["id"]: q for q, _ in batch}.values()]})
        message = {}
        while "done" not in message:
            current = next((q["id"] for q, k in batch if (q["id"], k) in inbox.waiting), batch[-1][0]["id"])
            before = time.monotonic()
            message = inbox.next("question", min(before + clock.left[current], clock.deadline), current)
            clock.left[current] -= time.monotonic() - before
            if message is None:
                return "question", current
    return "", None


def _question(question: dict, batch: list) -> dict:
    """What the worker is told of a question's cases in this batch: nothing that is expected."""
    asked = [(k, question["cases"][k]) for q, k in batch if q is question]
    cases = [{"case": k, **{key: case[key] for key in ("call", "setup", "inputs")}} for k, case in asked]
    return {"id": question["id"], "after": question.get("after"), "cases": cases}


class _Inbox:
    """The lines of one run that are exactly what may come now; the others are counted."""

    def __init__(self, link: _Link, transcript: Transcript):
        self.link, self.transcript = link, transcript
        self.cells, self.waiting, self.batches = deque(), set(), 0  # what the worker owes
        self.awaited, self.bytes = None, 0  # the cell or question that is awaited, and what came meanwhile
        self.strange = self.twice = 0
        self.fault = ""

    def next(self, phase: str, until: float, awaited: int | str | None = None) -> dict | None:
        """The next line that may come in this phase; None if there is none by then, if the process has ended, or if it broke the rules."""
        if awaited != self.awaited:
            self.awaited, self.bytes = awaited, 0
        while True:
            try:
                line = self.link.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.fault = "timeout"
                return None
            if line is None:
                self.fault = "killed"
                return None
            self.bytes += len(line)
            if isinstance(line, str) or self.bytes > MAX_BYTES:
                self.fault = TOO_LARGE
                return None
            message = _read(line)
            if message is not None and self._note(phase, message):
                return message
            self.strange += message is None
            if self.strange + self.twice > MAX_STRANGE:
                self.fault = "it flooded the grader with lines of its own"
                return None

    def _note(self, phase: str, message: dict) -> bool:
        """Notes down what a line says; False, and counted, if it may not come in this phase."""
        match phase, message:
            case "ready", {"ready": True}:
                return True
            case "cell", {"cell": int(index), "error": None | str() as error} if index is not True and index in self.cells:
                while self.cells and self.cells[0] <= index:
                    self.cells.popleft()
                if error is not None and not self.transcript.told:
                    self.transcript.cells[index] = ("error", error[: 2 * values.MAX_TEXT])
                return True
            case "question", {"question": str(name), "case": int(k), "value": dict(value)} if (name, k) in self.waiting and _valid(value):
                self.transcript.answers[name, k] = value
                self.waiting.discard((name, k))
                return True
            case "question", {"question": str(name), "case": int(k)} if (name, k) in self.transcript.answers:
                self.twice += 1
            case "question", {"done": int(number)} if number is not True and number == self.batches and not self.waiting:
                return True
            case _:
                self.strange += 1
        return False


def _read(line: bytes) -> dict | None:
    """The JSON object of a line, if it is one that is safe to read."""
    if len(line) > MAX_LINE or sum(map(line.count, (b",", b"[", b"{"))) > MAX_MARKS:
        return None
    try:
        message = json.loads(line.decode())
        if b"\\u" in line:
            json.dumps(message, ensure_ascii=False).encode()  # raises where half a surrogate pair makes a text that no file can hold
    except (ValueError, RecursionError):
        return None
    return message if type(message) is dict else None


def _valid(value: dict) -> bool:
    try:
        values.decode(value)
    except (ValueError, RecursionError):
        return False
    return True
