"""The scoring worker: a click or a request comes in, a slate with exact propensities goes out.

The protocol, which makes every slate at least once and, unless a stalled worker wakes up after its partitions went to
another, exactly once:

1. read what arrived, fold it into the histories, let the work wait
2. take a batch, rank and draw it from one shelf, hand the slates to the producer
3. from time to time look at what the broker has acknowledged
4. and commit up to the first work that still waits, or whose slate is not acknowledged yet

Reading, sending and committing share one event loop and go on while others wait for Kafka; ranking holds the loop, and
what comes meanwhile is the next batch.

After a kill between 2 and 4 the successor reads the same work again; it makes no slate that already stands on
`recommendations`, and what it makes again from the same model and history is the same slate, for the draw is seeded by
the request_id.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import structlog
import torch
import uvloop

from deploy.scoring import metrics
from deploy.scoring.answers import Answers
from deploy.scoring.batching import Source, Waiting, Work, rest_seconds
from deploy.scoring.counted import Counted
from deploy.scoring.histories import Histories
from deploy.scoring.indexing import Indexing
from deploy.scoring.inputs import Done, Inputs
from deploy.scoring.intake import Intake
from deploy.scoring.items import Items
from deploy.scoring.models import Models
from deploy.scoring.report import Report
from deploy.scoring.shelf import ColdShelf
from deploy.scoring.slates import Query, Slates, Stock
from deploy.settings import Settings
from model.native.functions import kernels
from stream.cloud_events import cloud_event_headers
from stream.garbage import collect_rarely
from stream.topics import RECOMMENDATIONS

READ_AHEAD = 10_000
"""Most work that waits in memory; the rest waits in Kafka."""
IDLE_SECONDS = 0.1
SWITCH_SECONDS = 0.0005
"""How long a thread that follows `models` or `items` may keep the loop waiting at a time."""
LEAST_SECONDS = 0.001
"""The loop is free for so long in every turn, or the slates of one batch would not go out before the next is ranked."""
COMMIT_SECONDS = 0.25
PROGRESS_SECONDS = 1.0


def run_worker(settings: Settings, stop: threading.Event, *, member: str | None = None) -> None:
    """Answers until `stop` is set; `member` is a name that only this worker has and keeps over restarts.

    Raises:
        ValueError: `scoring.checkpoint` cannot be served from.
        KafkaError: a slate could not be written; whoever starts the process again loses nothing.
    """
    torch.set_num_threads(settings.scoring.threads)
    collect_rarely()
    sys.setswitchinterval(SWITCH_SECONDS)
    loop_factory = uvloop.new_event_loop if settings.stream.event_loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_run(settings, stop, member))


async def _run(settings: Settings, stop: threading.Event, member: str | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        answers = Answers(settings.kafka)
        stack.push_async_callback(answers.close)
        await answers.start()
        worker = ScoringWorker(settings, answers)
        followers = stack.enter_context(_following(worker))
        await asyncio.to_thread(_wait_until_ready, worker, followers, stop)
        gc.freeze()  # or what stands now is looked through again and again: 0.2 s in which nobody is answered
        inputs = Inputs(settings.kafka, member=member, before_moving=worker.hand_over)
        stack.push_async_callback(inputs.close)
        await inputs.start()
        while not stop.is_set():
            await worker.turn(inputs)
            _raise_failure(followers)
        if not inputs.moving:
            await worker.finish(inputs)


@contextlib.contextmanager
def _following(worker: ScoringWorker) -> Iterator[list[Future[None]]]:
    """`models` and `items` are followed beside the loop: loading a model holds up neither a withdrawal nor a user."""
    ended = threading.Event()
    with ThreadPoolExecutor(2, thread_name_prefix="follow") as pool:
        try:
            yield [pool.submit(worker.models.run, ended), pool.submit(worker.items.run, ended)]
        finally:
            ended.set()


def _wait_until_ready(worker: ScoringWorker, followers: Iterable[Future[None]], stop: threading.Event) -> None:
    """Nobody gets a withdrawn item or a slate without the model only because the worker has just started.

    Nor does anybody wait for the kernels, which take seconds to compile at the first start on a machine.
    """
    kernels()
    while not (worker.models.ready.is_set() and worker.items.ready.is_set()) and not stop.wait(0.01):
        _raise_failure(followers)


def _raise_failure(followers: Iterable[Future[None]]) -> None:
    for follower in followers:
        if follower.done():
            follower.result()


class ScoringWorker:
    """One worker's memory; `turn` is one round of the protocol."""

    def __init__(self, settings: Settings, answers: Answers) -> None:
        scoring, trainer = settings.scoring, settings.trainer
        indexing = Indexing(scoring.index_from_items, scoring.index_share)
        self.models = Models(
            settings.kafka, checkpoint=scoring.checkpoint, warm_up_users=scoring.max_batch, indexing=indexing
        )
        self.items = Items(settings.kafka, refuse=answers.refuse)
        self._answers = answers
        self._waiting = Waiting(max_batch=scoring.max_batch, max_wait_seconds=scoring.max_wait_ms / 1_000)
        self._histories = Histories(max_users=scoring.max_users)
        self._intake = Intake(
            self._waiting,
            self._histories,
            max_future_seconds=settings.stream.max_future_seconds,
            max_fresh_wait_ms=scoring.max_fresh_wait_ms,
            refuse=answers.refuse,
        )
        self._cold = ColdShelf(max_items=trainer.max_items, half_life_clicks=trainer.popular_half_life)
        self._slates = Slates(settings.policy, indexing=indexing)
        self._counted = Counted(trainer) if self._slates.need_counts else None
        self._slate_size = settings.policy.slate_size
        self._report = Report()
        self._encode = msgspec.json.Encoder().encode
        self._committing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._committing.set_result(None)
        self._answering = asyncio.Lock()
        """Held while the slates of a batch are sent."""
        self._commit_at_seconds = 0.0
        self._progress_at_seconds = 0.0

    async def turn(self, inputs: Inputs) -> None:
        """Reads, answers what is due, and commits from time to time."""
        if inputs.moving or len(self._waiting) + self._answers.unacknowledged < READ_AHEAD:
            await self._read(inputs)  # 1.
        else:
            await asyncio.sleep(LEAST_SECONDS)
        if inputs.moving:
            return
        self._waiting.release_overdue(time.monotonic())
        is_due = self._waiting.seconds_left(time.monotonic()) == 0.0
        if is_due and self._answers.unacknowledged < READ_AHEAD:
            await self._answer_unless_moving(inputs)  # 2.
        await self._answers.send_refused()
        if time.monotonic() >= self._commit_at_seconds and self._committing.done():
            self._committing = asyncio.ensure_future(inputs.commit(self._done(inputs)))
            self._commit_at_seconds = time.monotonic() + COMMIT_SECONDS

    async def _answer_unless_moving(self, inputs: Inputs) -> None:
        async with self._answering:
            if not inputs.moving:
                await self._answer(self._waiting.take())

    async def hand_over(self) -> None:
        """Before partitions go to another worker, which looks for what stands: all that was sent, or it is too late."""
        async with self._answering:
            await self._answers.flush()

    async def finish(self, inputs: Inputs) -> None:
        """Waits for acknowledgements, and says what is done."""
        await self._answers.flush()
        await self._committing
        await inputs.commit(self._done(inputs))

    def _done(self, inputs: Inputs) -> dict[Source, Done]:
        """What a commit may say now (step 4)."""
        self._committing.result()  # what went wrong in the one before
        stand = self._answers.acknowledged()  # 3.
        self._report.acknowledged([one.slate for one in stand], [one.at_ms for one in stand])
        metrics.KNOWN_USERS.set(len(self._histories))
        return self._answers.done(self._waiting.first_offsets(), inputs.next_offset)

    async def _read(self, inputs: Inputs) -> None:
        left_seconds = self._waiting.seconds_left(time.monotonic())
        wait_seconds = IDLE_SECONDS if left_seconds is None else left_seconds
        room = max(1, READ_AHEAD - len(self._waiting))
        wait_seconds = min(IDLE_SECONDS, max(LEAST_SECONDS, wait_seconds))
        arrived = await inputs.poll(timeout_seconds=wait_seconds, limit=room)
        moved = await inputs.rebalanced()
        if moved is not None:
            self._intake.rebalanced(moved)
            self._answers.begin(moved)
            return
        for source, records in arrived:
            self._intake.read(source, records, answer_from=inputs.answer_from(source), clicked=self._clicked)
        if not inputs.moving:
            self._tell_progress(await inputs.rebuild())

    def _clicked(self, items: tuple[str, ...], *, met: bool) -> None:
        """Counts what is recommended by counting; the model counts by itself."""
        if self.models.live is None:
            self._cold.click(items[-1])
        if self._counted is not None and met:
            self._counted.met(items)
        elif self._counted is not None:
            self._counted.click(items[-2] if len(items) > 1 else None, items[-1])

    async def _answer(self, batch: list[Work]) -> None:
        """From one shelf and one state of withdrawals: both are taken once."""
        began = time.monotonic()
        withdrawn, available, categories = self.items.withdrawn, self.items.available, self.items.categories
        queries = [self._query(work) for work in batch]
        now_ms = _now_ms()
        with self.models.borrowed() as live:
            shelf = live or self._cold.shelf(available)
            stock = Stock(shelf, withdrawn, available, categories, self._counted, now_ms)
            slates = self._slates.draw(stock, queries)
        for work, slate in zip(batch, slates, strict=True):
            if slate is None:
                metrics.ELSEWHERE.inc()
                continue
            headers = cloud_event_headers(
                event_id=slate.request_id, kind="recommendation", source=RECOMMENDATIONS, at_ms=now_ms
            )
            await self._answers.send(work, slate, self._encode(slate), headers)
        ended = time.monotonic()
        self._waiting.rest(until=ended + rest_seconds(ended - began, users=len(batch)))
        metrics.BATCH_USERS.observe(len(batch))
        metrics.BATCH_SECONDS.observe(ended - began)

    def _query(self, work: Work) -> Query:
        items, known = self._histories.items_of(work.user_id), self._histories.known(work.user_id)
        request = work.request
        query = Query(work.user_id, work.request_id, work.cause, items, self._slate_size)
        query = query._replace(sequence_position=known.clicks_applied)
        if request is None:
            return query
        return query._replace(
            slate_size=request.k or self._slate_size,
            candidates=request.candidates,
            exclude=request.exclude,
            is_fresh=known.reaches(request) if request.wants_fresh else None,
        )

    def _tell_progress(self, progress: tuple[int, int] | None) -> None:
        if progress is not None and time.monotonic() >= self._progress_at_seconds:
            self._progress_at_seconds = time.monotonic() + PROGRESS_SECONDS
            read, total = progress
            structlog.get_logger().info("histories are rebuilding", read=read, total=total, users=len(self._histories))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
