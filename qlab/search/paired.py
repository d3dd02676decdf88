"""Two networks on the same images: how many points one loses against the other, and whether that is noise, when many pairs are looked at.

    d    = (lost - won) / n             lost: images that only the first has right, won: only the second
    high = the largest D with  (lost - won - n D) / sqrt(n (2 q + D (1 - D)))  >=  -z                        Tango 1998, eq. 7 and 8
    p    = 2 P(X <= min(lost, won)),    X ~ Binomial(lost + won, 1/2)                                        McNemar 1947, exact

q is the likeliest share of images won if the true difference were D: the root of a quadratic. The notebooks' interval (Bonett and Price
2012, qlab.lab.significance, which takes z and p from here) is meant for 95 %. A search looks at many networks, and asks each for more
confidence than that; out there, where few images change, it is too narrow: with no image lost of n its limit is 1.4 z / n, and Tango's
z**2 / n.
"""

import math
import sys
from statistics import NormalDist

from qlab.quant.layout import check_whole


def z_of(confidence: float) -> float:
    """How many standard errors to either side hold so much of a normal distribution. ValueError unless 0 < confidence < 1.

    >>> round(z_of(0.95), 4)
    1.96
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, and must lie between 0 and 1, for example 0.95.")
    return -NormalDist().inv_cdf((1 - confidence) / 2)


def limits(lost: int, won: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval (low, high) of the share of n images that is lost on balance; from -1 to 1.

    Raises ValueError for counts that are no whole numbers or below 0, no images, or more lost and won than there are.

    >>> low, high = limits(lost=60, won=30, n=1000)
    >>> round(low, 4), round(high, 4)
    (0.0117, 0.0492)
    """
    z = z_of(confidence)
    for name, count, least in (("lost", lost, 0), ("won", won, 0), ("n", n, 1)):
        check_whole(name, count, least)
    if lost + won > n:
        raise ValueError(f"lost and won are {lost} and {won}, and must together be at most n, {n}.")
    return -_highest(won, lost, n, z), _highest(lost, won, n, z)


def _highest(lost: int, won: int, n: int, z: float) -> float:
    inside, outside = (lost - won) / n, 1.0
    if not lost + won:  # the root is known, and exact
        return z * z / (n + z * z)
    for _ in range(60):
        middle = (inside + outside) / 2
        if lost - won - n * middle >= -z * math.sqrt(n * _spread(lost, won, n, middle)):
            inside = middle
        else:
            outside = middle
    return inside


def _spread(lost: int, won: int, n: int, d: float) -> float:
    """n times the variance of the difference, if d is the true one."""
    b, c = -lost - won + (2 * n - lost + won) * d, -won * d * (1 - d)
    q = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    return max(0.0, 2 * q + d * (1 - d))


def p_value(lost: int, won: int) -> float:
    """How likely so uneven a split of lost + won images is, either way, if both networks are equally good: above 0, at most 1.

    A p below the smallest float64, 2.2e-308, is given as that. Raises ValueError for counts that are no whole numbers or below 0.

    >>> round(p_value(lost=0, won=5), 4), p_value(3, 3)                      # 2 / 2**5
    (0.0625, 1.0)
    """
    check_whole("lost", lost, 0)
    check_whole("won", won, 0)
    less, m = min(lost, won), lost + won
    if 2 * less == m:
        return 1.0
    # P(X <= less) = P(X = less) * (1 + less / (m - less + 1) * (1 + ...)): the terms fall, and nothing overflows.
    total, term, i = 0.0, 1.0, less
    while term > 1e-17 * total:
        total += term
        term *= i / (m - i + 1)
        i -= 1
    log_first = math.lgamma(m + 1) - math.lgamma(less + 1) - math.lgamma(m - less + 1) - m * math.log(2)
    return min(1.0, max(sys.float_info.min, 2 * math.exp(log_first) * total))


def least_limit(n: int, confidence: float) -> float:
    """The highest loss that n images cannot exclude when not one of them changes.

    >>> round(least_limit(1000, 0.95), 5)
    0.00383
    """
    return limits(0, 0, n, confidence)[1]
