"""The closed loop in a small world: who takes every click for taste ends up believing what was shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.closed_loop import ARMS, Loop, Outcome, Serving, Size, make_world
from benchmarks.prophecy import rows_of
from trainer.exposure import gini

SMALL = Size(items=60, users=200, legacy_requests=300, requests=1_200, round_requests=20)


def test_both_terms_find_out_what_is_liked_where_the_naive_learner_confirms_itself() -> None:
    torch.set_num_threads(1)
    world = make_world(SMALL, np.random.default_rng(2))
    arms = [arm for arm in ARMS if arm.name in ("naive", "both")]

    naive, both = (Loop(world, SMALL, arm=arm, serving=Serving(), seed=2).run() for arm in arms)

    assert both.ndcg10 > naive.ndcg10 + 0.05
    assert both.coverage > naive.coverage
    assert both.gini < naive.gini


def test_gini_tells_equal_shares_from_one_that_has_everything() -> None:
    assert gini(np.full(10, 3.0)) == pytest.approx(0.0)
    assert gini(np.array([0.0] * 99 + [5.0])) == pytest.approx(0.99)


def test_the_difference_is_taken_world_by_world() -> None:
    naive = [Outcome(0.2, 0.1, 0.9, 0.5), Outcome(0.4, 0.1, 0.9, 0.5)]
    both = [Outcome(0.5, 0.5, 0.4, 0.1), Outcome(0.8, 0.5, 0.4, 0.1)]

    rows = list(rows_of(Serving(), {"naive": naive, "both": both}, goal=None))

    assert rows[-1].ours == pytest.approx(0.35)
    assert "sd 0.071, 2 worlds" in rows[-1].what
