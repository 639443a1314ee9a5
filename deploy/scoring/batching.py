"""Who waits for a slate: users in the order of their arrival, ranked together, the newest click of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from stream.events import Cause, Request


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


class Waiting:
    """Work until it is taken: at most `max_batch` at once, none waits longer than `max_wait_seconds` for company.

    A user's newer click takes the place of an older one that still waits: the older slate would never be looked at.
    A request is always answered.
    """

    def __init__(self, *, max_batch: int, max_wait_seconds: float) -> None:
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._work: OrderedDict[tuple[str, ...], Work] = OrderedDict()
        self._oldest_at: float = 0.0

    def __len__(self) -> int:
        return len(self._work)

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
            return None
        if len(self._work) >= self._max_batch:
            return 0.0
        return max(0.0, self._oldest_at + self._max_wait_seconds - now)

    def take(self) -> list[Work]:
        """The next batch, oldest first; whoever is left is due at once."""
        size = min(len(self._work), self._max_batch)
        return [self._work.popitem(last=False)[1] for _ in range(size)]

    def drop(self, sources: Iterable[Source]) -> None:
        """Another worker answers these now."""
        dropped = set(sources)
        for key in [key for key, work in self._work.items() if work.source in dropped]:
            del self._work[key]

    def first_offsets(self) -> dict[Source, int]:
        """Per source the lowest offset that still waits: nothing at or behind it may be committed."""
        lowest: dict[Source, int] = {}
        for work in self._work.values():
            lowest[work.source] = min(work.offset, lowest.get(work.source, work.offset))
        return lowest
