"""The challenge's bundle: hidden images, their labels, and what each track allows. Made by `qlab build challenge`, never published.

The images come from a process of the course's own, qlab.lab.challenge_images, for nothing of grading imports the networks or the data.
"""

import hashlib

import qlab
from qlab.grading import values
from qlab.grading.sandbox import drive, slot

NAME = "challenge"
WEIGHTS_BYTES = 27_000
SPEED_BYTES, SPEED_MS = 120_000, 1500                                                       # ms of the processor for 1,000 images
MAKE = """
def make(seed, test, control):
    from qlab.lab import challenge_images
    made = challenge_images.make(seed, test, control)
    return made.pixels, made.labels.tolist(), made.from_test.tolist()
"""


def make(seed: str, test: int = 5000, control: int = 2500, speed_ms: float = SPEED_MS) -> dict:
    """The bundle without its digest. seed: the teacher's; test, control: how many hidden images are made of test and of training images;
    speed_ms: what the second track allows, milliseconds of the processor for 1,000 images, on the machine that grades.

    Raises ValueError if no such images can be made.
    """
    inputs = {"seed": seed, "test": test, "control": control}
    case = {"kind": "hidden", "call": "make(seed, test, control)", "setup": "",
            "inputs": {name: values.encode(value) for name, value in inputs.items()}}
    with slot.Trusted().lease() as start:
        transcript = drive.drive(start, [MAKE], [{"id": "make", "seconds": 300, "cases": [case]}], 400, 30)
    answer = transcript.answers.get(("make", 0), {"t": "error", "message": "it gave no answer"})
    if answer["t"] != "tuple":
        raise ValueError(f"the hidden images could not be made: {answer.get('message', answer['t'])}")
    pixels, labels, from_test = answer["v"]
    return {
        "format": 1, "assignment": NAME, "qlab": qlab.__version__, "seed_sha256": hashlib.sha256(seed.encode()).hexdigest(), "built": "",
        "tracks": {"weights": {"bytes": WEIGHTS_BYTES}, "speed": {"bytes": SPEED_BYTES, "ms": speed_ms}},
        "pixels": pixels, "labels": values.decode(labels), "from_test": values.decode(from_test),
        "questions": [{"id": name, "points": 100, "seconds": 120, "answer_cell": name, "wrong": [], "cases": []}
                      for name in ("weights", "speed")],
    }
