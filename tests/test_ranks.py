"""Rank correlations against SciPy's; two of them compared on the same things."""

import pytest
import torch
from scipy.stats import rankdata, spearmanr

from qlab.lab import ranks


def test_equal_numbers_share_their_rank_as_scipys_do():
    x = torch.randint(0, 5, (3, 40), generator=torch.Generator().manual_seed(0)).double()
    assert ranks.ranks(x).tolist() == rankdata(x, axis=1).tolist()


def test_correlation_is_scipys_with_ties():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randint(0, 9, (2, 50), generator=generator).double()
    assert ranks.correlation(a, b).item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_a_proxy_that_orders_like_the_truth_is_told_from_one_that_does_not():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(120, generator=generator)
    noise = torch.rand(2, 120, generator=generator)
    predicted = {"good": (truth + 0.1 * noise[0]).tolist(), "twin": (truth + 0.1 * noise[1]).tolist(), "blind": noise[0].tolist()}
    near, far = ranks.compare(predicted, truth.tolist(), [("good", "twin"), ("good", "blind")]).splitlines()
    assert near.endswith("inside the noise") and not far.endswith("inside the noise")
    assert far.startswith("good minus blind: +")


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator, rho, inside = torch.Generator().manual_seed(0), 0.6, 0
    population = 6 / torch.pi * torch.asin(torch.tensor(rho / 2))                           # Spearman's of two normal numbers
    for _ in range(60):
        a, noise = torch.randn(2, 100, generator=generator)
        found = ranks.spearman(a, rho * a + (1 - rho**2) ** 0.5 * noise)
        inside += found["low"] <= population <= found["high"]
    assert 50 <= inside <= 60


def test_lists_are_ordered_as_tensors_are():
    a, b = [1.0, 2.0, 4.0, 3.0], [1.0, 3.0, 2.0, 4.0]
    assert ranks.spearman(a, b) == ranks.spearman(torch.tensor(a), torch.tensor(b))
    assert ranks.spearman(a, b)["value"] == pytest.approx(spearmanr(a, b).statistic)


BAD = {"constant": [1.0, 1.0, 1.0], "one": [1.0], "two": [1.0, 2.0], "none": [], "longer": [1.0, 2.0, 3.0, 4.0],
       "nan": [1.0, float("nan"), 2.0], "infinite": [1.0, float("inf"), 2.0], "table": [[1.0, 2.0, 3.0]]}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_cannot_be_ordered_is_refused(bad):
    good = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="^b .* must (hold 3|be finite)"):
        ranks.spearman(good, bad)
    with pytest.raises(ValueError, match="^(a|b) "):
        ranks.spearman(bad, good)
    with pytest.raises(ValueError, match="^mine "):
        ranks.compare({"mine": bad, "yours": good}, good, [("yours", "mine")])
    with pytest.raises(ValueError, match="^(truth|mine) "):
        ranks.compare({"mine": good}, bad, [("mine", "mine")])


def test_what_is_no_number_has_no_rank():
    with pytest.raises(ValueError, match="have no rank"):
        ranks.ranks(torch.tensor([1.0, float("nan")]))
    with pytest.raises(TypeError, match="a is a str"):
        ranks.spearman("abc", [1.0, 2.0, 3.0])


@pytest.mark.parametrize("pairs", [[], [("mine", "theirs")], [("mine",)]])
def test_pairs_are_of_what_is_predicted(pairs):
    with pytest.raises(ValueError, match="at least one pair of 'mine'"):
        ranks.compare({"mine": [1.0, 2.0, 3.0]}, [1.0, 2.0, 3.0], pairs)
