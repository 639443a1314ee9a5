"""After a crash, the batch that was under way comes first, cut as it was: only so are its examples the same again.

Examples are written before the states that imply them. A worker killed in between folds the same records again, from
the same states, as long as nothing else of that partition changed them before. The last record on `examples` tells what
was under way: its header holds the spans of a batch of several topics; for a batch of one topic, where every cut comes
to the same, its id says up to where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


async def read_debts(
    kafka: KafkaSettings, partitions: Iterable[int], finished: Mapping[TP, int], writers: Writers
) -> dict[int, Spans]:
    """What workers before this one may have left unfinished, by partition; empty where nothing.

    From then on none of them writes examples any more: the last one of each partition is written again, which is a
    repeat to every reader, and fences them out (`stream.batches`). Where no example ever stood, nothing is fenced.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers.split(","), enable_auto_commit=False)
    await consumer.start()
    try:
        return {
            partition: await _read_debt(consumer, kafka, partition, finished, writers(partition))
            for partition in partitions
        }
    finally:
        await consumer.stop()


async def _read_debt(
    consumer: Any,  # noqa: ANN401 - aiokafka has no types
    kafka: KafkaSettings,
    partition: int,
    finished: Mapping[TP, int],
    writer: PartitionWriter,
) -> Spans:
    last = await _fenced_last(consumer, TopicPartition(kafka.topic(EXAMPLES), partition), writer)
    spans = spans_owed(kafka, last, {tp.topic: behind for tp, behind in finished.items() if tp.partition == partition})
    stand = [await _stands(consumer, TopicPartition(topic, partition), span) for topic, span in spans.items()]
    return spans if all(stand) else {}


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


async def _fenced_last(consumer: Any, tp: TopicPartition, writer: PartitionWriter) -> Any:  # noqa: ANN401
    """The last record, written again; what somebody wrote between reading and writing it is the last one instead."""
    consumer.assign([tp])
    # An assignment looks for its position by itself, and would overwrite a seek that comes before it has found one.
    await consumer.position(tp)
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    if first >= behind:
        return None
    last = await _record_at(consumer, tp, behind - 1)
    again = await _write_again(writer, last)
    if again is not None and again > behind:
        last = await _record_at(consumer, tp, again - 1)
        await _write_again(writer, last)
    return last


async def _write_again(writer: PartitionWriter, record: Any) -> int | None:  # noqa: ANN401 - aiokafka's record
    return await writer.write(record.topic, [Message(record.key, record.value, list(record.headers))])


async def _record_at(consumer: Any, tp: TopicPartition, offset: int) -> Any:  # noqa: ANN401 - aiokafka has no types
    consumer.seek(tp, offset)
    record = await consumer.getone()
    assert record.offset == offset, "nobody but us writes here, and only whole records"
    return record


async def _stands(consumer: Any, tp: TopicPartition, span: Span) -> bool:  # noqa: ANN401 - aiokafka has no types
    """What the topic holds no more is owed by nobody."""
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    return bool(first < span.behind <= behind)
