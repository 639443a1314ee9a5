"""A client that shares the machine with what it measures, and so takes as little of it as it can.

It sends messages at an even rate and keeps what comes back, on one event loop; nothing is decoded before all is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.replay.events import Message
from stream.codecs import AIOKAFKA, bound_decompression
from stream.settings import KafkaSettings

POLL_MS = 100

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


class Client:
    """Sends, and reads what is written to `topics` from the moment it is entered, on a thread of its own."""

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str]) -> None:
        self._kafka = kafka
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

    def send(self, messages: Iterable[Message], *, rate: float) -> dict[Position, float]:
        """Sends at an even rate, whatever comes back; returns when Kafka has all, with the time each was due at.

        A message that is sent late counts from when it was due: what the client itself is slow at flatters nobody.
        """
        return self._wait(self._send(messages, rate=rate))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self) -> None:
        servers = self._kafka.bootstrap_servers
        self._producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
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

    async def _send(self, messages: Iterable[Message], *, rate: float) -> dict[Position, float]:
        began, began_ms = time.monotonic(), time.time() * 1_000
        on_their_way = []
        for number, message in enumerate(messages, start=1):
            early_ms = (began + number / rate - time.monotonic()) * 1_000
            if early_ms > 0.0:
                await asyncio.sleep(math.ceil(early_ms) / 1_000)  # the loop counts milliseconds
            topic = self._kafka.topic(message.topic)
            stands = await self._producer.send(topic, message.value, key=message.key)
            on_their_way.append((stands, began_ms + number / rate * 1_000))
        return {_position(await stands): due_ms for stands, due_ms in on_their_way}


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


def _position(stands: Any) -> Position:  # noqa: ANN401 - aiokafka ships no types
    return stands.partition, stands.offset
