"""A Faust transport that hands an agent whole chunks: all records fetched of a partition arrive as one message.

Faust spends four tasks and a wait on every message. Here, what one fetch brings of a partition of an input topic
becomes one message: its value is a `Chunk` with the raw records, its offset is the last one's.

Recovery and standbys of tables go by chunks as well, once `restore_with` has said how a table takes them: the records
fetched of a changelog go there as a whole, and Faust's own recovery sees only how far they reach.

The agent says `chunk.finished = True` when everything that follows from the records is safe, and then acknowledges.
Only such chunks are committed: Faust itself acknowledges messages that it skips, as while a rebalance begins, and
would commit past them. A chunk that does not follow on what was finished (`is_next`) must not be handled: whatever
lies between was fetched and then dropped, and comes again after a restart.

    register()
    app = faust.App(..., broker="chunks://host:port", broker_max_poll_records=2_000)
    async for event in stream.noack().events():
        chunk = event.message.value
        ...
        chunk.finished = True
        event.ack()
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

from aiokafka import TopicPartition
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.dead_letters import RawRecord

SCHEME = "chunks"

DEFAULT_CHUNK_RECORDS = 500
CHUNKS_AHEAD = 2
"""Chunks of a partition that may wait to be finished before no more is fetched of it."""
FETCH_WAIT_MS = 200
LOOK_AGAIN_SECONDS = 0.01
"""How long a fetch waits while some partition is left out."""
BUSY_RATE = 200.0
"""Records a second from which on a fetch waits for several of them: chunks of few records cost as much as large ones,
here, on the broker and with all who read what follows from them.
"""
WAIT_MS_AT_ONE_A_SECOND = 0.04
"""How long it waits grows with the rate: 20 ms at 500 a second, ..."""
BUSY_FETCH_WAIT_MS = 80
"""... and so long at most, or until `BUSY_FETCH_BYTES` are there."""
BUSY_FETCH_BYTES = 65_536
RATE_SECONDS = 0.25
"""Over which the rate is taken."""

RESTORED = b"\0restored"
"""The key that Faust deletes instead of the records which were restored already: nobody can have it."""

Record = TypeVar("Record", bound=RawRecord)
Restore = Callable[[TP, Sequence[Any]], None]
"""Takes over records of a changelog partition, in their order, some of them perhaps for the second time."""

TakeOver = Callable[[set[int]], Awaitable[None]]
"""Keeps whoever had partition numbers before from writing; awaited before anything is read of them."""

_RESTORERS: WeakKeyDictionary[Any, Restore] = WeakKeyDictionary()
_TAKE_OVERS: WeakKeyDictionary[Any, TakeOver] = WeakKeyDictionary()


@dataclasses.dataclass(slots=True, eq=False)
class Chunk(Generic[Record]):
    """Records of one partition, in order, that are handled and committed together."""

    records: Sequence[Record]
    first: int
    """The offset at which reading stood before; offsets up to the first record's are gaps in the log."""
    finished: bool = False
    """Set by the agent before it acknowledges; what is not finished is delivered again."""

    @property
    def next(self) -> int:
        """The offset to commit."""
        return self.records[-1].offset + 1


class Arrivals:
    """How fast records come, and how long the next fetch is to wait for several of them."""

    def __init__(self) -> None:
        self._per_second = 0.0
        self._at: float | None = None

    def wait_ms(self, records: int, *, at: float) -> int:
        """So many came since the last time; the clock, in seconds, is the caller's."""
        if self._at is not None and at > self._at:
            seconds = at - self._at
            share = 1.0 - math.exp(-seconds / RATE_SECONDS)
            self._per_second += share * (records / seconds - self._per_second)
        self._at = at
        if self._per_second < BUSY_RATE:
            return 0
        return round(min(BUSY_FETCH_WAIT_MS, WAIT_MS_AT_ONE_A_SECOND * self._per_second))


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc] # Faust has no types
    """Reads committed records only, so that what a producer took back is never handled.

    A broker answers one request of a connection after the other: behind a fetch that waits 1.5 s for records, as
    Faust's do, a rebalance stands still for as long.
    """

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:  # noqa: ANN401 - aiokafka has no types
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # noqa: SLF001 - Faust has no setting for it
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 - the same
        return consumer

    def wait_for_company(self, wait_ms: int) -> None:
        """Has the next fetches wait that long for several records; 0 is for the first one alone."""
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001 - aiokafka has no setting for it at run time
        fetcher._fetch_min_bytes = BUSY_FETCH_BYTES if wait_ms else 1  # noqa: SLF001 - the same
        fetcher._fetch_max_wait_ms = wait_ms or FETCH_WAIT_MS  # noqa: SLF001 - the same

    def has_more(self, tp: TP) -> bool:
        """Whether the broker has committed records that were not taken from the fetcher, or has not said."""
        assignment = self._ensure_consumer()._subscription.subscription.assignment  # noqa: SLF001 - see above
        state = None if assignment is None else assignment.state_value(TopicPartition(*tp))
        if state is None or state.lso is None or not state.has_valid_position:
            return True
        return bool(state.position < state.lso)

    def reached(self, tp: TP) -> int:
        """The offset behind all that was taken from the fetcher, records or not; -1 where nobody has said."""
        assignment = self._ensure_consumer()._subscription.subscription.assignment  # noqa: SLF001 - see above
        state = None if assignment is None else assignment.state_value(TopicPartition(*tp))
        return int(state.position) if state is not None and state.has_valid_position else -1


class Consumer(driver.Consumer):  # type: ignore[misc] # Faust has no types
    """Keeps, per partition of an input topic, where the next fetch begins and how far everything is finished."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().__init__(*args, **kwargs)
        self._fetched: dict[TP, int] = {}
        self._finished: dict[TP, int] = {}
        self._required: dict[TP, int] = {}
        self._handed_over: dict[TP, int] = {}
        """Where the fetcher stood when nothing taken from it was on its way between the threads."""
        self._is_rewinding = False
        self._arrivals = Arrivals()
        self._seeks = 0
        self.chunk_records: int = self.app.conf.broker_max_poll_records or DEFAULT_CHUNK_RECORDS
        """Most records of one partition that a fetch brings, and that are to be handled together."""

    def finished(self) -> Mapping[TP, int]:
        """Per partition, the offset before which everything is safe."""
        return self._finished

    def is_next(self, tp: TP, chunk: Chunk[Any]) -> bool:
        """Whether all before the chunk is finished; it may overlap with what is."""
        return tp in self._finished and chunk.first <= self._finished[tp]

    def require(self, tp: TP, behind: int) -> None:
        """Has records up to this offset fetched, however many of the partition wait to be finished."""
        self._required[tp] = behind

    def is_coming(self, tp: TP, read: int | None) -> bool:
        """Whether records behind offset `read` (None: behind what is finished) are on their way to the agent."""
        return self._fetched.get(tp, 0) > (self._finished.get(tp, 0) if read is None else read)

    def has_more(self, tp: TP, read: int | None) -> bool:
        """Whether records behind offset `read` are on their way, or on the broker, or nobody has said yet."""
        return self.is_coming(tp, read) or self._is_between_threads(tp) or self._thread.has_more(tp)

    def _is_between_threads(self, tp: TP) -> bool:
        """Whether something was taken from the fetcher since, records or not, and nobody here has seen it yet."""
        reached: int = self._thread.reached(tp)
        return reached > self._handed_over.get(tp, reached)

    def _see_all_of(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            self._handed_over[tp] = self._thread.reached(tp)

    def hold(self, message: Any) -> None:  # noqa: ANN401 - Faust's message
        """Lets a rebalance wait for the message, which is being handled."""
        self._unacked_messages.add(message)

    def release(self, message: Any) -> None:  # noqa: ANN401 - Faust's message
        """Lets a rebalance go on without the message: what is not finished is fetched again."""
        self._unacked_messages.discard(message)

    async def perform_seek(self) -> None:
        """Goes back to the committed offsets; what was fetched and not finished comes again.

        Until the flow is resumed no input is fetched: Faust then empties the queues, and what had come would be lost.
        """
        self._is_rewinding = True
        self._seeks += 1
        await super().perform_seek()
        inputs = list(filter(self._is_input, self.assignment()))
        await self._begin([tp for tp in inputs if self._read_offset[tp] is None])
        for tp in inputs:
            self._forget_acknowledged(tp)
            self._fetched[tp] = self._finished[tp] = self._read_offset[tp] or 0
        self._seeks += 1

    def resume_flow(self) -> None:
        """Lets messages through again."""
        self._is_rewinding = False
        super().resume_flow()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seeks, of changelogs to where recovery begins; what was fetched before does not count as behind it."""
        self._seeks += 1
        await super().seek_wait(partitions)
        self._seeks += 1

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forgets where these stood: somebody else may carry on."""
        for tp in revoked:
            self._fetched.pop(tp, None)
            self._finished.pop(tp, None)
            self._required.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Keeps others from writing before tables look how far their changelogs reach."""
        take_over = _TAKE_OVERS.get(self.app)
        try:
            if take_over is not None and not (self.app.should_stop or self.app.crashed):
                await take_over({tp.partition for tp in assigned})
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would hear of it
            await self.app.crash(error)
        await super().on_partitions_assigned(assigned, generation_id)

    def ack(self, message: Any) -> bool:  # noqa: ANN401 - Faust's message
        """Takes a finished chunk of this generation as done; every other acknowledgement of a chunk means nothing."""
        chunk = message.value
        if not isinstance(chunk, Chunk):
            return bool(super().ack(message))
        is_ours = message.generation_id == self.app.consumer_generation_id
        if is_ours and chunk.finished and self.is_next(message.tp, chunk):
            self._finished[message.tp] = max(self._finished[message.tp], chunk.next)
            return bool(super().ack(message))
        self._unacked_messages.discard(message)
        return False

    async def on_task_error(self, exc: BaseException) -> None:
        """Ends the app: the next chunk must not be handled before the one that failed, and a restart reads it again."""
        await self.app.crash(exc)

    def _new_consumer_thread(self) -> ConsumerThread:
        same_kind = type(self.loop)()
        return ConsumerThread(self, loop=self.loop, thread_loop=same_kind, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, Sequence[Any]]:  # noqa: ASYNC109
        seeks = self._seeks
        wanted = {tp for tp in active_partitions or () if not self._must_wait(tp)}
        if not wanted:
            # To the fetcher no partition at all means every one.
            await self.sleep(LOOK_AGAIN_SECONDS)
            return {}
        if wanted != active_partitions or not any(map(self._is_input, wanted)):
            # Partitions are left out, or paused until tables are restored: that ends without this fetch being told.
            timeout = LOOK_AGAIN_SECONDS
        self._see_all_of(wanted)
        fetched = await super()._getmany(wanted, timeout)
        if fetched and seeks != self._seeks:
            # Nobody can tell from which side of the seek these are: have them again.
            await self._return(fetched)
            return {}
        self._thread.wait_for_company(self._arrivals.wait_ms(sum(map(len, fetched.values())), at=time.monotonic()))
        self._pass_over(tp for tp in wanted if tp not in fetched and self._is_input(tp))
        delivered = {tp: self._delivered(tp, records) for tp, records in fetched.items()}
        self._see_all_of(wanted)
        return delivered

    def _pass_over(self, tps: Iterable[TP]) -> None:
        """What holds no record, as a transaction's end and what it took back, is finished when all before it is.

        Otherwise it would look for ever as if something waited.
        """
        for tp in tps:
            if tp in self._finished and self._fetched.get(tp) == self._finished[tp]:
                self._fetched[tp] = self._finished[tp] = max(self._finished[tp], self._thread.reached(tp))

    def _delivered(self, tp: TP, records: Sequence[Any]) -> Sequence[Any]:
        if self._is_input(tp):
            return [self._chunk(tp, records)]
        restore = _RESTORERS.get(self.app)
        if restore is None or not self._is_restoring(tp):
            return records
        restore(tp, records)
        return [dataclasses.replace(records[-1], key=RESTORED, value=None, headers=())]

    def _is_restoring(self, tp: TP) -> bool:
        """Whether the partition's table is open here: only so its records may be written."""
        recovery = self.app.tables.recovery
        return tp in recovery.active_tps or tp in recovery.standby_tps

    def _must_wait(self, tp: TP) -> bool:
        return self._is_input(tp) and (self._is_rewinding or self._is_ahead(tp))

    def _is_ahead(self, tp: TP) -> bool:
        """Whether enough of a partition waits to be finished: the others come first, and memory stays bounded."""
        fetched = self._fetched.get(tp, 0)
        waiting = fetched - self._finished.get(tp, 0)
        return waiting >= CHUNKS_AHEAD * self.chunk_records and fetched >= self._required.get(tp, 0)

    async def _begin(self, never_committed: list[TP]) -> None:
        """Goes to the first record there is; Faust's own seek leaves these where they are."""
        if never_committed:
            first = await self.earliest_offsets(*(TopicPartition(*tp) for tp in never_committed))
            for tp, offset in first.items():
                await self.seek(tp, offset)
                self._read_offset[tp] = offset

    async def _return(self, tps: Iterable[TP]) -> None:
        recovery = self.app.tables.recovery
        for tp in tps:
            if self._is_input(tp):
                await self.seek(tp, self._fetched.get(tp, 0))
            elif self._is_restoring(tp):
                restored = recovery.active_offsets.get(tp) or recovery.standby_offsets.get(tp) or 0
                await self.seek(tp, max(restored, 0))

    def _chunk(self, tp: TP, records: Sequence[Any]) -> Any:  # noqa: ANN401 - aiokafka's record
        first = self._fetched.get(tp, records[0].offset)
        self._finished.setdefault(tp, first)
        chunk = Chunk(records, first)
        self._fetched[tp] = chunk.next
        return dataclasses.replace(records[-1], key=None, value=chunk, headers=())

    def _new_offset(self, tp: TP) -> int | None:
        if not self._is_input(tp):
            offset: int | None = super()._new_offset(tp)
            return offset
        self._forget_acknowledged(tp)
        return self._finished.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if not self._is_input(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    def _forget_acknowledged(self, tp: TP) -> None:
        self._acked[tp].clear()
        self._acked_index[tp].clear()

    def _is_input(self, tp: TP) -> bool:
        return bool(self.app.topics.acks_enabled_for(tp.topic))


class Transport(driver.Transport):  # type: ignore[misc] # Faust has no types
    """Kafka through aiokafka, by chunks; brokers are given as `chunks://host:port`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    driver_version = f"chunks over {driver.Transport.driver_version}"


def restore_with(app: Any, restore: Restore) -> None:  # noqa: ANN401 - a Faust app
    """Has the changelog records of the app's tables restored by chunks; keys and values as they stand on the topic."""
    _RESTORERS[app] = restore


def take_over_with(app: Any, take_over: TakeOver) -> None:  # noqa: ANN401 - a Faust app
    """Has this done with the partition numbers of every new assignment, before the app's tables are restored."""
    _TAKE_OVERS[app] = take_over


def register() -> None:
    """Makes the scheme known to Faust; a second time changes nothing."""
    TRANSPORTS.aliases[SCHEME] = f"{__name__}:{Transport.__name__}"
