"""From a batch of queries to slates, without Kafka."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from deploy.scoring.counted import Counted
from deploy.scoring.shelf import ColdShelf, Shelf, shelf_of
from deploy.scoring.slates import Query, Slates, Stock
from model.checkpoint import WrittenCheckpoint, read_serving
from model.settings import ArmSettings, PolicySettings
from stream.draft import Arrival
from stream.events import Cause, Click, Recommendation
from stream.examples import ClickExample
from stream.join import apply_click, apply_recommendation
from stream.sequences import UserState, decode_state, encode_state
from stream.settings import StreamSettings
from trainer.settings import TrainerSettings
from trainer.weights import balanced

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
    request_id: str = "r",
    *,
    items: tuple[str, ...] = (),
    slate_size: int = 10,
    candidates: tuple[str, ...] | None = None,
    exclude: tuple[str, ...] = (),
) -> Query:
    return Query("u", request_id, CAUSE, items, slate_size, candidates, exclude)


def draw(
    shelf: Shelf,
    *queries: Query,
    policy: PolicySettings | None = None,
    **stock: Any,  # noqa: ANN401 - fields of Stock
) -> list[Recommendation]:
    """The slates of users whom we answer ourselves."""
    slates = Slates(policy or PolicySettings()).draw(Stock(shelf, now_ms=NOW_MS, **stock), queries)
    return [slate for slate in slates if slate is not None]


def ids(slate: Recommendation) -> list[str]:
    return [item.item_id for item in slate.items]


def test_a_slate_says_all_that_is_needed_to_weigh_what_comes_of_it(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=("item-0", "item-1", "never heard of")))

    assert (slate.policy, slate.model_version) == ("sasrec", "first/1")
    assert (slate.trained_through_ms, slate.trained_through_arrival_ms) == (1_600_000_000_001, 1_700_000_000_001)
    assert (slate.temperature, slate.exploration_slots) == (0.5, 1)
    assert (slate.eligible_count, slate.candidate_count, slate.history_length) == (38, 38, 3)
    assert (slate.cause, slate.generated_at_ms) == (CAUSE, NOW_MS)
    assert slate.seed is not None
    assert (slate.router_probability, slate.rivals) == (1.0, ())
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

    (without,) = slates.draw(Stock(shelf, frozenset({"item-1"}), now_ms=NOW_MS), [everything])
    (again,) = slates.draw(Stock(shelf, now_ms=NOW_MS), [everything])

    assert without is not None
    assert again is not None
    assert "item-1" not in ids(without)
    assert "item-1" in ids(again)


def test_fewer_than_k_left_is_answered_with_fewer(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=ITEMS[:36]))

    assert set(ids(slate)) == set(ITEMS[36:])
    assert (slate.eligible_count, slate.missing) == (4, 6)
    assert [item.propensity for item in slate.items] == [1.0] * 4


def test_a_user_who_has_had_everything_gets_an_empty_slate(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=ITEMS))

    assert (slate.items, slate.eligible_count, slate.missing) == ((), 0, 10)


def test_excluding_everything_is_answered_with_nothing_and_says_so(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(exclude=ITEMS, slate_size=3))

    assert (slate.items, slate.missing) == ((), 3)


def test_ten_thousand_candidates_that_nobody_knows_are_answered_with_nothing(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=("item-1",), candidates=tuple(f"nobody-{n}" for n in range(10_000))))

    assert (slate.items, slate.missing) == ((), 10)


def test_what_the_user_had_may_come_again_where_that_is_set(shelf: Shelf) -> None:
    (slate,) = draw(shelf, query(items=ITEMS, slate_size=40), policy=PolicySettings(recommend_again=True))

    assert set(ids(slate)) == set(ITEMS)


def test_a_wide_slate_is_ranked_to_its_end(shelf: Shelf) -> None:
    policy = PolicySettings(candidates=5, exploration_slots=0)

    (slate,) = draw(shelf, query(items=("item-1",), slate_size=30), policy=policy)

    assert len(slate.items) == 30
    assert {item.source for item in slate.items} == {"exploit"}


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


def one_over_p(slates: list[Recommendation], items: list[str]) -> dict[str, np.ndarray]:
    """Per item and slate 1/p where it was served, else 0; p by the balance heuristic where there are rivals."""
    weights = {item_id: np.zeros(len(slates)) for item_id in items}
    for number, slate in enumerate(slates):
        shares = [slate.router_probability, *(rival.router_probability for rival in slate.rivals)]
        for item in slate.items:
            assert item.propensity is not None
            known = zip(shares, (item.propensity, *item.rival_propensities), strict=True)
            weights[item.item_id][number] = sum(shares) / sum(share * chance for share, chance in known)
    return weights


def assert_each_counts_once(weights: dict[str, np.ndarray]) -> None:
    for item_id, weight in weights.items():
        assert abs(weight.mean() - 1.0) <= 5.0 * weight.std() / np.sqrt(len(weight)) + 1e-12, item_id


def test_an_item_described_but_never_clicked_is_explored_with_its_exact_propensity(shelf: Shelf) -> None:
    policy = PolicySettings(slate_size=4, exploration_slots=2, temperature=0.3, candidates=12)
    queries = [query(f"r{n}", items=("item-4",), slate_size=4) for n in range(3_000)]
    stock = {"available": frozenset({"new-1", "new-2", "item-7", "gone"}), "withdrawn": frozenset({"gone"})}

    slates = draw(shelf, *queries, policy=policy, **stock)

    assert {slate.eligible_count for slate in slates} == {41}
    new = [item for slate in slates for item in slate.items if item.item_id in {"new-1", "new-2"}]
    assert {(item.source, item.score) for item in new} == {("explore", None)}
    assert_each_counts_once(one_over_p(slates, [*(set(ITEMS) - {"item-4"}), "new-1", "new-2"]))


def test_a_newcomer_can_be_had_excluded_and_named_like_any_item(shelf: Shelf) -> None:
    available = frozenset({"new-1", "new-2"})

    had, excluded, named = draw(
        shelf,
        query("a", items=("item-1", "new-1"), slate_size=50),
        query("b", exclude=("new-2",), slate_size=50),
        query("c", items=("item-1",), candidates=("new-1", "nobody", "item-2")),
        available=available,
    )

    assert set(ids(had)) == {*ITEMS, "new-2"} - {"item-1"}
    assert set(ids(excluded)) == {*ITEMS, "new-1"}
    assert set(ids(named)) == {"new-1", "item-2"}


@pytest.mark.parametrize("slate_size", [6, 20])
def test_no_category_fills_more_of_a_slate_than_is_set_and_propensities_stay_exact(
    shelf: Shelf, slate_size: int
) -> None:
    categories = {item_id: f"category-{number % 3}" for number, item_id in enumerate(ITEMS[:-4])}
    policy = PolicySettings(exploration_slots=1, temperature=0.05, max_per_category=3)
    queries = [query(f"r{n}", items=("item-5",), slate_size=slate_size) for n in range(3_000)]

    slates = draw(shelf, *queries, policy=policy, categories=categories)

    for slate in slates:
        counted = Counter(categories[item_id] for item_id in ids(slate) if item_id in categories)
        assert max(counted.values()) <= 3
        assert len(slate.items) + slate.missing == slate_size
    assert_each_counts_once(one_over_p(slates, [item_id for item_id in ITEMS if item_id != "item-5"]))


def test_a_cap_that_exploration_alone_could_break_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing beside 2 exploration slots"):
        PolicySettings(max_per_category=2, exploration_slots=2)


ARMS = {
    "sasrec": ArmSettings(share=0.5),
    "hits": ArmSettings(share=0.25, ranker="popular", temperature=0.0, exploration_slots=2),
    "next": ArmSettings(share=0.25, ranker="transitions", exploration_slots=0),
}


@pytest.fixture
def counted() -> Counted:
    counted = Counted(TrainerSettings())
    for number, item_id in enumerate(ITEMS):
        for _ in range(40 - number):
            counted.click(None, item_id)
    for follower in ("item-30", "item-30", "item-31"):
        counted.click("item-4", follower)
    return counted


def test_every_user_stays_with_one_recommender_and_slates_say_what_the_others_would_have_shown(
    shelf: Shelf, counted: Counted
) -> None:
    policy = PolicySettings(arms=ARMS)
    queries = [query(f"r{n}", items=("item-4",))._replace(user_id=f"u{n % 50}") for n in range(200)]

    slates = draw(shelf, *queries, policy=policy, counted=counted)

    served_by = {(slate.user_id, slate.policy) for slate in slates}
    assert len(served_by) == 50
    assert {name for _, name in served_by} == set(ARMS)
    for slate in slates:
        assert slate.router_probability == ARMS[slate.policy].share
        assert {rival.policy for rival in slate.rivals} == set(ARMS) - {slate.policy}
        assert all(len(item.rival_propensities) == 2 for item in slate.items)


def test_over_all_recommenders_of_the_surface_each_item_counts_once(shelf: Shelf, counted: Counted) -> None:
    """Another user every time: over users, the hash deals out the shares."""
    policy = PolicySettings(arms=ARMS, temperature=0.5, candidates=15)
    queries = [query(f"r{n}", items=("item-4",), slate_size=5)._replace(user_id=f"u{n}") for n in range(6_000)]

    slates = draw(shelf, *queries, policy=policy, counted=counted)

    assert_each_counts_once(one_over_p(slates, [item_id for item_id in ITEMS if item_id != "item-4"]))


def test_a_click_on_a_shared_surface_is_weighed_by_the_chance_over_all_recommenders(
    shelf: Shelf, counted: Counted
) -> None:
    """From the slate over Kafka's JSON and the join's fold to the trainer's propensity."""
    queries = [query(f"r{n}", items=("item-4",))._replace(user_id=f"u{n}") for n in range(30)]
    for slate in draw(shelf, *queries, policy=PolicySettings(arms=ARMS), counted=counted):
        told = msgspec.json.decode(msgspec.json.encode(slate), type=Recommendation)
        item = told.items[3]
        click = Click(
            event_id="e",
            user_id=slate.user_id,
            item_id=item.item_id,
            timestamp_ms=NOW_MS + 1,
            request_id=slate.request_id,
        )
        settings = StreamSettings()
        opened = apply_recommendation(UserState(), told, Arrival("recommendations", 0, 0, NOW_MS), settings)
        kept = decode_state(encode_state(opened.state))

        (example,) = apply_click(kept, click, Arrival("clicks", 0, 0, NOW_MS), settings).examples

        assert isinstance(example, ClickExample)
        assert example.served is not None
        assert item.propensity is not None
        shares = [slate.router_probability, *(rival.router_probability for rival in slate.rivals)]
        mixed = sum(map(operator.mul, shares, (item.propensity, *item.rival_propensities)))
        assert balanced(example.served) == pytest.approx(mixed)
        assert example.served.policy == slate.policy


def test_what_followed_comes_first_and_then_what_is_popular(shelf: Shelf, counted: Counted) -> None:
    greedy = PolicySettings(
        arms={"next": ArmSettings(share=1.0, ranker="transitions")}, temperature=0.0, exploration_slots=0
    )

    (slate,) = draw(shelf, query(items=("item-9", "item-4"), slate_size=5), policy=greedy, counted=counted)

    assert (slate.policy, slate.model_version) == ("next", None)
    assert ids(slate) == ["item-30", "item-31", "item-0", "item-1", "item-2"]


def test_an_arm_may_serve_from_a_checkpoint_of_its_own(shelf: Shelf, write_model: WriteModel) -> None:
    other = write_model(version=7, items=ITEMS[:20])
    arms = {"live": ArmSettings(share=0.5), "old": ArmSettings(share=0.5, checkpoint=str(other.path))}
    queries = [query(f"r{n}", items=("item-4",))._replace(user_id=f"u{n}") for n in range(40)]

    slates = draw(shelf, *queries, policy=PolicySettings(arms=arms))

    assert {(slate.policy, slate.model_version) for slate in slates} == {("live", "first/1"), ("old", "first/7")}


def test_users_of_another_system_get_no_slate_from_us(shelf: Shelf) -> None:
    arms = {"sasrec": ArmSettings(share=0.6), "acme": ArmSettings(share=0.4, ranker="elsewhere")}
    queries = [query(f"r{n}", items=("item-4",))._replace(user_id=f"u{n}") for n in range(400)]

    slates = Slates(PolicySettings(arms=arms)).draw(Stock(shelf, now_ms=NOW_MS), queries)

    answered = [slate for slate in slates if slate is not None]
    assert abs(len(answered) / len(slates) - 0.6) < 0.1
    assert {(slate.policy, slate.router_probability, slate.rivals) for slate in answered} == {("sasrec", 0.6, ())}


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 0\.75"):
        PolicySettings(arms={"a": ArmSettings(share=0.5), "b": ArmSettings(share=0.25)})


@pytest.mark.parametrize("items", [(), ("item-4", "item-9")], ids=["unknown user", "known user"])
def test_one_over_the_propensity_of_what_is_served_counts_each_item_once(shelf: Shelf, items: tuple[str, ...]) -> None:
    draws = 4_000
    policy = PolicySettings(slate_size=4, exploration_slots=1, temperature=0.3, candidates=12)

    slates = draw(shelf, *(query(f"r{n}", items=items, slate_size=4) for n in range(draws)), policy=policy)

    assert_each_counts_once(one_over_p(slates, [item_id for item_id in ITEMS if item_id not in items]))
