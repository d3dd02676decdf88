"""Costs by hand, against the bytes of whole networks, and against the layers that the kernels stand for; no time is asserted."""

import pytest
import torch
from torch import nn

from qlab.nets import integer, ptq
from qlab.quant import linear
from qlab.search import candidates, costs, kernels


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.register_buffer("shift", torch.zeros(5, dtype=torch.int16))

    def forward(self, x):
        return torch.relu(self.depthwise(torch.relu(self.conv(x))))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3, bias=False))


def quick(weight: torch.Tensor, bits: int):
    return linear.quantize(weight, bits, "symmetric", axis=0)


def test_bytes_are_those_of_the_whole_network():
    model = net()
    made = candidates.make(model, (2, 3, 8), quick)
    table, rest = costs.nbytes(made), costs.rest_nbytes(model, made)
    assert table["0.conv", 3] == -(-3 * 108 // 8) + 4 * 4 and rest == 4 * (4 + 4 + 32) + 2 * 5
    for allocation in ({name: 2 for name in made}, dict(zip(made, (8, 2, 3, 8)))):
        assert table(allocation) + rest == candidates.apply(model, made, allocation).nbytes


def test_bit_operations_by_hand():
    model = net()
    table = costs.bitops(model, candidates.make(model, (2, 8), quick), torch.zeros(1, 3, 8, 8), activation_bits=4)
    counted = {"0.conv": 64 * 4 * 27, "0.depthwise": 16 * 4 * 9, "2": 64 * 32, "4": 96}
    assert {name: table[name, 8] for name in table.layers} == {name: 32 * n for name, n in counted.items()}
    assert all(table[name, 2] * 4 == table[name, 8] for name in counted)


def test_a_width_without_a_kernel_costs_what_the_next_wider_costs():
    fast, slow = lambda: None, lambda: sum(range(300))
    table = costs.latency({"a": {4: fast, 8: slow, 32: fast}, "b": {8: fast}}, (2, 3, 4, 5, 8), repeats=3)
    assert table.layers == ("a", "b") and (table.values > 0).all() and (table.errors >= 0).all()
    assert table["a", 2] == table["a", 3] == table["a", 4] and table["a", 5] == table["a", 8]
    assert len(set(table.values[1].tolist())) == 1


def test_kernels_compute_the_layers():
    model, images = net(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = kernels.of(model, images)
    assert list(found) == ["0.conv", "0.depthwise", "2", "4"] and all({8, 32} <= set(own) for own in found.values())
    network = integer.convert(ptq.quantize(model, images), (3, 8, 8))
    assert torch.equal(found["4"][8](), network(images))                                    # the last layer's codes are the logits'
    with torch.no_grad():
        assert torch.equal(found["4"][32](), model(images))
        hidden = torch.relu(model[0](images)).flatten(1)
        torch.testing.assert_close(found["2"][32](), model[2](hidden))
        for bits in {2, 4} & set(found["2"]):
            q = candidates.make(model, (bits,), quick)["2"][bits]
            torch.testing.assert_close(found["2"][bits](), hidden @ q.dequantize().T + model[2].bias, rtol=0.05, atol=0.05)
    table = costs.latency(found, (2, 4, 8), repeats=2)
    assert table["0.conv", 2] == table["0.conv", 8] and table.layers == tuple(found)


def test_what_has_no_cost_is_one_sentence():
    model = net()
    made, image = candidates.make(model, (2, 8), quick), torch.zeros(1, 3, 8, 8)
    for call, said in (
        (lambda: costs.bitops(model, made, image.expand(2, 3, 8, 8)), r"image has 2 images, and must be one, \(1, ...\)"),
        (lambda: costs.bitops(model, made, image, activation_bits=-8), "bits is -8"),
        (lambda: costs.bitops(model, made, image[:, :2]), "which the model cannot take"),
        (lambda: costs.rest_nbytes(model, {"fc": made["2"]}), "candidates name 'fc'"),
        (lambda: costs.nbytes({"a": made["2"], "b": {2: made["4"][2]}}), r"rows have the widths \(2,\) and \(2, 8\)"),
        (lambda: costs.latency({"a": {4: int}}, (4, 8)), "a has kernels for 4 bits, and must have one for 8 bits or more"),
        (lambda: costs.latency({"a": {}}, (4, 8)), "a has kernels for no bits"), (lambda: costs.latency({}, (4,)), "there are no kernels"),
        (lambda: costs.latency({"a": {8: int}}, (4,), repeats=1), "repeats is 1, and must be a whole number of at least 2"),
        (lambda: kernels.of(model, image.expand(129, 3, 8, 8)), "images are 129, and must be at most 128"),
        (lambda: kernels.of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), image), "holds batch norm"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
