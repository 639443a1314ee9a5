"""A client that shares the machine with what it measures, and so takes as little of it as it can.

It sends messages at an even rate and keeps what comes back, on one event loop; nothing is decoded before all is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from deploy.replay.events import Message
from stream.codecs import AIOKAFKA, bound_decompression
from stream.settings import KafkaSettings

POLL_MS = 100
MOST_AT_ONCE = 500
BATCH_BYTES = 900_000
"""Below what a broker takes at once."""
_PARTITIONER = DefaultPartitioner()

Position = tuple[int, int]
"""Partition and offset."""


Result = TypeVar("Result")


class Arrived(NamedTuple):
    """A record, and when it was here."""

    topic: str
    """Without the prefix."""
    partition: int
    offset: int
    value: bytes | None
    at_ms: float


class Addressed(NamedTuple):
    """A message, and where its key belongs, as every client of Kafka has it."""

    topic: str
    """With the prefix."""
    partition: int
    key: bytes | None
    value: bytes | None


class _OnTheirWay(NamedTuple):
    """Messages of one batch."""

    stands: Awaitable[Any]
    due_ms: list[float]


class Client:
    """Sends, and reads what is written to `topics` from the moment it is entered, on a thread of its own."""

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str], *, every_ms: float = 1.0) -> None:
        """What is due within `every_ms` goes together."""
        self._kafka = kafka
        self._every_seconds = every_ms / 1_000
        self._topics = topics
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._until_left = contextlib.AsyncExitStack()
        self._producer: Any = None
        self.arrived: list[Arrived] = []
        """In the order of their arrival; empty it when you like."""

    def __enter__(self) -> Client:
        bound_decompression(AIOKAFKA)
        self._thread.start()
        self._wait(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._until_left.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def addressed(self, messages: Iterable[Message]) -> list[Addressed]:
        """All that can be done before a clock runs."""
        return self._wait(self._addressed(messages))

    def send(self, messages: Iterable[Addressed], *, rate: float) -> dict[Position, float]:
        """Sends at an even rate, whatever comes back; returns when Kafka has all, with the time each was due at.

        A message that is sent late counts from when it was due: what the client itself is slow at flatters nobody.
        """
        return self._wait(self._send(messages, rate=rate))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self) -> None:
        servers = self._kafka.bootstrap_servers
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
        )
        await self._producer.start()
        self._until_left.push_async_callback(self._producer.stop)
        full = [self._kafka.topic(name) for name in self._topics]
        partitions = [TopicPartition(topic, n) for topic in full for n in await self._producer.partitions_for(topic)]
        consumer = await self._until_left.enter_async_context(_at_the_end(self._kafka, partitions))
        reading = asyncio.create_task(self._read(consumer))
        self._until_left.push_async_callback(_cancelled, reading)

    async def _read(self, consumer: Any) -> None:  # noqa: ANN401 - aiokafka ships no types
        while True:
            polled = await consumer.getmany(timeout_ms=POLL_MS)
            now_ms = time.time() * 1_000
            for partition, records in polled.items():
                topic = partition.topic.removeprefix(self._kafka.topic_prefix)
                self.arrived += [Arrived(topic, partition.partition, r.offset, r.value, now_ms) for r in records]

    async def _addressed(self, messages: Iterable[Message]) -> list[Addressed]:
        every, partitions = list(messages), dict[str, list[int]]()
        for topic in {message.topic for message in every}:
            partitions[topic] = sorted(await self._producer.partitions_for(self._kafka.topic(topic)))
        return [
            Addressed(
                self._kafka.topic(one.topic),
                _PARTITIONER(one.key, partitions[one.topic], partitions[one.topic]),
                one.key,
                one.value,
            )
            for one in every
        ]

    async def _send(self, messages: Iterable[Addressed], *, rate: float) -> dict[Position, float]:
        left = deque(messages)
        began, began_ms = time.monotonic(), time.time() * 1_000
        sent, turn_at, on_their_way = 0, began, list[_OnTheirWay]()
        while left:
            wait_ms = (max(began + (sent + 1) / rate, turn_at) - time.monotonic()) * 1_000
            if wait_ms > 0.0:
                await asyncio.sleep(math.ceil(wait_ms) / 1_000)  # the loop counts milliseconds
            now = time.monotonic()
            due = min(int((now - began) * rate) - sent, len(left), MOST_AT_ONCE)
            due_ms = [began_ms + number / rate * 1_000 for number in range(sent + 1, sent + due + 1)]
            on_their_way += await self._send_together([(left.popleft(), at_ms) for at_ms in due_ms])
            sent, turn_at = sent + due, now + self._every_seconds
        return {position: at_ms for some in on_their_way for position, at_ms in await _standing(some)}

    async def _send_together(self, messages: Sequence[tuple[Addressed, float]]) -> list[_OnTheirWay]:
        """One batch for each partition; a record bears the time at which it was due."""
        batches: dict[tuple[str, int], tuple[Any, list[float]]] = {}
        for message, due_ms in messages:
            where = message.topic, message.partition
            if where not in batches:
                batches[where] = self._producer.create_batch(), []
            batch, dues = batches[where]
            added = batch.append(key=message.key, value=message.value, timestamp=int(due_ms))
            assert added is not None, "as many as go at once fit into a batch"
            dues.append(due_ms)
        return [
            _OnTheirWay(await self._producer.send_batch(batch, topic, partition=partition), dues)
            for (topic, partition), (batch, dues) in batches.items()
        ]


async def _standing(some: _OnTheirWay) -> list[tuple[Position, float]]:
    stands = await some.stands
    return [((stands.partition, stands.offset + place), due_ms) for place, due_ms in enumerate(some.due_ms)]


@contextlib.asynccontextmanager
async def _at_the_end(kafka: KafkaSettings, partitions: Sequence[TopicPartition]) -> AsyncIterator[Any]:
    """A consumer behind what stands there now."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, enable_auto_commit=False, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        await consumer.seek_to_end()
        for partition in partitions:
            await consumer.position(partition)
        yield consumer
    finally:
        await consumer.stop()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
