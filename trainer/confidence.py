"""A mean over clicks with its confidence interval: clicks of one user say less than as many of different users.

Clicks carry weights (a sample stands for more than itself) and come in clusters, the users. The variance of the mean
m = sum w x / sum w is that of a ratio of cluster totals (Cochran, Sampling Techniques, 1977, chapter 6):
U / (U - 1) sum_u (sum_i w (x - m))^2 / (sum w)^2. Shapes: N clicks, U users.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Z = 1.959964
"""Of the 95 % interval."""


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    """A weighted mean, its variance (infinite for one user alone), and how many equal users would weigh as much."""

    mean: float
    variance: float
    users: float


def spread(
    value_N: Float[np.ndarray, " N"], weight_N: Float[np.ndarray, " N"], user_N: Int[np.ndarray, " N"]
) -> Spread:
    """Of at least one click; users are numbered from 0, not every number need occur."""
    total = float(weight_N.sum())
    mean = float((weight_N * value_N).sum()) / total
    weight_U = np.bincount(user_N, weights=weight_N)
    residual_U = np.bincount(user_N, weights=weight_N * (value_N - mean))
    users = np.count_nonzero(weight_U)
    correction = users / (users - 1) if users > 1 else math.inf
    variance = correction * float((residual_U**2).sum()) / total**2 if users > 1 else math.inf
    return Spread(mean, variance, total**2 / float((weight_U**2).sum()))


def of_mean(found: Spread, *, low: float, high: float) -> Estimate:
    """The normal interval, within the bounds that the values have."""
    width = Z * math.sqrt(found.variance)
    return Estimate(found.mean, max(low, found.mean - width), min(high, found.mean + width))


def of_share(found: Spread) -> Estimate:
    """Wilson's interval for a share of hits (Wilson 1927), with as many clicks as would scatter like these."""
    share = found.mean
    is_scattered = 0.0 < found.variance < math.inf and 0.0 < share < 1.0
    count = share * (1.0 - share) / found.variance if is_scattered else found.users
    centre = (share + Z**2 / (2.0 * count)) / (1.0 + Z**2 / count)
    width = Z / (1.0 + Z**2 / count) * math.sqrt(share * (1.0 - share) / count + Z**2 / (4.0 * count**2))
    return Estimate(share, max(0.0, centre - width), min(1.0, centre + width))
