"""Speed, measured: `qlab bench` (or make bench) times what the course promises and writes records/bench.json with the machine's abilities.

Whatever is compared runs in turn in one process on the same data; a time is the median of several after a warm-up, and what is stated
is their ratio. Nothing here is a test: a slow machine gives other times, and the record says which machine it was.
"""

import argparse
import copy
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qlab import saving
from qlab.lab import data, int4_bench, machine, matmul_bench, page_bench, quiet, tokens_bench, zoo
from qlab.matmul import int4, product
from qlab.nets import huffman, integer, ptq
from qlab.quant import kmeans, linear

RECORD = Path(__file__).parent / "records" / "bench.json"


def _row(what: str, value: float, unit: str, against: str = "", ratio: float | None = None, promise: str = "") -> dict:
    return {"what": what, "value": float(f"{value:.4g}"), "unit": unit, "against": against,
            "ratio": None if ratio is None else float(f"{ratio:.4g}"), "promise": promise}


def in_turn(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The median time of each in milliseconds: one warm-up, then round after round, so that a slow minute hits all of them."""
    times = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if i:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(t) for name, t in times.items()}


def bench_linear(n: int = 16_000_000) -> list[dict]:
    """linear.quantize, range and all, against torchao's and torch's encoders, which are given the scale."""
    from torchao.quantization.quant_primitives import quantize_affine
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    q = linear.quantize(x, 8, "affine")
    zero_point = q.zero_point.to(torch.int32)
    low, high = x.aminmax()

    def torch_quantize():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of torchao, and still the fastest encoder in torch
            torch.quantize_per_tensor(x, q.scale.item(), int(zero_point), torch.quint8)

    ms = in_turn({"ours": lambda: linear.quantize(x, 8, "affine"), "given": lambda: linear.quantize(x, 8, "affine", x_min=low, x_max=high),
                  "torchao": lambda: quantize_affine(x, (n,), q.scale, zero_point, torch.uint8, 0, 255),
                  "torch": torch_quantize, "range": x.aminmax}, 7)
    what = f"linear.quantize, affine, 8 bits, {n // 10**6} million float32"
    return [
        _row(what, ms["ours"], "ms", "torchao quantize_affine (scale given)", ms["torchao"] / ms["ours"], "above 1"),
        _row(what, ms["ours"], "ms", "torch.quantize_per_tensor (scale given)", ms["torch"] / ms["ours"], "stated"),
        _row("torch.aminmax of the same, in it", ms["range"], "ms"),
    ]


def bench_kmeans(n: int = 1_000_000) -> list[dict]:
    """kmeans.quantize against scikit-learn's KMeans and kmeans1d: time and error."""
    import kmeans1d
    from sklearn.cluster import KMeans
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.05
    values = x.double().numpy()
    ours = in_turn({"ours": lambda: kmeans.quantize(x, 4)}, 3)["ours"]
    ten = in_turn({"ten": lambda: kmeans.quantize(torch.cat([x] * 10), 4)}, 1)["ten"]

    def timed(function):
        started = time.perf_counter()
        result = function()
        return result, 1000 * (time.perf_counter() - started)

    (clusters, centroids), exact_ms = timed(lambda: kmeans1d.cluster(values, 16))
    fitted, sklearn_ms = timed(lambda: KMeans(16, n_init=10, random_state=0).fit(x.numpy()[:, None]))
    error = np.square(values - kmeans.quantize(x, 4).dequantize().double().numpy()).sum()
    optimum = np.square(values - np.array(centroids)[clusters]).sum()
    book = fitted.cluster_centers_[:, 0].astype(np.float64)
    theirs = kmeans.mse(values, book) * n
    what = f"kmeans.quantize, 16 centroids, {n // 10**6} million weights"
    return [
        _row(what, ours, "ms", "kmeans1d", exact_ms / ours, "at least 5"),
        _row("its error above kmeans1d's optimum, relative", error / optimum - 1, "", promise="at most 1e-6"),
        _row(what, ours, "ms", "scikit-learn KMeans(16, n_init=10)", sklearn_ms / ours, "at least 10"),
        _row("its error against scikit-learn's, relative", error / theirs - 1, "", promise="at most 0"),
        _row("kmeans.quantize, 16 centroids, 10 million weights", ten / 1000, "s", promise="a few seconds"),
    ]


def bench_widget() -> list[dict]:
    """One slider step of notebook 02's widget over a million weights: quantize, redraw, encode the picture."""
    from qlab.lab.demos.linear import play
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.05
    demo = play({"weights": x})
    slider, steps = demo.controls["bits"], iter([3, 4, 5, 6, 7, 8] * 4)

    def step():
        slider.value = next(steps)

    return [_row("a slider step, a million weights", in_turn({"step": step}, 15)["step"], "ms", promise="under 100")]


def bench_start() -> list[dict]:
    """`import qlab` beyond an empty Python; loading the data; JupyterLab's second start until it answers."""
    def python(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ms = in_turn({"empty": python("pass"), "qlab": python("import qlab")}, 15)
    load = "import time, qlab.lab.data as d; t = time.perf_counter(); d.load('train'); d.load('test'); print(time.perf_counter() - t)"
    seconds = [float(subprocess.run([sys.executable, "-c", load], check=True, capture_output=True).stdout) for _ in range(3)]
    starts = [_jupyter_seconds() for _ in range(2)]
    return [
        _row("import qlab", ms["qlab"] - ms["empty"], "ms", promise="under 50, without torch"),
        _row("70,000 images: read, checked, normalised", statistics.median(seconds), "s", promise="under 1"),
        _row("JupyterLab's second start", starts[1], "s", promise="seconds"),
    ]


def _jupyter_seconds() -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {f"JUPYTER_{kind}_DIR": f"{folder}/{kind}" for kind in ("CONFIG", "RUNTIME")}
        started = time.perf_counter()
        command = [sys.executable, "-m", "qlab.cli", "lab", "--no-browser", "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            while time.perf_counter() - started < 120:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1).read()
                    return time.perf_counter() - started
                except OSError:
                    time.sleep(0.05)
            raise TimeoutError("JupyterLab did not answer within 120 seconds.")
        finally:
            server.terminate()
            server.wait()


def bench_networks(images: int = 200) -> list[dict]:
    """Post-training quantization of the zoo's networks; integer-only inference, with one thread and with all, against the float32 network.

    That as the zoo has it, and with its maps and weights in the order in which oneDNN is fastest, channels last: ours choose their order.
    """
    return [row for name, promise in (("cnn", 1.5), ("depthwise", 2), ("resnet", 2.5)) for row in _network_rows(name, images, promise)]


def _network_rows(name: str, images: int, promise: float) -> list[dict]:
    model, x, calibration = zoo.load(name), data.load("test").images[:images], data.calibration(512).images
    seconds = in_turn({"ptq": lambda: ptq.quantize(model, calibration)}, 3)["ptq"] / 1000
    network = integer.convert(ptq.quantize(model, calibration))
    codes, last = network.encode(x), copy.deepcopy(model).to(memory_format=torch.channels_last)
    rows, threads = [_row(f"ptq.quantize of {name}, 512 calibration images", seconds, "s", promise="seconds")], torch.get_num_threads()
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            with torch.inference_mode():
                ms = in_turn({"integer": lambda: network.run(codes), "float": lambda: model(x),
                              "last": lambda: last(x.contiguous(memory_format=torch.channels_last))}, 9)
            what = f"integer-only {name}, {images} images, {count} thread" + "s" * (count > 1)
            rows += [_row(what, ms["integer"], "ms", "the float32 network", ms["float"] / ms["integer"], f"at least {1 / promise:.2g}"),
                     _row(what, ms["integer"], "ms", "the float32 network, channels last", ms["last"] / ms["integer"], "stated")]
    finally:
        torch.set_num_threads(threads)
    return rows


def bench_matmul(sizes: tuple[int, ...] = matmul_bench.TABLE) -> list[dict]:
    """The INT8 products of each backend, and Int8Linear, against float32 in the same run: squares, and one row by 4096 x 4096.

    With one thread and with all. The product reads new operands each time; Int8Linear keeps its weights as its backend likes them.
    """
    rows, everything = [], torch.get_num_threads()
    promises = {"int8_matmul, b by rows": "at least 1.6, one row 0.85", "Int8Linear": "one row at least 2"}
    names = ("torch._int_mm", "onnxruntime", "float32 in chunks", "int8_matmul", "int8_matmul, b by rows", "Int8Linear")
    what, why = product.choose("cpu")
    print(f"int8_matmul takes {what}: {why}", flush=True)
    try:
        for threads in sorted({1, everything}):
            torch.set_num_threads(threads)
            rows += matmul_bench.measure("cpu", threads, sizes, limit=10, only=("float32", *names))
    finally:
        torch.set_num_threads(everything)
    times = {(*row["shape"], row["threads"], row["what"]): row["ms"] for row in rows if "ms" in row}
    return [_row(f"{name}, {m} x {k} x {n}, {threads} thread{'s' * (threads > 1)}", ms, "ms", "float32, nn.Linear",
                 times[m, k, n, threads, "float32"] / ms, promises.get(name, "stated"))
            for (m, k, n, threads, name), ms in times.items() if name in names and (m, k, n, threads, "float32") in times]


def bench_int4(shapes: tuple[tuple[int, int, int], ...] = int4_bench.SHAPES) -> list[dict]:
    """Products with packed weights in groups of 32, by each backend, against float32 in the same run: one row, and 512."""
    print("int4_matmul takes {}: {}".format(*int4.choose("cpu")), flush=True)
    times, base = int4_bench.measure(shapes), int4_bench.FLOAT32
    return [_row(f"{name}, {m} x {k} x {n}, {threads} thread{'s' * (threads > 1)}", ms, "ms", base, times[m, k, n, threads, base] / ms,
                 "one row at least 2" if name == "Int4Linear" else "stated")
            for (m, k, n, threads, name), ms in times.items() if name != base]


def bench_huffman(n: int = 1_000_000) -> list[dict]:
    """Huffman coding of 4-bit codes as k-means makes them of normal weights: encode and decode, and the bits a symbol takes."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    symbols = kmeans.quantize(x, 4, start="linear").codes.numpy()
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=16))
    packed = huffman.encode(symbols, lengths)
    ms = in_turn({"encode": lambda: huffman.encode(symbols, lengths), "decode": lambda: huffman.decode(packed, lengths, n)}, 5)
    return [
        _row(f"huffman.encode, {n // 10**6} million symbols of 4 bits", n / ms["encode"] / 1000, "million symbols/s"),
        _row(f"huffman.decode, {n // 10**6} million symbols of 4 bits", n / ms["decode"] / 1000, "million symbols/s"),
        _row("their size against 4 bits a symbol", 8 * len(packed) / (4 * n), ""),
    ]


# Each with columns of its own, and its own key in the record.
TABLES = {"tokens": tokens_bench.measure, "figures": page_bench.figures, "pages": page_bench.pages}
BENCHES = {"linear": bench_linear, "kmeans": bench_kmeans, "widget": bench_widget, "start": bench_start,
           "matmul": bench_matmul, "networks": bench_networks, "huffman": bench_huffman, "int4": bench_int4} | TABLES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="qlab bench", description="Time what the course promises; write the record when all of it ran.")
    parser.add_argument("which", nargs="*", metavar="NAME", help=f"only these, without a record: {', '.join(BENCHES)}")
    parser.add_argument("--renew", action="store_true", help="put what is named into the record that is there, of this same machine")
    quiet.add_option(parser)
    args = parser.parse_args(arguments)
    chosen = args.which
    unknown = sorted(set(chosen) - set(BENCHES))
    if unknown:
        raise ValueError(f"no benchmark is named {', '.join(unknown)}: choose among {', '.join(BENCHES)}.")
    if args.renew and not chosen:
        raise ValueError(f"--renew needs the names of what to measure again: {', '.join(BENCHES)}.")
    known = _of_this_machine() if args.renew else {}
    data.load("test")
    watch, found = quiet.wait(anyway=args.busy), {}
    for name in chosen or BENCHES:
        print(f"{name} ...", flush=True)
        found[name] = BENCHES[name]()
    rows = [row for name, its in found.items() if name not in TABLES for row in its]
    tables = {name: its for name, its in found.items() if name in TABLES}
    shown = [{"what": row["what"], "measured": f"{row['value']:g} {row['unit']}", "against": row["against"],
              "times as fast": "" if row["ratio"] is None else f"{row['ratio']:.1f}", "promise": row["promise"]} for row in rows]
    for its in filter(None, [shown, *tables.values()]):
        table = Table(*(name.replace("_", " ") for name in its[0]), title=machine.describe())
        for row in its:
            table.add_row(*(", ".join(map(str, value)) if isinstance(value, list) else f"{value}" for value in row.values()))
        Console().print(table)
    if known:
        load = watch.load()
        known["rows"] = [row for row in known["rows"] if _key(row) not in {_key(new) for new in rows}] + rows
        known["renewed"] = known.get("renewed", {}) | dict.fromkeys(found, {"date": machine.environment()["date"], "load": load})
        saving.write({RECORD: (json.dumps(known | tables, indent=1) + "\n").encode()})
    elif not chosen:
        machine.write_record(RECORD, "qlab bench", load=watch.load(), rows=rows, **tables)
    if known or not chosen:
        print(f"written: {RECORD}")


def _key(row: dict) -> tuple[str, str]:
    return row["what"], row["against"]


def _of_this_machine() -> dict:
    """The record that is there; ValueError if it was made elsewhere, for then two of its times could not be compared."""
    record = json.loads(RECORD.read_text())
    here = machine.environment() | {"date": record["environment"]["date"]}
    if other := [name for name in here if record["environment"].get(name) != here[name]]:
        raise ValueError(f"{RECORD.name} is of another machine, or of other versions or settings ({', '.join(other)}): run qlab bench "
                         "without names and --renew.")
    return record


if __name__ == "__main__":
    main()
