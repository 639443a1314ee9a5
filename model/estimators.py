"""What another policy would have earned, from what was logged; docs/propensities.md section 6.

Shape: I served impressions. `weight_I` is the chance that the judged policy serves the item over the logged propensity.
Only impressions logged after the judged model's training cut-off count: on others its value is overestimated.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Estimate(NamedTuple):
    """A mean reward per impression with its normal confidence interval."""

    value: float
    low: float
    high: float
    effective_sample_size: float
    """`(sum w)^2 / sum w^2`; an interval from few effective impressions is not to be believed."""
    impressions: int


def ips(weight_I: Float[np.ndarray, " I"], reward_I: Float[np.ndarray, " I"], *, confidence: float) -> Estimate:
    """`mean(w r)`: inverse propensity scoring (Horvitz & Thompson 1952). Unbiased, and wide where weights are large."""
    term_I = weight_I * reward_I
    return _estimate(_mean(term_I), term_I, weight_I, confidence)


def snips(weight_I: Float[np.ndarray, " I"], reward_I: Float[np.ndarray, " I"], *, confidence: float) -> Estimate:
    """`sum(w r) / sum(w)` (Swaminathan & Joachims 2015): slightly biased, narrower; interval by the delta method.

    Zero of all rewards or no weight at all give a value of zero.
    """
    total = float(weight_I.sum())
    value = float(weight_I @ reward_I) / total if total > 0.0 else 0.0
    return _estimate(value, _residuals(weight_I, reward_I, value), weight_I, confidence)


def doubly_robust(
    weight_I: Float[np.ndarray, " I"],
    reward_I: Float[np.ndarray, " I"],
    *,
    predicted_I: Float[np.ndarray, " I"],
    expected_I: Float[np.ndarray, " I"],
    confidence: float,
) -> Estimate:
    """`mean(e + w (r - r'))` (Dudik et al. 2011): right if either the propensities or the reward model are.

    `predicted_I` is the reward model's r' for the item served, `expected_I` its mean e over what the judged policy
    would have served there.
    """
    term_I = expected_I + weight_I * (reward_I - predicted_I)
    return _estimate(_mean(term_I), term_I, weight_I, confidence)


def snips_difference(
    weight_I: Float[np.ndarray, " I"],
    than_I: Float[np.ndarray, " I"],
    reward_I: Float[np.ndarray, " I"],
    *,
    group_I: Int[np.ndarray, " I"],
    confidence: float,
) -> Estimate:
    """By how much the value of one policy lies above that of another (weights `than_I`), both as of `snips`.

    On the same impressions, so that what both meet cancels. Impressions of one `group_I` (a slate) belong together: the
    interval, by the delta method, is that of independent groups. The effective sample size is the smaller of the two.
    """
    value, than = (snips(w_I, reward_I, confidence=confidence).value for w_I in (weight_I, than_I))
    residual_I = _residuals(weight_I, reward_I, value) - _residuals(than_I, reward_I, than)
    total_G = np.bincount(group_I, weights=residual_I)[np.unique(group_I)]
    margin = math.inf
    if len(total_G) > 1:
        quantile = NormalDist().inv_cdf(0.5 + confidence / 2.0)
        groups = len(total_G)
        margin = quantile * math.sqrt(groups / (groups - 1) * float(np.square(total_G).sum())) / len(reward_I)
    size = min(effective_sample_size(weight_I), effective_sample_size(than_I))
    return Estimate(value - than, value - than - margin, value - than + margin, size, len(reward_I))


def effective_sample_size(weight_I: Float[np.ndarray, " I"]) -> float:
    """How many equally weighted impressions would say as much (Kish 1965); zero where no weight is."""
    squares = float(weight_I @ weight_I)
    return float(weight_I.sum()) ** 2 / squares if squares > 0.0 else 0.0


def _residuals(weight_I: np.ndarray, reward_I: np.ndarray, value: float) -> np.ndarray:
    """What each impression adds to the error of a self-normalised mean."""
    total = float(weight_I.sum())
    residual_I: np.ndarray = weight_I * (reward_I - value) * (len(weight_I) / total if total > 0.0 else 0.0)
    return residual_I


def _mean(term_I: np.ndarray) -> float:
    return float(term_I.mean()) if len(term_I) else 0.0


def _estimate(value: float, term_I: np.ndarray, weight_I: np.ndarray, confidence: float) -> Estimate:
    """The interval from the spread of `term_I`; everything is possible with fewer than two impressions."""
    count = len(term_I)
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    margin = quantile * float(term_I.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(value, value - margin, value + margin, effective_sample_size(weight_I), count)
