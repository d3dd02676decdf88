"""Dead channels: found where they were planted, and zeroing them changes nothing."""

import pytest
import torch
from torch import nn

from qlab.lab import data, measure, zoo
from qlab.nets import dead, ptq
from qlab.nets.models import Residual


def network(seed=0):
    """A stem, a depthwise and a pointwise convolution, a linear layer; the stem's channels 1 and 4 are pushed below ReLU's zero."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).eval().requires_grad_(False)
    net[0].bias.fill_(0.5)
    net[0].bias[[1, 4]] = -100.0
    net[2].bias.fill_(0.5)
    net[2].bias[3] = -100.0                                                   # silent, and not starved
    return net


@pytest.fixture
def images():
    return torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_planted_channels_are_found(images):
    found = dead.find(network(), images, batch_size=7)
    assert found["0"].silent.nonzero().flatten().tolist() == [1, 4] and not found["0"].starved.any()
    assert found["2"].starved.nonzero().flatten().tolist() == [1, 4]
    assert found["2"].silent.nonzero().flatten().tolist() == [3]              # a starved filter gives its bias, 0.5: it is heard
    assert not found["5"].starved.any() and not found["8"].any.any()


def test_dead_means_that_no_weight_of_it_matters(images):
    """By brute force: a filter is called dead exactly if zeroing its weights leaves every logit as it was."""
    net = network()
    before, found = net(images), dead.find(net, images)
    for name in ("0", "2"):
        layer = net[int(name)]
        for channel, is_dead in enumerate(found[name].any.tolist()):
            kept = layer.weight[channel].clone()
            layer.weight[channel] = 0
            zeroed = torch.equal(net(images), before)
            layer.weight[channel] = kept
            unheard = (name, channel) == ("0", 3)                             # alive, but its one reader is silent
            assert zeroed == (is_dead or unheard), (name, channel)


@pytest.mark.parametrize("seed", range(3))
def test_zeroing_leaves_the_logits_and_the_model_as_they_were(images, seed):
    net = network(seed)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    cleaned = dead.zero(net, dead.find(net, images))
    torch.testing.assert_close(cleaned(images), net(images), rtol=0, atol=1e-6)
    assert (cleaned[2].weight[[1, 3, 4]] == 0).all() and (cleaned[2].bias[1] == 0.5) and cleaned[2].bias[3] == 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_sum_keeps_a_channel_alive(images):
    torch.manual_seed(0)
    block = ptq.fold_batch_norm(nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), Residual(4, 4, 1), nn.Flatten()).eval())
    block[2].conv2.weight.data[2], block[2].conv2.bias.data[2] = 0, 0
    found = dead.find(block, images)
    assert found["2.conv2"].silent.tolist() == [False, False, True, False]    # what it adds is 0; the sum is not
    torch.testing.assert_close(dead.zero(block, found)(images), block(images))


def test_the_zoo_s_depthwise_net_carries_65_filters_that_nothing_reads():
    net = ptq.fold_batch_norm(zoo.load("depthwise", as_trained=True))
    every = dead.find(net, data.calibration(512).images)
    found = {name: one for name, one in every.items() if name.endswith("depthwise")}
    starved = {name: dead.Dead(one.starved, torch.zeros_like(one.silent)) for name, one in found.items()}
    assert sum(int(one.starved.sum()) for one in found.values()) == 65
    assert sum(len(one.starved) for one in found.values()) == 32 + 64 + 64 + 3 * 128
    test = data.load("test")
    some = data.Split(test.images[:1000], test.labels[:1000])
    before, after = (measure.accuracy(model, some) for model in (net, dead.zero(net, starved)))
    assert torch.equal(before.correct, after.correct)


@pytest.mark.parametrize("name", ["depthwise", "resnet"])
def test_the_zoo_hands_out_networks_without_dead_filters(name):
    trained, cleaned = zoo.load(name, as_trained=True), zoo.load(name)
    assert zoo.find_dead(trained) == zoo.record(name)["dead"] != {}
    found = dead.find(ptq.fold_batch_norm(cleaned), data.calibration(512).images)
    for layer, one in found.items():
        assert (ptq.fold_batch_norm(cleaned).get_submodule(layer).weight[one.any] == 0).all()
    test = data.load("test")
    some = data.Split(test.images[-2000:], test.labels[-2000:])
    before, after = (measure.accuracy(model, some) for model in (trained, cleaned))
    assert torch.equal(before.correct, after.correct)


def test_zeroing_before_folding_is_zeroing_after_it(images):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False),
                        nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    net.train()(images)                                                       # running statistics that are not 0 and 1
    net.eval().requires_grad_(False)
    net[1].bias[[0, 4]] = -50.0
    net[4].bias[:] = 1.0
    net[4].bias[2] = -50.0
    found = dead.find(ptq.fold_batch_norm(net), images)
    assert found["3"].starved.nonzero().flatten().tolist() == [0, 4] and found["3"].silent.nonzero().flatten().tolist() == [2]
    before_folding = ptq.fold_batch_norm(dead.zero(net, found)).state_dict()
    after_folding = dead.zero(ptq.fold_batch_norm(net), found).state_dict()
    assert before_folding.keys() == after_folding.keys()
    for name, value in before_folding.items():
        torch.testing.assert_close(value, after_folding[name])


@pytest.mark.parametrize("model, n, says", [
    (nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), 0, "there are no images"),
    (nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), 2, "fold it first"),
    (nn.Sequential(*[nn.Conv2d(1, 1, 1)] * 2), 2, "runs more than once"),
])
def test_what_cannot_be_looked_at_is_refused(model, n, says):
    with pytest.raises(ValueError, match=says):
        dead.find(model, torch.rand(n, 1, 4, 4))


def test_masks_of_another_model_are_refused(images):
    found = dead.find(network(), images)
    with pytest.raises(ValueError, match="'5' is no layer of this model with 4 filters"):
        dead.zero(nn.Sequential(*network()[:5]), found)
