"""After a crash, the batch that was under way comes first, cut as it was: only so are its examples the same again.

Examples are written before the states that imply them. A worker killed in between folds the same records again, from
the same states, as long as nothing else of that partition changed them before. The last record on `examples` tells what
was under way: its header holds the spans of a batch of several topics; for a batch of one topic, where every cut comes
to the same, its id says up to where.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from stream.batches import Message, PartitionWriter
from stream.dead_letters import Headers
from stream.examples import decode_example
from stream.intake import Span
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES

SPANS = "spans"
FETCH_WAIT_MS = 20
"""What a broker is asked next waits for the fetch before it."""
Spans = Mapping[str, Span]
"""By the full name of the topic."""


class SentExample(Protocol):
    """A record of `examples`."""

    @property
    def value(self) -> bytes:
        """The example."""

    @property
    def headers(self) -> Headers:
        """With the spans of its batch, if that had several."""


def span_headers(spans: Spans) -> Headers:
    """What every example of a batch carries, so that the last one on the topic can say what was under way."""
    return [(SPANS, msgspec.msgpack.encode(spans))] if len(spans) > 1 else []


Writers = Callable[[int], PartitionWriter]
"""Who writes to a partition number."""


Debts = Callable[[KafkaSettings, Iterable[int], Mapping[TP, int], Writers], Awaitable[dict[int, Spans]]]
"""Asks what is owed."""


async def read_debts(
    kafka: KafkaSettings, partitions: Iterable[int], finished: Mapping[TP, int], writers: Writers
) -> dict[int, Spans]:
    """What workers before this one may have left unfinished, by partition; empty where nothing.

    From then on none of them writes examples any more: the last one of each partition is written again, which is a
    repeat to every reader, and fences them out (`stream.batches`). Where no example ever stood, nothing is fenced.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers.split(","), enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS
    )
    await consumer.start()
    try:
        last = await _fenced_last(consumer, kafka.topic(EXAMPLES), partitions, writers)
        spans = {
            partition: spans_owed(
                kafka,
                last.get(partition),
                {tp.topic: behind for tp, behind in finished.items() if tp.partition == partition},
            )
            for partition in partitions
        }
        return await _still_standing(consumer, spans)
    finally:
        await consumer.stop()


def spans_owed(kafka: KafkaSettings, last: SentExample | None, finished: Mapping[str, int]) -> Spans:
    """What the last example tells of a partition was under way, unless it was finished, by committed offsets."""
    spans = {} if last is None else _spans_of(kafka, last)
    # Once the offset of one is committed, the states are written, and nothing is owed of the others either.
    return spans if all(finished.get(topic, 0) < span.behind for topic, span in spans.items()) else {}


def _spans_of(kafka: KafkaSettings, record: SentExample) -> Spans:
    for name, value in record.headers:
        if name == SPANS:
            return msgspec.msgpack.decode(value, type=dict[str, Span])
    example_id = decode_example(record.value).id
    return {kafka.topic(example_id.source): Span(0, example_id.offset + 1)}


async def _fenced_last(
    consumer: Any,  # noqa: ANN401 - aiokafka has no types
    topic: str,
    partitions: Iterable[int],
    writers: Writers,
) -> dict[int, Any]:
    """The last record of each partition, written again; what somebody wrote between is the last one instead."""
    tps = [TopicPartition(topic, partition) for partition in partitions]
    first, behind = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    last = await _records_at(consumer, {tp: behind[tp] - 1 for tp in tps if first[tp] < behind[tp]})
    again = {tp: await _write_again(writers(tp.partition), record) for tp, record in last.items()}
    between = {tp: offset - 1 for tp, offset in again.items() if offset is not None and offset > behind[tp]}
    for tp, record in (await _records_at(consumer, between)).items():
        last[tp] = record
        await _write_again(writers(tp.partition), record)
    return {tp.partition: record for tp, record in last.items()}


async def _write_again(writer: PartitionWriter, record: Any) -> int | None:  # noqa: ANN401 - aiokafka's record
    return await writer.write(record.topic, [Message(record.key, record.value, list(record.headers))])


async def _records_at(consumer: Any, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:  # noqa: ANN401
    """One record of each partition."""
    if not offsets:
        return {}
    consumer.assign(list(offsets))
    for tp, offset in offsets.items():
        # An assignment looks for positions by itself, and would overwrite a seek that comes before it has found one.
        await consumer.position(tp)
        consumer.seek(tp, offset)
    found: dict[TopicPartition, Any] = {}
    while missing := [tp for tp in offsets if tp not in found]:
        for tp, records in (await consumer.getmany(*missing, timeout_ms=1_000)).items():
            found[tp] = records[0]
            assert found[tp].offset == offsets[tp], "nobody but us writes here, and only whole records"
    return found


async def _still_standing(consumer: Any, spans: Mapping[int, Spans]) -> dict[int, Spans]:  # noqa: ANN401
    """Without what the topics hold no more, which is owed by nobody."""
    tps = [TopicPartition(topic, partition) for partition, owed in spans.items() for topic in owed]
    first, behind = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)

    def stands(tp: TopicPartition, span: Span) -> bool:
        return bool(first[tp] < span.behind <= behind[tp])

    return {
        partition: owed if all(stands(TopicPartition(topic, partition), span) for topic, span in owed.items()) else {}
        for partition, owed in spans.items()
    }
