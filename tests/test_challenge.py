"""The challenge: the encoding of weights, hidden images, hand-ins that cheat, the leaderboard; all in a small edition of the bundle."""

import contextlib
import functools
import gzip
import io
import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from grading_helpers import has_bwrap
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes

from qlab.grading import grade, results, values
from qlab.grading.author import build
from qlab.grading.challenge import board, bundle, measure
from qlab.grading.challenge.files import Files
from qlab.grading.handed_in import ingest
from qlab.lab import challenge, challenge_images, significance, zoo
from qlab.lab import data as images_of
from qlab.llm.weights import quantize_weights, round_to_nearest
from qlab.nets.ptq import Quantized, fold_batch_norm
from qlab.quant import checked, formats, kmeans, linear, log

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions" / "challenge"

sandbox = pytest.mark.skipif(not has_bwrap(), reason="the sandbox needs bubblewrap")


@pytest.fixture(scope="module")
def net():
    return fold_batch_norm(zoo.load("depthwise")).eval()


@pytest.fixture(scope="module")
def hidden():
    return challenge_images.make("a seed", test=120, control=60)


@pytest.fixture(scope="module")
def small(hidden):
    """The bundle, of 120 + 60 images, made here by the module that the builder's own process asks."""
    head = {"format": 1, "assignment": "challenge", "qlab": "0", "seed_sha256": "", "built": "",
            "tracks": {"weights": {"bytes": 160_000}, "speed": {"bytes": 100_000, "ms": 1e6}}}
    questions = [{"id": name, "points": 100, "seconds": 60, "answer_cell": name, "wrong": [], "cases": []} for name in ("weights", "speed")]
    made = {**head, "pixels": values.encode(hidden.pixels), "labels": hidden.labels.tolist(), "from_test": hidden.from_test.tolist(),
            "questions": questions}
    return made | {"digest": results.digest(made)}


def each(net, how):
    """The network with every weight quantized by how(weight)."""
    return Quantized(net, {name: how(layer.weight) for name, layer in net.named_modules() if hasattr(layer, "weight")}, 0)


def applied(net, how):
    quantized = each(fold_batch_norm(zoo.load("depthwise")), how)
    for name, q in quantized.tensors.items():
        quantized.model.get_submodule(name).weight.data = q.dequantize()
    return quantized


WAYS = {
    "symmetric": lambda w: round_to_nearest(w, 3, scale_dtype=torch.float16),
    "minmax": lambda w: linear.quantize(w, 4, axis=0),
    "affine": lambda w: linear.quantize(w, 5, "affine", axis=0),
    "log": lambda w: log.quantize(w, 4),
    "kmeans": lambda w: kmeans.quantize(w, 2),
    "kmeans of channels": lambda w: kmeans.quantize(w, 1, axis=0),
    "e4m3": lambda w: formats.quantize(w, "e4m3"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_encoding_holds_the_network_whole_and_nothing_else(net, tmp_path, way):
    quantized = applied(net, WAYS[way])
    path = tmp_path / "weights.safetensors"
    size = challenge.save(path, quantized)
    content = challenge.encode(challenge.read(path))
    assert size == len(content) and challenge.encode(challenge.decode(content)) == content
    made = challenge.network(content)
    for name, layer in quantized.model.named_modules():
        if hasattr(layer, "weight"):
            assert torch.equal(made.get_submodule(name).weight, quantized.tensors[name].dequantize())
            assert torch.equal(made.get_submodule(name).bias, layer.bias.half().float())
    heads = sum(6 + 8 * (q.base is not None) + 2 * (q.codebook is not None) - 1 + len(q.packed()[1]) for q in quantized.tensors.values())
    biases = sum(2 + 2 * layer.bias.numel() for name, layer in net.named_modules() if hasattr(layer, "weight"))
    assert size == sum(q.nbytes for q in quantized.tensors.values()) + heads + biases


def test_what_is_no_hand_in_is_not_written(net, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(ValueError, match=f"^{path}.* the network has no such tensor"):
        challenge.save(path, quantize_weights(zoo.load("cnn"), WAYS["symmetric"]))
    spoilt = applied(net, WAYS["minmax"])
    with pytest.raises(ValueError, match="bias_dtype is torch.int8, and must be one of torch.float16, "):
        challenge.save(path, spoilt, torch.int8)
    spoilt.model.fc.bias.data[0] = 1e5
    with pytest.raises(ValueError, match="fc.bias holds 100000, and must be finite in bias_dtype, torch.float16"):
        challenge.save(path, spoilt)
    assert path.read_bytes() == b"as it was" and [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_an_encoding_of_another_size_is_refused(net, cut):
    content = challenge.encode({name: tensor.half() for name, tensor in net.state_dict().items()})
    with pytest.raises(ValueError, match="cut off"):
        challenge.decode(content[:cut])
    with pytest.raises(ValueError, match="1 bytes follow"):
        challenge.decode(content + b"\0")


@pytest.fixture(scope="module")
def encoding(net, tmp_path_factory):
    """Of a network with schemes of three kinds in turn, whose last bytes of codes are not full."""
    path, ways = tmp_path_factory.mktemp("mixed") / "weights", [WAYS[name] for name in ("symmetric", "kmeans", "affine")]
    turn = itertools.cycle(ways)
    challenge.save(path, applied(net, lambda w: next(turn)(w)))
    return challenge.encode(challenge.read(path))


@settings(max_examples=20)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_arrives(encoding, data):
    at, value = data.draw(st.integers(0, len(encoding) - 1)), data.draw(st.integers(0, 255))
    other = encoding[:at] + bytes([value]) + encoding[at + 1:]
    try:
        found = challenge.decode(other)
    except ValueError:
        return
    assert challenge.encode(found) == other


@pytest.fixture(scope="module")
def handed_in(net, tmp_path_factory):
    """A good file's bytes, 8 bits a weight."""
    path = tmp_path_factory.mktemp("good") / "weights.safetensors"
    challenge.save(path, applied(net, lambda w: round_to_nearest(w, 8, scale_dtype=torch.float16)))
    return path.read_bytes()


def changed(content, change):
    """The file again after change(fields, tensors), with a checksum that fits."""
    size = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(json.loads(content[8:size])["__metadata__"]["fields"])
    tensors = load_bytes(content)
    change(fields, tensors)
    return checked.content("Quantized", fields, tensors)


def hide_in_names(fields, tensors):
    fields["secret"], fields["nbytes"] = "x" * 20_000, 1
    for told in fields["codes"]:
        told["another secret"] = "y" * 1000
    fields["codes"].reverse()
    fields["graph"] = None


def test_bytes_hidden_in_names_order_and_fields_do_not_arrive(handed_in, tmp_path):
    for name, content in (("good", handed_in), ("cheat", changed(handed_in, hide_in_names))):
        (tmp_path / name).write_bytes(content)
    assert (tmp_path / "cheat").stat().st_size > (tmp_path / "good").stat().st_size + 20_000
    assert challenge.encode(challenge.read(tmp_path / "cheat")) == challenge.encode(challenge.read(tmp_path / "good"))


def nan_scale(fields, tensors):
    tensors["conv.weight.scale"][0] = float("nan")


def infinite_bias(fields, tensors):
    tensors["fc.bias"][3] = float("inf")


def another_shape(fields, tensors):
    fields["codes"][0]["shape"] = [10**6, 10**6]


def more_codes(fields, tensors):
    tensors["conv.weight.codes"] = torch.zeros(10**5, dtype=torch.uint8)


def one_more(fields, tensors):
    tensors["hidden.bias"] = torch.zeros(3)


def one_less(fields, tensors):
    del tensors["fc.bias"]


def twice(fields, tensors):
    tensors["conv.weight"] = torch.zeros(32, 1, 3, 3)


BROKEN = [(nan_scale, "scale is not finite"), (infinite_bias, "fc.bias is"), (another_shape, "has the shape"),
          (more_codes, "codes of 8 bits"), (one_more, "hidden.bias has the shape"), (one_less, "it lacks fc.bias"),
          (twice, "conv.weight has the shape")]


@pytest.mark.parametrize(("change", "said"), BROKEN, ids=[change.__name__ for change, _ in BROKEN])
def test_files_that_decode_to_something_else_are_refused(handed_in, tmp_path, change, said):
    (tmp_path / "file").write_bytes(changed(handed_in, change))
    with pytest.raises(ValueError, match=said):
        challenge.read(tmp_path / "file")


def test_hidden_images_are_the_seeds_and_no_test_images(hidden):
    again, other = (challenge_images.make(seed, test=120, control=60) for seed in ("a seed", "another"))
    assert torch.equal(hidden.pixels, again.pixels) and torch.equal(hidden.labels, again.labels)
    assert not torch.equal(hidden.pixels, other.pixels)
    assert hidden.pixels.shape == (180, 1, 28, 28) and int(hidden.from_test.sum()) == 120 and len(set(hidden.labels.tolist())) == 10
    with pytest.raises(ValueError, match="at least one image"):
        challenge_images.make("a seed", test=0, control=0)


# Hand-ins, measured in the sandbox

CHEATS = {
    "reads the labels": "from qlab.lab import data\ndef predict(pixels):\n    return data.load('test').labels[:len(pixels)]\n",
    "loads the zoo": "from qlab.lab import zoo\nnet = zoo.load('resnet')\ndef predict(pixels):\n    return [0] * len(pixels)\n",
    "reads the clock": "import time\ndef predict(pixels):\n    return [time.time_ns() // 1000 % 10 for _ in pixels]\n",
    "works elsewhere": "import os\ndef predict(pixels):\n    os.fork()\n    return [0] * len(pixels)\n",
    "sends a thread": "import threading\ndef predict(pixels):\n    threading.Thread(target=print).start()\n    return [0] * len(pixels)\n",
    "does not end": "import os\nos._exit = print\ndef predict(pixels):\n    return [0] * len(pixels)\n",
    "answers nonsense": "def predict(pixels):\n    return ['T-shirt'] * len(pixels)\n",
    "leaves": "import sys\ndef predict(pixels):\n    sys.exit(0)\n",
}


@pytest.fixture(scope="module")
def box():
    with measure.sandboxed(1) as mark:
        yield mark


def files(**given):
    return [{"name": name.replace("__", "."), "data": data.encode() if isinstance(data, str) else data} for name, data in given.items()]


def track(marks, name):
    return next(question for question in marks["questions"] if question["id"] == name)


@sandbox
def test_weights_are_measured_as_the_network_itself_is(box, small, hidden, handed_in, net, tmp_path):
    marks = box(files(weights__safetensors=handed_in, alias__txt="Ada L.\nsecond line"), small)
    (tmp_path / "w").write_bytes(handed_in)
    own = challenge.predict(challenge.network(challenge.encode(challenge.read(tmp_path / "w"))), hidden.pixels) == hidden.labels
    got, n = track(marks, "weights"), 120
    right = np.unpackbits(np.frombuffer(bytes.fromhex(got["measured"]["right"]), np.uint8))[:n].astype(bool)
    assert (right == own[hidden.from_test].numpy()).all() and got["score"] == round(100 * int(right.sum()) / n, 2) > 50
    assert got["measured"]["bytes"] == challenge.true_bytes(tmp_path / "w") and not got["measured"]["learned"]
    assert track(marks, "speed")["state"] == "missing" and marks["score"] == got["score"] and marks["alias"] == "Ada L."
    tight = small | {"tracks": small["tracks"] | {"weights": {"bytes": got["measured"]["bytes"] - 1}}}
    over = track(box(files(weights__safetensors=handed_in), tight), "weights")
    assert over["score"] == 0 and "are allowed" in over["reason"]


@sandbox
def test_a_file_that_is_none_gets_nothing_and_is_told_why(box, small, handed_in):
    for content, said in ((changed(handed_in, nan_scale), "scale is not finite"), (b"PK\x03\x04", "not a safetensors file"),
                          (handed_in[:-9] + bytes(9), "wrong checksum")):
        got = track(box(files(weights__safetensors=content), small), "weights")
        assert (got["score"], got["state"]) == (0, "error") and said in got["reason"]


@sandbox
def test_predict_runs_within_its_limits(box, small, hidden):
    code = "import torch\ntable = torch.load('model.bin')\ndef predict(x):\n    return table.argmax() + torch.zeros(len(x)).long()\n"
    stream = io.BytesIO()
    torch.save(torch.tensor([0.0, 1.0, 0.5]), stream)
    got = track(box(files(predict__py=code, model__bin=stream.getvalue()), small), "speed")
    assert got["score"] == round(100 * (hidden.labels[hidden.from_test] == 1).float().mean().item(), 2)
    assert got["measured"]["bytes"] == len(code) + len(stream.getvalue()) and 0 < got["measured"]["ms"]
    slow = small | {"tracks": small["tracks"] | {"speed": {"bytes": 100_000, "ms": got["measured"]["ms"] / 1e6}}}
    assert "are allowed" in track(box(files(predict__py=code, model__bin=stream.getvalue()), slow), "speed")["reason"]
    large = code + "#" * 100_000
    assert "100," in track(box(files(predict__py=large), small), "speed")["reason"]


@sandbox
@pytest.mark.parametrize("cheat", CHEATS)
def test_predict_that_cheats_gets_what_it_deserves(box, small, hidden, cheat):
    got = track(box(files(predict__py=CHEATS[cheat]), small), "speed")
    if cheat == "reads the clock":
        assert got["score"] < 5 and "the two runs differ" in got["note"]
    else:
        assert got["score"] == 0, got


@sandbox
def test_the_processors_time_is_the_kernels_whatever_the_clocks_of_python_say(box, small):
    work = "import time\ntime.process_time = time.perf_counter = lambda: 0\ndef predict(x):\n    sum(range({}))\n    return [0] * len(x)\n"
    short, long = (track(box(files(predict__py=work.format(n)), small), "speed")["measured"]["ms"] for n in (10, 10_000_000))
    assert long > 2 * short


def test_a_table_of_the_test_images_finds_no_hidden_one_again(hidden):
    pixels = (255 * (images_of.load("test").images * images_of.STD + images_of.MEAN)).round().to(torch.uint8)
    table = {image.tobytes() for image in pixels.numpy()}
    assert len(table) > 9000 and not [image for image in hidden.pixels.numpy() if image.tobytes() in table]


def test_who_learned_the_labels_of_test_images_has_the_score_of_the_control(small):
    labels, of_test = np.array(small["labels"]), np.array(small["from_test"])
    answers = np.where(of_test, labels, (labels + (np.arange(len(labels)) % 2)) % 10)
    got = measure._scored(answers, small, {"bytes": 1}, "1 byte")
    right, n = got["measured"]["control"]
    assert got["measured"]["learned"] and got["score"] == round(100 * right / n, 2) < 70 and "has learned labels" in got["note"]
    assert "learned" not in got["reason"] and not measure._scored(labels, small, {"bytes": 1}, "")["measured"]["learned"]


# What is handed in


@functools.cache
def bomb():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.safetensors", bytes(120 * 2**20))
    return stream.getvalue()


def zipped(**given):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in files(**given):
            archive.writestr(f"work/{one['name']}", one["data"])
    return stream.getvalue()


def read(place, assignment="challenge"):
    return {one.student: one for entry in ingest.hand_ins(place, assignment) for one in Files(entry).read()}


def test_files_are_found_in_folders_and_zips_and_bombs_are_refused(tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "predict.py").write_text("x = 1")
    (tmp_path / "ada" / "alias.txt").write_text("A")
    (tmp_path / "bob.zip").write_bytes(zipped(predict__py="y = 2", model__bin=b"12"))
    (tmp_path / "cyd.zip").write_bytes(bomb())
    (tmp_path / "dan.zip").write_bytes(zipped(model__bin=bytes(2**20 + 1), notes__txt="hello"))
    (tmp_path / "eve").mkdir()
    os.symlink(tmp_path / "ada" / "predict.py", tmp_path / "eve" / "predict.py")
    found = read(tmp_path)
    assert [cell["name"] for cell in found["ada"].cells] == ["predict.py", "alias.txt"]
    assert [cell["data"] for cell in found["bob"].cells] == [b"y = 2", b"12"] and not found["bob"].status
    for name in ("cyd", "dan", "eve"):
        assert found[name].status == "unreadable" and not found[name].cells, found[name]
    assert "zip bomb" in found["cyd"].reason or "are allowed" in found["cyd"].reason
    assert "links are not followed" in found["eve"].reason
    assert found["ada"].sha256 != found["bob"].sha256 and read(tmp_path)["bob"].sha256 == found["bob"].sha256


def test_of_two_files_of_one_name_the_newest_counts(tmp_path):
    for name, age in (("b", 100), ("a", 0), ("c", 50)):
        (tmp_path / "ada" / name).mkdir(parents=True)
        (tmp_path / "ada" / name / "predict.py").write_text(name)
        os.utime(tmp_path / "ada" / name / "predict.py", (1_700_000_000 - age, 1_700_000_000 - age))
    ada = read(tmp_path)["ada"]
    assert ada.cells == ({"name": "predict.py", "data": b"a"},) and ada.notes == ("predict.py is there more than once: the newest counts",)


@sandbox
def test_a_class_is_graded_three_times_alike_with_a_leaderboard(box, tmp_path, small, handed_in, monkeypatch, capsys):
    monkeypatch.setattr(measure, "sandboxed", lambda jobs: contextlib.nullcontext(box))
    monkeypatch.setattr(grade, "_bundles", lambda: [tmp_path / "bundles"])
    reference = tmp_path / "solutions" / "challenge" / "both"
    reference.mkdir(parents=True)
    (reference / "weights.safetensors").write_bytes(handed_in)
    (reference / "alias.txt").write_bytes((SOLUTIONS / "both" / "alias.txt").read_bytes())
    (reference.parent / "README.md").write_text("No hand-in.")
    place, bundle_file = tmp_path / "class", tmp_path / "bundles" / "challenge.json.gz"
    place.mkdir(), bundle_file.parent.mkdir()
    bundle_file.write_bytes(gzip.compress(json.dumps(small).encode()))
    (place / "ada.zip").write_bytes(zipped(weights__safetensors=handed_in, alias__txt="=Countess <b>"))
    (place / "bob.zip").write_bytes(zipped(weights__safetensors=handed_in, alias__txt="ada"))
    (place / "cyd.zip").write_bytes(bomb())
    (place / "dan.zip").write_bytes(zipped(weights__safetensors=handed_in, alias__txt="Reference: Both"))
    command = [str(place), "--assignment", "challenge", "--bundle", str(bundle_file), "--out", str(tmp_path / "out"), "--jobs", "1",
               "--export", "csv", "html", "leaderboard"]
    seen = []
    for _ in range(3):
        assert grade.main(command) == 0
        folder = tmp_path / "out" / "challenge"
        marks = {one["submission"]["student"]: one for path in folder.glob("*.json") for one in [json.loads(path.read_text())]}
        seen.append({name: {key: value for key, value in one.items() if key != "seconds"} for name, one in marks.items()})
        for path in folder.glob("ada*.json"):
            path.unlink()
    assert seen[0] == seen[1] == seen[2] and seen[0]["ada"]["score"] == seen[0]["bob"]["score"] > 50
    assert seen[0]["cyd"]["status"] == "unreadable" and seen[0]["cyd"]["score"] == 0
    page, table = ((folder / "export" / f"leaderboard.{kind}").read_text("utf-8-sig") for kind in ("html", "csv"))
    assert "&lt;b&gt;" in page and "bob" not in page and "1=" in page and "anonymous" in page
    assert "'=Countess <b>" in table and table.count("1=") == 3
    private = [line.split(",") for line in (folder / "teacher" / "leaderboard.csv").read_text("utf-8-sig").splitlines()]
    assert private[0] == ["student", "id", *table.splitlines()[0].split(",")] and {row[0]: row[4] for row in private[1:]} == {
        "ada": "'=Countess <b>", "bob": "anonymous", "dan": "anonymous", "both": "reference: both"}
    bar = next(row for row in private if row[0] == "both")
    assert bar[3] == "" and all(row[5:8] == bar[5:8] for row in private[1:])  # of the class's own images: the same file, the same score
    assert page.count('<tr class="soft">') == 1 and "reference: both" in page and not list(folder.glob("both*"))
    told = capsys.readouterr().out
    assert told.count("4 handed in by 4 students") == told.count("with 1 of 1 references; ") == 3
    with pytest.raises(ValueError, match="no --unsafe-local"):
        grade.main([*command[:-4], "--unsafe-local"])
    capsys.readouterr()


# The leaderboard


def result(student, right, alias="", part=None):
    packed = np.packbits(right).tobytes().hex()
    measured = {"bytes": 10, "images": len(right), "right": packed, "control": part or [1, 1], "learned": part is not None}
    return {"status": "graded", "submission": {"student": student, "id": student, "duplicate_of": None}, "alias": alias,
            "questions": [{"id": "weights", "score": 0, "measured": measured}, {"id": "speed", "score": 0}]}


def test_the_tests_and_intervals_are_those_of_the_course():
    for a, b in ((0, 6), (5, 5), (130, 88), (0, 0), (3, 400), (2400, 2500)):
        assert board.mcnemar(a, b) == pytest.approx(significance.McNemar(n=5000, a_only=a, b_only=b).p, rel=1e-9)
    for k, n in ((0, 10), (10, 10), (4321, 5000)):
        assert measure.wilson(k, n) == pytest.approx(significance.wilson(k, n), abs=1e-12)


def test_ranks_are_how_many_are_better_and_ties_are_shown(small):
    rng = np.random.default_rng(0)
    good = rng.random(2000) < 0.92
    nearly, bad = good.copy(), good & (rng.random(2000) < 0.9)
    nearly[:5] ^= True
    made = [result("ada", good, "one"), result("bob", nearly, "two"), result("cyd", bad, "three"), result("dan", good, part=[50, 100])]
    rows = [row for row in board.rows(made, small) if row["track"] == "weights"]
    ranks = {row["name"]: row["rank"] for row in rows}
    assert ranks == {"one": "1=", "two": "1=", "three": "3", "anonymous": "4"}
    assert rows[-1]["score"] == 50 and rows[-1]["low"] == pytest.approx(100 * significance.wilson(50, 100)[0], abs=0.01)


def test_nobody_bears_another_ones_name(small):
    right = np.ones(100, bool)
    made = [result("ada", right, "Bob"), result("bob", right, "bob"), result("cyd", right, "X"), result("dan", right, "x")]
    made.append(result("eve", right))
    assert [row["name"] for row in board.rows(made, small)] == ["anonymous"] * 5
    assert [row["name"] for row in board.rows(made[1:3], small)] == ["X", "bob"]


def test_references_are_bars_and_change_nobodys_rank(small):
    rng = np.random.default_rng(0)
    good = rng.random(2000) < 0.92
    made = [result("ada", good, "one"), result("bob", good & (rng.random(2000) < 0.9), "two"), result("cyd", good, "reference: good")]
    bars = [result("good", good, "reference: good"), result("best", good | True, "reference: best")]
    found, alone = board.rows(made, small, bars), board.rows(made, small)
    assert [(row["name"], row["rank"]) for row in found] == [("reference: best", ""), ("anonymous", "1="), ("one", "1="),
                                                             ("reference: good", ""), ("two", "3")]
    assert {row["id"]: row["rank"] for row in alone} == {row["id"]: row["rank"] for row in found if row["rank"]}
    assert board.rows([], small, [bars[0] | {"status": "not graded"}]) == []


def test_the_references_are_within_the_limits_and_their_page_says_what_was_measured():
    record = json.loads((SOLUTIONS / "references.json").read_text())
    page = (SOLUTIONS / "README.md").read_text()
    rows = {row["name"]: row for row in record["rows"]}
    assert record["images"] == 5000 and list(rows) == ["both", "adaround", "allocation", "speed"]
    for name, row in rows.items():
        files = {path.name: path for path in (SOLUTIONS / name).iterdir()}
        alias = files.pop("alias.txt")
        if row["track"] == "weights":
            assert challenge.true_bytes(files["weights.safetensors"]) == row["bytes"] <= challenge.BUDGET == bundle.WEIGHTS_BYTES
        else:
            assert sum(path.stat().st_size for path in files.values()) == row["bytes"] <= bundle.SPEED_BYTES and row["ms"] < bundle.SPEED_MS
        told = f"| {row['score']:.2f} % [{row['low']:.1f}, {row['high']:.1f}] | {row['bytes']:,} |"
        assert told in next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert alias.read_text() == f"reference: {name}\n"
    assert f'the seed "{record["seed"]}"' in page and "those of another seed" in page
    assert [rows[name]["rank"] for name in ("both", "adaround", "allocation")] == ["1", "2", "3"]


@sandbox
def test_the_bundle_is_made_by_a_process_of_its_own_and_written_for_its_owner_alone(hidden, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "make", functools.partial(bundle.make, test=120, control=60))
    assert build.build(tmp_path, ["challenge"], "a seed", report=lambda told: None) == []
    path = tmp_path / "bundles" / "challenge.json.gz"
    made = grade.load_bundle(path)
    assert (values.decode(made["pixels"]) == hidden.pixels.numpy()).all() and made["labels"] == hidden.labels.tolist()
    assert made["from_test"] == hidden.from_test.tolist() and path.stat().st_mode & 0o77 == 0 and "a seed" not in json.dumps(made)
