"""The join: one event folded into one user's state. Pure; a redelivered event changes nothing and teaches nothing.

What is promised of the order in which clicks, impressions and recommendations are read (I9), each topic in its own:

- Always: the sequence, how each click ends, and every click's example but for `served` do not depend on it, and
  nothing at all depends on where chunks are cut.
- As long as a user's topics do not run further apart than what is remembered (`max_open_slates`, `remembered_slates`,
  `max_parked_clicks`, the window): the slates with what was seen and clicked of them, corrections folded in, do not
  depend on it, nor does `served` of a click that names its request_id.
- `served` of a click that names none, with how much of its context is newer than the slate, tells what was known when
  it was folded, and so does the context of a slate; an
  impression that names none belongs to what was known of the slates then.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from msgspec.structs import replace

from stream.draft import Arrival, Draft, added, click_example
from stream.events import Click, Impression, Recommendation
from stream.examples import Example
from stream.sequences import SECOND_MS, Applied, ParkedClick, Times, UserState, fresh_click, times_of, with_fresh_cause
from stream.settings import StreamSettings

EVENT_ID_BYTES = 8
EVENT_IDS = 8

Outcome = Literal["applied", "duplicate", "late", "repeated"]
"""`repeated`: this very message was folded in before; it counts nowhere."""


class Folded(msgspec.Struct, frozen=True, gc=False):
    """The next state, what the trainer learns from the event, and how the event ended."""

    state: UserState
    examples: tuple[Example, ...]
    outcome: Outcome


def apply_click(state: UserState, click: Click, arrival: Arrival, settings: StreamSettings) -> Folded:
    """Puts a click into the sequence, in the order of event times, and tells the trainer.

    The same item at the same time, or an event_id among the last few, is a duplicate. Older than the newest click by
    more than the lateness, or than all that is left of a full sequence, is late: it would fall off at once.
    """
    if arrival.offset <= state.applied.clicks:
        return Folded(state, (), "repeated")
    mark = _mark(click.event_id)
    if _is_known(state, click, mark):
        return _refused(state, arrival, "clicks_duplicate", "duplicate")
    if _is_late(state, click.timestamp_ms, settings):
        return _refused(state, arrival, "clicks_late", "late")
    place = state.place_of(click.timestamp_ms)
    context = state.items[max(place - settings.context_length, 0) : place]
    told = ParkedClick(click.item_id, click.timestamp_ms, click.request_id, click.position, arrival.at_ms, context)
    state = _with_click(state, click, arrival, settings.max_sequence_length, place=place, mark=mark)
    if not (click.request_id or state.slates or state.closed or state.parked):
        return Folded(state, (click_example(arrival, 0, click.user_id, told, None),), "applied")
    draft = Draft(state, click.user_id, arrival, settings)
    draft.click(told)
    return _finished(draft, "applied")


def apply_impression(state: UserState, impression: Impression, arrival: Arrival, settings: StreamSettings) -> Folded:
    """Marks what came into view. Late is what is older than the user's newest event by more than the lateness."""
    if arrival.offset <= state.applied.impressions:
        return Folded(state, (), "repeated")
    before = state.applied
    is_late = impression.timestamp_ms < state.clock_ms - settings.lateness_seconds * SECOND_MS
    state = replace(
        state,
        click=fresh_click(state, arrival.at_ms),
        applied=Applied(before.clicks, arrival.offset, before.recommendations),
        clock_ms=max(state.clock_ms, impression.timestamp_ms),
    )
    if is_late:
        count = len(impression.items)
        counted = {"impressions": 1, "items_seen": count, "items_late": count}
        return Folded(replace(state, accounts=added(state.accounts, counted)), (), "late")
    draft = Draft(state, impression.user_id, arrival, settings)
    draft.see(impression)
    is_duplicate = draft.counted["items_duplicate"] == len(impression.items)
    return _finished(draft, "duplicate" if is_duplicate else "applied")


def apply_recommendation(
    state: UserState, recommendation: Recommendation, arrival: Arrival, settings: StreamSettings
) -> Folded:
    """Opens a slate. A request_id known already is a duplicate whatever it says: what was served first was served.

    It does not move the user's clock, which is that of clicks and impressions: a recommender's own clock is another
    one while old events are replayed.
    """
    if arrival.offset <= state.applied.recommendations:
        return Folded(state, (), "repeated")
    state = with_fresh_cause(state, arrival.at_ms)
    state = replace(state, applied=replace(state.applied, recommendations=arrival.offset))
    if recommendation.generated_at_ms < state.clock_ms - settings.lateness_seconds * SECOND_MS:
        return _counted(state, "slates_late", "late")
    draft = Draft(state, recommendation.user_id, arrival, settings)
    outcome = draft.serve(recommendation)
    draft.counted["slates" if outcome == "applied" else f"slates_{outcome}"] += 1
    return _finished(draft, outcome)


def _finished(draft: Draft, outcome: Outcome) -> Folded:
    return Folded(draft.finish(), tuple(draft.examples), outcome)


def _refused(state: UserState, arrival: Arrival, name: str, outcome: Outcome) -> Folded:
    return _counted(replace(state, applied=replace(state.applied, clicks=arrival.offset)), name, outcome)


def _counted(state: UserState, name: str, outcome: Outcome) -> Folded:
    return Folded(replace(state, accounts=added(state.accounts, {name: 1})), (), outcome)


def _with_click(state: UserState, click: Click, arrival: Arrival, keep: int, *, place: int, mark: bytes) -> UserState:
    """The state with the click at its place in the sequence: one constructor, because every click passes here."""
    if place == len(state.items):
        items = (*state.items, click.item_id)
    else:
        items = (*state.items[:place], click.item_id, *state.items[place:])
    return UserState(
        items=items[-keep:],
        times=_with_time(state, place, click.timestamp_ms, keep),
        clicks_applied=state.clicks_applied + 1,
        applied=Applied(arrival.offset, state.applied.impressions, state.applied.recommendations),
        click=(arrival.partition, arrival.offset, arrival.at_ms),
        clock_ms=max(state.clock_ms, click.timestamp_ms),
        event_ids=(state.event_ids + mark)[-EVENT_IDS * EVENT_ID_BYTES :],
        accounts=state.accounts,
        slates=state.slates,
        closed=state.closed,
        parked=state.parked,
        inherited=state.inherited,
    )


def _mark(event_id: str) -> bytes:
    return hashlib.blake2b(event_id.encode(), digest_size=EVENT_ID_BYTES).digest()


def _holds(marks: bytes, mark: bytes) -> bool:
    place = marks.find(mark)
    while place % EVENT_ID_BYTES and place >= 0:
        place = marks.find(mark, place + 1)
    return place >= 0


def _is_known(state: UserState, click: Click, mark: bytes) -> bool:
    if _holds(state.event_ids, mark):
        return True
    if not state.items or click.timestamp_ms > state.times.newest_ms:
        return False
    first, behind = state.times.before(click.timestamp_ms), state.place_of(click.timestamp_ms)
    return click.item_id in state.items[first:behind]


def _is_late(state: UserState, at_ms: int, settings: StreamSettings) -> bool:
    if not state.items or at_ms >= state.times.newest_ms:
        return False
    has_lost_some = state.clicks_applied > len(state.items)
    return at_ms < state.times.newest_ms - settings.lateness_seconds * SECOND_MS or (
        has_lost_some and not state.place_of(at_ms)
    )


def _with_time(state: UserState, place: int, at_ms: int, keep: int) -> Times:
    if not state.items:
        return Times(newest_ms=at_ms)
    if place == len(state.items):
        return state.times.then(at_ms, keep=keep)
    times_ms = state.times_ms
    return times_of((*times_ms[:place], at_ms, *times_ms[place:])[-keep:])
