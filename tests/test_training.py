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
