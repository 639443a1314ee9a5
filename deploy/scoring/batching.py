"""Who waits for a slate: users in the order of their arrival, ranked together, the newest click of each."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from stream.events import Cause, Request

REST_SECONDS = 0.005
"""Most that the worker rests after a batch of one user; it rests as long as that took."""
BUSY_USERS = 4
"""A batch of so many users, or more, is rested for that many times as long: the worker is busy, and a large batch costs
hardly more than a small one, here, on the broker and with all who read the slates.
"""


class Source(NamedTuple):
    """A partition of an input topic, by the topic's name without the prefix."""

    topic: str
    partition: int


class Work(NamedTuple):
    """One slate to be made."""

    user_id: str
    request_id: str
    cause: Cause
    """The click or the request; it becomes the cause of the slate."""
    source: Source
    offset: int
    """Where the record stands that asked for it: a restart must read it again until the slate is acknowledged."""
    request: Request | None = None
    """What the page wants; absent for a slate caused by a click."""


def _key(work: Work) -> tuple[str, ...]:
    return (work.user_id,) if work.request is None else (work.user_id, work.request_id)


class _Held(NamedTuple):
    work: Work
    until: float


class Waiting:
    """Work until it is taken: at most `max_batch` at once, none waits longer than `max_wait_seconds` for company.

    A batch of one costs nearly as much as a batch of four, and a worker that ranked without pause would take from the
    others on its machine what they need to bring it work. So after every batch the worker rests for a while, and what
    comes meanwhile is the next batch; who comes when it has rested does not wait at all.

    A user's newer click takes the place of an older one that still waits: the older slate would never be looked at.
    A request is always answered. One that waits for a click is held until it is released or its time is up.
    """

    def __init__(self, *, max_batch: int, max_wait_seconds: float) -> None:
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._work: OrderedDict[tuple[str, ...], Work] = OrderedDict()
        self._oldest_at: float = 0.0
        self._rested_at: float = math.inf
        self._held: dict[str, list[_Held]] = {}
        self.held = 0
        """Requests that wait for a click."""

    def __len__(self) -> int:
        return len(self._work) + self.held

    def hold(self, work: Work, *, until: float) -> None:
        """Lets a request wait for a click of its user, at most until then."""
        self._held.setdefault(work.user_id, []).append(_Held(work, until))
        self.held += 1

    def release(self, user_id: str, *, now: float, is_fresh: Callable[[Work], bool]) -> None:
        """A click of the user came: whoever waited for it is due now."""
        if user_id in self._held:
            self._let_go(user_id, lambda held: is_fresh(held.work), now)

    def release_overdue(self, now: float) -> None:
        """Those that have waited long enough are answered from what is known."""
        for user_id in list(self._held):
            self._let_go(user_id, lambda held: held.until <= now, now)

    def _let_go(self, user_id: str, is_due: Callable[[_Held], bool], now: float) -> None:
        held = self._held.pop(user_id)
        due = [one for one in held if is_due(one)]
        if len(due) < len(held):
            self._held[user_id] = [one for one in held if one not in due]
        self.held -= len(due)
        for one in due:
            self.add(one.work, now=now)

    def add(self, work: Work, *, now: float) -> bool:
        """Lets `work` wait; True where it took the place of older work of the same user."""
        if not self._work:
            self._oldest_at = now
        replaced = _key(work) in self._work
        self._work[_key(work)] = work
        return replaced

    def supersede(self, work: Work) -> None:
        """`work` has its slate already: an older click of that user needs none any more."""
        self._work.pop(_key(work), None)

    def seconds_left(self, now: float) -> float | None:
        """How long company may still be waited for: 0 means take now, None that nobody waits."""
        if not self._work:
            held = [one.until for user in self._held.values() for one in user]
            return max(0.0, min(held) - now) if held else None
        if len(self._work) >= self._max_batch:
            return 0.0
        return max(0.0, min(self._oldest_at + self._max_wait_seconds, self._rested_at) - now)

    def rest(self, *, until: float) -> None:
        """The worker has done a batch; who comes before that time waits for company."""
        self._rested_at = until

    def take(self) -> list[Work]:
        """The next batch, oldest first; whoever is left is due at once."""
        size = min(len(self._work), self._max_batch)
        return [self._work.popitem(last=False)[1] for _ in range(size)]

    def drop(self, sources: Iterable[Source]) -> None:
        """Another worker answers these now."""
        dropped = set(sources)
        for key in [key for key, work in self._work.items() if work.source in dropped]:
            del self._work[key]
        for user_id in list(self._held):
            kept = [one for one in self._held.pop(user_id) if one.work.source not in dropped]
            if kept:
                self._held[user_id] = kept
        self.held = sum(map(len, self._held.values()))

    def first_offsets(self) -> dict[Source, int]:
        """Per source the lowest offset that still waits: nothing at or behind it may be committed."""
        lowest: dict[Source, int] = {}
        held = (one.work for user in self._held.values() for one in user)
        for work in chain(self._work.values(), held):
            lowest[work.source] = min(work.offset, lowest.get(work.source, work.offset))
        return lowest


def rest_seconds(took: float, *, users: int) -> float:
    """How long the next batch gathers company, unless it is full or somebody in it has waited long enough."""
    return min(took, REST_SECONDS) * min(users, BUSY_USERS)
