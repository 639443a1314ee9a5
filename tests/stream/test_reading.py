from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
from faust.types import TP

from stream.chunks import Chunk
from stream.debts import Spans, Writers
from stream.intake import Batch
from stream.reading import Reader
from stream.settings import KafkaSettings

KAFKA = KafkaSettings()
CLICKS = KAFKA.topic("clicks")
PARTITIONS = 2


class Record(NamedTuple):
    topic: str
    offset: int
    timestamp: int = 0


class Message(NamedTuple):
    partition: int
    value: Chunk[Any]
    generation_id: int
    acknowledged: list[Message]
    topic: str = CLICKS

    @property
    def tp(self) -> TP:
        return TP(self.topic, self.partition)

    def ack(self, _consumer: object) -> None:
        self.acknowledged.append(self)


class Event(NamedTuple):
    message: Message


class Consumer:
    """Of a topic that brings all it has at once."""

    flow_active = True
    chunk_records = 100

    def finished(self) -> Mapping[TP, int]:
        return {TP(CLICKS, partition): 0 for partition in range(PARTITIONS)}

    def has_more(self, _tp: TP, _read: int | None) -> bool:
        return False

    is_coming = has_more

    def hold(self, _message: Message) -> None:
        """Nothing waits for it here."""

    release = hold


class App:
    def __init__(self) -> None:
        self.consumer = Consumer()
        self.consumer_generation_id = 1


class Stream:
    """What is put into it comes out of it, until the end is put in."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._next = dict.fromkeys(range(PARTITIONS), 0)
        self.acknowledged: list[Message] = []

    def put(self, partition: int, *, generation: int = 1) -> None:
        offset = self._next[partition]
        self._next[partition] += 1
        chunk: Chunk[Any] = Chunk([Record(CLICKS, offset)], offset)
        self._events.put_nowait(Event(Message(partition, chunk, generation, self.acknowledged)))

    def end(self) -> None:
        self._events.put_nowait(None)

    def noack(self) -> Stream:
        return self

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            yield event


class Worker:
    """Takes batches and waits, as for Kafka, until it is let go on."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        """Partition and number of records of every batch."""
        self.may_end = {partition: asyncio.Semaphore(0) for partition in range(PARTITIONS)}

    async def handle(self, batch: Batch) -> None:
        self.begun.append((batch.partition, len(batch.records)))
        await self.may_end[batch.partition].acquire()

    def writer(self, _partition: int) -> None:
        return None

    def folded(self, _partition: int) -> dict[str, int]:
        return dict.fromkeys(map(KAFKA.topic, ("recommendations", "impressions", "clicks")), -1)


async def nothing_owed(
    _kafka: KafkaSettings, partitions: Iterable[int], _finished: Mapping[TP, int], _writers: Writers
) -> dict[int, Spans]:
    return {partition: {} for partition in partitions}


async def true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the conditions are about many things
            await asyncio.sleep(0)


class Reading(NamedTuple):
    app: App
    stream: Stream
    worker: Worker
    task: asyncio.Task[None]


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    app, stream, worker = App(), Stream(), Worker()
    reader = Reader(app, KAFKA, worker, patience_seconds=60, debts=nothing_owed)  # type: ignore[arg-type]
    task = asyncio.create_task(reader.read(stream))
    yield Reading(app, stream, worker, task)
    stream.end()
    await task


async def test_what_comes_while_a_batch_is_handled_is_the_next_batch_all_of_it(reading: Reading) -> None:
    reading.stream.put(0)
    await true(lambda: reading.worker.begun == [(0, 1)])
    for _ in range(5):
        reading.stream.put(0)
    reading.worker.may_end[0].release()
    await true(lambda: len(reading.worker.begun) == 2)
    reading.worker.may_end[0].release()

    await true(lambda: len(reading.stream.acknowledged) == 6)
    assert reading.worker.begun == [(0, 1), (0, 5)]


async def test_a_partition_that_waits_for_kafka_does_not_hold_up_another(reading: Reading) -> None:
    reading.stream.put(0)
    reading.stream.put(1)
    reading.worker.may_end[1].release()

    await true(lambda: [message.partition for message in reading.stream.acknowledged] == [1])
    assert sorted(reading.worker.begun) == [(0, 1), (1, 1)]
    reading.worker.may_end[0].release()
    await true(lambda: len(reading.stream.acknowledged) == 2)


async def test_after_a_rebalance_nothing_is_read_before_what_was_under_way_is_handled(reading: Reading) -> None:
    reading.stream.put(0)
    await true(lambda: len(reading.worker.begun) == 1)
    reading.stream.put(0)
    reading.app.consumer_generation_id = 2
    reading.stream.put(1, generation=2)
    for _ in range(100):
        await asyncio.sleep(0)
    before = list(reading.worker.begun)
    reading.worker.may_end[0].release()
    await true(lambda: len(reading.worker.begun) == 2)
    reading.worker.may_end[1].release()
    await true(lambda: bool(reading.stream.acknowledged))

    assert before == [(0, 1)]
    assert reading.worker.begun == [(0, 1), (1, 1)], "what was queued before comes again, from the new generation"


class FailingWorker(Worker):
    """Fails with the first batch, as when another worker has taken the partition over."""

    async def handle(self, batch: Batch) -> None:
        raise ValueError(f"fenced out of partition {batch.partition}")


async def test_what_fails_in_one_partition_ends_the_reading_of_all() -> None:
    stream = Stream()
    reader = Reader(App(), KAFKA, FailingWorker(), patience_seconds=60, debts=nothing_owed)  # type: ignore[arg-type]
    stream.put(1)

    with pytest.raises(ExceptionGroup) as failed:
        await reader.read(stream)

    assert [str(error) for error in failed.value.exceptions] == ["fenced out of partition 1"]
    assert stream.acknowledged == []


async def test_partitions_taken_away_while_their_debts_are_read_are_no_failure() -> None:
    app, stream, worker = App(), Stream(), Worker()

    async def taken_away(
        kafka: KafkaSettings, partitions: Iterable[int], finished: Mapping[TP, int], writers: Writers
    ) -> dict[int, Spans]:
        if app.consumer_generation_id == 1:
            app.consumer_generation_id = 2
            raise KeyError("no writer any more")
        return await nothing_owed(kafka, partitions, finished, writers)

    reader = Reader(app, KAFKA, worker, patience_seconds=60, debts=taken_away)  # type: ignore[arg-type]
    stream.put(0)
    stream.put(1, generation=2)
    task = asyncio.create_task(reader.read(stream))
    worker.may_end[1].release()
    await true(lambda: len(stream.acknowledged) == 1)
    stream.end()
    await task

    assert worker.begun == [(1, 1)]
