"""Recommenders that only count: what they know, and how much of it."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.scoring.counted import REBUILT_ITEMS, Counted
from deploy.scoring.space import Space
from model.policies import Eligible
from trainer.settings import TrainerSettings

NOTHING: frozenset[str] = frozenset()


def popular(counted: Counted, *, now: float = 0.0, without: tuple[str, ...] = (), size: int = 10) -> list[str]:
    space = Space(counted.shelf(now=now), withdrawn=NOTHING, available=NOTHING)
    excluded_X = np.sort(space.rows_of(without))
    found = counted.popular(Eligible(row_N=space.row_N, excluded_X=excluded_X), size=size)
    return [space.item_of(row) for row in found.row_C.tolist()]


def after(counted: Counted, item_id: str, *, now: float = 0.0) -> list[str]:
    space = Space(counted.shelf(now=now), withdrawn=NOTHING, available=NOTHING)
    (row,) = space.rows_of([item_id]).tolist()
    eligible = Eligible(row_N=space.row_N, excluded_X=np.array([row]))
    return [space.item_of(row) for row in counted.followers(row, eligible, size=10).row_C.tolist()]


def test_what_is_clicked_often_and_lately_is_popular() -> None:
    counted = Counted(TrainerSettings(popular_half_life=2.0))
    for moment, item_id in enumerate(("old", "old", "old", "old", "new", "new", "newest", "newest")):
        counted.click(None, item_id)
        counted.shelf(now=float(moment))

    assert popular(counted) == ["newest", "new", "old"]
    assert popular(counted, without=("new",), size=1) == ["newest"]


def test_what_followed_comes_before_what_is_popular() -> None:
    counted = Counted(TrainerSettings())
    for _ in range(5):
        counted.click(None, "hit")
    counted.click("a", "b")
    counted.click("a", "c")
    counted.click("a", "c")

    assert after(counted, "a") == ["c", "b", "hit"]
    assert after(counted, "hit") == ["c", "b", "a"]


def test_a_user_met_with_a_history_counts_with_its_last_items() -> None:
    counted = Counted(TrainerSettings())
    counted.met(tuple(f"item-{number:02}" for number in range(30)))
    counted.met(("alone",))

    assert set(popular(counted, size=50)) == {f"item-{number}" for number in range(30 - REBUILT_ITEMS - 1, 30)} | {
        "alone"
    }
    assert after(counted, "item-25")[0] == "item-26"


def test_clicks_come_in_together_after_a_while() -> None:
    counted = Counted(TrainerSettings())
    counted.click(None, "first")
    assert popular(counted, now=10.0) == ["first"]

    counted.click(None, "second")
    assert popular(counted, now=10.5) == ["first"]
    assert set(popular(counted, now=11.0)) == {"first", "second"}


@pytest.mark.parametrize("items", [3, 50])
def test_memory_is_bounded_by_items_and_pairs(items: int) -> None:
    counted = Counted(TrainerSettings(max_items=items, transition_pairs=20))
    rng = np.random.default_rng(1)
    for moment in range(200):
        for before, item in rng.integers(0, 100, size=(5, 2)).tolist():
            counted.click(f"item-{before}", f"item-{item}")
        counted.shelf(now=float(moment))
        assert len(counted._catalogue) <= items
        assert counted._transitions.pairs <= 20 + 5

    assert len(popular(counted, now=1_000.0, size=100)) <= items


def test_a_space_looks_again_only_at_those_who_had_no_row_before() -> None:
    counted = Counted(TrainerSettings())
    counted.click(None, "known")
    available = frozenset({"known", "new", "newer"})
    first = Space(counted.shelf(now=0.0), withdrawn=NOTHING, available=available)
    same = Space(counted.shelf(now=0.0), withdrawn=NOTHING, available=available, before=first)
    counted.click(None, "new")
    grown = Space(counted.shelf(now=9.0), withdrawn=NOTHING, available=available, before=same)

    assert first.newcomers == ["new", "newer"]
    assert same.newcomers is first.newcomers
    assert grown.newcomers == ["newer"]
    for space in (first, same, grown):
        rows = space.rows_of(["known", "new", "newer", "nobody"])
        assert [space.item_of(row) for row in rows[:3].tolist()] == ["known", "new", "newer"]
        assert rows[3] == 0
        assert set(space.row_N.tolist()) == set(rows[:3].tolist())
