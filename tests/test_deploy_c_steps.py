"""Every kind of step in C, bit for bit: random networks of them against NumPy's integers and IntegerNetwork, and what each costs."""

import shutil

import numpy as np
import pytest
import step_networks
import step_reference
import torch
from c_library import one_library, one_program
from test_steps import codes

from qlab.deploy import c, c_layers, cortex_m
from qlab.nets import steps
from qlab.nets.integer import Grid, IntegerNetwork, Step

pytestmark = [pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason=c.NO_COMPILER),
              pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")]
needs_arm = pytest.mark.skipif(cortex_m.missing() is not None, reason=str(cortex_m.missing()))
GRID = Grid(0.05, 3, -128, 127)


def random_networks(seed, count):
    """Networks that C takes; the others compute nothing, and are refused in this sentence."""
    made = {}
    for i in range(count):
        net, shape = step_networks.network(np.random.default_rng([seed, i]), 1 + i % 20)
        try:
            c_layers.compile_steps(net, shape)
            made[f"network {i}"] = net, shape
        except ValueError as error:
            assert str(error) == "the network computes nothing: it has no layer, sum or pooling."
    return made


def agree(run, networks):
    for i, (name, (net, shape)) in enumerate(networks.items()):
        images = codes(np.random.default_rng(i), 3, *shape)
        expected, found = net.run(images), run(name, images)
        assert torch.equal(found, expected), (name, [step.kind for step in net.steps])
        np.testing.assert_array_equal(found.numpy(), step_reference.network(net, images))


def test_random_networks_of_every_kind_agree(tmp_path):
    networks = random_networks(0, 90)
    assert {step.kind for net, _ in networks.values() for step in net.steps} == set(c_layers.LOWER) == set(steps.RUN)
    agree(one_library(networks, tmp_path), networks)


def test_random_networks_under_the_sanitizers(tmp_path):
    networks = random_networks(1, 30)
    agree(one_program(networks, tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), networks)
