"""The sweep behind notebook 05: every network of the zoo, its weights quantized by three methods, 2 to 8 bits, per tensor and per channel.

    python -m qlab.lab.sweep                        writes records/sweep.json: true bytes, accuracy on the test images, which were right
    python -m qlab.lab.sweep depthwise              one network again; the others' rows stay
    python -m qlab.lab.sweep ranges                 writes records/sweep_ranges.json: linear again, over the range of least squared error
    python -m qlab.lab.sweep --picture FILE.png     draws the record's size and accuracy, as on the first page of the project

Batch norm is folded first; all Conv2d and Linear weights are quantized, biases and activations are not (fake quantization: the record
tells accuracy and size, not speed). Which images were right is kept, so that any two rows can be compared by a paired test.
"""

import argparse
import io
from pathlib import Path

from tqdm.auto import tqdm

from qlab import saving
from qlab.lab import data, runs, zoo
from qlab.lab.measure import accuracy, size_bytes
from qlab.lab.significance import Accuracy
from qlab.nets.ptq import fold_batch_norm, quantize_weights
from qlab.quant import kmeans, linear, log, ranges

METHODS = {  # name: (bits, axis) -> quantizer
    "linear": lambda bits, axis: lambda w: linear.quantize(w, bits, "symmetric", axis=axis),
    "log": lambda bits, axis: lambda w: log.quantize(w, bits, axis=axis),
    "kmeans": lambda bits, axis: lambda w: kmeans.quantize(w, bits, axis=axis),
}
CLIPPED = "clipped"  # linear, saturating where that makes the squared error of a tensor or channel least
BITS, AXES = range(2, 9), {"tensor": None, "channel": 0}


NETS = ("cnn", "depthwise", "resnet")


def _row(net: str, method: str, per: str, bits: int, nbytes: int, result: Accuracy) -> dict:
    return {"net": net, "method": method, "per": per, "bits": bits, "nbytes": nbytes, **runs.outcome(result)}


def run(nets=NETS, folder: Path = runs.FOLDER) -> dict:
    """Measure every combination of these networks and write the record, beside the rows of the others; about 20 minutes on two cores."""
    test = data.load("test")
    rows = [] if set(nets) == set(NETS) else [row for row in runs.raw("sweep", folder)["rows"] if row["net"] not in nets]
    for net in nets:
        model = fold_batch_norm(zoo.load(net))
        rows.append(_row(net, "float", "tensor", 32, size_bytes(model), accuracy(model, test)))
        combinations = [(m, p, b) for m in METHODS for p in AXES for b in BITS]
        for method, per, bits in tqdm(combinations, desc=net):
            q = quantize_weights(model, METHODS[method](bits, AXES[per]))
            rows.append(_row(net, method, per, bits, q.nbytes, accuracy(q.model, test)))
    rows.sort(key=lambda row: NETS.index(row["net"]))                                       # stable: each network's rows in their order
    return runs.write("sweep", "python -m qlab.lab.sweep", folder, checkpoints={net: zoo.record(net)["sha256"] for net in NETS}, rows=rows)


def _best_range(bits: int, axis: int | None):
    def quantizer(w):
        low, high = ranges.mse(w, bits, "symmetric", axis)
        return linear.quantize(w, bits, "symmetric", axis=axis, x_min=low, x_max=high)
    return quantizer


def run_ranges(nets=NETS, folder: Path = runs.FOLDER) -> dict:
    """Linear over the best range, on every network, per tensor and per channel, and the record of it; about 5 minutes on two cores."""
    test, rows = data.load("test"), []
    for net in nets:
        model = fold_batch_norm(zoo.load(net))
        for per, axis in AXES.items():
            for bits in tqdm(BITS, desc=f"{net}, {per}"):
                q = quantize_weights(model, _best_range(bits, axis))
                rows.append(_row(net, CLIPPED, per, bits, q.nbytes, accuracy(q.model, test)))
    return runs.write("sweep_ranges", "python -m qlab.lab.sweep ranges", folder,
                      checkpoints={net: zoo.record(net)["sha256"] for net in nets}, rows=rows)


def load(name: str = "sweep") -> list[dict]:
    """The committed rows: net, method, per, bits, nbytes, and result, the Accuracy with every image's outcome.

    name: "sweep", or "sweep_ranges", whose method is CLIPPED.

    >>> row = load()[0]
    >>> row["net"], row["method"], row["result"].n
    ('cnn', 'float', 10000)
    """
    return runs.load(name)["rows"]


def picture(path: Path, net: str = "depthwise") -> None:
    """Draw one network's rows as notebook 05 does, without its bits: size against accuracy, per tensor beside per channel."""
    import matplotlib.pyplot as plt

    from qlab.lab import plot
    from qlab.lab.demos import compare
    plot.use_style()
    _, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for ax, per in zip(axes, AXES):
        compare.sizes(load(), net, per, ax).set_title(f"one scale or codebook per {per}")
        for bits in list(ax.texts):  # which bits are enough is the first notebook's first question
            bits.remove()
    axes[1].set_ylabel("")
    content = io.BytesIO()
    axes[0].figure.savefig(content, format=path.suffix[1:] or None)
    saving.write({path: content.getvalue()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the sweep of notebook 05 and write its record, or draw the record.")
    parser.add_argument("net", nargs="*", choices=[*NETS, "ranges", []], help="only these, beside what the record holds")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the committed record instead")
    arguments = parser.parse_args()
    if arguments.picture:
        picture(arguments.picture)
    elif arguments.net == ["ranges"]:
        run_ranges()
    else:
        run(arguments.net or NETS)
