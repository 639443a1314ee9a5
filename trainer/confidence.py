"""A mean over clicks with its confidence interval: clicks of one user say less than as many of different users.

Clicks carry weights (a sample stands for more than itself) and come in clusters, the users. The variance of the mean
m = sum w x / sum w is that of a ratio of cluster totals (Cochran, Sampling Techniques, 1977, chapter 6):
U / (U - 1) sum_u (sum_i w (x - m))^2 / (sum w)^2. Shapes: N clicks, U users, M values.
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


def spreads(
    value_NM: Float[np.ndarray, "N M"], weight_N: Float[np.ndarray, " N"], user_N: Int[np.ndarray, " N"]
) -> list[Spread]:
    """Of each of M values of at least one click."""
    order_N = np.argsort(user_N, kind="stable")
    start_U = np.flatnonzero(np.diff(user_N[order_N], prepend=user_N.min() - 1))
    weight_N1, value_NM = weight_N[order_N, None], value_NM[order_N]
    total, users = float(weight_N.sum()), len(start_U)
    mean_M = (weight_N1 * value_NM).sum(axis=0) / total
    weight_U = np.add.reduceat(weight_N1[:, 0], start_U)
    residual_UM = np.add.reduceat(weight_N1 * (value_NM - mean_M), start_U, axis=0)
    correction = users / (users - 1) if users > 1 else math.inf
    variance_M = correction * (residual_UM**2).sum(axis=0) / total**2 if users > 1 else np.full(len(mean_M), math.inf)
    equal_users = total**2 / float((weight_U**2).sum())
    return [
        Spread(mean, variance, equal_users) for mean, variance in zip(mean_M.tolist(), variance_M.tolist(), strict=True)
    ]


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
