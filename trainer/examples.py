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
from stream.dead_letters import RawRecord
from stream.events import MODEL_NAME, ModelAnnouncement
from stream.examples import Example, ExampleId, decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES, MODELS
from trainer.crew import ALONE, Crew
from trainer.cut import Cut, fresh
from trainer.orders import Poll, encode_order

FETCH_WAIT_MS = 100
"""How long a fetch waits for partitions that bring nothing. A broker is asked by one fetch at a time, and partitions
whose records are being handed out are not part of it: once they are, they wait for its end.
"""
POLL_SECONDS = 0.25
"""Longest that a stop signal waits for a poll."""
CREW_POLL_SECONDS = 0.05
"""The same where several processes poll: each waits for the others, and some may have what others lack."""


class Fetched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record that another process has polled."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Haul(msgspec.Struct, frozen=True, array_like=True):
    """What one process tells the others of a poll."""

    records: dict[int, list[Fetched]]
    """By partition."""
    lag: int
    wants_to_stop: bool


class Unreadable(NamedTuple):
    """A record that is no example, and why."""

    record: RawRecord
    error: str


class Read(NamedTuple):
    """What one poll brought, or several."""

    examples: list[Example]
    """New ones only, by partition and then in the order of the topic."""
    records: dict[ExampleId, RawRecord]
    """What they were read from, for the dead letters."""
    repeats: int
    unreadable: list[Unreadable]
    announcements: list[ModelAnnouncement]

    @classmethod
    def nothing(cls) -> Read:
        """Before anything was polled."""
        return cls([], {}, 0, [], [])

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

    Of a crew each process polls its share of the partitions, and hands out what all of them polled: the same on all,
    with one cut. Announcements come to the one that leads.

    Raises:
        ValueError: a topic is missing, or a process would be left without a partition.
    """

    def __init__(self, kafka: KafkaSettings, *, announcements_from: Mapping[int, int], crew: Crew = ALONE) -> None:
        self.wants_to_stop = False
        """Whether this process was asked to stop; the one that leads stops then, and all others with it."""
        self._crew = crew
        self._lag_of_others = 0
        self._consumer = consumer(kafka, group_id=kafka.group("trainer"), fetch_max_wait_ms=FETCH_WAIT_MS)
        all_partitions = partitions_of(self._consumer, kafka.topic(EXAMPLES))
        if len(all_partitions) < crew.size:
            raise ValueError(
                f"{crew.size} processes cannot share {len(all_partitions)} partitions of {kafka.topic(EXAMPLES)}; "
                "start fewer, or create the topics with a higher kafka.partitions"
            )
        self._examples = all_partitions[crew.mine]
        self._models = partitions_of(self._consumer, kafka.topic(MODELS)) if crew.leads else []
        self._consumer.assign([*self._examples, *self._models])
        for partition in self._models:
            self._consumer.seek(partition, announcements_from.get(partition.partition, 0))
        self._ends: dict[TopicPartition, int] = {}
        self.cut = Cut()

    def resume(self, cut: Cut) -> None:
        """Goes to the cut: the next example handed out is the first one after it."""
        for partition in self._examples:
            offset = cut.offsets.get(partition.partition)
            if offset is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, offset)
        self._ends = self._consumer.end_offsets(self._examples)
        self.cut = cut

    def gather(self, patience: Patience, *, stop: threading.Event) -> Read:
        """As many examples as there are between `least` and `most`; fewer when none came or the wait is over.

        So a micro-batch grows with the lag. Where `least` is above `most`, `most` are enough. Comes back soon after
        `stop` is set, and at once with an announcement.
        """
        gathered = self.read(most=patience.most, timeout_seconds=POLL_SECONDS)
        ends_at = time.monotonic() + patience.wait_seconds
        enough = min(patience.least, patience.most)
        while 0 < len(gathered.examples) < enough and not gathered.announcements and not stop.is_set():
            left = ends_at - time.monotonic()
            if left <= 0:
                break
            most = patience.most - len(gathered.examples)
            gathered = gathered.then(self.read(most=most, timeout_seconds=min(left, POLL_SECONDS)))
        if self.wants_to_stop:
            stop.set()
        return gathered.in_order()

    def read(self, *, most: int, timeout_seconds: float) -> Read:
        """At most so many records, of every process, as soon as there are any."""
        self._crew.tell(encode_order(Poll(most, timeout_seconds)))
        return self.take_part(most=most, timeout_seconds=timeout_seconds)

    def take_part(self, *, most: int, timeout_seconds: float) -> Read:
        """What `read` does in every process."""
        waits = timeout_seconds if self._crew.size == 1 else min(timeout_seconds, CREW_POLL_SECONDS)
        polled = self._consumer.poll(timeout_ms=int(waits * 1000), max_records=most)
        read = Read.nothing()
        for partition in self._models:
            read.announcements.extend(announced(polled.pop(partition, ())))
        records: dict[int, list[RawRecord]] = {partition.partition: polled[partition] for partition in polled}
        if self._crew.size > 1:
            records = self._of_all(records)
        offsets = dict(self.cut.offsets)
        for number in sorted(records):
            for record in records[number]:
                _decode(record, into=read)
            offsets[number] = records[number][-1].offset + 1
        new = fresh(read.examples, self.cut.marks)
        self.cut = Cut(offsets=offsets, marks=new.marks)
        return read._replace(examples=new.examples, repeats=len(read.examples) - len(new.examples))

    def _of_all(self, records: dict[int, list[RawRecord]]) -> dict[int, list[RawRecord]]:
        """What every process has polled."""
        fetched = {number: [_fetched(record) for record in some] for number, some in records.items()}
        own = Haul(fetched, self._own_lag(), self.wants_to_stop)
        hauls = [msgspec.msgpack.decode(raw, type=Haul) for raw in self._crew.exchange(msgspec.msgpack.encode(own))]
        self._lag_of_others = sum(haul.lag for haul in hauls) - own.lag
        self.wants_to_stop = any(haul.wants_to_stop for haul in hauls)
        return {number: list[RawRecord](some) for haul in hauls for number, some in haul.records.items()}

    def lag(self) -> int:
        """Examples on the broker that no process has read yet, as far as the last fetches tell.

        A partition that no fetch has brought anything of counts by what stood there when reading began.
        """
        return self._own_lag() + self._lag_of_others

    def _own_lag(self) -> int:
        return sum(
            max(
                0,
                max(self._consumer.highwater(partition) or 0, self._ends[partition])
                - self._consumer.position(partition),
            )
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


def _fetched(record: RawRecord) -> Fetched:
    headers = [(name, value or b"") for name, value in record.headers]
    return Fetched(record.topic, record.partition, record.offset, record.key, record.value, headers)


def _decode(record: RawRecord, *, into: Read) -> None:
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
