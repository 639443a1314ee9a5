"""What a worker that takes over must know: how far its predecessors came, and which slates they made beyond that."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from kafka import TopicPartition

from stream.clients import consumer
from stream.settings import KafkaSettings
from stream.topics import RECOMMENDATIONS


class _Answer(msgspec.Struct, gc=False):
    request_id: str
    seed: int | None = None
    """Only a slate of ours has one: it can be drawn again."""


class Standing(NamedTuple):
    """What Kafka says of a partition of an input."""

    offset: int | None
    """As the group committed it; None where it never did."""
    metadata: str
    end: int
    """Where the next record will stand."""


def committed(
    kafka: KafkaSettings, group: str, partitions: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], Standing]:
    """How far a group came in partitions, named by topic and number; joins nothing."""
    with consumer(kafka, group_id=group) as reader:
        asked = [TopicPartition(*partition) for partition in partitions]
        ends = reader.end_offsets(asked)
        found = {partition: reader.committed(partition, metadata=True) for partition in asked}
    return {
        (partition.topic, partition.partition): Standing(None, "", ends[partition])
        if stands is None
        else Standing(stands.offset, stands.metadata, ends[partition])
        for partition, stands in found.items()
    }


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
        found: set[str] = set()
        while any(reader.position(partition) < ends[partition] for partition in ahead):
            for records in reader.poll(timeout_ms=200).values():
                found |= {request_id for record in records if (request_id := _answered_by_us(record.value))}
    return frozenset(found)


def _answered_by_us(value: bytes | None) -> str | None:
    """None for what another recommender wrote, whatever that is: to refuse it is up to the stream worker."""
    try:
        answer = _decoder().decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if answer.seed is None else answer.request_id


@functools.cache
def _decoder() -> msgspec.json.Decoder[_Answer]:
    return msgspec.json.Decoder(_Answer)
