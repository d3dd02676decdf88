"""The record of qlab.lab.matmul_bench as a picture."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from qlab import saving
from qlab.lab import plot


def draw(record: dict, path: Path) -> None:
    """The rates of the square products by size, one line a contender, and the roof that is the best of them, as a PNG."""
    plot.use_style()
    threads = max(row["threads"] for row in record["rows"])
    rows = [row for row in record["rows"] if row["kind"] == "square" and row["threads"] == threads and "tops" in row]
    looks = {"float32": ("float", "-", "o"), "float32 with TF32": ("float", ":", "o"), "float16": ("muted", "-", "s"),
             "bfloat16": ("muted", "--", "v"), "torch._int_mm": ("linear", "-", "s"), "triton": ("kmeans", "-", "D"),
             "onnxruntime": ("kmeans", "-", "D"), "float32 in chunks": ("float", "--", "o"),
             "fused": ("accent", "-", "^"), "Int8Linear": ("log", "-", "P")}
    figure = Figure(figsize=(7.0, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="M = K = N", ylabel="rate [10$^{12}$ operations/s]")
    for what, (color, line, marker) in looks.items():
        points = [(row["shape"][0], row["tops"]) for row in rows if row["what"] == what]
        if points:
            axes.loglog(*zip(*points), color=plot.COLORS[color], linestyle=line, marker=marker, label=what, base=10)
    sizes = sorted({row["shape"][0] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    environment = record["environment"]
    where = environment["cuda"] if record["device"] == "cuda" else f"{environment['cpu']}, {threads} threads"
    axes.set_title(f"{where}, {environment['date']}", fontsize=11)
    axes.legend(fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:] or None)
    saving.write({path: content.getvalue()})
