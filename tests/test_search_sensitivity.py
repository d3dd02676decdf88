"""Sensitivities against NumPy, exact Hessians and whole outputs; candidates; what does not fit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import functional_call, jacrev

from qlab.quant import QTensor, linear
from qlab.search import candidates, curvature, sensitivity


def net(seed: int = 0) -> nn.Sequential:
    """A convolution, one of groups and stride, a linear layer: 4 x 4 images, 3 classes; 176 weights."""
    torch.manual_seed(seed)
    grouped = nn.Conv2d(4, 4, 2, stride=2, groups=2, padding_mode="reflect", padding=1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), grouped, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3, bias=False))


def data(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def quick(weight: torch.Tensor, bits: int) -> QTensor:
    return linear.quantize(weight, bits, "symmetric", axis=0)


def probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        z = model(images).double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def made():
    model = net()
    return model, candidates.make(model, (2, 3, 5)), *data()


def alone(model, of_layers, name, bits):
    return candidates.apply(model, of_layers, {name: bits}).model


def test_loss_and_kl_are_numpys(made):
    model, of_layers, images, labels = made
    loss, kl = sensitivity.by_loss(model, of_layers, images, labels), sensitivity.by_kl(model, of_layers, images)
    p, of_label = probabilities(model, images), (np.arange(len(images)), labels.numpy())
    for i, name in enumerate(loss.layers):
        for j, bits in enumerate(loss.widths):
            q = probabilities(alone(model, of_layers, name, bits), images)
            for table, each in ((loss, np.log(p[of_label]) - np.log(q[of_label])), (kl, stats.entropy(p, q, axis=1))):
                np.testing.assert_allclose(table[name, bits], each.mean(), rtol=1e-4, atol=1e-7)
                np.testing.assert_allclose(table.errors[i, j], stats.sem(each), rtol=1e-4, atol=1e-7)
    whole = candidates.apply(model, of_layers, dict.fromkeys(of_layers, 2)).model
    np.testing.assert_allclose(sensitivity.kl(model, whole, images), stats.entropy(p, probabilities(whole, images), axis=1), rtol=1e-4)


def test_output_and_weight_errors_are_those_of_the_layers(made):
    model, of_layers, images, _ = made
    output, weight = sensitivity.by_output(model, of_layers, images), sensitivity.by_weight(model, of_layers)
    with torch.no_grad():
        x = images
        for k, layer in enumerate(model):
            if str(k) in of_layers:
                w, bias = layer.weight.detach().clone(), layer.bias
                layer.bias, y = None, layer(x) if layer.bias is None else layer(x) - layer.bias.view(-1, 1, 1)
                for bits, q in of_layers[str(k)].items():
                    layer.weight.copy_(q.dequantize())
                    wrong = layer(x)
                    assert output[str(k), bits] == pytest.approx(((wrong - y).square().sum() / y.square().sum()).item(), rel=1e-4)
                    assert weight[str(k), bits] == pytest.approx((q.dequantize() - w).square().sum().item(), rel=1e-5)
                    layer.weight.copy_(w)
                layer.bias = bias
            x = layer(x)


def exact_hessians(model, names, images, labels) -> list[torch.Tensor]:
    def loss(weight, name):
        return F.cross_entropy(functional_call(model, {f"{name}.weight": weight}, (images,)), labels)

    weights = [model.get_submodule(name).weight.detach() for name in names]
    return [jacrev(jacrev(loss))(w, name).reshape(w.numel(), w.numel()).double() for name, w in zip(names, weights)]


def test_hutchinson_is_the_exact_trace_with_its_variance(made):
    model, of_layers, images, labels = made
    names = list(of_layers)
    samples = curvature.traces(model, names, images, labels, probes=100)
    for own, h in zip(samples, exact_hessians(model, names, images, labels)):
        assert abs(own.mean() - h.trace()) < 4 * own.std() / 100**0.5
        variance = 2 * (h.square().sum() - h.diagonal().square().sum())                     # Rademacher signs: the diagonal adds nothing
        assert own.var() == pytest.approx(variance.item(), rel=0.6)
    table, samples = curvature.by_hessian(model, of_layers, images, labels, 5), curvature.traces(model, names, images, labels, 5)
    for i, name in enumerate(names):
        w, q = model.get_submodule(name).weight.detach(), of_layers[name][3]
        share = ((q.dequantize() - w).double().square().sum() / (2 * w.numel())).item()
        assert table[name, 3] == pytest.approx(samples[i].mean().item() * share, rel=1e-5)
        assert table.errors[i, 1].item() == pytest.approx((samples[i].std() / 5**0.5).item() * share, rel=1e-5)
    assert (table.forwards, table.backwards) == (1, 16)


def test_batches_change_no_trace():
    model, (images, labels) = net(), data(150)                                              # 128 and 22 images
    whole = curvature.traces(model, ["5"], images, labels, probes=2)
    parts = [curvature.traces(model, ["5"], images[s], labels[s], probes=2) for s in (slice(0, 128), slice(128, 150))]
    torch.testing.assert_close(whole, (128 * parts[0] + 22 * parts[1]) / 150)


def test_a_diagonal_hessian_has_no_variance_and_a_quadratic_is_exact():
    diagonal = torch.tensor([3.0, -1.0, 0.5])
    assert (curvature.hutchinson(lambda v: diagonal * v, torch.zeros(3), probes=5) == 2.5).all()
    with pytest.raises(ValueError, match="probes is 1, and must be a whole number of at least 2"):
        curvature.hutchinson(lambda v: v, torch.zeros(3), probes=1)


def test_gradients_of_a_linear_classifier_are_those_by_hand():
    """Softmax regression: the gradient of image n is (p_n - onehot(y_n)) x_n^T."""
    torch.manual_seed(0)
    model, images, labels = nn.Linear(6, 3), torch.randn(70, 6), torch.randint(0, 3, (70,))
    of_layers = candidates.make(model, (2, 4))
    dw = np.stack([(of_layers[""][bits].dequantize() - model.weight.detach()).double().numpy() for bits in (2, 4)])
    each = (probabilities(model, images) - np.eye(3)[labels])[:, :, None] * images.double().numpy()[:, None]        # (images, 3, 6)
    squared = np.einsum("noi,woi->nw", each, dw) ** 2 / 2
    table = curvature.by_taylor(model, of_layers, images, labels)
    np.testing.assert_allclose(table.values[0], squared.mean(0), rtol=1e-4)
    np.testing.assert_allclose(table.errors[0], stats.sem(squared), rtol=1e-4)
    absolute = curvature.by_taylor(model, of_layers, images, labels, kind="absolute")
    np.testing.assert_allclose(absolute.values[0], np.abs(each.mean(0) * dw).sum((1, 2)), rtol=1e-4)


def test_squared_gradients_of_drawn_labels_are_the_second_order_of_kl():
    """For a small error; the labels are drawn, so that they agree within the standard error, and do so for every layer."""
    model, (images, _) = net(), data(800)
    of_layers = candidates.make(model, (7,), quick)
    taylor, kl = curvature.by_taylor(model, of_layers, images), sensitivity.by_kl(model, of_layers, images)
    assert ((taylor.values - kl.values).abs() < 4 * taylor.errors).all() and (taylor.errors < 0.2 * kl.values).all()
    assert torch.equal(taylor.values, curvature.by_taylor(model, of_layers, images).values)  # seeded


class Counting(nn.Module):
    """Counts the images that pass."""

    seen = 0

    def forward(self, x):
        Counting.seen += len(x)
        return x


def test_passes_are_those_said_and_the_model_is_as_it_was():
    model, (images, labels) = nn.Sequential(*net(), Counting()).train(), data(130)
    before, of_layers = {name: t.clone() for name, t in model.state_dict().items()}, candidates.make(model, (2, 5), quick)
    for what in (lambda: sensitivity.by_loss(model, of_layers, images, labels), lambda: sensitivity.by_kl(model, of_layers, images),
                 lambda: sensitivity.by_output(model, of_layers, images), lambda: sensitivity.by_weight(model, of_layers)):
        Counting.seen = 0
        assert what().forwards * 130 == Counting.seen
    curvature.by_hessian(model, of_layers, images, labels, probes=2)
    curvature.by_taylor(model, of_layers, images)
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_truth_about_a_whole_network_leaves_both_in_their_modes():
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train() for _ in range(2))
    other[2].eval()
    before = {name: t.clone() for name, t in one.state_dict().items()}
    found = sensitivity.kl(one, other, data()[0])
    assert torch.equal(found, sensitivity.kl(one.eval(), other, data()[0])) and found.min() > 0                    # nothing is dropped
    assert not other[2].training and other[3].training and all(torch.equal(t, before[name]) for name, t in one.state_dict().items())


def test_candidates_are_of_every_layer_and_their_choice_is_the_network():
    model = net()
    made = candidates.make(model, (4, 2), skip=("2",))
    assert {name: list(of_layer) for name, of_layer in made.items()} == {"0": [2, 4], "5": [2, 4]}
    q = candidates.apply(model, made, {"0": 2, "5": 4})
    assert torch.equal(q.model[0].weight, made["0"][2].dequantize()) and torch.equal(q.model[2].weight, model[2].weight)
    assert q.tensors["5"].equal(made["5"][4])
    own = candidates.make(model, (3,), lambda w, bits: linear.quantize(w, bits, "affine"))
    assert isinstance(own["0"][3], QTensor) and own["0"][3].scheme == "affine"


def test_candidates_that_do_not_fit_are_one_sentence():
    model, made = net(), candidates.make(net(), (2, 4), quick)
    with pytest.raises(ValueError, match="bits is -2"):
        candidates.make(model, (-2, 4))
    with pytest.raises(ValueError, match="widths are none"):
        candidates.make(model, ())
    with pytest.raises(ValueError, match=r"nothing is left to choose bits for: 0 is left out \(named in skip\), 2 is left out"):
        candidates.make(model, skip=("0", "2", "5"))
    with pytest.raises(ValueError, match="there is no candidate for '5' at 3 bits: choose among 2, 4"):
        candidates.apply(model, made, {"5": 3})
    with pytest.raises(ValueError, match="there is no candidate for 'fc' at 2 bits: choose among 0, 2, 5"):
        candidates.apply(model, made, {"fc": 2})
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="0 and 1 share one weight"):
        candidates.make(tied)
    model[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="the weight of 0 cannot be quantized: x holds NaN"):
        candidates.make(model)


@pytest.mark.parametrize("what", [sensitivity.by_loss, sensitivity.by_kl, sensitivity.by_output, curvature.by_hessian, curvature.by_taylor])
def test_what_cannot_be_measured_is_one_sentence(what, made):
    model, of_layers, images, labels = made
    more = (labels,) if what in (sensitivity.by_loss, curvature.by_hessian) else ()
    for wrong, said in (
        ((of_layers, images[:, :, :2, :2], *more), "the network cannot take the calibration images"),
        ((of_layers, images[:0], *more), "there are no calibration images"), (({}, images, *more), "the widths of no layer"),
        (({"fc": of_layers["5"]}, images, *more), "candidates name 'fc', and the layers of the model are 0, 2, 5"),
        (({"5": of_layers["0"]}, images, *more), r"the candidate for '5' at 2 bits has shape \(4, 1, 3, 3\), and the weight has \(3, 36\)"),
        (({"0": of_layers["0"], "5": {2: of_layers["5"][2]}}, images, *more), r"the widths \(2,\) and \(2, 3, 5\), and must have the same"),
    ):
        with pytest.raises(ValueError, match=said):
            what(model, *wrong)
    if more:
        with pytest.raises(ValueError, match="one for each of the 40 images"):
            what(model, of_layers, images, labels[:3])
        with pytest.raises(ValueError, match="must be classes from 0 to 2"):
            what(model, of_layers, images, labels + 1)


def test_kinds_and_broken_networks_are_one_sentence(made):
    model, of_layers, images, labels = made
    with pytest.raises(ValueError, match="kind is 'signed', and must be one of squared, absolute"):
        curvature.by_taylor(model, of_layers, images, labels, kind="signed")
    with pytest.raises(ValueError, match="labels is None, and must be the images' labels for 'absolute'"):
        curvature.by_taylor(model, of_layers, images, kind="absolute")
    with pytest.raises(ValueError, match="the logits on the calibration images hold NaN or infinity, and must be finite"):
        sensitivity.by_kl(model, of_layers, torch.full_like(images, torch.nan))
    with pytest.raises(ValueError, match=r"returns \(40, 4, 3, 3\) for 40 images, and must return logits"):
        sensitivity.by_kl(model[:4], {"0": of_layers["0"]}, images)
    unused = nn.Sequential(model[4], model[5])
    unused.spare = nn.Identity()
    unused.spare.layer = nn.Linear(4, 4)
    x = torch.randn(9, 36)
    spare = {"spare.layer": candidates.make(unused, (2,), quick)["spare.layer"]}
    assert curvature.by_hessian(unused, spare, x, labels[:9], probes=2).values.item() == 0
    with pytest.raises(ValueError, match="no calibration image reaches spare.layer"):
        sensitivity.by_output(unused, spare, x)
