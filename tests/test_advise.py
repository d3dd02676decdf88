"""The table of methods and the adviser: numbers from the raw records again, by NumPy and SciPy, every answer held to its questions."""

import base64
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qlab.lab import language, runs, zoo
from qlab.lab.methods import NETS, load
from qlab.llm import weights
from qlab.nets import ptq
from qlab.search.advise import WANTS, Advice, advise
from qlab.search.methods import DATA, HARDWARE, Lost, Method, lost, table


def raw(name):
    return json.loads((runs.FOLDER / f"{name}.json").read_text())


def right(entry):
    return np.unpackbits(np.frombuffer(base64.b64decode(entry["right"]), np.uint8))[:entry["images"]].astype(bool)


def asked(net="depthwise", *answers, **named):
    return advise(load(net), *answers, **named)


def row_of(net, name):
    found = [row for row in load(net) if row.name == name]
    assert len(found) == 1
    return found[0]


def test_every_row_names_a_record_and_the_command_that_makes_it():
    for row in load():
        record = raw(row.record)
        assert row.command == record["command"] and row.command.startswith("python -m qlab.lab")
        assert row.nbytes > 0 and 0 < row.bits <= 32 and row.needs in DATA and set(row.runs_on) <= set(HARDWARE)
        assert row.trains == (row.needs == "training")
        assert row.faster is None or (runs.FOLDER / f"{row.faster_from}.json").exists()
        assert row.lost.low <= row.lost.value <= row.lost.high and 0 <= row.lost.p <= 1


def test_no_name_stands_twice_for_a_network_and_every_network_has_rows():
    assert {net: max(Counter(row.name for row in load(net)).values()) for net in NETS} == dict.fromkeys(NETS, 1)
    assert [row for net in NETS for row in load(net)] == list(load())


def test_rounded_weights_are_those_of_the_sweep_by_binomial_test():
    rows = raw("sweep")["rows"]
    for net in ("depthwise", "cnn", "resnet"):
        base = next(right(row) for row in rows if row["net"] == net and row["method"] == "float")
        for row in rows:
            if row["net"] == net and row["method"] != "float" and row["bits"] in (3, 4):
                method = row_of(net, f"{'k-means' if row['method'] == 'kmeans' else row['method']}, per {row['per']}, {row['bits']} bits")
                found, gone, come = right(row), (base & ~right(row)).sum(), (right(row) & ~base).sum()
                assert method.nbytes == row["nbytes"] and method.lost.value == pytest.approx(100 * (base.mean() - found.mean()))
                assert method.lost.p == pytest.approx(stats.binomtest(int(gone), int(gone + come)).pvalue, rel=1e-6, abs=1e-300)


def test_what_was_trained_is_set_against_as_many_seeds_of_its_control():
    record = raw("qat")
    control = np.array([right(run) for run in record["control"].values()], float)
    for arm, bits, name in (("lsq-channel", "3", "W3A3, trained, LSQ, per channel"),
                            ("ste-channel", "4", "W4A4, trained, STE, per channel"),
                            ("lsq-tensor", "3", "W3A3, trained, LSQ, per tensor")):         # the last has one seed
        each = np.array([right(run) for run in record["arms"][arm][bits].values()], float)
        lost = 100 * (control - each).mean(0)
        half = stats.norm.ppf(0.975) * lost.std(ddof=1) / len(lost) ** 0.5
        found = row_of("depthwise", name).lost
        np.testing.assert_allclose([found.value, found.low, found.high], [lost.mean(), lost.mean() - half, lost.mean() + half], atol=1e-9)
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(lost.mean()) / (half / stats.norm.ppf(0.975))), rel=1e-6, abs=1e-300)


def test_minutes_of_training_are_the_median_of_one_kind_of_machine():
    runs_of = raw("qat")["arms"]["lsq-channel"]["3"].values()
    row = row_of("depthwise", "W3A3, trained, LSQ, per channel")
    assert row.minutes_on == "cuda" and row.minutes == np.median([run["minutes"] for run in runs_of if run["device"] == "cuda"])


def test_the_language_models_loss_is_the_ratio_of_sums_of_the_record():
    record = raw("language_gpt")

    def kept(text, dtype):
        return np.frombuffer(base64.b64decode(text), dtype).astype(float)

    rows, nbytes = record["gpt"]["weights"], kept(record["nbytes_of_blocks"], "<i4")
    for name in ("4 bits, row", "3 bits, groups of 32", "nf4"):
        apart = (kept(rows[name]["nats"], "<f4") - kept(rows["float32"]["nats"], "<f4")) / np.log(2)
        found = row_of("gpt", name)
        assert found.lost.value == pytest.approx(apart.sum() / nbytes.sum(), abs=1e-9)
        assert found.lost.value == pytest.approx(rows[name]["bits_per_byte"] - rows["float32"]["bits_per_byte"], abs=1e-6)


def test_bytes_of_the_language_model_count_what_is_not_coded_as_float16():
    model = language.load()
    coded, _ = weights.choose(model)
    kept = sum(p.numel() for p in model.parameters()) - sum(model.get_submodule(name).weight.numel() for name in coded)
    for name in ("8 bits, row", "3 bits, groups of 32"):
        assert row_of("gpt", name).nbytes == raw("language_gpt")["gpt"]["weights"][name]["layers_nbytes"] + 2 * kept
    assert row_of("gpt", "ternary, rounded").nbytes == row_of("gpt", "ternary, one gamma").nbytes           # two records, one way to count


def test_a_pruned_network_weighs_its_mask_and_what_is_left():
    from safetensors.numpy import load_file
    tensors = load_file(runs.FOLDER / "pruning_cnn.safetensors").values()
    by_hand = sum(t.nbytes if t.ndim < 2 else -(-t.size // 8) + 4 * np.count_nonzero(t) for t in tensors)
    assert abs(row_of("cnn", "pruned by magnitude").nbytes - by_hand) < 64                              # heads of five matrices


def test_speed_is_a_ratio_within_one_record_and_one_runtime():
    took = raw("deployment")["timing"]["cnn"]["us"]
    row = row_of("cnn", "INT8, per channel")
    assert row.faster == took["ONNX Runtime, float32"]["1"]["1"] / took["ONNX Runtime, static"]["1"]["1"]
    assert row_of("cnn", "pruned by magnitude").faster < 1.1 < row_of("cnn", "pruned by channels").faster


def test_two_rows_are_compared_directly_and_only_on_one_network():
    a, b = row_of("cnn", "linear, per channel, 8 bits"), row_of("cnn", "linear, per channel, 3 bits")
    assert b.compared(a).value == pytest.approx(-a.compared(b).value) and b.compared(a).p == a.compared(b).p
    assert b.compared(a).value == pytest.approx(b.lost.value - a.lost.value)                            # both have one reference
    with pytest.raises(ValueError, match="same network"):
        a.compared(row_of("resnet", "linear, per channel, 8 bits"))


QUESTIONS = st.fixed_dictionaries({
    "net": st.sampled_from(NETS), "data": st.sampled_from(DATA), "hardware": st.sampled_from((None, *HARDWARE)),
    "want": st.sampled_from(WANTS), "bits": st.sampled_from((None, 1.6, 2, 4, 8)), "lost": st.sampled_from((None, 0.02, 0.5, 3.0))})


@settings(max_examples=150, deadline=None)
@given(QUESTIONS, st.booleans())
def test_what_remains_answers_the_questions_and_all_else_is_out_for_a_reason(answers, training):
    found = asked(**answers, training=training and answers["data"] == "training")
    assert Counter((*found.rows, *(row for row, _ in found.out))) == Counter(load(answers["net"]))
    assert len(found.reasons) == len(found.rows) and all(reason for _, reason in found.out)
    tested = sum(reason.startswith(("beaten", "no gain")) for _, reason in found.out)
    for row in found.rows:
        assert DATA.index(row.needs) <= DATA.index(answers["data"]) and (training or not row.trains)
        assert answers["hardware"] in (None, *row.runs_on) and row.bits <= (answers["bits"] or 99)
        assert answers["want"] == "size" or row.faster > 1
        assert answers["lost"] is None or row.lost.high <= answers["lost"]
    for below, row in zip(found.rows, found.rows[1:]):
        assert below.nbytes <= row.nbytes if answers["want"] == "size" else below.faster >= row.faster
        step = row.compared(below)
        assert step.value < 0 and step.p * (len(found.rows) + tested - 1) < 0.05


def test_the_first_row_is_the_smallest_that_loses_as_little_as_asked():
    fit = [row for row in load("depthwise") if row.lost.high <= 1 and not row.trains]
    assert asked("depthwise", lost=1.0).rows[0].nbytes == min(row.nbytes for row in fit)


def test_a_microcontroller_is_offered_only_what_ran_on_one():
    assert [row.name for row in asked("cnn", hardware="microcontroller").rows] == ["INT8, per channel"]
    assert not asked("resnet", hardware="microcontroller").rows


def test_where_nothing_fits_it_says_of_how_many_rows_why():
    found = asked("lenet5", data="none")
    assert not found.rows and str(found) == "No method of the table fits. 1 has to train."
    assert "no record timed it" in str(asked("gpt", want="latency"))


def test_each_reason_can_be_asked_for():
    found = asked("cnn", want="latency", data="training", training=True)
    assert found.why_not("pruned by magnitude").startswith("ran no faster than float32")
    with pytest.raises(ValueError, match="one of the methods that are out"):
        found.why_not(found.rows[0].name)
    with pytest.raises(ValueError, match="that are out, and none is.$"):
        Advice((), (), ()).why_not("x")


@pytest.mark.parametrize("answers, words", [
    ({"net": "vgg"}, "net is 'vgg'"), ({"data": "some"}, "data is 'some'"), ({"hardware": "tpu"}, "hardware is 'tpu'"),
    ({"want": "speed"}, "want is 'speed'"), ({"bits": 0}, "bits is 0"), ({"bits": float("nan")}, "bits is nan"),
    ({"lost": -1}, "lost is -1"), ({"bits": "4"}, "bits is '4'"), ({"lost": "x"}, "lost is 'x'"), ({"lost": True}, "lost is True"),
    ({"training": "no", "data": "training"}, "training is 'no'"), ({"training": None}, "training is None"),
    ({"training": True}, "training is asked for with data 'calibration'")])
def test_what_is_no_answer_is_one_sentence(answers, words):
    with pytest.raises(ValueError, match=words) as caught:
        asked(**answers)
    assert str(caught.value).count(". ") == 0


def test_the_printed_advice_names_the_commands():
    found = asked("depthwise", lost=1.0)
    assert isinstance(found, Advice) and "search: python -m qlab.lab.experiments.search" in str(found)
    assert all(row.name in table(found.rows) for row in found.rows)


def test_learned_roundings_are_those_of_the_search_with_all_biases():
    record, sweep = raw("search"), raw("sweep")["rows"]
    names = {"corrected": "bias corrected", "gptq": "GPTQ", "adaround": "AdaRound"}
    for net, rows in record["rounding"].items():
        biases = sum(p.numel() for name, p in ptq.fold_batch_norm(zoo.load(net)).named_parameters() if name.endswith("bias"))
        base = next(right(row) for row in sweep if row["net"] == net and row["method"] == "float")
        for how, name in names.items():
            for key, method in ((f"3 bits: {how}", f"{name}, per channel, 3 bits"),
                                (f"program, 2.5 bits: {how}", f"{name}, chosen, 2.5 bits")):
                found, row = row_of(net, method), rows[key]
                gone, come = (base & ~right(row)).sum(), (right(row) & ~base).sum()
                assert found.nbytes == row["nbytes"] + 4 * biases and found.bits == float(method.split()[-2])
                assert found.lost.value == pytest.approx(100 * (base.mean() - row["correct"] / row["images"]))
                assert found.lost.p == pytest.approx(stats.binomtest(int(gone), int(gone + come)).pvalue, rel=1e-6, abs=1e-300)
                assert found.minutes * 60 == pytest.approx(row["cpu_s"] + ("program" in key) * record["proxies"][net]["kl"]["cpu_s"])


def test_rounding_to_the_nearest_at_one_width_stands_in_the_table_once():
    """The search's record and the sweep's agree on it, so that leaving one out loses nothing."""
    again = {(row["net"], row["bits"]): row for row in raw("sweep_ranges")["rows"] if (row["method"], row["per"]) == ("clipped", "channel")}
    for net, rows in raw("search")["rounding"].items():
        for bits in (2, 3, 4):
            assert abs(rows[f"{bits} bits: nearest"]["correct"] - right(again[net, bits]).sum()) <= 2
        assert not [row for row in load(net) if row.record == "search" and row.name.startswith("linear") and "chosen" not in row.name]


def test_what_the_page_says_of_the_table():
    collapsed = row_of("depthwise", "W4A4, trained, LSQ, per tensor")
    assert sorted(round(result.value, 1) for result in collapsed.results) == [0.1, 0.9, 0.9]                # one seed is lost, not all
    nothing, some, trained = (asked("depthwise", data, data == "training").rows for data in DATA)
    at_36 = [next(row for row in rows if 36_000 < row.nbytes < 36_200) for rows in (nothing, some)]
    assert at_36[0].nbytes == at_36[1].nbytes and at_36[0].lost.value > 10 > 1 > at_36[1].lost.high         # what some images buy
    assert [row for row in trained if row.trains] and [row for row in trained if not row.trains] == list(some)     # what training adds
    assert all(row.activations == 3 for row in trained if row.trains)
    bits = [row for row in load() if row.lost.unit == "points" and not row.trains]
    assert all(row.name.startswith("log") for row in bits if row.bits == 8 and row.lost.high >= 1)
    assert all(row.lost.high >= 1 for row in bits if row.bits == 2)


def own(bits, right, before, **named):
    return Method(f"{bits} bits", "mine", bits, 1000 * bits, lost(right, before), results=(right,), **named)


def test_a_table_of_ones_own_is_judged_by_what_was_right():
    rng = np.random.default_rng(0)
    before = rng.random(5000) < 0.9
    spoilt = {bits: before & (rng.random(5000) > share) for bits, share in ((8, 0.001), (6, 0.0015), (4, 0.03), (2, 0.3))}
    rows = [own(bits, right, before) for bits, right in spoilt.items()]
    found = advise(iter(rows), lost=5.0)
    p = stats.binomtest(int((spoilt[6] & ~spoilt[4]).sum()), int((spoilt[6] ^ spoilt[4]).sum())).pvalue
    assert [row.name for row in found.rows] == ["4 bits", "6 bits"] and 2 * p < 0.05          # the 8 bits gain nothing beyond noise
    assert found.why_not("8 bits").startswith("no gain beyond noise") and found.why_not("2 bits").startswith("may lose more")
    assert str(found).count("\n") == 5                                                        # no record, and so no command


def test_a_loss_is_that_of_the_images_which_only_one_has_right():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 400)) < 0.8
    found = lost(b, a)
    assert found.value == pytest.approx(100 * (a.mean() - b.mean())) and found.low < found.value < found.high
    assert found.p == pytest.approx(stats.binomtest(int((a & ~b).sum()), int((a ^ b).sum())).pvalue)
    back = lost(a.tolist(), b.tolist())
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-found.value, -found.high, -found.low, found.p))


@pytest.mark.parametrize("right, reference", [([1, 0], [1, 1]), ([True], [True, False]), ([], []), ([[True]], [[True]]), ("yes", [True])])
def test_what_is_no_list_of_right_and_wrong_is_refused(right, reference):
    with pytest.raises(ValueError, match="and must be bool, one value an image"):
        lost(right, reference)


def test_rows_that_cannot_be_compared_are_refused():
    with pytest.raises(TypeError, match="rows hold a str, and must be Method"):
        advise("cnn")
    with pytest.raises(ValueError, match="rows are of cnn and resnet, and must be of one network"):
        advise(load("cnn") + load("resnet"))
    bare = [Method(f"{bits} bits", "mine", bits, bits, Lost(1, 0, 2, 0.1, "points")) for bits in (2, 4)]
    with pytest.raises(ValueError, match="4 bits has no results"):
        advise(bare)
    assert not advise([]).rows
