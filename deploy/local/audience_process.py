"""The simulated audience as a process: it reads `recommendations`, looks, clicks, and so closes the loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import msgspec
import prometheus_client
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy.local.audience import Audience, Message
from deploy.observe.endpoint import write_atomically
from deploy.settings import Settings
from stream.clients import consumer, producer
from stream.events import Recommendation
from stream.topics import RECOMMENDATIONS

TICK_SECONDS = 0.05
REPORT_SECONDS = 1.0
FLUSH_SECONDS = 3.0

ACKNOWLEDGED = prometheus_client.Counter(
    "sasrec_audience_acknowledged", "Messages of the simulated audience that Kafka acknowledged.", ["topic"]
)
FAILED = prometheus_client.Counter(
    "sasrec_audience_failed", "Messages of the simulated audience that Kafka did not acknowledge in time.", ["topic"]
)


class Produced(msgspec.Struct, frozen=True):
    """What became of the audience's messages, per topic; written to a file, so that the supervisor can count."""

    acknowledged: dict[str, int]
    failed: dict[str, int]


class Outbox:
    """Sends messages and counts, per topic, which of them Kafka acknowledged."""

    def __init__(self, producer: KafkaProducer, *, name: Callable[[str], str]) -> None:
        self._producer = producer
        self._name = name
        self._acknowledged: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def send(self, messages: Sequence[Message]) -> None:
        """Hands them to the producer, which retries by itself."""
        for message in messages:
            future = self._producer.send(
                self._name(message.topic), key=message.key.encode(), value=msgspec.json.encode(message.record)
            )
            future.add_callback(self._count, self._acknowledged, ACKNOWLEDGED, message.topic)
            future.add_errback(self._count, self._failed, FAILED, message.topic)

    def produced(self) -> Produced:
        """The counts so far."""
        return Produced(acknowledged=dict(self._acknowledged), failed=dict(self._failed))

    def close(self) -> None:
        """Waits for the last acknowledgements, but not for ever."""
        self._producer.close(timeout=FLUSH_SECONDS)

    @staticmethod
    def _count(counts: Counter[str], metric: prometheus_client.Counter, topic: str, _outcome: object) -> None:
        counts[topic] += 1
        metric.labels(topic=topic).inc()


def produced_file(state_directory: Path) -> Path:
    """Where the audience leaves its counts, every second and at its end."""
    return state_directory / "audience.json"


def run_audience(settings: Settings, stop: Event) -> None:
    """Plays all users until `stop` is set."""
    audience = Audience(settings.audience, run=f"audience-{time.time_ns() // 1_000_000}")
    outbox = Outbox(producer(settings.kafka), name=settings.kafka.topic)
    file = produced_file(settings.state.directory)
    slates = _newest_slates(settings)
    outbox.send(audience.titles())
    structlog.get_logger().info("audience", users=len(audience.world.users), items=len(audience.world.items))
    try:
        _play(audience, outbox, slates, stop=stop, file=file)
    finally:
        outbox.close()
        write_atomically(file, msgspec.json.encode(outbox.produced()))
        slates.close()


def _play(audience: Audience, outbox: Outbox, slates: KafkaConsumer, *, stop: Event, file: Path) -> None:
    acted = reported = time.monotonic()
    while not stop.wait(TICK_SECONDS):
        for recommendation in _poll(slates):
            audience.receive(recommendation)
        now = time.monotonic()
        outbox.send(audience.act(now_ms=time.time_ns() // 1_000_000, passed_seconds=min(now - acted, 1.0)))
        acted = now
        if now - reported >= REPORT_SECONDS:
            write_atomically(file, msgspec.json.encode(outbox.produced()))
            reported = now


def _newest_slates(settings: Settings) -> KafkaConsumer:
    """Reads `recommendations` from its end on, without a group: an old slate is nothing to look at."""
    kafka = settings.kafka
    slates = consumer(kafka, auto_offset_reset="latest")
    topic = kafka.topic(RECOMMENDATIONS)
    partitions = slates.partitions_for_topic(topic)
    if not partitions:
        raise ValueError(f"there is no topic {topic}; run `sasrec-stream topics create`")
    slates.assign([TopicPartition(topic, partition) for partition in sorted(partitions)])
    slates.seek_to_end()
    return slates


def _poll(slates: KafkaConsumer) -> Iterator[Recommendation]:
    decoder = msgspec.json.Decoder(Recommendation)
    for messages in slates.poll(timeout_ms=0).values():
        for message in messages:
            try:
                yield decoder.decode(message.value or b"")
            except msgspec.DecodeError as error:
                structlog.get_logger().warning("slate not read", reason=str(error), offset=message.offset)
