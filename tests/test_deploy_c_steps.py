"""Every kind of step in C, bit for bit: random networks of them against NumPy's integers and IntegerNetwork, and what each costs."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import step_networks
import step_reference
import test_stored
import torch
from c_library import one_library, one_program
from hypothesis import given
from hypothesis import strategies as st
from test_steps import codes

from qlab.deploy import c, c_layers, c_places, cortex_m
from qlab.nets import integer, ptq, steps
from qlab.nets.integer import Grid, IntegerNetwork, Step

pytestmark = [pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason=c.NO_COMPILER),
              pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")]
needs_arm = pytest.mark.skipif(cortex_m.missing() is not None, reason=str(cortex_m.missing()))
GRID = Grid(0.05, 3, -128, 127)
ONES = {"m": torch.tensor([2**30], dtype=torch.int32), "n": torch.tensor([1], dtype=torch.int8)}   # M = 1


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


def chain(*told):
    """A network of steps, each of which reads the one before, or the numbers of steps that its fields name as `of`; t0 is the image."""
    made = []
    for i, (kind, fields) in enumerate(told):
        inputs = tuple(f"t{j}" for j in fields.get("of", (i,)))
        made.append(Step(kind, f"{kind}_{i + 1}", inputs, f"t{i + 1}", (GRID,) * (len(inputs) + 1),
                         **{name: value for name, value in fields.items() if name != "of"}))
    return IntegerNetwork(tuple(made), "t0", made[-1].output, GRID, GRID)


def full_range(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8))


def conv(outs, ins, *kernel, **options):
    return "conv", {"weight": full_range(outs, outs, ins, *kernel), "bias": torch.zeros(outs, dtype=torch.int32),
                    "m": ONES["m"].expand(outs).clone(), "n": torch.full((outs,), -7, dtype=torch.int8),
                    "options": {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | options}


def linear(outs, ins):
    kind, fields = conv(outs, ins)
    return "linear", {name: value for name, value in fields.items() if name != "options"}


def reshape(*shape):
    return "reshape", {"options": {"shape": shape}}


def permute(*dims):
    return "permute", {"options": {"dims": dims}}


SHUFFLE = (conv(6, 4, 1, 1), reshape(2, 3, 5, 4), permute(0, 2, 1, 3, 4), reshape(6, 5, 4))


@pytest.mark.parametrize("network, shape, kernels", [
    # a convolution along a line is one of a map of one row, and pooling: the bytes stay where they are
    (chain(reshape(3, 1, 9), conv(4, 3, 1, 3), reshape(4, 7), reshape(4, 1, 7), conv(5, 4, 1, 3), reshape(5, 5)), (3, 9),
     ["convolution"] * 2),
    # the weights go where the values are, whatever the order in which they were flattened
    (chain(conv(4, 3, 2, 2), ("flatten", {"options": {"start_dim": 1, "end_dim": -1}}), linear(3, 48)), (3, 5, 4), ["convolution"] * 2),
    (chain(conv(4, 3, 2, 2), permute(0, 3, 1, 2), reshape(48), linear(3, 48)), (3, 5, 4), ["convolution"] * 2),
    (chain(SHUFFLE[0], *SHUFFLE[1:], ("relu", {}), reshape(120), linear(2, 120)), (4, 5, 4), ["convolution", "relu", "convolution"]),
    # channels are shuffled, and read twice: one copy
    (chain(*SHUFFLE, conv(2, 6, 1, 1), ("conv", conv(2, 6, 1, 1)[1] | {"of": (4,)}),
           ("add", {"of": (5, 6), "m": ONES["m"].expand(3).clone(), "n": torch.tensor([0, 0, -19], dtype=torch.int8)})), (4, 5, 4),
     ["convolution", "move", "convolution", "convolution", "add"]),
    # a layer of the last dimension, of a map whose channels were put last: as they are stored
    (chain(conv(4, 3, 1, 1), permute(0, 2, 3, 1), linear(6, 4), permute(0, 3, 1, 2), conv(2, 6, 1, 1)), (3, 5, 4), ["convolution"] * 3),
    # rows of a map and their channels: the first of an order that loops can visit, and one that they cannot
    (chain(conv(4, 3, 1, 1), reshape(8, 10), ("slice", {"options": {"dim": 1, "start": 1, "stop": 8, "step": 2}})), (3, 5, 4),
     ["convolution", "move"]),
    (chain(conv(4, 3, 1, 1), reshape(80), ("slice", {"options": {"dim": 1, "start": 3, "stop": 71, "step": 3}}), ("relu", {})), (3, 5, 4),
     ["convolution", "move", "move", "relu"]),
    # each channel times its own number, which has neither rows nor columns
    (chain(conv(4, 3, 1, 1), ("mean", ONES | {"options": {"kernel_size": (5, 4), "stride": (5, 4)}}),
           ("mul", {"of": (2, 1), "m": ONES["m"], "n": torch.tensor([-6], dtype=torch.int8)})), (3, 5, 4), ["convolution", "mean", "mul"]),
])
def test_bytes_move_only_where_a_kernel_needs_another_order(network, shape, kernels, tmp_path):
    about, images = c.export(network, tmp_path / "net.c", shape), full_range(1, 4, *shape)
    assert [layer["kernel"] for layer in about.layers] == kernels
    found = c.run(tmp_path / "net.c", images)
    np.testing.assert_array_equal(found.numpy(), step_reference.network(network, images))
    assert found.unique().numel() > 3


def test_loops_of_a_shuffle_by_hand():
    """Six channels of two pixels, in groups of three, become pairs: bytes 0 3 1 4 2 5 of each pixel."""
    program = c_layers.compile_steps(chain(conv(6, 6, 1, 1), reshape(2, 3, 1, 2), permute(0, 2, 1, 3, 4), reshape(6, 1, 2), ("relu", {})),
                                     (6, 1, 2))
    order = c_places.in_order(program.places["t4"].at)
    assert order.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert c_places.loops(order) == [(2, [3]), (3, [1]), (2, [6])]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(-9, 60), st.integers(0, 60)), max_size=6))
def test_loops_visit_what_they_were_found_in(nest):
    """Addresses from loops of any steps, those that merge and those that stand still: the loops found give them again."""
    addresses = torch.zeros(2, 1, dtype=torch.int64)
    for times, *by in nest:
        addresses = (addresses[:, None] + torch.tensor(by)[:, None, None] * torch.arange(times)[:, None]).flatten(1)
    found, again = c_places.loops(*addresses), addresses[:, :1]
    assert len(found) <= len(nest)
    for times, by in found:
        again = (again[:, None] + torch.tensor(by)[:, None, None] * torch.arange(times)[:, None]).flatten(1)
    assert torch.equal(again, addresses)


@pytest.mark.parametrize("addresses", [[0, 1, 2, 4], [0, 1, 3, 4, 6], [0, 1, 5, 7], [1, 0, 0]])
def test_no_loops_visit_an_order_that_has_none(addresses):
    assert c_places.loops(torch.tensor(addresses)) is None


def test_equal_tables_are_stored_once(tmp_path):
    table = torch.arange(-128, 128, dtype=torch.int8).flip(0)
    network = chain(("table", {"table": table}), ("table", {"table": table.clone()}), ("table", {"table": table.roll(1)}))
    about, text = c.export(network, tmp_path / "net.c", (3, 2, 2)), (tmp_path / "net.c").read_text()
    assert text.count("[256] = {") == 2 and text.count("table(12, table_1_table, ") == 2
    assert (about.input.shape, about.output.shape, c.arena_bytes(about)) == ((3, 2, 2), (3, 2, 2), 24)


def test_layers_of_one_name_have_memory_of_their_own(tmp_path):
    first, second = chain(conv(4, 2, 3, 3), conv(3, 4, 2, 2)).steps
    network = IntegerNetwork((replace(first, name="twice"), replace(second, name="twice")), "t0", "t2", GRID, GRID)
    about, images = c.export(network, tmp_path / "net.c", (2, 6, 5)), full_range(0, 4, 2, 6, 5)
    assert [entry["tensor"] for layer in about.layers for entry in layer["memory"]] == ["t1", "twice patch", "t1", "twice_ patch"]
    np.testing.assert_array_equal(c.run(tmp_path / "net.c", images).numpy(), step_reference.network(network, images))


def test_softmax_with_every_multiplier_under_the_sanitizers(tmp_path):
    rng, networks = np.random.default_rng(0), {}
    for n in range(32):
        m = [2**30, 2**31 - 1, int(rng.integers(2**30, 2**31))][n % 3]
        step = chain(("softmax", {"m": torch.tensor([m], dtype=torch.int32), "n": torch.tensor([n], dtype=torch.int8)}))
        networks[f"n {n}"] = step, [(2, 3), (10,), (1,), (4095,), (3, 2, 7)][n % 5]
    agree(one_program(networks, tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), networks)


BIG = linear(3, 9)[1]


@pytest.mark.parametrize("network, shape, message", [
    (chain(reshape(9, 1), ("add", {"of": (0, 1)} | BIG)), (9,), r"add_2 adds values of the shapes \(9,\) and \(9, 1\), and must"),
    (chain(("add", {"of": (0, 0), "m": ONES["m"].expand(3), "n": torch.tensor([4, 4, 0])})), (2,), "add_1 may reach a sum beyond 32 bits"),
    (chain(("linear", BIG | {"bias": BIG["bias"] + 2**31 - 1})), (9,), "linear_1 may reach a sum of 214.*, and C's sums are int32"),
    (chain(reshape(2, 1, 2, 2), conv(2, 1, 1, 1)), (8,), "image_shape is .8,., which conv_2 cannot take"),
    (chain(reshape()), (1,), r"image_shape is \(1,\), and reshape_1 then gives values of the shape \(\)"),
    (chain(reshape(2, 2, 2, 2, 2, 2, 2), permute(0, 7, 6, 5, 4, 3, 2, 1)), (128,), "permute_2, .*takes more than 6 nested loops"),
    (chain(("softmax", ONES)), (4096,), "softmax_1 cannot take .*4,095 classes"),
    (chain(("pad", {"options": {"padding": (1, 1, 1, 1), "code": 0}})), (2,), "pad_1 .*"),
])
def test_what_c_does_not_have_is_refused_by_name(network, shape, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        c.export(network, tmp_path / "net.c", shape)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("net, shape", test_stored.NETWORKS.values(), ids=test_stored.NETWORKS)
def test_other_peoples_networks_agree(net, shape, tmp_path):
    torch.manual_seed(0)
    network = integer.convert(ptq.quantize(net(), torch.randn(16, *shape)), shape)
    c.export(network, tmp_path / "net.c", shape)
    images = full_range(2, 6, *shape)
    assert torch.equal(c.run(tmp_path / "net.c", images), network.run(images)) and network.run(images).unique().numel() > 4


@needs_arm
def test_every_kind_on_a_cortex_m(tmp_path):
    """With and without DSP instructions."""
    networks = {name: made for name, made in random_networks(0, 90).items() if len({step.kind for step in made[0].steps}) > 9}
    chosen, seen = [], set()
    for net, shape in networks.values():
        kinds = {step.kind for step in net.steps}
        if not kinds <= seen:
            chosen, seen = [*chosen, (net, shape)], seen | kinds
    assert seen == set(c_layers.LOWER)
    for i, (net, shape) in enumerate(chosen):
        images = codes(np.random.default_rng(i), 3, *shape)
        c.export(net, tmp_path / "net.c", shape)
        for cpu in ("cortex-m3", "cortex-m4"):
            assert torch.equal(cortex_m.run(tmp_path / "net.c", images, cpu), net.run(images))
