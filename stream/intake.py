"""The chunks of several topics, merged partition by partition in the order in which their records came into Kafka.

Clicks, impressions and slates of a user stand on three topics. Live, they are read as they come. Behind a backlog, the
topics would run apart by whole chunks, and clicks miss their slates; so records are taken in the order of Kafka's
timestamps, and where one topic may still bring older ones, the newer wait. A batch that was cut is described by its
`spans`: the same spans of the same topics are merged in the same order again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from faust.types import TP

IsWanted = Callable[[Any], bool]
HasMore = Callable[[TP, int | None], bool]
"""Whether a topic partition may still bring records behind the offset up to which they were queued."""


class Span(NamedTuple):
    """Offsets of one topic, from `first` up to and without `behind`."""

    first: int
    behind: int


class Batch(NamedTuple):
    """Records of one partition number that are handled together, and the messages that end with them."""

    partition: int
    records: list[Any]
    spans: dict[str, Span]
    """By topic."""
    messages: list[Any]
    """Those under way: every one that has records here."""
    ended: list[Any]
    """Those of `messages` whose last record is here."""


class _Queue:
    """Messages of one topic partition whose records are not all taken yet."""

    def __init__(self) -> None:
        self.behind: int | None = None
        """The offset behind all that was ever queued."""
        self.messages: deque[Any] = deque()
        self.records: deque[Any] = deque()

    def put(self, message: Any) -> None:  # noqa: ANN401 - Faust's message
        self.messages.append(message)
        self.records.extend(message.value.records)
        self.behind = message.value.next

    def take(self, is_wanted: IsWanted | None) -> list[Any]:
        if is_wanted is None:
            taken = list(self.records)
            self.records.clear()
            return taken
        taken = list(itertools.takewhile(is_wanted, self.records))
        for _ in taken:
            self.records.popleft()
        return taken

    def under_way(self, offset: int) -> list[Any]:
        """Messages that hold records up to this offset."""
        return [message for message in self.messages if message.value.records[0].offset <= offset]

    def end(self, offset: int) -> list[Any]:
        """Forgets messages whose last record is at or before this offset, and returns them."""
        ended = []
        while self.messages and self.messages[0].value.next <= offset + 1:
            ended.append(self.messages.popleft())
        return ended


class Intake:
    """One generation's records of one partition number, over all input topics."""

    def __init__(self, partition: int, topics: list[str], *, owed: Mapping[str, Span]) -> None:
        self._partition = partition
        self._queues = {topic: _Queue() for topic in topics}
        self._owed = dict(owed)
        """What a killed worker had under way comes first, exactly as it was cut then."""

    def put(self, message: Any, *, finished: int) -> None:  # noqa: ANN401 - Faust's message
        """Queues a message whose value is a chunk; `finished` is where its topic stood in the beginning.

        Raises:
            ValueError: it does not follow on the one before; what lies between was lost on the way.
        """
        queue = self._queues[message.topic]
        behind = max(finished, queue.behind or 0)
        if message.value.first > behind:
            raise ValueError(f"{message.tp} jumped from {behind} to {message.value.first}; start the worker again")
        queue.put(message)

    def is_any(self, holds: HasMore) -> bool:
        """Whether something holds of one of the topics and of the offset up to which it was queued."""
        return any(holds(TP(topic, self._partition), queue.behind) for topic, queue in self._queues.items())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is queued."""
        return not any(queue.records for queue in self._queues.values())

    def take(self, has_more: HasMore) -> Batch | None:
        """The next records that may be handled, if any may: those that no other topic can bring older ones than."""
        if self._owed:
            return self._take_owed()
        queues = self._queues
        lagging = [queue for topic, queue in queues.items() if has_more(TP(topic, self._partition), queue.behind)]
        if self.is_empty or any(not queue.records for queue in lagging):
            return None
        if not lagging:
            return self.take_all()
        horizon = min(queue.records[-1].timestamp for queue in lagging)
        # Of the horizon's own millisecond more may come, which would stand before what another topic has of it.
        before = self._batch(lambda record: bool(record.timestamp < horizon))
        return before or self._batch(lambda record: bool(record.timestamp <= horizon)) or self.take_all()

    def take_all(self) -> Batch | None:
        """All that is queued, whatever else may come; still what is owed first."""
        return self._take_owed() if self._owed else self._batch(None)

    def _take_owed(self) -> Batch | None:
        owed = self._owed
        if any(not self._reaches(topic, span.behind) for topic, span in owed.items()):
            return None
        before = self._batch(lambda record: record.topic in owed and record.offset < owed[record.topic].first)
        if before is not None:
            return before  # folded in and committed or not: it changes nothing
        self._owed = {}
        return self._batch(lambda record: record.topic in owed and record.offset < owed[record.topic].behind)

    def _reaches(self, topic: str, behind: int) -> bool:
        return (self._queues[topic].behind or 0) >= behind

    def _batch(self, is_wanted: IsWanted | None) -> Batch | None:
        taken = {topic: queue.take(is_wanted) for topic, queue in self._queues.items()}
        last = {topic: records[-1].offset for topic, records in taken.items() if records}
        if not last:
            return None
        return Batch(
            partition=self._partition,
            records=list(heapq.merge(*taken.values(), key=_arrival)),
            spans={topic: Span(taken[topic][0].offset, offset + 1) for topic, offset in last.items()},
            messages=[message for topic, offset in last.items() for message in self._queues[topic].under_way(offset)],
            ended=[message for topic, offset in last.items() for message in self._queues[topic].end(offset)],
        )


def _arrival(record: Any) -> int:  # noqa: ANN401 - aiokafka's record
    timestamp: int = record.timestamp
    return timestamp
