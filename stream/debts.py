"""After a crash, the chunk that was under way comes first: only so are its examples the same once more.

Examples are written before the state that implies them. A worker killed in between folds the same records again, from
the same state, as long as no other topic of that partition changed it before. The last record on `examples` tells what
was under way: its id names the topic and the offset. Until that offset is finished, chunks of the other topics wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from stream.examples import decode_example
from stream.settings import KafkaSettings
from stream.topics import EXAMPLES


class Debt(NamedTuple):
    """Records up to this offset of this topic are to be finished before any other of the partition."""

    topic: str
    offset: int


async def read_debt(kafka: KafkaSettings, partition: int, finished: Mapping[TP, int]) -> Debt | None:
    """What a worker before this one left unfinished in a partition; None where nothing is known to be."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers.split(","), enable_auto_commit=False, max_poll_records=1
    )
    await consumer.start()
    try:
        last = await _last_example(consumer, TopicPartition(kafka.topic(EXAMPLES), partition))
        if last is None:
            return None
        debt = Debt(kafka.topic(decode_example(last).id.source), decode_example(last).id.offset)
        return debt if await _is_open(consumer, debt, partition, finished) else None
    finally:
        await consumer.stop()


async def _last_example(consumer: Any, tp: TopicPartition) -> bytes | None:  # noqa: ANN401 - aiokafka has no types
    consumer.assign([tp])
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    if first >= behind:
        return None
    consumer.seek(tp, behind - 1)
    raw: bytes = (await consumer.getone()).value
    return raw


async def _is_open(consumer: Any, debt: Debt, partition: int, finished: Mapping[TP, int]) -> bool:  # noqa: ANN401
    """A record that was committed, or that the topic holds no more, is owed by nobody."""
    tp = TopicPartition(debt.topic, partition)
    first = (await consumer.beginning_offsets([tp]))[tp]
    behind = (await consumer.end_offsets([tp]))[tp]
    return bool(max(first, finished.get(TP(*tp), 0)) <= debt.offset < behind)


class Waiting:
    """The chunks of one generation of the group, let through in an order that pays the debts first."""

    def __init__(self) -> None:
        self._debts: dict[int, Debt | None] = {}
        self._events: dict[int, list[Any]] = {}

    def knows(self, partition: int) -> bool:
        """Whether it was read already what this partition owes."""
        return partition in self._debts

    def owe(self, partition: int, debt: Debt | None) -> None:
        """Holds chunks of other topics of the partition back until the debt is paid."""
        self._debts[partition] = debt

    def admit(self, event: Any) -> list[Any]:  # noqa: ANN401 - Faust's event
        """The events that may be handled now, in this order."""
        topic, partition = event.message.tp
        debt = self._debts[partition]
        if debt is None:
            return [event]
        if topic != debt.topic:
            self._events.setdefault(partition, []).append(event)
            return []
        if event.message.value.next <= debt.offset:
            return [event]
        self._debts[partition] = None
        return [event, *self._events.pop(partition, [])]
