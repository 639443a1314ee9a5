"""aiokafka producers that write whole record batches to one partition and wait until all replicas have them.

Each partition number has a producer, and a producer id that Kafka keeps for it under a transactional id. Whoever takes
a partition over asks for that id again: Kafka gives it with a higher epoch, and once a record of that epoch stands on a
partition, refuses those of lower ones. So a worker that was paused past its session, and wakes in the middle of a
batch, cannot write over what its successor wrote. No transaction is ever begun: a batch costs what it cost without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiokafka import AIOKafkaProducer

from stream.dead_letters import Headers
from stream.settings import KafkaSettings
from stream.topics import SEQUENCES

FENCE = b"\0fence"
"""The key of a tombstone on `sequences` with which a worker begins: no user can have it, and readers pass it over."""
_NO_HEADERS: Headers = []


class Message(msgspec.Struct, frozen=True, gc=False):
    """A record to be written."""

    key: bytes | None
    value: bytes | None
    headers: Headers = _NO_HEADERS


class PartitionWriter:
    """Writes to one partition number, until somebody else takes it over."""

    def __init__(self, producer: Any, partition: int) -> None:  # noqa: ANN401 - aiokafka has no types
        self._producer = producer
        self._partition = partition

    async def write(self, topic: str, messages: Iterable[Message]) -> int | None:
        """Writes messages in order, as one batch where they fit into one; returns the offset of the last.

        None where there was nothing to write, or where the broker had it already and did not say where. Idempotent: a
        retry neither doubles nor reorders.

        Raises:
            aiokafka.errors.ProducerFenced: somebody else has taken the partition over.
        """
        offset: int | None = None
        for batch in self._batches(messages):
            sent = await (await self._producer.send_batch(batch, topic, partition=self._partition))
            offset = sent.offset + batch.record_count() - 1 if sent.offset >= 0 else None
        return offset

    async def stop(self) -> None:
        """Writes what is under way, and then no more."""
        await self._producer.stop()

    def _batches(self, messages: Iterable[Message]) -> list[Any]:
        batches: list[Any] = []
        for message in messages:
            if not batches or not _fits(batches[-1], message):
                batches.append(self._producer.create_batch())
                fits = _fits(batches[-1], message)
                assert fits, "an empty batch takes any message"
        return batches


class BatchProducer:
    """The writers of the partition numbers that this process has taken over."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        """Among the members of one `group` a partition number has one writer."""
        self._kafka = kafka
        self._group = kafka.group(group)
        self._writers: dict[int, PartitionWriter] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def take_over(self, partitions: Collection[int]) -> None:
        """Begins to write to these partition numbers alone; nobody who did so before writes to `sequences` any more."""
        await self._stop()
        writers = await asyncio.gather(*map(self._started, partitions))
        self._writers = dict(zip(partitions, writers, strict=True))

    def partition(self, number: int) -> PartitionWriter:
        """The writer of a partition number. Whoever keeps it through a rebalance cannot write with it any more."""
        return self._writers[number]

    async def _started(self, partition: int) -> PartitionWriter:
        producer: Any = AIOKafkaProducer(
            bootstrap_servers=self._kafka.bootstrap_servers.split(","),
            acks="all",
            transactional_id=f"{self._group}-{partition}",
            max_batch_size=self._kafka.max_batch_bytes,
            max_request_size=self._kafka.max_batch_bytes,
        )
        await producer.start()
        # It has its id and epoch now, and from here on it is an idempotent producer like any other.
        producer._txn_manager.transactional_id = None  # noqa: SLF001 - aiokafka has no way to an epoch alone
        writer = PartitionWriter(producer, partition)
        await writer.write(self._kafka.topic(SEQUENCES), [Message(FENCE, None)])
        return writer

    async def _stop(self) -> None:
        writers, self._writers = self._writers, {}
        await asyncio.gather(*(writer.stop() for writer in writers.values()))


def _fits(batch: Any, message: Message) -> bool:  # noqa: ANN401 - aiokafka has no types
    """Appends the message to the batch unless that is full."""
    return batch.append(key=message.key, value=message.value, timestamp=None, headers=message.headers) is not None
