"""The benchmark of tokens a second: its models compute what their weights say, its bytes are counted by hand, its rows are right."""

import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from small_gpt import gpt

from qlab.lab import bench, language, tokens_bench
from qlab.llm import packed, weights
from qlab.llm.generate import generate

PROMPT = torch.arange(20)[None]
TINY = {"seconds": 0.0, "fewest": 2, "prompt": 5, "new": 2, "read_bytes": 2**16}


@pytest.fixture(scope="module")
def made():
    model = gpt(dtype=torch.float32, width=64, hidden=64).requires_grad_(False)             # rows that groups of 32 divide
    return {name: make() for name, make in tokens_bench.contenders(model).items()}


def test_every_contender_computes_near_what_its_weights_say(made):
    floats = made["float32"]
    decoded = {bits: weights.quantize(floats, bits, 32).model for bits in (4, 8)}
    oracle = {"float32": (floats, 0), "bfloat16": (floats, 0.05), "INT8, Int8Linear": (floats, 0.05),
              "INT8, Int4Linear": (decoded[8], 0.05), "INT4, Int4Linear": (decoded[4], 0.05), "INT4, torch, bfloat16": (decoded[4], 0.05)}
    assert set(made) == set(oracle)
    with torch.inference_mode():
        for name, (model, most) in oracle.items():
            wanted = model(PROMPT)
            assert (made[name](PROMPT).float() - wanted).norm() <= most * wanted.norm(), name
        assert (decoded[4](PROMPT) - floats(PROMPT)).norm() > 0.1 * floats(PROMPT).norm()   # so that INT4 is told from its floats


def test_int8_writes_what_float32_does():
    model = language.load()
    made, texts = tokens_bench.contenders(model), {}
    for name in ("float32", "INT8, Int8Linear", "INT8, Int4Linear"):
        # Three tokens: so long the best logit leads by more than twice what INT8 moves a logit.
        texts[name] = tokens_bench.write(made[name](), torch.arange(64)[None], 3)[2]
    assert texts["INT8, Int8Linear"] == texts["INT8, Int4Linear"] == texts["float32"]


def test_what_is_timed_is_a_text(made):
    for name, model in made.items():
        prompt_s, new_s, tokens, cache_nbytes = tokens_bench.write(model, PROMPT, 6)
        assert tokens == generate(model, PROMPT[0].tolist(), 6), name
        assert prompt_s > 0 and new_s > 0
        number = 2 if "bfloat16" in name else 4
        assert cache_nbytes == 2 * 2 * 2 * 16 * 26 * number                                 # both, blocks, heads, width of one, tokens


def test_bytes_read_for_a_token(made):
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 64)                                # two blocks of seven matrices
    rows = 2 * (2 * 64 + 2 * 32 + 3 * 64)
    rest, turn = 40 * 64 + 5 * 64, 8 * 2 * 4                                                # embedding, gains; a row of cosines and sines
    wanted = {"float32": 4 * matrices + 4 * rest + turn, "bfloat16": 2 * matrices + 2 * rest + turn // 2,
              "INT8, Int8Linear": matrices + 8 * rows + 4 * rest + turn, "INT8, Int4Linear": matrices + matrices // 8 + 4 * rest + turn,
              "INT4, Int4Linear": matrices // 2 + matrices // 8 + 4 * rest + turn,
              "INT4, torch, bfloat16": matrices // 2 + matrices // 8 + 2 * rest + turn // 2}
    assert {name: packed.read_nbytes(model) for name, model in made.items()} == wanted


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    for n in range(6, 12):                                                                  # every way in which n values lie about it
        low, high = tokens_bench.median_interval(list(range(n, 0, -1)))

        def outside(low, high, n=n):
            below = [sum(signs) for signs in itertools.product((0, 1), repeat=n)]
            return sum(b < low or b >= high for b in below) / len(below)                    # the low-th is above it, or the high-th below
        assert outside(low, high) <= 0.05 < outside(low + 1, high - 1)
    assert tokens_bench.median_interval([3.0, 1.0, 2.0]) == [1.0, 3.0]


@pytest.fixture
def small(monkeypatch):
    def absent():
        raise FileNotFoundError("SmolLM2 is not here.")

    model = gpt(dtype=torch.float32, width=64, hidden=64)
    monkeypatch.setattr(tokens_bench, "models", lambda: {"small": lambda: copy.deepcopy(model), "SmolLM2": absent})
    measure = tokens_bench.measure
    monkeypatch.setitem(bench.BENCHES, "tokens", lambda: measure(**TINY))


def test_a_row_says_what_its_numbers_say(small, capsys):
    threads = torch.get_num_threads()
    rows = tokens_bench.measure(**TINY)
    assert torch.get_num_threads() == threads and "SmolLM2 is left out: SmolLM2 is not here." in capsys.readouterr().out
    assert [(row["model"], row["threads"], row["weights"]) for row in rows] == [
        ("small", count, name) for count in sorted({1, threads}) for name in tokens_bench.contenders(gpt(dtype=torch.float32))]
    for row in rows:
        assert row["rounds"] == 2 and row["share_of_roof"] == pytest.approx(row["tokens_per_s"] / row["roof_per_s"], rel=1e-2)
        assert row["roof_per_s"] == pytest.approx(1000 * row["roof_gb_per_s"] / row["read_mb"], rel=1e-2)
        assert row["tokens_interval"][0] <= row["tokens_per_s"] <= row["tokens_interval"][1]
    first = rows[0]
    assert first["times_as_fast"] == first["prompt_times_as_fast"] == 1 and first["times_interval"] == [1, 1]
    cache = 2 * 2 * 2 * 16 * 7 * 4                                                          # five tokens and two
    assert first["read_mb"] == pytest.approx((packed.read_nbytes(gpt(dtype=torch.float32, width=64, hidden=64)) + cache) / 1e6, rel=1e-3)


def test_times_are_medians_of_the_rounds_and_ratios_are_taken_within_one():
    found = {"float32": [(1.0, 2.0), (2.0, 8.0), (4.0, 4.0)], "other": [(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)]}
    row = tokens_bench._row("m", "other", 1, found, roof=1000.0, read=10, prompt=8, new=4)
    assert row["tokens_per_s"] == 2 and row["tokens_interval"] == [1, 4]
    assert row["times_as_fast"] == 2 and row["times_interval"] == [1, 4]                    # 2, 4 and 1
    assert row["prompt_per_s"] == 8 and row["prompt_times_as_fast"] == 2
    assert row["roof_per_s"] == 100 and row["share_of_roof"] == 0.02 and row["read_mb"] == 1e-5


def test_without_its_file_smollm2_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="qlab get smollm2"):
        tokens_bench.models()["SmolLM2"]()
    assert tokens_bench.models().keys() == {"gpt", "SmolLM2"}


def test_make_bench_measures_packed_weights_and_tokens():
    assert {"int4", "tokens"} <= set(bench.BENCHES) and "tokens" in bench.TABLES


def test_a_benchmark_is_renewed_in_the_record_of_this_machine_alone(small, monkeypatch, tmp_path, capsys):
    def row(what, value):
        return bench._row(what, value, "ms")

    path = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "RECORD", path)
    monkeypatch.setattr(bench.data, "load", lambda part: None)                              # what main does before, to no end here
    monkeypatch.setattr(bench.quiet, "wait", lambda anyway: SimpleNamespace(load=lambda: {"quiet": True}))
    here = bench.machine.environment() | {"date": "2020-01-01"}
    path.write_text(json.dumps({"command": "qlab bench", "environment": here, "rows": [row("a", 1), row("b", 2)], "pages": [7]}))
    monkeypatch.setitem(bench.BENCHES, "int4", lambda: [row("b", 3), row("c", 4)])
    bench.main(["int4"])
    assert "written" not in capsys.readouterr().out
    bench.main(["int4", "tokens", "--renew"])
    record = json.loads(path.read_text())
    assert [(r["what"], r["value"]) for r in record["rows"]] == [("a", 1), ("b", 3), ("c", 4)] and record["pages"] == [7]
    assert record["environment"] == here and record["renewed"].keys() == {"int4", "tokens"}
    assert record["renewed"]["tokens"]["load"]["quiet"] and record["tokens"][0]["weights"] == "float32"
    for arguments, changed, sentence in ((["--renew"], {}, "--renew needs the names"),
                                         (["int4", "--renew"], {"cpu": "another"}, r"of other versions or settings \(cpu\)")):
        before = json.dumps(record | {"environment": here | changed})
        path.write_text(before)
        with pytest.raises(ValueError, match=sentence):
            bench.main(arguments)
        assert path.read_text() == before
