"""The reservoir: bounded, uniform over all users there ever were, each with the newest sequence."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.batch import Stretch
from trainer.replay import Replay, extended


def test_a_users_next_clicks_are_put_after_the_ones_that_are_known() -> None:
    known = Stretch(("a", "b", "c"), (1.0, 1.0, 3.0))

    assert extended(known, Stretch(("b", "c", "d"), (2.0,)), max_items=10) == (
        ("a", "b", "c", "d"),
        (1.0, 1.0, 3.0, 2.0),
    )
    assert extended(known, Stretch(("b", "c", "d"), (2.0,)), max_items=2) == (("c", "d"), (3.0, 2.0))


def test_a_longer_context_than_what_is_known_adds_only_the_new_clicks() -> None:
    known = Stretch(("b", "c"), (1.0, 3.0))

    assert extended(known, Stretch(("a", "b", "c", "d"), (2.0,)), max_items=10) == (("b", "c", "d"), (1.0, 3.0, 2.0))


def test_after_a_gap_the_new_sequence_stands_alone() -> None:
    known = Stretch(("a", "b"), (1.0, 1.0))

    assert extended(known, Stretch(("x", "y"), (2.0,)), max_items=10) == (("x", "y"), (1.0, 2.0))


def test_every_user_has_the_same_chance_to_be_remembered() -> None:
    kept = np.zeros(40)
    for seed in range(600):
        rng, replay = np.random.default_rng(seed), Replay(max_users=10, max_items=5)
        for user in range(40):
            replay.remember(str(user), Stretch(("a", "b"), (1.0,)), rng=rng)
        kept[[int(user) for user in replay.users]] += 1

    assert kept.sum() == 600 * 10
    assert kept / 600 == pytest.approx(np.full(40, 0.25), abs=5 * (0.25 * 0.75 / 600) ** 0.5)


def test_no_more_users_than_the_bound_are_kept() -> None:
    rng, replay = np.random.default_rng(1), Replay(max_users=3, max_items=5)

    for user in range(50):
        replay.remember(str(user), Stretch(("a", "b"), (1.0,)), rng=rng)

    assert len(replay.users) == len(replay.stretches) == 3
    assert set(replay.users) == set(replay.stretches)


def test_different_users_are_drawn_and_all_of_them_if_there_are_few() -> None:
    rng, replay = np.random.default_rng(1), Replay(max_users=30, max_items=5)
    for user in range(5):
        replay.remember(str(user), Stretch(("a", str(user)), (1.0,)), rng=rng)

    drawn = replay.draw(9, rng=rng)

    assert sorted(stretch.items[-1] for stretch in drawn) == ["0", "1", "2", "3", "4"]
