"""What counts as a spike, and what ends a run of them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.guard import RECOVERY, WARM_UP, Guard, Run


def usual(*, size: int = 64, spread: float = 0.1) -> Guard:
    guard, rng = Guard(), np.random.default_rng(3)
    for loss in rng.normal(5.0, spread, WARM_UP * 4).tolist():
        guard.remember(loss, examples=size)
    return guard


def test_nothing_is_a_spike_before_enough_is_known() -> None:
    guard = Guard()
    for _ in range(WARM_UP - 1):
        guard.remember(5.0, examples=64)

    assert guard.z_score(1e9, examples=64) == 0.0
    assert guard.ceiling(10.0, examples=64) == math.inf


def test_a_loss_far_above_the_usual_scores_high_and_one_below_never_does() -> None:
    guard = usual()

    assert guard.z_score(8.0, examples=64) > 10
    assert abs(guard.z_score(5.05, examples=64)) < 1
    assert guard.z_score(0.0, examples=64) < 0


def test_the_mean_over_few_examples_may_scatter_more() -> None:
    guard = usual(size=64)

    assert guard.z_score(6.0, examples=1) < guard.z_score(6.0, examples=64) / 7


def test_a_stream_that_is_foreseen_without_spread_has_no_spike_in_every_ripple() -> None:
    assert usual(spread=0.0).z_score(5.2, examples=64) < 3


@given(z_score=st.floats(0.1, 100.0), examples=st.integers(1, 1_000))
def test_the_ceiling_is_the_loss_of_that_score(z_score: float, examples: int) -> None:
    guard = usual()

    assert math.isclose(guard.z_score(guard.ceiling(z_score, examples=examples), examples=examples), z_score)


def test_a_run_of_spikes_ends_when_it_stays_quiet_for_a_while() -> None:
    run = Run()

    for spike in (True, False, True, *([False] * (RECOVERY - 1))):
        run.observe(spike=spike)
    assert (run.spikes, run.is_open) == (2, True)

    run.observe(spike=False)
    assert not run.is_open
