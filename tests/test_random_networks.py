"""100 random networks, half of them hostile, against themselves and every runtime; and whether these checks find what is wrong.

ONNX and torch.export take about a second a network: every 40th is exported to both, and prepared for training. Thousands are tried by
hand with python tests/random_networks.py.
"""

import copy
import importlib.util
import shutil

import network_writer
import pytest
import random_networks
import torch
from network_bounds import Magnitude, truth
from torch import fx, nn

from qlab.deploy import c
from qlab.nets import graph, integer, steps

pytestmark = [pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason=c.NO_COMPILER),
              pytest.mark.skipif(not importlib.util.find_spec("onnxruntime") or not importlib.util.find_spec("ai_edge_litert"),
                                 reason="runtimes are not installed: pip install qlab[deploy]"),
              pytest.mark.filterwarnings("ignore")]                                         # torch's: old ways to recompute a weight
COUNT = 100


def test_random_networks():
    reports, failures = random_networks.check_many(range(COUNT), every=40)
    print(random_networks.summary(reports))
    assert not failures, "\n\n".join(failures)
    for report in reports:
        if report.net.plain:
            assert {"trace", "fold", "weights", "quantize", "convert", "c"} <= report.done, report.refused
    # Refusing all that is hostile would be too easy.
    for trait in ("shared weight", "one batch norm behind two", "called twice", "in place", "tied linears", "recomputed weight", "half",
                  "double", "scales", "two names", "layout", "unread branch"):
        assert any("c" in report.done for report in reports if trait in report.net.traits), f"every network with {trait} is refused"


def test_the_networks_hold_every_construction():
    networks = [network_writer.write(seed) for seed in range(COUNT)]
    wanted = {"shared weight", "one batch norm behind two", "called twice", "in place", "unread branch", "odd layer", "tied linears",
              "recomputed weight", "hook", "half", "double", "images of another dtype", "scales", "pool ceil", "pool dilation",
              "two names", "subclass", "layout", "views", "slices", "split and cat", "dense block", "squeeze", "product", "table",
              "scalars", "padding", "transposed convolution", "mean of axes", "uneven means", "norm first", "linear on maps", "ReLU6 alone",
              "one dimension", "softmax"}
    assert wanted <= set().union(*(net.traits for net in networks))
    assert len({net.source for net in networks}) == COUNT
    assert networks[3].source == network_writer.write(3).source


def test_a_hook_is_always_refused_by_name():
    for seed in range(COUNT):
        net = network_writer.write(seed)
        if "hook" in net.traits:
            where = next(trait for trait in net.traits if trait.startswith("hook on ")).removeprefix("hook on ")
            with pytest.raises(ValueError, match=rf"\b{where}\b.* (forward hook|forward of its own)"):
                graph.trace(net.make()[0])


# Would they find it?


def failures(seeds):
    """What is found, one after the other: the first is often enough."""
    for seed in seeds:
        try:
            random_networks.check(seed)
        except AssertionError as error:
            yield str(error)


def test_a_graph_that_takes_no_notice_of_what_is_in_place_is_found(monkeypatch):
    monkeypatch.setattr(graph, "trace", lambda model: fx.symbolic_trace(copy.deepcopy(model).eval()))
    seeds = [seed for seed in range(COUNT) if "in place" in network_writer.write(seed).traits][:15]
    assert any(said.startswith("seed ") and "trace: off by" in said for said in failures(seeds))


def test_a_sum_that_rounds_once_is_found(monkeypatch):
    def once(step, a, b):
        real = [float(m) * 2.0 ** (int(n) - 31) for m, n in zip(step.m, step.n)]
        terms = [(q.double() - grid.zero_point) * m for q, grid, m in zip((a, b), step.grids, real)]
        return steps._finish(step, ((terms[0] + terms[1]) * 2**integer.ADD_SHIFT * real[2] + 0.25).round().to(torch.int32))

    monkeypatch.setitem(integer.RUN, "add", once)
    assert any("not the codes of the steps in NumPy" in said for said in failures(range(0, 30, 2)))


def test_a_model_that_is_changed_is_found(monkeypatch):
    given = graph.trace
    monkeypatch.setattr(graph, "trace", lambda model: given(model.eval()))
    found = list(failures([seed for seed in range(0, 40, 2) if network_writer.write(seed).make()[0].training][:2]))
    assert any("trace changed the model" in said for said in found) and all("class Network" in said for said in found)


# The bounds, by hand


def test_the_magnitude_of_a_network_by_hand():
    """conv 2 x - 3 on x = 5, then batch norm (y - 4) * -6 / sqrt(9) + 1, ReLU6 behind; magnitudes 13, (13 + 4) * 2 + 1 = 35."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0), nn.ReLU6()).eval().double()
    for tensor, value in ((net[0].weight, 2.0), (net[0].bias, -3.0), (net[1].running_mean, 4.0), (net[1].running_var, 9.0),
                          (net[1].weight, -6.0), (net[1].bias, 1.0)):
        tensor.data.fill_(value)
    with torch.no_grad(), Magnitude():
        assert net(torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)).item() == 35.0
    with torch.no_grad(), Magnitude(lambda w: 0.5):                                         # |w| up to 2.5: (15.5 + 4) * 2 + 1
        assert net(torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)).item() == 40.0


def test_a_perturbed_network_stays_within_the_bound():
    """Each weight moved upwards by half a step of 16 bits: the outputs stay within the spread, and come near it."""
    closest = 0.0
    for seed in range(0, 40, 2):
        net = network_writer.write(seed)
        true, (model, images) = truth(net), net.make()
        model = model.eval().double()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.data += module.weight.abs().amax() / (2 * (2**15 - 1))
        with torch.no_grad():
            off = (model(images.double()) - true.values).abs()
        assert (off <= true.spread + 1e-12).all()
        closest = max(closest, (off / (true.spread + 1e-12)).max().item())
    assert closest > 0.1
