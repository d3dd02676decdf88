"""The formats: exact round trips, scipy's CSR, the paper's figure, and bytes counted by formula."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from qlab.nets import sparse


def sprinkled(shape, density, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).abs() + 0.1
    return torch.where(torch.rand(shape, generator=generator) < density, values, 0).to(dtype)


@pytest.mark.parametrize("format", sparse.FORMATS)
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (10, 700), (3, 300), (7,), (1, 1), (0,), (0, 5), (5, 0), ()])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_round_trip(format, shape, density):
    weight = sprinkled(shape, density)
    found = sparse.encode(weight, format)
    again = sparse.decode(found)
    assert torch.equal(again, weight) and again.shape == weight.shape and again.dtype == weight.dtype
    assert sparse.nbytes(weight, format) == found.nbytes == sum(part.nbytes for part in found.parts.values())


@given(st.lists(st.sampled_from([0, 0, 0, 0, 0, 1, -2]), max_size=200), st.integers(1, 16))
def test_relative_index_never_loses_a_value(values, bits):
    gaps, kept = sparse.to_relative(values, bits)
    assert sparse.from_relative(gaps, kept, len(values)).tolist() == values
    assert gaps.numel() == 0 or 0 <= int(gaps.min()) and int(gaps.max()) < 2**bits
    fillers, zeros = 0, 0                                                                   # one value after the other
    for value in values:
        if value:
            fillers, zeros = fillers + zeros // 2**bits, 0
        else:
            zeros += 1
    assert int((kept == 0).sum()) == fillers and int((kept != 0).sum()) == np.count_nonzero(values)


def test_the_figure_of_deep_compression():
    dense = np.zeros(16)
    dense[[1, 4, 15]] = 3.4, 0.9, 1.7
    gaps, kept = sparse.to_relative(dense, bits=3)
    assert kept.tolist() == [3.4, 0.9, 0.0, 1.7]                                            # a filler at index 12, 8 places after 4
    assert np.cumsum(gaps.numpy() + 1).tolist() == [2, 5, 13, 16]
    assert sparse.from_relative(gaps, kept, 16).tolist() == dense.tolist()


@pytest.mark.parametrize("shape", [(10, 700), (64, 200), (3, 5, 3, 3)])
def test_csr_is_scipys(shape):
    weight = sprinkled(shape, 0.1)
    parts, theirs = sparse.encode(weight, "csr").parts, csr_matrix(weight.reshape(shape[0], -1).numpy())
    np.testing.assert_array_equal(parts["values"], theirs.data)
    np.testing.assert_array_equal(parts["columns"], theirs.indices)
    np.testing.assert_array_equal(parts["starts"], theirs.indptr)
    assert parts["columns"].dtype == (np.uint8 if np.prod(shape[1:]) <= 256 else np.uint16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.uint8])
def test_bytes_by_formula(dtype):
    weight = sprinkled((100, 1000), 0.1, dtype=dtype) if dtype.is_floating_point else (sprinkled((100, 1000), 0.1) != 0).to(dtype)
    size, count = weight.element_size(), int((weight != 0).sum())
    assert sparse.nbytes(weight, "dense") == 100_000 * size
    assert sparse.nbytes(weight, "bitmask") == 12_500 + count * size
    assert sparse.nbytes(weight, "csr") == count * (size + 2) + 101 * 2
    gaps, kept = sparse.to_relative(weight, 5)
    assert sparse.nbytes(weight, "relative", bits=5) == len(kept) * size + -(-len(gaps) * 5 // 8)


def test_non_contiguous_weights_and_what_torch_keeps_with_them():
    weight = torch.nn.Parameter(sprinkled((6, 8, 3, 3), 0.3)).to(memory_format=torch.channels_last)
    for format in sparse.FORMATS:
        assert torch.equal(sparse.decode(sparse.encode(weight, format)), weight)


@pytest.mark.parametrize("call, message", [
    (lambda: sparse.encode(torch.zeros(3), "coo"), "must be one of dense, bitmask, csr, relative"),
    (lambda: sparse.to_relative([1], 0), "bits is 0, and must be a whole number from 1 to 16"),
    (lambda: sparse.encode([1.0], "relative", bits=4.5), "bits is 4.5"),
    (lambda: sparse.from_relative([0, 4], [1, 2], 5), "reach 6 places"),
    (lambda: sparse.from_relative([0], [1, 2], 5), "there are 1 gaps and 2 values"),
    (lambda: sparse.from_relative([-1, 3], [1, 2], 5), "must be as many"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
