"""What the scoring worker reads: `sequences` from the start, to know everybody, and what it has to answer.

The group shares the partitions of `sequences` and `requests` so that one worker has both of a user. Whoever gets a
partition reads its sequences from the start and so rebuilds the histories; the requests of that partition wait until
this is done. Only what stands at or behind the committed offset is answered; the commit says beside each offset from
where on `recommendations` may hold answers to what stands behind it, so that a worker that takes over makes none again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError

from deploy.scoring.answered import Standing, answered_since, committed, recommendations_end
from deploy.scoring.batching import Source
from stream.loop_clients import consumer
from stream.settings import KafkaSettings
from stream.topics import REQUESTS, SEQUENCES

SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_MS = 2_000
REBALANCE_TIMEOUT_MS = 15_000
"""How long the group waits for a member that does not answer; also the longest turn of the worker's loop."""
COMMIT_SECONDS = 1.0
"""Within so many seconds a commit stands, or the next one says it again."""
CLOSE_SECONDS = 2.0
POLL_MS = 1_000
"""A poll that brings nothing ends after so long, and another begins."""
SETTLE_SECONDS = (REBALANCE_TIMEOUT_MS + SESSION_TIMEOUT_MS) / 1_000
"""No group settles longer than it waits for its slowest and its dead members: who waits longer was forgotten."""


class Done(NamedTuple):
    """How far a source is answered: what is committed."""

    offset: int
    """Everything before it has its answer."""
    recommended: int
    """No answer to what stands at `offset` or behind it stands before this offset of `recommendations`."""


class Rebalanced(NamedTuple):
    """What another distribution of the partitions means for the worker."""

    done: Mapping[Source, Done]
    """Of every source that is ours now."""
    ends: Mapping[Source, int]
    """Where each ended at that moment: nothing from there on was answered by a predecessor."""
    lost: frozenset[Source]
    answered: frozenset[str]
    """request_ids that have their slate among what will be read again."""


async def _nothing_is_sent() -> None:
    """Who only reads has nothing to wait for."""


class Inputs(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """The group consumer of one worker; make it on a running event loop.

    `member` is a name that only this worker has and keeps over restarts: after a kill -9 it then has its partitions
    back at once instead of after the session timeout. `before_moving` is waited for before partitions go to others.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        member: str | None = None,
        before_moving: Callable[[], Awaitable[None]] = _nothing_is_sent,
    ) -> None:
        self._kafka = kafka
        self._before_moving = before_moving
        self._consumer = consumer(
            kafka,
            group_id=kafka.group("scoring"),
            group_instance_id=member,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_poll_interval_ms=REBALANCE_TIMEOUT_MS,
        )
        self.moving = True
        """While the group settles whose the partitions are: answering now might answer what another answers, too."""
        self._assigned = False
        self._distributions = 0
        """How often partitions came or went."""
        self._polling: asyncio.Task[Any] | None = None
        self._moving_since: float | None = None
        self._next: dict[Source, int] = {}
        self._answer_from: dict[Source, int] = {}
        self._rebuild_to: dict[Source, int] = {}
        self._topics = [kafka.topic(SEQUENCES), kafka.topic(REQUESTS)]

    async def start(self) -> None:
        """Connects, and joins the group."""
        await self._consumer.start()
        self._consumer.subscribe(self._topics, listener=self)

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:  # noqa: ARG002 - the base class names it
        """Whose the partitions will be is open from now on; the group waits until what we have sent stands."""
        self.moving, self._assigned = True, False
        self._distributions += 1
        await self._before_moving()

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:  # noqa: ARG002 - the base class names it
        """Whatever is read before `rebalanced` has said where to begin is thrown away."""
        self._assigned = True
        self._distributions += 1

    async def poll(self, *, timeout_seconds: float, limit: int) -> list[tuple[Source, list[Any]]]:
        """The records that arrived, by source and in order; waits no longer than until the first one is there.

        While the group settles there are none.
        """
        self._join_again_if_forgotten()
        if self._polling is None:
            self._polling = asyncio.create_task(self._consumer.getmany(timeout_ms=POLL_MS, max_records=limit))
        await asyncio.wait((self._polling,), timeout=timeout_seconds)
        if not self._polling.done():
            return []  # it goes on while others are answered
        polled, self._polling = self._polling.result(), None
        if self.moving or self._assigned:
            return []
        arrived = [(self._source(partition), records) for partition, records in polled.items()]
        for source, records in arrived:
            self._next[source] = records[-1].offset + 1
        return arrived

    def _join_again_if_forgotten(self) -> None:
        """A client has been seen to refuse a commit for a rebalance of which no assignment ever came."""
        now = time.monotonic()
        if not self.moving or self._assigned:
            self._moving_since = None
        elif self._moving_since is None:
            self._moving_since = now
        elif now - self._moving_since > SETTLE_SECONDS:
            structlog.get_logger().warning("joining the group again", reason="no assignment came")
            self._moving_since = now
            self._consumer.unsubscribe()
            self._consumer.subscribe(self._topics, listener=self)

    def answer_from(self, source: Source) -> int:
        """What stands before was answered when we got the partition."""
        return self._answer_from[source]

    def next_offset(self, source: Source) -> int:
        """The first offset that was not read yet."""
        return max(self._next[source], self._answer_from[source])

    async def rebalanced(self) -> Rebalanced | None:
        """Call after every poll. Once the group has settled, sets where each partition is read from; else None.

        1. the committed offsets say what is answered; a partition never committed begins at 0
        2. `recommendations` says what of the rest is answered all the same
        3. should partitions have moved again meanwhile, all this begins anew
        4. what went is forgotten
        5. new sequences are read from their start, what we had from where we were
        6. the requests of a partition wait for its sequences
        """
        if not self._assigned:
            return None
        await self._stop_polling()
        distributions = self._distributions
        ours = {self._source(partition) for partition in self._consumer.assignment()}
        done, ends, answered = await asyncio.to_thread(self._look_up, ours)  # 1. 2.
        if distributions != self._distributions:  # 3.
            return None
        self._assigned = self.moving = False
        lost = frozenset(self._answer_from.keys() - ours)
        for source in lost:  # 4.
            del self._answer_from[source]
            self._next.pop(source, None)
            self._rebuild_to.pop(source, None)
        self._seek(done, ends)  # 5. 6.
        return Rebalanced(done, ends, lost, answered)

    async def rebuild(self) -> tuple[int, int] | None:
        """Lets a partition's requests flow once its histories stand; records read and to read while some do not."""
        behind = 0
        for source, end in list(self._rebuild_to.items()):
            left = end - await self._consumer.position(self._partition(source))
            if left <= 0:
                del self._rebuild_to[source]
                self._consumer.resume(self._partition(Source(REQUESTS, source.partition)))
            behind += max(left, 0)
        total = sum(self._rebuild_to.values())
        return (total - behind, total) if self._rebuild_to else None

    async def commit(self, done: Mapping[Source, Done]) -> None:
        """Says for whoever comes after us what is answered; a partition that just went is no longer ours to say so.

        Refused because the group settles anew, it is said again when it has: an assignment always follows.
        """
        offsets = {
            self._partition(source): (offset, str(recommended)) for source, (offset, recommended) in done.items()
        }
        if not offsets:
            return
        distributions = self._distributions
        try:
            await asyncio.wait_for(self._consumer.commit(offsets), COMMIT_SECONDS)
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            if isinstance(error, CommitFailedError) and distributions == self._distributions:
                self.moving = True
            structlog.get_logger().info("not committed; the next commit says it again", reason=str(error))

    async def close(self) -> None:
        """Leaves without another commit."""
        await self._stop_polling()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._consumer.stop(), CLOSE_SECONDS)

    async def _stop_polling(self) -> None:
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.cancel()
            await asyncio.wait((polling,))

    def _look_up(self, ours: set[Source]) -> tuple[dict[Source, Done], dict[Source, int], frozenset[str]]:
        """For a thread of its own: heartbeats go on while Kafka is asked."""
        standing = committed(self._kafka, self._kafka.group("scoring"), map(self._partition, ours))
        first = recommendations_end(self._kafka, frozenset(source.partition for source in ours))
        stands = {source: standing[self._partition(source)] for source in ours}
        done = {source: _done(one, never=Done(0, first[source.partition])) for source, one in stands.items()}
        ends = {source: one.end for source, one in stands.items()}
        return done, ends, answered_since(self._kafka, _lowest_recommended(done))

    def _seek(self, done: Mapping[Source, Done], ends: Mapping[Source, int]) -> None:
        for source, (offset, _) in done.items():
            if source not in self._answer_from and source.topic == SEQUENCES:
                self._next[source] = 0
                self._rebuild_to[source] = ends[source]
            self._answer_from[source] = offset
            self._consumer.seek(self._partition(source), self._next.setdefault(source, offset))
        for source in self._rebuild_to:
            self._consumer.pause(self._partition(Source(REQUESTS, source.partition)))

    def _source(self, partition: TopicPartition) -> Source:
        return Source(partition.topic.removeprefix(self._kafka.topic_prefix), partition.partition)

    def _partition(self, source: Source) -> TopicPartition:
        return TopicPartition(self._kafka.topic(source.topic), source.partition)


def _done(standing: Standing, *, never: Done) -> Done:
    """What was committed, or `never`."""
    return never if standing.offset is None else Done(standing.offset, int(standing.metadata))


def _lowest_recommended(done: Mapping[Source, Done]) -> dict[int, int]:
    lowest: dict[int, int] = {}
    for source, (_, recommended) in done.items():
        lowest[source.partition] = min(recommended, lowest.get(source.partition, recommended))
    return lowest
