"""One floor in float64 against two roundings in integers: on every sum, on sums beside every step, for all multipliers."""

import numpy as np
import pytest
import step_reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab.nets import rescale

MULTIPLIERS = st.one_of(st.just((0, 0)), st.tuples(st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 2**31 - 1, 3 * 2**29])),
                                                   st.integers(-31, 30)))
ENDS = st.sampled_from([(-128, -128, 127), (127, -128, 127), (-128, -128, -60), (3, 3, 90), (0, -8, 7), (-5, -128, 127), (127, 127, 127)])


def pair(multipliers):
    m, n = zip(*multipliers)
    return torch.tensor(m, dtype=torch.int32), torch.tensor(n, dtype=torch.int8)


def reference(a, m, n, zero_point, low, high):
    y = np.stack([step_reference.times(column, *mn) for column, mn in zip(a.T.astype(np.int64), zip(m.tolist(), n.tolist()))], 1)
    return np.clip(y + zero_point, low, high)


@given(st.lists(MULTIPLIERS, min_size=1, max_size=4), ENDS, st.integers(0, 2**32 - 1))
def test_the_floor_is_the_two_roundings(multipliers, ends, seed):
    (m, n), rng = pair(multipliers), np.random.default_rng(seed)
    size = int(rng.choice([300, 2**17, 2**24, 2**31 - 1]))
    fast = rescale.floor(m, n, torch.full((len(m),), float(size)), *ends)
    assert fast is not None or ((n < -13) & (m > 0)).any()                                  # from 2**-14 on it is proved
    if fast is None:
        return
    near = rng.integers(-256, 257, (300, 1)) + 0.5
    beside = near / np.maximum((m.double() * 2.0 ** (n.double() - 31)).numpy(), 1e-30)
    beside = np.clip(beside, -size, size).round() + rng.integers(-2, 3, beside.shape)
    a = np.concatenate([rng.integers(-size, size + 1, beside.shape), beside])
    a = np.concatenate([np.clip(a, -size, size), np.full((1, len(m)), size), np.full((1, len(m)), -size)]).astype(np.int32)
    np.testing.assert_array_equal(fast(torch.from_numpy(a)), reference(a, m, n, *ends))


@pytest.mark.parametrize("m, n", [(2**30, -5), (2**30, -9), (2**31 - 1, -9), (1342177281, -11), (3 * 2**29, -16), (2**30 + 1, -19),
                                  (2**30, 0)])
@pytest.mark.parametrize("ends", [(-3, -128, 127), (-128, -128, 127)])
def test_every_sum_of_a_small_layer(m, n, ends):
    a = np.arange(-300_000, 300_001, dtype=np.int32)[:, None]
    m, n = torch.tensor([m], dtype=torch.int32), torch.tensor([n], dtype=torch.int8)
    fast = rescale.floor(m, n, torch.tensor([300_000.0]), *ends)
    np.testing.assert_array_equal(fast(torch.from_numpy(a)), reference(a, m, n, *ends))


def test_a_floor_without_the_sign_would_be_wrong():
    """-1/2 goes to -1, away from zero, and 1/2 to 1: m = 2**30 and n = -1 halve twice."""
    m, n = torch.tensor([2**30], dtype=torch.int32), torch.tensor([-1], dtype=torch.int8)
    a = torch.tensor([[-6], [-2], [2], [6]], dtype=torch.int32)
    fast = rescale.floor(m, n, torch.tensor([10.0]), 0, -128, 127)
    assert fast(a).flatten().tolist() == [-2, -1, 1, 2] and fast.away is not None
    assert torch.floor(a * 0.25 + 0.5).flatten().tolist() == [-1, 0, 1, 2]


def test_the_check_beside_the_steps_can_fail(monkeypatch):
    m, n, right = torch.tensor([1518500250], dtype=torch.int32), torch.tensor([-12], dtype=torch.int8), rescale.Floor.__call__
    for factor, as_good in ((1, True), (1 - 2**-20, False)):
        monkeypatch.setattr(rescale.Floor, "__call__", lambda self, a, factor=factor: right(self, a.double() * factor))
        assert (rescale.floor(m, n, torch.tensor([2.0**24]), 0, -128, 127) is not None) is as_good
