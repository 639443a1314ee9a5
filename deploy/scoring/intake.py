"""Records of `sequences` and `requests` -> histories and work."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
import structlog

from deploy.scoring import metrics
from deploy.scoring.batching import Source, Waiting, Work
from deploy.scoring.histories import Histories, decode_history
from deploy.scoring.inputs import Rebalanced
from deploy.scoring.items import Refuse
from stream.dead_letters import UnreadableError
from stream.decoding import decode_event
from stream.events import Cause, Request
from stream.topics import REQUESTS, SEQUENCES

MAX_HELD = 5_000
"""Requests that wait for a click at once; the next are answered from what is known."""


class Clicked(Protocol):
    """Hears of clicks that were not seen before."""

    def __call__(self, items: tuple[str, ...], *, met: bool) -> None:
        """The user's items, oldest first, the last one just clicked; `met` where the user was not known before."""


class Intake:
    """What is known of users, and who waits for a slate."""

    def __init__(
        self,
        waiting: Waiting,
        histories: Histories,
        *,
        max_future_seconds: int,
        max_fresh_wait_ms: int,
        refuse: Refuse,
    ) -> None:
        self.waiting = waiting
        self.histories = histories
        self._max_future_ms = max_future_seconds * 1_000
        self._max_fresh_wait_ms = max_fresh_wait_ms
        self._refuse = refuse
        self._already_answered: frozenset[str] = frozenset()

    def rebalanced(self, moved: Rebalanced) -> None:
        """Other partitions are ours from now on."""
        self._already_answered = moved.answered
        self.waiting.drop(moved.lost)
        self.histories.forget(frozenset(source.partition for source in moved.lost))

    def read(self, source: Source, records: Iterable[Any], *, answer_from: int, clicked: Clicked) -> None:
        """Takes in the records of one source, in order; those before `answer_from` only tell of histories."""
        for record in records:
            work = (
                self._sequence(source, record, clicked) if source.topic == SEQUENCES else self._request(source, record)
            )
            if work is not None and work.offset >= answer_from:
                self._wait(work)

    def _wait(self, work: Work) -> None:
        now = time.monotonic()
        if work.request_id in self._already_answered:
            self.waiting.supersede(work)
        elif (until := self._patient_until(work, now)) is not None:
            self.waiting.hold(work, until=until)
        elif self.waiting.add(work, now=now):
            metrics.COALESCED.inc()

    def _patient_until(self, work: Work, now: float) -> float | None:
        """Until when a request waits for its click, by its arrival in Kafka; None where it need not or must not."""
        request = work.request
        if request is None or not request.wants_fresh or self.waiting.held >= MAX_HELD:
            return None
        if self.histories.known(work.user_id).reaches(request):
            return None
        wait_ms = self._max_fresh_wait_ms if request.wait_ms is None else min(request.wait_ms, self._max_fresh_wait_ms)
        until = now + (work.cause.arrived_at_ms + wait_ms) / 1_000 - time.time()
        return until if until > now else None

    def _is_fresh(self, work: Work) -> bool:
        assert work.request is not None, "only requests are held"
        return self.histories.known(work.user_id).reaches(work.request)

    def _sequence(self, source: Source, record: Any, clicked: Clicked) -> Work | None:  # noqa: ANN401 - kafka-python
        """Only a click asks for a slate: what was served comes back here, too, and must not be answered for ever."""
        user_id = record.key.decode()
        if record.value is None:
            self.histories.remove(user_id)
            return None
        try:
            history = decode_history(record.value)
        except msgspec.DecodeError as error:
            structlog.get_logger().error("sequence skipped", reason=str(error), source=source, offset=record.offset)
            return None
        met = not self.histories.has(user_id)
        cause = self.histories.put(user_id, history, partition=source.partition)
        self.waiting.release(user_id, now=time.monotonic(), is_fresh=self._is_fresh)
        if cause is None:
            return None
        clicked(history.items, met=met)
        request_id = f"{cause.topic}-{cause.partition}-{cause.offset}"
        return Work(user_id, request_id, cause, source, record.offset)

    def _request(self, source: Source, record: Any) -> Work | None:  # noqa: ANN401 - kafka-python ships no types
        try:
            request = decode_event(record, Request, latest_ms=time.time_ns() // 1_000_000 + self._max_future_ms)
        except UnreadableError as error:
            self._refuse(record, error)
            return None
        cause = Cause(topic=REQUESTS, partition=source.partition, offset=record.offset, arrived_at_ms=record.timestamp)
        return Work(request.user_id, request.event_id, cause, source, record.offset, request)
