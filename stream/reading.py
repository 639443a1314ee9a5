"""Between Faust's stream and the worker: takes chunks in, hands merged batches on, acknowledges what is finished."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import structlog
from faust.types import TP

from stream.debts import Debts, read_debts
from stream.folding import SOURCES
from stream.intake import Batch, Intake
from stream.settings import KafkaSettings
from stream.worker import StreamWorker

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 0.02


class _Handler:
    """Of one partition number: handles its batches one after another."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.is_busy = asyncio.Lock()


class Reader:
    """One per agent. A rebalance begins a new generation: what was queued is dropped, and is fetched again."""

    def __init__(
        self,
        app: Any,  # noqa: ANN401 - a Faust app
        kafka: KafkaSettings,
        worker: StreamWorker,
        *,
        patience_seconds: float,
        debts: Debts = read_debts,
    ) -> None:
        """Records wait no longer than `patience_seconds` for a topic that the broker does not bring."""
        self._consumer = app.consumer
        self._app = app
        self._kafka = kafka
        self._worker = worker
        self._debts = debts
        self._topics = [kafka.topic(name) for name in SOURCES]
        self._generation: int | None = None
        self._intakes: dict[int, Intake] = {}
        self._handlers: dict[int, _Handler] = {}
        self._waiting_since: dict[int, float] = {}
        self._patience_seconds = patience_seconds
        self._given_up: set[TP] = set()
        """Not waited for until they bring something."""

    async def read(self, stream: Any) -> None:  # noqa: ANN401 - Faust's stream
        """Handles everything the stream brings; raises what the worker raises.

        What comes while a partition's records are being handled is handled next, all of it at once: the busier, the
        larger the batches. Partitions have no user in common, so while one waits for Kafka another goes on.
        """
        async with asyncio.TaskGroup() as group:
            tasks = []
            async for event in stream.noack().events():
                partition = event.message.partition
                await self._take_in(event.message)
                if partition not in self._handlers:
                    self._handlers[partition] = _Handler()
                    tasks.append(group.create_task(self._handle_all(partition)))
                self._handlers[partition].woken.set()
            for task in tasks:
                task.cancel()

    async def _handle_all(self, partition: int) -> None:
        handler = self._handlers[partition]
        while await handler.woken.wait():
            handler.woken.clear()
            if not await self._hand_on(partition):
                # The records wait for another topic; that it brings nothing more, no event says.
                asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, handler.woken.set)

    async def _take_in(self, message: Any) -> None:  # noqa: ANN401 - Faust's message
        self._consumer.release(message)
        if self._app.consumer_generation_id != self._generation:
            await self._begin_generation()
        if self._is_current(message):
            self._waiting_since.pop(message.partition, None)
            self._given_up.discard(message.tp)
            intake = self._intakes[message.partition]
            if not intake.put(message, finished=self._consumer.finished()[message.tp]):
                self._finish(message)

    async def _begin_generation(self) -> None:
        """Waits for what is being handled; nothing of the former generation is begun any more."""
        async with contextlib.AsyncExitStack() as all_handlers:
            for handler in self._handlers.values():
                await all_handlers.enter_async_context(handler.is_busy)
            await self._begin_idle_generation()

    async def _begin_idle_generation(self) -> None:
        generation, finished = self._app.consumer_generation_id, dict(self._consumer.finished())
        try:
            await self._read_from(finished)
        except Exception:
            if self._consumer.flow_active and generation == self._app.consumer_generation_id:
                raise
            # Partitions were taken away while their debts were read; the next generation begins by itself.
            log.info("a rebalance began before the one before it was over", generation=generation)
            return
        self._generation = generation

    async def _read_from(self, finished: Mapping[TP, int]) -> None:
        debts = await self._debts(self._kafka, {tp.partition for tp in finished}, finished, self._worker.writer)
        self._intakes = {
            partition: Intake(partition, self._topics, owed=owed, folded=self._worker.folded(partition))
            for partition, owed in debts.items()
        }
        self._waiting_since.clear()
        self._given_up.clear()
        for partition, owed in debts.items():
            for topic, span in owed.items():
                self._consumer.require(TP(topic, partition), span.behind)

    async def _hand_on(self, partition: int) -> bool:
        """Handles what is queued; says whether nothing is left that waits for another topic."""
        async with self._handlers[partition].is_busy:
            intake = self._intakes.get(partition)
            while intake is not None and not intake.is_empty:
                batch = intake.take(self._may_bring, most=self._consumer.chunk_records)
                if batch is None and self._give_up(partition, intake):
                    continue
                if batch is None:
                    return False
                self._waiting_since.pop(partition, None)
                if not all(map(self._is_current, batch.messages)):
                    return True
                await self._handle(batch)
        return True

    def _may_bring(self, tp: TP, read: int | None) -> bool:
        return tp not in self._given_up and bool(self._consumer.has_more(tp, read))

    def _give_up(self, partition: int, intake: Intake) -> bool:
        """Whether what was waited for is waited for no more: a topic that has no leader must not hold up the others."""
        now = time.monotonic()
        if intake.lacking(self._consumer.is_coming):
            self._waiting_since[partition] = now
        if now < self._waiting_since.setdefault(partition, now) + self._patience_seconds:
            return False
        lacking = intake.lacking(self._may_bring)
        self._given_up.update(lacking)
        for tp in lacking:
            log.warning("waited in vain for a topic; what it brings later is late", topic=tp.topic, partition=partition)
        return bool(lacking)

    async def _handle(self, batch: Batch) -> None:
        for message in batch.messages:
            self._consumer.hold(message)
        await self._worker.handle(batch)
        for message in batch.messages:
            self._consumer.release(message)
        for message in batch.ended:
            self._finish(message)

    def _finish(self, message: Any) -> None:  # noqa: ANN401 - Faust's message
        message.value.finished = True
        message.ack(self._consumer)

    def _is_current(self, message: Any) -> bool:  # noqa: ANN401 - Faust's message
        """Whether its partition is still ours: as soon as a rebalance begins, nothing new may be written."""
        return bool(self._consumer.flow_active and message.generation_id == self._app.consumer_generation_id)
