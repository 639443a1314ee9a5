"""Records to Kafka from an asyncio loop: handed to the producer's own thread, and acknowledged or not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from kafka.errors import KafkaError, KafkaTimeoutError

from stream.clients import producer
from stream.cloud_events import cloud_event_headers
from stream.events import Click, Impression, Request
from stream.settings import KafkaSettings
from stream.topics import CLICKS, IMPRESSIONS, REQUESTS

TOPIC_OF: dict[type, tuple[str, str]] = {
    Click: (CLICKS, "click"),
    Impression: (IMPRESSIONS, "impression"),
    Request: (REQUESTS, "request"),
}
HANDING_OVER_MS = 2_000
CLOSE_SECONDS = 2.0
ENVELOPE_BYTES = 2_048
"""Key, headers and the batch around a record, generously."""


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


class TooLargeError(ValueError):
    """A record beyond `kafka.max_message_bytes`."""


class NotTakenError(Exception):
    """Kafka has not acknowledged; whether the record stands there is not known, so send it again as it was."""


class Outbox:
    """One producer for all requests."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer = producer(kafka, linger_ms=0, max_block_ms=HANDING_OVER_MS)

    async def send(
        self, records: Sequence[Click | Impression | Request], *, at_ms: int, timeout_seconds: float
    ) -> list[Place]:
        """Sends all of them and waits for their acknowledgement.

        Raises:
            TooLargeError: one is too large, and none was sent.
            NotTakenError: not acknowledged in time.
        """
        values = [self._encoded(record) for record in records]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                sent = await asyncio.to_thread(self._hand_over, records, values, at_ms)
                return list(await asyncio.gather(*(_acknowledged(loop, one) for one in sent)))
        except (KafkaError, TimeoutError) as error:
            raise NotTakenError(f"Kafka did not take it: {error or 'no answer in time'}") from error

    def close(self) -> None:
        """Ends the producer's thread."""
        self._producer.close(timeout=CLOSE_SECONDS)

    def _encoded(self, record: Click | Impression | Request) -> bytes:
        value = msgspec.json.encode(record)
        if len(value) + ENVELOPE_BYTES > self._kafka.max_message_bytes:
            raise TooLargeError(f"{len(value)} bytes are too large for one message; send less at once")
        return value

    def _hand_over(
        self, records: Sequence[Click | Impression | Request], values: Sequence[bytes], at_ms: int
    ) -> list[Any]:
        """In a thread: the producer may have to wait for the broker first."""
        sent = []
        for record, value in zip(records, values, strict=True):
            topic, kind = TOPIC_OF[type(record)]
            headers = cloud_event_headers(event_id=record.event_id, kind=kind, source="http", at_ms=at_ms)
            sent.append(
                self._producer.send(self._kafka.topic(topic), value, key=record.user_id.encode(), headers=headers)
            )
        return sent


async def _acknowledged(loop: asyncio.AbstractEventLoop, sent: Any) -> Place:  # noqa: ANN401 - kafka-python's future
    answer: asyncio.Future[Place] = loop.create_future()

    def settle(place: Place | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if place is None:
            answer.set_exception(error or KafkaTimeoutError("the record expired"))
        else:
            answer.set_result(place)

    def written(metadata: Any) -> None:  # noqa: ANN401 - kafka-python's RecordMetadata
        place = Place(metadata.topic, metadata.partition, metadata.offset)
        loop.call_soon_threadsafe(settle, place, None)

    sent.add_callback(written)
    sent.add_errback(lambda error: loop.call_soon_threadsafe(settle, None, error))
    return await answer
