"""Follows a small compacted topic to which this process subscribes alone: all of it first, then every change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition

from stream.clients import consumer
from stream.settings import KafkaSettings

_POLL_MS = 200


def follow(kafka: KafkaSettings, name: str, stop: threading.Event) -> Iterator[dict[bytes, Any]]:
    """The newest record of each key: at first of the whole topic as it stands, then of what arrived since.

    The first answer comes even where the topic is empty. Records without a key come under b"". Ends with `stop`.
    """
    topic = kafka.topic(name)
    with consumer(kafka) as reader:
        partitions = [TopicPartition(topic, number) for number in reader.partitions_for_topic(topic) or ()]
        reader.assign(partitions)
        reader.seek_to_beginning(*partitions)
        ends = reader.end_offsets(partitions)
        newest: dict[bytes, Any] = {}
        while not stop.is_set() and any(reader.position(partition) < ends[partition] for partition in partitions):
            newest |= _poll(reader)
        yield newest
        while not stop.is_set():
            if changed := _poll(reader):
                yield changed


def _poll(reader: Any) -> dict[bytes, Any]:  # noqa: ANN401 - kafka-python ships no types
    polled = reader.poll(timeout_ms=_POLL_MS)
    return {record.key or b"": record for records in polled.values() for record in records}
