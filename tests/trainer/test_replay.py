"""The reservoir: bounded, uniform over all users there ever were, each with the newest sequence."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trainer.batch import Stretch
from trainer.replay import Choice, Replay, extended


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


def remembered(replay: Replay, endings: list[str], *, rng: np.random.Generator) -> None:
    """A user for each item that a sequence ends in."""
    for number, ending in enumerate(endings):
        state_D = rng.normal(size=3)
        replay.remember(f"{number}", Stretch(("a", ending), (1.0,)), rng=rng, state_D=state_D)


def endings_of(replay: Replay) -> Counter[str]:
    return Counter(items[-1] for items, _ in replay.stretches.values())


@pytest.mark.parametrize("choice", ["per_item", "herding"])
def test_a_rare_item_keeps_its_place_beside_a_popular_one(choice: Choice) -> None:
    rng = np.random.default_rng(3)
    replay = Replay(max_users=10, max_items=5, choice=choice)

    remembered(replay, ["rare"] * 4 + ["popular"] * 300, rng=rng)

    assert len(replay.users) == 10
    assert set(replay.users) == set(replay.stretches)
    assert endings_of(replay) == {"rare": 4, "popular": 6}
    assert {item: len(places.users) for item, places in replay.places.items()} == {"rare": 4, "popular": 6}


def test_of_one_items_sequences_each_is_as_likely_to_stay() -> None:
    kept = np.zeros(15)
    for seed in range(200):
        replay = Replay(max_users=3, max_items=5, choice="per_item")
        remembered(replay, ["x"] * 15, rng=np.random.default_rng(seed))
        kept[[int(user) for user in replay.users]] += 1

    assert kept.sum() == 200 * 3
    assert kept / 200 == pytest.approx(np.full(15, 0.2), abs=5 * (0.2 * 0.8 / 200) ** 0.5)


def test_herding_keeps_the_sequences_whose_mean_is_that_of_all() -> None:
    rng = np.random.default_rng(5)
    replay = Replay(max_users=4, max_items=5, choice="herding")
    state_ND = np.concatenate([rng.normal([5.0, 0.0], 0.1, size=(20, 2)), rng.normal([0.0, 5.0], 0.1, size=(20, 2))])

    for number in rng.permutation(40).tolist():
        replay.remember(str(number), Stretch(("a", "x"), (1.0,)), rng=rng, state_D=state_ND[number])

    assert sum(int(user) < 20 for user in replay.users) == 2


def test_a_remembered_user_who_clicks_again_counts_for_the_item_clicked_last() -> None:
    rng, replay = np.random.default_rng(1), Replay(max_users=3, max_items=5, choice="per_item")
    replay.remember("u", Stretch(("a", "b"), (1.0,)), rng=rng)

    replay.remember("u", Stretch(("a", "b", "c"), (1.0,)), rng=rng)

    assert {item: places.users for item, places in replay.places.items()} == {"c": ["u"]}
    assert replay.stretches["u"] == (("a", "b", "c"), (1.0, 1.0, 1.0))


def test_another_choice_goes_on_with_what_is_there_as_far_as_it_can() -> None:
    rng, replay = np.random.default_rng(1), Replay(max_users=9, max_items=5)
    remembered(replay, ["x", "x", "y"], rng=rng)

    by_item = replay.bounded(max_users=9, max_items=5, choice="per_item")
    by_state = replay.bounded(max_users=9, max_items=5, choice="herding")

    assert {item: places.users for item, places in by_item.places.items()} == {"x": ["0", "1"], "y": ["2"]}
    assert by_state.users == []
