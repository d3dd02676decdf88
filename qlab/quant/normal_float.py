"""NF4: sixteen levels for numbers that are normally distributed, as weights nearly are.

    level_i = quantile(p_i) / quantile(largest p)        quantile: of the standard normal distribution     Dettmers et al. 2023, section 3

Equally many numbers should fall to each level, so levels lie at evenly spaced probabilities p. Three wishes bend that: 0.0 is to be
exact, and so are -1 and 1 (the largest number of a group, divided by itself); and quantile(1) is infinite. So the halves are laid out by
themselves, 8 levels above zero and 7 below, evenly from p = 1/2 to an offset short of 1. Of 16 equal parts of the probability the last
has its middle at 1 - 1/32, of 15 at 1 - 1/30; the offset is the mean of the two, 1 - (1/32 + 1/30) / 2 = 0.96770833. The published table
is made with 0.9677083, in which the last digits are cut off, and with float32's rounding; NF4 holds it as it is published, so that a code
means the same everywhere. (Equation 4 there, the mean of two neighbouring quantiles, begins at quantile(0), which is infinite, and has no
exact 0: the table is not made by it.)
"""

from statistics import NormalDist

import torch

from qlab.quant.layout import check_bits

NF4 = torch.tensor([  # Dettmers et al. 2023, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def normal_levels(bits: int = 4) -> torch.Tensor:
    """The formula, for other widths by the same rule: float64 (2**bits,), ascending, half of them above 0. bits: 2 to 8.

    Raises ValueError for other bits.

    >>> levels = normal_levels()
    >>> levels[:4]
    tensor([-1.0000, -0.6962, -0.5251, -0.3949], dtype=torch.float64)
    >>> bool((levels - NF4).abs().max() < 4e-7)
    True
    """
    half = 2 ** (check_bits(bits, 2, 8) - 1)
    offset = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above = [NormalDist().inv_cdf(offset + (0.5 - offset) * i / half) for i in range(half)]
    below = [-NormalDist().inv_cdf(offset + (0.5 - offset) * i / (half - 1)) for i in range(half - 1)]
    return torch.tensor([*below, 0.0, *reversed(above)], dtype=torch.float64) / above[0]


def nearest(x: torch.Tensor) -> torch.Tensor:
    """The codes of the nearest levels, the lower at a tie: uint8, of x's shape. x: finite, beyond -1 and 1 it saturates."""
    middle = (NF4[1:].double() + NF4[:-1].double()) / 2                                     # exact: no value is on the wrong side of it
    return torch.bucketize(x.double().contiguous(), middle.to(x.device)).to(torch.uint8)
