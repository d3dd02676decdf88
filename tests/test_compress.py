"""Deep Compression: the centroids' gradient against the paper's formula, the file against everything that can happen to it, the records."""

import copy
import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from qlab.lab import data, measure, runs, zoo
from qlab.lab.experiments import compression
from qlab.nets import compress, container, huffman, prune
from qlab.nets.models import MODELS


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 3))


def batch(n=64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, 4, 4, generator=generator)
    return images, (images.flatten(1).sum(1) > 0).long() + (images[:, 0, 0, 0] > 1).long()


@pytest.fixture
def small():
    """A network with shared weights in it, and the shared weights."""
    model = network()
    masks = prune.magnitude(model, 0.6)
    shared = compress.share(model, masks, bits={"0": 3, "4": 4, "6": 2})
    compress.apply(model, shared)
    return model, shared


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_gradient_of_a_centroid_is_equation_3(small):
    model, shared = small
    x, y = batch()
    layer = dataclasses.replace(shared["4"], codebook=shared["4"].codebook.clone().requires_grad_(True))
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, {"4.weight": layer.weight()}, (x,)), y)
    loss.backward()
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    by_weight, codes = model[4].weight.grad.numpy(), shared["4"].codes.numpy()
    formula = [sum(by_weight[i, j] for i in range(30) for j in range(16) if codes[i, j] == k + 1) for k in range(len(layer.codebook))]
    np.testing.assert_allclose(layer.codebook.grad, formula, rtol=1e-4, atol=1e-7)
    assert np.abs(formula).max() > 1e-4


def test_sharing_is_kmeans_of_what_the_mask_keeps():
    model = network()
    masks = prune.magnitude(model, 0.5)
    before = copy.deepcopy(model)
    shared = compress.share(model, masks, bits=2)
    assert same(model, before)
    for name, layer in shared.items():
        weight, mask = model.get_submodule(name).weight.detach(), masks[name]
        assert torch.equal(layer.codes != 0, mask) and torch.equal(layer.weight() != 0, mask)
        assert len(layer.codebook) <= 4 and sorted(layer.codes.unique().tolist())[-1] == len(layer.codebook)
        nearest = (weight[mask][:, None] - layer.codebook).abs().argmin(1) + 1
        assert torch.equal(layer.codes[mask].long(), nearest)
        means = torch.stack([weight[layer.codes == k + 1].mean() for k in range(len(layer.codebook))])  # Lloyd's iteration has ended
        torch.testing.assert_close(layer.codebook, means)


def test_centroids_without_weights_are_left_out():
    net = nn.Sequential(nn.Linear(5, 1))
    net[0].weight.data = torch.tensor([[-1.0, -0.9, 7.0, 0.0, 6.9]])
    shared = compress.share(net, {"0": net[0].weight != 0}, bits=3)["0"]
    assert 2 <= len(shared.codebook) < 8 and set(shared.codes[shared.codes > 0].tolist()) == set(range(1, len(shared.codebook) + 1))


def test_fine_tuning_lowers_the_loss_keeps_codes_and_zeros_and_repeats_itself(small):
    model, shared = small
    x, y = batch(256)
    results, before = [], nn.functional.cross_entropy(model.eval()(x), y).item()
    for _ in range(2):
        trained = copy.deepcopy(model)
        after = compress.fine_tune(trained, shared, x, y, epochs=20, max_lr=0.2, seed=3)
        results.append((trained, after))
    assert same(results[0][0], results[1][0])
    trained, after = results[0]
    assert nn.functional.cross_entropy(trained(x), y).item() < 0.8 * before
    for name, layer in after.items():
        assert torch.equal(layer.codes, shared[name].codes) and not torch.equal(layer.codebook, shared[name].codebook)
        weight = trained.get_submodule(name).weight
        assert torch.equal(weight, layer.weight()) and not weight[layer.codes == 0].any()
        assert len(weight.unique()) <= len(layer.codebook) + 1
    assert not torch.equal(trained[4].bias, model[4].bias)
    assert not after["4"].codebook.requires_grad


def test_the_file_gives_back_exactly_what_was_saved(small, tmp_path):
    model, shared = small
    size = compress.save(tmp_path / "net.qlab", model, shared)
    again = compress.load(tmp_path / "net.qlab", network())
    assert same(model, again) and not again.training
    parts = compress.parts(tmp_path / "net.qlab")
    assert sum(part.nbytes for part in parts) == size == (tmp_path / "net.qlab").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["net.qlab"]
    held = compress.load_shared(tmp_path / "net.qlab", network())
    assert list(held) == list(shared)
    assert all(torch.equal(held[k].codes, shared[k].codes) and torch.equal(held[k].codebook, shared[k].codebook) for k in held)
    found = {(part.tensor, part.part): part.nbytes for part in parts}
    layer = shared["4"]
    assert found["4.weight", "codebook"] == 4 * len(layer.codebook) and found["4.bias", "as it is"] == 4 * 30
    best = container.relative(layer.codes, len(layer.codebook))
    assert found["4.weight", "codes"] == len(huffman.encode(best.kept, best.code_lengths)) == best.sizes["codes"]
    assert found["4.weight", "gaps"] == len(huffman.encode(best.gaps, best.gap_lengths)) == best.sizes["gaps"]


@settings(max_examples=60)
@given(codes=arrays.arrays(np.int32, arrays.array_shapes(max_dims=4, max_side=12), elements=st.sampled_from([0] * 6 + [1, 2, 3, 7])))
def test_any_codes_come_back(codes):
    codes, codebook = torch.from_numpy(codes), torch.linspace(-1, 1, 7)
    content = container.pack({"w": (codes, codebook), "b": torch.tensor(2.5)})
    found = container.unpack(content, {"w": tuple(codes.shape), "b": ()})
    assert torch.equal(found["w"][0], codes) and torch.equal(found["w"][1], codebook) and found["b"] == 2.5
    assert sum(part.nbytes for part in container.parts(content)) == len(content)


@pytest.mark.parametrize("bits", range(9))
def test_every_width_of_the_gaps_holds_the_same_codes_and_the_best_is_chosen(bits):
    codes = torch.from_numpy(np.random.default_rng(0).choice(5, 2000, p=(0.9, 0.04, 0.03, 0.02, 0.01)))
    stored, best = container.relative(codes, 4, bits), container.relative(codes, 4)
    assert sum(best.sizes.values()) <= sum(stored.sizes.values())
    assert stored.sizes["codes"] == len(huffman.encode(stored.kept, stored.code_lengths))
    assert stored.sizes["gaps"] == len(huffman.encode(stored.gaps, stored.gap_lengths))
    if bits:
        assert torch.equal(container.sparse.from_relative(stored.gaps, stored.kept, 2000), codes)


@pytest.mark.parametrize("masked", ["everything", "nothing"])
def test_a_layer_that_is_all_there_or_all_gone(masked, tmp_path):
    model = network()
    masks = {"4": torch.full((30, 16), masked == "nothing")}
    shared = compress.share(model, masks, bits=4)
    compress.apply(model, shared)
    compress.save(tmp_path / "net.qlab", model, shared)
    assert same(model, compress.load(tmp_path / "net.qlab", network()))


def test_a_bare_layer(tmp_path):
    model = nn.Linear(20, 5)
    shared = compress.share(model, prune.magnitude(model, 0.5), bits=2)
    shared = compress.fine_tune(model, shared, torch.randn(8, 20), torch.arange(8) % 5, 1, 0.01)
    compress.save(tmp_path / "layer.qlab", model, shared)
    assert same(model, compress.load(tmp_path / "layer.qlab", nn.Linear(20, 5)))


def test_every_damaged_byte_and_every_cut_is_refused(small, tmp_path):
    model, shared = small
    content = compress.encode(model, shared)
    untouched, state = network(), copy.deepcopy(network().state_dict())
    for at in range(0, len(content), 7):
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="damaged|no compressed network|version"):
            compress.decode(bytes(broken), untouched)
    for length in range(0, len(content), 53):
        with pytest.raises(ValueError, match="damaged|no compressed network"):
            compress.decode(content[:length], untouched)
    with pytest.raises(ValueError, match="damaged"):
        compress.decode(content + b"\0", untouched)
    assert all(torch.equal(a, b) for a, b in zip(untouched.state_dict().values(), state.values()))
    (tmp_path / "broken.qlab").write_bytes(content[:-1])
    for read in (compress.parts, lambda path: compress.load(path, untouched), lambda path: compress.load_shared(path, untouched)):
        with pytest.raises(ValueError, match=r"broken.qlab: the file is damaged or cut off \(wrong checksum\).$"):
            read(tmp_path / "broken.qlab")


def test_damage_behind_a_valid_checksum_is_refused_too(small):
    """Whoever writes such a file by a program gets one sentence as well, never a traceback of another kind."""
    content, rng = compress.encode(*small)[:-4], np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(content)
        at = rng.integers(len(broken))
        broken[at] ^= int(rng.integers(1, 256))
        try:
            compress.decode(bytes(broken) + struct.pack("<I", zlib.crc32(broken)), network())
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


def test_foreign_files_and_other_networks_are_refused(small, tmp_path):
    model, shared = small
    path = tmp_path / "net.qlab"
    compress.save(path, model, shared)
    with pytest.raises(ValueError, match="another network: it holds 4.weight of shape .30, 16., and the model has shape .31, 16."):
        wider = network()
        wider[4] = nn.Linear(16, 31)
        compress.load(path, wider)
    with pytest.raises(ValueError, match="another network: it lacks extra.bias, extra.weight"):
        more = network()
        more.add_module("extra", nn.Linear(2, 2))
        compress.load(path, more)
    with pytest.raises(ValueError, match="another network: it holds 0.weight"):
        compress.load(path, nn.Sequential())
    for foreign in (b"", b"PK\3\4 some archive", zoo.FOLDER.joinpath("cnn.json").read_bytes()):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="this is no compressed network"):
            compress.load(path, network())
    with pytest.raises(FileNotFoundError, match="cannot read"):
        compress.load(tmp_path / "none.qlab", network())
    with pytest.raises(FileNotFoundError, match="cannot write .*: name a place that exists, for there is no folder"):
        compress.save(tmp_path / "no" / "net.qlab", model, shared)
    newer = bytearray(compress.encode(model, shared)[:-4])
    newer[7] = 2
    with pytest.raises(ValueError, match="version 2, and this program reads version 1"):
        compress.decode(bytes(newer) + struct.pack("<I", zlib.crc32(newer)), network())


def test_what_does_not_fit_is_refused(small):
    model, shared = small
    fresh = network()
    with pytest.raises(ValueError, match="call compress.apply"):
        compress.encode(fresh, shared)
    with pytest.raises(ValueError, match="there is no layer 'fc': the layers are 0, 4, 6"):
        compress.share(fresh, {"fc": torch.ones(2) > 0})
    with pytest.raises(ValueError, match="must be float32 and bool, of one shape"):
        compress.share(fresh, {"4": torch.ones(30, 16)})
    with pytest.raises(ValueError, match="bits is 0, and must be a whole number from 1 to 12"):
        compress.share(fresh, prune.magnitude(fresh, 0.5), bits=0)
    with pytest.raises(ValueError, match="bits names 0, and must name the layers that have masks: 0, 4, 6"):
        compress.share(fresh, prune.magnitude(fresh, 0.5), bits={"0": 3})
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="0 and 1 have one weight in common"):
        compress.share(tied, prune.magnitude(tied, 0.5))
    with pytest.raises(ValueError, match="w is torch.complex64"):
        container.pack({"w": torch.zeros(2, dtype=torch.complex64)})


def test_stages_by_hand():
    """Eight weights, three of them left, after gaps of 1, 0 and 4 zeros."""
    model = nn.Linear(8, 1)
    codes = torch.tensor([[0, 1, 2, 0, 0, 0, 0, 2]], dtype=torch.int32)
    stages = compress.stages(model, {"": compress.Shared(codes, torch.tensor([-0.5, 0.5]))})
    assert stages["pruned"] == {"values": 12, "gaps": 2, "biases": 4}   # 3 float32, 3 gaps of 3 bits
    assert stages["shared"] == {"codes": 2, "gaps": 0, "codebook": 8, "biases": 4}   # eight 2-bit codes are fewer bytes than 3 and gaps
    assert stages["huffman"]["codebook"] == 8 and stages["huffman"]["biases"] == 4


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_the_committed_file_keeps_the_promise(name):
    record, path = runs.load(f"compression_{name}"), compression.file_of(name)
    size = path.stat().st_size
    parts = compress.parts(path)
    assert size == record["nbytes"] == sum(part.nbytes for part in parts) and [list(part) for part in parts] == record["parts"]
    model = zoo.load(name)
    assert record["float_nbytes"] == measure.size_bytes(model) and record["float_sha256"] == zoo.record(name)["sha256"]
    assert record["float_nbytes"] / size >= 35
    arms = {arm: entry["test"]["result"] for arm, entry in record["arms"].items()}
    assert set(arms) == {"float", "pruned", "clustered", "file", "control"}
    assert arms["file"].n == 10_000 and arms["file"].value >= arms["float"].value - 0.005
    assert int(arms["float"].correct.sum()) == pytest.approx(zoo.record(name)["test_correct"], abs=3)

    network = compress.load(path, MODELS[name]())
    images, labels = data.load("test")
    again = measure.accuracy(network, data.Split(images[:500], labels[:500])).correct
    assert (again != arms["file"].correct[:500]).sum() <= 2                                 # another CPU rounds otherwise
    weights = torch.cat([p.flatten() for key, p in network.named_parameters() if key.endswith("weight")])
    assert (weights != 0).double().mean().item() == pytest.approx(record["density"], abs=1e-4)
    assert len(network.fc1.weight.unique()) <= 2 ** record["chosen"]["bits"][1] + 1


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_the_settings_were_chosen_on_validation_images_by_the_stated_rule(name):
    record, found = runs.load(f"compression_search_{name}"), runs.load(f"compression_{name}")
    assert '"test"' not in json.dumps(runs.raw(f"compression_search_{name}"))
    fitting = [row for row in record["rows"] if compression.TIMES * row["nbytes"] <= record["float"]["nbytes"]]
    best = min(fitting, key=lambda row: (-row["validation"]["correct"], row["nbytes"]))
    assert record["chosen"] == {"density": best["density"], "bits": best["bits"]} == found["chosen"]
    train, held = compression.halves()
    assert len(train.labels) == 50_000 and len(held.labels) == 10_000


def test_the_orders_are_compared_at_equal_size():
    record = runs.load("compression_orders")
    best = {(row["budget"], row["order"]): row["best"] for row in record["rows"]}
    assert len(best) == 8
    for (budget, order), entry in best.items():
        if entry is None:
            assert (budget, order) == (16_000, "share")                                     # a bit a weight is the least there is
        else:
            assert 0.95 * budget <= entry["nbytes"] <= 1.01 * budget
    for budget in record["budgets"]:
        first = best[budget, "prune, share"]["test"]["result"]
        for order in ("share, prune", "prune"):
            pair = measure.mcnemar(best[budget, order]["test"]["result"], first)
            assert pair.significant and pair.difference > 0


def test_training_the_centroids_pays_where_there_are_four_and_does_no_harm_elsewhere():
    rows = {(r["bits"], r["start"]): r for r in runs.load("compression_sharing")["rows"]}
    assert set(rows) == {(bits, start) for bits in compression.SHARING["bits"] for start in compression.SHARING["starts"]}
    for (bits, _), row in rows.items():
        pair = measure.mcnemar(row["before"]["result"], row["after"]["result"])
        assert pair.significant and pair.difference > 0 if bits == 2 else pair.low > -0.005
        assert rows[bits, "optimal"]["mse"] <= 1.0001 * row["mse"]


def named(name, tensor=None):
    model = nn.Module()
    model.register_buffer(name, torch.zeros(2) if tensor is None else tensor)
    return model


@pytest.mark.parametrize("model, said", [
    (named("x" * 256), "the name 'xxxxx.*cannot be stored: a name has at most 255 bytes"),
    (named("é" * 128), "cannot be stored"), (named("a\nb"), "'a.nb' cannot be stored"), (named("a\ud800"), "cannot be stored"),
    (named("w", torch.zeros([1] * 256)), "w has 256 dimensions"), (named("w", torch.zeros(0, 2**32)), "w has 2 dimensions and 0 elements"),
    (named("w", torch.zeros(1).expand(2**32)), "w has 1 dimensions and 4294967296 elements"),
    (named("w", torch.zeros(2, dtype=torch.bool)), "w is torch.bool"), (named("w", torch.zeros(2).to_sparse()), "w is .* sparse"),
    (named("w", torch.zeros(2, device="meta")), "w is on the meta device"),
])
def test_what_a_file_has_no_place_for_is_refused_by_name(model, said):
    with pytest.raises(ValueError, match=said) as error:
        compress.encode(model, {})
    assert "\n" not in str(error.value)


def test_the_largest_names_and_counts_that_fit_come_back():
    model = nn.Module()
    for i in range(1000):
        model.register_buffer(f"b{i}", torch.tensor(float(i)))
    model.register_buffer("n" * 255, torch.arange(6, dtype=torch.float64).view(2, 3).T)     # not contiguous
    model.register_buffer("empty", torch.zeros(0, 2**32 - 1))
    model.register_buffer("scalar", torch.tensor(7))
    model.register_buffer("many", torch.ones([1] * 64))
    again = copy.deepcopy(model)
    for tensor in again.buffers():
        tensor.zero_()
    assert same(model, compress.decode(compress.encode(model, {}), again))
    with pytest.raises(ValueError, match="the network has 65536 tensors, and a file holds at most 65535"):
        container.pack({str(i): torch.zeros(()) for i in range(65536)})


@pytest.mark.parametrize("codes, codebook, said", [
    (torch.tensor([0, 3]), torch.zeros(2), "codes of w run from 0 to 3, and must run from 0 to 2"),
    (torch.tensor([-1, 2]), torch.zeros(2), "codes of w run from -1 to 2"),
    (torch.zeros(2), torch.zeros(2), "codes of w are torch.float32"),
    (torch.tensor([0, 1]), torch.zeros(2, dtype=torch.float64), "codebook of w is torch.float64"),
    (torch.tensor([0, 1]), torch.zeros(4097), "at most 4096 centroids"),
])
def test_codes_and_codebooks_that_are_none_are_refused(codes, codebook, said):
    with pytest.raises(ValueError, match=said):
        container.pack({"w": (codes, codebook)})


def test_empty_and_transposed_codes_come_back():
    for codes in (torch.zeros(0, 5, dtype=torch.int32), torch.tensor([[0, 1], [2, 0], [0, 0]], dtype=torch.int32).T):
        found = container.unpack(container.pack({"w": (codes, torch.tensor([-1.0, 1.0]))}), {"w": tuple(codes.shape)})
        assert torch.equal(found["w"][0], codes)


def pruned():
    return nn.utils.prune.random_unstructured(nn.Linear(6, 4), "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("make", [
    pruned, lambda: nn.utils.weight_norm(nn.Linear(6, 4)), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
    lambda: nn.utils.spectral_norm(nn.Linear(6, 4)), lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)),
])
def test_a_weight_that_is_recomputed_is_refused_by_name(make):
    model = nn.Sequential(nn.ReLU(), make())
    shared = {"1": compress.Shared(torch.zeros(4, 6, dtype=torch.int32), torch.zeros(1))}
    for call in (lambda: compress.share(model, {"1": torch.ones(4, 6) > 0}), lambda: compress.encode(model, shared),
                 lambda: compress.apply(model, shared)):
        with pytest.raises(ValueError, match="the weight of 1 is computed anew in each forward.*make it a parameter first"):
            call()


@pytest.mark.parametrize("tie", [lambda layer, other: setattr(other, "weight", layer.weight),
                                 lambda layer, other: setattr(other.weight, "data", layer.weight.data)])
def test_a_weight_that_an_embedding_shares_is_refused_by_name(tie):
    model = nn.ModuleDict({"table": nn.Embedding(4, 6), "head": nn.Linear(6, 4)})
    tie(model["head"], model["table"])
    with pytest.raises(ValueError, match="head and table have one weight in common"):
        compress.share(model, {"head": torch.ones(4, 6) > 0})


def test_what_layers_share_and_no_mask_names_comes_back_shared():
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
        model[1].weight = model[0].weight
        return model

    model = tied()
    shared = compress.share(model, {"2": torch.ones(2, 3) > 0}, bits=1)
    compress.apply(model, shared)
    again = compress.decode(compress.encode(model, shared), tied())
    assert same(model, again) and again[1].weight is again[0].weight
    untied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    target = tied()
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match="another network: 0.weight and 1.weight are one tensor in the model, and differ in it"):
        compress.decode(compress.encode(untied, {}), target)
    assert same(before, target)


def test_another_dtype_is_another_network():
    model = nn.Linear(3, 2)
    for other in (nn.Linear(3, 2).double(), nn.Linear(3, 2).half()):
        before = copy.deepcopy(other)
        with pytest.raises(ValueError, match="another network: weight is torch.float32 in it, and torch.float"):
            compress.decode(compress.encode(model, {}), other)
        assert same(before, other)
    with pytest.raises(ValueError, match="weight is on the meta device"):
        compress.decode(compress.encode(model, {}), nn.Linear(3, 2, device="meta"))


def test_bytes_after_the_last_tensor_and_a_name_twice_are_damage():
    content = container.pack({"w": torch.zeros(2)})[:-4]
    one = content[10:]
    for broken, said in ((content + b"\0", "1 bytes follow its last tensor"), (content[:8] + b"\2\0" + one + one, "holds w twice")):
        broken += struct.pack("<I", zlib.crc32(broken))
        with pytest.raises(ValueError, match=said):
            container.unpack(broken, {"w": (2,)})
