"""The users as `sequences` has them at one moment, and the exact cut of the stream that this is.

The stream worker acknowledges a chunk's examples before its states, and appends the states of a chunk together. So
`sequences`, read up to an end, holds every click up to the highest offset that any state of a partition has folded in,
and nothing after it: that offset is the mark. Every example behind the mark stands in `examples` no further back than
one chunk before where that topic ended when the reading began. A chunk is seldom as large as it may be: reading resumes
where the first example of a click is one up to the mark, for clicks' examples stand there in the order of their ids,
and what is sent again after a crash goes on past whatever stood before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition

from stream.clients import consumer
from stream.examples import ExampleId, decode_example
from stream.sequences import NEVER, UserState, decode_state
from stream.settings import KafkaSettings, StreamSettings
from stream.topics import CLICKS, EXAMPLES, SEQUENCES
from trainer.cut import Cut, Mark
from trainer.examples import partitions_of

LAST_ORDINAL = 2**31 - 1
SHORTEST_LOOK_BACK = 256
"""Records before the end of `examples` from which on to look for a known one; four times as many, if there is none."""
SOURCES = 3
"""Topics that a chunk of examples may come from."""


class Snapshot(NamedTuple):
    """Every user's state, by user id, and the cut behind which learning goes on from `examples`."""

    states: Mapping[str, UserState]
    cut: Cut


def take_snapshot(kafka: KafkaSettings, stream: StreamSettings) -> Snapshot:
    """Reads `sequences` from its start to its end of now."""
    with consumer(kafka) as reader:
        spans = _spans(reader, kafka)
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
        offsets = {
            partition.partition: _resume_at(
                reader, partition, span, mark=marks.get(partition.partition), most=_largest_chunk(stream)
            )
            for partition, span in spans.items()
        }
    return Snapshot(states, Cut(offsets=offsets, marks={CLICKS: marks}))


def _largest_chunk(stream: StreamSettings) -> int:
    """Examples that one chunk of every source can send: each event its own, and one for each slate that it closes."""
    return SOURCES * stream.chunk_records * (1 + stream.max_open_slates)


def _spans(reader: KafkaConsumer, kafka: KafkaSettings) -> dict[TopicPartition, range]:
    """What stands on `examples` now."""
    partitions = partitions_of(reader, kafka.topic(EXAMPLES))
    begins, ends = reader.beginning_offsets(partitions), reader.end_offsets(partitions)
    return {partition: range(begins[partition], ends[partition]) for partition in partitions}


def _resume_at(reader: KafkaConsumer, partition: TopicPartition, span: range, *, mark: Mark | None, most: int) -> int:
    """The latest offset known to have every click's example behind the mark after it; `most` records back at worst."""
    back = SHORTEST_LOOK_BACK
    while mark is not None and back < min(most, len(span)):
        found = _first_click(reader, partition, range(span.stop - back, span.stop))
        if found is not None and found.mark <= mark:
            return found.offset
        back *= 4
    return span.stop - min(most, len(span))


class _Found(NamedTuple):
    """An example, and where it stands."""

    offset: int
    mark: Mark


def _first_click(reader: KafkaConsumer, partition: TopicPartition, span: range) -> _Found | None:
    """The first example of a click there."""
    reader.assign([partition])
    reader.seek(partition, span.start)
    while reader.position(partition) < span.stop:
        for record in reader.poll(timeout_ms=500, max_records=SHORTEST_LOOK_BACK).get(partition, ()):
            identity = _identity(record.value)
            if identity is not None and identity.source == CLICKS and record.offset < span.stop:
                return _Found(record.offset, (identity.offset, identity.ordinal))
    return None


def _identity(raw: bytes | None) -> ExampleId | None:
    """None for what cannot be read: it went to the dead letters."""
    try:
        return decode_example(raw or b"").id
    except (msgspec.DecodeError, ValueError):
        return None


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
