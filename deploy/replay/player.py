"""Sends events to Kafka at the pace of their own times, or as fast as Kafka takes them."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from deploy.replay.events import Event, Message
from stream import clients
from stream.settings import KafkaSettings

MAX_UNACKNOWLEDGED = 20_000
"""Messages on their way at once: enough to keep the producer busy, few enough to forget."""


class Played(NamedTuple):
    """What was sent and acknowledged by every replica."""

    events: int
    messages: dict[str, int]
    """By topic, without the prefix."""
    through_ms: int | None
    """Time of the last event; None when there was none."""
    seconds: float


class Pace:
    """When an event is due: `speed` times as fast as it happened, counted from the first one; None: at once."""

    def __init__(self, speed: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed, self._clock = speed, clock
        self._origin: tuple[float, int] | None = None

    def seconds_until(self, time_ms: int) -> float:
        """Seconds from now until an event of this time is due; zero or less when it is late."""
        if self._speed is None:
            return 0.0
        if self._origin is None:
            self._origin = (self._clock(), time_ms)
        began, first_ms = self._origin
        return began + (time_ms - first_ms) / 1_000 / self._speed - self._clock()


class Sender:
    """Sends messages and knows of each whether Kafka has it.

    Raises (`send` and `finish`):
        ValueError: Kafka refused a message, or did not answer in the producer's own time.
    """

    def __init__(self, producer: KafkaProducer, kafka: KafkaSettings) -> None:
        self._producer, self._kafka = producer, kafka
        self._unacknowledged: collections.deque[FutureRecordMetadata] = collections.deque()
        self.sent: collections.Counter[str] = collections.Counter()

    def send(self, message: Message) -> None:
        """Hands one message over; waits when too many are on their way."""
        with self._refusals_explained():
            sent = self._producer.send(self._kafka.topic(message.topic), key=message.key, value=message.value)
            self._unacknowledged.append(sent)
            self.sent[message.topic] += 1
            if len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
                self._unacknowledged.popleft().get()

    def finish(self) -> None:
        """Returns when Kafka has everything."""
        with self._refusals_explained():
            self._producer.flush()
            while self._unacknowledged:
                self._unacknowledged.popleft().get()

    @contextlib.contextmanager
    def _refusals_explained(self) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            raise ValueError(
                f"Kafka refused one of {self.sent.total():,} messages: {error}; see that it runs and has the topics "
                "(`sasrec-stream topics check`), then play the same file again: repeats change nothing"
            ) from error


def play(events: Iterable[Event], *, kafka: KafkaSettings, pace: Pace, stop: threading.Event) -> Played:
    """Plays `events` in their order until they end or `stop` is set; all that was sent is acknowledged on return."""
    began = time.monotonic()
    played, through_ms = 0, None
    with clients.producer(kafka) as producer:
        sender = Sender(producer, kafka)
        for event in events:
            if stop.wait(max(0.0, pace.seconds_until(event.time_ms))):
                break
            for message in event.messages:
                sender.send(message)
            played, through_ms = played + 1, event.time_ms
        sender.finish()
    return Played(played, dict(sender.sent), through_ms, time.monotonic() - began)
