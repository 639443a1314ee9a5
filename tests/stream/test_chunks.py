from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import faust
import mode
import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream.app import create_app
from stream.chunks import BUSY_FETCH_WAIT_MS, RESTORED, Arrivals, Chunk, Consumer, restore_with, take_over_with
from stream.settings import KafkaSettings, StreamSettings

CLICKS = TP("recs.clicks", 0)
CHANGELOG = TP("recs.sequences", 0)
GENERATION = 7


def record(tp: TP, offset: int) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(tp.topic, tp.partition, offset, 1, 0, b"u", b"{}", None, 1, 2, ())


class Broker(mode.Service):  # type: ignore[misc] # mode has no types
    """Stands for the consumer's thread: brings what a test gives it; `meanwhile` runs while it fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.brings: dict[TP, list[Any]] = {}
        self.meanwhile: Callable[[], Awaitable[None]] = nothing
        self.behind = -1
        self.waits_ms: list[int] = []

    def wait_for_company(self, wait_ms: int) -> None:
        self.waits_ms.append(wait_ms)

    async def getmany(self, tps: set[TP], _timeout: float) -> dict[TP, list[Any]]:
        await self.meanwhile()
        return {tp: records for tp, records in self.brings.items() if tp in tps or not tps}

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, 3)

    async def seek_wait(self, _partitions: dict[TP, int]) -> None: ...

    def reached(self, _tp: TP) -> int:
        return self.behind

    def has_more(self, _tp: TP) -> bool:
        return False


class Unconnected(Consumer):
    """A consumer of one partition and a changelog that remembers where it was sent."""

    def __init__(self, app: faust.App) -> None:
        super().__init__(app.transport, callback=nothing, on_partitions_revoked=nothing, on_partitions_assigned=nothing)
        self.committed: int | None = 10
        self.sought: list[tuple[TP, int]] = []

    def _new_consumer_thread(self) -> Broker:
        self.broker = Broker()
        return self.broker

    def assignment(self) -> set[TP]:
        return {CLICKS, CHANGELOG}

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        return {CLICKS: self.committed}

    async def seek(self, partition: TP, offset: int) -> None:
        self.sought.append((partition, offset))

    async def fetch(self, *offsets: int, tp: TP = CLICKS) -> list[ConsumerMessage]:
        """What one fetch hands on, as Faust's messages."""
        self.broker.brings = {tp: [record(tp, offset) for offset in offsets]}
        fetched = await self._getmany({tp}, 1.0)
        messages = [self._to_message(tp, each) for each in fetched.get(tp, ())]
        for message in messages:
            message.incref()
        return messages


async def nothing(*_whatever: object) -> None: ...


@pytest.fixture
async def app(tmp_path: Path) -> faust.App:
    app = create_app(KafkaSettings(), StreamSettings(), tmp_path, instance=None)
    app.consumer_generation_id = GENERATION
    app.topics._acking_topics.add(CLICKS.topic)
    return app


@pytest.fixture
async def consumer(app: faust.App) -> Unconnected:
    return Unconnected(app)


def finish(consumer: Consumer, message: ConsumerMessage) -> None:
    message.value.finished = True
    message.ack(consumer)


async def test_what_one_fetch_brings_of_a_partition_is_one_message(consumer: Unconnected) -> None:
    [message] = await consumer.fetch(10, 11, 12)

    assert isinstance(message.value, Chunk)
    assert [each.offset for each in message.value.records] == [10, 11, 12]
    assert (message.offset, message.value.first, message.value.next) == (12, 10, 13)


@pytest.mark.parametrize(
    ("per_second", "wait_ms"), [(0, 0), (100, 0), (500, 20), (900, 36), (5_000, BUSY_FETCH_WAIT_MS)]
)
def test_the_faster_records_come_the_longer_a_fetch_waits_for_several(per_second: int, wait_ms: int) -> None:
    arrivals = Arrivals()
    each = max(1, per_second // 100)

    waits = [arrivals.wait_ms(each if per_second else 0, at=count * each / max(1, per_second)) for count in range(200)]

    assert waits[0] == 0
    assert waits[-1] == wait_ms


def test_a_burst_that_is_over_is_soon_forgotten() -> None:
    arrivals = Arrivals()
    busy = [arrivals.wait_ms(100, at=0.02 * count) for count in range(50)]

    calm = [arrivals.wait_ms(1, at=1.0 + 0.1 * count) for count in range(1, 20)]

    assert busy[-1] == BUSY_FETCH_WAIT_MS
    assert calm[-1] == 0


async def test_every_fetch_says_how_long_the_next_one_is_to_wait(consumer: Unconnected) -> None:
    for first in range(0, 10_000, 500):
        await consumer.fetch(*range(first, first + 500))

    assert consumer.broker.waits_ms[0] == 0
    assert consumer.broker.waits_ms[-1] == BUSY_FETCH_WAIT_MS


async def test_a_changelog_is_delivered_record_by_record(consumer: Unconnected) -> None:
    messages = await consumer.fetch(1, 2, tp=CHANGELOG)

    assert [message.value for message in messages] == [b"{}", b"{}"]


async def test_only_a_finished_chunk_is_committed(consumer: Unconnected) -> None:
    [first] = await consumer.fetch(10, 11)
    [second] = await consumer.fetch(12, 13)

    second.ack(consumer)
    assert consumer._new_offset(CLICKS) == 10
    finish(consumer, first)
    assert consumer._new_offset(CLICKS) == 12


async def test_a_chunk_is_not_committed_past_one_that_was_skipped(consumer: Unconnected) -> None:
    [skipped] = await consumer.fetch(10, 11)
    [following] = await consumer.fetch(12, 13)
    skipped.ack(consumer)

    finish(consumer, following)

    assert not consumer.is_next(CLICKS, following.value)
    assert consumer._new_offset(CLICKS) == 10


async def test_a_hole_in_the_log_is_no_gap(consumer: Unconnected) -> None:
    [first] = await consumer.fetch(10, 11)
    [second] = await consumer.fetch(20, 21)
    await consumer._add_gap(CLICKS, 12, 21)

    finish(consumer, first)
    finish(consumer, second)

    assert second.value.first == 12
    assert consumer._new_offset(CLICKS) == 22
    assert not consumer._gap[CLICKS]


async def test_a_chunk_of_an_older_generation_is_not_committed(consumer: Unconnected, app: faust.App) -> None:
    [message] = await consumer.fetch(10, 11)
    app.consumer_generation_id = GENERATION + 1

    finish(consumer, message)

    assert consumer._new_offset(CLICKS) == 10


async def test_nothing_is_fetched_between_a_seek_and_the_moment_when_the_flow_is_resumed(consumer: Unconnected) -> None:
    await consumer.perform_seek()

    assert await consumer.fetch(10, 11) == []
    consumer.resume_flow()
    assert [message.offset for message in await consumer.fetch(10, 11)] == [11]


async def test_after_a_seek_everything_begins_at_the_committed_offset(consumer: Unconnected) -> None:
    await consumer.fetch(10, 11)
    await consumer.perform_seek()
    consumer.resume_flow()

    [again] = await consumer.fetch(10, 11)
    finish(consumer, again)

    assert again.value.first == 10
    assert consumer._new_offset(CLICKS) == 12


async def test_an_overlap_with_what_is_committed_is_taken_once_more(consumer: Unconnected) -> None:
    [message] = await consumer.fetch(10, 11, 12)
    finish(consumer, message)
    consumer.committed = 12
    await consumer.perform_seek()
    consumer.resume_flow()

    [overlapping] = await consumer.fetch(12, 13, 14)
    finish(consumer, overlapping)

    assert consumer._new_offset(CLICKS) == 15


async def test_what_was_fetched_while_a_seek_ran_is_fetched_again(consumer: Unconnected) -> None:
    consumer.broker.meanwhile = consumer.perform_seek

    assert await consumer.fetch(20, 21) == []
    assert consumer.sought == [(CLICKS, 10)]


async def test_a_partition_of_which_enough_waits_is_not_fetched_until_some_is_finished(app: faust.App) -> None:
    app.conf.broker_max_poll_records = 2
    consumer = Unconnected(app)
    [first] = await consumer.fetch(10, 11)
    [second] = await consumer.fetch(12, 13)

    assert await consumer.fetch(14, 15) == []
    finish(consumer, first)
    assert [message.offset for message in await consumer.fetch(14, 15)] == [15]
    assert second.value.next == 14


async def test_what_was_taken_from_the_fetcher_is_more_to_come_before_anybody_has_seen_it(
    consumer: Unconnected,
) -> None:
    seen: list[bool] = []

    async def take() -> None:
        seen.append(consumer.has_more(CLICKS, 10))
        consumer.broker.behind = 12
        seen.append(consumer.has_more(CLICKS, 10))

    consumer.broker.behind, consumer.broker.meanwhile = 10, take
    [message] = await consumer.fetch(10, 11)
    finish(consumer, message)

    assert seen == [False, True]
    assert not consumer.has_more(CLICKS, 12)


async def test_whoever_had_partitions_is_kept_from_writing_before_they_are_read(
    consumer: Unconnected, app: faust.App
) -> None:
    order: list[object] = []

    async def take_over(partitions: set[int]) -> None:
        order.append(partitions)

    async def begin(_assigned: set[TP], _generation: int) -> None:
        order.append("read")

    take_over_with(app, take_over)
    consumer._on_partitions_assigned = begin
    await consumer.on_partitions_assigned({CLICKS, CHANGELOG}, GENERATION)

    assert order == [{0}, "read"]


async def test_what_is_required_is_fetched_however_much_waits(app: faust.App) -> None:
    app.conf.broker_max_poll_records = 2
    consumer = Unconnected(app)
    await consumer.fetch(10, 11, 12, 13)
    consumer.require(CLICKS, 16)

    assert [message.offset for message in await consumer.fetch(14, 15)] == [15]
    assert await consumer.fetch(16, 17) == []


async def test_where_nothing_is_committed_a_seek_goes_to_the_beginning(consumer: Unconnected) -> None:
    await consumer.fetch(10, 11)
    consumer.committed = None

    await consumer.perform_seek()
    consumer.resume_flow()

    assert consumer.sought == [(CLICKS, 3)]
    [message] = await consumer.fetch(3, 4)
    assert consumer.is_next(CLICKS, message.value)


async def test_acknowledging_twice_commits_once(consumer: Unconnected) -> None:
    [message] = await consumer.fetch(10, 11)

    finish(consumer, message)
    finish(consumer, message)

    assert consumer._new_offset(CLICKS) == 12
    assert not consumer._acked[CLICKS]


async def test_a_revoked_partition_is_forgotten(consumer: Unconnected) -> None:
    [message] = await consumer.fetch(10, 11)

    await consumer.on_partitions_revoked({CLICKS})

    assert CLICKS not in consumer.finished()
    assert message.value.first == 10


async def test_offsets_without_a_record_are_finished_once_all_before_them_is(consumer: Unconnected) -> None:
    [message] = await consumer.fetch(10, 11)
    consumer.broker.brings, consumer.broker.behind = {}, 15

    await consumer._getmany({CLICKS}, 1.0)
    assert consumer.finished()[CLICKS] == 10
    finish(consumer, message)
    await consumer._getmany({CLICKS}, 1.0)

    assert consumer._new_offset(CLICKS) == 15
    [following] = await consumer.fetch(15)
    assert following.value.first == 15


async def test_a_changelog_is_restored_by_chunks_and_faust_sees_only_how_far(
    consumer: Unconnected, app: faust.App
) -> None:
    restored: list[Any] = []
    restore_with(app, lambda tp, records: restored.append((tp, [each.offset for each in records])))
    app.tables.recovery.active_tps.add(CHANGELOG)

    [message] = await consumer.fetch(1, 2, 4, tp=CHANGELOG)

    assert restored == [(CHANGELOG, [1, 2, 4])]
    assert (message.offset, message.key, message.value) == (4, RESTORED, None)


async def test_the_changelog_of_a_table_that_is_not_open_here_is_not_restored(
    consumer: Unconnected, app: faust.App
) -> None:
    restored: list[Any] = []
    restore_with(app, lambda tp, _: restored.append(tp))

    await consumer.fetch(1, 2, tp=CHANGELOG)

    assert not restored


async def test_changelog_records_fetched_while_recovery_sought_its_beginning_are_fetched_again(
    consumer: Unconnected, app: faust.App
) -> None:
    restored: list[Any] = []
    restore_with(app, lambda tp, _: restored.append(tp))
    recovery = app.tables.recovery
    recovery.active_tps.add(CHANGELOG)
    recovery.active_offsets[CHANGELOG] = 7
    consumer.broker.meanwhile = lambda: consumer.seek_wait({CHANGELOG: 7})

    assert await consumer.fetch(20, 21, tp=CHANGELOG) == []
    assert not restored
    assert consumer.sought == [(CHANGELOG, 7)]
