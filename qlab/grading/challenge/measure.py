"""What a hand-in to the challenge is worth: the share of the hidden images of which it is right, in percent, or 0 where it breaks a limit.

    weights    the file is decoded, and the network run, by the course's own code; no code of the student's runs at all
    speed      predict.py and model.bin run, twice, where nothing of the course's data and networks is to be seen

Both run in the sandbox, which is told pixels and answers with classes; the labels stay here. An image of which the two runs of predict
say different things is wrong: who reads the clock, or dice, gains nothing. The time is the processor's for the whole run, as the kernel
counts it for whoever waits for a process; predict has one process and one thread, so that there is no other that could work for it. The
shorter of the two runs counts.

Where test images are known significantly better than the control, made from training images, their labels were learned: then the control's
share is the score.
"""

import base64
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

import qlab
from qlab.grading import values
from qlab.grading.sandbox import bwrap, drive
from qlab.grading.sandbox.drive import Run, Transcript

HIDDEN = tuple(Path(qlab.__file__).parent / "lab" / name for name in ("austen", "checkpoints", "fashion-mnist", "records"))
BATCH = 500
DOUBT = 1e-4                                                                                # that test images are known better by chance
WAIT = 6                                                                                    # seconds of wall for one of the processor
OPEN = """
import torch
from qlab.lab import challenge

def open_file(data):
    global model
    with open("weights.safetensors", "wb") as file:
        file.write(data.numpy().tobytes())
    encoding = challenge.encode(challenge.read("weights.safetensors"))
    model = challenge.network(encoding)
    return len(encoding)

def predict(pixels):
    return challenge.predict(model, pixels)
"""
UNPACK = """
def _unpack(text):
    import base64
    with open("model.bin", "wb") as file:
        file.write(base64.b64decode(text))
_unpack("{}")
del _unpack
"""


@contextmanager
def sandboxed(jobs: int) -> Iterator[partial]:
    """Marks in a sandbox of so many slots, without the course's data. Raises bwrap.SandboxUnavailable."""
    with bwrap.Sandbox(jobs, processes=1, hide=HIDDEN) as box:
        yield partial(measure, box)


def measure(sandbox, files: list[dict], bundle: dict) -> dict:
    """The marks of a hand-in's files ({"name", "data"}), as mark.grade_notebook gives them for a notebook.

    A question is a track; "measured", where it was, holds bytes, ms, the number of images, which of them were right (packed bits, hex), and
    the control's (right, of how many), and whether that is what counts. Raises SandboxUnavailable or WorkerFailed where nothing can be
    measured: that is no mark of 0.
    """
    given = {one["name"]: one["data"] for one in files}
    tail = ""
    questions = []
    for track, run in (("weights", _weights), ("speed", _speed)):
        question, printed = run(sandbox, given, bundle)
        points = next(one["points"] for one in bundle["questions"] if one["id"] == track)
        questions.append({"id": track, "points": points, "failed_case": None, "failed_answers": {}, "public_failed": None,
                          "answers_like": None, "note": "", **question})
        tail += printed.decode(errors="replace")
    alias = given.get("alias.txt", b"").decode("utf-8", "replace").strip().splitlines()
    return {"questions": questions, "score": round(sum(question["score"] for question in questions), 2),
            "max_score": sum(question["points"] for question in questions), "limits": sandbox.limits_that_hold, "stdout_tail": tail,
            "alias": alias[0][:40] if alias else ""}


def _weights(sandbox, given: dict, bundle: dict) -> tuple[dict, bytes]:
    if "weights.safetensors" not in given:
        return _nothing("missing", "There is no weights.safetensors in it."), b""
    data, limit = np.frombuffer(given["weights.safetensors"], np.uint8), bundle["tracks"]["weights"]["bytes"]
    first = [{"kind": "hidden", "call": "open_file(torch.from_numpy(data.copy()))", "setup": "", "inputs": {"data": values.encode(data)}}]
    with sandbox.lease() as start:
        transcript = drive.drive(start, [OPEN], [{"id": "run", "seconds": 120, "cases": first + _cases(bundle)}], 200, 60)
    opened = transcript.answers.get(("run", 0), {"t": "none"})
    if opened["t"] == "error":
        return _nothing("error", f"The file cannot be used: {opened['message']}"), transcript.tail
    if opened["t"] != "int":
        return _nothing("killed", "The process ended while the file was read."), transcript.tail
    size = int(opened["v"])
    if size > limit:
        return _nothing("failed", f"The weights take {size:,} bytes, and {limit:,} are allowed.", bytes=size), transcript.tail
    return _scored(_answers(transcript, bundle, 1), bundle, {"bytes": size}, f"{size:,} bytes"), transcript.tail


def _speed(sandbox, given: dict, bundle: dict) -> tuple[dict, bytes]:
    if "predict.py" not in given:
        return _nothing("missing", "There is no predict.py in it."), b""
    code, data, limits = given["predict.py"], given.get("model.bin", b""), bundle["tracks"]["speed"]
    size, images = len(code) + len(data), len(bundle["labels"])
    if size > limits["bytes"]:
        return _nothing("failed", f"predict.py and model.bin have {size:,} bytes, and {limits['bytes']:,} are allowed.", bytes=size), b""
    try:
        cells = [UNPACK.format(base64.b64encode(data).decode()), code.decode()]
    except UnicodeDecodeError:
        return _nothing("error", "predict.py is no text in UTF-8."), b""
    runs = [_timed(sandbox, cells, bundle, 10 + WAIT * limits["ms"] / 1000 * images / 1000) for _ in range(2)]
    tail = runs[0][0].tail
    if (cell := runs[0][0].cells.get(1)) is not None:
        return _nothing("error", f"predict.py stopped: {cell[1] or cell[0]}"), tail
    if any(fate[0] == "timeout" for transcript, _ in runs for name, fate in transcript.ended.items() if name == "run"):
        return _nothing("timeout", "predict does not come to its end."), tail
    if any(name == "run" for transcript, _ in runs for name in transcript.ended):
        return _nothing("killed", "The process ended while predict ran: it left Python, crashed, or used too much memory."), tail
    if any(seconds is None for _, seconds in runs):
        return _nothing("failed", "Its time could not be measured, for its process did not end when it was told to."), tail
    ms = min(seconds for _, seconds in runs) * 1000 / (images / 1000)
    measured = {"bytes": size, "ms": round(ms, 1)}
    told = f"{size:,} bytes, {ms:,.0f} ms of the processor for 1,000 images"
    if ms > limits["ms"]:
        return _nothing("failed", f"{told}, and {limits['ms']:,g} are allowed.", **measured), tail
    first, second = (_answers(transcript, bundle, 0) for transcript, _ in runs)
    question = _scored(np.where(first == second, first, -1), bundle, measured, told)
    if (first != second).any():
        question["note"] += f"the two runs differ on {int((first != second).sum()):,} images, which count as wrong; "
    return question, tail


def _timed(sandbox, cells: list[str], bundle: dict, seconds: float) -> tuple[Transcript, float | None]:
    """One run of predict, and the processor's seconds; None where the run did not end by itself."""
    runs: list[Run] = []
    leave = [{"kind": "hidden", "call": "__import__('os')._exit(0)", "setup": "", "inputs": {}}]  # so that the kernel adds up its time
    asked = [{"id": "run", "seconds": seconds, "cases": _cases(bundle)}, {"id": "leave", "seconds": 5, "cases": leave}]
    with sandbox.lease() as start:

        def one_only() -> Run:
            runs.append(start())
            return runs[-1]

        transcript = drive.drive(one_only, cells, asked, 2 * seconds + 60, seconds)
    ended = [run.spent for run in runs]
    whole = all("cpu" in spent and spent["code"] == 0 for spent in ended)
    return transcript, sum(spent["cpu"] for spent in ended) if whole else None


def _cases(bundle: dict) -> list[dict]:
    pixels = values.decode(bundle["pixels"])
    return [{"kind": "hidden", "call": "predict(pixels)", "setup": "", "inputs": {"pixels": _tensor(pixels[k:k + BATCH])}}
            for k in range(0, len(pixels), BATCH)]


def _tensor(pixels: np.ndarray) -> dict:
    return values.encode(np.ascontiguousarray(pixels)) | {"t": "tensor"}


def _answers(transcript: Transcript, bundle: dict, first: int) -> np.ndarray:
    """The class that was answered for each image, int64; -1 where there is no answer of the kind that is asked for."""
    images, found = len(bundle["labels"]), []
    for k, start in enumerate(range(0, images, BATCH)):
        n = min(BATCH, images - start)
        answer = transcript.answers.get(("run", first + k))
        value = values.decode(answer) if answer and answer["t"] in ("tensor", "array", "list") else None
        try:
            value = np.asarray(value)
        except ValueError:  # a list of lists of different lengths
            value = None
        fits = value is not None and value.shape == (n,) and value.dtype.kind in "iu"
        found.append(value.astype(np.int64) if fits else np.full(n, -1))
    return np.concatenate(found)


def _scored(answers: np.ndarray, bundle: dict, measured: dict, told: str) -> dict:
    of_test = np.array(bundle["from_test"])
    right = answers == np.array(bundle["labels"])
    k, n = int(right[of_test].sum()), int(of_test.sum())
    control, m = int(right[~of_test].sum()), int((~of_test).sum())
    share, note, known = k / n, "", bool(m) and learned(k, n, control, m)
    if known:
        share = control / m
        note = (f"it is right of {100 * k / n:.1f} % of what was made from test images and of {100 * share:.1f} % of what was made from "
                "training images: it has learned labels of test images, and the lower share counts; ")
    low, high = wilson(k, n)
    reason = f"{100 * k / n:.2f} % of {n:,} hidden images right [{100 * low:.1f}, {100 * high:.1f}], {told}."
    if note:
        reason += f" Images that were made from training images: {100 * share:.2f} %. The lower counts."
    measured = measured | {"images": n, "right": np.packbits(right[of_test]).tobytes().hex(), "control": [control, m], "learned": known}
    return {"score": round(100 * share, 2), "state": "passed", "reason": reason, "note": note, "measured": measured}


def _nothing(state: str, reason: str, **measured) -> dict:
    return {"score": 0, "state": state, "reason": reason, **({"measured": measured} if measured else {})}


def learned(right: int, n: int, control: int, m: int) -> bool:
    """Whether test images, right of n, are known so much better than the control, of m, that chance does not explain it: the z-test of two
    proportions, one-sided.

    >>> learned(4600, 5000, 2200, 2500), learned(4300, 5000, 2150, 2500)
    (True, False)
    """
    return standard_errors(right, n, control, m) > statistics.NormalDist().inv_cdf(1 - DOUBT)


def standard_errors(right: int, n: int, other: int, m: int) -> float:
    """By how many standard errors right / n is above other / m, if both were one proportion; 0 where nothing varies.

    >>> round(standard_errors(60, 100, 50, 100), 3)                           # 0.1 / sqrt(0.55 * 0.45 * 2 / 100)
    1.421
    """
    pooled = (right + other) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return (right / n - other / m) / error if error else 0.0


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927).

    >>> [round(end, 4) for end in wilson(9213, 10_000)]
    [0.9159, 0.9264]
    """
    z, p = statistics.NormalDist().inv_cdf(0.975), right / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))
