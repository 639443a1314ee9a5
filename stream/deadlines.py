"""What time alone brings about: windows of users who do nothing more are closed, and the inactive are forgotten.

Time is event time of the user's partition (`marks.EventClock`), never the clock on the wall, so a replay brings about
the same. A window is closed for the user when the event time is past its end by `max_future_seconds`, by which an
honest clock may be ahead; one that is past by the user's own clock is closed at once, by the join.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import add
from typing import NamedTuple

from msgspec.structs import astuple, replace

from stream.draft import Arrival, Draft
from stream.join import Folded
from stream.marks import NEVER_DUE_MS, applied_of, furthest
from stream.sequences import SECOND_MS, Accounts, Inherited, Outline, UserState, with_fresh_cause
from stream.settings import StreamSettings

DAY_MS = 86_400 * SECOND_MS

Due = tuple[int, bytes]
"""When something of a user falls due, and the user's key."""


class DeadlineChanges(NamedTuple):
    """Entries of the store's deadlines that go, and those that come."""

    gone: Iterable[Due]
    come: Iterable[Due]

    @property
    def earliest_ms(self) -> int:
        """The earliest of those that come."""
        return min(self.come, default=(NEVER_DUE_MS, b""))[0]


def changed_deadlines(
    before: Mapping[bytes, Outline | None],
    after: Mapping[bytes, Outline | None],
    visited: Iterable[Due],
    settings: StreamSettings,
) -> DeadlineChanges:
    """What of the deadlines goes and comes when users change; whatever was `visited` goes unless it still holds."""
    gone, come = set(visited), set()
    seen_to = {key for _, key in gone}
    for key, state in after.items():
        former = before[key]
        if state is former and key not in seen_to:
            continue
        was = None if former is None else deadline_ms(former, settings)
        now = None if state is None else deadline_ms(state, settings)
        if was != now and was is not None:
            gone.add((was, key))
        if now is not None and (was != now or key in seen_to):
            come.add((now, key))
    return DeadlineChanges(gone - come, come)


def deadline_ms(state: Outline, settings: StreamSettings) -> int:
    """The event time past which something of the user is over: a window, or else the stay.

    The stay ends with the day, so that a user's deadline moves once a day and not with every event.
    """
    if state.slates or state.parked:
        return _oldest_ms(state) + (settings.attribution_window_seconds + settings.max_future_seconds) * SECOND_MS
    return (_last_active_ms(state) // DAY_MS + 1 + settings.inactive_days) * DAY_MS


def is_waiting(state: UserState) -> bool:
    """Whether a window is open; a user who is past the deadline otherwise has stayed long enough."""
    return bool(state.slates or state.parked)


def close_windows(
    state: UserState, user_id: str, arrival: Arrival, settings: StreamSettings, *, now_ms: int, ordinal: int
) -> Folded:
    """Closes what is over by the event time of the partition, as an event of the user at that time would.

    `arrival` is that of the record which brought the time; its own examples took the ordinals before `ordinal`.
    """
    draft = Draft(with_fresh_cause(state, arrival.at_ms), user_id, arrival, settings, ordinal=ordinal)
    return Folded(draft.finish(now_ms - _skew_ms(settings)), tuple(draft.examples), "applied")


def with_estate(heir: UserState, forgotten: UserState) -> UserState:
    """The state of the user at whose event another is forgotten: it goes on telling how that one's events ended (I2).

    So the ledger stays whole, and the offsets that the forgotten one had folded in stay known.
    """
    own, other = heir.inherited or Inherited(), forgotten.inherited or Inherited()
    accounts = _sum(_sum(own.accounts, other.accounts), forgotten.accounts)
    clicks = own.clicks_applied + other.clicks_applied + forgotten.clicks_applied
    applied = furthest(own.applied, applied_of(forgotten))
    return replace(heir, inherited=Inherited(own.users + other.users + 1, clicks, accounts, applied))


def _oldest_ms(state: Outline) -> int:
    if len(state.slates) == 1 and not state.parked:
        return state.slates[0].served_at_ms
    return min([slate.served_at_ms for slate in state.slates] + [click.at_ms for click in state.parked])


def _last_active_ms(state: Outline) -> int:
    return max([state.clock_ms, *[slate.served_at_ms for slate in state.closed]]) if state.closed else state.clock_ms


def _skew_ms(settings: StreamSettings) -> int:
    return settings.max_future_seconds * SECOND_MS


def _sum(one: Accounts, other: Accounts) -> Accounts:
    return Accounts(*map(add, astuple(one), astuple(other)))
