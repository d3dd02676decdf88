"""Channels really removed: the small network computes what the masked one does; what cannot be cut is refused in one sentence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as reference

from qlab.nets import channels
from qlab.nets.models import Residual, depthwise_net, lenet_5, lenet_300_100, plain_cnn, resnet

X = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def net(make, seed=0):
    torch.manual_seed(seed)
    model = make().eval()
    for module in model.modules():                                                          # statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2), module.bias.data.normal_()
    return model


def test_plain_chain_equals_the_masked_network_through_flatten():
    model = net(plain_cnn)
    keep = channels.weakest(model, {"conv1": 0.25, "conv2": 0.4, "conv3": 0.5, "fc1": 0.5})
    small = channels.remove(model, keep)
    assert [tuple(p.shape) for n, p in small.named_parameters() if "weight" in n] == [
        (24, 1, 3, 3), (38, 24, 3, 3), (32, 38, 3, 3), (32, 288), (10, 32)]
    masked = copy.deepcopy(model)
    for name, kept in keep.items():                                                         # relu and max pooling keep 0 at 0
        layer = masked.get_submodule(name)
        layer.weight.data[~kept], layer.bias.data[~kept] = 0, 0
    torch.testing.assert_close(small(X), masked(X))
    assert model.conv1.out_channels == 32 and small.conv1.out_channels == 24 and small.fc1.in_features == 288
    assert type(small) is type(model) and sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_batch_norm_and_depthwise_convolutions_are_cut_too():
    model = net(depthwise_net)
    keep = channels.weakest(model, 0.3, ["conv", "block1.pointwise", "block6.pointwise"])
    small = channels.remove(model, keep)
    assert small.block1.depthwise.groups == 32 - round(0.3 * 32) == small.bn.num_features
    masked = copy.deepcopy(model)                                                           # readers blind to them: exact with any norm
    for name, reader in (("conv", "block1.pointwise"), ("block1.pointwise", "block2.pointwise"), ("block6.pointwise", "fc")):
        masked.get_submodule(reader).weight.data[:, ~keep[name]] = 0
    torch.testing.assert_close(small(X), masked(X))


RESNET = {  # by group: its layers, and whoever reads them
    ("conv",): ["block1.conv1", "block1.skip.conv"],                                        # the stem is read twice, and never added to
    ("block1.conv1",): ["block1.conv2"],
    ("block2.conv1",): ["block2.conv2"],
    ("block3.conv1",): ["block3.conv2"],
    ("block4.conv1",): ["block4.conv2"],
    ("block1.conv2", "block1.skip.conv", "block2.conv2"): ["block2.conv1", "block3.conv1", "block3.skip.conv"],
    ("block3.conv2", "block3.skip.conv", "block4.conv2"): ["block4.conv1", "fc"],
}


def test_a_residual_network_loses_channels_within_its_blocks_and_of_its_sums():
    model = net(resnet)
    assert channels.removable(model) == [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    keep = channels.weakest(model, 0.3)
    small, masked = channels.remove(model, keep), copy.deepcopy(model)
    for together, readers in RESNET.items():
        kept = keep[together[0]]
        assert all(torch.equal(keep[name], kept) for name in together)
        for reader in readers:
            masked.get_submodule(reader).weight.data[:, ~kept] = 0
    torch.testing.assert_close(small(X), masked(X), rtol=1e-4, atol=1e-4)
    assert [small.get_submodule(name).num_features for name in ("bn", "block1.bn2", "block1.skip.bn", "block4.bn2")] == [22, 34, 34, 67]
    # By hand: 28 x 28, then 14 x 14, then 7 x 7 pixels; 22 of 32 channels, 34 of 48, 67 of 96.
    assert sum(channels.macs(small, X[:1]).values()) == 784 * 9 * 22 + 196 * (22 * 34 * (9 + 1) + 3 * 34 * 34 * 9) + 49 * (
        34 * 67 * (9 + 1) + 3 * 67 * 67 * 9) + 670
    torch.testing.assert_close(small.train()(X), masked.train()(X), rtol=1e-3, atol=1e-3)   # each batch norm by its batch, too
    small(X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_a_mask_for_one_layer_is_for_all_that_a_sum_ties_to_it():
    model, kept = net(resnet), torch.arange(48) % 3 > 0
    one = channels.remove(model, {"block2.conv2": kept})
    all_three = channels.remove(model, dict.fromkeys(("block1.conv2", "block1.skip.conv", "block2.conv2"), kept))
    assert one.block1.conv2.out_channels == one.block1.skip.conv.out_channels == one.block3.skip.conv.in_channels == 32
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), all_three.state_dict().values()))
    with pytest.raises(ValueError, match="^keep..block1.conv2.. and keep..block2.conv2.. differ, and must be equal"):
        channels.remove(model, {"block1.conv2": kept, "block2.conv2": ~kept})


def test_a_layer_may_go_by_its_second_name():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    model[1].before = model[0]
    small = channels.remove(model, {"1.before": torch.arange(4) < 3})
    assert small[0] is small[1].before and small[0].out_channels == small[1].in_channels == 3


class Sum(nn.Module):
    def __init__(self, a=4, b=4):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, a, 1, bias=False), nn.Conv2d(3, b, 1, bias=False), nn.Conv2d(max(a, b), 2, 1)

    def forward(self, x):
        return self.c(torch.relu(self.a(x) + self.b(x)))


def test_a_group_is_ranked_by_the_sum_of_its_norms():
    model = Sum()
    model.a.weight.data = torch.tensor([[1.0, 0, 0], [-4, 0, 0], [2, 2, 0], [0, 3, 0]])[..., None, None]      # norms 1, 4, 4, 3
    model.b.weight.data = torch.tensor([[5.0, -3, 0], [0, 0, 1], [1, -1, 0], [0, 0, 1]])[..., None, None]     # norms 8, 1, 2, 1
    for layers in (None, ["a"], ["b"], ["b", "a"]):                                         # sums 9, 5, 6, 4
        keep = channels.weakest(model, 0.5, layers)
        assert set(keep) == set(layers or "ab") and all(mask.tolist() == [True, False, True, False] for mask in keep.values())
    with pytest.raises(ValueError, match="share of a is 0.5 and of b 0.25, and must be one"):
        channels.weakest(model, {"a": 0.5, "b": 0.25})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_not_ranked(value, dtype):
    model = Sum().to(dtype)
    model.b.weight.data[1, 2] = value
    for layers in (None, ["b"], ["a"]):                                                     # a is ranked with b
        with pytest.raises(ValueError, match="weights of b hold NaN or infinity"):
            channels.weakest(model, 0.5, layers)


def test_norms_neither_overflow_nor_lose_what_is_small():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 1, 1)).double()
    model[0].weight.data = torch.tensor([[3e38, 3e38, 1e38], [1e300, 0, 0], [3e38, 3e38, 2e38]],
                                        dtype=torch.float64)[..., None, None]
    assert channels.weakest(model, 0.34)["0"].tolist() == [False, True, True]
    model.float()[0].weight.data = torch.tensor([[3e38, 3e38, 2e38], [3e38, 3e38, 1e38], [3e38, 3e38, 3e38]])[..., None, None]
    assert channels.weakest(model, 0.34)["0"].tolist() == [True, False, True]               # none of the three sums is a float32
    model.half()[0].weight.data = torch.tensor([[6e4, 6e4, 2.0], [6e4, 6e4, 1], [6e4, 6e4, 3]]).half()[..., None, None]
    assert channels.weakest(model, 0.34)["0"].tolist() == [True, False, True]


def test_ranking_is_that_of_torch():
    conv = nn.Conv2d(4, 10, 3)
    model = nn.Sequential(conv, nn.Conv2d(10, 2, 1))
    kept = channels.weakest(model, 0.4, ["0"])["0"]
    reference.ln_structured(conv, "weight", amount=0.4, n=1, dim=0)
    assert torch.equal(kept, conv.weight_mask.flatten(1).bool().all(1)) and int(kept.sum()) == 6


def test_at_least_one_channel_stays_and_among_equals_the_first_goes():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    model[0].weight.data.fill_(1.0)
    assert channels.weakest(model, 0.34, ["0"])["0"].tolist() == [False, True, True]
    assert channels.weakest(model, 0.999, ["0"])["0"].tolist() == [False, False, True]


def test_functions_in_place_of_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6 * 13 * 13, 5)

        def forward(self, x):
            return self.c(torch.flatten(F.max_pool2d(self.b(F.relu(self.a(x))).relu(), 2), 1))

    model = net(Net)
    keep = channels.weakest(model, 0.5)
    small, masked = channels.remove(model, keep), copy.deepcopy(model)
    masked.b.weight.data[:, ~keep["a"]] = 0
    masked.c.weight.data.view(5, 6, 169)[:, ~keep["b"]] = 0
    torch.testing.assert_close(small(X), masked(X))


def test_training_still_works_and_gradients_are_as_they_were():
    model = net(plain_cnn).requires_grad_(False)
    small = channels.remove(model, channels.weakest(model, 0.5))
    assert not any(p.requires_grad for p in small.parameters())
    small.requires_grad_(True)
    small(X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("make, expected", [
    (plain_cnn, {"conv1": 32 * 9 * 784, "conv2": 64 * 32 * 9 * 196, "conv3": 64 * 64 * 9 * 49, "fc1": 576 * 64, "fc2": 640}),
    (lenet_300_100, {"fc1": 235_200, "fc2": 30_000, "fc3": 1000}),
    (lenet_5, {"conv1": 20 * 25 * 576, "conv2": 50 * 20 * 25 * 64, "fc1": 400_000, "fc2": 5000}),
])
def test_macs_by_hand(make, expected):
    assert channels.macs(make(), X[:1]) == expected
    assert sum(channels.macs(make(), X).values()) == 4 * sum(expected.values())


def test_macs_of_groups_strides_repeated_and_never_called_layers_leave_the_model_as_it_was():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.twice, self.never = nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Linear(3, 3)

        def forward(self, x):
            return self.twice(self.twice(self.a(x)))

    model = Net().train()
    model.twice.eval()
    assert channels.macs(model, X[:1]) == {"a": 8 * 9 * 169, "twice": 2 * 8 * 2 * 9 * 169, "never": 0}
    assert model.training and not model.twice.training and not model.a._forward_hooks


def test_macs_are_those_of_the_layer_whatever_hooks_make_of_its_output():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 2, 1)), nn.Linear(13, 5))
    model[0].register_forward_hook(lambda layer, args, output: output[..., ::2, ::2])
    model[0].register_forward_hook(lambda layer, args, output: output.clone(), prepend=True)
    assert channels.macs(model, X[:1]) == {"0": 8 * 9 * 676, "1": 2 * 8 * 169, "2": 2 * 13 * 13 * 5}
    assert len(model[0]._forward_hooks) == 2


class Wide(nn.Module):
    def forward(self, x):
        if x.shape[2] != 28:
            raise AssertionError
        return x


@pytest.mark.parametrize("example, error, message", [
    (torch.zeros(1, 3, 8, 8), ValueError, r"^example is torch.float32 of the shape \(1, 3, 8, 8\), which .* \(.*3 channels.*\)"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.int64), ValueError, r"^example is torch.int64 of the shape \(1, 1, 8, 8\), which"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.float64), ValueError, r"^example is torch.float64 of the shape \(1, 1, 8, 8\), which"),
    (torch.zeros(8), ValueError, r"^example is torch.float32 of the shape \(8,\), which the model cannot take"),
    (torch.zeros(1, 1, 9, 9), ValueError, r"which the model cannot take \(mat1 and mat2"),
    ("images", TypeError, "^example is a str and no tensor"),
    (None, TypeError, "^example is a NoneType and no tensor"),
])
def test_macs_of_a_wrong_example_are_refused_in_one_sentence(example, error, message):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).train()
    with pytest.raises(error, match=message) as caught:
        channels.macs(model, example)
    assert "\n" not in str(caught.value) and all(module.training and not module._forward_hooks for module in model.modules())


def test_macs_of_what_is_no_model_or_refuses_by_itself():
    with pytest.raises(TypeError, match="^model is a str, and must be a torch.nn.Module.$"):
        channels.macs("cnn", torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"which the model cannot take \(AssertionError\): give it a batch of its inputs.$"):
        channels.macs(Wide(), torch.zeros(1, 1, 8, 8))


def test_macs_leave_an_example_that_the_model_writes_on():
    example = -torch.ones(1, 1, 4, 4)
    assert channels.macs(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 1)), example) == {"1": 32}
    assert torch.equal(example, -torch.ones(1, 1, 4, 4))


class Broken(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b, self.never = kind, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        if kind == "shared":
            self.b.weight = self.a.weight
        if kind == "grouped":
            self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x):
        if self.kind == "data" and x.sum() > 0:
            x = -x
        x = self.a(x)
        if self.kind == "twice":
            x = self.a(x)
        if self.kind == "cat":
            return self.b(torch.cat([x, x], 1)[:, :4])
        if self.kind == "view":
            return self.b(x.view(-1, 4, 28, 28))
        if self.kind == "weight":
            return F.conv2d(self.b(x), self.a.weight)
        return x if self.kind == "output" else self.b(x)


@pytest.mark.parametrize("kind, layer, message", [
    ("shared", "a", "a is used more than once, or its weight is"),
    ("grouped", "a", "they reach b .Conv2d., which ties them to others"),
    ("grouped", "b", "b is a convolution in 2 groups"),
    ("twice", "a", "a is called 2 times"),
    ("cat", "a", "they reach cat .cat., which ties them to others"),
    ("view", "a", "they reach view .view., which ties them to others"),
    ("weight", "a", "a is used more than once, or its weight is"),
    ("output", "a", "they reach the model's output"),
    ("plain", "never", "never is called 0 times"),
    ("plain", "none", "none is not a Conv2d or Linear"),
    ("data", "a", "torch.fx cannot follow the model's forward"),
])
def test_refusals_in_one_sentence(kind, layer, message):
    with pytest.raises(ValueError, match=message) as caught:
        channels.remove(Broken(kind), {layer: torch.ones(4).bool()})
    assert "\n" not in str(caught.value)


def test_channels_that_a_linear_layer_or_a_norm_would_mix_up_are_refused():
    wrong = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(26, 2))                             # along the width, not the channels
    assert channels.removable(wrong) == []
    late = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(4 * 676), nn.Linear(4 * 676, 2))
    assert channels.removable(late) == []
    block = nn.Sequential(Residual(8, 8, 1))                                                # its sum is with the input, and the output
    assert channels.removable(block) == ["0.conv1"]


@pytest.mark.parametrize("mask", [torch.ones(3).bool(), torch.ones(4), torch.zeros(4).bool(), [True] * 4])
def test_bad_masks(mask):
    with pytest.raises(ValueError, match="bool tensor of shape .4,. that keeps at least one"):
        channels.remove(Broken("plain"), {"a": mask})


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_bad_shares(share):
    with pytest.raises(ValueError, match="must be 0 or more and below 1"):
        channels.weakest(plain_cnn(), share)


def test_a_share_for_each_layer_and_a_list_of_layers_contradict_each_other():
    with pytest.raises(ValueError, match="share names the layers already"):
        channels.weakest(plain_cnn(), {"conv1": 0.5}, ["conv2"])
