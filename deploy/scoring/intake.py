"""Records of `sequences` and `requests` -> histories and work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

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

Clicked = Callable[[str], None]
"""Takes the item of a click that was not seen before."""


class Intake:
    """What is known of users, and who waits for a slate."""

    def __init__(self, waiting: Waiting, histories: Histories, *, max_future_seconds: int, refuse: Refuse) -> None:
        self.waiting = waiting
        self.histories = histories
        self._max_future_ms = max_future_seconds * 1_000
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
        if work.request_id in self._already_answered:
            self.waiting.supersede(work)
        elif self.waiting.add(work, now=time.monotonic()):
            metrics.COALESCED.inc()

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
        cause = self.histories.put(user_id, history, partition=source.partition)
        if cause is None:
            return None
        clicked(history.items[-1])
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
