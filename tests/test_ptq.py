"""Graphs, folding, fake quantization, calibration, equalization and bias correction, against torch's own and against hand-made cases."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qlab.lab import data, zoo
from qlab.nets import equalize, graph, ptq
from qlab.nets.fake import FakeQuantize, fake_quantize
from qlab.quant import kmeans, linear, log, ranges

IMAGES = data.load("test").images[:16]


# The graph


class Residue(nn.Module):
    """Registered in another order than it runs in, with functions for layers, and a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.bn_b, self.bn_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv_a, self.conv_b, self.never = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(7)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.bn_a(self.conv_a(x)))
        x = self.drop(x + self.bn_b(self.conv_b(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x.relu(), 1), 1))


def trained_norms(net):
    torch.manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.running_mean, -1, 1), (m.running_var, 0.2, 3), (m.weight.data, -2, 2), (m.bias.data, -1, 1)):
                t.uniform_(low, high)
    return net.eval()


def test_folding_follows_the_run_and_not_the_registration():
    net, x = trained_norms(Residue()), torch.randn(5, 1, 6, 6)
    folded = ptq.fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
    assert isinstance(folded.bn_a, nn.Identity) and isinstance(folded.bn_b, nn.Identity)


def test_the_graph_computes_the_same_and_knows_where_scales_belong():
    net, x = trained_norms(Residue()), torch.randn(5, 1, 6, 6)
    traced = graph.trace(net)
    torch.testing.assert_close(traced(x), net(x))
    kinds = [graph.kind(traced, n) for n in traced.graph.nodes]
    assert kinds == ["input", "conv", "batchnorm", "relu", "conv", "batchnorm", "add", "relu", "mean", "flatten", "linear", "output"]
    folded = graph.trace(ptq.fold_batch_norm(net))
    assert [graph.kind(folded, n) for n in graph.points(folded)] == ["input", "relu", "conv", "relu", "mean", "linear"]
    assert not hasattr(traced, "never")


class Control(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Both(nn.Module):
    def forward(self, x):
        return x, x


class Quotient(nn.Module):
    def forward(self, x):
        return x / x


@pytest.mark.parametrize("net, said", [
    (Control(), "cannot be read as a graph"), (Two(), "takes several inputs"), (Both(), "returns several values"),
    (Quotient(), "truediv, a call of truediv, cannot be quantized"),
    (nn.Sequential(nn.LayerNorm(2)), "0, a LayerNorm, cannot be quantized"),
    (nn.Sequential(nn.Linear(2, 2), nn.PReLU()), "1, a PReLU"),
])
def test_what_is_no_network_for_integers_is_refused_in_one_sentence(net, said):
    with pytest.raises(ValueError, match=said) as error:
        graph.trace(net)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_batch_norm_behind_a_convolution_that_others_read_or_that_runs_twice_becomes_a_layer_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.bn(self.conv(self.conv(x)))

    class Read(Twice):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    for net in (Twice(), Read()):
        with torch.no_grad():
            for _ in range(20):
                net(torch.randn(8, 1, 3, 3))
        net.eval()
        x, folded = torch.randn(4, 1, 3, 3), ptq.fold_batch_norm(net)
        torch.testing.assert_close(folded(x), net(x), atol=1e-5, rtol=1e-4)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_a_batch_norm_without_statistics_is_refused_by_name():
    with pytest.raises(ValueError, match="1 cannot be folded: it has no running statistics"):
        ptq.fold_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)))


# Fake quantization


@given(st.integers(2, 8), st.floats(-3, 0), st.floats(0.1, 5))
def test_fake_quantize_is_torch_s_forward_and_backward(bits, low, high):
    fake = FakeQuantize(bits, low, high)
    x = torch.linspace(-6, 6, 997)
    x = x[(((x / fake.scale) % 1) - 0.5).abs() > 1e-3].requires_grad_(True)                 # away from ties: torch multiplies by 1 / scale
    ours, y = fake(x), x.detach().clone().requires_grad_(True)
    theirs = torch.fake_quantize_per_tensor_affine(y, fake.scale.item(), int(fake.zero_point), 0, 2**bits - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    weights = torch.arange(len(x)).float()
    (ours * weights).sum().backward(), (theirs * weights).sum().backward()
    assert torch.equal(x.grad, y.grad)
    quantized = linear.quantize(x.detach(), bits, "affine", x_min=low, x_max=high).dequantize()
    torch.testing.assert_close(ours.detach(), quantized)


@pytest.mark.parametrize("zero_point, low, high", [(0, 0, 15), (5, 0, 15), (0, -7, 7), (0, -1, 1)])
@pytest.mark.parametrize("a_tensor", [False, True])
def test_a_learned_scale_s_gradients_are_the_paper_s(zero_point, low, high, a_tensor):
    """Esser et al. 2020, eq. 3 (by s) and 5 (by v), in NumPy, element by element: at the ends, between them and half a step beyond."""
    s, ends = 0.25, np.array([low - zero_point, high - zero_point], dtype=np.float32)          # a power of 2: x / s is exact
    v = np.concatenate([np.linspace(-20, 20, 641, dtype=np.float32), ends, ends + 0.25, ends - 0.25, ends + 0.49, ends - 0.49])
    below, above = v <= ends[0], v >= ends[1]
    by_s = np.where(below, ends[0], np.where(above, ends[1], np.rint(v) - v))
    zero = torch.tensor(zero_point, dtype=torch.uint8) if a_tensor else zero_point
    x, scale = torch.from_numpy(v * s).requires_grad_(True), torch.full((len(v),), s, requires_grad=True)
    y = fake_quantize(x, scale, zero, low, high)
    y.sum().backward()
    np.testing.assert_allclose(y.detach(), s * np.clip(np.rint(v), *ends), rtol=1e-6)
    np.testing.assert_allclose(scale.grad, by_s, atol=1e-5)
    np.testing.assert_array_equal(x.grad, ~(below | above))
    shared = torch.tensor(s, requires_grad=True)
    fake_quantize(x.detach(), shared, zero, low, high).sum().backward()
    np.testing.assert_allclose(shared.grad, by_s.sum(), rtol=1e-4)


@pytest.mark.parametrize("zero_point, low, high", [(0, 0, 15), (5, 0, 15), (0, -7, 7)])
def test_a_learned_scale_s_gradient_is_torch_s_but_for_half_a_step_beyond_the_ends(zero_point, low, high):
    x, scale, theirs = torch.linspace(-7.03, 7.02, 997), torch.tensor(0.3, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    v = x / 0.3 + zero_point
    x = x[((v < low - 0.51) | (v > low + 0.01)) & ((v < high - 0.01) | (v > high + 0.51))]    # between, torch rounds and LSQ saturates
    fake_quantize(x, scale, zero_point, low, high).sum().backward()
    torch._fake_quantize_learnable_per_tensor_affine(x, theirs, torch.tensor([float(zero_point)]), low, high, 1.0).sum().backward()
    torch.testing.assert_close(scale.grad, theirs.grad[0], rtol=1e-3, atol=1e-3)


def test_a_scale_per_channel_gets_its_channel_s_gradient():
    x = torch.randn(3, 10)
    scale = torch.tensor([[0.1], [0.2], [0.3]], requires_grad=True)
    fake_quantize(x, scale, 0, -7, 7).square().sum().backward()
    for i in range(3):
        alone = scale[i].detach().clone().requires_grad_(True)
        fake_quantize(x[i], alone, 0, -7, 7).square().sum().backward()
        torch.testing.assert_close(scale.grad[i], alone.grad)


# Calibration


@pytest.fixture(scope="module")
def cnn():
    return zoo.load("cnn")


def activations(net, images):
    """Input and output of each ReLU of the plain CNN, by hand."""
    values, x = {"input_1": images}, images
    for name, layer in net.named_children():
        x = layer(x)
        values[name] = x
    return values


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_are_those_of_the_activations(cnn, method):
    q = ptq.quantize(cnn, IMAGES, ranges=method, activation_bits=6)
    for name, x in activations(cnn, IMAGES).items():
        if name not in ("relu3", "fc2"):                                                    # small enough to be kept whole
            continue
        bits = 8 if name == "fc2" else 6
        own = torch.cat([x.flatten(), x.min()[None], x.max()[None]])
        expected = {"minmax": lambda: ranges.minmax(own), "percentile": lambda: ranges.percentile(own, 99.9),  # noqa: B023
                    "mse": lambda: ranges.mse(own, bits, "affine"), "entropy": lambda: ranges.entropy(own, bits)}[method]()  # noqa: B023
        wanted = linear.quantize(own, bits, "affine", x_min=expected.x_min, x_max=expected.x_max)
        fake = q.model.get_submodule(f"{name}_codes")
        assert fake.bits == bits and fake.zero_point == wanted.zero_point
        torch.testing.assert_close(fake.scale, wanted.scale)


def test_the_average_range_moves_with_the_batches(cnn):
    batches = [IMAGES[:8], IMAGES[8:]]
    fake = ptq.quantize(cnn, batches, ranges="average").model.get_submodule("fc2_codes")
    x = [cnn(b) for b in batches]
    low, high = (0.9 * f(x[0]) + 0.1 * f(x[1]) for f in (torch.min, torch.max))
    torch.testing.assert_close(fake.scale, (high - low) / 255)


def test_input_and_logits_keep_eight_bits(cnn):
    model = ptq.quantize(cnn, IMAGES, activation_bits=4).model
    assert {n: m.bits for n, m in model.named_modules() if isinstance(m, FakeQuantize)} == {
        "input_1_codes": 8, "relu1_codes": 4, "relu2_codes": 4, "relu3_codes": 4, "relu4_codes": 4, "fc2_codes": 8}


def grouped(w):
    return linear.quantize(w, 8, "symmetric", axis=0, group_size=w[0].numel() // 3 if w[0].numel() % 3 == 0 else 1)


@pytest.mark.parametrize("scheme", [grouped, lambda w: log.quantize(w, 5), lambda w: kmeans.quantize(w, 4, axis=0)])
def test_any_scheme_for_the_weights(cnn, scheme):
    q = ptq.quantize(cnn, IMAGES, scheme)
    assert torch.equal(q.model.get_submodule("conv2").weight, scheme(cnn.conv2.weight).dequantize())
    weights, biases = sum(t.nbytes for t in q.tensors.values()), sum(4 * p.numel() for n, p in cnn.named_parameters() if "bias" in n)
    assert q.nbytes == weights + biases + 6 * 5                                             # six scales and zero-points of activations


def test_a_function_for_each_layer(cnn):
    def bits(b):
        return lambda w: linear.quantize(w, b, "symmetric")

    q = ptq.quantize_weights(cnn, {name: bits(4 if name == "fc1" else 8) for name in ("conv1", "conv2", "conv3", "fc1", "fc2")})
    assert q.tensors["fc1"].bits == 4 and q.tensors["fc2"].bits == 8
    with pytest.raises(ValueError, match="quantizer has nothing for conv1, conv2"):
        ptq.quantize_weights(cnn, {"conv3": bits(4)}, skip=("fc1", "fc2"))
    with pytest.raises(ValueError, match="quantizer names fc9"):
        ptq.quantize_weights(cnn, {"fc9": bits(4)})


def test_eight_bits_change_few_predictions_and_nothing_in_the_original(cnn):
    before = {k: v.clone() for k, v in cnn.state_dict().items()}
    q = ptq.quantize(cnn, data.calibration(64).images)
    images = data.load("test").images[:200]
    assert (q.model(images).argmax(1) == cnn(images).argmax(1)).float().mean() > 0.98
    assert all(torch.equal(v, before[k]) for k, v in cnn.state_dict().items())


@pytest.mark.parametrize("calibration, said", [
    (IMAGES[:0], "no calibration images"), ([], "no calibration images"),
    (torch.where(torch.rand(16, 1, 28, 28) < 0.01, torch.nan, IMAGES), "values at input_1 hold NaN"),
])
def test_useless_calibration_is_one_sentence(cnn, calibration, said):
    with pytest.raises(ValueError, match=said):
        ptq.quantize(cnn, calibration)


def test_an_activation_that_overflows_is_named(cnn):
    broken = copy.deepcopy(cnn)
    broken.conv2.bias[0] = torch.inf
    with pytest.raises(ValueError, match="values at relu2 hold NaN or infinity"):
        ptq.quantize(broken, IMAGES)


def test_other_arguments_at_the_door(cnn):
    wrong = ({"ranges": "max"}, "ranges is 'max'"), ({"activation_bits": 9}, "bits is 9"), ({"activation_bits": 1}, "from 2 to 8")
    for options, said in wrong:
        with pytest.raises(ValueError, match=said):
            ptq.quantize(cnn, IMAGES, **options)


# Equalization and bias correction


def test_equalization_by_hand():
    """Channel ranges 8 and 0.5 meet at sqrt(8 * 0.5) = 2, through ReLU and flattening: one channel, two columns."""
    net = graph.trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)))
    conv, fc = net.get_submodule("0"), net.get_submodule("3")
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([8.0, 1.0]).view(2, 1, 1, 1)), conv.bias.copy_(torch.tensor([4.0, 1.0]))
        fc.weight.copy_(torch.tensor([[0.5, 0.25, 1.0, 1.0]]))
    assert equalize.cross_layer_equalize(net).pairs == [("0", "3")]
    torch.testing.assert_close(conv.weight.flatten(), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(conv.bias, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(fc.weight, torch.tensor([[2.0, 1.0, 1.0, 1.0]]))


def test_equalization_keeps_the_function_and_evens_the_ranges():
    folded = graph.trace(ptq.fold_batch_norm(zoo.load("depthwise")))
    even = copy.deepcopy(folded)
    pairs = equalize.cross_layer_equalize(even).pairs
    assert len(pairs) == 13                                                                 # stem, 6 blocks of two, the linear layer
    torch.testing.assert_close(even(IMAGES), folded(IMAGES), rtol=1e-3, atol=1e-3)

    def spread(net, target):
        reach = net.get_submodule(target).weight.abs().flatten(1).amax(1)
        return reach.max() / reach.median()

    assert spread(even, "block3.depthwise") < spread(folded, "block3.depthwise") / 3


def test_equalization_leaves_alone_what_it_must():
    twice = nn.Linear(4, 4)
    assert equalize.cross_layer_equalize(graph.trace(nn.Sequential(twice, nn.ReLU(), twice))).pairs == []
    dead = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        dead[0].weight[0] = 0
    net, x = graph.trace(dead), torch.randn(5, 2)
    equalize.cross_layer_equalize(net)
    torch.testing.assert_close(net(x), dead(x))
    residual = graph.trace(ptq.fold_batch_norm(zoo.load("resnet")))
    assert ("block2.conv1", "block2.conv2") in equalize.cross_layer_equalize(residual).pairs      # and never across a sum
    torch.testing.assert_close(residual(IMAGES), zoo.load("resnet")(IMAGES), rtol=1e-3, atol=1e-3)


def test_bias_correction_removes_the_mean_error_of_every_channel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    traced, x = graph.trace(net), torch.rand(64, 2, 4, 4)
    q = ptq.quantize_weights(traced, lambda w: linear.quantize(w, 3, "symmetric"))
    conv, was = q.model.get_submodule("0"), net[0]
    before = (conv(x) - was(x)).mean((0, 2, 3)).abs().max()
    equalize.subtract_mean_error(traced, q.model, list(x.split(10)))
    assert (conv(x) - was(x)).mean((0, 2, 3)).abs().max() < 1e-5 < before
    hidden = net[2](net[1](net[0](x)))
    assert (q.model.get_submodule("3")(hidden) - net[3](hidden)).mean(0).abs().max() < 1e-5
