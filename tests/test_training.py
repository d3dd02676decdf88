"""The training loop: against a loop written out with torch alone; its hooks; what it refuses."""

import pytest
import torch
from torch import nn

from qlab.nets.training import fit

X, Y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def test_it_is_sgd_with_one_cycle():
    ours, theirs = net(), net()
    history = fit(ours, X, Y, epochs=3, max_lr=0.1, batch_size=20, seed=5)
    torch.manual_seed(5)
    order = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    means = []
    for _ in range(3):
        total = 0
        for batch in torch.randperm(50, generator=order).split(20):
            loss = nn.functional.cross_entropy(theirs(X[batch]), Y[batch])
            optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
            total += loss.item() * len(batch)
        means.append(total / 50)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert history == pytest.approx(means) and not ours.training


def test_the_seed_decides():
    def weights(seed):
        model = net()
        fit(model, X, Y, 1, 0.1, seed=seed)
        return model[0].weight
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_hooks_run_when_they_say():
    seen = []
    fit(net(), X, Y, 2, 0.1, batch_size=25, augment=lambda x, generator: x + torch.rand(1, generator=generator),
        loss=lambda model, x, y: model(x).square().mean(), after_step=lambda: seen.append("step"), after_epoch=seen.append)
    assert seen == ["step", "step", 0, "step", "step", 1]


def test_only_what_is_asked_for_is_trained():
    model = net()
    before = model[3].weight.clone()
    fit(model, X, Y, 1, 0.1, parameters=[{"params": model[0].parameters(), "weight_decay": 0.0}])
    assert torch.equal(model[3].weight, before)


@pytest.mark.parametrize("arguments, said", [
    ((X[:0], Y[:0], 1, 0.1), "there are 0 images and 0 labels"), ((X, Y[:9], 1, 0.1), "50 images and 9 labels"),
    ((X, Y, 0, 0.1), "epochs is 0"), ((X, Y, 1, 0.0), "max_lr is 0.0"), ((X, Y, 1, float("nan")), "max_lr is nan"),
])
def test_errors(arguments, said):
    with pytest.raises(ValueError, match=said):
        fit(net(), *arguments)
    with pytest.raises(ValueError, match="batch_size is 0"):
        fit(net(), X, Y, 1, 0.1, batch_size=0)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fit(net().requires_grad_(False), X, Y, 1, 0.1)


# The order in memory

MAPS = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Viewed(nn.Module):
    """What many write: view on a feature map, which only the usual order of a batch allows; or on a weight."""

    def __init__(self, view=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.drop, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3 * view), nn.Linear(64, 3)
        self.view = view

    def forward(self, x):
        if self.view:
            assert self.conv.weight.view(4, 27).shape == (4, 27)
        x = self.drop(self.bn(self.conv(x)).relu())
        return self.last(x.view(len(x), -1) if self.view else x.flatten(1))


def layouts(model):
    return {name: (t.stride(), t.data_ptr()) for name, t in model.state_dict().items()}


def written_out(model, epochs=2):
    """The loop in the usual order, with torch alone."""
    torch.manual_seed(5)
    order, optimizer = torch.Generator().manual_seed(5), torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2 * epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(40, generator=order).split(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(MAPS[batch]), Y[batch]).backward()
            optimizer.step(), schedule.step()
    return model


def test_a_network_that_calls_view_trains_as_if_nothing_else_had_been_tried():
    ours, theirs = Viewed(), written_out(Viewed())
    before = layouts(ours)
    fit(ours, MAPS, Y[:40], 2, 0.1, batch_size=25, seed=5, after_epoch=lambda epoch: ours(MAPS))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))  # bn's counts, too
    assert layouts(ours) == before


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_model_keeps_the_order_that_its_tensors_have(order):
    ours = Viewed(view=False).to(memory_format=order)                                       # the choice of who made it
    before, seen = layouts(ours), []

    def loss(model, x, y):
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return nn.functional.cross_entropy(model(x), y)

    given, strides = MAPS.clone(), MAPS.stride()
    fit(ours, given, Y[:40], 2, 0.1, batch_size=25, seed=5, loss=loss, after_epoch=lambda _: ours(MAPS))
    assert seen == [True] * 4 and layouts(ours) == before and given.stride() == strides and torch.equal(given, MAPS)
    for a, b in zip(ours.parameters(), written_out(Viewed(view=False)).parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_error_of_the_model_itself_is_the_one_raised():
    with pytest.raises(RuntimeError, match=r"channels, but got 2 channels"):
        fit(Viewed(), MAPS[:, :2], Y[:40], 1, 0.1)
