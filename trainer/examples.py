"""Reads `examples` from where a checkpoint stands, and notices announcements on `models` on the way.

One consumer is assigned every partition of both topics, so that a trainer with nothing to do costs one waiting fetch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.structs import OffsetAndMetadata

from stream.clients import consumer
from stream.events import MODEL_NAME, ModelAnnouncement
from stream.examples import Example, ExampleId, decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, MODELS
from trainer.cut import Cut, fresh

POLL_SECONDS = 0.25
"""Longest that a stop signal waits for a poll."""


class Unreadable(NamedTuple):
    """A record that is no example, and why."""

    record: ConsumerRecord
    error: str


class Read(NamedTuple):
    """What one poll brought, or several."""

    examples: list[Example]
    """New ones only, by partition and then in the order of the topic."""
    records: dict[ExampleId, ConsumerRecord]
    """What they were read from, for the dead letters."""
    repeats: int
    unreadable: list[Unreadable]
    announcements: list[ModelAnnouncement]

    def in_order(self) -> Read:
        """By partition and then in the order of the topic, in however many polls it came: so it is learnt again."""
        return self._replace(examples=sorted(self.examples, key=lambda example: example.id.partition))

    def then(self, more: Read) -> Read:
        """This and what came after it."""
        return Read(
            self.examples + more.examples,
            self.records | more.records,
            self.repeats + more.repeats,
            self.unreadable + more.unreadable,
            self.announcements + more.announcements,
        )


class Patience(NamedTuple):
    """How much to read at once, and how long to wait for it."""

    least: int
    most: int
    wait_seconds: float


class ExampleReader:
    """Polls, decodes, drops repeats, and knows the cut behind what it has handed out.

    Raises:
        ValueError: a topic is missing.
    """

    def __init__(self, kafka: KafkaSettings, *, announcements_from: Mapping[int, int]) -> None:
        self._consumer = consumer(kafka, group_id=kafka.group("trainer"))
        self._examples = partitions_of(self._consumer, kafka.topic(EXAMPLES))
        self._models = partitions_of(self._consumer, kafka.topic(MODELS))
        self._consumer.assign([*self._examples, *self._models])
        for partition in self._models:
            self._consumer.seek(partition, announcements_from.get(partition.partition, 0))
        self.cut = Cut()

    def resume(self, cut: Cut) -> None:
        """Goes to the cut: the next example handed out is the first one after it."""
        for partition in self._examples:
            offset = cut.offsets.get(partition.partition)
            if offset is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, offset)
        self.cut = cut

    def gather(self, patience: Patience, *, stop: threading.Event) -> Read:
        """As many examples as there are between `least` and `most`; fewer when none came or the wait is over.

        So a micro-batch grows with the lag. Comes back soon after `stop` is set, and at once with an announcement.
        """
        gathered = self.read(most=patience.most, timeout_seconds=POLL_SECONDS)
        ends_at = time.monotonic() + patience.wait_seconds
        while 0 < len(gathered.examples) < patience.least and not gathered.announcements and not stop.is_set():
            left = ends_at - time.monotonic()
            if left <= 0:
                break
            most = patience.most - len(gathered.examples)
            gathered = gathered.then(self.read(most=most, timeout_seconds=min(left, POLL_SECONDS)))
        return gathered.in_order()

    def read(self, *, most: int, timeout_seconds: float) -> Read:
        """At most so many records, as soon as there are any."""
        polled = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=most)
        read = Read([], {}, 0, [], [])
        offsets = dict(self.cut.offsets)
        for partition in sorted(polled):
            if partition in self._models:
                read.announcements.extend(announced(polled[partition]))
                continue
            for record in polled[partition]:
                _decode(record, into=read)
            offsets[partition.partition] = polled[partition][-1].offset + 1
        new = fresh(read.examples, self.cut.marks)
        self.cut = Cut(offsets=offsets, marks=new.marks)
        return read._replace(examples=new.examples, repeats=len(read.examples) - len(new.examples))

    def lag(self) -> int:
        """Examples on the broker that were not read yet, as far as the last fetches tell."""
        return sum(
            max(0, (self._consumer.highwater(partition) or 0) - self._consumer.position(partition))
            for partition in self._examples
        )

    def left(self) -> int:
        """Examples that stand on the broker now and were not read yet; asks the broker."""
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(self._examples)
        return sum(end - self._consumer.position(partition) for partition, end in ends.items())

    def commit(self, cut: Cut) -> None:
        """Shows a cut to tools that look at consumer groups; nothing ever resumes from there."""
        topic = self._examples[0].topic
        self._consumer.commit(
            {
                TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1)
                for partition, offset in cut.offsets.items()
            }
        )

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()


def _decode(record: ConsumerRecord, *, into: Read) -> None:
    try:
        example = decode_example(record.value or b"")
    except (msgspec.DecodeError, ValueError) as error:
        into.unreadable.append(Unreadable(record, str(error)))
        return
    into.examples.append(example)
    into.records[example.id] = record


def partitions_of(reader: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """Every partition of a topic, in order.

    Raises:
        ValueError: there is no such topic.
    """
    partitions = reader.partitions_for_topic(topic)
    if not partitions:
        raise ValueError(f"topic {topic} does not exist; run `sasrec-stream topics create`")
    return [TopicPartition(topic, partition) for partition in sorted(partitions)]


def announced(records: Iterable[ConsumerRecord]) -> list[ModelAnnouncement]:
    """The announcements of our model among records of `models`; all else was not written by us and is passed over."""
    return [announcement for record in records if (announcement := _announcement(record)) is not None]


def _announcement(record: ConsumerRecord) -> ModelAnnouncement | None:
    try:
        announcement = msgspec.json.decode(record.value or b"", type=ModelAnnouncement)
    except msgspec.DecodeError:
        return None
    return announcement if announcement.model == MODEL_NAME else None


class Announced(NamedTuple):
    """The newest announcement, all keys under which some stand, and where `models` ended when it was read."""

    announcement: ModelAnnouncement | None
    keys: frozenset[str]
    offsets: dict[int, int]


def newest_announcement(kafka: KafkaSettings) -> Announced:
    """Reads `models` from its start to its end."""
    with consumer(kafka) as reader:
        partitions = partitions_of(reader, kafka.topic(MODELS))
        reader.assign(partitions)
        reader.seek_to_beginning(*partitions)
        ends: dict[TopicPartition, int] = reader.end_offsets(partitions)
        standing: dict[bytes, ConsumerRecord] = {}
        while any(reader.position(partition) < end for partition, end in ends.items()):
            for records in reader.poll(timeout_ms=500).values():
                standing |= {record.key or b"": record for record in records}
    keys = frozenset(key.decode() for key, record in standing.items() if key and _announcement(record) is not None)
    newest = None
    for one in announced(sorted(standing.values(), key=lambda record: (record.partition, record.offset))):
        newest = one if one.supersedes(newest) else newest
    return Announced(newest, keys, {partition.partition: end for partition, end in ends.items()})
