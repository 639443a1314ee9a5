"""One batch's sweep: as its records move the event time of their partition, what falls due of other users is ended.

It hangs on single records, not on batches: whatever the records before it led to, a record ends at most
`ENDED_PER_RECORD` deadlines, the earliest first, under ids that follow its own. So where batches are cut changes
nothing, a crash repeats the same, and however much falls due at once, a batch stays bounded. One deadline a record
would keep up, because a record gives at most one user a new one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple

from stream.deadlines import DAY_MS, Due, close_windows, deadline_ms, is_waiting, with_estate
from stream.draft import Arrival
from stream.examples import Example
from stream.marks import NEVER_DUE_MS, EventClock
from stream.sequences import UserState
from stream.settings import StreamSettings

ENDED_PER_RECORD = 4


class DueSoon(NamedTuple):
    """The earliest deadlines that the store knows of, and a time before which there is no other."""

    entries: list[Due]
    rest_ms: int


NOTHING_DUE = DueSoon([], NEVER_DUE_MS)
States = dict[bytes, UserState | None]
"""By key; None where there is no user."""


class Sweep:
    """The deadlines that may pass within a batch.

    An entry may be out of date. It counts only if the user's state still has that deadline; otherwise the state's own
    takes its place.
    """

    def __init__(self, clock: EventClock, soon: DueSoon, settings: StreamSettings, *, horizon_ms: int) -> None:
        """No event of the batch moves the event time past `horizon_ms`."""
        self._clock = clock
        self._settings = settings
        self._horizon_ms = horizon_ms
        self._long_ago_ms = horizon_ms - settings.inactive_days * DAY_MS
        self._heap = list(soon.entries)  # ascending, and so a heap
        self._waiting = set(soon.entries)
        """What is on the heap: a user with many events has one entry for each deadline."""
        self.visited: list[Due] = []

    def note(self, key: bytes, state: UserState) -> bool:
        """Takes in what an event made of a user; says whether something is due by now."""
        if state.clock_ms > self._clock.now_ms:
            self._clock.see(key, state.clock_ms)
        self._push(key, state)
        return bool(self._heap) and self._heap[0][0] < self._clock.now_ms

    def end_overdue(
        self, states: States, read: Callable[[bytes], UserState | None], arrival: Arrival, *, by: bytes, ordinal: int
    ) -> Iterable[Example]:
        """Ends what is due of anybody but the user `by` whose record this is, and changes `states` accordingly."""
        examples: list[Example] = []
        put_off: list[Due] = []
        ended = 0
        while ended < ENDED_PER_RECORD and self._heap and self._heap[0][0] < self._clock.now_ms:
            due = heapq.heappop(self._heap)
            self._waiting.discard(due)
            if due[1] == by:
                put_off.append(due)
                continue
            self.visited.append(due)
            state = states[due[1]] if due[1] in states else read(due[1])
            if state is None:
                continue
            if deadline_ms(state, self._settings) != due[0]:
                self._push(due[1], state)
                continue
            ended += 1
            examples += self._end(states, due[1], state, arrival, by=by, ordinal=ordinal + len(examples))
        for due in put_off:
            self._put(due)
        return examples

    def earliest_ms(self) -> int:
        """No deadline that this sweep knows of is earlier."""
        return self._heap[0][0] if self._heap else NEVER_DUE_MS

    def _end(
        self, states: States, key: bytes, state: UserState, arrival: Arrival, *, by: bytes, ordinal: int
    ) -> Iterable[Example]:
        if not is_waiting(state):
            heir = states[by]
            assert heir is not None, "an event has just been folded into it"
            states[by], states[key] = with_estate(heir, state), None
            return ()
        closed = close_windows(state, key.decode(), arrival, self._settings, now_ms=self._clock.now_ms, ordinal=ordinal)
        states[key] = closed.state
        self._push(key, closed.state)
        return closed.examples

    def _push(self, key: bytes, state: UserState) -> None:
        if is_waiting(state) or state.clock_ms < self._long_ago_ms:
            due_ms = deadline_ms(state, self._settings)
            if due_ms < self._horizon_ms:
                self._put((due_ms, key))

    def _put(self, due: Due) -> None:
        if due not in self._waiting:
            self._waiting.add(due)
            heapq.heappush(self._heap, due)
