"""Ten times more comes in than a scoring worker can answer: what waits, what is left out, what is never left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client import REGISTRY

from deploy.scoring import worker as worker_module
from deploy.scoring.answers import Acknowledged
from deploy.scoring.batching import Source, Work
from deploy.scoring.inputs import Done
from deploy.scoring.worker import ScoringWorker
from deploy.settings import ScoringSettings, Settings, StateSettings
from model.checkpoint import WrittenCheckpoint
from stream.events import Recommendation, Request
from stream.sequences import Applied, UserState, encode_state, times_of
from stream.topics import REQUESTS, SEQUENCES

USERS, CLICKS_PER_USER, PAGES = 100, 30, 600
READ_AHEAD, BATCH = 300, 16
ARRIVED_MS = 1_700_000_000_000
ITEMS = tuple(f"item-{number}" for number in range(40))
CLICKED, ASKED = Source(SEQUENCES, 0), Source(REQUESTS, 0)


class Record(NamedTuple):
    """As kafka-python gives it, as far as it is looked at."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: int = ARRIVED_MS
    headers: tuple[()] = ()


class Burst:
    """Everything stands there at once; gives as much as is asked for."""

    moving = False

    def __init__(self, records: Mapping[Source, list[Record]]) -> None:
        self._records = records
        self._next = dict.fromkeys(records, 0)
        self.committed: dict[Source, int] = {}

    async def poll(self, *, timeout_seconds: float, limit: int) -> list[tuple[Source, list[Record]]]:
        arrived = []
        for source, records in self._records.items():
            part = records[self._next[source] : self._next[source] + limit // 2]
            self._next[source] += len(part)
            arrived += [(source, part)] if part else []
        return arrived

    async def rebalanced(self) -> None:
        return None

    async def rebuild(self) -> None:
        return None

    def answer_from(self, source: Source) -> int:
        return 0

    def next_offset(self, source: Source) -> int:
        return self._next[source]

    async def commit(self, done: Mapping[Source, Done]) -> None:
        self.committed = {source: one.offset for source, one in done.items()}


class Kept:
    """Takes slates, and acknowledges each."""

    def __init__(self) -> None:
        self.sent: list[tuple[Work, Recommendation]] = []
        self._stand: list[Acknowledged] = []
        self.unacknowledged = 0

    async def send(self, work: Work, slate: Recommendation, raw: bytes, headers: Any) -> None:  # noqa: ANN401 - never looked at
        assert msgspec.json.decode(raw, type=Recommendation) == slate
        self.sent.append((work, slate))
        self._stand.append(Acknowledged(slate, ARRIVED_MS))

    async def send_refused(self) -> None:
        """There is none."""

    async def flush(self) -> None:
        """All is there."""

    def acknowledged(self) -> list[Acknowledged]:
        stand, self._stand = self._stand, []
        return stand

    def done(self, waiting: Mapping[Source, int], read_to: Callable[[Source], int]) -> dict[Source, Done]:
        return {source: Done(waiting.get(source, read_to(source)), 0) for source in (CLICKED, ASKED)}

    def refuse(self, record: Any, error: Exception) -> None:  # noqa: ANN401 - Kafka's clients ship no types
        raise AssertionError(f"{record}: {error}")


def clicks() -> Iterator[Record]:
    """All users by turns, each again and again."""
    for offset in range(USERS * CLICKS_PER_USER):
        items = ITEMS[: 1 + offset // USERS]
        state = UserState(
            items=items,
            times=times_of([ARRIVED_MS] * len(items)),
            clicks_applied=len(items),
            applied=Applied(clicks=offset),
            click=(0, offset, ARRIVED_MS),
        )
        yield Record("recs.sequences", 0, offset, b"user-%d" % (offset % USERS), encode_state(state))


def pages() -> Iterator[Record]:
    for offset in range(PAGES):
        user_id = f"user-{offset % USERS}"
        request = Request(event_id=f"page-{offset}", user_id=user_id, timestamp_ms=ARRIVED_MS, k=3)
        yield Record("recs.requests", 0, offset, user_id.encode(), msgspec.json.encode(request))


@pytest.fixture
def answered(
    tmp_path: Path, write_model: Callable[..., WrittenCheckpoint], monkeypatch: pytest.MonkeyPatch
) -> tuple[Kept, Burst, list[int]]:
    """What came of the burst, and how many waited after each turn."""
    monkeypatch.setattr(worker_module, "READ_AHEAD", READ_AHEAD)
    checkpoint = write_model(version=1, items=ITEMS).path
    scoring = ScoringSettings(max_batch=BATCH, max_wait_ms=0.0, checkpoint=str(checkpoint))
    settings = Settings(state=StateSettings(directory=tmp_path / "state"), scoring=scoring)
    kept, burst = Kept(), Burst({CLICKED: list(clicks()), ASKED: list(pages())})
    fakes: tuple[Any, Any] = (kept, burst)
    waited: list[int] = []

    async def answer_all() -> None:
        worker = ScoringWorker(settings, fakes[0])
        worker.models.run(None)  # type: ignore[arg-type]  # a given checkpoint follows nothing
        while not waited or waited[-1] or burst.next_offset(CLICKED) < USERS * CLICKS_PER_USER:
            await worker.turn(fakes[1])
            waited.append(len(worker._waiting))
        await worker.finish(fakes[1])

    asyncio.run(answer_all())
    return kept, burst, waited


def test_a_burst_is_answered_by_the_newest_of_each_user_and_every_request_in_bounded_memory(
    answered: tuple[Kept, Burst, list[int]],
) -> None:
    kept, burst, waited = answered
    pages_answered = Counter(work.request_id for work, _ in kept.sent if work.source == ASKED)
    clicks_answered = [(work.user_id, work.offset) for work, _ in kept.sent if work.source == CLICKED]
    newest = dict(sorted(clicks_answered, key=lambda answer: answer[1]))

    assert max(waited) <= READ_AHEAD
    assert pages_answered == {f"page-{number}": 1 for number in range(PAGES)}
    assert newest == {f"user-{user}": USERS * (CLICKS_PER_USER - 1) + user for user in range(USERS)}
    assert len(clicks_answered) == len(set(clicks_answered)) < USERS * CLICKS_PER_USER / 2
    assert burst.committed == {CLICKED: USERS * CLICKS_PER_USER, ASKED: PAGES}


def test_what_was_left_out_is_counted_and_a_late_answer_says_how_late(
    answered: tuple[Kept, Burst, list[int]],
) -> None:
    kept, _, _ = answered
    left_out = USERS * CLICKS_PER_USER - sum(work.source == CLICKED for work, _ in kept.sent)

    assert (REGISTRY.get_sample_value("sasrec_coalesced_clicks_total") or 0) >= left_out > 0
    for work, slate in kept.sent:
        assert slate.cause is not None
        assert slate.cause.offset == work.cause.offset
        assert slate.generated_at_ms - slate.cause.arrived_at_ms > 0
