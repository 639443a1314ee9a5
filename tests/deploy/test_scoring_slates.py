"""From a batch of queries to slates, without Kafka."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deploy.scoring.shelf import ColdShelf, Shelf, shelf_of
from deploy.scoring.slates import Query, Slates, seed_of
from model.checkpoint import WrittenCheckpoint, read_serving
from model.settings import PolicySettings
from stream.events import Cause, Recommendation

ITEMS = tuple(f"item-{number}" for number in range(40))
CAUSE = Cause(topic="clicks", partition=0, offset=0, arrived_at_ms=0)
NOW_MS = 1_700_000_000_000

WriteModel = Callable[..., WrittenCheckpoint]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shelf(write_model: WriteModel) -> Shelf:
    return shelf_of(read_serving(write_model(version=1, items=ITEMS).path))


def query(
    request_id: str = "r", *, items: tuple[str, ...] = (), slate_size: int = 10, **more: tuple[str, ...]
) -> Query:
    return Query("u", request_id, CAUSE, items, slate_size, **more)


def draw(
    shelf: Shelf, *queries: Query, policy: PolicySettings | None = None, withdrawn: frozenset[str] = frozenset()
) -> list[Recommendation]:
    return Slates(policy or PolicySettings()).draw(shelf, queries, withdrawn=withdrawn, now_ms=NOW_MS)


def ids(slate: Recommendation) -> list[str]:
    return [item.item_id for item in slate.items]


def test_a_slate_says_all_that_is_needed_to_weigh_what_comes_of_it(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=("item-0", "item-1", "never heard of")))

    assert (slate.policy, slate.model_version) == ("sasrec", "first/1")
    assert (slate.trained_through_ms, slate.trained_through_arrival_ms) == (1_600_000_000_001, 1_700_000_000_001)
    assert (slate.temperature, slate.exploration_slots) == (0.5, 1)
    assert (slate.eligible_count, slate.candidate_count, slate.history_length) == (38, 38, 3)
    assert (slate.seed, slate.cause, slate.generated_at_ms) == (seed_of("r"), CAUSE, NOW_MS)
    assert [item.position for item in slate.items] == list(range(10))
    assert all(item.propensity is not None and 0 < item.propensity <= 1 for item in slate.items)
    assert {item.propensity_kind for item in slate.items} == {"exact"}
    assert [item.source for item in slate.items].count("explore") == 1


def test_the_same_request_gets_the_same_slate_alone_or_in_company(shelf: Shelf) -> None:
    mine = query("mine", items=("item-3",))
    others = [query(f"other-{number}", items=ITEMS[: number + 1]) for number in range(7)]

    (alone,) = draw(shelf, mine)
    in_company = draw(shelf, *others, mine)[-1]

    assert ids(alone) == ids(in_company)
    propensities = [[item.propensity for item in slate.items] for slate in (alone, in_company)]
    assert propensities[0] == pytest.approx(propensities[1], rel=1e-5)


def test_two_users_with_one_request_id_each_get_their_own_slate(shelf: Shelf) -> None:
    first, second = draw(shelf, query("same")._replace(user_id="a"), query("same")._replace(user_id="b"))

    assert (first.user_id, second.user_id) == ("a", "b")


def test_what_the_user_had_what_is_withdrawn_and_what_is_excluded_never_comes_back(shelf: Shelf) -> None:
    gone = frozenset({"item-10", "item-11", "never heard of"})
    queries = [query(f"r{number}", items=ITEMS[:5], exclude=ITEMS[5:8], slate_size=40) for number in range(20)]

    slates = draw(shelf, *queries, withdrawn=gone)

    for slate in slates:
        assert set(ids(slate)) == set(ITEMS[8:]) - gone


def test_a_returned_item_is_served_again(shelf: Shelf) -> None:
    slates = Slates(PolicySettings())
    everything = query(slate_size=40)

    (without,) = slates.draw(shelf, [everything], withdrawn=frozenset({"item-1"}), now_ms=NOW_MS)
    (again,) = slates.draw(shelf, [everything], withdrawn=frozenset(), now_ms=NOW_MS)

    assert "item-1" not in ids(without)
    assert "item-1" in ids(again)


def test_fewer_than_k_left_is_answered_with_fewer(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=ITEMS[:36]))

    assert set(ids(slate)) == set(ITEMS[36:])
    assert slate.eligible_count == 4
    assert [item.propensity for item in slate.items] == [1.0] * 4


def test_a_user_who_has_had_everything_gets_an_empty_slate(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=ITEMS))

    assert (slate.items, slate.eligible_count) == ((), 0)


def test_only_candidates_are_served_and_unknown_ones_are_ignored(shelf: Shelf) -> None:
    candidates = ("item-1", "item-2", "item-2", "item-3", *(f"nobody-{number}" for number in range(1_000)))

    known, unknown, nothing = draw(
        shelf,
        query("known", items=("item-1",), candidates=candidates),
        query("unknown", candidates=candidates),
        query("nothing", candidates=("nobody",)),
    )

    assert set(ids(known)) == {"item-2", "item-3"}
    assert set(ids(unknown)) == {"item-1", "item-2", "item-3"}
    assert ids(nothing) == []


def test_a_user_nobody_knows_gets_popular_items_with_true_propensities(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=("never heard of",)))

    assert (slate.policy, slate.model_version) == ("popular", "first/1")
    assert len(slate.items) == 10
    assert {item.propensity_kind for item in slate.items} == {"exact"}


def test_before_the_first_model_popularity_is_counted_from_the_stream() -> None:
    cold = ColdShelf(max_items=100, half_life_clicks=1_000.0)
    for item_id in ("hit", "hit", "hit", "flop"):
        cold.click(item_id)
    greedy = PolicySettings(temperature=0.0, exploration_slots=0)

    shelf = cold.shelf(frozenset({"new"}))
    (slate,) = draw(shelf, query(items=("hit",)), policy=greedy)
    (unknown,) = draw(shelf, query(), policy=greedy)

    assert (slate.policy, slate.model_version) == ("popular", None)
    assert ids(slate) == ["flop", "new"]
    assert ids(unknown) == ["hit", "flop", "new"]


def test_with_nothing_to_recommend_a_slate_is_empty() -> None:
    (slate,) = draw(ColdShelf(max_items=100, half_life_clicks=1_000.0).shelf(frozenset()), query())

    assert (slate.items, slate.eligible_count) == ((), 0)


@pytest.mark.parametrize("items", [(), ("item-4", "item-9")], ids=["unknown user", "known user"])
def test_one_over_the_propensity_of_what_is_served_counts_each_item_once(shelf: Shelf, items: tuple[str, ...]) -> None:
    draws = 4_000
    policy = PolicySettings(slate_size=4, exploration_slots=1, temperature=0.3, candidates=12)

    slates = draw(shelf, *(query(f"r{n}", items=items, slate_size=4) for n in range(draws)), policy=policy)

    weights = {item_id: np.zeros(draws) for item_id in ITEMS if item_id not in items}
    for number, slate in enumerate(slates):
        for item in slate.items:
            assert item.propensity is not None
            weights[item.item_id][number] = 1.0 / item.propensity
    for item_id, weight in weights.items():
        assert abs(weight.mean() - 1.0) < 5.0 * weight.std() / np.sqrt(draws), item_id
