"""The benchmark of INT8 products: it finds wrong products, writes a whole record or none, and says what it left out."""

import json
import subprocess
import sys

import pytest
import torch

from qlab.lab import bench as qlab_bench
from qlab.lab import matmul_bench as bench
from qlab.matmul import int4, product, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_a_run_writes_a_record_with_its_ratios_and_draws_it(tmp_path, capsys):
    record = tmp_path / "record.json"
    threads = torch.get_num_threads()
    assert bench.main(["--busy", "--sizes", "16", "24", "--out", str(record), "--device", DEVICE]) == 0
    assert torch.get_num_threads() == threads
    found = json.loads(record.read_text())
    assert found["exactness"]["differing_elements"] == 0 and found["exactness"]["products"] >= 64
    assert {"date", "cpu", "torch", "cuda", "cuda_driver"} <= set(found["environment"]) and "cuda_toolkit" in found["versions"]
    assert {tuple(row["shape"]) for row in found["rows"]} == {(16, 16, 16), (24, 24, 24)}
    for row in found["rows"]:
        m, k, n = row["shape"]
        assert row["tops"] == pytest.approx(2 * m * k * n / row["ms"] / 1e9, rel=1e-3)
    times = {(*row["shape"], row["threads"], row["what"]): row["ms"] for row in found["rows"]}
    ratio = next(row for row in found["ratios"] if row["what"] == "int8_matmul")
    key = (*ratio["shape"], ratio["threads"])
    assert ratio["times_as_fast"] == pytest.approx(times[(*key, "torch._int_mm")] / times[(*key, "int8_matmul")], rel=1e-3)
    assert bench.main(["--out", str(record), "--plot", str(tmp_path / "rates.png")]) == 0
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


def test_wrong_products_are_found_and_nothing_is_timed(tmp_path, monkeypatch, capsys):
    def forgetful(a, b, backend="auto"):
        c = torch.empty(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
        c[:-1] = reference.matmul(a, b)[:-1]  # leaves the last row as it found it
        return c

    monkeypatch.setattr(product, "int8_matmul", forgetful)
    assert bench.main(["--busy", "--sizes", "16", "--out", str(tmp_path / "record.json"), "--device", "cpu"]) == 1
    assert "The products are wrong: nothing is timed." in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_takes_too_long_is_left_out_with_the_reason():
    rows = bench.measure("cpu", 1, (16, 32), limit=1e-9)
    assert all("ms" in row for row in rows if row["shape"] == [16, 16, 16])
    assert all(row["left_out"].startswith("would take about") and "ms" not in row for row in rows if row["shape"] == [32, 32, 32])
    assert bench.ratios(rows) and all(row["shape"] == [16, 16, 16] for row in bench.ratios(rows))


def test_every_kernel_of_the_cpu_is_measured_against_float32(monkeypatch, capsys):
    monkeypatch.setattr(bench, "ROW", (1, 20, 20))
    monkeypatch.setattr(bench, "TABLE", (8, 16))
    rows = qlab_bench.bench_matmul((8, 16))
    kernels = ["torch._int_mm", "onnxruntime", "float32 in chunks", "int8_matmul", "int8_matmul, b by rows", "Int8Linear"]
    for threads in sorted({1, torch.get_num_threads()}):
        for shape in ("8 x 8 x 8", "16 x 16 x 16", "1 x 20 x 20"):
            told = [row for row in rows if f", {shape}, {threads} thread" in row["what"]]
            assert sorted(row["what"].split(f", {shape}")[0] for row in told) == sorted(kernels)
            assert all(row["ratio"] > 0 and row["against"] == "float32, nn.Linear" for row in told)
    assert f"int8_matmul takes {product.choose('cpu')[0]}: " in capsys.readouterr().out


def test_packed_weights_are_measured_against_float32(monkeypatch, capsys):
    threads = torch.get_num_threads()
    rows = qlab_bench.bench_int4(((1, 64, 32), (3, 64, 32)))
    assert torch.get_num_threads() == threads and all(row["ratio"] > 0 and row["against"] == "float32" for row in rows)
    for shape, slow in (("1 x 64 x 32", {"2 bits, onnxruntime, level 0", "8 bits, onnxruntime, level 0"}), ("3 x 64 x 32", set())):
        told = {row["what"].split(f", {shape}, 1 thread")[0] for row in rows if f", {shape}, 1 thread" in row["what"]}
        assert told == slow | {"bfloat16", "Int4Linear", "4 bits, torch, bfloat16", "4 bits, unpacked in torch, then float32",
                               *(f"{bits} bits, onnxruntime, level 4" for bits in (2, 4, 8)), "4 bits, onnxruntime, level 0"}
    assert f"int4_matmul takes {int4.choose('cpu')[0]}: " in capsys.readouterr().out


def test_without_onnx_runtime_the_others_are_measured(monkeypatch):
    monkeypatch.setattr(bench, "why_not_onnxruntime", lambda: "ONNX Runtime is not installed")
    assert "onnxruntime" not in bench.contenders("cpu") and "float32 in chunks" in bench.contenders("cpu")


def test_it_runs_on_a_machine_without_jupyter(tmp_path):
    code = ("import runpy, sys\n"
            "for name in ('onnxruntime', 'onnx', 'IPython',\n"
            "             'ipywidgets', 'jupyterlab', 'jupyter_client', 'nbformat', 'nbclient', 'matplotlib', 'rich'):\n"
            "    sys.modules[name] = None\n"
            "runpy.run_module('qlab.lab.matmul_bench', run_name='__main__', alter_sys=True)")
    done = subprocess.run([sys.executable, "-c", code, "--busy", "--sizes", "8", "--device", "cpu", "--out", tmp_path / "record.json"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "record.json").read_text())["command"].startswith("python -m qlab.lab.matmul_bench --busy --sizes 8")


def test_the_shapes_are_those_of_the_course():
    kinds = [kind for kind, _ in bench.shapes(bench.SQUARES)]
    assert kinds.count("square") == 6 and kinds.count("tall and skinny") == 3 and sum(kind.startswith("7B") for kind in kinds) == 16
    per_block = sum(k * n for k, n in bench.LAYERS.values())
    assert 32 * per_block + 2 * 32_000 * 4096 == pytest.approx(6.74e9, rel=1e-3)  # 32 blocks and two embeddings of 32,000 words: Llama 2 7B


@pytest.mark.parametrize("arguments, sentence", [
    (["--sizes", "0", "--out", "x"], "sizes and limit must be above 0."),
    (["--limit", "0"], "sizes and limit must be above 0."),
    (["--sizes", "64"], "with --sizes the record is not the course's: name another file with --out."),
    (["--out", "no_such_record.json", "--plot"], "there is no record no_such_record.json: measure first, without --plot."),
    *([] if torch.cuda.is_available() else [(["--device", "cuda"], "there is no CUDA device here: use --device cpu.")]),
])
def test_bad_arguments(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert sentence in capsys.readouterr().err
