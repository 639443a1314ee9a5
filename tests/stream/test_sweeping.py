from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from stream.draft import Arrival
from stream.events import Click, Recommendation, RecommendedItem
from stream.examples import ClickExample, Example, SlateExample
from stream.folding import SOURCES
from stream.sequences import SECOND_MS, UserState, decode_state
from stream.settings import StreamSettings
from stream.sweeping import ENDED_PER_RECORD
from stream.topics import CLICKS, IMPRESSIONS, RECOMMENDATIONS
from tests.rows import Store, raw
from tests.strategies import START_MS, Event, History, Read, any_histories

DAY_MS = 86_400 * SECOND_MS
WINDOW_MS = 1_800 * SECOND_MS
ARRIVED_MS = START_MS + 200 * DAY_MS
SETTINGS = StreamSettings(inactive_days=2, max_future_seconds=60)
REMEMBERS_ALL = StreamSettings(
    max_open_slates=100, remembered_slates=100, max_parked_clicks=100, lateness_seconds=10**9
)


def at_ms(event: Event) -> int:
    return event.generated_at_ms if isinstance(event, Recommendation) else event.timestamp_ms


def visited(event: Event, user: str, visit: int, by_ms: int) -> Event:
    """The event as one of a user's visit, so much later; a slate belongs to one visit."""
    request_id = None if event.request_id is None else f"{event.request_id}-{visit}"
    if isinstance(event, Recommendation):
        at = event.generated_at_ms + by_ms
        return replace(event, user_id=user, request_id=request_id, generated_at_ms=at)
    name = f"{event.event_id}-{visit}"
    return replace(event, user_id=user, event_id=name, request_id=request_id, timestamp_ms=event.timestamp_ms + by_ms)


def as_read(events: Sequence[Event]) -> list[Read]:
    """Events in the order in which the worker reads them, each at the next offset of its topic."""
    offsets: Counter[str] = Counter()
    names = {kind.kind: name for name, kind in SOURCES.items()}
    reads = []
    for place, event in enumerate(events):
        name = names[type(event)]
        reads.append(Read(event, Arrival(name, 0, offsets[name], ARRIVED_MS + place)))
        offsets[name] += 1
    return reads


@st.composite
def crowds(draw: st.DrawFn) -> list[Event]:
    """Events of a few users, visit by visit, hours or days after one another, in the order of their times."""
    events: list[Event] = []
    for number in range(draw(st.integers(2, 5))):
        for visit in range(draw(st.integers(1, 2))):
            history: History = draw(any_histories)
            by_ms = draw(st.integers(0, 6)) * draw(st.sampled_from([WINDOW_MS, DAY_MS]))
            drawn = (*history.clicks, *history.impressions, *history.recommendations)
            events += [visited(event, f"user-{number}", visit, by_ms) for event in drawn]  # type: ignore[arg-type]
    return sorted(events, key=at_ms)


def closers(after_ms: int) -> list[Event]:
    """Two users who come so much later that every window is over, and who come often enough."""
    return [
        Click(event_id=f"end-{number}", user_id=f"end-{number % 2}", item_id="end", timestamp_ms=after_ms + number)
        for number in range(40)
    ]


def told(examples: Sequence[Example]) -> tuple[Any, Any]:
    """What is known in the end, corrections folded in, by user: clicks, and of slates what was seen and clicked."""
    clicks: Counter[Any] = Counter()
    slates: dict[Any, dict[str, tuple[bool, bool]]] = {}
    for example in examples:
        if isinstance(example, ClickExample):
            clicks[example.user_id, example.item_id, example.timestamp_ms, example.context] += 1
        else:
            slots = slates.setdefault((example.user_id, example.request_id), {})
            for item in example.items:
                seen, clicked = slots.get(item.item_id, (False, False))
                slots[item.item_id] = (seen or bool(item.seen), clicked or item.clicked)
    return clicks, slates


@given(crowds(), st.data())
def test_where_batches_are_cut_changes_nothing_of_what_time_brings_about(
    events: list[Event], data: st.DataObject
) -> None:
    records = [raw(read) for read in as_read(events)]
    places = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=4)))
    whole, cut = Store(SETTINGS), Store(SETTINGS)

    at_once = whole.fold(records)
    pieces = [cut.fold(records[a:b]) for a, b in zip([0, *places], [*places, len(records)], strict=True)]

    assert cut.rows == whole.rows
    assert cut.deadlines == whole.deadlines
    assert [example for piece in pieces for example in piece.examples] == at_once.examples


@given(crowds(), st.data())
def test_a_crash_repeats_what_time_brought_about_or_brings_nothing(events: list[Event], data: st.DataObject) -> None:
    records = [raw(read) for read in as_read(events)]
    first, behind = sorted(data.draw(st.tuples(*[st.integers(0, len(records))] * 2)))
    store = Store(SETTINGS)
    store.fold(records[:first])
    before = store.copy()

    sent = store.fold(records[first:behind])
    states = dict(store.rows)
    unwritten = before.fold(records[first:behind])
    uncommitted = store.fold(records[first:behind])
    rest = store.fold(records[behind:])

    assert unwritten.examples == sent.examples
    assert unwritten.states == sent.states
    assert (uncommitted.examples, uncommitted.states) == ([], {})
    assert states == before.rows
    assert rest.examples == before.fold(records[behind:]).examples


@given(crowds())
def test_the_ids_of_examples_ascend_within_their_source(events: list[Event]) -> None:
    ids = [example.id for example in Store(SETTINGS).fold([raw(read) for read in as_read(events)]).examples]

    for source in (CLICKS, IMPRESSIONS, RECOMMENDATIONS):
        of_source = [identity for identity in ids if identity.source == source]
        assert of_source == sorted(set(of_source))


@given(crowds())
def test_in_the_order_of_time_the_sweep_tells_what_the_users_own_events_would_have_told(events: list[Event]) -> None:
    last_ms = START_MS + 100 * DAY_MS
    own = [
        Click(event_id=f"own-{user}", user_id=user, item_id="own", timestamp_ms=last_ms)
        for user in sorted({event.user_id for event in events})
    ]

    swept = Store(REMEMBERS_ALL).fold([raw(read) for read in as_read([*events, *closers(last_ms), *own])]).examples
    alone = [
        example
        for click in own
        for example in Store(REMEMBERS_ALL)
        .fold([raw(read) for read in as_read([*(e for e in events if e.user_id == click.user_id), click])])
        .examples
    ]

    theirs = [example for example in swept if not example.user_id.startswith("end-")]
    assert told(theirs) == told(alone)


@given(crowds())
def test_every_event_ends_in_one_account_also_those_of_users_who_were_forgotten(events: list[Event]) -> None:
    store = Store(SETTINGS)
    folded = store.fold([raw(read) for read in as_read([*events, *closers(START_MS + 100 * DAY_MS)])])

    states = [decode_state(row) for row in store.rows.values()]
    assert set(store.rows) == {b"end-0", b"end-1"}
    assert sum(map(clicks_of, states)) == sum(isinstance(event, Click) for event in events) + 40
    assert sum(map(seen_of, states)) == sum(map(ended_of, states))
    assert not folded.reasons


def clicks_of(state: UserState) -> int:
    parts = [(state.clicks_applied, state.accounts)]
    if state.inherited is not None:
        parts.append((state.inherited.clicks_applied, state.inherited.accounts))
    return sum(applied + accounts.clicks_duplicate + accounts.clicks_late for applied, accounts in parts)


def seen_of(state: UserState) -> int:
    return state.accounts.items_seen + (state.inherited.accounts.items_seen if state.inherited else 0)


def ended_of(state: UserState) -> int:
    accounts = [state.accounts] + ([state.inherited.accounts] if state.inherited else [])
    return sum(one.items_clicked + one.items_expired + one.items_duplicate + one.items_late for one in accounts)


def shown(user: str, number: int, served_ms: int) -> list[Event]:
    slate = Recommendation(
        request_id=f"{user}-{number}",
        user_id=user,
        policy="policy",
        generated_at_ms=served_ms,
        items=(RecommendedItem(item_id="i", position=0, propensity=0.5, propensity_kind="exact"),),
    )
    click = Click(
        event_id=f"{user}-{number}", user_id=user, item_id="i", timestamp_ms=served_ms, request_id=slate.request_id
    )
    return [slate, click]


def click_of(user: str, time_ms: int) -> Click:
    return Click(event_id=f"{user}@{time_ms}", user_id=user, item_id="other", timestamp_ms=time_ms)


def slates_of(events: Sequence[Event], settings: StreamSettings = SETTINGS) -> list[SlateExample]:
    examples = Store(settings).fold([raw(read) for read in as_read(events)]).examples
    return [example for example in examples if isinstance(example, SlateExample)]


def test_a_window_is_closed_without_another_event_of_its_user_once_two_others_are_past_it() -> None:
    over_ms = START_MS + WINDOW_MS + 60 * SECOND_MS
    events = [*shown("u", 0, START_MS), click_of("a", over_ms + 1), click_of("b", over_ms)]

    assert not slates_of(events), "nobody knows that time has come as far, or one clock is wrong"
    (slate,) = slates_of([*events, click_of("b", over_ms + 1)])

    assert (slate.user_id, slate.items[0].clicked, slate.correction) == ("u", True, False)
    assert slate.id == (CLICKS, 0, 3, 1)


def test_a_click_after_its_window_was_closed_for_its_user_corrects_it() -> None:
    later_ms = START_MS + 2 * WINDOW_MS
    events = [*shown("u", 0, START_MS), click_of("a", later_ms), click_of("b", later_ms)]
    late = Click(event_id="late", user_id="u", item_id="j", timestamp_ms=START_MS + 1, request_id="u-0")

    whole, correction = slates_of([*events, late])

    assert [(item.item_id, item.clicked) for item in whole.items] == [("i", True)]
    assert correction.correction
    assert [(item.item_id, item.clicked) for item in correction.items] == [("i", False), ("j", True)]


def test_one_record_ends_only_so_much_and_the_next_goes_on() -> None:
    many = [event for number in range(10) for event in shown(f"u{number}", 0, START_MS + number)]
    later_ms = START_MS + 2 * WINDOW_MS
    others = [click_of("ab"[number % 2], later_ms + number) for number in range(4)]

    ended = slates_of([*many, *others])

    assert [slate.user_id for slate in ended] == [f"u{number}" for number in range(10)]
    assert Counter(slate.id.offset for slate in ended) == {11: ENDED_PER_RECORD, 12: ENDED_PER_RECORD, 13: 2}


def test_a_user_who_stays_away_is_forgotten_and_one_who_comes_is_not() -> None:
    store = Store(SETTINGS)
    days = [click_of(user, START_MS + day * DAY_MS) for day in range(5) for user in ("a", "b")]
    records = [raw(read) for read in as_read([click_of("u", START_MS), *days])]

    folded = store.fold(records)

    assert set(store.rows) == {b"a", b"b"}
    assert b"u" not in folded.states, "written and forgotten at once: nobody needs to know"
    assert {key for _, key in store.deadlines} == {b"a", b"b"}


def test_a_redelivered_event_of_a_forgotten_user_changes_nothing() -> None:
    store = Store(SETTINGS)
    days = [click_of(user, START_MS + day * DAY_MS) for day in range(5) for user in ("a", "b")]
    records = [raw(read) for read in as_read([click_of("u", START_MS), *days])]
    store.fold(records[:4])
    assert store.fold(records[4:]).states[b"u"] is None

    again = store.fold(records)

    assert (again.states, again.examples) == ({}, [])
    assert again.outcomes == {(CLICKS, "repeated"): len(records)}
