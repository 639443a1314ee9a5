"""Which slates already stand on `recommendations`: what a worker that takes over must not make again."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from kafka import TopicPartition

from stream.clients import consumer
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS


class _Answer(msgspec.Struct, gc=False):
    request_id: str


def recommendations_end(kafka: KafkaSettings, partitions: frozenset[int]) -> dict[int, int]:
    """Where the next slate of each partition will stand."""
    with consumer(kafka) as reader:
        ends = reader.end_offsets([TopicPartition(kafka.topic(RECOMMENDATIONS), number) for number in partitions])
    return {partition.partition: offset for partition, offset in ends.items()}


def answered_since(kafka: KafkaSettings, starts: Mapping[int, int]) -> frozenset[str]:
    """The request_ids on `recommendations` from these offsets, by partition, to the end as it is now."""
    topic = kafka.topic(RECOMMENDATIONS)
    with consumer(kafka) as reader:
        partitions = [TopicPartition(topic, number) for number in starts]
        ends = reader.end_offsets(partitions)
        ahead = [partition for partition in partitions if starts[partition.partition] < ends[partition]]
        reader.assign(ahead)
        for partition in ahead:
            reader.seek(partition, starts[partition.partition])
        decoder = msgspec.json.Decoder(_Answer)
        found: set[str] = set()
        while any(reader.position(partition) < ends[partition] for partition in ahead):
            for records in reader.poll(timeout_ms=200).values():
                found |= {decoder.decode(record.value).request_id for record in records}
    return frozenset(found)
