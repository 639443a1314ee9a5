"""The mapper: reads a company's topics and writes what their events become to ours, each exactly once.

A message becomes records of several users, and its topic has a key and a number of partitions of its own; so events are
not folded where they stand but written to the partition of their user. That is a transformation from Kafka to Kafka
without any state, which is what Kafka's transactions are made for:

1. messages are polled and mapped
2. a transaction begins; their records go to our topics, what does not fit goes to `mapped.dlq`
3. the offsets behind the messages go into the same transaction, with our membership of the group (KIP-447)
4. the transaction is committed

Killed before 4, the transaction is aborted: nobody who reads our topics sees aborted records. A mapper that lost its
partitions meanwhile is refused at 3. The successor of the same name aborts what was left open when it starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError

from stream import clients
from stream.cloud_events import event_headers
from stream.dead_letters import Headers, dead_letter, size_of
from stream.mapping import metrics
from stream.mapping.reading import Mapped, Mapper, Misfit, Reading, misfit_error, position_of
from stream.mapping.registry import RegistryError
from stream.mapping.settings import MappingSettings
from stream.metrics import DEAD_LETTERS
from stream.settings import KafkaSettings
from stream.topics import DEAD_LETTER_SUFFIX, MAPPED, TOPICS

POLL_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 10.0
SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_MS = 2_000
SOURCE = "sasrec-source"
"""Header of what a mapper wrote: where the event stood."""

_LOST = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)
"""Somebody else has our partitions, or the group is about to say who has them."""

_log = structlog.get_logger()


def run_mapper(
    kafka: KafkaSettings,
    mapping: MappingSettings,
    stop: threading.Event,
    *,
    member: str,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Maps until `stop` is set; `member` is a name that only this mapper has and keeps over restarts.

    Raises:
        ValueError: nothing is mapped, or a topic is missing or one of ours.
        KafkaError: another mapper of this name runs, or the broker refuses; whoever starts it again loses nothing.
    """
    mapper = Mapper(mapping)
    check_sources(kafka, mapper)
    with (
        clients.producer(
            kafka,
            transactional_id=f"{kafka.group('mapper')}-{member}",
            transaction_timeout_ms=int(mapping.transaction_seconds * 1_000),
        ) as producer,
        clients.consumer(
            kafka,
            group_id=kafka.group("mapper"),
            group_instance_id=member,
            auto_offset_reset=mapping.start,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
        ) as consumer,
    ):
        producer.init_transactions()
        consumer.subscribe(mapper.topics)
        worker = MapperWorker(kafka, mapper, consumer, producer)
        on_ready()
        while not stop.is_set():
            worker.turn(stop, most=mapping.chunk_records)


def check_sources(kafka: KafkaSettings, mapper: Mapper) -> None:
    """Refuses what could only wait for ever or go round in circles.

    Raises:
        ValueError: nothing to map, a topic that does not exist, or one of ours.
    """
    if not mapper.topics:
        raise ValueError("nothing is mapped; describe your topics under [[mapping.sources]], see docs/mapping.md")
    ours = {kafka.topic(name) for name in TOPICS}
    if circles := ours.intersection(mapper.topics):
        raise ValueError(f"{', '.join(sorted(circles))} is read as it is; mapping.sources names topics of your own")
    with clients.consumer(kafka) as client:
        standing = client.topics()
    if missing := [topic for topic in mapper.topics if topic not in standing]:
        raise ValueError(f"mapping.sources names {', '.join(missing)}, which the broker does not have")


class MapperWorker:
    """One round of the protocol is one `turn`."""

    def __init__(self, kafka: KafkaSettings, mapper: Mapper, consumer: KafkaConsumer, producer: KafkaProducer) -> None:
        self._kafka = kafka
        self._mapper = mapper
        self._consumer = consumer
        self._producer = producer
        self._encode = msgspec.json.Encoder().encode

    def turn(self, stop: threading.Event, *, most: int) -> None:
        """Maps what has come, all of it or, when the partitions have moved, nothing."""
        # 1.
        polled = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1_000), max_records=most)
        records = [record for found in polled.values() for record in found]
        readings = [(record, reading) for record in records if (reading := self._read(record, stop)) is not None]
        if not records or len(readings) < len(records):
            return
        # 2.
        self._producer.begin_transaction()
        try:
            self._write(readings)
            # 3.
            offsets = {tp: OffsetAndMetadata(found[-1].offset + 1, "", -1) for tp, found in polled.items()}
            self._producer.send_offsets_to_transaction(offsets, self._consumer.group_metadata())
            # 4.
            self._producer.commit_transaction()
        except _LOST as error:
            _log.warning("the partitions have moved; nothing of this chunk was written", reason=str(error))
            self._producer.abort_transaction()
            self._return(polled)
            return
        for _, reading in readings:
            _count(reading)

    def _read(self, record: Any, stop: threading.Event) -> Reading | None:  # noqa: ANN401 - kafka-python ships no types
        """Waits for a registry that does not answer, however long it takes; None when we shall stop meanwhile."""
        wait_seconds = POLL_SECONDS
        while True:
            try:
                return self._mapper.read(record)
            except RegistryError as error:
                _log.error("the schema registry does not answer; asking again", reason=str(error))
            if stop.wait(wait_seconds):
                return None
            wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)

    def _write(self, readings: list[tuple[Any, Reading]]) -> None:
        for record, reading in readings:
            for mapped in reading.mapped:
                self._send(record, mapped, reading)
            if reading.misfits:
                self._set_aside(record, reading)

    def _send(self, record: Any, mapped: Mapped, reading: Reading) -> None:  # noqa: ANN401 - kafka-python ships no types
        value = None if mapped.event is None else self._encode(mapped.event)
        key, headers = mapped.key.encode(), headers_of(record, mapped)
        size = size_of(key, value, headers)
        if size > self._kafka.max_message_bytes:
            reading.misfits.append(
                Misfit(mapped.ordinal, "invalid", f"{size} bytes; kafka.max_message_bytes allows less")
            )
            return
        self._producer.send(self._kafka.topic(mapped.record), value, key=key, headers=headers)

    def _set_aside(self, record: Any, reading: Reading) -> None:  # noqa: ANN401 - kafka-python ships no types
        error = misfit_error(reading.misfits)
        letter = dead_letter(record, error, max_bytes=self._kafka.max_message_bytes)
        topic = self._kafka.topic(MAPPED + DEAD_LETTER_SUFFIX)
        self._producer.send(topic, letter.value, key=letter.key, headers=letter.headers)
        DEAD_LETTERS.labels(record.topic, error.reason).inc()

    def _return(self, polled: Mapping[TopicPartition, list[Any]]) -> None:
        """What was not written is read again, by whoever has its partition now."""
        for tp in self._consumer.assignment().intersection(polled):
            self._consumer.seek(tp, polled[tp][0].offset)


def headers_of(record: Any, mapped: Mapped) -> Headers:  # noqa: ANN401 - kafka-python ships no types
    """CloudEvents attributes, and where the event stood. A tombstone is no event."""
    position = position_of(record, mapped.ordinal)
    source = (SOURCE, position.encode())
    if mapped.event is None:
        return [source]
    return [*event_headers(mapped.event, source=record.topic, event_id=position, at_ms=record.timestamp), source]


def _count(reading: Reading) -> None:
    metrics.MESSAGES.labels(reading.outcome).inc()
    for mapped in reading.mapped:
        metrics.EVENTS.labels(mapped.record).inc()
