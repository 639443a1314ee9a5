"""Fills topics at once, as if the events had come in over a while: what benchmarks of the stream worker begin with."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from deploy.replay.events import Message
from stream.settings import KafkaSettings

BATCH_BYTES = 500_000
EVENTS_PER_MS = 10
"""How fast the events seem to have come in, by Kafka's timestamps: 10,000 a second."""


def fill(kafka: KafkaSettings, messages: Iterable[Message], *, first_ms: int) -> int:
    """Writes messages in their order, with Kafka's timestamps from `first_ms` on; returns how many."""
    return asyncio.run(_fill(kafka, messages, first_ms))


def reveal(kafka: KafkaSettings, messages: Iterable[Message], *, first_ms: int) -> int:
    """The same in one transaction: whoever reads what is committed meets all of it at one moment."""
    return asyncio.run(_reveal(kafka, messages, first_ms))


async def _fill(kafka: KafkaSettings, messages: Iterable[Message], first_ms: int) -> int:
    async with _producer(kafka) as producer:
        return await _Filling(producer, kafka).put_all(messages, first_ms)


async def _reveal(kafka: KafkaSettings, messages: Iterable[Message], first_ms: int) -> int:
    async with _producer(kafka, transactional_id=f"{kafka.topic_prefix}backlog") as producer, producer.transaction():
        return await _Filling(producer, kafka).put_all(messages, first_ms)


def _producer(kafka: KafkaSettings, **settings: str) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES,
        **settings,
    )


class _Filling:
    """One open record batch for every topic partition."""

    def __init__(self, producer: AIOKafkaProducer, kafka: KafkaSettings) -> None:
        self._producer = producer
        self._kafka = kafka
        self._open: dict[tuple[str, int], object] = {}

    async def put_all(self, messages: Iterable[Message], first_ms: int) -> int:
        count = 0
        for count, message in enumerate(messages, start=1):
            await self.put(message, first_ms + count // EVENTS_PER_MS)
        await self.flush()
        return count

    async def put(self, message: Message, timestamp: int) -> None:
        place = message.topic, partition_of(message.key, self._kafka.partitions)
        batch = self._open.get(place)
        if batch is None or not _append(batch, message, timestamp):
            await self._send(place)
            batch = self._open[place] = self._producer.create_batch()
            _append(batch, message, timestamp)

    async def flush(self) -> None:
        for place in tuple(self._open):
            await self._send(place)

    async def _send(self, place: tuple[str, int]) -> None:
        batch = self._open.pop(place, None)
        if batch is not None:
            await (await self._producer.send_batch(batch, self._kafka.topic(place[0]), partition=place[1]))


def _append(batch: object, message: Message, timestamp: int) -> bool:
    return batch.append(key=message.key, value=message.value, timestamp=timestamp) is not None  # type: ignore[attr-defined]


@functools.cache
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, by Kafka's default partitioner."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
