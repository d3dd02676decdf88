"""How fast is an INT8 product here? First whether it is right, then the times: python -m qlab.lab.matmul_bench

    python -m qlab.lab.matmul_bench            on CUDA if there is one, else on the CPU; writes records/matmul_cuda.json or matmul_cpu.json
    python -m qlab.lab.matmul_bench --plot     draws the record that is there
    python -m qlab.lab.matmul_bench --sizes 512 1024 --out look.json    fewer shapes, for a look, into a file of your own
    python -m qlab.lab.matmul_bench --sizes 512 1024 2048 4096 --out look.json    and one row by 4096 x 4096: each kernel against float32

Needs torch and numpy (and Triton on CUDA), no Jupyter; measures ONNX Runtime on the CPU if it is installed. Exactness: fresh random
operands, memory poisoned before each product, odd shapes and strides, the largest sums, 0 differing elements against the reference. Times:
operands rotated so that no product finds its own in the cache, warmed up, contenders in turn, the median of the rounds; on CUDA by events
around a CUDA graph, so that what is timed is the device and not the launching; on the CPU with one thread and with all. What would take
longer than --limit seconds once is left out, and the record says so.
"""

import argparse
import json
import math
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from qlab.lab import machine, matmul_exactness, quiet
from qlab.matmul import cpu, float32, layers, product
from qlab.matmul.device import why_not_onnxruntime

RECORDS = Path(__file__).resolve().parent / "records"
SQUARES = (512, 1024, 2048, 4096, 8192, 16384)
TABLE, ROW = (512, 1024, 2048, 4096), (1, 4096, 4096)  # squares, and beside them one token through a layer of 4096 x 4096
TALL = ((65536, 1024, 64), (16384, 4096, 128), (64, 4096, 16384))  # (M, K, N): tall and skinny, and its transpose
LAYERS = {"query, key, value": (4096, 12288), "attention output": (4096, 4096), "gate and up": (4096, 22016), "down": (11008, 4096)}
BATCHES = (1, 16, 256, 4096)  # tokens, through the layers (K, N) of a transformer of 7 billion parameters (Touvron et al. 2023, Llama 2 7B)
SHORT, PAUSE = 0.15, 0.02  # seconds: a call that takes less is spoiled by the threads of the call before it, unless it waits for them
ROTATED_BYTES = 2**28  # of operands in turn: several times a last-level cache


def contenders(device: str) -> dict[str, Callable]:
    """name: (a function of M, K, N that makes operands and returns a call on them).

    Weights lie as (N, K), as in nn.Linear, and once as (K, N).
    """
    cuda = device == "cuda"

    def int8(*shape):
        return torch.randint(-128, 128, shape, dtype=torch.int8, device=device)

    def floats(dtype, tf32=False):
        def make(m, k, n):
            x, w, bias = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (n, k), (n,)))

            def call():
                if cuda:
                    torch.backends.cuda.matmul.allow_tf32 = tf32
                return F.linear(x, w, bias)
            return call
        return make

    def codes(multiply):
        def make(m, k, n):
            a, w = int8(m, k), int8(n, k)
            return lambda: multiply(a, w.T)
        return make

    def by_rows(m, k, n):
        a, b = int8(m, k), int8(k, n)
        return lambda: product.int8_matmul(a, b)

    def scaled(multiply):
        def make(m, k, n):
            a, w, row, column = int8(m, k), int8(n, k), torch.rand(m, device=device), torch.rand(n, device=device)
            bias = torch.randn(n, device=device, dtype=torch.bfloat16)
            return lambda: multiply(a, w.T, row, column, bias)
        return make

    def layer(activations):
        def make(m, k, n):
            dtype = torch.bfloat16 if cuda else torch.float32  # what it replaces
            x, bias = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((m, k), (n,)))
            int8_layer = layers.Int8Linear(int8(n, k), torch.rand(n, device=device), bias, activations)
            return lambda: int8_layer(x)
        return make

    def apart(a, b, row, column, bias):  # three steps, each of which writes a matrix and reads it again
        return (product.int8_matmul(a, b).float() * row[:, None] * column).to(torch.bfloat16) + bias

    found = {"float32": floats(torch.float32), "float16": floats(torch.float16), "bfloat16": floats(torch.bfloat16),
             "torch._int_mm": codes(cpu.matmul),  # which pads to the 17 rows that CUDA needs
             "int8_matmul": codes(product.int8_matmul), "Int8Linear": layer("token"), "apart": scaled(apart)}
    if not cuda:
        found |= {"int8_matmul, b by rows": by_rows, "float32 in chunks": codes(float32.matmul)}
        if not why_not_onnxruntime():
            from qlab.matmul import onnxruntime

            found["onnxruntime"] = codes(onnxruntime.matmul)
    if cuda:
        from qlab.matmul import triton

        found |= {"float32 with TF32": floats(torch.float32, tf32=True), "triton": codes(triton.matmul),
                  "fused": scaled(lambda *x: triton.scaled_matmul(*x, out_dtype=torch.bfloat16)), "Int8Linear, weights only": layer(None)}
    return found


def _repeated(make: Callable, shape: tuple, device: str) -> list[Callable]:
    """Calls on enough sets of operands that none is in the cache when its turn comes again."""
    m, k, n = shape
    sets = math.ceil(ROTATED_BYTES / (m * k + k * n + 4 * m * n)) if device == "cuda" else 2
    return [make(*shape) for _ in range(min(max(sets, 2), 64))]


def time_cuda(calls: dict[str, list[Callable]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds a call: each contender's calls as one CUDA graph, replayed in turn between two events."""
    graphs = {}
    for name, several in calls.items():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                for call in several:
                    call()  # compiles, tunes, chooses algorithms: all before the capture
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], stream=stream):
            for call in several:
                call()
    times = {name: [] for name in graphs}
    for i in range(rounds + 2):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 2:
                times[name].append(start.elapsed_time(end) / len(calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def time_cpu(calls: dict[str, list[Callable]], seconds: float = 2.0) -> dict[str, float]:
    """Median milliseconds a call, contenders in turn, at most about this many seconds each, once at least.

    A short call runs once untimed in each turn, after a pause: threads that the contender before woke, of torch or of another library, look
    for more work for some milliseconds after it, and two of them may have come to lie on one core, where they would stay without one.
    """
    times, spent = {name: [] for name in calls}, dict.fromkeys(calls, 0.0)
    for i in range(21):
        for name, several in calls.items():
            if i and (spent[name] > seconds or len(times[name]) > 20):
                continue
            if times[name] and times[name][-1] < 1000 * SHORT:
                time.sleep(PAUSE)
                several[(i - 1) % len(several)]()
            started = time.perf_counter()
            several[i % len(several)]()
            took = time.perf_counter() - started
            spent[name] += took
            if i or took > seconds:  # the first is the warm-up, unless it is all there is time for
                times[name].append(1000 * took)
    return {name: statistics.median(values) for name, values in times.items()}


def shapes(sizes: tuple[int, ...]) -> list[tuple[str, tuple[int, int, int]]]:
    found = [("square", (size, size, size)) for size in sizes]
    if sizes == TABLE:
        found.append(("one row", ROW))
    if sizes == SQUARES:
        found += [("tall and skinny", shape) for shape in TALL]
        found += [(f"7B {name}, {batch} tokens", (batch, k, n)) for name, (k, n) in LAYERS.items() for batch in BATCHES]
    return found


def measure(device: str, threads: int, sizes: tuple[int, ...], limit: float, only: tuple[str, ...] = ()) -> list[dict]:
    """One row a shape and contender: {"kind", "shape", "what", "threads", "ms", "tops"}, or "left_out" with the reason instead of times.

    only: names of contenders; () means all of them.
    """
    rows, rates = [], {}
    names = {name: make for name, make in contenders(device).items() if not only or name in only}
    for kind, (m, k, n) in shapes(sizes):
        operations, calls, left_out = 2 * m * k * n, {}, {}
        for name in names:
            expected = operations / rates[name] if name in rates else 0
            memory = 8 * (m * k + k * n + 3 * m * n)  # float32 twice, and temporaries
            available = torch.cuda.mem_get_info()[0] if device == "cuda" else machine.abilities()["memory_gb"] * 1e9 / 2
            if expected > limit:
                left_out[name] = f"would take about {expected:.0f} s at the best rate so far"
            elif memory > available:
                left_out[name] = f"would need about {memory / 1e9:.0f} GB"
            elif "weights only" in name and m > 16:
                left_out[name] = "meant for 16 tokens at most"
        for name, make in names.items():
            if name not in left_out:
                calls[name] = _repeated(make, (m, k, n), device)
        times = time_cuda(calls) if device == "cuda" else time_cpu(calls)
        for name in names:
            row = {"kind": kind, "shape": [m, k, n], "what": name, "threads": threads}
            if name in left_out:
                rows.append(row | {"left_out": left_out[name]})
                continue
            rate = operations / (times[name] / 1000)
            rates[name] = max(rates.get(name, 0), rate)
            rows.append(row | {"ms": float(f"{times[name]:.4g}"), "tops": float(f"{rate / 1e12:.4g}")})
        told = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
        print(f"{kind} {m} x {k} x {n}, {threads} thread{'s' * (threads != 1)}: {told}", flush=True)
        del calls
    return rows


def ratios(rows: list[dict]) -> list[dict]:
    """What the course states of a record, shape by shape: times of one contender over times of another, both in this run."""
    pairs = [("int8_matmul", "torch._int_mm"), ("triton", "torch._int_mm"), ("fused", "apart"), ("Int8Linear", "bfloat16"),
             ("Int8Linear, weights only", "bfloat16"), ("Int8Linear, weights only", "float16")]
    pairs += [(name, "float32") for name in ("torch._int_mm", "onnxruntime", "float32 in chunks", "int8_matmul", "int8_matmul, b by rows",
                                             "Int8Linear")]
    times = {(*row["shape"], row["threads"], row["what"]): row["ms"] for row in rows if "ms" in row}
    found = []
    for one, other in pairs:
        for key, ms in times.items():
            if key[4] == one and (*key[:4], other) in times:
                found.append({"shape": list(key[:3]), "threads": key[3], "what": one, "against": other,
                              "times_as_fast": float(f"{times[(*key[:4], other)] / ms:.4g}")})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qlab.lab.matmul_bench", description="INT8 products: exactness, then times.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where (default: cuda if there is one)")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"square sizes alone (default: {SQUARES}, tall ones and transformer layers)")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that one call may take; slower ones are left out (default: 5)")
    parser.add_argument("--out", type=Path, help="the record (default: matmul_DEVICE.json among the package's records)")
    parser.add_argument("--plot", type=Path, nargs="?", const=Path("matmul.png"), metavar="PNG", help="draw the record, measure nothing")
    quiet.add_option(parser)
    args = parser.parse_args(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = args.out or RECORDS / f"matmul_{device}.json"
    if args.plot:
        if not path.exists():
            parser.error(f"there is no record {path}: measure first, without --plot.")
        from qlab.lab import matmul_plot

        matmul_plot.draw(json.loads(path.read_text()), args.plot)
        print(f"drawn into {args.plot}")
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: use --device cpu.")
    if any(size < 1 for size in args.sizes or ()) or args.limit <= 0:
        parser.error("sizes and limit must be above 0.")
    if args.sizes and not args.out:
        parser.error("with --sizes the record is not the course's: name another file with --out.")
    print(machine.describe(), flush=True)
    on_cpu = ("torch", "float32", "auto") if why_not_onnxruntime() else ("torch", "onnxruntime", "float32", "auto")
    backends = ("torch", "triton", "auto") if device == "cuda" else on_cpu
    exactness = matmul_exactness.check(device, backends, secrets.randbits(31))
    print(f"{exactness['products']} products, {exactness['differing_elements']} differing elements", flush=True)
    if exactness["differing_elements"]:
        print("The products are wrong: nothing is timed.", file=sys.stderr)
        return 1
    watch = quiet.wait(anyway=args.busy)
    rows = []
    everything = torch.get_num_threads()
    for threads in sorted({1, everything}) if device == "cpu" else (everything,):
        torch.set_num_threads(threads)
        rows += measure(device, threads, tuple(args.sizes or SQUARES), args.limit)
    torch.set_num_threads(everything)
    versions = {"cuda_toolkit": torch.version.cuda}
    if device == "cuda":
        import triton

        versions["triton"] = triton.__version__
    elif not why_not_onnxruntime():
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    command = " ".join(["python -m qlab.lab.matmul_bench", *(sys.argv[1:] if argv is None else argv)])
    machine.write_record(path, command, device=device, versions=versions, exactness=exactness, load=watch.load(), rows=rows,
                         ratios=ratios(rows))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
