"""The next state of one user while one event is folded in: slates open, are seen, clicked and closed.

The order in which topics are read must not show in the end (I9). So a slate keeps what was clicked of it, with the time
of the click and whether the click named it; a click that names none belongs to the newest slate that showed the item
at its time, also where that slate becomes known later; and what changes a closed slate goes out as a correction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from stream import slates
from stream.events import Impression, Recommendation, SeenItem
from stream.examples import ClickExample, Example, ExampleId, Served, SlateExample
from stream.sequences import SECOND_MS, Accounts, ParkedClick, Slate, SlateClick, Times, UserState, times_of
from stream.settings import StreamSettings


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """Where an event stood (`source` is the topic without the prefix), and Kafka's timestamp of it."""

    source: str
    partition: int
    offset: int
    at_ms: int


class Draft:
    """One event's changes, gathered before they become the next state; the state it began from stays as it is."""

    def __init__(
        self, state: UserState, user_id: str, arrival: Arrival, settings: StreamSettings, *, ordinal: int = 0
    ) -> None:
        self.state = state
        self.user_id = user_id
        self.arrival = arrival
        self.settings = settings
        self.window_ms = settings.attribution_window_seconds * SECOND_MS
        self.open = {slate.request_id: slate for slate in state.slates} if state.slates else {}
        self.closed = {slate.request_id: slate for slate in state.closed} if state.closed else {}
        self.parked = list(state.parked)
        self.counted: defaultdict[str, int] = defaultdict(int)
        self.examples: list[Example] = []
        self._ordinal = ordinal

    def finish(self, now_ms: int = 0) -> UserState:
        """The next state, after what is over by its clock, or at `now_ms`, was closed and the bounds were kept."""
        clock_ms = max(self.state.clock_ms, now_ms)
        if self.parked:
            self._release_overdue(clock_ms)
        if self.open:
            self._close_overdue(clock_ms)
        if self.closed:
            self._forget(self.state.clock_ms)
        return replace(
            self.state,
            accounts=added(self.state.accounts, self.counted),
            slates=tuple(self.open.values()),
            closed=tuple(self.closed.values()),
            parked=tuple(self.parked),
        )

    def click(self, click: ParkedClick) -> None:
        """Attributes a click that stands in the sequence; its example waits only for a slate that it names."""
        if click.request_id is None:
            slate = slates.newest_holding(self._slates(), click.item_id, click.at_ms, self.window_ms)
        else:
            slate = self._find(click.request_id)
        if slate is None and click.request_id is not None:
            self._park(click)
        elif slate is None:
            self._teach_click(click, served=None)
        else:
            self._click_in(slate, click)

    def see(self, impression: Impression) -> None:
        """Marks what came into view in the slate it names, else where it was served, else in a slate of its own."""
        self.counted["impressions"] += 1
        self.counted["items_seen"] += len(impression.items)
        named = self._find(impression.request_id or impression.event_id)
        if named is not None:
            self._see_in(named, impression.items)
        elif impression.request_id is not None:
            self._glimpse(impression, impression.items)
        else:
            self._see_unnamed(impression)

    def serve(self, recommendation: Recommendation) -> Literal["applied", "duplicate", "late"]:
        """Opens a slate, or completes the one that an impression opened, and closes the surface's former one.

        Late is a slate that was closed before it became known: what was told of it stands, without propensities.
        """
        logged = slates.recommended(recommendation)
        known = self._find(logged.request_id)
        if known is not None and known.surface is not None:
            return "duplicate"
        if known is not None and known.request_id in self.closed:
            self.closed[known.request_id] = slates.completed(known, logged)
            self._release(known.request_id)
            return "late"
        self.open[logged.request_id] = logged if known is None else self._completed(known, logged)
        self._claim_earlier(logged.request_id)
        self._release(logged.request_id)
        for former in [slate for slate in self.open.values() if slate.surface == logged.surface]:
            if former.request_id != logged.request_id:
                self._close(former)
        return "applied"

    def drop_oldest(self) -> bool:
        """Lets go of the oldest that is kept, in the order of `stream.bounding`; False where only one item is left."""
        if self.closed:
            del self.closed[min(self.closed.values(), key=slates.age_order).request_id]
        elif self.open:
            self._close(min(self.open.values(), key=slates.age_order))
        elif self.parked:
            click = self.parked.pop(0)
            self._teach_click(click, served=slates.served_by_somebody(click))
        elif len(self.state.items) > 1:
            times = self.state.times
            self.state = replace(self.state, items=self.state.items[1:], times=replace(times, gaps=times.gaps[1:]))
        else:
            return False
        return True

    def _slates(self) -> list[Slate]:
        return [*self.open.values(), *self.closed.values()]

    def _find(self, request_id: str) -> Slate | None:
        return self.open.get(request_id) or self.closed.get(request_id)

    def _click_in(self, slate: Slate, click: ParkedClick) -> None:
        named, whole = click.request_id is not None, slate
        if click.item_id not in slate.items:
            whole = slates.with_items(slate, [SeenItem(item_id=click.item_id, position=click.position)])
        if click.item_id not in whole.items:
            self._teach_click(click, served=None)
            return
        slot = whole.items.index(click.item_id)
        if named and not slates.is_known(slate):
            self._park(click)
        else:
            self._teach_click(click, served=self._served(whole, slot, click))
        self._change(slate, slates.with_click(whole, SlateClick(slot, click.at_ms, named)))

    def _park(self, click: ParkedClick) -> None:
        """Lets a click that was just put into the sequence wait for its slate."""
        self.parked.append(replace(click, context_times=self._context_times(click)))

    def _context_times(self, click: ParkedClick) -> Times | None:
        """When the context of a click was chosen that was just put into the sequence; None where it has none."""
        until = self.state.place_of(click.at_ms) - 1
        times_ms = self.state.times_ms[max(0, until - len(click.context)) : until]
        return times_of(times_ms) if times_ms else None

    def _served(self, slate: Slate, slot: int, click: ParkedClick) -> Served:
        return slates.served(slate, slot, click.position, clicks_since=self._clicks_since(click, slate.served_at_ms))

    def _clicks_since(self, click: ParkedClick, served_at_ms: int) -> int:
        """How much of a click's context was chosen after that, as it was when the click was put into the sequence."""
        if click.context_times is not None:
            return len(click.context_times.gaps) + 1 - click.context_times.before(served_at_ms)
        until = self.state.place_of(click.at_ms) - 1
        return min(len(click.context), max(0, until - self.state.times.before(served_at_ms)))

    def _completed(self, glimpse: Slate, logged: Slate) -> Slate:
        whole = slates.completed(slates.without_unnamed(glimpse), logged)
        self.counted["items_late"] += len(glimpse.seen) - len(whole.seen)
        return whole

    def _see_unnamed(self, impression: Impression) -> None:
        found: dict[str | None, list[SeenItem]] = {}
        for item in impression.items:
            slate = self._slate_showing(item.item_id, impression.timestamp_ms)
            found.setdefault(None if slate is None else slate.request_id, []).append(item)
        for request_id, items in found.items():
            known = None if request_id is None else self._find(request_id)
            if known is None:
                self._glimpse(impression, items)
            else:
                self._see_in(known, items)

    def _slate_showing(self, item_id: str, at_ms: int) -> Slate | None:
        known = self._slates()
        same = [slate for slate in known if slate.surface is None and slate.served_at_ms == at_ms]
        logged = [slate for slate in known if slate.surface is not None]
        return slates.newest_holding(same, item_id, at_ms, 0) or slates.newest_holding(
            logged, item_id, at_ms, self.window_ms
        )

    def _glimpse(self, impression: Impression, items: Sequence[SeenItem]) -> None:
        slate = slates.glimpsed(impression, items)
        self.open[slate.request_id] = slate
        if len(items) > len(slate.items):
            self.counted["items_duplicate"] += len(items) - len(slate.items)
        self._claim_earlier(slate.request_id)
        if slates.is_known(slate):
            self._release(slate.request_id)

    def _see_in(self, slate: Slate, items: Sequence[SeenItem]) -> None:
        whole = slates.with_items(slate, items)
        held = whole.items
        slots = [held.index(item.item_id) for item in items if item.item_id in held]
        seen = tuple(sorted({*slate.seen, *slots}))
        self.counted["items_late"] += len(items) - len(slots)
        self.counted["items_duplicate"] += len(slots) - (len(seen) - len(slate.seen))
        self._change(slate, replace(whole, seen=seen))
        if len(whole.items) > len(slate.items):
            self._claim_earlier(slate.request_id)
        if slates.is_known(slate):
            self._release(slate.request_id)

    def _claim_earlier(self, request_id: str) -> None:
        """Gives an open slate the clicks that were folded before it, or before one of its items, was known."""
        slate = self.open.get(request_id)
        if slate is None or not (self.parked or self.state.times.newest_ms >= slate.served_at_ms):
            return
        for click in self.parked:
            if click.request_id == request_id:
                slate = slates.with_named_click(slate, click)
        self.open[request_id] = slate
        for item_id, at_ms in self._chosen_since(slate.served_at_ms):
            if item_id in slate.items and at_ms <= slate.served_at_ms + self.window_ms:
                self._claim_unnamed(request_id, item_id, at_ms)

    def _chosen_since(self, at_ms: int) -> list[tuple[str, int]]:
        state = self.state
        if state.times.newest_ms < at_ms or not state.items:
            return []
        since = state.times.before(at_ms)
        return list(zip(state.items[since:], state.times_ms[since:], strict=True))

    def _claim_unnamed(self, request_id: str, item_id: str, at_ms: int) -> None:
        slate = self.open[request_id]
        if any((click.item_id, click.at_ms) == (item_id, at_ms) for click in self.parked):
            return
        owner = next((other for other in self._slates() if slates.click_on(other, item_id, at_ms)), None)
        if owner is not None:
            claim = slates.click_on(owner, item_id, at_ms)
            if claim is None or claim.named or owner.request_id in self.closed:
                return
            if slates.age_order(owner) >= slates.age_order(slate):
                return
            self.open[owner.request_id] = slates.without_click(owner, claim)
        slot = slate.items.index(item_id)
        self.open[request_id] = slates.with_click(slate, SlateClick(slot, at_ms, named=False))

    def _change(self, before: Slate, after: Slate) -> None:
        """Puts a slate in its place; one that is closed already sends what is new about it."""
        if after.request_id in self.open:
            self.open[after.request_id] = after
            return
        self.closed[after.request_id] = after
        clicked = slates.clicked(after) - slates.clicked(before)
        seen = set(after.seen) - set(before.seen)
        self._account_seen(seen, slates.clicked(after))
        recalled = len(clicked & set(before.seen))
        self.counted["items_clicked"] += recalled
        self.counted["items_expired"] -= recalled
        if clicked or seen:
            first = slates.is_quiet(before)
            self._teach_slate(after, slates.clicked(after) if first else clicked, correction=not first)

    def _account_seen(self, seen: Collection[int], clicked: frozenset[int]) -> None:
        hits = len(clicked.intersection(seen)) if clicked else 0
        if hits:
            self.counted["items_clicked"] += hits
        self.counted["items_expired"] += len(seen) - hits

    def _close(self, slate: Slate) -> None:
        del self.open[slate.request_id]
        self.closed[slate.request_id] = slate
        if not slates.is_quiet(slate):
            clicked = slates.clicked(slate)
            self._account_seen(slate.seen, clicked)
            self._teach_slate(slate, clicked, correction=False)

    def _close_overdue(self, clock_ms: int) -> None:
        over_ms = clock_ms - self.window_ms
        overdue = [slate for slate in self.open.values() if slate.served_at_ms < over_ms]
        excess = len(self.open) - self.settings.max_open_slates
        if excess > len(overdue):
            overdue = sorted(self.open.values(), key=slates.age_order)[:excess]
        elif len(overdue) > 1:
            overdue.sort(key=slates.age_order)
        for slate in overdue:
            self._close(slate)

    def _forget(self, clock_ms: int) -> None:
        kept_ms = self.window_ms + self.settings.lateness_seconds * SECOND_MS
        since_ms = clock_ms - kept_ms
        recent = [slate for slate in self.closed.values() if slate.served_at_ms >= since_ms]
        excess = len(recent) - self.settings.remembered_slates
        if excess <= 0 and len(recent) == len(self.closed):
            return
        self.closed = {slate.request_id: slate for slate in recent[max(excess, 0) :]}

    def _release(self, request_id: str) -> None:
        """Sends the clicks that waited for this slate."""
        if not self.parked:
            return
        slate = self._find(request_id)
        assert slate is not None
        for click in [click for click in self.parked if click.request_id == request_id]:
            self.parked.remove(click)
            slot = slate.items.index(click.item_id) if click.item_id in slate.items else None
            served = None if slot is None else self._served(slate, slot, click)
            self._teach_click(click, served=served)

    def _release_overdue(self, clock_ms: int) -> None:
        """Sends the clicks that have waited long enough as served by somebody unknown."""
        excess = len(self.parked) - self.settings.max_parked_clicks
        for nth, click in enumerate(tuple(self.parked)):
            if nth < excess or click.at_ms + self.window_ms < clock_ms:
                self.parked.remove(click)
                self._teach_click(click, served=slates.served_by_somebody(click))

    def _teach_click(self, click: ParkedClick, *, served: Served | None) -> None:
        self.examples.append(click_example(self.arrival, self._next_ordinal(), self.user_id, click, served))

    def _next_ordinal(self) -> int:
        return self._ordinal + len(self.examples)

    def _teach_slate(self, slate: Slate, clicked: Collection[int], *, correction: bool) -> None:
        before = self.state.times.before(slate.served_at_ms) if self.state.items else 0
        self.examples.append(
            SlateExample(
                id=_example_id(self.arrival, self._next_ordinal()),
                user_id=self.user_id,
                context=self.state.items[max(before - self.settings.context_length, 0) : before],
                request_id=slate.request_id,
                policy=slate.policy,
                items=slates.shown(slate, clicked),
                timestamp_ms=slate.served_at_ms,
                arrived_at_ms=self.arrival.at_ms,
                correction=correction,
            )
        )


def click_example(
    arrival: Arrival, ordinal: int, user_id: str, click: ParkedClick, served: Served | None
) -> ClickExample:
    """A click as the trainer is told of it."""
    return ClickExample(
        id=_example_id(arrival, ordinal),
        user_id=user_id,
        context=click.context,
        item_id=click.item_id,
        timestamp_ms=click.at_ms,
        arrived_at_ms=click.arrived_at_ms,
        served=served,
    )


def added(accounts: Accounts, counted: Mapping[str, int]) -> Accounts:
    """The accounts with what was counted, by the names of their fields."""
    if not counted:
        return accounts
    changed = {name: getattr(accounts, name) + count for name, count in counted.items() if count}
    return replace(accounts, **changed) if changed else accounts


def _example_id(arrival: Arrival, ordinal: int) -> ExampleId:
    return ExampleId(arrival.source, arrival.partition, arrival.offset, ordinal)
