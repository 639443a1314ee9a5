"""The chunks of several topics, merged partition by partition in the order in which their records came into Kafka.

Clicks, impressions and slates of a user stand on three topics, between which Kafka gives no order. Ours is a rule about
what stands there: of the next record of every topic, the one with the oldest timestamp of Kafka comes first, among
equals that of the topic named first. Wherever fetches cut the topics and whichever arrives first, behind the same
records comes the same one: a topic that may still bring something is waited for as soon as its next record is not
known. A replay, and a worker that starts again, so read what an undisturbed one would have read.

What comes in while it is read is another matter: a topic that the broker has no more of is not waited for, and what it
then brings stands behind what was taken, whatever its timestamp. That order is told to whoever comes after a crash: by
the states, where they were written, and else by the `spans` of the batch that was under way.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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


class _Unknown(NamedTuple):
    """Stands for the next record of a topic that may have one: older than any, as far as anybody knows."""

    timestamp: float = float("-inf")


_UNKNOWN = _Unknown()


class _Queue:
    """Messages of one topic partition whose records are not all taken yet."""

    def __init__(self, folded: int) -> None:
        self.behind: int | None = None
        """The offset behind all that was ever queued."""
        self.messages: deque[Any] = deque()
        self.records: deque[Any] = deque()
        self._folded = folded

    def put(self, message: Any) -> bool:  # noqa: ANN401 - Faust's message
        self.behind = message.value.next
        new = [record for record in message.value.records if record.offset > self._folded]
        if new:
            self.messages.append(message)
            self.records.extend(new)
        return bool(new)

    def drop(self, offset: int) -> None:
        """Takes the records up to this offset out."""
        records = self.records
        while records and records[0].offset <= offset:
            records.popleft()

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

    def __init__(
        self, partition: int, topics: list[str], *, owed: Mapping[str, Span], folded: Mapping[str, int]
    ) -> None:
        """`folded` says up to which offset of each topic the states have the records; they are left out.

        Whoever merged them again from the committed offsets, which lie further back, would meet records in an order
        that nobody has met them in: stamps do not always ascend.
        """
        self._partition = partition
        self._queues = {topic: _Queue(folded[topic]) for topic in topics}
        self._owed = dict(owed)
        """What a killed worker had under way comes first, exactly as it was cut then."""

    def put(self, message: Any, *, finished: int) -> bool:  # noqa: ANN401 - Faust's message
        """Queues a message whose value is a chunk; says whether it holds anything that is not folded in already.

        `finished` is where its topic stood in the beginning.

        Raises:
            ValueError: it does not follow on the one before; what lies between was lost on the way.
        """
        queue = self._queues[message.topic]
        behind = max(finished, queue.behind or 0)
        if message.value.first > behind:
            raise ValueError(f"{message.tp} jumped from {behind} to {message.value.first}; start the worker again")
        return queue.put(message)

    def lacking(self, has_more: HasMore) -> list[TP]:
        """Topic partitions that are waited for: they may have a record, and none of theirs is queued."""
        return [
            TP(topic, self._partition)
            for topic, queue in self._queues.items()
            if not queue.records and has_more(TP(topic, self._partition), queue.behind)
        ]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is queued."""
        return not any(queue.records for queue in self._queues.values())

    def take(self, has_more: HasMore, *, most: int | None = None) -> Batch | None:
        """The next records that may be handled, if any may: up to where a topic that may have more has no more here.

        At most so many, unless they are owed.
        """
        if self._owed and not self._is_owed_here():
            return None
        return self._take_owed() or self._batch(
            (
                itertools.chain(queue.records, [_UNKNOWN] if has_more(TP(topic, self._partition), queue.behind) else [])
                for topic, queue in self._queues.items()
            ),
            most=most,
        )

    def _take_owed(self) -> Batch | None:
        """What is owed: not what stands before it, which is folded in; nothing if that, too, is."""
        owed, self._owed = self._owed, {}
        return self._batch(
            [record for record in queue.records if topic in owed and record.offset < owed[topic].behind]
            for topic, queue in self._queues.items()
        )

    def _is_owed_here(self) -> bool:
        return all((self._queues[topic].behind or 0) >= span.behind for topic, span in self._owed.items())

    def _batch(self, queued: Iterable[Iterable[Any]], *, most: int | None = None) -> Batch | None:
        records = list(itertools.islice(_until_unknown(heapq.merge(*queued, key=_arrival)), most))
        if not records:
            return None
        last = {record.topic: record.offset for record in records}
        first = {topic: self._queues[topic].records[0].offset for topic in last}
        for topic, offset in last.items():
            self._queues[topic].drop(offset)
        return Batch(
            partition=self._partition,
            records=records,
            spans={topic: Span(first[topic], offset + 1) for topic, offset in last.items()},
            messages=[message for topic, offset in last.items() for message in self._queues[topic].under_way(offset)],
            ended=[message for topic, offset in last.items() for message in self._queues[topic].end(offset)],
        )


def _until_unknown(merged: Iterator[Any]) -> Iterator[Any]:
    for record in merged:
        if record is _UNKNOWN:
            return
        yield record


def _arrival(record: Any) -> float:  # noqa: ANN401 - aiokafka's record
    timestamp: float = record.timestamp
    return timestamp
