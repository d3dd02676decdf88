"""Every method of the course in one table: bits, true bytes, what it loses with its interval, what it needs, and what runs it.

Nothing here is measured, and nothing is typed in: each row is read from a committed record of records/, and says which one and the command
that makes it again. What a record does not hold is None: minutes that nobody timed, the speed of arithmetic that did not run.

A loss is paired: of images in points of accuracy, of a language model in bits a byte; above 0 is worse. What was trained is set against a
control trained equally long, with as many seeds.
"""

import math
import statistics
from collections.abc import Iterator
from functools import lru_cache

from safetensors.torch import load as load_bytes

from qlab.lab import runs
from qlab.lab.experiments.language import scores_of
from qlab.lab.significance import Accuracy, mcnemar, over_seeds
from qlab.llm import evaluate
from qlab.nets import sparse
from qlab.search import methods
from qlab.search.methods import Lost

NETS = ("depthwise", "cnn", "resnet", "lenet300", "lenet5", "gpt")


def _lost(results: tuple, reference: tuple) -> Lost:
    if not isinstance(results[0], Accuracy):
        d = evaluate.difference(results[0], reference[0])
        return Lost(d.value, *d.interval, _two_sided(d.t), "bits a byte")
    if len(results) == len(reference) == 1:
        d = mcnemar(reference[0], results[0])
        return Lost(-100 * d.difference, -100 * d.high, -100 * d.low, d.p, "points")
    seeds = min(len(one) for one in (results, reference) if len(one) > 1)   # those that both have, in their order; one stands for all
    b, a = ((one * seeds)[:seeds] for one in (results, reference))
    d = over_seeds(a, b)
    error = (d.high - d.low) / (2 * evaluate.Z95)
    return Lost(-d.mean, -d.high, -d.low, _two_sided(d.mean / error) if error else float(d.mean == 0), "points")


def _two_sided(t: float) -> float:
    return math.erfc(abs(t) / math.sqrt(2))                                 # 1 - cdf would be 0 beyond eight standard errors


class Method(methods.Method):
    """A row of a record: an image network's results are Accuracy, one a seed; a language model's are its scores of one text."""

    _lost = staticmethod(_lost)


@lru_cache
def load(net: str | None = None) -> tuple[Method, ...]:
    """All rows, or one network's, the largest first. Raises ValueError for a network that is not in NETS.

    >>> row = min(load("depthwise"), key=lambda row: row.nbytes if row.lost.value < 1 else 1e9)
    >>> row.name, row.nbytes, row.record
    ('AdaRound, chosen, 2.5 bits', 31656, 'search')
    """
    if net not in (None, *NETS):
        raise ValueError(f"net is {net!r}, and must be one of {', '.join(NETS)}, or None for all.")
    if net:
        return tuple(row for row in load() if row.net == net)
    parts = (_rounded, _static, _quantization_aware, _pruned, _compressed, _distilled, _half, _searched, _language, _ternary)
    return tuple(sorted((row for part in parts for row in part()), key=lambda row: (NETS.index(row.net), -row.nbytes)))


def _rounded() -> Iterator[Method]:
    """Notebooks 02 to 05: weights rounded, each to its nearest level."""
    sweep = runs.load("sweep")
    floats = {row["net"]: (row["result"],) for row in sweep["rows"] if row["method"] == "float"}
    for name in ("sweep", "sweep_ranges"):
        record = runs.load(name)
        for row in record["rows"]:
            if row["method"] != "float":
                method = {"kmeans": "k-means", "clipped": "linear, range by mse"}.get(row["method"], row["method"])
                yield Method(f"{method}, per {row['per']}, {row['bits']} bits", row["net"], row["bits"], row["nbytes"],
                             _lost((row["result"],), floats[row["net"]]), name, record["command"], results=(row["result"],))


def _static() -> Iterator[Method]:
    """Notebook 06: weights and activations in 8 bits, and the networks that ran in integers (notebook 14)."""
    record, deployed = runs.load("ptq"), runs.load("deployment")
    took_s = {row["what"]: row["value"] for row in runs.raw("bench")["rows"]}
    for net, arms in record["int8"].items():
        found = {f"INT8, per {per}": arms[per] for per in ("tensor", "channel")}
        if net == "depthwise":
            repaired = {"equalized": "equalized", "corrected": "bias corrected", "both": "equalized and corrected"}
            found |= {f"INT8, per tensor, {said}": record["repairs"]["8"][f"tensor, {key}"] for key, said in repaired.items()}
        took = deployed["timing"].get(net, {}).get("us")
        faster = took and took["ONNX Runtime, float32"]["1"]["1"] / took["ONNX Runtime, static"]["1"]["1"]
        small = net in deployed["cortex"]
        for name, row in found.items():
            mine = name == "INT8, per channel"                              # the one that was exported, timed and run on a microcontroller
            yield Method(name, net, 8, row["nbytes"], _lost((row["result"],), (arms["float"]["result"],)), "ptq", record["command"],
                         needs="calibration", activations=8, results=(row["result"],), integers=True,
                         minutes=took_s[f"ptq.quantize of {net}, 512 calibration images"] / 60 if mine else None, minutes_on="cpu",
                         runs_on=("cpu", "microcontroller") if small and mine else ("cpu",),
                         faster=faster if mine else None, faster_from="deployment" if mine and faster else "")


def _quantization_aware() -> Iterator[Method]:
    """Notebook 07: weights and activations in 4, 3 and 2 bits; the best of all ways after training, and training for it."""
    record = runs.load("qat")
    floats, control = (record["float"]["result"],), tuple(run["result"] for run in record["control"].values())
    common = {"record": "qat", "command": record["command"]}
    for bits, by_axis in record["ptq"].items():
        for per, found in by_axis.items():
            row = found["best"]
            yield Method(f"W{bits}A{bits}, per {per}, best of {len(found['tried'])}", "depthwise", int(bits), row["nbytes"],
                         _lost((row["result"],), floats), needs="calibration", activations=int(bits), results=(row["result"],), **common)
    for arm, by_bits in record["arms"].items():
        way, _, per = arm.partition("-")
        for bits, by_seed in by_bits.items():
            ran = list(by_seed.values())
            devices = [run["device"] for run in ran]
            device = max(sorted(set(devices)), key=devices.count)
            results = tuple(run["result"] for run in ran)
            yield Method(f"W{bits}A{bits}, trained, {way.upper()}, per {per}", "depthwise", int(bits), ran[0]["nbytes"],
                         _lost(results, control), needs="training", activations=int(bits), trains=True,
                         minutes=statistics.median(run["minutes"] for run in ran if run["device"] == device), minutes_on=device,
                         against="the float network trained as long, 3 seeds", results=results, **common)


def _pruned() -> Iterator[Method]:
    """Notebook 09: weights taken away; what is left is stored behind a bit mask, or as a smaller network."""
    record, speed = runs.load("pruning"), runs.raw("pruning_speed")["networks"]
    arms = {}
    for row in record["rows"]:
        arms.setdefault((row["arm"], row["epochs"]), []).append(row["test"]["result"])
    for arm, name, timed in (("gradual", "pruned by magnitude", "pruned"), ("2:4", "pruned, 2 of 4", None),
                             ("channels", "pruned by channels", "fewer channels")):
        path = runs.FOLDER / f"{record['checkpoints'][arm]['name']}.safetensors"
        tensors = load_bytes(path.read_bytes()).values()
        dense = arm == "channels"
        nbytes = sum(t.nbytes if dense or t.ndim < 2 else sparse.nbytes(t.flatten(1), "bitmask") for t in tensors)
        results = tuple(arms[arm, 8])
        faster = timed and speed["dense"]["median_ms"] / speed[timed]["median_ms"]
        yield Method(name, "cnn", 32, nbytes, _lost(results, tuple(arms["control", 8])), "pruning", record["command"], needs="training",
                     trains=True, against="the dense network trained as long, 3 seeds", results=results, faster=faster,
                     faster_from="pruning_speed" if timed else "")


def _compressed() -> Iterator[Method]:
    """Notebook 11: pruned, shared, coded by Huffman; bits are the file's, over all weights."""
    for net in ("lenet300", "lenet5"):
        record = runs.load(f"compression_{net}")
        arms = {name: (arm["test"]["result"],) for name, arm in record["arms"].items()}
        yield Method("pruned, shared, coded", net, 32 * record["nbytes"] / record["float_nbytes"], record["nbytes"],
                     _lost(arms["file"], arms["control"]), f"compression_{net}", record["command"], needs="training", trains=True,
                     against="the float network trained as long", results=arms["file"])


def _distilled() -> Iterator[Method]:
    """Notebook 10: a small network that a large one taught, against the large one."""
    record = runs.load("distillation_full")
    for arm, name in (("student", "a small network, taught"), ("twin", "a small network, on its own")):
        results = tuple(row["result"] for row in record["rows"] if row["arm"] == arm)
        nbytes = sum(t.nbytes for t in load_bytes((runs.FOLDER / f"distillation_{arm}.safetensors").read_bytes()).values())
        yield Method(name, "resnet", 32, nbytes, _lost(results, (record["teacher"][0]["result"],)), "distillation_full",
                     record["command"], needs="training", trains=True, against="its large teacher", results=results)


def _half() -> Iterator[Method]:
    """Notebook 08: 16 bits while it trains; the weights that are kept stay float32."""
    record, kept = runs.load("mixed_precision"), runs.raw("compression_lenet300")["float_nbytes"]
    arms = {}
    for row in record["equal"]:
        arms.setdefault(row["arm"], []).append(row["test"]["result"])
    for arm in ("bfloat16", "float16"):
        results = tuple(arms[arm])
        yield Method(f"trained in {arm}", "lenet300", 32, kept, _lost(results, tuple(arms["float32"])), "mixed_precision",
                     record["command"], needs="training", trains=True, activations=16, results=results,
                     against=f"float32, trained as long, {len(results)} seeds")


def _searched() -> Iterator[Method]:
    """Notebook 17: weights rounded better than to the nearest, at one width or at the program's, which takes its minutes, too."""
    names = {"nearest": "linear, range by mse", "corrected": "bias corrected", "gptq": "GPTQ", "adaround": "AdaRound"}
    record, sweep = runs.load("search"), runs.load("sweep")["rows"]
    for net, rows in record["rounding"].items():
        same = {(row["method"], row["per"], row["bits"]): row for row in sweep if row["net"] == net}
        floats = next(row["result"] for key, row in same.items() if key[0] == "float")
        rest = same["linear", "channel", 4]["nbytes"] - rows["4 bits: nearest"]["nbytes"]    # biases: the record counts weights alone
        for name, row in rows.items():
            widths, how = name.split(": ")
            bits, chosen = float(widths.split()[-2]), widths.startswith("program")
            if chosen or how != "nearest":                                                  # sweep_ranges has the rest
                yield Method(f"{names[how]}, {'chosen' if chosen else 'per channel'}, {bits:g} bits", net, bits, row["nbytes"] + rest,
                             _lost((row["result"],), (floats,)), "search", record["command"], needs="calibration", minutes_on="cpu",
                             minutes=(row["cpu_s"] + chosen * record["proxies"][net]["kl"]["cpu_s"]) / 60, results=(row["result"],))


def _language() -> Iterator[Method]:
    """Notebooks 15 and 16: matrices of the language model; what is not coded counts as float16."""
    record = runs.load("language_gpt")
    rows = record["gpt"]["weights"]
    base = (scores_of(record, rows["float32"]),)
    eight = rows["8 bits, row"]
    rest = runs.raw("language_ternary")["rows"]["float"]["nbytes"] - 2 * round(8 * eight["layers_nbytes"] / eight["bits_per_weight"])
    for name, row in rows.items():
        if "layers_nbytes" in row:
            results = (scores_of(record, row),)
            bits = int(name[0]) if name[1:6] == " bits" else row["bits_per_weight"]
            yield Method(name, "gpt", bits, row["layers_nbytes"] + rest, _lost(results, base), "language_gpt", record["command"],
                         needs="calibration" if "gptq" in name or "awq" in name else "none", minutes=row["making_cpu_s"] / 60,
                         minutes_on="cpu", results=results)


def _ternary() -> Iterator[Method]:
    """Notebook 15: three levels, rounded and trained."""
    record = runs.load("language_ternary")
    rows = record["rows"]
    for arm, reference in (("ternary, rounded", "float"), ("ternary, trained", "float, trained on")):
        row, results, trains = rows[arm], (scores_of(record, rows[arm]),), "steps" in rows[arm]
        yield Method(arm, "gpt", 1.6, row["nbytes"], _lost(results, (scores_of(record, rows[reference]),)), "language_ternary",
                     record["command"], needs="training" if trains else "none", trains=trains, results=results,
                     against="the float model trained as long" if trains else "the float network")
