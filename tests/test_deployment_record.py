"""The record behind notebook 14: it shows what the course promises of every runtime, and a part of it can be measured again here."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qlab.deploy import c, cortex_m, onnx, pytorch, tflite
from qlab.lab import data, runs, zoo
from qlab.lab.demos import deployment as demo
from qlab.lab.experiments import deployment as experiment
from qlab.lab.experiments import deployment_speed as speed
from qlab.lab.measure import mcnemar
from qlab.nets import integer, ptq

RECORD = runs.load("deployment")
TABLES = {net: demo.rows(RECORD, net) for net in experiment.NETS}
EACH = pytest.mark.parametrize("net", experiment.NETS)
IMAGES = 40


@pytest.fixture(scope="module")
def networks():
    calibration = data.calibration(experiment.CALIBRATION_IMAGES).images
    return {net: integer.convert(ptq.quantize(zoo.load(net), calibration)) for net in experiment.NETS}


def test_it_is_of_the_networks_that_the_course_has():
    assert RECORD["checkpoints"] == {net: zoo.record(net)["sha256"] for net in experiment.NETS}
    assert all(set(table) == set(demo.RUNTIMES) for table in TABLES.values())
    assert runs.raw("deployment")["calibration_images"] == 512


@EACH
def test_what_rounds_twice_has_the_same_bits(net):
    for name, images in ((demo.OURS, 10_000), (demo.MICRO, 10_000), (demo.HOST, 10_000), (demo.CORTEX, 200)):
        row = TABLES[net][name]
        assert row["images"] >= images and row["same_bits"] == row["images"] and row["different_codes"] == row["most_codes_apart"] == 0


@EACH
@pytest.mark.parametrize("name", demo.LITERT)
def test_no_operator_of_litert_is_more_than_a_code_apart(net, name):
    kernels = demo.LITERT[name]
    assert TABLES[net][name]["images"] == 10_000
    rows = RECORD["operators"][net].values()
    assert {row["operator"] for row in rows} >= {"CONV_2D", "FULLY_CONNECTED"} and max(row[kernels]["most"] for row in rows) <= 1
    conv, linear = (sum(row[kernels]["different"] for row in rows if row["operator"] == name) for name in ("CONV_2D", "FULLY_CONNECTED"))
    assert (conv > 0) == (kernels == "xnnpack") and (linear > 0 or net == "depthwise")
    assert all(row["micro"]["different"] == 0 for row in rows)
    assert abs(TABLES[net][name]["correct"] - TABLES[net][demo.OURS]["correct"]) <= 20


@EACH
def test_onnx_runtime_is_within_a_fifth_of_a_point(net):
    row, ours = TABLES[net]["ONNX Runtime, static"], TABLES[net][demo.OURS]
    assert row["images"] == 10_000 and abs(row["correct"] - ours["correct"]) <= 20
    assert row["in_floats"] == 0 and row["operators"]["QLinearConv"] + row["operators"]["QGemm"] == row["in_integers"]
    machine = RECORD["timing"][net]["machine"]
    if machine["avx512_vnni"] or machine["avx_vnni"]:
        slow, fast = (demo.microseconds(RECORD, net, f"ONNX Runtime, {kind}", 1, 64) for kind in ("float32", "static"))
        assert fast < slow


@pytest.mark.parametrize("line", RECORD["saturation"])
def test_eight_bits_cost_accuracy_only_without_vnni(line):
    for net in set(experiment.NETS) & set(RECORD["saturation"][line]):
        rows = RECORD["saturation"][line][net]
        assert set(experiment.SATURATING[2:]) <= set(rows)
        for safe, full in zip(experiment.SATURATING[::2], experiment.SATURATING[1::2]):
            if full in rows:
                lost = mcnemar(rows[safe]["result"], rows[full]["result"])
                assert (lost.significant and lost.difference < 0) == ("no VNNI" in line and full.startswith("ONNX")), full


def test_the_saturating_files_were_run_with_and_without_vnni():
    assert {"no VNNI" in line for line in RECORD["saturation"]} == {False, True}
    assert any("oneDNN limited to AVX2" in line for line in RECORD["saturation"])


WITH_STEPS = {line: nets for line, nets in RECORD["saturation"].items() if "uncut" in nets["cnn"][experiment.SATURATING[2]]}


@pytest.mark.parametrize("line", WITH_STEPS)
@EACH
def test_the_kernels_do_not_keep_to_seven_bits(line, net):
    seven, eight = (WITH_STEPS[line][net][name] for name in experiment.SATURATING[2:])
    assert seven["decoded"]["images"] > 20 * seven["uncut"]["images"] and seven["decoded"]["steps"] > 5 * seven["uncut"]["steps"]
    assert eight["decoded"] == eight["uncut"]                                               # eight bits have no limit to lift


def test_pytorch_s_sums_saturate_without_vnni_and_not_with_it():
    images = {limited: [nets["cnn"][experiment.SATURATING[3]]["decoded"]["images"] for line, nets in WITH_STEPS.items()
                        if ("no VNNI" in line or "oneDNN limited" in line) == limited] for limited in (False, True)}
    assert images[True] and min(images[True]) > 20 * max(images[False])


def test_uncut_lifts_every_limit_but_the_input_s(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install qlab[deploy]")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 3), nn.ReLU(), nn.Conv2d(2, 2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).eval()
    few = data.load("test").images[:20]
    pytorch.export(model, tmp_path / "net.pt", few, "static")
    decoded, uncut = pytorch.load(tmp_path / "net.pt"), experiment.uncut(tmp_path / "net.pt")
    limits = [node.args[4] for node in uncut.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert limits[:2] == [127, 127] and len(limits) >= 6 and set(limits[2:]) == {255}
    inside, outside = ((uncut(x) - decoded(x)).abs().max() for x in (few, 3 * few))
    assert inside < 0.001 < outside                                                         # what calibration saw is hardly cut


@EACH
def test_the_c_file_is_as_small_as_promised(net):
    measured, arena = TABLES[net][demo.CORTEX]["measured"], TABLES[net][demo.MICRO]["arena"]
    assert measured["network_flash_bytes"] <= 1.15 * measured["weight_bytes"] + 20 * 1024
    assert measured["arena_bytes"] <= arena["activations"] and measured["ram_bytes"] <= arena["total"]


@EACH
def test_integers_are_counted_among_the_operators_that_ran(net):
    of = {"cnn": 5, "depthwise": 14}[net]
    expected = {"PyTorch, float32": 0, "PyTorch, float32, compiled": 0, "PyTorch, pt2e": 0, "PyTorch, pt2e, compiled": of,
                "PyTorch, quantize_dynamic": of - {"cnn": 3, "depthwise": 13}[net], "ONNX Runtime, float32": 0, demo.HOST: of}
    for name, row in TABLES[net].items():
        assert row["in_integers"] + row["in_floats"] in (of, of + (net == "depthwise")), name   # a .tflite's mean is a convolution
        assert row["in_integers"] == expected.get(name, row["in_integers"]), name


@EACH
def test_every_runtime_was_timed(net):
    timing = RECORD["timing"][net]
    assert set(timing["us"]) == set(demo.RUNTIMES) - {demo.CORTEX} and timing["machine"]["line"]
    for name in timing["us"]:
        for threads in demo.threads_of(RECORD, net):
            assert all(demo.microseconds(RECORD, net, name, threads, batch) > 0 for batch in demo.batches_of(RECORD, net))


# Measured again


def agrees(net: str, name: str, logits: torch.Tensor, but: int = 0) -> None:
    """The first images have the class in the record's sense: right where that says right, with so many exceptions."""
    labels = data.load("test").labels[:len(logits)]
    recorded = TABLES[net][name]["result"].correct[:len(logits)]
    assert ((logits.argmax(1) == labels) != recorded).sum() <= but


@EACH
def test_the_integer_network_says_what_the_record_says(net, networks):
    agrees(net, demo.OURS, networks[net](data.load("test").images[:IMAGES]))
    assert networks[net].nbytes == TABLES[net][demo.OURS]["nbytes"]


@EACH
def test_tflite_again(net, networks, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install qlab[deploy]")
    path, images = tmp_path / "net.tflite", data.load("test").images[:IMAGES]
    assert tflite.export(networks[net], path).nbytes == TABLES[net]["LiteRT, XNNPACK"]["nbytes"]
    agrees(net, "LiteRT, reference", tflite.run(path, images, "reference"))


def test_tflite_micro_again(networks, tmp_path):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: pip install qlab[deploy]")
    path, codes = tmp_path / "net.tflite", networks["cnn"].encode(data.load("test").images[:IMAGES])
    tflite.export(networks["cnn"], path)
    assert torch.equal(tflite.run(path, codes, "micro"), networks["cnn"].run(codes))
    assert tflite.arena(path) == TABLES["cnn"][demo.MICRO]["arena"]


@EACH
def test_c_again(net, networks, tmp_path):
    about = c.export(networks[net], tmp_path / f"{net}.c")
    row, images = TABLES[net][demo.HOST], data.load("test").images[:IMAGES]
    assert (about.nbytes, c.arena_bytes(about), c.weight_bytes(about)) == (row["source_bytes"], row["arena_bytes"], row["weight_bytes"])
    try:
        logits = c.run(tmp_path / f"{net}.c", networks[net].encode(images))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert torch.equal(logits, networks[net](images))
    agrees(net, demo.HOST, logits)


@pytest.mark.skipif(cortex_m.missing() is not None, reason=str(cortex_m.missing()))
def test_cortex_m4_again(networks, tmp_path):
    c.export(networks["cnn"], tmp_path / "cnn.c")
    codes = networks["cnn"].encode(data.load("test").images[:3])
    assert torch.equal(cortex_m.run(tmp_path / "cnn.c", codes), networks["cnn"].run(codes))
    found, recorded = cortex_m.measure(tmp_path / "cnn.c", data.load("test").images), TABLES["cnn"][demo.CORTEX]["measured"]
    assert (found["arena_bytes"], found["weight_bytes"], found["products"]) == tuple(
        recorded[key] for key in ("arena_bytes", "weight_bytes", "products"))
    if found["compiler"] == recorded["compiler"]:
        assert found["network_flash_bytes"] == recorded["network_flash_bytes"]
        assert found["instructions"] == pytest.approx(recorded["instructions"], rel=0.01)


def test_onnx_again(tmp_path):
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install qlab[deploy]")
    onnx.export(zoo.load("cnn"), tmp_path / "net.onnx", kind="float")
    agrees("cnn", "ONNX Runtime, float32", onnx.run(tmp_path / "net.onnx", data.load("test").images[:IMAGES]), but=1)


def test_pytorch_again(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install qlab[deploy]")
    pytorch.export(zoo.load("cnn"), tmp_path / "net.pt", kind="dynamic")
    agrees("cnn", "PyTorch, torchao dynamic", pytorch.run(tmp_path / "net.pt", data.load("test").images[:IMAGES]), but=1)


# The experiment's own functions


def test_a_part_keeps_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(runs.write, "__defaults__", (tmp_path,))
    monkeypatch.setattr(runs.raw, "__defaults__", (tmp_path,))
    monkeypatch.setitem(experiment.PARTS, "memory", lambda: iter([("cnn", {"LiteRT": 1})]))
    monkeypatch.setitem(experiment.PARTS, "micro", lambda: iter([("cnn", {"x": 2}), ("depthwise", {"x": 3})]))
    experiment.main(["memory"])
    experiment.main(["micro"])
    written = json.loads((tmp_path / "deployment.json").read_text())
    assert written["memory"] == {"cnn": {"LiteRT": 1}} and written["micro"] == {"cnn": {"x": 2}, "depthwise": {"x": 3}}
    assert capsys.readouterr().out.split() == ["memory", "cnn", "micro", "cnn", "micro", "depthwise"]


def test_saturation_has_an_entry_for_each_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(runs.write, "__defaults__", (tmp_path,))
    monkeypatch.setattr(runs.raw, "__defaults__", (tmp_path,))
    for line, correct in (("one", 1), ("two", 2), ("one", 3)):
        monkeypatch.setattr(experiment.machine, "describe", lambda line=line: line)
        experiment.write("saturation", {"cnn": correct})
    found = json.loads((tmp_path / "deployment.json").read_text())["saturation"]
    assert {line: entry["cnn"] for line, entry in found.items()} == {"one": 3, "two": 2} and all(entry["date"] for entry in found.values())


def test_runtimes_take_turns_and_the_fastest_call_counts(monkeypatch):
    seen, now = [], [0]
    monkeypatch.setattr(speed.time, "perf_counter_ns", lambda: now[0])

    def runtime(name, cost):
        def run(n):
            seen.append(name)
            now[0] += int(cost * n * (1 + len(seen) % 7))                                   # disturbed, six times of seven
        return run

    found = speed.turns({"a": runtime("a", 1e3), "b": runtime("b", 2e3), "slow": runtime("slow", 1e8)}, 4)
    assert found == {"a": 1.0, "b": 2.0, "slow": pytest.approx(1e5, rel=1)} and seen[:4] == ["a", "b", "slow", "a"]
    assert seen.count("a") == 2 + speed.REPEATS and seen.count("slow") == 7


def test_each_network_is_timed_after_a_wait_and_says_how_busy_the_machine_was(monkeypatch):
    order = []

    def wait(anyway):
        order.append(("wait", anyway))
        return SimpleNamespace(load=lambda: order.append("load") or {"at_start": 0.1})
    monkeypatch.setattr(speed.quiet, "wait", wait)
    monkeypatch.setattr(speed, "all_threads", lambda: (1, 2))
    monkeypatch.setattr(speed, "callables", lambda net, threads: order.append((net, threads)) or {"LiteRT": None})
    monkeypatch.setattr(speed, "turns", lambda some, batch: dict.fromkeys(some, float(batch)))
    found = dict(speed.timing(True))
    assert order == [step for net in speed.NETS for step in (("wait", True), (net, 1), (net, 2), "load")]
    times = {str(batch): batch for batch in speed.BATCHES}
    assert all(rows["load"] == {"at_start": 0.1} and rows["us"] == {"LiteRT": {"1": times, "2": times}} and rows["machine"]["line"]
               for rows in found.values())
    asked = []
    monkeypatch.setattr(experiment, "write", lambda part, rows: None)
    monkeypatch.setattr(experiment, "timing", lambda anyway: asked.append(anyway) or iter(()))
    experiment.main(["timing"])
    experiment.main(["timing", "--busy"])
    assert asked == [False, True]


def test_layers_counts_what_ran():
    assert experiment.layers({"QLinearConv": 3, "Gemm": 2, "Relu": 9})["in_integers"] == 3
    assert experiment.layers({"aten::_int_mm": 2, "aten::mkldnn_convolution": 3})["in_floats"] == 3
