from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from stream.draft import Arrival
from stream.events import Click, Impression, Recommendation, RecommendedItem, SeenItem
from stream.examples import ClickExample, Example, SlateExample
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
