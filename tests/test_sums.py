"""A layer's sums in float32: as NumPy's integers, on either side of the bound, and int32 where a kernel rounds."""

import copy
import pickle
import threading

import numpy as np
import pytest
import step_reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.nets import rescale, steps, sums
from qlab.nets.steps import RUN, Grid, Step, float32_share, multiplier


def layer(weight, bias=None, zero_point=0, kind="linear", real=None, **options):
    weight = torch.as_tensor(weight, dtype=torch.int8)
    bias = torch.zeros(len(weight), dtype=torch.int32) if bias is None else torch.as_tensor(bias, dtype=torch.int32)
    m, n = multiplier([100 / max(1, weight[0].numel() * 128 * 128) if real is None else real] * len(weight))
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | options if kind == "conv" else {}
    grids = Grid(0.5, zero_point, -128, 127), Grid(0.25, 3, -128, 127)
    return Step(kind, "layer", ("x",), "y", grids, weight=weight, bias=bias, m=m, n=n, options=options)


def way(step):
    return steps._ready(step, steps._arithmetic)[0]


def totals(step, codes):
    """The exact sums, int64."""
    x = codes.numpy().astype(np.int64) - step.grids[0].zero_point
    return x @ step.weight.numpy().astype(np.int64).T + step.bias.numpy()


def test_the_share_by_hand():
    step = layer([[-128, 3], [0, 0]], [-7, 2**24], zero_point=-28)
    assert (float32_share(step) * 2**24).tolist() == [(127 + 28) * (128 + 3) + 7, 2**24]    # code 127 is the farthest from -28
    assert float32_share(layer([[1]], zero_point=100)).item() * 2**24 == 228                # and -128 from 100
    with pytest.raises(ValueError, match="'x' is a relu, and must be a conv or a linear"):
        float32_share(Step("relu", "x", ("x",), "y", ()))


@pytest.mark.parametrize("channels", [1031, 1032, 1033, 3000])
@pytest.mark.parametrize("code, weight", [(-128, 127), (-128, -128), (127, -128)])
def test_both_sides_of_the_bound(channels, code, weight):
    """All at one end: the largest sums that there are. 1,032 * 128 * 127 is the last below 2**24."""
    codes = torch.full((2, channels), code, dtype=torch.int8)
    codes[1, ::2] = 1  # an odd sum, which float32 beyond 2**24 does not hold
    step = layer(np.full((3, channels), weight), [1, -1, 0])
    assert way(step).parts[0][1].dtype == torch.float32
    assert (len(way(step).parts) == 1) is bool((float32_share(step) <= 1).all())
    np.testing.assert_array_equal(way(step)(codes, 0).numpy(), totals(step, codes))
    np.testing.assert_array_equal(RUN["linear"](step, codes).numpy(), step_reference.run(step, codes))


def test_float32_alone_would_be_wrong():
    step, codes = layer(np.full((1, 3000), 127), [1]), torch.full((1, 3000), -128, dtype=torch.int8)
    codes[0, 0] = 127
    rounded = codes.float() @ step.weight.float().T + step.bias
    assert rounded.item() != totals(step, codes).item() == way(step)(codes, 0).item()


@pytest.mark.parametrize("options, kernel", [
    ({"groups": 2}, (4, 40, 60)), ({}, (4, 20, 30)), ({"padding": (1, 2), "stride": (2, 1)}, (300, 3, 3)),
    ({"dilation": (2, 3), "padding": "same"}, (300, 3, 2)),
])
@pytest.mark.parametrize("end", [-128, 127])
def test_wide_convolutions(options, kernel, end):
    rng = np.random.default_rng(0)
    weight = rng.choice([-128, 127, 127], (4, *kernel)).astype(np.int8)
    step = layer(weight, [2**24, -(2**30), 5, 0], zero_point=-end // 2, kind="conv", **options)
    assert float32_share(step).max() > 1
    rows, columns = ((k - 1) * options.get("dilation", (1, 1))[0] + 2 for k in kernel[1:])
    codes = torch.full((2, kernel[0] * options.get("groups", 1), rows, columns), end, dtype=torch.int8)
    codes[1] = torch.from_numpy(rng.integers(-128, 128, codes.shape[1:]).astype(np.int8))
    np.testing.assert_array_equal(RUN["conv"](step, codes).numpy(), step_reference.run(step, codes))


@given(st.integers(1, 70), st.sampled_from([0, 2**24, 2**31 - 1]), st.integers(-128, 127), st.integers(0, 2**32 - 1))
def test_every_part_stays_within_24_bits(channels, bias, zero_point, seed):
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.choice([-128, 127, 0, 3], (2, channels, 9, 11)).astype(np.int8))
    found = sums.floats(weight, torch.tensor([bias, 0], dtype=torch.int32), zero_point, {"groups": 1})
    farthest = max(127 - zero_point, 128 + zero_point)
    assert all(farthest * part.abs().flatten(1).sum(1).max() <= 2**24 for _, part in found.parts)
    assert torch.equal(torch.cat([part for _, part in found.parts], 1), weight.float())
    assert (found.added is None) is (bool((sums.bound(weight, torch.tensor([bias, 0]), zero_point) <= 2**24).all()))


# When a kernel rounds


def rounding(monkeypatch, spoiled):
    """torch's convolution as a Winograd kernel would leave it where spoiled(x) is true: off by one in one sum."""
    right = torch.nn.functional.conv2d

    def convolve(x, *rest):
        out = right(x, *rest)
        return out.index_add(1, torch.tensor([0]), torch.ones_like(out[:, :1])) if x.is_floating_point() and spoiled(x) else out

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)


@pytest.mark.parametrize("spoiled, dtype", [
    (lambda x: False, torch.float32), (lambda x: True, torch.int32), (lambda x: len(x) > 15, torch.int32),
    (lambda x: len(x) == 1, torch.int32),
])
def test_a_kernel_that_rounds_is_not_taken(monkeypatch, spoiled, dtype):
    rounding(monkeypatch, spoiled)
    rng = np.random.default_rng(0)
    step = layer(rng.integers(-128, 128, (5, 4, 3, 3)), kind="conv", padding=(1, 1))
    codes = torch.from_numpy(rng.integers(-128, 128, (20, 4, 6, 6)).astype(np.int8))
    assert way(step).parts[0][1].dtype == dtype
    np.testing.assert_array_equal(RUN["conv"](step, codes).numpy(), step_reference.run(step, codes))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.enable_grad,
                                    lambda: torch.backends.mkldnn.flags(enabled=False)])
def test_what_torch_is_told_around_it_changes_no_code(around):
    rng = np.random.default_rng(0)
    conv, linear = layer(rng.integers(-128, 128, (5, 64, 3, 3)), kind="conv"), layer(rng.integers(-128, 128, (5, 64)))
    for step, shape in ((conv, (20, 64, 5, 5)), (linear, (20, 64))):
        codes = torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))
        expected = step_reference.run(step, codes)
        with around():
            np.testing.assert_array_equal(RUN[step.kind](step, codes).numpy(), expected)
        np.testing.assert_array_equal(RUN[step.kind](step, codes).numpy(), expected)


def test_a_lower_precision_of_float32_changes_no_code():
    rng = np.random.default_rng(0)
    step, codes = layer(rng.integers(-128, 128, (64, 300))), torch.from_numpy(rng.integers(-128, 128, (40, 300)).astype(np.int8))
    kept = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            np.testing.assert_array_equal(RUN["linear"](step, codes).numpy(), step_reference.run(step, codes))
    finally:
        torch.set_float32_matmul_precision(kept)


# What is kept between two runs


def test_what_is_made_once_is_no_part_of_a_step():
    step, codes = layer(np.arange(-8, 8).reshape(2, 8), real=0.01), torch.arange(8, dtype=torch.int8)[None]
    before = pickle.dumps(step)
    first = RUN["linear"](step, codes)
    assert step in steps._READY and pickle.dumps(step) == before
    again = copy.deepcopy(step)
    assert again not in steps._READY and torch.equal(RUN["linear"](again, codes), first)
    known = len(steps._READY)
    del step, again
    assert len(steps._READY) <= known - 2


def test_a_weight_that_is_changed_in_place_counts():
    step, codes = layer(np.arange(-8, 8).reshape(2, 8), real=0.01), torch.arange(8, dtype=torch.int8)[None] * 9
    for changed, value in ((step.weight, 2), (step.bias, -3000), (step.m, 2**30), (step.n, -8)):
        before = RUN["linear"](step, codes)
        changed.fill_(value)
        after = RUN["linear"](step, codes)
        np.testing.assert_array_equal(after.numpy(), step_reference.run(step, codes))
        assert not torch.equal(before, after)


def test_threads_that_run_a_step_at_once_agree():
    rng = np.random.default_rng(0)
    step = layer(rng.integers(-128, 128, (6, 5, 3, 3)), kind="conv", padding=(1, 1))
    codes, found = torch.from_numpy(rng.integers(-128, 128, (4, 5, 9, 9)).astype(np.int8)), [None] * 8
    ready = threading.Barrier(len(found))

    def run(i):
        ready.wait()
        found[i] = RUN["conv"](step, codes).numpy()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(found))]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    for out in found:
        np.testing.assert_array_equal(out, step_reference.run(step, codes))


def test_many_images_are_those_of_one_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    step = layer(rng.integers(-128, 128, (6, 3, 3, 3)), kind="conv", padding=(1, 1))
    codes = torch.from_numpy(rng.integers(-128, 128, (7, 3, 8, 8)).astype(np.int8))
    for numbers in (1, 3 * 6 * 64, 10**9):
        monkeypatch.setattr(steps, "AT_ONCE", numbers)
        np.testing.assert_array_equal(RUN["conv"](step, codes).numpy(), step_reference.run(step, codes))


def test_sums_and_multipliers_that_no_floor_fits_take_the_long_way(monkeypatch):
    monkeypatch.setattr(rescale, "floor", lambda *_: None)
    rng = np.random.default_rng(0)
    step = layer(rng.integers(-128, 128, (6, 3, 3, 3)), kind="conv", real=1e-5)
    codes = torch.from_numpy(rng.integers(-128, 128, (2, 3, 8, 8)).astype(np.int8))
    np.testing.assert_array_equal(RUN["conv"](step, codes).numpy(), step_reference.run(step, codes))


def test_padding_farther_than_the_kernel_reaches():
    """oneDNN, given this one's padding itself, ends the process."""
    step = layer(np.ones((9, 3, 1, 1)), kind="conv", stride=(3, 2), padding=(2, 3), dilation=(1, 3), groups=3)
    codes = torch.full((1, 9, 4, 1), 5, dtype=torch.int8)
    np.testing.assert_array_equal(RUN["conv"](step, codes).numpy(), step_reference.run(step, codes))
