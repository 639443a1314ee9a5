"""After a crash, the batch that was under way comes first, cut as it was: only so are its examples the same again.

Examples are written before the states that imply them. A worker killed in between folds the same records again, from
the same states, as long as nothing else of that partition changed them before. The last record on `examples` tells what
was under way: its header holds the spans of a batch of several topics; for a batch of one topic, where every cut comes
to the same, its id says up to where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from stream.dead_letters import Headers
from stream.examples import decode_example
from stream.intake import Span
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES

SPANS = "spans"
Spans = Mapping[str, Span]
"""By the full name of the topic."""


def span_headers(spans: Spans) -> Headers:
    """What every example of a batch carries, so that the last one on the topic can say what was under way."""
    return [(SPANS, msgspec.msgpack.encode(spans))] if len(spans) > 1 else []


async def read_debts(kafka: KafkaSettings, partitions: Iterable[int], finished: Mapping[TP, int]) -> dict[int, Spans]:
    """What workers before this one may have left unfinished, by partition; empty where nothing."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers.split(","), enable_auto_commit=False)
    await consumer.start()
    try:
        return {partition: await _read_debt(consumer, kafka, partition, finished) for partition in partitions}
    finally:
        await consumer.stop()


async def _read_debt(
    consumer: Any,  # noqa: ANN401 - aiokafka has no types
    kafka: KafkaSettings,
    partition: int,
    finished: Mapping[TP, int],
) -> Spans:
    last = await _last_record(consumer, TopicPartition(kafka.topic(EXAMPLES), partition))
    spans = {} if last is None else _spans_of(kafka, last)
    is_open = [await _is_open(consumer, TopicPartition(topic, partition), spans[topic], finished) for topic in spans]
    # Once the offset of one is committed, the states are written, and nothing is owed of the others either.
    return spans if all(is_open) else {}


def _spans_of(kafka: KafkaSettings, record: Any) -> Spans:  # noqa: ANN401 - aiokafka's record
    for name, value in record.headers:
        if name == SPANS:
            return msgspec.msgpack.decode(value, type=dict[str, Span])
    example_id = decode_example(record.value).id
    return {kafka.topic(example_id.source): Span(0, example_id.offset + 1)}


async def _last_record(consumer: Any, tp: TopicPartition) -> Any:  # noqa: ANN401 - aiokafka has no types
    consumer.assign([tp])
    # An assignment looks for its position by itself, and would overwrite a seek that comes before it has found one.
    await consumer.position(tp)
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    if first >= behind:
        return None
    consumer.seek(tp, behind - 1)
    record = await consumer.getone()
    assert record.offset == behind - 1, "nobody but us writes here, and only whole records"
    return record


async def _is_open(consumer: Any, tp: TopicPartition, span: Span, finished: Mapping[TP, int]) -> bool:  # noqa: ANN401
    """What was committed, or what the topic holds no more, is owed by nobody."""
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    return bool(max(first, finished.get(TP(*tp), 0)) < span.behind <= behind)
