"""The committed records: what they say can be measured again, and bench.py's arithmetic."""

import json
from pathlib import Path

import pytest
import torch

from qlab.lab import bench, data, runs, sweep, zoo
from qlab.lab.measure import accuracy, mcnemar, size_bytes
from qlab.nets import ptq
from qlab.nets.models import MODELS
from qlab.quant import linear, ranges


def test_the_sweep_was_made_with_the_committed_checkpoints():
    record = runs.raw("sweep")
    assert record["checkpoints"] == {name: zoo.record(name)["sha256"] for name in sweep.NETS}
    rows = sweep.load()
    assert len(rows) == 3 * (1 + 3 * 2 * 7) and all(row["correct"] == int(row["result"].correct.sum()) for row in rows)


@pytest.mark.parametrize("net, method, per, bits", [
    ("cnn", "linear", "tensor", 3), ("cnn", "log", "channel", 4), ("depthwise", "kmeans", "tensor", 4)])
def test_a_row_measured_again(net, method, per, bits):
    row = next(r for r in sweep.load() if (r["net"], r["method"], r["per"], r["bits"]) == (net, method, per, bits))
    q = ptq.quantize_weights(ptq.fold_batch_norm(zoo.load(net)), sweep.METHODS[method](bits, sweep.AXES[per]))
    assert q.nbytes == row["nbytes"] < size_bytes(zoo.load(net))
    images, labels = data.load("test")
    again = accuracy(q.model, data.Split(images[:500], labels[:500])).correct
    assert (again != row["result"].correct[:500]).sum() <= 2                                # another CPU rounds otherwise


def test_linear_over_its_best_range_is_what_notebook_05_says():
    record, size = runs.raw("sweep_ranges"), {(r["net"], r["per"], r["bits"]): r["nbytes"] for r in sweep.load() if r["method"] == "linear"}
    assert record["checkpoints"] == {name: zoo.record(name)["sha256"] for name in sweep.NETS}
    clipped = {(r["net"], r["per"], r["bits"]): r for r in sweep.load("sweep_ranges")}
    assert {key: row["nbytes"] for key, row in clipped.items()} == size                     # a range costs no byte
    images, labels = data.load("test")

    def saturating(w):
        low, high = ranges.mse(w, 4, "symmetric")
        return linear.quantize(w, 4, "symmetric", x_min=low, x_max=high)

    q = ptq.quantize_weights(zoo.load("cnn"), saturating)
    again = accuracy(q.model, data.Split(images[:500], labels[:500])).correct
    assert (again != clipped["cnn", "tensor", 4]["result"].correct[:500]).sum() <= 2
    whole = {(r["net"], r["per"], r["bits"]): r["result"] for r in sweep.load() if r["method"] == "linear"}
    for key, gain in {("resnet", "tensor", 3): 33, ("resnet", "tensor", 4): -3, ("resnet", "channel", 3): -19,
                      ("depthwise", "channel", 3): -48}.items():
        assert round(100 * mcnemar(whole[key], clipped[key]["result"]).difference) == gain
    kmeans = next(r["result"] for r in sweep.load() if (r["net"], r["method"], r["per"], r["bits"]) == ("cnn", "kmeans", "tensor", 4))
    assert not mcnemar(clipped["cnn", "tensor", 4]["result"], kmeans).significant


def test_the_sweep_says_what_notebook_05_says():
    rows = sweep.load()
    result = {(r["net"], r["method"], r["per"], r["bits"]): r["result"] for r in rows}
    size = {(r["net"], r["method"], r["per"], r["bits"]): r["nbytes"] for r in rows}
    for net, k_means_leads in {"cnn": True, "depthwise": False, "resnet": False}.items():
        scales, codebook = ((net, *way) for way in (("linear", "channel", 3), ("kmeans", "tensor", 3)))
        test = mcnemar(result[scales], result[codebook])
        assert size[codebook] < size[scales] and test.p < 1e-6 and (test.difference > 0) == k_means_leads
        assert mcnemar(result[net, "linear", "channel", 4], result[net, "kmeans", "tensor", 4]).p > 0.05 / 115       # Holm: not told apart
        for bits in (2, 3, 4):
            linear, log, kmeans = (result[net, method, "tensor", bits] for method in ("linear", "log", "kmeans"))
            assert min(mcnemar(linear, kmeans).low, mcnemar(log, kmeans).low) > 0
        assert all(torch.equal(result[net, "log", "tensor", b].correct, result[net, "log", "tensor", 8].correct) for b in (5, 6, 7))
        log = mcnemar(result[net, "linear", "tensor", 4], result[net, "log", "tensor", 4])
        assert log.significant and (log.difference > 0) == (net == "resnet")
    above = [mcnemar(result[key[0], "float", "tensor", 32], result[key]) for key in result]
    assert not any(test.significant and test.difference > 0 for test in above)


def test_in_turn_takes_the_median_and_leaves_the_warm_up_out():
    calls = []
    times = bench.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and set(times) == {"a", "b"} and all(t >= 0 for t in times.values())


def test_the_bench_record_names_its_machine_and_keeps_its_promises():
    record = json.loads(bench.RECORD.read_text())
    assert record["environment"]["cpu"] and record["environment"]["torch"]
    rows = {(row["what"].split(",")[0], row["against"].split(" ")[0]): row for row in record["rows"]}
    assert rows["linear.quantize", "torchao"]["ratio"] > 1
    assert rows["kmeans.quantize", "kmeans1d"]["ratio"] >= 5 and rows["kmeans.quantize", "scikit-learn"]["ratio"] >= 10


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="no benchmark is named speed: choose among linear, kmeans, widget, start, matmul, networks"):
        bench.main(["speed"])


def test_a_benchmark_of_a_small_size_runs():
    row = bench.bench_linear(10_000)[0]
    assert row["value"] > 0 and row["ratio"] > 0 and torch.isfinite(torch.tensor(row["ratio"]))


def test_the_readme_says_what_the_records_say():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in MODELS:
        entry, link = zoo.record(name), f"[{name}.json](qlab/lab/checkpoints/{name}.json)"
        assert f"| {entry['parameters']:,} | {100 * entry['test_accuracy']:.2f} % | {link} |" in readme
    sizes = sum(r["net"] == "depthwise" and r["method"] != "float" for r in sweep.load())
    assert f"One network of {zoo.record('depthwise')['parameters']:,} parameters in {sizes} sizes" in " ".join(readme.split())
    table = [line for line in readme.split("| what | measured | against |")[1].split("\n\n")[0].splitlines()[2:] if line]
    known = {f"| {row['what']} | {row['value']:g} {row['unit']} | {row['against']} | {row['ratio']:.1f} |"
             for row in json.loads(bench.RECORD.read_text())["rows"] if row["ratio"] is not None}
    assert len(table) >= 9 and set(table) <= known
    record = json.loads(bench.RECORD.read_text())
    seconds, steps = [page["wall_s"] for page in record["pages"]], [figure["median_ms"] for figure in record["figures"]]
    worst = max(figure["worst_ms"] for figure in record["figures"])
    told = (f"what Run All takes, {min(seconds):.0f} to {max(seconds):.0f} seconds, and of every live figure the milliseconds of CPU a "
            f"step: a median of {min(steps):.0f} to {max(steps):.0f}, and {worst:.0f} at the worst")
    assert told in " ".join(readme.split())
