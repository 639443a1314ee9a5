from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from stream.draft import Arrival
from stream.events import Click, Impression, Recommendation, RecommendedItem, SeenItem
from stream.examples import ClickExample, Example, Served, SlateExample
from stream.join import Folded, apply_click, apply_impression, apply_recommendation
from stream.sequences import SECOND_MS, UserState, decode_state, encode_state
from stream.settings import StreamSettings
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS
from tests.strategies import (
    START_MS,
    USER,
    Read,
    any_histories,
    interleaved,
    named_histories,
    read_twice,
    unnamed_histories,
)

SETTINGS = StreamSettings()
REMEMBERS_ALL = StreamSettings(max_open_slates=100, remembered_slates=100, max_parked_clicks=100)
MINUTE_MS = 60 * SECOND_MS


def fold(state: UserState, read: Read, settings: StreamSettings = SETTINGS) -> Folded:
    event, arrival = read
    if isinstance(event, Click):
        return apply_click(state, event, arrival, settings)
    if isinstance(event, Impression):
        return apply_impression(state, event, arrival, settings)
    return apply_recommendation(state, event, arrival, settings)


def fold_all(reads: Sequence[Read], settings: StreamSettings = SETTINGS) -> tuple[UserState, list[Example]]:
    state = UserState()
    examples: list[Example] = []
    for read in reads:
        folded = fold(state, read, settings)
        state = folded.state
        examples += folded.examples
    return state, examples


def closed_by_time(reads: Sequence[Read]) -> list[Read]:
    """The same, and an event so much later that every window is over."""
    last = max((read.arrival.offset for read in reads if read.arrival.source == CLICKS), default=-1)
    end = Click(event_id="end", user_id=USER, item_id="end", timestamp_ms=START_MS + 100 * MINUTE_MS)
    return [*reads, Read(end, Arrival(CLICKS, 0, last + 1, START_MS))]


def clicks_told(examples: Sequence[Example]) -> dict[Any, Any]:
    told = [example for example in examples if isinstance(example, ClickExample)]
    assert len({(example.item_id, example.timestamp_ms) for example in told}) == len(told), "a click was told twice"
    return {(example.item_id, example.timestamp_ms): (example.context, example.served) for example in told}


def slates_told(examples: Sequence[Example]) -> dict[str, Any]:
    """Slates with all that was said of them, corrections folded in."""
    told: dict[str, Any] = {}
    for example in examples:
        if isinstance(example, SlateExample):
            assert example.correction == (example.request_id in told), "only what was told can be corrected"
            slots = told.setdefault(example.request_id, {})
            for item in example.items:
                served, seen, clicked = slots.get(item.item_id, (None, False, False))
                served = (item.position, item.propensity, item.propensity_kind, item.source)
                assert not (clicked and item.clicked), "a click was told twice"
                slots[item.item_id] = (served, seen or bool(item.seen), clicked or item.clicked)
    return told


def click(
    item: str, at_ms: int, offset: int = 0, *, request_id: str | None = None, event_id: str | None = None
) -> Read:
    event = Click(
        event_id=event_id or f"{item}@{at_ms}#{offset}",
        user_id=USER,
        item_id=item,
        timestamp_ms=at_ms,
        request_id=request_id,
    )
    return Read(event, Arrival(CLICKS, 0, offset, at_ms))


def impression(
    items: str, at_ms: int, offset: int = 0, *, request_id: str | None = None, policy: str | None = None
) -> Read:
    event = Impression(
        event_id=f"view@{at_ms}#{offset}",
        user_id=USER,
        timestamp_ms=at_ms,
        items=tuple(SeenItem(item_id=item) for item in items.split()),
        request_id=request_id,
        policy=policy,
    )
    return Read(event, Arrival(IMPRESSIONS, 0, offset, at_ms))


def slate(name: str, items: str, at_ms: int, offset: int = 0, *, surface: str = "default") -> Read:
    event = Recommendation(
        request_id=name,
        user_id=USER,
        policy="policy",
        generated_at_ms=at_ms,
        surface=surface,
        items=tuple(
            RecommendedItem(item_id=item, position=slot, propensity=0.5, propensity_kind="exact", source="explore")
            for slot, item in enumerate(items.split())
        ),
    )
    return Read(event, Arrival(RECOMMENDATIONS, 0, offset, at_ms))


@given(read_twice(any_histories))
def test_no_order_of_reading_changes_the_sequence_nor_what_is_told_of_a_click_but_how_it_was_served(
    orders: tuple[list[Read], list[Read]],
) -> None:
    (one, told), (other, told_otherwise) = (fold_all(closed_by_time(reads), REMEMBERS_ALL) for reads in orders)

    assert (one.items, one.times_ms, one.clicks_applied) == (other.items, other.times_ms, other.clicks_applied)
    assert {key: context for key, (context, _) in clicks_told(told).items()} == {
        key: context for key, (context, _) in clicks_told(told_otherwise).items()
    }


@given(read_twice(named_histories) | read_twice(unnamed_histories))
def test_no_order_of_reading_changes_what_became_of_a_slate(orders: tuple[list[Read], list[Read]]) -> None:
    (one, told), (other, told_otherwise) = (fold_all(closed_by_time(reads), REMEMBERS_ALL) for reads in orders)

    assert slates_told(told) == slates_told(told_otherwise)
    assert not one.slates
    assert not other.slates


@given(read_twice(named_histories))
def test_no_order_of_reading_changes_how_a_click_was_served_if_it_names_its_slate(
    orders: tuple[list[Read], list[Read]],
) -> None:
    told, told_otherwise = (clicks_told(fold_all(closed_by_time(reads), REMEMBERS_ALL)[1]) for reads in orders)

    assert told == told_otherwise


@given(any_histories.flatmap(interleaved), st.data())
def test_replaying_from_any_older_offset_changes_nothing(reads: list[Read], data: st.DataObject) -> None:
    state, _ = fold_all(reads)

    for read in data.draw(st.permutations(reads)):
        folded = fold(state, read)
        assert folded.state is state
        assert folded.examples == ()
        assert folded.outcome == "repeated"


@given(any_histories.flatmap(interleaved))
def test_a_state_reads_back_as_it_was_written_after_every_event(reads: list[Read]) -> None:
    state = UserState()
    for read in reads:
        state = fold(state, read).state
        assert decode_state(encode_state(state)) == state


@given(any_histories.flatmap(interleaved))
def test_every_seen_item_ends_in_exactly_one_account_or_is_open(reads: list[Read]) -> None:
    tight = StreamSettings(max_open_slates=2, remembered_slates=1, max_parked_clicks=1, attribution_window_seconds=120)
    state, _ = fold_all(reads, tight)

    accounts = asdict(state.accounts)
    ended = sum(accounts[f"items_{outcome}"] for outcome in ("clicked", "expired", "duplicate", "late"))
    still_open = sum(len(slate.seen) for slate in state.slates)
    assert ended + still_open == state.accounts.items_seen
    assert min(accounts.values()) >= 0


@given(any_histories.flatmap(interleaved))
def test_every_message_ends_in_exactly_one_account(reads: list[Read]) -> None:
    state, _ = fold_all(reads)

    accounts = state.accounts
    count = {
        source: sum(read.arrival.source == source for read in reads)
        for source in (CLICKS, IMPRESSIONS, RECOMMENDATIONS)
    }
    assert state.clicks_applied + accounts.clicks_duplicate + accounts.clicks_late == count[CLICKS]
    assert accounts.impressions == count[IMPRESSIONS]
    assert accounts.slates + accounts.slates_duplicate + accounts.slates_late == count[RECOMMENDATIONS]


@given(any_histories.flatmap(interleaved))
def test_the_ids_of_examples_ascend_within_their_source(reads: list[Read]) -> None:
    _, examples = fold_all(reads)

    for source in (CLICKS, IMPRESSIONS, RECOMMENDATIONS):
        ids = [example.id for example in examples if example.id.source == source]
        assert ids == sorted(set(ids))


def test_a_click_on_a_served_item_carries_its_propensity_and_its_history() -> None:
    _, told = fold_all(
        [
            click("x", START_MS),
            slate("s", "a b c", START_MS + 1_000),
            click("b", START_MS + 2_000, 1, request_id="s"),
        ]
    )

    served_click = told[-1]
    assert isinstance(served_click, ClickExample)
    assert served_click.context == ("x",)
    assert served_click.served == Served("policy", "s", 1, 0.5, "exact", "explore")


@pytest.mark.parametrize("request_id", ["s", None])
def test_a_click_says_how_much_of_its_history_is_newer_than_the_slate(request_id: str | None) -> None:
    _, told = fold_all(
        [
            click("w", START_MS),
            click("x", START_MS + 1_000, 1),
            slate("s", "a b c", START_MS + 2_000),
            click("b", START_MS + 3_000, 2, request_id=request_id),
            click("z", START_MS + 4_000, 3),
            click("c", START_MS + 5_000, 4, request_id=request_id),
        ]
    )

    since = {key[0]: served.clicks_since for key, (_, served) in clicks_told(told).items() if served is not None}
    assert since == {"b": 0, "c": 2}
    context, _ = clicks_told(told)["c", START_MS + 5_000]
    assert context[: len(context) - since["c"]] == ("w", "x")


def test_a_click_that_waited_for_its_slate_counts_what_was_before_it_when_it_came() -> None:
    """What is inserted before it while it waits was not in its context."""
    served = slate("s", "a b c", START_MS + 2_000)
    clicks = [
        click("x", START_MS + 1_000),
        click("b", START_MS + 3_000, 1, request_id="s"),
        click("c", START_MS + 5_000, 2, request_id="s"),
        click("late", START_MS + 4_000, 3),
    ]

    told, told_otherwise = (clicks_told(fold_all(reads)[1]) for reads in ([served, *clicks], [*clicks, served]))

    assert told == told_otherwise
    assert told["c", START_MS + 5_000] == (
        ("x", "b"),
        Served("policy", "s", 2, 0.5, "exact", "explore", clicks_since=1),
    )


def test_of_a_history_longer_than_an_example_carries_no_more_can_be_newer_than_the_slate() -> None:
    short = StreamSettings(context_length=2)
    clicks = [click(item, START_MS + n * 1_000, n, request_id="s") for n, item in enumerate("abcd", start=1)]

    _, told = fold_all([slate("s", "a b c d", START_MS), *clicks], short)
    _, told_late = fold_all([*clicks, slate("s", "a b c d", START_MS)], short)

    since = [served.clicks_since for _, served in clicks_told(told).values() if served is not None]
    assert since == [0, 1, 2, 2]
    assert clicks_told(told) == clicks_told(told_late)


def test_a_click_that_names_no_slate_belongs_to_the_newest_that_shows_the_item_within_the_window() -> None:
    served = [slate("old", "a b", START_MS), slate("new", "b c", START_MS + MINUTE_MS, 1, surface="other")]

    _, told = fold_all([*served, click("b", START_MS + 2 * MINUTE_MS)])
    _, told_late = fold_all([*served, click("b", START_MS + 32 * MINUTE_MS)])

    assert isinstance(told[0], ClickExample)
    assert told[0].served is not None
    assert told[0].served.request_id == "new"
    assert isinstance(told_late[0], ClickExample)
    assert told_late[0].served is None


def test_a_slate_is_told_when_the_next_one_of_its_surface_comes() -> None:
    state, told = fold_all(
        [
            slate("first", "a b", START_MS),
            impression("a b", START_MS + 1_000, request_id="first"),
            click("a", START_MS + 2_000, request_id="first"),
            slate("elsewhere", "c", START_MS + 3_000, 1, surface="other"),
            slate("second", "c d", START_MS + 4_000, 2),
        ]
    )

    slates = [example for example in told if isinstance(example, SlateExample)]
    assert [(example.request_id, example.correction) for example in slates] == [("first", False)]
    assert [(item.item_id, item.seen, item.clicked) for item in slates[0].items] == [
        ("a", True, True),
        ("b", True, False),
    ]
    assert [open_slate.request_id for open_slate in state.slates] == ["elsewhere", "second"]


def test_a_slate_that_nobody_saw_and_nobody_clicked_is_never_told() -> None:
    _, told = fold_all([slate("s", "a b", START_MS), slate("t", "a b", START_MS + 1, 1)])

    assert told == []


def test_a_click_after_its_slate_was_closed_corrects_it() -> None:
    state, told = fold_all(
        [
            slate("first", "a b c", START_MS),
            impression("a b c", START_MS + 1_000, request_id="first"),
            slate("second", "d", START_MS + 2_000, 1),
            click("b", START_MS + 3_000, request_id="first"),
        ]
    )

    closed, correction = (example for example in told if isinstance(example, SlateExample))
    assert (closed.correction, [item.clicked for item in closed.items]) == (False, [False, False, False])
    assert (correction.correction, [item.clicked for item in correction.items]) == (True, [False, True, False])
    assert (state.accounts.items_clicked, state.accounts.items_expired) == (1, 2)


def test_a_correction_tells_what_was_clicked_before_so_that_it_is_not_taken_for_passed_over() -> None:
    _, told = fold_all(
        [
            slate("first", "a b c", START_MS),
            impression("a b c", START_MS + 1_000, request_id="first"),
            click("a", START_MS + 1_500, request_id="first"),
            slate("second", "d", START_MS + 2_000, 1),
            click("b", START_MS + 3_000, 1, request_id="first"),
        ]
    )

    closed, correction = (example for example in told if isinstance(example, SlateExample))
    assert [(item.clicked, item.clicked_before) for item in closed.items] == [
        (True, False),
        (False, False),
        (False, False),
    ]
    assert [(item.clicked, item.clicked_before) for item in correction.items] == [
        (False, True),
        (True, False),
        (False, False),
    ]


def test_a_click_waits_for_the_slate_it_names_but_the_sequence_does_not() -> None:
    state, told = fold_all([click("a", START_MS, request_id="s")])

    assert state.items == ("a",)
    assert told == []
    folded = fold(state, slate("s", "a b", START_MS - 1_000))
    assert [example.id for example in folded.examples] == [(RECOMMENDATIONS, 0, 0, 0)]
    assert clicks_told(folded.examples)["a", START_MS][1] == Served("policy", "s", 0, 0.5, "exact", "explore")


def test_a_click_whose_slate_never_becomes_known_is_told_as_served_by_somebody() -> None:
    _, told = fold_all([click("a", START_MS, request_id="s"), click("b", START_MS + 31 * MINUTE_MS, 1)])

    assert clicks_told(told)["a", START_MS][1] == Served("unknown", "s", None, None, "none", "exploit")


def test_only_so_many_clicks_wait_for_their_slates() -> None:
    few = StreamSettings(max_parked_clicks=2)

    state, told = fold_all([click("a", START_MS + n, n, request_id=f"s{n}") for n in range(5)], few)

    assert len(state.parked) == 2
    assert sorted(clicks_told(told)) == [("a", START_MS + n) for n in range(3)]


def test_an_impression_without_any_slate_opens_one_with_the_policy_and_the_propensity_of_the_log() -> None:
    event = Impression(
        event_id="v",
        user_id=USER,
        timestamp_ms=START_MS,
        items=(SeenItem(item_id="a", position=3, propensity=0.1),),
        policy="theirs",
    )

    _, told = fold_all([Read(event, Arrival(IMPRESSIONS, 0, 0, START_MS)), click("a", START_MS)])

    assert clicks_told(told)["a", START_MS][1] == Served("theirs", "v", 3, 0.1, "exact", "exploit")


def test_a_client_cannot_change_the_propensity_of_a_logged_slate() -> None:
    event = Impression(
        event_id="v",
        user_id=USER,
        timestamp_ms=START_MS,
        items=(SeenItem(item_id="a", propensity=0.001),),
        request_id="s",
        policy="theirs",
    )

    _, told = fold_all(
        [
            Read(event, Arrival(IMPRESSIONS, 0, 0, START_MS)),
            slate("s", "a", START_MS),
            click("a", START_MS + 1, request_id="s"),
        ]
    )

    served = clicks_told(told)["a", START_MS + 1][1]
    assert (served.policy, served.propensity) == ("policy", 0.5)


def test_the_same_impression_twice_counts_as_duplicates() -> None:
    state, _ = fold_all([impression("a b", START_MS, 0), impression("a b", START_MS, 1)])

    assert (state.accounts.items_seen, state.accounts.items_duplicate, len(state.slates)) == (4, 2, 1)


def test_the_first_slate_of_a_request_id_counts_and_another_is_a_duplicate() -> None:
    state, _ = fold_all([slate("s", "a b", START_MS), slate("s", "c d", START_MS + 1, 1)])

    assert state.slates[0].items == ("a", "b")
    assert (state.accounts.slates, state.accounts.slates_duplicate) == (1, 1)


def test_the_same_click_under_another_event_id_and_another_click_under_the_same_are_duplicates() -> None:
    state, told = fold_all(
        [
            click("a", START_MS, 0, event_id="one"),
            click("a", START_MS, 1, event_id="two"),
            click("b", START_MS + 1, 2, event_id="one"),
        ]
    )

    assert (state.items, state.accounts.clicks_duplicate, len(told)) == (("a",), 2, 1)


def test_clicks_out_of_order_stand_in_the_order_of_their_times() -> None:
    state, told = fold_all([click("b", START_MS + 2_000, 0), click("a", START_MS, 1), click("c", START_MS + 2_000, 2)])

    assert state.items == ("a", "b", "c")
    assert [context for context, _ in clicks_told(told).values()] == [(), (), ("a", "b")]


def test_a_click_older_than_the_newest_by_more_than_the_lateness_is_late() -> None:
    state, told = fold_all([click("b", START_MS, 0), click("a", START_MS - 86_400_001, 1)])

    assert (state.items, state.accounts.clicks_late, len(told)) == (("b",), 1, 1)


def test_a_click_older_than_all_that_is_left_of_a_full_sequence_is_late() -> None:
    short = StreamSettings(max_sequence_length=2)

    state, _ = fold_all([click("a", START_MS + 10 * n, n) for n in range(3)] + [click("b", START_MS + 5, 3)], short)

    assert (state.times_ms, state.accounts.clicks_late) == ((START_MS + 10, START_MS + 20), 1)


def test_impressions_and_slates_older_than_the_lateness_are_late() -> None:
    much_later = START_MS + 2 * 86_400_000

    state, told = fold_all([click("a", much_later), impression("a b", START_MS), slate("s", "a b", START_MS)])

    assert (state.accounts.items_late, state.accounts.slates_late, state.slates) == (2, 1, ())
    assert len(told) == 1


def test_only_so_many_slates_are_open_and_the_oldest_goes_first() -> None:
    few = StreamSettings(max_open_slates=2)

    state, told = fold_all([impression("a", START_MS + n * 1_000, n, request_id=f"s{n}") for n in range(4)], few)

    assert [open_slate.request_id for open_slate in state.slates] == ["s2", "s3"]
    assert [example.request_id for example in told if isinstance(example, SlateExample)] == ["s0", "s1"]


def test_a_click_is_the_cause_until_slates_and_impressions_come_a_minute_after_it() -> None:
    state, _ = fold_all([click("a", START_MS)])
    assert state.cause is not None

    for later in (slate("s", "a", START_MS), impression("a", START_MS)):
        soon = Arrival(later.arrival.source, 0, 0, START_MS + MINUTE_MS)
        late = Arrival(later.arrival.source, 0, 0, START_MS + MINUTE_MS + 1)
        assert fold(state, Read(later.event, soon)).state.cause == state.cause
        assert fold(state, Read(later.event, late)).state.cause is None
    duplicate = fold(state, click("a", START_MS, 1)).state
    assert duplicate.cause == state.cause


def test_what_was_pinned_into_a_slate_is_told_as_fixed() -> None:
    _, told = fold_all(
        [
            slate("s", "a b", START_MS),
            impression("a b advertisement", START_MS + 1, request_id="s"),
            slate("t", "c", START_MS + 2, 1),
        ]
    )

    [example] = told
    assert isinstance(example, SlateExample)
    assert [(item.item_id, item.source, item.propensity) for item in example.items] == [
        ("a", "explore", 0.5),
        ("b", "explore", 0.5),
        ("advertisement", "fixed", None),
    ]
