"""The sweep behind notebook 05: every network of the zoo, its weights quantized by three methods, 2 to 8 bits, per tensor and per channel.

    python -m qlab.lab.sweep                        writes records/sweep.json: true bytes, accuracy on the test images, which were right
    python -m qlab.lab.sweep --picture FILE.png     draws the record's size and accuracy, as on the first page of the project

Batch norm is folded first; all Conv2d and Linear weights are quantized, biases and activations are not (fake quantization: the record
tells accuracy and size, not speed). Which images were right is kept, so that any two rows can be compared by a paired test.
"""

import argparse
import base64
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from qlab.lab import data, machine, zoo
from qlab.lab.measure import accuracy, size_bytes
from qlab.lab.significance import Accuracy
from qlab.nets.models import MODELS
from qlab.nets.ptq import fold_batch_norm, quantize_weights
from qlab.quant import kmeans, linear, log

RECORD = Path(__file__).parent / "records" / "sweep.json"
METHODS = {  # name: (bits, axis) -> quantizer
    "linear": lambda bits, axis: lambda w: linear.quantize(w, bits, "symmetric", axis=axis),
    "log": lambda bits, axis: lambda w: log.quantize(w, bits, axis=axis),
    "kmeans": lambda bits, axis: lambda w: kmeans.quantize(w, bits, axis=axis),
}
BITS, AXES = range(2, 9), {"tensor": None, "channel": 0}


def _row(net: str, method: str, per: str, bits: int, nbytes: int, result: Accuracy) -> dict:
    right = base64.b64encode(np.packbits(result.correct.numpy())).decode()
    return {"net": net, "method": method, "per": per, "bits": bits, "nbytes": nbytes, "correct": int(result.correct.sum()), "right": right}


def run(nets=tuple(MODELS), path: Path = RECORD) -> dict:
    """Measure every combination and write the record; about 20 minutes on two cores."""
    test, rows = data.load("test"), []
    for net in nets:
        model = fold_batch_norm(zoo.load(net))
        rows.append(_row(net, "float", "tensor", 32, size_bytes(model), accuracy(model, test)))
        combinations = [(m, p, b) for m in METHODS for p in AXES for b in BITS]
        for method, per, bits in tqdm(combinations, desc=net):
            q = quantize_weights(model, METHODS[method](bits, AXES[per]))
            rows.append(_row(net, method, per, bits, q.nbytes, accuracy(q.model, test)))
    return machine.write_record(path, "python -m qlab.lab.sweep", checkpoints={net: zoo.record(net)["sha256"] for net in nets},
                                test_images=len(test.labels), rows=rows)


def load(path: Path = RECORD) -> list[dict]:
    """The committed rows: net, method, per, bits, nbytes, and result, the Accuracy with every image's outcome.

    >>> row = load()[0]
    >>> row["net"], row["method"], row["result"].n
    ('cnn', 'float', 10000)
    """
    record = json.loads(path.read_text())
    n = record["test_images"]
    return [row | {"result": Accuracy(torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8))[:n]).bool())}
            for row in record["rows"]]


def picture(path: Path, net: str = "depthwise") -> None:
    """Draw one network's rows as notebook 05 does: size against accuracy, per tensor beside per channel."""
    import matplotlib.pyplot as plt

    from qlab.lab import plot
    from qlab.lab.demos import compare
    plot.use_style()
    _, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for ax, per in zip(axes, AXES):
        compare.sizes(load(), net, per, ax).set_title(f"one scale or codebook per {per}")
    axes[1].set_ylabel("")
    axes[0].figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the sweep of notebook 05 and write its record, or draw the record.")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the committed record instead")
    arguments = parser.parse_args()
    picture(arguments.picture) if arguments.picture else run()
