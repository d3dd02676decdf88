"""Softmax in integers against CMSIS-NN's test vectors, the real softmax, and the runtimes' kernels, bit for bit."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.deploy import tflite
from qlab.nets.integer import Grid, IntegerNetwork, Step
from qlab.nets.softmax import softmax, softmax_multiplier

needs_runtimes = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("ai_edge_litert", "tflite_micro"))),
                                    reason="a runtime is not installed: pip install qlab[deploy]")


def int8(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int8)


@pytest.mark.parametrize("m, n, codes, out", [  # Tests/UnitTest/TestCases/TestData/softmax, 2022 and 2020
    (1077952640, 19, int8([101, 49, 6, -34, -75], [-79, -38, 120, -55, 115]), int8([-57, -70, -79, -86, -92], [-94, -88, -54, -91, -56])),
    (1077952576, 23, int8([-80, -48, 16, 0, -96]), int8([-128, -125, 56, -60, -128])),
])
def test_cmsis_nn(m, n, codes, out):
    assert torch.equal(softmax(codes, m, n), out)


@given(st.integers(0, 2**32), st.floats(-7, 6), st.integers(1, 700))
def test_the_code_next_to_the_real_softmax(seed, decade, classes):
    scale, rng = 10**decade, np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (3, classes)).astype(np.int8)
    codes[1] //= 32
    codes[2] = codes[2, 0]
    real = np.exp(scale * (codes.astype(float) - codes.max(1, keepdims=True)))
    real = np.minimum(256 * real / real.sum(1, keepdims=True) - 128, 127)
    got = softmax(torch.from_numpy(codes), *softmax_multiplier(scale)).numpy()
    assert np.abs(got - real).max() <= 0.51                                                 # rounded to nearest, but for exp's last bits


@needs_runtimes
@pytest.mark.parametrize("scale", [2e-8, 1e-3, 0.02, 0.0437, 0.3, 1, 7, 15.99, 16, 31, 32, 33, 1e5, 1e30])
def test_the_kernels_of_tflite(scale, tmp_path):
    """tflite-micro and LiteRT's plain loops bit for bit; the others look exp up in a table of float32, at most a code apart."""
    grid, rng = Grid(float(np.float32(scale)), -128, -128, 127), np.random.default_rng(0)
    network = IntegerNetwork((Step("relu", "step", ("x",), "y", (grid, grid)),), "x", "y", grid, grid)
    for classes in (1, 2, 10, 511):
        codes = torch.from_numpy(rng.integers(-128, 128, (60, classes)).astype(np.int8))
        codes[:30] //= 16
        codes[0], codes[1] = -128, 127
        want = softmax(codes, *softmax_multiplier(grid.scale)).int()
        tflite.export(network, tmp_path / "net.tflite", (classes,), softmax=True)
        for kernels in tflite.KERNELS:
            got = tflite.run(tmp_path / "net.tflite", codes, kernels).int()
            assert (got - want).abs().max() <= (kernels in ("builtin", "xnnpack")), (classes, kernels)


def test_many_that_are_equal_get_nothing():
    """256 / 511 is above a half, 256 / 512 times the largest number below 1 is not."""
    for classes, code in ((255, -127), (511, -127), (512, -128), (4095, -128)):
        assert (softmax(torch.full((classes,), 5, dtype=torch.int8), *softmax_multiplier(0.1)) == code).all()
    assert softmax(torch.zeros(0, 3, dtype=torch.int8), *softmax_multiplier(0.1)).shape == (0, 3)


@pytest.mark.parametrize("scale", [2.0**-26, 0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match="and softmax takes a finite one above 2..-26"):
        softmax_multiplier(scale)


def test_other_codes_are_refused():
    good = softmax_multiplier(1)
    with pytest.raises(TypeError, match="codes are torch.int32, and must be int8"):
        softmax(torch.zeros(2, 3, dtype=torch.int32), *good)
    for shape in ((), (3, 0), (2, 4096)):
        with pytest.raises(ValueError, match="must have 1 to 4,095 classes in the last dimension"):
            softmax(torch.zeros(shape, dtype=torch.int8), *good)
    for m, n in ((2**30 - 1, 3), (2**31, 3), (2**30, -1), (2**30, 32)):
        with pytest.raises(ValueError, match="m and n are .* and must be from 2..30"):
            softmax(torch.zeros(3, dtype=torch.int8), m, n)
