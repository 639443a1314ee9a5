"""Reads what stands on a topic at this moment, from its beginning to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.partitioner.default import murmur2

from stream import clients
from stream.settings import KafkaSettings

_POLL_MS = 1_000
_LARGEST_POSITIVE = 0x7FFFFFFF


def read_all(kafka: KafkaSettings, name: str) -> Iterator[ConsumerRecord]:
    """Every record of the topic (its name without the prefix) that stands there now, partition by partition in order.

    Raises:
        ValueError: there is no such topic.
    """
    with contextlib.closing(clients.consumer(kafka)) as consumer:
        partitions = partitions_of(consumer, kafka.topic(name))
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, records in consumer.poll(_POLL_MS).items():
                yield from (record for record in records if record.offset < ends[partition])


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic, by its full name.

    Raises:
        ValueError: there is no such topic.
    """
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise ValueError(f"there is no topic {topic}; make the topics with `sasrec-stream topics create`")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def partition_of(user_id: str, *, partitions: int) -> int:
    """Where every Kafka client with the usual partitioner (murmur2) puts this user."""
    return int(murmur2(user_id.encode()) & _LARGEST_POSITIVE) % partitions
