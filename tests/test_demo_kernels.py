"""Notebook 12's kernels: what is raced is exact, what is said to be wrong is wrong, against definitions in NumPy."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from qlab.lab.demos import kernels
from qlab.matmul import product

HAS_ONNX = find_spec("onnx") and find_spec("onnxruntime")


def test_the_kernels_are_backends_and_each_has_a_time():
    assert set(kernels.BACKENDS.values()) <= set(product.BACKENDS)
    times = kernels.race(3, 70, 5, repeats=1)
    assert list(times) == ["float32", *kernels.exact_kernels()] and min(times.values()) > 0


def test_a_kernel_that_is_not_there_or_not_exact_is_left_out(monkeypatch):
    monkeypatch.setattr(kernels.device, "why_not_onnxruntime", lambda: "ONNX Runtime is not installed")
    monkeypatch.setattr(kernels.device, "onednn_is_exact", lambda: False)
    assert kernels.exact_kernels() == {"float32 in chunks": "float32"}
    monkeypatch.setitem(sys.modules, "onnx", None)
    kernels._session.cache_clear()
    with pytest.raises(ImportError, match="ONNX Runtime is not installed"):
        kernels.matmul_integer(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int8))


def test_a_product_that_is_wrong_is_not_raced(monkeypatch):
    monkeypatch.setattr(kernels, "int8_matmul", lambda a, b, backend: (a @ b).int())  # wraps in int8
    with pytest.raises(ValueError, match=r"torch\._int_mm is not exact for 4 x 64 x 4"):
        kernels.race(4, 64, 4, repeats=1)


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx and onnxruntime")
@pytest.mark.parametrize("shape", [(6, 64, 8), (5, 7, 3), (1, 1, 1)])
def test_onnx_runtime_s_product_is_exact_where_no_pair_saturates(shape):
    m, k, n = shape
    rng = np.random.default_rng(0)
    u, s = rng.integers(0, 128, (m, k), np.uint8), rng.integers(-128, 128, (k, n), np.int8)
    assert (kernels.matmul_integer(u, s) == u.astype(int) @ s).all()
    assert (kernels.matmul_integer(u[::-1], np.asfortranarray(s)) == u[::-1].astype(int) @ s).all()


def test_winograd_is_the_filter_in_real_numbers_and_not_exact_in_float32():
    rng = np.random.default_rng(0)
    inputs, taps = rng.integers(-128, 128, (500, 6)).astype(float), rng.integers(-128, 128, (500, 3)).astype(float)
    direct = np.stack([np.correlate(x, w) for x, w in zip(inputs, taps)])
    assert np.abs(kernels.winograd(torch.tensor(inputs), torch.tensor(taps)).numpy() - direct).max() < 1e-9
    single = kernels.winograd(torch.tensor(inputs, dtype=torch.float32), torch.tensor(taps, dtype=torch.float32)).double().numpy()
    assert 0.1 < (single != direct).mean() and np.abs(single - direct).max() < 1
