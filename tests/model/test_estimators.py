"""Off-policy estimates against hand-made numbers, and against the truth of a small world."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from model.estimators import Estimate, doubly_robust, effective_sample_size, ips, snips, snips_difference

WEIGHTS = np.array([2.0, 0.5, 1.0, 0.0])
REWARDS = np.array([1.0, 0.0, 1.0, 1.0])
PREDICTED = np.array([0.5, 0.25, 0.5, 0.0])
EXPECTED = np.array([0.4, 0.4, 0.2, 0.2])


def test_ips_is_the_weighted_mean() -> None:
    assert ips(WEIGHTS, REWARDS, confidence=0.95).value == pytest.approx(3 / 4)


def test_snips_is_normalised_by_the_weights() -> None:
    assert snips(WEIGHTS, REWARDS, confidence=0.95).value == pytest.approx(3 / 3.5)


def test_doubly_robust_corrects_the_reward_model_where_it_was_wrong() -> None:
    estimate = doubly_robust(WEIGHTS, REWARDS, predicted_I=PREDICTED, expected_I=EXPECTED, confidence=0.95)

    assert estimate.value == pytest.approx((0.4 + 1.0 + 0.4 - 0.125 + 0.2 + 0.5 + 0.2) / 4)


def test_the_interval_is_the_normal_one() -> None:
    estimate = ips(WEIGHTS, REWARDS, confidence=0.95)

    margin = 1.959964 * np.std(WEIGHTS * REWARDS, ddof=1) / 2
    assert (estimate.low, estimate.high) == pytest.approx((0.75 - margin, 0.75 + margin))


def test_equal_weights_are_worth_their_number() -> None:
    assert effective_sample_size(np.full(7, 3.0)) == pytest.approx(7.0)
    assert effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_impressions_prove_nothing(count: int) -> None:
    for estimate in (
        ips(WEIGHTS[:count], REWARDS[:count], confidence=0.95),
        snips(WEIGHTS[:count], REWARDS[:count], confidence=0.95),
    ):
        assert math.isfinite(estimate.value)
        assert (estimate.low, estimate.high) == (-math.inf, math.inf)
        assert estimate.impressions == count


def test_no_weight_at_all_is_worth_nothing() -> None:
    estimate = snips(np.zeros(3), REWARDS[:3], confidence=0.9)

    assert estimate.value == 0.0
    assert estimate.effective_sample_size == 0.0


CLICK_RATE = np.array([0.1, 0.3, 0.6])
LOGGER = np.array([0.6, 0.3, 0.1])
JUDGED = np.array([0.2, 0.2, 0.6])


@pytest.mark.parametrize("method", ["ips", "snips", "doubly robust"])
def test_nineteen_of_twenty_intervals_hold_the_truth(method: Literal["ips", "snips", "doubly robust"]) -> None:
    truth = float(JUDGED @ CLICK_RATE)
    rng = np.random.default_rng(1)

    covered = [estimate.low <= truth <= estimate.high for estimate in (judge(method, rng) for _ in range(1_000))]

    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def judge(method: str, rng: np.random.Generator) -> Estimate:
    """The judged policy's value from a thousand impressions of the logger; the reward model is half right."""
    item = rng.choice(3, size=1_000, p=LOGGER)
    reward = (rng.random(1_000) < CLICK_RATE[item]).astype(np.float64)
    weight = (JUDGED / LOGGER)[item]
    if method == "ips":
        return ips(weight, reward, confidence=0.95)
    if method == "snips":
        return snips(weight, reward, confidence=0.95)
    model = CLICK_RATE / 2
    expected = np.full(1_000, float(JUDGED @ model))
    return doubly_robust(weight, reward, predicted_I=model[item], expected_I=expected, confidence=0.95)


def test_the_open_bandit_pipeline_says_the_same() -> None:
    """Twelve impressions of three items; the values are what obp 0.4.1 returned for them (numpy 2.4).

    InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting and DoublyRobust of obp.ope.estimators, with
    `policy_IK` as `action_dist` and `model_IK` as `estimated_rewards_by_reg_model`.
    """
    index = np.arange(12)
    item = index * 7 % 3
    reward = (index * 5 % 4 < 2).astype(np.float64)
    propensity = np.array([0.5, 0.25, 0.125])[(index * 7 + index // 3) % 3]
    policy_IK = np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375], [0.25, 0.125, 0.625]])[index % 3 - 1]
    model_IK = np.array([[0.25, 0.5, 0.75], [0.5, 0.125, 0.375]])[index % 2]
    weight = policy_IK[index, item] / propensity
    predicted, expected = model_IK[index, item], (policy_IK * model_IK).sum(axis=1)

    robust = doubly_robust(weight, reward, predicted_I=predicted, expected_I=expected, confidence=0.95)

    assert ips(weight, reward, confidence=0.95).value == pytest.approx(0.5208333333333334, abs=1e-9)
    assert snips(weight, reward, confidence=0.95).value == pytest.approx(0.373134328358209, abs=1e-9)
    assert robust.value == pytest.approx(0.3020833333333333, abs=1e-9)


def test_a_difference_is_that_of_the_two_values_and_of_a_policy_with_itself_none() -> None:
    group_I = np.array([0, 0, 1, 1])
    than_I = np.array([1.0, 1.0, 0.0, 2.0])

    found = snips_difference(WEIGHTS, than_I, REWARDS, group_I=group_I, confidence=0.95)
    itself = snips_difference(WEIGHTS, WEIGHTS, REWARDS, group_I=group_I, confidence=0.95)

    assert found.value == pytest.approx(3 / 3.5 - 3 / 4)
    assert found.effective_sample_size == pytest.approx(effective_sample_size(WEIGHTS))
    assert (itself.low, itself.value, itself.high) == (0.0, 0.0, 0.0)


def test_impressions_of_one_slate_that_are_clicked_together_say_as_much_as_one() -> None:
    """Every impression five times over: the interval of the slates, not one that is narrower by the root of five."""
    rng = np.random.default_rng(4)
    weight_I, than_I = rng.exponential(size=(2, 500))
    reward_I = (rng.random(500) < 0.3).astype(np.float64)
    once = snips_difference(weight_I, than_I, reward_I, group_I=np.arange(500), confidence=0.95)

    often = snips_difference(
        *(np.repeat(array, 5) for array in (weight_I, than_I, reward_I)),
        group_I=np.repeat(np.arange(500), 5),
        confidence=0.95,
    )

    assert (often.low, often.value, often.high) == pytest.approx((once.low, once.value, once.high))


def test_nineteen_of_twenty_intervals_of_a_difference_hold_the_truth() -> None:
    truth = float((JUDGED - LOGGER) @ CLICK_RATE)
    rng = np.random.default_rng(5)

    def holds() -> bool:
        item_I = rng.choice(3, size=1_000, p=LOGGER)
        reward_I = (rng.random(1_000) < CLICK_RATE[item_I]).astype(np.float64)
        weight_I, than_I = (JUDGED / LOGGER)[item_I], np.ones(1_000)
        found = snips_difference(weight_I, than_I, reward_I, group_I=np.arange(1_000), confidence=0.95)
        return found.low <= truth <= found.high

    assert np.mean([holds() for _ in range(1_000)]) == pytest.approx(0.95, abs=0.03)
