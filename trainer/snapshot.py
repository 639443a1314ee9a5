"""The users as `sequences` has them at one moment, and the exact cut of the stream that this is.

The stream worker acknowledges a chunk's examples before its states, and appends the states of a chunk together. So
`sequences`, read up to an end, holds every click up to the highest offset that any state of a partition has folded in,
and nothing after it: that offset is the mark. Every example behind the mark stands in `examples` no further back than
one chunk before where that topic ended when the reading began; reading resumes there and drops what lies before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition

from stream.clients import consumer
from stream.sequences import NEVER, UserState, decode_state
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import CLICKS, EXAMPLES, SEQUENCES
from trainer.cut import Cut, Mark
from trainer.examples import partitions_of

LAST_ORDINAL = 2**31 - 1
SOURCES = 3
"""Topics that a chunk of examples may come from."""


class Snapshot(NamedTuple):
    """Every user's state, by user id, and the cut behind which learning goes on from `examples`."""

    states: Mapping[str, UserState]
    cut: Cut


def take_snapshot(kafka: KafkaSettings, stream: StreamSettings) -> Snapshot:
    """Reads `sequences` from its start to its end of now."""
    with consumer(kafka) as reader:
        resume_from = _examples_before(reader, kafka, records=_largest_chunk(stream))
        states: dict[str, UserState] = {}
        marks: dict[int, Mark] = {}
        for record in _records(reader, kafka.topic(SEQUENCES)):
            state = _decoded(record.value)
            if state is None:
                states.pop(record.key.decode(), None)
                continue
            states[record.key.decode()] = state
            mark = (state.applied.clicks, LAST_ORDINAL)
            if state.applied.clicks != NEVER and mark > marks.get(record.partition, (NEVER, 0)):
                marks[record.partition] = mark
    return Snapshot(states, Cut(offsets=resume_from, marks={CLICKS: marks}))


def _largest_chunk(stream: StreamSettings) -> int:
    """Examples that one chunk of every source can send: each event its own, and one for each slate that it closes."""
    return SOURCES * stream.chunk_records * (1 + stream.max_open_slates)


def _examples_before(reader: KafkaConsumer, kafka: KafkaSettings, *, records: int) -> dict[int, int]:
    partitions = partitions_of(reader, kafka.topic(EXAMPLES))
    begins, ends = reader.beginning_offsets(partitions), reader.end_offsets(partitions)
    return {partition.partition: max(begins[partition], ends[partition] - records) for partition in partitions}


def _records(reader: KafkaConsumer, topic: str) -> Iterator[KafkaConsumer]:
    partitions = partitions_of(reader, topic)
    ends: dict[TopicPartition, int] = reader.end_offsets(partitions)
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    while any(reader.position(partition) < end for partition, end in ends.items()):
        for partition, records in reader.poll(timeout_ms=500).items():
            yield from (record for record in records if record.offset < ends[partition])


def _decoded(raw: bytes | None) -> UserState | None:
    """None for a user who was forgotten, and for what this version cannot read, which is said."""
    if raw is None:
        return None
    try:
        return decode_state(raw)
    except msgspec.DecodeError as error:
        structlog.get_logger().warning("a sequence cannot be read and is left out", reason=str(error))
        return None
