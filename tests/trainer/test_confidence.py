"""Intervals hold what they promise: over repeated draws, 95 % of them hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.confidence import Spread, of_mean, of_share, spreads

TRIALS = 400


def spread(value_N: np.ndarray, weight_N: np.ndarray, user_N: np.ndarray) -> Spread:
    return spreads(value_N[:, None], weight_N, user_N)[0]


@pytest.mark.parametrize("users", [400, 40], ids=["each user once", "ten clicks of each user"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_truth_lies_within_as_often_as_promised(users: int, share: float) -> None:
    """Users differ: one hits with every click or with none half the time."""
    rng = np.random.default_rng(7)
    user_N = np.arange(400) % users
    held = {"share": 0, "mean": 0}
    for _ in range(TRIALS):
        taste_U = rng.beta(share, 1 - share, size=users)
        hit_N = (rng.random(400) < taste_U[user_N]).astype(np.float64)
        found = spread(hit_N, rng.choice([1.0, 4.0], size=400), user_N)
        for name, estimate in (("share", of_share(found)), ("mean", of_mean(found, low=0.0, high=1.0))):
            held[name] += estimate.low <= share <= estimate.high

    assert held["share"] / TRIALS > 0.90
    assert held["mean"] / TRIALS > 0.85


def test_more_clicks_of_the_same_users_tell_less_than_clicks_of_more_users() -> None:
    hit_N = np.repeat([1.0, 0.0, 1.0, 0.0], 25)

    same = of_share(spread(hit_N, np.ones(100), np.repeat(np.arange(4), 25)))
    others = of_share(spread(hit_N, np.ones(100), np.arange(100)))

    assert same.high - same.low > 2 * (others.high - others.low)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_what_never_or_always_happened_so_far_may_still_be_otherwise(hit: float) -> None:
    estimate = of_share(spread(np.full(10, hit), np.ones(10), np.arange(10)))

    assert estimate.value == hit
    assert 0.2 < estimate.high - estimate.low < 0.35


def test_one_user_alone_says_nothing_certain() -> None:
    found = spread(np.array([0.2, 0.4]), np.ones(2), np.zeros(2, dtype=np.int64))

    assert list(of_mean(found, low=0.0, high=1.0)) == pytest.approx([0.3, 0.0, 1.0])
