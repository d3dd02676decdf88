"""Quantization-aware training against torch's own quantized training module, its deployed form, and post-training quantization."""

import copy
import math
from collections import Counter

import integer_reference
import pytest
import torch
from torch import nn

from qlab.lab import data, runs, zoo
from qlab.lab.experiments import qat as experiment
from qlab.lab.measure import accuracy, over_seeds
from qlab.nets import integer, ptq, qat, training
from qlab.quant import linear


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def task(n=192):
    torch.manual_seed(0)
    y = torch.arange(n) % 3
    return torch.rand(n, 1, 8, 8) + y.view(-1, 1, 1, 1) * torch.linspace(0, 1, 8), y


def trained_net():
    net = small_net()
    training.fit(net, *task(), epochs=3, max_lr=0.1, batch_size=32)
    return net


def test_the_layer_is_torch_s_own_convolution_with_batch_norm_folded_in_training():
    from torch.ao.nn.intrinsic.qat import ConvBn2d
    from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver, QConfig
    weights = FakeQuantize.with_args(observer=PerChannelMinMaxObserver, quant_min=-7, quant_max=7, dtype=torch.qint8,
                                     qscheme=torch.per_channel_symmetric, ch_axis=0)
    torch.manual_seed(0)
    theirs = ConvBn2d(2, 3, 3, bias=False, qconfig=QConfig(activation=torch.nn.Identity, weight=weights))
    theirs.bn.running_var.uniform_(0.5, 2), theirs.bn.weight.data.uniform_(-2, 2), theirs.bn.bias.data.uniform_(-1, 1)
    conv, bn = nn.Conv2d(2, 3, 3, bias=False), copy.deepcopy(theirs.bn)
    conv.weight.data.copy_(theirs.weight.data)
    ours = qat.QuantizedLayer(conv, bn, bits=4, axis=0, learned=False)
    x = torch.randn(4, 2, 6, 6)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.bn.running_mean, theirs.bn.running_mean)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_before_training_it_is_post_training_quantization(learned, axis):
    net, (x, _) = trained_net(), task()
    prepared = qat.prepare(net, x, 4, 4, axis=axis, learned=learned, ranges="minmax")

    def weights(w):
        mean = w.abs().mean() if axis is None else w.abs().flatten(1).mean(1)
        reach = 7 * 2 * mean / 7**0.5 if learned else None                                  # Esser et al. 2020, section 2.1
        return linear.quantize(w, 4, "symmetric", axis=axis, x_min=None if reach is None else -reach, x_max=reach)

    expected = ptq.quantize(net, x, weights, activation_bits=4, ranges="minmax").model(x)
    assert ((prepared(x) - expected).abs() < 1e-3).float().mean() > 0.99                    # where rounding ties, a whole step apart


@pytest.mark.parametrize("learned", [True, False])
def test_training_helps_repeats_itself_and_converts_to_integers(learned):
    net, (x, y) = trained_net(), task()

    def run():
        prepared = qat.prepare(net, x, 2, 3, learned=learned)
        before = training.hard_loss(prepared, x, y).item()
        losses = qat.train(prepared, x, y, epochs=4, max_lr=0.02, batch_size=32)
        return prepared, before, losses

    prepared, before, losses = run()
    assert training.hard_loss(prepared, x, y).item() < before and losses == run()[2]
    quantized = qat.convert(prepared)
    torch.testing.assert_close(quantized.model(x), prepared(x), rtol=1e-3, atol=1e-3)
    assert {q.bits for q in quantized.tensors.values()} == {2} and not any(isinstance(m, nn.BatchNorm2d) for m in quantized.model.modules())
    network = integer.convert(quantized, (1, 8, 8))
    codes, fake = integer_reference.run(quantized, x[:20])
    assert (network(x[:20]).numpy().astype(int) + 2 ** (fake.bits - 1) == codes).all()
    assert (network(x).argmax(1) == prepared(x).argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("learned, moving", [(True, False), (False, False), (False, True)])
def test_only_a_learned_scale_is_trained_and_ranges_move_when_told(learned, moving):
    net, (x, y) = trained_net(), task()
    prepared = qat.prepare(net, x, learned=learned, moving=moving)
    names = [n for n, _ in prepared.named_parameters() if n.endswith("scale")]
    assert len(names) == (3 + 4 if learned else 0)                                          # three weights, four tensors of activations
    before = {n: m.scale.detach().clone() for n, m in prepared.named_modules() if n.endswith("codes")}
    qat.train(prepared, x, y, epochs=1, max_lr=0.05, batch_size=32)
    assert all((prepared.get_submodule(n).scale != scale) == (learned or moving) for n, scale in before.items())


def test_a_moving_range_is_the_average_of_the_batches_extremes():
    """Jacob et al. 2018, section 3.1, and the scale and zero-point that linear.quantize makes of the range."""
    module = qat.AveragedActivations(4, -1.0, 2.0, momentum=0.9).train()
    low, high = -1.0, 2.0
    for batch in torch.randn(5, 40, generator=torch.Generator().manual_seed(0)):
        module(batch)
        low, high = 0.9 * low + 0.1 * batch.min().item(), 0.9 * high + 0.1 * batch.max().item()
    q = linear.quantize(batch, 4, "affine", x_min=low, x_max=high)
    torch.testing.assert_close(module.scale, q.scale)
    assert module.zero_point == q.zero_point
    torch.testing.assert_close(module.eval()(batch), q.dequantize())


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.nan, math.inf], [3e38, -3e38], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_a_finite_range_moves_none(bad, dtype):
    module, twin = (qat.AveragedActivations(4, -1.0, 2.0, momentum=0.9).train() for _ in range(2))
    good = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    for i, batch in enumerate(good):
        if i == 1:
            odd = torch.cat([batch.flatten(), torch.tensor(bad, dtype=dtype)]) if bad else batch[:0]
            assert module(odd).shape == odd.shape
        module(batch), twin(batch)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), twin.buffers())) and module.range.isfinite().all()


@pytest.mark.parametrize("learned, moving", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("mode", [True, False])
def test_an_empty_batch_gives_empty_results_and_moves_nothing(learned, moving, mode):
    x, _ = task()
    for net, images in ((small_net(), x), (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x), (nn.Linear(8, 3), x[:, 0, 0])):
        prepared = qat.prepare(net, images, learned=learned, moving=moving).train(mode)
        before = copy.deepcopy(prepared.state_dict())
        y = prepared(images[:0])
        assert y.shape == (0, 3) and y.shape == ptq.quantize(net, images).model(images[:0]).shape
        y.sum().backward()
        assert all(torch.equal(before[key], tensor) for key, tensor in prepared.state_dict().items())
        assert all(p.grad is None or (p.grad == 0).all() for p in prepared.parameters())


@pytest.mark.parametrize("said", ["input_1_codes.scale", "_7_codes.scale", "0.layer.weight", "3.layer.bias", "3.bn.running_var",
                                  "0.bn.weight", "7.layer.bias", "7.quantizer.scale"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_converted(said, bad):
    prepared = qat.prepare(small_net(), task()[0])
    prepared.state_dict()[said].view(-1)[0] = bad
    with pytest.raises(ValueError, match=f"^{said} holds NaN or infinity, and must be finite: prepare the network again"):
        qat.convert(prepared)


def test_what_is_not_finite_once_it_is_folded_is_not_converted():
    for change, said in ((lambda bn: (bn.weight.data.fill_(3e38), bn.running_var.zero_()), "0.folded weight holds NaN or infinity"),
                         (lambda bn: (bn.weight.data.fill_(1e30), bn.running_mean.fill_(3e38)), "the bias of 0, with batch norm folded")):
        prepared = qat.prepare(small_net(), task()[0])
        change(prepared.get_submodule("0").bn)
        with pytest.raises(ValueError, match=said):
            qat.convert(prepared)


def test_a_learned_scale_that_has_reached_0_converts_to_what_training_rounded_with():
    prepared, x = qat.prepare(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), task()[0]), task()[0]
    prepared.get_submodule("input_1_codes").scale.data.fill_(0)
    torch.testing.assert_close(qat.convert(prepared).model(x), prepared(x))


def test_the_gradient_of_a_scale_is_balanced():
    """Esser et al. 2020, section 2.2: 1 / sqrt(weights that share it * largest code)."""
    weight = torch.randn(6, 10)
    quantizer = qat.WeightQuantizer(weight, 4, 0, learned=True)
    quantizer(weight).sum().backward()
    plain = quantizer.scale.detach().clone().requires_grad_(True)
    qat.fake_quantize(weight, plain.view(-1, 1), 0, -7, 7).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, plain.grad / (10 * 7) ** 0.5)


def test_channels_that_batch_norm_has_switched_off_do_no_harm():
    net, (x, y) = trained_net(), task()
    with torch.no_grad():
        net[1].weight[0], net[1].running_var[1] = 0, 0
    prepared = qat.prepare(net, x)
    losses = qat.train(prepared, x, y, epochs=2, max_lr=0.01, batch_size=32)
    assert all(torch.isfinite(p).all() for p in prepared.parameters()) and losses[-1] < 1.2
    torch.testing.assert_close(qat.convert(prepared).model(x), prepared(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_the_zoo_s_filters_of_zeros_are_trained_and_converted(learned, axis):
    """Dead filters have no largest weight and no mean: their scale must still be one that can be divided by."""
    net, (x, y) = zoo.load("depthwise"), data.calibration(64)
    assert (ptq.fold_batch_norm(net).block1.depthwise.weight.flatten(1) == 0).all(1).any()
    prepared = qat.prepare(net, x[:16], 8, 8, axis=axis, learned=learned, ranges="minmax")
    losses = qat.train(prepared, x, y, epochs=2, max_lr=0.01, batch_size=32, augment=zoo.augment)
    assert all(torch.isfinite(t).all() for t in (*prepared.parameters(), *prepared.buffers(), torch.tensor(losses)))
    quantized = qat.convert(prepared)
    assert ((quantized.model(x) - prepared(x)).abs() < 1e-2).float().mean() > 0.95          # where rounding ties, a whole step apart
    network = integer.convert(quantized)
    assert (network(x[:32]).argmax(1) == quantized.model(x[:32]).argmax(1)).float().mean() > 0.8


class Loop(nn.Module):
    """A layer that runs twice, a sum, no bias, a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.never = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 9)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.twice(x + self.twice(x))


def test_odd_networks_are_trained_and_converted():
    x, y = torch.rand(64, 4), torch.arange(64) % 4
    prepared = qat.prepare(Loop(), x, 4, 4)
    qat.train(prepared, x, y, epochs=1, max_lr=0.01)
    quantized = qat.convert(prepared)
    assert set(quantized.tensors) == {"first", "twice"}
    torch.testing.assert_close(quantized.model(x), prepared(x))
    network = integer.convert(quantized, (4,))
    assert (network.decode(network(x)) - prepared(x)).abs().max() < 0.5 * prepared(x).abs().max()


def test_the_trained_network_is_not_changed_by_prepare():
    net, (x, _) = trained_net(), task()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    prepared = qat.prepare(net.requires_grad_(False), x)
    assert all(p.requires_grad for p in prepared.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_errors_at_the_door():
    net, (x, _) = small_net(), task()
    for options, said in (({"weight_bits": 1}, "bits is 1"), ({"activation_bits": 16}, "bits is 16"), ({"axis": 1}, "axis is 1"),
                          ({"ranges": "best"}, "ranges is 'best'"), ({"moving": True}, "learned and moving are both True")):
        with pytest.raises(ValueError, match=said):
            qat.prepare(net, x, **options)
    with pytest.raises(ValueError, match="no calibration images"):
        qat.prepare(net, x[:0])


# The experiment


def test_a_run_writes_its_file_and_collect_makes_the_record_of_them(monkeypatch, tmp_path):
    few = {split: data.Split(*(part[:100] for part in data.load(split))) for split in ("train", "test")}
    monkeypatch.setattr(data, "load", few.get)
    monkeypatch.setattr(experiment, "EPOCHS", (1, 1))
    monkeypatch.setattr(experiment, "CALIBRATION_IMAGES", 4)
    monkeypatch.setattr(experiment, "CHOICE_IMAGES", 40)
    monkeypatch.setattr(experiment, "FINAL_IMAGES", 50)
    monkeypatch.setattr(ptq, "RANGES", ("minmax", "mse"))
    monkeypatch.setattr(experiment, "AXES", {"channel": 0})
    monkeypatch.setattr(experiment, "ROUNDINGS", {"channel": ("nearest", "gptq")})
    monkeypatch.setattr(experiment, "WEIGHTS", {"max": experiment.WEIGHTS["max"]})
    folder, into = tmp_path / "runs", tmp_path / "records"
    for name in ("control 32 0", "lsq-channel 4 0", "fixed-channel 2 1", "ptq 2 0"):
        experiment.main(["run", *name.split(), "--device", "cpu", "--folder", str(folder)])
    experiment.collect(folder, into)
    record = runs.load("qat", into)
    assert set(record["control"]) == {"0"} and {arm: list(of) for arm, of in record["arms"].items()} == {
        "lsq-channel": ["4"], "fixed-channel": ["2"]}
    found = record["ptq"]["2"]["channel"]
    tried = found["tried"]
    assert len(tried) == 16 and found["best"]["result"].n == 100 and found["nearest"]["rounding"] == "nearest"
    in_final = [entry for entry in tried if "correct_of_final" in entry]
    assert Counter(entry["rounding"] for entry in in_final) == {"nearest": 3, "gptq": 3}
    for name, among in (("best", in_final), ("nearest", [entry for entry in in_final if entry["rounding"] == "nearest"])):
        assert found[name].items() >= max(among, key=lambda entry: entry["correct_of_final"]).items()
    again = tmp_path / "one run more"
    experiment.main(["run", "control", "32", "1", "--device", "cpu", "--folder", str(again)])
    before = runs.raw("qat", into)
    experiment.collect(again, into)                                                         # what is not in the folder stays as it is
    now = runs.raw("qat", into)
    assert set(now["control"]) == {"0", "1"} and (now["ptq"], now["arms"]) == (before["ptq"], before["arms"])
    entry = record["arms"]["lsq-channel"]["4"]["0"]
    model = runs.load_model("qat_lsq-channel", experiment.prepared("lsq-channel", 4), entry["sha256"], into)
    again = accuracy(qat.convert(model).model, few["test"])
    assert (again.correct != entry["result"].correct).sum() <= 2


def test_an_arm_can_start_where_the_squared_error_is_least():
    learned = experiment.prepared("mse-channel", 4, data.calibration(8).images, "minmax")
    layer = learned.get_submodule("block3.pointwise")
    w = layer.folded().detach()
    off = {f: (layer.quantizer.top * f * layer.quantizer.scale.detach()) for f in (0.8, 1.0, 1.25)}
    errors = {f: (linear.quantize(w, 4, "symmetric", axis=0, x_min=-reach, x_max=reach).dequantize() - w).square().sum()
              for f, reach in off.items()}
    assert min(errors, key=errors.get) == 1.0


def test_the_most_important_runs_come_first(capsys):
    experiment.main(["list"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len({tuple(line) for line in lines}) == 3 + 3 + 4 * 3 * 3 + 3 * 3 * 3
    assert [line[0] for line in lines[:6]] == ["ptq"] * 3 + ["control"] * 3 and {line[1] for line in lines[6:18]} == {"4"}
    with pytest.raises(SystemExit):
        experiment.main(["run", "lsq-channel", "5", "0"])


# The committed record


@pytest.fixture(scope="module")
def record():
    return runs.load("qat")


def of(record, arm, bits):
    return [entry["result"] for entry in record["arms"][arm][bits].values()]


def test_the_record_has_a_fair_rival_and_a_control(record):
    net = zoo.record("depthwise")
    assert record["checkpoint"] == net["sha256"] and record["float"]["correct"] == net["test_correct"]
    assert len(record["control"]) == 3 and all(len(entry["losses"]) == sum(record["epochs"]) for entry in record["control"].values())
    for axes in record["ptq"].values():
        for per, rows in axes.items():
            assert len(rows["tried"]) == len(experiment.ROUNDINGS[per]) * 2 * len(ptq.RANGES) * 4
            for rounding in experiment.ROUNDINGS[per]:
                of_it = sorted((entry for entry in rows["tried"] if entry["rounding"] == rounding), key=lambda e: -e["correct_of_choice"])
                assert all("correct_of_final" in entry for entry in of_it[:3]) and not any("correct_of_final" in e for e in of_it[3:])
            for name, among in (("best", experiment.ROUNDINGS[per]), ("nearest", ("nearest",))):
                best = max((e for e in rows["tried"] if e["rounding"] in among), key=lambda entry: entry.get("correct_of_final", 0))
                assert rows[name].items() >= best.items() and rows[name]["per"] == per
    for arm in experiment.MAIN:
        assert set(record["arms"][arm]["4"]) == {"0", "1", "2"}
        assert all(entry["device"] in record["ran_on"] for entry in record["arms"][arm]["4"].values())


def test_four_bits_per_channel_need_no_training_and_three_do(record):
    best = {bits: rows["channel"]["best"]["result"] for bits, rows in record["ptq"].items()}
    for arm in ("lsq-channel", "ste-channel"):
        assert not over_seeds([best["4"]] * 3, of(record, arm, "4")).agree
    three = of(record, "lsq-channel", "3")
    assert over_seeds([best["3"]] * len(three), three).low > 4 and best["3"].low > record["ptq"]["3"]["channel"]["nearest"]["result"].high
    tensor = record["ptq"]["4"]["tensor"]["best"]["result"]
    assert over_seeds([tensor] * 3, of(record, "ste-tensor", "4")).low > 1


def test_a_network_of_the_record_is_what_it_says():
    images, labels = data.load("test")
    prepared = experiment.trained("lsq-channel")
    measured = accuracy(qat.convert(prepared).model, data.Split(images[:300], labels[:300]))
    recorded = runs.load("qat")["arms"]["lsq-channel"]["4"]["0"]["result"]
    assert (measured.correct != recorded.correct[:300]).sum() <= 3                          # another CPU rounds otherwise
