"""An aiokafka producer that writes whole record batches to one partition and waits until all replicas have them."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiokafka import AIOKafkaProducer

from stream.dead_letters import Headers
from stream.settings import KafkaSettings

_NO_HEADERS: Headers = []


class Message(msgspec.Struct, frozen=True, gc=False):
    """A record to be written."""

    key: bytes | None
    value: bytes | None
    headers: Headers = _NO_HEADERS


class BatchProducer:
    """Idempotent: a retry neither doubles nor reorders what one run of the process writes to a partition."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer: Any = None

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka.bootstrap_servers.split(","),
            acks="all",
            enable_idempotence=True,
            max_batch_size=self._kafka.max_batch_bytes,
            max_request_size=self._kafka.max_batch_bytes,
        )
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def write(self, topic: str, partition: int, messages: Iterable[Message]) -> int | None:
        """Writes messages in order, as one batch where they fit into one; returns the offset of the last.

        None where there was nothing to write, or where the broker had it already and did not say where.
        """
        offset: int | None = None
        for batch in self._batches(messages):
            sent = await (await self._producer.send_batch(batch, topic, partition=partition))
            offset = sent.offset + batch.record_count() - 1 if sent.offset >= 0 else None
        return offset

    def _batches(self, messages: Iterable[Message]) -> list[Any]:
        batches: list[Any] = []
        for message in messages:
            if not batches or not _fits(batches[-1], message):
                batches.append(self._producer.create_batch())
                fits = _fits(batches[-1], message)
                assert fits, "an empty batch takes any message"
        return batches


def _fits(batch: Any, message: Message) -> bool:  # noqa: ANN401 - aiokafka has no types
    """Appends the message to the batch unless that is full."""
    return batch.append(key=message.key, value=message.value, timestamp=None, headers=message.headers) is not None
